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
    return maps().query("type == 'v_proj'")


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
    labels = {text.get_text(): text.xy for text in ax.texts}
    assert labels == {"30": tuple(dots(above)[0]), "-40": tuple(dots(below)[0])}


def test_layers_are_dots_and_the_largest_changes_have_numbers():
    table = values().assign(change=[5.0, 0.1, -7.0] * 2)
    left, right = plots.plot_layer_gains(table, ["full", "lora"], named=2)
    assert dots(left.collections[0]).tolist() == [[0.5, 5], [0.75, 0.1], [1, -7]]
    assert [text.get_text() for text in left.texts] == ["layer 2", "layer 0"]
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
        plots.plot_layer_gains(maps(), ["full"])


# Intervals


def test_rows_of_intervals_are_named_from_the_top():
    ax = plots.plot_intervals(intervals(), what="difference")
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["one", "other"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    assert list(ax.lines[0].get_xdata()) == [0.2, 0.9]
    assert list(ax.lines[3].get_xdata()) == [-0.5]


def test_the_sides_of_zero_may_have_words():
    left, right = plots.plot_intervals(intervals(), what="a", sides=["fewer", "more"]).texts
    assert (left.get_text(), left.get_ha()) == ("fewer", "right")
    assert (right.get_text(), right.get_ha()) == ("more", "left")
    assert left.xy[0] == right.xy[0] == 0 and left.xyann[0] < 0 < right.xyann[0]


def test_rows_of_intervals_may_have_colours():
    ax = plots.plot_intervals(intervals().assign(color=["#112233", "#445566"]), what="difference")
    assert [ax.lines[place].get_color() for place in (1, 3)] == ["#112233", "#445566"]


def test_rows_are_drawn_on_axes_that_are_given():
    _, (left, right) = plt.subplots(1, 2)
    assert plots.plot_intervals(intervals(), what="a", ax=left) is left and not right.has_data()
    assert plots.plot_intervals(intervals(), what="a").figure is not left.figure


# What is refused


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.plot_intervals(intervals().head(0), what="a"), "is empty"),
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
