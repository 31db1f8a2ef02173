"""The rise of NFN in small networks: over what theory says, and beside inputs not trained on."""

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from plop_nb.checks import positive_integer, positive_number
from plop_nb.growth_plots import MEASURED, STEP, THEORY, check_table
from plop_nb.palette import DARK, label_lines, styled, tint

COLUMNS = ["step", "seed", "nfn", "baseline"]
PALE = tint(MEASURED, 0.35)  # of histograms
WIDE = math.sqrt(2 / math.pi)  # the mean absolute value of a normal number: of z, and of n v


def wide_theory(steps: int, *, eta: float, y: float) -> pd.Series:
    """NFN by step in a linear network of unlimited width, by Theorem 1: one datapoint, SignSGD.

    It is `sqrt(1 + (eta c t)^2)`, with c = sqrt(2 / pi), until the right answer y is reached at
    t = y / (eta c^2); from there on it is constant.

    Parameters
    ----------
    steps : int
        The last step.
    eta, y : float
        The step size (muP), and how far the right answer is from the answer before training.

    Returns
    -------
    pandas.Series
        With the steps 0, 1, ... as its index.

    Raises
    ------
    ValueError
        `steps` is no positive integer, or `eta` or `y` no positive number.

    Examples
    --------
    >>> wide_theory(80, eta=0.05, y=2.0)[[0, 40, 80]].round(2).tolist()
    [1.0, 1.88, 2.7]
    """
    eta, y = positive_number("eta", eta), positive_number("y", y)
    numbers = np.arange(positive_integer("steps", steps) + 1)
    moved = eta * WIDE * np.minimum(numbers, y / (eta * WIDE**2))
    return pd.Series(np.sqrt(1 + moved**2), index=numbers)


@styled()
def plot_alignment(
    runs: pd.DataFrame,
    theory: pd.Series,
    *,
    marks: Mapping[str, int] | None = None,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """NFN and the baseline of networks of one width by step: means, and bands over the middle 95 %.

    Parameters
    ----------
    runs : pandas.DataFrame
        Columns `step`, `seed`, `nfn` and `baseline`.
    theory : pandas.Series
        The NFN of an infinitely wide network, with the steps as its index; dashed.
    marks : dict, optional
        {words: step}: a dot on the mean NFN at this step; these words and the mean left of it.
    title, ax : str, matplotlib Axes, optional
        The finding in a line; where to draw, a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        `runs` lacks a column or is empty, or a mark is at a step that `runs` does not have.
    """
    marks = marks or {}
    _check(runs, marks)
    ax = plt.subplots(figsize=(8.5, 4.4), layout="constrained")[1] if ax is None else ax
    ends = {"theory, n → ∞": (theory.index[-1], theory.iloc[-1], THEORY["color"])}
    baseline = "baseline " + r"$\|W\|_F\,/\,\sqrt{n}$" + "\n(length of the weights)"
    names = {"nfn": ("NFN", MEASURED, 5), "baseline": (baseline, "0.4", 2)}
    for column, (name, color, thick) in names.items():
        values = runs.groupby("step")[column]
        mean, low, high = values.mean(), values.quantile(0.025), values.quantile(0.975)
        ax.fill_between(mean.index, low, high, color=color, alpha=0.25, lw=0)
        ax.plot(mean.index, mean, color=color, lw=thick)
        ends[name] = (mean.index[-1], mean.iloc[-1], color)
    ax.plot(theory.index, theory, **THEORY)
    nfn = runs.groupby("step")["nfn"].mean()
    for words, step in marks.items():
        ax.plot(step, nfn[step], "o", ms=8, color=DARK, zorder=6)
        style = {"textcoords": "offset points", "ha": "right", "color": DARK, "size": 11}
        said = f"{words}\n(mean NFN of the networks: {nfn[step]:.2f})"
        ax.annotate(said, (step, nfn[step]), (-12, 6), **style)
    ax.set_title(title, pad=10)
    ax.set(xlabel=STEP, ylabel="NFN, and the baseline", xlim=(0, nfn.index[-1]))
    ax.margins(y=0.15)  # room for the words of a mark
    label_lines(ax, ends)
    return ax


@styled()
def plot_control(
    scores: Mapping[str, tuple[float, Sequence[float]]], *, title: str = "", ax: Axes | None = None
) -> Axes:
    """NFN of the example that a network is trained on, beside other inputs: a row for each time.

    Of the other inputs: a histogram, a bar over their middle 95 %, and its ends in words.

    Parameters
    ----------
    scores : dict
        {time: (NFN of the example, NFN of each of the other inputs)}, from top to bottom.
    title, ax : str, matplotlib Axes, optional
        The finding in a line; where to draw, a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        `scores` is empty, or a row of it has no other inputs.
    """
    if not scores or not all(len(others) for _, others in scores.values()):
        raise ValueError("scores is empty, expected {time: (NFN of the example, NFN of others)}")
    ax = plt.subplots(figsize=(8.5, 3.4), layout="constrained")[1] if ax is None else ax
    style = {"textcoords": "offset points", "va": "center", "size": 11}
    right = max(max(others) for _, others in scores.values())
    ground = {"fc": "white", "ec": "none", "pad": 1}
    for row, (example, others) in enumerate(scores.values()):
        foot = -float(row)
        counts, edges = np.histogram(others, bins=30)
        ax.stairs(foot + 0.6 * counts / counts.max(), edges, baseline=foot, fill=True, fc=PALE)
        low, high = np.quantile(others, [0.025, 0.975])
        ax.plot([low, high], [foot, foot], color=MEASURED, lw=4, solid_capstyle="butt")
        said = f"{len(others):,} other inputs:\n95 % from {low:.2f} to {high:.2f}"
        ax.annotate(said, (right, foot + 0.3), (8, 0), color=MEASURED, **style)
        ax.plot(example, foot, "o", ms=9, color=DARK, zorder=6)
        said = f"the example: {example:.2f}"
        ax.annotate(said, (example, foot), (0, -14), ha="center", bbox=ground, **style)
    ax.axvline(1, color="0.6", lw=1, zorder=0)
    ax.set(xlabel="NFN (1: like noise of the same length)", ylim=(0.55 - len(scores), 0.7))
    ax.set_yticks([-float(row) for row in range(len(scores))], list(scores))
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.set_title(title, pad=10)
    return ax


def _check(runs: pd.DataFrame, marks: Mapping[str, int]) -> None:
    """Refuse what cannot be drawn, and say what is missing."""
    check_table(runs, COLUMNS)
    unknown = sorted(set(marks.values()) - set(runs["step"]))
    if unknown:
        raise ValueError(f"marks={dict(marks)}: runs has no step {unknown}")
