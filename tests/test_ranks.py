"""Budgets, ranks by type, and parts of a model that are left out: proven on real layers."""

import warnings

import numpy as np
import pytest
from peft import get_peft_model
from peft.tuners.lora import LoraLayer

import plop_nb as plop
from tests.tiny_models import build


def placement_of(model, types):
    table = plop.module_table(model).query("status == 'scored'")
    scores = table.assign(sample=0, tokens=1, nfn=np.where(table["type"].isin(types), 0.5, 1.5))
    stacked = ~scores["module"].isin(dict(model.named_modules()))
    stack = scores["module"].str.replace(r"\.\d+$", "", regex=True)
    scores["experts"] = stack.groupby(stack).transform("size").where(stacked, 1)
    return plop.Placement.of_types(scores, types)


def ranks_of(model, config):
    """{layer: rank} in the model itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(model, config)
    found = {}
    for name, layer in adapted.get_base_model().named_modules():
        if isinstance(layer, LoraLayer):
            found[name] = layer.r["default"]
    return found, adapted.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"lora_bias": True}])
@pytest.mark.parametrize("budget", [700, 5_000, 12_345.6])
def test_the_rank_is_the_largest_within_the_budget(tiny_llama, budget, options):
    placement = placement_of(tiny_llama, ["v_proj", "up_proj"])
    config = placement.lora_config(tiny_llama, parameters=budget, **options)
    counts = []
    for rank in (config.r, config.r + 1):
        table = placement.check(tiny_llama, placement.lora_config(tiny_llama, rank, **options))
        counts.append(table["trainable"].sum())
    assert counts[0] <= budget < counts[1]


def test_ranks_of_types_are_exact(tiny_llama):
    placement = placement_of(tiny_llama, ["v_proj", "up_proj", "o_proj"])
    config = placement.lora_config(tiny_llama, 4, ranks={"v_proj": 7, "o_proj": np.int64(2)})
    ranks, _ = ranks_of(tiny_llama, config)
    asked = {"v_proj": 7, "o_proj": 2, "up_proj": 4}
    assert len(ranks) == 6
    assert all(rank == asked[name.rsplit(".", 1)[-1]] for name, rank in ranks.items())
    assert set(config.rank_pattern) == {"v_proj", "o_proj"}  # readable where that is exact


def test_a_budget_is_shared_by_the_types_that_have_no_rank_of_their_own(tiny_llama):
    placement = placement_of(tiny_llama, ["v_proj", "up_proj"])
    config = placement.lora_config(tiny_llama, parameters=3_000, ranks={"v_proj": 8})
    ranks, trained = ranks_of(tiny_llama, config)
    fixed = 2 * 8 * (32 + 16)
    assert config.r == (3_000 - fixed) // (2 * (32 + 48)) and trained <= 3_000
    assert {rank for name, rank in ranks.items() if "v_proj" in name} == {8}


@pytest.mark.parametrize(
    ("model_type", "chosen", "other"),
    [
        ("gpt2", "attn.c_proj", "mlp.c_proj"),
        ("bert", "layer.*.output.dense", "attention.output.dense"),
        ("mixtral", "gate_up_proj", "down_proj"),
        ("t5", "EncDecAttention.q", "SelfAttention.q"),
    ],
)
def test_ranks_are_exact_where_names_end_alike(model_type, chosen, other):
    """`output.dense` also ends `attention.output.dense`, and keys have an open left end."""
    model = build(model_type)
    types = list(dict.fromkeys(plop.module_table(model)["type"]))
    chosen = next(t for t in types if t == chosen or t.endswith(chosen))
    other = next(t for t in types if t.endswith(other) and t != chosen)
    placement = placement_of(model, [chosen, other])
    config = placement.lora_config(model, 2, ranks={chosen: 5})
    ranks, _ = ranks_of(build(model_type), config)
    assert sorted(set(ranks.values())) == [2, 5]
    table = placement.check(model, config).set_index("type")
    plain = placement.check(model, placement.lora_config(model, 1)).set_index("type")
    assert table.loc[chosen, "trainable"] == 5 * plain.loc[chosen, "trainable"]
    assert table.loc[other, "trainable"] == 2 * plain.loc[other, "trainable"]


def test_a_tower_can_be_left_out():
    model = build("llava")
    types = [t for t in dict.fromkeys(plop.module_table(model)["type"]) if t.endswith("v_proj")]
    placement = placement_of(model, types)
    config = placement.lora_config(model, exclude=["vision_tower"])
    ranks, _ = ranks_of(model, config)
    assert len(ranks) == 2 and not [name for name in ranks if "vision" in name]
    assert plop.coverage(model, config).problems == []
    assert placement.check(model, config, exclude=["vision_tower"])["adapted"].sum() == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 4, "parameters": 9_000}, "r=4 and parameters=9000 both say the rank"),
        ({"parameters": 10}, "parameters=10 is less than the 256 of rank 1 on"),
        ({"parameters": -1}, "parameters=-1"),
        ({"ranks": {"q_proj": 4}}, r"ranks names 'q_proj', which gets no adapters: choose from"),
        ({"ranks": {"v_proj": 0}}, r"ranks\['v_proj'\]=0, expected an integer"),
        ({"ranks": 4}, r"ranks=4, expected a dict"),
        ({"ranks": {"v_proj": 4}, "rank_pattern": {"up": 2}}, "both say the rank of a type"),
        ({"ranks": {"v_proj": 4, "up_proj": 4}, "parameters": 9_000}, "leaves no type whose rank"),
        ({"exclude": ["vision"]}, "no chosen module is in a part named 'vision'"),
        ({"exclude": "model"}, "leaves no chosen module"),
    ],
)
def test_what_cannot_be_met_is_refused(tiny_llama, options, message):
    with pytest.raises(ValueError, match=message):
        placement_of(tiny_llama, ["v_proj", "up_proj"]).lora_config(tiny_llama, **options)
