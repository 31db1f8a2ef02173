"""How an answer is read from a completion: its final number, or what stands between tags."""

import re
from collections.abc import Callable
from fractions import Fraction
from functools import cache

from plop_nb.experiments.tasks.task import Example
from plop_nb.texts import reasoning_gym

MARK = re.compile(r"####|The answer is:?")

# How LaTeX and typography write what the patterns below read
PLAINER = (
    (r"[−–‐‑﹣-]", "-"),
    (r"\\!|\\(?=[$%])", ""),
    (r"\{,\}", ","),
    (r"[\u00a0\u2009\u202f]|\\[,;: ]", " "),
    (r"\\times|\\cdot|[×·]", "*"),
    (r"⁄", "/"),
    (r"\^\{([-+]?\d+)\}", r"^\1"),
    (r"(?<=\d)\*\*(?=[-+]?\d)", "^"),
    (r"(?<=\d)\s*(?=\\[dt]?frac)", " "),
    (r"\\[dt]?frac\{(\d+)\}\{(\d+)\}", r"\1/\2"),
    (r"\\[dt]?frac", "⅟"),  # of something else: a form that is not understood
    (r"(^|[=(:$])([ \t]*)-[ \t]+(?=\$?\.?\d)", r"\1\2-"),  # a sign, where nothing is taken from
)
# Whatever looks like a number, with all that belongs to it, so that no part of it is taken for
# the whole: `\d` and what follows it here are the digits of any script, raised ones and fractions.
DIGIT = r"[\d²³¹¼-¾⁰-₉⅐-↉]"
# A hyphen or a dot after one of these is no sign and begins no decimal
OPERAND = r"[\dA-Za-z_)\]}%.]"
FORM = re.compile(
    rf"""
    (?P<before>[A-Za-z]                         # the end of a name
      | [_/^√±][{{(]?|(?:sqrt|\}})\{{)?          # an index, a power, a root, a fraction
    (?P<sign>(?<!{OPERAND})[-+])?
    [$€£¥₹]?
    (?P<body>
        \d{{4}}-\d\d?-\d\d?                     # a date
      | (?:(?<!{OPERAND})\.)?{DIGIT}+
        (?: (?: [.,:'’_]                        # groups of digits, times, versions, lists
              | [ ](?=\d{{3}}(?!\d)|\d+/\d)     # 1 000, 3 1/2
              | [ ]?[/*x][ ]?[-+]?
              | [eE^][-+]?
            ) \.?{DIGIT}+ )*
    )
    (?P<after>(?=\s?(?:\^|\\(?:pi|sqrt)|[π√∞⅟])
      | \s(?:hundred|thousand|million|billion|trillion)|[kKMB]\b))?
    """,
    re.VERBOSE,
)

# The forms that are understood
WHOLE = r"(?:[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d{0,2}(?:[ ]\d{3})+|\d+)"
DECIMAL = rf"(?:{WHOLE}(?:\.\d+)?|\.\d+)"
SCIENTIFIC = re.compile(rf"({DECIMAL})(?:[eE]([-+]?\d{{1,3}}))?", re.ASCII)
POWER = re.compile(rf"(?:({DECIMAL}) ?[*x] ?)?(\d{{1,9}})\^([-+]?\d{{1,3}})", re.ASCII)
QUOTIENT = re.compile(r"(?:(\d+) )?(\d+) ?/ ?(\d+)", re.ASCII)
LONGEST = 200  # characters of a number

OPEN, CLOSE = "<answer>", "</answer>"
INSTRUCTION = f"Think step by step, then end with the number alone, as {OPEN}number{CLOSE}."
# [0-9], because \d and Decimal() take the digits of any script
PLAIN_NUMBER = re.compile(r"[-+]?(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?")


def final_number(text: str) -> str:
    """The number after `####` or "The answer is", else the last one, exactly; "" for none.

    Decimals, powers of ten, fractions and mixed numbers are read, in plain text and in LaTeX; a
    unit or a percent sign after the number is passed over. A form that is not understood (a list,
    a date, a root) is no number, and no part of it is taken for one.

    Returns
    -------
    str
        An integer or a fraction in lowest terms, as `fractions.Fraction` writes and reads them.

    Examples
    --------
    >>> final_number("6 times 7 is 42. #### 1,042"), final_number("about 3, or 4")
    ('1042', '4')
    >>> final_number("it is .5"), final_number("3 1/2"), final_number("2.5e3"), final_number("5-7")
    ('1/2', '7/2', '2500', '7')
    >>> final_number("none"), final_number("1,2,3"), final_number("x^2"), final_number("2 million")
    ('', '', '', '')
    """
    value = final_value(text)
    return "" if value is None else str(value)


def final_value(text: str) -> Fraction | None:
    """The final number of a text, as `final_number` reads it; None for none."""
    parts = MARK.split(text)
    marked = len(parts) > 1
    forms = list(FORM.finditer(_plainer(parts[1] if marked else text)))
    return _signed(forms[0] if marked else forms[-1]) if forms else None


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


def _plainer(text: str) -> str:
    for pattern, replacement in PLAINER:
        text = re.sub(pattern, replacement, text)
    return text


def _signed(form: re.Match[str]) -> Fraction | None:
    """What a number is worth; None where it belongs to something that is not understood."""
    in_more = form["before"] is not None or form["after"] is not None
    if in_more or len(form["body"]) > LONGEST:
        return None
    value = _value(form["body"])
    return -value if value is not None and form["sign"] == "-" else value


def _value(form: str) -> Fraction | None:
    """What a number without its sign is worth; None where it is not understood."""
    try:
        if match := SCIENTIFIC.fullmatch(form):
            digits, exponent = match.groups(default="0")
            return Fraction(re.sub("[ ,]", "", digits)) * Fraction(10) ** int(exponent)
        if match := POWER.fullmatch(form):
            factor, base, exponent = match.groups(default="1")
            return Fraction(re.sub("[ ,]", "", factor)) * Fraction(base) ** int(exponent)
        if match := QUOTIENT.fullmatch(form):
            whole, above, below = match.groups(default="")
            part = Fraction(int(above), int(below))
            if whole:  # 3 1/2, but 3 4/2 is two numbers
                return int(whole) + part if part < 1 else None
            return part
    except ZeroDivisionError:
        pass
    return None


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


def solves(text: str, example: Example) -> bool:
    """The check of a task whose answers stand between tags: see `tagged_answer_is`."""
    return tagged_answer_is(text, example["answer"], example["task"])


@cache
def checker(task: str) -> Callable[..., float]:
    """reasoning-gym's own checker: `checker(task)(text, {"answer": right})` is 0 to 1."""
    return reasoning_gym().get_score_answer_fn(task)
