"""How an answer is read from a completion: its final number, or what stands between tags."""

import re
from collections.abc import Callable
from decimal import Decimal
from functools import cache

from plop_nb.experiments.tasks.task import Example
from plop_nb.texts import reasoning_gym

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
MARK = re.compile(r"####|The answer is:?")

OPEN, CLOSE = "<answer>", "</answer>"
INSTRUCTION = f"Think step by step, then end with the number alone, as {OPEN}number{CLOSE}."
EXACT = re.compile(rf"{OPEN}\s*([^<>\s][^<>]*?)\s*{CLOSE}\s*\Z")
# [0-9], because \d and Decimal() take the digits of any script
PLAIN_NUMBER = re.compile(r"[-+]?[0-9][0-9,]*(\.[0-9]+)?")


def final_number(text: str) -> str:
    """The number after `####` or "The answer is", else the last one; without commas, "" for none.

    Examples
    --------
    >>> final_number("6 times 7 is 42. #### 1,042"), final_number("about 3, or 4")
    ('1042', '4')
    >>> final_number("none")
    ''
    """
    parts = MARK.split(text)
    marked = len(parts) > 1
    numbers = NUMBER.findall(parts[1] if marked else text)
    if not numbers:
        return ""
    number = numbers[0] if marked else numbers[-1]
    return number.replace(",", "").rstrip(".")


def ends_in(text: str, answer: str) -> bool:
    """Whether the final number of a text is this one, however it is written."""
    number = final_number(text)
    return number != "" and Decimal(number) == Decimal(answer)


def tagged_answer(text: str) -> str | None:
    """What stands in the one answer that ends `text`; None where the format is not exact."""
    if text.count(OPEN) != 1 or text.count(CLOSE) != 1:
        return None
    match = EXACT.search(text, text.index(OPEN))
    return match[1] if match else None


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
