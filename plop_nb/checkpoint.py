"""The samples that a run has finished, kept on disk so that an interrupt loses nothing."""

import errno
import hashlib
import json
import os
import uuid
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from plop_nb.checks import user_level
from plop_nb.fingerprint import as_bytes
from plop_nb.finished_files import Held, totals_path, written_whole

FORMAT = 2  # changes whenever older files cannot be gone on from


class Finished:
    """The samples that a run has finished, before it began or since.

    A file only ever grows: see `finished_files` for what is in it.

    Parameters
    ----------
    own : Path
        The file to write to: made where it does not exist, left alone until there is a sample to
        add where it does.
    held : list of Held
        What all files of this run hold: see `finished_files.opened`.
    maps : pandas.DataFrame
        The scored maps: `module`, `type`, `layer`.
    settings : dict
        Whatever tells one run from another.
    gains : list of float or None
        The baseline of each map, None where it is not known yet.
    columns : sequence of str
        The means to keep of every sample and map.
    has_totals : bool
        Whether the run adds something up.
    is_first : bool
        Whether this process, of several, is the one that counts `totals` and warns.

    Attributes
    ----------
    totals : dict of tensors
        What was added up over the samples `covered` before the run began, by all processes.
    covered : set of int
        Those samples, the same in all processes.

    Raises
    ------
    ValueError
        A file holds another run.
    OSError
        The file cannot be written to.

    Warns
    -----
    UserWarning
        Lines that are damaged are left out: counts them.
    """

    def __init__(
        self,
        own: Path,
        held: list[Held],
        maps: pd.DataFrame,
        settings: dict,
        gains: list,
        *,
        columns: Sequence[str] = ("nfn",),
        has_totals: bool = False,
        is_first: bool = True,
    ) -> None:
        self._path, self._maps, self._columns = own, maps, list(columns)
        self._numbers = {name: i for i, name in enumerate(maps["module"])}
        about = {"format": FORMAT, **settings, "columns": self._columns}
        head = {"settings": {**about, "modules": list(self._numbers)}, "gains": gains}
        head = json.loads(_as_line(head | {"id": uuid.uuid4().hex}))
        self._held = held
        self._samples: dict[int, dict] = {}
        for each in held:
            if differs := _difference(each.head, head):
                raise ValueError(
                    f"partial={str(each.path)!r} holds another run, its {differs}: delete the "
                    "file, or name another one"
                )
            self._samples.update(each.samples)
        self.totals: dict[str, torch.Tensor] = {}
        self.covered: set[int] = set()
        if has_totals:
            self._take_totals(held, is_first)
        if is_first:
            _warn_of_damage(held, has_totals)
        mine = [each for each in held if each.is_own]
        self._own = mine[0] if mine else Held(own, head, {}, 0, length=0, size=0, ends=True)
        if not mine:
            self._begin()

    def has(self, sample: int, row: dict[str, torch.Tensor]) -> bool:
        """Whether this sample is finished; `row` are its tensors.

        Raises
        ------
        ValueError
            Another text stands there.
        """
        found = self._samples.get(sample)
        if found is None:
            return False
        if found["key"] != key(row):
            where = next(each.path for each in self._held if sample in each.samples)
            raise ValueError(
                f"partial={str(where)!r} has another text as sample {sample}: delete the file, or "
                "name another one"
            )
        return True

    def add(
        self,
        frame: pd.DataFrame,
        keys: dict[int, str],
        unclear: set[str],
        totals: dict[str, torch.Tensor],
    ) -> None:
        """Append the samples of `frame`.

        Parameters
        ----------
        frame : pandas.DataFrame
            Rows of finished samples only.
        keys : dict
            {sample: key of its tensors}.
        unclear : set of str
            Modules to distrust.
        totals : dict of tensors
            What was added up in this run, since it began.

        Raises
        ------
        OSError
            Such as of a full disk: the file is as it was.
        """
        lines = []
        for sample, rows in frame.groupby("sample"):
            line = {"sample": int(sample), "key": keys[sample], "unclear": sorted(unclear)}
            line["map"] = rows["module"].map(self._numbers).tolist()
            for column in ("tokens", *self._columns):
                line[column] = rows[column].tolist()
            lines.append(line)
        self._append(lines)
        if totals:
            self._own.covered |= keys.keys() & set(frame["sample"])
            self._write_totals(added(self._own.totals, totals))

    def frame(self, samples: Iterable[int]) -> pd.DataFrame:
        """Those of `samples` that were on disk when the run began, with the columns of a record."""
        parts = []
        for line in self._lines(samples):
            measured = {name: line[name] for name in ("tokens", *self._columns)}
            parts.append(self._maps.iloc[line["map"]].assign(**measured, sample=line["sample"]))
        if not parts:
            return pd.DataFrame()
        frame = pd.concat(parts)
        order = ["sample", *self._maps, "tokens", *self._columns]
        return frame.loc[~frame["module"].isin(self.unclear(samples)), order]

    def unclear(self, samples: Iterable[int]) -> set[str]:
        """Modules to distrust, for the sake of those of `samples` that were on disk."""
        return {name for line in self._lines(samples) for name in line["unclear"]}

    def _lines(self, samples):
        return [self._samples[sample] for sample in samples if sample in self._samples]

    def _take_totals(self, held, is_first):
        """What was added up before; the samples that it does not cover are run again."""
        for each in held:
            if each.covered & self.covered:  # no sample counts twice
                each.covered, each.totals = set(), {}
            self.covered |= each.covered
            if is_first:
                self.totals = added(self.totals, each.totals)
        self._samples = {sample: self._samples[sample] for sample in sorted(self.covered)}

    def _begin(self):
        """Make the file, with its first line."""
        try:
            self._path.touch()
            self._own.size = self._path.stat().st_size
        except OSError as error:
            raise _unwritable(self._path, error) from error
        self._append([self._own.head])

    def _append(self, lines):
        """Add lines behind the last whole one: a line that was cut goes, and no other."""
        content = "".join(map(_as_line, lines)).encode()
        if not self._own.ends:
            content = b"\n" + content
        length = self._own.length
        try:
            with self._path.open("r+b") as file:
                self._check_alone(file)
                file.truncate(length)
                file.seek(length)
                file.write(content)
        except OSError as error:
            with suppress(OSError):
                os.truncate(self._path, length)
            raise _unwritable(self._path, error) from error
        self._own.length = self._own.size = length + len(content)
        self._own.ends = True

    def _check_alone(self, file):
        """Refuse to cut what another run has added, where the disk knows no locks."""
        if file.seek(0, os.SEEK_END) != self._own.size:
            raise ValueError(
                f"partial={str(self._path)!r} was written by another run meanwhile: name a file of "
                "its own for each"
            )

    def _write_totals(self, totals):
        """After the lines that they cover: lines beyond are run again."""
        path = totals_path(self._path)
        tensors = {name: total.cpu().contiguous() for name, total in totals.items()}
        about = {"id": self._own.head["id"], "samples": json.dumps(sorted(self._own.covered))}
        try:
            with written_whole(path) as unfinished:
                save_file(tensors, unfinished, metadata=about)
        except (OSError, SafetensorError) as error:
            raise _unwritable(path, error) from error


def added(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The sums of tensors of the same name, on the CPU, in float64.

    Rounded to float32 they are the same in whatever order parts are added, or all but.
    """
    sums = {name: tensor.cpu().double() for name, tensor in one.items()}
    for name, tensor in other.items():
        more = tensor.cpu().double()
        sums[name] = sums[name] + more if name in sums else more
    return sums


def key(row: dict[str, torch.Tensor]) -> str:
    """A hash of one sample's tensors, padding left out."""
    mask = row.get("attention_mask")
    digest = hashlib.sha256()
    for name in sorted(row):
        value = row[name]
        if value.layout != torch.strided:
            value = value.to_dense()
        if mask is not None and mask.ndim == 1 and value.shape[:1] == mask.shape:
            value = value[mask != 0]
        about = f"{name} {value.dtype} {tuple(value.shape)}"
        digest.update(about.encode() + as_bytes(value).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _as_line(content):
    # Numbers of numpy, such as a seed, become plain ones.
    return json.dumps(content, default=lambda number: number.item()) + "\n"


def _warn_of_damage(held, has_totals):
    for each in held:
        damaged = each.damaged + (has_totals and each.has_damaged_totals)
        if damaged:
            warnings.warn(
                f"partial={str(each.path)!r} has {damaged} entries that are damaged: they are left "
                "out, and their samples run again",
                stacklevel=user_level(),
            )


def _unwritable(path, error):
    why = getattr(error, "strerror", None) or error
    message = (
        f"partial: {str(path)!r} cannot be written to ({why}); what it holds is kept: make room, "
        "or free the file, and call again"
    )
    return OSError(getattr(error, "errno", None) or errno.EIO, message)


def _difference(there, here):
    """What tells two first lines apart, in words; None where they are of the same run."""
    for name in {**here["settings"], **there["settings"]}:
        other, value = (head["settings"].get(name) for head in (there, here))
        if other == value:
            continue
        if name == "weights":
            return "weights differ (or adapters, or the model's config)"
        return f"{name} differ" if name == "modules" else f"{name} is {other!r}, here {value!r}"
    for one, other in zip(there["gains"], here["gains"], strict=True):
        if one is not None and other is not None and not np.isclose(one, other, rtol=1e-5):
            return "weights differ"
    return None
