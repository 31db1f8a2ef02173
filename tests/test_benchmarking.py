"""The recorded benchmark, as it is read."""

import numpy as np
import pandas as pd
import pytest

from plop_nb import experiments as ex
from plop_nb.texts import data_file


@pytest.fixture(scope="module")
def runs():
    return ex.load_benchmark()


def test_what_the_examples_were_worth_is_what_the_runs_report(runs):
    """Losses are recorded to a hundredth: their sum over 500 examples is off by little."""
    for row in runs.itertuples():
        assert len(row.losses) == len(row.hits) == len(row.tokens) == 500
        if np.isfinite(row.loss):
            assert row.losses.sum() / row.tokens.sum() == pytest.approx(row.loss, rel=1e-3)
        else:
            assert np.isinf(row.losses).any()
        assert row.hits.mean() == pytest.approx(row.exact)


def test_it_is_complete(runs):
    """No run twice, all with the number of parameters that was planned, within 3 %."""
    assert not runs.duplicated(["model", "task", "placement", "lr", "seed"]).any()
    for _, own in runs[runs["group"].isin(["single", "fixed", "triple"])].groupby("model"):
        assert own["parameters"].max() / own["parameters"].min() < 1.06
    assert runs.loc[runs["group"] == "triple", "types"].str.split("+").str.len().eq(3).all()


def test_a_diverged_example_is_infinite(tmp_path):
    row = {"model": "m", "task": "t", "placement": "p", "lr": 1e-3, "seed": 0}
    pd.DataFrame([row | {"loss": np.inf}]).to_csv(tmp_path / "benchmark_runs.csv", index=False)
    examples = pd.DataFrame([row | {"losses": "50 -1 125", "exact": "x.."}])
    examples.to_csv(tmp_path / "benchmark_examples.csv.gz", index=False)
    tokens = pd.DataFrame([{"model": "m", "task": "t", "tokens": "1 2 3"}])
    tokens.to_csv(tmp_path / "benchmark_tokens.csv", index=False)
    [found] = ex.load_benchmark(tmp_path).itertuples()
    assert found.losses.tolist() == [0.5, np.inf, 1.25]
    assert found.tokens.tolist() == [1, 2, 3] and found.hits.tolist() == [True, False, False]


def triples(names, seeds=(0, 1), **about):
    about = {"model": "m", "task": "t", "lr": 1e-3} | about
    return pd.DataFrame([about | {"placement": n, "seed": s} for n in names for s in seeds])


def test_sets_of_three_are_taken_with_the_seeds_that_have_them_all():
    names = ["a+b+c", "a+b+d", "a+c+d"]
    equal = [name + ", equal scale" for name in names]
    benchmark = pd.concat([
        triples(names), triples(names[:2], seeds=[2]), triples(["a", "all", "a, equal scale"]),
        triples(equal, seeds=[0]), triples(names, lr=2e-3), triples(names, task="u"),
    ])  # fmt: skip
    usual = ex.runs_of_triples(benchmark, "t", 1e-3)
    assert sorted(zip(usual["placement"], usual["seed"], strict=True)) == [
        (name, seed) for name in names for seed in (0, 1)
    ]
    scaled = ex.runs_of_triples(benchmark, "t", 1e-3, equal_scale=True)
    assert scaled["placement"].tolist() == names and set(scaled["seed"]) == {0}


def test_sets_of_three_that_no_seed_has_are_refused():
    benchmark = triples(["a+b+c", "a+b+d"])
    with pytest.raises(ValueError, match="task='t', lr=0.004, equal_scale=False: no seed has all"):
        ex.runs_of_triples(benchmark, "t", 4e-3)
    two = pd.concat([benchmark, triples(["a+b+c"], model="n")])
    with pytest.raises(ValueError, match=r"benchmark is of \['m', 'n'\]: pass the rows of one"):
        ex.runs_of_triples(two, "t", 1e-3)


def test_the_record_has_all_35_sets_with_two_seeds_or_more_in_four_kinds_of_runs(runs):
    own = runs[runs["model"] == "SmolLM2-135M-Instruct"]
    kinds = [("short_sums", 1e-3, False), ("short_sums", 2e-3, False), ("spelling", 2e-3, False)]
    for task, lr, equal_scale in [*kinds, ("short_sums", 1e-3, True)]:
        found = ex.runs_of_triples(own, task, lr, equal_scale=equal_scale)
        assert found["placement"].nunique() == 35 and found["seed"].nunique() >= 2


def test_choices_of_rules_are_those_of_the_record():
    """PLoP's three lowest scores, the three largest types, and the best first step."""
    sets = {"down+gate+up", "down+up+v", "down+gate+k", "k+q+v"}
    choices = ex.recorded_choices("SmolLM2-135M-Instruct", sets)
    assert choices.loc["nfn", "short_sums"] == "down+up+v"
    assert (choices.loc["size"] == "down+gate+up").all()
    steps = pd.read_csv(data_file("results/rules_first_step.csv"), comment="#")
    own = steps[(steps["task"] == "short_sums") & steps["types"].str.count(r"\+").eq(2)]
    names = own["types"].str.replace("_proj", "").str.split("+").map(sorted).str.join("+")
    gains = dict(zip(names, own["gain"], strict=True))
    assert choices.loc["first step", "short_sums"] == max(sets, key=lambda name: gains[name])


def test_choices_of_a_model_that_was_not_recorded_are_refused():
    with pytest.raises(ValueError, match="model='m': its rules are not in"):
        ex.recorded_choices("m", ["down+gate+up"])
