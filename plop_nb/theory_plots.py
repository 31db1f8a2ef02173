"""The rise of NFN in small networks until what drives it is used up, over what theory says."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from plop_nb.growth_plots import MEASURED, STEP, THEORY, check_table
from plop_nb.palette import DARK, label_lines, styled

COLUMNS = ["step", "seed", "nfn", "baseline"]


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
    baseline = r"baseline $\|W\|_F\,/\,\sqrt{n}$"
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
        ax.annotate(f"{words}:\nmean NFN {nfn[step]:.2f}", (step, nfn[step]), (-12, 6), **style)
    ax.set_title(title, pad=10)
    ax.set(xlabel=STEP, ylabel="NFN; baseline (no unit)", xlim=(0, nfn.index[-1]))
    ax.margins(y=0.15)  # room for the words of a mark
    label_lines(ax, ends)
    return ax


def _check(runs: pd.DataFrame, marks: Mapping[str, int]) -> None:
    """Refuse what cannot be drawn, and say what is missing."""
    check_table(runs, COLUMNS)
    unknown = sorted(set(marks.values()) - set(runs["step"]))
    if unknown:
        raise ValueError(f"marks={dict(marks)}: runs has no step {unknown}")
