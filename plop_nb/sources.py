"""Where batches come from: texts of one's own, or a data collator; what of them a process takes."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from torch import nn

from plop_nb import batches
from plop_nb.batches import Batch, BatchSize, Numbered
from plop_nb.stats import StoppingRule

# Of a sample's position and its tensors; None where nothing is.
IsFinished = Callable[[int, Batch], bool] | None


class Source(Protocol):
    """What the engine asks of its data."""

    total: int | None  # samples that are left to run; None where they come as they come

    def select(
        self, rank: int, processes: int, shuffle: int | None, is_finished: IsFinished
    ) -> None:
        """Take the share of one process, without what is finished.

        Texts are put into random order by the seed `shuffle`; batches keep their order.
        """

    def parts(self, rule: StoppingRule | None) -> Iterator[Iterator[Numbered]]:
        """The batches, in parts that end where the rule wants to look at the scores."""


def source_of(
    model: nn.Module, data: Iterable, tokenizer: Any, max_length: int, size: BatchSize
) -> Source:
    """The source for `data`, which holds texts or batches; every text is checked here.

    Raises
    ------
    TypeError, ValueError
        `data` is no iterable, is empty, or holds something else.
    """
    first, data = batches.peek(data)
    if isinstance(first, Mapping):
        return Collated(data)
    return Texts(batches.encode(list(data), tokenizer, max_length), model, tokenizer, size)


class Texts:
    """Encoded texts: those of like length go together."""

    def __init__(
        self, rows: list[Batch], model: nn.Module, tokenizer: Any, size: BatchSize
    ) -> None:
        self._rows, self._model, self._tokenizer, self._size = rows, model, tokenizer, size
        self._positions = list(range(len(rows)))
        self.total: int | None = len(rows)

    def select(
        self, rank: int, processes: int, shuffle: int | None, is_finished: IsFinished
    ) -> None:
        """See `Source`; like lengths are dealt out to the processes in turn."""
        if shuffle is None:
            lengths = [len(row["input_ids"]) for row in self._rows]
            order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        else:
            order = np.random.default_rng(shuffle).permutation(len(self._rows)).tolist()
        own = order[rank::processes]
        if is_finished is not None:
            own = [i for i in own if not is_finished(i, self._rows[i])]
        self._positions = own
        self.total = len(self._positions)

    def parts(self, rule: StoppingRule | None) -> Iterator[Iterator[Numbered]]:
        """See `Source`."""
        for look in _looks(self._positions, rule, samples=lambda position: 1):
            yield batches.of_texts(self._rows, look, self._size, self._model, self._tokenizer)


class Collated:
    """A data collator's batches, in their order."""

    def __init__(self, data: Iterable[Batch]) -> None:
        self.total: int | None = None
        self._batches = batches.of_collator(data)

    def select(
        self, rank: int, processes: int, shuffle: int | None, is_finished: IsFinished
    ) -> None:
        """See `Source`; of a batch only the samples that are not finished are run."""
        own = itertools.islice(self._batches, rank, None, processes)
        self._batches = own if is_finished is None else _unfinished(own, is_finished)

    def parts(self, rule: StoppingRule | None) -> Iterator[Iterator[Numbered]]:
        """See `Source`."""
        for look in _looks(self._batches, rule, samples=lambda item: len(item[0])):
            yield iter(look)


def _unfinished(numbered, is_finished):
    for positions, batch in numbered:
        rows = []
        for row, position in enumerate(positions):
            if not is_finished(position, batches.row_of(batch, row)):
                rows.append(row)
        if len(rows) == len(positions):
            yield positions, batch
        elif rows:
            yield [positions[row] for row in rows], batches.rows_of(batch, rows)


def _looks(items, rule, samples):
    """The items in parts that end at the rule's looks; `samples` counts those of an item."""
    if rule is None:
        yield items
        return
    part, taken = [], 0
    for item in items:
        part.append(item)
        taken += samples(item)
        if taken >= rule.next:
            yield part
            part = []
    if part:
        yield part
