"""Record the placement benchmark of notebook 05 in data/results.

    python notebooks/tools/record_benchmark.py plan                which placements
    python notebooks/tools/record_benchmark.py run --workers 2     train them (two cores: an hour a
                                                                   task and pass, resumable)
    python notebooks/tools/record_benchmark.py run --tuned-by 0 --seeds 1 2
                                                                   further seeds, at the rates that
                                                                   seed 0 prefers
    python notebooks/tools/record_benchmark.py collect             what is finished, as CSV files
    python notebooks/tools/record_benchmark.py export              folders for PEFT's own comparison

With a GPU and a hub, after `plan` with the same arguments:

    python notebooks/tools/record_benchmark.py run --model meta-llama/Llama-3.2-1B --dtype bfloat16
        --tasks anli metamath --rates 2e-4 4e-4 8e-4 --workers 8

All placements of a model have the same number of parameters, within 3 %. A pass trains each of them
with one seed at three learning rates, and at further ones while the best is at the edge. Every run
is judged on the same held-out problems, one by one, and on unrelated texts. The analysis chooses
the rate on one half of the problems and with other seeds than it reports (`ex.crossfit`).

Runs that are recorded in data/results are not run again.
"""

import argparse
import copy
import dataclasses
import itertools
import json
import re
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from contenders import Field
from full_finetuning import NAME, loss_of_full_finetuning
from full_finetuning import RATES as FULL_RATES
from peft import LoraConfig, get_peft_model
from record import RESULTS, save, unrelated_texts

import plop_nb as plop
from plop_nb import experiments as ex
from plop_nb.experiments.adapting import hit
from plop_nb.experiments.isolation import shared_copy

COMMAND = "python notebooks/tools/record_benchmark.py"
RATES = [1e-3, 2e-3, 4e-3]
MOST_RATES = 6
TEST = 500
GROUPS = ["single", "fixed", "triple", "scaled", "rival", "full"]
# of tasks with short texts, a run takes a minute on one core; the others want a GPU
TRAINING = {
    "short_sums": {"steps": 25, "batch_size": 8},
    "short_sums_long": {
        "steps": 100,
        "batch_size": 8,
    },  # the same problems, four times the training
    "spelling": {"steps": 30, "batch_size": 8},
    "short_syllogisms": {"steps": 40, "batch_size": 8},
    "facts": {"steps": 40, "batch_size": 8},
    "code": {"steps": 25, "batch_size": 16},
    "anli": {"steps": 200, "batch_size": 16},
    "metamath": {"steps": 200, "batch_size": 16},
}
LONG = "_long"
SHORT = ["short_sums", "spelling", "short_syllogisms", "facts"]
TOLD_BY = ["model", "task", "placement", "lr", "seed"]
PLAN_COLUMNS = ["model", "task", "group", "placement", "types", "r", "parameters"]
RUN_COLUMNS = [
    "model", "task", "group", "placement", "types", "r", "parameters", "lr", "seed", "loss",
    "exact", "unrelated_loss", "steps", "batch_size", "lora_alpha", "seconds", "device", "torch",
    "dtype",
]  # fmt: skip


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
    """(task, seed, name of a placement, learning rates), pass by pass, group by group."""
    plan = planned(given)
    if plan.empty:
        raise SystemExit(f"nothing is planned for {given.model}: run `plan` first")
    # in random order, so that an unfinished pass is a fair sample
    plan = plan.sample(frac=1, random_state=0)
    if given.placements:
        plan = plan[plan["placement"].isin(given.placements)]
    chosen = tuned_rates(given) if given.tuned_by is not None else None
    jobs = []
    for seed, task, group in itertools.product(given.seeds, given.tasks, given.groups):
        own = plan[(plan["group"] == group) & plan["task"].isin([task, ""])]
        for name in [NAME] if group == "full" else own["placement"]:
            rates = FULL_RATES if name == NAME else given.rates
            jobs.append((task, seed, name, chosen[task, name] if chosen else rates))
    return jobs


def tuned_rates(given):
    """{(task, placement): learning rates} that a recorded seed prefers."""
    runs = ex.load_benchmark(RESULTS)
    runs = runs[runs["task"].isin(given.tasks) & runs["group"].isin(given.groups)]
    runs = runs[runs["model"] == name_of(given.model)]
    chosen = ex.chosen_rates(runs, [given.tuned_by])
    return chosen.groupby(["task", "placement"])["lr"].apply(list).to_dict()


def planned(given):
    """What `plan` has written for a model; its column `task` is empty for what all tasks share."""
    plan = recorded("benchmark_plan.csv", PLAN_COLUMNS)
    return plan[plan["model"] == name_of(given.model)].fillna({"task": ""})


def load_worker(given):
    """What a process keeps from one placement to the next."""
    global model, tokenizer, tasks, placements, ranks, unrelated, folder, known
    torch.set_num_threads(1)
    model, tokenizer = load_model(given)
    tasks = {name: load_task(name, given.test) for name in given.tasks}
    field, placements = Field(model, tokenizer), {}
    for group in field.of_types().values():
        placements |= {(name, placement): own for name in tasks for placement, own in group.items()}
    for name, task in tasks.items() if "rival" in given.groups else ():
        placements |= {(name, placement): own for placement, own in field.of_task(task).items()}
    ranks = planned(given).set_index(["task", "placement"])["r"].to_dict()
    unrelated, folder = unrelated_texts(tokenizer), given.folder
    known = recorded("benchmark_runs.csv", RUN_COLUMNS)
    known = known[known["model"] == name_of(given.model)]


def load_model(given):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return plop.load_model(given.model, device=device, dtype=given.dtype, progress=False)


def name_of(model):
    """A model's name in the record: the last part of a folder, as `finetune` has it."""
    return Path(model).name if Path(model).is_dir() else model


def load_task(name, test=TEST):
    options = {"train": 1000} if name.endswith(LONG) else {}
    if name != "code":  # which has few problems
        options["test"] = test
    task = ex.load_task(name.removesuffix(LONG), **options)
    return dataclasses.replace(task, name=name)


def train(job):
    """A placement with one seed: at all rates, and further ones while the best is at the edge.

    One or two rates are not searched from.
    """
    task, seed, name, rates = job
    tried = set(rates)
    while True:
        losses = {lr: loss_of(task, seed, name, lr) for lr in sorted(tried)}
        best = min(losses, key=losses.get)
        inside = best not in (min(tried), max(tried))
        if inside or len(tried) < 3 or len(tried) >= MOST_RATES:
            return f"{task}, {name}, seed {seed}: " + told(losses)
        tried.add(best * 2 if best == max(tried) else best / 2)


def told(losses):
    return ", ".join(f"{lr:g} {loss:.3f}" for lr, loss in losses.items())


def loss_of(task, seed, name, lr):
    """The held-out loss of a run: from the record, or from the grid, which trains it."""
    own = known[(known["task"] == task) & (known["placement"] == name) & (known["seed"] == seed)]
    own = own[np.isclose(own["lr"], lr)]
    if len(own):
        return finite(own["loss"].iloc[0])
    storage = folder / "runs.journal"
    if name == NAME:
        told = TRAINING[task] | {"lr": lr, "seed": seed, "storage": storage}
        return finite(loss_of_full_finetuning(model, tasks[task], tokenizer, unrelated, **told))
    placement = placements[task, name]
    options = TRAINING[task] | {"accuracy": False, "per_example": True, "unrelated": unrelated}
    options |= {"logging_steps": 1, "progress": False, "storage": storage}
    if not isinstance(placement, LoraConfig):
        rank = ranks.get((task, name), ranks.get(("", name)))
        options |= {"lora_alpha": Field.alpha(name, rank), "ranks": {name: rank}}
    one = {name: placement}
    runs = ex.grid(model, [tasks[task]], tokenizer, one, seeds=[seed], lrs=[lr], **options)
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
    model, tokenizer = load_model(given)
    field, rows = Field(model, tokenizer), []
    groups = [("", group, placements) for group, placements in field.of_types().items()]
    if "rival" in given.groups:
        for name in given.tasks:
            groups.append((name, "rival", field.of_task(load_task(name, given.test))))
    for task, group, placements in groups:
        for name, placement in placements.items():
            about = {"model": name_of(given.model), "task": task, "group": group, "placement": name}
            rows.append(about | size_of(field, placement))
    table = pd.concat([recorded("benchmark_plan.csv"), pd.DataFrame(rows)]).fillna({"task": ""})
    head = {"command": f"{COMMAND} plan --model {given.model}", "budget": field.budget}
    told_by = ["model", "task", "placement"]
    save(table.drop_duplicates(told_by, keep="last"), "benchmark_plan.csv", **head)
    print(pd.DataFrame(rows).to_string())
    record_untrained(given, model, tokenizer)


def record_untrained(given, model, tokenizer):
    """Write how good the model is before any training."""
    unrelated, rows = unrelated_texts(tokenizer), []
    other = ex.evaluate(model, unrelated, tokenizer, accuracy=False)["loss"]
    for name in given.tasks:
        task = load_task(name, given.test)
        found = ex.evaluate(model, task, tokenizer, accuracy=False, per_example=True)
        about = {"model": name_of(given.model), "task": name, "loss": found["loss"]}
        rows.append(about | {"exact": np.mean(found["exact"]), "unrelated_loss": other})
    command = f"{COMMAND} plan --model {given.model}"
    keep(pd.DataFrame(rows), "benchmark_untrained.csv", ["model", "task"], command=command)


def size_of(field, placement):
    """The types, rank and parameters of a placement; those of EVA before it moves ranks."""
    r = field.rank(placement)
    if isinstance(placement, LoraConfig):
        config = copy.copy(placement)
        config.init_lora_weights = True
    else:
        config = placement.lora_config(field.model, r=r)
    found = hit(get_peft_model(shared_copy(field.model), config), field.model)
    return {"types": "+".join(found.types), "r": r, "parameters": found.parameters}


def collect(given):
    """What is finished, as CSV files; runs that were recorded before stay."""
    runs = ex.read_runs(given.folder / "runs.journal")
    groups = recorded("benchmark_plan.csv").drop_duplicates("placement")
    groups = groups.set_index("placement")["group"].to_dict() | {NAME: "full"}
    runs["group"] = runs["placement"].map(groups)
    runs["hits"] = runs["exact"]
    runs["exact"] = runs["hits"].map(np.mean)
    head = {"command": f"{COMMAND} run --model {given.model}", "seed": "column seed"}
    keep(runs[RUN_COLUMNS], "benchmark_runs.csv", TOLD_BY, **head)
    points = ex.curves(runs)[[*TOLD_BY, "step", "train_loss"]].round({"train_loss": 4})
    keep(points, "benchmark_curves.csv.gz", [*TOLD_BY, "step"], **head)
    examples = runs[TOLD_BY].assign(
        losses=runs["losses"].map(hundredths),
        exact=runs["hits"].map(marks),
    )
    keep(examples, "benchmark_examples.csv.gz", TOLD_BY, **head)
    counts = runs.drop_duplicates(["model", "task"])
    tokens = counts[["model", "task"]].assign(tokens=counts["tokens"].map(joined))
    keep(tokens, "benchmark_tokens.csv", ["model", "task"], **head)
    print(runs.groupby(["task", "group", "seed"]).size())


def keep(new, name, told_by, **head):
    """Add rows to a record; what was there stays."""
    save(pd.concat([recorded(name), new]).drop_duplicates(told_by), name, **head)


def hundredths(losses):
    """Losses of examples in hundredths of a nat, as one text."""
    return joined(round(100 * loss) if np.isfinite(loss) else -1 for loss in losses)


def joined(numbers):
    return " ".join(map(str, numbers))


def marks(hits):
    """Which examples are exactly right, as one text that is no number."""
    return "".join("x" if hit else "." for hit in hits)


def export(given):
    """Folders that PEFT's own comparison takes as experiments (its method_comparison).

    Each holds an `adapter_config.json`, and the learning rate in `training_params.json`: give the
    rate that was tuned by `--rates`.
    """
    model, tokenizer = load_model(given)
    field = Field(model, tokenizer)
    for group in given.groups:
        for name, placement in field.of_types().get(group, {}).items():
            slug = re.sub(r"[^a-z0-9]+", "-", name.lower())
            target = given.folder / "experiments" / f"lora-{slug}"
            r = field.rank(placement)
            config = placement.lora_config(model, r=r, lora_alpha=field.alpha(name, r))
            config.save_pretrained(target)
            settings = {"optimizer_kwargs": {"lr": given.rates[0]}}
            (target / "training_params.json").write_text(json.dumps(settings, indent=2) + "\n")
            print(target)


def main():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("what", choices=["plan", "run", "collect", "export"])
    parser.add_argument("--model", default="SmolLM2-135M-Instruct", help="as load_model takes it")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--folder", type=Path, default=Path("build/benchmark"), help="of the runs")
    parser.add_argument("--tasks", nargs="+", default=SHORT, choices=TRAINING)
    parser.add_argument("--test", type=int, default=TEST, help="examples to judge by")
    parser.add_argument("--groups", nargs="+", default=GROUPS, choices=GROUPS)
    parser.add_argument("--placements", nargs="+", help="of the groups, these only")
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="one a pass")
    parser.add_argument("--tuned-by", type=int, help="a recorded seed, which chooses the rates")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=600)
    given = parser.parse_args()
    {"plan": plan, "run": run, "collect": collect, "export": export}[given.what](given)


if __name__ == "__main__":
    main()
