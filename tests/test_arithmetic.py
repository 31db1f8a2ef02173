"""Notebooks pass on processors that round otherwise; their comparison still tells what differs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from notebooks.tools.comparison import settled
from tests import arithmetic

ROOT = Path(__file__).parents[1]

CHEAP = ["notebooks/07_explore_your_model.ipynb"]
# A line for torch and one for numpy, of every digit of what they compute; then the vectors in use.
DIGITS = """
import hashlib, numpy as np, torch
def exact(*arrays):
    return hashlib.sha256(b"".join(np.asarray(a).tobytes() for a in arrays)).hexdigest()
a = np.sin(np.arange(300 * 1000.0)).reshape(300, 1000)
t = torch.from_numpy(a).float()
print(exact(t @ t.T, torch.nn.functional.gelu(t), t.softmax(1), t.norm(dim=1)))
print(exact(a @ a.T, np.exp(a), a.sum(axis=1)))
print(torch.backends.cpu.get_cpu_capability())
"""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.skipif(not arithmetic.X86, reason="the settings are those of x86 processors")
@pytest.mark.parametrize("setting", ["avx2", "old"])
def test_a_setting_changes_the_last_digits(setting):
    """Of torch and of numpy, with one thread each: else a run under it would prove nothing."""
    plain = dict(os.environ)
    for name in arithmetic.SETTINGS["old"]:
        plain.pop(name, None)
    torch_here, numpy_here, vectors = digits({**plain, **ONE_THREAD})
    there = {**plain, **arithmetic.SETTINGS[setting], **ONE_THREAD}
    torch_there, numpy_there, _ = digits(there)
    if setting == "avx2" and vectors != "AVX512":
        pytest.skip(f"this processor has no wider vectors: {vectors}")
    assert torch_here != torch_there and numpy_here != numpy_there


def digits(environment):
    command = [sys.executable, "-c", DIGITS]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("notebook", CHEAP)
def test_cheap_notebooks_under_the_arithmetic_of_another_processor(notebook):
    assert arithmetic.run("old", ["-n0", notebook]) == 0


# The comparison

SAME = {
    "the last digit": ("o_proj 186.4914", "o_proj 186.4915"),
    "across a carry": ("1.999", "2.000"),
    "percent": ("72.4%", "72.5%"),
    "whole percent": ("99 %", "98 %"),
    "one of two prints a digit less": ("0.5", "0.49"),
    "exponent": ("1.2e-06", "1.3e-06"),
    "the sign of zero, and the columns that it moves": ("a  -0.00  1.5", "a   0.00  1.5"),
    "a table in HTML": ("<td>0.602</td><td>7</td>", "<td>0.603</td><td>7</td>"),
}
OTHER = {
    "two digits off": ("186.4914", "186.4916"),
    "one of several numbers": ("0.1 0.20 0.3", "0.1 0.25 0.3"),
    "two digits off where one prints a digit less": ("0.5", "0.52"),
    "the sign": ("-0.52", "0.52"),
    "a count": ("8 texts", "9 texts"),
    "a size in a name": ("SmolLM2-135M", "SmolLM2-136M"),
    "a version in a name": ("Llama-3.2-1B", "Llama-3.1-1B"),
    "a version glued to a name": ("Qwen2.5", "Qwen2.4"),
    "one choice or its neighbour": ("lr 0.0010", "lr 0.0020"),
    "indentation": ("    r=16,", "  r=16,"),
    "two percent": ("72 %", "74 %"),
    "percent or not": ("72 %", "72"),
    "a verdict": ("undecided 0.1", "better 0.1"),
    "the order": ("v 0.60, up 0.94", "up 0.94, v 0.60"),
    "a boolean": ("True", "False"),
    "a number more": ("0.1 0.2", "0.1"),
    "a line more": ("0.1\n0.2", "0.1 0.2"),
    "not a number": ("nan", "0.1"),
}


@pytest.mark.parametrize("pair", SAME.values(), ids=SAME)
def test_rounded_numbers_may_differ_by_their_last_digit(pair):
    for new, saved in (pair, pair[::-1]):
        assert settled(new, saved) == saved


@pytest.mark.parametrize("pair", OTHER.values(), ids=OTHER)
def test_whatever_else_differs_is_told(pair):
    for new, saved in (pair, pair[::-1]):
        assert settled(new, saved) != saved


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_nbval_compares_so(tmp_path, workers):
    """Four cells: in the third a number is two units off, in the fourth a word differs."""
    saved = {
        "print(0.12341)": "0.12342\n",
        "print('v', 3)": "v 3\n",
        "print(0.5)": "0.52\n",
        "print('up')": "down\n",
    }
    notebook = nbformat.v4.new_notebook()
    for count, (source, text) in enumerate(saved.items(), 1):
        output = nbformat.v4.new_output("stream", name="stdout", text=text)
        notebook.cells.append(
            nbformat.v4.new_code_cell(source, execution_count=count, outputs=[output])
        )
    nbformat.write(notebook, tmp_path / "small.ipynb")
    shutil.copy(ROOT / "conftest.py", tmp_path)
    shutil.copytree(ROOT / "notebooks" / "tools", tmp_path / "notebooks" / "tools")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", workers]
    command += ["--nbval", "--nbval-current-env", "-o", "markers=slow", "small.ipynb"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    failed = [number for number in range(4) if f"Cell {number} - " in done.stdout]
    assert "2 failed, 2 passed" in done.stdout and failed == [2, 3], done.stdout
