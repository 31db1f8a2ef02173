"""Tasks that reasoning-gym draws: sums, word problems, syllogisms, words spelled backward."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from plop_nb.checks import natural_number, positive_integer, random_seed
from plop_nb.experiments.tasks.answers import (
    CLOSE,
    OPEN,
    PLAIN_NUMBER,
    checker,
    ends_in,
    first_word_is_exactly,
    solves,
)
from plop_nb.experiments.tasks.task import Drawn, Example, Sizes, Task, by_prompt, deal
from plop_nb.texts import STRIDE, reasoning_gym, shipped

# Seeds between the texts of `load_texts` and the examples of a task: a score sees no test prompt.
APART = 1000
SHARE_OF_NO = 0.45  # asked for among syllogisms: gives half of those that stay
TRIES = 50  # draws for each different sum that is wanted


@dataclass(frozen=True)
class Kind:
    """A generator of reasoning-gym, and how its entries become prompts and completions."""

    generator: str
    completion: Callable[[dict], str]
    check: Callable[[str, Example], bool]
    new_tokens: int
    options: Mapping[str, Any]


def sums(sizes: Sizes, seed: int) -> Task:
    """Sums of two or three numbers below 100, answered in the first line."""
    options = {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2}
    kind = Kind("chain_sum", _answer, _judged("chain_sum", _number_of_first_line), 8, options)
    return _generated("sums", kind, sizes, seed)


def gsm(sizes: Sizes, seed: int) -> Task:
    """Word problems with their chain of thought, answered by the final number."""
    kind = Kind("gsm_symbolic", _thought, _ends_in_answer, 200, {})
    return _generated("gsm", kind, sizes, seed)


def syllogisms(sizes: Sizes, seed: int) -> Task:
    """Syllogisms, answered by the first word, yes or no."""
    kind = Kind("syllogism", _answer, _judged("syllogism", _first_word), 4, {})
    return _generated("syllogisms", kind, sizes, seed)


def short_sums(sizes: Sizes, seed: int) -> Task:
    """Sums and differences of two numbers below 100, such as "15 - 43 =", in a few tokens."""
    splits = deal(short_candidates("short_sums", sizes, seed), sizes, "short_sums")
    return Task("short_sums", **splits, check=_first_line_is, new_tokens=8)


def spelling(sizes: Sizes, seed: int) -> Task:
    """Words of three to six letters, to be spelled backward."""
    splits = deal(short_candidates("spelling", sizes, seed), sizes, "spelling")
    return Task("spelling", **splits, check=first_word_is_exactly, new_tokens=8)


def short_syllogisms(sizes: Sizes, seed: int) -> Task:
    """Syllogisms in a line, such as "All cats are dogs. No dogs are birds. So no cats are birds?".

    The answers are reasoning-gym's, where these are right (see `has_undistributed_middle`). About
    half of them are yes.
    """
    splits = deal(short_candidates("short_syllogisms", sizes, seed), sizes, "short_syllogisms")
    return Task("short_syllogisms", **splits, check=first_word_is, new_tokens=4)


def short_candidates(name: str, sizes: Sizes, seed: int) -> Iterator[Drawn]:
    """Examples of a cheap task, by reasoning-gym; where it is not installed, those that ship."""
    try:
        reasoning_gym()
    except ImportError:
        return map(by_prompt, shipped(name, sum(sizes.values()), seed))
    return map(by_prompt, DRAWN[name](seed))


def _drawn_sums(seed: int) -> Iterator[Example]:
    options = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}
    for entry in _entries("chain_sum", seed, options):
        yield _asked(f"{entry['metadata']['expression']} =", entry)


def _drawn_words(seed: int) -> Iterator[Example]:
    for entry in _entries("spell_backward", seed, {"min_word_len": 3, "max_word_len": 6}):
        yield _asked(f"{entry['metadata']['word']} backward:", entry)


def _drawn_syllogisms(seed: int) -> Iterator[Example]:
    for entry in _entries("syllogism", seed + APART, {"invalid_ratio": SHARE_OF_NO}):
        if not has_undistributed_middle(entry):
            yield _asked(_in_a_line(**entry["metadata"]), entry)


# What reasoning-gym gives for the cheap tasks, for a seed; some repeat.
DRAWN: dict[str, Callable[[int], Iterator[Example]]] = {
    "short_sums": _drawn_sums,
    "spelling": _drawn_words,
    "short_syllogisms": _drawn_syllogisms,
}


def has_undistributed_middle(entry: dict) -> bool:
    """Whether a syllogism of reasoning-gym is called valid by mistake.

    "All cats are dogs. Some dogs are birds." says nothing of cats and birds: the dogs that are
    birds may be others than the cats. The generator (0.1.25) does not check this, and answers yes
    to "Some cats are birds", and so with "are not" in the place of "are".

    Parameters
    ----------
    entry : dict
        Of the generator "syllogism": its middle term is the predicate of the first premise and
        the subject of the second.
    """
    about = entry["metadata"]
    if about["type"] != "syllogism" or not about["is_valid"]:
        return False
    return about["premise1"].startswith("All ") and about["premise2"].startswith("Some ")


def digit_sums(
    train: int = 100,
    test: int = 50,
    *,
    validation: int = 0,
    terms: int = 2,
    digits: int = 1,
    seed: int = 0,
) -> Task:
    """Sums for GRPO, those of two splits without a sum in common.

    Two sums are the same where only the order of their terms differs. With 2 terms of 1 digit
    there are 155 of them. The answer is to stand between `<answer>` and `</answer>`.

    Parameters
    ----------
    train, test, validation : int
        How many.
    terms, digits : int
        Of each sum.
    seed : int
        Which, and how they are divided: 0 to 2**32 - 1.

    Returns
    -------
    Task
        Its examples have `prompt`, `completion` (the right answer in its tags), and for the
        checker `answer` and `task`.

    Raises
    ------
    ValueError
        A number is out of range, or there are not so many sums.
    ImportError
        reasoning-gym is not installed.
    """
    sizes = {
        "test": positive_integer("test", test),
        "validation": natural_number("validation", validation),
        "train": positive_integer("train", train),
    }
    terms, digits = positive_integer("terms", terms), positive_integer("digits", digits)
    draws = TRIES * sum(sizes.values())
    candidates = _digit_sums(draws, terms, digits, random_seed("seed", seed))
    splits = deal(candidates, sizes, f"digit_sums of terms={terms}, digits={digits}")
    return Task("digit_sums", **splits, check=solves, new_tokens=16)


def _digit_sums(draws: int, terms: int, digits: int, seed: int) -> Iterator[Drawn]:
    sizes = {"min_terms": terms, "max_terms": terms, "min_digits": digits, "max_digits": digits}
    for draw in range(draws):
        entry = _entry("chain_sum", seed * STRIDE + draw, sizes)
        signed = re.findall(r"[+-] \d+", f"+ {entry['metadata']['expression']}")
        completion = f"{OPEN}{entry['answer']}{CLOSE}"
        example = {"prompt": f"{entry['question']}\n", "completion": completion}
        example |= {"answer": entry["answer"], "task": "chain_sum"}
        yield Drawn(example, frozenset({" ".join(sorted(signed))}))


def _generated(name: str, kind: Kind, sizes: Sizes, seed: int) -> Task:
    splits = deal(_candidates(kind, seed + APART), sizes, name)
    return Task(name, **splits, check=kind.check, new_tokens=kind.new_tokens)


def _candidates(kind: Kind, seed: int) -> Iterator[Drawn]:
    for draw in range(seed * STRIDE, (seed + 1) * STRIDE):
        entry = _entry(kind.generator, draw, kind.options)
        example = {
            "prompt": f"{entry['question']}\nAnswer:",
            "completion": f" {kind.completion(entry)}",
            "entry": {"answer": entry["answer"]},
        }
        yield by_prompt(example)


def _entries(generator: str, seed: int, options: Mapping[str, Any]) -> Iterator[dict]:
    """What a generator draws, in the same order however many are taken."""
    options = {"size": STRIDE, "seed": seed * STRIDE, **options}
    return iter(reasoning_gym().create_dataset(generator, **options))


def _in_a_line(premise1: str, premise2: str, conclusion: str, **_: Any) -> str:
    return f"{premise1}. {premise2}. So {conclusion.lower()}?"


def _asked(prompt: str, entry: dict) -> Example:
    return {"prompt": prompt, "completion": f" {entry['answer']}"}


def _entry(generator: str, draw: int, options: Mapping[str, Any]) -> dict:
    return reasoning_gym().create_dataset(generator, size=1, seed=draw, **options)[0]


def _judged(generator: str, read: Callable[[str], str]) -> Callable[[str, Example], bool]:
    """A check by reasoning-gym's own checker, of what `read` finds in a completion."""

    def check(text: str, example: Example) -> bool:
        # asked for at each call: the checker holds a random seed, no part of what this check does
        return checker(generator)(read(text) or None, example["entry"]) == 1

    return check


def _answer(entry: dict) -> str:
    return entry["answer"]


def _thought(entry: dict) -> str:
    return entry["metadata"]["answer_cot"]


def _number_of_first_line(text: str) -> str:
    line = text.strip().split("\n")[0].strip()
    # the checker reads "4,5" as 45, and the digits of any script
    return line if PLAIN_NUMBER.fullmatch(line.removesuffix(".")) else ""


def _first_word(text: str) -> str:
    match = re.search(r"\w+", text)
    return match[0] if match else ""


def first_word_is(text: str, example: Example) -> bool:
    """Whether the first word of a completion, without punctuation, is the wanted one."""
    return _first_word(text) == example["completion"].strip()


def _first_line_is(text: str, example: Example) -> bool:
    return ends_in(_number_of_first_line(text), example["completion"])


def _ends_in_answer(text: str, example: Example) -> bool:
    return ends_in(text, example["entry"]["answer"])  # reasoning-gym's own check ignores signs
