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
# # Where do the adapters go?
#
# **The question.** LoRA finetunes a language model by training small *adapters* on some of its *linear maps*, the matrices that
# multiply vectors. Which maps should get the adapters?
#
# **The answer of PLoP** (Precise LoRA Placement, [Hayou, Ghosh, Yu, ICLR 2026](https://arxiv.org/abs/2506.20629)). Run a few
# texts of your task through the model. Give each type of map a *score*: how long its outputs are, divided by how long they would
# be if its inputs were random noise of the same length as the real ones. Put the adapters on the three types with the lowest
# scores. For SmolLM2-135M-Instruct (below: SmolLM2) and math questions these are **value, up and down**.
#
# **Is it a good answer?** The score is cheap. That a model trains better with adapters on the lowest types is another claim. The
# paper reports gains on larger models. On this small one PLoP's choice is not shown to be better than the plainest rival,
# adapters on gate, up and down (the *MLP*), and on one of three tasks it is worse (section 5). The score also depends on how the
# model is stored (section 2).
#
# | | |
# |---|---|
# | **You need** | some PyTorch, the norm of a vector, what a confidence interval is; the words are in the [glossary](GUIDE.md#words) |
# | **It takes** | 20 minutes to read, and 20 more for the exercises |
# | **It runs** | on a real model, in under a minute on two ordinary CPU cores, once the model is downloaded; no GPU, no account |

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
# The text describes the results for these settings; with others, go by the outputs.
MODEL = "SmolLM2-135M-Instruct"  # or a decoder, by its id on the Hugging Face Hub, or a folder
TASK = "math"  # texts to score: "math", "code", "logic", or a Hub data set id
EXAMPLES = "short_sums"  # to train on, with answers: "short_sums", "spelling", "short_syllogisms", "gsm"
TEXTS = 32  # how many texts to score
K = 3  # how many types of maps get adapters
RANK = 16  # of the adapters
STEPS = 8  # of training, eight examples each

# %% tags=["nbval-ignore-output"]
import warnings

import pandas as pd

warnings.filterwarnings("ignore", category=FutureWarning)  # about functions that we do not use
model, tokenizer = plop.load_model(MODEL)
texts = plop.load_texts(TASK, n=TEXTS)
print(texts[0])

# %% tags=["copy", "show"]
scores = plop.nfn_scores(model, texts, tokenizer)
plop.by_type(scores).round(3)

# %% tags=["nbval-ignore-output", "picture"]
placement = plop.place(scores, k=K)
lowest = ", ".join(name.removesuffix("_proj") for name in placement.types)
title = f"{lowest} score lowest (one layer of {scores['layer'].nunique()}; {MODEL}, {len(texts)} {TASK} texts)"
plop.plot_block(scores, placement=placement, title=title);

# %% [markdown]
# **How to read them.** The picture shows one *layer*; SmolLM2 has 30. Its *attention* moves information between tokens, and its
# *MLP* treats each token by itself. Both read the *residual stream*, the vector of each token, and add to it. Each coloured box
# is one linear map, also called a *module*: `q_proj`, `k_proj`, `v_proj` and `o_proj` are query, key, value and output. The maps
# with the same role, one in each layer, form a *type*.
#
# The number in a box is the score of its type, the *Normalized Feature Norm* (NFN): the mean over the tokens of each text, the 32
# texts and the 30 maps of the type. Noise would get about 1; a blue box has less, a red box more, and up and down are so near 1
# that they look almost white. In the table, `low` and `high` are the 95 % confidence interval for other texts from the same
# generator (`gsm_symbolic` of reasoning-gym). It takes the 30 layers as given.
#
# PLoP has five steps. The first four give the scores:

# %% tags=["nbval-ignore-output"]
from plop_nb.schematics import draw_method

draw_method();

# %% [markdown]
# ## 1. A model and its maps
#
# **Question.** Where *could* adapters go, and what do they cost?
#
# **Intuition.** A linear map is a matrix $W$ that turns a vector $z$ into $Wz$. An adapter adds a second, cheap map:
#
# $$W z + \frac{\alpha}{r} B A z$$
#
# The matrix $A$ has only $r$ rows and $B$ only $r$ columns. The number $r$ is the *rank*, and $\alpha$ sets the scale. $B$ starts
# at zero, so at first nothing changes. Training changes $A$ and $B$ and leaves $W$ alone. On a map with $d$ inputs and $m$
# outputs an adapter has $r (d + m)$ parameters.
#
# **What we do.** We add up, for each type, the parameters of its maps and of their adapters at rank 16.

# %% tags=["copy"]
table = plop.module_table(model).query("status == 'scored'").copy()
table["adapters"] = 16 * (table["in_features"] + table["out_features"])
table.groupby(["type", "in_features", "out_features"])[["parameters", "adapters"]].sum()

# %% [markdown]
# **What we saw.** Adapters on value cost 0.37 million parameters, and adapters on up, gate or down 1.01 million each. On all
# seven types they would have 4.9 million, 3.6 % of the model's. (The *output head* is left out, as in the paper.)

# %% [markdown]
# ## 2. The score
#
# **Question.** How does a map treat the inputs that it gets?
#
# **Intuition.** A map stretches some directions and shrinks others. Take one token's vector $z$, and random noise $\tilde z$ of
# the same norm. If $Wz$ is longer than $W\tilde z$, then $z$ leans towards directions that $W$ stretches more than its average.
# The ratio
#
# $$\mathrm{NFN}(W, z) = \frac{\|W z\|}{\|W \tilde z\|}$$
#
# is the **Normalized Feature Norm (NFN)**, the score of this map on this token. Noise would get about 1.
#
# The paper argues that training raises this ratio. It proves something about the numerator: in a wide linear network with one
# trained matrix, one training example and steps by the sign of the gradient, $\|Wz\|^2$ grows with the square of the number of
# steps. That the ratio then rises as well is our step (notebook 01), and for transformers all of this is an assumption. That a
# low score marks a map with much left to gain is inferred, not proved. The paper has no explanation for scores below 1, where
# random weights score about 1 (notebook 04 looks for a cause).

# %% [markdown]
# **Predict.** The value type scores 0.60. We now compute the score by hand, for the value map of the *first* layer and the
# *first* text. Will it be near 0.60 as well?
#
# **What we do.** A *hook* is a function that PyTorch calls when a module runs. Ours keeps the module's input:

# %%
lowest_type = scores[scores["type"] == placement.types[0]]
name = lowest_type.loc[lowest_type["layer"] == 0, "module"].iloc[0]
seen = []
hook = model.get_submodule(name).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
with torch.no_grad():
    model(**tokenizer(texts[0], return_tensors="pt").to(model.device))
hook.remove()
z = seen[0][0].float()  # of the only text in the batch
print(f"{name} met {z.shape[0]} tokens of {z.shape[1]} numbers each")

# %% [markdown]
# Then we need the *baseline*: how long is $Wu$ for a random direction $u$ of norm 1 with $d$ numbers? No direction is preferred,
# so $E[u u^\top] = I / d$, and
#
# $$E \|W u\|^2 = \mathrm{tr}\left(W \, E[u u^\top] \, W^\top\right) = \|W\|_F^2 / d,$$
#
# with $\|W\|_F^2$ the sum of all squared entries. The square root of this mean, $\|W\|_F / \sqrt d$, is the *closed form*. We
# compare it with 2,000 draws:

# %%
W = model.get_submodule(name).weight.detach().float()
noise = torch.randn(2000, W.shape[1], generator=torch.Generator().manual_seed(0)).to(W.device)
lengths = (noise @ W.T).norm(dim=1) / noise.norm(dim=1)
closed = W.norm() / W.shape[1] ** 0.5
print(f"2000 draws: mean {lengths.mean():.3f}, root mean square {lengths.square().mean().sqrt():.3f}")
print(f"closed form: {closed:.3f}")

# %% [markdown]
# The paper takes the mean of draws, and `plop_nb` the closed form; averaged by type, the two differ by less than half a percent
# (notebook 02). The score of a map on a text is the mean ratio over the text's tokens. The package finds the same number:

# %%
ratios = (z @ W.T).norm(dim=1) / (z.norm(dim=1) * closed)  # one for each token
package = plop.nfn_scores(model, texts[:1], tokenizer, progress=False).set_index("module")["nfn"]
print(f"NFN of {name} on the first text: {ratios.mean():.3f} by hand, {package[name]:.3f} by plop_nb")

# %% [markdown]
# It is 0.87, far above 0.60. Is this due to the text, or to the layer?

# %%
by_text = lowest_type.loc[lowest_type["layer"] == 0, "nfn"]
by_layer = lowest_type.groupby("layer")["nfn"].mean()
print(f"first layer, {len(by_text)} texts: {by_text.min():.2f} to {by_text.max():.2f}")
print(f"{len(by_layer)} layers, mean over texts: {by_layer.min():.2f} to {by_layer.max():.2f}")

# %% [markdown]
# **What we saw.** It is mostly the layer. On every text the first layer scores between 0.82 and 0.91, while the layers range from
# 0.41 to 0.86. A type's score is the mean of its maps' ratios (this order of averaging is ours). With the median over layers,
# output would take the place of down among the three lowest types (notebook 03).
#
# The score also depends on how the model is stored. In front of many maps stands a *norm*, which brings a vector to a fixed
# length and then multiplies each entry by a trained number, its *gain*. One can multiply the gains into the maps that read them.
# The model then computes the same, but value, up and **gate** score lowest ([notebook 04](04_what_nfn_measures.ipynb)).
#
# **Predict.** Query, key and value read the *same* vectors, yet the first table gives them 1.37, 1.56 and 0.60. How can that be?
#
# <details><summary>The answer</summary>
#
# The score compares an input with the directions of one map, and each of the three maps has its own. In each layer one direction
# is shared by all tokens, and on average it holds more than half of the vectors' squared norm. About three quarters of its square
# lie in a single entry. Query and key stretch this direction (its mean NFN is 1.7 and 1.9), and value shrinks it (0.33). Without
# the direction the three would score about 1.0, 1.2 and 0.9. For value most of this change is due to the single entry, for query
# to the rest of the direction. Notebook 04 measures this.
#
# </details>

# %% [markdown]
# ## 3. Do other texts change the order?
#
# **Question.** PLoP is meant to find the place *for a task*. We scored math questions. Would other texts give the same three
# types?
#
# **Predict.** Take questions about history. How many of the seven types will change their place in the order?

# %%
history = plop.load_texts("history", n=TEXTS)
kinds = {TASK: scores, "history": plop.nfn_scores(model, history, tokenizer)}
print(history[0])

# %%
means = {kind: plop.by_type(own).set_index("type")[["nfn", "low", "high"]] for kind, own in kinds.items()}
pd.concat(means, axis=1).round(3)

# %% tags=["nbval-ignore-output"]
from plop_nb.kind_plots import plot_kinds

plot_kinds(kinds, k=K, model=MODEL);

# %% [markdown]
# **What we saw.** No type changes its place, though the scores differ a little. The gap that decides the placement, between down
# and output, is 0.135 on math and 0.127 on history, many times wider than the intervals.
#
# Another *model* may have another order: in the paper, Llama-3.2-1B has value, output and down lowest.

# %% [markdown]
# ## 4. Do the adapters sit where they should?
#
# **Question.** A *placement* is the set of types that get adapters. [PEFT](https://huggingface.co/docs/peft) is the library that
# puts adapters in. It takes the names of their places from a `LoraConfig`. Do the adapters end up on the maps that we named?
#
# **Predict.** We ask for adapters on `v_proj` and, with a typing error, on `up_porj`. Will PEFT raise an error, warn, or say
# nothing?

# %%
import copy

from peft import LoraConfig, get_peft_model

typo = LoraConfig(r=RANK, target_modules=[placement.types[0], "up_porj"])
get_peft_model(copy.deepcopy(model), typo).print_trainable_parameters()

# %% [markdown]
# PEFT says nothing. It adapts value alone: $16 \, (576 + 192) \cdot 30 = 368{,}640$ parameters, as in section 1.
#
# **What we do.** `placement.check` tries the same configuration on a copy of the model without weights, and compares the maps
# that it hits with the chosen ones:

# %%
try:
    placement.check(model, typo)
except ValueError as error:
    print(error)

# %% [markdown]
# 60 modules are missed: the 30 up maps by the typing error, and the 30 down maps, for which this configuration never asked.
# `lora_config` makes a configuration from the placement, here with $\alpha = 2 r$.

# %% tags=["show"]
config = placement.lora_config(model, r=RANK, lora_alpha=2 * RANK)
print(placement.certainty)
placement.check(model, config)

# %% [markdown]
# **What we saw.** Now every chosen module gets an adapter, and no other one. `trainable` counts the adapters' parameters. (Three
# types are the paper's choice.)
#
# The printed *confidence* is how often these three types come out lowest, if mean scores are drawn anew with the standard error
# over 32 texts. It does not say that adapters train better there.

# %% [markdown]
# ## 5. Do adapters there train better?
#
# **Question.** Do adapters on the lowest types learn, and do they learn *more* than elsewhere?
#
# **Intuition.** A *loss* says how improbable the model finds given answers, token by token. Its unit is the *nat*: one nat less
# per token multiplies the typical (geometric mean) probability of a token by 2.7. In training it may fall for any place.
#
# **What we do.** We train on sums, and take the loss on 64 others. (We scored word problems. Scored on sums, the three lowest
# types are the same: notebook 05b.) `ex.finetune` trains adapters, with $\alpha = 2r$, on a copy, so `model` stays as it is.

# %%
from plop_nb import experiments as ex

task = ex.load_task(EXAMPLES, train=8 * STEPS, validation=1, test=64)
print(task.train[0]["prompt"] + task.train[0]["completion"])

# %% tags=["nbval-ignore-output"]
settings = {"r": RANK, "lr": 2e-3, "steps": STEPS, "batch_size": 8}
before = ex.evaluate(model, task, tokenizer, accuracy=False)
after = ex.finetune(model, task, tokenizer, placement, accuracy=False, **settings)
print(f"loss on {len(task.test)} others: {before['loss']:.1f} before, {after['loss']:.1f} after")

# %% [markdown]
# They learn: the loss falls from 4.3 to 1.3 nats per token. Much of this is probably the form of an answer, not the adding: after
# 25 such steps no placement of notebook 05 gets more than 7 % of the sums right. Now a comparison placement (a *control*): the
# three *highest* types, gate, query and key, which differ most in score. They also differ in kind: two of the lowest three are in
# the MLP, two of the highest three in the attention. So even a clear difference would not show that the *score* is the reason.
#
# Notebook 05 has recorded longer trainings: 25 steps of eight sums, with three *seeds*. A seed decides how the adapters start and
# the order of the examples. To have about equally many parameters (2.4 million), the lowest types get rank 16 and the highest
# rank 20. Both have $\alpha = 32$ and the learning rate 2e-3, so their scales $\alpha / r$ differ, 2.0 and 1.6 (notebook 05 asks
# what that does).

# %%
record = ex.load_benchmark().query("model == 'SmolLM2-135M-Instruct' and task == 'short_sums'")


def gaps_to(rival, lr):
    """For each seed: the loss with a rival minus that with PLoP's choice, one number per problem."""
    runs = record[record["lr"].round(6) == lr].set_index(["placement", "seed"])
    losses = runs["losses"] / runs["tokens"].map(lambda own: own.mean())  # their mean is the loss per token
    return {f"seed {seed}": losses[rival, seed] - losses["down+up+v", seed] for seed in range(3)}

# %% [markdown]
# **Predict.** With how many of the three seeds will the lowest types be ahead of the highest?

# %%
gaps = gaps_to("gate+k+q", 2e-3)
intervals = {seed: plop.mean_interval(own) for seed, own in gaps.items()}
intervals["three seeds"] = plop.mean_interval([own.mean for own in intervals.values()])
pd.DataFrame(intervals, index=["mean", "low", "high"]).T.round(2)

# %% tags=["nbval-ignore-output"]
from plop_nb.benchmark_plots import plot_trainings

title = "Seeds contradict each other: 0 and 2 for v, up, down, 1 for gate, q, k (SmolLM2 on sums, 25 steps at 2e-3)"
label = "loss with gate, q, k minus loss with v, up, down (nats per token)"
sides = "← gate, q, k are better (white) | v, up, down are better (black) →"
plot_trainings(gaps, f"{label}\n{sides}", title=title);

# %% [markdown]
# **What we saw.** With seeds 0 and 2 the lowest types are ahead, by 0.07 and 0.21 nats per token. With seed 1 the highest are, by
# 0.10. Each interval over 500 test problems is far from zero, and yet does not tell what another training would give. What counts
# is the pair of trainings: over the three seeds the mean, 0.06, has an interval from -0.33 to 0.45. This is **undecided**. The
# rate has a part in it: 2e-3 is near the highest that trains well. At 1e-3 the three differences are -0.01, 0.03 and 0.00, and
# their mean, 0.01, is undecided as well (-0.05 to 0.06).
#
# **Other rivals, each placement at its own rate:**
#
# * On three tasks, none of five placements is shown to be better than the MLP. PLoP's choice is behind it on one (spelling),
#   mostly because the MLP can be trained at twice the rate, and cannot be told from it on two ([notebook
#   05](05_lora_finetuning.ipynb)). Part of the MLP's lead may be the adapters' scale.
# * On code, in an older record (five seeds, 40 problems), PLoP's choice is ahead of five rivals by 0.01 to 0.02 nats per token,
#   and cannot be told from the MLP. On 24 other problems the order was another one ([notebook 05b](05b_rules_and_rivals.ipynb)).

# %% [markdown]
# ## Exercises
#
# The cell below each one checks your answer; it is collapsed, because it holds the solution.
#
# ### 1. Every layer, or only on average? (5 minutes)
#
# Up is the second lowest type. Its mean score is 0.94, below 1. In how many of the 30 layers is its score below 1? *Hint:*
# `scores` has the columns `type`, `layer` and `nfn`, one row for each text and module. Take the mean over texts first.

# %%
layers_below = None  # your turn: a number

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution, and check.
second = scores[scores["type"] == placement.types[1]].groupby("layer")["nfn"].mean()
solution = (second < 1).sum()
lesson = f"right: in {solution} of {second.size} layers; a mean over layers does not hold for every layer"
told = lesson if layers_below == solution else "not yet right: take the mean over texts in each layer"
print("not yet filled in" if layers_below is None else told)

# %% [markdown]
# ### 2. A budget (5 minutes)
#
# Your server takes adapters of at most 60 % of the parameters that `placement` has. First compute by hand, with $r (d + m)$ and
# the shapes in section 1, what the two lowest types need at rank 16. Do they fit? Then let `plop.place` answer, which takes the
# lowest types as long as they fit (our rule). *Hint:* it has arguments for a budget and a rank.

# %%
budget = 0.6 * placement.check(model, config)["trainable"].sum()
within_budget = None  # your turn: a placement
print(f"{budget:,.0f} parameters")

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution, and check.
solution = plop.place(scores, parameters=budget, r=RANK)
is_right = getattr(within_budget, "types", None) == solution.types
hint = f"not yet right: give plop.place the arguments parameters=budget and r={RANK}"
told = f"right: {', '.join(solution.types)}" if is_right else hint
print("not yet filled in" if within_budget is None else told)

# %% [markdown]
# ### 3. Another rival, another rate (10 minutes)
#
# The MLP (rank 13) is called `"down+gate+up"` in the record. With how many of the three seeds is PLoP's choice ahead of it at the
# rate 2e-3, and at 1e-3? *Ahead* means that the interval over problems is above zero. *Hint:* `gaps_to`, and `plop.mean_interval`
# of each of its values, which has a `low` and a `high`.

# %%
ahead = None  # your turn: {2e-3: a number, 1e-3: a number}

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution, and check.
found = {}
for lr in (2e-3, 1e-3):
    intervals = [plop.mean_interval(own) for own in gaps_to("down+gate+up", lr).values()]
    found[lr] = sum(interval.low > 0 for interval in intervals)
lesson = "right; over seeds both are undecided: -0.02 (-0.15 to 0.11) and -0.01 (-0.05 to 0.04)"
told = lesson if ahead == found else "not yet right: count the intervals whose low is above 0"
print("not yet filled in" if ahead is None else told)

# %% [markdown]
# ## Three things to remember
#
# 1. **The score compares an input with noise of the same norm.** One forward pass over the texts gives it for every map.
# 2. **Check where adapters land.** If at least one name matches, PEFT is silent about the others; `placement.check` is not.
# 3. **One training of each placement proves nothing.** The verdict can change with the seed, most of all at a high learning rate,
#    and the interval over problems does not show it.
#
# **Not established.**
#
# * On this model PLoP's placement is not shown to beat the MLP (section 5). Notebook 05b tries a second model.
# * The paper reports gains on larger models. Against the MLP, two public notes give four results, without intervals. PLoP leads
#   on Llama-3.2-3B (Arabic, negative log-likelihood 0.843 to 0.955), on Qwen3-1.7B (reinforcement learning, 74.5 to 73.6 %) and,
#   if we read the columns rightly, on Qwen2.5-7B (CommonsenseQA, 88.6 to 87.3 %). The MLP leads on Qwen3-0.6B (63.3 to 62.0 %).
#   In both Qwen3 results the MLP has more adapter parameters. One reviewer saw no substantial difference between placements.
#
# **Where next.** [Notebook 05](05_lora_finetuning.ipynb): where do adapters train best? [Notebook
# 07](07_explore_your_model.ipynb): all this with your own model and texts, in cells to copy.
