"""Execute notebooks from their paired py:percent scripts, on the environment this runs in.

    python notebooks/tools/run.py                  execute all, write the .ipynb beside the .py
    python notebooks/tools/run.py 00_quickstart --out build    execute one into another folder

Prints the text output of the cells tagged "show"; saves the figure of the cell tagged "picture" for
the README. The setup cell is the same in all notebooks; it is written here, with the repository's
address from pyproject.toml.
"""

import argparse
import base64
import os
import time
import tomllib
from pathlib import Path
from typing import Any

import jupytext
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1]
SETUP = """\
# Setup, the same in every notebook. On Colab it installs plop_nb and leaves Colab's torch as it is.
import importlib.util

from IPython import get_ipython

if importlib.util.find_spec("plop_nb") is None:
    get_ipython().run_line_magic(
        "pip", 'install -q "plop_nb[tasks,finetune] @ git+{address}"'
    )

import torch

import plop_nb as plop
"""

# Progress bars and other packages' deprecations say nothing in a saved output.
QUIET = {
    "TQDM_DISABLE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "PYTHONWARNINGS": "ignore::FutureWarning",
}
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
WIDGET = "application/vnd.jupyter.widget-view+json"


def setup_cell() -> str:
    """The source of the setup cell, with the address of the repository."""
    project = tomllib.loads((NOTEBOOKS.parent / "pyproject.toml").read_text())["project"]
    return SETUP.format(address=project["urls"]["Repository"]).strip()


def scripts() -> list[Path]:
    """The notebooks as py:percent scripts, in the order of the path."""
    return sorted(NOTEBOOKS.glob("[0-9]*.py"))


def execute(script: Path, folder: Path) -> None:
    """Execute the notebook of `script`; write it, with outputs, into `folder`."""
    notebook = jupytext.read(script)
    for cell in tagged(notebook, "setup"):
        cell.source = setup_cell()
    if folder == NOTEBOOKS:
        jupytext.write(notebook, script, fmt="py:percent")
    seconds = run(notebook)
    notebook.metadata = {"kernelspec": KERNEL, "plop_nb": {"seconds": seconds}}  # for the gallery
    tidy(notebook)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{script.stem}.ipynb"
    jupytext.write(notebook, path, fmt="ipynb")
    for cell in tagged(notebook, "picture"):
        picture = folder / "images" / f"{script.stem}.png"
        picture.parent.mkdir(exist_ok=True)
        picture.write_bytes(base64.b64decode(cell.outputs[0].data["image/png"]))
    shown = [output for cell in tagged(notebook, "show") for output in cell.outputs]
    print("\n\n".join(plain_text(output) for output in shown))
    print(f"\n{script.stem}: {seconds} s, written to {path}")


def tagged(notebook: Any, tag: str) -> list[Any]:
    """The cells of a notebook that have this tag."""
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def run(notebook: Any) -> int:
    """Run all cells in place, in the folder of the notebooks; how many seconds it took."""
    os.environ.update(QUIET)
    start = time.time()
    where = {"metadata": {"path": NOTEBOOKS}}
    NotebookClient(notebook, timeout=1800, kernel_name=KERNEL["name"], resources=where).execute()
    return round(time.time() - start)


def tidy(notebook: Any) -> None:
    """Leave out of a notebook what changes with every run, and what is dead once it is saved."""
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":  # GitHub shows an error for a saved widget
            cell.outputs = [one for one in cell.outputs if WIDGET not in one.get("data", {})]


def plain_text(output: Any) -> str:
    """An output of a cell as a terminal shows it."""
    return output.get("text") or output.data["text/plain"]


def main() -> None:
    """Execute the notebooks that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="such as 00_quickstart; all by default")
    parser.add_argument(
        "--out", type=Path, default=NOTEBOOKS, help="folder for the executed notebooks"
    )
    given = parser.parse_args()
    known = {script.stem: script for script in scripts()}
    unknown = sorted(set(given.names) - set(known))
    if unknown:
        parser.error(f"no notebook named {unknown}, choose from {list(known)}")
    for name, script in known.items():
        if not given.names or name in given.names:
            execute(script, given.out)


if __name__ == "__main__":
    main()
