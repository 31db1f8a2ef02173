"""Every model type of transformers' text and image-text Auto maps, tiny; and models as people
have them."""

import collections
import functools
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.pytorch_utils import Conv1D

import plop_nb as plop
from plop_nb.batches import MIXES_PADDING
from plop_nb.experts import is_expert_stack
from plop_nb.fingerprint import fingerprint
from plop_nb.forwards import forward
from plop_nb.inputs import READS_LEFT
from plop_nb.maps import SCORED, trunk_of
from plop_nb.padding import TIME_MAJOR
from tests.test_fuzz import EXPERTS
from tests.tiny_models import CANNOT_BUILD, build, model_types, more_inputs

# Types that are refused on what `tiny_models.more_inputs` gives.
NEEDS_MORE = {
    **dict.fromkeys(
        ["blip-2", "instructblip", "instructblipvideo", "kosmos-2"],
        "an image and its tokens in the text",
    ),
    "ibert": "quantised layers of its own, which PEFT cannot adapt",
    "pi0": "actions",
    "voxtral_realtime": "audio",
}
# Here the padded text is given to the decoder only, whose padding is left as it is.
DECODER_READS_THE_TEXT = {"pix2struct", "pp_formulanet", "vision-encoder-decoder"}
# Maps that fire but get no gradient in a model of this size.
NO_GRADIENT = {
    "deepseek_v4": "compressor",
    "doge": "dt_proj",
    "xlstm": "proj_up",
    "zaya": "_proj",
    "encoder-decoder": "pooler",
    "vision-encoder-decoder": "pooler",
    "idefics": "gated_cross_attn",
    "mra": "attention.self",
}
TALLY = collections.Counter()
EXCLUDED = collections.Counter()


def batch(rows, side="right"):
    length = max(map(len, rows))
    ids, mask = (
        torch.ones(len(rows), length, dtype=torch.long),
        torch.zeros(len(rows), length, dtype=torch.long),
    )
    for i, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(length - len(row), length)
        ids[i, where], mask[i, where] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def inputs_of(model, model_type, rows, side="right"):
    given = batch(rows, side)
    return {
        **given,
        **more_inputs(model_type, model.config, given["input_ids"], given["attention_mask"]),
    }


def rows():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(5, 60, (n,), generator=generator) for n in (8, 4, 4)]


def quietly(model, batches):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return plop.nfn_scores(model, batches, progress=False)


@functools.cache
def directions(size):
    """20,000 random unit vectors."""
    draws = torch.randn(20_000, size, generator=torch.Generator().manual_seed(1))
    return draws / draws.norm(dim=1, keepdim=True)


def naive(model, inputs, names):
    """Mean of ||W z|| / ||W z~|| over every vector that reached a map, 20,000 draws of noise."""
    seen = collections.defaultdict(list)
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, a, name=name: seen[name].append(a[0])
        )
        for name in names
    ]
    with torch.no_grad():
        forward(trunk_of(model), inputs)
    for handle in handles:
        handle.remove()
    scores = {}
    for name, vectors in seen.items():
        module = model.get_submodule(name)
        weight = (
            module.weight.detach() if isinstance(module, nn.Linear) else module.weight.detach().T
        )
        size = weight.shape[1]
        z = torch.cat([s.detach().reshape(-1, size) for s in vectors])
        z = z[z.norm(dim=1) > 0]
        baseline = (directions(size) @ weight.T).norm(dim=1).square().mean().sqrt()
        scores[name] = ((z @ weight.T).norm(dim=1) / (z.norm(dim=1) * baseline)).mean().item()
    return scores


def is_time_major(model, inputs):
    """Whether a map reads (length, batch, features)."""
    batch_size, length = inputs["input_ids"].shape
    shapes = set()
    handles = []
    for module in model.modules():
        if isinstance(module, (nn.Linear, Conv1D)):
            noted = module.register_forward_pre_hook(lambda _, a: shapes.add(a[0].shape[:2]))
            handles.append(noted)
    with torch.no_grad():
        forward(trunk_of(model), inputs)
    for handle in handles:
        handle.remove()
    return (length, batch_size) in shapes


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted(set(model_types()) - set(CANNOT_BUILD)))
def test_every_model_type(model_type):
    model = build(model_type)
    TALLY["built"] += 1
    if model_type in NEEDS_MORE:
        TALLY["needs more than text"] += 1
        with pytest.raises(
            (ValueError, TypeError, RuntimeError, AttributeError, IndexError)
        ):  # refused with an error, not scored as if it were text
            quietly(model, [inputs_of(model, model_type, rows())])
        return

    table = plop.module_table(model).set_index("module")
    assert any(map(is_expert_stack, model.modules())) == (model_type in EXPERTS)
    assert is_time_major(model, inputs_of(model, model_type, rows())) == (model_type in TIME_MAJOR)
    before = fingerprint(trunk_of(model))
    scores = quietly(model, [inputs_of(model, model_type, rows())])
    assert fingerprint(trunk_of(model)) == before  # so that a second run goes on from a file
    assert (scores["nfn"] > 0).all() and np.isfinite(scores["nfn"]).all()
    assert set(table.loc[scores["module"].unique(), "status"]) == {SCORED}
    TALLY["maps"] += len(table)
    TALLY["maps scored"] += scores["module"].nunique()
    EXCLUDED.update(table.loc[table["status"] != SCORED, "status"])
    EXCLUDED["did not fire, or padding unknown"] += (
        int((table["status"] == SCORED).sum()) - scores["module"].nunique()
    )

    alone = quietly(model, [inputs_of(model, model_type, [row]) for row in rows()])
    if model_type not in MIXES_PADDING:  # those get equal lengths from nfn_scores
        both = scores.merge(alone, on=["sample", "module"], how="outer")
        np.testing.assert_allclose(both["nfn_x"], both["nfn_y"], rtol=1e-3)
        TALLY["padded equals alone"] += 1

    if model_type not in DECODER_READS_THE_TEXT | READS_LEFT:
        left = quietly(model, [inputs_of(model, model_type, rows(), "left")])
        assert left["tokens"].tolist() == scores["tokens"].tolist()
        np.testing.assert_allclose(left["nfn"], scores["nfn"], rtol=1e-3)
        TALLY["left padding equals right"] += 1

    plain = [n for n in scores["module"].unique() if n in dict(model.named_modules())]
    if model_type == "cpmant":  # its prompt does not count: test_recording leaves it out, too
        plain = []
    expected = naive(model, inputs_of(model, model_type, rows()[:1]), plain)
    got = alone[alone["sample"] == 0].set_index("module")["nfn"]
    for name in plain:
        if name in got:
            assert got[name] == pytest.approx(expected[name], rel=0.01), name
    TALLY["maps equal to the naive formula"] += len(plain)

    if model_type == "pp_formulanet":
        with pytest.raises(
            ValueError, match="PEFT: `get_input_embeddings`"
        ):  # PEFT wants what the model lacks
            check_adapters(model, model_type, scores)
        return
    check_adapters(model, model_type, scores)


def check_adapters(model, model_type, scores):
    """Each type is hit exactly; adapters on all of them together get gradients."""
    modules = scores.groupby("type")["module"].unique()
    for name, hit in modules.items():
        plop.Placement([name], list(hit), float("nan"), None).lora_config(
            model, r=2
        )  # raises if not exact
    TALLY["types hit exactly"] += len(modules)
    everything = plop.Placement(
        list(modules.index), scores["module"].unique().tolist(), float("nan"), None
    )
    adapted = get_peft_model(model, everything.lora_config(model, r=2))
    outputs = []
    handle = trunk_of(adapted).register_forward_hook(lambda *given: outputs.append(given[-1]))
    forward(trunk_of(adapted), inputs_of(model, model_type, rows()[:1] * 2))
    handle.remove()
    values = outputs[0].values() if hasattr(outputs[0], "values") else outputs[0]
    loss = sum(
        v.float().square().sum() for v in values if isinstance(v, torch.Tensor) and v.requires_grad
    )
    if model_type == "reformer":  # its reversible layers need a backward of their own
        return
    loss.backward()
    without = [
        n
        for n, p in adapted.named_parameters()
        if "lora_B" in n and (p.grad is None or not p.grad.any())
    ]
    assert all(NO_GRADIENT.get(model_type, "none") in name for name in without), without
    TALLY["model types with gradients in all adapters"] += not without


def test_tally(capsys):
    """Nothing is silent: what was built, found, scored, excluded and why."""
    with capsys.disabled():
        print(
            f"\n{len(model_types())} model types, {len(CANNOT_BUILD)} cannot be built tiny: "
            f"{dict(TALLY)}"
        )
        print(f"linear maps without a score: {dict(EXCLUDED)}")
    if TALLY["built"] == len(model_types()) - len(CANNOT_BUILD):  # the whole sweep ran
        assert TALLY["built"] - TALLY["needs more than text"] >= 284
        assert TALLY["maps"] == TALLY["maps scored"] + sum(EXCLUDED.values())


# Experts


class Unrolled(nn.Module):
    """The experts of a stack as plain Linears."""

    def __init__(self, stack, transposed):
        super().__init__()
        self.stack = [stack]  # hidden from named_modules
        for name in ("gate_up_proj", "down_proj"):
            maps = nn.ModuleList()
            for expert, weight in enumerate(getattr(stack, name).detach()):
                weight = weight.T if transposed else weight
                bias = getattr(stack, f"{name}_bias", None)
                linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
                linear.weight.data = weight.clone()
                if bias is not None:
                    linear.bias.data = bias[expert].detach().clone()
                maps.append(linear)
            setattr(self, name, maps)

    def forward(self, hidden, index, weights):
        out = torch.zeros_like(hidden)
        for expert, up in enumerate(self.gate_up_proj):
            token, slot = (index == expert).nonzero(as_tuple=True)
            if len(token):
                # padded to the whole batch with zero rows, so that the mask still fits
                mine = torch.zeros_like(hidden).index_copy(0, token, hidden[token])
                inner = self.stack[0]._apply_gate(up(mine))
                inner = torch.zeros_like(inner).index_copy(0, token, inner[token])
                out.index_add_(
                    0, token, self.down_proj[expert](inner)[token] * weights[token, slot, None]
                )
        return out


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "gpt_oss", "aria_text"])
def test_experts_equal_unrolled_linears(model_type):
    model = build(model_type)
    stacked = quietly(model, [batch(rows())]).set_index(["sample", "module"])["nfn"]
    for layer in model.model.layers:
        layer.mlp.experts = Unrolled(layer.mlp.experts, model_type in ("gpt_oss", "aria_text"))
    unrolled = quietly(model, [batch(rows())]).set_index(["sample", "module"])["nfn"]
    experts = stacked[stacked.index.get_level_values("module").str.contains("experts")]
    assert len(experts) > 8
    np.testing.assert_allclose(experts, unrolled[experts.index], rtol=1e-4)


def test_a_stack_of_zero_weights_is_named_and_the_rest_scored():
    model = build("mixtral")
    stack = model.model.layers[0].mlp.experts
    stack.gate_up_proj.data.zero_()
    stack.down_proj.data.zero_()
    with pytest.warns(UserWarning, match="all-zero weight"):
        scores = plop.nfn_scores(model, [batch(rows())], progress=False)
    assert scores["module"].str.contains("layers.1.mlp.experts").any()
    assert not scores["module"].str.contains("layers.0.mlp.experts").any()


def test_experts_called_outside_of_a_forward_are_not_recorded():
    model = build("mixtral")
    experts = model.model.layers[0].mlp.experts
    with plop.record_norms(model) as record:
        experts(torch.randn(3, 32), torch.tensor([[0, 1]] * 3), torch.full((3, 2), 0.5))
    assert record.samples == 0


def test_experts_are_adapted_as_one_parameter():
    model = build("mixtral")
    scores = quietly(model, [batch(rows())])
    name = next(t for t in scores["type"].unique() if t.endswith("down_proj"))
    placement = plop.Placement(
        [name], scores.query("type == @name")["module"].unique().tolist(), 1.0, None
    )
    config = placement.lora_config(model, r=2)
    assert config.target_parameters == [f"model.layers.{i}.mlp.experts.down_proj" for i in (0, 1)]
    assert placement.check(model, config)["modules"].tolist() == [2]


def test_routers_and_heads_are_named():
    status = plop.module_table(build("qwen2_moe")).set_index("module")["status"]
    assert status["lm_head"] == "output head"
    assert status["model.layers.0.mlp.shared_expert_gate"] == "router"
    assert plop.module_table(build("mamba")).query("type == 'out_proj'")["status"].unique() == [
        "PEFT cannot adapt it"
    ]


# Input shapes, one by one


class Shapes(nn.Module):
    """Feeds one map with the batch in another layout."""

    def __init__(self, layout):
        super().__init__()
        self.map, self.layout = nn.Linear(6, 5), layout

    def forward(self, inputs_embeds, attention_mask):
        self.map(self.layout(inputs_embeds))


@pytest.mark.parametrize(
    "layout",
    [
        lambda z: z.flatten(0, 1),
        lambda z: z.transpose(0, 1),
        lambda z: z[:, :, None].expand(-1, -1, 2, -1),
        lambda z: z[:, None],
    ],
    ids=["flattened", "length first", "heads", "heads before length"],
)
def test_the_mask_follows_the_layout(layout):
    torch.manual_seed(0)
    z, mask = torch.randn(3, 4, 6), torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 1, 1]])
    z[mask == 0] = 1e4
    model, plain = Shapes(layout), Shapes(lambda z: z)
    plain.load_state_dict(model.state_dict())
    inputs = {"inputs_embeds": z, "attention_mask": mask}
    got, expected = quietly(model, [inputs]), quietly(plain, [inputs])
    np.testing.assert_allclose(got["nfn"], expected["nfn"], rtol=1e-5)


def test_unknown_layout_is_reported_not_guessed():
    model = Shapes(lambda z: torch.cat([z, z[:, :1]], dim=1))
    with pytest.raises(ValueError, match=r"1 padding unknown for input shape \(3, 5, 6\) \(map\)"):
        quietly(
            model, [{"inputs_embeds": torch.randn(3, 4, 6), "attention_mask": torch.ones(3, 4)}]
        )


def test_a_length_that_agrees_by_chance_is_found_out_by_another_batch():
    """Four latent vectors look like four tokens, until a text has five."""
    model = Shapes(lambda z: z.mean(dim=1, keepdim=True).expand(-1, 4, -1))
    batches = [
        {"inputs_embeds": torch.randn(3, n, 6), "attention_mask": torch.ones(3, n)} for n in (4, 5)
    ]
    with pytest.raises(ValueError, match="1 padding unknown"):
        quietly(model, batches)


def test_pooler_counts_one_vector_a_sample():
    config = BertConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
    )
    scores = quietly(BertModel(config).eval(), [batch(rows())])
    assert scores.query("module == 'pooler.dense'")["tokens"].tolist() == [1, 1, 1]


def test_shared_layers_fire_once_for_each_pass():
    model = build("albert")
    passes = model.config.num_hidden_layers
    assert passes > 1
    query = quietly(model, [batch(rows())]).query("module.str.endswith('query')")
    assert query["tokens"].tolist() == [8 * passes, 4 * passes, 4 * passes]


def test_cross_attention_reads_the_encoder_s_tokens():
    """Keys and values of the decoder's cross-attention see the source, queries the target."""
    config = T5Config(
        vocab_size=60, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_decoder_layers=1, num_heads=4
    )
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(config).eval()
    source, target = batch(rows()), torch.tensor([[7, 8, 9], [7, 8, -100], [7, -100, -100]])
    for labels in (
        target,
        nn.functional.pad(target, (0, 5), value=-100),
    ):  # also where both are 8 long
        scores = quietly(model, [{**source, "labels": labels}])
        tokens = scores.groupby("module")["tokens"].apply(list)
        cross = "decoder.block.0.layer.1.EncDecAttention"
        assert tokens[f"{cross}.k"] == tokens[f"{cross}.v"] == [8, 4, 4]
        assert (
            tokens[f"{cross}.q"] == tokens["decoder.block.0.layer.0.SelfAttention.k"] == [3, 2, 1]
        )
        assert tokens["encoder.block.0.layer.0.SelfAttention.k"] == [8, 4, 4]


# Images


def test_image_model_with_pixel_values():
    config = ViTConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=16,
        patch_size=8,
    )
    model = ViTForImageClassification(config).eval()
    scores = quietly(
        model, [{"pixel_values": torch.randn(2, 3, 16, 16), "labels": torch.tensor([0, 1])}]
    )
    assert (
        scores["tokens"].unique().tolist() == [5] and scores["layer"].nunique() == 2
    )  # 4 patches and the class token
    placement = plop.place(scores, k=2)
    assert placement.check(model, placement.lora_config(model))["adapted"].tolist() == [2, 2]
    alone = quietly(
        model.vit, [{"pixel_values": torch.randn(2, 3, 16, 16)}]
    )  # no name tells that it reads images
    assert alone["layer"].nunique() == 2 and set(alone["tokens"]) == {5}


def test_vision_tower_is_scored_when_images_are_given():
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=16,
        patch_size=8,
    )
    text = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_id=63)
    ).eval()
    ids = torch.cat([torch.full((2, 4), 63), torch.randint(5, 60, (2, 3))], dim=1)
    mask = torch.ones_like(ids)
    mask[1, -1] = 0
    inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.randn(2, 3, 16, 16)}
    with_images = quietly(model, [inputs])
    tower = with_images[with_images["module"].str.contains("vision_tower")]
    assert tower["module"].nunique() >= 6 and tower["tokens"].unique().tolist() == [5]
    text_tokens = with_images[with_images["module"].str.contains("language_model")]
    assert text_tokens.groupby("sample")["tokens"].unique().tolist() == [[7], [6]]
    with pytest.warns(UserWarning, match=r"never fired \(model\.vision_tower"):
        plop.nfn_scores(model, [{"input_ids": ids[:, 4:]}], progress=False)


# Models as people have them


def same(got, expected, rtol=1e-4):
    assert got["module"].tolist() == expected["module"].tolist()
    np.testing.assert_allclose(got["nfn"], expected["nfn"], rtol=rtol)


def test_peft_model_scores_the_frozen_base_maps(tiny_llama):
    expected = quietly(tiny_llama, [batch(rows())])
    adapted = get_peft_model(
        tiny_llama, LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=True)
    )
    same(quietly(adapted, [batch(rows())]), expected)
    placement = plop.place(expected, k=2)
    assert placement.check(adapted, placement.lora_config(adapted))["adapted"].tolist() == [2, 2]
    assert "q_proj" in str(
        adapted.peft_config["default"].target_modules
    )  # its own adapters are still there


def test_compiled_models_are_scored_without_compiled_code(tiny_llama):
    expected = quietly(tiny_llama, [batch(rows())])
    same(quietly(torch.compile(tiny_llama, backend="eager"), [batch(rows())]), expected)
    tiny_llama.model.layers[0] = torch.compile(tiny_llama.model.layers[0], backend="eager")
    tiny_llama.model.layers[1].compile(backend="eager")
    with torch.no_grad():
        tiny_llama(**batch(rows()))  # compiled now: hooks added later would not fire
    same(quietly(tiny_llama, [batch(rows())]), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(tiny_llama, dtype):
    expected = quietly(tiny_llama, [batch(rows())])
    same(quietly(tiny_llama.to(dtype), [batch(rows())]), expected, rtol=0.05)


@pytest.mark.slow
def test_bitsandbytes(tmp_path):
    """In a process of its own: once installed, bitsandbytes writes a notice whenever PEFT is
    imported."""
    target = tmp_path / "site"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(target),
    ]
    subprocess.run([*install, "bitsandbytes==0.50.2"], check=True)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "tests/packed_weights.py"],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "2 passed" in done.stdout, done.stdout


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_offloaded(tiny_llama, tmp_path, where):
    from accelerate import cpu_offload, disk_offload

    expected = quietly(tiny_llama, [batch(rows())])
    if where == "cpu":
        offloaded = cpu_offload(tiny_llama, execution_device=torch.device("cpu"))
    else:
        offloaded = disk_offload(tiny_llama, str(tmp_path), execution_device=torch.device("cpu"))
    assert all(p.is_meta for p in offloaded.model.layers.parameters())
    same(quietly(offloaded, [batch(rows())]), expected)
    placement = plop.place(expected, k=2)
    assert placement.check(offloaded, placement.lora_config(offloaded))["adapted"].tolist() == [
        2,
        2,
    ]


def test_layer_subsets_are_exact(tiny_llama):
    placement = plop.place(quietly(tiny_llama, [batch(rows())]), k=3)
    config = placement.lora_config(tiny_llama, layers=[1])
    assert placement.check(tiny_llama, config, layers=[1])["adapted"].tolist() == [1, 1, 1]
    names = {
        n for n, m in get_peft_model(tiny_llama, config).named_modules() if hasattr(m, "lora_A")
    }
    assert len(names) == 3 and all(".layers.1." in n for n in names)
    with pytest.raises(ValueError, match=r"layers=\[1, 5\]: no chosen module is in layer 5"):
        placement.lora_config(tiny_llama, layers=[1, 5])
    mixture = build(
        "qwen3_moe"
    )  # where PEFT's own renaming makes regular expressions hit all layers
    placement = plop.place(quietly(mixture, [batch(rows())]), k=3)
    assert (
        placement.check(mixture, placement.lora_config(mixture, layers=[0]), layers=[0])["adapted"]
        .eq(1)
        .all()
    )


def test_a_stack_whose_numbers_are_counts_is_reported(recwarn):
    """Some stacks get sorted tokens and how many each expert has: their padding is not known."""

    class Counted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_up_proj = torch.nn.Parameter(torch.randn(3, 8, 4))
            self.down_proj = torch.nn.Parameter(torch.randn(3, 4, 4))

        def forward(self, hidden, counts):
            return hidden

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.experts = torch.nn.Linear(4, 4), Counted()

        def forward(self, inputs_embeds):
            permuted = self.first(inputs_embeds).flatten(0, 1).repeat(2, 1)
            return self.experts(permuted, torch.tensor([3, 4, 5]))

    batch = {"inputs_embeds": torch.randn(2, 3, 4)}
    scores = plop.nfn_scores(Model(), [batch], progress=False)
    assert set(scores["module"]) == {"first"}
    assert "padding unknown" in str(recwarn[0].message)
