"""Whether a model is still the same: a hash of all that its forward reads."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

PERIOD = 2**15  # words in one sum: their products fit a core's cache
SUMS = {"cpu": 1}  # at a time
ACCELERATOR_SUMS = 2**7  # 32 MB of products
FEW = 2**10  # numbers of an array among a module's attributes
# Attributes and settings that leave every number of a forward as it is.
WITHOUT_EFFECT = set(
    """_model_name_or_path _name_or_path name_or_path architectures bos_token_id dtype
    eos_token_id forward gradient_checkpointing hf_device_map id2label label2id
    max_seq_len_cached output_attentions output_hidden_states pad_token_id problem_type
    return_dict torch_dtype training transformers_version use_cache warnings_issued""".split()
)
# What forwards of some models write down: big_bird, funnel, reformer, rwkv.
WITHOUT_EFFECT |= set("attention_type layers_are_rescaled num_buckets pooling_mult seq_len".split())


def fingerprint(model: nn.Module) -> str:
    """A hash of what a model's forward reads: its weights bit by bit, and its settings.

    Every parameter and buffer, those of adapters and those that accelerate has offloaded included
    (read from where they lie, one by one); the class and the plain attributes of every module, so
    the epsilon of a norm, and which adapters are active, merged or switched off, and their
    scaling; the config. Not code that somebody has put in the place of a forward, nor what a
    quantiser keeps outside of parameters and buffers, nor attributes that are arrays of more than
    1,024 numbers.

    Costs one reading of the weights. The same on every device.

    Returns
    -------
    str
        16 hexadecimal digits.

    Examples
    --------
    >>> layer = torch.nn.Linear(2, 2)
    >>> before = fingerprint(layer)
    >>> _ = layer.bias.data.add_(1)
    >>> fingerprint(layer) == before
    False
    """
    digest = hashlib.sha256()
    to_dict = getattr(getattr(model, "config", None), "to_dict", dict)
    _update(digest, _with_effect(to_dict()))
    for path, module in model.named_modules():
        name = path.replace("_orig_mod.", "")
        _update(digest, [name, type(module).__qualname__, _attributes(module)])
        for tensor_name, tensor in _tensors(module):
            if tensor.is_meta:
                tensor = _offloaded(model, f"{path}.{tensor_name}".lstrip("."), tensor)
            _update(digest, [tensor_name, str(tensor.dtype), list(tensor.shape)])
            for sums in checksums(tensor):
                digest.update(sums.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


@torch.no_grad()
def checksums(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Sums of a tensor's bits that a change of any of them changes, each over 128 kB.

    A word of 32 bits times a random odd number of 64 bits, one for each place, summed modulo 2^64:
    any one change shows for sure, any given several with all but a chance of 2^-32.

    Yields
    ------
    torch.Tensor
        int64, 1-D, on the device of `tensor`; nothing of one that holds no numbers (on the meta
        device, or empty).
    """
    if hasattr(tensor, "__tensor_flatten__"):  # packed, or spread over processes
        for name in tensor.__tensor_flatten__()[0]:
            yield from checksums(getattr(tensor, name))
        return
    if tensor.is_meta or not tensor.numel():
        return
    factors = _factors(tensor.device)
    at_a_time = SUMS.get(tensor.device.type, ACCELERATOR_SUMS)
    # Copied whole where it is not contiguous, which weights are.
    for piece in _dense(tensor).reshape(-1).split(at_a_time * PERIOD * 4 // tensor.itemsize):
        raw = as_bytes(piece)
        if len(raw) % (4 * PERIOD) or raw.storage_offset() % 4:
            raw = nn.functional.pad(raw, (0, -len(raw) % (4 * PERIOD)))
        yield (raw.view(torch.int32).view(-1, PERIOD) * factors).sum(1)


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The numbers of any tensor as they are stored: uint8, 1-D, where possible a view."""
    flat = _dense(tensor).resolve_conj().resolve_neg().reshape(-1)
    # A single number may have any stride, and be contiguous all the same.
    return flat.contiguous().as_strided(flat.shape, (1,)).view(torch.uint8)


def _dense(tensor):
    tensor = tensor.detach()
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


@cache
def _factors(device):
    # These bits are the same in every version of numpy, those of `torch.randint` need not be.
    odd = np.random.PCG64(0).random_raw(PERIOD) | np.uint64(1)
    return torch.from_numpy(odd.view(np.int64)).to(device)


def _tensors(module):
    """The parameters and buffers of a module itself."""
    yield from module.named_parameters(recurse=False)
    if not _has_moving_rope(module):
        yield from module.named_buffers(recurse=False)


def _attributes(module):
    """The attributes of a module that are plain values, by name."""
    plain = {}
    if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
        plain["adapters"] = [module.active_adapters, module.disable_adapters]
    attributes = {} if _has_moving_rope(module) else vars(module)
    for name, value in sorted(attributes.items()):
        if not name.startswith("_") and name not in WITHOUT_EFFECT:
            plain[name] = _plain(value)
    return plain


def _plain(value):
    """A value in the form of JSON; what has none there by its class."""
    if isinstance(value, (np.generic, np.ndarray, torch.Tensor)) and math.prod(value.shape) <= FEW:
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, partial):
        return [_plain(value.func), _plain(value.args), _plain(value.keywords)]
    return getattr(value, "__qualname__", type(value).__qualname__)


def _has_moving_rope(module):
    """Whether forwards rewrite a module's frequencies, by the length of the text."""
    kind = str(getattr(module, "rope_type", ""))
    return "dynamic" in kind or "longrope" in kind


def _offloaded(model, name, tensor):
    """The values of a tensor that accelerate keeps elsewhere; the tensor itself if it does not."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, -1, -1):  # its own module, or one around it
        hook: Any = getattr(model.get_submodule(".".join(parts[:cut])), "_hf_hook", None)
        for each in getattr(hook, "hooks", [hook]):
            if getattr(each, "offload", False) and each.weights_map is not None:
                return each.weights_map[".".join(parts[cut:])]
    return tensor


def _with_effect(settings):
    """A config as a dict, without what leaves the numbers as they are, in its parts as well."""
    if not isinstance(settings, dict):
        return settings
    return {str(k): _with_effect(v) for k, v in settings.items() if k not in WITHOUT_EFFECT}


def _update(digest, content):
    digest.update(json.dumps(_plain(content), sort_keys=True).encode())
