"""What a run is known by: a hash of all that determines its result."""

import hashlib
import inspect
import json
from collections.abc import Mapping
from typing import Any

from peft import LoraConfig
from torch import nn

from plop_nb.experiments.adapting import rank_and_scale
from plop_nb.experiments.evaluation import encoded, has_completions
from plop_nb.experiments.grids.cells import digest
from plop_nb.experiments.grids.hashing import deep_digest
from plop_nb.experiments.tasks.task import SPLITS, Task
from plop_nb.experiments.trainers import dtype_name
from plop_nb.experiments.training import finetune, plain_numbers
from plop_nb.fingerprint import fingerprint
from plop_nb.origin import model_name
from plop_nb.placement import Placement

# Arguments of finetune that do not change a result, or are in its key by their content.
NOT_SETTINGS = (
    "model",
    "tokenizer",
    "task",
    "placement",
    "callbacks",
    "out",
    "progress",
    "unrelated",
)
# Those that only add columns: at their default they are left out, as in storages from before
ADDED = {"per_example": False}
# Of a LoraConfig: what PEFT notes about where it has been used
NOTES = ("inference_mode", "base_model_name_or_path", "revision", "auto_mapping", "peft_version")


def run_key(
    model: nn.Module,
    digest_of_task: str,
    placement: Placement | LoraConfig,
    settings: Mapping[str, Any],
    weights: str | None = None,
) -> str:
    """A hash of what determines a run's result.

    Parameters
    ----------
    model : torch.nn.Module
    digest_of_task : str
        From `task_digest`; that of `unrelated`, where it is given, joined to it.
    placement : Placement or LoraConfig
    settings : dict
        Arguments of `finetune`; its defaults stand for the others.
    weights : str, optional
        Of the model, where it is known already.

    Raises
    ------
    TypeError, ValueError
        `finetune` has no such argument, or refuses its value.
    """
    arguments = inspect.signature(finetune).parameters
    for name in settings:
        if name not in arguments:
            raise TypeError(f"{name!r} is not an argument of finetune")
    content = {}
    for name, argument in arguments.items():
        if name not in NOT_SETTINGS:
            content[name] = settings.get(name, argument.default)
    for name, default in ADDED.items():
        if content[name] == default:
            del content[name]
    r, lora_alpha = rank_and_scale(placement, content["r"], content["lora_alpha"])
    content = plain_numbers({**content, "r": r, "lora_alpha": lora_alpha})
    if content["lora_alpha"] is None:
        content["lora_alpha"] = 2 * content["r"]
    content |= {
        "model": model_name(model),
        "weights": weights or fingerprint(model),
        "dtype": dtype_name(model),
        "task": digest_of_task,
    }
    if isinstance(placement, LoraConfig):
        content["config"] = config_content(placement)
    else:
        content["modules"] = sorted(placement.modules)
    return digest(dict(sorted(content.items())))


def config_content(config: LoraConfig) -> dict[str, Any]:
    """What a `LoraConfig` says, where it is not PEFT's default; sets as sorted lists."""
    defaults = LoraConfig().to_dict()
    content = {}
    for name, value in config.to_dict().items():
        if name not in NOTES and value != defaults.get(name):
            content[name] = sorted(value) if isinstance(value, set) else value
    return content


def task_digest(task: Task, tokenizer: Any) -> str:
    """A hash of a task's examples, of their tokens, and of its check.

    Raises
    ------
    ValueError
        `task.check` reaches values that are nested too deeply.
    """
    content = {}
    for split in SPLITS:
        examples = task.split(split)
        if examples:
            tokens = encoded(task, split, tokenizer) if has_completions(task, split) else None
            content[split] = (examples, tokens)
    try:
        check = True if task.check is None else deep_digest(task.check)
    except RecursionError:
        raise ValueError(
            f"task.check={task.check!r:.80} of {task.name!r} reaches values that are nested too "
            "deeply to be told from others: flatten its variables and defaults"
        ) from None
    about = [task.name, task.new_tokens, check, content]
    return hashlib.sha256(json.dumps(about, default=deep_digest).encode()).hexdigest()
