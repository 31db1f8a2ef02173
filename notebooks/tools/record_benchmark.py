"""Record the placement benchmark of notebook 05 in data/results.

    python notebooks/tools/record_benchmark.py plan                which placements
    python notebooks/tools/record_benchmark.py run --workers 2     train them (two cores: two hours
                                                                   a task and pass, resumable)
    python notebooks/tools/record_benchmark.py collect             what is finished, as CSV files
    python notebooks/tools/record_benchmark.py run --model gemma-3-270m --groups single fixed

All placements of a model have the same number of parameters, within 3 %. A pass trains each of them
with one seed at three learning rates, and at further ones while the best is at the edge. Every run
is judged on the same held-out problems, one by one, and on unrelated texts. No rate is chosen here:
the analysis chooses it on one half of the problems and with other seeds than it reports.

Runs that are recorded in data/results are not run again.
"""

import argparse
import itertools
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from record import RESULTS, save

import plop_nb as plop
from plop_nb import experiments as ex
from plop_nb.placement import Placement

RATES = [1e-3, 2e-3, 4e-3]
MOST_RATES = 6
ALPHA = 32  # over the rank: with it the best rates of all placements are alike
TEST = 500
BUDGETS = {"SmolLM2-135M-Instruct": 2_430_000, "gemma-3-270m": 2_150_000}
TRAINING = {
    "short_sums": {"steps": 25, "batch_size": 8},
    "spelling": {"steps": 30, "batch_size": 8},
    "short_syllogisms": {"steps": 40, "batch_size": 8},
    "facts": {"steps": 40, "batch_size": 8},
}
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
TOLD_BY = ["model", "task", "placement", "lr", "seed"]
RUN_COLUMNS = [
    "model", "task", "group", "placement", "types", "r", "parameters", "lr", "seed", "loss",
    "exact", "unrelated_loss", "steps", "batch_size", "lora_alpha", "seconds", "device", "torch",
    "dtype",
]  # fmt: skip


# Placements


def placements_of(model, tokenizer):
    """{group: {name: Placement}}."""
    texts = plop.load_texts("math", n=1)  # a placement by hand names modules, whatever their scores
    scores = plop.nfn_scores(model, texts, tokenizer, progress=False)
    by_type = {"single": singles(), "fixed": fixed(), "triple": triples()}
    groups = {}
    for group, sets in by_type.items():
        groups[group] = {name: Placement.of_types(scores, types) for name, types in sets.items()}
    groups["fixed"]["last third of layers"] = Placement.of_modules(scores, last_third(scores))
    return groups


def singles():
    return {short([name]): [name] for name in ATTENTION + MLP}


def triples():
    return {short(types): list(types) for types in itertools.combinations(ATTENTION + MLP, 3)}


def fixed():
    """Those that need no score."""
    return {"attention": ATTENTION, "all": ATTENTION + MLP, "query + value": ["q_proj", "v_proj"]}


def last_third(scores):
    """The modules of the last layers."""
    maps = scores.drop_duplicates("module")
    layers = sorted(maps["layer"].unique())
    return maps.loc[maps["layer"].isin(layers[-(len(layers) // 3) :]), "module"].tolist()


def short(types):
    """The name of a set of types, such as "down+up+v"."""
    return "+".join(sorted(name.removesuffix("_proj") for name in types))


# Training them


def run(given):
    """All placements, shared out over processes; stops after so many minutes, to go on later."""
    end = time.time() + 60 * given.minutes
    given.folder.mkdir(parents=True, exist_ok=True)
    jobs = jobs_of(given)
    context = torch.multiprocessing.get_context("spawn")
    with context.Pool(given.workers, load_worker, [given]) as pool:
        try:
            results = pool.imap_unordered(train, jobs)
            for done in range(len(jobs)):
                told = results.next(timeout=max(1, end - time.time()))
                print(f"{datetime.now():%H:%M:%S} {done + 1} of {len(jobs)}: {told}", flush=True)
        except torch.multiprocessing.TimeoutError:
            pool.terminate()
            print(f"stopped after {given.minutes} minutes: the same command goes on")
    collect(given)


def jobs_of(given):
    """(task, seed, name of a placement), pass by pass."""
    plan = recorded("benchmark_plan.csv")
    plan = plan[(plan["model"] == given.model) & plan["group"].isin(given.groups)]
    order = {name: number for number, name in enumerate(given.groups)}
    # in random order, so that an unfinished pass is a fair sample
    plan = plan.sample(frac=1, random_state=0)
    plan = plan.sort_values("group", key=lambda names: names.map(order), kind="stable")
    jobs = []
    for seed, task in itertools.product(given.seeds, given.tasks):
        for name in plan["placement"]:
            jobs.append((task, seed, name))
    return jobs


def load_worker(given):
    """What a process keeps from one placement to the next."""
    global model, tokenizer, tasks, placements, ranks, unrelated, storage, known
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, tokenizer = plop.load_model(given.model, device=device, dtype="float32", progress=False)
    tasks = {name: load_task(name) for name in given.tasks}
    placements = {}
    for own in placements_of(model, tokenizer).values():
        placements |= own
    plan = recorded("benchmark_plan.csv")
    ranks = plan[plan["model"] == given.model].set_index("placement")["r"].to_dict()
    unrelated, storage = unrelated_texts(tokenizer), given.folder / "runs.journal"
    known = recorded("benchmark_runs.csv", RUN_COLUMNS)
    known = known[known["model"] == given.model]


def load_task(name):
    return ex.load_task(name, test=TEST)


def unrelated_texts(tokenizer, texts=16, tokens=32):
    """Openings of articles, to see what a training on something else has forgotten."""
    examples = []
    for text in plop.load_texts("history", n=texts):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        prompt, rest = tokenizer.decode(ids[:4]), tokenizer.decode(ids[4:tokens])
        examples.append({"prompt": prompt, "completion": rest})
    return ex.Task("history", train=[], validation=[], test=examples)


def train(job):
    """A placement with one seed: at all rates, and further ones while the best is at the edge."""
    task, seed, name = job
    rates = set(RATES)
    while True:
        losses = {lr: loss_of(task, seed, name, lr) for lr in sorted(rates)}
        best = min(losses, key=losses.get)
        if best not in (min(rates), max(rates)) or len(rates) >= MOST_RATES:
            return f"{task}, {name}, seed {seed}: " + told(losses)
        rates.add(best * 2 if best == max(rates) else best / 2)


def told(losses):
    return ", ".join(f"{lr:g} {loss:.3f}" for lr, loss in losses.items())


def loss_of(task, seed, name, lr):
    """The held-out loss of a run: from the record, or from the grid, which trains it."""
    own = known[(known["task"] == task) & (known["placement"] == name) & (known["seed"] == seed)]
    own = own[np.isclose(own["lr"], lr)]
    if len(own):
        return finite(own["loss"].iloc[0])
    options = TRAINING[task] | {"lora_alpha": ALPHA, "accuracy": False, "per_example": True}
    options |= {"unrelated": unrelated, "logging_steps": 1, "progress": False}
    options |= {"seeds": [seed], "lrs": [lr], "ranks": ranks, "storage": storage}
    runs = ex.grid(model, [tasks[task]], tokenizer, {name: placements[name]}, **options)
    return finite(runs["loss"].iloc[0])


def finite(loss):
    return loss if np.isfinite(loss) else np.inf


def recorded(name, columns=()):
    """A file of data/results; an empty frame where there is none."""
    path = RESULTS / name
    return pd.read_csv(path, comment="#") if path.exists() else pd.DataFrame(columns=list(columns))


# What is recorded


def plan(given):
    """Write which placements are trained, at the ranks that come nearest to the budget."""
    model, tokenizer = plop.load_model(given.model, dtype="float32", progress=False)
    rows = []
    for group, placements in placements_of(model, tokenizer).items():
        for name, placement in placements.items():
            r = ex.rank_for(placement, model, BUDGETS[given.model])
            hits = placement.check(model, placement.lora_config(model, r=r))
            about = {"model": given.model, "group": group, "placement": name}
            about["types"] = "+".join(placement.types)
            rows.append(about | {"r": r, "parameters": hits["trainable"].sum()})
    table = pd.concat([recorded("benchmark_plan.csv"), pd.DataFrame(rows)])
    command = f"python notebooks/tools/record_benchmark.py plan --model {given.model}"
    table = table.drop_duplicates(["model", "placement"], keep="last")
    save(table, "benchmark_plan.csv", command=command)


def collect(given):
    """What is finished, as CSV files; runs that were recorded before stay."""
    runs = ex.read_runs(given.folder / "runs.journal")
    groups = recorded("benchmark_plan.csv").drop_duplicates("placement")
    runs["group"] = runs["placement"].map(groups.set_index("placement")["group"])
    runs["hits"] = runs["exact"]
    runs["exact"] = runs["hits"].map(np.mean)
    command = f"python notebooks/tools/record_benchmark.py run --model {given.model}"
    head = {"command": command, "seed": "column seed"}
    keep(runs[RUN_COLUMNS], "benchmark_runs.csv", TOLD_BY, **head)
    points = ex.curves(runs)[[*TOLD_BY, "step", "train_loss"]].round({"train_loss": 4})
    keep(points, "benchmark_curves.csv.gz", [*TOLD_BY, "step"], **head)
    examples = runs[TOLD_BY].assign(
        losses=runs["losses"].map(hundredths),
        exact=runs["hits"].map(bits),
    )
    keep(examples, "benchmark_examples.csv.gz", TOLD_BY, **head)
    counts = runs.drop_duplicates("task").set_index("task")["tokens"]
    tokens = pd.DataFrame({"task": counts.index, "tokens": counts.map(joined).to_numpy()})
    keep(tokens, "benchmark_tokens.csv", ["task"], **head)
    print(runs.groupby(["task", "group", "seed"]).size())


def keep(new, name, told_by, **head):
    """Add rows to a record; what was there stays."""
    save(pd.concat([recorded(name), new]).drop_duplicates(told_by), name, **head)


def hundredths(losses):
    """Losses of examples in hundredths of a nat, as one text."""
    return joined(round(100 * loss) if np.isfinite(loss) else -1 for loss in losses)


def joined(numbers):
    return " ".join(map(str, numbers))


def bits(hits):
    return "".join("1" if hit else "0" for hit in hits)


def main():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("what", choices=["plan", "run", "collect"])
    parser.add_argument("--model", default="SmolLM2-135M-Instruct", choices=BUDGETS)
    parser.add_argument("--folder", type=Path, default=Path("build/benchmark"), help="of the runs")
    parser.add_argument("--tasks", nargs="+", default=list(TRAINING), choices=TRAINING)
    parser.add_argument("--groups", nargs="+", default=["single", "fixed", "triple"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="one a pass")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=600)
    given = parser.parse_args()
    {"plan": plan, "run": run, "collect": collect}[given.what](given)


if __name__ == "__main__":
    main()
