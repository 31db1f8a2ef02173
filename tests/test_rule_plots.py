"""The pictures of rules: how good their choices are, single types with sizes, what is forgotten."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from matplotlib.text import Text

from plop_nb.palette import DARK, type_color
from plop_nb.rule_plots import plot_alone, plot_choices, plot_forgetting

COLORS = {"size": "black", "scores": "blue"}
CHANCE = {"usual": 0.4, "equal": 0.5}
NUMBERS = ["regret", "regret_low", "regret_high", "difference", "low", "high"]
NAMED = {"down+gate+up": "MLP", "up": "up", "query + value": "query + value"}
RATES = [1e-3, 2e-3, 4e-3]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def judged():
    rows = [
        ("usual", "size", 0.1, 0.0, 0.3, 0, 0, 0),
        ("usual", "scores", 0.3, 0.1, 0.6, 0.02, -0.01, 0.05),
        ("usual", "gradients", 0.9, 0.8, 1.0, 0.1, 0.05, 0.15),  # not drawn
        ("equal", "size", 0.7, 0.3, 1.0, 0, 0, 0),
        ("equal", "scores", 0.2, 0.1, 0.4, -0.05, -0.08, -0.02),
        ("equal", "gradients", 0.5, 0.1, 0.9, 0.0, -0.1, 0.1),
    ]
    return pd.DataFrame(rows, columns=["task", "choice", *NUMBERS])


def forgetting():
    """Three seeds; the MLP forgets least at the lowest rate, most at the highest."""
    rows = []
    means = {"down+gate+up": [0, 0.04, 2.0], "up": [-0.02, -0.02, 0.0]}
    means |= {"query + value": [0.1, 0.2, 0.5], "k": [0.05, 0.1, 8]}  # k is not drawn
    for name, own in means.items():
        for (lr, mean), luck in itertools.product(zip(RATES, own, strict=True), (-0.01, 0, 0.01)):
            rows.append((name, lr, mean + luck))
    return pd.DataFrame(rows, columns=["placement", "lr", "forgetting"])


def test_choices_stand_beside_chance_and_beside_the_reference():
    table = judged()
    before = table.copy(deep=True)
    left, right = plot_choices(table, CHANCE, COLORS, reference="size", note="two seeds")
    pd.testing.assert_frame_equal(table, before)
    assert [tick.get_text() for tick in left.get_yticklabels()] == ["usual", "equal"]
    for ax, columns, names in [(left, NUMBERS[:3], COLORS), (right, NUMBERS[3:], ["scores"])]:
        expected = table[table["choice"].isin(list(names))]
        dots = [own for own in ax.collections if len(np.asarray(own.get_offsets())) == 1]
        dots = [own for own in dots if np.asarray(own.get_offsets()).any()]
        places = np.concatenate([np.asarray(own.get_offsets()) for own in dots])
        assert places[:, 0] == pytest.approx(expected[columns[0]].to_numpy())
        rows = np.array(["usual", "equal"])[places[:, 1].round().astype(int)]
        assert rows.tolist() == expected["task"].tolist()
        found = [own.get_facecolor()[0].tolist() for own in dots]
        assert found == [list(to_rgba(COLORS[name])) for name in expected["choice"]]
        bars = [own.get_segments()[0] for own in ax.collections if hasattr(own, "get_segments")]
        bars = [bar[:, 0].tolist() for bar in bars if bar[0, 1] == bar[1, 1]]
        assert bars == [list(ends) for ends in expected[columns[1:]].to_numpy()]
    chance = [own.get_segments()[0] for own in left.collections if hasattr(own, "get_segments")]
    chance = {bar[0, 0]: bar[:, 1].mean() for bar in chance if bar[0, 0] == bar[1, 0]}
    assert chance == pytest.approx({0.4: 0, 0.5: 1})
    assert {text.get_text() for text in left.texts} == {"size", "scores", "at random"}
    assert [text.get_text() for text in right.texts] == ["size"]
    assert left.get_title(loc="left") == "Ahead of chance: size in 1 of 2, scores in 1 of 2"
    assert right.get_title(loc="left") == "1 of 2 decided"
    assert left.figure._supxlabel.get_text() == "two seeds"
    given = plot_choices(table, CHANCE, COLORS, reference="size", titles=["one", "two"])
    assert [ax.get_title(loc="left") for ax in given] == ["one", "two"]


def test_choices_that_are_missing_are_named():
    with pytest.raises(ValueError, match=r"judged has no rows of \['luck'\]"):
        plot_choices(judged(), CHANCE, COLORS | {"luck": "red"}, reference="size")
    with pytest.raises(ValueError, match=r"judged has no rows of \['luck'\]"):
        plot_choices(judged(), CHANCE, COLORS, reference="luck")
    with pytest.raises(ValueError, match=r"lacks \['equal'\]: add a number for each kind"):
        plot_choices(judged(), {"usual": 0.4}, COLORS, reference="size")
    with pytest.raises(ValueError, match=r"lacks the columns \['low'\]"):
        plot_choices(judged().drop(columns="low"), CHANCE, COLORS, reference="size")
    with pytest.raises(ValueError, match="high=nan for 'size' on 'usual'"):
        table = judged().astype({"high": float})
        table.loc[0, "high"] = np.nan
        plot_choices(table, CHANCE, COLORS, reference="size")
    assert not plt.get_fignums()


def test_the_areas_of_single_types_follow_their_sizes():
    rows = [("sums", "v", 0.5, 1.2, 20.0), ("sums", "up", 0.9, 1.0, 60.0)]
    table = pd.DataFrame(rows, columns=["task", "type", "value", "loss", "size"])

    def areas(frame):
        (ax,) = plot_alone(frame, "score")
        dots = [own for own in ax.collections if not hasattr(own, "get_segments")]
        return {tuple(own.get_offsets()[0]): own.get_sizes()[0] for own in dots}

    found = areas(table)
    assert found[0.9, 1.0] == pytest.approx(3 * found[0.5, 1.2])
    assert len({*areas(table.drop(columns="size")).values()}) == 1


def test_forgetting_has_a_line_over_the_rates_and_the_range_of_seeds():
    table = forgetting()
    ax = plot_forgetting(table, NAMED, title="A finding", note="three seeds")
    drawn = [line for line in ax.lines if len(line.get_xdata()) == 3]
    bars = [own for own in ax.collections if hasattr(own, "get_segments")]
    for line, bar, name in zip(drawn, bars, NAMED, strict=True):
        own = table[table["placement"] == name].groupby("lr")["forgetting"]
        assert line.get_xdata() == pytest.approx(RATES, rel=0.05)  # moved apart a little
        assert line.get_ydata() == pytest.approx(own.mean().to_numpy())
        ends = np.array([segment[:, 1] for segment in bar.get_segments()])
        assert ends == pytest.approx(own.agg(["min", "max"]).to_numpy())
        color = type_color("up") if name == "up" else DARK
        assert to_rgba(line.get_color()) == to_rgba(color)
    assert len({line.get_linestyle() for line in drawn}) == 3
    assert [text.get_text() for text in ax.texts] == [*NAMED.values()]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1e-3", "2e-3", "4e-3"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["−0.1", "0", "0.1", "0.3", "1"]
    assert ax.get_xlabel() == "learning rate\nthree seeds"
    assert ax.get_yscale() == "symlog" and ax.get_title(loc="left") == "A finding"


def test_forgetting_refuses_what_it_cannot_draw():
    with pytest.raises(ValueError, match=r"runs has no runs of \['all'\]"):
        plot_forgetting(forgetting(), NAMED | {"all": "all"})
    with pytest.raises(ValueError, match="lr=0.0: pass rates above 0"):
        plot_forgetting(forgetting().assign(lr=0.0), NAMED)
    with pytest.raises(ValueError, match=r"lacks the columns \['lr'\]"):
        plot_forgetting(forgetting().drop(columns="lr"), NAMED)
    with pytest.raises(ValueError, match="is an empty frame"):
        plot_forgetting(forgetting().head(0), NAMED)
    with pytest.raises(ValueError, match="forgetting=inf"):
        plot_forgetting(forgetting().assign(forgetting=np.inf), NAMED)
    assert not plt.get_fignums()


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plot_choices(judged(), CHANCE, COLORS, reference="size", note="seeds")[0],
        lambda: plot_forgetting(forgetting(), NAMED),
    ],
)
def test_texts_lie_inside_the_figure_and_apart(draw):
    figure = draw().figure
    assert figure.get_size_inches()[1] <= 6
    figure.canvas.draw()
    texts = [text for ax in figure.axes for text in [*ax.texts, ax._left_title]]
    texts += [label for ax in figure.axes for label in (ax.xaxis.label, ax.yaxis.label)]
    texts = [text for text in texts if text.get_text()]
    boxes = [Text.get_window_extent(text) for text in texts]
    for text, box in zip(texts, boxes, strict=True):
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, text
    for (one, first), (other, second) in itertools.combinations(zip(texts, boxes, strict=True), 2):
        overlap = first.intersection(first, second)
        assert overlap is None or min(overlap.width, overlap.height) < 1.5, (one, other)
