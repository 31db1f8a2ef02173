"""How Sphinx makes the site of what build.py has gathered: settings, and small additions."""

import json
import re
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

HERE = Path(__file__).parent
PROJECT = tomllib.loads((HERE.parents[2] / "pyproject.toml").read_text())["project"]
COLAB = "https://colab.research.google.com"

project = html_title = PROJECT["name"]
version = release = PROJECT["version"]
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
smartquotes = False

# Pages and notebooks
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_ipywidgets_js: dict[str, Any] = {}  # which would be fetched
nb_code_prompt_show = nb_code_prompt_hide = "Solution"

# Docstrings
autodoc_typehints = "none"  # the docstrings say it in words
autodoc_default_options = {"members": True, "member-order": "bysource"}
autosummary_generate = False
add_module_names = False
default_role = "py:obj"
napoleon_google_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]
napoleon_use_rtype = False
python_maximum_signature_line_length = 88

# Looks
html_theme = "sphinx_book_theme"
html_static_path = [
    str(HERE / "static"),
    str(files("ziamath.fonts").joinpath("STIXTwoMath-Regular.ttf")),
]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_context = {"default_mode": "auto"}  # light or dark, as the browser is
html_use_index = html_domain_indices = False
html_theme_options: dict[str, Any] = {
    "home_page_in_toc": True,
    "navbar_persistent": [],  # the sidebar has the search
    "search_as_you_type": True,
    "show_toc_level": 2,
    "use_fullscreen_button": False,
}


def inline_formula(self: Any, node: nodes.math) -> None:
    """A formula in a line, as MathML, which browsers draw by themselves."""
    self.body.append(convert(node.astext()))
    raise nodes.SkipNode


def block_formula(self: Any, node: nodes.math_block) -> None:
    """A formula on its own, which scrolls where it is too wide."""
    formula = convert(node.astext(), display="block")
    self.body.append(f'<div class="formula">{formula}</div>')
    raise nodes.SkipNode


def adapt(app: Sphinx, name: str, source: list[str]) -> None:
    """Collapse the code of cells that are tagged as solutions; keep formulas in tables."""
    if app.env.doc2path(name).suffix == ".ipynb":
        notebook = json.loads(source[0])
        for cell in notebook["cells"]:
            tags = cell["metadata"].get("tags", [])
            if "solution" in tags:
                tags.append("hide-input")
            if cell["cell_type"] == "markdown":
                cell["source"] = keep_norms("".join(cell["source"]))
        source[0] = json.dumps(notebook)


def keep_norms(text: str) -> str:
    r"""Write the `\|` of formulas in tables as `\Vert`: there it would become a single bar."""
    return re.sub(r"^\|.*", lambda row: row[0].replace(r"\|", r"\Vert "), text, flags=re.MULTILINE)


def keep_bars(
    app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]
) -> None:
    """Leave the bars of `|x|` in docstrings, which would be a substitution."""
    lines[:] = [re.sub(r"(`+[^`]*`+)|\|", lambda one: one[1] or r"\|", line) for line in lines]


def know_anchors(app: Sphinx, page: nodes.document) -> None:
    """Let links lead to `<a id="...">`, such as those of the words in the guide."""
    anchors = app.env.metadata[app.env.docname].setdefault("myst_slugs", {})
    for raw in page.findall(nodes.raw):
        for name in re.findall(r'<a id="([^"]+)">', raw.astext()):
            anchors[name] = (raw.line, name, "")


def offer_colab(app: Sphinx, config: Any) -> None:
    """Lead from each notebook to Colab, if the project has a public address there."""
    if config.repository.startswith("https://github.com/"):
        options = {"repository_url": config.repository, "repository_branch": "main"}
        options |= {"use_repository_button": True, "launch_buttons": {"colab_url": COLAB}}
        config.html_theme_options.update(options)


def setup(app: Sphinx) -> None:
    """Add what is above to Sphinx."""
    address = PROJECT["urls"]["Repository"]
    app.add_config_value("repository", address, "html", str)
    app.add_html_math_renderer("mathml", (inline_formula, None), (block_formula, None))
    app.connect("config-inited", offer_colab, priority=100)
    app.connect("source-read", adapt)
    app.connect("autodoc-process-docstring", keep_bars)
    app.connect("doctree-read", know_anchors)
