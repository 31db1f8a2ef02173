"""Record the within-function test of notebook 04 in data/results.

    python notebooks/tools/record_forms.py run        LoRA in two forms (one core: 2 h, resumable)
    python notebooks/tools/record_forms.py power      what the design can see, from the tuning runs
    python notebooks/tools/record_forms.py collect    what is finished, as CSV files
    python notebooks/tools/record_forms.py run --model gemma-3-270m --workers 4    another model

A form is the pretrained function written in other weights. In "attention low" the maps of attention
have the lower NFN, in "MLP low" those of the MLP. Adapters of equal size go where each form's
scores want them, in both forms. `--pair folded` compares the stored form and the one with all gains
folded in the same way. Learning rates are tuned on validation splits with seeds of their own. `run`
writes the power before the first test run of a task.
"""

import argparse
import itertools
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from record import RESULTS, save
from scipy import optimize, stats

import plop_nb as plop
from plop_nb import experiments as ex
from plop_nb import moves
from plop_nb.probing import norm_links, pair_links

SIZES = {"test": 128, "validation": 128, "train": 1000}
TEXTS = 16  # to measure channels on, and to score types on
PAIRS = {"reversed": ["attention low", "MLP low"], "folded": ["stored", "folded"]}
# of a channel's RMS, in its norm's new gain: the signs for attention and for the MLP
SIGNS = {"attention low": (1, -1), "MLP low": (-1, 1)}
EXPONENT = 0.5
PARAMETERS = 2_090_000
RATES = [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2]
MOST_RATES = 8
TUNING_SEEDS, SEEDS = [100, 101, 102], list(range(8))
RUN_COLUMNS = [
    "model", "task", "form", "chosen_by", "types", "r", "parameters", "steps", "batch_size", "lr",
    "seed", "split", "loss", "seconds", "device", "torch", "dtype",
]  # fmt: skip
TOLD_BY = ["model", "task", "form", "chosen_by", "split", "lr", "seed"]


# Tasks: short texts, as a run may take half a minute on one core


TRAININGS = {
    "short sums": {"steps": 25, "batch_size": 8},
    "spelling": {"steps": 30, "batch_size": 8},
}


def short_task(name):
    """A task of short texts, such as "23 - 91 =" and " -68", or "splat backward:" and " talps"."""
    task = ex.load_task(name.replace(" ", "_"), **SIZES)
    return ex.Task(name, task.train, task.validation, task.test)  # without a check: for losses


# Forms of a function


def forms_of(model, tokenizer, pair):
    """{name: a copy of the model that computes the same}."""
    if pair == "folded":
        return {"stored": model, "folded": moves.fold_norms(model)}
    norms = [link for link in norm_links(model) if link.is_free]
    pairs = [link for link in pair_links(model) if link.head is None]
    names = [link.name for link in norms] + [link.reader.name for link in pairs]
    squares = channel_squares(model, tokenizer, norms, names)
    return {name: form(model, name, norms, pairs, squares) for name in PAIRS[pair]}


def form(model, name, norms, pairs, squares):
    """A copy of the model in one of the forms of SIGNS; `squares` are from `channel_squares`."""
    attention, mlp = SIGNS[name]
    in_mlp = {link.writer.name for link in pairs}
    gains, factors = {}, {}
    for link in norms:
        sign = mlp if in_mlp & {reader.name for reader in link.readers} else attention
        n = squares[link.name]
        change = powers_of_two(n ** (sign * EXPONENT / 2), link.gain.double() ** 2 * n)
        gains[link.name] = link.gain * change.to(link.gain)
    for link in pairs:
        h = squares[link.reader.name]
        factors[link.writer.name] = powers_of_two(h ** (mlp * EXPONENT / 2), h)
    return moves.scale_neurons(moves.move_gains(model, gains), factors)


def channel_squares(model, tokenizer, norms, names):
    """{module: mean square over tokens of its input (in_features,)}; of norms without the gain."""
    plain = {link.name: link.plain for link in norms}
    totals, tokens = dict.fromkeys(names, 0), 0

    def hook_of(name):
        def hook(_, args):
            inputs = plain[name](args[0]) if name in plain else args[0]
            totals[name] += inputs.double().square().sum((0, 1))

        return hook

    handles = [model.get_submodule(n).register_forward_pre_hook(hook_of(n)) for n in names]
    with torch.no_grad():
        for text in plop.load_texts("math", n=TEXTS):
            ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=256)
            model(**ids)
            tokens += ids["input_ids"].numel()
    for handle in handles:
        handle.remove()
    return {name: totals[name] / tokens for name in names}


def powers_of_two(wanted, power):
    """Powers of two near `wanted` times a scalar, which keep sum(power * factor**2).

    Powers of two, as products with them are exact: the forms compute the same bit by bit. Each is
    rounded to the nearest on the scale of logarithms; then channels change sides, up or down, one
    by one, as long as that brings the sum nearer. The sum is a map's mean square input, which no
    NFN depends on, but learning rates do. All of shape (channels,), positive, float64.
    """
    scale = (power.sum() / (power * wanted.square()).sum()).sqrt()
    exact = (wanted * scale).log2()
    below, factors = exact.floor().exp2(), exact.round().exp2()
    miss = (power * factors.square()).sum() - power.sum()
    while True:
        flipped = torch.where(factors > below, below, 2 * below)
        misses = miss + power * (flipped.square() - factors.square())
        best = misses.abs().argmin()
        if misses[best].abs() >= miss.abs():
            return factors
        factors[best], miss = flipped[best], misses[best]


# Training in each of them


@dataclass(frozen=True)
class Cell:
    """What is trained: a form, with adapters where the scores of a form (`chosen_by`) want them."""

    model: str
    task: str
    form: str
    chosen_by: str

    @property
    def name(self):
        """Of the placement in the grid."""
        return f"{self.model}: {self.form}, chosen by {self.chosen_by}"

    def rows(self, runs):
        """Those of runs that are of this cell."""
        same = (runs["form"] == self.form) & (runs["chosen_by"] == self.chosen_by)
        return runs[same & (runs["task"] == self.task) & (runs["model"] == self.model)]


def cells_of(task, given):
    """All cells of a task."""
    return [Cell(given.model, task, *two) for two in itertools.product(PAIRS[given.pair], repeat=2)]


def run(given):
    """Tune, tell the power, test: task by task, each shared out over processes."""
    end = time.time() + 60 * given.minutes
    given.folder.mkdir(parents=True, exist_ok=True)
    context = torch.multiprocessing.get_context("spawn")
    with context.Pool(given.workers, load_worker, [given]) as pool:
        try:
            for task in given.tasks:
                cells = cells_of(task, given)
                in_time(pool, tune, cells, end)
                power(given)
                in_time(pool, test, cells, end)
        except torch.multiprocessing.TimeoutError:
            pool.terminate()
            return print(f"stopped after {given.minutes} minutes: the same command goes on")
    collect(given)


def in_time(pool, work, cells, end):
    """Work on all cells; a TimeoutError after the end."""
    results = pool.imap_unordered(work, cells)
    for _ in cells:
        done = results.next(timeout=max(1, end - time.time()))
        print(f"{datetime.now():%H:%M:%S} {done}", flush=True)


def load_worker(given):
    """What a process keeps from one cell to the next."""
    global forms, tokenizer, loaded_tasks, chosen, storage
    torch.set_num_threads(1)
    # on a CPU, so that the forms are the same everywhere
    model, tokenizer = plop.load_model(given.model, device="cpu", dtype="float32", progress=False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    forms = {name: f.to(device) for name, f in forms_of(model, tokenizer, given.pair).items()}
    loaded_tasks = {name: short_task(name) for name in given.tasks}
    storage = given.folder / "runs.journal"
    tables, chosen = [], {}
    for task, form in itertools.product(loaded_tasks.values(), forms):
        texts = [example["prompt"] + example["completion"] for example in task.train[:TEXTS]]
        scores = plop.nfn_scores(forms[form], texts, tokenizer, progress=False)
        chosen[task.name, form] = plop.place(scores, k=3)
        loss = ex.evaluate(forms[form], task, tokenizer, accuracy=False)["loss"]
        about = {"model": given.model, "task": task.name, "form": form, "untrained_loss": loss}
        tables.append(plop.by_type(scores).assign(**about))
        print(f"{task.name}, {form}: loss {loss:.6f}, chosen {chosen[task.name, form].types}")
    pd.concat(tables).to_csv(given.nfn, index=False)


def tune(cell):
    """Find a cell's learning rate on the validation split."""
    return f"{cell}: tuned\n{tuned_rate(cell).to_string(index=False)}"


def test(cell):
    """Train a cell with all seeds at its tuned rate."""
    runs = finished(cell, [tuned_rate(cell)["lr"].item()], SEEDS, "test")
    return f"{cell}: test loss {runs['loss'].mean():.4f}"


def tuned_rate(cell):
    """What `tuned` says of a cell, with further rates while the best one is at the edge."""
    rates = set(RATES)
    while True:
        best = ex.tuned(finished(cell, sorted(rates), TUNING_SEEDS, "validation"))
        lr = best["lr"].item()
        if not best["edge"].item() or len(rates) >= MOST_RATES:
            return best
        rates.add(lr * 2 if lr == max(rates) else lr / 2)


def finished(cell, lrs, seeds, split):
    """The runs of a cell: those of the record, and the others from the grid, which trains them."""
    known = cell.rows(recorded("forms.csv"))
    known = known[(known["split"] == split) & known["seed"].isin(seeds)]
    parts = []
    for lr in lrs:
        own = known[known["lr"] == lr]
        missing = sorted(set(seeds) - set(own["seed"]))
        parts += [own] if len(own) else []
        parts += [trained(cell, lr, missing, split)] if missing else []
    return pd.concat(parts, ignore_index=True).assign(placement=cell.name)


def trained(cell, lr, seeds, split):
    """Runs of a cell from the grid."""
    task, model = loaded_tasks[cell.task], forms[cell.form]
    placement = chosen[cell.task, cell.chosen_by]
    options = TRAININGS[cell.task] | {"accuracy": False, "final": split, "progress": False}
    options |= {"ranks": {cell.name: ex.rank_for(placement, model, PARAMETERS)}}
    study = f"{cell.model}, {split}"
    options |= {"seeds": seeds, "lrs": [lr], "storage": storage, "study": study}
    runs = ex.grid(model, [task], tokenizer, {cell.name: placement}, **options)
    print(runs[["task", "placement", "lr", "seed", "loss", "seconds"]].to_string(), flush=True)
    return runs.assign(model=cell.model, form=cell.form, chosen_by=cell.chosen_by)


def recorded(name, columns=RUN_COLUMNS):
    """A file of data/results; an empty frame where there is none."""
    path = RESULTS / name
    return pd.read_csv(path, comment="#") if path.exists() else pd.DataFrame(columns=columns)


# What is recorded


def all_runs(given):
    """The runs of a model and its pair of forms: those of the record, and those of the folder."""
    journal = given.folder / "runs.journal"
    old = recorded("forms.csv")
    new = ex.read_runs(journal) if journal.exists() else old.assign(placement="")
    parts = []
    for cell in [cell for task in TRAININGS for cell in cells_of(task, given)]:
        own = new[(new["placement"] == cell.name) & (new["task"] == cell.task)]
        own = own.assign(model=cell.model, form=cell.form, chosen_by=cell.chosen_by)
        parts += [part for part in (cell.rows(old), own) if len(part)]
    return pd.concat(parts, ignore_index=True).drop_duplicates(TOLD_BY) if parts else old


def power(given):
    """What the design can see, from the tuning runs; what was written before stays."""
    runs, rows = all_runs(given), []
    for task in given.tasks:
        own = runs[runs["task"] == task]
        tuning = own[own["split"] == "validation"]
        done = tuning.groupby(["form", "chosen_by"]).size() >= len(RATES) * len(TUNING_SEEDS)
        if done.sum() < 4:
            print(f"{task} is tuned in {done.sum()} of 4 cells")
            continue
        about = {"model": given.model, "pair": given.pair, "task": task}
        about["written"] = f"{datetime.now():%Y-%m-%d %H:%M}"
        about["test_runs_finished"] = int((own["split"] == "test").sum())
        rows.append(about | power_of(tuning, PAIRS[given.pair]))
    if rows:
        table = pd.concat([recorded("forms_power.csv", []), pd.DataFrame(rows)])
        table = table.drop_duplicates(["model", "pair", "task"], keep="first")
        command = "python notebooks/tools/record_forms.py run"
        save(table, "forms_power.csv", command=command, seed=f"tuning seeds {TUNING_SEEDS}")
        print(table.T.to_string(), flush=True)


def power_of(tuning, pair):
    """What eight seeds can see of the interaction, from a task's tuning runs, in nats per token.

    Returns
    -------
    dict
        At the tuned rates: `effect_in_...`, in each form of the pair: the loss where the first
        form's choice is trained minus that where the second's is; `interaction`: the first effect
        minus the second; `sd_paired`: its standard deviation over tuning seeds (few of them), and
        `sd_unpaired`: from the spread of single runs at rates within a factor of two, as if seeds
        had nothing in common. `detectable_...`: the interaction seen with a chance of 80 %
        (two-sided 5 %), `..._relative` to the larger effect. `rates`: the tuned ones.
    """
    tuning = tuning.assign(placement=tuning["form"] + ", " + tuning["chosen_by"])
    best = tuning["placement"].map(ex.tuned(tuning).set_index("placement")["lr"])
    at_best = tuning[np.isclose(tuning["lr"], best)]
    losses = at_best.pivot(index="seed", columns=["form", "chosen_by"], values="loss")
    effects = [losses[name, pair[0]] - losses[name, pair[1]] for name in pair]
    near = tuning[(tuning["lr"] / best).between(0.49, 2.01)].groupby(["placement", "lr"])["loss"]
    deviations = {"paired": (effects[0] - effects[1]).std()}
    deviations["unpaired"] = 2 * near.var().mean() ** 0.5
    found = {f"effect_in_{name}": e.mean() for name, e in zip(pair, effects, strict=True)}
    found["interaction"] = (effects[0] - effects[1]).mean()
    for name, sd in deviations.items():
        seen = detectable(sd)
        found |= {f"sd_{name}": sd, f"detectable_{name}": seen}
        found[f"detectable_{name}_relative"] = seen / max(abs(e.mean()) for e in effects)
    rates = best.groupby(tuning["placement"]).first()
    return found | {"rates": "; ".join(f"{name} {lr:g}" for name, lr in rates.items())}


def detectable(sd, chance=0.8, level=0.05):
    """The mean over SEEDS that a two-sided t-test sees, at this standard deviation."""
    n, limit = len(SEEDS), stats.t.isf(level / 2, len(SEEDS) - 1)

    def too_much(size):
        return stats.nct.sf(limit, n - 1, size * n**0.5) - chance

    return sd * optimize.brentq(too_much, 0.01, 5)


def collect(given):
    """What is finished, as CSV files; what other commands have recorded stays."""
    runs = all_runs(given)
    if runs.empty:
        print(f"no run of {given.model} is finished in {given.folder}")
        return
    command = f"python notebooks/tools/record_forms.py run --model {given.model}"
    head = {"command": command, "seed": f"tests {SEEDS}, learning rates tuned with {TUNING_SEEDS}"}
    old = recorded("forms.csv")
    both = pd.concat([old, runs[RUN_COLUMNS]]) if len(old) else runs[RUN_COLUMNS]
    save(both.drop_duplicates(TOLD_BY), "forms.csv", **head)
    if given.nfn.exists():
        table = pd.concat([recorded("forms_nfn.csv", []), pd.read_csv(given.nfn)])
        save(table.drop_duplicates(["model", "task", "form", "type"], keep="last"),
             "forms_nfn.csv", **head | {"seed": 0})  # fmt: skip
    print(runs.groupby(["task", "form", "chosen_by", "split"])["loss"].agg(["size", "mean"]))


def main():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("what", choices=["run", "power", "collect"])
    parser.add_argument("--model", default="SmolLM2-135M-Instruct")
    parser.add_argument("--pair", default="reversed", choices=PAIRS)
    parser.add_argument("--folder", type=Path, default=Path("build/forms"), help="of the runs")
    parser.add_argument("--tasks", nargs="+", default=list(TRAININGS), choices=TRAININGS)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=600)
    given = parser.parse_args()
    given.nfn = given.folder / f"nfn {given.model} {given.pair}.csv"  # a worker leaves it
    {"run": run, "power": power, "collect": collect}[given.what](given)


if __name__ == "__main__":
    main()
