"""The picture of NFN's rise and of where it ends."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from plop_nb.experiments import growth
from plop_nb.theory_plots import plot_alignment, plot_control, wide_theory

STEPS = np.arange(5)
MEANS = [("half way", "4.00"), ("the end", "7.00")]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def runs():
    """NFN 1 + t and 1 + 2 t at step t, in two networks."""
    tables = []
    for seed in (0, 1):
        columns = {"step": STEPS, "nfn": 1 + STEPS * (1 + seed), "baseline": 1.0}
        tables.append(pd.DataFrame(columns).assign(seed=seed))
    return pd.concat(tables, ignore_index=True)


def theory():
    return pd.Series(1 + STEPS / 2, index=STEPS)


def heights(band, step):
    """The lower and the upper edge of a filled band at this step."""
    corners = band.get_paths()[0].vertices
    at_step = corners[np.isclose(corners[:, 0], step), 1]
    return at_step.min(), at_step.max()


def test_the_band_holds_the_networks():
    """The mean, and nearly the whole range."""
    ax = plot_alignment(runs(), theory(), title="A finding")
    assert heights(ax.collections[0], 4) == pytest.approx((5 + 0.025 * 4, 9 - 0.025 * 4))
    assert ax.lines[0].get_ydata() == pytest.approx(1 + 1.5 * STEPS)
    assert ax.lines[1].get_ydata() == pytest.approx(np.ones(5))
    assert ax.lines[2].get_ydata() == pytest.approx(theory()) and ax.lines[2].get_ls() == "--"
    assert ax.get_title(loc="left") == "A finding"


def test_marks_are_on_the_mean_and_say_its_value():
    ax = plot_alignment(runs(), theory(), marks={"half way": 2, "the end": 4})
    dots = ax.lines[3:]
    assert [(dot.get_xdata()[0], dot.get_ydata()[0]) for dot in dots] == [(2, 4), (4, 7)]
    said = [text.get_text() for text in ax.texts]
    assert {f"{words}\n(mean NFN of the networks: {mean})" for words, mean in MEANS} <= set(said)


def test_a_measured_line_under_the_theory_is_seen():
    """Where both agree, the mean is wider than the dashes on it."""
    mean, _, theory_line = plot_alignment(runs(), theory()).lines
    assert mean.get_lw() > 2 * theory_line.get_lw() and mean.get_zorder() < theory_line.get_zorder()


def test_the_theory_is_what_wide_networks_do():
    """NFN at every step, and the step at which it ends, of networks that are trained."""
    y, eta, wide = 1.0, 0.1, np.sqrt(2 / np.pi)
    expected = wide_theory(25, eta=eta, y=y)
    assert expected[0] == 1 and expected.index.tolist() == list(range(26))
    measured = growth(1024, 25, eta=eta, target=y, seeds=8).groupby("step")["nfn"].mean()
    assert measured.to_numpy() == pytest.approx(expected.to_numpy(), rel=0.03)
    assert expected.max() == pytest.approx(np.sqrt(1 + (y / wide) ** 2))
    assert expected.idxmax() == np.ceil(y / (eta * wide**2)) < 25


@pytest.mark.parametrize(
    ("steps", "eta", "y"), [(0, 0.05, 2.0), (1.5, 0.05, 2.0), (9, 0, 2.0), (9, 0.05, -1)]
)
def test_no_theory_of_numbers_out_of_range(steps, eta, y):
    with pytest.raises(ValueError, match="=(0|1.5|-1), expected a"):
        wide_theory(steps, eta=eta, y=y)


def test_the_baseline_says_what_it_is():
    names = [text.get_text() for text in plot_alignment(runs(), theory()).texts]
    assert any(name.endswith("\n(length of the weights)") for name in names)


def test_runs_of_growth_fit():
    run = growth(32, 5, seeds=2)
    ax = plot_alignment(run, theory(), marks={"end": 5})
    assert ax.lines[0].get_ydata() == pytest.approx(run.groupby("step")["nfn"].mean())


def test_axes_are_used_when_given():
    _, (left, right) = plt.subplots(1, 2)
    assert plot_alignment(runs(), theory(), ax=left) is left and not right.has_data()
    assert plot_alignment(runs(), theory()).figure is not left.figure


@pytest.mark.parametrize(
    ("table", "marks", "message"),
    [
        (runs().drop(columns="seed"), None, r"\['seed'\]"),
        (runs().head(0), None, "is empty"),
        (runs(), {"too late": 9}, r"no step \[9\]"),
    ],
)
def test_what_cannot_be_drawn_is_named(table, marks, message):
    with pytest.raises(ValueError, match=message):
        plot_alignment(table, theory(), marks=marks)
    assert not plt.get_fignums()


# The example beside other inputs

CONTROL = {"before": (1.05, np.linspace(0.8, 1.2, 401)), "after": (1.9, np.linspace(0.7, 1.3, 601))}


def test_the_example_and_the_middle_of_the_others_are_as_given():
    ax = plot_control(CONTROL, title="A finding")
    bars, dots = ax.lines[0:4:2], ax.lines[1:4:2]
    assert [bar.get_xdata() for bar in bars] == [
        pytest.approx([0.81, 1.19]),
        pytest.approx([0.715, 1.285]),
    ]
    assert [dot.get_xdata()[0] for dot in dots] == [1.05, 1.9]
    said = [text.get_text() for text in ax.texts]
    assert "401 other inputs:\n95 % from 0.81 to 1.19" in said and "the example: 1.90" in said
    assert ax.get_title(loc="left") == "A finding"


def test_times_go_down_and_each_histogram_stands_on_its_row():
    ax = plot_control(CONTROL)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["before", "after"]
    assert ax.get_yticks().tolist() == [0, -1]
    for row, (_, others) in zip((0, -1), CONTROL.values(), strict=True):
        shape = next(p for p in ax.patches if p.get_data().baseline == row)
        assert shape.get_data().edges[[0, -1]] == pytest.approx([others.min(), others.max()])
        assert shape.get_data().values.max() < row + 1


def test_words_of_the_control_do_not_touch():
    ax = plot_control(CONTROL)
    ax.figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert not any(box.count_overlaps(boxes[n + 1 :]) for n, box in enumerate(boxes))


@pytest.mark.parametrize("empty", [{}, {"before": (1.0, [])}])
def test_a_control_without_others_is_refused(empty):
    with pytest.raises(ValueError, match="scores is empty"):
        plot_control(empty)
    assert not plt.get_fignums()


def test_a_control_is_drawn_where_it_is_told():
    _, (left, right) = plt.subplots(1, 2)
    assert plot_control(CONTROL, ax=left) is left and not right.has_data()
