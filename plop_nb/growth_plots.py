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
STEP = "training step"
GROWTH = "growth since step 0\n" + r"$\|W_t z\|^2 / n \,-\, \|W_0 z\|^2 / n$"
KEY = "dots: measured in the loop\nline: closed form"
STYLES = ("-", "--", ":", "-.")  # of lines without a type
SHADES = (DARK, "0.55", MEASURED)  # their colours


@styled()
def plot_closed_form(run: pd.DataFrame, *, title: str = "", ax: Axes | None = None) -> Axes:
    """One network: its growth as dots, the closed form through them, and its quadratic term.

    Parameters
    ----------
    run : pandas.DataFrame
        Columns `step`, `growth` (measured), `closed` and `quadratic` (that term alone).
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
    check_table(run, ["step", "growth", "closed", "quadratic"])
    ax = _axes(ax, (7.5, 4.2), title)
    ax.plot(run["step"], run["growth"], "o", ms=5, color=MEASURED)
    ax.plot(run["step"], run["closed"], color=DARK, lw=1.6)
    ax.plot(run["step"], run["quadratic"], **THEORY)
    last = run.iloc[-1]
    ax.set(xlabel=STEP, ylabel=GROWTH, xlim=(0, None))
    style = {"transform": ax.transAxes, "va": "top", "color": "0.35", "size": 11}
    ax.text(0.04, 0.97, KEY, **style)
    named = {"closed form": ("closed", DARK), "its quadratic term": ("quadratic", THEORY["color"])}
    label_lines(ax, {k: (last["step"], last[of], color) for k, (of, color) in named.items()})
    return ax


@styled()
def plot_cross_share(
    run: pd.DataFrame, *, limit: float = 100, title: str = "", ax: Axes | None = None
) -> Axes:
    """One network: its cross term in percent of its quadratic term, step by step.

    Parameters
    ----------
    run : pandas.DataFrame
        Columns `step`, `growth` (measured, as dots), `closed` (the line) and `quadratic` (that term
        alone). Rows in which `quadratic` is zero are left out.
    limit : float
        How far from zero the axis reaches, in percent; steps beyond are named in a note.
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
    check_table(run, ["step", "growth", "closed", "quadratic"])
    ax = _axes(ax, (6, 4.2), title)
    run = run[run["quadratic"] != 0].set_index("step")
    line, dots = (100 * (run[of] / run["quadratic"] - 1) for of in ("closed", "growth"))
    ax.axhline(0, color="0.6", lw=1)
    ax.plot(line.index, line, color=DARK, lw=1.6)
    ax.plot(dots.index, dots, "o", ms=5, color=MEASURED)
    up = -1 if line.iloc[-1] < 0 else 1
    for step, ha in ((dots.index[(len(dots) - 1) // 2], "center"), (dots.index[-1], "right")):
        style = {"textcoords": "offset points", "ha": ha, "va": "center", "color": MEASURED}
        words = f"step {step}:\n{dots[step]:.0f} %".replace("-", "\N{MINUS SIGN}")
        ax.annotate(words, (step, dots[step]), (6 if ha == "right" else 0, 28 * up), **style)
    note = [KEY]
    if len(outside := dots[dots.abs() > limit]):
        note.append("outside: " + ", ".join(f"step {k} ({s:.0f} %)" for k, s in outside.items()))
    place = {"x": 0.98, "y": 0.5 + 0.25 * up, "ha": "right", "va": "center", "color": "0.35"}
    words = "\n".join(note).replace("-", "\N{MINUS SIGN}")
    ax.text(s=words, size=11, transform=ax.transAxes, **place)
    low, high = (-limit, limit / 20) if up < 0 else (-limit / 20, limit)
    ax.set(xlabel=STEP, ylabel="cross term / quadratic term (%)", xlim=(0, None), ylim=(low, high))
    return ax


@styled()
def plot_by_width(
    table: pd.DataFrame,
    *,
    what: str,
    measured: str = "mean and its interval",
    predicted: str = "theory",
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """A quantity against width, both logarithmic: one line each, or dots with intervals and a line.

    Parameters
    ----------
    table : pandas.DataFrame
        Widths as its index. Columns `mean`, `low`, `high`, `predicted` (dashed), or one per line.
    what : str
        Label of the vertical axis, with its unit.
    measured : str
        What the dots and bars of `mean`, `low` and `high` are, written beside the last one.
    predicted : str
        What the dashed line is, written above it.
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
        ends = {measured: (table.index[-1], table["mean"].iloc[-1], MEASURED)}
        _name_theory(ax, table["predicted"], predicted)
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


def _name_theory(ax: Axes, predicted: pd.Series, words: str) -> None:
    """Write these words above the middle of its line, between two intervals."""
    place = max((len(predicted) - 1) // 2, 0)
    near = predicted.iloc[place : place + 2]
    x, y = np.exp(np.log(near.index).to_numpy().mean()), np.exp(np.log(near).mean())
    style = {"textcoords": "offset points", "color": THEORY["color"], "size": 11}
    ax.annotate(words, (x, y), (4, 12), **style)


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
