"""The house: which module may know which, what is private, and what can be reached from outside."""

import ast
import graphlib
import importlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import plop_nb as plop
from plop_nb._moved import AS_BEFORE, HOMES
from tests.conftest import TEXTS

PACKAGE = Path(plop.__file__).parent
MODULES = {}
for path in sorted(PACKAGE.rglob("*.py")):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    MODULES[".".join(part for part in parts if part != "__init__")] = path


def imports(tree):
    """(module, names) of every `from` import of the package, those for type checkers left out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("plop_nb"):
            yield node.module, [alias.name for alias in node.names]


@pytest.fixture(scope="module")
def known():
    """{module: modules that it imports}."""
    found = {}
    for name, path in MODULES.items():
        found[name] = set()
        for module, names in imports(ast.parse(path.read_text())):
            for each in names:
                inner = f"{module}.{each}"
                found[name].add(inner if inner in MODULES else module)
    return found


def drawn():
    """The modules in the order of the tables in CONTRIBUTING.md, from the ground up."""
    names = []
    tables = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
    for row in re.findall(r"^\| (`.*?) \|", tables, re.MULTILINE):
        folder = "plop_nb"
        for path in re.findall(r"`([\w/.]+)`", row):
            if path.endswith("/"):
                folder = f"plop_nb/{path.rstrip('/').removeprefix('plop_nb/')}"
                continue
            path = path if path.startswith("plop_nb/") else f"plop_nb/{path}"
            if folder != "plop_nb":
                path = f"{folder}/{path.rsplit('/')[-1]}"
            parts = path.removesuffix(".py").split("/")
            names.append(".".join(part for part in parts if part != "__init__"))
    return names


def test_the_house_is_as_contributing_draws_it(known):
    """Each module knows only modules that stand above it: no circle, no arrow upward."""
    order = drawn()
    packages = {"plop_nb", "plop_nb.experiments"}  # which lead to all the others
    assert set(order) == set(MODULES) - packages and len(order) == len(set(order))
    for name in order:
        above = order[: order.index(name)]
        assert known[name] - packages <= set(above), f"{name} knows {known[name] - set(above)}"
    assert list(graphlib.TopologicalSorter(known).static_order())  # raises CycleError on a circle


def test_the_core_does_not_know_the_experiments(known):
    for name, others in known.items():
        if not name.startswith("plop_nb.experiments"):
            assert not [other for other in others if other.startswith("plop_nb.experiments")], name


def test_no_module_uses_a_private_name_of_another():
    for name, path in MODULES.items():
        tree = ast.parse(path.read_text())
        taken = [(module, each) for module, names in imports(tree) for each in names]
        assert not [pair for pair in taken if pair[1].startswith("_") and pair[1] != "_wheels"], (
            name
        )
        modules = {each for module, each in taken if f"{module}.{each}" in MODULES}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                private = node.attr.startswith("_") and not node.attr.startswith("__")
                assert not (private and node.value.id in modules), f"{name}: {ast.unparse(node)}"


def test_every_file_can_be_read_in_one_go():
    tools = (PACKAGE.parent / "notebooks" / "tools").glob("*.py")
    for path in [*MODULES.values(), *tools]:
        assert len(path.read_text().splitlines()) <= 400, path


# What can be reached


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_importing_is_quick_and_everything_is_there():
    """Figures, widgets and trainers are imported by whoever uses them."""
    code = """
import sys, plop_nb as plop
heavy = {"matplotlib", "seaborn", "ipywidgets", "trl", "optuna"} & set(sys.modules)
assert not heavy, heavy
for name in plop.__all__:
    assert getattr(plop, name), name
assert plop.stats.lowest and plop.norms.baseline_gain and plop.experiments.finetune
import plop_nb.explorer
assert callable(plop.explore) and plop.explore is plop.explorer.explore
print(plop.__version__)
"""
    assert run(code).strip().count(".") == 2


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nfn_score'"):
        plop.nfn_score  # noqa: B018


@pytest.mark.parametrize("old", HOMES)
def test_old_modules_lead_to_the_new_ones(old):
    """Each public name of each new home is found under the old one, with a warning."""
    module = importlib.import_module(f"plop_nb.{old}")
    home = importlib.import_module(f"plop_nb.{HOMES[old][0]}")
    own = [n for n, v in vars(home).items() if getattr(v, "__module__", None) == home.__name__]
    for name in [n for n in own if not n.startswith("_") and (old, n) not in AS_BEFORE]:
        with pytest.warns(DeprecationWarning, match=f"It is now plop_nb.{HOMES[old][0]}.{name}"):
            assert getattr(module, name) is getattr(home, name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        module.nothing  # noqa: B018


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_old_calls_give_what_the_new_ones_give(tiny_llama, byte_tokenizer):
    """The tokenizer before the task, a file as `path`, problems as lists."""
    pytest.importorskip("trl")
    from plop_nb import finetune, grpo

    byte_tokenizer.eos_token = byte_tokenizer.pad_token = "!"
    ex = plop.experiments
    example = {"prompt": "2+2=", "completion": " 4"}
    task = ex.Task("toy", [example], [example], [example], new_tokens=2)
    scores = plop.nfn_scores(tiny_llama, TEXTS, byte_tokenizer, progress=False)
    placement = plop.place(scores, k=1)
    new = ex.finetune(tiny_llama, task, byte_tokenizer, placement, steps=1)
    old = finetune.finetune(tiny_llama, byte_tokenizer, task, placement, steps=1)
    assert old["loss"] == new["loss"]
    new = ex.evaluate(tiny_llama, task, byte_tokenizer)
    assert finetune.evaluate(tiny_llama, byte_tokenizer, task) == new
    runs = finetune.grid(
        tiny_llama,
        byte_tokenizer,
        [task],
        {"a": placement},
        seeds=[0],
        lrs=[1e-3],
        steps=1,
        path=None,
    )
    assert runs["loss"].tolist() == [old["loss"]]
    problems, test = grpo.sums(4, 2)
    assert (len(problems), len(test)) == (4, 2)
    assert len(grpo.samples(tiny_llama, byte_tokenizer, test, max_completion_length=2)) == 2
    assert grpo.accuracy(tiny_llama, byte_tokenizer, test, max_completion_length=2) == 0
    options = {"steps": 1, "prompts_per_step": 2, "num_generations": 2, "max_completion_length": 2}
    frame, _ = grpo.train(tiny_llama, byte_tokenizer, problems, placement, **options)
    task = ex.digit_sums(4, 2)
    again, _ = ex.grpo.train(tiny_llama, task, byte_tokenizer, placement, **options)
    assert frame["reward"].tolist() == again["reward"].tolist()


# Arguments


def test_integers_of_numpy_are_integers(tiny_llama, byte_tokenizer):
    three = np.int64(3)
    scores = plop.nfn_scores(
        tiny_llama, TEXTS, byte_tokenizer, batch_size=three, max_length=np.int32(64), progress=False
    )
    placement = plop.place(scores, k=three)
    assert len(placement.types) == 3
    assert len(plop.place(scores, parameters=np.int64(10_000), r=np.int64(2)).types) >= 1
    assert placement.lora_config(tiny_llama, r=three).r == 3
    assert len(plop.load_texts("history", n=three)) == 3


@pytest.mark.parametrize("wrong", [0, -1, 2.0, True, "3", None])
def test_what_is_no_integer_is_named(tiny_llama, byte_tokenizer, wrong):
    with pytest.raises(ValueError, match="batch_size=.*expected an integer of at least 1"):
        plop.nfn_scores(tiny_llama, TEXTS, byte_tokenizer, batch_size=wrong, progress=False)


def test_half_a_rank_is_no_rank(tiny_llama, byte_tokenizer):
    scores = plop.nfn_scores(tiny_llama, TEXTS, byte_tokenizer, progress=False)
    with pytest.raises(ValueError, match="r=8.5, expected an integer of at least 1"):
        plop.place(scores, k=1).lora_config(tiny_llama, r=8.5)


def test_a_placement_shows_whatever_it_holds(tiny_llama, byte_tokenizer):
    scores = plop.nfn_scores(tiny_llama, TEXTS, byte_tokenizer, progress=False)
    whole = plop.place(scores, k=1)
    for placement in (
        plop.Placement(whole.types, whole.modules, float("nan"), None),
        plop.Placement(whole.types, whole.modules, None, whole.ranking, None, ["a <note>"]),
        plop.Placement([], [], None),
        plop.Placement.of_modules(scores, whole.modules[:1]),
    ):
        assert repr(placement).startswith("adapters on ")
        assert "adapters on" in placement._repr_html_() and "<note>" not in placement._repr_html_()
