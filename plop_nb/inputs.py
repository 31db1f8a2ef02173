"""From a batch to what a trunk's forward takes: its arguments, and its padding where it belongs."""

import functools
import inspect
import math
from typing import Any

import torch
from torch import nn

# In a batch, and for no trunk: what the loss needs, and what counts.
NEVER_TAKEN = {"labels", "score_mask"}
# Beginnings of the names of tensors that do not go by the text's mask.
OF_DECODER = ("decoder_", "labels")
OF_MEDIA = ("pixel_", "image_", "input_features")
READS_LEFT = {"cpmant"}  # takes no mask, and padding on the left for granted
# What model types pad their inputs to by themselves, by the name in their configuration.
PADS_ITSELF = {
    "big_bird": "block_size",
    "bigbird_pegasus": "block_size",
    "led": "attention_window",
    "longformer": "attention_window",
    "pegasus_x": "block_size",
}

Batch = dict[str, Any]  # tensors by name, and whatever else a collator adds


def arguments(trunk: nn.Module, batch: Batch) -> Batch:
    """What the trunk's forward takes of a batch, on the trunk's device.

    Raises
    ------
    ValueError
        It takes none of the tensors, or a token is outside of its vocabulary.
    """
    names, takes_all = _parameters(trunk)
    if takes_all and not names:  # forward(*args, **kwargs)
        inputs = {k: v for k, v in batch.items() if k not in NEVER_TAKEN}
    else:
        inputs = {k: v for k, v in batch.items() if k in names}
    if not any(isinstance(v, torch.Tensor) for v in inputs.values()):
        raise ValueError(
            f"a batch has keys {list(batch)}, {type(trunk).__name__} takes tensors named {names}"
        )
    if "input_ids" in inputs:
        _check_vocabulary(trunk, inputs["input_ids"])
    given_decoder = {"decoder_input_ids", "decoder_inputs_embeds"} & set(inputs)
    if "decoder_input_ids" in names and not given_decoder:
        inputs |= _decoder_inputs(inputs, batch.get("labels"))
    if "use_cache" in names:
        inputs["use_cache"] = False
    for name, value in inputs.items():
        if name.endswith("attention_mask") and isinstance(value, torch.Tensor) and value.ndim == 2:
            inputs[name] = value.long() if value.dtype == torch.bool else value  # as tokenizers do
    device = device_of(trunk)
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}


def takes_mask(trunk: nn.Module) -> bool:
    """Whether the trunk's forward is told which tokens are padding."""
    names, takes_all = _parameters(trunk)
    return "attention_mask" in names or (takes_all and not names)


def padded_right(batch: Batch) -> Batch:
    """The batch with each row's real tokens first: left padding would move absolute positions.

    What the decoder of an encoder-decoder model reads goes by the decoder's own mask.
    """
    moved = dict(batch)
    for mask_name, of_decoder in (("attention_mask", False), ("decoder_attention_mask", True)):
        mask = batch.get(mask_name)
        positions = "decoder_position_ids" if of_decoder else "position_ids"
        if not isinstance(mask, torch.Tensor) or mask.ndim != 2 or positions in batch:
            continue
        order = (mask == 0).int().argsort(dim=1, stable=True)
        rows = torch.arange(len(mask), device=mask.device)[:, None]
        for name, value in batch.items():
            if name.startswith(OF_DECODER) != of_decoder or name.startswith(OF_MEDIA):
                continue
            if isinstance(value, torch.Tensor) and value.shape[:2] == mask.shape:
                moved[name] = value[rows, order]
    return moved


def padded_to_multiple(trunk: nn.Module, batch: Batch) -> Batch:
    """The batch as long as the model would make it by itself, out of sight of the mask."""
    ids, config = batch.get("input_ids"), getattr(trunk, "config", None)
    if not isinstance(ids, torch.Tensor) or ids.ndim != 2:
        return batch
    extra = -ids.shape[1] % _length_multiple(config)
    if not extra:
        return batch
    longer = {"attention_mask": torch.ones_like(ids), **batch}
    fill = {"input_ids": getattr(config, "pad_token_id", None) or 0}
    for name, value in longer.items():
        if _goes_by_text(name) and isinstance(value, torch.Tensor) and value.shape[:2] == ids.shape:
            end = [0, 0] * (value.ndim - 2) + [0, extra]
            longer[name] = nn.functional.pad(value, end, value=fill.get(name, 0))
    return longer


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


def _goes_by_text(name):
    return not name.startswith((*OF_DECODER, *OF_MEDIA))


def _length_multiple(config):
    """What a model makes its inputs' length a multiple of: blocks, windows, chunks."""
    model_type = getattr(config, "model_type", "")
    if model_type == "reformer":
        kinds = set(config.attn_layers)
        return math.lcm(*(getattr(config, f"{kind}_attn_chunk_length") for kind in kinds))
    if model_type not in PADS_ITSELF:
        return 1
    sizes = getattr(config, PADS_ITSELF[model_type])
    return max(sizes) if isinstance(sizes, (list, tuple)) else sizes


def _parameters(trunk):
    """Names of the arguments of the trunk's forward, and whether it takes others as well.

    Where it was replaced by a `forward(*args, **kwargs)`, those of its class; and behind wrappers
    that pass all on, those of the decoder.
    """
    for forward in (trunk.forward, functools.partial(type(trunk).forward, trunk)):
        parameters = inspect.signature(forward).parameters.values()
        names = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        if names:
            break
    if not names and hasattr(trunk, "decoder"):
        return _parameters(trunk.decoder)
    return names, any(p.kind == p.VAR_KEYWORD for p in parameters)


def _decoder_inputs(inputs, labels):
    """What the decoder of an encoder-decoder model reads: the labels, or the text itself."""
    if labels is not None:
        real = labels != -100
        found = {"decoder_input_ids": labels * real, "decoder_attention_mask": real.long()}
        return padded_right(found)
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
