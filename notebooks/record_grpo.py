"""Record GRPO with eight placements at equal parameters in data/results, for notebook 06.

    python notebooks/record_grpo.py run --workers 2           two cores in two hours, resumable
    python notebooks/record_grpo.py run --full --workers 10   longer, with more rates and seeds: for a GPU
    python notebooks/record_grpo.py collect [--full]          what is finished, as CSV files

Every placement is trained at every learning rate with every seed. The notebook then takes for each seed the
rate that was best on the other seeds: no seed chooses its own.
"""

import argparse
import json
import random
import time
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from record import save

import plop_nb as plop
from plop_nb import finetune as ft
from plop_nb import grpo
from plop_nb.placement import Placement

TRAIN, TEST = 105, 50  # all sums of two one-digit numbers that there are
RANK = 16  # of PLoP; the others get the rank that gives as many parameters
LABELS = ["PLoP", "inverse", "attention", "MLP", "all", "query + value", "random 1", "random 2"]
LAST = 5  # steps at the beginning and at the end of a curve that stand for it
WARM = {"steps": 6, "batch_size": 8}
SIZES = {"steps": 12, "prompts_per_step": 2, "max_completion_length": 12}
GRID = {"lr": [3e-4, 1e-3], "seed": list(range(8))}  # 0 to 2 were recorded and read first, then 3 to 7
FULL_SIZES = {"steps": 150, "prompts_per_step": 8, "max_completion_length": 12}
FULL_GRID = {"lr": [1e-4, 3e-4, 1e-3], "seed": [0, 1, 2, 3, 4, 5]}


def placements(model, tokenizer, problems):
    """({label: Placement}, {label: rank}) at equal parameters."""
    scores = plop.nfn_scores(model, [p["prompt"] for p in problems[:32]], tokenizer, progress=False)
    order = plop.by_type(scores)["type"].tolist()
    sets = {"PLoP": order[:3], "inverse": order[-3:], "attention": ["q_proj", "k_proj", "v_proj", "o_proj"],
            "MLP": ["gate_proj", "up_proj", "down_proj"], "all": order, "query + value": ["q_proj", "v_proj"]}  # fmt: skip
    draw = random.Random(0)  # the sets of notebook 05
    sets |= {f"random {number}": draw.sample(sorted(order), 3) for number in (1, 2)}
    chosen = {label: Placement.of_types(scores, sets[label]) for label in LABELS}
    config = chosen["PLoP"].lora_config(model, r=RANK)
    budget = chosen["PLoP"].check(model, config)["trainable"].sum()
    return chosen, {label: ft.rank_for(placement, model, budget) for label, placement in chosen.items()}


def loaded(folder, sizes):
    """What a process keeps from one run to the next; every one makes the same warmed-up model."""
    global model, tokenizer, train, test, chosen, ranks, settings, file
    torch.set_num_threads(1)
    plain, tokenizer = plop.load_model(dtype="float32")
    train, test = grpo.sums(TRAIN, TEST)
    model = grpo.warm_up(plain, tokenizer, train, **WARM)
    chosen, ranks = placements(model, tokenizer, train)
    settings, file = sizes, folder / "runs.jsonl"


def run_one(cell):
    """Train once, and keep it as a line: the curve, accuracy and samples on test sums."""
    label, lr, seed = cell
    length = settings["max_completion_length"]
    frame, trained = grpo.train(
        model, tokenizer, train, chosen[label], name=label, r=ranks[label], lr=lr, seed=seed, **settings
    )
    accuracy = {when: grpo.accuracy(m, tokenizer, test, max_completion_length=length)
                for when, m in {"accuracy_before": model, "accuracy": trained}.items()}  # fmt: skip
    written = grpo.samples(trained, tokenizer, test, n=8, max_completion_length=length, seed=seed)
    row = {"cell": cell, "curve": frame.to_dict("list"), "samples": written.to_dict("list"), **accuracy}
    with file.open("ab", buffering=0) as lines:  # a single write: lines of several processes do not mix
        lines.write(json.dumps(row, default=lambda x: x.item()).encode() + b"\n")
    return f"{cell}: reward {frame['reward'].head(LAST).mean():.2f} to {frame['reward'].tail(LAST).mean():.2f}, {accuracy}"


def finished(folder):
    file = folder / "runs.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def run(folder, workers, minutes, grid, sizes):
    """All cells that are not finished, seed by seed, shared out over processes."""
    folder.mkdir(parents=True, exist_ok=True)
    end = time.time() + 60 * minutes
    done = {tuple(row["cell"]) for row in finished(folder)}
    cells = [(label, lr, seed) for seed, lr, label in product(grid["seed"], grid["lr"], LABELS)]
    cells = [cell for cell in cells if cell not in done]
    with torch.multiprocessing.get_context("spawn").Pool(workers, loaded, [folder, sizes]) as pool:
        results = pool.imap_unordered(run_one, cells)
        try:
            for number in range(len(cells)):
                print(f"{number + 1} of {len(cells)}: {results.next(timeout=end - time.time())}", flush=True)
        except torch.multiprocessing.TimeoutError:
            print(f"stopped after {minutes} minutes: the same command goes on")
            pool.terminate()


def collect(folder, sizes, full):
    """grpo.csv (a row per step), grpo_runs.csv (a row per run), grpo_samples.csv (of the first seed)."""
    rows = sorted(finished(folder), key=lambda row: row["cell"])
    curves = pd.concat([pd.DataFrame(row["curve"]) for row in rows])
    runs = pd.DataFrame([{"task": "sums"} | summary(row) for row in rows])
    written = [pd.DataFrame(row["samples"]).assign(placement=row["cell"][0], lr=row["cell"][1]) for row in rows
               if row["cell"][2] == 0]  # fmt: skip
    head = {"seed": sorted(runs["seed"].unique().tolist()), **sizes, "warm-up": WARM}
    head["training"] = f"{runs['seconds'].sum() / 3600:.1f} hours, each run on one core"
    head["command"] = f"python notebooks/record_grpo.py run{' --full' if full else ''} --workers 2, then collect"
    save(curves, "grpo.csv", **head)
    save(runs, "grpo_runs.csv", **head)
    save(pd.concat(written), "grpo_samples.csv", **head)


def summary(row):
    """Of one run: mean reward of its first and last steps, accuracy on test sums before and after."""
    curve = pd.DataFrame(row["curve"])
    run = curve.iloc[0][["placement", "types", "r", "parameters", "lr", "seed"]].to_dict()
    run |= {"reward_first": curve["reward"].head(LAST).mean(), "reward": curve["reward"].tail(LAST).mean()}
    return run | {k: row[k] for k in ("accuracy_before", "accuracy")} | {"seconds": curve["seconds"].sum()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "collect"])
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--folder", type=Path, help="of unfinished work, build/grpo[_full] by default")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=600)
    given = parser.parse_args()
    folder = given.folder or Path("build/grpo_full" if given.full else "build/grpo")
    sizes, grid = (FULL_SIZES, FULL_GRID) if given.full else (SIZES, GRID)
    if given.what == "run":
        run(folder, given.workers, given.minutes, grid, sizes)
    else:
        collect(folder, sizes, given.full)


if __name__ == "__main__":
    main()
