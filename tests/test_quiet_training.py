"""Trainings of the package as a user runs them: nothing of other packages, no bars, no files."""

import logging
import subprocess
import sys

import datasets
import pytest

from plop_nb.experiments.isolation import TALKATIVE, quietly

PREPARE = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
import plop_nb as plop
from plop_nb import experiments as ex
from plop_nb.experiments import grpo
from plop_nb.placement import Placement
from tests.toy_task import digits

model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
task = ex.Task("toy", digits(12), digits(2, 50), digits(3, 100))
scores = plop.nfn_scores(model, ["a text"], tokenizer, progress=False)
on = Placement.of_types(scores, ["q_proj", "v_proj"])
print("prepared", file=sys.stderr)

def length(prompts, completions, **_):
    return [float(len(text)) for text in completions]
"""
TRAININGS = {
    "finetune": "ex.finetune(model, task, tokenizer, on, r=2, steps=2, batch_size=4)",
    "grid": """
few = {"steps": 1, "batch_size": 4, "ranks": {"qv": 2}}
ex.grid(model, [task], tokenizer, {"qv": on}, lrs=[1e-3], seeds=[0], progress=False, **few)
""",
    "grpo": """
answered = [{"prompt": f"{i} plus 1 is", "answer": str(i + 1)} for i in range(12)]
task = ex.Task("toy", answered, [], answered[:2], new_tokens=2)
model = grpo.warm_up(model, task, tokenizer, steps=1, batch_size=2)
few = {"r": 2, "steps": 1, "prompts_per_step": 2, "num_generations": 2}
grpo.train(model, task, tokenizer, on, rewards=[length], **few)
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_prints_nothing(name, tiny_llama, byte_tokenizer, tmp_path, pytestconfig):
    byte_tokenizer.add_special_tokens({"eos_token": "<end>"})
    for part in (tiny_llama, byte_tokenizer):
        part.save_pretrained(tmp_path / "model")
    empty = tmp_path / "empty"
    empty.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PREPARE + TRAININGS[name], tmp_path / "model"],
        cwd=empty,
        env={"PATH": "", "PYTHONPATH": str(pytestconfig.rootpath), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = done.stderr.partition("prepared\n")[2]
    assert (done.stdout, told) == ("", "") and list(empty.iterdir()) == []


def switches():
    return [logging.getLogger(name).level for name in TALKATIVE], (
        datasets.are_progress_bars_disabled()
    )


@pytest.mark.parametrize("user_hides_bars", [False, True])
def test_afterwards_other_packages_talk_as_before(user_hides_bars):
    shown = not datasets.are_progress_bars_disabled()
    if user_hides_bars:
        datasets.disable_progress_bars()
    before = switches()
    with pytest.raises(KeyboardInterrupt), quietly():
        assert switches() == ([logging.ERROR] * len(TALKATIVE), True)
        raise KeyboardInterrupt
    assert switches() == before
    if user_hides_bars and shown:
        datasets.enable_progress_bars()
