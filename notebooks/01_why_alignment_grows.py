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
# # Why does training raise the score?
#
# **The question.** PLoP (*Precise LoRA Placement*; [Hayou, Ghosh, Yu](https://arxiv.org/abs/2506.20629)) scores a linear map $W$
# on an input $z$ by its Normalized Feature Norm (NFN): the length of the output $Wz$, divided by the length that noise would get.
# PLoP reads it as a sign of how far training has aligned $W$ with its inputs. Why would training raise NFN, how fast, and how
# far?
#
# **The answer.** Take the smallest setting that shows it: a wide *linear* network $f = v^\top W z$ (no activation functions) with
# a fixed readout $v$. Only $W$ is trained, on one example, by steps that move every weight equally far, up or down. Every step
# pushes the output $Wz$ the same way, so after $t$ steps it has moved $t$ times as far as after one. The push is nearly at a
# right angle to the output before training. So after the first steps, what is added to the output's squared length is nearly the
# square of the distance moved, and grows like $t^2$. The length of the weights, $\|W\|_F$ (the root of the sum of all squared
# weights), hardly changes. So NFN rises on this example, and not on unrelated inputs, until the network gives the right answer.
# This is about one map. It does not explain why the maps of a language model have different scores.
#
# | | |
# |---|---|
# | **You need** | notebook 00; matrices, gradients, a standard deviation; other words are in the [glossary](GUIDE.md#words) |
# | **It takes** | 60 minutes to read, and 15 more for the exercises; it runs in a minute or two on one CPU core, without a GPU |
# | **It runs** | small networks with 64 to 4096 neurons; no language model |

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
WIDTHS = (64, 128, 256, 512, 1024, 2048, 4096)  # neurons of the networks
SEEDS = 48  # networks of each width
STEPS = 40  # of training; keep it: cells below look at step 40
ETA = 0.05  # step size: how far a step moves an output, roughly
Y = 2.0  # the right answer, or minus this in half of the networks

# %%
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from plop_nb import growth_plots as plots
from plop_nb.experiments import growth, mean_interval, power_fit
from plop_nb.palette import styled
from plop_nb.schematics import draw_alignment, draw_pushes
from plop_nb.theory_plots import plot_alignment, plot_control, wide_theory

# %% [markdown]
# The next cell follows networks through training, by a short cut that part 4 derives and checks against gradients.

# %%
runs = {n: growth(n, 2 * STEPS, eta=ETA, target=Y, seeds=SEEDS) for n in WIDTHS}
networks = pd.concat(runs, names=["width"]).reset_index("width")
print(f"{len(runs)} widths, {SEEDS} networks of each, {2 * STEPS} steps")

# %% tags=["nbval-ignore-output", "picture"]
widest = networks[networks["width"] == WIDTHS[-1]]
theory = wide_theory(2 * STEPS, eta=ETA, y=Y)
end = theory.idxmax()  # the first step at its highest value
marks = {f"theory: right answer at step {end}": end}
title = f"NFN rises until the answer is right; the weights hardly get longer\n({SEEDS} linear networks, {WIDTHS[-1]} neurons, SignSGD, η = {ETA}; bands: 95 % of them)"
plot_alignment(widest, theory, marks=marks, title=title);

# %% [markdown]
# The blue line is the mean NFN of the networks, each scored on the example that it is trained on. About half of them have to
# learn $y = -2$, so that nothing hangs on one sign. The dashed line on top of it is the theory for a network of unlimited width,
# which part 6 derives from Theorem 1 of the paper. The grey line is the *baseline* $\|W\|_F / \sqrt n$; NFN divides by it times
# $\|z\|$. Before step 60 the band is too narrow to be seen: single networks lie only a little above or below the mean (part 5).
# Each network reaches the right answer within a few steps of 63. The band is wider there, mostly because the networks stop at
# different values (part 6), and jagged because $f$ jumps back and forth around the right answer. *SignSGD* is training that uses
# only the sign of each gradient.
#
# | part | question | in the paper | minutes |
# |---|---|---|---|
# | | first screen and notation | | 3 |
# | 1 | What does the score compare? | Section 3: NFN | 8 |
# | 2 | Why not look at the length of $Wz$ alone? | Section 2: feature norms; Section 3: normalisation | 4 |
# | 3 | How far may a step move a weight? | Section 2: muP, a rule for this | 9 |
# | 4 | Why does the output grow with $t^2$? | Theorem 1 and its proof | 16 |
# | 5 | How exact is that at a finite width? | Theorem 1: its random term | 6 |
# | 6 | Why does NFN rise, and how far? | from Theorem 1 to NFN; not in the theorem | 9 |
# | 7 | What has this to do with adapters? | Section 2: LoRA | 5 |
#
# **Notation**, to come back to; other symbols are explained where they appear.
#
# | symbol | what it is |
# |---|---|
# | $n$ | the width: how many inputs and outputs the map has (*neurons*) |
# | $W_0$, $W_t$ | the map before training and after $t$ steps, an $n \times n$ matrix |
# | $z$, $Wz$ | the input, $n$ numbers; the output, called the *feature* in the paper, $n$ numbers |
# | $v$, $f = v^\top W z$ | the readout, $n$ fixed numbers; what the network answers, one number |
# | $y$, $f - y$ | the right answer; the *residual*, how far $f$ is above it |
# | $\|z\|$, $\|W\|_F$ | root of the sum of squares; the same for the entries of a matrix (Frobenius norm) |
# | $\eta$, $t$ | the step size (part 3); the number of steps |

# %% [markdown]
# ## 1. What the score compares
#
# **Question.** A map makes an input longer or shorter. Against what do we compare?
#
# **Intuition.** A map turns the circle of all inputs of length 1 into an ellipse. An input that $W$ sends to the long axis is
# stretched more than others. So we divide by what happens to a random input of the same length.
#
# $$\mathrm{NFN}(W, z) = \frac{\|W z\|}{\|W \tilde z\|}, \qquad \|\tilde z\| = \|z\|$$
#
# Here $\tilde z$ is *noise*: a random vector with normal entries, rescaled to the length of $z$. For $\|W \tilde z\|$ we take the
# root mean square over all directions. It is $\|z\|$ times the *baseline* $\|W\|_F / \sqrt n$, the value for inputs of length 1
# (shown below). NFN above 1 is called *alignment*: $z$ lies along directions that $W$ stretches more than average.

# %% tags=["nbval-ignore-output"]
toy, z_toy = torch.tensor([[1.8, 0.6], [0.2, 0.7]]), torch.tensor([0.8, 0.6])
draw_alignment(weight=toy.numpy(), example=z_toy.numpy());

# %% [markdown]
# **Predict.** Our input is $z = (0.8, 0.6)$, the black arrow on the left; its output is the black arrow on the right. Compare it
# with the dashed circle, and write down its NFN, to one digit after the point.
#
# **What we do.** First the baseline: we try 1,000 inputs all around the circle. Then the formula: a random direction $u$ of
# length 1 prefers no axis, so the mean of $u u^\top$ is $I / n$. So the mean of $\|Wu\|^2$ is $\mathrm{trace}(W \tfrac{I}{n}
# W^\top) =
# \|W\|_F^2 / n$.

# %%
angle = torch.arange(1000) * 2 * math.pi / 1000
circle = torch.stack([angle.cos(), angle.sin()])
baseline = (toy @ circle).norm(dim=0).square().mean().sqrt()
print(f"baseline: {baseline:.4f} over the circle, {toy.norm() / math.sqrt(2):.4f} by the formula")

# %% [markdown]
# Now the NFN of our input, by hand and with the package. `record_norms` scores every linear map that a forward pass uses.

# %%
by_hand = ((toy @ z_toy).norm() / (z_toy.norm() * baseline)).item()
print(f"NFN by hand: {(toy @ z_toy).norm():.4f} / {baseline:.4f} = {by_hand:.4f}")
print(f"NFN of x₁, the input that is stretched most: {(toy @ circle).norm(dim=0).max() / baseline:.2f}")

# %%
layer = torch.nn.Linear(2, 2, bias=False)
layer.weight.data = toy
with plop.record_norms(layer) as record:
    layer(z_toy[None, None])  # one text of one token (a piece of a word)
print(f"NFN by plop_nb: {record.frame()['nfn'].item():.4f}")

# %% [markdown]
# **What we saw.** $W$ sends the input near the long axis, and NFN is 1.32. No input of this map can score more than 1.35, the NFN
# of $x_1$.
#
# The paper draws one noise vector for each token, and divides by the length of the output that $W$ gives it. We divide by the
# root mean square over all noise vectors (notebook 02, section 7, compares the two).
#
# **Recap.** NFN is the length of an output over that of noise. Above 1: the input lies along directions that $W$ stretches more
# than average; below 1: less.
#
# ## 2. Why divide at all?
#
# **Question.** Suppose $\|W\|_F$ doubles in training, and $\|W z\|$ stays the same. Is $z$ now aligned with $W$ better, or worse?
#
# **Predict.** Does NFN double, stay or halve?
#
# **What we do.** We build such a change. The matrix $a b^\top$ reads only the direction $b$, and we choose $b$ at a right angle
# to $z$. So it adds nothing to $Wz$. We choose $a$ of length 1, at a right angle to $Wb$. Because $a^\top W b = 0$, $W$ and
# $a b^\top$, read as lists of four numbers, are at a right angle, too, and their squared norms add up. So $\sqrt3\,\|W\|_F$ times $a b^\top$ doubles $\|W\|_F$.

# %%
def turned(x):
    """A vector of two numbers, turned by a right angle."""
    return torch.stack([-x[1], x[0]])


b = turned(z_toy)
a = turned(toy @ b) / (toy @ b).norm()

# %%
toy2 = toy + math.sqrt(3) * toy.norm() * torch.outer(a, b)
print(f"weights: {toy.norm():.2f} to {toy2.norm():.2f}")
print(f"output:  {(toy @ z_toy).norm():.2f} to {(toy2 @ z_toy).norm():.2f}")

# %%
def nfn(weight, z):
    return ((weight @ z).norm() / (z.norm() * weight.norm() / math.sqrt(len(z)))).item()


for name, weight in {"W": toy, "W + √3 ‖W‖ a b'": toy2, "2 W": 2 * toy}.items():
    print(f"{name:16} NFN {nfn(weight, z_toy):.3f}")

# %% [markdown]
# **What we saw.** NFN halves, although the output keeps its length: the new $W$ stretches random inputs twice as much as before,
# but $z$ no more. If instead all of $W$ is doubled, the output is twice as long and NFN stays.
#
# **Recap.** An output is longer if the weights are larger, if the input is longer, or if the two are better aligned. NFN keeps
# only the last.
#
# ## 3. How far may a step move a weight?
#
# **Question.** We want to compare networks of different widths. How far must a step move each weight, so that all their outputs
# move equally far?
#
# SignSGD changes every entry of $W$ by the same $s$, up or down. Adam, the usual optimizer of language models, does nearly that
# while gradients keep their size and sign.
#
# **Predict.** Should the change per weight $s$ stay constant, fall like $1/\sqrt n$, or fall like $1/n$? An output is a sum of
# $n$ products.
#
# **What we do.** We let networks of five widths take one step by each rule. The rules are chosen so that they agree at 64
# neurons.

# %%
rules = {"s constant": "standard", "s ∝ 1 / √n": "sqrt", "s ∝ 1 / n (muP)": "mup"}


def move(width, rule):
    """How far one step moves outputs: root mean square, mean of 8 networks."""
    one = growth(width, 1, eta=ETA, rule=rule, seeds=8)
    return one.loc[one["step"] == 1, "moved"].mean()


# %%
rows = [{name: move(width, rule) for name, rule in rules.items()} for width in WIDTHS[:5]]
moves = pd.DataFrame(rows, index=pd.Index(WIDTHS[:5], name="width"))

# %% tags=["nbval-ignore-output"]
title = f"Outputs move equally far at every width only with\ns ∝ 1 / n (s: change of a weight; SignSGD, η = {ETA})"
what = "change of an output in one step\n(root mean square, 8 networks)"
plots.plot_by_width(moves, what=what, title=title);

# %%
doublings = math.log2(moves.index[-1] / moves.index[0])
exponents = np.log2(moves.iloc[-1] / moves.iloc[0]) / doublings
(exponents.round(1) + 0.0).to_frame("outputs move like n to the power of")  # + 0.0: no -0.0

# %% [markdown]
# **What we saw.** With a constant $s$ outputs move in proportion to $n$. Of the three rules only $s \propto 1/n$ ($s$ is a
# constant times $1/n$) moves them equally far.
#
# **Why $n$, and not $\sqrt n$?** The gradient of $W$ is an outer product of two vectors: the gradient at the map's output, and
# its input $z$. The sign of an outer product is the outer product of the signs, $S(\cdot)$. So every row of $W$ moves by $+s\,
# S(z)$ or by $-s\, S(z)$, and its output by
#
# $$\pm s\; S(z)^\top z = \pm s\, \|z\|_1 = \pm s\,c\,n$$
#
# Here $\|z\|_1$ is the sum of absolute values. Their mean is $c = \|z\|_1 / n$, near $\sqrt{2/\pi} \approx 0.80$ for normal
# entries. The move is the same at every width only if $s \propto 1/n$. All $n$ products have the same sign, because the step was
# made for this input. If their signs were random, the products would partly cancel, and their sum would grow like $\sqrt n$ only.
#
# The rule has a name: **muP** (maximal update parametrisation, [Yang & Hu](https://arxiv.org/abs/2011.14522); for Adam [Yang et
# al.](https://arxiv.org/abs/2203.03466)). It sets initial sizes and learning rates so that outputs move by $\Theta(1)$: equally
# far at any width, up to a constant factor. For a map like ours, under SignSGD or Adam, $s = \eta / n$ with a step size $\eta$.
# Entries of $W_0$ with variance $1/n$ give outputs of size 1, and entries of $v$ of size $1/n$ let $f$ move by $\eta c \|v\|_1$ a
# step, which is the same at any width, too.
#
# **Recap.** A training step is aligned with its input, so its $n$ small contributions add up. With $s = \eta/n$ every output
# moves by $\eta c$, at any width.
#
# ## 4. Theorem 1: the square of the steps
#
# **Question.** How does $\frac1n\|Wz\|^2$, the squared length of the output per neuron, change while $W$ is trained? We call what
# is added to its first value *growth*.
#
# **What we do.** First we train one network, without the package. The next cell draws it at random. The one after that holds the
# whole training: loss, gradient, step, and a note of the output's squared length.

# %%
def start(n, seed):
    """W0, z and v of a network with n neurons before training."""
    random = torch.Generator().manual_seed(seed)
    W0, z, v = (torch.randn(shape, generator=random).double() for shape in [(n, n), (n,), (n,)])
    return W0 / math.sqrt(n), z, v / n


n = 256
W0, z, v = start(n, seed=7)

# %%
W = W0.clone().requires_grad_()
squares = [(W0 @ z).square().mean().item()]
for _ in range(STEPS):
    loss = (v @ (W @ z) - Y) ** 2 / 2
    (gradient,) = torch.autograd.grad(loss, W)
    W.data -= ETA / n * gradient.sign()
    squares.append((W.detach() @ z).square().mean().item())

# %%
trained = W.detach()
loop = pd.DataFrame({"step": range(STEPS + 1), "growth": np.array(squares) - squares[0]})
print(f"growth after 1 step: {loop['growth'][1]:.4f}, after 20 steps: {loop['growth'][20]:.2f}")

# %% [markdown]
# **Predict.** If growth were exactly quadratic, 40 steps would give four times 0.58. After the first step the output has become
# shorter. Does what shortened it make the factor from step 20 to step 40 larger than four, or smaller?

# %%
factor = loop["growth"][40] / loop["growth"][20]
print(f"after 40 steps: {loop['growth'][40]:.2f}, which is {factor:.2f} times the growth after 20 steps")

# %% [markdown]
# **Intuition.** Every step adds the same vector to $Wz$, so the sum of $t$ steps is $t$ times as long as one. In many dimensions
# two random vectors are nearly at a right angle, and so are this sum and the start $W_0 z$. By Pythagoras their squared lengths
# add up, and that of the sum grows like $t^2$. What is missing to a right angle gives a cross term, which grows like $t$ only.

# %% tags=["nbval-ignore-output"]
setting = f"n → ∞, SignSGD, η = {ETA}"
draw_pushes(push=10 * ETA * math.sqrt(2 / math.pi), pushes=4, steps=10, setting=setting);

# %% [markdown]
# > **Theorem 1** (Feature Norm Growth in Linear Networks; in our words, with the constants $c$ and $\kappa$ worked out by us)
# >
# > *Assume:*
# >
# > 1. a linear network $f = v^\top W z$ of width $n$, of which only $W$ is trained,
# > 2. on one datapoint $(z, y)$ with the loss $\frac12 (f - y)^2$,
# > 3. by SignSGD with the muP step $\eta / n$,
# > 4. from $W_0$ with independent entries $N(0, 1/n)$, drawn independently of $z$ and $v$,
# >    an input $z$ whose entries have size $\Theta(1)$, and a readout $v$ whose entries have size $\Theta(1/n)$ (fall like $1/n$),
# > 5. as long as the residual $f - y$ keeps its sign.
# >
# > *Then* the output's squared length per neuron is
# >
# > $$\frac1n\|W_t z\|^2 = \frac1n\|W_0 z\|^2 + \underbrace{(\eta c t)^2}_{\text{quadratic term}} + \underbrace{2\,\eta c t \cdot \kappa}_{\text{cross term}},
# > \qquad c = \frac{\|z\|_1}{n}, \quad \kappa = -\frac1n\, S(f_0 - y)\,\langle W_0 z, S(v)\rangle ,$$
# >
# > where $f_0$ is $f$ before training, $\langle a, b \rangle = a^\top b$, and $\kappa$ is a random number with mean zero and a standard deviation of about $n^{-1/2}$ (where $|y|$ is large against $|f_0|$). *The wider the network and the later the step, the closer growth is
# > to quadratic:* the two terms are in the ratio $2\kappa / (\eta c t)$, which falls like $1 / (t \sqrt n)$.
#
# The equation itself needs of assumption 4 only that no entry of $v$ is zero. The size of $\kappa$ needs a $z$ of this size and a
# random $W_0$ that is independent of $z$ and $v$. The size of $v$ matters only for how long assumption 5 holds.
#
# **Proof in five lines.**
#
# 1. The gradient is an outer product: $\nabla_W \frac12 (f-y)^2 = (f - y)\, v z^\top$.
# 2. Its sign is one, too: $S\big((f - y)\, v z^\top\big) = S\big((f - y)\, v\big)\, S(z)^\top$.
# 3. So a step moves the output by $-\frac{\eta}{n} S\big((f-y)\, v\big)\, S(z)^\top z = -\eta\, c\; S\big((f - y)\, v\big)$,
#    since $S(z)^\top z = \|z\|_1 = n c$.
# 4. While $f - y$ keeps its sign, this vector is the same in every step: $W_t z = W_0 z - \eta c t\; S\big((f_0 - y)\, v\big)$.
# 5. Take the squared length and divide by $n$. A vector of $n$ signs has squared length $n$, which gives the quadratic term. The
#    product of start and push gives the cross term.
#
# **The closed form over the loop.** We compute both terms from $W_0$, $z$, $v$ and $y$ alone, that is, before any training.

# %%
c = z.abs().mean().item()
output = W0 @ z
up = -torch.sign(v @ output - Y)  # +1, if f is below the right answer
kappa = (up * (output @ v.sign()) / n).item()
print(f"c = {c:.3f}, kappa = {kappa:.3f}")

# %%
loop["quadratic"] = (ETA * c * loop["step"]) ** 2
loop["closed"] = loop["quadratic"] + 2 * ETA * c * loop["step"] * kappa
assert (loop["growth"] - loop["closed"]).abs().max() < 1e-9
loop.loc[[0, 1, 2, 3, 10, 20, 30, 40]].set_index("step").round(4)

# %% tags=["nbval-ignore-output"]
with styled():
    _, (left, right) = plt.subplots(1, 2, figsize=(12, 4.3), layout="constrained")
title = f"A network of {n} neurons (SignSGD, η = {ETA})\nfollows the closed form at every step"
plots.plot_closed_form(loop, title=title, ax=left)
title = "The same network: the cross term's share\nof the quadratic term shrinks like 1 / t"
plots.plot_cross_share(loop, title=title, ax=right);

# %% [markdown]
# **What we saw.** The loop and the closed form (the column `closed`) agree at every step, to nine decimal places. The distance
# between the two curves on the left is the cross term. Here $\kappa$ is negative, so the cross term takes growth away; in the
# first two steps it is the larger one, and growth is below zero. At step 20 it takes away 12 % of the quadratic term, at step 40
# only 6 % (right). That is why 40 steps gave more than four times the growth of 20.
#
# **Was assumption 5 true?** The residual must keep its sign. We look at it before and after, and at the length of a step:

# %%
for name, weight in {"before": W0, "after": trained}.items():
    print(f"residual {name} training: {v @ weight @ z - Y:.2f}")
print(f"a step moves it by {ETA * c * v.abs().sum():.3f}")

# %% [markdown]
# **What we saw.** Every step moves the residual by $\eta c \|v\|_1$, about 0.03, towards zero. At -0.82 it cannot have crossed
# it.
#
# **With the package.** `growth` does the same for many networks and returns one row for each network and step. For a linear
# network with SignSGD it applies line 3 of the proof at every step, with the sign of $f - y$ taken anew, and needs no gradient.
# This recursion is the short cut of the first screen. `dense=True` makes it take the gradient. We compare both ways for one
# network of 1024 neurons, past the step at which the residual changes its sign:

# %%
by_recursion = growth(1024, 2 * STEPS, eta=ETA, target=Y, seeds=1)["growth"]
by_gradient = growth(1024, 2 * STEPS, eta=ETA, target=Y, seeds=1, dense=True)["growth"]
assert (by_recursion - by_gradient).abs().max() < 1e-4
print(f"growth at step {2 * STEPS}: {by_gradient.iloc[-1]:.4f} by gradient, {by_recursion.iloc[-1]:.4f} by recursion")

# %% [markdown]
# The recursion agrees with gradients to within 0.0001 at every step, also after the residual has changed its sign. From here on
# we use it.
#
# **Recap.** While the residual keeps its sign, every step adds the same vector to the output. So growth is quadratic in $t$, plus
# a cross term that depends on the random start.
#
# ## 5. How exact is it at a finite width?
#
# **Question.** The cross term spoils the pure quadratic. How large is it?
#
# **Predict.** The *deviation* is the distance between growth and its quadratic term, as a share of the quadratic term. One
# network is 64 times as wide as another. How many times smaller is its deviation after the same number of steps, on average?
#
# **What we do.** We look at all networks after 40 steps. First we check the equation itself; it would fail in a network whose
# residual has changed its sign.

# %%
before = networks[networks["step"] == 0].set_index(["width", "seed"])
after = networks[networks["step"] == STEPS].set_index(["width", "seed"])
after["quadratic"] = (ETA * after["c"] * STEPS) ** 2
cross_term = 2 * ETA * after["c"] * STEPS * after["cross"]  # the column `cross` holds kappa
assert (after["growth"] - after["quadratic"] - cross_term).abs().max() < 1e-9
print(f"the equation holds in {len(after)} networks; the cross term adds in {(cross_term > 0).sum()} of them")

# %% [markdown]
# **Intuition.** So the deviation is the size of the cross term, as a share of the quadratic term. The inner product in $\kappa$
# adds $n$ numbers of size 1 with random signs. Such a sum has size $\sqrt n$, so $\kappa$, which divides it by $n$, has size
# $n^{-1/2}$. More exactly: for a given $z$, $\kappa$ is normal with standard deviation $\|z\| / n$. ($|y| = 2$ is so far from
# $f_0$ that the factor $S(f_0 - y)$ is fixed.) The mean of $|\kappa|$ is then $\sqrt{2 / (\pi n)}$, and $c$ is close to $\sqrt{2 /
# \pi}$. So the deviation $2 |\kappa| / (\eta c t)$ is $2 / (\eta t \sqrt n)$ on average.
#
# Now we measure it. The intervals are over networks; with 95 % probability [all seven](GUIDE.md#many) contain the true mean.

# %%
def table_of(runs, column, *, by, level):
    """For each group of networks the mean of a column, and its interval."""
    groups = runs.groupby(by)[column]
    rows = {name: mean_interval(numbers, level=level) for name, numbers in groups}
    return pd.DataFrame(rows, index=["mean", "low", "high"]).T.rename_axis(by)

# %%
SEVEN = 1 - 0.05 / len(WIDTHS)  # coverage of each of seven intervals
after["deviation"] = 100 * (after["growth"] / after["quadratic"] - 1).abs()
deviation = table_of(after, "deviation", by="width", level=SEVEN)
deviation["predicted"] = 100 * 2 / (ETA * STEPS * np.sqrt(deviation.index))
deviation.round(1)

# %% tags=["nbval-ignore-output"]
what = f"|growth / quadratic term − 1|\nafter {STEPS} steps (%)"
title = f"The distance from quadratic growth falls as one over\nthe root of the width (linear networks, SignSGD, η = {ETA})"
bars = f"mean of {SEEDS} networks;\nintervals: 95 % for\nall {len(WIDTHS)} together"
plots.plot_by_width(deviation, what=what, measured=bars, predicted="theory: 2 / (ηt√n)", title=title);

# %%
slope = power_fit(after.reset_index(), "width", "deviation")
print(f"a line through all {len(WIDTHS)} widths: deviation ∝ width to the power of {slope.exponent:.2f}")
times, low, high = (64**-exponent for exponent in (slope.exponent, slope.high, slope.low))
print(f"64 times as wide: {times:.1f} times smaller, between {low:.1f} and {high:.1f}")

# %% [markdown]
# **What we saw.** The theory (dashed; nothing is fitted) lies inside all seven intervals. By it, 64 times the width makes the
# deviation 8 times smaller; a line fitted through all seven widths gives 8.1 (6.6 to 9.9; 95 %, by drawing networks again and
# again, with replacement). As the equation is exact, this tests only how large $\kappa$ is, which is known before training. At
# the first step the deviation is 40 times as large as in the table: by the formula 62.5 % even with 4096 neurons.
#
# **Recap.** The equation is exact at every width and step, as long as the residual keeps its sign. Growth is nearly quadratic
# only once $t \sqrt n$ is large against $2 / \eta$ (which is 40 here; that we train for 40 steps is chance).
#
# ## 6. Why NFN rises, and how far
#
# **Question.** The output grows. Is that alignment, or have the weights just become larger? And where does it end?
#
# **Predict.** By how many percent has $\|W\|_F$ grown after 40 steps, with 4096 neurons and with 64? Put in your two numbers.

# %%
guesses = {WIDTHS[-1]: 5.0, WIDTHS[0]: 20.0}  # neurons, and your guess in percent

# %%
after["weights"] = 100 * (after["baseline"] / before["baseline"] - 1)
weights = table_of(after, "weights", by="width", level=SEVEN)
for neurons, guess in guesses.items():
    print(f"{neurons} neurons: weights + {weights.loc[neurons, 'mean']:.2f} %, your guess + {guess} %")

# %% [markdown]
# **Intuition.** In $t$ steps each of the $n^2$ entries of $W$ moves by $\eta t / n$. That adds about $n^2 (\eta t / n)^2 = (\eta
# t)^2$ to $\|W\|_F^2$, at any width. (Twice the inner product of $W_0$ and the change adds to this. It has mean zero, and is
# small in a wide network.) But $\|W_0\|_F^2$ is about $n$. So the baseline grows by the factor $\sqrt{1 + (\eta t)^2 / n}$,
# nearly 1 in a wide network. The squared output per neuron starts at about 1 and grows by $(\eta c t)^2$. So NFN has to rise:
#
# $$\mathrm{NFN} \approx \frac{\sqrt{1 + (\eta c t)^2}}{\sqrt{1 + (\eta t)^2 / n}}$$
#
# (This is for inputs whose squared entries have mean 1, as ours.) The numerator is the dashed line of the first picture, up to
# the end of growth at step 63. It starts like $1 + (\eta c t)^2 / 2$, and from about step 25, where $\eta c t = 1$, it bends into
# a nearly straight line: the squared length grows like $t^2$, the length itself like $t$.
#
# **What we do.** We compare NFN and the growth of the weights with these formulas. Each column of intervals has its own 95 %.

# %%
weight_growth = np.sqrt(1 + (ETA * STEPS) ** 2 / weights.index)  # the denominator
weights["theory"] = 100 * (weight_growth - 1)
rises = table_of(after, "nfn", by="width", level=SEVEN)
rises["theory"] = theory[STEPS] / weight_growth
pd.concat({"NFN": rises, "growth of the weights, %": weights}, axis=1).round(2)

# %% [markdown]
# **What we saw.** NFN rises to 1.88 in wide networks, while the weights of the widest grow by 0.05 %. Nearly all of the growth is
# alignment. In narrow networks the growth of the weights matters: at 64 neurons it brings the theory down from 1.88 to 1.83. The
# theory lies inside all seven intervals of NFN and within 0.05 percentage points of the mean growth of the weights.
#
# **A control.** Is $W$ aligned with $z$, or does it now stretch many inputs more? The mean alone cannot tell: over all directions
# the root mean square of NFN is 1, by its definition. So we look at 1,000 other inputs, one by one.
#
# **Predict.** In the network of part 4 the example's NFN rises by about 80 %. Between which two numbers will nearly all of the
# others lie?

# %%
others = torch.randn(1000, n, generator=torch.Generator().manual_seed(1)).double()
scores = {}
for name, weight in {"before training": W0, f"after {STEPS} steps": trained}.items():
    scores[name] = nfn(weight, z), [nfn(weight, other) for other in others]
    low, high = np.quantile(scores[name][1], [0.025, 0.975])
    print(f"{name:15}  example {scores[name][0]:.2f}; 95 % of the others {low:.2f} to {high:.2f}")

# %% tags=["nbval-ignore-output"]
title = f"Training raises NFN on the example, not on other inputs\n(a network of {n} neurons, SignSGD, η = {ETA})"
plot_control(scores, title=title);

# %% [markdown]
# **What we saw.** NFN rises from 1.06 to 1.90 on the example. On 95 % of the others it lies between 0.91 and 1.09, nearly as
# before. By line 3 of the proof $t$ steps move each output of another input $z'$ by $\eta t\, |S(z)^\top z'| / n$. For $z' = z$
# this is $\eta c t$, here 1.63. For an unrelated $z'$ the $n$ products have random signs, and their mean has size $n^{-1/2}$, so
# the outputs move by about 0.125. This move, too, is nearly at a right angle to the old output, and makes it only 0.8 % longer.
#
# **How far does it go?** Every step brings $f$ closer to $y$, so growth has to end.
#
# **Predict.** In the first picture NFN stops rising at about step 63, at 2.69. At which step and value does it stop with twice
# the step size? And with twice the right answer as well?
#
# **What we do.** We measure the step at which each network's loss is least, with 2048 neurons: first as before, then with twice
# the step size, then with twice the right answer as well. The intervals are over networks, 95 % for all six together.

# %%
def end_of(run):
    """The row of one network after which its loss, for the first time, does not fall."""
    losses = run["loss"].to_numpy()
    stops = np.flatnonzero(losses[1:] >= losses[:-1])
    if len(stops) == 0:
        raise ValueError("follow the networks for more steps")
    return run.iloc[[stops[0]]]

# %%
ends = {}
for eta, y in [(ETA, Y), (2 * ETA, Y), (2 * ETA, 2 * Y)]:
    run = growth(2048, 2 * STEPS, eta=eta, target=y, seeds=SEEDS)
    ends[eta, y] = pd.concat([end_of(network) for _, network in run.groupby("seed")])
ends = pd.concat(ends, names=["eta", "y"])

# %%
SIX = 1 - 0.05 / 6
ended = {name: table_of(ends, name, by=["eta", "y"], level=SIX) for name in ("step", "nfn")}
pd.concat(ended, axis=1).round(2)

# %% [markdown]
# **What we saw.** With twice the step size growth ends in half the steps, and at about the same NFN. With twice the right answer
# as well it ends at an NFN of about 5.
#
# **Why?** A step moves $f$ by $\eta c \|v\|_1$, and the distance to go is $|y - f_0|$. So the end is at a step $t^*$, and $c$
# cancels in $\eta c t^*$. In a wide network the cross term and the growth of the weights can be left out:
#
# $$t^* = \frac{|y - f_0|}{\eta\, c\, \|v\|_1}, \qquad \mathrm{NFN}^* \approx \sqrt{1 + (\eta c t^*)^2} = \sqrt{1 + \Big(\frac{|y - f_0|}{\|v\|_1}\Big)^2}$$
#
# In a wide network $f_0 \approx 0$, and $\|v\|_1$ is near $\sqrt{2/\pi}$, as $c$ is, because the entries of $n v$ are normal. At
# 2048 neurons the weights grow a little as well, so we also divide by $\sqrt{1 + (\eta t^*)^2 / n}$, as above.

# %%
mean_abs = math.sqrt(2 / math.pi)  # c, and the sum of absolute values of v
for eta, y in ended["step"].index:
    step, wide = y / (eta * mean_abs**2), math.sqrt(1 + (y / mean_abs) ** 2)
    at_end = wide / math.sqrt(1 + (eta * step) ** 2 / 2048)
    print(f"theory for eta {eta:.2f}, y {y:.0f}: step {step:.1f}, NFN {wide:.2f}; divided, {at_end:.2f}")

# %% [markdown]
# With this correction the theory lies inside all six intervals; without it 5.11 would lie outside. (The three runs use the same
# 48 networks, so these are not six separate tests.) So $\eta$ sets how fast NFN rises. How far it rises is set by the distance to
# go, $|y - f_0|$, divided by the size of the readout, $\|v\|_1$; $\eta$ has no part in it, except that growth ends at a whole
# step.
#
# **Recap.** In a wide network nearly all of the growth of the *output* is alignment with the example, because the weights hardly
# get longer. So NFN rises, until the network gives the right answer.
#
# ## 7. What has this to do with adapters?
#
# **Question.** Forty steps have made the output of our network of 256 neurons 1.8 times as long. How large a matrix does that
# take?
#
# **Predict.** The network has 65,536 weights, and training has changed all of them. How few numbers can hold this change?
#
# **What we do.** We take the network that we trained by hand, and write its change with few numbers.

# %%
change = trained - W0
B = up * ETA * STEPS / n * v.sign()[:, None]  # n x 1
A = z.sign()[None]  # 1 x n
assert (change - B @ A).abs().max() < 1e-9
print(f"the change of {change.numel():,} weights, in {B.numel() + A.numel()} numbers")

# %% [markdown]
# **What we saw.** 512 numbers are enough: the change is $BA$, one column times one row, to nine decimal places. Its *rank* is 1.
# By line 2 of the proof every step is plus or minus the same outer product, $S(v) S(z)^\top$ times $\eta / n$. So their sum is a
# multiple of it, even after the residual has changed its sign.
#
# This is the shape of a LoRA adapter. LoRA (*low-rank adaptation*) freezes $W$ and trains a second path beside it: the output is
# $Wz$ plus a constant times $BAz$, where $A$ has $r$ rows and $B$ has $r$ columns. The rank $r$ is small, so $B$ and $A$ are thin.
#
# How can so small a matrix do so much? We compare the change with $W_0$ in three ways: by how much it stretches our $z$, by the
# most that it stretches any input (the largest singular value), and by the Frobenius norm.

# %%
for name, matrix in {"change": change, "W0": W0}.items():
    most = torch.linalg.svdvals(matrix)[0]
    on_z = (matrix @ z).norm() / z.norm()
    print(f"{name:7} on z {on_z:.2f}, largest singular value {most:.2f}, Frobenius norm {matrix.norm():.1f}")
print(f"cosine of the angle between z and S(z): {z @ z.sign() / z.norm() / math.sqrt(n):.2f}")

# %% [markdown]
# At step 40 the change stretches an input along $S(z)$ by $\eta t = 2$, about the most that $W_0$ stretches any input (1.95; that
# both are near 2 is chance). Our input $z$ is 35 degrees away from $S(z)$ (cosine 0.82). So the change stretches $z$ by 2 times
# this cosine, which is 1.65, and $W_0$ stretches $z$ by 1.06. The Frobenius norm counts all 256 directions, so the change is
# small there, 2 against 16. This is why NFN, which looks at one input, sees what the weight norm does not.
#
# An adapter of rank 1 could hold this whole change; training $B$ and $A$ need not find it. With many tokens the sign of the
# gradient need not have a low rank. So this does not explain why LoRA works for language models.
#
# **Recap.** The change that training makes here is one column times one row. An adapter of rank $r$ holds $r$ of them. PLoP puts
# adapters on the types of maps (query, key, value and so on) with the lowest mean NFN, because it supposes that these have most
# to gain from an adapter. That is a separate assumption. The theorem does not support it: it gives no map a faster growth.
# Notebook 01b tests a part of it: whether low scores rise most in finetuning.

# %% [markdown]
# ## Exercises
#
# ### 1. When is NFN 1.5? (5 minutes)
#
# In an infinitely wide network with $\eta = 0.05$: after how many steps is NFN 1.5? *Hint:* in the limit $c = \sqrt{2 / \pi}$.

# %%
steps_needed = None  # your turn: a whole number


# %%
def check_steps(number):
    if number is None:
        return "not yet filled in"
    found = growth(2048, number, eta=0.05, seeds=16).query("step == @number")["nfn"].mean()
    assert abs(found - 1.5) < 0.02, f"after {number} steps networks of 2048 neurons have NFN {found:.2f}"
    return f"after {number} steps networks of 2048 neurons have NFN {found:.2f}"


check_steps(steps_needed)

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution. 1 + (eta c t)^2 = 1.5^2.
check_steps(round(math.sqrt(1.5**2 - 1) / (0.05 * math.sqrt(2 / math.pi))))

# %% [markdown]
# ### 2. Above or below? (10 minutes)
#
# About half of all networks grow more than their quadratic term. Write a function of $W_0$, $z$, $v$ and $y$ that says before
# training whether this network will. *Hint:* which term of Theorem 1 can be negative?

# %%
grows_more = None  # your turn: a function of (W0, z, v, y) that returns True or False


# %%
def growth_of(W0, z, v, y):
    """Growth after 20 steps of SignSGD, with the sign of the gradient."""
    W = W0.clone()
    for _ in range(20):
        W -= ETA / len(z) * torch.outer((v @ W @ z - y) * v, z).sign()
    return ((W @ z).square() - (W0 @ z).square()).mean()


# %%
def check_sign(function):
    if function is None:
        return "not yet filled in"
    for seed in range(20):
        W0, z, v = start(128, seed)
        y = 2.0 if seed % 2 else -2.0
        is_more = bool(growth_of(W0, z, v, y) > (ETA * z.abs().mean() * 20) ** 2)
        assert bool(function(W0, z, v, y)) == is_more, f"wrong for network {seed}, y = {y}"
    return "right for 20 networks"


check_sign(grows_more)


# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution: the cross term is positive.
def is_above(W0, z, v, y):
    output = W0 @ z
    return -torch.sign(v @ output - y) * (output @ v.sign()) > 0


check_sign(is_above)

# %% [markdown]
# ## Questions for discussion
#
# 1. In a wide network NFN starts near 1 and goes up. The value maps of some pretrained models have scores far below 1, and the
#    paper has no explanation for it. How could training bring a score *below* 1? Which assumption of Theorem 1 would you drop
#    first?
# 2. Which of the five lines of the proof would fail in a transformer block, and which would survive?
# 3. The authors tried to choose single layers instead of types, with inconsistent results. Does the theorem say anything about
#    layers?
#
# ## Three things to remember
#
# 1. **Growth is quadratic because every step adds the same vector, nearly at a right angle to the start.** $\frac1n\|W_t z\|^2$
#    grows by $(\eta c t)^2$ plus a random cross term. Compared with the quadratic term, the cross term falls like $1 / (t \sqrt
#    n)$: in the first steps even a wide network is not yet quadratic.
# 2. **The weights hardly get longer**, so NFN itself rises, on the example. The whole change has rank one here.
# 3. **Growth lasts as long as the residual keeps its sign.** This sets how far NFN can rise, here to 2.7 with $y = 2$.
#
# **Not established.** Nothing here is about language models. The theorem has one map and one example, and NFN rises on this
# example only. For given $\eta$ and $c$, the same variance of $W_0$, and inputs whose squared entries have mean 1, all wide maps
# rise on nearly the same curve; they can differ in where they stop. So the theorem does not say that a map that is better aligned
# with its task grows faster. Nor does it say where the maps of a transformer stop, so it does not explain why their scores
# differ.
#
# **Where next.** Notebook 01b takes the assumptions away, one at a time, and looks at SmolLM2. Notebook 02 asks how many texts a
# score needs.
