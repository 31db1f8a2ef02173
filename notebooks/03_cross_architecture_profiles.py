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
# # Profiles across architectures and domains
#
# A model's **profile** is its score by layer and type. Does it look alike in a Llama, a Gemma and a BERT? Does it
# change with the domain of the texts, so that math wants its adapters elsewhere than history? And can one place
# adapters by single modules rather than by types?
#
# Live: a few texts of each of four domains. Recorded with the same code (`python notebooks/tools/record.py profiles
# transfer`): more texts, and finetunings (on an H100). Where a model cannot be downloaded, its recorded scores are drawn.

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
MODELS = ["SmolLM2-135M-Instruct", "gemma-3-270m", "minilm"]  # Llama, Gemma 3 and BERT, carried by PyPI packages
HUB = []  # any Hub ids; prepared: "meta-llama/Llama-3.2-1B-Instruct", "Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-Math-1.5B",
# "Qwen/Qwen3-0.6B", "EleutherAI/pythia-160m", "openai-community/gpt2"
VIT = None  # a vision model, prepared: "google/vit-base-patch16-224"
DOMAINS = ["math", "code", "logic", "history"]
TEXTS = 8  # of each domain, live
K = 3  # how many module types get adapters

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from plop_nb.models import DownloadError
from plop_nb.plots import CMAP, NORM
from plop_nb.stats import lowest
from plop_nb.texts import data_file

recorded = pd.read_csv(data_file("results/profiles.csv"), comment="#")
texts = {domain: plop.load_texts(domain, n=TEXTS) for domain in DOMAINS}
print(recorded.groupby("model", sort=False)["module"].nunique().to_dict(), "modules recorded")


# %%
live, own = {}, None


def profile(name):
    """One row per module and domain: live, recorded, or none."""
    try:
        model, tokenizer = plop.load_model(name)
    except DownloadError as error:
        known = recorded.query("model == @name")
        print(f"{name}: {'recorded scores' if len(known) else 'skipped'}, {str(error)[:80]}...")
        return known
    live[name] = {domain: plop.nfn_scores(model, texts[domain], tokenizer) for domain in DOMAINS}
    return pd.concat([plop.by_module(s).assign(model=name, domain=d) for d, s in live[name].items()])


# %% tags=["nbval-ignore-output"]
profiles = pd.concat([profile(name) for name in MODELS + HUB], ignore_index=True)
print(f"{profiles['model'].nunique()} models, {len(live)} of them live")

# %% [markdown]
# The live scores are the recorded ones, up to the choice of texts:

# %%
key = ["model", "domain", "module"]
both = profiles.merge(recorded, on=key, suffixes=("", "_recorded"))
off = (both["nfn"] / both["nfn_recorded"] - 1).abs()
assert off.median() < 0.02 and off.quantile(0.99) < 0.15
print(f"{len(both)} scores; half of them within 2 % of the recorded ones, 99 % within 15 %")

# %% [markdown]
# ## Layer by type
#
# Predict, then look: which differs more, two models or two domains? Blue is below 1, red above, one scale for all.
# Every row is a model, every column a domain.


# %%
def heatmap(name, domain, ax):
    part = data[data["layer"].notna()].astype({"layer": int}).query("model == @name")
    order = part.groupby("type")["nfn"].mean().sort_values().index
    grid = part.query("domain == @domain").pivot_table(index="layer", columns="type", values="nfn")[order]
    sns.heatmap(grid.rename(columns=short), cmap=CMAP, norm=NORM, ax=ax, cbar=False, yticklabels=5)
    ax.set(xlabel="", ylabel="")
    ax.tick_params(axis="x", rotation=90)
    ax.tick_params(axis="y", rotation=0)


def short(t):
    return t.removeprefix("layer.*.").removesuffix(".dense").removesuffix("_proj")

def label(name):
    return name.split("/")[-1]

# %% tags=["nbval-ignore-output", "picture"]
data = pd.concat([recorded, profiles[~profiles["model"].isin(recorded["model"])]], ignore_index=True)
names = list(data["model"].unique())
fig, axes = plt.subplots(len(names), 4, figsize=(11, 3.1 * len(names)), layout="constrained", squeeze=False)
for row, name in zip(axes, names):
    for ax, domain in zip(row, DOMAINS):
        heatmap(name, domain, ax)
        ax.set_title(domain if ax in axes[0] else "", fontsize=13)
    row[0].set_ylabel(f"{label(name)}\nlayer", fontsize=12)
bar = fig.colorbar(plt.cm.ScalarMappable(NORM, CMAP), ax=axes, extend="both", shrink=0.6)
bar.set_label("NFN (1 = random input)")
bar.ax.minorticks_off()
bar.set_ticks([1 / 3, 1 / 2, 1, 2, 3], labels=["1/3", "1/2", "1", "2", "3"])

# %% [markdown]
# Rows differ, columns hardly. Query and key stand out in SmolLM2, the output map in Gemma, and value lies below 1 in both;
# what a BERT does is another picture.

# %%
types = data.groupby(["model", "domain", "type"])["nfn"].mean().reset_index()
across = types.pivot(index=["model", "type"], columns="domain", values="nfn")[DOMAINS]
value = across[across.index.get_level_values("type").str.contains("v_proj|value")]
assert (value.loc[["SmolLM2-135M-Instruct", "gemma-3-270m"]] < 1).all(axis=None)
def highest(name, n):
    return set(across.loc[name].mean(axis=1).nlargest(n).index)

assert highest("SmolLM2-135M-Instruct", 2) == {"q_proj", "k_proj"} and highest("gemma-3-270m", 1) == {"o_proj"}
across.round(2)

# %% [markdown]
# ## Beside the authors' own figures
#
# The authors of the paper published their scores of single modules of Llama-3.2-1B-Instruct on four domains and of the
# 3B model on math (`data/published/nfn_llama.csv`). Type profiles, one line a domain:

# %%
published = pd.read_csv(data_file("published/nfn_llama.csv"), comment="#").rename(columns={"task": "domain"})
published["model"] += " (published)"
everything = pd.concat([data, published], ignore_index=True)

# %% tags=["nbval-ignore-output"]
names = list(everything["model"].unique())
fig, axes = plt.subplots(1, len(names), figsize=(2.7 * len(names), 3.8), layout="constrained", sharey=True)
for ax, name in zip(axes, names):
    part = everything.query("model == @name").groupby(["type", "domain"])["nfn"].mean().unstack()
    part = part.loc[part.mean(axis=1).sort_values().index].rename(index=short)
    for domain, color in zip(DOMAINS, sns.color_palette("colorblind")):
        if domain in part:
            ax.plot(part.index, part[domain], "o-", color=color, label=domain, ms=5)
    ax.axhline(1, color="0.15", lw=1, ls="--", zorder=0)
    ax.set_title(label(name).replace(" (", "\n("), fontsize=11)
    ax.tick_params(axis="x", rotation=90)
axes[0].set(yscale="log", yticks=[0.5, 1, 2, 3], yticklabels=["1/2", "1", "2", "3"], ylabel="NFN (1 = random input)")
axes[0].minorticks_off()
axes[0].legend(frameon=False)
sns.despine()

# %% [markdown]
# Which `K` types would get the adapters, domain by domain?

# %%
def lowest_types(s):
    return ", ".join(sorted(short(t) for t in s.droplevel([0, 1]).nsmallest(K).index))

means = everything.groupby(["model", "domain", "type"])["nfn"].mean()
chosen = means.groupby(["model", "domain"]).apply(lowest_types).unstack()[DOMAINS]
ranking = means.groupby(["model", "domain"]).apply(lambda s: ", ".join(s.droplevel([0, 1]).sort_values().index))
counts = pd.DataFrame({"placements": chosen.nunique(axis=1), "rankings": ranking.groupby("model").nunique()})
assert (counts["placements"] == 1).all()
print(counts, "different over the domains\n")
for name, domains in chosen.iterrows():
    print(f"{name}: {domains['math']}")

# %% [markdown]
# ### Does your Llama-3.2-1B give the published scores?
#
# Name it in `HUB` and the next cell compares, module by module. Expect a few percent: the authors drew other texts, and
# noise for every token (notebook 02). Without it, the cell only checks that the modules' names are those of the model.


# %%
def against_published(scores, domain="math"):
    """Published and own NFN of each module side by side."""
    theirs = published.query("model == 'Llama-3.2-1B-Instruct (published)' and domain == @domain")
    both = theirs.merge(plop.by_module(scores)[["module", "nfn"]], on="module", suffixes=("_published", "_own"))
    return both.assign(ratio=both["nfn_own"] / both["nfn_published"])


# %%
from transformers import LlamaConfig, LlamaForCausalLM

own = next((live[name]["math"] for name in live if "Llama-3.2-1B" in name), None)
sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_key_value_heads": 8}
with torch.device("meta"):
    shape = plop.module_table(LlamaForCausalLM(LlamaConfig(**sizes)))
stand_in = shape.query("type != 'lm_head'").assign(sample=0, nfn=1.0)
compared = against_published(stand_in if own is None else own)
assert len(compared) == 112, "not a Llama-3.2-1B"
print("compared" if own is not None else "no Llama-3.2-1B here: names only,", len(compared), "modules")

# %%
if own is not None:
    assert compared["nfn_own"].corr(compared["nfn_published"], method="spearman") > 0.95
    assert compared["ratio"].median() == np.clip(compared["ratio"].median(), 0.9, 1.1)
print("own Llama-3.2-1B against the published figures:", "agrees" if own is not None else "not compared")

# %% [markdown]
# ## Does the domain matter for the placement?
#
# Split the squared deviations of all scores of a model (module by domain) into parts that add up exactly: which *type*,
# which *layer* of the type, which *domain* (all types moving together, which changes no ranking), **type × domain**
# (types moving against each other, the only part that can change a placement by types), and the rest,
# *module × domain*.


# %%
def decomposed(part):
    """Shares of the sum of squares; they add up to 1."""
    def mean(*by):
        return part.groupby(list(by))["nfn"].transform("mean")

    total, domain = part["nfn"].mean(), mean("domain")
    sides = {"type": mean("type") - total, "layer": mean("module") - mean("type"), "domain": domain - total}
    sides["type × domain"] = mean("type", "domain") - mean("type") - domain + total
    sides["module × domain"] = part["nfn"] - total - sum(sides.values())
    return pd.Series({name: (side**2).sum() for name, side in sides.items()}) / ((part["nfn"] - total) ** 2).sum()


# %%
several = everything.groupby("model", sort=False).filter(lambda part: part["domain"].nunique() == 4)
shares = several.groupby("model", sort=False)[["type", "module", "domain", "nfn"]].apply(decomposed)
assert np.allclose(shares.sum(axis=1), 1) and (shares["type × domain"] < 0.01).all()
shares.map("{:.2%}".format)

# %%
fig, ax = plt.subplots(figsize=(8, 0.5 * len(shares) + 1.6), layout="constrained")
palette = ["0.55", "0.8", *sns.color_palette("colorblind")[:3]]
shares.rename(index=label)[::-1].plot.barh(stacked=True, color=palette, ax=ax, width=0.7)
ax.set(xlabel="share of the variance of NFN", ylabel="", xlim=(0, 1))
ax.legend(frameon=False, ncols=5, loc="lower center", bbox_to_anchor=(0.4, 1), columnspacing=1)
sns.despine()

# %% [markdown]
# ## The transfer test
#
# The paper reports that a specialised model scores higher on its domain than its base model does (Qwen2.5-Math against
# Qwen2.5). Name such a pair in `HUB` to see both profiles. Where no pair can be had, one can be made: all weights of
# SmolLM2, finetuned on math questions with worked solutions, scored on the way on the same texts of all four domains
# (recorded: five seeds with different training texts, intervals over seeds). The finetuning did work: loss (nats per
# token) on held-out texts, by step, falls on math; elsewhere it ends higher than it began. The held-out math texts are of
# the same kind as the training texts, with other numbers and names.

# %%
transfer = pd.read_csv(data_file("results/transfer.csv"), comment="#")
loss = transfer.groupby(["domain", "step"])["loss"].mean().unstack()
assert loss.loc["math"].iloc[-1] < loss.loc["math"].iloc[0] / 2
assert (loss.drop("math").iloc[:, -1] > loss.drop("math").iloc[:, 0]).all()
loss.loc[DOMAINS].round(2)

# %% [markdown]
# Value and up maps rise, on math by more than on any other domain; output and down maps fall. Change of each type's
# score after the last step, in percent of the score before:

# %%
from scipy.stats import t as student

nfn = transfer.pivot(index=["step", "seed"], columns=["type", "domain"], values="nfn")
change = 100 * (nfn.loc[nfn.index[-1][0]] / nfn.loc[0] - 1)  # one row a seed
half = student.ppf(0.975, len(change) - 1) * change.std() / np.sqrt(len(change))
mean, spread = (table.unstack()[DOMAINS] for table in (change.mean(), half))
most = (mean - spread)["math"] > (mean + spread)[DOMAINS[1:]].max(axis=1)  # surely more than anywhere else
assert most[["v_proj", "up_proj"]].all() and ((mean + spread).loc[["o_proj", "down_proj"]] < 0).all(axis=None)
mean.round(1)

# %% tags=["nbval-ignore-output"]
order = mean["math"].sort_values().index
fig, ax = plt.subplots(figsize=(7.5, 4), layout="constrained")
for shift, (domain, color) in enumerate(zip(DOMAINS, sns.color_palette("colorblind"))):
    at = np.arange(len(order)) + 0.16 * (shift - 1.5)
    ax.errorbar(mean.loc[order, domain], at, xerr=spread.loc[order, domain], fmt="o", color=color, label=domain, capsize=3)
ax.axvline(0, color="0.15", lw=1, ls="--", zorder=0)
ax.set(yticks=range(len(order)), yticklabels=order, xlabel="change of NFN by finetuning on math, % (95 % over seeds)")
ax.legend(frameon=False, title="scored on")
sns.despine()

# %% [markdown]
# The placement stays as it was, on every domain, for every seed, at every step that was scored:

# %%
placements = transfer.groupby(["step", "seed", "domain"]).apply(lambda t: frozenset(t.nsmallest(3, "nfn")["type"]))
assert placements.nunique() == 1
print(f"{placements.nunique()} placement in {len(placements)} scorings; most changes are below 3 %, all below 8 %")
assert (mean.abs() < 3).mean(axis=None) > 0.8 and (mean.abs() < 8).all(axis=None)

# %% [markdown]
# ## Types or single modules?
#
# The paper's authors tried to place adapters by layer and got inconsistent results. Is a single module's score stable
# at all? From the even and from the odd texts alone, the modules come in nearly the same order:

# %%
def rank(a, b):
    return a.corr(b, method="spearman")

rows = []
for name, by_domain in live.items():
    scores = by_domain["math"]
    halves = [scores[scores["sample"] % 2 == i].groupby("module")["nfn"].mean() for i in (0, 1)]
    type_of = scores.drop_duplicates("module").set_index("module")["type"]
    within = [rank(halves[0][m], halves[1][m]) for m in type_of.groupby(type_of).groups.values()]
    rows.append((label(name), rank(*halves), min(within)))
halves = pd.DataFrame(rows, columns=["model", "all modules", "inside a type, the least"])
assert (halves["all modules"] > 0.95).all()
halves.round(2)

# %%
wide = data.pivot_table(index=["model", "type", "module"], columns="domain", values="nfn")[DOMAINS]
others = [d for d in DOMAINS if d != "math"]
all_modules = wide.groupby("model", sort=False).apply(lambda w: w[others].corrwith(w["math"], method="spearman"))
inside = wide.groupby(["model", "type"]).apply(lambda w: w[others].corrwith(w["math"], method="spearman").min())
assert (all_modules > 0.9).all(axis=None)
all_modules.join(inside.groupby("model").agg(["median", "min"]).add_prefix("inside a type: ")).round(2)

# %%
groups = data.query("domain == 'math'").groupby(["model", "type"], sort=False)["nfn"]
spread = groups.agg(["min", "median", "max"])
spread["max / min"] = spread["max"] / spread["min"]
spread["layers below 1"] = groups.apply(lambda s: (s < 1).mean())
spread.round(2)


# %% [markdown]
# What would single modules choose? Take the lowest modules, whatever their type, until their adapters have as many
# parameters as those on the `K` lowest types. An adapter of rank $r$ on a map has $r\,(\mathrm{in} + \mathrm{out})$.


# %%
def chosen_modules(part):
    """Names of the lowest modules, no more parameters than the K lowest types."""
    types = part.groupby("type")["nfn"].mean().nsmallest(K).index
    budget = part.loc[part["type"].isin(types), "size"].sum()
    order = part.sort_values("nfn")
    return set(order.loc[order["size"].cumsum() <= budget, "module"]), set(part[part["type"].isin(types)]["module"])


# %%
rows, picked = [], {}
for (name, domain), part in recorded.groupby(["model", "domain"], sort=False):
    modules, by_types = picked[name, domain] = chosen_modules(part)
    same = len(modules & picked[name, "math"][0]) / len(modules | picked[name, "math"][0])
    size = part.set_index("module")["size"]
    shared = size[list(modules & by_types)].sum() / size[list(modules)].sum()
    counts = {"modules": len(modules), "same as on math": same, "in the types": shared}
    rows.append({"model": name, "domain": domain, **counts})
overlap = pd.DataFrame(rows).set_index(["model", "domain"])
assert (overlap["in the types"] < 0.95).all()
overlap.round(2)

# %% tags=["nbval-ignore-output"]
names = list(recorded["model"].unique())
fig, axes = plt.subplots(1, len(names), figsize=(3.6 * len(names), 4.6), layout="constrained")
for ax, name in zip(axes, names):
    part = recorded.dropna(subset="layer").astype({"layer": int}).query("model == @name and domain == 'math'").copy()
    modules, by_types = picked[name, "math"]
    part["kind"] = part["module"].isin(modules) * 2 + part["module"].isin(by_types)
    order = part.dropna(subset="layer").groupby("type")["nfn"].mean().sort_values().index
    grid = part.pivot_table(index="layer", columns="type", values="kind")[order].rename(columns=short)
    colors = ["0.93", "0.7", *sns.color_palette("colorblind")[1::-1]]
    sns.heatmap(grid, cmap=colors, vmin=0, vmax=3, cbar=False, linewidths=0.5, yticklabels=5, ax=ax)
    ax.set(title=label(name), xlabel="", ylabel="layer")
    ax.tick_params(axis="y", rotation=0)
for text, color in zip(["by type only", "by module only", "both"], colors[1:]):
    axes[-1].plot([], [], "s", color=color, label=text)
_ = fig.legend(loc="outside lower center", ncols=3, frameon=False)

# %% [markdown]
# Most of what single modules choose in the two decoders lies in the `K` lowest types anyway; in SmolLM2 nearly all of
# the rest are output maps. In MiniLM the two choices have little in common. Which of the two trains better is a question
# for finetuning, not answered here.
#
# Choose yourself, while the notebook runs: the domains of the first live model, by types, layers or single modules at
# equal parameters. The figures above are its static twins.

# %% tags=["nbval-ignore-output"]
explorer = plop.explore(next(iter(live.values())), k=K)
explorer

# %% [markdown]
# ## Images
#
# A vision transformer has no texts: named in `VIT`, it is scored on crops of a photograph.

# %%
if VIT:
    from matplotlib.cbook import get_sample_data
    from transformers import AutoModel

    photo = torch.tensor(plt.imread(get_sample_data("grace_hopper.jpg"))).permute(2, 0, 1) / 127.5 - 1
    crops = torch.stack([photo[:, y : y + 224, x : x + 224] for y in range(0, 320, 80) for x in range(0, 288, 72)])
    ax = plop.plot_heatmap(plop.nfn_scores(AutoModel.from_pretrained(VIT), [{"pixel_values": crops}]))
else:
    print("no vision model named")

# %% [markdown]
# ## What is established, and what not
#
# * **Established for these three small models, the published Llama-3.2-1B, and these four domains**: which type a
#   module has and which layer it sits in make nearly all of the variance of its score; type × domain, the only part
#   that can change a placement by types, is below 1 %. The `K` = 3 lowest types are the same on all four domains.
# * The order of *neighbouring* types can change with the domain: Gemma and MiniLM have several rankings, one placement.
# * In the three models scored here half of the variance and more is **between layers of one type**, in the published
#   Llama an eighth. Scores of single modules are stable over texts and
#   nearly so over domains, so instability of the score does not explain why placement by layer worked inconsistently.
# * Gemma's lowest three hold the key maps rather than the down maps: no one set of types serves all architectures.
# * **Transfer**: finetuned on math, SmolLM2's value and up maps score higher, on math by more than elsewhere: the
#   direction that the paper reports. Output and down maps score lower, and gate maps change little on math. It is a
#   matter of a few percent and changes no placement. One model, five seeds, held-out texts of the same kind as the
#   training texts.
# * **Not shown**: larger models (but for the published figures), long texts, other languages, and whether any of it
#   makes finetuning better.
