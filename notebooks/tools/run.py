"""Execute notebooks from their paired py:percent scripts, on the environment this runs in.

    python notebooks/tools/run.py                  execute all, write the .ipynb beside the .py
    python notebooks/tools/run.py 00_quickstart --out build    execute one into another folder
    python notebooks/tools/run.py --setup          rewrite the setup cells, execute nothing

Prints the text output of the cells tagged "show"; saves the figure of the cell tagged "picture" for
the README. The setup cell is the same in all notebooks; it is written here, with the repository's
address from pyproject.toml.
"""

import argparse
import base64
import json
import os
import re
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jupytext
from nbclient import NotebookClient
from tqdm.auto import tqdm

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

# The same while the repository has no public address: from a file that lies beside the notebook.
SETUP_FROM_FILE = """\
# Setup, the same in every notebook. On Colab it installs plop_nb and leaves Colab's torch as it is.
from glob import glob
from importlib.util import find_spec

from IPython import get_ipython

if find_spec("plop_nb") is None:
    files = glob("plop_nb*.whl") + glob("plop_nb*.zip") + glob("/content/plop_nb*.whl")
    if not files:
        raise SystemExit("{missing}")
    get_ipython().run_line_magic("pip", f'install -q "{files[0]}[tasks,finetune]"')
import torch

import plop_nb as plop
"""
MISSING = (
    "plop_nb is not installed here. Put its wheel (plop_nb-*.whl, from `pip wheel --no-deps .` in "
    "the repository) or a zip of the repository beside this notebook, on Colab into /content, and "
    "run this cell again."
)
CELL_OF_SCRIPT = re.compile(r'(?<=# %% tags=\["setup"\]\n).*?(?=\n\n# %%)', re.DOTALL)

# Progress bars and other packages' deprecations say nothing in a saved output.
QUIET = {
    "TQDM_DISABLE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "PYTHONWARNINGS": "ignore::FutureWarning",
}
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
WIDGET = "application/vnd.jupyter.widget-view+json"


def setup_cell() -> str:
    """The source of the setup cell, which installs from the repository once it is public."""
    project = tomllib.loads((NOTEBOOKS.parent / "pyproject.toml").read_text())["project"]
    address = project["urls"]["Repository"]
    if ".invalid/" in address:
        return SETUP_FROM_FILE.replace("{missing}", MISSING).strip()
    return SETUP.format(address=address).strip()


def rewrite_setup() -> None:
    """Put the setup cell of today into every script and its notebook, and change nothing else."""
    for script in scripts():
        text = script.read_text(encoding="utf-8")
        script.write_text(CELL_OF_SCRIPT.sub(lambda _: setup_cell(), text), encoding="utf-8")
        path = script.with_suffix(".ipynb")
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            if "setup" in cell["metadata"].get("tags", []):
                cell["source"] = setup_cell().splitlines(keepends=True)
        text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True)
        path.write_text(text + "\n", encoding="utf-8")


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
    seconds = run(notebook, script.stem)
    notebook.metadata = {"kernelspec": KERNEL, "plop_nb": {"seconds": seconds}}  # for the site
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


def run(notebook: Any, name: str) -> int:
    """Run all cells in place, in the folder of the notebooks; how many seconds it took."""
    os.environ.update(QUIET)
    start = time.time()
    cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    with moving_bar(name, cells) as bar:
        NotebookClient(
            notebook,
            timeout=1800,
            kernel_name=KERNEL["name"],
            resources={"metadata": {"path": NOTEBOOKS}},
            extra_arguments=["--IPKernelApp.log_level=ERROR"],  # else it warns about its sockets
            on_cell_executed=lambda **_: bar.update(),
        ).execute()
    return round(time.time() - start)


@contextmanager
def moving_bar(name: str, cells: int) -> Iterator[tqdm]:
    """A bar over the cells of a notebook whose clock goes on while a cell runs."""
    pause = 1 if sys.stderr.isatty() else 20  # a file gets a line each time
    over = threading.Event()
    form = "{desc} |{bar:30}| {n_fmt} of {total_fmt} cells, {elapsed}"  # cells differ: no forecast
    with tqdm(desc=name, total=cells, bar_format=form, disable=False, mininterval=0) as bar:

        def tick() -> None:
            while not over.wait(pause):
                bar.refresh()

        clock = threading.Thread(target=tick, daemon=True)
        clock.start()
        try:
            yield bar
        finally:
            over.set()
            clock.join()


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
    parser.add_argument(
        "--setup", action="store_true", help="rewrite the setup cells of all, execute nothing"
    )
    given = parser.parse_args()
    if given.setup:
        return rewrite_setup()
    known = {script.stem: script for script in scripts()}
    unknown = sorted(set(given.names) - set(known))
    if unknown:
        parser.error(f"no notebook named {unknown}, choose from {list(known)}")
    for name, script in known.items():
        if not given.names or name in given.names:
            execute(script, given.out)


if __name__ == "__main__":
    main()
