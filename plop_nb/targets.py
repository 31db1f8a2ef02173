"""The `LoraConfig` that hits exactly the chosen modules, proven by injection into an empty copy."""

import copy
import inspect
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from numbers import Integral
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from plop_nb.checks import positive_integer, positive_number
from plop_nb.maps import LinearMap, linear_maps, unwrapped

TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}

# Options of `LoraConfig` that say where adapters go: {name: what to do instead}.
CHOICES = {
    "target_modules": "build a LoraConfig yourself",
    "target_parameters": "build a LoraConfig yourself",
    "exclude_modules": "make a placement without them, such as Placement.of_types",
    "layers_to_transform": "name the layers as layers=",
    "layers_pattern": "name the layers as layers=",
    "layer_replication": "score and place the replicated model",
}
# Starts of adapters that are made from data, or need more than the empty copy has.
STARTS_FROM_DATA = ("corda", "loftq")


def wanted_targets(
    model: nn.Module,
    modules: Iterable[str],
    layers: Iterable[int] | None = None,
    exclude: Iterable[str] = (),
) -> dict[str, LinearMap]:
    """{PEFT target: one of its maps} of the named modules, in `layers` only where given.

    Those in a part of the model that `exclude` names are left out.

    Raises
    ------
    ValueError
        `model` has no such module, `layers` is no collection of integers, or no chosen module is
        in one of them; no modules are named; or `exclude` names a part without a chosen module,
        or leaves none.
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
    if not wanted:
        raise ValueError("modules=[]: this placement puts adapters on nothing")
    wanted = _without(wanted, exclude)
    if layers is None:
        return wanted
    numbers = _layer_numbers(layers)
    if missing := numbers - {m.layer for m in wanted.values()}:
        raise ValueError(f"layers={sorted(numbers)}: no chosen module is in layer {min(missing)}")
    return {target: m for target, m in wanted.items() if m.layer in numbers}


def _without(wanted, exclude):
    """The targets that are in none of these parts of the model."""
    parts = [exclude] if isinstance(exclude, str) else list(exclude)
    for part in parts:
        if not any(f".{part}." in f".{target}." for target in wanted):
            raise ValueError(f"exclude={parts!r}: no chosen module is in a part named {part!r}")
        wanted = {t: m for t, m in wanted.items() if f".{part}." not in f".{t}."}
    if not wanted:
        raise ValueError(f"exclude={parts!r} leaves no chosen module")
    return wanted


def _layer_numbers(layers):
    """The layers as a set of `int`, of any integers."""
    numbers = [] if isinstance(layers, str) or not isinstance(layers, Iterable) else list(layers)
    is_integer = [isinstance(n, Integral) and not isinstance(n, bool) for n in numbers]
    if not numbers or not all(is_integer):
        shown = numbers or layers
        raise ValueError(
            f"layers={shown!r}, expected one or more integers, such as [0, 1]; None means all"
        )
    return {int(number) for number in numbers}


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
        Any other argument of `peft.LoraConfig`, but for those that say where adapters go.

    Raises
    ------
    ValueError
        An option says where adapters go or trains a wanted target whole, or no form hits exactly
        the wanted targets: says what each did.
    """
    r = positive_integer("r", r)
    if options.get("lora_alpha") is not None:
        options["lora_alpha"] = positive_number("lora_alpha", options["lora_alpha"])
    _check_options(options, wanted)
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


def _check_options(options, wanted):
    """Refuse what would move the adapters, or replace what they hang on."""
    for name in CHOICES:
        if name in options:
            raise ValueError(
                f"{name} is what the placement chooses: leave it out, or {CHOICES[name]}"
            )
    ranks = options.get("rank_pattern") or {}
    if not isinstance(ranks, Mapping):
        raise ValueError(f"rank_pattern={ranks!r}, expected a dict {{name: rank}}")
    for target, rank in ranks.items():
        positive_integer(f"rank_pattern[{target!r}]", rank)
    saved = options.get("modules_to_save")
    if isinstance(saved, str):
        raise ValueError(f"modules_to_save={saved!r}, expected a list of names: [{saved!r}]")
    for name in saved or []:
        for target in wanted:
            if f".{name}." in f".{target}.":
                raise ValueError(
                    f"modules_to_save={saved!r} trains {target!r} whole, which the placement gives "
                    "adapters: leave it out of one of them"
                )


def difference(wanted: dict, adapted: dict) -> str:
    """In words, how the targets that a config adapts differ from the wanted ones."""
    missed = [target for target in wanted if target not in adapted]
    extra = [target for target in adapted if target not in wanted]
    return (
        f"misses {len(missed)} chosen modules {missed[:3]} and adds {len(extra)} others {extra[:3]}"
    )


def adapted_targets(model: nn.Module, config: LoraConfig) -> dict[str, int]:
    """{target: adapter parameters} of what PEFT adapts, found by injection into an empty copy.

    Embeddings of single tokens that are trained besides (`trainable_token_indices`) are none.
    """
    peft_model = injected(model, config)
    if peft_model is None:
        return {}
    return {name: adapter_size(layer) for name, layer in adapted_layers(peft_model).items()}


def injected(model: nn.Module, config: LoraConfig) -> PeftModel | None:
    """An empty copy of the model with the adapters of this config; None where it hits nothing.

    Neither `model` nor `config` is changed. Tensors of the copy, adapters included, are on the
    meta device.

    Raises
    ------
    TypeError
        `config` is none of PEFT's.
    ValueError, NotImplementedError, RuntimeError
        PEFT's own, where it refuses this config.
    """
    if not isinstance(config, PeftConfig):
        raise TypeError(
            f"config is {type(config).__name__}, expected a peft.LoraConfig (see "
            "Placement.lora_config)"
        )
    config = copy.deepcopy(config)
    if getattr(config, "init_lora_weights", None) in STARTS_FROM_DATA:
        config.init_lora_weights = True  # the same adapters
    empty = skeleton(model)
    has_layers = isinstance(empty, PeftModel) and hasattr(empty.base_model, "unload")
    empty = empty.unload() if has_layers else unwrapped(empty)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return get_peft_model(empty, config, low_cpu_mem_usage=True)
    except ValueError as error:
        if "not found in the base model" not in str(error):
            raise
        return None


def adapted_layers(peft_model: PeftModel) -> dict[str, BaseTunerLayer]:
    """{target: the layer that PEFT put there}, in the order of the model."""
    found = {}
    for name, layer in peft_model.get_base_model().named_modules():
        if not isinstance(layer, BaseTunerLayer) or isinstance(layer, TrainableTokensLayer):
            continue
        target = name.replace(".base_layer", "").replace("_orig_mod.", "")
        parameter = getattr(layer, "parameter_name", "weight")
        if parameter != "weight":
            target += f".{parameter}"
        found[target] = layer
    return found


def adapter_size(layer: BaseTunerLayer) -> int:
    """Parameters of the adapter in one layer, without those of the map below it."""
    own = [p for name, p in layer.named_parameters() if "base_layer" not in name]
    return sum(p.numel() for p in own)


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
