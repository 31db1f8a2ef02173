"""Execute notebooks from their paired py:percent scripts, on the environment this runs in.

    python notebooks/run.py                  execute all, write the .ipynb beside the .py
    python notebooks/run.py 00_quickstart --out build    execute one into another folder

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

import jupytext
from nbclient import NotebookClient

HERE = Path(__file__).parent
SETUP = """\
# Setup, the same in every notebook. On Colab it installs plop_nb and leaves Colab's torch as it is.
import importlib.util

if importlib.util.find_spec("plop_nb") is None:
    %pip install -q "plop_nb[tasks,finetune] @ git+{address}"

import torch

import plop_nb as plop
"""

# Progress bars and other packages' deprecations say nothing in a saved output.
QUIET = {"TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "PYTHONWARNINGS": "ignore::FutureWarning"}
WIDGET = "application/vnd.jupyter.widget-view+json"


def setup_cell():
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    return SETUP.format(address=project["urls"]["Repository"]).strip()


def scripts():
    return sorted(HERE.glob("[0-9]*.py"))


def execute(script, folder):
    """Execute the notebook of `script`; write it, with outputs, into `folder`."""
    notebook = jupytext.read(script)
    for cell in notebook.cells:
        if "setup" in cell.metadata.get("tags", []):
            cell.source = setup_cell()
    if folder == HERE:
        jupytext.write(notebook, script, fmt="py:percent")
    os.environ.update(QUIET)
    start = time.time()
    NotebookClient(notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": HERE}}).execute()
    seconds = round(time.time() - start)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = {"kernelspec": kernel, "plop_nb": {"seconds": seconds}}  # for the gallery
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"  # else every run would change every cell
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":  # a saved widget is dead, and GitHub shows an error for it
            cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {})]
    folder.mkdir(parents=True, exist_ok=True)
    jupytext.write(notebook, folder / f"{script.stem}.ipynb", fmt="ipynb")
    for cell in notebook.cells:
        if "picture" in cell.metadata.get("tags", []):
            picture = folder / "images" / f"{script.stem}.png"
            picture.parent.mkdir(exist_ok=True)
            picture.write_bytes(base64.b64decode(cell.outputs[0].data["image/png"]))
    shown = [c for c in notebook.cells if "show" in c.metadata.get("tags", [])]
    print("\n\n".join(plain_text(output) for cell in shown for output in cell.outputs))
    print(f"\n{script.stem}: {seconds} s, written to {folder / script.stem}.ipynb")


def plain_text(output):
    return output.get("text") or output.data["text/plain"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="such as 00_quickstart; all by default")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the executed notebooks")
    arguments = parser.parse_args()
    chosen = [s for s in scripts() if not arguments.names or s.stem in arguments.names]
    unknown = set(arguments.names) - {s.stem for s in chosen}
    if unknown:
        parser.error(f"no notebook named {sorted(unknown)}, choose from {[s.stem for s in scripts()]}")
    for script in chosen:
        execute(script, arguments.out)


if __name__ == "__main__":
    main()
