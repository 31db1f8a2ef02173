"""Which options `Placement.lora_config` takes, and what it proves with them."""

import re

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer

import plop_nb as plop
from plop_nb.targets import adapted_targets
from tests.tiny_models import build


def placement_of(model, types):
    """A placement on `types` of a model, whatever their scores."""
    table = plop.module_table(model).query("status == 'scored'")
    scores = table.assign(sample=0, tokens=1, nfn=np.where(table["type"].isin(types), 0.5, 1.5))
    return plop.place(scores, k=len(types))


def adapted(model, config):
    """Names of the layers that PEFT gives adapters in the model itself."""
    found = get_peft_model(model, config).get_base_model().named_modules()
    return {name for name, layer in found if isinstance(layer, LoraLayer)}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("target_modules", ["q_proj"]),
        ("target_parameters", ["q_proj.weight"]),
        ("exclude_modules", ["up_proj"]),
        ("exclude_modules", ["q_proj"]),
        ("layers_to_transform", [0]),
        ("layers_pattern", "layers"),
        ("layer_replication", [[0, 2], [0, 2]]),
        ("target_modules", None),
    ],
)
def test_options_that_say_where_adapters_go_are_refused(tiny_llama, option, value):
    """`exclude_modules` was got round by naming the weights as parameters."""
    placement = placement_of(tiny_llama, ["v_proj", "up_proj"])
    with pytest.raises(ValueError, match=f"{option} is what the placement chooses: leave it out"):
        placement.lora_config(tiny_llama, **{option: value})


@pytest.mark.parametrize(
    "options",
    [
        {"rank_pattern": {"up_proj": 2}, "alpha_pattern": {"up_proj": 4}},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [1, 2]},
        {"use_dora": True},
        {"bias": "all"},
        {"init_lora_weights": "pissa"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_other_options_leave_the_adapters_where_they_are(tiny_llama, options):
    placement = placement_of(tiny_llama, ["v_proj", "up_proj"])
    config = placement.lora_config(tiny_llama, r=4, **options)
    assert placement.check(tiny_llama, config)["adapted"].tolist() == [2, 2]
    assert adapted(tiny_llama, config) == set(placement.modules)


def test_ranks_of_a_pattern_are_counted_and_checked(tiny_llama):
    placement = placement_of(tiny_llama, ["v_proj", "up_proj"])
    table = placement.check(
        tiny_llama, placement.lora_config(tiny_llama, r=4, rank_pattern={"up_proj": 2})
    ).set_index("type")
    assert table.loc["up_proj", "trainable"] == 2 * 2 * (32 + 48)
    with pytest.raises(ValueError, match=r"rank_pattern\['up_proj'\]=0, expected an integer"):
        placement.lora_config(tiny_llama, rank_pattern={"up_proj": 0})


@pytest.mark.parametrize("saved", [["up_proj"], ["mlp"], ["layers"], ["lm_head", "mlp.up_proj"]])
def test_chosen_modules_are_not_trained_whole(tiny_llama, saved):
    placement = placement_of(tiny_llama, ["v_proj", "up_proj"])
    message = re.escape(f"modules_to_save={saved!r} trains 'model.layers.0")
    with pytest.raises(ValueError, match=message):
        placement.lora_config(tiny_llama, modules_to_save=saved)
    with pytest.raises(ValueError, match="modules_to_save='lm_head', expected a list of names"):
        placement.lora_config(tiny_llama, modules_to_save="lm_head")


@pytest.mark.parametrize("start", ["corda", "loftq"])
def test_starts_from_data_are_proven_without_the_data(tiny_llama, start):
    placement = placement_of(tiny_llama, ["v_proj"])
    options = {"loftq_config": {"loftq_bits": 4}} if start == "loftq" else {}
    config = placement.lora_config(tiny_llama, init_lora_weights=start, **options)
    assert placement.check(tiny_llama, config)["adapted"].tolist() == [2]
    assert config.init_lora_weights == start


@pytest.mark.parametrize("layers", [1, [], "1", ["1"], [True], [1.0], [None], ["a", 1]])
def test_layers_that_are_no_integers_are_refused(tiny_llama, layers):
    placement = placement_of(tiny_llama, ["v_proj"])
    message = re.escape(f"layers={layers!r}, expected one or more integers")
    with pytest.raises(ValueError, match=message):
        placement.lora_config(tiny_llama, layers=layers)
    with pytest.raises(ValueError, match=message):
        placement.check(tiny_llama, LoraConfig(target_modules=["v_proj"]), layers=layers)


@pytest.mark.parametrize(
    "layers",
    [[1], (1,), {1}, range(1, 2), np.array([1]), [np.int32(1)], iter([1])],
    ids=["list", "tuple", "set", "range", "array", "numpy integer", "iterator"],
)
def test_layers_may_be_any_integers(tiny_llama, layers):
    config = placement_of(tiny_llama, ["v_proj"]).lora_config(tiny_llama, layers=layers)
    assert set(adapted_targets(tiny_llama, config)) == {"model.layers.1.self_attn.v_proj"}


def test_layer_before_the_first_is_named(tiny_llama):
    with pytest.raises(ValueError, match=r"layers=\[-1\]: no chosen module is in layer -1"):
        placement_of(tiny_llama, ["v_proj"]).lora_config(tiny_llama, layers=[-1])


def test_placement_on_nothing_has_no_config(tiny_llama):
    with pytest.raises(ValueError, match="this placement puts adapters on nothing"):
        plop.Placement([], []).lora_config(tiny_llama)


@pytest.mark.parametrize("config", [None, {"r": 8}])
def test_check_names_what_is_no_config(tiny_llama, config):
    with pytest.raises(TypeError, match="config is .*expected a peft.LoraConfig"):
        placement_of(tiny_llama, ["v_proj"]).check(tiny_llama, config)


def test_model_made_under_inference_mode_has_a_config(tiny_llama):
    with torch.inference_mode():
        model = type(tiny_llama)(tiny_llama.config)
    placement = placement_of(model, ["v_proj"])
    assert placement.check(model, placement.lora_config(model))["adapted"].tolist() == [2]


def test_modules_that_an_adapter_saves_whole_are_adapted_by_their_own_names(tiny_llama):
    placement = placement_of(tiny_llama, ["v_proj", "up_proj"])
    saves = LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head", "v_proj"])
    model = get_peft_model(tiny_llama, saves)
    config = placement.lora_config(model)
    assert set(adapted_targets(model, config)) == set(placement.modules)


def test_one_expert_by_hand_is_checked_as_its_stack():
    model = build("mixtral")
    table = plop.module_table(model).query("status == 'scored'")
    scores = table.assign(sample=0, tokens=1, nfn=1.0, experts=1)
    scores.loc[scores["module"].str.contains("experts"), "experts"] = 4
    name = "model.layers.1.mlp.experts.down_proj"
    placement = plop.Placement.of_modules(scores, [f"{name}.2"])
    assert placement.modules == [f"{name}.{i}" for i in range(4)]
    assert adapted_targets(model, placement.lora_config(model, r=2)).keys() == {name}


def test_a_pattern_of_ranks_that_is_no_dict_is_named(tiny_llama):
    placement = placement_of(tiny_llama, ["v_proj"])
    with pytest.raises(ValueError, match=r"rank_pattern=\[1\], expected a dict"):
        placement.lora_config(tiny_llama, rank_pattern=[1])


def test_the_scale_of_adapters_is_a_positive_number(tiny_llama):
    placement = placement_of(tiny_llama, ["v_proj"])
    config = placement.lora_config(tiny_llama, r=np.int64(4), lora_alpha=np.int64(8))
    assert type(config.lora_alpha) is int
    with pytest.raises(ValueError, match="lora_alpha=0, expected a positive number"):
        placement.lora_config(tiny_llama, lora_alpha=0)
