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
# **The question.** In the other notebooks adapters learn from given answers. Here nobody shows an answer: the model writes, and
# rewards judge what it wrote. Does it matter for this kind of training where the adapters are?
#
# **The answer.** Our record cannot decide. We trained eight placements of equal size, at two learning rates, with eight seeds
# each, for 12 steps. All of them learn the format of an answer, and some of the arithmetic. At a fixed rate 26 of 28 differences
# to PLoP's placement are undecided. One holds when we allow for so many looks: at the lower rate a random set (query, key, down)
# earns 0.05 less than PLoP, of at most 3. At the higher rate it is not seen. And for seven of the eight placements the record
# does not tell which of the two rates is better. Whoever may choose a rate for each placement can make PLoP the best or the worst
# of the eight (exercise 2).
#
# | | |
# |---|---|
# | **You need** | notebook 00; what a mean and an interval are; the words are in the [glossary](GUIDE.md#words) |
# | **It takes** | 30 minutes of reading, and 15 more for the exercises; it runs in two to four minutes on two CPU cores |
# | **It runs** | one training with rewards, live, on SmolLM2-135M and sums of one-digit numbers; 128 more are read from a record |
#
# **Words.** A [placement](GUIDE.md#placement) says which maps get [adapters](GUIDE.md#adapter). PLoP ([Hayou, Ghosh,
# Yu](https://arxiv.org/abs/2506.20629)) takes the three [types](GUIDE.md#type) of maps with the lowest [scores](GUIDE.md#nfn). A
# *completion* is what the model writes after a prompt, and a [reward](GUIDE.md#reward) is a number for it, from a function. A
# [seed](GUIDE.md#seed) decides the adapters' random start, the order of the prompts and the sampling. [GRPO](GUIDE.md#grpo)
# ([Shao et al., 2024](https://arxiv.org/abs/2402.03300)) lets the model write several completions of each prompt, eight here, and
# makes those likelier that earn more than the average of these eight.
#
# The paper does this on MetaMathQA with [rank](GUIDE.md#rank) 16, alpha 32, dropout 0.05, 8 completions a prompt, and rewards for
# the format and for the answer. We
#
# 1. write rewards that are hard to cheat,
# 2. train adapters where PLoP puts them, live, on sums, and read what the model writes before and after,
# 3. compare eight placements of equal size over eight seeds at two rates, recorded.

# %% tags=["setup"]
# Setup, the same in every notebook. On Colab it installs plop_nb and leaves Colab's torch as it is.
from glob import glob
from importlib.util import find_spec

from IPython import get_ipython

if find_spec("plop_nb") is None:
    files = glob("plop_nb*.whl") + glob("plop_nb*.zip") + glob("/content/plop_nb*.whl")
    if not files:
        raise SystemExit("plop_nb is not installed here. Put its wheel (plop_nb-*.whl, from `pip wheel --no-deps .` in the repository) or a zip of the repository beside this notebook, on Colab into /content, and run this cell again.")
    get_ipython().run_line_magic("pip", f'install -q "{files[0]}[tasks,finetune]"')
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
# The task is sums of one-digit numbers from [reasoning-gym](https://github.com/open-thought/reasoning-gym), a package that makes
# problems and checks answers. No sum that is kept for testing is trained on, not even in another order.

# %%
import warnings

import numpy as np
import pandas as pd

from plop_nb import experiments as ex
from plop_nb.experiments import grpo
from plop_nb.palette import STYLE
from plop_nb.texts import data_file

warnings.filterwarnings("ignore", category=FutureWarning)
task = ex.digit_sums(105, 50) if TASK == "sums" else ex.load_task("metamath_tagged")
print(len(task.train), "problems to train on,", len(task.test), "to test;", task.train[0])

# %% [markdown]
# ## What GRPO learns from
#
# **Question.** Eight completions of one prompt have earned rewards. Which of them should become likelier?
#
# **Intuition.** A completion is good if it is better than the others. Its [advantage](GUIDE.md#advantage) is its reward minus the
# mean of the eight, divided by their standard deviation. Training makes completions with a positive advantage likelier, and the
# others less likely.

# %%
earned = torch.tensor([3.0, 2.0, 2.0, 0.0, 0.0, 0.0, 2.0, 0.0])
advantage = (earned - earned.mean()) / earned.std()
print("advantages:", [round(value, 2) for value in advantage.tolist()])

# %% [markdown]
# If all eight earn the same, all advantages are zero, and this prompt teaches nothing. So a task must be neither too hard nor too
# easy for the model.
#
# ## Rewards that are hard to cheat
#
# **What we do.** We add up three rewards, each from 0 to 1. One is for the exact format: anything, then **one**
# `<answer>...</answer>` at the very end. One is for an approximate format: half for each tag, nothing for a repeated one. One is
# for the right answer, and it counts in the exact format only.
#
# **Predict.** Which of these eight completions earn the reward for the answer, where 7 is right?

# %%
cheats = ["<answer>7</answer>", "The answer is 7.", "<answer>6</answer><answer>7</answer>", "<answer>6 or 7</answer>",
          "<answer>٧</answer>", "7 <answer>8</answer>", "</answer>7<answer>", "<answer>7</answer> " * 50]  # fmt: skip
columns = {"prompts": [None] * len(cheats), "completions": cheats, "answer": ["7"] * len(cheats)}
earned = {f.__name__: f(**columns) for f in grpo.REWARDS}
assert earned["answer_reward"] == [1] + [0] * 7
pd.DataFrame(earned, index=[c[:40] for c in cheats])

# %% [markdown]
# **What we saw.** Only the first earns it. reasoning-gym's checker on its own is more generous: it gives partial credit to any
# text that contains the answer, and takes Arabic digits for a number. So we show it only a plain number from between the tags.

# %%
check = grpo.checker("chain_sum")
generous = {text: round(check(text, {"answer": "7"}), 2) for text in ("0123456789", "6 or 7", "٧")}
assert min(generous.values()) > 0
generous

# %% [markdown]
# ## A warm-up
#
# SmolLM2 hardly ever writes such tags by itself. Then all completions earn 0, and there is nothing to learn from. A
# [warm-up](GUIDE.md#warmup) changes that: a few steps of supervised training on the format. Half of the answers in it are
# *wrong*, so that the arithmetic is left to GRPO.

# %% tags=["nbval-ignore-output"]
plain, tokenizer = plop.load_model(MODEL, dtype="float32" if MODEL is None else None)
model = grpo.warm_up(plain, task, tokenizer, steps=WARM_STEPS, batch_size=8) if WARM_STEPS else plain
for name, scored in {"as it comes": plain, "warmed up": model}.items():
    table = grpo.samples(scored, task, tokenizer, split="train", n=64, max_completion_length=TOKENS)
    print(f"{name}: {table['format'].mean():.0%} in the format, {table['answer'].mean():.0%} right")

# %% [markdown]
# ## Place, then train
#
# We score the warmed-up model on the prompts of the task. The placement is the same as in notebook 00.

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
# Every step samples anew, so we compare the means of the first and the last five steps. What rise do we expect? The same run was
# recorded with other seeds, and half of the smallest rise among them is what we ask for, the *margin*.

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

plt.rcParams.update(STYLE | {"axes.titleweight": "normal"})
parts = live.melt("step", ["answer", "approximate_format", "format"], var_name="reward for", value_name="mean")
parts["reward for"] = parts["reward for"].str.replace("_", " ")
fig, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
sns.lineplot(parts, x="step", y="mean", hue="reward for", palette=["#56307A", "#D9A400", "0.35"], lw=2, ax=ax)
ax.set(ylabel="mean reward of 16 completions", ylim=(0, 1.02), xticks=range(0, STEPS + 1, 5))
ax.set_title("Live, SmolLM2 on sums: the format comes first", loc="left")
_ = ax.legend(frameon=False, title="reward for", loc="upper left", bbox_to_anchor=(1, 1))

# %% [markdown]
# ## What the model writes
#
# A rising reward may be a cheat, so we read what the model writes. The prompts are sums that it never trained on; the table shows
# completions before and after the training, and what each has earned.

# %% tags=["nbval-ignore-output"]
both = {"before": model, "after": trained}
table = pd.concat({when: grpo.samples(m, task, tokenizer, n=8, max_completion_length=TOKENS)
                   for when, m in both.items()}, names=["when", "test"])  # fmt: skip
table["prompt"] = table["prompt"].str.extract(r": (.*)")
table

# %% [markdown]
# A test for cheats: we read the answers once more with another expression, and find no completion that was paid for a wrong
# answer. And the model that we started from is as it was: the trained one shares its weights, not its adapters.

# %%
paid = table[table["answer"] == 1]
stated = paid["completion"].str.extract(r"<answer>\s*([-+0-9.]+)\s*</answer>\s*$")[0].astype(float)
assert (stated.to_numpy() == paid["expected"].astype(float).to_numpy()).all()
assert not any("lora" in name for name, _ in model.named_parameters())
print("no paid answer is wrong, and the base model has no adapters")

# %% [markdown]
# ## Eight placements at two rates, recorded
#
# **Question.** Does one placement earn more than another?
#
# **What we do.** A [record](GUIDE.md#record) holds 128 trainings like the live one, made by an earlier form of
# `notebooks/tools/record_grpo.py` (today's tunes the rate first, and will make the next record): eight placements, two learning
# rates, eight seeds. The *inverse* has the three types with the highest scores; the two random sets were drawn once. All have
# about as many parameters, so small maps get a higher rank. Three seeds of five of these placements came first; they decided
# nothing, so the rest was added. Looking twice makes a false verdict likelier.

# %%
curves = read("grpo")
order = ["PLoP", "inverse", "attention", "MLP", "all", "query + value", "random 1", "random 2"]
assert (runs.groupby(["placement", "lr"])["seed"].nunique() == 8).all() and set(runs["placement"]) == set(order)
print(f"{len(runs)} runs, {runs['seconds'].sum() / 3600:.1f} hours of training, each on one core")
shape = runs.groupby("placement")[["types", "r", "parameters"]].first().loc[order]
assert shape["parameters"].max() / shape["parameters"].min() < 1.04
shape.assign(types=shape["types"].str.replace("_proj", "").str.replace("+", " "))

# %% [markdown]
# **Predict.** A rate that is too high or too low changes the reward of a placement. Will the placements have the same order at
# both rates?
#
# Here are both rates side by side. `reward` is the mean over the last five training steps, at most 3. `accuracy` is the share of
# 50 test sums that are right when the model writes its likeliest tokens (*greedy*). Both are means over eight seeds:

# %%
by_rate = runs.pivot_table(index="placement", columns="lr", values=["reward", "accuracy"])[["reward", "accuracy"]]
by_rate.loc[order].round(3)

# %%
places = by_rate.rank(ascending=False).loc["PLoP"].astype(int)
higher = (by_rate.xs(1e-3, axis=1, level="lr") > by_rate.xs(3e-4, axis=1, level="lr")).sum()
print("PLoP's place among eight:", {f"{what} at {lr:g}": place for (what, lr), place in places.items()})
print("placements with a higher mean at 0.001:", higher.to_dict())

# %% [markdown]
# **What we saw.** The order depends on the rate, and on the measure. PLoP is third of eight by reward at 3e-4 and sixth at 1e-3.
# By accuracy it is fourth and fifth. Accuracy is higher at 1e-3 for all eight placements, reward for five.
#
# Here is the reward step by step. Bands are one standard deviation over seeds, each curve is a running mean over five steps, and
# the live run is dashed.

# %% tags=["nbval-ignore-output", "picture"]
RATES = {"3e-4": "#56307A", "1e-3": "#D9A400"}
smooth = curves.set_index("step").groupby(["placement", "lr", "seed"])["reward"].rolling(5).mean().dropna().reset_index()
smooth["learning rate"] = smooth["lr"].map({3e-4: "3e-4", 1e-3: "1e-3"})
grid = sns.relplot(smooth, x="step", y="reward", hue="learning rate", palette=RATES, col="placement", col_order=order,
                   col_wrap=4, kind="line", errorbar="sd", height=2.2, aspect=1.1)  # fmt: skip
grid.axes[0].plot(live["step"], live["reward"].rolling(5).mean(), "--", color="0.15")
grid.set_titles("{col_name}").set(ylabel="reward (at most 3)")
_ = grid.figure.suptitle("Every placement earns more after 12 steps than at first, at both rates", x=0.02, y=1.04, ha="left", weight="bold")

# %% [markdown]
# At 1e-3 the reward rises faster and then stands still; with query and value it falls again. At 3e-4 it still rises at the end.
# So another number of steps could give another order, too.
#
# ## What the record decides
#
# **Question.** Are these differences larger than [luck](GUIDE.md#luck)?
#
# **What we do.** At each rate we subtract PLoP from each other placement, seed by seed. The 95 % intervals (Student's t) are over
# eight seeds, not over tasks or models.

# %%
measures = ["reward", "accuracy"]


def against_plop(level):
    """Every placement minus PLoP, at each rate by itself, with intervals over seeds."""
    cases = [(lr, part, measure) for lr, part in runs.groupby("lr") for measure in measures]
    tables = [ex.versus(part, "PLoP", m, level=level).assign(measure=m, lr=lr) for lr, part, m in cases]
    return pd.concat(tables).set_index(["measure", "lr", "placement"]).sort_index()


verdict = against_plop(level=0.95)
columns = ["difference", "low", "high", "verdict"]
decided = verdict[verdict["verdict"] != "undecided"]
assert len(verdict) == 28 and len(decided) == 2
decided[columns].round(3)

# %% [markdown]
# That is 28 looks. If nothing differed, we would still expect one or two such findings. With 28 intervals of 99.8 %, which hold
# together at 95 %, this remains:

# %%
strict = against_plop(level=1 - 0.05 / len(verdict))
strict = strict[strict["verdict"] != "undecided"]
assert strict.index.tolist() == [("reward", 3e-4, "random 2")]
strict[columns].round(3)

# %% tags=["nbval-ignore-output"]
fig, axes = plt.subplots(1, 2, figsize=(9.5, 4), layout="constrained", sharey=True)
for ax, measure in zip(axes, measures):
    for shift, (rate, color) in zip((-0.15, 0.15), RATES.items()):
        part = verdict.loc[(measure, float(rate))].loc[order[1:]]
        at, half = np.arange(len(part)) + shift, part["high"] - part["difference"]
        ax.errorbar(part["difference"], at, xerr=half, fmt="o", color=color, capsize=3, label=rate)
    ax.axvline(0, color="0.3", lw=1, ls="--", zorder=0)
    ax.set(yticks=range(len(part)), yticklabels=part.index, xlabel=f"{measure} minus PLoP's")
axes[0].invert_yaxis()
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False, title="learning rate")
_ = fig.suptitle("Compared at one rate, 26 of 28 differences are undecided (95 %, 8 seeds)", weight="bold")

# %% [markdown]
# **What we saw.** One difference holds: at 3e-4 the second random set (query, key and down) earns 0.05 less than PLoP. At 1e-3 it
# earns 0.02 more, which is undecided. All other placements cannot be told from PLoP. [Undecided](GUIDE.md#undecided) does not
# mean equal: an interval that reaches 0.3 of accuracy leaves much room.
#
# ### Why not compare each placement at its best rate?
#
# It is the usual way, and would be fairer. But with *two* rates the better one is always at the edge of the grid: a lower or a
# higher one may be better still. And does the record know which is better? For each placement, the reward at 1e-3 minus that at
# 3e-4, with 95 % intervals over the seeds (not adjusted for eight looks):

# %%
reward = runs.pivot(index="seed", columns=["placement", "lr"], values="reward")
between = {name: plop.mean_interval(reward[name][1e-3] - reward[name][3e-4]) for name in order}
between = pd.DataFrame(between, index=["1e-3 minus 3e-4", "low", "high"]).T
assert ((between["low"] > 0) | (between["high"] < 0)).sum() == 1
between.round(2)

# %% [markdown]
# It is decided for *query + value* only. For the other seven a best rate would be chosen by luck. What would come of it? We
# choose for each seed the rate that earned most on the *other* seeds, and count on how many seeds PLoP has the highest accuracy
# (alone or level with another):

# %%
def summary(part):
    """PLoP's place among eight by mean accuracy, and with how many seeds it is the best."""
    table = part.pivot(index="seed", columns="placement", values="accuracy")
    place = int(table.mean().rank(ascending=False)["PLoP"])
    return {"PLoP's place": place, "best with": int((table["PLoP"] == table.max(axis=1)).sum())}


chosen = []
for (name, seed), own in runs.groupby(["placement", "seed"]):
    others = runs.query("placement == @name and seed != @seed").groupby("lr")["reward"].mean()
    chosen.append(own[own["lr"] == others.idxmax()])
ways = {"3e-4": runs.query("lr == 3e-4"), "1e-3": runs.query("lr == 1e-3"), "by other seeds": pd.concat(chosen)}
pd.DataFrame({way: summary(part) for way, part in ways.items()}).T

# %% [markdown]
# **What we saw.** The way of choosing the rate makes the verdict. Chosen by other seeds, PLoP is the last of eight and best with
# no seed. (Nearly all of its runs are then at 3e-4, and those of most others at 1e-3, where accuracy is higher.) At a fixed rate
# it is fourth or fifth, and best with two or three of eight seeds. An earlier version of this notebook reported only the first
# way. We withdraw that: **this record says neither that PLoP's placement is worse nor that it is better.**
#
# How many seeds would be enough? To see a true difference of ten points of accuracy four times in five takes about
# $((1.96 + 0.84)\, s / 0.1)^2$ seeds, with $s$ the standard deviation of the paired differences. This is rough, since eight seeds
# hardly tell $s$:

# %%
needed = {}
for lr, part in runs.groupby("lr"):
    accuracy = part.pivot(index="seed", columns="placement", values="accuracy")[order]
    spread = accuracy.sub(accuracy["PLoP"], axis=0).drop(columns="PLoP").std()
    needed[f"at {lr:g}"] = np.ceil(((1.96 + 0.84) * spread / 0.1) ** 2).astype(int)
pd.DataFrame(needed).T

# %% [markdown]
# At 3e-4 eight seeds are enough for two of the placements, and do not show ten points. At 1e-3, where seeds differ more, it takes
# 28 to 61. What the runs do show:

# %%
first, last = curves.query("step <= 5"), curves.query("step > 7")
format_gain, answer_gain = (last[what].mean() - first[what].mean() for what in ("format", "answer"))
by_seed = runs.groupby(["lr", "placement"])["accuracy"].agg(["mean", "min", "max"])
width, means = (by_seed["max"] - by_seed["min"]).groupby("lr").median(), by_seed["mean"].groupby("lr")
assert (runs["reward"] > runs["reward_first"] + 0.2).all() and (runs["accuracy_before"] == 0.04).all()
assert format_gain > 2 * answer_gain > 0 and (width > means.max() - means.min()).all()
print(f"rise from the first five steps to the last five: format {format_gain:.2f}, answer {answer_gain:.2f}")
both_rates = {"mean": by_seed["mean"], "seeds differ by": by_seed["max"] - by_seed["min"]}
pd.concat({what: column.unstack("lr") for what, column in both_rates.items()}, axis=1).loc[order].round(2)

# %% [markdown]
# * In all 128 runs the reward rose by more than 0.2, and mostly by the format: it asks for less than arithmetic does.
# * Accuracy on test sums was 4 % before. After it, the seeds of one placement typically differ by more than the means of the
#   eight placements do.
#
# The record keeps samples of test sums at the end of training. Here are two of each placement, at the rate of the live run:

# %%
written = read("grpo_samples").query("lr == @LR").groupby("placement").head(2).drop(columns=["prompt", "lr"])
written.set_index("placement").loc[order, ["completion", "expected", "format", "answer", "reward"]]

# %% [markdown]
# ## Exercises
#
# Each has a cell to fill in and a check. The solutions are in the collapsed cell below each check.
#
# ### 1. Cheat (5 minutes)
#
# Somebody proposes a simpler reward: 1 if the right answer stands anywhere in the completion. Write *one* completion that earns
# it for every sum and difference of two one-digit numbers, whatever the prompt. Our reward for the answer must not pay it.


# %%
def contains_reward(prompts, completions, answer, **columns):
    return [float(right in completion) for completion, right in zip(completions, answer)]


cheat = None  # your turn: a text


# %%
def check_cheat(text):
    if text is None:
        return "not yet filled in"
    answers = [str(number) for number in range(-9, 19)]  # all that can be right
    simple = contains_reward(None, [text] * len(answers), answers)
    ours = grpo.answer_reward(None, [text] * len(answers), answers)
    assert sum(simple) == len(answers), f"it earns the simple reward for {sum(simple):.0f} of {len(answers)} answers"
    assert sum(ours) == 0, f"our reward pays it for {sum(ours):.0f} answers"
    return f"the simple reward pays {sum(simple):.0f} of {len(answers)} answers, ours {sum(ours):.0f}"


check_cheat(cheat)

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution: write them all.
check_cheat(" ".join(str(number) for number in range(-9, 19)))

# %% [markdown]
# ### 2. First and last (10 minutes)
#
# The record has two rates for each placement. Choose one of them for each, so that PLoP has the *highest* mean reward of the
# eight. Then choose again, so that it has the lowest. What does that say about a comparison in which each placement has a rate of
# its own? *Hint:* `by_rate["reward"]` has the means.

# %%
rates_first = rates_last = None  # your turn: two dicts like {"PLoP": 3e-4, "MLP": 1e-3, ...} with all eight placements


# %%
def check_rates(rates, place):
    if rates is None:
        return "not yet filled in"
    assert set(rates) == set(order), f"name all of {order}"
    means = pd.Series({name: by_rate["reward"].loc[name, lr] for name, lr in rates.items()})
    found = int(means.rank(ascending=False)["PLoP"])
    assert found == place, f"PLoP is number {found} of eight"
    rest = means.drop("PLoP")
    return f"PLoP is number {found} of eight: {means['PLoP']:.3f}, the others {rest.min():.3f} to {rest.max():.3f}"


print(check_rates(rates_first, place=1))
print(check_rates(rates_last, place=8))

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution: the better rate for PLoP and the worse one for all others; then the other way round.
better, worse = by_rate["reward"].idxmax(axis=1), by_rate["reward"].idxmin(axis=1)
print(check_rates({**worse, "PLoP": better["PLoP"]}, place=1))
print(check_rates({**better, "PLoP": worse["PLoP"]}, place=8))

# %% [markdown]
# ## Three things to remember
#
# 1. **Rewards are code.** Attack them before you trust them, and read what the model writes.
# 2. **A comparison needs its rates first.** With two rates, each best rate is at the edge of the grid, and for seven of eight
#    placements luck decides which it is. A choice of rates can put PLoP first or last.
# 3. **Seeds differ more than placements.** A single run of each placement would have "shown" something.
#
# **Not established.** Which placement learns best, here or elsewhere. Reasoning: sums of one-digit numbers need none. Larger
# models and longer training: the paper's models are larger, and 12 steps are a beginning.
#
# **Where next.** [Notebook 05](05_lora_finetuning.ipynb) compares placements for supervised finetuning, with more rates. To go on
# here, set `MODEL = "Qwen/Qwen3-1.7B"`, `TASK = "metamath"` and the numbers that the settings cell names; `record_grpo.py run
# --full` tunes the rates and trains longer, for a GPU (not run yet).
