"""Finetuning and grids under `accelerate launch`: two processes give what one gives."""

import copy
import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from peft import EvaConfig, LoraConfig
from safetensors.torch import load_file

from plop_nb.experiments import finetune, grid
from plop_nb.experiments.grids import together
from plop_nb.experiments.grids.cells import Cell
from plop_nb.experiments.sharing import check_processes, own_part
from plop_nb.processes import Process
from tests.test_scale import launched
from tests.toy_task import toy_task

# 21 examples, 4 in a step: the sixth step has one, so that one of two processes has none
TASK = dataclasses.replace(toy_task(), train=toy_task().train[:21])
SETTINGS = {"lr": 1e-2, "batch_size": 4, "logging_steps": 1}
PLAIN = LoraConfig(r=2, target_modules=["q_proj", "up_proj"])
EVA = LoraConfig(
    r=2,
    target_modules=["q_proj", "down_proj"],
    init_lora_weights="eva",
    eva_config=EvaConfig(rho=2),
)
GRID = {"seeds": [0, 1], "lrs": [1e-2], "steps": 2, "batch_size": 4, "accuracy": False}

SCRIPT = """
import copy, dataclasses, json, sys
import torch
from accelerate import PartialState
from transformers import AutoModelForCausalLM, AutoTokenizer
from plop_nb.experiments import finetune, grid, grids
from plop_nb.experiments.grids import cells
from tests.test_distributed_training import EVA, GRID, PLAIN, SETTINGS, TASK

folder = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(f"{folder}/model")
tokenizer = AutoTokenizer.from_pretrained(f"{folder}/model")
rank = PartialState(cpu=True).process_index
before = copy.deepcopy(model.state_dict())

rows = []
for name, config, steps in (("plain", PLAIN, 9), ("eva", EVA, 2)):
    out = f"{folder}/{name}"
    rows.append(finetune(model, TASK, tokenizer, config, steps=steps, out=out, **SETTINGS))
json.dump(rows, open(f"{folder}/{rank}.json", "w"))
assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

def refused(run):
    try:
        run()
    except (ValueError, ZeroDivisionError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"

def trained(model=model, config=PLAIN, **settings):
    return finetune(model, TASK, tokenizer, config, **{**SETTINGS, **settings}, steps=1)

other = copy.deepcopy(model)
other.lm_head.weight.data += rank
refusals = [refused(lambda: trained(batch_size=3)), refused(lambda: trained(model=other))]
refusals.append(refused(lambda: trained(seed=rank)))

if rank == 1:
    cells.open_storage = None  # which is the first one's
count = []
once, grids.finetune = grids.finetune, lambda *a, **o: count.append(1) or once(*a, **o)
grids.finetune.__signature__ = __import__("inspect").signature(once)
placements, storage = {"plain": PLAIN, "eva": EVA}, f"{folder}/runs.journal"
for _ in range(2):
    frame = grid(model, [TASK], tokenizer, placements, storage=storage, progress=False, **GRID)
frame.to_csv(f"{folder}/{rank}.csv", index=False)
number = len(count)

def check(text, example):
    return text in ("", example["completion"]) or 1 / 0

failing, options = dataclasses.replace(TASK, check=check), {**GRID, "accuracy": True}
refusals.append(
    refused(lambda: grid(model, [failing], tokenizer, placements, progress=False, **options))
)
options["lrs"] = [-1]
refusals.append(
    refused(lambda: grid(model, [TASK], tokenizer, placements, progress=False, **options))
)
json.dump([refusals, number], open(f"{folder}/{rank}.refused", "w"))
"""


@pytest.fixture
def tokenizer(byte_tokenizer):
    byte_tokenizer.add_special_tokens({"eos_token": "<end>"})
    return byte_tokenizer


@pytest.mark.slow
def test_two_processes_train_what_one_does(tiny_llama, tokenizer, tmp_path):
    tiny_llama.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    done = launched(tmp_path, "", script=SCRIPT)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second  # also what they took
    for found, config, steps in zip(first, (PLAIN, EVA), (9, 2), strict=True):
        name = "eva" if config is EVA else "plain"
        alone = finetune(
            tiny_llama, TASK, tokenizer, config, steps=steps, out=tmp_path / "one", **SETTINGS
        )
        assert found.keys() == alone.keys() and len(found["curve"]) == steps
        assert found["loss"] == pytest.approx(alone["loss"], rel=1e-4)
        np.testing.assert_allclose(found["curve"], alone["curve"], rtol=1e-4)
        shared, own = (
            load_file(tmp_path / folder / "adapter_model.safetensors") for folder in (name, "one")
        )
        assert shared.keys() == own.keys()
        for key, weight in own.items():
            difference = (shared[key] - weight).norm() / weight.norm()
            assert difference < 1e-4, (name, key, difference)
    frames = [pd.read_csv(tmp_path / f"{rank}.csv") for rank in (0, 1)]
    pd.testing.assert_frame_equal(*frames)
    placements = {"plain": PLAIN, "eva": EVA}
    alone = grid(tiny_llama, [TASK], tokenizer, placements, progress=False, **GRID)
    np.testing.assert_allclose(frames[0]["loss"], alone["loss"], rtol=1e-4)
    assert frames[0]["placement"].tolist() == alone["placement"].tolist() and len(alone) == 4
    for rank in (0, 1):
        refusals, count = json.loads((tmp_path / f"{rank}.refused").read_text())
        assert count == 4  # all of them once, by both
        expected = (
            "ValueError: batch_size=3 cannot be shared by 2 processes",
            "ValueError: model of this process",
            "ValueError: task and settings of this process",
            "ZeroDivisionError",
            "ValueError: lr=-1",
        )
        for refusal, start in zip(refusals, expected, strict=True):
            assert refusal.startswith(start)


def collated(examples):
    return {"input_ids": torch.tensor(examples), "labels": torch.tensor(examples)}


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_the_parts_of_a_batch_are_the_batch(number):
    examples = [[10 + i, 20 + i] for i in range(3)]
    parts = [own_part(collated, Process(rank, number))(examples) for rank in range(number)]
    counted = []
    for part in parts:
        assert len(part["input_ids"]) == len(part["labels"]) >= 1
        counted += [row for row in part["labels"].tolist() if row != [-100, -100]]
    assert sorted(counted) == examples
    for part in parts[3:]:  # the idle ones read something, which does not count
        assert part["input_ids"].tolist() == examples[:1] and (part["labels"] == -100).all()


def test_one_process_shares_nothing():
    check_processes(Process(), None, [], {"batch_size": 3})


def test_a_follower_without_an_error_of_its_own_has_the_first_ones(monkeypatch):
    """And one with an error of its own has that one."""
    cells, ran = [Cell("k", {"lr": 1.0}, "content")], []
    for run, expected in ((ran.append, RuntimeError), (lambda _: 1 / 0, ZeroDivisionError)):
        messages = iter([0, "OSError: no space"])
        monkeypatch.setattr(together, "this_process", lambda: Process(1, 2))
        monkeypatch.setattr(together, "told", messages.__next__)
        with pytest.raises(expected) as caught:
            together.run_together(cells, run)
        assert expected is not RuntimeError or "first of 2 processes has OSError" in str(caught)
    assert ran == ["content"]


def test_the_first_process_tells_its_cells_and_its_rows(monkeypatch):
    told = []
    monkeypatch.setattr(together, "this_process", lambda: Process(0, 2))
    monkeypatch.setattr(together, "told", told.append)
    cells = [Cell(key, {"lr": number}) for number, key in enumerate("ab", start=1)]
    cells = [dataclasses.replace(cell, content=copy.copy(cell.key)) for cell in cells]
    rows = together.run_together(cells, lambda content: {"loss": ord(content)}, progress=False)
    assert told == [0, 1, rows] and [row["loss"] for row in rows] == [97, 98]
    with pytest.raises(ZeroDivisionError):
        together.run_together(cells, lambda content: 1 / 0, progress=False)
    assert told[3:] == [0, "ZeroDivisionError: division by zero"]
