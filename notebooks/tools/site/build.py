"""Build the site: notebooks as saved, guide and reference, for a browser without a network.

    python notebooks/tools/site/build.py                  into build/site, starting at index.html
    python notebooks/tools/site/build.py --out FOLDER     into another folder

Sphinx makes the pages (conf.py), and nothing is executed or fetched. This file gathers what they
are made of, in the folders of the repository, so that its links lead to pages. The front page and
the page on the library are cut out of the README: nothing is written twice.
"""

import argparse
import inspect
import re
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

import plop_nb as plop
from plop_nb import experiments

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
AS_THEY_ARE = ["CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "notebooks/GUIDE.md"]
ENTRY = re.compile(
    r"\[(?P<name>[^]]+)\]\(notebooks/(?P<stem>\w+)\.ipynb\): "
    r"(?P<question>.+?)<br>\*\*(?P<finding>.+?)\*\*"
)
TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)

CARDS = ":::::{{grid}} 1 2 2 2\n:gutter: 3\n\n{cards}:::::\n"
CARD = """\
::::{{grid-item-card}} {name}
:img-top: notebooks/images/{stem}.png
:img-alt: {finding}
:link: notebooks/{stem}
:link-type: doc

**{finding}**

{question}

{footer}
::::

"""
FOOTER = ":::{{card-footer}}\nRan in {seconds} s\n:::"
CONTENTS = """
```{{toctree}}
:hidden:
:caption: {caption}

{pages}
```
"""
MODULE = """\
.. automodule:: {module}
   :no-members:

.. autosummary::
   :nosignatures:

   {names}

"""


@dataclass(frozen=True)
class Entry:
    """A notebook in the README: its file without the ending, its name, what it asks and finds."""

    stem: str
    name: str
    question: str
    finding: str


def entries(readme: str) -> dict[str, Entry]:
    """The notebooks in the README by their stem."""
    found = [Entry(**match.groupdict()) for match in ENTRY.finditer(readme)]
    return {entry.stem: entry for entry in found}


def gather(folder: Path, notebooks: list[Path]) -> None:
    """Write what the site is made of into `folder`."""
    readme = (ROOT / "README.md").read_text()
    known = entries(readme)
    (folder / "notebooks" / "images").mkdir(parents=True)
    for name in AS_THEY_ARE:
        shutil.copy(ROOT / name, folder / name)
    for path in notebooks:
        shutil.copy(path, folder / "notebooks")
        shutil.copy(path.parent / "images" / f"{path.stem}.png", folder / "notebooks" / "images")
    cards = CARDS.format(cards="".join(card(known[path.stem], path) for path in notebooks))
    first, library = halves(readme)
    front = TABLE.sub(lambda table: cards, first)
    (folder / "index.md").write_text(front + contents(known[path.stem] for path in notebooks))
    (folder / "library.md").write_text(library)
    (folder / "reference.md").write_text(reference("Reference: plop_nb", plop))
    (folder / "experiments.md").write_text(reference("Reference: experiments", experiments))


def halves(readme: str) -> tuple[str, str]:
    """The README's first screen with the path through the notebooks, and all the rest of it."""
    start, *sections = re.split(r"^(?=## )", readme, flags=re.MULTILINE)
    path = "".join(section for section in sections if section.startswith("## The path"))
    rest = "".join(section for section in sections if section not in path)
    return start + path, f"# The library\n\n{rest}"


def card(entry: Entry, path: Path) -> str:
    """A notebook on the front page, with the time that run.py noted, if it did."""
    seconds = nbformat.read(path, as_version=4).metadata.get("plop_nb", {}).get("seconds")
    footer = "" if seconds is None else FOOTER.format(seconds=seconds)
    return CARD.format(**vars(entry), footer=footer)


def contents(notebooks: Iterable[Entry]) -> str:
    """The navigation: the course, the library, the project."""
    course = [f"{entry.name} <notebooks/{entry.stem}>" for entry in notebooks]
    parts = {
        "The course": ["Guide and words <notebooks/GUIDE>", *course],
        "The library": ["Use and cost <library>", "reference", "experiments"],
        "The project": ["CONTRIBUTING", "CHANGELOG"],
    }
    listed = [CONTENTS.format(caption=part, pages="\n".join(parts[part])) for part in parts]
    return "".join(listed)


def reference(title: str, module: ModuleType) -> str:
    """The page of a module: its docstring, a table of its public names, and their docstrings."""
    return f"# {title}\n\n```{{eval-rst}}\n{documented(module)}```\n"


def documented(module: ModuleType) -> str:
    """What Sphinx is to write about a module; a public module in it comes last."""
    name, values = module.__name__, {each: getattr(module, each) for each in module.__all__}
    inner = [each for each, value in values.items() if inspect.ismodule(value)]
    own = [each for each in values if each not in inner]
    text = MODULE.format(module=name, names="\n   ".join(own))
    text += "".join(f".. auto{kind(values[each])}:: {each}\n" for each in own)
    return text + "".join(f"\n{documented(values[each])}" for each in inner)


def kind(value: Any) -> str:
    """What Sphinx calls such a value."""
    if inspect.isclass(value):
        return "class"
    return "function" if callable(value) else "data"


def build(folder: Path, notebooks: list[Path] | None = None, **settings: Any) -> None:
    """Write the site into `folder`; a warning is an error.

    `notebooks` are files that the README lists, by default all of them; `settings` replace those of
    conf.py.
    """
    if notebooks is None:
        notebooks = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as work:
        source, kept = Path(work) / "source", Path(work) / "kept"
        gather(source, notebooks)
        with patch_docutils(), docutils_namespace():
            sphinx = Sphinx(
                source,
                HERE,
                folder,
                kept,
                "html",
                confoverrides=settings,
                status=None,
                warningiserror=True,
            )
            sphinx.build()
    if sphinx.statuscode:
        raise SystemExit(sphinx.statuscode)


def main() -> None:
    """Build the site in the folder that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site")
    folder = parser.parse_args().out
    build(folder)
    print(f"written: {folder / 'index.html'}")


if __name__ == "__main__":
    main()
