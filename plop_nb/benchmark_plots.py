"""Pictures of a benchmark: what types do to the loss, at which rates, and who is behind whom."""

import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from plop_nb.palette import DARK, spread_out, styled, type_color
from plop_nb.panels import FONT, by_task, draw_intervals, make_room, panels_of
from plop_nb.plots import axes_for
from plop_nb.stats import mean_interval

BLUE, ORANGE = (sns.color_palette("colorblind")[place] for place in (0, 3))
GREY = "0.65"
VERDICTS = {"better": BLUE, "undecided": "0.55", "worse": ORANGE}
COLORS = {"better": "blue", "undecided": "grey", "worse": "orange"}
GROUPS = {"single": "single types", "triple": "sets of three", "fixed": "usual sets"}
GROUPS |= {"rival": "rivals", "full": "full finetuning"}
MAIN = {"all": "all", "attention": "attention", "down+gate+up": "MLP"}  # dark, by these names
_short = partial(np.format_float_scientific, trim="-", exp_digits=1)  # such as "5e-4"
FENCE = 3  # quartile ranges above the upper quartile: what is higher does not stretch an axis


def plot_agreement(
    losses: pd.DataFrame,
    seeds: tuple[int, int],
    named: Mapping[str, str],
    finding: Mapping | None = None,
) -> np.ndarray:
    """Losses of placements with one seed against those with another.

    Parameters
    ----------
    losses : pandas.DataFrame
        Columns `task`, `placement`, and one with losses (nats per token) for each of the seeds.
    seeds : tuple of two ints
        The names of these columns: the seed of the x axis, and that of the y axis.
    named : dict
        {placement: its label}: these are dark.
    finding : dict, optional
        {task: what its title says}. By default, the rank correlation (Spearman).

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        One per task, of a new figure, with the same span of losses on all axes.

    Raises
    ------
    ValueError
        A column or rows are missing, a loss is not finite, `finding` lacks a task.
    """
    first, second = seeds
    tasks = by_task("losses", losses, ["placement"], [first, second])
    low, high = losses[[first, second]].min(axis=None), losses[[first, second]].max(axis=None)
    room = 0.05 * (high - low)

    def draw(ax, own):
        ax.set(xlim=(low - room, high + room), ylim=(low - room, high + room))
        ax.axline((low, low), slope=1, color=GREY, lw=0.8, zorder=0)
        ax.locator_params(nbins=5)
        is_named = own["placement"].isin(list(named))
        ax.scatter(own[first], own[second], s=34, c=np.where(is_named, DARK, GREY))
        for name, side in zip(named, ["right", "left"] * len(named), strict=False):
            style = {"textcoords": "offset points", "fontsize": FONT, "va": "center", "ha": side}
            for at in own.loc[own["placement"] == name, [first, second]].to_numpy():
                ax.annotate(named[name], at, (8 if side == "left" else -8, 0), **style)
        return f"rank correlation {own[first].corr(own[second], method='spearman'):.2f}"

    labels = (
        f"loss with seed {first} (nats per token)",
        f"loss with seed {second}",
        "grey: the other sets",
    )
    return panels_of(tasks, 4.6, labels, draw, finding)


def plot_rates(
    losses: pd.DataFrame, named: Mapping[str, str] | None = None, finding: Mapping | None = None
) -> np.ndarray:
    """Loss against the learning rate, a line per placement.

    Single types are coloured, named placements dark; all others are grey. Losses far above the
    others are cut off, and counted below.

    Parameters
    ----------
    losses : pandas.DataFrame
        Columns `task`, `placement`, `group` ("single", "triple", "fixed", "rival" or "full"), `lr`,
        `loss` (nats per token). Several losses at a rate count by their mean.
    named : dict, optional
        {placement: its label}: by default "all", "attention" and "down+gate+up" (MLP).
    finding : dict, optional
        {task: what its title says}. By default, the usual best rate of the two largest groups.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        One per task, of a new figure.

    Raises
    ------
    ValueError
        A column or rows are missing, a loss is not finite, a rate not positive, a group unknown,
        `finding` lacks a task.
    """
    keys = ["placement", "group", "lr"]
    tasks = by_task("losses", losses, keys[:2], ["lr", "loss"], group=GROUPS)
    if (losses["lr"] <= 0).any():
        raise ValueError(f"losses holds lr={losses['lr'].min()}: pass rates above 0")
    tables = {task: own.groupby(keys)["loss"].mean().reset_index() for task, own in tasks.items()}
    labels = "learning rate", "loss (nats per token)", "grey: the other placements"
    draw = partial(_draw_rates, named=MAIN if named is None else named)
    return panels_of(tables, 4.8, labels, draw, finding, fit=_nudge)


@styled()
def plot_pairs(
    differences: Sequence[float],
    label: str,
    *,
    title: str | None = None,
    unit: str = "problem",
    level: float = 0.95,
    ax: Axes | None = None,
) -> Axes:
    """Paired differences, sorted, one dot each, and their mean with an interval below them.

    Parameters
    ----------
    differences : sequence of floats
        One for each problem, such as its loss with one placement minus that with another.
    label : str
        What a difference is, on the x axis.
    title : str, optional
        None by default.
    unit : str
        What there is a difference for, such that an "s" makes more of it.
    level : float
        Coverage of the interval (`mean_interval`), between 0 and 1.
    ax : matplotlib Axes, optional
        Where to draw: by default the current axes, or new ones where no figure is open.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        Fewer than two differences, or one that is not finite.
    """
    mean, low, high = mean_interval(differences, level=level)
    ax = axes_for(ax, width=7.5, height=3.4)
    ax.axvline(0, color=DARK, lw=1, ls="--", zorder=0)
    heights = range(1, len(differences) + 1)
    ax.scatter(np.sort(differences), heights, s=50, color=GREY)
    ax.hlines(0, low, high, color=BLUE, lw=2)
    ax.scatter(mean, 0, s=70, marker="D", color=BLUE)
    rows = [f"mean, {level:.0%}\ninterval", f"{len(differences)} {unit}s,\nsorted"]
    ax.set_yticks([0, (len(differences) + 1) / 2], rows)
    ax.set(ylim=(-0.8, len(differences) + 0.8), xlabel=label)
    ax.locator_params(axis="x", nbins=6)
    if title:
        ax.set_title(textwrap.fill(title, 54), loc="left")
    return ax


def plot_differences(
    differences: pd.DataFrame, reference: str, finding: Mapping | None = None
) -> np.ndarray:
    """By how much each placement differs from a reference, with intervals.

    Parameters
    ----------
    differences : pandas.DataFrame
        From `experiments.differences`: `task`, `placement`, `difference` (nats per token), `low`,
        `high`, `verdict` ("better", "worse", "undecided").
    reference : str
        What the others were compared with: the name of the line at zero.
    finding : dict, optional
        {task: what its title says}. By default, how many are worse or better.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        One per task, of a new figure; placements from the top by their mean difference over tasks.

    Raises
    ------
    ValueError
        A column or rows are missing, a number is not finite, `finding` lacks a task.
    """
    texts, numbers = ["placement", "verdict"], ["difference", "low", "high"]
    tasks = by_task("differences", differences, texts, numbers, verdict=VERDICTS)
    means = differences.groupby("placement", sort=False)["difference"].mean()
    names = means.sort_values(kind="stable").index.tolist()

    def draw(ax, own):
        places = [names.index(name) for name in own["placement"]]
        draw_intervals(ax, places, own[numbers], own["verdict"].map(VERDICTS), 0, reference)
        ax.locator_params(axis="x", nbins=8 if len(tasks) < 3 else 4)  # as many as have room
        worse, better = sum(own["verdict"] == "worse"), sum(own["verdict"] == "better")
        rest = f", {better} better" if better else ""
        return f"{worse} of {len(own)} worse than {reference}{rest}"

    colors = ", ".join(
        f"{COLORS[verdict]}: {verdict}" for verdict in sorted({*differences["verdict"]})
    )
    labels = "", "", f"loss minus that of {reference} (nats per token)\n{colors}"
    options = {"fit": make_room, "rows": names, "columns": len(tasks)}
    return panels_of(tasks, 0.2 * len(names) + 1.8, labels, draw, finding, **options)


def _fence(losses: pd.Series) -> float:
    """Up to where an axis has to reach: what is far above all others does not stretch it."""
    quarter, rest = losses.quantile([0.25, 0.75])
    return min(losses.max(), rest + FENCE * (rest - quarter))


def _draw_rates(ax: Axes, table: pd.DataFrame, named: Mapping[str, str]) -> str:
    """Lines within what most losses span; names at the right, at their lines' heights."""
    low = table["loss"].min()
    top = max(table.groupby("placement")["loss"].min().max(), _fence(table["loss"]))
    room = 0.04 * (top - low) or 0.1
    rates = sorted(table["lr"].unique())
    ax.set(xscale="log", ylim=(low - room, top + room), xlim=(rates[0] / 1.1, rates[-1] * 1.1))
    ax.set_xticks(rates, [_short(rate) for rate in rates])
    ax.minorticks_off()
    dashes = dict(zip(named, ["-", "--", ":", "-."] * len(named), strict=False))
    for (name, group), own in table.groupby(["placement", "group"]):
        is_named = group == "single" or name in named
        color = DARK if name in named else type_color(name) if group == "single" else GREY
        style = {"color": color, "lw": 1.8 if is_named else 0.8, "ls": dashes.get(name, "-")}
        ax.plot(own["lr"], own["loss"], marker=".", zorder=2 + is_named, label=name, **style)
        if is_named:
            end = own.loc[own["loss"] <= top, ["lr", "loss"]].iloc[-1]
            leader = {"arrowstyle": "-", "ls": ":", "color": color, "shrinkB": 0}
            style = {"fontsize": FONT, "va": "center", "color": color, "arrowprops": leader}
            style["textcoords"] = ax.get_yaxis_transform()
            ax.annotate(named.get(name, name), end, (1.03, end["loss"]), **style)
    if above := sum(table["loss"] > top):
        ax.set_xlabel(f"learning rate ({above} of {len(table)} losses are higher than the axis)")
    best, said = table.loc[table.groupby(["placement", "group"])["loss"].idxmin()], []
    for group in best["group"].value_counts().index[:2]:
        found = best.loc[best["group"] == group, "lr"]
        usual = found.mode()[0]
        said.append(f"{_short(usual)} for {sum(found == usual)} of {len(found)} {GROUPS[group]}")
    return f"best at {', at '.join(said)}"


def _nudge(ax: Axes, _: Any) -> None:
    """Move the names at the right apart."""
    if ax.texts:
        low, high = ax.get_ylim()
        gap = 1.35 * FONT / 72 * ax.figure.dpi / ax.get_window_extent().height * (high - low)
        heights = spread_out(np.array([text.xy[1] for text in ax.texts]), gap, low, high)
        for text, height in zip(ax.texts, heights, strict=True):
            text.set_y(height)
