"""Pictures of a benchmark: how far placements lie apart, at which rates, and what rules choose."""

import textwrap
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from plop_nb.checks import number_between
from plop_nb.palette import DARK, spread_out, styled, type_color

BLUE, ORANGE = (sns.color_palette("colorblind")[place] for place in (0, 3))
GREY, RIVAL = "0.65", "#86653A"  # neither is the colour of a type
VERDICTS = {"better": BLUE, "undecided": "0.55", "worse": ORANGE}
GROUPS = {"single": "single types", "triple": "sets of three", "fixed": "usual sets"}
GROUPS |= {"rival": "rivals", "full": "full finetuning"}
MARKERS = {"single": "o", "triple": "o", "fixed": "s", "rival": "D", "full": "*"}
MAIN = {"all": "all", "attention": "attention", "down+gate+up": "MLP"}  # dark, by these names
DASHES = {"all": "--", "attention": ":"}
FONT = 10  # points, of the labels
LABELLED = 8  # dots at most, in a row whose lowest and highest are named
_short = partial(np.format_float_scientific, trim="-", exp_digits=1)  # such as "5e-4"
FENCE = 3  # quartile ranges above the upper quartile: what is higher does not stretch an axis


def plot_spread(losses: pd.DataFrame, finding: Callable | Mapping | None = None) -> np.ndarray:
    """How far placements of several kinds lie apart: a dot each, a thick line for the median.

    Parameters
    ----------
    losses : pandas.DataFrame
        Columns `task`, `kind` (the name of a row, such as "one type"), `placement`, `loss` (nats
        per token). Several losses of a placement within a kind count by their mean.
    finding : callable or dict, optional
        What titles say: {task: sentence}, or a function of a task and its rows. By default, within
        how much the first kind lies.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        One per task, of a new figure; kinds from the top, with names at the ends of short rows.
        In longer ones, losses far above all others are numbers at the right.

    Raises
    ------
    ValueError
        A column or rows are missing, a loss is not finite, `finding` lacks a task.
    """
    tasks = _by_task("losses", losses, ["kind", "placement"], ["loss"])
    finding = _span if finding is None else finding
    if not callable(finding) and (missing := [task for task in tasks if task not in finding]):
        raise ValueError(f"finding={finding!r} lacks {missing}: add a sentence for each task")
    kinds = losses["kind"].unique().tolist()

    def draw(ax, own):
        means = own.groupby(["kind", "placement"], sort=False)["loss"].mean()
        for kind, rows in means.groupby("kind", sort=False):
            row = rows.droplevel("kind").sort_values()
            top = _fence(means) if len(row) > LABELLED else row.max()
            _draw_row(ax, kinds.index(kind), row, top)
        task = own["task"].iloc[0]
        return finding(task, own) if callable(finding) else finding[task]

    labels = "loss (nats per token)", "", "dot: a placement; line: the median of its row"
    return _figure(tasks, 0.45 * len(kinds) + 1.5, labels, draw, _make_room, rows=kinds)


def plot_rates(losses: pd.DataFrame) -> np.ndarray:
    """Loss against the learning rate, a line per placement.

    Single types are coloured; "all" (dashed), "attention" (dotted) and "down+gate+up" (MLP) dark.
    Losses far above the others are cut off, and counted below.

    Parameters
    ----------
    losses : pandas.DataFrame
        Columns `task`, `placement`, `group` ("single", "triple", "fixed", "rival" or "full"), `lr`,
        `loss` (nats per token). Several losses at a rate count by their mean.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        One per task, of a new figure. Titles give the usual best rate of the two largest groups.

    Raises
    ------
    ValueError
        A column or rows are missing, a loss is not finite, a rate not positive, a group unknown.
    """
    keys = ["placement", "group", "lr"]
    tasks = _by_task("losses", losses, keys[:2], ["lr", "loss"], group=GROUPS)
    if (losses["lr"] <= 0).any():
        raise ValueError(f"losses holds lr={losses['lr'].min()}: pass rates above 0")
    tables = {task: own.groupby(keys)["loss"].mean().reset_index() for task, own in tasks.items()}
    labels = "learning rate", "loss (nats per token)", "grey: the other placements"
    return _figure(tables, 4.8, labels, _draw_rates, _nudge)


def plot_differences(differences: pd.DataFrame, reference: str) -> np.ndarray:
    """By how much each placement differs from a reference, with intervals.

    Parameters
    ----------
    differences : pandas.DataFrame
        From `experiments.differences`: `task`, `placement`, `difference` (nats per token), `low`,
        `high`, `verdict` ("better", "worse", "undecided").
    reference : str
        What the others were compared with: the name of the line at zero.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        One per task, of a new figure; placements from the top by their mean difference over tasks.

    Raises
    ------
    ValueError
        A column or rows are missing, a number is not finite.
    """
    texts, numbers = ["placement", "verdict"], ["difference", "low", "high"]
    tasks = _by_task("differences", differences, texts, numbers, verdict=VERDICTS)
    means = differences.groupby("placement", sort=False)["difference"].mean()
    names = means.sort_values(kind="stable").index.tolist()

    def draw(ax, own):
        places = [names.index(name) for name in own["placement"]]
        _draw_intervals(ax, places, own[numbers], own["verdict"].map(VERDICTS), 0, reference)
        worse, better = sum(own["verdict"] == "worse"), sum(own["verdict"] == "better")
        rest = f", {better} better" if better else ""
        return f"{worse} of {len(own)} worse than {reference}{rest}"

    colors = "blue: better, grey: undecided, orange: worse"
    labels = "", "", f"loss minus that of {reference} (nats per token)\n{colors}"
    return _figure(tasks, 0.2 * len(names) + 1.8, labels, draw, _make_room, names, len(tasks))


def plot_rules(judged: pd.DataFrame, random: float = 0.5) -> np.ndarray:
    """How good the sets are that rules choose, between the best (0) and the worst (1) of all.

    Parameters
    ----------
    judged : pandas.DataFrame
        Columns `task`, `rule`, `chosen` (types, such as "down+up+v", written at the right),
        `regret`, `regret_low`, `regret_high`.
    random : float
        The mean regret of a choice at random, from 0 to 1: the dashed line.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        One per task, of a new figure; rules from the top, in the order of the rows.

    Raises
    ------
    ValueError
        A column or rows are missing, a number is not finite.
    """
    numbers = ["regret", "regret_low", "regret_high"]
    tasks = _by_task("judged", judged, ["rule", "chosen"], numbers)
    random = number_between("random", random, 0, 1)
    rules = judged["rule"].unique().tolist()

    def draw(ax, own):
        places = [rules.index(rule) for rule in own["rule"]]
        _draw_intervals(ax, places, own[numbers], BLUE, random, "at random")
        for place, chosen in zip(places, own["chosen"], strict=True):
            right = {"transform": ax.get_yaxis_transform(), "va": "center", "fontsize": FONT}
            ax.text(1.02, place, chosen, **right)
        ax.set_xlim(min(0, *own["regret_low"]) - 0.04, max(1, *own["regret_high"]) + 0.04)
        best = own.loc[own["regret"].idxmin()]
        sure = f"{sum(own['regret_high'] < random)} of {len(own)} choices are better than chance"
        return f"{sure}, best: {best['rule']} ({best['regret']:.2f})"

    labels = "regret (0: best of all sets, 1: worst)", "", ""
    return _figure(tasks, 0.4 * len(rules) + 1.9, labels, draw, rows=rules)


def plot_forgetting(runs: pd.DataFrame) -> np.ndarray:
    """What placements gain on the task against what they lose on unrelated texts.

    Single types are coloured dots, usual sets squares, rivals diamonds, full finetuning is a star;
    sets of three are grey and, but for "down+gate+up" ("MLP"), have no name.

    Parameters
    ----------
    runs : pandas.DataFrame
        Columns `task`, `placement`, `group` (as for `plot_rates`), `gain` (loss before minus after
        training) and `forgetting` (unrelated loss after minus before), both in nats per token.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        One per task, of a new figure. Titles name the placement that gains most.

    Raises
    ------
    ValueError
        A column or rows are missing, a number is not finite, a group is unknown.
    """
    keys, numbers = ["placement", "group"], ["gain", "forgetting"]
    tasks = _by_task("runs", runs, keys, numbers, group=GROUPS)
    tables = {task: own.groupby(keys)[numbers].mean().reset_index() for task, own in tasks.items()}
    note = "forgetting: loss added on unrelated texts; grey: sets of three"
    labels = "gain (nats per token)", "forgetting (nats per token)", note
    return _figure(tables, 5.4, labels, _draw_forgetting, _label_dots)


def _by_task(name: str, table: pd.DataFrame, texts: list, numbers: list, **known) -> dict:
    """{task: its rows} of a frame without gaps; `known` has the allowed values of a column."""
    columns = ["task", *texts, *numbers]
    if missing := [column for column in columns if column not in getattr(table, "columns", ())]:
        raise ValueError(f"{name} lacks the columns {missing}: pass a frame with {columns}")
    if not len(table):
        raise ValueError(f"{name} is an empty frame: there is nothing to draw, pass some rows")
    for column in columns:
        values = table[column]
        fine, expected = values.notna(), "a name"
        if column in numbers:
            fine, expected = np.isfinite(pd.to_numeric(values, errors="coerce")), "a finite number"
        if column in known:
            fine, expected = values.isin([*known[column]]), f"one of {[*known[column]]}"
        for row in table[~fine].to_dict("records"):
            raise ValueError(
                f"{name} holds {column}={row[column]!r} for {row[texts[0]]!r} on {row['task']!r}, "
                f"expected {expected}: mend such rows or leave them out"
            )
    return dict(list(table.reset_index(drop=True).groupby("task", sort=False)))


@styled()
def _figure(tables, height, labels, draw, fit=lambda *_: None, rows=(), columns=2):
    """A panel per task. `draw` returns its finding, `fit` moves texts once the layout is known."""
    columns = min(len(tables), columns)
    lines = -(-len(tables) // columns)
    size = 11 if columns > 1 else 8, min(6, lines * height)
    options = {"squeeze": False, "sharey": bool(rows), "layout": "constrained"}
    figure, grid = plt.subplots(lines, columns, figsize=size, **options)
    axes = grid.ravel()[: len(tables)]
    for ax in grid.ravel()[len(tables) :]:
        ax.remove()
    if rows:
        axes[0].set(yticks=range(len(rows)), yticklabels=rows, ylim=(len(rows) - 0.5, -0.5))
    figure.supxlabel(labels[2], fontsize=FONT + 1)
    sns.despine(fig=figure)
    for place, (ax, (task, own)) in enumerate(zip(axes, tables.items(), strict=True)):
        ax.set_xlabel(labels[0] if place + columns >= len(tables) else "")
        ax.set_ylabel(labels[1] if place % columns == 0 else "")
        ax.set_title(f"{str(task).replace('_', ' ')}: {draw(ax, own)}", loc="left")
    figure.draw_without_rendering()
    for ax in axes:
        letters = int(11.5 * ax.get_window_extent().width / figure.dpi)
        ax.set_title(textwrap.fill(ax.get_title("left"), letters), loc="left", fontsize=FONT + 2)
    figure.draw_without_rendering()
    for ax, own in zip(axes, tables.values(), strict=True):
        fit(ax, own)
    return axes


def _make_room(ax: Axes, _: Any) -> None:
    """Widen the x axis until all texts lie within it."""
    frame = ax.get_window_extent()
    for _ in range(100):
        boxes = Bbox.union([frame, *(text.get_window_extent() for text in ax.texts)])
        low, high = ax.get_xlim()
        pixel = (high - low) / frame.width
        ax.set_xlim(low - (frame.x0 - boxes.x0) * pixel, high + (boxes.x1 - frame.x1) * pixel)


def _draw_row(ax: Axes, place: int, losses: pd.Series, top: float) -> None:
    """Dots from the lowest to the highest, their median, and the names of both ends."""
    ax.vlines(losses.median(), place - 0.36, place + 0.36, color=DARK, lw=3, zorder=0)
    far, losses = losses[losses > top], losses[losses <= top]
    if len(far):
        style = {"ha": "left", "va": "center", "fontsize": FONT, "textcoords": "offset points"}
        numbers = ", ".join(f"{loss:.2f}" for loss in far)
        ax.annotate(f"→ {numbers}", (losses.max(), place), (8, 0), color=BLUE, **style)
    jitter = np.random.default_rng(0).uniform(-0.22, 0.22, len(losses))
    ax.scatter(losses, place + jitter, s=34, color=BLUE, alpha=0.8, edgecolor="white", lw=0.5)
    if len(losses) <= LABELLED:
        for end, side, shift in ((-1, "left", 7), (0, "right", -7))[: len(losses)]:
            style = {"ha": side, "va": "center", "fontsize": FONT, "textcoords": "offset points"}
            ax.annotate(losses.index[end], (losses.iloc[end], place), (shift, 0), **style)


def _fence(losses: pd.Series) -> float:
    """Up to where an axis has to reach: what is far above all others does not stretch it."""
    quarter, rest = losses.quantile([0.25, 0.75])
    return min(losses.max(), rest + FENCE * (rest - quarter))


def _span(task: str, own: pd.DataFrame) -> str:
    means = own[own["kind"] == own["kind"].iloc[0]].groupby("placement")["loss"].mean()
    return f"{own['kind'].iloc[0]} lie within {np.ptp(means):.2f} nats per token"


def _draw_rates(ax: Axes, table: pd.DataFrame) -> str:
    """Lines within what most losses span; names at the right, at their lines' heights."""
    low = table["loss"].min()
    top = max(table.groupby("placement")["loss"].min().max(), _fence(table["loss"]))
    room = 0.04 * (top - low) or 0.1
    rates = sorted(table["lr"].unique())
    ax.set(xscale="log", ylim=(low - room, top + room), xlim=(rates[0] / 1.1, rates[-1] * 1.1))
    ax.set_xticks(rates, [_short(rate) for rate in rates])
    ax.minorticks_off()
    for (name, group), own in table.groupby(["placement", "group"]):
        is_named = group == "single" or name in MAIN
        color = _color(name, group) if is_named else GREY
        style = {
            "color": color,
            "lw": 1.8 if is_named else 0.8,
            "ls": DASHES.get(name, "-"),
        }
        ax.plot(own["lr"], own["loss"], marker=".", zorder=2 + is_named, label=name, **style)
        if is_named:
            end = own.loc[own["loss"] <= top, ["lr", "loss"]].iloc[-1]
            leader = {"arrowstyle": "-", "ls": ":", "color": color, "shrinkB": 0}
            style = {"fontsize": FONT, "va": "center", "color": color, "arrowprops": leader}
            style["textcoords"] = ax.get_yaxis_transform()
            ax.annotate(MAIN.get(name, name), end, (1.03, end["loss"]), **style)
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
