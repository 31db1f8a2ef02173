"""A picture of the within-function test: does the best placement move with the score?"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from plop_nb.palette import styled
from plop_nb.stats import mean_interval

OWN, OTHER = sns.color_palette("colorblind")[0], sns.color_palette("colorblind")[1]
LEVEL = 0.95
SHIFT = 0.02  # of a placement's marks to the side, so that bars do not cover each other
COLUMNS = {"task", "form", "chosen_by", "types", "seed", "loss"}


@styled()
def plot_crossing(runs: pd.DataFrame) -> np.ndarray:
    """Loss of two placements in two forms of one function, one panel per task.

    A large ring marks, in each form, the placement that its scores choose. Lines that cross so that
    the ringed ones are lower say that the best placement moves with the score.

    Parameters
    ----------
    runs : pandas.DataFrame
        Columns `task`, `form`, `chosen_by` (the form whose scores chose the placement), `types`,
        `seed`, `loss` (nats per token); for each task two forms and all four combinations.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        One per task, of a new figure. Bars: 95 % intervals over seeds.

    Raises
    ------
    ValueError
        A column is missing, there are no runs, a task has not two forms with both placements, or
        one of these has fewer than two seeds or a loss that is not finite.
    """
    if missing := COLUMNS - set(getattr(runs, "columns", ())):
        raise ValueError(f"runs lacks the columns {sorted(missing)}: pass those of forms.csv")
    tasks = dict(list(runs.groupby("task", sort=False)))
    if not tasks:
        raise ValueError("runs is an empty frame: there is nothing to draw")
    for task, own in tasks.items():
        _check(task, own)
    figure, axes = plt.subplots(
        1, len(tasks), figsize=(5 * len(tasks), 4), squeeze=False, layout="constrained"
    )
    for ax, (task, own) in zip(axes[0], tasks.items(), strict=True):
        _draw(ax, task, own)
    axes[0][0].set_ylabel("test loss (nats per token)")
    bars = f"bars: {100 * LEVEL:.0f} % over seeds"
    ring = "ring: where the scores of this form are lowest"
    figure.supxlabel(f"{ring}; {bars}", fontsize=10)
    sns.despine(fig=figure)
    return axes[0]


def _check(task: str, runs: pd.DataFrame) -> None:
    """Refuse a task that is not two forms, each with its own choice and that of the other."""
    forms = set(runs["form"])
    cells = runs.groupby(["form", "chosen_by"]).ngroups
    if len(forms) != 2 or cells != 4:
        raise ValueError(
            f"runs of task {task!r} have {len(forms)} forms and {cells} cells, expected 2 forms "
            "with what each of them chooses: 4 cells"
        )
    if set(runs["chosen_by"]) != forms:
        raise ValueError(
            f"runs of task {task!r} are chosen by {sorted(set(runs['chosen_by']))}, expected its "
            f"forms {sorted(forms)}: chosen_by names the form whose scores chose the placement"
        )


def _draw(ax: Axes, task: str, runs: pd.DataFrame) -> None:
    """One line per placement, from one form to the other."""
    forms = runs["form"].unique().tolist()
    for color, chosen_by in zip((OWN, OTHER), forms, strict=True):
        placement = runs[runs["chosen_by"] == chosen_by]
        losses = [placement.loc[placement["form"] == form, "loss"] for form in forms]
        found = [mean_interval(loss, level=LEVEL) for loss in losses]
        means = [interval.mean for interval in found]
        arms = [interval.high - interval.mean for interval in found]
        places = np.array([0, 1]) + (SHIFT if chosen_by == forms[0] else -SHIFT)
        ax.errorbar(places, means, yerr=arms, color=color, marker="o", capsize=4, lw=1.8)
        ring = {"s": 260, "facecolor": "none", "edgecolor": color, "lw": 2}
        own = forms.index(chosen_by)
        ax.scatter(places[own], means[own], **ring)
        name = f"on {_short(placement['types'].iloc[0])}"
        style = {"color": color, "va": "center", "annotation_clip": False}
        ax.annotate(name, (1, means[1]), (18, 0), textcoords="offset points", **style)
    ax.set_title(f"{task}: {_finding(runs)}", loc="left", fontsize=11)
    ax.set_xlim(-0.25, 1.25)
    ax.set_xticks([0, 1], [f"form “{form}”" for form in forms])


def _finding(runs: pd.DataFrame) -> str:
    """Which placement has the lower mean loss, in words."""
    means = runs.groupby(["form", "chosen_by"])["loss"].mean().unstack()
    best = means.idxmin(axis=1)
    if best.nunique() == 1:
        types = runs.loc[runs["chosen_by"] == best.iloc[0], "types"].iloc[0]
        return f"{_short(types)} lower in both forms"
    moves = (best == best.index).all()
    return (
        "the lower one moves with the score" if moves else "the lower one moves against the score"
    )


def _short(types: str) -> str:
    return types.replace("_proj", "").replace("+", ", ")
