"""The drawings of ideas: what they say is true, and they stand where they are told to."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, Rectangle

from plop_nb.norms import baseline_gain
from plop_nb.palette import COLORS
from plop_nb.schematics import WEIGHT, draw_adapter, draw_alignment, draw_method, draw_pushes

ALL = [draw_method, draw_adapter, draw_alignment, draw_pushes]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.mark.parametrize("draw", ALL)
def test_it_has_a_title_and_draws_where_it_should(draw):
    given = Figure().subplots()
    assert draw(given) is given and not plt.get_fignums()
    other = plt.figure()
    ax = draw()
    assert ax.figure is not other and len(plt.get_fignums()) == 2
    assert len(ax.get_title(loc="left").split()) > 5
    assert plt.rcParams["axes.titlelocation"] == plt.rcParamsDefault["axes.titlelocation"]


@pytest.mark.parametrize("draw", ALL)
def test_texts_lie_within_the_figure_and_do_not_overlap(draw):
    ax = draw()
    ax.figure.draw_without_rendering()
    whole = ax.figure.bbox
    boxes = [text.get_window_extent() for text in ax.texts if text.get_text()]
    for place, box in enumerate(boxes):
        assert whole.x0 <= box.x0 and box.x1 <= whole.x1
        assert whole.y0 <= box.y0 and box.y1 <= whole.y1
        assert not box.count_overlaps(boxes[place + 1 :]), ax.texts[place].get_text()


def test_the_method_has_five_steps_in_order():
    names = [t.get_text() for t in draw_method().texts if re.match(r"\d\. ", t.get_text())]
    assert names == ["1. texts", "2. inputs", "3. score", "4. types", "5. adapters"]


def test_the_matrices_of_the_last_step_fit_each_other():
    """B is as high as W, A as wide, and both are equally thin; their product is written below."""
    ax = draw_method()
    sizes = [(p.get_width(), p.get_height()) for p in ax.patches if isinstance(p, Rectangle)]
    (width, height), (rank, b_height), (a_width, a_rank) = sizes[-3:]
    assert (b_height, a_width, a_rank) == pytest.approx((height, width, rank)) and rank < width / 4
    assert "W z + (α/r) B A z" in [text.get_text() for text in ax.texts]


def test_the_method_gives_no_type_away():
    """It stands before a question that asks for the lowest one."""
    texts = [text.get_text() for text in draw_method().texts]
    named = [text for text in texts if re.fullmatch(r"type \d", text)]
    assert named == [f"type {n}" for n in range(1, 8)]
    assert "each map of types 1 to 3" in texts  # the three with adapters are the three lowest
    used = {to_hex(patch.get_facecolor()).upper() for patch in draw_method().patches}
    assert not used & set(COLORS.values())


@pytest.mark.parametrize(("width", "rank"), [(576, 8), (256, 1)])
def test_the_numbers_of_the_adapter_are_those_of_peft(width, rank):
    """PEFT's adapter of this rank on a square map of this width."""
    peft = pytest.importorskip("peft")
    model = torch.nn.Sequential(torch.nn.Linear(width, width, bias=False))
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=rank, target_modules=["0"]))
    trained, total = adapted.get_nb_trainable_parameters()
    ax = draw_adapter(width=width, rank=rank)
    texts = [text.get_text() for text in ax.texts]
    assert f"trained: {trained:,} numbers" in texts and f"rank r = {rank}" in texts
    assert f"frozen: {total - trained:,} numbers" in texts
    assert f"{trained:,} numbers instead of {total - trained:,}" in ax.get_title(loc="left")


def test_an_adapter_without_a_rank_is_refused():
    with pytest.raises(ValueError, match="rank=0, expected an integer of at least 1"):
        draw_adapter(rank=0)
    assert not plt.get_fignums()


def test_the_baseline_is_named_on_its_circle():
    ax = draw_alignment(weight=np.array([[2.0, 0.0], [0.0, 0.5]]))
    [ring] = [p for p in ax.patches if p.get_linestyle() == "--"]
    [name] = [text for text in ax.texts if text.get_text() == "baseline 1.46"]
    distance = np.hypot(*(np.array(name.get_position()) - ring.center))
    assert distance == pytest.approx(ring.width / 2)


def scores(ax):
    """{NFN} as written beside the arrows."""
    texts = [text.get_text() for text in ax.texts]
    return [float(text.rpartition("= ")[2]) for text in texts if "NFN" in text]


WEIGHTS = [WEIGHT, [[0, -2], [1, 0]], [[1, 2], [2, 4]], [[-1, 0], [0, -1]], [[0.1, -3], [0.2, -2]]]


@pytest.mark.parametrize("weight", WEIGHTS)
def test_the_alignment_is_that_of_the_package(weight):
    """NFN of the inputs that are drawn, from the package's baseline."""
    ax = draw_alignment(weight=np.array(weight))
    W = torch.tensor(np.array(weight), dtype=torch.float32)
    arrows = [text for text in ax.texts if not text.get_text()]
    inputs = [np.array(arrow.xy) for arrow in arrows[1::2]]  # the first arrow of all is W's
    for z, found in zip(inputs, scores(ax), strict=True):
        z = torch.tensor(z, dtype=torch.float32)
        assert z.norm() == pytest.approx(1)
        assert found == pytest.approx(float((W @ z).norm() / baseline_gain(W)), abs=0.006)
    high, low = scores(ax)
    assert high >= 1 >= low
    ring = [p for p in ax.patches if p.get_linestyle() == "--"]
    assert ring[0].width / 2 == pytest.approx(float(baseline_gain(W)))


@pytest.mark.parametrize("weight", WEIGHTS)
def test_outputs_end_on_the_ellipse(weight):
    """Those of the two axes, and that of an example."""
    ax = draw_alignment(weight=np.array(weight), example=np.array([0.8, 0.6]))
    ellipse = [p for p in ax.patches if isinstance(p, Ellipse)][1]
    arrows = [text.xy for text in ax.texts if not text.get_text()]
    inputs, outputs = np.array(arrows[1::2]), np.array(arrows[2::2])
    assert outputs - ellipse.center == pytest.approx(inputs @ np.array(weight).T)
    turn = np.radians(ellipse.angle)
    x, y = (outputs - ellipse.center).T
    along, across = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
    if ellipse.height < 1e-6:
        assert across == pytest.approx(0, abs=1e-6)
    else:
        radius = (2 * along / ellipse.width) ** 2 + (2 * across / ellipse.height) ** 2
        assert radius == pytest.approx(1)


def test_the_example_does_not_give_its_score_away():
    """It is drawn from z to W z, with names that touch no other text; the axes have theirs."""
    ax = draw_alignment(weight=np.array([[1.8, 0.6], [0.2, 0.7]]), example=np.array([0.8, 0.6]))
    texts = [text for text in ax.texts if text.get_text()]
    assert {"z", "W z"} <= {text.get_text() for text in texts}
    assert scores(ax) == [1.35, 0.41]
    ax.figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in texts]
    assert not any(box.count_overlaps(boxes[n + 1 :]) for n, box in enumerate(boxes))


def test_the_input_that_is_stretched_most_is_named():
    """x₁ and x₂ stand beside the inputs whose outputs are the longest and the shortest."""
    weight = np.array([[0.1, 0.3], [2.0, 0.4]])
    at = {
        text.get_text(): np.array(text.get_position())
        for text in draw_alignment(weight=weight).texts
    }
    circle = np.stack([np.cos(np.arange(0, 7, 0.01)), np.sin(np.arange(0, 7, 0.01))])
    lengths = np.linalg.norm(weight @ circle, axis=0)
    for name, extreme in {"x₁": lengths.max(), "x₂": lengths.min()}.items():
        length = np.linalg.norm(weight @ at[name]) / np.linalg.norm(at[name])
        assert length == pytest.approx(extreme, abs=1e-3)


def test_the_axes_have_no_colour_of_a_type():
    used = {text.get_color() for text in draw_alignment().texts if text.get_text()}
    assert not used & set(COLORS.values())


@pytest.mark.parametrize("weight", [np.zeros((2, 2)), np.ones((2, 3)), [[np.nan, 1], [1, 1]], 3])
def test_other_weights_are_refused(weight):
    with pytest.raises(ValueError, match="expected a \\(2, 2\\) array of finite numbers"):
        draw_alignment(weight=weight)
    assert not plt.get_fignums()


def test_matrices_of_the_adapter_have_matching_sides():
    sizes = [(p.get_width(), p.get_height()) for p in draw_adapter().patches]
    (w_in, w_out), (rank, b_out), (a_in, a_rank) = sizes
    assert (w_out, w_in, rank) == (b_out, a_in, a_rank)
    assert all(isinstance(patch, Rectangle) for patch in draw_adapter().patches)


def test_pushes_add_up_at_a_right_angle():
    """Each push starts where the one before ends; start and pushes together are the output."""
    ax = draw_pushes(push=0.3, pushes=5, steps=8)
    arrows = [(text.xyann, text.xy) for text in ax.texts if not text.get_text()]
    (origin, tip), (bottom, end), *pushes = np.array(arrows)
    assert len(pushes) == 5 and origin.tolist() == bottom.tolist() == [0, 0]
    for tail, head in pushes:
        assert tail == pytest.approx(tip) and head - tail == pytest.approx([0.3, 0])
        tip = head
    assert end == pytest.approx(tip) and end == pytest.approx([1.5, 1])
    assert ax.get_aspect() == 1, "to scale"


def test_what_pushes_add_is_written_above_them():
    said = [text.get_text() for text in draw_pushes(push=0.5, pushes=3, steps=8).texts]
    assert {"step 8\n1 × 0.25", "step 16\n4 × 0.25", "step 24\n9 × 0.25"} <= set(said)
    [length] = [text for text in said if text.startswith("$W_t z$")]
    assert length == f"$W_t z$ at step 24:\nlength {np.sqrt(1 + 9 * 0.25):.2f}"


def test_the_setting_of_pushes_is_written_below():
    assert draw_pushes(setting="n → ∞").texts[-1].get_text().endswith("\nn → ∞")


@pytest.mark.parametrize("wrong", [{"push": 0}, {"push": -1.0}, {"pushes": 0}, {"steps": 2.5}])
def test_pushes_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.*expected"):
        draw_pushes(**wrong)
    assert not plt.get_fignums()
