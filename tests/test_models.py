"""Loading: the offline default, folders, damage, and the tokens that are known."""

import json
import shutil

import pytest
import torch

import plop_nb as plop
from plop_nb import _wheels
from plop_nb.models import DownloadError, TokenizerError

# The offline default


def test_default_is_an_ordinary_model(smollm):
    model, tokenizer = smollm
    assert (
        type(model).__name__ == "LlamaForCausalLM"
        and model.dtype == torch.float32
        and not model.training
    )
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert getattr(model, "hf_quantizer", None) is None
    prompt = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
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
    good = _wheels.cached_folder(_wheels.DEFAULT)
    monkeypatch.setenv("PLOP_NB_CACHE", str(tmp_path))
    cached = _wheels.cached_folder(_wheels.DEFAULT)
    shutil.copytree(good, cached)
    with open(cached / "model.safetensors", "r+b") as weights:
        weights.truncate(1_000_000)
    made = []

    def make(name, folder, progress):
        assert name == _wheels.DEFAULT and not folder.exists()
        made.append(folder)
        shutil.copytree(good, folder)

    monkeypatch.setattr(_wheels, "make", make)
    model, _ = plop.load_model(device="cpu")
    assert made == [cached] and model.dtype == torch.float32


@pytest.fixture
def tiny_default(tiny_llama, byte_tokenizer, tmp_path, monkeypatch):
    """A tiny model in the cache in place of the default; its folder. There is no network."""
    monkeypatch.setenv("PLOP_NB_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    folder = _wheels.cached_folder(_wheels.DEFAULT)
    tiny_llama.save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    monkeypatch.setitem(
        _wheels.KNOWN_TOKENS, _wheels.DEFAULT, {"Hi!": byte_tokenizer("Hi!")["input_ids"]}
    )
    return folder


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize(
    "options", [{"attn_implementation": "flash_attention_9"}, {"attn_implemantation": "sdpa"}]
)
def test_bad_options_are_told_and_leave_the_cache_alone(tiny_default, options):
    before = contents(tiny_default.parent)
    with pytest.raises(
        (TypeError, ValueError, ImportError), match="attn_implemantation|flash_attention_9"
    ) as caught:
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
        assert name == _wheels.DEFAULT and not folder.exists()
        folder.mkdir()
        for path, data in whole.items():
            (folder / path).write_bytes(data)

    monkeypatch.setattr(_wheels, "make", make)
    assert plop.load_model(device="cpu")[0].dtype == torch.float32
    assert contents(tiny_default) == whole and list(tmp_path.iterdir()) == [tiny_default]


def test_truncated_weights_in_a_folder_of_ones_own(tiny_default):
    truncate(tiny_default)
    with pytest.raises(
        DownloadError, match=f"cannot load '{tiny_default}': it is neither a complete model folder"
    ):
        plop.load_model(tiny_default)


# Tokens: releases of transformers convert the tokenizer of a GGUF file differently


@pytest.mark.slow  # Gemma is downloaded
@pytest.mark.parametrize("name", list(_wheels.CARRIED))
def test_tokenizers_of_carried_models_are_right(name):
    """The pieces join to the text, BOS stands where the model has one, whatever made the cache."""
    _, tokenizer = plop.load_model(name, device="cpu")
    for text, ids in _wheels.KNOWN_TOKENS[name].items():
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

    monkeypatch.setattr(_wheels, "make", make)
    _, tokenizer = plop.load_model(device="cpu")
    assert made == [_wheels.DEFAULT] and tokenizer("Hi!") == byte_tokenizer("Hi!")


def test_wrong_tokens_are_refused_where_they_cannot_be_repaired(
    tiny_default, byte_tokenizer, monkeypatch
):
    spoil_tokenizer(tiny_default, byte_tokenizer)
    spoiled = contents(tiny_default)

    def make_the_same(name, folder, progress):
        folder.mkdir()
        for path, data in spoiled.items():
            (folder / path).write_bytes(data)

    monkeypatch.setattr(_wheels, "make", make_the_same)
    with pytest.raises(
        TokenizerError,
        match=r"'SmolLM2-135M-Instruct' makes \[.*'Hi!', expected .*transformers==5.23",
    ):
        plop.load_model(device="cpu")


def test_wrong_tokens_are_named_where_there_is_no_network(tiny_default, byte_tokenizer):
    spoil_tokenizer(tiny_default, byte_tokenizer)
    before = contents(tiny_default.parent)
    with pytest.raises(TokenizerError, match="'SmolLM2-135M-Instruct' makes"):
        plop.load_model(device="cpu")
    assert contents(tiny_default.parent) == before


def test_cache_of_an_earlier_conversion_is_not_read(tiny_default, monkeypatch):
    monkeypatch.setattr(_wheels, "CONVERSION", _wheels.CONVERSION + 1)
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
    assert (
        plop.load_model(str(tmp_path), device="cpu", dtype=torch.float16)[0].dtype == torch.float16
    )
