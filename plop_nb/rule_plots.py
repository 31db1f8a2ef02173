"""Pictures of rules that choose a placement: how good their choices are, and what is forgotten."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from plop_nb.benchmark_plots import BLUE, GREY, GROUPS, MAIN
from plop_nb.checks import number_between
from plop_nb.palette import DARK, type_color
from plop_nb.panels import FONT, by_task, draw_intervals, label_dots, panels_of

RIVAL = "#86653A"  # not the colour of a type
MARKERS = {"single": "o", "triple": "o", "fixed": "s", "rival": "D", "full": "*"}


def plot_rules(
    judged: pd.DataFrame,
    random: float | Mapping = 0.5,
    finding: Mapping | None = None,
    *,
    marked: Mapping[str, Any] | None = None,
    note: str = "",
) -> np.ndarray:
    """How good the choices of rules are, between the best (0) and the worst (1) of all sets.

    Parameters
    ----------
    judged : pandas.DataFrame
        Columns `task`, `choice` (the name of a row: a set of types, the rules that choose it, or
        both), `regret`, `regret_low`, `regret_high`.
    random : float or dict
        The mean regret of a choice at random, from 0 to 1, or {task: this}: the dashed line.
    finding : dict, optional
        {task: what its title says}. By default, which are better than chance (how many, if more
        than two).
    marked : dict, optional
        {choice: its colour}: all others are grey. By default, all are blue.
    note : str
        What the intervals hold for, and of which model and seeds: a line below.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        One per task, of a new figure; choices from the top, in the order of the rows.

    Raises
    ------
    ValueError
        A column or rows are missing, a number is not finite, `finding` or `random` lacks a task.
    """
    numbers = ["regret", "regret_low", "regret_high"]
    tasks = by_task("judged", judged, ["choice"], numbers)
    chance = dict(random) if isinstance(random, Mapping) else dict.fromkeys(tasks, random)
    if missing := [task for task in tasks if task not in chance]:
        raise ValueError(f"random={random!r} lacks {missing}: add a number for each task")
    for task in tasks:
        number_between("random", chance[task], 0, 1)
    choices = judged["choice"].unique().tolist()

    def draw(ax, own):
        places = [choices.index(choice) for choice in own["choice"]]
        line = chance[own["task"].iloc[0]]
        colors = [BLUE if marked is None else marked.get(name, GREY) for name in own["choice"]]
        draw_intervals(ax, places, own[numbers], colors, line, "at random")
        ax.set_xlim(min(0, *own["regret_low"]) - 0.04, max(1, *own["regret_high"]) + 0.04)
        ahead = own.loc[own["regret_high"] < line, "choice"].tolist()
        said = " and ".join(ahead or ["none"]) if len(ahead) < 3 else f"{len(ahead)} of {len(own)}"
        return f"{said} ahead of chance"

    labels = "regret (0: best of all sets, 1: worst)", "", note
    options = {"rows": choices}
    return panels_of(tasks, 0.4 * len(choices) + 1.9, labels, draw, finding, **options)


def plot_alone(
    losses: pd.DataFrame, label: str, finding: Mapping | None = None, note: str = ""
) -> np.ndarray:
    """A number of each type against the loss of adapters on this type alone.

    Parameters
    ----------
    losses : pandas.DataFrame
        Columns `task`, `type`, `value` (such as the type's score), `loss` (nats per token).
        Several losses of a type are its runs: a line joins the lowest and the highest, and a dot
        is their mean.
    label : str
        What `value` is, on the x axis.
    finding : dict, optional
        {task: what its title says}. By default, the rank correlation (Spearman).
    note : str
        Of which task, rates and seeds the losses are: a line below.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        One per task, of a new figure.

    Raises
    ------
    ValueError
        A column or rows are missing, a number is not finite, `finding` lacks a task.
    """
    tasks = by_task("losses", losses, ["type"], ["value", "loss"])

    def draw(ax, own):
        means = own.groupby("type")[["value", "loss"]].mean()
        for name, (value, loss) in means.iterrows():
            runs = own.loc[own["type"] == name, "loss"]
            color = type_color(str(name))
            ax.vlines(value, runs.min(), runs.max(), color=color, lw=1.6)
            ax.scatter(value, loss, s=50, color=color, zorder=3)
        ax.margins(0.15)
        return f"rank correlation {means['value'].corr(means['loss'], method='spearman'):.2f}"

    labels = label, "loss (nats per token)", note
    return panels_of(tasks, 4.4, labels, draw, finding, fit=_label_types)


def plot_forgetting(
    runs: pd.DataFrame,
    finding: Mapping | None = None,
    *,
    named: Mapping[str, str] | None = None,
    note: str = "",
) -> np.ndarray:
    """What placements gain on the task against what they lose on unrelated texts.

    Single types are coloured dots, usual sets squares, rivals diamonds, full finetuning is a star;
    sets of three are grey and without a name, but for the named ones, which are dark.

    Parameters
    ----------
    runs : pandas.DataFrame
        Columns `task`, `placement`, `group` (as for `plot_rates`), `gain` (loss before minus after
        training) and `forgetting` (unrelated loss after minus before), both in nats per token.
    finding : dict, optional
        {task: what its title says}. By default, which placement gains most.
    named : dict, optional
        {placement: its label}: by default "all", "attention" and "down+gate+up" (MLP).
    note : str
        Of which rate and seeds the runs are: a line below.

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
    named = MAIN if named is None else named
    said = "forgetting: loss added on unrelated texts; grey: the other sets of three"
    labels = "gain (nats per token)", "forgetting (nats per token)", f"{said}\n{note}".strip()
    options = {"fit": partial(_label_gains, named=named)}
    draw = partial(_draw_forgetting, named=named)
    return panels_of(tables, 5.4, labels, draw, finding, **options)


def _draw_forgetting(ax: Axes, table: pd.DataFrame, named: Mapping[str, str]) -> str:
    ax.margins(x=0.1, y=0.2)
    for name, group, gain, forgetting in table.to_numpy():
        color, size = _color(name, group, named), 200 if group == "full" else 50
        style = {"edgecolor": "white", "lw": 0.5, "zorder": 2 if color == GREY else 3}
        ax.scatter(gain, forgetting, size, color=color, marker=MARKERS[group], **style)
    name, _, gain, forgetting = table.loc[table["gain"].idxmax()]
    return f"{name} gains most ({gain:.2f}), forgets {forgetting:+.2f}"


def _label_gains(ax: Axes, table: pd.DataFrame, named: Mapping[str, str]) -> None:
    """Names of all but the sets of three."""
    note = {"xycoords": "axes fraction", "ha": "right", "va": "bottom", "fontsize": FONT + 1}
    taken = [ax.annotate("better ↘", (0.995, 0.01), **note).get_window_extent()]
    labels = []
    for name, group, *at in table[["placement", "group", "gain", "forgetting"]].to_numpy():
        told = "" if group == "triple" and name not in named else named.get(name, name)
        labels.append((told, tuple(at), _color(name, group, named)))
    label_dots(ax, labels, taken)


def _label_types(ax: Axes, runs: pd.DataFrame) -> None:
    means = runs.groupby("type")[["value", "loss"]].mean()
    labels = [(str(name), tuple(at), type_color(str(name))) for name, at in means.iterrows()]
    label_dots(ax, labels, [])


def _color(placement: str, group: str, named: Mapping[str, str]) -> Any:
    others = {"single": type_color(placement), "triple": GREY, "rival": RIVAL}
    return DARK if placement in named else others.get(group, DARK)
