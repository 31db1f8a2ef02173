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
# **The answer.** Five calls do it: score, place, make a config, check it, save it. They stand in one cell, in section 4. PLoP
# (Precise LoRA Placement, [arXiv 2506.20629](https://arxiv.org/abs/2506.20629)) puts adapters on the types of maps with the
# lowest scores. PEFT is the library that puts them in. On SmolLM2-135M with math questions PLoP chooses the value, up and down
# maps. Value and up are among the lowest three in each of the three counts that we tried. The third place is not settled: the
# median over layers gives it to output, and another way to store the same function gives it to gate (section 5, exercise 2).
#
# ![Mean NFN by type in SmolLM2-135M-Instruct: value, up and down are lowest](images/07_explore_your_model.png)
#
# If you want one default and no scores, take the *MLP*, the feed-forward part: gate, up and down. This advice rests on little. On
# one small model ([notebook 05](05_lora_finetuning.ipynb)) its loss was below that of PLoP's choice on one task (spelling), and
# on two others no difference could be shown. PEFT's own comparison (Llama-3.2-3B, GSM8K, one run each, about equal parameters)
# has the MLP at 49.4 % right answers, and query and value at 47.8 %. Chance alone could give this, and PLoP was not in it. PLoP's
# authors report runs in which it beats the MLP, and one in which it loses (section 8). The usual advice elsewhere is all linear
# maps, which notebook 05 compares, too. If much depends on the place, let placements race (section 8).
#
# | | task | the call |
# |---:|---|---|
# | 1 | Load the model | `plop.load_model(name, dtype=..., device=...)` |
# | 2 | See what can get adapters | `plop.module_table(model)` |
# | 3 | Choose the texts | a list of strings; `as_chat` if you train on chats |
# | 4 | Score, place, check, save | the five calls |
# | 5 | Read the scores | `plop.by_type(scores)`, `placement.notes` |
# | 6 | See what any config hits | `plop.coverage(model, config)` |
# | 7 | Change the choice | `plop.explore(scores, model)` |
# | 8 | Let placements race | `ex.race(...)` |
# | 9 | Train, save, and take the adapters out again | `SFTTrainer(..., peft_config=config)` |
# | 10 | Know what scoring costs | weights × tokens × a measured rate |
# | 11 | If the model is larger than memory | `device_map`, `max_memory`, `offload_folder` |
#
# | | |
# |---|---|
# | **You need** | [notebook 00](00_quickstart.ipynb); what a LoRA config says (rank, alpha, target modules); the words are in the [glossary](GUIDE.md#words) |
# | **It takes** | half an hour to read, 35 minutes for the exercises; two to four minutes to run on two CPU cores with SmolLM2, which needs no account |
# | **To copy** | cells that begin with `# To copy.` need nothing but `plop`, `model`, `tokenizer` and `texts`; the cells of sections 7 to 9 build on each other |
#
# **Words.** A *map* multiplies a vector by a matrix $W$. A *module* is one map in one layer. A *type* is the same map in all
# layers: query, key, value, output, gate, up and down, which the code calls `q_proj`, `k_proj`, `v_proj`, `o_proj`, `gate_proj`,
# `up_proj` and `down_proj`. A *placement* says which modules get adapters. The score is NFN, the *normalized feature norm*. For
# one token it is $\|Wz\| / (\|z\| \, \|W\|_F / \sqrt d)$, where $z$ is the input of $d$ numbers, and $\|W\|_F$ is the root of the
# sum of all squared entries of $W$. It says how large $W$ makes $z$, compared with noise of the same norm. The score of a module
# is the mean over the tokens of a text, then over texts, and that of a type the mean over its modules.

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
MODEL = None  # None: SmolLM2-135M-Instruct; else a name on the Hugging Face Hub, or a folder, "runs/my-model"
LOAD = {}  # of plop.load_model: {"dtype": "bfloat16", "device": "cuda:1"}, or see section 1
TEXTS = None  # None: 64 math questions; else a list of strings, see section 3
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
# | a model that you have loaded yourself | replace the next cell by your own `model` and `tokenizer` |
#
# For a model of 1 B parameters or more, read section 10 first.

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
# the embedding of the tokens is not in it.
#
# A placement leaves out what is not `scored`. An *output head* is left out on purpose, and so is a *router*, which sends tokens
# to experts. All other statuses say that PEFT cannot adapt the map, or that its input cannot be seen. If you want such a type,
# load the model yourself with a class of transformers that holds this map as an ordinary linear layer. Where only the input
# cannot be seen, name the type in your config yourself.

# %% [markdown]
# ## 3. Choose the texts
#
# **Question.** On which texts should the model be scored?
#
# Take texts as the model will read them in training: prompts, or prompts with answers. Give 64 or so. Section 4 finds out how
# many of them are needed. (Our math questions come from templates, so eight are alike; yours may need more.) Whether the texts
# were about math, code, logic or history changed no placement in our records ([notebook
# 03](03_cross_architecture_profiles.ipynb)).
#
# | your texts | the setting |
# |---|---|
# | a list | `TEXTS = ["...", "..."]` |
# | a file: `.txt` (a text a line), `.jsonl` or `.csv` | `TEXTS = plop.read_texts("mine.csv", column="question")` |
# | a data set on the Hub | `TEXTS = plop.load_texts("openai/gsm8k", n=64, column="question", name="main")` |
# | some that come with this package | `TEXTS = plop.load_texts("code", n=64)`; or `"math"`, `"logic"`, `"history"` |

# %%
texts = TEXTS or plop.load_texts("math", n=64)
print(f"{len(texts)} texts, the first of them:\n{texts[0]}")

# %% [markdown]
# A *chat template* is what a chat model's tokenizer writes around a user's words. If you train on chats, score chats: set `CHAT =
# True`. By default the texts are read as they are, by chat models, too.

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
# ## 4. Score, place, check, save: all in one cell
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
# **What we saw.** Eight questions were enough, the least that `stop=` looks at. The config hits the 90 modules of the three
# types, and no other.
#
# | argument | what it does | when to change it |
# |---|---|---|
# | `batch_size="auto"` | lets batches grow to what fits in memory; scores change by rounding at most | a number, if others share your memory |
# | `stop=0.99` | draws texts at random; by design the chance is at most 1 % that it stops with other types than endless texts of this kind would give, if differences between texts are about normal; on two tied types of math [notebook 02](02_how_many_samples.ipynb) found 1.6 %. Whether these types train best is another matter. It warns if the texts run out first | leave it out to score all texts |
# | `k` | how many of the lowest types get adapters; 3 as in the paper, which tried no other number | pass the same `k` to both calls, as here |
# | `r`, `lora_alpha` | the rank, and the scale $\alpha / r$ of the adapters, which is 2 here | always say `lora_alpha`: PEFT takes 8 whatever the rank |
# | `max_length=256` | how many tokens of each text are read; longer texts are cut, without a warning | if your texts are longer |
# | `partial="run.jsonl"` | keeps finished texts, so that the same call goes on after an interrupt | for long runs |
#
# **A budget instead of `k`.** `plop.place(scores, parameters=2_000_000, r=16)` adds types from the lowest score upwards, and
# stops at the first type that does not fit. In SmolLM2 it takes value and up (1.38 M); with down it would be 2.40 M, so it stops,
# though output (0.55 M) would fit. `stop=` does not know of the budget, so leave it out there.
#
# **From a terminal,** `plop-nb score MODEL --texts mine.txt --out placement` scores `mine.txt`, and writes its
# `adapter_config.json`, the scores and a picture.

# %% [markdown]
# ## 5. Read the scores
#
# **Question.** How clear is the choice?
#
# **Intuition.** A score of 1 is what noise gives. PLoP takes the lowest scores because its authors argue that training raises the
# score ([notebook 01](01_why_alignment_grows.ipynb)), so that a low one leaves much to gain.

# %%
types = plop.by_type(scores)
types.round(2)

# %% tags=["nbval-ignore-output", "picture"]
name = (MODEL or "SmolLM2-135M-Instruct").split("/")[-1]
kind = "texts of my own" if TEXTS else "math questions"
lowest = ", ".join(placement.types)
title = f"{lowest} score lowest in {name} ({kind})"
plop.plot_types(scores, placement=placement, title=title);

# %% [markdown]
# The whiskers (`low` to `high`) are the 95 % interval for the score that endless texts of this kind would give. `placement.notes`
# lists warnings, such as too few texts. `placement.swaps` pairs each chosen type with each type that was not chosen: the gap
# between their scores, and a p-value, `probability`: how often a gap this large would appear if the two were equal.

# %%
print(*placement.notes or ["no warnings"], sep="\n")

# %%
placement.swaps.sort_values("gap", ignore_index=True).head(3).round({"gap": 2, "probability": 4})

# %% [markdown]
# **What we saw.** There are no warnings. The closest pair is down and output, 0.13 apart (the rounded scores above differ by
# 0.14). Eight texts leave little doubt about their order (p < 0.001). But this is about *texts* only, and a type's score is also
# a mean over layers.
#
# **Predict.** If a few layers had other scores, would down still be before output? Compare the mean over layers with the median:

# %%
pair = types["type"].tolist()[k - 1 : k + 1]  # the last type that was chosen, and the next one
layers = plop.by_module(scores).pivot_table(index="layer", columns="type", values="nfn")
print("lowest by the median over layers:", *layers.median().nsmallest(k).index)
layers[pair].agg(["mean", "median"]).round(2)

# %%
gap = layers[pair[1]] - layers[pair[0]]
far = gap[gap > 0.5].index.tolist()
print(f"{pair[1]} is above {pair[0]} by {gap.mean():.2f} in the mean over layers, and by more than 0.5 in the layers {far}.")
print(f"Without these it is by {gap.drop(far).mean():.2f}.")

# %% tags=["nbval-ignore-output"]
from plop_nb.layer_plot import plot_layers

ax = plot_layers(layers, pair, marked=far)
ax.set_xlabel(f"layer of {name}");

# %% [markdown]
# **What we saw.** The order of down and output is decided by five of 30 layers, not by the texts. Without these layers output's
# mean would be below down's. We chose these layers because they raise output, so leaving them out had to favour it. The median is
# the fairer check, as it sets aside high and low layers alike. By it (1.00 against 1.03, a gap without an interval) output would
# be chosen in the place of down. Where mean and median disagree, treat both types as candidates, and let them race (section 8).
#
# A model can also store the same function in other weights, and then its scores change. Exercise 2 finds gate in the place of
# down. Value and up stay by the mean, the median and these weights. Other ways to store the function (rows of up scaled against
# columns of down) were not tried, and could move them.

# %% [markdown]
# ## 6. What did my config hit?
#
# **Question.** You have a config from a tutorial, from a colleague, or written by hand. Which modules get adapters?
#
# **Intuition.** `target_modules` is a list of names, which PEFT looks for in the model. If at least one of them matches, PEFT
# silently ignores the others.
#
# **Predict.** This config means what section 4 has chosen: value, up and down, 90 modules. How many of them does it hit?
#
# ```python
# LoraConfig(target_modules=["value", "up_proj", "down_proj"], r=16, lora_alpha=32)
# ```
#
# **What we do.** `plop.coverage` puts the adapters on an *empty copy* of the model, which has its modules without their weights,
# and looks where they are. It takes a config, an adapter's folder, or a model with adapters.

# %% tags=["copy"]
# To copy.
import warnings

from peft import LoraConfig

mine = LoraConfig(target_modules=["value", "up_proj", "down_proj"], r=16, lora_alpha=32)
with warnings.catch_warnings():
    warnings.simplefilter("ignore", plop.CoverageWarning)  # the list shows each problem, too
    hit = plop.coverage(model, mine)
hit

# %% [markdown]
# **What we saw.** It hits 60 modules instead of 90. The value map is called `v_proj` here. PEFT would have trained the other 60
# without a warning. `coverage` warns of each such problem (`plop.CoverageWarning`, which we silenced for this one call), and
# shows it above the list.
#
# **The repair.** `placement.lora_config` writes the names of your model. We look at its config, and at the file that section 4
# has saved, as another program would read it:

# %%
repaired = placement.lora_config(model, r=16, lora_alpha=32)
print("target_modules:", sorted(repaired.target_modules))
for config_or_folder in (repaired, folder):
    found = plop.coverage(model, config_or_folder)
    print(f"{found.headline}, {len(found.problems)} problems")

# %% [markdown]
# ## 7. Change the choice
#
# **Question.** What if you want fewer adapters, other types, or single layers?
#
# The widget places adapters on types, layers or single modules, by number or by parameters, at any rank. It lives only while the
# notebook runs; below it is a picture of its choice.

# %% tags=["nbval-ignore-output"]
explorer = plop.explore(scores, model, k=len(placement.types), r=config.r, lora_alpha=config.lora_alpha)
explorer

# %% tags=["nbval-ignore-output"]
first, outlined = placement.types[0], explorer.placement
ax = plop.plot_heatmap(scores, placement=outlined)
ax.set_title(f"{first} is below 1 in {(layers[first] < 1).sum()} of {len(layers)} layers", loc="left", weight="bold")
ax.set_xlabel(f"outlined: adapters on {', '.join(outlined.types)}");

# %% [markdown]
# A row is a layer, and outlined modules get adapters. The darkest cells of output are layers 0, 1, 24 and 27, see section 5.
#
# Code can move the controls, too, for example `explorer.k.value = 2`. The sections below take what is chosen in the widget. This
# is its config, as code to copy:

# %%
print(explorer.config_text)

# %% [markdown]
# ## 8. Let placements race
#
# **Question.** Is PLoP's choice the best place for *your* data?
#
# The authors report better or equal results in their first version. By public notes on the ICLR version, which we have not read
# ourselves, PLoP beat the MLP with Qwen3-1.7B in GRPO (74.5 % right against 73.6 %, with 6.9 M against 11.0 M parameters) and
# with Llama-3.2-3B on Arabic (loss 0.84 against 0.96), and lost to it with Qwen3-0.6B (62.0 % against 63.3 %, with 18.4 M against
# 22.0 M).
#
# **What a race does.** It trains up to four placements, each with about the same number of parameters: your choice, the choice by
# the median over layers, the largest maps (in SmolLM2 these are the MLP), and all types. It tries several learning rates, within
# a given time. First it trains all of them for a few steps, and drops those whose training loss is behind. Then it trains the
# last ones in full, with fresh random seeds. The lowest mean loss on *validation* examples wins. The race is *decided* if the
# intervals of the winner's differences to all others in this last round leave out 0. The *test* examples decide nothing: with
# them you judge the winner once.
#
# **Predict.** Here is a race of SmolLM2 on sums of two numbers, recorded (live about five minutes on two cores). Will it decide
# the third place?
#
# Losses are in nats per token: the mean of minus the natural logarithm of the right token's probability. `difference` is to the
# lowest loss. Its intervals over seeds reach from `low` to `high`, and with 95 % confidence all of them hold together:

# %%
import pandas as pd

# recorded by notebooks/tools/record_race_example.py, in the repository
recorded = pd.read_csv(plop.data_file("results/race_example.csv"), comment="#")
print("decided" if recorded["decided"].all() else "undecided", f"after {recorded['runs'].max()} runs")
print(f"before training: {recorded['untrained_loss'].max():.2f} nats per token")
recorded[["placement", "r", "parameters", "lr", "loss", "difference", "low", "high", "seeds"]].round(3)

# %% [markdown]
# **What we saw.** Output in the third place has the lowest mean, by 0.002 nats per token. But the race is *undecided*. With two
# seeds the intervals are about 1 to 2 nats wide, while the four losses lie within 0.036, so it could not have decided. It does
# not show that the places are equal, and gives no reason to leave your choice, nor to keep it. Give a race time for five seeds or
# more. (All four did best at the lower of two rates: try lower ones, too.) If you cannot, take your default.
#
# **To race on your own examples,** set `EXAMPLES` in the settings, to a few hundred of them. This is the call, within ten
# minutes:
#
# ```python
# race = ex.race(model, ex.Task("mine", **parts), tokenizer, rivals, seconds=600, parameters=explorer.parameters)
# race.winner, race.settings
# ```
#
# Its `parts` are drawn at random. Without examples of yours, twenty sums show how section 9 works:

# %%
import random

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
    """Your choice and up to three others, but none that equals your choice."""
    others = {"by the median": Placement.of_types(scores, layers.median().nsmallest(k).index)}
    others["largest maps"] = plop.place(scores, k, rule="size")
    others["all"] = Placement.of_types(scores, scores["type"].unique())
    different = {who: other for who, other in others.items() if other != chosen}
    return {"chosen": chosen, **different}

# %%
rivals = rivals_of(explorer.placement)
for who, rival in rivals.items():
    print(f"{who}: {len(rival.modules)} modules, {', '.join(rival.types)}")

# %% [markdown]
# Section 9 trains the winner. Without a race it takes the choice of section 7, and settings that only show the way:

# %%
best = explorer.placement
settings = {"steps": 4, "batch_size": 4, "lr": 1e-3, "r": explorer.rank.value, "lora_alpha": config.lora_alpha}
if EXAMPLES:
    task, parameters = ex.Task("mine", **parts), explorer.parameters
    race = ex.race(model, task, tokenizer, rivals, seconds=SECONDS, parameters=parameters)
    best, settings = rivals[race.winner], race.settings
    print(race)

# %% [markdown]
# ## 9. Train, save, and take the adapters out again
#
# **Question.** How does the choice get into a training?
#
# [TRL](https://huggingface.co/docs/trl), the library for finetuning language models, takes the config as it is. It trains on the
# train part only:

# %%
import datasets
from trl import SFTConfig, SFTTrainer

datasets.disable_progress_bars()
peft_config = best.lora_config(model, r=settings["r"], lora_alpha=settings["lora_alpha"])
train, test = datasets.Dataset.from_list(parts["train"]), datasets.Dataset.from_list(parts["test"])
on_gpu = model.device.type == "cuda"

# %%
arguments = SFTConfig(
    max_steps=settings["steps"],
    per_device_train_batch_size=settings["batch_size"],
    learning_rate=settings["lr"],
    bf16=on_gpu and model.dtype == torch.bfloat16,
    gradient_checkpointing=on_gpu,
    dataloader_pin_memory=on_gpu,
    output_dir=tempfile.mkdtemp(),
    save_strategy="no",
    report_to="none",
    logging_steps=1,
)

# %% tags=["nbval-ignore-output"]
warnings.simplefilter("ignore", FutureWarning)  # deprecation notices of other packages
data = {"train_dataset": train, "eval_dataset": test}
trainer = SFTTrainer(model, arguments, **data, processing_class=tokenizer, peft_config=peft_config)
before = trainer.evaluate()["eval_loss"]
trainer.train();

# %%
trainable, total = trainer.model.get_nb_trainable_parameters()
print(f"{trainable:,} of {total:,} parameters are trained, {trainable / total:.2%}; the explorer says {explorer.parameters:,}")

# %% [markdown]
# Now we look at the test loss of the trained model, once. (On the twenty sums, four examples say nothing about a placement.) The
# trainer has put the adapters into `model` *itself*. Save them, or they are lost, and take them out before you score again:

# %% tags=["nbval-ignore-output"]
after = trainer.evaluate()["eval_loss"]
print(f"{len(test)} test examples: {before:.2f} nats per token before training, {after:.2f} after")

# %%
from pathlib import Path

adapters = tempfile.mkdtemp()  # put your folder here
trainer.model.save_pretrained(adapters)
model = trainer.model.unload()
left = [part for part, _ in model.named_parameters() if "lora" in part]
print(sorted(file.name for file in Path(adapters).iterdir()), f"{len(left)} adapter weights are left in the model")

# %% [markdown]
# To use them later, load the model as in section 1, then `PeftModel.from_pretrained(model, adapters)` (of `peft`). Its
# `merge_and_unload()` writes the adapters into the weights. In this session the model's own weights stay frozen: for full
# training call `model.requires_grad_(True)` first.

# %% [markdown]
# ## 10. Know what scoring costs
#
# **Question.** How long does scoring take for a model of 135 M parameters, for a larger one, and for one that does not fit in
# memory?
#
# **Intuition.** In most models every token meets every weight once (not in a *mixture of experts*, where each token uses a part).
# So the time should grow with weights × tokens. Attention grows with the square of the length: expect more for texts of thousands
# of tokens.
#
# **Predict.** Below, SmolLM2 (0.1 billion weights in its maps) reads 5,000 tokens in 8 seconds. How long does a model with 1
# billion weights in its maps take for 64 texts of 128 tokens?
#
# **What we do.** On two CPU cores SmolLM2 reads 64 math questions. Two Llamas with random weights in bfloat16 read 64 texts of
# 128 tokens: one of 0.6 B parameters, and one of 2.7 B (5.5 GB), in a process limited to 3 GB. Their seconds include loading the
# model, SmolLM2's do not. `billions` counts the weights in the maps, `thousands` the tokens, `work` is their product, and `rate`
# the seconds divided by it.

# %%
costs = pd.read_csv(plop.data_file("results/costs.csv"), comment="#")
costs["work"] = costs["billions"] * costs["thousands"]
costs["rate"] = costs["seconds"] / costs["work"]
costs.drop(columns="with_loading").round({"seconds": 0, "billions": 2, "thousands": 2, "work": 1, "rate": 0})

# %% tags=["nbval-ignore-output"]
from plop_nb.cost_plot import plot_cost

estimates = {f"1 B, {number} texts of 128 tokens": 1 * number * 0.128 for number in (8, 64)}
ax = plot_cost(costs, estimates)
ax.set_ylabel("seconds on two CPU cores");

# %% [markdown]
# **What we saw.** The work differs by a factor of nearly 40, the rate by less than 2: it took 15 to 24 seconds per billion
# weights and thousand tokens. The Llamas' rates include loading, so they are too high for scoring alone. A model with 1 billion
# weights in its maps should take 125 to 200 seconds for 64 texts of 128 tokens, and about 20 seconds for eight (an *estimate*).
# SmolLM2 was slower in bfloat16 than in float32 (23 against 15).
#
# On other hardware, time `nfn_scores(model, texts[:8], tokenizer)`, and divide the seconds by weights × tokens of these eight
# texts. Here is the estimate for your model and texts, if all of them are read:

# %% tags=["copy"]
# To copy.
thousands = sum(len(ids) for ids in tokenizer(texts, truncation=True, max_length=256)["input_ids"]) / 1e3
billions = plop.module_table(model).query("status == 'scored'")["parameters"].sum() / 1e9
print(f"{billions:.3f} billion weights in the maps, {thousands:.2f} thousand tokens")
# 15 and 24 are the rates of two CPU cores, measured above: replace them by yours
print(f"{15 * billions * thousands:.0f} to {24 * billions * thousands:.0f} seconds")

# %% [markdown]
# ## 11. If the model is larger than memory
#
# **Question.** Do the scores change if the model is read from disk?
#
# *Offloading* keeps in memory what fits, and the rest in a folder on disk. Scoring then reads the model layer by layer. A layer
# that has been read serves many texts at once, so the disk is read about once per 65,536 tokens. (Both recorded runs need one
# reading only.) Here is SmolLM2 with 200 MB of memory for its weights. (With a GPU name the card, too, `"max_memory": {0: "20GB",
# "cpu": "8GB"}`: a device that is not named is not used.)

# %% tags=["copy"]
# To copy.
import logging
import tempfile

large = "SmolLM2-135M-Instruct"  # put your model here
logging.getLogger("accelerate.big_modeling").setLevel("ERROR")  # says that weights are on disk
limits = {"device_map": "auto", "max_memory": {"cpu": "200MB"}, "offload_folder": tempfile.mkdtemp()}
offloaded, its_tokenizer = plop.load_model(large, **limits)
from_disk = plop.nfn_scores(offloaded, texts[:8], its_tokenizer)
on_disk = sum(weight.numel() for weight in offloaded.parameters() if weight.device.type == "meta")
print(f"{on_disk / 1e6:.0f} of {offloaded.num_parameters() / 1e6:.0f} million parameters were on disk")

# %%
# Only for a model that also fits in memory: the same eight texts
if large == "SmolLM2-135M-Instruct":
    in_memory = plop.nfn_scores(plop.load_model(large, dtype=offloaded.dtype)[0], texts[:8], its_tokenizer)
    difference = (plop.by_type(from_disk)["nfn"] - plop.by_type(in_memory)["nfn"]).abs().max()
    assert difference < 0.001
    print(f"{len(plop.by_type(in_memory))} types, none of which differs by 0.001 or more")

# %%
record = pd.read_csv(plop.data_file("results/large_model.csv")).iloc[-1]
print(f"the large Llama: {record['model_gb']:.1f} GB on disk, {record['peak_gb']:.1f} GB of memory at most")

# %% [markdown]
# **What we saw.** The scores of the types differ by less than 0.001. By the record of section 10, the process with the model of
# 5.5 GB took 1.2 GB at most. The Llama of 0.6 B took only 4 seconds more from disk (49) than in memory (45). The larger one was
# not run in memory. We have only scored offloaded models: sections 8 and 9 were not tried with one.

# %% [markdown]
# ## Exercises
#
# Each has a cell to fill in, a check, and a collapsed solution. Exercises 1 and 2 compare with the scores of section 4, so they
# use the same texts:

# %%
which = sorted(scores["sample"].unique())  # stop= has drawn these
used = [texts[number] for number in which]
print(f"{len(used)} texts were scored")


# %%
def tokens_of(frame):
    return frame.groupby("sample")["tokens"].first().sort_values().tolist()


def beside(found, name):
    """The scores of section 4 beside others, by type."""
    table = plop.by_type(scores).set_index("type")[["nfn"]].rename(columns={"nfn": "section 4"})
    table[name] = plop.by_type(found).set_index("type")["nfn"]
    table["change in %"] = (100 * (table[name] / table["section 4"] - 1)).round()
    return table.round(2)


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
    assert CHAT or not tokenizer.chat_template or tokens_of(found) != tokens_of(scores), "these are the texts without a template"
    print("lowest in the template:", plop.place(found).types)
    return beside(found, "chats")


check_chats(chat_scores)

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution. The template moves SmolLM2's scores by at most 3 % (query and key), and the placement stays.
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
    assert (table["section 4"] - table["folded"]).abs().max() > 0.01, "these are the scores of the stored weights"
    print("lowest when folded:", plop.place(found).types)
    return table


check_folded(folded_scores)

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution. Down and output read no norm, so their scores stay. Gate and up read the norm before the MLP: the gain leaves
# their inputs and enters their weights. Both fall by 36 %, and gate passes down. Query, key and value read the norm
# before the attention; they fall by 4 to 8 %.
check_folded(plop.nfn_scores(model, used, tokenizer, form="folded"))

# %% [markdown]
# ### 3. From a file to a config (15 minutes)
#
# Write ten lines of your own into `mine.txt` in `exercise`, a folder of its own, so that your config of section 4 stays. Score
# them. Choose types for at most `limit` parameters at rank 8 (two fifths of what section 4 takes at rank 16), and save the config
# in `exercise`. Which type does not fit any more?

# %%
from plop_nb import read_texts

exercise = Path(tempfile.mkdtemp())
mine_txt, limit = exercise / "mine.txt", int(counts["trainable"].sum()) * 2 // 5
print(f"at most {limit:,} parameters")
my_placement = None  # your turn: what plop.place returns, and a saved config


# %%
def check_file(found):
    if found is None:
        return "not yet filled in"
    assert len(read_texts(mine_txt)) == 10, "write ten lines into mine.txt"
    again = plop.place(plop.nfn_scores(model, read_texts(mine_txt), tokenizer), parameters=limit, r=8)
    assert found == again, f"by these lines the types are {again.types}"
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
# 2. **Look at what the config hits** before you train: `plop.coverage` does it for any config.
# 3. **A low score is no promise.** Race on your own examples if it matters.
#
# **Not established.** That the lowest-scoring types train best (notebook 05). Costs on a GPU are not measured, that of a model
# with 1 billion weights in its maps is an estimate. What value's low score means: more than half of it comes from one channel
# that all tokens share ([notebook 04](04_what_nfn_measures.ipynb)), which need not be something that training can gain.
#
# **Where next.** Notebook 02 says how sure a score is and how `stop=` works. Notebook 05 compares places by training. [Notebook
# 06](06_grpo.ipynb) does so with rewards.
