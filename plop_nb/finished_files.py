"""The files of finished samples: which belong together, who may write, what they hold.

One process writes to PATH; of several (`accelerate launch`) the first to PATH.process0, the next to
PATH.process1, ... All of these are read, by however many processes go on from there.

The first line of a file tells which run it is (its settings, and the baseline of every module);
each further line is a sample. What an observer adds up over all samples stands in a second file
beside it, `PATH.totals`, with the id of the first and the samples that it covers.
"""

import itertools
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from plop_nb.processes import Process, gathered

BEGINNING = b'{"settings"'  # of the first line


@dataclass
class Held:
    """What a file held when the run began."""

    path: Path
    head: dict  # its first line
    samples: dict[int, dict]
    damaged: int  # lines that cannot be read
    length: int  # bytes up to the end of the last whole line
    size: int  # bytes in all
    ends: bool  # whether that line has its line break
    totals: dict[str, torch.Tensor] = field(default_factory=dict)
    covered: set[int] = field(default_factory=set)  # the samples in the totals
    has_damaged_totals: bool = False
    is_own: bool = False  # whether this process writes to it

    @property
    def id(self) -> str:
        """What tells the file from all others but its copies."""
        return self.head["id"]

    @property
    def summary(self) -> tuple:
        """What tells it from what another process has read."""
        return self.id, str(self.path), self.length, tuple(sorted(self.covered))


@contextmanager
def opened(path: str | os.PathLike | None, process: Process) -> Iterator[list[Held]]:
    """Lock the file that this process writes to; yields what all files hold, alike in each process.

    The lock goes with the process, however that ends. Without a path there is nothing to do.

    Raises
    ------
    TypeError, ValueError
        `path` is no path of a file, holds something else, or another run writes to it now; in all
        processes, where it is so in one.
    """
    if path is None:
        yield []
        return
    with ExitStack() as stack:
        found: list[Held] | Exception
        try:
            stack.enter_context(_locked(path, process))
            found = [held for each in _family(path) if (held := _read(each)) is not None]
            for held in found:
                held.is_own = held.path == own_path(path, process)
        except Exception as error:
            found = error
        yield _of_all(found, process)


def own_path(path: str | os.PathLike, process: Process) -> Path:
    """The file that a process writes to."""
    return Path(path) if process.number == 1 else Path(f"{path}.process{process.rank}")


def totals_path(path: Path) -> Path:
    """The file of totals beside a file of samples."""
    return path.with_name(f"{path.name}.totals")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to; once that is done, the file takes its place.

    After an error nothing is left, and what stood there still does.
    """
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        with suppress(OSError):
            unfinished.unlink()


def _of_all(found, process):
    """What all processes have read, before any of them writes."""
    is_error = isinstance(found, Exception)
    seen = gathered(found if is_error else [each.summary for each in found], process)
    if all(each == seen[0] for each in seen):
        return found
    held = {}
    for each in itertools.chain(*gathered(found, process)):  # of machines with a disk each
        each.is_own = False
        held[each.summary] = each
    return list((held | {each.summary: each for each in found}).values())


@contextmanager
def _locked(path, process):
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"partial={path!r} is {type(path).__name__}, expected the path of a file")
    own = own_path(path, process)
    if own.exists() and not own.is_file():
        what = "a folder: name a file in it" if own.is_dir() else "a device: name a file"
        raise ValueError(f"partial={str(own)!r} is {what}")
    if not own.parent.is_dir():
        raise ValueError(f"partial={str(own)!r}: its folder does not exist, make it first")
    lock = FileLock(f"{own.resolve()}.lock", timeout=0)  # by whatever links it is reached
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"partial={str(own)!r} is being written by another run: wait for it, or name another "
            "file"
        ) from None
    except (OSError, NotImplementedError):
        pass  # a folder that is read-only, or without locks: a finished file can still be read
    try:
        yield
    finally:
        lock.release()


def _family(path):
    """The files of a run that exist, whichever processes have written them."""
    numbered = []
    for each in Path(path).parent.iterdir():
        name, _, number = each.name.rpartition(".process")
        if name == Path(path).name and number.isdecimal():
            numbered.append((int(number), each))
    files = [Path(path), *(each for _, each in sorted(numbered))]
    return [each for each in files if each.is_file()]


def _read(path):
    """What a file holds; None where that is nothing, or the beginning of a first line."""
    content = path.read_bytes()
    *lines, tail = content.split(b"\n")
    length = sum(len(line) + 1 for line in lines)
    ends = _parsed(tail) is None
    if not ends:  # a whole line, and only its line break is missing
        lines.append(tail)
        length += len(tail)
    if not lines and (not tail or tail.startswith(BEGINNING)):
        return None
    head = _parsed(lines[0]) if lines else None
    if head is None or not _is_head(head):
        raise ValueError(f"partial={str(path)!r} is a file of another kind: name a new file")
    samples = {}
    damaged = 0
    for one in lines[1:]:
        line = _parsed(one)
        if _is_sample(line, head["settings"]):
            samples[line["sample"]] = line
        elif one.strip():
            damaged += 1
    held = Held(path, head, samples, damaged, length, len(content), ends)
    _read_totals(held)
    return held


def _parsed(line):
    """The dict in a line; None where there is none."""
    try:
        content = json.loads(line)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _is_head(line):
    """Whether a line tells which run it is."""
    settings, gains = line.get("settings"), line.get("gains")
    if not isinstance(settings, dict) or not isinstance(gains, list) or "id" not in line:
        return False
    return len(gains) == len(settings.get("modules", ()))


def _is_sample(line, settings):
    """Whether a line holds all that belongs to a sample."""
    try:
        columns = [line[name] for name in ("map", "tokens", *settings["columns"])]
        numbers = all(isinstance(value, (int, float)) for column in columns for value in column)
        known = min(line["map"]) >= 0 and max(line["map"]) < len(settings["modules"])
        alike = len(set(map(len, columns))) == 1 and isinstance(line["unclear"], list)
        return numbers and known and alike and isinstance(line["sample"], int) and "key" in line
    except (KeyError, TypeError, ValueError):
        return False


def _read_totals(held):
    """The totals beside a file, if they are of its samples."""
    path = totals_path(held.path)
    if not path.exists():
        return
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata()
            covered = set(json.loads(about["samples"]))
            if about["id"] == held.id and covered <= held.samples.keys():
                held.totals = {name: file.get_tensor(name) for name in file.keys()}
                held.covered = covered
    except (SafetensorError, KeyError, TypeError, ValueError):
        held.has_damaged_totals = True
