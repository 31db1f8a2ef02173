"""One long frame in, Axes out. Heat maps: blue below 1, red above, white at 1."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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
COST = ["run", "work", "seconds"]
MIDDLE = "0.45"  # grey, where no type is meant


@dataclass(frozen=True)
class Marker:
    """How a kind of texts is drawn in `plot_kinds`."""

    shape: str
    is_full: bool
    offset: float  # in the row of a type


MARKERS = (
    Marker("o", True, -0.25),
    Marker("D", False, 0.25),
    Marker("s", True, 0.75),
    Marker("^", False, -0.75),
)


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
def plot_kinds(
    kinds: Mapping[str, pd.DataFrame],
    *,
    level: float = 0.95,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Mean NFN per module type on several kinds of texts: a row for each type, a dot for each kind.

    Types run from the lowest score on the first kind (top) to the highest.

    Parameters
    ----------
    kinds : dict
        {kind: scores}, with scores of the same model from `nfn_scores`; at most four.
    level : float
        Coverage of the intervals over texts, between 0 and 1.
    title : str, optional
        None by default.
    ax : matplotlib Axes, optional
        Where to draw: by default the current axes, or a new figure of fitting size where no figure
        is open.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        There are no kinds or more than four, or one lacks a type that the first has.
    """
    if not 0 < len(kinds) <= len(MARKERS):
        raise ValueError(f"kinds has {len(kinds)} entries, expected 1 to {len(MARKERS)}")
    means = {kind: by_type(scores, level=level).set_index("type") for kind, scores in kinds.items()}
    first = next(iter(means.values()))
    names = first.index.tolist()
    ax = axes_for(ax, width=7, height=0.42 * len(names) + 1.6)
    height = 0.5 / len(means)  # of a kind in the row of a type
    for (kind, table), marker in zip(means.items(), MARKERS, strict=False):
        if missing := set(names) - set(table.index):
            raise ValueError(
                f"scores on {kind!r} lack the types {sorted(missing)}: score one model"
            )
        for place, row in enumerate(table.loc[names].itertuples()):
            color, height_here = type_color(row.Index), place + marker.offset * height
            face = color if marker.is_full else "white"
            style = {"marker": marker.shape, "ms": 8, "mfc": face, "color": color, "capsize": 3}
            arms = [[max(0, row.nfn - row.low)], [max(0, row.high - row.nfn)]]
            ax.errorbar(row.nfn, height_here, xerr=arms, lw=1.5, **style)
        face = MIDDLE if marker.is_full else "white"
        ax.plot([], [], marker.shape, ms=8, mfc=face, color=MIDDLE, label=kind)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)  # the lowest score on top
    ax.axvline(1, color=DARK, lw=1, ls="--", zorder=0)
    ax.set(xlabel=f"{mean_in_words(first)}\nwhiskers: {interval_in_words(first, level)}", ylabel="")
    ax.legend(loc="upper right", frameon=False, title="texts about")
    if title:
        ax.set_title(fill(title, TITLE), loc="left")
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
        raise ValueError("scores holds no module inside a stack of layers: nothing to map by layer")
    types = by_type(layered)["type"]
    grid = _by_layer_and_type(layered, "nfn", types)
    layers = len(grid)
    names = 0.09 * types.str.len().max()  # inches, if they have to stand upright
    ax = axes_for(ax, width=0.8 * len(types) + 2, height=max(0.17 * layers, 2) + 1 + names)
    sns.heatmap(grid, cmap=CMAP, norm=NORM, ax=ax, cbar=False)
    add_colorbar(ax, ax.collections[-1])
    ax.set(xlabel="", ylabel="layer")
    ax.tick_params(axis="y", rotation=0)
    if modules is not None:
        lit = layered.assign(lit=layered["module"].isin(modules))
        _light_up(ax, _by_layer_and_type(lit, "lit", types) > 0)
    return ax


@styled()
def plot_cost(
    measured: pd.DataFrame, estimated: Mapping[str, float], ax: Axes | None = None
) -> Axes:
    """Seconds of scoring against the work, and what they let one expect of other work.

    The grey band holds all measured rates (seconds per work); an estimate is a line across it.

    Parameters
    ----------
    measured : pandas.DataFrame
        Columns `run` (a name), `seconds`, `work` (billions of weights times thousands of tokens).
    estimated : dict
        {name: work} of what was not run.
    ax : matplotlib Axes, optional
        Where to draw, as in `plot_types`.

    Raises
    ------
    ValueError
        `measured` is empty, or some work or seconds are not above 0.
    """
    works = [*measured["work"], *estimated.values()]
    if measured.empty or not all(number > 0 for number in [*works, *measured["seconds"]]):
        raise ValueError("measured and estimated need rows whose work and seconds are above 0")
    rates = measured["seconds"] / measured["work"]
    low, middle, high = rates.min(), rates.median(), rates.max()
    ax = axes_for(ax, width=9, height=5)
    ends = np.array([min(works) / 1.3, max(works) * 1.3])
    ax.fill_between(ends, low * ends, high * ends, color="0.92", lw=0, zorder=0)
    ax.plot(measured["work"], measured["seconds"], "o", ms=8, color=DARK, mec="white")
    # Runs go from the lower left to the upper right: there is room in the other two corners.
    below, above = {"xytext": (10, -6), "ha": "left"}, {"xytext": (-10, 6), "ha": "right"}
    style = {"textcoords": "offset points", "va": "center", "size": 11}
    for (name, work, seconds), rate in zip(measured[COST].to_numpy(), rates, strict=True):
        side = below if rate < middle else above
        ax.annotate(f"{name}: {seconds:.0f} s", (work, seconds), **style, **side)
    for name, work in estimated.items():
        ax.plot([work] * 2, [low * work, high * work], lw=3, color=CHOSEN, solid_capstyle="butt")
        told = f"{name} (estimate):\n{low * work:.0f} to {high * work:.0f} s"
        ax.annotate(told, (work, low * work), color=CHOSEN, **style, **below)
    ax.set(xscale="log", yscale="log", xlim=ends * [1 / 5, 3], ylabel="seconds of scoring")
    ax.set_xlabel("billions of weights × thousands of tokens\ngrey: the range of measured rates")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter("{x:g}")
    ax.set_title(f"Scoring takes {low:.0f} to {high:.0f} s per billion weights and thousand tokens")
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


def _light_up(ax: Axes, lit: pd.DataFrame) -> None:
    """Outline the cells of a heat map where `lit` (rows, columns) is true, and dim the others."""
    ax.collections[-1].set_alpha(np.where(lit, 1.0, 0.3))
    cells = [Rectangle((column, row), 1, 1) for row, column in np.argwhere(lit.to_numpy())]
    style = {"facecolor": "none", "edgecolor": "0.15", "linewidth": 0.7, "clip_on": False}
    ax.add_collection(PatchCollection(cells, **style))
