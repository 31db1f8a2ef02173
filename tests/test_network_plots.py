"""Pictures of what breaks the growth of features in small networks."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from plop_nb import network_plots as plots
from plop_nb.experiments import growth, mean_interval
from plop_nb.palette import type_color

STEPS = np.arange(5)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def run(factor=1.0):
    """Two networks, which move by one and by two a step, times `factor`."""
    rows = [pd.DataFrame({"step": STEPS, "seed": s, "moved": factor * STEPS * s}) for s in (1, 2)]
    return pd.concat(rows, ignore_index=True)


def networks():
    return {"neurons": {"ReLU": run(0.5), "GeLU": run()}, "attention": {"q": run(2)}}


def heights(band, step):
    """The lower and the upper edge of a filled band at this step."""
    corners = band.get_paths()[0].vertices
    at_step = corners[np.isclose(corners[:, 0], step), 1]
    return at_step.min(), at_step.max()


def test_a_knob_is_drawn_squared_over_the_base():
    """A way of slope 1 has a square of slope 2, which is what the notebook speaks of."""
    axes = plots.plot_knobs({"slower": run(0.5), "same": run()}, run(), title="A finding")
    assert [ax.get_title(loc="left") for ax in axes] == ["slower", "same"]
    assert axes[0].figure.get_suptitle() == "A finding"
    slower, base = axes[0].lines
    assert slower.get_xdata().tolist() == [1, 2, 3, 4]
    assert base.get_ydata() == pytest.approx(2.5 * STEPS[1:] ** 2)  # the mean of 1 and of 4
    assert slower.get_ydata() == pytest.approx(base.get_ydata() / 4)
    assert axes[1].lines[0].get_ydata() == pytest.approx(base.get_ydata())


def test_the_band_is_the_interval_of_the_mean():
    [ax] = plots.plot_knobs({"same": run()}, run())
    interval = mean_interval(np.array([16.0, 64.0]))
    low, high = heights(ax.collections[0], 4)
    assert high == pytest.approx(interval.high)
    assert interval.low < 0 < low < 1e-6  # which has no logarithm


def test_where_a_target_is_met_is_marked():
    far, near = plots.plot_knobs({"far": run(), "near": run()}, run(), met={"near": 3})
    assert len(far.lines) == 2 and list(near.lines[2].get_xdata()) == [3, 3]
    assert "target met" in near.texts[0].get_text()
    [other] = plots.plot_knobs({"near": run()}, run(), met={"near": 3}, met_name="loss below 2 %")
    assert "loss below 2 %" in other.texts[0].get_text()


def test_panels_that_are_left_over_are_empty():
    axes = plots.plot_knobs({f"knob {number}": run() for number in range(5)}, run())
    assert len(axes) == 5
    others = [ax for ax in axes[0].figure.axes if ax not in axes]
    assert len(others) == 3 and not any(ax.axison for ax in others)


def test_each_panel_has_its_runs_and_their_names():
    axes = plots.plot_displacements(
        {"small": {"rule": run(), "noise": run(2)}, "all": {"a": run()}}
    )
    assert [ax.get_title(loc="left") for ax in axes] == ["small", "all"]
    assert [text.get_text() for text in axes[0].texts] == ["rule", "noise"]
    rule, noise = axes[0].lines
    assert noise.get_ydata() == pytest.approx(4 * rule.get_ydata())
    assert rule.get_color() != noise.get_color()


def test_a_guide_is_a_power_through_the_first_step():
    noise, other = plots.plot_knobs({"noise": run(), "other": run()}, run(), guides={"noise": 1})
    assert len(other.lines) == 2
    assert noise.lines[2].get_ydata() == pytest.approx(2.5 * STEPS[1:])
    assert noise.texts[0].get_text() == "exponent 1"


def test_a_multiple_is_flat_where_growth_is_quadratic():
    left, right = plots.plot_multiples(networks(), unit=1.0, title="Flat")
    assert left.figure.get_suptitle() == "Flat"
    assert [ax.get_title(loc="left") for ax in (left, right)] == ["neurons", "attention"]
    (relu, gelu), [query] = left.lines, right.lines
    assert gelu.get_ydata() == pytest.approx([2.5] * 4)  # the mean of 1 and of 4
    assert relu.get_ydata() == pytest.approx(gelu.get_ydata() / 4)
    assert query.get_ydata() == pytest.approx(gelu.get_ydata() * 4)
    _, high = heights(left.collections[1], 4)
    assert high == pytest.approx(mean_interval(np.array([1.0, 4.0])).high)
    assert query.get_xdata().tolist() == [1, 2, 3, 4]
    assert left.get_yscale() == right.get_yscale() == "log"


def test_maps_of_the_attention_have_their_colours():
    left, right = plots.plot_multiples(networks(), unit=1.0)
    (relu, gelu), [query] = left.lines, right.lines
    assert to_hex(query.get_color()) == type_color("q_proj").lower()
    assert relu.get_color() == gelu.get_color() and relu.get_ls() != gelu.get_ls()
    names = [text.get_text() for ax in (left, right) for text in ax.texts]
    assert names == ["flat: quadratic growth", "ReLU", "GeLU", "q"]


def test_bands_that_overlap_have_edges():
    [ax] = plots.plot_multiples({"attention": {"q": run(), "k": run(2)}}, unit=1.0)
    for band, name in zip(ax.collections, ("q_proj", "k_proj"), strict=True):
        assert to_hex(band.get_edgecolor()[0]) == type_color(name).lower()
        assert band.get_facecolor()[0, 3] < band.get_edgecolor()[0, 3]


def test_a_formula_is_circles_over_its_run_only():
    computed = pd.Series([0.6, 0.6, 0.5, 0.5], index=[1, 2, 3, 4])
    left, right = plots.plot_multiples(networks(), unit=1.0, formulas={"ReLU": computed})
    _, circles, _ = left.lines
    assert circles.get_ydata() == pytest.approx(computed)
    assert circles.get_ls() == "None" and circles.get_marker() == "o"
    assert "formula" in [text.get_text() for text in left.texts]
    assert len(right.lines) == 1 and [text.get_text() for text in right.texts] == ["q"]


def test_runs_of_growth_fit():
    real = growth(32, 5, seeds=2)
    [ax] = plots.plot_knobs({"none": real}, real)
    assert ax.lines[0].get_ydata() == pytest.approx(ax.lines[1].get_ydata())
    plots.plot_displacements({"one": {"linear": real}})


# What is refused


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.plot_multiples({}, 1.0), "nothing to draw"),
        (lambda: plots.plot_multiples({"a": dict.fromkeys("abcde", run())}, 1.0), "has 5 runs"),
        (lambda: plots.plot_knobs({}, run()), "nothing to draw"),
        (lambda: plots.plot_knobs({"a": run()}, run().drop(columns="moved")), r"\['moved'\]"),
        (lambda: plots.plot_displacements({}), "nothing to draw"),
        (lambda: plots.plot_displacements({"a": dict.fromkeys("abcd", run())}), "has 4 runs"),
    ],
)
def test_what_cannot_be_drawn_is_named(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
    assert not plt.get_fignums()
