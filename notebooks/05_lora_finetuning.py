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
# **The answer.** Put them on the MLP (its gate, up and down maps) or on all maps, and spend your time on the learning rate. PLoP
# ([Hayou, Ghosh, Yu](https://arxiv.org/abs/2506.20629)) puts them on the three types of maps with the lowest scores (notebook
# 00). With one small model, SmolLM2-135M, and equally many parameters in each place, the MLP is ahead of PLoP's choice on one
# task (spelling), mostly because it can be trained at a higher rate. On two others they cannot be told apart. No place is shown
# to be better than the MLP. The evidence is thin: at the end hardly a word is spelled right, and the scale of the adapters may
# have a part in it (tried on sums only, section 5). The paper reports gains for its choice in larger models: 75.4 % on ANLI with
# 44 million parameters, against 73.9 % with 70 million elsewhere.

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
MODEL = "SmolLM2-135M-Instruct"  # of the live race: a decoder whose maps are called q_proj ... down_proj
TASK = "short_sums"  # of the live race; or "gsm", "spelling", "facts", a Task of your own
SECONDS = 120  # that the race may take

# %% tags=["nbval-ignore-output"]
import numpy as np
import pandas as pd

from plop_nb import benchmark_plots as plots
from plop_nb import experiments as ex
from plop_nb.placement import Placement

# %%
benchmark = ex.load_benchmark().query("model == 'SmolLM2-135M-Instruct'").round({"lr": 6})
PLACES = {"down+gate+up": "MLP", "down+up+v": "PLoP's choice", "all": "all maps"}  # the record's names, and ours
PLACES["down+gate+up, equal scale"] = "MLP, equal scale"
TASKS = {"short_sums": "sums", "spelling": "spelling", "short_syllogisms": "syllogisms"}
named = benchmark.replace({"placement": PLACES, "task": TASKS})

# %%
FIVE = ["MLP", "PLoP's choice", "all maps", "attention", "query + value"]
of_five = named.query("task in ['sums', 'spelling', 'syllogisms'] and placement in @FIVE")

# %% tags=["nbval-ignore-output", "picture"]
tuned = ex.crossfit(of_five.query("lr in [1e-3, 2e-3, 4e-3]"))  # section 3 explains both functions
compared = ex.differences(tuned, "MLP")
said = {"sums": "nothing is decided", "syllogisms": "nothing is decided", "spelling": "the MLP leads three"}
note = "SmolLM2-135M, alpha 32; 3, 5 and 2 seeds; bars: 95 %, for all twelve at once"
plots.plot_differences(compared, "the MLP", said, note);

# %% [markdown]
# Each dot is the difference to the MLP in the loss on test problems, each bar its interval for other seeds and other problems.
# Each placement is reported at the learning rate that its other seeds prefer. Orange: the whole bar is on the right, so the
# placement is shown to be worse.
#
# | | |
# |---|---|
# | **You need** | notebook 00; what a LoRA adapter is ($W + \frac{\alpha}{r} BA$ with a small rank $r$); what a training loss is |
# | **It takes** | 45 minutes with the exercises; it runs in three to four minutes on two idle CPU cores, without a GPU |
# | **It runs** | a race between PLoP's choice and the MLP on SmolLM2-135M, live, in two minutes; all other trainings are read from files (*the record*) |
#
# **Words** (all others are in the [glossary](GUIDE.md#words)). A *map* is the weight matrix of a linear layer. A *type* is one
# kind of map over all layers, such as all value maps. SmolLM2 has seven: query, key, value and output (q, k, v, o) in the
# attention, gate, up and down in the MLP. A *placement* says which maps get adapters. The *loss* is minus the logarithm of the
# probability of each token of the right answer, averaged, in nats per token. A *seed* decides the random start of the adapters
# and the order of the examples. *Luck* is what changes from seed to seed.

# %% [markdown]
# ## 1. A fair comparison
#
# **Question.** Adapters of rank 16 train worse on query and value than on the MLP. Is the MLP the better place?
#
# **Intuition.** An adapter of rank $r$ on a map with $n$ inputs and $m$ outputs has $r (n + m)$ parameters. At the same rank the
# larger maps of the MLP get more of them. Such a comparison mixes up place and size.
#
# **What we do.** We count the parameters at rank 16. Then we look for the ranks that give each placement as many as rank 8 on all
# maps.

# %%
model, tokenizer = plop.load_model(MODEL)
maps = plop.module_table(model).query("status == 'scored'")
per_rank = (maps["in_features"] + maps["out_features"]).groupby(maps["type"]).sum()
(16 * per_rank.sort_values()).to_frame("parameters at rank 16")

# %%
BUDGET = 8 * per_rank.sum()
types_of = {"MLP": ["gate_proj", "up_proj", "down_proj"], "query + value": ["q_proj", "v_proj"]}
types_of["all maps"] = list(per_rank.index)
by_hand = {name: BUDGET / per_rank[types].sum() for name, types in types_of.items()}
pd.Series(by_hand).round(1).to_frame("rank for equally many parameters")

# %% [markdown]
# PLoP's choice needs scores. We score eight math problems and take the three lowest types. (The texts of our three tasks choose
# the same: `data/results/rules.csv`.)

# %%
scores = plop.nfn_scores(model, plop.load_texts("math", n=8), tokenizer, progress=False)
chosen = plop.place(scores, k=3)
assert MODEL != "SmolLM2-135M-Instruct" or set(chosen.types) == {"down_proj", "up_proj", "v_proj"}
print(f"PLoP's choice: {', '.join(chosen.types)}")

# %% [markdown]
# `ex.rank_for` finds the rank whose number of parameters comes nearest. It takes a `Placement`:

# %%
placements = {name: Placement.of_types(scores, types) for name, types in types_of.items()}
placements["PLoP's choice"] = chosen
ranks = {name: ex.rank_for(placement, model, BUDGET) for name, placement in placements.items()}
assert all(ranks[name] == round(rank) for name, rank in by_hand.items())
ranks

# %% [markdown]
# **What we saw.** Rank 42 on query and value has as many parameters as rank 13 on the MLP: 2.43 million, within 2 %, as ranks are
# whole numbers.
#
# Not everything can be equal at once. LoRA multiplies its update by the *scale* $\alpha / r$. With $\alpha = 32$ for all, a
# higher rank means a smaller scale: 2.5 for the MLP and 0.8 for query and value. Section 5 comes back to this.
#
# Unless said otherwise, this is how all runs were trained:
#
# | | sums | spelling | syllogisms |
# |---|---|---|---|
# | an example | a sum or difference of two numbers → its value | a word → its letters backward | two premises and a conclusion → yes or no |
# | steps of 8 examples | 25 | 30 | 40 |
#
# AdamW with a learning rate that rises over the first tenth of the steps and then falls to zero, $\alpha = 32$, float32, 500 test
# problems.

# %%
of_types = named.query("group in ['single', 'fixed', 'triple'] and task in ['sums', 'spelling', 'syllogisms']")
assert (of_types["parameters"] / 2.43e6 - 1).abs().max() < 0.02
columns = {"runs": ("loss", "size"), "best_loss": ("loss", "min"), "most_exactly_right": ("exact", "max")}
of_types.groupby("task").agg(**columns).round(3)

# %% [markdown]
# **What we saw.** No run gets more than 7 % of the sums right, or 1 % of the words. On these two tasks the benchmark shows the
# beginning of a training, when a model probably learns what answers look like. On syllogisms half would be right by chance, and
# the best run has 82 %.

# %% [markdown]
# ## 2. First the learning rate
#
# **Question.** How much does the learning rate matter?
#
# **Predict.** You train a placement at its best rate, at half of it and at twice it. Which of the two mistakes costs more? And do
# three seeds agree on the best rate?
#
# **What we do.** We look at four placements on sums, at three rates and with three seeds each.

# %%
FOUR = ["MLP", "PLoP's choice", "attention", "query + value"]
three_rates = of_five.query("task == 'sums' and placement in @FOUR and seed < 3 and lr in [1e-3, 2e-3, 4e-3]")
by_rate = three_rates.pivot(index="placement", columns=["lr", "seed"], values="loss").sort_index(axis=1).loc[FOUR]
by_rate.round(2)

# %% tags=["nbval-ignore-output", "picture-rates"]
title = "SmolLM2-135M on sums: at 1e-3 three seeds agree,\nat 2e-3 attention is worse with two of them"
plots.plot_seeds(by_rate, title=title);

# %%
mean_of_seeds = three_rates.pivot_table(index="placement", columns="lr", values="loss").loc[FOUR]
mean_of_seeds.sub(mean_of_seeds[2e-3], axis=0).round(2)

# %% [markdown]
# **What we saw.** Too high a rate costs more than too low a one: by the means twice 2e-3 costs 0.07 to 0.23, half of it at most
# 0.06. With seed 0 alone you would choose 2e-3 for all four. There the MLP trains well with all three seeds, PLoP's choice with
# two, and attention with one. **So tune with several seeds.**

# %% [markdown]
# ## 3. Five placements on three tasks
#
# **Question.** With each placement at its own learning rate: which is best?
#
# **Intuition.** If we choose the rate that gives the lowest loss and then report this loss, we report good luck as well. The
# choice and the report need different runs and different problems.
#
# **What we do.** The loss of a seed is reported at the rate that the *other* seeds prefer. By hand, for attention on sums:

# %%
of_attention = by_rate.loc["attention"].unstack("seed")
for seed in of_attention:
    preferred = of_attention.drop(columns=seed).mean(axis=1).idxmin()
    print(f"seed {seed}: the others prefer {preferred:g}, where it has {of_attention.loc[preferred, seed]:.2f}")

# %% [markdown]
# `ex.crossfit` does the same, and also splits the test problems: the rate that is chosen on one half is judged on the other half.

# %%
found = tuned.query("task == 'sums' and placement == 'attention'").set_index("seed")
at_1e3 = of_attention.loc[1e-3].mean()
print(f"attention is reported with {found['loss'].mean():.2f}; at 1e-3 throughout it would have {at_1e3:.2f}")
found[["lr", "loss"]].round(3)

# %% [markdown]
# This method has a weakness. To seeds 0 and 1 the rates 1e-3 and 2e-3 are equally good, so seed 2 is reported at 2e-3, where it
# fails. **The reported loss includes the risk of choosing a bad rate from so few seeds.** Attention is reported 0.12 behind the
# MLP; at 1e-3 throughout it would be 0.07 behind.
#
# Then `ex.differences` compares each placement with the MLP. Its intervals (Student's t) are for new seeds and new problems, and
# all twelve hold together with 95 % (Bonferroni). They take luck to be alike for all placements of a task. Section 2 suggests
# that it is not, so an interval that ends near zero decides nothing.

# %%
shown = compared.set_index(["task", "placement"])[["difference", "low", "high", "verdict", "seeds"]]
shown.round(2)

# %% [markdown]
# **What we saw.** On sums and on syllogisms nothing is decided. On spelling the MLP is ahead of PLoP's choice, of attention and
# of query and value, by 0.25 to 0.36 nats per token. Adapters on all maps are undecided everywhere, on spelling only just (0.13
# behind, from -0.01 to 0.27).
#
# How firm is that? Each of the MLP's five losses on spelling lies below every loss of the four others. But PLoP's choice varies
# four times as much from seed to seed as the MLP. With each placement's own spread instead of a common one (Welch's test, seeds
# only) its interval is 0.12 to 0.38 by itself and -0.01 to 0.51 for all twelve, and that of all maps is 0.06 to 0.20 for all
# twelve. So the direction is clear, and how one treats luck decides which of these two intervals leaves out zero. Syllogisms has
# two seeds only, for which `ex.crossfit` is a poor method (section 5): it says nothing either way.
#
# What does the lead on spelling consist of? Here are all runs of PLoP's choice and of the MLP:

# %%
spelled = of_five.query("task == 'spelling' and placement in ['MLP', \"PLoP's choice\"] and lr >= 1e-3")
spelled.pivot(index="seed", columns=["placement", "lr"], values="loss").sort_index(axis=1).round(2)

# %%
at_2e3 = spelled.query("lr == 2e-3").groupby("placement")["loss"].mean()
reported = tuned.query("task == 'spelling'").groupby("placement")["loss"].mean()
pd.DataFrame({"all at 2e-3": at_2e3, "as reported": reported}).dropna().round(2)

# %% [markdown]
# **What we saw.** At 2e-3 the two are only 0.04 apart. The MLP gains 0.17 by the rate 4e-3, which it stands with all five seeds.
# PLoP's choice stands it with three. It loses 0.04 by the choice of the rate (4e-3 for half of the problems of seed 2, a near
# tie). At 8e-3, with one seed, the MLP is level and PLoP's choice fails.
#
# **How many seeds would decide?** Let luck move a run by $\sigma$ (its standard deviation). Then about $2 (1.96 + 0.84)^2
# \sigma^2 / \delta^2$ runs of each of two placements find a difference $\delta$ with a probability of 80 %.

# %%
sigma = tuned.query("task == 'sums'").groupby("placement")["loss"].var().mean() ** 0.5
print(f"luck moves a run on sums by {sigma:.2f} nats per token")
for delta in (0.02, 0.05, 0.1):
    runs_of_each = 2 * (1.96 + 0.84) ** 2 * sigma**2 / delta**2
    print(f"a difference of {delta} takes about {np.ceil(runs_of_each):.0f} runs of each")

# %% [markdown]
# The difference between PLoP's choice and the MLP on sums, 0.02, needs hundreds of runs. So "undecided" does not mean equal. It
# means that we cannot tell.
#
# **Does it last?** Here are trainings on sums with 100 steps instead of 25:

# %%
longer = named.query("task == 'short_sums_long' and placement in @FIVE and lr in [1e-3, 2e-3]")
longer.pivot(index="placement", columns=["lr", "seed"], values="loss").sort_index(axis=1).round(2)

# %% [markdown]
# **What we saw.** Four times the training lowers the loss of the MLP from 1.05 to 0.91 at 2e-3, hardly more than the largest
# difference between places (0.12). The MLP is no longer lowest: by the mean of two seeds all maps are at 1e-3, and query and
# value at 2e-3, where luck is large.

# %% [markdown]
# ## 4. Is one set of three types the best?
#
# **Question.** PLoP takes three of the seven types. There are 35 sets of three. Which is the best?
#
# **Intuition.** A set that is truly better should be better with each seed.
#
# **What we do.** We correlate the losses of the sets with one seed and with another (Spearman's rank correlation). It is 1 where
# both order the sets alike. Where they say nothing of each other, it lies within ±0.34 in 95 % of cases.
#
# **Predict.** How large is it, for two seeds at the same rate?

# %%
KINDS = {"sums, 1e-3": ("short_sums", 1e-3), "sums, 2e-3": ("short_sums", 2e-3), "spelling, 2e-3": ("spelling", 2e-3)}
runs = {kind: ex.runs_of_triples(benchmark, task, lr) for kind, (task, lr) in KINDS.items()}
by_seed = {kind: own.pivot(index="placement", columns="seed", values="loss") for kind, own in runs.items()}
pd.concat({kind: losses.corr("spearman") for kind, losses in by_seed.items()}).round(2)

# %% tags=["nbval-ignore-output", "picture-seeds"]
two_rates = pd.concat([by_seed[kind].reset_index().assign(task=kind) for kind in ["sums, 1e-3", "sums, 2e-3"]])
said = {"sums, 1e-3": "two seeds agree (0.59)", "sums, 2e-3": "they do not (−0.15)"}
note = "SmolLM2-135M, all 35 sets of three types; in brackets: rank correlation"
plots.plot_agreement(two_rates, (0, 1), PLACES, said, note);

# %%
means = pd.DataFrame({kind: losses.mean(axis=1) for kind, losses in by_seed.items()})
means.rank().astype(int).loc[["down+gate+up", "down+up+v"]].rename(PLACES)

# %% [markdown]
# **What we saw.** At 1e-3 the seeds agree to some degree. At 2e-3 two of three pairs do not, so two or three runs of each do not
# tell which set is best. By the means of the seeds the MLP is number 10, 3 and 5 of 35, and PLoP's set is in the middle: number
# 18, 15 and 17.

# %% [markdown]
# ## 5. Is it the place, or the scale?
#
# **Question.** Single sets are hard to judge. Does anything hold for many sets together?
#
# **What we do.** We average the 35 sets by how many of their three types belong to the MLP.

# %%
MLP_TYPES = {"gate", "up", "down"}
in_mlp = pd.Series({name: len(MLP_TYPES & set(name.split("+"))) for name in means.index})
means.groupby(in_mlp.rename("types of the MLP")).mean().round(3).assign(sets=in_mlp.value_counts())

# %% [markdown]
# Sets with types of the MLP have lower losses than sets without.
#
# **Predict.** At equal parameters the large maps of the MLP get a lower rank, and so a larger scale $\alpha / r$. Suppose that we
# repeat this with the same scale for all sets. Will the MLP still lead?
#
# We trained all sets on sums once more with $\alpha / r = 4$, at 1e-3, with seeds 0 and 1. This raises the scale of the MLP 1.6
# times and that of three types of the attention 3.3 to 3.8 times. It does not make the ranks equal, and it acts like a higher
# learning rate.

# %%
SCALED = "sums, 1e-3, equal scale"
runs[SCALED] = ex.runs_of_triples(benchmark, "short_sums", 1e-3, equal_scale=True)
both = pd.DataFrame({"alpha 32": by_seed["sums, 1e-3"][[0, 1]].mean(axis=1)})
both["equal scale"] = runs[SCALED].groupby("placement")["loss"].mean()
both.groupby(in_mlp.rename("types of the MLP")).mean().round(3)

# %% [markdown]
# Now the order is gone. How sure is this? `ex.pooled_losses` takes the loss of a set to be the mean of all sets, plus an *effect*
# of each of its types, plus a remainder of its own, plus luck. It returns 4,000 plausible values of each effect. We take the mean
# effect of the MLP's types minus that of the attention's:


# %%
def exchange(own, seed):
    """What exchanging an attention type for an MLP type does to the loss: 4,000 plausible values."""
    sets = {name: set(name.split("+")) for name in own["placement"].unique()}
    effects = ex.pooled_losses(own, sets, seed=seed).effects
    return effects[["gate", "up", "down"]].mean(axis=1) - effects[["q", "k", "v", "o"]].mean(axis=1)


# %%
draws = pd.DataFrame({kind: exchange(own, seed) for seed, (kind, own) in enumerate(runs.items())})
draws["equal minus usual scale"] = draws[SCALED] - draws["sums, 1e-3"]
leads = draws.quantile([0.025, 0.975]).T.set_axis(["low", "high"], axis=1)
assert (leads["high"].iloc[:3] < 0).all() and leads.loc[SCALED, "low"] < 0 < leads.loc[SCALED, "high"]
leads.assign(mean=draws.mean())[["mean", "low", "high"]].round(3)

# %% [markdown]
# **What we saw.** With $\alpha = 32$, exchanging an attention type for an MLP type lowers the loss by 0.02 to 0.08 nats per
# token, and all three intervals (95 %, each by itself) exclude zero. With the equal scale no lead is seen. The interval of the
# change (0.003 to 0.040; three seeds against two, taken as independent) only just excludes zero: a hint that the scale moves the
# lead.
#
# That was one rate. Four placements were trained with both scales at several rates. Here are the means of two seeds:

# %%
names = ["up", "MLP", "attention", "query + value"]
names = names + [f"{name}, equal scale" for name in names]
tried = named.query("task == 'sums' and placement in @names and seed < 2 and 5e-4 <= lr <= 4e-3")
of_seeds = tried.groupby(["placement", "lr"])["loss"].agg(["mean", "size"]).query("size == 2")
of_seeds["mean"].unstack("lr").round(2)

# %% [markdown]
# The lowest losses are at the *usual* scale: the MLP at 2e-3 and up at 4e-3, both 1.05. With the equal scale up has 1.07 at its
# best rate, attention 1.08, the MLP 1.09, and query and value 1.12. The best losses spread over 0.07 at the usual scale and over
# 0.05 at the equal one, attention is better with it (1.12 before) and the three others are worse. With two seeds none of this is
# decided.
#
# With the equal scale the loss of the MLP is the same at the three rates. It is ahead of attention and of query and value at 5e-4
# and at 2e-3, by 0.05 to 0.19, and 0.02 behind attention at 1e-3. We took means of both seeds, as `ex.crossfit` is misleading
# here. With two seeds and so flat a curve it reports each seed at the rate where the *other* was lucky, with 1.13 instead of
# 1.09:

# %%
flat = tried.query("placement == 'MLP, equal scale' and lr <= 2e-3")
ex.crossfit(flat)[["seed", "lr", "loss"]].round(3)

# %% [markdown]
# So place and scale are not separated. **A learning rate is good only together with the scale that it was tuned for.**

# %% [markdown]
# ## 6. What to choose
#
# | your situation | adapters on | evidence |
# |---|---|---|
# | You want one good default | the MLP, or all maps | MLP: spelling, and the 35 sets with $\alpha = 32$; all maps: not shown to be worse |
# | You train longer | all maps, or the MLP | section 3: 100 steps, one task, two seeds |
# | Your server takes adapters on attention only | query and value, or all four types at a low rate | sections 2 and 3: behind the MLP on spelling |
# | You fear that the model forgets | gate or up alone, or the last third of the layers; the MLP at no rate above the tuned one | [notebook 05b](05b_rules_and_rivals.ipynb), section 4: one task, three seeds; these places were named after looking |
# | It matters, and you have hours | what a race on your own data says | section 7 |
#
# In every row: tune the learning rate with several seeds, anew after every change of place, rank or $\alpha$. Try your present
# rate, half of it and twice it, and go on where an end of the range is best.
#
# *Which scale do you use?* On sums, with each at its own rate, no lead of the MLP is shown at either scale. An equal scale was
# tested at 4 only, and on sums only.
#
# *Others, with larger models,* do not agree: the paper finds its own choice ahead, and two other comparisons favour the MLP
# (notebook 05b).
#
# *Limits.* One model of 135 million parameters, short answers, the beginning of trainings, one budget of parameters, two to five
# seeds (on spelling two of the five were added after a look, which makes its intervals a little too narrow). On a second model,
# Gemma-3-270M, PLoP's choice is ahead of the MLP on sums by 0.04, which is undecided (notebook 05b).

# %% [markdown]
# ## 7. A race on your own data
#
# **Question.** What holds for *your* model and *your* data?
#
# **Intuition.** You need not train every placement at every rate to the end. Start all of them, stop those that are behind, and
# give the time to the rest (*successive halving*). `ex.race` does it within the seconds that you give.
#
# **What we do.** The MLP and PLoP's choice race at equal parameters, with three rates each, in two minutes. All six run half of
# the steps with one seed. By its training loss the best rate of each goes into the *final*: full runs with fresh seeds, judged on
# *validation* examples, which are neither trained on nor part of the test. After section 3 you know what to expect: so short a
# race can find only a very large difference.

# %%
task = ex.load_task(TASK, train=400, validation=64, test=64)
print(repr(task.train[0]["prompt"] + task.train[0]["completion"]))

# %% tags=["nbval-ignore-output"]
racing = {name: placements[name] for name in ("MLP", "PLoP's choice")}  # or more
settings = {"ranks": {name: ranks[name] for name in racing}, "steps": 10, "batch_size": 8}
rates = [1e-3, 2e-3, 4e-3]
race = ex.race(model, task, tokenizer, racing, seconds=SECONDS, rates=rates, progress=False, **settings)
race

# %% [markdown]
# **What we saw.** The first line names the winner, and says whether that is decided. *Undecided* means that this race could not
# tell. Then take the MLP, or the placement that is easiest to serve. *Edge* marks a best rate that is the lowest or the highest
# tried. Where the time did not buy a final, the race says so, and its winner has only the lower training loss with one seed. A
# race over 10 steps finds what is best after 10 steps: section 2 found 4e-3 too high for PLoP's choice after 25.
#
# This trains the winner (`out=` keeps its adapter):

# %% tags=["nbval-ignore-output"]
before = ex.evaluate(model, task, tokenizer, accuracy=False)
run = ex.finetune(model, task, tokenizer, racing[race.winner], **race.settings, accuracy=False)
print(f"{race.winner} at {race.lr:g}: test loss {run['loss']:.2f}, untrained {before['loss']:.2f}")

# %% [markdown]
# To look for smaller differences, give the race the steps of your real training, hours, rates from 2.5e-4 to 8e-3, and a
# `storage=` file, with which the same call goes on after an interrupt. (In replays on our record, `data/results/race.csv`, no
# difference between a race and a grid of the same cost is established.) Notebook 07 has the cell for your own model.

# %% [markdown]
# ## Exercises
#
# The solutions are in the collapsed cell below each check.
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
    off = rank * per_rank.filter(like="o_proj").sum() / BUDGET - 1
    assert abs(off) < 0.01, f"{off:+.0%} off"
    return f"rank {rank}, {off:+.1%} off"


check_rank(rank_of_output)

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution.
check_rank(round(BUDGET / per_rank.filter(like="o_proj").sum()))

# %% [markdown]
# ### 2. The winner's curse (10 minutes)
#
# Take the best of the 35 sets on sums by the loss of seed 1 alone, at 2e-3. Which number in the order of seed 2 does this set
# get? *Hint:* `by_seed["sums, 2e-3"]` has a row for each set and a column for each seed.

# %%
best_by_1 = number_by_2 = None  # your turn: a name, and a number from 1 (lowest loss) to 35


# %%
def check_curse(name, number):
    if name is None:
        return "not yet filled in"
    losses = by_seed["sums, 2e-3"]
    assert name == losses[1].idxmin(), "another set has a lower loss with seed 1"
    assert number == losses[2].rank()[name], "seed 2 puts it elsewhere"
    return f"{name}: first by seed 1, number {number:.0f} by seed 2"


check_curse(best_by_1, number_by_2)

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution. At 1e-3, where luck is smaller, try the same.
winner_by_1 = by_seed["sums, 2e-3"][1].idxmin()
check_curse(winner_by_1, by_seed["sums, 2e-3"][2].rank()[winner_by_1])

# %% [markdown]
# ## Three things to remember
#
# 1. **Tune the learning rate with several seeds before you compare places**, at equal parameters, and say which scale. One run of
#    each proves nothing.
# 2. **The MLP is a good default, not a proven best place.** At a common rate and $\alpha = 32$ its types are ahead of those of
#    the attention. With an equal scale, at one rate, no lead is shown.
# 3. **If it matters, let your own data decide**, and expect "undecided": small differences take tens to hundreds of runs.
#
# **Not established.** Larger models trained to the end; other budgets; all sets with an equal scale at other rates; which layers;
# how accuracy follows the loss.
#
# **Where next.** Notebook 05b: can a rule foresee a good place, and what does the model forget? Notebook 06: reinforcement
# learning. Notebook 07: your own model.
