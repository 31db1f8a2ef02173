"""What the recorder of notebook 06 trains next, and what decides it."""

import importlib
import itertools
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[1] / "notebooks" / "tools"
INSIDE = {1e-4: 0.4, 2e-4: 0.6, 4e-4: 0.5, 8e-4: 0.1}  # validation by rate: the best is 2e-4


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("record_grpo")


def rows_for(missing, by_rate):
    """What such trainings would have left; a rate that is not told is the worst."""
    rows = []
    for one in missing:
        told = {"placement": one.label, "lr": one.lr, "seed": one.seed}
        rows.append(told | {"validation": by_rate.get(one.lr, 0.0)})
    return rows


def test_first_every_placement_is_trained_at_every_rate_with_the_seeds_for_tuning(tool):
    missing = tool.wanted(tool.SMALL, [])
    cells = set(itertools.product(tool.LABELS, tool.SMALL.rates, tool.SMALL.tuning))
    assert {(one.label, one.lr, one.seed) for one in missing} == cells
    assert len(missing) == len(cells)


def test_an_interrupted_record_goes_on_where_it_was(tool):
    missing = tool.wanted(tool.SMALL, [])
    assert tool.wanted(tool.SMALL, rows_for(missing[:5], INSIDE)) == missing[5:]


def test_then_the_best_rate_is_trained_with_the_seeds_for_testing(tool):
    rows = rows_for(tool.wanted(tool.SMALL, []), INSIDE)
    missing = tool.wanted(tool.SMALL, rows)
    assert {one.lr for one in missing} == {2e-4}
    assert len(missing) == len(tool.LABELS) * len(tool.SMALL.testing)
    assert tool.wanted(tool.SMALL, rows + rows_for(missing, {})) == []


def test_runs_for_testing_choose_no_rate(tool):
    rows = rows_for(tool.wanted(tool.SMALL, []), INSIDE)
    tested = [{"placement": "MLP", "lr": 8e-4, "seed": 0, "validation": 1.0}]
    assert {one.lr for one in tool.wanted(tool.SMALL, rows + tested)} == {2e-4}


@pytest.mark.parametrize(("best", "further"), [(1e-4, 5e-5), (8e-4, 1.6e-3)])
def test_a_best_rate_at_the_edge_is_searched_beyond(tool, best, further):
    by_rate = {best: 0.9}
    rows = rows_for(tool.wanted(tool.SMALL, []), by_rate)
    missing = tool.wanted(tool.SMALL, rows)
    assert {one.lr for one in missing} == {further}
    assert {one.seed for one in missing} == set(tool.SMALL.tuning)
    rows += rows_for(missing, by_rate)
    assert {one.seed for one in tool.wanted(tool.SMALL, rows)} == set(tool.SMALL.testing)


def test_the_search_for_a_rate_ends(tool):
    rows, tried = [], 0
    while any(one.seed in tool.SMALL.tuning for one in tool.wanted(tool.SMALL, rows)):
        missing = tool.wanted(tool.SMALL, rows)
        rates = {one.lr: -one.lr for one in missing}  # ever better below
        rows += rows_for(missing, rates)
        tried += 1
    assert len({row["lr"] for row in rows}) == tool.MOST_RATES
    assert tried == 1 + tool.MOST_RATES - len(tool.SMALL.rates)
