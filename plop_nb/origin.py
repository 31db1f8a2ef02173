"""Where scores come from: the model, the texts and the settings, and what tells models apart."""

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import nn

from plop_nb.fingerprint import fingerprint
from plop_nb.wrappers import trunk_of, unwrapped

PACKAGES = ("plop_nb", "torch", "transformers")


def origin(model: nn.Module, texts: str | None, settings: dict[str, Any]) -> dict[str, Any]:
    """What `nfn_scores` writes into the attributes of its frame, in the terms of JSON.

    Parameters
    ----------
    model : torch.nn.Module
    texts : str or None
        Of `hash_of`; None where the data were batches.
    settings : dict
        The arguments that the scores depend on.

    Returns
    -------
    dict
        `model` (Hub id, or the last part of its folder), `class`, `revision` (the commit on the
        Hub; None for a folder), `dtype`, `device`, `texts`, `settings`, `versions`.
    """
    inner = unwrapped(model)
    found = {
        "model": model_name(inner),
        "class": type(inner).__name__,
        "revision": getattr(getattr(inner, "config", None), "_commit_hash", None),
        "dtype": str(getattr(inner, "dtype", None)).removeprefix("torch."),
        "device": getattr(getattr(inner, "device", None), "type", None),
        "texts": texts,
        "settings": settings,
        "versions": {package: _version(package) for package in PACKAGES},
    }
    # Numbers of numpy, such as a seed, become plain ones.
    return json.loads(json.dumps(found, default=lambda number: number.item()))


def model_name(model: nn.Module) -> str:
    """The model's Hub id, or the last part of its folder: the same on every machine."""
    config = getattr(model, "config", None)
    name = getattr(config, "_name_or_path", "") or type(model).__name__
    return Path(name).name if Path(name).is_dir() else name


def hash_of(texts: Sequence[str]) -> str:
    """A hash of texts in their order: 16 hexadecimal digits.

    Examples
    --------
    >>> hash_of(["a", "b"]) == hash_of(["ab"])
    False
    """
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()[:16]


def identity(model: nn.Module) -> dict[str, Any]:
    """What tells models apart; costs one reading of the weights."""
    inner = unwrapped(model)
    config = getattr(inner, "config", None)
    return {
        "model": type(inner).__name__,
        "dtype": str(getattr(inner, "dtype", None)),
        "attention": getattr(config, "_attn_implementation", None),
        "weights": fingerprint(trunk_of(model)),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout
        return None
