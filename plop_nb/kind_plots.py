"""Scores on several kinds of texts in one picture: does another kind give another order?"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan
from textwrap import fill

import pandas as pd
from matplotlib.axes import Axes

from plop_nb.checks import positive_integer
from plop_nb.palette import DARK, styled, type_color
from plop_nb.plots import MIDDLE, TITLE, axes_for, interval_in_words, mean_in_words
from plop_nb.stats import by_type

ROOM = 0.24  # of the width of the axes, at the right of the highest score: for the legend


@dataclass(frozen=True)
class Marker:
    """How a kind of texts is drawn: a hollow one is large enough to show those inside."""

    shape: str
    size: float
    is_full: bool


MARKERS = (
    Marker("o", 6, True),
    Marker("D", 10, False),
    Marker("s", 14, False),
    Marker("o", 20, False),
)


@styled()
def plot_kinds(
    kinds: Mapping[str, pd.DataFrame],
    *,
    k: int | None = None,
    model: str = "",
    level: float = 0.95,
    ax: Axes | None = None,
) -> Axes:
    """Mean NFN per module type on several kinds of texts: a row for each type, a dot for each kind.

    Types run from the lowest score on the first kind (top) to the highest. The title says whether
    all kinds give this order, and the axis how wide the widest interval of a score is, as a narrow
    one is hidden by its dot.

    Parameters
    ----------
    kinds : dict
        {kind: scores}, with scores of the same model from `nfn_scores`; at most four.
    k : int, optional
        How many of the lowest types get adapters: draws a line below them, and the gap of the first
        kind's scores that decides.
    model : str
        Its name, for the title.
    level : float
        Coverage of the intervals over texts, between 0 and 1.
    ax : matplotlib Axes, optional
        Where to draw: by default the current axes, or a new figure of fitting size where no figure
        is open.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        There are no kinds or more than four, one lacks a type that the first has, or `k` is below 1
        or leaves no type without adapters.
    """
    if not 0 < len(kinds) <= len(MARKERS):
        raise ValueError(f"kinds has {len(kinds)} entries, expected 1 to {len(MARKERS)}")
    means = {kind: by_type(scores, level=level).set_index("type") for kind, scores in kinds.items()}
    first = next(iter(means.values()))
    names = first.index.tolist()
    for kind, table in means.items():
        if missing := set(names) - set(table.index):
            raise ValueError(
                f"scores on {kind!r} lack the types {sorted(missing)}: score one model"
            )
    if k is not None and positive_integer("k", k) >= len(names):
        raise ValueError(f"k={k}, expected fewer than the {len(names)} types in scores")
    ax = axes_for(ax, width=8, height=0.42 * len(names) + 1.8)
    for (kind, table), marker in zip(means.items(), MARKERS, strict=False):
        _draw_kind(ax, kind, table.loc[names], marker)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)  # the lowest score on top
    low, high = ax.get_xlim()
    ax.set_xlim(low, high + ROOM * (high - low))
    ax.axvline(1, color=DARK, lw=1, ls="--", zorder=0)
    if k is not None:
        _draw_choice(ax, k, first["nfn"].iloc[k - 1], first["nfn"].iloc[k])
    half = max(((table["high"] - table["low"]) / 2).max() for table in means.values())
    sure = "" if isnan(half) else f"\nbars: {interval_in_words(first, level)}, at most ± {half:.2g}"
    ax.set_xlabel(f"{mean_in_words(first)}{sure}")
    ax.legend(loc="upper right", frameon=False, title="texts about", labelspacing=0.8)
    ax.set_title(fill(_finding(means, model), TITLE), loc="left")
    return ax


def _draw_kind(ax: Axes, kind: str, types: pd.DataFrame, marker: Marker) -> None:
    """A dot with its interval in the row of each type, in its colour; in the legend it is grey."""
    style = {"ls": "", "marker": marker.shape, "ms": marker.size, "mew": 1.6}
    for place, row in enumerate(types.itertuples()):
        color = type_color(row.Index)
        face = color if marker.is_full else "none"
        ax.plot([row.low, row.high], [place, place], color=color, lw=1.5, zorder=2)
        ax.plot(row.nfn, place, mfc=face, color=color, zorder=3, **style)
    face = MIDDLE if marker.is_full else "none"
    ax.plot([], [], mfc=face, color=MIDDLE, label=kind, **style)


def _draw_choice(ax: Axes, k: int, last: float, following: float) -> None:
    """The line below the `k` types with adapters, and the gap to the first type without."""
    ax.axhline(k - 0.5, color="0.5", lw=1, ls=":", zorder=0)
    at_left = {"transform": ax.get_yaxis_transform(), "va": "bottom", "size": 11}
    ax.text(0.02, k - 0.54, "types above get adapters", **at_left)
    arrow = {"arrowstyle": "<->", "color": DARK, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", (following, k - 0.5), (last, k - 0.5), arrowprops=arrow)
    said = f"a gap of {following - last:.3f} decides"
    ground = {"fc": "white", "ec": "none", "pad": 1}
    style = {"textcoords": "offset points", "va": "center", "size": 11, "bbox": ground}
    ax.annotate(said, (following, k - 0.5), (8, 0), **style)


def _finding(means: Mapping[str, pd.DataFrame], model: str) -> str:
    """Whether all kinds of texts order the types as the first one does."""
    first, *others = (table.index.tolist() for table in means.values())
    kinds = " and on ".join(means)
    told = f"the same order of types on {kinds}"
    if any(other != first for other in others):
        told = f"not the same order of types on {kinds}"
    if not others:
        told = f"scores on {kinds}"
    return f"{model}: {told}" if model else f"{told[0].upper()}{told[1:]}"
