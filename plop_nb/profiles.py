"""Scores in a file: to keep, to send, and to pool with those of others."""

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd

from plop_nb.checks import missing_extra
from plop_nb.finished_files import written_whole

COLUMNS = {"module", "type", "layer", "nfn"}  # and `sample`, or `samples` in a profile
MAGIC = b"PAR1"  # every parquet file begins and ends with it


def save_scores(scores: pd.DataFrame, path: str | os.PathLike) -> None:
    """Write scores into a parquet file, with `attrs`: whole, or not at all.

    Parameters
    ----------
    scores : pandas.DataFrame
        From `nfn_scores` (every text and module), or of `by_module`: a profile of some 10 kB, with
        each module's mean over texts, its interval and the number of texts.
    path : str or Path
        A file, such as "scores.parquet"; what stands there is replaced.

    Raises
    ------
    ValueError
        `scores` is no such frame, its `attrs` are not in the terms of JSON, or the folder of `path`
        does not exist.
    TypeError
        `path` is no path.
    OSError
        The file cannot be written; what stood there still does.
    ImportError
        pyarrow is not installed.
    """
    path = _path(path)
    _check_pyarrow()
    if problem := _problem(scores):
        raise ValueError(f"scores {problem}: expected the frame of nfn_scores, or of by_module")
    if not _is_json(scores.attrs):
        raise ValueError(
            f"scores.attrs={scores.attrs!r:.80} would not come back as it is: keep to dicts with "
            "names, lists, text and numbers"
        )
    if not path.parent.is_dir():
        raise ValueError(f"path={str(path)!r}: its folder does not exist, make it first")
    with written_whole(path) as unfinished:
        scores.to_parquet(unfinished, engine="pyarrow", write_page_checksum=True)


def load_scores(path: str | os.PathLike) -> pd.DataFrame:
    """The scores that `save_scores` has written: the same columns, dtypes and `attrs`.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    pandas.DataFrame
        `attrs` say what the scores are of: see `origin.origin`.

    Raises
    ------
    OSError
        There is no such file, or it cannot be read.
    ValueError
        It is of another kind, or damaged.
    TypeError
        `path` is no path.
    ImportError
        pyarrow is not installed.
    """
    path = _path(path)
    _check_pyarrow()
    with open(path, "rb") as file:
        is_parquet = file.read(len(MAGIC)) == MAGIC
    if not is_parquet:
        raise ValueError(f"path={str(path)!r} is no parquet file: expected one of save_scores")
    try:
        scores = pd.read_parquet(path, engine="pyarrow", page_checksum_verification=True)
    except Exception as error:  # damage shows itself in many ways
        raise ValueError(
            f"path={str(path)!r} is damaged ({error}): fetch it, or save the scores, again"
        ) from error
    if problem := _problem(scores):
        raise ValueError(f"path={str(path)!r} {problem}: expected a file of save_scores")
    return scores


def _path(path: Any) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path={path!r:.40} is {type(path).__name__}, expected the path of a file")
    return Path(path)


def _check_pyarrow() -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise missing_extra("a file of scores", "pyarrow (of datasets)", "hub") from error


def _problem(scores: Any) -> str | None:
    """Why this is no frame of scores; None where it is one."""
    if not isinstance(scores, pd.DataFrame):
        return f"is {type(scores).__name__}"
    if missing := COLUMNS - set(scores.columns):
        return f"lacks the columns {sorted(missing)}"
    if not {"sample", "samples"} & set(scores.columns):
        return "has neither the column 'sample' nor 'samples'"
    return None if len(scores) else "has no rows"


def _is_json(attrs: dict) -> bool:
    """Whether what is written down in JSON is read back the same."""
    try:
        return json.loads(json.dumps(attrs)) == attrs
    except (TypeError, ValueError):
        return False
