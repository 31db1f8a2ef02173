"""Pictures of training with rewards: a group and its advantages, rates, differences."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from plop_nb.palette import DARK, styled
from plop_nb.panels import FONT

GREY = "0.6"
LIKELIER, RARER = "#0A6E5C", "#B5500B"  # told apart also by which side of zero they are on
VERDICTS = {"better": LIKELIER, "worse": RARER, "undecided": DARK}
LINES = [("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"), ("-", "v"), ("--", "x")]


@styled()
def plot_group(
    completions: Sequence[str],
    rewards: Sequence[float],
    advantages: Sequence[float],
    ax: Axes | None = None,
) -> Axes:
    """The completions of one prompt, what each earned, and what GRPO makes of it.

    Parameters
    ----------
    completions : sequence of str
    rewards, advantages : sequence of float
        As many; an advantage is the reward minus the group's mean, over its standard deviation.
    ax : matplotlib.axes.Axes, optional
        A new figure by default.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        The three differ in length, or are empty.
    """
    sizes = len(completions), len(rewards), len(advantages)
    if len(set(sizes)) > 1 or not sizes[0]:
        raise ValueError(
            f"completions, rewards and advantages have the lengths {sizes}: pass one of each for "
            f"every completion of a prompt"
        )
    if ax is None:
        _, ax = plt.subplots(figsize=(8, 0.42 * sizes[0] + 1.4), layout="constrained")
    places = np.arange(sizes[0])
    colors = [LIKELIER if value > 0 else RARER for value in advantages]
    ax.barh(places, advantages, color=colors, height=0.6)
    ax.axvline(0, color=DARK, lw=1)
    labels = []
    for text, reward in zip(completions, rewards, strict=True):
        shown = " ".join(text.split())
        labels.append(f"{shown[:32]}   earns {reward:g}")
    ax.set_yticks(places, labels, fontsize=FONT + 1, family="monospace")
    ax.invert_yaxis()
    reach = 1.15 * max(1, np.abs(advantages).max())
    ax.set(xlim=(-reach, reach), xlabel="advantage (standard deviations of the group)")
    ax.text(-reach, -0.9, "becomes rarer", color=RARER, fontsize=FONT + 1)
    ax.text(reach, -0.9, "becomes likelier", color=LIKELIER, fontsize=FONT + 1, ha="right")
    ax.set_ylim(top=-1.2)
    return ax


@styled()
def plot_chances(
    runs: pd.DataFrame, named: Mapping[str, str], before: float, ax: Axes | None = None
) -> Axes:
    """How well each placement answers after training, against the learning rate.

    Parameters
    ----------
    runs : pandas.DataFrame
        Columns `placement`, `lr`, `seed`, `validation` (mean chance of a right answer, 0 to 1).
    named : dict
        {placement: its colour}, in the order of the legend.
    before : float
        The chance before training: a dashed line.
    ax : matplotlib.axes.Axes, optional
        A new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        Lines through the means over seeds, a dot for each seed, a ring around each best mean.

    Raises
    ------
    ValueError
        A column is missing, or a placement of `named` has no run.
    """
    columns = ["placement", "lr", "seed", "validation"]
    if missing := [column for column in columns if column not in runs]:
        raise ValueError(f"runs lacks the columns {missing}: pass a frame with {columns}")
    if missing := [name for name in named if name not in set(runs["placement"])]:
        raise ValueError(f"named={list(named)} has {missing[0]!r}, of which runs has no run")
    if ax is None:
        _, ax = plt.subplots(figsize=(8.5, 4.6), layout="constrained")
    for (name, color), (dashes, marker) in zip(named.items(), LINES * len(named), strict=False):
        own = runs[runs["placement"] == name]
        means = own.groupby("lr")["validation"].mean()
        ax.scatter(own["lr"], own["validation"], color=color, s=12, alpha=0.4, lw=0)
        ax.plot(means.index, means, ls=dashes, marker=marker, color=color, lw=1.8, label=name)
        best = means.idxmax()
        ring = {"facecolor": "none", "edgecolor": color, "s": 160, "lw": 1.5}
        ax.scatter([best], [means[best]], **ring)
    rates = sorted(runs["lr"].unique())
    ax.set(xscale="log", ylabel="chance of a right answer")
    ax.set_xticks(rates, [f"{rate:.1e}".replace("e-0", "e-").replace(".0", "") for rate in rates])
    ax.minorticks_off()
    ax.axhline(before, color=GREY, ls="--", lw=1)
    ax.annotate("before", (rates[0], before), (0, 4), textcoords="offset points", color="0.4")
    ax.set_xlabel("learning rate (dots: seeds; lines: their means; rings: the best mean)")
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


@styled()
def plot_gaps(gaps: pd.DataFrame, reference: str, label: str, ax: Axes | None = None) -> Axes:
    """By how much each placement differs from a reference, with intervals.

    Parameters
    ----------
    gaps : pandas.DataFrame
        From `experiments.differences` or `experiments.versus`: `placement`, `difference`, `low`,
        `high`, `verdict`.
    reference : str
        What the others were compared with: the name of the line at zero.
    label : str
        What the x axis shows, with its unit and what the intervals hold for.
    ax : matplotlib.axes.Axes, optional
        A new figure by default.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        A column is missing, or there is no row.
    """
    columns = ["placement", "difference", "low", "high", "verdict"]
    if missing := [column for column in columns if column not in gaps]:
        raise ValueError(f"gaps lacks the columns {missing}: pass a frame with {columns}")
    if not len(gaps):
        raise ValueError("gaps is an empty frame: there is nothing to draw, pass some rows")
    if ax is None:
        _, ax = plt.subplots(figsize=(8, 0.5 * len(gaps) + 1.6), layout="constrained")
    table = gaps.sort_values("difference", ascending=False, ignore_index=True)
    colors = table["verdict"].map(VERDICTS)
    ax.hlines(table.index, table["low"], table["high"], color=colors, lw=2)
    ax.scatter(table["difference"], table.index, color=colors, s=40, zorder=3)
    ax.axvline(0, color=DARK, lw=1, ls="--", zorder=0)
    ax.set_yticks(table.index, table["placement"])
    ax.set_ylim(len(table) - 0.5, -1)
    ax.annotate(reference, (0, -0.75), ha="center", fontsize=FONT + 1)
    ax.set_xlabel(label)
    return ax
