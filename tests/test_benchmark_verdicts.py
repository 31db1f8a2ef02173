"""A second analysis of the recorded benchmark, naive on purpose: it has to say the same."""

import pandas as pd
import pytest

from plop_nb import experiments as ex

MLP = "down+gate+up"
TUNING = 0


@pytest.fixture(scope="module")
def runs():
    """Runs of SmolLM2 on placements that were tuned with one seed and repeated with others."""
    runs = ex.load_benchmark()
    runs = runs[runs["model"] == "SmolLM2-135M-Instruct"]
    return runs.groupby(["task", "placement"]).filter(is_judged)


def is_judged(own):
    return own.loc[own["seed"] == TUNING, "lr"].nunique() >= 3 and own["seed"].nunique() >= 3


def naive_losses(runs):
    """Losses by (task, placement, seed, half): at the rate with the lowest loss of seed 0."""
    rows = []
    for (task, placement), own in runs.groupby(["task", "placement"]):
        tuning = own[own["seed"] == TUNING]
        rate = tuning.loc[tuning["loss"].idxmin(), "lr"]
        for run in own[(own["lr"] == rate) & (own["seed"] != TUNING)].itertuples():
            for half in range(2):
                part = run.losses[half::2].sum() / run.tokens[half::2].sum()
                about = {"task": task, "placement": placement, "seed": run.seed, "half": half}
                rows.append(about | {"loss": part})
    return pd.DataFrame(rows)


def test_a_naive_analysis_finds_the_same_verdicts(runs):
    """What is surely worse is worse with every seed on both halves, by about as much."""
    naive = naive_losses(runs).pivot(
        index=["task", "placement"], columns=["seed", "half"], values="loss"
    )
    reference = naive.xs(MLP, level="placement")
    table = ex.differences(ex.crossfit(runs, tuning_seeds=[TUNING]), MLP)
    assert {"worse", "undecided"} <= set(table["verdict"])
    for row in table.itertuples():
        gaps = (naive.loc[(row.task, row.placement)] - reference.loc[row.task]).dropna()
        assert gaps.mean() == pytest.approx(row.difference, abs=0.02)
        if row.verdict == "worse":
            assert (gaps > 0).all()
        if row.verdict == "better":
            assert (gaps < 0).all()
