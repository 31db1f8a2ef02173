"""Scores on several kinds of texts in one picture."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

import plop_nb as plop
from plop_nb.kind_plots import MARKERS, plot_kinds
from plop_nb.palette import type_color
from tests.test_plots import frame


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


KINDS = {"math": frame([0.5, 1.5, 1.2]), "history": frame([0.4, 1.1, 1.3])}
ORDER = ["v_proj", "k_proj", "q_proj"]  # on the first kind


def dots(ax):
    """[(x, y, colour)] of the dots, in the order in which they were drawn."""
    lines = [line for line in ax.lines if line.get_marker() != "None" and len(line.get_xdata())]
    return [(line.get_xdata()[0], line.get_ydata()[0], to_hex(line.get_color())) for line in lines]


def title(ax):
    return ax.get_title(loc="left").replace("\n", " ")


def test_each_type_has_a_dot_for_each_kind_in_its_colour():
    ax = plot_kinds(KINDS, ax=Figure().subplots())
    assert [label.get_text() for label in ax.get_yticklabels()] == ORDER
    found = dots(ax)
    assert len(found) == 6
    for number, scores in enumerate(KINDS.values()):
        means = plop.by_type(scores).set_index("type")["nfn"]
        for place, name in enumerate(ORDER):
            x, y, color = found[3 * number + place]
            assert (x, y) == (pytest.approx(means[name]), place)
            assert color == type_color(name).lower()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(KINDS)


def test_a_dot_shows_those_that_were_drawn_before():
    """At the same height, each is hollow and larger than the ones before."""
    sizes = [marker.size for marker in MARKERS]
    assert sizes == sorted(set(sizes)) and not any(marker.is_full for marker in MARKERS[1:])


def test_kinds_draw_their_intervals_and_say_how_wide_they_are():
    ax = plot_kinds(KINDS, level=0.9)
    bars = [line.get_xdata() for line in ax.lines if line.get_marker() == "None"]
    bars = sorted(tuple(bar) for bar in bars if len(bar) == 2 and bar[0] != 1)
    tables = [plop.by_type(scores, level=0.9) for scores in KINDS.values()]
    expected = pd.concat(tables).sort_values("low")
    assert bars == [pytest.approx(tuple(pair)) for pair in expected[["low", "high"]].to_numpy()]
    half = (expected["high"] - expected["low"]).max() / 2
    assert f"90% interval over 4 texts, at most ± {half:.2g}" in ax.get_xlabel()
    one_text = plot_kinds({"math": frame([0.5, 1.5, 1.2], texts=1)}, ax=Figure().subplots())
    assert "interval" not in one_text.get_xlabel()


def test_the_title_says_whether_the_order_is_the_same():
    other = plot_kinds(KINDS, model="mine", ax=Figure().subplots())
    assert title(other) == "mine: not the same order of types on math and on history"
    alike = {"math": KINDS["math"], "code": frame([0.4, 1.6, 1.3])}
    same = plot_kinds(alike, ax=Figure().subplots())
    assert title(same) == "The same order of types on math and on code"
    alone = plot_kinds({"math": KINDS["math"]}, ax=Figure().subplots())
    assert title(alone) == "Scores on math"


def test_the_gap_that_decides_is_drawn_below_the_chosen_types():
    ax = plot_kinds(KINDS, k=1, ax=Figure().subplots())
    lines = [line for line in ax.lines if list(line.get_ydata()) == [0.5, 0.5]]
    assert len(lines) == 1
    [said] = [text for text in ax.texts if "decides" in text.get_text()]
    assert said.get_text() == "a gap of 0.700 decides"  # key minus value, on math
    assert said.xy == pytest.approx((1.215, 0.5))
    assert not plot_kinds(KINDS, ax=Figure().subplots()).texts


def test_other_kinds_are_refused():
    with pytest.raises(ValueError, match="kinds has 0 entries, expected 1 to 4"):
        plot_kinds({})
    with pytest.raises(ValueError, match="kinds has 5 entries"):
        plot_kinds({str(number): KINDS["math"] for number in range(5)})
    fewer = KINDS["math"].query("type != 'q_proj'")
    with pytest.raises(ValueError, match=r"scores on 'b' lack the types \['q_proj'\]"):
        plot_kinds({"a": KINDS["math"], "b": fewer})
    with pytest.raises(ValueError, match="k=3, expected fewer than the 3 types in scores"):
        plot_kinds(KINDS, k=3)
    with pytest.raises(ValueError, match="k=0"):
        plot_kinds(KINDS, k=0)
