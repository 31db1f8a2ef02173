"""Cost and size: nothing computed twice, offloaded models, batches that do not fit, interrupts,
several processes."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import disk_offload
from accelerate.hooks import AlignDevicesHook
from torch.profiler import ProfilerActivity, profile

import plop_nb as plop
from plop_nb import batches
from plop_nb.inputs import arguments
from plop_nb.norms import norms
from plop_nb.offload import offloaded_blocks
from tests import bench, large_model
from tests.conftest import TEXTS
from tests.test_architectures import inputs_of, rows
from tests.tiny_models import build

MANY = [f"{text} {i}" for i, text in enumerate(TEXTS * 8)]


def scored(model, tokenizer, **options):
    return plop.nfn_scores(model, MANY, tokenizer, progress=False, **options)


def same(one, other, rtol=1e-4):
    pd.testing.assert_frame_equal(one, other, rtol=rtol)


# --- nothing computed twice


def counted(operators, run):
    """How often each torch operator ran."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        run()
    return [
        sum(event.count for event in found.key_averages() if event.key == name)
        for name in operators
    ]


def test_one_norm_per_map_and_input_and_no_second_matmul(tiny_llama, byte_tokenizer):
    rows = batches.encode(MANY, byte_tokenizer, 256)
    own = batches.of_texts(
        rows, range(len(rows)), batches.BatchSize(8, torch.device("cpu")), tiny_llama, None
    )
    forwards = [arguments(tiny_llama.model, batch) for _, batch in own]

    def trunk():
        with torch.no_grad():
            for inputs in forwards:
                tiny_llama.model(**inputs)

    linear, norms = counted(["aten::linear", "aten::linalg_vector_norm"], trunk)
    operators = ["aten::linear", "aten::linalg_vector_norm", "aten::item"]
    run = counted(operators, lambda: scored(tiny_llama, byte_tokenizer))
    maps, inputs = (
        14,
        8,
    )  # two layers of seven maps; attention, o, MLP and down read four inputs in each
    assert norms == 0
    assert run[:2] == [
        linear,
        len(forwards) * (maps + inputs) + 2 * maps,
    ]  # and each weight's own norm, when it is checked and in the first forward
    assert run[2] <= 4 * len(
        forwards
    )  # nothing fetched module by module: the vocabulary check, the model's own mask


def peak_bytes(run):
    """Most memory that torch had allocated at any moment of `run`, above what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run()
    events = [
        event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    return np.cumsum(
        [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    ).max()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peak_memory_of_the_trunk_forward(smollm, dtype):
    """Under 2 % above a forward of the trunk on the largest batch, weights included."""
    model, tokenizer = (
        smollm if dtype == "float32" else plop.load_model(dtype=dtype, device="cpu", progress=False)
    )
    texts = sorted(
        plop.load_texts("math", n=12), key=lambda text: -len(tokenizer(text)["input_ids"])
    )
    rows = batches.encode(texts[:8], tokenizer, 256)
    ((_, largest),) = batches.of_texts(
        rows, range(8), batches.BatchSize(8, model.device), model, tokenizer
    )

    def trunk():
        with torch.no_grad():
            model.model(**largest, use_cache=False)

    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    trunk()
    forward = weights + peak_bytes(trunk)
    ours = weights + peak_bytes(lambda: plop.nfn_scores(model, texts, tokenizer, progress=False))
    assert ours / forward < 1.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_norms_in_chunks_are_the_norms(dtype):
    x = torch.randn(3, 700, 333).to(dtype)
    bias = torch.randn(333).to(dtype)
    torch.testing.assert_close(norms(x), x.float().norm(dim=-1))
    torch.testing.assert_close(norms(x, bias), (x.float() - bias.float()).norm(dim=-1))
    assert norms(x[:, :0]).shape == (3, 0)


@pytest.mark.slow
def test_the_naive_procedure_of_the_benchmark_scores_alike(smollm):
    model, tokenizer = smollm
    texts = plop.load_texts("math", n=16)
    torch.manual_seed(0)
    found = bench.naive(model=model, batches=bench.batched(tokenizer, texts, "cpu"))
    types = pd.Series({name: np.mean(values) for name, values in found.items()})
    types = types.groupby(types.index.str.rsplit(".", n=1).str[-1]).mean()
    ours = plop.by_type(plop.nfn_scores(model, texts, tokenizer, progress=False)).set_index("type")[
        "nfn"
    ]
    pd.testing.assert_series_equal(types.sort_values(), ours, rtol=0.02, check_names=False)


@pytest.mark.slow
def test_benchmark_reports_every_method(smollm):
    names = ["plain forward", "trunk forward", "plop_nb", "gradient norms"]
    table = bench.table(bench.compare(names, ["float32"], plop.load_texts("math", n=8), 1))
    assert (
        table["method"].tolist() == names
        and (table["seconds"] > 0).all()
        and (table["peak_mb"] > 0).all()
    )
    assert all(p.grad is None for p in smollm[0].parameters())


# --- models larger than memory


@pytest.fixture
def fetches(monkeypatch):
    """Modules whose offloaded weights were fetched."""
    found, original = [], AlignDevicesHook.pre_forward

    def counting(hook, module, *args, **kwargs):
        if hook.offload:
            found.append(module)
        return original(hook, module, *args, **kwargs)

    monkeypatch.setattr(AlignDevicesHook, "pre_forward", counting)
    return found


def test_each_block_is_fetched_once_for_all_texts(tiny_llama, byte_tokenizer, tmp_path, fetches):
    expected = scored(tiny_llama, byte_tokenizer)
    offloaded = disk_offload(tiny_llama, str(tmp_path), execution_device=torch.device("cpu"))
    same(scored(offloaded, byte_tokenizer, batch_size=4), expected)
    assert len(fetches) == len(set(fetches)) > 14
    assert all(p.is_meta for p in offloaded.parameters())
    same(
        scored(offloaded, byte_tokenizer, baseline="gaussian"),
        scored(offloaded, byte_tokenizer),
        rtol=0.1,
    )


@pytest.mark.parametrize(
    "model_type", ["albert", "bart", "bert", "gemma3_text", "gpt2", "mamba", "mixtral", "t5"]
)
def test_offloaded_architectures(model_type, tmp_path):
    """Shared layers, two stacks, masks by layer, Conv1D with biases, states, experts."""
    model = build(model_type)
    data = [inputs_of(model, model_type, rows()), inputs_of(model, model_type, rows()[:2])]
    expected = plop.nfn_scores(model, data, progress=False)
    offloaded = disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    same(plop.nfn_scores(offloaded, data, progress=False), expected)


def test_an_error_inside_puts_everything_back(tiny_llama, byte_tokenizer, tmp_path):
    offloaded = disk_offload(tiny_llama, str(tmp_path), execution_device=torch.device("cpu"))
    expected = scored(offloaded, byte_tokenizer)

    def fail(*_):
        raise RuntimeError("from inside")

    handle = offloaded.model.layers[1].mlp.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="from inside"):
        scored(offloaded, byte_tokenizer)
    handle.remove()
    assert all(p.is_meta for p in offloaded.parameters())
    assert not any(m._forward_pre_hooks for m in offloaded_blocks(offloaded))
    same(scored(offloaded, byte_tokenizer), expected)


def test_weights_that_were_never_loaded(byte_tokenizer, tiny_llama):
    with pytest.raises(
        ValueError, match=r"layers\.0\.self_attn\.q_proj' has no weights, it is on the meta device"
    ):
        scored(tiny_llama.to("meta"), byte_tokenizer)


@pytest.mark.slow
def test_model_larger_than_its_process_may_be(tmp_path):
    """1.3 GB of weights in a process that may have half of that: killed when loaded whole,
    scored when offloaded."""
    size = large_model.write_model(tmp_path, large_model.config(layers=12, width=2048))
    assert size > 1.25e9

    def run(name, limit, **how):
        return large_model.in_child(tmp_path, tmp_path / name, limit, texts=8, tokens=32, **how)

    limit = large_model.libraries() + size / 2 / large_model.GB
    with pytest.raises(MemoryError, match="killed: resident memory passed"):
        run("killed.csv", limit, offload=False)
    assert run("limited.csv", limit)["peak_gb"] < limit
    run("whole.csv", None, offload=False)
    assert large_model.largest_difference([tmp_path / "limited.csv", tmp_path / "whole.csv"]) < 1e-3


# --- batches that do not fit


@pytest.fixture
def small_memory(tiny_llama):
    """tiny_llama on a machine whose memory ends at 300 token positions; .shapes of the forwards
    that fitted."""
    tiny_llama.shapes = []

    def check(_, args, kwargs):
        ids = kwargs["input_ids"]
        if ids.numel() > 300:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        tiny_llama.shapes.append(tuple(ids.shape))

    tiny_llama.model.register_forward_pre_hook(check, with_kwargs=True)
    return tiny_llama


def test_auto_halves_and_loses_no_sample(small_memory, byte_tokenizer):
    expected = scored(small_memory, byte_tokenizer, batch_size=2)
    small_memory.shapes.clear()
    same(scored(small_memory, byte_tokenizer, batch_size="auto"), expected)
    assert max(n for n, _ in small_memory.shapes) > 2 and sum(
        n for n, _ in small_memory.shapes
    ) == len(MANY)


def test_auto_grows(tiny_llama, byte_tokenizer, monkeypatch):
    sizes = []

    def note(_, args, kwargs):
        return sizes.append(len(kwargs["input_ids"]))

    handle = tiny_llama.model.register_forward_pre_hook(note, with_kwargs=True)
    grown = plop.nfn_scores(tiny_llama, MANY * 4, byte_tokenizer, batch_size="auto", progress=False)
    assert sizes[:2] == [8, 16] and max(n * 45 for n in sizes) <= 2 * batches.AUTO_TOKENS["cpu"]
    handle.remove()
    same(grown[grown["sample"] < len(MANY)], scored(tiny_llama, byte_tokenizer))


@pytest.mark.slow
def test_auto_halves_batches_of_a_collator(small_memory, byte_tokenizer):
    byte_tokenizer.pad_token = "!"
    data = [
        dict(byte_tokenizer(MANY[i : i + 16], padding=True, return_tensors="pt")) for i in (0, 16)
    ]
    found = plop.nfn_scores(small_memory, data, batch_size="auto", progress=False)
    same(found, scored(small_memory, byte_tokenizer, batch_size=2))


@pytest.mark.parametrize(
    ("size", "remedy"), [(32, 'pass batch_size="auto", or a smaller one'), ("auto", "max_length")]
)
def test_out_of_memory_for_good(small_memory, byte_tokenizer, size, remedy):
    texts = MANY if size == 32 else ["a" * 400]
    with pytest.raises(torch.OutOfMemoryError) as caught:
        plop.nfn_scores(
            small_memory, texts, byte_tokenizer, batch_size=size, max_length=500, progress=False
        )
    assert remedy in caught.value.__notes__[0]
    assert not small_memory.model.layers[0].self_attn.q_proj._forward_hooks


# --- several threads and processes


def test_two_threads_score_one_model_at_once(tiny_llama, byte_tokenizer):
    """Each sees the forwards of its own texts."""
    shares = [MANY[:12], [text[:5] for text in MANY[12:24]]]

    def run(texts):
        return plop.nfn_scores(tiny_llama, texts, byte_tokenizer, batch_size=1, progress=False)

    expected = list(map(run, shares))
    with ThreadPoolExecutor(2) as pool:
        for found, alone in zip(pool.map(run, shares), expected, strict=True):
            same(found, alone)


SCRIPT = """
import sys, torch, plop_nb as plop
from accelerate import PartialState
from tests.test_scale import MANY
model, tokenizer = plop.load_model(dtype="float32", device="cpu", progress=False)
texts = MANY[:3] if sys.argv[2] == "few" else MANY[:11]
state = PartialState(cpu=True)
if sys.argv[2] == "bad" and state.process_index == 1:
    model.model.layers[3].mlp.up_proj.weight.data[0] = float("nan")
scores = plop.nfn_scores(model, texts, tokenizer, batch_size=1 if sys.argv[2] == "few" else 4)
own = plop.nfn_scores(model, texts[:1], tokenizer, distribute=False)
assert own["sample"].nunique() == 1
scores.to_csv(f"{sys.argv[1]}/{state.process_index}.csv", index=False)
if sys.argv[2] == "all":
    split = plop.mean_split(model, texts, tokenizer, progress=False)
    split.to_csv(f"{sys.argv[1]}/split{state.process_index}.csv", index=False)
"""


def launched(tmp_path, kind, script=SCRIPT):
    (tmp_path / "script.py").write_text(script)
    # On a CPU `accelerate launch --cpu` starts one process, or needs MPI; this way it starts two,
    # without any GPU.
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
    ]
    command += [
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--num_cpu_threads_per_process",
        "1",
    ]
    command += ["--main_process_port", "0", str(tmp_path / "script.py"), str(tmp_path), kind]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "ACCELERATE_USE_CPU": "true",
    }
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.mark.slow
def test_two_processes_give_the_frame_of_one(smollm, tmp_path):
    done = launched(tmp_path, "all")
    assert done.returncode == 0, done.stderr[-2000:]
    expected = plop.nfn_scores(smollm[0], MANY[:11], smollm[1], progress=False)
    for process in (0, 1):
        found = pd.read_csv(tmp_path / f"{process}.csv").astype({"layer": "Int64"})
        same(found, expected, rtol=1e-5)
    expected = plop.mean_split(smollm[0], MANY[:11], smollm[1], progress=False)
    for process in (0, 1):
        found = pd.read_csv(tmp_path / f"split{process}.csv").astype({"layer": "Int64"})
        same(found, expected, rtol=1e-4)


@pytest.mark.slow
def test_an_error_in_one_process_ends_both(tmp_path):
    done = launched(tmp_path, "bad")
    assert done.returncode != 0
    assert "module 'model.layers.3.mlp.up_proj' has NaN or infinite weights" in done.stderr
