"""What must not go wrong in silence: weights that change, padding that looks like text."""

import threading
import warnings

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import plop_nb as plop
from plop_nb.forwards import forward
from plop_nb.maps import trunk_of
from plop_nb.padding import TIME_MAJOR
from tests.tiny_models import build, shrink

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def llama(**options):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES | options)).eval()


def ids(*shape, seed=0):
    return torch.randint(5, 60, shape, generator=torch.Generator().manual_seed(seed))


def padded(lengths, side="right"):
    """Random texts of these lengths, as a collator pads them."""
    tokens = ids(len(lengths), max(lengths))
    mask = torch.zeros_like(tokens)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    if side == "left":
        mask, tokens = mask.flip(1), tokens.flip(1)
    return {"input_ids": tokens * mask, "attention_mask": mask}


def alone(batch):
    """The samples of a padded batch one by one, without their padding."""
    for tokens, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        own = tokens[mask.bool()][None]
        yield {"input_ids": own, "attention_mask": torch.ones_like(own)}


def scored(model, batches, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame = plop.nfn_scores(model, batches, progress=False, **options)
    return frame.set_index(["sample", "module"])["nfn"].sort_index()


def recorded(record, last):
    """Scores of the last so many samples of a record."""
    frame = record.frame(first=record.samples - last)
    return frame.groupby("module")["nfn"].mean()


# The weight that ran


def train_with_fused_adamw(model, batch):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, fused=True)
    for _ in range(3):
        model(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def write_to_data(model, batch):
    for parameter in model.parameters():
        parameter.data[: len(parameter) // 2] *= 3


@pytest.mark.parametrize("baseline", ["rms", "gaussian"])
@pytest.mark.parametrize("change", [train_with_fused_adamw, write_to_data])
def test_a_record_divides_by_the_noise_of_the_weight_that_ran(change, baseline):
    model, batch = llama(), {"input_ids": ids(3, 7)}
    with plop.record_norms(model, baseline=baseline) as record:
        model(**batch)
        change(model, batch)
        with torch.no_grad():
            model(**batch)
        found = recorded(record, last=3)
    expected = scored(model, [batch], baseline=baseline).groupby("module").mean()
    np.testing.assert_allclose(found, expected[found.index], rtol=1e-5)


def test_a_record_survives_merging_adapters():
    model, batch = llama(), {"input_ids": ids(3, 7)}
    adapted = get_peft_model(model, LoraConfig(r=4, init_lora_weights=False))
    with torch.no_grad(), plop.record_norms(adapted) as record:
        adapted(**batch)
        adapted.merge_adapter()
        adapted(**batch)
        found = recorded(record, last=3)
    expected = scored(adapted, [batch]).groupby("module").mean()
    np.testing.assert_allclose(found, expected[found.index], rtol=1e-5)


@pytest.mark.parametrize("baseline", ["rms", "gaussian"])
def test_adapters_on_parameters_are_scored_as_they_run(baseline):
    """PEFT adds them to the weight only while the module runs."""
    model, batch = build("mixtral"), {"input_ids": ids(3, 7)}
    names = [f"model.layers.{i}.mlp.experts.down_proj" for i in (0, 1)]
    config = LoraConfig(
        r=4, target_modules=[], target_parameters=names, lora_alpha=32, init_lora_weights=False
    )
    torch.manual_seed(1)
    adapted = get_peft_model(model, config)
    found = scored(adapted, [batch], baseline=baseline)
    adapted.merge_adapter()
    np.testing.assert_allclose(found, scored(adapted, [batch], baseline=baseline), rtol=1e-4)


def test_a_split_reads_adapters_on_parameters_as_they_run():
    model = llama()
    names = ["model.layers.0.mlp.down_proj.weight"]
    config = LoraConfig(
        r=4, target_modules=[], target_parameters=names, lora_alpha=32, init_lora_weights=False
    )
    adapted = get_peft_model(model, config)
    table = plop.mean_split(adapted, [{"input_ids": ids(3, 7)}], progress=False)
    parts = table["mean_part"] + table["centred_part"]
    np.testing.assert_allclose(parts, table["mean_square"], rtol=1e-4)


def test_a_frozen_record_takes_each_baseline_once():
    model, batch = llama(), {"input_ids": ids(1, 4)}
    with torch.no_grad(), plop.record_norms(model, frozen=True) as record:
        model(**batch)
        before = record.frame()["nfn"]
        model.model.layers[0].self_attn.q_proj.weight.data *= 3
        model(**batch)
    found = record.frame(first=1).set_index("module")["nfn"]
    assert found["model.layers.0.self_attn.q_proj"] == pytest.approx(3 * before[0], rel=1e-5)


def test_a_weight_that_becomes_zero_has_no_score_from_then_on():
    model, batch = llama(), {"input_ids": ids(1, 4)}
    name = "model.layers.1.mlp.down_proj"
    with torch.no_grad(), plop.record_norms(model) as record:
        model(**batch)
        model.get_submodule(name).weight.zero_()
        model(**batch)
    assert record.frame().query("module == @name")["sample"].tolist() == [0]
    assert not record.unseen()  # it has one


@pytest.mark.parametrize("scale", [1e-9, 1e-11, 1e-14])
def test_scores_that_underflow_are_named_and_left_out(scale):
    model, data = llama(), [{"input_ids": ids(2, 4)}]
    expected = scored(model, data)
    mlp = model.model.layers[1].mlp
    mlp.gate_proj.weight.data *= scale
    mlp.up_proj.weight.data *= scale  # the input of down is about scale ** 2
    with pytest.warns(UserWarning, match="1 zero, or too small .*mlp.down_proj"):
        scores = plop.nfn_scores(model, data, progress=False)
    assert scores["module"].nunique() == 13
    found = scores.set_index(["sample", "module"])["nfn"]
    np.testing.assert_allclose(found, expected[found.index], rtol=1e-5)


def test_a_forward_that_fails_is_not_counted():
    model, batch = llama(), {"input_ids": ids(2, 5)}
    broken = model.model.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with torch.no_grad(), plop.record_norms(model) as record:
        with pytest.raises(ZeroDivisionError):
            model(**batch)
        with pytest.raises(ValueError, match="nothing was recorded"):
            record.frame()
        broken.remove()
        model(**batch)
        assert record.frame()["module"].nunique() == 14
    assert record.samples == 2
    assert record.frame()["sample"].unique().tolist() == [0, 1]


# Threads


def test_two_threads_score_one_model_as_one_does():
    model = llama().train()
    data = [padded([7, 4, 2]), padded([5, 5])]
    expected, found = scored(model, data), []

    def score():
        found.append(scored(model, data))

    threads = [threading.Thread(target=score) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for scores in found:
        np.testing.assert_allclose(scores, expected, rtol=1e-6)
    assert all(module.training for module in model.modules())


def test_a_record_takes_the_forwards_of_all_threads():
    model, batch = llama(), {"input_ids": ids(2, 5)}
    with torch.no_grad(), plop.record_norms(model) as record:
        model(**batch)
        threads = [threading.Thread(target=lambda: model(**batch)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    frame = record.frame()
    assert record.samples == 8 and frame["sample"].nunique() == 8
    scores = frame.groupby("sample")["nfn"].sum()
    np.testing.assert_allclose(scores[::2], scores[0], rtol=1e-5)


def test_forwards_of_other_threads_do_not_get_into_scores():
    model, batch = llama(), {"input_ids": ids(2, 5)}
    expected, others = scored(model, [batch] * 3), []

    def data():
        for _ in range(3):
            others.append(threading.Thread(target=lambda: model(input_ids=ids(1, 3, seed=1))))
            others[-1].start()
            others[-1].join()
            yield batch

    np.testing.assert_allclose(scored(model, data()), expected, rtol=1e-6)
    assert len(others) == 3


def test_threads_leave_modes_and_compilation_as_they_were():
    models = [llama().train() for _ in range(3)]
    threads = [
        threading.Thread(target=scored, args=(part, [padded([4, 2])] * 3))
        for model in models
        for part in (model, model.model)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(module.training for model in models for module in model.modules())
    compiled = []

    def backend(graph, _):
        compiled.append(graph)
        return graph.forward

    torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2))
    assert compiled


# Layouts


@pytest.mark.parametrize("model_type", sorted(TIME_MAJOR))
def test_a_time_major_model_in_a_square_batch(model_type):
    model, batch = build(model_type), padded([8, 7, 6, 5, 4, 3, 2, 1])
    np.testing.assert_allclose(scored(model, [batch]), scored(model, alone(batch)), rtol=1e-4)


class SequenceFirst(nn.Module):
    """A model of one's own that reads (length, batch, features) inside."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.map = nn.Embedding(64, 16), nn.Linear(16, 16)

    def forward(self, input_ids, attention_mask=None):
        return self.map(self.embedding(input_ids).transpose(0, 1)).transpose(0, 1)


def test_a_model_of_ones_own_that_is_time_major():
    model, batch = SequenceFirst(), padded([3, 2, 1])
    np.testing.assert_allclose(scored(model, [batch]), scored(model, alone(batch)), rtol=1e-5)


def test_a_record_of_a_square_batch_alone_says_that_it_cannot_tell():
    model, batch = SequenceFirst(), padded([3, 2, 1])
    with torch.no_grad(), plop.record_norms(model) as record:
        model(**batch)
    with pytest.raises(ValueError, match=r"padding unknown for input shape \(3, 3, 16\)"):
        record.frame()
    with torch.no_grad(), plop.record_norms(model) as record:
        model(**padded([4, 3]))  # settles it
        model(**batch)
    found = record.frame(first=2)["nfn"]
    np.testing.assert_allclose(found, scored(model, alone(batch)), rtol=1e-5)


# Masks


class Maskless(nn.Module):
    """Mixes tokens without being told which of them are padding."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.map = nn.Embedding(64, 16), nn.Linear(16, 16)

    def forward(self, input_ids):
        return self.map(self.embedding(input_ids).cumsum(1))


class Words:
    """A tokenizer that reads numbers."""

    bos_token, bos_token_id, pad_token_id = None, None, 0

    def __call__(self, texts, **_):
        rows = [[int(word) for word in text.split()] for text in texts]
        return {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}


def test_a_trunk_that_takes_no_mask_does_not_count_padding():
    model, batch = Maskless(), padded([6, 3, 2])
    np.testing.assert_allclose(scored(model, [batch]), scored(model, alone(batch)), rtol=1e-5)


def test_a_trunk_that_takes_no_mask_gets_texts_of_one_length_only():
    class FromTheEnd(Maskless):
        def forward(self, input_ids):
            return super().forward(input_ids.flip(1))

    model, texts = FromTheEnd(), ["5 6 7 8 9", "10 11", "12 13 14", "15 16"]
    together = scored(model, texts, tokenizer=Words())
    one = scored(model, texts, tokenizer=Words(), batch_size=1)
    np.testing.assert_allclose(together, one, rtol=1e-6)


def test_a_trunk_whose_forward_names_nothing():
    model, batch = llama(), padded([6, 3, 2])
    expected = scored(model, [batch])
    own = model.model.forward
    model.model.forward = lambda *a, **k: own(*a, **k)
    np.testing.assert_allclose(scored(model, [batch]), expected, rtol=1e-6)
    with torch.no_grad(), plop.record_norms(model) as record:
        model.model(batch["input_ids"], batch["attention_mask"])
    assert record.real_tokens().tolist() == [6, 6, 6]


@pytest.mark.parametrize("shape", [(3, 1, 6, 6), (3, 6, 6)])
def test_a_mask_of_who_looks_at_whom_is_refused_where_texts_differ(shape):
    model, batch = llama(), padded([6, 3, 2])
    many = batch["attention_mask"][:, None, :].bool() & torch.ones(6, 6).tril().bool()
    many = {"input_ids": batch["input_ids"], "attention_mask": many.reshape(shape)}
    with pytest.raises(ValueError, match="does not tell who is padding"):
        plop.nfn_scores(model, [many], progress=False)
    with pytest.raises(ValueError, match="does not tell who is padding"):
        with plop.record_norms(model):
            model(**many)
    assert not model.model._forward_pre_hooks


def test_a_mask_of_who_looks_at_whom_does_with_a_score_mask():
    model, batch = llama(), padded([6, 3, 2])
    mask = batch["attention_mask"]
    causal = torch.ones(6, 6).tril().bool()
    many = causal & mask[:, None, None, :].bool()
    given = {"input_ids": batch["input_ids"], "attention_mask": many, "score_mask": mask}
    np.testing.assert_allclose(scored(model, [given]), scored(model, [batch]), rtol=1e-5)


def test_left_padding_of_an_encoder_leaves_its_decoder_alone():
    model = build("t5")
    decoder = padded([5, 4, 3])
    extra = {
        "decoder_input_ids": decoder["input_ids"],
        "decoder_attention_mask": decoder["attention_mask"],
    }
    left = padded([5, 3, 2], "left")
    expected = []
    for row in range(3):
        one = {name: value[row : row + 1] for name, value in extra.items()}
        own = left["attention_mask"][row].bool()
        expected.append({"input_ids": left["input_ids"][row][own][None], **one})
    np.testing.assert_allclose(scored(model, [left | extra]), scored(model, expected), rtol=1e-4)
    labels = {"labels": decoder["input_ids"].masked_fill(decoder["attention_mask"] == 0, -100)}
    np.testing.assert_allclose(
        scored(model, [left | labels]), scored(model, [left | extra]), rtol=1e-5
    )


def test_patches_take_no_mask_from_a_text_of_as_many_tokens():
    torch.manual_seed(0)
    model = CLIPModel(shrink(CLIPConfig())).eval()
    config = model.config.vision_config
    patches = (config.image_size // config.patch_size) ** 2 + 1
    size = config.image_size
    image = {"pixel_values": torch.randn(2, 3, size, size)}
    names = [m for m in plop.module_table(model)["module"] if "vision_model.encoder" in m]

    def of_images(text):
        frame = scored(model, [text | image])
        return frame[frame.index.get_level_values("module").isin(names)]

    other = of_images(padded([5, 3]))
    model.text_model.embeddings.position_ids = torch.arange(patches)[None]
    model.text_model.embeddings.position_embedding = nn.Embedding(patches, 32)
    model.config.text_config.max_position_embeddings = patches
    np.testing.assert_allclose(of_images(padded([patches, 3])), other, rtol=1e-5)


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_generation_with_a_static_cache_is_recorded_where_no_text_is_padded(model_type):
    model = build(model_type)
    options = {"max_new_tokens": 3, "do_sample": False, "cache_implementation": "static"}
    with torch.no_grad(), plop.record_norms(model, frozen=True) as record:
        model.generate(ids(2, 5), attention_mask=torch.ones(2, 5).long(), **options)
    assert record.real_tokens().sum() == 2 * 5 + 2 * 2


# One beginning


@pytest.fixture
def beginning():
    """A tokenizer that puts <s> before every text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {"<s>": 0, "[UNK]": 1, "the": 2, "cat": 3, "sat": 4, "</s>": 5}
    backend = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="[UNK]")


def test_a_text_that_begins_with_the_bos_token_gets_no_second_one(beginning):
    model = llama()
    with pytest.warns(UserWarning, match="1 of 2 texts begin with '<s>' already"):
        marked = plop.nfn_scores(model, ["<s> the cat sat", "cat"], beginning, progress=False)
    plain = plop.nfn_scores(model, ["the cat sat", "cat"], beginning, progress=False)
    np.testing.assert_allclose(marked["nfn"], plain["nfn"], rtol=1e-6)
    assert marked["tokens"].tolist() == plain["tokens"].tolist()


def test_a_doubled_bos_token_costs_no_token_at_the_end(beginning):
    from plop_nb.batches import encode

    with pytest.warns(UserWarning, match="begin with"):
        rows = encode(["<s> the cat sat"], beginning, 3)
    assert rows[0]["input_ids"].tolist() == [0, 2, 3]
    assert rows[0]["attention_mask"].tolist() == [1, 1, 1]


def test_half_a_character_is_named(beginning):
    with pytest.raises(ValueError, match=r"texts\[1\] holds half a character .* position 4"):
        plop.nfn_scores(llama(), ["cat", "the \ud800 cat"], beginning, progress=False)


def test_a_bos_token_that_the_tokenizer_does_not_add_stays(beginning):
    from plop_nb.batches import encode

    beginning.backend_tokenizer.post_processor = None
    rows = encode(["<s> <s> the cat"], beginning, 8)
    assert rows[0]["input_ids"].tolist() == [0, 0, 2, 3]


# What an observer, a changed input and a cut-off forward must not spoil


def test_an_input_changed_in_place_is_measured_anew():
    class Residual(nn.Module):
        def __init__(self, in_place):
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(3))
            self.in_place = in_place

        def forward(self, x):
            x = x.clone()
            for layer in self.layers:
                if self.in_place:
                    x += 3 * layer(x)
                else:
                    x = x + 3 * layer(x)
            return x

    batch = {"x": torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))}
    np.testing.assert_allclose(
        scored(Residual(True), [batch]), scored(Residual(False), [batch]), rtol=1e-6
    )


def test_tokens_too_small_to_count_are_left_out_of_means_as_well():
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data.copy_(torch.eye(2))
    tokens = torch.tensor([[[1.0, 0.0], [1e-22, 0.0], [1e-22, 0.0], [1e-22, 0.0]]])
    table = plop.mean_split(layer, [{"input": tokens}], progress=False)
    assert table["tokens"].tolist() == [1]
    assert table["share"].tolist() == pytest.approx([1.0])


def test_maps_without_a_split_are_named():
    model = llama()
    model.model.layers[0].self_attn.q_proj.weight.data.zero_()
    with pytest.warns(UserWarning, match="all-zero weight.*layers.0.self_attn.q_proj"):
        table = plop.mean_split(model, [{"input_ids": ids(2, 4)}], progress=False)
    assert len(table) == 13


def test_a_score_mask_counts_for_a_decoder_that_reads_the_same_text():
    model, batch = build("t5"), padded([6, 4])
    without_first = batch["attention_mask"].clone()
    without_first[:, 0] = 0
    scores = plop.nfn_scores(model, [batch | {"score_mask": without_first}], progress=False)
    assert scores.groupby("sample")["tokens"].unique().map(list).tolist() == [[5], [3]]


@pytest.mark.parametrize(
    "given", [torch.ones(1, 6), [[1] * 6] * 2, torch.ones(2, 1)], ids=["one row", "list", "column"]
)
def test_a_score_mask_of_another_shape_is_named(given):
    model = llama()
    with plop.record_norms(model) as record, torch.no_grad():
        record.score_mask = given
        with pytest.raises(ValueError, match=r"score_mask is .* expected .* \(2, 6\)"):
            model(**padded([6, 4]))


def test_a_batch_without_a_token_is_named():
    batch = padded([6, 4])
    batch["attention_mask"][:] = 0
    with pytest.raises(ValueError, match="sample 0 has no real tokens"):
        plop.nfn_scores(llama(), [batch], progress=False)


def test_a_batch_of_ones_own_class_may_be_square():
    class Mine(type(llama().model)):
        pass

    mine = Mine(llama().config).eval()
    with torch.no_grad(), plop.record_norms(mine) as record:
        mine(**padded([3, 2, 1]))
    assert record.frame()["module"].nunique() == 14


def test_a_square_batch_of_features_is_scored():
    torch.manual_seed(0)
    layer, batch = nn.Linear(6, 6), {"input": torch.randn(4, 4, 6)}
    alone = [{"input": row[None]} for row in batch["input"]]
    np.testing.assert_allclose(scored(layer, [batch]), scored(layer, alone), rtol=1e-6)


def test_a_single_text_may_have_any_mask():
    model, tokens = llama(), ids(1, 6)
    causal = torch.ones(1, 1, 6, 6).tril().bool()
    given = {"input_ids": tokens, "attention_mask": causal}
    np.testing.assert_allclose(
        scored(model, [given]), scored(model, [{"input_ids": tokens}]), rtol=1e-5
    )


def test_forwards_without_a_tensor_are_named():
    class Opened(nn.Module):
        def __init__(self):
            super().__init__()
            self.map = nn.Linear(2, 2)

        def forward(self, batch):
            return self.map(batch["x"])

    model = Opened()
    with plop.record_norms(model), pytest.raises(ValueError, match="no tensor among"):
        model({"x": torch.ones(1, 2)})


# Models as people have them


@pytest.mark.parametrize(
    "wrap", [torch.compile, nn.DataParallel], ids=["compiled", "data parallel"]
)
@pytest.mark.parametrize("trunk_alone", [False, True])
def test_wrapped_models_score_as_they_are(wrap, trunk_alone):
    model, batch = llama(), padded([6, 3])
    expected = scored(model, [batch])
    if trunk_alone:
        model.model = wrap(model.model)
    else:
        model = wrap(model)
    found = scored(model, [batch])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_modules_to_save_are_scored_as_they_run():
    model, batch = llama(), padded([6, 3])
    expected = scored(model, [batch])
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["up_proj", "lm_head"])
    adapted = get_peft_model(model, config)
    assert len(plop.module_table(adapted)) == 15
    np.testing.assert_allclose(scored(adapted, [batch]), expected, rtol=1e-6)
    wrapper = model.model.layers[0].mlp.up_proj
    wrapper.modules_to_save["default"].weight.data[:24] *= 5
    changed = scored(adapted, [batch])
    name = (0, "model.layers.0.mlp.up_proj")
    assert changed.index.equals(expected.index) and changed[name] != expected[name]
    with adapted.disable_adapter():
        np.testing.assert_allclose(scored(adapted, [batch]), expected, rtol=1e-6)


def test_a_model_made_in_inference_mode():
    with torch.inference_mode():
        made = llama()
    batch = padded([6, 3])
    np.testing.assert_allclose(scored(made, [batch]), scored(llama(), [batch]), rtol=1e-6)


@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_the_default_dtype_does_not_matter(model_type):
    model, batch = build(model_type), padded([6, 3])
    expected = scored(model, [batch], baseline="gaussian")
    torch.set_default_dtype(torch.float64)
    try:
        found = scored(model, [batch], baseline="gaussian")
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((llama(), None), "load_model returns two things"),
        (None, "model is NoneType, expected a torch.nn.Module"),
        ("gpt2", "model is str, expected a torch.nn.Module"),
    ],
)
def test_what_is_no_model_is_named(given, message):
    with pytest.raises(TypeError, match=message):
        plop.nfn_scores(given, [padded([3, 2])])


def test_reformer_at_lengths_beyond_its_chunks():
    model = build("reformer")
    texts = [" ".join(map(str, ids(n).tolist())) for n in (13, 5, 9)]
    scores = plop.nfn_scores(model, texts, Words(), progress=False)
    assert scores.groupby("sample")["tokens"].first().tolist() == [13, 5, 9]
    assert set(scores["module"]) == set(
        plop.module_table(model).query("status == 'scored'")["module"]
    )


def test_a_model_without_a_map_that_is_scored_says_why():
    with pytest.raises(ValueError, match="no linear map .* 12 linear layer of a class that PEFT"):
        plop.nfn_scores(build("ibert"), [padded([3, 2])], progress=False)


def test_batches_that_the_model_makes_longer_are_found_again(tmp_path):
    model, batch = build("longformer"), {"input_ids": ids(2, 5)}
    first = scored(model, [batch], partial=tmp_path / "run.jsonl")
    np.testing.assert_array_equal(scored(model, [batch], partial=tmp_path / "run.jsonl"), first)


def test_cpm_ant_reads_a_prompt_of_its_own_that_does_not_count():
    model = build("cpmant")
    texts = ["5 6 7 8", "9 10", "11 12 13"]
    together = scored(model, texts, tokenizer=Words())
    seen = {}

    def catch(name):
        return lambda _, args: seen.__setitem__(name, args[0])

    name = "cpmant.encoder.layers.0.ffn.ffn.w_in.w_0"
    handle = model.get_submodule(name).register_forward_pre_hook(catch(name))
    with torch.no_grad():
        forward(trunk_of(model), {"input_ids": torch.tensor([[5, 6, 7, 8]])})
    handle.remove()
    z, weight = seen[name][0, -4:], model.get_submodule(name).weight
    noise = z.norm(dim=1) * weight.norm() / weight.shape[1] ** 0.5
    expected = ((z @ weight.T).norm(dim=1) / noise).mean().item()
    assert together[0, name] == pytest.approx(expected, rel=1e-5)
