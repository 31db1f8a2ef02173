"""Pictures of what finetuning does to the scores of a real network."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from plop_nb import gain_plots as plots
from plop_nb.experiments import load_task, mean_interval
from plop_nb.palette import type_color


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


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
    return maps().query("type == 'v_proj'").rename(columns={"change": "rise"})


def dots(collection):
    return np.asarray(collection.get_offsets())


# Types and layers


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
    assert ax.lines[2].get_ydata()[0] == 1 and ax.lines[2].get_mfc() == "white"  # so is the median
    labels = {text.get_text(): text.xy for text in ax.texts}
    assert labels == {"30": tuple(dots(above)[0]), "-40": tuple(dots(below)[0])}


def test_layers_are_dots_and_the_largest_rises_have_numbers():
    table = values().assign(rise=[5.0, 0.1, -7.0] * 2)
    left, right = plots.plot_layer_gains(table, ["full", "lora"], named=2)
    assert dots(left.collections[0]).tolist() == [[0.5, 5], [0.75, 0.1], [1, -7]]
    assert [text.get_text() for text in left.texts] == ["layer 0", "layer 1"]
    assert left.collections[0].get_array().tolist() == [0, 1, 2]
    assert right.get_title(loc="left") == "lora: rank correlation -1.00"


def test_larger_scores_are_triangles_at_the_edge():
    """Their value is written, and the correlation is of all layers."""
    [ax] = plots.plot_layer_gains(values().query("panel == 'full'"), ["full"], limit=0.8, named=0)
    inside, beyond = ax.collections
    assert dots(inside).tolist() == [[0.5, -1], [0.75, 0]]
    assert dots(beyond).tolist() == [[0.8, 1]]
    assert [text.get_text() for text in ax.texts] == ["at 1.00"]
    assert ax.get_title(loc="left") == "full: rank correlation 1.00"


def test_layers_of_several_types_are_refused():
    with pytest.raises(ValueError, match=r"types \['k_proj', 'v_proj'\], expected one"):
        plots.plot_layer_gains(maps().assign(rise=0.0), ["full"])


def test_only_the_first_line_of_a_title_is_bold():
    [ax] = plots.plot_gains(maps(), ["full"], title="Finding\n(how)")
    assert ax.figure.get_suptitle().split("\n") == ["Finding", " "]
    how = ax.texts[-1]
    assert how.get_text() == "(how)" and how.get_weight() == "normal"
    ax.figure.canvas.draw()  # it stands in the room left below the finding
    heading, below = (text.get_window_extent() for text in (ax.figure._suptitle, how))
    assert heading.y0 <= below.y0 + 1 and below.y1 < heading.y1 and below.x0 >= heading.x0 - 1


# Intervals


def test_rows_of_intervals_are_named_once_from_the_top():
    panels = {"a": intervals(), "b": intervals() / 2}
    left, right = plots.plot_intervals(panels, what="difference", title="Finding")
    assert [ax.get_title(loc="left") for ax in (left, right)] == ["a", "b"]
    assert left.figure.get_suptitle() == "Finding" and right.get_xlabel() == "difference"
    assert [tick.get_text() for tick in left.get_yticklabels()] == ["one", "other"]
    assert not any(tick.label1.get_visible() for tick in right.yaxis.get_major_ticks())
    assert left.get_ylim()[0] > left.get_ylim()[1]
    assert list(left.lines[0].get_xdata()) == [0.2, 0.9]
    assert list(right.lines[3].get_xdata()) == [-0.25]


def test_the_sides_of_zero_may_have_words():
    [ax] = plots.plot_intervals({"a": intervals()}, what="a", sides=["fewer", "more"])
    left, right = ax.texts
    assert (left.get_text(), left.get_ha()) == ("fewer", "right")
    assert (right.get_text(), right.get_ha()) == ("more", "left")
    assert left.xy[0] == right.xy[0] == 0 and left.xyann[0] < 0 < right.xyann[0]


def test_controls_are_grey():
    [ax] = plots.plot_intervals({"a": intervals()}, what="difference", grey=["other"])
    colors = [line.get_color() for line in ax.lines[:4]]
    assert colors[:2] == [plots.MEASURED] * 2 and colors[2:] == [plots.UNKNOWN] * 2


def test_what_is_expected_is_a_named_line():
    panels = {"a": intervals(), "b": intervals()}
    left, right = plots.plot_intervals(panels, what="a", expected={"a": -1}, expected_name="alike")
    assert list(left.lines[-1].get_xdata()) == [-1, -1] and left.lines[-1].get_ls() == "--"
    assert [text.get_text() for text in left.texts] == ["alike"] and left.texts[0].xy[0] == -1
    assert len(right.lines) == len(left.lines) - 1 and not right.texts


# What is refused


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.plot_intervals({"a": intervals().head(0)}, what="a"), "is empty"),
        (lambda: plots.plot_intervals({}, what="a"), "nothing to draw"),
        (
            lambda: plots.plot_intervals({"a": intervals(), "b": intervals()[::-1]}, what="a"),
            r"panels\['b'\] has other cases",
        ),
        (lambda: plots.plot_gains(maps(), ["full", "none"]), r"no rows for \['none'\]"),
        (lambda: plots.plot_gains(maps(), []), r"panels=\[\]"),
        (lambda: plots.plot_gains(maps().drop(columns="type"), ["full"]), r"\['type'\]"),
        (lambda: plots.plot_layer_gains(values().drop(columns="layer"), ["full"]), r"\['layer'\]"),
        (lambda: plots.plot_layer_gains(values(), ["none"]), r"no rows for \['none'\]"),
    ],
)
def test_what_cannot_be_drawn_is_named(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
    assert not plt.get_fignums()


# What the notebook says of its record


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shared"), [("short_sums", [0, 5]), ("spelling", [0, 0])])
def test_how_many_held_out_examples_were_trained(name, shared):
    """As `record_growth.py` draws them: the held-out ones once, the training by seed."""
    sizes = {"validation": 1, "test": 32}
    held_out = {example["prompt"] for example in load_task(name, train=1, **sizes).test}
    trained = [load_task(name, train=80, seed=seed, **sizes).train for seed in (0, 1)]
    assert [len(held_out & {example["prompt"] for example in one}) for one in trained] == shared
