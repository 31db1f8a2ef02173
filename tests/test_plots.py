"""Scores on several kinds of texts in one picture; what the pictures of scores say in words."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

import plop_nb as plop
from plop_nb.palette import type_color
from plop_nb.plots import mean_in_words, plot_cost, plot_kinds

TYPES = ["v_proj", "q_proj", "k_proj"]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def frame(means, texts=4, layers=2):
    """Scores around these means of `TYPES`."""
    rows = []
    for sample in range(texts):
        for name, mean in zip(TYPES, means, strict=True):
            for layer in range(layers):
                at = {"sample": sample, "module": f"m.{layer}.{name}", "type": name}
                rows.append({**at, "layer": layer, "nfn": mean + 0.01 * sample})
    return pd.DataFrame(rows)


KINDS = {"math": frame([0.5, 1.5, 1.2]), "history": frame([0.4, 1.1, 1.3])}


def dots(ax):
    """[(x, y, colour)] of the dots, in the order in which they were drawn."""
    lines = [
        line for line in ax.lines if line.get_marker() in "oDs^" and len(line.get_xdata()) == 1
    ]
    return [(line.get_xdata()[0], line.get_ydata()[0], to_hex(line.get_color())) for line in lines]


def test_each_type_has_a_dot_for_each_kind_in_its_colour():
    ax = plot_kinds(KINDS, ax=Figure().subplots())
    order = ["v_proj", "k_proj", "q_proj"]  # on the first kind
    assert [label.get_text() for label in ax.get_yticklabels()] == order
    found = dots(ax)
    assert len(found) == 6
    for number, scores in enumerate(KINDS.values()):
        means = plop.by_type(scores).set_index("type")["nfn"]
        for place, name in enumerate(order):
            x, y, color = found[3 * number + place]
            assert x == pytest.approx(means[name]) and round(y) == place
            assert color == type_color(name).lower()
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == list(KINDS)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_dots_of_a_type_stay_in_its_row_and_apart(count):
    ax = plot_kinds({str(number): frame([0.5, 1, 1.5]) for number in range(count)})
    heights = sorted(y for x, y, _ in dots(ax) if x < 0.7)
    assert len(heights) == count and max(np.abs(heights)) < 0.5
    assert (np.diff(heights) > 0.05).all()


def test_kinds_say_how_wide_their_intervals_are_and_carry_a_title():
    ax = plot_kinds(KINDS, level=0.9, title="two kinds")
    assert "90% interval over 4 texts" in ax.get_xlabel()
    assert ax.get_title(loc="left") == "two kinds"
    assert plop.plot_types(KINDS["math"], title="one kind").get_title(loc="left") == "one kind"


def test_other_kinds_are_refused():
    with pytest.raises(ValueError, match="kinds has 0 entries, expected 1 to 4"):
        plot_kinds({})
    with pytest.raises(ValueError, match="kinds has 5 entries"):
        plot_kinds({str(number): KINDS["math"] for number in range(5)})
    fewer = KINDS["math"].query("type != 'q_proj'")
    with pytest.raises(ValueError, match=r"scores on 'b' lack the types \['q_proj'\]"):
        plot_kinds({"a": KINDS["math"], "b": fewer})


def test_the_axis_says_over_how_many_maps_a_mean_is():
    assert "mean over 2 maps" in plop.plot_types(KINDS["math"]).get_xlabel()
    uneven = KINDS["math"].query("type != 'q_proj' or layer == 0")
    assert mean_in_words(plop.by_type(uneven)).startswith("NFN, mean over a type's maps")


# What scoring costs

RUNS = pd.DataFrame({"run": ["a", "b", "c"], "work": [1.0, 2.0, 10.0], "seconds": [20, 30, 150]})


def test_an_estimate_spans_the_rates_that_were_measured():
    """15 to 20 seconds per unit of work: 60 to 80 for four units."""
    ax = plot_cost(RUNS, {"mine": 4.0}, ax=Figure().subplots())
    dots, line = ax.lines
    assert list(zip(*dots.get_data(), strict=True)) == [(1, 20), (2, 30), (10, 150)]
    assert list(line.get_xdata()) == [4, 4] and list(line.get_ydata()) == [60, 80]
    names = [text.get_text() for text in ax.texts]
    assert names == ["a: 20 s", "b: 30 s", "c: 150 s", "mine (estimate):\n60 to 80 s"]
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


def test_whiskers_have_a_white_rim():
    """So that they are seen on dark bars."""
    ax = plop.plot_types(KINDS["math"], ax=Figure().subplots())
    _, rim, whiskers = ax.containers
    [below], [above] = rim.lines[2], whiskers.lines[2]
    assert np.array_equal(below.get_segments(), above.get_segments())
    assert to_hex(below.get_color()[0]) == "#ffffff" and to_hex(above.get_color()[0]) != "#ffffff"
    assert below.get_linewidth()[0] > above.get_linewidth()[0] + 1


def test_slow_runs_have_their_names_on_the_left():
    ax = plot_cost(RUNS, {}, ax=Figure().subplots())
    assert [text.get_ha() for text in ax.texts] == ["right"] * 3  # none is below the median
    other = RUNS.assign(seconds=[20, 30, 190])
    ax = plot_cost(other, {}, ax=Figure().subplots())
    assert [text.get_ha() for text in ax.texts] == ["right", "left", "right"]


@pytest.mark.parametrize("works", [[1.0, 2.0, 0.0], [1.0, 2.0, float("nan")]])
def test_costs_without_work_are_refused(works):
    with pytest.raises(ValueError, match="above 0"):
        plot_cost(RUNS.assign(work=works), {})
    with pytest.raises(ValueError, match="above 0"):
        plot_cost(RUNS[:0], {"mine": 4.0})
