"""The picture of the within-function test: what it draws, and what it refuses."""

import itertools

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.collections import PathCollection

from plop_nb.crossing_plot import SHIFT, plot_crossing

FORMS = ["attention low", "MLP low"]
TYPES = {"attention low": "q_proj+k_proj", "MLP low": "up_proj+down_proj"}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def runs():
    """Every form's own choice has the lower loss, by 0.5, over three seeds."""
    rows = []
    for task, form, chosen_by, seed in itertools.product(["a", "b"], FORMS, FORMS, range(3)):
        loss = 1 + 0.5 * (form != chosen_by) + 0.01 * seed
        about = {"task": task, "form": form, "chosen_by": chosen_by, "types": TYPES[chosen_by]}
        rows.append({**about, "seed": seed, "loss": loss})
    return pd.DataFrame(rows)


def test_means_and_rings_stand_where_the_losses_are():
    axes = plot_crossing(runs())
    titles = [ax.get_title(loc="left") for ax in axes]
    assert titles == [
        "a: the lower one moves with the score",
        "b: the lower one moves with the score",
    ]
    lines = [line for line in axes[0].lines if len(line.get_xdata()) == 2]
    means = [line.get_ydata().tolist() for line in lines if line.get_marker() == "o"]
    assert means == [pytest.approx([1.01, 1.51]), pytest.approx([1.51, 1.01])]
    drawn = [c for c in axes[0].collections if isinstance(c, PathCollection)]
    rings = [ring.get_offsets().tolist()[0] for ring in drawn]
    assert sorted(rings) == [pytest.approx([SHIFT, 1.01]), pytest.approx([1 - SHIFT, 1.01])]
    assert [text.get_text() for text in axes[0].texts] == ["on q, k", "on up, down"]


def test_missing_columns_and_cells_are_refused():
    with pytest.raises(ValueError, match=r"runs lacks the columns \['chosen_by'\]"):
        plot_crossing(runs().drop(columns="chosen_by"))
    with pytest.raises(ValueError, match="task 'b' have 2 forms and 3 cells"):
        one = runs()
        plot_crossing(
            one[
                (one["task"] == "a")
                | (one["form"] != one["chosen_by"])
                | (one["form"] == "MLP low")
            ]
        )


@pytest.mark.parametrize(
    ("lower", "finding"),
    [
        (lambda t: t["form"] != t["chosen_by"], "a: the lower one moves against the score"),
        (lambda t: t["chosen_by"] == "MLP low", "a: up, down lower in both forms"),
    ],
)
def test_title_says_which_placement_is_best(lower, finding):
    table = runs().query("task == 'a'")
    axes = plot_crossing(table.assign(loss=2 - lower(table) + 0.01 * table["seed"]))
    assert axes[0].get_title(loc="left") == finding
