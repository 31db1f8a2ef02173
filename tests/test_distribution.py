"""What would be uploaded: source archive and wheel, and the course from a wheel alone."""

import json
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
HERE = Path(torch.__file__).parents[1]  # where the test environment keeps its packages
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def ran(*command, cwd):
    """What a command prints; it must succeed."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with source archive and wheel, built without a network."""
    folder = tmp_path_factory.mktemp("built")
    ran(sys.executable, "-m", "hatchling", "build", "-d", folder, cwd=ROOT)
    return folder


def test_the_package_index_would_take_both(built):
    """The README renders; names of classifiers are checked while building."""
    files = sorted(built.iterdir())
    assert [file.name.rsplit(".", 1)[1] for file in files] == ["whl", "gz"]
    told = ran(sys.executable, "-m", "twine", "check", "--strict", *files, cwd=built)
    assert told.count("PASSED") == 2


def test_the_wheel_carries_the_course_and_no_tools(built):
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    folder = "plop_nb/notebooks/"
    inside = {name.removeprefix(folder) for name in names if name.startswith(folder)}
    course = {path.name for path in (ROOT / "notebooks").glob("*.ipynb")} | {"GUIDE.md"}
    pictures = {f"images/{path.name}" for path in (ROOT / "notebooks" / "images").iterdir()}
    assert inside == course | pictures
    data = {str(path.relative_to(ROOT)) for path in (ROOT / "data").rglob("*") if path.is_file()}
    assert {f"plop_nb/{name}" for name in data} <= set(names)
    tops = {name.split("/")[0] for name in names}
    assert all(top.startswith("plop_nb") for top in tops)


def test_the_source_archive_can_be_tested(built):
    (archive,) = built.glob("*.tar.gz")
    names = {name.split("/", 1)[-1] for name in tarfile.open(archive).getnames()}
    wanted = {"Makefile", ".ci/constraints.txt", "notebooks/tools/run.py", "tests/conftest.py"}
    assert wanted <= names


@pytest.mark.slow
def test_the_commands_of_a_wheel_in_an_empty_folder(built, tmp_path):
    """Of its packages those of the test environment are taken."""
    (wheel,) = built.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    scripts = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    ran(scripts / "python", "-m", "pip", "install", "-q", "--no-deps", wheel, cwd=tmp_path)
    (packages,) = scripts.parent.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(f"{HERE}\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "plop-nb COMMAND" in ran(scripts / "plop-nb", "--help", cwd=empty)

    told = ran(scripts / "plop-nb", "notebooks", "course", cwd=empty)
    assert "jupyter lab course/00_quickstart.ipynb" in told
    copied = {str(path.relative_to(empty / "course")) for path in (empty / "course").rglob("*.*")}
    assert {"00_quickstart.ipynb", "GUIDE.md", "images/00_quickstart.png"} <= copied

    (empty / "model").mkdir()
    (empty / "model" / "config.json").write_text(json.dumps(CONFIG))
    targets = "q_proj,v_proj"
    found = json.loads(ran(scripts / "plop-nb", "coverage", "--json", "model", targets, cwd=empty))
    assert (found["adapters"], found["missed"]) == (4, [])
    code = "import plop_nb; print(plop_nb.__file__); print(plop_nb.load_texts('history', 1))"
    where = ran(scripts / "python", "-I", "-c", code, cwd=empty).splitlines()[0]
    assert Path(where).is_relative_to(packages)
