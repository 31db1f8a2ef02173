"""Scores per type, with intervals from resampling texts. Needs nothing but the frame of scores."""

import numpy as np
import pandas as pd

RESAMPLES = 2000


def by_type(scores, *, level=0.95, seed=0):
    """Mean NFN of each module type, lowest first, with a bootstrap interval over texts.

    A module's score is its mean over texts, a type's the mean over its modules in all layers
    (a mean of ratios). The interval resamples texts, all modules of a text together.

    Parameters
    ----------
    scores : pandas.DataFrame
        From `nfn_scores`.
    level : float
        Coverage of the interval `low` to `high` (percentile bootstrap).
    seed : int
        Seeds the resampling.

    Returns
    -------
    pandas.DataFrame
        Columns `type`, `nfn`, `low`, `high`, `modules`, `samples`. With a single text `low` and
        `high` are NaN.

    Examples
    --------
    >>> scores = pd.DataFrame({"sample": [0, 0, 1, 1], "module": ["a.0", "b.0"] * 2,
    ...     "type": ["a", "b"] * 2, "nfn": [1.0, 0.5, 1.2, 0.7]})
    >>> by_type(scores)[["type", "nfn", "modules", "samples"]].round(2).values.tolist()
    [['b', 0.6, 1, 2], ['a', 1.1, 1, 2]]
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level!r}, expected a number between 0 and 1, such as 0.95")
    means = type_means(scores)
    draws = resampled_type_means(scores, seed)[means.index]
    return pd.DataFrame(
        {
            "type": means.index,
            "nfn": means.to_numpy(),
            "low": draws.quantile((1 - level) / 2).to_numpy(),
            "high": draws.quantile((1 + level) / 2).to_numpy(),
            "modules": scores.groupby("type")["module"].nunique()[means.index].to_numpy(),
            "samples": scores["sample"].nunique(),
        }
    )


def type_means(scores):
    """Score of each type as a Series, lowest first: mean over texts per module, then over modules."""
    missing = {"sample", "module", "type", "nfn"} - set(getattr(scores, "columns", ()))
    if missing:
        raise ValueError(f"scores lacks the columns {sorted(missing)}: expected the frame that nfn_scores returns")
    if not len(scores):
        raise ValueError("scores is an empty frame: there is nothing to rank")
    if not np.isfinite(scores["nfn"]).all() or (scores["nfn"] < 0).any():
        bad = scores[~np.isfinite(scores["nfn"]) | (scores["nfn"] < 0)].iloc[0]
        raise ValueError(f"scores holds nfn={bad['nfn']} for module {bad['module']!r}, never a legitimate score")
    return scores.groupby(["type", "module"])["nfn"].mean().groupby("type").mean().sort_values()


def resampled_type_means(scores, seed=0):
    """`type_means` of texts drawn with replacement: one row per resample, one column per type.

    All NaN with a single text, which says nothing about its spread.
    """
    values = scores.pivot(index="sample", columns="module", values="nfn")
    texts = len(values)
    counts = np.random.default_rng(seed).multinomial(texts, np.full(texts, 1 / texts), size=RESAMPLES)
    seen = counts @ values.notna().to_numpy(float)  # a text need not reach every module
    with np.errstate(invalid="ignore"):
        means = counts @ values.fillna(0.0).to_numpy() / seen
    types = scores.drop_duplicates("module").set_index("module")["type"][values.columns]
    means = pd.DataFrame(means if texts > 1 else np.nan * means, columns=values.columns)
    return means.T.groupby(types.to_numpy()).mean().T
