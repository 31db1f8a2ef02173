"""Where batches come from: texts of one's own, or a data collator; what of them a process takes."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from plop_nb import batches
from plop_nb.batches import Batch, BatchSize, Numbered
from plop_nb.origin import hash_of
from plop_nb.stats import StoppingRule

# Of a sample's position and its tensors; None where nothing is.
IsFinished = Callable[[int, Batch], bool] | None


class Source(Protocol):
    """What the engine asks of its data."""

    total: int | None  # samples that are left to run; None where they come as they come
    taken: set[int]  # positions of the samples so far, the finished ones among them
    texts: str | None  # a hash of the texts, all of them; None for batches

    def select(
        self, rank: int, processes: int, shuffle: int | None, is_finished: IsFinished
    ) -> None:
        """Take the share of one process; what is finished is taken, and not run.

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
    first, data = batches.peek(elements(data))
    if isinstance(first, Mapping):
        return Collated(data)
    if isinstance(first, (list, tuple)):
        raise TypeError(
            f"data holds a {type(first).__name__} ({first!r:.40}), expected texts, or batches as "
            "dicts of tensors: pass the texts one by one, or name the tensors"
        )
    texts = list(data)
    source = Texts(batches.encode(texts, tokenizer, max_length), model, tokenizer, size)
    source.texts = hash_of(texts)
    return source


def elements(data: Any) -> Iterable:
    """`data` itself, or the texts in an array or a column; refuses what is read in another way.

    A table iterates over the names of its columns, or over rows: neither are texts. A set has
    another order in every process.

    Raises
    ------
    TypeError
        `data` is a table, a dict of texts, or a set: says what to pass instead.
    """
    kind = type(data).__name__
    for attribute in ("column_names", "columns"):  # of datasets and arrow, of pandas and polars
        if hasattr(data, attribute):
            raise TypeError(_of_table(data, kind, getattr(data, attribute)))
    if isinstance(data, Mapping) and data and all(isinstance(v, str) for v in data.values()):
        raise TypeError(f"data is a {kind} of texts: pass list(data.values())")
    if isinstance(data, (set, frozenset)):
        raise TypeError(f"data is a {kind}, which has no order: pass sorted(data)")
    if isinstance(data, torch.Tensor):
        raise TypeError(
            "data is a tensor: put it in a batch, as in data=[{'input_ids': tensor}] with a tensor "
            "(texts, length)"
        )
    return data.tolist() if isinstance(data, np.ndarray) else data


def listed(texts: Iterable[str]) -> list[str]:
    """The texts as a list; one text alone (TypeError), or none (ValueError), is refused."""
    if isinstance(texts, str):
        raise TypeError("texts is one str, expected a list of texts: put it in a list")
    found = list(elements(texts))
    if not found:
        raise ValueError("texts is empty: pass one text at least (see plop.load_texts)")
    return found


class Texts:
    """Encoded texts: those of like length go together."""

    def __init__(
        self, rows: list[Batch], model: nn.Module, tokenizer: Any, size: BatchSize
    ) -> None:
        self._rows, self._model, self._tokenizer, self._size = rows, model, tokenizer, size
        self._positions = list(range(len(rows)))
        self._left = set(self._positions)
        self.total: int | None = len(rows)
        self.taken: set[int] = set()
        self.texts: str | None = None

    def select(
        self, rank: int, processes: int, shuffle: int | None, is_finished: IsFinished
    ) -> None:
        """See `Source`; like lengths are dealt out to the processes in turn."""
        if shuffle is None:
            lengths = [len(row["input_ids"]) for row in self._rows]
            order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        else:
            order = np.random.default_rng(shuffle).permutation(len(self._rows)).tolist()
        self._positions = order[rank::processes]
        self._left = set(self._positions)
        if is_finished is not None:
            self._left = {i for i in self._positions if not is_finished(i, self._rows[i])}
        self.total = len(self._left)

    def parts(self, rule: StoppingRule | None) -> Iterator[Iterator[Numbered]]:
        """See `Source`."""
        for look in _looks(self._positions, rule, samples=lambda position: 1):
            self.taken.update(look)
            left = [i for i in look if i in self._left]
            yield batches.of_texts(self._rows, left, self._size, self._model, self._tokenizer)


class Collated:
    """A data collator's batches, in their order."""

    def __init__(self, data: Iterable[Batch]) -> None:
        self.total: int | None = None
        self.taken: set[int] = set()
        self.texts: str | None = None
        self._batches = batches.of_collator(_checked(data))
        self._is_finished: IsFinished = None

    def select(
        self, rank: int, processes: int, shuffle: int | None, is_finished: IsFinished
    ) -> None:
        """See `Source`; of a batch only the samples that are not finished are run."""
        self._batches = itertools.islice(self._batches, rank, None, processes)
        self._is_finished = is_finished

    def parts(self, rule: StoppingRule | None) -> Iterator[Iterator[Numbered]]:
        """See `Source`."""
        for look in _looks(self._batches, rule, samples=lambda item: len(item[0])):
            yield self._unfinished(look)

    def _unfinished(self, numbered):
        for positions, batch in numbered:
            self.taken.update(positions)
            rows = []
            for row, position in enumerate(positions):
                is_finished = self._is_finished
                if is_finished is None or not is_finished(position, batches.row_of(batch, row)):
                    rows.append(row)
            if len(rows) == len(positions):
                yield positions, batch
            elif rows:
                yield [positions[row] for row in rows], batches.rows_of(batch, rows)


def _of_table(data, kind, columns):
    if isinstance(data, Mapping):  # of splits
        return f"data is a {kind} with splits {list(data)}: pass a column of one of them"
    named = "" if columns is None else f" with columns {list(columns)}"
    return (
        f"data is a {kind}{named}: pass the column that holds the texts, as in data['text'], or "
        "batches of tensors, as a DataLoader with a data collator yields them"
    )


def _checked(data):
    """Batches of a data collator, not the rows of a data set."""
    for batch in data:
        if not isinstance(batch, Mapping):
            raise TypeError(
                f"data holds batches and a {type(batch).__name__} ({batch!r:.40}): pass texts "
                "only, or batches only"
            )
        texts = [name for name, value in batch.items() if isinstance(value, str)]
        if texts and not any(isinstance(value, torch.Tensor) for value in batch.values()):
            raise TypeError(
                f"data holds rows with texts under {texts}: pass the texts, as in "
                f"[row[{texts[0]!r}] for row in data]"
            )
        ids = batch.get("input_ids")
        if isinstance(ids, torch.Tensor) and ids.ndim == 1:
            raise ValueError(
                f"data holds rows, with input_ids of shape {tuple(ids.shape)}, expected batches "
                "(texts, length): pass them through a DataLoader with a data collator"
            )
        yield batch


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
