"""Finetuning: tasks with their checkers, runs, grids that resume, comparisons."""

import copy
import dataclasses
import json
import random
import threading

import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import TrainerCallback

import plop_nb as plop
from plop_nb import finetune as ft
from plop_nb.placement import Placement
from tests.tiny_models import build


def digits(n, start=0):
    return [{"prompt": f"{i} plus 1\nAnswer:", "completion": f" {i + 1}"} for i in range(start, start + n)]


@pytest.fixture
def task():
    check = lambda text, example: text == example["completion"]
    return ft.Task("toy", digits(24), digits(6, 100), digits(7, 200), check, new_tokens=5)


@pytest.fixture
def tokenizer(byte_tokenizer):
    byte_tokenizer.add_special_tokens({"eos_token": "<end>"})
    return byte_tokenizer


@pytest.fixture
def scores(tiny_llama, tokenizer):
    return plop.nfn_scores(tiny_llama, [f"a text, number {i}" for i in range(8)], tokenizer, progress=False)


@pytest.fixture
def placement(scores):
    return plop.place(scores, k=2)


FEW = {"r": 2, "steps": 3, "batch_size": 4, "logging_steps": 1, "lr": 1e-2}


# Tasks


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sums", "gsm", "syllogisms", "code"])
def test_task_splits_are_disjoint_and_its_checker_tells_right_from_wrong(name):
    state = random.getstate()
    task = ft.load_task(name, train=60, validation=20, test=20)
    assert random.getstate() == state
    splits = [task.train, task.validation, task.test]
    prompts = [e["prompt"].strip() for split in splits for e in split]
    assert len(set(prompts)) == len(prompts) == 100
    again = ft.load_task(name, train=10, validation=20, test=20)
    assert (again.test, again.validation, again.train) == (task.test, task.validation, task.train[:10])
    assert ft.load_task(name, train=60, validation=20, test=20, seed=1).test != task.test
    for example in task.test[:5]:
        assert task.check(example["completion"], example)
        for wrong in ("", " ", "\n", " no idea", " 31415926", example["prompt"], "#### ", " NaN", "inf" * 500):
            assert not task.check(wrong, example), (example, wrong)


def test_sums_take_the_first_line_alone():
    task = ft.load_task("sums", train=1, validation=1, test=1)
    example = {"prompt": "", "completion": " -45", "entry": {"answer": "-45"}}
    right = [" -45", "-45\n7", " -45.0"]
    wrong = [" 45", " -45 or 7", " 7\n-45", " -4 5", " 1 -45", " −45"]
    assert [task.check(t, example) for t in right + wrong] == [True] * 3 + [False] * 6


def test_gsm_takes_the_marked_number_else_the_last():
    task = ft.load_task("gsm", train=1, validation=1, test=1)
    example = {"entry": {"answer": "1050"}}
    right = [" 3 * 350 = 1050\n#### 1050", " #### 1,050 and 7", " so 1050", " The answer is: 1050.", " #### 1050.0"]
    wrong = [" 1050\n#### 105", " 1050 7", " ####", " 1 2 3 1050 4", " #### 1"]
    assert [task.check(t, example) for t in right + wrong] == [True] * 5 + [False] * 5


def test_gsm_reads_signs_commas_and_decimals():
    check = ft.load_task("gsm", train=1, validation=1, test=1).check
    right = [("-7", "-7"), ("#### -7.0", "-7"), ("-1,042", "-1042"), ("0.50", "0.5")]
    wrong = [("-7", "7"), ("7", "-7"), ("7,999", "7"), ("7", "7999"), ("0.5", "5")]
    found = [check(text, {"entry": {"answer": answer}}) for text, answer in right + wrong]
    assert found == [True] * 4 + [False] * 5


def test_syllogisms_take_the_first_word():
    task = ft.load_task("syllogisms", train=1, validation=1, test=1)
    example = {"entry": {"answer": "No"}}
    assert [task.check(t, example) for t in (" No", "No, they are not", " Yes", " Yes. No", " Nothing")] == [
        True, True, False, False, False,
    ]  # fmt: skip


@pytest.mark.slow
def test_generated_code_runs_apart_and_within_limits(tmp_path):
    example = ft.load_task("code", train=1, validation=1, test=1).test[0]
    check = ft.load_task("code", train=1, validation=1, test=1).check
    body = example["completion"]
    assert check(body, example) and check(f"{body}\n\nassert False, 'after the function'", example)
    mark = tmp_path / "mark"
    for hostile in ("while True: pass", "import os; os._exit(0)", "import sys; sys.exit(0)", "x = 'a' * 2**33; return x",
                    f"open({str(mark)!r}, 'w').write('x' * 2**21)", "print('True'); return None", "return ("):  # fmt: skip
        assert not check(f"    {hostile}", example), hostile
    assert not mark.exists() or mark.stat().st_size <= 2**20


def test_hub_tasks(monkeypatch):
    """The Hub's rows stood in for: labels, one rephrasing of each question, answers after their marks."""
    import datasets

    def load(source, split, name=None):
        if source == "facebook/anli":
            rows = [{"premise": f"{split} {i}", "hypothesis": "h", "label": i % 3} for i in range(30)]
        elif source == "meta-math/MetaMathQA":
            rows = [{"query": f"q{i}", "response": f"x\nThe answer is: {i}", "original_question": f"o{i // 3}"}
                    for i in range(60)]  # fmt: skip
            rows += [{"query": f"no number {i}", "response": f"x\nThe answer is: {a}", "original_question": f"n{i}"}
                     for i, a in enumerate(["x", "1/2", "\\frac{1}{2}", "$y$"] * 20)]  # fmt: skip
        else:
            assert (source, split, name) == ("openai/gsm8k", "test", "main")
            rows = [{"question": f"t{i}", "answer": f"2*3=<<2*3=6>>6\n#### {i}"} for i in range(9)]
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load)
    anli = ft.load_task("anli", train=20, validation=5, test=5)
    assert all("train_r3" in e["prompt"] for e in anli.train) and all("test_r3" in e["prompt"] for e in anli.test)
    assert anli.check(" neutral", {"completion": " neutral"}) and not anli.check(
        " neutrality", {"completion": " neutral"}
    )
    assert {e["completion"] for e in anli.train} == {" entailment", " neutral", " contradiction"}
    math = ft.load_task("metamath", train=10, validation=5, test=5)
    sources = [e["source"] for e in math.train + math.validation]
    assert len(set(sources)) == 15 and "<<" not in str(math.test)
    assert math.test[0]["completion"].startswith(" 2*3=6\nThe answer is: ")
    assert "no number" not in str([math.train, math.validation])
    for e in math.test + math.validation:
        assert math.check(e["completion"], e) and math.check(e["completion"] + ".00", e)
        assert not any(
            math.check(wrong, e) for wrong in (" The answer is: 77", "", "I do not know", "The answer is: x")
        )
    with pytest.raises(ValueError, match="train=30, but 'metamath' has only 1"):
        ft.load_task("metamath", train=30, validation=5, test=5)


def test_bad_tasks():
    with pytest.raises(ValueError, match="name='maths' is not a task, choose one of"):
        ft.load_task("maths")
    with pytest.raises(ValueError, match="train=0, expected an integer of at least 1"):
        ft.load_task("sums", train=0)


# Evaluation


def test_loss_is_the_mean_over_completion_tokens(tiny_llama, tokenizer, task):
    """Against one forward per example and token by token sums, without padding."""
    uneven = ft.Task(
        "u", task.train, task.validation, [*task.test, {"prompt": "p " * 30, "completion": " long answer"}]
    )
    total, tokens = 0.0, 0
    for example in uneven.test:
        prompt, answer = (tokenizer(example[k])["input_ids"] for k in ("prompt", "completion"))
        ids = [*prompt, *answer, tokenizer.eos_token_id]
        with torch.no_grad():
            logs = tiny_llama(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        total -= sum(logs[i - 1, ids[i]].item() for i in range(len(prompt), len(ids)))
        tokens += len(answer) + 1
    assert ft.evaluate(tiny_llama, tokenizer, uneven)["loss"] == pytest.approx(total / tokens, rel=1e-5)
    assert ft.evaluate(tiny_llama, tokenizer, uneven)["accuracy"] is None


def test_accuracy_is_that_of_one_prompt_at_a_time(tiny_llama, tokenizer, task, monkeypatch):
    seen = []
    look = ft.Task(
        "t", task.train, task.validation, digits(5, 9997), lambda t, e: seen.append((e["prompt"], t)) or len(seen) % 2
    )
    found = ft.evaluate(tiny_llama, tokenizer, look, accuracy=True, batch_size=2)
    assert found["accuracy"] == 3 / 5
    for (prompt, text), example in zip(seen, look.test, strict=True):
        assert prompt == example["prompt"]
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        for _ in range(look.new_tokens):
            ids = torch.cat([ids, tiny_llama(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
            if ids[0, -1] == tokenizer.eos_token_id:
                break
        assert text == tokenizer.decode(ids[0, len(tokenizer(prompt)["input_ids"]) :], skip_special_tokens=True)


def test_what_has_changed_is_read_again(tiny_llama, tokenizer, task):
    """A task or a tokenizer that is changed in place is another one."""
    loss = lambda: ft.evaluate(tiny_llama, tokenizer, task, accuracy=False)["loss"]
    before = loss()
    task.test.append({"prompt": "x", "completion": "yz"})
    longer = loss()
    tokenizer.eos_token = "!"
    assert len({before, longer, loss()}) == 3


def test_batches_keep_within_their_tokens():
    rows = ["x" * n for n in (3, 50, 1, 4, 7, 3)]
    parts = list(ft._batches(rows, len, 9))
    assert sorted(sum(parts, [])) == sorted(rows) and len(parts) == 4
    assert all(len(part) == 1 or len(part) * max(map(len, part)) <= 9 for part in parts)


def test_labels_are_the_completion_and_its_end_and_truncation_spares_them(tokenizer, task):
    row = ft._encoded(task, "train", tokenizer, 512)[3]
    prompt = tokenizer(task.train[3]["prompt"])["input_ids"]
    assert row["labels"] == [-100] * len(prompt) + row["input_ids"][len(prompt) :]
    assert tokenizer.decode(row["input_ids"]) == task.train[3]["prompt"] + " 4<end>"
    short = ft._encoded(task, "train", tokenizer, 5)[3]
    assert tokenizer.decode(short["input_ids"]) == "r: 4<end>" and short["labels"] == row["labels"][-5:]


def test_bad_calls(tiny_llama, byte_tokenizer, tokenizer, task, placement):
    with pytest.raises(TypeError, match="task is str, expected a Task"):
        ft.finetune(tiny_llama, tokenizer, "sums", placement)
    with pytest.raises(ValueError, match="split 'train' is unknown, choose one of"):
        ft.finetune(tiny_llama, tokenizer, task, placement, final="train")
    for steps in (0, -1):
        with pytest.raises(ValueError, match=f"steps={steps}, expected at least 1"):
            ft.finetune(tiny_llama, tokenizer, task, placement, steps=steps)
    for split, final in {"train": "test", "validation": "validation", "test": "test"}.items():
        lacking = dataclasses.replace(task, **{split: []})
        with pytest.raises(ValueError, match=f"task 'toy' has no example in its split '{split}'"):
            ft.finetune(tiny_llama, tokenizer, lacking, placement, final=final)
        with pytest.raises(ValueError, match=f"no example in its split '{split}'"):
            ft.evaluate(tiny_llama, tokenizer, lacking, split)
        with pytest.raises(ValueError, match=f"no example in its split '{split}'"):
            ft.grid(tiny_llama, tokenizer, [lacking], {"a": placement}, seeds=[0], lrs=[1e-3], final=final)
    adapted = get_peft_model(copy.deepcopy(tiny_llama), placement.lora_config(tiny_llama))
    with pytest.raises(TypeError, match="PeftModel.*pass model.unload"):
        ft.finetune(adapted, tokenizer, task, placement)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="set tokenizer.eos_token"):
        ft.evaluate(tiny_llama, tokenizer, task)


# Runs


class Keep(TrainerCallback):
    """What the trainer's own parts look like while they run."""

    def on_train_begin(self, args, state, control, model=None, train_dataloader=None, optimizer=None, **_):
        self.dtypes = {
            n.split(".lora_")[-1][:1] if ".lora_" in n else "base": p.dtype for n, p in model.named_parameters()
        }
        self.batch = next(iter(train_dataloader))
        self.args = args


def test_finetuning_learns_and_says_what_it_did(tiny_llama, tokenizer, task, placement):
    easy = ft.Task("easy", [{"prompt": f"{i}?", "completion": " a"} for i in range(24)], task.validation,
                   [{"prompt": f"{i}?", "completion": " a"} for i in range(50, 58)],
                   lambda text, example: text == example["completion"], 4)  # fmt: skip
    before = ft.evaluate(tiny_llama, tokenizer, easy)
    row = ft.finetune(tiny_llama, tokenizer, easy, placement, r=8, lr=3e-2, steps=40, batch_size=8, logging_steps=10)
    assert row["loss"] < before["loss"] / 4 and before["accuracy"] == 0 and row["accuracy"] == 1
    assert [step for step, _ in row["curve"]] == [10, 20, 30, 40] and row["curve"][-1][1] < row["curve"][0][1]
    table = placement.check(tiny_llama, placement.lora_config(tiny_llama, r=8))
    assert row["parameters"] == table["trainable"].sum() and row["modules"] == table["adapted"].sum()
    assert (row["task"], row["split"], row["r"], row["lora_alpha"], row["dtype"]) == ("easy", "test", 8, 16, "float32")
    assert row["seconds"] > 0 and row["peak_memory"] > 1e6


def test_trainer_masks_prompts_and_leaves_dtypes(tiny_llama, tokenizer, task, placement):
    keep = Keep()
    ft.finetune(tiny_llama.bfloat16(), tokenizer, task, placement, **FEW, callbacks=[keep], accuracy=False)
    assert keep.dtypes == {"base": torch.bfloat16, "A": torch.float32, "B": torch.float32}
    assert not (keep.args.bf16 or keep.args.fp16 or keep.args.gradient_checkpointing) and keep.args.use_cpu
    for ids, labels in zip(keep.batch["input_ids"], keep.batch["labels"], strict=True):
        counted = tokenizer.decode(ids[labels != -100])
        number = int(tokenizer.decode(ids).split(" plus")[0])
        assert counted == f" {number + 1}<end>" and (labels[labels != -100] == ids[labels != -100]).all()


def test_same_seed_same_result_whatever_ran_before(tiny_llama, tokenizer, task, placement, scores):
    run = lambda **options: ft.finetune(tiny_llama, tokenizer, task, placement, **{**FEW, **options})
    first = run()
    ft.finetune(tiny_llama, tokenizer, task, Placement.of_types(scores, ["k_proj"]), **FEW, seed=5)
    torch.rand(7), random.random(), np.random.rand(3)
    again, other = run(), run(seed=1)
    assert (again["loss"], again["curve"]) == (first["loss"], first["curve"])
    assert other["loss"] != first["loss"]


def state_of(model):
    modules = {n: (type(m), m.training, sorted(vars(m)), {k: len(v) for k, v in vars(m).items() if "hooks" in k})
               for n, m in model.named_modules()}  # fmt: skip
    return {
        "parameters": {n: (p.data_ptr(), p.requires_grad, p.grad, p.dtype) for n, p in model.named_parameters()},
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
        ft.finetune(tiny_llama, tokenizer, task, placement, **FEW)
    else:
        error = KeyboardInterrupt if failing == "interrupt" else RuntimeError
        callback = type("Failing", (TrainerCallback,), {})()

        def fail(*_, **__):
            raise error("on purpose")

        setattr(callback, "on_step_end" if failing == "interrupt" else failing, fail)
        with pytest.raises(error, match="on purpose"):
            ft.finetune(tiny_llama, tokenizer, task, placement, **FEW, callbacks=[callback])
    assert state_of(tiny_llama) == before and torch.equal(torch.get_rng_state(), rng)
    assert (tokenizer.pad_token, tokenizer.padding_side) == pad
    after = tiny_llama.state_dict()
    assert after.keys() == weights.keys() and all(torch.equal(after[k], weights[k]) for k in weights)


def test_a_mixture_of_experts_comes_back_too(tokenizer, task):
    model = build("mixtral")
    model.resize_token_embeddings(len(tokenizer))
    scores = plop.nfn_scores(model, ["a text", "another one"], tokenizer, progress=False)
    chosen = Placement.of_types(scores, ["gate_up_proj", "v_proj"])
    before, output = state_of(model), model(torch.ones(1, 3, dtype=torch.long)).logits
    row = ft.finetune(model, tokenizer, task, chosen, **FEW)
    assert state_of(model) == before
    assert torch.equal(model(torch.ones(1, 3, dtype=torch.long)).logits, output)
    assert row["parameters"] == chosen.check(model, chosen.lora_config(model, r=2))["trainable"].sum()
    assert row["modules"] == 4


def test_saved_reloaded_and_merged_adapters_evaluate_the_same(tiny_llama, tokenizer, task, placement, tmp_path):
    row = ft.finetune(tiny_llama, tokenizer, task, placement, **FEW, out=tmp_path)
    base = ft.evaluate(tiny_llama, tokenizer, task)["loss"]
    loaded = PeftModel.from_pretrained(copy.deepcopy(tiny_llama), tmp_path)
    assert ft.evaluate(loaded, tokenizer, task)["loss"] == row["loss"] != pytest.approx(base, rel=1e-3)
    merged = loaded.merge_and_unload()
    assert not [m for m in merged.modules() if isinstance(m, BaseTunerLayer)]
    assert ft.evaluate(merged, tokenizer, task)["loss"] == pytest.approx(row["loss"], rel=1e-5)


def test_rank_for_comes_nearest(tiny_llama, scores):
    chosen = Placement.of_types(scores, ["q_proj"])  # 2 layers x (32 + 32) at rank 1
    assert [ft.rank_for(chosen, tiny_llama, n) for n in (1, 128, 191, 193, 1280)] == [1, 1, 1, 2, 10]
    with pytest.raises(ValueError, match="parameters=0, expected a positive number"):
        ft.rank_for(chosen, tiny_llama, 0)


def test_trl_that_is_not_installed(tiny_llama, tokenizer, task, placement, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "trl", None)
    with pytest.raises(ImportError, match=r"pip install 'plop_nb\[finetune\]'"):
        ft.finetune(tiny_llama, tokenizer, task, placement)


# Grids


@pytest.fixture
def count(monkeypatch):
    """Trainings are not run, but counted, and give a loss of their own."""
    runs = []

    def fake(model, tokenizer, task, placement, *, r=16, lr, seed, **options):
        if "explode" in options:
            raise KeyboardInterrupt
        runs.append((task.name, tuple(placement.types), r, lr, seed))
        return {"task": task.name, "r": r, "lr": lr, "seed": seed, "split": "test", "accuracy": None, "steps": 1,
                "loss": len(runs) / 7, "curve": [[1, 2.0], [2, 1.0]]}  # fmt: skip

    fake.__signature__ = __import__("inspect").signature(ft.finetune)
    monkeypatch.setattr(ft, "finetune", fake)
    return runs


@pytest.fixture
def cells(tiny_llama, tokenizer, task, scores):
    placements = {"a": Placement.of_types(scores, ["q_proj"]), "b": Placement.of_types(scores, ["v_proj", "k_proj"])}

    def run(**options):
        settings = {"seeds": [0, 1], "lrs": [1e-3, 1e-2], "progress": False, "placements": placements} | options
        return ft.grid(tiny_llama, tokenizer, [task], **settings)

    return run


def test_grid_is_tidy_and_resumes(cells, count, tmp_path):
    path = tmp_path / "runs.jsonl"
    first = cells(path=path)
    assert len(count) == len(first) == 8 and len(path.read_text().splitlines()) == 8
    assert (
        first.columns[:2].tolist() == ["task", "placement"] and not first.duplicated(["placement", "lr", "seed"]).any()
    )
    again = cells(path=path)
    assert len(count) == 8
    pd.testing.assert_frame_equal(first, again)
    pd.testing.assert_frame_equal(ft.read_runs(path), first)
    assert len(cells(path=path, seeds=np.arange(3))) == 12 and len(count) == 12  # numpy's numbers are the same
    points = ft.curves(first)
    assert len(points) == 16 and points["train_loss"].tolist() == [2.0, 1.0] * 8 and "curve" not in points


@pytest.mark.parametrize("change", [
    {"steps": 7}, {"ranks": {"a": 3, "b": 3}}, {"lora_alpha": 5}, {"batch_size": 3}, {"final": "validation"},
    {"max_length": 9}, {"lrs": [5e-3, 5e-2]}, {"seeds": [2, 3]}, {"accuracy": False},
])  # fmt: skip
def test_every_setting_makes_another_run(cells, count, tmp_path, change):
    cells(path=tmp_path / "r.jsonl")
    cells(path=tmp_path / "r.jsonl", **change)
    assert len(count) == 16


def test_another_task_dtype_or_model_makes_another_run(tiny_llama, tokenizer, task, placement):
    key = lambda model=tiny_llama, task=task, tokenizer=tokenizer: ft._key(
        model, ft._digest(task, tokenizer), placement, {}
    )
    keys = [key(), key(task=ft.Task("toy", task.train, task.validation, digits(8, 200), None, 5)),
            key(task=ft.Task("toy", task.train[1:], task.validation, task.test, None, 5)),
            key(model=build("llama")), key(model=copy.deepcopy(tiny_llama).bfloat16())]  # fmt: skip
    checkpoint = copy.deepcopy(tiny_llama)
    checkpoint.model.layers[1].mlp.up_proj.weight.data *= 1.01
    keys.append(key(model=checkpoint))
    assert len(set(keys)) == 6 and key() == keys[0]
    written_out = {"lora_alpha": 32, "r": 16}  # the defaults
    assert ft._key(tiny_llama, ft._digest(task, tokenizer), placement, written_out) == keys[0]
    other = copy.deepcopy(tokenizer)
    other.eos_token = "!"
    keys.append(key(tokenizer=other))
    task.test[0]["entry"] = "what check reads"
    keys.append(key())
    task.validation.append(task.validation[0])
    assert len({*keys, key()}) == 9


def test_the_folder_of_the_runs_is_made(cells, count, tmp_path):
    path = tmp_path / "not" / "yet" / "runs.jsonl"
    assert len(cells(path=path)) == len(ft.read_runs(path)) == 8


def test_one_training_serves_two_names(cells, count, scores, tmp_path):
    same = Placement.of_types(scores, ["q_proj"])
    runs = cells(placements={"low": same, "attention": same}, path=tmp_path / "r.jsonl")
    assert len(count) == 4 and len(runs) == 8 and runs.groupby("placement").size().tolist() == [4, 4]
    assert len(ft.read_runs(tmp_path / "r.jsonl")) == 8


def test_a_line_cut_short_costs_only_itself(cells, count, tmp_path):
    path = tmp_path / "runs.jsonl"
    whole = cells(path=path)
    path.write_text(path.read_text()[:-30])
    assert len(ft.read_runs(path)) == 7
    runs = cells(path=path)
    assert len(count) == 9 and len(runs) == 8
    assert len(ft.read_runs(path)) == 8 and len(path.read_text().splitlines()) == 9
    assert runs["loss"].tolist()[:7] == whole["loss"].tolist()[:7]


def test_shares_cover_every_cell_once(cells, count, tmp_path):
    path = tmp_path / "runs.jsonl"
    sizes = [len(cells(path=path, share=(i, 3))) for i in range(3)]
    assert sizes == [3, 6, 8] and len(count) == len(set(count)) == 8
    with pytest.raises(ValueError, match=r"share=\(3, 3\), expected"):
        cells(share=(3, 3))


def test_several_writers_do_not_mix_lines(tmp_path):
    path = tmp_path / "runs.jsonl"
    write = lambda i: [ft._append(path, {"key": f"{i} {j}", "placement": "x", "pad": "y" * 5000}) for j in range(50)]
    threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    [t.start() for t in threads], [t.join() for t in threads]
    whole = [line for line in path.read_text().splitlines() if line]  # a line under way may be met as one cut short
    assert len({row["key"] for row in ft._lines(path)}) == len(whole) == 200


def test_an_interrupt_loses_nothing_finished(cells, count, tmp_path, monkeypatch):
    path, real = tmp_path / "runs.jsonl", ft.finetune

    def interrupted(*args, **options):
        if len(count) == 5:
            raise KeyboardInterrupt
        return real(*args, **options)

    interrupted.__signature__ = real.__signature__
    monkeypatch.setattr(ft, "finetune", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cells(path=path)
    assert len(ft.read_runs(path)) == 5
    monkeypatch.setattr(ft, "finetune", real)
    assert len(cells(path=path)) == 8 and len(count) == 8


def test_learning_rates_and_ranks_of_each_placement(cells, count):
    runs = cells(lrs={"a": 1e-3, "b": [1e-2, 1e-1]}, ranks={"a": 3, "b": 4})
    assert set(zip(runs["placement"], runs["lr"], runs["r"], strict=True)) == {
        ("a", 1e-3, 3),
        ("b", 1e-2, 4),
        ("b", 1e-1, 4),
    }
    shapes = [np.array([1e-3, 1e-2]), (lr for lr in (1e-3, 1e-2)), (1e-3, 1e-2)]
    for lrs in (*shapes, {"a": np.array([1e-3, 1e-2]), "b": (lr for lr in (1e-3, 1e-2))}):
        found = cells(lrs=lrs, seeds=(seed for seed in (0, 1)))
        assert found.groupby(["placement", "seed"])["lr"].agg(list).tolist() == [[1e-3, 1e-2]] * 4
    assert cells(lrs=1e-3)["lr"].tolist() == [1e-3] * 4
    best = pd.DataFrame({"task": ["toy", "toy"], "placement": ["a", "b"], "lr": [0.5, 0.25]})
    assert cells(lrs=best).groupby("placement")["lr"].unique().map(list).to_dict() == {"a": [0.5], "b": [0.25]}
    with pytest.raises(ValueError, match="lrs has nothing for placement 'b' on task 'toy'"):
        cells(lrs={"a": 1e-3})
    with pytest.raises(TypeError, match="'stepz' is not an argument of finetune"):
        cells(stepz=4)
    with pytest.raises(ValueError, match="out cannot be an option"):
        cells(out="x")


def test_grid_runs_for_real(tiny_llama, tokenizer, task, placement, tmp_path):
    options = {k: v for k, v in FEW.items() if k not in ("lr", "r")}
    run = lambda path: ft.grid(tiny_llama, tokenizer, [task], {"plop": placement}, seeds=[0, 1], lrs=[1e-2], path=path,
                               ranks={"plop": 2}, progress=False, **options)  # fmt: skip
    runs = run(tmp_path / "r.jsonl")
    alone = ft.finetune(tiny_llama, tokenizer, task, placement, **FEW, seed=1)
    assert runs["loss"][1] == alone["loss"] != runs["loss"][0]
    pd.testing.assert_frame_equal(run(tmp_path / "r.jsonl"), runs)
    assert (ft.curves(runs).groupby("seed").size() == 3).all()


# Comparisons


def runs_of(losses, **columns):
    """Runs from {placement: losses by seed}."""
    rows = [{"task": "t", "placement": p, "seed": s, "loss": v, "parameters": len(p), "r": 1, "lr": 1e-3, "split": "test"}
            for p, values in losses.items() for s, v in enumerate(values)]  # fmt: skip
    return pd.DataFrame(rows).assign(**columns)


def test_versus_is_a_paired_t_interval():
    runs = runs_of(
        {"ref": [1.0, 2.0, 3.0, 4.0], "low": [0.9, 1.8, 2.9, 3.8], "same": [1.1, 1.9, 3.1, 3.9], "hi!": [2, 3, 4, 5.1]}
    )
    table = ft.versus(runs, "ref").set_index("placement")
    half = 3.182446 * np.std([-0.1, -0.2, -0.1, -0.2], ddof=1) / 2  # t of 3 degrees of freedom at 97.5 %
    assert table.loc["low", ["difference", "low", "high"]].tolist() == pytest.approx(
        [-0.15, -0.15 - half, -0.15 + half]
    )
    assert table["verdict"].to_dict() == {"low": "better", "same": "undecided", "hi!": "worse"}
    assert table.loc["low", ["seeds", "parameters", "reference_parameters"]].tolist() == [4, 3, 3]
    accuracy = ft.versus(runs.rename(columns={"loss": "accuracy"}), "ref", "accuracy").set_index("placement")
    assert accuracy["verdict"].to_dict() == {"low": "worse", "same": "undecided", "hi!": "better"}


def test_versus_pairs_by_seed():
    runs = runs_of({"ref": [1.0, 5.0, 9.0], "x": [1.1, 5.1, 9.2]})
    shuffled = runs.sample(frac=1, random_state=3)
    assert ft.versus(shuffled, "ref")["difference"][0] == pytest.approx(0.4 / 3)
    kept = ft.versus(runs.drop(index=0), "ref")
    assert kept["seeds"][0] == 2 and kept["difference"][0] == pytest.approx(0.15)
    with pytest.raises(ValueError, match="have 1 seeds in common on 't': run 2 or more"):
        ft.versus(runs.drop(index=[0, 1]), "ref")
    with pytest.raises(ValueError, match="reference='y' was not run"):
        ft.versus(runs, "y")
    with pytest.raises(ValueError, match="several runs of one task, placement and seed"):
        ft.versus(pd.concat([runs, runs.assign(lr=1.0)]), "ref")
    with pytest.raises(ValueError, match="value='seconds' is unknown"):
        ft.versus(runs.assign(seconds=1), "ref", "seconds")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_versus_does_not_drop_what_diverged(value):
    runs = runs_of({"ref": [1.0, 2.0, 3.0], "x": [0.9, 1.8, value]})
    message = "loss is .* for placement 'x' with seed 2 on 't': where a run diverged, take a lower learning rate"
    with pytest.raises(ValueError, match=message):
        ft.versus(runs, "ref")


def test_tuned_takes_the_best_validation_loss_and_refuses_the_test_split():
    parts = [runs_of({"a": [2 - lr * 10, 2.2 - lr * 10], "b": [abs(lr - 0.02), 0.1 + abs(lr - 0.02)]}, lr=lr)
             for lr in (0.01, 0.02, 0.04)]  # fmt: skip
    runs = pd.concat(parts, ignore_index=True)
    with pytest.raises(ValueError, match="evaluated on the split 'test': tune on runs with final='validation'"):
        ft.tuned(runs)
    best = ft.tuned(runs.assign(split="validation")).set_index("placement")
    assert best["lr"].to_dict() == {"a": 0.04, "b": 0.02} and best["edge"].to_dict() == {"a": True, "b": False}
    assert best["loss"].to_dict() == pytest.approx({"a": 1.7, "b": 0.05}) and (best["seeds"] == 2).all()
    diverged = runs.assign(split="validation", loss=runs["loss"].where((runs["lr"] != 0.04) | (runs["seed"] == 1)))
    assert ft.tuned(diverged).set_index("placement")["lr"]["a"] == 0.02
    with pytest.raises(ValueError, match="was run at ranks"):
        ft.tuned(pd.concat([runs, runs.assign(r=2)]).assign(split="validation"))


# Norms while training


def test_norms_callback_records_the_effective_maps_and_disturbs_nothing(
    tiny_llama, tokenizer, task, placement, tmp_path
):
    probe = ["a probe text", "and another"]
    for layer in tiny_llama.model.layers:
        layer.self_attn.attention_dropout = 0.2  # a training that draws
    norms = ft.NormsCallback(probe, tokenizer, every=2)
    options = {**FEW, "steps": 5}
    with_it = ft.finetune(tiny_llama, tokenizer, task, placement, **options, callbacks=[norms], out=tmp_path)
    without = ft.finetune(tiny_llama, tokenizer, task, placement, **options)
    assert (with_it["loss"], with_it["curve"]) == (without["loss"], without["curve"])
    frame = norms.frame()
    assert frame["step"].unique().tolist() == [0, 2, 4, 5]
    assert frame.columns.tolist() == ["step", "type", "input_norm", "feature_norm", "nfn"]
    merged = PeftModel.from_pretrained(copy.deepcopy(tiny_llama), tmp_path).merge_and_unload()
    for step, model in {0: tiny_llama, 5: merged}.items():
        expected = plop.by_type(plop.nfn_scores(model, probe, tokenizer, progress=False)).set_index("type")["nfn"]
        found = frame[frame["step"] == step].set_index("type")["nfn"][expected.index]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    moved = frame.query("step == 5")["nfn"].to_numpy() - frame.query("step == 0")["nfn"].to_numpy()
    assert np.abs(moved).max() > 1e-4


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
    with pytest.raises(ValueError, match=f"parameters=7 is less than the .* on type {ranking[0]} alone at r=4"):
        plop.place(scores, parameters=7, r=4)


def test_budget_stops_at_the_first_type_that_does_not_fit(scores):
    """No cheaper type further up is taken instead."""
    wide = scores.assign(in_features=np.where(scores["type"] == plop.by_type(scores)["type"][1], 10_000, 8))
    assert plop.place(wide, parameters=5000, r=1).types == plop.by_type(scores)["type"].tolist()[:1]


def test_budget_and_k_exclude_each_other(scores):
    with pytest.raises(ValueError, match="k=2 and parameters=5000 both say how many types"):
        plop.place(scores, k=2, parameters=5000)
    with pytest.raises(ValueError, match="lacks the columns .*experts"):
        plop.place(scores.drop(columns="experts"), parameters=5000)
    assert plop.place(scores).types == plop.place(scores, k=3).types


def test_scores_have_shapes_after_the_old_columns(scores, tiny_llama):
    assert scores.columns.tolist() == [
        "sample", "module", "type", "layer", "tokens", "nfn", "in_features", "out_features", "experts",
    ]  # fmt: skip
    shapes = scores.drop_duplicates("module").set_index("module")[["in_features", "out_features"]]
    table = plop.module_table(tiny_llama).set_index("module").loc[shapes.index, ["in_features", "out_features"]]
    assert (shapes == table).all(axis=None)


def test_placements_by_hand(scores, tiny_llama):
    chosen = Placement.of_types(scores, ["up_proj", "q_proj"])
    assert set(chosen.types) == {"up_proj", "q_proj"} and len(chosen.modules) == 4 and np.isnan(chosen.confidence)
    assert "chosen by hand" in repr(chosen) and "nan" not in repr(chosen) and "chosen by hand" in chosen._repr_html_()
    one = Placement.of_modules(scores, ["model.layers.1.mlp.up_proj"])
    table = one.check(tiny_llama, one.lora_config(tiny_llama))
    assert table[["type", "adapted"]].values.tolist() == [["up_proj", 1]]
    with pytest.raises(ValueError, match="'w_proj' is not a type in scores"):
        Placement.of_types(scores, ["w_proj"])
    with pytest.raises(ValueError, match="types='q_proj', expected a list"):
        Placement.of_types(scores, "q_proj")


@pytest.mark.parametrize("model_type", ["llama", "mixtral", "bert"])
def test_exported_config_hits_the_same_modules(model_type, tmp_path):
    """As PEFT's MetaMathQA suite takes it: adapter_config.json alone, read by PeftConfig, onto a fresh model."""
    model = build(model_type)
    scores = plop.nfn_scores(model, [{"input_ids": torch.arange(10, 14)[None]}], progress=False)
    chosen = plop.place(scores, k=2)
    config = chosen.lora_config(model, r=32)
    config.save_pretrained(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["adapter_config.json"]
    loaded = PeftConfig.from_pretrained(str(tmp_path))
    assert isinstance(loaded, LoraConfig) and loaded.r == 32
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "LORA"
    names = lambda c: sorted(
        n for n, m in get_peft_model(build(model_type), c).named_modules() if isinstance(m, BaseTunerLayer)
    )
    assert names(loaded) == names(config) != []
    pd.testing.assert_frame_equal(chosen.check(model, loaded), chosen.check(model, config))


# The real model


@pytest.mark.slow
def test_smollm_learns_sums(smollm, math_scores):
    model, tokenizer = smollm
    task = ft.load_task("sums", train=64, validation=8, test=16)
    before = ft.evaluate(model, tokenizer, task, accuracy=False)["loss"]
    budget = plop.place(math_scores, parameters=2_400_000)
    assert budget.types == plop.place(math_scores, k=3).types
    row = ft.finetune(model, tokenizer, task, budget, r=4, lr=3e-3, steps=6, batch_size=4, accuracy=False)
    assert row["loss"] < before - 0.3 and row["parameters"] == 2_396_160 // 4
