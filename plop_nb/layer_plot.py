"""A picture of two types layer by layer: whether a few layers decide which of them scores lower."""

from collections.abc import Collection
from textwrap import fill
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from plop_nb.palette import DARK, label_lines, styled, type_color
from plop_nb.plots import NFN, axes_for

WIDTH = 78  # letters in a line of the title
STYLES = ("o-", "s--")
BESIDE = (1.5, 0.12, 0.42, 0.82)  # of the summaries, in units of the axes of the layers


@styled()
def plot_layers(
    layers: pd.DataFrame,
    pair: tuple[str, str],
    *,
    marked: Collection[int] = (),
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Scores of two types in every layer; beside them their mean, their median, and what is left.

    What is left is the mean without the marked layers. The summaries are inset axes on the right
    of `ax`: save the figure with `bbox_inches="tight"`, as notebooks do.

    Parameters
    ----------
    layers : pandas.DataFrame
        Mean NFN, layers down and types across.
    pair : tuple of str
        The two types; differences are the second minus the first.
    marked : collection of int
        Layers to number.
    title : str, optional
        By default it says whether the second type's mean would be below the first one's without the
        marked layers, else in how many layers it is above it.
    ax : matplotlib Axes, optional
        Where to draw: by default the current axes, or a new figure of fitting size where no figure
        is open.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        `pair` is not two types of `layers`, or a marked layer is none of its layers.
    """
    if len(set(pair)) != 2 or not set(pair) <= set(layers.columns):
        raise ValueError(f"pair={pair!r}, expected two of the types {list(layers.columns)}")
    if unknown := set(marked) - set(layers.index):
        raise ValueError(f"marked={sorted(unknown)}, expected layers of {list(layers.index)}")
    ax = axes_for(ax, width=9, height=3.9)
    layers = layers.set_axis(layers.index.astype(int))[list(pair)]
    numbers = sorted(map(int, marked))
    for name, style in zip(pair, STYLES, strict=True):
        ax.plot(layers.index, layers[name], style, color=type_color(name), ms=5)
    for layer in numbers:
        beside = {"xytext": (6, 2), "textcoords": "offset points", "size": 11}
        ax.annotate(f"{layer}", (layer, layers.loc[layer].max()), **beside)
    right = layers.index.max() + 1
    ax.axhline(1, color=DARK, lw=1, ls=":", zorder=0)
    ax.set(xlabel="layer", ylabel=NFN, xlim=(layers.index.min() - 1, right))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.margins(y=0.12)
    ax.set_title(fill(title or _finding(layers, numbers), WIDTH), loc="left")
    _draw_summaries(ax.inset_axes(BESIDE), _summaries(layers, numbers))
    label_lines(ax, {name: (right, layers[name].iloc[-1], type_color(name)) for name in pair})
    return ax


def _summaries(layers: pd.DataFrame, marked: list[int]) -> pd.DataFrame:
    """What one may take for the score of a type: a row each, types across."""
    found = {f"mean of\n{len(layers)} layers": layers.mean(), "median": layers.median()}
    if marked:
        found["mean without\nnumbered layers"] = layers.drop(marked).mean()
    return pd.DataFrame(found).T


def _draw_summaries(ax: Axes, summaries: pd.DataFrame) -> None:
    """A line with two dots for each summary, the lower number on the left."""
    left, right = {"xytext": (-8, 0), "ha": "right"}, {"xytext": (8, 0)}
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # the line at 1 stops there
    words: dict[str, Any] = {"va": "center", "size": 11, "bbox": ground}
    for place, (_, row) in enumerate(summaries.iterrows()):
        ax.plot(row, [place] * 2, color="0.8", lw=2, zorder=0)
        for name, value in row.items():
            style: dict[str, Any] = {"textcoords": "offset points", **words}
            style |= left if name == row.idxmin() else right
            ax.plot(value, place, "o", ms=8, color=type_color(name))
            ax.annotate(f"{value:.2f}", (value, place), color=type_color(name), **style)
    ax.axvline(1, color=DARK, lw=1, ls=":", zorder=0)
    ax.set_yticks(range(len(summaries)), summaries.index, size=11)
    ax.tick_params(axis="y", length=0, pad=10)
    ax.set(ylim=(len(summaries) - 0.5, -0.6), xlabel=NFN)
    ax.spines["left"].set_visible(False)
    ax.margins(x=0.35)
    ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))


def _finding(layers: pd.DataFrame, marked: list[int]) -> str:
    """What the picture shows, as its title."""
    first, second = layers.columns
    above = layers[second] - layers[first]
    if marked and above.mean() > 0 > above.drop(marked).mean():
        few = f"layer {marked[0]}" if len(marked) == 1 else f"{len(marked)} of {len(layers)} layers"
        return f"Without {few} {second} would score below {first}"
    return f"{second} scores above {first} in {(above > 0).sum()} of {len(layers)} layers"
