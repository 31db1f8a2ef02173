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
# datapoint, because its features move ever further. What breaks this growth? And does NFN rise in a real language model, most of
# all in the maps with a low score?
#
# **The answer.** The squared displacement (how far features move, squared) grows with the square of the number of steps if all
# steps are equally long and point the same way, or at least agree on average (then only after many steps). In
# SmolLM2-135M-Instruct, finetuned for 20 steps, NFN rises in 52 to 68 % of the maps. Low scores did not clearly gain more,
# although equal steps of all weights would favour them:
#
# * In percent, score and gain are not clearly correlated within a layer (0.03 to 0.07). With equal steps it would be about -0.8.
#   Value, the lowest type, has the largest mean in three of four settings, but by a few layers, and down, third lowest, does not
#   follow.
# * The *square* of NFN rose more where the score was high (0.15 to 0.31; with equal steps about 0). But only seven types are
#   compared, and chance may do as much (p is 0.02 to 0.17).
# * Among value maps, in contrast, layers with a low score tended to gain more. Both are *leads*.
#
# | | |
# |---|---|
# | **You need** | notebook 01; what a rank correlation is; the words are in the [glossary](GUIDE.md#words) |
# | **It takes** | an hour of reading, and 15 minutes for the exercise; it runs in a minute or two on one CPU core, without a GPU |
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
from itertools import permutations

import numpy as np
import pandas as pd
from scipy import stats

from plop_nb import gain_plots, network_plots
from plop_nb.experiments import growth, mean_interval, power_fit

# %% [markdown]
# The record `growth.csv` holds eight short finetunings of SmolLM2-135M-Instruct. They train all weights (*full*) or adapters on
# all maps (*LoRA*: the product of two small matrices is added to frozen weights), on short sums (*sums*) or on spelling words
# backward (*spelling*), with two seeds each. The model has 210 maps, seven types in each of 30 layers: query, key, value and
# output (q, k, v, o) in the attention, and gate, up and down in the MLP. The *change* of a map is that of its NFN in percent, the
# *rise of the square* is NFN squared after training minus before; *gain* means either.

# %%
record = pd.read_csv(plop.data_file("results/growth.csv"), comment="#")
record = record.replace({"lora": "LoRA", "short_sums": "sums"})
record["type"] = record["type"].str.removesuffix("_proj")
record["setting"] = record["method"] + ", " + record["trained"]
record["texts"] = np.where(record["trained"] == record["scored"], "own task", "other task")
print(f"{record.groupby(['setting', 'seed']).ngroups} runs, {record.groupby(['type', 'layer']).ngroups} maps in each")

# %%
record["change"] = 100 * (record["after"] / record["before"] - 1)
record["rise"] = record["after"] ** 2 - record["before"] ** 2  # of the square
seeds = record.groupby(["setting", "texts", "type", "layer"], sort=False)
maps = seeds[["before", "change", "rise"]].mean().reset_index()
own = maps[maps["texts"] == "own task"]
settings = list(own["setting"].unique())

# %% tags=["nbval-ignore-output", "picture"]
title = "In percent, value often has the largest mean, but never the largest median"
title += "\n(SmolLM2-135M-Instruct, 20 steps; cross: mean, 95 % t interval over layers; circle: median; "
title += "triangles: beyond 15 %)"
gain_plots.plot_gains(own, settings, column="setting", limit=15, title=title);

# %% [markdown]
# The types stand in the order of their score. Every dot is a mean over two seeds, on texts of the trained task that were kept for
# testing (see part 5). If low scores gained more, the crosses would fall from left to right. Value, the lowest, has the largest
# mean in three of four settings, but by a few layers: its median is the largest in none. Down, third lowest, falls on spelling,
# and output falls in all (means over layers, of which some carry much). Part 5 shows why even a fall would be no evidence yet.

# %% [markdown]
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
# means over all datapoints, also over those outside the minibatch. The loss is half the squared residual. The data:
#
# | what | how it is made |
# |---|---|
# | input | 8 random numbers, which a random first layer turns into $z$ |
# | label | $+2$ or $-2$, or another `target`; the sign is the side of a random plane on which the input lies |
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
# The exponent is the slope of a straight line through the logarithms. For its interval, we draw networks with replacement and fit
# again (*bootstrap*).


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
    rows[name]["NFN then"] = run.loc[run["step"] == last, "nfn"].mean()

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
title = "The squared displacement grows with t\u00b2 where steps share a direction and keep their length"
title += f"\n(linear networks, {WIDTH} neurons; means over 16 networks, for noise over 256; 95 % t intervals)"
options = {"met": met, "met_name": "loss\nbelow 2 %", "guides": {panel: 1}}  # the last: noise
network_plots.plot_knobs(panels, runs["Theorem 1"], title=title, **options);

# %% [markdown]
# **What we saw.** The exponent stays near 2 with *16 datapoints*, and with *all layers*, a *step x 8* and a *near target* until
# the target is met. *Adam* comes close. *SGD*, *minibatches* and *noise labels* fall short.
#
# * *16 datapoints*: the squared displacement is a fifth of the theorem's, since one step serves all datapoints at once: it moves
#   each less than a step of its own would.
# * *Minibatches*: the direction varies from step to step. The exponent 1.8 is a mean over 40 steps: it rises (part 3).
# * *All layers*: the first layer moves the feature as well. In the first step the squared displacement is four times the
#   theorem's. Steps get a little longer (2.05), and growth ends at step 14.
# * *Step x 8*: the first squared displacement is 64 times as large. The exponent stays; the target is only met sooner, at step 7.
# * *Adam*, *SGD*: the steps get shorter (part 2).
# * *Noise labels*: a step goes forward or backward at random. After $t$ such steps one is about $\sqrt t$ steps away: a *random
#   walk*. The squared displacement grows with $t$.
#
# NFN, which starts at 1.0, rises in all of them, hardly so with noise labels and with minibatches (1.03 and 1.05; the column ends
# at different steps).
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
# **Recap.** With SignSGD growth ends when the residual changes its sign. SGD's steps are proportional to the residual. Adam's
# shrink when it shrinks, whatever its size.
#
# ## 3. Must labels mean something?
#
# **Question.** Noise labels, drawn anew in every step, lead to a random walk. Is it because they *mean* nothing, or because they
# *change*?
#
# **Predict.** Take the labels by a plane and deal them out at random, once. These *shuffled* labels mean nothing, but each
# datapoint keeps its own. Of *plane*, *shuffled* and *noise*: which have an exponent near 2 with all 64 datapoints in each step,
# and which with minibatches of 4?
#
# **Intuition.** A step follows what its datapoints ask for together. Growth needs steps that ask for the same again and again.

# %% tags=["nbval-ignore-output"]
labels = {"plane": "teacher", "shuffled": "shuffled", "noise": "fresh"}
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
title = "With all data in each step, shuffled labels move features almost as far as a plane's"
title += f"\n(linear networks, {WIDTH} neurons, 64 datapoints; means over 64 networks, 95 % t intervals)"
network_plots.plot_displacements(by_labels, title=title);

# %% [markdown]
# **What we saw.** With all datapoints in each step, shuffled labels have nearly the exponent of labels by a plane: 1.96 against
# 1.99. With minibatches it is 1.8 for the plane, 1.3 for shuffled labels, and 1.0 for noise, a random walk. With all data, noise
# stays even below a random walk (0.80). No target is met here, so we fit all 40 steps.
#
# Most of what 64 shuffled labels ask for cancels. What is left is weak, but it points the same way in every step, and SignSGD
# takes its full step however weak a signal is.
#
# **One number: how much do steps agree?** Let $x$ be the mean cosine of the displacements of two steps. Let all steps be equally
# long, and equally alike at all times. The square of a sum has $t$ squares and $t (t - 1)$ products, so after $t$ steps the
# squared displacement is $t + t (t - 1)\, x$ times that of the first step. It is $t^2$ if all steps agree ($x = 1$), and $t$ if
# none do ($x = 0$).
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
# **What we saw.** One number says how the curves of minibatches bend. With labels by a plane $x$ is 0.33, and the exponent rises
# from 1.6 to 1.9. The computed exponents differ by 0.07 at most. So with minibatches an exponent between 1 and 2 is a passage
# from 1 to 2, as long as $x$ stays. With all data, the formula misses the bend of shuffled labels: there the steps get shorter or
# their cosine changes; we did not look which. For noise $x$ is below 0 there: a step undoes a part of earlier ones.
#
# **Recap.** The squared displacement grows with $t^2$ when the gradient keeps asking for the same thing. With SignSGD and all
# data in each step, labels need not mean anything over 40 steps, but they must not change: labels drawn anew give a random walk
# at most. With minibatches meaning helps, because other datapoints then ask for the same.
#
# ## 4. Networks that are not linear
#
# **Question.** The paper leaves open what happens in networks that are not linear. Does their squared displacement grow with
# $t^2$, too?
#
# **Predict.** A ReLU sets negative values to 0. Half of its neurons are off at the start and get no gradient. Compared with the
# linear network, where does its squared displacement start, and where does it end?
#
# **Intuition.** Over a short way a smooth network is nearly linear. Later, a neuron may come to rest, and in a deeper network the
# inputs of a map change as well.
#
# **What we do.** We use one datapoint, SignSGD, and three more networks of 256 neurons. The attention has one head and four input
# tokens, and we watch its four maps: query, key, value and output. The target is 6, so far away that we fit all 40 steps.

# %% tags=["nbval-ignore-output"]
options = {"eta": ETA, "seeds": SEEDS, "target": 6}
neurons = {}
for name in ["linear", "ReLU", "GeLU"]:
    neurons[name] = growth(WIDTH // 2, STEPS, network=name.lower(), **options)
run = growth(WIDTH // 2, STEPS, network="attention", **options)
attention = dict(list(run.groupby("module", sort=False)))

# %% [markdown]
# We divide each squared displacement by that of Theorem 1 in an infinitely wide network whose input has entries of size 1,
# $\frac{2}{\pi} (\eta t)^2$. For ReLU there is a formula:
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
    row = {"size, step 0": start["size"], "NFN, step 0": start["nfn"]}
    row |= {f"NFN, step {STEPS}": end["nfn"], "by D alone": alone}
    return row | {f"{name} x": end[name] / start[name] for name in ["size", "baseline"]}


# %%
pd.DataFrame({name: norms(run) for name, run in networks.items()}).T.round(2)

# %% [markdown]
# **What we saw.** In the first five steps the exponents lie between 1.85 and 2.0, in steps 20 to 40 they are 1.7 and 1.8 for ReLU
# and GeLU, and 3.3 for the attention's output map. Value is near 2 early and late. Query and key do not follow the intuition:
# they bend already in the first steps, and only key is near 2 later. We did not test why this is, nor why GeLU bends. ReLU
# follows its formula: it starts at 1/2, is at 0.33 after 40 steps, and goes towards 1/4.
#
# *NFN.* The output map's input grows to 2.9 times its size, so NFN reaches 2.3 instead of the 6.7 that $D$ alone would give. In
# ReLU, GeLU, query, key and value NFN is a little higher than by $D$ alone. Their inputs are fixed and their weights hardly grow,
# so a part of their steps lies along the feature that was there.
#
# Query, key and value start near 1/3, perhaps since four tokens share each step. Output starts at about 1.2, though its input has
# entries of only 0.52: its input moves as well, as with *all layers* in part 1 (a guess, not tested).
#
# **Recap.** The exponents start near 2. Later, ReLU neurons that switch off bend growth down, and a growing input bends
# displacement up, but not NFN.

# %% [markdown]
# ## 5. A real model: do low scores gain most?
#
# **Question.** Does the score *before* training tell which maps *gain* score in finetuning?
#
# **Intuition.** PLoP reads a low score as a large gap to close. If so, low scores go with large changes. We measure it by a *rank
# correlation*, Spearman's: -1 if the lowest score gains most and so on, 1 for the opposite, about 0 if the two orders are
# unrelated.
#
# **What we do.** The record has SmolLM2-135M-Instruct after 20 steps of Adam with batches of 4: all weights with the constant
# learning rate 5e-5, or adapters with 1e-3, of inner size 16 and scaled by 2. A sum is "98 + 93 = 191", a spelling "thong
# backward: gnoht". Seeds differ in the training examples and in the start of the adapters; the 32 held-out texts of a task are
# the same for both. (With seed 1, five of the 32 sums were among the training examples, too.) NFN is the mean over these texts,
# with their answers; adapters are added to the weights first. Every trained model was scored on texts of its *own task* and, as a
# control, of the *other task*.
#
# **Has it learned anything?** The mean loss over two seeds, per token of the answer, on held-out texts (in *nats*: natural
# logarithms):

# %%
record.groupby(["setting", "texts"])[["loss_before", "loss_after"]].mean().round(1)

# %% [markdown]
# The loss falls, on the other task as well, so training did not leave the control alone. We recorded no accuracy, so we cannot
# tell the form of an answer from its content.
#
# **What would equal steps do?** Let a feature move, at a right angle to itself, by a share of the length that its map gives to
# random inputs, and let $D$ be the square of this share. Then NFN goes from $a$ to $\sqrt{a^2 + D}$: its *square* rises by $D$,
# but NFN itself rises more where it was low. A picture that falls with the score needs no gap that closes.
#
# Let every weight take 20 steps of 5e-5, about the most that Adam takes, all in one direction. If weights have the variance $1/n$
# and inputs are Gaussian, a map with $n$ inputs gets $D = (20 \cdot 0.00005\, n c)^2$: 0.21 with 576 inputs, and 1.50 with the
# 1,536 of down.
#
# **Predict.** Value starts at 0.56, key at 1.45, both with $D = 0.21$. By how many percent would they rise?

# %%
inputs = own["type"].map({"down": 1536}).fillna(576)
equal = own.assign(rise=(20 * 5e-5 * inputs * math.sqrt(2 / math.pi)) ** 2)
equal["change"] = 100 * (np.sqrt(equal["before"] ** 2 + equal["rise"]) / equal["before"] - 1)

# %%
types = own.groupby("type")["before"].mean().sort_values().to_frame("NFN")
types["equal steps"] = equal.groupby("type")["change"].mean()
types.join(own.pivot_table(index="type", columns="setting", values="change")[settings]).round(2)

# %% [markdown]
# **What we saw.** Equal steps would raise value by 31 % (the mean over layers) and key by 5 %, but down, with its many inputs, by
# 50 %. (For LoRA we have no such yardstick.) The measured means are far smaller. Possible reasons, none of them tested: Adam's
# steps are shorter and turn with the minibatch; inputs are not Gaussian, or change, since all maps are trained at once; weights
# have another size; the gradient that reaches a map need not keep its signs.
#
# In how many percent of the 210 maps does NFN rise at all, in each run? Guess first.

# %%
rises = record[record["texts"] == "own task"].groupby(["setting", "seed"])["rise"]
rises.agg(lambda rise: 100 * (rise > 0).mean()).unstack().loc[settings].round(0)

# %% [markdown]
# In 52 to 68 %.
#
# **Two answers, in two units.** *Over types* we average the layers first and correlate seven numbers. *Within layers* we
# correlate the seven maps of each layer, and take the mean of these 30 correlations. Every layer has the same seven types, so its
# interval (95 %, Student's t over layers) says how steady their order is, not whether the score makes it. For that the unit is
# the type: we exchange the types of the gains, in all layers at once. The exact p-value is the share of the 5,040 orders of seven
# types that correlate at least as strongly.
#
# **Predict.** Equal steps favour low scores in percent. Which correlation do you expect of them in the square?


# %%
def ranks(run, column):
    """Ranks of the types in each layer (one row), standardized."""
    table = run.pivot(index="layer", columns="type", values=column)
    return stats.zscore(table.rank(axis=1).to_numpy(), axis=1)


# %%
orders = np.array(list(permutations(range(7))))  # the first is the real one


def exact_p(run, gain):
    """The share of orders of the gain's types that correlate with the score at least as strongly."""
    score, gain = ranks(run, "before"), ranks(run, gain)
    means = (score.T @ gain)[range(7), orders].sum(axis=1) / score.size  # over layers
    return (abs(means) > abs(means[0]) - 1e-9).mean()


# %%
def both_answers(run, gain):
    types = run.groupby("type", as_index=False)[["before", gain]].mean().assign(layer=0)
    over_types = (ranks(types, "before") * ranks(types, gain)).mean()
    layers = (ranks(run, "before") * ranks(run, gain)).mean(axis=1)
    row = {"over types": over_types, "p over types": exact_p(types, gain)}
    return row | mean_interval(layers)._asdict() | {"p within layers": exact_p(run, gain)}


# %%
def answers(gain):
    rows = {}
    for texts in ["own task", "other task"]:
        for setting, run in maps[maps["texts"] == texts].groupby("setting", sort=False):
            rows[f"{texts}: {setting}"] = both_answers(run, gain)
    return pd.DataFrame(rows).T


# %%
tables = {"change": answers("change"), "rise": answers("rise")}
pd.concat(tables).rename(columns={"mean": "within layers"}).round(2)

# %%
one = equal[equal["setting"] == "full, sums"]
at_equal = pd.DataFrame({gain: both_answers(one, gain) for gain in tables}).T
at_equal[["over types", "mean"]].rename(columns={"mean": "within layers"}).round(2)

# %% tags=["nbval-ignore-output"]
title = "Low scores do not clearly gain more, neither in percent nor in the square of NFN"
title += "\n(SmolLM2-135M-Instruct; 95 % t intervals over 30 layers of the same seven types; grey: texts of the other task)"
panels = {"change of NFN in percent": tables["change"], "rise of the square of NFN": tables["rise"]}
options = {"what": "rank correlation of score and gain\nof seven types, mean over layers"}
options |= {"sides": ["low scores gain more", "high scores gain more"], "grey": tables["rise"].index[4:]}
options |= {"expected": dict(zip(panels, at_equal["mean"])), "expected_name": "equal steps"}
gain_plots.plot_intervals(panels, title=title, **options);

# %% [markdown]
# **What we saw.** *In percent* (`change`) the correlations over types are -0.5 to -0.2 on the own task, which cannot be told from
# chance (p is 0.3 and more). Within layers they are 0.03 to 0.07 (p 0.58 and more), and no interval reaches below -0.17, while
# equal steps give -0.76. So low scores gained less than equal steps would give them.
#
# *In the square* (`rise`) the signs are the opposite of what our reading of PLoP supposes: 0.4 to 0.6 over types (p is 0.14 and
# more) and 0.15 to 0.31 within layers. Three of four intervals exclude zero, so the order of these types is steady over layers.
# But other orders of seven types correlate as strongly (p is 0.02 to 0.17).
#
# On the *other* task all correlations within layers are positive, too (0.22 to 0.44), also in percent: what rises does not look
# specific to the trained task. The smallest of 16 p-values within layers is 0.02, so it is only a lead that high scores rise
# more, and nothing shows that low scores do.
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
title = "Value maps: also in its square, NFN rose more in layers with a low score (a lead)"
title += "\n(SmolLM2-135M-Instruct, 20 steps; one dot a layer; equal steps would lie flat)"
gain_plots.plot_layer_gains(values, settings, column="setting", named=1, limit=0.9, title=title);

# %% [markdown]
# **What we saw.** Value layers with a low score rose more (-0.7 on spelling; -0.5 and -0.4 on sums, without a star). Full and
# LoRA of one task share their scores, so read them as one observation. On spelling, up and output lean the same way without a
# star. Equal steps are not the reason: they would raise the square alike in all layers, while some layers with a high score fell.
# The lowest layers did not rise *most*: in every panel the largest rise belongs to a layer near 0.5.
#
# Two other things could make such a correlation. *The measure*: the score before training is a part of the rise, so if it is low
# by chance, the rise looks large. This largely cancels, since the same texts are scored before and after; to be safe we take the
# score on the *other texts*. *Depth*: late layers (dark dots) change most, so depth may be behind both; layers are not 30
# independent observations. So we correlate *differences* between neighbouring layers.


# %%
def checks_of(run, other):
    """Rank correlations over layers; `other` has the same layers on the other texts."""
    score, rise = run["before"], run["rise"]
    row = {"percent": score.corr(run["change"], method="spearman")}
    row["square"] = score.corr(rise, method="spearman")
    row["other texts"] = other["before"].corr(rise, method="spearman")
    row["neighbours"] = score.diff().corr(rise.diff(), method="spearman")
    return row


# %%
checks = {}
for setting in settings:
    run = maps[(maps["type"] == "v") & (maps["setting"] == setting)].set_index("layer").sort_index()
    checks[setting] = checks_of(run[run["texts"] == "own task"], run[run["texts"] == "other task"])
pd.DataFrame(checks).T.round(2)

# %% [markdown]
# With the score on the other texts the correlations are -0.57 to -0.47: only full, sums passes the limit for 28 tests (about
# -0.55), and spelling no longer does. From neighbour to neighbour, the correlation holds on spelling (-0.7, -0.6); on sums (-0.3,
# -0.2) it is not clear. So the relation in value maps is a lead.
#
# **Recap.** Low scores did not clearly gain more, not even in percent, where equal steps would favour them. Among value maps the
# score may tell which layers gain.

# %% [markdown]
# ## Exercise
#
# ### Steps that sometimes go back (15 minutes)
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
# ## Questions for discussion
#
# 1. PLoP averages scores over layers, and the authors had inconsistent results when they placed adapters on single layers. What
#    do the correlations within a type say about that?
# 2. A gain in NFN is not a gain in loss. How would you test whether maps whose NFN rises are the maps that lower the loss?
#
# ## Three things to remember
#
# 1. **Quadratic growth needs steps that share a direction and keep their length.** It ends when the residual changes its sign.
#    With SignSGD and all data in each step, labels need not mean anything over 40 steps, but they must not change.
# 2. **Networks that are not linear start with an exponent near 2** (1.9 for query and key). ReLU neurons that switch off bend
#    growth down for a while. A growing input bends displacement up, but NFN divides by its size.
# 3. **In SmolLM2-135M-Instruct low scores did not clearly gain more NFN in 20 steps.** Equal steps raise a low score more, so
#    look at the square of NFN as well: there, high scores rose more, which is a lead only (p is 0.02 to 0.17 within layers,
#    higher over types). Among value maps, layers with a low score tended to gain more in both units.
#
# **Not established.** One small model, two toy tasks, 20 steps, one learning rate for each method, two seeds, and no accuracy was
# recorded. NFN, and with it the order of types, changes when the scale factors of the norms are folded into the maps (notebook
# 04). Only scores before and after were recorded, so we know neither the displacement nor its exponent in the real model.
#
# **Where next.** Notebook 02 asks how many texts a score needs, notebook 04 what the score measures.
