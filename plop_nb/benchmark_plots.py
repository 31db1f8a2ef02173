"""Pictures of a benchmark: what types do to the loss, at which rates, and what rules choose."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from plop_nb.checks import number_between
from plop_nb.palette import DARK, spread_out, type_color
from plop_nb.panels import FONT, by_task, make_room, panels_of

BLUE, ORANGE = (sns.color_palette("colorblind")[place] for place in (0, 3))
GREY, RIVAL = "0.65", "#86653A"  # neither is the colour of a type
VERDICTS = {"better": BLUE, "undecided": "0.55", "worse": ORANGE}
COLORS = {"better": "blue", "undecided": "grey", "worse": "orange"}
GROUPS = {"single": "single types", "triple": "sets of three", "fixed": "usual sets"}
GROUPS |= {"rival": "rivals", "full": "full finetuning"}
MARKERS = {"single": "o", "triple": "o", "fixed": "s", "rival": "D", "full": "*"}
MAIN = {"all": "all", "attention": "attention", "down+gate+up": "MLP"}  # dark, by these names
_short = partial(np.format_float_scientific, trim="-", exp_digits=1)  # such as "5e-4"
SHAPES = "osD^vPX<>*"  # markers of kinds of runs
FENCE = 3  # quartile ranges above the upper quartile: what is higher does not stretch an axis


def plot_effects(effects: pd.DataFrame, finding: Mapping | None = None) -> np.ndarray:
    """What each type does to the loss of the sets that it is in: a dot for each group of runs.

    Types are coloured, and ordered from the lowest mean effect; each kind of group has a marker.

    Parameters
    ----------
    effects : pandas.DataFrame
        Columns `task`, `kind` (such as "sums at 1e-3"), `type`, `effect` (nats per token, against
        the average type: negative is better).
    finding : dict, optional
        {task: what its title says}. By default, how many types are ahead in all groups.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        One per task, of a new figure; types from the top.

    Raises
    ------
    ValueError
        A column or rows are missing, an effect is not finite, `finding` lacks a task, or there are
        more kinds than markers.
    """
    tasks = by_task("effects", effects, ["kind", "type"], ["effect"])
    types = effects.groupby("type")["effect"].mean().sort_values(kind="stable").index.tolist()
    kinds = dict(zip(effects["kind"].unique(), SHAPES, strict=False))
    if len(kinds) < effects["kind"].nunique():
        raise ValueError(
            f"effects holds {effects['kind'].nunique()} kinds, and there are markers for "
            f"{len(SHAPES)}: leave some out"
        )

    def draw(ax, own):
        for kind, rows in own.groupby("kind", sort=False):
            height = 0.6 * (list(kinds).index(kind) + 0.5) / len(kinds) - 0.3
            places = [types.index(name) + height for name in rows["type"]]
            colors = [type_color(name) for name in rows["type"]]
            ax.scatter(rows["effect"], places, s=40, c=colors, marker=kinds[kind], zorder=3)
            ax.scatter([], [], s=40, c=DARK, marker=kinds[kind], label=kind)  # of the legend
        ax.axvline(0, color=DARK, lw=1, ls="--", zorder=0)
        ax.legend(fontsize=FONT, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
        ahead = sum(own.groupby("type")["effect"].max() < 0)
        return f"{ahead} of {len(types)} types are ahead of the average in all groups of runs"

    labels = "effect on the loss (nats per token; 0: the average type)", "", "left is better"
    return panels_of(tasks, 0.45 * len(types) + 1.7, labels, draw, finding, rows=types, columns=1)


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
        _draw_intervals(ax, places, own[numbers], own["verdict"].map(VERDICTS), 0, reference)
        worse, better = sum(own["verdict"] == "worse"), sum(own["verdict"] == "better")
        rest = f", {better} better" if better else ""
        return f"{worse} of {len(own)} worse than {reference}{rest}"

    colors = ", ".join(
        f"{COLORS[verdict]}: {verdict}" for verdict in sorted({*differences["verdict"]})
    )
    labels = "", "", f"loss minus that of {reference} (nats per token)\n{colors}"
    options = {"fit": make_room, "rows": names, "columns": len(tasks)}
    return panels_of(tasks, 0.2 * len(names) + 1.8, labels, draw, finding, **options)


def plot_rules(
    judged: pd.DataFrame, random: float = 0.5, finding: Mapping | None = None
) -> np.ndarray:
    """How good the choices of rules are, between the best (0) and the worst (1) of all sets.

    Parameters
    ----------
    judged : pandas.DataFrame
        Columns `task`, `choice` (the name of a row: a set of types, the rules that choose it, or
        both), `regret`, `regret_low`, `regret_high`.
    random : float
        The mean regret of a choice at random, from 0 to 1: the dashed line.
    finding : dict, optional
        {task: what its title says}. By default, how many are better than chance.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        One per task, of a new figure; choices from the top, in the order of the rows.

    Raises
    ------
    ValueError
        A column or rows are missing, a number is not finite, `finding` lacks a task.
    """
    numbers = ["regret", "regret_low", "regret_high"]
    tasks = by_task("judged", judged, ["choice"], numbers)
    random = number_between("random", random, 0, 1)
    choices = judged["choice"].unique().tolist()

    def draw(ax, own):
        places = [choices.index(choice) for choice in own["choice"]]
        _draw_intervals(ax, places, own[numbers], BLUE, random, "at random")
        ax.set_xlim(min(0, *own["regret_low"]) - 0.04, max(1, *own["regret_high"]) + 0.04)
        return f"{sum(own['regret_high'] < random)} of {len(own)} are better than chance"

    labels = "regret (0: best of all sets, 1: worst)", "", ""
    options = {"rows": choices}
    return panels_of(tasks, 0.4 * len(choices) + 1.9, labels, draw, finding, **options)


def plot_forgetting(runs: pd.DataFrame, finding: Mapping | None = None) -> np.ndarray:
    """What placements gain on the task against what they lose on unrelated texts.

    Single types are coloured dots, usual sets squares, rivals diamonds, full finetuning is a star;
    sets of three are grey and, but for "down+gate+up" ("MLP"), have no name.

    Parameters
    ----------
    runs : pandas.DataFrame
        Columns `task`, `placement`, `group` (as for `plot_rates`), `gain` (loss before minus after
        training) and `forgetting` (unrelated loss after minus before), both in nats per token.
    finding : dict, optional
        {task: what its title says}. By default, which placement gains most.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        One per task, of a new figure.

    Raises
    ------
    ValueError
        A column or rows are missing, a number is not finite, a group is unknown, `finding` lacks
        a task.
    """
    keys, numbers = ["placement", "group"], ["gain", "forgetting"]
    tasks = by_task("runs", runs, keys, numbers, group=GROUPS)
    tables = {task: own.groupby(keys)[numbers].mean().reset_index() for task, own in tasks.items()}
    note = "forgetting: loss added on unrelated texts; grey: sets of three"
    labels = "gain (nats per token)", "forgetting (nats per token)", note
    return panels_of(tables, 5.4, labels, _draw_forgetting, finding, fit=_label_dots)


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


def _color(placement: str, group: str) -> Any:
    others = {"single": type_color(placement), "triple": GREY, "rival": RIVAL}
    return DARK if placement in MAIN else others.get(group, DARK)


def _draw_intervals(ax, places, table, color, line, name):
    """Points and intervals, and a vertical line with its name above the rows."""
    value, low, high = table.to_numpy().T
    ax.hlines(places, low, high, color=color, lw=1.6)
    ax.scatter(value, places, color=color, s=28, zorder=3)
    ax.axvline(line, color=DARK, lw=1, ls="--", zorder=0)
    mask = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    ax.text(line, -1, name, ha="center", va="center", fontsize=FONT, bbox=mask)
    ax.set_ylim(top=-1.6)


def _draw_forgetting(ax: Axes, table: pd.DataFrame) -> str:
    ax.margins(x=0.1, y=0.2)
    for name, group, gain, forgetting in table.to_numpy():
        color, size = _color(name, group), 200 if group == "full" else 50
        style = {"edgecolor": "white", "lw": 0.5, "zorder": 2 if color == GREY else 3}
        ax.scatter(gain, forgetting, size, color=color, marker=MARKERS[group], **style)
    name, _, gain, forgetting = table.loc[table["gain"].idxmax()]
    return f"{name} gains most ({gain:.2f}), forgets {forgetting:+.2f}"


def _label_dots(ax: Axes, table: pd.DataFrame) -> None:
    """Names beside their dots, where they cover least."""
    note = {"xycoords": "axes fraction", "ha": "right", "va": "bottom", "fontsize": FONT + 1}
    taken = [ax.annotate("better ↘", (0.995, 0.01), **note).get_window_extent()]
    dots = ax.transData.transform(table[["gain", "forgetting"]].to_numpy())
    frame, pixel = ax.get_window_extent(), ax.figure.dpi / 72
    leader = {"arrowstyle": "-", "color": GREY, "lw": 0.6, "shrinkA": 0, "shrinkB": 3}
    style = {"textcoords": "offset points", "ha": "center", "va": "center", "fontsize": FONT}
    for (name, group, *at), dot in zip(table.to_numpy(), dots, strict=True):
        if group == "triple" and name not in MAIN:
            continue
        style |= {"color": _color(name, group), "arrowprops": leader}
        text = ax.annotate(MAIN.get(name, name), at, (0, 0), **style)
        half = Text.get_window_extent(text).size / 2
        found = []
        for distance in (4, 10, 18, 28, 40, 55, 75):
            for angle in np.arange(16) * np.pi / 8:
                way = np.array([np.cos(angle), np.sin(angle)]) * (half + distance * pixel)
                box = Bbox([dot + way - half, dot + way + half])
                outside = 4 - frame.count_contains(box.corners())
                cost = distance + 40 * box.padded(2 * pixel).count_contains(dots)
                found.append((cost + 500 * (outside + box.count_overlaps(taken)), *way, box))
        _, x, y, box = min(found, key=lambda each: each[0])
        text.xyann = (x / pixel, y / pixel)
        taken.append(box)
