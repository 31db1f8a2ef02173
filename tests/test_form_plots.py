"""The picture of scores by form: what it draws, marks and says."""

from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from scipy import optimize

import plop_nb as plop
from plop_nb.form_plots import plot_forms, role_of, spread_out
from plop_nb.forms import FORMS
from tests.conftest import TEXTS


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def made_up():
    """Two models: in "changing" folding puts gate in v's place; in "steady" all stays."""
    rows = []
    for form, v, gate in [("canonical", 2.0, 0.5), ("stored", 0.5, 2.0), ("folded", 2.0, 0.5)]:
        for name, nfn in {"v_proj": v, "gate_proj": gate, "up_proj": 1.0}.items():
            # two layers, with the mean in between
            rows += [("changing", form, name, nfn * 0.5), ("changing", form, name, nfn * 1.5)]
        rows += [("steady", form, "value", 0.7), ("steady", form, "intermediate.dense", 1.4)]
    return pd.DataFrame(rows, columns=["model", "form", "type", "nfn"])


def lines(ax):
    """{type: its heights}."""
    return {line.get_label(): list(line.get_ydata()) for line in ax.lines[1:]}  # 0: the one at 1


def large_dots(ax):
    """{(place, height)} of the marked types."""
    sizes = [dots.get_sizes()[0] for dots in ax.collections]
    large = [dots for dots in ax.collections if dots.get_sizes()[0] == max(sizes)]
    return {tuple(map(float, dots.get_offsets()[0])) for dots in large}


def test_lines_are_means_in_the_order_of_the_forms():
    axes = plot_forms(made_up(), k=1)
    assert len(axes) == 2
    assert [tick.get_text() for tick in axes[0].get_xticklabels()] == list(FORMS)
    assert lines(axes[0]) == {
        "v_proj": [0.5, 2.0, 2.0],
        "gate_proj": [2.0, 0.5, 0.5],
        "up_proj": [1.0, 1.0, 1.0],
    }
    assert axes[0].get_yscale() == "log"


def test_the_lowest_of_each_form_are_marked():
    axes = plot_forms(made_up(), k=2)
    assert large_dots(axes[0]) == {(place, nfn) for place in range(3) for nfn in (0.5, 1.0)}
    one = plot_forms(made_up(), k=1)
    assert large_dots(one[0]) == {(0, 0.5), (1, 0.5), (2, 0.5)}


def test_titles_say_what_changes():
    axes = plot_forms(made_up(), k=1)
    titles = [ax.get_title(loc="left") for ax in axes]
    assert titles == ["changing\nfolded: gate instead of v", "steady\nthe same in every form"]
    assert axes[0].figure.get_suptitle().endswith("in 1 of 2 models")
    of_all = plot_forms(made_up(), k=3)  # all of them are lowest
    assert of_all[0].figure.get_suptitle().endswith("in 0 of 2 models")


def test_the_same_role_has_the_same_colour_in_other_architectures():
    axes = plot_forms(made_up(), k=1)
    colors = []
    for ax in axes:
        colors.append({role_of(line.get_label()): line.get_color() for line in ax.lines[1:]})
    assert to_rgba(colors[0]["v"]) == to_rgba(colors[1]["v"])
    assert to_rgba(colors[0]["up"]) == to_rgba(colors[1]["up"])
    assert len(set(map(to_rgba, colors[0].values()))) == 3
    assert role_of("self_attn.q_proj") == "q" and role_of("pooler.dense") == "pooler.dense"


def test_labels_do_not_overlap():
    """Scores that are nearly equal, as those of o and down are in the canonical form of Gemma."""
    names = ["v_proj", "q_proj", "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    rows = []
    for form in FORMS:
        rows += [(form, name, 1 + 0.001 * i) for i, name in enumerate(names)]
        rows.append((form, "far", 0.1))
    ax = plot_forms(pd.DataFrame(rows, columns=["form", "type", "nfn"]))[0]
    ax.figure.canvas.draw()
    boxes = sorted((text.get_window_extent() for text in ax.texts), key=lambda box: box.y0)
    assert len(boxes) == 8
    for below, above in pairwise(boxes):
        assert above.y0 - below.y0 > 0.9 * below.height  # boxes have some room around the letters
    frame = ax.get_window_extent()
    assert frame.y0 - boxes[0].height < boxes[0].y0 and boxes[-1].y1 < frame.y1 + boxes[0].height


def test_positions_move_no_further_than_they_must():
    """Against a solver of quadratic programs, which is told the gaps and the bounds."""
    generator = np.random.default_rng(0)
    for _ in range(20):
        wanted = generator.uniform(0, 4, 6)
        found = spread_out(wanted, 0.5, 0.3, 3.5)
        order = np.argsort(wanted)

        def gaps(moved, order=order):
            return np.diff(moved[order]) - 0.5

        def distance(moved, wanted=wanted):
            return np.square(moved - wanted).sum()

        start = np.empty(6)
        start[order] = np.linspace(0.5, 3.4, 6)
        options = {"bounds": [(0.3, 3.5)] * 6, "options": {"ftol": 1e-14, "maxiter": 1000}}
        best = optimize.minimize(
            distance, start, constraints={"type": "ineq", "fun": gaps}, **options
        )
        assert best.success and found == pytest.approx(best.x, abs=1e-4)


def test_frames_of_real_scores_fit(tiny_llama, byte_tokenizer):
    parts = []
    for form in ("stored", "folded"):
        scores = plop.nfn_scores(tiny_llama, TEXTS, byte_tokenizer, form=form, progress=False)
        parts.append(scores.assign(form=form))
    found = lines(plot_forms(pd.concat(parts))[0])
    for place, part in enumerate(parts):
        means = plop.by_type(part).set_index("type")["nfn"]
        assert {name: found[name][place] for name in found} == pytest.approx(means.to_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda scores: scores.drop(columns="form"), "lacks the columns \\['form'\\]"),
        (lambda scores: scores[scores["form"] == "stored"], "'stored'.* only"),
        (lambda scores: scores.replace("folded", "bent"), "form='bent'"),
        (lambda scores: scores.drop(index=0).drop(index=1), "type 'v_proj' of 'changing'"),
        (lambda scores: scores.assign(nfn=-1.0), "positive"),
        (lambda scores: scores.head(0), "empty"),
        (lambda scores: None, "lacks the columns"),
    ],
)
def test_other_frames_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        plot_forms(change(made_up()))
    assert not plt.get_fignums()


def test_k_is_checked_before_anything_is_drawn():
    with pytest.raises(ValueError, match="k=0"):
        plot_forms(made_up(), k=0)
    assert not plt.get_fignums()
