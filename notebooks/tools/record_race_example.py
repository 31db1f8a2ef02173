"""Record one finished race for notebook 07: data/results/race_example.csv.

    python notebooks/tools/record_race_example.py     a few seconds

SmolLM2 on sums and differences of two numbers: PLoP's choice, the choice by the median over layers,
the largest maps and all maps, at equal parameters and two learning rates. The race's own code
decides, and looks its trainings up in the benchmark's record instead of doing them (as
`record_race.py` does). One half of the held-out problems judges the race; on the other half, its
test problems, its placements are judged afterwards.
"""

import numpy as np
import pandas as pd
from record import RESULTS, save
from record_race import GROUPS, Draw, Record, read

from plop_nb import experiments as ex
from plop_nb.experiments.races import Arm, Ladder
from plop_nb.experiments.races.jobs import Run
from plop_nb.experiments.races.result import RaceResult

MODEL, TASK = "SmolLM2-135M-Instruct", "short_sums"
PLACEMENTS = {
    "chosen": "down+up+v",
    "by the median": "o+up+v",
    "largest maps": "down+gate+up",
    "all": "all",
}
RATES = [1e-3, 2e-3]
RUNG, FINAL = 0, (1, 2)  # seeds
COLUMNS = ["placement", "types", "lr", "loss", "difference", "low", "high", "seeds"]
SIZES = ["r", "parameters"]


def raced(record: Record) -> tuple[RaceResult, Draw]:
    """A race that may cost as much as all its runs, and what it was given."""
    arms = tuple(Arm(name, lr) for name in PLACEMENTS.values() for lr in RATES)
    validation = np.arange(len(record.tokens)) % 2 == 0
    given = Draw(record, arms, [RUNG, *FINAL], [], validation)
    ladder = Ladder(
        arms=arms,
        steps=record.steps,
        seconds=float(len(arms) * 3 * record.steps),  # a step takes one
        seed=RUNG,
        seeds=FINAL,
        reduction=2,
    )
    runs: list[Run] = []
    while jobs := ladder.wanted(runs):
        runs += [given.look_up(job) for job in jobs]
    settings: dict[str, dict] = {name: {} for name in PLACEMENTS.values()}
    return RaceResult.of(ladder, runs, settings, level=0.95), given


def table_of(race: RaceResult, given: Draw) -> pd.DataFrame:
    """The race's own table, with its names for the placements, and the loss on test problems."""
    names = {types: name for name, types in PLACEMENTS.items()}
    table = race.table.rename(columns={"placement": "types"})
    table["placement"] = table["types"].map(names)
    arms = [Arm(row.types, row.lr) for row in table.itertuples()]
    tests = [given.mean(arm, list(FINAL), ~given.validation) for arm in arms]
    more = {"test_loss": tests, "decided": race.decided, "runs": len(race.runs)}
    own = table[COLUMNS].join(sizes(), on="types")
    return own.assign(**more, untrained_loss=untrained())


def sizes() -> pd.DataFrame:
    """Rank and parameters of the adapters of each placement in the record."""
    runs = ex.load_benchmark(RESULTS)
    own = runs[runs["group"].isin(GROUPS)].query("model == @MODEL and task == @TASK")
    return own.groupby("placement")[SIZES].first().astype(int)


def untrained() -> float:
    """The loss of the model without adapters, on all held-out problems."""
    losses = pd.read_csv(RESULTS / "benchmark_untrained.csv", comment="#")
    return losses.query("model == @MODEL and task == @TASK")["loss"].item()


def main() -> None:
    """Race, and write what came out."""
    race, given = raced(read(RESULTS, MODEL, TASK))
    print(race)
    command = "python notebooks/tools/record_race_example.py"
    about = {"task": TASK, "steps": given.record.steps, "problems": int(given.validation.sum())}
    save(table_of(race, given), "race_example.csv", command=command, **about)


if __name__ == "__main__":
    main()
