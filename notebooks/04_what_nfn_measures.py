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
# # What does the score measure, and what does it not know?
#
# **The question.** PLoP puts [adapters](GUIDE.md#adapter) on the module [types](GUIDE.md#type) with the lowest [Normalized Feature Norm](GUIDE.md#nfn),
#
# $$\mathrm{NFN}(W, z) = \frac{\|W z\|}{\|z\|\,\|W\|_F / \sqrt n},$$
#
# the length of a map's output over the length that a random input of the same length would get (1: no better than random).
# What makes it low? And is a low NFN the *reason* why adapters should go there?
#
# **The answer.** NFN depends on how loudly each input [channel](GUIDE.md#channel) is stored: make a channel louder and the map's column for it
# shorter, and the network stays the same while the score changes. In the two [decoders](GUIDE.md#decoder) that we look into, one loud channel,
# which value maps hardly read, is about half of what keeps their score below 1. Stored in another form, the same network
# gets other scores, and in three of four models other adapters. When we changed SmolLM2's scores and kept its function, the
# maps that were made to score lowest did not become the better place for adapters. How far the better place led moved with the
# scores in one task; in the other we saw no such move. So in this test a low score alone did not decide.
#
# | | |
# |---|---|
# | **You need** | notebook 00; what a matrix norm and a mean are; roughly how a transformer block is built; the words are in the [glossary](GUIDE.md#words) |
# | **It takes** | one to three minutes on two CPU cores; no GPU |
# | **It runs** | SmolLM2-135M on 8 math questions, live; other models (on 16 texts), and all training runs, from recorded files |
#
# Some statements below are *identities*: they hold by algebra and cannot fail. Some are *measurements* of a few
# models. One section is an *experiment* with a control. Each section says which it is.

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
MODEL = "SmolLM2-135M-Instruct"  # or "gemma-3-270m", or any decoder: a Hub id or a folder
TEXTS = 8  # math questions
K = 3  # how many module types get adapters

# %% tags=["nbval-ignore-output"]
import copy

import numpy as np
import pandas as pd

from plop_nb import moves
from plop_nb.channel_plots import plot_channels
from plop_nb.channels import leading_channels, mean_channels, other_channels
from plop_nb.crossing_plot import plot_crossing
from plop_nb.form_plots import plot_forms
from plop_nb.geometry import mean_inputs, nfn_without
from plop_nb.probing import norm_links, norm_table, pair_links
from plop_nb.texts import data_file


# %%
def recorded(name):
    """A file of data/results; its first lines say how it was made, and on what."""
    return pd.read_csv(data_file(f"results/{name}"), comment="#")


model, tokenizer = plop.load_model(MODEL, dtype="float32")
texts = plop.load_texts("math", n=TEXTS)
is_default = MODEL == "SmolLM2-135M-Instruct" and TEXTS == 8
print(f"{len(texts)} texts, {len(plop.module_table(model))} linear maps")

# %% [markdown]
# Each line below is one module type in one model. The three columns are three ways of storing *the same function*: as it was
# published; with the [gains](GUIDE.md#gain) of the norms moved into the [maps](GUIDE.md#map) ([*folded*](GUIDE.md#folding)); and in a standard form (*canonical*, section 3). The
# model computes the same in all three columns. The scores differ, and so do the three lowest types (large dots), which are
# the ones that PLoP chooses.

# %% tags=["nbval-ignore-output", "picture"]
plot_forms(recorded("form_scores.csv").query("domain == 'math' and model != 'minilm'"));

# %% [markdown]
# ## 1. The squared score splits in two
#
# *An identity.*
#
# **Question.** In this model the value maps score far below 1: their outputs are shorter than those that random
# inputs of the same length would give. The paper reports the same for Qwen3 and Gemma 3 and leaves it open why. Which part
# of the input is to blame?
#
# **Intuition.** The inputs of a map are not scattered around zero. They share a common direction, as a swarm of flies that
# moves along a street shares the direction of the street. What the map does with the common direction and what it does
# with the differences between tokens are two separate things, and the squared score adds them up.
#
# **What we do.** Only the direction of an input enters the score, so let $u = z / \|z\|$ for each token. Let
# $\mu = \mathbb E\, u$ be the mean over all tokens of all texts, and $f = \|\mu\|^2$ the *shared part*: 1 if all tokens
# point the same way, near 0 if they are scattered. Then
#
# $$\mathbb E\,\mathrm{NFN}(z)^2 = f\;\mathrm{NFN}(\mu)^2 + (1 - f)\;\mathrm{NFN}(u - \mu)^2 , \qquad
# \mathrm{NFN}(u - \mu)^2 := \frac{\mathbb E\|W (u - \mu)\|^2}{\mathbb E\|u - \mu\|^2\,\|W\|_F^2 / n} .$$
#
# The cross term vanishes, because $u - \mu$ averages to zero. (The identity is about squares, and needs the closed-form
# baseline $\|W\|_F / \sqrt n$; PLoP itself averages NFN, which is nearly the root of it.) We check it by hand on the value map of one layer, whose inputs we collect with a [hook](GUIDE.md#hook):

# %%
values = plop.module_table(model).query("type.str.contains('v_proj|value')")
name = values["module"].iloc[len(values) // 2]
layer, inputs = model.get_submodule(name), []
hook = layer.register_forward_pre_hook(lambda module, args: inputs.append(args[0][0].float()))
with torch.no_grad():
    for text in texts:
        model(**tokenizer(text, return_tensors="pt").to(model.device))
hook.remove()
print(f"{name}: {sum(map(len, inputs))} tokens, {layer.in_features} channels")

# %%
u = torch.nn.functional.normalize(torch.cat(inputs), dim=1)
mu, W = u.mean(0), layer.weight.detach().float()
noise = (W.square().sum() / W.shape[1]).item()  # E ||W u||^2 for a random direction u
mean_part = (W @ mu).square().sum().item() / noise
centred_part = ((u - mu) @ W.T).square().sum(1).mean().item() / noise
both = (u @ W.T).square().sum(1).mean().item() / noise
print(f"E NFN^2 = {both:.3f} = {mean_part:.3f} + {centred_part:.3f};  f = {mu.square().sum():.2f}")

# %% [markdown]
# `plop.mean_split` does this for every map. It keeps one vector a map, and no activations. Here is the same line, and then
# the means over all maps of a type.

# %%
split = plop.mean_split(model, texts, tokenizer, progress=False)
row = split.set_index("module").loc[name]
assert np.allclose(row[["mean_part", "centred_part"]].tolist(), [mean_part, centred_part], rtol=1e-3)
print(f"E NFN^2 = {row['mean_square']:.3f} = {row['mean_part']:.3f} + {row['centred_part']:.3f}")

# %%
types = split.groupby("type")[["share", "nfn", "nfn_mean", "nfn_centred"]].mean()
types.sort_values("nfn").round(2)

# %% [markdown]
# **What we saw.** The column `share` is $f$: in front of the attention more than half of the (squared) input is one direction
# that all tokens share. (The columns are means over layers, so they do not add up as the squares of one map do.) Query and key stretch this direction, and value shrinks it to a third (`nfn_mean`). With the
# direction subtracted (`nfn_centred`), the types lie much closer together, and value is not far below 1.
#
# **Before you read on:** what might such a direction be? A topic? A token that is in every text? A property of the model?

# %% [markdown]
# ## 2. The shared direction is mostly one channel
#
# *A measurement, of three models as they are stored.*
#
# **Question.** What is the direction that all tokens share?
#
# **Intuition.** A direction in a space of hundreds of channels could be spread over all of them, or lie in a single one. The
# *participation ratio* tells: $(\sum_i \mu_i^2)^2 / \sum_i \mu_i^4$ is 1 for a vector with one non-zero entry, and $n$ for
# a vector with $n$ equal ones. It is a number of channels.
#
# **What we do.** We count for the map of section 1, by hand:

# %%
square = mu.square() / mu.square().sum()
channel = square.argmax().item()
columns = W.norm(dim=0) / W.norm(dim=0).square().mean().sqrt()
print(f"participation ratio: {1 / square.square().sum():.1f} of {len(mu)} channels")
print(f"channel {channel} holds {square[channel]:.0%} of the direction's square")
print(f"it has the same sign at {(u[:, channel] * mu[channel] > 0).float().mean():.0%} of the tokens")
print(f"the value map's column for it has {columns[channel]:.2f} of the usual length")

# %% [markdown]
# One channel holds nearly all of the direction, and it is one that the value map hardly reads. In a picture, with query
# and key, which read the same input:

# %% tags=["nbval-ignore-output"]
means = mean_inputs(model, texts, tokenizer, progress=False)
links = [link for link in norm_links(model) if name in [reader.name for reader in link.readers]]
plot_channels(model, means, [reader.name for reader in links[0].readers]);

# %% [markdown]
# Is it so in every layer? `mean_channels` does the same for all maps. The table shows the median over the layers of each
# type: the participation ratio, the largest channel's share of the direction, and the relative length of the map's column
# for it.

# %%
channels = mean_channels(model, means)
columns = ["participation", "channel_share", "column"]
channels.groupby("type")[columns].median().loc[types.sort_values("nfn").index].round(2)

# %% [markdown]
# Which channel is it? Here are the most frequent ones, counted over the maps that read a norm:

# %%
behind_norms = [reader.name for link in norm_links(model) for reader in link.readers]
channels[channels["module"].isin(behind_norms)]["channel"].value_counts().head(5)

# %% [markdown]
# Five channels serve all layers: neighbouring layers share theirs. The other two models, from the [recorded](GUIDE.md#record) file, for the maps that read the attention's input. The last column counts the layers in which the map's column for the largest channel is among
# its five shortest:

# %%
attention = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "query": "q", "key": "k", "value": "v"}
stored_channels = recorded("channels.csv").query("type in @attention").replace({"type": attention})
stored_channels["among 5 shortest"] = stored_channels["column_rank"] <= 5
by_model = stored_channels.groupby(["model", "type"], sort=False)
table = by_model[["share", "participation", "channel_share", "column"]].median().round(2)
table.join(by_model["among 5 shortest"].sum()).join(by_model.size().rename("of layers"))

# %% [markdown]
# **What we saw.** In the two decoders the direction in front of the attention is two or three channels out of hundreds, and
# mostly one. The value map's column for the largest one has a sixth to a quarter of the usual length; in SmolLM2 it is one of
# the five shortest of 576 columns in 28 of 30 layers. Query and key have columns of 0.7 to 1.1 of the usual length there. In
# MiniLM, a BERT, the value maps hardly read the largest channel either; but its shared direction is weak and spread over
# eleven channels, so that it matters little to the score.
#
# (A column's relative length *is* the NFN of an input along that channel. This is the definition, no finding.)
#
# Such *outlier channels* are well known from work on [quantisation](GUIDE.md#quantisation), where they are a nuisance: a few channels are so much
# larger than all others that eight bits do not hold both. BERT has them and breaks without them
# ([Kovaleva et al. 2021](https://arxiv.org/abs/2105.06990)); in large language models the same few channels stand out in
# every layer, there from some 6.7 billion parameters on
# ([LLM.int8(), Dettmers et al. 2022](https://arxiv.org/abs/2208.07339)); one explanation is that attention heads use them to do nothing where there is nothing to do
# ([Bondarenko et al. 2023](https://arxiv.org/abs/2306.12929)).

# %% [markdown]
# ### Take the channel away
#
# *An intervention on what the maps are shown. The model itself runs unchanged.*
#
# **Question.** How much of a type's score is due to this one channel?
#
# **What we do.** We show each map its inputs without its largest channel; then without the rest of the mean direction; then
# without the whole mean direction. (That removing the direction changes the score follows from the identity of section
# 1. How *much* of the change one channel brings does not.)

# %%
removed = {
    "without the channel": leading_channels(means),
    "without the rest of the mean": other_channels(means),
    "without the mean": means,
}
scores = {"as it is": plop.nfn_scores(model, texts, tokenizer, progress=False)}
for what, directions in removed.items():
    scores[what] = nfn_without(model, texts, tokenizer, directions, progress=False)

# %%
table = pd.DataFrame({what: plop.by_type(s).set_index("type")["nfn"] for what, s in scores.items()})
if is_default:
    assert np.allclose(table.loc["v_proj"][["as it is", "without the channel"]], [0.602, 0.821], rtol=0.02)
table.round(2)

# %% [markdown]
# **What we saw.** Without that single channel the value maps score 0.82 instead of 0.60, and without the whole mean 0.89. So
# the channel is three quarters of what the mean does to them. Query is the other way round: it changes little without the
# channel (1.37 to 1.30) and falls to 0.96 without the rest. Key loses 0.17 by the one and 0.36 by the other. The same for
# the other two models, from the recorded file:

# %%
parts = recorded("channel_interventions.csv").query("type in @attention and model != @MODEL").replace({"type": attention})
parts.pivot_table(index=["model", "type"], columns="intervention", values="nfn", sort=False).round(2)

# %% [markdown]
# In Gemma value goes from 0.64 to 0.78 without the channel, and to 0.86 without the whole mean.
#
# So one channel makes up the largest part of what the shared direction does to the value maps, and 55 % (SmolLM2) or 39 %
# (Gemma) of the way from their score to 1. The model carries a loud channel at nearly every token, and value maps pass little
# of it on. The rest of the "negative alignment" is not explained by it. We did not look at Qwen3, of which the paper reports
# it; the value maps of the two Qwen2.5 models in the first figure score above 1 as stored.
#
# ### Is it the first token? Is it language? Is it learned?
#
# **Question.** Many models park attention on the first token, the *attention sink*
# ([Xiao et al. 2023](https://arxiv.org/abs/2309.17453)), whose hidden state has a few *massive* entries
# ([Sun et al. 2024](https://arxiv.org/abs/2402.17762)). Is that token the reason? And does the channel need sentences?
#
# **What we do.** We take away one thing at a time (recorded): the first token is read but not counted; all other
# tokens are shuffled; all other tokens are drawn at random from the vocabulary; the model has untrained weights. Each time the
# shared direction is measured anew. The table shows its share of the input, its NFN, and the score itself.

# %%
changed = recorded("interventions.csv").query("type in @attention").replace({"type": attention})
rows = ["model", "intervention"]
by_role = changed.pivot_table(index=rows, columns="type", values=["nfn_mean", "nfn"], sort=False)
by_role["share", ""] = changed.groupby(rows, sort=False)["share"].first()
by_role[["share", "nfn_mean", "nfn"]].round(2)

# %% [markdown]
# And is the first token loud? Here is what enters the norm: in how many layers the loudest token is the first one (in nine of
# ten texts or more), and how many times larger its largest entry is than the same entry of the other tokens (`times`, the median
# over layers), and in how many layers that entry is one of the two largest channels of the shared direction (`shared`).

# %%
loud = recorded("channels.csv").query("type in ['q_proj', 'query']")
loud = loud.assign(first=loud["loudest_is_first"] >= 0.9, times=loud["loudest_value"] / loud["other_value"])
loud["shared"] = (loud["loudest_channel"] == loud["channel"]) | (loud["loudest_channel"] == loud["second_channel"])
by_model = loud.groupby("model", sort=False)
by_model[["first", "shared"]].sum().join(by_model.size().rename("of layers")).join(by_model["times"].median().round())

# %% [markdown]
# **What we saw.**
#
# * *Not the first token.* It is the loudest in 18 of 30 layers of SmolLM2, its largest entry is about a hundred times as large
#   as the others', and mostly sits in one of the shared direction's two largest channels. But the shared direction does not come from that token: without it neither the share, nor the NFN
#   of the direction, nor the score changes by more than a few percent. It is one token of many, and a score takes only its
#   direction.
# * *Not language.* With shuffled or random tokens the decoders still stretch the direction in query and key and
#   shrink it in value.
# * *Learned.* Untrained models share a direction, too (its share is smaller in the decoders), but their maps meet it like
#   noise: its NFN is 1.

# %% [markdown]
# ## 3. Same function, other score
#
# *Identities, and what the score makes of them.*
#
# **Question.** If a score tells how well a map fits its input, would it change when the network stays the same?
#
# **Intuition.** A network is stored as numbers, and many sets of numbers compute the same. In front of query, key
# and value stands an RMSNorm, and another one in front of gate and up. It brings the hidden state to length $\sqrt n$ and
# then multiplies each channel by a learned gain $g_j$. The next map multiplies the channel by its column. Only the product of
# gain and column matters to what the network computes. The function does not tell how the product is split between the two.
#
# **What we do.** We take the first norm and move its gain into the maps that read it: column $j$ times $g_j$, and the gain
# becomes 1. First by hand:

# %%
by_hand = copy.deepcopy(model)
link = norm_links(by_hand)[0]
with torch.no_grad():
    for reader in link.readers:
        reader.weight.mul_(link.gain)  # column j times gain j
    link.module.weight.fill_(link.neutral)  # what this norm stores for a gain of 1
print(f"{link.name} feeds {[reader.type for reader in link.readers]}")

# %%
question = tokenizer(texts[0], return_tensors="pt").to(model.device)
with torch.no_grad():
    before, after = (m(**question).logits for m in (model, by_hand))
print(f"largest logit: {before.abs().max():.1f}; largest difference: {(after - before).abs().max():.2f}")

# %% [markdown]
# On this question the [logits](GUIDE.md#logit) are the same up to rounding, and by the algebra on every other. `plop.fold_norms` does it for
# every norm. It does not know the names of layers: it runs the model and looks what reads each norm, and refuses where
# something else than a linear map does.

# %%
folded = plop.fold_norms(model)
with torch.no_grad():
    after = folded(**question).logits
assert torch.allclose(after, before, atol=1e-2)
print(f"largest logit: {before.abs().max():.1f}; largest difference: {(after - before).abs().max():.2f}")

# %% [markdown]
# How uneven are the gains that have moved? Smallest, median and largest absolute value, median over the layers:

# %%
norm_table(model).groupby("readers")[["smallest", "median", "largest"]].median().round(2)

# %% [markdown]
# **Predict:** which of the seven types will score differently in the folded model? Which will not?
#
# <details><summary>Answer</summary>
#
# Query, key, value, gate and up read a norm, so both their inputs and their columns change. Output and down read no norm:
# their scores stay.
#
# </details>

# %%
in_folded = plop.nfn_scores(folded, texts, tokenizer, progress=False)
two = {"stored": scores["as it is"], "folded": in_folded}
pd.DataFrame({form: plop.by_type(s).set_index("type")["nfn"] for form, s in two.items()}).round(2)

# %%
for form, s in two.items():
    print(f"{form}: adapters on {', '.join(plop.place(s, k=K).types)}")

# %% [markdown]
# **What we saw.** The same function gets another placement: PLoP now asks for gate instead of down. (Gate moves the most, from
# 1.26 to 0.81.)
#
# You need no copy to see it: `form="folded"` scores the maps as if the gains had been folded.

# %%
without_copy = plop.nfn_scores(model, texts, tokenizer, form="folded", progress=False)
assert np.allclose(without_copy["nfn"], in_folded["nfn"], rtol=1e-4)
print(f"largest relative difference of two scores: {(without_copy['nfn'] / in_folded['nfn'] - 1).abs().max():.4f}")

# %% [markdown]
# ### Two more moves
#
# Gains are not the only freedom. In a gated MLP the output of `up` is multiplied entry by entry with another vector and
# then read by `down`, so a row of up can be scaled if the matching column of down is scaled back. And between value and
# output, each head can be mixed by any invertible matrix $M$ if output undoes it: $W_v \to M W_v$, $W_o \to W_o M^{-1}$,
# because attention only averages values over tokens. `pair_links` finds such pairs by running the model:

# %%
pairs = pair_links(model)
kinds = {(pair.writer.type, pair.reader.type, pair.head) for pair in pairs}
for writer, reader, head in sorted(kinds):
    print(f"{writer} and {reader}:", f"heads of {head} rows can be mixed" if head else "rows can be scaled")

# %%
generator = torch.Generator().manual_seed(0)
factors, matrices = {}, {}
for pair in pairs:
    rows, head, writer = pair.writer.shape[0], pair.head, pair.writer.name
    if head:
        matrices[writer] = torch.randn(rows // head, head, head, generator=generator)
    else:
        factors[writer] = torch.randn(rows, generator=generator).exp()
scaled, mixed = moves.scale_neurons(model, factors), moves.mix_heads(model, matrices)

# %%
for what, other in {"neurons scaled at random": scaled, "heads mixed at random": mixed}.items():
    with torch.no_grad():
        difference = (other(**question).logits - before).abs().max().item()
    print(f"{what}: largest difference of the logits {difference:.2f}")
    two[what] = plop.nfn_scores(other, texts, tokenizer, progress=False)
pd.DataFrame({form: plop.by_type(s).set_index("type")["nfn"] for form, s in two.items()}).round(2)

# %% [markdown]
# **What we saw.** Down falls from 1.04 to 0.16 and output from 1.18 to 0.04, while up and value keep their scores. Random factors
# on the rows of up multiply its outputs and its weight by nearly the same. But down now reads inputs that a few loud neurons
# dominate, through columns that are short exactly there; and so does output, by whole directions of its heads.
#
# How far can it be pushed? For each type of SmolLM2 the recorded table gives the highest and the lowest score that we *found*,
# with one kind of move at a time, beginning with folded gains. The moves: *gains* of a norm against the maps' columns; *rows* of
# up or value against *columns* of down or output; and, in query against key, whole *heads* or *rotary pairs* (the two rows that
# a position's angle turns together). `balanced` makes both sides equally large; `one channel` makes one channel a hundred
# times louder than the others and its columns a hundred times shorter.

# %%
limits = recorded("form_limits.csv").query("limit != 'bound'")
limits = limits.pivot(index=["type", "move"], columns="limit", values="nfn").round(2)
limits[["folded", "balanced", "largest", "smallest", "one channel"]].astype(object).fillna("")

# %% [markdown]
# **What we saw.** Every type can be brought above 1, and well below. The stored score is one of many that this function could
# have.
#
# ### What of section 2 survives?
#
# Section 2 looked at the stored weights. The same measurements in the folded model, live:

# %%
columns = ["share", "nfn_mean", "nfn_centred"]
folded_split = plop.mean_split(folded, texts, tokenizer, progress=False).groupby("type")[columns].mean()
both_forms = pd.concat({"stored": types[columns], "folded": folded_split}, axis=1)
both_forms.loc[types.sort_values("nfn").index].round(2)

# %%
folded_channels = mean_channels(folded, mean_inputs(folded, texts, tokenizer, progress=False))
columns, medians = ["participation", "channel_share", "column"], {}
for form, table in {"stored": channels, "folded": folded_channels}.items():
    medians[form] = table.groupby("type")[columns].median()
pd.concat(medians, axis=1).loc[types.sort_values("nfn").index].round(2)

# %% [markdown]
# **What we saw.** In both forms value hardly reads the loudest channel and shrinks the shared direction to a third, while query
# and key stretch it. In both, the differences between tokens alone (`nfn_centred`) leave the types close together. But
# *how* loud the channel is, and what gate does with the direction (stretch it as stored, shrink it when folded), belongs
# to the form.
#
# ### A form to agree on
#
# A score that is to be compared between models needs a convention. We propose one: gains are 1, and of all ways to scale up
# against down, and to mix value against output, we take the one with the least sum of squares $\|W_1\|_F^2 + \|W_2\|_F^2$,
# that is the least penalty by [weight decay](GUIDE.md#decay). It needs no texts, and for these four types it is unique as far as NFN can see. A
# row of up and its column of down are then equally long; value and output are $\sqrt S V^T$ and $U \sqrt S$ of the singular
# value decomposition $U S V^T$ of their product in each head. One freedom stays as it is stored, that between query and key: the
# rows `rotary pairs` above show that it could put either anywhere from 0.5 to 4.5, and that balancing it as well would move
# them by 2 to 4 percent (`balanced`).

# %%
canonical = plop.nfn_scores(model, texts, tokenizer, form="canonical", progress=False)
for other in (scaled, mixed):
    moved = plop.nfn_scores(other, texts, tokenizer, form="canonical", progress=False)
    assert np.allclose(canonical["nfn"], moved["nfn"], rtol=1e-3)
print(f"canonical: adapters on {', '.join(plop.place(canonical, k=K).types)}")

# %% [markdown]
# The scaled and the mixed model have the canonical scores of the stored one, as they must. What does the canonical form choose,
# on all models and domains at hand (math, code, logic, history)? The table shows the three lowest types; a cell would hold
# several sets if domains differed.


# %%
def lowest(values):
    """The K types with the lowest values, in alphabetical order."""
    names = values.nsmallest(K).index.get_level_values("type")
    return ", ".join(sorted(name.removesuffix("_proj") for name in names))


rows = recorded("form_scores.csv").query("model != 'minilm'")
rows["median"] = rows["median"].fillna(rows["nfn"])  # the Qwens are recorded by type, with the median over their layers

# %%
cases = ["model", "form", "domain"]
scores_by_type = rows.groupby([*cases, "type"], sort=False).agg({"nfn": "mean", "median": "median"})
by_mean = scores_by_type["nfn"].groupby(cases, sort=False).apply(lowest)
by_mean.unstack("domain").agg(lambda sets: " | ".join(sets.unique()), axis=1).unstack("form")[["stored", "folded", "canonical"]]

# %% [markdown]
# **What we saw.** The domain never changes a choice. The form changes it in three of the four models. In the folded and the
# canonical form the two sizes of Qwen2.5-Coder get the same three types; as stored they do not.
#
# A second way to ask for steadiness: a type's score is a mean over its layers. Would the median choose the same? The table
# counts pairs of a model and a domain, 16 for each form:

# %%
by_median = scores_by_type["median"].groupby(cases, sort=False).apply(lowest)
same_choice = (by_mean == by_median).groupby("form", sort=False).agg(["sum", "size"])
same_choice.set_axis(["same choice", "of"], axis=1)

# %% [markdown]
# **What we saw.** As stored, mean and median disagree in ten of 16 cases: the third and the fourth type are close, and a few
# layers pull a mean (in SmolLM2 some output maps score 2.6 and 3.5). With the gains folded the third type stands clear of the
# fourth, and mean and median never disagree.
#
# So the folded form decides more clearly. Three warnings. Canonical and folded choose the same three types in all these
# cases, so the further step brings nothing here. In Gemma the five types behind a norm fall to between a sixth and
# a fifteenth; we think because its gains turn loud channels down, which is not shown here. A form that undoes this makes
# the score even more a matter of loud channels. And four models of three families are few; a clearer choice need not be a
# better one. What trains better is another question.

# %% [markdown]
# ## 4. The test: does the best placement move with the score?
#
# *An experiment with a control.*
#
# **Question.** Is a low NFN the *reason* why adapters train well somewhere? A comparison of value with query cannot tell,
# because the two differ in everything, not only in their scores. But now we can change the scores and keep the function. (Not
# everything else: the optimiser works in the stored coordinates. We come back to it.)
#
# **What we do.** We write SmolLM2 in two forms, neither of which is the published one. In the form *attention low* the loud
# channels in front of query, key and value are made louder, by the square root of their size, and the maps' columns
# shorter; in front of gate and up, and in front of down, it is done the other way round. In the form *MLP low* all of this is
# reversed. Each map's mean squared input is kept, as far as factors that are powers of two allow, so that the two forms
# compute the same function bit by bit: their untrained losses are equal (4.30 on the first task, 11.68 on the second). PLoP
# chooses query, key and value in the first form, and gate, up and down in the second. These are the scores on texts of the
# two tasks, with the published form beside them:

# %%
in_forms = recorded("forms_nfn.csv").query("form in ['attention low', 'MLP low']")
table = in_forms.pivot_table(index="type", columns=["task", "form"], values="nfn", sort=False)
table["math", "published"] = plop.by_type(two["stored"]).set_index("type")["nfn"]
table.round(2)

# %% [markdown]
# Both placements are trained in both forms, with LoRA adapters of equal size. The tasks are *short sums* ("23 - 91 =") and
# *spelling* words backwards. Each of the four cells of a task has its own [learning rate](GUIDE.md#rate), the best of five or more on
# validation examples with three tuning seeds; then eight other [seeds](GUIDE.md#seed) train at that rate, with batches of eight texts, and
# are judged by the loss on test examples. A seed means the same order of texts and the same initial adapters in both forms.

# %%
runs = recorded("forms.csv").query("model == 'SmolLM2-135M-Instruct' and split == 'test'")
runs = runs[runs["form"].isin(["attention low", "MLP low"])]
runs.groupby(["task", "form", "chosen_by"], sort=False)[["types", "r", "parameters", "lr", "steps"]].first()

# %% [markdown]
# *How much could we see?* We wrote this down before the test runs, from the tuning runs: the smallest advantage of a form's
# own choice (defined below) that eight seeds find four times out of five in a 95 % interval, in [nats](GUIDE.md#nat) per token. It rests on
# three tuning seeds, so it is rough.

# %%
power = recorded("forms_power.csv").query("pair == 'reversed'").set_index("task")
(power["detectable_paired"] / 2).round(3).rename("detectable").to_frame()

# %% [markdown]
# **Predict:** what do the two placements' losses look like, from one form to the other, if the score decides? If it is one cause
# among others? If it is none?
#
# <details><summary>Answer</summary>
#
# If the score alone decides, the best placement changes with it: the lines in the figure cross. If it is one cause among others,
# each placement gains where its scores are low: the lines tilt towards crossing. If it is none, and nothing else depends on
# the form, they are parallel.
#
# </details>

# %% tags=["nbval-ignore-output"]
plot_crossing(runs);

# %% [markdown]
# One number answers the question, the *advantage of one's own choice*: how much lower is the loss where adapters go to what
# the scores of *this* form choose than where they go to what the scores of the *other* form choose, on average over the two
# forms? What the placements are worth as such, and what the forms are worth as such, cancels in it. The intervals are over
# the eight seeds, at 97.5 % for each of two tasks, so that both hold together at 95 %.

# %%
def own_choice(task):
    """The advantage of each seed: positive if the placements' difference moves with the score."""
    loss = task.pivot(index="seed", columns=["form", "chosen_by"], values="loss")
    a, b = "attention low", "MLP low"
    return ((loss[a, b] - loss[a, a]) + (loss[b, a] - loss[b, b])) / 2


advantage = {task: plop.mean_interval(own_choice(part), level=0.975) for task, part in runs.groupby("task")}
pd.DataFrame(advantage, index=["advantage", "low", "high"]).T.round(3)

# %% [markdown]
# **What we saw.** Gate, up and down have the lower mean loss in both forms of both tasks, also where PLoP chooses query, key and
# value: the lines do not cross. Their lead moved with the scores on spelling: the advantage is +0.09, from +0.02 to
# +0.15 (a lead of 0.11 in the form *attention low*, and of 0.29 in the form *MLP low*). On short sums we do not see it
# move: -0.03, from -0.08 to +0.03. The interval there reaches 0.05 to either side, more than was planned for, so that a small
# advantage would be missed.
#
# **Which placement moves?** The advantage is the mean of two comparisons, one for each placement: its loss in the form where its
# scores are high, minus its loss in the form where they are low. Here nothing differs but the form, and the learning rate
# tuned for it: the same maps of the same function get adapters of the same size. If a low score helps, all four numbers
# are positive. (Intervals at 98.75 %, for four comparisons.)

# %%
def where_low(part):
    """Loss where the placement's scores are high, minus loss where they are low, for each seed."""
    loss = part.pivot(index="seed", columns="form", values="loss")
    low = part["chosen_by"].iloc[0]
    return loss.drop(columns=low).iloc[:, 0] - loss[low]


cells = runs.groupby(["task", "types"], sort=False)
gain = {key: plop.mean_interval(where_low(part), level=0.9875) for key, part in cells}
pd.DataFrame(gain, index=["gain where low", "low", "high"]).T.round(3)

# %% [markdown]
# **What we saw.** One of four is surely positive: on spelling, gate, up and down train better where their scores are low (by
# 0.21). On short sums no difference is seen for them (within 0.05). For query, key and value we see no gain where their scores
# are low (-0.06 and -0.03), but the intervals allow up to 0.04 and 0.13.
#
# **And Adam?** LoRA is not blind to the form: [Adam](GUIDE.md#adam) takes steps of equal size in the coordinates of the stored inputs, and
# begins from random matrices in them. So the form can change training without any help from NFN, and this experiment does
# not tell how much of the 0.21 is the score's and how much is Adam's own. Look at the rates. Here are the tuning losses of
# gate, up and down on spelling in the two forms (three seeds each):

# %%
tuning = recorded("forms.csv").query("task == 'spelling' and split == 'validation' and chosen_by == 'MLP low'")
tuning.pivot_table(index="lr", columns="form", values="loss", aggfunc="mean").round(2)

# %% [markdown]
# Up to 0.002 the two forms train nearly alike. The form *MLP low* is best at 0.004, where the form *attention low* gains nothing
# any more: it seems to bear larger steps. Steps in stored coordinates are Adam's, so this may be Adam's part of the 0.21; three
# seeds do not prove it.
#
# So the experiment does not isolate the score, and cannot acquit it either. What it shows is this: to lower a placement's
# scores did not make it the better of the two.

# %% [markdown]
# ## 5. What to believe
#
# | statement | what it is |
# |---|---|
# | NFN² splits into what becomes of the shared direction and of the rest (section 1) | identity: true of every matrix and every text |
# | gains, rows and heads can be moved, and the network stays the same (section 3) | identity |
# | in front of the attention the shared direction is two or three channels, mostly one as stored, and value maps hardly read it (section 2) | measured in two decoders; in a third model, a BERT, the direction is weak |
# | one channel is much of why value maps score below 1 | measured, by showing the maps their inputs without it: 55 % of the way to 1 in SmolLM2, 39 % in Gemma |
# | which types are lowest depends on the form that the function is stored in (section 3) | measured in the decoders at hand |
# | a low NFN is the reason why adapters train better there (section 4) | not supported: in one experiment of two tasks the better placement stays the same; its lead moves with the score in one of them, and the form changes Adam's steps as well as the score |
#
# **Three things to remember.**
#
# 1. NFN is a property of the stored weights, not of the function that they compute: it depends on how loudly each channel is
#    stored.
# 2. In two decoders much of the value maps' low score is about one loud channel, which is there with random tokens, too.
# 3. A low score that we make ourselves does not make a placement the best one. NFN may still point to good places in models as
#    they are published: that is a correlation, and notebook 05 looks at it.
#
# **Not established.** How it comes about in training that value maps hardly read the channel. How much of the move on
# spelling is NFN's and how much is Adam's. How the channel and the scores look in models above 1.5 billion parameters. What the test would say of other models, longer training, other optimisers, or the
# milder pair of forms *stored* and *folded* (`record_forms.py --pair folded` trains it).
#
# **Where next.** Notebook 05 asks what placements are worth when they are trained as they come; notebook 03 shows the
# profiles of several models.

# %% [markdown]
# ## Exercises
#
# Each has a cell to fill in and a check. The solutions are in the collapsed cell below each check.
#
# ### 1. Same product, any score (10 minutes)
#
# Let `z` be the first unit vector of eight. Find two pairs of 8 × 8 matrices, `(A, B)` and `(C, D)`, with `B @ A` equal to
# `D @ C`, so that `A` has NFN 2 and `C` has NFN 0.5 for this input. *Hint:* begin with two identity matrices and scale rows of
# one against columns of the other.

# %%
z = torch.eye(8)[0]
A = B = C = D = None  # your turn


# %%
def nfn(W, z):
    return ((W @ z).norm() / (z.norm() * W.norm() / len(z) ** 0.5)).item()


def check_pairs(A, B, C, D):
    if A is None:
        return "not yet filled in"
    assert torch.allclose(B @ A, D @ C, atol=1e-5), "the products differ"
    assert abs(nfn(A, z) - 2) < 0.01 and abs(nfn(C, z) - 0.5) < 0.01, "other scores than asked for"
    return f"one product, NFN {nfn(A, z):.2f} and {nfn(C, z):.2f}"


check_pairs(A, B, C, D)

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution. With A = diag(s, 1, ..., 1), NFN² = 8 s² / (s² + 7): 4 for s² = 7, and 1/4 for s² = 7/31.
def pair(s):
    scale = torch.ones(8)
    scale[0] = s
    return torch.diag(scale), torch.diag(1 / scale)


solved = check_pairs(*pair(7**0.5), *pair((7 / 31) ** 0.5))
assert solved == "one product, NFN 2.00 and 0.50"
solved

# %% [markdown]
# ### 2. Which way is the column? (10 minutes)
#
# Before you compute anything, predict: in the *folded* model, is the loudest channel of the input of layer 15's gate map a larger
# or a smaller part of the shared direction than in the table of medians in section 3, and is gate's column for it short?
# Then compute the largest channel of its mean direction (`mean_inputs(folded, ...)` gives it), its share of the direction's
# square, and the relative length of gate's column for it.

# %%
gate = "model.layers.15.mlp.gate_proj"  # of the default model
channel = share = column = None  # your turn


# %%
def check_channel(channel, share, column):
    if channel is None:
        return "not yet filled in"
    row = folded_channels.set_index("module").loc[gate]
    assert channel == row["channel"], "another channel is larger"
    assert np.allclose([share, column], row[["channel_share", "column"]].tolist(), atol=0.01)
    return f"channel {channel}: {share:.0%} of the direction, column {column:.2f}"


check_channel(channel, share, column)

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution.
mean = mean_inputs(folded, texts, tokenizer, progress=False)[gate]
square = mean.square() / mean.square().sum()
lengths = folded.get_submodule(gate).weight.detach().float().norm(dim=0).cpu()
best = square.argmax().item()
check_channel(best, square[best].item(), (lengths[best] / lengths.square().mean().sqrt()).item())

# %% [markdown]
# ### 3. Fold a norm yourself (15 minutes)
#
# A LayerNorm has a gain *and* a shift: $z = g \odot n + s$. The norm `plain` has neither. Find a `Linear(16, 4)`, called `yours`,
# so that `yours(plain(x))` equals `linear(norm(x))` for every `x`. *Hint:* where does $W s$ go?

# %%
torch.manual_seed(0)
norm, plain = torch.nn.LayerNorm(16), torch.nn.LayerNorm(16, elementwise_affine=False)
torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)
linear = torch.nn.Linear(16, 4)
yours = None  # your turn: a Linear(16, 4) to stand behind `plain`


# %%
def check_fold(yours):
    if yours is None:
        return "not yet filled in"
    x = torch.randn(100, 16)
    difference = (yours(plain(x)) - linear(norm(x))).abs().max().item()
    assert difference < 1e-5, f"they differ by {difference:.2f}"
    return f"largest difference over 100 inputs: {difference:.3f}"


check_fold(yours)

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution: W (g * n + s) + b = (W diag(g)) n + (W s + b).
by_gain = torch.nn.Linear(16, 4)
with torch.no_grad():
    by_gain.weight.copy_(linear.weight * norm.weight)
    by_gain.bias.copy_(linear.weight @ norm.bias + linear.bias)
check_fold(by_gain)
