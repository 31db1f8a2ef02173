"""The package of experiments: its names, and the copy that keeps the caller's model apart."""

import importlib
import subprocess
import sys

import pytest
import torch
from torch import nn

from plop_nb import experiments
from plop_nb.experiments.isolation import own_forward, shared_copy


def test_names_load_when_they_are_used_and_mean_the_same_whatever_was_imported():
    for module in (
        "crossfitting",
        "first_steps",
        "races",
        "grids.cells",
        "grids",
        "grpo",
        "small_networks",
        "tasks",
        "training",
    ):
        importlib.import_module(f"plop_nb.experiments.{module}")
    for name in experiments.__all__:
        found = getattr(experiments, name)
        assert callable(found) or name == "grpo", name
        assert name in dir(experiments)
    assert experiments.grpo.train and experiments.growth.__name__ == "growth"
    with pytest.raises(AttributeError, match="has no attribute 'finetuning'"):
        experiments.finetuning  # noqa: B018


@pytest.mark.slow
def test_importing_the_package_imports_nothing_else():
    code = """
import sys
from plop_nb import experiments
assert not [name for name in sys.modules if name.startswith("plop_nb.experiments.")]
assert not {"optuna", "trl"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


class Packed(nn.Parameter):
    """A parameter that keeps its state in itself, as bitsandbytes' do."""


def test_a_shared_copy_shares_weights_and_nothing_else(tiny_llama):
    tiny_llama.lm_head.weight = tiny_llama.model.embed_tokens.weight
    packed = Packed(torch.ones(2), requires_grad=False)
    tiny_llama.register_parameter("packed", packed)
    copied = shared_copy(tiny_llama)
    assert copied.packed is packed
    assert copied.lm_head.weight is copied.model.embed_tokens.weight
    for own, shared in zip(tiny_llama.parameters(), copied.parameters(), strict=True):
        assert shared.data_ptr() == own.data_ptr() and not shared.requires_grad
        assert shared is not own or shared is packed
    copied.config.pad_token_id = 7
    copied.generation_config.max_length = 3
    copied.model.layers[0] = nn.Identity()
    copied.train()
    assert tiny_llama.config.pad_token_id != 7 and tiny_llama.generation_config.max_length != 3
    assert not isinstance(tiny_llama.model.layers[0], nn.Identity) and not tiny_llama.training


def test_a_patched_forward_is_put_back(tiny_llama):
    with own_forward(tiny_llama):
        tiny_llama.forward = print
    assert "forward" not in vars(tiny_llama)
    tiny_llama.forward = print
    with own_forward(tiny_llama):
        tiny_llama.forward = repr
    assert tiny_llama.forward is print
