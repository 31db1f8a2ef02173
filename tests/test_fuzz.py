"""Batches of all shapes, against the texts one by one: every way in which padding can be met."""

import random
import warnings
import zlib

import numpy as np
import pytest
import torch
from torch import nn

import plop_nb as plop
from plop_nb.batches import MIXES_PADDING
from plop_nb.inputs import takes_mask
from plop_nb.maps import trunk_of
from plop_nb.padding import TIME_MAJOR
from tests.tiny_models import CANNOT_BUILD, build, model_types

ROUNDS = 6
SHORTEST = {"funnel": 4, "prophetnet": 3}  # tokens that these can read at all
# Encoder-decoder types whose encoder reads sound or images.
NO_TEXT = set(
    """pix2struct pp_formulanet speech-encoder-decoder speech_to_text speecht5
    vision-encoder-decoder voxtral_realtime whisper""".split()
)
# Besides those that are time-major or have experts: layouts, positions and masks of many kinds
# (not reformer, which hashes at random).
OTHERS = """albert bart bert bigbird big_bird bloom codegen cpmant deberta deberta-v2 distilbert
    electra falcon fnet funnel gemma3_text gpt2 gpt_neo gptj llama lilt m2m_100 mamba marian
    mbart mobilebert mpnet mpt mt5 opt phi prophetnet qwen2 qwen3 rembert roberta
    roc_bert roformer t5 umt5 xglm xlm xlm-roberta xlstm""".split()
EXPERTS = """afmoe aria aria_text axk1 axk2 cohere2_moe deepseek_v2 deepseek_v4 ernie4_5_moe
    exaone_moe flex_olmo glm4_moe glm4_moe_lite glm4v_moe gpt_oss granitemoe granitemoe_swa
    granitemoehybrid granitemoeshared hunyuan_v1_moe hy_v3 hy_v4 inkling2 inkling2_text
    inkling_text jamba kimi_linear kolibri1 laguna llama4 llama4_text longcat_flash mellum
    mimo_v2_flash minimax minimax_m2 minimax_m3_vl minimax_m3_vl_text mistral4
    mistral_large4 mixtral nemotron_h olmoe phimoe qwen2_moe qwen3_5_moe qwen3_5_moe_text
    qwen3_moe qwen3_next qwen3_omni_moe_thinker qwen3_vl_moe solar_open unlimited_ocr zaya
""".split()
FUZZED = sorted((set(OTHERS) | set(EXPERTS) | TIME_MAJOR) & set(model_types()) - set(CANNOT_BUILD))


class Numbers:
    """A tokenizer that reads the numbers of a text."""

    bos_token_id, pad_token_id = None, 0

    def __call__(self, texts, **_):
        rows = [[int(word) for word in text.split()] for text in texts]
        return {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}


def collated(rows, draw):
    """The rows in batches as collators make them: any size, side and form of mask."""
    left = list(rows)
    while left:
        size = draw.randint(1, len(left))
        own, left = left[:size], left[size:]
        length = max(map(len, own)) + draw.choice([0, 0, 1, 3])
        ids = torch.zeros(size, length, dtype=torch.long)
        mask = torch.zeros(size, length, dtype=torch.long)
        for i, row in enumerate(own):
            start = draw.choice([0, 0, length - len(row)])
            ids[i, start : start + len(row)] = torch.tensor(row)
            mask[i, start : start + len(row)] = 1
        form = draw.choice([torch.long, torch.bool, torch.float32, torch.int32])
        yield {"input_ids": ids, "attention_mask": mask.to(form)}


def scored(model, data, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame = plop.nfn_scores(model, data, progress=False, **options)
    return frame.set_index(["sample", "module"])[["nfn", "tokens"]].sort_index()


def same(found, expected):
    """Equal scores and counts, of the same samples and modules."""
    assert found.index.equals(expected.index)
    assert found["tokens"].tolist() == expected["tokens"].tolist()
    np.testing.assert_allclose(found["nfn"], expected["nfn"], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", FUZZED)
def test_batches_of_all_shapes_score_as_their_texts_one_by_one(model_type):
    model, draw = build(model_type), random.Random(zlib.crc32(model_type.encode()))
    shortest = SHORTEST.get(model_type, 1)
    # These mix padding in: their texts go by length, their user's batches as they are.
    own_batches = model_type in MIXES_PADDING or not takes_mask(trunk_of(model))
    for round_ in range(ROUNDS):
        count = draw.choice([4, 5, 8])
        longest = count if round_ == 0 else 9  # a square, which says nothing of the layout
        lengths = [longest] + [draw.randint(shortest, longest) for _ in range(count - 1)]
        rows = [[draw.randint(5, 60) for _ in range(length)] for length in lengths]
        texts = [" ".join(map(str, row)) for row in rows]
        alone = scored(model, texts, tokenizer=Numbers(), batch_size=1)
        size = 8 if round_ == 0 else draw.choice([2, 3, 4, 8])
        same(scored(model, texts, tokenizer=Numbers(), batch_size=size), alone)
        if not own_batches:
            same(scored(model, list(collated(rows, draw))), alone)


def padded(rows):
    """Ids and mask of the rows, padded on the right."""
    tensors = [torch.tensor(row) for row in rows]
    ids = nn.utils.rnn.pad_sequence(tensors, batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in tensors], batch_first=True)
    return ids, mask


def encoder_decoders():
    """Types with an encoder that reads text and a decoder that reads another."""
    pairs = [name for name, (head, _) in model_types().items() if head == "seq2seq"]
    return sorted(set(pairs) - set(CANNOT_BUILD) - NO_TEXT - MIXES_PADDING)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", encoder_decoders())
@pytest.mark.parametrize("lengths", [([8, 3, 5], [4, 8, 6]), ([3, 2, 4, 4], [4, 4, 1, 3])])
def test_encoder_and_decoder_have_a_padding_of_their_own(model_type, lengths):
    model, draw = build(model_type), random.Random(0)
    texts, answers = ([[draw.randint(5, 60) for _ in range(n)] for n in part] for part in lengths)
    (ids, mask), (decoder_ids, decoder_mask) = padded(texts), padded(answers)
    batch = {"input_ids": ids, "attention_mask": mask}
    batch |= {"decoder_input_ids": decoder_ids, "decoder_attention_mask": decoder_mask}
    alone = []
    for text, answer in zip(texts, answers, strict=True):
        ids, decoder_ids = torch.tensor([text]), torch.tensor([answer])
        alone.append({"input_ids": ids, "decoder_input_ids": decoder_ids})
    same(scored(model, [batch]), scored(model, alone))


def test_enough_is_fuzzed():
    assert len(FUZZED) >= 90
    assert TIME_MAJOR <= set(FUZZED)
