"""Losses at tuned learning rates, with no rate chosen on what it is judged by."""

from dataclasses import dataclass

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

    def mean(self, seeds: list[int], examples: np.ndarray) -> np.ndarray:
        """Nats per token (rates,), over some seeds and examples; NaN where a seed is missing."""
        chosen = self.losses[:, seeds][:, :, examples]
        return chosen.mean(axis=1).sum(axis=1) / self.tokens[examples].sum()


def crossfit(runs: pd.DataFrame) -> pd.DataFrame:
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

    Returns
    -------
    pandas.DataFrame
        Columns `task`, `placement`, `seed`, `lr` (geometric mean over the halves), `edge` (True:
        the best is the lowest or highest rate tried in one of the halves), `loss` (nats per token),
        `losses` (an array: nats per example, summed over its tokens).

    Raises
    ------
    ValueError
        A column is missing, the examples of a task differ, several runs have the same rate and
        seed, or fewer than 3 rates were run with all seeds.
    """
    missing = {"task", "placement", "lr", "seed", "losses", "tokens"} - set(runs)
    if missing:
        raise ValueError(
            f"runs lacks the columns {sorted(missing)}: make them by a grid with per_example=True"
        )
    rows = []
    for (task, placement), group in runs.groupby(["task", "placement"], sort=False):
        own = runs_of(f"placement {placement!r} on {task!r}", group)
        for number, seed in enumerate(own.seeds):
            found = at_tuned_rates(own, number)
            rows.append({"task": task, "placement": placement, "seed": seed, **found})
    return pd.DataFrame(rows)


def runs_of(name: str, group: pd.DataFrame) -> Runs:
    """The runs of one placement on one task as arrays (ValueError where they do not fit)."""
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
    complete = ~np.isnan(losses).any(axis=(1, 2))
    if complete.sum() < 3:
        raise ValueError(
            f"{name} was run at {complete.sum()} learning rates with all its seeds {seeds}: a fit "
            f"needs 3 or more"
        )
    return Runs(rates, [int(seed) for seed in seeds], losses, tokens)


def at_tuned_rates(runs: Runs, seed: int) -> dict:
    """What `crossfit` says of a placement and one of its seeds, given by its position."""
    others = [number for number in range(len(runs.seeds)) if number != seed] or [seed]
    half_of = np.arange(len(runs.tokens)) % HALVES
    losses = np.empty(len(runs.tokens))
    chosen, edge = [], False
    for half in range(HALVES):
        tuning = runs.mean(others, half_of != half)
        tuning[np.isnan(runs.losses[:, seed]).any(axis=1)] = np.nan  # this seed has to have it
        best = best_rate(runs.rates, tuning)
        tried = np.flatnonzero(~np.isnan(tuning))
        edge |= best in (tried[0], tried[-1])
        losses[half_of == half] = runs.losses[best, seed, half_of == half]
        chosen.append(runs.rates[best])
    return {
        "lr": float(np.exp(np.mean(np.log(chosen)))),
        "edge": bool(edge),
        "loss": losses.sum() / runs.tokens.sum(),
        "losses": losses,
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
