"""Interrupted runs: what `partial=` keeps, what it returns, and what it refuses."""

import copy
import errno
import json
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import disk_offload
from safetensors import SafetensorError
from torch import nn

import plop_nb as plop
from plop_nb import checkpoint, finished_files, scoring
from plop_nb import processes as processes_of
from plop_nb.checkpoint import key
from plop_nb.finished_files import opened
from plop_nb.geometry import mean_inputs
from plop_nb.processes import Process
from tests.conftest import TEXTS
from tests.test_scale import MANY, launched, same
from tests.tiny_models import build


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.jsonl"


@pytest.fixture
def run(tiny_llama, byte_tokenizer, path):
    """`nfn_scores` of some texts, four of MANY at first, that are kept in `path`."""

    def scored(texts=MANY[:4], **options):
        options = {"progress": False, "partial": path, "batch_size": 1} | options
        return plop.nfn_scores(tiny_llama, texts, byte_tokenizer, **options)

    return scored


def forwards(model, call):
    """How many forwards of the trunk a call makes."""
    count = []
    handle = model.model.register_forward_pre_hook(lambda *_: count.append(1))
    try:
        call()
    finally:
        handle.remove()
    return len(count)


# --- interrupted runs


def interrupted(model, after, run):
    """`run` with an interrupt at the forward after this many; how many forwards there were in
    all."""
    count = []

    def stop(*_):
        count.append(1)
        if len(count) > after:
            raise KeyboardInterrupt

    handle = model.model.register_forward_pre_hook(stop)
    try:
        run()
    except KeyboardInterrupt:
        pass
    finally:
        handle.remove()
    return len(count)


@pytest.mark.parametrize("kind", ["texts", "batches"])
def test_an_interrupted_run_goes_on(tiny_llama, byte_tokenizer, tmp_path, kind):
    byte_tokenizer.pad_token = "!"
    data = [
        dict(byte_tokenizer(MANY[i : i + 8], padding=True, return_tensors="pt"))
        for i in range(0, 32, 8)
    ]
    args = (MANY, byte_tokenizer) if kind == "texts" else (data,)
    expected = plop.nfn_scores(tiny_llama, *args, progress=False)

    def run():
        return plop.nfn_scores(tiny_llama, *args, progress=False, partial=tmp_path / "run.jsonl")

    assert interrupted(tiny_llama, 2, run) == 3
    with (tmp_path / "run.jsonl").open("a") as file:
        file.write('{"sample": 31, "key": "cut sh')  # the machine went down while it wrote
    found = []
    assert interrupted(tiny_llama, 9, lambda: found.append(run())) == 2
    same(found[0], expected)
    assert (
        interrupted(tiny_llama, 9, lambda: found.append(run())) == 0
    )  # a finished file needs no forward
    same(found[1], expected)


def test_a_partial_file_of_another_run_is_refused(tiny_llama, byte_tokenizer, tmp_path):
    path = tmp_path / "run.jsonl"

    def run(texts=MANY[:4], **options):
        return plop.nfn_scores(
            tiny_llama, texts, byte_tokenizer, progress=False, partial=path, **options
        )

    run()
    with pytest.raises(
        ValueError,
        match="holds another run, its baseline is 'rms', here 'gaussian': delete the file",
    ):
        run(baseline="gaussian")
    with pytest.raises(ValueError, match="has another text as sample 1: delete"):
        run(MANY[4:8])
    same(
        run(MANY[:6]), plop.nfn_scores(tiny_llama, MANY[:6], byte_tokenizer, progress=False)
    )  # more texts may come
    tiny_llama.model.layers[0].mlp.up_proj.weight.data *= 1.001
    with pytest.raises(ValueError, match="another run, its weights differ"):
        run()
    path.write_text('{"some": "file"}\n')
    with pytest.raises(ValueError, match="is a file of another kind"):
        run()
    assert path.read_text() == '{"some": "file"}\n'


def test_of_a_batch_cut_in_two_only_the_rest_is_run(tiny_llama, byte_tokenizer, tmp_path):
    """An interrupt between the halves of a collator's batch: no sample counts twice."""
    byte_tokenizer.pad_token = "!"
    whole = dict(byte_tokenizer(MANY[:8], padding=True, return_tensors="pt"))
    expected = plop.nfn_scores(tiny_llama, [whole], progress=False)
    path = tmp_path / "run.jsonl"
    half = {name: value[:4] for name, value in whole.items()}
    plop.nfn_scores(tiny_llama, [half], progress=False, partial=path)
    seen = []
    handle = tiny_llama.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    found = plop.nfn_scores(tiny_llama, [whole], progress=False, partial=path)
    handle.remove()
    assert seen == [4]
    same(found, expected)


def test_an_offloaded_split_goes_on_after_its_first_pass(tiny_llama, byte_tokenizer, tmp_path):
    """No map has been met in this call, so no baseline is known from its forwards."""
    folder, path = tmp_path / "weights", tmp_path / "run.jsonl"
    offloaded_llama = disk_offload(tiny_llama, str(folder), execution_device=torch.device("cpu"))
    texts = MANY[:3]
    expected = plop.mean_split(offloaded_llama, texts, byte_tokenizer, progress=False)
    first = plop.mean_split(offloaded_llama, texts, byte_tokenizer, progress=False, partial=path)
    again = plop.mean_split(offloaded_llama, texts, byte_tokenizer, progress=False, partial=path)
    pd.testing.assert_frame_equal(first, expected, rtol=1e-5)
    assert again.equals(first)


# --- what is returned


def test_only_the_samples_asked_for_are_returned(run, tiny_llama):
    four = run()
    two = run(MANY[:2])
    same(two, four[four["sample"] < 2].reset_index(drop=True))
    assert forwards(tiny_llama, run) == 0  # the others are still in the file
    batch = {"input_ids": torch.arange(6)[None]}
    found = plop.nfn_scores(tiny_llama, [batch], progress=False)
    assert found["sample"].unique().tolist() == [0]


def test_only_the_batches_asked_for_are_returned(tiny_llama, path):
    data = [{"input_ids": torch.arange(6)[None] + i} for i in range(4)]
    options = {"progress": False, "partial": path}
    four = plop.nfn_scores(tiny_llama, data, **options)
    found = plop.nfn_scores(tiny_llama, data[:2], **options)
    same(found, four[four["sample"] < 2].reset_index(drop=True))


def test_sums_over_more_samples_than_asked_for_are_refused(tiny_llama, byte_tokenizer, path):
    options = {"progress": False, "partial": path}
    expected = mean_inputs(tiny_llama, TEXTS, byte_tokenizer, **options)
    with pytest.raises(ValueError, match="adds up 2 samples that data has not: pass the same"):
        mean_inputs(tiny_llama, TEXTS[:2], byte_tokenizer, **options)
    found = mean_inputs(tiny_llama, TEXTS, byte_tokenizer, **options)
    assert all(torch.equal(found[name], mean) for name, mean in expected.items())


def test_stop_takes_the_same_texts_whatever_is_finished(run, tiny_llama):
    """The first ten texts are no random draw of all: they count where they are drawn only."""
    expected = run(MANY, stop=0.9, k=7, partial=None)
    run(MANY[:10])
    found = []
    count = forwards(tiny_llama, lambda: found.append(run(MANY, stop=0.9, k=7)))
    same(found[0], expected)
    drawn = expected["sample"].unique()
    assert count == sum(drawn >= 10) < len(drawn) < len(MANY)


def test_a_map_without_a_score_in_a_finished_sample_has_none_at_all(run, path):
    """As in a run without an interrupt: a map whose padding is unclear once is never scored."""
    run(MANY[:2])
    first, *lines = map(json.loads, path.read_text().splitlines())
    lines[0]["unclear"] = ["model.layers.0.mlp.up_proj"]
    path.write_text("".join(json.dumps(line) + "\n" for line in (first, *lines)))
    with pytest.warns(UserWarning, match="1 padding unknown in a finished sample .*up_proj"):
        found = run(MANY[:4])
    assert found["sample"].nunique() == 4 and found["module"].nunique() == 13


# --- the same model?


def bigger_epsilon(model):
    model.model.norm.variance_epsilon = 1.0


def another_activation(model):
    model.model.layers[0].mlp.act_fn = nn.Tanh()


CHANGES = {
    "embedding": lambda model: model.model.embed_tokens.weight.data[7].neg_(),
    "norm": lambda model: model.model.layers[1].input_layernorm.weight.data[3].mul_(1.01),
    "bias": lambda model: model.model.layers[1].self_attn.q_proj.bias.data[0].add_(0.01),
    "rope": lambda model: model.model.rotary_emb.inv_freq.mul_(0.5),
    "scale": bigger_epsilon,
    "activation": another_activation,
    "config": lambda model: model.config.rope_parameters.update(rope_theta=7.0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_model_is_refused(run, tiny_llama, change):
    """None of these changes a map that is scored."""
    run()
    CHANGES[change](tiny_llama)
    with pytest.raises(ValueError, match="another run, its weights differ"):
        run()


def test_another_attention_is_refused(run, tiny_llama):
    run()
    tiny_llama.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="its attention is 'sdpa', here 'eager'"):
        run()


def test_a_compiled_model_is_known_again(run, tiny_llama, byte_tokenizer, path):
    expected = run()
    compiled = torch.compile(tiny_llama, backend="eager")
    found = []

    def again():
        options = {"progress": False, "partial": path}
        found.append(plop.nfn_scores(compiled, MANY[:4], byte_tokenizer, **options))

    assert forwards(tiny_llama, again) == 0
    same(found[0], expected)


# --- the same sample?

INPUTS = {
    "bfloat16": torch.randn(2, 3).bfloat16(),
    "bool": torch.tensor([True, False]),
    "empty": torch.zeros(0, 4),
    "scalar": torch.tensor(2.0),
    "sparse": torch.eye(3).to_sparse(),
    "with gradient": torch.ones(3, requires_grad=True),
    "transposed": torch.randn(3, 2).T,
}


@pytest.mark.parametrize("kind", INPUTS)
def test_samples_of_any_tensors_have_a_key(kind):
    row = {"input_ids": torch.arange(3), "attention_mask": torch.ones(3), "other": INPUTS[kind]}
    found = key(row)
    assert key({name: value.clone() for name, value in row.items()}) == found
    if kind != "empty":
        changed = row["other"].detach().to_dense() if kind == "sparse" else row["other"].detach()
        assert key(row | {"other": ~changed if kind == "bool" else changed + 1}) != found
    assert key(row | {"other": torch.zeros(0, 5)}) != found


def test_inputs_in_bfloat16_are_kept(tiny_llama, path):
    model = tiny_llama.bfloat16()
    embeds = model.model.embed_tokens(torch.arange(12).view(2, 6)).detach()
    data = [{"inputs_embeds": embeds, "attention_mask": torch.ones(2, 6, dtype=torch.bool)}]
    expected = plop.nfn_scores(model, data, progress=False)
    for _ in range(2):
        same(plop.nfn_scores(model, data, progress=False, partial=path), expected)


def test_another_score_mask_is_another_sample(tiny_llama, path):
    ids = torch.arange(6)[None]

    def scored(mask):
        data = [{"input_ids": ids, "score_mask": torch.tensor([mask])}]
        return plop.nfn_scores(tiny_llama, data, progress=False, partial=path)

    scored([1, 1, 1, 1, 1, 1])
    with pytest.raises(ValueError, match="has another text as sample 0"):
        scored([0, 1, 1, 1, 1, 1])


# --- the file


def test_a_finished_file_is_only_read(run, path):
    run()
    path.chmod(0o400)
    before = path.stat()
    content = path.read_bytes()
    run()
    run(MANY[:2])
    after = path.stat()
    assert path.read_bytes() == content
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)


def test_going_on_leaves_what_was_written_as_it_is(run, path):
    run()
    content, inode = path.read_bytes(), path.stat().st_ino
    run(MANY[:6])
    assert path.read_bytes().startswith(content) and path.stat().st_ino == inode
    assert len(path.read_bytes().splitlines()) == 1 + 6


@pytest.mark.parametrize("damage", [b'{"sample": 1, "ke', b"\xff\x00\x80", b"[]", b'{"sample": 1}'])
def test_a_damaged_line_costs_one_sample(run, tiny_llama, path, damage):
    expected = run()
    lines = path.read_bytes().splitlines()
    lines[2] = damage
    path.write_bytes(b"\n".join(lines) + b"\n")
    found = []
    with pytest.warns(UserWarning, match="has 1 entries that are damaged: they are left out"):
        count = forwards(tiny_llama, lambda: found.append(run()))
    assert count == 1
    same(found[0], expected)


def test_a_cut_line_goes_without_a_word(run, path):
    expected = run()
    content = path.read_bytes()
    path.write_bytes(content[:-9])
    same(run(), expected)
    assert path.read_bytes() == content


def test_a_line_that_lacks_only_its_break_is_kept(run, tiny_llama, path):
    run()
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert forwards(tiny_llama, lambda: run(MANY[:5])) == 1
    assert len(path.read_text().splitlines()) == 6


def test_blank_lines_do_no_harm(run, tiny_llama, path, recwarn):
    run()
    with path.open("a") as file:
        file.write("\n\n")
    assert forwards(tiny_llama, lambda: run(MANY[:5])) == 1
    assert not [warning for warning in recwarn if "damaged" in str(warning.message)]


@pytest.mark.parametrize("content", [b"", b'{"settings": {"format": 2, "basel'])
def test_a_file_that_was_only_begun_is_begun_again(run, tiny_llama, path, content):
    path.write_bytes(content)
    expected = run()
    assert forwards(tiny_llama, lambda: same(run(), expected)) == 0


@pytest.mark.parametrize("content", [b"a list", b"a list\nof texts\n", b'{"sample": 0}\n', b"\n"])
def test_a_file_of_another_kind_is_left_alone(run, path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is a file of another kind: name a new file"):
        run()
    assert path.read_bytes() == content


def test_a_path_that_is_none(run, tmp_path):
    with pytest.raises(ValueError, match="partial=.* is a folder: name a file in it"):
        run(partial=tmp_path)
    with pytest.raises(ValueError, match="partial=.*: its folder does not exist, make it first"):
        run(partial=tmp_path / "no" / "run.jsonl")
    with pytest.raises(ValueError, match="partial='/dev/null' is a device: name a file"):
        run(partial="/dev/null")
    with pytest.raises(TypeError, match="partial=True is bool, expected the path of a file"):
        run(partial=True)


class FullDisk:
    """A file on a disk that has room for half of what is written."""

    def __init__(self, file):
        self._file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, content):
        self._file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_costs_the_samples_that_did_not_fit(run, tiny_llama, path, monkeypatch):
    run(MANY[:2])
    content, original = path.read_bytes(), Path.open
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", lambda *args, **more: FullDisk(original(*args, **more)))
        with pytest.raises(OSError, match=r"cannot be written to \(No space left .* make room"):
            run()
    assert path.read_bytes() == content
    assert not tiny_llama.model.layers[0].self_attn.q_proj._forward_hooks
    assert forwards(tiny_llama, run) == 2


def test_a_full_disk_at_the_first_line_leaves_a_file_that_can_be_begun(run, path, monkeypatch):
    original = Path.open
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", lambda *args, **more: FullDisk(original(*args, **more)))
        with pytest.raises(OSError, match="No space left"):
            run()
    assert path.read_bytes() == b""
    run()


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left")]
)
def test_a_full_disk_leaves_the_sums_as_they_were(
    tiny_llama, byte_tokenizer, path, monkeypatch, error
):
    options = {"progress": False, "batch_size": 1}
    expected = mean_inputs(tiny_llama, TEXTS, byte_tokenizer, **options)
    options["partial"] = path
    mean_inputs(tiny_llama, TEXTS[:2], byte_tokenizer, **options)
    content = path.with_name("run.jsonl.totals").read_bytes()

    def full(tensors, file, metadata):
        Path(file).write_bytes(b"half")
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_file", full)
        with pytest.raises(OSError, match=r"totals' cannot be written to \(No space left"):
            mean_inputs(tiny_llama, TEXTS, byte_tokenizer, **options)
    assert path.with_name("run.jsonl.totals").read_bytes() == content
    assert not list(path.parent.glob("*.unfinished"))
    found = mean_inputs(tiny_llama, TEXTS, byte_tokenizer, **options)
    for name, mean in expected.items():
        torch.testing.assert_close(found[name], mean)


def test_damaged_sums_are_made_again(tiny_llama, byte_tokenizer, path):
    options = {"progress": False, "partial": path}
    expected = mean_inputs(tiny_llama, TEXTS, byte_tokenizer, **options)
    path.with_name("run.jsonl.totals").write_bytes(b"no safetensors")
    with pytest.warns(UserWarning, match="has 1 entries that are damaged"):
        found = mean_inputs(tiny_llama, TEXTS, byte_tokenizer, **options)
    for name, mean in expected.items():
        torch.testing.assert_close(found[name], mean)


def test_of_two_runs_at_once_the_second_is_refused(run, path):
    with opened(path, Process()):
        with pytest.raises(ValueError, match="is being written by another run: wait for it"):
            run()
        assert not path.exists()
    run()


def test_a_file_reached_by_a_link_is_locked_too(run, path):
    link = path.with_name("link.jsonl")
    link.symlink_to(path)
    with opened(path, Process()):
        with pytest.raises(ValueError, match="link.jsonl' is being written by another run"):
            run(partial=link)


def test_a_copy_beside_the_file_takes_nothing_from_it(run, tiny_llama, path):
    """As of a copy made by hand, under the name of a process's file."""
    expected = run()
    path.with_name("run.jsonl.process0").write_bytes(path.read_bytes())
    assert forwards(tiny_llama, lambda: same(run(), expected)) == 0
    assert len(path.read_text().splitlines()) == 5


def test_numbers_of_numpy_are_settings(run, tiny_llama):
    run(seed=np.int64(3), max_length=np.int64(9))
    assert forwards(tiny_llama, lambda: run(seed=3, max_length=9)) == 0


@pytest.mark.slow
def test_the_lock_of_a_killed_run_does_not_count(run, tiny_llama, path):
    script = f"""
import os, signal
from plop_nb.finished_files import opened
from plop_nb.processes import Process
with opened({str(path)!r}, Process()):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[1])
    assert done.returncode < 0 and list(path.parent.iterdir())
    run()


# --- by any number of processes


class Processes:
    """Threads in the place of processes: each with a model of its own, and a rank."""

    def __init__(self, model, number):
        self._models = [copy.deepcopy(model) for _ in range(number)]
        self._number, self._barrier = number, threading.Barrier(number, timeout=20)
        self._process, self._results = threading.local(), [b""] * number

    def this_process(self, distribute=True):
        return self._process.value

    def gathered(self, result, process):
        self._results[process.rank] = pickle.dumps(result)
        self._barrier.wait()
        results = list(map(pickle.loads, self._results))
        self._barrier.wait()
        for each in results:
            if isinstance(each, Exception):
                raise each
        return results

    def __call__(self, call):
        """`(call(model), forwards)` in each process."""

        def one(rank):
            self._process.value = Process(rank, self._number)
            model, found = self._models[rank], []
            count = forwards(model, lambda: found.append(call(model)))
            return found[0], count

        with ThreadPoolExecutor(self._number) as pool:
            return list(pool.map(one, range(self._number)))


@pytest.fixture
def processes(tiny_llama, monkeypatch):
    """`processes(number)`: what behaves like so many processes."""

    def start(number):
        several = Processes(tiny_llama, number)
        monkeypatch.setattr(scoring, "this_process", several.this_process)
        for module in (scoring, finished_files):
            monkeypatch.setattr(module, "gathered", several.gathered)
        return several

    return start


@pytest.mark.parametrize("kind", ["texts", "batches"])
def test_any_number_of_processes_goes_on(byte_tokenizer, path, processes, kind):
    """Two processes begin, three go on, one ends: each sample is run once, by whomever."""
    data = texts = MANY[:7]
    if kind == "batches":
        data = [{"input_ids": byte_tokenizer(t, return_tensors="pt")["input_ids"]} for t in texts]

    def scored(number, part):
        options = {"progress": False, "partial": path, "batch_size": 1}
        done = processes(number)(
            lambda model: plop.nfn_scores(model, part, byte_tokenizer, **options)
        )
        expected = processes(1)(
            lambda model: plop.nfn_scores(model, part, byte_tokenizer, progress=False)
        )
        for found, _ in done:
            same(found, expected[0][0])
        return sum(count for _, count in done)

    assert [scored(2, data[:3]), scored(3, data[:5]), scored(1, data)] == [3, 2, 2]
    assert [scored(2, data[:2]), scored(3, data)] == [0, 0]
    names = {file.name for file in path.parent.iterdir() if file.suffix != ".lock"}
    assert names == {"run.jsonl", "run.jsonl.process0", "run.jsonl.process1", "run.jsonl.process2"}


def test_sums_of_any_number_of_processes_are_added_once(byte_tokenizer, path, processes):
    def means(number, texts, **options):
        return processes(number)(
            lambda model: mean_inputs(
                model, texts, byte_tokenizer, progress=False, batch_size=1, **options
            )
        )

    for number, texts, left in [(2, 5, 5), (3, 7, 2), (1, 8, 1), (2, 8, 0)]:
        ((expected, _),) = means(1, MANY[:texts])
        done = means(number, MANY[:texts], partial=path)
        assert sum(count for _, count in done) == left
        for found, _ in done:
            for name, mean in expected.items():
                torch.testing.assert_close(found[name], mean)


def test_a_split_goes_on_from_sums_in_any_order(byte_tokenizer, path, processes):
    """Its second pass is of means to the last bit, however many have added them up."""

    def split(number, texts):
        options = {"progress": False, "batch_size": 1, "partial": path}
        return processes(number)(
            lambda model: plop.mean_split(model, texts, byte_tokenizer, **options)
        )

    processes(3)(
        lambda model: mean_inputs(
            model, MANY[:11], byte_tokenizer, progress=False, batch_size=1, partial=path
        )
    )
    (expected, _), _ = split(2, MANY)
    ((found, count),) = split(1, MANY)
    assert count == 0
    pd.testing.assert_frame_equal(found, expected)


def test_samples_that_two_files_add_up_count_once(tiny_llama, byte_tokenizer, path):
    """Two runs at once, of one process and of two, have both done the first samples."""
    options = {"progress": False, "batch_size": 1}
    expected = mean_inputs(tiny_llama, MANY[:5], byte_tokenizer, **options)
    other = path.with_name("other.jsonl")
    mean_inputs(tiny_llama, MANY[:3], byte_tokenizer, **options, partial=path)
    mean_inputs(tiny_llama, MANY[:4], byte_tokenizer, **options, partial=other)
    for suffix in ("", ".totals"):
        other.with_name(f"other.jsonl{suffix}").rename(f"{path}.process0{suffix}")
    for _ in range(2):
        found = mean_inputs(tiny_llama, MANY[:5], byte_tokenizer, **options, partial=path)
        for name, mean in expected.items():
            torch.testing.assert_close(found[name], mean)


def test_files_on_disks_that_only_one_process_can_read_count(byte_tokenizer, tmp_path, processes):
    several = processes(2)
    for rank in (0, 1):
        (tmp_path / f"disk{rank}").mkdir()

    def run(texts):
        def scored(model):
            path = tmp_path / f"disk{several.this_process().rank}" / "run.jsonl"
            options = {"progress": False, "batch_size": 1, "partial": path}
            return plop.nfn_scores(model, texts, byte_tokenizer, **options)

        return several(scored)

    assert [count for _, count in run(MANY[:3])] == [2, 1]
    assert sum(count for _, count in run(MANY[:8])) == 5  # whoever's turn the first three are
    ((found, count), (other, none)) = run(MANY[:7])
    assert count == none == 0 and found["sample"].nunique() == 7
    same(found, other)


def test_an_error_of_one_process_is_raised_in_all(byte_tokenizer, path, processes):
    """Also one before any forward: none of them waits for the others."""
    several = processes(2)
    path.with_name("run.jsonl.process1").mkdir()
    errors = []

    def run(model):
        with pytest.raises(ValueError, match="run.jsonl.process1' is a folder") as caught:
            plop.nfn_scores(model, MANY[:3], byte_tokenizer, progress=False, partial=path)
        errors.append(caught.value)

    several(run)
    assert len(errors) == 2


SCRIPT = """
import sys, torch, plop_nb as plop
from accelerate import PartialState
from plop_nb.geometry import mean_inputs
from tests.test_partial import BATCHES
from tests.tiny_models import build
model, folder = build("llama"), sys.argv[1]
count = []
model.model.register_forward_pre_hook(lambda *_: count.append(1))
scores = plop.nfn_scores(model, BATCHES, progress=False, partial=f"{folder}/scores.jsonl")
means = mean_inputs(model, BATCHES, progress=False, partial=f"{folder}/means.jsonl")
rank = PartialState(cpu=True).process_index
scores.to_csv(f"{folder}/{rank}.csv", index=False)
torch.save(means, f"{folder}/{rank}.pt")
torch.save(len(count), f"{folder}/{rank}.forwards")
"""
BATCHES = [{"input_ids": torch.arange(5)[None] + i} for i in range(6)]


@pytest.mark.slow
def test_two_processes_go_on_from_one_and_one_from_two(tmp_path):
    model = build("llama")
    scores, means = tmp_path / "scores.jsonl", tmp_path / "means.jsonl"
    plop.nfn_scores(model, BATCHES[:3], progress=False, partial=scores)
    mean_inputs(model, BATCHES[:3], progress=False, partial=means)
    done = launched(tmp_path, "", script=SCRIPT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert sum(torch.load(file) for file in tmp_path.glob("*.forwards")) == 2 * 3
    expected = plop.nfn_scores(model, BATCHES, progress=False)
    expected_means = mean_inputs(model, BATCHES, progress=False)

    def check(found, found_means):
        same(found.astype({"layer": "Int64"}), expected)
        for name, mean in expected_means.items():
            torch.testing.assert_close(found_means[name], mean)

    for rank in (0, 1):
        check(pd.read_csv(tmp_path / f"{rank}.csv"), torch.load(tmp_path / f"{rank}.pt"))
    found = []

    def again():
        found.append(plop.nfn_scores(model, BATCHES, progress=False, partial=scores))
        found.append(mean_inputs(model, BATCHES, progress=False, partial=means))

    assert forwards(model, again) == 0
    check(*found)


# --- found by a second reader


def test_two_runs_on_a_disk_without_locks_lose_nothing(run, path, monkeypatch):
    monkeypatch.setattr(finished_files.FileLock, "acquire", lock_that_fails)
    run(MANY[:2])
    other = path.read_bytes()

    def append(*_):
        with path.open("ab") as file:
            file.write(b'{"sample": 99}\n')

    monkeypatch.setattr(checkpoint, "key", with_side_effect(checkpoint.key, append))
    with pytest.raises(ValueError, match="was written by another run meanwhile"):
        run(MANY[:3])
    assert path.read_bytes().startswith(other + b'{"sample": 99}\n')


def lock_that_fails(*_, **__):
    raise OSError(errno.ENOLCK, "no locks available")


def with_side_effect(function, effect):
    def called(*given):
        effect()
        return function(*given)

    return called


@pytest.mark.parametrize("name", ["run.jsonl.1", "run.jsonl.2024", "run.jsonl.backup"])
def test_files_of_like_names_are_no_matter(run, path, name):
    expected = run()
    path.with_name(name).write_text("my notes")
    same(run(), expected)
    assert path.with_name(name).read_text() == "my notes"


@pytest.mark.parametrize(("column", "value"), [("nfn", None), ("map", -1), ("tokens", "7")])
def test_damaged_numbers_in_a_line_cost_its_sample(run, tiny_llama, path, column, value):
    expected = run()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[2][column][0] = value
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.warns(UserWarning, match="has 1 entries that are damaged"):
        same(run(), expected)


def test_a_first_line_without_its_baselines_is_of_another_kind(run, path):
    run()
    lines = path.read_text().splitlines()
    head = json.loads(lines[0])
    del head["gains"]
    path.write_text("\n".join([json.dumps(head), *lines[1:]]) + "\n")
    with pytest.raises(ValueError, match="a file of another kind"):
        run()


def test_sums_of_a_file_that_was_deleted_do_not_count(tiny_llama, byte_tokenizer, path):
    def summed(texts):
        options = {"progress": False, "partial": path}
        return mean_inputs(tiny_llama, texts, byte_tokenizer, **options)

    expected = mean_inputs(tiny_llama, MANY[:2], byte_tokenizer, progress=False)
    summed(MANY[:4])
    path.unlink()  # and not what lies beside it
    for name, mean in summed(MANY[:2]).items():
        torch.testing.assert_close(mean, expected[name])


class BadRow(Exception):
    """Its pickle cannot be read: it takes two arguments, and hands on one."""

    def __init__(self, row, why):
        super().__init__(f"{row}: {why}")


def test_errors_that_cannot_be_sent_are_raised_where_they_are_and_told_elsewhere(monkeypatch):
    sent = []
    monkeypatch.setattr(processes_of, "gather_object", lambda found: sent.extend(found) or found)
    with pytest.raises(BadRow, match="17: no text"):
        processes_of.gathered(BadRow(17, "no text"), Process(0, 2))
    again = pickle.loads(pickle.dumps(sent[0]))
    assert isinstance(again, RuntimeError)
    assert str(again) == "process 0: BadRow: 17: no text"
