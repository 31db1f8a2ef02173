"""From texts, or a data collator's batches, to the batches of the forwards."""

import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from plop_nb.checks import positive_integer, user_level
from plop_nb.inputs import Batch, padded_to_multiple, takes_mask
from plop_nb.maps import trunk_of
from plop_nb.padding import is_batch_first

# Models in which padding reaches real tokens (convolutions and pooling over tokens, Fourier mixing,
# landmark attention, an unmasked prefix, masks of their own): their texts go with texts of the same
# length only.
MIXES_PADDING = {
    "convbert",
    "cpmant",
    "fnet",
    "funnel",
    "mobilebert",
    "nystromformer",
    "paligemma",
    "prophetnet",
    "xlstm",
    "yoso",
}
AUTO_START = 8
# A CPU gains nothing from more, and is killed rather than told when memory ends.
AUTO_TOKENS = {"cpu": 2**11}

Numbered = tuple[list[int], Batch]  # positions of the samples in the data, and their batch


class BatchSize:
    """Texts per forward: a number, or "auto": doubled while that fits, halved when it did not."""

    def __init__(self, given: Any, device: torch.device) -> None:
        self.auto = isinstance(given, str) and given == "auto"
        self.now = AUTO_START
        if not self.auto:
            self.now = positive_integer("batch_size", given, ' or "auto"')
        self._most = AUTO_TOKENS.get(device.type, float("inf"))  # tokens of a forward

    def fitted(self, batch: Batch) -> None:
        """Take note of a batch that fitted."""
        if self.auto and count(batch) >= self.now and 2 * tokens(batch) <= self._most:
            self.now *= 2

    def failed(self, batch: Batch) -> list[Batch]:
        """Take note of one that did not; returns it in two halves."""
        self.now = max(1, min(self.now, count(batch)) // 2)
        self._most = tokens(batch) - 1
        return halves(batch)


def peek(data: Iterable) -> tuple[Any, Iterable]:
    """The first element of `data`, and `data` whole again."""
    if isinstance(data, (str, Mapping)) or not isinstance(data, Iterable):
        raise TypeError(
            f"data is one {type(data).__name__}, expected a list of texts or of batches: "
            "put it in a list"
        )
    data = iter(data)
    for first in data:
        return first, itertools.chain([first], data)
    raise ValueError("data is empty: no texts to score (see plop.load_texts)")


def encode(texts: list[str], tokenizer: Any, max_length: int) -> list[Batch]:
    """Token ids of each text: dicts of 1-D tensors, every text checked.

    Raises
    ------
    TypeError, ValueError
        A text is no string, is blank, has no tokens or half a character; or there is no tokenizer.

    Warns
    -----
    UserWarning
        Some texts begin with the beginning-of-text token already: they get no second one.
    """
    for i, text in enumerate(texts):
        _check_text(i, text)
    if tokenizer is None:
        raise TypeError(
            "tokenizer is missing: texts need one, as in nfn_scores(model, texts, tokenizer)"
        )
    max_length = positive_integer("max_length", max_length)
    encoded = tokenizer(texts, truncation=True, max_length=max_length)
    rows = []
    for i in range(len(texts)):
        row = {name: torch.tensor(values[i]) for name, values in encoded.items()}
        if not len(row["input_ids"]):
            raise ValueError(
                f"texts[{i}] ({texts[i]!r:.40}) gives no tokens with this tokenizer, leave it out"
            )
        rows.append(row)
    return _begun_once(rows, texts, tokenizer, max_length)


def _check_text(i, text):
    """Refuse what has no tokens, or none that a tokenizer takes."""
    if not isinstance(text, str):
        raise TypeError(f"texts[{i}] is {type(text).__name__} ({text!r:.40}), expected str")
    if not text.strip():
        raise ValueError(
            f"texts[{i}] is blank ({text!r:.40}): it has no tokens to score, leave it out"
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"texts[{i}] holds half a character ({text[error.start]!r}, a lone surrogate) at "
            f"position {error.start}: read the text as UTF-8, or leave that out"
        ) from error


def _begun_once(rows, texts, tokenizer, max_length):
    """The rows without a second beginning-of-text token, where a text brings its own.

    Chat templates write one into the text, and the tokenizer puts another before it.
    """
    token = getattr(tokenizer, "bos_token_id", None)
    found = 0
    for i, row in enumerate(rows):
        ids = row["input_ids"].tolist()
        if token is None or ids[:2] != [token, token]:
            continue
        own = tokenizer(texts[i], add_special_tokens=False)["input_ids"]
        if _leading(token, own) == _leading(token, ids):  # the tokenizer has added none
            continue
        whole = tokenizer(texts[i], truncation=True, max_length=max_length + 1)
        rows[i] = {name: torch.tensor(values)[1:] for name, values in whole.items()}
        found += 1
    if found:
        warnings.warn(
            f"{found} of {len(texts)} texts begin with {tokenizer.bos_token!r} already, as chat "
            "templates write it: the one that the tokenizer adds is left out",
            stacklevel=user_level(),
        )
    return rows


def _leading(token, ids):
    """How many times a token stands at the beginning."""
    return next((i for i, other in enumerate(ids) if other != token), len(ids))


def of_texts(
    rows: list[Batch], positions: Sequence[int], size: BatchSize, model: nn.Module, tokenizer: Any
) -> Iterator[Numbered]:
    """The rows at these positions in batches, texts of like length together, longest first.

    Only texts of the same length where a model takes no mask, or lets padding reach real tokens.

    Padded on the right, whatever the tokenizer prefers: absolute positions then stay what they are.
    """
    config = getattr(model, "config", None)
    mixes_padding = getattr(config, "model_type", None) in MIXES_PADDING
    equal_lengths = mixes_padding or not takes_mask(trunk_of(model))
    # Padding is masked: its value does not matter.
    fill = {"input_ids": getattr(tokenizer, "pad_token_id", None) or 0}
    lengths = {i: len(rows[i]["input_ids"]) for i in positions}
    left = sorted(positions, key=lambda i: -lengths[i])
    while left:
        chunk = left[: size.now]
        if equal_lengths:
            chunk = [i for i in chunk if lengths[i] == lengths[chunk[0]]]
        left = left[len(chunk) :]
        batch = {}
        for name in rows[chunk[0]]:
            batch[name] = pad_sequence([rows[i][name] for i in chunk], True, fill.get(name, 0))
        yield chunk, batch


def of_collator(data: Iterable[Batch]) -> Iterator[Numbered]:
    """A data collator's batches, samples numbered through."""
    first = 0
    for batch in data:
        if not any(isinstance(v, torch.Tensor) and v.ndim for v in batch.values()):
            raise ValueError(f"a batch has keys {list(batch)}, expected tensors such as input_ids")
        samples = count(batch)
        yield list(range(first, first + samples)), batch
        first += samples


def row_of(batch: Batch, row: int) -> dict[str, torch.Tensor]:
    """The tensors of one sample of a batch; whole, where they are not cut by samples."""
    samples, found = count(batch), {}
    for name, value in batch.items():
        if isinstance(value, torch.Tensor) and value.ndim:
            found[name] = value[row] if len(value) == samples else value
    return found


def count(batch: Batch) -> int:
    """Samples of a batch."""
    named = (batch.get(k) for k in ("input_ids", "inputs_embeds", "attention_mask"))
    for value in (*named, *batch.values()):
        if isinstance(value, torch.Tensor) and value.ndim:
            return len(value)
    raise ValueError(f"a batch has keys {list(batch)}, expected tensors such as input_ids")


def halves(batch: Batch) -> list[Batch]:
    """The batch in two, or [] where it is a single sample or cannot be cut sample by sample."""
    samples = count(batch)
    if samples < 2 or not _can_be_cut(batch):
        return []
    rows = list(range(samples))
    return [rows_of(batch, rows[: samples // 2]), rows_of(batch, rows[samples // 2 :])]


def rows_of(batch: Batch, rows: list[int]) -> Batch:
    """A batch of these samples alone.

    Raises
    ------
    ValueError
        A tensor of the batch does not have one entry for each sample.
    """
    if not _can_be_cut(batch):
        raise ValueError(
            f"a batch with keys {list(batch)} cannot be cut sample by sample, and some of its "
            "samples are finished already: delete the file of finished samples"
        )
    cut = dict(batch)
    for name, value in batch.items():
        if isinstance(value, torch.Tensor) and value.ndim:
            cut[name] = value[rows]
    return cut


def _can_be_cut(batch):
    tensors = [v for v in batch.values() if isinstance(v, torch.Tensor) and v.ndim]
    return all(len(tensor) == count(batch) for tensor in tensors)


def unambiguous(trunk: nn.Module, positions: list[int], batch: Batch) -> list[Numbered]:
    """The batch cut so that no part has as many samples as tokens, if a map could mistake them.

    In such a square, (batch, length) and (length, batch) look alike.
    """
    samples = count(batch)
    padded = padded_to_multiple(trunk, batch)
    lengths = [v.shape[1] for v in padded.values() if isinstance(v, torch.Tensor) and v.ndim >= 2]
    if samples not in lengths or samples == 1 or is_batch_first(trunk) or not _can_be_cut(batch):
        return [(positions, batch)]
    rows = list(range(samples))
    parts = []
    for own in (rows[:-1], rows[-1:]):
        parts += unambiguous(trunk, [positions[row] for row in own], rows_of(batch, own))
    return parts


def tokens(batch: Batch) -> int:
    """Token positions of a batch, padding included."""
    ids = batch.get("input_ids")
    return ids.numel() if isinstance(ids, torch.Tensor) else count(batch)
