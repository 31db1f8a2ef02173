"""The `LoraConfig` that hits exactly the chosen modules, proven by injection into an empty copy."""

import copy
import inspect
import re
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from plop_nb.checks import positive_integer
from plop_nb.maps import LinearMap, linear_maps, unwrapped

TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}


def wanted_targets(
    model: nn.Module, modules: Iterable[str], layers: Iterable[int] | None = None
) -> dict[str, LinearMap]:
    """{PEFT target: one of its maps} of the named modules, in `layers` only where given.

    Raises
    ------
    ValueError
        `model` has no such module, or no chosen module is in one of the layers.
    """
    maps = {m.name: m for m in linear_maps(model)}
    wanted = {}
    for name in modules:
        if name not in maps:
            raise ValueError(
                f"{type(model).__name__} has no module {name!r}: this placement is for another "
                "model"
            )
        wanted[maps[name].target] = maps[name]
    if layers is None:
        return wanted
    layers = set(layers)
    if missing := layers - {m.layer for m in wanted.values()}:
        raise ValueError(f"layers={sorted(layers)}: no chosen module is in layer {min(missing)}")
    return {target: m for target, m in wanted.items() if m.layer in layers}


def lora_config(
    model: nn.Module, wanted: dict[str, LinearMap], r: int, **options: Any
) -> LoraConfig:
    """The most readable form of `LoraConfig` that hits every wanted target and no other.

    Parameters
    ----------
    model : torch.nn.Module
        Not changed.
    wanted : dict
        From `wanted_targets`.
    r : int
        Rank of the adapters.
    **options
        Any other argument of `peft.LoraConfig`, but for those that name modules.

    Raises
    ------
    ValueError
        No form hits exactly the wanted targets: says what each did.
    """
    r = positive_integer("r", r)
    options.setdefault("task_type", _task_type(unwrapped(model)))
    failures = []
    for form in _forms(wanted):
        config = LoraConfig(r=r, **form, **options)
        try:
            adapted = adapted_targets(model, config)
        except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
            failures.append(f"PEFT: {error}")  # it refuses this form
            continue
        if set(adapted) == set(wanted):
            return config
        failures.append(difference(wanted, adapted))
    types = list(dict.fromkeys(m.type for m in wanted.values()))
    reasons = "; ".join(dict.fromkeys(failures))
    raise ValueError(f"no form of LoraConfig hits exactly {types}: {reasons}")


def difference(wanted: dict, adapted: dict) -> str:
    """In words, how the targets that a config adapts differ from the wanted ones."""
    missed = [target for target in wanted if target not in adapted]
    extra = [target for target in adapted if target not in wanted]
    return (
        f"misses {len(missed)} chosen modules {missed[:3]} and adds {len(extra)} others {extra[:3]}"
    )


def adapted_targets(model: nn.Module, config: LoraConfig) -> dict[str, int]:
    """{target: adapter parameters} of what PEFT adapts, found by injection into an empty copy."""
    empty = skeleton(model)
    empty = empty.unload() if isinstance(empty, PeftModel) else unwrapped(empty)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peft_model = get_peft_model(empty, copy.deepcopy(config), low_cpu_mem_usage=True)
    except ValueError as error:
        if "not found in the base model" not in str(error):
            raise
        return {}
    found = {}
    for name, layer in peft_model.get_base_model().named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        target = name.replace(".base_layer", "").replace("_orig_mod.", "")
        parameter = getattr(layer, "parameter_name", "weight")
        if parameter != "weight":
            target += f".{parameter}"
        own = [p for n, p in layer.named_parameters() if "base_layer" not in n]
        found[target] = sum(p.numel() for p in own)
    return found


def name_pattern(names: Iterable[str], known: Iterable[str] = ()) -> str:
    r"""A regular expression that matches these names in full and no other known one.

    Layers are listed, or are `\d+` where all known ones are meant.
    """
    layers, everywhere = _by_place(names), _by_place(known)
    parts = []
    for around, numbers in layers.items():
        before, after = (re.escape(part) for part in around)
        number = "|".join(numbers)
        if len(numbers) > 1:
            number = r"\d+" if numbers == everywhere.get(around) else f"({number})"
        parts.append(before + number + after)
    return "|".join(parts)


def skeleton(model: nn.Module) -> nn.Module:
    """A copy of `model` with its tensors on the meta device: structure without memory."""
    empty: dict[int, torch.Tensor] = {}
    for buffer in model.buffers():
        empty[id(buffer)] = torch.empty_like(buffer, device="meta")
    for parameter in model.parameters():
        empty[id(parameter)] = _empty(parameter)
    return copy.deepcopy(model, empty)


def _empty(parameter):
    """A meta parameter with the attributes of a quantised one, which PEFT asks for."""
    data = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
    copied = nn.Parameter(data, requires_grad=parameter.requires_grad)
    vars(copied).update(vars(parameter))
    return copied


def _task_type(model):
    """What `PeftModel` is to wrap the model as; None: the plain wrapper, which suits all."""
    name = type(model).__name__
    task = next((task for ending, task in TASKS.items() if name.endswith(ending)), None)
    is_pair = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    if task != "SEQ_2_SEQ_LM" or is_pair:
        return task
    # A decoder that also reads images or sound. PEFT's causal wrapper passes it `inputs_embeds`,
    # which BLIP does not take.
    takes_embeds = "inputs_embeds" in inspect.signature(model.forward).parameters
    return "CAUSAL_LM" if takes_embeds and hasattr(model, "generate") else None


def _forms(wanted) -> Iterator[dict]:
    """Ways to name the wanted targets to PEFT, most readable first."""
    stacks = [target for target, m in wanted.items() if m.expert is not None]
    maps = {target: m for target, m in wanted.items() if m.expert is None}
    also = {"target_parameters": stacks} if stacks else {}
    if maps:
        endings = dict.fromkeys(target.rsplit(".", 1)[-1] for target in maps)
        patterns = dict.fromkeys(re.escape(m.pattern) for m in maps.values())
        starred = "|".join(pattern.replace(r"\*", r"\w+") for pattern in patterns)
        yield {"target_modules": list(endings), **also}
        yield {"target_modules": starred, **also}
        yield {"target_modules": name_pattern(maps), **also}
        yield {"target_modules": list(maps), **also}
    # PEFT renames modules of mixture models, but not parameters given by their full name.
    full = [f"{target}.weight" for target in maps]
    yield {"target_modules": [], "target_parameters": full + stacks}


def _by_place(names):
    """{(name before, name after the layer's number): numbers}; without one the number is ""."""
    places: dict[tuple[str, str], list[str]] = {}
    for name in names:
        found = re.search(r"(?<![^.])\d+(?![^.])", name)
        around, number = (name, ""), ""
        if found is not None:
            around, number = (name[: found.start()], name[found.end() :]), found.group()
        places.setdefault(around, []).append(number)
    return places
