"""Loading: the offline default, folders, damage, and the tokens that are known."""

import json
import shutil
import sys
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, LlamaForCausalLM, Wav2Vec2Config, Wav2Vec2ForCTC

import plop_nb as plop
from plop_nb import _wheels, models
from plop_nb.carried import CARRIED, DEFAULT, KNOWN_TOKENS
from plop_nb.models import DownloadError, TokenizerError

IN_CI = [name for name in CARRIED if name != "qwen2.5-coder-1.5b"]  # which is 1.1 GB to download

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
    good = _wheels.cached_folder(DEFAULT)
    monkeypatch.setenv("PLOP_NB_CACHE", str(tmp_path))
    cached = _wheels.cached_folder(DEFAULT)
    shutil.copytree(good, cached)
    with open(cached / "model.safetensors", "r+b") as weights:
        weights.truncate(1_000_000)
    made = []

    def make(name, folder, progress):
        assert name == DEFAULT and not folder.exists()
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
    folder = _wheels.cached_folder(DEFAULT)
    tiny_llama.save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    monkeypatch.setitem(KNOWN_TOKENS, DEFAULT, {"Hi!": byte_tokenizer("Hi!")["input_ids"]})
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
        assert name == DEFAULT and not folder.exists()
        folder.mkdir()
        for path, data in whole.items():
            (folder / path).write_bytes(data)

    monkeypatch.setattr(_wheels, "make", make)
    assert plop.load_model(device="cpu")[0].dtype == torch.float32
    assert contents(tiny_default) == whole and list(tmp_path.glob("*/*")) == [tiny_default]


def test_truncated_weights_in_a_folder_of_ones_own(tiny_default):
    truncate(tiny_default)
    with pytest.raises(
        DownloadError, match=f"cannot load '{tiny_default}': it is neither a complete model folder"
    ):
        plop.load_model(tiny_default)


# Tokens: releases of transformers convert the tokenizer of a GGUF file differently


@pytest.mark.slow  # Gemma is downloaded
@pytest.mark.parametrize("name", IN_CI)
def test_tokenizers_of_carried_models_are_right(name):
    """The pieces join to the text, BOS stands where the model has one, whatever made the cache."""
    _, tokenizer = plop.load_model(name, device="cpu")
    for text, ids in KNOWN_TOKENS[name].items():
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
    assert made == [DEFAULT] and tokenizer("Hi!") == byte_tokenizer("Hi!")


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

NOWHERE = "/no/such/folder"  # arguments are looked at first


def test_unknown_model_says_what_would_do(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="'no-such/model'.*hf download no-such/model"):
        plop.load_model("no-such/model")


def test_a_name_that_is_no_string():
    with pytest.raises(TypeError, match="name is int"):
        plop.load_model(5)


@pytest.mark.parametrize("name", ["", "  ", "\n"])
def test_a_blank_name_is_not_the_default(name, monkeypatch):
    """As an unset variable of a shell gives it."""
    monkeypatch.setattr(models, "_load_carried", lambda *_: pytest.fail("loaded the default"))
    with pytest.raises(ValueError, match=r"name='.*' is blank, .* load_model\(\) without a name"):
        plop.load_model(name)


@pytest.mark.parametrize(
    "dtype",
    ["float31", "", 5, float, np.float32, np.dtype("float16"), "int8", torch.int8, "float8_e4m3fn"],
)
@pytest.mark.parametrize("argument", ["dtype", "torch_dtype"])
def test_what_is_no_dtype_to_compute_in(dtype, argument):
    with pytest.raises(ValueError, match="dtype=.* is unknown, choose 'float32', 'bfloat16'"):
        plop.load_model(NOWHERE, **{argument: dtype})


def test_torch_dtype_is_an_old_name_of_dtype(model_folder):
    for older in ("float16", "torch.float16", torch.float16):
        assert plop.load_model(model_folder, torch_dtype=older)[0].dtype == torch.float16
    both = plop.load_model(model_folder, dtype="float16", torch_dtype=torch.float16)
    assert both[0].dtype == torch.float16
    with pytest.raises(ValueError, match="dtype='float32' and torch_dtype='float16' differ"):
        plop.load_model(model_folder, dtype="float32", torch_dtype="float16")


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "", "mps:7"])
@pytest.mark.parametrize("argument", ["device", "device_map"])
def test_a_device_that_is_not_there(device, argument):
    with pytest.raises(ValueError, match=f"{argument}=.* is not to be had here .*: choose 'cpu'"):
        plop.load_model(NOWHERE, **{argument: device})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device 0")
def test_device_zero_is_not_the_processor():
    with pytest.raises(ValueError, match="device=0 is not to be had here"):
        plop.load_model(NOWHERE, device=0)


def test_what_is_no_device():
    with pytest.raises(ValueError, match="device=5.5 is not to be had here"):
        plop.load_model(NOWHERE, device=5.5)


def test_the_meta_device_holds_no_weights():
    with pytest.raises(ValueError, match="device='meta' holds no weights"):
        plop.load_model(NOWHERE, device="meta")


def test_two_ways_to_place_a_model():
    with pytest.raises(ValueError, match="device='cpu' and device_map='auto' both say"):
        plop.load_model(NOWHERE, device="cpu", device_map="auto")


def test_a_model_can_be_offloaded_to_the_disk(model_folder, tmp_path):
    model, _ = plop.load_model(
        model_folder, device_map={"": "disk"}, offload_folder=tmp_path / "offload"
    )
    assert model.model.layers[0].mlp.up_proj.weight.is_meta


def test_dtype_and_class_follow_the_folder(tiny_llama, byte_tokenizer, tmp_path):
    tiny_llama.bfloat16().save_pretrained(tmp_path)
    byte_tokenizer.save_pretrained(tmp_path)
    assert plop.load_model(tmp_path, device="cpu")[0].dtype == torch.float32
    assert plop.load_model(tmp_path, device="cpu", dtype="auto")[0].dtype == torch.bfloat16
    assert (
        plop.load_model(str(tmp_path), device="cpu", dtype=torch.float16)[0].dtype == torch.float16
    )


@pytest.fixture
def model_folder(tiny_llama, byte_tokenizer, tmp_path):
    return saved(tiny_llama, byte_tokenizer, tmp_path / "model")


def saved(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def change_weights(folder, change):
    """Save the weights in `folder` again as `change` left them."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def change_config(folder, **entries):
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | entries), encoding="utf-8")


def test_a_part_of_a_repository(model_folder):
    model, _ = plop.load_model(model_folder.parent, subfolder="model", local_files_only=True)
    assert type(model) is LlamaForCausalLM


def test_a_folder_of_results_is_not_taken_for_a_carried_model(tiny_default, tmp_path, monkeypatch):
    """As the command makes one: `python -m plop_nb minilm --out minilm`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / DEFAULT).mkdir()
    (tmp_path / DEFAULT / "adapter_config.json").write_text("{}")
    assert type(plop.load_model(DEFAULT, device="cpu")[0]) is LlamaForCausalLM


def test_a_folder_without_a_tokenizer(model_folder):
    for path in model_folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(DownloadError, match=f"'{model_folder}' has a model, but no tokenizer"):
        plop.load_model(model_folder)


@pytest.mark.parametrize("named", [["AutoModel"], ["LlamaConfig"], ["logging"], [None], []])
def test_architectures_that_name_no_model(model_folder, named):
    change_config(model_folder, architectures=named)
    assert type(plop.load_model(model_folder, device="cpu")[0]) is LlamaForCausalLM


# Weights that the checkpoint lacks are random: other scores at every load

UP = "model.layers.1.mlp.up_proj.weight"
HEAD = "lm_head.weight"


@pytest.mark.parametrize("options", [{}, {"ignore_mismatched_sizes": True}])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda weights: weights.pop(UP), f"{UP} is missing"),
        (lambda weights: weights.pop("model.norm.weight"), "model.norm.weight is missing"),
        (
            lambda weights: weights.update({UP: torch.zeros(7, 32)}),
            rf"{UP} has shape \(7, 32\), expected \(48, 32\)",
        ),
    ],
)
def test_weights_that_scores_depend_on_must_be_there(model_folder, change, says, options):
    change_weights(model_folder, change)
    with pytest.raises(ValueError, match=f"lacks weights of LlamaForCausalLM .{says}.*random"):
        plop.load_model(model_folder, **options)


def test_a_missing_head_is_random_and_said_to_be(model_folder, tiny_llama):
    change_weights(model_folder, lambda weights: weights.pop(HEAD))
    with pytest.warns(UserWarning, match=f"no head for LlamaForCausalLM .{HEAD} is missing"):
        model, _ = plop.load_model(model_folder, device="cpu")
    assert torch.equal(model.get_parameter(UP), tiny_llama.get_parameter(UP))


def test_a_head_of_another_shape_is_made_where_that_is_asked_for(model_folder):
    change_weights(model_folder, lambda weights: weights.update({HEAD: torch.zeros(5, 32)}))
    with pytest.raises(
        ValueError, match=r"expected \(258, 32\).*pass ignore_mismatched_sizes=True"
    ):
        plop.load_model(model_folder)
    with pytest.warns(UserWarning, match=f"{HEAD} has shape .*random. Scores do not depend"):
        plop.load_model(model_folder, ignore_mismatched_sizes=True)


def test_tied_weights_are_not_missing(tiny_llama, byte_tokenizer, tmp_path):
    tiny_llama.config.tie_word_embeddings = True
    saved(LlamaForCausalLM(tiny_llama.config), byte_tokenizer, tmp_path)
    assert HEAD not in load_file(tmp_path / "model.safetensors")
    assert silently_loaded(tmp_path).lm_head.weight.shape == (258, 32)


def silently_loaded(folder, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return plop.load_model(folder, device="cpu", **options)[0]


def test_heads_that_the_class_leaves_out_are_no_matter(model_folder):
    change_config(model_folder, architectures=["LlamaModel"])
    assert type(silently_loaded(model_folder)).__name__ == "LlamaModel"


def test_the_wrong_class_says_what_the_checkpoint_holds(model_folder):
    change_config(model_folder, architectures=["GPT2LMHeadModel"])
    with pytest.raises(ValueError, match="weights of GPT2LMHeadModel .*others instead .model"):
        plop.load_model(model_folder)


def test_layers_that_have_no_place_are_told(model_folder):
    with pytest.warns(UserWarning, match="no place for .model.layers.1.*those of a part of it"):
        plop.load_model(model_folder, num_hidden_layers=1)


def test_a_pooler_that_is_missing_can_be_left_out(byte_tokenizer, tmp_path):
    config = BertConfig(
        vocab_size=258, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    saved(BertModel(config, add_pooling_layer=False), byte_tokenizer, tmp_path)
    with pytest.raises(ValueError, match="pooler.dense.bias is missing.*add_pooling_layer=False"):
        plop.load_model(tmp_path)
    assert silently_loaded(tmp_path, add_pooling_layer=False).pooler is None


def test_what_only_training_reads_may_be_missing(byte_tokenizer, tmp_path):
    config = Wav2Vec2Config(
        vocab_size=258, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, conv_dim=(16,), conv_kernel=(10,), conv_stride=(5,),
        num_feat_extract_layers=1, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    saved(Wav2Vec2ForCTC(config), byte_tokenizer, tmp_path)
    change_weights(tmp_path, lambda weights: weights.pop("wav2vec2.masked_spec_embed"))
    silently_loaded(tmp_path)
    change_weights(tmp_path, lambda weights: weights.pop("wav2vec2.encoder.layer_norm.weight"))
    with pytest.raises(ValueError, match="wav2vec2.encoder.layer_norm.weight is missing.: they"):
        plop.load_model(tmp_path)


def test_weights_missing_in_the_cache_are_made_again(tiny_default, monkeypatch):
    whole = contents(tiny_default)
    change_weights(tiny_default, lambda weights: weights.pop(UP))

    def make(name, folder, progress):
        folder.mkdir()
        for path, data in whole.items():
            (folder / path).write_bytes(data)

    monkeypatch.setattr(_wheels, "make", make)
    plop.load_model(device="cpu")
    assert contents(tiny_default) == whole


# Models that come with their own code

OWN_CODE = """
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

class OwnWithoutTrunk(PreTrainedModel):
    config_class = OwnConfig
    base_model_prefix = "not_there"

    def __init__(self, config):
        super().__init__(config)
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.post_init()

    def get_output_embeddings(self):
        return self.last
"""


@pytest.fixture
def own_folder(model_folder, tmp_path, monkeypatch):
    """A folder with code of its own, which transformers copies into a cache before it runs it."""
    cache = "transformers.dynamic_module_utils.HF_MODULES_CACHE"
    monkeypatch.setattr(cache, str(tmp_path / "code"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        monkeypatch.delitem(sys.modules, name)
    (model_folder / "own.py").write_text(OWN_CODE)
    offer(model_folder, "OwnForCausalLM", AutoModelForCausalLM="OwnForCausalLM")
    return model_folder


def offer(folder, architecture, **classes):
    auto_map = {auto: f"own.{name}" for auto, name in classes.items()}
    change_config(
        folder,
        model_type="own",
        architectures=[architecture],
        auto_map={"AutoConfig": "own.OwnConfig", **auto_map},
    )


@pytest.mark.parametrize(
    "classes",
    [
        {"AutoModelForCausalLM": "OwnForCausalLM"},
        {"AutoModel": "OwnWithoutTrunk", "AutoModelForCausalLM": "OwnForCausalLM"},
        {"AutoModel": "OwnWithoutTrunk", "AutoModelForSequenceClassification": "OwnForCausalLM"},
    ],
)
def test_own_code_is_loaded_by_the_class_that_it_names(own_folder, classes):
    offer(own_folder, "OwnForCausalLM", **classes)
    assert type(silently_loaded(own_folder, trust_remote_code=True)).__name__ == "OwnForCausalLM"


def test_own_code_that_names_no_class_of_its_own(own_folder):
    offer(own_folder, "LlamaForCausalLM", AutoModelForCausalLM="OwnForCausalLM")
    assert type(silently_loaded(own_folder, trust_remote_code=True)).__name__ == "OwnForCausalLM"


def test_own_code_does_not_run_unasked(own_folder):
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        plop.load_model(own_folder, trust_remote_code=False)


def test_a_model_without_a_trunk_has_a_head_all_the_same(own_folder):
    offer(own_folder, "OwnWithoutTrunk", AutoModel="OwnWithoutTrunk")
    rows = {"weight": torch.zeros(4, 4), "bias": torch.zeros(4)}
    first = {f"first.{name}": value for name, value in rows.items()}
    save_file(first, own_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.warns(UserWarning, match="no head for OwnWithoutTrunk .last.bias is missing"):
        plop.load_model(own_folder, device="cpu", trust_remote_code=True)
    change_weights(own_folder, lambda weights: weights.pop("first.weight"))
    with pytest.raises(ValueError, match="OwnWithoutTrunk .first.weight is missing.: they"):
        plop.load_model(own_folder, device="cpu", trust_remote_code=True)
