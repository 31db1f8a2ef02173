"""What keeps a run apart from the caller's model and from the global random generators."""

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from transformers import set_seed


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
