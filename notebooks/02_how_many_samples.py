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
# # How many samples?
#
# The paper scores 200 texts and reports no error bars. How sure is a score, a ranking, a placement? This notebook
# measures it, checks that the intervals it reports are honest, and ends with a rule that stops scoring when the
# placement is decided.
#
# Live: 24 texts of each of four domains. Recorded with the same code (`python notebooks/tools/record.py texts`): up to 500.

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
MODEL = None  # None: SmolLM2-135M-Instruct; else a Hub id or a folder (the recorded figures are SmolLM2's)
DOMAINS = ["math", "code", "logic", "history"]
TEXTS = 24  # of each domain, live
REPLAYS = 500  # simulated repetitions
K = 3  # how many module types get adapters
SURE = 0.99  # of the placement

# %% tags=["nbval-ignore-output"]
import time
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from scipy.stats import t as student

from plop_nb.stats import StoppingRule, lowest, per_text, swaps, type_means
from plop_nb.texts import data_file

model, tokenizer = plop.load_model(MODEL)
texts = {domain: plop.load_texts(domain, n=TEXTS) for domain in DOMAINS}
live = {domain: plop.nfn_scores(model, texts[domain], tokenizer) for domain in DOMAINS}

# %% [markdown]
# ## One number per text
#
# A text's score of a type is the mean over the type's modules. `per_text` gives the table: one row per text, one
# column per type. All types of a text stand in one row because they rise and fall *together*: a comparison of types has to
# keep the pairs.

# %%
per_text(live["math"]).head(4).round(3)

# %% [markdown]
# The recorded pool has the same table for more texts. It is what this machine gets, too:

# %%
recorded = pd.read_csv(data_file("results/texts.csv"), comment="#").set_index(["domain", "sample"])
types = type_means(live["math"]).index.tolist()
pool = {domain: recorded.loc[domain, types].rename_axis(columns="type") for domain in DOMAINS}
if MODEL is None:
    both = per_text(live["math"])[types] / pool["math"].head(TEXTS)
    assert (both - 1).abs().max(axis=None) < 0.01
print({domain: len(table) for domain, table in pool.items()}, "texts recorded")

# %% [markdown]
# Every dot is one text. Types are further apart than texts:

# %% tags=["picture"]
dots = pd.concat([table.melt(value_name="nfn").assign(domain=domain) for domain, table in pool.items()])
fig, ax = plt.subplots(figsize=(8, 4.2), layout="constrained")
sns.stripplot(
    dots, x="nfn", y="type", hue="domain", order=types, dodge=True, size=2, alpha=0.5, palette="colorblind", ax=ax
)
ax.axvline(1, color="0.15", lw=1, ls="--", zorder=0)
ax.set(xlabel="NFN of one text (1 = random input)", ylabel="", title="One text tells the ranking")
sns.move_legend(ax, "upper right", title="", markerscale=4, frameon=False)
sns.despine()

# %% [markdown]
# ## The standard error of a score
#
# From 24 texts a type's score is known to a fraction of a percent, while neighbours in the ranking are several percent
# apart:

# %%
spread = pd.DataFrame({domain: 100 * table.std() / table.mean() for domain, table in pool.items()})
error = spread / np.sqrt(24)
gaps = 100 * (type_means(pool["math"]).diff() / type_means(pool["math"])).rename("gap to the one below (math)")
assert error.max(axis=None) < 1 and gaps.min() > 5
error.round(2).join(gaps.round(1))

# %% [markdown]
# Does the error fall as $1/\sqrt N$? Only if texts are independent draws. So cut the recorded texts into separate blocks
# of N, in the order they came, and look at how the block means vary:

# %%
SIZES = [1, 2, 4, 8, 16, 32]
def blocks(table, n):
    return table.groupby(np.arange(len(table)) // n).mean()[: len(table) // n]

rows = [
    {"domain": domain, "texts": n, "variance": (blocks(table, n).var() / table.mean() ** 2).mean()}
    for domain, table in pool.items()
    for n in SIZES
]
variances = pd.DataFrame(rows)

# %%
def slope(part):
    return np.polyfit(np.log(part["texts"]), np.log(part["variance"]), 1)[0]

slopes = variances.groupby("domain")[["texts", "variance"]].apply(slope)
assert slopes.between(-1.4, -0.7).all()
print(f"slope of log variance against log N (independent texts: -1): {slopes.round(2).to_dict()}")

# %%
fig, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
sns.lineplot(variances, x="texts", y="variance", hue="domain", marker="o", palette="colorblind", ax=ax)
guide = variances.query("texts == 1")["variance"].max() / np.array(SIZES)
ax.plot(SIZES, 2 * guide, color="0.5", ls=":", label="slope -1")
ax.set(xscale="log", yscale="log", xlabel="texts N", ylabel="relative variance of the mean")
ax.set_xticks(SIZES, SIZES)
ax.minorticks_off()
ax.set_title("Four times the texts, half the error", loc="left")
ax.legend(frameon=False)
sns.despine()

# %% [markdown]
# ## Is the interval honest?
#
# `by_type` gives a 95 % interval: Student's t over texts. The usual percentile bootstrap, which resamples the texts
# with replacement, is too narrow for few of them. Take the pool's mean for the truth, draw N texts again and again, and
# count how often the interval holds it:


# %%
def covered(truth, low, high):
    """Share of replays whose interval holds the truth, per type."""
    return ((low <= truth) & (truth <= high)).mean(axis=0)


def t_interval(draws, level=0.95):
    """(replays, texts, types) -> bounds; what `by_type` computes."""
    n = draws.shape[1]
    half = student.ppf((1 + level) / 2, n - 1) * draws.std(axis=1, ddof=1) / np.sqrt(n)
    return draws.mean(axis=1) - half, draws.mean(axis=1) + half


# %%
one = per_text(live["math"]).to_numpy()[None]
by_hand = pd.DataFrame(np.concatenate(t_interval(one)).T, columns=["low", "high"]).sort_values("low", ignore_index=True)
by_package = plop.by_type(live["math"])[["low", "high"]].sort_values("low", ignore_index=True)
assert np.allclose(by_hand, by_package)
by_package.round(3)


# %%
def percentile_interval(draws, generator, resamples=300):
    """The same by resampling the texts of every replay."""
    n = draws.shape[1]
    weights = generator.multinomial(n, np.full(n, 1 / n), size=resamples) / n
    return np.percentile(np.einsum("bn,rnt->brt", weights, draws), [2.5, 97.5], axis=0)


# %%
generator, parts = np.random.default_rng(0), []
for domain, table in pool.items():
    for n in (5, 10, 20, 50):
        draws = table.to_numpy()[generator.integers(len(table), size=(REPLAYS, n))]
        bounds = {"t": t_interval(draws), "percentile": percentile_interval(draws[:300], generator)}
        for kind, (low, high) in bounds.items():
            shares = covered(table.mean().to_numpy(), low, high)
            parts.append(pd.DataFrame({"interval": kind, "texts": n, "domain": domain, "coverage": shares}))
coverage = pd.concat(parts, ignore_index=True)

# %%
summary = coverage.pivot_table(index="interval", columns="texts", values="coverage", aggfunc=["mean", "min"])
assert coverage.query("interval == 't'")["coverage"].between(0.90, 0.99).all()
assert summary.loc["percentile", ("mean", 5)] < 0.90
summary.round(2)

# %% [markdown]
# ## When is the placement decided?
#
# How often do N random texts choose the same $K$ types as the whole pool?

# %%
rows = []
for domain, table in pool.items():
    right = set(lowest(table, K))
    for n in (1, 2, 4, 8, 16):
        draws = [set(table.sample(n, random_state=seed).mean().nsmallest(K).index) for seed in range(300)]
        rows.append({"domain": domain, "texts": n, "agrees": np.mean([draw == right for draw in draws])})
agreement = pd.DataFrame(rows)

# %%
decided = agreement.query("agrees >= @SURE").groupby("domain")["texts"].min()
assert (decided.reindex(DOMAINS) <= 8).all()
print(f"texts until {SURE:.0%} of draws choose the pool's {K} types: {decided[DOMAINS].to_dict()}")

# %% [markdown]
# One text is enough, then. Is it so for each recorded text, and for the order of all types?

# %%
alone = {}
for domain, table in pool.items():
    ranking = type_means(table).index.tolist()
    orders = [row.sort_values().index.tolist() for _, row in table.iterrows()]
    same = {"placement": [set(o[:K]) == set(ranking[:K]) for o in orders], "ranking": [o == ranking for o in orders]}
    alone[domain] = {what: np.mean(agree) for what, agree in same.items()}
alone = pd.DataFrame(alone).T
assert MODEL or (alone == 1).all(axis=None)
alone

# %% [markdown]
# How much of a text does it take? Take one text's first tokens only. Texts that are cut this short are often the
# same, and `by_type` would count such copies once, so the means are taken by hand:

# %%
rows = []
for domain, table in pool.items():
    for length in (1, 2, 4, 8, 16, 32):
        scores = plop.nfn_scores(model, texts[domain], tokenizer, max_length=length)
        found = scores.groupby(["sample", "type"])["nfn"].mean().unstack()
        same = [set(row.nsmallest(K).index) == set(lowest(table, K)) for _, row in found.iterrows()]
        rows.append({"domain": domain, "tokens": length, "agrees": np.mean(same)})
tokens_needed = pd.DataFrame(rows)
assert (tokens_needed.query("tokens >= 16")["agrees"] == 1).all()
tokens_needed.pivot(index="domain", columns="tokens", values="agrees").round(2)

# %%
fig, ax = plt.subplots(figsize=(6, 3.4), layout="constrained")
sns.lineplot(tokens_needed, x="tokens", y="agrees", hue="domain", marker="o", palette="colorblind", ax=ax)
ax.axhline(SURE, color="0.5", ls=":")
ax.set(xscale="log", ylim=(-0.03, 1.05), xlabel="first tokens of a single text", ylabel="texts that agree with the pool")
ax.set_xticks([1, 2, 4, 8, 16, 32], [1, 2, 4, 8, 16, 32])
ax.minorticks_off()
ax.set_title("A few tokens of one text choose the placement", loc="left")
ax.legend(frameon=False)
sns.despine()

# %% [markdown]
# ## Stopping when it is decided
#
# Nobody knows the pool beforehand. `nfn_scores(..., stop=0.99)` looks at 8, 16, 32, ... texts and stops when every
# chosen type lies below every other by a paired t-test. Looking again and again would inflate the error, so each look
# has a share of the 1 % only: half at the first, a sixth at the second, ..., and each share is split over the pairs of
# types.

# %%
scores = plop.nfn_scores(model, texts["math"], tokenizer, stop=SURE, k=K)
placement = plop.place(scores, k=K)
assert scores["sample"].nunique() == 8 and set(placement.types) == set(lowest(pool["math"], K))
placement

# %% [markdown]
# Is its error rate what it says? Replay it on the pools, and on constructed near-ties, in which the worst chosen type
# and the best other one are moved to a small relative distance. A replay errs if it stops with another set than the
# whole pool has; it is undecided if it runs out of texts.


# %%
def replay(table, seed):
    """(texts used, the set it chose or None) of one run over the pool in random order."""
    order, rule = table.sample(frac=1, random_state=seed).rename_axis(columns="type"), StoppingRule(SURE, K)
    while rule.next <= len(order):
        part = order.head(rule.next)
        if rule.decided(part):
            return len(part), set(lowest(part, K))
    return len(order), None


def moved(table, gap):
    """The pool with its K-th and next type this far apart, relative to the K-th."""
    worst, best = type_means(table).index[K - 1 : K + 1]
    onto = table[best] * (1 + gap) * table[worst].mean() / table[best].mean()
    return table.assign(**{best: onto}).rename_axis(columns="type")


# %%
cases = pool | {f"math, {gap:.2%} apart": moved(pool["math"], gap) for gap in (0.03, 0.01, 0.003, 0.0001)}
rows = []
for case, table in cases.items():
    right = set(lowest(table, K))
    for used, chosen in (replay(table, seed) for seed in range(REPLAYS // 2)):
        rows.append({"case": case, "texts": used, "error": chosen not in (None, right), "undecided": chosen is None})
replays = pd.DataFrame(rows).groupby("case", sort=False).agg({"texts": "median", "error": "mean", "undecided": "mean"})
assert (replays["error"] <= 0.01).all()
replays

# %% [markdown]
# ## What it saves
#
# The paper's 200 texts against the rule, on this machine:

# %% tags=["nbval-ignore-output"]
many = plop.load_texts("math", n=200)
start = time.perf_counter()
all_200 = plop.nfn_scores(model, many, tokenizer)
middle = time.perf_counter()
stopped = plop.nfn_scores(model, many, tokenizer, stop=SURE, k=K)
seconds = {"200 texts": middle - start, "until decided": time.perf_counter() - middle}
times = seconds["200 texts"] / seconds["until decided"]
print({name: f"{s:.1f} s" for name, s in seconds.items()}, f"{times:.0f} times faster")

# %%
scored = stopped["sample"].nunique()
assert lowest(all_200, K) == lowest(stopped, K) and scored < 200 / 5
print(f"same placement: {lowest(stopped, K)}, from {scored} texts instead of 200")

# %% [markdown]
# ## How long must a text be?
#
# Four documents of 512 tokens for two domains, made by joining texts, cut to 16, 32, ..., 512 tokens:

# %%
LENGTHS = [16, 32, 64, 128, 256, 512]
parts = []
for domain in ("math", "code"):
    ids = [i for text in texts[domain] for i in tokenizer(text)["input_ids"]]
    while len(ids) < 4 * 512:
        ids = ids + ids
    documents = torch.tensor(ids[: 4 * 512]).reshape(4, 512)
    for length in LENGTHS:
        found = plop.nfn_scores(model, [{"input_ids": documents[:, :length]}])
        parts.append(plop.by_type(found).assign(domain=domain, length=length))
lengths = pd.concat(parts, ignore_index=True)

# %%
grid = sns.relplot(
    lengths, x="length", y="nfn", hue="type", hue_order=types, col="domain", kind="line", marker="o", height=3.4,
    palette="colorblind",
)
grid.set(xscale="log", xlabel="tokens of each text", ylabel="NFN").set_titles("{col_name}")
grid.refline(y=1, color="0.15", ls="--")
for ax in grid.axes.flat:
    ax.set_xticks(LENGTHS, LENGTHS)
    ax.minorticks_off()

# %%
chosen = lengths.sort_values("nfn").groupby(["domain", "length"])["type"].apply(lambda t: ", ".join(sorted(t[:K])))
change = lengths.pivot_table(index="type", columns="length", values="nfn")
assert MODEL or chosen.nunique() == 1
print(chosen.groupby("domain").nunique().to_dict(), "different placements over all lengths")
(change / change[[512]].to_numpy()).loc[types].round(2)

# %% [markdown]
# ## Batch size and padding have no effect
#
# Padding is masked out and never moves a real token.

# %%
few, tables = texts["math"][:12], {}
for size in (1, 4, 12):
    tables[f"batch {size}"] = plop.nfn_scores(model, few, tokenizer, batch_size=size)["nfn"]
tokenizer.pad_token, tokenizer.padding_side = tokenizer.pad_token or tokenizer.eos_token, "left"
left = dict(tokenizer(few, padding=True, return_tensors="pt"))
tables["padded on the left"] = plop.nfn_scores(model, [left])["nfn"]
largest = (pd.DataFrame(tables).div(tables["batch 1"], axis=0) - 1).abs().max()
assert largest.max() < 1e-3
print("largest change of any module's score on any text is below 0.1 %:", largest.lt(1e-3).to_dict())

# %% [markdown]
# ## Random baseline: draws against the closed form
#
# The paper divides by the norms of drawn noise. One draw per token is a noisy divisor for maps of small effective rank
# $r = \|W\|_F^4 / \|W^\top W\|_F^2$; the mean over draws lies below the root mean square by
# $\frac14(\frac1r - \frac1{\mathrm{inputs}})$. The closed form needs no draws.


# %%
def noise(name, draws=2000):
    """Effective rank, spread of one draw, and the gap between mean and root mean square."""
    W = model.get_submodule(name).weight.detach().float()
    u = torch.randn(W.shape[1], draws, generator=torch.Generator().manual_seed(0)).to(W.device)
    norms = (W @ (u / u.norm(dim=0))).norm(dim=0)
    rms = W.norm() / W.shape[1] ** 0.5
    rank = (W.norm() ** 4 / (W.T @ W).norm() ** 2).item()
    gap = (1 - norms.mean() / rms).item()
    spread = (norms.std() / rms).item()
    return {"type": name.split(".")[-1], "rank": rank, "spread": spread, "gap": gap, "in": W.shape[1]}


# %%
table = plop.module_table(model).query("status == 'scored'")
maps = pd.DataFrame([noise(name) for name in table["module"].iloc[::2]])
maps["predicted"] = (1 / maps["rank"] - 1 / maps["in"]) / 4
assert maps.query("rank > 5").eval("gap - predicted").abs().max() < 0.01
medians = maps.groupby("type")[["rank", "spread", "gap", "predicted"]].median()
medians.round({"rank": 1, "spread": 3, "gap": 4, "predicted": 4})

# %%
fig, ax = plt.subplots(figsize=(6, 3.8), layout="constrained")
sns.scatterplot(maps, x="rank", y="spread", hue="type", hue_order=types, palette="colorblind", s=30, ax=ax)
for inputs in maps["in"].unique():
    x = np.geomspace(maps["rank"].min(), 0.95 * inputs)
    ax.plot(x, np.sqrt((1 / x - 1 / inputs) / 2), color="0.5", ls=":", label=rf"$\sqrt{{(1/r - 1/{inputs})/2}}$")
ax.set(xscale="log", yscale="log", xlabel="effective rank r", ylabel="spread of one draw / its mean")
ax.set_xticks([10, 30, 100, 300], [10, 30, 100, 300])
ax.set_yticks([0.02, 0.05, 0.1, 0.2], ["2 %", "5 %", "10 %", "20 %"])
ax.minorticks_off()
ax.set_title("One draw of noise is off by several percent", loc="left")
ax.legend(frameon=False, ncols=2)
sns.despine()

# %% [markdown]
# ## The first token
#
# Many models park attention on the first token. Does one odd token of many move the score? A `score_mask` leaves it out of the score; the model still reads it.

# %%
encoded = [tokenizer(text, return_tensors="pt") for text in texts["math"][:12]]
first = [torch.arange(e["input_ids"].shape[1])[None] == 0 for e in encoded]
masks = {"all tokens": [f | True for f in first], "without the first": [~f for f in first], "first only": first}
parts = []
for kind, counted in masks.items():
    batches = [{**e, "score_mask": m.long()} for e, m in zip(encoded, counted)]
    scores = plop.nfn_scores(model, batches)
    parts.append(scores.groupby("type", as_index=False)["nfn"].mean().assign(kind=kind))
tokens = pd.concat(parts, ignore_index=True)

# %%
fig, ax = plt.subplots(figsize=(7, 3.6), layout="constrained")
sns.barplot(tokens, x="nfn", y="type", hue="kind", order=types, palette="colorblind", ax=ax)
ax.axvline(1, color="0.15", lw=1, ls="--", zorder=0)
ax.set(xlabel="NFN (1 = random input)", ylabel="", title="The first token scores like no other")
ax.legend(title="", frameon=False)
sns.despine()

# %%
kinds = tokens.pivot(index="type", columns="kind", values="nfn").loc[types, list(masks)]
assert set(kinds["without the first"].nsmallest(K).index) == set(kinds["all tokens"].nsmallest(K).index)
kinds.round(3)

# %% [markdown]
# ## Prompts, prompts with answers, chat template
#
# What to score: the bare question, question and answer, or what the chat template makes of it?

# %%
import reasoning_gym

entries = list(reasoning_gym.create_dataset("gsm_symbolic", size=12, seed=0))
def ask(e):
    return [{"role": "user", "content": e["question"]}]

kinds = {
    "prompt": [e["question"] for e in entries],
    "prompt + answer": [f"{e['question']} {e['answer']}" for e in entries],
    "chat template": [tokenizer.apply_chat_template(ask(e), tokenize=False) for e in entries],
}

# %%
forms = {kind: plop.nfn_scores(model, data, tokenizer) for kind, data in kinds.items()}
placements = {kind: sorted(lowest(scores, K)) for kind, scores in forms.items()}
assert MODEL or len({tuple(placement) for placement in placements.values()}) == 1
print(placements)
pd.DataFrame({kind: type_means(scores) for kind, scores in forms.items()}).loc[types].round(3)

# %% [markdown]
# ## Where the variance sits
#
# Split the spread of NFN over everything that can vary: between types, between layers of a type, between tasks,
# between texts of a task, between tokens of a text. `record_norms` gives the mean of NFN² beside that of NFN, so the
# spread over tokens needs no stored activations.

# %%
parts = []
for domain in DOMAINS:
    with plop.record_norms(model) as record, torch.no_grad():
        for text in texts[domain][:8]:
            model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=256).to(model.device))
    parts.append(record.frame().assign(domain=domain))
seen = pd.concat(parts)

# %%
by_task = seen.groupby(["type", "module", "domain"])["nfn"].agg(["mean", "var"]).reset_index()
by_map = by_task.groupby(["type", "module"])["mean"].agg(["mean", "var"]).reset_index()
between = {"type": by_map.groupby("type")["mean"].mean().var(), "layer": by_map.groupby("type")["mean"].var().mean()}
within = {"task": by_map["var"].mean(), "text": by_task["var"].mean()}
token = (seen["nfn_square"] - seen["nfn"] ** 2).mean()
variance = pd.Series({**between, **within, "token": token})
assert MODEL or variance[["type", "layer"]].min() > variance["token"] > variance["task"] > variance["text"]
print((variance / variance.sum()).map("{:.1%}".format).to_dict())

# %%
fig, ax = plt.subplots(figsize=(7, 2.8), layout="constrained")
sns.barplot(x=variance.to_numpy(), y=variance.index, color="0.6", ax=ax)
ax.set(xscale="log", xlabel="variance of NFN", ylabel="")
ax.set_title("Which map matters; which task hardly does", loc="left")
sns.despine()

# %% [markdown]
# ## When something is wrong
#
# `place` says so, in its display and in `notes`. Four constructed cases. **An untrained model**: every score near 1.

# %%
from transformers import AutoModelForCausalLM

torch.manual_seed(0)
config = type(model.config)(**{**model.config.to_dict(), "num_hidden_layers": 4})
untrained = AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(model.device).eval()
note = plop.place(plop.nfn_scores(untrained, texts["math"][:8], tokenizer), k=K).notes[0]
assert note.startswith("all scores near 1")
print(note)

# %% [markdown]
# **A near-tie** (here the scores of `o_proj` are moved onto those of `down_proj`), and **too few texts**:

# %%
third, fourth = type_means(live["math"]).index[K - 1 : K + 1]
means = type_means(live["math"])
tied = live["math"].copy()
tied.loc[tied["type"] == fourth, "nfn"] *= means[third] / means[fourth] * 1.0005
note = plop.place(tied, k=K).notes[0]
assert note.startswith("ranking undecided")
print(note)

# %%
note = plop.place(live["math"].query("sample < 2"), k=K).notes[0]
assert note.startswith("too few texts (2)")
print(note)

# %% [markdown]
# **A score that is not a number** is an error that names the module:

# %%
broken = untrained.model.layers[2].mlp.up_proj
broken.weight.data[0, 0] = float("nan")
try:
    plop.nfn_scores(untrained, texts["math"][:8], tokenizer)
except ValueError as error:
    message = str(error)
assert "layers.2.mlp.up_proj" in message
print(message)

# %% [markdown]
# ## What to take home
#
# For SmolLM2-135M on these four domains:
#
# * each recorded text alone ranks all types as the whole pool does, and the first 16 tokens of each live text give its
#   placement; the paper's 200 texts are not needed;
# * a score's standard error falls as $1/\sqrt N$, and Student's t over texts covers at its nominal rate from five texts
#   on, where the percentile bootstrap does not;
# * which map is asked matters most, by far: type and layer hold most of the variance, then come tokens, tasks, texts;
# * the first token scores like no other but is one of many: leaving it out, or adding the answer or the chat template,
#   changes no placement.
#
# None of this says that the lowest types are the best place for adapters, and another model may have closer ties: that
# is what `stop=` and `confidence` are for.
