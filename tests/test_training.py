"""Finetuning: evaluation, runs, and the model that comes back as it was."""

import contextlib
import copy
import dataclasses
import json
import random
import re
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from peft import (
    EvaConfig,
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    inject_adapter_in_model,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from tokenizers.processors import TemplateProcessing
from transformers import LlamaForCausalLM, TrainerCallback, TrainerControl, TrainerState

import plop_nb as plop
from plop_nb.experiments import (
    NormsCallback,
    Task,
    adapting,
    evaluate,
    finetune,
    load_task,
    rank_for,
    training,
)
from plop_nb.experiments.adapting import adapted_copy
from plop_nb.experiments.evaluation import batches, encoded
from plop_nb.placement import Placement
from tests.tiny_models import build
from tests.toy_task import FEW, digits, is_completion, toy_task


@pytest.fixture
def task():
    return toy_task()


@pytest.fixture
def tokenizer(byte_tokenizer):
    byte_tokenizer.add_special_tokens({"eos_token": "<end>"})
    return byte_tokenizer


@pytest.fixture
def scores(tiny_llama, tokenizer):
    texts = [f"a text, number {i}" for i in range(8)]
    return plop.nfn_scores(tiny_llama, texts, tokenizer, progress=False)


@pytest.fixture
def placement(scores):
    return plop.place(scores, k=2)


# Evaluation


def test_loss_is_the_mean_over_completion_tokens(tiny_llama, tokenizer, task):
    """Against one forward per example and token by token sums, without padding."""
    uneven = Task(
        "u",
        task.train,
        task.validation,
        [*task.test, {"prompt": "p " * 30, "completion": " long answer"}],
    )
    total, tokens = 0.0, 0
    for example in uneven.test:
        prompt, answer = (tokenizer(example[k])["input_ids"] for k in ("prompt", "completion"))
        ids = [*prompt, *answer, tokenizer.eos_token_id]
        with torch.no_grad():
            logs = tiny_llama(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        total -= sum(logs[i - 1, ids[i]].item() for i in range(len(prompt), len(ids)))
        tokens += len(answer) + 1
    assert evaluate(tiny_llama, uneven, tokenizer)["loss"] == pytest.approx(
        total / tokens, rel=1e-5
    )
    assert evaluate(tiny_llama, uneven, tokenizer)["accuracy"] is None


def test_accuracy_is_that_of_one_prompt_at_a_time(tiny_llama, tokenizer, task, monkeypatch):
    seen = []

    def every_other(text, example):
        seen.append((example["prompt"], text))
        return len(seen) % 2

    look = Task("t", task.train, task.validation, digits(5, 9997), every_other)
    found = evaluate(tiny_llama, look, tokenizer, accuracy=True, batch_size=2)
    assert found["accuracy"] == 3 / 5
    for (prompt, text), example in zip(seen, look.test, strict=True):
        assert prompt == example["prompt"]
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        for _ in range(look.new_tokens):
            ids = torch.cat([ids, tiny_llama(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
            if ids[0, -1] == tokenizer.eos_token_id:
                break
        assert text == tokenizer.decode(
            ids[0, len(tokenizer(prompt)["input_ids"]) :], skip_special_tokens=True
        )


def test_what_has_changed_is_read_again(tiny_llama, tokenizer, task):
    """A task or a tokenizer that is changed in place is another one."""

    def loss():
        return evaluate(tiny_llama, task, tokenizer, accuracy=False)["loss"]

    before = loss()
    task.test.append({"prompt": "x", "completion": "yz"})
    longer = loss()
    tokenizer.eos_token = "!"
    assert len({before, longer, loss()}) == 3


@pytest.mark.parametrize("fails", [False, True])
def test_evaluation_is_seen_by_hooks_and_leaves_the_model_as_it_was(
    tiny_llama, tokenizer, task, fails
):
    def check(text, example):
        if fails:
            raise ArithmeticError("on purpose")
        return True

    tiny_llama.train()
    tiny_llama.model.layers[1].eval()
    before, generation = state_of(tiny_llama), tiny_llama.generation_config
    checked = dataclasses.replace(task, check=check)
    with plop.record_norms(tiny_llama) as record:
        with pytest.raises(ArithmeticError) if fails else contextlib.nullcontext():
            evaluate(tiny_llama, checked, tokenizer)
    assert len(record.frame()) > 0
    assert state_of(tiny_llama) == before and tiny_llama.generation_config is generation


def test_an_adapted_model_keeps_its_generation_config(tiny_llama, tokenizer, task, placement):
    adapted = get_peft_model(tiny_llama, placement.lora_config(tiny_llama))
    generation, own = tiny_llama.generation_config, set(vars(adapted))
    evaluate(adapted, task, tokenizer)
    assert tiny_llama.generation_config is generation
    assert set(vars(adapted)) == own


def test_conversations_have_a_loss(tiny_llama, tokenizer, monkeypatch):
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    plain = digits(3)
    chat = [{**e, "prompt": [{"role": "user", "content": e["prompt"]}]} for e in plain]
    rows = [encoded(Task("t", [], [], test), "test", tokenizer) for test in (plain, chat)]
    assert rows[0] == rows[1]


def test_batches_keep_within_their_tokens():
    rows = ["x" * n for n in (3, 50, 1, 4, 7, 3)]
    parts = list(batches(rows, len, 9))
    assert sorted(sum(parts, [])) == sorted(rows) and len(parts) == 4
    assert all(len(part) == 1 or len(part) * max(map(len, part)) <= 9 for part in parts)


def test_labels_are_the_completion_and_its_end_and_truncation_spares_them(tokenizer, task):
    row = encoded(task, "train", tokenizer, 512)[3]
    prompt = tokenizer(task.train[3]["prompt"])["input_ids"]
    assert row["labels"] == [-100] * len(prompt) + row["input_ids"][len(prompt) :]
    assert tokenizer.decode(row["input_ids"]) == task.train[3]["prompt"] + " 4<end>"
    short = encoded(task, "train", tokenizer, 5)[3]
    assert (
        tokenizer.decode(short["input_ids"]) == "r: 4<end>"
        and short["labels"] == row["labels"][-5:]
    )


def test_a_task_without_completions_has_no_loss_and_cannot_be_finetuned(
    tiny_llama, tokenizer, placement
):
    examples = [{"prompt": f"{i} = ", "answer": str(i)} for i in range(3)]
    task = Task("bare", examples, [], examples, lambda text, example: True)
    assert evaluate(tiny_llama, task, tokenizer) == {"loss": None, "accuracy": 1.0}
    with pytest.raises(ValueError, match="without 'completion' in its split 'train'"):
        finetune(tiny_llama, task, tokenizer, placement)


def test_bad_calls(tiny_llama, byte_tokenizer, tokenizer, task, placement):
    with pytest.raises(TypeError, match="task is str, expected a Task"):
        finetune(tiny_llama, "sums", tokenizer, placement)
    with pytest.raises(ValueError, match="split 'train' is unknown, choose one of"):
        finetune(tiny_llama, task, tokenizer, placement, final="train")
    with pytest.raises(ValueError, match="steps=0, expected an integer of at least 1"):
        finetune(tiny_llama, task, tokenizer, placement, steps=0)
    for split, final in {"train": "test", "validation": "validation", "test": "test"}.items():
        lacking = dataclasses.replace(task, **{split: []})
        with pytest.raises(ValueError, match=f"task 'toy' has no example in its split '{split}'"):
            finetune(tiny_llama, lacking, tokenizer, placement, final=final)
        with pytest.raises(ValueError, match=f"no example in its split '{split}'"):
            evaluate(tiny_llama, lacking, tokenizer, split)
    adapted = get_peft_model(copy.deepcopy(tiny_llama), placement.lora_config(tiny_llama))
    with pytest.raises(TypeError, match="with adapters, expected one without: pass model.unload"):
        finetune(adapted, task, tokenizer, placement)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="set tokenizer.eos_token"):
        evaluate(tiny_llama, task, tokenizer)


# Each example


def answered(tokenizer, example):
    """Token ids of an example's prompt, and of its completion with its end."""
    prompt, answer = (tokenizer(example[key])["input_ids"] for key in ("prompt", "completion"))
    return prompt, [*answer, tokenizer.eos_token_id]


@pytest.fixture
def memorised(tiny_llama, tokenizer, task):
    """A model that has learned the first three test examples by heart."""
    optimizer = torch.optim.AdamW(tiny_llama.parameters(), lr=1e-2)
    for _ in range(12):
        for example in task.test[:3]:
            prompt, answer = answered(tokenizer, example)
            labels = torch.tensor([[-100] * len(prompt) + answer])
            tiny_llama(torch.tensor([prompt + answer]), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return tiny_llama.eval()


def test_each_example_is_as_if_it_ran_alone(memorised, tokenizer, task):
    """Without padding, and against what greedy generation really writes."""
    longer = {"prompt": "p " * 30, "completion": " long answer"}
    uneven = dataclasses.replace(task, test=[longer, *task.test])
    found = evaluate(memorised, uneven, tokenizer, per_example=True)
    for number, example in enumerate(uneven.test):
        prompt, answer = answered(tokenizer, example)
        with torch.no_grad():
            logs = memorised(torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
        steps = enumerate(answer, start=len(prompt))
        loss = -sum(logs[position - 1, token].item() for position, token in steps)
        assert found["losses"][number] == pytest.approx(loss, rel=1e-5, abs=1e-5)
        assert found["tokens"][number] == len(answer)
        end = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
        made = memorised.generate(
            torch.tensor([prompt]), max_new_tokens=len(answer) + 2, do_sample=False, **end
        )
        assert found["exact"][number] is (made[0, len(prompt) :].tolist() == answer)
    assert set(found["exact"]) == {True, False}
    assert found["loss"] == sum(found["losses"]) / sum(found["tokens"])
    plain = evaluate(memorised, uneven, tokenizer)
    assert plain == {name: found[name] for name in ("loss", "accuracy")}
    assert found.keys() == plain.keys() | {"losses", "tokens", "exact"}


def test_each_example_stays_where_it_is(memorised, tokenizer, task):
    """Whatever others it runs with, and in which order."""
    turned = dataclasses.replace(task, test=task.test[::-1])
    one, other = (evaluate(memorised, t, tokenizer, per_example=True) for t in (task, turned))
    np.testing.assert_allclose(one["losses"], other["losses"][::-1], rtol=1e-5, atol=1e-6)
    assert one["tokens"] == other["tokens"][::-1] and one["exact"] == other["exact"][::-1]


def test_examples_without_completions_have_no_losses(tiny_llama, tokenizer):
    bare = Task("bare", [], [], [{"prompt": "1 + 1"}])
    found = evaluate(tiny_llama, bare, tokenizer, per_example=True)
    assert set(found.values()) == {None} and len(found) == 5
    with pytest.raises(ValueError, match="per_example='all', expected True or False"):
        evaluate(tiny_llama, bare, tokenizer, per_example="all")


def test_what_was_forgotten_is_that_of_the_reloaded_adapter(
    tiny_llama, tokenizer, task, placement, tmp_path
):
    unrelated = Task("words", [], [], [{"prompt": "the sky is", "completion": " blue"}])
    before = {name: value.clone() for name, value in tiny_llama.state_dict().items()}
    row = finetune(
        tiny_llama,
        task,
        tokenizer,
        placement,
        **FEW,
        unrelated=unrelated,
        per_example=True,
        out=tmp_path,
    )
    assert all(torch.equal(value, before[n]) for n, value in tiny_llama.state_dict().items())
    untrained = evaluate(tiny_llama, unrelated, tokenizer)["loss"]
    loaded = PeftModel.from_pretrained(copy.deepcopy(tiny_llama), tmp_path)
    assert row["unrelated_loss"] == evaluate(loaded, unrelated, tokenizer)["loss"]
    assert row["unrelated_loss"] != pytest.approx(untrained, rel=1e-4)
    expected = evaluate(loaded, task, tokenizer, per_example=True)
    assert {name: row[name] for name in expected} == expected
    plain = finetune(tiny_llama, task, tokenizer, placement, **FEW)
    assert row.keys() - plain.keys() == {"losses", "tokens", "exact", "unrelated_loss"}
    assert (plain["loss"], plain["curve"]) == (row["loss"], row["curve"])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"per_example": 2}, "per_example=2, expected True or False"),
        ({"unrelated": "facts"}, "unrelated='facts', expected a Task"),
        ({"unrelated": Task("t", [], [], [{"prompt": "x"}])}, "unrelated=Task.* without 'compl"),
        ({"unrelated": Task("t", [], [], [])}, "task 't' has no example in its split 'test'"),
    ],
)
def test_what_cannot_be_measured_is_found_before_the_training(
    tiny_llama, tokenizer, task, placement, trained, argument, message
):
    with pytest.raises((TypeError, ValueError), match=message):
        finetune(tiny_llama, task, tokenizer, placement, **FEW, **argument)
    assert not trained


# What is found out before a training


@pytest.fixture
def trained(monkeypatch):
    """The trainings that were begun."""
    begun, run_trainer = [], training.run_trainer
    monkeypatch.setattr(training, "run_trainer", lambda t: begun.append(t) or run_trainer(t))
    return begun


NO_NUMBERS = [
    *(("r", value) for value in (0, 2.0, "2", True)),
    *(("lora_alpha", value) for value in (0, -1, "2", float("nan"))),
    *(("lr", value) for value in (0, -1e-3, float("nan"), float("inf"), "1e-3", None)),
    *(("max_length", value) for value in (0, -3, 1, 5.0)),
    *(("seed", value) for value in (-1, 1.5, 2**32, None)),
    *(("steps", 0), ("batch_size", 2.5), ("logging_steps", -1)),
]


@pytest.mark.parametrize(("name", "value"), NO_NUMBERS)
def test_a_number_that_makes_no_sense_is_named(name, value):
    with pytest.raises(ValueError, match=re.escape(f"{name}={value!r}, expected")):
        training.plain_numbers({name: value})


def test_numbers_of_numpy_are_numbers():
    given = {name: np.int64(value) for name, value in FEW.items()} | {"lr": np.float32(0.5)}
    plain = training.plain_numbers({**given, "lora_alpha": None, "final": "test"})
    assert plain == {**FEW, "lr": 0.5, "lora_alpha": None, "final": "test"}
    assert {type(plain[name]) for name in FEW} == {int, float}


@pytest.mark.parametrize("placement", [None, ["q_proj"], "q_proj"])
def test_what_is_no_placement_is_refused(tiny_llama, tokenizer, task, placement):
    with pytest.raises(TypeError, match="placement is .*expected a Placement: from place"):
        finetune(tiny_llama, task, tokenizer, placement)
    with pytest.raises(TypeError, match="expected a Placement"):
        rank_for(placement, tiny_llama, 100)


@pytest.mark.parametrize("verdict", [None, 0.5, "yes", float("nan")])
def test_a_check_that_gives_no_verdict_is_found_before_the_training(
    tiny_llama, tokenizer, task, placement, trained, verdict
):
    odd = dataclasses.replace(task, check=lambda text, example: verdict)
    with pytest.raises(TypeError, match=f"check of task 'toy' gives {verdict!r} for ' 201', expec"):
        finetune(tiny_llama, odd, tokenizer, placement, **FEW)
    with pytest.raises(TypeError, match=f"check of task 'toy' gives {verdict!r}"):
        evaluate(tiny_llama, odd, tokenizer)
    assert not trained


@pytest.mark.parametrize("verdict", [True, np.True_, 1, np.int64(1), 1.0, np.float32(1)])
def test_any_one_is_a_verdict(tiny_llama, tokenizer, task, verdict):
    sure = dataclasses.replace(task, check=lambda text, example: verdict)
    assert evaluate(tiny_llama, sure, tokenizer)["accuracy"] == 1


PICKY = {
    " 201": lambda text, example: text != " 201" or 1 / 0,
    " 204": lambda text, example: "203" not in example["prompt"] or 1 / 0,
    " 207": lambda text, example: "206" not in example["prompt"] or 1 / 0,
    "": lambda text, example: text or 1 / 0,
}


@pytest.mark.parametrize("written", PICKY)
def test_a_check_that_fails_is_found_before_the_training(
    tiny_llama, tokenizer, task, placement, trained, written
):
    """On any completion of the examples, and on none."""
    picky = dataclasses.replace(task, check=lambda *given: bool(PICKY[written](*given)))
    with pytest.raises(ZeroDivisionError) as caught:
        finetune(tiny_llama, picky, tokenizer, placement, **FEW)
    note = f"check of task 'toy' fails on {written!r} for {{'prompt': '20"
    assert caught.value.__notes__[0].startswith(note) and not trained
    assert finetune(tiny_llama, picky, tokenizer, placement, **FEW, accuracy=False)["loss"] > 0


def test_a_check_is_tried_once(tiny_llama, tokenizer, task):
    """It may be slow, as where it runs code."""
    asked = []
    slow = dataclasses.replace(task, check=lambda text, example: not asked.append(text))
    for _ in range(2):
        options = {"final": "test", "accuracy": True, "max_length": 9}
        training.check_tokens(tiny_llama, slow, tokenizer, **options)
    assert asked == [example["completion"] for example in task.test] + [""]


def test_an_adapter_is_saved_before_what_a_model_writes_is_checked(
    tiny_llama, tokenizer, task, placement, tmp_path
):
    def check(text, example):
        return text in ("", example["completion"]) or 1 / 0

    with pytest.raises(ZeroDivisionError):
        strict = dataclasses.replace(task, check=check)
        finetune(tiny_llama, strict, tokenizer, placement, **FEW, out=tmp_path)
    assert (tmp_path / "adapter_config.json").exists()


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"prompt": [], "completion": "x"}, r"has the prompt \[\]"),
        ({"completion": "x"}, "has the prompt None"),
        ({"prompt": "x", "completion": 7}, "has the completion 7, expected a text"),
        ({"prompt": "x", (1, 2): 3}, r"has the key \(1, 2\), expected a text"),
        ("x", "is 'x', expected a dict"),
    ],
)
def test_an_example_that_cannot_be_read_is_found_before_the_training(
    tiny_llama, tokenizer, task, placement, trained, split, example, message
):
    where = f"example 3 of task 'toy', split '{split}', "
    broken = dataclasses.replace(task, **{split: [*task.split(split)[:3], example]})
    with pytest.raises((TypeError, ValueError), match=where + message):
        finetune(tiny_llama, broken, tokenizer, placement, **FEW)
    assert not trained


def test_a_task_that_writes_no_tokens_is_found_before_the_training(
    tiny_llama, tokenizer, task, placement, trained
):
    mute = dataclasses.replace(task, new_tokens=0)
    with pytest.raises(ValueError, match="task.new_tokens=0, expected an integer of at least 1"):
        finetune(tiny_llama, mute, tokenizer, placement, **FEW)
    assert not trained


def test_a_check_that_draws_leaves_the_random_generators_where_they_were(
    tiny_llama, tokenizer, task, placement
):
    random.seed(5)
    before, drawn = random.getstate(), []

    def check(text, example):
        return drawn.append(random.random()) is None

    drawing = dataclasses.replace(task, check=check)
    finetune(tiny_llama, drawing, tokenizer, placement, **FEW, seed=1)
    assert len(drawn) > len(task.test) and random.getstate() == before


def test_a_prompt_without_tokens_is_found_before_the_training(
    tiny_llama, tokenizer, task, placement, trained
):
    tokenizer.chat_template = "{{ messages[0].content }}"
    for prompt in ("", [{"role": "user", "content": ""}]):
        silent = dataclasses.replace(task, test=[{"prompt": prompt, "completion": " x"}])
        with pytest.raises(ValueError, match="prompt .* gives no tokens with this tokenizer"):
            finetune(tiny_llama, silent, tokenizer, placement, **FEW)
    assert not trained


def test_an_empty_prompt_begins_where_the_tokenizer_says(tiny_llama, tokenizer, task):
    start = [("<end>", tokenizer.eos_token_id)]
    begun = TemplateProcessing(single="<end> $A", special_tokens=start)
    tokenizer.backend_tokenizer.post_processor = begun
    blank = dataclasses.replace(task, test=[{"prompt": "", "completion": " x"}])
    found = evaluate(tiny_llama, blank, tokenizer)
    assert found["loss"] > 0 and found["accuracy"] == 0


def test_a_folder_that_cannot_be_written_to_is_found_before_the_training(
    tiny_llama, tokenizer, task, placement, trained, tmp_path
):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "adapter", ""):
        with pytest.raises(ValueError, match="out='.*' (cannot be written to|names no folder)"):
            finetune(tiny_llama, task, tokenizer, placement, **FEW, out=out)
    assert not trained and (tmp_path / "file").read_text() == "mine"


def test_a_tokenizer_of_another_model_is_found_before_the_training(
    tiny_llama, tokenizer, task, placement, trained
):
    tokenizer.add_tokens(["one", "two", "three"])
    tokenizer.add_special_tokens({"eos_token": "<other end>"})
    message = "tokenizer writes the token 260, but model has embeddings for 258"
    with pytest.raises(ValueError, match=message):
        finetune(tiny_llama, task, tokenizer, placement, **FEW)
    checked = []
    with pytest.raises(ValueError, match=message):
        evaluate(tiny_llama, dataclasses.replace(task, check=checked.append), tokenizer)
    assert not trained and not checked


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"callbacks": None}, "callbacks=None, expected a list"),
        ({"callbacks": TrainerCallback()}, "callbacks=<.*, expected a list: put it in one"),
        ({"accuracy": "no"}, "accuracy='no', expected True or False"),
    ],
)
def test_arguments_of_another_kind_are_found_before_the_training(
    tiny_llama, tokenizer, task, placement, trained, argument, message
):
    with pytest.raises((TypeError, ValueError), match=message):
        finetune(tiny_llama, task, tokenizer, placement, **FEW, **argument)
    assert not trained


def test_what_is_no_model_to_train_is_refused(tiny_llama, tokenizer, task, placement):
    def message_of(model):
        with pytest.raises((TypeError, ValueError)) as caught:
            finetune(model, task, tokenizer, placement, **FEW)
        return str(caught.value)

    assert "model is Linear, expected a causal" in message_of(torch.nn.Linear(2, 2))
    assert "model is LlamaModel, expected a causal" in message_of(tiny_llama.model)
    assert "expected a causal language model" in message_of(build("t5"))
    within = inject_adapter_in_model(placement.lora_config(tiny_llama), copy.deepcopy(tiny_llama))
    assert "with adapters, expected one without" in message_of(within)
    with torch.inference_mode():
        frozen = copy.deepcopy(tiny_llama)
    assert "under torch.inference_mode" in message_of(frozen)
    finetune(copy.deepcopy(frozen), task, tokenizer, placement, **FEW)  # the remedy


# Runs


class Mute(LlamaForCausalLM):
    """A model of one's own, which has a loss but writes nothing."""

    @property
    def generate(self):
        raise AttributeError("generate")


def test_a_model_that_writes_nothing_can_be_trained(tiny_llama, tokenizer, task, placement):
    tiny_llama.__class__ = Mute
    row = finetune(tiny_llama, task, tokenizer, placement, **FEW, accuracy=False)
    assert row["loss"] > 0 and row["accuracy"] is None
    with pytest.raises(TypeError, match="model is Mute, expected a causal language model"):
        finetune(tiny_llama, task, tokenizer, placement, **FEW)


@pytest.mark.slow
def test_what_the_caller_has_set_changes_nothing(tiny_llama, tokenizer, task, placement):
    """Whether gradients are taken, and the default dtype."""

    def run(**options):
        row = finetune(tiny_llama, task, tokenizer, placement, **FEW, **options)
        return row["loss"], row["curve"]

    expected, keep = run(), Keep()
    for around in (torch.no_grad, torch.inference_mode):
        with around():
            assert run() == expected
    torch.set_default_dtype(torch.float64)
    try:
        assert run(callbacks=[keep]) == expected and torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert set(keep.dtypes.values()) == {torch.float32}


class Saves(TrainerCallback):
    """Asks for a checkpoint after every step, and remembers where it went."""

    def on_step_end(self, args, state, control, **_):
        control.should_save = True

    def on_save(self, args, state, control, **_):
        self.folder = Path(args.output_dir)
        assert list(self.folder.iterdir())
        raise KeyboardInterrupt


def test_trainers_leave_no_files(tiny_llama, tokenizer, task, placement, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    saves = Saves()
    with pytest.raises(KeyboardInterrupt):
        finetune(tiny_llama, task, tokenizer, placement, **FEW, callbacks=[saves])
    assert saves.folder.parent == tmp_path and not list(tmp_path.iterdir())


class Keep(TrainerCallback):
    """What the trainer's own parts look like while they run."""

    def on_train_begin(
        self, args, state, control, model=None, train_dataloader=None, optimizer=None, **_
    ):
        self.dtypes = {
            n.split(".lora_")[-1][:1] if ".lora_" in n else "base": p.dtype
            for n, p in model.named_parameters()
        }
        self.batch = next(iter(train_dataloader))
        self.args = args


def test_finetuning_learns_and_says_what_it_did(tiny_llama, tokenizer, task, placement):
    easy = Task(
        "easy",
        [{"prompt": f"{i}?", "completion": " a"} for i in range(24)],
        task.validation,
        [{"prompt": f"{i}?", "completion": " a"} for i in range(50, 58)],
        is_completion,
        4,
    )
    before = evaluate(tiny_llama, easy, tokenizer)
    row = finetune(
        tiny_llama,
        easy,
        tokenizer,
        placement,
        r=8,
        lr=3e-2,
        steps=40,
        batch_size=8,
        logging_steps=10,
    )
    assert row["loss"] < before["loss"] / 4 and before["accuracy"] == 0 and row["accuracy"] == 1
    assert [step for step, _ in row["curve"]] == [10, 20, 30, 40] and row["curve"][-1][1] < row[
        "curve"
    ][0][1]
    table = placement.check(tiny_llama, placement.lora_config(tiny_llama, r=8))
    assert (
        row["parameters"] == table["trainable"].sum() and row["modules"] == table["adapted"].sum()
    )
    assert (row["task"], row["split"], row["r"], row["lora_alpha"], row["dtype"]) == (
        "easy",
        "test",
        8,
        16,
        "float32",
    )
    assert row["seconds"] > 0 and row["peak_memory"] > 1e6


def test_trainer_masks_prompts_and_leaves_dtypes(tiny_llama, tokenizer, task, placement):
    keep = Keep()
    finetune(
        tiny_llama.bfloat16(), task, tokenizer, placement, **FEW, callbacks=[keep], accuracy=False
    )
    assert keep.dtypes == {"base": torch.bfloat16, "A": torch.float32, "B": torch.float32}
    assert (
        not (keep.args.bf16 or keep.args.fp16 or keep.args.gradient_checkpointing)
        and keep.args.use_cpu
    )
    for ids, labels in zip(keep.batch["input_ids"], keep.batch["labels"], strict=True):
        counted = tokenizer.decode(ids[labels != -100])
        number = int(tokenizer.decode(ids).split(" plus")[0])
        assert (
            counted == f" {number + 1}<end>"
            and (labels[labels != -100] == ids[labels != -100]).all()
        )


@pytest.mark.slow
def test_same_seed_same_result_whatever_ran_before(tiny_llama, tokenizer, task, placement, scores):
    def run(**options):
        return finetune(tiny_llama, task, tokenizer, placement, **{**FEW, **options})

    first = run()
    finetune(tiny_llama, task, tokenizer, Placement.of_types(scores, ["k_proj"]), **FEW, seed=5)
    torch.rand(7), random.random(), np.random.rand(3)
    again, other = run(), run(seed=1)
    assert (again["loss"], again["curve"]) == (first["loss"], first["curve"])
    assert other["loss"] != first["loss"]


def state_of(model):
    modules = {
        n: (
            type(m),
            m.training,
            sorted(vars(m)),
            {k: len(v) for k, v in vars(m).items() if "hooks" in k},
        )
        for n, m in model.named_modules()
    }
    return {
        "parameters": {
            n: (p.data_ptr(), p.requires_grad, p.grad, p.dtype) for n, p in model.named_parameters()
        },
        "modules": modules,
        "config": model.config.to_dict(),
        "generation": model.generation_config.to_dict(),
    }


@pytest.mark.parametrize("failing", [None, "on_train_begin", "on_step_end", "interrupt"])
def test_model_comes_back_as_it_was(tiny_llama, tokenizer, task, placement, failing):
    tiny_llama.train()
    tiny_llama.lm_head.weight.requires_grad_(False)
    tiny_llama.model.layers[1].eval()
    weights = {k: v.clone() for k, v in tiny_llama.state_dict().items()}
    before, rng = state_of(tiny_llama), torch.get_rng_state()
    pad = tokenizer.pad_token, tokenizer.padding_side
    if failing is None:
        finetune(tiny_llama, task, tokenizer, placement, **FEW)
    else:
        error = KeyboardInterrupt if failing == "interrupt" else RuntimeError
        callback = type("Failing", (TrainerCallback,), {})()

        def fail(*_, **__):
            raise error("on purpose")

        setattr(callback, "on_step_end" if failing == "interrupt" else failing, fail)
        with pytest.raises(error, match="on purpose"):
            finetune(tiny_llama, task, tokenizer, placement, **FEW, callbacks=[callback])
    assert state_of(tiny_llama) == before and torch.equal(torch.get_rng_state(), rng)
    assert (tokenizer.pad_token, tokenizer.padding_side) == pad
    after = tiny_llama.state_dict()
    assert after.keys() == weights.keys() and all(
        torch.equal(after[k], weights[k]) for k in weights
    )


def test_a_mixture_of_experts_comes_back_too(tokenizer, task):
    model = build("mixtral")
    model.resize_token_embeddings(len(tokenizer))
    scores = plop.nfn_scores(model, ["a text", "another one"], tokenizer, progress=False)
    chosen = Placement.of_types(scores, ["gate_up_proj", "v_proj"])
    before, output = state_of(model), model(torch.ones(1, 3, dtype=torch.long)).logits
    row = finetune(model, task, tokenizer, chosen, **FEW)
    assert state_of(model) == before
    assert torch.equal(model(torch.ones(1, 3, dtype=torch.long)).logits, output)
    assert (
        row["parameters"] == chosen.check(model, chosen.lora_config(model, r=2))["trainable"].sum()
    )
    assert row["modules"] == 4


def test_saved_reloaded_and_merged_adapters_evaluate_the_same(
    tiny_llama, tokenizer, task, placement, tmp_path
):
    row = finetune(tiny_llama, task, tokenizer, placement, **FEW, out=tmp_path)
    base = evaluate(tiny_llama, task, tokenizer)["loss"]
    loaded = PeftModel.from_pretrained(copy.deepcopy(tiny_llama), tmp_path)
    assert evaluate(loaded, task, tokenizer)["loss"] == row["loss"] != pytest.approx(base, rel=1e-3)
    merged = loaded.merge_and_unload()
    assert not [m for m in merged.modules() if isinstance(m, BaseTunerLayer)]
    assert evaluate(merged, task, tokenizer)["loss"] == pytest.approx(row["loss"], rel=1e-5)


def test_rank_for_comes_nearest(tiny_llama, scores):
    chosen = Placement.of_types(scores, ["q_proj"])  # 2 layers x (32 + 32) at rank 1
    assert [rank_for(chosen, tiny_llama, n) for n in (1, 128, 191, 193, 1280)] == [1, 1, 1, 2, 10]
    with pytest.raises(ValueError, match="parameters=0, expected a positive number"):
        rank_for(chosen, tiny_llama, 0)


def test_trl_that_is_not_installed(tiny_llama, tokenizer, task, placement, monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(ImportError, match="pip install optuna psutil trl"):
        finetune(tiny_llama, task, tokenizer, placement)


# Adapters of one's own


SHORT = {"lr": 1e-2, "steps": 2, "batch_size": 4, "logging_steps": 1}
PAIR = ["q_proj", "up_proj"]
CONFIGS = {
    "targets": {"target_modules": PAIR},
    "ranks": {"target_modules": PAIR, "rank_pattern": {"up_proj": 5}, "use_rslora": True},
    "one layer": {"target_modules": PAIR, "layers_to_transform": [1]},
    "all linear": {"target_modules": "all-linear"},
    "dora": {"target_modules": PAIR, "use_dora": True},
    "gaussian": {"target_modules": PAIR, "init_lora_weights": "gaussian"},
    "olora": {"target_modules": PAIR, "init_lora_weights": "olora"},
    "pissa": {"target_modules": PAIR, "init_lora_weights": "pissa"},
    "biases": {"target_modules": PAIR, "bias": "lora_only"},
    "saved": {"target_modules": PAIR, "modules_to_save": ["lm_head"]},
    "embedding": {"target_modules": [*PAIR, "embed_tokens"]},
    "eva": {"target_modules": PAIR, "init_lora_weights": "eva"},
}
TYPES_OF = {
    "all linear": "q_proj+k_proj+v_proj+o_proj+gate_proj+up_proj+down_proj",
    "embedding": "q_proj+up_proj+embed_tokens",
}


def own_config(name, **options):
    return LoraConfig(**{"r": 2, "lora_alpha": 3, **CONFIGS[name], **options})


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_any_lora_config_is_trained_and_leaves_the_model(tiny_llama, tokenizer, task, name):
    before = {key: value.clone() for key, value in tiny_llama.state_dict().items()}
    config = own_config(name)
    said = copy.deepcopy(config)
    row = finetune(tiny_llama, task, tokenizer, config, **SHORT, accuracy=False)
    after = tiny_llama.state_dict()
    assert all(torch.equal(value, before[key]) for key, value in after.items()), name
    assert config == said
    assert np.isfinite(row["loss"]) and (row["r"], row["lora_alpha"]) == (2, 3)
    assert row["types"] == TYPES_OF.get(name, "q_proj+up_proj")
    if name != "eva":  # it spreads the ranks anew
        copied = get_peft_model(copy.deepcopy(tiny_llama), config)
        assert row["parameters"] == copied.get_nb_trainable_parameters()[0]
        assert row["modules"] == len(copied.targeted_module_names)


def test_the_config_of_a_placement_is_the_placement(tiny_llama, tokenizer, task, placement):
    """Its adapters are the same, and so is all that comes of them."""
    config = placement.lora_config(tiny_llama, r=2, lora_alpha=4)
    config.inference_mode = True  # as in what PEFT has saved
    rows = [
        finetune(tiny_llama, task, tokenizer, config, **SHORT),
        finetune(tiny_llama, task, tokenizer, placement, r=2, **SHORT),
    ]
    for row in rows:
        row.update(types=set(row["types"].split("+")), seconds=None, peak_memory=None)
    assert rows[0] == rows[1] and list(rows[0]) == list(rows[1])


@pytest.mark.slow
def test_experts_of_a_config_are_counted_as_those_of_a_placement(tokenizer, task):
    model = build("mixtral")
    model.resize_token_embeddings(len(tokenizer))
    scores = plop.nfn_scores(model, ["a text", "another one"], tokenizer, progress=False)
    chosen = Placement.of_types(scores, ["gate_up_proj", "down_proj", "v_proj"])
    config = chosen.lora_config(model, r=2)
    row = finetune(model, task, tokenizer, config, **SHORT, accuracy=False)
    assert row["types"].split("+") == ["v_proj", "gate_up_proj", "down_proj"]
    assert row["parameters"] == chosen.check(model, config)["trainable"].sum()
    assert row["modules"] == 6


def ranks_of(adapter):
    """{module: rank} of the adapters in a model."""
    return {n: layer.r["default"] for n, layer in adapter.named_modules() if hasattr(layer, "r")}


def eva_copy(model, rows, config, *, batch_size=4, seed=0):
    return adapted_copy(model, config, rows, pad=0, batch_size=batch_size, seed=seed)


def test_eva_starts_on_the_main_directions_of_the_inputs(tiny_llama, tokenizer, task):
    """Against a singular value decomposition of the inputs of all completion tokens."""
    rows = encoded(task, "train", tokenizer)
    module = "model.layers.0.mlp.down_proj"
    config = LoraConfig(
        r=2, target_modules=[module], init_lora_weights="eva", eva_config=EvaConfig(rho=1)
    )
    lora = eva_copy(tiny_llama, rows, config, batch_size=24)
    inputs, counted = [], []
    handle = tiny_llama.get_submodule(module).register_forward_pre_hook(
        lambda _, given: inputs.append(given[0][0])
    )
    for row in rows:
        tiny_llama(torch.tensor([row["input_ids"]]))
        counted.append(torch.tensor(row["labels"]) != -100)
    handle.remove()
    states = torch.cat(inputs)[torch.cat(counted)].double()
    directions = torch.linalg.svd(states - states.mean(0), full_matrices=False).Vh[:2]
    layer = lora.get_base_model().get_submodule(module)
    start = layer.lora_A["default"].weight.double()
    assert (start @ directions.T).abs().diagonal().min() > 0.99
    assert layer.lora_B["default"].weight.abs().max() == 0


@pytest.mark.slow
def test_eva_spreads_the_ranks_and_is_the_same_for_a_seed(tiny_llama, tokenizer, task, tmp_path):
    everything = EvaConfig(rho=2, use_label_mask=False)
    config = LoraConfig(
        r=3, target_modules="all-linear", init_lora_weights="eva", eva_config=everything
    )
    options = {**SHORT, "accuracy": False}
    row = finetune(tiny_llama, task, tokenizer, config, **options, out=tmp_path)
    random.seed(3), torch.manual_seed(3)
    again = finetune(tiny_llama, task, tokenizer, config, **options)
    assert (row["loss"], row["curve"]) == (again["loss"], again["curve"])
    assert np.isfinite(row["loss"]) and not config.rank_pattern
    loaded = PeftModel.from_pretrained(copy.deepcopy(tiny_llama), tmp_path)
    assert evaluate(loaded, task, tokenizer, accuracy=False)["loss"] == row["loss"]
    ranks = ranks_of(loaded)
    assert len(set(ranks.values())) > 1 and max(ranks.values()) <= 6
    assert len(ranks) == row["modules"] <= 14 and sum(ranks.values()) == 3 * 14
    loaded.requires_grad_(True)
    own = [p for n, p in loaded.named_parameters() if "lora_" in n]
    assert row["parameters"] == sum(p.numel() for p in own)


def test_adapters_of_eva_are_float32_and_trained(tiny_llama, tokenizer, task):
    rows = encoded(task, "train", tokenizer)
    lora = eva_copy(tiny_llama.bfloat16(), rows, own_config("eva"))
    for name, parameter in lora.named_parameters():
        assert parameter.requires_grad is ("lora_" in name) and not parameter.is_meta
        assert parameter.dtype == (torch.float32 if "lora_" in name else torch.bfloat16)


def eva(**options):
    return {"init_lora_weights": "eva", "eva_config": EvaConfig(**options)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (eva(rho=9), "eva_config.rho=9 at rank 2 lets PEFT look for 36 directions in inputs of 32"),
        ({"target_modules": ["w_proj"]}, r"LoraConfig\(target_modules={'w_proj'}\) hits nothing"),
        ({"task_type": "SEQ_CLS"}, "placement.task_type='SEQ_CLS', expected 'CAUSAL_LM' or None"),
        ({"init_lora_weights": "lora_ga"}, "init_lora_weights='lora_ga' starts from data"),
        ({"r": 0}, "r=0, expected an integer of at least 1"),
        (
            {**eva(), "target_parameters": ["mlp.up_proj.weight"]},
            "placement.target_parameters=.*cannot start with EVA",
        ),
    ],
)
def test_a_config_that_cannot_be_trained_is_found_before_the_training(
    tiny_llama, tokenizer, task, trained, options, message
):
    config = own_config("targets", **options)
    with pytest.raises(ValueError, match=message):
        finetune(tiny_llama, task, tokenizer, config, **SHORT)
    assert not trained


def test_eva_needs_tokens(tiny_llama, tokenizer, task, monkeypatch):
    rows = encoded(task, "train", tokenizer)[:2]  # of 3 tokens each that count
    config = own_config("eva", eva_config=EvaConfig(rho=2))
    with pytest.raises(ValueError, match="for 8 directions, but the training examples have fewer"):
        eva_copy(tiny_llama, rows, config)
    config = own_config("eva", eva_config=EvaConfig(rho=2, use_label_mask=False))
    eva_copy(tiny_llama, rows, config)  # the remedy
    monkeypatch.setattr(adapting, "MOST_BATCHES", 1)
    with pytest.raises(ValueError, match="EVA have not settled after 1 batches: lower tau or rho"):
        eva_copy(tiny_llama, rows, own_config("eva", eva_config=config.eva_config))


@pytest.mark.parametrize("name", ["r", "lora_alpha"])
def test_a_config_has_its_own_rank_and_scale(tiny_llama, tokenizer, task, name):
    message = f"{name}=2, but this placement is a LoraConfig, which has its own {name}="
    with pytest.raises(ValueError, match=message):
        finetune(tiny_llama, task, tokenizer, own_config("targets"), **{name: 2})


# Norms while training


@pytest.mark.slow
def test_norms_callback_records_the_effective_maps_and_disturbs_nothing(
    tiny_llama, tokenizer, task, placement, tmp_path
):
    probe = ["a probe text", "and another"]
    for layer in tiny_llama.model.layers:
        layer.self_attn.attention_dropout = 0.2  # a training that draws
    norms = NormsCallback(probe, tokenizer, every=2)
    options = {**FEW, "steps": 5}
    with_it = finetune(
        tiny_llama, task, tokenizer, placement, **options, callbacks=[norms], out=tmp_path
    )
    without = finetune(tiny_llama, task, tokenizer, placement, **options)
    assert (with_it["loss"], with_it["curve"]) == (without["loss"], without["curve"])
    frame = norms.frame()
    assert frame["step"].unique().tolist() == [0, 2, 4, 5]
    assert frame.columns.tolist() == ["step", "type", "input_norm", "feature_norm", "nfn"]
    merged = PeftModel.from_pretrained(copy.deepcopy(tiny_llama), tmp_path).merge_and_unload()
    for step, model in {0: tiny_llama, 5: merged}.items():
        expected = plop.by_type(plop.nfn_scores(model, probe, tokenizer, progress=False)).set_index(
            "type"
        )["nfn"]
        found = frame[frame["step"] == step].set_index("type")["nfn"][expected.index]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    moved = frame.query("step == 5")["nfn"].to_numpy() - frame.query("step == 0")["nfn"].to_numpy()
    assert np.abs(moved).max() > 1e-4


def test_a_callback_records_one_training(tiny_llama, tokenizer):
    """One that has ended at its start is forgotten."""
    norms, state = NormsCallback(["a probe"], tokenizer), TrainerState(max_steps=3)
    for _ in range(2):
        norms.on_train_begin(None, state, None, model=tiny_llama)
        assert norms.frame()["step"].unique().tolist() == [0]
        assert not norms.frame()["type"].duplicated().any()
    state.global_step = 3
    norms.on_train_end(None, state, None, model=tiny_llama)
    recorded = norms.frame()
    with pytest.raises(RuntimeError, match="record of another training: make a new one for each"):
        norms.on_train_begin(None, TrainerState(max_steps=3), None, model=tiny_llama)
    pd.testing.assert_frame_equal(norms.frame(), recorded)


def test_the_end_is_recorded_where_a_training_stops_early(tiny_llama, tokenizer, task, placement):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = state.global_step == 1

    norms = NormsCallback((text for text in ["a probe", "another"]), tokenizer, every=2)
    finetune(tiny_llama, task, tokenizer, placement, **FEW, callbacks=[norms, Stop()])
    assert norms.frame()["step"].unique().tolist() == [0, 1]


def test_the_last_step_is_not_the_best_model(tiny_llama, tokenizer):
    """Which a trainer loads before it says that the training has ended."""
    norms, state = NormsCallback(["a probe"], tokenizer, every=10), TrainerState(max_steps=3)
    control, settings = TrainerControl(), SimpleNamespace(load_best_model_at_end=True)
    norms.on_train_begin(settings, state, control, model=tiny_llama)
    state.global_step = 3
    norms.on_step_end(settings, state, control, model=tiny_llama)
    last = norms.frame()
    tiny_llama.model.layers[0].mlp.up_proj.weight.data *= 5  # the best one
    norms.on_train_end(settings, state, control, model=tiny_llama)
    pd.testing.assert_frame_equal(norms.frame(), last)
    assert last["step"].unique().tolist() == [0, 3]


@pytest.mark.parametrize("texts", [[], "a probe", [" "], ["a", ""], ["a", 3]])
def test_probe_texts_are_read_when_the_callback_is_made(tokenizer, texts):
    with pytest.raises((TypeError, ValueError), match="texts"):
        NormsCallback(texts, tokenizer)


class Wrapped(torch.nn.parallel.DistributedDataParallel):
    """A model as DDP holds it, without processes."""

    def __init__(self, module):
        torch.nn.Module.__init__(self)
        self.module = module


def test_norms_are_those_of_the_model_itself_in_ddp_and_under_checkpointing(
    tiny_llama, tokenizer, placement
):
    adapted = get_peft_model(copy.deepcopy(tiny_llama), placement.lora_config(tiny_llama)).train()
    checkpointed = copy.deepcopy(adapted)
    checkpointed.gradient_checkpointing_enable()
    state = TrainerState(max_steps=1)
    expected = None
    for model in (adapted, Wrapped(adapted), checkpointed, tiny_llama):  # adapters start at zero
        norms = NormsCallback(["a probe text"], tokenizer)
        norms.on_train_begin(None, state, None, model=model)
        expected = norms.frame() if expected is None else expected
        pd.testing.assert_frame_equal(norms.frame(), expected)
    assert adapted.training and checkpointed.is_gradient_checkpointing


# Placements


@pytest.mark.parametrize("model_type", ["llama", "mixtral", "gpt2", "qwen2_moe", "gpt_oss"])
def test_budget_counts_what_peft_adapts(model_type):
    """Also where some experts of a stack got no token."""
    model = build(model_type)
    scores = plop.nfn_scores(model, [{"input_ids": torch.arange(10, 14)[None]}], progress=False)
    ranking = plop.by_type(scores)["type"].tolist()
    for k in range(1, len(ranking) + 1):
        chosen = plop.place(scores, k=k)
        count = int(chosen.check(model, chosen.lora_config(model, r=4))["trainable"].sum())
        assert plop.place(scores, parameters=count, r=4).types == ranking[:k]
        if k > 1:
            assert plop.place(scores, parameters=count - 1, r=4).types == ranking[: k - 1]
    with pytest.raises(
        ValueError, match=f"parameters=7 is less than the .* on type {ranking[0]} alone at r=4"
    ):
        plop.place(scores, parameters=7, r=4)


def test_budget_stops_at_the_first_type_that_does_not_fit(scores):
    """No cheaper type further up is taken instead."""
    wide = scores.assign(
        in_features=np.where(scores["type"] == plop.by_type(scores)["type"][1], 10_000, 8)
    )
    assert plop.place(wide, parameters=5000, r=1).types == plop.by_type(scores)["type"].tolist()[:1]


def test_budget_and_k_exclude_each_other(scores):
    with pytest.raises(ValueError, match="k=2 and parameters=5000 both say how many types"):
        plop.place(scores, k=2, parameters=5000)
    with pytest.raises(ValueError, match="lacks the columns .*experts"):
        plop.place(scores.drop(columns="experts"), parameters=5000)
    assert plop.place(scores).types == plop.place(scores, k=3).types


def test_scores_have_shapes_after_the_old_columns(scores, tiny_llama):
    assert scores.columns.tolist() == [
        "sample",
        "module",
        "type",
        "layer",
        "tokens",
        "nfn",
        "in_features",
        "out_features",
        "experts",
    ]
    shapes = scores.drop_duplicates("module").set_index("module")[["in_features", "out_features"]]
    table = (
        plop.module_table(tiny_llama)
        .set_index("module")
        .loc[shapes.index, ["in_features", "out_features"]]
    )
    assert (shapes == table).all(axis=None)


def test_placements_by_hand(scores, tiny_llama):
    chosen = Placement.of_types(scores, ["up_proj", "q_proj"])
    assert (
        set(chosen.types) == {"up_proj", "q_proj"}
        and len(chosen.modules) == 4
        and np.isnan(chosen.confidence)
    )
    assert (
        "chosen by hand" in repr(chosen)
        and "nan" not in repr(chosen)
        and "chosen by hand" in chosen._repr_html_()
    )
    one = Placement.of_modules(scores, ["model.layers.1.mlp.up_proj"])
    table = one.check(tiny_llama, one.lora_config(tiny_llama))
    assert table[["type", "adapted"]].values.tolist() == [["up_proj", 1]]
    with pytest.raises(ValueError, match="'w_proj' is not a type in scores"):
        Placement.of_types(scores, ["w_proj"])
    with pytest.raises(ValueError, match="types='q_proj', expected a list"):
        Placement.of_types(scores, "q_proj")


@pytest.mark.parametrize("model_type", ["llama", "mixtral", "bert"])
def test_exported_config_hits_the_same_modules(model_type, tmp_path):
    """As PEFT's MetaMathQA suite takes it: adapter_config.json alone, onto a fresh model."""
    model = build(model_type)
    scores = plop.nfn_scores(model, [{"input_ids": torch.arange(10, 14)[None]}], progress=False)
    chosen = plop.place(scores, k=2)
    config = chosen.lora_config(model, r=32)
    config.save_pretrained(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["adapter_config.json"]
    loaded = PeftConfig.from_pretrained(str(tmp_path))
    assert isinstance(loaded, LoraConfig) and loaded.r == 32
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "LORA"

    def names(config):
        modules = get_peft_model(build(model_type), config).named_modules()
        return sorted(name for name, module in modules if isinstance(module, BaseTunerLayer))

    assert names(loaded) == names(config) != []
    pd.testing.assert_frame_equal(chosen.check(model, loaded), chosen.check(model, config))


# The real model


@pytest.mark.slow
def test_smollm_learns_sums(smollm, math_scores):
    model, tokenizer = smollm
    task = load_task("sums", train=64, validation=8, test=16)
    before = evaluate(model, task, tokenizer, accuracy=False)["loss"]
    budget = plop.place(math_scores, parameters=2_400_000)
    assert budget.types == plop.place(math_scores, k=3).types
    row = finetune(
        model, task, tokenizer, budget, r=4, lr=3e-3, steps=6, batch_size=4, accuracy=False
    )
    assert row["loss"] < before - 0.3 and row["parameters"] == 2_396_160 // 4
