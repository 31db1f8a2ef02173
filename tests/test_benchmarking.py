"""The recorded benchmark, as it is read."""

import numpy as np
import pandas as pd
import pytest

from plop_nb import experiments as ex


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
