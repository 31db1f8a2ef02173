"""Pictures of a benchmark: losses by seed and learning rate, and who is behind whom."""

import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from plop_nb.palette import DARK, spread_out, styled, type_color
from plop_nb.panels import FONT, by_task, draw_intervals, label_dots, make_room, panels_of
from plop_nb.plots import axes_for
from plop_nb.stats import mean_interval

BLUE, ORANGE = (sns.color_palette("colorblind")[place] for place in (0, 3))
GREY = "0.65"
MINUS = "−"  # as on the axes
VERDICTS = {"better": BLUE, "undecided": "0.55", "worse": ORANGE}
COLORS = {"better": "blue", "undecided": "grey", "worse": "orange"}
GROUPS = {"single": "single types", "triple": "sets of three", "fixed": "usual sets"}
GROUPS |= {"rival": "rivals", "full": "full finetuning"}
MAIN = {"all": "all", "attention": "attention", "down+gate+up": "MLP"}  # dark, by these names
_short = partial(np.format_float_scientific, trim="-", exp_digits=1)  # such as "5e-4"
TITLE = 56  # letters in a line of the title of `plot_trainings`
FENCE = 3  # quartile ranges above the upper quartile: what is higher does not stretch an axis


def plot_agreement(
    losses: pd.DataFrame,
    seeds: tuple[int, int],
    named: Mapping[str, str],
    finding: Mapping | None = None,
    note: str = "",
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
    note : str
        Of which model and placements this is: a line below.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        One per task, of a new figure, all with the same span of a seed's losses. On the line both
        seeds have the same loss.

    Raises
    ------
    ValueError
        A column or rows are missing, a loss is not finite, `finding` lacks a task.
    """
    first, second = seeds
    tasks = by_task("losses", losses, ["placement"], [first, second])
    room = 0.07 * (losses[[first, second]].max() - losses[[first, second]].min()).max()
    spans = {seed: (losses[seed].min() - room, losses[seed].max() + room) for seed in seeds}

    def draw(ax, own):
        ax.set(xlim=spans[first], ylim=spans[second])
        ax.axline((own[first].min(),) * 2, slope=1, color=GREY, lw=0.8, zorder=0)
        ax.locator_params(nbins=5)
        for part, color, size in [(~is_named(own), GREY, 30), (is_named(own), DARK, 60)]:
            ax.scatter(own.loc[part, first], own.loc[part, second], size, color=color)
        return f"rank correlation {own[first].corr(own[second], method='spearman'):.2f}"

    def is_named(own):
        return own["placement"].isin(list(named))

    def fit(ax, own):
        rows = own[["placement", first, second]].to_numpy()
        label_dots(ax, [(named.get(name, ""), tuple(at), DARK) for name, *at in rows], [])

    below = "grey: the other sets; on the line both seeds have the same loss"
    below = f"{below}\n{note}" if note else below
    labels = f"loss with seed {first} (nats per token)", f"loss with seed {second}", below
    return panels_of(tasks, 4.6, labels, draw, finding, fit=fit)


@styled()
def plot_seeds(losses: pd.DataFrame, *, title: str | None = None, ax: Axes | None = None) -> Axes:
    """Losses of a few placements at each learning rate: a dot a seed, a line through their means.

    Parameters
    ----------
    losses : pandas.DataFrame
        A row a placement, from left to right; columns of learning rate and seed, as
        `pivot(index="placement", columns=["lr", "seed"])` gives them; nats per token. A loss that
        is missing (NaN) is left out.
    title : str, optional
        None by default.
    ax : matplotlib Axes, optional
        Where to draw: by default the current axes, or new ones where no figure is open.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        `losses` has no rows, or columns without the two levels.
    """
    if not len(losses) or list(losses.columns.names) != ["lr", "seed"]:
        raise ValueError(
            f"losses has {len(losses)} rows and columns of {list(losses.columns.names)}: "
            f"pass rows of placements and columns of lr and seed"
        )
    ax = axes_for(ax, width=9, height=4.2)
    rates = losses.columns.unique("lr")
    places = np.arange(len(rates))
    for number, (name, own) in enumerate(losses.iterrows()):
        across = number * (len(rates) + 1) + places
        table = own.unstack("seed").loc[rates]
        ax.plot(across, table.mean(axis=1), color=DARK, lw=1.6)
        for seed in table:
            ax.scatter(across, table[seed], s=36, color=GREY, edgecolor=DARK, lw=0.8, zorder=3)
        style = {"transform": ax.get_xaxis_transform(), "fontsize": FONT + 1, "va": "top"}
        ax.text(across.mean(), 0.98, name, ha="center", **style)
    ax.set_ylim(top=ax.get_ylim()[1] + 0.12 * np.ptp(ax.get_ylim()))  # room for the names
    ticks = [number * (len(rates) + 1) + place for number in range(len(losses)) for place in places]
    ax.set_xticks(ticks, [_short(rate) for rate in rates] * len(losses), fontsize=FONT)
    ax.set_xlabel("learning rate; a dot for each seed, lines through the means")
    ax.set_ylabel("loss (nats per token)")
    ax.set_title(title or "", loc="left")
    return ax


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
    named = MAIN if named is None else named
    others = set(losses.loc[losses["group"] != "single", "placement"]) - set(named)
    below = f"grey: the {len(others)} other placements" if others else ""
    labels = "learning rate", "loss (nats per token)", below
    draw = partial(_draw_rates, named=named)
    return panels_of(tables, 4.8, labels, draw, finding, fit=_nudge)


@styled()
def plot_trainings(
    differences: Mapping[str, Sequence[float]],
    label: str,
    *,
    title: str | None = None,
    sides: tuple[str, str] | None = None,
    unit: str = "problem",
    level: float = 0.95,
    ax: Axes | None = None,
) -> Axes:
    """Paired differences of several trainings: the mean of each, and below them that of all.

    The interval of a training is over its problems. That of the last row is over trainings: it is
    the one for a statement about trainings in general. Dots of intervals that include 0 are grey,
    those above it black, those below it white: here colours do not stand for types.

    Parameters
    ----------
    differences : dict
        {name of a training: one difference for each problem}, such as the loss with one placement
        minus that with another; two trainings or more.
    label : str
        What a difference is, on the x axis.
    title : str, optional
        None by default. Its lines are wrapped one by one.
    sides : tuple of two str, optional
        What it means to be left of 0 and right of it, above the first training.
    unit : str
        What there is a difference for, such that an "s" makes more of it.
    level : float
        Coverage of the intervals (`mean_interval`), between 0 and 1.
    ax : matplotlib Axes, optional
        Where to draw: by default the current axes, or new ones where no figure is open.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        Fewer than two trainings, or one with fewer than two differences, or with one that is not
        finite.
    """
    found = [mean_interval(own, level=level) for own in differences.values()]
    found.append(mean_interval([own.mean for own in found], level=level))
    count = len(differences)
    ax = axes_for(ax, width=8, height=0.55 * count + 2.4)
    ax.axvline(0, color=DARK, lw=1, ls="--", zorder=0)
    places = [*range(count), count + 0.3]
    style: dict[str, Any] = {"textcoords": "offset points", "va": "bottom", "color": DARK}
    style |= {"size": 11, "bbox": {"fc": "white", "ec": "none", "pad": 1}}
    for place, (mean, low, high) in zip(places, found, strict=True):
        face = DARK if low > 0 else "white" if high < 0 else GREY
        marker = "D" if place == places[-1] else "o"
        ax.plot([low, high], [place, place], color=DARK, lw=2.5, solid_capstyle="butt")
        ax.plot(mean, place, color=DARK, mfc=face, mew=1.6, marker=marker, ms=9)
        said = f"{mean:+.2f} ({low:+.2f} to {high:+.2f})".replace("-", MINUS)
        start = (max(low, 0), 6, "left") if mean >= 0 else (min(high, 0), -6, "right")  # beside 0
        ax.annotate(said, (start[0], place), (start[1], 8), ha=start[2], **style)
    ax.axhline(count - 0.4, color="0.8", lw=1)
    ax.set_yticks(places, [*differences, f"mean of\nthe {count}"])
    ax.set_ylim(count + 0.8, -1.3 if sides else -0.8)
    if sides:
        style = {"transform": ax.transAxes, "va": "top", "size": 11}
        ax.text(0.01, 0.98, f"← {sides[0]}", **style)
        ax.text(0.99, 0.98, f"{sides[1]} →", ha="right", **style)
    problems = {len(own) for own in differences.values()}
    over = f"{problems.pop()} {unit}s" if len(problems) == 1 else f"{unit}s"
    bars = f"bars: {level:.0%} intervals, over {over}; last row: over the {count} means"
    ax.set_xlabel(f"{label}\n{bars}")
    ax.margins(x=0.08)
    ax.locator_params(axis="x", nbins=7)
    if title:
        lines = [textwrap.fill(line, TITLE) for line in title.split("\n")]
        ax.set_title("\n".join(lines), loc="left")
    return ax


def plot_differences(
    differences: pd.DataFrame, reference: str, finding: Mapping | None = None, note: str = ""
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
    note : str
        What the intervals hold for, and of which model and seeds: a line below.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        One per task, of a new figure, on one x axis; placements from the top by their mean
        difference over tasks.

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
        ax.locator_params(axis="x", nbins=6 if len(tasks) < 3 else 4)  # as many as have room
        style = {"fontsize": FONT, "color": "0.45", "ha": "center", "va": "center"}
        for place in set(range(len(names))) - set(places):
            ax.text(0.6, place, "not compared", transform=ax.get_yaxis_transform(), **style)
        counts = own["verdict"].value_counts()
        said = [f"{counts[word]} {word}" for word in ("worse", "better") if word in counts]
        return f"{' and '.join(said)} of {len(own)}" if said else f"all {len(own)} undecided"

    colors = ", ".join(
        f"{COLORS[verdict]}: {verdict}" for verdict in sorted({*differences["verdict"]})
    )
    below = [f"loss minus that of {reference} (nats per token)", colors, *([note] if note else [])]
    options = {"fit": make_room, "rows": names, "columns": len(tasks), "share": True}
    height = 0.2 * len(names) + 1.4 + 0.2 * len(below)
    return panels_of(tasks, height, ("", "", "\n".join(below)), draw, finding, **options)


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
    styles = [("-", "o"), ("--", "s"), (":", "^"), ("-.", "D")] * len(named)
    looks = dict(zip(named, styles, strict=False))
    for (name, group), own in table.groupby(["placement", "group"]):
        is_named = group == "single" or name in named
        color = DARK if name in named else type_color(name) if group == "single" else GREY
        dashes, marker = looks.get(name, ("-", "."))
        style = {"color": color, "lw": 1.8 if is_named else 0.8, "ls": dashes, "marker": marker}
        ax.plot(own["lr"], own["loss"], zorder=2 + is_named, label=name, **style)
        if is_named:
            end = own.loc[own["loss"] <= top, ["lr", "loss"]].iloc[-1]
            leader = {"arrowstyle": "-", "color": GREY, "lw": 0.6, "shrinkB": 0}
            style = {"fontsize": FONT, "va": "center", "color": color, "arrowprops": leader}
            style["textcoords"] = ax.get_yaxis_transform()
            ax.annotate(named.get(name, name), end, (1.03, end["loss"]), **style)
    above = table[table["loss"] > top]
    if len(above):
        told = f"learning rate ({len(above)} of {len(table)} losses are higher than the axis)"
        which = [f"{name} at {_short(lr)}" for name, lr in above[["placement", "lr"]].to_numpy()]
        ax.set_xlabel(told if len(which) > 3 else f"{told}\nhigher: {', '.join(which)}")
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
