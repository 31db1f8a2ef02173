"""Pictures of how features grow in training: small networks over the theorem, and a real model."""

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator

from plop_nb.palette import DARK, UNKNOWN, label_lines, styled, type_color
from plop_nb.plots import NFN

THEORY: dict = {"color": "#C2410C", "ls": "--", "lw": 2, "zorder": 5}
MEASURED = "#2F7A8C"  # of what is no type of maps
LIGHT, DEEP = 0.85, 0.35  # greys of the narrowest and of the widest networks
STEP, GROWTH = "training step", "growth of ‖W z‖² / n"
STYLES = ("-", "--", ":", "-.")  # of lines without a type


@styled()
def plot_growth(
    runs: pd.DataFrame, theory: pd.Series, *, title: str = "", ax: Axes | None = None
) -> Axes:
    """The growth of 95 % of the networks, darker the wider, with the theorem's curve dashed.

    Parameters
    ----------
    runs : pandas.DataFrame
        Columns `width`, `seed`, `step` and `growth`: one band for each width.
    theory : pandas.Series
        The growth of an infinitely wide network, with the steps as its index.
    title, ax : str, matplotlib Axes, optional
        The finding in a line; where to draw, a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        `runs` lacks a column, or is empty.
    """
    _check(runs, ["width", "seed", "step", "growth"])
    ax = _axes(ax, (7, 4.4), title)
    widths = sorted(runs["width"].unique())
    ends = {"theory, n → ∞": (theory.index[-1], theory.iloc[-1], THEORY["color"])}
    for width, grey in zip(widths, np.linspace(LIGHT, DEEP, len(widths)), strict=True):
        _, high = _band(ax, runs[runs["width"] == width].groupby("step")["growth"], str(grey))
        ends[f"{width} neurons"] = (high.index[-1], high.iloc[-1], str(min(grey, 0.5)))
    ax.plot(theory.index, theory, **THEORY)
    ax.set(xlabel=STEP, ylabel=GROWTH, xlim=(0, theory.index[-1]))
    label_lines(ax, ends)
    return ax


@styled()
def plot_closed_form(run: pd.DataFrame, *, title: str = "", ax: Axes | None = None) -> Axes:
    """One network: its growth as dots, the closed form through them, and its quadratic part.

    Parameters
    ----------
    run : pandas.DataFrame
        Columns `step`, `growth` (measured), `closed` and `pure` (the quadratic alone).
    title, ax : str, matplotlib Axes, optional
        The finding in a line; where to draw, a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        `run` lacks a column, or is empty.
    """
    _check(run, ["step", "growth", "closed", "pure"])
    ax = _axes(ax, (7.5, 4.2), title)
    ax.plot(run["step"], run["growth"], "o", ms=5, color=MEASURED)
    ax.plot(run["step"], run["closed"], color=DARK, lw=1.6)
    ax.plot(run["step"], run["pure"], **THEORY)
    last = run.iloc[-1]
    ax.set(xlabel=STEP, ylabel=GROWTH, xlim=(0, None))
    middle = run.iloc[len(run) // 2][["step", "growth"]]
    style = {"textcoords": "offset points", "color": MEASURED}
    ax.annotate("measured in the loop", tuple(middle), (12, -12), **style)
    named = {"closed form": ("closed", DARK), "its quadratic part": ("pure", THEORY["color"])}
    label_lines(ax, {k: (last["step"], last[of], color) for k, (of, color) in named.items()})
    return ax


@styled()
def plot_by_width(
    table: pd.DataFrame, *, what: str, title: str = "", ax: Axes | None = None
) -> Axes:
    """A quantity against width, both logarithmic: one line each, or dots with intervals and a line.

    Parameters
    ----------
    table : pandas.DataFrame
        Widths as its index. Columns `mean`, `low`, `high`, `predicted` (dashed), or one per line.
    what : str
        Label of the vertical axis, with its unit.
    title, ax : str, matplotlib Axes, optional
        The finding in a line; where to draw, a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        `table` is empty.
    """
    _check(table, [])
    ax = _axes(ax, (6.5, 4.2), title)
    ends = {}
    if "predicted" in table:
        arms = [table["mean"] - table["low"], table["high"] - table["mean"]]
        ax.errorbar(table.index, table["mean"], yerr=arms, fmt="o", color=MEASURED, capsize=3)
        ax.plot(table.index, table["predicted"], **THEORY)
        ends["theory"] = (table.index[-1], table["predicted"].iloc[-1], THEORY["color"])
        ends["measured"] = (table.index[-1], table["mean"].iloc[-1], MEASURED)
    else:
        for place, name in enumerate(table):
            style = {"color": MEASURED, "ls": STYLES[place % len(STYLES)], "marker": "o", "ms": 4}
            ax.plot(table.index, table[name], **style)
            ends[name] = (table.index[-1], table[name].iloc[-1], MEASURED)
    ax.set(xscale="log", yscale="log", xlabel="width n (neurons, logarithmic scale)", ylabel=what)
    ax.minorticks_off()
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_xticks(table.index, [str(width) for width in table.index])
    label_lines(ax, ends)
    return ax


@styled()
def plot_alignment(
    runs: pd.DataFrame, theory: pd.Series, *, title: str = "", ax: Axes | None = None
) -> Axes:
    """NFN and the baseline of networks of one width by step, with the band of 95 % of them.

    Parameters
    ----------
    runs : pandas.DataFrame
        Columns `step`, `seed`, `nfn` and `baseline`.
    theory : pandas.Series
        The NFN of an infinitely wide network, with the steps as its index.
    title, ax : str, matplotlib Axes, optional
        The finding in a line; where to draw, a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        `runs` lacks a column, or is empty.
    """
    _check(runs, ["step", "seed", "nfn", "baseline"])
    ax = _axes(ax, (7.5, 4), title)
    ends = {"theory, n → ∞": (theory.index[-1], theory.iloc[-1], THEORY["color"])}
    names = {"nfn": ("NFN", MEASURED), "baseline": ("‖W‖_F / √n, the baseline", "0.4")}
    for column, (name, color) in names.items():
        mean, _ = _band(ax, runs.groupby("step")[column], color, alpha=0.25)
        ax.plot(mean.index, mean, color=color, lw=2)
        ends[name] = (mean.index[-1], mean.iloc[-1], color)
    ax.plot(theory.index, theory, **THEORY)
    ax.set(xlabel=STEP, ylabel="ratio (no unit)", xlim=(0, None), ylim=(0, None))
    label_lines(ax, ends)
    return ax


@styled()
def plot_knobs(
    runs: Mapping[str, pd.DataFrame],
    base: pd.DataFrame,
    *,
    met: Mapping[str, float] | None = None,
    title: str = "",
) -> list[Axes]:
    """How far features have moved, squared, one panel a knob: a line of slope 2 is quadratic.

    Parameters
    ----------
    runs : dict of pandas.DataFrame
        {finding: run}, columns `step`, `seed`, `moved`; the mean and a band over 95 % of networks.
    base : pandas.DataFrame
        The run without any knob, a dashed line in every panel.
    met : dict, optional
        {finding: step at which the target is met}, dotted lines.
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
    if not runs:
        raise ValueError("runs is empty: pass {finding: run}, one per panel")
    for run in (base, *runs.values()):
        _check(run, ["step", "seed", "moved"])
    rows = -(-len(runs) // 4)
    size = {"figsize": (13, 2.9 * rows), "layout": "constrained", "squeeze": False}
    fig, grid = plt.subplots(rows, min(4, len(runs)), sharex=True, sharey=True, **size)
    panels = list(grid.flat)
    reference = _squares(base).mean()
    for ax, (finding, run) in zip(panels, runs.items(), strict=False):
        mean, _ = _band(ax, _squares(run), MEASURED, alpha=0.25)
        ax.plot(mean, color=MEASURED, lw=2)
        ax.plot(reference, **THEORY)
        if met and finding in met:
            ax.axvline(met[finding], color=DARK, ls=":", lw=1.5)
        ax.set_title(finding, size=12)
        ax.set(xscale="log", yscale="log", ylim=(reference.min() / 20, 4 * reference.max()))
        ax.minorticks_off()
        ax.set_xticks([1, 10, 40], ["1", "10", "40"])
    for ax in panels[len(runs) :]:
        ax.set_axis_off()
    fig.supxlabel(f"{STEP} (logarithmic scale)", size=12)
    fig.supylabel("mean squared displacement\nper neuron (log)", size=12)
    fig.suptitle(title, x=0.01, ha="left", weight="bold", size=14)
    return panels[: len(runs)]


@styled()
def plot_multiples(table: pd.DataFrame, *, title: str = "", ax: Axes | None = None) -> Axes:
    """Growth as a multiple of the theorem's by step: a flat line is quadratic.

    Parameters
    ----------
    table : pandas.DataFrame
        Steps as its index, one column a map, such as "relu" (grey) or "attention q" (its colour).
    title, ax : str, matplotlib Axes, optional
        The finding in a line; where to draw, a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        `table` is empty.
    """
    _check(table, [])
    ax = _axes(ax, (9, 4.6), title)
    ends, greys = {}, 0
    for name in table:
        color, style = type_color(name.split()[-1]), "-"
        if color == UNKNOWN:
            color, style, greys = "0.35", STYLES[greys % len(STYLES)], greys + 1
        ax.plot(table.index, table[name], color=color, ls=style, lw=2)
        ends[name] = (table.index[-1], table[name].iloc[-1], color)
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
    _check(table, ["mean", "low", "high"])
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
def plot_changes(
    maps: pd.DataFrame,
    panels: Sequence[str],
    *,
    column: str = "panel",
    limit: float = math.inf,
    title: str = "",
) -> list[Axes]:
    """The change of NFN of every map against its score before training: small dots, types large.

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

    Raises
    ------
    ValueError
        `maps` lacks a column or a panel, or is empty.
    """
    _check(maps, ["type", "before", "change", column])
    lacking = sorted(set(panels) - set(maps[column]))
    if lacking or not len(panels):
        raise ValueError(f"panels={list(panels)}: maps has no rows for {lacking}")
    rows = -(-len(panels) // 2)
    size = {"figsize": (10, 0.6 + 2.9 * rows), "layout": "constrained", "squeeze": False}
    fig, grid = plt.subplots(rows, min(2, len(panels)), sharex=True, sharey=True, **size)
    axes = list(grid.flat)
    for ax, panel in zip(axes, panels, strict=False):  # one may be left over
        for name, of_type in maps[maps[column] == panel].groupby("type", sort=False):
            _draw_type(ax, of_type, name, limit)
        ax.axhline(0, color=DARK, lw=1, ls="--", zorder=0)
        ax.set_title(panel, size=12)
        ax.set_xscale("log")
        ax.set_xticks([0.25, 0.5, 1, 2, 4], ["0.25", "0.5", "1", "2", "4"])
        ax.minorticks_off()
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    fig.supxlabel(f"{NFN} before training, logarithmic scale", size=12)
    fig.supylabel("change of NFN (%)", size=12)
    fig.suptitle(title, x=0.01, ha="left", weight="bold", size=14)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", markerscale=0.8)
    return axes[: len(panels)]


def _draw_type(ax: Axes, of_type: pd.DataFrame, name: str, limit: float) -> None:
    """The maps of a type as small dots, and a large one with its letter at their mean."""
    color, change = type_color(name), of_type["change"]
    style = {"color": color, "alpha": 0.4, "lw": 0}
    inside = change.abs() <= limit
    ax.scatter(of_type["before"][inside], change[inside], s=14, **style)
    for sign, marker in ((1, "^"), (-1, "v")):
        beyond = of_type["before"][sign * change > limit]
        ax.scatter(beyond, [sign * limit] * len(beyond), s=26, marker=marker, **style)
    middle = (of_type["before"].mean(), change.mean())
    ax.scatter(*middle, s=130, color=color, ec="white", lw=1, zorder=3, label=name)
    letter = {"color": "white", "ha": "center", "va": "center", "size": 9, "zorder": 4}
    ax.text(*middle, name[0], weight="bold", **letter)


def _band(ax: Axes, values, color: str, alpha: float = 1.0):
    """A band over 95 % of the networks; their mean and its upper edge by step."""
    low, high = values.quantile(0.025), values.quantile(0.975)
    ax.fill_between(low.index, low, high, color=color, alpha=alpha, lw=0)
    return values.mean(), high


def _squares(run: pd.DataFrame):
    """`moved` squared by step, without step 0, which a logarithmic scale cannot show."""
    return run[run["step"] > 0].assign(square=run["moved"] ** 2).groupby("step")["square"]


def _check(table, columns):
    missing = [column for column in columns if column not in getattr(table, "columns", ())]
    if missing or not len(table):
        what = f"lacks the columns {missing}" if missing else "is empty"
        raise ValueError(f"the table {what}, expected rows with {columns}")


def _axes(ax: Axes | None, size: tuple[float, float], title: str) -> Axes:
    """The axes given, else those of a new figure of this size in inches."""
    ax = plt.subplots(figsize=size, layout="constrained")[1] if ax is None else ax
    ax.set_title(title, pad=10)
    return ax
