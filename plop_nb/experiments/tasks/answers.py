"""How an answer is read from a completion: its final number, or what stands between tags."""

import re
from collections.abc import Callable
from fractions import Fraction
from functools import cache

from plop_nb.experiments.tasks.task import Example
from plop_nb.texts import reasoning_gym

MARK = re.compile(r"####|The answer is:?")
# Of any script, with raised digits and fractions: a run of characters with one is read as a number
DIGIT = re.compile(r"[\d²³¹¼-¾⁰-₉⅐-↉]")

SCALES = "dozen|hundred|thousand|million|billion|trillion"
# What is made plainer first; a blank within a number (1 000, 3 1/2, 5 million, 2 \pi) becomes "_"
PLAINER = (
    (re.compile(r"[^\S\n]+"), " "),
    (re.compile("[−–‐‑﹣]"), "-"),
    (re.compile(r"(?<=\d) ?(?=\\[dt]?frac\{)"), "_"),
    (re.compile(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}"), r"{\1/\2}"),
    (re.compile(r" ?(?<!\S)([-+*/^x×·]|\\times|\\cdot)(?!\S) ?"), r"\1"),
    (re.compile(rf"(?<=\d) (?=\d{{3}}(?!\d)|\d+/\d|[π√^]|\\pi|\\sqrt|(?:{SCALES})\b)"), "_"),
)
NUMBER = re.compile(
    r"""
    (?:.*(?:[=≈~<>≤≥→]|\\boxed\{) | \D*[:\u3001-\u9fff])?    # what it is the value of
    (?:[\\$€£¥₹*_`"'“(\[{#] | [A-Z]{1,2}\$ | USD | EUR)*
    (?P<sign>[-+]?) [$€£¥₹]?
    (?: (?P<decimal>
            (?: [1-9]\d{0,2} (?P<comma>,|\{,\}|,\\!|_)\d{3} (?:(?P=comma)\d{3})* | \d+)(?:\.\d+)?
          | \.\d+
        )(?:[eE](?P<exponent>[-+]?\d{1,3}))?
      | (?P<base>\d+) \^ \{?(?P<power>[-+]?\d{1,3})\}?
      | (?:(?P<whole>\d+)_)? \{?(?P<above>\d+)[/⁄](?P<below>\d+)\}?
    )
    (?:km|cm|mm|kg|mg|ml|lbs?|oz|ft|hrs?|mins?|am|pm|mph|USD|EUR
      | \^?\{?\\circ\}? | [-/][A-Za-z]{3,})?                 # 90^{\circ}, 5-year, 5/hour
    [%°\\$€£*_`"'”)\]}.,;:!?。，]*
    """,
    re.VERBOSE | re.ASCII,
)
LONGEST = 700  # characters of a number, with what stands around it
LARGEST = 10**300

OPEN, CLOSE = "<answer>", "</answer>"
INSTRUCTION = f"Think step by step, then end with the number alone, as {OPEN}number{CLOSE}."
# [0-9], because \d and Decimal() take the digits of any script
PLAIN_NUMBER = re.compile(r"[-+]?(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?")


def final_number(text: str) -> str:
    r"""The number after `####` or "The answer is", else the last one, exactly; "" for none.

    What is read is the first run of characters without blanks that has a digit after a mark, else
    the last such run of the text. It is a number where all of it is a decimal, a power of ten or
    of another integer, a fraction or a mixed number (numerator and denominator up to 10**300),
    apart from currency, emphasis, brackets, punctuation (also `!`) and common units around it, and
    what ends in "=" or ":" before it. Otherwise there is no number: neither a part of the run nor
    an earlier one is read instead. Blanks belong to the run in 1 000 and 3 1/2, on both sides of
    an operator, and before "million" and the like; other words beside it are not looked at.

    Returns
    -------
    str
        An integer or a fraction in lowest terms, as `fractions.Fraction` writes and reads them.

    Examples
    --------
    >>> final_number("6 times 7 is 42. #### 1,042"), final_number("about 3, or $4.")
    ('1042', '4')
    >>> final_number("it is .5"), final_number("3 1/2"), final_number("2.5e3"), final_number("10^2")
    ('1/2', '7/2', '2500', '100')
    >>> final_number(r"\boxed{1{,}234}"), final_number("x = -90°"), final_number("5 apples and 1/3")
    ('1234', '-90', '1/3')
    >>> final_number("1,2,3"), final_number("5 - 7"), final_number("4x"), final_number("2 million")
    ('', '', '', '')
    """
    value = final_value(text)
    return "" if value is None else str(value)


def final_value(text: str) -> Fraction | None:
    """The final number of a text, as `final_number` reads it; None for none."""
    before, *marked = MARK.split(text, maxsplit=1)
    plainer = marked[0] if marked else before
    for pattern, replacement in PLAINER:
        plainer = pattern.sub(replacement, plainer)
    runs = [run for run in plainer.split() if DIGIT.search(run)]
    return _value(runs[0 if marked else -1]) if runs else None


def ends_in(text: str, answer: str) -> bool:
    """Whether the final number of a text is this one, however it is written.

    Raises
    ------
    ValueError
        `answer` is no number.
    """
    right = final_value(answer)
    if right is None:
        raise ValueError(f"answer={answer!r} is not a number that a text could be compared with")
    return final_value(text) == right


def _value(run: str) -> Fraction | None:
    """What a run of characters without blanks is worth; None where it is not understood."""
    number = NUMBER.fullmatch(run) if len(run) <= LONGEST else None
    if number is None:
        return None
    try:
        value = _size(number)
    except ZeroDivisionError:
        return None
    if value is None or max(value.numerator, value.denominator) > LARGEST:
        return None
    return -value if number["sign"] == "-" else value


def _size(number: re.Match[str]) -> Fraction | None:
    """What a number without its sign is worth; None for 3 4/2, which are two."""
    if number["decimal"]:
        exponent = int(number["exponent"] or 0)
        return Fraction(re.sub(r"[^\d.]", "", number["decimal"])) * Fraction(10) ** exponent
    if number["base"]:
        return Fraction(number["base"]) ** int(number["power"])
    part = Fraction(int(number["above"]), int(number["below"]))
    if number["whole"] and part >= 1:
        return None
    return int(number["whole"] or 0) + part


def tagged_answer(text: str) -> str | None:
    """What stands in the one answer that ends `text`; None where the format is not exact."""
    if text.count(OPEN) != 1 or text.count(CLOSE) != 1:
        return None
    inside, closed, after = text.split(OPEN)[1].partition(CLOSE)
    answer = inside.strip()
    is_exact = closed and not after.strip() and not set("<>") & set(answer)
    return answer if is_exact and answer else None


def tagged_answer_is(text: str, answer: str, task: str = "chain_sum") -> bool:
    """Whether `text` ends with the right answer, in the exact format.

    reasoning-gym's checker sees only the number between the tags: it gives partial credit to any
    text that contains the answer, and reads digits of any script.

    Parameters
    ----------
    text : str
        A completion.
    answer : str
        The right answer.
    task : str
        reasoning-gym's name of the task whose checker decides.
    """
    found = tagged_answer(text)
    if found is None or not PLAIN_NUMBER.fullmatch(found):
        return False
    return checker(task)(found, {"answer": answer}) == 1


def first_word_is_exactly(text: str, example: Example) -> bool:
    """Whether the first word, all that stands before a blank, is the example's completion."""
    return text.split()[:1] == example["completion"].split()


def solves(text: str, example: Example) -> bool:
    """The check of a task whose answers stand between tags: see `tagged_answer_is`."""
    return tagged_answer_is(text, example["answer"], example["task"])


@cache
def checker(task: str) -> Callable[..., float]:
    """reasoning-gym's own checker: `checker(task)(text, {"answer": right})` is 0 to 1."""
    return reasoning_gym().get_score_answer_fn(task)
