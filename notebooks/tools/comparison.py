"""How a notebook's new output is compared with its saved one: words exactly, numbers as numbers.

A number that is printed with decimals, with an exponent or in percent was rounded, and two
processors may round it to neighbours: 186.4914 here is 186.4915 there. So it may differ by one unit
of its last printed place (pytest's own rule for doctests, the option NUMBER). Whatever else is
printed, integers, names (and the numbers in them), rankings and verdicts among it, has to be the
same. So print a choice among numbers, such as a learning rate, with one place more than sets them
apart.
"""

import re

ROUNDED = re.compile(
    r"""
    (?<![\w.-])  # not glued to a name, as in Llama-3.2
    [-+]?\d+
    (?:\.(?P<decimals>\d+))?
    (?:[eE](?P<exponent>[-+]?\d{1,2}(?!\d)))?
    (?P<percent>[ ]?%)?
    """,
    re.VERBOSE,
)


def settled(new: str, saved: str) -> str:
    """`new` with every rounded number that agrees with `saved` as it is written there."""
    numbers, expected = list(ROUNDED.finditer(new)), list(ROUNDED.finditer(saved))
    if len(numbers) != len(expected):
        return new
    parts, start, moved = [], 0, False
    for number, wanted in zip(numbers, expected, strict=True):
        written = wanted[0] if agree(number, wanted) else number[0]
        parts += [new[start : number.start()], written]
        start = number.end()
        moved = moved or len(number[0]) != len(wanted[0])
    text = "".join(parts) + new[start:]
    return saved if moved and unspaced(text) == unspaced(saved) else text


def agree(number: re.Match, wanted: re.Match) -> bool:
    """Whether two matches of `ROUNDED` differ by one unit of the last place at most.

    Python writes 0.50 as 0.5, so the last place is that of the number with more decimals.
    """
    if not (is_rounded(number) and is_rounded(wanted)):
        return False
    if bool(number["percent"]) != bool(wanted["percent"]):
        return False
    return abs(value(number) - value(wanted)) <= min(unit(number), unit(wanted)) * 1.001


def is_rounded(match: re.Match) -> bool:
    """Whether the number was printed with decimals, with an exponent or in percent."""
    return any(match[part] is not None for part in ("decimals", "exponent", "percent"))


def value(match: re.Match) -> float:
    """The number, percents as they are printed."""
    return float(match[0].rstrip(" %"))


def unit(match: re.Match) -> float:
    """Of the last place that is printed."""
    exponent, decimals = int(match["exponent"] or 0), match["decimals"] or ""
    return 10.0 ** (exponent - len(decimals))


def unspaced(text: str) -> str:
    """Without the widths of columns, which change where a number gets longer."""
    return re.sub(r" +", " ", text)
