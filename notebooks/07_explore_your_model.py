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
# **The question.** Where do LoRA adapters go on *your* model, with *your* texts, and what do you copy into your own code?
#
# **The answer.** Five calls: score, place, make a config, save it, check it. They stand together in one cell, in section 3. As this
# notebook is set, they choose the value, up and down maps of SmolLM2-135M, and eight math questions decide that. If you
# want one good default and no scores, take the MLP (notebook 05). If much depends on it, let placements race on your own examples (section 8).
#
# | | |
# |---|---|
# | **You need** | notebook 00: what the Normalized Feature Norm (NFN) is, and what a placement is |
# | **It takes** | one minute on two CPU cores, with the model that needs no account |
# | **To copy** | cells that begin with `# To copy.` need nothing but `plop`, `torch`, `model`, `tokenizer` and `texts` |

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
MODEL = None  # None: SmolLM2-135M-Instruct; else a Hub id, "Qwen/Qwen3-0.6B", or a folder, "runs/my-model"
DTYPE = None  # None: float32 on a CPU, bfloat16 on a GPU; else "bfloat16", "float16", "float32"
DEVICE = None  # None: the GPU if there is one; else "cpu", "cuda:1"
TEXTS = "math"  # a list of strings, a file (.csv, .jsonl, .txt), a Hub data set, or a domain of ours
COLUMN = None  # of the file or Hub data set: "question"
OPTIONS = {}  # of `datasets.load_dataset`: {"name": "main"}
N = 64  # how many texts there are to draw from; scoring stops earlier if it can
CHAT = False  # True: put the texts into the model's chat template
EXAMPLES = None  # to race on: a list of {"prompt": "...", "completion": " ..."}, a few hundred of them
SECONDS = 600  # that the race may take

# %% [markdown]
# ## 1. The model
#
# | your case | the call |
# |---|---|
# | a CPU, or one GPU | `plop.load_model(name)`; `dtype=` and `device=` if the default does not suit you |
# | several GPUs, or a model larger than memory | `plop.load_model(name, device_map="auto", max_memory=..., offload_folder=...)`, see section 7 |
# | a model that you have loaded yourself | nothing to do: any transformers model does, also one wrapped by PEFT |

# %% tags=["nbval-ignore-output"]
model, tokenizer = plop.load_model(MODEL, dtype=DTYPE, device=DEVICE)
print(f"{type(model).__name__} in {model.dtype} on {model.device}")

# %% [markdown]
# What could get adapters, and what is left out, with the reason:

# %% tags=["copy"]
# To copy.
table = plop.module_table(model)
table.groupby(["type", "status"], as_index=False).agg(modules=("module", "size"), parameters=("parameters", "sum"))

# %% [markdown]
# ## 2. The texts
#
# Take texts as the model will read them in training: prompts, or prompts with answers. A few dozen are enough for most models.

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
# If you train on chats, score chats. A *chat template* is the text that a chat model puts around what a user says:

# %% tags=["copy"]
# To copy.
def as_chat(text):
    turn = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)


chats = [as_chat(text) for text in texts] if tokenizer.chat_template else texts
print(chats[0])

# %%
texts = chats if CHAT else texts
print(f"{len(texts)} texts to score, " + ("in the chat template" if CHAT else "as they are"))

# %% [markdown]
# ## 3. Score, place, save, check: all in one cell

# %% tags=["copy"]
# To copy.
import tempfile

folder = tempfile.mkdtemp()  # or a folder of yours
scores = plop.nfn_scores(model, texts, tokenizer, batch_size="auto", stop=0.99)
placement = plop.place(scores, k=3)
config = placement.lora_config(model, r=16, lora_alpha=32)
config.save_pretrained(folder)
placement.check(model, config)

# %% [markdown]
# * `batch_size="auto"` lets batches grow to what fits in memory. It does not change the scores.
# * `stop=0.99` looks at the scores after 8, 16, 32, ... texts drawn at random, and stops as soon as the `k` lowest types are decided. The
#   probability of a wrong choice, over all looks together, shall be at most 1 %; notebook 02 says when it is. If the texts run out first, a warning says so.
# * `k=3` types get adapters, as in the paper. `plop.place(scores, parameters=2_000_000, r=16)` takes a budget instead.
# * `check` proves on an empty copy of the model what the config hits. It raises an error for a missed or an additional map.
# * `partial="run.jsonl"` in `nfn_scores` keeps finished texts, so that the same call goes on after an interrupt.
#
# ## 4. Read the scores
#
# A score of 1 is what random inputs give. PLoP takes the lowest types. The intervals (95 %, over texts) are for other texts of the same kind.

# %%
types = plop.by_type(scores)
assert MODEL or TEXTS != "math" or placement.types == ["v_proj", "up_proj", "down_proj"]
print(f"adapters on {', '.join(placement.types)}, from {types['samples'].max()} texts")
types.round(2)

# %% tags=["nbval-ignore-output", "picture"]
plop.plot_types(scores, placement=placement);

# %% [markdown]
# Is the choice safe? `notes` says what is wrong with a ranking, such as too few texts. `swaps` has each chosen type with each other one, and the
# probability that more texts would reverse their order. For SmolLM2 all of them are below 0.0001. Neither of the two sees that the same function,
# stored in other weights, may have other scores: with the gains of its norms folded into the maps, SmolLM2 gets gate in the place of down (exercise 2).

# %%
assert MODEL or TEXTS != "math" or placement.swaps["probability"].max() < 0.0001
print(*placement.notes or ["nothing to say against this ranking"], sep="\n")
placement.swaps.head(3).round(4)

# %% [markdown]
# ## 5. Change the choice
#
# Types, layers or single modules, by number or by parameters, at any rank. All controls work with the keyboard. The cells of section 8
# take what is chosen here.

# %% tags=["nbval-ignore-output"]
explorer = plop.explore(scores, model, k=len(placement.types), r=config.r)
explorer

# %% [markdown]
# The widget lives only while the notebook runs. The drawing below outlines the types that it has chosen. The code is to copy;
# add `lora_alpha=` (PEFT's default is 8, whatever the rank) and whatever else your training needs:

# %% tags=["nbval-ignore-output"]
plop.plot_block(scores, placement=explorer.placement);

# %%
print(explorer.config_text)

# %% [markdown]
# ## 6. Check any config
#
# PEFT raises an error where no name matches. As long as one of them does, it says nothing about the others. Here is a config
# with the full name of one map, and a name that matches nothing. `adapted_targets` says what it hits:

# %% tags=["copy"]
# To copy.
from peft import LoraConfig

from plop_nb.targets import adapted_targets

table = plop.module_table(model).query("status == 'scored'")
mine = LoraConfig(target_modules=[table["module"].iloc[0], "no_such_map"])
table["adapted"] = table["module"].isin(list(adapted_targets(model, mine)))
table.groupby("type")["adapted"].agg(adapted="sum", modules="size")

# %%
try:
    placement.check(model, mine)
except ValueError as error:
    print(error)

# %% [markdown]
# `check` compares a config with a placement, and raises this error. Now the config that section 3 has saved, read back as another
# program would read it:

# %%
from pathlib import Path

again = LoraConfig.from_pretrained(folder)
print([file.name for file in Path(folder).iterdir()], "with rank", again.r)
placement.check(model, again)

# %% [markdown]
# From a terminal, `python -m plop_nb MODEL --texts mine.txt --out placement` writes the same file, the scores and a picture.
#
# ## 7. What it costs
#
# **Question.** How long does scoring take, and how much memory, for a small model and for a large one?
#
# **What we do.** We read what was measured on two CPU cores: SmolLM2 on 64 math questions of 77 tokens in the mean, and random
# Llamas on 64 texts of 128 tokens, loading included. The largest one was held under 3 GB of memory. `billions` counts the
# parameters of the scored maps.

# %%
import pandas as pd

bench = pd.read_csv(plop.data_file("results/bench_cpu.csv")).query("method == 'plop_nb'").set_index("dtype")
large = pd.read_csv(plop.data_file("results/large_model.csv")).set_index("layers")
measured = [
    ("SmolLM2-135M, float32", 0.106, 64 * 77, bench.loc["float32", "seconds"]),
    ("SmolLM2-135M, bfloat16", 0.106, 64 * 77, bench.loc["bfloat16", "seconds"]),
    ("random Llama of 1.2 GB, bfloat16", 0.354, 64 * 128, large.loc[2, "seconds_in_memory"]),
    ("random Llama of 5.5 GB from disk, bfloat16", 2.48, 64 * 128, large.loc[14, "seconds"]),
]

# %%
cost = pd.DataFrame(measured, columns=["model", "billions", "tokens", "seconds"])
cost["seconds per billion and 1000 tokens"] = cost["seconds"] / cost["billions"] / (cost["tokens"] / 1000)
cost.round(1).assign(billions=cost["billions"])

# %%
low, high = cost["seconds per billion and 1000 tokens"].agg(["min", "max"])
assert 14 < low < high < 26 and large.loc[14, "peak_gb"] < 1.25
tokens = 64 * 77 / 1000
print(f"estimate, 1 billion parameters in scored maps, 64 texts: {tokens * low:.0f} to {tokens * high:.0f} s")
print(f"memory: {bench.loc['float32', 'peak_mb']:.0f} MB beside SmolLM2, {large.loc[14, 'peak_gb']:.1f} GB in all for the 5.5 GB model")

# %% [markdown]
# **What we saw.** Seconds per parameter and token differ by less than a factor of two between these models. So a model whose scored
# maps have one billion parameters should take 76 to 121 seconds for 64 such texts. That is an *estimate* from these ratios, and no
# measurement. Eight texts take less, but not an eighth, as the loading is a part of it. Scoring needs little memory beside the model. The model of 5.5 GB was scored with at most 1.2 GB in memory, libraries
# included. We have not measured a GPU.
#
# A model that does not fit is read from disk block by block, each block once for many texts. Here we allow this model 200 MB:

# %% tags=["copy", "nbval-ignore-output"]
# To copy.
import logging
import tempfile

logging.getLogger("accelerate.big_modeling").setLevel("ERROR")  # says that weights are on disk
limits = {"device_map": "auto", "max_memory": {"cpu": "200MB"}, "offload_folder": tempfile.mkdtemp()}
offloaded, its_tokenizer = plop.load_model(model.name_or_path, **limits)
from_disk = plop.nfn_scores(offloaded, texts[:8], its_tokenizer)
plop.by_type(from_disk).round(2)

# %%
on_disk = sum(weight.numel() for weight in offloaded.parameters() if weight.device.type == "meta")
assert MODEL or on_disk > 0
print(f"{on_disk / 1e6:.0f} of {offloaded.num_parameters() / 1e6:.0f} million parameters were on disk")
print("lowest types:", plop.place(from_disk).types)

# %% [markdown]
# ## 8. Is it the best place for my data?
#
# A low score does not promise that adapters train best there. In the record of notebook 05 PLoP's choice is not ahead of the largest maps
# (the MLP) on the mean over seeds. If you have examples with answers, let your choice race against the largest maps and against all of
# them: with equal parameters, at several learning rates, within a given time. Set `EXAMPLES` in the settings for that. The race says which
# placement and rate to take, or "undecided": then take the one that is easiest to serve.

# %%
from plop_nb import experiments as ex
from plop_nb.placement import Placement


# %%
def race_on(examples):
    examples, fifth = random.Random(0).sample(examples, len(examples)), len(examples) // 5
    parts = {"validation": examples[:fifth], "test": examples[fifth : 2 * fifth], "train": examples[2 * fifth :]}
    rivals = {"chosen": explorer.placement, "largest maps": plop.place(scores, rule="size")}
    rivals["all"] = Placement.of_types(scores, scores["type"].unique())
    task = ex.Task("mine", **parts)
    return ex.race(model, task, tokenizer, rivals, seconds=SECONDS, parameters=explorer.parameters)


race = race_on(EXAMPLES) if EXAMPLES else "no EXAMPLES are set, so there is no race"
race

# %% [markdown]
# ## Exercises
#
# Each has a cell to fill in and a check. The solutions are in the collapsed cell below each check.
#
# ### 1. Chats (10 minutes)
#
# Does the chat template change the placement? Score the first eight of `chats`.

# %%
chat_scores = None  # your turn: what plop.nfn_scores returns


# %%
def check_chats(found):
    if found is None:
        return "not yet filled in"
    assert found["sample"].nunique() == 8, "score eight chats"
    plain = plop.nfn_scores(model, texts[:8], tokenizer)  # the same texts without the template
    change = plop.by_type(found).set_index("type")["nfn"] / plop.by_type(plain).set_index("type")["nfn"] - 1
    largest = change.abs().max()
    return f"lowest: {plop.place(found).types}; a type's score changes by {largest:.0%} at most"


check_chats(chat_scores)

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution.
check_chats(plop.nfn_scores(model, chats[:8], tokenizer))

# %% [markdown]
# ### 2. The same function in other weights (10 minutes)
#
# In front of each attention and MLP stands a *norm* with a gain for each channel. The gains can be multiplied into the maps that read
# them, and the model computes the same as before. `form="folded"` in `nfn_scores` scores the model as if that had been done. Score the first eight
# texts so. Which types would PLoP choose now?

# %%
folded_scores = None  # your turn: what plop.nfn_scores returns


# %%
def check_folded(found):
    if found is None:
        return "not yet filled in"
    other = plop.place(found).types
    assert MODEL or TEXTS != "math" or "gate_proj" in other, "these are the scores of the stored weights"
    return f"stored: {placement.types}; folded: {other}"


check_folded(folded_scores)

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution.
check_folded(plop.nfn_scores(model, texts[:8], tokenizer, form="folded"))

# %% [markdown]
# ## Go on from here
#
# The adapters of the choice in section 5, ready for a trainer (notebook 00 has one). PEFT counts as the explorer does:

# %%
import warnings

from peft import get_peft_model

warnings.simplefilter("ignore", FutureWarning)  # what other packages tell each other
lora = get_peft_model(model, explorer.placement.lora_config(model, r=explorer.rank.value))
trainable, total = lora.get_nb_trainable_parameters()
assert trainable == explorer.parameters
print(f"{trainable:,} of {total:,} parameters are trained, {trainable / total:.2%}")

# %% [markdown]
# ## Three things to remember
#
# | you want | take |
# |---|---|
# | a placement and a config | the cell of section 3 |
# | to know what *any* config hits | `adapted_targets`, section 6; `placement.check` raises an error where it is not the choice |
# | a model larger than memory | `device_map="auto"`, `max_memory=`, `offload_folder=`, section 7 |
# | texts as in training | the chat template, section 2 |
# | to know whether it is the best place | the race, section 8 |
#
# 1. **Eight texts may be enough.** `stop=` finds out.
# 2. **Check what the config hits** before you train.
# 3. **A low score is no promise.** Race on your own examples if it matters.
#
# **Not established.** That the lowest-scoring types train best: in the record of notebook 05, neither PLoP's choice nor the MLP is shown to beat the
# other. The choice also depends on how the same function is stored (exercise 2, notebook 04). The costs of a model with a billion parameters are an estimate.
#
# **Where next.** Notebook 02 says how sure a score is and how `stop=` works. Notebook 05 compares places by training. Notebook 06 does so with rewards.
