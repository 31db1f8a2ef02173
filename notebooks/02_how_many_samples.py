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
# # How many texts does a placement need?
#
# **The question.** PLoP ([Hayou, Ghosh, Yu](https://arxiv.org/abs/2506.20629)) scores the types of maps of a model on texts of a
# task, and puts adapters on the three types with the lowest scores. On how many texts must we score until other texts would give
# the same three?
#
# **The answer.** As many as it takes to tell the third type from the fourth. In SmolLM2 these two are so far apart that *one*
# text is enough: each of 1,324 recorded texts, taken alone, gives the same three types. The paper's 200 texts are not needed
# here. For another model nobody knows the gap beforehand. So score in steps, and stop when a test says that the choice is clear.
# On SmolLM2 this rule stops at eight texts, the fewest that it allows. When two types are nearly tied it asks for more texts, or
# says "undecided".
#
# | | |
# |---|---|
# | **You need** | notebook 00; a mean, a standard deviation, a t-test; the words are in the [glossary](GUIDE.md#words) |
# | **It takes** | 85 minutes of reading with the exercises; it runs in two to five minutes on two CPU cores, without a GPU |
# | **It saves** | eight math texts take 1.3 seconds on two CPU cores, and 128 take 14 (`bench_scaling_cpu.csv`) |
# | **It runs** | SmolLM2-135M on some dozens of math texts, and Gemma-3-270M on a few; longer records are read from files |
#
# **Words.** A *map* is one linear layer inside the model, a matrix $W$. A *type* is one kind of map over all layers. SmolLM2 has
# seven: query, key, value and output in the attention (`q_proj`, `k_proj`, `v_proj`, `o_proj`), and gate, up and down in the MLP
# (`gate_proj`, `up_proj`, `down_proj`). The score of a map is its *Normalized Feature Norm* (NFN): how much longer $W$ makes its
# inputs than it makes random inputs of the same length. A score of 1 is what random inputs give. The score of a type is the mean
# over its maps and over the texts. A *placement* is the choice of the $k$ types that get adapters; here $k = 3$. Throughout, $n$
# is a number of texts, and $T$ the number of types. The *gap* of two types is the difference of their scores; a gap in percent is
# always a share of the lower score.

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
MODEL = None  # None: SmolLM2-135M-Instruct; else "gemma-3-270m", "minilm", a Hub id or a folder
TASK = "math"  # "math", "code", "logic", "history", or a Hub data set
TEXTS = 24  # to score live, eight at least
K = 3  # types that get adapters (the records behind figures 1, 5 and 6 are for 3)
CONFIDENCE = 0.99  # of the stopping rule: at most 1 - CONFIDENCE of its runs may stop with a wrong set

# %% tags=["nbval-ignore-output"]
import warnings

import numpy as np
import pandas as pd
from scipy import stats

from plop_nb import sample_plots as plots
from plop_nb.skew_plot import plot_looks, plot_skew
from plop_nb.stats import StoppingRule, lowest, per_text, swaps
from plop_nb.texts import data_file, reasoning_gym

# %% tags=["nbval-ignore-output"]
model, tokenizer = plop.load_model(MODEL)
pd.options.display.width = 120  # of printed tables
texts = plop.load_texts(TASK, n=TEXTS)
scores = plop.nfn_scores(model, texts, tokenizer, progress=False)

# %% [markdown]
# A *record* is a file of results that were computed once, because they take too long for a notebook. `texts.csv` holds the scores
# of SmolLM2's seven types, one row a text.

# %%
rows = pd.read_csv(data_file("results/texts.csv"), comment="#")
rows.groupby("domain", sort=False)["tokens"].agg(**{"texts": "count", "mean tokens": "mean", "longest": "max"}).round(0)

# %% [markdown]
# The four domains are math questions (`gsm_symbolic` of the package reasoning-gym, made from templates), syllogisms (`syllogism`
# of reasoning-gym), prompts of HumanEval, and history questions that come with plop_nb. All are prompts without answers, cut at
# 256 tokens.

# %% tags=["nbval-ignore-output", "picture"]
types = ["v_proj", "up_proj", "down_proj", "o_proj", "gate_proj", "q_proj", "k_proj"]
pools = {domain: own[types].rename_axis(columns="type") for domain, own in rows.groupby("domain", sort=False)}
title = "Each of 500 math texts gives the same three types; the gap that decides is far from 0"
marks = {8: "8: our\nstopping rule", 200: "200: texts\nin the paper"}
plots.plot_separation(pools["math"], 3, marks, title=title, source="SmolLM2-135M-Instruct, 500 math texts");

# %% [markdown]
# In the left panel no two types overlap. The right panel shows the gap that decides. A *draw* takes $n$ texts at random from the
# record, with replacement unless we say otherwise. The band is the middle 95 % of 1,000 draws.
#
# | section | question | minutes |
# |---|---|---|
# | 1 | What is one observation? | 5 |
# | 2 | How large is the error of a score? | 5 |
# | 3 | How many texts does the ranking need? | 8 |
# | 4 | When may we stop? (exercises 1 and 2) | 35 |
# | 5 | Does the stopping rule keep its promise? | 8 |
# | 6 | Which texts: questions, or questions with answers? | 4 |
# | 7 | What does a random baseline add to the error? | 3 |
# | 8 | What does it look like when something is wrong? (exercise 3) | 14 |

# %% [markdown]
# ## 1. One text is one observation
#
# **Question.** A forward pass gives a number for each token, each map and each text. Which of them may we count as independent?
#
# **Intuition.** The tokens of a text depend on each other, and all maps read the same text. New information comes with a new
# text. So we first take the mean within a text. Then the texts are the sample, with as many observations as there are texts.
#
# **What we do.** We take the mean over the maps of each type, text by text. The package's function `per_text` does the same.

# %%
table = per_text(scores)
by_hand = scores.groupby(["sample", "type"])["nfn"].mean().unstack()
assert np.allclose(by_hand.loc[table.index, table.columns], table)
table.head(3).round(3)

# %% [markdown]
# The table has one row per text and one column per type. To compare two types we subtract their columns, text by text. If a text
# that is unusual for one type is unusual for the other in the same direction, that part cancels in this *paired* difference. Here
# is the pair that decides the placement, the $k$-th type and the next one:

# %%
order = table.mean().sort_values().index
low, high = table[order[K - 1]], table[order[K]]
gap = high - low
print(f"{high.name} minus {low.name}: {gap.mean():.3f}, {gap.mean() / gap.std():.1f} times its standard deviation over texts")
print(f"its standard deviation: {gap.std():.4f}; if the two types were independent: {np.hypot(low.std(), high.std()):.4f}")

# %% [markdown]
# Pairing makes this standard deviation a sixth smaller.
#
# **Predict.** There are 24 texts, but also some 1,900 tokens, and 720 scores of single maps (24 texts times 30 maps of a type).
# What error do we get for a type's score if we take the tokens, or the maps, for independent observations: too small, too large,
# or right?
#
# To find out we need the score at each token. A *hook* is a function that PyTorch calls whenever a layer has run.

# %%
of_maps = []


def score_tokens(layer, inputs, output):
    """Note the score of a map at each token: how much it stretches its input, relative to the baseline."""
    if layer.bias is not None:
        output = output - layer.bias
    baseline = layer.weight.norm() / inputs[0].shape[-1] ** 0.5
    of_maps.append((output.norm(dim=-1) / inputs[0].norm(dim=-1) / baseline).flatten())

# %%
maps, of_texts = scores[scores["type"] == high.name], []
hooks = [model.get_submodule(name).register_forward_hook(score_tokens) for name in maps["module"].unique()]
for text in texts:
    of_maps.clear()
    with torch.no_grad():
        model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=256).to(model.device))
    of_texts.append(torch.stack(of_maps).mean(dim=0).float().cpu())  # one number per token
for hook in hooks:
    hook.remove()

# %%
assert np.allclose([tokens.mean() for tokens in of_texts], high, rtol=0.02)  # by hand as by the package
samples = {"texts": high, "tokens": np.concatenate(of_texts), "maps": maps["nfn"]}
errors = {what: [len(values), stats.sem(values)] for what, values in samples.items()}
pd.DataFrame(errors, index=["observations", "error"]).T.round(4)

# %% [markdown]
# **What we saw.** Only the first row is the error that new texts would show. Counting tokens makes it less than half as large,
# because the tokens of a text resemble each other. Counting maps makes it 13 times too large. The layers differ, but they are the
# same layers for every text, so their spread is no error of sampling.

# %% [markdown]
# ## 2. The error of a score
#
# **Question.** How well do 24 texts determine a score, and are the gaps between types larger than its error?
#
# **Intuition.** The *standard error* of a mean of $n$ independent texts is $s / \sqrt n$, where $s$ is the standard deviation
# over texts. Four times as many texts halve it.
#
# **What we do.** We compute it for each type. The last column is the gap to the row above.

# %%
error = pd.DataFrame({"NFN": table.mean(), "standard deviation, %": 100 * table.std() / table.mean()}).loc[order]
error["standard error, %"] = error["standard deviation, %"] / len(table) ** 0.5
error["gap, %"] = 100 * error["NFN"].pct_change()
error.round(2)

# %% [markdown]
# Is the error really $s / \sqrt n$? Not if neighbouring texts in the file resemble each other. We cut the recorded texts into
# blocks of $n$ neighbours, and measure how much the means of the blocks vary.

# %%
def spread(pool, n):
    """How much the means of blocks of n texts vary, in percent of the score: the mean over types."""
    blocks = pool.groupby(np.arange(len(pool)) // n).mean()[: len(pool) // n]
    return (100 * blocks.std() / pool.mean()).mean()

# %%
errors = []
for domain in ("math", "logic"):
    for n in (2, 4, 8, 16, 32, 50, 100, 200):
        computed = spread(pools[domain], 1) / n**0.5
        errors.append([domain, n, 500 // n, computed, spread(pools[domain], n)])
errors = pd.DataFrame(errors, columns=["domain", "texts", "blocks", "computed", "measured"])
shown = errors[errors["texts"] <= 50].set_index(["domain", "texts"])
shown[["computed", "measured"]].T.round(2)

# %% tags=["nbval-ignore-output", "picture-errors"]
title = "SmolLM2: the error falls as 1/√n (measured to n = 50)"
plots.plot_errors(errors, title=title, source="SmolLM2-135M-Instruct, 500 texts each; mean over seven types");

# %% [markdown]
# **What we saw.** A text typically deviates by half a percent to one and a half percent, the mean of 24 texts by less than 0.3 %,
# and neighbouring types are more than 6 % apart. Up to 50 texts the measured dots agree with the computed lines. (All dots of a
# line use the same texts, so they err together. The intervals are those of one type, rather too wide for a mean over seven.)
# Blocks cannot reveal that all texts come from a few templates.
#
# **The formula.** A gap $\delta$ is $z$ standard errors wide at $n = (z\, s / \delta)^2$ texts. Here $s$ is the standard
# deviation of the *difference* of the two types over texts. We take $z = 4$, a round number just below what the rule of section 4
# asks for (4.2 to 5.6 for three of seven types). So this $n$ is about the least at which to expect a decision. For a plan double
# it: then $z$ is 5.7. Half the gap needs four times the texts.

# %% [markdown]
# ## 3. How many texts for the ranking?
#
# **Question.** From how many texts on does the ranking stay the same? Reviewers of the paper missed the variance of its estimator
# ([OpenReview](https://openreview.net/forum?id=3lGkVgNZ5a)). We could not open the ICLR 2026 version, so we do not know whether
# it answers them. We measure.
#
# **Intuition.** *Kendall's tau* compares two rankings: of all pairs, the share that both put in the same order, minus the share
# that they put in opposite orders. It is 1 for the same ranking and about 0 for unrelated ones.
#
# **Predict.** SmolLM2 has 7 types and 210 single maps. How large is tau after *one* text for the types, and for the maps?
#
# **What we do.** First the types, on all recorded texts. How many texts, each taken alone, give the ranking of their whole
# domain?

# %%
for domain, pool in pools.items():
    wanted = pool.mean().argsort().to_numpy()
    same = (pool.to_numpy().argsort(axis=1) == wanted).all(axis=1).sum()
    print(f"{domain}: {same} of {len(pool)} texts give the ranking of their domain, {', '.join(pool.columns[wanted][:4])}, ...")

# %% [markdown]
# All 1,324 do, and the four domains have the same three lowest types. (If $n$ independent texts show no failure, the failure rate
# is below $3 / n$ with 95 % confidence: 1.9 % on history. Texts from a few templates, as on math, are not independent.)
#
# Now the single maps, and a second model. The record `samples_tau.csv` compares draws of $n$ texts (here without replacement,
# from 128 math texts) with a *reference*: the ranking by 64 *other* math texts.

# %%
agreement = pd.read_csv(data_file("results/samples_tau.csv"), comment="#")
agreement["model"] = agreement["model"].replace({"SmolLM2-135M-Instruct": "SmolLM2", "gemma-3-270m": "Gemma"})
taus = agreement.pivot_table(index=["model", "of"], columns="texts", values="tau", sort=False)
taus.drop(columns=[2, 4, 32]).round(4)

# %% tags=["nbval-ignore-output", "picture-tau"]
agreement.loc[agreement["of"] == "types", ["low", "high"]] = np.nan  # no band for types
title = "One text ranks SmolLM2's types, 16 rank Gemma's; maps reach 0.99"
source = "SmolLM2-135M and Gemma-3-270M, math; reference: 64 other texts; bands (of maps): 90 % of 200 draws"
plots.plot_agreement(agreement, title=title, source=source);

# %% [markdown]
# **What we saw.** SmolLM2's types have a tau of 1 from the first text on, and Gemma's from 16 texts on. One swapped pair of the
# 21 makes tau 0.905. So Gemma's 0.981 at one text is a mean: about four texts in five give 1, and one in five gives 0.905.
#
# For single maps one text gives more than 0.95 already, 64 give 0.989 or more, and 128 add at most 0.001. But the reference is a
# mean of 64 texts only, and its own error keeps tau of maps below 1 for any number of drawn texts. So the flat end says as much
# about the reference as about the draws. (Large draws from 128 texts share most of their texts, so the bands shrink too fast, and
# to nothing at 128.)
#
# Why does Gemma need more than one text? Here are its seven scores, with their standard errors over 192 texts:

# %%
gemma = pd.read_csv(data_file("results/samples.csv"), comment="#").query("model == 'gemma-3-270m'")[types]
pd.DataFrame({"NFN": gemma.mean(), "error": gemma.sem()}).sort_values("NFN").T.round(4)

# %% [markdown]
# Query and down, at places five and six, are a *near tie*: they are 1 % apart. With $k = 5$ the choice hangs on this pair. How
# often do draws of $n$ texts choose the same five types as the reference?

# %%
first = gemma[:128].to_numpy()
reference = set(gemma[128:].mean().argsort()[:5])  # places of the five lowest types, by 64 other texts

# %%
generator, agreed = np.random.default_rng(0), {}
for n in (1, 2, 4, 8, 16, 32):
    means = first[generator.integers(128, size=(500, n))].mean(axis=1)  # 500 draws x 7 types
    agreed[n] = np.mean([set(mean.argsort()[:5]) == reference for mean in means])
pd.DataFrame(agreed, index=["share of the draws"]).rename_axis(columns="texts").round(2)

# %% [markdown]
# One text in five gives another set, and from eight texts on nearly all draws agree. But in practice we have one draw only.
# Whether it is a good one takes a test.

# %% [markdown]
# ## 4. When may we stop?
#
# **Question.** Nobody knows the gaps beforehand. How do we decide, while we score, that the texts are enough?
#
# **Intuition.** Test whether each chosen type lies below each other type. If all these tests are clear, stop; else score more
# texts. Each look and each pair is another chance that a test passes by luck. So each test must be stricter than the 1 % that we
# allow for the whole decision.

# %% [markdown]
# **The rule** (`plop_nb.stats.StoppingRule`; `nfn_scores(..., stop=0.99)` uses it), for $T$ types of which we want the $k$
# lowest. Its *confidence* is 1 minus the share of all runs that may stop with a wrong set.
#
# 1. Look at 8 texts, then at 16, 32, 64, ...: look $j$ has $8 \cdot 2^{j-1}$ texts.
# 2. At each look call the $k$ types with the lowest means *chosen* and the others *other*.
# 3. For each of the $k (T - k)$ pairs of a chosen and an other type, do a *paired, one-sided t-test* over the texts: how probable
#    is a difference like this one, or a larger one, if the two types are truly equal?
# 4. Stop if all these p-values are at most $\alpha_j = \dfrac{1 - \text{confidence}}{j\,(j + 1)\; k\,(T - k)}$.
#
# For example, seven types and $k = 3$ make 12 pairs. With a confidence of 0.99 each test at the first look has the level
# $0.01 / (1 \cdot 2 \cdot 12) = 0.0004$. With eight texts the $t$ of a pair must then be at least 5.6.

# %% [markdown]
# **Why $j (j + 1)$?** Because $\frac{1}{j (j + 1)} = \frac1j - \frac1{j + 1}$, the sum over all looks is 1. The first look may
# spend one half of the error, the second one sixth, and all looks together no more than there is.
#
# **Why do $k (T - k)$ pairs suffice?** The data decide which pairs are tested, and with seven types any of 42 ordered pairs may
# be among them. Why is it enough to share the error out over 12?
#
# <details><summary>Think first. Then open the argument.</summary>
#
# Let $A$ be the true set of the $k$ lowest types. Suppose that the rule stops with another set $S$. Both sets have $k$ types. So
# some type $c$ is in $S$ and not in $A$, and some type $o$ is in $A$ and not in $S$. The rule has stopped, so the test of this
# pair was passed: the data said that $o$ lies above $c$. In truth $o$ lies below $c$, because $o$ is one of the $k$ lowest and
# $c$ is not. So this test was wrong.
#
# A wrong decision therefore needs a wrong test of a pair with one type outside of $A$ and one inside. There are $(T - k)\,k$ such
# pairs, and the truth fixes them before any text is drawn. The other pairs may be tested, too, but their errors cannot make the
# set wrong. Each of the $k (T - k)$ tests at look $j$ is wrong with probability $\alpha_j$ at most, if its t-test is exact. So
# any of them at any look is wrong with probability $\sum_j k (T - k)\, \alpha_j = 1 - \text{confidence}$ at most.
# </details>

# %% [markdown]
# ### Exercise 1: write the rule (15 minutes)
#
# Write a function of a table (texts down, types across) and the number of the look, 1 for the first, that says whether the
# placement of `K` types is decided with `CONFIDENCE`. *Hint:* `lowest(table, K)` names the `K` lowest columns of a table.
# `stats.ttest_rel(a, b, alternative="greater").pvalue` is the p-value of the paired, one-sided t-test. It is small when the mean
# of `a` lies clearly above that of `b`. The check compares your function with the package on tables in which we have moved the
# third and the fourth type together:

# %%
def moved(pool, gap, k=K):
    """A pool in which the k-th and the next type are this far apart, relative to the k-th."""
    worst, best = pool.mean().sort_values().index[k - 1 : k + 1]
    return pool.assign(**{best: pool[best] * (1 + gap) * pool[worst].mean() / pool[best].mean()})


is_decided = None  # your turn: a function of (table, look) that returns True or False

# %%
def check_rule(function):
    if function is None:
        return "not yet filled in"
    for gap in (0.1, 0.013, 0.0115, 0.0065, 0.003, 0.0025, 0.0001):
        rule, near = StoppingRule(CONFIDENCE, K), moved(pools["math"], gap)
        for look in (1, 2, 3, 4, 5, 6):
            part = near.iloc[: rule.next]  # rule.next: texts at the next look
            assert function(part, look) == rule.decided(part), f"gap {gap}, look {look}: not as the package"
    return "agrees with the package at 42 looks"


check_rule(is_decided)

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution.
def rule_by_hand(table, look):
    chosen = lowest(table, K)
    level = (1 - CONFIDENCE) / (look * (look + 1) * K * (table.shape[1] - K))
    for low in chosen:
        for high in table.columns.difference(chosen):
            if stats.ttest_rel(table[high], table[low], alternative="greater").pvalue > level:
                return False
    return True


check_rule(rule_by_hand)

# %% [markdown]
# **One run, look by look.** Here is the rule at work, where the third and the fourth type are 0.3 % apart. The package's function
# `swaps` returns the p-values of all pairs. The *closest pair* is the pair with the largest one: when it passes its test, all
# pairs do. It passes if its $t$ is at least the $t$ that belongs to $\alpha_j$.

# %%
def look_at(part, look, k=K):
    """Texts at a look, t of the closest pair, and the t that the rule needs."""
    pairs = swaps(part, lowest(part, k))
    level = (1 - CONFIDENCE) / (look * (look + 1) * len(pairs))
    found, needed = stats.t.isf([pairs["probability"].max(), level], len(part) - 1)
    return {"texts": len(part), "t of the closest pair": found, "t that the rule needs": needed}

# %%
shuffled = moved(pools["math"], 0.003).sample(256, random_state=0)
run = [look_at(shuffled.head(8 * 2 ** (look - 1)), look) for look in range(1, 7)]
run = pd.DataFrame(run).set_index("texts")
run.T.round(1)

# %% tags=["nbval-ignore-output", "picture-looks"]
stop = (run["t of the closest pair"] >= run["t that the rule needs"]).idxmax()
title = f"One run at a gap of 0.3 %: the closest pair passes at {stop} texts"
plot_looks(run, stop, title=title, source="SmolLM2-135M-Instruct, math texts in random order; pale: continued to 256");

# %% [markdown]
# This run stops at 128 texts, the first look after the 77 that the formula of section 2 gives for this gap (section 5).
#
# In your own analysis `stop=` does all this, and shuffles the texts itself. First the model of the settings:

# %%
stopped = plop.nfn_scores(model, plop.load_texts(TASK, n=64), tokenizer, stop=CONFIDENCE, k=K)
print("chosen:", ", ".join(lowest(stopped, K)))

# %% [markdown]
# Now Gemma, with 8 texts at most. The table of section 3 has its scores, with their standard errors over 192 texts. Over eight
# texts these errors are about five times as large.
#
# **Predict.** Will the rule decide for $k = 5$? And for $k = 4$?

# %%
other, its_tokenizer = plop.load_model("gemma-3-270m")


def try_gemma(k, n):
    """What `stop=` says of Gemma's k lowest types, with n texts at most."""
    with warnings.catch_warnings(record=True) as caught:
        found = plop.nfn_scores(other, plop.load_texts("math", n=n), its_tokenizer, stop=CONFIDENCE, k=k, progress=False)
    said = [str(warning.message) for warning in caught if "undecided" in str(warning.message)]
    print(f"k = {k}:", *said or ["decided, " + ", ".join(lowest(found, k))])
    table = per_text(found)
    return look_at(table, 1 + int(np.log2(len(table) / 8)), k)

# %%
looks = {"k = 5": try_gemma(5, n=8), "k = 4": try_gemma(4, n=8)}
pd.DataFrame(looks).T.round(1)

# %% [markdown]
# **What we saw.** In SmolLM2 the first look, at eight texts, is enough. In Gemma the rule is undecided for $k = 5$ after all
# eight texts, and names the two types that it cannot tell apart: their $t$ is 5.2, and the rule needs 5.4. With $k = 4$ it stops
# at the first look.
#
# **So what to do if it ends "undecided"?** There are two ways.
#
# * *Score more texts*: up to twice, better four times as many. The formula of section 2 needs a gap that is known from dozens of
#   texts. From eight it can mislead: the pair above had t = 5.2 at eight texts, which promised too much.
# * *Choose another $k$*, at which the gap is wide: adapt both types, or neither. But each $k$ that you try spends its own 1 %. If
#   you mean to try two, as we just did, call the rule with a confidence of 0.995.

# %% [markdown]
# ### Exercise 2: how many texts for a near tie? (5 minutes)
#
# The rule was undecided about Gemma's query and down after 8 texts. How many does it take until the difference of the two is four
# standard errors? Use the formula at the end of section 2, and the recorded texts in `gemma`. Will the rule stop at this number?

# %%
texts_needed = None  # your turn: a number

# %%
def check_needed(number):
    if number is None:
        return "not yet filled in"
    difference = gemma["down_proj"] - gemma["q_proj"]
    found = difference.mean() / (difference.std() / number**0.5)
    assert 3.8 < found < 4.2, f"with {number:.0f} texts the difference is {found:.1f} standard errors"
    return f"{number:.0f} texts: {found:.1f} standard errors"


check_needed(texts_needed)

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution. It is the difference of the two columns that counts, text by text.
apart = gemma["down_proj"] - gemma["q_proj"]
print(check_needed((4 * apart.std() / apart.mean()) ** 2))
print(f"the rule needs t = {stats.t.isf(0.01 / (2 * 3 * 10), 15):.1f} at 16 texts: it may take one look more")
pd.DataFrame({"k = 5": try_gemma(5, n=64)}).T.round(1)

# %% [markdown]
# ## 5. Does the rule keep its promise?
#
# **Question.** The rule promises that at most 1 % of all runs stop with a wrong set. A t-test is exact for normal differences
# only, and eight texts are few. Is the promise kept?
#
# **What we do.** We take the recorded texts of a domain for the truth, and let the rule run on draws from them. A run is *wrong*
# if it stops with another set than the true one. We move the third and the fourth type together, because with a wide gap no run
# is wrong. The record `samples_replays.csv` holds 4,000 runs for each gap. First the formula of section 2:

# %%
def by_formula(pool):
    """Texts until the third and the fourth type are four standard errors apart."""
    low, high = pool.mean().nsmallest(4).index[2:]
    gap = pool[high] - pool[low]
    return (4 * gap.std() / gap.mean()) ** 2

# %%
replays = pd.read_csv(data_file("results/samples_replays.csv"), comment="#")
runs = replays.query("domain == 'math' and types == 7").set_index("gap")
needed = [by_formula(pools["math"])]  # as it is
for gap in runs.index[1:]:
    needed.append(by_formula(moved(pools["math"], gap, k=3)))
runs.index = ["gap 13 % (as it is)", *(f"gap {100 * gap:g} %" for gap in runs.index[1:])]
pd.DataFrame([needed], index=["texts by the formula"], columns=runs.index).round(1)

# %% [markdown]
# **Predict.** At which looks will most runs stop at a gap of 0.3 %? And at a gap of 0.01 %, will more or fewer than 1 % of the
# runs be wrong?

# %% tags=["nbval-ignore-output", "picture-decided"]
shares = runs.loc[:, "8":"undecided"] / 4000
foreseen = [f"formula: {max(number, 1):,.0f}" for number in needed]  # one text at least
title = "The closer two types, the more texts, about as the formula foresees"
source = "SmolLM2-135M-Instruct, math; gap of the third type to the fourth; 4,000 runs a row, at most 512 texts"
plots.plot_decided(shares, foreseen, title=title, source=source);

# %%
stopped_by = (100 * shares.drop(columns="undecided")).cumsum(axis=1)
stopped_by.rename_axis(columns="% stopped by").round(0).astype(int)

# %% [markdown]
# By 16 texts (2.3 times the 7 of the formula) 90 % of the runs have stopped, by 128 (1.7 times the 77) 87 %. With a gap of 0.1 %
# the formula asks for some 700 texts, and most runs are undecided after 512. With 0.01 % nearly all are: an *effective tie*.
#
# There a wrong decision is easiest. How often does it happen? In the first four rows of the next table all seven types compete.
# The last four are a harder case: only the two tied types exist, and one is to be chosen. That leaves a single test, which gets
# the whole 1 %. The intervals (exact binomial, 95 %) are over the 4,000 runs.

# %%
def interval(wrong):
    """Percent of the 4,000 runs that are wrong, with a 95 % interval."""
    low, high = stats.binomtest(wrong, 4000).proportion_ci()
    return {"wrong, %": wrong / 40, "low, %": 100 * low, "high, %": 100 * high}

# %%
ties = replays.query("gap == 0.0001").set_index(["types", "domain"]).sort_index(level=0, ascending=False, sort_remaining=False)
promise = pd.DataFrame([interval(wrong) for wrong in ties["wrong"]], index=ties.index)
promise.insert(0, "stopped, %", (4000 - ties["undecided"]) / 40)
promise.round(2)

# %% [markdown]
# **What we saw.** With seven types and one tied pair the promise is kept: at most 0.25 % of the runs are wrong. But the tied pair
# is one of twelve, and up to 512 texts its share is 0.07 % (1 % / 12, of which seven looks spend 7/8). On math it spent 3.4 times
# that (1.6 to 6.3 times). The other eleven pairs practically never pass wrongly, and their unused shares keep the total low. With
# two types nothing is left unspent, and on math 1.58 % of the runs are wrong (1.21 to 2.01 %), where 1 % was promised, of which
# 0.875 % may be spent by 512 texts. In the other domains the promise is kept.

# %% [markdown]
# **Why on math?** We move the two types to an exact tie, and take the difference on each text. Its *skewness* says whether the
# upper tail is longer than the lower one (positive), or shorter (negative); a normal one has 0. Then we draw $n$ texts at a time
# and compute $t$. With two types only, the first look has the level $0.01 / (1 \cdot 2 \cdot 1) = 0.005$: half a percent of the
# draws should lie beyond the $t$ that the test needs (3.5 at eight texts) on each side. We keep this level for every $n$, as if
# the first look came at $n$.
#
# **Predict.** In math the upper tail is longer. Which tail of $t$ gets too heavy? And do more texts help?

# %%
def tied(pool):
    """The fourth type minus the third, text by text, moved to an exact tie (in percent of the score)."""
    low, high = pool.mean().nsmallest(4).index[2:]
    return 100 * (pool[high] / pool[high].mean() - pool[low] / pool[low].mean())


def t_of(difference, n):
    """t of 50,000 draws of n texts."""
    drawn = np.random.default_rng(0).choice(difference, size=(50_000, n))
    return drawn.mean(axis=1) / stats.sem(drawn, axis=1)

# %%
tails = {}
for domain, n in [("math", 8), ("logic", 8), ("code", 8), ("history", 8), ("math", 32), ("math", 128)]:
    difference = tied(pools[domain])
    t = t_of(difference, n)
    least = stats.t.isf(0.005, n - 1)  # the t that the test needs
    tails[domain, n] = [stats.skew(difference), 100 * np.mean(t < -least), 100 * np.mean(t > least)]
pd.DataFrame(tails, index=["skewness", "lower tail of t, %", "upper tail of t, %"]).T.rename_axis(["domain", "texts"]).round(2)

# %% tags=["nbval-ignore-output", "picture-skew"]
title = "Math: a long upper tail of the texts makes the lower tail of t twice as heavy as it should be"
source = "SmolLM2-135M-Instruct, 500 math texts; the two types are moved to an exact tie"
difference = tied(pools["math"])
plot_skew(difference, t_of(difference, 8), 8, 0.005, pair=("o_proj", "down_proj"), title=title, source=source);

# %% [markdown]
# **What we saw.** It is the *lower* tail. Eight texts often contain none of the few large differences. Then their mean is too low
# and their deviation too small, and both make $t$ very negative. On math this happens in 1.10 % of the draws instead of 0.50 %:
# the test says "output lies below down" too often. In the replays, where output lies 0.01 % above down, this is the wrong
# decision. On code the skewness has the other sign. There the other tail is too heavy, and a decision by it is right. On logic
# and history both are about as promised. A later first look helps slowly: on math the tail holds 0.92 % at 32 texts, and at 128
# still 0.73 % instead of 0.50 %.
#
# So the 1 % is a promise for differences that are about normal. With two types on math, whose difference has a skewness of 0.56,
# 99 % became 98.4 %. It also limits how many of all runs stop *and* are wrong, not how many of those that stop: with two tied
# types on math, 1.58 of the 1.88 % that stop are wrong. Ties of three or more types were not tried.
#
# **What to do.** Eight texts cannot show a skewness: its standard error is 0.75 there. If only one or a few pairs share the
# error, compute the skewness of the closest pair's difference on some hundred texts. If it is as far from 0 as here, read 99 % as
# 98 %, or ask for a stricter confidence. We did not test how much stricter.

# %% [markdown]
# ## 6. Which texts: questions, or questions with answers?
#
# **Question.** Finetuning reads a question together with its answer. Should we score both?
#
# **Predict.** A worked answer more than doubles the text. How many of the three chosen types change?
#
# **What we do.** We take twelve math problems in five forms: the question; the question with the bare number; with the *worked
# answer*, all its steps; in the model's chat template, which may add a system message; and the first 16 tokens of the question
# alone.

# %%
problems = list(reasoning_gym().create_dataset("gsm_symbolic", size=12, seed=0))
forms = {"question": [p["question"] for p in problems]}
forms["question, number"] = [f"{p['question']}\n{p['answer']}" for p in problems]
forms["question, worked answer"] = [f"{p['question']}\n{p['metadata']['answer_cot']}" for p in problems]
print(forms["question, worked answer"][1][-200:])

# %%
if getattr(tokenizer, "chat_template", None):
    turns = [[{"role": "user", "content": question}] for question in forms["question"]]
    forms["chat template"] = [tokenizer.apply_chat_template(turn, tokenize=False) for turn in turns]
    print(forms["chat template"][0][:120])
kinds = {form: plop.nfn_scores(model, own, tokenizer, max_length=512, progress=False) for form, own in forms.items()}
kinds["first 16 tokens"] = plop.nfn_scores(model, forms["question"], tokenizer, max_length=16, progress=False)

# %% [markdown]
# First the mean change of each type's score against the bare question:

# %%
tables = {kind: per_text(found)[order] for kind, found in kinds.items()}
changes = pd.DataFrame({kind: (table - tables["question"]).mean() for kind, table in tables.items()})
changes.drop(columns="question").T.round(3)

# %% [markdown]
# What decides is the gap between the $k$-th and the next type: its mean, its change with a 95 % interval (paired, over the twelve
# problems), and how many of the chosen types are the same:

# %%
gaps = pd.DataFrame({kind: table[order[K]] - table[order[K - 1]] for kind, table in tables.items()})
change = plop.mean_interval(gaps.sub(gaps["question"], axis=0))
summary = pd.DataFrame({"gap": gaps.mean(), "change": change.mean, "low": change.low, "high": change.high})
summary["tokens"] = [kinds[kind]["tokens"].mean() for kind in tables]
wanted = set(lowest(tables["question"], K))
summary["same types"] = [len(wanted & set(lowest(table, K))) for table in tables.values()]
summary.round(3)

# %% [markdown]
# **What we saw.** For SmolLM2 on these problems we need not score both: in all five forms the three lowest types are the same.
# The worked answer leaves the gap that decides, output minus down, where it was. It moves key most, by 0.042 (under 3 %), and at
# another $k$ such a change could matter. The first 16 tokens change the gap most, from 0.136 to 0.102. For a model with closer
# types, score the texts on which you will train.

# %% [markdown]
# ## 7. What a random baseline adds
#
# **Question.** NFN divides by what random inputs give. The package uses the closed form, the root mean square over all random
# inputs: it is $\|W\|_F / \sqrt{d}$ for inputs of length 1 with $d$ entries (notebook 00). Drawing the random inputs, as the
# paper does, adds noise. How much of it reaches the score of a *type*?
#
# **Intuition.** The length of $W u$ for a random direction $u$ varies the more, the fewer directions $W$ really uses. A type's
# score is a mean over 30 maps, so about $1 / \sqrt{30}$ of their noise remains, if the maps are alike.
#
# **What we do.** We take the worst case, *one* random input for a whole map, 400 times.
#
# **Predict.** Will the three chosen types survive this?

# %%
rng = torch.Generator().manual_seed(0)


def stretch(W, draws=400):
    """Lengths of W u for random unit vectors u, relative to the closed form."""
    u = torch.randn(W.shape[1], draws, generator=rng)
    return (W @ (u / u.norm(dim=0))).norm(dim=0) * W.shape[1] ** 0.5 / W.norm()

# %%
type_of = scores.drop_duplicates("module").set_index("module")["type"]
weights = {name: model.get_submodule(name).weight.detach().float().cpu() for name in type_of.index}
exact = scores.groupby("module")["nfn"].mean()[type_of.index]
drawn = pd.DataFrame({name: stretch(W).numpy() for name, W in weights.items()})  # 400 x maps

# %%
noisy = exact / drawn  # the scores, if we divide by what was drawn
of_types = noisy.T.groupby(type_of).mean().T  # 400 x types
same = [set(row.nsmallest(K).index) == set(order[:K]) for _, row in of_types.iterrows()]
print(f"{sum(same)} of {len(same)} repetitions choose the same {K} types")

# %% [markdown]
# And how large is the noise, in percent of the score? The last columns: which share of a type's variance comes from its noisiest
# map, and how far the mean length of the 400 draws lies below the closed form (a mean is below a root mean square).

# %%
map_noise = 100 * noisy.std() / exact
noise = map_noise.groupby(type_of).agg(**{"median map": "median", "noisiest map": "max"})
noise["the type"] = 100 * of_types.std() / of_types.mean()
noise["share of the noisiest"] = 100 * noisy.var().groupby(type_of).max() / noisy.var().groupby(type_of).sum()
noise["mean below closed form"] = 100 * (1 - drawn.mean()).groupby(type_of).mean()
noise.loc[order].add_suffix(", %").round(1)

# %% [markdown]
# **What we saw.** One random input moves a typical map (the median) by two to seven percent, the noisiest query and key by 18 %,
# and a type by 0.4 to 1.8 %. In all 400 repetitions the three types stay the same. For value, up, down and gate the type's noise
# is about the median map's divided by $\sqrt{30}$. For query it is nearly twice that, because one map carries three quarters of
# the variance.
#
# The authors' script draws afresh for each token. Our 24 texts have 1,883 tokens, so about $1 / \sqrt{1883} = 1 / 43$ of this
# noise would remain, 0.04 % at most. That is less than the 0.1 to 0.3 % of section 2. Dividing by the mean of many draws raises a
# type's score a little (the last column). More draws do not remove this, but it is far below the differences between types.

# %% [markdown]
# ## 8. What it looks like when something is wrong
#
# **Question.** You score a model with code of your own. Which errors can you see in the scores?
#
# **What we do.** We score wrongly on purpose: in three ways we divide by something else than what a random input of the same
# length gives.
#
# * *Noise not rescaled*: the random input keeps entries of variance 1, whatever the length of the real one. It then gives
#   $\|W\|_F$ (root mean square).
# * *Root forgotten*: the baseline is $\|W\|_F$ instead of $\|W\|_F / \sqrt d$.
# * *Noise from real inputs*: the "noise" is made from the inputs of other texts.
#
# **Predict.** Which of the three changes the placement? And which would you notice in the scores?

# %%
with plop.record_norms(model) as record, torch.no_grad():
    for text in texts[:8]:
        model(**tokenizer(text, return_tensors="pt").to(model.device))
norms = record.frame()
weight_norms = {name: W.norm().item() for name, W in weights.items()}
unscaled = norms.assign(nfn=norms["feature_norm"] / norms["module"].map(weight_norms))

# %%
rootless = scores.assign(nfn=scores["nfn"] / scores["in_features"] ** 0.5)

# %% [markdown]
# For the third error, the baseline of the odd texts is what the same map gives on the even texts:

# %%
is_odd = scores["sample"] % 2 == 1
of_even = scores[~is_odd].groupby("module")["nfn"].mean()
real = scores[is_odd]
real = real.assign(nfn=real["nfn"] / real["module"].map(of_even))

# %% tags=["nbval-ignore-output", "picture-baselines"]
frames = {"as it should be": scores, "noise not rescaled": unscaled}
frames |= {"root forgotten": rootless, "noise from real inputs": real}
title = "Broken baselines show: a range ten times too wide, no map near 1, or every map at 1"
source = f"{MODEL or 'SmolLM2-135M-Instruct'}, {TASK}: {TEXTS} texts (not rescaled: 8; real inputs: {TEXTS // 2})"
plots.plot_signatures(frames, list(order), chosen=K, title=title, source=source);

# %%
seen = {}
for name, frame in frames.items():
    means = frame.groupby("module")["nfn"].mean()
    placement = plop.place(frame, K)  # writes what it finds suspicious into its notes
    seen[name] = [means.min(), means.max(), means.max() / means.min(), ", ".join(placement.types), len(placement.notes)]
columns = ["lowest map", "highest map", "highest / lowest", "placement", "warnings"]
pd.DataFrame.from_dict(seen, orient="index", columns=columns).round(2)

# %%
print(*placement.notes, sep="\n")  # of the last: noise from real inputs

# %% [markdown]
# **What we saw.** If the noise is not rescaled, the score mixes in the length of the inputs. Single maps then differ by a factor
# of 85 instead of 9, and the placement is another. If the root is forgotten, no map comes near 1. The root is the same for all
# types but down, whose larger root moves it from the third place to the second: the same three types stay lowest. If the noise is
# made from real inputs, every map is near 1, and chance decides the placement. The package warns only in this last case: "all
# scores near 1". So test code of your own.

# %% [markdown]
# ### Exercise 3: a test that finds a broken baseline (10 minutes)
#
# Here are four functions of a matrix `W` and inputs `z` (one per row). One is right. Write a test of such a function, without
# looking into it. What must stay the same if the input is twice as long? What must random inputs give, in the mean? And what must
# inputs give along the direction that `W` stretches most, `torch.linalg.svd(W).Vh[0]`: less than 1, 1, or more?

# %%
def right(W, z):
    return (z @ W.T).norm(dim=-1) / z.norm(dim=-1) / (W.norm() / W.shape[1] ** 0.5)


def not_rescaled(W, z):
    return (z @ W.T).norm(dim=-1) / W.norm()


def without_root(W, z):
    return (z @ W.T).norm(dim=-1) / z.norm(dim=-1) / W.norm()


def from_real(W, z):
    other = z.roll(1, 0)  # the "noise" of each row is the row before
    return (z @ W.T).norm(dim=-1) / (other @ W.T).norm(dim=-1) * other.norm(dim=-1) / z.norm(dim=-1)

# %%
is_broken = None  # your turn: a function of such a function that returns True or False


def check_test(test):
    if test is None:
        return "not yet filled in"
    found = [bool(test(function)) for function in (right, not_rescaled, without_root, from_real)]
    assert found == [False, True, True, True], f"your test says {found}, and only the first is right"
    return "finds all three errors, and passes the right one"


check_test(is_broken)

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution.
def test_of_a_score(function):
    W, z = torch.randn(64, 96, generator=rng), torch.randn(500, 96, generator=rng)
    is_same = torch.allclose(function(W, 2 * z), function(W, z), rtol=1e-3)
    is_one = abs(function(W, z).mean() - 1) < 0.05
    most = torch.linalg.svd(W).Vh[0].repeat(5, 1)  # five inputs along one direction
    is_more = (function(W, most) > 1.5).all()
    return not (is_same and is_one and is_more)


check_test(test_of_a_score)

# %% [markdown]
# ### A narrow or little-trained network (may be skipped)
#
# The theory behind PLoP is about wide networks. The record `samples_networks.csv` has scores on 16 math texts of Llamas with four
# layers and several widths (the length of the vectors between layers), trained for 150 steps on such texts from four random
# starts. Do two starts put the seven types in the same order? Spearman's *rank correlation* is then 1, and 0 for unrelated
# orders. The column `interval` is the median half-width of a map's 95 % interval over texts.

# %%
networks = pd.read_csv(data_file("results/samples_networks.csv"), comment="#")
networks["interval"] = (networks["high"] - networks["low"]) / 2
means = networks.groupby(["width", "start", "type"])["nfn"].mean().unstack("type")

# %%
of_widths = networks.groupby("width")[["loss", "interval"]].median()
of_widths["distance from 1"] = (means - 1).abs().mean(axis=1).groupby("width").mean()
for width in of_widths.index:
    ranks = means.loc[width].T.corr("spearman").to_numpy()  # four starts against four, with ones on the diagonal
    of_widths.loc[width, "rank correlation"] = (ranks.sum() - 4) / 12
of_widths.round(3)

# %% [markdown]
# At width 8 two starts agree on the order only in part, at width 128 almost fully. The narrow networks also learned less (a
# higher loss), so this may be width or training. A map's interval over the 16 texts is small (0.014 at width 8, where types are
# 0.067 away from 1), so the texts are probably not the reason. We did not try more of them.

# %% [markdown]
# ### In short
#
# | what you see | what it may be | what to do |
# |---|---|---|
# | every map within a few percent of 1 | a baseline made from real inputs | test it with inputs along one direction that $W$ stretches |
# | no map near 1, or a very wide range | a baseline of the wrong length | test it with random inputs, and with twice the input |
# | every type near 1 (7 % away in the mean, at width 8) | a narrow or little-trained network | do not trust the order: try another start |
# | "undecided" | two types nearly tied on these texts | more texts, or another $k$ (section 4) |

# %% [markdown]
# ## Questions for discussion
#
# 1. The rule asks how sure the placement is over *texts*. Which other choices could change it (the start of the model's training,
#    the form in which its weights are stored, the mean over layers), and what would you resample to see that?
# 2. The paper (its arXiv version) scores 200 texts and prints no intervals. Which of its claims needs an interval over texts, and
#    which over models?
#
# ## Three things to remember
#
# 1. **One text is one observation, and in SmolLM2 types differ far more than texts.** One text gives the placement, and eight
#    satisfy the stopping rule. Use `stop=0.99` instead of a fixed number.
# 2. **The gap decides.** Half the gap takes four times the texts, and no number of texts decides an exact tie. Plan about twice
#    what the formula says, if its gap comes from dozens of texts. "Undecided" is an answer: choose another $k$, which spends its
#    own 1 %.
# 3. **A small interval over texts does not mean that the ranking is right.** It does not see a broken baseline, one random
#    baseline that was drawn once for all texts, or a network that is narrow or little trained. Section 8 shows how to recognise a
#    broken baseline. For a random one, draw again (section 7). Train a narrow network again from another start, and compare the
#    orders.
#
# **Not established.** All of this is about small models and texts in English, mostly math. Sections 3 and 4 use two models, the
# end of section 8 tiny Llamas, everything else SmolLM2 alone. NFN depends on how the weights are stored (notebook 04). The
# promise of the rule rests on t-tests, and with two tied types it was broken on math. And no number here says that the lowest
# types are the best place for adapters.
#
# **Where next.** Notebook 03 compares models and domains. Notebook 05 asks whether the placement is any good.
