"""Ranking, confidence, and adapters exactly on the chosen modules."""

import copy
import pickle
import re
import time
import warnings
from decimal import Decimal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

import plop_nb as plop
from plop_nb.placement import Placement
from plop_nb.stats import StoppingRule, confidence, lowest, per_text, swaps
from tests.tiny_models import build, more_inputs


def frame(values, types):
    """Scores of one module per type: `values` is samples x types."""
    samples, n = np.shape(values)
    return pd.DataFrame(
        {
            "sample": np.repeat(range(samples), n),
            "module": [f"{t}.0" for t in types] * samples,
            "type": list(types) * samples,
            "layer": 0,
            "tokens": 3,
            "nfn": np.ravel(values),
        }
    )


def test_by_type_is_the_mean_of_module_means():
    scores = pd.concat(
        [frame([[1.0, 2.0]], "ab"), frame([[3.0, 6.0]], "ab").assign(module=["a.1", "b.1"])]
    )
    types = plop.by_type(scores)
    assert types[["type", "nfn", "modules", "samples"]].values.tolist() == [
        ["a", 2.0, 2, 1],
        ["b", 4.0, 2, 1],
    ]
    assert types[["low", "high"]].isna().all(axis=None)  # one text says nothing about spread


def test_interval_is_that_of_a_mean():
    values = np.random.default_rng(0).normal(1, 0.1, (100, 1))
    row = plop.by_type(frame(values, "a")).iloc[0]
    half = 1.96 * values.std() / 10
    assert row["low"] == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert row["high"] == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_text_that_misses_a_module_does_not_count_for_it():
    scores = frame([[1.0, 2.0], [1.2, 2.0], [1.1, 4.0]], "ab").query(
        "not (sample == 2 and type == 'b')"
    )
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


def test_joined_frames_whose_samples_have_the_same_numbers():
    math, code = frame([[1.0, 2.0], [1.1, 2.1]], "ab"), frame([[3.0, 4.0]], "ab")
    for rank in (plop.by_type, plop.by_layer, plop.by_module, plop.place):
        with pytest.raises(
            ValueError, match="sample 0 of module 'a.0' twice: .*number their samples apart"
        ):
            rank(pd.concat([math, code]))
    apart = pd.concat([math, code.assign(sample=code["sample"] + 2)])
    assert plop.by_type(apart)["samples"].tolist() == [3, 3]


def test_names_chosen_by_hand_may_be_any_iterable():
    scores = frame([[1.0, 2.0, 3.0], [1.1, 2.1, 3.1]], "abc")
    for types in (["c", "a"], ("c", "a"), {"c", "a"}, np.array(["c", "a"]), (t for t in "ca")):
        assert plop.Placement.of_types(scores, types).types == ["a", "c"]
    assert plop.Placement.of_modules(scores, (m for m in ["b.0"])).modules == ["b.0"]
    for names in ([], iter([]), "a", None, 1):
        with pytest.raises(ValueError, match="types=.*expected a list of names"):
            plop.Placement.of_types(scores, names)
    with pytest.raises(ValueError, match="'d' is not a type in scores, choose from"):
        plop.Placement.of_types(scores, iter(["a", "d"]))


def test_names_are_looked_up_in_a_set_made_once():
    """1500 modules on 16 texts: 16 seconds where the set is made for each name."""
    modules = [f"layers.{i}.up" for i in range(1500)]
    scores = frame(np.arange(1, 17)[:, None] * np.ones(1500), modules).assign(type="up")
    start = time.perf_counter()
    plop.Placement.of_modules(scores, scores["module"].unique()[:750])
    assert time.perf_counter() - start < 3


def placement_of(model, types):
    """A placement on `types` of a model, whatever their scores."""
    table = plop.module_table(model).query("status == 'scored'")
    scores = table.assign(sample=0, tokens=1, nfn=np.where(table["type"].isin(types), 0.5, 1.5))
    return plop.place(scores, k=len(types))


def injected(model, config):
    return sorted(
        n
        for n, m in get_peft_model(model, config).base_model.model.named_modules()
        if isinstance(m, BaseTunerLayer)
    )


@pytest.fixture
def tiny_bert():
    return BertForMaskedLM(
        BertConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
        )
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
    assert injected(tiny_bert, config) == [
        "bert.encoder.layer.0.output.dense",
        "bert.encoder.layer.1.output.dense",
    ]


def test_lora_config_hits_exactly_gpt2_conv1d(tiny_gpt2):
    assert {"attn.c_proj", "mlp.c_proj"} <= set(plop.module_table(tiny_gpt2)["type"])
    placement = placement_of(tiny_gpt2, ["attn.c_proj"])
    config = placement.lora_config(tiny_gpt2, fan_in_fan_out=True)
    assert injected(tiny_gpt2, config) == [
        "transformer.h.0.attn.c_proj",
        "transformer.h.1.attn.c_proj",
    ]


def test_conv1d_is_scored_like_the_linear_it_is(tiny_gpt2):
    ids = torch.randint(0, 50, (2, 6), generator=torch.Generator().manual_seed(0))
    scores = plop.nfn_scores(tiny_gpt2, [{"input_ids": ids}], progress=False)
    fc = tiny_gpt2.transformer.h[1].mlp.c_fc
    seen = []
    handle = fc.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    tiny_gpt2(ids)
    handle.remove()
    weight = fc.weight.T
    ratio = (seen[0] @ weight.T).norm(dim=-1) / (
        seen[0].norm(dim=-1) * weight.norm() / weight.shape[1] ** 0.5
    )
    got = scores.query("module == 'transformer.h.1.mlp.c_fc'")["nfn"]
    np.testing.assert_allclose(got, ratio.mean(dim=1).detach(), rtol=1e-4)


def test_lora_config_leaves_the_model_alone(tiny_llama):
    before = {n: p.data_ptr() for n, p in tiny_llama.named_parameters()}
    placement_of(tiny_llama, ["q_proj"]).lora_config(tiny_llama)
    assert {n: p.data_ptr() for n, p in tiny_llama.named_parameters()} == before


def test_adapters_train_on_the_chosen_modules_only(tiny_llama):
    placement = placement_of(tiny_llama, ["o_proj"])
    adapted = get_peft_model(tiny_llama, placement.lora_config(tiny_llama, r=2))
    adapted(
        input_ids=torch.ones(1, 4, dtype=torch.long), labels=torch.ones(1, 4, dtype=torch.long)
    ).loss.backward()
    with_gradient = {n for n, p in adapted.named_parameters() if p.grad is not None}
    assert len(with_gradient) == 4 and all("o_proj.lora_" in n for n in with_gradient)


@pytest.mark.parametrize(
    ("model_type", "task"),
    [
        ("llava", "CAUSAL_LM"),
        ("qwen2_vl", "CAUSAL_LM"),
        ("voxtral", "CAUSAL_LM"),
        ("blip", None),
        ("mt5", "SEQ_2_SEQ_LM"),
        ("m2m_100", "SEQ_2_SEQ_LM"),
        ("bert", None),
    ],
)
def test_task_type_lets_the_adapted_model_run_and_generate(model_type, task):
    model = build(model_type)
    ids = torch.arange(5, 25).reshape(2, 10)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch |= more_inputs(model_type, model.config, ids, batch["attention_mask"])
    wanted = plop.module_table(model).query("status == 'scored'")["type"].iloc[-1]
    config = placement_of(model, [wanted]).lora_config(model, r=2)
    assert config.task_type == task
    adapted = get_peft_model(model, config)
    assert torch.isfinite(adapted(**batch, labels=ids).loss)
    if model.can_generate():
        assert adapted.generate(**batch, max_new_tokens=2).shape[0] == 2


def test_check_refuses_another_config(tiny_llama):
    placement = placement_of(tiny_llama, ["v_proj"])
    with pytest.raises(ValueError, match="misses 0 chosen modules .* adds 2 others .*q_proj"):
        placement.check(tiny_llama, LoraConfig(target_modules=["q_proj", "v_proj"]))
    placement.check(
        tiny_llama, LoraConfig(target_modules=["v_proj", "no_such_name"])
    )  # which PEFT does not mention
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
    assert "adapters on v_proj, up_proj (60 modules), confidence > 99.9%" in str(placement)
    assert "<" not in repr(placement) and "v_proj" in placement._repr_html_()
    assert (
        placement._repr_html_() == plop.place(math_scores, k=2)._repr_html_()
    )  # a notebook that runs again is equal
    assert "<table" in plop.place(math_scores, k=7)._repr_html_()
    assert "<table" in plop.by_type(math_scores)._repr_html_() and "<" not in repr(
        plop.by_type(math_scores)
    )


def test_placement_in_html_marks_the_chosen_and_escapes_names():
    spread = np.linspace(-0.01, 0.01, 9)[:, None]
    scores = frame(spread + [0.5, 1.0, 2.0, 4.0], ["<script>alert(1)</script>", "v", "a&b<i>", "q"])
    html = plop.place(scores, k=2)._repr_html_()
    assert "<script" not in html and "<i>" not in html
    assert html.count("&lt;script&gt;") == 2 and html.count("a&amp;b&lt;i&gt;") == 1
    bold = re.findall(r"([^{}]*){[^{}]*font-weight: bold", html)
    assert set(re.findall(r"_row(\d)_", "".join(bold))) == {"0", "1"} and html.count(">yes<") == 2
    assert [float(x) for x in re.findall(r"linear-gradient\(.*? ([\d.]+)%,", html)] == [
        12.5,
        25,
        50,
        100,
    ]


def test_two_placements_on_one_page_keep_their_styles_apart():
    scores = frame(np.linspace(-0.01, 0.01, 9)[:, None] + [0.5, 1.0, 2.0], "abc")
    ids = [
        re.search('table id="(.*?)"', plop.place(scores, k=k)._repr_html_())[1] for k in (1, 2, 3)
    ]
    assert len(set(ids)) == 3


def test_module_table(tiny_llama, tiny_bert):
    table = plop.module_table(tiny_llama)
    assert table.columns.tolist() == [
        "module",
        "type",
        "layer",
        "in_features",
        "out_features",
        "parameters",
        "status",
    ]
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
    assert [p.get_width() for p in ax.patches] == pytest.approx(
        plop.by_type(math_scores)["nfn"].tolist()
    )
    plt.close("all")
    heat = plop.plot_heatmap(math_scores)
    assert heat.collections[0].get_array().shape == (30, 7)
    with pytest.raises(ValueError, match="stack of layers"):
        plop.plot_heatmap(
            math_scores.assign(layer=pd.array([None] * len(math_scores), dtype="Int64"))
        )


# How sure


def test_per_text_keeps_the_mean_where_texts_miss_modules():
    """Experts that get no token of some text: the mean of per_text is that of by_type, its
    spread that of the means."""
    generator = np.random.default_rng(0)
    scores = frame(generator.normal(1, 0.1, (40, 2)), "ab")
    scores = pd.concat(
        [scores, frame(generator.normal(1, 0.1, (40, 2)), "ab").assign(module=["a.1", "b.1"] * 40)]
    )
    scores = scores[~((scores["module"] == "a.1") & (scores["sample"] % 2 == 1))]
    table = per_text(scores)
    by_hand = scores.groupby(["type", "module"])["nfn"].mean().groupby("type").mean()
    pd.testing.assert_series_equal(table.mean(), by_hand, check_names=False)
    halves = [scores.query("module == @m")["nfn"] for m in ("a.0", "a.1")]
    error = (
        np.sqrt(sum(h.var() / len(h) for h in halves)) / 2
    )  # of a mean of two independent means, 40 and 20 texts
    assert table["a"].std() / np.sqrt(40) == pytest.approx(error, rel=0.15)


def test_layers_and_modules_have_intervals_too(math_scores):
    layers, modules = plop.by_layer(math_scores), plop.by_module(math_scores)
    assert layers["layer"].tolist() == list(range(30)) and (layers["modules"] == 7).all()
    assert len(modules) == 210 and modules["nfn"].is_monotonic_increasing
    expected = math_scores.groupby("module")["nfn"].agg(["mean", "sem"]).loc[modules["module"]]
    np.testing.assert_allclose(modules["nfn"], expected["mean"])
    np.testing.assert_allclose(
        modules["high"] - modules["nfn"], 2.0395 * expected["sem"], rtol=1e-3
    )  # t, 31 d.o.f.


@pytest.mark.parametrize("texts", [3, 5, 10, 30])
@pytest.mark.parametrize("draw", ["normal", "skewed"])
def test_intervals_cover_at_their_rate(texts, draw):
    generator = np.random.default_rng(texts)
    values = (
        generator.normal(1, 0.2, (texts, 600))
        if draw == "normal"
        else generator.gamma(8, 1 / 8, (texts, 600))
    )
    types = plop.by_type(frame(values, [f"t{i}" for i in range(600)]))
    coverage = ((types["low"] <= 1) & (1 <= types["high"])).mean()
    assert 0.90 <= coverage <= 0.98
    assert draw == "skewed" or 0.925 <= coverage  # exact: 0.95, sampling error 0.009


@pytest.mark.slow
@pytest.mark.parametrize("texts", [4, 12])
def test_confidence_is_the_rate_at_which_it_is_right(texts):
    """Where it says 80 %, about 80 % of placements are right (a flat prior: gaps drawn as wide
    as can be)."""
    generator = np.random.default_rng(0)
    rows = []
    for _ in range(1500):
        truth = generator.uniform(0, 4, 3)
        values = pd.DataFrame(10 + truth + generator.normal(0, 1, (texts, 3)), columns=list("abc"))
        values = values.rename_axis(columns="type")  # what `place` makes of a frame of scores
        types = lowest(values, 1)
        rows.append((confidence(values, types), types == ["abc"[truth.argmin()]]))
    rows = pd.DataFrame(rows, columns=["said", "right"])
    bins = rows.groupby(pd.cut(rows["said"], [0, 0.6, 0.8, 0.95, 1]), observed=True).agg(
        ["mean", "size"]
    )
    error = np.sqrt(0.25 / bins["right", "size"])
    assert ((bins["said", "mean"] - bins["right", "mean"]).abs() < 3 * error).all(), bins


def test_swaps_are_paired_t_tests():
    from scipy.stats import ttest_rel

    generator = np.random.default_rng(1)
    values = (
        generator.normal(0, 1, (9, 1)) + generator.normal(0, 0.1, (9, 3)) + [10, 10.05, 10.4]
    )  # texts in common
    table = plop.place(frame(values, "abc"), k=1).swaps
    expected = [ttest_rel(values[:, 0], values[:, i], alternative="less").pvalue for i in (1, 2)]
    assert table["other"].tolist() == ["b", "c"] and table["probability"].tolist() == pytest.approx(
        expected
    )


@pytest.mark.slow
def test_stopping_rule_errs_no_more_than_it_says():
    """Skewed texts, gaps from none to clear: a wrong set in at most 5 % of runs at 95 %, and no
    wasted texts."""
    generator = np.random.default_rng(0)
    used = {}
    for gap in (0.0, 0.02, 0.2, 1.0):
        wrong = []
        for _ in range(400):
            values = pd.DataFrame(
                generator.gamma(4, 0.25, (256, 4)) + [1, 2, 2 + gap, 5], columns=list("abcd")
            )
            values, rule = values.rename_axis(columns="type"), StoppingRule(0.95, 2)
            while rule.next <= 256 and not (
                stopped := rule.decided(head := values.head(rule.next))
            ):
                pass
            wrong.append(stopped and lowest(head, 2) != ["a", "b"])
            used.setdefault(gap, []).append(len(head))
        assert np.mean(wrong) <= 0.05
    assert np.mean(used[1.0]) < 0.15 * np.mean(used[0.0]) and np.mean(used[0.0]) > 240
    assert min(min(u) for u in used.values()) >= 8


def test_stop_scores_a_few_texts_and_says_so(smollm, capsys):
    model, tokenizer = smollm
    texts = plop.load_texts("math", n=40)
    found = plop.nfn_scores(model, texts, tokenizer, stop=0.99)
    assert (
        capsys.readouterr().out
        == "the 3 lowest types are decided with confidence 99% after 8 texts\n"
    )
    positions = found["sample"].unique()
    assert len(positions) == 8 and max(positions) > 8  # drawn from all of them
    alone = plop.nfn_scores(model, [texts[positions[-1]]], tokenizer, progress=False)
    np.testing.assert_allclose(
        found.query("sample == @positions[-1]")["nfn"], alone["nfn"], rtol=1e-3
    )


def test_stop_on_a_tie_uses_all_texts_and_warns(tiny_llama, byte_tokenizer):
    for layer in tiny_llama.model.layers:  # two types that are the same map
        layer.mlp.up_proj.weight.data = layer.mlp.gate_proj.weight.data.clone()
    texts = [f"text number {i}, not like the others {i * i}" for i in range(20)]
    ranking = plop.by_type(plop.nfn_scores(tiny_llama, texts, byte_tokenizer, progress=False))[
        "type"
    ].tolist()
    k = 1 + min(ranking.index("gate_proj"), ranking.index("up_proj"))
    with pytest.warns(
        UserWarning,
        match="99% after all 20 texts: (gate|up)_proj and (gate|up)_proj are 0.000 apart",
    ):
        found = plop.nfn_scores(tiny_llama, texts, byte_tokenizer, stop=0.99, k=k, progress=False)
    assert found["sample"].nunique() == 20


def test_stop_takes_a_collators_batches_in_order(tiny_llama, byte_tokenizer):
    byte_tokenizer.pad_token = "!"
    texts = [[f"{i} {j} text" for j in range(3)] for i in range(20)]
    data = [dict(byte_tokenizer(part, padding=True, return_tensors="pt")) for part in texts]
    k = 7  # all types: nothing to decide
    found = plop.nfn_scores(tiny_llama, iter(data), stop=0.99, k=k, progress=False)
    assert found["sample"].unique().tolist() == list(range(9))  # the first look that 8 texts allow


def test_stop_with_a_finished_file_and_with_too_few_texts(
    tiny_llama, byte_tokenizer, tmp_path, capsys
):
    texts = [f"{i} text" for i in range(9)]

    def run(data):
        return plop.nfn_scores(
            tiny_llama, data, byte_tokenizer, stop=0.9, k=7, partial=tmp_path / "p.jsonl"
        )

    with pytest.warns(
        UserWarning, match="undecided at confidence 90% after all 3 texts: Score more texts"
    ):
        run(texts[:3])
    for _ in range(2):  # the second time nothing is left to run
        found = run(texts)
        assert "decided with confidence 90% after" in capsys.readouterr().out
        assert found["sample"].nunique() >= 8


@pytest.mark.parametrize("stop", [1.0, 0.2, 99, "0.99"])
def test_bad_stop(tiny_llama, byte_tokenizer, stop):
    with pytest.raises(ValueError, match="stop=.*expected a confidence from 0.5 to below 1"):
        plop.nfn_scores(tiny_llama, ["a text"], byte_tokenizer, stop=stop)


def test_score_mask_counts_only_some_tokens(tiny_llama, byte_tokenizer):
    """Equal to the difference of sums; the model still reads the other tokens."""
    ids = byte_tokenizer("a text of some length", return_tensors="pt")["input_ids"]
    whole = plop.nfn_scores(tiny_llama, [{"input_ids": ids}], progress=False)
    first = (torch.arange(ids.shape[1])[None] < 4).long()
    masked = [{"input_ids": ids, "score_mask": mask} for mask in (first, 1 - first)]
    parts = [plop.nfn_scores(tiny_llama, [one], progress=False) for one in masked]
    assert parts[0]["tokens"].eq(4).all() and parts[1]["tokens"].eq(ids.shape[1] - 4).all()
    together = sum(part["nfn"] * part["tokens"] for part in parts) / whole["tokens"]
    np.testing.assert_allclose(together, whole["nfn"], rtol=1e-5)
    with pytest.raises(ValueError, match="no real tokens"):
        plop.nfn_scores(
            tiny_llama,
            [{"input_ids": ids, "score_mask": 0 * first}, {"input_ids": ids}],
            progress=False,
        )


def test_notes_name_what_is_wrong():
    noise = np.random.default_rng(0).normal(0, 0.02, (16, 4))
    assert plop.place(frame(noise + [1, 2, 3, 4], "abcd"), k=2).notes == []
    near_one = plop.place(frame(noise + [0.97, 0.99, 1.02, 1.05], "abcd"), k=2)
    assert near_one.notes[0].startswith("all scores near 1 (0.9") and "all scores near 1" in repr(
        near_one
    )
    tie = plop.place(frame(noise + [1, 2, 2, 4], "abcd"), k=2)
    assert (
        tie.notes[0].startswith("ranking undecided: ") and "ranking undecided" in tie._repr_html_()
    )
    few = plop.place(frame(noise[:3] + [1, 2, 3, 4], "abcd"), k=2)
    assert few.notes == ["too few texts (3) to know how sure k=2 is: score at least 8"]


# Modules that few texts reach


def reached_by(counts, types, generator, texts=64):
    """Scores around 100; each type has one module for each count, reached by so many texts."""
    parts = []
    for module, count in enumerate(counts):
        who = generator.random((types, texts)).argsort(axis=1)[:, :count]
        names = [f"t{i}" for i in range(types)]
        part = pd.DataFrame({"type": np.repeat(names, count), "sample": who.ravel()})
        parts.append(part.assign(module=part["type"] + f".{module}"))
    scores = pd.concat(parts, ignore_index=True).assign(layer=0)
    return scores.assign(nfn=100 + generator.normal(0, 1, len(scores)))


@pytest.mark.parametrize(
    "counts",
    [[3], [8], [20], [64], [3, 8, 20], [64, 64, 64, 3], [2] * 8],
    ids=lambda counts: "-".join(map(str, counts)),
)
def test_intervals_cover_where_few_texts_reach_a_module(counts):
    """Of 64 texts. A spread over all 64 covers 73 % for a module that 3 have reached."""
    scores = reached_by(counts, 500, np.random.default_rng(0))
    types = plop.by_type(scores)
    coverage = ((types["low"] <= 100) & (100 <= types["high"])).mean()
    assert 0.92 <= coverage <= 0.98  # sampling error 0.01
    assert set(types["samples"]) == {max(counts)} or len(counts) > 1


def test_module_reached_by_one_text_has_no_interval():
    scores = frame(np.random.default_rng(0).normal([1, 2, 3], 0.1, (64, 3)), "abc")
    scores = scores[(scores["type"] != "b") | (scores["sample"] == 5)]
    types = plop.by_type(scores).set_index("type")
    assert types["samples"].to_dict() == {"a": 64, "b": 1, "c": 64}
    assert types.loc["b", ["low", "high"]].isna().all()
    assert types.loc[["a", "c"], ["low", "high"]].notna().all(axis=None)
    table = per_text(scores)
    assert table["b"].count() == 1 and table["b"].mean() == types.loc["b", "nfn"]


def test_expert_reached_by_one_text_spreads_like_the_others_of_its_type():
    """Its own text shows no spread, yet its mean is as uncertain as any single score."""
    scores = reached_by([1] * 4 + [20] * 4, 200, np.random.default_rng(0))
    types = plop.by_type(scores)
    assert ((types["low"] <= 100) & (100 <= types["high"])).mean() > 0.93


def test_placement_on_a_type_that_one_text_reaches_is_not_sure():
    noise = np.random.default_rng(0).normal(0, 0.1, (64, 3))
    scores = frame(noise + [1, 2, 3], "abc")
    placement = plop.place(scores[(scores["type"] != "a") | (scores["sample"] == 5)], k=1)
    assert placement.types == ["a"] and np.isnan(placement.confidence)
    assert placement.notes == [
        "a rests on modules that few texts reach (they tell as much as 1 of 64): score more texts"
    ]
    assert "nan%" not in repr(placement) + placement._repr_html_()


def test_notes_name_decisive_types_that_few_texts_reach():
    noise = np.random.default_rng(0).normal(0, 0.1, (64, 3))
    scores = frame(noise + [1, 1.05, 9], "abc")
    few = scores[(scores["type"] != "b") | (scores["sample"] < 3)]
    assert any(note.startswith("b rests on modules") for note in plop.place(few, k=1).notes)
    far = scores[(scores["type"] != "c") | (scores["sample"] < 5)]
    assert not any("rests on" in note for note in plop.place(far, k=1).notes)  # decides nothing


@pytest.mark.slow
def test_confidence_is_the_rate_at_which_it_is_right_with_experts():
    """Experts that three of ten texts reach: where it says 90 %, about 90 % are right or more."""
    generator = np.random.default_rng(0)
    rows = []
    for _ in range(300):
        truth = dict(zip("abc", generator.uniform(0, 2, 3), strict=True))
        scores = reached_by([5] * 4, 3, generator, texts=16)
        scores["type"] = scores["type"].map(dict(zip(["t0", "t1", "t2"], "abc", strict=True)))
        scores["nfn"] += scores["type"].map(truth)
        types = lowest(scores, 1)
        rows.append((confidence(scores, types), types == [min(truth, key=truth.get)]))
    rows = pd.DataFrame(rows, columns=["said", "right"])
    bins = rows.groupby(pd.cut(rows["said"], [0, 0.7, 0.9, 1]), observed=True).agg(["mean", "size"])
    error = np.sqrt(0.25 / bins["right", "size"])
    assert (bins["right", "mean"] > bins["said", "mean"] - 2.5 * error).all(), bins


@pytest.mark.slow
@pytest.mark.parametrize("case", ["experts", "copies"])
def test_stopping_rule_errs_no_more_than_it_says_with(case):
    """Without regard to either it is wrong in 30 % (experts) and 40 % (copies) of such runs."""
    generator = np.random.default_rng(0)
    wrong = []
    for _ in range(150):
        values = 100 + generator.normal(0, 1, (128, 12)) + np.repeat([0, 0.03, 20], 4)
        scores = frame(values, [f"{t}.{i}" for t in "abc" for i in range(4)])
        scores["type"] = scores["type"].str[0]
        if case == "experts":
            scores = scores[generator.random(len(scores)) < 0.1]
        else:  # the first of each 8
            scores["nfn"] = frame(values[np.arange(128) // 8 * 8], range(12))["nfn"]
        rule, stopped = StoppingRule(0.95, 1), False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            while rule.next <= 128 and not stopped:
                seen = scores[scores["sample"] < rule.next]
                stopped = rule.decided(seen)
        wrong.append(stopped and lowest(seen, 1) != ["a"])
    assert np.mean(wrong) <= 0.05


# Copies of texts


def test_copies_of_a_text_count_once():
    few = frame([[1.0, 2.0], [1.3, 2.1]], "ab")
    more = [few.assign(sample=few["sample"] + 2 * i) for i in range(8)]
    with pytest.warns(UserWarning, match="14 of 16 samples are copies of others") as caught:
        types = plop.by_type(pd.concat(more))
    assert caught[0].filename == __file__  # where the call is
    pd.testing.assert_frame_equal(types, plop.by_type(few))
    with pytest.warns(UserWarning, match="14 of 16 samples are copies") as caught:
        placement = plop.place(pd.concat(more), k=1)
    assert len(caught) == 1
    assert placement.confidence == plop.place(few, k=1).confidence < 1
    assert placement.notes[0] == "14 of 16 texts are copies of others: each counts once"


def test_copies_of_one_text_decide_nothing():
    copies = frame([[1.0, 2.0, 3.0]] * 8, "abc")
    rule = StoppingRule(0.9, 1)
    with pytest.warns(UserWarning, match="7 of 8 samples are copies"):
        assert not rule.decided(copies)
    with pytest.warns(UserWarning, match="7 of 8 samples are copies"):
        placement = plop.place(copies, k=1)
    assert np.isnan(placement.confidence)
    assert placement.notes[-1].startswith("too few texts (1)")


def test_texts_that_differ_in_one_module_are_no_copies():
    values = np.ones((9, 3))
    values[:, 2] += np.arange(9)
    assert plop.by_type(frame(values, "abc"))["samples"].tolist() == [9, 9, 9]  # no warning


# Frames as they may come


@pytest.mark.parametrize("column", ["sample", "module", "type"])
def test_missing_names_are_refused(column):
    scores = frame([[1.0, 2.0], [1.1, 2.1]], "ab")
    scores[column] = scores[column].astype(object)
    scores.loc[1, column] = None
    with pytest.raises(ValueError, match=rf"scores holds no {column} \(NaN\) in 1 rows"):
        plop.by_type(scores)


def test_zero_is_no_score():
    scores = frame([[1.0, 2.0], [0.0, 0.0]], "ab")
    with pytest.raises(ValueError, match=r"nfn=0.0 for module 'a.0' on sample 1.*rows out \(2\)"):
        plop.place(scores, k=1)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.assign(nfn=s["nfn"].astype(object)),
        lambda s: s.assign(nfn=s["nfn"].map(str)),
        lambda s: s.assign(nfn=[Decimal(str(x)) for x in s["nfn"]]),
        lambda s: s.assign(nfn=s["nfn"].astype("Float64")),
        lambda s: s.astype({"module": "category", "type": "category", "sample": "category"}),
        lambda s: s.assign(type=pd.Categorical(s["type"], ["z", "b", "a"])),
        lambda s: s.astype({"sample": "Int64", "layer": "Int64"}),
        lambda s: s.convert_dtypes(),
        lambda s: s.set_index(np.zeros(len(s), dtype=int)),
        lambda s: s.sample(frac=1, random_state=0),
    ],
    ids="object strings decimal Float64 category unused Int64 converted index order".split(),
)
def test_other_dtypes_give_the_same(change):
    scores = frame([[1.5, 1.0], [1.625, 1.25], [1.75, 1.125]], "ab")
    for rank in (plop.by_type, plop.by_module, plop.by_layer):
        found = rank(change(scores))
        pd.testing.assert_frame_equal(found.astype(rank(scores).dtypes), rank(scores))
    placement = plop.place(change(scores), k=1)
    assert placement == plop.place(scores, k=1) and placement.types == ["b"]


@pytest.mark.parametrize(
    "values",
    [
        pd.Series(["1.0", "x"]),
        pd.Series([1.0, [2.0]], dtype=object),
        pd.Series([1.0, None], dtype=object),
        pd.Series([1.0, pd.NA], dtype="Float64"),
        pd.Series([1, 2j]),
        pd.Series([True, True]),
        pd.Series(pd.to_datetime(["2020", "2021"])),
    ],
    ids="text list None NA complex bool dates".split(),
)
def test_what_is_no_number_is_refused(values):
    scores = frame([[1.0, 2.0]], "ab").assign(nfn=values)
    with pytest.raises(ValueError, match="scores holds (no numbers|nfn=nan)"):
        plop.by_type(scores)


def test_module_of_two_types_is_refused():
    scores = pd.concat([frame([[1.0]], "a"), frame([[2.0]], "b").assign(module="a.0", sample=1)])
    with pytest.raises(ValueError, match=r"module 'a.0' with the types \['a', 'b'\]"):
        plop.by_type(scores)


def test_names_that_a_file_made_numbers_are_refused():
    scores = frame([[1.0, 2.0]], "ab").assign(type=[0, 2])
    with pytest.raises(ValueError, match="the name 0 of a module or type, expected text"):
        plop.place(scores, k=1)


def test_column_that_is_there_twice_is_named():
    scores = frame([[1.0, 2.0]], "ab")
    with pytest.raises(ValueError, match="scores holds the column 'nfn' twice"):
        plop.by_type(pd.concat([scores, scores[["nfn"]]], axis=1))


def test_frame_whose_columns_are_called_type_is_a_frame():
    scores = frame([[1.0, 2.0], [1.1, 2.1]], "ab")
    named = scores.rename_axis(columns="type")
    pd.testing.assert_frame_equal(plop.by_type(named), plop.by_type(scores))


def test_columns_are_named_where_they_are_missing():
    scores = frame([[1.0, 2.0]], "ab").drop(columns="layer")
    for rank in (plop.by_layer, plop.by_module, plop.plot_heatmap):
        with pytest.raises(ValueError, match=r"scores lacks the columns \['layer'\]"):
            rank(scores)


def test_confidence_and_swaps_name_a_type_that_is_none():
    scores = frame([[1.0, 2.0], [1.1, 2.1]], ["up", "down"])
    for ask in (confidence, swaps):
        with pytest.raises(ValueError, match="'u' is not a type in scores, choose from"):
            ask(scores, ["u"])
        assert str(ask(scores, "up")) == str(ask(scores, ["up"]))
    with pytest.raises(ValueError, match="seed=-1, expected an integer"):
        confidence(scores, ["up"], seed=-1)


# Placements as objects


def test_placements_are_equal_where_adapters_go_on_the_same_modules():
    scores = frame([[1.0, 2.0, 3.0], [1.1, 2.1, 3.2]], "abc")
    placement, by_hand = plop.place(scores, k=2), plop.Placement.of_types(scores, ["b", "a"])
    assert placement == by_hand and placement != plop.place(scores, k=1) and placement != "a"
    for twin in (copy.copy(placement), copy.deepcopy(placement)):
        assert twin == placement
    back = pickle.loads(pickle.dumps(placement))
    assert back == placement and repr(back) == repr(placement)
    with pytest.raises(TypeError, match="unhashable"):
        hash(placement)


def sized(scores):
    return scores.assign(in_features=4, out_features=4, experts=1)


@pytest.mark.parametrize(
    "parameters", ["100", float("nan"), float("inf"), True, np.array([100]), 0, -1, [100]]
)
def test_budget_that_is_no_number_is_refused(parameters):
    scores = sized(frame([[1.0, 2.0, 3.0]], "abc"))
    with pytest.raises(ValueError, match=re.escape(f"parameters={parameters!r}, expected a posit")):
        plop.place(scores, parameters=parameters, r=2)


def test_budget_may_be_a_float():
    scores = sized(frame([[1.0, 2.0, 3.0]], "abc"))
    assert plop.place(scores, parameters=3.2e1, r=2).types == ["a", "b"]


@pytest.mark.parametrize("r", [0, -1, 2.5, True, "2"])
def test_rank_is_checked_by_every_entry(r):
    scores = sized(frame([[1.0, 2.0, 3.0]], "abc"))
    message = re.escape(f"r={r!r}, expected an integer of at least 1")
    for options in ({"k": 1}, {"parameters": 100}):
        with pytest.raises(ValueError, match=message):
            plop.place(scores, **options, r=r)
    with pytest.raises(ValueError, match=message):
        plop.explore(scores, k=1, r=r)


def test_budget_names_a_shape_that_is_missing():
    scores = sized(frame([[1.0, 2.0]], "ab"))
    scores["in_features"] = [4, None]
    with pytest.raises(ValueError, match="in_features=nan for module 'b.0'"):
        plop.place(scores, parameters=100, r=1)


def experts_of(stacks, count, seen):
    """Scores of stacks of experts, of which the first ones are `seen`."""
    names = [f"{stack}.{i}" for stack in stacks for i in range(seen)]
    values = np.random.default_rng(0).uniform(1, 2, (9, len(names)))
    scores = frame(values, names).assign(module=names * 9, in_features=4, out_features=4)
    return scores.assign(type=scores["module"].str.split(".").str[0], experts=count)


def test_one_expert_by_hand_brings_its_stack_and_says_so():
    placement = plop.Placement.of_modules(experts_of(["up", "down"], 4, 3), ["up.1"])
    assert placement.modules == ["up.0", "up.1", "up.2", "up.3"]
    assert placement.notes[1] == (
        "PEFT adapts a stack of experts as one: 2 experts that were not chosen come with those "
        "that were, such as up.0"
    )
    whole = plop.Placement.of_types(experts_of(["up", "down"], 4, 3), ["up"])
    assert whole == placement and whole.notes == ["chosen by hand"]


def test_placement_names_experts_that_no_text_has_reached():
    placement = plop.place(experts_of(["up"], 4, 2), k=1)
    assert placement.modules == ["up.0", "up.1", "up.2", "up.3"]


def test_html_escapes_notes_and_captions():
    scores = frame(np.random.default_rng(0).normal([1, 1], 0.1, (9, 2)), ["<b>", "a&<i>"])
    html = plop.place(scores, k=1)._repr_html_()
    assert "ranking undecided" in html
    assert not re.search("<b>|<i>", html)


# Pictures


def test_plots_name_what_they_cannot_draw():
    scores = frame([[1.0, 2.0, 3.0], [1.1, 2.1, 3.2]], "abc")
    placement = plop.place(scores, k=1)
    other = frame([[1.0, 2.0, 3.0], [1.1, 2.1, 3.2]], "xyz")
    for plot in (plop.plot_types, plop.plot_heatmap):
        with pytest.raises(TypeError, match="placement is list, expected a Placement"):
            plot(scores, placement=["a"])
        with pytest.raises(ValueError, match="placement .*scores of the same model"):
            plot(other, placement=placement)
        with pytest.raises(ValueError, match="scores is an empty frame"):
            plot(scores.head(0))
        with pytest.raises(ValueError, match="nfn=nan for module 'b.0'"):
            plot(scores.assign(nfn=scores["nfn"].where(scores["type"] != "b")))
    with pytest.raises(ValueError, match="chosen names modules that scores lacks, such as 'no'"):
        plop.plot_heatmap(scores, chosen="no")
    for k in (0, "2", 1.5):
        with pytest.raises(ValueError, match=f"k={k!r}, expected an integer of at least 1"):
            plop.plot_types(scores, k=k)
    plt.close("all")


def test_axis_of_plot_types_names_the_level_as_given():
    scores = frame([[1.0, 2.0], [1.1, 2.1]], "ab")
    ax = plop.plot_types(scores, level=0.995, ax=plt.figure().subplots())
    assert "99.5% interval over 2 texts" in ax.get_xlabel()
    plt.close("all")


def test_rounded_scores_and_other_lengths_are_no_copies(recwarn):
    rounded = frame(np.random.default_rng(0).normal(1, 0.1, (200, 1)).round(2), ["a"])
    assert plop.by_type(rounded)["samples"].tolist() == [200]
    same = frame(np.full((4, 2), 1.5), ["a", "b"]).assign(tokens=lambda t: t["sample"] + 1)
    assert plop.by_type(same)["samples"].tolist() == [4, 4]
    assert not recwarn.list


@pytest.mark.slow
def test_intervals_cover_where_most_modules_are_reached_by_a_single_text():
    """Each of 16 texts, which differ much from each other, reaches one of 60 experts."""
    generator, covered = np.random.default_rng(0), []
    for _ in range(500):
        effects = generator.normal(0, 1, 16)
        experts = generator.integers(60, size=16)
        rows = []
        for sample, (effect, expert) in enumerate(zip(effects, experts, strict=True)):
            nfn = 100 + effect + generator.normal(0, 0.3)
            rows.append({"sample": sample, "module": f"e.{expert}", "type": "e", "nfn": nfn})
            rows.append({"sample": sample, "module": "a", "type": "a", "nfn": 50 + sample / 100})
        low, high = plop.by_type(pd.DataFrame(rows)).set_index("type").loc["e", ["low", "high"]]
        if np.isfinite(low):  # else no expert has two texts, and no spread is known
            covered.append(low <= 100 <= high)
    assert len(covered) > 400
    assert 0.91 <= np.mean(covered) <= 0.98


def test_a_type_chosen_by_hand_needs_no_shapes():
    scores = frame(np.random.default_rng(0).normal(1, 0.1, (8, 2)), ["a", "b"]).assign(experts=1)
    assert plop.Placement.of_types(scores, ["a"]).types == ["a"]


def test_heatmap_takes_any_list_of_modules():
    scores = frame(np.random.default_rng(0).normal(1, 0.1, (8, 2)), ["a", "b"]).assign(layer=0)
    figure = plop.plot_heatmap(scores, chosen=scores["module"][:2])
    assert figure is not None


def test_copies_count_once_whatever_their_last_digits():
    """The same text in a batch of another length differs by the rounding of float32."""
    generator = np.random.default_rng(0)
    values = generator.normal(1, 0.1, (12, 6))
    noisy = np.repeat(values, 8, axis=0) * (1 + generator.normal(0, 3e-7, (96, 6)))
    with pytest.warns(UserWarning, match="84 of 96 samples are copies"):
        found = plop.by_type(frame(noisy, list("abcdef")))
    expected = plop.by_type(frame(values, list("abcdef")))
    columns = ["nfn", "low", "high"]
    np.testing.assert_allclose(found[columns], expected[columns], rtol=1e-5)


@pytest.mark.parametrize(
    ("confidence", "told"),
    [(1.0, "> 99.9%"), (0.9991, "> 99.9%"), (0.996, "> 99%"), (0.994, "99%"), (0.5, "50%")],
)
def test_no_confidence_is_rounded_up_to_certainty(confidence, told):
    placement = Placement(["a"], ["layers.0.a"], confidence=confidence, ranking=None)
    assert placement.certainty == f"confidence {told}"
    assert told in str(placement)
