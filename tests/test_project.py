"""The promises of the repository: README snippets, packaging files that agree, notebooks in order."""

import re
import sys
import tomllib
from pathlib import Path

import jupytext
import nbformat
import pandas as pd
import pytest
import yaml

from tests import bench

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)

sys.path.insert(0, str(ROOT / "notebooks"))
import run


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
    exec(compile(snippet.replace("HuggingFaceTB/SmolLM2-135M", str(tmp_path / "hub_model")), "README.md", "exec"), {})


def test_readme_has_the_two_commands_and_a_ten_line_snippet():
    assert "make quickstart" in README and "make test" in README
    lines = [line for line in SNIPPETS[0].splitlines() if line.strip() and not line.startswith("#")]
    assert "HuggingFaceTB" in SNIPPETS[0] and len(lines) <= 10


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
    assert published.groupby("model").size().to_dict() == {"Llama-3.2-1B-Instruct": 448, "Llama-3.2-3B-Instruct": 196}


# Packaging


def test_ci_runs_exactly_the_test_command():
    script = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and not line.startswith("#")]
    assert script[-1] == "make test"


def test_environment_and_pyproject_agree():
    """conda installs the project itself with the extra that the Makefile installs, on the same Python."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert f"python{PROJECT['requires-python']}" in conda
    assert pip == {"pip": ["-e .[dev]"]} and "dev" in PROJECT["optional-dependencies"]
    assert '-e ".[dev]"' in (ROOT / "Makefile").read_text()


def test_constraints_pin_everything_and_within_bounds():
    from packaging.requirements import Requirement

    pins = dict(line.split("==") for line in (ROOT / ".ci" / "constraints.txt").read_text().split())
    pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    extras = PROJECT["optional-dependencies"]
    for text in PROJECT["dependencies"] + extras["tasks"] + extras["finetune"] + extras["dev"][1:]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(pins[wanted.name.lower().replace("_", "-")]), text
        assert [s.operator for s in wanted.specifier] == [">="], f"{text}: users get a loose lower bound"


def test_ci_runs_on_the_oldest_transformers_that_is_promised():
    """Older ones convert tokenizers wrongly (`plop_nb.models.KNOWN_TOKENS`), so the bound has to be a tested one."""
    pins = dict(line.split("==") for line in (ROOT / ".ci" / "constraints.txt").read_text().split())
    (bound,) = [text for text in PROJECT["dependencies"] if text.startswith("transformers")]
    assert pins["transformers"].startswith(bound.removeprefix("transformers>=") + ".")


def test_repository_address_stands_in_one_place():
    address = PROJECT["urls"]["Repository"]
    assert address in run.setup_cell() and address not in README


# Notebooks


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
