"""One colour for each role of a map, the same in every picture, and the style of all pictures."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.text import Annotation
from scipy.optimize import isotonic_regression

# What a map does in its block. The attention has cool colours, the MLP warm ones. No two of them
# are close, also not to readers who confuse red with green (`tests/test_palette.py` measures it).
COLORS = {
    "query": "#2F9BE0",
    "key": "#0A8F4E",
    "value": "#2450E0",
    "output": "#93399A",
    "gate": "#DE7C00",
    "up": "#E8173F",
    "down": "#630024",
    "qkv": "#12246E",  # one map for several of query, key and value
    "gate_up": "#4D5700",  # one map for gate and up
}
UNKNOWN = "#8C8C8C"  # of a map whose role is not known
DARK = "#1A1A1A"  # of texts and outlines

# The last part of a type's name, without an ending such as "_proj".
WORDS = {
    "query": "q query q_a q_b wq to_q q_attn query_global",
    "key": "k key wk to_k key_global",
    "value": "v value wv to_v value_global",
    "output": "o out output to_out o_net",
    "gate": "gate w1 wi_0",
    "up": "up w3 v1 fc1 fc_in c_fc lin1 linear1 linear_fc1 wi wi_1 dense_h_to_4h ffn",
    "down": "down w2 fc2 fc_out lin2 linear2 linear_fc2 dense_4h_to_h ffn_output output_linear",
    "qkv": "qkv wqkv query_key_value c_attn qkv_net kv_a kv_b kv_a_proj_with_mqa in_proj_qkvz",
    "gate_up": "gate_up Wi input_linear",
}
ENDINGS = ("_proj", "_lin")
# These are the attention's output inside of an attention, and the MLP's last map elsewhere.
LAST = ("c_proj", "wo", "Wo", "proj")
_ROLES = {word: role for role, words in WORDS.items() for word in words.split()}

# Readable on a slide. A white ground makes a clean panel also on a dark page.
STYLE = {
    "font.size": 12,
    "axes.titlesize": 14,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 12,
    "xtick.labelsize": 12,
    "ytick.labelsize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "text.color": DARK,
    "axes.labelcolor": DARK,
    "axes.edgecolor": DARK,
    "xtick.color": DARK,
    "ytick.color": DARK,
}


@contextmanager
def styled(more: Mapping[str, Any] | None = None) -> Iterator[None]:
    """The style of all pictures, and more settings of matplotlib, for a while.

    Not `rc_context`, which resets what the first figure of a notebook has switched on as well: no
    other figure of that notebook would be shown.
    """
    settings = STYLE | dict(more or {})
    before = {name: plt.rcParams[name] for name in settings}
    plt.rcParams.update(settings)
    try:
        yield
    finally:
        plt.rcParams.update(before)


def type_role(name: str) -> str | None:
    """What a type of maps does: a key of `COLORS`, or None where the name does not tell.

    Parameters
    ----------
    name : str
        A type, a module's full name, or a short name such as "v".

    Examples
    --------
    >>> [type_role(name) for name in ("self_attn.q_proj", "attention.output.dense", "w3")]
    ['query', 'output', 'up']
    >>> type_role("pooler.dense") is None
    True
    """
    parts = [part for part in name.split(".") if part != "*" and not part.isdigit()]
    if not parts:
        return None
    is_attention = any("att" in part.lower() for part in parts[:-1])
    last = parts[-1]
    if last == "dense":
        return _role_of_dense(parts[-2] if len(parts) > 1 else "", is_attention)
    if last in LAST:
        return "output" if is_attention else "down"
    for ending in ENDINGS:
        last = last.removesuffix(ending)
    return _ROLES.get(last, _ROLES.get(last.lower()))


def type_color(name: str) -> str:
    """The colour of a type of maps, such as "#2450E0" for "v_proj": its role's, else grey."""
    role = type_role(name)
    return UNKNOWN if role is None else COLORS[role]


def tint(color: str, strength: float = 0.25) -> str:
    """A pale version of a colour: this much of it (0 to 1), the rest white."""
    return to_hex([1 - strength * (1 - part) for part in to_rgb(color)])


def label_lines(
    ax: Axes, labels: Mapping[str, tuple[float, float, str]], size: float = 11
) -> list[Annotation]:
    """Write names to the right of lines' ends, moved up or down where they would overlap.

    Call it when the limits of the axes are final.

    Parameters
    ----------
    ax : matplotlib Axes
        Where the lines are.
    labels : dict
        {name: (x, y, colour)}, with the line's end in the units of the axes.
    size : float
        Of the letters, in points.

    Returns
    -------
    list of matplotlib.text.Annotation
        One per label, in their order.

    Raises
    ------
    ValueError
        `labels` is empty.
    """
    if not labels:
        raise ValueError("labels is empty: pass {name: (x, y, colour)}, one per line")
    if ax.figure is not None and ax.figure.get_layout_engine() is not None:
        ax.figure.draw_without_rendering()  # so that the axes have their final size
    points = 72 / ax.figure.dpi  # per pixel
    ends = [(x, y) for x, y, _ in labels.values()]
    heights = ax.transData.transform(ends)[:, 1] * points
    frame = ax.get_window_extent()
    low, high = frame.y0 * points, frame.y1 * points
    moved = spread_out(heights, 1.3 * size, low, high)
    texts = []
    for (name, (x, y, color)), up in zip(labels.items(), moved - heights, strict=True):
        style = {"color": color, "size": size, "va": "center", "annotation_clip": False}
        texts.append(ax.annotate(name, (x, y), (7, up), textcoords="offset points", **style))
    return texts


def spread_out(positions: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
    """Positions moved as little as it takes to be `gap` apart, between `low` and `high`.

    In the same order, with the least sum of squares. What does not fit goes below `low`.

    Examples
    --------
    >>> spread_out(np.array([0.0, 0.1, 5.0]), 1.0, low=-2, high=5.5).round(2).tolist()
    [-0.45, 0.55, 5.0]
    """
    order = np.argsort(positions, kind="stable")
    steps = gap * np.arange(len(positions))
    # Without the gaps, neighbours that are too close are those in the wrong order.
    found = isotonic_regression(positions[order] - steps).x
    moved = np.empty(len(positions))
    moved[order] = np.clip(found, low, high - steps[-1]) + steps
    return moved


def _role_of_dense(before: str, is_attention: bool) -> str | None:
    """The role of a map called "dense", from the name before it."""
    if is_attention or not before:
        return "output"
    return {"output": "down", "intermediate": "up"}.get(before)
