"""Grids of finetuning runs: every task with every placement, learning rate and seed."""

import inspect
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from plop_nb.experiments.grids.cells import Cell, Row, finished_rows, run_cells
from plop_nb.experiments.grids.keys import run_key, task_digest
from plop_nb.experiments.tasks.task import Task
from plop_nb.experiments.trainers import adapters
from plop_nb.experiments.training import check_run, finetune, plain_numbers
from plop_nb.fingerprint import fingerprint
from plop_nb.placement import Placement

OF_SINGLE_RUNS = ("callbacks", "out", "r", "lr", "seed")
FIRST_COLUMNS = ("task", "placement")


@dataclass(frozen=True)
class Run:
    """What a cell of a grid needs to be run."""

    task: Task
    name: str  # of the placement
    placement: Placement
    settings: dict[str, Any]  # arguments of `finetune`


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
    tasks, seeds = _each_once("tasks", tasks), _each_once("seeds", seeds)
    _check_placements(placements)
    rates = _rates_by_name(lrs)
    runs = []
    for task, name, seed in itertools.product(tasks, placements, seeds):
        rank = {} if ranks is None else {"r": _entry(ranks, task, name, "ranks")}
        own = rates if isinstance(rates, list) else _entry(rates, task, name, "lrs")
        for lr in _each_once("lrs", own):
            settings = plain_numbers({**options, **rank, "lr": lr, "seed": seed})
            runs.append(Run(task, name, placements[name], settings))
    _check_runs(model, tasks, tokenizer, runs)
    digests = {id(task): task_digest(task, tokenizer) for task in tasks}
    weights = fingerprint(model)
    cells = []
    for run in runs:
        digest = digests[id(run.task)]
        key = run_key(model, digest, run.placement, run.settings, weights)
        cells.append(Cell(key, _labels(run), run))

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

    Raises
    ------
    ValueError
        `runs` has no column `curve`.
    """
    if "curve" not in runs:
        raise ValueError("runs lacks the column 'curve': expected the frame that grid returns")
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


def _check_placements(placements: Any) -> None:
    if not isinstance(placements, Mapping):
        kind = type(placements).__name__
        raise TypeError(f"placements is {kind}, expected a dict of names and placements")
    if not placements:
        raise ValueError("placements is empty: give at least one")
    for name in placements:
        if not isinstance(name, str):
            raise TypeError(f"placements has the name {name!r}, expected a text")


def _check_runs(model: nn.Module, tasks: list[Task], tokenizer: Any, runs: list[Run]) -> None:
    """Try whatever can fail of any run before the first is trained."""
    shared = runs[0].settings
    options = {name: shared[name] for name in ("accuracy", "max_length") if name in shared}
    for task in tasks:
        check_run(model, task, tokenizer, shared.get("final", "test"), **options)
    for run in {(run.name, run.settings.get("r")): run for run in runs}.values():
        adapters(model, run.placement, r=run.settings.get("r", _default("r")))


def _default(name: str) -> Any:
    return inspect.signature(finetune).parameters[name].default


def _labels(run: Run) -> dict[str, str | int | float]:
    settings = {"r": _default("r"), **run.settings}
    labels = {name: settings[name] for name in ("lr", "seed", "r")}
    return {"task": run.task.name, "placement": run.name, **labels, "lr": float(settings["lr"])}


def _rates_by_name(lrs: Any) -> list[float] | dict[Any, list[float]]:
    """Learning rates for all as a list, or those of each placement; ValueError for other frames."""
    if isinstance(lrs, pd.DataFrame):
        if missing := {"task", "placement", "lr"} - set(lrs.columns):
            raise ValueError(
                f"lrs lacks the columns {sorted(missing)}: expected the frame that tuned returns"
            )
        lrs = lrs.set_index(["task", "placement"])["lr"].to_dict()
    if isinstance(lrs, Mapping):
        return {name: _as_list(own) for name, own in lrs.items()}
    return _as_list(lrs)


def _as_list(lrs: Any) -> list[float]:
    return [lrs] if np.isscalar(lrs) else list(lrs)


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
