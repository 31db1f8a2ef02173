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
# **The answer.** The squared displacement (how far features move, squared) grows with the square of the number of steps if all
# steps are equally long and point the same way, or at least agree on average (then only after many steps). In
# SmolLM2-135M-Instruct, finetuned for 20 steps, NFN rises in 52 to 68 % of the maps. Low scores did not gain more, although
# geometry alone would favour them:
#
# * In percent, score and gain are not clearly correlated within a layer (0.03 to 0.07). If all features moved equally far, the
#   correlation would be near -1. Value, the lowest type, gains most in three of four settings, but down, third lowest, does not
#   follow.
# * The square of NFN, which such a geometry raises equally, rose more where the score was *high* (correlations of 0.15 to 0.31).
# * Among value maps, in contrast, layers with a low score tended to gain more. Both are *leads*, to be tested on other models.
#
# | | |
# |---|---|
# | **You need** | notebook 01; what a rank correlation is; the words are in the [glossary](GUIDE.md#words) |
# | **It takes** | an hour of reading, and 20 minutes for the exercises; it runs in a minute or two on one CPU core, without a GPU |
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
record["type"] = record["type"].str.removesuffix("_proj")
record["setting"] = record["method"] + ", " + record["trained"]
record["texts"] = np.where(record["trained"] == record["scored"], "own task", "other task")
print(f"{record.groupby(['setting', 'seed']).ngroups} runs, {record.groupby(['type', 'layer']).ngroups} maps in each")

# %%
record["change"] = 100 * (record["after"] / record["before"] - 1)
record["rise"] = record["after"] ** 2 - record["before"] ** 2  # for part 5
seeds = record.groupby(["setting", "texts", "type", "layer"], sort=False)
maps = seeds[["before", "change", "rise"]].mean().reset_index()
own = maps[maps["texts"] == "own task"]
settings = list(own["setting"].unique())

# %% tags=["nbval-ignore-output", "picture"]
title = "SmolLM2-135M-Instruct: in percent value often gains most, but the types show no clear order"
title += "\n(20 steps; cross: mean, 95 % t interval over layers; triangles: beyond 15 %, largest named)"
gain_plots.plot_gains(own, settings, column="setting", limit=15, title=title);

# %% [markdown]
# The types stand in the order of their score. Every dot is a mean over two seeds, on held-out texts of the trained task. If low
# scores gained more, the crosses would fall from left to right. Value, the lowest, has the largest mean in three of four
# settings. But down, third lowest, is sixth of seven on spelling, and output falls in all; seven types cannot settle it. Part 5
# shows why even a fall would be no evidence yet.
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
# of the weights and of the input. Where inputs grow, NFN and displacement disagree (part 4).

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
# (`seeds`) and returns one row for each network and step, with `moved` (the root of the squared displacement), `nfn` and `loss`:
# means over all datapoints, also over those outside the minibatch. The data are toys:
#
# | what | how it is made |
# |---|---|
# | input | 8 random numbers, which a random first layer turns into $z$ |
# | label | $+2$ or $-2$, or another `target`; the sign follows from the input by a rule: the side of a random plane |
# | noise labels | random signs, drawn anew in every step (`"fresh"`) |
# | step x 8 | the step of a network of 64 neurons: it does not shrink with the width (`"standard"`) |

# %%
knobs = {
    "Theorem 1": {},
    "16 datapoints": {"samples": 16},
    "minibatches (4 of 64)": {"samples": 64, "batch": 4},
    "all layers": {"train": "all"},
    "Adam": {"optimizer": "adam"},
    "SGD": {"optimizer": "sgd"},
    "step x 8": {"rule": "standard"},
    "near target": {"target": 0.5},
    "noise labels": {"labels": "fresh", "seeds": 256},  # random walks vary much
}

# %% tags=["nbval-ignore-output"]
runs = {}
for name, knob in knobs.items():
    knob = {"seeds": SEEDS} | knob
    runs[name] = growth(WIDTH, STEPS, eta=ETA, **knob)

# %%
runs["Theorem 1"][["seed", "step", "moved", "nfn", "loss"]].head(3).round(3)

# %% [markdown]
# We fit the exponent only while there is something left to learn. We call a target *met* when the mean loss has fallen below 2 %
# of its start. After that step an exponent would mix growth with standstill.


# %%
def last_step_to_fit(run):
    """The step at which the target is met, else the last step."""
    loss = run.groupby("step")["loss"].mean()
    small = loss[loss < 0.02 * loss[0]]
    return small.index[0] if len(small) else loss.index[-1]


# %% [markdown]
# The exponent is the slope of a straight line through the logarithms. Its interval comes from networks that are drawn again.


# %%
def exponent(run, first=1, last=STEPS):
    """The exponent of the squared displacement, with its interval (95 %)."""
    run = run[run["step"].between(first, last)]
    return power_fit(run.assign(square=run["moved"] ** 2), "step", "square")


# %%
def squares(run):
    """The squared displacement by step, the mean over networks."""
    return (run["moved"] ** 2).groupby(run["step"]).mean()


# %%
rows = {}
for name, run in runs.items():
    last = last_step_to_fit(run)
    rows[name] = exponent(run, last=last)._asdict() | {"fitted to": last}
    rows[name]["step 1 / theorem"] = squares(run)[1] / squares(runs["Theorem 1"])[1]

# %%
table = pd.DataFrame(rows).T
table.round(2)

# %%
panels, met = {}, {}
for name, row in table[1:].iterrows():
    panel = f"{name}\nexponent {row['exponent']:.2f}"
    panels[panel] = runs[name]
    if row["fitted to"] < STEPS:
        met[panel] = row["fitted to"]

# %% tags=["nbval-ignore-output"]
title = "Features move quadratically where steps share a direction and keep their length"
title += f"\n(linear networks, {WIDTH} neurons; means over 16 networks, for noise over 256; 95 % t intervals)"
options = {"met": met, "met_name": "loss\nbelow 2 %", "guides": {panel: 1}}  # the last: noise
network_plots.plot_knobs(panels, runs["Theorem 1"], title=title, **options);

# %% [markdown]
# **What we saw.** The exponent stays near 2 with *16 datapoints*, and with *all layers*, a *step x 8* and a *near target* until
# the target is met. *Adam* comes close. *SGD*, *minibatches* and *noise labels* fall short.
#
# * *16 datapoints*: the squared displacement is a fifth of the theorem's (features move less than half as far), since one step
#   serves all datapoints at once: it moves each less than a step of its own would.
# * *Minibatches*: the direction varies from step to step. The exponent 1.8 is a mean over 40 steps: it rises (part 3).
# * *All layers*: the first layer moves the feature as well. In the first step the squared displacement is four times the
#   theorem's. Steps get a little longer (2.05), and growth ends at step 14.
# * *Step x 8*: its square is 64 times as large. The exponent stays; the target is only met sooner, at step 7.
# * *Adam*, *SGD*: the steps get shorter (part 2). That the first step of SGD is longer is a matter of the rate.
# * *Noise labels*: a step goes forward or backward at random. After $t$ such steps one is about $\sqrt t$ steps away: a *random
#   walk*. The squared displacement grows with $t$.
#
# **Recap.** The number of datapoints, the size of the step and the number of trained maps set how fast features move, but hardly
# change the exponent. The exponent 2 needs steps that share a direction and keep their length.
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
    rises = loss.shift(-1) > loss
    if not rises.any().all():
        raise ValueError("in some network the loss never rises: take more steps")
    return rises.idxmax()


# %%
run = runs["near target"]
speed = ETA * 2 / math.pi  # of the output, in one step
start = (2 * run.loc[run["step"] == 0, "loss"]).pow(0.5).mean()  # |f - y| before training
turned = mean_interval(turning(run).to_numpy())
print(f"expected at step {0.5 / speed:.1f} from an output of 0, {start / speed:.1f} from where the outputs really start")
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
# **Recap.** Growth ends when the residual changes its sign. Before that, its size sets the steps of Adam and SGD.
#
# ## 3. Must labels mean something?
#
# **Question.** Noise labels, drawn anew in every step, lead to a random walk. Is it because they *mean* nothing, or because they
# *change*?
#
# **Predict.** Take the labels of a rule and deal them out at random, once. These *shuffled* labels mean nothing, but each
# datapoint keeps its own. Of *rule*, *shuffled* and *noise*: which have an exponent near 2 with all 64 datapoints in each step,
# and which with minibatches of 4?
#
# **Intuition.** A step follows what its datapoints ask for together. Growth needs steps that ask for the same again and again.

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
title = "With all data in each step, shuffled labels move features almost as far as a rule's"
title += f"\n(linear networks, {WIDTH} neurons, 64 datapoints; means over 64 networks, 95 % t intervals)"
network_plots.plot_displacements(by_labels, title=title);

# %% [markdown]
# **What we saw.** With all datapoints in each step, shuffled labels have nearly the exponent of the rule: 1.96 against 1.99. With
# minibatches it is 1.8 for the rule, 1.3 for shuffled labels, and 1.0 for noise, a random walk. With all data, noise stays even
# below a random walk (0.80). No target is ever met here: a linear network of 8 inputs cannot bring the loss of 64 datapoints near
# 2 % of its start. So all 40 steps count.
#
# With all data, shuffled labels ask for something weak, but for the same in every step, and SignSGD takes its full step however
# weak a signal is.
#
# **One number: how much do steps agree?** Let $x$ be the mean cosine of the displacements of two steps. Let all steps be equally
# long, and equally alike at all times. The square of a sum has $t$ squares and $t (t - 1)$ products, so after $t$ steps the
# squared displacement is $t + t (t - 1)\, x$ times that of the first step. It is $t^2$ if all steps agree ($x = 1$), and $t$ if
# none do ($x = 0$). In between it begins more like $t$ and ends more like $t^2$.
#
# We compute $x$ from the first and the last step, so only the bend between them is a test: the exponents of steps 1 to 10 and of
# steps 10 to 40, measured, and in a run that follows the formula exactly.


# %%
def agreement(run):
    """x, from the squared displacement after all steps and after one."""
    multiple = squares(run)[STEPS] / squares(run)[1]
    return (multiple - STEPS) / (STEPS * (STEPS - 1))


# %%
def run_of_formula(x):
    t = np.arange(1, STEPS + 1)
    return pd.DataFrame({"seed": 0, "step": t, "moved": np.sqrt(t + t * (t - 1) * x)})


# %%
def early_and_late(run):
    early, late = exponent(run, last=10), exponent(run, first=10)
    return {"1 to 10": early.exponent, f"10 to {STEPS}": late.exponent}


# %%
rows = {}
for panel, of_panel in by_labels.items():
    for name, run in of_panel.items():
        x = agreement(run)
        rows[panel, name, "measured"] = {"x": x} | early_and_late(run)
        rows[panel, name, "formula"] = {"x": x} | early_and_late(run_of_formula(x))
pd.DataFrame(rows).T.round(2)

# %% [markdown]
# **What we saw.** One number says how the curves of minibatches bend. The rule's $x$ is 0.33, and its exponent rises from 1.6 to
# 1.9. That of shuffled labels is 0.05, and theirs rises from 1.2 to 1.5. The computed exponents differ by 0.07 at most. So with
# minibatches an exponent between 1 and 2 is a passage from 1 to 2, as long as $x$ stays. With all data, the formula misses the
# bend of shuffled labels: there the steps get shorter or their cosine changes; we did not look which. For noise $x$ is below 0
# there: a step undoes a part of earlier ones, perhaps because the best answer to noise is an output of 0.
#
# **Recap.** Features grow with the square of the steps when the gradient keeps asking for the same thing. With SignSGD and all
# data in each step, labels need not mean anything over 40 steps, but they must not change: labels drawn anew give a random walk
# at most. With minibatches a rule helps, because other datapoints then ask for the same.
#
# ## 4. Networks that are not linear
#
# **Question.** The paper leaves open what happens in networks that are not linear. Do their features grow quadratically, too?
#
# **Predict.** A ReLU sets negative values to 0. Half of its neurons are off at the start and get no gradient. Compared with the
# linear network, where does its squared displacement start, and where does it end?
#
# **Intuition.** Over a short way a smooth network is nearly linear. Later, a neuron may come to rest, and in a deeper network the
# inputs of a map change as well.
#
# **What we do.** We use one datapoint, SignSGD, and three more networks of 256 neurons. The attention has one head and four input
# tokens, and we watch its four maps: query, key, value and output. The target is 6, so far away that all 40 steps count.

# %% tags=["nbval-ignore-output"]
options = {"eta": ETA, "seeds": SEEDS, "target": 6}
neurons = {}
for name in ["linear", "ReLU", "GeLU"]:
    neurons[name] = growth(WIDTH // 2, STEPS, network=name.lower(), **options)
run = growth(WIDTH // 2, STEPS, network="attention", **options)
attention = dict(list(run.groupby("module", sort=False)))

# %% [markdown]
# We divide each squared displacement by that of Theorem 1 in an infinitely wide network, $\frac{2}{\pi} (\eta t)^2$. For ReLU
# there is a formula:
#
# <details><summary>The formula, derived</summary>
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

# %%
unit = ETA * math.sqrt(2 / math.pi)  # the theorem's displacement in one step
h = stats.halfnorm.ppf((np.arange(2000) + 0.5) / 2000)  # 2000 quantiles stand for all neurons
formula = pd.Series(index=range(1, STEPS + 1), dtype=float)
for step in formula.index:
    formula[step] = (1 + (np.minimum(1, h / (unit * step)) ** 2).mean()) / 4
formula[[1, 10, 20, STEPS]].round(2)

# %% tags=["nbval-ignore-output"]
title = "ReLU and GeLU fall behind the theorem, the attention's output map runs ahead"
title += "\n(256 neurons, one datapoint, SignSGD; means over 16 networks, 95 % t intervals)"
panels = {"neurons": neurons, "attention: one head, 4 tokens": attention}
network_plots.plot_multiples(panels, unit, formulas={"ReLU": formula}, title=title);


# %%
def exponents(run):
    """The exponent early and late (95 %: networks are resampled), and the loss that is left."""
    early, late = exponent(run, last=5), exponent(run, first=20)
    row = {"1 to 5": early.exponent, f"20 to {STEPS}": late.exponent, "low": late.low, "high": late.high}
    loss = run.groupby("step")["loss"].mean()
    return row | {"loss left": loss[STEPS] / loss[0]}


# %%
networks = neurons | attention
pd.DataFrame({name: exponents(run) for name, run in networks.items()}).T.round(2)

# %% [markdown]
# **What of NFN?** Let $D$ be the squared displacement after 40 steps, per squared entry of the input at the start. If the input
# stayed fixed and the steps were unrelated to the first feature, NFN would go from $a$ to $\sqrt{a^2 + D}$, since the weights
# hardly grow. We compare. The columns `size x` and `baseline x` say how many times an input's entries and the weights have grown;
# the size follows from feature, NFN and weights.


# %%
def norms(run):
    """NFN before, after, and as `D` alone would make it; how much input and weights have grown."""
    run = run.assign(size=np.sqrt(run["feature"]) / (run["nfn"] * run["baseline"]))
    means = run.groupby("step")[["nfn", "size", "baseline"]].mean()
    start, end = means.loc[0], means.loc[STEPS]
    alone = math.sqrt(start["nfn"] ** 2 + squares(run)[STEPS] / start["size"] ** 2)
    row = {"NFN, step 0": start["nfn"], f"NFN, step {STEPS}": end["nfn"], "by D alone": alone}
    return row | {f"{name} x": end[name] / start[name] for name in ["size", "baseline"]}


# %%
pd.DataFrame({name: norms(run) for name, run in networks.items()}).T.round(2)

# %% [markdown]
# **What we saw.** In the first five steps the exponents lie between 1.85 and 2.0, in steps 20 to 40 they are 1.7 and 1.8 for ReLU
# and GeLU, and 3.3 for the attention's output map. Value is near 2 all the time. Query and key do not follow the intuition: they
# bend already in the first steps (1.86 and 1.85, without intervals), and only key is near 2 later. We did not test why this is,
# nor why GeLU bends. ReLU follows its formula.
#
# *NFN.* The output map's input grows to 2.9 times its size, so NFN reaches 2.3 instead of the 6.7 that $D$ alone would give. In
# ReLU, GeLU, query, key and value NFN is a little higher than by $D$ alone. Their inputs are fixed (the 1.01 to 1.03 show how
# rough this estimate is) and their weights hardly grow, so a part of their steps lies along the feature that was there.
#
# Query, key and value start near 1/3, since four tokens share each step. (Unrelated tokens would give 1/4; ours overlap.)
#
# **Recap.** The exponents start near 2 (1.9 for query and key). ReLU neurons that switch off bend growth down for a while. A
# growing input bends displacement up, but not NFN.

# %% [markdown]
# ## 5. A real model: do low scores gain most?
#
# **Question.** Does the score *before* training tell which maps *gain* score in finetuning?
#
# **Intuition.** PLoP reads a low score as a large gap to close. If so, low scores go with large changes. A summary of the paper
# also says that well aligned modules grow faster: the opposite. (The paper followed growth in pretraining only.) We measure it by
# a *rank correlation*, Spearman's: -1 if the lowest score gains most and so on, 1 for the opposite, about 0 if the two orders are
# unrelated.
#
# **What we do.** The record has SmolLM2-135M-Instruct after 20 steps of Adam with batches of 4: all weights with the learning
# rate 5e-5, or adapters with 1e-3, of inner size 16 and scaled by 2. A sum is "98 + 93 = 191", a spelling "thong backward:
# gnoht". Seeds differ in the training examples and in the start of the adapters; the 32 held-out texts of a task are the same for
# both. (With seed 1, five of the 32 sums were among the training examples, too.) NFN is the mean over these texts, with their
# answers; adapters are added to the weights first. Every trained model was scored on texts of its *own task* and, as a control,
# of the *other task*.
#
# **Has it learned anything?** The mean loss over two seeds, per token of the answer, on held-out texts (in *nats*: natural
# logarithms):

# %%
record.groupby(["setting", "texts"], sort=False)[["loss_before", "loss_after"]].mean().round(1)

# %% [markdown]
# The loss falls, on the other task as well, so training did not leave the control alone. We recorded no accuracy, so we cannot
# tell the form of an answer from its content.
#
# **What would geometry alone do?** Let the features of all maps move by the same squared displacement $D$, in a direction
# unrelated to the feature. From NFN $a$ that leads to $\sqrt{a^2 + D}$. So the *square* of NFN rises by $D$ in every map, but NFN
# itself rises more where it was low. A picture that falls with the score needs no gap that closes.
#
# **Predict.** Value starts at 0.56, key at 1.45. By how many percent would they rise, if $D$ is the theorem's for full finetuning
# of a map with 576 inputs?

# %%
eta = 5e-5 * 576  # a step of Adam changes a weight by about 5e-5; the theorem's step is eta / n
D = (eta * math.sqrt(2 / math.pi) * 20) ** 2
types = own.groupby("type")["before"].mean().sort_values().to_frame("NFN")
types["geometry"] = 100 * (np.sqrt(types["NFN"] ** 2 + D) / types["NFN"] - 1)  # percent
print(f"D = {D:.2f}")

# %%
measured = own.pivot_table(index="type", columns="setting", values="change")[settings]
types.join(measured).round(2)

# %%
own.pivot_table(index="type", columns="setting", values="rise").loc[types.index, settings].round(3)

# %% [markdown]
# **What we saw.** Geometry alone would raise value by 29 % and key by 5 %. (Down has 1,536 inputs, so it would move further. For
# LoRA we have no such yardstick.) The measured means are far smaller: all maps are trained at once here, their inputs change, the
# minibatches vary, weights may be scaled otherwise, and the gradient that reaches a map need not keep its signs. The order
# differs as well, and it depends on the unit: value is first or second of seven in percent (first table), but fifth or sixth in
# the square of NFN (second table).
#
# In how many percent of the 210 maps does NFN rise at all, in each run? Guess first.

# %%
rises = record[record["texts"] == "own task"].groupby(["setting", "seed"])["rise"]
rises.agg(lambda rise: 100 * (rise > 0).mean()).unstack().loc[settings].round(0)

# %% [markdown]
# In 52 to 68 %. (We give no test, since maps of one network are not independent.)
#
# **Two answers, in two units.** Over *types* we average the layers first and correlate seven numbers. There are 5,040 orders of
# seven types, so the p-value can be exact: the share of orders that correlate at least as strongly. *Within layers* we correlate
# the seven maps of each layer, and take the mean of these 30 correlations with its interval (95 %, Student's t). Maps of a layer
# share inputs, so a layer is our unit, not a map. An interval that allows for neighbouring layers being alike would be wider. We
# take the change in *percent*, for which geometry alone gives nearly -1, and the rise of the *square*, for which it gives 0.
#
# **Predict.** Which of these correlations are near what geometry alone gives?


# %%
def rank_correlation(rows, gain):
    return stats.spearmanr(rows["before"], rows[gain]).statistic


# %%
def over_types(run, gain):
    """Rank correlation of score and gain over types, and its exact p-value."""
    ranks = run.groupby("type")[["before", gain]].mean().rank()
    test = stats.pearsonr(ranks["before"], ranks[gain], method=stats.PermutationMethod())
    return {"over types": test.statistic, "p": test.pvalue}


# %%
def both_answers(run, gain):
    layers = [rank_correlation(rows, gain) for _, rows in run.groupby("layer")]
    return over_types(run, gain) | mean_interval(layers)._asdict()


# %%
tables = {"change": {}, "rise": {}}
for gain, rows in tables.items():
    for (texts, setting), run in maps.groupby(["texts", "setting"], sort=False):
        rows[f"{texts}: {setting}"] = both_answers(run, gain)

# %%
order = [f"{texts}: {setting}" for texts in ["own task", "other task"] for setting in settings]
tables = {gain: pd.DataFrame(rows).T.loc[order] for gain, rows in tables.items()}
pd.concat(tables).rename(columns={"mean": "within layers"}).round(2)

# %% tags=["nbval-ignore-output"]
title = "Low scores gain no more in percent, and rather less in the square of NFN"
title += "\n(SmolLM2-135M-Instruct; 95 % t intervals over 30 layers; grey: texts of the other task)"
grey = [gain_plots.MEASURED] * 4 + ["0.55"] * 4
panels = {"change of NFN in percent": tables["change"].assign(color=grey)}
panels["rise of the square of NFN"] = tables["rise"].assign(color=grey)
options = {"what": "rank correlation with the score", "sides": ["low scores gain more", "high scores gain more"]}
options |= {"expected": dict(zip(panels, [-1, 0])), "expected_name": "geometry alone"}
gain_plots.plot_intervals(panels, title=title, **options);

# %% [markdown]
# **What we saw.** *In percent* (`change`) the correlations over types are -0.5 to -0.2 on the own task, which cannot be told from
# chance (p is 0.3 and more). Within layers they are 0.03 to 0.07. Every interval contains zero, and none reaches below -0.17, far
# from the -1 of geometry alone. So low scores gained less than equal displacements would give them.
#
# *In the square* (`rise`) the signs are the opposite of what our reading of PLoP supposes: 0.4 to 0.6 over types (p is 0.14 and
# more: seven types show little) and 0.15 to 0.31 within layers, where three of four intervals exclude zero. If each NFN rose by
# about the same percentage, one would see just this: 0 in percent, more than 0 in the square.
#
# On the *other* task all correlations within layers are positive, too (0.22 to 0.44). The intervals are too narrow and not
# corrected for 16 looks. So that high scores rise more is only a lead; no interval shows that low scores do.
#
# **Layers of a type.** Does the score tell which *layers* of one type gain? We correlate the score with the rise of the square,
# over the 30 layers of each type, on the own task. For these 28 tests *Bonferroni*'s correction asks for p below 0.05 / 28, as if
# layers were independent; a star marks these.

# %%
tests = {}
for (name, setting), run in own.groupby(["type", "setting"]):
    test = stats.spearmanr(run["before"], run["rise"])
    star = "*" if test.pvalue < 0.05 / 28 else ""
    tests[name, setting] = f"{test.statistic:.2f}{star}"
pd.Series(tests).unstack()[settings]

# %% tags=["nbval-ignore-output"]
values = own[own["type"] == "v"]
title = "Value maps: low-scoring layers rose more also in the square of NFN, clearly on spelling"
title += "\n(SmolLM2-135M-Instruct, 20 steps; one dot a layer; equal displacements would lie flat)"
gain_plots.plot_layer_gains(values, settings, column="setting", named=1, limit=0.9, title=title);

# %% [markdown]
# **What we saw.** Value layers with a low score rose more, clearly on spelling (-0.7) and less so on sums (-0.5, -0.4, no star).
# Geometry alone is not the reason: it would give 0, and it lets no map fall, while some layers with a high score fell. The lowest
# layers did not rise *most*: in every panel the largest rise belongs to a layer near 0.5.
#
# Two other things could make such a correlation. *The measure*: the score before training is a part of the rise, so if it is low
# by chance, the rise looks large. So we take the score on the *other texts*. *Depth*: late layers (dark dots) change most, so
# depth may be behind both; layers are not 30 independent observations. So we correlate *differences* between neighbouring layers.


# %%
def checks_of(run, other):
    """The correlation over layers in four ways; `other` has the same maps on the other texts."""
    steps = run[["before", "rise"]].diff().dropna()
    row = {"percent": rank_correlation(run, "change"), "square": rank_correlation(run, "rise")}
    row["other texts"] = stats.spearmanr(other["before"], run["rise"]).statistic
    return row | {"neighbours": rank_correlation(steps, "rise")}


# %%
checks = {}
for setting in settings:
    run = maps[(maps["type"] == "v") & (maps["setting"] == setting)].set_index("layer").sort_index()
    checks[setting] = checks_of(run[run["texts"] == "own task"], run[run["texts"] == "other task"])
pd.DataFrame(checks).T.round(2)

# %% [markdown]
# With the score on the other texts -0.6 to -0.5 remain, of which only that of full, sums passes the limit for 28 tests (about
# -0.55). From neighbour to neighbour, the correlation holds on spelling (-0.7, -0.6); on sums (-0.3, -0.2) it is not clear. (No
# p-value: two such differences share a layer.) It is a lead.
#
# **Recap.** Low scores gained no more than others in percent, where geometry alone would favour them, and less in the square.
# Among value maps the score may tell which layers gain.

# %% [markdown]
# ## Exercises
#
# ### 1. Steps that sometimes go back (15 minutes)
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
# ### 2. Where does geometry alone give ten percent? (5 minutes)
#
# From which NFN before training would the displacement $D$ of part 5 alone raise NFN by 10 %?

# %%
start_for_ten = None  # your turn: a number


# %%
def check_start(a):
    if a is None:
        return "not yet filled in"
    rise = math.sqrt(a**2 + D) / a - 1
    assert abs(rise - 0.1) < 0.002, f"from {a:.2f} it would rise by {rise:.1%}"
    return f"from {a:.2f} it would rise by {rise:.0%}"


check_start(start_for_ten)

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution: a^2 + D = (1.1 a)^2.
check_start(math.sqrt(D / (1.1**2 - 1)))

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
# 1. **Quadratic growth needs steps that share a direction and keep their length.** It ends when the residual changes its sign.
#    With SignSGD and all data in each step, labels need not mean anything over 40 steps, but they must not change.
# 2. **Networks that are not linear start with an exponent near 2** (1.9 for query and key). ReLU neurons that switch off bend
#    growth down for a while. A growing input bends displacement up, but NFN divides by its size.
# 3. **In SmolLM2-135M-Instruct low scores did not gain more NFN in 20 steps.** An equal displacement raises a low score more, so
#    look at the square of NFN as well: there, high scores rose more. Among value maps, layers with a low score tended to gain
#    more in both units; whether more clearly on sums or on spelling depends on the check.
#
# **Not established.** One small model, two toy tasks, 20 steps, one learning rate for each method, two seeds, and no accuracy was
# recorded; on spelling the loss stayed above 4 nats a token. NFN, and with it the order of types, changes when the scale factors
# of the norms are folded into the maps (notebook 04). Only scores before and after were recorded, so we know neither the
# displacement nor its exponent in the real model. Whether a rise of NFN lowers the loss was not asked (see notebook 05).
#
# **Where next.** Notebook 02 asks how many texts a score needs, notebook 04 what the score measures.
