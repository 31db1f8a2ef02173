"""Which of a map's input vectors are real tokens.

A model is told once, by its `attention_mask` (batch, length); its maps meet the tokens in many
layouts. Where a layout could mean two things, the answer is None: such a map gets no score, for a
wrong one would look like any other.
"""

import inspect
import re
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from plop_nb.maps import LinearMap

# Model types of transformers with maps that read (length, batch, features). The sweep over all
# architectures in the tests finds no other.
TIME_MAJOR = {"fsmt", "led", "longformer", "xlnet"}
# In the names of maps that read images, in a model that also reads text.
VISION = re.compile(r"vision|visual|image|patch|vit\b", re.IGNORECASE)
EVERY = re.compile("")
# What stands in such a part of a model reads images alone, even where there are as many patches as
# the texts have tokens.
TOWER = re.compile(r"(^|\.)(visual|\w*(vision|image|video)_(model|tower|encoder))\.")


@dataclass
class Tokens:
    """The real tokens of one forward of the trunk."""

    mask: torch.Tensor  # (batch, length), 1 for real tokens
    decoder_mask: torch.Tensor | None  # of an encoder-decoder model
    reads_images: re.Pattern | None  # matches names of maps that read images; None: there are none
    encoder_output: weakref.ref | None = None
    _layouts: dict = field(default_factory=dict)  # masks in the layouts of inputs, once made

    @classmethod
    def of_call(cls, given: dict, score_mask: torch.Tensor | None = None) -> "Tokens":
        """From the trunk's arguments; `score_mask` (batch, length) says which of them count.

        Raises
        ------
        ValueError
            A mask says who may look at whom, but not who is padding, and neither does `score_mask`;
            `score_mask` has another shape; or there is no tensor among the arguments.
        """
        if score_mask is None:
            _check_mask("attention_mask", given)
        _check_mask("decoder_attention_mask", given)
        mask = _mask(given, "attention_mask", ("input_ids", "inputs_embeds"))
        decoder_mask = _mask(
            given, "decoder_attention_mask", ("decoder_input_ids", "decoder_inputs_embeds")
        )
        images = None if given.get("pixel_values") is None else VISION
        if mask is None:  # no text: every map reads the images, or whatever there is
            images = None if images is None else EVERY
            mask = _ones(_first_tensor(given))
        if score_mask is not None:
            reads_same = decoder_mask is not None and _decoder_reads_the_text(given)
            mask = _without(mask, score_mask)
            decoder_mask = _without(decoder_mask, score_mask) if reads_same else decoder_mask
        tokens = cls(mask, decoder_mask, images)
        tokens.note_encoder_output(given.get("encoder_outputs"))
        return tokens

    def note_encoder_output(self, out: Any) -> None:
        """Remember what the encoder returned: a tensor, or an output whose first entry is one."""
        if out is not None and not isinstance(out, torch.Tensor):
            out = out[0]
        is_tensor = isinstance(out, torch.Tensor)
        self.encoder_output = weakref.ref(out) if is_tensor else None

    def is_encoder_output(self, z: torch.Tensor) -> bool:
        """Whether `z` is the encoder's output, or a view of it."""
        output = None if self.encoder_output is None else self.encoder_output()
        if output is None:
            return False
        return output.untyped_storage().data_ptr() == z.untyped_storage().data_ptr()

    def among(self, tokens: int) -> torch.Tensor | None:
        """The mask, encoder's or decoder's, with so many tokens in all; None where they differ."""
        masks = [m for m in (self.mask, self.decoder_mask) if m is not None]
        fitting = [m for m in masks if m.numel() == tokens]
        if len(fitting) == 2 and not torch.equal(*fitting):
            return None
        return fitting[0] if fitting else None

    def after_prompt(self, mask: torch.Tensor, length: int) -> torch.Tensor:
        """`mask` behind a prompt of the model's own, which does not count; always the same one."""
        key = id(mask), length
        if key not in self._layouts:
            prompt = torch.zeros(len(mask), length, device=mask.device)
            self._layouts[key] = torch.cat([prompt, mask], dim=1)
        return self._layouts[key]

    def laid_out(self, mask: torch.Tensor, lead: tuple) -> torch.Tensor | None:
        """`mask` for an input of leading shape `lead`, (batch, visits); always the same object."""
        key = id(mask), lead
        if key not in self._layouts:
            fitted = _laid_out(mask, lead)
            self._layouts[key] = None if fitted is None else fitted.reshape(len(mask), -1)
        return self._layouts[key]


class Padding:
    """What is known of the layouts in one model, over all its forwards."""

    def __init__(self, trunk: nn.Module) -> None:
        self.encoder = _encoder_of(trunk)
        self._in_encoder = set() if self.encoder is None else set(self.encoder.modules())
        self._batch_first = is_batch_first(trunk)
        # Name of a map -> whether it reads (length, batch, features), as a batch has shown that is
        # not square.
        self._by_time: dict[str, bool] = {}
        self._prompt = _own_prompt(trunk)

    def mask(self, tokens: Tokens, linear_map: LinearMap, z: torch.Tensor) -> torch.Tensor | None:
        """Which vectors of `z` (..., features) are real, (batch, visits); None: not to be told."""
        lead = z.shape[:-1]
        found = None
        reads_patches = self._reads_patches(tokens, linear_map, lead)
        if reads_patches and TOWER.search(linear_map.name):
            return _unpadded(lead, z)
        if tokens.decoder_mask is not None and linear_map.module not in self._in_encoder:
            if not tokens.is_encoder_output(z):  # else it is cross-attention
                found = self._fitted(tokens, tokens.decoder_mask, linear_map, lead)
        if found is None:
            found = self._fitted(tokens, tokens.mask, linear_map, lead)
        return _unpadded(lead, z) if found is None and reads_patches else found

    def by_sample(self, linear_map: LinearMap, x: torch.Tensor) -> torch.Tensor:
        """`x`, (batch, length, ...) or (length, batch, ...), with the batch first."""
        return x.transpose(0, 1) if self._by_time.get(linear_map.name) else x

    def _fitted(self, tokens, mask, linear_map, lead):
        batch, length = mask.shape
        by_sample, by_time = lead[:2] == (batch, length), lead[:2] == (length, batch)
        if (by_sample or by_time) and not self._batch_first and lead[:2] != (1, 1):
            if by_sample != by_time:
                self._by_time[linear_map.name] = by_time
            if linear_map.name not in self._by_time:
                return None  # a square batch alone does not tell
            if self._by_time[linear_map.name]:
                lead = (batch, length, *lead[2:])
        if self._prompt and lead == (batch, self._prompt + length):
            mask = tokens.after_prompt(mask, self._prompt)
        return tokens.laid_out(mask, lead)

    def _reads_patches(self, tokens, linear_map, lead):
        if tokens.reads_images is None or len(lead) < 2 or lead[0] != len(tokens.mask):
            return False
        return tokens.reads_images.search(linear_map.name) is not None


def _unpadded(lead, z):
    """The mask of inputs that are all real, as those from images are."""
    return torch.ones(lead, device=z.device).flatten(1)


def is_batch_first(trunk: nn.Module) -> bool:
    """Whether all maps are known to read (batch, length): the tested types of transformers."""
    if not any(c.__module__.startswith("transformers.models.") for c in type(trunk).__mro__):
        return False
    for module in trunk.modules():
        if isinstance(module, PreTrainedModel) and module.config.model_type in TIME_MAJOR:
            return False
    return True


def _laid_out(mask, lead):
    """`mask` (batch, length) expanded to the leading shape of an input, samples first, or None."""
    batch, length = mask.shape
    if lead[1:] == (length, length) and length > 1:  # heads or tokens, in which order?
        return None
    if lead[:2] == (batch, length):  # one vector a token, or several (heads)
        return mask.reshape(batch, length, *[1] * (len(lead) - 2)).expand(lead)
    if len(lead) == 3 and lead[0] == batch and lead[2] == length:  # (batch, heads, length)
        return mask[:, None].expand(lead)
    if lead == (batch * length,):  # tokens flattened
        return mask
    if lead == (batch,):  # a pooled vector
        return torch.ones_like(mask[:, :1])
    return None


def _mask(given, name, inputs):
    """The padding mask among the trunk's arguments, (batch, length); ones where there is none."""
    tokens = next((given[k] for k in inputs if isinstance(given.get(k), torch.Tensor)), None)
    mask = given.get(name)
    if isinstance(mask, torch.Tensor) and mask.ndim == 2:
        length = mask.shape[1] if tokens is None else tokens.shape[1]
        return mask[:, -length:].float()  # in generation the mask also covers the cached tokens
    return None if tokens is None else torch.ones(tokens.shape[:2], device=tokens.device)


def named_arguments(signature: inspect.Signature, args: tuple, kwargs: dict) -> dict[str, Any]:
    """The arguments of a forward by their names; `forward(*args, **kwargs)` has none for them."""
    bound = signature.bind_partial(*args, **kwargs).arguments
    first = next(iter(signature.parameters.values()), None)
    is_unnamed = first is not None and first.kind == first.VAR_POSITIONAL
    if is_unnamed and args and isinstance(args[0], torch.Tensor):
        is_ids = args[0].ndim == 2 and not args[0].is_floating_point()
        bound["input_ids" if is_ids else "inputs"] = args[0]
    return {**bound, **kwargs}


def _is_alike(mask):
    """Whether a mask tells who is padding, or is the same for all texts, so that none is padded."""
    if mask is None:
        return True
    if not isinstance(mask, torch.Tensor):
        return False
    return mask.ndim == 2 or bool((mask == mask[:1]).all())


def _first_tensor(given):
    for value in given.values():
        if isinstance(value, torch.Tensor) and value.ndim:
            return value
    raise ValueError(
        f"no tensor among the arguments of a forward ({', '.join(given) or 'none'}): record_norms "
        "reads the samples from tensors that the model is called with"
    )


def _without(mask, score_mask):
    """The mask without the tokens that are not to count."""
    if getattr(score_mask, "shape", None) != mask.shape:
        shape = tuple(getattr(score_mask, "shape", ()))
        raise ValueError(
            f"score_mask is {type(score_mask).__name__} of shape {shape}, expected a tensor of "
            f"shape {tuple(mask.shape)}, the texts and tokens of the batch"
        )
    return mask * score_mask.to(mask)


def _decoder_reads_the_text(given):
    """Whether an encoder-decoder model is given the same tokens twice."""
    ids, decoder_ids = given.get("input_ids"), given.get("decoder_input_ids")
    both = isinstance(ids, torch.Tensor) and isinstance(decoder_ids, torch.Tensor)
    return both and torch.equal(ids, decoder_ids)


def _check_mask(name, given):
    """Refuse a mask that does not tell who is padding: (batch, 1, length, length), or a dict."""
    mask = given.get(name)
    parts = mask.values() if isinstance(mask, Mapping) else [mask]  # one for each kind of layer
    if all(_is_alike(part) for part in parts):
        return
    shape = getattr(mask, "shape", None)
    found = f"{type(mask).__name__}" if shape is None else f"of shape {tuple(shape)}"
    raise ValueError(
        f"{name} is {found}, which does not tell who is padding: pass the mask (batch, length); or "
        "say so in a score_mask (batch, length), in the batch or as `record.score_mask` before "
        "each forward"
    )


def _ones(inputs):
    shape = inputs.shape[:2] if inputs.ndim == 3 else (len(inputs), 1)
    return torch.ones(shape, device=inputs.device)


def _own_prompt(trunk):
    """How many tokens a model puts before every text: CPM-Ant does."""
    config = getattr(trunk, "config", None)
    return trunk.prompt_length if getattr(config, "model_type", None) == "cpmant" else 0


def _encoder_of(trunk):
    """The encoder of an encoder-decoder model, or None."""
    is_pair = getattr(getattr(trunk, "config", None), "is_encoder_decoder", False)
    if not is_pair:
        return None
    return getattr(trunk, "encoder", None) or getattr(trunk, "text_encoder", None)
