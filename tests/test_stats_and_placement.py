"""Ranking, confidence, and adapters exactly on the chosen modules."""

import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

import plop_nb as plop


def frame(values, types):
    """Scores of one module per type: `values` is samples x types."""
    samples, n = np.shape(values)
    return pd.DataFrame(
        {"sample": np.repeat(range(samples), n), "module": [f"{t}.0" for t in types] * samples,
         "type": list(types) * samples, "layer": 0, "tokens": 3, "nfn": np.ravel(values)}
    )  # fmt: skip


def test_by_type_is_the_mean_of_module_means():
    scores = pd.concat([frame([[1.0, 2.0]], "ab"), frame([[3.0, 6.0]], "ab").assign(module=["a.1", "b.1"])])
    types = plop.by_type(scores)
    assert types[["type", "nfn", "modules", "samples"]].values.tolist() == [["a", 2.0, 2, 1], ["b", 4.0, 2, 1]]
    assert types[["low", "high"]].isna().all(axis=None)  # one text says nothing about spread


def test_interval_is_that_of_a_mean():
    values = np.random.default_rng(0).normal(1, 0.1, (100, 1))
    row = plop.by_type(frame(values, "a")).iloc[0]
    half = 1.96 * values.std() / 10
    assert row["low"] == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert row["high"] == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_text_that_misses_a_module_does_not_count_for_it():
    scores = frame([[1.0, 2.0], [1.2, 2.0], [1.1, 4.0]], "ab").query("not (sample == 2 and type == 'b')")
    types = plop.by_type(scores).set_index("type")
    assert types.loc["b", "nfn"] == 2.0 and types.loc["b", "high"] == 2.0


def test_confidence_sees_a_near_tie():
    noise = np.random.default_rng(0).normal(0, 0.2, (16, 3))
    assert plop.place(frame(noise + [1, 3, 5], "abc"), k=1).confidence == 1.0
    assert 0.05 < plop.place(frame(noise + [1, 1, 5], "abc"), k=1).confidence < 0.95
    assert plop.place(frame(noise + [1, 1, 5], "abc"), k=3).confidence == 1.0
    assert np.isnan(plop.place(frame(noise[:1] + 2, "abc"), k=1).confidence)


@pytest.mark.parametrize("k", [0, -1, 4, 1.5, "2"])
def test_bad_k(k):
    with pytest.raises(ValueError, match="k=.*expected an integer from 1 to 3"):
        plop.place(frame([[1.0, 2.0, 3.0]], "abc"), k=k)


def test_bad_frames():
    with pytest.raises(ValueError, match="lacks the columns"):
        plop.by_type(pd.DataFrame({"type": ["a"]}))
    with pytest.raises(ValueError, match="empty frame"):
        plop.place(frame([[1.0]], "a").head(0))
    with pytest.raises(ValueError, match="nfn=nan for module 'a.0'"):
        plop.place(frame([[float("nan")]], "a"))
    with pytest.raises(ValueError, match="nfn=-1.0 for module 'a.0'"):
        plop.by_type(frame([[-1.0]], "a"))
    with pytest.raises(ValueError, match="level=95"):
        plop.by_type(frame([[1.0]], "a"), level=95)


def placement_of(model, types):
    """A placement on `types` of a model, whatever their scores."""
    table = plop.module_table(model).query("status == 'scored'")
    scores = table.assign(sample=0, tokens=1, nfn=np.where(table["type"].isin(types), 0.5, 1.5))
    return plop.place(scores, k=len(types))


def injected(model, config):
    return sorted(
        n for n, m in get_peft_model(model, config).base_model.model.named_modules() if isinstance(m, BaseTunerLayer)
    )


@pytest.fixture
def tiny_bert():
    return BertForMaskedLM(
        BertConfig(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    )


@pytest.fixture
def tiny_gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4)).eval()


def test_lora_config_hits_exactly_llama(tiny_llama):
    placement = placement_of(tiny_llama, ["v_proj", "up_proj", "down_proj"])
    config = placement.lora_config(tiny_llama, r=4, lora_alpha=8)
    table = placement.check(tiny_llama, config).set_index("type")
    assert table.loc["up_proj"].tolist() == [2, 2, 2 * 4 * (32 + 48)]
    assert (config.r, config.lora_alpha, config.task_type) == (4, 8, "CAUSAL_LM")
    assert injected(tiny_llama, config) == sorted(placement.modules) and len(placement.modules) == 6


def test_lora_config_hits_exactly_bert_where_leaf_names_over_hit(tiny_bert):
    """`dense` alone would also hit the attention output, the intermediate layer and the head."""
    types = plop.module_table(tiny_bert)["type"]
    output = next(t for t in types if t.endswith("layer.*.output.dense"))
    assert "attention.output.dense" in set(types)
    placement = placement_of(tiny_bert, [output])
    config = placement.lora_config(tiny_bert)
    assert injected(tiny_bert, config) == ["bert.encoder.layer.0.output.dense", "bert.encoder.layer.1.output.dense"]


def test_lora_config_hits_exactly_gpt2_conv1d(tiny_gpt2):
    assert {"attn.c_proj", "mlp.c_proj"} <= set(plop.module_table(tiny_gpt2)["type"])
    placement = placement_of(tiny_gpt2, ["attn.c_proj"])
    config = placement.lora_config(tiny_gpt2, fan_in_fan_out=True)
    assert injected(tiny_gpt2, config) == ["transformer.h.0.attn.c_proj", "transformer.h.1.attn.c_proj"]


def test_conv1d_is_scored_like_the_linear_it_is(tiny_gpt2):
    ids = torch.randint(0, 50, (2, 6), generator=torch.Generator().manual_seed(0))
    scores = plop.nfn_scores(tiny_gpt2, [{"input_ids": ids}], progress=False)
    fc = tiny_gpt2.transformer.h[1].mlp.c_fc
    seen = []
    handle = fc.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    tiny_gpt2(ids)
    handle.remove()
    weight = fc.weight.T
    ratio = (seen[0] @ weight.T).norm(dim=-1) / (seen[0].norm(dim=-1) * weight.norm() / weight.shape[1] ** 0.5)
    got = scores.query("module == 'transformer.h.1.mlp.c_fc'")["nfn"]
    np.testing.assert_allclose(got, ratio.mean(dim=1).detach(), rtol=1e-4)


def test_lora_config_leaves_the_model_alone(tiny_llama):
    before = {n: p.data_ptr() for n, p in tiny_llama.named_parameters()}
    placement_of(tiny_llama, ["q_proj"]).lora_config(tiny_llama)
    assert {n: p.data_ptr() for n, p in tiny_llama.named_parameters()} == before


def test_adapters_train_on_the_chosen_modules_only(tiny_llama):
    placement = placement_of(tiny_llama, ["o_proj"])
    adapted = get_peft_model(tiny_llama, placement.lora_config(tiny_llama, r=2))
    adapted(input_ids=torch.ones(1, 4, dtype=torch.long), labels=torch.ones(1, 4, dtype=torch.long)).loss.backward()
    with_gradient = {n for n, p in adapted.named_parameters() if p.grad is not None}
    assert len(with_gradient) == 4 and all("o_proj.lora_" in n for n in with_gradient)


def test_check_refuses_another_config(tiny_llama):
    placement = placement_of(tiny_llama, ["v_proj"])
    with pytest.raises(ValueError, match="misses 0 chosen modules .* adds 2 others .*q_proj"):
        placement.check(tiny_llama, LoraConfig(target_modules=["q_proj", "v_proj"]))
    placement.check(tiny_llama, LoraConfig(target_modules=["v_proj", "no_such_name"]))  # which PEFT does not mention
    with pytest.raises(ValueError, match="misses 2 chosen modules"):
        placement.check(tiny_llama, LoraConfig(target_modules=["no_such_name"]))


def test_placement_for_another_model(tiny_llama, tiny_gpt2):
    with pytest.raises(ValueError, match="GPT2LMHeadModel has no module 'model.layers.0"):
        placement_of(tiny_llama, ["v_proj"]).lora_config(tiny_gpt2)
    with pytest.raises(ValueError, match="target_modules is what the placement chooses"):
        placement_of(tiny_llama, ["v_proj"]).lora_config(tiny_llama, target_modules=["q_proj"])


def test_smollm_config_is_exact(smollm, math_scores):
    placement = plop.place(math_scores, k=3)
    table = placement.check(smollm[0], placement.lora_config(smollm[0], r=16))
    assert table["adapted"].tolist() == table["modules"].tolist() == [30, 30, 30]
    assert table["trainable"].sum() == 2_396_160 and placement.confidence > 0.99


def test_placement_shows_itself(math_scores):
    placement = plop.place(math_scores, k=2)
    assert "adapters on v_proj, up_proj (60 modules), confidence 100%" in str(placement)
    assert "<table" in placement._repr_html_() and "v_proj" in placement._repr_html_()


def test_module_table(tiny_llama, tiny_bert):
    table = plop.module_table(tiny_llama)
    assert table.columns.tolist() == ["module", "type", "layer", "in_features", "out_features", "parameters", "status"]
    row = table.set_index("module").loc["model.layers.1.mlp.up_proj"]
    assert row.tolist() == ["up_proj", 1, 32, 48, 32 * 48, "scored"]
    assert table.query("status != 'scored'")["module"].tolist() == ["lm_head"]
    assert table.set_index("module").loc["lm_head", "status"] == "output head"
    heads = plop.module_table(tiny_bert).query("status == 'output head'")["module"]
    assert set(heads) == {"cls.predictions.transform.dense", "cls.predictions.decoder"}


def test_plots_return_axes(math_scores):
    import matplotlib

    matplotlib.use("Agg")
    ax = plop.plot_types(math_scores, k=2)
    assert [t.get_text() for t in ax.get_yticklabels()][:2] == ["v_proj", "up_proj"]
    assert [p.get_width() for p in ax.patches] == pytest.approx(plop.by_type(math_scores)["nfn"].tolist())
    heat = plop.plot_heatmap(math_scores)
    assert heat.collections[0].get_array().shape == (30, 7)
    with pytest.raises(ValueError, match="stack of layers"):
        plop.plot_heatmap(math_scores.assign(layer=pd.array([None] * len(math_scores), dtype="Int64")))
