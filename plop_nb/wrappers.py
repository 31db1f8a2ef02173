"""What stands around a model: `torch.compile`, data parallelism, PEFT."""

from collections.abc import Iterator

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside `torch.compile`, data parallelism and `peft.PeftModel`.

    Raises
    ------
    TypeError
        `model` is not a `torch.nn.Module`.
    """
    if isinstance(model, tuple):
        raise TypeError(
            "model is tuple, expected a torch.nn.Module: load_model returns two things, as in "
            "model, tokenizer = load_model()"
        )
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model is {type(model).__name__}, expected a torch.nn.Module (see plop.load_model)"
        )
    while True:
        inner = _inside(model)
        if inner is None:
            return model
        model = inner


def trunk_of(model: nn.Module) -> nn.Module:
    """The model without its head: what a score has to run (no logits are computed)."""
    model = unwrapped(model)
    return unwrapped(getattr(model, "base_model", model))


def idle(model: nn.Module) -> Iterator[str]:
    """Beginnings of the names of what does not run: PEFT's `modules_to_save` keeps all copies."""
    for name, wrapper in model.named_modules():
        if not isinstance(wrapper, ModulesToSaveWrapper):
            continue
        copies = ["original_module"]
        copies += [f"modules_to_save.{adapter}" for adapter in wrapper.modules_to_save]
        if wrapper.disable_adapters or not wrapper.active_adapters:
            copies.remove("original_module")
        else:
            copies.remove(f"modules_to_save.{wrapper.active_adapters[0]}")
        for copy in copies:
            yield f"{name}.{copy}.".lstrip(".")


def is_of_wrapper(above: nn.Module | None, parent: nn.Module, part: str) -> bool:
    """Whether a part of a module's name is due to `torch.compile` or PEFT, not the model's own.

    Parameters
    ----------
    above, parent : torch.nn.Module
        The two modules before the part: `above.parent.part`.
    part : str
    """
    if part == "_orig_mod":
        return True
    if part == "base_layer":
        return isinstance(parent, BaseTunerLayer)
    if isinstance(parent, ModulesToSaveWrapper):
        return True
    return isinstance(above, ModulesToSaveWrapper) and parent is above.modules_to_save


def _inside(model: nn.Module) -> nn.Module | None:
    """The model that a wrapper holds, or None."""
    if isinstance(model, PeftModel):
        return model.get_base_model()
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return model.module
    return getattr(model, "_orig_mod", None)
