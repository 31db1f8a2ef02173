"""What a run is known by: a hash of all that determines its result."""

import hashlib
import inspect
import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from plop_nb.experiments.evaluation import encoded, has_completions
from plop_nb.experiments.grids.cells import digest
from plop_nb.experiments.grids.hashing import deep_digest
from plop_nb.experiments.tasks.task import SPLITS, Task
from plop_nb.experiments.trainers import dtype_name, model_name
from plop_nb.experiments.training import finetune, plain_numbers
from plop_nb.fingerprint import fingerprint
from plop_nb.placement import Placement

# Arguments of finetune that do not change a result, or are in its key by their content.
NOT_SETTINGS = ("model", "tokenizer", "task", "placement", "callbacks", "out", "progress")


def run_key(
    model: nn.Module,
    digest_of_task: str,
    placement: Placement,
    settings: Mapping[str, Any],
    weights: str | None = None,
) -> str:
    """A hash of what determines a run's result.

    Parameters
    ----------
    model : torch.nn.Module
    digest_of_task : str
        From `task_digest`.
    placement : Placement
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
    content = plain_numbers(content)
    if content["lora_alpha"] is None:
        content["lora_alpha"] = 2 * content["r"]
    content |= {
        "model": model_name(model),
        "weights": weights or fingerprint(model),
        "dtype": dtype_name(model),
        "task": digest_of_task,
        "modules": sorted(placement.modules),
    }
    return digest(dict(sorted(content.items())))


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
