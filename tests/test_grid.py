"""Grids on Optuna: every run once, whatever is interrupted, killed, or shared by processes."""

import ast
import collections
import copy
import dataclasses
import importlib
import inspect
import os
import subprocess
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import optuna
import pandas as pd
import psutil
import pytest
import torch
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState
from peft import EvaConfig, LoraConfig

import plop_nb as plop
from plop_nb.experiments import Task, curves, finetune, grid, grids, load_task, read_runs
from plop_nb.experiments.grids import ownership
from plop_nb.experiments.grids.cells import (
    Board,
    Cell,
    Objective,
    finished_rows,
    run_cells,
    study_name,
)
from plop_nb.experiments.grids.hashing import deep_digest
from plop_nb.experiments.grids.keys import config_content
from plop_nb.experiments.grids.storage import open_storage, quiet_optuna
from plop_nb.experiments.tasks.answers import checker
from plop_nb.placement import Placement
from tests.tiny_models import build
from tests.toy_task import FEW, digits, is_completion, toy_task


@pytest.fixture
def task():
    return toy_task()


@pytest.fixture
def tokenizer(byte_tokenizer):
    byte_tokenizer.add_special_tokens({"eos_token": "<end>"})
    return byte_tokenizer


@pytest.fixture
def scores(tiny_llama, tokenizer):
    texts = [f"a text, number {i}" for i in range(8)]
    return plop.nfn_scores(tiny_llama, texts, tokenizer, progress=False)


@pytest.fixture
def placement(scores):
    return plop.place(scores, k=2)


@pytest.fixture
def count(monkeypatch):
    """Trainings are not run, but counted, and give a loss of their own."""
    runs = []

    def fake(model, task, tokenizer, placement, *, r=16, lr, seed, **options):
        if len(runs) == fake.breaks_after:
            raise fake.error("on purpose")
        runs.append((task.name, tuple(getattr(placement, "types", ())), r, lr, seed))
        loss = fake.losses.get(len(runs), len(runs) / 7)
        return {
            "task": task.name,
            "r": r,
            "lr": lr,
            "seed": seed,
            "split": "test",
            "accuracy": None,
            "steps": 1,
            "loss": loss,
            "curve": [[1, 2.0], [2, 1.0]],
        }

    fake.__signature__ = inspect.signature(finetune)
    fake.breaks_after, fake.error, fake.losses = None, RuntimeError, {}
    monkeypatch.setattr(grids, "finetune", fake)
    return runs


@pytest.fixture
def cells(tiny_llama, tokenizer, task, scores):
    placements = {
        "a": Placement.of_types(scores, ["q_proj"]),
        "b": Placement.of_types(scores, ["v_proj", "k_proj"]),
    }

    def run(**options):
        settings = {"seeds": [0, 1], "lrs": [1e-3, 1e-2], "progress": False}
        settings |= {"placements": placements} | options
        return grid(tiny_llama, [task], tokenizer, **settings)

    return run


def url(path):
    return f"sqlite:///{path}"


def storage_of(kind, folder):
    return folder / "runs.journal" if kind == "journal" else url(folder / "runs.db")


def trials_of(storage):
    """All trials of a storage, of every study."""
    with quiet_optuna():
        opened = open_storage(storage)
        trials = []
        for name in optuna.get_all_study_names(opened):
            trials += optuna.load_study(study_name=name, storage=opened).trials
        return trials


# A database is made anew for every test, by some forty migrations.
SQLITE = pytest.param("sqlite", marks=pytest.mark.slow)
both_kinds = pytest.mark.parametrize("kind", ["journal", SQLITE])


@both_kinds
def test_grid_is_tidy_and_resumes(cells, count, tmp_path, kind):
    storage = storage_of(kind, tmp_path)
    first = cells(storage=storage)
    assert len(count) == len(first) == 8 and len(trials_of(storage)) == 8
    assert first.columns[:2].tolist() == ["task", "placement"]
    assert not first.duplicated(["placement", "lr", "seed"]).any()
    again = cells(storage=storage)
    assert len(count) == 8
    pd.testing.assert_frame_equal(first, again)
    pd.testing.assert_frame_equal(read_runs(storage), first)
    # numpy's numbers are the same
    assert len(cells(storage=storage, seeds=np.arange(3))) == 12 and len(count) == 12
    points = curves(first)
    assert len(points) == 16 and points["train_loss"].tolist() == [2.0, 1.0] * 8
    assert "curve" not in points


@pytest.mark.slow
def test_the_columns_are_the_same_on_every_storage(cells, count, tmp_path):
    frames = [cells(), cells(storage=tmp_path / "a"), cells(storage=url(tmp_path / "b.db"))]
    for frame in frames:
        assert frame.columns.tolist() == frames[0].columns.tolist()
        assert frame["loss"].notna().all()


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 7},
        {"ranks": {"a": 3, "b": 3}},
        {"lora_alpha": 5},
        {"batch_size": 3},
        {"final": "validation"},
        {"max_length": 9},
        {"lrs": [5e-3, 5e-2]},
        {"seeds": [2, 3]},
        {"accuracy": False},
    ],
)
def test_every_setting_makes_another_run(cells, count, tmp_path, change):
    cells(storage=tmp_path / "r")
    cells(storage=tmp_path / "r", **change)
    assert len(count) == 16


def test_another_task_dtype_or_model_makes_another_run(tiny_llama, tokenizer, task, placement):
    def key(model=tiny_llama, task=task, tokenizer=tokenizer, **settings):
        return grids.run_key(model, grids.task_digest(task, tokenizer), placement, settings)

    other_test = Task("toy", task.train, task.validation, digits(8, 200), None, 5)
    fewer = Task("toy", task.train[1:], task.validation, task.test, None, 5)
    keys = [
        key(),
        key(task=other_test),
        key(task=fewer),
        key(model=build("llama")),
        key(model=copy.deepcopy(tiny_llama).bfloat16()),
    ]
    checkpoint = copy.deepcopy(tiny_llama)
    checkpoint.model.layers[1].mlp.up_proj.weight.data *= 1.01
    keys.append(key(model=checkpoint))
    assert len(set(keys)) == 6 and key() == keys[0]
    assert key(lora_alpha=32, r=16) == keys[0]  # the defaults, written out
    other = copy.deepcopy(tokenizer)
    other.eos_token = "!"
    keys.append(key(tokenizer=other))
    task.test[0]["entry"] = "what check reads"
    keys.append(key())
    task.validation.append(task.validation[0])
    assert len({*keys, key()}) == 9


def test_keys_are_what_they_were(placement):
    """As before `per_example`, `unrelated` and `LoraConfig` came: storages go on."""
    model = build("llama")
    model.config._name_or_path = "tiny"
    modules = [f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1)]
    placement = dataclasses.replace(placement, modules=modules)

    def key(placement=placement, digest="digest", **settings):
        settings = {"seed": 3, "lr": 1e-3, **settings}
        return grids.run_key(model, digest, placement, settings, "weights")

    assert key() == key(per_example=False) == key(r=16) == "5c7d0bd55340068f"
    assert key(r=4, lora_alpha=5, final="validation") == "89a9cf40b0ecccf7"
    assert len({key(), key(per_example=True), key(digest="digest" + "of unrelated")}) == 3
    assert key(unrelated="in the digest", progress=True, out="x") == key()


CONFIGS = [
    {"r": 4, "target_modules": ["q_proj", "k_proj", "v_proj"]},
    {"r": 5, "target_modules": ["q_proj", "k_proj", "v_proj"]},
    {"r": 4, "target_modules": ["q_proj", "k_proj"]},
    {"r": 4, "target_modules": ["q_proj", "k_proj", "v_proj"], "use_rslora": True},
    {"r": 4, "target_modules": "all-linear"},
    {"r": 4, "target_modules": "all-linear", "rank_pattern": {"q_proj": 2}},
    {"r": 4, "target_modules": "all-linear", "init_lora_weights": "eva"},
    {
        "r": 4,
        "target_modules": "all-linear",
        "init_lora_weights": "eva",
        "eva_config": EvaConfig(rho=3),
    },
]


def test_a_config_is_known_by_its_content(tiny_llama, placement):
    def key(placement):
        return grids.run_key(tiny_llama, "digest", placement, {"seed": 0}, "weights")

    keys = [key(LoraConfig(**options)) for options in CONFIGS]
    assert len({*keys, key(placement)}) == len(CONFIGS) + 1
    again = dict(CONFIGS[0], target_modules=["v_proj", "q_proj", "k_proj"])
    config = LoraConfig(**again)
    assert key(config) == keys[0]
    config.inference_mode, config.base_model_name_or_path = True, "where it was used"
    assert key(config) == keys[0]  # as PEFT notes it
    with pytest.raises(ValueError, match="r=3, but this placement is a LoraConfig"):
        grids.run_key(tiny_llama, "digest", config, {"r": 3}, "weights")


def test_the_key_of_a_config_is_the_same_in_every_process():
    """Its targets are a set, whose order changes with the hashing of texts."""
    config = LoraConfig(r=4, target_modules={f"part_{number}" for number in range(20)})
    content = config_content(config)
    assert content["target_modules"] == sorted(config.target_modules) and content["r"] == 4
    assert "lora_alpha" not in content  # PEFT's default


def test_a_grid_takes_configs_with_ranks_of_their_own(cells, count, placement):
    own = LoraConfig(r=3, target_modules=["q_proj"])
    frame = cells(placements={"own": own, "PLoP": placement}, ranks={"PLoP": 2})
    ranks = frame.groupby("placement")["r"].unique().apply(list).to_dict()
    assert ranks == {"own": [3], "PLoP": [2]} and len(count) == 8
    for given in ({"ranks": {"own": 2, "PLoP": 2}}, {"lora_alpha": 4}):
        with pytest.raises(ValueError, match="this placement is a LoraConfig, which has its own"):
            cells(placements={"own": own, "PLoP": placement}, **given)
    with pytest.raises(ValueError, match="hits nothing in LlamaForCausalLM"):
        cells(placements={"own": LoraConfig(target_modules=["w_proj"])})
    assert len(count) == 8


@pytest.mark.slow
def test_a_grid_passes_on_what_else_to_measure(tiny_llama, tokenizer, task, placement, tmp_path):
    unrelated = Task("words", [], [], [{"prompt": "the sky is", "completion": " blue"}])
    options = {"seeds": [0], "lrs": [1e-2], "ranks": {"PLoP": 2, "own": None}, "progress": False}
    few = {"steps": 2, "batch_size": 4, "logging_steps": 1}
    placements = {"PLoP": placement, "own": LoraConfig(r=2, target_modules=["q_proj"])}

    def run(**more):
        storage = tmp_path / "runs.journal"
        given = {**options, **few, **more, "storage": storage}
        return grid(tiny_llama, [task], tokenizer, placements, **given)

    plain, more = run(), run(unrelated=unrelated, per_example=True)
    assert set(plain["key"]).isdisjoint(more["key"])
    added = {"losses", "tokens", "exact", "unrelated_loss"}
    assert set(more.columns) - set(plain.columns) == added
    assert plain["loss"].tolist() == more["loss"].tolist()
    for name, row in more.set_index("placement").iterrows():
        rank = {"r": 2} if name == "PLoP" else {}
        alone = finetune(
            tiny_llama,
            task,
            tokenizer,
            placements[name],
            lr=1e-2,
            unrelated=unrelated,
            per_example=True,
            **rank,
            **few,
        )
        assert {column: row[column] for column in added} == {c: alone[c] for c in added}
    with pytest.raises(TypeError, match="unrelated='words', expected a Task"):
        run(unrelated="words")


# The check of a task

CHECKS = """
import dataclasses, functools, re
import torch
import helpers

LIMIT = 0.1
NAMES = {"one", "two", "three", "four"}
PATTERN = re.compile("[0-9]+")

def near(text, number):
    return abs(float(text) - number) < LIMIT and text not in NAMES

def plain(text, example, most=3, *, least=1):
    return near(text, example["number"]) and PATTERN.match(text) and text in ("a", "b")

def around(limit):
    def check(text, example):
        return [each for each in text if len(each) < limit]
    return check

closure = around(3)
partial = functools.partial(plain, most=4)
shorter = lambda text, example: text[:2] == "ab"

@functools.lru_cache
def cached(text):
    return text == "a"

def uses_cached(text, example):
    return cached(text)

def uses_module(text, example):
    return helpers.close(text) and re.match("a", text)

@dataclasses.dataclass
class Judge:
    limit: int
    seen: dict

    def __call__(self, text, example):
        return self.fits(text)

    def fits(self, text):
        return len(text) < self.limit

judge = Judge(3, {"b": 1, "a": {"x", "y", "z"}})
method = judge.fits

def recursive(text, example):
    return not text or recursive(text[1:], example)

class Negated:
    def __init__(self, check, most):
        functools.update_wrapper(self, check)
        self.most = most

    def __call__(self, text, example):
        return not self.__wrapped__(text, example) and len(text) < self.most

negated = Negated(recursive, 9)

def has_class(text, example):
    class Rule:
        most = LONGEST
    return len(text) < Rule.most

def further(text, example):
    return helpers.deeper.right(text)

@torch.no_grad()
def decorated(text, example):
    return text == "n"

@dataclasses.dataclass
class Slotted:
    __slots__ = ("most",)
    most: int

    def __call__(self, text, example):
        return len(text) < self.most

slotted = Slotted(11)

SEEN = {"old": True}

def memo(text, example):
    if text not in SEEN:
        SEEN[text.strip()] = len(text) < LONGEST
    return SEEN[text.strip()]

def table(text, example):
    found = {}
    found[text] = LIMITS[text]
    return found

LONGEST, LIMITS = 7, {"a": 30}
"""
HELPERS = """
import deeper

def close(text):
    return text == "c"

def far(text):
    return text == "d"
"""
DEEPER = """
def right(text):
    return text == "r"
"""
NAMES_OF_CHECKS = [
    "plain", "closure", "partial", "shorter", "uses_cached", "uses_module", "judge", "method",
    "recursive", "negated", "has_class", "further", "decorated", "slotted", "memo", "table",
]  # fmt: skip


def digests_of(folder, checks=CHECKS, helpers=HELPERS, deeper=DEEPER):
    """{name: hash} of the checks, written to modules and loaded from there."""
    (folder / "deeper.py").write_text(deeper)
    (folder / "helpers.py").write_text(helpers)
    (folder / "checks.py").write_text(checks)
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setattr(sys, "dont_write_bytecode", True)
        modules = [importlib.import_module(name) for name in ("deeper", "helpers", "checks")]
        for name in NAMES_OF_CHECKS:
            found[name] = deep_digest(getattr(modules[2], name))
        for module in modules:
            del sys.modules[module.__name__]
    return found


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("", "# only a comment\n\n", set()),
        ("< LIMIT", "<= LIMIT", {"plain", "partial"}),
        ("LIMIT = 0.1", "LIMIT = 0.2", {"plain", "partial"}),
        ('"four"', '"five"', {"plain", "partial"}),
        ('compile("[0-9]+")', 'compile("[0-9]*")', {"plain", "partial"}),
        ("most=3", "most=5", {"plain", "partial"}),
        ("least=1", "least=0", {"plain", "partial"}),
        ("most=4", "most=6", {"partial"}),
        ("around(3)", "around(4)", {"closure"}),
        ("len(each) < limit", "len(each) > limit", {"closure"}),
        ("text[:2]", "text[:3]", {"shorter"}),
        ('return text == "a"', 'return text == "b"', {"uses_cached"}),
        ('re.match("a", text)', 're.search("a", text)', {"uses_module"}),
        ("Judge(3", "Judge(4", {"judge", "method"}),
        ('"z"', '"w"', {"judge", "method"}),
        ("len(text) < self.limit", "len(text) > self.limit", {"judge", "method"}),
        ("text[1:]", "text[2:]", {"recursive", "negated"}),
        ("return not self", "return self", {"negated"}),
        ("recursive, 9", "recursive, 8", {"negated"}),
        ('"n"', '"m"', {"decorated"}),
        ("Slotted(11)", "Slotted(12)", {"slotted"}),
        ("LIMITS = 7", "LIMITS = 8", {"has_class", "memo"}),
        ('"a": 30', '"a": 40', {"table"}),
        ('"old": True', '"old": False', set()),  # which the check fills itself
        ('"r"', '"s"', {"further"}),
        ('text == "c"', 'text == "e"', {"uses_module"}),
        ('text == "d"', 'text == "e"', set()),  # which no check reaches
    ],
)
def test_a_hash_changes_with_what_a_check_does(tmp_path, old, new, changed):
    first = digests_of(tmp_path)
    texts = (CHECKS, HELPERS, DEEPER)
    assert sum(old in text for text in texts) == 1 or not old
    other = digests_of(tmp_path, *(text.replace(old, new, 1) for text in texts))
    assert {name for name in first if first[name] != other[name]} == changed
    assert len(set(first.values())) == len(first)


@pytest.mark.slow
def test_a_hash_is_the_same_in_every_process(tmp_path):
    """Also where strings hash otherwise, and where the module is read from its compiled file."""
    expected = digests_of(tmp_path)
    (tmp_path / "main.py").write_text(
        f"import checks; from plop_nb.experiments.grids.hashing import deep_digest\n"
        f"print({{name: deep_digest(getattr(checks, name)) for name in {NAMES_OF_CHECKS}}})"
    )
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.getcwd()}
        command = [sys.executable, str(tmp_path / "main.py")]
        found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert ast.literal_eval(found.stdout) == expected


def with_value(value):
    return lambda text, example: value


BUILT_IN = {
    "sums": {}, "gsm": {}, "syllogisms": {}, "digit_sums": {}, "code": {"run_code": True},
}  # fmt: skip


def built_in_digests():
    """{name: hash} of the checks of all tasks that need no Hub."""
    found = {}
    for name, options in BUILT_IN.items():
        found[name] = deep_digest(load_task(name, train=2, validation=2, test=2, **options).check)
    return found


def test_built_in_checks_have_a_hash_of_their_own_whatever_is_cached():
    first = built_in_digests()
    checker.cache_clear()
    assert built_in_digests() == first and len(set(first.values())) == len(first)
    task = load_task("sums", train=2, validation=2, test=2)
    assert task.check(f" {task.test[0]['entry']['answer']}", task.test[0])
    assert not task.check(" none", task.test[0]) and deep_digest(task.check) == first["sums"]


@pytest.mark.slow
def test_built_in_checks_have_the_same_hash_in_every_process():
    program = "from tests.test_grid import built_in_digests; print(built_in_digests())"
    expected = built_in_digests()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.getcwd()}
        command = [sys.executable, "-c", program]
        found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert ast.literal_eval(found.stdout) == expected


def test_arrays_and_tensors_count_by_their_numbers():
    one, two = torch.zeros(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16)
    digests = [deep_digest(with_value(value)) for value in (one, one.clone(), two, two.float())]
    assert digests[0] == digests[1] and len(set(digests)) == 3
    assert deep_digest(torch.eye(3).T) == deep_digest(torch.eye(3)) != deep_digest(torch.ones(3, 3))
    arrays = [deep_digest(np.arange(n)) for n in (2000, 2000, 2001)]
    assert arrays[0] == arrays[1] != arrays[2]
    assert deep_digest(np.arange(4).reshape(2, 2).T) != deep_digest(np.arange(4).reshape(2, 2))
    objects = [np.array([text, None], dtype=object) for text in ("ab", "a" + "b", "c")]
    assert deep_digest(objects[0]) == deep_digest(objects[1]) != deep_digest(objects[2])
    assert deep_digest(np.int64(3)) != deep_digest(np.int64(4))


@pytest.mark.parametrize(
    "value",
    [
        threading.Lock(),
        torch.eye(2).to_sparse(),
        torch.empty(2, device="meta"),
        torch.zeros(2, dtype=torch.complex64).conj(),
        np.zeros(0, dtype="U"),
        np.array("2020-01-01", dtype="datetime64[D]"),
        iter([1]),
        str.startswith,
        [].append,
        {is_completion, toy_task, len},
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_a_check_holds_it_has_a_hash(value):
    assert deep_digest(with_value(value)) == deep_digest(with_value(value))


NAMED_BY_ITS_ELEMENT = set()


def names_its_set(text, example):
    return names_its_set in NAMED_BY_ITS_ELEMENT


def test_a_set_may_hold_a_function_that_names_it(monkeypatch):
    empty = deep_digest(names_its_set)
    monkeypatch.setitem(globals(), "NAMED_BY_ITS_ELEMENT", {names_its_set, len})
    assert deep_digest(names_its_set) == deep_digest(names_its_set) != empty


def test_a_large_tensor_is_hashed_where_it_lies():
    large = torch.zeros(2**22)  # 16 MiB
    tracemalloc.start()
    deep_digest(with_value(large))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**20


def test_a_memo_and_the_state_of_a_tokenizer_change_no_hash(byte_tokenizer):
    seen, lengths, words = {}, [], collections.defaultdict(list)

    def check(text, example, known=set()):  # noqa: B006
        if text not in seen:
            seen[text, "a" if example else "b"] = len(byte_tokenizer(text)["input_ids"]) < 5
            lengths.append(len(text))
            words[len(text)].append(text)
            known.add(text)
        return seen

    before = deep_digest(check)
    check("ab", {})
    byte_tokenizer(["a", "bb"], truncation=True, max_length=3)
    assert len(seen) == len(lengths) == 1 and deep_digest(check) == before


def test_a_set_of_objects_has_one_hash_whatever_its_order():
    class Node:
        def __init__(self, name, place):
            self.name, self.place, self.others = name, place, []

        def __hash__(self):
            return self.place  # their order in a set of few

    def digest(places):
        nodes = [Node(name, place) for name, place in zip("abcd", places, strict=True)]
        for number, node in enumerate(nodes):
            node.others.append(nodes[number - 1])
        values = set(nodes)
        names = [node.name for node in values]
        for node in nodes:
            node.place = 0
        return names, deep_digest(with_value(values))

    names, first = digest([0, 1, 2, 3])
    other_names, second = digest([3, 1, 0, 2])
    assert names != other_names and first == second


def test_values_nested_too_deeply_are_named(task, tokenizer):
    nested = []
    for _ in range(sys.getrecursionlimit()):
        nested = [nested]
    deep = dataclasses.replace(task, check=with_value(nested))
    with pytest.raises(ValueError, match="task.check=.*nested too deeply.*: flatten"):
        grids.task_digest(deep, tokenizer)


def test_another_check_makes_another_run(tiny_llama, tokenizer, task, placement):
    def strict(text, example):
        return text == example["completion"] and False

    def key(check):
        digest = grids.task_digest(dataclasses.replace(task, check=check), tokenizer)
        return grids.run_key(tiny_llama, digest, placement, {})

    assert key(task.check) == key(is_completion)
    assert len({key(task.check), key(strict), key(None)}) == 3


def test_a_scale_is_not_taken_for_the_default(tiny_llama, tokenizer, task, placement):
    digest = grids.task_digest(task, tokenizer)

    def key(**settings):
        return grids.run_key(tiny_llama, digest, placement, settings)

    assert key(lora_alpha=None) == key() != key(lora_alpha=1)
    assert key(r=np.int64(8), lora_alpha=np.int64(16)) == key(r=8)
    with pytest.raises(ValueError, match="lora_alpha=0, expected a positive number"):
        key(lora_alpha=0)


# What is found out before the first training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": []}, "seeds is empty: give at least one"),
        ({"lrs": {"a": 1e-3, "b": []}}, "lrs is empty: give at least one"),
        ({"placements": {}}, "placements={}, expected a dict of names"),
        ({"seeds": [0, 1, np.int64(0)]}, "seeds has .*0.* twice: its runs could not be told apart"),
        ({"lrs": [1e-3, 0.001]}, "lrs has 0.001 twice"),
        ({"seeds": 3}, "seeds=3, expected a list: put it in one"),
        ({"lrs": None}, "lrs=None, expected learning rates"),
        ({"lrs": {"a": 1e-3, "b": None}}, "lrs=None, expected learning rates"),
        ({"accuracy": "no"}, "accuracy='no', expected True or False"),
        ({"seeds": [0, -1]}, "seed=-1, expected an integer from 0"),
        ({"lrs": [1e-3, float("nan")]}, "lr=nan, expected a positive number"),
        ({"ranks": {"a": 3, "b": 0}}, "r=0, expected an integer"),
        ({"ranks": 16}, "ranks=16, expected a dict"),
    ],
)
def test_a_grid_that_makes_no_sense_trains_nothing(cells, count, tmp_path, change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        cells(storage=tmp_path / "r", **change)
    assert not count and not (tmp_path / "r").exists()


def test_a_placement_that_does_not_fit_is_found_before_the_first_training(cells, count, scores):
    fits = Placement.of_types(scores, ["q_proj"])
    other = Placement(["fc"], ["h.0.fc"], 1.0, pd.DataFrame())
    with pytest.raises(ValueError, match="no module 'h.0.fc': this placement is for another model"):
        cells(placements={"fits": fits, "other": other})
    for nothing in (None, ["q_proj"]):
        with pytest.raises(TypeError, match="placement is .*expected a Placement"):
            cells(placements={"fits": fits, "nothing": nothing})
        with pytest.raises(TypeError, match="placements=.*, expected a dict of names"):
            cells(placements=nothing)
    assert not count


def test_a_task_that_cannot_be_trained_is_found_before_the_first_training(
    tiny_llama, tokenizer, task, placement, count
):
    def start(*tasks, **options):
        options |= {"seeds": [0], "lrs": [1e-3], "progress": False}
        return grid(tiny_llama, tasks, tokenizer, {"a": placement}, **options)

    with pytest.raises(ValueError, match="tasks is empty: give at least one"):
        start()
    with pytest.raises(TypeError, match="tasks=Task.*, expected a list: put it in one"):
        grid(tiny_llama, task, tokenizer, {"a": placement}, seeds=[0], lrs=[1e-3])
    with pytest.raises(ValueError, match="tasks has 'toy' twice"):
        start(task, dataclasses.replace(task, test=digits(3)))
    with pytest.raises(TypeError, match="task is str, expected a Task"):
        start("sums", lrs={"a": 1e-3}, ranks={"a": 2})
    with pytest.raises(ValueError, match="of task 'bare'"):
        start(task, dataclasses.replace(task, name="bare", test=[{"completion": "x"}]))
    assert not count


def test_a_check_that_fails_is_found_before_the_first_training(
    tiny_llama, tokenizer, task, placement, count, tmp_path
):
    """Of any task and any example; and as often as the grid is begun."""
    task.test[3]["bare"] = True
    picky = {"name": "picky", "check": lambda text, example: "bare" not in example or 1 / 0}

    def start(**options):
        options |= {"seeds": [0], "lrs": [1e-3], "progress": False, "storage": tmp_path / "r"}
        tasks = [task, dataclasses.replace(task, **picky)]
        return grid(tiny_llama, tasks, tokenizer, {"a": placement}, **options)

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            start()
    assert not count and read_runs(tmp_path / "r").empty
    assert len(start(accuracy=False)) == len(count) == 2


def test_a_finished_grid_reads_its_tasks_once_and_asks_no_check(
    tiny_llama, tokenizer, task, placement, count, tmp_path, monkeypatch
):
    read, checked, encode = [], [], type(tokenizer).__call__

    def spied(self, text, **options):
        if isinstance(text, str):
            read.append(text)
        return encode(self, text, **options)

    def start():
        read.clear(), checked.clear()
        options = {"seeds": [0, 1, 2], "lrs": [1e-3], "progress": False, "storage": tmp_path / "r"}
        checkable = dataclasses.replace(task, check=lambda text, _: not checked.append(text))
        grid(tiny_llama, [checkable], tokenizer, {"a": placement}, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", spied)
    start()
    assert checked == [example["completion"] for example in task.test] + [""]
    start()
    assert read == [e["prompt"] for e in (*task.train, *task.validation, *task.test)]
    assert not checked and len(count) == 3


def test_a_storage_that_cannot_be_written_to_is_found_before_the_first_training(
    cells, count, tmp_path
):
    (tmp_path / "file").write_text("mine")
    for storage in (tmp_path / "file" / "runs", ""):
        with pytest.raises(ValueError, match="storage=.*(cannot be written to|is a folder)"):
            cells(storage=storage)
    assert not count and (tmp_path / "file").read_text() == "mine"


def test_the_folder_of_the_runs_is_made(cells, count, tmp_path):
    path = tmp_path / "not" / "yet" / "runs.journal"
    assert len(cells(storage=path)) == len(read_runs(path)) == 8


@both_kinds
def test_one_training_serves_two_names(cells, count, scores, tmp_path, kind):
    same = Placement.of_types(scores, ["q_proj"])
    storage = storage_of(kind, tmp_path)
    runs = cells(placements={"low": same, "attention": same}, storage=storage)
    assert len(count) == 4 and len(runs) == 8
    assert runs.groupby("placement").size().tolist() == [4, 4]
    assert len(read_runs(storage)) == 8
    again = cells(placements={"third": same}, storage=storage)  # another study, by its choices
    assert len(count) == 4 and again["placement"].unique().tolist() == ["third"]
    assert len(read_runs(storage)) == 12
    assert len(cells(placements={"low": same, "attention": same}, storage=storage)) == 8
    assert len(read_runs(storage)) == 12 and len(count) == 4


def test_trials_show_what_was_run(cells, count, tmp_path):
    cells(storage=tmp_path / "r", study="race", ranks={"a": 3, "b": 4})
    study = optuna.load_study(
        study_name="race: 'toy'; 'a', 'b'", storage=open_storage(tmp_path / "r")
    )
    trial = study.trials[0]
    assert trial.params == {"task": "toy", "placement": "a", "lr": 1e-3, "seed": 0, "r": 3}
    assert trial.value == trial.user_attrs["loss"] == 1 / 7
    assert {"steps", "curve", "accuracy", "plop_owner", "plop_alive"} <= set(trial.user_attrs)
    assert study.best_trial.number == 0 and study.direction.name == "MINIMIZE"


def test_a_label_of_zero_and_long_names(cells, count, scores, tmp_path):
    storage = url(tmp_path / "r.db")
    zero = [Cell("k", {"lr": 0.0}), Cell("l", {"lr": 1e-3})]
    assert len(run_cells(zero, one, storage=storage)) == 2
    long = {"x" * 300: Placement.of_types(scores, ["q_proj"])}
    assert len(cells(storage=storage, placements=long)) == 4


@pytest.mark.parametrize("lost", [float("nan"), float("inf")])
@both_kinds
def test_diverged_runs_are_kept_as_they_are(cells, count, tmp_path, kind, lost):
    storage = storage_of(kind, tmp_path)
    grids.finetune.losses[3] = lost
    first = cells(storage=storage)
    np.testing.assert_equal(first["loss"][2], lost)
    pd.testing.assert_frame_equal(cells(storage=storage), first)
    assert len(count) == 8
    assert {(t.state.name, t.value) for t in trials_of(storage)} >= {("COMPLETE", np.inf)}
    assert {t.state.name for t in trials_of(storage)} == {"COMPLETE"}


def test_a_line_cut_short_costs_only_itself(cells, count, tmp_path):
    """The last record says that the last run is complete: it is run again, and nothing else."""
    path = tmp_path / "runs.journal"
    whole = cells(storage=path)
    path.write_bytes(path.read_bytes()[:-30])
    cut = path.read_bytes()
    assert len(read_runs(path)) == 7 and path.read_bytes() == cut  # reading writes nothing
    runs = cells(storage=path)
    assert len(count) == 9 and len(runs) == 8 and len(read_runs(path)) == 8
    assert runs["loss"].tolist()[:7] == whole["loss"].tolist()[:7]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ArithmeticError])
@both_kinds
def test_an_interrupt_loses_nothing_finished(cells, count, tmp_path, kind, error):
    storage = storage_of(kind, tmp_path)
    grids.finetune.breaks_after, grids.finetune.error = 5, error
    with pytest.raises(error, match="on purpose"):
        cells(storage=storage)
    assert len(read_runs(storage)) == 5
    states = [trial.state.name for trial in trials_of(storage)]
    assert states == ["COMPLETE"] * 5 + ["FAIL"] + ["WAITING"] * 2
    grids.finetune.breaks_after = None
    assert len(cells(storage=storage)) == 8 and len(count) == 8


WORKER = """
import sys, time
from pathlib import Path
from plop_nb.experiments.grids.cells import Cell, run_cells

storage, log, number, seconds = sys.argv[1:]

def run(content):
    with open(log, "a") as file:
        file.write(f"{content}\\n")
    time.sleep(float(seconds))
    return {"loss": content / 10}

cells = [Cell(f"key {i}", {"name": f"n{i % 2}", "seed": i}, i) for i in range(int(number))]
print(len(run_cells(cells, run, storage=storage, progress=False)), flush=True)
"""


def worker(storage, log, number, seconds):
    """A process that runs cells of its own, and notes each in a log as it begins."""
    arguments = [str(storage), str(log), str(number), str(seconds)]
    command = [sys.executable, "-c", WORKER, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def begun(log):
    return log.read_text().split() if log.exists() else []


def wait_for(condition):
    end = time.time() + 60
    while not condition():
        assert time.time() < end
        time.sleep(0.02)


@pytest.mark.slow
@both_kinds
def test_several_processes_share_the_cells(tmp_path, kind):
    log, storage = tmp_path / "log", storage_of(kind, tmp_path)
    workers = [worker(storage, log, 12, 0.2) for _ in range(3)]
    counts = [int(process.communicate()[0]) for process in workers]
    assert [process.returncode for process in workers] == [0] * 3 and max(counts) == 12
    assert sorted(begun(log), key=int) == [str(i) for i in range(12)]
    rows = finished_rows(storage)
    assert [row["loss"] for row in sorted(rows, key=lambda row: row["seed"])] == [
        i / 10 for i in range(12)
    ]
    waiting = [trial for trial in trials_of(storage) if trial.state.name in ("WAITING", "RUNNING")]
    assert not waiting


@both_kinds
def test_a_trial_is_claimed_once_however_many_try_at_the_same_moment(tmp_path, kind):
    """Optuna alone lets two processes claim one trial of an SQLite file."""
    storage = storage_of(kind, tmp_path)
    with quiet_optuna():
        study = optuna.create_study(study_name="claims", storage=open_storage(storage))
        for _ in range(25):
            study.add_trial(optuna.trial.create_trial(state=TrialState.WAITING))
        contenders = [open_storage(storage) for _ in range(4)]
    ids = range(25) if kind == "journal" else range(1, 26)
    together = threading.Barrier(4)

    def claim_all(contender):
        claimed = []
        for trial_id in ids:
            together.wait()
            if contender.set_trial_state_values(trial_id, TrialState.RUNNING):
                claimed.append(trial_id)
        return claimed

    with ThreadPoolExecutor(4) as pool:
        claimed = [trial for claims in pool.map(claim_all, contenders) for trial in claims]
    assert sorted(claimed) == list(ids)


@pytest.mark.slow
@both_kinds
def test_what_a_killed_process_ran_is_run_again(tmp_path, kind):
    log, storage = tmp_path / "log", storage_of(kind, tmp_path)
    first = worker(storage, log, 3, 60)
    wait_for(lambda: begun(log))
    first.kill()
    first.communicate()
    log.unlink()
    second = worker(storage, log, 3, 0)
    assert second.communicate()[0] == "3\n" and sorted(begun(log)) == ["0", "1", "2"]
    states = sorted(trial.state.name for trial in trials_of(storage))
    assert states == ["COMPLETE"] * 3 + ["FAIL"]


@pytest.mark.slow
def test_what_another_process_runs_is_left_to_it(tmp_path):
    log, storage = tmp_path / "log", tmp_path / "r"
    other = worker(storage, log, 1, 60)
    wait_for(lambda: begun(log))
    with pytest.warns(UserWarning, match=f"1 of 1 cells.*process {other.pid} on .*same call later"):
        assert run_cells([Cell("key 0", {"name": "n0", "seed": 0})], dict, storage=storage) == []
    other.kill()
    other.communicate()


def crash(_):
    raise SystemExit


def one(_):
    return {"loss": 1.0}


@both_kinds
def test_cells_are_taken_over_from_a_host_whose_heart_has_stopped(tmp_path, monkeypatch, kind):
    storage, cell = storage_of(kind, tmp_path), Cell("k", {"seed": 0})
    with monkeypatch.context() as patch:
        patch.setattr(Board, "_fail", lambda self, trial_id: None)  # no time to say so
        patch.setattr(ownership.platform, "node", lambda: "far away")
        with pytest.raises(SystemExit):
            run_cells([cell], crash, storage=storage)
    with pytest.warns(UserWarning, match="process .* on far away"):
        assert run_cells([cell], one, storage=storage) == []  # it may live
    monkeypatch.setattr(ownership, "GRACE", 0)
    assert run_cells([cell], one, storage=storage) == [{"loss": 1.0, "seed": 0, "key": "k"}]
    assert [trial.state.name for trial in trials_of(storage)] == ["FAIL", "COMPLETE"]


def test_the_heart_of_a_journal_beats_while_a_cell_runs(tmp_path, monkeypatch):
    storage, seen = tmp_path / "r", set()
    monkeypatch.setattr(ownership, "HEARTBEAT", 0.02)

    def run(_):
        wait_for(lambda: seen.add(trials_of(storage)[0].user_attrs["plop_alive"]) or len(seen) > 2)
        return {"loss": 1.0}

    assert len(run_cells([Cell("k", {"seed": 0})], run, storage=storage)) == 1


@pytest.mark.parametrize(
    ("change", "stale"),
    [
        ({}, False),
        ({"pid": 2**22 + 1}, True),
        ({"pid": 2**22 + 1, "boot": 0.0}, False),  # another boot, another container: cannot tell
        ({"pid": 2**22 + 1, "namespace": 1}, False),
        ({"claim": "of before"}, True),
    ],
)
def test_only_on_this_host_and_boot_a_process_is_known_to_be_dead(monkeypatch, change, stale):
    monkeypatch.setattr(ownership, "RUNNING_HERE", {"ours"})
    owner = ownership.this_process("ours") | change
    attributes = {"plop_owner": owner, "plop_alive": time.time()}
    trial = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs=attributes)
    assert ownership.is_stale(trial) == stale
    attributes["plop_alive"] -= ownership.GRACE + 1
    trial = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs=attributes)
    assert ownership.is_stale(trial)


def test_a_process_that_may_not_be_looked_at_is_not_dead(monkeypatch):
    owner = ownership.this_process("x") | {"pid": 1}

    def deny(pid=None):
        raise psutil.AccessDenied

    here = ownership.this_process("")
    monkeypatch.setattr(ownership, "this_process", lambda claim: here)
    monkeypatch.setattr(psutil, "Process", deny)
    attributes = {"plop_owner": owner, "plop_alive": time.time()}
    trial = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs=attributes)
    assert not ownership.is_stale(trial)


def test_trials_of_others_are_left_alone(tmp_path):
    storage = tmp_path / "r"
    with quiet_optuna():
        study = optuna.create_study(study_name="theirs", storage=open_storage(storage))
        study.ask()
        study.add_trial(optuna.trial.create_trial(value=1.0, user_attrs={"key": "k"}))
    assert len(run_cells([Cell("k", {"seed": 0})], one, storage=storage)) == 1
    states = [trial.state.name for trial in trials_of(storage)]
    assert sorted(states) == ["COMPLETE", "COMPLETE", "RUNNING"]
    assert len(finished_rows(storage)) == 1


def test_a_cell_that_fails_elsewhere_as_it_is_queued_is_left_out(monkeypatch):
    add = Board._add

    def lost(self, cell, row=None):
        trial_id = add(self, cell, row)
        self._fail(trial_id)
        return trial_id

    monkeypatch.setattr(Board, "_add", lost)
    with pytest.warns(UserWarning, match="1 of 1 cells are left out"):
        assert run_cells([Cell("k", {"seed": 0})], one) == []


def test_rows_are_counted_once(tmp_path):
    """Also where two processes have finished the same cell."""
    cell, storage = Cell("k", {"seed": 0}), tmp_path / "r"
    run_cells([cell], one, storage=storage)
    with quiet_optuna():
        board = Board(open_storage(storage), "runs", [cell], Objective("loss", "minimize"))
        board._add(cell, {"loss": 2.0})
    assert [row["loss"] for row in finished_rows(storage)] == [1.0]


def test_labels_that_look_alike_joined_are_other_studies():
    for labels in (["a", "b"], ["a, b"]):
        cells = [Cell(label, {"name": label}) for label in labels]
        assert len(run_cells(cells, one)) == len(labels)
    names = {study_name("s", {"n": CategoricalDistribution(c)}) for c in (["a", "b"], ["a, b"])}
    assert len(names | {study_name("s", {}, "maximize"), study_name("s", {})}) == 4


def test_a_database_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("plop_nb.experiments.grids.storage.PAUSE", 0)
    path = tmp_path / "typo.db"
    with pytest.raises(ValueError, match="storage='sqlite:///.*typo.db' does not exist"):
        read_runs(url(path))
    assert not path.exists()
    path.write_text("no database " * 100)
    with pytest.raises(ValueError, match="storage='sqlite:///.*typo.db' cannot be opened"):
        read_runs(url(path))


@both_kinds
def test_a_result_is_kept_where_its_trial_was_taken_for_dead(tmp_path, kind):
    storage = storage_of(kind, tmp_path)

    def run(_):
        opened = open_storage(storage)
        (study,) = optuna.get_all_study_names(opened)
        optuna.load_study(study_name=study, storage=opened).tell(0, state=TrialState.FAIL)
        return {"loss": 2.0}

    found = run_cells([Cell("k", {"seed": 0})], run, storage=storage)
    assert found == [{"loss": 2.0, "seed": 0, "key": "k"}]
    assert [trial.state.name for trial in trials_of(storage)] == ["FAIL", "COMPLETE"]


def test_of_two_trials_with_one_key_the_earlier_is_run(tmp_path):
    """As where two processes queue the same cell at once."""
    cell, storage = Cell("k", {"seed": 0}), open_storage(None)
    boards = [Board(storage, "runs", [cell], Objective("loss", "minimize")) for _ in range(2)]
    runs = []
    for board in boards:
        board.enqueue([cell])
    for board in boards:
        board.work(cell, lambda content: runs.append(content) or {"loss": 1.0})
    assert len(runs) == 1
    states = [t.state.name for t in optuna.load_study(study_name="runs", storage=storage).trials]
    assert states.count("COMPLETE") == 1 and "RUNNING" not in states


@pytest.mark.parametrize("content", ['{"key": "abc", "loss": 1.0}\n', "SQLite format 3", "\n"])
def test_a_file_of_another_kind(cells, count, tmp_path, content):
    path = tmp_path / "runs.jsonl"
    path.write_text(content)
    for read in (lambda: cells(storage=path), lambda: read_runs(path)):
        with pytest.raises(
            ValueError, match=r"storage='.*runs.jsonl' is no journal .* another file"
        ):
            read()
    assert path.read_text() == content and not count
    with pytest.raises(ValueError, match="is a folder"):
        cells(storage=tmp_path)
    with pytest.raises(
        ValueError, match="storage='.*none' does not exist: name the file that grid"
    ):
        read_runs(tmp_path / "none")


@pytest.mark.slow
def test_optuna_is_quiet_and_stays_as_it_was(cells, count, tmp_path, capfd):
    before = optuna.logging.get_verbosity()
    cells(storage=url(tmp_path / "r.db"))
    cells(storage=tmp_path / "r")
    assert optuna.logging.get_verbosity() == before
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_optuna_that_is_not_installed(cells, count, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match="needs Optuna.* pip install optuna psutil trl"):
        cells()


def test_learning_rates_and_ranks_of_each_placement(cells, count):
    runs = cells(lrs={"a": 1e-3, "b": [1e-2, 1e-1]}, ranks={"a": 3, "b": 4})
    assert set(zip(runs["placement"], runs["lr"], runs["r"], strict=True)) == {
        ("a", 1e-3, 3),
        ("b", 1e-2, 4),
        ("b", 1e-1, 4),
    }
    shapes = [np.array([1e-3, 1e-2]), (lr for lr in (1e-3, 1e-2)), (1e-3, 1e-2)]
    of_each = {"a": np.array([1e-3, 1e-2]), "b": (lr for lr in (1e-3, 1e-2))}
    for lrs in (*shapes, of_each):
        found = cells(lrs=lrs, seeds=(seed for seed in (0, 1)))
        rates = found.groupby(["placement", "seed"])["lr"].agg(list).tolist()
        assert rates == [[1e-3, 1e-2]] * 4
    assert cells(lrs=1e-3)["lr"].tolist() == [1e-3] * 4
    best = pd.DataFrame({"task": ["toy", "toy"], "placement": ["a", "b"], "lr": [0.5, 0.25]})
    chosen = cells(lrs=best).groupby("placement")["lr"].unique().map(list).to_dict()
    assert chosen == {"a": [0.5], "b": [0.25]}
    several = pd.concat([best, best.assign(lr=[0.1, 0.2])])
    chosen = cells(lrs=several).groupby("placement")["lr"].unique().map(sorted).to_dict()
    assert chosen == {"a": [0.1, 0.5], "b": [0.2, 0.25]}
    with pytest.raises(ValueError, match="lrs has nothing for placement 'b' on task 'toy'"):
        cells(lrs={"a": 1e-3})
    with pytest.raises(TypeError, match="'stepz' is not an argument of finetune"):
        cells(stepz=4)
    with pytest.raises(ValueError, match="out cannot be an option"):
        cells(out="x")


@pytest.mark.slow
def test_grid_runs_for_real(tiny_llama, tokenizer, task, placement, tmp_path):
    options = {key: value for key, value in FEW.items() if key not in ("lr", "r")}
    options |= {"seeds": [0, 1], "lrs": [1e-2], "ranks": {"plop": 2}, "progress": False}

    def run():
        storage = tmp_path / "r.journal"
        return grid(tiny_llama, [task], tokenizer, {"plop": placement}, storage=storage, **options)

    runs = run()
    alone = finetune(tiny_llama, task, tokenizer, placement, **FEW, seed=1)
    assert runs["loss"][1] == alone["loss"] != runs["loss"][0]
    pd.testing.assert_frame_equal(run(), runs)
    assert (curves(runs).groupby("seed").size() == 3).all()
