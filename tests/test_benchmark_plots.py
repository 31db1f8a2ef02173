"""The pictures of the benchmark: what stands where, what they say, and what they refuse."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from matplotlib.text import Text

from plop_nb.benchmark_plots import (
    GREY,
    plot_agreement,
    plot_differences,
    plot_rates,
    plot_seeds,
    plot_trainings,
)
from plop_nb.palette import DARK, type_color
from plop_nb.rule_plots import plot_alone
from plop_nb.stats import mean_interval

SINGLE = ["q", "k", "v", "o", "gate", "up", "down"]
TRIPLES = ["+".join(three) for three in itertools.combinations(sorted(SINGLE), 3)]
GROUP = {name: "single" for name in SINGLE} | {name: "triple" for name in TRIPLES}
GROUP |= {"all": "fixed", "attention": "fixed", "last third of layers": "fixed"}
GROUP |= {"EVA, rho 1": "rival", "full finetuning": "full"}
TASKS = ["short_sums", "spelling", "short_syllogisms", "facts"]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def agreement(tasks=1):
    generator = np.random.default_rng(0)
    rows = []
    for task, name in itertools.product(TASKS[:tasks], TRIPLES):
        rows.append((task, name, *generator.normal(1, 0.1, 2)))
    return pd.DataFrame(rows, columns=["task", "placement", 1, 2])


def rates(tasks=1):
    """Best at 2e-3, but for single types: 4e-3. One run has diverged."""
    rows = []
    for task, (name, group), lr in itertools.product(
        TASKS[:tasks], GROUP.items(), (1e-3, 2e-3, 4e-3)
    ):
        best = 4e-3 if group == "single" else 2e-3
        rows.append((task, name, group, lr, 1 + 0.001 * len(name) + 0.2 * abs(np.log2(lr / best))))
    frame = pd.DataFrame(rows, columns=["task", "placement", "group", "lr", "loss"])
    frame.loc[(frame["placement"] == "all") & (frame["lr"] == 4e-3), "loss"] = 50.0
    return frame


def differences(tasks=1):
    rows = []
    for (number, task), (place, name) in itertools.product(
        enumerate(TASKS[:tasks]), enumerate(TRIPLES[:25])
    ):
        value = 0.02 * ((place * 7 + number) % 25) - 0.1
        verdict = "worse" if value > 0.05 else "better" if value < -0.05 else "undecided"
        rows.append((task, name, value, value - 0.05, value + 0.05, verdict))
    columns = ["task", "placement", "difference", "low", "high", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def alone(tasks=1):
    """The higher its value, the higher a type's loss; two runs each, 0.1 apart."""
    rows = []
    for task, (place, name), luck in itertools.product(
        TASKS[:tasks], enumerate(SINGLE), (-0.05, 0.05)
    ):
        rows.append((task, name, 0.5 + 0.1 * place, 1 + 0.2 * place + luck))
    return pd.DataFrame(rows, columns=["task", "type", "value", "loss"])


LABELS = {"down+gate+up": "MLP", "down+up+v": "PLoP's choice"}
DRAWN = {
    "agreement": (agreement, lambda frame: plot_agreement(frame, (1, 2), LABELS), 1),
    "rates": (rates, plot_rates, "loss"),
    "differences": (differences, lambda frame: plot_differences(frame, "attention"), "high"),
    "alone": (alone, lambda frame: plot_alone(frame, "score"), "value"),
}


def titles(axes):
    return [ax.get_title(loc="left").replace("\n", " ") for ax in axes]


def row_names(ax):
    return [tick.get_text() for tick in ax.get_yticklabels()]


def dots(ax):
    """Positions of all dots, in the order of drawing."""
    offsets = [np.asarray(own.get_offsets()) for own in ax.collections]
    offsets = [own for own in offsets if len(own) and np.isfinite(own).all()]
    return np.concatenate([own for own in offsets if own.any()])


@pytest.mark.parametrize("tasks", [1, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", DRAWN)
def test_texts_lie_inside_the_figure_and_apart(name, tasks):
    made, plot, _ = DRAWN[name]
    frame = made(tasks)
    before = frame.copy(deep=True)
    axes = plot(frame)
    pd.testing.assert_frame_equal(frame, before)
    figure = axes[0].figure
    assert len(axes) == tasks == len(figure.axes)
    assert (figure.get_size_inches() <= (11, 6)).all()
    figure.canvas.draw()
    texts = [text for ax in axes for text in [*ax.texts, ax._left_title]]
    texts += [label for ax in axes for label in (ax.xaxis.label, ax.yaxis.label)]
    texts = [text for text in texts if text.get_text()]
    boxes = [Text.get_window_extent(text) for text in texts]
    for text, box in zip(texts, boxes, strict=True):
        assert text.get_fontsize() >= 9
        assert box.x0 >= figure.bbox.x0 and box.x1 <= figure.bbox.x1, text
        assert box.y0 >= figure.bbox.y0 and box.y1 <= figure.bbox.y1, text
    for (one, first), (other, second) in itertools.combinations(zip(texts, boxes, strict=True), 2):
        overlap = first.intersection(first, second)
        # boxes have some room around the letters
        assert overlap is None or min(overlap.width, overlap.height) < 1.5, (one, other)


def test_agreement_shows_both_seeds_and_the_named_sets_on_top():
    table = agreement(2)
    ax, other = plot_agreement(table, (1, 2), LABELS)
    own = table[table["task"] == TASKS[0]]
    is_named = own["placement"].isin(list(LABELS))
    grey, dark = ax.collections
    assert np.asarray(grey.get_offsets()) == pytest.approx(own.loc[~is_named, [1, 2]].to_numpy())
    assert np.asarray(dark.get_offsets()) == pytest.approx(own.loc[is_named, [1, 2]].to_numpy())
    assert dark.get_sizes()[0] > grey.get_sizes()[0]  # and drawn last, so that none hides them
    assert (ax.get_xlim(), ax.get_ylim()) == (other.get_xlim(), other.get_ylim())
    assert {text.get_text() for text in ax.texts} == {*LABELS.values()}
    line = ax.lines[0]
    assert line.get_slope() == 1 and line.get_xy1()[0] == line.get_xy1()[1]
    (ax,) = plot_agreement(agreement(), (1, 2), LABELS)
    assert ax.get_xlabel() == "loss with seed 1 (nats per token)"
    (ax,) = plot_agreement(agreement(), (1, 2), LABELS, note="35 sets")
    assert ax.figure._supxlabel.get_text().endswith("the same loss\n35 sets")
    same = agreement()
    same[2] = 2 * same[1]
    assert titles(plot_agreement(same, (1, 2), LABELS)) == ["short sums: rank correlation 1.00"]


def test_seeds_are_dots_about_the_line_of_their_means():
    columns = pd.MultiIndex.from_product([[1e-3, 2e-3], [0, 1, 2]], names=["lr", "seed"])
    values = [[1, 2, 3, 4, 6, 5], [2, 2, 2, 3, 4, np.nan]]
    table = pd.DataFrame(values, index=["MLP", "attention"], columns=columns)
    ax = plot_seeds(table, title="A finding")
    assert ax.get_title(loc="left") == "A finding"
    assert [line.get_ydata().tolist() for line in ax.lines] == [[2, 5], [2, 3.5]]
    names = {text.get_text(): text.get_position()[0] for text in ax.texts}
    assert names == {
        name: line.get_xdata().mean() for name, line in zip(names, ax.lines, strict=True)
    }
    points = np.concatenate([np.ma.filled(own.get_offsets(), np.nan) for own in ax.collections])
    assert len(points[np.isfinite(points).all(axis=1)]) == 11
    for line, own in zip(ax.lines, table.to_numpy(), strict=True):
        for place, wanted in zip(line.get_xdata(), own.reshape(2, 3), strict=True):
            found = points[points[:, 0] == place, 1]
            assert sorted(found[np.isfinite(found)]) == sorted(wanted[np.isfinite(wanted)])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1e-3", "2e-3"] * 2
    for wrong in (table.head(0), table[1e-3]):
        with pytest.raises(ValueError, match="pass rows of placements and columns of lr and seed"):
            plot_seeds(wrong)


@pytest.mark.parametrize("name", DRAWN)
def test_titles_say_what_the_caller_says(name):
    made, plot, _ = DRAWN[name]
    more = {
        "agreement": (plot_agreement, [(1, 2), LABELS]),
        "differences": (plot_differences, ["MLP"]),
        "alone": (plot_alone, ["score"]),
    }
    plot, given = more.get(name, (plot, []))
    assert titles(plot(made(), *given, finding={"short_sums": "told"})) == ["short sums: told"]
    with pytest.raises(ValueError, match=r"finding=.* lacks \['spelling'\]"):
        plot(made(2), *given, finding={"short_sums": "told"})


def test_rates_draws_every_line_and_names_those_that_matter():
    table = rates()
    (ax,) = plot_rates(table)
    lines = {line.get_label(): line for line in ax.lines}
    assert set(lines) == set(GROUP)
    for name, own in table.groupby("placement"):
        assert lines[name].get_xdata() == pytest.approx([1e-3, 2e-3, 4e-3])
        assert lines[name].get_ydata() == pytest.approx(own["loss"].to_numpy())
    for name in SINGLE:
        assert to_rgba(lines[name].get_color()) == to_rgba(type_color(name))
    grey = to_rgba(lines["k+o+q"].get_color())
    assert to_rgba(lines["EVA, rho 1"].get_color()) == grey != to_rgba(lines["all"].get_color())
    looks = [(lines[n].get_linestyle(), lines[n].get_marker()) for n in ("all", "attention")]
    assert looks == [("-", "o"), ("--", "s")]
    assert ax.figure._supxlabel.get_text() == "grey: the 37 other placements"
    assert {text.get_text() for text in ax.texts} == {*SINGLE, "all", "attention", "MLP"}
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1e-3", "2e-3", "4e-3"]
    assert ax.get_xscale() == "log"
    (ax,) = plot_rates(table[table["group"] != "single"], LABELS)
    assert {text.get_text() for text in ax.texts} == {*LABELS.values()}


def test_rates_cuts_off_what_has_diverged_and_says_so():
    (ax,) = plot_rates(rates())
    assert 1.4 < ax.get_ylim()[1] < 3
    said = "learning rate (1 of 141 losses are higher than the axis)\nhigher: all at 4e-3"
    assert ax.get_xlabel() == said
    (ax,) = plot_rates(rates().assign(loss=lambda table: table["loss"].clip(upper=1.4)))
    assert ax.get_xlabel() == "learning rate"


def test_rates_titles_follow_the_best_rates():
    expected = (
        "short sums: best at 2e-3 for 35 of 35 sets of three, at 4e-3 for 7 of 7 single types"
    )
    assert titles(plot_rates(rates())) == [expected]
    table = rates()
    table.loc[(table["placement"] == "q") & (table["lr"] == 1e-3), "loss"] = 0.5
    assert titles(plot_rates(table)) == [expected.replace("7 of 7", "6 of 7")]


def test_differences_share_the_order_of_their_means_and_have_verdicts_as_colours():
    table = differences(2)
    axes = plot_differences(table, "attention")
    order = table.groupby("placement")["difference"].mean()
    assert order[row_names(axes[0])].is_monotonic_increasing and len(row_names(axes[0])) == 25
    for ax, (_, own) in zip(axes, table.groupby("task", sort=False), strict=True):
        bars, points = ax.collections
        places = [row_names(axes[0]).index(name) for name in own["placement"]]
        assert np.asarray(points.get_offsets()) == pytest.approx(np.c_[own["difference"], places])
        ends = [(*segment[:, 0], segment[0, 1]) for segment in bars.get_segments()]
        assert np.array(ends) == pytest.approx(np.c_[own["low"], own["high"], places])
        colors = pd.Series(map(tuple, points.get_facecolors())).groupby(own["verdict"].tolist())
        assert colors.nunique().tolist() == [1, 1, 1] and colors.first().nunique() == 3
        assert [(text.get_text(), text.get_position()[0]) for text in ax.texts] == [
            ("attention", 0)
        ]
    assert titles(axes)[0] == "short sums: 17 worse and 3 better of 25"
    table.loc[0, "verdict"] = "worse"
    changed = plot_differences(table, "the MLP", note="three seeds")
    assert titles(changed)[0] == "short sums: 18 worse and 2 better of 25"
    assert changed[0].get_xlim() == changed[1].get_xlim()  # panels compare
    below = changed[0].figure._supxlabel.get_text().split("\n")
    assert below[0] == "loss minus that of the MLP (nats per token)" and below[2] == "three seeds"
    undecided = table.query("verdict == 'undecided' and task == 'short_sums'")
    assert titles(plot_differences(undecided, "MLP")) == [
        f"short sums: all {len(undecided)} undecided"
    ]


def test_rows_that_a_task_lacks_say_so():
    table = differences(2).drop(index=0)
    first, second = plot_differences(table, "MLP")
    said = [text for text in first.texts if text.get_text() == "not compared"]
    assert [text.get_position()[1] for text in said] == [row_names(first).index(TRIPLES[0])]
    assert "not compared" not in {text.get_text() for text in second.texts}


def test_trainings_have_a_row_each_and_their_mean_has_an_interval_over_them():
    gaps = {"seed 0": [0.3, 0.2, 0.25], "seed 1": [-0.3, -0.2, -0.25], "seed 2": [0.1, -0.1, 0.02]}
    ax = plot_trainings(gaps, "a minus b", title="told", unit="text", level=0.9)
    found = [mean_interval(own, level=0.9) for own in gaps.values()]
    found.append(mean_interval([own.mean for own in found], level=0.9))
    dots = [line for line in ax.lines if line.get_marker() in list("oD")]
    assert [line.get_xdata()[0] for line in dots] == pytest.approx([own.mean for own in found])
    heights = [line.get_ydata()[0] for line in dots]
    assert heights == sorted(heights) and row_names(ax) == [*gaps, "mean of\nthe 3"]
    bars = [line for line in ax.lines if line.get_linewidth() == 2.5]
    ends = [tuple(line.get_xdata()) for line in bars]
    assert ends == [pytest.approx((own.low, own.high)) for own in found]
    assert [line.get_markerfacecolor() for line in dots] == [DARK, "white", GREY, GREY]
    assert {line.get_color() for line in dots + bars} == {DARK}  # no type's colour
    said = [text.get_text() for text in ax.texts]
    expected = [f"{own.mean:+.2f} ({own.low:+.2f} to {own.high:+.2f})" for own in found]
    assert said == [words.replace("-", "−") for words in expected]  # a minus, as on the axis
    assert ax.get_xlabel().startswith("a minus b\n") and ax.get_title(loc="left") == "told"
    assert "90% intervals, over 3 texts; last row: over the 3 means" in ax.get_xlabel()


def test_trainings_say_which_side_is_better_above_all_dots():
    gaps = {"seed 0": [0.3, 0.1, 0.2], "seed 1": [-0.3, -0.1, -0.2]}
    sides = ("a is better", "b is better")
    ax = plot_trainings(gaps, "a minus b", sides=sides, title="Undecided: one each\nthe setting")
    assert ax.get_title(loc="left") == "Undecided: one each\nthe setting"
    left, right = (text for text in ax.texts if "better" in text.get_text())
    assert (left.get_text(), right.get_text()) == ("← a is better", "b is better →")
    ax.figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in (left, right)]
    numbers = [text.get_window_extent() for text in ax.texts if text not in (left, right)]
    assert boxes[0].x1 < boxes[1].x0
    assert min(box.y0 for box in boxes) > max(box.y1 for box in numbers)


def test_one_training_has_no_interval_over_trainings():
    with pytest.raises(ValueError, match="expected two or more finite numbers"):
        plot_trainings({"seed 0": [0.1, 0.2]}, "a minus b")
    with pytest.raises(ValueError, match="expected two or more finite numbers"):
        plot_trainings({"seed 0": [0.1], "seed 1": [0.1]}, "a minus b")
    assert not plt.get_fignums()


def test_types_alone_are_coloured_dots_at_their_means_with_a_line_over_their_runs():
    table = alone()
    (ax,) = plot_alone(table, "score")
    means = table.groupby("type")[["value", "loss"]].mean()
    assert dots(ax) == pytest.approx(means.to_numpy())
    assert {text.get_text(): text.xy for text in ax.texts} == {
        name: tuple(at) for name, at in means.iterrows()
    }
    lines = [own.get_segments()[0][:, 1] for own in ax.collections if hasattr(own, "get_segments")]
    assert [line.max() - line.min() for line in lines] == pytest.approx([0.1] * len(SINGLE))
    assert titles([ax]) == ["short sums: rank correlation 1.00"]
    assert ax.get_xlabel() == "score"
    assert (
        plot_alone(table, "score", note="two seeds")[0].figure._supxlabel.get_text() == "two seeds"
    )


@pytest.mark.parametrize("name", DRAWN)
def test_frames_with_gaps_are_refused_before_anything_is_drawn(name):
    made, plot, number = DRAWN[name]
    frame = made()
    with pytest.raises(ValueError, match=rf"lacks the columns \[{number!r}\]: pass a frame with"):
        plot(frame.drop(columns=number))
    with pytest.raises(ValueError, match="lacks the columns"):
        plot(None)
    with pytest.raises(ValueError, match="is an empty frame"):
        plot(frame.head(0))
    for wrong in (np.nan, np.inf, None):
        broken = frame.copy()
        broken[number] = [wrong, *frame[number].iloc[1:]]
        with pytest.raises(ValueError, match=f"{number}=.*'short_sums', expected a finite number"):
            plot(broken)
    with pytest.raises(ValueError, match="task=.*expected a name"):
        plot(frame.assign(task=[None, *frame["task"].iloc[1:]]))
    assert not plt.get_fignums()


@pytest.mark.parametrize(
    ("name", "column", "value"),
    [("rates", "group", "pair"), ("differences", "verdict", "?")],
)
def test_unknown_words_are_refused(name, column, value):
    made, plot, _ = DRAWN[name]
    with pytest.raises(ValueError, match=f"{column}=.*expected one of"):
        plot(made().assign(**{column: value}))


def test_rates_must_be_positive():
    with pytest.raises(ValueError, match="lr=0.0: pass rates above 0"):
        plot_rates(rates().assign(lr=0.0))


@pytest.mark.parametrize("name", DRAWN)
def test_rows_may_have_any_index_and_tasks_may_lack_some(name):
    made, plot, _ = DRAWN[name]
    frame = made(2)
    frame = frame[~((frame["task"] == "spelling") & (frame.index % 3 == 0))]
    frame.index = [0] * len(frame)
    assert len(plot(frame)) == 2
