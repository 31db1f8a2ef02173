"""Render the executed notebooks, as they are saved, to a static gallery that reads offline and on a phone.

    python notebooks/gallery.py                  into build/gallery, starting at index.html
    python notebooks/gallery.py --out FOLDER     into another folder

Nothing is executed and nothing is fetched: figures lie in the pages, formulas become MathML. Each notebook's
question and finding are those in the README, its running time is what run.py noted in it.
"""

import argparse
import re
import shutil
from html import escape
from pathlib import Path

import nbformat
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments.formatters import HtmlFormatter

HERE = Path(__file__).parent
ENTRY = re.compile(r"\[([^]]+)\]\(notebooks/(\w+)\.ipynb\): (.+?)<br>\*\*(.+?)\*\*")  # name, stem, question, finding

INTRODUCTION = "The executed notebooks of plop_nb: what each asks and finds. A picture leads to its notebook."
STYLE = """\
body { margin: 0 auto; padding: 1rem; max-width: 54rem; font: 1rem/1.5 system-ui, sans-serif; color: #1a1a1a;
       background: white; overflow-wrap: anywhere }
a { color: #0173b2 }
h1, h2, h3 { line-height: 1.2; margin-top: 2rem }
img { max-width: 100%; height: auto }
pre { overflow-x: auto; overflow-wrap: normal; margin: 0 0 1rem; font-size: 0.85rem; line-height: 1.4 }
.input pre, .rendered_html pre { background: #f5f6f8; padding: 0.7rem }
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
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap: 1rem }
.card { border: 1px solid #d5d9e0; border-radius: 0.5rem; padding: 1rem }
.card img { display: block; width: 100%; height: 11rem; object-fit: contain }
@media (max-width: 30rem) { .card img { height: auto } }
.card h2 { font-size: 1.1rem; margin: 0.8rem 0 0.4rem }
.card p { margin: 0.4rem 0 }
.quiet { color: #5b616b; font-size: 0.9rem }
"""


class Renderer(IPythonRenderer):
    """Markdown with its formulas as MathML, which browsers draw by themselves."""

    def inline_math(self, body):
        return convert(body)

    def block_math(self, body):
        return f'<span class="formula">{convert(body, display="block")}</span>'


def markdown(source):
    return MarkdownWithMath(renderer=Renderer(escape=False, exclude_anchor_links=True)).render(source)


def render(folder, notebooks=HERE):
    """Write index.html, and one page and one picture for each of `notebooks`, into `folder`."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    entries = {entry[1]: entry for entry in ENTRY.findall((HERE.parent / "README.md").read_text())}
    plain = {"template_name": "basic", "exclude_input_prompt": True, "exclude_output_prompt": True}
    exporter = HTMLExporter(filters={"markdown2html": markdown}, **plain)  # the cells alone, without nbconvert's page
    cards = []
    for path in sorted(notebooks.glob("[0-9]*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        name, _, question, finding = entries[path.stem]
        cells, _ = exporter.from_notebook_node(notebook)
        back = '<a href="index.html">All notebooks</a>'
        code = f"<style>{HtmlFormatter().get_style_defs('.highlight')}</style>"
        (folder / f"{path.stem}.html").write_text(page(name, f"{code}<p>{back}</p>{cells}<p>{back}</p>"))
        picture = f"images/{path.stem}.png"
        shutil.copy(path.parent / picture, folder / picture)
        cards.append(card(path.stem, name, question, finding, notebook.metadata.get("plop_nb", {}).get("seconds")))
    start = f'<h1>Where do the LoRA adapters go?</h1><p>{INTRODUCTION}</p><div class="cards">{"".join(cards)}</div>'
    (folder / "index.html").write_text(page("plop_nb", start))


def card(stem, name, question, finding, seconds):
    """A notebook in the index."""
    time = "" if seconds is None else f'<p class="quiet">Ran in {seconds} s</p>'
    return (
        f'<div class="card"><a href="{stem}.html"><img src="images/{stem}.png" alt="{escape(finding)}"></a>'
        f'<h2><a href="{stem}.html">{escape(name)}</a></h2><p>{escape(finding)}</p>'
        f'<p class="quiet">{escape(question)}</p>{time}</div>'
    )


def page(title, body):
    """A whole HTML page."""
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>{body}</body></html>\n"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE.parent / "build" / "gallery")
    folder = parser.parse_args().out
    render(folder)
    print(f"written: {folder / 'index.html'}")


if __name__ == "__main__":
    main()
