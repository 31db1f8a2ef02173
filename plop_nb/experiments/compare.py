"""What runs say of placements: the tuned learning rate of each, and paired comparisons."""

from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from plop_nb.checks import coverage_level
from plop_nb.stats import mean_interval

LOWER_IS_BETTER = {"loss": True, "accuracy": False, "reward": False}


@dataclass(frozen=True)
class Tuned:
    """A row of `tuned`."""

    task: str
    placement: str
    lr: float
    loss: float
    seeds: int
    edge: bool


@dataclass(frozen=True)
class Versus:
    """A row of `versus`."""

    task: str
    placement: str
    difference: float
    low: float
    high: float
    seeds: int
    parameters: int
    reference_parameters: int
    verdict: str


def tuned(runs: pd.DataFrame) -> pd.DataFrame:
    """The learning rate with the lowest mean validation loss for each task and placement.

    Parameters
    ----------
    runs : pandas.DataFrame
        From a `grid` with `final="validation"`.

    Returns
    -------
    pandas.DataFrame
        Columns `task`, `placement`, `lr`, `loss` (mean over seeds), `seeds`, `edge` (True: the
        best is the lowest or highest tried, so try further ones). `grid` takes it as `lrs`.

    Raises
    ------
    ValueError
        A row was evaluated on another split, or a placement was run at several ranks.
    """
    _check_columns(runs, ["task", "placement", "lr", "r", "seed", "split", "loss"])
    if others := set(runs["split"]) - {"validation"}:
        raise ValueError(
            f"runs were evaluated on the split {others.pop()!r}: tune on runs with "
            f"final='validation'"
        )
    best = []
    for (task, placement), group in runs.groupby(["task", "placement"], sort=False):
        if group["r"].nunique() > 1:
            ranks = sorted(group["r"].unique())
            raise ValueError(f"placement {placement!r} was run at ranks {ranks}: tune one rank")
        # not a number: it diverged
        losses = group["loss"].fillna(np.inf).groupby(group["lr"]).mean()
        lr = losses.idxmin()
        edge = lr in (losses.index.min(), losses.index.max())
        best.append(Tuned(task, placement, lr, losses[lr], group["seed"].nunique(), edge))
    columns = list(Tuned.__dataclass_fields__)
    return pd.DataFrame([asdict(row) for row in best], columns=columns)


def versus(
    runs: pd.DataFrame, reference: str, value: str = "loss", level: float = 0.95
) -> pd.DataFrame:
    """Each placement minus a reference, paired by task and seed.

    Parameters
    ----------
    runs : pandas.DataFrame
        From `grid`, one learning rate for each placement.
    reference : str
        Name of the placement to compare with.
    value : {"loss", "accuracy", "reward"}
    level : float
        Coverage of the interval: Student's t over seeds.

    Returns
    -------
    pandas.DataFrame
        Columns `task`, `placement`, `difference`, `low`, `high`, `seeds`, `parameters`,
        `reference_parameters`, `verdict` ("better" or "worse" where the interval leaves out zero,
        else "undecided"; lower loss is better, higher accuracy or reward is better).

    Raises
    ------
    ValueError
        An unknown `reference` or `value`, several runs for one seed, fewer than 2 seeds in common,
        or a run whose value is not finite (it diverged).
    """
    level = coverage_level(level)
    _check_comparable(runs, reference, value)
    rows = []
    for task, group in runs.groupby("task", sort=False):
        names = [name for name in group["placement"].unique() if name != reference]
        for name in names:
            rows.append(_compared(task, group, name, reference, value, level))
    columns = list(Versus.__dataclass_fields__)
    return pd.DataFrame([asdict(row) for row in rows], columns=columns)


def _compared(
    task: str, group: pd.DataFrame, name: str, reference: str, value: str, level: float
) -> Versus:
    wide = group.pivot(index="seed", columns="placement", values=value)
    missing = pd.Series(np.nan, index=wide.index)
    gaps = (wide[name] - wide.get(reference, missing)).dropna()
    if len(gaps) < 2:
        raise ValueError(
            f"{name!r} and {reference!r} have {len(gaps)} seeds in common on {task!r}: run 2 or "
            f"more"
        )
    interval = mean_interval(gaps, level=level)
    parameters = group.drop_duplicates("placement").set_index("placement")["parameters"]
    return Versus(
        task=task,
        placement=name,
        difference=interval.mean,
        low=interval.low,
        high=interval.high,
        seeds=len(gaps),
        parameters=parameters[name],
        reference_parameters=parameters[reference],
        verdict=_verdict(interval.low, interval.high, LOWER_IS_BETTER[value]),
    )


def _verdict(low: float, high: float, lower_is_better: bool) -> str:
    if low <= 0 <= high:
        return "undecided"
    return "better" if (high < 0) == lower_is_better else "worse"


def _check_comparable(runs: pd.DataFrame, reference: str, value: str) -> None:
    _check_columns(runs, ["task", "placement", "seed", "parameters", value])
    if value not in LOWER_IS_BETTER:
        raise ValueError(f"value={value!r} is unknown, choose one of {tuple(LOWER_IS_BETTER)}")
    names = sorted(set(runs["placement"]))
    if reference not in names:
        raise ValueError(f"reference={reference!r} was not run, choose one of {names}")
    if runs.duplicated(["task", "placement", "seed"]).any():
        raise ValueError(
            "several runs of one task, placement and seed: keep one learning rate, split and rank "
            "of each"
        )
    diverged = runs[~np.isfinite(runs[value].astype(float))]
    if len(diverged):
        task, name, seed, found = diverged.iloc[0][["task", "placement", "seed", value]]
        raise ValueError(
            f"{value} is {found} for placement {name!r} with seed {seed} on {task!r}: where a run "
            f"diverged, take a lower learning rate for all seeds of that placement, or leave the "
            f"placement out"
        )


def _check_columns(runs: pd.DataFrame, names: list[str]) -> None:
    missing = [name for name in names if name not in getattr(runs, "columns", ())]
    if missing:
        raise ValueError(f"runs lacks the columns {missing}: expected the frame that grid returns")
