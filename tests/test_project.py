"""The promises of the repository: README snippets, packaging that agrees, notebooks in order."""

import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jupytext
import nbformat
import pandas as pd
import pytest
import yaml

import plop_nb as plop
from notebooks.tools import run
from plop_nb import checks, experiments
from tests import bench

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def cells(path):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


def tags(cell):
    return set(cell.metadata.get("tags", []))


# README


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda s: s.strip().splitlines()[0][:40])
def test_readme_snippets_run(snippet, smollm, tmp_path, monkeypatch):
    """Hub ids stand for a local folder: the same code path as with a hub."""
    model, tokenizer = smollm
    model.save_pretrained(tmp_path / "hub_model")
    tokenizer.save_pretrained(tmp_path / "hub_model")
    monkeypatch.chdir(tmp_path)
    local = snippet.replace("HuggingFaceTB/SmolLM2-135M", str(tmp_path / "hub_model"))
    exec(compile(local, "README.md", "exec"), {})


def test_readme_has_the_commands_and_short_snippets():
    for command in ("make quickstart", "make check", "make test"):
        assert command in README
    lines = [[line for line in snippet.splitlines() if line.strip()] for snippet in SNIPPETS]
    assert len(lines[0]) <= 4 and "HuggingFaceTB" in SNIPPETS[1] and max(map(len, lines)) <= 10


def test_readme_links_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_readme_lists_every_notebook():
    assert [p.name for p in NOTEBOOKS if f"notebooks/{p.name}" not in README] == []


def test_readme_cost_table_is_the_recorded_one_and_keeps_its_promises():
    recorded = pd.read_csv(ROOT / "data" / "results" / "bench_cpu.csv")
    assert bench.markdown(recorded) in README
    ours = recorded.query("method == 'plop_nb'").set_index("dtype")
    assert ours["of_plain"]["float32"] <= 0.60 and ours["of_plain"]["bfloat16"] <= 0.65
    assert ours["naive_over"].min() >= 3


def test_readme_large_model_is_the_recorded_one():
    recorded = pd.read_csv(ROOT / "data" / "results" / "large_model.csv")
    large = recorded.iloc[-1]
    assert large["model_gb"] > 5 and large["peak_gb"] < large["limit_gb"] == 3.0
    assert f"{large['model_gb']:.1f} GB" in README and f"{large['peak_gb']:.1f} GB" in README
    assert recorded["largest_difference"].iloc[0] < 1e-3


def test_published_figures_name_their_source():
    path = ROOT / "data" / "published" / "nfn_llama.csv"
    assert "arXiv 2506.20629" in path.read_text().splitlines()[1]
    published = pd.read_csv(path, comment="#")
    rows = published.groupby("model").size().to_dict()
    assert rows == {"Llama-3.2-1B-Instruct": 448, "Llama-3.2-3B-Instruct": 196}


# Packaging


def test_ci_runs_exactly_the_test_command():
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    commands = [line for line in script if line and not line.startswith("#")]
    assert commands == ["set -euo pipefail", 'cd "$(dirname "$0")/.."', "make test"]


def test_environment_and_pyproject_agree():
    """conda installs the project with the extra that the Makefile installs, on the same Python."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert f"python{PROJECT['requires-python']}" in conda
    assert pip == {"pip": ["-e .[dev]"]} and "dev" in PROJECT["optional-dependencies"]
    assert '$(INSTALL) ".[dev]"' in (ROOT / "Makefile").read_text()


def test_errors_name_the_packages_of_the_extras():
    from packaging.requirements import Requirement

    for extra, packages in checks.PACKAGES.items():
        wanted = [Requirement(text).name for text in PROJECT["optional-dependencies"][extra]]
        assert packages.split() == wanted


def test_metadata_names_authors_and_kind():
    assert PROJECT["authors"] == [{"name": "The plop_nb authors"}]
    assert PROJECT["keywords"] and PROJECT["classifiers"] and PROJECT["urls"]["Paper"]
    assert PROJECT["scripts"] == {"plop-nb": "plop_nb.commands:main"}


def test_constraints_pin_everything_and_within_bounds():
    from packaging.requirements import Requirement

    pins, wanted_texts = pinned_versions(), list(PROJECT["dependencies"])
    for texts in PROJECT["optional-dependencies"].values():
        wanted_texts += [text for text in texts if not text.startswith("plop_nb[")]
    for text in wanted_texts:
        wanted = Requirement(text)
        assert wanted.specifier.contains(pins[plain_name(wanted.name)]), text
        operators = [bound.operator for bound in wanted.specifier]
        assert operators == [">="], f"{text}: users get a loose lower bound"


def plain_name(package):
    return package.lower().replace("_", "-")


def pinned_versions():
    lines = (ROOT / ".ci" / "constraints.txt").read_text().split()
    pins = dict(line.split("==") for line in lines)
    return {plain_name(name): version for name, version in pins.items()}


def test_ci_runs_on_the_oldest_transformers_that_is_promised():
    """Older ones convert tokenizers wrongly (`KNOWN_TOKENS`): the bound has to be a tested one."""
    (bound,) = [text for text in PROJECT["dependencies"] if text.startswith("transformers")]
    assert pinned_versions()["transformers"].startswith(bound.removeprefix("transformers>=") + ".")


def test_older_transformers_are_refused_in_one_sentence(tmp_path):
    """As `pip install --no-deps` leaves them; the bound is that of pyproject.toml."""
    (bound,) = [text for text in PROJECT["dependencies"] if text.startswith("transformers")]
    folder = tmp_path / "transformers-4.57.6.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 4.57.6\n")
    done = subprocess.run(
        [sys.executable, "-c", "import plop_nb"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
    )
    oldest = bound.removeprefix("transformers>=")
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: plop_nb needs transformers {oldest} or newer and finds 4.57.6: "
        f"pip install '{bound}'"
    )


def test_repository_address_stands_in_one_place():
    address = PROJECT["urls"]["Repository"]
    is_public = ".invalid/" not in address
    assert (address in run.setup_cell()) is is_public and address not in README


def test_commits_are_checked_with_the_tools_of_the_environment():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repository in config["repos"] for hook in repository["hooks"]]
    assert {repository["repo"] for repository in config["repos"]} == {"local"}
    assert {hook["language"] for hook in hooks} == {"system"}
    assert [hook["id"] for hook in hooks] == ["ruff-check", "ruff-format", "mypy"]


def test_citation_names_software_and_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["cff-version"], citation["type"]) == ("1.2.0", "software")
    assert citation["title"] == PROJECT["name"] and citation["license"] == PROJECT["license"]
    (paper,) = citation["references"]
    assert paper["title"] in README
    assert [identifier["value"] for identifier in paper["identifiers"]] == ["arXiv:2506.20629"]


# The public functions


def public_objects():
    """Everything that a user can name, as pairs of name and function or class."""
    found = {f"plop_nb.{name}": getattr(plop, name) for name in plop.__all__}
    for info in pkgutil.iter_modules(experiments.__path__):
        module = importlib.import_module(f"plop_nb.experiments.{info.name}")
        for name, value in vars(module).items():
            own = getattr(value, "__module__", None) == module.__name__
            if own and not name.startswith("_"):
                found[f"{module.__name__}.{name}"] = value
    return found


def public_functions():
    """The public functions, and the public methods of the public classes."""
    for name, value in public_objects().items():
        if inspect.isfunction(value):
            yield name, value
        if inspect.isclass(value) and value.__module__.startswith("plop_nb"):
            for method, function in vars(value).items():
                function = getattr(function, "__func__", function)  # of a classmethod
                # The `__init__` of a dataclass is made from its annotated fields.
                is_public = method == "__init__" or not method.startswith("_")
                if is_public and inspect.isfunction(function):
                    yield f"{name}.{method}", function


def test_public_functions_are_annotated():
    lacking = []
    for name, function in public_functions():
        signature = inspect.signature(function)
        parameters = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
        lacking += [f"{name}({p.name})" for p in parameters if p.annotation is p.empty]
        if signature.return_annotation is signature.empty:
            lacking.append(f"{name} -> ?")
    assert lacking == []


def test_public_functions_have_docstrings():
    assert [name for name, function in public_functions() if lacks_docstring(name, function)] == []


def lacks_docstring(name, function):
    return not name.endswith(".__init__") and not inspect.getdoc(function)


# Notebooks


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_script_of_a_notebook_is_valid_python(path):
    script = path.with_suffix(".py")
    compile(script.read_text(), str(script), "exec")


def test_folder_of_notebooks_lists_notebooks_only():
    allowed = {"images", "tools", "GUIDE.md"}
    for path in NOTEBOOKS:
        allowed |= {path.name, path.with_suffix(".py").name}
    ignored = {".ipynb_checkpoints", "__pycache__", "trainer_output"}
    assert {path.name for path in (ROOT / "notebooks").iterdir()} - ignored == allowed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_executed_in_one_go_without_error(path):
    code = cells(path)
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
    text = path.read_text()
    assert '"output_type": "error"' not in text and "application/vnd.jupyter.widget" not in text
    assert not [o for c in code for o in c.outputs if o.get("name") == "stderr"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_equals_its_pair(path):
    pair, notebook = jupytext.read(path.with_suffix(".py")), nbformat.read(path, as_version=4)
    assert [(c.cell_type, c.source, tags(c)) for c in notebook.cells] == [
        (c.cell_type, c.source, tags(c)) for c in pair.cells
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_setup_cell_is_the_same_everywhere_and_settings_are_one_cell(path):
    setup, settings = ([c for c in cells(path) if tag in tags(c)] for tag in ("setup", "settings"))
    assert [c.source for c in setup] == [run.setup_cell()] and len(settings) == 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_asserting_cell_shows_something_that_is_compared(path):
    for cell in cells(path):
        if "assert " in cell.source:
            assert cell.outputs and "nbval-ignore-output" not in tags(cell), cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_cells_are_short_and_figures_are_there(path):
    assert max(len(c.source.splitlines()) for c in cells(path)) <= 15
    assert any("image/png" in o.get("data", {}) for c in cells(path) for o in c.outputs)
