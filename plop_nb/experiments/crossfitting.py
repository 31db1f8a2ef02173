"""Losses at tuned learning rates, with no rate chosen on what it is judged by."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

HALVES = 2
NEAR = 2.01  # a fit of the losses looks at the rates within this factor of the lowest


@dataclass(frozen=True)
class Runs:
    """The runs of one placement on one task.

    Attributes
    ----------
    rates : numpy.ndarray
        Learning rates (rates,), ascending.
    seeds : list of int
    losses : numpy.ndarray
        Nats per example (rates, seeds, examples), summed over its tokens; inf where it diverged,
        NaN where a rate was not run with a seed.
    tokens : numpy.ndarray
        Completion tokens of each example (examples,).
    """

    rates: np.ndarray
    seeds: list[int]
    losses: np.ndarray
    tokens: np.ndarray

    @property
    def half(self) -> np.ndarray:
        """Which half each example is in."""
        return np.arange(len(self.tokens)) % HALVES

    def tuning(self, seeds: Sequence[int], half: int) -> np.ndarray:
        """Nats per token (rates,) of some seeds on the examples outside a half.

        NaN where a seed is missing.
        """
        examples = self.half != half
        chosen = self.losses[:, [self.seeds.index(seed) for seed in seeds]][:, :, examples]
        return chosen.mean(axis=1).sum(axis=1) / self.tokens[examples].sum()


def crossfit(runs: pd.DataFrame, *, tuning_seeds: Sequence[int] = ()) -> pd.DataFrame:
    """Losses of placements at tuned learning rates, one row per task, placement and seed.

    The examples are dealt into halves. For each seed and half, the rate is the one that the *other*
    seeds (with a single seed: the same) prefer on the *other* half: a parabola is fitted to their
    losses over the logarithm of the rate, about the lowest of them, and the tried rate nearest to
    its minimum is taken. The loss is what this seed has at that rate on this half. So every loss is
    that of a real run, on examples, and with a seed, that had no part in choosing its rate.

    Parameters
    ----------
    runs : pandas.DataFrame
        From `grid` with `per_example=True`, with several learning rates.
    tuning_seeds : sequence of int
        Seeds that only choose the rates: they have no rows in the result, and the others, which
        have no say, need runs at the chosen rates only (`chosen_rates`). None by default. Take
        several: the best rate of one seed is often too near the highest that works (notebook 05).

    Returns
    -------
    pandas.DataFrame
        Columns `task`, `placement`, `seed`, `lr` (geometric mean over the halves), `edge` (True:
        the best is the lowest or highest rate tried in one of the halves), `loss` (nats per token),
        `losses` (an array: nats per example, summed over its tokens), `tokens` (an array).

    Raises
    ------
    ValueError
        A column is missing, the examples of a task differ, several runs have the same rate and
        seed, fewer than 3 rates were run with all seeds that choose, or a run at the chosen rate is
        missing.
    """
    rows = []
    for task, placement, own in placements_of(runs, tuning_seeds):
        for number, seed in enumerate(own.seeds):
            if seed not in tuning_seeds:
                found = at_tuned_rates(own, number, tuning_seeds)
                rows.append({"task": task, "placement": placement, "seed": seed, **found})
    return pd.DataFrame(rows)


def chosen_rates(runs: pd.DataFrame, tuning_seeds: Sequence[int]) -> pd.DataFrame:
    """The learning rates that other seeds have to be run at, for `crossfit` with the same seeds.

    Parameters
    ----------
    runs, tuning_seeds
        As in `crossfit`.

    Returns
    -------
    pandas.DataFrame
        Columns `task`, `placement`, `lr`: one row, or two where the halves of the examples prefer
        different rates.

    Raises
    ------
    ValueError
        As in `crossfit`.
    """
    rows = []
    for task, placement, own in placements_of(runs, tuning_seeds):
        curves = [own.tuning(tuning_seeds, half) for half in range(HALVES)]
        for lr in sorted({own.rates[best_rate(own.rates, curve)] for curve in curves}):
            rows.append({"task": task, "placement": placement, "lr": lr})
    return pd.DataFrame(rows)


def placements_of(runs: pd.DataFrame, tuning_seeds: Sequence[int]) -> Iterator[tuple]:
    """(task, placement, its runs), one by one (ValueError where they do not fit)."""
    missing = {"task", "placement", "lr", "seed", "losses", "tokens"} - set(runs)
    if missing:
        raise ValueError(
            f"runs lacks the columns {sorted(missing)}: make them by a grid with per_example=True"
        )
    for (task, placement), group in runs.groupby(["task", "placement"], sort=False):
        yield task, placement, runs_of(f"placement {placement!r} on {task!r}", group, tuning_seeds)


def runs_of(name: str, group: pd.DataFrame, tuning_seeds: Sequence[int] = ()) -> Runs:
    """The runs of one placement on one task as arrays (ValueError where they do not fit)."""
    missing = set(tuning_seeds) - set(group["seed"])
    if missing:
        raise ValueError(
            f"tuning_seeds={list(tuning_seeds)}, but {name} has no runs of {sorted(missing)}"
        )
    if group.duplicated(["lr", "seed"]).any():
        raise ValueError(f"{name} has several runs of one learning rate and seed: keep one of each")
    if len({tuple(tokens) for tokens in group["tokens"]}) > 1:
        raise ValueError(f"{name} was judged on different examples: keep the runs of one split")
    rates, seeds = np.sort(group["lr"].unique()), sorted(group["seed"].unique())
    tokens = np.asarray(group["tokens"].iloc[0])
    losses = np.full((len(rates), len(seeds), len(tokens)), np.nan)
    for row in group.itertuples():
        at = np.searchsorted(rates, row.lr), seeds.index(row.seed)
        losses[at] = np.nan_to_num(np.asarray(row.losses, dtype=float), nan=np.inf)
    choosing = [number for number, seed in enumerate(seeds) if seed in (tuning_seeds or seeds)]
    complete = ~np.isnan(losses[:, choosing]).any(axis=(1, 2))
    if complete.sum() < 3:
        raise ValueError(
            f"{name} was run at {complete.sum()} learning rates with all of the seeds "
            f"{[seeds[number] for number in choosing]}: a fit needs 3 or more"
        )
    return Runs(rates, [int(seed) for seed in seeds], losses, tokens)


def at_tuned_rates(runs: Runs, seed: int, tuning_seeds: Sequence[int] = ()) -> dict:
    """What `crossfit` says of a placement and one of its seeds, given by its position."""
    others = [other for number, other in enumerate(runs.seeds) if number != seed] or runs.seeds
    if not tuning_seeds:  # a rate that this seed lacks is not to be chosen
        unknown = np.isnan(runs.losses[:, seed]).any(axis=1)
        runs = replace(runs, losses=np.where(unknown[:, None, None], np.nan, runs.losses))
    losses = np.empty(len(runs.tokens))
    chosen, edge = [], False
    for half in range(HALVES):
        tuning = runs.tuning(tuning_seeds or others, half)
        best = best_rate(runs.rates, tuning)
        tried = np.flatnonzero(~np.isnan(tuning))
        edge |= best in (tried[0], tried[-1])
        losses[runs.half == half] = runs.losses[best, seed, runs.half == half]
        chosen.append(runs.rates[best])
    if np.isnan(losses).any():
        raise ValueError(
            f"seed {runs.seeds[seed]} was not run at all of {sorted(set(chosen))}, which the seeds "
            f"{list(tuning_seeds)} prefer: run what chosen_rates says"
        )
    return {
        "lr": float(np.exp(np.mean(np.log(chosen)))),
        "edge": bool(edge),
        "loss": losses.sum() / runs.tokens.sum(),
        "losses": losses,
        "tokens": runs.tokens,
    }


def best_rate(rates: np.ndarray, losses: np.ndarray) -> int:
    """The position of the tried rate that is nearest to the minimum of a smooth fit.

    Parameters
    ----------
    rates, losses : numpy.ndarray
        (rates,); NaN where a rate was not tried, inf where it diverged.
    """
    tried = np.flatnonzero(~np.isnan(losses))
    lowest = tried[np.argmin(losses[tried])]
    near = tried[np.isfinite(losses[tried])]
    near = near[np.abs(np.log(rates[near] / rates[lowest])) < np.log(NEAR)]
    if len(near) < 3:
        return int(lowest)
    x = np.log(rates[near])
    square, slope, _ = np.polyfit(x, losses[near], 2)
    if square <= 0:
        return int(lowest)
    wanted = -slope / (2 * square)
    return int(near[np.argmin(np.abs(x - wanted))])
