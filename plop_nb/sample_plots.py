"""Pictures of how many texts a placement needs, and of what broken scores look like."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_rgb
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from scipy import stats

from plop_nb.palette import DARK, label_lines, styled, type_color
from plop_nb.plots import NFN
from plop_nb.text_table import check_columns

MODELS = (DARK, "#00838A")  # the first model is black in every picture
DOMAINS = (DARK, "#8A5A00", "#00838A", "#6B6B6B")  # and so is the first domain
PALE = "0.4"  # of what explains
LUMINANCE = (0.299, 0.587, 0.114)  # how bright red, green and blue look
RANDOM = {"color": DARK, "lw": 1, "ls": "--", "zorder": 0}  # the line of a random input
DRAWS = 1000  # of so many texts
APART = 1.04  # dots of the next line are this much to the right
NARROW = 3.5  # percent: a slice of a bar below it has no room for a number
LEAST = (0.5, 2.0)  # of a scale of scores: what is near 1 shall look near 1


@styled()
def plot_separation(
    pool: pd.DataFrame,
    k: int = 3,
    marks: Mapping[int, str] | None = None,
    *,
    title: str = "",
    source: str = "",
) -> np.ndarray:
    """How far apart the types are on single texts, and the gap that decides on more of them.

    Parameters
    ----------
    pool : pandas.DataFrame
        Texts down, types across, as `per_text` returns it. To the left each text is a dot. To the
        right is the difference of the `k`-th and the next type: its mean over the first n texts,
        and the middle 95 % of the means of 1,000 draws of n texts, with replacement.
    k : int
        How many types are chosen.
    marks : dict, optional
        {number of texts: what it is}, written beside vertical lines to the right.
    title, source : str
        The finding in a line; below it, on what model and texts.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        Two, of a new figure.

    Raises
    ------
    ValueError
        `pool` is empty.
    """
    _check(pool, "pool", [])
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.4), layout="constrained")
    order = pool.mean().sort_values().index
    jitter = np.random.default_rng(0).uniform(-0.25, 0.25, len(pool))
    for place, name in enumerate(order):
        axes[0].scatter(pool[name], place + jitter, s=7, color=type_color(name), alpha=0.5, lw=0)
    axes[0].axvline(1, **RANDOM)
    axes[0].axhline(k - 0.5, color=PALE, lw=1)
    axes[0].annotate(f"the {k} lowest", (1, k - 0.5), (-2, 5), ha="right", color=PALE,
                     xycoords=("axes fraction", "data"), textcoords="offset points")  # fmt: skip
    axes[0].set_yticks(range(len(order)), order)
    axes[0].set(ylim=(len(order) - 0.5, -0.5), xlim=(0, None), xlabel=f"{NFN}; one dot per text")
    _draw_gap(axes[1], (pool[order[k]] - pool[order[k - 1]]).to_numpy(), marks or {})
    axes[1].set_ylabel(f"{order[k]} minus {order[k - 1]} (NFN)", labelpad=10)
    axes[0].set_title(source, color=PALE, weight="normal", size=11)
    figure.suptitle(title, x=0.01, ha="left", weight="bold", fontsize=14)
    return axes


def _draw_gap(ax: Axes, gap: np.ndarray, marks: Mapping[int, str]) -> None:
    """The mean of so many first texts, and the band of draws from all of them."""
    generator = np.random.default_rng(0)
    sizes = [*(2**power for power in range(len(gap).bit_length())), len(gap)]
    drawn = [gap[generator.integers(len(gap), size=(DRAWS, n))].mean(axis=1) for n in sizes]
    low, high = np.percentile(drawn, [2.5, 97.5], axis=1)
    said = f"middle 95 % of {DRAWS:,} draws of n texts"
    ax.fill_between(sizes, low, high, color=DARK, alpha=0.2, lw=0, label=said)
    texts = np.arange(1, len(gap) + 1)
    ax.plot(texts, np.cumsum(gap) / texts, color=DARK, lw=1.8, label="the first n texts")
    ax.annotate("0: a tie", (sizes[-1], 0), (-4, 5), textcoords="offset points", ha="right")
    _number_axis(ax, sizes)
    ax.set(xlabel="texts n (logarithmic scale)", xlim=(1, sizes[-1]), ylim=(0, 1.15 * high.max()))
    for n, what in marks.items():
        ax.axvline(n, ymax=0.68, color="0.6", lw=1, ls=":", zorder=0)  # below the legend
        side = -1 if n > sizes[-1] ** 0.75 else 1  # near the right end there is room to the left
        ax.annotate(what, (n, 0.35 * high.max()), (4 * side, 0), textcoords="offset points",
                    color=PALE, ha="left" if side > 0 else "right")  # fmt: skip
    ax.legend(frameon=False, loc="upper right", fontsize=11)


@styled()
def plot_errors(
    table: pd.DataFrame, *, title: str = "", source: str = "", ax: Axes | None = None
) -> Axes:
    """A standard error by the number of texts: computed as lines, measured as dots.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns `domain` (one line each), `texts`, `computed` and `measured` (both in percent),
        `blocks` (how many means, two or more, `measured` is the deviation of: its 95 % interval is
        that of chi-square).
    title, source, ax : str, str, matplotlib Axes, optional
        The finding in a line; on what; where to draw, a new figure by default.

    Raises
    ------
    ValueError
        `table` lacks a column, or is empty.
    """
    _check(table, "table", ["domain", "texts", "computed", "measured", "blocks"])
    ax = _axes(ax, (9, 4.4), title, source)
    ends = {}
    for number, (name, rows) in enumerate(table.groupby("domain", sort=False)):
        rows, color = rows.sort_values("texts"), DOMAINS[number % len(DOMAINS)]
        ax.plot(rows["texts"], rows["computed"], color=color, lw=1.3)
        free, measured = rows["blocks"].to_numpy() - 1, rows["measured"].to_numpy()
        ends_of = np.sqrt(free / stats.chi2.ppf([[0.975], [0.025]], free)) * measured
        ax.errorbar(rows["texts"] * APART**number, measured, yerr=abs(ends_of - measured), fmt="o",
                    color=color, capsize=2, ms=4)  # fmt: skip
        beside = 1.1 * APART**number * rows["texts"].iloc[-1]  # clear of the last dots
        ends[name] = (beside, rows["computed"].iloc[-1], color)
    ax.set(xscale="log", yscale="log", xlabel="texts n (logarithmic scale)")
    ax.set_ylabel("standard error (%, logarithmic)")
    ax.set_xticks(ticks := sorted(set(table["texts"])), [str(n) for n in ticks])
    _plain_numbers(ax.yaxis, (1, 2, 5))
    ax.minorticks_off()
    said = (
        "lines: computed from single texts\n"
        "dots (set apart sideways): means of n neighbouring texts, with 95 % intervals"
    )
    ax.annotate(said, (0.02, 0.04), xycoords="axes fraction", color=PALE, size=11)
    label_lines(ax, ends)
    return ax


@styled()
def plot_agreement(table: pd.DataFrame, *, title: str = "", source: str = "") -> np.ndarray:
    """Kendall's tau between the ranking by some texts and a reference, by the number of texts.

    One panel for each kind of thing that is ranked, one line for each model. A line is named at its
    right end; where several end at the same place, the first one there and the others at their
    second dot.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns `model` (a colour each), `of` (what is ranked; a panel each), `texts`, `tau`, `low`,
        `high` (a bar at each dot; none where they are NaN).
    title, source : str
        The finding in a line, above all panels; below them, on what.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        One per kind, of a new figure.

    Raises
    ------
    ValueError
        `table` lacks a column, or is empty.
    """
    _check(table, "table", ["model", "of", "texts", "tau", "low", "high"])
    kinds, models = [*table["of"].unique()], [*table["model"].unique()]
    figure, axes = plt.subplots(1, len(kinds), figsize=(5.4 * len(kinds) + 1, 4.2), sharey=True,
                                squeeze=False, layout="constrained")  # fmt: skip
    low = np.nanmin(table[["tau", "low"]].to_numpy())
    axes[0, 0].set_ylim(low - 0.05 * (1 - low), 1 + 0.1 * (1 - low))
    axes[0, 0].set_ylabel("Kendall's tau with the reference\n(axis does not begin at 0)")
    figure.suptitle(title, x=0.01, ha="left", weight="bold", fontsize=14)
    said = "texts n (logarithmic scale)"
    figure.supxlabel(f"{said}\n{source}" if source else said, fontsize=12)
    for ax, of in zip(axes[0], kinds, strict=True):
        ax.set_title(of, fontsize=12)
        _number_axis(ax, table["texts"])
        _draw_agreement(ax, table[table["of"] == of], models)
    return axes[0]


def _draw_agreement(ax: Axes, table: pd.DataFrame, models: Sequence[str]) -> None:
    """A line, bars and a name for each model."""
    ends: dict = {}
    for place, model in enumerate(models):
        rows = table[table["model"] == model].sort_values("texts")
        if rows.empty:
            continue
        color, tau = MODELS[place % len(MODELS)], rows["tau"].to_numpy()
        width = 3.2 if place == 0 else 1.4  # so that one line on another can be seen
        texts = rows["texts"].to_numpy() * APART**place
        bars = abs(rows[["low", "high"]].to_numpy().T - tau)
        ax.errorbar(texts, tau, yerr=bars, color=color, lw=width, marker="o", ms=3 + width,
                    elinewidth=1, capsize=2)  # fmt: skip
        if tau[-1] not in [height for _, height, _ in ends.values()]:
            ends[model] = (rows["texts"].iloc[-1], tau[-1], color)
        else:
            second = (texts[:2][-1], tau[:2][-1])
            ax.annotate(model, second, (12, -6), va="center", textcoords="offset points",
                        color=color, size=11)  # fmt: skip
    label_lines(ax, ends)


@styled()
def plot_decided(
    shares: pd.DataFrame,
    foreseen: Sequence[str] = (),
    *,
    title: str = "",
    source: str = "",
    ax: Axes | None = None,
) -> Axes:
    """After how many texts the runs of each case were decided: one stacked bar a case.

    Parameters
    ----------
    shares : pandas.DataFrame
        Rows are cases, from the top; columns are numbers of texts, and last those that were never
        decided, with their share. Values are shares of the runs, 0 to 1: 1 in each row.
    foreseen : sequence of str
        What a formula foresees for each case, written to the right of its bar.
    title, source, ax : str, str, matplotlib Axes, optional
        The finding in a line; on what; where to draw, a new figure by default.

    Raises
    ------
    ValueError
        `shares` is empty, or a row does not add up to 1.
    """
    if not np.size(shares) or not np.allclose(shares.sum(axis=1), 1):
        raise ValueError("shares is empty, or has a row that does not add up to 1")
    key = "in bars: texts at the stop"
    ax = _axes(ax, (10, 0.55 * len(shares) + 1.6), title, f"{source}; {key}" if source else key)
    colors = [plt.cm.YlGnBu(level) for level in np.linspace(0.1, 1, shares.shape[1] - 1)]
    places, left = np.arange(len(shares)), np.zeros(len(shares))
    for name, color in zip(shares, [*colors, "white"], strict=True):
        width = 100 * shares[name].to_numpy()
        ax.barh(places, width, left=left, height=0.7, color=color, edgecolor="0.3", lw=0.7,
                clip_on=False)  # fmt: skip
        ink = "white" if np.dot(to_rgb(color), LUMINANCE) < 0.5 else DARK
        for place in places[width > NARROW]:
            where = (left[place] + width[place] / 2, place)
            said = f"{name}: {width[place]:.3g} %" if name == shares.columns[-1] else str(name)
            ax.annotate(said, where, ha="center", va="center", color=ink)
        left += width
    for place, said in zip(places, foreseen, strict=False):
        ax.annotate(said, (100, place), (8, 0), textcoords="offset points", va="center",
                    annotation_clip=False)  # fmt: skip
    ax.set_yticks(places, shares.index)
    ax.set(ylim=(len(shares) - 0.5, -0.5), xlim=(0, 100))
    ax.set_xlabel(f"runs (%; slices below {NARROW} % have no number)")
    return ax


@styled()
def plot_signatures(
    frames: Mapping[str, pd.DataFrame],
    types: Sequence[str] | None = None,
    *,
    chosen: int = 0,
    title: str = "",
    source: str = "",
) -> np.ndarray:
    """Scores of single maps in several situations, side by side, so that errors can be seen.

    One row per type, one dot per map, and one logarithmic scale that shows half to twice at least.

    Parameters
    ----------
    frames : dict
        {title: frame of scores}, with the columns of `nfn_scores`.
    types : sequence of str, optional
        The rows, from the top; by default the types of the first frame, lowest first.
    chosen : int
        So many types with the lowest means have a grey ground in each panel.
    title, source : str
        The finding, in a line, above all panels; below it, on what.

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
    first = next(iter(maps.values())).groupby("type")["nfn"].mean()
    types = first.sort_values().index.tolist() if types is None else types
    size = (2.9 * len(maps) + 0.8, 0.42 * len(types) + 2.2)
    figure, axes = plt.subplots(1, len(maps), figsize=size, sharey=True, sharex=True,
                                squeeze=False, layout="constrained")  # fmt: skip
    for ax, (name, found) in zip(axes[0], maps.items(), strict=True):
        _draw_maps(ax, found, types, chosen)
        ax.set_title(name, fontsize=12)
    scores = pd.concat(maps.values())["nfn"]
    low, high = min(scores.min() / 1.2, LEAST[0] / 1.1), max(scores.max() * 1.2, LEAST[1] * 1.1)
    axes[0, 0].set(xscale="log", xlim=(low, high))
    _plain_numbers(
        axes[0, 0].xaxis, (0.5, 1, 2) if high / low < 30 else (1, 3) if high / low < 1000 else (1,)
    )
    figure.suptitle(title, x=0.01, ha="left", weight="bold", fontsize=14)
    grey = f"; grey: the {chosen} lowest types" if chosen else ""
    said = f"{NFN}; one dot per map, a bar at the mean{grey}"
    figure.supxlabel(f"{said}\n{source}" if source else said, fontsize=12)
    return axes[0]


def _draw_maps(ax: Axes, found: pd.DataFrame, types: Sequence[str], chosen: int) -> None:
    """One row of dots per type, and a bar at its mean."""
    lowest = found.groupby("type")["nfn"].mean().nsmallest(chosen).index
    for place, name in enumerate(types):
        scores = found.loc[found["type"] == name, "nfn"]
        if scores.empty:
            continue
        color = type_color(name)
        ax.scatter(scores, [place] * len(scores), s=22, color=color, alpha=0.5, lw=0)
        ax.vlines(scores.mean(), place - 0.32, place + 0.32, color=color, lw=2.5)
        if name in lowest:
            ax.axhspan(place - 0.45, place + 0.45, color="0.9", lw=0, zorder=0)
    ax.axvline(1, **RANDOM)
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


def _axes(ax: Axes | None, size: tuple[float, float], title: str, source: str) -> Axes:
    """The axes given, else those of a new figure of this size in inches."""
    ax = plt.subplots(figsize=size, layout="constrained")[1] if ax is None else ax
    ax.set_title(title, pad=26 if source else 10)
    ax.annotate(source, (0, 1), (0, 9), xycoords="axes fraction", textcoords="offset points",
                color=PALE, size=11)  # fmt: skip
    return ax


def _number_axis(ax: Axes, texts: Sequence[int]) -> None:
    """A logarithmic axis of numbers of texts, which names some of them."""
    named = [2**power for power in range(11)]
    ax.set_xscale("log")
    named = [n for n in named if min(texts) <= n <= max(texts)]
    if max(texts) > 1.5 * named[-1]:
        named.append(max(texts))  # the end is named where there is room
    ax.set_xticks(named, [str(n) for n in named])
    ax.minorticks_off()
