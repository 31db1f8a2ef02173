"""Who has won a race, and how sure that is."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from plop_nb.experiments.races.jobs import Arm, Run
from plop_nb.stats import mean_interval


@dataclass(frozen=True)
class Standing:
    """What a race says of a placement: a row of its table.

    Attributes
    ----------
    placement : str
    lr : float
        The best of its rates.
    loss : float
        Mean validation loss over seeds; NaN for one that was not in the final.
    difference, low, high : float
        Its loss minus the winner's, paired by seed, with an interval from 2 seeds on.
    seeds : int
        Of the final.
    """

    placement: str
    lr: float
    loss: float = math.nan
    difference: float = math.nan
    low: float = math.nan
    high: float = math.nan
    seeds: int = 0


@dataclass(frozen=True)
class Verdict:
    """The standing of every placement, the winner first, and whether it is surely the best."""

    standings: tuple[Standing, ...]
    decided: bool


def verdict(
    ranked: Sequence[Arm], finalists: Sequence[Arm], runs: Sequence[Run], level: float = 0.95
) -> Verdict:
    """Who has won, by the finished runs of the final.

    The winner is compared with every other finalist, on the seeds that all of them have. The level
    is divided among these comparisons (Bonferroni): to choose the best of several takes no more of
    them (Hsu 1984, The Annals of Statistics 12, 1136).

    Parameters
    ----------
    ranked : sequence of Arm
        The best arm of each placement, by the rungs.
    finalists : sequence of Arm
        Those that have met in a final.
    runs : sequence of Run
        Of the final.
    level : float
        Coverage of all intervals together.

    Returns
    -------
    Verdict
        Without a final the order is that of `ranked`, and nothing is decided.
    """
    losses = _on_common_seeds(finalists, runs)
    order = sorted(losses, key=lambda arm: float(np.mean(losses[arm])))
    of_each = 1 - (1 - level) / max(1, len(order) - 1)
    in_final = [_compared(arm, losses[arm], losses[order[0]], of_each) for arm in order]
    names = [standing.placement for standing in in_final]
    others = [Standing(arm.placement, arm.lr) for arm in ranked if arm.placement not in names]
    beaten = [standing.low > 0 for standing in in_final[1:]]
    return Verdict((*in_final, *others), decided=bool(beaten) and all(beaten))


def _on_common_seeds(finalists: Sequence[Arm], runs: Sequence[Run]) -> Mapping[Arm, list[float]]:
    """Validation losses of each finalist, in the order of the seeds that all have; inf: diverged.

    Nothing where there is no such seed.
    """
    losses: dict[Arm, dict[int, float]] = {arm: {} for arm in finalists}
    for run in runs:
        if run.job.arm in losses:
            loss = math.inf if run.loss is None or math.isnan(run.loss) else run.loss
            losses[run.job.arm][run.job.seed] = loss
    seeds = sorted(set.intersection(*map(set, losses.values()))) if losses else []
    if not seeds:
        return {}
    return {arm: [own[seed] for seed in seeds] for arm, own in losses.items()}


def _compared(arm: Arm, losses: list[float], best: list[float], level: float) -> Standing:
    """A finalist beside the winner, which may be itself."""
    standing = Standing(arm.placement, arm.lr, float(np.mean(losses)), seeds=len(losses))
    if not np.isfinite([*losses, *best]).all():
        return standing
    gaps = np.subtract(losses, best)
    interval = {}
    if losses is not best and len(gaps) > 1:
        found = mean_interval(gaps, level=level)
        interval = {"low": found.low, "high": found.high}
    return replace(standing, difference=float(gaps.mean()), **interval)
