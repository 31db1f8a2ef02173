"""What is probably not meant in where adapters land, in sentences."""

import inspect
import re
from collections import defaultdict
from difflib import get_close_matches
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from plop_nb._wheels import quiet
from plop_nb.landing import Landing, matches
from plop_nb.maps import BARE, HEAD, NOT_PLAIN, OWN_CLASS, ROUTER, SCORED
from plop_nb.ranges import ranges
from plop_nb.targets import adapted_layers
from plop_nb.wrappers import unwrapped

# Maps that compute something else than W z + b: what an adapter does there is not LoRA.
ODD = {NOT_PLAIN, OWN_CLASS, BARE}


def problems_of(model: nn.Module, landing: Landing) -> tuple[list[str], list[str]]:
    """Problems, which are probably not meant, and notes of what may be meant; one line each."""
    config = landing.config
    towers = towers_of(unwrapped(model))
    problems = [
        *_missed(landing, config),
        *_passed_over(landing, config),
        *_other_arguments(landing, config, unwrapped(model)),
        *_by_accident(landing, towers),
        *_without_effect(landing, towers),
        *_layers_without(landing, config),
    ]
    notes = [*_in_part(landing), *_stacks(landing), *_tied(landing, config, unwrapped(model))]
    return problems, notes


def _missed(landing: Landing, config: LoraConfig) -> list[str]:
    """Entries that hit nothing, with names that are like them."""
    names = sorted({part for target in landing.places for part in target.split(".")})
    names = [name for name in names if not name.isdigit()]
    lines: list[str] = []
    for (argument, entry), targets in landing.hits.items():
        if targets:
            continue
        line = f"{argument}: {entry!r} hits nothing in {landing.model}"
        if entry in names:
            lines.append(line)  # why is said below
            continue
        if isinstance(config.target_modules, str):
            types = list(dict.fromkeys(place.type for place in landing.places.values()))
            line += f", whose types are {', '.join(types[:8])}"
        elif alike := _alike(entry.rsplit(".", 1)[-1], names):
            line += f"; names like it are {', '.join(alike)}"
        lines.append(line)
    if not landing.hits:
        lines.append(f"target_modules names nothing, so no adapters are in {landing.model}")
    return lines


def _passed_over(landing: Landing, config: LoraConfig) -> list[str]:
    """Maps that an entry names and that get no adapter all the same.

    `target_modules` reaches no stack of experts, which is a parameter. And PEFT moves some names to
    such stacks: in DeepSeek-V3 `down_proj` reaches the routed experts, and neither the dense layers
    nor the shared experts.
    """
    narrowed = config.exclude_modules or config.modules_to_save
    if narrowed or config.layers_to_transform is not None:
        return []
    lines = []
    for argument, entry in landing.hits:
        named = [t for t in landing.places if matches((argument, entry), config, t)]
        left = [t for t in named if t not in landing.adapted and landing.places[t].status == SCORED]
        stacks = [t for t in left if landing.places[t].experts > 1]
        maps = [t for t in left if landing.places[t].experts == 1]
        if entry.lower() == "all-linear":
            maps = []
        start = f"{argument}: {entry!r} also names"
        if stacks:
            lines.append(
                f"{start} {len(stacks)} stacks of experts, such as {stacks[0]}, which only "
                "target_parameters can reach"
            )
        if maps:
            lines.append(
                f"{start} {len(maps)} maps that PEFT leaves without an adapter, because it moves "
                f"this name to stacked experts, such as {maps[0]}"
            )
    return lines


def _alike(name: str, names: list[str]) -> list[str]:
    """Names that are spelled like this one, or share a part of it, such as `up` of `w_up`."""
    parts = {part for part in re.split(r"[_.]", name) if len(part) > 1}
    sharing = [other for other in names if parts & set(re.split(r"[_.]", other))]
    spelled = get_close_matches(name, names, n=3, cutoff=0.6)
    return list(dict.fromkeys(spelled + sharing))[:3]


def _other_arguments(landing: Landing, config: LoraConfig, model: nn.Module) -> list[str]:
    """Patterns, exclusions, layers and modules to save that have no effect."""
    lines = []
    for argument in ("rank_pattern", "alpha_pattern"):
        for key in getattr(config, argument) or {}:
            if not any(re.match(rf"(.*\.)?({key})$", t) for t in landing.adapted):
                lines.append(f"{argument}: {key!r} fits no adapted module, so it changes nothing")
    modules = [name for name, _ in model.named_modules()]
    excluded = config.exclude_modules or []
    for name in [excluded] if isinstance(excluded, str) else excluded:
        is_pattern = isinstance(config.exclude_modules, str)
        if not any(_is_named(module, name, is_pattern) for module in modules):
            lines.append(f"exclude_modules: {name!r} is no module here, so it excludes nothing")
    for name in config.modules_to_save or []:
        if not any(_is_named(module, name, False) for module in modules):
            lines.append(f"modules_to_save: {name!r} is no module here, so nothing is saved whole")
    numbers = config.layers_to_transform
    wanted = {numbers} if isinstance(numbers, int) else set(numbers or [])
    have = {place.layer for place in landing.places.values()}
    if missing := wanted - have:
        lines.append(
            f"layers_to_transform: there is no layer {ranges(missing)} in {landing.model}, whose "
            f"layers are {ranges(have)}"
        )
    return lines


def _is_named(module: str, name: str, is_pattern: bool) -> bool:
    """Whether PEFT takes `name` for this module."""
    if is_pattern:
        return re.fullmatch(name, module) is not None
    return f".{module}".endswith(f".{name}")


def _by_accident(landing: Landing, towers: dict[str, str]) -> list[str]:
    """Routers, output heads and towers that an entry hits beside what it is there for."""
    lines = []
    for (argument, entry), targets in landing.hits.items():
        kinds = defaultdict(list)
        for target in targets:
            kinds[_kind(target, landing, towers)].append(target)
        if "" not in kinds and len(kinds) == 1:
            continue  # nothing else: it was meant
        for kind, found in kinds.items():
            if kind:
                lines.append(
                    f"{argument}: {entry!r} also hits {len(found)} of the {kind}, such as "
                    f"{found[0]}; exclude_modules leaves them out"
                )
    return lines


def _kind(target: str, landing: Landing, towers: dict[str, str]) -> str:
    """What a target is, where it is not a map of the text model: "" where it is one."""
    for prefix, kind in towers.items():
        if target.startswith(f"{prefix}."):
            return kind
    status = landing.places[target].status
    return {ROUTER: "routers", HEAD: "output head"}.get(status, "")


def towers_of(model: nn.Module) -> dict[str, str]:
    """{name of a part that reads images or sound: what it is called in a sentence}."""
    config = getattr(model, "config", None)
    if not isinstance(config, PreTrainedConfig):
        return {}
    kinds: dict[type, str] = {}
    for name, value in vars(config).items():
        sense = re.search(r"vision|image|audio|speech|video", name)
        if sense and isinstance(value, PreTrainedConfig):
            kinds[type(value)] = f"{sense.group()} tower's maps"
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        kind = kinds.get(type(getattr(module, "config", None)))
        if kind is None or not name or not isinstance(module, PreTrainedModel):
            continue
        if not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = kind
    return found


def _without_effect(landing: Landing, towers: dict[str, str]) -> list[str]:
    """Adapters on maps that never run as such, or that compute something else."""
    lines = []
    odd = [t for t in landing.adapted if landing.places[t].status in ODD]
    if odd:
        status = landing.places[odd[0]].status
        lines.append(f"{len(odd)} adapters are on what is {status}, such as {odd[0]}")
    uncalled = [t for t in _uncalled(landing.peft_model) if not _kind(t, landing, towers)]
    if uncalled:
        lines.append(
            f"{len(uncalled)} adapters do nothing where the model reads text, such as that on "
            f"{uncalled[0]}: the model does not call this map, or reads its weight past the adapter"
        )
    return lines


def _uncalled(peft_model: PeftModel | None) -> list[str]:
    """Adapted targets whose adapter an empty forward on four tokens never calls.

    Empty where the model cannot run on the meta device, as where tokens choose experts.
    """
    if peft_model is None:
        return []
    called: set[str] = set()
    handles, watched = [], []
    for target, layer in adapted_layers(peft_model).items():
        if hasattr(layer, "parameter_name"):
            continue  # it changes the weight, so that no call is to be seen
        for matrix in layer.lora_A.values():
            watched.append(target)
            handles.append(matrix.register_forward_pre_hook(_noting(target, called)))
    try:
        with quiet():
            _run_empty(peft_model.get_base_model())
    except Exception:  # it needs more than text, or numbers that an empty tensor lacks
        return []
    finally:
        for handle in handles:
            handle.remove()
    return [target for target in watched if target not in called] if called else []


def _noting(target: str, called: set[str]) -> Any:
    return lambda module, arguments: called.add(target)


@torch.no_grad()
def _run_empty(model: nn.Module) -> None:
    """One forward of the whole model on four tokens without values."""
    ids = torch.zeros(1, 4, dtype=torch.long, device="meta")
    arguments = {"input_ids": ids}
    takes_more = "decoder_input_ids" in inspect.signature(model.forward).parameters
    if takes_more and getattr(model.config, "is_encoder_decoder", False):
        arguments["decoder_input_ids"] = ids
    model.eval()(**arguments)


def _layers_without(landing: Landing, config: LoraConfig) -> list[str]:
    """Stacks of layers of which some get no adapter, where nobody asked for certain layers."""
    if config.layers_to_transform is not None or not landing.adapted:
        return []
    have, hit = defaultdict(set), defaultdict(set)
    for target, place in landing.places.items():
        if place.layer is None:
            continue
        stack = target.partition(f".{place.layer}.")[0]
        have[stack].add(place.layer)
        if target in landing.adapted:
            hit[stack].add(place.layer)
    lines = []
    for stack, layers in hit.items():
        if without := have[stack] - layers:
            lines.append(
                f"{len(without)} of {len(have[stack])} layers of {stack} get no adapter: "
                f"{ranges(without)}"
            )
    return lines


def _in_part(landing: Landing) -> list[str]:
    """Types of which an entry hits some modules and not others."""
    modules, hit = defaultdict(list), defaultdict(list)
    for target, place in landing.places.items():
        modules[place.type].append(target)
        if target in landing.adapted:
            hit[place.type].append(place.layer)
    lines = []
    for name, layers in hit.items():
        if len(layers) < len(modules[name]):
            where = ranges(layers)
            told = f" (layers {where})" if where else ""
            lines.append(f"{len(layers)} of {len(modules[name])} {name} modules are hit{told}")
    return lines


def _stacks(landing: Landing) -> list[str]:
    """Stacks of experts, which get one rank for all."""
    lines = {}
    for target in landing.adapted:
        place = landing.places[target]
        if place.experts > 1:
            lines[place.type] = (
                f"{place.type} holds {place.experts} experts, each with an adapter of the same "
                f"rank: {place.experts} times the parameters of one"
            )
    return list(lines.values())


def _tied(landing: Landing, config: LoraConfig, model: nn.Module) -> list[str]:
    """Embeddings and head that share one weight, of which one is trained."""
    if not getattr(getattr(model, "config", None), "tie_word_embeddings", False):
        return []
    head = getattr(model, "get_output_embeddings", lambda: None)()
    ends = [e for e in (model.get_input_embeddings(), head) if e is not None]
    names = [name for name, module in model.named_modules() if any(module is e for e in ends)]
    touched = [name for name in names if name in landing.adapted]
    saved = config.modules_to_save or []
    touched += [name for name in names if any(_is_named(name, s, False) for s in saved)]
    if len(names) < 2 or not touched or config.ensure_weight_tying:
        return []
    return [
        f"{' and '.join(names)} share one weight: training {touched[0]} unties them, unless "
        "ensure_weight_tying=True"
    ]
