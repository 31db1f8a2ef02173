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
# **The answer.** Let placements race on your own examples; if you cannot, take the *MLP*: gate, up and down. Section 8 shows a
# recorded race and runs one if you set `EXAMPLES`; section 9 trains its winner, or else the MLP.
#
# One of the candidates is PLoP's (Precise LoRA Placement, [arXiv 2506.20629](https://arxiv.org/abs/2506.20629)): adapters on the
# types of maps with the lowest scores. Five calls score the model and write this placement as a config (section 4). On
# SmolLM2-135M with math questions the types are value, up and down. The third place changes with how one averages over layers,
# and other ways of storing the same function move value and up, too (section 5). And a low score does not promise that a type
# trains best.
#
# ![Mean NFN by type in SmolLM2-135M-Instruct: value, up and down are lowest](images/07_explore_your_model.png)
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
# | 8 | Let placements race, or take the MLP | `plop_nb.experiments.race(...)`, `plop.place(scores, 3, rule="size")` |
# | 9 | Train, save, take the adapters out, load them again | `SFTTrainer(..., peft_config=config)` |
# | | Appendix: costs, and models larger than memory | weights × tokens × a measured rate; `offload_folder` |
#
# | | |
# |---|---|
# | **You need** | [notebook 00](00_quickstart.ipynb); all words are in the [glossary](GUIDE.md#words) |
# | **It takes** | half an hour to read, 35 minutes for the exercises; one to five minutes to run on two CPU cores with SmolLM2, which needs no account |
# | **To copy** | cells that begin with `# To copy.` need nothing but `plop`, `model`, `tokenizer` and `texts`; the other cells of sections 7 to 9 build on each other |
# | **Another model** | change the settings; *What we saw*, and the names in section 6, are about SmolLM2 with math questions |
#
# **Words.** A *map* multiplies a vector by a matrix $W$. A *module* is one map in one layer. A *type* is the same map in all
# layers: query, key, value and output in the attention, gate, up and down in the MLP (the feed-forward part). The code calls them
# `q_proj`, `k_proj`, `v_proj`, `o_proj`, `gate_proj`, `up_proj` and `down_proj`. A LoRA *adapter* is two thin matrices beside a
# map. Only they are trained, and their thin side is the *rank*. PEFT is the library that puts adapters into a model. A
# *placement* says which modules get adapters.
#
# The score is NFN, the *normalized feature norm*. For one token it is $\|Wz\| / (\|z\| \, \|W\|_F / \sqrt d)$, where $z$ is the
# input of $d$ numbers, and $\|W\|_F$ is the root of the sum of all squared entries of $W$. It compares $Wz$ with what $W$ makes
# of noise as large as $z$. The score of a module is the mean over the tokens of a text, then over texts, and that of a type the
# mean over its modules. (The paper divides by the norm of $W$ times random inputs. We divide by the root mean square of that
# norm, for which there is a formula, and average a type's scores like this: both are our choice.)

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
TEXTS = None  # None: the prompts of EXAMPLES, or else 64 math questions; a list of strings, see section 3
CHAT = False  # True: put texts and prompts into the model's chat template
EXAMPLES = None  # to race on: a list of {"prompt": "...", "completion": " ..."}, or a .jsonl file of them
SECONDS = 600  # that the race may take: more time buys more seeds, up to five

# %% [markdown]
# ## 1. Load the model
#
# **Question.** Which arguments does your machine need?
#
# | your case | the setting |
# |---|---|
# | a CPU | none; the numbers are float32 |
# | one GPU | none; the numbers are bfloat16, or float16 where the card lacks it |
# | one GPU of several, or another number format | `LOAD = {"device": "cuda:1", "dtype": "float32"}` |
# | several GPUs together | `LOAD = {"device_map": "auto"}`; leave `device` out |
# | a model larger than memory, no GPU | `LOAD = {"device_map": "auto", "max_memory": {"cpu": "8GB"}, "offload_folder": "offload"}`, see the appendix |
# | a model that you have loaded yourself | replace the next cell by your own `model` and `tokenizer` |
#
# For a model of 1 billion parameters or more, read the appendix first.

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
table.groupby(["type", "status"])["parameters"].agg(modules="size", parameters="sum")

# %% [markdown]
# **What we saw.** Seven types are `scored`. The output head is left out on purpose: it turns features into a score for each token
# of the vocabulary (and SmolLM2 uses the same weights to embed tokens). A *router*, which sends tokens to experts, would be left
# out on purpose, too. All other statuses say that PEFT cannot adapt the map, or that its input cannot be seen.

# %% [markdown]
# ## 3. Choose the texts
#
# **Question.** On which texts should the model be scored?
#
# Take 64 texts or so, as the model will read them in training: prompts, or prompts with answers. Section 4 finds out how many of
# them are needed. Whether the texts were about math, code, logic or history changed no placement in our records ([notebook
# 03](03_cross_architecture_profiles.ipynb)).
#
# | your texts | the setting |
# |---|---|
# | a list | `TEXTS = ["...", "..."]` |
# | a file: `.txt` (a text a line), `.jsonl` or `.csv` | `TEXTS = plop.read_texts("mine.csv", column="question")` |
# | a data set on the Hub | `TEXTS = plop.load_texts("openai/gsm8k", n=64, column="question", name="main")` |
# | some that come with this package | `TEXTS = plop.load_texts("code", n=64)`; or `"math"`, `"logic"`, `"history"` |

# %%
import pandas as pd

if isinstance(EXAMPLES, str):
    EXAMPLES = pd.read_json(EXAMPLES, lines=True).to_dict("records")
prompts = [example["prompt"] for example in EXAMPLES or []]
texts = TEXTS or prompts or plop.load_texts("math", n=64)
print(f"{len(texts)} texts, the first of them:\n{texts[0]}")

# %% [markdown]
# A *chat template* is what a chat model's tokenizer writes around a user's words. If you train on chats, score chats: set `CHAT =
# True`, which also puts the prompts of `EXAMPLES` into it. `as_chat` makes prompts without answers.

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
# **Predict.** `stop=0.99` looks at the scores after 8, 16, 32, ... texts, and stops as soon as it is 99 % confident which three
# types are lowest. How many of the 64 questions will it take?

# %% tags=["copy"]
# To copy.
import tempfile

k = 3  # how many types get adapters
folder = tempfile.mkdtemp()  # where the config goes: put your own folder here
scores = plop.nfn_scores(model, texts, tokenizer, batch_size="auto", stop=0.99, k=k)
placement = plop.place(scores, k=k)  # PLoP's; for the MLP copy the cell of section 8
config = placement.lora_config(model, r=16, lora_alpha=32)
counts = placement.check(model, config)  # an error, if the config hits anything else
config.save_pretrained(folder)
counts

# %% [markdown]
# **What we saw.** Eight questions were enough, the least that `stop=` looks at. (Our questions are made from a few patterns. More
# varied texts may need more.) The config hits the 90 modules of the three types, and no other.
#
# | argument | what it does | when to change it |
# |---|---|---|
# | `batch_size="auto"` | lets batches grow to what fits in memory; scores change by rounding at most | a number, if others share your memory |
# | `stop=0.99` | draws texts at random, and stops when the lowest types are clear | leave it out to score all texts |
# | `k` | how many of the lowest types get adapters; 3 as in the paper, which tried no other number | pass the same `k` to both calls, as here |
# | `r`, `lora_alpha` | the rank, and the scale $\alpha / r$ of the adapters, which is 2 here | always say `lora_alpha`: PEFT takes 8 whatever the rank |
# | `max_length=256` | how many tokens of each text are read; longer texts are cut, without a warning | if your texts are longer |
# | `partial="run.jsonl"` | keeps finished texts, so that the same call goes on after an interrupt | for long runs |
#
# **How often does `stop=0.99` err?** It is designed to stop with other types than endless texts of this kind would give in at
# most 1 of 100 runs. Where only two types competed, exactly tied and with a skewed difference, it was wrong in up to 1.9 %, more
# often than designed ([notebook 02](02_how_many_samples.ipynb)).
#
# **A budget instead of `k`.** `plop.place(scores, parameters=2_000_000, r=16)` adds types from the lowest score upwards, and
# stops at the first type that does not fit. `stop=` does not know of the budget, so leave it out there.
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
last, following = types["type"][k - 1], types["type"][k]  # the last chosen type, and the next one
types.round(2)

# %% tags=["nbval-ignore-output", "picture"]
name = (MODEL or "SmolLM2-135M-Instruct").split("/")[-1]
above = types["nfn"][k] / types["nfn"][k - 1] - 1
title = f"{', '.join(placement.types)} score lowest; {following} is next, {100 * above:.0f} % above {last}"
ax = plop.plot_types(scores, placement=placement, title=title)
ax.set_ylabel(f"{name}\n{'texts of my own' if TEXTS or EXAMPLES else 'math questions'}");

# %% [markdown]
# The whiskers (`low` to `high`) are the 95 % interval for the score that endless texts of this kind would give. `placement.notes`
# lists warnings, such as too few texts. `placement.swaps` pairs each chosen type with each type that was not chosen: the gap
# between their scores, and a p-value, `probability`: how often a gap at least so large would appear if the two were equal. Both
# ignore that we stopped when the scores looked clear, and look at the closest of twelve pairs.

# %%
print(*placement.notes or ["no warnings"], sep="\n")
for row in placement.swaps.nsmallest(3, "gap").itertuples():
    print(f"{row.other} is {row.gap:.2f} above {row.chosen}: p at most {max(row.probability, 1e-4):.4f}")

# %% [markdown]
# **What we saw.** There are no warnings. The closest pair is down and output, 0.13 apart, and eight texts leave little doubt
# about their order. But a type's score is also a mean over layers.
#
# **Predict.** If a few layers had other scores, would down still be before output? Compare the mean over layers with the median:

# %%
layers = plop.by_module(scores).pivot_table(index="layer", columns="type", values="nfn")
print("lowest by the median over layers:", *layers.median().nsmallest(k).index)
layers[[last, following]].agg(["mean", "median"]).round(2)

# %%
gap = layers[following] - layers[last]
far = gap[gap > 0.5].index.tolist()
print(f"{following} minus {last}, mean over layers: {gap.mean():.2f}")
print(f"without the layers {far}, where it is above 0.5: {gap.drop(far).mean():.2f}")

# %% tags=["nbval-ignore-output"]
from plop_nb.layer_plot import plot_layers

ax = plot_layers(layers, (last, following), marked=far)
ax.set_xlabel(f"layer of {name}\nnumbered: {following} more than 0.5 above {last}");

# %% [markdown]
# **What we saw.** A few layers decide the order of down and output. Without the five that are numbered output's mean would be
# below down's. We chose these layers because output lies furthest above down there, so leaving them out had to favour it. The
# median is the fairer check, as it sets aside high and low layers alike. By it (1.00 against 1.03, a gap without an interval)
# output would be chosen in the place of down.
#
# A model can also store the same function in other weights, and then its scores change. Exercise 2 finds gate in the place of
# down. Value and up stay among the lowest three in these three ways, but other ways move them: [notebook
# 04](04_what_nfn_measures.ipynb) scales the rows of one map against the columns of the next, which keeps the function too, and
# finds up anywhere from 0.27 to 2.41, and value from 0.29 to 1.86.

# %% [markdown]
# ## 6. What did my config hit?
#
# **Question.** You have a config from a tutorial, from a colleague, or written by hand. Which modules get adapters?
#
# **What we do.** The config below means what section 4 has chosen: value, up and down, 90 modules. `plop.coverage` puts its
# adapters on an *empty copy* of the model, which has no weights, and looks where they are. It takes a config, an adapter's
# folder, or a model with adapters.
#
# **Predict.** How many of the 90 does it hit?

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
# **What we saw.** It hits 60 modules instead of 90, because the value map is called `v_proj` here. PEFT raises no error as long
# as one name hits, and would have trained only these 60. `coverage` warns of each such problem (`plop.CoverageWarning`, silenced
# in this one call).
#
# **The repair.** `placement.lora_config` writes the names of your model. The file saved in section 4 hits all 90:

# %%
found = plop.coverage(model, folder)
print(f"{found.headline}, {len(found.problems)} problems")

# %% [markdown]
# ## 7. Change the choice
#
# **Question.** What if you want fewer adapters, other types, or single layers?
#
# The widget places adapters on types, layers or single modules, by number or by parameters, at any rank. Code can move its
# controls, too. We ask for two types, keep the picture, and set it back:

# %% tags=["nbval-ignore-output"]
explorer = plop.explore(scores, model, k=k, r=config.r, lora_alpha=config.lora_alpha)
explorer

# %% tags=["nbval-ignore-output"]
from IPython.display import SVG

now = explorer.k.value
explorer.k.value = 2
two_types, picture = explorer.config_text, explorer.picture.value
explorer.k.value = now
SVG(picture)

# %% [markdown]
# The darkest red is 3 or more. What is chosen in the widget races in section 8. This is the config of the two types, as code to
# copy:

# %%
print(two_types)

# %% [markdown]
# ## 8. Let placements race
#
# **Question.** Is PLoP's choice the best place for *your* data?
#
# **What a race does.** It trains up to four placements, each with about the same number of parameters: the choice of section 7,
# the choice by the median over layers, the largest maps (in SmolLM2 these are the MLP), and all types. It tries five learning
# rates. All 20 pairs begin with an eighth of the steps. Those with the lowest training loss go on to half of them: a quarter, and
# of each placement at least the best. Then the best two to four placements train in full, with up to five *seeds* (each is a
# random start and an order of the examples). The lowest mean loss on *validation* examples wins. The race is *decided* if the
# intervals of the winner's differences to all others in this last round leave out 0. The *test* answers decide nothing: with them
# you judge the winner once. (Their prompts may be among the texts that were scored.)
#
# **Predict.** Here is a recorded race of SmolLM2 on sums of two numbers, with two seeds and the rates 0.001 and 0.002. Will it
# decide the third place?
#
# `print(race)` shows such a table. Losses are in nats per token: the mean of minus the natural logarithm of the right token's
# probability. `difference` is to the lowest loss. Its intervals over seeds reach from `low` to `high`, and with 95 % confidence
# all of them hold together:

# %%
# recorded by notebooks/tools/record_race_example.py, in the repository
recorded = pd.read_csv(plop.data_file("results/race_example.csv"), comment="#")
first, verdict = recorded.loc[0], "decided" if recorded["decided"].all() else "undecided"
print(f"winner: {first.placement} at lr {first.lr:g}, {verdict}, {first.runs} runs")
recorded[["placement", "r", "parameters", "lr", "loss", "difference", "low", "high", "seeds"]].round(3)

# %% [markdown]
# **What we saw.** Output in the third place has the lowest mean, by 0.002 nats per token. But the race is *undecided*, and it
# could hardly have decided. With two seeds the intervals are about 1 to 2 nats wide, while the four losses lie within 0.035. All
# four did best at the lower rate, so still lower ones should have been tried. The race does not show that the places are equal.
#
# **The rule.**
#
# 1. If you have a few hundred examples, race on them, and take the winner. If the race is undecided, its lead may be luck: take
#    any of the places that it did not separate, such as the MLP.
# 2. If not, take the MLP, with the cell below.
#
# The scores name candidates for the race, and no more: the order changes with how one averages and with how the same function is
# stored, and [notebook 05](05_lora_finetuning.ipynb) did not find that the lowest train best. There (one small model, short
# trainings) PLoP's choice was worse than the MLP on one of three tasks, and could not be told from it on two. Adapters on all
# maps, the usual advice elsewhere, could not be told from the MLP on any: they are as good a default. We take the MLP because it
# has 90 modules with adapters instead of 210. The paper's own results speak for PLoP; [notebook 05b](05b_rules_and_rivals.ipynb)
# lists what others found.

# %% tags=["copy"]
# To copy. Without a race: the three largest types (in most models the MLP). Scores do not matter, so one text will do.
import tempfile

any_scores = plop.nfn_scores(model, texts[:1], tokenizer, progress=False)
largest = plop.place(any_scores, 3, rule="size")
default = largest.lora_config(model, r=16, lora_alpha=32)
default.save_pretrained(tempfile.mkdtemp())  # put your own folder here
largest.check(model, default)

# %% [markdown]
# **To race on your own examples,** set `EXAMPLES` in the settings, to a few hundred of them. Section 3 then scores their prompts,
# and section 9 trains the winner. Five seeds of four placements are 20 trainings of 100 steps; the race tells how many seeds
# `SECONDS` buys. Without examples section 9 trains the MLP, on twenty sums that only show the way. Examples are split at random:

# %%
import random


def parts_of(examples):
    """Validation and test examples, a fifth each, and the rest to train on."""
    mixed = random.Random(0).sample(examples, len(examples))
    fifth = len(examples) // 5
    validation, test, train = mixed[:fifth], mixed[fifth : 2 * fifth], mixed[2 * fifth :]
    return {"validation": validation, "test": test, "train": train}

# %%
examples = EXAMPLES or [{"prompt": f"{n} + 2 =", "completion": f" {n + 2}"} for n in range(20)]
if CHAT and tokenizer.chat_template:
    examples = [{**example, "prompt": as_chat(example["prompt"])} for example in examples]
parts = parts_of(examples)
print({part: len(rows) for part, rows in parts.items()}, "such as", parts["train"][0])

# %%
from plop_nb.placement import Placement

chosen = explorer.placement
# as many types as were chosen
by_median = layers.median().nsmallest(len(chosen.types)).index
others = {"by the median": Placement.of_types(scores, by_median)}
others["largest maps"] = plop.place(scores, len(chosen.types), rule="size")
others["all"] = Placement.of_types(scores, scores["type"].unique())

# %%
rivals = {"chosen": chosen}  # and the others, each placement once
for who, other in others.items():
    if other not in rivals.values():
        rivals[who] = other
for who, rival in rivals.items():
    print(f"{who}: {len(rival.modules)} modules, {', '.join(rival.types)}")

# %%
best = largest
settings = {"steps": 4, "batch_size": 4, "lr": 1e-3, "r": default.r, "lora_alpha": default.lora_alpha}
print("without a race:", *best.types)

# %%
# Only with examples of yours
from plop_nb import experiments as ex

if EXAMPLES:
    task, parameters = ex.Task("mine", **parts), explorer.parameters
    race = ex.race(model, task, tokenizer, rivals, seconds=SECONDS, parameters=parameters)
    best, settings = rivals[race.winner], race.settings
    print(race)

# %% [markdown]
# ## 9. Train, save, take the adapters out, load them again
#
# **Question.** How do you train with this placement?
#
# [TRL](https://huggingface.co/docs/trl), the library for finetuning language models, takes the config as it is. It trains on the
# train part only:

# %%
import datasets
from trl import SFTConfig, SFTTrainer

datasets.disable_progress_bars()
on_gpu = model.device.type == "cuda"
peft_config = best.lora_config(model, r=settings["r"], lora_alpha=settings["lora_alpha"])
expected = best.check(model, peft_config)["trainable"].sum()
train, test = datasets.Dataset.from_list(parts["train"]), datasets.Dataset.from_list(parts["test"])

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
print(f"{trainable:,} of {total:,} parameters are trained, {trainable / total:.2%}; {expected:,} were expected")

# %% [markdown]
# Now we look at the test loss of the trained model, once. (Four sums say nothing about a placement.) The trainer has put the
# adapters into `model` *itself*. Save them, or they are lost, and take them out before you score again:

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
# Another day you load the model as in section 1, and put the saved adapters on it.

# %%
from peft import PeftModel

with_adapters = PeftModel.from_pretrained(model, adapters)
print(plop.coverage(with_adapters).headline)
model = with_adapters.unload()  # or merge_and_unload(), which writes them into the weights

# %% [markdown]
# ## Exercises
#
# Each has a cell to fill in, a check, and a collapsed solution. Exercises 1 and 2 use the texts that section 4 has scored:

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
    table["change in %"] = (100 * (table[name] / table["section 4"] - 1)).round().astype(int)
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
    if tokenizer.chat_template and not CHAT:
        assert tokens_of(found) != tokens_of(scores), "these are the texts without a template"
    print("lowest in the template:", plop.place(found, k=k).types)
    return beside(found, "chats")


check_chats(chat_scores)

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution. The template moves SmolLM2's scores by at most 3 % (query and key), and the placement stays.
check_chats(plop.nfn_scores(model, [chats[number] for number in which], tokenizer))

# %% [markdown]
# ### 2. The same function in other weights (10 minutes)
#
# In front of each attention and each MLP stands a *norm*. In SmolLM2 it brings its input to a fixed length, and multiplies each
# *channel* (each of the $d$ numbers) by a factor, its *gain*. The gains can be *folded*: multiplied into the maps that read the
# norm's output. The model then computes the same as before, up to rounding.
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
    print("lowest when folded:", plop.place(found, k=k).types)
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
exercise = Path(tempfile.mkdtemp())
mine_txt, limit = exercise / "mine.txt", int(counts["trainable"].sum()) * 2 // 5
print(f"at most {limit:,} parameters")
my_placement = None  # your turn: what plop.place returns, and a saved config


# %%
def check_file(found):
    lines = plop.read_texts(mine_txt)
    assert len(lines) == 10, "write ten lines into mine.txt"
    again = plop.place(plop.nfn_scores(model, lines, tokenizer), parameters=limit, r=8)
    assert found == again, f"by these lines the types are {again.types}"
    saved = LoraConfig.from_pretrained(exercise)
    trainable = found.check(model, saved)["trainable"].sum()
    assert saved.r == 8 and trainable <= limit, f"rank {saved.r}, {trainable:,} parameters"
    return f"{', '.join(found.types)}: {trainable:,} parameters at rank {saved.r}"


check_file(my_placement) if my_placement else "not yet filled in"

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution. Down does not fit any more, and the rule stops there. With a file of your own the lines would be yours.
mine_txt.write_text("\n".join(f"Line {n} of my own: what is {n} times {n}?" for n in range(10)))
own_scores = plop.nfn_scores(model, plop.read_texts(mine_txt), tokenizer)
own = plop.place(own_scores, parameters=limit, r=8)
own.lora_config(model, r=8, lora_alpha=16).save_pretrained(exercise)
check_file(own)

# %% [markdown]
# ## Three things to remember
#
# 1. **Few texts may be enough.** `stop=` finds out how many.
# 2. **Look at what the config hits** before you train: `plop.coverage` does it for any config.
# 3. **A low score is no promise.** Race on your own examples, or take the MLP.
#
# **Not established.** It is not established that the types with the lowest scores train best (notebook 05), nor what a low score
# means (notebook 04). We have not measured costs on a GPU, and the cost of a model with 1 billion weights is an estimate.
#
# **Where next.** Notebook 02 says how sure a score is and how `stop=` works. Notebook 05 compares places by training. [Notebook
# 06](06_grpo.ipynb) does so with rewards.

# %% [markdown]
# ## Appendix: costs, and models larger than memory
#
# **Question.** How long does scoring take, and does it work for a model that does not fit in memory?
#
# **Intuition.** In most models every token meets every weight once (in a *mixture of experts* a part of them). So the time should
# grow with weights × tokens. For texts of thousands of tokens expect more, as attention grows with the square of the length.
#
# **What we do.** On two CPU cores SmolLM2 reads 64 math questions. Two Llamas with random weights in bfloat16 read 64 texts of
# 128 tokens: one of 0.6 billion parameters, and one of 2.7 billion (5.5 GB) in a process limited to 3 GB. Only weights in scored
# maps count, 0.35 and 2.5 billion; the rest is embedding and head.

# %% tags=["nbval-ignore-output"]
from plop_nb.cost_plot import plot_cost

costs = pd.read_csv(plop.data_file("results/costs.csv"), comment="#")
costs["work"] = costs["billions"] * costs["thousands"]
costs["run"] += costs["with_loading"].map({True: ", with loading", False: ""})
estimates = {f"1 billion weights,\n{n} texts of 125 tokens": n * 0.125 for n in (8, 64)}
plot_cost(costs, estimates).set_ylabel("seconds on two CPU cores");

# %% [markdown]
# **What we saw.** The work differs by a factor of nearly 40, the rate by less than 2: it took 15 to 24 seconds per billion
# weights and thousand tokens. The five runs mix number formats, and those of the Llamas include loading the model, so this is a
# rough range. On other hardware, time a second call of `nfn_scores`, and divide the seconds by weights × tokens. Here is the
# estimate for your model and texts, if all of them are read:

# %% tags=["copy"]
# To copy.
numbers = tokenizer(texts, truncation=True, max_length=256)["input_ids"]
thousands = sum(len(ids) for ids in numbers) / 1e3
weights = plop.module_table(model).query("status == 'scored'")["parameters"].sum()
work = weights / 1e9 * thousands
print(f"{weights / 1e9:.3f} billion weights in the maps, {thousands:.2f} thousand tokens")
print(f"{15 * work:.0f} to {24 * work:.0f} seconds")  # 15 and 24: of two CPU cores; put yours here

# %% [markdown]
# **A model larger than memory.** *Offloading* keeps in memory what fits, and the rest in a folder on disk. Scoring then reads the
# model layer by layer. A layer that has been read serves many texts at once, up to 65,536 tokens (so says `nfn_scores`). Here is
# SmolLM2 with 200 MB of memory for its weights. (With a GPU name the card, too, `"max_memory": {0: "20GB", "cpu": "8GB"}`: a
# device that is not named is not used.)

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
whole, _ = plop.load_model(large, dtype=offloaded.dtype)
in_memory = plop.by_type(plop.nfn_scores(whole, texts[:8], its_tokenizer)).set_index("type")["nfn"]
difference = (plop.by_type(from_disk).set_index("type")["nfn"] - in_memory).abs().max()
assert difference < 0.001
print(f"{len(in_memory)} types; the largest difference between their scores is {difference:.4f}")

# %% [markdown]
# **What we saw.** The scores agree to four decimals on eight texts. The process with the Llama of 5.5 GB took 1.2 GB of memory at
# most (`results/large_model.csv`). From disk the Llama of 0.6 billion took little longer than in memory (that of 2.7 billion has
# the highest cost of all), but its file may have come from the system's cache. Sections 8 and 9 were not tried with an offloaded
# model.
