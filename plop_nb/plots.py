"""One long frame in, Axes out. One visual language: blue below 1, red above, white at 1."""

from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle

from plop_nb.checks import positive_integer
from plop_nb.placement import Placement
from plop_nb.stats import by_type
from plop_nb.text_table import check_columns

CMAP = sns.color_palette("vlag", as_cmap=True)
NORM = LogNorm(1 / 3, 3)  # a ratio: 1/2 and 2 are equally far from 1
TICKS = {"1/3": 1 / 3, "1/2": 1 / 2, "1": 1, "2": 2, "3": 3}
CHOSEN, OTHER = sns.color_palette("colorblind")[0], "0.65"
NFN = "NFN (1 = random input)"


def plot_types(
    scores: pd.DataFrame,
    k: int = 3,
    *,
    placement: Placement | None = None,
    level: float = 0.95,
    ax: Axes | None = None,
) -> Axes:
    """Mean NFN per module type with its interval over texts; the types with adapters in colour.

    Parameters
    ----------
    scores : pandas.DataFrame
        From `nfn_scores`.
    k : int
        How many of the lowest types to colour (of fewer, all), where no placement is given.
    placement : Placement, optional
        Colour its types instead; the title names them.
    level : float
        Coverage of the interval, between 0 and 1.
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
    chosen = types["type"].tolist()[:k] if placement is None else _types_of(placement, types)
    colors = [CHOSEN if name in chosen else OTHER for name in types["type"]]
    ax = _axes(ax, width=7, height=0.42 * len(types) + 1.1)
    sns.barplot(types, x="nfn", y="type", hue="type", palette=colors, legend=False, ax=ax)
    bars = {"fmt": "none", "ecolor": "0.15", "capsize": 3, "lw": 1.2}
    ax.errorbar(types["nfn"], types["type"], xerr=interval_arms(types), **bars)
    ax.axvline(1, color="0.15", lw=1, ls="--", zorder=0)
    _write_values(ax, types)
    texts = types["samples"].max()
    ax.set(xlabel=f"{NFN}; bars: {100 * level:.4g}% interval over {texts} texts", ylabel="")
    ax.set_title(f"Adapters go on {', '.join(chosen)}", loc="left")
    ax.margins(x=0.12)
    sns.despine(ax=ax)
    return ax


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
        Outline its modules; all others are dimmed.
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
        raise ValueError(
            "scores holds no module inside a stack of layers: there is nothing to map by layer"
        )
    types = by_type(layered)["type"]
    grid = _by_layer_and_type(layered, "nfn", types)
    layers = len(grid)
    ax = _axes(ax, width=0.75 * len(types) + 2, height=0.17 * layers + 1.5)
    colorbar = {"label": NFN, "extend": "both", "ticks": list(TICKS.values())}
    sns.heatmap(grid, cmap=CMAP, norm=NORM, ax=ax, cbar_kws=colorbar)
    mesh = ax.collections[-1]
    mesh.colorbar.ax.minorticks_off()
    mesh.colorbar.set_ticks(list(TICKS.values()), labels=list(TICKS))
    ax.set(xlabel="", ylabel="layer")
    ax.tick_params(axis="y", rotation=0)
    if modules is not None:
        lit = layered.assign(lit=layered["module"].isin(modules))
        _light_up(ax, _by_layer_and_type(lit, "lit", types) > 0)
    return ax


def interval_arms(means: pd.DataFrame) -> list[pd.Series]:
    """How far an interval (`low`, `high`) reaches to the left and right of its mean `nfn`."""
    left, right = means["nfn"] - means["low"], means["high"] - means["nfn"]
    return [left.clip(lower=0), right.clip(lower=0)]


def _axes(ax: Axes | None, *, width: float, height: float) -> Axes:
    """The axes given, else the current ones, else those of a new figure of this size in inches."""
    if ax is not None:
        return ax
    if plt.get_fignums():
        return plt.gca()
    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def _types_of(placement: Placement, types: pd.DataFrame) -> list[str]:
    """The types of a placement, all of which the scores have."""
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


def _write_values(ax: Axes, types: pd.DataFrame) -> None:
    """The mean beside every bar, on a ground that keeps the line at 1 from striking it out."""
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    style = {"textcoords": "offset points", "va": "center", "bbox": ground}
    for row in types.itertuples():
        ax.annotate(f"{row.nfn:.2f}", (row.nfn, row.type), (8, 0), **style)


def _by_layer_and_type(scores: pd.DataFrame, column: str, types: pd.Series) -> pd.DataFrame:
    """Means of a column, layers down and these types across."""
    grid = scores.pivot_table(index="layer", columns="type", values=column, observed=True)
    return grid[types]


def _light_up(ax: Axes, lit: pd.DataFrame) -> None:
    """Outline the cells of a heat map where `lit` (rows, columns) is true, and dim the others."""
    ax.collections[-1].set_alpha(np.where(lit, 1.0, 0.3))
    cells = [Rectangle((column, row), 1, 1) for row, column in np.argwhere(lit.to_numpy())]
    style = {"facecolor": "none", "edgecolor": "0.15", "linewidth": 1.2, "clip_on": False}
    ax.add_collection(PatchCollection(cells, **style))
