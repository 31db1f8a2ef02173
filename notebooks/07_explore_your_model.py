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
# **The answer.** Five calls: score, place, make a config, save it, check it. They stand together in one cell, in section 3. With
# the default settings the answer for SmolLM2-135M is v, up and down; eight math questions were enough to decide it. If you want
# one good default and no scores, take the MLP (gate, up and down). In notebook 05 it could not be told from PLoP's choice on one
# task and was better on another. If much depends on it, let placements race on your own examples (section 7).
#
# | | |
# |---|---|
# | **You need** | notebook 00; what a config of LoRA says (rank, alpha, target modules); the words are in the [glossary](GUIDE.md#words) |
# | **It takes** | a quarter of an hour to read, a minute or two to run on two CPU cores, with the model that needs no account |
# | **To copy** | cells that begin with `# To copy.` need nothing but `plop`, `torch`, `model`, `tokenizer` and `texts` |
#
# **Words.** A *map* multiplies a vector by a matrix $W$. A *module* is one map in one layer, a *type* the same map in all layers.
# The score is $\mathrm{NFN} = \|Wz\| / (\|z\| \, \|W\|_F / \sqrt d)$: how large $W$ makes its inputs $z$ of $d$ numbers, compared
# with noise of the same norm.

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
LOAD = {}  # of plop.load_model: {"dtype": "bfloat16", "device": "cuda:1"}, or see section 1
TEXTS = "math"  # a list of strings, a file (.csv, .jsonl, .txt), a Hub data set, or "code", "logic", "history"
COLUMN = None  # of the file or Hub data set: "question"
OPTIONS = {}  # of `datasets.load_dataset`: {"name": "main"}
N = 64  # how many texts there are to draw from; scoring stops earlier if it can
CHAT = False  # True: put the texts into the model's chat template
EXAMPLES = None  # to race on: a list of {"prompt": "...", "completion": " ..."}, or a .jsonl file of them
SECONDS = 600  # that the race may take

# %% [markdown]
# ## 1. The model
#
# | your case | the setting |
# |---|---|
# | a CPU, or one GPU | none; `LOAD = {"dtype": "bfloat16"}` if the default (float32 on a CPU, bfloat16 on a GPU) does not suit you |
# | several GPUs, or a model larger than memory | `LOAD = {"device_map": "auto", "max_memory": {"cpu": "8GB"}, "offload_folder": "offload"}`, see section 8 |
# | a model that you have loaded yourself | put it in the place of the next cell: any decoder whose maps the table below lists as scored, also one wrapped by PEFT |

# %% tags=["nbval-ignore-output"]
model, tokenizer = plop.load_model(MODEL, **LOAD)
print(f"{type(model).__name__} in {model.dtype} on {model.device}")

# %% [markdown]
# What could get adapters, and what is left out, with the reason:

# %% tags=["copy"]
# To copy.
table = plop.module_table(model)
table.groupby(["type", "status"], as_index=False).agg(modules=("module", "size"), parameters=("parameters", "sum"))

# %% [markdown]
# The table lists linear maps, so the embedding of the tokens is not in it. If your model has types that you expect and they are
# not `scored`, stop here: a placement would leave them out.

# %% [markdown]
# ## 2. The texts
#
# Take texts as the model will read them in training: prompts, or prompts with answers. Eight were enough for SmolLM2; `stop=`
# finds out for yours. A list with fewer than eight is scored whole, and `notes` will say that it is short.

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
# A *chat template* is the text that a chat model puts around what a user says. If you train on chats, score chats. We use none by
# default, so that base and chat models are read alike.

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
#
# **Predict.** How many of the 64 questions does it take to decide which three types of SmolLM2 are lowest?

# %% tags=["copy"]
# To copy.
import tempfile

folder = tempfile.mkdtemp()  # or a folder of yours
# look after 8, 16, 32, ... texts, and stop when the three lowest types are decided
scores = plop.nfn_scores(model, texts, tokenizer, batch_size="auto", stop=0.99)
placement = plop.place(scores, k=3)
config = placement.lora_config(model, r=16, lora_alpha=32)
config.save_pretrained(folder)
placement.check(model, config)

# %% [markdown]
# * `batch_size="auto"` lets batches grow to what fits in memory. It changes scores by rounding at most.
# * `stop=0.99` draws texts at random, and stops as soon as the `k` lowest types are decided. The probability of a wrong choice,
#   over all looks together, is designed to be at most 1 %; notebook 02 tests under which assumptions. If the texts run out first,
#   a warning says so.
# * `k=3` types get adapters, as in the paper, which did not test other values. If you place another number, give it as `k=` to
#   `nfn_scores` as well. `plop.place(scores, parameters=2_000_000, r=16)` takes a budget instead: types are added from the lowest
#   until the next does not fit. `stop=` does not cover a budget.
# * `lora_alpha=32` at rank 16 gives the adapters the scale $\alpha / r = 2$. PEFT's default is 8, whatever the rank.
# * `check` proves on an *empty copy* of the model (its modules without their weights) what the config hits. It raises an error if
#   the config differs from the placement.
# * `partial="run.jsonl"` in `nfn_scores` keeps finished texts, so the same call goes on after an interrupt.
#
# From a terminal, `python -m plop_nb MODEL --texts mine.txt --out placement` writes the same file, the scores and a picture.

# %% [markdown]
# ## 4. Check any config
#
# **Question.** You have a config from elsewhere. What does it hit?
#
# If at least one name matches, PEFT silently ignores the rest. Here is a config with the full name of one module, and a name that
# matches nothing. (`adapted_targets` is imported from its own file: it is for this check, and `plop` has the verbs of everyday
# use.)

# %% tags=["copy"]
# To copy.
from peft import LoraConfig

from plop_nb.targets import adapted_targets

maps = plop.module_table(model).query("status == 'scored'")
mine = LoraConfig(target_modules=[maps["module"].iloc[0], "no_such_map"])
maps["adapted"] = maps["module"].isin(list(adapted_targets(model, mine)))
maps.groupby("type")["adapted"].agg(adapted="sum", modules="size")

# %% [markdown]
# `placement.check` compares a config with a placement. This one differs:

# %%
try:
    placement.check(model, mine)
except ValueError as error:
    print(error)

# %% [markdown]
# And the config that section 3 has saved, read back as another program would read it:

# %%
from pathlib import Path

again = LoraConfig.from_pretrained(folder)
counts = placement.check(model, again)
print([file.name for file in Path(folder).iterdir()], "with rank", again.r, "and alpha", again.lora_alpha)
print(f"{counts['adapted'].sum()} of {counts['modules'].sum()} chosen modules are hit, and no other")

# %% [markdown]
# ## 5. Read the scores
#
# PLoP (Precise LoRA Placement, [arXiv 2506.20629](https://arxiv.org/abs/2506.20629)) takes the types with the lowest scores. Its
# authors argue that training raises the score (notebook 01), so a low one leaves much to gain. They report better results than
# with other placements, in some tasks with fewer parameters. We have found less on one small model: PLoP's choice could not be
# told from the MLP on one task, and was worse on another (notebook 05).
#
# A score of 1 is what noise gives. The 95 % intervals say how far the score would move with other texts of the same kind.

# %%
types = plop.by_type(scores)
print(f"adapters on {', '.join(placement.types)}, from {types['samples'].max()} texts")
types.round(2)

# %% tags=["nbval-ignore-output", "picture"]
name = (MODEL or "SmolLM2-135M-Instruct").split("/")[-1]
who = f"{name} on {types['samples'].max()} texts ({TEXTS if isinstance(TEXTS, str) else 'yours'})"
plop.plot_types(scores, placement=placement, title=f"{who}: adapters go on {', '.join(placement.types)}");

# %% [markdown]
# **Question.** Would other texts of this kind change the choice?
#
# `placement.notes` lists warnings, such as too few texts. `placement.swaps` has each chosen type beside each other one: their
# gap, and the probability that more texts would reverse their order. The smallest gap comes first.

# %%
print(*placement.notes or ["no warnings"], sep="\n")
swaps = placement.swaps.sort_values("gap", ignore_index=True).head(3).round({"gap": 2})
swaps["probability"] = swaps["probability"].map(lambda p: "< 0.0001" if p < 1e-4 else f"{p:.4f}")
swaps

# %% [markdown]
# Notes and swaps are about other texts. Neither sees that the same function can be stored in different weights, and then scores
# change. In front of each attention and MLP stands a *norm*, which multiplies each channel by a *gain*. Fold the gains into the
# maps that read them, and the model computes the same as before. But gate replaces down among the lowest three (exercise 2).

# %% [markdown]
# ## 6. Change the choice
#
# Types, layers or single modules, by number or by parameters, at any rank. All controls work with the keyboard.

# %% tags=["nbval-ignore-output"]
explorer = plop.explore(scores, model, k=len(placement.types), r=config.r, lora_alpha=config.lora_alpha)
explorer

# %% [markdown]
# The widget lives only while the notebook runs. Code can move its controls, too. Here we take one type fewer:

# %% tags=["nbval-ignore-output"]
explorer.k.value = max(1, len(placement.types) - 1)
changed = f"{who}, changed to {', '.join(explorer.placement.types)}"
plop.plot_block(scores, placement=explorer.placement, title=f"{changed}: {explorer.parameters:,} parameters");

# %% [markdown]
# Then we go back to the choice of section 3. Section 7 and the last cells take what is chosen in the widget.

# %%
explorer.k.value = len(placement.types)
print(explorer.config_text)

# %% [markdown]
# ## 7. Is it the best place for my data?
#
# A low score does not promise that adapters train best there. If you have examples with answers, let your choice *race* against
# the largest maps (in SmolLM2 these are the MLP) and against all types: with equal parameters, at several learning rates, within
# a given time.
#
# A race trains all placements at all rates for a few steps, stops those that are behind, and runs the last ones again in full
# with fresh seeds. Up to there it goes by the *training* loss. The lowest mean loss on *validation* examples wins. The race does
# not use the *test* examples to decide: they are for you, to judge the winner once. (Below we print their loss for all three,
# because this race is recorded.) Here is one finished race of SmolLM2 on sums of two numbers. The race's own code decided, and
# looked its trainings up in the record of notebook 05 (`python notebooks/tools/record_race_example.py`). `difference` is to the
# winner, with its interval over seeds:

# %%
import pandas as pd

recorded = pd.read_csv(plop.data_file("results/race_example.csv"), comment="#")
print(f"decided: {recorded['decided'].all()}, after {recorded['runs'].max()} runs")
recorded[["placement", "lr", "loss", "difference", "low", "high", "seeds", "test_loss"]].round(3)

# %% [markdown]
# **What we saw.** PLoP's choice has the lowest mean, by 0.005 nats per token, but the race is *undecided*: the interval of this
# difference reaches from -0.28 to 0.29, as the two seeds of the final say little about other seeds. On the test examples the
# order is the same. "Undecided" means: take the placement that is easiest to serve, such as the one with the fewest adapted
# modules, or give the race more time.

# %% [markdown]
# Set `EXAMPLES` in the settings, a few hundred of them, to race on your own. The three parts are drawn at random:

# %%
from plop_nb import experiments as ex
from plop_nb.placement import Placement


def parts_of(examples):
    """Validation and test examples, a fifth each, and the rest to train on."""
    mixed, fifth = random.Random(0).sample(examples, len(examples)), len(examples) // 5
    return {"validation": mixed[:fifth], "test": mixed[fifth : 2 * fifth], "train": mixed[2 * fifth :]}


# %%
def race_on(examples):
    rivals = {"chosen": explorer.placement, "largest maps": plop.place(scores, rule="size")}
    rivals["all"] = Placement.of_types(scores, scores["type"].unique())
    task = ex.Task("mine", **parts_of(examples))
    return ex.race(model, task, tokenizer, rivals, seconds=SECONDS, parameters=explorer.parameters)


if isinstance(EXAMPLES, str):
    EXAMPLES = pd.read_json(EXAMPLES, lines=True).to_dict("records")
race = race_on(EXAMPLES) if EXAMPLES else "no EXAMPLES are set, so there is no race of your own"
race

# %% [markdown]
# If you have chosen the largest maps yourself, two rivals are the same, and the race compares one with its copy: take one of them
# out.

# %% [markdown]
# ## 8. What it costs
#
# **Question.** How long does scoring take, and how much memory, for a small model and for a large one?
#
# **What we do.** We read two records of two CPU cores. In the first, SmolLM2 reads 64 math questions, beside one plain forward
# pass over the same texts. In the second, a Llama with random weights of 5.5 GB reads 64 texts of 128 tokens, with a limit of 3
# GB on memory.

# %%
bench = pd.read_csv(plop.data_file("results/bench_cpu.csv")).query("method == 'plop_nb'")
bench[["dtype", "seconds", "of_plain", "peak_mb"]].round(2)

# %%
large = pd.read_csv(plop.data_file("results/large_model.csv"))
large[["model_gb", "limit_gb", "seconds", "peak_gb", "seconds_in_memory"]].round(1)

# %% [markdown]
# **What we saw.** Scoring takes about half to two thirds of one forward pass over the texts (`of_plain`), because it leaves out
# the output head and puts texts of like length together. So time one forward pass on your machine to know the cost. bfloat16 is
# slower than float32 on this CPU. For SmolLM2 it needed 59 MB beside the model. The Llama of 5.5 GB was read from disk and never
# took more than 1.2 GB. (The other, of 1.2 GB, took 49 seconds from disk and 45 in memory.) We have not measured a GPU.
#
# Where the model is read from disk, eight texts take far more than an eighth of this: each block is read once, whatever the
# number of texts. A model that does not fit is read from disk block by block, each block once for many texts. Here is SmolLM2
# with 200 MB of memory for its weights, and the same eight texts scored in memory:

# %% tags=["copy"]
# To copy.
import logging
import tempfile

logging.getLogger("accelerate.big_modeling").setLevel("ERROR")  # says that weights are on disk
limits = {"device_map": "auto", "max_memory": {"cpu": "200MB"}, "offload_folder": tempfile.mkdtemp()}
offloaded, its_tokenizer = plop.load_model("SmolLM2-135M-Instruct", **limits)
from_disk = plop.nfn_scores(offloaded, texts[:8], its_tokenizer)
on_disk = sum(weight.numel() for weight in offloaded.parameters() if weight.device.type == "meta")
print(f"{on_disk / 1e6:.0f} of {offloaded.num_parameters() / 1e6:.0f} million parameters were on disk")

# %%
in_memory = plop.nfn_scores(plop.load_model(dtype=offloaded.dtype)[0], texts[:8], its_tokenizer)
difference = (plop.by_type(from_disk)["nfn"] - plop.by_type(in_memory)["nfn"]).abs().max()
assert difference < 0.001
print(f"{len(plop.by_type(in_memory))} types, none of which differs by 0.001 or more")

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
    return f"lowest: {plop.place(found).types}; a type's score changes by {change.abs().max():.0%} at most"


check_chats(chat_scores)

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution. The template moves SmolLM2's scores by a few percent, and the placement stays.
check_chats(plop.nfn_scores(model, chats[:8], tokenizer))

# %% [markdown]
# ### 2. The same function in other weights (10 minutes)
#
# `form="folded"` in `nfn_scores` scores the model as if the gains of its norms had been multiplied into the maps that read them.
# Score the first eight texts so. Which types would PLoP choose now? Which scores change, and why not that of down?

# %%
folded_scores = None  # your turn: what plop.nfn_scores returns


# %%
def check_folded(found):
    if found is None:
        return "not yet filled in"
    stored = plop.by_type(plop.nfn_scores(model, texts[:8], tokenizer, progress=False))
    table = stored.set_index("type")[["nfn"]].rename(columns={"nfn": "stored"})
    table["folded"] = plop.by_type(found).set_index("type")["nfn"]
    assert (table["stored"] - table["folded"]).abs().max() > 0.1, "these are the scores of the stored weights"
    return table.round(2)


check_folded(folded_scores)

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution. Down and output read no norm, so their scores stay. Gate and up read the norm before the MLP: the gain leaves
# their inputs and enters their weights, both scores fall by a third, and gate passes down. Query, key and value
# read the norm before the attention.
check_folded(plop.nfn_scores(model, texts[:8], tokenizer, form="folded"))

# %% [markdown]
# ### 3. From a file to a config (15 minutes)
#
# Write ten lines of your own into `mine.txt` in `folder`. Score them, choose at most one million parameters at rank 8, and save
# the config in `folder`.

# %%
mine_txt = Path(folder) / "mine.txt"
my_placement = None  # your turn: what plop.place returns, and a saved config


# %%
def check_file(found):
    if found is None:
        return "not yet filled in"
    saved = LoraConfig.from_pretrained(folder)
    trainable = found.check(model, saved)["trainable"].sum()
    assert saved.r == 8 and trainable <= 1_000_000, f"rank {saved.r}, {trainable:,} parameters"
    return f"{', '.join(found.types)}: {trainable:,} parameters at rank {saved.r}"


check_file(my_placement)

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution. With a file of your own the lines would be yours.
mine_txt.write_text("\n".join(f"Line {n} of my own: what is {n} times {n}?" for n in range(10)))
own_scores = plop.nfn_scores(model, read_texts(mine_txt), tokenizer)
own = plop.place(own_scores, parameters=1_000_000, r=8)
own.lora_config(model, r=8, lora_alpha=16).save_pretrained(folder)
check_file(own)

# %% [markdown]
# ## Go on from here: train
#
# The adapters of section 6, trained with [TRL](https://huggingface.co/docs/trl), the library for finetuning language models, in
# plain code. Put your own rows in the place of these.

# %%
import datasets
from trl import SFTConfig, SFTTrainer

datasets.disable_progress_bars()
rows = EXAMPLES or [{"prompt": f"{n} + 2 =", "completion": f" {n + 2}"} for n in range(16)]
settings = SFTConfig(
    output_dir=tempfile.mkdtemp(), max_steps=4, learning_rate=1e-3, per_device_train_batch_size=4,
    logging_steps=1, save_strategy="no", report_to="none", bf16=False, gradient_checkpointing=False,
    dataloader_pin_memory=False,
)  # fmt: skip
print(f"{len(rows)} rows, such as {rows[0]}")

# %% [markdown]
# The trainer puts the adapters into `model` *itself*, so this comes last. Load the model anew before you score again.

# %% tags=["nbval-ignore-output"]
import warnings

warnings.simplefilter("ignore", FutureWarning)  # what other packages tell each other
chosen = explorer.placement.lora_config(model, r=explorer.rank.value, lora_alpha=config.lora_alpha)
data = datasets.Dataset.from_list(rows)
trainer = SFTTrainer(model, settings, train_dataset=data, processing_class=tokenizer, peft_config=chosen)
trainer.train();

# %%
trainable, total = trainer.model.get_nb_trainable_parameters()
print(f"{trainable:,} of {total:,} parameters are trained, {trainable / total:.2%}; the explorer says {explorer.parameters:,}")

# %% [markdown]
# ## Three things to remember
#
# 1. **Eight texts may be enough.** `stop=` finds out.
# 2. **Check what the config hits** before you train: `placement.check`, or `adapted_targets` for any config.
# 3. **A low score is no promise.** Race on your own examples if it matters.
#
# **Not established.** That the lowest-scoring types train best: in the record of notebook 05, PLoP's choice is not shown to beat
# the MLP on any task, and is behind it on one. The choice also depends on how the same function is stored (exercise 2, notebook
# 04).
#
# **Where next.** Notebook 02 says how sure a score is and how `stop=` works. Notebook 05 compares places by training. Notebook 06
# does so with rewards.
