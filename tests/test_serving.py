"""What stands between adapters and vLLM, as its sources say."""

import pytest
from peft import LoraConfig

from plop_nb.serving import RANKS, TAKES_ADAPTERS, TAKES_NONE, served_by_vllm
from tests.test_targets import placement_of
from tests.tiny_models import build


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"r": 16},
        {"r": 4, "rank_pattern": {"v_proj": 16}, "alpha_pattern": {"v_proj": 4}},
        {"use_rslora": True},
        {"modules_to_save": ["score"]},
        {"init_lora_weights": "gaussian"},
    ],
)
def test_what_vllm_takes_needs_no_note(tiny_llama, options):
    """One of three maps that it packs, too."""
    config = LoraConfig(**{"target_modules": ["v_proj", "up_proj"], **options})
    assert served_by_vllm(config) == []
    assert served_by_vllm(config, tiny_llama) == []


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({"use_dora": True}, "vLLM does not load adapters with DoRA (use_dora)."),
        ({"lora_bias": True}, "vLLM does not load adapters with biases in adapters (lora_bias)."),
        ({"bias": "all"}, "vLLM does not load adapters with bias='all': train with 'none'."),
        ({"modules_to_save": ["lm_head", "score"]}, "modules_to_save=['lm_head'], other"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa', which also changes"),
        ({"layer_replication": [[0, 2], [0, 2]]}, "adapters with layer_replication."),
    ],
)
def test_what_vllm_refuses(options, note):
    (found,) = served_by_vllm(LoraConfig(target_modules=["v_proj"], **options))
    assert note in found


@pytest.mark.parametrize(("rank", "enough"), [(17, 32), (32, 32), (257, 320), (512, 512)])
def test_ranks_that_need_an_option(rank, enough):
    (note,) = served_by_vllm(LoraConfig(target_modules=["v_proj"], r=rank))
    assert f"--max-lora-rank {enough}:" in note and f"rank {rank}" in note


def test_the_largest_rank_of_a_pattern_counts():
    config = LoraConfig(target_modules=["v_proj"], r=8, rank_pattern={"v_proj": RANKS[-1] + 1})
    assert served_by_vllm(config) == ["vLLM loads ranks up to 512, and this config has rank 513."]


def test_stacked_experts():
    model = build("qwen3_moe")
    both = placement_of(model, ["gate_up_proj", "down_proj"]).lora_config(model)
    (note,) = served_by_vllm(both, model)
    assert "--enable-mixed-moe-lora-format" in note
    one = placement_of(model, ["down_proj", "v_proj"]).lora_config(model)
    assert served_by_vllm(one, model)[1:] == [
        "vLLM expects adapters on both gate_up_proj and down_proj of the experts in a layer: "
        "model.layers.0.mlp.experts has ['down_proj'] only."
    ]


def test_architectures_that_vllm_serves_without_adapters():
    model = build("gpt2")
    config = placement_of(model, ["c_attn"]).lora_config(model)
    assert served_by_vllm(config) == []
    (note,) = served_by_vllm(config, model)
    assert note.startswith("vLLM takes no adapters for GPT2LMHeadModel: merge them")


def test_architectures_that_its_table_does_not_have():
    model = build("bert")
    config = placement_of(model, ["query"]).lora_config(model)
    (note,) = served_by_vllm(config, model)
    assert note.endswith("does not say whether it takes adapters for BertLMHeadModel.")


def test_adapters_around_the_language_model():
    model = build("gemma3")
    config = placement_of(model, ["layers.*.mlp.fc1"]).lora_config(model)
    (note,) = served_by_vllm(config, model)
    assert "around the language model, here 2 such as model.vision_tower." in note
    inside = placement_of(model, ["up_proj"]).lora_config(model)
    assert served_by_vllm(inside, model) == []


def test_an_architecture_is_in_one_list():
    assert not TAKES_ADAPTERS & TAKES_NONE
