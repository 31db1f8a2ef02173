"""Pictures of what finetuning does to the scores of a real network, map by map."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.ticker import MaxNLocator
from scipy.stats import spearmanr

from plop_nb.growth_plots import MEASURED, THEORY, check_table
from plop_nb.network_plots import panel_grid
from plop_nb.palette import DARK, UNKNOWN, styled, tint, type_color
from plop_nb.plots import NFN
from plop_nb.stats import mean_interval

CHANGE = "change of NFN (%)"
RISE = "rise of the square of NFN"
OFFSET: dict = {"textcoords": "offset points", "size": 10, "color": DARK}  # of a dot's name


@styled()
def plot_gains(
    maps: pd.DataFrame,
    panels: Sequence[str],
    *,
    column: str = "panel",
    limit: float = math.inf,
    title: str = "",
) -> list[Axes]:
    """The change of NFN of every map, types from the lowest score; cross: mean, circle: median.

    Parameters
    ----------
    maps : pandas.DataFrame
        Columns `type`, `before` (NFN), `change` (percent), and one that names the panel.
    panels, column : sequence of str, str
        Which panels, from the left; the column that names them.
    limit, title : float, str
        Larger changes (percent, up or down) are triangles at the edge, with the largest as a
        number; title of the whole figure.

    Returns
    -------
    list of matplotlib.axes.Axes
        The bars are the intervals of the means (95 %, Student's t over a type's layers).

    Raises
    ------
    ValueError
        `maps` lacks a column or a panel, or is empty.
    """
    _check_panels(maps, ["type", "before", "change", column], panels, column)
    size = (10, 0.8 + 2.5 * -(-len(panels) // 2))
    axes = panel_grid(len(panels), columns=2, size=size, title=title)
    shown = maps[maps[column].isin(list(panels))]
    scores = shown.groupby("type")["before"].mean().sort_values()
    for ax, panel in zip(axes, panels, strict=True):
        changes = maps[maps[column] == panel].groupby("type")["change"]
        for place, name in enumerate(scores.index):
            _draw_gains(ax, place, changes.get_group(name).to_numpy(), type_color(name), limit)
        ax.axhline(0, color=DARK, lw=1, ls="--", zorder=0)
        ax.set_title(panel, size=12)
        names = [f"{name.removesuffix('_proj')}\n{scores[name]:.2f}" for name in scores.index]
        ax.set_xticks(range(len(scores)), names)
    axes[0].figure.supxlabel(
        "type, and its NFN before training (mean over panels); dots: first layer on the left",
        size=12,
    )
    axes[0].figure.supylabel(CHANGE, size=12)
    return axes


@styled()
def plot_layer_gains(
    maps: pd.DataFrame,
    panels: Sequence[str],
    *,
    column: str = "panel",
    named: int = 6,
    limit: float = math.inf,
    title: str = "",
) -> list[Axes]:
    """The rise of NFN squared against the score before, one dot a layer, dark for late layers.

    Parameters
    ----------
    maps : pandas.DataFrame
        Maps of one type. Columns `type`, `layer`, `before` (NFN), `rise` (of its square), and one
        that names the panel.
    panels, column : sequence of str, str
        Which panels, from the left; the column that names them.
    named : int
        So many layers of the largest rises get their number.
    limit, title : float, str
        Larger scores are triangles at the edge, with their number; title of the whole figure.

    Returns
    -------
    list of matplotlib.axes.Axes
        With the rank correlation (Spearman's) of score and rise in each title.

    Raises
    ------
    ValueError
        `maps` lacks a column or a panel, has several types, or is empty.
    """
    _check_panels(maps, ["type", "layer", "before", "rise", column], panels, column)
    types = sorted(set(maps["type"]))
    if len(types) > 1:
        raise ValueError(f"maps has the types {types}, expected one")
    color = type_color(types[0])
    shades = LinearSegmentedColormap.from_list("layers", [tint(color, 0.45), color, DARK])
    layers = Normalize(maps["layer"].min(), maps["layer"].max())
    size = (10, 0.8 + 2.6 * -(-len(panels) // 2))
    axes = panel_grid(len(panels), columns=2, size=size, title=title)
    for ax, panel in zip(axes, panels, strict=True):
        rows = maps[maps[column] == panel]
        inside = rows["before"] <= limit
        style = {"cmap": shades, "norm": layers, "ec": DARK, "lw": 0.4}
        for part, marker in ((rows[inside], "o"), (rows[~inside], ">")):
            x = part["before"].clip(upper=limit)
            dots = ax.scatter(x, part["rise"], c=part["layer"], s=32, marker=marker, **style)
        for row in rows[~inside].itertuples():
            ax.annotate(f"at {row.before:.2f}", (limit, row.rise), (0, 6), ha="right", **OFFSET)
        for row in rows.loc[rows["rise"].nlargest(named).index].itertuples():
            where = (min(row.before, limit), row.rise)
            ax.annotate(f"layer {row.layer}", where, (6, -4), **OFFSET)
        ax.axhline(0, color=DARK, lw=1, ls="--", zorder=0)
        ranks = spearmanr(rows["before"], rows["rise"]).statistic
        ax.set_title(f"{panel}: rank correlation {ranks:.2f}", size=12)
    axes[0].figure.supxlabel(f"{NFN} before training", size=12)
    axes[0].figure.supylabel(RISE, size=12)
    axes[0].figure.colorbar(dots, ax=axes, label="layer", aspect=30, pad=0.02)
    return axes


@styled()
def plot_intervals(
    panels: Mapping[str, pd.DataFrame],
    *,
    what: str,
    sides: Sequence[str] = (),
    grey: Sequence[str] = (),
    expected: Mapping[str, float] | None = None,
    expected_name: str = "expected",
    title: str = "",
) -> list[Axes]:
    """One row a case, a dot at its mean and a line over its interval; zero is marked.

    Parameters
    ----------
    panels : dict of pandas.DataFrame
        {panel: table} with the same cases as index, from the top; columns `mean`, `low`, `high`.
    what : str
        Label of the horizontal axes, with its unit.
    sides : sequence of str
        What it means to lie on the left of zero, and on the right: two words over the rows.
    grey : sequence of str
        Cases that are drawn in grey, such as controls.
    expected, expected_name : dict, str
        {panel: value}, a dashed line in the colour of theory, and its name.
    title : str
        Of the whole figure.

    Returns
    -------
    list of matplotlib.axes.Axes

    Raises
    ------
    ValueError
        `panels` is empty, a table lacks a column or is empty, or their cases differ.
    """
    cases = [list(table.index) for table in panels.values()]
    for panel, table in panels.items():
        check_table(table, ["mean", "low", "high"])
        if list(table.index) != cases[0]:
            raise ValueError(f"panels[{panel!r}] has other cases than the first: {cases[0]}")
    height = 1.8 + 0.36 * len(cases[0]) if cases else 0
    axes = panel_grid(len(panels), columns=2, size=(10.5, height), title=title)
    for ax, (panel, table) in zip(axes, panels.items(), strict=True):
        for place, row in enumerate(table.itertuples()):
            color = UNKNOWN if row.Index in grey else MEASURED
            ax.plot([row.low, row.high], [place, place], color=color, lw=2)
            ax.plot(row.mean, place, "o", color=color, ms=7)
        ax.axvline(0, color=DARK, lw=1, zorder=0)
        for words, sign in zip(sides, (-1, 1), strict=False):
            style = {"xycoords": ax.get_xaxis_transform(), "ha": "right" if sign < 0 else "left"}
            ax.annotate(words, (0, 1), (8 * sign, 2), textcoords="offset points", size=11, **style)
        ax.set_title(panel, size=12, pad=20)
        ax.set(xlabel=what, ylim=(len(table) - (0 if expected else 0.5), -0.5))
        ax.xaxis.set_major_locator(MaxNLocator(5))
        if expected and panel in expected:  # in the room below the rows
            _expectation(ax, expected[panel], expected_name)
    axes[0].set_yticks(range(len(cases[0])), cases[0])
    return axes


def _expectation(ax: Axes, value: float, name: str) -> None:
    """A dashed line at what a theory expects, with its name beside its foot."""
    ax.axvline(value, **THEORY | {"zorder": 1})  # below the intervals
    style = {"xycoords": ax.get_xaxis_transform(), "color": THEORY["color"], "size": 11}
    ax.annotate(name, (value, 0), (6, 3), textcoords="offset points", **style)


def _draw_gains(ax: Axes, place: int, changes: np.ndarray, color: str, limit: float) -> None:
    """One type: a column of small dots, triangles beyond the limit, the mean with its interval."""
    spread = place + 0.22 * np.linspace(-1, 1, len(changes))  # layers from the left
    style = {"color": color, "alpha": 0.5, "lw": 0}
    inside = np.abs(changes) <= limit
    ax.scatter(spread[inside], changes[inside], s=14, **style)
    for sign, marker in ((1, "^"), (-1, "v")):
        beyond = sign * changes > limit
        ax.scatter(spread[beyond], [sign * limit] * sum(beyond), s=26, marker=marker, **style)
        if beyond.any():
            last = (spread[beyond].max(), sign * limit)
            largest = f"{sign * max(sign * changes):.0f}"
            ax.annotate(largest, last, (6, 0), va="center", **OFFSET)
    mean = mean_interval(changes)
    ax.plot([place, place], [mean.low, mean.high], color=color, lw=2.5, zorder=3)
    ax.plot(place, mean.mean, "_", color=color, ms=16, mew=2.5, zorder=4)
    ax.plot(place, np.median(changes), "o", color=color, mfc="white", ms=5, mew=1.5, zorder=5)


def _check_panels(
    maps: pd.DataFrame, columns: Sequence[str], panels: Sequence[str], column: str
) -> None:
    check_table(maps, columns)
    lacking = sorted(set(panels) - set(maps[column]))
    if lacking or not len(panels):
        raise ValueError(f"panels={list(panels)}: maps has no rows for {lacking}")
