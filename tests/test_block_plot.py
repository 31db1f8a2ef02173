"""The drawing of a block: every type once, at its place, filled by its score."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import plop_nb as plop
from plop_nb.block_plot import BOX, JOINT, color_norm
from plop_nb.plots import CMAP
from tests.conftest import TEXTS

LLAMA = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()
FUSED = "qkv_proj o_proj gate_up_proj down_proj".split()
ENCODER = "query key value attention.output.dense intermediate.dense".split()
ENCODER += ["layer.*.output.dense", "pooler.dense"]
EXPERTS = "q_a_proj q_b_proj kv_a_proj_with_mqa kv_b_proj o_proj experts.gate_up_proj".split()
EXPERTS += "experts.down_proj shared_experts.gate_proj shared_experts.up_proj eh_proj".split()
PLAIN = ["0", "2"]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def frame(types):
    """Scores from 0.4 upward in the order of the types, of three texts."""
    rows = []
    for sample in range(3):
        for place, name in enumerate(types):
            nfn = 0.4 * 1.3**place + 0.01 * sample
            rows.append({"sample": sample, "module": f"m.{name}", "type": name, "nfn": nfn})
    return pd.DataFrame(rows)


def maps(ax):
    """{type: (left end, its box, its lines of text)}; the box around the text."""
    boxes = [p for p in ax.patches if (p.get_width(), p.get_height()) == BOX]
    found = {}
    for box in boxes:
        inside = [t for t in ax.texts if box.get_bbox().contains(*t.get_position())]
        assert len(inside) == 1
        *name, score = inside[0].get_text().split("\n")
        assert "".join(name) not in found
        found["".join(name)] = box, score
    return found


@pytest.mark.parametrize("types", [LLAMA, FUSED, ENCODER, EXPERTS, PLAIN])
def test_every_type_stands_once_with_its_score_and_colour(types):
    scores = frame(types)
    drawn = maps(plop.plot_block(scores, ax=Figure().subplots()))
    means = plop.by_type(scores).set_index("type")["nfn"]
    norm = color_norm(means)
    assert sorted(drawn) == sorted(types)
    for name, (box, score) in drawn.items():
        assert score == f"{means[name]:.2f}"
        assert box.get_facecolor() == pytest.approx(CMAP(norm(means[name])))
    corners = [box.get_xy() for box, _ in drawn.values()]
    assert len(set(corners)) == len(types)


@pytest.mark.parametrize("types", [LLAMA, FUSED, ENCODER, EXPERTS])
def test_tokens_pass_from_the_left_to_the_right(types):
    drawn = maps(plop.plot_block(frame(types)))
    left = {name: box.get_x() for name, (box, _) in drawn.items()}
    order = {}
    for name, x in left.items():
        order.setdefault(plop.palette.type_role(name), set()).add(x)
    places = [order[role] for role in ("query", "output", "up", "down", None) if role in order]
    assert all(len(place) == 1 for place in places)  # one column for each role
    assert sorted(places, key=min) == places
    if "qkv" in order and "query" not in order:
        assert min(order["qkv"]) < min(order["output"]) < min(order["gate_up"])


def test_boxes_do_not_overlap_and_lie_within_the_axes():
    for types in (LLAMA, ENCODER, EXPERTS):
        ax = plop.plot_block(frame(types), ax=Figure().subplots())
        boxes = [box.get_bbox() for box, _ in maps(ax).values()]
        for place, box in enumerate(boxes):
            assert not box.count_overlaps(boxes[place + 1 :])
            assert ax.viewLim.containsx(box.x0) and ax.viewLim.containsx(box.x1)
            assert ax.viewLim.containsy(box.y0) and ax.viewLim.containsy(box.y1)


def test_texts_fit_into_their_boxes():
    for types in (LLAMA, FUSED, ENCODER, EXPERTS):
        ax = plop.plot_block(frame(types))
        ax.figure.draw_without_rendering()
        boxes = [box.get_window_extent() for box, _ in maps(ax).values()]
        for text in ax.texts:
            middle = text.get_window_extent()
            around = [b for b in boxes if b.contains(middle.x0 + middle.width / 2, middle.y0 + 9)]
            for box in around:
                assert box.x0 < middle.x0 and middle.x1 < box.x1, text.get_text()
        plt.close("all")


def outlined(ax):
    return {name for name, (box, _) in maps(ax).items() if box.get_linewidth() > 2}


def test_the_lowest_or_those_of_a_placement_are_outlined():
    scores = frame(LLAMA)
    assert outlined(plop.plot_block(scores, ax=Figure().subplots())) == set(LLAMA[:3])
    assert outlined(plop.plot_block(scores, 1, ax=Figure().subplots())) == {"q_proj"}
    assert outlined(plop.plot_block(scores, 99, ax=Figure().subplots())) == set(LLAMA)
    placement = plop.Placement.of_types(scores, ["up_proj"])
    ax = plop.plot_block(scores, placement=placement, ax=Figure().subplots())
    assert outlined(ax) == {"up_proj"}
    assert ax.get_title(loc="left") == "Adapters go on up_proj"


@pytest.mark.parametrize("lowest, highest", [(0.6, 1.2), (0.9, 2.5), (0.99, 1.01), (0, 1.5)])
def test_colours_reach_as_far_as_the_scores_and_no_less_than_a_quarter(lowest, highest):
    """A score of 0 has no logarithm, and takes the colour of the lowest end."""
    norm = color_norm(pd.Series([lowest, highest]))
    span = max(1.25, highest, 1 / lowest if lowest else 1)
    assert (norm.vmin, norm.vmax) == pytest.approx((1 / span, span))
    assert norm(1) == pytest.approx(0.5)


def test_the_scale_of_colours_is_labelled_with_what_stands_there():
    """1.25 is not 1.2."""
    ax = plop.plot_block(frame(LLAMA[:4]))
    scale = next(other for other in ax.figure.axes if other is not ax)
    labels = [float(label.get_text()) for label in scale.get_yticklabels()]
    assert labels == pytest.approx(scale.get_yticks(), abs=0.005)
    assert {0.8, 1, 1.25} <= set(labels)


def test_a_note_says_how_wide_the_widest_interval_is():
    scores = frame(LLAMA)
    ax = plop.plot_block(scores, ax=Figure().subplots())
    (note,) = [t.get_text() for t in ax.texts if "thick outline" in t.get_text()]
    types = plop.by_type(scores)
    half = ((types["high"] - types["low"]) / 2).max()
    assert note.endswith(f"; 95% interval over 3 texts: ± {half:.2g} at most")
    one_text = scores[scores["sample"] == 0]
    ax = plop.plot_block(one_text, ax=Figure().subplots())
    assert not [text for text in ax.texts if "interval" in text.get_text()]


def test_what_is_added_ends_at_the_stream():
    """Each arrow touches the circle with the plus, and does not lie on it."""
    ax = plop.plot_block(frame(LLAMA))
    ax.figure.draw_without_rendering()
    circles = [line for line in ax.lines if line.get_marker() == "o"]
    arrows = [line for line in ax.lines if line.get_marker() == "v"]
    assert len(circles) == len(arrows) == 2
    for circle, arrow in zip(circles, arrows, strict=True):
        below, above = (line.get_window_extent() for line in (circle, arrow))
        points = 72 / ax.figure.dpi
        gap = ((above.y0 + above.y1) / 2 - (below.y0 + below.y1) / 2) * points
        assert arrow.get_xdata()[0] == circle.get_xdata()[0]
        assert abs(gap - (circle.get_markersize() + arrow.get_markersize()) / 2) < 3


def joints(ax):
    """{words: middle} of what joins the maps of a panel."""
    ax.figure.draw_without_rendering()
    found = {}
    for patch in ax.patches:
        if hasattr(patch, "get_boxstyle"):
            assert (patch.get_width(), patch.get_height()) == JOINT
            box = patch.get_window_extent()
            (text,) = [
                t for t in ax.texts if box.contains(*t.get_transform().transform(t.get_position()))
            ]
            inside = text.get_window_extent()
            assert box.x0 < inside.x0 and inside.x1 < box.x1
            found[text.get_text().split("\n")[0]] = (box.x0 + box.x1) / 2
    return found


@pytest.mark.parametrize(
    "types, joined",
    [
        (LLAMA, ["softmax", "act(gate)"]),
        (FUSED, ["softmax", "act(gate)"]),
        (ENCODER, ["softmax"]),
        (["q_proj", "k_proj", "v_proj"], []),
        (PLAIN, []),
    ],
)
def test_maps_are_joined_by_what_their_block_does(types, joined):
    """Between a panel's two columns; an MLP without a gate multiplies nothing."""
    ax = plop.plot_block(frame(types))
    assert list(joints(ax)) == joined


def test_a_joint_stands_between_its_columns_and_over_no_map():
    ax = plop.plot_block(frame(LLAMA))
    middle = joints(ax)
    boxes = {name: box.get_window_extent() for name, (box, _) in maps(ax).items()}
    assert boxes["q_proj"].x1 < middle["softmax"] < boxes["o_proj"].x0
    assert boxes["up_proj"].x1 < middle["act(gate)"] < boxes["down_proj"].x0


def test_the_title_may_say_what_was_run():
    ax = plop.plot_block(frame(LLAMA), title="A model on some texts")
    assert ax.get_title(loc="left") == "A model on some texts"


def test_it_draws_on_the_axes_given_or_the_current_ones_or_its_own():
    scores = frame(LLAMA)
    given = Figure().subplots()
    assert plop.plot_block(scores, ax=given) is given and not plt.get_fignums()
    own = plop.plot_block(scores)
    assert own.figure.number in plt.get_fignums()
    plt.close("all")
    _, (left, _) = plt.subplots(1, 2)
    plt.sca(left)
    assert plop.plot_block(scores) is left


def test_scores_of_a_model_can_be_drawn(tiny_llama, byte_tokenizer):
    scores = plop.nfn_scores(tiny_llama, TEXTS, byte_tokenizer, progress=False)
    assert sorted(maps(plop.plot_block(scores))) == sorted(LLAMA)


def test_what_cannot_be_drawn_is_named():
    scores = frame(LLAMA)
    placement = plop.place(scores, k=1)
    with pytest.raises(TypeError, match="placement is list, expected a Placement"):
        plop.plot_block(scores, placement=["v_proj"])
    with pytest.raises(ValueError, match="placement .*scores of the same model"):
        plop.plot_block(frame(["a", "b"]), placement=placement)
    with pytest.raises(ValueError, match="scores is an empty frame"):
        plop.plot_block(scores.head(0))
    with pytest.raises(ValueError, match="lacks the columns"):
        plop.plot_block(scores.drop(columns="nfn"))
    with pytest.raises(ValueError, match="nfn=nan"):
        plop.plot_block(scores.assign(nfn=np.nan))
    for k in (0, "2", 1.5):
        with pytest.raises(ValueError, match=f"k={k!r}, expected an integer of at least 1"):
            plop.plot_block(scores, k)
    assert not plt.get_fignums()
