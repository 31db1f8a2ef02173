"""Replay races on the benchmark's record: data/results/race.csv, for notebook 05.

    python notebooks/tools/record_race.py                     a minute for each hundred draws
    python notebooks/tools/record_race.py --draws 20 --tasks spelling

A draw takes some of the placements in any order, some of the seeds for the race, and one half of
the held-out problems to validate on. The race's own code then decides, and looks its runs up in the
record instead of training. What it chose is judged on the other half of the problems, with the
seeds that it has not seen: 0 is the best of the placements, each at its own best rate, and 1 the
worst.

Beside it: a placement at random, at its own best rate; a grid of the same cost, with one seed; and
the whole grid with the seeds of the race, which says how well the unseen seeds can be foreseen.
"""

import argparse
import itertools
import math
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from record import RESULTS, save

from plop_nb import experiments as ex
from plop_nb.experiments.races import Arm, Ladder
from plop_nb.experiments.races.jobs import Run

GROUPS = ["single", "fixed", "triple"]  # of the placements in the record
SIZES = [7, 35]  # placements in a race
SHARES = [0.05, 0.1, 0.2, 0.4]  # of what the whole grid costs
REDUCTIONS = [2, 3, 4]
GRID_SEEDS = 3  # of the whole grid
WITHIN = [0.05, 0.1, 0.2]  # of the distance from the best to the worst
TOLD_BY = ["placement", "lr", "seed"]


# The record


@dataclass(frozen=True)
class Record:
    """The runs of a model on a task: all placements at the same rates and seeds.

    Attributes
    ----------
    placements, rates, seeds : list
    curves : dict
        Training loss of each step, by (placement, lr, seed).
    sums : dict
        Summed loss of each held-out problem (nats; inf: it diverged), by (placement, lr, seed).
    tokens : numpy.ndarray
        Of each held-out problem.
    """

    placements: list[str]
    rates: list[float]
    seeds: list[int]
    curves: dict[tuple, list[float]]
    sums: dict[tuple, np.ndarray]
    tokens: np.ndarray

    @property
    def steps(self) -> int:
        return min(len(curve) for curve in self.curves.values())

    def loss(self, key: tuple, half: np.ndarray) -> float:
        """Mean loss of a run (nats per token) on a half of the problems, a mask."""
        return float(self.sums[key][half].sum() / self.tokens[half].sum())


def read(folder: Path, model: str, task: str) -> Record:
    """What is recorded of a model on a task: the largest grid without holes."""
    runs = ex.load_benchmark(folder).query("model == @model and task == @task and group in @GROUPS")
    placements, rates, seeds = largest_grid(runs)
    if min(len(placements), len(seeds)) < 2:
        raise ValueError(f"{task}: {len(placements)} placements with the same rates and seeds")
    curves = pd.read_csv(folder / "benchmark_curves.csv.gz", comment="#")
    curves = curves.query("model == @model and task == @task").sort_values("step")
    sums = {tuple(row[name] for name in TOLD_BY): row["losses"] for row in runs.to_dict("records")}
    return Record(
        placements=placements,
        rates=rates,
        seeds=seeds,
        curves=curves.groupby(TOLD_BY)["train_loss"].apply(list).to_dict(),
        sums=sums,
        tokens=runs["tokens"].iloc[0],
    )


def largest_grid(runs):
    """(placements, rates, seeds): of the grids without holes, the one with the most runs.

    It has all seeds, and two rates or more.
    """
    seeds = sorted(runs["seed"].unique())
    complete = runs.groupby(["placement", "lr"]).filter(lambda own: len(own) == len(seeds))
    names = {lr: set(own["placement"]) for lr, own in complete.groupby("lr")}
    grids = [([], [])]
    for count in range(2, len(names) + 1):
        for rates in itertools.combinations(names, count):
            common = set.intersection(*[names[lr] for lr in rates])
            grids.append((sorted(common), list(rates)))
    placements, rates = max(grids, key=lambda grid: len(grid[0]) * len(grid[1]))
    return placements, rates, seeds


# One draw


@dataclass(frozen=True)
class Draw:
    """What a race is given, and what it is judged by."""

    record: Record
    arms: tuple[Arm, ...]
    seeds: list[int]  # of the race; the first is that of its rungs
    unseen: list[int]
    validation: np.ndarray  # which of the problems

    def chosen(self, share: float, reduction: int) -> "Choice":
        """What the race chooses with a share of what the whole grid costs."""
        steps = self.record.steps
        ladder = Ladder(
            arms=self.arms,
            steps=steps,
            seconds=share * len(self.arms) * GRID_SEEDS * steps,  # a step takes one
            seed=self.seeds[0],
            seeds=tuple(self.seeds[1:] if len(self.seeds) > 2 else self.seeds),
            reduction=reduction,
        )
        runs: list[Run] = []
        while jobs := ladder.wanted(runs):
            runs += [self.look_up(job) for job in jobs]
        found = ladder.verdict(runs)
        best = Arm(found.standings[0].placement, found.standings[0].lr)
        return Choice(best, sum(run.job.until for run in runs) / steps, found.decided)

    def look_up(self, job) -> Run:
        """A run, from the record."""
        key = (job.arm.placement, job.arm.lr, job.seed)
        loss = self.record.loss(key, self.validation) if job.evaluated else None
        losses = tuple(self.record.curves[key][: job.until])
        return Run(job, losses, loss, training=float(job.until))

    def of_grid(self, runs: float, draw: random.Random) -> Arm:
        """The best of as many runs with one seed, of placements at random, at all rates."""
        names = names_of(self.arms)
        count = min(len(names), max(1, int(runs / len(self.record.rates))))
        tried = draw.sample(names, count)
        arms = [arm for arm in self.arms if arm.placement in tried]
        return min(arms, key=lambda arm: self.mean(arm, self.seeds[:1], self.validation))

    def of_whole_grid(self) -> Arm:
        """The best of all runs with the seeds of the race."""
        return min(self.arms, key=lambda arm: self.mean(arm, self.seeds, self.validation))

    def mean(self, arm: Arm, seeds: list[int], half: np.ndarray) -> float:
        """Mean loss of an arm over seeds; inf where one diverged."""
        keys = [(arm.placement, arm.lr, seed) for seed in seeds]
        return float(np.mean([self.record.loss(key, half) for key in keys]))

    def truth(self) -> dict[Arm, float]:
        """Regret of every arm on unseen problems and seeds, 0 to 1 (also for what is worse)."""
        losses = {arm: self.mean(arm, self.unseen, ~self.validation) for arm in self.arms}
        best_arms = [losses[arm] for arm in self.tuned().values()]
        low, high = min(best_arms), max(best_arms)
        return {arm: min(1.0, (loss - low) / (high - low)) for arm, loss in losses.items()}

    def tuned(self) -> dict[str, Arm]:
        """The best rate of every placement, by the validation loss with all seeds."""
        best = {}
        for name in names_of(self.arms):
            own = [arm for arm in self.arms if arm.placement == name]
            seeds = self.seeds + self.unseen
            best[name] = min(own, key=lambda arm: self.mean(arm, seeds, self.validation))
        return best


@dataclass(frozen=True)
class Choice:
    """The arm that a race has chosen, what it cost in full runs, and whether it was sure."""

    arm: Arm
    runs: float
    decided: bool


def names_of(arms):
    return list(dict.fromkeys(arm.placement for arm in arms))


def drawn(record: Record, size: int, draw: random.Random) -> Draw:
    """Placements, seeds and problems at random."""
    names = draw.sample(record.placements, size)
    seeds = draw.sample(record.seeds, len(record.seeds))
    held_back = max(1, len(seeds) // 2)
    order = draw.sample(range(len(record.tokens)), len(record.tokens))
    validation = np.zeros(len(order), dtype=bool)
    validation[order[: len(order) // 2]] = True
    arms = tuple(Arm(name, lr) for name in names for lr in record.rates)
    return Draw(record, arms, seeds[held_back:], seeds[:held_back], validation)


# Many draws


def replayed(record: Record, draws: int) -> pd.DataFrame:
    """One row a size, share, reduction and way to choose: means over draws."""
    found = []
    for size in sorted({min(size, len(record.placements)) for size in SIZES}):
        for number in range(draws):
            draw = random.Random(f"{size} {number}")
            found += of_draw(drawn(record, size, draw), draw)
    table = pd.DataFrame(found)
    groups = table.groupby(["placements", "share", "reduction", "way"], sort=False, dropna=False)
    means = groups[["cost", "regret", "decided", "regret_if_decided"]].mean()
    for most in WITHIN:
        means[f"within_{most:g}"] = groups["regret"].apply(
            lambda own, most=most: (own <= most).mean()
        )
    return means.assign(draws=groups.size()).reset_index()


def of_draw(one: Draw, draw: random.Random) -> list[dict]:
    """Rows of a draw: the race, the grid of its cost, and a placement at random."""
    truth, found = one.truth(), []
    whole = len(one.arms) * GRID_SEEDS
    about = {"placements": len(names_of(one.arms))}
    for share in SHARES:
        for reduction in REDUCTIONS:
            try:
                choice = one.chosen(share, reduction)
            except ValueError:  # too little for the first rung
                continue
            same = about | {"share": share, "reduction": reduction, "cost": choice.runs / whole}
            regret = truth[choice.arm]
            sure = {"decided": choice.decided}
            sure["regret_if_decided"] = regret if choice.decided else math.nan
            by_grid = truth[one.of_grid(choice.runs, draw)]
            found.append(same | {"way": "race", "regret": regret} | sure)
            found.append(same | {"way": "grid of the same cost", "regret": by_grid})
    about |= {"share": math.nan}
    at_random = truth[draw.choice(list(one.tuned().values()))]
    found.append(about | {"way": "at random", "cost": 0.0, "regret": at_random})
    best, cost = truth[one.of_whole_grid()], len(one.seeds) / GRID_SEEDS
    found.append(about | {"way": "the whole grid", "cost": cost, "regret": best})
    return found


def main():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--model", default="SmolLM2-135M-Instruct")
    parser.add_argument("--tasks", nargs="+", help="all of the record by default")
    parser.add_argument("--draws", type=int, default=100)
    given = parser.parse_args()
    runs = ex.load_benchmark(RESULTS).query("model == @given.model and group in @GROUPS")
    tasks = given.tasks or sorted(runs["task"].unique())
    parts = []
    for task in tasks:
        try:
            record = read(RESULTS, given.model, task)
        except ValueError as too_few:
            print(too_few)
            continue
        table = replayed(record, given.draws)
        parts.append(table.assign(model=given.model, task=task, seeds=len(record.seeds)))
    if not parts:
        raise SystemExit("nothing to replay yet: record more seeds with record_benchmark.py")
    table = pd.concat(parts).round(4)
    first = ["model", "task", "seeds"]
    table = table[first + [name for name in table if name not in first]]
    command = f"python notebooks/tools/record_race.py --draws {given.draws}"
    if given.tasks:
        command += f" --tasks {' '.join(given.tasks)}"
    save(table, "race.csv", command=command)


if __name__ == "__main__":
    main()
