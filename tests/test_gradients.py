"""Gradients of the completion loss by map, and what theory says that LoRA gains from them."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM

import plop_nb as plop
from plop_nb.experiments import Task
from plop_nb.experiments.gradients import (
    adaptable_maps,
    completion_gradients,
    weight_gradients,
)
from tests.toy_task import digits, toy_task

EXAMPLES = 6


@pytest.fixture
def task():
    """Of unlike lengths, prompts and completions."""
    train = [{"prompt": "p" * i, "completion": " " + "ab" * (7 - i)} for i in range(1, 7)]
    return Task("uneven", train + digits(20), digits(2), digits(2))


@pytest.fixture
def tokenizer(byte_tokenizer):
    byte_tokenizer.add_special_tokens({"eos_token": "<end>"})
    return byte_tokenizer


def by_hand(model, task, tokenizer, number):
    """{parameter: gradient}, one unpadded example at a time, weighted by completion tokens."""
    total, tokens = 0, 0
    for example in task.train[:number]:
        prompt, answer = (tokenizer(example[k])["input_ids"] for k in ("prompt", "completion"))
        ids = [*prompt, *answer, tokenizer.eos_token_id]
        logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        for position in range(len(prompt), len(ids)):
            total = total - logs[position - 1, ids[position]]
            tokens += 1
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(total / tokens, parameters, allow_unused=True)
    return dict(zip(names, gradients, strict=True))


def test_gradients_are_those_of_one_example_at_a_time(tiny_llama, tokenizer, task):
    truth = by_hand(tiny_llama, task, tokenizer, EXAMPLES)
    found = weight_gradients(tiny_llama, task, tokenizer, examples=EXAMPLES)
    table = completion_gradients(tiny_llama, task, tokenizer, examples=EXAMPLES)
    listed = plop.module_table(tiny_llama).query("status == 'scored'")
    assert table["module"].tolist() == listed["module"].tolist() == list(found)
    shared = ["type", "layer", "in_features", "out_features"]
    assert table[shared].to_numpy().tolist() == listed[shared].to_numpy().tolist()
    for row in table.itertuples():
        gradient = truth[f"{row.module}.weight"].numpy()
        np.testing.assert_allclose(found[row.module], gradient, rtol=1e-4, atol=1e-6)
        assert row.l1 == pytest.approx(np.abs(gradient).sum(), rel=1e-4)
        assert row.frobenius == pytest.approx(np.linalg.norm(gradient), rel=1e-4)
        rows = sum(np.linalg.norm(line) for line in gradient)
        assert row.row_norms == pytest.approx(rows, rel=1e-4)


def test_batches_add_up(tiny_llama, tokenizer, task, monkeypatch):
    """One batch, or one for nearly every example."""
    one = weight_gradients(tiny_llama, task, tokenizer, examples=EXAMPLES)
    monkeypatch.setattr("plop_nb.experiments.gradients.TOKENS", 20)
    many = weight_gradients(tiny_llama, task, tokenizer, examples=EXAMPLES)
    for name, gradient in one.items():
        torch.testing.assert_close(many[name], gradient, rtol=1e-4, atol=1e-6)


def test_turned_weights_have_the_gradient_of_w(tokenizer, task):
    """GPT-2 stores W as (in, out)."""
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 258, "n_positions": 64}
    model = GPT2LMHeadModel(GPT2Config(**sizes)).eval()
    truth = by_hand(model, task, tokenizer, EXAMPLES)
    found = weight_gradients(model, task, tokenizer, examples=EXAMPLES)
    assert len(found) == 4
    for name, gradient in found.items():
        expected = truth[f"{name}.weight"].T
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
    table = completion_gradients(model, task, tokenizer, examples=EXAMPLES).set_index("module")
    widest = table.loc["transformer.h.0.attn.c_attn"]
    assert (widest["in_features"], widest["out_features"]) == (16, 48)


@pytest.mark.parametrize("frozen", [True, False])
def test_the_model_stays_as_it_is(tiny_llama, tokenizer, task, frozen):
    """Flags, gradients, training mode and weights, also after an error, and without gradients."""
    tiny_llama.train().requires_grad_(not frozen)
    tiny_llama.lm_head.weight.grad = torch.ones_like(tiny_llama.lm_head.weight)
    before = copy.deepcopy(tiny_llama.state_dict())

    def check():
        for name, parameter in tiny_llama.named_parameters():
            assert parameter.requires_grad is not frozen
            assert (parameter.grad is None) == (name != "lm_head.weight")
            assert torch.equal(parameter, before[name])
        assert torch.equal(
            tiny_llama.lm_head.weight.grad, torch.ones_like(tiny_llama.lm_head.weight)
        )
        assert all(module.training for module in tiny_llama.modules())

    usual = completion_gradients(tiny_llama, task, tokenizer, examples=EXAMPLES)
    check()
    with torch.inference_mode():
        again = completion_gradients(tiny_llama, task, tokenizer, examples=EXAMPLES)
    assert again.equals(usual)
    handle = tiny_llama.lm_head.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        completion_gradients(tiny_llama, task, tokenizer, examples=EXAMPLES)
    handle.remove()
    check()


def test_bfloat16_weights_give_nearly_the_same(tiny_llama, tokenizer, task):
    full = completion_gradients(tiny_llama, task, tokenizer, examples=EXAMPLES)
    half = copy.deepcopy(tiny_llama).to(torch.bfloat16)
    found = weight_gradients(half, task, tokenizer, examples=EXAMPLES)
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    table = completion_gradients(half, task, tokenizer, examples=EXAMPLES)
    np.testing.assert_allclose(table["frobenius"], full["frobenius"], rtol=0.1)


def first_order(gradient, r, draws=300):
    """Mean of ||G A^T||_1 / r over many starts that PEFT draws."""
    rows, columns = gradient.shape
    layer = torch.nn.Sequential(torch.nn.Linear(columns, rows, bias=False))
    adapted = get_peft_model(layer, LoraConfig(r=r, target_modules=["0"])).base_model.model[0]
    start = adapted.lora_A["default"].weight.detach()
    total = 0
    for _ in range(draws):
        adapted.reset_lora_parameters("default", True)
        total += (gradient @ start.T).abs().sum().item() / r
    return total / draws


def test_the_expected_gain_is_that_of_many_starts(tiny_llama, tokenizer, task):
    """Of real gradients, whatever the rank: up to 8.5 % more, as few inputs dominate them."""
    gradients = weight_gradients(tiny_llama, task, tokenizer, examples=EXAMPLES)
    table = completion_gradients(tiny_llama, task, tokenizer, examples=EXAMPLES)
    first = table[table["layer"] == 0].set_index("module")
    torch.manual_seed(0)
    for name, expected in first["first_order_gain"].items():
        for r in (8, 32):
            ratio = first_order(gradients[name], r) / expected
            assert 0.96 < ratio < 1.085 * 1.04, name


def test_the_constant_is_exact_for_noise(tiny_llama, tokenizer, task, monkeypatch):
    """Where no input dominates, an entry of G A^T is Gaussian."""
    torch.manual_seed(0)
    noise = {m.name: torch.randn(m.shape) for m in adaptable_maps(tiny_llama)}
    replaced = "plop_nb.experiments.gradients.weight_gradients"
    monkeypatch.setattr(replaced, lambda *_, **__: noise)
    table = completion_gradients(tiny_llama, task, tokenizer).set_index("module")
    for name, expected in table["first_order_gain"].items():
        assert first_order(noise[name], 8) == pytest.approx(expected, rel=0.02), name


def test_bad_input_is_named(tiny_llama, tokenizer, task):
    for number, word in [(0, "examples=0"), (27, "26 training examples"), (2.5, "2.5")]:
        with pytest.raises(ValueError, match=word):
            completion_gradients(tiny_llama, task, tokenizer, examples=number)
    with pytest.raises(TypeError, match="expected a Task"):
        completion_gradients(tiny_llama, "sums", tokenizer)
    with pytest.raises(ValueError, match="max_length=1"):
        completion_gradients(tiny_llama, task, tokenizer, examples=2, max_length=1)
    bare = dataclasses.replace(task, train=[{"prompt": "a"}])
    with pytest.raises(ValueError, match="without 'completion'"):
        completion_gradients(tiny_llama, bare, tokenizer, examples=1)


def test_stacked_experts_are_refused(tokenizer):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 2}
    model = MixtralForCausalLM(MixtralConfig(vocab_size=258, **sizes, **heads))
    with pytest.raises(ValueError, match="stacked experts, such as 'model.layers.0"):
        completion_gradients(model, toy_task(), tokenizer, examples=2)
