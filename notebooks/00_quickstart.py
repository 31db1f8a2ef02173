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
# **The question.** LoRA finetunes a language model by training small *adapters* on some of its linear maps, and leaves all other
# weights as they are. Which maps should get the adapters?
#
# **The answer of PLoP** (Precise LoRA Placement, [Hayou, Ghosh, Yu, ICLR 2026](https://arxiv.org/abs/2506.20629)). Run a few
# texts of your task through the model. Give each kind of map a *score*: how large its outputs are, compared with its outputs for
# noise. Put the adapters on the kinds with the lowest scores. On SmolLM2-135M-Instruct (below: SmolLM2) this takes seconds.
# Adapters there train. Adapters on the three *highest* kinds train here, too, and eight test problems do not tell which are
# better.
#
# <details><summary>Which three kinds are the lowest? (You will be asked for a guess below.)</summary>
#
# The value, up and down maps.
#
# </details>
#
# | | |
# |---|---|
# | **You need** | some PyTorch, the norm of a vector, what a confidence interval is; the words are in the [glossary](GUIDE.md#words) |
# | **It takes** | 20 minutes with the exercises, about a minute to run on two CPU cores; no GPU, no account |
# | **It runs** | on a real model: you score it, place adapters, check where they sit, and train them |

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

# %% tags=["nbval-ignore-output"]
from plop_nb.schematics import draw_method

draw_method();

# %% tags=["settings"]
MODEL = None  # None: SmolLM2-135M-Instruct; else a decoder, by its id on the Hugging Face Hub, or a folder
TASK = "math"  # texts to score: "math", "code", "logic", "history", or a Hub data set id
EXAMPLES = "gsm"  # examples to train on, with worked answers: "gsm", "syllogisms", "code", "short_sums"
TEXTS = 32  # how many texts to score
K = 3  # how many types of maps get adapters
RANK = 16  # of the adapters
STEPS = 4  # of training, two examples each

# %% [markdown]
# ## 1. A model and some texts
#
# **Question.** Where *could* adapters go?
#
# **Intuition.** Most weights of a language model are in *linear maps*: matrices $W$ that turn a vector $z$ into $Wz$. An adapter
# adds a second, cheap map:
#
# $$W z + \frac{\alpha}{r} B A z$$
#
# The matrix $A$ has only $r$ rows and $B$ only $r$ columns. The number $r$ is the *rank*, and $\alpha$ sets the scale. On a map
# with $d$ inputs and $m$ outputs an adapter has $r (d + m)$ parameters. $B$ starts at zero, so at first nothing changes. Training
# changes $A$ and $B$ and leaves $W$ alone.
#
# **What we do.** We load the model and 32 questions, and list all linear maps. SmolLM2 is a *decoder*, a model that writes one
# token after the other, and has 30 *layers*. Each layer has an *attention*, which moves information between tokens, and an *MLP*,
# which treats each token by itself. One map in one layer is a *module*. The same map in all layers is a *type*: query, key, value
# and output (q, k, v, o) in the attention, gate, up and down in the MLP.

# %% tags=["nbval-ignore-output"]
model, tokenizer = plop.load_model(MODEL)
texts = plop.load_texts(TASK, n=TEXTS)
print(texts[0])

# %% tags=["copy"]
table = plop.module_table(model)
shapes = ["type", "in_features", "out_features", "status"]
table.groupby(shapes, as_index=False).agg(modules=("module", "size"), parameters=("parameters", "sum"))

# %% [markdown]
# **What we saw.** Seven types can be scored, with 30 modules each. The *output head* is a single map behind the last layer, which
# makes probabilities of the next token. LoRA usually leaves it alone, and so do we.

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
# is the **Normalized Feature Norm (NFN)**, and we call it the *score*. Its denominator is random. So it becomes an average over
# noise of this norm: the paper estimates the mean from draws, and `plop_nb` computes the root mean square exactly.
#
# * *about 1*: $W$ treats the input like noise;
# * *above 1*: $W$ stretches the input more than it does an average direction;
# * *below 1*: $W$ stretches the input less than it does an average direction.
#
# The paper argues that training raises this ratio. It proves so for a linear network with one trained matrix (notebook 01); for
# transformers it is an assumption. From that it concludes that a low score marks a map with much left to gain.

# %% [markdown]
# **Predict.** Which type of SmolLM2 will have the lowest score? The first paper on LoRA put adapters on query and value. Write
# down your guess before you read on.

# %%
guess = None  # such as "q_proj"

# %% [markdown]
# **What we do.** First by hand, for one map, one layer and one text: the value map of the first layer. A *hook* is a function
# that PyTorch calls when a module runs. Ours keeps the module's input:

# %% tags=["copy"]
maps = plop.module_table(model).query("layer == 0 and status == 'scored'")
first_layer = maps.set_index("type")["module"]
name = first_layer.get("v_proj", first_layer.iloc[0])  # another model may have no v_proj
seen = []
hook = model.get_submodule(name).register_forward_pre_hook(lambda module, args: seen.append(args[0][0]))
with torch.no_grad():
    model(**tokenizer(texts[0], return_tensors="pt").to(model.device))
hook.remove()
print(f"{name} met {seen[0].shape[0]} tokens of {seen[0].shape[1]} numbers each")

# %% [markdown]
# Then the *baseline*: how long is $Wu$ for a random direction $u$ of norm 1 with $d$ numbers? No direction is preferred, so $E[u
# u^\top] = I / d$, and
#
# $$E \|W u\|^2 = \mathrm{tr}\left(W \, E[u u^\top] \, W^\top\right) = \|W\|_F^2 / d,$$
#
# with $\|W\|_F^2$ the sum of all squared entries. Its root is the closed form. We compare it with 2,000 draws:

# %%
W, z = model.get_submodule(name).weight.detach().float(), seen[0].float()
u = torch.randn(2000, W.shape[1], generator=torch.Generator().manual_seed(0)).to(W.device)
lengths = (u / u.norm(dim=1, keepdim=True) @ W.T).norm(dim=1)
closed = W.norm() / W.shape[1] ** 0.5
print(f"2000 draws: mean {lengths.mean():.3f}, root mean square {lengths.square().mean().sqrt():.3f}")
print(f"closed form: {closed:.3f}")

# %% [markdown]
# The paper takes the mean, we the root mean square. A mean is never above a root mean square, and here the two differ by less
# than one percent. The score is the mean ratio over the tokens. The package finds the same number:

# %%
by_hand = ((z @ W.T).norm(dim=1) / (z.norm(dim=1) * closed)).mean().item()
one_text = plop.nfn_scores(model, texts[:1], tokenizer, progress=False).set_index("module")["nfn"]
print(f"NFN of {name} on the first text: {by_hand:.3f} by hand, {one_text[name]:.3f} by plop_nb")

# %% [markdown]
# **Now for all maps at once.** One forward pass over all texts gives one score for each text and module. We take the mean over
# texts, then over the layers of a type, and sort: lowest first. (The paper averages over layers because choosing single layers
# gave its authors inconsistent results.) `low` and `high` are the 95 % confidence interval of the mean over all texts of this
# kind.

# %% tags=["copy", "show"]
scores = plop.nfn_scores(model, texts, tokenizer)
plop.by_type(scores).round(3)

# %%
types = plop.by_type(scores)
order = types["type"].tolist()
place = f"number {order.index(guess) + 1} of {len(order)}, counted from the lowest" if guess in order else "no such type"
print(f"your guess: {place}" if guess else "no guess to compare with")

# %% tags=["nbval-ignore-output"]
who = f"{(MODEL or 'SmolLM2-135M-Instruct').split('/')[-1]} on {len(texts)} {TASK} texts"
lowest, highest = types.iloc[0], types.iloc[-1]
told = f"{lowest['type']} scores lowest ({lowest['nfn']:.2f}), {highest['type']} highest ({highest['nfn']:.2f})"
plop.plot_types(scores, k=K, title=f"{who}: {told}");

# %% [markdown]
# **What we saw.** Value is lowest by far: it stretches its inputs less than an average direction, in the mean by a factor of
# 0.60. Query, where the first paper on LoRA put adapters beside value, has the second highest score. No two intervals overlap. So
# other questions of this kind would hardly change the order.
#
# One thing is easily missed. Query, key and value read the *same* vectors, yet they score 1.37, 1.56 and 0.60. So the score
# compares maps, and not only inputs. Notebook 04 shows why: the vectors share one mean direction, which query and key stretch and
# value does not.

# %% [markdown]
# ## 3. Does the task matter?
#
# **Question.** We scored math. What would the order be for texts of another kind?
#
# **Predict.** Take questions about history: other words, and nothing to compute. How many of the seven types change their place?

# %%
history = plop.nfn_scores(model, plop.load_texts("history", n=32), tokenizer)
pair = types[["type", "nfn"]].merge(plop.by_type(history)[["type", "nfn"]], on="type", suffixes=("", "_history"))
moved = (pair["nfn"].rank() != pair["nfn_history"].rank()).sum()
change = (pair["nfn_history"] / pair["nfn"] - 1).abs().max()
print(f"{moved} of {len(pair)} types change their place; the largest change of a score is {change:.1%}")

# %% tags=["nbval-ignore-output"]
from plop_nb.plots import plot_kinds

told = "the order of all types is the same" if moved == 0 else f"{moved} types change their place"
plot_kinds({TASK: scores, "history": history}, title=f"{who}, and on history: {told}");

# %% [markdown]
# **What we saw.** No type changes its place. PLoP is meant to find the place *for a task*, but between these two sets of short
# questions the scores of this model differ by at most 3.5 %. (The texts come from a generator with templates, so the intervals
# speak of such questions, not of math in general. Most are narrower than the dots.) Some intervals of math and history do not
# overlap, so the mean scores of these two kinds of questions do differ. The cause may be wording and length as much as the
# subject. The largest shift is that of key, 0.05, and the smallest gap between types on math is 0.08. So do not expect PLoP to
# choose other places for math than for history on this model. Notebook 03 compares three models on four kinds of texts: each
# keeps its three lowest types. Different models do differ: in the paper, Llama-3.2-1B has value, output and down lowest.

# %% [markdown]
# ## 4. The placement
#
# **Question.** Which types get adapters, and how sure is that choice?
#
# **What we do.** A *placement* is the set of types that get adapters, with the names of their modules. We take the three lowest
# types. The *confidence* tells how sure this is: we draw new means 10,000 times, as uncertain as 32 texts leave them, and count
# how often the same three come out lowest.

# %% tags=["show"]
placement = plop.place(scores, k=K)
print(f"adapters on {', '.join(placement.types)}, {placement.certainty}")

# %% tags=["nbval-ignore-output", "picture"]
plop.plot_block(scores, k=K, title=f"{who}: adapters go on {', '.join(placement.types)}");

# %% [markdown]
# **What we saw.** A layer, drawn once; each score is the mean over 30. (The *residual stream* is the vector of each token that
# every attention and MLP reads, and adds to.) One chosen type is in the attention and two are in the MLP. Query and key read the
# same vectors as value, and gate the same as up, yet these three score highest.
#
# The confidence is about texts alone. It does not say that adapters train better there. The paper claims that they do: on ANLI
# (does one sentence follow from another?) it reports 75.4 % right with 44 million adapter parameters placed by PLoP, and 73.9 %
# with 70 million placed otherwise. Over its tasks it reports gains of 1.5 to 4.5 points, which reviewers called small, and it did
# not try other numbers of types than three.

# %% [markdown]
# ## 5. Do the adapters sit where they should?
#
# **Question.** [PEFT](https://huggingface.co/docs/peft), the library that puts adapters in, takes the names of their places from
# a `LoraConfig`. What happens to a name with a typing error?

# %%
from peft import LoraConfig

from plop_nb.targets import adapted_targets

typo = LoraConfig(target_modules=[placement.types[0], "up_porj"])
hit = adapted_targets(model, typo)
print(f"{len(hit)} modules get adapters, such as {next(iter(hit))}")

# %% [markdown]
# PEFT adapts the first type and drops the second silently. So `lora_config` tries its configuration on an *empty copy* of the
# model, with its modules but without weights, and `check` counts what it hits:

# %% tags=["show"]
config = placement.lora_config(model, r=RANK, lora_alpha=2 * RANK)
targets = config.target_modules
print("target_modules:", targets if isinstance(targets, str) else sorted(targets))
placement.check(model, config)

# %% [markdown]
# **What we saw.** Every chosen module gets an adapter. `check` would have raised an error if one had been missed, or another one
# hit. `trainable` counts the adapters' parameters: $16 \, (576 + 192) \cdot 30 = 368{,}640$ on value.

# %% [markdown]
# ## 6. Train, with a control
#
# **Question.** Do adapters there learn? Do they learn *more* than elsewhere?
#
# **Intuition.** A fall of the loss after training proves little: it may fall for any place. So we train the opposite choice as
# well, the three *highest* types, with about as many parameters (1 % more). As their maps have fewer inputs and outputs in total,
# their rank is higher.
#
# **What we do.** We train on examples, which are questions *with* worked answers. A *task* has three sets of them: to train on,
# to tune on (validation) and to test on. The model reads plain text, without the template of a chat, as it did for the scores.

# %%
from plop_nb import experiments as ex

task = ex.load_task(EXAMPLES, train=2 * STEPS, validation=1, test=8)
print(task.train[0]["prompt"] + task.train[0]["completion"])

# %%
touched = {example["prompt"] for example in task.train} | {f"{text}\nAnswer:" for text in texts}
known = [example for example in task.test if example["prompt"] in touched]
print(f"{len(known)} of {len(task.test)} test problems were scored or trained on")

# %%
opposite = plop.Placement.of_types(scores, order[-K:])
size = placement.check(model, config)["trainable"].sum()
ranks = {"lowest": RANK, "highest": ex.rank_for(opposite, model, size)}
print(f"ranks: {ranks}; highest types: {', '.join(opposite.types)}")

# %% [markdown]
# `ex.finetune` trains adapters on a copy that shares the model's weights, so `model` stays as it is. Inside is TRL's `SFTTrainer`
# (supervised finetuning); notebook 07 ends with it in plain code. The learning rate 2e-3 was the best of the tried ones for
# nearly all sets of three types in notebook 05, on another task and with one seed.

# %% tags=["nbval-ignore-output"]
same = {"lr": 2e-3, "steps": STEPS, "batch_size": 2, "accuracy": False, "per_example": True}
before = ex.evaluate(model, task, tokenizer, accuracy=False, per_example=True)
runs = {}
for which, where in {"lowest": placement, "highest": opposite}.items():
    runs[which] = ex.finetune(model, task, tokenizer, where, r=ranks[which], **same)

# %%
import numpy as np
import pandas as pd

tokens = np.array(before["tokens"])
per_token = {which: np.array(run["losses"]) / tokens for which, run in runs.items()}
untrained = np.array(before["losses"]) / tokens
falls = {which: plop.mean_interval(untrained - losses) for which, losses in per_token.items()}
pd.DataFrame(falls, index=["mean", "low", "high"]).T.round(2)

# %%
gap = plop.mean_interval(per_token["highest"] - per_token["lowest"])
print(f"loss with the highest types minus loss with the lowest: {gap.mean:.2f}")
print(f"95 % interval over {len(tokens)} test problems: {gap.low:.2f} to {gap.high:.2f}")

# %% [markdown]
# **What we saw.** With both placements the loss falls by 0.26 *nats* (the unit of the loss) per token of the worked solutions,
# which makes these tokens 1.3 times as probable on the geometric mean. Part of the fall may be the format of the answers, and the
# test problems may have the same templates as the training problems with new numbers. The difference between the placements is
# undecided: its interval contains zero. It covers eight test problems, after one training of each placement; other seeds would
# move it too. So this experiment does not support the choice of the lowest types, and it is far too small to refute it. Notebook
# 05 does it with all sets of three types.

# %% [markdown]
# ## Exercises
#
# Each has a cell to fill in and a check. The solutions are in the collapsed cell below each check.
#
# ### 1. Every layer, or only on average? (5 minutes)
#
# The lowest type has a mean score below 1. In how many layers is its score below 1, and how many layers are there? *Hint:*
# `scores` has the columns `type`, `layer` and `nfn`, one row for each text and module.

# %%
layers_below = layers = None  # your turn: two numbers


# %%
def check_layers(below, all_of_them):
    if below is None:
        return "not yet filled in"
    own = scores[scores["type"] == placement.types[0]].groupby("layer")["nfn"].mean()
    assert all_of_them == len(own), "count the layers"
    assert below == (own < 1).sum(), "take the mean over texts in each layer first"
    return f"{placement.types[0]} is below 1 in {below} of {all_of_them} layers"


check_layers(layers_below, layers)

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution.
by_layer = scores.query("type == @placement.types[0]").groupby("layer")["nfn"].mean()
check_layers((by_layer < 1).sum(), len(by_layer))

# %% [markdown]
# ### 2. A budget (5 minutes)
#
# Your server takes adapters of at most 60 % of the parameters that `placement` has. First compute by hand, with $r (d + m)$ and
# the table of section 1, what the two lowest types need at rank 16. Do they fit? Then let `plop.place` answer, which takes the
# lowest types as long as they fit (our rule). *Hint:* it has arguments for a budget and a rank.

# %%
budget = 0.6 * size
within_budget = None  # your turn: a placement
print(f"{budget:,.0f} parameters")


# %%
def check_budget(found):
    if found is None:
        return "not yet filled in"
    used = placement.check(model, config).set_index("type")["trainable"].reindex(found.types).sum()
    assert used <= budget, f"{used:,.0f} parameters are too many"
    assert found.types == plop.place(scores, parameters=budget, r=RANK).types, "other types fit"
    return f"{', '.join(found.types)}: {used:,.0f} of {budget:,.0f} parameters"


check_budget(within_budget)

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution.
check_budget(plop.place(scores, parameters=budget, r=RANK))

# %% [markdown]
# ## Three things to remember
#
# 1. **The score compares an input with noise.** NFN is $\|Wz\|$ over what $W$ does to noise of the same norm. One forward pass
#    gives it for every map, and a few dozen texts are enough to rank SmolLM2's types.
# 2. **Here it depends little on the task.** On this model, math and history give the same order of all seven types.
# 3. **Check where adapters land.** If at least one name matches, PEFT is silent about the others; `placement.check` is not.
#
# **Not established.** That this placement beats others. Our control was undecided. In the larger record of notebook 05, also of
# one small model, PLoP's choice (value, up, down) cannot be told from the MLP (gate, up, down) on one task and is worse on
# another. The score also depends on how the same function is stored (notebook 04).
#
# **Where next.** Notebook 07, which does all this with your own model and texts, in cells to copy.
