"""How sure a score, a ranking and a placement are. Needs nothing but the frame of scores."""

from collections.abc import Iterable
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from plop_nb.checks import coverage_level, random_seed
from plop_nb.text_table import TextTable, check_columns, text_table
from plop_nb.text_table import per_text as per_text  # where it is looked for

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
    mean = values.mean(axis=0)
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * stats.sem(values, axis=0)
    if values.ndim == 1:
        return Interval(float(mean), float(mean - half), float(mean + half))
    return Interval(mean, mean - half, mean + half)


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
        Columns `type`, `nfn`, `low`, `high`, `modules`, `samples` (texts that reached one of the
        modules). Where every module was reached by a single text `low` and `high` are NaN.

    Raises
    ------
    ValueError
        `scores` is no frame of scores, or holds one that cannot be (says where), or `level` is not
        between 0 and 1.

    Warns
    -----
    UserWarning
        Texts are copies of others (the same score in every module): each counts once.

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
    check_columns(scores, "layer")
    layered = scores.dropna(subset="layer")
    if layered.empty:
        raise ValueError("scores holds no module inside a stack of layers")
    return _intervals(layered, "layer", level).sort_values("layer", ignore_index=True)


def by_module(scores: pd.DataFrame, *, level: float = 0.95) -> pd.DataFrame:
    """NFN of each module, lowest first: `module`, `type`, `layer`, then as in `by_type`.

    A few kB that can be kept and sent (`save_scores`): `attrs` are those of the scores.
    """
    check_columns(scores, "layer")
    names = scores.drop_duplicates("module")[["module", "type", "layer"]]
    table = _intervals(scores, "module", level).drop(columns="modules")
    found = names.merge(table).sort_values("nfn", ignore_index=True)
    found.attrs = dict(scores.attrs)  # what the scores are of
    return found


def type_means(scores: pd.DataFrame) -> pd.Series:
    """Score of each type, lowest first: mean over texts per module, then over modules.

    Like `lowest`, `confidence`, `swaps` and `StoppingRule`, it takes the frame of `nfn_scores`, or
    the table that `per_text` or `text_table` has made of it.
    """
    return _ranked(text_table(scores).values)


def lowest(scores: pd.DataFrame, k: int) -> list[str]:
    """The `k` types with the lowest score."""
    return first_types(type_means(scores).index.tolist(), k)


def first_types(order: list[str], k: int) -> list[str]:
    """The first `k` of all types (ValueError where there are not so many)."""
    if not isinstance(k, Integral) or isinstance(k, bool) or not 1 <= int(k) <= len(order):
        raise ValueError(
            f"k={k!r}, expected an integer from 1 to {len(order)}, the number of module types "
            "scored"
        )
    return order[:k]


def confidence(scores: pd.DataFrame, types: Iterable[str], *, seed: int = 0) -> float:
    """Probability that the set `types` is the one that infinitely many texts would choose.

    The share of draws of all types' means together, from texts weighted at random, that puts every
    chosen type below every other: a joint t distribution, exact for normal scores however few the
    texts. NaN for one text, and where the spread of a type is not known.

    (Drawn here and not by `scipy.stats.multivariate_t`: that decomposes a covariance, whose vectors
    turn with the processor's last digits, so that the same seed gave other draws elsewhere.)
    """
    table = text_table(scores)
    values, types = table.values, _types_in(table, types)
    others = [name for name in values if name not in types]
    n = len(values)
    if table.errors.isna().any():
        return float("nan")
    if not others:
        return 1.0
    generator = np.random.default_rng(random_seed("seed", seed))
    weights = generator.standard_normal((DRAWS, n))
    deviations = (values - values.mean()) / np.sqrt(n * (n - 1))
    draws = pd.DataFrame(weights @ deviations.to_numpy(), columns=values.columns)
    for freedom in sorted(set(table.support - 1), reverse=True):
        widen = np.sqrt(freedom / generator.chisquare(freedom, DRAWS))  # the spread is estimated
        draws.loc[:, table.support - 1 == freedom] *= widen[:, None]
    draws += values.mean()
    highest_chosen, lowest_other = draws[types].max(axis=1), draws[others].min(axis=1)
    return float((highest_chosen < lowest_other).mean())


def swaps(scores: pd.DataFrame, types: Iterable[str]) -> pd.DataFrame:
    """Each chosen type against each other one: how likely texts without end would turn them round.

    Returns
    -------
    pandas.DataFrame
        Columns `chosen`, `other`, `gap` (difference of their scores), `probability` (one-sided
        paired t-test over texts; NaN where a spread is not known), the likeliest swap first.
    """
    table = text_table(scores)
    values, types = table.values, _types_in(table, types)
    pairs = [(chosen, other) for chosen in types for other in values if other not in types]
    found = pd.DataFrame(pairs, columns=["chosen", "other"])
    sides = [found["other"], found["chosen"]]
    other, chosen = (values.mean()[side].to_numpy() for side in sides)
    found["gap"] = other - chosen
    found["probability"] = _probabilities_below_zero(
        values[sides[0]].to_numpy() - values[sides[1]].to_numpy(),
        np.minimum(*(table.support[side].to_numpy() for side in sides)) - 1,
    )
    order = ["probability", "gap"]
    return found.sort_values(order, ascending=[False, True], ignore_index=True)


class StoppingRule:
    """Whether a placement of `k` types is decided, asked at 8, 16, 32, ... texts.

    At look j every chosen type has to lie below every other by a paired t-test at level
    (1 - confidence) / (j (j + 1) pairs). Over all looks and pairs these add up to at most
    1 - confidence, so looking often costs no error; a wrong set needs one such test to fail.
    Copies of a text count once. While a type rests on fewer than 8 texts nothing is decided.
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
        table = text_table(scores)
        pairs = swaps(table, lowest(table, self._k))
        error = 1 - self.confidence
        level = error / (self._looks * (self._looks + 1) * max(1, len(pairs)))
        is_known = table.support.min() >= LEAST
        return bool(is_known and (pairs["probability"] <= level).all())


def diagnoses(scores: pd.DataFrame, types: Iterable[str], sure: float) -> list[str]:
    """What is wrong with a ranking, in sentences: an empty list where nothing is.

    `sure` is the confidence in `types`, from `confidence`.
    """
    table = text_table(scores)
    chosen = _types_in(table, types)
    means, texts, pairs = _ranked(table.values), len(table.values), swaps(table, chosen)
    found = []
    if len(means) > 1 and (means - 1).abs().max() < 0.1:
        found.append(
            f"all scores near 1 ({means.min():.2f} to {means.max():.2f}): inputs meet every type "
            "like noise. Untrained weights, a very narrow model, or texts unlike anything it was "
            "trained on"
        )
    if table.copies:
        found.append(
            f"{table.copies} of {texts + table.copies} texts are copies of others: each counts once"
        )
    if texts < LEAST:
        found.append(
            f"too few texts ({texts}) to know how sure k={len(chosen)} is: score at least {LEAST}"
        )
        return found
    decisive = [*chosen, *pairs.loc[~(pairs["probability"] < 0.05), "other"]]
    few = [name for name in dict.fromkeys(decisive) if table.support[name] < LEAST]
    for name in few:
        found.append(
            f"{name} rests on modules that few texts reach (they tell as much as "
            f"{table.support[name]:.2g} of {texts}): score more texts"
        )
    if sure < 0.95:
        pair = pairs.iloc[0]
        found.append(
            f"ranking undecided: {pair['chosen']} and {pair['other']} are {pair['gap']:.3f} apart "
            f"(one-sided p = {pair['probability']:.2g}). Score more texts, or choose another k"
        )
    return found


def _ranked(values):
    return values.mean().rename_axis("type").sort_values(kind="stable")


def _types_in(table, types):
    """The types as a list, all of them in the table."""
    names = [types] if isinstance(types, str) else list(types)
    for name in names:
        if name not in table.values:
            raise ValueError(
                f"{name!r} is not a type in scores, choose from {sorted(table.values)[:10]}"
            )
    return names


def _probabilities_below_zero(gaps, freedom):
    """That the mean of infinitely many texts is below zero, for each column; NaN if not known."""
    texts, pairs = gaps.shape
    found = np.full(pairs, np.nan)
    if texts < 2:
        return found
    same = np.ptp(gaps, axis=0) == 0  # in every text: nothing to estimate
    with np.errstate(divide="ignore", invalid="ignore"):  # gaps that are the same but for rounding
        t = gaps[:, ~same].mean(axis=0) / stats.sem(gaps[:, ~same], axis=0)
    found[~same] = stats.t.sf(t, freedom[~same])
    found[same] = np.where(gaps[0, same] == 0, 0.5, gaps[0, same] < 0)
    return found


def _intervals(scores, by, level):
    level = coverage_level(level)
    if not isinstance(scores, TextTable):
        check_columns(scores, by)
    table = text_table(scores, by)
    mean = table.values.mean()
    half = stats.t.ppf((1 + level) / 2, table.support - 1) * table.errors
    found = pd.DataFrame({"nfn": mean, "low": mean - half, "high": mean + half})
    found = found.assign(modules=table.modules, samples=table.reached)
    found = found.rename_axis(by).reset_index()
    return found.sort_values("nfn", kind="stable", ignore_index=True)
