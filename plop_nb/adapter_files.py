"""Whether the tensors of a trained adapter find their places, and whether they were trained."""

import pickle
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
from peft import LoraConfig, PeftModel
from peft.utils import load_peft_weights, set_peft_model_state_dict
from safetensors import SafetensorError

from plop_nb.targets import adapted_layers

# Starts of adapters in which B is zero, so that a B that is still zero tells of no training.
STARTS_AT_ZERO = (True, "gaussian", "eva")


@dataclass
class Trained:
    """What the file of an adapter holds for each place that its config adapts."""

    # Columns `target`, `loaded` (its tensors are there), `b_norm` (Frobenius norm of B).
    table: pd.DataFrame
    problems: list[str] = field(default_factory=list)


def trained(empty: PeftModel, config: LoraConfig, folder: Path) -> Trained:
    """Load an adapter's file into an empty copy, by PEFT's own rules, and look at every B.

    Parameters
    ----------
    empty : peft.PeftModel
        From `targets.injected`.
    config : peft.LoraConfig
        That of the adapter.
    folder : path
        Where `adapter_model.safetensors` (or `.bin`, of which only tensors are read) lies.

    Raises
    ------
    ValueError
        The file is damaged, or its tensors have other shapes than the model's maps.
    """
    file = next(folder.glob("adapter_model.*"))
    try:
        tensors = load_peft_weights(str(folder), device="cpu")
    except (SafetensorError, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{file} cannot be read ({error}): it is damaged or incomplete; save or download the "
            "adapter again"
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = set_peft_model_state_dict(empty, tensors, low_cpu_mem_usage=True)
        except RuntimeError as error:
            shapes = " ".join(str(error).split())
            raise ValueError(
                f"{file} does not fit: it was trained on another model, or with other ranks than "
                f"{folder / 'adapter_config.json'} says ({shapes[:300]})"
            ) from error
    missing = set(result.missing_keys)
    rows = []
    for target, name, letter in _second_matrices(empty):
        loaded = not any(key.startswith(f"{name}.{letter}.") for key in missing)
        # PEFT renames what it converts for this release of transformers: its B is not looked at.
        found = tensors.get(f"{name}.{letter}.weight", tensors.get(f"{name}.{letter}"))
        rows.append({"target": target, "loaded": loaded, "b_norm": _norm(found)})
    told = _told(rows, config, file.name)
    if homeless := list(result.unexpected_keys):
        told.problems.insert(
            0,
            f"{file.name} holds {len(homeless)} tensors that have no place in this model, such as "
            f"{homeless[0]}: they will be dropped in silence",
        )
    return told


def held(model: PeftModel) -> Trained:
    """The same of adapters that a model in memory holds."""
    rows = []
    for target, name, letter in _second_matrices(model):
        matrix = getattr(model.get_submodule(name), letter)[model.active_adapter]
        norm = _norm(getattr(matrix, "weight", matrix).detach())
        rows.append({"target": target, "loaded": True, "b_norm": norm})
    return _told(rows, model.peft_config[model.active_adapter], "this adapter")


def _second_matrices(model: PeftModel) -> Iterator[tuple[str, str, str]]:
    """For each adapter: its target, the name of its layer, and what B is called there."""
    names = {id(module): name for name, module in model.named_modules()}
    for target, layer in adapted_layers(model).items():
        for letter in ("lora_B", "lora_embedding_B"):
            if model.active_adapter in getattr(layer, letter, {}):
                yield target, names[id(layer)], letter


def _norm(matrix: torch.Tensor | None) -> float:
    """Frobenius norm; infinite where something in it is no number, NaN where there is no matrix."""
    if matrix is None or matrix.is_meta:
        return float("nan")
    return matrix.float().norm().nan_to_num(nan=float("inf")).item()


def _told(rows: list[dict], config: LoraConfig, source: str) -> Trained:
    """The table, and what it says."""
    table = pd.DataFrame(rows, columns=["target", "loaded", "b_norm"])
    problems = []
    if missing := table.loc[~table["loaded"].astype(bool), "target"].tolist():
        problems.append(
            f"{source} holds nothing for {len(missing)} of {len(table)} places, such as "
            f"{missing[0]}: their adapters stay as they start, and change nothing"
        )
    problems += _untrained(table[table["loaded"].astype(bool)], config, source)
    return Trained(table, problems)


def _untrained(loaded: pd.DataFrame, config: LoraConfig, source: str) -> list[str]:
    """What a B of zeros, or of numbers that are none, says."""
    problems = []
    if broken := loaded.loc[loaded["b_norm"] == float("inf"), "target"].tolist():
        problems.append(
            f"{source} holds infinities or NaN at {len(broken)} places, such as {broken[0]}"
        )
    if config.init_lora_weights not in STARTS_AT_ZERO:
        return problems  # B was something else from the start
    zero = loaded.loc[loaded["b_norm"] == 0, "target"].tolist()
    if zero and len(zero) == len(loaded):
        problems.append(f"{source} was not trained: every B is still zero")
    elif zero:
        problems.append(
            f"{source} was trained in part: B is still zero at {len(zero)} of {len(loaded)} "
            f"places, such as {zero[0]}, which got no gradient"
        )
    return problems
