"""Which of a map's input vectors are real tokens.

A model is told once, by its `attention_mask` (batch, length); its maps meet the tokens in many
layouts. Where a layout could mean two things, the answer is None: such a map gets no score, for a
wrong one would look like any other.
"""

import re
import weakref
from dataclasses import dataclass, field

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
            A mask says who may look at whom, but not who is padding, and neither does `score_mask`.
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
            mask = _ones(next(v for v in given.values() if isinstance(v, torch.Tensor)))
        if score_mask is not None:
            mask = mask * score_mask.to(mask)
        return cls(mask, decoder_mask, images)

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
        # Names of maps, by what a batch that is not square has shown.
        self._time_major: set[str] = set()  # (length, batch, features)
        self._batch_major: set[str] = set()  # (batch, length, features)
        self._prompt = _own_prompt(trunk)

    def mask(self, tokens: Tokens, linear_map: LinearMap, z: torch.Tensor) -> torch.Tensor | None:
        """Which vectors of `z` (..., features) are real, (batch, visits); None: not to be told."""
        lead = z.shape[:-1]
        found = None
        reads_patches = self._reads_patches(tokens, linear_map, lead)
        if reads_patches and TOWER.search(linear_map.name):
            return _unpadded(lead, z)
        if tokens.decoder_mask is not None and linear_map.module not in self._in_encoder:
            output = tokens.encoder_output
            if output is None or output() is not z:  # else it is cross-attention
                found = self._fitted(tokens, tokens.decoder_mask, linear_map, lead)
        if found is None:
            found = self._fitted(tokens, tokens.mask, linear_map, lead)
        return _unpadded(lead, z) if found is None and reads_patches else found

    def by_sample(self, linear_map: LinearMap, x: torch.Tensor) -> torch.Tensor:
        """`x`, (batch, length, ...) or (length, batch, ...), with the batch first."""
        return x.transpose(0, 1) if linear_map.name in self._time_major else x

    def _fitted(self, tokens, mask, linear_map, lead):
        batch, length = mask.shape
        if len(lead) >= 2 and lead[:2] in ((batch, length), (length, batch)):
            if not self._settled(linear_map.name, (batch, length), lead):
                return None
            if linear_map.name in self._time_major:
                lead = (batch, length, *lead[2:])
        if self._prompt and lead == (batch, self._prompt + length):
            mask = tokens.after_prompt(mask, self._prompt)
        return tokens.laid_out(mask, lead)

    def _settled(self, name, shape, lead):
        """Whether it is known which comes first; a square batch alone does not tell."""
        if shape[0] != shape[1]:
            known = self._batch_major if lead[:2] == shape else self._time_major
            known.add(name)
        known = self._batch_major | self._time_major
        return self._batch_first or shape == (1, 1) or name in known

    def _reads_patches(self, tokens, linear_map, lead):
        if tokens.reads_images is None or len(lead) < 2 or lead[0] != len(tokens.mask):
            return False
        return tokens.reads_images.search(linear_map.name) is not None


def _unpadded(lead, z):
    """The mask of inputs that are all real, as those from images are."""
    return torch.ones(lead, device=z.device).flatten(1)


def is_batch_first(trunk: nn.Module) -> bool:
    """Whether all maps are known to read (batch, length): the tested types of transformers."""
    if not type(trunk).__module__.startswith("transformers."):
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


def _check_mask(name, given):
    """Refuse a mask that does not tell who is padding: (batch, 1, length, length), or a dict."""
    mask = given.get(name)
    if mask is None or (isinstance(mask, torch.Tensor) and mask.ndim == 2):
        return
    shape = getattr(mask, "shape", None)
    found = f"{type(mask).__name__}" if shape is None else f"of shape {tuple(shape)}"
    raise ValueError(
        f"{name} is {found}, which does not tell who is padding: pass the mask (batch, length), or "
        "give a score_mask (batch, length) beside it"
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
    return getattr(trunk, "encoder", None) if is_pair else None
