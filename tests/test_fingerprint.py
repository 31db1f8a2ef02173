"""Whether a model is still the same: every change shows, and a forward is none."""

from functools import partial

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, disk_offload
from peft import LoraConfig, get_peft_model
from torch import nn

import plop_nb as plop
from plop_nb.fingerprint import as_bytes, checksums, fingerprint
from plop_nb.wrappers import trunk_of
from tests.test_architectures import inputs_of, rows
from tests.tiny_models import build


def adapted(model, **options):
    """The model with a LoRA adapter that changes what it computes."""
    torch.manual_seed(1)
    config = LoraConfig(r=2, target_modules=["up_proj"], init_lora_weights=False, **options)
    return get_peft_model(model, config)


def fingerprint_of_trunk(model):
    return fingerprint(trunk_of(model))


def test_every_state_of_an_adapter_is_another_model(tiny_llama):
    base = fingerprint_of_trunk(tiny_llama)
    model = adapted(tiny_llama)
    model.add_adapter("other", model.peft_config["default"])
    found = {"base": base, "default": fingerprint_of_trunk(model)}
    model.set_adapter("other")
    found["other"] = fingerprint_of_trunk(model)
    model.set_adapter("default")
    assert fingerprint_of_trunk(model) == found["default"]
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    layer.set_scale("default", 3)
    found["scaled"] = fingerprint_of_trunk(model)
    layer.set_scale("default", 1)
    with model.disable_adapter():
        found["off"] = fingerprint_of_trunk(model)
    model.merge_adapter()
    found["merged"] = fingerprint_of_trunk(model)
    assert len(set(found.values())) == len(found)


def test_an_adapter_that_is_kept_whole_is_another_model(tiny_llama):
    model = adapted(tiny_llama, modules_to_save=["embed_tokens"])
    on = fingerprint_of_trunk(model)
    with model.disable_adapter():
        assert fingerprint_of_trunk(model) != on
    wrapper = model.base_model.model.model.embed_tokens
    wrapper.modules_to_save["default"].weight.data[5] += 1
    assert fingerprint_of_trunk(model) != on


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.bool])
def test_a_checksum_sees_every_change(dtype):
    torch.manual_seed(0)
    tensor = torch.randn(3, 50_001)
    tensor = tensor > 0 if dtype == torch.bool else (50 * tensor).to(dtype)

    def checksum(other):
        return torch.cat(list(checksums(other))).tolist()

    before = checksum(tensor)
    raw = tensor.view(torch.uint8).flatten()
    for byte in (0, 1, 2, 3, len(raw) // 2, len(raw) - 1):
        for bit in (1, 128):
            raw[byte] ^= bit
            assert checksum(tensor) != before, (byte, bit)
            raw[byte] ^= bit
    assert checksum(tensor) == before
    assert checksum(tensor.roll(1, 0)) != before  # the same numbers elsewhere
    assert checksum(tensor.flip(1)) != before
    if dtype.is_floating_point:
        negative = tensor.clone()
        negative[1] *= -1  # many equal changes, of the highest bit only
        assert checksum(negative) != before
    wide = torch.cat([tensor.flatten()[:1], tensor.flatten()])[1:]  # odd offset in its storage
    assert checksum(wide.view(3, -1)) == before
    assert checksum(tensor.T.contiguous().T) == before


def test_a_checksum_is_the_same_in_pieces_of_any_size(monkeypatch):
    """An accelerator sums many pieces at a time."""
    tensor = torch.randn(300_001)
    one_by_one = torch.cat(list(checksums(tensor)))
    monkeypatch.setattr("plop_nb.fingerprint.SUMS", {"cpu": 4})
    assert torch.equal(torch.cat(list(checksums(tensor))), one_by_one)


def test_shapes_and_types_are_part_of_a_fingerprint():
    layers = [nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False)]
    layers.append(nn.Linear(4, 2, bias=False, dtype=torch.float64))
    for layer in layers:
        nn.init.zeros_(layer.weight)
        layer.in_features = layer.out_features = 0
    assert len({fingerprint(layer) for layer in layers}) == 3


def disk(model, folder, **more):
    disk_offload(model, str(folder), execution_device=torch.device("cpu"), **more)


OFFLOADS = {
    "disk": disk,
    "memory": lambda model, _: cpu_offload(model, execution_device=torch.device("cpu")),
    "whole modules": partial(disk, preload_module_classes=["LlamaAttention"]),
}


@pytest.mark.parametrize("where", OFFLOADS)
def test_an_offloaded_model_is_known_again(tiny_llama, tmp_path, where):
    in_memory = fingerprint(tiny_llama)
    OFFLOADS[where](tiny_llama, tmp_path)
    assert all(p.is_meta for p in tiny_llama.parameters())
    assert fingerprint(tiny_llama) == in_memory
    assert all(p.is_meta for p in tiny_llama.parameters())


def test_an_offloaded_model_that_has_changed_is_another(tiny_llama, tmp_path):
    before = fingerprint(tiny_llama)
    disk(tiny_llama, tmp_path)
    weights = np.memmap(next(tmp_path.glob("*input_layernorm.weight.dat")), np.float32, "r+")
    weights[3] += 1
    weights.flush()
    assert fingerprint(tiny_llama) != before


@pytest.mark.parametrize("model_type", ["gemma3_text", "gpt2", "mamba", "mixtral", "t5"])
def test_a_forward_leaves_the_fingerprint_as_it_is(model_type):
    model = build(model_type)
    before = fingerprint(model)
    plop.nfn_scores(model, [inputs_of(model, model_type, rows())], progress=False)
    assert fingerprint(model) == before
    assert fingerprint(build(model_type)) == before


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_a_long_text_leaves_the_fingerprint_as_it_is(tiny_llama, kind):
    """Its forward rewrites the frequencies of such models."""
    config = tiny_llama.config
    config.rope_parameters = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0}
    config.max_position_embeddings = 16
    if kind == "longrope":
        factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
        config.rope_parameters |= {"original_max_position_embeddings": 16} | factors
    model = type(tiny_llama)(config).eval()
    before, frequencies = fingerprint(model), model.model.rotary_emb.inv_freq.clone()
    with torch.no_grad():
        model(input_ids=torch.arange(40)[None])
    assert not torch.equal(model.model.rotary_emb.inv_freq, frequencies)
    assert fingerprint(model) == before


@pytest.mark.parametrize(
    "number", [5, np.float32(5), torch.tensor(5.0)], ids=["int", "numpy", "torch"]
)
def test_a_scaling_counts_whatever_number_it_is(tiny_llama, number):
    model = adapted(tiny_llama)
    before = fingerprint_of_trunk(model)
    model.base_model.model.model.layers[0].mlp.up_proj.scaling["default"] = number
    assert fingerprint_of_trunk(model) != before


def test_a_function_among_the_attributes_counts_by_its_name(tiny_llama):
    mlp = tiny_llama.model.layers[0].mlp
    mlp.gate = torch.relu
    before = fingerprint_of_trunk(tiny_llama)
    mlp.gate = torch.tanh
    assert fingerprint_of_trunk(tiny_llama) != before
    mlp.gate = torch.relu
    assert fingerprint_of_trunk(tiny_llama) == before


SETTINGS = {
    "pad_token_id": 3,
    "eos_token_id": 3,
    "id2label": {0: "no", 1: "yes"},
    "output_hidden_states": True,
    "gradient_checkpointing": True,
    "_name_or_path": "elsewhere",
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_without_effect_change_nothing(tiny_llama, name):
    before = fingerprint_of_trunk(tiny_llama)
    setattr(tiny_llama.config, name, SETTINGS[name])
    tiny_llama.model.name_or_path = "elsewhere"
    assert fingerprint_of_trunk(tiny_llama) == before


def test_a_single_number_of_a_larger_tensor_has_its_bytes():
    assert as_bytes(torch.ones(2)[::2]).tolist() == as_bytes(torch.ones(1)).tolist()
