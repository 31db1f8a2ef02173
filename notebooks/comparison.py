"""How a notebook's new output is compared with its saved one: words exactly, rounded numbers as numbers.

A number that is printed with decimals, with an exponent or in percent was rounded, and two processors may
round it to neighbours: 186.4914 here is 186.4915 there. So it may differ by one unit of its last printed
place (pytest's own rule for doctests, the option NUMBER). Whatever else is printed, integers, names (and the
numbers in them), rankings and verdicts among it, has to be the same. So print a choice among numbers, such as a
learning rate, with one place more than sets them apart.
"""

import re

ROUNDED = re.compile(  # not glued to a name, as in Llama-3.2
    r"(?<![\w.-])[-+]?\d+(?:\.(?P<decimals>\d+))?(?:[eE](?P<exponent>[-+]?\d{1,2}(?!\d)))?(?P<percent> ?%)?"
)


def settled(new, saved):
    """`new` with every rounded number that agrees with `saved` as it is written there."""
    parts, start = [], 0
    numbers, expected = list(ROUNDED.finditer(new)), list(ROUNDED.finditer(saved))
    if len(numbers) != len(expected):
        return new
    for number, wanted in zip(numbers, expected):
        parts += [new[start : number.start()], wanted[0] if agree(number, wanted) else number[0]]
        start = number.end()
    text = "".join(parts) + new[start:]
    longer = any(len(number[0]) != len(wanted[0]) for number, wanted in zip(numbers, expected))
    return saved if longer and unspaced(text) == unspaced(saved) else text


def agree(number, wanted):
    """Whether two matches of `ROUNDED` differ by one unit of the last place at most.

    Python writes 0.50 as 0.5, so the last place is that of the number with more decimals.
    """
    if bool(number["percent"]) != bool(wanted["percent"]) or not (is_rounded(number) and is_rounded(wanted)):
        return False
    return abs(value(number) - value(wanted)) <= min(unit(number), unit(wanted)) * 1.001


def is_rounded(match):
    return any(match[part] is not None for part in ("decimals", "exponent", "percent"))


def value(match):
    return float(match[0].rstrip(" %"))


def unit(match):
    """Of the last place that is printed."""
    return 10.0 ** (int(match["exponent"] or 0) - len(match["decimals"] or ""))


def unspaced(text):
    """Without the widths of columns, which change where a number gets longer."""
    return re.sub(r" +", " ", text)
