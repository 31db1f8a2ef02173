"""Pictures of how features grow in training: small networks over the theorem, and a real model."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator

from plop_nb.palette import DARK, label_lines, styled

THEORY: dict = {"color": "#C2410C", "ls": "--", "lw": 2, "zorder": 5}
MEASURED = "#2F7A8C"  # of what is no type of maps
LIGHT, DEEP = 0.85, 0.35  # greys of the narrowest and of the widest networks
STEP = "training step"
GROWTH = "growth since step 0\n" + r"$\|W_t z\|^2 / n \,-\, \|W_0 z\|^2 / n$"
STYLES = ("-", "--", ":", "-.")  # of lines without a type
SHADES = (DARK, "0.55", MEASURED)  # their colours


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
    check_table(runs, ["width", "seed", "step", "growth"])
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
    check_table(run, ["step", "growth", "closed", "pure"])
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
    check_table(table, [])
    ax = _axes(ax, (6.5, 4.2), title)
    if "predicted" in table:
        arms = [table["mean"] - table["low"], table["high"] - table["mean"]]
        ax.errorbar(table.index, table["mean"], yerr=arms, fmt="o", color=MEASURED, capsize=3)
        ax.plot(table.index, table["predicted"], **THEORY)
        ends = {"mean and its interval": (table.index[-1], table["mean"].iloc[-1], MEASURED)}
        _name_theory(ax, table["predicted"])
    else:
        ends = {}
        for place, name in enumerate(table):
            color = SHADES[place % len(SHADES)]
            style = {"color": color, "ls": STYLES[place % len(STYLES)], "marker": "o", "ms": 4}
            ax.plot(table.index, table[name], **style)
            ends[name] = (table.index[-1], table[name].iloc[-1], color)
    ax.set(
        xscale="log", yscale="log", xlabel="width n (neurons; both axes logarithmic)", ylabel=what
    )
    ax.minorticks_off()
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_xticks(table.index, [str(width) for width in table.index])
    label_lines(ax, ends)
    return ax


def _name_theory(ax: Axes, predicted: pd.Series) -> None:
    """Write "theory" above the middle of its line, between two intervals."""
    place = max((len(predicted) - 1) // 2, 0)
    near = predicted.iloc[place : place + 2]
    x, y = np.exp(np.log(near.index).to_numpy().mean()), np.exp(np.log(near).mean())
    style = {"textcoords": "offset points", "color": THEORY["color"], "size": 11}
    ax.annotate("theory", (x, y), (4, 12), **style)


def _band(ax: Axes, values, color: str, alpha: float = 1.0):
    """A band over 95 % of the networks; their mean and its upper edge by step."""
    low, high = values.quantile(0.025), values.quantile(0.975)
    ax.fill_between(low.index, low, high, color=color, alpha=alpha, lw=0)
    return values.mean(), high


def check_table(table: pd.DataFrame, columns: Sequence[str]) -> None:
    """Refuse a table that is empty or lacks columns, and say what was expected."""
    missing = [column for column in columns if column not in getattr(table, "columns", ())]
    if missing or not len(table):
        what = f"lacks the columns {missing}" if missing else "is empty"
        raise ValueError(f"the table {what}, expected rows with {list(columns)}")


def _axes(ax: Axes | None, size: tuple[float, float], title: str) -> Axes:
    """The axes given, else those of a new figure of this size in inches."""
    ax = plt.subplots(figsize=size, layout="constrained")[1] if ax is None else ax
    ax.set_title(title, pad=10)
    return ax
