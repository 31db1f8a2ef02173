"""Pictures of what breaks the growth of features, and of what a real network's scores do."""

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
    return {"relu": run(0.5), "gelu": run(), "attention q": run(2)}


def intervals():
    columns = {"mean": [0.5, -0.5], "low": [0.2, -1.0], "high": [0.9, 0.1]}
    return pd.DataFrame(columns, index=["one", "other"])


def maps():
    rows = []
    for panel in ("full", "lora"):
        for layer in range(3):
            rows.append((panel, "k_proj", layer, 1.5, 2.0 + layer))
            rows.append((panel, "v_proj", layer, 0.5 + layer / 4, layer - 1.0))
    return pd.DataFrame(rows, columns=["panel", "type", "layer", "before", "change"])


def values():
    return maps().query("type == 'v_proj'")


def heights(band, step):
    """The lower and the upper edge of a filled band at this step."""
    corners = band.get_paths()[0].vertices
    at_step = corners[np.isclose(corners[:, 0], step), 1]
    return at_step.min(), at_step.max()


def dots(collection):
    return np.asarray(collection.get_offsets())


# Small networks


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
    ax = plots.plot_multiples(networks(), unit=1.0, title="Flat")
    assert ax.figure.get_suptitle() == "Flat"
    relu, gelu, query = ax.lines
    assert gelu.get_ydata() == pytest.approx([2.5] * 4)  # the mean of 1 and of 4
    assert relu.get_ydata() == pytest.approx(gelu.get_ydata() / 4)
    _, high = heights(ax.collections[1], 4)
    assert high == pytest.approx(mean_interval(np.array([1.0, 4.0])).high)
    assert query.get_xdata().tolist() == [1, 2, 3, 4]


def test_maps_of_the_attention_have_their_colours():
    ax = plots.plot_multiples(networks(), unit=1.0)
    relu, gelu, query = ax.lines
    assert to_hex(query.get_color()) == type_color("q_proj").lower()
    assert relu.get_color() == gelu.get_color() and relu.get_ls() != gelu.get_ls()
    assert [text.get_text() for text in ax.texts] == ["relu", "gelu", "attention q"]


def test_rows_of_intervals_are_named_from_the_top():
    ax = plots.plot_intervals(intervals(), what="difference")
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["one", "other"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    assert list(ax.lines[0].get_xdata()) == [0.2, 0.9]
    assert list(ax.lines[3].get_xdata()) == [-0.5]


def test_rows_of_intervals_may_have_colours():
    ax = plots.plot_intervals(intervals().assign(color=["#112233", "#445566"]), what="difference")
    assert [ax.lines[place].get_color() for place in (1, 3)] == ["#112233", "#445566"]


def test_runs_of_growth_fit():
    real = growth(32, 5, seeds=2)
    [ax] = plots.plot_knobs({"none": real}, real)
    assert ax.lines[0].get_ydata() == pytest.approx(ax.lines[1].get_ydata())
    plots.plot_displacements({"one": {"linear": real}})


# A real network


def test_types_stand_from_the_lowest_score_with_the_interval_of_their_layers():
    axes = plots.plot_gains(maps(), ["lora", "full"], title="Changes")
    assert [ax.get_title(loc="left") for ax in axes] == ["lora", "full"]
    assert axes[0].figure.get_suptitle() == "Changes"
    assert [tick.get_text() for tick in axes[0].get_xticklabels()] == ["v\n0.75", "k\n1.50"]
    small = axes[0].collections[0]
    assert dots(small)[:, 1].tolist() == [-1, 0, 1]  # of v_proj
    bar, mean = axes[0].lines[:2]
    interval = mean_interval(np.array([-1.0, 0.0, 1.0]))
    assert bar.get_ydata() == pytest.approx([interval.low, interval.high])
    assert list(mean.get_ydata()) == [0] and to_hex(mean.get_color()) == type_color("v").lower()


def test_larger_changes_are_triangles_at_the_edge():
    table = maps().query("panel == 'full' and type == 'v_proj'")
    [ax] = plots.plot_gains(table.assign(change=[30.0, -40.0, 1.0]), ["full"], limit=10)
    inside, above, below = ax.collections
    assert dots(inside)[:, 1].tolist() == [1]
    assert dots(above)[:, 1].tolist() == [10] and dots(below)[:, 1].tolist() == [-10]
    assert dots(above)[0, 0] < dots(below)[0, 0] < dots(inside)[0, 0]  # by layer
    assert ax.lines[1].get_ydata()[0] == pytest.approx(-3)  # the mean is of all


def test_layers_are_dots_and_the_largest_changes_have_numbers():
    table = values().assign(change=[5.0, 0.1, -7.0] * 2)
    left, right = plots.plot_layers(table, ["full", "lora"], named=2)
    assert dots(left.collections[0]).tolist() == [[0.5, 5], [0.75, 0.1], [1, -7]]
    assert [text.get_text() for text in left.texts] == ["2", "0"]
    assert left.collections[0].get_array().tolist() == [0, 1, 2]
    assert right.get_title(loc="left") == "lora"


def test_layers_of_several_types_are_refused():
    with pytest.raises(ValueError, match=r"types \['k_proj', 'v_proj'\], expected one"):
        plots.plot_layers(maps(), ["full"])


# What is refused, and where it is drawn

PICTURES = {
    "plot_multiples": (networks, {"unit": 1.0}),
    "plot_intervals": (intervals, {"what": "a"}),
}


@pytest.mark.parametrize("name", PICTURES)
def test_axes_are_used_when_given(name):
    _, (left, right) = plt.subplots(1, 2)
    draw, (table, options) = getattr(plots, name), PICTURES[name]
    assert draw(table(), **options, ax=left) is left and not right.has_data()
    assert draw(table(), **options).figure is not left.figure


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.plot_multiples({}, 1.0), "nothing to draw"),
        (lambda: plots.plot_intervals(intervals().head(0), what="a"), "is empty"),
        (lambda: plots.plot_knobs({}, run()), "nothing to draw"),
        (lambda: plots.plot_knobs({"a": run()}, run().drop(columns="moved")), r"\['moved'\]"),
        (lambda: plots.plot_displacements({}), "nothing to draw"),
        (lambda: plots.plot_displacements({"a": dict.fromkeys("abcd", run())}), "has 4 runs"),
        (lambda: plots.plot_gains(maps(), ["full", "none"]), r"no rows for \['none'\]"),
        (lambda: plots.plot_gains(maps(), []), r"panels=\[\]"),
        (lambda: plots.plot_gains(maps().drop(columns="type"), ["full"]), r"\['type'\]"),
        (lambda: plots.plot_layers(values().drop(columns="layer"), ["full"]), r"\['layer'\]"),
        (lambda: plots.plot_layers(values(), ["none"]), r"no rows for \['none'\]"),
    ],
)
def test_what_cannot_be_drawn_is_named(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
    assert not plt.get_fignums()
