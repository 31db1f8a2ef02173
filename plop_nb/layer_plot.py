"""A picture of two types layer by layer: whether a few layers decide which of them scores lower."""

from collections.abc import Collection
from textwrap import fill

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from plop_nb.palette import DARK, label_lines, styled, type_color
from plop_nb.plots import NFN, axes_for

WIDTH = 60  # letters in a line of the title
STYLES = ("o-", "s--")


@styled()
def plot_layers(
    layers: pd.DataFrame,
    pair: tuple[str, str],
    *,
    marked: Collection[int] = (),
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Scores of two types in every layer, with their means as thin lines.

    Parameters
    ----------
    layers : pandas.DataFrame
        Mean NFN, layers down and types across.
    pair : tuple of str
        The two types; differences are the second minus the first.
    marked : collection of int
        Layers to number.
    title : str, optional
        By default it says whether the second type's mean would be below the first one's without
        the marked layers, else in how many layers it is above it.
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
    ax = axes_for(ax, width=8, height=3.8)
    layers = layers.set_axis(layers.index.astype(int))
    right = layers.index.max() + 1
    ends = {}
    for name, style in zip(pair, STYLES, strict=True):
        color, mean = type_color(name), layers[name].mean()
        ax.plot(layers.index, layers[name], style, color=color, ms=5)
        ax.axhline(mean, color=color, lw=1)
        ends[f"{name}, mean {mean:.2f}"] = (right, mean, color)
    for layer in marked:
        beside = {"xytext": (6, 2), "textcoords": "offset points", "size": 11}
        ax.annotate(f"{layer:.0f}", (layer, layers.loc[layer, list(pair)].max()), **beside)
    ax.axhline(1, color=DARK, lw=1, ls=":", zorder=0)
    ax.set(xlabel="layer", ylabel=NFN, xlim=(layers.index.min() - 1, right))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.margins(y=0.12)
    ax.set_title(fill(title or _finding(layers, pair, sorted(map(int, marked))), WIDTH), loc="left")
    label_lines(ax, ends)
    return ax


def _finding(layers: pd.DataFrame, pair: tuple[str, str], marked: list[int]) -> str:
    """What the picture shows, as its title."""
    first, second = pair
    above = layers[second] - layers[first]
    if marked and above.mean() > 0 > above.drop(marked).mean():
        which = (
            f"layer {marked[0]}" if len(marked) == 1 else f"layers {', '.join(map(str, marked))}"
        )
        return f"Without {which}, {second}'s mean would be below {first}'s"
    return f"{second} scores above {first} in {(above > 0).sum()} of {len(layers)} layers"
