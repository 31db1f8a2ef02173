"""The score against the naive formula, its invariances, and a model left as it was."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

import plop_nb as plop
from plop_nb.norms import baseline_gain
from tests.conftest import TEXTS
from tests.oracle import naive_nfn


def scored(model, texts, tokenizer, **options):
    return plop.nfn_scores(model, texts, tokenizer, progress=False, **options)


def nfn_of(layer, z):
    with plop.record_norms(layer) as record:
        layer(z)
    return record.frame()["nfn"].to_numpy()


# The oracle


@pytest.mark.parametrize("baseline", ["rms", "gaussian"])
def test_oracle_tiny_llama(tiny_llama, byte_tokenizer, baseline):
    scores = scored(tiny_llama, TEXTS[:1], byte_tokenizer, baseline=baseline)
    naive = naive_nfn(
        tiny_llama, byte_tokenizer(TEXTS[:1], return_tensors="pt"), 4000, baseline, scores["module"]
    )
    assert len(scores) == 14
    np.testing.assert_allclose(scores["nfn"], [naive[m] for m in scores["module"]], rtol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("baseline", ["rms", "gaussian"])
def test_oracle_smollm(smollm, baseline):
    model, tokenizer = smollm
    text = "A farmer has 12 cows and buys 5 more."
    scores = scored(model, [text], tokenizer, baseline=baseline)
    naive = naive_nfn(
        model, tokenizer([text], return_tensors="pt"), 600, baseline, scores["module"]
    )
    assert len(scores) == 210
    np.testing.assert_allclose(scores["nfn"], [naive[m] for m in scores["module"]], rtol=0.01)


def test_seeds_of_numpy_are_integers_and_others_are_refused():
    weight = torch.randn(8, 16)
    assert baseline_gain(weight, "gaussian", np.int64(3)) == baseline_gain(weight, "gaussian", 3)
    with pytest.raises(ValueError, match="seed=-1, expected an integer from 0"):
        baseline_gain(weight, "gaussian", -1)


def test_baselines_agree_but_for_small_effective_rank(smollm):
    model, _ = smollm
    rows = []
    for linear_map in plop.maps.linear_maps(model)[:-1]:
        weight = linear_map.weight
        gram = weight @ weight.T if weight.shape[0] < weight.shape[1] else weight.T @ weight
        rank = (weight.norm() ** 4 / gram.norm() ** 2).item()
        gap = 1 - (baseline_gain(weight, "gaussian") / baseline_gain(weight, "rms")).item()
        # ||W u||^2 has relative variance 2 (1/r - 1/n) on the sphere; Jensen's gap is an eighth of
        # it
        rows.append((linear_map.type, rank, gap, (1 / rank - 1 / weight.shape[1]) / 4))
    table = pd.DataFrame(rows, columns=["type", "rank", "gap", "theory"])
    assert table.groupby("type")["gap"].mean().abs().max() < 0.01
    assert (table["gap"] > 0.01).any() and table.loc[table["gap"] > 0.01, "rank"].max() < 30
    flat = table[table["rank"] > 20]
    assert (flat["gap"] / flat["theory"]).mean() == pytest.approx(1, abs=0.05)
    np.testing.assert_allclose(flat["gap"], flat["theory"], rtol=0.5)  # 256 draws leave noise


def test_ranking_of_smollm_on_math(math_scores):
    assert plop.by_type(math_scores)["type"].tolist()[:3] == ["v_proj", "up_proj", "down_proj"]


# Invariances


def test_alone_equals_in_a_batch(tiny_llama, byte_tokenizer):
    together = scored(tiny_llama, TEXTS, byte_tokenizer, batch_size=4)
    alone = pd.concat([scored(tiny_llama, [t], byte_tokenizer) for t in TEXTS])
    assert together["tokens"].tolist() == alone["tokens"].tolist()
    np.testing.assert_allclose(together["nfn"], alone["nfn"], rtol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_alone_equals_padded_smollm(smollm, side):
    model, tokenizer = smollm
    texts = [
        "Two plus two is",
        "A farmer has 12 cows and buys 5 more. How many cows are on the farm now?",
    ]
    batch = tokenizer(texts, padding=True, padding_side=side, return_tensors="pt")
    assert batch["attention_mask"][0, 0 if side == "left" else -1] == 0
    together = plop.nfn_scores(model, [batch], progress=False)
    alone = pd.concat([scored(model, [t], tokenizer) for t in texts])
    np.testing.assert_allclose(together["nfn"], alone["nfn"], rtol=1e-4)


def test_order_and_batch_size_do_not_matter(tiny_llama, byte_tokenizer):
    reference = scored(tiny_llama, TEXTS, byte_tokenizer).set_index(["sample", "module"])["nfn"]
    for batch_size in (1, 3):
        other = scored(tiny_llama, TEXTS, byte_tokenizer, batch_size=batch_size).set_index(
            ["sample", "module"]
        )["nfn"]
        np.testing.assert_allclose(other[reference.index], reference, rtol=1e-4)
    backwards = scored(tiny_llama, TEXTS[::-1], byte_tokenizer)
    backwards = backwards.assign(sample=3 - backwards["sample"]).set_index(["sample", "module"])[
        "nfn"
    ]
    np.testing.assert_allclose(backwards[reference.index], reference, rtol=1e-4)


def test_texts_equal_batches_of_a_collator(tiny_llama, byte_tokenizer):
    def batches():
        for text in TEXTS:
            ids = byte_tokenizer([text], return_tensors="pt")
            yield {**ids, "labels": ids["input_ids"]}

    from_batches = plop.nfn_scores(tiny_llama, batches(), progress=False)
    from_texts = scored(tiny_llama, TEXTS, byte_tokenizer)
    pd.testing.assert_frame_equal(from_batches, from_texts, rtol=1e-4)


def test_scaled_weight_changes_nothing():
    layer, z = nn.Linear(16, 8, bias=False), torch.randn(2, 5, 16)
    before = nfn_of(layer, z)
    layer.weight.data *= 37.0
    np.testing.assert_allclose(nfn_of(layer, z), before, rtol=1e-5)


def test_orthogonal_weight_is_exactly_one():
    layer = nn.Linear(16, 16, bias=False)
    nn.init.orthogonal_(layer.weight)
    np.testing.assert_allclose(nfn_of(layer, torch.randn(4, 5, 16)), 1, rtol=1e-5)


def test_random_weight_is_one_within_its_sampling_error():
    layer = nn.Linear(512, 512, bias=False)
    nn.init.normal_(layer.weight)
    ratios = nfn_of(layer, torch.randn(64, 1, 512))
    assert abs(ratios.mean() - 1) < 4 * ratios.std() / 8 and ratios.std() < 0.1


def test_rank_one_aligned_weight():
    left, right = torch.randn(8), torch.randn(16)
    layer = nn.Linear(16, 8, bias=False)
    layer.weight.data = torch.outer(left, right)
    np.testing.assert_allclose(nfn_of(layer, 3 * right[None, None]), 16**0.5, rtol=1e-5)
    across = torch.zeros(16)
    across[:2] = torch.stack([right[1], -right[0]])
    assert nfn_of(layer, across[None, None])[0] < 1e-5


def test_bias_does_not_enter():
    layer, z = nn.Linear(16, 8), torch.randn(2, 5, 16)
    before = nfn_of(layer, z)
    layer.bias.data = torch.full((8,), 1000.0)
    np.testing.assert_allclose(nfn_of(layer, z), before, rtol=1e-3)


def test_bf16_model_gets_float32_statistics(tiny_llama, byte_tokenizer):
    exact = scored(tiny_llama, TEXTS, byte_tokenizer)
    rounded = scored(tiny_llama.bfloat16(), TEXTS, byte_tokenizer)
    assert exact["nfn"].dtype == rounded["nfn"].dtype == "float64"
    np.testing.assert_allclose(
        rounded.groupby("module")["nfn"].mean(), exact.groupby("module")["nfn"].mean(), rtol=0.02
    )
    assert len(set(rounded["nfn"])) == len(
        rounded
    )  # not rounded to bfloat16's 256 values per octave


def test_zero_tokens_are_left_out():
    z = torch.randn(1, 4, 8)
    z[0, 2] = 0
    with plop.record_norms(layer := nn.Linear(8, 8)) as record:
        layer(z)
    assert record.frame()["tokens"].tolist() == [3]


def test_max_length_truncates(tiny_llama, byte_tokenizer):
    assert scored(tiny_llama, ["x" * 50], byte_tokenizer, max_length=7)[
        "tokens"
    ].unique().tolist() == [7]


def test_trunk_only_no_logits(tiny_llama, byte_tokenizer):
    tiny_llama.lm_head.register_forward_hook(lambda *_: pytest.fail("the output head ran"))
    scored(tiny_llama, TEXTS, byte_tokenizer)


def test_scoring_shows_progress(tiny_llama, byte_tokenizer, capfd, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    plop.nfn_scores(tiny_llama, TEXTS, byte_tokenizer, progress=True)
    assert "4/4" in capfd.readouterr().err
    plop.nfn_scores(tiny_llama, TEXTS, byte_tokenizer, progress=False)
    assert capfd.readouterr().err == ""


# record_norms on its own


def test_record_norms_in_a_training_loop_follows_the_weights(tiny_llama, byte_tokenizer):
    batch = byte_tokenizer(TEXTS[:1], return_tensors="pt")
    optimizer = torch.optim.SGD(tiny_llama.parameters(), lr=1.0)
    with plop.record_norms(tiny_llama) as record:
        tiny_llama(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
        tiny_llama(**batch)
    second = record.frame().query("sample == 1")
    fresh = scored(tiny_llama, TEXTS[:1], byte_tokenizer)
    np.testing.assert_allclose(second["nfn"], fresh["nfn"], rtol=1e-4)
    assert not np.allclose(record.frame().query("sample == 0")["nfn"], second["nfn"], rtol=1e-3)


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_in_a_backward_is_not_counted(tiny_llama, byte_tokenizer, reentrant):
    batch = byte_tokenizer(TEXTS[:1], return_tensors="pt")
    expected = scored(tiny_llama, TEXTS[:1], byte_tokenizer)
    tiny_llama.train().gradient_checkpointing_enable({"use_reentrant": reentrant})
    calls = []
    tiny_llama.model.layers[0].mlp.up_proj.register_forward_hook(lambda *_: calls.append(1))
    with plop.record_norms(tiny_llama) as record:
        tiny_llama(**batch, labels=batch["input_ids"]).loss.backward()
    assert len(calls) == 2
    assert record.frame()["tokens"].tolist() == expected["tokens"].tolist()
    np.testing.assert_allclose(record.frame()["nfn"], expected["nfn"], rtol=1e-4)


def test_map_called_alone_after_a_forward_is_not_counted(tiny_llama, byte_tokenizer):
    batch = byte_tokenizer(TEXTS[:1], return_tensors="pt")
    with plop.record_norms(tiny_llama) as record:
        tiny_llama(**batch)
        before = record.frame()
        tiny_llama.model.layers[0].self_attn.q_proj(torch.ones(1, len(TEXTS[0]), 32))
    pd.testing.assert_frame_equal(record.frame(), before)


def test_record_norms_gives_the_norms_themselves():
    layer, z = nn.Linear(8, 4, bias=False), torch.randn(1, 3, 8)
    with plop.record_norms(layer) as record:
        layer(z)
    row = record.frame().iloc[0]
    assert row["input_norm"] == pytest.approx(z.norm(dim=-1).mean().item(), rel=1e-5)
    assert row["feature_norm"] == pytest.approx(
        (z @ layer.weight.T).norm(dim=-1).mean().item(), rel=1e-5
    )


def test_record_norms_during_generation(tiny_llama, byte_tokenizer):
    """With a cache each step reads one token, under a mask over all of them."""
    batch = byte_tokenizer(TEXTS[:1], return_tensors="pt")
    with plop.record_norms(tiny_llama) as record:
        tiny_llama.generate(
            **batch, max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0
        )
        tiny_llama.model.layers[0].mlp.up_proj(torch.ones(1, 32))
    assert record.frame().query("type == 'q_proj' and layer == 0")["tokens"].tolist() == [
        len(TEXTS[0]),
        1,
        1,
    ]


def test_empty_record_says_so(tiny_llama):
    with plop.record_norms(tiny_llama) as record:
        pass
    with pytest.raises(ValueError, match="nothing was recorded"):
        record.frame()


def test_maps_that_never_fire_are_named():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.used(x)

    with pytest.warns(UserWarning, match=r"1 never fired \(unused\)"):
        scores = plop.nfn_scores(Idle(), [{"x": torch.randn(2, 3, 4)}], progress=False)
    assert scores["module"].unique().tolist() == ["used"]


# The model is left as it was


def state(model):
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    flags = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    return hooks, flags, torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()


@pytest.mark.parametrize("failure", [None, RuntimeError, KeyboardInterrupt])
def test_model_is_untouched(tiny_llama, byte_tokenizer, failure):
    tiny_llama.train()
    tiny_llama.model.layers[1].eval()
    tiny_llama.model.embed_tokens.requires_grad_(False)
    batch = byte_tokenizer(TEXTS[:1], return_tensors="pt")
    with torch.no_grad():
        logits = tiny_llama(**batch).logits
    calls = []

    def fail(*_):
        calls.append(1)
        if failure and len(calls) == 2:
            raise failure("in mid-run")

    handle = tiny_llama.model.layers[1].register_forward_hook(fail)
    before = state(tiny_llama)
    if failure:
        with pytest.raises(failure, match="in mid-run"):
            scored(tiny_llama, TEXTS, byte_tokenizer, batch_size=1)
    else:
        scored(tiny_llama, TEXTS, byte_tokenizer, baseline="gaussian")
    assert state(tiny_llama) == before
    handle.remove()
    with torch.no_grad():
        torch.testing.assert_close(tiny_llama(**batch).logits, logits, rtol=0, atol=0)


# Bad input


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([], ValueError, "data is empty"),
        ("one string", TypeError, "data is one str"),
        (["fine", "  \n"], ValueError, r"texts\[1\] is blank"),
        (["fine", 7], TypeError, r"texts\[1\] is int \(7\), expected str"),
        (5, TypeError, "data is one int"),
        ([{"labels": torch.ones(1, 3)}], ValueError, r"keys \['labels'\]"),
        (
            [{"input_ids": torch.tensor([[1, 999]])}],
            ValueError,
            "999, outside the model's vocabulary of 258",
        ),
        (
            [{"input_ids": torch.tensor([[1, -100]])}],
            ValueError,
            "-100, outside the model's vocabulary",
        ),
        (
            [
                {
                    "input_ids": torch.tensor([[1, 2], [3, 4]]),
                    "attention_mask": torch.tensor([[1, 1], [0, 0]]),
                }
            ],
            ValueError,
            "sample 1 has no real tokens",
        ),
    ],
)
def test_bad_data(tiny_llama, byte_tokenizer, data, error, message):
    with pytest.raises(error, match=message):
        scored(tiny_llama, data, byte_tokenizer)


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2"])
def test_texts_longer_than_the_model_has_positions(byte_tokenizer, kind):
    small = {"vocab_size": 258, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(
        kind, **small, intermediate_size=48, max_position_embeddings=16, pad_token_id=1
    )
    model, limit = AutoModel.from_config(config).eval(), 14 if kind == "roberta" else 16
    long = ["a text of more than sixteen bytes"]
    for measure in (plop.nfn_scores, plop.mean_split):
        with pytest.raises(
            ValueError, match=f"a text has 33 tokens, but .* positions for {limit}: pass max_length"
        ):
            measure(model, long, byte_tokenizer, progress=False)
        with pytest.raises(ValueError, match=f"a text has {limit + 1} tokens"):
            measure(model, long, byte_tokenizer, max_length=limit + 1, progress=False)
        assert (
            measure(model, long, byte_tokenizer, max_length=limit, progress=False)["tokens"].max()
            == limit
        )


def test_rotary_positions_have_no_limit(tiny_llama, byte_tokenizer):
    tiny_llama.config.max_position_embeddings = 16
    assert scored(tiny_llama, ["x" * 50], byte_tokenizer)["tokens"].eq(50).all()


def test_texts_without_tokenizer(tiny_llama):
    with pytest.raises(TypeError, match="tokenizer is missing"):
        plop.nfn_scores(tiny_llama, TEXTS, progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"max_length": 2.5}, "max_length=2.5"),
        ({"baseline": "median"}, "baseline='median' is unknown, choose one of"),
    ],
)
def test_bad_options(tiny_llama, byte_tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        scored(tiny_llama, TEXTS, byte_tokenizer, **options)


def test_model_without_linear_maps():
    with pytest.raises(ValueError, match="no linear maps"):
        plop.nfn_scores(nn.Sequential(nn.ReLU()), [{"input": torch.ones(1, 2, 3)}])
    with pytest.raises(TypeError, match="expected a torch.nn.Module"):
        plop.module_table("gpt2")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_weights_name_the_module(tiny_llama, byte_tokenizer, value):
    tiny_llama.model.layers[1].mlp.up_proj.weight.data[0, 0] = value
    with pytest.raises(
        ValueError, match=r"model\.layers\.1\.mlp\.up_proj.* NaN or infinite weights"
    ):
        scored(tiny_llama, TEXTS, byte_tokenizer)


def test_all_zero_weight_is_named_and_not_ranked(tiny_llama, byte_tokenizer):
    tiny_llama.model.layers[0].self_attn.v_proj.weight.data.zero_()
    with pytest.warns(
        UserWarning, match=r"1 all-zero weight.* \(model\.layers\.0\.self_attn\.v_proj\)"
    ):
        scores = scored(tiny_llama, TEXTS, byte_tokenizer)
    assert "model.layers.0.self_attn.v_proj" not in set(scores["module"]) and len(scores) == 4 * 13


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_activations_name_the_module(tiny_llama, byte_tokenizer, value):
    tiny_llama.model.layers[1].post_attention_layernorm.weight.data[3] = value
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.gate_proj.* non-finite score"):
        scored(tiny_llama, TEXTS, byte_tokenizer)
