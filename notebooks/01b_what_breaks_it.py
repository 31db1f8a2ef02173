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
# # What breaks the growth, and what real networks do
#
# **The question.** Notebook 01 showed that training raises the score NFN (Normalized Feature Norm) of a linear network on one
# datapoint. What breaks this growth? And does it happen in a real language model, most of all in the maps with a low score?
#
# **The answer.** The squared displacement (how far features move, squared) grows with the square of the steps if the steps share
# a direction (exactly, or after many steps on average) and keep their length. Steps that get shorter or change direction lower
# the exponent, steps that get longer raise it. In SmolLM2-135M-Instruct, finetuned for 20 steps, NFN rises in 52 to 68 % of the
# maps, and the median change is 1.5 % or less. We find no evidence that types with a low score gain more than others. There are
# two leads: among value maps, layers with a low score tended to gain more; and on texts of a task that was not trained, maps with
# a *high* score tended to. None of this is about the loss.
#
# | | |
# |---|---|
# | **You need** | notebook 01; what a rank correlation is; the words are in the [glossary](GUIDE.md#words) |
# | **It takes** | an hour of reading, and 35 minutes for the exercises; it runs in a minute or two on one CPU core, without a GPU |
# | **It runs** | small networks, live; finetunings of SmolLM2-135M-Instruct are read from a record |
#
# PLoP ([Hayou, Ghosh, Yu](https://arxiv.org/abs/2506.20629)) puts adapters on the types with the lowest NFN, because these are
# supposed to *benefit* most. That their NFN should *rise* most is our reading of this, and it is what we test.

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
WIDTH, SEEDS = 512, 16  # neurons of the small networks, and how many networks
STEPS = 40  # of training
ETA = 0.05  # step size eta

# %% tags=["nbval-ignore-output"]
import math

import numpy as np
import pandas as pd
from scipy import stats

from plop_nb import gain_plots, network_plots
from plop_nb.experiments import growth, mean_interval, power_fit

# %% [markdown]
# The record `growth.csv` holds eight short finetunings of SmolLM2-135M-Instruct. They train all weights (*full*) or adapters on
# all maps (*LoRA*: the product of two small matrices is added to frozen weights), on short sums (*sums*) or on spelling words
# backward (*spelling*), with two seeds each. The model has 210 maps, seven types in each of 30 layers: query, key, value and
# output (q, k, v, o) in the attention, and gate, up and down in the MLP. The *change* of a map, also called its *gain*, is the
# rise of its NFN in percent.

# %%
record = pd.read_csv(plop.data_file("results/growth.csv"), comment="#")
record = record.replace({"lora": "LoRA", "short_sums": "sums"})
record["change"] = 100 * (record["after"] / record["before"] - 1)
record["setting"] = record["method"] + ", " + record["trained"]
record["texts"] = np.where(record["trained"] == record["scored"], "own task", "other task")
print(f"{record.groupby(['setting', 'seed']).ngroups} runs, {record.groupby(['type', 'layer']).ngroups} maps in each")

# %%
where = ["setting", "texts", "scored", "type", "layer"]
maps = record.groupby(where, sort=False, as_index=False)[["before", "change"]].mean()  # over two seeds
own = maps[maps["texts"] == "own task"]
settings = list(own["setting"].unique())

# %% tags=["nbval-ignore-output", "picture"]
title = "SmolLM2-135M-Instruct, 20 steps: no evidence that types with a low score gain more\n(dots: layers 0 to 29; cross: mean, 95 % t interval over them; triangles: beyond 15 %)"
gain_plots.plot_gains(own, settings, column="setting", limit=15, title=title);

# %% [markdown]
# The types stand in the order of their score. Every dot is a mean over two seeds, on held-out texts of the trained task. If low
# scores gained more, the crosses would fall from left to right. They do not fall clearly.
#
# | part | question | in the paper | minutes |
# |---|---|---|---|
# | 1 | Which assumptions can be dropped? | assumptions of Theorem 1 | 15 |
# | 2 | When does growth end? | the residual in Theorem 1 | 5 |
# | 3 | Must labels mean something? | alignment with the task | 10 |
# | 4 | And in networks that are not linear? | open question | 10 |
# | 5 | And in a real model? | the rule of PLoP | 20 |
#
# **Words and symbols**, as in notebook 01:
#
# | symbol | what it is |
# |---|---|
# | $W_t$, $z$, $W_t z$ | a linear map after $t$ steps, its input, its output (the *feature*) |
# | $v$, $f = v^\top W z$ | the readout, with random entries of size about $1 / n$; the output of the network |
# | $y$, $f - y$ | the target; the *residual*: how far the output is from the target, with its sign |
# | $n$, $\eta$, $t$ | width (neurons), step size, number of steps |
# | $c$ | the mean absolute value of an input's entries, about $\sqrt{2 / \pi} = 0.80$ |
# | squared displacement | $\frac1n \lVert W_t z_t - W_0 z_0 \rVert^2$: how far the feature has moved, squared, per neuron |
# | NFN | the length of $W z$, divided by the length that $W$ gives to random inputs as long as $z$: $\lVert W z \rVert \sqrt n / (\lVert W \rVert_F \lVert z \rVert)$ |
#
# Under the assumptions of **Theorem 1** the input is fixed, and the derivation in notebook 01 gives the squared displacement
# $(\eta c t)^2$. The *exponent* of this growth, the power of $t$, is 2. **NFN is not displacement**: it also divides by the size
# of the weights and of the input. With a fixed input, a wide network, and steps unrelated to the first feature it is $\sqrt{1 +
# (\eta c t)^2}$, since the weights hardly grow. Where inputs move, NFN and displacement disagree.

# %% [markdown]
# ## 1. Which assumptions can be dropped?
#
# **Question.** Theorem 1 assumes a linear network, one trained map, one datapoint, a residual that keeps its sign, and SignSGD
# with the step $\eta / n$: SGD that uses only the sign of each entry of the gradient. What happens without each of these?
#
# **Intuition.** Walk straight ahead at a constant speed: after $t$ steps you are $t$ times as far away, and the square of the
# distance grows with $t^2$. So an assumption matters if without it the direction or the speed changes.
#
# **Predict.** Which of these keep the exponent 2: 16 datapoints instead of one; minibatches of 4 out of 64; all layers trained;
# Adam; plain SGD; a step that does not fall with the width; a target that is reached; labels that are noise?
#
# **What we do.** We train networks of 512 neurons, each time with one change. The function `growth(...)` trains some networks
# (`seeds`) and returns one row for each network and step, with `moved` (the root of the squared displacement), `nfn` and `loss`.
# The data are toys:
#
# | what | how it is made |
# |---|---|
# | input | 8 random numbers, which a random first layer turns into $z$ |
# | label | $+2$ or $-2$, or another `target`; the sign follows from the input by a rule: the side of a random plane |
# | noise labels | random signs, drawn anew in every step (`"fresh"`) |
# | constant step | the step does not shrink with the width; it is set for 64 neurons (`"standard"`) |

# %%
knobs = {
    "Theorem 1": {},
    "16 datapoints": {"samples": 16},
    "minibatches": {"samples": 64, "batch": 4},
    "all layers": {"train": "all"},
    "Adam": {"optimizer": "adam"},
    "SGD": {"optimizer": "sgd"},
    "constant step": {"rule": "standard"},
    "near target": {"target": 0.5},
    "noise labels": {"labels": "fresh", "seeds": 256},  # random walks vary much
}

# %% tags=["nbval-ignore-output"]
runs = {}
for name, knob in knobs.items():
    runs[name] = growth(WIDTH, STEPS, eta=ETA, **({"seeds": SEEDS} | knob))

# %%
runs["Theorem 1"][["seed", "step", "moved", "nfn", "loss"]].head(3).round(3)

# %% [markdown]
# We fit the exponent only while there is something left to learn. We call a target *met* when the mean loss has fallen below 2 %
# of its start. After that step an exponent would mix growth with standstill. Besides, we look at the squared displacement of the
# first step, as a multiple of Theorem 1's, and at NFN in the end.


# %%
def target_met(run):
    """The first step whose mean loss is below 2 % of its start, else the last step."""
    loss = run.groupby("step")["loss"].mean()
    small = loss[loss < 0.02 * loss[0]]
    return small.index[0] if len(small) else loss.index[-1]


# %%
def exponent(run, first=1, last=STEPS):
    """The exponent of the squared displacement with its interval: networks are resampled."""
    run = run[run["step"].between(first, last)]
    return power_fit(run.assign(square=run["moved"] ** 2), "step", "square")


# %%
def squares(run):
    """The squared displacement by step, the mean over networks."""
    return (run["moved"] ** 2).groupby(run["step"]).mean()


# %%
def summary(run):
    """The exponent until the target is met, the first step, and NFN in the end."""
    met, first = target_met(run), squares(run)[1] / squares(runs["Theorem 1"])[1]
    found = exponent(run, last=met)._asdict() | {"fitted up to step": met, "multiple, step 1": first}
    return found | {f"NFN, step {STEPS}": run.loc[run["step"] == STEPS, "nfn"].mean()}


# %%
table = pd.DataFrame({name: summary(run) for name, run in runs.items()}).T
table.round(2)

# %% tags=["nbval-ignore-output"]
panels = {f"{name}: exponent {table.loc[name, 'exponent']:.2f}": runs[name] for name in list(knobs)[1:]}
met = {panel: target_met(run) for panel, run in panels.items() if target_met(run) < STEPS}
walk = {panel: 1 for panel in panels if panel.startswith("noise")}
title = f"Features move quadratically where steps share a direction and keep their length\n(linear networks, {WIDTH} neurons; means over networks, 95 % t intervals; exponents fitted up to the dotted line)"
network_plots.plot_knobs(panels, runs["Theorem 1"], met=met, met_name="loss below 2 %", guides=walk, title=title);

# %% [markdown]
# **What we saw.** The exponent stays near 2 with *16 datapoints*, and with *all layers*, a *constant step* and a *near target*
# until the target is met. *Adam* comes close. *SGD*, *minibatches* and *noise labels* fall short.
#
# * *16 datapoints*: the squared displacement is a fifth of the theorem's (features move less than half as far), since a step
#   follows what the datapoints have in common, and each of them has only a part of it.
# * *Minibatches*: the direction varies from step to step. The exponent 1.8 is a mean over 40 steps: it rises (part 3).
# * *All layers*: the first layer moves the feature as well, so the squared displacement is four times the theorem's. Steps get a
#   little longer (2.05). Growth ends at step 14, so NFN (1.42) stays below the theorem's 1.85. With a fixed input, the
#   displacement in the picture (about 1.7) would give 1.6; presumably NFN is lower since it divides by an input that has grown.
# * *Constant step*: each step is eight times as long, its square 64 times as large. The exponent stays; the target is only met
#   sooner, at step 7.
# * *Adam*, *SGD*: the steps get shorter (part 2). The first step of SGD is 2.5 times the theorem's ($\sqrt{6.4}$). That is a
#   matter of the rate, and so is its high NFN.
# * *Noise labels*: a step goes forward or backward at random. After $t$ such steps one is about $\sqrt t$ steps away: a *random
#   walk*. The squared displacement grows with $t$.
#
# **Recap.** The number of datapoints, how the step depends on the width, and the number of trained maps set how fast features
# move, but hardly change the exponent. The exponent 2 needs steps that share a direction and keep their length.
#
# ## 2. Growth ends with the residual
#
# **Question.** When does growth stop, and why do the steps of Adam and SGD get shorter?
#
# **Intuition.** In each step the output $f$ moves by $\eta c \|v\|_1 \approx \frac{2}{\pi} \eta$ towards $y$, since both $c$ and
# $\|v\|_1$ are about $\sqrt{2 / \pi}$. The output starts near 0, so it reaches $y$ after about $|y| \pi / (2 \eta)$ steps. From
# then on the residual changes its sign from step to step.
#
# **Predict.** The network *near target* of part 1 has $|y| = 0.5$ and $\eta = 0.05$. At which step is it nearest to its target?

# %%
def turning(run):
    """For each network, the step after which its loss rises for the first time."""
    loss = run.pivot(index="step", columns="seed", values="loss")
    return (loss.shift(-1) > loss).idxmax()


# %%
run = runs["near target"]
speed = ETA * 2 / math.pi  # of the output, in one step
start = (2 * run.loc[run["step"] == 0, "loss"]).pow(0.5).mean()  # |f - y| before training
turned = mean_interval(turning(run).to_numpy())
print(f"expected at step {0.5 / speed:.1f} from an output of 0, at step {start / speed:.1f} from where the outputs really start")
print(f"measured at step {turned.mean:.1f}, 95 % interval over networks {turned.low:.1f} to {turned.high:.1f}")

# %% [markdown]
# A step of *SGD* is proportional to the residual, so it shrinks with it. *Adam* divides a running mean of the gradients by their
# running root mean square. While gradients keep their size that is SignSGD, but when they shrink, the steps shrink as well.
#
# If this is the reason, both should have the exponent 2 again where the residual hardly changes. So we put the target out of
# Adam's reach ($|y| = 50$), and we make the steps of SGD fifty times smaller.

# %%
far = growth(WIDTH, STEPS, eta=ETA, optimizer="adam", target=50, seeds=SEEDS)
slow = growth(WIDTH, STEPS, eta=ETA / 50, optimizer="sgd", seeds=SEEDS)
for name, run in {"Adam": far, "SGD": slow}.items():
    print(f"{name}: {table.loc[name, 'exponent']:.2f}, with a residual that hardly changes {exponent(run).exponent:.2f}")

# %% [markdown]
# **What we saw.** Growth ends about one step after the computed one, and the interval excludes 15.7. Most of the difference is
# the start: these 16 outputs happen to begin a little on the wrong side of 0. From there, step 16.4 is expected, which the
# interval contains. With a residual that hardly changes, Adam and SGD have the exponent 2 again.
#
# **Recap.** The sign of the residual ends the growth. Before that, its size sets the steps of Adam and SGD.
#
# ## 3. Must labels mean something?
#
# **Question.** Noise labels, drawn anew in every step, lead to a random walk. Is it because they *mean* nothing, or because they
# *change*?
#
# **Intuition.** Take the labels of a rule and deal them out at random, once. These *shuffled* labels mean nothing, but each
# datapoint keeps its own. If all datapoints are in every step, the same direction is asked for again and again. In a minibatch,
# the next datapoints ask for something else.
#
# **Predict.** Of *rule*, *shuffled* and *noise*: which have an exponent near 2 with all 64 datapoints in each step, and which
# with minibatches of 4?

# %% tags=["nbval-ignore-output"]
labels = {"rule": "teacher", "shuffled": "shuffled", "noise": "fresh"}
batches = {"minibatches of 4": 4, "all 64 in each step": 64}
by_labels = {panel: {} for panel in batches}
for panel, batch in batches.items():
    for name, kind in labels.items():
        data = {"samples": 64, "batch": batch, "labels": kind}
        by_labels[panel][name] = growth(WIDTH, STEPS, eta=ETA, seeds=64, **data)

# %%
rows = {}
for panel, of_panel in by_labels.items():
    for name, run in of_panel.items():
        rows[panel, name] = exponent(run)._asdict()
pd.DataFrame(rows).T.round(2)

# %% tags=["nbval-ignore-output"]
title = f"With all data in each step, shuffled labels move features almost as far as a rule's\n(linear networks, {WIDTH} neurons, 64 datapoints; means over 64 networks, 95 % t intervals)"
network_plots.plot_displacements(by_labels, title=title);

# %% [markdown]
# **What we saw.** With all datapoints in each step, shuffled labels have nearly the exponent of the rule: 1.96 against 1.99. With
# minibatches it is 1.8 for the rule, 1.3 for shuffled labels, and 1.0 for noise, a random walk. With all data, noise stays even
# below a random walk (0.80). No target is ever met here: a linear network of 8 inputs cannot give 64 datapoints exactly the
# labels $+2$ and $-2$. So all 40 steps count.
#
# **One number: how much do steps agree?** Let $x$ be the mean cosine of the displacements of two steps, and let all steps be
# equally long. The square of a sum has $t$ squares and $t (t - 1)$ products, so after $t$ steps the squared displacement is $t +
# t (t - 1)\, x$ times that of the first step. It is $t^2$ if all steps agree ($x = 1$), and $t$ if none do ($x = 0$). In between
# it begins more like $t$ and ends more like $t^2$.
#
# We compute $x$ from the last step alone, and then what the exponents should be in steps 1 to 10 and in steps 10 to 40.


# %%
def agreement(run):
    """x, from the squared displacement after all steps and after one."""
    multiple = squares(run)[STEPS] / squares(run)[1]
    return (multiple - STEPS) / (STEPS * (STEPS - 1))


# %%
def expected(x):
    """A run that follows the formula exactly."""
    t = np.arange(1, STEPS + 1)
    return pd.DataFrame({"seed": 0, "step": t, "moved": np.sqrt(t + t * (t - 1) * x)})


# %%
def early_late(run, what):
    early, late = exponent(run, last=10), exponent(run, first=10)
    return {f"1 to 10, {what}": early.exponent, f"10 to {STEPS}, {what}": late.exponent}


# %%
rows = {}
for panel, of_panel in by_labels.items():
    for name, run in of_panel.items():
        x = agreement(run)
        rows[panel, name] = {"x": x} | early_late(run, "measured") | early_late(expected(x), "computed")
pd.DataFrame(rows).T.round(2)

# %% [markdown]
# **What we saw.** One number says how the curves of minibatches bend. The rule's $x$ is 0.33, and its exponent rises from 1.6 to
# 1.9. That of shuffled labels is 0.05, and theirs rises from 1.2 to 1.5. The computed exponents differ by 0.07 at most. So an
# exponent between 1 and 2 is only a passage. With all data, the formula misses the bend of shuffled labels; we did not test why.
# For noise $x$ is below 0 there: a step undoes a part of earlier ones, perhaps because the best answer to noise is an output of
# 0.
#
# **Recap.** Features grow with the square of the steps when the gradient keeps asking for the same thing. With all data in each
# step, labels need not mean anything over 40 steps, but they must not change: labels drawn anew give a random walk at most
# (exponents 1.0 and 0.8). With minibatches a rule helps, because other datapoints then ask for the same.
#
# ## 4. Networks that are not linear
#
# **Question.** The paper leaves open what happens in networks that are not linear. Do their features grow quadratically, too?
#
# **Intuition.** At first, yes: over a short way a smooth network is nearly linear, and a ReLU is linear until a neuron switches.
# Later some neurons come to rest. In a deeper network the inputs of a map grow as well.
#
# **Predict.** A ReLU sets negative values to 0. Half of its neurons are off at the start and get no gradient. Compared with the
# linear network, where does its squared displacement start, and where does it end?
#
# **What we do.** We use one datapoint, SignSGD, and three more networks of 256 neurons. The attention has one head and four input
# tokens, and we watch its four maps: query, key, value and output. The target is 6, so far away that all 40 steps count.
#
# <details><summary>The answer for ReLU, derived</summary>
#
# Let $h$ be the absolute value of a neuron's input to the ReLU at the start, a half-normal number. (Our feature $W z$ is taken
# before the ReLU.) Let $a = \eta c t$ be how far a neuron is pushed in $t$ steps. There are three groups of neurons:
#
# | share | what happens | displacement |
# |---|---|---|
# | a half | off at the start, no gradient | 0 |
# | a quarter | pushed up, without end | $a$ |
# | a quarter | pushed down, until it switches off at 0 | the smaller of $a$ and $h$ |
#
# So the squared displacement is $\frac14 a^2 + \frac14\, E \min(a, h)^2$. As a multiple of $a^2$ it starts at $\frac12$ and falls
# towards $\frac14$: the bend is a passage between two quadratic laws.
# </details>

# %% tags=["nbval-ignore-output"]
panels = {"neurons": {}, "attention": {}}
for name, kind in {"linear": "linear", "ReLU": "relu", "GeLU": "gelu"}.items():
    panels["neurons"][name] = growth(WIDTH // 2, STEPS, eta=ETA, network=kind, seeds=SEEDS, target=6)
attention = growth(WIDTH // 2, STEPS, eta=ETA, network="attention", seeds=SEEDS, target=6)
panels["attention"] = dict(list(attention.groupby("module", sort=False)))

# %% [markdown]
# We divide each squared displacement by that of Theorem 1 in an infinitely wide network, $\frac{2}{\pi} (\eta t)^2$. In the
# picture a flat line is quadratic growth of the displacement, not of NFN. The formula for ReLU:

# %%
unit = ETA * math.sqrt(2 / math.pi)  # the theorem's displacement in one step
h = stats.halfnorm.ppf((np.arange(2000) + 0.5) / 2000)  # 2000 quantiles stand for all neurons
pushed = {step: unit * step for step in range(1, STEPS + 1)}
formula = pd.Series({step: (1 + (np.minimum(1, h / a) ** 2).mean()) / 4 for step, a in pushed.items()})
formula[[1, 10, 20, STEPS]].round(2)

# %% tags=["nbval-ignore-output"]
title = "ReLU and GeLU fall behind the theorem, the attention's output map runs ahead\n(256 neurons, one datapoint, SignSGD; means over 16 networks, 95 % t intervals)"
network_plots.plot_multiples(panels, unit, formulas={"ReLU": formula}, title=title);


# %%
def nfn_and_loss(run):
    """NFN at the end, what displacement suggests, and the share of the loss that is left."""
    means = run.groupby("step")[["nfn", "loss"]].mean()
    found = {"NFN": means["nfn"][STEPS], "sqrt(1 + D)": math.sqrt(1 + squares(run)[STEPS])}
    return found | {"loss left": means["loss"][STEPS] / means["loss"][0]}


# %%
rows = {}
for name, run in (panels["neurons"] | panels["attention"]).items():
    early, late = exponent(run, last=5), exponent(run, first=20)
    rows[name] = {"exponent, 1 to 5": early.exponent, f"20 to {STEPS}": late.exponent, "low": late.low, "high": late.high}
    rows[name] |= nfn_and_loss(run)
pd.DataFrame(rows).T.round(2)

# %% [markdown]
# **What we saw.** In the first five steps the exponents lie between 1.85 and 2.0, in steps 20 to 40 they are 1.7 and 1.8 for ReLU
# and GeLU, and 3.3 for the attention's output map. (`low` and `high`: 95 %, networks are resampled.) Value is near 2 all the
# time. Query and key do not follow the intuition: they bend already in the first steps (1.86 and 1.85, without intervals), and
# only key is near 2 later. We did not test why. No network has met its target (last column). ReLU follows its formula.
#
# *NFN.* Let $D$ be the squared displacement after 40 steps. With a fixed input and steps unrelated to the first feature, NFN
# would be $\sqrt{1 + D}$. The output map's input grows, so it has 2.32 instead of 3.56. In ReLU, GeLU, query, key and value NFN
# is a little higher than that: their inputs are fixed, so their steps must be related to the feature that was there.
#
# *Where the lines start.* A step of SignSGD has its full length however small a gradient is, so GeLU starts at 1. Half of the
# ReLU neurons have no gradient at all, so it starts at 1/2. Query, key and value start near 1/3, since each of the four tokens
# has only a part of the common direction, as with 16 datapoints. The output map starts above 1, since its input moves as well.
#
# **Recap.** The exponents start near 2 (1.9 for query and key). ReLU neurons that switch off bend growth down for a while.
# Growing inputs bend displacement up. We did not test why GeLU bends.

# %% [markdown]
# ## 5. A real model: do low scores gain most?
#
# **Question.** Does the score *before* training tell which maps *gain* score in finetuning?
#
# **Intuition.** PLoP reads a low score as a large gap to close. If so, low scores go with large changes. (A low score could also
# mean that a map resists. Then it would gain least.) We measure it by a *rank correlation*, Spearman's: -1 if the lowest score
# gains most and so on, 1 for the opposite, about 0 if the two orders are unrelated.
#
# **What we do.** The record has SmolLM2-135M-Instruct after 20 steps of Adam with batches of 4, with rate 5e-5 for all weights
# and 1e-3 for adapters of rank 16 (alpha 32). A sum is "98 + 93 = 191", a spelling "thong backward: gnoht". Seeds differ in the
# training examples and in the start of the adapters; the 32 held-out texts of a task are the same for both. (With seed 1, five of
# the 32 sums were among the training examples, too.) NFN is the mean over these texts, with their answers; adapters are added to
# the weights first. Every trained model was scored on texts of its *own task* and, as a control, of the *other task*.
#
# **Has it learned anything?** The mean loss over two seeds, per token of the answer, on held-out texts (in *nats*: natural
# logarithms):

# %%
record.groupby(["setting", "texts"], sort=False)[["loss_before", "loss_after"]].mean().round(1)

# %% [markdown]
# The loss falls, but we recorded no accuracy, so we cannot tell the form of an answer from its content. It falls on the other
# task as well, perhaps because both tasks want a short answer and then the end, so training did not leave the control alone.
# Before training, the loss on spelling (11.8) is above that of a uniform guess among the 49,152 tokens (10.8), and training on
# sums leaves it near there.
#
# **Does NFN rise?** In part 1 it rose by 85 % in 40 steps. Here there are half as many steps, each shorter: for full finetuning
# of a map with 576 inputs, the theorem's formula gives the following rise (if weights and inputs are scaled as in the theorem).

# %%
eta = 5e-5 * 576  # a step of Adam changes a weight by about 5e-5; the theorem's step is eta / n
print(f"expected rise: {math.sqrt(1 + (eta * math.sqrt(2 / math.pi) * 20) ** 2) - 1:.0%}")

# %% [markdown]
# Guess first: in how many of the 210 maps does it rise here, and by how much?

# %%
runs_own = record[record["texts"] == "own task"].groupby(["setting", "seed"], sort=False)["change"]
rises = runs_own.agg(lambda change: 100 * (change > 0).mean()).round(0).astype(int)
pd.DataFrame({"NFN rises, % of maps": rises, "median change, %": runs_own.median().round(1)})

# %% [markdown]
# NFN rises in 52 to 68 % of the maps. The lowest share cannot be told from half; for the others we give no test, since maps of
# one network are not independent. The median change is 1.5 % or less. By the formula, 20 steps of part 1 give a rise of 28 %, and
# these shorter steps 10 % (for LoRA we have no such yardstick). For the rest of the difference there may be other reasons: all
# maps are trained at once here, their inputs change, the minibatches vary, and nothing says that the residual keeps its sign.
#
# **Do the changes repeat?** If they were chance, no score could predict them. We correlate the ranks of the 210 changes of both
# seeds:

# %%
by_seed = record[record["texts"] == "own task"].pivot(index=["setting", "type", "layer"], columns="seed", values="change")
agree = {setting: stats.spearmanr(by_seed.loc[setting]).statistic for setting in settings}
pd.Series(agree).round(2).to_frame("rank correlation of two seeds")

# %% [markdown]
# They repeat, in three of four settings closely (on the same held-out texts). After full finetuning on sums much is left to
# chance (0.4). Chance pulls correlations with the score towards 0, so a real one would look weaker here.
#
# **Predict.** Look at the first picture again. What are the rank correlations of score and change over the seven types?
#
# **Two answers.** Over *types* we average the layers first and correlate seven numbers. There are 5,040 orders of seven types, so
# the p-value can be exact: the share of orders that correlate at least as strongly. Over *layers* we correlate the seven maps of
# each layer, and take the mean of these 30 correlations with its interval (95 %, Student's t). In a layer, q, k and v read one
# input and gate and up another, so a layer is our unit, not a map. Neighbouring layers are alike, so the true interval is
# somewhat wider. It covers layers, not seeds or texts.


# %%
def rank_correlation(rows):
    return stats.spearmanr(rows["before"], rows["change"]).statistic


# %%
def over_types(run):
    """Rank correlation of score and change over types, and its exact p-value."""
    ranks = run.groupby("type")[["before", "change"]].mean().rank()
    test = stats.pearsonr(ranks["before"], ranks["change"], method=stats.PermutationMethod())
    return {"over types": test.statistic, "p": test.pvalue}


# %%
found = {}
for (texts, setting, scored), run in maps.groupby(["texts", "setting", "scored"], sort=False):
    by_layer = run.groupby("layer")[["before", "change"]].apply(rank_correlation)
    found[texts, f"{setting}, scored on {scored}"] = over_types(run) | mean_interval(by_layer.to_numpy())._asdict()

# %%
found = pd.DataFrame(found).T.loc[["own task", "other task"]]
found.rename(columns={"mean": "within layers"}).round(2)

# %% tags=["nbval-ignore-output"]
rows = found.droplevel(0).assign(color=[gain_plots.MEASURED] * 4 + ["0.55"] * 4)
title = "Score and gain of NFN: no clear correlation on the trained task\n(SmolLM2-135M-Instruct; 95 % t intervals over 30 layers; grey: on the other task)"
sides = ["low scores gain more", "high scores gain more"]
what = "rank correlation of score and change within a layer"
gain_plots.plot_intervals(rows, what=what, sides=sides, title=title);

# %% [markdown]
# **What we saw.** On the own task the correlations over types are -0.5 to -0.2. Our reading of PLoP supposes this sign, but it
# cannot be told from chance (p is 0.3 and more). Seven types show little: even 0.75 has a p of 0.07 (last row). Within layers the
# correlations are 0.03 to 0.07. Every interval contains zero; none reaches below -0.17, though the true ones are wider. The two
# answers differ in sign, but neither can be told from zero. Perhaps a few layers with large changes (v on spelling, first
# picture) weigh much in a mean over layers, while among ranks each layer counts alike.
#
# On the *other* task all four correlations within layers are positive (0.22 to 0.41): there, maps with a *high* score rose more
# (see exercise 3). The intervals exclude zero, one of them barely (0.03), but they are too narrow and not corrected for eight
# looks, so this is a lead.
#
# **Layers of a type.** Does the score tell which *layers* of one type gain? We correlate score and change over the 30 layers of
# each type, on the own task. For these 28 tests *Bonferroni*'s correction asks for p below 0.05 / 28, as if layers were
# independent.

# %%
tests = {}
for (setting, name), run in own.groupby(["setting", "type"], sort=False):
    tests[name, setting] = stats.spearmanr(run["before"], run["change"])

# %%
pd.Series({key: test.statistic for key, test in tests.items()}).unstack()[settings].round(2)

# %%
for (name, setting), test in tests.items():
    if test.pvalue < 0.05 / len(tests):
        print(f"below zero: {name}, {setting} ({test.statistic:.2f})")

# %% tags=["nbval-ignore-output"]
values = own[own["type"] == "v_proj"]
title = "Value maps: low-scoring layers tended to gain more, but the lowest did not gain most\n(SmolLM2-135M-Instruct, 20 steps; one dot a layer, the largest change is named)"
gain_plots.plot_layer_gains(values, settings, column="setting", named=1, limit=0.9, title=title);

# %% [markdown]
# **What we saw.** Among value maps, layers with a low score tended to gain more, in three of four settings clearly enough for 28
# tests. They did not gain *most*: in every panel the largest change belongs to a layer near 0.5. After full finetuning on
# spelling, output and up maps show such a correlation as well.
#
# Two things could make such a correlation. *The measure*: the score before training is a part of the change in percent, so if it
# is low by chance, the change looks large. *Neighbours*: layers beside each other have like scores and like changes, so they are
# not 30 independent observations. So we correlate the *amount* of change with the score on the *other texts*, and the
# *differences* between neighbours: does the change rise where the score falls?


# %%
def checks_of(run, other):
    """The correlation over layers in three ways; `other` is the same maps on the other texts."""
    amount = run["before"] * run["change"]
    differences = run[["before", "change"]].diff().dropna()
    found = {"as above": rank_correlation(run), "neighbours": rank_correlation(differences)}
    return found | {"amount, other texts": stats.spearmanr(other["before"], amount).statistic}


# %%
checks, by_layer = {}, maps[maps["type"] == "v_proj"].set_index("layer").sort_index()
for setting, run in by_layer.groupby("setting"):
    parts = dict(list(run.groupby("texts")))
    checks[setting] = checks_of(parts["own task"], parts["other task"])
pd.DataFrame(checks).T.loc[settings].round(2)

# %% [markdown]
# The measure is not the whole reason: correlations of -0.6 to -0.5 remain, though on spelling they shrink from -0.7, and only
# that of full, sums would still pass the limit for 28 tests (about 0.55). From neighbour to neighbour, the correlation holds on
# spelling (-0.7, -0.6); on sums (-0.3, -0.2) it is not clear. (No p-value: two such differences share a layer.) It is a lead.
#
# **Recap.** The score does not tell which types gain NFN, as far as seven types can show. Among value maps it may tell which
# layers gain.

# %% [markdown]
# ## Exercises
#
# ### 1. When does it stop? (5 minutes)
#
# For $|y| = 1$, $\eta = 0.04$: after how many steps does growth end? *Hint:* part 2.

# %%
last_step = None  # your turn: a number of steps


# %%
def check_last_step(number):
    if number is None:
        return "not yet filled in"
    reached = turning(growth(512, 60, eta=0.04, target=1.0, seeds=16)).mean()
    assert abs(number - reached) < 2.5, f"growth ends at step {reached:.0f}"
    return f"you say {number:.1f}, growth ends at step {reached:.0f}"


check_last_step(last_step)

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution. The outputs do not start at exactly 0 (part 2), so the measured step is a little later.
check_last_step(1 * math.pi / (2 * 0.04))

# %% [markdown]
# ### 2. Steps that sometimes go back (15 minutes)
#
# Each step goes the wrong way with probability $p$, independently of the others, and else the right way. How large is the
# expected squared displacement after $t$ steps, as a multiple of that of one step? Write a function of $p$ and $t$. *Hint:* write
# the displacement as a sum of independent signs, each with the mean $1 - 2p$.

# %%
squared_displacement = None  # your turn: a function of (p, t)


# %%
def check_displacement(function):
    if function is None:
        return "not yet filled in"
    random = np.random.default_rng(0)
    for p, t in [(0.0, 40), (0.5, 40), (0.25, 40), (0.1, 10)]:
        signs = np.where(random.random((20000, t)) < p, -1, 1)
        walked = np.square(signs.sum(axis=1)).mean()
        assert abs(function(p, t) / walked - 1) < 0.05, f"p = {p}, t = {t}: expected about {walked:.0f}"
    return "right for four cases, from a straight line to a random walk"


check_displacement(squared_displacement)


# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution: variance plus squared mean. It is the formula of part 3, with x = (1 - 2p)^2.
def displacement_of_signs(p, t):
    return t * (1 - (1 - 2 * p) ** 2) + (t * (1 - 2 * p)) ** 2


check_displacement(displacement_of_signs)

# %% [markdown]
# ### 3. Own task against other task (15 minutes)
#
# Look at what the own task adds: for each map, its change on texts of the own task *minus* its change on texts of the other.
# Write a function of a setting, such as `"LoRA, sums"`, that correlates this difference with the score before training (on the
# own task) within each layer, and returns the 30 correlations. *Hint:* `maps.pivot(...)` puts the two changes side by side, and
# `rank_correlation` wants columns `before` and `change`.

# %%
own_minus_other = None  # your turn: a function of a setting that returns 30 numbers


# %%
def check_difference(function):
    if function is None:
        return "not yet filled in"
    expected = {"full, sums": -0.01, "LoRA, sums": -0.24, "full, spelling": -0.08, "LoRA, spelling": -0.20}
    for setting, mean in expected.items():
        yours = np.asarray(function(setting))
        assert yours.shape == (30,), "one correlation for each layer"
        assert abs(yours.mean() - mean) < 0.006, f"{setting}: {yours.mean():.2f}, expected {mean}"
    return "right for four settings"


check_difference(own_minus_other)


# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution.
def differences(setting):
    rows = maps[maps["setting"] == setting].pivot(index=["layer", "type"], columns="texts", values=["before", "change"])
    change = rows["change", "own task"] - rows["change", "other task"]
    rows = pd.DataFrame({"before": rows["before", "own task"], "change": change})
    return rows.groupby("layer").apply(rank_correlation)


check_difference(differences)

# %% tags=["solution"] jupyter={"source_hidden": true}
# What it shows. Four intervals of 98.75 % hold together with 95 % (Bonferroni).
four = {setting: mean_interval(differences(setting).to_numpy(), level=0.9875)._asdict() for setting in settings}
pd.DataFrame(four).T.round(2)

# %% [markdown]
# <details><summary>What to make of it</summary>
#
# After LoRA both intervals lie below zero, on spelling barely (-0.01), and the true ones are wider: the difference of the two
# changes falls with the score. The change on the own task alone does not (part 5): the difference falls mostly because maps with
# a high score gained on the other task. After full finetuning both intervals contain zero. We chose this comparison after we had
# seen the table, so it is a hypothesis for another model, not a finding.
# </details>

# %% [markdown]
# ## Questions for discussion
#
# 1. The paper assumes that growth carries over from linear networks to transformers. Which of the parts above would you show to
#    someone who doubts it, and which to someone who takes it for granted?
# 2. PLoP averages scores over layers, and the authors had inconsistent results when they placed adapters on single layers. What
#    do the correlations within a type say about that?
# 3. A gain in NFN is not a gain in loss. How would you test whether maps whose NFN rises are the maps that lower the loss?
#
# ## Three things to remember
#
# 1. **Quadratic growth needs steps that share a direction and keep their length.** It ends with the residual. With all data in
#    each step, labels need not mean anything over 40 steps, but they must not change.
# 2. **Networks that are not linear start with an exponent near 2** (1.9 for query and key). ReLU neurons that switch off bend
#    growth down for a while, growing inputs bend displacement up. NFN divides by the size of the input as well: where that grows,
#    NFN rises less than displacement suggests.
# 3. **In SmolLM2-135M-Instruct, NFN rose in 52 to 68 % of the maps in 20 steps, and we found no evidence that types with a low
#    score gained more.** Among value maps, layers with a low score tended to; in which task more clearly depends on the check.
#
# **Not established.** One small model, two toy tasks, 20 steps, one rate for each method, two seeds, and no accuracy was
# recorded; on spelling the loss stayed above 4 nats a token. NFN, and with it the order of types, changes when the scale factors
# of the norms are folded into the maps (notebook 04). Only scores before and after were recorded, so we do not know the exponent
# in the real model. Whether a rise of NFN is good for anything was not asked; notebook 05 measures the loss.
#
# **Where next.** Notebook 02 asks how many texts a score needs, notebook 04 what the score measures.
