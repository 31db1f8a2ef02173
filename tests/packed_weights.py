"""Models packed by bitsandbytes; run by `test_architectures.test_bitsandbytes`, which installs
it."""

import bitsandbytes
import numpy as np
import pytest
import torch
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

import plop_nb as plop
from tests.test_architectures import batch, quietly, rows


@pytest.mark.parametrize("bits", [4, 8])
def test_bitsandbytes(tmp_path, bits):
    """Scored by what the packed map returns: equal to a model with the unpacked weights."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    torch.manual_seed(0)
    full_model = LlamaForCausalLM(config).eval()
    full_model.save_pretrained(tmp_path)
    options = (
        {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32}
        if bits == 4
        else {"load_in_8bit": True}
    )
    packed = LlamaForCausalLM.from_pretrained(
        tmp_path, quantization_config=BitsAndBytesConfig(**options), device_map="cpu"
    )
    if bits == 4:  # before a forward: on a CPU that changes the layout of the packed weight
        layer = packed.model.layers[1].mlp.up_proj
        weight = bitsandbytes.functional.dequantize_4bit(
            layer.weight.data, layer.weight.quant_state
        ).float()
        maps = {m.name: m for m in plop.maps.linear_maps(packed)}
        recovered = maps["model.layers.1.mlp.up_proj"].weight
        torch.testing.assert_close(recovered, weight, rtol=0.02, atol=1e-3)
    scores = quietly(packed, [batch(rows())])
    assert scores["module"].nunique() == 14
    full = quietly(full_model, [batch(rows())]).groupby("module")["nfn"].mean()
    np.testing.assert_allclose(scores.groupby("module")["nfn"].mean(), full, rtol=0.1)
    placement = plop.place(scores, k=2)
    assert placement.check(packed, placement.lora_config(packed))["adapted"].tolist() == [2, 2]
