"""A model that has seen the format of answers, from which GRPO can learn."""

import copy
import random
from collections.abc import Sequence
from typing import Any

from torch import nn

from plop_nb.checks import number_between
from plop_nb.experiments.evaluation import check_task
from plop_nb.experiments.generation import prompt_ids
from plop_nb.experiments.isolation import check_trainable, isolated, own_forward
from plop_nb.experiments.tasks.answers import CLOSE, OPEN
from plop_nb.experiments.tasks.task import Example, Task
from plop_nb.experiments.trainers import import_trl, run_trainer, trainer_settings
from plop_nb.experiments.training import plain_numbers


def warm_up(
    model: nn.Module,
    task: Task,
    tokenizer: Any,
    *,
    steps: int = 30,
    lr: float = 2e-5,
    batch_size: int = 16,
    right: float = 0.5,
    seed: int = 0,
) -> nn.Module:
    """A copy of `model` that has seen the format: finetuned on answers, partly wrong ones.

    Without it the base model never earns a reward, and GRPO has nothing to learn from.

    Parameters
    ----------
    model : torch.nn.Module
        As `load_model` returns it; not changed.
    task : Task
        Its training examples have `prompt` and `answer`.
    tokenizer : transformers tokenizer
    steps, lr, batch_size : int, float, int
        Optimiser steps, learning rate, problems a step.
    right : float
        Share of right answers, 0 to 1; the other examples have the answer of another problem.
    seed : int
        Same seed, same result.

    Returns
    -------
    transformers.PreTrainedModel
        In the precision of `model`; it trains in float32.

    Raises
    ------
    ImportError
        TRL is not installed.
    TypeError, ValueError
        Bad input: names the argument, its value and what would do.
    """
    trl = import_trl("training")
    from datasets import Dataset

    given = plain_numbers({"steps": steps, "lr": lr, "batch_size": batch_size, "seed": seed})
    steps, lr, batch_size, seed = given.values()
    right = number_between("right", right, 0, 1)
    check_training(model, task, tokenizer, generates=False)
    if not all("answer" in example for example in task.train):
        raise ValueError(
            f"task {task.name!r} has examples without 'answer' in its split 'train', which a "
            f"warm-up writes between tags: add it"
        )
    rows = _answered(task.train, steps * batch_size, right, random.Random(seed))
    options = constant_rate(steps) | {"per_device_train_batch_size": batch_size}
    with isolated(seed) as folder:
        # in bfloat16 most of such small steps round to nothing
        warm = copy.deepcopy(model).requires_grad_(True).float()
        settings = trainer_settings(
            trl.SFTConfig, model, lr=lr, steps=steps, seed=seed, output_dir=folder, **options
        )
        with own_forward(warm):
            trainer = trl.SFTTrainer(
                warm,
                settings,
                train_dataset=Dataset.from_list(rows),
                processing_class=copy.deepcopy(tokenizer),
            )
            run_trainer(trainer)
    _take_dtypes(warm, model)
    return warm.eval().requires_grad_(False)


def _answered(
    problems: Sequence[Example], count: int, right: float, draw: random.Random
) -> list[Example]:
    """Problems with an answer each, that of another problem where it is to be wrong."""
    chosen = [draw.choice(problems) for _ in range(count)]
    rows = []
    for problem in chosen:
        source = problem if draw.random() < right else draw.choice(problems)
        completion = _in_the_form_of(problem["prompt"], f"{OPEN}{source['answer']}{CLOSE}")
        rows.append({"prompt": problem["prompt"], "completion": completion})
    return rows


def _in_the_form_of(prompt: Any, completion: str) -> Any:
    if isinstance(prompt, str):
        return completion
    return [{"role": "assistant", "content": completion}]


def _take_dtypes(changed: nn.Module, original: nn.Module) -> None:
    """Give every parameter and buffer of a copy the precision of the original's."""
    for tensors in (nn.Module.parameters, nn.Module.buffers):
        for new, old in zip(tensors(changed), tensors(original), strict=True):
            new.data = new.data.to(old.dtype)


def constant_rate(steps: int) -> dict[str, Any]:
    """A constant rate after a tenth of the steps; the first step of a warm-up has rate 0."""
    return {
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": min(steps - 1, max(1, steps // 10)),
        "logging_steps": 1,
    }


def check_training(
    model: nn.Module, task: Task, tokenizer: Any, prompts: int = 1, *, generates: bool = True
) -> None:
    """Refuse a model or examples that the training would fail on."""
    check_trainable(model, generates=generates)
    check_task(task, "train")
    if len(task.train) < prompts:
        raise ValueError(
            f"the training split of task {task.name!r} has {len(task.train)}, expected at least "
            f"the {prompts} of one step: give more, or take fewer a step"
        )
    for example in task.train:
        prompt_ids(tokenizer, example["prompt"])  # refuses those without tokens
