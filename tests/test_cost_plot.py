"""What scoring takes by the work: dots, the band of rates, estimates."""

import pandas as pd
import pytest
from matplotlib.figure import Figure

from plop_nb.cost_plot import plot_cost

RUNS = pd.DataFrame({"run": ["a", "b", "c"], "work": [1.0, 2.0, 10.0], "seconds": [20, 30, 150]})


def test_an_estimate_spans_the_rates_that_were_measured():
    """15 to 20 seconds per unit of work: 60 to 80 for four units."""
    ax = plot_cost(RUNS, {"mine": 4.0}, ax=Figure().subplots())
    dots, line = ax.lines
    assert list(zip(*dots.get_data(), strict=True)) == [(1, 20), (2, 30), (10, 150)]
    assert list(line.get_xdata()) == [4, 4] and list(line.get_ydata()) == [60, 80]
    names = [text.get_text() for text in ax.texts]
    assert names == ["a: 20 s", "b: 30 s", "c: 150 s", "mine,\nestimate: 60 to 80 s"]
    assert "15 to 20 s per billion" in ax.get_title("left")
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


def test_the_band_of_rates_ends_a_little_beyond_the_works():
    """Nothing is known of works much smaller or larger than those that were run."""
    ax = plot_cost(RUNS, {"mine": 4.0}, ax=Figure().subplots())
    [band] = ax.collections
    ends = band.get_paths()[0].vertices[:, 0]
    assert 1 / 2 < ends.min() < 1 and 10 < ends.max() < 20
    left, right = ax.get_xlim()
    assert left < ends.min() and ends.max() < right  # the names stand beside it


def test_the_band_is_explained_under_the_axis():
    """Outside of the axes, where it cannot run into the names of the runs."""
    ax = plot_cost(RUNS, {}, ax=Figure().subplots())
    told = ax.get_xlabel().splitlines()[1]
    assert told == "grey and blue: lowest to highest rate of the 3 runs (circles)"


def test_slow_runs_have_their_names_on_the_left():
    ax = plot_cost(RUNS, {}, ax=Figure().subplots())
    assert [text.get_ha() for text in ax.texts[:3]] == ["right"] * 3  # none is below the median
    other = RUNS.assign(seconds=[20, 30, 190])
    ax = plot_cost(other, {}, ax=Figure().subplots())
    assert [text.get_ha() for text in ax.texts[:3]] == ["right", "left", "right"]


@pytest.mark.parametrize("works", [[1.0, 2.0, 0.0], [1.0, 2.0, float("nan")]])
def test_costs_without_work_are_refused(works):
    with pytest.raises(ValueError, match="above 0"):
        plot_cost(RUNS.assign(work=works), {})
    with pytest.raises(ValueError, match="above 0"):
        plot_cost(RUNS[:0], {"mine": 4.0})
