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
# **The question.** PLoP ([Hayou, Ghosh, Yu](https://arxiv.org/abs/2506.20629)) scores a linear map by its Normalized Feature Norm
# (NFN). NFN divides the length of the map's output by the length that noise would get. PLoP takes it as a sign of how far
# training has aligned the map with its inputs. Why would training raise NFN, how fast, and how far?
#
# **The answer.** SignSGD makes all steps equally long. While the residual keeps its sign, they also point the same way. So after
# $t$ steps the output has moved $t$ times as far as after one, and its squared length has grown with $t^2$. **Theorem 1** of the
# paper proves this growth of the output in a linear network. Part 7 adds that the baseline, the length of noise's output, stands
# still. So in a wide network $\mathrm{NFN} = \sqrt{1 + (\eta c t)^2}$, apart from a possible small dip in the first steps: at
# first it grows with $t^2$, later nearly along a straight line, until the residual is used up, here at about 2.7 near step 65.
# After the 40 steps that we mostly look at NFN is 1.88 on average (48 networks of 4096 neurons), and the Frobenius norm of the
# weights has grown by 0.05 %.
#
# | | |
# |---|---|
# | **You need** | notebook 00; matrices, gradients, a standard deviation; the words are in the [glossary](GUIDE.md#words) |
# | **It takes** | 85 minutes with the exercises; it runs in a minute or two on one CPU core, without a GPU |
# | **It runs** | small networks with 64 to 4096 neurons, trained here; no language model |
#
# **What the theorem does not say.** It is about a linear network and one datapoint: one input with its label. Notebook 01b takes
# its assumptions away, one at a time, and then looks at a real language model.

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
WIDTHS = (64, 128, 256, 512, 1024, 2048, 4096)  # of the networks
SEEDS = 48  # networks of each width
STEPS = 40  # of training
ETA = 0.05  # step size: how far a step moves an output

# %% [markdown]
# The next cells compute most networks of this notebook and draw the answer. They use the recursion that part 5 derives, instead
# of a gradient in each step; part 5 checks it against gradients. *Residual*: how far the network's output is above what it should
# be. *SignSGD*: every weight moves by the same step, up or down by the sign of its gradient.

# %% tags=["nbval-ignore-output"]
import math

import numpy as np
import pandas as pd

from plop_nb import growth_plots as plots
from plop_nb.experiments import growth, mean_interval, power_fit
from plop_nb.schematics import draw_adapter, draw_alignment

runs = {n: growth(n, STEPS, eta=ETA, seeds=SEEDS) for n in WIDTHS}
wide = pd.concat(runs, names=["width"]).reset_index("width")


# %%
def quadratic(steps, eta=ETA):
    """The theorem's growth after so many steps, in an infinitely wide network."""
    return 2 / math.pi * (eta * steps) ** 2


steps = np.arange(STEPS + 1)
theory = pd.Series(quadratic(steps), index=steps)
print(f"theory after {STEPS} steps: growth {theory[STEPS]:.3f}, NFN {math.sqrt(1 + theory[STEPS]):.3f}")

# %% tags=["nbval-ignore-output", "picture"]
some = wide[wide["width"].isin([WIDTHS[0], WIDTHS[3], WIDTHS[-1]])]
title = "The squared length of outputs grows with the square of the steps\n(linear networks, SignSGD with step 0.05 / n; bands: 95 % of 48 networks)"
plots.plot_growth(some, theory, title=title);

# %% [markdown]
# *Growth* is $\frac1n \|W_t z\|^2$, the squared length of the output per neuron, minus its value before training. The wider the
# networks, the closer they stay to the wide limit (dashed, $c^2 = 2 / \pi$). Two things spread the bands: the factor $c$, which
# differs from network to network, and the cross term of part 6. Both deviations fall like $n^{-1/2}$.
#
# | part | question | in the paper | minutes |
# |---|---|---|---|
# | 1 | What does the score compare? | definition of NFN | 10 |
# | 2 | Why not look at the length of $Wz$ alone? | normalisation of NFN | 5 |
# | 3 | Why is the step $\eta / n$? (muP) | assumption of Theorem 1 | 10 |
# | 4 | What does LoRA train? | background | 5 |
# | 5 | Why does the output grow with $t^2$? | Theorem 1 and its proof | 15 |
# | 6 | How exact is that at a finite width? | the cross term of Theorem 1 | 10 |
# | 7 | And why does NFN rise? | from Theorem 1 to NFN | 5 |
#
# **Notation.** Sizes such as $\Theta(1/n)$ say how a number changes with the width $n$, up to a factor that does not depend on
# $n$. *Noise* is a Gaussian vector, rescaled to the length of $z$. *Alignment* means that $z$ lies along directions that $W$ stretches more than average (in the root mean square): NFN above 1.
#
# | symbol | what it is |
# |---|---|
# | $W$, $W_t$ | a linear map ($n$ outputs, $n$ inputs), before training $W_0$, after $t$ steps $W_t$ |
# | $z$ | the input of the map, a vector of $n$ numbers |
# | $Wz$ | the output of the map, called its *feature*, also $n$ numbers |
# | growth | $\frac1n \Vert W_t z \Vert^2$ minus its value before training |
# | $\tilde z$, $u$ | noise of the same length as $z$; a random direction of length 1 |
# | $v$, $f = v^\top W z$ | the readout, a vector of $n$ numbers; the output of the network, one number |
# | $y$, $f - y$ | what $f$ should be; the *residual*, how far $f$ is above $y$ |
# | $\|z\|$, $\|z\|_1$, $\|W\|_F$ | root of the sum of squares; sum of absolute values; root of the sum of all squared entries (Frobenius norm) |
# | $S(\cdot)$ | the sign of each entry, $+1$ or $-1$ |
# | $\eta$, $t$ | the step size, and the number of steps |
# | $c = \|z\|_1 / n$ | the mean absolute value of an input's entries, near 0.80 for normal ones: a step moves each entry of $Wz$ by $\eta c$ |

# %% [markdown]
# ## 1. What the score compares
#
# **Question.** A map $W$ makes an input longer or shorter. Against what do we compare?
#
# **Intuition.** A map turns the circle of all inputs of length 1 into an ellipse. An input that $W$ sends to the long axis is
# stretched more than average. So we compare it with a random input of the same length. The ratio is the **Normalized Feature Norm
# (NFN)**:
#
# $$\mathrm{NFN}(W, z) = \frac{\|W z\|}{\|W \tilde z\|}, \qquad \|\tilde z\| = \|z\|$$

# %%
W = torch.tensor([[1.8, 0.6], [0.2, 0.7]])
z = torch.tensor([0.8, 0.6])
print(f"the input has length {z.norm():.3f}, its output {(W @ z).norm():.3f}")

# %% tags=["nbval-ignore-output"]
draw_alignment(weight=W.numpy());

# %% [markdown]
# **What we do.** We take this map and this input. First we need the *baseline*: how long is the output of a random input $u$ of
# length 1? We try 1,000 inputs all around the circle. No direction is preferred there, so $E[u u^\top] = I / 2$, and in $n$
# dimensions it is $I / n$. So the root mean square of $\|Wu\|$ is exactly $\|W\|_F / \sqrt n$. No noise has to be drawn.

# %%
angle = torch.arange(1000) * 2 * math.pi / 1000
circle = torch.stack([angle.cos(), angle.sin()])
baseline = (W @ circle).norm(dim=0).square().mean().sqrt()
print(f"baseline: {baseline:.4f} over the circle, {W.norm() / math.sqrt(2):.4f} by the formula")

# %% [markdown]
# **Predict.** Is the NFN of this input above or below 1? Then look: by hand, and with the package, which records the score of
# every linear map that a forward pass uses.

# %%
by_hand = ((W @ z).norm() / (z.norm() * baseline)).item()
layer = torch.nn.Linear(2, 2, bias=False)
layer.weight.data = W
with plop.record_norms(layer) as record:
    layer(z[None, None])  # one text of one token
by_package = record.frame()["nfn"].item()
print(f"NFN by hand {by_hand:.4f}, by plop_nb {by_package:.4f}")

# %% [markdown]
# **What we saw.** $W$ sends the input near the long axis, and its NFN is well above 1. The paper takes the *mean* length over
# noise where we take the root mean square. A mean is never larger than a root mean square, so the paper's score is higher: by 5
# to 6 % for this small map, and by less than 1 % for nearly all maps of real models.
#
# **Recap.** NFN is the length of an output over the output length of noise as long as $z$. About 1: the input meets $W$ like
# noise. Above 1: it lies along directions that $W$ amplifies.
#
# ## 2. Feature norm is not weight norm
#
# **Question.** If $\|W\|_F$ doubles but $\|W z\|$ stays the same, what does this say about $W$ and $z$?
#
# **Predict.** Choose before you open the answer: NFN doubles, stays, or halves?
#
# <details><summary>The answer</summary>
#
# It halves. $W$ now stretches a random input twice as much and this input as before. So the input lies along directions that are
# *relatively weaker* than they were. The length of the output says that nothing has happened. That is why NFN divides.
# </details>
#
# **What we do.** We build such a change: a matrix $a b^\top$ that reads only the direction $b$, across $z$. Because $b^\top z =
# 0$, it adds nothing to $W z$. We choose $a$ at a right angle to $W b$ and of length 1. Then $\|W + s\, a b^\top\|_F^2 =
# \|W\|_F^2 + s^2$, and $s = \sqrt3\, \|W\|_F$ doubles the norm.

# %%
b = torch.tensor([-z[1], z[0]])  # across z
a = torch.tensor([-(W @ b)[1], (W @ b)[0]]) / (W @ b).norm()
W2 = W + math.sqrt(3) * W.norm() * torch.outer(a, b)
print(f"weights: {W.norm():.2f} to {W2.norm():.2f}; output: {(W @ z).norm():.3f} to {(W2 @ z).norm():.3f}")


# %%
def nfn(weight, z):
    return ((weight @ z).norm() / (z.norm() * weight.norm() / weight.shape[1] ** 0.5)).item()


print(f"NFN: W {nfn(W, z):.3f}, W with twice the norm across z {nfn(W2, z):.3f}, 2 W {nfn(2 * W, z):.3f}")

# %% [markdown]
# **What we saw.** The output keeps its length, and NFN halves. In the reverse case, all of $W$ doubled, the output is twice as
# long and NFN does not move.
#
# **Recap.** A longer output can come from larger weights, a longer input, or better alignment. NFN leaves only the last.
#
# ## 3. muP: how the step must shrink with the width
#
# **Question.** Why must the learning rate fall like $1 / n$ when a network gets wider?
#
# **Intuition.** *SignSGD* moves every entry of $W$ by the same step $s$, up or down: it uses only the sign of the gradient. (Adam
# does nearly that while its gradients keep their size.) The gradient of $W$ is an outer product of two vectors: the gradient at
# the map's output, and its input $z$. So row $i$ moves by $\pm s\, S(z)$, and its output moves by
#
# $$s\; S(z)^\top z = s\, \|z\|_1 \approx 0.80\, n\, s$$
#
# All $n$ entries of a row push the same way, because the update is aligned with the input. Pushes of random sign would cancel,
# and their sum would grow like $\sqrt n\, s$ only. **muP** (maximal update parametrisation, [Yang &
# Hu](https://arxiv.org/abs/2011.14522)) sets the initial sizes and the learning rates of every layer so that features move by
# $\Theta(1)$ at any width. For hidden maps under SignSGD or Adam the rate is $\eta / n$.
#
# **Predict.** With which step $s$ does the output move equally far at every width: $\eta$, $\eta / \sqrt n$ or $\eta / n$?
#
# **What we do.** First one row of 4096 entries, then one training step of networks of several widths with each of the three rules
# (they are equal at 64 neurons).

# %%
n, generator = 4096, torch.Generator().manual_seed(0)
z = torch.randn(n, generator=generator)
signs = torch.randn(1000, n, generator=generator).sign()  # 1,000 rows that know nothing of z
random_push = (signs @ z).square().mean().sqrt()
print(f"aligned: {z.sign() @ z / n:.2f} n; random, root mean square: {random_push / math.sqrt(n):.1f} sqrt(n)")

# %% tags=["nbval-ignore-output"]
rules = {"constant": "standard", "η / √n": "sqrt", "η / n (muP)": "mup"}
moves = {}
for name, rule in rules.items():
    for n in WIDTHS[:5]:
        moves[name, n] = growth(n, 1, eta=ETA, rule=rule, seeds=8).query("step == 1")["moved"].mean()
moves = pd.Series(moves).unstack(0)[list(rules)]

# %% tags=["nbval-ignore-output"]
title = "Of three rules, only a step η / n moves outputs\nequally at every width (linear networks, one step of SignSGD)"
plots.plot_by_width(moves, what="change of an output in one step\n(root mean square)", title=title);

# %%
exponents = np.log2(moves.iloc[-1] / moves.iloc[0]) / math.log2(moves.index[-1] / moves.index[0])
exponents.abs().round(1).to_frame("output moves like n to the power of")

# %% [markdown]
# **What we saw.** With a constant step outputs move in proportion to $n$, with $\eta / \sqrt n$ in proportion to $\sqrt n$, and
# with $\eta / n$ equally far.
#
# <details><summary>Quick check: would random pushes need another rule?</summary>
#
# Yes. They move an output by $\sqrt n\, s$, so $\eta / \sqrt n$ would do. The rule $\eta / n$ is needed because gradients are
# aligned with the inputs. It is also why the weights hardly grow, as part 7 shows.
# </details>
#
# **Recap.** An aligned update has $n$ entries that push together. The step $\eta / n$ makes the movement of an output
# $\Theta(1)$: the same at every width.
#
# ## 4. LoRA in one page
#
# **Question.** What does LoRA train, and how much less is that?
#
# **Intuition.** LoRA freezes $W$ and trains a second path beside it: the output is $W z + B A z$, where $A$ has $r$ rows and $B$
# has $r$ columns. The *rank* $r$ is small, so that $A$ and $B$ are thin.

# %% tags=["nbval-ignore-output"]
draw_adapter();

# %% [markdown]
# **Predict.** Public notes on the paper say that LoRA needs more than 99 % less memory for gradients than full finetuning. Is
# that so for SmolLM2-135M with rank 16 on value, up and down?
#
# **What we do.** A square map with $n$ inputs and outputs has $n^2$ entries and its adapter $2 r n$: a share of $2r / n$. In
# general an adapter has $r$ times (inputs + outputs) parameters. We write down the sizes of the model's maps and add up. (The
# picture shows a query map; it is not to scale.)

# %%
d, ff = 576, 1536  # SmolLM2-135M: width of the model, width inside of the MLP
shapes = {"q": (d, d), "k": (d, 192), "v": (d, 192), "o": (d, d), "gate": (d, ff), "up": (d, ff), "down": (ff, d)}
entries = sum(inputs * outputs for inputs, outputs in shapes.values())
whole = 49152 * d + 30 * (entries + 2 * d) + d  # embedding, 30 layers, norms
print(f"{whole:,} parameters")

# %%
for types, rank in [("v up down", 8), ("q v", 16), ("v up down", 16), ("q k v o gate up down", 16)]:
    adapters = 30 * sum(rank * sum(shapes[name]) for name in types.split())
    print(f"rank {rank} on {types}: {adapters / whole:.2%} of the model")

# %% [markdown]
# **What we saw.** No: rank 16 on value, up and down has 1.78 % of the parameters, so 98.2 % fewer. It depends on where the
# adapters sit and on their rank. Rank 8 on value, up and down, or rank 16 on query and value, has less than 1 % of the model's
# parameters. Rank 16 on value, up and down has more. Gradients and the optimizer's state exist only for these parameters. Memory
# for activations may fall where a map has no adapter: a frozen map need not keep its input for the backward pass. The layers
# around it must still keep theirs.
#
# **Recap.** LoRA trains $2rn$ numbers instead of $n^2$ beside each chosen map. $B$ starts at zero, so nothing changes at first.
# Which maps to choose is the question that PLoP answers with NFN.
#
# ## 5. Theorem 1: the square of the steps
#
# **Question.** How does $\|Wz\|$ change while $W$ is trained?
#
# > **Theorem 1** (Feature Norm Growth in Linear Networks; in our words, with the constants worked out)
# >
# > *Assume:*
# >
# > 1. a linear network $f = v^\top W z$ of width $n$, of which only $W$ is trained,
# > 2. on one datapoint $(z, y)$ with the loss $\frac12 (f - y)^2$,
# > 3. by SignSGD with the muP step $\eta / n$,
# > 4. from independent $W_0$ with entries $N(0, 1/n)$,
# >    an input $z$ whose entries have size $\Theta(1)$, and a readout $v$ whose entries have size $\Theta(1/n)$,
# > 5. as long as the residual $f - y$ keeps its sign.
# >
# > *Then* the output's squared length per neuron is
# >
# > $$\frac1n\|W_t z\|^2 = \frac1n\|W_0 z\|^2 + \underbrace{(\eta c t)^2}_{\text{quadratic}} + \underbrace{2\,\eta c t \cdot \kappa}_{\text{cross term}},
# > \qquad c = \frac{\|z\|_1}{n}, \quad \kappa = -\frac1n\, S(f_0 - y)\,\langle W_0 z, S(v)\rangle ,$$
# >
# > and $\kappa$ is a random number of size $\Theta(n^{-1/2})$: *in a wide network growth is quadratic in $t$.* (The identity needs no assumption 4; the sizes of $c$ and $\kappa$, and how long assumption 5 lasts, do.)
#
# **Intuition.** Every step adds the same vector to $Wz$. The sum of $t$ equal vectors is $t$ times as long as one.
#
# **Derivation in five lines.**
#
# 1. The gradient is an outer product: $\nabla_W \frac12 (f-y)^2 = (f - y)\, v z^\top$.
# 2. Its sign is one, too: $S\big((f - y)\, v z^\top\big) = S\big((f - y)\, v\big)\, S(z)^\top$.
# 3. So a step moves the output by $-\frac{\eta}{n} S\big((f-y)\, v\big)\, S(z)^\top z = -\eta\, c\; S\big((f - y)\, v\big)$,
#    since $S(z)^\top z = \|z\|_1 = n c$.
# 4. While $f - y$ keeps its sign, this vector is the same in every step: $W_t z = W_0 z - \eta c t\; S\big((f_0 - y)\, v\big)$.
# 5. Take the squared length and divide by $n$. A vector of $n$ signs has squared length $n$, which gives the quadratic part. The
#    mixed product gives the cross term.
#
# **Predict.** After 40 steps of $\eta = 0.05$: by which factor has $\|Wz\|$ grown in a wide network, and by which factor
# $\|W\|_F$?

# %%
guess_output, guess_weights = 2.0, 2.0  # your guesses; part 7 has the answer

# %% [markdown]
# **What we do.** First without the package. The next cells draw a network with 256 neurons as the box says. The cell after them
# is the whole training: loss, gradient, sign, step, and the squared length of the output.

# %%
def start(n, seed):
    """W0, z and v of a network with n neurons before training."""
    random = torch.Generator().manual_seed(seed)
    W0, z, v = (torch.randn(shape, generator=random).double() for shape in [(n, n), (n,), (n,)])
    return W0 / math.sqrt(n), z, v / n


# %%
n, y = 256, 2.0
W0, z, v = start(n, seed=7)
print(f"n = {n}, y = {y:.0f}, f before training {v @ W0 @ z:.2f}")

# %%
W, lengths = W0.clone().requires_grad_(), [(W0 @ z).square().mean().item()]
for _ in range(STEPS):
    loss = (v @ (W @ z) - y) ** 2 / 2
    (gradient,) = torch.autograd.grad(loss, W)
    W.data -= ETA / n * gradient.sign()
    lengths.append((W.detach() @ z).square().mean().item())

# %% [markdown]
# That is all of it. Now the closed form from the box, computed before any training from $W_0$, $z$, $v$ and $y$:

# %%
c = z.abs().sum().item() / n
cross = (-torch.sign(v @ W0 @ z - y) * (W0 @ z) @ v.sign()).item() / n
loop = pd.DataFrame({"step": steps, "growth": np.array(lengths) - lengths[0], "pure": (ETA * c * steps) ** 2})
loop["closed"] = loop["pure"] + 2 * ETA * c * steps * cross
loop[::10].set_index("step").round(4)

# %%
off = (loop["growth"] - loop["closed"]).abs().max()
print(f"loop and closed form agree to 9 decimal places: {off < 5e-10}; c = {c:.3f}, kappa = {cross:.3f}")

# %% tags=["nbval-ignore-output"]
title = f"A linear network of {n} neurons, trained by SignSGD,\nfollows the closed form at every step"
plots.plot_closed_form(loop, title=title);

# %% [markdown]
# **What we saw.** The loop and the closed form agree at every step, to 9 decimal places. The formula is exact at every width, not
# only in the limit. The distance between the two curves is the cross term.
#
# Assumption 5 is one that we can check: the residual must keep its sign. The squared loss cannot show that, the residual can:

# %%
residual = (v @ W.detach() @ z - y).item()
first = (v @ W0 @ z - y).item()
print(f"residual f - y: {first:.2f} before training, {residual:.2f} after {STEPS} steps")

# %% [markdown]
# **The package** does the same for many networks. `growth` draws its own, trains them and returns one row for each seed and step.
# For a linear network with SignSGD it uses lines 3 and 4 of the derivation instead of a gradient, which is much faster.
# `dense=True` makes it take the gradient. Do both ways agree in a wide network?

# %%
by_lines = growth(1024, STEPS, eta=ETA, seeds=1)
by_gradient = growth(1024, STEPS, eta=ETA, seeds=1, dense=True)  # loss, gradient, sign, step
off = (by_lines["growth"] - by_gradient["growth"]).abs().max()
print(f"growth after {STEPS} steps: {by_gradient['growth'].iloc[-1]:.3f} by gradient; the two differ by less than 0.0001: {off < 1e-4}")

# %%
moved = ETA * wide["c"] * wide["step"]
wide["pure"] = moved**2
wide["closed"] = wide["pure"] + 2 * moved * wide["cross"]
off = (wide["growth"] - wide["closed"]).abs().max()
print(f"{wide.groupby(['width', 'seed']).ngroups} networks, {len(wide):,} values: all within 1e-6 of the closed form: {off < 1e-6}")

# %% [markdown]
# The last line is no independent test: both sides use lines 3 and 4 of the derivation. It shows only that the residual, which
# `growth` looks at in every step, kept its sign in all networks. The gradient itself was checked in one network of 256 neurons
# and in one of 1024.
#
# **Recap.** Outputs move along one fixed vector, so their squared length grows with $t^2$. The formula has a quadratic part,
# which differs between networks only through $c$ (0.80 when wide), and a cross term that depends on the start. The cross term can
# be negative, so growth may dip in the first steps.
#
# ## 6. How exact is it at a finite width?
#
# **Question.** The cross term spoils the pure quadratic. How large is it?
#
# **Intuition.** $\langle W_0 z, S(v) \rangle$ adds $n$ numbers of size 1 with random signs. Such a sum has size $\sqrt n$, and
# divided by $n$ it has size $n^{-1/2}$. More exactly: for a given $z$ it is normal, and so is $\kappa$, with standard deviation
# $\|z\| / n \approx n^{-1/2}$. (The sign $S(f_0 - y)$ does not disturb this, because $y = 2$ is so far away that it fixes the
# sign.)
#
# **Predict.** A network 64 times as wide: how many times smaller is its deviation from the pure quadratic?
#
# **What we do.** First the exponent of the mean growth, $\text{growth} \propto t^p$. It should be 2. We fit it from step 10 on,
# because the cross term is about $50 / (t \sqrt n)$ times the quadratic part in single networks ($2 / (\eta c \sqrt n\, t)$),
# which is large at small $t$. The intervals are at 99 % for each width, because there are seven of them.

# %%
late = wide.query("step >= 10").groupby("width")
fits = {width: power_fit(run, "step", "growth", level=0.99)._asdict() for width, run in late}
pd.DataFrame(fits).T.rename_axis("width").round(2)

# %% [markdown]
# Now single networks, each divided by its own $(\eta c t)^2$, so that only the cross term is left. The deviation of a network is
# $|\text{growth} / (\eta c t)^2 - 1|$ at the last step. By the formula it is
# $2 |\kappa| / (\eta c t)$, and the mean of $|\kappa|$ is $\sqrt{2 / \pi}\, \|z\| / n \approx \sqrt{2 / (\pi n)}$. With $c =
# \sqrt{2 / \pi}$ this gives $2 / (\eta t \sqrt n)$ on average.

# %%
last = wide.query("step == @STEPS").copy()
last["deviation"] = 100 * (last["growth"] / last["pure"] - 1).abs()
groups = last.groupby("width")["deviation"]

# %%
deviation = pd.DataFrame({width: mean_interval(values)._asdict() for width, values in groups}).T
deviation["predicted"] = 100 * 2 / (ETA * STEPS * np.sqrt(deviation.index))
deviation.rename_axis("width").round(1)

# %% tags=["nbval-ignore-output"]
what = f"deviation from the quadratic\nafter {STEPS} steps (%)"
plots.plot_by_width(deviation, what=what, title="The deviation falls as one over the root of the width\n(linear networks, SignSGD; means of 48, 95 % t intervals)");

# %%
slope = power_fit(last, "width", "deviation")
print(f"deviation ~ width to the power of {slope.exponent:.2f}, 95 % interval over networks {slope.low:.2f} to {slope.high:.2f}")
means = deviation["mean"]
print(f"{WIDTHS[-1] // WIDTHS[0]} times as wide: {means.iloc[0] / means.iloc[-1]:.1f} times smaller")

# %% [markdown]
# **What we saw.** The exponent is 2 within a few hundredths from 512 neurons on. The deviation of a single network falls like
# $n^{-1/2}$, with the constant that the formula gives (dashed). So 64 times the width should make it 8 times smaller. Measured,
# with 48 networks each, it is a factor of 9.0.
#
# **Recap.** The theorem is about wide networks because the cross term is random, is of size $n^{-1/2}$, and vanishes.
#
# ## 7. The length of the weights hardly grows, so NFN rises
#
# **Question.** Outputs grow. Is that alignment, or have the weights just become larger? And how far does it go?
#
# **Intuition.** The same $t$ steps change each of the $n^2$ entries of $W$ by $\eta t / n$, always in the same direction. That
# adds $(\eta t)^2$ to $\|W\|_F^2$, whatever the width (and a random term that is small beside $n$). But $\|W\|_F^2$ is about $n$
# before training. So the baseline $\|W\|_F / \sqrt n$ grows by a share of about $(\eta t)^2 / 2n$, which vanishes in a wide
# network. NFN then has to rise to $\sqrt{1 + (\eta c t)^2}$ (for an input whose squared entries have mean 1). At first that is
# $1+(\eta ct)^2/2$, later a straight line.
#
# **What we do.** We compare the ends with the starts, for each width.

# %%
first = wide.query("step == 0").set_index(["width", "seed"])
end = last.set_index(["width", "seed"])
grown = pd.DataFrame({"NFN before": first["nfn"], "NFN after": end["nfn"]}).groupby("width").mean()

# %%
longer = 100 * (end["baseline"] / first["baseline"] - 1)
grown["weights grow by, %"] = longer.groupby("width").mean()
grown["predicted, %"] = 100 * (ETA * STEPS) ** 2 / (2 * grown.index)
grown.round(2)

# %% tags=["nbval-ignore-output"]
title = "Alignment, not magnitude: NFN grows, the baseline does not\n(48 linear networks of 4096 neurons, SignSGD; bands: 95 % of them)"
plots.plot_alignment(wide[wide["width"] == WIDTHS[-1]], theory.add(1).pow(0.5), title=title);

# %%
reached = end.loc[WIDTHS[-1], "nfn"].mean()
low, high = first.loc[WIDTHS[3], "nfn"].quantile([0.025, 0.975])
print(f"NFN before training, {WIDTHS[3]} neurons: 95 % between {low:.2f} and {high:.2f}")
factor = 1 + grown["weights grow by, %"].iloc[-1] / 100
print(f"NFN at {WIDTHS[-1]} neurons: {reached:.2f}; theory for n to infinity {math.sqrt(1 + theory[STEPS]):.2f}")
print(f"output: your guess x {guess_output}, here x {(1 + theory[STEPS]) ** 0.5:.2f} in the wide limit; weights: your guess x {guess_weights}, here x {factor:.4f}")

# %% [markdown]
# **What we saw.** Before training NFN is about 1 (0.95 to 1.05 in 95 % of the networks of 512 neurons): the start knows nothing
# of $z$. Forty steps take it to 1.88 in the widest networks, and the Frobenius norm of their weights grows by 0.05 %. Nearly all
# of the growth is alignment.
#
# **How far?** A step moves $f = v^\top W z$ by $\eta c \|v\|_1$, so the residual is used up near $t^* = |y - f_0| / (\eta c
# \|v\|_1)$. NFN is then about $\sqrt{1 + (y / \|v\|_1)^2}$, whatever $\eta$. With $\|v\|_1 \approx 0.80$ and $y = 2$ this is step
# 63 for our $\eta$, and NFN 2.7. We train on until then:

# %%
ends = {}
for eta in (ETA, 2 * ETA):
    run = growth(512, 80, eta=eta, seeds=16)
    ends[f"eta = {eta}"] = run.loc[run.groupby("seed")["loss"].idxmin(), ["step", "nfn"]].mean()
pd.DataFrame(ends).T.round(1).rename_axis("where the loss is least")

# %% [markdown]
# **What we saw.** Both means are near the formula. (The value 2.7 depends on $y = 2$, which is our choice.)
#
# **Why do the weights not feel it?** Each step has the same rank-one matrix, so the whole training adds one matrix of rank one to
# $W_0$. We look at the network that we trained by hand:

# %%
change = W.detach() - W0
largest = [torch.linalg.svdvals(matrix)[0].item() for matrix in (change, W0)]
print(f"rank {torch.linalg.matrix_rank(change).item()}; largest singular value: change {largest[0]:.2f}, W0 {largest[1]:.2f}")
for width in (n, WIDTHS[-1]):
    print(f"Frobenius norm of the change at {width} neurons: {ETA * STEPS / math.sqrt(width):.1%} of that of W0")

# %% [markdown]
# In its one direction the change is as strong as the strongest direction of $W_0$, for our $\eta t = 2$; it grows with $t$. The
# Frobenius norm counts all $n$ directions, so there it is hardly visible. An adapter of rank 1 could hold this whole change. With
# many tokens the sign of the gradient need not have a low rank, so this does not explain why LoRA works.
#
# **Recap.** $\frac1n\|Wz\|^2$ grows by $\Theta(1)$ from about 1. $\|W\|_F^2$ grows by $\Theta(1)$, too, from about $n$. So NFN
# records alignment, until the residual is used up. The paper takes a further step: a map with a low NFN has been aligned little,
# and so it has most to gain. That step is not part of the theorem.

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
# training whether this network will. *Hint:* which term of the box has a sign?

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
        network = start(128, seed)
        pure = (ETA * network[1].abs().mean() * 20) ** 2
        is_more = bool(growth_of(*network, 2.0) > pure)
        assert bool(function(*network, 2.0)) == is_more, f"wrong for network {seed}"
    return "right for 20 networks"


check_sign(grows_more)


# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution: the cross term is positive.
def is_above(W0, z, v, y):
    output = W0 @ z
    return -torch.sign(v @ output - y) * (output @ v.sign()) > 0


check_sign(is_above)

# %% [markdown]
# ### 3. How wide for 1 %? (10 minutes)
#
# How wide must a network be so that its deviation after 40 steps of $\eta = 0.05$ is 1 % on average? *Hint:* part 6 has the
# formula.

# %%
width_needed = None  # your turn: a number of neurons


# %%
def check_width(number):
    if number is None:
        return "not yet filled in"
    scaled = deviation["mean"] * np.sqrt(deviation.index / number)  # each width, carried over to yours
    assert 0.9 < scaled.mean() < 1.1, f"at {number:,.0f} neurons it would be {scaled.mean():.1f} %"
    return f"{number:,.0f} neurons: {scaled.mean():.1f} %, carried over from {len(scaled)} widths"


check_width(width_needed)

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution. 2 / (eta t sqrt(n)) = 0.01; the two factors sqrt(2 / pi) cancel.
check_width((2 / (0.05 * 40 * 0.01)) ** 2)

# %% [markdown]
# ## Questions for discussion
#
# 1. The theorem starts at NFN = 1 and goes up. The value maps of some pretrained models have scores far below 1, and the paper
#    says that it has no explanation for it. How could training bring a score *below* 1? Which assumption of the box would you
#    drop first?
# 2. The theorem holds for linear networks. Which of its five lines would fail in a transformer block, and which would survive?
# 3. The authors tried to choose single layers instead of types, with results that did not agree. Does the theorem say anything
#    about layers?
#
# ## Three things to remember
#
# 1. **Growth is quadratic because every step adds the same vector.** $\frac1n\|W_t z\|^2$ grows by $(\eta c t)^2$ plus a cross
#    term of size $n^{-1/2}$.
# 2. **The length of the weights stands still**, so NFN itself rises: alignment, not magnitude. The change has rank one.
# 3. **It lasts as long as the residual keeps its sign.** That is the assumption to watch, and it sets how far NFN can rise.
#
# **Not established.** Nothing here is about language models, and nothing says that a map with a low NFN gains more from adapters.
# The theorem tells how alignment grows in one linear map, trained on one datapoint.
#
# **Where next.** Notebook 01b breaks the assumptions one at a time and looks at SmolLM2. Notebook 02 asks how many texts a score
# needs.
