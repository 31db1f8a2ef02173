"""Pictures of rules that choose a placement: how good their choices are, and what is forgotten."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from plop_nb.checks import number_between
from plop_nb.palette import DARK, label_lines, styled, type_color, type_role
from plop_nb.panels import FONT, by_task, label_dots, panels_of
from plop_nb.plots import axes_for

LETTERS = 15  # in a line of the name of a kind
APART = 0.28  # of a row, from a choice to the next
AREA = 110  # of the largest dot, in square points
LINEAR = 0.1  # nats: forgetting is drawn linearly up to here, by its logarithm above
TICKS = np.array([-0.1, 0, 0.1, 0.3, 1, 3, 10, 30])
LOOKS = [("-", "o"), ("--", "s"), (":", "^"), ("-.", "D")]


@styled()
def plot_choices(
    judged: pd.DataFrame,
    chance: Mapping[str, float],
    colors: Mapping[str, Any],
    *,
    reference: str,
    titles: Sequence[str] | None = None,
    note: str = "",
) -> np.ndarray:
    """Choices of a few rules between the best and the worst of all sets, and against one of them.

    Parameters
    ----------
    judged : pandas.DataFrame
        From `experiments.judge_choices`: `task` (the kind of runs), `choice`, `regret`,
        `regret_low`, `regret_high`, `difference` (nats per token), `low`, `high`.
    chance : dict
        {kind: the mean regret of a choice at random}, from 0 to 1: the dashed lines on the left.
    colors : dict
        {choice: its colour}: these are drawn, from the top in this order.
    reference : str
        The choice that the others were compared with: the line at zero on the right.
    titles : two of str, optional
        What the panels say. By default, in how many kinds each choice is ahead of chance, and how
        many differences are decided.
    note : str
        What the intervals hold for, and of which model and seeds: a line below.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        Two, of a new figure: regrets, differences. A row a kind, in the order of `judged`.

    Raises
    ------
    ValueError
        A column, a choice or rows are missing, a number is not finite, `chance` lacks a kind.
    """
    numbers = ["regret", "regret_low", "regret_high", "difference", "low", "high"]
    kinds = by_task("judged", judged, ["choice"], numbers)
    if unknown := {*colors, reference} - {*judged["choice"]}:
        raise ValueError(f"judged has no rows of {sorted(unknown)}: take them out of colors")
    if missing := [kind for kind in kinds if kind not in chance]:
        raise ValueError(f"chance={dict(chance)!r} lacks {missing}: add a number for each kind")
    options = {"sharey": True, "layout": "constrained"}
    figure, axes = plt.subplots(1, 2, figsize=(11, 0.75 * len(kinds) + 1.7), **options)
    sns.despine(fig=figure)
    ahead, decided = dict.fromkeys(colors, 0), 0
    for row, (kind, own) in enumerate(kinds.items()):
        line = number_between("chance", chance[kind], 0, 1)
        axes[0].vlines(line, row - 0.42, row + 0.42, color=DARK, lw=1, ls="--")
        for number, (name, color) in enumerate(colors.items()):
            place = row + APART * (number - (len(colors) - 1) / 2)
            found = own.loc[own["choice"] == name, numbers].to_numpy()
            for ax, (value, low, high) in zip(axes, found.reshape(-1, 3)[:2], strict=True):
                if ax is axes[0] or name != reference:
                    ax.hlines(place, low, high, color=color, lw=1.8)
                    ax.scatter(value, place, color=color, s=34, zorder=3)
            regret_high, low, high = found[0, [2, 4, 5]]
            ahead[name] += int(regret_high < line)
            decided += int(name != reference and not low <= 0 <= high)
            if row == 0:
                style = {"textcoords": "offset points", "va": "center", "color": color}
                axes[0].annotate(name, (regret_high, place), (6, 0), size=FONT + 1, **style)
    style = {"ha": "center", "va": "bottom", "fontsize": FONT}
    axes[0].text(chance[next(iter(kinds))], -0.44, "at random", **style)
    axes[1].vlines(0, -0.42, len(kinds) - 0.5, color=DARK, lw=1, ls="--", zorder=0)
    axes[1].text(0, -0.44, reference, **style)
    wrapped = [textwrap.fill(str(kind), LETTERS) for kind in kinds]
    axes[0].set(yticks=range(len(kinds)), yticklabels=wrapped, ylim=(len(kinds) - 0.5, -0.8))
    axes[0].set(xlim=(-0.03, 1.03), xlabel="regret (0: the best of all sets, 1: the worst)")
    axes[1].set_xlabel(f"loss minus that of {reference} (nats per token)")
    counts = ", ".join(f"{name} in {count} of {len(kinds)}" for name, count in ahead.items())
    told = f"Ahead of chance: {counts}", f"{decided} of {len(kinds) * (len(colors) - 1)} decided"
    for ax, title in zip(axes, titles or told, strict=True):
        ax.set_title(title, loc="left", fontsize=FONT + 2)
    figure.supxlabel(note, fontsize=FONT + 1)
    return axes


def plot_alone(
    losses: pd.DataFrame, label: str, finding: Mapping | None = None, note: str = ""
) -> np.ndarray:
    """A number of each type against the loss of adapters on this type alone.

    Parameters
    ----------
    losses : pandas.DataFrame
        Columns `task`, `type`, `value` (such as the type's score), `loss` (nats per token).
        Several losses of a type are its runs: a line joins the lowest and the highest, and a dot
        is their mean. If there is a column `size`, the areas of the dots follow it.
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
    sized = ["size"] if "size" in getattr(losses, "columns", ()) else []
    tasks = by_task("losses", losses, ["type"], ["value", "loss", *sized])

    def draw(ax, own):
        means = own.groupby("type")[["value", "loss", *sized]].mean()
        for name, (value, loss, *size) in means.iterrows():
            runs = own.loc[own["type"] == name, "loss"]
            color = type_color(str(name))
            area = AREA * size[0] / means["size"].max() if size else 50
            ax.vlines(value, runs.min(), runs.max(), color=color, lw=1.6)
            ax.scatter(value, loss, s=area, color=color, zorder=3)
        ax.margins(0.15)
        return f"rank correlation {means['value'].corr(means['loss'], method='spearman'):.2f}"

    labels = label, "loss (nats per token)", note
    return panels_of(tasks, 4.4, labels, draw, finding, fit=_label_types)


@styled()
def plot_forgetting(
    runs: pd.DataFrame,
    named: Mapping[str, str],
    *,
    title: str | None = None,
    note: str = "",
    ax: Axes | None = None,
) -> Axes:
    """What placements lose on unrelated texts, over the learning rate.

    A line through the means of the seeds, and at each rate a bar from the lowest to the highest.
    Single types have their colours. The axis is linear up to 0.1 nats, and logarithmic above.

    Parameters
    ----------
    runs : pandas.DataFrame
        Columns `placement`, `lr`, `forgetting` (unrelated loss after the training minus before,
        nats per token).
    named : dict
        {placement: its label}: these are drawn.
    title : str, optional
        None by default.
    note : str
        Of which model and seeds the runs are: a line below.
    ax : matplotlib Axes, optional
        Where to draw: by default the current axes, or new ones where no figure is open.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        A column or the runs of a placement are missing, a number is not finite, or a rate is not
        positive.
    """
    told = runs.assign(task="all placements") if hasattr(runs, "assign") else runs
    by_task("runs", told, ["placement"], ["lr", "forgetting"])
    if missing := [name for name in named if name not in {*runs["placement"]}]:
        raise ValueError(f"runs has no runs of {missing}: take them out of named")
    if (runs["lr"] <= 0).any():
        raise ValueError(f"runs holds lr={runs['lr'].min()}: pass rates above 0")
    ax = axes_for(ax, width=8.5, height=5)
    ax.set_xscale("log")
    ax.set_yscale("symlog", linthresh=LINEAR, linscale=0.6)
    ends, top = {}, LINEAR
    for number, (placement, label) in enumerate(named.items()):
        own = runs.loc[runs["placement"] == placement].groupby("lr")["forgetting"]
        table = own.agg(["min", "max", "mean"])
        across = table.index * 1.015 ** (number - (len(named) - 1) / 2)  # so that bars stay apart
        color = type_color(placement) if type_role(placement) else DARK
        dashes, marker = LOOKS[number % len(LOOKS)]
        ax.plot(across, table["mean"], color=color, ls=dashes, marker=marker, lw=1.6, zorder=3)
        ax.vlines(across, table["min"], table["max"], color=color, lw=1.2)
        ends[label] = (table.index[-1] * 1.015 ** (len(named) / 2), table["mean"].iloc[-1], color)
        top = max(top, table["max"].max())
    rates = sorted(runs.loc[runs["placement"].isin(list(named)), "lr"].unique())
    ax.set_xticks(
        rates, [np.format_float_scientific(rate, trim="-", exp_digits=1) for rate in rates]
    )
    ax.set_yticks(
        TICKS[top >= TICKS], [f"{tick:g}".replace("-", "−") for tick in TICKS[top >= TICKS]]
    )
    ax.minorticks_off()
    ax.axhline(0, color="0.8", lw=0.8, zorder=0)
    ax.set_xlabel(f"learning rate\n{note}".strip())
    ax.set_ylabel("forgetting (nats per token;\nlinear up to 0.1, logarithmic above)")
    ax.set_title(title or "", loc="left")
    label_lines(ax, ends, size=FONT + 1)
    return ax


def _label_types(ax: Axes, runs: pd.DataFrame) -> None:
    means = runs.groupby("type")[["value", "loss"]].mean()
    labels = [(str(name), tuple(at), type_color(str(name))) for name, at in means.iterrows()]
    label_dots(ax, labels, [])
