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
        Standard deviation of such a mean, from seeds and examples together, but for what a seed
        does to all placements of a type.
    by_seed : float
        Standard deviation of a type's effect from seed to seed.
    spread : float
        Standard deviation of the true losses about what the types together make of them.
    """

    draws: pd.DataFrame
    effects: pd.DataFrame
    observed: pd.Series
    noise: float
    by_seed: float
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

    @property
    def chance(self) -> float:
        """The mean regret of a choice at random, between 0 (the best) and 1 (the worst)."""
        losses = self.draws.to_numpy()
        lowest, highest = losses.min(axis=1), losses.max(axis=1)
        return float(((losses.mean(axis=1) - lowest) / (highest - lowest)).mean())


def pooled_losses(
    results: pd.DataFrame, sets: Mapping[str, set[str]], *, draws: int = 4000, seed: int = 0
) -> Pooled:
    """Partial pooling of the losses of placements on sets of types, on one task.

    The lowest of many noisy means is low by luck as well. So each placement's loss is taken to be
    what its types together make of it (a sum of one effect for each type), plus something of its
    own, plus noise; and of a mean that stands out as much is believed as the noise leaves. This is
    a mixed model with main effects of types and random effects of placements and of types by seeds,
    its variances by the method of moments. The noise of examples is known from resampling them, the
    same for all placements.

    A seed may raise or lower all placements alike, and it may favour some types. How much it does
    shows in the effects that each seed alone would give, and widens the intervals for new seeds;
    from two seeds little of that can be seen.

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
    types = sorted(set().union(*sets.values()))
    design = np.array([[float(name in sets[placement]) for name in types] for placement in names])
    fit = _Fit.of(design, table.to_numpy(), example_variance(results, names))
    losses, effects = fit.drawn(draws, random)
    return Pooled(
        draws=pd.DataFrame(losses, columns=names),
        effects=pd.DataFrame(effects, columns=types),
        observed=table.mean(axis=1),
        noise=float(np.sqrt(fit.noise)),
        by_seed=float(np.sqrt(fit.by_seed)),
        spread=float(np.sqrt(fit.spread)),
    )


def judge_choices(
    pooled: Mapping[str, Pooled],
    choices: Mapping[str, Mapping[str, str]],
    reference: str,
    level: float = 0.95,
) -> pd.DataFrame:
    """How good the choices of rules are, and by how much they differ from one placement.

    Parameters
    ----------
    pooled : dict
        {kind of runs: their losses}.
    choices : dict
        {kind of runs: {rule: the placement that it chooses}}; kinds as in `pooled`.
    reference : str
        The placement to compare with.
    level : float
        How probably all intervals of differences hold at once (Bonferroni over the different
        choices), and the coverage of the interval of each regret by itself.

    Returns
    -------
    pandas.DataFrame
        One row per kind and rule: `task` (the kind), `choice` (the rule), `placement`, `regret`,
        `regret_low`, `regret_high` (as from `Pooled.judged`), `difference` (loss minus that of the
        reference, nats per token), `low`, `high`, `verdict` ("better", "worse", "undecided", or
        "same" for the reference itself).

    Raises
    ------
    ValueError
        A kind, a choice or the reference is not in `pooled`.
    """
    if missing := [kind for kind in choices if kind not in pooled]:
        raise ValueError(f"choices has {missing}, expected kinds among {sorted(pooled)}")
    chosen = {kind: dict(own) for kind, own in choices.items()}
    sets = {(kind, name) for kind, own in chosen.items() for name in own.values()}
    tail = (1 - coverage_level(level)) / max(1, sum(name != reference for _, name in sets))
    found = {}
    for kind, name in sets:
        judged = pooled[kind].judged(name, level)
        if reference not in pooled[kind].draws:
            raise ValueError(f"reference={reference!r} is no placement of {kind!r}")
        gaps = (pooled[kind].draws[name] - pooled[kind].draws[reference]).to_numpy()
        low, high = interval(gaps, 1 - tail)
        verdict = "worse" if low > 0 else "better" if high < 0 else "undecided"
        own = {"placement": name} | {key: judged[key] for key in judged if "regret" in key}
        own |= {"difference": gaps.mean(), "low": low, "high": high}
        found[kind, name] = own | {"verdict": "same" if name == reference else verdict}
    rows = [
        {"task": kind, "choice": rule, **found[kind, name]}
        for kind, own in chosen.items()
        for rule, name in own.items()
    ]
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class _Fit:
    """The least-squares effects of types, with the variances of all that moves them.

    Attributes
    ----------
    design : numpy.ndarray
        Which types (placements, types) each placement has, centred.
    inverse : numpy.ndarray
        Pseudoinverse of design^T design (types, types): sets of one size leave one direction open.
    means : numpy.ndarray
        Loss of each placement, mean over seeds (placements,).
    effects : numpy.ndarray
        Of each type (types,), mean over seeds.
    noise, by_seed, spread : float
        Variances: of a placement's mean, of a type's effect with one seed, and of the true losses
        about the sums of effects.
    seeds : int
    """

    design: np.ndarray
    inverse: np.ndarray
    means: np.ndarray
    effects: np.ndarray
    noise: float
    by_seed: float
    spread: float
    seeds: int

    @classmethod
    def of(cls, design: np.ndarray, losses: np.ndarray, of_examples: float) -> "_Fit":
        """From which types (placements, types) have which losses (placements, seeds)."""
        placements, seeds = losses.shape
        centred = design - design.mean(axis=0)
        inverse = np.linalg.pinv(centred.T @ centred)
        rank = np.linalg.matrix_rank(centred)
        freedom = placements - 1 - rank
        each = losses - losses.mean(axis=0)
        effects = inverse @ centred.T @ each  # (types, seeds)
        left = each - centred @ effects
        between = left - left.mean(axis=1, keepdims=True)
        of_run = (between**2).sum() / (freedom * (seeds - 1))
        moved = effects - effects.mean(axis=1, keepdims=True)
        by_seed = (moved**2).sum() / (rank * (seeds - 1)) - of_run * np.trace(inverse) / rank
        noise = of_run / seeds + of_examples
        spread = (left.mean(axis=1) ** 2).sum() / freedom - noise
        return cls(
            design=centred,
            inverse=inverse,
            means=losses.mean(axis=1),
            effects=effects.mean(axis=1),
            noise=noise,
            by_seed=max(0.0, by_seed),
            spread=max(0.0, spread),
            seeds=seeds,
        )

    def drawn(self, draws: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Possible losses (draws, placements) and effects (draws, types) of all seeds."""
        of_these = self.effects + self.normal(draws, random) @ root_of(self.total * self.inverse).T
        losses = self.drawn_losses(of_these, random)
        # how far the effects of all seeds are from those of these seeds, by Student's t, as it is
        # estimated from a few of them; in the directions that the placements can tell apart
        known = self.inverse @ (self.design.T @ self.design)
        freedom = np.linalg.matrix_rank(self.design) * (self.seeds - 1)
        wider = np.sqrt(freedom / random.chisquare(freedom, size=(draws, 1)))
        root = root_of(self.by_seed / self.seeds * known)
        moved = wider * (self.normal(draws, random) @ root.T)
        return losses + moved @ self.design.T, of_these + moved

    def drawn_losses(self, effects: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Possible losses (draws, placements) with these seeds, given their effects."""
        draws, placements = len(effects), len(self.means)
        level = random.normal(self.means.mean(), np.sqrt(self.total / placements), (draws, 1))
        fitted = level + effects @ self.design.T
        weight = self.spread / self.total
        own = np.sqrt(weight * self.noise) * random.normal(size=(draws, placements))
        return fitted + weight * (self.means - fitted) + own

    @property
    def total(self) -> float:
        """Variance of a placement's mean about the sum of its types' effects."""
        return self.noise + self.spread

    def normal(self, draws: int, random: np.random.Generator) -> np.ndarray:
        return random.normal(size=(draws, len(self.effects)))


def root_of(covariance: np.ndarray) -> np.ndarray:
    """A matrix whose product with its transpose is a covariance, singular or not."""
    return np.linalg.cholesky(covariance + 1e-12 * np.eye(len(covariance)))


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
