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


def test_each_type_is_a_line_in_its_colour_with_its_mean(ax):
    plot_layers(LAYERS, PAIR, ax=ax)
    scores, means = ax.lines[0:4:2], ax.lines[1:4:2]
    for line, mean, name in zip(scores, means, PAIR, strict=True):
        assert list(line.get_ydata()) == LAYERS[name].tolist()
        assert set(mean.get_ydata()) == {LAYERS[name].mean()}
        assert line.get_color() == mean.get_color() == type_color(name)
    assert texts(ax) == ["down_proj, mean 1.00", "o_proj, mean 1.45"]
    assert set(ax.lines[4].get_ydata()) == {1}  # a random input


def test_the_layers_that_decide_are_numbered_and_named_in_the_title(ax):
    plot_layers(LAYERS, PAIR, marked=[0], ax=ax)
    assert texts(ax)[0] == "0"
    title = ax.get_title("left").replace("\n", " ")
    assert title == "Without layer 0, o_proj's mean would be below down_proj's"


def test_numbers_of_layers_are_whole_whatever_their_type(ax):
    floats = LAYERS.set_axis(LAYERS.index.astype(float))
    plot_layers(floats, PAIR, marked=floats.index[:1], ax=ax)
    assert texts(ax)[0] == "0" and "Without layer 0, " in ax.get_title("left")


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
