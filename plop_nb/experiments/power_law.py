"""The exponent of a power law, with an interval over seeds."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from plop_nb.checks import coverage_level

RESAMPLES = 2000
UNSURE = 0.01  # share of resampled means that may be negative


class Fit(NamedTuple):
    """An exponent p of y = a x^p with its interval."""

    exponent: float
    low: float
    high: float


def power_fit(frame: pd.DataFrame, x: str, y: str, *, level: float = 0.95, seed: int = 0) -> Fit:
    """Exponent p of `y = a x^p`: least squares through log(mean of y over seeds) against log(x).

    Parameters
    ----------
    frame : pandas.DataFrame
        One row per seed and value of `x`, with a column `seed`.
    x, y : str
        Columns, positive numbers (`y` in its mean over seeds).
    level : float
        Coverage of the interval, from resampling whole seeds (percentile bootstrap).
    seed : int
        Seeds the resampling.

    Returns
    -------
    Fit
        `exponent`, `low`, `high`.

    Raises
    ------
    ValueError
        Columns are missing, a seed lacks a value of `x`, or numbers that have no logarithm.

    Examples
    --------
    >>> columns = {"seed": [0, 0, 1, 1], "t": [1, 2, 1, 2], "y": [3.0, 12.0, 5.0, 20.0]}
    >>> round(power_fit(pd.DataFrame(columns), "t", "y").exponent, 6)
    2.0
    """
    level = coverage_level(level)
    table = _by_seed(frame, x, y)
    values, positions = table.to_numpy(float), table.columns.to_numpy(float)
    centred = np.log(positions) - np.log(positions).mean()
    means = np.vstack([values.mean(axis=0), _resample(values, seed)])
    if means[0].min() <= 0 or (means <= 0).any(axis=1).mean() > UNSURE:
        raise ValueError(
            f"y={y!r} is not surely positive at the smallest {x}: take more seeds or drop those "
            f"rows"
        )
    means = means[(means > 0).all(axis=1)]
    exponent, *others = np.log(means) @ centred / (centred @ centred)
    low, high = np.quantile(others, [(1 - level) / 2, (1 + level) / 2])
    return Fit(float(exponent), float(low), float(high))


def _by_seed(frame: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    """`y` by seed (rows) and `x` (columns), of which a power law can be fitted."""
    missing = {"seed", x, y} - set(frame.columns)
    if missing:
        raise ValueError(f"frame lacks the columns {sorted(missing)}, it has {list(frame.columns)}")
    if frame.duplicated(["seed", x]).any():
        raise ValueError(
            f"frame has several rows for one seed and {x}: select one module or width first"
        )
    table = frame.pivot(index="seed", columns=x, values=y)
    positions = table.columns.to_numpy(float)
    if len(positions) < 2 or positions.min() <= 0:
        raise ValueError(
            f"x={x!r} takes the values {positions.tolist()}: a power law needs two or more, all "
            f"positive"
        )
    if not np.isfinite(table.to_numpy(float)).all():
        raise ValueError(
            f"y={y!r} is missing or not finite for some seed and {x}: each seed needs every {x}"
        )
    return table


def _resample(values: np.ndarray, seed: int) -> np.ndarray:
    """Means of rows of `values` (seeds, k) drawn with replacement: (RESAMPLES, k)."""
    n = len(values)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    return counts @ values / n
