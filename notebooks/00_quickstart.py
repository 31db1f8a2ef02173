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
# LoRA finetunes a model by training small adapters on some of its linear maps. Which ones? **PLoP**
# ([Hayou, Ghosh, Yu, 2025](https://arxiv.org/abs/2506.20629)) answers with one forward pass: it measures how well each
# type of map already fits the task's texts and puts adapters where the fit is *worst*.
#
# In ten minutes, on a CPU, with a real 135M-parameter model, you will
#
# 1. score all of the model's linear maps on a task's texts,
# 2. read off the placement, and
# 3. train adapters there.

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
MODEL = None  # None: SmolLM2-135M-Instruct, no account needed; else a Hub id or a folder, "Qwen/Qwen3-0.6B"
TASK = "math"  # "math", "code", "logic", "history", or a Hub data set id
TEXTS = 64  # how many texts to score on
K = 3  # how many module types get adapters
RANK = 16  # of the adapters
STEPS = 12  # of training

# %% [markdown]
# ## A model and a task

# %% tags=["nbval-ignore-output"]
model, tokenizer = plop.load_model(MODEL)
texts = plop.load_texts(TASK, n=TEXTS)
print(texts[0])

# %% [markdown]
# Where *could* adapters go? `module_table` lists every linear map. A **type** is the same map in all layers: for a
# Llama model query, key, value and output of the attention and gate, up and down of the MLP. The output head is listed
# too, with the reason why it is not scored.

# %%
table = plop.module_table(model)
shapes = ["type", "in_features", "out_features", "status"]
table.groupby(shapes, as_index=False).agg(modules=("module", "size"), parameters=("parameters", "sum"))

# %% [markdown]
# ## The score
#
# A linear map $W$ receives one token's vector $z$. How much does $W$ stretch it, compared with noise $\tilde z$ of the
# same length?
#
# $$\mathrm{NFN}(W, z) = \frac{\|W z\|}{\|W \tilde z\|}$$
#
# * **about 1**: the input meets $W$ like noise;
# * **above 1**: the input lies along directions that $W$ amplifies. $W$ is aligned with this task;
# * **below 1**: the input lies along directions that $W$ suppresses.
#
# The paper's argument: training grows this alignment, so a low score marks a map with much left to gain.
#
# Let us compute it by hand for one map, with real noise. First, the inputs that reach it:

# %%
name = table.query("status == 'scored'")["module"].iloc[2]
seen = []
hook = model.get_submodule(name).register_forward_pre_hook(lambda module, args: seen.append(args[0][0]))
with torch.no_grad():
    model(**tokenizer(texts[0], return_tensors="pt").to(model.device))
hook.remove()
print(f"{name} met {seen[0].shape[0]} tokens of {seen[0].shape[1]} numbers each")

# %% [markdown]
# Then noise of exactly the same length, and the ratio, averaged over the tokens:

# %%
W, z = model.get_submodule(name).weight.detach().float(), seen[0].float()
noise = torch.randn(2000, W.shape[1], generator=torch.Generator().manual_seed(0)).to(W.device)
noise = noise / noise.norm(dim=1, keepdim=True)
by_hand = ((z @ W.T).norm(dim=1) / (z.norm(dim=1) * (noise @ W.T).norm(dim=1).mean())).mean().item()
print(f"NFN of {name} on the first text: {by_hand:.3f}")

# %% [markdown]
# The package does this for every map at once, and needs no noise: the root mean square of $\|W\tilde z\|$ is
# exactly $\|z\| \, \|W\|_F / \sqrt{\text{inputs}}$. The two agree within 1 %.

# %%
one_text = plop.nfn_scores(model, texts[:1], tokenizer, progress=False).set_index("module")["nfn"]
assert abs(by_hand / one_text[name] - 1) < 0.01
print(f"by hand {by_hand:.3f}, plop_nb {one_text[name]:.3f}")

# %% [markdown]
# ## Predict, then look
#
# Before you run the next cells: which type will score **lowest**? Common advice puts adapters on query and value.
# Write down your guess.

# %%
guess = "q_proj"  # your guess

# %% [markdown]
# One forward pass over all texts, without the output head. One row per text and map:

# %%
scores = plop.nfn_scores(model, texts, tokenizer)
scores.iloc[:7, :6].round(2)

# %% [markdown]
# Averaged over layers and texts, lowest first. `low` and `high` bound the mean: a 95 % interval from drawing other
# texts of the same task.

# %% tags=["show"]
types = plop.by_type(scores)
types.round(3)

# %%
rank = types["type"].tolist().index(guess) + 1 if guess in set(types["type"]) else None
print(f"your guess {guess} is number {rank} of {len(types)}")

# %% [markdown]
# The gaps between types are far wider than the intervals: these texts leave no doubt about the order.

# %% tags=["nbval-ignore-output", "picture"]
ax = plop.plot_types(scores, k=K)

# %%
gaps = types["low"].iloc[1:].to_numpy() - types["high"].iloc[:-1].to_numpy()
assert MODEL or TASK != "math" or (gaps > 0).all()
print("neighbouring intervals overlap:", bool((gaps <= 0).any()))

# %% [markdown]
# Is that true in every layer, or only on average? Blue is below 1, red above.

# %% tags=["nbval-ignore-output"]
ax = plop.plot_heatmap(scores)
ax.set_title("Value maps score below 1 in every layer" if not MODEL else "", loc="left");

# %% [markdown]
# In SmolLM2 the value maps score below 1 in every single layer, and query and key above 1 in nearly all. The output
# maps go both ways, so their average says less about any one of them.

# %%
layers = scores.groupby(["type", "layer"])["nfn"].mean()
below = (layers < 1).groupby("type").mean()
assert MODEL or below["v_proj"] == 1 and below[["q_proj", "k_proj"]].max() < 0.1
assert MODEL or 0.2 < below["o_proj"] < 0.8
layers.groupby("type").agg(["min", "max"]).round(2).rename(columns="{} over the layers".format)

# %% [markdown]
# ## The placement
#
# The `K` lowest types. `confidence` is the probability that more texts would lead to the same choice.

# %% tags=["show"]
placement = plop.place(scores, k=K)
assert placement.confidence > 0.9, "undecided: raise TEXTS"
assert MODEL or TASK != "math" or placement.types == ["v_proj", "up_proj", "down_proj"][:K]
placement

# %% [markdown]
# `lora_config` writes this down for [PEFT](https://huggingface.co/docs/peft). As long as one target name
# matches, PEFT skips the others without a word, and a short name can match more than was meant. So the configuration is tried on an empty copy
# of the model first, and `check` counts what it hits:

# %%
config = placement.lora_config(model, r=RANK)
check = placement.check(model, config)
assert (check["modules"] == check["adapted"]).all()
check

# %% tags=["show"]
print("target_modules:", sorted(config.target_modules))

# %% [markdown]
# Try other choices: another `k`, a parameter budget, single modules, another rank. The figures above are the static
# twins of this explorer, which lives only while the notebook runs; `explorer.placement` is what it has chosen.

# %% tags=["nbval-ignore-output"]
explorer = plop.explore(scores, model, k=K, r=RANK)
explorer

# %% [markdown]
# ## Train
#
# From here on it is ordinary PEFT and [TRL](https://huggingface.co/docs/trl).

# %%
from peft import get_peft_model

lora = get_peft_model(model, config)
lora.print_trainable_parameters()

# %% [markdown]
# A few steps on fresh texts of the task, four at a time, and the loss on texts that it never trains on:

# %% tags=["nbval-ignore-output"]
from datasets import Dataset
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

train = Dataset.from_dict({"text": plop.load_texts(TASK, n=4 * STEPS, seed=1)})
held_out = Dataset.from_dict({"text": texts[:16]})
settings = SFTConfig(
    max_steps=STEPS, per_device_train_batch_size=4, learning_rate=2e-3, warmup_steps=2,
    max_length=256, bf16=False, gradient_checkpointing=False, dataloader_pin_memory=False,
    logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
)  # fmt: skip

# %% tags=["nbval-ignore-output"]
trainer = SFTTrainer(lora, settings, train_dataset=train, eval_dataset=held_out,
                     processing_class=tokenizer)  # fmt: skip
trainer.remove_callback(PrinterCallback)
before = trainer.evaluate()["eval_loss"]
trainer.train()
after = trainer.evaluate()["eval_loss"]
print(f"loss on held-out texts: {before:.2f} before, {after:.2f} after {STEPS} steps")

# %%
assert after < before - 0.2, "the adapters learned nothing"
print("the loss fell:", after < before)

# %% tags=["nbval-ignore-output"]
import seaborn as sns

losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
ax = sns.lineplot(x=range(1, STEPS + 1), y=losses, marker="o", label="training batch")
ax.plot([0, STEPS], [before, after], "s--", color="0.4", label="held-out texts")
ax.set(xlabel="training step", ylabel="loss (nats per token)")
ax.set_title(f"Adapters there learn: held-out loss {before:.2f} → {after:.2f}", loc="left")
ax.legend(frameon=False)
sns.despine()

# %% [markdown]
# ## What you have seen, and what not
#
# * One forward pass ranks the module types; a resampling of the texts says how sure the ranking is.
# * The configuration hits exactly the chosen maps, and adapters there train.
# * **Not shown here**: that this placement beats another one. The loss would fall with adapters elsewhere too. A fair
#   comparison needs equal parameters, a tuned learning rate for each placement, and several seeds.
#
# To use it on your own model and texts, change the settings cell: any Hub id or folder, any list of strings.
