"""The first step of LoRA: against a real training of one step, and its best rate."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from peft import get_peft_model

import plop_nb as plop
from plop_nb.experiments import Task, evaluate, finetune
from plop_nb.experiments.first_steps import (
    FirstSteps,
    first_step,
    first_step_gain,
    first_step_rate,
)
from plop_nb.experiments.gradients import completion_gradients
from plop_nb.placement import Placement
from tests.toy_task import digits

SIZES = {"examples": 8, "held_out": 6}
RATES = [1e-3, 1e-2, 5e-2]


@pytest.fixture
def task():
    """Tests on what the first step holds out."""
    train = digits(24)
    return Task("toy", train, digits(3, 100), train[8:14])


@pytest.fixture
def tokenizer(byte_tokenizer):
    byte_tokenizer.add_special_tokens({"eos_token": "<end>"})
    return byte_tokenizer


def placement_on(model, *types):
    table = plop.module_table(model).query("status == 'scored'")
    return Placement(list(types), table.loc[table["type"].isin(types), "module"].tolist())


@pytest.fixture
def several(tiny_llama):
    return placement_on(tiny_llama, "q_proj", "v_proj", "down_proj")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 3])
def test_it_is_a_training_of_one_step(tiny_llama, tokenizer, task, several, seed):
    """By TRL's trainer, with AdamW and automatic differentiation, on the same examples."""
    options = {"r": 3, "lora_alpha": 12, "seed": seed}
    found = first_step(tiny_llama, task, tokenizer, several, rates=RATES, **SIZES, **options)
    short = Task("short", task.train[:8], task.validation, task.test)
    settings = {"steps": 1, "batch_size": 8, "accuracy": False, **options}
    assert found["rate"].tolist() == [0, *RATES]
    for rate in RATES:
        trained = finetune(tiny_llama, short, tokenizer, several, lr=rate, **settings)["loss"]
        assert found.set_index("rate")["loss"][rate] == pytest.approx(trained, rel=1e-3)
    untrained = evaluate(tiny_llama, task, tokenizer, accuracy=False)["loss"]
    assert found["loss"][0] == pytest.approx(untrained, rel=1e-6)
    assert abs(found["loss"][2] - untrained) > 0.01 * untrained  # what is compared is a change


def test_small_steps_gain_what_theory_says(tiny_llama, tokenizer, several):
    """On the examples of the gradient, in the mean over starts: the sum of the expected falls."""
    same = digits(8)
    task = Task("same", same + same, digits(2), digits(2))
    steps = FirstSteps(tiny_llama, task, tokenizer, examples=8, held_out=8)
    table = completion_gradients(tiny_llama, task, tokenizer, examples=8)
    expected = table.loc[table["module"].isin(several.modules), "first_order_gain"].sum()
    rate, falls = 1e-5, []
    for seed in range(12):
        found = steps.of(several, r=4, lora_alpha=8, rates=[rate], seed=seed)
        falls.append(found["loss"][0] - found["loss"][1])
    assert np.mean(falls) == pytest.approx(rate * 8 * expected, rel=0.1)


def test_the_search_finds_the_lowest_of_a_wide_grid(tiny_llama, tokenizer, task, several):
    steps = FirstSteps(tiny_llama, task, tokenizer, **SIZES)
    wide = [1e-3 * 2.0**k for k in range(-6, 8)]
    tried = steps.of(several, r=2, rates=wide).set_index("rate")["loss"]
    assert wide[0] < tried.idxmin() < wide[-1]
    for start in (1e-3, 1e-3 * 2**3):
        found = steps.of(several, r=2, start=start).set_index("rate")["loss"]
        lowest = found.idxmin()
        assert lowest == pytest.approx(tried.idxmin())
        assert {2 * lowest, lowest / 2} <= set(found.index)
        assert found.min() == pytest.approx(tried.min(), rel=1e-6)
        assert len(found) < len(wide)


def test_the_model_stays_as_it_is(tiny_llama, tokenizer, task, several):
    tiny_llama.train()
    before = copy.deepcopy(tiny_llama.state_dict())
    torch.manual_seed(5)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    found = first_step(tiny_llama, task, tokenizer, several, r=2, rates=RATES, **SIZES)
    assert torch.rand(1) == drawn
    assert tiny_llama.training and tiny_llama.state_dict().keys() == before.keys()
    for name, parameter in tiny_llama.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.requires_grad and parameter.grad is None
    with torch.no_grad():
        again = first_step(tiny_llama, task, tokenizer, several, r=2, rates=RATES, **SIZES)
    assert again.equals(found)


def test_a_step_that_breaks_the_model_has_an_infinite_loss(tiny_llama, tokenizer, task, several):
    found = first_step(tiny_llama, task, tokenizer, several, r=2, rates=[1e-3, 1e38], **SIZES)
    assert found["loss"].iloc[-1] == np.inf
    assert first_step_rate(found) == 1e-3


def frame(losses):
    return pd.DataFrame(losses.items(), columns=["rate", "loss"])


def test_the_gain_is_that_of_the_parabola():
    """Losses on a parabola in log2(rate) with its lowest point, 2, at the rate 3e-3."""
    rates = [5e-4, 1e-3, 2e-3, 4e-3, 8e-3]
    found = frame({0.0: 5.0} | {rate: 2 + np.log2(rate / 3e-3) ** 2 / 7 for rate in rates})
    shuffled = found.sample(frac=1, random_state=0)
    for steps in (found, shuffled):
        assert first_step_gain(steps) == pytest.approx(3)
        assert first_step_rate(steps) == pytest.approx(3e-3)


def test_at_an_edge_the_gain_is_that_of_the_lowest_point():
    for losses in ({1e-3: 2.0, 2e-3: 4.0}, {1e-4: 4.0, 1e-3: 2.0}, {1e-4: 2.0}):
        assert first_step_gain(frame({0.0: 3.0} | losses)) == 1
    beside = frame({0.0: 3.0, 1e-3: 2.5, 2e-3: 2.0, 4e-3: np.inf})
    assert first_step_gain(beside) == 1
    flat = frame({0.0: 3.0, 1e-3: 3.0, 2e-3: 3.0, 4e-3: 3.0})
    assert first_step_gain(flat) == 0
    worse = frame({0.0: 3.0, 1e-3: 3.5})
    assert first_step_gain(worse) == -0.5


def test_bad_input_is_named(tiny_llama, tokenizer, task, several):
    def step(**options):
        return first_step(tiny_llama, task, tokenizer, several, **{"r": 2, **SIZES, **options})

    for options, word in [
        ({"examples": 0}, "examples=0"),
        ({"held_out": 17}, "24 training examples, but 25"),
        ({"rates": [-1.0]}, "rate=-1.0"),
        ({"rates": []}, "rates is empty"),
        ({"r": 0}, "r=0"),
        ({"lora_alpha": 0}, "lora_alpha=0"),
        ({"seed": -1}, "seed=-1"),
    ]:
        with pytest.raises(ValueError, match=word):
            step(**options)
    with pytest.raises(TypeError, match="rates=0.001"):
        step(rates=0.001)
    with pytest.raises(TypeError, match="expected a Placement"):
        first_step(tiny_llama, task, tokenizer, ["q_proj"], r=2, **SIZES)
    adapted = get_peft_model(copy.deepcopy(tiny_llama), several.lora_config(tiny_llama))
    with pytest.raises(TypeError, match="with adapters"):
        first_step(adapted, task, tokenizer, several, r=2, **SIZES)
    with pytest.raises(ValueError, match="rate 0"):
        first_step_gain(frame({1e-3: 1.0}))
