"""Experiments with placements: finetuning, grids of runs, GRPO, and small networks that grow.

The names load when they are first used, so that importing this costs nothing.
"""

# ruff: noqa: F401  (`__all__` is made of `HOMES`)

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plop_nb.experiments import grpo
    from plop_nb.experiments.benchmarking import load_benchmark, recorded_choices, runs_of_triples
    from plop_nb.experiments.compare import differences, tuned, versus
    from plop_nb.experiments.crossfitting import chosen_rates, crossfit
    from plop_nb.experiments.evaluation import evaluate
    from plop_nb.experiments.first_steps import first_step, first_step_gain
    from plop_nb.experiments.gradients import completion_gradients
    from plop_nb.experiments.grids import curves, grid, read_runs
    from plop_nb.experiments.norms_callback import NormsCallback
    from plop_nb.experiments.pooling import judge_choices, pooled_losses
    from plop_nb.experiments.power_law import power_fit
    from plop_nb.experiments.races import race
    from plop_nb.experiments.small_networks import growth
    from plop_nb.experiments.tasks import Task, digit_sums, load_task
    from plop_nb.experiments.training import finetune, rank_for
    from plop_nb.stats import mean_interval

HOMES = {
    "NormsCallback": "plop_nb.experiments.norms_callback",
    "Task": "plop_nb.experiments.tasks",
    "chosen_rates": "plop_nb.experiments.crossfitting",
    "completion_gradients": "plop_nb.experiments.gradients",
    "crossfit": "plop_nb.experiments.crossfitting",
    "curves": "plop_nb.experiments.grids",
    "differences": "plop_nb.experiments.compare",
    "digit_sums": "plop_nb.experiments.tasks",
    "evaluate": "plop_nb.experiments.evaluation",
    "finetune": "plop_nb.experiments.training",
    "first_step": "plop_nb.experiments.first_steps",
    "first_step_gain": "plop_nb.experiments.first_steps",
    "grid": "plop_nb.experiments.grids",
    "growth": "plop_nb.experiments.small_networks",
    "judge_choices": "plop_nb.experiments.pooling",
    "load_benchmark": "plop_nb.experiments.benchmarking",
    "load_task": "plop_nb.experiments.tasks",
    "mean_interval": "plop_nb.stats",
    "pooled_losses": "plop_nb.experiments.pooling",
    "power_fit": "plop_nb.experiments.power_law",
    "race": "plop_nb.experiments.races",
    "rank_for": "plop_nb.experiments.training",
    "read_runs": "plop_nb.experiments.grids",
    "recorded_choices": "plop_nb.experiments.benchmarking",
    "runs_of_triples": "plop_nb.experiments.benchmarking",
    "tuned": "plop_nb.experiments.compare",
    "versus": "plop_nb.experiments.compare",
}

__all__ = sorted([*HOMES, "grpo"])


def __getattr__(name: str) -> Any:
    if name == "grpo":
        return import_module("plop_nb.experiments.grpo")
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
