"""Scores as one value per text: the table that means, intervals and rankings rest on."""

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd

from plop_nb.checks import user_level

ALIKE = 3e-5  # relative difference of scores of the same text
WIDTH = 1e-4  # of a bin of texts that are compared with each other
TINY = 1e-60  # a spread that is none, and whose square still is a number


@dataclass(frozen=True)
class TextTable:
    """Scores as one value per text and group, and how many texts each group rests on."""

    values: pd.DataFrame  # texts x groups, as `per_text` returns it
    reached: pd.Series  # texts that reached any module of the group
    support: pd.Series  # as many texts that reach all modules would tell as much; `reached` at most
    modules: pd.Series | None = None  # how many each group has, where it is known
    copies: int = 0  # texts left out, being copies of others

    @property
    def errors(self) -> pd.Series:
        """Standard error of each group's mean; NaN where no module has two texts."""
        return self.values.std() / np.sqrt(len(self.values))


def text_table(scores: "pd.DataFrame | TextTable", by: str = "type") -> TextTable:
    """Everything that ranks and compares groups rests on this table: made once, used by all.

    A group's mean is the mean over its modules of their means over texts. A module that few texts
    reach (an expert) has a mean of its own error, which `values` and `support` carry: the error of
    a mean of n values is their spread over sqrt(n), so a module reached by m of n texts has its
    deviations widened by sqrt(n (n - 1) / (m (m - 1))). One reached by a single text is taken to
    spread like the others of its group, and independently of them.

    Parameters
    ----------
    scores : pandas.DataFrame or TextTable
        From `nfn_scores`, or a table of `per_text` or of this function, which is taken as it is.
    by : str
        A column of `scores` that is constant for each module.

    Raises
    ------
    ValueError, UserWarning
        As in `by_type`.
    """
    if isinstance(scores, TextTable):
        return scores
    if _is_table(scores, by):
        return TextTable(scores, scores.count(), scores.count())
    scores = _checked(scores, by)
    found = scores.pivot(index="sample", columns="module", values="nfn")
    again = _copies(scores, found)
    if again.any():
        warnings.warn(
            f"{again.sum()} of {len(found)} samples are copies of others (the same score in every "
            "module, and as many tokens): each text counts once",
            stacklevel=user_level(),
        )
    owners = scores.drop_duplicates("module").set_index("module", drop=False)[by]
    groups = owners[found.columns].to_numpy()
    return _grouped(found[~again], groups, by, copies=int(again.sum()))


def _copies(scores, found):
    """Which texts are copies of an earlier one; of a single module that cannot be told.

    To the precision of float32: padding to another length changes the last digits.
    """
    again = np.zeros(len(found), dtype=bool)
    if found.shape[1] < 2:
        return again
    rows = found.to_numpy()
    means = np.log(np.nanmean(rows, axis=1))
    for shift in (0.0, 0.5):  # near the edge of a bin in one, inside it in the other
        bins: dict[float, list[int]] = {}
        for i, number in enumerate(np.floor(means / WIDTH + shift)):
            earlier = bins.setdefault(number, [])
            if any(np.allclose(rows[i], rows[j], ALIKE, 0, equal_nan=True) for j in earlier):
                again[i] = True
            earlier.append(i)
    if again.any() and "tokens" in scores:
        tokens = scores.pivot(index="sample", columns="module", values="tokens")
        again &= tokens.duplicated(keep=False).to_numpy()
    return again


def _is_table(scores, by):
    """Whether this is what `per_text` returns, which may have lost some of its columns."""
    columns = getattr(scores, "columns", None)
    return columns is not None and columns.name == by and "nfn" not in columns


def _grouped(found, groups, by, copies):
    """The table of texts x modules as one of texts x groups."""
    n, texts, means = len(found), found.count(), found.mean()
    spread = found.var()
    usual = spread.groupby(groups).transform("mean").clip(lower=TINY)  # in a module's group
    errors = spread.fillna(usual).clip(lower=TINY) / texts  # squared; NaN: nothing is known
    wide = np.sqrt(n * (n - 1) / (texts * (texts - 1)).where(texts > 1, np.inf))
    deviations = (found - means).fillna(0.0) * wide
    missed = errors.groupby(groups).sum() / errors.where(texts > 1).groupby(groups).sum()
    means = means.groupby(groups).mean()
    values = means + _by_group(deviations, groups, "mean") * np.sqrt(missed)
    values.iloc[0] = values.iloc[0].fillna(means)  # of an unknown spread: its mean, once
    return TextTable(
        values=values.rename_axis(columns=by),
        reached=_by_group(found.notna(), groups, "any").sum(),
        # The spread of few texts comes out too small at times: the usual one is the least.
        support=_support(found, groups, np.maximum(errors, usual / texts).where(texts > 1, 0.0)),
        modules=pd.Series(groups).value_counts()[values.columns],
        copies=copies,
    )


def _support(found, groups, errors):
    """Satterthwaite's degrees of freedom, and one: all texts where each reaches every module.

    `errors` are the squared errors of the modules' means, shared out among the texts behind them.
    """
    parts = _by_group(found.notna() * (errors / found.count()), groups, "sum")
    support = parts.sum() ** 2 / (parts**2).sum()
    return support.round(6).clip(lower=2).fillna(1.0)  # two show a spread; one, that none is known


def _by_group(table, groups, how):
    """Columns of the same group made one."""
    return getattr(table.T.groupby(groups), how)().T


def per_text(scores: pd.DataFrame, by: str = "type") -> pd.DataFrame:
    """One value per text (rows) and group (columns), whose mean is the group's score.

    A text's value is the mean over the group's modules; the columns are named `by`. Where a text
    misses a module (an expert that got none of its tokens), the module's own mean stands in, and
    the texts that reach it count for more: the mean stays that of `by_type`, and the spread over
    texts gives its error. Where no spread is known (each module reached by a single text), the
    column holds the mean once, else NaN. Of texts that are copies of each other the first is kept.
    """
    return text_table(scores, by).values


def check_columns(scores, *more):
    missing = {"sample", "module", "type", "nfn", *more} - set(getattr(scores, "columns", ()))
    if missing:
        raise ValueError(
            f"scores lacks the columns {sorted(missing)}: expected the frame that nfn_scores "
            "returns"
        )
    if (twice := scores.columns.duplicated()).any():
        raise ValueError(f"scores holds the column {scores.columns[twice][0]!r} twice: drop one")
    if not len(scores):
        raise ValueError("scores is an empty frame: there is nothing to rank")


def _checked(scores, by):
    """The columns of a frame of scores that count, in plain dtypes."""
    check_columns(scores, by)
    plain = pd.DataFrame({name: _plain(scores, name) for name in {"sample", "module", "type", by}})
    plain["nfn"] = _numbers(scores["nfn"])
    if "tokens" in scores:
        plain["tokens"] = scores["tokens"].to_numpy()
    bad = plain[~np.isfinite(plain["nfn"]) | (plain["nfn"] <= 0)]
    if len(bad):
        row = bad.iloc[0]
        raise ValueError(
            f"scores holds nfn={row['nfn']} for module {row['module']!r} on sample "
            f"{row['sample']}, never a legitimate score: leave such rows out ({len(bad)}), or "
            "score in float32 where numbers underflow"
        )
    twice = plain.duplicated(["sample", "module"])
    if twice.any():
        sample, module = plain.loc[twice, ["sample", "module"]].iloc[0]
        raise ValueError(
            f"scores holds sample {sample} of module {module!r} twice: where frames are joined, "
            "number their samples apart, or score all texts in one call"
        )
    _check_names(plain[["module", "type"]].drop_duplicates())
    return plain


def _check_names(names):
    """Each module, by a name that is text, is of one type."""
    for name in names.to_numpy().ravel():
        if not isinstance(name, str):
            raise ValueError(
                f"scores holds the name {name!r} of a module or type, expected text: where a file "
                "is read, say so (dtype={'module': str, 'type': str})"
            )
    if (twice := names["module"].duplicated()).any():
        module = names.loc[twice, "module"].iloc[0]
        types = names.loc[names["module"] == module, "type"].tolist()
        raise ValueError(
            f"scores holds module {module!r} with the types {types}: frames of several models "
            "are ranked one by one"
        )


def _plain(scores, name):
    """A column of keys: nothing missing, and no categories, which would count where unused."""
    column = scores[name]
    if column.isna().any():
        raise ValueError(
            f"scores holds no {name} (NaN) in {column.isna().sum()} rows: name it, or leave the "
            "rows out"
        )
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    return column.reset_index(drop=True)


def _numbers(column):
    """A column of any dtype as float64, missing ones as NaN."""
    try:
        if column.dtype.kind not in "fiuO":
            raise TypeError("they would be changed on the way to a float")
        return column.to_numpy(dtype=float, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"scores holds no numbers in the column 'nfn' (dtype {column.dtype}): {error}"
        ) from error
