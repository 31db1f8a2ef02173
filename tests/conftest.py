import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import plop_nb as plop

TEXTS = [
    "one short text",
    "a somewhat longer text about nothing much",
    "three",
    "the last text of these four",
]


def pytest_collection_modifyitems(items):
    """Whatever needs the real model counts as slow: without it, `make check` downloads nothing."""
    for item in items:
        if {"smollm", "math_scores"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def tiny_llama():
    """A random two-layer Llama, float32, with norms that are not all ones."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_bias=True,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.normal_(parameter, 1.0, 0.3)
    return model


@pytest.fixture
def byte_tokenizer():
    """Every byte a token (ids below 256), no pad token."""
    vocab = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(scope="session")
def smollm():
    """The real model and its tokenizer; tests must leave it as they found it."""
    return plop.load_model(dtype="float32", device="cpu", progress=False)


@pytest.fixture(scope="session")
def math_scores(smollm):
    return plop.nfn_scores(smollm[0], plop.load_texts("math", n=32), smollm[1], progress=False)
