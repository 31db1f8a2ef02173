"""GRPO: rewards against hostile completions, sums, training that leaves the model as it was."""

import copy
import dataclasses
import functools
import random
import re
import sys
import tempfile
import types

import numpy as np
import pandas as pd
import pytest
import torch
from peft import get_peft_model
from tokenizers.processors import TemplateProcessing

from plop_nb import nfn_scores
from plop_nb.experiments import Task, digit_sums, grpo, load_task
from plop_nb.experiments.generation import complete
from plop_nb.placement import Placement
from tests.tiny_models import build

HOSTILE = {  # completion: exact format, approximate format, right answer (which is 7)
    "<answer>7</answer>": (1, 1, 1),
    " \n<answer> 7 </answer>\n": (1, 1, 1),
    "3 + 4 is 7, as 3 < 4.\n<answer>7</answer>": (1, 1, 1),
    "<answer>+07.0</answer>": (1, 1, 1),
    "<answer>8</answer>": (1, 1, 0),
    "<answer>-7</answer>": (1, 1, 0),
    "<answer>seven</answer>": (1, 1, 0),
    # empty
    "": (0, 0, 0),
    "<answer></answer>": (0, 1, 0),
    "<answer> \n </answer>": (0, 1, 0),
    # endless
    "7" * 100_000: (0, 0, 0),
    "<answer>" + "7" * 100_000: (0, 0.5, 0),
    "<answer>7</answer> and so on" * 1000: (0, 0, 0),
    "<answer>7</answer> and so on": (0, 1, 0),
    "<answer>" * 10_000: (0, 0, 0),
    # several answers
    "<answer>7</answer><answer>7</answer>": (0, 0, 0),
    "<answer>6</answer> no, <answer>7</answer>": (0, 0, 0),
    "<answer>0 1 2 3 4 5 6 7 8 9</answer>": (1, 1, 0),
    "<answer>6 or 7</answer>": (1, 1, 0),
    "<answer>17</answer>": (1, 1, 0),
    "<answer>7,999</answer>": (1, 1, 0),
    "<answer>7.5</answer>": (1, 1, 0),
    # other digits and other numbers
    "<answer>٧</answer>": (1, 1, 0),
    "<answer>７</answer>": (1, 1, 0),
    "<answer>7E0</answer>": (1, 1, 0),
    "<answer>NaN</answer>": (1, 1, 0),
    "＜answer＞7＜/answer＞": (0, 0, 0),
    # an answer hidden in the reasoning
    "The answer is 7.": (0, 0, 0),
    "<answer>8</answer> 7": (0, 1, 0),
    "7 <answer>8</answer>": (1, 1, 0),
    "7 <answer>": (0, 0.5, 0),
    "7</answer>": (0, 0.5, 0),
    # tags nested, reversed, misspelt
    "<answer><answer>7</answer></answer>": (0, 0, 0),
    "<answer><b>7</b></answer>": (0, 1, 0),
    "</answer>7<answer>": (0, 0, 0),
    "<ANSWER>7</ANSWER>": (0, 0, 0),
    "<answer >7</answer>": (0, 0.5, 0),
}


@pytest.mark.parametrize("completion", HOSTILE, ids=lambda c: repr(c[:30]))
@pytest.mark.parametrize("form", ["plain", "conversational"])
def test_rewards(completion, form):
    given = completion if form == "plain" else [{"role": "assistant", "content": completion}]
    earned = [reward([None], [given], answer=["7"], trainer_state=None) for reward in grpo.REWARDS]
    assert earned == [[expected] for expected in HOSTILE[completion]]


def test_rewards_keep_the_order_and_take_the_task_of_each():
    columns = {"answer": ["7", "-3", "12"], "task": ["chain_sum", "chain_sum", "gsm_symbolic"]}
    found = ["<answer>7</answer>", "<answer>3</answer>", "so <answer>12</answer>"]
    assert grpo.answer_reward([None] * 3, found, **columns) == [1, 0, 1]


@pytest.mark.parametrize("size", [{}, {"terms": 3}, {"digits": 2}])
def test_sums_are_divided_without_overlap(size):
    task = digit_sums(40, 20, **size)
    train, test = task.train, task.test
    again, other = digit_sums(40, 20, **size), digit_sums(40, 20, seed=1, **size)
    assert (train, test) == (again.train, again.test) != (other.train, other.test)
    assert len(train) == 40 and len(test) == 20 and not task.validation
    terms = [tuple(sorted(f"+ {p['prompt']}".split(": ")[1].split())) for p in train + test]
    assert len(set(terms)) > 50 and not {p["prompt"] for p in train} & {p["prompt"] for p in test}
    sums = [p["prompt"].split(": ")[1].split("=")[0] for p in train + test]
    assert [str(eval(s)) for s in sums] == [p["answer"] for p in train + test]


def test_sums_say_how_many_there_are():
    with pytest.raises(
        ValueError, match="train=150, but 'digit_sums of terms=2, digits=1' has only 105"
    ):
        digit_sums(150, 50)
    with pytest.raises(ValueError, match="digits=0, expected an integer of at least 1"):
        digit_sums(digits=0)
    with pytest.raises(ValueError, match="validation=-1, expected an integer of at least 1, or 0"):
        digit_sums(validation=-1)


def test_digit_sums_by_name_and_with_a_validation_split():
    named, whole = load_task("digit_sums", train=105, test=50), digit_sums(105, 50)
    assert (named.train, named.test) == (whole.train, whole.test)
    assert named.check(f"<answer>{named.test[0]['answer']}</answer>", named.test[0])
    assert not named.check(named.test[0]["answer"], named.test[0])
    three = digit_sums(60, 50, validation=30)
    assert len(three.validation) == 30 and three.test == whole.test
    prompts = [
        problem["prompt"]
        for split in ("train", "validation", "test")
        for problem in three.split(split)
    ]
    assert len(set(prompts)) == 140


def test_metamath_keeps_numbers_and_one_rephrasing_of_each_question(monkeypatch):
    import datasets

    rows = [
        ("1", "one", "So 1.\nThe answer is: 1"),
        ("2", "one", "The answer is: 1"),
        ("3", "two", "The answer is: $x$"),
        ("4", "three", "The answer is: -1,042.5"),
        ("5", "four", "no answer"),
    ]
    found = datasets.Dataset.from_list(
        [dict(zip(("query", "original_question", "response"), row, strict=True)) for row in rows]
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: found)
    task = load_task("metamath_tagged", train=1, test=1)
    (train,), (test,) = task.train, task.test
    assert {train["answer"], test["answer"]} == {"1", "-1,042.5"}
    completion = [{"role": "assistant", "content": f"Well. <answer>{train['answer']}</answer>"}]
    assert grpo.answer_reward(
        [train["prompt"]], [completion], [train["answer"]], [train["task"]]
    ) == [1]

    def paid(answer, right):
        written = [f"<answer>{answer}</answer>"]
        return grpo.answer_reward([None], written, [right], [train["task"]])

    assert task.check(f"<answer>{train['answer']}</answer>", train)
    assert [paid(a, "-1,042.5") for a in ("-1042.5", "-1,042.50", "1042.5", "-1")] == [
        [1],
        [1],
        [0],
        [0],
    ]
    assert [paid(a, "7,999") for a in ("7999", "7,999.0", "7", "-7999")] == [[1], [1], [0], [0]]
    hostile = [grpo.answer_reward([None], [c], ["7"], [train["task"]]) for c in HOSTILE]
    assert hostile == [[right] for *_, right in HOSTILE.values()]
    with pytest.raises(ValueError, match="train=2, but 'metamath_tagged' has only 1 more"):
        load_task("metamath_tagged", train=2, test=1)


# Training on a random model

PROBLEMS = [{"prompt": f"{a} + 1 = ", "answer": str(a + 1), "task": "chain_sum"} for a in range(6)]


def as_task(problems):
    """Problems as a task, to train and to test on, with the check of a tagged answer."""
    return Task("plus one", problems, [], problems, is_right)


def is_right(text, problem):
    return grpo.answer_reward(None, [text], [problem["answer"]], [problem["task"]]) == [1]


TASK = as_task(PROBLEMS)
SMALL = {
    "steps": 2,
    "prompts_per_step": 2,
    "num_generations": 2,
    "max_completion_length": 4,
    "r": 2,
    "lr": 1e-2,
}


def digits(prompts, completions, **columns):
    """A reward that a random model of bytes earns now and then."""
    return [sum(c.isalnum() for c in text) / 4 for text in completions]


@pytest.fixture
def base(tiny_llama, byte_tokenizer):
    byte_tokenizer.eos_token = "!"
    return tiny_llama, byte_tokenizer


def state(model, tokenizer):
    """What training must not change; parameters by identity and by value."""
    modules = {
        n: (type(m), m.training, len(m._forward_hooks), set(vars(m)))
        for n, m in model.named_modules()
    }
    parameters = {
        n: (id(p), p.data_ptr(), p.requires_grad, p.grad is None)
        for n, p in model.named_parameters()
    }
    values = {n: p.clone() for n, p in model.state_dict().items()}
    configs = copy.deepcopy((model.config.to_dict(), model.generation_config.to_dict()))
    return (modules, parameters, configs, repr(tokenizer)), values


def same(before, after):
    return before[0] == after[0] and all(torch.equal(before[1][n], after[1][n]) for n in before[1])


def on(base, *types):
    return Placement.of_types(nfn_scores(base[0], ["some text"], base[1], progress=False), types)


def run(base, **options):
    placement = on(base, "v_proj", "up_proj")
    model, tokenizer = base
    return grpo.train(model, TASK, tokenizer, placement, rewards=[digits], **(SMALL | options))


def test_training_leaves_the_base_as_it_was(base):
    base[0].model.embed_tokens.weight.requires_grad_(False)
    before = state(*base)
    frame, trained = run(base)
    assert same(before, state(*base))
    adapters = {n: p for n, p in trained.named_parameters() if "lora" in n}
    assert any(p.abs().sum() > 0 for n, p in adapters.items() if "lora_B" in n)
    assert (
        frame["parameters"].unique().tolist()
        == [sum(p.numel() for p in adapters.values())]
        == [2 * 2 * (48 + 80)]
    )
    assert trained.get_base_model().lm_head.weight.data_ptr() == base[0].lm_head.weight.data_ptr()


def test_advantages_by_hand_are_those_of_trl(base, tmp_path):
    """Notebook 06 shows TRL's own record of a step beside the two lines that make it."""
    run(base, log_completions=True, num_completions_to_print=0, output_dir=str(tmp_path))
    written = pd.read_parquet(tmp_path / "completions" / "completions_00001.parquet")
    groups = [group for _, group in written.groupby("prompt")]
    assert len(groups) == SMALL["prompts_per_step"]
    for group in groups:
        earned = group["digits"]
        by_hand = (earned - earned.mean()) / (earned.std() + 1e-4)
        assert len(group) == SMALL["num_generations"]
        np.testing.assert_allclose(by_hand, group["advantage"], atol=1e-5)


def test_an_error_leaves_the_base_as_it_was(base):
    def broken(prompts, completions, **columns):
        raise ArithmeticError("broken reward")

    placement, before = on(base, "v_proj"), state(*base)
    with pytest.raises(ArithmeticError, match="broken reward"):
        grpo.train(base[0], TASK, base[1], placement, rewards=[broken], **SMALL)
    assert same(before, state(*base))


def test_the_frame_is_tidy(base, capfd):
    frame, _ = run(base, name="mine")
    assert list(frame["step"]) == [1, 2] and not frame.isna().any().any()
    measured = ["step", "reward", "digits", "reward_std", "kl", "completion_length", "seconds"]
    assert list(frame) == [*measured, "placement", "types", "r", "parameters", "lr", "seed"]
    assert (frame["reward"] == frame["digits"]).all() and frame["completion_length"].max() <= 4
    assert set(frame["placement"]) == {"mine"} and set(frame["types"]) == {"up_proj+v_proj"}
    assert capfd.readouterr().out == ""


@pytest.mark.slow
def test_same_seed_same_result(base):
    (one, first), (two, second), (other, _) = run(base), run(base), run(base, seed=1)
    pd.testing.assert_frame_equal(one.drop(columns="seconds"), two.drop(columns="seconds"))
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    assert not one["reward"].equals(other["reward"]) or not one["kl"].equals(other["kl"])


def test_conversations_train_too(base):
    base[1].chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    problems = [p | {"prompt": [{"role": "user", "content": p["prompt"]}]} for p in PROBLEMS]
    frame, trained = grpo.train(base[0], as_task(problems), base[1], on(base, "v_proj"), **SMALL)
    assert (
        list(frame["format"]) == [0, 0] and grpo.accuracy(trained, as_task(problems), base[1]) == 0
    )


def test_prompts_become_the_same_tokens_in_training_and_in_accuracy(base, monkeypatch):
    """A template with a BOS of its own, and a tokenizer that would add another."""
    model, tokenizer = base
    tokenizer.bos_token = "A"
    start = tokenizer.bos_token_id
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="A $A", special_tokens=[("A", start)]
    )
    tokenizer.chat_template = (
        "{{ bos_token }}{{ messages[0].content }}{% if add_generation_prompt %}:{% endif %}"
    )
    seen, generate = [], type(model).generate

    def spied(self, **inputs):
        rows = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        seen.append({tuple(ids[mask.bool()].tolist()) for ids, mask in rows})
        return generate(self, **inputs)

    monkeypatch.setattr(type(model), "generate", spied)

    def as_message(text):
        return [{"role": "user", "content": text}]

    for form in (as_message, str):
        problems = [p | {"prompt": form(p["prompt"] * (1 + i))} for i, p in enumerate(PROBLEMS[:2])]
        _, trained = grpo.train(
            base[0], as_task(problems), base[1], on(base, "v_proj"), **SMALL | {"steps": 1}
        )
        grpo.accuracy(trained, as_task(problems), tokenizer)
        in_training, measured = seen
        assert in_training == measured and all(ids.count(start) == 1 for ids in measured)
        seen.clear()


def test_a_copy_of_the_trained_model_is_one(base):
    _, trained = run(base)
    assert not [name for name, module in trained.named_modules() if "forward" in vars(module)]
    zeroed = copy.deepcopy(trained)
    for parameter in zeroed.parameters():
        parameter.data.zero_()
    assert zeroed(input_ids=torch.arange(9)[None]).logits.abs().sum() == 0


def test_the_only_step_trains(base):
    _, trained = run(base, steps=1)
    assert any(p.abs().sum() > 0 for n, p in trained.named_parameters() if "lora_B" in n)
    with torch.no_grad():  # gradients are taken all the same
        warm = grpo.warm_up(base[0], TASK, base[1], steps=1, batch_size=2, lr=1e-2)
    assert not torch.equal(warm.lm_head.weight, base[0].lm_head.weight)


def test_random_generators_stay_where_they_were(base):
    random.seed(5), np.random.seed(5), torch.manual_seed(5)

    def drawn():
        return random.random(), np.random.rand(), torch.rand(1).item()

    expected = drawn()
    for train in (
        lambda: run(base),
        lambda: grpo.warm_up(base[0], TASK, base[1], steps=1, batch_size=2),
    ):
        random.seed(5), np.random.seed(5), torch.manual_seed(5)
        train()
        assert drawn() == expected


def test_without_kl(base):
    assert "kl" not in run(base, beta=0.0)[0]


def test_warm_up_returns_another_plain_model(base):
    before = state(*base)
    options = {"steps": 2, "batch_size": 2, "lr": 1e-2}
    one, two = (grpo.warm_up(base[0], TASK, base[1], **options) for _ in range(2))
    assert same(before, state(*base)) and type(one) is type(base[0]) and not one.training
    assert "forward" not in vars(one)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.lm_head.weight, base[0].lm_head.weight)


def test_warm_up_trains_in_float32_and_gives_each_weight_its_precision_back(base):
    model, tokenizer = base
    model.bfloat16().lm_head.float()
    options = {"steps": 3, "batch_size": 2, "lr": 1e-5}
    warm = grpo.warm_up(model, TASK, tokenizer, **options)
    exact = grpo.warm_up(copy.deepcopy(model).float(), TASK, tokenizer, **options)
    assert {p.dtype for p in exact.parameters()} == {torch.float32}
    for old, new, expected in zip(
        model.parameters(), warm.parameters(), exact.parameters(), strict=True
    ):
        assert new.dtype == old.dtype and torch.equal(new, expected.to(old.dtype))
    assert warm.lm_head.weight.dtype == torch.float32 and not torch.equal(
        warm.lm_head.weight, model.lm_head.weight
    )


def test_warm_up_takes_conversations(base):
    base[1].chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    problems = [p | {"prompt": [{"role": "user", "content": p["prompt"]}]} for p in PROBLEMS]
    warm = grpo.warm_up(base[0], as_task(problems), base[1], steps=30, batch_size=4, lr=1e-2)
    written = complete(warm, [p["prompt"] for p in problems], base[1])
    assert all(text.startswith("<answer>") for text in written)


@pytest.mark.parametrize("greedy", [True, False])
def test_completions_do_not_obey_the_generation_config(base, greedy):
    model, tokenizer = base
    prompts = [p["prompt"] for p in PROBLEMS]

    def write():
        return complete(model, prompts, tokenizer, new_tokens=12, greedy=greedy)

    plain = write()
    settings = {
        "repetition_penalty": 2.0,
        "num_beams": 2,
        "min_p": 0.5,
        "no_repeat_ngram_size": 1,
        "max_length": 14,
        "suppress_tokens": list(range(128)),
        "temperature": 0.1,
        "top_k": 2,
    }
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    model.train()
    assert write() == plain and model.generation_config.min_p == 0.5 and model.training


def test_completions_end_alike_before_and_after_training(base):
    """At the end that the model names, and at the tokenizer's: as TRL's own do."""
    model, tokenizer = base
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("$")
    with torch.no_grad():  # "!" and "$" are all that it ever writes
        model.lm_head = torch.nn.Linear(32, 258)
        model.lm_head.weight.zero_(), model.lm_head.bias.fill_(-1e4)
        model.lm_head.bias[tokenizer.convert_tokens_to_ids(["!", "$"])] = 0
    _, trained = grpo.train(base[0], TASK, base[1], on(base, "v_proj"), **SMALL | {"lr": 1e-9})
    prompts = [p["prompt"] for p in PROBLEMS] * 4
    before, after = (complete(m, prompts, tokenizer, new_tokens=9) for m in (model, trained))
    assert before == after and set(before) == {"!", "$"}


def test_samples_and_accuracy(base):
    before = state(*base)
    table = grpo.samples(base[0], TASK, base[1], n=3, max_completion_length=4)
    assert list(table) == [
        "prompt",
        "completion",
        "expected",
        "format",
        "approximate_format",
        "answer",
        "reward",
    ]
    assert table["expected"].tolist() == ["1", "2", "3"] and not table.isna().any().any()
    assert grpo.accuracy(base[0], TASK, base[1], max_completion_length=4) == 0
    assert same(before, state(*base))


def test_a_tokenizer_needs_no_end_of_text_but_padding(tiny_llama, byte_tokenizer):
    assert byte_tokenizer.eos_token is None
    options = {"max_completion_length": 2}
    byte_tokenizer.pad_token = "!"
    assert len(grpo.samples(tiny_llama, TASK, byte_tokenizer, n=2, **options)) == 2
    assert grpo.accuracy(tiny_llama, TASK, byte_tokenizer, **options) == 0


def test_errors_say_what_would_do(base, monkeypatch):
    other = Placement(["fc"], ["h.0.fc"], 1.0, pd.DataFrame())
    with pytest.raises(ValueError, match="no module 'h.0.fc': this placement is for another model"):
        grpo.train(base[0], TASK, base[1], other, **SMALL)
    with pytest.raises(
        ValueError, match="'plus one' has 6, expected at least the 7 of one step: give more"
    ):
        run(base, prompts_per_step=7)
    with pytest.raises(ValueError, match="no example in its split 'train': give it at least one"):
        grpo.warm_up(base[0], as_task([]), base[1])
    for ask in (grpo.samples, grpo.accuracy):
        with pytest.raises(ValueError, match="no example in its split 'test': give it at least"):
            ask(base[0], as_task([]), base[1])
    with pytest.raises(TypeError, match="task is list, expected a Task"):
        grpo.warm_up(base[0], PROBLEMS, base[1])
    for option in ("learning_rate", "max_steps", "logging_steps"):
        with pytest.raises(ValueError, match=f"{option} cannot be an option: lr and steps set it"):
            run(base, **{option: 1})
    with pytest.raises(ValueError, match="at least 2 generations"):
        run(base, num_generations=1)
    monkeypatch.setitem(sys.modules, "trl", None)
    for train in (run, lambda base: grpo.warm_up(base[0], TASK, base[1])):
        with pytest.raises(ImportError, match="training needs TRL.*pip install optuna psutil trl"):
            train(base)


TRAIN_NUMBERS = [
    *(("prompts_per_step", value) for value in (0, "2")),
    *(("num_generations", value) for value in (0, 2.0)),
    *(("max_completion_length", value) for value in (0, -4)),
    *(("lora_dropout", value) for value in (-0.1, 1.5)),
    *(("beta", value) for value in (-1, float("nan"))),
    *(("steps", 0), ("r", 0), ("lora_alpha", 0), ("lr", "1e-3"), ("seed", None)),
]


@pytest.mark.parametrize(("name", "value"), TRAIN_NUMBERS)
def test_a_number_that_makes_no_sense_is_named(base, name, value):
    with pytest.raises(ValueError, match=re.escape(f"{name}={value!r}, expected")):
        run(base, **{name: value})


def test_the_warm_up_samples_and_accuracy_name_one_too(base):
    for name, value in {"steps": 0, "batch_size": 0, "right": 2, "lr": -1, "seed": -1}.items():
        with pytest.raises(ValueError, match=f"{name}={value}, expected"):
            grpo.warm_up(base[0], TASK, base[1], **{name: value})
    with pytest.raises(ValueError, match="n=-1, expected"):
        grpo.samples(base[0], TASK, base[1], n=-1)
    for ask in (grpo.samples, grpo.accuracy):
        with pytest.raises(ValueError, match="max_completion_length=0, expected"):
            ask(base[0], TASK, base[1], max_completion_length=0)
        with pytest.raises(ValueError, match="task.new_tokens=0, expected"):
            ask(base[0], dataclasses.replace(TASK, new_tokens=0), base[1])


def test_what_cannot_be_trained_is_refused(base):
    model, tokenizer = base
    placement = on(base, "v_proj")
    adapted = get_peft_model(copy.deepcopy(model), placement.lora_config(model))
    with pytest.raises(TypeError, match="with adapters, expected one without"):
        grpo.train(adapted, TASK, tokenizer, placement, **SMALL)
    with pytest.raises(TypeError, match="with adapters, expected one without"):
        grpo.warm_up(adapted, TASK, tokenizer, steps=1)
    with pytest.raises(TypeError, match="placement is NoneType"):
        grpo.train(model, TASK, tokenizer, None, **SMALL)
    empty = as_task([*PROBLEMS[:2], PROBLEMS[0] | {"prompt": ""}])
    with pytest.raises(ValueError, match="prompt '' gives no tokens with this tokenizer"):
        grpo.train(model, empty, tokenizer, placement, **SMALL)
    with pytest.raises(ValueError, match="examples without 'answer' in its split 'train'"):
        grpo.warm_up(model, as_task([{"prompt": "1 + 1 = "}]), tokenizer, steps=1)
    for rewards in ([], digits):
        with pytest.raises(ValueError, match="expected a list of one function or more"):
            grpo.train(model, TASK, tokenizer, placement, rewards=rewards, **SMALL)
    with pytest.raises(TypeError, match="which has no __name__"):
        partial = [functools.partial(digits)]
        grpo.train(model, TASK, tokenizer, placement, rewards=partial, **SMALL)


@pytest.mark.slow
def test_trainers_leave_files_only_where_they_are_told(base, monkeypatch, tmp_path):
    own, given = tmp_path / "temporary", tmp_path / "given"
    own.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(own))
    with pytest.raises(ValueError, match="save_strategy='steps' needs output_dir, a folder"):
        run(base, save_strategy="steps", save_steps=1)
    run(base, save_strategy="steps", save_steps=1, output_dir=str(given))
    assert {path.name for path in given.iterdir()} >= {"checkpoint-1", "checkpoint-2"}

    def broken(prompts, completions, **columns):
        assert any(own.iterdir())  # the trainer's own folder
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grpo.train(base[0], TASK, base[1], on(base, "v_proj"), rewards=[broken], **SMALL)
    grpo.warm_up(base[0], TASK, base[1], steps=1, batch_size=2)
    assert not list(own.iterdir())


@pytest.mark.parametrize(
    "names", [["reward"], ["kl_reward"], ["seconds"], ["expected"], ["mine", "mine_reward"]]
)
def test_rewards_need_names_of_their_own(base, names):
    rewards = [types.FunctionType(digits.__code__, {}, name) for name in names]
    with pytest.raises(
        ValueError, match=f"is named '{names[-1].removesuffix('_reward')}', as another column is"
    ):
        grpo.train(base[0], TASK, base[1], on(base, "v_proj"), rewards=rewards, **SMALL)
    with pytest.raises(ValueError, match="give it another name"):
        grpo.samples(base[0], TASK, base[1], rewards=rewards)


def test_stacked_experts_train_without_dropout(base):
    model = build("mixtral")
    model.resize_token_embeddings(258)
    mixture = model, base[1]
    chosen = on(mixture, "down_proj")
    with pytest.raises(ValueError, match="lora_dropout != 0"):
        grpo.train(mixture[0], TASK, mixture[1], chosen, **SMALL)
    frame, _ = grpo.train(mixture[0], TASK, mixture[1], chosen, lora_dropout=0.0, **SMALL)
    assert len(frame) == 2


def test_without_trl_the_rest_works(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.delitem(sys.modules, "plop_nb.experiments.grpo")
    import plop_nb.experiments.grpo

    assert plop_nb.experiments.grpo.format_reward(None, ["<answer>7</answer>"]) == [1]
