"""From texts, or a data collator's batches, to the arguments of a forward."""

import inspect
import itertools
from collections.abc import Iterable, Mapping

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

# Models in which padding reaches real tokens (convolutions and pooling over tokens, Fourier mixing,
# landmark attention, an unmasked prefix): their texts are batched with texts of the same length only.
MIXES_PADDING = {
    "convbert", "fnet", "funnel", "mobilebert", "nystromformer", "paligemma", "prophetnet", "xlstm", "yoso"
}  # fmt: skip
AUTO_START = 8
AUTO_TOKENS = {"cpu": 2**11}  # a CPU gains nothing from more, and is killed rather than told when memory ends


class BatchSize:
    """Texts per forward: a number, or "auto", which doubles while that fits and halves when it did not."""

    def __init__(self, given, device):
        self.auto = given == "auto"
        self.now = AUTO_START if self.auto else positive("batch_size", given, ' or "auto"')
        self._most = AUTO_TOKENS.get(device.type, float("inf"))  # tokens of a forward

    def fitted(self, batch):
        if self.auto and count(batch) >= self.now and 2 * tokens(batch) <= self._most:
            self.now *= 2

    def failed(self, batch):
        """Take note; returns the batch in two halves."""
        self.now, self._most = max(1, min(self.now, count(batch)) // 2), tokens(batch) - 1
        return halves(batch)


def peek(data):
    """The first element of `data`, and `data` whole again."""
    if isinstance(data, (str, Mapping)) or not isinstance(data, Iterable):
        raise TypeError(f"data is one {type(data).__name__}, expected a list of texts or of batches: put it in a list")
    data = iter(data)
    for first in data:
        return first, itertools.chain([first], data)
    raise ValueError("data is empty: no texts to score (see plop.load_texts)")


def encode(texts, tokenizer, max_length):
    """Token ids of each text: list of dicts of 1-D tensors, every text checked."""
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts[{i}] is {type(text).__name__} ({text!r:.40}), expected str")
        if not text.strip():
            raise ValueError(f"texts[{i}] is blank ({text!r:.40}): it has no tokens to score, leave it out")
    if tokenizer is None:
        raise TypeError("tokenizer is missing: texts need one, as in nfn_scores(model, texts, tokenizer)")
    encoded = tokenizer(texts, truncation=True, max_length=positive("max_length", max_length))
    rows = [{k: torch.tensor(v[i]) for k, v in encoded.items()} for i in range(len(texts))]
    for i, row in enumerate(rows):
        if not len(row["input_ids"]):
            raise ValueError(f"texts[{i}] ({texts[i]!r:.40}) gives no tokens with this tokenizer, leave it out")
    return rows


def of_texts(rows, samples, size, model, tokenizer):
    """(samples, batch) of `rows` at these positions, texts of like length together, longest first.

    Padded on the right, whatever the tokenizer prefers: absolute positions then stay what they are.
    """
    config = getattr(model, "config", None)
    multiple, equal_lengths = _length_multiple(config), getattr(config, "model_type", None) in MIXES_PADDING
    fill = {"input_ids": getattr(tokenizer, "pad_token_id", None) or 0}  # masked: its value does not matter
    length = lambda i: len(rows[i]["input_ids"])
    left = sorted(samples, key=lambda i: -length(i))
    while left:
        chunk = left[: size.now]
        if equal_lengths:
            chunk = [i for i in chunk if length(i) == length(chunk[0])]
        left = left[len(chunk) :]
        batch = {k: pad_sequence([rows[i][k] for i in chunk], True, fill.get(k, 0)) for k in rows[chunk[0]]}
        extra = -batch["input_ids"].shape[1] % multiple
        yield chunk, {k: torch.nn.functional.pad(v, (0, extra), value=fill.get(k, 0)) for k, v in batch.items()}


def of_collator(data):
    """(samples, batch) of a data collator's batches, samples numbered through."""
    first = 0
    for batch in data:
        if not any(isinstance(v, torch.Tensor) and v.ndim for v in batch.values()):
            raise ValueError(f"a batch has keys {list(batch)}, expected tensors such as input_ids")
        yield list(range(first, first + count(batch))), batch
        first += count(batch)


def count(batch):
    """Samples of a batch."""
    named = (batch.get(k) for k in ("input_ids", "inputs_embeds", "attention_mask"))
    return len(next(v for v in (*named, *batch.values()) if isinstance(v, torch.Tensor) and v.ndim))


def halves(batch):
    """The batch in two, or [] where it is a single sample or cannot be cut sample by sample."""
    samples = count(batch)
    tensors = {k: v for k, v in batch.items() if isinstance(v, torch.Tensor) and v.ndim}
    if samples < 2 or any(len(v) != samples for v in tensors.values()):
        return []
    cut = samples // 2
    return [{**batch, **{k: v[part] for k, v in tensors.items()}} for part in (slice(cut), slice(cut, None))]


def arguments(trunk, batch):
    """What the trunk's forward takes of a batch, on the trunk's device."""
    accepted = _accepted(trunk)
    inputs = {k: v for k, v in batch.items() if k in accepted}
    if not any(isinstance(v, torch.Tensor) for v in inputs.values()):
        raise ValueError(f"a batch has keys {list(batch)}, {type(trunk).__name__} takes tensors named {accepted}")
    if "input_ids" in inputs:
        _check_vocabulary(trunk, inputs["input_ids"])
    if "decoder_input_ids" in accepted and not {"decoder_input_ids", "decoder_inputs_embeds"} & set(inputs):
        inputs |= _decoder_inputs(inputs, batch.get("labels"))
    if "use_cache" in accepted:
        inputs["use_cache"] = False
    return {k: v.to(device_of(trunk)) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}


def check_length(trunk, inputs):
    """Refuse texts longer than the model has positions: asked after a forward failed, for many do with more."""
    limit = getattr(getattr(trunk, "config", None), "max_position_embeddings", None) or 0
    tables = [m for m in trunk.modules() if isinstance(m, nn.Embedding) and m.num_embeddings == limit]
    # RoBERTa and its kin count from behind the position of padding.
    limit -= max((m.padding_idx + 1 for m in tables if m.padding_idx is not None), default=0)
    length = inputs["input_ids"].shape[-1] if "input_ids" in inputs else 0
    if 0 < limit < length:
        raise ValueError(
            f"a text has {length} tokens, but {type(trunk).__name__} has positions for {limit}: "
            f"pass max_length={limit}, or shorter batches"
        )


def device_of(model):
    return next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))


def positive(name, value, also=""):
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r}, expected an integer of at least 1{also}")
    return value


def tokens(batch):
    """Token positions of a batch, padding included."""
    ids = batch.get("input_ids")
    return ids.numel() if isinstance(ids, torch.Tensor) else count(batch)


def _length_multiple(config):
    """Lengths that a model would pad to by itself, out of sight of the mask (windows and blocks)."""
    sizes = getattr(config, "attention_window", None) or getattr(config, "block_size", None) or 1
    return max(sizes) if isinstance(sizes, (list, tuple)) else sizes


def padded_right(batch):
    """The batch with each row's real tokens first: under left padding absolute positions would move."""
    mask = batch.get("attention_mask")
    if not isinstance(mask, torch.Tensor) or mask.ndim != 2 or "position_ids" in batch:
        return batch
    order = (mask == 0).int().argsort(dim=1, stable=True)
    rows = torch.arange(len(mask), device=mask.device)[:, None]
    by_token = {k for k, v in batch.items() if isinstance(v, torch.Tensor) and v.shape[:2] == mask.shape}
    return {k: v[rows, order] if k in by_token else v for k, v in batch.items()}


def _accepted(trunk):
    """Names of the arguments of the trunk's forward, looked up behind wrappers that pass everything on."""
    names = list(inspect.signature(trunk.forward).parameters)
    return _accepted(trunk.decoder) if names == ["args", "kwargs"] and hasattr(trunk, "decoder") else names


def _decoder_inputs(inputs, labels):
    """What the decoder of an encoder-decoder model reads: the labels, or the text itself."""
    if labels is None:
        mask = {"decoder_attention_mask": inputs["attention_mask"]} if "attention_mask" in inputs else {}
        return {"decoder_input_ids": inputs["input_ids"], **mask} if "input_ids" in inputs else {}
    real = labels != -100
    return {"decoder_input_ids": labels * real, "decoder_attention_mask": real.long()}


def _check_vocabulary(trunk, ids):
    try:
        size = getattr(trunk.get_input_embeddings(), "num_embeddings", None)
    except (AttributeError, NotImplementedError):
        return
    if size and (ids.max() >= size or ids.min() < 0):
        bad = ids[(ids >= size) | (ids < 0)][0].item()
        raise ValueError(
            f"input_ids holds {bad}, outside the model's vocabulary of {size}: is this the model's own tokenizer?"
        )
