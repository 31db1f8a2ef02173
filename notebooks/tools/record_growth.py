"""Record in data/results how NFN of every map changes in short finetunings, for notebook 01b.

    python notebooks/tools/record_growth.py            growth.csv: SmolLM2-135M (one core: 5 min)
    python notebooks/tools/record_growth.py --steps 2  a trial, into build/

Each run trains for a few steps on one task: "full" trains all weights, "lora" trains adapters on
all linear maps. The seed draws the training examples and starts the adapters. Before and after,
every map is scored on held-out examples of both tasks, so that each run has a control: the task
that it was not trained on. Adapters are merged into the weights before they are scored.

growth.csv holds one row per method, seed, trained task, scored task and map (named by its type and
layer): `before` and `after` are NFN (mean over texts), `norm_before` and `norm_after` the mean
length of the map's outputs, and `loss_before` and `loss_after` the loss on the held-out examples of
the scored task (nats per token of the completions).
"""

import argparse
import copy
from pathlib import Path
from typing import Any

import pandas as pd
import record
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import plop_nb as plop
from plop_nb import experiments as ex
from plop_nb.experiments.evaluation import UNCOUNTED, encoded
from plop_nb.experiments.generation import padded, padding_id

BUILD = Path(__file__).parents[2] / "build"
TASKS = ["short_sums", "spelling"]
METHODS = ["full", "lora"]
SEEDS = [0, 1]
STEPS, BATCH = 20, 4
RATES = {"full": 5e-5, "lora": 1e-3}  # of Adam, the same in every step
RANK = 16  # of the adapters; their scale is alpha = 2 * RANK
TEXTS = 32  # to score each task on


def recorded(model: nn.Module, tokenizer: Any, steps: int) -> pd.DataFrame:
    """The rows of growth.csv, of any model."""
    held_out = {name: ex.load_task(name, train=1, validation=1, test=TEXTS) for name in TASKS}
    before = measured(model, tokenizer, held_out)
    parts = []
    for trained in TASKS:
        for method in METHODS:
            for seed in SEEDS:
                number = steps * BATCH
                task = ex.load_task(trained, train=number, validation=1, test=TEXTS, seed=seed)
                rows = encoded(task, "train", tokenizer)
                network = finetuned(model, rows, padding_id(tokenizer), method=method, seed=seed)
                after = measured(network, tokenizer, held_out)
                both = before.add_suffix("_before").join(after.add_suffix("_after")).reset_index()
                parts.append(both.assign(method=method, seed=seed, trained=trained))
                losses = both.groupby("scored")[["loss_before", "loss_after"]].first().round(2)
                print(method, seed, trained, losses.to_dict("index"), flush=True)
    table = pd.concat(parts).rename(columns={"nfn_before": "before", "nfn_after": "after"})
    columns = ["method", "seed", "trained", "scored", "type", "layer"]
    columns += ["before", "after", "norm_before", "norm_after", "loss_before", "loss_after"]
    return table[columns]


def measured(model: nn.Module, tokenizer: Any, tasks: dict) -> pd.DataFrame:
    """NFN and output norm of every map, and the loss, on the held-out examples of each task."""
    parts = []
    for name, task in tasks.items():
        texts = [example["prompt"] + example["completion"] for example in task.test]
        ids = tokenizer(texts)["input_ids"]
        mask = padded([[1] * len(row) for row in ids], 0)
        with plop.record_norms(model) as record, torch.no_grad():
            model(input_ids=padded(ids, padding_id(tokenizer)), attention_mask=mask)
        frame = record.frame().groupby(["module", "type", "layer"], sort=False, as_index=False)
        means = frame[["nfn", "feature_norm"]].mean().rename(columns={"feature_norm": "norm"})
        loss = ex.evaluate(model, task, tokenizer, accuracy=False)["loss"]
        parts.append(means.assign(scored=name, loss=loss))
    return pd.concat(parts).set_index(["scored", "module", "type", "layer"])


def finetuned(model: nn.Module, rows: list[dict], pad: int, *, method: str, seed: int) -> nn.Module:
    """A copy of the model, trained once on the rows, BATCH at a time; adapters are merged."""
    torch.manual_seed(seed)
    network = copy.deepcopy(model).train().requires_grad_(True)
    if method == "lora":
        config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")
        network = get_peft_model(network, config)
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=RATES[method])
    for first in range(0, len(rows), BATCH):
        network(**batch_of(rows[first : first + BATCH], pad)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    network = network.merge_and_unload() if method == "lora" else network
    return network.eval()


def batch_of(rows: list[dict], pad: int) -> dict[str, torch.Tensor]:
    """Rows of `evaluation.encoded` as one batch; padding has no label."""
    ids = [row["input_ids"] for row in rows]
    return {
        "input_ids": padded(ids, pad),
        "attention_mask": padded([[1] * len(row) for row in ids], 0),
        "labels": padded([row["labels"] for row in rows], UNCOUNTED),
    }


def main() -> None:
    """Record all runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=STEPS, help="of each training")
    steps = parser.parse_args().steps
    if steps != STEPS:
        record.RESULTS = BUILD
    model, tokenizer = plop.load_model(dtype="float32")
    table = recorded(model, tokenizer, steps)
    settings = {"steps": steps, "batch": BATCH, "rank": RANK, "texts": TEXTS}
    settings |= {f"rate_{method}": rate for method, rate in RATES.items()}
    command = "python notebooks/tools/record_growth.py"
    command += "" if steps == STEPS else f" --steps {steps}"
    record.save(table, "growth.csv", **settings, command=command)


if __name__ == "__main__":
    main()
