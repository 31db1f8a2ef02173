"""Pictures of how many texts a placement needs, and of what broken scores look like."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from plop_nb.palette import DARK, label_lines, styled, type_color
from plop_nb.plots import NFN
from plop_nb.text_table import check_columns

GREYS = ("0.15", "0.5", "0.72")  # of lines that are no types
RANDOM = {"color": DARK, "lw": 1, "ls": "--", "zorder": 0}  # the line of a random input
LEAST_BLOCKS = 8  # for an error of an error
LEAST = (0.5, 2.0)  # of a panel's scale: what is near 1 shall look near 1


@styled()
def plot_means(
    pool: pd.DataFrame,
    marks: Mapping[int, str] | None = None,
    *,
    draws: int = 1000,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """The score of each type by the number of texts, with the band that holds 95 % of the draws.

    Parameters
    ----------
    pool : pandas.DataFrame
        Texts down, types across, as `per_text` returns it. Texts are drawn from it with
        replacement; the numbers of texts are powers of two, and that of the pool.
    marks : dict, optional
        {number of texts: what it is}, written beside vertical lines.
    draws : int
        How often each number of texts is drawn.
    title, ax : str, matplotlib Axes, optional
        The finding in a line; where to draw, a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        `pool` is empty.
    """
    _check(pool, "pool", [])
    ax = _axes(ax, (9, 5), title)
    generator = np.random.default_rng(0)
    sizes = sorted({2**power for power in range(len(pool).bit_length())} | {len(pool)})
    drawn = [generator.integers(len(pool), size=(draws, size)) for size in sizes]
    means = [pool.to_numpy()[texts].mean(axis=1) for texts in drawn]
    low, high = np.percentile(means, [2.5, 97.5], axis=1)
    ends = {}
    for number, name in enumerate(pool):
        color, mean = type_color(name), pool[name].mean()
        ax.fill_between(sizes, low[:, number], high[:, number], color=color, alpha=0.3, lw=0)
        ax.plot(sizes, np.full(len(sizes), mean), color=color, lw=2)
        ends[f"{name} {mean:.2f}"] = (sizes[-1], mean, color)
    ax.axhline(1, **RANDOM)
    _number_axis(ax, sizes)
    ax.set(xlabel="texts (logarithmic scale)", ylabel=NFN, ylim=(0, None), xlim=(1, sizes[-1]))
    for texts, what in (marks or {}).items():
        ax.axvline(texts, color="0.6", lw=1, ls=":", zorder=0)
        ax.annotate(what, (texts, 0.05), (4, 0), textcoords="offset points", color="0.35")
    label_lines(ax, ends)
    return ax


@styled()
def plot_errors(
    table: pd.DataFrame,
    marks: Sequence[int] = (),
    *,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """The error of a score by the number of texts: computed as lines, measured as dots.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns `domain` (one line each), `texts`, `computed` and `measured` (both in percent of the
        score), `blocks` (how many means `measured` is the deviation of: below eight it is left out,
        else it has a 95 % interval).
    marks : sequence of int
        Numbers of texts to name on the axis, besides 1, 4 and 16.
    title, ax : str, matplotlib Axes, optional
        The finding in a line; where to draw, a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        `table` lacks a column, or is empty.
    """
    _check(table, "table", ["domain", "texts", "computed", "measured", "blocks"])
    ax = _axes(ax, (9, 4.6), title)
    ends = {}
    for number, (name, rows) in enumerate(table.groupby("domain", sort=False)):
        rows, color = rows.sort_values("texts"), GREYS[number % len(GREYS)]
        ax.plot(rows["texts"], rows["computed"], color=color, lw=1.3)
        known = rows[rows["blocks"] >= LEAST_BLOCKS]
        arms = known["measured"] * 1.96 / np.sqrt(2 * (known["blocks"] - 1))
        ax.errorbar(known["texts"] * 1.03**number, known["measured"], yerr=arms, fmt="o",
                    color=color, capsize=2, ms=4)  # fmt: skip
        ends[name] = (rows["texts"].iloc[-1], rows["computed"].iloc[-1], color)
    ax.set(xscale="log", yscale="log", xlabel="texts n (logarithmic scale)")
    ax.set_ylabel("error of the score (%)")
    named = sorted({1, 4, 16, *marks})
    ax.set_xticks(named, [str(n) for n in named])
    _plain_numbers(ax.yaxis, (1, 2, 5))
    ax.minorticks_off()
    label_lines(ax, ends)
    return ax


@styled()
def plot_agreement(
    table: pd.DataFrame,
    published: int | None = None,
    *,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Kendall's tau between the ranking by some texts and a reference, by the number of texts.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns `of` (what is ranked; one line each), `texts`, `tau`, `low`, `high` (the band).
    published : int, optional
        The number of texts from which on the paper reports a tau of about 1: a grey bar.
    title, ax : str, matplotlib Axes, optional
        The finding in a line; where to draw, a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        `table` lacks a column, or is empty.
    """
    _check(table, "table", ["of", "texts", "tau", "low", "high"])
    ax = _axes(ax, (9, 4.4), title)
    ends = {}
    for number, (name, rows) in enumerate(table.groupby("of", sort=False)):
        rows, color = rows.sort_values("texts"), GREYS[number % len(GREYS)]
        ax.fill_between(rows["texts"], rows["low"], rows["high"], color=color, alpha=0.2, lw=0)
        ax.plot(rows["texts"], rows["tau"], color=color, lw=2, marker="o", ms=4)
        ends[name] = (rows["texts"].iloc[-1], rows["tau"].iloc[-1], color)
    _number_axis(ax, table["texts"])
    ax.set(xlabel="texts m (logarithmic scale)", ylabel="Kendall's tau with the reference")
    low = table["low"].min()
    ax.set_ylim(low - 0.15 * (1 - low), 1 + 0.3 * (1 - low))
    if published is not None:
        high = 1 + 0.17 * (1 - low)
        ax.plot([published, table["texts"].max()], [high, high], color="0.7", lw=7)
        text = f'paper (by notes on it): "about 1" from {published} on'
        ax.annotate(text, (published, high), (-6, 0), textcoords="offset points",
                    ha="right", va="center", color="0.35")  # fmt: skip
    label_lines(ax, ends)
    return ax


@styled()
def plot_decided(shares: pd.DataFrame, *, title: str = "", ax: Axes | None = None) -> Axes:
    """After how many texts the replays of each case were decided: one stacked bar a case.

    Parameters
    ----------
    shares : pandas.DataFrame
        Rows are cases, from the top; columns are numbers of texts, and last those that were never
        decided. Values are shares of the replays, 0 to 1, and add up to 1 in each row.
    title, ax : str, matplotlib Axes, optional
        The finding in a line; where to draw, a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        `shares` is empty, or a row does not add up to 1.
    """
    if not np.size(shares) or not np.allclose(shares.sum(axis=1), 1):
        raise ValueError("shares is empty, or has a row that does not add up to 1")
    ax = _axes(ax, (9, 0.55 * len(shares) + 1.4), title)
    colors = [plt.cm.Greys(level) for level in np.linspace(0.25, 0.9, shares.shape[1] - 1)]
    left = np.zeros(len(shares))
    places = np.arange(len(shares))
    for name, color in zip(shares, [*colors, "white"], strict=True):
        width = 100 * shares[name].to_numpy()
        ax.barh(places, width, left=left, height=0.7, color=color, edgecolor="0.3", lw=0.7)
        ink = "white" if np.mean(color[:3] if color != "white" else 1) < 0.55 else DARK
        for place in places[width > 5]:  # what is smaller has no room for a number
            middle = left[place] + width[place] / 2
            ax.text(middle, place, str(name), ha="center", va="center", color=ink)
        left += width
    ax.set_yticks(places, shares.index)
    ax.invert_yaxis()
    ax.set(xlim=(0, 100), xlabel="replays (%), by the number of texts that decided")
    return ax


@styled()
def plot_signatures(
    frames: Mapping[str, pd.DataFrame], types: Sequence[str] | None = None, *, title: str = ""
) -> np.ndarray:
    """Scores of single maps in several situations, side by side: what is wrong has a look.

    One panel per situation, one row per type, one dot per map, on a logarithmic scale that shows
    half to twice at least.

    Parameters
    ----------
    frames : dict
        {title: frame of scores}, with the columns of `nfn_scores`.
    types : sequence of str, optional
        The rows, from the top; by default the types of the first frame, lowest first.
    title : str
        The finding, in a line, above all panels.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        One per frame, of a new figure.

    Raises
    ------
    ValueError
        `frames` is empty, or one of them is no frame of scores or holds one that is not positive.
    """
    if not frames:
        raise ValueError("frames is empty: pass {title: frame of nfn_scores}")
    maps = {title: _single_maps(frame, title) for title, frame in frames.items()}
    if types is None:
        first = next(iter(maps.values()))
        types = first.groupby("type")["nfn"].mean().sort_values().index.tolist()
    size = (2.9 * len(maps) + 0.8, 0.42 * len(types) + 2.2)
    figure, axes = plt.subplots(1, len(maps), figsize=size, sharey=True, squeeze=False,
                                layout="constrained")  # fmt: skip
    for ax, (name, found) in zip(axes[0], maps.items(), strict=True):
        _draw_maps(ax, found, types)
        ax.set_title(name, fontsize=12)
    figure.suptitle(title, x=0.01, ha="left", weight="bold", fontsize=14)
    scales = "; scales differ" if len({ax.get_xlim() for ax in axes[0]}) > 1 else ""
    figure.supxlabel(f"{NFN}; one dot per map{scales}", fontsize=12)
    return axes[0]


def _draw_maps(ax: Axes, found: pd.DataFrame, types: Sequence[str]) -> None:
    """One row of dots per type, and a bar at its mean."""
    for place, name in enumerate(types):
        scores = found.loc[found["type"] == name, "nfn"]
        if scores.empty:
            continue
        color = type_color(name)
        ax.scatter(scores, [place] * len(scores), s=22, color=color, alpha=0.5, lw=0)
        ax.vlines(scores.mean(), place - 0.32, place + 0.32, color=color, lw=2.5)
    ax.axvline(1, **RANDOM)
    low, high = found["nfn"].min() / 1.1, found["nfn"].max() * 1.1
    ax.set(xscale="log", xlim=(min(low, LEAST[0]), max(high, LEAST[1])))
    _plain_numbers(ax.xaxis, (1,) if high / low > 30 else (0.5, 1, 2))
    ax.set_yticks(range(len(types)), types)
    ax.set_ylim(len(types) - 0.5, -0.5)


def _plain_numbers(axis: Axis, steps: Sequence[float]) -> None:
    """A logarithmic scale with few, plain numbers: these in each power of ten."""
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _single_maps(frame, title):
    """`type` and mean `nfn` of each module of a frame of scores."""
    check_columns(frame)
    found = frame.groupby(["type", "module"], as_index=False)["nfn"].mean()
    if not (found["nfn"] > 0).all():
        raise ValueError(f"frames[{title!r}] holds a score that is not positive")
    return found


def _check(table, name, columns):
    missing = [column for column in columns if column not in getattr(table, "columns", ())]
    if missing or not len(table):
        what = f"lacks the columns {missing}" if missing else "is empty"
        raise ValueError(f"{name} {what}, expected rows with {columns}")


def _axes(ax: Axes | None, size: tuple[float, float], title: str) -> Axes:
    """The axes given, else those of a new figure of this size in inches."""
    ax = plt.subplots(figsize=size, layout="constrained")[1] if ax is None else ax
    ax.set_title(title, pad=10)
    return ax


def _number_axis(ax: Axes, texts: Sequence[int]) -> None:
    """A logarithmic axis of numbers of texts, which names some of them."""
    named = [n for n in (1, 2, 4, 8, 16, 32, 64, 128, 200, 500, 1024) if n <= max(texts)]
    ax.set_xscale("log")
    ax.set_xticks(named, [str(n) for n in named])
    ax.minorticks_off()
