"""Tasks from data sets of the Hub: ANLI, and MetaMathQA with plain and with tagged answers."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from plop_nb.checks import missing_extra
from plop_nb.experiments.tasks.answers import (
    INSTRUCTION,
    PLAIN_NUMBER,
    ends_in,
    final_number,
    first_word_is_exactly,
    solves,
)
from plop_nb.experiments.tasks.task import Drawn, Example, Sizes, Task, by_prompt, deal

ENTAILMENT = ("entailment", "neutral", "contradiction")
ANLI_SPLITS = {"train": "train_r3", "validation": "dev_r3", "test": "test_r3"}


@dataclass(frozen=True)
class Row:
    """A row of a Hub data set, which says what is wrong with it."""

    source: str
    number: int  # after shuffling
    cells: Mapping[str, Any]

    def cell(self, column: str) -> Any:
        if column not in self.cells:
            raise ValueError(
                f"the Hub data set {self.source!r} has no column {column!r}, but "
                f"{tuple(self.cells)}: make a Task of your own from these"
            )
        return self.cells[column]

    def text(self, column: str) -> str:
        value = self.cell(column)
        if not isinstance(value, str):
            raise self.error(column, value, "a text")
        return value

    def error(self, column: str, value: Any, expected: str) -> ValueError:
        """What to raise for a cell that is not as expected."""
        return ValueError(
            f"{column}={value!r} in row {self.number} of the Hub data set {self.source!r} "
            f"(shuffled), expected {expected}: leave such rows out, in a Task of your own"
        )


def anli(sizes: Sizes, seed: int) -> Task:
    """The third round of ANLI: entailment, neutral or contradiction."""
    sources = {}
    for split in sizes:
        rows = shuffled("facebook/anli", seed, split=ANLI_SPLITS[split])
        sources[split] = map(_anli_example, rows)
    return Task("anli", **deal(sources, sizes, "anli"), check=first_word_is_exactly, new_tokens=6)


def _anli_example(row: Row) -> Drawn:
    premise, hypothesis, label = row.text("premise"), row.text("hypothesis"), row.cell("label")
    if not isinstance(label, int) or label not in range(3):  # -1 stands for no label
        raise row.error("label", label, f"0, 1 or 2 ({', '.join(ENTAILMENT)})")
    question = "Entailment, neutral or contradiction?"
    prompt = f"{premise}\nHypothesis: {hypothesis}\n{question}\nAnswer:"
    return by_prompt({"prompt": prompt, "completion": f" {ENTAILMENT[label]}"})


def metamath(sizes: Sizes, seed: int) -> Task:
    """MetaMathQA with its chain of thought, tested on GSM8K.

    One example of each original question: its rephrasings must not meet again in another split.
    """
    known = _metamath_candidates(seed)
    tested = shuffled("openai/gsm8k", seed, split="test", name="main")
    sources = {"train": known, "validation": known, "test": map(_gsm8k_example, tested)}
    splits = deal(sources, sizes, "metamath")
    return Task("metamath", **splits, check=_same_final_number, new_tokens=300)


def _metamath_candidates(seed: int) -> Iterator[Drawn]:
    for row, answer in _metamath_rows(seed):
        response = row.text("response")
        if not PLAIN_NUMBER.fullmatch(answer) or not ends_in(response, answer):
            continue  # formulas and fractions, and what no check of numbers would take
        source = row.text("original_question")
        example = _question(row.text("query"), response) | {"source": source}
        identities = frozenset({example["prompt"].strip(), source.strip()})
        yield Drawn(example, identities)


def _gsm8k_example(row: Row) -> Drawn:
    solution = row.text("answer")
    thought, mark, answer = re.sub(r"<<.*?>>", "", solution).partition("####")
    if not mark or not PLAIN_NUMBER.fullmatch(answer.strip()):
        raise row.error("answer", solution, "a text that ends with #### and a number")
    solution = f"{thought.strip()}\nThe answer is: {answer.strip()}"
    return by_prompt(_question(row.text("question"), solution))


def _question(question: str, answer: str) -> Example:
    return {"prompt": f"{question}\nAnswer:", "completion": f" {answer}"}


def _same_final_number(text: str, example: Example) -> bool:
    return final_number(text) == final_number(example["completion"]) != ""


def metamath_tagged(sizes: Sizes, seed: int) -> Task:
    """MetaMathQA for GRPO: messages that ask for the answer between tags.

    Rephrasings of one original question stay in one split.
    """
    splits = deal(_tagged_candidates(seed), sizes, "metamath_tagged")
    return Task("metamath_tagged", **splits, check=solves, new_tokens=256)


def _tagged_candidates(seed: int) -> Iterator[Drawn]:
    for row, answer in _metamath_rows(seed):
        if PLAIN_NUMBER.fullmatch(answer):
            message = {"role": "user", "content": f"{row.text('query')}\n\n{INSTRUCTION}"}
            # The checker of chain_sum compares numbers; that of gsm_symbolic ignores signs and
            # what follows a comma.
            example = {"prompt": [message], "answer": answer, "task": "chain_sum"}
            yield Drawn(example, frozenset({row.text("original_question")}))


def _metamath_rows(seed: int) -> Iterator[tuple[Row, str]]:
    """The rows of MetaMathQA in random order, each with its final answer."""
    for row in shuffled("meta-math/MetaMathQA", seed, split="train"):
        yield row, row.text("response").rsplit("The answer is: ", 1)[-1].strip()


def shuffled(source: str, seed: int, **options: Any) -> Iterator[Row]:
    """The rows of a Hub data set in random order.

    Raises
    ------
    ImportError
        The package datasets is not installed.
    ValueError
        The data set could not be loaded.
    """
    try:
        import datasets
    except ImportError as error:
        raise missing_extra("this task", "datasets", "hub") from error
    try:
        rows = datasets.load_dataset(source, **options).shuffle(seed=seed)
    except Exception as error:  # many kinds: no network, no such split
        raise ValueError(
            f"this task needs the Hub data set {source!r}, which could not be loaded "
            f"({type(error).__name__}: {error})"
        ) from error
    for number, cells in enumerate(rows):
        yield Row(source, number, cells)
