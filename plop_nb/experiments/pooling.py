"""What the losses of sets of types are, as far as a few noisy runs of each can tell."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from plop_nb.checks import coverage_level, positive_integer, random_seed

RESAMPLES = 1000  # of the examples, for their part of the noise


@dataclass(frozen=True)
class Pooled:
    """Losses of placements with all that is uncertain about them.

    Attributes
    ----------
    draws : pandas.DataFrame
        One row per draw, one column per placement: losses (nats per token) that the runs leave
        possible, each row a complete set of them.
    effects : pandas.DataFrame
        One row per draw, one column per type: the loss of placements with the type minus that of
        those without it (nats per token), all else equal.
    observed : pandas.Series
        The mean loss of each placement's runs.
    noise : float
        Standard deviation of such a mean, from seeds and examples together.
    spread : float
        Standard deviation of the true losses about what the types together make of them.
    """

    draws: pd.DataFrame
    effects: pd.DataFrame
    observed: pd.Series
    noise: float
    spread: float

    def judged(self, choice: str, level: float = 0.95) -> dict[str, float]:
        """How good a choice among these placements is.

        Parameters
        ----------
        choice : str
            A placement.
        level : float
            Coverage of the intervals.

        Returns
        -------
        dict
            `better_than` (share of the other placements whose loss is higher), `regret` (its loss
            above the lowest, as a share of the way from the lowest to the highest), each the mean
            over draws, and with `_low` and `_high` its interval.

        Raises
        ------
        ValueError
            There is no such placement.
        """
        if choice not in self.draws:
            raise ValueError(f"choice={choice!r}, expected one of {sorted(self.draws)}")
        losses, own = self.draws.to_numpy(), self.draws[choice].to_numpy()
        lowest, highest = losses.min(axis=1), losses.max(axis=1)
        others = losses.shape[1] - 1
        found: dict[str, float] = {}
        for name, values in {
            "better_than": (losses > own[:, None]).sum(axis=1) / others,
            "regret": (own - lowest) / (highest - lowest),
        }.items():
            low, high = interval(values, level)
            found |= {name: values.mean(), f"{name}_low": low, f"{name}_high": high}
        return found


def pooled_losses(
    results: pd.DataFrame, sets: Mapping[str, set[str]], *, draws: int = 4000, seed: int = 0
) -> Pooled:
    """Partial pooling of the losses of placements on sets of types, on one task.

    The lowest of many noisy means is low by luck as well. So each placement's loss is taken to be
    what its types together make of it (a sum of one effect for each type), plus something of its
    own, plus noise; and of a mean that stands out as much is believed as the noise leaves. This is
    a mixed model with main effects of types and a random effect of placements. The noise of seeds
    is the spread of a placement's runs about their mean, pooled over all placements, and that of
    examples is known from resampling them, the same for all placements.

    A seed may raise or lower all placements alike; that it may favour single types is not in the
    model, and where it does, the intervals are too narrow for new seeds.

    Parameters
    ----------
    results : pandas.DataFrame
        From `crossfit`, one task: `placement`, `seed`, `loss`, `losses`.
    sets : dict
        {placement: its types}; these placements are compared. All sets of one size, such as all
        triples, or other sets of which no type is in all.
    draws : int
        Of the possible losses.
    seed : int
        Of the draws.

    Returns
    -------
    Pooled

    Raises
    ------
    ValueError
        A placement is missing, or has not the seeds that the others have, two or more.
    """
    draws, random = (
        positive_integer("draws", draws),
        np.random.default_rng(random_seed("seed", seed)),
    )
    names = list(sets)
    table = results.pivot(index="placement", columns="seed", values="loss")
    missing = [name for name in names if name not in table.index or table.loc[name].isna().any()]
    if missing or table.shape[1] < 2:
        raise ValueError(
            f"results has {table.shape[1]} seeds, and lacks runs of {missing[:3]}: all of sets "
            f"need the same two seeds or more"
        )
    table = table.loc[names]
    observed = table.mean(axis=1)
    variance = seed_variance(table.to_numpy()) / table.shape[1] + example_variance(results, names)
    types = sorted(set().union(*sets.values()))
    design = np.array([[float(name in sets[placement]) for name in types] for placement in names])
    possible, effects, spread = _posterior(design, observed.to_numpy(), variance, draws, random)
    return Pooled(
        draws=pd.DataFrame(possible, columns=names),
        effects=pd.DataFrame(effects, columns=types),
        observed=observed,
        noise=float(np.sqrt(variance)),
        spread=spread,
    )


def seed_variance(losses: np.ndarray) -> float:
    """Variance of a run about its placement's mean, but for what a seed does to all of them.

    Parameters
    ----------
    losses : numpy.ndarray
        (placements, seeds).
    """
    placements, seeds = losses.shape
    centred = losses - losses.mean(axis=1, keepdims=True) - losses.mean(axis=0) + losses.mean()
    return float((centred**2).sum() / ((placements - 1) * (seeds - 1)))


def example_variance(results: pd.DataFrame, names: list[str]) -> float:
    """Variance of a placement's mean, but for the mean of all, when examples are resampled."""
    own = results[results["placement"].isin(names)]
    sums = np.stack(
        [np.mean(np.stack(list(g)), axis=0) for _, g in own.groupby("placement")["losses"]]
    )
    per_token = sums / sums.mean(axis=0).mean() * own["loss"].mean()
    centred = per_token - per_token.mean(axis=0)
    return float(centred.var(axis=1, ddof=1).mean() / centred.shape[1])


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The middle of some draws."""
    tail = (1 - coverage_level(level)) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def _posterior(
    design: np.ndarray,
    observed: np.ndarray,
    variance: float,
    draws: int,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, float]:
    """(possible losses (draws, placements), effects (draws, types), spread)."""
    placements, types = design.shape
    centred = design - design.mean(axis=0)
    # sets of one size: the effects are known but for a constant, which is left at 0
    inverse = np.linalg.pinv(centred.T @ centred)
    effects = inverse @ centred.T @ (observed - observed.mean())
    fitted = observed.mean() + centred @ effects
    freedom = placements - 1 - np.linalg.matrix_rank(centred)
    left = ((observed - fitted) ** 2).sum() / freedom
    spread = max(0.0, left - variance)
    total = spread + variance
    weight = spread / total
    root = np.linalg.cholesky(inverse + 1e-12 * np.eye(types))
    drawn_effects = effects + np.sqrt(total) * random.normal(size=(draws, types)) @ root.T
    level = observed.mean() + np.sqrt(total / placements) * random.normal(size=(draws, 1))
    drawn_fit = level + drawn_effects @ centred.T
    own = np.sqrt(weight * variance) * random.normal(size=(draws, placements))
    possible = drawn_fit + weight * (observed - drawn_fit) + own
    return possible, drawn_effects, float(np.sqrt(spread))
