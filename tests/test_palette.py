"""Colours of types: one for each role, far apart for everybody; labels that do not overlap."""

from itertools import combinations, pairwise

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from plop_nb.palette import (
    COLORS,
    STYLE,
    UNKNOWN,
    label_lines,
    styled,
    tint,
    type_color,
    type_role,
)

NAMES = {
    "query": "q_proj query attention.q q_lin wq q query_proj q_a_proj q_b_proj SelfAttention.q",
    "key": "k_proj key attention.self.key k_lin wk k",
    "value": "v_proj value attention.self.value v_lin wv v model.layers.3.self_attn.v_proj",
    "output": "o_proj out_proj attention.output.dense o attn.c_proj out_lin SelfAttention.o "
    "attn.Wo attention.dense dense layers.0.attention.wo",
    "gate": "gate_proj w1 gate wi_0 mlp.gate_proj experts.*.w1",
    "up": "up_proj w3 fc1 intermediate.dense up dense_h_to_4h c_fc shared_expert.up_proj wi ffn",
    "down": "down_proj w2 fc2 output.dense layer.*.output.dense down mlp.c_proj dense_4h_to_h wo "
    "mlp.Wo experts.down_proj DenseReluDense.wo",
    "qkv": "qkv_proj c_attn query_key_value Wqkv attn.qkv kv_a_proj_with_mqa kv_b_proj",
    "gate_up": "gate_up_proj experts.gate_up_proj mlp.Wi",
}
# What people see who lack one kind of cones: matrices for linear RGB, from Machado, Oliveira and
# Fernandes, "A physiologically-based model for simulation of color vision deficiency" (2009).
SIGHTS = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


@pytest.fixture
def ax():
    yield plt.figure(figsize=(6, 4)).subplots()
    plt.close("all")


def linear(color):
    """Red, green and blue as amounts of light."""
    part = np.array(to_rgb(color))
    return np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)


def lab(color, sight):
    """CIELAB coordinates (D65) of a colour as somebody of this sight sees it."""
    light = np.clip(np.array(SIGHTS[sight]) @ linear(color), 0, 1)
    to_xyz = [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
    xyz = np.array(to_xyz) @ light / [0.95047, 1, 1.08883]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("role", NAMES)
def test_all_names_of_a_role_have_its_colour(role):
    for name in NAMES[role].split():
        assert (type_role(name), type_color(name)) == (role, COLORS[role]), name


def test_every_role_is_named_and_has_a_colour_of_its_own():
    assert set(NAMES) == set(COLORS)
    assert len({*COLORS.values(), UNKNOWN}) == len(COLORS) + 1


@pytest.mark.parametrize(
    "name", ["pooler.dense", "lm_head", "all", "v+k", "", "0", "*", "in_proj", "transform.dense"]
)
def test_other_names_are_grey(name):
    assert type_role(name) is None and type_color(name) == UNKNOWN


@pytest.mark.parametrize("sight", SIGHTS)
def test_colours_are_far_apart(sight):
    """At least 16 steps of CIELAB; a step is about what can just be told apart side by side."""
    seen = {name: lab(color, sight) for name, color in (COLORS | {"unknown": UNKNOWN}).items()}
    for first, second in combinations(seen, 2):
        assert np.linalg.norm(seen[first] - seen[second]) > 16, (first, second)


def test_colours_are_legible_on_white():
    """A contrast of 3, which WCAG 2 asks of large text and of parts of pictures."""
    for color in [*COLORS.values(), UNKNOWN]:
        assert 1.05 / (linear(color) @ [0.2126, 0.7152, 0.0722] + 0.05) > 2.95, color


def test_a_tint_lies_between_white_and_the_colour():
    assert tint("#2450e0", 1) == "#2450e0" and tint("#2450e0", 0) == "#ffffff"
    assert to_rgb(tint("#000000", 0.2)) == pytest.approx([0.8] * 3, abs=0.01)


def test_the_style_is_one_that_matplotlib_knows():
    before = plt.rcParams["font.size"]
    with plt.rc_context(STYLE):
        assert plt.rcParams["axes.titlelocation"] == "left"
    assert plt.rcParams["font.size"] == before


def test_labels_keep_apart_and_keep_their_order(ax):
    ax.set(xlim=(0, 1), ylim=(1, 100), yscale="log")
    ends = {f"line {i}": (1, 10 + 0.1 * i, COLORS["up"]) for i in range(5)} | {"far": (1, 90, "k")}
    texts = label_lines(ax, ends)
    assert [text.get_text() for text in texts] == list(ends)
    assert [text.get_color() for text in texts] == [color for _, _, color in ends.values()]
    boxes = [text.get_window_extent() for text in texts]
    for below, above in pairwise(boxes):
        assert below.y1 <= above.y0 + 1  # pixel
    frame = ax.get_window_extent()
    assert all(box.x0 > frame.x1 for box in boxes) and boxes[-1].y1 < frame.y1 + 10


def test_a_label_with_room_stands_at_its_line(ax):
    (text,) = label_lines(ax, {"alone": (1, 0.5, "k")})
    box, height = text.get_window_extent(), ax.transData.transform((1, 0.5))[1]
    assert (box.y0 + box.y1) / 2 == pytest.approx(height, abs=3)
    with pytest.raises(ValueError, match="labels is empty"):
        label_lines(ax, {})


def test_the_style_goes_and_leaves_what_a_figure_switched_on():
    """As the first figure of a notebook switches `interactive` on."""
    before = plt.rcParams["font.size"]
    plt.rcParams["interactive"] = False
    with styled({"axes.grid": True}):
        plt.rcParams["interactive"] = True
        assert plt.rcParams["font.size"] == STYLE["font.size"] and plt.rcParams["axes.grid"]
    assert plt.rcParams["interactive"] and plt.rcParams["font.size"] == before
    assert not plt.rcParams["axes.grid"]
    plt.rcParams["interactive"] = False
    with pytest.raises(ZeroDivisionError), styled():
        1 / 0  # noqa: B018
    assert plt.rcParams["font.size"] == before
