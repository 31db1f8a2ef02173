"""Record GRPO with six placements at equal parameters in data/results, for notebook 06.

    python notebooks/tools/record_grpo.py run --workers 2           two cores in five hours,
                                                                    resumable
    python notebooks/tools/record_grpo.py run --full --workers 10   longer: for a GPU
    python notebooks/tools/record_grpo.py collect [--full]          what is finished, as CSV files

First every placement is trained at all rates with the seeds for tuning, at further rates while its
best one is at the edge, and then at its best rate with the seeds for testing. The best rate is the
one after which the sums for validation are answered best. Sums for testing choose nothing.

Not run yet: the files of today's notebook 06 are of an earlier form of this script (128 trainings
at two rates), and `collect` replaces them.
"""

import argparse
import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from record import save, unrelated_texts

import plop_nb as plop
from plop_nb import experiments as ex
from plop_nb.experiments import grpo
from plop_nb.experiments.grids.cells import Cell, digest, finished_rows, run_cells
from plop_nb.placement import Placement

TASK = {"train": 60, "validation": 35, "test": 60}  # all sums that there are
WARM = {"steps": 10, "batch_size": 8, "right": 1.0}
LENGTH = 12  # tokens of a completion at most; the right ones have 7 or 8
RANK = 16  # of PLoP; the others get the rank that gives as many parameters; alpha is twice the rank
LABELS = ["PLoP", "PLoP, folded", "MLP", "attention", "query + value", "all"]
SETS = {
    "attention": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "MLP": ["gate_proj", "up_proj", "down_proj"],
    "query + value": ["q_proj", "v_proj"],
}
LAST = 5  # steps at the beginning and at the end of a curve that stand for it
MOST_RATES = 7


@dataclass(frozen=True)
class Plan:
    """How long to train, and with which rates and seeds."""

    steps: int
    prompts_per_step: int
    rates: tuple[float, ...]
    tuning: tuple[int, ...]  # seeds that choose the rate
    testing: tuple[int, ...]  # seeds that are compared


SMALL = Plan(
    steps=24,
    prompts_per_step=2,
    rates=(1e-4, 2e-4, 4e-4, 8e-4),
    tuning=(100, 101, 102),
    testing=tuple(range(8)),
)
FULL = dataclasses.replace(SMALL, steps=150, prompts_per_step=8)


@dataclass(frozen=True)
class Wanted:
    """One training."""

    label: str
    lr: float
    seed: int


# What to train


def wanted(plan, rows):
    """The trainings that come next, given the rows of what is finished; none at the end."""
    done = {(row["placement"], row["lr"], row["seed"]) for row in rows}
    rates = {}
    for label in LABELS:
        tried = {row["lr"] for row in rows if row["placement"] == label}
        rates[label] = sorted(tried | set(plan.rates))
    missing = [
        Wanted(label, lr, seed)
        for seed in plan.tuning
        for label in LABELS
        for lr in rates[label]
        if (label, lr, seed) not in done
    ]
    if missing:
        return missing
    best = {label: best_rate(rows, label, plan.tuning) for label in LABELS}
    for label in LABELS:
        further = beyond(best[label], rates[label])
        if further is not None:
            missing += [Wanted(label, further, seed) for seed in plan.tuning]
    if missing:
        return missing
    return [
        Wanted(label, best[label], seed)
        for seed in plan.testing
        for label in LABELS
        if (label, best[label], seed) not in done
    ]


def best_rate(rows, label, tuning):
    """The rate with the highest chance of a right answer on validation, over seeds for tuning."""
    runs = pd.DataFrame([r for r in rows if r["placement"] == label and r["seed"] in tuning])
    return float(runs.groupby("lr")["validation"].mean().idxmax())


def beyond(best, rates):
    """The next rate where the best one is at the edge; none where it is inside."""
    if len(rates) >= MOST_RATES:
        return None
    if best == max(rates):
        return 2 * best
    return best / 2 if best == min(rates) else None


# Training


class Worker:
    """The warmed-up model, the same in every process, and the placements on it."""

    def __init__(self, plan):
        self.sizes = {"steps": plan.steps, "prompts_per_step": plan.prompts_per_step}
        self.sizes["max_completion_length"] = LENGTH
        self.task = ex.digit_sums(**TASK)
        plain, self.tokenizer = plop.load_model(dtype="float32", progress=False)
        self.model = grpo.warm_up(plain, self.task, self.tokenizer, **WARM)
        self.unrelated = unrelated_texts(self.tokenizer)
        self.chosen = placements(self.model, self.task, self.tokenizer)
        self.ranks = ranks(self.chosen, self.model)
        self.before = self.judged(self.model)

    def judged(self, model):
        """How a model does on the sums, and on text that has nothing to do with them."""
        columns = {}
        for split in ("validation", "test"):
            found = ex.evaluate(
                model, self.task, self.tokenizer, split, accuracy=False, per_example=True
            )
            chances = np.exp(-np.array(found["losses"]))
            columns[split] = float(chances.mean())
            columns[f"{split}_accuracy"] = float(np.mean(found["exact"]))
            columns[f"{split}_chances"] = chances.tolist()
        other = ex.evaluate(model, self.unrelated, self.tokenizer, accuracy=False)
        return columns | {"unrelated": other["loss"]}

    def train(self, wanted):
        """Train once: the curve, how it does on held-out sums, and samples of what it writes."""
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
        after = self.judged(trained)
        written = grpo.samples(
            trained,
            self.task,
            self.tokenizer,
            max_completion_length=LENGTH,
            seed=wanted.seed,
        )
        return after | {
            "before": self.before["test"],
            "accuracy_before": self.before["test_accuracy"],
            "unrelated_before": self.before["unrelated"],
            "curve": frame.to_dict("list"),
            "samples": written.to_dict("list"),
        }


def placements(model, task, tokenizer):
    """{label: Placement} on the prompts of the task."""
    prompts = [problem["prompt"] for problem in task.train]
    scores = plop.nfn_scores(model, prompts, tokenizer, progress=False)
    folded = plop.nfn_scores(model, prompts, tokenizer, form="folded", progress=False)
    order = plop.by_type(scores)["type"].tolist()
    sets = SETS | {"PLoP": order[:3], "all": order}
    sets["PLoP, folded"] = plop.by_type(folded)["type"].tolist()[:3]
    return {label: Placement.of_types(scores, sets[label]) for label in LABELS}


def ranks(chosen, model):
    """{label: rank}, those that come nearest to the parameters of PLoP."""
    config = chosen["PLoP"].lora_config(model, r=RANK)
    budget = chosen["PLoP"].check(model, config)["trainable"].sum()
    return {label: ex.rank_for(placement, model, budget) for label, placement in chosen.items()}


def cell_of(wanted, plan):
    """A cell with a key of all that determines its result."""
    labels = {"placement": wanted.label, "lr": wanted.lr, "seed": wanted.seed}
    sizes = [plan.steps, plan.prompts_per_step, LENGTH]
    return Cell(digest([labels, sizes, WARM, RANK, TASK]), labels, wanted)


def load_worker(plan):
    """What a process keeps from one training to the next."""
    global worker
    torch.set_num_threads(1)
    worker = Worker(plan)


def train(job):
    """Train once, unless another process has, and say how it went."""
    wanted, plan, storage = job
    cells = [cell_of(wanted, plan)]
    options = {"study": "GRPO", "value": "validation", "direction": "maximize", "progress": False}
    rows = run_cells(cells, worker.train, storage=storage, **options)
    return wanted, [round(row["validation"], 3) for row in rows]


def run(storage, workers, minutes, plan):
    """Share the trainings out over processes; stop after so many minutes, to go on later."""
    end = time.time() + 60 * minutes
    context = torch.multiprocessing.get_context("spawn")
    with context.Pool(workers, load_worker, [plan]) as pool:
        while missing := wanted(plan, rows_of(storage)):
            results = pool.imap_unordered(train, [(one, plan, storage) for one in missing])
            for number in range(len(missing)):
                try:
                    told = results.next(timeout=max(1, end - time.time()))
                except torch.multiprocessing.TimeoutError:
                    print(f"stopped after {minutes} minutes: the same command goes on")
                    return
                print(
                    f"{time.strftime('%H:%M:%S')} {number + 1} of {len(missing)}: {told}",
                    flush=True,
                )


# What is recorded


def rows_of(storage):
    """The rows of what is finished."""
    return finished_rows(storage) if Path(storage).exists() else []


def collect(storage, plan, full):
    """grpo.csv (a row per step), grpo_runs.csv (per run), and others for problems and samples."""
    rows = sorted(rows_of(storage), key=place_in_files)
    curves = pd.concat([pd.DataFrame(row["curve"]) for row in rows])
    runs = pd.DataFrame([summary(row, plan) for row in rows])
    problems, written = [], []
    for row in rows:
        told = {name: row[name] for name in ("placement", "lr", "seed")}
        chances = " ".join(f"{chance:.3f}" for chance in row["test_chances"])
        problems.append(told | {"chances": chances})
        if row["seed"] == plan.testing[0]:
            written.append(pd.DataFrame(row["samples"]).assign(**told))
    head = {"seed": "column seed", "steps": plan.steps, "prompts a step": plan.prompts_per_step}
    head |= {"task": TASK, "warm-up": WARM}
    head["training"] = f"{runs['seconds'].sum() / 3600:.1f} hours, each run on one core"
    options = " --full" if full else ""
    command = f"python notebooks/tools/record_grpo.py run{options} --workers 2, then collect"
    head["command"] = command
    save(curves.round(4), "grpo.csv", **head)
    save(runs, "grpo_runs.csv", **head)
    save(pd.DataFrame(problems), "grpo_problems.csv", **head)
    if written:
        save(pd.concat(written), "grpo_samples.csv", **head)


def place_in_files(row):
    """Where a run stands in the files."""
    return LABELS.index(row["placement"]), row["lr"], row["seed"]


def summary(row, plan):
    """One run: its settings, its rewards at first and at last, and what it does to held-out text.

    `chance` is the mean probability of writing the right answer to a sum for testing, `accuracy`
    the share that greedy decoding writes.
    """
    curve = pd.DataFrame(row["curve"])
    columns = ["placement", "types", "r", "parameters", "lr", "seed"]
    return curve.iloc[0][columns].to_dict() | {
        "part": "tuning" if row["seed"] in plan.tuning else "testing",
        "reward_first": curve["answer"].head(LAST).mean(),
        "reward": curve["answer"].tail(LAST).mean(),
        "kl": curve["kl"].tail(LAST).mean(),
        "length": curve["completion_length"].tail(LAST).mean(),
        "validation": row["validation"],
        "chance_before": row["before"],
        "chance": row["test"],
        "accuracy_before": row["accuracy_before"],
        "accuracy": row["test_accuracy"],
        "forgotten": row["unrelated"] - row["unrelated_before"],
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
    folder.mkdir(parents=True, exist_ok=True)
    storage, plan = folder / "runs.journal", FULL if given.full else SMALL
    if given.what == "run":
        run(storage, given.workers, given.minutes, plan)
    else:
        collect(storage, plan, given.full)


if __name__ == "__main__":
    main()
