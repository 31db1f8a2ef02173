"""Normalized Feature Norms of a model on texts: one forward pass of the trunk."""

import inspect
import itertools
import os
import warnings
from collections.abc import Iterable, Mapping
from contextlib import contextmanager

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from plop_nb.hooks import record_norms, summary
from plop_nb.modules import trunk_of

# Models in which padding reaches real tokens (convolutions and pooling over tokens, Fourier mixing,
# landmark attention, an unmasked prefix): their texts are batched with texts of the same length only.
MIXES_PADDING = {
    "convbert", "fnet", "funnel", "mobilebert", "nystromformer", "paligemma", "prophetnet", "xlstm", "yoso"
}  # fmt: skip


def nfn_scores(model, data, tokenizer=None, *, batch_size=8, max_length=256, baseline="rms", seed=0, progress=True):
    """Score every linear map of a model on texts (PLoP, section 3).

    `NFN(W, z) = ||W z|| / ||W z~||` with `z~` noise of the norm of `z`, averaged over the real
    tokens of each text. Above 1: the input lies along large singular directions of W; below 1:
    along small ones. Runs the trunk once, in the model's dtype, with statistics in float32;
    the model comes back as it was, also after an error or an interrupt.

    Parameters
    ----------
    model : torch.nn.Module
        A transformers model on its device.
    data : iterable of str, or iterable of dict
        Texts (with `tokenizer`), or batches of tensors as a data collator yields them; padding is
        moved to the right, unless a batch has `position_ids`. The decoder of an encoder-decoder
        model reads `decoder_input_ids`, else `labels`, else the text itself.
    tokenizer : transformers tokenizer
        Needs no pad token.
    batch_size : int
        Texts per forward; texts of like length go together. No influence on the scores.
    max_length : int
        Tokens of each text that are used.
    baseline : {"rms", "gaussian"}
        What random noise gives: closed form, or the mean over draws as in the paper.
    seed : int
        Seeds the draws of the Gaussian baseline.
    progress : bool
        Show a progress bar.

    Returns
    -------
    pandas.DataFrame
        One row per sample and module: `sample` (position in `data`), `module`, `type`, `layer`,
        `tokens`, `nfn` (dimensionless).

    Raises
    ------
    TypeError, ValueError
        Bad input (names the argument, its value and what would do), or a module with
        non-finite weights or activations (names the module).

    Warns
    -----
    UserWarning
        Some linear maps got no score: names them, with the reason.
    """
    first, data = _peek(data)
    if isinstance(first, Mapping):
        order, batches, total = None, data, None
    else:
        encoded = _encode(list(data), tokenizer, max_length)
        equal_lengths = getattr(getattr(model, "config", None), "model_type", None) in MIXES_PADDING
        how = {"multiple": _length_multiple(model), "equal_lengths": equal_lengths}
        order, batches, total = _batched(encoded, tokenizer, _positive("batch_size", batch_size), **how)
    bar = tqdm(desc="NFN", unit="text", total=total, disable=not progress or bool(os.environ.get("TQDM_DISABLE")))
    trunk = trunk_of(model)
    with bar, _evaluating(model), torch.no_grad(), record_norms(model, baseline=baseline, seed=seed) as record:
        for batch in batches:
            bar.update(_forward(trunk, batch))
    if record.unseen():
        warnings.warn(f"linear maps without a score: {summary(record.unseen())}", stacklevel=2)
    frame = record.frame().drop(columns=["input_norm", "feature_norm"])
    if (empty := (torch.cat(record.real_tokens) == 0).nonzero()).numel():
        raise ValueError(f"sample {empty[0].item()} has no real tokens: its attention_mask is zero throughout")
    if order is not None:
        frame["sample"] = frame["sample"].map(dict(enumerate(order)))
    return frame.sort_values("sample", kind="stable", ignore_index=True)


def _peek(data):
    """The first element of `data`, and `data` whole again."""
    if isinstance(data, (str, Mapping)) or not isinstance(data, Iterable):
        raise TypeError(f"data is one {type(data).__name__}, expected a list of texts or of batches: put it in a list")
    data = iter(data)
    for first in data:
        return first, itertools.chain([first], data)
    raise ValueError("data is empty: no texts to score (see plop.load_texts)")


def _encode(texts, tokenizer, max_length):
    """Token ids of each text: list of dicts of 1-D tensors, every text checked."""
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts[{i}] is {type(text).__name__} ({text!r:.40}), expected str")
        if not text.strip():
            raise ValueError(f"texts[{i}] is blank ({text!r:.40}): it has no tokens to score, leave it out")
    if tokenizer is None:
        raise TypeError("tokenizer is missing: texts need one, as in nfn_scores(model, texts, tokenizer)")
    encoded = tokenizer(texts, truncation=True, max_length=_positive("max_length", max_length))
    rows = [{k: torch.tensor(v[i]) for k, v in encoded.items()} for i in range(len(texts))]
    for i, row in enumerate(rows):
        if not len(row["input_ids"]):
            raise ValueError(f"texts[{i}] ({texts[i]!r:.40}) gives no tokens with this tokenizer, leave it out")
    return rows


def _length_multiple(model):
    """Lengths that a model would pad to by itself, out of sight of the mask (windows and blocks)."""
    config = getattr(model, "config", None)
    sizes = getattr(config, "attention_window", None) or getattr(config, "block_size", None) or 1
    return max(sizes) if isinstance(sizes, (list, tuple)) else sizes


def _batched(rows, tokenizer, batch_size, *, multiple, equal_lengths):
    """(order, batches, count): rows sorted by length, longest first, padded batch by batch.

    On the right, whatever the tokenizer prefers: absolute positions then stay what they are.
    """
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]["input_ids"]))
    fill = {"input_ids": getattr(tokenizer, "pad_token_id", None) or 0}  # masked: its value does not matter

    def padded(chunk):
        batch = {k: pad_sequence([rows[i][k] for i in chunk], True, fill.get(k, 0)) for k in rows[chunk[0]]}
        extra = -batch["input_ids"].shape[1] % multiple
        return {k: torch.nn.functional.pad(v, (0, extra), value=fill.get(k, 0)) for k, v in batch.items()}

    chunks = [[]]
    for i in order:
        same = not chunks[-1] or len(rows[i]["input_ids"]) == len(rows[chunks[-1][-1]]["input_ids"])
        if len(chunks[-1]) == batch_size or equal_lengths and not same:
            chunks.append([])
        chunks[-1].append(i)
    batches = (padded(chunk) for chunk in chunks)
    return order, batches, len(rows)


def _forward(trunk, batch):
    """Run the trunk on one batch; returns the number of samples."""
    accepted, batch = _accepted(trunk), _padded_right(batch)
    device = next((p.device for p in trunk.parameters() if not p.is_meta), None)
    inputs = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items() if k in accepted}
    if not any(isinstance(v, torch.Tensor) for v in inputs.values()):
        raise ValueError(f"a batch has keys {list(batch)}, {type(trunk).__name__} takes tensors named {accepted}")
    if "input_ids" in inputs:
        _check_vocabulary(trunk, inputs["input_ids"])
    if "decoder_input_ids" in accepted and not {"decoder_input_ids", "decoder_inputs_embeds"} & set(inputs):
        inputs |= _decoder_inputs(trunk, inputs, batch.get("labels"))
    if "use_cache" in accepted:
        inputs["use_cache"] = False
    trunk(**inputs)
    return len(next(v for v in inputs.values() if isinstance(v, torch.Tensor)))


def _padded_right(batch):
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


def _decoder_inputs(trunk, inputs, labels):
    """What the decoder of an encoder-decoder model reads: the labels, or the text itself."""
    if labels is None:
        mask = {"decoder_attention_mask": inputs["attention_mask"]} if "attention_mask" in inputs else {}
        return {"decoder_input_ids": inputs["input_ids"], **mask} if "input_ids" in inputs else {}
    real = (labels != -100).to(inputs["input_ids"].device)
    return {"decoder_input_ids": labels.to(real.device) * real, "decoder_attention_mask": real.long()}


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


@contextmanager
def _evaluating(model):
    """Evaluation mode, and no compiled code, in which hooks never fire; every module's own mode afterwards."""
    modes = {m: m.training for m in model.modules()}
    try:
        model.eval()
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def _positive(name, value):
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r}, expected an integer of at least 1")
    return value
