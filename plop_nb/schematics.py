"""Ideas as drawings: the method, an adapter, the score and its growth. No model is needed."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Ellipse, FancyBboxPatch, Rectangle

from plop_nb.checks import positive_integer, positive_number
from plop_nb.palette import DARK, styled, tint

PALE, MIDDLE = "0.93", "0.45"  # grounds, and what is not in focus
FROZEN, TRAINED = "#9A9A9A", "#B35C00"
LONG, SHORT = "#2F7A8C", "#7A5C2E"  # axes of the ellipse: no colours of types
LOWEST = 3  # types that get adapters in `draw_method`
WEIGHT = np.array([[1.5, 0.7], [0.1, 0.8]])  # of `draw_alignment`: any map from 2 to 2 would do
PUSH = 0.5 * np.sqrt(2 / np.pi)  # of `draw_pushes`: ten steps of eta = 0.05 in a wide network
ARROW = {"arrowstyle": "-|>,head_width=0.35,head_length=0.7", "lw": 2, "shrinkA": 0, "shrinkB": 0}


@styled()
def draw_method(ax: Axes | None = None) -> Axes:
    """The five steps of PLoP, from texts of a task to adapters, as boxes with little pictures.

    It names no type of maps, so that it can stand before the scores of a model.

    Parameters
    ----------
    ax : matplotlib Axes, optional
        Where to draw: by default the axes of a new figure.

    Returns
    -------
    matplotlib.axes.Axes
    """
    ax = _blank(ax, (12.5, 3.5), (-0.1, 14.5), (-1.1, 2.4))
    steps = {
        "texts": ("run a few texts\nthrough the model", _draw_text),
        "inputs": ("record the input z\nof every linear map W", _draw_inputs),
        "score": ("compare with noise z̃\nof the same norm", _draw_ratio),
        "types": ("mean over tokens, texts\nand layers; black: chosen", _draw_types),
        "adapters": ("train B and A on the\nlowest-scoring types", _draw_adapters),
    }
    for place, (name, (what, draw)) in enumerate(steps.items()):
        left = 3 * place
        box = FancyBboxPatch((left, 0), 2.4, 2.2, boxstyle="round,pad=0,rounding_size=0.15")
        box.set(facecolor=PALE, edgecolor="0.7")
        ax.add_patch(box)
        draw(ax, left)
        ax.text(left + 1.2, -0.35, f"{place + 1}. {name}", ha="center", weight="bold", size=14)
        ax.text(left + 1.2, -0.55, what, ha="center", va="top", size=11, linespacing=1.3)
        if place:
            _arrow(ax, (left - 0.52, 1.1), (left - 0.08, 1.1))
    ax.set_title(
        "PLoP: score every map on a few texts, then put adapters on the lowest-scoring types"
    )
    return ax


@styled()
def draw_adapter(ax: Axes | None = None, *, width: int = 576, rank: int = 8) -> Axes:
    """A LoRA adapter: the frozen weight W, and the two thin matrices B and A that are trained.

    The thin matrices are drawn thicker than they are, and the picture says so.

    Parameters
    ----------
    ax : matplotlib Axes, optional
        Where to draw: by default the axes of a new figure.
    width, rank : int
        Inputs and outputs of the square map W (by default SmolLM2-135M's), and the adapter's rank.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        `width` or `rank` is no positive integer.
    """
    width, rank = positive_integer("width", width), positive_integer("rank", rank)
    ax = _blank(ax, (10, 4.2), (-0.8, 11.1), (-1.6, 3.7))
    _matrix(ax, (0, 0), (3, 3), "W", FROZEN)
    _matrix(ax, (5.2, 0), (0.5, 3), "B", TRAINED)
    _matrix(ax, (6.9, 2.5), (3, 0.5), "A", TRAINED)
    ax.text(3.85, 1.5, "+", ha="center", va="center", size=34)
    ax.text(6.3, 1.5, "×", ha="center", va="center", size=26)
    ax.text(-0.15, 1.5, f"{width} outputs", rotation=90, ha="right", va="center")
    ax.text(5.05, 1.5, f"{width} outputs", rotation=90, ha="right", va="center")
    ax.text(1.5, 3.15, f"{width} inputs", ha="center")
    ax.text(8.4, 3.15, f"{width} inputs", ha="center")
    ax.text(5.45, 3.15, f"rank r = {rank}", ha="center", color=TRAINED, weight="bold")
    ax.text(10.05, 2.75, f"r = {rank}", va="center", color=TRAINED, weight="bold")
    ax.text(1.5, -0.5, f"frozen: {width * width:,} numbers", ha="center", size=13)
    trained = 2 * width * rank
    style = {"ha": "center", "size": 13, "color": TRAINED, "weight": "bold"}
    ax.text(7.55, -0.5, f"trained: {trained:,} numbers", **style)
    note = "Not to scale: B and A\nare much thinner."
    ax.text(8.4, 1.25, note, ha="center", va="center", size=11)
    ax.text(5.2, -1.35, "output = W z + B A z", ha="center", size=16)
    instead = f"{trained:,} numbers instead of {width * width:,}"
    ax.set_title(f"An adapter adds B A to the frozen W, and trains {instead}")
    return ax


@styled()
def draw_alignment(
    ax: Axes | None = None, weight: np.ndarray = WEIGHT, example: np.ndarray | None = None
) -> Axes:
    """NFN as geometry: a map turns the circle of unit inputs into an ellipse.

    The baseline is the root mean square length of the outputs, over all directions of the input.
    NFN is the length of an input's image over the baseline.

    Parameters
    ----------
    ax : matplotlib Axes, optional
        Where to draw: by default the axes of a new figure.
    weight : numpy.ndarray
        The map, shape (2, 2), not all zeros.
    example : numpy.ndarray, optional
        An input of length 1, drawn with its output. Its NFN is not written, so that readers can
        guess it from those of the two axes.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        `weight` has another shape, is all zeros, or holds what is no finite number.
    """
    weight = np.asarray(weight, dtype=float)
    if weight.shape != (2, 2) or not np.isfinite(weight).all() or not weight.any():
        raise ValueError(
            f"weight={weight.tolist()}, expected a (2, 2) array of finite numbers, not all zeros"
        )
    images, sizes, inputs = _axes_of(weight)
    baseline = np.sqrt(np.square(sizes).mean())
    high = max(1.0, baseline, sizes[0] * abs(images[1, 0]))
    middle = max(baseline, sizes[0]) + 2.5  # of the image: the circle of inputs is around (0, 0)
    ax = _blank(ax, (9.8, 4.6), (-1.25, middle + sizes[0] + 1.5), (-high - 0.65, high + 0.4))
    ax.set_aspect("equal", anchor="W")
    outline = {"fc": PALE, "ec": MIDDLE, "lw": 1.5, "zorder": 0}
    angle = np.degrees(np.arctan2(images[1, 0], images[0, 0]))
    ax.add_patch(Ellipse((0, 0), 2, 2, **outline))
    ax.add_patch(Ellipse((middle, 0), *(2 * sizes), angle=angle, **outline))
    ring = {"fc": "none", "ec": DARK, "lw": 1.8, "ls": "--", "zorder": 1}
    ax.add_patch(Ellipse((middle, 0), 2 * baseline, 2 * baseline, **ring))
    _arrow(ax, (1.3, 0), (2.2, 0))
    ax.text(1.75, 0.12, "W", ha="center", weight="bold", size=18)

    def style(color):
        return {"color": color, "weight": "bold", "size": 11.5}

    for axis, color in enumerate((LONG, SHORT)):
        _arrow(ax, (0, 0), inputs[:, axis], color)
        tip = images[:, axis] * sizes[axis]
        _arrow(ax, (middle, 0), (middle + tip[0], tip[1]), color)
        name = ("x₁", "x₂")[axis]
        centred = {"ha": "center", "va": "center", **style(color)}
        ax.text(*(1.13 * inputs[:, axis]), name, **centred)
        text = f"‖W {name}‖ = {sizes[axis]:.2f}\nNFN = {sizes[axis] / baseline:.2f}"
        tip = (middle, 0) + images[:, axis] * (sizes[axis] + 0.1)
        ax.text(*tip, text, va=("top", "bottom")[axis], ha=("left", "center")[axis], **style(color))
    if example is not None:
        example = np.asarray(example, dtype=float)
        output = weight @ example
        for start, vector, name in ((0, example, "z"), (middle, output, "W z")):
            _arrow(ax, (start, 0), (start + vector[0], vector[1]), DARK)
            tip = (start, 0.05) + vector * (1 + 0.1 / np.linalg.norm(vector))
            ax.text(*tip, name, va="bottom", ha="center", **style(DARK))
    x, y = baseline * np.array([np.cos(np.pi / 4), -np.sin(np.pi / 4)])
    on_ring = {"ha": "center", "va": "center", "size": 11, "weight": "bold"}
    ground = {"fc": "white", "ec": "none", "pad": 2}
    ax.text(middle + x, y, f"baseline {baseline:.2f}", bbox=ground, **on_ring)
    words = "outputs, to the same scale\n(dashed: their root mean square length)"
    ax.text(middle, -high - 0.1, words, ha="center", va="top")
    ax.text(0, -high - 0.1, "inputs of length 1", ha="center", va="top")
    ax.set_title(
        "Inputs that W sends to the long axis have NFN above 1,\n"
        "those sent to the short axis below 1"
    )
    return ax


@styled()
def draw_pushes(
    ax: Axes | None = None,
    *,
    push: float = PUSH,
    pushes: int = 4,
    steps: int = 10,
    setting: str = "",
) -> Axes:
    """Why growth is quadratic: equal pushes, all at a right angle to the output before training.

    To scale. Lengths are divided by the root of the width (root mean squares); the output before
    training has length 1.

    Parameters
    ----------
    ax : matplotlib Axes, optional
        Where to draw: by default the axes of a new figure.
    push : float
        The length of one arrow; by default that of ten steps of 0.05 in a wide network.
    pushes, steps : int
        How many arrows, and how many steps of training each stands for.
    setting : str
        What the pushes are of, such as the width and the step size; written below.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        `push` is no positive number, or `pushes` or `steps` is no positive integer.
    """
    push, pushes = positive_number("push", push), positive_integer("pushes", pushes)
    steps, end = positive_integer("steps", steps), push * pushes
    ax = _blank(ax, (8, 4.6), (-0.75, end + 0.4), (-0.22, 1.28))
    ax.set_aspect("equal", anchor="W")
    ax.plot([0, 0.07, 0.07], [0.93, 0.93, 1], color=MIDDLE, lw=1.2)  # the right angle
    _arrow(ax, (0, 0), (0, 1), MIDDLE)
    added = {"ha": "center", "va": "bottom", "size": 11, "color": LONG}
    ax.text(-0.06, 1.06, "added to the\nsquared length:", **added | {"ha": "right"})
    _arrow(ax, (0, 0), (end, 1), DARK, shrinkB=12)  # so that its head is clear of the last push
    for k in range(1, pushes + 1):
        _arrow(ax, (push * (k - 1), 1), (push * k, 1), LONG)
        ax.text(push * k, 1.06, f"step {steps * k}\n{k * k} × {push**2:.2f}", **added)
        if k < pushes:
            ax.plot([0, push * k], [0, 1], color="0.8", lw=1.2, zorder=0)
    words = "$W_0 z$, before\ntraining: length 1"
    ax.text(-0.06, 0.5, words, ha="right", va="center", color=MIDDLE)
    words = f"$W_t z$ at step {steps * pushes}:\nlength {np.sqrt(1 + end**2):.2f}"
    ax.text(0.6 * end + 0.1, 0.55, words, va="top", weight="bold")
    note = f"to scale; lengths divided by √n; each arrow of the upper row: {steps} steps"
    ax.text(-0.75, -0.1, f"{note}\n{setting}", va="top", size=11, color="0.35")
    ax.set_title(
        f"Equal pushes at a right angle to the first output: {pushes} times as many\n"
        f"steps add {pushes**2} times as much to the squared length"
    )
    return ax


def _axes_of(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Axes of the ellipse, its half widths and the inputs they come from; vectors are columns.

    The first axis points to the right and the second one up, as is easiest to label.
    """
    images, sizes, rows = np.linalg.svd(weight)
    signs = np.array([np.copysign(1, images[0, 0]), np.copysign(1, images[1, 1])])
    return images * signs, sizes, rows.T * signs


def _blank(ax: Axes | None, size: tuple, across: tuple, up: tuple) -> Axes:
    """Axes without frame, of a new figure of this size (inches) if none are given."""
    if ax is None:
        ax = plt.subplots(figsize=size, layout="constrained")[1]
    ax.set(xlim=across, ylim=up)
    ax.set_axis_off()
    return ax


def _arrow(ax: Axes, start, end, color: str = MIDDLE, **props) -> None:
    arrow = ARROW | {"color": color, **props}
    ax.annotate("", tuple(end), tuple(start), arrowprops=arrow, zorder=3)


def _matrix(ax: Axes, corner: tuple, size: tuple, name: str, color: str) -> None:
    """A matrix as a rectangle with its name in it."""
    ax.add_patch(Rectangle(corner, *size, fc=tint(color, 0.35), ec=color, lw=2))
    x, y = corner[0] + size[0] / 2, corner[1] + size[1] / 2
    ax.text(x, y, name, ha="center", va="center", weight="bold", size=18)


# The little pictures of `draw_method`: each in a box of 2.4 by 2.2, whose left end is given.


def _draw_text(ax: Axes, left: float) -> None:
    for row, width in enumerate((1.7, 1.4, 1.8, 1.2, 1.6)):
        ax.add_patch(Rectangle((left + 0.3, 1.65 - 0.33 * row), width, 0.13, color=MIDDLE, lw=0))


def _draw_inputs(ax: Axes, left: float) -> None:
    """A map with a wire through it, and a tap on the wire."""
    ax.plot([left + 0.2, left + 2.2], [0.95, 0.95], color=MIDDLE, lw=2)
    ax.add_patch(Rectangle((left + 1.2, 0.55), 0.8, 0.8, color=FROZEN, zorder=2))
    style = {"ha": "center", "va": "center"}
    ax.text(left + 1.6, 0.95, "W", color="white", weight="bold", size=14, **style)
    ax.plot([left + 0.65, left + 0.65], [0.95, 1.45], color=DARK, lw=2)
    ax.plot(left + 0.65, 1.45, marker="o", ms=9, mfc="white", mec=DARK, mew=2)
    ax.plot(left + 0.65, 0.95, marker="o", ms=5, color=DARK)
    ax.text(left + 0.36, 1.17, "z", size=13, **style)


def _draw_ratio(ax: Axes, left: float) -> None:
    """The norm of an output over that of a random input's output."""
    _arrow(ax, (left + 0.35, 1.45), (left + 0.95, 1.45), DARK)
    ax.plot([left + 0.25, left + 1.35], [1.1, 1.1], color=DARK, lw=2)
    _arrow(ax, (left + 0.35, 0.8), (left + 1.3, 0.8), MIDDLE)
    style = {"ha": "center", "va": "center"}
    ax.text(left + 0.82, 1.75, "‖W z‖", size=13, **style)
    ax.text(left + 0.82, 0.48, "‖W z̃‖", size=13, color=MIDDLE, **style)
    ax.text(left + 0.82, 0.2, "noise", size=10, color=MIDDLE, **style)
    ax.text(left + 1.91, 1.1, "= score", size=12, weight="bold", **style)
    ax.text(left + 1.87, 0.68, "shorter:\nbelow 1", size=9.5, **style)


def _draw_types(ax: Axes, left: float) -> None:
    """Bars from the lowest score to the highest, and the line at 1."""
    for row, width in enumerate((0.5, 0.85, 1.0, 1.15, 1.3, 1.4, 1.5)):
        low, strength = 1.67 - 0.245 * row, 1.0 if row < LOWEST else 0.35
        ax.add_patch(Rectangle((left + 0.65, low), width, 0.18, fc=tint(DARK, strength), ec=DARK))
        weight = "bold" if row < LOWEST else "normal"
        style = {"ha": "right", "va": "center", "size": 8.5, "weight": weight}
        ax.text(left + 0.58, low + 0.09, f"type {row + 1}", **style)
    ax.plot([left + 1.55, left + 1.55], [0.17, 1.92], color=TRAINED, ls="--", lw=1.5)
    style = {"ha": "center", "va": "center", "size": 9.5, "color": TRAINED}
    ax.text(left + 1.55, 2.04, "1 = noise", **style)


def _draw_adapters(ax: Axes, left: float) -> None:
    """A map of one of the lowest types, with thin matrices that are as high and as wide."""
    style = {"ha": "center", "va": "center"}
    side, thin, low = 0.7, 0.14, 0.95
    ax.add_patch(Rectangle((left + 0.1, low), side, side, fc=FROZEN, ec=DARK))
    ax.text(left + 0.45, low + side / 2, "W", color="white", weight="bold", size=14, **style)
    ax.text(left + 1.06, low + side / 2, "+ α/r", size=11, **style)
    places = {"B": (1.36, low, thin, side), "A": (1.59, low + side - thin, side, thin)}
    for name, (x, y, width, height) in places.items():
        ax.add_patch(Rectangle((left + x, y), width, height, fc=TRAINED, ec=DARK))
        middle = left + x + width / 2
        ax.text(middle, 1.83, name, size=11, color=TRAINED, weight="bold", **style)
    ax.text(left + 1.2, 0.64, "W z + (α/r) B A z", size=11, **style)
    ax.text(left + 1.2, 0.28, f"each map of types 1 to {LOWEST}", size=9.5, **style)
