"""What a race is made of: arms, the jobs to be done on them, finished runs, and what jobs cost."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True)
class Arm:
    """A placement with a learning rate."""

    placement: str
    lr: float


@dataclass(frozen=True)
class Job:
    """A training that is wanted: up to which step, and whether it is evaluated there."""

    arm: Arm
    seed: int
    until: int
    evaluated: bool = False


@dataclass(frozen=True)
class Run:
    """A job that is done.

    Attributes
    ----------
    job : Job
    losses : tuple of float
        Training loss of every step up to `job.until`.
    loss : float or None
        On the validation split where the job is evaluated; not finite where it diverged.
    start, training, evaluation : float
        Seconds before the first step, of all steps, and after the last one.
    """

    job: Job
    losses: tuple[float, ...]
    loss: float | None = None
    start: float = 0.0
    training: float = 0.0
    evaluation: float = 0.0

    @property
    def seconds(self) -> float:
        return self.start + self.training + self.evaluation


def finished(jobs: Iterable[Job], runs: Iterable[Run]) -> dict[Job, Run]:
    """The jobs that are done, each with its run: a longer one tells of its beginning too."""
    exact = {run.job: run for run in runs}
    longest: dict[tuple[Arm, int], Run] = {}
    for run in sorted(exact.values(), key=lambda run: run.job.until):
        longest[run.job.arm, run.job.seed] = run
    done = {}
    for job in jobs:
        longer = longest.get((job.arm, job.seed))
        if job in exact:
            done[job] = exact[job]
        elif longer is not None and longer.job.until >= job.until and not job.evaluated:
            done[job] = longer
    return done


def spent(runs: Iterable[Run]) -> float:
    """Seconds that runs took, one after another."""
    return sum(run.seconds for run in runs)


def judged(losses: Sequence[float], until: int) -> float:
    """The mean of the latter half of the first `until` training losses; inf if it diverged.

    The former half tells how fast the rate warms up, and hides what comes of it.
    """
    mean = fmean(losses[until // 2 : until])
    return mean if math.isfinite(mean) else math.inf


def best_of_each(ranked: Sequence[Arm], most: int) -> list[Arm]:
    """The best arm of each of the best placements, from arms of which the best comes first."""
    best: dict[str, Arm] = {}
    for arm in ranked:
        best.setdefault(arm.placement, arm)
    return list(best.values())[:most]


class Prices:
    """Seconds that jobs will take, by those that runs took; one of these was evaluated."""

    def __init__(self, runs: Sequence[Run]) -> None:
        evaluated = [run.evaluation for run in runs if run.job.evaluated]
        self._start = fmean([run.start for run in runs])
        self._evaluation = fmean(evaluated)
        seconds: dict[str, float] = defaultdict(float)
        steps: dict[str, int] = defaultdict(int)
        for run in runs:
            seconds[run.job.arm.placement] += run.training
            steps[run.job.arm.placement] += run.job.until
        self._step = {name: seconds[name] / steps[name] for name in steps}
        self._slowest = max(self._step.values())

    def of(self, job: Job) -> float:
        """A step of a placement without a run counts as long as the slowest of the others."""
        step = self._step.get(job.arm.placement, self._slowest)
        return self._start + step * job.until + self._evaluation * job.evaluated

    def total(self, jobs: Iterable[Job]) -> float:
        """Of all jobs, one after another."""
        return sum(self.of(job) for job in jobs)
