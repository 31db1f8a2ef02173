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
# texts of your task through the model. Maps with the same role, one in each layer, form a *type*: all value maps, for example.
# Give each type a *score*: the norm of the vectors that its maps put out, divided by the norm that they would have if the inputs
# were random noise of the same norm. Put the adapters on the three types (the paper tried no other number) with the lowest
# scores. For SmolLM2-135M-Instruct (below: SmolLM2) and math questions these are **value, up and down**.
#
# **Is it a good answer?** The score is cheap; that adapters there train better is another claim. The paper reports gains on
# larger models. On this small one PLoP's choice is not shown to be better than the plainest rival, adapters on gate, up and down
# (the *MLP*). With each at its own learning rate it is worse on one of three recorded tasks and undecided on two; at one rate for
# both all three are undecided (section 5). Section 2 shows what else the score depends on.
#
# | | |
# |---|---|
# | **You need** | some PyTorch, the norm of a vector, what a confidence interval is; every other term is in the [glossary](GUIDE.md#words) |
# | **It takes** | 20 minutes to read, and 10 more for the exercises |
# | **It runs** | on a real model, in about a minute on two ordinary CPU cores, once the model is downloaded; no GPU, no account |

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

# %% [markdown]
# PLoP has five steps:

# %% tags=["nbval-ignore-output"]
from plop_nb.schematics import draw_method

draw_method();

# %% [markdown]
# We load model and texts, score every map, and draw one layer:

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
setting = f"{MODEL}, {scores['layer'].nunique()} layers, {len(texts)} {TASK} texts"
plop.plot_block(scores, placement=placement, title=f"{', '.join(placement.types)} score lowest ({setting})");

# %% [markdown]
# **How to read the table and the picture.** The picture shows one *layer*; SmolLM2 has 30. Its *attention* moves information
# between tokens, and its *MLP* treats each token by itself. Both read the *residual stream*, the vector of each token, and add to
# it. Each coloured box is one linear map, also called a *module*: `q_proj`, `k_proj`, `v_proj` and `o_proj` are query, key, value
# and output. `gate_proj` and `up_proj` widen the vector, gate's output passes a non-linear function and is multiplied by up's,
# and `down_proj` brings the product back.
#
# The number in a box is the score of its type, the *Normalized Feature Norm* (NFN): the mean over the tokens of each text, the 32
# texts (`samples`) and the 30 maps of the type. Noise would get about 1. In the table, `low` and `high` are the 95 % confidence
# interval for the mean score over all texts that the generator (`gsm_symbolic` of reasoning-gym) could make. It does not cover
# the differences between layers (section 2).

# %% [markdown]
# ## 1. A model and its maps
#
# **Question.** Where *could* adapters go, and what do they cost?
#
# **Intuition.** A linear map is a matrix $W$ that turns a vector $z$ into $Wz$. An adapter adds a cheap one:
#
# $$W z + \frac{\alpha}{r} B A z$$
#
# The matrix $A$ has only $r$ rows and $B$ only $r$ columns. The number $r$ is the *rank*, and $\alpha$ sets the scale. $B$ starts
# at zero, so at first nothing changes. Training leaves $W$ alone. On a map with $d$ inputs and $m$ outputs an adapter has $r (d +
# m)$ parameters.
#
# **What we do.** We add up, for each type, the parameters of its maps and of their adapters at rank 16.

# %% tags=["copy"]
table = plop.module_table(model).query("status == 'scored'").copy()
table["adapters"] = 16 * (table["in_features"] + table["out_features"])
table.groupby(["type", "in_features", "out_features"])[["parameters", "adapters"]].sum()

# %% [markdown]
# **What we saw.** Adapters on value, up and down have 2.4 million parameters, on the MLP 3.0 and on all seven types 4.9, which is
# 3.6 % of the model's. (The last map, to the next token, is left out, as in the paper.) Fewer places allow a higher rank, so
# section 5 compares placements with equally many parameters.

# %% [markdown]
# ## 2. The score
#
# **Question.** Does a map stretch its real inputs more than noise?
#
# **Intuition.** A map stretches some directions and shrinks others. Take one token's vector $z$, and random noise $\tilde z$ of
# the same norm. If $Wz$ is longer than $W\tilde z$, then $z$ leans towards directions that $W$ stretches more than its average.
# The ratio
#
# $$\mathrm{NFN}(W, z) = \frac{\|W z\|}{\|W \tilde z\|}$$
#
# is the **Normalized Feature Norm (NFN)**, the score of this map on this token.
#
# PLoP's argument: training turns a map towards its inputs, so its score rises. A type that still scores low on your texts has
# been turned least, so adapters there have most to gain.
#
# *Proved* is this for a toy: in a wide linear network with one trained matrix, one example and steps by the sign of the gradient,
# $\|Wz\|^2$ grows about with the square of the number of steps, as long as the error keeps its sign, and the denominator hardly
# moves (notebook 01). That the score of a transformer rises, and that a low one marks much to gain, is *assumed*. Untrained
# weights score about 1 (recorded in notebook 04), so growth cannot explain scores below 1, which two of the three chosen types
# have here. The paper reports such scores for the value maps of Qwen3 and Gemma3, and has no explanation.

# %% [markdown]
# **Predict.** The value type scores 0.60. Will the value map of the *first* layer, on the *first* text, be near 0.60 as well?
#
# **What we do.** We compute the score of this one map on this one text by hand. This is the map:

# %%
lowest_type = scores[scores["type"] == placement.types[0]]
name = lowest_type["module"].iloc[0]
print(f"the first of {lowest_type['module'].nunique()}: {name}")

# %% [markdown]
# A *hook* is a function that PyTorch calls when a module runs. Ours keeps the module's input:

# %%
seen = []
hook = model.get_submodule(name).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
with torch.no_grad():
    model(**tokenizer(texts[0], return_tensors="pt").to(model.device))
hook.remove()
z = seen[0][0]  # the first call, its first text
print(f"it met {z.shape[0]} tokens of {z.shape[1]} numbers each")

# %% [markdown]
# Then we need the noise: $\tilde z = \|z\| \, u$ with a random direction $u$ of norm 1 and $d$ numbers. As $\|W \tilde z\| =
# \|z\| \, \|W u\|$, one number can serve all tokens as *baseline*: the typical length of $W u$. No direction is preferred and $E \|u\|^2 = 1$, so $E[u
# u^\top] = I / d$, and
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
# The paper takes the mean of draws, and `plop_nb` the closed form; on SmolLM2, averaged by type, the two differ by less than half
# a percent (notebook 02). A map's score on a text is the mean ratio over its tokens. The package finds the same number:

# %%
ratios = (z.float() @ W.T).norm(dim=1) / (z.float().norm(dim=1) * closed)  # one for each token
package = plop.nfn_scores(model, texts[:1], tokenizer, progress=False).set_index("module")["nfn"]
print(f"NFN of {name} on the first text: {ratios.mean():.3f} by hand, {package[name]:.3f} by plop_nb")

# %% [markdown]
# It is 0.87, far above 0.60. Is this due to the text, or to the layer?

# %%
by_text = lowest_type.loc[lowest_type["module"] == name, "nfn"]
by_layer = lowest_type.groupby("layer")["nfn"].mean()
print(f"first layer, {len(by_text)} texts: {by_text.min():.2f} to {by_text.max():.2f}")
print(f"{len(by_layer)} layers, mean over texts: {by_layer.min():.2f} to {by_layer.max():.2f}")

# %% [markdown]
# **What we saw.** It is mostly the layer. On every text the first layer scores between 0.82 and 0.91, while the layers range from
# 0.41 to 0.86. Like the paper, we average a type over its layers; that each map's ratio is taken first is our reading. The mean
# matters: with the median over layers, output would take the place of down among the three lowest types (notebook 03).
#
# ### The same function in other weights
#
# **Question.** Does the score belong to what the model computes, or to the numbers that it is stored in?
#
# **Intuition.** A *normalisation layer* (RMSNorm) stands in front of query, key and value, and another in front of gate and up.
# It brings a vector to a fixed length, $x$, and multiplies each entry by a trained number, its *gain* $g$. One can multiply the
# columns of the maps behind it by the gains instead, and set the gains to 1: $W (g \odot x) = (W \, \mathrm{diag}(g)) \, x$.
# Output and down have no such layer in front, and keep their scores.
#
# **What we do.** `plop.fold_norms` makes such a copy. We compare the *logits*, the numbers from which a model computes the
# probabilities of the next token.

# %%
folded = plop.fold_norms(model, strict=False)  # in other models: as far as it can be done
question = tokenizer(texts[0], return_tensors="pt").to(model.device)
with torch.no_grad():
    stored_logits, folded_logits = model(**question).logits, folded(**question).logits
difference = (folded_logits - stored_logits).abs().max()
print(f"largest logit {stored_logits.abs().max():.1f}, largest difference {difference:.0e}")

# %% [markdown]
# **Predict.** They agree up to rounding. Will the three lowest types be the same, too?

# %%
in_folded = plop.nfn_scores(folded, texts[:8], tokenizer, progress=False)
forms = {}
for form, own in {"stored": scores[scores["sample"] < 8], "folded": in_folded}.items():
    forms[form] = plop.by_type(own).set_index("type")[["nfn", "low", "high"]]
pd.concat(forms, axis=1).round(2)

# %% [markdown]
# **What we saw.** On the same eight texts gate falls from 1.26 to 0.81 and takes down's place. The function is the same, PLoP's
# choice is not. This alone does not refute PLoP, as LoRA's training depends on the stored numbers, too. [Notebook
# 04](04_what_nfn_measures.ipynb) trains one function in two forms: the types that were made to score lowest did not become the
# better place on either of two tasks; on one of them the gap between the two places moved in the direction of the scores.

# %% [markdown]
# ## 3. Do other texts change the order?
#
# **Question.** PLoP is meant to find the place *for a task*. We scored math questions. Would other texts give the same types?
#
# **Predict.** Take questions about history. How many of the seven types will change their place in the order?

# %%
history = plop.load_texts("history", n=TEXTS)
kinds = {TASK: scores, "history": plop.nfn_scores(model, history, tokenizer)}
means = {}
for kind, own in kinds.items():
    means[kind] = plop.by_type(own).set_index("type")[["nfn", "low", "high"]]
    print(f"{kind}: {plop.place(own, k=K).certainty}")
pd.concat(means, axis=1).round(3)

# %% [markdown]
# **What we saw.** No type changes its place. In all types but value the two intervals are apart, but the largest difference is
# 0.054 (key), never enough to swap two types. The gap that decides, between down and output, is 0.135 on math and 0.127 on
# history. On these two kinds of texts PLoP's choice is one for the model, not for the task (more kinds: notebook 03).
#
# The *confidence* is how often these three types come out lowest, if mean scores are drawn anew with the standard error over 32
# texts. It covers the choice of texts only, and does not say that adapters train better there.

# %% [markdown]
# ## 4. Do the adapters sit where they should?
#
# **Question.** A *placement* is the set of types that get adapters. [PEFT](https://huggingface.co/docs/peft) is the library that
# puts adapters in, by the names in a `LoraConfig`. Do they end up on the maps that we named?
#
# **Predict.** We ask for adapters on value, down and, with a typing error, `up_porj`. Will PEFT raise an error, warn, or say
# nothing?

# %%
import copy

from peft import LoraConfig, get_peft_model

names = [name.replace("up_proj", "up_porj") for name in placement.types]
typo = LoraConfig(r=RANK, target_modules=names)
get_peft_model(copy.deepcopy(model), typo).print_trainable_parameters()

# %% [markdown]
# PEFT (version 0.21.2) says nothing. It adapts value and down alone: $368{,}640 + 1{,}013{,}760$ parameters, as in section 1.
#
# **What we do.** `placement.check` tries the configuration on a copy without weights, and compares the maps that it hits with the
# chosen ones:

# %%
try:
    placement.check(model, typo)
except ValueError as error:
    print(error)

# %% [markdown]
# All 30 up maps are missed. `lora_config` makes a configuration from the placement, with $\alpha = 2 r = 32$:

# %% tags=["show"]
config = placement.lora_config(model, r=RANK, lora_alpha=2 * RANK)
placement.check(model, config)

# %% [markdown]
# **What we saw.** Now every chosen module gets an adapter, and no other one.

# %% [markdown]
# ## 5. Do adapters there train better?
#
# **Question.** Do adapters on the lowest types learn, and do they learn *more* than elsewhere?
#
# **Intuition.** A *loss* says how improbable the model finds given answers, token by token. Its unit is the *nat*: one nat less
# per token multiplies the typical (geometric mean) probability of a token by 2.7.
#
# **What we do.** We train on short sums and differences (below: sums), and take the loss on 32 others. (Scored on sums, the three
# lowest types are the same: notebook 05b.) `ex.finetune` trains adapters with $\alpha = 32$ on a copy of the model. Its *learning
# rate*, the size of a step (below: the rate), is 2e-3, the best for this placement in notebook 05.


# %%
from plop_nb import experiments as ex

task = ex.load_task(EXAMPLES, train=8 * STEPS, validation=1, test=32)  # validation: 1 is the least, unused
print(task.train[0]["prompt"] + task.train[0]["completion"])

# %% tags=["nbval-ignore-output"]
settings = {"r": RANK, "lr": 2e-3, "steps": STEPS, "batch_size": 8}
before = ex.evaluate(model, task, tokenizer, accuracy=False)
after = ex.finetune(model, task, tokenizer, placement, accuracy=False, **settings)
print(f"loss on {len(task.test)} others: {before['loss']:.1f} before, {after['loss']:.1f} after")

# %% [markdown]
# The loss falls from 4.2 to 1.4 nats per token. The first rival is the set of the three *highest* types, gate, query and key.
# Notebook 05 has recorded longer trainings: 25 steps of eight sums, with three *seeds*. A seed decides how the adapters start and
# the order of the examples.

# %%
record = ex.load_benchmark().query("model == 'SmolLM2-135M-Instruct'").round({"lr": 6})
sums = record.query("task == 'short_sums' and placement in ['down+up+v', 'gate+k+q'] and lr == 2e-3")
print(f"most sums right after one of these {len(sums)} trainings: {sums['exact'].max():.0%}")
sums.groupby("placement")[["r", "lora_alpha", "parameters"]].first()

# %% [markdown]
# So what is learned is probably mostly the form of answers, not arithmetic. The ranks give parameter counts within 1 %, and
# unequal scales $\alpha / r$. The column `losses` holds the loss of each problem, summed over the tokens of its answer, so we
# divide by their mean number:

# %%
tokens_per_answer = sums["tokens"].iloc[0].mean()
losses = sums.pivot(index="seed", columns="placement", values="losses") / tokens_per_answer
gaps = losses["gate+k+q"] - losses["down+up+v"]  # for each seed: one number per problem

# %% [markdown]
# **Predict.** At the rate 2e-3, with how many of the three seeds will the lowest types be ahead of the highest?

# %% tags=["nbval-ignore-output"]
from plop_nb.benchmark_plots import plot_trainings

title = "Undecided: two of three seeds favour v, up, down\nSmolLM2 on sums, 25 steps at the learning rate 2e-3"
label = "loss with gate, q, k minus loss with v, up, down (nats per token)"
sides = ("gate, q, k are better", "v, up, down are better")
trainings = {f"seed {seed}": gaps[seed] for seed in range(3)}
plot_trainings(trainings, label, sides=sides, title=title);

# %% [markdown]
# **What we saw.** With seeds 0 and 2 the lowest types are ahead, with seed 1 the highest. Each interval over 500 test problems is
# excludes zero, and yet does not tell what another training would give. The unit is a pair of trainings with the same seed. The
# interval over the three pairs contains 0: **undecided**. The rate was chosen for v, up, down, so the comparison favours them if
# anything.

# %% [markdown]
# **And the usual choices?** Notebook 05 compares five placements of equally many parameters on three tasks (3, 5 and 2 seeds),
# each at three rates. `ex.crossfit` takes each seed's loss at the rate that the *other* seeds prefer. `ex.differences` subtracts
# the MLP's loss (`gap`, nats per token). Its intervals are for other seeds and problems, and meant to hold for all twelve
# comparisons (four placements, three tasks) at once. They pool the spread between seeds over the placements; with two seeds, on
# syllogisms, they are a rough guide.

# %%
names = {"down+up+v": "PLoP's choice", "down+gate+up": "MLP"}
usual, tasks = [*names, "all", "attention", "query + value"], ["short_sums", "spelling", "short_syllogisms"]
five = record.query("task in @tasks and placement in @usual and lr in [1e-3, 2e-3, 4e-3]").replace({"placement": names})
results = {"each at its own rate": ex.crossfit(five), "all at 2e-3": five.query("lr == 2e-3")}
print(f"{len(five)} trainings, ranks {five['r'].min():.0f} to {five['r'].max():.0f}")

# %%
pd.set_option("display.width", 130)
verdicts = {}
for rate, runs in results.items():
    compared = ex.differences(runs, "MLP").set_index(["task", "placement"])
    compared["gap"] = compared.pop("difference")
    verdicts[rate] = compared[["gap", "low", "high", "verdict"]]
pd.concat(verdicts, axis=1).round(2)

# %% [markdown]
# **What we saw.** Above 0 the MLP is ahead. On spelling, each at its own rate, it leads PLoP's choice by 0.25 (0.09 to 0.40);
# with both at 2e-3 by 0.04, undecided: most of it is that the MLP stands a higher rate (notebook 05). On spelling the MLP leads
# attention and query + value in both analyses; its comparison with *all* is undecided in both. Part of a lead may be the scale:
# $\alpha$ is 32 throughout, so $\alpha / r$ is 4 for *all*, 2.5 for the MLP, 2.0 for PLoP's choice, 1.5 for attention and 0.8 for
# query + value. The smaller the scale, the less such a lead says about the place. On sums and syllogisms nothing is decided.
#
# **So where do the adapters go?** For a model like this one, begin with the MLP or with all types: nothing here is shown to beat
# either. Then spend your time on the learning rate ([notebook 05](05_lora_finetuning.ipynb)).

# %% [markdown]
# ## Exercises
#
# The collapsed cell below each checks your answer; open it for the solution.
#
# ### 1. Every layer, or only on average? (5 minutes)
#
# Up's mean score is 0.94. In how many of the 30 layers is its score below 1? *Hint:* `scores` has the columns `type`, `layer` and
# `nfn`, one row for each text and module.

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
# You may train at most 60 % of the adapter parameters of `placement`. First compute by hand, with $r (d + m)$ and the shapes in
# section 1, what the two lowest types need at rank 16. Then let `plop.place` answer, which takes the lowest types as long as they
# fit.

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
# ## Three things to remember
#
# 1. **The score compares an input with noise of the same norm.** It belongs to the stored weights, not to the function.
# 2. **Check where adapters land.** If at least one name matches, PEFT (0.21.2) is silent about the others; `placement.check` is
#    not.
# 3. **One training of each placement proves nothing.** The verdict can change with the seed, and the interval over problems does
#    not show it.
#
# **Not established.**
#
# * On SmolLM2 PLoP's choice is not shown to beat the MLP; on spelling, each at its own rate, it is worse. On Gemma-3-270M it is
#   ahead on sums by 0.04, undecided (from 0.11 ahead to 0.04 behind; [notebook 05b](05b_rules_and_rivals.ipynb)).
# * The paper reports gains on larger models, such as 75.4 % on ANLI with 44 million adapter parameters against 73.9 % with 70
#   million elsewhere (one difference, without an interval). Two public notes on its [ICLR
#   version](https://openreview.net/forum?id=3lGkVgNZ5a) give four results against the MLP, without intervals; PLoP leads in two,
#   in a third if its unnamed columns are read rightly, and the MLP in one (table: notebook 05b). One reviewer saw no substantial
#   difference.
#
# **Where next.** Notebook 05: where do adapters train best? [Notebook 07](07_explore_your_model.ipynb): the same with your own
# model and texts.
