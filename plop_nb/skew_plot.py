"""Pictures of the stopping rule: one run of it, and why its t-test errs on skewed texts."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter
from numpy.typing import ArrayLike
from scipy import stats

from plop_nb.palette import DARK, label_lines, styled

FOUND, KEPT = "0.75", "0.35"  # what was counted; a tail that holds no more than it may
HEAVY = "#B3261E"  # a tail that holds more
LEVELS = (DARK, "0.5")  # what was found, and what it has to reach
PALE = "0.4"  # of what explains
BINS = 40


@styled()
def plot_looks(
    table: pd.DataFrame,
    stop: int | None = None,
    *,
    title: str = "",
    source: str = "",
    ax: Axes | None = None,
) -> Axes:
    """One run of the stopping rule, look by look: a line per column, such as t and the least t.

    Parameters
    ----------
    table : pandas.DataFrame
        One row per look; its index is the number of texts. The first column has a ring at `stop`.
    stop : int, optional
        Number of texts at which the run stops: what comes after it is pale.
    title, source, ax : str, str, matplotlib Axes, optional
        The finding in a line; on what; where to draw, a new figure by default.

    Raises
    ------
    ValueError
        `table` is empty.
    """
    if not len(table):
        raise ValueError("table is empty, expected one row per look")
    ax = plt.subplots(figsize=(9, 3.6), layout="constrained")[1] if ax is None else ax
    ax.set_title(title, pad=26 if source else 10)
    ax.annotate(source, (0, 1), (0, 9), xycoords="axes fraction", textcoords="offset points",
                color=PALE, size=11)  # fmt: skip
    until = table if stop is None else table.loc[:stop]
    after = table.loc[until.index[-1] :]
    for name, color, line in zip(table, LEVELS, ("-", "--"), strict=False):
        ax.plot(until.index, until[name], color=color, lw=2, ls=line, marker="o", ms=5)
        if len(after) > 1:
            ax.plot(after.index, after[name], color=color, lw=2, ls=line, marker="o", ms=5,
                    alpha=0.3, zorder=0)  # fmt: skip
    if stop is not None:
        ring = (stop, table.iloc[:, 0][stop])
        ax.plot(*ring, "o", ms=15, mfc="none", color=DARK, mew=1.5)
        said = "stops (pale: if it went on)" if len(after) > 1 else "stops"
        ax.annotate(said, ring, (-6, 11), textcoords="offset points", ha="right", weight="bold")
    ax.set_xscale("log")
    ax.set_xticks(table.index, [str(n) for n in table.index])
    ax.minorticks_off()
    ax.set(xlabel="texts n at a look (logarithmic scale)", ylabel="t of the paired test")
    ax.set_ylim(min(0, table.min(axis=None)), 1.1 * table.max(axis=None))
    ends = zip(table.iloc[-1].items(), LEVELS, strict=False)
    label_lines(ax, {name: (table.index[-1], value, color) for (name, value), color in ends})
    return ax


@styled()
def plot_skew(
    differences: ArrayLike,
    t: ArrayLike,
    texts: int,
    level: float,
    *,
    pair: tuple[str, str] = ("one", "other"),
    title: str = "",
    source: str = "",
) -> np.ndarray:
    """A difference of two types on single texts, and t of few of them, where the types are tied.

    Parameters
    ----------
    differences : array_like
        One per text, in percent of the second type, about 0 in the mean. To the left, with the same
        histogram mirrored at 0: where the two differ, they are skewed.
    t : array_like
        Of many draws of `texts` texts. To the right, on a logarithmic scale, with Student's curve.
    texts : int
        In a draw, two or more.
    level : float
        Of the one-sided test. Lines at the t that it needs on each side, and the share of draws
        beyond them, which would be `level` if differences were normal. A tail that holds more is
        red, the other one dark grey.
    pair : tuple of str
        The two types: the difference is the first minus the second.
    title, source : str
        The finding in a line; below it, on what model and texts.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        Two, of a new figure.

    Raises
    ------
    ValueError
        `differences` or `t` is empty or holds a number that is not finite, or `texts` is below two.
    """
    differences, t = np.asarray(differences, dtype=float), np.asarray(t, dtype=float)
    for name, values in (("differences", differences), ("t", t)):
        if not values.size or not np.isfinite(values).all():
            raise ValueError(f"{name} is empty or not finite, expected one number per text or draw")
    if texts < 2:
        raise ValueError(f"texts={texts}, expected two or more: t needs a deviation")
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.4), layout="constrained")
    _draw_texts(axes[0], differences)
    axes[0].set_xlabel(f"{pair[0]} minus {pair[1]}, % of the score of {pair[1]}")
    axes[0].set_title(source, color=PALE, weight="normal", size=11)
    figure.get_layout_engine().set(wspace=0.05)
    _draw_t(axes[1], t, texts, level, pair)
    figure.suptitle(title, x=0.01, ha="left", weight="bold", fontsize=14)
    return axes


def _draw_texts(ax: Axes, differences: np.ndarray) -> None:
    """The histogram of single texts, and its mirror image."""
    end = 1.2 * abs(differences).max()  # the tails shall not touch the frame
    counts, edges, _ = ax.hist(differences, bins=np.linspace(-end, end, BINS + 1), color=FOUND)
    mirrored = [*counts[::-1], counts[0]]  # the last bin has an end, too
    ax.step(edges, mirrored, where="post", color=DARK, lw=1.3)
    said = f"bars: single texts, skewness {stats.skew(differences):.2f}\nline: the same, mirrored"
    ax.annotate(said, (0.98, 0.97), xycoords="axes fraction", ha="right", va="top", size=11)
    ax.set(ylabel="texts in a bin", xlim=(-end, end), ylim=(0, 1.3 * ax.get_ylim()[1]))


def _draw_t(ax: Axes, t: np.ndarray, texts: int, level: float, pair: tuple[str, str]) -> None:
    """The histogram of t, Student's curve, and the two tails beyond the t that is needed."""
    least = stats.t.isf(level, texts - 1)
    half = 2.2 * least
    edges = np.linspace(-half, half, 2 * BINS + 1)
    counts, _ = np.histogram(t, edges)
    shares = 100 * counts / len(t)  # percent of the draws in a bin
    middles = (edges[:-1] + edges[1:]) / 2
    tails = {-1: np.mean(t < -least), 1: np.mean(t > least)}
    of_side = {side: HEAVY if share > level else KEPT for side, share in tails.items()}
    outer = np.where(middles < 0, of_side[-1], of_side[1])
    ax.bar(middles, shares, np.diff(edges), color=np.where(abs(middles) > least, outer, FOUND))
    curve = 100 * stats.t.pdf(middles, texts - 1) * np.diff(edges)
    ax.plot(middles, curve, color=DARK, lw=1.5, ls="--")
    top = 30 * curve.max()
    ax.set(yscale="log", ylim=(50 / len(t), top), xlim=(-half, half))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for side, share in tails.items():
        ax.axvline(side * least, color="0.6", lw=1, ls=":")
        says = f"{pair[0]} seems\n{'lower' if side < 0 else 'higher'} in {100 * share:.2f} %"
        said = f"{says}\n(normal: {100 * level:.2f} %)"
        ax.annotate(said, (side * least * 1.08, top / 1.3), ha="right" if side < 0 else "left",
                    va="top", color=of_side[side], size=10)  # fmt: skip
    ax.annotate("dashed:\nStudent's t", (0, top / 1.3), ha="center", va="top", size=11)
    outside = 100 * np.mean(np.abs(t) > half)
    ax.set_xlabel(
        f"t of {texts} texts, {len(t):,} draws; dotted: the t that the test needs\n"
        f"({outside:.2f} % of the draws are beyond ±{half:.1f})"
    )
    ax.set_ylabel("draws in a bin (%, logarithmic)")
