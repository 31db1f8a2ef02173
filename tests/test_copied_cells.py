"""Cells of notebooks that readers copy run where `model`, `tokenizer` and `texts` exist."""

import copy
from pathlib import Path

import jupytext
import matplotlib.pyplot as plt
import pytest
import torch

import plop_nb as plop

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("[0-9]*.py"))


def copied_cells():
    """[(notebook and number of the cell, its source)] of every cell with the tag "copy"."""
    found = []
    for script in NOTEBOOKS:
        for number, cell in enumerate(jupytext.read(script).cells):
            if "copy" in cell.metadata.get("tags", []):
                found.append((f"{script.stem} cell {number}", cell.source))
    return found


CELLS = copied_cells()


def test_there_are_cells_to_copy():
    """Counted in the two notebooks for newcomers."""
    own = [name for name, _ in CELLS if name.startswith(("00_", "07_"))]
    assert len(own) >= 8, own


@pytest.mark.slow
@pytest.mark.parametrize("source", [source for _, source in CELLS], ids=[name for name, _ in CELLS])
def test_a_copied_cell_runs_alone(source, smollm, tmp_path, monkeypatch):
    """Each gets a model of its own, and a folder that it may write to."""
    model, tokenizer = smollm
    texts = plop.load_texts("math", n=8)
    names = {"plop": plop, "torch": torch, "model": copy.deepcopy(model)}
    names |= {"tokenizer": copy.deepcopy(tokenizer), "texts": texts}
    monkeypatch.chdir(tmp_path)
    try:
        exec(compile(source, "a copied cell", "exec"), names)
    finally:
        plt.close("all")
