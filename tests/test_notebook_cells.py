"""Cells of notebooks that only run where a reader sets something."""

import random
from pathlib import Path
from types import SimpleNamespace

import jupytext
import pandas as pd
import pytest

import plop_nb as plop
from plop_nb import experiments as ex
from plop_nb.placement import Placement

from .conftest import TEXTS

ROOT = Path(__file__).parents[1]


def test_the_race_of_notebook_07(tiny_llama, byte_tokenizer, monkeypatch):
    """On examples of the reader's own, the chosen placement races against two others."""
    notebook = jupytext.read(ROOT / "notebooks" / "07_explore_your_model.py")
    parts = ("def parts_of", "def race_on")
    helper, cell = [c.source for c in notebook.cells if any(part in c.source for part in parts)]
    scores = plop.nfn_scores(tiny_llama, TEXTS, byte_tokenizer, progress=False)
    explorer = SimpleNamespace(placement=plop.place(scores, k=2), parameters=2000)
    names = {"plop": plop, "ex": ex, "Placement": Placement, "explorer": explorer, "K": 3}
    names |= {"model": tiny_llama, "tokenizer": byte_tokenizer, "scores": scores, "SECONDS": 30}
    names |= {"EXAMPLES": None, "random": random}  # which the notebook imports for its texts
    exec(helper, names)
    exec(cell, names)
    assert "no EXAMPLES" in names["race"]
    monkeypatch.setattr(names["ex"], "race", lambda *given, **options: (given, options))
    examples = [{"prompt": f"{number}", "completion": " x"} for number in range(100)]
    (model, task, tokenizer, placements), options = names["race_on"](examples)
    assert (model, tokenizer) == (tiny_llama, byte_tokenizer)
    assert options == {"seconds": 30, "parameters": 2000}
    assert placements["chosen"] == explorer.placement and len(placements) == 3
    assert set(placements["all"].types) == set(scores["type"])
    splits = [task.train, task.validation, task.test]
    assert [len(split) for split in splits] == [60, 20, 20]
    prompts = [example["prompt"] for split in splits for example in split]
    assert sorted(prompts) == sorted(map(str, range(100)))
    # data is often sorted: each part has some of all, and what was given stays in its order
    assert max(map(int, prompts[:60])) >= 80 and min(map(int, prompts[:60])) < 20
    assert [example["prompt"] for example in examples] == [str(number) for number in range(100)]


def test_the_race_of_notebook_07_reads_examples_from_a_file(tmp_path):
    notebook = jupytext.read(ROOT / "notebooks" / "07_explore_your_model.py")
    [cell] = [cell.source for cell in notebook.cells if "def race_on" in cell.source]
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "a", "completion": " b"}\n{"prompt": "c", "completion": " d"}\n')
    reads = cell[cell.index("if isinstance(EXAMPLES") : cell.index("race = ")]
    names = {"EXAMPLES": str(path), "pd": pd}
    exec(reads, names)
    assert names["EXAMPLES"] == [
        {"prompt": "a", "completion": " b"},
        {"prompt": "c", "completion": " d"},
    ]


def test_the_exercise_on_forms_compares_the_same_texts(tiny_llama, byte_tokenizer):
    """Scores of other texts, and those of the weights as they are, are no solution."""
    notebook = jupytext.read(ROOT / "notebooks" / "07_explore_your_model.py")
    parts = ("def tokens_of", "def check_folded")
    cells = [c.source for c in notebook.cells if any(part in c.source for part in parts)]
    scores = plop.nfn_scores(tiny_llama, TEXTS, byte_tokenizer, progress=False)
    names = {"plop": plop, "scores": scores, "folded_scores": None}
    for cell in cells:
        exec(cell, names)
    check = names["check_folded"]
    assert check(None) == "not yet filled in"
    with pytest.raises(AssertionError, match="all of them and no others"):
        check(plop.nfn_scores(tiny_llama, TEXTS[1:], byte_tokenizer, progress=False))
    with pytest.raises(AssertionError, match="of the stored weights"):
        check(plop.nfn_scores(tiny_llama, TEXTS, byte_tokenizer, progress=False))
    other = scores.assign(nfn=2 * scores["nfn"])
    table = check(other)
    assert table["folded"].tolist() == pytest.approx((2 * table["section 5"]).tolist(), abs=0.02)


def test_the_copied_call_of_notebook_07_scores_and_places_the_same_k():
    """`stop=` decides which `k` types are lowest, for one k."""
    notebook = jupytext.read(ROOT / "notebooks" / "07_explore_your_model.py")
    [cell] = [c.source for c in notebook.cells if "stop=0.99, k=k" in c.source]
    assert "plop.place(scores, k=k)" in cell and "k, folder = 3" in cell
