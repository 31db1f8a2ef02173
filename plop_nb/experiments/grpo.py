"""Reinforcement learning with a placement: GRPO on answers that reasoning-gym checks.

This is the paper's third experiment. It needs TRL and reasoning-gym
(`pip install trl reasoning-gym`), but only once something is trained.

The tasks are `load_task("digit_sums")` and `load_task("metamath_tagged")`, or one's own `Task`
whose examples have `prompt` and the columns that the rewards take.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from peft import PeftModel
from torch import nn

from plop_nb.checks import number_between, positive_integer
from plop_nb.experiments.evaluation import check_task, share_right
from plop_nb.experiments.generation import complete
from plop_nb.experiments.isolation import isolated, own_forward, shared_copy
from plop_nb.experiments.rewards import (
    REWARDS,
    Reward,
    answer_reward,
    approximate_format_reward,
    format_reward,
    reward_columns,
    reward_frame,
    text,
)
from plop_nb.experiments.tasks.answers import checker
from plop_nb.experiments.tasks.task import Task
from plop_nb.experiments.trainers import adapters, import_trl, run_trainer, trainer_settings
from plop_nb.experiments.training import plain_numbers
from plop_nb.experiments.warm_up import check_training, constant_rate, warm_up
from plop_nb.placement import Placement

__all__ = [
    "REWARDS",
    "accuracy",
    "answer_reward",
    "approximate_format_reward",
    "checker",
    "format_reward",
    "samples",
    "text",
    "train",
    "warm_up",
]

# What `train` sets itself, for a frame of one row per step
OWN_OPTIONS = ("learning_rate", "max_steps", "logging_steps", "logging_strategy")


def train(
    model: nn.Module,
    task: Task,
    tokenizer: Any,
    placement: Placement,
    *,
    name: str | None = None,
    r: int = 16,
    lora_alpha: int | None = None,
    lora_dropout: float = 0.05,
    lr: float = 3e-4,
    steps: int = 50,
    prompts_per_step: int = 4,
    num_generations: int = 8,
    max_completion_length: int | None = None,
    beta: float = 0.01,
    rewards: Sequence[Reward] = REWARDS,
    seed: int = 0,
    **options: Any,
) -> tuple[pd.DataFrame, PeftModel]:
    """Train adapters with GRPO (TRL's GRPOTrainer), on placed modules.

    Parameters
    ----------
    model : torch.nn.Module
        As `load_model` returns it. Not changed: what is trained shares the weights, nothing else.
    task : Task
        Its training examples have `prompt` (str or messages), and the columns that the rewards
        take.
    tokenizer : transformers tokenizer
    placement : Placement
        From `place`, or `Placement.of_types`.
    name : str, optional
        What to call the placement in the frame; its types by default.
    r, lora_alpha, lora_dropout : int, int, float
        Of the adapters; `lora_alpha` is 2 r by default, as in the paper (r = 16, alpha = 32,
        dropout = 0.05). On stacked experts PEFT refuses a dropout other than 0 (ValueError).
    lr : float
        Learning rate, constant after a tenth of the steps. The paper's 5e-6 is for larger models
        and long runs.
    steps, prompts_per_step, num_generations : int
        Optimiser steps, different prompts in each, completions for each prompt.
    max_completion_length : int, optional
        Tokens at most; `task.new_tokens` by default.
    beta : float
        Weight of the KL divergence from `model`; 0 leaves it out, and out of the frame.
    rewards : sequence of callable
        Reward functions in TRL's form.
    seed : int
        Of adapters, prompts and sampling. Same seed, same result on a CPU.
    **options
        Any other argument of `trl.GRPOConfig`, but none that `lr`, `steps` or a row per step stand
        for.

    Returns
    -------
    frame : pandas.DataFrame
        One row per step, measured before its update: `step` (from 1), `reward` (mean over
        completions of the sum), the mean of each reward function by its name (`format`,
        `approximate_format`, `answer`), `reward_std`, `kl` (nats per token), `completion_length`
        (tokens), `seconds`; and of the run `placement`, `types`, `r`, `parameters`, `lr`, `seed`.
    trained : peft.PeftModel
        `model` with the trained adapters.

    Raises
    ------
    ImportError
        TRL is not installed.
    TypeError, ValueError
        Bad input, such as fewer problems than `prompts_per_step`, a reward function named like
        another column, or a placement for another model: names the argument, its value and what
        would do.
    """
    trl = import_trl("training")
    from datasets import Dataset

    numbers = {"steps": steps, "lr": lr, "seed": seed, "r": r, "lora_alpha": lora_alpha}
    steps, lr, seed, r, lora_alpha = plain_numbers(numbers).values()
    dropout = number_between("lora_dropout", lora_dropout, 0, 1)
    prompts = positive_integer("prompts_per_step", prompts_per_step)
    check_training(model, task, tokenizer, prompts)
    reward_columns(rewards)
    _check_options(options)
    scale = {"r": r, "lora_alpha": lora_alpha or 2 * r, "lora_dropout": dropout}
    config = adapters(model, placement, **scale)
    generations = positive_integer("num_generations", num_generations)
    sampled = prompts * generations
    given = constant_rate(steps) | {
        "num_generations": generations,
        "max_completion_length": _length(max_completion_length, task),
        "beta": number_between("beta", beta, 0, math.inf),
        "per_device_train_batch_size": sampled,
        "generation_batch_size": sampled,
    }
    # seeded not only by TRL, whose older versions make the adapters first
    with isolated(seed) as folder:
        given |= {"output_dir": folder} | options
        settings = trainer_settings(trl.GRPOConfig, model, lr=lr, steps=steps, seed=seed, **given)
        base = shared_copy(model)
        with own_forward(base):
            trainer = trl.GRPOTrainer(
                base,
                list(rewards),
                settings,
                train_dataset=Dataset.from_list(task.train),
                processing_class=copy.deepcopy(tokenizer),
                peft_config=config,
            )
            trained = trainer.model
            parameters = sum(p.numel() for p in trained.parameters() if p.requires_grad)
            run_trainer(trainer)
    frame = reward_frame(trainer.state.log_history, rewards).assign(
        placement=name or "+".join(placement.types),
        types="+".join(sorted(placement.types)),
        r=r,
        parameters=parameters,
        lr=lr,
        seed=seed,
    )
    return frame, trained.eval()


def _length(given: int | None, task: Task) -> int:
    """How many tokens a completion may have: as given, or as the task says."""
    if given is not None:
        return positive_integer("max_completion_length", given)
    return positive_integer("task.new_tokens", task.new_tokens)


def _check_options(options: Mapping[str, Any]) -> None:
    for name in OWN_OPTIONS:
        if name in options:
            raise ValueError(
                f"{name} cannot be an option: lr and steps set it, for a frame of one row per step"
            )
    if options.get("save_strategy", "no") != "no" and "output_dir" not in options:
        raise ValueError(
            f"save_strategy={options['save_strategy']!r} needs output_dir, a folder for the "
            f"checkpoints: the trainer's own is removed afterwards"
        )


def samples(
    model: nn.Module,
    task: Task,
    tokenizer: Any,
    *,
    split: str = "test",
    rewards: Sequence[Reward] = REWARDS,
    n: int = 8,
    max_completion_length: int | None = None,
    greedy: bool = False,
    seed: int = 0,
) -> pd.DataFrame:
    """Completions of the first `n` problems of a split, one each, and what they earn.

    Parameters
    ----------
    model : torch.nn.Module
        With adapters or without. It is not changed.
    task : Task
    tokenizer : transformers tokenizer
    split : {"test", "validation", "train"}
    rewards : sequence of callable
        Reward functions in TRL's form.
    n : int
        How many problems.
    max_completion_length : int, optional
        Tokens at most; `task.new_tokens` by default.
    greedy : bool
        Take the likeliest token, instead of sampling at temperature 1.
    seed : int
        Of the sampling.

    Returns
    -------
    pandas.DataFrame
        Columns `prompt`, `completion`, `expected` (the right answer), each reward by its function's
        name (`format`, `approximate_format`, `answer`), and their sum `reward`.

    Raises
    ------
    ValueError
        The split is empty, or a reward function is named like another column.
    """
    check_task(task, split)
    problems = task.split(split)[: positive_integer("n", n)]
    names = reward_columns(rewards)
    prompts = [problem["prompt"] for problem in problems]
    tokens = _length(max_completion_length, task)
    found = complete(model, prompts, tokenizer, new_tokens=tokens, greedy=greedy, seed=seed)
    columns = {}
    for key in problems[0]:
        if key != "prompt":
            columns[key] = [problem[key] for problem in problems]
    frame = pd.DataFrame(
        {"prompt": prompts, "completion": found, "expected": columns.get("answer")}
    )
    for column, reward in zip(names, rewards, strict=True):
        frame[column] = reward(prompts, found, **columns)
    return frame.assign(reward=frame[names].astype(float).sum(axis=1, skipna=False))


def accuracy(
    model: nn.Module,
    task: Task,
    tokenizer: Any,
    split: str = "test",
    *,
    max_completion_length: int | None = None,
) -> float:
    """Share of a split's problems that greedy completions answer right: that of `evaluate`.

    Parameters
    ----------
    model, task, tokenizer, split
        As in `samples`; the task's `check` decides.
    max_completion_length : int, optional
        Tokens at most; `task.new_tokens` by default.

    Returns
    -------
    float
        0 to 1.

    Raises
    ------
    ValueError
        The split is empty, or the task has no check.
    """
    check_task(task)
    tokens = _length(max_completion_length, task)
    return share_right(model, task, tokenizer, split, new_tokens=tokens)
