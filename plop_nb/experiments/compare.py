"""What runs say of placements: the tuned learning rate of each, and paired comparisons."""

import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from scipy.stats import t as student

from plop_nb.checks import coverage_level, user_level
from plop_nb.experiments.pooling import seed_variance
from plop_nb.stats import mean_interval

LOWER_IS_BETTER = {"loss": True, "accuracy": False, "reward": False}
# What must be the same in all runs of a task: otherwise it is this that differs, not the placement
SETTINGS = ("model", "dtype", "split", "steps", "batch_size", "max_length")
# What changes the arithmetic a little, as another seed would
PLACES = ("device", "torch")


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
        A row was evaluated on another split; a placement was run at several ranks or settings, or
        not with the same seeds at all rates (names what is missing); or it diverged at all rates.
    """
    _check_columns(runs, ["task", "placement", "lr", "r", "seed", "split", "loss"])
    if others := set(runs["split"]) - {"validation"}:
        raise ValueError(
            f"runs were evaluated on the split {others.pop()!r}: tune on runs with "
            f"final='validation'"
        )
    best = []
    for (task, placement), group in runs.groupby(["task", "placement"], sort=False):
        name = f"placement {placement!r} on {task!r}"
        _check_rates(name, group)
        # not a number: it diverged
        losses = group["loss"].astype(float).fillna(np.inf).groupby(group["lr"]).mean()
        lr = losses.idxmin()
        if np.isinf(losses[lr]):
            raise ValueError(
                f"{name} diverged at every learning rate ({_listed(losses.index)}): try lower ones"
            )
        edge = lr in (losses.index.min(), losses.index.max())
        best.append(Tuned(task, placement, lr, losses[lr], group["seed"].nunique(), edge))
    columns = list(Tuned.__dataclass_fields__)
    return pd.DataFrame([asdict(row) for row in best], columns=columns)


def _check_rates(name: str, group: pd.DataFrame) -> None:
    """Refuse the runs of a placement on a task whose means at two rates cannot be compared."""
    if group["r"].nunique() > 1:
        raise ValueError(f"{name} was run at ranks {_listed(group['r'])}: tune one rank")
    _check_settings(name, group)
    if group.duplicated(["lr", "seed"]).any():
        raise ValueError(f"{name} has several runs of one learning rate and seed: keep one of each")
    seeds, missing = set(group["seed"]), []
    for lr, own in group.groupby("lr"):
        if absent := seeds - set(own["seed"]):
            missing.append(f"lr={lr:g} lacks {_listed(absent)}")
    if missing:
        raise ValueError(
            f"{name} was not run with the same seeds at all learning rates ({'; '.join(missing)}): "
            f"finish the grid by the same call, or leave these rates or seeds out"
        )


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
        a run whose value is not finite (it diverged) or missing (no accuracy was measured), or runs
        of one task that differ in a setting: model, dtype, split, steps, batch size, max_length,
        or lora_alpha / r.

    Warns
    -----
    UserWarning
        Runs of one task are from several devices or versions of torch.
    """
    level = coverage_level(level)
    _check_comparable(runs, reference, value)
    if places := _places(runs):
        warnings.warn(
            f"runs of one task are from several places ({'; '.join(places)}): their arithmetic "
            f"differs, so compare small differences on one of them",
            stacklevel=user_level(),
        )
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


def differences(results: pd.DataFrame, reference: str, level: float = 0.95) -> pd.DataFrame:
    """Each placement minus a reference, for other seeds *and* other problems.

    Placements are paired by their common seeds. The intervals hold all at once (Bonferroni over all
    rows). The noise of seeds is pooled over all placements of a task, since two or three seeds of
    one placement cannot tell it: the spread of runs about their placement's mean, but for what a
    seed does to all placements, over the seeds that all of them have. The noise of problems is
    that of the differences from problem to problem.

    Parameters
    ----------
    results : pandas.DataFrame
        From `crossfit`: `task`, `placement`, `seed`, `loss`, `losses`, and `tokens` of the problems
        (arrays). The placements of a task have two seeds in common, or more.
    reference : str
        The placement to compare with.
    level : float
        How probably all intervals hold at once.

    Returns
    -------
    pandas.DataFrame
        Columns `task`, `placement`, `difference` (nats per token), `low`, `high`, `verdict`
        ("better", "worse", "undecided"), `seeds` (how many the pair has in common).

    Raises
    ------
    ValueError
        A column is missing, the reference was not run on a task, or the placements of a task have
        fewer than two seeds in common.
    """
    level = coverage_level(level)
    _check_columns(results, ["task", "placement", "seed", "loss", "losses", "tokens"])
    rows = []
    for task, own in results.groupby("task", sort=False):
        rows += _differences_of_task(task, own, reference)
    tail = (1 - level) / 2 / max(1, len(rows))
    table = pd.DataFrame(rows)
    half = table.pop("error") * student.ppf(1 - tail, table.pop("freedom"))
    table["low"], table["high"] = table["difference"] - half, table["difference"] + half
    ends = zip(table["low"], table["high"], strict=True)
    table["verdict"] = [_verdict(low, high, lower_is_better=True) for low, high in ends]
    return table


def _differences_of_task(task: str, results: pd.DataFrame, reference: str) -> list[dict]:
    """Differences with their standard errors, and the degrees of freedom of these."""
    losses = results.pivot(index="placement", columns="seed", values="loss")
    if reference not in losses.index:
        raise ValueError(
            f"reference={reference!r} was not run on {task!r}, choose one of {sorted(losses.index)}"
        )
    common = losses.dropna(axis=1)
    placements, seeds = common.shape
    if seeds < 2:
        raise ValueError(
            f"the placements on {task!r} have the seeds {common.columns.tolist()} in common: run "
            f"all of them with the same two seeds or more"
        )
    of_a_seed = 2 * seed_variance(common.to_numpy())
    tokens = np.asarray(results["tokens"].iloc[0])
    by_run = results.set_index(["placement", "seed"])["losses"]
    rows = []
    for name in losses.index.drop(reference):
        paired = losses.loc[[name, reference]].dropna(axis=1).columns
        gaps = np.mean([by_run[name, seed] - by_run[reference, seed] for seed in paired], axis=0)
        difference = gaps.sum() / tokens.sum()
        rest = gaps - difference * tokens
        of_problems = len(tokens) * rest.var(ddof=1) / tokens.sum() ** 2
        row = {"task": task, "placement": name, "difference": difference, "seeds": len(paired)}
        row["error"] = np.sqrt(of_a_seed / len(paired) + of_problems)
        rows.append(row | {"freedom": (placements - 1) * (seeds - 1)})
    return rows


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
    for task, group in runs.groupby("task", sort=False):
        _check_settings(f"task {task!r}", group)
        sizes = group.groupby("placement")["parameters"].nunique()
        for name in sizes.index[sizes > 1]:
            found = _listed(group.loc[group["placement"] == name, "parameters"])
            raise ValueError(
                f"placement {name!r} on {task!r} has runs with {found} parameters: keep one rank"
            )
    if runs.duplicated(["task", "placement", "seed"]).any():
        raise ValueError(
            "several runs of one task, placement and seed: keep one learning rate, split and rank "
            "of each"
        )
    _check_values(runs, value)


def _check_values(runs: pd.DataFrame, value: str) -> None:
    failed = runs[~np.isfinite(runs[value].astype(float))]
    if failed.empty:
        return
    task, name, seed, found = failed.iloc[0][["task", "placement", "seed", value]]
    about = f"{value} is {found} for placement {name!r} with seed {seed} on {task!r}"
    if value == "accuracy":
        raise ValueError(
            f"{about}: it was not measured, as the task has no check or the run had "
            f"accuracy=False. Compare the loss, or run it again with accuracy=True"
        )
    raise ValueError(
        f"{about}: where a run diverged, take a lower learning rate for all seeds of that "
        f"placement, or leave the placement out"
    )


def _check_settings(name: str, runs: pd.DataFrame) -> None:
    """Refuse runs that differ in more than their placement, learning rate and seed."""
    settings = {column: runs[column] for column in SETTINGS if column in runs}
    if "r" in runs and "lora_alpha" in runs:  # which scales what the adapters add
        settings["lora_alpha / r"] = (runs["lora_alpha"] / runs["r"]).astype(float).round(9)
    for setting, values in settings.items():
        if values.nunique() > 1:
            raise ValueError(
                f"runs of {name} differ in {setting} ({_listed(values)}): keep those of one"
            )


def _places(runs: pd.DataFrame) -> list[str]:
    """In words, the devices and versions of torch of tasks that were run in several."""
    found = []
    for task, group in runs.groupby("task", sort=False):
        for column in PLACES:
            if column in group and group[column].nunique() > 1:
                found.append(f"{task!r}: {column} {_listed(group[column])}")
    return found


def _listed(values: Iterable) -> str:
    """Different values, sorted, in words."""
    return ", ".join(str(value) for value in sorted(pd.unique(pd.Series(list(values)).dropna())))


def _check_columns(runs: pd.DataFrame, names: list[str]) -> None:
    missing = [name for name in names if name not in getattr(runs, "columns", ())]
    if missing:
        raise ValueError(f"runs lacks the columns {missing}: expected the frame that grid returns")
    if runs.empty:
        raise ValueError("runs is empty: expected at least one row of the frame that grid returns")
