"""The pictures of the stopping rule: what they count, and what they refuse."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from plop_nb.skew_plot import BINS, HEAVY, KEPT, plot_looks, plot_skew


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture
def skewed():
    """Differences with a long upper tail, and t of eight, more often far below than far above."""
    differences = np.random.default_rng(0).exponential(size=500) - 1
    return differences, np.concatenate([np.full(20, -5.0), np.zeros(977), np.full(3, 5.0)])


def looks():
    return pd.DataFrame({"t": [1.5, 4.5, 5.0], "needed": [5.6, 4.7, 4.3]}, index=[8, 16, 32])


def words(ax):
    return " ".join(text.get_text() for text in ax.texts)


def test_looks_of_one_run_are_lines():
    ax = plot_looks(looks(), title="A finding")
    assert [line.get_ydata().tolist() for line in ax.lines] == [[1.5, 4.5, 5.0], [5.6, 4.7, 4.3]]
    assert {"t", "needed"} < {text.get_text() for text in ax.texts}
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["8", "16", "32"]


def test_the_stop_of_a_run_has_a_ring_and_what_follows_is_pale():
    ax = plot_looks(looks(), 16)
    ring = ax.lines[-1]
    assert [*ring.get_xdata(), *ring.get_ydata()] == [16, 4.5]
    assert "stops (pale: if it went on)" in {text.get_text() for text in ax.texts}
    assert "stops" in {text.get_text() for text in plot_looks(looks(), 32).texts}
    pale = [line for line in ax.lines if line.get_alpha()]
    assert [line.get_xdata().tolist() for line in pale] == [[16, 32], [16, 32]]
    assert ax.lines[0].get_xdata().tolist() == [8, 16] and ax.lines[0].get_alpha() is None
    assert not [line for line in plot_looks(looks(), 32).lines if line.get_alpha()]


def test_looks_are_drawn_into_axes_that_are_given_and_not_without_rows():
    _, ax = plt.subplots()
    assert plot_looks(looks(), ax=ax) is ax
    with pytest.raises(ValueError, match="table is empty"):
        plot_looks(looks().head(0))
    assert len(plt.get_fignums()) == 1


def test_every_text_is_in_a_bar_and_the_line_is_their_mirror(skewed):
    left, _ = plot_skew(*skewed, 8, 0.005, pair=("a", "b"), title="A finding", source="made up")
    heights = [bar.get_height() for bar in left.patches]
    assert len(heights) == BINS and sum(heights) == 500
    edges, mirrored = left.lines[0].get_data()
    assert mirrored[:-1].tolist() == heights[::-1] and edges == pytest.approx(-edges[::-1])
    assert left.get_xlabel() == "a minus b, % of the score of b"
    assert left.figure.get_suptitle() == "A finding" and left.get_title(loc="left") == "made up"


def test_the_tails_are_counted_at_the_t_that_the_test_needs(skewed):
    _, right = plot_skew(*skewed, 8, 0.005, pair=("a", "b"))
    said = words(right)
    assert "a seems\nlower in 2.00 %" in said and "a seems\nhigher in 0.30 %" in said
    assert said.count("(normal: 0.50 %)") == 2
    marks = [line.get_xdata()[0] for line in right.lines if line.get_linestyle() == ":"]
    assert marks == pytest.approx([-3.4995, 3.4995], abs=1e-4)  # of Student's t with 7 degrees


def test_only_a_tail_that_is_too_heavy_is_red(skewed):
    _, right = plot_skew(*skewed, 8, 0.005)
    red = [bar for bar in right.patches if to_hex(bar.get_facecolor()) == HEAVY.lower()]
    assert red and all(bar.get_x() + bar.get_width() / 2 < -3.4995 for bar in red)
    assert sum(bar.get_height() for bar in red) == pytest.approx(2)  # percent
    dark = [bar for bar in right.patches if to_hex(bar.get_facecolor()) == to_hex(KEPT)]
    assert sum(bar.get_height() for bar in dark) == pytest.approx(0.3)
    _, turned = plot_skew(skewed[0], -skewed[1], 8, 0.005)
    red = [bar for bar in turned.patches if to_hex(bar.get_facecolor()) == HEAVY.lower()]
    assert red and all(bar.get_x() > 3 for bar in red)


def test_draws_that_are_not_shown_are_counted(skewed):
    far = np.concatenate([skewed[1][:-5], np.full(5, -9.0)])  # half of a percent
    _, right = plot_skew(skewed[0], far, 8, 0.005)
    assert "8 texts, 1,000 draws" in right.get_xlabel()
    assert "(0.50 % of the draws are beyond ±7.7)" in right.get_xlabel()


def test_the_skewness_is_said(skewed):
    left, _ = plot_skew(*skewed, 8, 0.005)
    turned, _ = plot_skew(-skewed[0], skewed[1], 8, 0.005)
    value = float(words(left).split("skewness ")[1].split("\n")[0])
    assert 1.5 < value < 2.5 and f"skewness -{value:.2f}" in words(turned)


def test_words_stay_inside_of_the_axes(skewed):
    axes = plot_skew(*skewed, 8, 0.005, pair=("o_proj", "down_proj"))
    axes[0].figure.draw_without_rendering()
    for ax in axes:
        frame = ax.get_window_extent()
        for text in ax.texts:
            assert (
                frame.x0 <= text.get_window_extent().x0 <= text.get_window_extent().x1 <= frame.x1
            )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([], [1.0], 8), "differences is empty"),
        (([1.0], [np.nan], 8), "t is empty or not finite"),
        (([1.0], [1.0], 1), "texts=1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        plot_skew(*given, 0.005)
    assert not plt.get_fignums()
