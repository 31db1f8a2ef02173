"""Record the finetuning runs of notebook 05 in data/results.

    python notebooks/tools/record_finetuning.py run --workers 10    as many processes on one device
                                                                    (8 GB each), resumable
    python notebooks/tools/record_finetuning.py collect             what is finished, as CSV files
    python notebooks/tools/record_finetuning.py run --small         sums at equal rank, on two cores
                                                                    in an hour
    python notebooks/tools/record_finetuning.py mechanism --tasks sums    scores of all types during
                                                                          100 steps
    python notebooks/tools/record_finetuning.py halved --tasks sums       PLoP again, at half its
                                                                          tuned rate

Learning rates are tuned on validation splits with seeds of their own; the results are of the test
splits. `optuna-dashboard build/finetuning/runs.journal` shows the runs.
"""

import argparse
import itertools
import json
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from record import RESULTS, save

import plop_nb as plop
from plop_nb import experiments as ex
from plop_nb.placement import Placement

TASKS = {  # code has 100 examples to train on, and long answers are judged by their loss alone
    "sums": {"steps": 100},
    "syllogisms": {"steps": 100},
    "gsm": {"steps": 100, "accuracy": False},
    "code": {"steps": 25, "accuracy": False},
}
SMALL = {"steps": 30, "batch_size": 8}  # a run in half a minute on two cores
SMALL_SIZES = {"validation": 128, "test": 128}
# of equal rank, where it is small
LEADING = ["PLoP", "attention", "MLP", "inverse", "all", "query + value"]
STAGES = ["alone", "equal parameters", "equal rank", "nested"]
# and further ones while the best is at the edge, up to MOST_RATES
RATES, SMALL_RATES = [1e-3, 2e-3, 4e-3], [1e-3, 2e-3]
MOST_RATES = 7
ALONE = 760_320  # parameters: v_proj at rank 33
TUNING_SEEDS, SEEDS = [100, 101], [0, 1, 2, 3, 4]
TEXTS = 16  # of the training split, to score types on
RUN_COLUMNS = [
    "task", "placement", "r", "parameters", "steps", "lr", "seed", "split", "loss", "accuracy",
    "seconds",
]  # fmt: skip


# Placements to compare


@dataclass(frozen=True)
class Planned:
    """A placement to train: what it is called in a stage, and the name of its runs."""

    task: str
    stage: str
    label: str
    placement: str
    r: int
    modules: list
    types: list


def type_scores(model, tokenizer, texts):
    """One row per type, the lowest NFN first.

    NFN, NFN without the shared mean, condition number, gradient norm, adapter size at rank 1.
    """
    table = plop.module_table(model).query("status == 'scored'").set_index("module")
    maps = table.assign(size=table["in_features"] + table["out_features"])
    split = plop.mean_split(model, texts, tokenizer, progress=False).set_index("module")
    maps["nfn"], maps["centred"] = split["nfn"], split["nfn_centred"]
    maps["log_condition"] = {n: condition(model.get_submodule(n).weight) for n in maps.index}
    maps["gradient"] = gradient_norms(model, tokenizer, texts, maps.index)
    means = maps.groupby("type")[["nfn", "centred", "log_condition", "gradient"]].mean()
    return means.assign(size=maps.groupby("type")["size"].sum()).sort_values("nfn")


def condition(weight):
    """Logarithm of largest over smallest singular value, as KappaTune ranks by."""
    values = torch.linalg.svdvals(weight.detach().float())
    return (values[0] / values[-1]).log().item()


def gradient_norms(model, tokenizer, texts, names):
    """Frobenius norm of the gradient of the language model's loss, for each map."""
    options = {"return_tensors": "pt", "truncation": True, "max_length": 256}
    for text in texts:
        ids = tokenizer(text, **options)["input_ids"].to(model.device)
        (model(input_ids=ids, labels=ids).loss / len(texts)).backward()
    norms = {name: model.get_submodule(name).weight.grad.norm().item() for name in names}
    model.zero_grad(set_to_none=True)
    return norms


def candidates(scores, types):
    """{label: Placement} of all placements to compare."""
    sets = {
        "PLoP": lowest(types["nfn"]),
        "inverse": highest(types["nfn"]),
        "attention": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "MLP": ["gate_proj", "up_proj", "down_proj"],
        "all": types.index.tolist(),
        "query + value": ["q_proj", "v_proj"],
        "centred": lowest(types["centred"]),
        "gradient": highest(types["gradient"]),
        "condition": lowest(types["log_condition"]),
    }
    draw = random.Random(0)
    for number in (1, 2):
        sets[f"random {number}"] = draw.sample(sorted(types.index), 3)
    placements = {label: Placement.of_types(scores, names) for label, names in sets.items()}
    budget = 16 * types.loc[sets["PLoP"], "size"].sum()
    placements["modules"] = Placement.of_modules(scores, lowest_modules(scores, budget))
    return placements


def lowest(values):
    """The names of the three lowest."""
    return values.nsmallest(3).index.tolist()


def highest(values):
    """The names of the three highest."""
    return values.nlargest(3).index.tolist()


def lowest_modules(scores, budget):
    """The lowest modules whatever their type, as many as fit a budget at rank 16."""
    shapes = scores.drop_duplicates("module")[["module", "in_features", "out_features"]]
    order = plop.by_module(scores).merge(shapes)
    used = 16 * (order["in_features"] + order["out_features"]).cumsum()
    return order.loc[used <= budget, "module"].tolist()


def planned(model, tokenizer, task):
    """(scores of types, list of Planned) of a task: one for each stage and label."""
    texts = [example["prompt"] + example["completion"] for example in task.train[:TEXTS]]
    types = type_scores(model, tokenizer, texts)
    scores = plop.nfn_scores(model, texts, tokenizer, progress=False)
    several = candidates(scores, types)
    budget = 16 * types.loc[lowest(types["nfn"]), "size"].sum()
    nested = {}
    for k in range(1, 8):
        nested[f"k = {k}"] = Placement.of_types(scores, types.index[:k].tolist())
    alone = {name: Placement.of_types(scores, [name]) for name in types.index}
    groups = {
        "alone": (alone, ALONE),
        "equal parameters": (several, budget),
        "equal rank": (several, None),
        "nested": (nested, None),
    }
    rows = []
    for stage, (placements, parameters) in groups.items():
        for label, placement in placements.items():
            r = 16 if parameters is None else ex.rank_for(placement, model, parameters)
            name = "modules" if label == "modules" else "+".join(sorted(placement.types))
            content = {"modules": placement.modules, "types": placement.types}
            rows.append(Planned(task.name, stage, label, f"{name} r={r}", r, **content))
    return types.reset_index().assign(task=task.name), rows


def plan(folder):
    """Choose all placements once, so that every process trains the same ones."""
    model, tokenizer = plop.load_model()
    tables, rows = [], []
    for name in TASKS:
        types, own = planned(model, tokenizer, ex.load_task(name))
        tables.append(types)
        rows += own
    pd.concat(tables).to_csv(folder / "types.csv", index=False)
    (folder / "plan.json").write_text(json.dumps([asdict(row) for row in rows]))


def read_plan(folder):
    """What `plan` has written."""
    return [Planned(**row) for row in json.loads((folder / "plan.json").read_text())]


# Training them


def run(folder, workers, minutes, *, tasks, stages, small):
    """All placements, shared out over processes; stops after so many minutes, to go on later."""
    folder.mkdir(parents=True, exist_ok=True)
    begin = time.time()
    if not (folder / "plan.json").exists():
        plan(folder)
    jobs = jobs_of(read_plan(folder), tasks, stages, small)
    arguments = [(folder / "runs.journal", job, small) for job in jobs]
    context = torch.multiprocessing.get_context("spawn")
    with context.Pool(workers, load_worker, [tasks, small]) as pool:
        results = pool.imap_unordered(tune_and_train, arguments)
        try:
            for number in range(len(jobs)):
                left = begin + 60 * minutes - time.time()
                done = results.next(timeout=left)
                seconds = time.time() - begin
                print(f"{seconds:.0f} s: {done}, {number + 1} of {len(jobs)}", flush=True)
        except torch.multiprocessing.TimeoutError:
            print(f"stopped after {minutes} minutes: the same command goes on")
            pool.terminate()


def jobs_of(rows, tasks, stages, small):
    """The placements to train, stage by stage, each once."""
    done = set() if small else finished()
    jobs = {}
    for stage in stages:
        for row in rows:
            leading = stage == "nested" or row.label in LEADING
            if row.task in tasks and row.stage == stage and (leading or not small):
                jobs.setdefault((row.task, row.placement), row)
    return [job for key, job in jobs.items() if key not in done]


def finished():
    """(task, placement) of which data/results has all seeds."""
    runs = recorded("finetuning.csv")
    if runs.empty:
        return set()
    tests = runs.query("split == 'test'")
    seeds = tests.groupby(["task", "placement"])["seed"].nunique()
    return set(seeds[seeds >= len(SEEDS)].index)


def load_worker(tasks, small):
    """What a process keeps from one placement to the next."""
    global model, tokenizer, loaded_tasks
    torch.set_num_threads(1)
    model, tokenizer = plop.load_model()
    sizes = SMALL_SIZES if small else {}
    loaded_tasks = {name: ex.load_task(name, **sizes) for name in tasks}


def tune_and_train(job):
    """Find a placement's learning rate on the validation split, then train it with all seeds."""
    storage, row, small = job
    task, name = loaded_tasks[row.task], row.placement
    placement = Placement(row.types, row.modules, confidence=np.nan, ranking=None)
    options = TASKS[task.name] | (SMALL if small else {})
    options |= {"ranks": {name: row.r}, "storage": storage, "progress": False}
    best = tuned_rate(task, {name: placement}, options, SMALL_RATES if small else RATES)
    if best is None:
        return f"{task.name}, {name}: left out, as another process has runs of it"
    ex.grid(model, [task], tokenizer, {name: placement}, seeds=SEEDS, lrs=best, **options)
    return f"{task.name}, {name}"


def tuned_rate(task, placements, options, rates):
    """The best rate on the validation split, or None where another process has some of the runs."""
    rates = set(rates)
    options = {**options, "seeds": TUNING_SEEDS, "accuracy": False, "final": "validation"}
    while True:
        options["lrs"] = sorted(rates)
        runs = ex.grid(model, [task], tokenizer, placements, study="tuning", **options)
        if len(runs) < len(placements) * len(rates) * len(TUNING_SEEDS):
            return None
        best = ex.tuned(runs)
        if not best["edge"].any():
            return best
        lr = best["lr"].item()
        rates.add(lr * 2 if lr == max(rates) else lr / 2)
        if len(rates) >= MOST_RATES:
            return best


# What is recorded


def collect(folder, small):
    """What is finished, as CSV files; runs that were recorded before stay."""
    runs = ex.read_runs(folder / "runs.journal")
    tested = runs.loc[runs["split"] == "test", "task"].unique()
    runs = runs[runs["task"].isin(tested)]
    head = {
        "device": ", ".join(runs["device"].unique()),
        "torch": ", ".join(runs["torch"].unique()),
        "seed": f"tests {SEEDS}, learning rates tuned with others (split: validation)",
    }
    columns = [*RUN_COLUMNS, "peak_memory", "device"]
    command = "python notebooks/tools/record_finetuning.py run"
    if small:
        head["command"] = f"{command} --small --workers 2, then collect --small"
        save(runs[columns], "finetuning_small.csv", **head)
        return
    head["command"] = f"{command} --workers 10, then collect"
    save(together(recorded("finetuning.csv"), runs[columns]), "finetuning.csv", **head)
    points = ex.curves(runs.query("split == 'test'"))
    points = points.groupby(["task", "placement", "step"])["train_loss"].mean().reset_index()
    both = together(recorded("finetuning_curves.csv"), points)
    save(both, "finetuning_curves.csv", **head)
    labels = pd.DataFrame([asdict(row) for row in read_plan(folder)])
    labels["types"] = labels["types"].map("+".join)
    columns = ["task", "stage", "label", "placement", "types"]
    save(labels[columns], "finetuning_placements.csv", **head)
    save(pd.read_csv(folder / "types.csv"), "finetuning_types.csv", **head)


def mechanism(names, seeds=(0,)):
    """Norms and scores of the effective maps while adapters on all types train at their rate."""
    model, tokenizer = plop.load_model()
    parts = []
    for name, seed in itertools.product(names, seeds):
        task = ex.load_task(name)
        texts = [example["prompt"] + example["completion"] for example in task.train[:8]]
        scores = plop.nfn_scores(model, texts, tokenizer, progress=False)
        every = Placement.of_types(scores, scores["type"].unique().tolist())
        norms = ex.NormsCallback(texts, tokenizer, every=20)
        options = TASKS[name] | {"accuracy": False, "callbacks": [norms]}
        lr = rate_of(name, "all")
        ex.finetune(model, task, tokenizer, every, r=8, lr=lr, seed=seed, **options)
        parts.append(norms.frame().assign(task=name, seed=seed))
    command = f"python notebooks/tools/record_finetuning.py mechanism --tasks {' '.join(names)}"
    save(pd.concat(parts), "finetuning_norms.csv", seed=list(seeds), command=command)


def halved(names, folder):
    """PLoP with the final seeds at half its tuned rate: how much hangs on the tuning?"""
    model, tokenizer = plop.load_model()
    parts = []
    for name in names:
        task = ex.load_task(name)
        texts = [example["prompt"] + example["completion"] for example in task.train[:TEXTS]]
        scores = plop.nfn_scores(model, texts, tokenizer, progress=False)
        placements = {"PLoP": plop.place(scores, k=3)}
        options = {"seeds": SEEDS, "lrs": rate_of(name, "PLoP") / 2, **TASKS[name]}
        options |= {"storage": folder / "halved.journal", "progress": False}
        runs = ex.grid(model, [task], tokenizer, placements, **options)
        if len(runs) == len(SEEDS):
            parts.append(runs)
        else:
            print(f"{name}: left out, as another process has runs of it", flush=True)
    command = f"python notebooks/tools/record_finetuning.py halved --tasks {' '.join(names)}"
    if parts:
        save(pd.concat(parts)[RUN_COLUMNS], "finetuning_halved.csv", seed=SEEDS, command=command)


def rate_of(task, label):
    """The tuned learning rate of a placement at equal parameters."""
    rows = recorded("finetuning_placements.csv")
    rows = rows.query("task == @task and label == @label and stage == 'equal parameters'")
    tests = recorded("finetuning.csv").query("split == 'test'")
    return tests.merge(rows, on=["task", "placement"])["lr"].iloc[0]


def recorded(name):
    """A file of data/results; an empty frame where there is none."""
    path = RESULTS / name
    return pd.read_csv(path, comment="#") if path.exists() else pd.DataFrame()


def together(old, new):
    """Both, where the new rows take the place of the same old ones."""
    told_by = ("task", "placement", "split", "lr", "seed", "step")
    keys = [column for column in told_by if column in new]
    return pd.concat([old, new]).drop_duplicates(keys, keep="last")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["run", "collect", "mechanism", "halved"])
    parser.add_argument(
        "--folder", type=Path, help="of unfinished work, build/finetuning[_small] by default"
    )
    parser.add_argument(
        "--small", action="store_true", help="30 steps of 8 on sums, at equal rank only"
    )
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=600)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    given = parser.parse_args()
    tasks, stages = given.tasks, given.stages
    if given.small:
        tasks, stages = ["sums"], ["equal rank", "nested"]
    folder = given.folder or Path("build/finetuning_small" if given.small else "build/finetuning")
    if given.what == "run":
        run(folder, given.workers, given.minutes, tasks=tasks, stages=stages, small=given.small)
    elif given.what == "mechanism":
        mechanism(tasks)
    elif given.what == "halved":
        halved(tasks, folder)
    else:
        collect(folder, given.small)


if __name__ == "__main__":
    main()
