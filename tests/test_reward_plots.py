"""Pictures of training with rewards show the numbers that they are given."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color

from plop_nb.reward_plots import LIKELIER, RARER, VERDICTS, plot_chances, plot_gaps, plot_group

NAMED = {"PLoP": "#2450E0", "MLP": "#E8173F"}


def chances():
    rows = []
    for name, peak in (("PLoP", 2e-4), ("MLP", 4e-4)):
        for lr in (1e-4, 2e-4, 4e-4):
            for seed in (0, 1):
                value = 0.7 - 0.1 * abs(np.log2(lr / peak)) + 0.02 * seed
                rows.append({"placement": name, "lr": lr, "seed": seed, "validation": value})
    return pd.DataFrame(rows)


def gaps():
    rows = [("all", 0.05, -0.02, 0.12, "undecided"), ("PLoP", -0.1, -0.15, -0.05, "worse")]
    return pd.DataFrame(rows, columns=["placement", "difference", "low", "high", "verdict"])


def test_a_group_shows_rewards_and_advantages():
    ax = plot_group(["<answer>7</answer>", "seven\n7"], [2.0, 0.5], [0.7, -0.7])
    assert [bar.get_width() for bar in ax.patches] == [0.7, -0.7]
    assert same_color(ax.patches[0].get_facecolor(), LIKELIER)
    assert same_color(ax.patches[1].get_facecolor(), RARER)
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels[0].endswith("earns 2") and labels[1].startswith("seven 7")


@pytest.mark.parametrize("sizes", [(1, 2, 2), (2, 2, 1), (0, 0, 0)])
def test_a_group_of_unequal_lengths_is_refused(sizes):
    texts, rewards, advantages = ([1.0] * size for size in sizes)
    with pytest.raises(ValueError, match="lengths"):
        plot_group([str(text) for text in texts], rewards, advantages)


def test_chances_are_the_means_over_seeds_with_a_ring_at_the_best():
    runs = chances()
    ax = plot_chances(runs, NAMED, before=0.3)
    lines = {line.get_label(): line for line in ax.get_lines()}
    means = runs.groupby(["placement", "lr"])["validation"].mean()
    rings = [c for c in ax.collections if len(c.get_offsets()) == 1]
    for ring, name in zip(rings, NAMED, strict=True):
        np.testing.assert_allclose(lines[name].get_ydata(), means[name])
        assert tuple(ring.get_offsets()[0]) == (means[name].idxmax(), means[name].max())
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1e-4", "2e-4", "4e-4"]


def test_chances_without_a_column_or_a_placement_are_refused():
    with pytest.raises(ValueError, match=r"lacks the columns \['validation'\]"):
        plot_chances(chances().drop(columns="validation"), NAMED, before=0.3)
    with pytest.raises(ValueError, match="'all', of which runs has no run"):
        plot_chances(chances(), {"all": "black"}, before=0.3)


def test_gaps_are_drawn_from_the_highest_in_the_colour_of_their_verdict():
    ax = plot_gaps(gaps(), "MLP", "chance minus the MLP's")
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["all", "PLoP"]
    dots = ax.collections[-1]
    np.testing.assert_allclose(dots.get_offsets(), [[0.05, 0], [-0.1, 1]])
    wanted = [VERDICTS["undecided"], VERDICTS["worse"]]
    assert all(map(same_color, dots.get_facecolors(), wanted))


def test_gaps_without_rows_or_columns_are_refused():
    with pytest.raises(ValueError, match="empty frame"):
        plot_gaps(gaps().head(0), "MLP", "")
    with pytest.raises(ValueError, match=r"lacks the columns \['low'\]"):
        plot_gaps(gaps().drop(columns="low"), "MLP", "")
