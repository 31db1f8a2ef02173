"""Two types layer by layer: their means, the layers that decide, and a title that is true."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.figure import Figure

from plop_nb.layer_plot import plot_layers
from plop_nb.palette import type_color

PAIR = ("down_proj", "o_proj")
DOWN, OUTPUT = [1.0, 1.0, 1.0, 1.0], [3.0, 0.9, 0.8, 1.1]  # means 1.0 and 1.45
LAYERS = pd.DataFrame({"down_proj": DOWN, "o_proj": OUTPUT, "v_proj": 0.5})


@pytest.fixture
def ax():
    yield Figure(figsize=(8, 4), layout="constrained").subplots()
    plt.close("all")


def texts(ax):
    return [text.get_text() for text in ax.texts]


def summaries(ax):
    """{summary: the two numbers that stand beside its dots}, as the inset axes show them."""
    [beside] = ax.child_axes
    written, rows = texts(beside), [label.get_text() for label in beside.get_yticklabels()]
    numbers = [written[place : place + 2] for place in range(0, len(written), 2)]
    return dict(zip((row.replace("\n", " ") for row in rows), numbers, strict=True))


def test_each_type_is_a_line_in_its_colour_with_its_name(ax):
    plot_layers(LAYERS, PAIR, ax=ax)
    for line, name in zip(ax.lines, PAIR, strict=False):
        assert list(line.get_ydata()) == LAYERS[name].tolist()
        assert line.get_color() == type_color(name)
    assert texts(ax) == list(PAIR)
    assert set(ax.lines[2].get_ydata()) == {1}  # a random input


def test_the_mean_and_the_median_stand_beside_the_layers(ax):
    plot_layers(LAYERS, PAIR, ax=ax)
    assert summaries(ax) == {"mean of 4 layers": ["1.00", "1.45"], "median": ["1.00", "1.00"]}
    [beside] = ax.child_axes
    dots = [line for line in beside.lines if line.get_marker() == "o"]
    assert [dot.get_color() for dot in dots] == [type_color(name) for name in PAIR] * 2
    assert [float(dot.get_xdata()[0]) for dot in dots[:2]] == pytest.approx([1.0, 1.45])


def test_the_lower_number_stands_on_the_left(ax):
    """So that the numbers of two close dots do not run into each other."""
    plot_layers(LAYERS, PAIR, marked=[0], ax=ax)
    assert summaries(ax)["mean without numbered layers"] == ["1.00", "0.93"]
    [beside] = ax.child_axes
    last = beside.texts[-2:]
    assert [text.get_ha() for text in last] == ["left", "right"]


def test_the_layers_that_decide_are_numbered_and_named_in_the_title(ax):
    plot_layers(LAYERS, PAIR, marked=[0], ax=ax)
    assert texts(ax)[0] == "0"
    assert ax.get_title("left") == "Without layer 0 o_proj would score below down_proj"
    plot_layers(LAYERS, PAIR, marked=[0, 3], ax=ax)
    assert ax.get_title("left") == "Without 2 of 4 layers o_proj would score below down_proj"


def test_numbers_of_layers_are_whole_whatever_their_type(ax):
    floats = LAYERS.set_axis(LAYERS.index.astype(float))
    plot_layers(floats, PAIR, marked=floats.index[:1], ax=ax)
    assert texts(ax)[0] == "0" and "Without layer 0" in ax.get_title("left")


def test_layers_that_do_not_decide_are_not_said_to(ax):
    """Without layer 3 the output's mean is still above."""
    plot_layers(LAYERS, PAIR, marked=[3], ax=ax)
    assert ax.get_title("left") == "o_proj scores above down_proj in 2 of 4 layers"
    plot_layers(LAYERS, PAIR, title="mine", ax=ax)
    assert ax.get_title("left") == "mine"


def test_what_is_not_there_is_named():
    for pair in (("down_proj", "q_proj"), ("o_proj", "o_proj")):
        with pytest.raises(ValueError, match="expected two of the types"):
            plot_layers(LAYERS, pair)
    with pytest.raises(ValueError, match=r"marked=\[9\], expected layers of"):
        plot_layers(LAYERS, PAIR, marked=[0, 9])


def test_it_draws_on_the_current_axes_or_makes_its_own():
    plt.close("all")
    own = plot_layers(LAYERS, PAIR)
    assert own.figure.get_figheight() <= 6
    assert plot_layers(LAYERS, PAIR) is own
    plt.close("all")
