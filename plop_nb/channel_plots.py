"""A picture of an outlier channel: how much of the input it is, and which map hardly reads it."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from torch import nn

from plop_nb.channels import column_sizes, mean_channels
from plop_nb.palette import DARK, styled
from plop_nb.plots import CHOSEN, OTHER

LEAST = 0.5  # of the usual column: below it a map "hardly" reads a channel
SIZES = {"font.size": 13, "axes.titlesize": 14, "axes.labelsize": 13}


def plot_channels(
    model: nn.Module, means: Mapping[str, torch.Tensor], modules: Sequence[str]
) -> np.ndarray:
    """The shared direction by channel, and how much the maps behind it read of its largest one.

    Above, the mean direction's squared entries, in percent of the input's squared length. Below,
    one row per map: a grey dot for the size of every column of its weight, and a blue one for the
    column of the leading channel.

    Parameters
    ----------
    means : dict
        {module name: mean direction, (in_features,)}, from `geometry.mean_inputs`.
    modules : sequence of str
        Names of maps that read the same input, such as q, k and v of one layer; from the top.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        Both axes, of a new figure.

    Raises
    ------
    ValueError
        `modules` is empty, `means` lacks one of them, or they do not read the same input; or as
        `mean_channels`.
    """
    modules = _same_input(modules, means)
    table = mean_channels(model, {name: means[name] for name in modules})
    table = table.set_index("module").loc[modules].reset_index()
    percent = 100 * means[modules[0]].float().square().numpy()
    columns = column_sizes(model, modules)
    with styled(SIZES):
        height = {"height_ratios": [2.2, 0.9 + 0.55 * len(modules)]}
        figure, axes = plt.subplots(
            2, figsize=(9, 4.7 + 0.4 * len(modules)), gridspec_kw=height, layout="constrained"
        )
        _draw_mean(axes[0], percent)
        axes[0].set_title(_what_is_shared(table["layer"][0]), loc="left", pad=10)
        _draw_columns(axes[1], table, columns)
        figure.suptitle(_finding(table, percent), x=0.01, ha="left", weight="bold", size=17)
        figure.get_layout_engine().set(hspace=0.08)
        sns.despine(fig=figure)
    return axes


def _same_input(modules, means):
    """The modules as a list, all with the same mean."""
    modules = [modules] if isinstance(modules, str) else list(modules)
    if not modules:
        raise ValueError("modules is empty: name maps that read one input, such as q, k and v")
    for name in modules:
        if name not in means:
            raise ValueError(f"means lacks {name!r}: pass what mean_inputs gave for this model")
        if not torch.equal(means[name], means[modules[0]]):
            raise ValueError(
                f"{name!r} does not read the same input as {modules[0]!r}: choose maps behind one "
                "norm, such as q, k and v of one layer"
            )
    return modules


def _draw_mean(ax: Axes, percent: np.ndarray) -> None:
    """Spikes by channel, the largest one named."""
    channel = int(percent.argmax())
    ax.vlines(np.arange(len(percent)), 0, percent, color=OTHER, lw=1.5)
    ax.vlines(channel, 0, percent[channel], color=CHOSEN, lw=4)
    rest = percent.sum() - percent[channel]
    text = (
        f"channel {channel}: {percent[channel]:.0f} %\n"
        f"the {len(percent) - 1} others: {rest:.0f} %\n"
        f"not shared: {100 - percent.sum():.0f} %"
    )
    is_left = channel < 0.6 * len(percent)
    ax.annotate(
        text,
        (channel, percent[channel]),
        (10 if is_left else -10, 0),
        textcoords="offset points",
        ha="left" if is_left else "right",
        va="top",
        color=CHOSEN,
        weight="bold",
    )
    ax.set(xlabel="input channel", ylabel="% of the input's\nsquared length", ylim=(0, None))
    ax.margins(x=0.01)


def _draw_columns(ax: Axes, table: pd.DataFrame, columns: Mapping[str, torch.Tensor]) -> None:
    """One row of dots per map, that of the leading channel in colour."""
    generator = np.random.default_rng(0)  # dots side by side
    for position, row in enumerate(table.itertuples()):
        sizes = columns[row.module].numpy()
        ax.scatter(
            sizes,
            position + generator.uniform(-0.25, 0.25, len(sizes)),
            s=9,
            color=OTHER,
            alpha=0.5,
        )
        ax.scatter(row.column, position, s=140, color=CHOSEN, edgecolor="white", zorder=3)
        ax.annotate(
            f"{row.column:.2f}",
            (row.column, position),
            (-11, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            color=CHOSEN,
            weight="bold",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )
    ax.axvline(1, color=DARK, lw=1, ls="--", zorder=0)
    ax.set_yticks(range(len(table)), table["type"])
    ax.invert_yaxis()
    ax.set(xlabel="size of the column = NFN of an input along it (1 = random input)")
    ax.set_xlim(0, None)
    title = f"How much each map reads of channel {table['channel'][0]} (grey: of the others)"
    ax.set_title(title, loc="left", pad=10)


def _what_is_shared(layer: Any) -> str:
    where = "" if pd.isna(layer) else f" in layer {layer}"
    return f"The direction that all tokens share{where}, by channel"


def _finding(table: pd.DataFrame, percent: np.ndarray) -> str:
    least = table.loc[table["column"].idxmin()]
    reads = "hardly reads it" if least["column"] < LEAST else "reads it least"
    return f"One channel is {percent.max():.0f} % of the input, and {least['type']} {reads}"
