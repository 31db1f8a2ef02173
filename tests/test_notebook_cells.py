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


def cells_of_notebook_07(*parts):
    """The source of the one cell with each of these parts."""
    notebook = jupytext.read(ROOT / "notebooks" / "07_explore_your_model.py")
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    for part in parts:
        [source] = [source for source in sources if part in source]
        yield source


@pytest.fixture
def before_the_race(tiny_llama, byte_tokenizer):
    """Names that the cells of the race find."""
    scores = plop.nfn_scores(tiny_llama, TEXTS, byte_tokenizer, progress=False)
    rank, config = SimpleNamespace(value=4), SimpleNamespace(lora_alpha=32)
    explorer = SimpleNamespace(placement=plop.place(scores, k=2), parameters=2000, rank=rank)
    names = {"plop": plop, "ex": ex, "pd": pd, "Placement": Placement, "random": random}
    names |= {"model": tiny_llama, "tokenizer": byte_tokenizer, "scores": scores}
    return names | {"explorer": explorer, "config": config, "SECONDS": 30, "EXAMPLES": None}


RACE = ("def parts_of", "isinstance(EXAMPLES", "def rivals_of", "ex.race(")


def test_the_race_of_notebook_07(before_the_race, monkeypatch):
    """On examples of the reader's own, the chosen placement races against two others."""
    names, asked = before_the_race, []
    examples = [{"prompt": f"{number}", "completion": " x"} for number in range(100)]
    won = SimpleNamespace(winner="all", settings={"r": 3, "lr": 5e-4})
    monkeypatch.setattr(ex, "race", lambda *given, **options: asked.append((given, options)) or won)
    names["EXAMPLES"] = examples
    for cell in cells_of_notebook_07(*RACE):
        exec(cell, names)
    [((model, task, tokenizer, placements), options)] = asked
    assert (model, tokenizer) == (names["model"], names["tokenizer"])
    assert options == {"seconds": 30, "parameters": 2000}
    assert placements["chosen"] == names["explorer"].placement and len(placements) == 3
    assert set(placements["all"].types) == set(names["scores"]["type"])
    # the winner and its settings are what section 10 trains
    assert names["best"] is placements["all"] and names["settings"] is won.settings
    splits = [task.train, task.validation, task.test]
    assert [len(split) for split in splits] == [60, 20, 20]
    prompts = [example["prompt"] for split in splits for example in split]
    assert sorted(prompts) == sorted(map(str, range(100)))
    # data is often sorted: each part has some of all, and what was given stays in its order
    assert max(map(int, prompts[:60])) >= 80 and min(map(int, prompts[:60])) < 20
    assert [example["prompt"] for example in examples] == [str(number) for number in range(100)]


def test_without_examples_notebook_07_trains_the_choice(before_the_race):
    for cell in cells_of_notebook_07(*RACE):
        exec(cell, before_the_race)
    assert before_the_race["best"] == before_the_race["explorer"].placement
    assert before_the_race["settings"]["r"] == 4 and "race" not in before_the_race


def test_a_rival_that_equals_the_choice_is_left_out(before_the_race):
    [cell] = cells_of_notebook_07("def rivals_of")
    exec(cell, before_the_race)
    scores, rivals_of = before_the_race["scores"], before_the_race["rivals_of"]
    largest = plop.place(scores, rule="size")
    assert list(rivals_of(largest)) == ["chosen", "all"]
    everything = Placement.of_types(scores, scores["type"].unique())
    assert list(rivals_of(everything)) == ["chosen", "largest maps"]


def test_notebook_07_trains_on_the_train_part_only():
    """The test part is for one judgement, the validation part for the race."""
    [cell] = cells_of_notebook_07("Dataset.from_list")
    assert 'train, test = datasets.Dataset.from_list(parts["train"])' in cell
    assert '"validation"' not in cell
    [trains] = cells_of_notebook_07("trainer = SFTTrainer(")
    assert '{"train_dataset": train, "eval_dataset": test}' in trains


def test_the_race_of_notebook_07_reads_examples_from_a_file(before_the_race, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "a", "completion": " b"}\n{"prompt": "c", "completion": " d"}\n')
    names = before_the_race | {"EXAMPLES": str(path)}
    for cell in cells_of_notebook_07(*RACE[:2]):
        exec(cell, names)
    assert names["EXAMPLES"] == [
        {"prompt": "a", "completion": " b"},
        {"prompt": "c", "completion": " d"},
    ]


def test_the_exercises_of_notebook_07_leave_the_folder_of_the_reader_alone():
    """The config of section 5 stays, also where solutions run."""
    notebook = jupytext.read(ROOT / "notebooks" / "07_explore_your_model.py")
    sources = [cell.source for cell in notebook.cells]
    [start] = [number for number, source in enumerate(sources) if source.startswith("## Exercises")]
    assert not any("folder)" in source for source in sources[start:])


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
