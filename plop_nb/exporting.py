"""A placement in the words of other training tools, proven by what those make of it."""

import ast

from peft import LoraConfig
from torch import nn

from plop_nb.targets import adapted_targets, difference
from plop_nb.training_tools import TOOLS, Arguments, Tool, full_names, short_for

TARGETS = ("target_modules", "target_parameters")
# What narrows targets down: replaced by the full names of what is left.
NARROWING = ("exclude_modules", "layers_to_transform", "layers_pattern")
# What a config also holds: where it came from. Of `task_type` every tool but TRL and PEFT has its
# own; it says how the model is wrapped, not where adapters go.
ABOUT_IT = (
    "peft_type auto_mapping peft_version base_model_name_or_path revision inference_mode task_type"
).split()
# What PEFT raises where a config does not fit a model.
MISFITS = (ValueError, TypeError, NotImplementedError, RuntimeError)


def export(model: nn.Module, config: LoraConfig, tool: str) -> str:
    """Text that makes `tool` put adapters on exactly what `config` hits in `model`.

    Parameters
    ----------
    model : torch.nn.Module
        The model that will be trained, as transformers builds it. Not changed.
    config : peft.LoraConfig
        From `Placement.lora_config`.
    tool : {"trl", "peft", "axolotl", "llama-factory", "ms-swift", "unsloth", "torchtune"}
        "trl" and "unsloth" give lines of Python, "peft" an `adapter_config.json`, "ms-swift" a
        command to complete, the others lines for a YAML file of theirs.

    Returns
    -------
    str
        What the tool makes of it, by the rules in `plop_nb.training_tools`, hits the same modules
        with as many parameters in an empty copy of the model.

    Raises
    ------
    ValueError
        An unknown tool; the config hits nothing; or the tool has no words for it. The error then
        gives the nearest that it has, and what that would hit instead.
    """
    known = _known(tool)
    wanted = adapted_targets(model, config)
    if not wanted:
        raise ValueError(f"config hits no module of {type(model).__name__}: nothing to export")
    said = _arguments(config)
    lost = _lost(known, model, said)
    kept = {name: value for name, value in said.items() if name not in (*lost, *TARGETS)}
    nearest, hit = _nearest(known, model, kept, _places(config, wanted), wanted)
    if not lost and hit == wanted:
        return known.write(model, kept | nearest)
    reasons = list(lost.values())
    if set(hit) != set(wanted):
        reasons.append(known.places)
    raise ValueError(
        f"tool={tool!r} cannot express this placement: {'; '.join(reasons)}. "
        + _instead(known.write(model, kept | nearest) if hit else "", wanted, hit)
    )


def _known(tool: str) -> Tool:
    if not isinstance(tool, str) or tool not in TOOLS:
        raise ValueError(f"tool={tool!r}, expected one of {sorted(TOOLS)}")
    return TOOLS[tool]


def _arguments(config: LoraConfig) -> Arguments:
    """What a config says besides places: rank, scale, dropout, and all that is not as usual."""
    usual = LoraConfig().to_dict()
    said: Arguments = {}
    for name, value in config.to_dict().items():
        always = name in ("r", "lora_alpha", "lora_dropout")
        skipped = name in (*ABOUT_IT, *TARGETS, *NARROWING)
        if always or (not skipped and value != usual.get(name)):
            said[name] = getattr(config, name)
    if float(said["lora_alpha"]).is_integer():
        said["lora_alpha"] = int(said["lora_alpha"])
    if config.task_type is not None:
        said["task_type"] = str(getattr(config.task_type, "value", config.task_type))
    return said


def _places(config: LoraConfig, wanted: dict[str, int]) -> Arguments:
    """Where a config puts adapters, as `target_modules` and `target_parameters`.

    Names are given even where there are none: PEFT has its own for many models otherwise.
    """
    parameters = list(config.target_parameters or [])
    places = {"target_parameters": parameters} if parameters else {}
    modules = config.target_modules
    if modules is None or any(getattr(config, name) is not None for name in NARROWING):
        modules = full_names(places, wanted)
    elif not isinstance(modules, str):
        modules = _in_order(modules, list(wanted))
    return {"target_modules": modules} | places


def _in_order(names: set[str], targets: list[str]) -> list[str]:
    """Names of `target_modules`, which are a set, in the order of the model."""

    def first(name: str) -> tuple[int, str]:
        found = [place for place, target in enumerate(targets) if short_for(name, target)]
        return (found[0] if found else len(targets)), name

    return sorted(names, key=first)


def _lost(tool: Tool, model: nn.Module, said: Arguments) -> dict[str, str]:
    """{argument: why the tool cannot be told}."""
    lost = {}
    for name, value in said.items():
        if name == "task_type":
            continue
        if tool.options is not None and name not in tool.options:
            lost[name] = f"it has no option for {name}={value!r}"
            if name == "use_rslora":
                same = said["lora_alpha"] * said["r"] ** 0.5
                lost[name] += f" (lora_alpha={same:g} without it gives the same scale)"
        elif name in tool.allows and not tool.allows[name](model, value):
            lost[name] = f"it does not take {name}={value!r}"
        elif not _is_plain(value):
            lost[name] = f"{name}={value!r} is an object, which has no text there"
    return lost


def _is_plain(value: object) -> bool:
    """Whether Python reads the value back from its text."""
    try:
        return ast.literal_eval(repr(value)) == value
    except (ValueError, SyntaxError):
        return False


def _nearest(
    tool: Tool, model: nn.Module, kept: Arguments, places: Arguments, wanted: dict[str, int]
) -> tuple[Arguments, dict[str, int]]:
    """The places in the tool's words that hit what is wanted, or most of it; and what they hit."""
    nearest: Arguments = {}
    hit: dict[str, int] = {}
    for form in tool.forms(model, places, wanted):
        try:
            found = adapted_targets(model, LoraConfig(**kept, **tool.passes_on(model, form)))
        except MISFITS:
            continue  # PEFT refuses this form
        if not hit or len(set(found) ^ set(wanted)) < len(set(hit) ^ set(wanted)):
            nearest, hit = form, found
    return nearest, hit


def _instead(text: str, wanted: dict[str, int], hit: dict[str, int]) -> str:
    if not text:
        return "Nothing near it can be said there."
    does = "hits the same modules" if set(hit) == set(wanted) else difference(wanted, hit)
    return f"The nearest that it has {does}:\n{text}"
