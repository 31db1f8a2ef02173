"""Numbers of layers, written short."""

from collections.abc import Iterable


def ranges(numbers: Iterable[int | None]) -> str:
    """Numbers of layers in short: "0-3, 7"; empty where there are none.

    Examples
    --------
    >>> ranges([7, 2, 0, 1, None])
    '0-2, 7'
    """
    found: list[list[int]] = []
    for number in sorted({n for n in numbers if n is not None}):
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found)
