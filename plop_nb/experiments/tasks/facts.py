"""Fact verification: whether a sentence of Wikipedia makes a claim true, false, or neither.

The examples are those of VitaminC, as BIG-bench carries them: see `plop_nb.claims`.
"""

import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Iterator

from plop_nb.claims import LABELS, Fact, fetched, is_short, read
from plop_nb.experiments.tasks.gym import first_word_is
from plop_nb.experiments.tasks.task import SPLITS, Drawn, Sizes, Task, by_prompt, deal

# Which splits the shuffled pages go to, in turn: the sizes of the others then change none of them
TURNS = ("train", "train", "test", "train", "train", "test", "train", "train", "test", "validation")


def facts(sizes: Sizes, seed: int) -> Task:
    """Short claims about short sentences of Wikipedia: as many true as false as neither.

    All that is known of a page is in one split, and so are all examples with the same evidence or
    the same claim. Pages take turns within a split, so that it has examples of many of them.

    Raises
    ------
    DownloadError
        The data set could not be fetched, or is damaged. It is a ValueError.
    """
    pages = defaultdict(list)
    for fact in of_one_page([fact for fact in read(fetched()) if is_short(fact)]):
        pages[fact.page].append(fact)
    generator = random.Random(seed)
    names = sorted(pages)
    generator.shuffle(names)
    parts: dict[str, list[Fact]] = {split: [] for split in SPLITS}
    for page, split in zip(names, itertools.cycle(TURNS), strict=False):
        generator.shuffle(pages[page])
        parts[split] += pages[page]
    sources = {split: map(drawn, balanced(parts[split])) for split in sizes}
    return Task("facts", **deal(sources, sizes, "facts"), check=first_word_is, new_tokens=4)


def drawn(fact: Fact) -> Drawn:
    """What the task asks, and the answer."""
    prompt = f"{fact.text}\n{', '.join(LABELS)}?"
    return by_prompt({"prompt": prompt, "completion": f" {fact.label}"})


# Which facts


def of_one_page(known: list[Fact]) -> list[Fact]:
    """The facts whose evidence and claim no other page has."""
    pages = defaultdict(set)
    for fact in known:
        pages[fact.evidence].add(fact.page)
        pages[fact.claim].add(fact.page)
    return [fact for fact in known if len(pages[fact.evidence] | pages[fact.claim]) == 1]


def balanced(known: list[Fact]) -> Iterator[Fact]:
    """One fact of each label in turn, until one label has no more; pages take turns, too."""
    by_label: dict[str, list[Fact]] = {label: [] for label in LABELS}
    for fact in sorted_by_turn(known):
        by_label[fact.label].append(fact)
    for three in zip(*by_label.values(), strict=False):
        yield from three


def sorted_by_turn(known: list[Fact]) -> list[Fact]:
    """First a fact of each page, then a second one of each that has more, and so on."""
    before: Counter[str] = Counter()
    turns = []
    for fact in known:
        turns.append(before[fact.page])
        before[fact.page] += 1
    order = sorted(range(len(known)), key=turns.__getitem__)
    return [known[position] for position in order]
