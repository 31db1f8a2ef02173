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
# # Does the placement matter for reinforcement learning?
#
# So far the adapters copied given answers. Here nobody shows an answer: the model writes eight completions of each
# prompt, functions score them, and **GRPO** ([Shao et al., 2024](https://arxiv.org/abs/2402.03300)) makes what scored
# above its prompt's average likelier. The [PLoP paper](https://arxiv.org/abs/2506.20629) does this on MetaMathQA with
# rank 16, alpha 32, dropout 0.05, 8 completions a prompt, and rewards for the format and for the answer. We
#
# 1. write rewards that are hard to cheat,
# 2. train adapters where PLoP puts them, live, on sums, and read what the model writes before and after,
# 3. compare eight placements of equal size over eight seeds, recorded.

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
MODEL = None  # None: SmolLM2-135M-Instruct; on a GPU and with a hub "Qwen/Qwen3-1.7B"
TASK = "sums"  # or "metamath": MetaMathQA from the Hub
STEPS = 12  # of the live run; 500 for Qwen3
PROMPTS = 2  # a step, with 8 completions each; 16 for Qwen3
TOKENS = 12  # of a completion at most; 512 for metamath
LR = 3e-4  # 5e-6 in the paper, for larger models and many more steps
WARM_STEPS = 6  # of supervised warm-up; 0 for a model that keeps to a format when it is told to
SEED = 0

# %% [markdown]
# ## A task with a checker
#
# Sums of one-digit numbers from [reasoning-gym](https://github.com/open-thought/reasoning-gym), which also checks the
# answers. The sums kept for testing are none of those trained on, not even in another order.

# %%
import warnings

import numpy as np
import pandas as pd

from plop_nb import experiments as ex
from plop_nb.experiments import grpo
from plop_nb.plots import CHOSEN
from plop_nb.texts import data_file

warnings.filterwarnings("ignore", category=FutureWarning)
task = ex.digit_sums(105, 50) if TASK == "sums" else ex.load_task("metamath_tagged")
print(len(task.train), "problems to train on,", len(task.test), "to test;", task.train[0])

# %% [markdown]
# ## Rewards that are hard to cheat
#
# Three functions, each 0 to 1: the exact format (anything, then **one** `<answer>...</answer>` at the very end), an
# approximate one (half for each tag, nothing for a repeated one), and the right answer, which counts in the exact format
# only. Which of these completions would earn the answer's reward, where 7 is right? Guess before you run the cell.

# %%
cheats = ["<answer>7</answer>", "The answer is 7.", "<answer>6</answer><answer>7</answer>", "<answer>6 or 7</answer>",
          "<answer>٧</answer>", "7 <answer>8</answer>", "</answer>7<answer>", "<answer>7</answer> " * 50]  # fmt: skip
columns = {"prompts": [None] * len(cheats), "completions": cheats, "answer": ["7"] * len(cheats)}
earned = {f.__name__: f(**columns) for f in grpo.REWARDS}
assert earned["answer_reward"] == [1] + [0] * 7
pd.DataFrame(earned, index=[c[:40] for c in cheats])

# %% [markdown]
# Only the first. reasoning-gym's checker on its own is more generous: it gives partial credit to any text that
# contains the answer, and takes Arabic digits for a number. So it only ever sees a plain number between the tags.

# %%
check = grpo.checker("chain_sum")
generous = {text: round(check(text, {"answer": "7"}), 2) for text in ("0123456789", "6 or 7", "٧")}
assert min(generous.values()) > 0
generous

# %% [markdown]
# ## A warm-up
#
# SmolLM2 never writes such tags by itself, so every completion would earn 0 and there would be nothing to learn from. A
# few supervised steps on the format, with half of the answers *wrong*, change that; the arithmetic is left to GRPO.

# %% tags=["nbval-ignore-output"]
plain, tokenizer = plop.load_model(MODEL, dtype="float32" if MODEL is None else None)
model = grpo.warm_up(plain, task, tokenizer, steps=WARM_STEPS, batch_size=8) if WARM_STEPS else plain
for name, scored in {"as it comes": plain, "warmed up": model}.items():
    table = grpo.samples(scored, task, tokenizer, split="train", n=64, max_completion_length=TOKENS)
    print(f"{name}: {table['format'].mean():.0%} in the format, {table['answer'].mean():.0%} right")

# %% [markdown]
# ## Place, then train
#
# The scores are of the warmed-up model on the prompts of the task. The placement is the one of the quickstart.

# %%
scores = plop.nfn_scores(model, [p["prompt"] for p in task.train[:32]], tokenizer, progress=False)
placement = plop.place(scores, k=3)
assert MODEL or set(placement.types) == {"v_proj", "up_proj", "down_proj"}
print(sorted(placement.types))

# %% tags=["nbval-ignore-output"]
live, trained = grpo.train(
    model, task, tokenizer, placement, name="PLoP", lr=LR, steps=STEPS, prompts_per_step=PROMPTS,
    max_completion_length=TOKENS, seed=SEED,
)  # fmt: skip
print(f"{live['parameters'][0]:,} parameters, {live['seconds'].sum():.0f} s")

# %% [markdown]
# Every step has fresh sampling noise, so compare means of the first and the last five steps. How large a rise to expect
# is known beforehand: the same run was recorded with other seeds, and half of the smallest rise among them is the margin.

# %%
def read(name):
    return pd.read_csv(data_file(f"results/{name}.csv"), comment="#")

runs = read("grpo_runs")
same = runs.query("placement == 'PLoP' and lr == @LR and seed != @SEED")
margin = (same["reward"] - same["reward_first"]).min() / 2
rise = live["reward"].tail(5).mean() - live["reward"].head(5).mean()
assert margin > 0.2 and len(same) >= 2 and (MODEL or rise > margin), f"the reward rose by {rise:.2f} only"
print(f"margin {margin:.2f} from {len(same)} other seeds; the reward rose by more: {rise > margin}")

# %% tags=["nbval-ignore-output"]
import matplotlib.pyplot as plt
import seaborn as sns

parts = live.melt("step", ["answer", "approximate_format", "format"], var_name="reward for", value_name="mean")
parts["reward for"] = parts["reward for"].str.replace("_", " ")
fig, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
sns.lineplot(parts, x="step", y="mean", hue="reward for", palette="colorblind", lw=2, ax=ax)
ax.set(ylabel="mean over 16 completions", ylim=(0, 1.02), xticks=range(0, STEPS + 1, 5))
ax.set_title("Live: the reward rises, the format first", loc="left")
ax.legend(frameon=False, title="reward for", loc="upper left", bbox_to_anchor=(1, 1))
sns.despine()

# %% [markdown]
# ## What the model writes
#
# A rising reward may be a cheat. So read: prompts that it never trained on, before and after, with what each
# completion earned.

# %% tags=["nbval-ignore-output"]
both = {"before": model, "after": trained}
table = pd.concat({when: grpo.samples(m, task, tokenizer, n=8, max_completion_length=TOKENS)
                   for when, m in both.items()}, names=["when", "test"])  # fmt: skip
table["prompt"] = table["prompt"].str.extract(r": (.*)")
table

# %% [markdown]
# Tests for cheats: no completion is paid for its answer without being right, read by an expression of its own. And the
# model that we started from is as it was: the trained one shares its weights, not its adapters.

# %%
paid = table[table["answer"] == 1]
stated = paid["completion"].str.extract(r"<answer>\s*([-+0-9.]+)\s*</answer>\s*$")[0].astype(float)
assert (stated.to_numpy() == paid["expected"].astype(float).to_numpy()).all()
assert not any("lora" in name for name, _ in model.named_parameters())
print("no paid answer is wrong, and the base model has no adapters")

# %% [markdown]
# ## Eight placements, recorded
#
# `python notebooks/tools/record_grpo.py run --workers 2` trains with eight placements of notebook 05 at equal parameters (the rank
# nearest to those of PLoP's 16), at two learning rates, with the same seeds for all. Three seeds of the upper five came
# first; they decided nothing, so the rest was added. (Looking twice makes a false verdict likelier.)

# %%
curves = read("grpo")
order = ["PLoP", "inverse", "attention", "MLP", "all", "query + value", "random 1", "random 2"]
shape = ["types", "r", "parameters"]
per_rate = runs.groupby(["placement", *shape, "lr"])[["reward_first", "reward", "accuracy_before", "accuracy"]].mean()
assert runs.groupby("placement")["parameters"].first().agg(lambda n: n.max() / n.min()) < 1.04
assert (runs.groupby(["placement", "lr"])["seed"].nunique() == 8).all() and set(runs["placement"]) == set(order)
print(f"{len(runs)} runs, {runs['seconds'].sum() / 3600:.1f} hours of training, each on one core")
per_rate.loc[order].round(2)

# %% [markdown]
# Which rate to compare at? For each seed the one that earned most on the *other* seeds: every placement at its best
# rate, and no run chosen by its own luck.

# %%
chosen = []
for (name, seed), own in runs.groupby(["placement", "seed"]):
    others = runs.query("placement == @name and seed != @seed").groupby("lr")["reward"].mean()
    chosen.append(own[own["lr"] == others.idxmax()])
final = pd.concat(chosen)
assert not final.duplicated(["placement", "seed"]).any()
final.pivot(index="placement", columns="seed", values="lr").loc[order]

# %% [markdown]
# Mean reward at those rates, each placement in grey beside PLoP in blue; bands are one standard deviation over seeds, and
# each curve is a running mean over five steps. The live run is dashed.

# %% tags=["nbval-ignore-output", "picture"]
shown = curves.merge(final[["placement", "seed", "lr"]]).set_index("step")
smooth = shown.groupby(["placement", "seed"])["reward"].rolling(5).mean().dropna().reset_index()
grid = sns.relplot(smooth, x="step", y="reward", col="placement", col_order=order, col_wrap=4, kind="line",
                   errorbar="sd", color="0.4", height=2.1, aspect=1.15)  # fmt: skip
reference = smooth.query("placement == 'PLoP'").groupby("step")["reward"].mean()
for ax in grid.axes.flat:
    ax.plot(reference, color=CHOSEN, lw=2)
grid.axes[0].plot(live["step"], live["reward"].rolling(5).mean(), "--", color="0.15")
grid.set_titles("{col_name}").set(ylabel="reward (at most 3)")
grid.figure.suptitle("Every placement earns more and more: grey its own reward, blue PLoP's", x=0.02, y=1.03, ha="left")
sns.despine()

# %% [markdown]
# The panels that rise early are those at 1e-3, where PLoP would too: there its first five steps earn more than those of the
# inverse and the MLP (`reward_first` above).
#
# The parts of the reward over the last five steps, the KL divergence from the warmed-up model (how far it moved), the
# length of completions in tokens, and the seconds of a step:

# %%
end = shown[shown.index > shown.index.max() - 5]
early = per_rate["reward_first"].xs(1e-3, level="lr").droplevel(shape)
assert early["PLoP"] > early[["inverse", "MLP"]].max()
parts = ["reward", "format", "answer", "kl", "completion_length", "seconds"]
end.groupby("placement")[parts].mean().loc[order].round(2)

# %% [markdown]
# ## The verdict
#
# Each placement minus PLoP, seed by seed, with 95 % intervals from Student's t. They cover seeds (adapters, prompts,
# sampling), not tasks or models. `reward` is of the last five training steps, `accuracy` of greedy answers to 50 test sums.

# %%
measures = ["reward", "accuracy"]
verdict = pd.concat([ex.versus(final, "PLoP", m).assign(measure=m) for m in measures]).set_index(["measure", "placement"])
assert (verdict["verdict"] == "undecided").all() and (verdict["seeds"] == 8).all()
verdict[["difference", "low", "high", "seeds", "parameters", "verdict"]].round(3)

# %% tags=["nbval-ignore-output"]
fig, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained", sharey=True)
for ax, measure in zip(axes, measures):
    part = verdict.loc[measure].loc[order[:0:-1]]
    ax.errorbar(part["difference"], part.index, xerr=part["high"] - part["difference"], fmt="o", color="0.4", capsize=3)
    ax.axvline(0, color=CHOSEN, lw=2, zorder=0)
    ax.set(xlabel=f"{measure} minus PLoP's")
fig.suptitle("After 12 steps no placement is surely ahead of PLoP, and none behind", x=0.01, ha="left")
sns.despine()

# %% [markdown]
# **Undecided throughout.** Eight seeds of twelve steps do not tell any placement from PLoP, by reward or by accuracy. How
# many would? To see a true difference of ten points of accuracy four times in five takes $((1.96 + 0.84)\, s / 0.1)^2$
# seeds, with $s$ the standard deviation of the paired differences:

# %%
accuracy = final.pivot(index="seed", columns="placement", values="accuracy")
spread = accuracy.sub(accuracy["PLoP"], axis=0).drop(columns="PLoP").std()
needed = np.ceil(((1.96 + 0.84) * spread / 0.1) ** 2).astype(int)
assert needed.min() > 8
print(needed.to_dict())

# %% [markdown]
# What the runs do show:

# %%
rose = runs["reward"] - runs["reward_first"]
format_gain, answer_gain = (end[c].mean() - shown.query("step <= 5")[c].mean() for c in ("format", "answer"))
by_seed = final.groupby("placement")["accuracy"].agg(["mean", "min", "max"]).loc[order]
assert (rose > 0.2).all() and format_gain > 2 * answer_gain > 0 and (runs["accuracy_before"] == 0.04).all()
assert (by_seed["max"] - by_seed["min"]).median() > by_seed["mean"].max() - by_seed["mean"].min()
assert by_seed["mean"].idxmin() == "PLoP"
best = accuracy.idxmax(axis=1)
assert best.nunique() == 5 and "PLoP" not in set(best)
by_seed.assign(**{"seeds where it is the best": best.value_counts()}).fillna(0).round(2)

# %% [markdown]
# * In all runs the reward rose, and mostly by the format: it asks for less than arithmetic does.
# * Accuracy on test sums was 4 % before. After it, seeds of one placement (columns `min` and `max`) typically differ by
#   more than the means of the placements do.
# * Nothing here speaks *for* the lowest scores: their mean accuracy is the lowest of the eight, by less than is decided.
#
# The record's own samples of test sums, at the end of training:

# %%
written = read("grpo_samples").query("lr == @LR").groupby("placement").head(2).drop(columns=["prompt", "lr"])
written.set_index("placement").loc[order, ["completion", "expected", "format", "answer", "reward"]]

# %% [markdown]
# ## What you have seen, and what not
#
# * Rewards are code, and have to be attacked before they are trusted.
# * Each placement learns. Which learns better is not decided by what two CPU cores do in two hours, and a single run of
#   each would have "shown" something: five of the eight are the best with some seed, PLoP with none.
# * **Not shown**: reasoning. One-digit sums need none, the model is small, and the paper's models are
#   larger. To go there, set `MODEL = "Qwen/Qwen3-1.7B"`, `TASK = "metamath"` and the numbers that the settings cell names;
#   `record_grpo.py run --full` is the longer grid for a GPU (not run yet).
