"""Render the executed notebooks, as saved, to a static gallery that reads offline and on a phone.

    python notebooks/tools/gallery.py                  into build/gallery, starting at index.html
    python notebooks/tools/gallery.py --out FOLDER     into another folder

Nothing is executed and nothing is fetched: figures lie in the pages, formulas become MathML. Each
notebook's question and finding are those in the README, its running time is what run.py noted.
"""

import argparse
import re
import shutil
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import nbformat
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments.formatters import HtmlFormatter

NOTEBOOKS = Path(__file__).parents[1]
ENTRY = re.compile(
    r"\[(?P<name>[^]]+)\]\(notebooks/(?P<stem>\w+)\.ipynb\): "
    r"(?P<question>.+?)<br>\*\*(?P<finding>.+?)\*\*"
)

PAGE = re.compile(r"^(\w+)\.(?:ipynb|md)\b")  # a notebook or the guide, not a file elsewhere

TITLE = "Where do the LoRA adapters go?"
INTRODUCTION = (
    "The executed notebooks of plop_nb: what each asks and finds. A picture leads to its notebook."
)
GUIDE = '<p><a href="GUIDE.html">A guide: a plan for a reading group, the words, the paper</a></p>'
BACK = '<p><a href="index.html">All notebooks</a></p>'
STYLE = """\
body { margin: 0 auto; padding: 1rem; max-width: 54rem; font: 1rem/1.5 system-ui, sans-serif;
       color: #1a1a1a; background: white; overflow-wrap: anywhere }
a { color: #0173b2 }
h1, h2, h3 { line-height: 1.2; margin-top: 2rem }
img { max-width: 100%; height: auto }
pre { overflow-x: auto; overflow-wrap: normal; margin: 0 0 1rem; font-size: 0.85rem;
      line-height: 1.4 }
.input pre, .rendered_html pre { background: #f5f6f8; padding: 0.7rem }
.celltag_solution .input::before { content: "Solution (point at it, or tap it)" }
.celltag_solution .input pre { visibility: hidden; max-height: 0; padding: 0 }
.celltag_solution:hover .input pre { visibility: visible; max-height: none; padding: 0.7rem }
.output pre { border-left: 3px solid #d5d9e0; padding-left: 0.7rem }
.output_stream pre { white-space: pre-wrap }
.output_html, .rendered_html table, .formula { display: block; overflow-x: auto }
.formula { overflow-y: hidden; padding: 0.2rem 0 }
.output_html { margin-bottom: 1rem; overflow-wrap: normal }
table { border-collapse: collapse; font-size: 0.85rem }
table, th, td { border: 0 }
th, td { padding: 0.2rem 0.6rem; text-align: right }
thead, tr { border-bottom: 1px solid #e3e6eb }
caption { text-align: left; padding-bottom: 0.4rem }
.cards { display: grid; gap: 1rem;
         grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)) }
.card { border: 1px solid #d5d9e0; border-radius: 0.5rem; padding: 1rem }
.card img { display: block; width: 100%; height: 11rem; object-fit: contain }
@media (max-width: 30rem) { .card img { height: auto } }
.card h2 { font-size: 1.1rem; margin: 0.8rem 0 0.4rem }
.card p { margin: 0.4rem 0 }
.quiet { color: #5b616b; font-size: 0.9rem }
"""


@dataclass(frozen=True)
class Entry:
    """A notebook in the README: its file without the ending, its name, what it asks and finds."""

    stem: str
    name: str
    question: str
    finding: str


class Renderer(IPythonRenderer):
    """Markdown with its formulas as MathML, which browsers draw by themselves."""

    def inline_math(self, body: str) -> str:
        return convert(body)

    def block_math(self, body: str) -> str:
        return f'<span class="formula">{convert(body, display="block")}</span>'

    def link(self, text: str, url: str, title: str | None = None) -> str:
        """A link to a notebook or to the guide leads to its page."""
        return super().link(text, PAGE.sub(r"\1.html", url), title)


def entries() -> dict[str, Entry]:
    """The notebooks in the README by their stem."""
    readme = (NOTEBOOKS.parent / "README.md").read_text()
    found = [Entry(**match.groupdict()) for match in ENTRY.finditer(readme)]
    return {entry.stem: entry for entry in found}


def markdown(source: str) -> str:
    """The HTML of a markdown cell."""
    renderer = Renderer(escape=False, exclude_anchor_links=True)
    return MarkdownWithMath(renderer=renderer).render(source)


def render(folder: Path, notebooks: Path = NOTEBOOKS) -> None:
    """Write index.html, the guide, and a page and a picture for each notebook, into `folder`."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    known, cards = entries(), []
    for path in sorted(notebooks.glob("[0-9]*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        entry = known[path.stem]
        (folder / f"{path.stem}.html").write_text(page(entry.name, cells(notebook)))
        picture = f"images/{path.stem}.png"
        shutil.copy(path.parent / picture, folder / picture)
        seconds = notebook.metadata.get("plop_nb", {}).get("seconds")
        cards.append(card(entry, seconds))
    guide = markdown((NOTEBOOKS / "GUIDE.md").read_text())
    (folder / "GUIDE.html").write_text(page("A guide", f"{BACK}{guide}{BACK}"))
    start = f"<h1>{TITLE}</h1><p>{INTRODUCTION}</p>{GUIDE}"
    start += f'<div class="cards">{"".join(cards)}</div>'
    (folder / "index.html").write_text(page("plop_nb", start))


def cells(notebook: Any) -> str:
    """The HTML of a notebook's cells, without the page that nbconvert puts around them."""
    exporter = HTMLExporter(
        filters={"markdown2html": markdown},
        template_name="basic",
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    body, _ = exporter.from_notebook_node(notebook)
    colors = HtmlFormatter().get_style_defs(".highlight")
    return f"<style>{colors}</style>{BACK}{body}{BACK}"


def card(entry: Entry, seconds: int | None) -> str:
    """A notebook in the index; `seconds` is how long it ran, if that is known."""
    stem, finding = entry.stem, escape(entry.finding)
    time = "" if seconds is None else f'<p class="quiet">Ran in {seconds} s</p>'
    return (
        f'<div class="card"><a href="{stem}.html">'
        f'<img src="images/{stem}.png" alt="{finding}"></a>'
        f'<h2><a href="{stem}.html">{escape(entry.name)}</a></h2><p>{finding}</p>'
        f'<p class="quiet">{escape(entry.question)}</p>{time}</div>'
    )


def page(title: str, body: str) -> str:
    """A whole HTML page."""
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>{body}</body></html>\n"
    )


def main() -> None:
    """Render all notebooks into the folder that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = NOTEBOOKS.parent / "build" / "gallery"
    parser.add_argument("--out", type=Path, default=default)
    folder = parser.parse_args().out
    render(folder)
    print(f"written: {folder / 'index.html'}")


if __name__ == "__main__":
    main()
