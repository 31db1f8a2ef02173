"""Comparisons of placements: paired intervals, and tuned learning rates."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from plop_nb import experiments as ex
from plop_nb.experiments import tuned, versus


def runs_of(losses, **columns):
    """Runs from {placement: losses by seed}."""
    rows = [
        {
            "task": "t",
            "placement": p,
            "seed": s,
            "loss": v,
            "parameters": len(p),
            "r": 1,
            "lr": 1e-3,
            "split": "test",
        }
        for p, values in losses.items()
        for s, v in enumerate(values)
    ]
    return pd.DataFrame(rows).assign(**columns)


def test_versus_is_a_paired_t_interval():
    runs = runs_of(
        {
            "ref": [1.0, 2.0, 3.0, 4.0],
            "low": [0.9, 1.8, 2.9, 3.8],
            "same": [1.1, 1.9, 3.1, 3.9],
            "hi!": [2, 3, 4, 5.1],
        }
    )
    table = versus(runs, "ref").set_index("placement")
    half = (
        3.182446 * np.std([-0.1, -0.2, -0.1, -0.2], ddof=1) / 2
    )  # t of 3 degrees of freedom at 97.5 %
    assert table.loc["low", ["difference", "low", "high"]].tolist() == pytest.approx(
        [-0.15, -0.15 - half, -0.15 + half]
    )
    assert table["verdict"].to_dict() == {"low": "better", "same": "undecided", "hi!": "worse"}
    assert table.loc["low", ["seeds", "parameters", "reference_parameters"]].tolist() == [4, 3, 3]
    accuracy = versus(runs.rename(columns={"loss": "accuracy"}), "ref", "accuracy").set_index(
        "placement"
    )
    assert accuracy["verdict"].to_dict() == {"low": "worse", "same": "undecided", "hi!": "better"}


def test_versus_pairs_by_seed():
    runs = runs_of({"ref": [1.0, 5.0, 9.0], "x": [1.1, 5.1, 9.2]})
    shuffled = runs.sample(frac=1, random_state=3)
    assert versus(shuffled, "ref")["difference"][0] == pytest.approx(0.4 / 3)
    kept = versus(runs.drop(index=0), "ref")
    assert kept["seeds"][0] == 2 and kept["difference"][0] == pytest.approx(0.15)
    with pytest.raises(ValueError, match="have 1 seeds in common on 't': run 2 or more"):
        versus(runs.drop(index=[0, 1]), "ref")
    with pytest.raises(ValueError, match="reference='y' was not run"):
        versus(runs, "y")
    with pytest.raises(ValueError, match="several runs of one task, placement and seed"):
        versus(pd.concat([runs, runs.assign(lr=1.0)]), "ref")
    with pytest.raises(ValueError, match="value='seconds' is unknown"):
        versus(runs.assign(seconds=1), "ref", "seconds")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_versus_does_not_drop_what_diverged(value):
    runs = runs_of({"ref": [1.0, 2.0, 3.0], "x": [0.9, 1.8, value]})
    message = "loss is .* for placement 'x' with seed 2 on 't': where a run diverged, take a lower"
    with pytest.raises(ValueError, match=message):
        versus(runs, "ref")


def test_tuned_takes_the_best_validation_loss_and_refuses_the_test_split():
    parts = [
        runs_of(
            {"a": [2 - lr * 10, 2.2 - lr * 10], "b": [abs(lr - 0.02), 0.1 + abs(lr - 0.02)]}, lr=lr
        )
        for lr in (0.01, 0.02, 0.04)
    ]
    runs = pd.concat(parts, ignore_index=True)
    with pytest.raises(
        ValueError, match="evaluated on the split 'test': tune on runs with final='validation'"
    ):
        tuned(runs)
    best = tuned(runs.assign(split="validation")).set_index("placement")
    assert best["lr"].to_dict() == {"a": 0.04, "b": 0.02} and best["edge"].to_dict() == {
        "a": True,
        "b": False,
    }
    assert (
        best["loss"].to_dict() == pytest.approx({"a": 1.7, "b": 0.05})
        and (best["seeds"] == 2).all()
    )
    diverged = runs.assign(
        split="validation", loss=runs["loss"].where((runs["lr"] != 0.04) | (runs["seed"] == 1))
    )
    assert tuned(diverged).set_index("placement")["lr"]["a"] == 0.02
    with pytest.raises(ValueError, match="was run at ranks"):
        tuned(pd.concat([runs, runs.assign(r=2)]).assign(split="validation"))


def tuning(rates, **columns):
    """Validation runs of placement "a" at learning rates: {lr: losses by seed}."""
    parts = [runs_of({"a": losses}, lr=lr) for lr, losses in rates.items()]
    return pd.concat(parts, ignore_index=True).assign(split="validation", **columns)


def test_rates_are_compared_on_the_same_seeds():
    unfinished = tuning({0.001: [1.0, 3.0], 0.01: [1.1], 0.1: [5.0, 5.0]})
    message = r"placement 'a' on 't' was not run with the same seeds .*\(lr=0.01 lacks 1\)"
    with pytest.raises(ValueError, match=message):
        tuned(unfinished)
    assert tuned(unfinished.query("seed == 0"))["lr"].tolist() == [0.001]
    assert tuned(unfinished.query("lr != 0.01"))["lr"].tolist() == [0.001]


def test_rates_are_not_chosen_among_runs_that_differ_otherwise_or_have_all_diverged():
    runs = tuning({0.001: [1.0, 2.0], 0.01: [0.5, 1.5]}, steps=10)
    longer = runs.assign(steps=runs["steps"].where(runs["lr"] != 0.01, 20))
    with pytest.raises(ValueError, match=r"placement 'a' on 't' differ in steps \(10, 20\)"):
        tuned(longer)
    with pytest.raises(ValueError, match="several runs of one learning rate and seed"):
        tuned(pd.concat([runs, runs.assign(loss=3.0)]))
    with pytest.raises(ValueError, match=r"diverged at every .*\(0.001, 0.01\): try lower ones"):
        tuned(runs.assign(loss=[None] * 4))


SETTINGS = [
    ("model", "small", "large"),
    ("dtype", "bfloat16", "float32"),
    ("split", "test", "validation"),
    ("steps", 100, 30),
    ("batch_size", 16, 8),
    ("max_length", 512, 64),
]


@pytest.mark.parametrize(("column", "one", "other"), SETTINGS)
def test_runs_of_other_settings_are_not_compared(column, one, other):
    runs = runs_of({"ref": [1.0, 2.0], "x": [1.1, 2.2]})
    mixed = runs.assign(**{column: np.where(runs["placement"] == "x", one, other)})
    message = rf"runs of task 't' differ in {column} \({min(one, other)}, {max(one, other)}\): keep"
    with pytest.raises(ValueError, match=message):
        versus(mixed, "ref")
    # other tasks may be trained otherwise
    apart = pd.concat([runs.assign(**{column: one}), runs.assign(task="u", **{column: other})])
    assert len(versus(apart, "ref")) == 2


def test_runs_of_other_scales_are_not_compared():
    """What the adapters add is scaled by lora_alpha / r."""
    runs = runs_of({"ref": [1.0, 2.0], "x": [1.1, 2.2]}).assign(r=[2, 2, 4, 4])
    message = r"differ in lora_alpha / r \(1.0, 2.0\): keep those of one"
    with pytest.raises(ValueError, match=message):
        versus(runs.assign(lora_alpha=4), "ref")
    assert len(versus(runs.assign(lora_alpha=[4, 4, 8, 8]), "ref")) == 1
    assert len(versus(runs.assign(lora_alpha=0.3 * runs["r"]), "ref")) == 1
    with pytest.raises(ValueError, match=message):
        tuned(tuning({0.001: [1.0, 2.0], 0.01: [0.5, 1.5]}, lora_alpha=[1, 1, 2, 2]))


def test_runs_of_several_ranks_are_not_compared():
    runs = runs_of({"ref": [1.0, 2.0], "x": [1.1, 2.2]})
    runs["parameters"] = [10, 20, 10, 10]
    with pytest.raises(ValueError, match="placement 'ref' on 't' has runs with 10, 20 parameters"):
        versus(runs, "ref")


@pytest.mark.parametrize("column", ["device", "torch"])
def test_a_comparison_across_devices_warns(column):
    runs = runs_of({"ref": [1.0, 2.0], "x": [1.1, 2.2]}, **{column: ["a", "b", "a", "a"]})
    with pytest.warns(UserWarning, match=f"several places .'t': {column} a, b.*on one of them"):
        assert len(versus(runs, "ref")) == 1
    known = runs.assign(**{column: ["a", None, "a", "a"]})  # as in records that lack the column
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        versus(known, "ref")


@pytest.mark.parametrize("value", [None, float("nan")])
def test_an_accuracy_that_was_not_measured_has_not_diverged(value):
    runs = runs_of({"ref": [1.0, 2.0], "x": [1.1, 2.2]}).assign(accuracy=value)
    message = "accuracy is .* on 't': it was not measured, as the task has no check or .*=False"
    with pytest.raises(ValueError, match=message) as caught:
        versus(runs, "ref", "accuracy")
    assert "diverged" not in str(caught.value)


def test_no_runs_at_all():
    nothing = runs_of({"ref": [1.0]}).iloc[:0]
    for ask in (tuned, lambda runs: versus(runs, "ref")):
        with pytest.raises(ValueError, match="runs is empty"):
            ask(nothing)
        with pytest.raises(ValueError, match="runs lacks the columns"):
            ask(pd.DataFrame())


# Differences for other seeds and other problems


def judged(true, *, seeds=3, problems=200, of_seed=0.02, of_problem=0.1, draw=0):
    """What `crossfit` would return for placements of known losses."""
    random = np.random.default_rng(draw)
    tokens = random.integers(1, 6, size=problems)
    common = 0.5 * random.normal(size=problems)  # a hard problem is hard for all placements
    rows = []
    for placement, loss in true.items():
        own = of_problem * random.normal(size=problems)
        for seed in range(seeds):
            level = loss + of_seed * random.normal() + 0.1 * seed
            losses = tokens * (level + common + own)
            row = {"task": "t", "placement": placement, "seed": seed, "losses": losses}
            rows.append(row | {"loss": losses.sum() / tokens.sum(), "tokens": tokens})
    return pd.DataFrame(rows)


def test_differences_hold_all_at_once():
    """Of 200 experiments with 6 comparisons each, some 5 % have an interval that misses."""
    true = {name: 1 + 0.01 * number for number, name in enumerate("abcdefg")}
    missed = 0
    for draw in range(200):
        found = ex.differences(judged(true, draw=draw), "a").set_index("placement")
        truth = pd.Series(true) - true["a"]
        truth = truth[found.index]
        missed += ((found["low"] > truth) | (found["high"] < truth)).any()
    assert 2 <= missed <= 20


def test_differences_know_the_noise_of_problems():
    """Without noise of seeds, the interval is that of a paired t-test over the problems."""
    results = judged({"a": 1.0, "b": 1.1}, of_seed=0, seeds=2)
    results["tokens"] = [np.ones(200)] * 4  # then the mean over tokens is that over problems
    results["loss"] = results["losses"].map(np.mean)
    [found] = ex.differences(results, "a").itertuples()
    means = results.groupby("placement")["losses"].apply(lambda own: np.mean(list(own), axis=0))
    gaps = means["b"] - means["a"]
    assert found.difference == pytest.approx(gaps.mean())
    error = gaps.std(ddof=1) / 200**0.5
    assert found.high - found.difference == pytest.approx(error * stats.t.ppf(0.975, 1))


def test_differences_are_paired_by_common_seeds():
    """What a seed does to all placements does not count, also where one lacks a seed."""
    results = judged({"a": 1.0, "b": 1.0, "c": 1.0}, of_seed=1e-9, of_problem=1e-9, seeds=4)
    fewer = results[~((results["placement"] == "c") & (results["seed"] > 1))]
    found = ex.differences(fewer, "a").set_index("placement")
    assert found["seeds"].to_dict() == {"b": 4, "c": 2}
    assert found["difference"].abs().max() < 1e-6  # 0.1 to 0.2 where means over seeds were compared
    assert fewer.groupby("placement")["loss"].mean().agg(np.ptp) > 0.09


def test_more_seeds_make_narrower_differences():
    results = judged({name: 1.0 for name in "abcdef"}, of_seed=0.1, of_problem=1e-6, seeds=8)
    fewer = results[~((results["placement"] == "b") & (results["seed"] > 1))]
    found = ex.differences(fewer, "a").set_index("placement")
    widths = found["high"] - found["low"]
    assert widths["b"] == pytest.approx(2 * widths["c"], rel=1e-3)


def test_differences_of_what_is_apart():
    found = ex.differences(judged({"a": 1.0, "b": 1.5, "c": 0.5, "d": 1.0}), "a")
    assert found.set_index("placement")["verdict"].to_dict() == {
        "b": "worse",
        "c": "better",
        "d": "undecided",
    }


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda results: results.drop(columns="losses"), "losses"),
        (lambda results: results[results["seed"] == 0], "two seeds or more"),
        (lambda results: results.drop(index=[0, 1]), "two seeds or more"),
        (lambda results: results[results["placement"] != "a"], "reference='a'"),
        (lambda results: results.head(0), "empty"),
    ],
)
def test_differences_of_bad_input(spoil, said):
    with pytest.raises(ValueError, match=said):
        ex.differences(spoil(judged({"a": 1.0, "b": 1.1})), "a")
