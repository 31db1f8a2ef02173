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
# # Your model, your texts
#
# One page to copy cells out of: name a model and some texts of your task in the settings, run all, and take the
# `LoraConfig` home. As it stands it takes half a minute on a CPU, with the 135M model that needs no account.

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
MODEL = None  # None: SmolLM2-135M-Instruct; else a Hub id, "Qwen/Qwen3-0.6B", or a local folder, "runs/my-model"
TEXTS = "math"  # a list of strings, a file ("mine.csv", .jsonl, .txt), a Hub data set ("openai/gsm8k"), a domain of ours
COLUMN = None  # of the file or Hub data set: "question"
OPTIONS = {}  # of `datasets.load_dataset`: {"name": "main"}
N = 24  # how many texts to score on
K = 3  # how many module types get adapters
RANK = 16  # of the adapters
EXAMPLES = None  # to race placements on: a list of {"prompt": "...", "completion": " ..."}, some hundred of them
SECONDS = 600  # that the race may take

# %% [markdown]
# ## Texts
#
# As the model will read them in training: prompts, or prompts with answers, with the chat template if there is one.
# A few dozen decide most placements.

# %%
import random

from plop_nb.texts import read_texts

if isinstance(TEXTS, list):
    texts = TEXTS
elif TEXTS.endswith((".csv", ".jsonl", ".txt")):
    texts = read_texts(TEXTS, COLUMN)
    texts = random.Random(0).sample(texts, min(N, len(texts)))
else:
    texts = plop.load_texts(TEXTS, n=N, column=COLUMN, **OPTIONS)
print(f"{len(texts)} texts, the first of them:\n{texts[0]}")

# %% [markdown]
# ## Model
#
# What could get adapters, and what is left out, with the reason:

# %% tags=["nbval-ignore-output"]
model, tokenizer = plop.load_model(MODEL)

# %%
table = plop.module_table(model)
table.groupby(["type", "status"], as_index=False).agg(modules=("module", "size"), parameters=("parameters", "sum"))

# %% [markdown]
# ## Profile
#
# One forward pass without the output head. A score of 1 is what random inputs give; the lowest types have most to gain,
# says the paper.

# %%
scores = plop.nfn_scores(model, texts, tokenizer)
plop.by_type(scores).round(2)

# %% tags=["nbval-ignore-output", "picture"]
ax = plop.plot_types(scores, k=K)

# %% [markdown]
# ## Placement, and how sure it is
#
# `confidence` is the probability that texts without end would choose the same types. Where it is low, a note says which
# two types may swap: score more texts (`N`), or choose another `K`. Notebook 02 has the rest.

# %%
placement = plop.place(scores, k=K)
assert MODEL or TEXTS != "math" or placement.confidence > 0.9
placement

# %% [markdown]
# ## Choose
#
# Types, layers or single modules, by number or by parameter budget, at any rank. All controls work with the keyboard.
# The cells below take what is chosen here; the figure is what a saved notebook can show of it.

# %% tags=["nbval-ignore-output"]
explorer = plop.explore(scores, model, k=K, r=RANK)
explorer

# %% tags=["nbval-ignore-output"]
ax = plop.plot_heatmap(scores, placement=explorer.placement)
ax.set_title(f"Outlined: {explorer.parameters:,} trainable parameters (the others faded)", loc="left");

# %% [markdown]
# ## Configuration
#
# To copy. It was tried on an empty copy of the model and hits exactly the chosen modules.

# %%
print(explorer.config_text)

# %% [markdown]
# ## Is it the best place for my data?
#
# A low score does not promise that adapters train best there. In the record of notebook 05 PLoP's choice is not ahead of the
# largest maps on the mean over seeds. If you have examples with answers, let your choice race against the largest maps (the
# MLP, as a rule) and against all of them: with equal parameters, at several learning rates, within a given time. Set `EXAMPLES`
# in the settings for that. The race says which placement and rate to take, or "undecided": then take the one that is easiest to serve.

# %%
from plop_nb import experiments as ex
from plop_nb.placement import Placement


# %%
def race_on(examples):
    fifth = len(examples) // 5
    parts = {"validation": examples[:fifth], "test": examples[fifth : 2 * fifth], "train": examples[2 * fifth :]}
    rivals = {"chosen": explorer.placement, "largest maps": plop.place(scores, K, rule="size")}
    rivals["all"] = Placement.of_types(scores, scores["type"].unique())
    task = ex.Task("mine", **parts)
    return ex.race(model, task, tokenizer, rivals, seconds=SECONDS, parameters=explorer.parameters)


race = race_on(EXAMPLES) if EXAMPLES else "no EXAMPLES are set, so there is no race"
race

# %% [markdown]
# Or go on from here; PEFT counts as the explorer does:

# %%
from peft import get_peft_model

lora = get_peft_model(model, explorer.placement.lora_config(model, r=explorer.rank.value))
trainable, total = lora.get_nb_trainable_parameters()
assert trainable == explorer.parameters
print(f"{trainable:,} of {total:,} parameters are trained, {trainable / total:.2%}")
