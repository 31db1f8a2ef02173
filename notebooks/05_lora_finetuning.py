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
# # Where should the adapters go?
#
# **The question.** You want to finetune a language model with LoRA. Which of its maps should get the adapters? PLoP
# ([Hayou, Ghosh, Yu](https://arxiv.org/abs/2506.20629)) answers: the three types of maps with the lowest *score*, a number that one
# forward pass on your texts gives (notebook 00). Is that a good answer? Is there a simpler one?
#
# **The answer.** Take the MLP (gate, up and down) as a default, and spend your effort on the learning rate: tune it with several
# seeds. Our record is of one small model. In it gate, up and down come out ahead of the average of its seven types in all eight groups of runs of
# the 35 sets of three types, at the rates where all of these train: on sums at two learning rates with three seeds each, and on spelling with two seeds. The rule that
# takes the largest maps finds them without computing anything, and no rule that looks at the model has beaten it here, PLoP's included. But the differences
# are small. PLoP's choice (value, up, down) is behind the MLP by 0.01 to 0.08 nats per token, undecided each time. After four
# times the training adapters on all types were at least as good as the MLP.
#
# | | |
# |---|---|
# | **You need** | notebook 00; what a LoRA adapter is ($W + BA$ with a small rank $r$); what a training loss is |
# | **It takes** | three to five minutes on two CPU cores; no GPU |
# | **It runs** | a race between placements on SmolLM2-135M, live, in two minutes; the benchmark is read from recorded files |
#
# **Words.** A *module type* is one kind of map over all layers, such as all value maps. SmolLM2 has seven: query, key, value and
# output (q, k, v, o) in the attention block, gate, up and down in the MLP. A *placement* says which maps get adapters. The *loss* is
# that of the right answer, in nats per token: a nat less means that the model gives each token of it a 2.7 times higher
# probability. A *seed* decides the adapters' random start and the order of the examples.

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
MODEL = "SmolLM2-135M-Instruct"  # of the live race: any decoder, a Hub id or a folder
TASK = "short_sums"  # of the live race; or "gsm", "spelling", "facts", a Task of your own
SECONDS = 120  # that the race may take
TASKS = ["short_sums", "spelling"]  # of the record
REFERENCE, PLOP = "down+gate+up", "down+up+v"  # in the record: the MLP, and what PLoP chooses

# %% tags=["nbval-ignore-output"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from plop_nb import benchmark_plots as plots
from plop_nb import experiments as ex
from plop_nb.placement import Placement
from plop_nb.texts import data_file


# %%
def recorded(name):
    """A file of data; its first lines say how it was made, and on what."""
    return pd.read_csv(data_file(name), comment="#")


benchmark = ex.load_benchmark().query("model == 'SmolLM2-135M-Instruct'")
benchmark["lr"] = benchmark["lr"].round(6)
runs = benchmark.query("task in @TASKS")
untrained = recorded("results/benchmark_untrained.csv").set_index("task")
runs.groupby("task").agg(runs=("loss", "size"), placements=("placement", "nunique"), seeds=("seed", "nunique"))

# %% [markdown]
# The benchmark is a table of finished trainings, one row a run, made by one command (`python notebooks/tools/record_benchmark.py run`): AdamW,
# a learning rate that rises over the first tenth of the steps and then falls to zero, 8 examples a step, 500 test examples. Assertions in
# the cells below tie the text to the record. Its first task is sums and differences of two numbers:

# %%
task = ex.load_task(TASK, train=400, validation=64, test=64)
example = task.train[0]
print(repr(example["prompt"] + example["completion"]))
runs.groupby("task").agg(steps=("steps", "max"), exactly_right=("exact", "max"))

# %% [markdown]
# These trainings are short, 25 or 30 steps of 8 examples. On sums the loss falls from 4.3 to about 1.05 nats per token, yet hardly
# any run gets more than a few percent of them exactly right. So the record is about the *beginning* of a training, when a model learns
# what answers look like. In the picture each dot is one run on sums.

# %%
sums = runs.query("task == 'short_sums'")
tuning = runs.query("seed == 0")
best = tuning.loc[tuning.groupby(["task", "placement"])["loss"].idxmin()]


def sets_at(rate, seed, name):
    """The runs of all sets of three types at a learning rate, with a seed."""
    return sums.query("group == 'triple' and lr == @rate and seed == @seed").assign(kind=name)


# %% tags=["nbval-ignore-output", "picture"]
rows = [sets_at(2e-3, 0, "35 sets of three, seed 0"), sets_at(2e-3, 1, "35 sets, seed 1"), sets_at(2e-3, 2, "35 sets, seed 2")]
rows += [sets_at(1e-3, 0, "35 sets, half the rate"), sets_at(4e-3, 0, "35 sets, twice the rate")]
for group, name in {"single": "one type, its best rate", "fixed": "others, their best rates"}.items():
    rows.append(best.query("task == 'short_sums' and group == @group").assign(kind=name))
shown = pd.concat(rows)[["task", "kind", "placement", "loss"]]
medians = shown.groupby("kind", sort=False)["loss"].median().iloc[:3]
told = f"a set of three is near {medians.min():.2f} with one seed, near {medians.max():.2f} with another"
plots.plot_spread(shown, {"short_sums": told});

# %% [markdown]
# ### What to choose
#
# | your situation | adapters on | learning rate | evidence |
# |---|---|---|---|
# | You want one good default | the MLP | tune it with several seeds: try half and twice | sections 2 to 5: two tasks, short trainings |
# | You train for a hundred steps or more | the MLP, or all types | tune it | section 4: one task, two seeds; section 8 |
# | You want adapters on few maps | gate, up or down alone, at a higher rank | tune it: on sums twice as high | section 4: near the MLP on average, undecided |
# | Your server takes adapters on attention only | all of its types; query or key alone are worst | tune it | section 4: behind the MLP, on sums undecided |
# | You fear that the model forgets | gate or up | no higher than the tuned one | section 6: two runs each |
# | It matters, and you have hours | what a race on your own data says | what the race says | section 7: it decides large differences only |
#
# *Limits.* This is one model of 135 million parameters, short answers, the beginning of trainings, and two or three seeds. At equal
# parameters the types have different ranks and scales $\alpha / r$; a tuned rate made up for most of the scale where we tried it (section 2), but
# sections 3 and 5 compare sets at one rate, where small maps have a smaller scale. The rates
# hold for this model; larger ones usually want lower rates. "Undecided" does not mean equal: more seeds could decide.

# %% [markdown]
# ## 1. What makes a comparison fair?
#
# **Question.** Suppose that query and value with rank 16 train worse than the MLP with rank 16. Is the MLP the better place?
#
# **Intuition.** An adapter of rank $r$ on a map with $n$ inputs and $m$ outputs has $r (n + m)$ parameters. The maps of the MLP
# are larger, so that at the same rank they get more of them. A comparison at equal rank mixes up *place* with *size*.
#
# **What we do.** We count the parameters of the two placements at rank 16, and then look for the rank that gives query and value
# as many as the MLP has.

# %%
model, tokenizer = plop.load_model(MODEL)
maps = plop.module_table(model).query("status == 'scored'")
maps["per rank"] = maps["in_features"] + maps["out_features"]
per_rank = maps.groupby("type")["per rank"].sum()
per_rank.sort_values()

# %%
mlp, attention = ["gate_proj", "up_proj", "down_proj"], ["q_proj", "v_proj"]
budget = 16 * per_rank[mlp].sum()
rank = budget / per_rank[attention].sum()
print(f"rank 16: {budget:,} parameters on the MLP, {16 * per_rank[attention].sum():,} on query and value")
print(f"query and value have as many as the MLP at rank {rank:.1f}")

# %% [markdown]
# The package does the same for any placement: `ex.rank_for` finds the rank whose number of parameters comes nearest.

# %%
scores = plop.nfn_scores(model, plop.load_texts("math", n=4), tokenizer, progress=False)
placements = {
    "MLP": Placement.of_types(scores, mlp),
    "query + value": Placement.of_types(scores, attention),
    "all": Placement.of_types(scores, per_rank.index),
}
ranks = {name: ex.rank_for(placement, model, budget) for name, placement in placements.items()}
assert ranks["query + value"] == round(rank)
ranks

# %% [markdown]
# In the benchmark all sets of types have 2.43 million parameters, within 2 %; ranks are whole numbers, so that they cannot be
# closer. (Of the methods of others in section 4, PAGE has one map only, whose adapter cannot be so large, and full finetuning trains
# all 135 million.)

# %%
sizes = runs.query("group in ['single', 'fixed', 'triple']").drop_duplicates("placement").set_index("placement")
print(sizes.groupby("group")["parameters"].agg(["size", "min", "max"]))
assert (sizes["parameters"] / 2.43e6 - 1).abs().max() < 0.02

# %% [markdown]
# Not everything can be equal at once. At equal parameters a set of few, small maps gets a higher rank, and with $\alpha = 32$ for all
# its update $\frac{\alpha}{r} B A$ has a smaller scale. Section 2 asks how far a tuned learning rate makes up for that:

# %%
per_set = sizes.loc[[REFERENCE, "all", "attention", "query + value", "up", "k"], ["r"]]
per_set.astype(int).assign(scale=(32 / per_set["r"]).round(2))

# %% [markdown]
# ## 2. The learning rate comes first
#
# **Question.** How much does the learning rate matter?
#
# **Predict.** You train a placement at its best learning rate, and again at half and at twice that rate. Which of the two mistakes
# costs more?
#
# **What we do.** On sums every placement was trained with one seed (seed 0) at three or more rates, a factor of two apart, and at further
# ones as long as the best was the lowest or highest tried; on spelling fourteen placements were. Each line is one placement.

# %% tags=["nbval-ignore-output", "picture-rates"]
sets_only = tuning.query("group in ['single', 'fixed', 'triple']")
tried = sets_only.groupby(["task", "placement"])["lr"].transform("nunique")
plots.plot_rates(sets_only.loc[tried >= 3, ["task", "placement", "group", "lr", "loss"]]);

# %% [markdown]
# **What we saw.** With this seed nearly all sets of three on sums have their best rate at the same place. For them twice that rate is the worse mistake on the median:

# %%
at_rates = {rate: sets_at(rate, 0, "")["loss"].median() for rate in (1e-3, 2e-3, 4e-3)}
assert at_rates[4e-3] > at_rates[1e-3] > at_rates[2e-3]
pd.Series(at_rates).round(2).to_frame("median loss of the 35 sets")

# %% [markdown]
# But one seed is not enough. We picked the rate at which seed 0 happened to do well. Here are two other seeds as well, on four placements
# that were run with them at all three rates, and the means over the three seeds:

# %%
FOUR = [REFERENCE, PLOP, "attention", "query + value"]
three_rates = sums.query("placement in @FOUR and lr in [1e-3, 2e-3, 4e-3]")
by_rate = three_rates.pivot_table(index="placement", columns=["lr", "seed"], values="loss").loc[FOUR]
spread = by_rate.T.groupby("lr").agg(np.ptp).T  # over seeds
assert (spread[1e-3] < 0.06).all() and spread.loc["attention", 2e-3] > 0.2
by_rate.round(2)

# %%
by_rate.T.groupby("lr").mean().T.round(2)

# %% [markdown]
# At 1e-3 the seeds agree within a few hundredths. At 2e-3, which seed 0 chose for all four, the MLP trains well with all three seeds, PLoP's
# choice with two, and attention with one: for attention, this rate is too near to the highest that works. At 4e-3 all are worse on
# average. At 2e-3 attention is 0.12 behind the MLP on the mean over the three seeds; with each at the rate that is best on this mean it is
# 0.07 behind. **So tune with several seeds.**

# %% [markdown]
# A comparison at one rate is, in part, a comparison of how well that rate suits each. The clearest case is not a place but a start: EVA
# begins with adapters made from the data instead of random ones (PEFT ships it). Its best rate is eight times lower than that of the MLP:

# %%
eva = tuning.query("task == 'short_sums' and placement in ['EVA, rho 1', @REFERENCE]")
eva = eva.pivot(index="placement", columns="lr", values="loss")
assert eva.loc["EVA, rho 1"].idxmin() * 8 == eva.loc[REFERENCE].idxmin() == 2e-3
eva.round(2)

# %% [markdown]
# At 2e-3, the best rate of the MLP, EVA would be far behind. At its own rate it is level.

# %% [markdown]
# ### What the scale does
#
# At equal parameters the scale $\alpha / r$ differs between placements (section 1). So four of them were trained again with the scale 4 for all,
# with two seeds. Here is the mean loss at each rate, with the scale of the benchmark and with the equal one:

# %%
EQUAL = ", equal scale"
four = [REFERENCE, "up", "attention", "query + value"]
both = sums.query("seed < 2 and lr in [5e-4, 1e-3, 2e-3, 4e-3]")
both = both[both["placement"].isin(four + [name + EQUAL for name in four])]
both = both.assign(scale=both["placement"].str.endswith(EQUAL).map({True: "4 for all", False: "32 / r"}))
both["placement"] = both["placement"].str.removesuffix(EQUAL)
complete = both.groupby(["placement", "scale", "lr"]).filter(lambda own: len(own) == 2)
scales = complete.pivot_table(index=["placement", "scale"], columns="lr", values="loss")
scales.round(2)

# %%
best_of = scales.min(axis=1).unstack("scale")
best_of["difference"] = best_of["4 for all"] - best_of["32 / r"]
assert best_of["difference"].abs().max() < 0.05
best_of.loc[four].round(2)

# %% [markdown]
# With the equal scale the best rates are lower where the scale has risen most: for up, and for query and value a quarter and a half of what they were. The lowest losses change by
# at most 0.04, upward for three of the four and downward for attention, which is then level with the MLP. With two seeds such changes are within
# luck, but they are as large as some of the differences below. So a tuned rate makes up for most of the scale, and we cannot say that it makes up for all of it. A
# rate is good only together with the scale that it was tuned for.

# %% [markdown]
# ## 3. All sets of three types
#
# **Question.** PLoP puts adapters on three types. There are 35 sets of three. How good is each?
#
# **Intuition.** If we train 35 placements and take the best, it is partly the best by luck: some seeds and some test problems suit
# it. Before we believe an order, we ask whether another seed gives the same order.
#
# **What we do.** All 35 sets were trained with the same three seeds at two learning rates: at 2e-3, which is the best of the tried
# rates for most of them with seed 0, and at half of it. For each pair of seeds we compute the rank correlation of the losses of the 35
# sets. It is 1 where two seeds order the sets alike, and 0 where one order says nothing about the other.

# %%
triples = sums.query("group == 'triple' and lr in [1e-3, 2e-3]")
assert (triples.groupby(["lr", "seed"]).size() == 35).all()
by_seed = {rate: own.pivot(index="placement", columns="seed", values="loss") for rate, own in triples.groupby("lr")}
agreement = {}
for rate, losses in by_seed.items():
    ranks_agree = losses.corr("spearman")
    agreement[rate] = {f"seeds {a} and {b}": ranks_agree.loc[a, b] for a, b in [(0, 1), (0, 2), (1, 2)]}
pd.DataFrame(agreement).T.round(2)

# %% tags=["nbval-ignore-output", "picture-seeds"]
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
mean_agreement = {rate: np.mean(list(pairs.values())) for rate, pairs in agreement.items()}
for ax, rate, told in [(left, 1e-3, "agree somewhat"), (right, 2e-3, "hardly agree")]:
    sns.scatterplot(by_seed[rate], x=1, y=2, color="0.65", s=45, ax=ax)
    for name, label in {REFERENCE: "MLP", PLOP: "PLoP's choice"}.items():
        ax.plot(*by_seed[rate].loc[name, [1, 2]], "o", color="0.1")
        ax.annotate(label, by_seed[rate].loc[name, [1, 2]], (0, 8), textcoords="offset points", ha="center")
    ax.set(xlabel="loss with seed 1 (nats per token)", ylabel="loss with seed 2 (nats per token)")
    ax.set_title(f"At {rate:g} seeds {told}:\nmean rank correlation {mean_agreement[rate]:.2f}", loc="left")
sns.despine()

# %%
assert min(agreement[1e-3].values()) > 0.35 and max(agreement[2e-3].values()) < 0.5
medians = {rate: losses.median().mean() for rate, losses in by_seed.items()}
ranges = {rate: losses.mean(axis=1).agg(np.ptp) for rate, losses in by_seed.items()}
pd.DataFrame({"loss of the median set": medians, "from the best to the worst set": ranges}).round(3)

# %% [markdown]
# **What we saw.** At 2e-3 the seeds hardly agree. A set that is good with one seed may be bad with the next. So do not believe anybody, us
# included, who shows that one set of three is the best after one or two runs of each at the rate where most of them do best. At half
# of this rate the median set is a little worse, but the three seeds order the sets alike to some degree. There is something to find, and it is small: from the
# best to the worst set it is less than a tenth of a nat.
#
# What is it? Each type is in 15 of the 35 sets, so that luck averages out over more runs. We take the loss of a set as the sum of the
# effects of its three types, and find the effects by least squares, separately for each learning rate and seed. An effect of -0.02 for
# up means: put up in the place of an average type, and the loss falls by 0.02.

# %%
TYPES = ["gate", "up", "down", "o", "q", "k", "v"]


def effects_of(losses):
    """The effect of each type on the loss of a set of three, and their common standard error."""
    has = np.array([[name in of_set.split("+") for name in TYPES] for of_set in losses.index], dtype=float)
    has -= has.mean(axis=0)
    found, *_ = np.linalg.lstsq(has, losses - losses.mean(), rcond=None)
    left = losses - losses.mean() - has @ found
    variance = left.pow(2).sum() / (len(losses) - 7)
    error = np.sqrt(variance * np.linalg.pinv(has.T @ has)[0, 0])
    return pd.Series([*found, error], [*TYPES, "standard error"])


# %%
columns = {(rate, seed): effects_of(by_seed[rate][seed]) for rate in by_seed for seed in (0, 1, 2)}
table = pd.DataFrame(columns).rename_axis(columns=["rate", "seed"])
assert (table.loc[["gate", "up", "down"]] < 0).all(axis=None) and (table.loc["v"] > 0).all()
assert table.loc["standard error", 1e-3].max() < 0.007
assert table.mean(axis=1)[TYPES].nsmallest(3).index.sort_values().tolist() == ["down", "gate", "up"]
table.round(3)

# %% [markdown]
# **What we saw.** Gate, up and down are negative in all six columns, and value is positive in all six, though not each number is beyond
# its error. Query, key and output change with the rate and the seed. The effects are larger at 2e-3, and so are the errors. (At 4e-3 some
# runs fail, and such a fit says little.)
#
# Do the effects hold for new seeds? `ex.pooled_losses` asks all three seeds together. It takes a set's loss to be the sum of
# its types' effects, an extra that belongs to this combination, and luck. A seed may favour single types, and how much it does is seen
# in how the effects differ from seed to seed. Here are the intervals for other seeds, at each rate:

# %%
sets = {name: set(name.split("+")) for name in by_seed[1e-3].index}
pooled = {rate: ex.pooled_losses(own, sets) for rate, own in triples.groupby("lr")}
ends = {rate: found.effects.quantile([0.025, 0.975]).T.loc[TYPES] for rate, found in pooled.items()}
assert ends[1e-3].loc["gate", 0.975] < 0 < ends[1e-3].loc["o", 0.025] and (ends[2e-3].loc[["up", "down"], 0.975] < 0).all()
pd.concat(ends, axis=1).round(3)

# %% [markdown]
# These intervals are wide, as three seeds say little about other seeds. At 1e-3 gate is ahead of the average type and output behind it, at 2e-3 up and down are ahead, and for the
# rest zero is possible. Each interval holds by itself, not all at once. In the mean over the six columns gate, up and down, which are the large maps, come first.

# %% [markdown]
# ## 4. One type, whole blocks, and what others propose
#
# **Question.** Three types are a choice of the paper. What about one type alone, a whole block, everything, or the choices of
# other methods? And how far is all this from training every weight of the model?
#
# **What we do.** The same budget of parameters for all, three or more rates, three seeds. Nothing is chosen by what it is judged on: the
# loss of a seed is taken at the rate that the *other* two seeds prefer, and the rate that is chosen on one half of the test problems is judged on the
# other half. `ex.crossfit` does this. (The methods of others and full finetuning were tuned with seed 0 and judged with the two
# others.) Then we compare each with the MLP. The intervals allow for
# new seeds and new test problems, and are widened so that with 95 % probability all of them hold together.
#
# | method of others | adapters on |
# |---|---|
# | EVA (PEFT) | all types; it moves ranks to where the inputs vary most, up to `rho` times the mean rank |
# | KappaTune (PEFT) | the fifth of all maps with the lowest condition numbers, the head left out |
# | PAGE (arXiv 2605.06183, by its abstract) | the one map with the largest gradient |
# | layers by gradient (arXiv 2602.04019, by its abstract) | the third of all layers with the largest gradients for their weights |

# %%
places = sums.query("group in ['single', 'fixed'] or placement in [@REFERENCE, @PLOP]")
others = sums.query("group in ['rival', 'full']")
main = pd.concat([ex.crossfit(places), ex.crossfit(others, tuning_seeds=[0])])
compared = ex.differences(main, REFERENCE).replace({"placement": {PLOP: "PLoP's choice"}})
for (name, verdict), own in compared.groupby(["task", "verdict"]):
    print(f"{name}, {verdict}: {', '.join(own['placement'])}")

# %% tags=["nbval-ignore-output", "picture-differences"]
plots.plot_differences(compared, "MLP");

# %% [markdown]
# **What we saw.** The four types of the attention, each alone, and PAGE's single map come out worse than the MLP. Gate, up or down alone are
# near the MLP, although all their parameters are on one type. All else is undecided. Attention, query and value
# and the last third of the layers are about a tenth of a nat behind the MLP on the mean.
#
# How many seeds would it take to decide? Let luck move a run by $\sigma$ (its standard deviation). Then a difference $\delta$ between two placements is found with a
# probability of 80 % by about $2 (1.96 + 0.84)^2 \sigma^2 / \delta^2$ runs of each.

# %%
sigma = main.groupby("placement")["loss"].var().mean() ** 0.5
print(f"luck moves a run by {sigma:.3f} nats per token")
for delta in (0.02, 0.05, 0.1):
    print(f"a difference of {delta} takes about {np.ceil(2 * 2.8**2 * sigma**2 / delta**2):.0f} runs of each placement")

# %% [markdown]
# This is for two placements that were named beforehand, with luck of average size. The intervals of the picture hold for eighteen placements at once and know luck
# from few seeds, so that they are wider; and near the highest rate that works luck is larger, as attention at 2e-3 shows.
#
# Differences in nats per token are hard to judge by themselves. So here is also the share of the way from the untrained model to full
# finetuning (tuned with seed 0, at four rates). Luck moves a single run by about one percentage point. Most
# of this gain is how answers look, and all placements learn that.

# %%
means = main.groupby(["task", "placement"])["loss"].mean().unstack("task")
share = (untrained["loss"] - means) / (untrained["loss"] - means.loc["full finetuning"])
assert share.loc[REFERENCE, "short_sums"] > 0.98 and 0.93 < share.loc["attention", "short_sums"] < 0.97
share["short_sums"].sort_values(ascending=False).map("{:.0%}".format).to_frame("share of the gain")

# %% [markdown]
# ### A second task, and a trap
#
# All this was about sums. The second task is to spell a word backward. First the effects of the types, from all 35 sets at 2e-3, with
# two seeds:

# %%
spelled = runs.query("task == 'spelling' and group == 'triple' and lr == 2e-3")
spelled_by_seed = spelled.pivot(index="placement", columns="seed", values="loss")[[0, 1]].dropna()
second = pd.DataFrame({seed: effects_of(spelled_by_seed[seed]) for seed in (0, 1)}).rename_axis(columns="seed")
assert len(spelled_by_seed) == 35 and (second.loc[["gate", "up", "down"]] < 0).all(axis=None)
print(f"rank correlation of the two seeds: {spelled_by_seed.corr('spearman').loc[0, 1]:.2f}")
second.round(3)

# %% [markdown]
# **What we saw.** Gate, up and down are ahead of the average type on spelling, too, with both seeds, and by more than on sums. Query, key and output are
# behind it. Value is a little ahead with one seed and behind with the other. Here the two seeds agree somewhat on the order of the 35 sets.
#
# And the usual placements? These are all runs of six of them at two rates:

# %%
PLACES = [REFERENCE, PLOP, "k+q+v", "all", "attention", "query + value"]
spelling = runs.query("task == 'spelling' and lr in [2e-3, 4e-3] and placement in @PLACES")
spelling = spelling.pivot_table(index="placement", columns=["lr", "seed"], values="loss").loc[PLACES]
assert (spelling.T.groupby("seed").min().T.idxmin() == REFERENCE).all()
spelling.round(2)

# %% [markdown]
# With each of the three seeds the MLP at 4e-3 has the lowest loss in this table. PLoP's choice shows the trap: at 4e-3 it went well with
# seed 0, which alone would have chosen this rate, and badly with the other two. Judged at that rate, it would come out 0.6 worse than the
# MLP. At an equal 2e-3 all types are ahead of the MLP with each seed, by 0.04 on average, and the others are behind it on the mean.
#
# ### Four times the training
#
# All trainings so far have 25 or 30 steps. Five placements were trained on sums for 100 steps, with seed 0 at three or more rates, and
# four of them with a second seed at two of these rates. Here is the loss:

# %%
longer = benchmark.query("task == 'short_sums_long' and lr in [5e-4, 1e-3, 2e-3]")
longer = longer.pivot_table(index="placement", columns=["lr", "seed"], values="loss")
shorter = longer[1e-3].loc[["all", REFERENCE]]
assert (shorter.loc["all"] < shorter.loc[REFERENCE]).all() and np.ptp(longer.loc["attention", 2e-3]) > 0.2
longer.round(2)

# %% [markdown]
# **What we saw.** After four times the training the placements lie close together at 1e-3. Adapters on all types are ahead of the MLP there with both
# seeds, by 0.03 and 0.04 (before rounding). At 2e-3 luck decides: the two lowest losses of the table are those of query and value with one seed and of
# attention with the other, and with the other seed each is far worse there. So the lead of the MLP over all types, which was undecided
# after 25 steps, is gone after 100. How it goes on from there we have not measured.

# %% [markdown]
# ## 5. Can a rule foresee it?
#
# **Question.** PLoP's rule looks at the untrained model only. Others do, too. Are their choices good, and better than
# simply taking the largest maps?
#
# **What we do.** Of each rule's choice of three types we ask where it is between the best of all 35 sets (regret 0) and the worst
# (regret 1). We ask it at one learning rate for all sets, for three groups of runs: sums at two rates, and
# spelling at 2e-3. The choices were recorded (`notebooks/tools/record_rules.py`)
# before the losses of the sets were known, but for a pilot run of PLoP's choice.
#
# | rule | chooses the three types with |
# |---|---|
# | nfn | the lowest score (PLoP); *folded* and *centred* are variants of notebook 04, *median* takes the median over layers |
# | l1, frobenius | the largest gradient of the loss: the sum of its absolute entries, or its Frobenius norm (also times $\sqrt{n m}$) |
# | first-order gain | the largest gain of LoRA's first step, to first order |
# | condition | the lowest ratio of the largest to the smallest singular value (KappaTune's criterion) |
# | size | the most parameters; it reads neither weights nor texts |
# | first step | not type by type: one step of LoRA is tried for each *set*, and the set with the lowest loss after it is taken (ours) |

# %%
def name_of(types):
    """Such as "down+up+v", of full names."""
    return "+".join(sorted(name.removesuffix("_proj") for name in types))


def of_this_model(name):
    """The rows of a recorded file that are about this model."""
    return recorded(name).query("model == 'SmolLM2-135M-Instruct' and task in @TASKS")


# %%
rules = of_this_model("results/rules.csv").query("chosen").replace({"rule": {"frobenius sqrt(in out)": "frobenius √(nm)"}})
choices = rules.groupby(["rule", "task"])["type"].agg(name_of).unstack("task")
steps = of_this_model("results/rules_first_step.csv")
steps["set"] = [name_of(types.split("+")) for types in steps["types"]]
gains = steps.pivot(index="set", columns="task", values="gain").loc[list(sets)]  # of the 35 sets
choices.loc["first step"] = gains.idxmax()
choices

# %% [markdown]
# The table has few different sets: several rules choose the same one. Size, which knows nothing, chooses the MLP, and so do two gradient rules.
# Now the regrets, and a picture of two of the three cases:

# %%
pooled["spelling"] = ex.pooled_losses(spelled.query("seed < 2"), sets)
CASES = {"sums at 1e-3": 1e-3, "sums at 2e-3": 2e-3, "spelling at 2e-3": "spelling"}
rows = []
for case, key in CASES.items():
    for rule, chosen in choices["spelling" if key == "spelling" else "short_sums"].items():
        rows.append({"task": case, "rule": rule, "chosen": chosen, **pooled[key].judged(chosen)})
verdicts = pd.DataFrame(rows)
regrets = verdicts.pivot(index="rule", columns="task", values="regret")[list(CASES)]
regrets = regrets.assign(mean=regrets.mean(axis=1)).sort_values("mean")
assert regrets["mean"].nsmallest(3).index.sort_values().tolist() == ["frobenius √(nm)", "l1", "size"]
regrets.round(2)

# %% tags=["nbval-ignore-output", "picture-rules"]
spreads = [pooled[key].draws for key in CASES.values()]
average = np.mean([(own.mean(axis=1) - own.min(axis=1)).mean() / np.ptp(own, axis=1).mean() for own in spreads])
plots.plot_rules(verdicts.query("task != 'sums at 2e-3'"), random=average);

# %% [markdown]
# **What we saw.** Plain *size* and the two gradient rules that choose the same set have the lowest mean regret of all rules. PLoP's choice is a little better
# than the average set (the dashed line) on the mean, but not by more than its interval in any of the three groups of runs. Our own rule, the first step, is best in one group and in none of
# the others. *Centred* and *median* are near a choice at random on the mean.
#
# Does any rule beat size? For every other set that a rule chooses, here is its loss minus that of the MLP, which size chooses (nats per
# token). The intervals are for other seeds and problems, and with 95 % probability they hold all at once:

# %%
rivals = verdicts.drop_duplicates(["task", "chosen"]).query("chosen != @REFERENCE")
rows = []
for row in rivals.itertuples():
    losses = pooled[CASES[row.task]].draws
    gap = losses[row.chosen] - losses[REFERENCE]  # what size chooses
    low, high = gap.quantile([0.025 / len(rivals), 1 - 0.025 / len(rivals)])
    rows.append({"case": row.task, "set": row.chosen, "minus that of size": gap.mean(), "low": low, "high": high})
against_size = pd.DataFrame(rows).set_index(["case", "set"])
assert len(rows) == 14 and (against_size["minus that of size"] > 0).sum() == 13 and (against_size["low"] > 0).sum() == 1
against_size.round(3)

# %% [markdown]
# No. Of these fourteen differences thirteen are above zero, so that size's choice is ahead in all but one. (They are not fourteen independent findings: the
# same losses of the MLP are in each.) Only one of them is beyond its interval: on spelling
# *centred* is worse. All others are undecided, PLoP's choice against the MLP among them. The simplest rule has not been beaten
# here, by ours either. `plop.place(scores, rule="size")` takes the largest maps, and `rule=` takes numbers of your own.

# %% [markdown]
# ## 6. What does the model forget?
#
# **Question.** A finetuned model gets better at its task and, often, worse at everything else. Does the placement matter for that?
#
# **What we do.** Every run was also judged on the openings of 16 articles about history, which have nothing to do with the
# tasks. *Forgetting* is the loss on them after training minus before.

# %%
wanted = ex.chosen_rates(sums.query("group != 'scaled'"), [0])
at_tuned = sums.query("seed > 0").merge(wanted, on=["task", "placement", "lr"])
before = untrained.loc["short_sums"]
at_tuned["gain"] = before["loss"] - at_tuned["loss"]
at_tuned["forgetting"] = at_tuned["unrelated_loss"] - before["unrelated_loss"]
forgotten = at_tuned.groupby(["task", "group", "placement"])[["gain", "forgetting"]].mean().reset_index()

# %% tags=["nbval-ignore-output", "picture-forgetting"]
plots.plot_forgetting(forgotten.query("forgetting < 1"));

# %% [markdown]
# **What we saw.** Among the sets of three, those that gain less tend to forget more, perhaps because the rate is too high for some. Adapters
# on gate or up alone forget nearly nothing, the MLP little, query and value several times as much (two runs each). Value alone forgot
# much more in one of its runs; it lies beyond the picture. The rates are those that seed 0 preferred. For attention that is too near the highest rate that
# works (section 2), so that a part of its forgetting may be due to the rate.

# %%
of_sets = forgotten.query("group == 'triple'")
order = of_sets["gain"].corr(of_sets["forgetting"], method="spearman")
assert order < -0.4
forgets = forgotten.set_index("placement")["forgetting"]
print(f"rank correlation of gain and forgetting over {len(of_sets)} sets of three: {order:.2f}")
print(forgets[["gate", "up", REFERENCE, "all", "attention", "query + value", "v"]].round(2).to_dict())

# %% [markdown]
# A rate that is too high makes the model forget. These are the medians over all sets of three with seed 0, at half the best rate,
# at the best, and at twice the best:

# %%
at_rates = tuning.query("task == 'short_sums' and group == 'triple' and lr in [1e-3, 2e-3, 4e-3]")
forgetting = at_rates.groupby("lr")["unrelated_loss"].median() - untrained.loc["short_sums", "unrelated_loss"]
assert forgetting[4e-3] > 0.3 > 0.05 > forgetting[2e-3]
forgetting.round(2).to_frame("forgetting (nats per token)")

# %% [markdown]
# ## 7. A race on your own data
#
# **Question.** Our record is one small model and short trainings. What holds for *your* model and *your* data?
#
# **Intuition.** You need not train every placement at every rate to the end. Start all of them for a few steps, stop those that are
# behind, and give the time to the rest. That is *successive halving*; `ex.race` does it within the seconds that you give.
#
# **What we do.** Three placements at equal parameters, two rates each, in two minutes. The race drops placements and rates by their training loss, which
# costs nothing, and runs the last ones again with fresh seeds, judged on validation examples. If their difference is within the noise, it
# says "undecided". After section 4 we know what to expect: in so short a time only a large difference is found. An "edge" is a best rate that
# is the lowest or highest tried; with only two rates every rate is at the edge.

# %% tags=["nbval-ignore-output"]
found = ex.race(
    model, task, tokenizer, placements, seconds=SECONDS, ranks=ranks, rates=[1e-3, 2e-3],
    steps=16, batch_size=8, progress=False,
)  # fmt: skip
found

# %% [markdown]
# The result carries what `ex.finetune` needs, so that the winner is trained with one more line; `out=` keeps the adapter.

# %% tags=["nbval-ignore-output"]
import tempfile

folder = tempfile.mkdtemp()
winner = placements[found.winner]
run = ex.finetune(model, task, tokenizer, winner, **found.settings, accuracy=False, out=folder)
print(f"{found.winner} at {found.lr:g}: test loss {run['loss']:.2f}")

# %%
before = ex.evaluate(model, task, tokenizer, accuracy=False)["loss"]
if (MODEL, TASK) == ("SmolLM2-135M-Instruct", "short_sums"):
    assert run["loss"] < 0.4 * before
print(f"untrained: {before:.1f} nats per token, before {run['steps']} steps of training")

# %% [markdown]
# How good is a race? It can be replayed on the record, where all runs are known: 46 placements (sets of three, single types and usual sets), two learning
# rates, three seeds. Each replay draws 35 of the placements. The race is given two of the seeds and one half of the test problems. Its choice is judged by the third
# seed on the other half, where the best placement has regret 0 and the worst regret 1. We did this 200 times, with `reduction=3`
# (`python notebooks/tools/record_race.py --draws 200 --tasks short_sums`), beside a grid of the same cost, a placement
# at random at its best rate, and the whole grid with the two seeds. The cost is the share of the whole grid of three seeds.

# %%
replays = recorded("results/race.csv").query("task == 'short_sums' and placements == 35")
shown = (replays["reduction"] == 3) & replays["share"].isin([0.1, 0.2]) | replays["share"].isna()
replays = replays[shown].fillna({"share": 0})
replays = replays.set_index(["way", "share"])[["cost", "regret", "within_0.05", "decided"]]
short, twice = replays.loc[("race", 0.1)], replays.loc[("race", 0.2)]
assert short["regret"] < 0.1 < twice["regret"] and short["decided"] == 0 and ("at random", 0) in replays.index
replays.round(2)

# %% [markdown]
# At a tenth of the cost of the whole grid the race finds placements with a mean regret of 0.08, where one at random has 0.27. In three of
# ten replays it is within 5 % of the way from the best to the worst; one at random is in one of eight. The whole grid with two seeds does about as well (0.12): how the third seed
# will order the placements is hard to foresee by any means (section 3). A race with twice as much to spend came out at 0.21. All replays share three seeds, so that
# such differences may be luck. At a tenth of the cost the race always said "undecided".

# %% [markdown]
# In our saved run adapters on all types are ahead of the MLP, undecided. A winner is only the one that is ahead; "undecided" means that this race could not tell. If nothing else speaks for one of them, take
# the one that is easiest to serve, and where a best rate is at the edge, race again with further rates. For a race that can find smaller differences, give it hours instead of minutes, rates from 2.5e-4 to 4e-3, and a `storage=` file: the same call goes on
# after an interrupt, and several processes may work on it. Notebook 07 has the cell for your own model.

# %% [markdown]
# ## 8. What others found
#
# What others report. *PEFT's own comparison* (one run of each, Llama-3.2-3B on MetaMathQA, accuracy on GSM8K):

# %%
peft = recorded("published/peft_method_comparison.csv")
peft.assign(parameters=(peft["trainable_parameters"] / 1e6).round(1)).drop(columns="trainable_parameters")

# %% [markdown]
# At 9.2 to 9.5 million parameters the MLP is ahead of query and value by 1.6 points. One run's accuracy on GSM8K's 1,319 problems has
# a standard error of about 1.4 points, and the difference of two runs one of 1.9, so that this is no proof. A change of the scale alone (*rslora*: $\alpha / \sqrt r$
# instead of $\alpha / r$) moves query and value by 4 points.
#
# *LoRA Without Regret* ([Schulman et al. 2025](https://thinkingmachines.ai/blog/lora/), and
# [TRL's guide](https://huggingface.co/docs/trl/main/en/lora_without_regret) to it) finds that adapters belong on all layers and types, above
# all on the MLP; that attention alone falls behind even at the same number of parameters; and that the best rate is about ten
# times that of full finetuning. *PLoP* in its ICLR 2026 version ([OpenReview](https://openreview.net/forum?id=3lGkVgNZ5a)) reports,
# as far as public notes on it tell (*inverse*: the three types with the *highest* scores):

# %%
iclr = recorded("published/plop_iclr_2026.csv")
iclr.pivot(index=["model", "measure"], columns="placement", values="value")

# %% [markdown]
# For the negative log-likelihood lower is better. PLoP leads in two rows, in one of them by 0.11 nats, and the MLP in one. Attention, where it
# was tried, is behind both, and in the first row far behind. We did not rerun them: the models need a hub and a GPU. One command plans the comparison
# for a model of your own: `python notebooks/tools/record_benchmark.py plan --model meta-llama/Llama-3.2-1B --tasks anli metamath`;
# then `run` with the same arguments.

# %% [markdown]
# An older record of our own, on another task and on a GPU: SmolLM2 finetuned on HumanEval's problems for 25 steps of 16, five seeds, each
# placement at its own rate, 40 test problems. Here is the test loss minus that of PLoP's three types, with intervals that hold
# all at once for other seeds (not for other problems):

# %%
code = recorded("results/code.csv").query("split == 'test'")
older = ex.versus(code, "PLoP", level=0.994).set_index("placement")
older[["difference", "low", "high", "verdict"]].round(3)

# %% [markdown]
# Here luck is small, and small differences show: attention, query and value, the highest-scoring types (*inverse*) and two random sets of
# types are worse than PLoP's choice, by 0.01 to 0.02 nats per token, and the MLP cannot be told from it (*modules*: the single lowest-scoring maps).
# The intervals are for other seeds; with 40 problems, other problems may say otherwise.

# %% [markdown]
# ## Exercises
#
# Each has a cell to fill in and a check. The solutions are in the collapsed cell below each check.
#
# ### 1. The same size (5 minutes)
#
# Which rank gives adapters on the *output* maps alone as many parameters as rank 8 on all seven types? Use `per_rank` of section 1.

# %%
rank_of_output = None  # your turn


# %%
def check_rank(rank):
    if rank is None:
        return "not yet filled in"
    everything = 8 * per_rank.sum()
    off = rank * per_rank.filter(like="o_proj").sum() / everything - 1
    assert abs(off) < 0.01, f"{off:+.0%} off"
    return f"rank {rank}, {off:+.1%} off"


check_rank(rank_of_output)

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution.
check_rank(round(8 * per_rank.sum() / per_rank.filter(like="o_proj").sum()))

# %% [markdown]
# ### 2. The winner's curse (10 minutes)
#
# Suppose that you had one seed only. Take the best of the 35 sets of three on sums by the loss of seed 1 alone, at 2e-3.
# Where does this set rank, of 35, by seed 2? *Hint:* `by_seed[2e-3]` has a row for each set and a column for each seed.

# %%
best_by_1 = rank_by_2 = None  # your turn: a name, and a number from 1 (lowest loss) to 35


# %%
def check_curse(name, rank):
    if name is None:
        return "not yet filled in"
    losses = by_seed[2e-3]
    assert name == losses[1].idxmin(), "another set has a lower loss with seed 1"
    assert rank == losses[2].rank()[name], "seed 2 ranks it elsewhere"
    return f"{name}: first by seed 1, number {rank:.0f} by seed 2"


check_curse(best_by_1, rank_by_2)

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution. At 1e-3, where luck is smaller, try the same.
winner_by_1 = by_seed[2e-3][1].idxmin()
check_curse(winner_by_1, by_seed[2e-3][2].rank()[winner_by_1])

# %% [markdown]
# ### 3. A race of your own (30 minutes)
#
# Make a task of your own: `ex.Task(name, train=..., validation=..., test=...)` takes lists of `{"prompt": ..., "completion": ...}`, and
# race the MLP against query and value on it. Find `seconds` for which the race decides, or say what the interval would have to be.
# The check looks at the result.

# %%
my_race = None  # your turn: what ex.race returns


# %%
def check_race(result):
    if result is None:
        return "not yet filled in"
    assert {"MLP", "query + value"} <= set(result.table["placement"]), "race both"
    assert result.seconds <= 1.5 * result.budget, "it took longer than it might"
    return f"{result.winner}, " + ("decided" if result.decided else "undecided")


check_race(my_race)

# %% tags=["solution", "nbval-ignore-output"] jupyter={"source_hidden": true}
# Solution. The race of section 7 passes the check; `race_on` of notebook 07 makes one of your own examples.
check_race(found)

# %% [markdown]
# ## Three things to remember
#
# 1. **Tune the learning rate with several seeds before you compare places.** Compare at equal parameters, each place at its own rate. One
#    run of each proves nothing.
# 2. **The MLP is a good place, and simple.** Gate, up and down come out ahead of the average type in all eight groups of runs at rates where all sets train. No rule
#    is shown to choose better than the one that takes the largest maps.
# 3. **If it matters, let your own data decide**, and expect "undecided": where luck is as large as here, small differences take tens of
#    runs.
#
# **Not established.** Larger models, trained to the end; other ranks and scales; which layers; how accuracy follows the loss. Of the reports in
# section 8 about larger models, PEFT's decides nothing, Schulman et al. are for all types, above all the MLP, and PLoP's tables are for
# PLoP in two rows of three.
#
# **Where next.** Notebook 06 asks the same of reinforcement learning. Notebook 07 is the page for your own model.
