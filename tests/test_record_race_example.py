"""The finished race that notebook 07 shows: the record is what the tool makes of the benchmark."""

import importlib
from pathlib import Path

import pandas as pd
import pytest

import plop_nb as plop

TOOLS = Path(__file__).parents[1] / "notebooks" / "tools"


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("record_race_example")


@pytest.fixture
def recorded():
    return pd.read_csv(plop.data_file("results/race_example.csv"), comment="#")


def test_the_record_is_what_the_race_finds(tool, recorded):
    record = tool.read(tool.RESULTS, tool.MODEL, tool.TASK)
    found = tool.table_of(*tool.raced(record))
    pd.testing.assert_frame_equal(found.reset_index(drop=True), recorded, rtol=1e-3, atol=1e-4)


def test_the_finalists_are_judged_by_the_problems_that_the_race_has_not_seen(tool, recorded):
    record = tool.read(tool.RESULTS, tool.MODEL, tool.TASK)
    losses = []
    for row in recorded.itertuples():
        sums = [record.sums[row.types, row.lr, seed][1::2].sum() for seed in tool.FINAL]
        losses.append(sum(sums) / len(sums) / record.tokens[1::2].sum())
    assert recorded["test_loss"].tolist() == pytest.approx(losses, rel=1e-4)


def test_the_rivals_are_those_of_the_notebook(tool, recorded):
    """As the cell `rivals_of` names them."""
    notebook = (TOOLS.parent / "07_explore_your_model.py").read_text()
    assert set(recorded["placement"]) == set(tool.PLACEMENTS)
    assert all(f'"{name}"' in notebook for name in tool.PLACEMENTS)
    assert recorded["loss"].is_monotonic_increasing


def test_the_record_tells_ranks_and_the_loss_before_training(recorded):
    """At about equal parameters: whole ranks match within 4 %."""
    assert recorded["parameters"].max() / recorded["parameters"].min() < 1.04
    ranks = recorded.set_index("placement")["r"].to_dict()
    assert ranks == {"chosen": 16, "by the median": 20, "largest maps": 13, "all": 8}
    assert (recorded["untrained_loss"] > 3 * recorded["test_loss"]).all()
