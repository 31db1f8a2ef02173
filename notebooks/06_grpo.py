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
# 3. compare five placements of equal size over several seeds, recorded.

# %% tags=["setup"]
# Setup, the same in every notebook. On Colab it installs plop_nb and leaves Colab's torch as it is.
import importlib.util

if importlib.util.find_spec("plop_nb") is None:
    # %pip install -q "plop_nb[tasks,finetune] @ git+https://plop-nb.invalid/plop_nb"

import torch

import plop_nb as plop

# %% tags=["settings"]
MODEL = None  # None: SmolLM2-135M-Instruct; on a GPU and with a hub "Qwen/Qwen3-1.7B"
TASK = "sums"  # or "metamath": MetaMathQA from the Hub
STEPS = 15  # of the live run; 500 for Qwen3
PROMPTS = 2  # a step, with 8 completions each; 16 for Qwen3
TOKENS = 12  # of a completion at most; 512 for metamath
LR = 3e-4  # 5e-6 in the paper, for larger models and many more steps
WARM_STEPS = 6  # of supervised warm-up; 0 for a model that keeps to a format when it is told to

# %% [markdown]
# ## A task with a checker
#
# Sums of one-digit numbers from [reasoning-gym](https://github.com/open-thought/reasoning-gym), which also checks the
# answers. The sums kept for testing are none of those trained on, not even in another order.

# %%
import warnings

from plop_nb import grpo

warnings.filterwarnings("ignore", category=FutureWarning)
train, test = grpo.sums(105, 50) if TASK == "sums" else grpo.metamath(2000, 200)
print(len(train), "problems to train on,", len(test), "to test;", train[0])

# %% [markdown]
# ## Rewards that are hard to cheat
#
# Three functions, each 0 to 1: the exact format (anything, then **one** `<answer>...</answer>` at the very end), an
# approximate one (half for each tag, nothing for a repeated one), and the right answer, which counts in the exact format
# only. Which of these cheats would earn the answer's reward? Guess before you run the cell.

# %%
import pandas as pd

cheats = ["<answer>7</answer>", "The answer is 7.", "<answer>6</answer><answer>7</answer>", "<answer>6 or 7</answer>",
          "<answer>٧</answer>", "7 <answer>8</answer>", "</answer>7<answer>", "<answer>7</answer> " * 50]  # fmt: skip
columns = {"prompts": [None] * len(cheats), "completions": cheats, "answer": ["7"] * len(cheats)}
earned = {f.__name__: f(**columns) for f in grpo.REWARDS}
assert earned["answer_reward"] == [1] + [0] * 7
pd.DataFrame(earned, index=[c[:40] for c in cheats])

# %% [markdown]
# None: only the first completion is paid for its answer. reasoning-gym's checker on its own is more generous. It gives
# partial credit to any text that contains the answer, and takes Arabic digits for a number:

# %%
check = grpo._checker("chain_sum")
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
model = grpo.warm_up(plain, tokenizer, train, steps=WARM_STEPS, batch_size=8) if WARM_STEPS else plain
for name, scored in {"as it comes": plain, "warmed up": model}.items():
    table = grpo.samples(scored, tokenizer, train, n=64, max_completion_length=TOKENS)
    print(f"{name}: {table['format'].mean():.0%} in the format, {table['answer'].mean():.0%} right")

# %% [markdown]
# ## Place, then train
#
# The scores are of the warmed-up model on the prompts of the task. The placement is the one of the quickstart.

# %%
scores = plop.nfn_scores(model, [p["prompt"] for p in train[:32]], tokenizer, progress=False)
placement = plop.place(scores, k=3)
assert MODEL or set(placement.types) == {"v_proj", "up_proj", "down_proj"}
print(sorted(placement.types))

# %% tags=["nbval-ignore-output"]
live, trained = grpo.train(
    model, tokenizer, train, placement, name="plop", lr=LR, steps=STEPS, prompts_per_step=PROMPTS,
    max_completion_length=TOKENS, seed=0,
)  # fmt: skip
print(f"{live['parameters'][0]:,} parameters, {live['seconds'].sum():.0f} s")

# %% [markdown]
# Every step has fresh sampling noise, so we compare means of the first and the last five steps. The margin was fixed
# beforehand, from several seeds of this very run.

# %% tags=["nbval-ignore-output"]
import matplotlib.pyplot as plt
import seaborn as sns

ax = live.plot(x="step", y=["reward", "format", "approximate_format", "answer"], figsize=(7, 3.4))
ax.set(xlabel="step", ylabel="mean over completions")
ax.set_title("Live: the reward rises", loc="left")
ax.legend(frameon=False)
sns.despine()

# %%
MARGIN = 0.45  # half of the smallest rise over seeds 0 to 2 at these settings
rise = live["reward"].tail(5).mean() - live["reward"].head(5).mean()
assert MODEL or rise > MARGIN, f"the reward rose by {rise:.2f} only"
print("the reward rose by more than the margin:", bool(rise > MARGIN))

# %% [markdown]
# ## What the model writes
#
# A rising reward may be a cheat. So read: prompts that it never trained on, before and after, with what each
# completion earned.

# %% tags=["nbval-ignore-output"]
both = {"before": model, "after": trained}
table = pd.concat({when: grpo.samples(m, tokenizer, test, n=8, max_completion_length=TOKENS)
                   for when, m in both.items()}, names=["when", "test"])  # fmt: skip
table["prompt"] = table["prompt"].str.extract(r": (.*)")
table

# %% [markdown]
# Two tests for cheats: no completion is paid for its answer without being right, and none grows without bound. And
# the model that we started from is as it was: the trained one shares its weights, not its adapters.

# %%
paid = table[table["answer"] == 1]
stated = paid["completion"].str.extract(r"<answer>\s*([-+0-9.]+)\s*</answer>\s*$")[0].astype(float)
assert (stated.to_numpy() == paid["expected"].astype(float).to_numpy()).all()
assert not any("lora" in name for name, _ in model.named_parameters())
print("no paid answer is wrong, and the base model has no adapters")

# %% [markdown]
# ## Five placements, recorded
#
# `python notebooks/record_grpo.py runs` trains with each placement at equal parameters (the rank nearest to those of
# PLoP's 16), at the learning rate that was best for *that* placement on a seed of its own, with the same seeds for all.

# %%
from plop_nb.texts import data_file

read = lambda name: pd.read_csv(data_file(f"results/{name}.csv"), comment="#")
curves, runs = read("grpo"), read("grpo_runs")
final = runs.query("phase == 'seeds'")
final.groupby("placement").agg(types=("types", "first"), r=("r", "first"), parameters=("parameters", "first"),
                               lr=("lr", "first"), seeds=("seed", "nunique"))  # fmt: skip

# %% [markdown]
# Bands show the standard deviation over seeds; each curve is a running mean over ten steps.

# %% tags=["nbval-ignore-output", "picture"]
smooth = curves.set_index("step").groupby(["placement", "seed"])["reward"].rolling(10).mean().reset_index()
fig, ax = plt.subplots(figsize=(7.5, 4), layout="constrained")
sns.lineplot(smooth, x="step", y="reward", hue="placement", errorbar="sd", palette="colorblind", ax=ax)
ax.set(xlabel="step", ylabel="reward (at most 3)")
ax.set_title("Reward of five placements of equal size", loc="left")
ax.legend(frameon=False)
sns.despine()

# %% [markdown]
# KL divergence from the base (how far it moved), length of completions, and the parts of the reward, at the end:

# %%
end = curves[curves["step"] > curves["step"].max() - 20]
end.groupby("placement")[["reward", "format", "answer", "kl", "completion_length", "seconds"]].mean().round(2)

# %% [markdown]
# ## The verdict
#
# Placements are compared on the same seeds, so differences are taken seed by seed: mean of *plop minus the other*, with
# a 95 % interval from Student's t. It covers seeds (adapters, prompts, sampling), not tasks or models.

# %%
from scipy import stats


def versus(measure):
    table = final.pivot(index="seed", columns="placement", values=measure)
    gaps = -table.drop(columns="plop").sub(table["plop"], axis=0)
    half = gaps.sem() * stats.t.ppf(0.975, len(gaps) - 1)
    return pd.DataFrame({"gap": gaps.mean(), "low": gaps.mean() - half, "high": gaps.mean() + half})


verdict = pd.concat({m: versus(m) for m in ("reward_last", "accuracy_after")}, names=["measure", "plop minus"])
assert final.groupby("placement")["seed"].nunique().min() >= 3
verdict.round(3)

# %% tags=["show"]
for (measure, other), row in verdict.iterrows():
    word = "above" if row["low"] > 0 else "below" if row["high"] < 0 else "not told apart from"
    print(f"{measure}: plop is {word} {other} (gap {row['gap']:+.3f}, {row['low']:+.3f} to {row['high']:+.3f})")

# %% [markdown]
# The record's own samples of test sums, one seed, at the end of training:

# %%
shown = read("grpo_samples").query("when == 'after'").groupby("placement").head(2)
shown[["placement", "completion", "expected", "format", "answer", "reward"]]

# %% [markdown]
# ## What you have seen, and what not
#
# * Rewards are code, and have to be attacked before they are trusted.
# * TODO once recorded: the verdict in a sentence.
# * **Not shown**: reasoning. One-digit sums need none, the model is small, and the paper's models are 10 to 60 times as
#   large. To go there, set `MODEL = "Qwen/Qwen3-1.7B"`, `TASK = "metamath"` and the numbers that the settings cell names.
