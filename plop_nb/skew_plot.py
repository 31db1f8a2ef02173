"""Picture of why a t-test errs: its texts are skewed, and so its t is skewed the other way."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter
from numpy.typing import ArrayLike
from scipy import stats

from plop_nb.palette import DARK, styled

FOUND, WRONG = "#00838A", "#B3261E"  # what was counted; the tail that decides wrongly
PALE = "0.4"  # of what explains
BINS = 40


@styled()
def plot_skew(
    differences: ArrayLike,
    t: ArrayLike,
    texts: int,
    level: float,
    *,
    pair: str = "",
    title: str = "",
    source: str = "",
) -> np.ndarray:
    """A difference of two types on single texts, and t of few of them, where the types are tied.

    Parameters
    ----------
    differences : array_like
        One per text, in percent of the score, with a mean of about 0. To the left, with the normal
        curve of the same mean and deviation.
    t : array_like
        Of many draws of `texts` texts. To the right, on a logarithmic scale, with Student's curve.
    texts : int
        In a draw, two or more.
    level : float
        Of the one-sided test. Lines at the t that it needs on either side, and the share of draws
        beyond them. The lower tail, which decides wrongly, is red.
    pair : str
        What the difference is of, such as "o_proj minus down_proj".
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
    axes[0].set_xlabel(f"{pair or 'difference'}, % of the score")
    axes[0].set_title(source, color=PALE, weight="normal", size=11)
    _draw_t(axes[1], t, texts, level)
    figure.suptitle(title, x=0.01, ha="left", weight="bold", fontsize=14)
    return axes


def _draw_texts(ax: Axes, differences: np.ndarray) -> None:
    """The histogram of single texts, and a normal curve."""
    ax.hist(differences, bins=BINS, color=FOUND, alpha=0.5)
    mean, deviation = differences.mean(), differences.std()
    ends = differences.min() - deviation / 2, differences.max() + deviation / 2
    grid = np.linspace(*ends, 200)
    scale = len(differences) * np.ptp(differences) / BINS  # from a density to texts in a bin
    ax.plot(grid, scale * stats.norm.pdf(grid, mean, deviation), color=DARK, lw=1.5, ls="--")
    skewness = stats.skew(differences)
    said = f"bars: single texts, skewness {skewness:.2f}\ndashed: a normal curve"
    ax.annotate(said, (0.98, 0.97), xycoords="axes fraction", ha="right", va="top", size=11)
    ax.set(ylabel="texts in a bin", xlim=ends, ylim=(0, 1.3 * ax.get_ylim()[1]))


def _draw_t(ax: Axes, t: np.ndarray, texts: int, level: float) -> None:
    """The histogram of t, Student's curve, and the two tails beyond the t that is needed."""
    least = stats.t.isf(level, texts - 1)
    half = 2.2 * least
    edges = np.linspace(-half, half, 2 * BINS + 1)
    counts, _ = np.histogram(t, edges)
    shares = 100 * counts / len(t)  # percent of the draws in a bin
    middles = (edges[:-1] + edges[1:]) / 2
    colors = [WRONG if middle < -least else FOUND for middle in middles]
    ax.bar(middles, shares, np.diff(edges), color=colors, alpha=0.5)
    curve = 100 * stats.t.pdf(middles, texts - 1) * np.diff(edges)
    ax.plot(middles, curve, color=DARK, lw=1.5, ls="--")
    top = 30 * curve.max()
    ax.set(yscale="log", ylim=(50 / len(t), top), xlim=(-half, half))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    tails = ((-1, t < -least, WRONG, "wrong"), (1, t > least, DARK, "right"))
    for side, beyond, color, what in tails:
        ax.axvline(side * least, color="0.6", lw=1, ls=":")
        said = f"{what} decision:\n{100 * beyond.mean():.2f} %\npromised:\n{100 * level:.2f} %"
        ax.annotate(said, (side * least * 1.08, top / 1.3), ha="right" if side < 0 else "left",
                    va="top", color=color, size=11)  # fmt: skip
    ax.annotate("dashed:\nStudent's t", (0, top / 1.3), ha="center", va="top", size=11)
    ax.set_xlabel(f"t of {texts} texts; dotted: the t that the test needs")
    ax.set_ylabel("draws in a bin (%, logarithmic)")
