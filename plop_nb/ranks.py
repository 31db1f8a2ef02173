"""The rank that a budget allows, and other ranks for some types, proven by injection."""

import copy
import re
from collections.abc import Mapping
from typing import Any

from peft import LoraConfig
from torch import nn

from plop_nb.checks import positive_integer, positive_number
from plop_nb.maps import LinearMap
from plop_nb.targets import adapted_layers, adapted_targets, injected, lora_config, name_pattern

USUAL_RANK = 16


def config_with_ranks(
    model: nn.Module,
    wanted: dict[str, LinearMap],
    r: int | None,
    *,
    parameters: int | None,
    ranks: Mapping[str, int] | None,
    **options: Any,
) -> LoraConfig:
    """The `LoraConfig` that hits exactly the wanted targets, with these ranks.

    Parameters
    ----------
    model : torch.nn.Module
        Not changed.
    wanted : dict
        From `targets.wanted_targets`.
    r : int, optional
        Rank of all adapters but those of `ranks`; 16 where neither it nor `parameters` is given.
    parameters : int, optional
        A budget for all adapters together, which `r` is made to meet.
    ranks : dict, optional
        {type: rank}.
    **options
        Other arguments of `peft.LoraConfig`.

    Raises
    ------
    ValueError
        Two arguments contradict each other; `ranks` names a type that gets no adapters; the budget
        does not reach for rank 1; or PEFT gives other ranks than were asked for.
    """
    if r is not None and parameters is not None:
        raise ValueError(f"r={r!r} and parameters={parameters!r} both say the rank: leave one out")
    if not ranks and parameters is None:
        return lora_config(model, wanted, USUAL_RANK if r is None else r, **options)
    if ranks:
        if "rank_pattern" in options:
            raise ValueError("ranks and rank_pattern both say the rank of a type: leave one out")
        options["rank_pattern"] = _patterns(wanted, _checked(ranks, wanted))
    config = lora_config(model, wanted, r or USUAL_RANK, **options)
    if parameters is not None:
        config.r = _affordable(model, config, parameters, wanted, ranks or {})
    _prove(model, config, wanted, ranks or {})
    return config


def _checked(ranks: Mapping[str, int], wanted: dict[str, LinearMap]) -> dict[str, int]:
    """Ranks of types that get adapters."""
    if not isinstance(ranks, Mapping):
        raise ValueError(f"ranks={ranks!r}, expected a dict {{type: rank}}")
    types = list(dict.fromkeys(m.type for m in wanted.values()))
    for name, rank in ranks.items():
        if name not in types:
            raise ValueError(f"ranks names {name!r}, which gets no adapters: choose from {types}")
        positive_integer(f"ranks[{name!r}]", rank)
    return {name: int(rank) for name, rank in ranks.items()}


def _patterns(wanted: dict[str, LinearMap], ranks: dict[str, int]) -> dict[str, int]:
    """{key of `rank_pattern`: rank}: the name of the type where it fits no other, else full names.

    PEFT compares `(.*\\.)?(key)$` with the names of modules, so that a key has an open left end.
    """
    patterns = {}
    for name, rank in ranks.items():
        own = [target for target, m in wanted.items() if m.type == name]
        short = re.escape(name.replace("*", "0")).replace("\\.0\\.", r"\.\d+\.")
        fits = [target for target in wanted if re.match(rf"(.*\.)?({short})$", target)]
        full = rf"^(?:{name_pattern(own)})(?:\.weight)?"
        patterns[short if fits == own else full] = rank
    return patterns


def _affordable(
    model: nn.Module,
    config: LoraConfig,
    parameters: int,
    wanted: dict[str, LinearMap],
    ranks: Mapping[str, int],
) -> int:
    """The largest rank of those that are free, by what rank 1 and rank 2 cost."""
    positive_number("parameters", parameters, " of parameters")
    cost = []
    for rank in (1, 2):
        tried = copy.deepcopy(config)
        tried.r = rank
        cost.append(sum(adapted_targets(model, tried).values()))
    first, more = cost[0], cost[1] - cost[0]
    if not more:
        raise ValueError(f"ranks={dict(ranks)!r} leaves no type whose rank parameters could set")
    if first > parameters:
        types = list(dict.fromkeys(m.type for m in wanted.values()))
        raise ValueError(
            f"parameters={parameters!r} is less than the {first:,} of rank 1 on {types}: allow "
            "more, or place on fewer types"
        )
    return 1 + int((parameters - first) // more)


def _prove(
    model: nn.Module, config: LoraConfig, wanted: dict[str, LinearMap], ranks: Mapping[str, int]
) -> None:
    """Compare the ranks in an empty copy of the model with those that were asked for."""
    peft_model = injected(model, config)
    assert peft_model is not None  # `lora_config` has proven where it hits
    for target, layer in adapted_layers(peft_model).items():
        got = layer.r[peft_model.active_adapter]
        asked = ranks.get(wanted[target].type, config.r)
        if got != asked:
            raise ValueError(
                f"PEFT gives {target!r} rank {got}, not {asked}: name it in rank_pattern yourself"
            )
