"""Record GRPO with eight placements at equal parameters in data/results, for notebook 06.

    python notebooks/tools/record_grpo.py run --workers 2           two cores in two hours,
                                                                    resumable
    python notebooks/tools/record_grpo.py run --full --workers 10   longer, with more rates and
                                                                    seeds: for a GPU
    python notebooks/tools/record_grpo.py collect [--full]          what is finished, as CSV files

Every placement is trained at every learning rate with every seed. The notebook shows each rate by
itself: with two rates every best one is at the edge.
"""

import argparse
import random
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from record import save

import plop_nb as plop
from plop_nb.experiments import digit_sums, grpo, rank_for
from plop_nb.experiments.grids.cells import Cell, digest, finished_rows, run_cells
from plop_nb.placement import Placement

TRAIN, TEST = 105, 50  # all sums of two one-digit numbers that there are
RANK = 16  # of PLoP; the others get the rank that gives as many parameters
SETS = {
    "attention": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "MLP": ["gate_proj", "up_proj", "down_proj"],
    "query + value": ["q_proj", "v_proj"],
}
LABELS = [
    "PLoP", "inverse", "attention", "MLP", "all", "query + value", "random 1", "random 2",
]  # fmt: skip
LAST = 5  # steps at the beginning and at the end of a curve that stand for it
WARM = {"steps": 6, "batch_size": 8}
SIZES = {"steps": 12, "prompts_per_step": 2, "max_completion_length": 12}
# seeds 0 to 2 were recorded and read first, then 3 to 7
GRID = {"lr": [3e-4, 1e-3], "seed": list(range(8))}
FULL_SIZES = {"steps": 150, "prompts_per_step": 8, "max_completion_length": 12}
FULL_GRID = {"lr": [1e-4, 3e-4, 1e-3], "seed": [0, 1, 2, 3, 4, 5]}


def placements(model, task, tokenizer):
    """({label: Placement}, {label: rank}) at equal parameters."""
    prompts = [problem["prompt"] for problem in task.train[:32]]
    scores = plop.nfn_scores(model, prompts, tokenizer, progress=False)
    order = plop.by_type(scores)["type"].tolist()
    sets = SETS | {"PLoP": order[:3], "inverse": order[-3:], "all": order}
    draw = random.Random(0)  # the sets of notebook 05
    for number in (1, 2):
        sets[f"random {number}"] = draw.sample(sorted(order), 3)
    chosen = {label: Placement.of_types(scores, sets[label]) for label in LABELS}
    config = chosen["PLoP"].lora_config(model, r=RANK)
    budget = chosen["PLoP"].check(model, config)["trainable"].sum()
    ranks = {label: rank_for(placement, model, budget) for label, placement in chosen.items()}
    return chosen, ranks


class Worker:
    """The warmed-up model, the same in every process, and the placements on it."""

    def __init__(self, sizes):
        self.sizes = sizes
        self.task = digit_sums(TRAIN, TEST)
        plain, self.tokenizer = plop.load_model(dtype="float32")
        self.model = grpo.warm_up(plain, self.task, self.tokenizer, **WARM)
        self.chosen, self.ranks = placements(self.model, self.task, self.tokenizer)

    def train(self, wanted):
        """Train once: the curve, accuracy and samples on test sums."""
        frame, trained = grpo.train(
            self.model,
            self.task,
            self.tokenizer,
            self.chosen[wanted.label],
            name=wanted.label,
            r=self.ranks[wanted.label],
            lr=wanted.lr,
            seed=wanted.seed,
            **self.sizes,
        )
        length = {"max_completion_length": self.sizes["max_completion_length"]}
        before = grpo.accuracy(self.model, self.task, self.tokenizer, **length)
        after = grpo.accuracy(trained, self.task, self.tokenizer, **length)
        written = grpo.samples(trained, self.task, self.tokenizer, seed=wanted.seed, **length)
        first, last = frame["reward"].head(LAST).mean(), frame["reward"].tail(LAST).mean()
        print(
            f"{wanted}: reward {first:.2f} to {last:.2f}, accuracy {before} to {after}", flush=True
        )
        return {
            "reward": last,
            "accuracy_before": before,
            "accuracy": after,
            "curve": frame.to_dict("list"),
            "samples": written.to_dict("list"),
        }


@dataclass(frozen=True)
class Wanted:
    """One training."""

    label: str
    lr: float
    seed: int


def cells_of(grid, sizes):
    """Seed by seed, each with a key of all that determines its result."""
    cells = []
    for seed, lr, label in product(grid["seed"], grid["lr"], LABELS):
        labels = {"placement": label, "lr": lr, "seed": seed}
        key = digest([labels, sizes, WARM, RANK, TRAIN, TEST])
        cells.append(Cell(key, labels, Wanted(label, lr, seed)))
    return cells


def work(storage, grid, sizes):
    """What one process does: all cells that no other has taken."""
    torch.set_num_threads(1)
    worker = Worker(sizes)
    run_cells(
        cells_of(grid, sizes),
        worker.train,
        storage=storage,
        study="GRPO",
        value="reward",
        direction="maximize",
        progress=False,
    )


def run(storage, workers, minutes, *, grid, sizes):
    """Share the cells out over processes; stop after so many minutes, to go on another time."""
    end = time.time() + 60 * minutes
    context = torch.multiprocessing.get_context("spawn")
    processes = []
    for _ in range(workers):
        process = context.Process(target=work, args=(storage, grid, sizes))
        process.start()
        processes.append(process)
    for process in processes:
        process.join(max(0, end - time.time()))
    running = [process for process in processes if process.is_alive()]
    for process in running:
        process.terminate()
        process.join()
    if running:
        print(f"stopped after {minutes} minutes: the same command goes on")
    elif any(process.exitcode for process in processes):
        raise SystemExit("a process has failed: the same command goes on")


def collect(storage, sizes, full):
    """grpo.csv (a row per step), grpo_runs.csv (per run), grpo_samples.csv (of the first seed)."""
    rows = sorted(finished_rows(storage), key=place_in_files)
    curves = pd.concat([pd.DataFrame(row["curve"]) for row in rows])
    runs = pd.DataFrame([{"task": "sums"} | summary(row) for row in rows])
    written = []
    for row in rows:
        if row["seed"] == 0:
            samples = pd.DataFrame(row["samples"])
            written.append(samples.assign(placement=row["placement"], lr=row["lr"]))
    head = {"seed": sorted(runs["seed"].unique().tolist()), **sizes, "warm-up": WARM}
    head["training"] = f"{runs['seconds'].sum() / 3600:.1f} hours, each run on one core"
    options = " --full" if full else ""
    command = f"python notebooks/tools/record_grpo.py run{options} --workers 2, then collect"
    head["command"] = command
    save(curves, "grpo.csv", **head)
    save(runs, "grpo_runs.csv", **head)
    save(pd.concat(written), "grpo_samples.csv", **head)


def place_in_files(row):
    """Where a run stands in the files."""
    return row["placement"], row["lr"], row["seed"]


def summary(row):
    """Of one run: mean reward of its first and last steps, accuracy before and after."""
    curve = pd.DataFrame(row["curve"])
    columns = ["placement", "types", "r", "parameters", "lr", "seed"]
    return curve.iloc[0][columns].to_dict() | {
        "reward_first": curve["reward"].head(LAST).mean(),
        "reward": curve["reward"].tail(LAST).mean(),
        "accuracy_before": row["accuracy_before"],
        "accuracy": row["accuracy"],
        "seconds": curve["seconds"].sum(),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["run", "collect"])
    parser.add_argument("--full", action="store_true")
    parser.add_argument(
        "--folder", type=Path, help="of unfinished work, build/grpo[_full] by default"
    )
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=600)
    given = parser.parse_args()
    folder = given.folder or Path("build/grpo_full" if given.full else "build/grpo")
    storage = folder / "runs.journal"
    sizes, grid = (FULL_SIZES, FULL_GRID) if given.full else (SIZES, GRID)
    if given.what == "run":
        run(storage, given.workers, given.minutes, grid=grid, sizes=sizes)
    else:
        collect(storage, sizes, given.full)


if __name__ == "__main__":
    main()
