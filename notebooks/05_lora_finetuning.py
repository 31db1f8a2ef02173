# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Does the chosen placement pay?
#
# The claim: adapters on the types with the lowest score train better than, or as well as, adapters on attention, on the
# MLP or everywhere. The gains that the paper reports are a few points, and its reviewers doubted that they are more than
# noise. So compare where a comparison means something: at **equal parameters**, with the **learning rate tuned for
# each placement** on a validation split, over **several seeds**, tested on examples that nothing was tuned on.
#
# Live: four placements for a few steps on a CPU. Recorded with the same code
# (`python notebooks/tools/record_finetuning.py`): all placements, three tasks, five seeds, on an H100.

# %% tags=["setup"]
# Setup, the same in every notebook. On Colab it installs plop_nb and leaves Colab's torch as it is.
import importlib.util

from IPython import get_ipython

if importlib.util.find_spec("plop_nb") is None:
    get_ipython().run_line_magic(
        "pip", 'install -q "plop_nb[tasks,finetune] @ git+https://plop-nb.invalid/plop_nb"'
    )

import torch

import plop_nb as plop

# %% tags=["settings"]
MODEL = None  # None: SmolLM2-135M-Instruct; else a Hub id or a folder, such as "meta-llama/Llama-3.2-1B"
TASK = "sums"  # or "gsm", "syllogisms", "code"; with a Hub: "anli", "metamath"
TRAIN, TEST = 400, 48  # examples, live
STEPS, BATCH, LR = 15, 8, 2e-3  # a GPU does 100 steps of 16
SEEDS = [0]
RANK = 16  # of the chosen placement; the others get the rank that gives as many parameters

# %% tags=["nbval-ignore-output"]
import copy

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from scipy.stats import t as student

from plop_nb import experiments as ex
from plop_nb.placement import Placement
from plop_nb.plots import CHOSEN
from plop_nb.texts import data_file

model, tokenizer = plop.load_model(MODEL)
task = ex.load_task(TASK, train=TRAIN, validation=16, test=TEST)

# %% [markdown]
# ## A task with a checker
#
# Prompts and completions, three splits without a prompt in common. The adapters learn the completions only.

# %%
example = task.train[0]
print(task)
print(example["prompt"] + example["completion"])
assert task.check(example["completion"], example) and not task.check(" 12345", example)

# %% [markdown]
# ## Placements at equal parameters
#
# Score the types on training examples, and choose. To compare, place adapters by hand as well, each at the rank whose
# number of parameters comes nearest:

# %%
texts = [e["prompt"] + e["completion"] for e in task.train[:16]]
scores = plop.nfn_scores(model, texts, tokenizer, progress=False)
chosen = plop.place(scores, k=3)
highest = plop.by_type(scores)["type"].tolist()[-3:]
by_hand = {"inverse": highest, "attention": ["q_proj", "k_proj", "v_proj", "o_proj"]}
by_hand["all"] = plop.by_type(scores)["type"].tolist()
placements = {"PLoP": chosen, **{name: Placement.of_types(scores, types) for name, types in by_hand.items()}}
chosen

# %%
def size(placement, r):
    return int(placement.check(model, placement.lora_config(model, r=r))["trainable"].sum())

budget = size(chosen, RANK)
ranks = {name: ex.rank_for(placement, model, budget) for name, placement in placements.items()}
rows = [(name, "+".join(p.types), ranks[name], size(p, ranks[name])) for name, p in placements.items()]
table = pd.DataFrame(rows, columns=["placement", "types", "r", "parameters"])
table["off"] = (table["parameters"] / budget - 1).map("{:+.1%}".format)
assert (table["parameters"] / budget - 1).abs().max() < 0.03
table

# %% [markdown]
# ## A short race, live
#
# `grid` trains every placement with TRL's trainer and returns one row a run. A file given as `storage=`
# (or a database) keeps finished runs; the same call after an interrupt goes on from there.

# %% tags=["nbval-ignore-output"]
import tempfile
from pathlib import Path

folder = Path(tempfile.mkdtemp())
settings = {"steps": STEPS, "batch_size": BATCH, "logging_steps": 1}
options = {"ranks": ranks, "seeds": SEEDS, "lrs": [LR], "accuracy": False, "progress": False, **settings}
runs = ex.grid(model, [task], tokenizer, placements, storage=folder / "runs.journal", **options)
runs[["placement", "r", "parameters", "seed", "loss", "seconds"]].round(2)

# %%
before = ex.evaluate(model, task, tokenizer, accuracy=False)["loss"]
again = ex.grid(model, [task], tokenizer, placements, storage=folder / "runs.journal", **options)
assert (runs["loss"] < 0.7 * before).all() and again["seconds"].equals(runs["seconds"])
print(f"test loss {before:.1f} before; every placement takes more than 30 % off; the second call ran nothing")

# %% tags=["nbval-ignore-output"]
points = ex.curves(runs)
order = {"PLoP": CHOSEN, **dict(zip(by_hand, sns.color_palette("colorblind")[1:4]))}
fig, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
sns.lineplot(points, x="step", y="train_loss", hue="placement", palette=order, lw=2, ax=ax)
ax.set(ylabel="training loss (nats per token)", title=f"{task.name}: {len(SEEDS)} seed, {STEPS} steps of {BATCH}")
ax.legend(frameon=False)
sns.despine()

# %% [markdown]
# Curves of one seed, on top of one another: such a picture proves nothing, whichever is lowest at the end.
#
# **The same seed gives the same result** (on a CPU to the last digit), and adapters that are **saved, loaded and merged**
# evaluate as they did after training:

# %%
short = {"r": RANK, "lr": LR, "steps": 2, "batch_size": BATCH, "accuracy": False}
few = copy.copy(task)
object.__setattr__(few, "test", task.test[:16])
one = ex.finetune(model, few, tokenizer, chosen, **short, out=folder / "adapter")
two = ex.finetune(model, few, tokenizer, chosen, **short)
if model.device.type == "cpu":
    assert one["loss"] == two["loss"]
print("the same loss twice:", one["loss"] == two["loss"])

# %%
from peft import PeftModel

loaded = PeftModel.from_pretrained(copy.deepcopy(model), folder / "adapter")
losses = [one["loss"], ex.evaluate(loaded, few, tokenizer, accuracy=False)["loss"]]
losses.append(ex.evaluate(loaded.merge_and_unload(), few, tokenizer, accuracy=False)["loss"])
assert np.ptp(losses) < 1e-3 * losses[0]
print("trained, loaded, merged: equal within 0.1 %;", ", ".join(sorted(p.name for p in (folder / "adapter").iterdir())))

# %% [markdown]
# The folder's `adapter_config.json` is what PEFT's own comparison suite (MetaMathQA) takes as an experiment;
# `chosen.lora_config(model, r=32).save_pretrained(folder)` writes one without training.
#
# ## What was recorded
#
# SmolLM2-135M on three tasks: **sums** (two or three numbers, a numeric answer), **syllogisms** (yes or no) and **code**
# (HumanEval's prompts and solutions; only its loss). Every placement got its own learning rate: three rates, and
# further ones while the best was at the edge, by validation loss, one seed. Then five other seeds, tested.

# %%
recorded = pd.read_csv(data_file("results/finetuning.csv"), comment="#")
labels = pd.read_csv(data_file("results/finetuning_placements.csv"), comment="#")
tuning, tests = recorded.query("split == 'validation'"), recorded.query("split == 'test'")
TASKS = ["sums", "syllogisms", "code"]


def stage(name):
    """The tested runs of one stage, under their labels."""
    rows = labels.query("stage == @name and task in @TASKS").merge(tests, on=["task", "placement"])
    return rows.rename(columns={"placement": "trained", "label": "placement"})


equal, alone = stage("equal parameters"), stage("alone")
assert (equal.groupby(["task", "placement"])["seed"].nunique() == 5).all() and not set(tuning["seed"]) & set(tests["seed"])
print(f"{len(recorded)} runs, {len(tuning)} of them to tune")

# %% [markdown]
# Several criteria choose the same: by gradient norm and by condition number the three "best" types of SmolLM2 are those
# of PLoP on every task, and the centred score (notebook 04) chooses them on code.

# %%
same = equal.drop_duplicates(["task", "placement"]).pivot(index="placement", columns="task", values="types")[TASKS]
as_set = same.map(lambda names: frozenset(names.split("+")))
assert (as_set.loc[["gradient", "condition"]] == as_set.loc["PLoP"]).all(axis=None)
assert as_set.loc["centred", "code"] == as_set.loc["PLoP", "code"]
same.map(lambda names: names.replace("_proj", ""))

# %% [markdown]
# ## The learning rate first
#
# Validation loss against the learning rate, a line per placement at equal parameters. From 1e-3 to 4e-3 the rate moves a
# placement by several times what the placements differ by on code, by about as much on sums, and by half as much on
# syllogisms. On sums each of the three rates has another winner; on syllogisms PLoP is among the last two at each.

# %%
shown = labels.query("stage == 'equal parameters'").merge(tuning, on=["task", "placement"])
shown = shown.query("label not in ['gradient', 'condition'] and not (label == 'centred' and task == 'code')")
by_rate = shown.pivot_table(index=["task", "label"], columns="lr", values="loss")
inner = by_rate[[0.001, 0.002, 0.004]]
moved = pd.DataFrame({"by the rate (median)": (inner.max(axis=1) - inner.min(axis=1)).groupby("task").median(),
                      "by the placement": by_rate.min(axis=1).groupby("task").agg(np.ptp)}).loc[TASKS]  # fmt: skip
ratio = moved["by the rate (median)"] / moved["by the placement"]
assert ratio["code"] > 3 and 0.8 < ratio["sums"] < 1.5 and 0.4 < ratio["syllogisms"] < 0.6
assert inner.loc["sums"].idxmin().nunique() == 3 and (inner.loc["syllogisms"].rank(ascending=False).loc["PLoP"] <= 2).all()
moved.round(3)

# %% tags=["nbval-ignore-output"]
palette = {name: "0.75" for name in shown["label"].unique()}
palette |= {"PLoP": CHOSEN, "inverse": sns.color_palette("colorblind")[1], "all": "0.15"}
grid = sns.relplot(
    shown, x="lr", y="loss", hue="label", col="task", col_order=TASKS, kind="line", palette=palette, marker="o",
    height=3.3, aspect=1, facet_kws={"sharey": False},
)  # fmt: skip
grid.set_axis_labels("learning rate", "validation loss").set_titles("{col_name}").legend.set_title("")
for ax, task_name in zip(grid.axes.flat, TASKS):
    losses = shown.query("task == @task_name")["loss"]
    ax.set(xscale="log", xticks=[5e-4, 1e-3, 2e-3, 4e-3, 8e-3], xticklabels=["5e-4", "1e-3", "2e-3", "4e-3", "8e-3"])
    ax.set_ylim(top=losses.quantile(0.9))
    ax.minorticks_off()

# %% [markdown]
# ## The curves
#
# Training loss at the tuned rates, means over five seeds. Differences are judged below, on test loss and with intervals.

# %% tags=["nbval-ignore-output"]
curves = pd.read_csv(data_file("results/finetuning_curves.csv"), comment="#").rename(columns={"placement": "trained"})
curves = curves.merge(equal.drop_duplicates(["task", "placement"])[["task", "trained", "placement"]])
grid = sns.relplot(
    curves[curves["placement"].isin(order)], x="step", y="train_loss", hue="placement", palette=order, col="task",
    col_order=TASKS, kind="line", height=3.3, aspect=1, facet_kws={"sharex": False},
)  # fmt: skip
grid.set(yscale="log").set_axis_labels("step", "training loss (nats)").set_titles("{col_name}").legend.set_title("")
for ax in grid.axes.flat:
    ax.set_yticks([0.1, 0.3, 1, 3], ["0.1", "0.3", "1", "3"])
    ax.minorticks_off()

# %% [markdown]
# ## The verdict
#
# Is a placement better or worse than PLoP? Test loss, paired over the five seeds; undecided where the 95 % interval of the
# difference, drawn below, holds zero. (Placements that are PLoP's under another name are left out.)

# %%
others = equal[~equal["placement"].isin(["gradient", "condition"])]
others = others[~((others["placement"] == "centred") & (others["task"] == "code"))]
verdicts = ex.versus(others, "PLoP")
verdict = verdicts.pivot(index="placement", columns="task", values="verdict")[TASKS]
means = others.pivot_table(index="placement", columns="task", values="loss")
level = {"MLP", "modules", "centred"}
assert (verdict["code"].drop(level) == "worse").all() and means["code"].idxmin() == "PLoP"
assert not (verdict["syllogisms"] == "worse").any() and verdict.loc["inverse", "syllogisms"] == "better"
assert means["syllogisms"].idxmax() == "PLoP" and means["syllogisms"].idxmin() == "inverse"
assert (verdict["sums"] == "better").sum() == 5
parameters = equal.groupby("placement")["parameters"].max().rename("parameters")
verdict.fillna("the same").join(parameters)

# %% [markdown]
# * **Code**: PLoP has the lowest mean loss. It is better than attention, query + value, everything, the inverse and both
#   random sets; against the MLP and against single modules it is undecided.
# * **Syllogisms**: PLoP has the highest mean loss, and its inverse, the types with the *highest* scores, the lowest.
# * **Sums**: PLoP looks worse than five of the nine others. Look closer before believing it:
#
# ### How much hangs on the tuning?
#
# One seed tuned the rates. For PLoP on sums it preferred 4e-3 to 2e-3 by 0.002 in loss. So train PLoP again with the
# same five seeds, at half its rate (`record_finetuning.py halved`, on a CPU in float32):

# %%
on_sums, halved = others.query("task == 'sums'"), pd.read_csv(data_file("results/finetuning_halved.csv"), comment="#")
rows = pd.concat([on_sums.query("placement == 'PLoP'"), halved])
name = on_sums.query("placement == 'PLoP'")["trained"].iloc[0]
rates = tuning.query("task == 'sums' and placement == @name").set_index("lr")["loss"].rename("validation loss, one seed")
by_rate = rows.groupby("lr")["loss"].agg(["mean", "std"]).add_prefix("test loss, five seeds: ")
assert abs(rates[0.004] - rates[0.002]) < 0.003 < 0.03 < np.ptp(by_rate.iloc[:, 0])
by_rate.join(rates).round(3)

# %%
again = ex.versus(pd.concat([on_sums.query("placement != 'PLoP'"), halved]), "PLoP").set_index("placement")
assert set(again.index[again["verdict"] != "undecided"]) == {"query + value"} and not (again["verdict"] == "better").any()
again[["difference", "low", "high", "verdict"]].round(3)

# %% [markdown]
# At half the rate PLoP is level with the others, and better than query + value: the verdict does not survive another
# rate. (Nor another device and precision, which changed with it; and PLoP alone got a second try, so this does not count
# for it either.) So **on sums it is undecided**, and every verdict here stands only as firmly as its tuning. Those on
# syllogisms and code do not hang on one rate: the inverse is ahead of PLoP at every rate on syllogisms, and behind it at
# all but the highest, harmful one on code. Validation loss of the inverse minus PLoP's, both at the same rate (tuned: 4e-3
# on syllogisms and 1e-3 on code, for both):

# %%
wide = shown.pivot_table(index=["task", "lr"], columns="label", values="loss")
gap = (wide["inverse"] - wide["PLoP"]).unstack()
assert (gap.loc["syllogisms"].dropna() < -0.02).all() and (gap.loc["code", [0.0005, 0.001, 0.002]] > 0).all()
assert wide.loc["code"].loc[0.004, ["PLoP", "inverse"]].min() > 0.05 + wide.loc["code"].loc[0.001, "inverse"]
gap.loc[["syllogisms", "code"]].round(3)

# %% [markdown]
# The verdicts in one picture. Dots are mean differences, lines 95 % intervals; left of zero the other placement is better
# than PLoP.

# %% tags=["nbval-ignore-output", "picture"]
fig, axes = plt.subplots(1, 3, figsize=(11, 3.8), layout="constrained", sharey=True)
rank = verdicts.groupby("placement")["difference"].mean().sort_values(ascending=False).index
colors = {"better": sns.color_palette("colorblind")[1], "worse": CHOSEN, "undecided": "0.6"}
for ax, task_name in zip(axes, TASKS):
    found = again if task_name == "sums" else verdicts.query("task == @task_name").set_index("placement")
    for row in found.itertuples():
        y = list(rank).index(row.Index)
        ax.plot([row.low, row.high], [y, y], color=colors[row.verdict], lw=2)
        ax.plot(row.difference, y, "o", color=colors[row.verdict])
    ax.axvline(0, color="0.15", lw=1, ls="--", zorder=0)
    ax.locator_params(axis="x", nbins=4)
    title = "sums (PLoP at half its rate)" if task_name == "sums" else task_name
    ax.set(title=title, xlabel="test loss minus PLoP's", yticks=range(len(rank)), yticklabels=rank)
fig.suptitle("Other placements than the lowest scores: better (orange), worse (blue), undecided (grey)", fontsize=13)
sns.despine()

# %% [markdown]
# ### Accuracy on syllogisms

# %%
scored = equal.query("task == 'syllogisms' and placement not in ['gradient', 'condition']")
by_accuracy = ex.versus(scored, "PLoP", "accuracy").set_index("placement")
assert not (by_accuracy["verdict"] == "worse").any() and by_accuracy.loc["inverse", "low"] > 0.05
accuracy = scored.groupby("placement")["accuracy"].mean().sort_values().rename("accuracy")
by_accuracy[["difference", "low", "high", "verdict"]].join(accuracy, how="right").round(3)

# %% [markdown]
# Always answering "Yes" would be right in this share of them:

# %%
syllogisms = ex.load_task("syllogisms")
yes = np.mean([syllogisms.check(" Yes", example) for example in syllogisms.test])
assert (scored["accuracy"] > yes).all()
print(f"{yes:.0%}")

# %% [markdown]
# **Do not lean on this task.** Two things were found after the runs. First, reasoning-gym takes "All cats are dogs. Some
# dogs are birds. So some cats are birds." for a valid argument, which it is not: the dogs that are birds may be no cats.
# So about one label in eight is wrong, in training and in testing. (`load_task("short_syllogisms")` leaves these out.)

# %%
from plop_nb.experiments.tasks.gym import has_undistributed_middle
from plop_nb.texts import reasoning_gym

entries = reasoning_gym().create_dataset("syllogism", size=2000, seed=0)
wrong = np.mean([has_undistributed_middle(entry) for entry in entries])
assert 0.10 < wrong < 0.15
print(f"{wrong:.0%} of the labels are wrong")

# %% [markdown]
# Second, each type *alone*, with a third of the parameters, has a lower mean loss there than PLoP's three types together.
# More adapters on the same maps cannot be a worse place: these runs were not trained as well as they could be (learning
# rate, scale, steps), and what they say about places is in doubt.

# %%
singles = alone.query("task == 'syllogisms'").groupby("placement")[["loss", "parameters"]].mean()
together = equal.query("task == 'syllogisms' and placement == 'PLoP'")[["loss", "parameters"]].mean()
assert (singles["loss"] < together["loss"]).all() and (singles["parameters"] < 0.4 * together["parameters"]).all()
singles.sort_values("loss").assign(loss=singles["loss"].round(3))

# %% [markdown]
# ### How sure are the verdicts?
#
# Twenty-six comparisons at 95 % give about one false verdict. At 99.8 % each, all of them together hold with 95 % (as far
# as the tuning does). Six are left: the inverse is better on syllogisms, and on code PLoP is better than attention, query +
# value, the inverse and the random sets, no longer than everything.

# %%
strict = ex.versus(others, "PLoP", level=0.998).query("verdict != 'undecided'")
surest = set(strict["placement"] + " on " + strict["task"])
sure = ["attention", "inverse", "query + value", "random 1", "random 2"]
assert len(verdicts) == 26 and surest == {"inverse on syllogisms", *(f"{name} on code" for name in sure)}
strict[["task", "placement", "difference", "low", "high", "verdict"]].round(4)

# %% [markdown]
# And the intervals speak for other *seeds*, not for other problems. HumanEval leaves us 40 problems to test on and 24 for
# validation. On those 24, by the tuning runs (one seed, each placement at its best rate), others come before PLoP, one of
# them a random set that is surely worse on the 40:

# %%
best = shown.query("task == 'code'").groupby("label")["loss"].min()
ahead = (best - best["PLoP"]).loc[lambda gap: gap < 0].sort_values()
assert set(ahead.index) == {"all", "MLP", "random 2"}
ahead.round(4)

# %% [markdown]
# ## The premise: each type alone
#
# The reasoning behind the method is about single types: a low score means much to gain. So train each type alone, all
# with 0.76 million parameters, each at its own tuned rate.

# %%
types = pd.read_csv(data_file("results/finetuning_types.csv"), comment="#")
one_type = alone.merge(types.rename(columns={"type": "placement"}), on=["task", "placement"])
criteria = {"nfn": "NFN", "centred": "centred NFN", "log_condition": "condition number", "gradient": "gradient norm"}
def correlate(g):
    return g[list(criteria)].corrwith(g["loss"], method="spearman")

by_seed = one_type.groupby(["task", "seed"])[[*criteria, "loss"]].apply(correlate)
half = student.ppf(0.975, 4) * by_seed.groupby("task").std() / 5**0.5
mean = by_seed.groupby("task").mean()
assert (mean.loc[["sums", "code"], "nfn"] - half.loc[["sums", "code"], "nfn"] > 0.3).all()
assert (mean - half).loc["syllogisms", "nfn"] < 0 < (mean + half).loc["syllogisms", "nfn"]
(mean.round(2).astype(str) + " ± " + half.round(2).astype(str)).rename(columns=criteria).loc[TASKS]

# %% [markdown]
# Rank correlation with the test loss, over the seven types (intervals over seeds; with seven types they say nothing
# about other models). On code and sums a low score goes with a low loss, as the method wants; a large gradient norm
# does as well, and the condition number on code. On syllogisms nothing predicts: there the types hardly differ.

# %% tags=["nbval-ignore-output"]
fig, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
for ax, name in zip(axes, TASKS):
    part = one_type.query("task == @name").groupby("placement")[["nfn", "loss"]].agg(["mean", "std"])
    part, half = part.xs("mean", axis=1, level=1), student.ppf(0.975, 4) * part["loss", "std"] / 5**0.5
    ax.errorbar(part["nfn"], part["loss"], yerr=half, fmt="o", color=CHOSEN, capsize=3)
    for side, (label, row) in zip([1, -1] * 4, part.sort_values("nfn").iterrows()):
        at = (row["nfn"], row["loss"] + side * half[label])
        ax.annotate(label.removesuffix("_proj"), at, xytext=(0, 10 * side), textcoords="offset points", ha="center", va="center")
    ax.margins(y=0.12)
    ax.set(title=name, xlabel="NFN of the type", ylabel="test loss, trained alone" if name == "sums" else "")
fig.suptitle("Each type alone at 0.76 M parameters (95 % over seeds)", fontsize=13)
sns.despine()

# %% [markdown]
# Query and key, the types with the highest scores, gain least on code and sums. The premise rests on these two of seven
# points: without them nothing is left of the correlation. And the *lowest* type has the lowest loss on none of the three
# tasks: the value map, far below all others by score, is nowhere first (by more than the noise of five seeds on code only).

# %%
others_alone = one_type[~one_type["placement"].isin(["q_proj", "k_proj"])].groupby(["task", "placement"])[["nfn", "loss"]].mean()
without = others_alone.groupby("task").apply(lambda g: g["nfn"].corr(g["loss"], method="spearman")).loc[["sums", "code"]]
assert (without.abs() < 0.35).all()
without.round(2).rename("rank correlation without query and key")

# %%
losses = one_type.pivot_table(index="placement", columns="task", values="loss")[TASKS]
assert (losses.idxmin() != "v_proj").all() and set(losses["code"].nlargest(2).index) == {"q_proj", "k_proj"}
assert set(losses["sums"].nlargest(2).index) == {"q_proj", "k_proj"}
beats_value = ex.versus(alone, "v_proj").query("verdict == 'better'")
assert list(beats_value["task"] + beats_value["placement"]) == ["codedown_proj"]
losses.rank().astype(int).loc[types.query("task == 'sums'").sort_values("nfn")["type"]]

# %% [markdown]
# ## Equal rank, and how many types?
#
# At equal *rank* a placement on more or wider types has more parameters. And the paper fixes k = 3: is that the right
# number? A smaller record for both, made on two CPU cores (`record_finetuning.py run --small`): sums, 30 steps of 8,
# r = 16 everywhere. Rates tuned with two seeds on the validation split, and five other seeds tested. First the lowest
# type alone, then the two lowest, and so on to all seven:

# %%
small = pd.read_csv(data_file("results/finetuning_small.csv"), comment="#").rename(columns={"placement": "trained"})
plans = labels.query("task == 'sums' and label not in ['gradient', 'condition']").rename(columns={"placement": "trained"})
rank_16 = plans[["stage", "label", "trained"]].merge(small.query("split == 'test'"), on="trained")
rank_16 = rank_16.rename(columns={"label": "placement"})
nested, same_rank = (rank_16.query("stage == @name") for name in ("nested", "equal rank"))
against = ex.versus(nested, "k = 3").set_index("placement")[["difference", "low", "high", "verdict"]]
assert nested["placement"].nunique() == 7 and (nested.groupby("placement")["seed"].nunique() == 5).all()
assert (against["verdict"] == "undecided").all()
means = nested.groupby("placement")[["parameters", "lr", "loss", "accuracy"]].mean()
means.astype({"parameters": int}).assign(lr=means["lr"].map("{:.4f}".format)).join(against).round(3)

# %% tags=["nbval-ignore-output"]
markers = dict(zip(["query + value", "attention", "inverse", "MLP"], "s^vD"))
fig, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
for ax, column in zip(axes, ["loss", "accuracy"]):
    apart = same_rank[same_rank["placement"] != "all"]
    for row in pd.concat([ex.versus(nested, "k = 3", column), ex.versus(apart, "PLoP", column)]).itertuples():
        x, by_k = row.parameters / 1e6, row.placement not in markers
        ax.plot([x, x], [row.low, row.high], color=CHOSEN if by_k else "0.5")
        ax.plot(x, row.difference, "o" if by_k else markers[row.placement], color=CHOSEN if by_k else "0.5",
                label=None if by_k else row.placement)  # fmt: skip
        ax.annotate(row.placement[-1] if by_k else "", (x, row.high), (0, 3), textcoords="offset points",
                    ha="center", color=CHOSEN)  # fmt: skip
    ax.axhline(0, color=CHOSEN, lw=1, zorder=0)
    ax.set(xlabel="adapter parameters (million), r = 16", ylabel=f"test {column} minus that of k = 3")
axes[1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
sns.despine()

# %% [markdown]
# Blue, by number: the k lowest types; grey: other placements of the same rank; 95 % intervals of paired differences.
# From k = 2 on the curve is flat, within these intervals: three and a half times the parameters buy nothing. The
# paper's k = 3 is as good as any other k here, and no better.
#
# At equal rank, each placement minus PLoP, beside its parameters:

# %%
by_rank = ex.versus(same_rank, "PLoP").set_index("placement").sort_values("parameters")
fewer = by_rank["parameters"] < by_rank["reference_parameters"]
assert (by_rank.loc[fewer, "verdict"] == "worse").all() and (by_rank.loc[~fewer, "verdict"] == "undecided").all()
assert (ex.versus(same_rank, "PLoP", "accuracy")["verdict"] == "undecided").all()
by_rank[["parameters", "reference_parameters", "difference", "low", "high", "verdict"]].round(3)

# %% [markdown]
# At equal rank PLoP is better by loss than attention, the inverse and query + value, all of which have fewer parameters,
# and level with MLP and everything, which have more; by accuracy nothing is decided. At equal *parameters*, above, sums
# decided nothing, in runs that were longer and on another device. Size is part of it: a comparison at equal rank, which is
# the usual one, cannot tell it from place. It is not all of it: the two lowest types (k = 2) are fewer parameters than
# attention and the inverse, and ahead of both:

# %%
smaller = pd.concat([nested.query("placement == 'k = 2'"), same_rank.query("placement in ['attention', 'inverse']")])
smaller = ex.versus(smaller, "k = 2").set_index("placement")
assert (smaller["verdict"] == "worse").all() and (smaller["reference_parameters"] < smaller["parameters"]).all()
smaller[["parameters", "reference_parameters", "difference", "low", "high", "verdict"]].round(3)

# %% [markdown]
# Two seeds tuned the rates. Would one have done?

# %%
tried = small.query("split == 'validation'")
own = tried.loc[tried.groupby(["trained", "seed"])["loss"].idxmin()].pivot(index="trained", columns="seed", values="lr")
disagree = int((own[100] != own[101]).sum())
assert disagree > len(own) / 2
print(f"the two seeds prefer different rates for {disagree} of {len(own)} placements")

# %% [markdown]
# A budget of parameters can decide k, too:

# %%
for parameters in (400_000, 1_500_000, 2_500_000, 5_000_000):
    placement = plop.place(scores, parameters=parameters, r=RANK)
    print(f"{parameters:>9,}: {'+'.join(placement.types)}, {size(placement, RANK):,}")
    assert size(placement, RANK) <= parameters

# %% [markdown]
# ## What happens to the scores while adapters train?
#
# The theory says that training aligns weights and inputs (notebook 01). `NormsCallback` scores the *effective* map
# $W + BA$ on fixed texts while the trainer runs; adapters on all types, so that every type may move. A few steps live:

# %% tags=["nbval-ignore-output"]
norms = ex.NormsCallback(texts[:2], tokenizer, every=2)
ex.finetune(model, few, tokenizer, placements["all"], **{**short, "r": ranks["all"]}, callbacks=[norms])
norms.frame().query("type == 'v_proj'")

# %% [markdown]
# Recorded over 100 steps on sums (one seed, on a CPU): the scores hardly move, none by more than 2 %, and the three
# lowest on average not more than the three highest.

# %%
track = pd.read_csv(data_file("results/finetuning_norms.csv"), comment="#")
columns = {"feature_norm": "feature norm", "nfn": "NFN"}
start = track.query("step == 0").set_index(["seed", "type"])[list(columns)]
key = pd.MultiIndex.from_frame(track[["seed", "type"]])
for name, label in columns.items():
    track[f"{label}, % of the start"] = 100 * track[name].to_numpy() / start.loc[key, name].to_numpy()
last = track.query("step == step.max()").groupby("type")["NFN, % of the start"].mean()
assert (last - 100).abs().max() < 2 and last[chosen.types].mean() < last[highest].mean()
print(f"{track['seed'].nunique()} seed; NFN after 100 steps, % of the start: {last.round(1).to_dict()}")

# %% tags=["nbval-ignore-output"]
fig, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
order = track.query("step == 0").groupby("type")["nfn"].mean().sort_values().index
for ax, column in zip(axes, ["feature norm, % of the start", "NFN, % of the start"]):
    sns.lineplot(track, x="step", y=column, hue="type", hue_order=order, palette="viridis", marker="o", ax=ax,
                 legend=ax is axes[1], errorbar=None)  # fmt: skip
    ax.axhline(100, color="0.15", lw=1, ls="--", zorder=0)
axes[1].legend(frameon=False, bbox_to_anchor=(1, 1), title="lowest score first")
sns.despine()

# %% [markdown]
# ## What is established, and what not
#
# **Established**, for SmolLM2-135M, adapters of 2.4 million parameters, 100 steps of 16 examples (25 on code):
#
# * On 40 problems of code the claim holds against attention, query + value, the inverse and random sets. Against the MLP
#   it is undecided, against everything not sure once all comparisons are counted; 24 other problems order them otherwise.
# * On yes-or-no syllogisms the types with the *highest* scores train better, by loss and by accuracy. But one label in
#   eight is wrong there, and single types beat PLoP's three with a third of the parameters: that record is in doubt.
# * On sums nothing is decided, except that a learning rate tuned with one seed can make a verdict of its own.
# * As far as these records go, the best place depends on the task. The lowest scores are the same three types on every
#   task (notebook 03): no rule that follows them can be best on all.
# * Query and key alone gain least on code and sums, as their high scores say; among the other five types the score says
#   nothing, and value, with the lowest, is nowhere first. On this model gradient norms and condition numbers choose PLoP's types, so nothing here tells them apart.
# * At equal rank, on sums in a short run (30 steps of 8), PLoP beats by loss those placements that have fewer parameters,
#   and no other; more than the two lowest types bought nothing that these seeds could show.
#
# **Not established**: larger models, longer training, other ranks. Of the plan for a GPU, equal rank and the sweep over k
# at full length and the task gsm were not run (`python notebooks/tools/record_finetuning.py run --workers 10` goes on with
# them); the rates at equal parameters were tuned with one seed, which, as seen, is not enough where placements are close.
