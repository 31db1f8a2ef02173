"""One long frame in, Axes out. Heat maps: blue below 1, red above, white at 1."""

from collections.abc import Iterable
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle

from plop_nb.checks import positive_integer
from plop_nb.palette import DARK, styled, tint, type_color
from plop_nb.placement import Placement
from plop_nb.stats import by_type
from plop_nb.text_table import check_columns

CMAP = sns.color_palette("vlag", as_cmap=True)
NORM = LogNorm(1 / 3, 3)  # a ratio: 1/2 and 2 are equally far from 1
TICKS = {"1/3": 1 / 3, "1/2": 1 / 2, "1": 1, "2": 2, "3": 3}
CHOSEN, OTHER = sns.color_palette("colorblind")[0], "0.65"
NFN = "NFN (1 = random input)"
TITLE = 46  # letters in a line of a title
MIDDLE = "0.45"  # grey, where no type is meant


@styled()
def plot_types(
    scores: pd.DataFrame,
    k: int = 3,
    *,
    placement: Placement | None = None,
    level: float = 0.95,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Mean NFN per module type with its interval over texts, each in the colour of its type.

    Bars of types with adapters are full, and their names and scores bold; all others are pale.

    Parameters
    ----------
    scores : pandas.DataFrame
        From `nfn_scores`.
    k : int
        How many of the lowest types to fill (of fewer, all), where no placement is given.
    placement : Placement, optional
        Fill its types instead; the title names them.
    level : float
        Coverage of the interval, between 0 and 1.
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
    types = by_type(scores, level=level)
    k = positive_integer("k", k)
    chosen = chosen_types(types, k, placement)
    names = types["type"].tolist()
    room = 0.1 * max(0, max(map(len, names)) - 10)  # inches for long names
    ax = axes_for(ax, width=7 + room, height=0.42 * len(types) + 1.6)
    edges = [type_color(name) for name in names]
    faces = [type_color(name) if name in chosen else tint(type_color(name)) for name in names]
    places = np.arange(len(names))
    ax.barh(places, types["nfn"], color=faces, edgecolor=edges, linewidth=1.2)
    ax.set_yticks(places, names)
    ax.set_ylim(len(names) - 0.4, -0.6)  # the lowest score on top
    for color, width in (("white", 3.2), (DARK, 1.2)):  # with a rim, to be seen on dark bars
        bars = {"fmt": "none", "ecolor": color, "capsize": 3, "lw": width, "capthick": width}
        ax.errorbar(types["nfn"], places, xerr=interval_arms(types), **bars)
    ax.axvline(1, color=DARK, lw=1, ls="--", zorder=0)
    _write_values(ax, types, chosen)
    legend = f"full bars get adapters; whiskers: {interval_in_words(types, level)}"
    ax.set(xlabel=f"{mean_in_words(types)}\n{legend}", ylabel="")
    ax.set_title(fill(title or adapters_in_words(chosen), TITLE), loc="left")
    ax.margins(x=0.14)
    sns.despine(ax=ax)
    return ax


@styled()
def plot_heatmap(
    scores: pd.DataFrame,
    *,
    placement: Placement | None = None,
    chosen: Iterable[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """NFN by layer and module type, on a logarithmic colour scale centred on 1.

    Types run from the lowest mean score (left) to the highest; modules outside a stack of
    layers are left out.

    Parameters
    ----------
    scores : pandas.DataFrame
        From `nfn_scores`.
    placement : Placement, optional
        Outline its modules. Colours say the score alone, with adapters or without.
    chosen : iterable of str, optional
        The same for modules by their names, instead of a placement.
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
        `scores` is not from `nfn_scores`, holds no module inside a stack of layers, or none of
        those to outline; or both `placement` and `chosen` are given.
    """
    if placement is not None and chosen is not None:
        raise ValueError("placement and chosen both say what to outline: leave one of them out")
    check_columns(scores, "layer")
    modules = _modules_of(scores, placement, chosen)
    layered = scores.dropna(subset="layer")
    if layered.empty:
        raise ValueError("scores holds no module inside a stack of layers: nothing to map by layer")
    types = by_type(layered)["type"]
    grid = _by_layer_and_type(layered, "nfn", types)
    layers = len(grid)
    names = 0.09 * types.str.len().max()  # inches, if they have to stand upright
    height = min(max(0.17 * layers, 2) + 1 + names, 6)
    ax = axes_for(ax, width=0.9 * len(types) + 2, height=height)
    sns.heatmap(grid, cmap=CMAP, norm=NORM, ax=ax, cbar=False)
    add_colorbar(ax, ax.collections[-1])
    ax.set(xlabel="", ylabel="layer")
    ax.tick_params(axis="y", rotation=0)
    if modules is not None:
        marked = layered.assign(marked=layered["module"].isin(modules))
        _outline(ax, _by_layer_and_type(marked, "marked", types) > 0)
    return ax


def adapters_in_words(chosen: list[str]) -> str:
    """Where adapters go, as the title of a picture."""
    return f"Adapters go on {', '.join(chosen)}"


def mean_in_words(types: pd.DataFrame) -> str:
    """What a type's score (from `by_type`) is, as the name of an axis."""
    counts = set(types["modules"])
    maps = f"mean over {counts.pop()} maps" if len(counts) == 1 else "mean over a type's maps"
    return f"NFN, {maps} (1 = random input)"


def interval_in_words(types: pd.DataFrame, level: float) -> str:
    """What an interval of a type's score is."""
    return f"{100 * level:.4g}% interval over {types['samples'].max()} texts"


def interval_arms(means: pd.DataFrame) -> list[pd.Series]:
    """How far an interval (`low`, `high`) reaches to the left and right of its mean `nfn`."""
    left, right = means["nfn"] - means["low"], means["high"] - means["nfn"]
    return [left.clip(lower=0), right.clip(lower=0)]


def axes_for(ax: Axes | None, *, width: float, height: float) -> Axes:
    """The axes given, else the current ones, else those of a new figure of this size in inches."""
    if ax is not None:
        return ax
    if plt.get_fignums():
        return plt.gca()
    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def add_colorbar(ax: Axes, colored: ScalarMappable, **options: Any) -> None:
    """The scale of NFN beside these axes; options as for `Figure.colorbar`."""
    bar = ax.figure.colorbar(colored, ax=ax, label=NFN, extend="both", **options)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.minorticks_off()
    bar.set_ticks(list(TICKS.values()), labels=list(TICKS))


def chosen_types(types: pd.DataFrame, k: int, placement: Placement | None) -> list[str]:
    """The types of a placement, or the `k` lowest of `types` (from `by_type`) where it is None.

    Raises
    ------
    TypeError
        `placement` is none.
    ValueError
        `placement` is on a type that `types` lacks.
    """
    if placement is None:
        return types["type"].tolist()[:k]
    _check_placement(placement)
    for name in placement.types:
        if name not in set(types["type"]):
            raise ValueError(
                f"placement is on type {name!r}, which scores lacks: pass scores of the same model"
            )
    return placement.types


def _modules_of(
    scores: pd.DataFrame, placement: Placement | None, chosen: Iterable[str] | None
) -> set[str] | None:
    """Names to outline, one of which at least the scores have; None: no outlines."""
    if placement is None and chosen is None:
        return None
    if placement is not None:
        _check_placement(placement)
        chosen = placement.modules
    names = {chosen} if isinstance(chosen, str) else set([] if chosen is None else chosen)
    if names and not names & set(scores["module"]):
        what = "chosen" if placement is None else "placement"
        raise ValueError(
            f"{what} names modules that scores lacks, such as {min(names)!r}: pass scores of the "
            "same model"
        )
    return names


def _check_placement(placement: Placement) -> None:
    if not isinstance(placement, Placement):
        raise TypeError(
            f"placement is {type(placement).__name__}, expected a Placement (see place), or None"
        )


def _write_values(ax: Axes, types: pd.DataFrame, chosen: list[str]) -> None:
    """The mean beside every bar; of those with adapters it is bold, as their name is."""
    # A white ground keeps the line at 1 from striking the numbers out.
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    style = {"textcoords": "offset points", "va": "center", "bbox": ground}
    for place, label in enumerate(ax.get_yticklabels()):
        row = types.iloc[place]
        weight = "bold" if row["type"] in chosen else "normal"
        end = np.nanmax([row["nfn"], row["high"]])
        ax.annotate(f"{row['nfn']:.2f}", (end, place), (8, 0), weight=weight, **style)
        label.set_weight(weight)


def _by_layer_and_type(scores: pd.DataFrame, column: str, types: pd.Series) -> pd.DataFrame:
    """Means of a column, layers down and these types across."""
    return scores.pivot_table(index="layer", columns="type", values=column, observed=True)[types]


def _outline(ax: Axes, marked: pd.DataFrame) -> None:
    """Draw an edge around the cells of a heat map where `marked` (rows, columns) is true."""
    cells = [Rectangle((column, row), 1, 1) for row, column in np.argwhere(marked.to_numpy())]
    style = {"facecolor": "none", "edgecolor": DARK, "linewidth": 0.9, "clip_on": False}
    ax.add_collection(PatchCollection(cells, **style))
