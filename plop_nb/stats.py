"""How sure a score, a ranking and a placement are. Needs nothing but the frame of scores."""

import warnings
from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from plop_nb.checks import coverage_level

DRAWS = 10_000
LEAST = 8  # texts below which a spread is hardly known


class Interval(NamedTuple):
    """A mean with its interval: numbers, or arrays with one entry for each column."""

    mean: Any
    low: Any
    high: Any


def mean_interval(values: Any, *, level: float = 0.95) -> Interval:
    """Mean over seeds, texts or problems, with an interval of coverage `level` by Student's t.

    Parameters
    ----------
    values : array_like
        One number per seed (text, problem), two or more; for a difference, the paired differences.
        With a second dimension, each column by itself.

    Returns
    -------
    Interval
        `mean`, `low`, `high`; numbers, or arrays for several columns.

    Raises
    ------
    ValueError
        Fewer than two values, or one that is not finite.

    Examples
    --------
    >>> mean_interval([2.0, 2.0, 2.0])
    Interval(mean=2.0, low=2.0, high=2.0)
    """
    level = coverage_level(level)
    values = np.asarray(values, dtype=float)
    if values.ndim not in (1, 2) or len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(
            f"values has shape {values.shape}, expected two or more finite numbers, one per seed"
        )
    mean, half = values.mean(axis=0), _half_width(values, level)
    if values.ndim == 1:
        return Interval(float(mean), float(mean - half), float(mean + half))
    return Interval(mean, mean - half, mean + half)


def _half_width(values, level):
    """Half of the interval by Student's t; NaN for a single value."""
    n = len(values)
    if n < 2:
        return np.full(values.shape[1:], np.nan)
    return stats.t.ppf((1 + level) / 2, n - 1) * stats.sem(values, axis=0)


def by_type(scores: pd.DataFrame, *, level: float = 0.95) -> pd.DataFrame:
    """Mean NFN of each module type, lowest first, with an interval over texts.

    A module's score is its mean over texts, a type's the mean over its modules in all layers
    (a mean of ratios).

    Parameters
    ----------
    scores : pandas.DataFrame
        From `nfn_scores`.
    level : float
        Coverage of the interval `low` to `high`: Student's t over texts, all modules of a text
        together. It is what resampling texts gives, made honest for few of them.

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
    return _intervals(scores, "type", level)


def by_layer(scores: pd.DataFrame, *, level: float = 0.95) -> pd.DataFrame:
    """Mean NFN of each layer over all its modules; columns as in `by_type`, first `layer`."""
    layered = scores.dropna(subset="layer")
    if layered.empty:
        raise ValueError("scores holds no module inside a stack of layers")
    return _intervals(layered, "layer", level).sort_values("layer", ignore_index=True)


def by_module(scores: pd.DataFrame, *, level: float = 0.95) -> pd.DataFrame:
    """NFN of each module, lowest first: `module`, `type`, `layer`, then as in `by_type`."""
    names = scores.drop_duplicates("module")[["module", "type", "layer"]]
    table = _intervals(scores, "module", level).drop(columns="modules")
    return names.merge(table).sort_values("nfn", ignore_index=True)


def per_text(scores: pd.DataFrame, by: str = "type") -> pd.DataFrame:
    """One value per text (rows) and group (columns), whose mean is the group's score.

    A text's value is the mean over the group's modules; the columns are named `by`. Where a text
    misses a module (an expert that got none of its tokens), the module's own mean stands in, and
    the texts that reach it count for more: the mean stays that of `by_type`, and the spread over
    texts gives its error.
    """
    _check(scores)
    values = scores.pivot(index="sample", columns="module", values="nfn")
    means, reached = values.mean(), values.notna().mean()
    values = means + (values - means).fillna(0.0) / reached
    if by == "module":
        return values
    groups = scores.drop_duplicates("module").set_index("module")[by][values.columns]
    return values.T.groupby(groups.to_numpy()).mean().T.rename_axis(columns=by)


def type_means(scores: pd.DataFrame) -> pd.Series:
    """Score of each type, lowest first: mean over texts per module, then over modules.

    Like `lowest`, `confidence`, `swaps` and `StoppingRule`, it takes the frame of `nfn_scores`, or
    the table that `per_text` has made of it.
    """
    return _ranked(_by_text(scores))


def lowest(scores: pd.DataFrame, k: int) -> list[str]:
    """The `k` types with the lowest score."""
    return _lowest(_by_text(scores), k)


def confidence(scores: pd.DataFrame, types: Sequence[str], *, seed: int = 0) -> float:
    """Probability that the set `types` is the one that infinitely many texts would choose.

    The share of draws of all types' means together, from texts weighted at random, that puts every
    chosen type below every other: a joint t distribution, exact for normal scores however few the
    texts. NaN for one text.

    (Drawn here and not by `scipy.stats.multivariate_t`: that decomposes a covariance, whose vectors
    turn with the processor's last digits, so that the same seed gave other draws elsewhere.)
    """
    values = _by_text(scores)
    others = [name for name in values if name not in types]
    n = len(values)
    if n == 1:
        return float("nan")
    if not others:
        return 1.0
    generator = np.random.default_rng(seed)
    weights = generator.standard_normal((DRAWS, n))
    widen = np.sqrt(
        (n - 1) / generator.chisquare(n - 1, (DRAWS, 1))
    )  # the spread is estimated, too
    deviations = (values - values.mean()) / np.sqrt(n * (n - 1))
    means = values.mean().to_numpy() + widen * (weights @ deviations.to_numpy())
    draws = pd.DataFrame(means, columns=values.columns)
    highest_chosen, lowest_other = draws[list(types)].max(axis=1), draws[others].min(axis=1)
    return float((highest_chosen < lowest_other).mean())


def swaps(scores: pd.DataFrame, types: Sequence[str]) -> pd.DataFrame:
    """Each chosen type against each other one: how likely texts without end would turn them round.

    Returns
    -------
    pandas.DataFrame
        Columns `chosen`, `other`, `gap` (difference of their scores), `probability` (one-sided
        paired t-test over texts; NaN for one text), the likeliest swap first.
    """
    return _swaps(_by_text(scores), types)


class StoppingRule:
    """Whether a placement of `k` types is decided, asked at 8, 16, 32, ... texts.

    At look j every chosen type has to lie below every other by a paired t-test at level
    (1 - confidence) / (j (j + 1) pairs). Over all looks and pairs these add up to at most
    1 - confidence, so looking often costs no error; a wrong set needs one such test to fail.
    """

    def __init__(self, confidence: float, k: int) -> None:
        if not isinstance(confidence, float) or not 0.5 <= confidence < 1:
            raise ValueError(
                f"stop={confidence!r}, expected a confidence from 0.5 to below 1, such as 0.99"
            )
        self.confidence = confidence
        self._k, self._looks = k, 0

    @property
    def next(self) -> int:
        """Texts at the next look."""
        return LEAST * 2**self._looks

    def decided(self, scores: pd.DataFrame) -> bool:
        """Look at the scores so far."""
        self._looks += 1
        values = _by_text(scores)
        table = _swaps(values, _lowest(values, self._k))
        error = 1 - self.confidence
        level = error / (self._looks * (self._looks + 1) * max(1, len(table)))
        return len(values) >= LEAST and bool((table["probability"] <= level).all())


def diagnoses(scores: pd.DataFrame, types: Sequence[str], sure: float) -> list[str]:
    """What is wrong with a ranking, in sentences: an empty list where nothing is.

    `sure` is the confidence in `types`, from `confidence`.
    """
    values = per_text(scores)
    means, texts = _ranked(values), len(values)
    found = []
    if len(means) > 1 and (means - 1).abs().max() < 0.1:
        found.append(
            f"all scores near 1 ({means.min():.2f} to {means.max():.2f}): inputs meet every type "
            "like noise. Untrained weights, a very narrow model, or texts unlike anything it was "
            "trained on"
        )
    if texts < LEAST:
        found.append(
            f"too few texts ({texts}) to know how sure k={len(types)} is: score at least {LEAST}"
        )
    elif sure < 0.95:
        pair = _swaps(values, types).iloc[0]
        found.append(
            f"ranking undecided: {pair['chosen']} and {pair['other']} are {pair['gap']:.3f} apart "
            f"and would swap with probability {pair['probability']:.0%}. Score more texts, or "
            "choose another k"
        )
    return found


def _by_text(scores):
    """One value per text and type: of a frame of scores, or a table of them as it is."""
    is_table = getattr(getattr(scores, "columns", None), "name", None) == "type"
    return scores if is_table else per_text(scores)


def _ranked(values):
    return values.mean().rename_axis("type").sort_values(kind="stable")


def _lowest(values, k):
    ranking = _ranked(values)
    if not isinstance(k, Integral) or isinstance(k, bool) or not 1 <= int(k) <= len(ranking):
        raise ValueError(
            f"k={k!r}, expected an integer from 1 to {len(ranking)}, the number of module types "
            "scored"
        )
    return ranking.index[:k].tolist()


def _swaps(values, types):
    """As `swaps`, of one value per text and type."""
    pairs = [(chosen, other) for chosen in types for other in values if other not in types]
    table = pd.DataFrame(pairs, columns=["chosen", "other"])
    gaps = values[table["other"]].to_numpy() - values[table["chosen"]].to_numpy()
    table["gap"] = gaps.mean(axis=0)
    table["probability"] = _probabilities_below_zero(gaps)
    order = ["probability", "gap"]
    return table.sort_values(order, ascending=[False, True], ignore_index=True)


def _probabilities_below_zero(gaps):
    """That the mean of infinitely many texts is below zero, for each column; NaN for one text."""
    texts, pairs = gaps.shape
    found = np.full(pairs, np.nan)
    if texts < 2:
        return found
    same = np.ptp(gaps, axis=0) == 0  # in every text: nothing to estimate
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # gaps that are the same but for rounding
        tested = stats.ttest_1samp(gaps[:, ~same], 0, alternative="greater")
    found[~same] = tested.pvalue
    found[same] = np.where(gaps[0, same] == 0, 0.5, gaps[0, same] < 0)
    return found


def _check(scores):
    missing = {"sample", "module", "type", "nfn"} - set(getattr(scores, "columns", ()))
    if missing:
        raise ValueError(
            f"scores lacks the columns {sorted(missing)}: expected the frame that nfn_scores "
            "returns"
        )
    if not len(scores):
        raise ValueError("scores is an empty frame: there is nothing to rank")
    bad = scores[~np.isfinite(scores["nfn"]) | (scores["nfn"] < 0)]
    if len(bad):
        row = bad.iloc[0]
        raise ValueError(
            f"scores holds nfn={row['nfn']} for module {row['module']!r}, never a legitimate score"
        )
    twice = scores.duplicated(["sample", "module"])
    if twice.any():
        sample, module = scores.loc[twice, ["sample", "module"]].iloc[0]
        raise ValueError(
            f"scores holds sample {sample} of module {module!r} twice: where frames are joined, "
            "number their samples apart, or score all texts in one call"
        )


def _intervals(scores, by, level):
    level = coverage_level(level)
    values = per_text(scores, by)
    mean, half = values.mean(), _half_width(values.to_numpy(), level)
    table = pd.DataFrame({"nfn": mean, "low": mean - half, "high": mean + half})
    table["modules"] = scores.groupby(by)["module"].nunique()[table.index].to_numpy()
    table["samples"] = len(values)
    table = table.rename_axis(by).reset_index()
    return table.sort_values("nfn", kind="stable", ignore_index=True)
