"""How sure a score, a ranking and a placement are. Needs nothing but the frame of scores."""

import numpy as np
import pandas as pd
from scipy.stats import t as student

DRAWS = 10_000
LEAST = 8  # texts below which a spread is hardly known


def by_type(scores, *, level=0.95):
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


def by_layer(scores, *, level=0.95):
    """Mean NFN of each layer over all its modules; columns as in `by_type`, first `layer`."""
    layered = scores.dropna(subset="layer")
    if layered.empty:
        raise ValueError("scores holds no module inside a stack of layers")
    return _intervals(layered, "layer", level).sort_values("layer", ignore_index=True)


def by_module(scores, *, level=0.95):
    """NFN of each single module; columns `module`, `type`, `layer`, then as in `by_type`, lowest first."""
    names = scores.drop_duplicates("module")[["module", "type", "layer"]]
    return names.merge(_intervals(scores, "module", level).drop(columns="modules")).sort_values(
        "nfn", ignore_index=True
    )


def per_text(scores, by="type"):
    """One value per text (rows) and group (columns), whose mean is the group's score.

    A text's value is the mean over the group's modules. Where a text misses a module (an expert
    that got none of its tokens), the module's own mean stands in, and the texts that reach it count
    for more: the mean stays that of `by_type`, and the spread over texts gives its error.
    """
    _check(scores)
    values = scores.pivot(index="sample", columns="module", values="nfn")
    means, reached = values.mean(), values.notna().mean()
    values = means + (values - means).fillna(0.0) / reached
    if by == "module":
        return values
    groups = scores.drop_duplicates("module").set_index("module")[by][values.columns]
    return values.T.groupby(groups.to_numpy()).mean().T.rename_axis(columns=by)


def confidence(scores, types, *, seed=0):
    """Probability that the set `types` is the one that infinitely many texts would choose.

    The share of draws of all types' means together, from texts weighted at random, that puts every
    chosen type below every other: a joint t distribution, exact for normal scores however few the
    texts. NaN for one text.
    """
    values = _wide(scores)
    n, others = len(values), [c for c in values if c not in types]
    if n == 1 or not others:
        return float("nan") if n == 1 else 1.0
    generator = np.random.default_rng(seed)
    weights = generator.standard_normal((DRAWS, n))
    widen = np.sqrt((n - 1) / generator.chisquare(n - 1, (DRAWS, 1)))  # the spread itself is estimated
    deviations = (values - values.mean()) / np.sqrt(n * (n - 1))
    draws = values.mean().to_numpy() + widen * (weights @ deviations.to_numpy())
    draws = pd.DataFrame(draws, columns=values.columns)
    return float((draws[types].max(axis=1) < draws[others].min(axis=1)).mean())


def swaps(scores, types):
    """Each chosen type against each other one: how likely texts without end would turn them round.

    Returns
    -------
    pandas.DataFrame
        Columns `chosen`, `other`, `gap` (difference of their scores), `probability` (one-sided
        paired t-test over texts; NaN for one text), the likeliest swap first.
    """
    values = _wide(scores)
    pairs = [(c, o) for c in types for o in values if o not in types]
    if not pairs:
        return pd.DataFrame(columns=["chosen", "other", "gap", "probability"])
    gaps = np.stack([values[o] - values[c] for c, o in pairs], axis=1)
    mean = gaps.mean(axis=0)
    t = np.full(len(pairs), np.nan)
    if len(gaps) > 1:
        error = gaps.std(axis=0, ddof=1) / np.sqrt(len(gaps))
        certain = np.where(mean == 0, 0.0, np.copysign(np.inf, mean))  # the same gap in every text
        t = np.divide(mean, error, out=certain, where=error > 0)
    chosen, other = zip(*pairs, strict=True)
    table = pd.DataFrame({"chosen": chosen, "other": other, "gap": mean, "probability": student.sf(t, len(gaps) - 1)})
    return table.sort_values(["probability", "gap"], ascending=[False, True], ignore_index=True)


class StoppingRule:
    """Whether a placement of `k` types is decided, asked at 8, 16, 32, ... texts.

    At look j every chosen type has to lie below every other by a paired t-test at level
    (1 - confidence) / (j (j + 1) pairs). Over all looks and pairs these add up to at most
    1 - confidence, so looking often costs no error; a wrong set needs one such test to fail.
    """

    def __init__(self, confidence, k):
        if not isinstance(confidence, float) or not 0.5 <= confidence < 1:
            raise ValueError(f"stop={confidence!r}, expected a confidence from 0.5 to below 1, such as 0.99")
        self._error, self._k, self._looks = 1 - confidence, k, 0

    @property
    def next(self):
        """Texts at the next look."""
        return LEAST * 2**self._looks

    def decided(self, scores):
        """Look at the scores so far."""
        self._looks += 1
        values = _wide(scores)
        table = swaps(values, lowest(values, self._k))
        level = self._error / (self._looks * (self._looks + 1) * max(1, len(table)))
        return len(values) >= LEAST and bool((table["probability"] <= level).all())


def lowest(scores, k):
    """The `k` types with the lowest score."""
    ranking = type_means(scores)
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= len(ranking):
        raise ValueError(f"k={k!r}, expected an integer from 1 to {len(ranking)}, the number of module types scored")
    return ranking.index[:k].tolist()


def diagnoses(scores, types, sure):
    """What is wrong with a ranking, in sentences: an empty list where nothing is. `sure` is its confidence."""
    means, texts = type_means(scores), scores["sample"].nunique()
    found = []
    if len(means) > 1 and (means - 1).abs().max() < 0.1:
        found.append(
            f"all scores near 1 ({means.min():.2f} to {means.max():.2f}): inputs meet every type like noise. "
            "Untrained weights, a very narrow model, or texts unlike anything it was trained on"
        )
    if texts < LEAST:
        found.append(f"too few texts ({texts}) to know how sure k={len(types)} is: score at least {LEAST}")
    elif sure < 0.95:
        pair = swaps(scores, types).iloc[0]
        found.append(
            f"ranking undecided: {pair['chosen']} and {pair['other']} are {pair['gap']:.3f} apart and would swap with "
            f"probability {pair['probability']:.0%}. Score more texts, or choose another k"
        )
    return found


def type_means(scores):
    """Score of each type as a Series, lowest first: mean over texts per module, then over modules."""
    return _wide(scores).mean().rename_axis("type").sort_values(kind="stable")


def _wide(scores):
    """`per_text` of a frame of scores, or what it has returned before."""
    made = getattr(getattr(scores, "columns", None), "name", None) == "type"
    return scores if made else per_text(scores)


def _check(scores):
    missing = {"sample", "module", "type", "nfn"} - set(getattr(scores, "columns", ()))
    if missing:
        raise ValueError(f"scores lacks the columns {sorted(missing)}: expected the frame that nfn_scores returns")
    if not len(scores):
        raise ValueError("scores is an empty frame: there is nothing to rank")
    if not np.isfinite(scores["nfn"]).all() or (scores["nfn"] < 0).any():
        bad = scores[~np.isfinite(scores["nfn"]) | (scores["nfn"] < 0)].iloc[0]
        raise ValueError(f"scores holds nfn={bad['nfn']} for module {bad['module']!r}, never a legitimate score")
    if (twice := scores.duplicated(["sample", "module"])).any():
        sample, module = scores.loc[twice, ["sample", "module"]].iloc[0]
        raise ValueError(
            f"scores holds sample {sample} of module {module!r} twice: where frames are joined, number their samples "
            "apart, or score all texts in one call"
        )


def _intervals(scores, by, level):
    if not isinstance(level, float) or not 0 < level < 1:
        raise ValueError(f"level={level!r}, expected a number between 0 and 1, such as 0.95")
    values = per_text(scores, by)
    half = student.ppf((1 + level) / 2, len(values) - 1) * values.std() / np.sqrt(len(values))
    mean = values.mean()
    table = pd.DataFrame({"nfn": mean, "low": mean - half, "high": mean + half})
    table["modules"] = scores.groupby(by)["module"].nunique()[table.index].to_numpy()
    table["samples"] = len(values)
    return table.rename_axis(by).reset_index().sort_values("nfn", kind="stable", ignore_index=True)
