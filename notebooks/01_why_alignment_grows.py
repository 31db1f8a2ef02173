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
# **The answer.** Take the smallest setting that shows it: one wide linear map, one training example, and steps that move every
# weight by the same amount, up or down. NFN rises because every step pushes the output the same way, while the length of the
# weights, $\|W\|_F$ (the root of the sum of all squared weights), hardly changes. After $t$ steps the output has moved $t$ times
# as far as after one. So what is added to its squared length grows nearly like $t^2$. The rise stops when the error is used up.
# This is about one map. It does not explain why the maps of a language model have different scores.
#
# | | |
# |---|---|
# | **You need** | notebook 00; matrices, gradients, a standard deviation; other words are in the [glossary](GUIDE.md#words) |
# | **It takes** | 60 minutes to read, and 20 more for the exercises; it runs in a minute or two on one CPU core, without a GPU |
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
STEPS = 40  # of training; keep it: cells below look at step 40, and soon after it narrow networks use up their error (part 6)
ETA = 0.05  # step size: how far a step moves an output, roughly

# %%
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from plop_nb import growth_plots as plots
from plop_nb.experiments import growth, mean_interval, power_fit
from plop_nb.palette import styled
from plop_nb.schematics import draw_adapter, draw_alignment
from plop_nb.theory_plots import plot_alignment

# %% [markdown]
# The next cell computes 48 networks of each width. It does not train them by gradients: it uses a recursion, a rule that leads
# from one step to the next. Part 4 derives the rule and checks it against real training.

# %%
runs = {n: growth(n, 2 * STEPS, eta=ETA, seeds=SEEDS) for n in WIDTHS}
networks = pd.concat(runs, names=["width"]).reset_index("width")
early = networks[networks["step"] <= STEPS].copy()
print(f"{len(runs)} widths, {early['seed'].nunique()} networks each, {len(early):,} rows up to step {STEPS}")

# %%
steps = np.arange(2 * STEPS + 1)
c_wide = math.sqrt(2 / math.pi)  # the constant c of a very wide network: see the table below
t_end = 2 / (ETA * c_wide**2)  # the step at which the error is used up: part 6
theory = pd.Series(np.sqrt(1 + (ETA * c_wide * np.minimum(steps, t_end)) ** 2), index=steps)

# %% tags=["nbval-ignore-output", "picture"]
widest = networks[networks["width"] == WIDTHS[-1]]
marks = {f"error used up at step {t_end:.0f}": round(t_end)}
title = f"NFN rises until the error is used up; the weights hardly get longer\n({SEEDS} linear networks, {WIDTHS[-1]} neurons, SignSGD; bands: middle 95 %)"
ax = plot_alignment(widest, theory, marks=marks, title=title)
note = "then the error changes\nits sign at every step:\nthe band is jagged"
ax.text(0.74, 0.68, note, va="top", size=11, color="0.35", transform=ax.transAxes);

# %% [markdown]
# The blue line is the mean NFN of wide networks in training. The dashed line is the theory for a network of unlimited width; part
# 6 derives it from Theorem 1 of the paper. The grey line is the *baseline* $\|W\|_F / \sqrt n$, what NFN divides by when $\|z\| =
# 1$. *SignSGD* is training that uses only the sign of each gradient; *muP* is a rule for the size of a step (part 3 explains
# both).
#
# | part | question | in the paper | minutes |
# |---|---|---|---|
# | | first screen and notation | | 5 |
# | 1 | What does the score compare? | Section 3: NFN | 8 |
# | 2 | Why not look at the length of $Wz$ alone? | Section 2: feature norms; Section 3: normalisation | 4 |
# | 3 | How large is a step? | Section 2: muP | 8 |
# | 4 | Why does the output grow with $t^2$? | Theorem 1 and its proof | 15 |
# | 5 | How exact is that at a finite width? | Theorem 1: its random term | 8 |
# | 6 | Why does NFN rise, and how far? | from Theorem 1 to NFN; not in the theorem | 7 |
# | 7 | What has this to do with adapters? | Section 2: LoRA | 5 |
#
# **Notation**, to come back to. *Noise* is a random vector with normal entries, rescaled to the length of $z$. $\Theta(1/n)$ says
# that a number falls like $1/n$ with the width $n$, up to a constant factor; $\Theta(1)$ says that it does not depend on the
# width. $x \propto t^p$ says that $x$ is $t^p$ times a constant. $E[\cdot]$ is a mean over random draws, and $\langle a, b
# \rangle$ is $a^\top b$.
#
# | symbol | what it is |
# |---|---|
# | $n$ | the width: how many inputs and outputs the map has (*neurons*) |
# | $W_0$, $W_t$ | the map before training and after $t$ steps, an $n \times n$ matrix |
# | $z$, $Wz$ | the input, $n$ numbers; the output, called the *feature* in the paper, $n$ numbers |
# | $\tilde z$, $u$ | noise as long as $z$; a random direction of length 1 |
# | $v$, $f = v^\top W z$ | the readout, $n$ fixed numbers; what the network answers, one number |
# | $y$, $f - y$; $f_0$ | the right answer; the error, called *residual*: how far $f$ is above it; $f$ before training |
# | $\|z\|$, $\|z\|_1$ | root of the sum of squares; sum of absolute values |
# | $\|W\|_F$ | the Frobenius norm: root of the sum of all squared entries |
# | $S(\cdot)$ | the sign of each entry, $+1$ or $-1$ |
# | $\eta$, $t$ | the step size, and the number of steps |
# | $c = \|z\|_1 / n$ | the mean absolute value of an input's entries, near $\sqrt{2/\pi} \approx 0.80$ for normal ones |
# | $\kappa$, $t^*$ | the random coefficient of the cross term (part 4); the step at which growth ends (part 6) |
# | *growth* | $\frac1n \|W_t z\|^2$, the squared length of the output per neuron, minus its value before training |
# | $B$, $A$, $r$ | the two thin matrices of an adapter and its rank (part 7) |

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
# For $\|W \tilde z\|$ we take the root mean square over all directions. It is $\|z\|$ times the *baseline* $\|W\|_F / \sqrt n$,
# the value for inputs of length 1 (shown below). NFN above 1 is called *alignment*: $z$ lies along directions that $W$ stretches
# more than average.

# %% tags=["nbval-ignore-output"]
toy, z_toy = torch.tensor([[1.8, 0.6], [0.2, 0.7]]), torch.tensor([0.8, 0.6])
draw_alignment(weight=toy.numpy(), example=z_toy.numpy());

# %% [markdown]
# **Predict.** Our input is $z = (0.8, 0.6)$, the black arrow on the left; its output is the black arrow on the right. Write down
# its NFN, to one digit after the point.
#
# **What we do.** First the baseline: we try 1,000 inputs all around the circle. There is a formula for it, too. No direction is
# preferred, so in $n$ dimensions $E[u u^\top] = I / n$, and the root mean square of $\|Wu\|$ is exactly $\|W\|_F / \sqrt n$.

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

# %%
layer = torch.nn.Linear(2, 2, bias=False)
layer.weight.data = toy
with plop.record_norms(layer) as record:
    layer(z_toy[None, None])  # one text of one token
print(f"NFN by plop_nb: {record.frame()['nfn'].item():.4f}")

# %% [markdown]
# **What we saw.** $W$ sends the input near the long axis, and NFN is 1.32. It cannot exceed 1.35 for this map, the value of the
# long axis.
#
# The paper divides by the length that one drawn noise vector gets, we by the root mean square over all noise vectors. In a
# language model the two differ by less than 1 % for nearly all maps (notebook 02, section 7).
#
# **Recap.** NFN is the length of an output over that of noise. About 1: $W$ lengthens the input about as much as noise of the
# same length. Above 1: the input lies along directions that $W$ stretches.
#
# ## 2. Why divide at all?
#
# **Question.** Suppose $\|W\|_F$ doubles in training, and $\|W z\|$ stays the same. Is $z$ now aligned with $W$ better, or worse?
#
# **Predict.** Does NFN double, stay or halve?
#
# **What we do.** We build such a change. The matrix $a b^\top$ reads only the direction $b$, and we choose $b$ at a right angle
# to $z$. So it adds nothing to $Wz$. We choose $a$ of length 1, at a right angle to $Wb$. Because $a^\top W b = 0$, the two
# matrices are at a right angle, too, and their squared norms add up. So $\sqrt3\,\|W\|_F$ times $a b^\top$ doubles $\|W\|_F$.

# %%
b = torch.tensor([-z_toy[1], z_toy[0]])  # at a right angle to z
a = torch.tensor([-(toy @ b)[1], (toy @ b)[0]]) / (toy @ b).norm()
toy2 = toy + math.sqrt(3) * toy.norm() * torch.outer(a, b)
print(f"weights: {toy.norm():.2f} to {toy2.norm():.2f}")
print(f"output:  {(toy @ z_toy).norm():.2f} to {(toy2 @ z_toy).norm():.2f}")

# %%
def nfn(weight, z):
    return ((weight @ z).norm() / (z.norm() * weight.norm() / math.sqrt(len(z)))).item()


for name, weight in {"W": toy, "W + √3 ‖W‖ a b'": toy2, "2 W": 2 * toy}.items():
    print(f"{name:16} NFN {nfn(weight, z_toy):.3f}")

# %% [markdown]
# **What we saw.** NFN halves, although the output keeps its length. The new $W$ stretches random inputs twice as much as before,
# but $z$ no more than before. So compared with other directions $z$ has lost. If instead all of $W$ is doubled, the output is
# twice as long and NFN stays.
#
# **Recap.** An output is longer if the weights are larger, if the input is longer, or if the two are better aligned. NFN keeps
# only the last.
#
# ## 3. How large is a step?
#
# **Question.** We want to compare networks of different widths. With which step do their outputs move equally far?
#
# *SignSGD* moves every entry of $W$ by the same step $s$, up or down: it uses only the sign of the gradient. Adam does nearly
# that while gradients keep their size and their sign.
#
# **Predict.** Should $s$ stay constant, fall like $1/\sqrt n$, or fall like $1/n$? An output is a sum of $n$ products.
#
# **What we do.** We let networks of five widths take one step by each rule. The rules are chosen so that they agree at 64
# neurons.

# %%
rules = {"constant step": "standard", "step ∝ 1 / √n": "sqrt", "step ∝ 1 / n (muP)": "mup"}
moves = pd.DataFrame(index=pd.Index(WIDTHS[:5], name="width"))
for name, rule in rules.items():
    for n in moves.index:
        one = growth(n, 1, eta=ETA, rule=rule, seeds=8)
        moves.loc[n, name] = one.loc[one["step"] == 1, "moved"].mean()

# %% tags=["nbval-ignore-output"]
title = "Of three rules, only a step ∝ 1 / n moves outputs equally far\n(one step of SignSGD, means of 8 linear networks)"
what = "change of an output in one step\n(root mean square)"
plots.plot_by_width(moves, what=what, title=title);

# %%
exponents = np.log2(moves.iloc[-1] / moves.iloc[0]) / math.log2(moves.index[-1] / moves.index[0])
exponents.abs().round(1).to_frame("outputs move like n to the power of")

# %% [markdown]
# **What we saw.** With a constant step outputs move in proportion to $n$. Of the three rules only a step in proportion to $1/n$
# moves them equally far.
#
# **Why $n$, and not $\sqrt n$?** The gradient of $W$ is an outer product of two vectors: the gradient at the map's output, and
# its input $z$. The sign of an outer product is the outer product of the signs. So every row of $W$ moves by $+s\, S(z)$ or by
# $-s\, S(z)$, and its output by
#
# $$\pm s\; S(z)^\top z = \pm s\, \|z\|_1 = \pm s\,c\,n$$
#
# So only a step $s$ in proportion to $1/n$ moves outputs equally far at every width. All $n$ products have the same sign, because
# the step was made for this input. If its signs were random, the pushes would partly cancel, and their sum would grow like
# $\sqrt n$ only.
#
# The rule has a name: **muP** (maximal update parametrisation, [Yang & Hu](https://arxiv.org/abs/2011.14522)). It sets the
# initial sizes and the learning rates of all layers so that outputs move by $\Theta(1)$ at any width. For a map like ours, under
# SignSGD or Adam, the step is $\eta / n$.
#
# **Recap.** A training step is aligned with its input, so $n$ small pushes add up. With the step $\eta/n$ every output moves by
# $\eta c$, at any width.
#
# ## 4. Theorem 1: the square of the steps
#
# **Question.** How does $\frac1n\|Wz\|^2$ change while $W$ is trained?
#
# **What we do.** First we train one network, without the package. The next cell draws it at random, and the one after that holds
# the whole training: loss, gradient, step, and a note of the output's squared length.

# %%
def start(n, seed):
    """W0, z and v of a network with n neurons before training."""
    random = torch.Generator().manual_seed(seed)
    W0, z, v = (torch.randn(shape, generator=random).double() for shape in [(n, n), (n,), (n,)])
    return W0 / math.sqrt(n), z, v / n


n, y = 256, 2.0
W0, z, v = start(n, seed=7)

# %%
W, squares = W0.clone().requires_grad_(), [(W0 @ z).square().mean().item()]
for _ in range(STEPS):
    loss = (v @ (W @ z) - y) ** 2 / 2
    (gradient,) = torch.autograd.grad(loss, W)
    W.data -= ETA / n * gradient.sign()
    squares.append((W.detach() @ z).square().mean().item())

# %%
loop = pd.DataFrame({"step": steps[: STEPS + 1], "growth": np.array(squares) - squares[0]})
print(f"growth after 1 step: {loop['growth'][1]:.4f}, after 20 steps: {loop['growth'][20]:.2f}")

# %% [markdown]
# **Predict.** If growth were exactly quadratic, 40 steps would give four times 0.58. After the first step the output has become
# shorter. Does this early shortening make the factor from step 20 to step 40 larger than four, or smaller?

# %%
factor = loop["growth"][40] / loop["growth"][20]
print(f"after 40 steps: {loop['growth'][40]:.2f}, which is {factor:.2f} times the growth after 20 steps")

# %% [markdown]
# The factor is a little larger than four. The theorem says why.
#
# **Intuition.** Every step adds the same vector to $Wz$. The sum of $t$ equal vectors is $t$ times as long as one, and its square
# $t^2$ times as large. The start $W_0 z$ points somewhere else, which adds a cross term.
#
# > **Theorem 1** (Feature Norm Growth in Linear Networks; in our words, with the constants worked out)
# >
# > *Assume:*
# >
# > 1. a linear network $f = v^\top W z$ of width $n$, of which only $W$ is trained,
# > 2. on one datapoint $(z, y)$ with the loss $\frac12 (f - y)^2$,
# > 3. by SignSGD with the muP step $\eta / n$,
# > 4. from $W_0$ with independent entries $N(0, 1/n)$, drawn independently of $z$ and $v$,
# >    an input $z$ whose entries have size $\Theta(1)$, and a readout $v$ whose entries have size $\Theta(1/n)$,
# > 5. as long as the residual $f - y$ keeps its sign.
# >
# > *Then* the output's squared length per neuron is
# >
# > $$\frac1n\|W_t z\|^2 = \frac1n\|W_0 z\|^2 + \underbrace{(\eta c t)^2}_{\text{quadratic}} + \underbrace{2\,\eta c t \cdot \kappa}_{\text{cross term}},
# > \qquad c = \frac{\|z\|_1}{n}, \quad \kappa = -\frac1n\, S(f_0 - y)\,\langle W_0 z, S(v)\rangle ,$$
# >
# > and $\kappa$ is a random number whose standard deviation is about $n^{-1/2}$. *The wider the network and the later the step, the closer growth is
# > to quadratic:* the two terms are in the ratio $2\kappa / (\eta c t)$, which falls like $1 / (t \sqrt n)$.
#
# Of assumption 4, the equation itself needs only that no entry of $v$ is zero. The sizes of $c$ and $\kappa$ need all of it, and
# so does the time for which assumption 5 holds.
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
kappa = (-torch.sign(v @ W0 @ z - y) * (W0 @ z) @ v.sign()).item() / n
loop["pure"] = (ETA * c * loop["step"]) ** 2
loop["closed"] = loop["pure"] + 2 * ETA * c * loop["step"] * kappa
off = (loop["growth"] - loop["closed"]).abs().max()
print(f"c = {c:.3f}, kappa = {kappa:.3f}; largest difference of loop and closed form {off:.9f}")
loop.loc[[0, 1, 2, 3, 10, 20, 30, 40]].set_index("step").round(4)

# %% tags=["nbval-ignore-output"]
with styled():
    _, (left, right) = plt.subplots(1, 2, figsize=(12, 4.3), layout="constrained")
title = f"A network of {n} neurons under SignSGD\nfollows the closed form at every step"
plots.plot_closed_form(loop, title=title, ax=left)
title = "The cross term's share of the\nquadratic part shrinks like 1 / t"
plots.plot_cross_share(loop, title=title, ax=right);

# %% [markdown]
# **What we saw.** The loop and the closed form (the column `closed`) agree at every step, to nine decimal places, as the proof
# says for every width. The distance between the two curves on the left is the cross term. Here $\kappa$ is negative, so the cross
# term takes growth away; in the first two steps it is the larger one, and growth is below zero. At step 20 it takes away 12 % of
# the quadratic term, at step 40 only 6 % (right). That is why 40 steps gave more than four times the growth of 20.
#
# **Was assumption 5 true?** The residual must keep its sign. We look at it before and after, and at the length of a step:

# %%
for name, weight in {"before": W0, "after": W.detach()}.items():
    print(f"residual {name} training: {v @ weight @ z - y:.2f}")
print(f"a step moves it by {ETA * c * v.abs().sum():.3f}")

# %% [markdown]
# **What we saw.** Every step moves the residual by $\eta c \|v\|_1$, about 0.03, towards zero. Had it crossed zero, it would have
# stayed within about 0.03 of it. At -0.82 it cannot have crossed.
#
# **With the package.** `growth` does the same for many networks: it draws them, trains them, and returns one row for each network
# and step. For a linear network with SignSGD it applies line 3 of the proof at every step and takes the sign of $f - y$ anew.
# That needs no gradient and is much faster. This is the recursion behind the first picture. `dense=True` makes it take the
# gradient. We compare both ways for one network of 1024 neurons, and go on past the step at which the residual changes its sign:

# %%
by_recursion = growth(1024, 2 * STEPS, eta=ETA, seeds=1)["growth"]
by_gradient = growth(1024, 2 * STEPS, eta=ETA, seeds=1, dense=True)["growth"]
difference = (by_recursion - by_gradient).abs().max()
print(f"growth at step {2 * STEPS}: {by_gradient.iloc[-1]:.4f} by gradient, {by_recursion.iloc[-1]:.4f} by recursion")
print(f"largest difference in {2 * STEPS} steps: {difference:.4f}")

# %% [markdown]
# The recursion agrees with gradients, also after the residual has changed its sign. From here on we use it.
#
# **Recap.** While the residual keeps its sign, every step adds the same vector to the output. So growth is quadratic in $t$, plus
# a cross term that depends on the random start.
#
# ## 5. How exact is it at a finite width?
#
# **Question.** The cross term spoils the pure quadratic. How large is it?
#
# **Predict.** One network is 64 times as wide as another. How many times smaller is its deviation from the pure quadratic, on
# average?
#
# **Intuition.** The product $\langle W_0 z, S(v) \rangle$ adds $n$ numbers of size 1 with random signs. Such a sum has size
# $\sqrt n$. So $\kappa$, which divides it by $n$, has size $n^{-1/2}$. More exactly: for a given $z$, $\kappa$ is normal with standard
# deviation $\|z\| / n$, about $n^{-1/2}$. ($y = 2$ is so far from $f_0$ that the factor $S(f_0 - y)$ is fixed.)
#
# **What we do.** We take each network by itself and divide its growth by its own $(\eta c t)^2$, because $c$ differs from network
# to network. Then only the cross term is left:
#
# $$\frac{\text{growth}}{(\eta c t)^2} = 1 + \frac{2 \kappa}{\eta c t}$$
#
# First we check the equation itself in all networks. It would fail after a change of the residual's sign. (The column `cross`
# holds $\kappa$.)

# %%
early["pure"] = (ETA * early["c"] * early["step"]) ** 2
closed = early["pure"] + 2 * ETA * early["c"] * early["step"] * early["cross"]
off = (early["growth"] - closed).abs().max()
print(f"largest difference from the closed form, {SEEDS * len(WIDTHS)} networks and {STEPS} steps: {off:.6f}")

# %%
some = early[early["width"].isin([WIDTHS[0], WIDTHS[3], WIDTHS[-1]]) & (early["step"] > 0)]
some = some.assign(ratio=some["growth"] / some["pure"])

# %% tags=["nbval-ignore-output"]
title = "Growth divided by its quadratic part approaches 1,\nand wide networks are the closest"
ax = plots.plot_ratio(some, title=title)
note = f"bands: the middle 95 %\nof {SEEDS} linear networks (SignSGD)\n(64 and 512 neurons:\nthe first steps lie outside)"
ax.text(0.42, 0.98, note, va="top", size=11, color="0.35", transform=ax.transAxes)
ax.set_xticks([1, *range(10, STEPS + 1, 10)]);

# %% [markdown]
# **What we saw.** The equation holds in all 336 networks. So in none of them did the residual change its sign before step 40. At
# every width the ratio approaches 1. Below zero the output has become shorter: in the first steps of many narrow networks, and
# after the very first step even of a few with 4096 neurons.
#
# **How large is the deviation at step 40?** It is the distance of the ratio from 1, $2 |\kappa| / (\eta c t)$. The mean of
# $|\kappa|$ is $\sqrt{2 / (\pi n)}$, and $c$ is close to $\sqrt{2 / \pi}$. So the theory predicts $2 / (\eta t \sqrt n)$ on
# average. At the first step that is about 62 % even with 4096 neurons. After 40 steps it should be 1.6 %.
#
# Each mean gets an interval over networks. Of seven intervals at 95 %, at least one misses in about 30 % of such experiments. At
# $1 - 0.05 / 7$, or 99.3 %, all seven hold together in about 95 %.

# %%
JOINT = 1 - 0.05 / len(WIDTHS)  # coverage of each interval, so that all widths together have 95 %


def table_of(groups, level):
    """A row for each group of numbers: their mean, and its interval."""
    rows = {name: mean_interval(numbers, level=level) for name, numbers in groups}
    return pd.DataFrame(rows, index=["mean", "low", "high"]).T.rename_axis("width")

# %%
last = early[early["step"] == STEPS].copy()
last["deviation"] = 100 * (last["growth"] / last["pure"] - 1).abs()
deviation = table_of(last.groupby("width")["deviation"], level=JOINT)
deviation["predicted"] = 100 * 2 / (ETA * STEPS * np.sqrt(deviation.index))
deviation.round(1)

# %% tags=["nbval-ignore-output"]
what = f"deviation from the quadratic\nafter {STEPS} steps (%)"
title = "The deviation falls as one over the root of the width\n(linear networks, SignSGD)"
bars = f"mean of {SEEDS} networks;\nintervals: 95 % for\nall {len(WIDTHS)} together"
plots.plot_by_width(deviation, what=what, measured=bars, predicted="theory: 2 / (ηt√n)", title=title);

# %%
slope = power_fit(last, "width", "deviation")
print(f"deviation ∝ width to the power of {slope.exponent:.2f}, 95 % interval {slope.low:.2f} to {slope.high:.2f}")
print(f"64 times as wide: {64**-slope.exponent:.1f} times smaller, between {64**-slope.high:.1f} and {64**-slope.low:.1f}")

# %% [markdown]
# **What we saw.** The theory (dashed; nothing is fitted) lies inside all seven intervals: 64 times the width should make the
# deviation 8 times smaller on average, and the measured factor agrees. (Its interval is a *bootstrap*: we draw networks again and
# again, with replacement.) This does not test the equation, which the recursion uses. It tests how large $\kappa$ is, and that
# the residual keeps its sign.
#
# **Recap.** The equation is exact at every width and step, as long as the residual keeps its sign. Growth is nearly quadratic
# only once $t \sqrt n$ is large: in wide networks, after the first steps.
#
# ## 6. Why NFN rises, and how far
#
# **Question.** The output grows. Is that alignment, or have the weights just become larger? And where does it end?
#
# **Predict.** By how many percent has $\|W\|_F$ grown after 40 steps, with 4096 neurons and with 64? Put in your two numbers.

# %%
guesses = {WIDTHS[-1]: 5.0, WIDTHS[0]: 20.0}  # neurons, and your guess in percent

# %%
# feature: mean squared output; baseline: ||W||_F / sqrt(n)
means = networks.groupby(["step", "width"])[["feature", "baseline"]].mean()
factors = means.loc[STEPS] / means.loc[0]
for n_guess, guess in guesses.items():
    print(f"{n_guess} neurons: weights + {100 * (factors['baseline'][n_guess] - 1):.2f} %, your guess + {guess} %")
print(f"length of the output: x {math.sqrt(factors['feature'][WIDTHS[-1]]):.2f}")

# %% [markdown]
# **Intuition.** In $t$ steps each of the $n^2$ entries of $W$ moves by $\eta t / n$. That adds about $n^2 (\eta t / n)^2 = (\eta
# t)^2$ to $\|W\|_F^2$, at any width. (Twice the inner product of $W_0$ and the change adds to this. It has mean zero and size $2
# \eta t / \sqrt n$, which is small beside the first in a wide network.) But $\|W_0\|_F^2$ is about $n$. So the baseline $\|W\|_F
# / \sqrt n$ grows by a share of about
# $(\eta t)^2 / 2n$, and this vanishes in a wide network. The squared output per neuron starts at about 1 and grows by $(\eta c
# t)^2$. So NFN has to rise:
#
# $$\mathrm{NFN} \approx \sqrt{1 + (\eta c t)^2}$$
#
# (This is for inputs whose squared entries have mean 1, as ours.) At first $\mathrm{NFN} - 1$ grows like $t^2$; later NFN
# approaches a straight line. In a narrow network the baseline in the denominator grows, too, and NFN is lower by that share.
#
# **What we do.** We compare all widths with both formulas. The intervals are over networks, 95 % for all seven together.

# %%
share = (ETA * STEPS) ** 2 / (2 * factors.index)  # by which the weights should grow
rises = table_of(last.groupby("width")["nfn"], level=JOINT)
rises["theory"] = theory[STEPS] / (1 + share)
rises["weights grow, %"] = 100 * (factors["baseline"] - 1)
rises["in theory, %"] = 100 * share
rises.round(2)

# %% [markdown]
# **What we saw.** NFN rises to 1.88 in wide networks, while the weights of the widest grow by 0.05 %. Nearly all of the growth is
# alignment. The weights grow as the formula says, too: at 64 neurons by 3.03 % (theory 3.12 %). At 64 neurons NFN is 1.79. Their
# growth brings the theory down from 1.88 to 1.83, and 1.83 is inside the interval.
#
# **How far does it go?** Growth ends when the residual is used up. A step moves $f = v^\top W z$ by $\eta c \|v\|_1$, the
# distance to go is $|y - f_0|$, and so the end is at step
#
# $$t^* = \frac{|y - f_0|}{\eta\, c\, \|v\|_1}, \qquad \mathrm{NFN}^* \approx \sqrt{1 + (y / \|v\|_1)^2}$$
#
# For $y = 2$ and $\eta = 0.05$ in a wide network ($\|v\|_1$ is near $\sqrt{2/\pi} \approx 0.80$, too, because the entries of $n
# v$ are normal; $f_0 \approx 0$) this is step 63, the end in the first picture. Its band becomes wider there, because $\|v\|_1$
# and $f_0$ differ between networks. It is jagged, because $f$ then jumps to and fro around $y$. In narrow networks $\|v\|_1$ and
# $f_0$ differ more, and some reach $t^*$ soon after step 40: this is why part 5 stops there.
#
# **Predict.** Here NFN ends at step 63, at 2.69. Where does it end with twice the step size? And with twice the label as well?
#
# **What we do.** We measure the step at which each network's loss is least: first as before, then with twice the step size, then
# with twice the label as well. We use 2048 neurons to save time. The intervals are over networks, 95 % for all six together.

# %%
def at_the_end(run):
    """The row of each network after which its loss rises for the first time."""
    next_rises = run.groupby("seed")["loss"].diff(-1) <= 0  # loss now, minus one step later
    end = run[next_rises].groupby("seed").first()
    if len(end) < SEEDS:
        raise ValueError("follow the networks for more steps")
    return end

# %%
ends = {}
for eta, target in [(ETA, 2.0), (2 * ETA, 2.0), (2 * ETA, 4.0)]:
    run = growth(2048, 2 * STEPS, eta=eta, target=target, seeds=SEEDS)
    ends[eta, target] = at_the_end(run)

# %%
for (eta, target), end in ends.items():
    step = mean_interval(end["step"], level=1 - 0.05 / 6)
    in_theory = target / (eta * c_wide**2)
    print(f"eta {eta:.2f}, y {target:.0f}: step {step.mean:.1f} ({step.low:.1f} to {step.high:.1f}), theory {in_theory:.1f}")

# %%
for (eta, target), end in ends.items():
    nfn_end = mean_interval(end["nfn"], level=1 - 0.05 / 6)
    share_end = (target / c_wide**2) ** 2 / (2 * 2048)  # the weights grow, too
    in_theory = math.sqrt(1 + (target / c_wide) ** 2) / (1 + share_end)
    print(f"eta {eta:.2f}, y {target:.0f}: NFN {nfn_end.mean:.2f} ({nfn_end.low:.2f} to {nfn_end.high:.2f}), theory {in_theory:.2f}")

# %% [markdown]
# **What we saw.** The theory lies inside all six intervals. With twice the step size growth ends in half the steps, and at about
# the same NFN. With twice the label it ends at an NFN of about 5. So $\eta$ sets how fast NFN rises. How far it rises is set by
# the distance to go, $|y - f_0|$, divided by the size of the readout, $\|v\|_1$; $\eta$ has no part in it, at any width, except
# that growth ends at a whole step.
#
# **Recap.** In a wide network nearly all of the rise in NFN is alignment, and the rise ends when the residual is used up.
#
# ## 7. What has this to do with adapters?
#
# **Question.** Forty steps have nearly doubled the length of the output. How large a matrix does it take to do that?
#
# **Predict.** Our network of 256 neurons has 65,536 weights, and training has changed all of them. How few numbers can hold this
# change?
#
# **Intuition.** By line 2 of the proof every step is the same outer product of two vectors. So is their sum.
#
# **What we do.** We take the network that we trained by hand, and write its change as a column times a row.

# %%
change = W.detach() - W0
signs = torch.sign((v @ W0 @ z - y) * v)  # of the gradient at the output
B = -ETA * STEPS / n * signs[:, None]  # n x 1
A = z.sign()[None]  # 1 x n
print(f"largest difference {(change - B @ A).abs().max():.9f}; {change.numel():,} weights, {B.numel() + A.numel()} numbers")

# %% [markdown]
# **What we saw.** 512 numbers are enough: the change is $BA$ with one column and one row. A matrix of this kind has *rank* 1.
#
# This is the shape of a LoRA adapter. LoRA (*low-rank adaptation*) freezes $W$ and trains a second path beside it: the output is
# $Wz + BAz$, where $A$ has $r$ rows and $B$ has $r$ columns. (LoRA multiplies $BAz$ by a constant $\alpha / r$; we leave it out.)
# The rank $r$ is small, so $B$ and $A$ are thin. LoRA starts with $B = 0$, so that the adapter changes nothing at first. The
# picture shows an adapter that could hold our change.

# %% tags=["nbval-ignore-output"]
draw_adapter(width=n, rank=1);

# %% [markdown]
# How can so small a matrix do so much? We compare the change with $W_0$ in three ways: by how much it stretches our $z$, by the
# most that it stretches any input (the largest singular value), and by the Frobenius norm.

# %%
for name, matrix in {"change": change, "W0": W0}.items():
    most, on_z = torch.linalg.svdvals(matrix)[0], (matrix @ z).norm() / z.norm()
    print(f"{name:7} on z {on_z:.2f}, largest singular value {most:.2f}, Frobenius norm {matrix.norm():.1f}")
print(f"cosine of the angle between z and S(z): {z @ z.sign() / z.norm() / math.sqrt(n):.2f}")

# %% [markdown]
# At step 40 the change stretches an input along $S(z)$ by $\eta t = 2$; the most that $W_0$ stretches any input happens to be
# about the same, 1.95. Our input $z$ is 35 degrees away from $S(z)$ (cosine 0.82). So the change stretches $z$ by $\eta t$ times
# this cosine, which is 1.65, and $W_0$ stretches $z$ by 1.06. The Frobenius norm counts all 256 directions, so the change is
# small there. This is why NFN, which looks at one input, sees what the weight norm does not.
#
# Take care with the conclusion. In our setting an adapter of rank 1 could hold the whole change; training $B$ and $A$ need not
# find it. With many tokens the sign of the gradient need not have a low rank. So this does not explain why LoRA works for
# language models.
#
# **Recap.** The change that training makes here is one column times one row. An adapter of rank $r$ holds $r$ of them. PLoP uses
# NFN to decide which types of maps (query, key, value and so on) get one.

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
# About half of all networks grow more than their pure quadratic. Write a function of $W_0$, $z$, $v$ and $y$ that says before
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
        pure = (ETA * z.abs().mean() * 20) ** 2
        is_more = bool(growth_of(W0, z, v, 2.0) > pure)
        assert bool(function(W0, z, v, 2.0)) == is_more, f"wrong for network {seed}"
    return "right for 20 networks"


check_sign(grows_more)


# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution: the cross term is positive.
def is_above(W0, z, v, y):
    output = W0 @ z
    return -torch.sign(v @ output - y) * (output @ v.sign()) > 0


check_sign(is_above)

# %% [markdown]
# ### 3. How late for 2 %? (5 minutes)
#
# After how many steps of $\eta = 0.05$ is the deviation of networks with 256 neurons 2 % on average? Suppose that the residual
# lasts. *Hint:* part 5 has the formula. Then compare with $t^*$: what does this say about narrow networks?

# %%
late_enough = None  # your turn: a whole number


# %%
def check_late(number):
    if number is None:
        return "not yet filled in"
    scaled = deviation["mean"] * np.sqrt(deviation.index / 256) * STEPS / number  # carried over to 256 neurons
    assert 1.8 < scaled.mean() < 2.2, f"after {number} steps it would be {scaled.mean():.1f} %"
    return f"after {number} steps: {scaled.mean():.1f} %, carried over from step {STEPS} and {len(scaled)} widths"


check_late(late_enough)

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution. 2 / (eta t sqrt(n)) = 0.02. But growth ends near step 63, where the deviation is still 4 % on average.
check_late(round(2 / (0.05 * math.sqrt(256) * 0.02)))

# %% [markdown]
# ## Questions for discussion
#
# 1. In a wide network NFN starts near 1 and goes up. The value maps of some pretrained models have scores far below 1, and the
#    paper has no explanation for it. How could training bring a score *below* 1? Which assumption of the box would you drop
#    first?
# 2. Which of the five lines of the proof would fail in a transformer block, and which would survive?
# 3. The authors tried to choose single layers instead of types, with inconsistent results. Does the theorem say anything about
#    layers?
#
# ## Three things to remember
#
# 1. **Growth is quadratic because every step adds the same vector.** $\frac1n\|W_t z\|^2$ grows by $(\eta c t)^2$ plus a random
#    cross term. Compared with the quadratic term, the cross term falls like $1 / (t \sqrt n)$: in the first steps even a wide
#    network is not yet quadratic.
# 2. **The weights hardly get longer**, so NFN itself rises. The whole change has rank one here, with one example.
# 3. **Growth lasts as long as the residual keeps its sign.** This sets how far NFN can rise, here to 2.7 with $y = 2$.
#
# **Not established.** Nothing here is about language models. The theorem has one map: for given $\eta$ and $c$, and inputs whose
# squared entries have mean 1, all wide maps rise on nearly the same curve; they can differ in where they stop. The theorem does
# not say where the maps of a transformer stop, so it does not explain why their scores differ. And PLoP supposes that a map with
# a low NFN has most to gain from an adapter. That is a separate assumption. The theorem does not support it, and notebook 01b
# tests a part of it: whether low scores rise most in finetuning.
#
# **Where next.** Notebook 01b takes the assumptions away, one at a time, and looks at SmolLM2. Notebook 02 asks how many texts a
# score needs.
