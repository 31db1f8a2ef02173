"""What keeps a run apart from the caller's model and from the global random generators."""

import copy
import logging
import random
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import set_seed

# Whose warnings of a training are about what the package sets itself, such as a token for padding
TALKATIVE = ("transformers", "trl")


def check_trainable(model: nn.Module, *, generates: bool = True) -> None:
    """Refuse a model that no adapters can be trained on.

    Parameters
    ----------
    model : torch.nn.Module
    generates : bool
        Whether it is to write completions, for which it needs `generate`.

    Raises
    ------
    TypeError, ValueError
        It is no causal language model of transformers, has adapters already, or was made under
        `torch.inference_mode`: says what would do.
    """
    kind = type(model).__name__
    config = getattr(model, "config", None)
    writes = not generates or hasattr(model, "generate")
    if config is None or not writes or getattr(config, "is_encoder_decoder", False):
        raise TypeError(
            f"model is {kind}, expected a causal language model of transformers, such as "
            f"load_model() returns"
        )
    if any(isinstance(module, (PeftModel, BaseTunerLayer)) for module in model.modules()):
        raise TypeError(
            f"model is a {kind} with adapters, expected one without: pass model.unload(), or load "
            f"it anew"
        )
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise ValueError(
            "model was made under torch.inference_mode, and no gradient passes through it: load "
            "it outside, or pass copy.deepcopy(model)"
        )


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy of `model` with the same weights in memory, but frozen, and everything else its own.

    A quantised parameter (of another class than `nn.Parameter`, such as bitsandbytes' Params4bit)
    keeps its state in the object itself, so it is shared as it is.
    """
    shared: dict[int, nn.Parameter] = {}
    for parameter in model.parameters():
        plain = type(parameter) is nn.Parameter
        shared[id(parameter)] = frozen_view(parameter) if plain else parameter
    return copy.deepcopy(model, shared)


def frozen_view(parameter: nn.Parameter) -> nn.Parameter:
    """A parameter of its own on the same storage, without gradient."""
    return nn.Parameter(parameter.detach(), requires_grad=False)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Puts back what evaluation changes: every module's training mode, and how it generates."""
    before = []
    for module in model.modules():
        before.append((module, module.training, vars(module).get("generation_config")))
    try:
        yield
    finally:
        for module, training, generation in before:
            module.training = training
            vars(module).pop("generation_config", None)
            if generation is not None:
                module.generation_config = generation


@contextmanager
def seeded(seed: int | None = None) -> Iterator[None]:
    """All global random generators seeded (or as they are, for None), and put back afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            if seed is not None:
                set_seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def isolated(seed: int) -> Iterator[str]:
    """Where a trainer runs: seeded, and with gradients and float32 whatever the caller has set.

    Other packages are quiet meanwhile: see `quietly`.

    Everything is put back, and the folder that it gives, to write to, is removed.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="plop_nb_", ignore_cleanup_errors=True) as folder,
            seeded(seed),
            torch.inference_mode(False),
            torch.enable_grad(),
            quietly(),
        ):
            yield folder
    finally:
        torch.set_default_dtype(before)


@contextmanager
def quietly() -> Iterator[None]:
    """No bars of data sets, and no warnings of other packages that a user cannot act on."""
    with warnings.catch_warnings(), ExitStack() as back:
        warnings.simplefilter("ignore", FutureWarning)  # transformers on a default of TRL's
        for name in TALKATIVE:
            logger = logging.getLogger(name)
            back.callback(logger.setLevel, logger.level)
            logger.setLevel(max(logger.level, logging.ERROR))
        _hide_bars_of_data_sets(back)
        yield


def _hide_bars_of_data_sets(back: ExitStack) -> None:
    """Switch them off where they are on; closing `back` switches them on again."""
    try:
        import datasets
    except ImportError:  # then there are none
        return
    if not datasets.are_progress_bars_disabled():
        datasets.disable_progress_bars()
        back.callback(datasets.enable_progress_bars)


@contextmanager
def own_forward(model: nn.Module) -> Iterator[None]:
    """Puts the `forward` of a model back: TRL's runs one model alone, and copies would share it."""
    own = vars(model).get("forward")
    try:
        yield
    finally:
        vars(model).pop("forward", None)
        if own is not None:
            model.forward = own
