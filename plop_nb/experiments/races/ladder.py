"""The decisions of a race, apart from all training: which jobs come next, and who has won.

Everything follows from the runs that are finished, so that several processes, a later call, and a
replay of recorded runs decide alike.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from plop_nb.experiments.races.jobs import (
    Arm,
    Job,
    Prices,
    Run,
    best_of_each,
    finished,
    judged,
    spent,
)
from plop_nb.experiments.races.verdict import Verdict, verdict

LONGEST_RUNG = 2  # half of all steps; on the way down to it no arm is evaluated
SHORTEST_RUNG = 16  # below 1 / 16 of all steps the rate still warms up
FEWEST_STEPS = 4  # of a rung, whose former half is not counted
MOST_FINALISTS = 4
FINALISTS, SEEDS = 2, 3  # of the least final that is kept seconds for
ROUNDING = 1e-6  # seconds


@dataclass(frozen=True)
class Plan:
    """What a budget buys: the steps of each rung, how many arms run it, and a final."""

    rungs: tuple[int, ...]
    arms: tuple[int, ...]
    finalists: int
    seeds: int
    steps: int  # of a run in the final
    seconds: float  # of all together

    def __str__(self) -> str:
        pairs = zip(self.arms, self.rungs, strict=True)
        climb = ", then ".join(f"{arms} arms for {until} steps" for arms, until in pairs)
        final = f"{self.finalists} placements with {self.seeds} seeds for {self.steps} steps"
        final = f"a final of {final}" if self.seeds else "no final"
        return f"{climb}, then {final}: about {self.seconds:.0f} seconds"


@dataclass(frozen=True)
class Climb:
    """How far the finished runs lead up the rungs.

    Attributes
    ----------
    missing : list of Job
        Jobs of the rung that the race is at; nothing where all rungs are finished.
    ranked : list of Arm
        The best first: those that came further, then by their loss on the last rung they finished.
        Arms that diverged are left out.
    """

    missing: list[Job]
    ranked: list[Arm]


@dataclass(frozen=True)
class Ladder:
    """Successive halving of arms on their training loss, then a final of the best placements.

    Attributes
    ----------
    arms : tuple of Arm
        Of two placements at least. The first also measures the time of all.
    steps : int
        Of a full run, 8 or more.
    seconds : float
        The budget.
    seed : int
        Of all runs on the rungs: the same examples in the same order.
    seeds : tuple of int
        Of the final; as many of them as the budget buys.
    reduction : int
        One in so many arms goes on to the next rung, which has so many times the steps.
    """

    arms: tuple[Arm, ...]
    steps: int
    seconds: float
    seed: int = 0
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    reduction: int = 4

    @property
    def all_rungs(self) -> tuple[int, ...]:
        """The steps of every rung that there may be, the shortest first."""
        rungs, share = [self.steps // LONGEST_RUNG], LONGEST_RUNG * self.reduction
        while share <= SHORTEST_RUNG and self.steps // share >= FEWEST_STEPS:
            rungs.insert(0, self.steps // share)
            share *= self.reduction
        return tuple(rungs)

    @property
    def probe(self) -> Job:
        """The job that comes first, and measures the time of a step and of an evaluation."""
        return Job(self.arms[0], self.seed, self.all_rungs[0], evaluated=True)

    @property
    def all_jobs(self) -> list[Job]:
        """Every job that there may be, whatever the budget."""
        jobs = [self.probe]
        for arm in self.arms:
            jobs += [Job(arm, self.seed, until) for until in self.all_rungs]
        return jobs + self._jobs_of_final(self.arms, len(self.seeds))

    def begun(self, runs: Sequence[Run]) -> bool:
        """Whether the first run is finished, which everything is planned by."""
        return bool(finished([self.probe], runs))

    def wanted(self, runs: Sequence[Run], running: Sequence[Job] = ()) -> list[Job]:
        """The jobs to be done now, in their order, as far as the budget goes.

        Parameters
        ----------
        runs : sequence of Run
            All that is finished.
        running : sequence of Job
            What other processes are at: it is left out, and its seconds are set aside.

        Returns
        -------
        list of Job
            Nothing where the race is over, or waits for what is running.

        Raises
        ------
        ValueError
            The budget is too small for the first rung, or all arms diverged.
        """
        if not self.begun(runs):
            return [] if self.probe in running else [self.probe]
        stage = self.climb(runs).missing or self.final(runs)
        taken = {*finished(stage, runs), *running}
        prices = Prices(runs)
        left = self.seconds - spent(runs) - prices.total(running)
        jobs: list[Job] = []
        for job in [job for job in stage if job not in taken]:
            left -= prices.of(job)
            if left < -ROUNDING:
                break  # no cheaper job overtakes: the seeds of a final stay complete
            jobs.append(job)
        return jobs

    def plan(self, runs: Sequence[Run]) -> Plan:
        """What the budget buys, by the time that the first run took.

        The most thorough rungs that leave enough for a final: the longer the first of them is, the
        less an arm is judged by its beginning.

        Raises
        ------
        ValueError
            It does not buy the shortest rung for all arms: says what would.
        """
        probe = finished([self.probe], runs)[self.probe]
        prices = Prices([probe])
        most = [self.arms[0]] * self._placements(FINALISTS)
        final = prices.total(self._jobs_of_final(most, min(SEEDS, len(self.seeds))))
        for rungs in self._ladders():
            least = probe.seconds + self._price_of(rungs, prices)
            if least + final <= self.seconds:
                break
        if least > self.seconds:
            raise ValueError(
                f"seconds={self.seconds:g} is too little: {rungs[0]} of {self.steps} steps for "
                f"each of {len(self.arms)} arms take about {math.ceil(least)} seconds, and with a "
                f"good final {math.ceil(least + final)}. Give more seconds, fewer placements or "
                f"rates, or fewer steps"
            )
        best = [self.arms[0]] * self._placements(MOST_FINALISTS)
        finalists, seeds = self._size_of_final(best, self.seconds - least, prices)
        least += prices.total(self._jobs_of_final(best[:finalists], seeds))
        counts = tuple(self._count(number) for number in range(len(rungs)))
        return Plan(
            rungs=rungs,
            arms=counts,
            finalists=finalists,
            seeds=seeds,
            steps=self.steps,
            seconds=least,
        )

    def climb(self, runs: Sequence[Run]) -> Climb:
        """How far the finished runs lead up the rungs; ValueError where all arms diverged."""
        going = list(self.arms)
        ranked: list[Arm] = []
        behind: list[Arm] = []
        for number, until in enumerate(self.plan(runs).rungs):
            jobs = [Job(arm, self.seed, until) for arm in going]
            done = finished(jobs, runs)
            order = _ranked(done)
            if len(done) < len(jobs):
                return Climb(jobs, ranked or order)
            if not order:
                raise ValueError(
                    f"all arms diverged within {until} steps: give lower rates than "
                    f"{min(arm.lr for arm in self.arms):g}"
                )
            ranked = order + behind
            going = self._going_on(order, self._count(number + 1))
            behind = [arm for arm in ranked if arm not in going]
        return Climb([], ranked)

    def final(self, runs: Sequence[Run]) -> list[Job]:
        """The jobs of the final, seed by seed; none as long as the rungs are not finished.

        How many seeds there are is said before it begins, by time alone: who looked at the results
        again and again until they are clear would find too many of them clear.
        """
        climb = self.climb(runs)
        if climb.missing:
            return []
        before = [run for run in runs if run.job.until < self.steps]
        best = best_of_each(climb.ranked, MOST_FINALISTS)
        finalists, seeds = self._size_of_final(best, self.seconds - spent(before), Prices(before))
        return self._jobs_of_final(best[:finalists], seeds)

    def verdict(self, runs: Sequence[Run], level: float = 0.95) -> Verdict:
        """Who has won, by the finished runs: see `verdict.verdict`."""
        ranked = best_of_each([*self.climb(runs).ranked, *self.arms], len(self.arms))
        final = self.final(runs)
        finalists = list(dict.fromkeys(job.arm for job in final))
        return verdict(ranked, finalists, list(finished(final, runs).values()), level)

    def _ladders(self) -> list[tuple[int, ...]]:
        """Rungs to choose from, the most thorough first; the last one is the cheapest."""
        rungs = self.all_rungs
        upper = [rungs[start:] for start in reversed(range(len(rungs)))]
        return upper + [rungs[:stop] for stop in reversed(range(1, len(rungs)))]

    def _placements(self, most: int) -> int:
        """How many placements there are, up to `most`."""
        return len(best_of_each(self.arms, most))

    def _count(self, number: int) -> int:
        """How many arms run a rung, counted from 0."""
        if number == 0:
            return len(self.arms)
        share = math.ceil(len(self.arms) / self.reduction**number)
        return max(share, self._placements(MOST_FINALISTS))

    def _going_on(self, order: Sequence[Arm], count: int) -> list[Arm]:
        """The best arms, among them one of each placement that may come into the final."""
        chosen = best_of_each(order, MOST_FINALISTS)
        rest = [arm for arm in order if arm not in chosen]
        return chosen + rest[: count - len(chosen)]

    def _price_of(self, rungs: Sequence[int], prices: Prices) -> float:
        """Seconds of rungs, without what the first run has done of them."""
        jobs = []
        for number, until in enumerate(rungs):
            jobs += [Job(self.arms[0], self.seed, until)] * self._count(number)
        done = Job(self.arms[0], self.seed, self.probe.until)
        if done in jobs:
            jobs.remove(done)
        return prices.total(jobs)

    def _jobs_of_final(self, arms: Sequence[Arm], seeds: int) -> list[Job]:
        jobs = []
        for seed in self.seeds[:seeds]:
            jobs += [Job(arm, seed, self.steps, evaluated=True) for arm in arms]
        return jobs

    def _size_of_final(self, best: Sequence[Arm], left: float, prices: Prices) -> tuple[int, int]:
        """(placements, seeds): as many placements as get good seeds, then more seeds."""
        for finalists in range(len(best), 1, -1):
            once = prices.total(self._jobs_of_final(best[:finalists], 1))
            seeds = len(self.seeds)
            while seeds > 0 and seeds * once > left + ROUNDING:
                seeds -= 1
            if seeds >= min(SEEDS, len(self.seeds)) or finalists == 2:
                return finalists, seeds
        return len(best), 0  # one placement alone, as the others diverged


def climbed(ladder: Ladder, train: Callable[[Job], Run]) -> list[Run]:
    """All runs of a race in one process; `train` does a job, or looks it up in a record."""
    runs: list[Run] = []
    while jobs := ladder.wanted(runs):
        runs.append(train(jobs[0]))
    return runs


def _ranked(done: Mapping[Job, Run]) -> list[Arm]:
    """The arms of finished jobs, the best first, without those that diverged."""
    scores = {job.arm: judged(run.losses, job.until) for job, run in done.items()}
    sound = [arm for arm, score in scores.items() if math.isfinite(score)]
    return sorted(sound, key=scores.__getitem__)
