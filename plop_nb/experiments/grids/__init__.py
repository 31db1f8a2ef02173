"""Grids of finetuning runs: every task with every placement, learning rate and seed."""

import functools
import inspect
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from peft import LoraConfig
from torch import nn

from plop_nb.experiments.adapting import adapter_config, rank_and_scale
from plop_nb.experiments.grids.cells import Cell, Row, finished_rows
from plop_nb.experiments.grids.keys import run_key, task_digest
from plop_nb.experiments.grids.together import run_together
from plop_nb.experiments.tasks.task import Task
from plop_nb.experiments.training import (
    check_run,
    check_tokens,
    check_unrelated,
    finetune,
    plain_numbers,
)
from plop_nb.fingerprint import fingerprint
from plop_nb.placement import Placement

OF_SINGLE_RUNS = ("callbacks", "out", "r", "lr", "seed")
FIRST_COLUMNS = ("task", "placement")


@dataclass(frozen=True)
class Run:
    """What a cell of a grid needs to be run."""

    task: Task
    name: str  # of the placement
    placement: Placement | LoraConfig
    r: int
    settings: dict[str, Any]  # arguments of `finetune`


def grid(
    model: nn.Module,
    tasks: Iterable[Task],
    tokenizer: Any,
    placements: Mapping[str, Placement | LoraConfig],
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

    Under `accelerate launch` all processes train each run together, as `finetune` does, and return
    the same. Only the first one reads and writes the storage, so one in memory will do.

    Parameters
    ----------
    model, tokenizer
        As in `finetune`.
    tasks : iterable of Task
    placements : dict
        {name: Placement, or peft.LoraConfig}.
    seeds : iterable of int
    lrs : float, iterable of float, dict or pandas.DataFrame
        Learning rates for all, or {placement name: one or several}, or what `tuned` returns.
    ranks : dict, optional
        {placement name: rank}, such as from `rank_for`; by default 16. A `LoraConfig` has its own.
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
    _check_options(options)
    tasks, seeds = _each_once("tasks", tasks), _each_once("seeds", seeds)
    judged = {name: options.get(name, _default(name)) for name in ("final", "accuracy")}
    length = options.get("max_length", _default("max_length"))
    unrelated = options.get("unrelated")
    for task in tasks:
        check_run(model, task, tokenizer, **judged)
    if not isinstance(placements, Mapping) or not placements:
        raise TypeError(f"placements={placements!r:.60}, expected a dict of names and placements")
    runs = _runs(tasks, placements, seeds=seeds, lrs=lrs, ranks=ranks, options=options)
    for run in {(run.name, run.r): run for run in runs}.values():
        adapter_config(model, run.placement, r=run.r, lora_alpha=2 * run.r)
    other = ""
    if unrelated is not None:
        check_unrelated(model, unrelated, tokenizer, max_length=length)
        other = task_digest(unrelated, tokenizer)
    digests = {id(task): task_digest(task, tokenizer) + other for task in tasks}
    weights = fingerprint(model)
    cells = []
    for run in runs:
        digest = digests[id(run.task)]
        key = run_key(model, digest, run.placement, run.settings, weights)
        cells.append(Cell(key, _labels(run), run))

    @functools.cache
    def check_all() -> None:
        for task in tasks:
            check_tokens(model, task, tokenizer, **judged, max_length=length)

    def train(run: Run) -> Row:
        check_all()  # before the first training, but not where all are finished
        return finetune(model, run.task, tokenizer, run.placement, **run.settings)

    return _frame(run_together(cells, train, storage=storage, study=study, progress=progress))


def _runs(
    tasks: list[Task],
    placements: Mapping[str, Placement | LoraConfig],
    *,
    seeds: list[int],
    lrs: Any,
    ranks: Mapping[str, int] | None,
    options: Mapping[str, Any],
) -> list[Run]:
    """All runs of a grid; its arguments, checked."""
    rates = _rates_by_name(lrs)
    runs = []
    for task, name, seed in itertools.product(tasks, placements, seeds):
        placement = placements[name]
        given = _rank(ranks, task, name, placement)
        r, _ = rank_and_scale(placement, given, options.get("lora_alpha"))
        r = plain_numbers({"r": r})["r"]
        rank = {} if isinstance(placement, LoraConfig) else {"r": r}
        own = rates if isinstance(rates, list) else _entry(rates, task, name, "lrs")
        for lr in _each_once("lrs", own):
            settings = plain_numbers({**options, **rank, "lr": lr, "seed": seed})
            runs.append(Run(task, name, placement, r, settings))
    return runs


def _rank(
    ranks: Mapping[Any, int] | None, task: Task, name: str, placement: Placement | LoraConfig
) -> int | None:
    """The rank that `ranks` gives to a placement; a `LoraConfig` need not be in it."""
    if ranks is None:
        return None
    if isinstance(placement, LoraConfig) and isinstance(ranks, Mapping):
        return ranks.get((task.name, name), ranks.get(name))
    return _entry(ranks, task, name, "ranks")


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


def _each_once(argument: str, values: Any) -> list[Any]:
    """The tasks, seeds or learning rates as a list: one at least, and none twice."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{argument}={values!r:.60}, expected a list: put it in one")
    values = list(values)
    if not values:
        raise ValueError(f"{argument} is empty: give at least one")
    told_by = [value.name if isinstance(value, Task) else value for value in values]
    for number, one in enumerate(told_by):
        if one in told_by[:number]:
            raise ValueError(
                f"{argument} has {one!r} twice: its runs could not be told apart, so give each once"
            )
    return values


def _check_options(options: Mapping[str, Any]) -> None:
    for name in OF_SINGLE_RUNS:
        if name in options:
            raise ValueError(
                f"{name} cannot be an option of a whole grid: see ranks, lrs and seeds, or finetune"
            )


def _default(name: str) -> Any:
    return inspect.signature(finetune).parameters[name].default


def _labels(run: Run) -> dict[str, str | int | float]:
    numbers = {"lr": float(run.settings["lr"]), "seed": run.settings["seed"], "r": run.r}
    return {"task": run.task.name, "placement": run.name, **numbers}


def _rates_by_name(lrs: Any) -> list[float] | dict[Any, list[float]]:
    """Learning rates for all as a list, or those of each placement."""
    if isinstance(lrs, pd.DataFrame):
        lrs = lrs.groupby(["task", "placement"])["lr"].apply(list).to_dict()
    if isinstance(lrs, Mapping):
        return {name: _as_list(own) for name, own in lrs.items()}
    return _as_list(lrs)


def _as_list(lrs: Any) -> list[float]:
    if np.isscalar(lrs):
        return [lrs]
    if not isinstance(lrs, Iterable):
        raise TypeError(
            f"lrs={lrs!r:.60}, expected learning rates, a dict of names of placements and rates, "
            f"or what tuned returns"
        )
    return list(lrs)


def _entry(table: Mapping[Any, Any], task: Task, name: str, argument: str) -> Any:
    """What a table says of a task and a placement."""
    if not isinstance(table, Mapping):
        raise TypeError(f"{argument}={table!r:.60}, expected a dict of names of placements")
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
