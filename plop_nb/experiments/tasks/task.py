"""What a task is: examples in three splits without a prompt in common, and a checker."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

SPLITS = ("train", "validation", "test")
Example = dict[str, Any]
Sizes = Mapping[str, int]  # {split: how many examples}


@dataclass(frozen=True, eq=False)
class Task:
    """Prompts with what is wanted as an answer, in three splits without a prompt in common.

    Attributes
    ----------
    name : str
    train, validation, test : list of dict
        `prompt` (str, or a list of chat messages), and what `check` or the rewards need. To be
        finetuned on, `completion` too (str, with its leading space); for GRPO, `answer` and `task`
        (the name of reasoning-gym's checker).
    check : callable or None
        `check(completion, example) -> bool`: whether a generated completion (str) answers it.
    new_tokens : int
        How many tokens to generate at most.
    """

    name: str
    train: list[Example]
    validation: list[Example]
    test: list[Example]
    check: Callable[[str, Example], bool] | None = field(default=None, repr=False)
    new_tokens: int = 16

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(self.split(name))} {name}" for name in SPLITS)
        return f"Task({self.name!r}: {sizes})"

    def split(self, name: str) -> list[Example]:
        """The examples of the split "train", "validation" or "test".

        Raises
        ------
        ValueError
            There is no such split.
        """
        if name not in SPLITS:
            raise ValueError(f"split {name!r} is unknown, choose one of {SPLITS}")
        return getattr(self, name)


@dataclass(frozen=True)
class Drawn:
    """A candidate for a task, and the texts that tell it, which no other example may share."""

    example: Example
    identities: frozenset[str]


def by_prompt(example: Example) -> Drawn:
    """A candidate that is told by its prompt (str)."""
    return Drawn(example, frozenset({example["prompt"].strip()}))


def distinct(candidates: Iterable[Drawn], seen: set[str]) -> Iterator[Example]:
    """The examples none of whose identities was seen before; the identities of all are noted."""
    for candidate in candidates:
        known = not candidate.identities.isdisjoint(seen)
        seen |= candidate.identities
        if not known:
            yield candidate.example


def deal(
    sources: Mapping[str, Iterable[Drawn]] | Iterable[Drawn], sizes: Sizes, name: str
) -> dict[str, list[Example]]:
    """Examples for the splits, in the order of `sizes`, no identity twice.

    Parameters
    ----------
    sources : iterable of Drawn, or dict
        One source of candidates for all splits, or {split: its source}.
    sizes : dict
        {split: how many}.
    name : str
        Of the task, for the error.

    Returns
    -------
    dict
        {split: list of examples}.

    Raises
    ------
    ValueError
        A source has too few.
    """
    if not isinstance(sources, Mapping):
        sources = dict.fromkeys(sizes, iter(sources))
    seen: set[str] = set()
    splits = {}
    for split, size in sizes.items():
        splits[split] = list(itertools.islice(distinct(sources[split], seen), size))
        found = len(splits[split])
        if found < size:
            raise ValueError(f"{split}={size}, but {name!r} has only {found} more: ask for fewer")
    return splits
