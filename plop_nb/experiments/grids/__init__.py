"""Grids of finetuning runs: every task with every placement, learning rate and seed."""

import hashlib
import inspect
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from plop_nb.experiments.evaluation import encoded, has_completions
from plop_nb.experiments.grids.cells import Cell, Row, digest, finished_rows, run_cells
from plop_nb.experiments.tasks.task import SPLITS, Task
from plop_nb.experiments.training import check_run, dtype_name, finetune, model_name
from plop_nb.placement import Placement

# Arguments of finetune that do not change a result, or are in its key by their content.
NOT_SETTINGS = ("model", "tokenizer", "task", "placement", "callbacks", "out", "progress")
OF_SINGLE_RUNS = ("callbacks", "out", "r", "lr", "seed")
FIRST_COLUMNS = ("task", "placement")


@dataclass(frozen=True)
class Run:
    """What a cell of a grid needs to be run."""

    task: Task
    placement: Placement
    settings: dict[str, Any]


def grid(
    model: nn.Module,
    tasks: Iterable[Task],
    tokenizer: Any,
    placements: Mapping[str, Placement],
    *,
    seeds: Iterable[int],
    lrs: Any,
    ranks: Mapping[str, int] | None = None,
    storage: str | Path | None = None,
    study: str = "finetuning",
    progress: bool = True,
    **options: Any,
) -> pd.DataFrame:
    """Finetune every task with every placement, learning rate and seed; one row a run.

    Each run is a trial of an Optuna study, which `optuna-dashboard` shows: its parameters are
    `task`, `placement`, `lr`, `seed` and `r`, its value is the loss, and what else `finetune`
    returns is in its user attributes.

    Parameters
    ----------
    model, tokenizer
        As in `finetune`.
    tasks : iterable of Task
    placements : dict
        {name: Placement}.
    seeds : iterable of int
    lrs : float, iterable of float, dict or pandas.DataFrame
        Learning rates for all, or {placement name: one or several}, or what `tuned` returns.
    ranks : dict, optional
        {placement name: rank}, such as from `rank_for`; by default the `r` of `finetune`.
    storage : str or Path, optional
        Where finished runs are kept, which are not run again: a file (Optuna's journal; its folder
        is made), or the URL of a database such as "sqlite:///runs.db"; by default in memory.
        Several processes with one storage share the runs. Those of a process that was killed are
        run again by the next call: on the same host at once, on another one five minutes later.
    study : str
        How the study is called; the names of tasks and placements come after it.
    progress : bool
        Show a progress bar over the runs.
    **options
        Other arguments of `finetune`, the same for all runs.

    Returns
    -------
    pandas.DataFrame
        The runs of this grid that are finished, also by other processes: what `finetune` returns,
        `placement` (name), and `key` (of all that determines the result). A UserWarning tells of
        runs that are left out, as other processes train them.

    Raises
    ------
    TypeError, ValueError
        Bad input: names the argument, its value and what would do.
    ImportError
        Optuna or TRL is not installed.
    """
    for name in OF_SINGLE_RUNS:
        if name in options:
            raise ValueError(
                f"{name} cannot be an option of a whole grid: see ranks, lrs and seeds, or finetune"
            )
    tasks = list(tasks)
    for task in tasks:
        check_run(model, task, tokenizer, options.get("final", "test"))
    digests = {id(task): task_digest(task, tokenizer) for task in tasks}
    fingerprint = weights_fingerprint(model)
    rates = _rates_by_name(lrs)
    cells = []
    for task, name, seed in itertools.product(tasks, placements, list(seeds)):
        rank = {} if ranks is None else {"r": _entry(ranks, task, name, "ranks")}
        for lr in rates if isinstance(rates, list) else _entry(rates, task, name, "lrs"):
            settings = {**options, **rank, "lr": lr, "seed": seed}
            key = run_key(model, digests[id(task)], placements[name], settings, fingerprint)
            run = Run(task, placements[name], settings)
            cells.append(Cell(key, _labels(task, name, settings), run))

    def train(run: Run) -> Row:
        return finetune(model, run.task, tokenizer, run.placement, **run.settings)

    return _frame(run_cells(cells, train, storage=storage, study=study, progress=progress))


def read_runs(storage: str | Path) -> pd.DataFrame:
    """The finished runs in a storage of `grid`, as it returns them.

    Parameters
    ----------
    storage : str or Path
        As in `grid`.

    Raises
    ------
    ValueError
        There is no such file, or it is of another kind.
    ImportError
        Optuna is not installed.
    """
    return _frame(finished_rows(storage))


def curves(runs: pd.DataFrame) -> pd.DataFrame:
    """The training curves of runs: one row per run and logged step.

    Parameters
    ----------
    runs : pandas.DataFrame
        From `grid` or `read_runs`.

    Returns
    -------
    pandas.DataFrame
        The columns of `runs` but `curve`, with `step` and `train_loss` (nats per token, a mean
        since the step before).
    """
    rows = runs.explode("curve", ignore_index=True)
    rows = rows.dropna(subset="curve").reset_index(drop=True)
    points = pd.DataFrame(rows["curve"].tolist(), columns=["step", "train_loss"])
    return pd.concat([rows.drop(columns="curve"), points], axis=1)


def run_key(
    model: nn.Module,
    digest_of_task: str,
    placement: Placement,
    settings: Mapping[str, Any],
    fingerprint: str | None = None,
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
    fingerprint : str, optional
        From `weights_fingerprint`, where it is known already.

    Raises
    ------
    TypeError
        `finetune` has no such argument.
    """
    arguments = inspect.signature(finetune).parameters
    for name in settings:
        if name not in arguments:
            raise TypeError(f"{name!r} is not an argument of finetune")
    content = {}
    for name, argument in arguments.items():
        if name not in NOT_SETTINGS:
            content[name] = settings.get(name, argument.default)
    content["lora_alpha"] = content["lora_alpha"] or 2 * content["r"]
    content |= {
        "model": model_name(model),
        "weights": fingerprint or weights_fingerprint(model),
        "dtype": dtype_name(model),
        "task": digest_of_task,
        "modules": sorted(placement.modules),
    }
    return digest(dict(sorted(content.items())))


def weights_fingerprint(model: nn.Module) -> str:
    """A hash of the first numbers of every parameter: tells checkpoints of one name apart."""
    first = []
    for parameter in model.parameters():
        if not parameter.is_meta:
            first.append(parameter.detach().flatten()[:8].float().to(model.device))
    return hashlib.sha256(torch.cat(first).cpu().numpy().tobytes()).hexdigest()


def task_digest(task: Task, tokenizer: Any) -> str:
    """A hash of a task's examples and of their tokens, but not of the code of its check."""
    content = {}
    for split in SPLITS:
        examples = task.split(split)
        if examples:
            tokens = encoded(task, split, tokenizer) if has_completions(task, split) else None
            content[split] = (examples, tokens)
    about = [task.name, task.new_tokens, task.check is None, content]
    return hashlib.sha256(json.dumps(about, default=repr).encode()).hexdigest()


def _labels(task: Task, name: str, settings: Mapping[str, Any]) -> dict[str, str | int | float]:
    r = settings.get("r", inspect.signature(finetune).parameters["r"].default)
    lr, seed = float(settings["lr"]), int(settings["seed"])
    return {"task": task.name, "placement": name, "lr": lr, "seed": seed, "r": int(r)}


def _rates_by_name(lrs: Any) -> list[float] | dict[Any, list[float]]:
    """Learning rates for all as a list, or those of each placement."""
    if isinstance(lrs, pd.DataFrame):
        lrs = lrs.set_index(["task", "placement"])["lr"].to_dict()
    if isinstance(lrs, Mapping):
        return {name: _as_list(own) for name, own in lrs.items()}
    return _as_list(lrs)


def _as_list(lrs: Any) -> list[float]:
    return [lrs] if np.isscalar(lrs) else list(lrs)


def _entry(table: Mapping[Any, Any], task: Task, name: str, argument: str) -> Any:
    """What a table says of a task and a placement."""
    found = table.get((task.name, name), table.get(name))
    if found is None:
        raise ValueError(
            f"{argument} has nothing for placement {name!r} on task {task.name!r}: add it"
        )
    return found


def _frame(rows: Sequence[Row]) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    first = [column for column in FIRST_COLUMNS if column in frame]
    others = [column for column in frame if column not in first]
    types = {"accuracy": float} if "accuracy" in frame else {}
    return frame[first + others].astype(types)
