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
# **The question.** Notebook 01 showed that alignment grows in a linear network on one datapoint. Which of these assumptions
# matter? And in a real language model: is it the maps with a low score (Normalized Feature Norm, NFN) whose score rises most?
# PLoP ([Hayou, Ghosh, Yu](https://arxiv.org/abs/2506.20629)) supposes that adapters *help* most there. That their NFN rises most
# is our reading of it.
#
# **The answer.** Two things carry the theorem: every step moves the features in the same direction, and equally far. SGD keeps
# the first and loses the second. Labels that are pure noise lose the first, and features do a random walk. Growth ends when the
# residual is used up. Several datapoints only slow it. Minibatches, ReLU and GeLU bend it down, and attention's output map bends
# up. In SmolLM2-135M-Instruct, finetuned for 20 steps, low scores did not gain much more: within the layers the rank correlations
# of score and gain are 0.03 to 0.07, and all intervals lie between -0.20 and 0.25. Over the seven types they are between -0.5 and
# -0.2, too few types to tell from zero. The clearest lead lies within one type: among value maps, layers with a low score gained
# most. None of this is about the loss.
#
# | | |
# |---|---|
# | **You need** | notebook 01; what a rank correlation is; the words are in the [glossary](GUIDE.md#words) |
# | **It takes** | 90 minutes of reading, with the exercises; it runs in one to three minutes on one CPU core, without a GPU |
# | **It runs** | small networks, live; scores of SmolLM2-135M-Instruct before training, live; its finetunings are read from a record |

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
WIDTH, SEEDS = 512, 16  # of the small networks
STEPS = 40  # of training
ETA = 0.05  # step size: how far a step moves an output
MODEL = None  # to score live; None: SmolLM2-135M-Instruct, which the record is about

# %% tags=["nbval-ignore-output"]
import math

import numpy as np
import pandas as pd
from scipy import stats

from plop_nb import experiments as ex
from plop_nb import growth_plots as plots
from plop_nb.experiments import growth, mean_interval, power_fit

# %% [markdown]
# The record `growth.csv` holds eight short finetunings of SmolLM2-135M-Instruct: of all weights (*full*) or of adapters (*LoRA*),
# on short sums (*sums*) or on spelling words backward (*spelling*), with two seeds each. Every run has 210 maps: seven in each of
# 30 layers. Part 6 says more.

# %%
record = pd.read_csv(plop.data_file("results/growth.csv"), comment="#")
record = record.replace({"lora": "LoRA", "short_sums": "sums"})
record["change"] = 100 * (record["after"] / record["before"] - 1)
number = record.groupby(["method", "trained", "seed"]).ngroups
print(f"{number} runs, {len(record.groupby(['type', 'layer']))} maps in each, scored on {record['scored'].nunique()} tasks")

# %%
where = ["method", "trained", "scored", "type", "layer"]
maps = record.groupby(where, sort=False, as_index=False)[["before", "change"]].mean()  # over two seeds
maps["panel"] = maps["method"] + ", " + maps["trained"]
own = maps[maps["trained"] == maps["scored"]]
ranges = own.groupby("panel", sort=False)["change"].agg(["min", "median", "max"]).round(0).astype(int)
ranges.rename_axis("change of NFN, %:")

# %% tags=["nbval-ignore-output", "picture"]
title = "SmolLM2-135M-Instruct: no evidence that low scores tell which types gain NFN\n"
title += "(20 steps on sums or spelling, scored on held-out texts of the same task; means of two seeds)"
plots.plot_changes(own, list(own["panel"].unique()), limit=12, title=title);

# %% [markdown]
# Small dots are the 210 maps, large ones the means of the seven types (d for down, g for gate, u for up). If maps with a low
# score gained more, the cloud would slope down. (Triangles: maps that changed by more than 12 %.) Value, the lowest-scoring type,
# rose most in three of four settings, but the order of all seven types cannot be told from chance.
#
# | part | question | in the paper | minutes |
# |---|---|---|---|
# | 1 | Which assumptions can be dropped? | assumptions of Theorem 1 | 10 |
# | 2 | When does growth end? | the residual in Theorem 1 | 5 |
# | 3 | What does noise do? | alignment with the task | 5 |
# | 4 | And in networks that are not linear? | open question | 15 |
# | 5 | Does a rule in the labels matter? | alignment with the task | 5 |
# | 6 | Do low scores grow most in SmolLM2? | the rule of PLoP; "next check" of public notes on the paper | 15 |
#
# **Notation**, as in notebook 01:
#
# | symbol | what it is |
# |---|---|
# | displacement | $W_t z - W_0 z$, how far the features have moved; squared and per neuron: $\frac1n \Vert W_t z - W_0 z \Vert^2$ |
# | growth | $\frac1n \Vert W_t z \Vert^2$ minus its start: the squared displacement and the cross term |
# | change of NFN | its rise in percent, also called the gain |
# | $W_t$, $z$, $Wz$ | a linear map after $t$ steps, its input, its output (the *feature*) |
# | $v$, $f$, $f - y$ | the readout; the output of the network; the *residual*, how far $f$ is above $y$ |
# | $n$, $\eta$, $t$ | width (neurons), step size, number of steps |
# | $c$ | the mean absolute value of an input's entries |
# | $(\eta c t)^2$ | the growth of $\frac1n \lVert W z \rVert^2$ by Theorem 1, without its cross term |
# | $a = \eta c t$ | how far a neuron has moved after $t$ steps |

# %% [markdown]
# ## 1. Which assumptions can be dropped?
#
# **Question.** Theorem 1 assumes a linear network, one map, one datapoint, SignSGD with the step $\eta / n$, and a residual that
# keeps its sign. What happens without each of these?
#
# **Intuition.** A feature that moves along a straight line at a constant speed is $t$ times as far away after $t$ steps, and its
# squared displacement grows with $t^2$. So an assumption matters if the direction or the speed changes without it.
#
# **Predict.** Which of these keep the exponent 2: 16 datapoints instead of one; minibatches of 4 out of 64; all layers trained;
# Adam; plain SGD; a step that does not fall with the width; a target that is reached; labels that are noise?
#
# **What we do.** We train networks of 512 neurons with one change each. The data are toys:
#
# | what | how it is made |
# |---|---|
# | input | 8 random numbers, which a random first layer turns into $z$ (attention: four such inputs, the *tokens*) |
# | label | $+$ target or $-$ target (`target`, 2 unless said otherwise) |
# | *teacher* labels | the sign follows from the input by a rule: the side of a random plane |
# | *shuffled* labels | the teacher's, dealt out at random once |
# | *noise* labels | random signs, drawn anew in every step |
# | `growth(...)` | trains some seeds and returns one row for each seed and step: `growth`, `moved` (length of the displacement over $\sqrt n$), `loss` |

# %%
knobs = {
    "Theorem 1": {},
    "16 datapoints": {"samples": 16},
    "minibatches": {"samples": 64, "batch": 4},
    "all layers": {"train": "all"},
    "Adam": {"optimizer": "adam"},
    "SGD": {"optimizer": "sgd"},
    "constant step": {"rule": "standard"},
    "target reached": {"target": 0.5},
    "noise labels": {"labels": "fresh", "seeds": 256},  # random walks vary much
}

# %% tags=["nbval-ignore-output"]
runs = {}
for name, knob in knobs.items():
    runs[name] = growth(WIDTH, STEPS, eta=ETA, **({"seeds": SEEDS} | knob))

# %% [markdown]
# For each knob we look at the squared displacement. When is the target met: at which step is the mean loss least? Up to that
# step, what is the exponent (95 % percentile bootstrap: networks are resampled, the fit is repeated)? After that step an exponent
# would mix growth with standstill. And how large is the displacement after 10 and 40 steps, as a multiple of the theorem's?


# %%
def target_met(run):
    """The step after which the mean loss is no longer above 2 % of its start, else the last one."""
    loss = run.groupby("step")["loss"].mean()
    small = loss[loss < 0.02 * loss[0]]
    return small.index[0] if len(small) else loss.index[-1]


# %%
def squared(run):
    return run.assign(square=run["moved"] ** 2, pure=(ETA * run["c"] * run["step"]) ** 2)


def summary(run):
    run, met = squared(run), target_met(run)
    means = run.groupby("step")[["square", "pure"]].mean()
    times = means["square"] / means["pure"]
    fit = power_fit(run[run["step"].between(1, met)], "step", "square")
    return fit._asdict() | {"fitted to step": met, "multiple at 10": times[10], f"multiple at {STEPS}": times[STEPS]}


# %%
table = pd.DataFrame({name: summary(run) for name, run in runs.items()}).T
table.round(2)

# %% tags=["nbval-ignore-output"]
findings = ["slower, still 2", "slower still", "then stops", "nearly 2", "steps get shorter"]
findings += ["then stops", "then stops", "a random walk"]
panels = {f"{name}: {finding}": runs[name] for name, finding in zip(list(knobs)[1:], findings)}
met = {finding: target_met(run) for finding, run in panels.items() if finding.endswith("then stops")}
title = f"Features move quadratically only while steps keep direction and length\n(linear networks, {WIDTH} neurons; dashed: Theorem 1; bands: 95 % of networks; dotted: target met)"
plots.plot_knobs(panels, runs["Theorem 1"], met=met, title=title);

# %% [markdown]
# **What we saw.** *Several datapoints* keep the exponent. The displacement is shorter, since a step follows what the datapoints
# have in common, and each of them shares only a part of it. With *minibatches* the direction varies from step to step: the
# exponent is 1.8 over these 40 steps, since the common part beats the varying one only later. With *all layers trained* the other
# layers move too, which adds to the displacement from the first step, and the target is met early. A *constant step*, set for 64
# neurons, is eight times too large here and meets the target within a few steps. *Adam* and *SGD* slow down as the residual
# shrinks (part 2). *Noise labels* are part 3.
#
# Does the direction stay? One number shows it, the *straightness*: $\|W_t z - W_0 z\|$ after 40 steps, over 40 times the same
# after one step. It is 1 for a straight line at constant speed, and about $1 / \sqrt{40} = 0.16$ for a random walk (a little
# less, as we take the mean and not the root mean square).

# %%
straightness = {}
for name in ("Theorem 1", "16 datapoints", "minibatches", "noise labels"):
    moved = runs[name].groupby("step")["moved"].mean()
    straightness[name] = moved[STEPS] / (STEPS * moved[1])
pd.Series(straightness).round(2).to_frame("straightness")

# %% [markdown]
# | without this assumption | still quadratic? | why |
# |---|---|---|
# | one datapoint | yes, slower | steps share a direction |
# | full batches | nearly (1.8) | the common part of the steps adds up, the varying part does not |
# | one trained map | until the target is met | the other layers move, too |
# | step $\eta / n$ | until the target is met | steps are longer, in the same direction |
# | SignSGD | Adam nearly, SGD no | same direction, but steps get shorter |
# | a residual that keeps its sign | only until the target is met | steps go back and forth |
# | labels that stay | no | random directions |
#
# **Recap.** Width, muP, one map and one datapoint set the scale. The exponent 2 needs a direction that stays and steps of equal
# length.
#
# ## 2. Growth ends with the residual
#
# **Question.** When does growth stop, and why do Adam and SGD fall behind?
#
# **Intuition.** $f = v^\top W z$ moves by $\eta c \|v\|_1 \approx \frac{2}{\pi} \eta$ in each step, since both $c$ and $\|v\|_1$
# are about $\sqrt{2 / \pi}$. A target at distance $|y - f_0| \approx |y|$ is met after about $|y| \pi / (2 \eta)$ steps. From
# then on the signs flip from step to step.
#
# **Predict.** For $|y| = 0.5$ and $\eta = 0.05$: at which step?

# %%
expected = 0.5 / (ETA * 2 / math.pi)
run = runs["target reached"]
reached = mean_interval(run.loc[run.groupby("seed")["loss"].idxmin(), "step"].to_numpy())
print(f"expected at step {expected:.1f}; the loss is least at step {reached.mean:.0f}, "
      f"95 % interval over networks {reached.low:.0f} to {reached.high:.0f}")  # fmt: skip

# %% [markdown]
# *Adam* divides the gradient by the root of its mean square. While gradients keep their size that is SignSGD, but here they
# shrink with the residual. A step of *SGD* is proportional to the residual. So put the target out of Adam's reach, and make the
# steps of SGD so small that the residual hardly changes: then both should have the exponent 2 again.

# %%
far = growth(WIDTH, STEPS, eta=ETA, optimizer="adam", target=50, seeds=SEEDS)
slow = growth(WIDTH, STEPS, eta=ETA / 50, optimizer="sgd", seeds=SEEDS)
back = {"Adam": summary(far)["exponent"], "SGD": summary(slow)["exponent"]}
for name, exponent in back.items():
    print(f"{name}: exponent {table.loc[name, 'exponent']:.1f}, with a lasting residual {exponent:.1f}")

# %% [markdown]
# **What we saw.** Growth stops when the residual changes sign, within a step or two of the computed one. SGD and Adam slow down
# already as it shrinks. With a residual that lasts, both have the exponent 2 again.
#
# **Recap.** The sign of the residual ends the growth, and for Adam and SGD its size matters before. Growth is a matter of how
# much is left to learn.
#
# ## 3. Noise labels: a random walk
#
# **Question.** What if the labels mean nothing, and are drawn anew in every step?
#
# **Intuition.** Then each step goes forward or backward at random. After $t$ such steps one is $\sqrt t$ steps away, so the
# squared displacement grows with $t$ instead of $t^2$: $\eta^2 c^2\, t$.
#
# **What we do.** Part 1 has trained 256 networks on noise, because random walks vary much.

# %%
noise = runs["noise labels"].assign(square=runs["noise labels"]["moved"] ** 2)
fit = power_fit(noise.query("step >= 10"), "step", "square")
walked = noise.query("step == @STEPS")["square"].mean() / (ETA**2 * 2 / math.pi * STEPS)
print(f"exponent {fit.exponent:.1f}, 95 % interval over networks {fit.low:.1f} to {fit.high:.1f}; "
      f"squared displacement after {STEPS} steps: {walked:.1f} times that of the formula")

# %% [markdown]
# **Recap.** The exponent 2 is the mark of a gradient that keeps asking for the same thing. This is what "alignment" means here.
#
# ## 4. Networks that are not linear
#
# **Question.** The paper leaves open what happens in networks that are not linear. Do they grow quadratically, too?
#
# **Intuition.** At first, yes: over a short way a smooth network is nearly linear, and a ReLU is linear until a neuron switches.
# Later some neurons come to rest, and in deeper networks the inputs of a map grow as well.
#
# **Predict.** A ReLU sets negative values to 0. Half of its neurons are off at the start and get no gradient. Where will its
# curve start and where will it end, compared with the linear one?
#
# **What we do.** One datapoint, the same steps, and three more networks of 256 neurons. The attention has one head and four
# tokens, and four maps to watch. We draw the squared displacement as a multiple of the theorem's: a flat line is quadratic.

# %% tags=["nbval-ignore-output"]
networks = {}
for kind in ("linear", "relu", "gelu", "attention"):
    run = growth(WIDTH // 2, STEPS, eta=ETA, network=kind, seeds=SEEDS, target=3)
    for module, of_map in run.assign(square=run["moved"] ** 2).groupby("module", sort=False):
        networks[kind if kind != "attention" else f"attention {module}"] = of_map

# %%
def quadratic(steps, eta=ETA):
    """The theorem's growth in an infinitely wide network."""
    return 2 / math.pi * (eta * steps) ** 2


# %%
multiples = pd.DataFrame({name: run.groupby("step")["square"].mean() for name, run in networks.items()})
multiples = multiples.drop(index=0).div(quadratic(np.arange(1, STEPS + 1)), axis=0)
multiples.loc[[1, 5, 20, STEPS]].round(1)

# %% tags=["nbval-ignore-output"]
title = "Flat is quadratic: ReLU and GeLU bend down, the attention's output speeds up\n(256 neurons, one datapoint, SignSGD, target 3; means over 16 networks)"
plots.plot_multiples(multiples, title=title);

# %%
def exponents(run):
    early = power_fit(run.query("1 <= step <= 5"), "step", "square")
    late = power_fit(run.query("step >= 20"), "step", "square")
    return {"early": early.exponent, "late": late.exponent, "late, low": late.low, "late, high": late.high}


# %%
curved = pd.DataFrame({name: exponents(run) for name, run in networks.items()}).T
curved.round(1)

# %% [markdown]
# **What we saw.** Early growth is close to quadratic in every map (steps 1 to 5; query and key fall a little short of 2). Later
# the networks part. The curves of ReLU and GeLU can be worked out. The wiggles at the end, from about step 35, are networks that
# have met their target of 3.
#
# **ReLU.** Let $h = |W_0 z|$ be half-normal, and $a = \eta c t$. A half of the neurons is off and never moves. A quarter is
# pushed up for ever. A quarter is pushed down until it switches off, and stays near 0. So the squared displacement is $\frac14
# a^2 + \frac14 E \min(a, h)^2$: the curve goes from $\frac12$ towards $\frac14$. The growth has a mixed term besides:
#
# $$\tfrac14 E\big[(h+a)^2 - h^2\big] + \tfrac14 E\big[\max(h-a, 0)^2 - h^2\big]$$
#
# For small $a$ that is $\frac12 a^2$, half the linear network's. For large $a$ it is $\frac14 a^2 + 0.40\, a - 0.25$: the
# quadratic part halves once more, because the neurons that were pushed down are done.

# %%
h = math.sqrt(2) * torch.erfinv((torch.arange(2000) + 0.5) / 2000)  # quantiles of a half-normal number


def relu_growth(a):
    return ((h + a) ** 2 + (h - a).clamp(min=0) ** 2 - 2 * h**2).mean().item() / 4


# %%
measured = networks["relu"].groupby("step")["growth"].mean()
for step in (10, 20, STEPS):
    formula = relu_growth(math.sqrt(quadratic(step)))
    print(f"step {step}: measured {measured[step]:.1f}, formula {formula:.1f}")

# %% [markdown]
# <details><summary>The same for GeLU</summary>
#
# GeLU has a gradient everywhere, so it starts as fast as the linear network. The half of the neurons whose output is to fall
# slides into the minimum of GeLU, at
# $-0.75$, and stays there. The squared displacement is $\frac12 a^2 + \frac12 E \min(a, |x + 0.75|)^2$, with a normal $x$.
# </details>

# %%
normal = torch.cat([h, -h])


def gelu_displacement(a):
    return (a**2 + (normal + 0.7518).abs().clamp(max=a).square().mean().item()) / 2


# %%
measured = networks["gelu"].groupby("step")["square"].mean()
for step in (10, 20, STEPS):
    formula = gelu_displacement(math.sqrt(quadratic(step)))
    print(f"step {step}: measured {measured[step]:.1f}, formula {formula:.1f}")

# %% [markdown]
# **Attention.** The output map reads features that grow themselves, and outgrows the quadratic. Query and key have a far smaller
# gradient. Plain SGD shows it: it hardly moves them. SignSGD forgets how small a gradient is:

# %%
plain = growth(WIDTH // 2, 5, eta=ETA, network="attention", optimizer="sgd", seeds=SEEDS)
lengths = pd.DataFrame({"SGD": plain.query("step == 5").groupby("module")["moved"].mean()})
lengths["SignSGD"] = {name: networks[f"attention {name}"].query("step == 5")["moved"].mean() for name in "kqvo"}
(100 * lengths / lengths.loc["o"]).round(0).astype(int).add_suffix(", % of o")

# %% [markdown]
# **Recap.** All start with an exponent near 2, at different speeds. Neurons that come to rest bend growth down, growing inputs
# bend it up. The size of the gradient, which tells maps apart, is lost in the sign.
#
# ## 5. Does a rule in the labels matter?
#
# **Question.** Does growth show that labels *mean* something? Take labels that follow from the data by a rule (*teacher*), and
# the same labels dealt out at random once (*shuffled*).
#
# **Intuition.** With minibatches, shuffled labels ask for something else in each batch, while a rule asks for the same again.
# With all data in each step, shuffled labels are a fixed direction, too.
#
# **Predict.** In which of the two cases do teacher labels grow features more?
#
# **What we do.** 32 datapoints, 60 steps of SignSGD, 128 neurons. We compare pairs of networks that differ in the labels only.
# There are ten comparisons, so each interval is one of 99.5 %: ten of them hold together with 95 % (Bonferroni; Student's t over
# 16 pairs).

# %%
def ends(network, batch, labels):
    """Growth after 60 steps, maps x seeds."""
    data = {"samples": 32, "batch": batch, "labels": labels, "target": 1.0}
    run = growth(128, 60, eta=ETA, network=network, seeds=SEEDS, **data)
    return run.query("step == 60").pivot(index="module", columns="seed", values="growth")


# %% tags=["nbval-ignore-output"]
pairs = {}
for network, batch in [("linear", 4), ("attention", 4), ("linear", 32), ("attention", 32)]:
    difference = ends(network, batch, "teacher") - ends(network, batch, "shuffled")
    for module, values in difference.iterrows():
        name = network if network == "linear" else f"attention {module}"
        pairs[f"{name}, batches of {batch}"] = mean_interval(values.to_numpy(), level=0.995)

# %%
more = pd.DataFrame({name: interval._asdict() for name, interval in pairs.items()}).T.sort_index(ascending=False)
more.round(2)

# %% tags=["nbval-ignore-output"]
what = "growth with teacher labels minus growth with shuffled ones\n(orange: batches of 4; teal: all 32 datapoints in each step)"
title = "With minibatches, labels that follow a rule grow linear, v and o features more\n(SignSGD, 32 datapoints, 128 neurons, 60 steps; 99.5 % intervals over 16 pairs)"
colors = [plots.THEORY["color"] if name.endswith(" 4") else plots.MEASURED for name in more.index]
plots.plot_intervals(more.assign(color=colors), what=what, title=title);

# %% [markdown]
# **What we saw.** With minibatches the linear map and the attention's value and output maps grow more on labels that follow a
# rule. For query and key we see no difference. With full batches query and key even grow more on *shuffled* labels, while the
# linear map prefers the teacher there, too (0.4). So the repeating of a request over batches, our intuition, is not all of it.
# Perhaps datapoints share more, too, when a rule sets their labels. Growth shows a *consistent* gradient, which is not yet a
# meaningful task.
#
# **Recap.** With minibatches, a rule in the labels makes linear, value and output features grow more. With full batches the
# picture is mixed, and some of these runs may have met their target before the last step.

# %% [markdown]
# ## 6. A real model: do low scores grow most?
#
# **Question.** PLoP puts adapters on the types with the lowest NFN, because these are supposed to benefit most. Public notes on
# the paper name a test as a "next check": follow the norms during actual LoRA finetuning. We ask: does the score *before*
# training predict the *change* of the score? That is our way to make "aligned little, so most to gain" measurable. (A low score
# could also mean that a map resists: then it would gain least.)
#
# **Intuition.** If maps with low scores catch up, low scores go with large changes: a negative rank correlation would support
# this. One near zero or above it would speak against it. (A *rank correlation*, Spearman's, compares two orders: 1 for the same,
# -1 for opposite, about 0 for unrelated ones.) A **control** says whether the trained task made the difference: score the same
# trained model on texts of *another* task.
#
# **What we do.** The record has SmolLM2-135M-Instruct after 20 steps of batch 4 with Adam, on `short_sums` ("97 + 97 =") or
# `spelling` (a word backward). All weights at rate 5e-5, or adapters of rank 16 on all maps at rate 1e-3, with two seeds (other
# examples, other starts of the adapters). NFN is the mean over 32 held-out examples with their answers, of both tasks. First the
# scores before training, live:

# %% tags=["nbval-ignore-output"]
model, tokenizer = plop.load_model(MODEL, dtype="float32", progress=False)
scores = {}
for name, task in {"sums": "short_sums", "spelling": "spelling"}.items():
    examples = ex.load_task(task, train=1, validation=1, test=32).test
    texts = [example["prompt"] + example["completion"] for example in examples]
    scores[name] = plop.nfn_scores(model, texts, tokenizer, progress=False).groupby("type")["nfn"].mean()

# %%
scores = pd.DataFrame(scores).sort_values("sums")
recorded = maps.groupby(["type", "scored"])["before"].mean().unstack()
scores.round(2)

# %% [markdown]
# The record has all 210 maps, made in the same way. Now the losses (nats per token of the answer, on the held-out examples):

# %%
before = record.groupby("scored")["loss_before"].first()
losses = record.groupby(["method", "trained", "seed", "scored"])["loss_after"].first().unstack("scored")
print("before:", before.round(1).to_dict())
losses.add_prefix("after, on ").round(1)

# %% [markdown]
# The loss falls in all runs, also on the *other* task: perhaps because both ask for a short answer and then the end. On spelling
# the model starts worse than uniform guessing (10.8 nats), and perhaps learns the answer's format in the main. So the control is
# not a task that training left alone. It is one that training was not about.
#
# **Predict.** Guess the rank correlation of score and change over the seven types. Then read on.
#
# **Types.** With seven types there are 5,040 orders, so the p-value can be exact: the share of all orders that correlate at least
# as strongly.


# %%
def over_types(run):
    """Rank correlation of score and change over types, and its exact p-value."""
    means = run.groupby("type")[["before", "change"]].mean().rank()

    def correlation(order):
        return np.corrcoef(order, means["change"])[0, 1]

    options = {"permutation_type": "pairings", "n_resamples": np.inf}
    test = stats.permutation_test((means["before"],), correlation, **options)
    return {"types": test.statistic, "p": test.pvalue}


# %%
found = {}
for name, run in maps.groupby(["method", "trained", "scored"]):
    found[name] = over_types(run)

# %% [markdown]
# **Layers.** The 210 maps are not 210 independent observations: the maps of a layer share their inputs, and the maps of a type
# their role. So we take the rank correlation *within* each layer (seven maps), and then the mean over the 30 layers with its
# interval (95 %, Student's t; layers that are neighbours are alike, so the true interval is somewhat wider).


# %%
def rank_correlation(rows):
    return stats.spearmanr(rows["before"], rows["change"]).statistic


# %%
within = {}
for name, run in maps.groupby(["method", "trained", "scored"]):
    within[name] = run.groupby("layer")[["before", "change"]].apply(rank_correlation)
    found[name] |= mean_interval(within[name].to_numpy())._asdict()

# %%
found = pd.DataFrame(found).T.rename_axis(["method", "trained", "scored"])
found = found.rename(columns={"mean": "within layers"})
is_own = found.index.get_level_values("trained") == found.index.get_level_values("scored")
found.round(2)

# %% [markdown]
# **What we saw.** On the task that was trained, the rank correlation over types is between -0.5 and -0.2. That is the sign that
# our reading of PLoP supposes, but it cannot be told from zero (p 0.3 and more). With only seven types, nothing weaker than 0.79
# could have been. Within layers it is 0.03 to 0.07, and every interval contains zero. So for these runs seven types are too few
# to say whether the score before training tells which types gain.
#
# **The control** has positive correlations within layers, 0.2 to 0.4, and all four intervals (95 % each, not corrected for four)
# lie above zero: on texts of the other task, maps with a *high* score rose more. Does the score go with the *extra* change on the
# own task? We correlate it with the change on the own task minus that on the other:

# %%
wide = maps.pivot(index=["method", "trained", "layer", "type"], columns="scored", values="change")
extra = own.set_index(["method", "trained", "layer", "type"])[["before"]].join(wide)
sums_more = extra["sums"] - extra["spelling"]
is_sums = extra.index.get_level_values("trained") == "sums"
extra["change"] = sums_more.where(is_sums, -sums_more)

# %%
gaps = {}
for name, run in extra.groupby(["method", "trained"]):
    of_layers = run.groupby("layer")[["before", "change"]].apply(rank_correlation)
    gaps[name] = mean_interval(of_layers.to_numpy(), level=0.9875)._asdict()  # four at once
pd.DataFrame(gaps).T.rename_axis(["method", "trained"]).round(2)

# %% [markdown]
# After full finetuning the correlations are 0.0 and -0.1 and cannot be told from zero. After LoRA both are -0.2, and their
# intervals lie below zero: there, the lower a map's score, the larger its change on the own texts minus that on the others. We
# chose this comparison after seeing the table, on two tasks, with a control that training changed too; treat it as a hypothesis.
# (98.75 % for each interval gives 95 % for all four, Bonferroni.)
#
# **Do the changes repeat?** If another seed, another method or another task ranks the 210 changes alike, then changes belong to
# the model. We correlate them, with a bootstrap over layers: 1,000 times we draw 30 layers with replacement and correlate again
# (95 %).

# %%
table = record.pivot_table(index="type", columns=["method", "trained", "scored", "seed", "layer"], values="change")


# %%
def agreement(one, other, draws=1000):
    x, y = table[one].to_numpy(), table[other].to_numpy()  # types x layers
    picks = np.random.default_rng(0).integers(x.shape[1], size=(draws, x.shape[1]))
    again = [stats.spearmanr(x[:, pick].ravel(), y[:, pick].ravel()).statistic for pick in picks]
    low, high = np.percentile(again, [2.5, 97.5])
    return {"mean": stats.spearmanr(x.ravel(), y.ravel()).statistic, "low": low, "high": high}


# %% tags=["nbval-ignore-output"]
alike = {}
for task, other in [("sums", "spelling"), ("spelling", "sums")]:
    base = ("full", task, task, 0)
    others = {"other seed": ("full", task, task, 1), "LoRA instead of full": ("LoRA", task, task, 0)}
    others |= {"same run, other texts": ("full", task, other, 0), "other task": ("full", other, other, 0)}
    for what, run in others.items():
        alike[f"{task}: {what}"] = agreement(base, run)
alike = pd.DataFrame(alike).T.drop(index="spelling: other task")  # the same pair as for sums

# %% tags=["nbval-ignore-output"]
what = "rank correlation of the changes of 210 maps"
title = "On the same examples, LoRA and full finetuning change largely the same maps\n(SmolLM2-135M-Instruct, 20 steps, against full finetuning with seed 0; bars: 95 %, layers resampled)"
plots.plot_intervals(alike, what=what, title=title);

# %%
alike["mean"].round(2).to_frame("rank correlation")

# %% [markdown]
# **What we saw.** LoRA and full finetuning change largely the same maps, when trained on the same examples (0.7 and 0.9), more so
# than two tasks do (0.4). On spelling another seed, that is, other examples, gives nearly the same ranking (0.9): these changes
# belong to the task. On sums it gives no more than another task does (0.4), so that 20 steps leave much to chance there.
#
# **Single types.** So far we have compared types. Does the score tell which *layers* of a type gain? The rank correlation within
# each type, over its 30 layers:

# %%
tests = {}
for (panel, name), run in own.groupby(["panel", "type"], sort=False):
    tests[name, panel] = stats.spearmanr(run["before"], run["change"])
correlations = pd.Series({key: test.statistic for key, test in tests.items()}).unstack()
correlations.round(2)

# %%
clear = [" on ".join(key) for key, test in tests.items() if test.pvalue < 0.05 / len(tests)]
print(f"clear enough for {len(tests)} tests (Bonferroni):", "; ".join(clear))

# %% [markdown]
# Over types the score says little. On spelling it does say something about which layers of a type gain (v, o and up: -0.45 to
# -0.75). Among value maps, those of layers with a low score gain most in all four cases (means over two seeds), in three of them
# clearly enough for 28 tests. After full finetuning on spelling this holds for output and up maps as well, and no type shows the
# opposite as clearly. (The test takes layers as independent, which neighbours are not.) Take it as a lead. Both numbers contain
# `before`, so chance errors in it alone make the correlation negative. The same texts before and after should keep these errors
# small. Exercise 3 asks whether it survives another measure of change.
#
# **Feature norms.** The paper speaks of growing feature norms. Do they grow in these 20 steps, and does NFN?

# %%
record["norm change"] = 100 * (record["norm_after"] / record["norm_before"] - 1)
trained = record[record["trained"] == record["scored"]].groupby(["method", "trained", "seed"])
rising = trained[["norm change", "change"]].agg(lambda values: 100 * (values > 0).mean())
rising.columns = ["norm rises, % of maps", "NFN rises, % of maps"]
rising.round(0).astype(int)

# %% [markdown]
# Feature norms rise in most maps after training on spelling, and in about half of them after training on sums with one of the
# seeds. NFN rises in a half to two thirds. In output maps it falls on average in all four cases (o in the first picture). In a
# whole network all maps are trained at once, inputs change, and nothing says that the residual keeps its sign.
#
# **Recap.** In SmolLM2-135M-Instruct we find no evidence that the score before training tells which types gain NFN in 20 steps.
# Among value maps, low-scoring layers gained more in all four settings, clearly in three: a lead. On the same examples, LoRA
# moves largely the same maps as full finetuning.

# %% [markdown]
# ## Exercises
#
# ### 1. When does it stop? (5 minutes)
#
# For $|y| = 1$, $\eta = 0.1$: after how many steps does growth end? *Hint:* part 2.

# %%
last_step = None  # your turn: a number of steps


# %%
def check_last_step(number):
    if number is None:
        return "not yet filled in"
    run = growth(512, 40, eta=0.1, target=1.0, seeds=16)
    reached = run.loc[run.groupby("seed")["loss"].idxmin(), "step"].mean()
    assert abs(number - reached) < 1.5, f"the loss is least at step {reached:.0f}"
    return f"you say {number:.1f}, the loss is least at step {reached:.0f}"


check_last_step(last_step)

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution.
check_last_step(1 * math.pi / (2 * 0.1))

# %% [markdown]
# ### 2. Half noise (15 minutes)
#
# A share $p$ of the steps goes the wrong way, at random, and the others the right way. How large is the expected squared
# displacement after $t$ steps, as a multiple of that of one step? Write a function of $p$ and $t$. *Hint:* write the displacement
# as a sum of independent signs, with mean $1 - 2p$.

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
# Solution: variance plus squared mean. It is t^2 at p = 0 and t at p = 1/2.
def displacement_of_signs(p, t):
    return t * (1 - (1 - 2 * p) ** 2) + (t * (1 - 2 * p)) ** 2


check_displacement(displacement_of_signs)

# %% [markdown]
# ### 3. Is it the measure? (15 minutes)
#
# Part 6 measures the change in percent. If all maps changed by the same *amount*, low scores would change most in percent. So
# take the amount, `after` minus `before`, of the value maps instead. Fill in its rank correlation with `before` over the 30
# layers, for full finetuning on spelling scored on spelling (mean over the two seeds).

# %%
correlation_of_amount = None  # your turn: a number between -1 and 1


# %%
def check_amount(number):
    if number is None:
        return "not yet filled in"
    values = record.query("type == 'v_proj' and method == 'full' and trained == scored == 'spelling'")
    means = values.groupby("layer")[["before", "after"]].mean()
    expected = stats.spearmanr(means["before"], means["after"] - means["before"]).statistic
    assert abs(number - expected) < 0.005, "average the two seeds first, then take the difference"
    return f"rank correlation {expected:.1f} with the amount of change"


check_amount(correlation_of_amount)

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution.
rows = record.query("type == 'v_proj' and method == 'full' and trained == scored == 'spelling'")
means = rows.groupby("layer")[["before", "after"]].mean()
check_amount(means["before"].corr(means["after"] - means["before"], method="spearman"))

# %% [markdown]
# ## Questions for discussion
#
# 1. The paper assumes that growth carries over from linear networks to transformers. Which of the parts above would you show to
#    someone who doubts it, and which to someone who takes it for granted?
# 2. PLoP averages scores over layers, and the authors had inconsistent results when they placed single layers. What do the
#    correlations within a type say about that?
# 3. A gain in NFN is not a gain in loss. How would you test whether maps whose NFN rises are the maps that lower the loss?
#
# ## Three things to remember
#
# 1. **The square needs a direction that stays and steps of equal length.** Growth ends with the residual, and on noise it is a
#    random walk.
# 2. **Networks that are not linear all start with an exponent near 2, at different speeds, and then part**: neurons that come to
#    rest bend growth down, growing inputs bend it up.
# 3. **In SmolLM2-135M-Instruct, value, the lowest-scoring type, rose most in three of four settings**, but the order of all seven
#    types cannot be told from chance (with seven types only $|\rho| \ge 0.79$ could have been).
#
# **Not established.** One small model, two toy tasks, 20 steps, one rate for each method, two seeds. That a rise of NFN is good
# for anything was not asked. Notebook 05 measures what counts, the loss.
#
# **Where next.** Notebook 02 asks how many texts a score needs, notebook 04 what the score measures.
