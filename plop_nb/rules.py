"""In which order module types get adapters: by their scores, or by another rule."""

import numpy as np
import pandas as pd

from plop_nb.stats import type_means
from plop_nb.text_table import TextTable

RULES = ("nfn", "size")


def ordered_types(table: TextTable, sizes: pd.Series | None, rule: str | pd.Series) -> list[str]:
    """All types, the first to get adapters first.

    Parameters
    ----------
    table : TextTable
        Of the scores.
    sizes : pandas.Series or None
        Adapter parameters of each type at rank 1; the rule "size" needs it.
    rule : {"nfn", "size"} or pandas.Series
        See `place`.

    Raises
    ------
    ValueError
        An unknown rule, or a Series that lacks a type or holds what is no finite number.
    """
    means = type_means(table)
    if isinstance(rule, pd.Series):
        return _checked(rule, means.index).sort_values(kind="stable").index.tolist()
    if rule == "nfn":
        return means.index.tolist()
    if rule == "size" and sizes is not None:
        return sizes.sort_values(ascending=False, kind="stable").index.tolist()
    raise ValueError(
        f"rule={rule!r}, expected one of {RULES}, or a pandas.Series {{type: number}} whose lowest "
        "numbers come first"
    )


def name_of(rule: str | pd.Series) -> str:
    """A rule in a few words."""
    if isinstance(rule, pd.Series):
        return f"{rule.name or 'numbers'} given by hand"
    return rule


def _checked(rule: pd.Series, types: pd.Index) -> pd.Series:
    """The numbers of all types of a rule that is given as such."""
    if missing := [name for name in types if name not in rule.index]:
        raise ValueError(f"rule has no number for the types {missing}: give one for each of them")
    numbers = pd.to_numeric(rule[types], errors="coerce").astype(float)
    if rule.index.has_duplicates or not np.isfinite(numbers).all():
        raise ValueError(
            f"rule={rule.to_dict()!r}, expected one finite number for each of {list(types)}"
        )
    return numbers
