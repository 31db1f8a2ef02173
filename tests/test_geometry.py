"""The mean split against stored activations, its invariances, directions removed, and bad input."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import plop_nb as plop
from plop_nb.geometry import interventions, mean_inputs, nfn_without, untrained
from plop_nb.recording import Observation
from plop_nb.scoring import observe
from tests.conftest import TEXTS

PARTS = ["share", "nfn", "mean_square", "nfn_mean", "nfn_centred", "mean_part", "centred_part"]


def split(model, texts, tokenizer=None, **options):
    return plop.mean_split(model, texts, tokenizer, progress=False, **options)


def stored(model, tokenizer, texts, modules):
    """{module: all its inputs z (tokens, in_features), float64}, one unpadded text at a time."""
    inputs = {name: [] for name in modules}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: inputs[name].append(args[0].flatten(0, -2).double())
        )
        for name in modules
    ]
    with torch.no_grad():
        for text in texts:
            model(**tokenizer([text], return_tensors="pt"))
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in inputs.items()}


def naive(z, weight):
    """The columns of `PARTS`, by their definitions, from stored inputs."""
    weight = weight.detach().double()
    u = z / z.norm(dim=1, keepdim=True)
    mu = u.mean(0)

    def square(x):
        return (x @ weight.T).square().sum(-1) / (weight.square().sum() / weight.shape[1])

    share, mean, rest = mu @ mu, square(mu), square(u - mu).mean()
    nfn = (
        square(u).sqrt().mean(),
        square(u).mean(),
        (mean / share).sqrt(),
        (rest / (1 - share)).sqrt(),
    )
    return [share.item(), *(x.item() for x in nfn), mean.item(), rest.item()]


def assert_naive(model, tokenizer, texts, table, modules):
    z = stored(model, tokenizer, texts, modules)
    rows = table.set_index("module").loc[modules]
    expected = np.array([naive(z[name], model.get_submodule(name).weight) for name in modules])
    assert rows["tokens"].tolist() == [len(z[name]) for name in modules]
    np.testing.assert_allclose(rows[PARTS].to_numpy(float), expected, rtol=2e-3, atol=1e-5)


# The oracle


def test_oracle_tiny_llama(tiny_llama, byte_tokenizer):
    table = split(tiny_llama, TEXTS, byte_tokenizer)
    assert len(table) == 14 and list(table.columns[:3]) == ["module", "type", "layer"]
    assert_naive(tiny_llama, byte_tokenizer, TEXTS, table, table["module"].tolist())


@pytest.mark.slow
def test_oracle_smollm(smollm):
    model, tokenizer = smollm
    texts = plop.load_texts("math", n=6)
    table = split(model, texts, tokenizer)
    assert len(table) == 210
    assert_naive(model, tokenizer, texts, table, table["module"].tolist()[::11])


@pytest.mark.slow
def test_parts_add_up_for_every_module_of_smollm(smollm):
    model, tokenizer = smollm
    table = split(model, plop.load_texts("code", n=6), tokenizer)
    np.testing.assert_allclose(
        table["mean_part"] + table["centred_part"], table["mean_square"], rtol=1e-3
    )
    assert table["share"].between(0, 1).all()


def test_a_wrong_mean_does_not_add_up(tiny_llama, byte_tokenizer, monkeypatch):
    """The two sides are measured apart, so the sum is a check."""

    def biased(*args, **options):
        seen = observe(*args, **options)
        seen.totals = {name: 0.7 * total for name, total in seen.totals.items()}
        return seen

    monkeypatch.setattr(plop.geometry, "observe", biased)
    table = split(tiny_llama, TEXTS, byte_tokenizer)
    assert (
        (table["mean_part"] + table["centred_part"]) / table["mean_square"] - 1
    ).abs().max() > 0.01


def test_same_nfn_as_the_scores(tiny_llama, byte_tokenizer):
    scores = plop.nfn_scores(tiny_llama, TEXTS[:1], byte_tokenizer, progress=False).set_index(
        "module"
    )["nfn"]
    table = split(tiny_llama, TEXTS[:1], byte_tokenizer).set_index("module")["nfn"]
    np.testing.assert_allclose(table, scores[table.index], rtol=1e-5)


# Invariances


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_batch_size_and_order_do_not_matter(tiny_llama, byte_tokenizer, batch_size):
    table = split(tiny_llama, TEXTS[::-1], byte_tokenizer, batch_size=batch_size)
    np.testing.assert_allclose(
        table[PARTS], split(tiny_llama, TEXTS, byte_tokenizer)[PARTS], rtol=1e-4
    )


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_count(tiny_llama, byte_tokenizer, side):
    byte_tokenizer.pad_token = "!"
    batch = byte_tokenizer(TEXTS, padding=True, padding_side=side, return_tensors="pt")
    table = split(tiny_llama, [dict(batch)])
    np.testing.assert_allclose(
        table[PARTS], split(tiny_llama, TEXTS, byte_tokenizer)[PARTS], rtol=1e-4
    )


def test_score_mask_leaves_tokens_out(tiny_llama, byte_tokenizer):
    batch = dict(byte_tokenizer(TEXTS[:1], return_tensors="pt"))
    counted = torch.arange(batch["input_ids"].shape[1])[None] > 0
    table = split(tiny_llama, [{**batch, "score_mask": counted.long()}])
    name = table["module"].iloc[-1]
    z = stored(tiny_llama, byte_tokenizer, TEXTS[:1], [name])[name][1:]
    expected = naive(z, tiny_llama.get_submodule(name).weight)
    np.testing.assert_allclose(table.iloc[-1][PARTS].to_numpy(float), expected, rtol=1e-4)


def test_parallel_inputs_are_all_shared():
    layer = nn.Linear(4, 3)
    z = torch.tensor([1.0, 2.0, 3.0, 4.0]) * torch.rand(2, 5, 1)
    row = split(layer, [{"input": z}]).iloc[0]
    assert row["share"] == pytest.approx(1, abs=1e-5) and np.isnan(row["nfn_centred"])
    assert row["mean_part"] == pytest.approx(row["mean_square"], rel=1e-4)


def test_model_is_left_as_it_was(tiny_llama, byte_tokenizer):
    tiny_llama.train()
    before = {k: v.clone() for k, v in tiny_llama.state_dict().items()}
    split(tiny_llama, TEXTS, byte_tokenizer)
    with pytest.raises(TypeError):
        split(tiny_llama, [1, 2], byte_tokenizer)
    assert tiny_llama.training and not any(
        m._forward_hooks or m._forward_pre_hooks for m in tiny_llama.modules()
    )
    assert all(torch.equal(v, before[k]) for k, v in tiny_llama.state_dict().items())


# Directions removed


def test_without_the_mean_equals_the_definition(tiny_llama, byte_tokenizer):
    means = mean_inputs(tiny_llama, TEXTS, byte_tokenizer, progress=False)
    scores = nfn_without(tiny_llama, TEXTS[:1], byte_tokenizer, means, progress=False).set_index(
        "module"
    )["nfn"]
    inputs = stored(tiny_llama, byte_tokenizer, TEXTS[:1], list(means))
    for name, z in inputs.items():
        d, weight = (
            (means[name] / means[name].norm()).double(),
            tiny_llama.get_submodule(name).weight.double(),
        )
        rest = z - (z @ d)[:, None] * d
        gain = weight.norm() / weight.shape[1] ** 0.5
        expected = ((rest @ weight.T).norm(dim=1) / (rest.norm(dim=1) * gain)).mean().item()
        assert scores[name] == pytest.approx(expected, rel=1e-4)


def test_scores_without_a_direction_can_be_placed(tiny_llama, byte_tokenizer):
    means = mean_inputs(tiny_llama, TEXTS, byte_tokenizer, progress=False)
    scores = nfn_without(tiny_llama, TEXTS, byte_tokenizer, means, progress=False)
    assert len(plop.place(scores, k=2).types) == 2
    whole = plop.nfn_scores(tiny_llama, TEXTS, byte_tokenizer, progress=False)
    assert scores.columns.tolist() == whole.columns.tolist()
    assert len(plop.place(scores, parameters=10_000, r=2).types) >= 1
    one = {name: means[name] for name in list(means)[:1]}
    assert set(
        nfn_without(tiny_llama, TEXTS, byte_tokenizer, one, progress=False)["module"]
    ) == set(one)


def test_interventions_change_one_thing(tiny_llama, byte_tokenizer):
    changed = interventions(TEXTS, byte_tokenizer, seed=1)
    original = [batch["input_ids"][0] for batch in changed["as it is"]]
    assert [ids.tolist() for ids in original] == byte_tokenizer(TEXTS)["input_ids"]
    _, masked_batches, shuffled_batches, drawn_batches = changed.values()
    batches = zip(original, shuffled_batches, drawn_batches, masked_batches, strict=True)
    for ids, shuffled, drawn, masked in batches:
        assert shuffled["input_ids"][0].sort().values.tolist() == ids.sort().values.tolist()
        assert (
            drawn["input_ids"].shape[1] == len(ids)
            and drawn["input_ids"][0, 0] == shuffled["input_ids"][0, 0] == ids[0]
        )
        assert masked["score_mask"][0].tolist() == [0] + [1] * (len(ids) - 1)
    np.testing.assert_allclose(
        split(tiny_llama, changed["as it is"])[PARTS],
        split(tiny_llama, TEXTS, byte_tokenizer)[PARTS],
        rtol=1e-4,
    )


def test_untrained_has_the_shape_and_leaves_the_random_state(tiny_llama):
    state = torch.random.get_rng_state()
    fresh = untrained(tiny_llama, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [p.shape for p in fresh.parameters()] == [p.shape for p in tiny_llama.parameters()]
    assert not torch.equal(fresh.lm_head.weight, tiny_llama.lm_head.weight)


def test_bad_directions(tiny_llama, byte_tokenizer):
    name = "model.layers.0.mlp.up_proj"
    for directions, message in [
        ({"model.nowhere": torch.ones(32)}, "'model.nowhere', which is no scored map"),
        ({name: torch.ones(5)}, "has 5 entries, but the map takes 32"),
        ({name: torch.zeros(32)}, "is zero or not finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            nfn_without(tiny_llama, TEXTS, byte_tokenizer, directions)


def test_bad_input(tiny_llama, byte_tokenizer):
    with pytest.raises(TypeError, match="data is one str"):
        split(tiny_llama, "a text", byte_tokenizer)
    with pytest.raises(ValueError, match="data is empty"):
        split(tiny_llama, [], byte_tokenizer)
    with pytest.raises(TypeError, match="tokenizer is missing"):
        split(tiny_llama, TEXTS)
    with pytest.raises(ValueError, match="batch_size=0"):
        split(tiny_llama, TEXTS, byte_tokenizer, batch_size=0)


def test_stacks_of_experts_are_left_out_with_a_word():
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
    )
    model = MixtralForCausalLM(config).eval()
    with pytest.warns(UserWarning, match="experts, which are left out"):
        table = split(model, [{"input_ids": torch.arange(10)[None]}])
    assert {"q_proj", "v_proj"} <= set(table["type"]) and not table["module"].str.contains(
        "experts"
    ).any()
    np.testing.assert_allclose(
        table["mean_part"] + table["centred_part"], table["mean_square"], rtol=1e-3
    )


# The engine under it is that of `nfn_scores`


def test_automatic_batches_that_run_out_of_memory_do_not_count_twice(tiny_llama, byte_tokenizer):
    """A failed forward has already shown its inputs to the hooks: what it added up has to go
    again."""
    expected = split(tiny_llama, TEXTS, byte_tokenizer)
    failed = []

    def fail_once(*_):
        if len(failed) < 2:
            failed.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory.")

    handle = tiny_llama.model.layers[1].mlp.register_forward_pre_hook(fail_once)
    found = split(tiny_llama, TEXTS, byte_tokenizer, batch_size="auto")
    handle.remove()
    assert len(failed) == 2
    pd.testing.assert_frame_equal(found, expected, rtol=1e-5)


@pytest.mark.parametrize("stopped_after", [1, 3, 5, 7])
def test_an_interrupted_split_goes_on(tiny_llama, byte_tokenizer, tmp_path, stopped_after):
    """In the first pass or in the second: nothing is lost, and nothing counts twice."""
    expected = split(tiny_llama, TEXTS, byte_tokenizer, batch_size=1)
    count = []

    def stop(*_):
        count.append(1)
        if len(count) > stopped_after:
            raise KeyboardInterrupt

    options = {"batch_size": 1, "partial": tmp_path / "split.jsonl"}
    handle = tiny_llama.model.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        split(tiny_llama, TEXTS, byte_tokenizer, **options)
    handle.remove()
    forwards = []
    handle = tiny_llama.model.register_forward_pre_hook(lambda *_: forwards.append(1))
    found = split(tiny_llama, TEXTS, byte_tokenizer, **options)
    handle.remove()
    assert len(forwards) == 2 * len(TEXTS) - stopped_after
    pd.testing.assert_frame_equal(found, expected, rtol=1e-5)
    assert split(tiny_llama, TEXTS, byte_tokenizer, **options).equals(found)


def test_samples_whose_sum_was_not_written_are_run_again(tiny_llama, byte_tokenizer, tmp_path):
    """The machine went down between the two files: the line of a sample is there, its vectors
    are not."""
    one, three = tmp_path / "one.jsonl", tmp_path / "three.jsonl"
    options = {"batch_size": 1, "progress": False}
    expected = mean_inputs(tiny_llama, TEXTS, byte_tokenizer, partial=one, **options)
    mean_inputs(tiny_llama, TEXTS[:3], byte_tokenizer, partial=three, **options)
    finished_before = three.read_text()
    later = [line for line in one.read_text().splitlines(True) if line not in finished_before]
    three.write_text(finished_before + "".join(later))
    found = mean_inputs(tiny_llama, TEXTS, byte_tokenizer, partial=three, **options)
    for name, mean in expected.items():
        torch.testing.assert_close(found[name], mean)


def test_a_file_of_another_measure_is_refused(tiny_llama, byte_tokenizer, tmp_path):
    path = tmp_path / "run.jsonl"
    means = mean_inputs(tiny_llama, TEXTS, byte_tokenizer, progress=False)
    nfn_without(tiny_llama, TEXTS, byte_tokenizer, means, progress=False, partial=path)
    with pytest.raises(ValueError, match="holds another run, its measure is 'removed"):
        plop.nfn_scores(tiny_llama, TEXTS, byte_tokenizer, progress=False, partial=path)
    other = {name: vector.flip(0) for name, vector in means.items()}
    with pytest.raises(ValueError, match="holds another run, its measure is 'removed"):
        nfn_without(tiny_llama, TEXTS, byte_tokenizer, other, progress=False, partial=path)


def test_an_observer_sees_inputs_outputs_and_padding(tiny_llama, byte_tokenizer):
    """What it sees is what the map read and made, without bias; what it returns is measured and
    added up."""
    seen = {}

    def observer(linear_map, z, features, mask):
        torch.testing.assert_close(features, z @ linear_map.weight.T, rtol=1e-4, atol=1e-4)
        seen[linear_map.name] = (z.shape[:2], mask.sum().item())
        return Observation(feature_norm=0 * mask, total=mask.sum())

    byte_tokenizer.pad_token = "!"
    batch = byte_tokenizer(TEXTS, padding=True, return_tensors="pt")
    with plop.record_norms(tiny_llama, observer=observer) as record, torch.no_grad():
        tiny_llama(**batch)
        tiny_llama(**batch)
    scored = plop.module_table(tiny_llama).query("status == 'scored'")["module"]
    real = batch["attention_mask"].sum().item()
    assert seen == dict.fromkeys(scored, (batch["input_ids"].shape, real))
    assert (record.frame()["nfn"] == 0).all() and (record.frame()["input_norm"] > 0).all()
    assert record.totals() == dict.fromkeys(scored, 2 * real)


def test_vectors_of_another_run_are_not_added(tiny_llama, byte_tokenizer, tmp_path):
    """Whoever deletes the file of samples, as the error says, need not know of the second file."""
    path = tmp_path / "means.jsonl"
    options = {"batch_size": 1, "progress": False}
    mean_inputs(tiny_llama, TEXTS[:2], byte_tokenizer, partial=path, **options)
    path.unlink()
    expected = mean_inputs(tiny_llama, TEXTS[2:], byte_tokenizer, **options)
    mean_inputs(tiny_llama, TEXTS[2:3], byte_tokenizer, partial=path, **options)
    (tmp_path / "means.jsonl.totals").unlink()  # the new run was interrupted before it wrote any
    path.write_text(path.read_text().splitlines(True)[0])
    found = mean_inputs(tiny_llama, TEXTS[2:], byte_tokenizer, partial=path, **options)
    for name, mean in expected.items():
        torch.testing.assert_close(found[name], mean)


@pytest.mark.parametrize("lost", ["file", "lines"])
def test_totals_that_the_file_does_not_cover_are_made_again(
    tiny_llama, byte_tokenizer, tmp_path, lost
):
    path = tmp_path / "means.jsonl"
    options = {"batch_size": 1, "progress": False}
    expected = mean_inputs(tiny_llama, TEXTS, byte_tokenizer, partial=path, **options)
    lines = path.read_text().splitlines(True)
    if lost == "lines":
        path.write_text("".join(lines[:3]))
    else:  # another run's totals lie beside a new file
        path.unlink()
    found = mean_inputs(tiny_llama, TEXTS, byte_tokenizer, partial=path, **options)
    for name, mean in expected.items():
        torch.testing.assert_close(found[name], mean)


def test_a_split_goes_on_from_its_means(tiny_llama, byte_tokenizer, tmp_path):
    """`mean_inputs` is the first pass of `mean_split`: one file serves both."""
    path = tmp_path / "run.jsonl"
    mean_inputs(tiny_llama, TEXTS, byte_tokenizer, partial=path, progress=False)
    forwards = []
    handle = tiny_llama.model.register_forward_pre_hook(lambda *_: forwards.append(1))
    found = split(tiny_llama, TEXTS, byte_tokenizer, partial=path)
    handle.remove()
    assert len(forwards) == 1  # the second pass
    pd.testing.assert_frame_equal(found, split(tiny_llama, TEXTS, byte_tokenizer), rtol=1e-5)


def test_directions_of_any_dtype(tiny_llama, byte_tokenizer):
    whole = {"model.layers.0.mlp.up_proj": torch.arange(32)}
    exact = {name: vector.float() for name, vector in whole.items()}
    scores = [
        nfn_without(tiny_llama, TEXTS, byte_tokenizer, directions, progress=False)
        for directions in (whole, exact)
    ]
    assert scores[0].equals(scores[1])


def test_one_text_is_no_list_of_texts(byte_tokenizer):
    with pytest.raises(TypeError, match="texts is one str, .* put it in a list"):
        interventions("a text", byte_tokenizer)
