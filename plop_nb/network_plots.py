"""Pictures of what breaks the growth of features in small networks."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba

from plop_nb.growth_plots import MEASURED, STEP, STYLES, THEORY, check_table
from plop_nb.palette import DARK, UNKNOWN, label_lines, styled, type_color
from plop_nb.stats import mean_interval

LINES = (MEASURED, "#9A7400", DARK)  # of several runs in one panel
TINY = 1e-9  # an interval below zero ends here on a logarithmic axis
SQUARE = "squared displacement per neuron (log)"
FLAT = "flat: quadratic growth"


@styled()
def plot_knobs(
    runs: Mapping[str, pd.DataFrame],
    base: pd.DataFrame,
    *,
    met: Mapping[str, float] | None = None,
    met_name: str = "target met",
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
        {name: step at which the target is met}, dotted lines, named by `met_name`.
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
    panels = panel_grid(len(runs), columns=4, size=(10.5, 0.8 + 2.6 * rows), title=title)
    reference = base[base["step"] > 0].assign(square=base["moved"] ** 2)
    reference = reference.groupby("step")["square"].mean()
    for ax, (name, run) in zip(panels, runs.items(), strict=True):
        mean = _curve(ax, run, MEASURED)
        ax.plot(reference, **THEORY)
        if guides and name in guides:
            _guide(ax, mean, guides[name])
        if met and name in met:
            ax.axvline(met[name], color=DARK, ls=":", lw=1.5)
            at = ax.get_xaxis_transform()
            words = met_name.replace("\n", " \n") + " "  # a space before the dotted line
            ax.text(met[name], 0.03, words, transform=at, ha="right")
        ax.set_title(name, size=12)
        _steps(ax)
    middle = reference.index[len(reference) // 4]
    style = {"textcoords": "offset points", "ha": "right", "color": THEORY["color"]}
    panels[0].annotate("Theorem 1", (middle, reference[middle]), (-6, 6), **style)
    panels[0].figure.supxlabel(f"{STEP} (logarithmic scale)", size=12)
    panels[0].figure.supylabel(SQUARE, size=12)
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
    _check_runs(panels, most=len(LINES))
    axes = panel_grid(len(panels), columns=2, size=(10, 4.2), title=title)
    ends: dict = {ax: {} for ax in axes}
    for ax, (panel, runs) in zip(axes, panels.items(), strict=True):
        for color, (name, run) in zip(LINES, runs.items(), strict=False):
            mean = _curve(ax, run, color)
            ends[ax][name] = (mean.index[-1], mean.iloc[-1], color)
        ax.set_title(panel, size=12)
        ax.set_xlabel(f"{STEP} (logarithmic scale)")
        _steps(ax)
    axes[0].set_ylabel(SQUARE.replace(" per", "\nper"))
    for ax in axes:  # when the limits are final
        label_lines(ax, ends[ax])
    return axes


@styled()
def plot_multiples(
    panels: Mapping[str, Mapping[str, pd.DataFrame]],
    unit: float,
    *,
    formulas: Mapping[str, pd.Series] | None = None,
    title: str = "",
) -> list[Axes]:
    """Squared displacement as a multiple of the theorem's by step: a flat line is quadratic.

    Parameters
    ----------
    panels : dict of dict of pandas.DataFrame
        {panel: {name: run}}, columns `step`, `seed`, `moved`; the mean over the networks and its
        interval (95 %, Student's t). A name such as "q" has the colour of its type, others grey.
    unit : float
        The theorem's displacement in one step.
    formulas : dict, optional
        {name: computed multiples, with the steps as their index}, circles over that run.
    title : str
        Of the whole figure.

    Returns
    -------
    list of matplotlib.axes.Axes

    Raises
    ------
    ValueError
        `panels` is empty, has more than four runs in one, or a frame lacks a column.
    """
    _check_runs(panels, most=len(STYLES))
    axes = panel_grid(len(panels), columns=2, size=(10.5, 4.6), title=title)
    ends: dict = {ax: {} for ax in axes}
    for ax, (panel, runs) in zip(axes, panels.items(), strict=True):
        for style, (name, run) in zip(STYLES, runs.items(), strict=False):
            color = type_color(name)
            line = ("0.35", style) if color == UNKNOWN else (color, "-")
            multiple = run.assign(moved=run["moved"] / (unit * run["step"].clip(lower=1)))
            mean = _curve(ax, multiple, *line, edge=True)
            ends[ax][name] = (mean.index[-1], mean.iloc[-1], line[0])
            if formulas and name in formulas:
                _formula(ax, formulas[name])
        ax.set_title(panel, size=12)
        ax.set(yscale="log", xlabel=STEP)
    axes[0].set_ylabel("squared displacement, multiple\nof the theorem's (logarithmic scale)")
    axes[0].set_yticks([0.25, 0.5, 1, 2, 4], ["1/4", "1/2", "1", "2", "4"])
    axes[0].text(0.03, 0.97, FLAT, transform=axes[0].transAxes, va="top")
    for ax in axes:  # when the limits are final
        ax.minorticks_off()
        label_lines(ax, ends[ax])
    return axes


def _curve(
    ax: Axes, run: pd.DataFrame, color: str, style: str = "-", *, edge: bool = False
) -> pd.Series:
    """Draw the mean squared displacement by step with its interval, and return the mean."""
    after = run[run["step"] > 0]  # step 0 has no logarithm
    squares = after.pivot(index="seed", columns="step", values="moved") ** 2
    mean = squares.mean()
    interval = mean_interval(squares.to_numpy())
    low = np.maximum(interval.low, TINY)
    band = {"fc": color, "ec": "none", "alpha": 0.3}  # with an edge, Agg moves it by a pixel
    if edge:  # bands that lie over each other
        band |= {"fc": to_rgba(color, 0.12), "ec": to_rgba(color, 0.6), "lw": 0.8, "alpha": None}
    ax.fill_between(mean.index, low, interval.high, **band)
    ax.plot(mean, color=color, ls=style, lw=1.6)
    return mean


def _guide(ax: Axes, mean: pd.Series, slope: float) -> None:
    """A power of the step through the first point, with its exponent below its end."""
    line = mean.iloc[0] * (mean.index / mean.index[0]) ** slope
    ax.plot(mean.index, line, color=DARK, ls="-.", lw=1.2)
    style = {"textcoords": "offset points", "ha": "right", "va": "top", "color": DARK}
    ax.annotate(f"exponent {slope:g}", (mean.index[-1], line[-1]), (0, -28), **style)


def _formula(ax: Axes, computed: pd.Series) -> None:
    """A computed curve, circles at every fourth step, with its name below its middle."""
    color = THEORY["color"]
    ax.plot(computed, "o", color=color, mfc="none", ms=6, markevery=4, zorder=5)
    middle = (computed.index[len(computed) // 2], computed.iloc[len(computed) // 2])
    style = {"textcoords": "offset points", "ha": "right", "va": "top", "color": color}
    ax.annotate("formula", middle, (0, -10), **style)


def _steps(ax: Axes) -> None:
    """Logarithmic axes, with ticks at few steps."""
    ax.set(xscale="log", yscale="log")
    ax.minorticks_off()
    ax.set_xticks([1, 10, 40], ["1", "10", "40"])


def panel_grid(number: int, *, columns: int, size: tuple[float, float], title: str) -> list[Axes]:
    """A new figure with as many panels (the rest is empty); only the title's first line is bold."""
    if not number:
        raise ValueError("there is nothing to draw: pass {name: run}, or names of panels")
    options = {"figsize": size, "layout": "constrained", "squeeze": False}
    rows, columns = -(-number // columns), min(columns, number)
    fig, grid = plt.subplots(rows, columns, sharex=True, sharey=True, **options)
    axes = list(grid.flat)
    for ax in axes[number:]:
        ax.set_axis_off()
    finding, *details = title.split("\n")
    lines = "\n".join([finding, *[" "] * len(details)])  # room for the details below
    heading = fig.suptitle(lines, x=0.01, ha="left", weight="bold", size=14)
    if details:
        style = {"xycoords": heading, "va": "bottom", "size": 12, "annotation_clip": False}
        axes[0].annotate("\n".join(details), (0, 0), **style).set_in_layout(False)
    return axes[:number]


def _check_runs(panels: Mapping[str, Mapping[str, pd.DataFrame]], *, most: int) -> None:
    for name, runs in panels.items():
        if not 1 <= len(runs) <= most:
            raise ValueError(f"panels[{name!r}] has {len(runs)} runs, expected 1 to {most}")
        for run in runs.values():
            check_table(run, ["step", "seed", "moved"])
