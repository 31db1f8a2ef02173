"""From texts, or a data collator's batches, to the arguments of a forward."""

import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from plop_nb.checks import positive_integer

# Models in which padding reaches real tokens (convolutions and pooling over tokens, Fourier mixing,
# landmark attention, an unmasked prefix): their texts go with texts of the same length only.
MIXES_PADDING = {
    "convbert",
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

Batch = dict[str, Any]  # tensors by name, and whatever else a collator adds
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
    """Token ids of each text: dicts of 1-D tensors, every text checked."""
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts[{i}] is {type(text).__name__} ({text!r:.40}), expected str")
        if not text.strip():
            raise ValueError(
                f"texts[{i}] is blank ({text!r:.40}): it has no tokens to score, leave it out"
            )
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
    return rows


def of_texts(
    rows: list[Batch], positions: Sequence[int], size: BatchSize, model: nn.Module, tokenizer: Any
) -> Iterator[Numbered]:
    """The rows at these positions in batches, texts of like length together, longest first.

    Padded on the right, whatever the tokenizer prefers: absolute positions then stay what they are.
    """
    config = getattr(model, "config", None)
    multiple = _length_multiple(config)
    equal_lengths = getattr(config, "model_type", None) in MIXES_PADDING
    # Padding is masked: its value does not matter.
    fill = {"input_ids": getattr(tokenizer, "pad_token_id", None) or 0}
    lengths = {i: len(rows[i]["input_ids"]) for i in positions}
    left = sorted(positions, key=lambda i: -lengths[i])
    while left:
        chunk = left[: size.now]
        if equal_lengths:
            chunk = [i for i in chunk if lengths[i] == lengths[chunk[0]]]
        left = left[len(chunk) :]
        extra = -lengths[chunk[0]] % multiple
        batch = {}
        for name in rows[chunk[0]]:
            value = fill.get(name, 0)
            padded = pad_sequence([rows[i][name] for i in chunk], True, value)
            batch[name] = nn.functional.pad(padded, (0, extra), value=value)
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
    """The tensors of one sample of a batch."""
    found = {}
    for name, value in batch.items():
        if isinstance(value, torch.Tensor) and value.ndim and row < len(value):
            found[name] = value[row]
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


def arguments(trunk: nn.Module, batch: Batch) -> Batch:
    """What the trunk's forward takes of a batch, on the trunk's device."""
    accepted = _accepted(trunk)
    inputs = {k: v for k, v in batch.items() if k in accepted}
    if not any(isinstance(v, torch.Tensor) for v in inputs.values()):
        raise ValueError(
            f"a batch has keys {list(batch)}, {type(trunk).__name__} takes tensors named {accepted}"
        )
    if "input_ids" in inputs:
        _check_vocabulary(trunk, inputs["input_ids"])
    given_decoder = {"decoder_input_ids", "decoder_inputs_embeds"} & set(inputs)
    if "decoder_input_ids" in accepted and not given_decoder:
        inputs |= _decoder_inputs(inputs, batch.get("labels"))
    if "use_cache" in accepted:
        inputs["use_cache"] = False
    device = device_of(trunk)
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}


def check_length(trunk: nn.Module, inputs: Batch) -> None:
    """Refuse texts longer than the model has positions.

    Asked after a forward has failed, for many models do with longer ones.
    """
    limit = getattr(getattr(trunk, "config", None), "max_position_embeddings", None) or 0
    embeddings = [m for m in trunk.modules() if isinstance(m, nn.Embedding)]
    tables = [m for m in embeddings if m.num_embeddings == limit]
    # RoBERTa and its kin count from behind the position of padding.
    limit -= max((m.padding_idx + 1 for m in tables if m.padding_idx is not None), default=0)
    length = inputs["input_ids"].shape[-1] if "input_ids" in inputs else 0
    if 0 < limit < length:
        raise ValueError(
            f"a text has {length} tokens, but {type(trunk).__name__} has positions for {limit}: "
            f"pass max_length={limit}, or shorter batches"
        )


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first loaded parameter is."""
    return next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))


def tokens(batch: Batch) -> int:
    """Token positions of a batch, padding included."""
    ids = batch.get("input_ids")
    return ids.numel() if isinstance(ids, torch.Tensor) else count(batch)


def padded_right(batch: Batch) -> Batch:
    """The batch with each row's real tokens first: left padding would move absolute positions."""
    mask = batch.get("attention_mask")
    if not isinstance(mask, torch.Tensor) or mask.ndim != 2 or "position_ids" in batch:
        return batch
    order = (mask == 0).int().argsort(dim=1, stable=True)
    rows = torch.arange(len(mask), device=mask.device)[:, None]
    moved = dict(batch)
    for name, value in batch.items():
        if isinstance(value, torch.Tensor) and value.shape[:2] == mask.shape:
            moved[name] = value[rows, order]
    return moved


def _length_multiple(config):
    """What a model would pad lengths to by itself, out of sight of the mask."""
    window, block = (getattr(config, name, None) for name in ("attention_window", "block_size"))
    sizes = window or block or 1
    return max(sizes) if isinstance(sizes, (list, tuple)) else sizes


def _accepted(trunk):
    """Names of the arguments of the trunk's forward, also behind wrappers that pass all on."""
    names = list(inspect.signature(trunk.forward).parameters)
    passes_all_on = names == ["args", "kwargs"] and hasattr(trunk, "decoder")
    return _accepted(trunk.decoder) if passes_all_on else names


def _decoder_inputs(inputs, labels):
    """What the decoder of an encoder-decoder model reads: the labels, or the text itself."""
    if labels is not None:
        real = labels != -100
        return {"decoder_input_ids": labels * real, "decoder_attention_mask": real.long()}
    if "input_ids" not in inputs:
        return {}
    found = {"decoder_input_ids": inputs["input_ids"]}
    if "attention_mask" in inputs:
        found["decoder_attention_mask"] = inputs["attention_mask"]
    return found


def _check_vocabulary(trunk, ids):
    try:
        size = getattr(trunk.get_input_embeddings(), "num_embeddings", None)
    except (AttributeError, NotImplementedError):
        return
    if size and (ids.max() >= size or ids.min() < 0):
        bad = ids[(ids >= size) | (ids < 0)][0].item()
        raise ValueError(
            f"input_ids holds {bad}, outside the model's vocabulary of {size}: is this the model's "
            "own tokenizer?"
        )
