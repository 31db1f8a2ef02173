"""What the notebooks teach with: words that are explained, and exercises whose checks can tell."""

import math
import re
from pathlib import Path

import jupytext
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

from plop_nb.experiments import grpo
from plop_nb.texts import data_file

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("[0-9]*.py"))
GUIDE = (FOLDER / "GUIDE.md").read_text()
ANCHORS = re.findall(r'<a id="(.+?)">', GUIDE)
UNFILLED = "not yet filled in"


def prose(stem):
    """All texts of a notebook, without its code."""
    cells = jupytext.read(FOLDER / f"{stem}.py").cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


# Words


def test_each_word_of_the_guide_stands_once_and_in_order():
    words = re.findall(r'^\* <a id=".+?"></a>\*\*(.+?)[.*]', GUIDE, re.MULTILINE)
    assert len(ANCHORS) == len(set(ANCHORS)) and len(words) == len(ANCHORS) - 1  # and "words"
    assert words == sorted(words, key=str.lower)


@pytest.mark.parametrize("stem", NOTEBOOKS)
def test_links_to_the_guide_lead_to_a_word_and_stand_at_its_first_use(stem):
    linked = re.findall(r"\]\(GUIDE\.md#(.*?)\)", prose(stem))
    assert "words" in linked and set(linked) <= set(ANCHORS)
    own = [anchor for anchor in linked if anchor != "words"]
    assert len(own) == len(set(own)), "a word is linked more than once"


@pytest.mark.parametrize("stem", ["03_cross_architecture_profiles", "04_what_nfn_measures"])
def test_the_words_of_a_score_are_linked(stem):
    for anchor in ("adapter", "type", "map", "nfn", "record", "decoder", "seed", "nat"):
        assert f"(GUIDE.md#{anchor})" in prose(stem), anchor


def test_the_words_of_reinforcement_learning_are_linked():
    for anchor in ("adapter", "type", "nfn", "grpo", "reward", "advantage", "warmup", "record"):
        assert f"(GUIDE.md#{anchor})" in prose("06_grpo"), anchor


# Exercises


def cells_of(stem):
    cells = nbformat.read(FOLDER / f"{stem}.ipynb", as_version=4).cells
    return [cell for cell in cells if cell.cell_type == "code"]


def shown(cell):
    """What a cell has printed or returned."""
    texts = [output.get("text") or output.data["text/plain"] for output in cell.outputs]
    return "\n".join(texts)


WITH_EXERCISES = ["03_cross_architecture_profiles", "04_what_nfn_measures", "06_grpo"]


@pytest.mark.parametrize("stem", WITH_EXERCISES)
def test_each_exercise_has_a_turn_a_check_and_a_solution_that_passes(stem):
    cells = cells_of(stem)
    is_solution = ["solution" in cell.metadata.get("tags", []) for cell in cells]
    turns = [i for i, cell in enumerate(cells) if "# your turn" in cell.source]
    solutions = [i for i, solves in enumerate(is_solution) if solves]
    assert len(turns) == len(solutions) >= 2
    for turn, solution in zip(turns, solutions, strict=True):
        assert turn < solution and cells[solution].metadata["jupyter"]["source_hidden"]
        assert UNFILLED in shown(cells[solution - 1]), "the check is run before the reader's turn"
        assert shown(cells[solution]) and UNFILLED not in shown(cells[solution])


def run_cells(stem, *parts, **names):
    """The names that the cells define which contain these parts, in the notebook's order."""
    for cell in cells_of(stem):
        if any(part in cell.source for part in parts):
            exec(compile(cell.source, stem, "exec"), names)
    return names


def test_who_forgets_the_side_of_the_right_answer_does_not_pass():
    """The sign of notebook 01's cross term needs that of the residual, too."""
    given = {"torch": torch, "math": math, "ETA": 0.05, "grows_more": None}
    parts = ("def start", "def growth_of", "def check_sign")
    check = run_cells("01_why_alignment_grows", *parts, **given)["check_sign"]
    with pytest.raises(AssertionError, match="wrong for network"):
        check(lambda W0, z, v, y: (W0 @ z) @ v.sign() > 0)


def test_only_a_cheat_passes_for_one():
    names = run_cells("06_grpo", "def contains_reward", "def check_cheat", grpo=grpo)
    everything = " ".join(str(number) for number in range(-9, 19))
    assert "28 of 28" in names["check_cheat"](everything)
    for honest in ("7", f"{everything} <answer>7</answer>"):
        with pytest.raises(AssertionError):
            names["check_cheat"](honest)


def test_rates_are_checked_for_the_place_that_they_give():
    means = pd.DataFrame({3e-4: [2.0, 1.9, 2.2], 1e-3: [2.1, 2.2, 2.3]}, index=["PLoP", "a", "b"])
    by_rate = pd.concat({"reward": means}, axis=1)
    turn = {"rates_first": None, "rates_last": None, "order": list(means.index)}
    check = run_cells("06_grpo", "def check_rates", pd=pd, by_rate=by_rate, **turn)["check_rates"]
    assert "number 3" in check({"PLoP": 3e-4, "a": 1e-3, "b": 1e-3}, place=3)
    for rates in ({"PLoP": 1e-3, "a": 3e-4, "b": 3e-4}, {"PLoP": 3e-4}):
        with pytest.raises(AssertionError):
            check(rates, place=3)


def test_the_layer_that_decides_is_told_from_others():
    recorded = pd.read_csv(data_file("results/profiles.csv"), comment="#")
    given = {"recorded": recorded, "pd": pd, "K": 3, "layer_that_decides": None}
    given["DOMAINS"] = ["math", "code", "logic", "history"]
    parts = ("def short(name)", "def check_layer")
    names = run_cells("03_cross_architecture_profiles", *parts, **given)
    source = next(
        c.source for c in cells_of("03_cross_architecture_profiles") if "def choose" in c.source
    )
    exec(source[: source.index("everything =")], names)
    assert "MLP output" in names["check_layer"](5)
    for wrong in (0, 4, 17):
        with pytest.raises(AssertionError):
            names["check_layer"](wrong)


def test_shares_of_another_scale_are_told_from_those_of_nfn():
    random = np.random.default_rng(0)
    rows = [("m", t, f"{t}{i}", d) for t in "ab" for i in range(3) for d in ("math", "code")]
    several = pd.DataFrame(rows, columns=["model", "type", "module", "domain"])
    several["nfn"] = random.lognormal(size=len(several))
    given = {"several": several, "pd": pd, "np": np, "log_shares": None}
    given["columns"] = ["type", "module", "domain", "nfn"]
    parts = ("def decomposed", "def check_shares")
    given["shares"] = pd.DataFrame({"type": [0.5]}, index=["m"])
    names = run_cells("03_cross_architecture_profiles", *parts, **given)

    def split(table):
        return table.groupby("model")[given["columns"]].apply(names["decomposed"])

    right = split(several.assign(nfn=np.log2(several["nfn"])))
    assert f"{right['type'].iloc[0]:.0%} of log NFN" in names["check_shares"](right)
    with pytest.raises(AssertionError):
        names["check_shares"](split(several))
