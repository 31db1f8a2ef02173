"""One long frame in, Axes out. One visual language: blue below 1, red above, white at 1."""

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.collections import PatchCollection
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle

from plop_nb.stats import by_type

CMAP = sns.color_palette("vlag", as_cmap=True)
NORM = LogNorm(1 / 3, 3)  # a ratio: 1/2 and 2 are equally far from 1
CHOSEN, OTHER = sns.color_palette("colorblind")[0], "0.65"
NFN = "NFN (1 = random input)"


def plot_types(scores, k=3, *, level=0.95, ax=None):
    """Mean NFN per module type with its interval over texts; the `k` lowest in colour.

    Parameters
    ----------
    scores : pandas.DataFrame
        From `nfn_scores`.
    k : int
        How many types to mark.
    level : float
        Coverage of the interval.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib.axes.Axes
    """
    types = by_type(scores, level=level)
    ax = ax or plt.subplots(figsize=(7, 0.42 * len(types) + 1.1), layout="constrained")[1]
    colors = [CHOSEN if i < k else OTHER for i in range(len(types))]
    sns.barplot(types, x="nfn", y="type", hue="type", palette=colors, legend=False, ax=ax)
    spread = [(types["nfn"] - types["low"]).clip(lower=0), (types["high"] - types["nfn"]).clip(lower=0)]
    ax.errorbar(types["nfn"], types["type"], xerr=spread, fmt="none", ecolor="0.15", capsize=3, lw=1.2)
    ax.axvline(1, color="0.15", lw=1, ls="--", zorder=0)
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # the line at 1 must not strike out a number
    for row in types.itertuples():
        label = f"{row.nfn:.2f}"
        ax.annotate(label, (row.nfn, row.type), (8, 0), textcoords="offset points", va="center", bbox=behind)
    ax.set(xlabel=f"{NFN}; bars: {level:.0%} interval over {types['samples'][0]} texts", ylabel="")
    ax.set_title(f"Adapters go on {', '.join(types['type'][:k])}", loc="left")
    ax.margins(x=0.12)
    sns.despine(ax=ax)
    return ax


def plot_heatmap(scores, *, chosen=None, ax=None):
    """NFN by layer and module type, on a logarithmic colour scale centred on 1.

    Types run from the lowest mean score (left) to the highest; modules outside a stack of
    layers are left out.

    Parameters
    ----------
    scores : pandas.DataFrame
        From `nfn_scores`.
    chosen : iterable of str, optional
        Names of modules to outline, such as `placement.modules`; all others are dimmed.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib.axes.Axes
    """
    layered = scores.dropna(subset="layer")
    if layered.empty:
        raise ValueError("scores holds no module inside a stack of layers: there is nothing to map by layer")
    order = by_type(layered)["type"]
    grid = layered.pivot_table(index="layer", columns="type", values="nfn", observed=True)[order]
    size = (0.75 * grid.shape[1] + 2, 0.17 * grid.shape[0] + 1.5)
    ax = ax or plt.subplots(figsize=size, layout="constrained")[1]
    ticks = [1 / 3, 1 / 2, 1, 2, 3]
    sns.heatmap(grid, cmap=CMAP, norm=NORM, ax=ax, cbar_kws={"label": NFN, "extend": "both", "ticks": ticks})
    bar = ax.collections[0].colorbar
    bar.ax.minorticks_off()
    bar.set_ticks(ticks, labels=["1/3", "1/2", "1", "2", "3"])
    ax.set(xlabel="", ylabel="layer")
    ax.tick_params(axis="y", rotation=0)
    if chosen is not None:
        lit = layered.assign(lit=layered["module"].isin(set(chosen)))
        lit = lit.pivot_table(index="layer", columns="type", values="lit", aggfunc="max", observed=True)[order]
        _light_up(ax, lit.fillna(False).to_numpy(dtype=bool))
    return ax


def _light_up(ax, lit):
    """Outline the cells of a heat map where `lit` (rows, columns) is true, and dim the others."""
    ax.collections[0].set_alpha(np.where(lit, 1.0, 0.3))
    cells = [Rectangle((column, row), 1, 1) for row, column in np.argwhere(lit)]
    ax.add_collection(PatchCollection(cells, facecolor="none", edgecolor="0.15", linewidth=1.2, clip_on=False))
