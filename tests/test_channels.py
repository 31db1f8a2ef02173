"""Outlier channels: constructed cases, an oracle in numpy, in front of the norms, bad input."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import plop_nb as plop
from plop_nb.channel_plots import plot_channels
from plop_nb.channels import (
    column_sizes,
    leading_channels,
    loudest_tokens,
    mean_channels,
    other_channels,
    stream_channels,
)
from plop_nb.geometry import mean_inputs, nfn_without
from plop_nb.probing import norm_table
from tests.conftest import TEXTS
from tests.tiny_models import build

QUERY = "model.layers.1.self_attn.q_proj"
NORM = "model.layers.1.input_layernorm"


@pytest.fixture
def tiny_means(tiny_llama, byte_tokenizer):
    return mean_inputs(tiny_llama, TEXTS, byte_tokenizer, progress=False)


def entering(model, tokenizer, name):
    """[what enters the module in each text, (tokens, width), float64], one text at a time."""
    found = []
    hook = model.get_submodule(name).register_forward_pre_hook(
        lambda _, args: found.append(args[0][0].double().numpy())
    )
    with torch.no_grad():
        for text in TEXTS:
            model(**tokenizer([text], return_tensors="pt"))
    hook.remove()
    return found


def mean_direction(rows):
    x = np.concatenate(rows)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).mean(0)


# Constructed cases


def layer(weight):
    linear = nn.Linear(len(weight[0]), len(weight), bias=False)
    linear.weight.data = torch.tensor(weight)
    return linear


def test_a_mean_of_two_equal_channels():
    """Half of the square each, two channels wide; the map reads one column of three."""
    linear = layer([[0.0, 0.0, 6.0, 0.0], [0.0, 8.0, 0.0, 0.0]])
    mean = torch.tensor([0.0, 0.0, 0.3, -0.3])
    first, second = mean_channels(linear, {"": mean}, top=2).itertuples()
    assert first.share == pytest.approx(0.18) and first.participation == pytest.approx(2)
    assert {first.channel, second.channel} == {2, 3} and [first.rank, second.rank] == [1, 2]
    assert first.channel_share == second.channel_share == pytest.approx(0.5)
    sizes = {first.channel: first.column, second.channel: second.column}
    assert sizes == {2: pytest.approx(6 / 5), 3: 0}  # columns of 0, 8, 6, 0: root mean square 5
    assert first.nfn_mean == pytest.approx(6 / 5 / 2**0.5)
    assert np.isnan(second.nfn_rest)  # nothing is left


def test_one_channel_and_all_channels_alike():
    linear = nn.Linear(8, 3)
    one = mean_channels(linear, {"": -torch.eye(8)[5]}).iloc[0]
    assert one["participation"] == one["channel_share"] == 1 and one["channel"] == 5
    assert one["nfn_mean"] == pytest.approx(one["column"])  # an identity
    alike = mean_channels(linear, {"": torch.full((8,), 0.1)}).iloc[0]
    assert alike["participation"] == pytest.approx(8)
    assert alike["channel_share"] == pytest.approx(1 / 8)


def test_rank_of_the_column():
    linear = layer([[1.0, 4.0, 2.0, 3.0]])
    for channel, rank in enumerate([1, 4, 2, 3]):
        row = mean_channels(linear, {"": torch.eye(4)[channel]}).iloc[0]
        assert row["column_rank"] == rank


# The oracle


def test_oracle_tiny_llama(tiny_llama, byte_tokenizer, tiny_means):
    table = mean_channels(tiny_llama, tiny_means).set_index("module")
    assert len(table) == 14
    for name in [QUERY, "model.layers.0.mlp.down_proj"]:
        mean = mean_direction(entering(tiny_llama, byte_tokenizer, name))
        weight = tiny_llama.get_submodule(name).weight.detach().double().numpy()
        columns = np.linalg.norm(weight, axis=0)
        columns /= np.sqrt(np.mean(columns**2))
        channel, row = np.argmax(mean**2), table.loc[name]
        rest = np.where(np.arange(len(mean)) == channel, 0, mean)
        noise = np.linalg.norm(weight) / np.sqrt(len(mean))
        expected = {
            "share": np.sum(mean**2),
            "participation": np.sum(mean**2) ** 2 / np.sum(mean**4),
            "channel": channel,
            "channel_share": mean[channel] ** 2 / np.sum(mean**2),
            "column": columns[channel],
            "column_rank": 1 + np.argsort(np.argsort(columns))[channel],
            "nfn_mean": np.linalg.norm(weight @ mean) / np.linalg.norm(mean) / noise,
            "nfn_rest": np.linalg.norm(weight @ rest) / np.linalg.norm(rest) / noise,
        }
        for column, value in expected.items():
            assert row[column] == pytest.approx(value, rel=1e-3), column
        np.testing.assert_allclose(column_sizes(tiny_llama, [name])[name], columns, rtol=1e-4)


def test_oracle_of_the_stream(tiny_llama, byte_tokenizer, tiny_means):
    table = stream_channels(tiny_llama, TEXTS, byte_tokenizer, tiny_means).set_index("module")
    assert len(table) == 10  # o and down read no norm
    row = table.loc[QUERY]
    mean = mean_direction(entering(tiny_llama, byte_tokenizer, NORM))
    gain = tiny_llama.get_submodule(NORM).weight.detach().double().numpy()
    channel = int(tiny_means[QUERY].abs().argmax())
    assert row["norm"] == NORM and row["channel"] == channel
    assert row["gain"] == pytest.approx(abs(gain[channel]) / np.sqrt(np.mean(gain**2)), rel=1e-4)
    assert row["stream_share"] == pytest.approx(np.sum(mean**2), rel=1e-3)
    participation = np.sum(mean**2) ** 2 / np.sum(mean**4)
    assert row["stream_participation"] == pytest.approx(participation, rel=1e-3)
    assert row["stream_channel"] == np.argmax(mean**2)
    assert row["before"] == pytest.approx(mean[channel] ** 2 / np.sum(mean**2), rel=1e-3)


def test_oracle_of_the_largest_tokens(tiny_llama, byte_tokenizer):
    table = loudest_tokens(tiny_llama, TEXTS, byte_tokenizer)
    assert len(table) == 4 * len(TEXTS)  # norms in front of maps
    rows = table[table["norm"] == NORM].sort_values("sample")
    streams = entering(tiny_llama, byte_tokenizer, NORM)
    for row, stream in zip(rows.itertuples(), streams, strict=True):
        sizes = np.linalg.norm(stream, axis=1)
        position = np.argmax(sizes)
        channel = np.argmax(np.abs(stream[position]))
        assert (row.position, row.channel) == (position, channel)
        assert row.size == pytest.approx(sizes[position], rel=1e-4)
        assert row.value == pytest.approx(abs(stream[position, channel]), rel=1e-4)
        others = np.delete(stream, position, axis=0)
        assert (np.linalg.norm(others, axis=1) <= row.other_size + 1e-4).mean() >= 0.5
        assert (np.abs(others[:, channel]) <= row.other_value + 1e-4).mean() >= 0.5


def test_a_massive_channel_is_found_where_it_was_put(tiny_llama, byte_tokenizer):
    """The embedding of a letter that only the second text has, once, made large in channel 7."""
    letter = byte_tokenizer("w")["input_ids"][0]
    with torch.no_grad():
        tiny_llama.get_input_embeddings().weight[letter, 7] = 1000
    table = loudest_tokens(tiny_llama, TEXTS[1:2], byte_tokenizer)
    assert set(table["position"]) == {TEXTS[1].index("w")} and set(table["channel"]) == {7}
    assert (table["value"] / table["other_value"]).min() > 50


@pytest.mark.parametrize("name, stored_less", [("gemma3_text", 1.0), ("gpt2", 0.0), ("bert", 0.0)])
def test_gains_stored_less_one_and_gains_beside_a_shift(byte_tokenizer, name, stored_less):
    """Gemma's 1 + weight; GPT-2's and BERT's LayerNorms, with another gain in every channel."""
    model = build(name)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    texts = ["ABC", "DAB"]  # of the first tokens: the tiny vocabulary has 128
    means = mean_inputs(model, texts, byte_tokenizer, progress=False)
    table = stream_channels(model, texts, byte_tokenizer, means)
    assert len(table) >= 4
    for row in table.itertuples():
        assert row.channel == means[row.module].abs().argmax()
        gain = model.get_submodule(row.norm).weight.detach().double().numpy() + stored_less
        expected = abs(gain[row.channel]) / np.sqrt(np.mean(gain**2))
        assert row.gain == pytest.approx(expected, rel=1e-4)


def test_the_gain_decides_what_leads(tiny_llama, byte_tokenizer):
    """A gain of 1000 makes its channel lead behind the norm, and leaves the stream as it was."""
    query, norm = QUERY.replace("1", "0"), NORM.replace("1", "0")
    seen = []
    for gain in (1.0, 1000.0):
        with torch.no_grad():
            tiny_llama.get_submodule(norm).weight.fill_(1)[11] = gain
        means = mean_inputs(tiny_llama, TEXTS, byte_tokenizer, progress=False)
        table = stream_channels(tiny_llama, TEXTS, byte_tokenizer, {query: means[query]})
        seen.append(table.iloc[0])
    before, after = seen
    assert after["channel"] == 11 != before["channel"]
    assert before["gain"] == pytest.approx(1) and after["gain"] == pytest.approx(32**0.5, rel=1e-3)
    unchanged = ["stream_share", "stream_participation", "stream_channel"]
    assert before[unchanged].tolist() == pytest.approx(after[unchanged].tolist())


# Directions to remove


def test_the_leading_channel_is_taken_out(tiny_llama, byte_tokenizer, tiny_means):
    """The score without it is that of inputs whose entry in the channel is zero."""
    texts = TEXTS[:1]
    leading = leading_channels(tiny_means)
    found = nfn_without(tiny_llama, texts, byte_tokenizer, leading, progress=False)
    z = entering(tiny_llama, byte_tokenizer, QUERY)[0].copy()
    z[:, int(tiny_means[QUERY].abs().argmax())] = 0
    weight = tiny_llama.get_submodule(QUERY).weight.detach().double().numpy()
    noise = np.linalg.norm(weight) / np.sqrt(z.shape[1])
    expected = np.linalg.norm(z @ weight.T, axis=1) / np.linalg.norm(z, axis=1) / noise
    assert found.set_index("module")["nfn"][QUERY] == pytest.approx(expected.mean(), rel=1e-3)


def test_two_parts_of_a_mean():
    mean = torch.tensor([0.1, -0.7, 0.2])
    leading, others = leading_channels({"a": mean})["a"], other_channels({"a": mean})["a"]
    assert leading.tolist() == [0, 1, 0]
    torch.testing.assert_close(others, torch.tensor([0.1, 0, 0.2]))
    assert mean.tolist() == pytest.approx([0.1, -0.7, 0.2])  # as it was


def test_the_model_comes_back_untouched(tiny_llama, byte_tokenizer, tiny_means):
    tiny_llama.train()
    stream_channels(tiny_llama, TEXTS, byte_tokenizer, tiny_means)
    loudest_tokens(tiny_llama, TEXTS, byte_tokenizer)
    assert tiny_llama.training
    for module in tiny_llama.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


# Bad input


@pytest.mark.parametrize(
    "means, top, message",
    [
        ({}, 1, "means is empty"),
        ({"model.norm": torch.ones(32)}, 1, "means names 'model.norm', which is no scored map"),
        ({QUERY: torch.ones(31)}, 1, r"has shape \(31,\), but the map takes 32"),
        ({QUERY: torch.zeros(32)}, 1, "zero or not finite"),
        ({QUERY: torch.full((32,), torch.nan)}, 1, "zero or not finite"),
        ({QUERY: torch.ones(32)}, 33, "top=33, but .* takes 32 channels"),
        ({QUERY: torch.ones(32)}, 0, "top=0"),
    ],
)
def test_means_that_do_not_fit(tiny_llama, means, top, message):
    with pytest.raises(ValueError, match=message):
        mean_channels(tiny_llama, means, top=top)


def test_other_bad_input(tiny_llama, byte_tokenizer, tiny_means):
    with pytest.raises(ValueError, match="modules names 'lm_head', which is no scored map"):
        column_sizes(tiny_llama, ["lm_head"])
    with pytest.raises(TypeError, match="tokenizer is missing"):
        loudest_tokens(tiny_llama, TEXTS, None)
    with pytest.raises(ValueError, match="means names 'q'"):
        stream_channels(tiny_llama, TEXTS, byte_tokenizer, {"q": torch.ones(32)})
    with pytest.raises(TypeError, match="texts is one str"):
        loudest_tokens(tiny_llama, TEXTS[0], byte_tokenizer)
    with pytest.raises(ValueError, match="texts is empty"):
        loudest_tokens(tiny_llama, [], byte_tokenizer)


def test_maps_behind_no_norm_have_no_row(tiny_llama, byte_tokenizer, tiny_means):
    down = "model.layers.0.mlp.down_proj"
    table = stream_channels(tiny_llama, TEXTS, byte_tokenizer, {down: tiny_means[down]})
    assert table.empty and {"module", "norm", "before"} < set(table.columns)


def test_a_model_whose_maps_read_no_norm(byte_tokenizer):
    """OLMo 2 has its norms behind the maps."""
    model, texts = build("olmo2").eval(), ["ABC"]
    means = mean_inputs(model, texts, byte_tokenizer, progress=False)
    streams = stream_channels(model, texts, byte_tokenizer, means)
    loudest = loudest_tokens(model, texts, byte_tokenizer)
    assert streams.empty and "module" in streams
    assert loudest.empty and "norm" in loudest


def test_a_norm_that_all_layers_share_counts_every_time(byte_tokenizer):
    """ALBERT runs one layer over and over: its mean is over all that enters, as that of maps is."""
    model, texts = build("albert").eval(), ["ABC", "DABCC"]
    entered = []
    norm = next(name for name in norm_table(model)["norm"] if name.endswith("attention.LayerNorm"))
    hook = model.get_submodule(norm).register_forward_pre_hook(
        lambda _, args: entered.append(args[0][0].double().numpy())
    )
    with torch.no_grad():
        for text in texts:
            model(**byte_tokenizer([text], return_tensors="pt"))
    hook.remove()
    assert len(entered) > len(texts)
    means = mean_inputs(model, texts, byte_tokenizer, progress=False)
    table = stream_channels(model, texts, byte_tokenizer, means).set_index("norm").loc[[norm]]
    expected = np.sum(mean_direction(entered) ** 2)
    assert table["stream_share"].tolist() == pytest.approx([expected] * len(table), rel=1e-4)
    loudest = loudest_tokens(model, texts, byte_tokenizer)
    assert (loudest["norm"] == norm).sum() == len(entered)


def test_rows_are_the_norms_of_norm_table(tiny_llama, byte_tokenizer):
    table = loudest_tokens(tiny_llama, TEXTS, byte_tokenizer)
    assert set(table["norm"]) == set(norm_table(tiny_llama)["norm"])
    assert not table.duplicated(["norm", "sample"]).any()


# The picture


def test_the_picture_says_what_it_shows(tiny_llama):
    means = {}
    for kind in "qkv":
        means[f"model.layers.0.self_attn.{kind}_proj"] = 0.9 * torch.eye(32)[3]
    with torch.no_grad():
        tiny_llama.get_submodule(list(means)[2]).weight[:, 3] *= 0.01
    axes = plot_channels(tiny_llama, means, list(means))
    assert axes[0].figure.get_suptitle() == (
        "One channel is 81 % of the input, and v_proj hardly reads it"
    )
    assert [label.get_text() for label in axes[1].get_yticklabels()] == [
        "q_proj",
        "k_proj",
        "v_proj",
    ]
    written = [float(text.get_text()) for text in axes[1].texts]
    assert written == mean_channels(tiny_llama, means)["column"].round(2).tolist()
    plt.close("all")


def test_pictures_of_other_inputs_are_refused(tiny_llama, tiny_means):
    with pytest.raises(ValueError, match="modules is empty"):
        plot_channels(tiny_llama, tiny_means, [])
    with pytest.raises(ValueError, match="means lacks 'model.norm'"):
        plot_channels(tiny_llama, tiny_means, ["model.norm"])
    with pytest.raises(ValueError, match="does not read the same input"):
        plot_channels(tiny_llama, tiny_means, [QUERY, "model.layers.1.mlp.up_proj"])


# The real model


@pytest.fixture(scope="module")
def smollm_channels(smollm):
    """Rows of the value maps, and the means."""
    means = mean_inputs(smollm[0], plop.load_texts("math", n=8), smollm[1], progress=False)
    table = mean_channels(smollm[0], means)
    return table[table["type"] == "v_proj"], means


def test_the_outlier_channel_of_smollm(smollm_channels):
    values, _ = smollm_channels
    medians = values[["participation", "channel_share", "column"]].median()
    assert medians.tolist() == pytest.approx([1.73, 0.755, 0.171], rel=0.02)
    assert set(values["channel"].value_counts().index[:4]) == {507, 260, 247, 17}
    assert (values["column_rank"] <= 5).mean() > 0.9  # of 576


def test_without_the_channel_smollms_values_score_higher(smollm, smollm_channels):
    model, tokenizer = smollm
    texts, means = plop.load_texts("math", n=8), smollm_channels[1]
    means = {name: mean for name, mean in means.items() if name.endswith(("q_proj", "v_proj"))}
    found = []
    for directions in (leading_channels(means), other_channels(means), means):
        scores = nfn_without(model, texts, tokenizer, directions, progress=False)
        found.append(plop.by_type(scores).set_index("type")["nfn"])
    table = pd.DataFrame(found, index=["channel", "others", "mean"])
    assert table["v_proj"].tolist() == pytest.approx([0.821, 0.625, 0.895], rel=0.02)
    assert table["q_proj"].tolist() == pytest.approx([1.301, 0.960, 1.023], rel=0.02)


def test_smollms_sink_is_another_channel(smollm):
    tokens = loudest_tokens(smollm[0], plop.load_texts("math", n=8), smollm[1])
    deep = tokens[tokens["norm"] == "model.layers.15.input_layernorm"]
    assert set(deep["position"]) == {0} and set(deep["channel"]) == {507}
    assert (deep["size"] / deep["other_size"]).min() > 100
