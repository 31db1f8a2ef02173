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
# **The question.** Where do LoRA adapters go on *your* model, with *your* texts, and which lines do you copy into your own code?
#
# **The answer.** Five calls do it: score, place, make a config, check it, save it. They stand together in one cell, in section 5.
# On SmolLM2-135M with math questions they choose the value, up and down maps.
#
# If you want one default and no scores, take the MLP (gate, up and down). This advice rests on little. On one small model its
# loss was lower than that of PLoP's choice on one task, and could not be told from it elsewhere (notebook 05). On Llama-3.2-3B,
# PEFT's own comparison has the MLP before query and value, by 49.4 to 47.8 % right answers at about equal parameters; PLoP was
# not in it. If much depends on the place, let placements race on your own examples (section 9).
#
# **The checklist.** One task a section, in the order in which you will meet them:
#
# | | task | the call |
# |---:|---|---|
# | 1 | Load the model | `plop.load_model(name, dtype=..., device=...)` |
# | 2 | See what can get adapters | `plop.module_table(model)` |
# | 3 | Choose the texts | a list of strings; `as_chat` if you train on chats |
# | 4 | Know what it will cost | weights × tokens × a measured rate |
# | 5 | Score, place, check, save | the five calls |
# | 6 | Read the scores | `plop.by_type(scores)`, `placement.notes` |
# | 7 | Check any config | `adapted_targets(model, config)` |
# | 8 | Change the choice | `plop.explore(scores, model)` |
# | 9 | Let placements race | `ex.race(...)` |
# | 10 | Train, save, and take the adapters out again | `SFTTrainer(..., peft_config=config)` |
# | 11 | If the model is larger than memory | `device_map`, `max_memory`, `offload_folder` |
#
# | | |
# |---|---|
# | **You need** | notebook 00; what a LoRA config says (rank, alpha, target modules); the words are in the [glossary](GUIDE.md#words) |
# | **It takes** | twenty minutes to read, 35 for the exercises; two to run on two CPU cores with SmolLM2, which needs no Hugging Face account |
# | **To copy** | cells that begin with `# To copy.` need nothing but `plop`, `model`, `tokenizer` and `texts`; the cells of sections 8 to 10 build on each other |
#
# **Words.** A *map* multiplies a vector by a matrix $W$. A *module* is one map in one layer. A *type* is the same map in all
# layers: query, key, value, output, gate, up and down, which the code calls `q_proj`, `k_proj`, `v_proj`, `o_proj`, `gate_proj`,
# `up_proj` and `down_proj`. A *placement* says which modules get adapters. The score is NFN, the *normalized feature norm*. For
# one token it is $\|Wz\| / (\|z\| \, \|W\|_F / \sqrt d)$, where $z$ is the input of $d$ numbers, and $\|W\|_F$ is the root of the
# sum of all squared entries of $W$. It says how large $W$ makes $z$, compared with noise of the same norm. The score of a module
# is the mean over tokens and texts, and that of a type the mean over its modules.

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
# ## 1. Load the model
#
# **Question.** Which arguments does your machine need?
#
# | your case | the setting |
# |---|---|
# | a CPU | none; the numbers are float32 |
# | one GPU | none; the numbers are bfloat16, or float16 where the card lacks it |
# | a certain GPU, or another number format | `LOAD = {"device": "cuda:1", "dtype": "float32"}` |
# | several GPUs | `LOAD = {"device_map": "auto"}`; leave `device` out |
# | a model larger than memory, no GPU | `LOAD = {"device_map": "auto", "max_memory": {"cpu": "8GB"}, "offload_folder": "offload"}`, see section 11 |
# | the same with a GPU | `"max_memory": {0: "20GB", "cpu": "8GB"}`: a device that is not named is not used |
# | a model that you have loaded yourself | replace the next cell by your own `model` and `tokenizer` |

# %% tags=["nbval-ignore-output"]
model, tokenizer = plop.load_model(MODEL, **LOAD)
print(f"{type(model).__name__} in {model.dtype} on {model.device}")

# %% [markdown]
# ## 2. See what can get adapters
#
# **Question.** Which types does your model have, and is one of them left out?

# %% tags=["copy"]
# To copy.
table = plop.module_table(model)
table.groupby(["type", "status"], as_index=False).agg(modules=("module", "size"), parameters=("parameters", "sum"))

# %% [markdown]
# **What we saw.** Seven types are `scored`. The output head is not: its status gives the reason. The table lists linear maps, so
# the embedding of the tokens is not in it. (In SmolLM2 the two share one matrix.)
#
# A placement leaves out what is not `scored`. An *output head* or a *router* is left out on purpose. All other statuses say that
# PEFT, the library that puts in the adapters, cannot adapt the map, or that its input cannot be seen. If this concerns a type
# that you want, load the model in another class. Where only the input cannot be seen, name the type in your config yourself.

# %% [markdown]
# ## 3. Choose the texts
#
# **Question.** On which texts should the model be scored?
#
# Take texts as the model will read them in training: prompts, or prompts with answers. Give 64 or so. Section 5 finds out how
# many of them are needed. Do not worry about the choice too much: whether the texts were about math, code, logic or history
# changed no placement in our records (notebook 03).

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
# A *chat template* is what a chat model's tokenizer writes around a user's words. If you train on chats, score chats. This
# notebook leaves the template out by default, so that base and chat models read the same texts.
#
# <details><summary>Is the start token there twice?</summary>
#
# Many templates write a start token into the text, and some tokenizers add one of their own before every text. Where there would
# be two, `nfn_scores` leaves the second one out and says so in a warning. Your training code may not. Look there with
# `tokenizer.convert_ids_to_tokens(tokenizer(chats[0])["input_ids"][:4])`. SmolLM2's tokenizer adds none.
# </details>

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
# ## 4. Know what it will cost
#
# For a model below 1 B parameters you may skip this section: it is a matter of minutes.
#
# **Question.** How long does scoring take for a model of 135 M parameters, of 1 B, and for one that does not fit in memory?
#
# **Intuition.** In most models every token meets every weight once (not in a *mixture of experts*, where each token uses a part).
# So the time should grow with weights × tokens. This leaves out attention between tokens, which grows with the square of the
# length. All runs below have short texts; for texts of thousands of tokens expect more.
#
# **Predict.** Below, SmolLM2 (0.1 billion weights in its maps) reads 5,000 tokens in 8 seconds. How long does a model with 1
# billion weights take for 64 texts of 128 tokens?
#
# **What we do.** We read two recorded benchmarks on two CPU cores. In the first, SmolLM2 reads 64 math questions. In the second,
# two Llamas with random weights read 64 texts of 128 tokens. The smaller one has 0.6 B parameters and was run in memory, then
# from disk. The larger one has 2.7 B parameters (5.5 GB) and was run from disk only, in a process limited to 3 GB. Both store two
# bytes a weight (bfloat16), and their seconds include loading the model. `weights` counts the billions of weights in the maps,
# without embedding and head. `tokens` counts thousands.

# %%
import pandas as pd

small = pd.read_csv(plop.data_file("results/bench_cpu.csv")).query("method == 'plop_nb'")
large = pd.read_csv(plop.data_file("results/large_model.csv"))
layer = large["model_gb"].diff().iloc[-1] / large["layers"].diff().iloc[-1] / 2  # bfloat16: two bytes a weight
weights, seconds = large["layers"] * layer, large["seconds"]

# %%
# the last cell of this section counts the weights and tokens of SmolLM2
runs = [
    ("SmolLM2, float32", 0.106, 4.96, small["seconds"].iloc[0]),
    ("SmolLM2, bfloat16", 0.106, 4.96, small["seconds"].iloc[1]),
    ("Llama 0.6 B, in memory", weights[0], 8.19, large["seconds_in_memory"][0]),
    ("Llama 0.6 B, from disk", weights[0], 8.19, seconds[0]),
    ("Llama 2.7 B, from disk", weights[1], 8.19, seconds[1]),
]
costs = pd.DataFrame(runs, columns=["run", "weights", "tokens", "seconds"])
costs["work"] = costs["weights"] * costs["tokens"]
costs["rate"] = costs["seconds"] / costs["work"]
costs.round({"weights": 2, "seconds": 0, "work": 1, "rate": 0})

# %% tags=["nbval-ignore-output"]
from plop_nb.plots import plot_cost

ax = plot_cost(costs, {"1 B, 8 texts": 1 * 8 * 0.128, "1 B, 64 texts": 1 * 64 * 0.128})
ax.set_ylabel("seconds on two CPU cores");

# %% [markdown]
# **What we saw.** The work differs by a factor of nearly 40, the rate by less than 2: it took 15 to 24 seconds per billion
# weights and thousand tokens. So the model of 1 billion weights should take two to three and a half minutes for 64 texts, and
# about 20 seconds for eight. This is an *estimate* from the measured rates; the dots are measured. SmolLM2 was slower in bfloat16
# than in float32 here (24 against 15). The 0.6 B Llama, also in bfloat16, was not (16), so this is no rule. We have not measured
# a GPU.

# %%
low, high = costs["rate"].min(), costs["rate"].max()
assert round(low) == 15 and round(high) == 24 and 120 < 8.19 * low and 8.19 * high < 210
print(f"of one plain forward pass: {small['of_plain'].min():.2f} in float32, {small['of_plain'].max():.2f} in bfloat16")

# %% [markdown]
# On SmolLM2 scoring takes half to two thirds of one plain forward pass over the same texts. It leaves out the output head, and
# puts texts of similar length together. The head of a larger model is a smaller share of it, and saves less. On other hardware,
# time one forward pass to know the rate. Here is the estimate for your model and texts, if all of them are read:

# %% tags=["copy"]
# To copy.
tokens = sum(len(ids) for ids in tokenizer(texts, truncation=True, max_length=256)["input_ids"]) / 1e3
weights = plop.module_table(model).query("status == 'scored'")["parameters"].sum() / 1e9
print(f"{weights:.3f} billion weights in the maps, {tokens:.2f} thousand tokens")
# 15 and 24 are the rates of two CPU cores, measured above: replace them by yours
print(f"{15 * weights * tokens:.0f} to {24 * weights * tokens:.0f} seconds")

# %% [markdown]
# ## 5. Score, place, check, save: all in one cell
#
# **Question.** Where do the adapters go?
#
# **Predict.** `stop=0.99` looks at the scores after 8, 16, 32, ... texts, and stops as soon as it is sure which three types are
# lowest. How many of the 64 questions will it take?

# %% tags=["copy"]
# To copy.
import tempfile

k, folder = 3, tempfile.mkdtemp()  # how many types; where the config goes: put your folder here
scores = plop.nfn_scores(model, texts, tokenizer, batch_size="auto", stop=0.99, k=k)
placement = plop.place(scores, k=k)
config = placement.lora_config(model, r=16, lora_alpha=32)
counts = placement.check(model, config)  # an error, if the config hits anything else
config.save_pretrained(folder)
counts

# %% [markdown]
# **What we saw.** Eight questions were enough, the least that `stop=` looks at. The config hits all 90 modules of the three
# types, and no other module.
#
# What the arguments do:
#
# | argument | what it does | when to change it |
# |---|---|---|
# | `batch_size="auto"` | lets batches grow to what fits in memory; scores change by rounding at most | a number, if others share your memory |
# | `stop=0.99` | draws texts at random; by design the chance is at most 1 % that it stops with other types than endless texts of this kind would give (notebook 02). Whether these types train best is another matter. It warns if the texts run out first | leave it out to score all texts |
# | `k` | how many of the lowest types get adapters; 3 as in the paper, which tried no other number | pass the same `k` to both calls, as here: `stop=` decides which `k` types are lowest, for this `k` only |
# | `r`, `lora_alpha` | the rank, and the scale $\alpha / r$ of the adapters, which is 2 here | always say `lora_alpha`: PEFT, the library of the config, takes 8 whatever the rank |
# | `max_length=256` | how many tokens of each text are read; the rest is cut without a word | if your texts are longer |
# | `partial="run.jsonl"` | keeps finished texts, so that the same call goes on after an interrupt | for long runs |
#
# **A budget instead of `k`.** `plop.place(scores, parameters=2_000_000, r=16)` adds types from the lowest score upwards. It stops
# at the first type that does not fit, even if a smaller one further up would fit. `stop=` does not know of the budget, so leave
# it out there.
#
# **From a terminal,** `python -m plop_nb MODEL --texts mine.txt --out placement` writes the same file, the scores and a picture.

# %% [markdown]
# ## 6. Read the scores
#
# **Question.** How clear is the choice?
#
# A score of 1 is what noise gives. PLoP (Precise LoRA Placement, [arXiv 2506.20629](https://arxiv.org/abs/2506.20629)) takes the
# types with the lowest scores: its authors argue that training raises the score (notebook 01), so a low one leaves much to gain.

# %%
types = plop.by_type(scores)
types.round(2)

# %% tags=["nbval-ignore-output", "picture"]
name = (MODEL or "SmolLM2-135M-Instruct").split("/")[-1]
kind = TEXTS if isinstance(TEXTS, str) else "texts of my own"
lowest = ", ".join(placement.types)
plop.plot_types(scores, placement=placement, title=f"{lowest} score lowest in {name} ({kind})");

# %% [markdown]
# The whiskers (`low` to `high`) say how far a score would move with other texts of the same kind. Would other texts change the
# choice? `placement.notes` lists warnings, such as too few texts. `placement.swaps` pairs each chosen type with each type that
# was not chosen. It has the gap between their scores, and the probability that more texts would reverse their order. (Each type
# has the same colour in all notebooks.)

# %%
print(*placement.notes or ["no warnings"], sep="\n")
swaps = placement.swaps.sort_values("gap", ignore_index=True).head(3).round({"gap": 2})
swaps["probability"] = swaps["probability"].map(lambda p: "< 0.0001" if p < 1e-4 else f"{p:.4f}")
swaps

# %% [markdown]
# **What we saw.** There are no warnings. The closest pair is down and output, 0.13 apart (before rounding), and more texts would
# hardly reverse them. But these numbers are about other *texts* only. A type's score is also a mean over layers.
#
# **Predict.** If a few layers had other scores, would down still be before output? Compare the mean over layers with the median:

# %%
pair = types["type"].tolist()[k - 1 : k + 1]  # the last type that was chosen, and the next one
layers = plop.by_module(scores).pivot_table(index="layer", columns="type", values="nfn")
print("lowest by the median over layers:", *layers.median().nsmallest(k).index)
layers[pair].agg(["mean", "median"]).round(2)

# %% tags=["nbval-ignore-output"]
from plop_nb.palette import type_color

above, colors = (layers[pair[-1]] > layers[pair[0]]).sum(), [type_color(part) for part in pair]
ax = layers[pair].plot(style=["o-", "s--"], color=colors, figsize=(8, 3.6))
ax.set(xlabel=f"layer of {name}", ylabel="NFN, mean over texts")
ax.legend(frameon=False)
ax.spines[["top", "right"]].set_visible(False)
ax.set_title(f"{pair[-1]} scores above {pair[0]} in {above} of {len(layers)} layers", loc="left", weight="bold");

# %% [markdown]
# **What we saw.** A few layers decide down against output, not the texts. Output is above down in 14 of 30 layers only, but far
# above it in layers 0, 1, 24, 27 and 28. By the median (1.00 against 1.03) output would be chosen in the place of down. Where
# mean and median disagree, treat both types as candidates, and let them race (section 9).
#
# **One more thing that these numbers do not see.** A model can store the same function in other weights, and then its scores
# change, sometimes the choice as well (exercise 2).

# %% [markdown]
# ## 7. Check any config
#
# **Question.** You have a config from elsewhere. Which modules does it hit?
#
# A config may name types, single modules, or names that do not exist. If at least one name matches, PEFT silently ignores the
# others. Here is a config with the full name of one module, and a name that matches nothing:

# %% tags=["copy"]
# To copy.
from peft import LoraConfig

from plop_nb.targets import adapted_targets

maps = plop.module_table(model).query("status == 'scored'")
mine = LoraConfig(target_modules=[maps["module"].iloc[0], "no_such_map"])
maps = maps.assign(adapted=maps["module"].isin(list(adapted_targets(model, mine))))
maps.groupby("type")["adapted"].agg(adapted="sum", modules="size")

# %% [markdown]
# `adapted_targets` puts the adapters on an *empty copy* of the model, which has its modules without their weights, and looks
# where they are. `placement.check` does the same, and raises an error if the config differs from the placement:

# %%
try:
    placement.check(model, mine)
except ValueError as error:
    print(error)

# %%
# and the config that section 5 has saved, read back as another program would read it
from pathlib import Path

again = LoraConfig.from_pretrained(folder)
counts = placement.check(model, again)
print([file.name for file in Path(folder).iterdir()], "with rank", again.r, "and alpha", again.lora_alpha)
print(f"{counts['adapted'].sum()} of {counts['modules'].sum()} chosen modules are hit, and no other")

# %% [markdown]
# ## 8. Change the choice
#
# **Question.** What if you want fewer adapters, other types, or single layers?
#
# The widget places adapters on types, layers or single modules, by number or by parameters, at any rank. All controls work with
# the keyboard. It lives only while the notebook runs; below it is its picture, without the controls.

# %% tags=["nbval-ignore-output"]
explorer = plop.explore(scores, model, k=len(placement.types), r=config.r, lora_alpha=config.lora_alpha)
explorer

# %% tags=["nbval-ignore-output"]
from IPython.display import Image

Image(explorer.picture.value, width=900)

# %% [markdown]
# On the left are the scores that you know. On the right is each module by itself: a row is a layer, and outlined modules get
# adapters. The few red cells of output (layers 0, 1, 24, 27 and 28) are those that section 6 is about.
#
# Code can move the controls, too, for example `explorer.k.value = 2`. The sections below take what is chosen in the widget. This
# is its config, as code to copy:

# %%
print(explorer.config_text)

# %% [markdown]
# ## 9. Let placements race
#
# **Question.** Is it the best place for *your* data?
#
# A low score does not promise that adapters train best there. The authors report better or equal results, on one of their tasks
# (ANLI) with fewer parameters: 75.4 % right with 44 M against 73.9 % with 70 M. Reviewers found the differences small. On one
# small model we have found less: PLoP's choice was worse than the MLP on one task, and could not be told from it elsewhere
# (notebook 05).
#
# **What a race does.** It trains three placements, each with the same number of parameters: your choice, the largest maps (in
# SmolLM2 these are the MLP), and all types. It tries several learning rates, within a given time. First it trains all of them for
# a few steps, and drops those whose training loss is behind. Then it trains the last ones in full, with fresh random seeds. The
# lowest mean loss on *validation* examples wins. The race is *decided* if the intervals of the winner's differences to all other
# placements in this last round leave out 0. A third part, the *test* examples, decides nothing: with them you judge the winner
# once.
#
# Here is a race of SmolLM2 on sums of two numbers, replayed from trainings that notebook 05 has recorded (`python
# notebooks/tools/record_race_example.py`). Live it would have taken about five minutes on two cores. Losses are in nats per
# token: the mean of minus the natural logarithm of the right token's probability. `difference` is to the lowest loss. Its
# interval over seeds reaches from `low` to `high`, and with 95 % confidence both intervals hold together. We print `test_loss`
# for all three because this race is only an example:

# %%
recorded = pd.read_csv(plop.data_file("results/race_example.csv"), comment="#")
print(f"decided: {recorded['decided'].all()}, after {recorded['runs'].max()} runs")
recorded[["placement", "lr", "loss", "difference", "low", "high", "seeds", "test_loss"]].round(3)

# %% [markdown]
# **What we saw.** PLoP's choice has the lowest mean, by 0.005 nats per token. But the race is *undecided*: the interval of this
# difference reaches from -0.28 to 0.29, because two seeds say little about other seeds. Give such a race more time, or take the
# placement that is easiest to deploy, such as the one with the fewest adapted modules.
#
# To race on your own examples, set `EXAMPLES` in the settings, to a few hundred of them. Three parts are drawn at random. Without
# examples of yours, twenty sums show how section 10 works:

# %%
from plop_nb import experiments as ex
from plop_nb.placement import Placement


def parts_of(examples):
    """Validation and test examples, a fifth each, and the rest to train on."""
    mixed, fifth = random.Random(0).sample(examples, len(examples)), len(examples) // 5
    return {"validation": mixed[:fifth], "test": mixed[fifth : 2 * fifth], "train": mixed[2 * fifth :]}


# %%
if isinstance(EXAMPLES, str):
    EXAMPLES = pd.read_json(EXAMPLES, lines=True).to_dict("records")
parts = parts_of(EXAMPLES or [{"prompt": f"{n} + 2 =", "completion": f" {n + 2}"} for n in range(20)])
print({part: len(rows) for part, rows in parts.items()}, "such as", parts["train"][0])


# %%
def rivals_of(chosen):
    """Your choice, the largest maps and all types, but none that equals your choice."""
    others = {"largest maps": plop.place(scores, rule="size")}
    others["all"] = Placement.of_types(scores, scores["type"].unique())
    different = {name: other for name, other in others.items() if set(other.modules) != set(chosen.modules)}
    return {"chosen": chosen, **different}


# %% [markdown]
# The race gives the winner and its settings. Section 10 trains with them. Without a race it takes the choice of section 8, and
# settings that only show the way:

# %%
best = explorer.placement
settings = {"steps": 4, "batch_size": 4, "lr": 1e-3, "r": explorer.rank.value, "lora_alpha": config.lora_alpha}
if EXAMPLES:
    rivals, task = rivals_of(explorer.placement), ex.Task("mine", **parts)
    race = ex.race(model, task, tokenizer, rivals, seconds=SECONDS, parameters=explorer.parameters)
    best, settings = rivals[race.winner], race.settings
    print(race)

# %% [markdown]
# ## 10. Train, save, and take the adapters out again
#
# **Question.** How does the choice get into a training?
#
# [TRL](https://huggingface.co/docs/trl), the library for finetuning language models, takes the config as it is. It trains on the
# train part only:

# %%
import datasets
from trl import SFTConfig, SFTTrainer

datasets.disable_progress_bars()
chosen = best.lora_config(model, r=settings["r"], lora_alpha=settings["lora_alpha"])
train, test = datasets.Dataset.from_list(parts["train"]), datasets.Dataset.from_list(parts["test"])

# %%
on_gpu = model.device.type == "cuda"
sizes = {"max_steps": settings["steps"], "per_device_train_batch_size": settings["batch_size"], "learning_rate": settings["lr"]}
device = {"bf16": on_gpu and model.dtype == torch.bfloat16, "gradient_checkpointing": on_gpu, "dataloader_pin_memory": on_gpu}
files = {"output_dir": tempfile.mkdtemp(), "save_strategy": "no", "report_to": "none", "logging_steps": 1}
arguments = SFTConfig(**sizes, **device, **files)

# %% tags=["nbval-ignore-output"]
import warnings

warnings.simplefilter("ignore", FutureWarning)  # deprecation notices of other packages
data = {"train_dataset": train, "eval_dataset": test}
trainer = SFTTrainer(model, arguments, **data, processing_class=tokenizer, peft_config=chosen)
trainer.train();

# %%
trainable, total = trainer.model.get_nb_trainable_parameters()
print(f"{trainable:,} of {total:,} parameters are trained, {trainable / total:.2%}; the explorer says {explorer.parameters:,}")

# %% [markdown]
# Now the test part is read, once. (After four steps its loss says nothing.) The trainer has put the adapters into `model`
# *itself*. Save them, or they are lost, and take them out before you score again:

# %% tags=["nbval-ignore-output"]
print(f"loss on the {len(test)} test examples: {trainer.evaluate()['eval_loss']:.2f} nats per token")

# %%
adapters = tempfile.mkdtemp()  # put your folder here
trainer.model.save_pretrained(adapters)
model = trainer.model.unload()
left = [name for name, _ in model.named_parameters() if "lora" in name]
print(sorted(file.name for file in Path(adapters).iterdir()), f"{len(left)} adapter weights are left in the model")

# %% [markdown]
# To use them later, load the model as in section 1, then `PeftModel.from_pretrained(model, adapters)` (of `peft`). Its
# `merge_and_unload()` writes the adapters into the weights. In this session the model's own weights stay frozen: for full
# training call `model.requires_grad_(True)` first.

# %% [markdown]
# ## 11. If the model is larger than memory
#
# **Question.** Do the scores change if the model is read from disk?
#
# *Offloading* keeps in memory what fits, and the rest in a folder on disk. Scoring then reads the model layer by layer. A layer
# that has been read serves many texts at once, so the disk is read about once per 65,536 tokens. Here is SmolLM2 with 200 MB of
# memory for its weights (on a GPU machine name the card too, see section 1):

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
# the same eight texts with the model in memory
in_memory = plop.nfn_scores(plop.load_model(dtype=offloaded.dtype)[0], texts[:8], its_tokenizer)
difference = (plop.by_type(from_disk)["nfn"] - plop.by_type(in_memory)["nfn"]).abs().max()
assert difference < 0.001
print(f"{len(plop.by_type(in_memory))} types, none of which differs by 0.001 or more")
print(f"recorded: {large['model_gb'][1]:.1f} GB on disk, {large['peak_gb'][1]:.1f} GB of memory at most")

# %% [markdown]
# **What we saw.** The scores of the types differ by less than 0.001. By the record of section 4, the process with the model of
# 5.5 GB took 1.2 GB at most. The Llama of 0.6 B took 49 seconds from disk and 45 in memory, perhaps because the system kept its
# small file in memory. The Llama of 2.7 B took 24 seconds from disk per billion weights and thousand tokens, that of 0.6 B 17.
# How much of this is the disk we cannot say, since the larger one was not run in memory.

# %% [markdown]
# ## Exercises
#
# Each has a cell to fill in and a check. The solutions are in the collapsed cell below each check. Exercises 1 and 2 compare with
# the scores of section 5, so they use the same texts:

# %%
which = sorted(scores["sample"].unique())  # stop= has drawn these
used = [texts[number] for number in which]
print(f"{len(used)} texts were scored")


# %%
def tokens_of(frame):
    return frame.groupby("sample")["tokens"].first().sort_values().tolist()


def beside(found, name):
    """The scores of section 5 beside others, by type."""
    table = plop.by_type(scores).set_index("type")[["nfn"]].rename(columns={"nfn": "section 5"})
    return table.assign(**{name: plop.by_type(found).set_index("type")["nfn"]}).round(2)


# %% [markdown]
# ### 1. Chats (10 minutes)
#
# Does the chat template change the placement? Score `[chats[number] for number in which]`.

# %%
chat_scores = None  # your turn: what plop.nfn_scores returns


# %%
def check_chats(found):
    if found is None:
        return "not yet filled in"
    assert found["sample"].nunique() == len(which), "score one chat for each text in `used`"
    assert not tokenizer.chat_template or tokens_of(found) != tokens_of(scores), "these are the texts without a template"
    print("lowest in the template:", plop.place(found).types)
    return beside(found, "chats")


check_chats(chat_scores)

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution. The template moves SmolLM2's scores by a few percent, and the placement stays.
check_chats(plop.nfn_scores(model, [chats[number] for number in which], tokenizer))

# %% [markdown]
# ### 2. The same function in other weights (10 minutes)
#
# In front of each attention and each MLP stands a *norm*, which multiplies each channel by a number, its *gain*. The gains can be
# *folded*: multiplied into the maps that read the norm's output. The model then computes the same as before.
#
# `form="folded"` in `nfn_scores` scores the model as if this had been done. Score `used` in this form. Which types would PLoP
# choose now? Which scores change, and why does that of down stay?

# %%
folded_scores = None  # your turn: what plop.nfn_scores returns


# %%
def check_folded(found):
    if found is None:
        return "not yet filled in"
    assert tokens_of(found) == tokens_of(scores), "score the texts in `used`, all of them and no others"
    table = beside(found, "folded")
    assert (table["section 5"] - table["folded"]).abs().max() > 0.01, "these are the scores of the stored weights"
    print("lowest when folded:", plop.place(found).types)
    return table


check_folded(folded_scores)

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution. Down and output read no norm, so their scores stay. Gate and up read the norm before the MLP: the gain leaves
# their inputs and enters their weights, both scores fall by a third, and gate passes down. Query, key and value
# read the norm before the attention.
check_folded(plop.nfn_scores(model, used, tokenizer, form="folded"))

# %% [markdown]
# ### 3. From a file to a config (15 minutes)
#
# Write ten lines of your own into `mine.txt` in `exercise`, a folder of its own, so that your config of section 5 stays. Score
# them. Choose types for at most `limit` parameters at rank 8 (two fifths of what section 5 takes at rank 16), and save the config
# in `exercise`. Which type does not fit any more?

# %%
exercise = Path(tempfile.mkdtemp())
mine_txt, limit = exercise / "mine.txt", int(counts["trainable"].sum()) * 2 // 5
print(f"at most {limit:,} parameters")
my_placement = None  # your turn: what plop.place returns, and a saved config


# %%
def check_file(found):
    if found is None:
        return "not yet filled in"
    saved = LoraConfig.from_pretrained(exercise)
    trainable = found.check(model, saved)["trainable"].sum()
    assert saved.r == 8 and trainable <= limit, f"rank {saved.r}, {trainable:,} parameters"
    return f"{', '.join(found.types)}: {trainable:,} parameters at rank {saved.r}"


check_file(my_placement)

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution. Down does not fit any more, and the rule stops there. With a file of your own the lines would be yours.
mine_txt.write_text("\n".join(f"Line {n} of my own: what is {n} times {n}?" for n in range(10)))
own_scores = plop.nfn_scores(model, read_texts(mine_txt), tokenizer)
own = plop.place(own_scores, parameters=limit, r=8)
own.lora_config(model, r=8, lora_alpha=16).save_pretrained(exercise)
check_file(own)

# %% [markdown]
# ## Three things to remember
#
# 1. **Few texts may be enough.** `stop=` finds out how many, and the cost grows with weights × tokens.
# 2. **Check what the config hits** before you train: `placement.check`, or `adapted_targets` for any config.
# 3. **A low score is no promise.** Race on your own examples if it matters.
#
# **Not established.** That the lowest-scoring types train best: in the record of notebook 05, PLoP's choice is not shown to beat
# the MLP on any task, and is behind it on one. The choice also depends on a few layers (section 6), and on how the same function
# is stored (exercise 2, notebook 04). Costs on a GPU are not measured, and the cost of a model of 1 B is an estimate.
#
# **Where next.** [Notebook 02](02_how_many_samples.ipynb) says how sure a score is and how `stop=` works. [Notebook
# 05](05_lora_finetuning.ipynb) compares places by training. [Notebook 06](06_grpo.ipynb) does so with rewards.
