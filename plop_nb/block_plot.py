"""One block of a model as a drawing, each map filled by its score."""

from itertools import pairwise
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.patches import FancyBboxPatch, Rectangle

from plop_nb.checks import positive_integer
from plop_nb.palette import DARK, styled, type_role
from plop_nb.placement import Placement
from plop_nb.plots import (
    CMAP,
    adapters_in_words,
    axes_for,
    chosen_types,
    interval_in_words,
    mean_in_words,
)
from plop_nb.stats import by_type

# Columns of maps, in the order in which a token passes them: (panel, roles from the top).
COLUMNS = {
    "inputs": ("attention", ("query", "key", "value", "qkv")),
    "output": ("attention", ("output",)),
    "widening": ("MLP", ("gate", "up", "gate_up")),
    "narrowing": ("MLP", ("down",)),
}
OTHERS = "others"
# What joins the maps of a panel's first column, where it has such roles: (roles, in words).
JOINTS = {
    "attention": ({"key", "qkv"}, "softmax\n(q kᵀ) v"),
    "MLP": ({"gate", "gate_up"}, "act(gate)\n× up"),
}
BOX = (2.2, 0.8)  # width and height of a map
JOINT = (1.25, 0.75)
LEAST_SPAN = 1.25  # of the colours: from 1 / 1.25 to 1.25 at least
MARKS = (1 / 5, 1 / 3, 1 / 2, 2 / 3, 4 / 5, 1, 5 / 4, 3 / 2, 2, 3, 5)  # on the scale of colours
TITLE = 90  # letters in a line of the title
ROW = 1.05  # from one map to the one below
BUS = 0.45  # from a map to the wire beside it
BETWEEN = 0.8  # panels
STREAM = -0.9  # height of the residual stream
LINE = 17  # letters of a name in one line
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue
WIRE = {"color": "0.45", "lw": 1.5, "zorder": 1, "solid_capstyle": "round"}


@styled()
def plot_block(
    scores: pd.DataFrame,
    k: int = 3,
    *,
    placement: Placement | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """A block of the model: each type of maps at its place, filled by its mean NFN.

    Attention and MLP read from the residual stream and add to it. Names say which place a type
    has; types whose name does not say it stand in a column of others. The drawing is that of a
    usual decoder: softmax attention, then an MLP, also where a model runs both side by side. The
    colours reach as far as the scores do, equally far to both sides of 1. A note says how wide the
    widest 95 % interval of a score is, over texts.

    Parameters
    ----------
    scores : pandas.DataFrame
        From `nfn_scores`.
    k : int
        How many of the lowest types to outline (of fewer, all), where no placement is given.
    placement : Placement, optional
        Outline its types instead.
    title : str, optional
        By default it says where adapters go.
    ax : matplotlib Axes, optional
        Where to draw: by default the current axes, or a new figure of fitting size where no figure
        is open.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError
        `placement` is none.
    ValueError
        `scores` is not from `nfn_scores`, or lacks a type of `placement`; `k` is below 1.
    """
    types = by_type(scores)
    chosen = chosen_types(types, positive_integer("k", k), placement)
    columns = _columns(types["type"].tolist())
    starts = _starts(list(columns))
    rows = max(map(len, columns.values()))
    right, top = max(starts.values()) + BOX[0] + BUS + 0.8, rows * ROW
    ax = axes_for(ax, width=0.74 * right + 1.6, height=0.8 * top + 2.4)
    ax.set_axis_off()
    ax.set(xlim=(-1.2, right), ylim=(STREAM - 1.0, top + 0.6))
    _draw_panels(ax, columns, starts, top)
    means = types.set_index("type")["nfn"]
    norm = color_norm(means)
    for column, names in columns.items():
        for place, name in enumerate(names):
            corner = starts[column], _height(place, len(names), top)
            _draw_map(ax, corner, name, means[name], CMAP(norm(means[name])), name in chosen)
    note = "drawn: one layer, without normalisation layers and biases\n"
    note += "; ".join(["thick outline: adapters go here", *_sure(types)])
    ax.text(right, STREAM - 0.35, note, ha="right", va="top", size=12)
    _add_scale(ax, norm, f"{mean_in_words(types)}, log scale".replace(" (", "\n("))
    ax.set_title(fill(title or adapters_in_words(chosen), TITLE), loc="left")
    return ax


def color_norm(means: pd.Series) -> LogNorm:
    """The scale of the colours: as far from 1 as the farthest score, to both sides."""
    farthest = float(np.exp(np.abs(np.log(means[means > 0])).max()))
    span = max(LEAST_SPAN, farthest)
    return LogNorm(1 / span, span)


def _add_scale(ax: Axes, norm: LogNorm, label: str) -> None:
    """The scale of colours beside the drawing."""
    options = {"shrink": 0.75, "aspect": 16, "pad": 0.01}
    bar = ax.figure.colorbar(ScalarMappable(norm, CMAP), ax=ax, label=label, **options)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.minorticks_off()
    shown = [mark for mark in MARKS if norm.vmin <= mark <= norm.vmax]
    bar.set_ticks(shown, labels=[f"{round(mark, 2):g}" for mark in shown])


def _sure(types: pd.DataFrame) -> list[str]:
    """How wide the widest interval of a type's score is; nothing where one text gives none."""
    half = ((types["high"] - types["low"]) / 2).max()
    return [] if np.isnan(half) else [f"{interval_in_words(types, 0.95)}: ± {half:.2g} at most"]


def _columns(names: list[str]) -> dict[str, list[str]]:
    """{column: its types from the top}, from the left, without empty ones."""
    columns = {}
    left = list(names)
    for column, (_, roles) in COLUMNS.items():
        own = [name for role in roles for name in names if type_role(name) == role]
        if own:
            columns[column] = own
        left = [name for name in left if name not in own]
    return columns | {OTHERS: left} if left else columns


def _panel(column: str) -> str:
    return OTHERS if column == OTHERS else COLUMNS[column][0]


def _starts(columns: list[str]) -> dict[str, float]:
    """{column: left end of its boxes}: further apart where another panel begins."""
    starts = {columns[0]: 0.0}
    for before, column in pairwise(columns):
        same = _panel(before) == _panel(column)
        gap = 2 * BUS + (JOINT[0] + BUS if same else BETWEEN)
        starts[column] = starts[before] + BOX[0] + gap
    return starts


def _height(place: int, count: int, top: float) -> float:
    """The lower end of a box: a column's boxes stand around the middle."""
    return top / 2 + (count / 2 - place - 1) * ROW + (ROW - BOX[1]) / 2


def _draw_panels(ax: Axes, columns: dict, starts: dict, top: float) -> None:
    """The residual stream, and grounds with names and wires for the attention and the MLP."""
    panels: dict[str, list[str]] = {}
    for column in columns:
        panels.setdefault(_panel(column), []).append(column)
    inside = [starts[column] for column in columns if column != OTHERS]
    if inside:
        shape = "simple,head_width=1.1,head_length=0.8,tail_width=0.4"
        arrow = {"arrowstyle": shape, "color": "0.75", "shrinkA": 0, "shrinkB": 0}
        end = max(inside) + BOX[0] + BUS + 0.8
        ax.annotate("", (end, STREAM), (-1.2, STREAM), arrowprops=arrow, zorder=0)
        ax.text(-1.2, STREAM - 0.35, "residual stream", va="top", size=12)
    for panel, own in panels.items():
        left, right = starts[own[0]] - BUS - 0.2, starts[own[-1]] + BOX[0] + BUS + 0.2
        ax.add_patch(Rectangle((left, -0.1), right - left, top + 0.6, color="0.95", zorder=0))
        ax.text(left + 0.15, top + 0.25, panel, weight="bold", va="center", size=13)
        if panel != OTHERS:
            places, names = [starts[column] for column in own], [columns[column] for column in own]
            _draw_wires(ax, panel, places, names, top)


def _draw_wires(ax: Axes, panel: str, starts: list, names: list, top: float) -> None:
    """From the stream through the columns of a panel and back to the stream."""
    into, out = starts[0] - BUS, starts[-1] + BOX[0] + BUS
    for end in (into, out):
        ax.plot([end, end], [STREAM, top / 2], **WIRE)
    for start, own in zip(starts, names, strict=True):
        heights = [_height(place, len(own), top) + BOX[1] / 2 for place in range(len(own))]
        for end in (start - BUS, start + BOX[0] + BUS):
            ax.plot([end, end], [min(heights), max(heights)], **WIRE)
        for height in heights:
            ax.plot([start - BUS, start + BOX[0] + BUS], [height, height], **WIRE)
            ax.plot(start - 0.1, height, marker=">", **WIRE)
    if len(starts) > 1:
        _draw_joint(ax, panel, starts, names[0], top / 2)
    ax.plot(out, STREAM + 0.2, marker="v", **WIRE)  # touches the sum
    ax.plot(out, STREAM, marker="o", ms=16, mfc="white", mec="0.45", mew=1.5, zorder=2)
    ax.text(out, STREAM, "+", ha="center", va="center", size=14, zorder=3)


def _draw_joint(ax: Axes, panel: str, starts: list, first: list[str], height: float) -> None:
    """Between the two columns of a panel: how the outputs of the first one are put together."""
    left, right = starts[0] + BOX[0] + BUS, starts[1] - BUS
    ax.plot([left, right], [height, height], **WIRE)
    roles, words = JOINTS[panel]
    if not roles & {type_role(name) for name in first}:
        return
    middle = (left + right) / 2
    corner = middle - JOINT[0] / 2, height - JOINT[1] / 2
    shape = "round,pad=0,rounding_size=0.2"
    box = FancyBboxPatch(corner, *JOINT, boxstyle=shape, fc="white", ec="0.45", lw=1.5, zorder=2)
    ax.add_patch(box)
    ax.plot(corner[0] - 0.1, height, marker=">", **WIRE)
    style = {"ha": "center", "va": "center", "size": 10.5, "linespacing": 1.1, "zorder": 3}
    ax.text(middle, height, words, **style)


def _draw_map(
    ax: Axes, corner: tuple, name: str, score: float, face: tuple, is_chosen: bool
) -> None:
    """A box with the name and the score of a type, filled by the score."""
    x, y = corner
    edge = {"ec": DARK, "lw": 3.5} if is_chosen else {"ec": "0.6", "lw": 0.8}
    ax.add_patch(Rectangle(corner, *BOX, fc=face, zorder=2, **edge))
    color = "white" if np.dot(LUMINANCE, face[:3]) < 0.45 else DARK
    lines = _in_lines(name)
    text = f"{lines}\n{score:.2f}"
    style = {"ha": "center", "va": "center", "color": color, "zorder": 4, "linespacing": 1.1}
    size = min(9.5 if "\n" in lines else 12, 172 / max(map(len, lines.split("\n"))))
    weight = "bold" if is_chosen else "normal"
    ax.text(x + BOX[0] / 2, y + BOX[1] / 2, text, size=size, weight=weight, **style)


def _in_lines(name: str) -> str:
    """A long name in two lines, with the break behind the dot closest to its middle."""
    dots = [place for place, letter in enumerate(name) if letter == "."]
    if len(name) <= LINE or not dots:
        return name
    cut = min(dots, key=lambda place: abs(place - len(name) / 2)) + 1
    return f"{name[:cut]}\n{name[cut:]}"
