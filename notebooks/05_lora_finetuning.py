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
# # Where should the adapters go?
#
# **The question.** You want to finetune a language model with LoRA. Which of its maps should get adapters, at which rank, and
# with which learning rate?
#
# **The answer.** Put them on the MLP: gate, up and down. Then spend your time on the learning rate. In our record of one small
# model, *which* three types you choose matters little: two seeds rank the 35 sets of three with a correlation of only 0.12. Half of the
# best learning rate costs as much as most of the sets lie apart. There is one tendency: sets with up or down train better, and sets
# with query or key worse. PLoP's choice (value, up, down) follows it and trains well, but we do not see it beat the MLP, which you
# find without computing anything.
#
# | | |
# |---|---|
# | **You need** | notebook 00; what a LoRA adapter is ($W + BA$ with a small rank $r$); what a training loss is |
# | **It takes** | two to five minutes on two CPU cores; no GPU |
# | **It runs** | a race between placements on SmolLM2-135M, live, in two minutes; the benchmark is read from recorded files |
#
# A *placement* says which maps get adapters. A *module type* is one kind of map over all layers, such as all value maps. SmolLM2
# has seven types: query, key, value and output in the attention block, and gate, up and down in the MLP.

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
MODEL = "SmolLM2-135M-Instruct"  # of the live race: any decoder, a Hub id or a folder
TASK = "short_sums"  # of the live race; or "gsm", "spelling", "facts", a Task of your own
SECONDS = 120  # that the race may take
REFERENCE, PLOP = "down+gate+up", "down+up+v"  # in the record: the MLP, and what PLoP chooses

# %% tags=["nbval-ignore-output"]
import numpy as np
import pandas as pd

import seaborn as sns
from scipy.stats import friedmanchisquare

from plop_nb import benchmark_plots as plots
from plop_nb import experiments as ex
from plop_nb.placement import Placement
from plop_nb.texts import data_file


# %%
def recorded(name):
    """A file of data; its first lines say how it was made, and on what."""
    return pd.read_csv(data_file(name), comment="#")


runs = ex.load_benchmark().query("model == 'SmolLM2-135M-Instruct'")
runs["lr"] = runs["lr"].round(6)
untrained = recorded("results/benchmark_untrained.csv").set_index("task")
print(runs.groupby("task").agg(runs=("loss", "size"), placements=("placement", "nunique"), seeds=("seed", "nunique")))

# %% [markdown]
# The benchmark is a table of finished trainings, one row a run. It was made by one command
# (`python notebooks/tools/record_benchmark.py run`), and every number below is computed from it here. Assertions in the cells tie the
# text to the record. The picture shows losses after training on one task, sums of two numbers; each
# dot is one run.

# %%
sums = runs.query("task == 'short_sums'")
tuning = runs.query("seed == 0")
best = tuning.loc[tuning.groupby(["task", "placement"])["loss"].idxmin()]
best_sums = best.query("task == 'short_sums'")
three = best_sums.query("group == 'triple'")[["placement", "lr"]]


def at_rate(factor, seed, name):
    """The sets of three at their best rate times a factor, with a seed."""
    wanted = three.assign(lr=(three["lr"] * factor).round(6), seed=seed)
    return sums.merge(wanted).assign(kind=name)


# %% tags=["nbval-ignore-output", "picture"]
rows = [at_rate(1, 0, "35 sets of three types"), at_rate(1, 1, "the same, a second seed"), at_rate(1, 2, "the same, a third seed")]
rows += [at_rate(0.5, 0, "35 sets, half the rate"), at_rate(2, 0, "35 sets, twice the rate")]
rows += [best_sums.query("group == 'single'").assign(kind="one type alone")]
rows += [best_sums.query("group == 'fixed'").assign(kind="attention, all, layers")]
shown = pd.concat(rows)[["task", "kind", "placement", "loss"]]
by_kind = shown.pivot_table(index="placement", columns="kind", values="loss", sort=False)
apart = by_kind.iloc[:, 0].max() - by_kind.iloc[:, 0].min()
half_costs = (by_kind.iloc[:, 3] - by_kind.iloc[:, 0]).median()
told = f"sets lie {apart:.2f} apart, differently with each seed; half the rate costs {half_costs:.2f}"
plots.plot_spread(shown, {"short_sums": told});

# %% [markdown]
# ### What to choose
#
# | your situation | adapters on | rank and learning rate | evidence |
# |---|---|---|---|
# | You have no time to compare anything | the MLP: gate, up and down | rank 16, α 32; tune the rate first | section 3 and 4, and other people's larger models in section 8 |
# | You want as few adapters as possible | up or down alone, with a higher rank | about twice the rate of three types | section 4: not seen to be worse at the same number of parameters |
# | A server takes adapters on attention only | all four attention types, not query or key alone | as for three types | section 4: behind the MLP on average |
# | You have half an hour of computing | let placements and rates race on your own data | what the race says | section 7 |
# | You fear that the model forgets | any of these; a lower learning rate | half the best rate | section 6 |
#
# *Limits.* All this is one model of 135 million parameters, short answers (sums of two numbers; some of it also on spelling), trained for 25 or 30 steps of 8 examples, two judging seeds. It is
# the *beginning* of a training: after it the model writes 3 to 6 % of the sums correctly. The best rates hold for this model; larger
# models usually want lower ones. Where we say "undecided", more seeds could decide.

# %% [markdown]
# ## 1. What makes a comparison fair?
#
# **Question.** Query and value with rank 16 train worse than the MLP with rank 16. Is the MLP the better place?
#
# **Intuition.** An adapter of rank $r$ on a map with $n$ inputs and $m$ outputs has $r (n + m)$ parameters. The maps of the MLP
# are larger, so that at the same rank they get more of them. A comparison at equal rank mixes up *place* with *size*.
#
# **What we do.** We count the parameters of the two placements at rank 16, and then look for the rank that gives query and value
# as many as the MLP has.

# %%
model, tokenizer = plop.load_model(MODEL)
maps = plop.module_table(model).query("status == 'scored'")
maps["per rank"] = maps["in_features"] + maps["out_features"]
per_rank = maps.groupby("type")["per rank"].sum()
per_rank.sort_values()

# %%
mlp, attention = ["gate_proj", "up_proj", "down_proj"], ["q_proj", "v_proj"]
budget = 16 * per_rank[mlp].sum()
rank = budget / per_rank[attention].sum()
print(f"rank 16: {budget:,} parameters on the MLP, {16 * per_rank[attention].sum():,} on query and value")
print(f"query and value have as many as the MLP at rank {rank:.1f}")

# %% [markdown]
# The package does the same for any placement: `ex.rank_for` finds the rank whose number of parameters comes nearest.

# %%
scores = plop.nfn_scores(model, plop.load_texts("math", n=4), tokenizer, progress=False)
placements = {
    "MLP": Placement.of_types(scores, mlp),
    "query + value": Placement.of_types(scores, attention),
    "all": Placement.of_types(scores, per_rank.index),
}
ranks = {name: ex.rank_for(placement, model, budget) for name, placement in placements.items()}
assert ranks["query + value"] == round(rank)
ranks

# %% [markdown]
# All placements of the benchmark were trained with the same number of parameters, within 3 %. (Sets that differ by a percent or
# two remain, because ranks are whole numbers.) The scale of the update is $\alpha / r$ with $\alpha = 32$ for all of them.

# %%
sizes = runs.query("group in ['single', 'fixed', 'triple']").drop_duplicates("placement").set_index("placement")
print(sizes.groupby("group")["parameters"].agg(["size", "min", "max"]))
assert sizes["parameters"].max() / sizes["parameters"].min() < 1.06

# %% [markdown]
# ## 2. The learning rate comes first
#
# **Question.** How much does the learning rate matter, beside the placement?
#
# **Predict.** You train a placement at its best learning rate, and a second time at half of it. Then you train the *best* and the
# *worst* of all sets of three types, each at its best rate. Which of the two differences in loss is larger?
#
# **What we do.** Every placement was trained with one seed at three or more rates, a factor of two apart, and at further ones as
# long as the best was the lowest or highest tried. Each line below is one placement.

# %% tags=["nbval-ignore-output", "picture-rates"]
plots.plot_rates(tuning[["task", "placement", "group", "lr", "loss"]]);

# %% [markdown]
# **What we saw.** The valley is narrow, and it is at nearly the same place for nearly all sets of three types:

# %%
best.groupby(["task", "group"])["lr"].value_counts().unstack(fill_value=0)


# %%
def cost_of(factor, task="short_sums", rate=2e-3):
    """What a rate off by a factor costs the sets of three, in nats per token: the median over sets."""
    table = tuning.query("task == @task and group == 'triple'").pivot(index="placement", columns="lr", values="loss")
    return (table[round(rate * factor, 6)] - table[rate]).median()


half, twice = cost_of(0.5), cost_of(2)
assert half > 0.07 and twice > 0.15
print(f"short sums: half the rate costs {half:.2f} nats per token, twice the rate {twice:.2f}")

# %% [markdown]
# Half the best rate costs as much as most sets lie apart, and twice the rate costs more; some runs at twice the rate nearly fail. A
# comparison of placements at one rate is therefore a comparison of how well that rate suits each of them. The clearest case is
# EVA, a method that *starts* adapters from the data (PEFT ships it). Its best rate is eight times lower than that of the others:

# %%
eva = tuning.query("task == 'short_sums' and placement in ['EVA, rho 1', @REFERENCE]").pivot(index="placement", columns="lr", values="loss")
assert eva.loc["EVA, rho 1"].idxmin() * 8 == eva.loc[REFERENCE].idxmin() == 2e-3
eva.round(2)

# %% [markdown]
# At 2e-3, the best rate of the MLP, EVA would be far behind. At its own rate it is level.

# %% [markdown]
# ## 3. All sets of three types
#
# **Question.** PLoP puts adapters on the three types with the lowest scores. There are 35 sets of three. How good is which?
#
# **Intuition.** If we train 35 placements and take the best, it is partly the best by luck: some seeds and some test problems suit
# it. A fair judgement has to take the luck off.
#
# **What we do.** Three steps.
#
# 1. *The rate* is chosen with one seed (seed 0), on one half of the test problems. The loss is read on the other half, and with
#    other seeds. So nothing is chosen by what it is judged on (`ex.crossfit`).
# 2. *The luck* of seeds and problems is estimated from the spread of repeated runs.
# 3. *Each loss is pulled* towards what its three types make of it on average, as far as luck could explain the distance. This is
#    a mixed model with one effect for each type (`ex.pooled_losses`).

# %%
judged = ex.crossfit(runs, tuning_seeds=[0])
judged["lr"] = judged["lr"].round(6)
groups = runs.drop_duplicates("placement").set_index("placement")["group"]
judged["group"] = judged["placement"].map(groups)
triples = judged.query("group == 'triple' and task == 'short_sums' and seed in [1, 2]")
print(f"{triples['placement'].nunique()} sets of three, {triples['seed'].nunique()} seeds, {len(triples['tokens'].iloc[0])} test problems")

# %% [markdown]
# First the plain question: are the 35 sets different at all? If they are, two seeds should rank them alike.

# %%
by_seed = triples.pivot(index="placement", columns="seed", values="loss")
agreement = by_seed.corr("spearman").loc[1, 2]
p_value = friedmanchisquare(*by_seed.to_numpy()).pvalue
assert abs(agreement) < 0.3 and p_value > 0.05
print(f"rank correlation of the two seeds {agreement:.2f}; Friedman's test of no difference at all: p = {p_value:.2f}")

# %% tags=["nbval-ignore-output", "picture-seeds"]
ax = sns.scatterplot(by_seed, x=1, y=2, color="0.6", s=45)
for name, label in {REFERENCE: "MLP", PLOP: "PLoP's choice"}.items():
    ax.plot(*by_seed.loc[name], "o", color="0.1")
    ax.annotate(f"  {label}", by_seed.loc[name], va="center")
ax.set(xlabel="loss with seed 1 (nats per token)", ylabel="loss with seed 2 (nats per token)")
ax.set_title(f"35 sets of three, two seeds: rank correlation {agreement:.2f}", loc="left")
sns.despine();

# %% [markdown]
# **What we saw.** Hardly. A set that is good with one seed may be bad with the next. So do not believe anybody, us included, who shows that
# one set of three is the best after one or two runs of each.
#
# A sharper question is what one *type* adds. Each type is in 15 of the 35 sets, so that luck averages out over many runs. The number
# is the loss of sets with the type minus that of sets without it, all else equal; negative is good.

# %%
sets = {name: set(name.split("+")) for name in by_seed.index}
pooled = ex.pooled_losses(triples, sets)
draws = pooled.effects
effects = pd.DataFrame({"effect": draws.mean(), "low": draws.quantile(0.025), "high": draws.quantile(0.975)})
assert (effects.loc[["up", "down"], "high"] < 0).all() and (effects.loc[["q", "k"], "low"] > 0).all()
effects.sort_values("effect").round(3)

# %% [markdown]
# **What we saw.** Sets with up or down come out lower by about 0.04 nats per token, sets with query or key higher by 0.03. Beyond
# what the types add one by one, no set is seen to be special: the estimate of that spread is zero, where the luck of one mean is

# %%
print(f"luck of a mean over two seeds: {pooled.noise:.3f}; spread beyond the sum of types: {pooled.spread:.3f} nats per token")

# %% [markdown]
# ## 4. One type, whole blocks, and what others propose
#
# **Question.** Three types are a choice of the paper. What about one type alone, a whole block, everything, or the choices of
# other methods? And how far is all this from training every weight of the model?
#
# **What we do.** The same budget of parameters for all, the same tuning. We compare each with the MLP. The intervals are for other
# seeds *and* other problems, and wide enough to hold all at once.

# %%
main = judged.query("group != 'triple' or placement in [@REFERENCE, @PLOP, 'k+q+v']")
compared = ex.differences(main, REFERENCE)
compared.pivot(index="placement", columns="task", values="verdict")

# %% tags=["nbval-ignore-output", "picture-differences"]
plots.plot_differences(compared, "MLP");

# %% [markdown]
# **What we saw.** Query, key or value *alone* are surely worse than the MLP, and so is PAGE's single module. All else is undecided:
# these intervals are wide, since luck alone moves a run by some 0.06. On average, attention and the older defaults (query and value, the last
# layers) come out behind the MLP; up or down alone, EVA, and PLoP's choice come out level with it.
#
# Differences in nats per token are hard to judge by themselves. So we also say which share of the way from the untrained model
# to full finetuning a placement goes:

# %%
means = main.groupby(["task", "placement"])["loss"].mean().unstack("task")
share = (untrained["loss"] - means) / (untrained["loss"] - means.loc["full finetuning"])
assert share.loc[REFERENCE, "short_sums"] > 0.98 and 0.93 < share.loc["attention", "short_sums"] < 0.97
share["short_sums"].sort_values(ascending=False).map("{:.1%}".format)

# %% [markdown]
# Adapters on the MLP, with 1.8 % of the model's weights, go as far as full finetuning here. Attention reaches some 95 %.
#
# ## 5. Can a rule foresee it?
#
# **Question.** PLoP's rule looks at the untrained model only. Others do, too. Does any rule choose better than chance, or better than
# simply taking the largest maps?
#
# **Intuition.** A rule is good if its choice is good. So we ask of each rule: where is its choice of three types between the best of
# all 35 sets (regret 0) and the worst (regret 1)? Choices at random have a mean regret of about one half.
#
# | rule | chooses the three types with |
# |---|---|
# | nfn | the lowest score (PLoP); *folded* and *centred* are variants of notebook 04, *median* takes the median over layers |
# | l1, frobenius | the largest gradient of the loss: the sum of its absolute entries, or its Frobenius norm (also times $\sqrt{n m}$) |
# | first-order gain | the largest gain of LoRA's first step, to first order |
# | condition | the lowest ratio of the largest to the smallest singular value (KappaTune's criterion) |
# | size | the most parameters; it knows nothing of the model or the task |
# | first step | not type by type: one step of LoRA is tried for each *set*, and the set with the lowest loss after it is taken (ours) |
#
# All choices were recorded before the losses of the sets were known.

# %%
def name_of(types):
    return "+".join(sorted(name.removesuffix("_proj") for name in types))


here = "model == 'SmolLM2-135M-Instruct' and task == 'short_sums'"
rules = recorded("results/rules.csv").query(here + " and chosen")
choices = rules.groupby("rule")["type"].agg(name_of)
steps = recorded("results/rules_first_step.csv").query(here)
gains = steps.set_index(steps["types"].str.split("+").map(name_of))["gain"].loc[list(sets)]
choices["first step"] = gains.idxmax()

# %%
rows = [{"task": "short_sums", "rule": rule, "chosen": chosen, **pooled.judged(chosen)} for rule, chosen in choices.items()]
verdicts = pd.DataFrame(rows).sort_values("regret")
assert set(verdicts["chosen"].head(3)) == {REFERENCE} and choices["nfn"] == PLOP
verdicts[["rule", "chosen", "better_than", "regret", "regret_low", "regret_high"]].round(2)

# %% tags=["nbval-ignore-output", "picture-rules"]
plots.plot_rules(verdicts);

# %% [markdown]
# **What we saw.** Two gradient rules and plain *size* choose the MLP, the set that these runs put first or nearly so. PLoP's rule comes
# next and does better than chance; its choice has value in the place of gate. Is the MLP surely better than PLoP's choice?

# %%
gap = pooled.draws[PLOP] - pooled.draws[REFERENCE]
low, high = gap.quantile([0.025, 0.975])
assert -0.01 < low < 0.005 < high
print(f"PLoP's choice minus the MLP: {gap.mean():.3f} nats per token, 95 % interval from {low:.3f} to {high:.3f}")
order = by_seed.mean(axis=1).corr(-gains, method="spearman")
print(f"rank correlation of the first step's gains with the losses of all 35 sets: {order:.2f}")

# %% [markdown]
# Just not: the interval touches zero. So on this task no rule is seen to beat the simplest one, *size*, which anybody can apply
# without computing anything. Our own rule ranks all 35 sets rather well, and yet the set that it puts first is an ordinary one.
# `plop.place(scores, rule="size")` gives the largest maps, and `rule=` takes numbers of your own.

# %% [markdown]
# ## 6. What does the model forget?
#
# **Question.** A finetuned model gets better at its task and, often, worse at everything else. Does the placement matter for that?
#
# **What we do.** Every run was also judged on the openings of 16 articles about history, which have nothing to do with the
# tasks. *Forgetting* is the loss on them after training minus before.

# %%
at_tuned = judged[["task", "placement", "seed", "lr"]].merge(runs, on=["task", "placement", "seed", "lr"])
before = at_tuned[["task"]].join(untrained, on="task")
at_tuned["gain"] = before["loss"] - at_tuned["loss"]
at_tuned["forgetting"] = at_tuned["unrelated_loss"] - before["unrelated_loss"]
forgotten = at_tuned.groupby(["task", "group", "placement"])[["gain", "forgetting"]].mean().reset_index()

# %% tags=["nbval-ignore-output", "picture-forgetting"]
plots.plot_forgetting(forgotten);

# %% [markdown]
# **What we saw.** There is no trade-off between the placements: what gains least forgets most. Adapters on gate or up alone forget
# nearly nothing, the MLP little, and the old default of query and value several times as much.

# %%
of_sets = forgotten.query("group == 'triple' and task == 'short_sums'")
order = of_sets["gain"].corr(of_sets["forgetting"], method="spearman")
assert order < -0.4
forgets = forgotten.query("task == 'short_sums'").set_index("placement")["forgetting"]
print(f"rank correlation of gain and forgetting over {len(of_sets)} sets of three: {order:.2f}")
print(forgets[["gate", "up", REFERENCE, "all", "attention", "query + value"]].round(2).to_dict())

# %% [markdown]
# The learning rate matters more, again. These are the medians over all sets of three, at half the best rate, at the best, and at twice
# the best:

# %%
at_rates = tuning.query("task == 'short_sums' and group == 'triple' and lr in [1e-3, 2e-3, 4e-3]")
forgetting = at_rates.groupby("lr")["unrelated_loss"].median() - untrained.loc["short_sums", "unrelated_loss"]
assert forgetting[1e-3] < 0.05 < 0.3 < forgetting[4e-3]
forgetting.round(2)

# %% [markdown]
# ## 7. A race on your own data
#
# **Question.** Our record is one small model and short trainings. What holds for *your* model and *your* data?
#
# **Intuition.** You need not train every placement at every rate to the end. Start all of them for a few steps, stop those that are
# behind, and give the time to the rest. That is *successive halving*; `ex.race` does it within the seconds that you give.
#
# **What we do.** Three placements at equal parameters, two rates each, in two minutes. The race stops by training loss, which costs
# nothing, and runs the last ones again with fresh seeds, judged on validation examples. If their difference is within the noise, it
# says "undecided", and that is an answer, too: take the one that is easiest to serve.

# %% tags=["nbval-ignore-output"]
task = ex.load_task(TASK, train=400, validation=64, test=64)
found = ex.race(
    model, task, tokenizer, placements, seconds=SECONDS, ranks=ranks, rates=[1e-3, 2e-3],
    steps=16, batch_size=8, progress=False,
)  # fmt: skip
found

# %% [markdown]
# The result carries what `ex.finetune` needs, so that the winner is trained with one more line; `out=` keeps the adapter.

# %% tags=["nbval-ignore-output"]
import tempfile

folder = tempfile.mkdtemp()
winner = placements[found.winner]
run = ex.finetune(model, task, tokenizer, winner, **found.settings, accuracy=False, out=folder)
print(f"{found.winner} at {found.lr:g}: test loss {run['loss']:.2f}")

# %%
before = ex.evaluate(model, task, tokenizer, accuracy=False)["loss"]
assert run["loss"] < 0.7 * before
print(f"untrained {before:.1f} nats per token; after {run['steps']} steps the winner has taken off more than 30 %")

# %% [markdown]
# For a race worth its time, give it an hour, rates from 2.5e-4 to 4e-3, and a `storage=` file: the same call goes on after an
# interrupt, and several processes may work on it. Notebook 07 has the cell for your own model.

# %% [markdown]
# ## 8. What others found
#
# Three sources that compare placements. *PEFT's own comparison* (one run of each, Llama-3.2-3B on MetaMathQA, accuracy on GSM8K):

# %%
peft = recorded("published/peft_method_comparison.csv")
peft.assign(parameters=(peft["trainable_parameters"] / 1e6).round(1)).drop(columns="trainable_parameters")

# %% [markdown]
# At 9.2 to 9.5 million parameters the MLP is ahead of query and value by 1.6 points; a change of the scale alone (*rslora*) moves query
# and value by 4 points. That is our finding in large: the settings of the training move more than the place.
#
# *LoRA Without Regret* ([Schulman et al. 2025](https://thinkingmachines.ai/blog/lora/), and
# [TRL's guide](https://huggingface.co/docs/trl/main/en/lora_without_regret) to it) finds that adapters belong on all layers and types, above
# all on the MLP; that attention alone falls behind even at the same number of parameters; and that the best rate is about ten
# times that of full finetuning. *PLoP* in its ICLR 2026 version reports, as two public notes on it say:

# %%
recorded("published/plop_iclr_2026.csv").pivot(index=["model", "task", "measure"], columns="placement", values="value")

# %% [markdown]
# In each of these rows attention is last where it was tried, and PLoP and the MLP are within a few points, once with PLoP behind.
# We did not rerun them: the models need a hub and a GPU. One command makes the comparison for a model of your own:
# `python notebooks/tools/record_benchmark.py plan --model meta-llama/Llama-3.2-1B --tasks anli metamath`, then `run` with the same arguments.

# %% [markdown]
# An older record of our own, on another task and on a GPU: SmolLM2 finetuned on HumanEval's problems for 25 steps of 16, five seeds, each
# placement at its own rate, 40 test problems. Here is the test loss minus that of PLoP's three types, with intervals that hold
# all at once for other seeds (not for other problems):

# %%
code = recorded("results/finetuning.csv").query("split == 'test' and task == 'code'")
labels = recorded("results/finetuning_placements.csv").query("stage == 'equal parameters' and task == 'code'")
code = labels[["placement", "label"]].merge(code, on="placement").drop(columns="placement").rename(columns={"label": "placement"})
code = code[~code["placement"].isin(["gradient", "condition", "centred"])]  # these choose PLoP's types here
older = ex.versus(code, "PLoP", level=0.994).set_index("placement")
older[["difference", "low", "high", "verdict"]].round(3)

# %% [markdown]
# There, too, the MLP cannot be told from PLoP's choice, and attention, query and value, and the types with the *highest* scores come
# out worse.

# %% [markdown]
# ## Exercises
#
# Each has a cell to fill in and a check. The solutions are in the collapsed cell below each check.
#
# ### 1. The same size (5 minutes)
#
# Which rank gives adapters on the *output* maps alone as many parameters as rank 8 on all seven types? Use `per_rank` of section 1.

# %%
rank_of_output = None  # your turn


# %%
def check_rank(rank):
    if rank is None:
        return "not yet filled in"
    everything = 8 * per_rank.sum()
    off = rank * per_rank.filter(like="o_proj").sum() / everything - 1
    assert abs(off) < 0.01, f"{off:+.0%} off"
    return f"rank {rank}, {off:+.1%} off"


check_rank(rank_of_output)

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution.
check_rank(round(8 * per_rank.sum() / per_rank.filter(like="o_proj").sum()))

# %% [markdown]
# ### 2. The winner's curse (10 minutes)
#
# Suppose that you had one seed only. Take the best of the 35 sets of three on short sums by the loss of seed 1 alone, at the tuned
# rates. Where does this set rank, of 35, by seed 2? *Hint:* `triples` has the columns `task`, `placement`, `seed` and `loss`.

# %%
best_by_1 = rank_by_2 = None  # your turn: a name, and a number from 1 (lowest loss) to 35


# %%
def check_curse(name, rank):
    if name is None:
        return "not yet filled in"
    table = triples.query("task == 'short_sums'").pivot(index="placement", columns="seed", values="loss")
    assert name == table[1].idxmin(), "another set has a lower loss with seed 1"
    assert rank == table[2].rank()[name], "seed 2 ranks it elsewhere"
    return f"{name}: first by seed 1, number {rank:.0f} by seed 2; the two seeds rank the sets with a correlation of {table.corr('spearman').loc[1, 2]:.2f}"


check_curse(best_by_1, rank_by_2)

# %% tags=["solution"] jupyter={"source_hidden": true}
# Solution.
by_seed = triples.query("task == 'short_sums'").pivot(index="placement", columns="seed", values="loss")
check_curse(by_seed[1].idxmin(), by_seed[2].rank()[by_seed[1].idxmin()])

# %% [markdown]
# ### 3. A race of your own (30 minutes)
#
# Make a task of your own: `ex.Task(name, train=..., validation=..., test=...)` takes lists of `{"prompt": ..., "completion": ...}`, and
# race the MLP against query and value on it. Find `seconds` for which the race decides, or say what the interval would have to be.
# The check looks at the result.

# %%
my_race = None  # your turn: what ex.race returns


# %%
def check_race(result):
    if result is None:
        return "not yet filled in"
    assert {"MLP", "query + value"} <= set(result.table["placement"]), "race both"
    assert result.seconds <= 1.5 * result.budget, "it took longer than it might"
    return f"{result.winner}, " + ("decided" if result.decided else "undecided")


check_race(my_race)

# %% [markdown]
# ## Three things to remember
#
# 1. **Tune the learning rate before you think about places.** Compare places only with each at its own rate, at equal parameters,
#    and over several seeds.
# 2. **The MLP is a good place, and simple.** Sets of three types with up or down are better than those with query or key; beyond
#    that we see no difference between them. PLoP's choice is among the good ones.
# 3. **If it matters, let your own data decide.** A race costs minutes to hours, and it says when it does not know.
#
# **Not established.** Larger models, longer trainings, other tasks: the record holds the beginning of trainings on
# short answers. Whether PLoP's choice or the MLP is better: the interval touches zero. Whether layers matter.
#
# **Where next.** Notebook 06 asks the same of reinforcement learning. Notebook 07 is the page for your own model.
