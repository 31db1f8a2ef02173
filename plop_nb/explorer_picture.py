"""The explorer's picture: profile and heat map as SVG, in the colours of the page around it."""

import html
import io
import re
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from plop_nb.palette import DARK, styled, type_color
from plop_nb.placement import Placement
from plop_nb.plots import CMAP, NFN, NORM, TICKS, interval_arms
from plop_nb.stats import by_layer, by_module, by_type

WIDTH = 9.6  # inches
ROW, MIN_HEIGHT = 0.24, 2.7  # of a type, and of the whole picture
STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
}
STYLE |= {"ytick.labelsize": 9, "svg.fonttype": "none", "axes.facecolor": "none"}
STYLE |= {"figure.facecolor": "none", "savefig.facecolor": "none", "svg.hashsalt": "plop_nb"}
# The notebook's colour of letters where it has one (JupyterLab, Notebook 7), else the page's.
LETTERS = "var(--jp-content-font-color1, currentColor)"
OUTLINE = "black"  # on a dark page, too: the cells are light
LIT, UNLIT = "#5B7A99", "#5B7A9944"  # of layers, which hold all types


class Means:
    """What does not change with the choice: means by type, layer and module of some scores."""

    def __init__(self, scores: pd.DataFrame) -> None:
        self.types = by_type(scores)
        self.modules = by_module(scores)
        layered = scores.dropna(subset="layer")
        self.layers = by_layer(layered) if len(layered) else None
        grid = self.modules.dropna(subset="layer").pivot_table(
            index="type", columns="layer", values="nfn", observed=True
        )
        self.grid = grid.reindex(self.types["type"])


@styled(STYLE)
def picture(means: Means, statistic: str, placement: Placement) -> str:
    """SVG of the profile by "types", "layers" or "modules", and of all modules by layer.

    Letters and outlines take the colour of the page, so that it suits a light and a dark one.
    """
    names = means.types["type"].tolist()
    height = max(MIN_HEIGHT, ROW * len(names) + 1)
    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasSVG(figure)
    left = 0.3 + 0.068 * max(map(len, names))
    bottom, tall = 0.5 / height, 1 - 0.85 / height
    has_grid = means.layers is not None
    right = WIDTH - 0.15 if not has_grid else left + (WIDTH - left) * 0.42
    profile = figure.add_axes((left / WIDTH, bottom, (right - left) / WIDTH, tall))
    PROFILES[statistic](means, placement, profile)
    profile.set_title(f"Profile by {statistic[:-1]}", loc="left")
    if has_grid:
        roomy = WIDTH - 0.7 - right - left > 2
        named = roomy or statistic == "layers"  # else the profile's names must do
        start = right + (left if named else 0.3)
        beside = figure.add_axes((start / WIDTH, bottom, (WIDTH - 0.7 - start) / WIDTH, tall))
        scale = figure.add_axes(((WIDTH - 0.6) / WIDTH, bottom, 0.1 / WIDTH, tall))
        _grid(means, placement, beside, names if named else None)
        _scale(scale)
    return _themed(figure, f"Profile by {statistic[:-1]}: adapters on {', '.join(placement.types)}")


def _themed(figure: Figure, told: str) -> str:
    """The figure as SVG inside of a page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(DARK.lower(), LETTERS)
    root, rest = text.split(">", 1)
    root = re.sub(r' (width|height)="[\d.]+pt"', "", root)
    size = 'style="width: 100%; max-width: 1000px; height: auto"'
    return f'{root} role="img" aria-label="{html.escape(told, quote=True)}" {size}>{rest}'


# Profiles


def _types(means: Means, placement: Placement, ax: Axes) -> None:
    table = means.types
    colors = [type_color(name) for name in table["type"]]
    lit = table["type"].isin(placement.types)
    faces = [c if is_lit else f"{c}44" for c, is_lit in zip(colors, lit, strict=True)]
    bars = {"capsize": 2, "lw": 1, "ecolor": DARK}
    places = range(len(table))
    ax.barh(places, table["nfn"], xerr=interval_arms(table), color=faces, error_kw=bars)
    for place, value in zip(places, table["high"].fillna(table["nfn"]), strict=True):
        number = f"{table['nfn'].iloc[place]:.2f}"
        ax.annotate(number, (value, place), (4, 0), textcoords="offset points", va="center", size=8)
    _rows(means, ax)


def _modules(means: Means, placement: Placement, ax: Axes) -> None:
    table = means.modules
    names = means.types["type"].tolist()
    full = table["type"].map(type_color)
    faces = full.where(table["module"].isin(placement.modules), full + "44")
    ax.scatter(
        table["nfn"], table["type"].map(names.index), c=faces, edgecolor=full, s=16, linewidth=0.6
    )
    _rows(means, ax)


def _layers(means: Means, placement: Placement, ax: Axes) -> None:
    assert means.layers is not None
    table, chosen = means.layers, set(placement.modules)
    of_layer = means.modules[means.modules["module"].isin(chosen)]["layer"]
    lit = table["layer"].isin(of_layer.dropna().unique())
    bars = {"capsize": 1.5, "lw": 1, "ecolor": DARK}
    colors = [LIT if is_lit else UNLIT for is_lit in lit]
    ax.bar(
        table["layer"].astype(int), table["nfn"], yerr=interval_arms(table), color=colors,
        error_kw=bars,
    )  # fmt: skip
    ax.axhline(1, color=DARK, lw=1, ls="--")
    ax.set(xlabel="layer", ylabel=NFN)
    _bare(ax)


def _rows(means: Means, ax: Axes) -> None:
    """Types from the lowest score (top) to the highest."""
    names = means.types["type"].tolist()
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.axvline(1, color=DARK, lw=1, ls="--")
    ax.set(xlabel=NFN, ylabel="")
    ax.set_xlim(left=0)
    _bare(ax)


def _bare(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)


PROFILES = {"types": _types, "layers": _layers, "modules": _modules}


# All modules


def _grid(means: Means, placement: Placement, ax: Axes, names: list[str] | None) -> None:
    """Types in the rows of the profile, layers across; modules with adapters are outlined."""
    values = means.grid.to_numpy(dtype=float)
    ax.imshow(values, aspect="auto", cmap=CMAP, norm=NORM, interpolation="none")
    modules = means.modules
    lit = modules[modules["module"].isin(placement.modules)].dropna(subset="layer")
    rows = {name: place for place, name in enumerate(means.grid.index)}
    columns = {layer: place for place, layer in enumerate(means.grid.columns)}
    boxes = set()
    for row in lit.itertuples():
        boxes.add((rows[row.type], columns[row.layer]))
    ax.add_collection(LineCollection(_outline(boxes), colors=OUTLINE, linewidths=1.4))
    ax.set_title("All modules; outlined: with adapters", loc="left")
    shown = np.unique(np.linspace(0, len(columns) - 1, min(len(columns), 8)).astype(int))
    ax.set_xticks(shown, [str(list(columns)[place]) for place in shown])
    ax.set_yticks(range(len(rows)) if names else [], names or [])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set(xlabel="layer", ylabel="")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _outline(boxes: set[tuple[int, int]]) -> list[list[tuple[float, float]]]:
    """Sides of the boxes (row, column) that face none of the others."""
    lines = []
    for row, column in sorted(boxes):
        top, low, left, right = row - 0.5, row + 0.5, column - 0.5, column + 0.5
        sides = {
            (row - 1, column): [(left, top), (right, top)],
            (row + 1, column): [(left, low), (right, low)],
            (row, column - 1): [(left, top), (left, low)],
            (row, column + 1): [(right, top), (right, low)],
        }
        lines += [side for neighbour, side in sides.items() if neighbour not in boxes]
    return lines


def _scale(ax: Axes) -> None:
    """The colours of the scores."""
    values = np.geomspace(NORM.vmin, NORM.vmax, 64)[:, None]
    ax.imshow(values, aspect="auto", cmap=CMAP, norm=NORM, interpolation="none", origin="lower")
    spread = np.log(NORM.vmax / NORM.vmin)
    heights = [63 * np.log(value / NORM.vmin) / spread for value in TICKS.values()]
    ax.set_title("NFN", size=8)
    ax.set_yticks(heights, list(TICKS))
    ax.yaxis.tick_right()
    ax.set_xticks([])
    ax.tick_params(length=0, labelsize=8)
    ax.spines[:].set_visible(False)
