"""Record the finetuning runs of notebook 05 in data/results.

    python notebooks/record_finetuning.py run --workers 10        as many processes on one device (8 GB each), resumable
    python notebooks/record_finetuning.py collect                 what is finished, as CSV files
    python notebooks/record_finetuning.py run --small             sums at equal rank, on two cores in an hour
    python notebooks/record_finetuning.py mechanism --tasks sums  scores of all types during 100 steps
    python notebooks/record_finetuning.py halved --tasks sums     PLoP again, at half its tuned rate

Learning rates are tuned on validation splits with seeds of their own; the results are of the test splits.
"""

import argparse
import itertools
import json
import random
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from record import RESULTS, save

import plop_nb as plop
from plop_nb import finetune as ft
from plop_nb.placement import Placement

TASKS = {  # code has 100 examples to train on, and long answers are judged by their loss alone
    "sums": {"steps": 100},
    "syllogisms": {"steps": 100},
    "gsm": {"steps": 100, "accuracy": False},
    "code": {"steps": 25, "accuracy": False},
}
SMALL = {"steps": 30, "batch_size": 8}  # a run in half a minute on two cores
LEADING = ["PLoP", "attention", "MLP", "inverse", "all", "query + value"]  # of equal rank, where it is small
STAGES = ["alone", "equal parameters", "equal rank", "nested"]
RATES, SMALL_RATES = [1e-3, 2e-3, 4e-3], [1e-3, 2e-3]  # and further ones while the best is at the edge
ALONE = 760_320  # parameters: v_proj at rank 33
TUNING_SEEDS, SEEDS = [100, 101], [0, 1, 2, 3, 4]
TEXTS = 16  # of the training split, to score types on


def type_scores(model, tokenizer, texts):
    """One row per type: NFN, NFN without the shared mean, condition number, gradient norm, adapter size at rank 1."""
    table = plop.module_table(model).query("status == 'scored'").set_index("module")
    maps = table.assign(size=table["in_features"] + table["out_features"])
    split = plop.mean_split(model, texts, tokenizer, progress=False).set_index("module")
    maps["nfn"], maps["centred"] = split["nfn"], split["nfn_centred"]
    maps["log_condition"] = {name: condition(model.get_submodule(name).weight) for name in maps.index}
    maps["gradient"] = gradient_norms(model, tokenizer, texts, maps.index)
    means = maps.groupby("type")[["nfn", "centred", "log_condition", "gradient"]].mean()
    return means.assign(size=maps.groupby("type")["size"].sum()).sort_values("nfn")


def condition(weight):
    """Logarithm of largest over smallest singular value, as KappaTune ranks by."""
    values = torch.linalg.svdvals(weight.detach().float())
    return (values[0] / values[-1]).log().item()


def gradient_norms(model, tokenizer, texts, names):
    """Frobenius norm of the gradient of the language model's loss, for each map."""
    for text in texts:
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=256)["input_ids"].to(model.device)
        (model(input_ids=ids, labels=ids).loss / len(texts)).backward()
    norms = {name: model.get_submodule(name).weight.grad.norm().item() for name in names}
    model.zero_grad(set_to_none=True)
    return norms


def candidates(scores, types):
    """{label: Placement} of all placements to compare."""
    low = lambda by, k=3: types[by].nsmallest(k).index.tolist()
    high = lambda by: types[by].nlargest(3).index.tolist()
    sets = {"PLoP": low("nfn"), "inverse": high("nfn"), "attention": ["q_proj", "k_proj", "v_proj", "o_proj"],
            "MLP": ["gate_proj", "up_proj", "down_proj"], "all": types.index.tolist(),
            "query + value": ["q_proj", "v_proj"], "centred": low("centred"), "gradient": high("gradient"),
            "condition": low("log_condition")}  # fmt: skip
    draw = random.Random(0)
    for number in (1, 2):
        sets[f"random {number}"] = draw.sample(sorted(types.index), 3)
    placements = {label: Placement.of_types(scores, names) for label, names in sets.items()}
    budget = 16 * types.loc[sets["PLoP"], "size"].sum()
    order = plop.by_module(scores).merge(scores.drop_duplicates("module")[["module", "in_features", "out_features"]])
    fits = 16 * (order["in_features"] + order["out_features"]).cumsum() <= budget
    return placements | {"modules": Placement.of_modules(scores, order.loc[fits, "module"].tolist())}


def planned(model, tokenizer, task):
    """(types, scores of types, rows) of a task: one row per stage and label, with modules and rank."""
    texts = [e["prompt"] + e["completion"] for e in task.train[:TEXTS]]
    types = type_scores(model, tokenizer, texts)
    scores = plop.nfn_scores(model, texts, tokenizer, progress=False)
    several = candidates(scores, types)
    budget = 16 * types.loc[types["nfn"].nsmallest(3).index, "size"].sum()
    nested = {f"k = {k}": Placement.of_types(scores, types.index[:k].tolist()) for k in range(1, 8)}
    alone = {name: Placement.of_types(scores, [name]) for name in types.index}
    groups = {"alone": (alone, ALONE), "equal parameters": (several, budget), "equal rank": (several, None),
              "nested": (nested, None)}  # fmt: skip
    rows = []
    for stage, (placements, parameters) in groups.items():
        for label, placement in placements.items():
            r = 16 if parameters is None else ft.rank_for(placement, model, parameters)
            name = "modules" if label == "modules" else "+".join(sorted(placement.types))
            rows.append({"task": task.name, "stage": stage, "label": label, "placement": f"{name} r={r}", "r": r,
                         "modules": placement.modules, "types": placement.types})  # fmt: skip
    return types.reset_index().assign(task=task.name), rows


def plan(folder):
    """Choose all placements once, so that every process trains the same ones."""
    model, tokenizer = plop.load_model()
    made = [planned(model, tokenizer, ft.load_task(name)) for name in TASKS]
    pd.concat([types for types, _ in made]).to_csv(folder / "types.csv", index=False)
    (folder / "plan.json").write_text(json.dumps([row for _, rows in made for row in rows]))


def run(folder, workers, minutes, tasks, stages, small):
    """All placements, shared out over processes; stops after so many minutes, to go on another time."""
    folder.mkdir(parents=True, exist_ok=True)
    end = time.time() + 60 * minutes
    if not (folder / "plan.json").exists():
        plan(folder)
    rows = [row for row in json.loads((folder / "plan.json").read_text()) if row["task"] in tasks]
    rows = sorted((row for row in rows if row["stage"] in stages), key=lambda row: stages.index(row["stage"]))
    if small:
        rows = [row for row in rows if row["stage"] == "nested" or row["label"] in LEADING]
    jobs = list({(row["task"], row["placement"]): row for row in reversed(rows)}.values())[::-1]
    done = set() if small else finished()
    jobs = [job for job in jobs if (job["task"], job["placement"]) not in done]
    with torch.multiprocessing.get_context("spawn").Pool(workers, loaded, [tasks, small]) as pool:
        results = pool.imap_unordered(tune_and_train, [(folder / "runs.jsonl", job, small) for job in jobs])
        try:
            for number in range(len(jobs)):
                print(f"{time.time() - end + 60 * minutes:.0f} s: {results.next(timeout=end - time.time())}, "
                      f"{number + 1} of {len(jobs)}", flush=True)  # fmt: skip
        except torch.multiprocessing.TimeoutError:
            print(f"stopped after {minutes} minutes: the same command goes on")
            pool.terminate()


def finished():
    """(task, placement) of which data/results has all seeds."""
    runs = recorded("finetuning.csv")
    if runs.empty:
        return set()
    seeds = runs.query("split == 'test'").groupby(["task", "placement"])["seed"].nunique()
    return set(seeds[seeds >= len(SEEDS)].index)


def loaded(tasks, small):
    """What a process keeps from one placement to the next."""
    global model, tokenizer, loaded_tasks
    torch.set_num_threads(1)
    model, tokenizer = plop.load_model()
    sizes = {"validation": 128, "test": 128} if small else {}
    loaded_tasks = {name: ft.load_task(name, **sizes) for name in tasks}


def tune_and_train(job):
    """Find the learning rate of a placement on the validation split, then train it with all seeds."""
    path, row, small = job
    task, name = loaded_tasks[row["task"]], row["placement"]
    placements = {name: Placement(row["types"], row["modules"], np.nan, None)}
    options = {"ranks": {name: row["r"]}, "path": path, "progress": False}
    options |= TASKS[task.name] | (SMALL if small else {})
    tuning = {**options, "seeds": TUNING_SEEDS, "accuracy": False, "final": "validation"}
    rates = set(SMALL_RATES if small else RATES)
    while len(rates) < 7:
        best = ft.tuned(ft.grid(model, tokenizer, [task], placements, lrs=sorted(rates), **tuning))
        if not best["edge"].any():
            break
        lr = best["lr"].item()  # the best at the edge of the grid: look further on
        rates.add(lr * 2 if lr == max(rates) else lr / 2)
    ft.grid(model, tokenizer, [task], placements, seeds=SEEDS, lrs=best, **options)
    return f"{task.name}, {name}"


def collect(folder, small):
    """What is finished, as CSV files; runs that were recorded before stay."""
    runs = ft.read_runs(folder / "runs.jsonl")
    runs = runs.groupby("task").filter(lambda g: (g["split"] == "test").any())
    labels = pd.DataFrame(json.loads((folder / "plan.json").read_text()))
    head = {"device": ", ".join(runs["device"].unique()), "torch": ", ".join(runs["torch"].unique())}
    columns = ["task", "placement", "r", "parameters", "steps", "lr", "seed", "split", "loss", "accuracy", "seconds",
               "peak_memory", "device"]  # fmt: skip
    head["seed"] = f"tests {SEEDS}, learning rates tuned with others (split: validation)"
    if small:
        head["command"] = "python notebooks/record_finetuning.py run --small --workers 2, then collect --small"
        return save(runs[columns], "finetuning_small.csv", **head)
    head["command"] = "python notebooks/record_finetuning.py run --workers 10, then collect"
    save(together(recorded("finetuning.csv"), runs[columns]), "finetuning.csv", **head)
    points = ft.curves(runs.query("split == 'test'")).groupby(["task", "placement", "step"])["train_loss"].mean()
    save(together(recorded("finetuning_curves.csv"), points.reset_index()), "finetuning_curves.csv", **head)
    labels["types"] = labels["types"].map("+".join)
    save(labels[["task", "stage", "label", "placement", "types"]], "finetuning_placements.csv", **head)
    save(pd.read_csv(folder / "types.csv"), "finetuning_types.csv", **head)


def mechanism(names, seeds=(0,)):
    """Norms and scores of the effective maps while adapters on all types train at their tuned rate."""
    model, tokenizer = plop.load_model()
    parts = []
    for name, seed in itertools.product(names, seeds):
        task = ft.load_task(name)
        texts = [e["prompt"] + e["completion"] for e in task.train[:8]]
        scores = plop.nfn_scores(model, texts, tokenizer, progress=False)
        every = Placement.of_types(scores, scores["type"].unique().tolist())
        norms = ft.NormsCallback(texts, tokenizer, every=20)
        ft.finetune(model, tokenizer, task, every, r=8, lr=rate_of(name, "all"), seed=seed, callbacks=[norms],
                    **TASKS[name] | {"accuracy": False})  # fmt: skip
        parts.append(norms.frame().assign(task=name, seed=seed))
    head = {
        "seed": list(seeds),
        "command": f"python notebooks/record_finetuning.py mechanism --tasks {' '.join(names)}",
    }
    save(pd.concat(parts), "finetuning_norms.csv", **head)


def halved(names, folder):
    """PLoP with the final seeds at half its tuned rate: how much hangs on the tuning?"""
    model, tokenizer = plop.load_model()
    parts = []
    for task in map(ft.load_task, names):
        texts = [e["prompt"] + e["completion"] for e in task.train[:TEXTS]]
        placement = {"PLoP": plop.place(plop.nfn_scores(model, texts, tokenizer, progress=False), k=3)}
        rate = rate_of(task.name, "PLoP") / 2
        parts.append(ft.grid(model, tokenizer, [task], placement, seeds=SEEDS, lrs=[rate], path=folder / "halved.jsonl",
                             progress=False, **TASKS[task.name]))  # fmt: skip
    head = {"seed": SEEDS, "command": f"python notebooks/record_finetuning.py halved --tasks {' '.join(names)}"}
    columns = ["task", "placement", "r", "parameters", "steps", "lr", "seed", "split", "loss", "accuracy", "seconds"]
    save(pd.concat(parts)[columns], "finetuning_halved.csv", **head)


def rate_of(task, label):
    """The tuned learning rate of a placement at equal parameters."""
    rows = pd.read_csv(RESULTS / "finetuning_placements.csv", comment="#")
    rows = rows.query("task == @task and label == @label and stage == 'equal parameters'")
    return recorded("finetuning.csv").query("split == 'test'").merge(rows, on=["task", "placement"])["lr"].iloc[0]


def recorded(name):
    return pd.read_csv(RESULTS / name, comment="#") if (RESULTS / name).exists() else pd.DataFrame()


def together(old, new):
    keys = [c for c in ("task", "placement", "split", "lr", "seed", "step") if c in new]
    return pd.concat([old, new]).drop_duplicates(keys, keep="last")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "collect", "mechanism", "halved"])
    parser.add_argument("--folder", type=Path, help="of unfinished work, build/finetuning[_small] by default")
    parser.add_argument("--small", action="store_true", help="30 steps of 8 on sums, at equal rank only")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=600)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    given = parser.parse_args()
    if given.small:
        given.tasks, given.stages = ["sums"], ["equal rank", "nested"]
    given.folder = given.folder or Path("build/finetuning_small" if given.small else "build/finetuning")
    if given.what == "run":
        run(given.folder, given.workers, given.minutes, given.tasks, given.stages, given.small)
    elif given.what == "mechanism":
        mechanism(given.tasks)
    elif given.what == "halved":
        halved(given.tasks, given.folder)
    else:
        collect(given.folder, given.small)


if __name__ == "__main__":
    main()
