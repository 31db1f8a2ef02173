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
# **The question.** LoRA finetunes a language model by training small *adapters* on some of its linear maps, and leaves all
# other weights as they are. Which maps should get the adapters?
#
# **The answer of PLoP** ([Hayou, Ghosh, Yu, ICLR 2026](https://arxiv.org/abs/2506.20629)) for SmolLM2-135M on math questions:
# the value, up and down maps. They have the lowest scores of its seven types of maps. The answer rests on one forward pass over
# 32 questions, and the confidence that more questions would lead to the same three types is > 99.9 %. Whether adapters
# also *train* best there is another question. This notebook does not answer it.
#
# | | |
# |---|---|
# | **You need** | to know what a language model and a matrix are |
# | **It takes** | ten minutes to read, one minute to run on two CPU cores; no GPU, no account |
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
MODEL = None  # None: SmolLM2-135M-Instruct; else a decoder, by Hub id or folder: "Qwen/Qwen3-0.6B"
TASK = "math"  # to score on: "math", "code", "logic", "history", or a Hub data set id
EXAMPLES = "gsm"  # to train on, with worked answers: "gsm", "syllogisms", "code", "short_sums"
TEXTS = 32  # how many texts to score on
K = 3  # how many module types get adapters
RANK = 16  # of the adapters
STEPS = 8  # of training, two examples each

# %% [markdown]
# ## 1. A model and some texts
#
# **Question.** Where *could* adapters go?
#
# **Intuition.** Most weights of a language model are in *linear maps*: matrices $W$ that turn a vector $z$ into $Wz$. An adapter
# adds a second, cheap map to it: $Wz + BAz$. The matrix $A$ has only $r$ rows and $B$ only $r$ columns, and $r$ is called the
# *rank*. Training changes $A$ and $B$ and leaves $W$ alone.
#
# **What we do.** We load the model and 32 questions, and list all linear maps. A *type* is the same map in all layers. SmolLM2
# has 30 layers with seven types: query, key, value and output (q, k, v, o) in the attention, gate, up and down in the MLP.

# %% tags=["nbval-ignore-output"]
model, tokenizer = plop.load_model(MODEL)
texts = plop.load_texts(TASK, n=TEXTS)
print(texts[0])

# %% tags=["copy"]
table = plop.module_table(model)
shapes = ["type", "in_features", "out_features", "status"]
table.groupby(shapes, as_index=False).agg(modules=("module", "size"), parameters=("parameters", "sum"))

# %% [markdown]
# **What we saw.** Seven types are scored. The output head is not, and the column `status` says that it is one.
#
# ## 2. The score
#
# **Question.** How well does a map fit the inputs that it gets?
#
# **Intuition.** A map stretches some directions and shrinks others. Take one token's vector $z$, and noise $\tilde z$ of the same
# length. If $W$ makes $z$ longer than it makes the noise, then $z$ lies along directions that $W$ amplifies. The ratio
#
# $$\mathrm{NFN}(W, z) = \frac{\|W z\|}{\|W \tilde z\|}$$
#
# is the **Normalized Feature Norm (NFN)**:
#
# * *about 1*: the input meets $W$ like noise;
# * *above 1*: the input lies along directions that $W$ amplifies;
# * *below 1*: the input lies along directions that $W$ suppresses.
#
# The paper argues that training raises this ratio (notebook 01), so that a low score marks a map with much left to gain.
# PLoP puts the adapters on the types with the lowest mean score.
#
# **Predict.** Which type will have the lowest score? The first paper on LoRA put adapters on query and value. Write down your guess
# before you see any score.

# %%
guess = "q_proj"  # your guess

# %% [markdown]
# **What we do.** First by hand, for the value map of the first layer. A hook catches the inputs that reach it:

# %% tags=["copy"]
name = plop.module_table(model).query("status == 'scored'")["module"].iloc[2]
seen = []
hook = model.get_submodule(name).register_forward_pre_hook(lambda module, args: seen.append(args[0][0]))
with torch.no_grad():
    model(**tokenizer(texts[0], return_tensors="pt").to(model.device))
hook.remove()
print(f"{name} met {seen[0].shape[0]} tokens of {seen[0].shape[1]} numbers each")

# %% [markdown]
# Then the *baseline*: how long does $W$ make a random direction $u$ of length 1 with $d$ numbers? We draw 2,000 of them. The package
# draws none. No direction is preferred, so that $E[u u^\top] = I / d$, and the root mean square of $\|W u\|$ is
# $\|W\|_F / \sqrt d$, with $\|W\|_F$ the root of the sum of all squared entries.

# %%
W, z = model.get_submodule(name).weight.detach().float(), seen[0].float()
u = torch.randn(2000, W.shape[1], generator=torch.Generator().manual_seed(0)).to(W.device)
u = u / u.norm(dim=1, keepdim=True)
drawn, closed = (u @ W.T).norm(dim=1).mean(), W.norm() / W.shape[1] ** 0.5
print(f"baseline: {drawn:.3f} as a mean of 2000 draws, {closed:.3f} in closed form")

# %% [markdown]
# A mean is never above a root mean square, and here it is close to it. The score is the mean ratio over the tokens. The package finds
# the same number:

# %%
by_hand = ((z @ W.T).norm(dim=1) / (z.norm(dim=1) * closed)).mean().item()
one_text = plop.nfn_scores(model, texts[:1], tokenizer, progress=False).set_index("module")["nfn"]
assert abs(by_hand / one_text[name] - 1) < 0.01
print(f"NFN of {name} on the first text: {by_hand:.3f} by hand, {one_text[name]:.3f} by plop_nb")

# %% [markdown]
# **Now for all maps at once.** One forward pass over all texts gives one score for each text and map. We take the mean over texts,
# then over the layers of a type, and sort: lowest first. `low` and `high` are a 95 % interval over texts (Student's t): it says how
# far the mean may move with other texts of the same kind.

# %% tags=["copy", "show"]
scores = plop.nfn_scores(model, texts, tokenizer)
plop.by_type(scores).round(3)

# %%
types = plop.by_type(scores)
place_of = {name: number for number, name in enumerate(types["type"], 1)}
gap = (types["low"].shift(-1) - types["high"]).min()
assert MODEL or TASK != "math" or gap > 0.05
print(f"your guess {guess} is number {place_of.get(guess)} of {len(types)}")
print(f"from an interval to that of the next type: {gap:.2f} at least")

# %% tags=["nbval-ignore-output"]
ax = plop.plot_types(scores, k=K)
told = f"{types['type'].iloc[0]} scores lowest, {types['type'].iloc[-1]} highest"
ax.set_title(told, loc="left", weight="bold", size=14);

# %% [markdown]
# **What we saw.** Value is lowest by far: its inputs lie along directions that it suppresses. Query, where the first paper on LoRA put adapters beside value,
# is next to last. No two intervals overlap, so that other questions of this kind would hardly change the order.
#
# ## 3. Does the task matter?
#
# **Question.** We scored math. What would the order be for texts of another kind?
#
# **Predict.** Take questions about history: other words, and nothing to compute. How many of the seven types change their place?

# %% tags=["copy"]
history = plop.nfn_scores(model, plop.load_texts("history", n=32), tokenizer)
plop.by_type(history).round(3)

# %%
both = types.set_index("type")[["nfn"]].rename(columns={"nfn": "scored"})
both["history"] = plop.by_type(history).set_index("type")["nfn"]
moved = (both.rank()["scored"] != both.rank()["history"]).sum()
change = (both["history"] / both["scored"] - 1).abs().max()
assert MODEL or TASK != "math" or moved == 0 and change < 0.05
print(f"{moved} of {len(both)} types change their place; the largest change of a score is {change:.1%}")

# %% [markdown]
# **What we saw.** No type changes its place. This is the most surprising fact about the score. PLoP is meant to find the place *for a task*,
# but between these two kinds of short questions the scores of this model differ by a few percent. Some intervals of math and history do
# not overlap, so that the difference is real. It is small beside the gaps between types. So do not expect PLoP to choose other places
# for math than for history. Notebook 03 compares three models on four kinds of texts: each keeps its three lowest types.
#
# ## 4. The placement
#
# **Question.** Which types get adapters, and how sure is that choice?
#
# **What we do.** We take the three lowest types. The confidence is the share, of 10,000 joint draws of all types' means (from a
# t distribution with the spread over texts), in which these three are again the lowest.

# %% tags=["show"]
placement = plop.place(scores, k=K)
default = (MODEL, TASK, TEXTS, K) == (None, "math", 32, 3)
assert not default or placement.types == ["v_proj", "up_proj", "down_proj"] and placement.confidence > 0.999
sure = "> 99.9 %" if placement.confidence > 0.999 else f"{placement.confidence:.1%}"
print(f"adapters on {', '.join(placement.types)}, confidence {sure}")

# %% tags=["nbval-ignore-output", "picture"]
plop.plot_block(scores, k=K);

# %% [markdown]
# The confidence is about texts alone. It does not say that adapters train better there.
#
# **Do the adapters sit where they should?** [PEFT](https://huggingface.co/docs/peft) is the library that puts them there, and a
# `LoraConfig` names their places. As long as one name matches, PEFT says nothing about names that match no map. So `lora_config`
# tries the configuration on an empty copy of the model, and `check` counts what it hits:

# %% tags=["show"]
config = placement.lora_config(model, r=RANK, lora_alpha=2 * RANK)
targets = config.target_modules
print("target_modules:", targets if isinstance(targets, str) else sorted(targets))
placement.check(model, config)

# %% [markdown]
# **What we saw.** All modules that were chosen are adapted, and `check` would have raised an error for any other one. The column
# `trainable` counts the adapters' parameters.
#
# ## 5. Train
#
# **Question.** Do adapters there learn?
#
# **What we do.** We train on questions *with* worked answers. A *task* has them in three parts: to train on, to tune on and to test
# on. The eight test problems were neither scored nor trained on, which the first cell counts.

# %%
from plop_nb import experiments as ex

task = ex.load_task(EXAMPLES, train=2 * STEPS, validation=1, test=8)
touched = {example["prompt"] for example in task.train} | {f"{text}\nAnswer:" for text in texts}
known = [example for example in task.test if example["prompt"] in touched]
print(task.train[0]["prompt"] + task.train[0]["completion"])
print(f"\n{len(known)} of {len(task.test)} test problems were scored or trained on")

# %% [markdown]
# From here on it is ordinary [TRL](https://huggingface.co/docs/trl), the library for finetuning language models. It takes rows of a
# prompt and a completion, and the loss counts the tokens of the completion, here of the worked answer. With your own examples, make
# `train` of a list of such rows.

# %%
import tempfile
import warnings

import datasets
from trl import SFTConfig, SFTTrainer

warnings.simplefilter("ignore", FutureWarning)  # what other packages tell each other
datasets.disable_progress_bars()
train = datasets.Dataset.from_list(task.train).select_columns(["prompt", "completion"])
print(f"{len(train)} examples to train on, {len(task.test)} to test on")

# %% tags=["nbval-ignore-output"]
settings = SFTConfig(
    output_dir=tempfile.mkdtemp(), max_steps=STEPS, per_device_train_batch_size=2, learning_rate=2e-3,
    logging_steps=1, save_strategy="no", report_to="none", bf16=False, gradient_checkpointing=False,
    dataloader_pin_memory=False,
)  # fmt: skip
before = ex.evaluate(model, task, tokenizer, accuracy=False, per_example=True)
trainer = SFTTrainer(model, settings, train_dataset=train, processing_class=tokenizer, peft_config=config)
trainer.train()
after = ex.evaluate(trainer.model, task, tokenizer, accuracy=False, per_example=True)

# %% [markdown]
# The training loss jumps up and down, because each step sees two other examples. What counts are the test problems:

# %%
falls = []
for old, new, tokens in zip(before["losses"], after["losses"], before["tokens"], strict=True):
    falls.append((old - new) / tokens)
mean, low, high = plop.mean_interval(falls)
assert (MODEL, EXAMPLES, STEPS) != (None, "gsm", 8) or low > 0
print(f"loss on the test problems: {before['loss']:.1f} nats per token before, {after['loss']:.1f} after")
print(f"it falls by {mean:.1f}, 95 % interval over {len(falls)} problems: {low:.1f} to {high:.1f}")

# %% [markdown]
# **What we saw.** Eight steps of two examples lower the loss on problems that were neither scored nor trained on. (A *nat* is the
# unit of the loss. A fall by 0.3 means that the probability of a token of the right answer rises 1.35 times, on the geometric mean.) The test problems are new, but of the same kinds as the
# training problems. A part of the fall is how answers look. One training shows that adapters there learn. It does not show that they would learn less elsewhere.
#
# ## Exercises
#
# Each has a cell to fill in and a check. The solutions are in the collapsed cell below each check.
#
# ### 1. Every layer, or only on average? (5 minutes)
#
# The lowest type has a mean score below 1. In how many layers is its score below 1, and how many layers are there? *Hint:* `scores`
# has the columns `type`, `layer` and `nfn`, one row for each text and module.

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
# Your server takes adapters of at most 60 % of the parameters that `placement` has at rank 16. On which types does PLoP put
# them? *Hint:* `plop.place` has an argument for a budget.

# %%
from plop_nb.placement import adapter_sizes

sizes = 16 * adapter_sizes(scores)  # of adapters of rank 16 on each type
budget = 0.6 * sizes[placement.types].sum()
within_budget = None  # your turn: a placement
print(f"{budget:,.0f} parameters")


# %%
def check_budget(found):
    if found is None:
        return "not yet filled in"
    used = sizes[found.types].sum()
    assert used <= budget, f"{used:,} parameters are too many"
    assert found.types == types["type"].tolist()[: len(found.types)], "PLoP takes the lowest first"
    one_more = types["type"].tolist()[: len(found.types) + 1]
    assert sizes[one_more].sum() > budget, "one more type fits"
    return f"{', '.join(found.types)}: {used:,} of {budget:,.0f} parameters"


check_budget(within_budget)

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution.
check_budget(plop.place(scores, parameters=budget, r=16))

# %% [markdown]
# ## Three things to remember
#
# 1. **The score compares an input with noise.** NFN is $\|Wz\|$ over what $W$ does to noise of the same length. One forward pass
#    gives it for every map, and a few dozen texts are enough to rank SmolLM2's types.
# 2. **It tells of the model more than of the task.** Math and history give the same order of all seven types.
# 3. **Check where adapters land.** PEFT does not tell you of a name that matches nothing; `placement.check` does.
#
# **Not established.** That this placement beats others. In our record of one small model (notebook 05) gate, up and down come out ahead of the
# average type, and neither the MLP (gate, up, down) nor PLoP's choice (value, up, down) is shown to beat the other. The score also
# depends on how the same function is stored (notebook 04).
#
# **Where next.** To use this on your own model and texts, open notebook 07: it is made for copying cells. To choose a place for
# adapters, read notebook 05. To see why training would raise the score, read notebook 01.
