"""Reinforcement learning with a placement: GRPO on answers that reasoning-gym checks.

This is the paper's third experiment. It needs TRL and reasoning-gym
(`pip install 'plop_nb[tasks,finetune]'`), but only once something is trained.

The tasks are `load_task("digit_sums")` and `load_task("metamath_tagged")`, or one's own `Task`
whose examples have `prompt` and the columns that the rewards take.
"""

import copy
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from peft import PeftModel
from torch import nn

from plop_nb.experiments.evaluation import check_task, share_right
from plop_nb.experiments.generation import complete
from plop_nb.experiments.isolation import seeded, shared_copy
from plop_nb.experiments.rewards import (
    REWARDS,
    Reward,
    answer_reward,
    approximate_format_reward,
    format_reward,
    reward_columns,
    text,
)
from plop_nb.experiments.tasks.answers import CLOSE, OPEN, checker
from plop_nb.experiments.tasks.task import Example, Task
from plop_nb.experiments.training import import_trl, own_forward, run_trainer, trainer_settings
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
    ValueError
        `steps` or the learning rate is out of range, or there are no problems.
    """
    trl = import_trl("training")
    from datasets import Dataset

    _check_training(task, steps, lr)
    rows = _answered(task.train, steps * batch_size, right, random.Random(seed))
    # in bfloat16 most of such small steps round to nothing
    warm = copy.deepcopy(model).requires_grad_(True).float()
    options = _constant_rate(steps) | {"per_device_train_batch_size": batch_size}
    settings = trainer_settings(trl.SFTConfig, model, lr=lr, steps=steps, seed=seed, **options)
    with seeded(seed), own_forward(warm):
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
    ValueError
        `steps` or the learning rate is out of range, there are fewer problems than
        `prompts_per_step`, a reward function is named like another column, or `model` lacks a
        module of the placement.
    """
    trl = import_trl("training")
    from datasets import Dataset

    _check_training(task, steps, lr, prompts_per_step)
    reward_columns(rewards)
    _check_options(options)
    alpha = 2 * r if lora_alpha is None else lora_alpha
    config = placement.lora_config(model, r, lora_alpha=alpha, lora_dropout=lora_dropout)
    sampled = prompts_per_step * num_generations
    defaults = _constant_rate(steps) | {
        "num_generations": num_generations,
        "max_completion_length": max_completion_length or task.new_tokens,
        "beta": beta,
        "per_device_train_batch_size": sampled,
        "generation_batch_size": sampled,
    }
    settings = trainer_settings(
        trl.GRPOConfig, model, lr=lr, steps=steps, seed=seed, **(defaults | options)
    )
    base = shared_copy(model)
    # seeded not only by TRL, whose older versions make the adapters first
    with seeded(seed), own_forward(base):
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
    frame = _per_step(trainer.state.log_history, rewards).assign(
        placement=name or "+".join(placement.types),
        types="+".join(sorted(placement.types)),
        r=r,
        parameters=parameters,
        lr=lr,
        seed=seed,
    )
    return frame, trained.eval()


def _constant_rate(steps: int) -> dict[str, Any]:
    """A constant rate after a tenth of the steps; the first step of a warm-up has rate 0."""
    return {
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": min(steps - 1, max(1, steps // 10)),
        "logging_steps": 1,
    }


def _check_training(task: Task, steps: int, lr: float, prompts: int = 1) -> None:
    check_task(task)
    if steps < 1 or lr <= 0:
        raise ValueError(
            f"steps={steps!r}, lr={lr!r}: expected at least one step and a positive learning rate"
        )
    if len(task.train) < prompts:
        raise ValueError(
            f"the training split of task {task.name!r} has {len(task.train)}, expected at least "
            f"the {prompts} of one step: give more, or take fewer a step"
        )


def _check_options(options: Mapping[str, Any]) -> None:
    for name in OWN_OPTIONS:
        if name in options:
            raise ValueError(
                f"{name} cannot be an option: lr and steps set it, for a frame of one row per step"
            )


def _per_step(history: list[dict], rewards: Sequence[Reward]) -> pd.DataFrame:
    """The trainer's log, one row a step, in the columns of `train`."""
    logged = pd.DataFrame([entry for entry in history if "reward" in entry])
    names = {"step": "step", "reward": "reward"}
    for reward, column in zip(rewards, reward_columns(rewards), strict=True):
        names[f"rewards/{reward.__name__}/mean"] = column
    names |= {
        "reward_std": "reward_std",
        "kl": "kl",
        "completions/mean_length": "completion_length",
        "step_time": "seconds",
    }
    present = [name for name in names if name in logged]
    return logged[present].rename(columns=names)


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
    check_task(task)
    problems = task.split(split)[:n]
    names = reward_columns(rewards)
    if not problems:
        raise ValueError(
            f"no problems to answer (n={n}, split={split!r} of task {task.name!r}): give at least "
            f"one"
        )
    prompts = [problem["prompt"] for problem in problems]
    tokens = max_completion_length or task.new_tokens
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
    return share_right(model, task, tokenizer, split, new_tokens=max_completion_length)
