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
# # What does the score measure?
#
# In many models the value maps score far below 1. The paper reports it for Qwen3 and Gemma 3 and leaves it open: why
# should a trained map meet its own inputs with *less* than noise gets? This notebook splits the score exactly in two,
# tests the split by intervention, and asks what would be recommended if one part were taken away.
#
# Live: SmolLM2 on a few texts. Recorded with the same code (`python notebooks/tools/record.py directions`): three models,
# four domains.

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
MODEL = "SmolLM2-135M-Instruct"  # or "gemma-3-270m", "minilm", any Hub id or folder
DOMAIN = "math"
TEXTS = 8  # live
DIRECTIONS = 20  # random directions to compare with
K = 3  # how many module types get adapters

# %% tags=["nbval-ignore-output"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from plop_nb.geometry import interventions, mean_inputs, nfn_without, untrained
from plop_nb.plots import CHOSEN, CMAP, NORM
from plop_nb.texts import data_file

model, tokenizer = plop.load_model(MODEL)
texts = plop.load_texts(DOMAIN, n=TEXTS)

# %%
recorded = pd.read_csv(data_file("results/directions.csv"), comment="#")
MODELS = list(recorded["model"].unique())
def short(t):
    return t.removeprefix("layer.*.").removesuffix(".dense").removesuffix("_proj")

print(recorded.groupby("model", sort=False)["module"].nunique().to_dict(), "modules recorded")

# %% [markdown]
# ## An exact split
#
# Only the direction of an input enters the score: $u = z / \|z\|$. Let $\mu = \mathbb E\,u$ be the mean direction
# over all tokens of all texts and $f = \|\mu\|^2$: 1 if all tokens point the same way, near 0 if they are scattered.
# Then
#
# $$\mathbb E\,\mathrm{NFN}(z)^2 = f\;\mathrm{NFN}(\mu)^2 + (1 - f)\;\mathrm{NFN}(u - \mu)^2$$
#
# because the cross term averages to zero. By hand, for one map:

# %%
name = plop.module_table(model).query("status == 'scored'")["module"].iloc[2]
seen = []
hook = model.get_submodule(name).register_forward_pre_hook(lambda module, args: seen.append(args[0][0].float()))
with torch.no_grad():
    for text in texts:
        model(**tokenizer(text, return_tensors="pt").to(model.device))
hook.remove()
u = torch.cat(seen)
u = u / u.norm(dim=1, keepdim=True)
mu, W = u.mean(0), model.get_submodule(name).weight.detach().float()
def square(x):
    return ((x @ W.T).square().sum(-1) / (W.square().sum() / W.shape[1])).mean().item()

print(f"E NFN² = {square(u):.4f} = {square(mu):.4f} + {square(u - mu):.4f} over {len(u)} tokens, f = {mu @ mu:.3f}")

# %% [markdown]
# `mean_split` does it for every map and keeps one vector a map, no activations. The left side comes from the outputs
# of a first pass, the shared part from $W\mu$, the centred part from the outputs of a second pass; that they add up
# is a check.

# %%
split = plop.mean_split(model, texts, tokenizer)
row = split.set_index("module").loc[name]
assert np.allclose(row[["mean_part", "centred_part"]].tolist(), [square(mu), square(u - mu)], rtol=1e-3)
gap = ((split["mean_part"] + split["centred_part"]) / split["mean_square"] - 1).abs()
assert gap.max() < 1e-3
print(f"the parts add up within 0.1 % for all {len(split)} modules")

# %% [markdown]
# The recorded tables: three models, four domains, and all domains together.

# %%
gap = ((recorded["mean_part"] + recorded["centred_part"]) / recorded["mean_square"] - 1).abs()
assert gap.max() < 1e-3
print(f"the parts add up within 0.1 % for all {len(recorded)} recorded rows")

# %% [markdown]
# ## How much is shared, and what becomes of it
#
# By type, on the texts of all domains together, so that no single task can be the reason:

# %%
columns = ["share", "nfn", "nfn_mean", "nfn_centred"]
everywhere = recorded.query("domain == 'all'")
by_type = everywhere.groupby(["model", "type"], sort=False)[columns].mean()
by_type.round(2)

# %% [markdown]
# The same is asserted for each of the four domains alone:

# %%
each = recorded.groupby(["model", "domain", "type"], sort=False)[columns].mean()
decoders = each.drop("minilm")
value, query, key = (decoders.xs(t, level="type") for t in ("v_proj", "q_proj", "k_proj"))
assert (value["share"] > 0.45).all() and (value["nfn_mean"] < 0.4).all()
assert (query["nfn_mean"] > 1.3).all() and (key["nfn_mean"] > 1.1).all()
assert value["nfn_centred"].between(0.8, 0.9).all() and query["nfn_centred"].between(0.95, 1.05).all()
bert = each.loc["minilm"].xs("value", level="type")
assert (bert["share"] < 0.2).all() and bert["nfn"].between(0.9, 1).all()
print(f"value without the mean, over models and domains: {value['nfn_centred'].agg(['min', 'max']).round(2).tolist()}")

# %% [markdown]
# In the two decoders half of the (squared) attention input is one direction that all tokens share. Query and key
# amplify it, value cuts it to a third. Without it query lies near 1; value comes up to 0.83 to 0.88, closer to 1 but
# still below. In MiniLM the shared share is below a fifth and value lies near 1 anyway.

# %% tags=["nbval-ignore-output", "picture"]
parts = by_type.reset_index().drop(columns="share").melt(["model", "type"], var_name="of", value_name="NFN")
labels = {"nfn_mean": "the shared mean", "nfn": "the inputs", "nfn_centred": "inputs without the mean"}
fig, axes = plt.subplots(1, len(MODELS), figsize=(4 * len(MODELS), 4), layout="constrained", sharex=True)
for ax, name in zip(axes, MODELS):
    part = parts.query("model == @name").assign(of=lambda t: t["of"].map(labels), type=lambda t: t["type"].map(short))
    order = part[part["of"] == "the inputs"].sort_values("NFN")["type"]
    colors = dict(zip(labels.values(), [sns.color_palette("colorblind")[1], "0.15", CHOSEN]))
    sns.pointplot(part, x="NFN", y="type", hue="of", order=order, palette=colors, linestyle="none", ax=ax)
    ax.axvline(1, color="0.15", lw=1, ls="--", zorder=0)
    ax.set(title=name, xlabel="NFN (1 = random input)", ylabel="", xscale="log")
    ax.set_xticks([0.3, 0.5, 1, 2, 3], ["0.3", "0.5", "1", "2", "3"], minor=False)
    ax.minorticks_off()
    ax.get_legend().remove()
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
sns.despine()

# %% [markdown]
# Layer by layer: the shared share $f$, the gain of the mean, the gain of what is left. The last two have the colour
# scale of all profiles.


# %%
def label_figure(fig, axes):
    """Titles and the two colour bars."""
    for ax, title in zip(axes[0], ["f, the shared share", "NFN of the mean", "NFN without the mean"]):
        ax.set_title(title)
    grey, scale = plt.cm.ScalarMappable(plt.Normalize(0, 1), "Greys"), plt.cm.ScalarMappable(NORM, CMAP)
    fig.colorbar(grey, ax=axes[:, 0], location="bottom", shrink=0.8, label="f")
    bar = fig.colorbar(scale, ax=axes[:, 1:], location="bottom", extend="both", shrink=0.6)
    bar.set_label("NFN (1 = random input)")
    bar.ax.minorticks_off()
    bar.set_ticks([1 / 3, 1 / 2, 1, 2, 3], labels=["1/3", "1/2", "1", "2", "3"])


# %% tags=["nbval-ignore-output"]
looks = {"share": {"cmap": "Greys", "vmin": 0, "vmax": 1}, **dict.fromkeys(columns[2:], {"cmap": CMAP, "norm": NORM})}
layers = everywhere.dropna(subset="layer").astype({"layer": int})
fig, axes = plt.subplots(len(MODELS), 3, figsize=(10, 3.2 * len(MODELS)), layout="constrained")
for row, name in enumerate(MODELS):
    part = layers.query("model == @name")
    order = part.groupby("type")["nfn"].mean().sort_values().index
    for ax, (column, look) in zip(axes[row], looks.items()):
        grid = part.pivot_table(index="layer", columns="type", values=column)[order].rename(columns=short)
        sns.heatmap(grid, ax=ax, yticklabels=5, cbar=False, **look)
        ax.set(xlabel="", ylabel="")
        ax.tick_params(axis="x", rotation=90)
        ax.tick_params(axis="y", rotation=0)
    axes[row, 0].set_ylabel(f"{name}\nlayer")
label_figure(fig, axes)

# %% [markdown]
# ## Is it the domain's direction, or everybody's?
#
# Cosine between a map's mean direction on one domain and that on math. If the mean were about the task, it would turn
# with the task.

# %%
others = recorded[~recorded["domain"].isin(["math", "all"])]
cosines = others.pivot_table(index=["model", "type"], columns="domain", values="cosine", sort=False, aggfunc="median")
reads_stream = cosines.index.get_level_values("type").isin(["q_proj", "k_proj", "v_proj"])
assert (cosines[reads_stream] > 0.9).all(axis=None) and cosines[~reads_stream].min(axis=None) < 0.6
cosines.round(2)

# %% [markdown]
# In the attention inputs of the decoders it is nearly the same direction on every domain: not the task's. In front of
# the output maps, in MiniLM and in SmolLM2's down maps it does turn with the domain.
#
# ## Interventions
#
# A correlation explains nothing. Four changes, each taking away one thing, and a fifth below:
#
# * the first token, at which many models park attention, is read but not counted;
# * all other tokens are shuffled: no sentences left;
# * all other tokens are drawn evenly from the vocabulary: no language left;
# * the model has the weights that training starts from: nothing learned.

# %%
batches = interventions(texts, tokenizer)
changed = {what: plop.mean_split(model, data) for what, data in batches.items()}
changed["untrained model"] = plop.mean_split(untrained(model), texts, tokenizer)
live = pd.concat([table.assign(intervention=what) for what, table in changed.items()])
live = live.groupby(["intervention", "type"], sort=False)[columns].mean().reset_index()

# %%
stored = pd.read_csv(data_file("results/interventions.csv"), comment="#")
known = stored.query("model == @MODEL")
if len(known) and DOMAIN == "math" and TEXTS == 8:
    both = live.merge(known, on=["intervention", "type"], suffixes=("", "_recorded"))
    assert (both["share"] / both["share_recorded"] - 1).abs().max() < 0.02
print("live interventions agree with the recorded ones" if len(known) else "no record of this model")

# %%
attention = stored[stored["type"].isin(["q_proj", "k_proj", "v_proj", "query", "key", "value"])]
attention = attention.assign(type=attention["type"].map(lambda t: t[0]))
table = attention.pivot_table(index=["model", "intervention"], columns="type", values=["share", "nfn_mean"], sort=False)
def under(what):
    return table.xs(what, level="intervention")

trained = table["nfn_mean"].drop("untrained model", level="intervention").drop("minilm")
assert (trained["v"] < 0.5).all() and (trained[["q", "k"]] > 1.1).all(axis=None)
assert (under("first token left out") / under("as it is") - 1).abs().max(axis=None) < 0.06
for what in ("tokens shuffled", "random tokens"):
    assert (under(what)["share"] > under("as it is")["share"]).drop("minilm").all(axis=None)
assert under("untrained model")["nfn_mean"].sub(1).abs().max(axis=None) < 0.05
table.round(2)

# %% [markdown]
# * **Not the first token**: leaving it out changes next to nothing.
# * **Not language**: with shuffled or random tokens the decoders share *more* of their direction, query and key still
#   amplify it and value still suppresses it.
# * **Learned**: an untrained model has a mean direction too (in MiniLM's shape even a stronger one), but its maps
#   meet it like noise: NFN of the mean is 1.
#
# Is it the *same* direction then? Cosine between the mean directions with and without the change, median over a type's
# maps: in front of the attention of SmolLM2 nearly so, elsewhere not.

# %%
def turned(data):
    """Cosine of each map's mean direction on `data` with that on the texts, median by type."""
    mean = mean_inputs(model, data)
    cosine = pd.Series({m: torch.cosine_similarity(means[m], mean[m], dim=0).item() for m in mean})
    return cosine.groupby(plop.module_table(model).set_index("module")["type"]).median()


means = mean_inputs(model, batches["as it is"])
cosines = pd.DataFrame({what: turned(data) for what, data in batches.items() if what != "as it is"})
if MODEL == "SmolLM2-135M-Instruct":
    assert (cosines.loc[["q_proj", "k_proj", "v_proj"]] > 0.8).all(axis=None) and cosines.loc["down_proj"].min() < 0.5
cosines.round(2)

# %% [markdown]
# There the direction belongs to the model more than to the text. Then the score itself should not need language either.
# Scores on random tokens against those on math questions:

# %%
both = stored[stored["intervention"].isin(["as it is", "random tokens"])]
both = both.pivot_table(index=["model", "type"], columns="intervention", values="nfn", sort=False)
order = both.groupby("model").corr(method="spearman").xs("as it is", level="intervention")["random tokens"]
def lowest(column):
    return both[column].groupby("model").apply(lambda t: set(t.droplevel(0).nsmallest(K).index))

same = lowest("as it is") == lowest("random tokens")
assert same["SmolLM2-135M-Instruct"] and (order.drop("minilm") > 0.7).all()
print(f"rank correlation of types: {order.round(2).to_dict()}; same placement: {same.to_dict()}")
both.round(2)

# %% [markdown]
# NFN of the mean direction under the interventions, left of the line suppressed, right of it amplified:

# %%
grid = sns.catplot(
    attention, x="nfn_mean", y="intervention", hue="type", col="model", kind="strip", palette="colorblind", size=9,
    height=3, aspect=1.1, jitter=False,
)  # fmt: skip
grid.refline(x=1, color="0.15", ls="--").set_titles("{col_name}").set(xscale="log")
grid.set_axis_labels("NFN of the mean", "")
for ax in grid.axes.flat:
    ax.set_xticks([0.3, 0.5, 1, 2], ["0.3", "0.5", "1", "2"])
    ax.minorticks_off()

# %% [markdown]
# **Remove the direction.** Show each map its inputs without their component along the mean. The control, without their
# component along a random direction, shows no more than that projecting does no harm: such a component is one part in 576.
# The stronger test, turning the mean itself, comes next.

# %%
generator = torch.Generator().manual_seed(0)
random = {m: torch.randn(len(v), generator=generator) for m, v in means.items()}
scores = {
    "as it is": plop.nfn_scores(model, texts, tokenizer),
    "random direction removed": nfn_without(model, texts, tokenizer, random),
    "mean direction removed": nfn_without(model, texts, tokenizer, means),
}
removed = pd.DataFrame({what: plop.by_type(s).set_index("type")["nfn"] for what, s in scores.items()})
change = np.log(removed).sub(np.log(removed["as it is"]), axis=0).abs()
assert change["random direction removed"].max() < 0.01
if MODEL == "SmolLM2-135M-Instruct":
    assert removed["mean direction removed"].std() < removed["as it is"].std() / 2
removed.round(3)

# %% [markdown]
# ## Where the direction lies in the weights
#
# $\mathrm{NFN}(\mu)^2$ is the mean of the squared singular values, weighted by how much of $\mu$ lies along each
# right singular vector, over their plain mean. So turn $\mu$ at random, keeping $W$ and its spectrum: the score of
# the mean has to fall to 1 if it owes everything to the *match* of $W$ and $\mu$.


# %%
def spectrum(name):
    """How the mean direction lies to the singular vectors of one map."""
    W, mu = model.get_submodule(name).weight.detach().float(), means[name]
    _, values, vectors = torch.linalg.svd(W, full_matrices=False)
    energy = (vectors @ (mu / mu.norm())).square()
    top = max(1, len(values) // 10)
    turned = torch.randn(len(mu), DIRECTIONS, generator=torch.Generator().manual_seed(0)).to(W.device)
    def gain(d):
        return ((W @ d).norm(dim=0) / (d.norm(dim=0) * W.norm() / len(mu) ** 0.5)).mean().item()

    return {"NFN of the mean": gain(mu[:, None]), "turned at random": gain(turned),
            "energy in the top tenth": energy[:top].sum().item(), "by chance": top / len(mu),
            "energy W can see": energy.sum().item(), "by chance ": len(values) / len(mu)}  # fmt: skip


# %%
table = plop.module_table(model).query("status == 'scored'").set_index("module")
rows = pd.DataFrame({m: spectrum(m) for m in means if table.loc[m, "layer"] % 3 == 0}).T
spectra = rows.groupby(table["type"]).mean().loc[removed.index]
assert spectra["turned at random"].between(0.85, 1.15).all()
if MODEL == "SmolLM2-135M-Instruct":
    assert spectra.loc["v_proj", "energy W can see"] < spectra.loc["v_proj", "by chance "] / 2
    times = spectra["energy in the top tenth"] / spectra["by chance"]
    assert (times[["q_proj", "k_proj"]] > 2).all() and times["v_proj"] < 1
spectra.round(3)

# %% [markdown]
# The value map of SmolLM2 keeps 192 of 576 directions. A random direction has a third of its energy among them; the
# mean direction far less: it lies mostly where the map sees nothing. In query and key the top tenth of the singular
# vectors holds more than twice as much of it as by chance, in value less than chance.
#
# ## How much of the ranking is the mean's?
#
# Over single modules: how well does each part alone predict the score?

# %%
def rank(t):
    return pd.Series({c: t["nfn"].corr(t[c], method="spearman") for c in ["nfn_mean", "nfn_centred", "share"]})

predicts = everywhere.groupby("model", sort=False)[["nfn", "nfn_mean", "nfn_centred", "share"]].apply(rank)
logs = np.log(by_type[["nfn", "nfn_centred"]])
predicts["types' spread"] = logs["nfn"].groupby("model").std()
predicts["without the mean"] = logs["nfn_centred"].groupby("model").std()
assert (predicts["nfn_mean"] > 0.9).all() and (predicts["nfn_mean"] > predicts["nfn_centred"]).all()
left = predicts["without the mean"] / predicts["types' spread"]
assert (left.drop("minilm") < 0.45).all() and left["minilm"] > 0.7
predicts.round(2)

# %% [markdown]
# Modules rank as the gain of their mean direction does (a part of the score, so some agreement is built in), and less
# as what is left. The spread between types (standard deviation of log NFN) falls to a third in the decoders when the
# mean is subtracted, and hardly in MiniLM.
#
# ## What would be recommended without the mean?

# %%
def pick(column):
    return lambda t: ", ".join(sorted(short(x) for x in t.groupby("type")[column].mean().nsmallest(K).index))

groups = recorded.groupby(["model", "domain"], sort=False)[["type", "nfn", "nfn_without", "nfn_centred"]]
names = {"as it is": "nfn", "direction removed": "nfn_without", "mean subtracted": "nfn_centred"}
recommended = pd.DataFrame({what: groups.apply(pick(column)) for what, column in names.items()})
placements = recommended.groupby("model", sort=False).nunique()
assert (placements["as it is"] == 1).all() and placements.loc["SmolLM2-135M-Instruct", "mean subtracted"] > 1
assert all("v" in p.split(", ") for p in recommended["mean subtracted"].drop("minilm", level="model"))
recommended

# %% [markdown]
# Value and up stay among the lowest in both decoders. The third place is lost: without the mean the candidates for it lie
# within a few percent of each other, and with the mean subtracted the choice changes with the domain. So the centred
# score decides less, and no `variant="centred"` is offered by `nfn_scores`; `plop_nb.geometry.nfn_without` gives it for
# experiments.

# %% [markdown]
# ## What is established, and what not
#
# **Established**, for SmolLM2-135M and Gemma-3-270M on these short English texts:
#
# * the split is exact, and the shared mean direction carries most of what sets the types apart;
# * value maps score below 1 mainly because they suppress that direction, in SmolLM2 by keeping it out of the
#   directions that they can see; without it they still score about 0.85, so suppression is most of the answer, not
#   all;
# * in front of the attention it is nearly the same direction on all four domains, in SmolLM2 even with random tokens, and
#   untrained weights do not treat it specially. Here the score says more about the model than about the task.
#
# **Not established**: why training suppresses the direction; whether it is so in Qwen3 or larger models; in BERT the share
# is small, and value near 1. Removing the direction changes what a map is shown here, not what the model
# computes downstream. And whether a placement should count the shared direction at all can only be told by
# finetuning.
