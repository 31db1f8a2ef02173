"""A picture of what scoring takes by the work it does, measured and estimated."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator

from plop_nb.palette import DARK, styled
from plop_nb.plots import CHOSEN, axes_for

COST = ["run", "work", "seconds"]


@styled()
def plot_cost(
    measured: pd.DataFrame, estimated: Mapping[str, float], ax: Axes | None = None
) -> Axes:
    """Seconds of scoring against the work, and what they let one expect of other work.

    The grey band reaches from the lowest to the highest measured rate (seconds per work); an
    estimate is a line across it.

    Parameters
    ----------
    measured : pandas.DataFrame
        Columns `run` (a name), `seconds`, `work` (billions of weights in scored maps times
        thousands of tokens).
    estimated : dict
        {name: work} of what was not run.
    ax : matplotlib Axes, optional
        Where to draw, as in `plot_types`.

    Raises
    ------
    ValueError
        `measured` is empty, or some work or seconds are not above 0.
    """
    works = [*measured["work"], *estimated.values()]
    if measured.empty or not all(number > 0 for number in [*works, *measured["seconds"]]):
        raise ValueError("measured and estimated need rows whose work and seconds are above 0")
    rates = measured["seconds"] / measured["work"]
    low, middle, high = rates.min(), rates.median(), rates.max()
    ax = axes_for(ax, width=9, height=5)
    ends = np.array([min(works) / 1.3, max(works) * 1.3])
    ax.fill_between(ends, low * ends, high * ends, color="0.92", lw=0, zorder=0)
    ax.plot(measured["work"], measured["seconds"], "o", ms=8, mfc="none", mec=DARK, mew=1.5)
    # Runs go from the lower left to the upper right: there is room in the other two corners.
    below, above = {"xytext": (10, -6), "ha": "left"}, {"xytext": (-10, 6), "ha": "right"}
    style = {"textcoords": "offset points", "va": "center", "size": 11}
    for (name, work, seconds), rate in zip(measured[COST].to_numpy(), rates, strict=True):
        side = below if rate < middle else above
        ax.annotate(f"{name}: {seconds:.0f} s", (work, seconds), **style, **side)
    for name, work in estimated.items():
        ax.plot([work] * 2, [low * work, high * work], lw=3, color=CHOSEN, solid_capstyle="butt")
        told = f"{name},\nestimate: {low * work:.0f} to {high * work:.0f} s"
        ax.annotate(told, (work, low * work), color=CHOSEN, **style, **below)
    ax.set(xscale="log", yscale="log", xlim=ends * [1 / 5, 2.5], ylabel="seconds of scoring")
    band = f"grey and blue: lowest to highest rate of the {len(measured)} runs (circles)"
    ax.set_xlabel(f"billions of weights in scored maps × thousands of tokens\n{band}")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_minor_locator(NullLocator())
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter("{x:g}")
    ax.set_title(f"Scoring takes {low:.0f} to {high:.0f} s per billion weights and thousand tokens")
    return ax
