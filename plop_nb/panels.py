"""Figures with a panel per task: their frames checked, their titles wrapped, their texts inside."""

import textwrap
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from plop_nb.palette import DARK, styled

FONT = 10  # points, of the labels


def by_task(name: str, table: pd.DataFrame, texts: list, numbers: list, **known) -> dict:
    """{task: its rows} of a frame without gaps; `known` has the allowed values of a column."""
    columns = ["task", *texts, *numbers]
    if missing := [column for column in columns if column not in getattr(table, "columns", ())]:
        raise ValueError(f"{name} lacks the columns {missing}: pass a frame with {columns}")
    if not len(table):
        raise ValueError(f"{name} is an empty frame: there is nothing to draw, pass some rows")
    for column in columns:
        values = table[column]
        fine, expected = values.notna(), "a name"
        if column in numbers:
            fine, expected = np.isfinite(pd.to_numeric(values, errors="coerce")), "a finite number"
        if column in known:
            fine, expected = values.isin([*known[column]]), f"one of {[*known[column]]}"
        for row in table[~fine].to_dict("records"):
            raise ValueError(
                f"{name} holds {column}={row[column]!r} for {row[texts[0]]!r} on {row['task']!r}, "
                f"expected {expected}: mend such rows or leave them out"
            )
    return dict(list(table.reset_index(drop=True).groupby("task", sort=False)))


@styled()
def panels_of(
    tables,
    height,
    labels,
    draw,
    finding=None,
    *,
    fit=lambda *_: None,
    rows=(),
    columns=2,
    share=False,
):
    """A panel per task. `draw` returns what its title says where `finding` does not.

    `fit` moves texts once the layout is known; `share` gives all panels one x axis.
    """
    if finding is not None and (missing := [task for task in tables if task not in finding]):
        raise ValueError(f"finding={finding!r} lacks {missing}: add a sentence for each task")
    columns = min(len(tables), columns)
    lines = -(-len(tables) // columns)
    size = 11 if columns > 1 else 8, min(6, lines * height)
    options = {"squeeze": False, "sharex": share, "sharey": bool(rows), "layout": "constrained"}
    figure, grid = plt.subplots(lines, columns, figsize=size, **options)
    axes = grid.ravel()[: len(tables)]
    for ax in grid.ravel()[len(tables) :]:
        ax.remove()
    if rows:
        axes[0].set(yticks=range(len(rows)), yticklabels=rows, ylim=(len(rows) - 0.5, -0.5))
    figure.supxlabel(labels[2], fontsize=FONT + 1)
    sns.despine(fig=figure)
    for place, (ax, (task, own)) in enumerate(zip(axes, tables.items(), strict=True)):
        ax.set_xlabel(labels[0] if place + columns >= len(tables) else "")
        ax.set_ylabel(labels[1] if place % columns == 0 else "")
        drawn = draw(ax, own)
        told = drawn if finding is None else finding[task]
        ax.set_title(f"{str(task).replace('_', ' ')}: {told}", loc="left")
    figure.draw_without_rendering()
    for ax in axes:
        letters = int(10 * ax.get_window_extent().width / figure.dpi)
        ax.set_title(textwrap.fill(ax.get_title("left"), letters), loc="left", fontsize=FONT + 2)
    figure.draw_without_rendering()
    for ax, own in zip(axes, tables.values(), strict=True):
        fit(ax, own)
    return axes


def make_room(ax: Axes, _: Any) -> None:
    """Widen the x axis until all texts lie within it."""
    frame = ax.get_window_extent()
    for _ in range(100):
        boxes = Bbox.union([frame, *(text.get_window_extent() for text in ax.texts)])
        low, high = ax.get_xlim()
        pixel = (high - low) / frame.width
        ax.set_xlim(low - (frame.x0 - boxes.x0) * pixel, high + (boxes.x1 - frame.x1) * pixel)


def draw_intervals(ax, places, table, color, line, name):
    """Points and intervals, and a vertical line with its name above the rows."""
    value, low, high = table.to_numpy().T
    ax.hlines(places, low, high, color=color, lw=1.6)
    ax.scatter(value, places, color=color, s=28, zorder=3)
    ax.axvline(line, color=DARK, lw=1, ls="--", zorder=0)
    mask = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    ax.text(line, -1, name, ha="center", va="center", fontsize=FONT, bbox=mask)
    ax.set_ylim(top=-1.6)


def label_dots(ax: Axes, labels: list[tuple[str, tuple, Any]], taken: list[Bbox]) -> None:
    """Names beside their dots (x, y), where they cover least; dots without a name count, too."""
    dots = ax.transData.transform([at for _, at, _ in labels])
    frame, pixel = ax.get_window_extent(), ax.figure.dpi / 72
    leader = {"arrowstyle": "-", "color": "0.65", "lw": 0.6, "shrinkA": 0, "shrinkB": 3}
    style = {"textcoords": "offset points", "ha": "center", "va": "center", "fontsize": FONT}
    for (told, at, color), dot in zip(labels, dots, strict=True):
        if not told:
            continue
        text = ax.annotate(told, at, (0, 0), color=color, arrowprops=leader, **style)
        half = Text.get_window_extent(text).size / 2
        found = []
        for distance in (7, 12, 18, 28, 40, 55, 75):
            for angle in np.arange(16) * np.pi / 8:
                way = np.array([np.cos(angle), np.sin(angle)]) * (half + distance * pixel)
                box = Bbox([dot + way - half, dot + way + half])
                outside = 4 - frame.count_contains(box.corners())
                cost = distance + 40 * box.padded(2 * pixel).count_contains(dots)
                found.append((cost + 500 * (outside + box.count_overlaps(taken)), *way, box))
        _, x, y, box = min(found, key=lambda each: each[0])
        text.xyann = (x / pixel, y / pixel)
        taken.append(box)
