"""Copies that compute the same in other weights: what stays, what moves, and what is refused."""

import copy
import threading

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, disk_offload
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OlmoConfig,
    OlmoForCausalLM,
    ViTConfig,
    ViTModel,
    XmodConfig,
    XmodModel,
)

from plop_nb.moves import canonical, fold_norms, mix_heads, move_gains, scale_neurons
from plop_nb.probing import norm_links, norm_table, pair_links
from tests.tiny_models import build

FAST = ["llama", "gemma2", "gpt2", "opt"]
SLOW = """t5 bert qwen2 qwen3 gemma gemma3_text mistral phi stablelm olmo2 gpt_neox gptj mbart mt5
    cohere starcoder2 nemotron bitnet bloom""".split()
ARCHITECTURES = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
TINY = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def shaken(model, seed=1):
    """The model with gains, shifts and biases made random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def llama(**options):
    torch.manual_seed(0)
    return shaken(LlamaForCausalLM(LlamaConfig(**{**TINY, **HEADS, **options})))


def gpt2():
    torch.manual_seed(0)
    return shaken(GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4)))


def tokens(rows=3, length=11, seed=5, high=60):
    """Other tokens than those of the probe, more of them, and some are padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, high, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, length - 4 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def outputs(model):
    """Logits, or hidden states where there are none, of the real tokens."""
    batch = tokens()
    more = {}
    if getattr(model.config, "is_encoder_decoder", False):
        more = {"decoder_input_ids": batch["input_ids"].flip(1)}
    found = model(**batch, **more)[0]
    return found if more else found[batch["attention_mask"] > 0]


def gap(model, other):
    """The largest difference of outputs, relative to the largest output."""
    expected = outputs(model)
    return ((outputs(other) - expected).abs().max() / expected.abs().max()).item()


def state(model):
    """All that a move must leave as it was."""
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    gradients = [parameter.requires_grad for parameter in model.parameters()]
    return weights, (modes, hooks, gradients)


def assert_untouched(model, before):
    weights, rest = before
    now, rest_now = state(model)
    assert rest_now == rest and now.keys() == weights.keys()
    for name, value in weights.items():
        assert torch.equal(now[name], value), name


def random_gains(model, generator):
    links = [link for link in norm_links(model) if link.is_free]
    return {link.name: torch.rand(link.gain.shape, generator=generator) + 0.5 for link in links}


def random_factors(model, generator, pairs=None):
    found = {}
    for pair in pair_links(model) if pairs is None else pairs:
        found[pair.writer.name] = 0.5 + torch.rand(pair.writer.shape[0], generator=generator)
    return found


def random_matrices(model, generator, pairs=None):
    found = {}
    for pair in pair_links(model) if pairs is None else pairs:
        if pair.head:
            heads = pair.writer.shape[0] // pair.head
            near = torch.randn(heads, pair.head, pair.head, generator=generator)
            found[pair.writer.name] = torch.eye(pair.head) + 0.3 * near
    return found


def moved_at_random(model, seed=3):
    """The same function after every kind of move."""
    generator = torch.Generator().manual_seed(seed)
    model = move_gains(model, random_gains(model, generator))
    model = mix_heads(model, random_matrices(model, generator))
    return scale_neurons(model, random_factors(model, generator))


MOVES = {
    "fold_norms": lambda model, _: fold_norms(model, strict=False),
    "move_gains": lambda model, g: move_gains(model, random_gains(model, g)),
    "scale_neurons": lambda model, g: scale_neurons(model, random_factors(model, g)),
    "mix_heads": lambda model, g: mix_heads(model, random_matrices(model, g)),
    "canonical": lambda model, _: canonical(model),
}


@pytest.fixture
def in_float64(monkeypatch):
    """Builds a tiny model whose norms, too, compute in float64: those of transformers do not."""

    def patched(model_type):
        model = shaken(build(model_type)).double()
        for cls in {type(module) for module in model.modules()}:
            if "RMSNorm" in cls.__name__ or cls.__name__ in ("T5LayerNorm", "MT5LayerNorm"):
                one = 1.0 if "Gemma" in cls.__name__ else 0.0
                monkeypatch.setattr(cls, "forward", float64_norm(one))
            if cls.__name__ in ("CohereLayerNorm", "NemotronLayerNorm1P"):
                one = 1.0 if "1P" in cls.__name__ else 0.0
                monkeypatch.setattr(cls, "forward", float64_layer_norm(one))
        return model

    return patched


def float64_norm(one):
    def forward(self, x):
        eps = getattr(self, "variance_epsilon", getattr(self, "eps", None))
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * (one + self.weight)

    return forward


def float64_layer_norm(one):
    def forward(self, x):
        eps = getattr(self, "variance_epsilon", getattr(self, "eps", None))
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * (one + self.weight)
        return x if getattr(self, "bias", None) is None else x + self.bias

    return forward


# What stays


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_move_keeps_the_outputs(model_type, in_float64):
    model = in_float64(model_type)
    before = state(model)
    generator = torch.Generator().manual_seed(2)
    changed = []
    for name, move in MOVES.items():
        moved = move(model, generator)
        assert gap(model, moved) < 1e-9, name
        weights = dict(moved.named_parameters())
        old = dict(model.named_parameters())
        if any(not torch.equal(weights[key], old[key]) for key in old):
            changed.append(name)
    assert_untouched(model, before)
    assert "canonical" in changed and len(changed) >= 2


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        ("llama", {*MOVES}),
        ("qwen2", {*MOVES}),
        ("opt", {*MOVES}),
        ("gpt2", {"fold_norms", "move_gains", "canonical"}),  # query, key, value in one; GELU
        ("bert", {"scale_neurons", "mix_heads", "canonical"}),  # norms feed the residual stream
        ("olmo2", {"scale_neurons", "mix_heads", "canonical"}),  # norms behind the maps
    ],
)
def test_which_moves_an_architecture_has(model_type, expected):
    model = shaken(build(model_type))
    old = dict(model.named_parameters())
    found = set()
    for name, move in MOVES.items():
        moved = dict(move(model, torch.Generator().manual_seed(2)).named_parameters())
        if any(not torch.equal(moved[key], value) for key, value in old.items()):
            found.add(name)
    assert found == expected


def test_folding_by_hand_gives_the_same_weights():
    """`W diag(g)` in a Llama, and `W s + b` in a GPT-2, whose weights are stored turned."""
    model = llama()
    folded = fold_norms(model)
    for layer, other in zip(model.model.layers, folded.model.layers, strict=True):
        gain = layer.input_layernorm.weight
        assert torch.equal(other.input_layernorm.weight, torch.ones(32))
        assert torch.equal(other.post_attention_layernorm.weight, torch.ones(32))
        torch.testing.assert_close(
            other.self_attn.q_proj.weight, layer.self_attn.q_proj.weight * gain
        )
        assert torch.equal(other.self_attn.o_proj.weight, layer.self_attn.o_proj.weight)
    assert torch.equal(folded.model.norm.weight, model.model.norm.weight)

    model = gpt2()
    folded = fold_norms(model)
    for layer, other in zip(model.transformer.h, folded.transformer.h, strict=True):
        norm, fused = layer.ln_1, layer.attn.c_attn
        assert torch.equal(other.ln_1.weight, torch.ones(32)) and not other.ln_1.bias.any()
        torch.testing.assert_close(other.attn.c_attn.weight, norm.weight[:, None] * fused.weight)
        torch.testing.assert_close(other.attn.c_attn.bias, norm.bias @ fused.weight + fused.bias)


def test_a_gain_of_one_is_stored_as_zero_in_gemma():
    folded = fold_norms(shaken(build("gemma3_text")))
    for layer in folded.model.layers:
        assert not layer.input_layernorm.weight.any()
        assert not layer.pre_feedforward_layernorm.weight.any()
        assert layer.post_attention_layernorm.weight.all()  # read by the residual sum alone
        assert layer.self_attn.q_norm.weight.all()
    table = norm_table(folded)
    assert (table[["smallest", "median", "largest"]] == 1).all(axis=None)


def test_maps_without_a_bias_get_one_where_there_is_a_shift():
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4)
    model = shaken(GPT2LMHeadModel(config))
    model.transformer.h[0].mlp.c_fc = nn.Linear(32, 128, bias=False)
    folded = fold_norms(model)
    shift = model.transformer.h[0].ln_2.bias
    added = folded.transformer.h[0].mlp.c_fc.bias
    torch.testing.assert_close(added, model.transformer.h[0].mlp.c_fc.weight @ shift)
    assert gap(model, folded) < 1e-5
    assert model.transformer.h[0].mlp.c_fc.bias is None


def test_new_gains_are_those_that_were_asked_for():
    model = llama()
    gain = torch.linspace(-2, -1, 32)
    moved = move_gains(model, {"model.layers.1.input_layernorm": gain})
    assert torch.equal(moved.model.layers[1].input_layernorm.weight, gain)
    assert torch.equal(
        moved.model.layers[0].self_attn.k_proj.weight, model.model.layers[0].self_attn.k_proj.weight
    )
    assert gap(model, moved) < 1e-5


def test_rows_go_up_and_columns_down():
    model = llama(mlp_bias=True)
    factor = torch.linspace(0.5, 2, 48)
    moved = scale_neurons(model, {"model.layers.0.mlp.up_proj": factor}).model.layers[0].mlp
    mlp = model.model.layers[0].mlp
    torch.testing.assert_close(moved.up_proj.weight, factor[:, None] * mlp.up_proj.weight)
    torch.testing.assert_close(moved.up_proj.bias, factor * mlp.up_proj.bias)
    torch.testing.assert_close(moved.down_proj.weight, mlp.down_proj.weight / factor)
    assert torch.equal(moved.gate_proj.weight, mlp.gate_proj.weight)


def test_query_heads_that_share_a_value_head_are_all_undone():
    """The product of output and value, head by head, stays: heads 0, 1 read value head 0."""
    model = llama(attention_bias=True)
    name = "model.layers.0.self_attn.v_proj"
    matrices = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0))
    moved = mix_heads(model, {name: matrices}).model.layers[0].self_attn
    attention = model.model.layers[0].self_attn
    torch.testing.assert_close(
        moved.v_proj.weight[8:], matrices[1] @ attention.v_proj.weight[8:], rtol=1e-4, atol=1e-6
    )
    for head in range(4):
        columns, rows = slice(8 * head, 8 * head + 8), slice(8 * (head // 2), 8 * (head // 2) + 8)
        product = attention.o_proj.weight[:, columns] @ attention.v_proj.weight[rows]
        found = moved.o_proj.weight[:, columns] @ moved.v_proj.weight[rows]
        torch.testing.assert_close(found, product, rtol=1e-3, atol=1e-5)


# The canonical form


def frobenius(model):
    return sum(p.double().square().sum().item() for p in model.parameters() if p.ndim == 2)


def test_canonical_rows_and_columns_are_equally_long():
    model = canonical(moved_at_random(llama()))
    for layer in model.model.layers:
        mlp = layer.mlp
        torch.testing.assert_close(mlp.up_proj.weight.norm(dim=1), mlp.down_proj.weight.norm(dim=0))


@pytest.mark.parametrize("attention_bias", [False, True])
def test_canonical_values_and_outputs_have_the_same_gram_matrix(attention_bias):
    """What makes the sum of squares stationary in M: `V V^T = sum O^T O` over the sharing heads."""
    model = canonical(moved_at_random(llama(attention_bias=attention_bias)))
    for layer in model.model.layers:
        values = layer.self_attn.v_proj.weight.reshape(2, 8, 32)
        columns = layer.self_attn.o_proj.weight.reshape(32, 2, 2, 8)
        found = torch.einsum("ohgi,ohgj->hij", columns, columns)
        torch.testing.assert_close(found, values @ values.mT, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("model_type", ["llama", "opt", pytest.param("t5", marks=pytest.mark.slow)])
@pytest.mark.parametrize("distance", [0.01, 1])
def test_canonical_weights_are_the_smallest(model_type, distance):
    """Smaller than those close by, which makes it a minimum, and than those far off."""
    model = canonical(shaken(build(model_type)))
    least = frobenius(model)
    pairs = pair_links(model)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        factors = random_factors(model, generator, pairs)
        matrices = random_matrices(model, generator, pairs)
        for name in factors:
            factors[name] = 1 + distance * (factors[name] - 1)
        for name in matrices:
            eye = torch.eye(matrices[name].shape[-1])
            matrices[name] = eye + distance * (matrices[name] - eye)
        assert frobenius(scale_neurons(model, factors)) > least
        assert frobenius(mix_heads(model, matrices)) > least


def test_canonical_of_dead_neurons_and_empty_values_is_finite():
    model = llama()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3] = 0
        model.model.layers[0].mlp.down_proj.weight[:, 5] = 0
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[1].self_attn.v_proj.weight[2] = 0
    moved = canonical(model)
    assert all(torch.isfinite(p).all() for p in moved.parameters())
    assert gap(model, moved) < 1e-5


def test_bfloat16_moves_as_far_as_it_can():
    model = llama().to(torch.bfloat16)
    assert norm_table(model)["free"].all() and len(pair_links(model)) == 4
    moved = canonical(model)
    assert moved.dtype == torch.bfloat16 and gap(model, moved) < 0.05


# What reads a norm


def test_a_norm_that_feeds_a_residual_stream_is_refused_by_name():
    model = shaken(build("bert"))
    before = state(model)
    with pytest.raises(ValueError, match=r"norm 'bert.embeddings.LayerNorm' feeds .*query.*strict"):
        fold_norms(model)
    with pytest.raises(ValueError, match="bert.embeddings.LayerNorm"):
        move_gains(model, {"bert.embeddings.LayerNorm": torch.ones(32)})
    left = fold_norms(model, strict=False)
    assert all(
        torch.equal(a, b) for a, b in zip(left.parameters(), model.parameters(), strict=True)
    )
    assert not norm_table(model)["free"].any()
    assert_untouched(model, before)


class Block(nn.Module):
    """Tokens, a norm, a map that reads it, and what else is asked for."""

    def __init__(self, extra):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(16, 8)
        self.norm = nn.LayerNorm(8)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.extra = extra

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids, attention_mask=None):
        x = self.embed(input_ids)
        n = self.norm(x)
        return x + self.first(n) + self.extra(self, n)


def faint(block, n):
    return 1e-7 * n


def saturated(block, n):
    return torch.sigmoid(n + 17)  # 1 to the last bit but one


def clipped(block, n):
    return 0 * n + n.clamp(-5, 5) - n  # zero unless it is far off


def unfelt_map(block, n):
    return 0 * block.second(2 * n)  # reads the norm, and is felt by nobody


def on_long_texts(block, n):
    return block.second(n) if n.shape[1] > 8 else 0


def on_no_tokens(block, n):
    return n * 0 + block.second(n[n.sum(-1) > 1e9]).sum()


@pytest.mark.parametrize(
    "extra", [faint, saturated, clipped, unfelt_map, on_long_texts, on_no_tokens]
)
def test_what_hardly_shows_is_seen(extra):
    """Readers whose effect on a short run is tiny or nothing are readers: the norm is not free."""
    model = shaken(Block(extra))
    with pytest.raises(ValueError, match="norm 'norm' feeds first and something else"):
        fold_norms(model)


def test_an_equal_copy_of_a_norm_is_that_norm():
    """Some models multiply by a mask of ones in between."""

    def masked(block, n):
        return block.second(n * torch.ones(n.shape[0], 1, 1))

    model = shaken(Block(masked))
    (link,) = norm_links(model)
    assert link.is_free and [reader.name for reader in link.readers] == ["first", "second"]
    moved = fold_norms(model)
    ids = torch.arange(16).reshape(2, 8)
    torch.testing.assert_close(moved(ids), model(ids))
    assert torch.equal(moved.norm.weight, torch.ones(8))


def test_a_norm_of_zeros_has_the_gain_that_it_has():
    """Where its input is zero, nothing can be told from what it returns."""
    model = shaken(build("gemma"))
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
    assert [link.neutral for link in norm_links(model)] == [0.0] * 4


def test_a_norm_with_a_gate_is_no_norm_of_its_input():
    names = [link.name for link in norm_links(shaken(build("mamba2")))]
    assert names == ["backbone.layers.0.norm", "backbone.layers.1.norm"]


def test_adapters_of_other_languages_read_the_norm_too():
    """Folding into the one that the probe runs would break the rest."""
    options = {"adapter_layer_norm": True, "ln_before_adapter": False, "initializer_range": 0.3}
    languages = {"languages": ["en_XX", "de_DE"], "default_language": "en_XX"}
    config = XmodConfig(
        **TINY, num_attention_heads=4, max_position_embeddings=40, **options, **languages
    )
    model = shaken(XmodModel(config))
    folded = fold_norms(model, strict=False)
    for language in (0, 1):
        lang_ids = torch.full((3,), language)
        with torch.no_grad():
            expected = model(**tokens(), lang_ids=lang_ids)[0]
            torch.testing.assert_close(folded(**tokens(), lang_ids=lang_ids)[0], expected)


def test_values_that_are_read_twice_or_clipped_do_not_move():
    """Doge has a map on its values that chooses keys, felt on long texts only; OLMo may clip."""
    writers = {pair.writer.type for pair in pair_links(shaken(build("doge")))}
    assert writers == {"up_proj"}
    model = OlmoForCausalLM(OlmoConfig(**TINY, **HEADS, clip_qkv=8.0, eos_token_id=1)).eval()
    assert {pair.writer.type for pair in pair_links(model)} == {"up_proj"}
    model = OlmoForCausalLM(OlmoConfig(**TINY, **HEADS, eos_token_id=1)).eval()
    assert {pair.writer.type for pair in pair_links(model)} == {"up_proj", "v_proj"}


def test_a_gate_scales_only_behind_a_relu():
    for act, expected in [("silu", {"up_proj"}), ("relu", {"up_proj", "gate_proj"})]:
        pairs = pair_links(llama(hidden_act=act))
        assert {p.writer.type for p in pairs if p.reader.type == "down_proj"} == expected
    model = llama(hidden_act="relu")
    assert gap(model, canonical(model)) < 1e-5


def test_folding_twice_is_folding_once():
    """Two norms of one input are then the same, and still told apart."""
    for model_type in ("gpt_neox", "llama"):
        once = fold_norms(shaken(build(model_type)))
        twice = fold_norms(once)
        for (name, a), b in zip(once.named_parameters(), twice.parameters(), strict=True):
            assert torch.equal(a, b), name


def test_other_threads_see_nothing_of_a_probe():
    model = llama()
    expected, wrong = outputs(model), []
    stop = threading.Event()

    def watch():
        while not stop.is_set():
            if not torch.equal(outputs(model), expected):
                wrong.append(1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for _ in range(5):
            pair_links(model)  # tries some that are none
    finally:
        stop.set()
        watcher.join()
    assert not wrong


# What is refused


def with_adapters(_):
    return get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"]))


def on_disk(folder):
    return disk_offload(llama(), folder, execution_device="cpu")


def on_the_cpu(_):
    return cpu_offload(llama(), execution_device="cpu")


def on_meta(_):
    return llama().to("meta")


def packed(_):
    model = llama()
    layer = model.model.layers[1].mlp.up_proj
    weight = layer.weight.detach().to(torch.float8_e4m3fn)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return model


def without_tokens(_):
    config = ViTConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=1, image_size=8)
    return ViTModel(ViTConfig(**{**config.to_dict(), "num_attention_heads": 4, "patch_size": 4}))


def in_half(_):
    return llama().to(torch.float16)


def at_random(_):
    def noise(block, n):
        return torch.rand(n.shape)

    return Block(noise)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (with_adapters, "has adapters.*merge_and_unload"),
        (on_disk, "is offloaded: load it"),
        (on_the_cpu, "is offloaded: load it"),
        (on_meta, "has no weights, it is on the meta device"),
        (packed, "'model.layers.1.mlp.up_proj' is quantised: load"),
        (in_half, "is float16.*bfloat16 or float32"),
        (without_tokens, "ViTModel reads no tokens: pass batch"),
        (at_random, "Block returns another output each time"),
    ],
)
@pytest.mark.parametrize("move", [fold_norms, canonical])
def test_models_whose_weights_are_not_simply_there(made, message, move, tmp_path):
    model = made(tmp_path)
    hooks = state(model)[1] if made is not on_meta else None
    with pytest.raises(ValueError, match=message):
        move(model)
    assert made is on_meta or state(model)[1] == hooks


def test_what_is_no_model():
    with pytest.raises(TypeError, match="expected a torch.nn.Module"):
        fold_norms("llama")


def test_a_model_of_images_moves_on_a_batch_of_images():
    torch.manual_seed(0)
    model = shaken(without_tokens(None))
    images = {"pixel_values": torch.randn(2, 3, 8, 8)}
    folded = fold_norms(model, batch=images)
    other = {"pixel_values": torch.randn(3, 3, 8, 8)}
    with torch.no_grad():
        torch.testing.assert_close(folded(**other)[0], model(**other)[0], rtol=1e-4, atol=1e-5)
    assert (norm_table(folded, images)["largest"] == 1).all()


def test_a_map_that_shares_its_weight_is_refused():
    model = llama()
    layers = model.model.layers
    layers[1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight
    before = state(model)
    with pytest.raises(ValueError, match="mlp.up_proj' shares its weight .*layers.1.mlp.up_proj"):
        fold_norms(model)
    with pytest.raises(ValueError, match="shares its weight"):
        scale_neurons(model, {"model.layers.0.mlp.up_proj": torch.full((48,), 2.0)})
    assert_untouched(model, before)


def test_norms_that_share_their_weight_are_not_folded_wrongly():
    model = llama()
    layers = model.model.layers
    layers[1].input_layernorm.weight = layers[0].input_layernorm.weight
    with pytest.raises(ValueError, match="outputs differ.*shared in ways that were not seen"):
        fold_norms(model)


GAIN, UP, V = (
    f"model.layers.0.{name}" for name in ("input_layernorm", "mlp.up_proj", "self_attn.v_proj")
)


@pytest.mark.parametrize(
    ("move", "argument", "message"),
    [
        (move_gains, {"norm": torch.ones(32)}, "gains names 'norm', which is no norm .*there are"),
        (move_gains, {"model.norm": torch.ones(32)}, "gains names 'model.norm'"),
        (move_gains, {GAIN: torch.ones(31)}, r"is \(31,\), expected a tensor of shape \(32,\)"),
        (move_gains, {GAIN: np.ones(32)}, "is ndarray, expected a tensor"),
        (move_gains, {GAIN: torch.zeros(32)}, "zero or not finite"),
        (move_gains, {GAIN: torch.full((32,), torch.nan)}, "zero or not finite"),
        (scale_neurons, {"model.layers.0.mlp.gate_proj": torch.ones(48)}, "which is no map whose"),
        (scale_neurons, {UP: -torch.ones(48)}, "negative entries: expected positive"),
        (scale_neurons, {UP: torch.zeros(48)}, "zero or not finite"),
        (scale_neurons, {UP: torch.ones(32)}, r"expected a tensor of shape \(48,\)"),
        (mix_heads, {UP: torch.ones(6, 8, 8)}, "which is no value map"),
        (mix_heads, {V: torch.eye(8)}, r"expected a tensor of shape \(2, 8, 8\)"),
        (mix_heads, {V: torch.zeros(2, 8, 8)}, "has no inverse in head 0"),
        (mix_heads, {V: torch.full((2, 8, 8), torch.inf)}, "not finite"),
    ],
)
def test_what_does_not_fit_is_named(move, argument, message):
    model = llama()
    before = state(model)
    with pytest.raises(ValueError, match=message):
        move(model, argument)
    assert_untouched(model, before)


def test_factors_that_the_dtype_cannot_hold_are_refused():
    model = llama().to(torch.bfloat16)
    with pytest.raises(ValueError, match="outputs differ by"):
        scale_neurons(model, {UP: torch.logspace(-45, 38, 48)})


def test_a_training_model_stays_one():
    model = llama(attention_dropout=0.5).train()
    model.model.layers[1].eval()
    before = state(model)
    moved = canonical(model)
    assert_untouched(model, before)
    assert [m.training for m in moved.modules()] == [m.training for m in model.modules()]
    assert gap(copy.deepcopy(model).eval(), moved.eval()) < 1e-5
