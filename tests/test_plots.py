"""Pictures of scores by type and by layer, and what they say in words."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

import plop_nb as plop
from plop_nb.plots import mean_in_words

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


SCORES = frame([0.5, 1.5, 1.2])


def test_types_carry_a_title():
    assert plop.plot_types(SCORES, title="one kind").get_title(loc="left") == "one kind"


def test_the_axis_says_over_how_many_maps_a_mean_is():
    assert "mean over 2 maps" in plop.plot_types(SCORES).get_xlabel()
    uneven = SCORES.query("type != 'q_proj' or layer == 0")
    assert mean_in_words(plop.by_type(uneven)).startswith("NFN, mean over a type's maps")


def test_whiskers_have_a_white_rim():
    """So that they are seen on dark bars."""
    ax = plop.plot_types(SCORES, ax=Figure().subplots())
    _, rim, whiskers = ax.containers
    [below], [above] = rim.lines[2], whiskers.lines[2]
    assert np.array_equal(below.get_segments(), above.get_segments())
    assert to_hex(below.get_color()[0]) == "#ffffff" and to_hex(above.get_color()[0]) != "#ffffff"
    assert below.get_linewidth()[0] > above.get_linewidth()[0] + 1


def test_colours_of_a_heat_map_say_the_score_alone():
    """A cell without adapters has the colour of the bar beside it, as one with adapters."""
    scores = SCORES
    chosen = scores.loc[scores["type"] == "q_proj", "module"]
    plain = plop.plot_heatmap(scores, ax=Figure().subplots()).collections[0]
    ax = plop.plot_heatmap(scores, chosen=chosen, ax=Figure().subplots())
    mesh, outlines = ax.collections
    for each in (plain, mesh):
        each.update_scalarmappable()
    assert np.array_equal(mesh.get_facecolors(), plain.get_facecolors())
    assert mesh.get_alpha() is None and len(outlines.get_paths()) == 2


def test_a_heat_map_of_many_layers_fits_a_slide():
    plt.close("all")
    assert plop.plot_heatmap(frame([0.5, 1.5, 1.2], layers=80)).figure.get_figheight() <= 6
