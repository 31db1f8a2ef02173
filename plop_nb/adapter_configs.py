"""A `LoraConfig` from whatever people have: the config itself, a dict, a file, targets alone."""

import copy
import json
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel
from peft.utils import CONFIG_NAME

TAKEN = (
    "a peft.LoraConfig, a dict, a PeftModel, an adapter's folder or its adapter_config.json, or "
    "targets such as ['q_proj', 'v_proj'] or 'all-linear'"
)


def read_config(config: Any) -> LoraConfig:
    """The `LoraConfig` that is meant; a copy, so that nobody's is changed.

    Parameters
    ----------
    config : peft.LoraConfig, dict, peft.PeftModel, str, path, or iterable of str
        A dict holds the arguments of a `LoraConfig`, as `adapter_config.json` does. A string is
        a path where an `adapter_config.json` is found by it, or where it looks like one; else it
        is `target_modules`: "all-linear" or a regular expression.

    Raises
    ------
    ValueError
        It is another kind of adapter, holds no targets that can be read, or its file is damaged.
    TypeError
        It is none of these.
    FileNotFoundError
        There is no `adapter_config.json`.
    """
    if isinstance(config, PeftModel):
        config = config.peft_config[config.active_adapter]
    if isinstance(config, PeftConfig):
        return _lora(copy.deepcopy(config))
    if isinstance(config, Mapping):
        return _from_dict(dict(config), "config")
    if isinstance(config, os.PathLike) or (isinstance(config, str) and _is_path(config)):
        path = config_file(config)
        return _from_dict(_read(path), str(path))
    if isinstance(config, str):
        if not config.strip():
            raise ValueError(f"config={config!r} is blank, expected {TAKEN}")
        return LoraConfig(target_modules=config)
    if isinstance(config, Iterable):
        return _from_dict({"target_modules": list(config)}, "config")
    raise TypeError(f"config is {type(config).__name__}, expected {TAKEN}")


def adapter_folder(config: Any) -> Path | None:
    """The folder of a trained adapter that `config` names; None where it names none."""
    if not isinstance(config, (str, os.PathLike)) or not _is_path(config):
        return None
    folder = config_file(config).parent
    return folder if any(folder.glob("adapter_model.*")) else None


def config_file(path: str | os.PathLike) -> Path:
    """The `adapter_config.json` that is, or lies in, `path`."""
    found = Path(path)
    if found.is_dir():
        found = found / CONFIG_NAME
    if not found.is_file():
        raise FileNotFoundError(
            f"config={str(path)!r}: there is no {CONFIG_NAME} here, expected an adapter's folder "
            "or that file; save_pretrained(FOLDER) of an adapter or of a config writes it"
        )
    return found


def _is_path(text: str | os.PathLike) -> bool:
    """Whether a string means a file; no name of a module holds a slash."""
    if isinstance(text, os.PathLike):
        return True
    looks_so = "/" in text or text.endswith(".json")
    return looks_so or (Path(text) / CONFIG_NAME).is_file()


def _read(path: Path) -> dict[str, Any]:
    """What the file holds."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}): it is damaged, or no {CONFIG_NAME}; save or "
            "download the adapter again"
        ) from error
    if not isinstance(held, dict):
        kind = type(held).__name__
        raise ValueError(f"{path} holds a {kind}, expected the arguments of a config")
    return held


def _from_dict(arguments: dict[str, Any], source: str) -> LoraConfig:
    """A config of these arguments; those that this release of PEFT does not know are left out."""
    kind = str(getattr(arguments.get("peft_type"), "value", arguments.get("peft_type") or "LORA"))
    if kind.upper() != "LORA":
        raise ValueError(_other_kind(source, kind))
    arguments = {**arguments, "peft_type": "LORA"}
    arguments.pop("runtime_config", None)
    targets = arguments.get("target_modules")
    if targets is not None and not _are_names(targets):
        raise ValueError(
            f"target_modules={targets!r} in {source}, expected names of modules, a regular "
            "expression or 'all-linear'"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _lora(PeftConfig.from_peft_type(**arguments))
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{source} makes no LoraConfig: {error}") from error


def _are_names(targets: Any) -> bool:
    """Whether these are targets that PEFT can read."""
    if isinstance(targets, str):
        return bool(targets.strip())
    if not isinstance(targets, Iterable) or isinstance(targets, Mapping):
        return False
    return all(isinstance(name, str) for name in targets)


def _lora(config: Any) -> LoraConfig:
    """The config, which has to be one of plain LoRA."""
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind != "LORA" or not isinstance(config, LoraConfig):
        raise ValueError(_other_kind(type(config).__name__, kind))
    return config


def _other_kind(source: str, kind: str) -> str:
    return f"{source} is of the kind {kind}, expected LORA: coverage knows adapters of LoRA alone"
