"""Pictures of what breaks the growth of features: small networks, and the record of a real one."""

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from plop_nb.growth_plots import MEASURED, STEP, STYLES, THEORY, check_table
from plop_nb.palette import DARK, UNKNOWN, label_lines, styled, tint, type_color
from plop_nb.plots import NFN
from plop_nb.stats import mean_interval

LINES = (MEASURED, "0.55", DARK)  # of several runs in one panel
TINY = 1e-9  # an interval below zero ends here on a logarithmic axis
SQUARE = "squared displacement\nper neuron"
CHANGE = "change of NFN (%)"
OFFSET: dict = {"textcoords": "offset points", "size": 10, "color": DARK}  # of a dot's name


@styled()
def plot_knobs(
    runs: Mapping[str, pd.DataFrame],
    base: pd.DataFrame,
    *,
    met: Mapping[str, float] | None = None,
    guides: Mapping[str, float] | None = None,
    title: str = "",
) -> list[Axes]:
    """How far features have moved, squared, one panel a knob: a line of slope 2 is quadratic.

    Parameters
    ----------
    runs : dict of pandas.DataFrame
        {name: run}, columns `step`, `seed`, `moved`; the mean over the networks and its interval
        (95 %, Student's t).
    base : pandas.DataFrame
        The run without any knob, a dashed line in every panel.
    met : dict, optional
        {name: step at which the target is met}, dotted lines.
    guides : dict, optional
        {name: exponent}, a dash-dotted line of this slope through the first step.
    title : str
        Of the whole figure.

    Returns
    -------
    list of matplotlib.axes.Axes

    Raises
    ------
    ValueError
        `runs` is empty, or a frame lacks a column.
    """
    for run in (base, *runs.values()):
        check_table(run, ["step", "seed", "moved"])
    rows = -(-len(runs) // 4)
    panels = _panels(len(runs), columns=4, size=(13, 0.6 + 2.6 * rows), title=title)
    reference = base[base["step"] > 0].assign(square=base["moved"] ** 2)
    reference = reference.groupby("step")["square"].mean()
    for ax, (name, run) in zip(panels, runs.items(), strict=True):
        mean = _curve(ax, run, MEASURED)
        ax.plot(reference, **THEORY)
        if guides and name in guides:
            _guide(ax, mean, guides[name])
        if met and name in met:
            ax.axvline(met[name], color=DARK, ls=":", lw=1.5)
            ax.text(met[name], 0.03, "target met ", transform=ax.get_xaxis_transform(), ha="right")
        ax.set_title(name, size=12)
        _steps(ax)
    middle = reference.index[len(reference) // 4]
    style = {"textcoords": "offset points", "ha": "right", "color": THEORY["color"]}
    panels[0].annotate("Theorem 1", (middle, reference[middle]), (-6, 6), **style)
    panels[0].figure.supxlabel(f"{STEP} (logarithmic scale)", size=12)
    panels[0].figure.supylabel(f"{SQUARE} (log)", size=12)
    return panels


@styled()
def plot_displacements(
    panels: Mapping[str, Mapping[str, pd.DataFrame]], *, title: str = ""
) -> list[Axes]:
    """Several runs in each panel: their mean squared displacement, with its interval.

    Parameters
    ----------
    panels : dict of dict of pandas.DataFrame
        {panel: {name: run}}, columns `step`, `seed`, `moved`; three runs a panel at most.
    title : str
        Of the whole figure.

    Returns
    -------
    list of matplotlib.axes.Axes

    Raises
    ------
    ValueError
        `panels` is empty, has more than three runs in one, or a frame lacks a column.
    """
    for name, runs in panels.items():
        if not 1 <= len(runs) <= len(LINES):
            raise ValueError(f"panels[{name!r}] has {len(runs)} runs, expected 1 to {len(LINES)}")
        for run in runs.values():
            check_table(run, ["step", "seed", "moved"])
    axes = _panels(len(panels), columns=2, size=(10, 4.2), title=title)
    ends: dict = {}
    for ax, (panel, runs) in zip(axes, panels.items(), strict=True):
        ends[ax] = {}
        for color, (name, run) in zip(LINES, runs.items(), strict=False):
            mean = _curve(ax, run, color)
            ends[ax][name] = (mean.index[-1], mean.iloc[-1], color)
        ax.set_title(panel, size=12)
        ax.set_xlabel(f"{STEP} (logarithmic scale)")
        _steps(ax)
    axes[0].set_ylabel(f"{SQUARE} (log)")
    for ax in axes:  # when the limits are final
        label_lines(ax, ends[ax])
    return axes


@styled()
def plot_multiples(
    runs: Mapping[str, pd.DataFrame], unit: float, *, title: str = "", ax: Axes | None = None
) -> Axes:
    """Squared displacement as a multiple of the theorem's by step: a flat line is quadratic.

    Parameters
    ----------
    runs : dict of pandas.DataFrame
        {name: run}, columns `step`, `seed`, `moved`; the mean over the networks and its interval
        (95 %, Student's t). A name such as "attention q" has the colour of its type, others grey.
    unit : float
        The theorem's displacement in one step.
    title, ax : str, matplotlib Axes, optional
        The finding in a line; where to draw, a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        `runs` is empty, or a frame lacks a column.
    """
    if not runs:
        raise ValueError("there is nothing to draw: pass {name: run}")
    for run in runs.values():
        check_table(run, ["step", "seed", "moved"])
    ax = _axes(ax, (9, 4.6), title)
    ends, greys = {}, 0
    for name, run in runs.items():
        color, style = type_color(name.split()[-1]), "-"
        if color == UNKNOWN:
            color, style, greys = "0.35", STYLES[greys % len(STYLES)], greys + 1
        multiple = run.assign(moved=run["moved"] / (unit * run["step"].clip(lower=1)))
        mean = _curve(ax, multiple, color, style)
        ends[name] = (mean.index[-1], mean.iloc[-1], color)
    ax.set(yscale="log", xlabel=STEP, ylabel="squared displacement,\nmultiple of the theorem's")
    ax.set_yticks([0.25, 0.5, 1, 2, 4], ["1/4", "1/2", "1", "2", "4"])
    ax.minorticks_off()
    label_lines(ax, ends)
    return ax


@styled()
def plot_intervals(
    table: pd.DataFrame, *, what: str, title: str = "", ax: Axes | None = None
) -> Axes:
    """One row a case, a dot at its mean and a line over its interval; zero is marked.

    Parameters
    ----------
    table : pandas.DataFrame
        Cases as its index, from the top; columns `mean`, `low`, `high`, and maybe `color`.
    what : str
        Label of the horizontal axis, with its unit.
    title, ax : str, matplotlib Axes, optional
        The finding in a line; where to draw, a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        `table` lacks a column, or is empty.
    """
    check_table(table, ["mean", "low", "high"])
    ax = _axes(ax, (9, 1.4 + 0.42 * len(table)), title)
    for place, row in enumerate(table.itertuples()):
        color = getattr(row, "color", MEASURED)
        ax.plot([row.low, row.high], [place, place], color=color, lw=2)
        ax.plot(row.mean, place, "o", color=color, ms=7)
    ax.axvline(0, color=DARK, lw=1, ls="--", zorder=0)
    ax.set_yticks(range(len(table)), table.index)
    ax.set(xlabel=what, ylim=(len(table) - 0.5, -0.5))
    return ax


@styled()
def plot_gains(
    maps: pd.DataFrame,
    panels: Sequence[str],
    *,
    column: str = "panel",
    limit: float = math.inf,
    title: str = "",
) -> list[Axes]:
    """The change of NFN of every map, types from the lowest score: dots, and the mean as a cross.

    Parameters
    ----------
    maps : pandas.DataFrame
        Columns `type`, `before` (NFN), `change` (percent), and one that names the panel.
    panels, column : sequence of str, str
        Which panels, from the left; the column that names them.
    limit, title : float, str
        Larger changes (percent, up or down) are triangles at the edge; title of the whole figure.

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
    axes = _panels(len(panels), columns=2, size=size, title=title)
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
        "type, and its NFN before training (mean over the layers of all panels)", size=12
    )
    axes[0].figure.supylabel(CHANGE, size=12)
    return axes


@styled()
def plot_layers(
    maps: pd.DataFrame,
    panels: Sequence[str],
    *,
    column: str = "panel",
    named: int = 6,
    title: str = "",
) -> list[Axes]:
    """The change of NFN against the score before, one dot a layer, dark for late layers.

    Parameters
    ----------
    maps : pandas.DataFrame
        Maps of one type. Columns `type`, `layer`, `before` (NFN), `change` (percent), and one that
        names the panel.
    panels, column : sequence of str, str
        Which panels, from the left; the column that names them.
    named : int
        So many layers of the largest changes, up or down, get their number.
    title : str
        Of the whole figure.

    Returns
    -------
    list of matplotlib.axes.Axes

    Raises
    ------
    ValueError
        `maps` lacks a column or a panel, has several types, or is empty.
    """
    _check_panels(maps, ["type", "layer", "before", "change", column], panels, column)
    types = sorted(set(maps["type"]))
    if len(types) > 1:
        raise ValueError(f"maps has the types {types}, expected one")
    color = type_color(types[0])
    shades = LinearSegmentedColormap.from_list("layers", [tint(color), color, DARK])
    size = (10, 0.8 + 2.6 * -(-len(panels) // 2))
    axes = _panels(len(panels), columns=2, size=size, title=title)
    for ax, panel in zip(axes, panels, strict=True):
        rows = maps[maps[column] == panel]
        style = {
            "c": rows["layer"],
            "cmap": shades,
            "s": 30,
            "ec": "white",
            "lw": 0.5,
            "alpha": 0.85,
        }
        dots = ax.scatter(rows["before"], rows["change"], **style)
        for row in rows.loc[rows["change"].abs().nlargest(named).index].itertuples():
            ax.annotate(str(row.layer), (row.before, row.change), (6, -4), **OFFSET)
        ax.axhline(0, color=DARK, lw=1, ls="--", zorder=0)
        ax.set_title(panel, size=12)
    axes[0].figure.supxlabel(f"{NFN} before training", size=12)
    axes[0].figure.supylabel(CHANGE, size=12)
    axes[0].figure.colorbar(dots, ax=axes, label="layer", aspect=30, pad=0.02)
    return axes


def _draw_gains(ax: Axes, place: int, changes: np.ndarray, color: str, limit: float) -> None:
    """One type: a column of small dots, triangles beyond the limit, the mean with its interval."""
    spread = place + 0.22 * np.linspace(-1, 1, len(changes))  # layers from the left
    style = {"color": color, "alpha": 0.35, "lw": 0}
    inside = np.abs(changes) <= limit
    ax.scatter(spread[inside], changes[inside], s=14, **style)
    for sign, marker in ((1, "^"), (-1, "v")):
        beyond = spread[sign * changes > limit]
        ax.scatter(beyond, [sign * limit] * len(beyond), s=26, marker=marker, **style)
    mean = mean_interval(changes)
    ax.plot([place, place], [mean.low, mean.high], color=color, lw=2.5, zorder=3)
    ax.plot(place, mean.mean, "_", color=color, ms=16, mew=2.5, zorder=4)


def _curve(ax: Axes, run: pd.DataFrame, color: str, style: str = "-") -> pd.Series:
    """Draw the mean squared displacement by step with its interval, and return the mean."""
    after = run[run["step"] > 0]  # step 0 has no logarithm
    squares = after.pivot(index="seed", columns="step", values="moved") ** 2
    mean = squares.mean()
    interval = mean_interval(squares.to_numpy())
    low = np.maximum(interval.low, TINY)
    ax.fill_between(mean.index, low, interval.high, color=color, alpha=0.3, lw=0)
    ax.plot(mean, color=color, ls=style, lw=1.6)
    return mean


def _guide(ax: Axes, mean: pd.Series, slope: float) -> None:
    """A power of the step through the first point, with its exponent below its end."""
    line = mean.iloc[0] * (mean.index / mean.index[0]) ** slope
    ax.plot(mean.index, line, color=DARK, ls="-.", lw=1.2)
    style = {"textcoords": "offset points", "ha": "right", "va": "top", "color": DARK}
    ax.annotate(f"exponent {slope:g}", (mean.index[-1], line[-1]), (0, -28), **style)


def _steps(ax: Axes) -> None:
    """Logarithmic axes, with ticks at few steps."""
    ax.set(xscale="log", yscale="log")
    ax.minorticks_off()
    ax.set_xticks([1, 10, 40], ["1", "10", "40"])


def _panels(number: int, *, columns: int, size: tuple[float, float], title: str) -> list[Axes]:
    """A new figure with as many panels; those that are left over are empty."""
    if not number:
        raise ValueError("there is nothing to draw: pass {name: run}, or names of panels")
    options = {"figsize": size, "layout": "constrained", "squeeze": False}
    rows, columns = -(-number // columns), min(columns, number)
    fig, grid = plt.subplots(rows, columns, sharex=True, sharey=True, **options)
    axes = list(grid.flat)
    for ax in axes[number:]:
        ax.set_axis_off()
    fig.suptitle(title, x=0.01, ha="left", weight="bold", size=14)
    return axes[:number]


def _check_panels(
    maps: pd.DataFrame, columns: Sequence[str], panels: Sequence[str], column: str
) -> None:
    check_table(maps, columns)
    lacking = sorted(set(panels) - set(maps[column]))
    if lacking or not len(panels):
        raise ValueError(f"panels={list(panels)}: maps has no rows for {lacking}")


def _axes(ax: Axes | None, size: tuple[float, float], title: str) -> Axes:
    """The axes given, else those of a new figure of this size in inches."""
    if ax is not None:
        ax.set_title(title, pad=10)
        return ax
    fig, ax = plt.subplots(figsize=size, layout="constrained")
    fig.suptitle(title, x=0.01, ha="left", weight="bold", size=14)
    return ax
