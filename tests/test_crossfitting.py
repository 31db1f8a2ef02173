"""Losses at tuned rates: those of real runs, and none chosen by what it is judged on."""

import numpy as np
import pandas as pd
import pytest

from plop_nb.experiments.crossfitting import best_rate, chosen_rates, crossfit

RATES = [5e-4, 1e-3, 2e-3, 4e-3, 8e-3]
TOKENS = [3, 1, 2, 4, 2, 2, 1, 5, 3, 2]


def valley(best, seeds=(0, 1, 2), noise=0.02, rates=RATES, placement="p", draw=0):
    """Runs whose loss per token is a parabola in log2 of the rate, plus noise of each example."""
    random = np.random.default_rng(draw)
    rows = []
    for lr in rates:
        for seed in seeds:
            level = 1 + 0.3 * np.log2(lr / best) ** 2
            losses = np.array(TOKENS) * (level + noise * random.normal(size=len(TOKENS)))
            row = {"task": "t", "placement": placement, "lr": lr, "seed": seed}
            rows.append(row | {"losses": losses.tolist(), "tokens": TOKENS})
    return pd.DataFrame(rows)


def test_finds_the_rate_and_the_losses_of_real_runs():
    found = crossfit(valley(best=2.1e-3))
    assert found["lr"].tolist() == pytest.approx([2e-3] * 3) and not found["edge"].any()
    runs = valley(best=2.1e-3).query("lr == 2e-3").set_index("seed")
    for row in found.itertuples():
        assert row.losses == pytest.approx(runs.loc[row.seed, "losses"])
        assert row.loss == pytest.approx(sum(runs.loc[row.seed, "losses"]) / sum(TOKENS))


def test_no_loss_has_a_part_in_choosing_its_own_rate():
    """Whatever happens to a seed on a half, it is read at the rate that others prefer."""
    runs = valley(best=2e-3)
    before = crossfit(runs).set_index("seed")
    spoilt = runs.copy()
    for number, row in spoilt.iterrows():
        if row["seed"] == 1:  # the even examples of this seed now want the lowest rate
            losses = np.array(row["losses"])
            losses[::2] = TOKENS[::2] * np.array(row["lr"])
            spoilt.at[number, "losses"] = losses.tolist()
    after = crossfit(spoilt).set_index("seed")
    assert after.loc[1, "lr"] == before.loc[1, "lr"]
    assert after.loc[1, "losses"][::2] == pytest.approx(np.array(TOKENS[::2]) * 2e-3)
    # but it does count for the other seeds, on the other half
    assert after.loc[0, "losses"][::2] == pytest.approx(before.loc[0, "losses"][::2])


def test_seeds_that_only_choose_the_rates():
    """The others are run where the first is best, and have no say."""
    tuning = valley(best=2e-3, seeds=[0])
    wanted = chosen_rates(tuning, [0])
    assert wanted["lr"].tolist() == [2e-3]
    tests = valley(best=1e-3, seeds=[1, 2]).query("lr == 2e-3")
    found = crossfit(pd.concat([tuning, tests]), tuning_seeds=[0])
    assert found["seed"].tolist() == [1, 2]
    assert found["lr"].tolist() == pytest.approx([2e-3, 2e-3])
    for row, expected in zip(found.itertuples(), tests["losses"], strict=True):
        assert row.losses == pytest.approx(expected)


def test_halves_that_prefer_different_rates():
    """Each half is read at the rate that the other half prefers."""
    tuning = valley(best=1e-3, seeds=[0])
    other = valley(best=4e-3, seeds=[0])
    for one, two in zip(tuning["losses"], other["losses"], strict=True):
        one[::2] = two[::2]  # the even examples
    assert chosen_rates(tuning, [0])["lr"].tolist() == [1e-3, 4e-3]
    tests = valley(best=2e-3, seeds=[1]).query("lr in [1e-3, 4e-3]")
    found = crossfit(pd.concat([tuning, tests]), tuning_seeds=[0]).iloc[0]
    low, high = tests["losses"]
    assert found["losses"][::2].tolist() == low[::2]
    assert found["losses"][1::2].tolist() == high[1::2]


def test_says_where_the_best_rate_is_at_the_edge():
    assert crossfit(valley(best=1e-4))["edge"].all()
    assert crossfit(valley(best=1e-4))["lr"].tolist() == pytest.approx([5e-4] * 3)


def test_a_rate_that_was_not_run_with_all_other_seeds_is_not_chosen():
    runs = valley(best=8e-3)
    partly = runs[(runs["lr"] < 8e-3) | (runs["seed"] == 0)]
    assert crossfit(partly)["lr"].tolist() == pytest.approx([4e-3] * 3)


def test_a_run_that_diverged_loses_and_does_not_bend_the_fit():
    runs = valley(best=2e-3)
    diverged = runs["lr"] == 4e-3
    runs.loc[diverged, "losses"] = pd.Series([[np.nan] * len(TOKENS)] * len(runs))[diverged]
    found = crossfit(runs)
    assert found["lr"].tolist() == pytest.approx([2e-3] * 3) and np.isfinite(found["loss"]).all()


def test_the_fit_smooths_what_a_single_rate_cannot_know():
    """Three losses with noise on the middle one: the parabola still sees the valley between."""
    assert best_rate(np.array([1, 2, 4.0]), np.array([1.0, 0.5, 0.9])) == 1
    assert best_rate(np.array([1, 2, 4.0]), np.array([1.0, 0.99, 1.2])) in (0, 1)
    assert best_rate(np.array([1, 2, 4.0]), np.array([3, 2, np.nan])) == 1


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda runs: runs.drop(columns="losses"), "losses"),
        (lambda runs: pd.concat([runs, runs.head(1)]), "several runs"),
        (lambda runs: runs[runs["lr"] < 2e-3], "3 or more"),
        (lambda runs: runs.assign(tokens=[[1] * 10, *runs["tokens"][1:]]), "different examples"),
    ],
)
def test_bad_input(spoil, said):
    with pytest.raises(ValueError, match=said):
        crossfit(spoil(valley(best=2e-3)))


@pytest.mark.parametrize(
    "tests, said",
    [
        (valley(best=2e-3, seeds=[1]).query("lr == 1e-3"), "run what chosen_rates says"),
        (valley(best=2e-3, seeds=[1], placement="q").query("lr == 2e-3"), r"no runs of \[0\]"),
    ],
)
def test_seeds_that_were_not_tuned(tests, said):
    with pytest.raises(ValueError, match=said):
        crossfit(pd.concat([valley(best=2e-3, seeds=[0]), tests]), tuning_seeds=[0])
