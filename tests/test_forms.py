"""Scores of a function in another form: against copies, against numpy, and whatever was moved."""

import threading
import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

import plop_nb as plop
from plop_nb import inputs
from plop_nb.moves import canonical, fold_norms, mix_heads, move_gains, scale_neurons
from plop_nb.probing import norm_table
from plop_nb.wrappers import trunk_of
from tests.conftest import TEXTS
from tests.test_architectures import CANNOT_BUILD
from tests.test_moves import (
    ARCHITECTURES,
    assert_untouched,
    at_random,
    gap,
    gpt2,
    in_half,
    llama,
    moved_at_random,
    on_disk,
    on_meta,
    packed,
    shaken,
    state,
    tokens,
    with_adapters,
    without_tokens,
)
from tests.tiny_models import build, model_types, more_inputs

COPIES = {"folded": lambda model: fold_norms(model, strict=False), "canonical": canonical}
FORMS = [*COPIES]
# Types that one run on tokens does not tell about, with a part of the reason.
REFUSED = {
    "reformer": "returns another output each time",  # hashes at random
    **dict.fromkeys(
        """perceiver blip idefics pix2struct pp_formulanet udop vision-encoder-decoder""".split(),
        "pass batch",
    ),
}
# Their readers get a norm's output turned: (length, batch, features).
TURNED = {"fsmt"}


def scores(model, batches=None, **options):
    """NFN by sample and module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame = plop.nfn_scores(model, batches or [tokens()], progress=False, **options)
    return frame.set_index(["sample", "module"])["nfn"].sort_index()


def assert_equal(found, expected, rtol=1e-4):
    pd.testing.assert_series_equal(found, expected, rtol=rtol, atol=0, check_exact=False)


# Against copies, and by hand


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_scores_of_a_form_are_those_of_the_copy(model_type):
    """Padding in the batch, either baseline."""
    model = shaken(build(model_type))
    before = state(model)
    for form, copied in COPIES.items():
        other = copied(model)
        for baseline in ("gaussian", "rms"):
            found = scores(model, form=form, baseline=baseline)
            assert_equal(found, scores(other, baseline=baseline))
        is_other = ((found / scores(model) - 1).abs() > 1e-2).mean() > 0.1
        has_moved = form == "canonical" or norm_table(model)["free"].any()
        assert is_other == has_moved
    assert_untouched(model, before)


def nfn_by_hand(weight, inputs):
    """Mean of ||W z|| / (||z|| ||W||_F / sqrt(in)) over tokens, in numpy."""
    baseline = np.linalg.norm(weight) / np.sqrt(weight.shape[1])
    stretched = np.linalg.norm(inputs @ weight.T, axis=1) / np.linalg.norm(inputs, axis=1)
    return stretched.mean() / baseline


def test_folded_scores_of_a_llama_in_numpy():
    """Root mean squares and products of the residual stream, none of the package's functions."""
    model = llama(attention_bias=True)
    streams = {}
    names = ["input_layernorm", "post_attention_layernorm"]
    handles = []

    def note(key, _, args):
        streams[key] = args[0][0].double().numpy()

    for index, layer in enumerate(model.model.layers):
        for name in names:
            hook = partial(note, (index, name))
            handles.append(getattr(layer, name).register_forward_pre_hook(hook))
    batch = tokens(rows=2)
    batch = {name: value[:1] for name, value in batch.items()}
    with torch.no_grad():
        model(**batch)
    for handle in handles:
        handle.remove()
    found = scores(model, [batch], form="folded")[0]
    readers = {
        "input_layernorm": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        "post_attention_layernorm": ["mlp.gate_proj", "mlp.up_proj"],
    }
    for (index, name), x in streams.items():
        plain = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + model.config.rms_norm_eps)
        gain = model.model.layers[index].get_parameter(f"{name}.weight").detach().numpy()
        for reader in readers[name]:
            module = f"model.layers.{index}.{reader}"
            weight = model.get_parameter(f"{module}.weight").detach().double().numpy()
            assert found[module] == pytest.approx(nfn_by_hand(weight * gain, plain), rel=1e-5)


def test_folded_scores_of_a_gpt2_in_numpy():
    """LayerNorm's shift goes into the bias: it is no part of W z."""
    model = gpt2()
    batch = {name: value[:1] for name, value in tokens().items()}
    with torch.no_grad():
        x = model(**batch, output_hidden_states=True).hidden_states[1][0].double().numpy()
    x = x - x.mean(axis=1, keepdims=True)
    plain = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + model.config.layer_norm_epsilon)
    layer = model.transformer.h[1]
    weight = layer.attn.c_attn.weight.detach().double().numpy().T
    expected = nfn_by_hand(weight * layer.ln_1.weight.detach().numpy(), plain)
    found = scores(model, [batch], form="folded")[0]["transformer.h.1.attn.c_attn"]
    assert found == pytest.approx(expected, rel=1e-5)


def test_canonical_scores_of_values_and_outputs_in_numpy():
    """By the singular values of the whole product of a head, 32 x 32."""
    model = llama(num_key_value_heads=4)
    batch = {name: value[:1] for name, value in tokens().items()}
    attention = model.model.layers[0].self_attn
    seen = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, key=key: seen.update({key: args[0][0]}))
        for key, module in [("v", attention.v_proj), ("o", attention.o_proj)]
    ]
    with torch.no_grad():
        model(**batch)
    for hook in hooks:
        hook.remove()
    folded = fold_norms(model).model.layers[0].self_attn
    norm = model.model.layers[0].input_layernorm.weight.detach().double().numpy()
    z = seen["v"].double().numpy() / norm
    y = seen["o"].double().numpy()
    values, outputs = (m.weight.detach().double().numpy() for m in (folded.v_proj, folded.o_proj))
    features, inputs, square = [], [], 0
    for part in (slice(0, 8), slice(8, 16), slice(16, 24), slice(24, 32)):
        u, s, vt = np.linalg.svd(outputs[:, part] @ values[part])
        u, s, vt = u[:, :8], s[:8], vt[:8]
        features.append(z @ vt.T * np.sqrt(s))
        inputs.append(y[:, part] @ outputs[:, part].T @ u / np.sqrt(s))
        square += s.sum()  # the squares of sqrt(S) V^T add up to it, as do those of U sqrt(S)
    baseline = np.sqrt(square / 32)
    features, inputs = (np.concatenate(each, axis=1) for each in (features, inputs))
    expected_v = np.linalg.norm(features, axis=1) / np.linalg.norm(z, axis=1)
    expected_o = np.linalg.norm(y @ outputs.T, axis=1) / np.linalg.norm(inputs, axis=1)
    found = scores(model, [batch], form="canonical")[0]
    name = "model.layers.0.self_attn"
    assert found[f"{name}.v_proj"] == pytest.approx(expected_v.mean() / baseline, rel=1e-4)
    assert found[f"{name}.o_proj"] == pytest.approx(expected_o.mean() / baseline, rel=1e-4)


# The point of it: one function, one score


@pytest.mark.parametrize(
    "model_type",
    [
        "llama",
        "opt",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ["qwen2", "t5", "mbart", "gemma2", "gpt2", "phi", "bert", "stablelm", "mt5"]
        ),
    ],
)
def test_whatever_was_moved_canonical_scores_stay(model_type):
    """Grouped heads, biases on values, ReLUs, encoders and decoders."""
    model = shaken(build(model_type))
    expected = scores(model, form="canonical")
    moved = moved_at_random(model)
    assert ((scores(moved) / scores(model) - 1).abs() > 1e-2).any()  # the stored ones do not
    assert_equal(scores(moved, form="canonical"), expected)
    assert_equal(scores(canonical(moved)), expected)
    assert_equal(scores(canonical(canonical(model))), expected)


@pytest.mark.parametrize("seed", [1, 2])
def test_each_move_alone_changes_no_canonical_score(seed):
    model = llama(attention_bias=True)
    expected = scores(model, form="canonical")
    generator = torch.Generator().manual_seed(seed)
    gain = 10 ** (2 * torch.rand(32, generator=generator) - 1)
    factor = 10 ** (4 * torch.rand(48, generator=generator) - 2)
    matrix = torch.randn(2, 8, 8, generator=generator)
    for moved in (
        move_gains(model, {"model.layers.0.post_attention_layernorm": gain}),
        move_gains(model, {"model.layers.1.input_layernorm": -gain}),
        scale_neurons(model, {"model.layers.0.mlp.up_proj": factor}),
        mix_heads(model, {"model.layers.1.self_attn.v_proj": matrix}),
    ):
        assert gap(model, moved) < 1e-4
        assert_equal(scores(moved, form="canonical"), expected)


def test_folded_scores_do_not_see_gains_and_see_the_rest():
    model = llama()
    gains = {"model.layers.0.input_layernorm": torch.linspace(0.2, 3, 32)}
    expected = scores(model, form="folded")
    assert_equal(scores(move_gains(model, gains), form="folded"), expected)
    factor = {"model.layers.0.mlp.up_proj": torch.linspace(0.2, 3, 48)}
    change = (scores(scale_neurons(model, factor), form="folded") / expected - 1).abs()
    assert change.groupby("module").max().gt(1e-3).sum() == 2  # up and down of that layer


def test_a_gate_behind_a_relu_is_one_pair_in_both():
    model = llama(hidden_act="relu")
    assert_equal(scores(model, form="canonical"), scores(canonical(model)))


# Options


@pytest.mark.parametrize("form", FORMS)
def test_options_change_nothing_in_a_form(form, byte_tokenizer):
    model = llama(vocab_size=258)
    one = {"batch_size": 1, "form": form, "progress": False}
    expected = plop.nfn_scores(model, TEXTS, byte_tokenizer, **one)
    for options in ({"batch_size": 4}, {"batch_size": "auto"}, {"stop": 0.99, "k": 1}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # four texts are too few to decide
            found = plop.nfn_scores(model, TEXTS, byte_tokenizer, **{**one, **options})
        pd.testing.assert_frame_equal(found, expected, rtol=1e-4)


def test_a_form_has_its_own_partial_file(tmp_path, byte_tokenizer):
    model, path = llama(vocab_size=258), tmp_path / "scores.jsonl"
    some, options = {"partial": path, "form": "canonical"}, {"progress": False}
    plop.nfn_scores(model, TEXTS[:2], byte_tokenizer, **some, **options)
    resumed = plop.nfn_scores(model, TEXTS, byte_tokenizer, **some, **options)
    whole = plop.nfn_scores(model, TEXTS, byte_tokenizer, form="canonical", **options)
    pd.testing.assert_frame_equal(resumed, whole, rtol=1e-5)
    for form in ("stored", "folded"):
        with pytest.raises(ValueError, match=r"scores.jsonl"):
            plop.nfn_scores(model, TEXTS, byte_tokenizer, partial=path, form=form, **options)


def test_a_stored_file_does_not_go_on_in_another_form(tmp_path, byte_tokenizer):
    model, path = llama(vocab_size=258), tmp_path / "scores.jsonl"
    plop.nfn_scores(model, TEXTS[:2], byte_tokenizer, partial=path, progress=False)
    with pytest.raises(ValueError, match=r"scores.jsonl"):
        plop.nfn_scores(model, TEXTS, byte_tokenizer, partial=path, form="folded", progress=False)


def test_bfloat16_scores_of_a_form_are_those_of_float32():
    model = llama()
    for form in FORMS:
        expected = scores(model, form=form).groupby("module").mean()
        found = scores(llama().to(torch.bfloat16), form=form).groupby("module").mean()
        np.testing.assert_allclose(found, expected, rtol=0.02)


def test_some_tokens_only():
    """`score_mask` counts in a form as it does in the copy."""
    model, batch = llama(), tokens()
    batch["score_mask"] = batch["attention_mask"].clone()
    batch["score_mask"][:, :5] = 0
    for form, copied in COPIES.items():
        assert_equal(scores(model, [batch], form=form), scores(copied(model), [batch]))


def test_two_threads_score_at_once():
    model = llama()
    expected = {form: scores(model, form=form) for form in ("stored", *FORMS)}
    found, errors = {}, []

    def work(form):
        try:
            for _ in range(3):
                found[form] = scores(model, form=form)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(form,)) for form in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for form, series in expected.items():
        assert_equal(found[form], series, rtol=1e-6)


# What is refused, and what is told


def test_an_unknown_form_is_refused(byte_tokenizer):
    with pytest.raises(ValueError, match=r"form='canon' is unknown, choose one of .*'canonical'"):
        plop.nfn_scores(llama(), TEXTS, byte_tokenizer, form="canon", progress=False)


def test_what_stays_as_stored_is_told():
    model = shaken(build("bert"))
    with pytest.warns(
        UserWarning, match=r"4 norms, such as 'bert.embeddings.LayerNorm', feed more"
    ):
        found = plop.nfn_scores(model, [tokens()], form="folded", progress=False)
    assert_equal(found.set_index(["sample", "module"])["nfn"].sort_index(), scores(model))
    with pytest.warns(UserWarning, match=r"stacks of experts, such as .*, are scored as they are"):
        plop.nfn_scores(shaken(build("mixtral")), [tokens()], form="folded", progress=False)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (with_adapters, "has adapters"),
        (on_disk, "is offloaded"),
        (on_meta, "meta device"),
        (packed, "is quantised"),
        (in_half, "is float16"),
        (without_tokens, "reads no tokens"),
        (at_random, "returns another output"),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_models_that_have_no_other_form(made, message, form, tmp_path):
    model = made(tmp_path)
    with pytest.raises(ValueError, match=message):
        scores(model, form=form)
    assert not any(m._forward_hooks for m in model.modules())


def test_an_error_on_the_way_leaves_no_hook(monkeypatch):
    model = llama()
    before = state(model)

    def broken(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr("plop_nb.forms.baseline_gain", broken)
    with pytest.raises(RuntimeError, match="broken"):
        scores(model, form="canonical")
    assert_untouched(model, before)


# Every type of transformers


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_every_model_type(part):
    """Each builds the canonical copy, folded as well, or says why not; outputs and scores stay."""
    types = sorted(set(model_types()) - set(CANNOT_BUILD))[part::8]
    problems = {model_type: problem_of(model_type) for model_type in types}
    assert not {name: problem for name, problem in problems.items() if problem}
    assert list(problems.values()).count(None) > 0.8 * len(types)


def problem_of(model_type):
    """What goes wrong with a type; an empty text where it cannot be scored, or is refused."""
    try:
        model = shaken(build(model_type))
        batch = tokens(length=9)
        batch |= more_inputs(model_type, model.config, *batch.values())
        stored = scores(model, [batch])
    except Exception:  # `test_architectures` says why
        return ""
    if model_type in REFUSED:
        return refusal(model, batch, REFUSED[model_type])
    expected, other = last_states(model, batch), canonical(model)
    difference = (last_states(other, batch) - expected).abs().max() / expected.abs().max()
    if not difference < 1e-4:
        return f"outputs differ by {difference:.1e}"
    if model_type in TURNED:
        return refusal(model, batch, "laid out in another way")
    found = scores(model, [batch], form="canonical")
    if not found.index.equals(stored.index):
        return "scores are of other modules"
    difference = (found / scores(other, [batch]) - 1).abs().max()
    return None if difference < 1e-4 else f"scores differ by {difference:.1e}"


@torch.no_grad()
def last_states(model, batch):
    """What the trunk returns first, of the first text, which has no padding."""
    arguments = inputs.arguments(trunk_of(model), inputs.padded_to_multiple(trunk_of(model), batch))
    return trunk_of(model)(**arguments)[0][0]


def refusal(model, batch, reason):
    for form in FORMS:
        try:
            scores(model, [batch], form=form)
        except ValueError as error:
            if reason in str(error):
                continue
            return f"another reason: {error}"
        return f"{form} is not refused"
    return ""


# Real models


@pytest.mark.slow
def test_smollm_moves_and_chooses_other_types(smollm):
    """Logits stay, the order of the types does not: as first measured (8 GSM8K questions)."""
    model, tokenizer = smollm
    texts = plop.load_texts("math", n=8)
    inputs = tokenizer(texts[0], return_tensors="pt")
    means = {}
    with torch.no_grad():
        expected = model(**inputs).logits
    for form, copied in COPIES.items():
        other = copied(model)
        with torch.no_grad():
            difference = (other(**inputs).logits - expected).abs().max()
        assert difference < 1e-4 * expected.abs().max()
        found = plop.nfn_scores(model, texts, tokenizer, form=form, progress=False)
        same = plop.nfn_scores(other, texts, tokenizer, progress=False)
        pd.testing.assert_frame_equal(found, same, rtol=1e-4)
        means[form] = found.groupby("type")["nfn"].mean()
    stored = plop.nfn_scores(model, texts, tokenizer, progress=False)
    means["stored"] = stored.groupby("type")["nfn"].mean()
    types = ["v_proj", "up_proj", "down_proj", "o_proj", "gate_proj", "q_proj", "k_proj"]
    as_stored = [0.60, 0.94, 1.04, 1.17, 1.26, 1.37, 1.56]
    np.testing.assert_allclose(means["stored"][types], as_stored, rtol=0.02)
    as_folded = [0.57, 0.60, 1.04, 1.17, 0.81, 1.26, 1.44]
    np.testing.assert_allclose(means["folded"][types], as_folded, rtol=0.02)
    assert set(means["stored"].nsmallest(3).index) == {"v_proj", "up_proj", "down_proj"}
    for form in FORMS:
        assert set(means[form].nsmallest(3).index) == {"v_proj", "up_proj", "gate_proj"}
