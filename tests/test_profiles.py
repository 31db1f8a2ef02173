"""Scores in a file: the same again, or a clear error; and the profiles that are shared."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import plop_nb as plop
from plop_nb.origin import hash_of
from tests.conftest import TEXTS

PROFILES = Path(__file__).parents[1] / "data" / "profiles"
FILES = sorted(PROFILES.glob("*.parquet"))
LARGEST = 100_000  # bytes of a file in data/profiles


@pytest.fixture
def scores(tiny_llama, byte_tokenizer):
    tiny_llama.config._name_or_path = "someone/tiny"
    return plop.nfn_scores(tiny_llama, TEXTS, byte_tokenizer, progress=False)


def assert_same(one, other):
    pd.testing.assert_frame_equal(one, other, check_exact=True)
    assert one.attrs == other.attrs


# What scores are of


def test_scores_say_what_they_are_of(scores, tiny_llama, byte_tokenizer):
    about = scores.attrs
    assert (about["model"], about["class"], about["revision"]) == (
        "someone/tiny",
        "LlamaForCausalLM",
        None,
    )
    assert (about["dtype"], about["device"]) == ("float32", "cpu")
    assert about["texts"] == hash_of(TEXTS) != hash_of(TEXTS[::-1])
    settings = {"max_length": 256, "baseline": "rms", "seed": 0, "form": "stored"}
    assert about["settings"] == settings
    assert about["versions"].keys() == {"plop_nb", "torch", "transformers"}
    tiny_llama.config._commit_hash = "abc"
    others = plop.nfn_scores(
        tiny_llama,
        iter(TEXTS),
        byte_tokenizer,
        baseline="gaussian",
        seed=3,
        max_length=np.int32(64),
        progress=False,
    ).attrs
    assert others["revision"] == "abc" and others["texts"] == about["texts"]
    assert others["settings"] == settings | {"baseline": "gaussian", "seed": 3, "max_length": 64}


def test_batches_have_no_hash(tiny_llama, byte_tokenizer):
    batches = [byte_tokenizer(["abc"], return_tensors="pt")]
    assert plop.nfn_scores(tiny_llama, batches, progress=False).attrs["texts"] is None


def test_a_stopping_rule_is_a_setting(tiny_llama, byte_tokenizer):
    texts = [f"text number {number}" for number in range(16)]
    options = {"stop": 0.5, "k": 1, "progress": False}
    about = plop.nfn_scores(tiny_llama, texts, byte_tokenizer, **options).attrs
    assert (about["settings"]["stop"], about["settings"]["k"]) == (0.5, 1)


# There and back


def test_scores_and_profiles_come_back_the_same(scores, tmp_path):
    for number, frame in enumerate([scores, plop.by_module(scores)]):
        path = tmp_path / f"{number}.parquet"
        plop.save_scores(frame, path)
        assert_same(plop.load_scores(str(path)), frame)
    assert plop.by_module(scores).attrs == scores.attrs
    assert_same(plop.by_type(plop.load_scores(tmp_path / "0.parquet")), plop.by_type(scores))


def test_columns_of_ones_own_index_and_dtypes_come_back(scores, tmp_path):
    frame = scores.assign(
        nfn=scores["nfn"].astype("float32"), run="ä", day=pd.Timestamp("2026-1-1")
    )
    frame = frame.astype({"type": "category"})[frame["layer"] == 1]
    frame.attrs["note"] = {"who": ["me", "ü"], "n": 3, "share": 0.1, "none": None}
    plop.save_scores(frame, tmp_path / "a")
    assert_same(plop.load_scores(tmp_path / "a"), frame)


# What is no frame of scores


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda scores: scores["nfn"], "scores is Series: expected the frame of nfn_scores"),
        (lambda scores: plop.by_type(scores), r"scores lacks the columns \['layer', 'module'\]"),
        (lambda scores: scores.drop(columns="sample"), "neither the column 'sample' nor"),
        (lambda scores: scores[:0], "scores has no rows"),
    ],
)
def test_what_is_no_frame_of_scores(scores, tmp_path, change, says):
    with pytest.raises(ValueError, match=says):
        plop.save_scores(change(scores), tmp_path / "a.parquet")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [(1, 2), {1: 2}, np.float32(1), float("nan"), object()])
def test_attributes_that_would_not_come_back(scores, tmp_path, value):
    scores.attrs["mine"] = value
    with pytest.raises(ValueError, match="scores.attrs=.* would not come back"):
        plop.save_scores(scores, tmp_path / "a.parquet")
    assert list(tmp_path.iterdir()) == []


def test_paths(scores, tmp_path):
    for call in (lambda path: plop.save_scores(scores, path), plop.load_scores):
        with pytest.raises(TypeError, match="path=3 is int, expected the path of a file"):
            call(3)
    with pytest.raises(ValueError, match="nowhere.*folder does not exist, make it first"):
        plop.save_scores(scores, tmp_path / "nowhere" / "a.parquet")
    with pytest.raises(FileNotFoundError):
        plop.load_scores(tmp_path / "a.parquet")


# Other files, and damage


def test_a_file_of_another_kind(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_text("module,nfn\n")
    with pytest.raises(ValueError, match="a.parquet' is no parquet file: expected one of save_s"):
        plop.load_scores(path)
    pd.DataFrame({"a": [1]}).to_parquet(path)
    with pytest.raises(ValueError, match=r"a.parquet' lacks the columns \['layer', .*save_scores"):
        plop.load_scores(path)


def test_damage_is_told(scores, tmp_path):
    path = tmp_path / "a.parquet"
    plop.save_scores(scores, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(ValueError, match="a.parquet' is damaged .*: fetch it, or save"):
        plop.load_scores(path)
    told, footer = 0, int.from_bytes(whole[-8:-4], "little") + 8
    for place in range(4, len(whole) - footer, 41):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            assert_same(plop.load_scores(path), scores)  # such as a statistic that nobody reads
        except ValueError as error:
            assert "is damaged" in str(error)
            told += 1
    assert told > 20


def test_what_stood_there_stays_where_writing_fails(scores, tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    plop.save_scores(scores, path)

    def half(frame, file, **_):
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", half)
    with pytest.raises(OSError, match="No space left"):
        plop.save_scores(scores.assign(nfn=1.0), path)
    assert os.listdir(tmp_path) == ["a.parquet"]
    assert_same(plop.load_scores(path), scores)


def test_without_pyarrow(scores, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match="needs pyarrow .of datasets., .* pip install datasets"):
        plop.save_scores(scores, tmp_path / "a.parquet")


# The profiles that are shared


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_shared_profile_says_what_it_is_of_and_is_small(path):
    profile = plop.load_scores(path)
    assert path.stat().st_size < LARGEST
    assert profile["module"].is_unique and profile["samples"].max() >= 8
    numbers = profile[["nfn", "low", "high"]]
    assert np.isfinite(numbers).all(axis=None) and (profile["nfn"] > 0).all()
    assert profile["nfn"].between(profile["low"], profile["high"]).all()
    about = profile.attrs
    name = about["model"].replace("/", "--")
    assert path.stem.startswith(f"{name}-"), "MODEL-DOMAIN.parquet, with -- for the / of a Hub id"
    assert len(about["texts"]) == 16 and about["settings"]["max_length"] >= 16
    assert all(about["versions"].values()) and json.dumps(about)


def test_the_readme_of_the_profiles_lists_them():
    readme = (PROFILES / "README.md").read_text(encoding="utf-8")
    assert FILES and [path.name for path in FILES if f"`{path.name}`" not in readme] == []
    others = {path.name for path in PROFILES.iterdir()} - {path.name for path in FILES}
    assert others == {"README.md"}
