"""Which entry of a configuration puts an adapter on which map, found by injection."""

import copy
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from peft import LoraConfig, PeftModel
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn

from plop_nb.maps import linear_maps
from plop_nb.targets import adapted_layers, adapted_targets, adapter_size, injected
from plop_nb.wrappers import unwrapped

OTHER = "no linear map"  # the status of an embedding or a convolution that gets an adapter
REFUSALS = (ValueError, TypeError, NotImplementedError, RuntimeError)
Entry = tuple[str, str]  # argument of the configuration, and one of its names


@dataclass(frozen=True)
class Place:
    """Something in a model that an adapter can go to: a map, or a stack of experts."""

    type: str
    path: str  # the full name with the numbers of layers starred
    layer: int | None
    status: str
    experts: int = 1


@dataclass
class Landing:
    """What a configuration adapts, and which of its entries does."""

    model: str  # name of the class
    places: dict[str, Place]  # {target: place}, in the order of the model
    adapted: dict[str, int]  # {target: parameters of its adapter}
    config: LoraConfig  # with the targets that PEFT takes where it named none
    hits: dict[Entry, list[str]] = field(default_factory=dict)  # {entry: targets}
    peft_model: PeftModel | None = None  # the empty copy with the adapters

    @property
    def missed(self) -> list[str]:
        """Entries that hit nothing."""
        return [entry for (_, entry), targets in self.hits.items() if not targets]


def land(model: nn.Module, config: LoraConfig) -> Landing:
    """Inject the adapters into an empty copy of the model, and trace each back to its entry.

    Raises
    ------
    ValueError
        PEFT refuses this configuration for this model; with its words.
    """
    kind = type(unwrapped(model)).__name__
    try:
        peft_model = injected(model, config)  # as given: PEFT's defaults may fail (Mixtral's do)
        config = _with_targets(model, config)
        layers = {} if peft_model is None else adapted_layers(peft_model)
        adapted = {target: adapter_size(layer) for target, layer in layers.items()}
        places = _places(model, adapted)
        hits = _hits(model, config, adapted)
    except REFUSALS as error:
        words = " ".join(str(error).split())
        raise ValueError(f"PEFT refuses this config for {kind}: {words}") from error
    return Landing(kind, places, adapted, config, hits, peft_model)


def _places(model: nn.Module, adapted: Iterable[str]) -> dict[str, Place]:
    """Every place of the model, and what else is adapted."""
    places: dict[str, Place] = {}
    for m in linear_maps(model):
        experts = places[m.target].experts + 1 if m.target in places else 1
        places[m.target] = Place(m.type, m.pattern, m.layer, m.status, experts)
    for target in adapted:
        if target not in places:
            number = re.search(r"(?<=\.)\d+(?=\.)", target)
            starred = re.sub(r"(?<=\.)\d+(?=\.|$)", "*", target)
            layer = int(number.group()) if number else None
            places[target] = Place(starred, starred, layer, OTHER)
    return places


def _hits(model: nn.Module, config: LoraConfig, adapted: dict[str, int]) -> dict[Entry, list[str]]:
    """What each entry adapts.

    By its name, as PEFT compares names. Where this leaves something unexplained, because PEFT
    renames the modules of some mixtures of experts, by injecting the entry alone. What PEFT fuses
    (w1 and w3 of Mixtral) it refuses alone: such entries share what is still unexplained.
    """
    entries = entries_of(config)
    hits = {entry: {t for t in adapted if matches(entry, config, t)} for entry in entries}
    if set().union(*hits.values()) != set(adapted):
        refused = []
        for entry in entries:
            alone = _alone(model, config, entry)
            if alone is None:
                refused.append(entry)
            else:
                hits[entry] |= alone & set(adapted)
        unexplained = set(adapted).difference(*hits.values())
        for entry in refused:
            hits[entry] |= unexplained
    return {entry: [t for t in adapted if t in targets] for entry, targets in hits.items()}


def _with_targets(model: nn.Module, config: LoraConfig) -> LoraConfig:
    """The config, with the targets that PEFT takes for this type of model where it names none."""
    if config.target_modules is not None or config.target_parameters is not None:
        return config
    config = copy.deepcopy(config)
    model_type = getattr(getattr(unwrapped(model), "config", None), "model_type", None)
    config.target_modules = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model_type)
    return config


def entries_of(config: LoraConfig) -> list[Entry]:
    """The names in `target_modules` and `target_parameters`."""
    modules, parameters = config.target_modules, config.target_parameters or []
    names = [modules] if isinstance(modules, str) else sorted(modules or [])
    entries = [("target_modules", name) for name in names]
    return entries + [("target_parameters", name) for name in sorted(parameters)]


def matches(entry: Entry, config: LoraConfig, target: str) -> bool:
    """Whether PEFT matches this name with this target: equal, or its end after a dot."""
    argument, name = entry
    if argument == "target_parameters":
        return any(f".{full}".endswith(f".{name}") for full in (target, f"{target}.weight"))
    if isinstance(config.target_modules, str):
        is_all = name.lower() == "all-linear"
        return is_all or re.fullmatch(name, target) is not None
    return f".{target}".endswith(f".{name}")


def _alone(model: nn.Module, config: LoraConfig, entry: Entry) -> set[str] | None:
    """What an entry adapts where it is the only one; None where PEFT then refuses it."""
    argument, name = entry
    single = copy.deepcopy(config)
    single.target_modules = config.target_modules if isinstance(config.target_modules, str) else []
    single.target_parameters = None
    if argument == "target_parameters":
        single.target_modules, single.target_parameters = [], [name]
    elif not isinstance(config.target_modules, str):
        single.target_modules = {name}
    try:
        return set(adapted_targets(model, single))
    except REFUSALS:
        return None
