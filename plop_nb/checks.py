"""Arguments checked in one place, so that every function words the same mistake alike."""

from numbers import Integral, Real
from typing import Any


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
        f"{what} needs {package}, which is not installed: pip install 'plop_nb[{extra}]'"
    )
