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
# **The question.** You want to finetune a language model with LoRA. Which of its maps should get the adapters?
#
# **The answer.** Put them on the MLP (its gate, up and down maps) or on all maps, and spend your time on the learning rate. We
# trained placements of one small model on three tasks, at equal numbers of parameters. None is shown to be better than the MLP.
# PLoP ([Hayou, Ghosh, Yu](https://arxiv.org/abs/2506.20629)) puts adapters on the three types of maps with the lowest scores
# (notebook 00). Its choice is worse than the MLP on one task, and cannot be told from it on the others. How far this is a matter
# of the place and how far one of the adapters' scale is open: on sums, with an equal scale and at one rate, the MLP's types do
# not lead.

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

# %%
benchmark = ex.load_benchmark().query("model == 'SmolLM2-135M-Instruct'").round({"lr": 6})
MLP, PLOP = "down+gate+up", "down+up+v"  # how the record calls the MLP, and what PLoP chooses
FIVE = [MLP, PLOP, "all", "attention", "query + value"]
TASKS = {"short_sums": "sums", "spelling": "spelling", "short_syllogisms": "syllogisms"}
of_five = benchmark.query("task in @TASKS and placement in @FIVE and lr in [1e-3, 2e-3, 4e-3]")

# %% tags=["nbval-ignore-output", "picture"]
compared = ex.differences(ex.crossfit(of_five), MLP)
compared = compared.replace({"placement": {PLOP: "PLoP's choice", "all": "all maps"}, "task": TASKS})
told = {"sums": "undecided", "spelling": "three are worse than the MLP", "syllogisms": "undecided"}
plots.plot_differences(compared, "MLP", told);

# %% [markdown]
# Each dot is the difference to the MLP in the loss on test problems, and each bar an interval for other seeds and other problems.
# Each placement was trained at the learning rate that suits it. On the right of the dashed line a placement is worse than the
# MLP. Section 3 explains how this was computed.
#
# | | |
# |---|---|
# | **You need** | notebook 00; what a LoRA adapter is ($W + \frac{\alpha}{r} BA$ with a small rank $r$); what a training loss is |
# | **It takes** | 45 minutes to read; it runs in three to five minutes on two CPU cores, without a GPU |
# | **It runs** | a race between placements on SmolLM2-135M, live, in two minutes; all other trainings are read from recorded files |
#
# **Words** (all others are in the [glossary](GUIDE.md#words)). A *map* is the weight matrix of a linear layer. A *type* is one
# kind of map over all layers, such as all value maps. SmolLM2 has seven types: query, key, value and output (q, k, v, o) in the
# attention, gate, up and down in the MLP. A *placement* says which maps get adapters. The *loss* is that of the right answer, in
# nats per token: a nat less means that each of its tokens gets a 2.7 times higher probability (on the geometric average). A
# *seed* decides the random start of the adapters and the order of the examples. *Luck* is what changes from seed to seed.

# %% [markdown]
# ## 1. A fair comparison
#
# **Question.** Suppose that adapters of rank 16 on query and value train worse than adapters of rank 16 on the MLP. Is the MLP
# the better place?
#
# **Intuition.** An adapter of rank $r$ on a map with $n$ inputs and $m$ outputs has $r (n + m)$ parameters. The maps of the MLP
# are larger, so at the same rank they get more parameters. Such a comparison mixes up place and size.
#
# **What we do.** We count the parameters at rank 16, and then look for the ranks that give all placements 2.43 million.

# %%
model, tokenizer = plop.load_model(MODEL)
maps = plop.module_table(model).query("status == 'scored'")
per_rank = (maps["in_features"] + maps["out_features"]).groupby(maps["type"]).sum()
(16 * per_rank.sort_values()).to_frame("parameters at rank 16")

# %%
BUDGET = 2.43e6
types_of = {"MLP": ["gate_proj", "up_proj", "down_proj"], "query + value": ["q_proj", "v_proj"], "all": list(per_rank.index)}
by_hand = {name: BUDGET / per_rank[types].sum() for name, types in types_of.items()}
pd.Series(by_hand).round(1).to_frame("rank for 2.43 million parameters")

# %% [markdown]
# The package does the same for any placement. `ex.rank_for` finds the rank whose number of parameters comes nearest. It takes a
# `Placement`, which knows the names of the maps from a table of scores.

# %%
scores = plop.nfn_scores(model, plop.load_texts("math", n=4), tokenizer, progress=False)
placements = {name: Placement.of_types(scores, types) for name, types in types_of.items()}
ranks = {name: ex.rank_for(placement, model, BUDGET) for name, placement in placements.items()}
assert ranks == {name: round(rank) for name, rank in by_hand.items()}
ranks

# %% [markdown]
# **What we saw.** On query and value it takes rank 42 to have as many parameters as rank 13 on the MLP. In the benchmark all
# placements have 2.43 million, within 2 %.
#
# Not everything can be equal at once. LoRA multiplies its update by the *scale* $\alpha / r$. With $\alpha = 32$ for all, as
# here, a higher rank means a smaller scale: 2.5 for the MLP and 0.8 for query and value. (Where $\alpha$ grows with the rank, as
# in $\alpha = 2 r$, the scale stays the same.) Section 5 comes back to this.
#
# This is how all runs were trained:
#
# | | sums | spelling | syllogisms |
# |---|---|---|---|
# | an example | a sum or difference of two numbers → its value | a word → its letters backward | two premises and a conclusion → yes or no |
# | steps of 8 examples | 25 | 30 | 40 |
#
# AdamW with a learning rate that rises over the first tenth of the steps and then falls to zero, $\alpha = 32$, float32, 500 test
# problems. These are short trainings. On sums the loss falls from 4.3 to about 1.05, yet no run gets more than 7 % of the sums
# exactly right, and on spelling hardly a word. There the benchmark is about the beginning of a training, when a model learns what
# answers look like.

# %%
own = benchmark.query("group in ['single', 'fixed', 'triple'] and task in @TASKS")
assert (own["parameters"] / BUDGET - 1).abs().max() < 0.02
own.groupby("task").agg(runs=("loss", "size"), best_loss=("loss", "min"), most_exactly_right=("exact", "max")).round(3)

# %% [markdown]
# ## 2. First the learning rate
#
# **Question.** How much does the learning rate matter?
#
# **Predict.** You train a placement at its best learning rate, and again at half and at twice that rate. Which of the two
# mistakes costs more?
#
# **What we do.** We take all 35 sets of three types on sums, trained with one seed (seed 0) at rates a factor of two apart. Each
# grey line of the picture is one set.

# %% tags=["nbval-ignore-output", "picture-rates"]
lines = benchmark.query("task == 'short_sums' and seed == 0 and lr in [1e-3, 2e-3, 4e-3]")
lines = lines.query("group == 'triple' or placement == 'attention'").assign(task="sums, seed 0")
told = {"sums, seed 0": "twice the best rate costs more than half of it"}
plots.plot_rates(lines, {MLP: "MLP", PLOP: "PLoP's choice", "attention": "attention"}, told);

# %%
by_rate = lines.query("group == 'triple'").groupby("lr")["loss"].median()
assert by_rate[4e-3] > by_rate[1e-3] > by_rate[2e-3]
by_rate.round(2).to_frame("median loss of the 35 sets")

# %% [markdown]
# **What we saw.** With this seed the rate 2e-3 is best for nearly all sets. On the median, twice that rate costs 0.19 and half of
# it 0.09.
#
# One seed is not enough, though. We chose the rate at which seed 0 happened to do well. Here are four placements with three
# seeds:

# %%
FOUR = [MLP, PLOP, "attention", "query + value"]
three_rates = of_five.query("task == 'short_sums' and placement in @FOUR and seed < 3")
three_rates = three_rates.pivot_table(index="placement", columns=["lr", "seed"], values="loss").loc[FOUR]
three_rates.round(2)

# %% [markdown]
# At 1e-3 the seeds agree within a few hundredths. At 2e-3 the MLP trains well with all three seeds, PLoP's choice with two, and
# attention with one. For attention this rate is too near to the highest that works, and seed 0 did not show it. **So tune with
# several seeds.**

# %% [markdown]
# ## 3. Five placements on three tasks
#
# **Question.** With each placement at its own learning rate: which is best?
#
# **Intuition.** If we choose the rate that gives the lowest loss and then report this loss, we report good luck as well. The
# choice and the report need different runs and different problems.
#
# **What we do.** The loss of a seed is reported at the rate that the *other* seeds prefer. And the test problems are split in
# two: the rate that is chosen on one half is judged on the other half. `ex.crossfit` does both. Then `ex.differences` compares
# each placement with the MLP, over the seeds that both have. It takes the luck of seeds to be alike for all placements of a task,
# as two to five seeds of one placement cannot tell it. With 95 % probability all intervals of the picture hold together, for new
# seeds and new test problems (t intervals, Bonferroni over their number).

# %%
shown = compared.set_index(["task", "placement"])[["difference", "low", "high", "verdict", "seeds"]]
shown.round(2)

# %% [markdown]
# **What we saw.** On sums and on syllogisms nothing is decided. On spelling the MLP is ahead of PLoP's choice, of attention and
# of query and value, by 0.25 to 0.36 nats per token. Adapters on all maps are undecided on all three tasks. On syllogisms the
# five placements are within a few hundredths of each other. There, at the two lower rates, 70 to 82 % of the answers are right
# after the training; half would be by chance.
#
# Spelling also shows a trap. Here are all its runs of PLoP's choice and of the MLP:

# %%
both = of_five.query("task == 'spelling' and placement in [@MLP, @PLOP]")
both.pivot(index="seed", columns=["placement", "lr"], values="loss").round(2)

# %% [markdown]
# The MLP stands the rate 4e-3 with all five seeds, and owes its lead to it. (It is the highest of these rates. With seed 0 the
# three placements that like it best were tried at twice this rate, and were worse.) PLoP's choice goes well at 4e-3 with three
# seeds and badly with two. Who tunes it with one seed may choose this rate, and then fail with the next seed.
#
# (Spelling was first run with three seeds. The interval of PLoP's choice ended near zero, so we added two seeds for all five
# placements. Runs that are added after a look make intervals a little too narrow.)
#
# How large are these differences? The untrained model has a loss of 4.3 on sums. We also trained all of its 135 million weights
# (full finetuning). Here is the share of the way from the one to the other that each placement goes, with the same two seeds:

# %%
five = ex.crossfit(of_five.query("task == 'short_sums'"))
full = ex.crossfit(benchmark.query("task == 'short_sums' and group == 'full'"), tuning_seeds=[0])
fitted = pd.concat([five, full]).query("seed in [1, 2]").groupby("placement")["loss"].mean()
untrained = pd.read_csv(data_file("results/benchmark_untrained.csv"), comment="#").set_index(["model", "task"])["loss"]
start = untrained["SmolLM2-135M-Instruct", "short_sums"]

# %%
share = (start - fitted) / (start - fitted["full finetuning"])
share.sort_values().map("{:.0%}".format).to_frame("share of the gain")

# %% [markdown]
# All placements go at least 96 % of the way. Most of it is how answers look, and every placement learns that.
#
# **How many seeds would decide?** Let luck move a run by $\sigma$ (its standard deviation). Then about $2 (1.96 + 0.84)^2
# \sigma^2 / \delta^2$ runs of each of two placements find a difference $\delta$ with a probability of 80 %.

# %%
sigma = five.groupby("placement")["loss"].var().mean() ** 0.5
print(f"luck moves a run on sums by {sigma:.2f} nats per token")
for delta in (0.02, 0.05, 0.1):
    print(f"a difference of {delta} takes about {np.ceil(2 * 2.8**2 * sigma**2 / delta**2):.0f} runs of each")

# %% [markdown]
# A difference of 0.02, such as that between PLoP's choice and the MLP on sums, needs many more than three seeds, also if it is
# the only one that we ask about. So "undecided" does not mean equal. It means that we cannot tell.
#
# **Does it last?** Four placements were also trained on sums for 100 steps instead of 25, with two seeds at two rates:

# %%
longer = benchmark.query("task == 'short_sums_long' and placement in @FIVE and lr in [1e-3, 2e-3]")
longer = longer.pivot_table(index="placement", columns=["lr", "seed"], values="loss").dropna()
longer.round(2)

# %% [markdown]
# **What we saw.** After four times the training all losses at 1e-3 lie between 0.89 and 0.96, and adapters on all maps are ahead
# of the MLP with both seeds, by a few hundredths. At 2e-3 luck decides: the lowest losses are those of query and value with one
# seed and of attention with the other, and with the other seed they are worse by 0.09 and 0.25. So the MLP's lead over the others
# on sums is not seen after a longer training.

# %% [markdown]
# ## 4. Is one set of three types the best?
#
# **Question.** PLoP takes three of the seven types. There are 35 sets of three. Which is the best?
#
# **Intuition.** If we train 35 sets and take the best, it is partly the best by luck. Before we believe an order, we ask whether
# another seed gives the same order.
#
# **What we do.** All 35 sets were trained with two or three seeds. For each pair of seeds we compute the rank correlation
# (Spearman's) of the losses of the 35 sets. It is 1 where both seeds order the sets alike, and 0 where one order says nothing
# about the other.
#
# **Predict.** How large is it, for two seeds at the same rate?

# %%
KINDS = {"sums, 1e-3": ("short_sums", 1e-3), "sums, 2e-3": ("short_sums", 2e-3), "spelling, 2e-3": ("spelling", 2e-3)}
runs = {kind: ex.runs_of_triples(benchmark, task, lr) for kind, (task, lr) in KINDS.items()}
by_seed = {kind: own.pivot(index="placement", columns="seed", values="loss") for kind, own in runs.items()}
by_seed["sums, 2e-3"].head(3).round(2)

# %%
for kind, losses in by_seed.items():
    alike = losses.corr("spearman")
    for first, second in [(0, 1), (0, 2), (1, 2)]:
        if second in alike:
            print(f"{kind}: seeds {first} and {second} correlate by {alike.loc[first, second]:.2f}")

# %% tags=["nbval-ignore-output", "picture-seeds"]
both = pd.concat([by_seed[kind].reset_index().assign(task=kind) for kind in ["sums, 1e-3", "sums, 2e-3"]])
told = {"sums, 1e-3": "two seeds order the sets somewhat alike", "sums, 2e-3": "two seeds do not agree on the sets"}
plots.plot_agreement(both, (0, 1), {MLP: "MLP", PLOP: "PLoP's choice"}, told);

# %% [markdown]
# **What we saw.** At 2e-3 a set that is good with one seed may be bad with the next. (The picture shows seeds 0 and 1; the lines
# above it have the other pairs.) At half this rate the seeds agree to some degree. So which set is the best we cannot say, and do
# not believe anybody, us included, who says it after one or two runs of each.
#
# These are the places of the MLP and of PLoP's choice among the 35 sets, by the mean loss over the seeds:

# %%
means = pd.DataFrame({kind: losses.mean(axis=1) for kind, losses in by_seed.items()})
means.rank().loc[[MLP, PLOP]].astype(int)

# %% [markdown]
# The MLP is among the first ten sets, and PLoP's choice in the middle. In none of the three kinds of runs is the mean loss of
# PLoP's choice below that of the MLP.

# %%
assert (means.loc[PLOP] > means.loc[MLP]).all()
(means.loc[PLOP] - means.loc[MLP]).round(3).to_frame("loss of PLoP's choice minus MLP")

# %% [markdown]
# ## 5. Is it the place, or the scale?
#
# **Question.** Single sets are hard to judge. Is there something that holds for many sets together?
#
# **What we do.** We group the 35 sets by how many of their three types belong to the MLP, and average.

# %%
in_mlp = pd.Series({name: len({"gate", "up", "down"} & set(name.split("+"))) for name in means.index})
means.groupby(in_mlp.rename("types of the MLP")).mean().round(3).assign(sets=in_mlp.value_counts())

# %% [markdown]
# Sets with types of the MLP have lower losses, in all three kinds of runs. (The row of three types is one set, the MLP itself.)
#
# **Predict.** At equal parameters the large maps of the MLP get a lower rank, and so a larger scale $\alpha / r$. Suppose that we
# repeat all sets with the same scale for all of them. Will the MLP still lead?
#
# We trained all 35 sets on sums once more with $\alpha / r = 4$ for all, at 1e-3, with two seeds.

# %%
runs["sums, 1e-3, equal scale"] = ex.runs_of_triples(benchmark, "short_sums", 1e-3, equal_scale=True)
equal = runs["sums, 1e-3, equal scale"].groupby("placement")["loss"].mean()
equal.groupby(in_mlp.rename("types of the MLP")).mean().round(3).to_frame("sums, 1e-3, equal scale")

# %% [markdown]
# Now the order is gone. How sure is this? `ex.pooled_losses` takes the loss of a set to be the sum of the *effects* of its three
# types, an extra of this set, and luck. It returns 4,000 draws of what the effects may be, for other seeds and other problems. We
# take the mean effect of the MLP's types minus that of the attention's:

# %%
def lead_of_mlp(own):
    """What a type of the MLP does to the loss in the place of one of the attention: 4,000 draws."""
    sets = {name: set(name.split("+")) for name in own["placement"].unique()}
    effects = ex.pooled_losses(own, sets).effects
    return effects[["gate", "up", "down"]].mean(axis=1) - effects[["q", "k", "v", "o"]].mean(axis=1)


# %%
draws = pd.DataFrame({kind: lead_of_mlp(own) for kind, own in runs.items()})
leads = pd.DataFrame({"difference": draws.mean(), "low": draws.quantile(0.025), "high": draws.quantile(0.975)})
leads["verdict"] = np.where(leads["high"] < 0, "better", np.where(leads["low"] > 0, "worse", "undecided"))
leads.round(3)

# %% tags=["nbval-ignore-output", "picture-scale"]
table = leads.rename_axis("placement").reset_index().assign(task="SmolLM2-135M")
plots.plot_differences(table, "types of the attention", {"SmolLM2-135M": "the MLP's types lead with alpha 32; at 1e-3 with equal scales they do not"});

# %% [markdown]
# **What we saw.** With $\alpha = 32$ a type of the MLP lowers the loss in the place of one of the attention, by 0.02 to 0.08 nats
# per token, and all three intervals exclude zero (each holds by itself). With an equal scale, at 1e-3, no lead is seen: the
# interval goes from -0.01 to 0.02.
#
# This was one rate. Four placements were trained with both scales at several rates, with two seeds:

# %%
EQUAL = ", equal scale"
names = ["up", MLP, "attention", "query + value"]
both = benchmark.query("task == 'short_sums' and seed < 2 and lr in [5e-4, 1e-3, 2e-3, 4e-3]")
both = both[both["placement"].isin([*names, *(name + EQUAL for name in names)])]
complete = both.groupby(["placement", "lr"]).filter(lambda own: len(own) == 2)

# %%
scales = complete.pivot_table(index="placement", columns="lr", values="loss")
scales.assign(best=scales.min(axis=1)).round(2)

# %% [markdown]
# With the equal scale the best rates fall, for up alone from 4e-3 to 1e-3. The best losses move by at most 0.04, and the order of
# the four changes. At 1e-3 the MLP is level with attention, and at half and twice this rate it is ahead of it: it stands more
# rates. **A learning rate is good only together with the scale that it was tuned for.** A comparison at one rate and one scale
# favours the places that they suit.

# %%
best = scales.min(axis=1)
gaps = [best[name + EQUAL] - best[name] for name in names]
print(f"the best loss changes by {min(gaps):.2f} to {max(gaps):.2f}")

# %% [markdown]
# ## 6. What to choose
#
# | your situation | adapters on | evidence |
# |---|---|---|
# | You want one good default | the MLP, or all maps | sections 3 and 4 |
# | You train longer | all maps, or the MLP | section 3: 100 steps, one task, two seeds |
# | Your server takes adapters on attention only | query and value, or all four types at a low rate | sections 2 and 3: behind the MLP on spelling |
# | You fear that the model forgets | gate or up, or the MLP; no rate above the tuned one | [notebook 05b](05b_rules_and_rivals.ipynb), section 4 |
# | It matters, and you have hours | what a grid or a race on your own data says | section 7 |
#
# In every row: tune the learning rate with several seeds. Start with your present rate, half of it and twice of it, and keep
# $\alpha$ fixed meanwhile.
#
# *The rank.* All placements here have as many parameters as rank 8 on all types. We did not vary this. [LoRA Without
# Regret](https://thinkingmachines.ai/blog/lora/) finds that the rank matters when the data hold more than the adapters can, and
# not before.
#
# *Others, with larger models,* do not all agree. LoRA Without Regret prefers all layers, above all the MLP. PEFT's comparison has
# the MLP ahead of query and value by 1.6 points on GSM8K, within its noise. The paper reports gains of PLoP over the MLP in two
# of the three rows that we could find, and a loss in the third. Notebook 05b shows their numbers.
#
# *Limits.* This is one model of 135 million parameters, short answers, the beginning of trainings, and two to five seeds. Larger
# models usually want lower rates.

# %% [markdown]
# ## 7. A race on your own data
#
# **Question.** Our record is one small model and short trainings. What holds for *your* model and *your* data?
#
# **Intuition.** You need not train every placement at every rate to the end. Start all of them for a few steps, stop those that
# are behind, and give the time to the rest. This is *successive halving*. `ex.race` does it within the seconds that you give.
#
# **What we do.** Three placements at equal parameters, two rates each, in two minutes. The race drops what is behind in its
# training loss. It runs the last ones again with fresh seeds, and judges them on validation examples. If their difference is
# within the noise, it says "undecided". After section 3 you know what to expect: in two minutes only a very large difference
# could be found.

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
# An "edge" is a best rate that is the lowest or the highest tried. With only two rates every rate is at the edge, and a real race
# needs more of them.
#
# The result carries what `ex.finetune` needs, so the winner is trained with one more line. `out=` keeps the adapter.

# %% tags=["nbval-ignore-output"]
import tempfile

folder = tempfile.mkdtemp()
run = ex.finetune(model, task, tokenizer, placements[found.winner], **found.settings, accuracy=False, out=folder)
print(f"{found.winner} at {found.lr:g}: test loss {run['loss']:.2f}")

# %%
before = ex.evaluate(model, task, tokenizer, accuracy=False)["loss"]
assert run["loss"] < 0.4 * before or (MODEL, TASK) != ("SmolLM2-135M-Instruct", "short_sums")
print(f"untrained: {before:.1f} nats per token, before {run['steps']} steps of training")

# %% [markdown]
# **What we saw.** A winner is the one that is ahead, and "undecided" means that this race could not tell. If nothing else speaks
# for one of them, take the one that is easiest to serve. To look for smaller differences, give the race hours, rates from 2.5e-4
# to 4e-3, and a `storage=` file: the same call then goes on after an interrupt, and several processes may work on it. Notebook
# 05b asks how good such a race is, and notebook 07 has the cell for your own model.

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
# 2. **The MLP is a good default, not a proven best place.** With $\alpha = 32$ types of the MLP are ahead of those of the
#    attention. With an equal scale, on sums at one rate, they are not.
# 3. **If it matters, let your own data decide**, and expect "undecided": where luck is as large as here, small differences take
#    tens of runs.
#
# **Not established.** Larger models trained to the end; other ranks; all sets with an equal scale at other rates; which layers;
# how accuracy follows the loss.
#
# **Where next.** Notebook 05b asks whether any rule can foresee a good place, what other methods do, and what the model forgets.
# Notebook 06 asks the same of reinforcement learning. Notebook 07 is the page for your own model.
