"""Record GRPO with five placements, for notebook 06: grpo.csv, grpo_runs.csv, grpo_samples.csv in data/results.

    python notebooks/record_grpo.py runs                  every run, then collect (one GPU: see the cost in notebook 06)
    python notebooks/record_grpo.py runs --share 0/4      a quarter of the runs: start all four such processes together
    python notebooks/record_grpo.py runs --collect        write the CSV files from finished runs (on the same machine)
    python notebooks/record_grpo.py runs --quick          tiny sizes, to try it on a CPU, files in the same folder

`runs` is a folder: it keeps the warmed-up model and one line a finished run in runs.jsonl, and the same
command goes on from there. A learning rate is chosen for each placement on a seed of its own, then the
seeds of the record are run at it. The parameters are equal: each rank is the nearest to that of PLoP's 16.
"""

import argparse
import csv
import json
import os
import shutil
import tempfile
import time
from importlib.metadata import version
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import plop_nb as plop
from plop_nb import grpo

RESULTS = Path(__file__).parents[1] / "data" / "results"
PLACEMENTS = {
    "plop": ["v_proj", "up_proj", "down_proj"],
    "inverse": ["q_proj", "k_proj", "gate_proj"],
    "attention": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "mlp": ["gate_proj", "up_proj", "down_proj"],
    "all": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
PARAMETERS = 2_396_160  # of plop at rank 16
FULL = {
    "lrs": [1e-4, 3e-4, 1e-3], "tuning_seed": 100, "seeds": [0, 1, 2, 3, 4], "steps": 150, "prompts_per_step": 8,
    "train": 105, "test": 50, "warm_steps": 6, "last": 20, "beta": 0.01,
}  # fmt: skip
QUICK = FULL | {
    "lrs": [3e-4, 1e-3], "seeds": [0, 1], "steps": 2, "prompts_per_step": 1, "train": 20, "test": 4, "warm_steps": 1,
    "last": 1, "placements": ["plop", "attention"], "tokens": 4, "num_generations": 2,
}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--share", default="0/1", help="i/n: this process does every n-th of the open runs")
    parser.add_argument("--collect", action="store_true", help="only write the CSV files")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--set", nargs="*", default=[], help="other sizes, such as steps=100 'lrs=[1e-4,3e-4]'")
    arguments = parser.parse_args()
    sizes = dict(QUICK if arguments.quick else FULL)
    sizes |= {key: json.loads(value) for key, value in (s.split("=") for s in arguments.set)}
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if not arguments.collect:
        record(arguments.folder, sizes, *map(int, arguments.share.split("/")))
    if arguments.collect or arguments.share == "0/1":
        collect(arguments.folder, sizes, arguments.folder if arguments.quick else RESULTS)


def record(folder, sizes, share, shares):
    """Do this process's share of the runs, waiting where another one still tries a learning rate."""
    train, test = grpo.sums(sizes["train"], sizes["test"])
    data = *warmed(folder, sizes, train), train, test
    names = sizes.get("placements", list(PLACEMENTS))
    for lr, name in list(product(sizes["lrs"], names))[share::shares]:
        do(folder, sizes, name, lr, sizes["tuning_seed"], *data)
    for seed, name in list(product(sizes["seeds"], names))[share::shares]:
        while name not in (best := chosen_lrs(folder, sizes)):
            time.sleep(5)
        do(folder, sizes, name, best[name], seed, *data)


def do(folder, sizes, name, lr, seed, *data):
    """One run, unless it is finished."""
    if (name, lr, seed) not in {(run["placement"], run["lr"], run["seed"]) for run in finished(folder)}:
        append(folder, one(name, lr, seed, sizes, *data))


def chosen_lrs(folder, sizes):
    """{placement: learning rate with the highest mean reward over the last steps}, where all were tried."""
    runs = [run for run in finished(folder) if run["seed"] == sizes["tuning_seed"]]
    tried = {name: {r["lr"]: r for r in runs if r["placement"] == name} for name in PLACEMENTS}
    last = lambda run: np.mean(run["curve"]["reward"][-sizes["last"] :])
    return {n: max(t, key=lambda lr: last(t[lr])) for n, t in tried.items() if set(sizes["lrs"]) <= set(t)}


def one(name, lr, seed, sizes, model, tokenizer, train, test):
    """One run, as a line for the file: its curve, accuracy on test sums, samples before and after."""
    tokens = sizes.get("tokens", 16)
    r = grpo.equal_rank(model, PLACEMENTS[name], PARAMETERS)
    options = {"num_generations": sizes.get("num_generations", 8), "max_completion_length": tokens}
    options |= {k: sizes[k] for k in ("steps", "prompts_per_step", "beta")}
    frame, trained = grpo.train(model, tokenizer, train, PLACEMENTS[name], name=name, r=r, lr=lr, seed=seed, **options)
    constant = ["placement", "types", "r", "parameters", "lr", "seed"]
    run = frame[constant].iloc[0].to_dict()
    run |= {"curve": frame.drop(columns=constant).round(5).to_dict("list")}
    for when, scored in {"before": model, "after": trained}.items():
        run[f"accuracy_{when}"] = grpo.accuracy(scored, tokenizer, test, max_completion_length=tokens)
        table = grpo.samples(scored, tokenizer, test, n=8, max_completion_length=tokens, seed=seed)
        run[f"samples_{when}"] = table.to_dict("list")
    print(f"{name} lr {lr:g} seed {seed}: reward {np.mean(frame['reward'].head(5)):.2f} to "
          f"{np.mean(frame['reward'].tail(sizes['last'])):.2f}, accuracy {run['accuracy_before']:.2f} to "
          f"{run['accuracy_after']:.2f}, {frame['seconds'].sum():.0f} s", flush=True)  # fmt: skip
    return run


def warmed(folder, sizes, train):
    """The warmed-up model, float32, made by the first process that needs it."""
    path = folder / "warm"
    if not path.exists():
        model, tokenizer = plop.load_model(dtype="float32")
        warm = grpo.warm_up(model, tokenizer, train, steps=sizes["warm_steps"], batch_size=8)
        made = Path(tempfile.mkdtemp(dir=folder))
        warm.save_pretrained(made)
        tokenizer.save_pretrained(made)
        try:
            os.replace(made, path)
        except OSError:  # another process was faster
            shutil.rmtree(made)
    return plop.load_model(path, dtype="float32")


def finished(folder):
    path = folder / "runs.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [run for run in map(parsed, lines) if run]


def parsed(line):
    try:
        return json.loads(line)
    except json.JSONDecodeError:  # cut short by a crash
        return None


def append(folder, run):
    line = json.dumps(run, default=lambda x: x.item()) + "\n"
    file = os.open(folder / "runs.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(file, line.encode())  # one write: lines of several processes do not mix
    os.close(file)


def collect(folder, sizes, results):
    """Write what is finished: grpo.csv (a row per step), grpo_runs.csv (per run), grpo_samples.csv (one seed's)."""
    best = chosen_lrs(folder, sizes)
    curves, runs, tables = [], [], []
    for run in sorted(finished(folder), key=lambda run: (run["placement"], run["lr"], run["seed"])):
        name, seed, curve = run["placement"], run["seed"], pd.DataFrame(run["curve"])
        tuned = seed == sizes["tuning_seed"]
        if not tuned and best.get(name) != run["lr"]:
            continue
        columns = ["placement", "types", "r", "parameters", "lr", "seed", "accuracy_before", "accuracy_after"]
        first, last = curve["reward"].head(5).mean(), curve["reward"].tail(sizes["last"]).mean()
        row = {"phase": "tuning" if tuned else "seeds"} | {column: run[column] for column in columns}
        runs.append(row | {"reward_first": first, "reward_last": last, "seconds": curve["seconds"].sum()})
        if not tuned:
            curves.append(pd.DataFrame({"placement": name, "seed": seed}, index=curve.index).join(curve))
        if seed == sizes["seeds"][0]:
            for when in ("before", "after"):
                tables.append(pd.DataFrame(run[f"samples_{when}"]).assign(placement=name, when=when))
    save(pd.DataFrame(runs), results / "grpo_runs.csv", sizes)
    if curves:
        save(pd.concat(curves), results / "grpo.csv", sizes)
        save(pd.concat(tables), results / "grpo_samples.csv", sizes)


def save(frame, path, sizes):
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
    head = {"device": device} | {p: version(p) for p in ("torch", "transformers", "trl", "peft", "reasoning_gym")}
    head |= {"dtype": "float32", **sizes, "command": "python notebooks/record_grpo.py runs"}
    quoted = csv.QUOTE_NONNUMERIC if "completion" in frame else csv.QUOTE_MINIMAL  # completions may contain a #
    with path.open("w") as file:
        file.writelines(f"# {key}: {value}\n" for key, value in head.items())
        frame.to_csv(file, index=False, float_format="%.4g", quoting=quoted)


if __name__ == "__main__":
    main()
