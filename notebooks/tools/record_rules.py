"""Record in data/results where rules that look at the untrained model want adapters.

    python notebooks/tools/record_rules.py types          a number per type and rule: rules.csv
                                                          (one core: 1 minute a task)
    python notebooks/tools/record_rules.py first-step     what sets of types gain at the first step
                                                          of LoRA: rules_first_step.csv (one core:
                                                          10 minutes a task)
    python notebooks/tools/record_rules.py types --model gemma-3-270m    another model

Both go on where they were interrupted, and leave the rows of other models and tasks as they are.
All numbers are from the training split: they can be known before any training.
"""

import argparse
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import torch
from contenders import budget_of
from record import save
from record_benchmark import load_task, recorded

import plop_nb as plop
from plop_nb import experiments as ex
from plop_nb.experiments.first_steps import FirstSteps, first_step_gain, first_step_rate
from plop_nb.experiments.gradients import completion_gradients
from plop_nb.maps import linear_maps
from plop_nb.placement import Placement
from plop_nb.stats import type_means

TASKS = ["short_sums", "spelling"]
TEXTS = 16  # of the training split, prompt and completion, for norms
EXAMPLES = 32  # for gradients
HELD_OUT = 32  # for the loss after a step
CHOSEN = 3
GROUPS = [["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]]
TYPE_COLUMNS = ["model", "task", "rule", "direction", "type", "value", "chosen"]
STEP_COLUMNS = ["model", "task", "types", "r", "gain", "rate", "untrained_loss", "tried"]
COMMAND = "python notebooks/tools/record_rules.py"


# Rules for types: each gives {type: number}


@dataclass(frozen=True)
class Subject:
    """What the rules look at."""

    model: torch.nn.Module
    task: ex.Task
    tokenizer: object

    @property
    def texts(self):
        """The first examples to train on, prompt and completion."""
        return [example["prompt"] + example["completion"] for example in self.task.train[:TEXTS]]

    def scores(self, form="stored"):
        """NFN of every text and module."""
        return plop.nfn_scores(self.model, self.texts, self.tokenizer, form=form, progress=False)


def norm_rules(subject):
    """{rule: numbers} of what rests on feature norms: means over layers, and a median."""
    stored = subject.scores()
    split = plop.mean_split(subject.model, subject.texts, subject.tokenizer, progress=False)
    return {
        "nfn": type_means(stored),
        "nfn folded": type_means(subject.scores("folded")),
        "nfn centred": split.groupby("type")["nfn_centred"].mean(),
        "nfn median": plop.by_module(stored).groupby("type")["nfn"].median(),
    }


def gradient_rules(subject):
    """{rule: numbers} of what rests on gradients: sums over layers."""
    maps = completion_gradients(subject.model, subject.task, subject.tokenizer, examples=EXAMPLES)
    root = (maps["in_features"] * maps["out_features"]) ** 0.5
    maps["frobenius sqrt(in out)"] = maps["frobenius"] * root
    maps["first-order gain"] = maps["first_order_gain"]
    rules = ["l1", "frobenius", "frobenius sqrt(in out)", "first-order gain"]
    return dict(maps.groupby("type")[rules].sum().items())


def condition_rule(subject):
    """{rule: numbers}: the mean log of largest over smallest singular value (KappaTune)."""
    rows = []
    for linear_map in scored_maps(subject.model):
        values = torch.linalg.svdvals(linear_map.weight.float())
        value = (values[0] / values[-1]).log().item()
        rows.append({"type": linear_map.type, "condition": value})
    return dict(pd.DataFrame(rows).groupby("type").mean().items())


def size_rule(subject):
    """{rule: numbers}: parameters of adapters of rank 1, which know nothing of the model."""
    rows = [{"type": m.type, "size": sum(m.shape)} for m in scored_maps(subject.model)]
    return dict(pd.DataFrame(rows).groupby("type").sum().items())


def scored_maps(model):
    """The linear maps that adapters may go on."""
    return [linear_map for linear_map in linear_maps(model) if linear_map.status == "scored"]


@dataclass(frozen=True)
class Family:
    """Rules that are measured together."""

    rules: list[str]
    direction: str  # which numbers ask for adapters
    measure: Callable


FAMILIES = [
    Family(["nfn", "nfn folded", "nfn centred", "nfn median"], "lowest", norm_rules),
    Family(
        ["l1", "frobenius", "frobenius sqrt(in out)", "first-order gain"], "highest", gradient_rules
    ),
    Family(["size"], "highest", size_rule),
    Family(["condition"], "lowest", condition_rule),
]


def record_types(given, model, tokenizer):
    """rules.csv, family by family."""
    for name, family in itertools.product(given.tasks, FAMILIES):
        known = recorded("rules.csv", TYPE_COLUMNS)
        own = known[(known["model"] == given.model) & (known["task"] == name)]
        if set(family.rules) <= set(own["rule"]):
            continue
        found = family.measure(Subject(model, load_task(name), tokenizer))
        about = {"model": given.model, "task": name, "direction": family.direction}
        parts = [ranked(rule, values, family.direction) for rule, values in found.items()]
        new = pd.concat(parts).assign(**about)[TYPE_COLUMNS]
        head = {"texts": TEXTS, "examples": EXAMPLES, "command": f"{COMMAND} types"}
        save(pd.concat([known, new]), "rules.csv", **head)
        print(new[new["chosen"]].groupby("rule")["type"].agg(" ".join), flush=True)


def ranked(rule, values, direction):
    """A row per type, the best first, with the chosen ones flagged."""
    table = values.sort_values(ascending=direction == "lowest", kind="stable")
    table = table.rename("value").rename_axis("type").reset_index()
    return table.assign(rule=rule, chosen=table.index < CHOSEN)


# The rule for sets


def sets_of(types):
    """Each type alone, all of them, the groups, and all triples, as sorted lists."""
    sets = [[name] for name in types] + [list(types)]
    sets += [group for group in GROUPS if set(group) <= set(types)]
    sets += [list(three) for three in itertools.combinations(types, CHOSEN)]
    unique = {"+".join(sorted(names)): sorted(names) for names in sets}
    return list(unique.values())


def record_first_step(given, model, tokenizer):
    """rules_first_step.csv, set by set."""
    table = plop.module_table(model).query("status == 'scored'")
    budget = budget_of(size_rule(Subject(model, None, tokenizer))["size"])
    for name in given.tasks:
        known = recorded("rules_first_step.csv", STEP_COLUMNS)
        done = set(known.loc[(known["model"] == given.model) & (known["task"] == name), "types"])
        sets = [names for names in sets_of(sorted(set(table["type"]))) if label(names) not in done]
        if not sets:
            continue
        sizes = {"examples": EXAMPLES, "held_out": HELD_OUT}
        steps = FirstSteps(model, load_task(name), tokenizer, **sizes)
        for names in sets:
            modules = table.loc[table["type"].isin(names), "module"].tolist()
            placement = Placement(names, modules)
            r = ex.rank_for(placement, model, budget)
            found = steps.of(placement, r=r)
            add_set(found, model=given.model, task=name, types=label(names), r=r)


def label(names):
    """A set of types in one word."""
    return "+".join(sorted(names))


def add_set(found, **about):
    """Add the row of a set to the record."""
    row = about | {
        "gain": first_step_gain(found),
        "rate": first_step_rate(found),
        "untrained_loss": found.loc[found["rate"] == 0, "loss"].item(),
        "tried": len(found) - 1,
    }
    known = recorded("rules_first_step.csv", STEP_COLUMNS)
    new = pd.DataFrame([row])
    head = {"examples": EXAMPLES, "held_out": HELD_OUT, "command": f"{COMMAND} first-step"}
    table = pd.concat([known, new]) if len(known) else new
    save(table[STEP_COLUMNS], "rules_first_step.csv", **head)
    print(row, flush=True)


def main():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("what", choices=["types", "first-step"])
    parser.add_argument("--model", default="SmolLM2-135M-Instruct")
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    # on a CPU in float32, so that the rules are the same everywhere
    model, tokenizer = plop.load_model(given.model, device="cpu", dtype="float32", progress=False)
    work = {"types": record_types, "first-step": record_first_step}
    work[given.what](given, model, tokenizer)


if __name__ == "__main__":
    main()
