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
# **The question.** You want to finetune a language model with LoRA. Which of its linear maps should get the adapters? PLoP
# ([Hayou, Ghosh, Yu](https://arxiv.org/abs/2506.20629)) answers: the three types of maps with the lowest *score*, a number that
# one forward pass on your texts gives (notebook 00). Is that a good answer? Is there a simpler one?
#
# **The answer.** Take the MLP (gate, up and down) as a default (all types are undecided against it), and spend your effort on the
# learning rate: tune it with several seeds. We trained all 35 sets of three types of one small model. With the usual fixed
# $\alpha$, gate, up and down come out ahead of the average type in all eight groups of runs (a group shares task, learning rate
# and seed). But at equal parameters these large maps also have the larger scale $\alpha / r$. When we repeated all sets with an
# equal scale, at one rate and with two seeds, no lead was to be seen. With each placement at its own rate, PLoP's choice (value,
# up, down) cannot be told from the MLP on sums (0.02 behind) and is worse on spelling, by 0.23 nats per token (0.03 to 0.43). No
# rule that looks at the model is shown to choose better than the one that takes the largest maps. In an older record on code
# PLoP's choice is ahead of attention, query and value, and two random choices, by 0.01 to 0.02, and not to be told from the MLP
# (section 8).
#
# | | |
# |---|---|
# | **You need** | notebook 00; what a LoRA adapter is ($W + \frac{\alpha}{r} BA$ with a small rank $r$); what a training loss is; the words are in the [glossary](GUIDE.md#words) |
# | **It takes** | 45 minutes to read; it runs in three to five minutes on two CPU cores, without a GPU |
# | **It runs** | a race between placements on SmolLM2-135M, live, in two minutes; the benchmark is read from recorded files |
#
# **Words.** A *map* is a weight matrix of a linear layer. A *module type* is one kind of map over all layers, such as all value
# maps. SmolLM2 has seven: query, key, value and output (q, k, v, o) in the attention block, gate, up and down in the MLP. A
# *placement* says which maps get adapters. The *loss* is that of the right answer, in nats per token: a nat less means that each
# token of it gets, on the geometric average, a 2.7 times higher probability. A *seed* decides the adapters' random start and the
# order of the examples; *luck* is what changes from seed to seed. The *scale* is the factor $\alpha / r$ of an adapter.

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

# %% tags=["nbval-ignore-output"]
import numpy as np
import pandas as pd

from plop_nb import benchmark_plots as plots
from plop_nb import experiments as ex
from plop_nb.placement import Placement
from plop_nb.texts import data_file

MLP, PLOP = "down+gate+up", "down+up+v"  # in the record: the MLP, and what PLoP chooses
TYPES = ["gate", "up", "down", "o", "q", "k", "v"]
EQUAL = ", equal scale"  # ends the names of placements that were trained with the scale 4


# %%
def recorded(name):
    """A file of data; its first lines say how it was made, and on what."""
    return pd.read_csv(data_file(name), comment="#")


benchmark = ex.load_benchmark().query("model == 'SmolLM2-135M-Instruct'").round({"lr": 6})
sums = benchmark.query("task == 'short_sums'")
benchmark.groupby("task").agg(runs=("loss", "size"), placements=("placement", "nunique"), seeds=("seed", "nunique"))

# %% [markdown]
# The benchmark is a table of finished trainings, one row a run, made by one command (`python notebooks/tools/record_benchmark.py
# run`). Assertions in the cells below tie the text to this record.
#
# The loss of a set of three types is, roughly, a sum of what its three types do. We find these *effects* by least squares, for
# each group of runs that share task, learning rate, scale and seed. An effect of -0.02 for up means: put up in the place of an
# average type, and the loss falls by 0.02. Section 3 says how far this can be trusted.

# %%
def effects_of(losses):
    """What each type does to the loss of the sets that it is in, against the average type."""
    rows = [[name in of_set.split("+") for name in TYPES] for of_set in losses.index]
    has = np.array(rows) - np.mean(rows, axis=0)
    found, *_ = np.linalg.lstsq(has, losses - losses.mean())
    return pd.Series(found, TYPES)


# %%
sets = sorted(sums.query("group == 'triple'")["placement"].unique())
scaled = [name + EQUAL for name in sets]
GROUPS = {
    "sums, 1e-3": ("short_sums", sets, 1e-3),
    "sums, 2e-3": ("short_sums", sets, 2e-3),
    "sums, 1e-3, equal scale": ("short_sums", scaled, 1e-3),
    "spelling, 2e-3": ("spelling", sets, 2e-3),
}

# %%
by_seed = {}
for kind, (task_name, names, rate) in GROUPS.items():
    own = benchmark.query("task == @task_name and placement in @names and lr == @rate")
    own = own.assign(set=own["placement"].str.removesuffix(EQUAL))
    by_seed[kind] = own.pivot(index="set", columns="seed", values="loss").dropna(axis="columns")
pd.Series({kind: f"{len(losses)} sets, {losses.shape[1]} seeds" for kind, losses in by_seed.items()}).to_frame("runs")

# %% tags=["nbval-ignore-output", "picture"]
SHOWN = "SmolLM2-135M"  # in the titles of the pictures
effects = pd.concat({kind: losses.apply(effects_of) for kind, losses in by_seed.items()}, axis=1)
long = effects.T.rename_axis(["kind", "seed"]).reset_index().melt(["kind", "seed"], var_name="type", value_name="effect")
told = "gate, up and down lead with the usual scale; with an equal one no lead is seen"
plots.plot_effects(long.assign(task=SHOWN), {SHOWN: told});

# %% [markdown]
# Each marker is one group: the 35 sets at one learning rate with one seed. With the usual scale (circles, squares, triangles)
# gate, up and down are ahead of the average type in all eight groups. With an equal scale (diamonds) gate and up are near it,
# down is behind it with one seed, and output is ahead with both. So a part of what looks like a better place may be a scale that
# suits the rate better.
#
# ### What to choose
#
# | your situation | adapters on | learning rate | evidence |
# |---|---|---|---|
# | You want one good default | the MLP, or all types | tune it with several seeds: try half and twice | sections 2 to 5: two tasks, short trainings |
# | You train for a hundred steps or more | all types, or the MLP | tune it | section 4: one task, two seeds; section 8 |
# | You want adapters on few maps | gate, up or down alone, at a higher rank | tune it; with $\alpha$ fixed that of up is higher | section 4: near the MLP on average, undecided |
# | Your server takes adapters on attention only | all of its types; query or key alone are worst | tune it, from low rates up | section 4: behind the MLP on spelling, undecided on sums |
# | You fear that the model forgets | gate or up, or the last third of the layers, which gains less | no higher than the tuned one | section 6: two runs each |
# | It matters, and you have hours | a grid, or a race, on your own data | what it says | section 7: most answers will be "undecided" |
#
# *The rank.* All placements here have as many parameters as rank 8 on all types; we did not vary this. For the few thousand
# tokens of a short training that is plenty: LoRA Without Regret finds that the rank matters when the data hold more than the
# adapters can, and not before. Keep $\alpha$, and tune the rate.
#
# *Limits.* This is one model of 135 million parameters, short answers, the beginning of trainings, and two or three seeds.
# "Undecided" does not mean equal: more seeds could decide. The rates hold for this model; larger ones usually want lower rates.

# %% [markdown]
# ## 1. What makes a comparison fair?
#
# **Question.** Suppose that query and value with rank 16 train worse than the MLP with rank 16. Is the MLP the better place?
#
# **Intuition.** An adapter of rank $r$ on a map with $n$ inputs and $m$ outputs has $r (n + m)$ parameters. The maps of the MLP
# are larger, so at the same rank they get more of them. A comparison at equal rank mixes up *place* with *size*.
#
# **What we do.** We count the parameters of placements at rank 16, and then look for the ranks at which all have 2.43 million.

# %%
model, tokenizer = plop.load_model(MODEL)
maps = plop.module_table(model).query("status == 'scored'")
maps["per rank"] = maps["in_features"] + maps["out_features"]
per_rank = maps.groupby("type")["per rank"].sum()
(16 * per_rank.sort_values()).to_frame("parameters at rank 16")

# %%
places = {"MLP": ["gate_proj", "up_proj", "down_proj"], "query + value": ["q_proj", "v_proj"], "all": list(per_rank.index)}
BUDGET = 2.43e6
by_hand = {name: BUDGET / per_rank[types].sum() for name, types in places.items()}
pd.Series(by_hand).round(1).to_frame(f"rank for {BUDGET:,.0f} parameters")

# %% [markdown]
# The package does the same for any placement: `ex.rank_for` finds the rank whose number of parameters comes nearest. It needs a
# `Placement`, which knows the maps' names from a table of scores.

# %%
scores = plop.nfn_scores(model, plop.load_texts("math", n=4), tokenizer, progress=False)
placements = {name: Placement.of_types(scores, types) for name, types in places.items()}
ranks = {name: ex.rank_for(placement, model, BUDGET) for name, placement in placements.items()}
assert ranks == {name: round(rank) for name, rank in by_hand.items()}
ranks

# %% [markdown]
# In the benchmark all sets of types have 2.43 million parameters, within 2 %. (Of the methods of others in section 4, PAGE adapts
# one map only, whose adapter cannot be so large, and full finetuning trains all 135 million weights.) This is the recipe of all
# runs:
#
# | | sums | spelling |
# |---|---|---|
# | an example | a sum or difference of two numbers → its value | a word → its letters backward |
# | steps of 8 examples | 25, in section 4 also 100 | 30 |
#
# AdamW, a learning rate that rises over the first tenth of the steps and then falls to zero, $\alpha = 32$ whatever the rank,
# float32, 500 test examples. The trainings are short: on sums the loss falls from 4.3 to about 1.05 nats per token, yet no run
# gets more than 7 % of them exactly right. So the record is about the *beginning* of a training, when a model learns what answers
# look like.

# %%
sizes = benchmark.query("group in ['single', 'fixed', 'triple']").drop_duplicates("placement").set_index("placement")
assert (sizes["parameters"] / BUDGET - 1).abs().max() < 0.02
sums.groupby("group").agg(placements=("placement", "nunique"), least=("parameters", "min"), most=("parameters", "max"), exactly_right=("exact", "max"))

# %% [markdown]
# The groups are: all sets of three types (*triple*), one type alone (*single*), attention, query and value, all types and the
# last third of the layers (*fixed*), methods of others (*rival*), all weights (*full*), and sets of types with an equal scale
# (*scaled*).
#
# Not everything can be equal at once. At equal parameters a set of few, small maps gets a higher rank. With $\alpha = 32$ for
# all, its update $\frac{\alpha}{r} B A$ has a smaller scale:

# %%
per_set = sizes.loc[[MLP, "all", "attention", "query + value", "up", "k"], ["r"]]
per_set.astype(int).assign(scale=(32 / per_set["r"]).round(2))

# %% [markdown]
# ## 2. The learning rate comes first
#
# **Question.** How much does the learning rate matter?
#
# **Predict.** You train a placement at its best learning rate, and again at half and at twice that rate. Which of the two
# mistakes costs more?
#
# **What we do.** On sums every placement was trained with one seed (seed 0) at three or more rates, a factor of two apart, and at
# further ones as long as the best was the lowest or highest tried. Each line is one placement.

# %% tags=["nbval-ignore-output", "picture-rates"]
NAMES = {MLP: "MLP", PLOP: "PLoP's choice", "all": "all types", "attention": "attention"}
lines = sums.query("seed == 0 and (group == 'triple' or placement in @NAMES)").assign(task=f"{SHOWN} on sums, seed 0")
plots.plot_rates(lines, NAMES, {f"{SHOWN} on sums, seed 0": "twice the best rate costs more than half of it"});

# %%
by_rate = lines.query("group == 'triple' and lr in [1e-3, 2e-3, 4e-3]").groupby("lr")["loss"].median()
assert by_rate[4e-3] > by_rate[1e-3] > by_rate[2e-3]
by_rate.round(2).to_frame("median loss of the 35 sets")

# %% [markdown]
# **What we saw.** With this seed nearly all sets of three have their best rate at 2e-3. Twice that rate is the worse mistake on
# the median.
#
# But one seed is not enough. We picked the rate at which seed 0 happened to do well. We repeat four placements with two more
# seeds:

# %%
FOUR = [MLP, PLOP, "attention", "query + value"]
three_rates = sums.query("placement in @FOUR and lr in [1e-3, 2e-3, 4e-3]")
three_rates = three_rates.pivot_table(index="placement", columns=["lr", "seed"], values="loss").loc[FOUR]
three_rates.round(2)

# %%
three_rates.T.groupby("lr").mean().T.round(2)

# %% [markdown]
# At 1e-3 the seeds agree within a few hundredths. At 2e-3, which seed 0 chose for all four, the MLP trains well with all three
# seeds, PLoP's choice with two, and attention with one: for attention, this rate is too near to the highest that works. At 4e-3
# all are worse on average. At 2e-3 attention is 0.12 behind the MLP on the mean over the three seeds; with each at the rate that
# is best on this mean it is 0.07 behind. **So tune with several seeds.**
#
# A comparison at one rate is, in part, a comparison of how well that rate suits each. EVA (PEFT ships it) starts the adapters on
# all types from the data instead of at random. Its best rate is 2.5e-4, and that of the same places with a random start is four
# times as high (one seed):

# %%
starts = sums.query("seed == 0 and placement in ['EVA, rho 1', 'all']").pivot(index="placement", columns="lr", values="loss")
assert 4 * starts.loc["EVA, rho 1"].idxmin() == starts.loc["all"].idxmin() == 1e-3
starts.round(2)

# %% [markdown]
# ### What the scale does
#
# At equal parameters the scale $\alpha / r$ differs between placements (section 1). So four of them were trained again with the
# scale 4 for all, with two seeds. Here is the mean loss at each rate:

# %%
four = [MLP, "up", "attention", "query + value"]
both = sums.query("seed < 2 and lr in [5e-4, 1e-3, 2e-3, 4e-3]")
both = both[both["placement"].isin(four + [name + EQUAL for name in four])]
both = both.assign(scale=both["placement"].str.endswith(EQUAL).map({True: "4 for all", False: "32 / r"}))
both["placement"] = both["placement"].str.removesuffix(EQUAL)

# %%
complete = both.groupby(["placement", "scale", "lr"]).filter(lambda own: len(own) == 2)
scales = complete.pivot_table(index=["placement", "scale"], columns="lr", values="loss")
scales.assign(best=scales.min(axis=1)).round(2)

# %%
best_of = scales.min(axis=1).unstack("scale").loc[four]
assert (best_of["4 for all"] - best_of["32 / r"]).abs().max() < 0.05
best_of.rank().astype(int).add_prefix("place with ")

# %% [markdown]
# With the equal scale up's best rate falls from 4e-3 to 1e-3, and that of query and value from 2e-3 to 1e-3. The lowest losses
# move by up to 0.04, which is enough to reorder these four: with its own scale the MLP is second, level with up, and with the
# equal one third, within luck. So a rate is good only together with the scale that it was tuned for, and a comparison at one rate
# and one $\alpha$ favours the places whose scale suits that rate. Section 3 repeats all 35 sets with the equal scale, at 1e-3.
# (Attention and query and value are far behind the MLP at 2e-3 with this scale: it is too much for them.)

# %% [markdown]
# ## 3. All sets of three types
#
# **Question.** PLoP puts adapters on three types. There are 35 sets of three. How good is each?
#
# **Intuition.** If we train 35 placements and take the best, it is partly the best by luck: some seeds and some test problems
# suit it. Before we believe an order, we ask whether another seed gives the same order.
#
# **What we do.** For each pair of seeds we compute the rank correlation (Spearman's) of the losses of the 35 sets. It is 1 where
# two seeds order the sets alike, and 0 where one order says nothing about the other.

# %%
agreement = {}
for kind, losses in by_seed.items():
    alike = losses.corr("spearman").rename_axis(index="a", columns="b").stack()
    agreement[kind] = {f"seeds {a} and {b}": value for (a, b), value in alike.items() if a < b}
pd.DataFrame(agreement).T.round(2)

# %% tags=["nbval-ignore-output", "picture-seeds"]
kinds = ["sums, 1e-3", "sums, 2e-3"]
two_seeds = pd.concat([by_seed[kind].reset_index(names="placement").assign(task=f"{SHOWN}, {kind}") for kind in kinds])
told = {f"{SHOWN}, {kind}": f"two seeds correlate by {agreement[kind]['seeds 0 and 1']:.2f}" for kind in kinds}
plots.plot_agreement(two_seeds, (0, 1), {MLP: "MLP", PLOP: "PLoP's choice"}, told);

# %%
span = {kind: losses.mean(axis=1).agg(np.ptp) for kind, losses in by_seed.items()}
median = {kind: losses.median().mean() for kind, losses in by_seed.items()}
pd.DataFrame({"loss of the median set": median, "from the best to the worst set": span}).round(3)

# %% [markdown]
# **What we saw.** The picture shows one pair of seeds, the table all pairs. At 2e-3 the seeds hardly agree. A set that is good
# with one seed may be bad with the next. So do not believe anybody, us included, who shows that one set of three is the best
# after one or two runs of each at such a rate. At half of this rate the seeds order the sets alike to some degree, from 0.39 to
# 0.73, and with the equal scale hardly (one pair of seeds). What there is to find on sums is small: at 1e-3 it is less than a
# tenth of a nat from the best to the worst set.
#
# These are the places of the MLP and of PLoP's choice among the 35 sets, by the mean over the seeds, and the difference of their
# losses:

# %%
rows = {}
for kind, losses in by_seed.items():
    mean = losses.mean(axis=1)
    rows[kind] = {"place of the MLP": mean.rank()[MLP], "place of PLoP's choice": mean.rank()[PLOP], "difference": mean[PLOP] - mean[MLP]}
pd.DataFrame(rows).T.round({"difference": 3}).astype({"place of the MLP": int, "place of PLoP's choice": int})

# %% [markdown]
# With the usual scale the MLP is among the first ten, and PLoP's choice is in the middle. With the equal scale both are near the
# end. The loss of PLoP's choice is on the mean over seeds never below that of the MLP: from 0.00 to 0.02 above it on sums, and
# 0.05 on spelling.
#
# Single sets are hard to judge from three runs. A type is easier: it is in 15 of the 35 sets, so luck averages out over more
# runs. These are the effects of the first picture, as means over the seeds:

# %%
effects.T.groupby(level=0, sort=False).mean().T.round(3)

# %% [markdown]
# With the usual scale gate, up and down have the three lowest effects in all three kinds of runs. With the equal scale output is
# lowest, and down is highest.
#
# Do the effects hold for new seeds? `ex.pooled_losses` asks all seeds of a group together. It takes a set's loss to be the sum of
# its types' effects, an extra that belongs to this combination, and luck. A seed may favour single types, and how much it does is
# seen in how the effects differ from seed to seed. It returns 4,000 draws of what all losses and effects may be. Here are 95 %
# intervals for other seeds and test problems:

# %%
pooled = {}
for kind, (task_name, names, rate) in GROUPS.items():
    own = benchmark.query("task == @task_name and placement in @names and lr == @rate and seed in @by_seed[@kind].columns")
    pooled[kind] = ex.pooled_losses(own, {name: set(name.removesuffix(EQUAL).split("+")) for name in names})

# %%
ends = {kind: found.effects.quantile([0.025, 0.975]).T.loc[TYPES] for kind, found in pooled.items()}
beyond = {kind: own.apply(lambda row: "ahead" if row[0.975] < 0 else "behind" if row[0.025] > 0 else "", axis=1) for kind, own in ends.items()}
pd.concat(ends, axis=1).round(3)

# %%
pd.DataFrame(beyond)

# %% [markdown]
# With the usual scale the interval of at least one of gate, up and down excludes zero in each kind of runs, and so does that of
# output at 1e-3, on the other side. With the equal scale zero is possible for every type. Each interval holds by itself, not all
# at once.

# %% [markdown]
# ## 4. One type, whole blocks, and what others propose
#
# **Question.** Three types are a choice of the paper. What about one type alone, a whole block, everything, or the choices of
# other methods? And how far is all this from training every weight of the model?
#
# **What we do.** Each placement is judged at its own rate, and nothing is chosen by what it is judged on: the loss of a seed is
# taken at the rate that the *other* two seeds prefer, and the rate that is chosen on one half of the test problems is judged on
# the other half. `ex.crossfit` does this. (The methods of others and full finetuning were tuned with seed 0 and judged with the
# two others.) Then we compare each with the MLP, over the seeds that both have. The intervals allow for new seeds and new test
# problems (a t interval over both, Bonferroni over the placements): with 95 % probability all of them hold together.
#
# | method of others | adapters on |
# |---|---|
# | EVA (PEFT) | all types; it moves ranks to where the inputs vary most, up to `rho` times the mean rank |
# | KappaTune (PEFT) | the fifth of all maps with the lowest *condition numbers* (largest over smallest singular value), without the output head |
# | PAGE (arXiv 2605.06183, built by us from its abstract) | the one map with the largest gradient |
# | layers by gradient (arXiv 2602.04019, built by us from its abstract) | the third of all layers with the largest gradients for their weights |

# %%
of_types = sums.query("group in ['single', 'fixed'] or placement in [@MLP, @PLOP]")
of_others = sums.query("group in ['rival', 'full']")
main = pd.concat([ex.crossfit(of_types), ex.crossfit(of_others, tuning_seeds=[0])])
compared = ex.differences(main, MLP).replace({"placement": {PLOP: "PLoP's choice"}})
for verdict, own in compared.groupby("verdict"):
    print(f"{verdict}: {', '.join(own['placement'])}")

# %% tags=["nbval-ignore-output", "picture-differences"]
title = f"{SHOWN} on sums"
told = {title: "four types alone and PAGE's map are worse than the MLP, nothing is shown to be better"}
plots.plot_differences(compared.assign(task=title), "MLP", told);

# %% [markdown]
# **What we saw.** The four types of the attention, each alone, and PAGE's single map come out worse than the MLP; output only
# just. Gate, up or down alone are near the MLP, although all their parameters are on one type. All else is undecided. Attention,
# query and value and the last third of the layers are about a tenth of a nat behind the MLP on the mean.
#
# How many seeds would it take to decide? Let luck move a run by $\sigma$ (its standard deviation). Then a difference $\delta$
# between two placements is found with a probability of 80 % by about $2 (1.96 + 0.84)^2 \sigma^2 / \delta^2$ runs of each.

# %%
sigma = main.groupby("placement")["loss"].var().mean() ** 0.5
print(f"luck moves a run by {sigma:.3f} nats per token")
for delta in (0.02, 0.05, 0.1):
    print(f"a difference of {delta} takes about {np.ceil(2 * 2.8**2 * sigma**2 / delta**2):.0f} runs of each placement")

# %% [markdown]
# This is for two placements that were named beforehand, with luck of average size, and where it says 3, take one or two more, as
# the formula knows the luck exactly. The picture compares eighteen placements at once and knows luck from few seeds, so its
# intervals are wider.
#
# Differences in nats per token are hard to judge by themselves. So here is also the share of the way from the untrained model to
# full finetuning, over the two seeds that all have. Most of this gain is how answers look, and all placements learn that.

# %%
untrained = recorded("results/benchmark_untrained.csv").query("model == 'SmolLM2-135M-Instruct'").set_index("task")
means = main.query("seed > 0").groupby("placement")["loss"].mean()
before = untrained.loc["short_sums", "loss"]
share = (before - means) / (before - means["full finetuning"])
share[[MLP, "all", PLOP, "attention", "query + value", "q"]].map("{:.0%}".format).to_frame("share of the gain")

# %% [markdown]
# ### A second task, and a trap
#
# On spelling, the other task with all sets, six usual placements were trained at three rates with three seeds. These are all of
# these runs:

# %%
SIX = [MLP, PLOP, "k+q+v", "all", "attention", "query + value"]
spelling = benchmark.query("task == 'spelling' and placement in @SIX and lr in [1e-3, 2e-3, 4e-3]")
spelling.pivot_table(index="placement", columns=["lr", "seed"], values="loss").loc[SIX].round(2)

# %%
judged = ex.differences(ex.crossfit(spelling), MLP).set_index("placement").loc[SIX[1:]]
judged[["difference", "low", "high", "verdict"]].round(2)

# %% [markdown]
# **What we saw.** With each placement at its own rate the MLP is ahead of PLoP's choice, of attention, of query and value, and of
# query, key and value, beyond intervals that hold all at once. Adapters on all types are undecided. (The MLP owes this to the
# highest of the three rates, which it stands with all seeds and PLoP's choice does not: at 1e-3 the two are level, at 2e-3 they
# are 0.05 apart. With seed 0 twice the highest rate was tried as well, and no placement was better there.) PLoP's choice shows
# the trap: at 4e-3 it went well with seed 0, which alone would have chosen this rate, and badly with the other two. Judged at
# that rate, it would come out 0.6 worse than the MLP.
#
# ### Four times the training
#
# Five placements were trained on sums for 100 steps, with seed 0 at three or more rates, and four of them with a second seed at
# two of these rates. Here is the loss:

# %%
longer = benchmark.query("task == 'short_sums_long' and lr in [5e-4, 1e-3, 2e-3]")
longer = longer.pivot_table(index="placement", columns=["lr", "seed"], values="loss")
assert np.ptp(longer.loc["attention", 2e-3]) > 0.2
longer.round(3)

# %% [markdown]
# **What we saw.** After four times the training the losses at 1e-3 lie between 0.89 and 0.97. Adapters on all types are ahead of
# the MLP there with both seeds, by 0.03 and 0.04; they were ahead there after 25 steps, too (seed 0: 1.04 against 1.11). At 2e-3
# luck decides: the two lowest losses of the table are those of query and value with one seed and of attention with the other, and
# with the other seed each is far worse. How it goes on from there we have not measured.

# %% [markdown]
# ## 5. Can a rule foresee it?
#
# **Question.** PLoP's rule looks at the untrained model only. Others do, too. Are their choices good, and better than simply
# taking the largest maps?
#
# **What we do.** Of each rule's choice of three types we ask where it is between the best of all 35 sets (regret 0) and the worst
# (regret 1), by `pooled_losses`, which draws single sets toward what their types make of them. We ask it in the four kinds of
# runs of the first picture. The choices were recorded (`notebooks/tools/record_rules.py`) before the losses of the sets were
# known, but for a pilot run of PLoP's choice.
#
# | rule | chooses the three types with |
# |---|---|
# | nfn | the lowest score (PLoP); *folded*: with the gains of norms inside the maps; *centred*: without the inputs' mean (both notebook 04); *median*: over layers |
# | l1, frobenius | the largest gradient of the loss: the sum of its absolute entries, or its Frobenius norm, also times $\sqrt{n m}$ |
# | first-order gain | the largest fall of the loss that the gradient foresees for LoRA's first step |
# | condition | the lowest ratio of the largest to the smallest singular value (KappaTune's criterion) |
# | size | the most parameters; it reads neither weights nor texts |
# | first step | not type by type: one step of LoRA is tried for each *set*, and the set with the lowest loss after it is taken (ours) |

# %%
def name_of(types):
    """Such as "down+up+v", of full names."""
    return "+".join(sorted(name.removesuffix("_proj") for name in types))


mine = "model == 'SmolLM2-135M-Instruct' and task in ['short_sums', 'spelling']"
rules = recorded("results/rules.csv").query("chosen").query(mine).replace({"rule": {"frobenius sqrt(in out)": "frobenius √(nm)"}})
choices = rules.groupby(["rule", "task"])["type"].agg(name_of).unstack("task")

# %%
steps = recorded("results/rules_first_step.csv").query(mine)
steps["set"] = [name_of(types.split("+")) for types in steps["types"]]
choices.loc["first step"] = steps[steps["set"].isin(sets)].pivot(index="set", columns="task", values="gain").idxmax()
choices

# %% [markdown]
# There are few different sets. Size chooses the MLP, and so do two rules that weight the gradient by the size of the map. (With
# `k=3` the three largest types of this model *are* the MLP. In a model whose attention maps are larger, size would choose
# otherwise.) Here is the regret of each choice:

# %%
rows = []
for kind, (task_name, _, _) in GROUPS.items():
    for rule, chosen in choices[task_name].items():
        name = chosen + EQUAL if kind.endswith(EQUAL) else chosen
        rows.append({"kind": kind, "rule": rule, "chosen": chosen, **pooled[kind].judged(name)})
verdicts = pd.DataFrame(rows)
regrets = verdicts.pivot(index="rule", columns="kind", values="regret")[list(GROUPS)]
regrets.assign(mean=regrets.mean(axis=1)).sort_values("mean").round(2)

# %% tags=["nbval-ignore-output", "picture-rules"]
ORDER = ["size", "nfn", "nfn folded", "nfn centred", "nfn median", "first step"]
shown = pd.concat([verdicts.query("rule == @rule") for rule in ORDER]).drop_duplicates(["kind", "chosen"])
shown = shown.assign(task=shown["kind"], choice=shown["rule"] + ": " + shown["chosen"])
draws = [found.draws for found in pooled.values()]
at_random = np.mean([(own.mean(axis=1) - own.min(axis=1)).mean() / np.ptp(own, axis=1).mean() for own in draws])
plots.plot_rules(shown, at_random);

# %% [markdown]
# **What we saw.** The order of the rules on the mean changes with the scale. With the usual scale *size* and the two rules that
# choose the same set have the lowest regret (but for sums at 1e-3, where the first step has a little less). With the equal scale
# they and PLoP's rule choose among the worse sets, and *median* has the lowest regret, undecided. PLoP's choice is on the mean a
# little better than one at random (the dashed line) in the three kinds of runs with the usual scale, and worse in the other, but
# chance is inside its interval in all four. No rule is good in all four. (The bars are 95 % intervals.)
#
# Does any rule beat size? For every other set that a rule chooses, here is its loss minus that of the MLP (nats per token). The
# intervals are for other seeds and problems, and with 95 % probability they hold all at once (Bonferroni):

# %%
rivals = verdicts.drop_duplicates(["kind", "chosen"]).query("chosen != @MLP")
tail = 0.025 / len(rivals)
rows = []
for row in rivals.itertuples():
    end = EQUAL if row.kind.endswith(EQUAL) else ""
    gap = pooled[row.kind].draws[row.chosen + end] - pooled[row.kind].draws[MLP + end]
    rows.append({"kind": row.kind, "set": row.chosen, "difference": gap.mean(), "low": gap.quantile(tail), "high": gap.quantile(1 - tail)})

# %%
against_size = pd.DataFrame(rows).set_index(["kind", "set"])
print(f"{sum(against_size['difference'] > 0)} of {len(rows)} are behind, {sum(against_size['low'] > 0)} of them beyond the interval")
against_size.round(3)

# %% [markdown]
# So size's choice is ahead in most, but only *centred* on spelling is worse beyond its interval, and with the equal scale four of
# five rivals are ahead of size, none beyond its interval. No rule is shown to beat size, and size is not shown to be good. (These
# are not so many independent findings: the same losses of the MLP are in each. They differ a little from the differences in
# section 3, as `pooled_losses` leans on what the types make of a set.) `plop.place(scores, rule="size")` takes the largest maps,
# and `rule=` takes numbers of your own.

# %% [markdown]
# ## 6. What does the model forget?
#
# **Question.** A finetuned model gets better at its task and, often, worse at everything else. Does the placement matter for
# that?
#
# **What we do.** Every run was also judged on the openings of 16 articles about history, which have nothing to do with the tasks.
# *Forgetting* is the loss on them after training minus before. Each placement is shown at the rate that seed 0 prefers, as the
# mean over seeds 1 and 2.

# %%
wanted = ex.chosen_rates(sums.query("group != 'scaled'"), [0])
at_tuned = sums.query("seed > 0").merge(wanted, on=["task", "placement", "lr"])
at_tuned["gain"] = untrained.loc["short_sums", "loss"] - at_tuned["loss"]
at_tuned["forgetting"] = at_tuned["unrelated_loss"] - untrained.loc["short_sums", "unrelated_loss"]
forgotten = at_tuned.groupby(["group", "placement"])[["gain", "forgetting"]].mean().reset_index()

# %% tags=["nbval-ignore-output", "picture-forgetting"]
title = f"{SHOWN} on sums"
shown = forgotten.query("forgetting < 1").assign(task=title)
plots.plot_forgetting(shown, {title: "gate or up alone forget almost nothing, query and value much more"});

# %%
forgets = forgotten.set_index("placement")["forgetting"]
forgets[["gate", "up", MLP, "all", "attention", "query + value", "v"]].round(2).to_frame("forgetting")

# %% [markdown]
# **What we saw.** Adapters on gate or up alone forget nearly nothing, the MLP little, query and value several times as much (two
# runs each; value alone, 2.3, is beyond the picture). The last third of the layers forgets nothing and gains less. Among the sets
# of three, those that gain less tend to forget more, perhaps because the rate is too high for some: for attention the rate that
# seed 0 preferred is too near the highest that works (section 2). A rate that is too high makes the model forget. These are the
# medians over all sets of three with seed 0, which 2e-3 suits:

# %%
at_rates = sums.query("seed == 0 and group == 'triple' and lr in [1e-3, 2e-3, 4e-3]").groupby("lr")["unrelated_loss"].median()
(at_rates - untrained.loc["short_sums", "unrelated_loss"]).round(2).to_frame("forgetting (nats per token)")

# %% [markdown]
# ## 7. A race on your own data
#
# **Question.** Our record is one small model and short trainings. What holds for *your* model and *your* data?
#
# **Intuition.** You need not train every placement at every rate to the end. Start all of them for a few steps, stop those that
# are behind, and give the time to the rest. That is *successive halving*; `ex.race` does it within the seconds that you give.
#
# **What we do.** Three placements at equal parameters, two rates each, in two minutes. The race drops placements and rates by
# their training loss, which costs nothing, and runs the last ones again with fresh seeds, judged on validation examples. If their
# difference is within the noise, it says "undecided". After section 4 we know what to expect: in so short a time only a very
# large difference could be found. An "edge" is a best rate that is the lowest or highest tried; with only two rates every rate is
# at the edge.

# %%
task = ex.load_task(TASK, train=400, validation=64, test=64)
print(repr(task.train[0]["prompt"] + task.train[0]["completion"]))

# %% tags=["nbval-ignore-output"]
found = ex.race(
    model, task, tokenizer, placements, seconds=SECONDS, ranks=ranks, rates=[1e-3, 2e-3],
    steps=16, batch_size=8, progress=False,
)  # fmt: skip
found

# %% [markdown]
# The result carries what `ex.finetune` needs, so the winner is trained with one more line; `out=` keeps the adapter.

# %% tags=["nbval-ignore-output"]
import tempfile

folder = tempfile.mkdtemp()
run = ex.finetune(model, task, tokenizer, placements[found.winner], **found.settings, accuracy=False, out=folder)
print(f"{found.winner} at {found.lr:g}: test loss {run['loss']:.2f}")

# %%
start = ex.evaluate(model, task, tokenizer, accuracy=False)["loss"]
assert run["loss"] < 0.4 * start or (MODEL, TASK) != ("SmolLM2-135M-Instruct", "short_sums")
print(f"untrained: {start:.1f} nats per token, before {run['steps']} steps of training")

# %% [markdown]
# How good is a race? It can be replayed on the record, where all runs are known: 46 placements (sets of three, single types and
# the fixed ones), two learning rates, three seeds. Each replay draws 35 of the placements. The race is given two of the seeds and
# one half of the test problems. Its choice is judged by the third seed on the other half, where the best placement has regret 0
# and the worst regret 1. We did this 200 times (`python notebooks/tools/record_race.py --draws 200 --tasks short_sums`), beside a
# grid of the same cost, a placement at random at its best rate, and the whole grid with the two seeds. *Share* is what the race
# may cost, as a share of the whole grid of three seeds, and *within 5 %* the share of the replays whose choice has a regret of at
# most 0.05.

# %%
replays = recorded("results/race.csv").query("task == 'short_sums' and placements == 35")
kept = (replays["reduction"] == 3) & replays["share"].isin([0.1, 0.2]) | replays["share"].isna()
replays = replays[kept].fillna({"share": 0}).rename(columns={"within_0.05": "within 5 %"})
replays.set_index(["way", "share"])[["cost", "regret", "within 5 %", "decided"]].round(2)

# %% [markdown]
# At a tenth of the cost of the whole grid the choices of the race have a mean regret of 0.08, those of a grid of the same cost
# 0.20, and a placement at random 0.27. At a fifth the race and the grid are level (0.21 and 0.22), and the whole grid with two
# seeds has 0.12: how the third seed will order the placements is hard to foresee by any means (section 3). All replays share
# three seeds, so such differences may be luck: that a race with more to spend did worse shows how large it is. They do not show
# that a race beats a grid. In none of the replays shown did the race decide anything.

# %% [markdown]
# In our saved run adapters on all types are ahead of the MLP, undecided. A winner is only the one that is ahead; "undecided"
# means that this race could not tell. If nothing else speaks for one of them, take the one that is easiest to serve, and where a
# best rate is at the edge, race again with further rates. To look for smaller differences (our replays do not show from when on
# it finds them), give it hours instead of minutes, rates from 2.5e-4 to 4e-3, and a `storage=` file: the same call goes on after
# an interrupt, and several processes may work on it. Notebook 07 has the cell for your own model.

# %% [markdown]
# ## 8. What others found
#
# *PEFT's own comparison* (one run of each, Llama-3.2-3B on MetaMathQA, accuracy on GSM8K; *rslora*: the scale $\alpha / \sqrt r$;
# *dora* and *adalora*: variants of LoRA):

# %%
peft = recorded("published/peft_method_comparison.csv")
peft.assign(parameters=(peft["trainable_parameters"] / 1e6).round(1)).drop(columns="trainable_parameters")

# %% [markdown]
# At 9.2 to 9.5 million parameters the MLP is ahead of query and value by 1.6 points. One run's accuracy on GSM8K's 1,319 problems
# has a standard error of about 1.4 points, and the difference of two runs one of about 1.9 if they were independent (both answer
# the same problems, which makes it smaller; other training seeds make it larger). So this is no proof. A change of the scale
# alone (*rslora*) moves query and value by 4 points.
#
# *LoRA Without Regret* ([Schulman et al. 2025](https://thinkingmachines.ai/blog/lora/), and [TRL's
# guide](https://huggingface.co/docs/trl/main/en/lora_without_regret) to it) finds that adapters belong on all layers and types,
# above all on the MLP; that attention alone falls behind even at the same number of parameters; and that the best rate is about
# ten times that of full finetuning. *PLoP* reports 75.4 % on ANLI with 44 million parameters of adapters, against 73.9 % with 70
# million elsewhere. Its ICLR 2026 version ([OpenReview](https://openreview.net/forum?id=3lGkVgNZ5a)) has these rows, as far as
# public notes on it tell (*inverse*: the three types with the *highest* scores):

# %%
iclr = recorded("published/plop_iclr_2026.csv")
iclr.pivot(index=["model", "measure"], columns="placement", values="value")

# %% [markdown]
# For the negative log-likelihood lower is better. PLoP leads in two of these three rows, in one of them by 0.11 nats, and the MLP
# in one. Attention, where it was tried, is behind both, and in the first row far behind. We did not rerun them: the models need a
# hub and a GPU. One command plans the comparison for a model of your own: `python notebooks/tools/record_benchmark.py plan
# --model meta-llama/Llama-3.2-1B --tasks anli metamath`; then `run` with the same arguments.

# %% [markdown]
# An older record of our own, on another task and on a GPU: SmolLM2 finetuned on HumanEval's problems for 25 steps of 16, five
# seeds, each placement at its own rate, 40 test problems (*inverse*: the three types with the highest scores; *modules*: the
# single lowest-scoring maps; *random*: three types at random). Here is the test loss minus that of PLoP's three types, with
# intervals that hold all at once for other seeds (not for other problems):

# %%
code = recorded("results/code.csv").query("split == 'test'")
older = ex.versus(code, "PLoP", level=0.994).set_index("placement")
older[["difference", "low", "high", "verdict"]].round(3)

# %% [markdown]
# Here luck is small, and small differences show: attention, query and value, inverse and two random sets of types are worse than
# PLoP's choice, by 0.01 to 0.02 nats per token, and the MLP cannot be told from it. With 40 problems, other problems may say
# otherwise.

# %% [markdown]
# ## Exercises
#
# Each has a cell to fill in and a check. The solutions are in the collapsed cell below each check.
#
# ### 1. The same size (5 minutes)
#
# Which rank gives adapters on the *output* maps alone as many parameters as rank 8 on all seven types? Use `per_rank` of section
# 1.

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
# Suppose that you had one seed only. Take the best of the 35 sets of three on sums by the loss of seed 1 alone, at 2e-3. Which
# place, of 35, has this set by seed 2? *Hint:* `by_seed["sums, 2e-3"]` has a row for each set and a column for each seed.

# %%
best_by_1 = place_by_2 = None  # your turn: a name, and a number from 1 (lowest loss) to 35


# %%
def check_curse(name, place):
    if name is None:
        return "not yet filled in"
    losses = by_seed["sums, 2e-3"]
    assert name == losses[1].idxmin(), "another set has a lower loss with seed 1"
    assert place == losses[2].rank()[name], "seed 2 puts it elsewhere"
    return f"{name}: first by seed 1, number {place:.0f} by seed 2"


check_curse(best_by_1, place_by_2)

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution. At 1e-3, where luck is smaller, try the same.
winner_by_1 = by_seed["sums, 2e-3"][1].idxmin()
check_curse(winner_by_1, by_seed["sums, 2e-3"][2].rank()[winner_by_1])

# %% [markdown]
# ### 3. One seed against three (15 minutes)
#
# Tune the MLP and query + value on sums by one seed alone, each at the best rate of that seed, and take the difference of their
# losses. Do it for each of the three seeds. How large is the smallest difference, and how large the largest? Use `three_rates` of
# section 2. *Hint:* `.T.groupby("seed").min()`.

# %%
smallest = largest = None  # your turn: query + value minus MLP, nats per token


# %%
def check_gaps(low, high):
    if low is None:
        return "not yet filled in"
    best = three_rates.T.groupby("seed").min()
    gaps = best["query + value"] - best[MLP]
    assert np.allclose([low, high], [gaps.min(), gaps.max()]), "take each at its own best rate of that seed"
    return f"from {low:.2f} to {high:.2f}: one seed would have told you either"


check_gaps(smallest, largest)

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution.
of_seed = three_rates.T.groupby("seed").min()
gaps = of_seed["query + value"] - of_seed[MLP]
check_gaps(gaps.min(), gaps.max())

# %% [markdown]
# ## Three things to remember
#
# 1. **Tune the learning rate with several seeds before you compare places.** Compare at equal parameters, each place at its own
#    rate, and say which scale. One run of each proves nothing.
# 2. **The MLP is a good default, not a proven best place.** With the usual $\alpha$ gate, up and down are ahead of the average
#    type in all eight groups of runs; with an equal scale, at one rate, no lead is seen. No rule is shown to choose better than
#    the one that takes the largest maps.
# 3. **If it matters, let your own data decide**, and expect "undecided": where luck is as large as here, small differences take
#    tens of runs.
#
# **Not established.** Larger models, trained to the end; other ranks; all sets with an equal scale at other rates; which layers;
# how accuracy follows the loss. Of the reports in section 8 about larger models, PEFT's decides nothing, Schulman et al. are for
# all types, above all the MLP, and PLoP leads in two of the three rows that we could find.
#
# **Where next.** Notebook 06 asks the same of reinforcement learning. Notebook 07 is the page for your own model.
