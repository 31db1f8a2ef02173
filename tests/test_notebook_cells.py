"""Cells of notebooks that only run where a reader sets something."""

import random
from pathlib import Path
from types import SimpleNamespace

import jupytext
import pandas as pd
import pytest
from peft import LoraConfig

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
    by_layer = plop.by_module(scores).pivot_table(index="layer", columns="type", values="nfn")
    names |= {"layers": by_layer}
    names |= {"EXAMPLES": None, "TEXTS": None, "CHAT": False, "SECONDS": 30}
    return names | {"explorer": explorer, "config": config}


RIVALS = ("others = {", "rivals = {")
READ = ("isinstance(EXAMPLES", 'rule="size")\ndefault', "def parts_of", "parts = parts_of(")
RACE = (*READ, *RIVALS, "best = largest", "ex.race(")


def test_the_race_of_notebook_07(before_the_race, monkeypatch):
    """On examples of the reader's own, the chosen placement races against up to three others."""
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
    assert placements["chosen"] == names["explorer"].placement
    assert {"largest maps", "all"} <= set(placements) <= {*placements, "by the median"}
    assert set(placements["all"].types) == set(names["scores"]["type"])
    # the winner and its settings are what section 9 trains
    assert names["best"] is placements["all"] and names["settings"] is won.settings
    splits = [task.train, task.validation, task.test]
    assert [len(split) for split in splits] == [60, 20, 20]
    prompts = [example["prompt"] for split in splits for example in split]
    assert sorted(prompts) == sorted(map(str, range(100)))
    # data is often sorted: each part has some of all, and what was given stays in its order
    assert max(map(int, prompts[:60])) >= 80 and min(map(int, prompts[:60])) < 20
    assert [example["prompt"] for example in examples] == [str(number) for number in range(100)]


def test_without_examples_notebook_07_trains_the_mlp(before_the_race):
    """As its rule says; the config that it saves is that of the MLP, too."""
    for cell in cells_of_notebook_07(*RACE):
        exec(cell, before_the_race)
    mlp = {"gate_proj", "up_proj", "down_proj"}
    assert set(before_the_race["best"].types) == before_the_race["default"].target_modules == mlp
    assert before_the_race["settings"]["r"] == 16 and "race" not in before_the_race


def test_notebook_07_races_on_chats_where_it_scores_chats(before_the_race):
    examples = [{"prompt": f"{number}", "completion": " x"} for number in range(10)]
    names = before_the_race | {"EXAMPLES": examples, "CHAT": True}
    names |= {"tokenizer": SimpleNamespace(chat_template="t"), "as_chat": "<{}>".format}
    for cell in cells_of_notebook_07("def parts_of", "parts = parts_of("):
        exec(cell, names)
    prompts = [example["prompt"] for part in names["parts"].values() for example in part]
    assert sorted(prompts) == [f"<{number}>" for number in range(10)]
    assert examples[0]["prompt"] == "0"


def rivals_in_notebook_07(names, chosen):
    """The placements that race when this one is chosen in the widget."""
    names = names | {"explorer": SimpleNamespace(placement=chosen)}
    for cell in cells_of_notebook_07(*RIVALS):
        exec(cell, names)
    assert names["rivals"]["chosen"] == chosen
    return names["rivals"]


def test_a_rival_that_equals_another_placement_is_left_out(before_the_race):
    scores = before_the_race["scores"]
    found = rivals_in_notebook_07(before_the_race, plop.place(scores, k=2, rule="size"))
    assert "largest maps" not in found and "all" in found
    everything = Placement.of_types(scores, scores["type"].unique())
    assert list(rivals_in_notebook_07(before_the_race, everything)) == ["chosen"]
    # two rivals that are alike race once
    six = plop.place(scores, k=6)
    layers = pd.DataFrame([range(7)], columns=plop.place(scores, k=7, rule="size").types)
    found = rivals_in_notebook_07(before_the_race | {"layers": layers}, six)
    assert "by the median" in found and "largest maps" not in found


@pytest.mark.parametrize("types", [1, 4])
def test_the_rivals_have_as_many_types_as_the_choice(before_the_race, types):
    """As chosen in the widget, whatever k was scored with."""
    chosen = plop.place(before_the_race["scores"], k=types)
    found = rivals_in_notebook_07(before_the_race, chosen)
    assert {len(rival.types) for who, rival in found.items() if who != "all"} == {types}


def test_the_choice_by_the_median_is_not_that_by_the_mean(before_the_race):
    """A single layer that lifts a type in the mean does not lift it in the median."""
    names = before_the_race
    mean_first, median_first = plop.by_type(names["scores"])["type"][[0, 6]]
    layers = pd.DataFrame(1.0, index=range(5), columns=names["scores"]["type"].unique())
    layers[median_first] = [0.1, 0.1, 0.1, 9.0, 9.0]
    chosen = plop.place(names["scores"], k=1)
    found = rivals_in_notebook_07(names | {"layers": layers}, chosen)
    assert chosen.types == [mean_first] and found["by the median"].types == [median_first]


def test_notebook_07_trains_on_the_train_part_only():
    """The test part is for one judgement, the validation part for the race."""
    [cell] = cells_of_notebook_07("Dataset.from_list")
    assert 'train, test = datasets.Dataset.from_list(parts["train"])' in cell
    assert '"validation"' not in cell
    [trains] = cells_of_notebook_07("trainer = SFTTrainer(")
    assert '{"train_dataset": train, "eval_dataset": test}' in trains
    assert trains.index("before = trainer.evaluate()") < trains.index("trainer.train()")


def test_a_file_of_other_lines_or_another_choice_is_no_solution(
    tiny_llama, byte_tokenizer, tmp_path
):
    """Exercise 3 asks for the types that ten lines of one's own give within the budget."""
    names = {"plop": plop, "model": tiny_llama, "tokenizer": byte_tokenizer, "exercise": tmp_path}
    names |= {"LoraConfig": LoraConfig}
    names |= {"mine_txt": tmp_path / "mine.txt", "limit": 2000, "my_placement": None}
    [cell] = cells_of_notebook_07("def check_file")
    exec(cell, names)  # shows "not yet filled in"
    check = names["check_file"]
    names["mine_txt"].write_text("\n".join(f"line {number}" for number in range(10)))
    scores = plop.nfn_scores(tiny_llama, plop.read_texts(names["mine_txt"]), byte_tokenizer)
    right = plop.place(scores, parameters=2000, r=8)
    right.lora_config(tiny_llama, r=8).save_pretrained(tmp_path)
    assert check(right).startswith(", ".join(right.types))
    other = Placement.of_types(scores, plop.by_type(scores)["type"][-1:])
    with pytest.raises(AssertionError, match="by these lines the types are"):
        check(other)
    names["mine_txt"].write_text("one line")
    with pytest.raises(AssertionError, match="write ten lines"):
        check(right)


def test_the_race_of_notebook_07_reads_examples_from_a_file(before_the_race, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "a", "completion": " b"}\n{"prompt": "c", "completion": " d"}\n')
    names = before_the_race | {"EXAMPLES": str(path)}
    for cell in cells_of_notebook_07(*READ):
        exec(cell, names)
    assert names["texts"] == ["a", "c"]  # that are scored
    assert names["EXAMPLES"] == [
        {"prompt": "a", "completion": " b"},
        {"prompt": "c", "completion": " d"},
    ]


def test_the_exercises_of_notebook_07_leave_the_folder_of_the_reader_alone():
    """The config of section 4 stays, also where solutions run."""
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
    names = {"plop": plop, "scores": scores, "folded_scores": None, "k": 3}
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
    assert table["folded"].tolist() == pytest.approx((2 * table["section 4"]).tolist(), abs=0.02)


def test_the_copied_call_of_notebook_07_scores_and_places_the_same_k():
    """`stop=` decides which `k` types are lowest, for one k."""
    notebook = jupytext.read(ROOT / "notebooks" / "07_explore_your_model.py")
    [cell] = [c.source for c in notebook.cells if "stop=0.99, k=k" in c.source]
    assert "plop.place(scores, k=k)" in cell and "k = 3  #" in cell
    # and so do the checks of the exercises
    checks = [c.source for c in notebook.cells if "plop.place(found" in c.source]
    assert len(checks) == 2 and all("plop.place(found, k=k)" in check for check in checks)


def test_offloaded_scores_are_compared_type_by_type():
    """By name: the order of the types is that of their scores, and may differ."""
    [cell] = cells_of_notebook_07("in_memory = ")
    names = ["v_proj", "o_proj"]
    frames = [
        pd.DataFrame({"type": names, "nfn": [0.5, 0.5004]}),  # whole
        pd.DataFrame({"type": names[::-1], "nfn": [0.5002, 0.5003]}),  # from disk
    ]
    given = SimpleNamespace(
        load_model=lambda *_, **__: (None, None),
        nfn_scores=lambda *_: 0,
        by_type=frames.__getitem__,
    )
    offloaded = SimpleNamespace(dtype=None)
    known = {"plop": given, "large": "", "offloaded": offloaded, "texts": [], "from_disk": 1}
    known["its_tokenizer"] = None
    exec(cell, known)
    assert known["difference"] == pytest.approx(0.0003)  # and by rank 0.0002
