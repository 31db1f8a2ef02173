"""What other training tools let their users say of LoRA, and what they make of it.

Read in November 2026 in the files and versions that stand beside each tool.
"""

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from peft import LoraConfig
from torch import nn

from plop_nb.maps import linear_maps, unwrapped

# Arguments of `LoraConfig` by their names.
Arguments = dict[str, Any]


def short_for(name: str, target: str) -> bool:
    """Whether PEFT takes `name` in a list for this target: its full name, or its last parts."""
    return target == name or target.endswith(f".{name}")


def full_names(places: Arguments, wanted: Mapping[str, int]) -> list[str]:
    """Full names of the wanted modules, without what is hit as `target_parameters`."""
    parameters = [name.removesuffix(".weight") for name in places.get("target_parameters", [])]
    return [t for t in wanted if not any(short_for(name, t) for name in parameters)]


# Ways to say places: each returns candidates for `target_modules` and `target_parameters`.


def _as_given(model, places, wanted):
    """By the names, or the regular expression, that PEFT takes."""
    return [places]


def _as_lists(model, places, wanted):
    """By a list of names: the short ones if they do, or all in full."""
    in_full = places | {"target_modules": full_names(places, wanted)}
    return [in_full] if isinstance(places["target_modules"], str) else [places, in_full]


def _unchanged(model, form):
    """What reaches `LoraConfig`: the same."""
    return form


@dataclass(frozen=True)
class Tool:
    """How one tool is told where adapters go.

    Attributes
    ----------
    write : callable
        (model, arguments of `LoraConfig`) -> text.
    options : dict, optional
        {argument of `LoraConfig`: its name there}; None: all, by their own names.
    forms : callable
        (model, places, wanted targets) -> ways to say them there, the most readable first.
    passes_on : callable
        (model, form) -> the places that reach `LoraConfig`.
    allows : dict
        {argument: (model, value) -> whether it takes this value}.
    places : str
        Which places it can say, for an error.
    """

    write: Callable[[nn.Module, Arguments], str]
    options: Mapping[str, str] | None = None
    forms: Callable[[nn.Module, Arguments, Mapping[str, int]], list[Arguments]] = _as_given
    passes_on: Callable[[nn.Module, Arguments], Arguments] = _unchanged
    allows: Mapping[str, Callable[[nn.Module, Any], bool]] = field(default_factory=dict)
    places: str = "PEFT does not take it as it is said there"


# Python, YAML


def _call(name, arguments, first=""):
    """A call in Python, one argument a line."""
    lines = [f"{name}("] + ([f"    {first},"] if first else [])
    lines += [f"    {key}={_literal(value)}," for key, value in arguments.items()]
    return "\n".join([*lines, ")"])


def _literal(value):
    if isinstance(value, str):
        return f'r"{value}"' if "\\" in value and '"' not in value else json.dumps(value)
    if not isinstance(value, list):
        return repr(value)
    items = [_literal(item) for item in value]
    line = f"[{', '.join(items)}]"
    if len(line) <= 70:
        return line
    return "\n".join(["[", *(f"        {item}," for item in items), "    ]"])


def _yaml(options, indent=""):
    lines = []
    for name, value in options.items():
        key = indent + (name if name.isidentifier() else _scalar(name))
        if isinstance(value, dict):
            lines.append(f"{key}:\n{_yaml(value, indent + '  ')}".rstrip("\n"))
        elif isinstance(value, list) and value:
            lines.append("\n".join([f"{key}:", *(f"{indent}  - {_scalar(v)}" for v in value)]))
        else:
            lines.append(f"{key}: {_scalar(value)}")
    return "\n".join(lines) + "\n"


def _scalar(value):
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return _word(value)


def _word(value):
    """A value, or [], without quotes; numbers without exponents, which YAML takes for strings."""
    if isinstance(value, bool):
        return str(value).lower()
    return format(Decimal(repr(value)), "f") if isinstance(value, float) else str(value)


def _renamed(arguments, options):
    return {options[name]: value for name, value in arguments.items() if name in options}


def _is_whole(model, value):
    return isinstance(value, int)


# TRL 1.16.0, trl/trainer/sft_trainer.py and its kin: `peft_config` goes to `get_peft_model` as it
# is. (Of one name after --lora_target_modules, trl/trainer/model_config.py makes a string, which
# PEFT takes for a regular expression that has to match in full, so that `v_proj` hits nothing.)


def _write_trl(model, said):
    return f"from peft import LoraConfig\n\npeft_config = {_call('LoraConfig', said)}\n"


# PEFT 0.21.2, src/peft/config.py: `LoraConfig.from_pretrained(folder)` reads this file in it.


def _write_peft(model, said):
    whole = LoraConfig(**said).to_dict() | {"target_modules": said["target_modules"]}
    return json.dumps(whole, indent=2, sort_keys=True) + "\n"


# axolotl 0.19.0, src/axolotl/loaders/adapter.py: every option goes to `LoraConfig`, targets as a
# list or a string; of `peft_init_lora_weights`, False is left out. utils/schemas/peft.py: alpha
# is an int.

AXOLOTL = {
    "r": "lora_r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "target_modules": "lora_target_modules",
    "target_parameters": "lora_target_parameters",
    "rank_pattern": "lora_rank_pattern",
    "alpha_pattern": "lora_alpha_pattern",
    "modules_to_save": "lora_modules_to_save",
    "use_rslora": "peft_use_rslora",
    "use_dora": "peft_use_dora",
    "fan_in_fan_out": "lora_fan_in_fan_out",
    "init_lora_weights": "peft_init_lora_weights",
    "trainable_token_indices": "peft_trainable_token_indices",
    "ensure_weight_tying": "peft_ensure_weight_tying",
}


def _write_axolotl(model, said):
    return _yaml({"adapter": "lora"} | _renamed(said, AXOLOTL))


# LLaMA-Factory 0.9.5, src/llamafactory/hparams/finetuning_args.py: `lora_target` is split at
# commas, and model/adapter.py gives that list to `LoraConfig`, so that no regular expression is
# one. model/model_utils/visual.py, `patch_target_modules`: of a multimodal model it takes every
# module whose name contains one of these, but for the parts that are frozen unless asked for.

LLAMA_FACTORY = {
    "r": "lora_rank",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "modules_to_save": "additional_target",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}
FROZEN = """vision_tower vision_model visual audio_tower multi_modal_projector embed_vision
embed_audio merger mlp_AR patch_embed timm_model subsample_conv_projection resampler vpm apm
audio_avg_pooler audio_projection_layer tts per_layer_projection_norm separator_token""".split()


def _names_for_llama_factory(model, places, wanted):
    """By names only: of modules, also where the config names their weights."""
    known = {name for name, _ in unwrapped(model).named_modules()}
    modules = {target: size for target, size in wanted.items() if target in known}
    names = {"target_modules": places["target_modules"]}
    return _as_lists(model, names, modules) if modules else []


def _not_frozen(model, form):
    """The list that LLaMA-Factory makes of `lora_target`."""
    inner = unwrapped(model)
    if not hasattr(inner.config, "vision_config") and not hasattr(inner.config, "audio_config"):
        return form
    names = []
    for name, _ in inner.named_modules():
        named = any(target in name for target in form["target_modules"])
        if named and not any(part in name for part in FROZEN):
            names.append(name)
    return {"target_modules": names}


def _write_llama_factory(model, said):
    options = {"finetuning_type": "lora"} | _renamed(said, LLAMA_FACTORY)
    if "additional_target" in options:
        options["additional_target"] = ",".join(options["additional_target"])
    return _yaml(options | {"lora_target": ",".join(said["target_modules"])})


# ms-swift 4.6.0, swift/arguments/tuner_args.py and swift/pipelines/train/tuner.py: a regular
# expression goes to `LoraConfig` in place of the list, which means all linear modules where it is
# not given: a placement on parameters alone needs an expression that matches nothing.

MS_SWIFT = {
    "r": "lora_rank",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "target_modules": "target_modules",
    "target_parameters": "target_parameters",
    "modules_to_save": "modules_to_save",
    "bias": "lora_bias",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
    "init_lora_weights": "init_weights",
}


def _write_ms_swift(model, said):
    options = _renamed(said, MS_SWIFT)
    modules = options.pop("target_modules") or "(?!)"
    options["target_regex" if isinstance(modules, str) else "target_modules"] = modules
    words = ["swift sft"]
    for name, value in options.items():
        values = value if isinstance(value, list) else [value]
        words.append(" ".join([f"--{name}", *(shlex.quote(_word(item)) for item in values)]))
    return " \\\n    ".join(words) + "\n"


# unsloth 2026.10.9, unsloth/models/llama.py, vision.py, loader.py. FastLanguageModel has code of
# its own for these types, which until August 2026 took a string for a list of its letters: they
# get lists. The others are FastModel's, which gives both to `LoraConfig`, where FastLanguageModel
# would filter a list by words in the names. Further arguments go to `LoraConfig`, too. Names of
# embeddings and the head leave a list. Without target_parameters, experts get adapters as well
# where names of the MLP are given.

FAST = ("gemma", "gemma2", "llama", "mistral", "qwen2", "qwen3")
EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts")
EMBEDDINGS = ("embed_tokens", "lm_head")


def _is_fast(model):
    return unwrapped(model).config.model_type in FAST


def _names_for_unsloth(model, places, wanted):
    text = unwrapped(model).config.get_text_config()
    if any(getattr(text, name, None) for name in EXPERTS):
        places = {"target_parameters": [], **places}
    return _as_lists(model, places, wanted) if _is_fast(model) else [places]


def _without_embeddings(model, form):
    """What stays in unsloth's list of modules."""
    if isinstance(form["target_modules"], str):
        return form
    left = [n for n in form["target_modules"] if n.rsplit(".", 1)[-1] not in EMBEDDINGS]
    return form | {"target_modules": left}


def _only_embeddings(model, names):
    """Whether unsloth trains these modules whole: its own code refuses most."""
    return not _is_fast(model) or set(names) <= set(EMBEDDINGS)


def _write_unsloth(model, said):
    entry = "FastLanguageModel" if _is_fast(model) else "FastModel"
    given = {name: value for name, value in said.items() if name != "task_type"}
    call = _call(f"{entry}.get_peft_model", given, first="model")
    return f"from unsloth import {entry}\n\nmodel = {call}\n"


# torchtune 0.6.1 (qwen3: main, April 2026), torchtune/models/*/_component_builders.py: each
# `lora_` builder has these arguments; without a module of the attention it raises; the MLP has
# all three of its maps adapted or none. torchtune/modules/peft/lora.py: the scale is alpha / rank.

BUILDERS = ("gemma", "gemma2", "llama", "mistral", "qwen2", "qwen3")
ATTENTION = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "o_proj": "output_proj"}
MLP = ("gate_proj", "up_proj", "down_proj")
TORCHTUNE = {
    "r": "lora_rank",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "use_dora": "use_dora",
}


def _names_for_torchtune(model, places, wanted):
    """All that can be said, the nearest first."""
    if unwrapped(model).config.model_type not in BUILDERS:
        return []
    leaves = {m.target: m.target.rsplit(".", 1)[-1] for m in linear_maps(model)}
    attention = [name for name in ATTENTION if name in {leaves.get(target) for target in wanted}]
    choices = [attention] if attention else [[name] for name in ATTENTION]
    forms = [[*choice, *mlp] for choice in choices for mlp in ((), MLP)]

    def distance(form):
        return len({target for target, leaf in leaves.items() if leaf in form} ^ set(wanted))

    return [{"target_modules": form} for form in sorted(forms, key=distance)]


def _write_torchtune(model, said):
    names = said["target_modules"]
    options = {
        "lora_attn_modules": [ATTENTION[name] for name in names if name in ATTENTION],
        "apply_lora_to_mlp": MLP[0] in names,
    }
    return _yaml({"model": options | _renamed(said, TORCHTUNE)})


TOOLS = {
    "trl": Tool(_write_trl),
    "peft": Tool(_write_peft),
    "axolotl": Tool(
        _write_axolotl,
        AXOLOTL,
        allows={"lora_alpha": _is_whole, "init_lora_weights": lambda model, value: bool(value)},
    ),
    "llama-factory": Tool(
        _write_llama_factory,
        LLAMA_FACTORY,
        forms=_names_for_llama_factory,
        passes_on=_not_frozen,
        allows={"lora_alpha": _is_whole},
        places=(
            "it takes names of modules, but no parameters, such as stacked experts, and leaves "
            "out what is around a multimodal model's language model (freeze_vision_tower, "
            "freeze_multi_modal_projector)"
        ),
    ),
    "ms-swift": Tool(
        _write_ms_swift,
        MS_SWIFT,
        allows={"lora_alpha": _is_whole, "bias": lambda model, value: value in ("none", "all")},
    ),
    "unsloth": Tool(
        _write_unsloth,
        forms=_names_for_unsloth,
        passes_on=_without_embeddings,
        allows={
            "init_lora_weights": lambda model, value: value in (True, False, "gaussian"),
            "modules_to_save": _only_embeddings,
        },
        places="it trains embed_tokens and lm_head whole instead of with adapters",
    ),
    "torchtune": Tool(
        _write_torchtune,
        TORCHTUNE,
        forms=_names_for_torchtune,
        places=(
            f"it has builders of {', '.join(BUILDERS)} models, with adapters on some of q_proj, "
            "k_proj, v_proj and o_proj (one at least), on gate_proj, up_proj and down_proj "
            "together or not at all, and in all layers alike"
        ),
    ),
}
