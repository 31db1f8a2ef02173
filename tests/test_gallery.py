"""The rendered notebooks: complete, readable offline, readable on a phone."""

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest

from notebooks.tools import gallery, run

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"))
PAGES = ["index", *NOTEBOOKS]
PHONE = {"width": 390, "height": 844}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gallery")
    gallery.render(folder)
    return folder


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="needs playwright, of the extra dev"
    )
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next((path for name in names if (path := shutil.which(name))), None)
    if chromium is None:
        pytest.skip("needs an installed Chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def phone(browser):
    """A page of a browser on a phone without a network."""
    with browser.new_context(viewport=PHONE, offline=True) as context:
        yield context.new_page()


class Links(HTMLParser):
    """(tag, address) of everything that a page links to or loads."""

    def __init__(self, path):
        super().__init__()
        self.found = []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        self.found += [(tag, value) for name, value in attrs if name in ("href", "src", "srcset")]


def formulas(stem):
    """The LaTeX formulas in a notebook's text."""
    cells = nbformat.read(ROOT / "notebooks" / f"{stem}.ipynb", as_version=4).cells
    found = []
    for cell in cells:
        if cell.cell_type == "markdown":
            text = re.sub(r"`[^`]*`", "", cell.source)
            found += re.findall(r"\$\$.+?\$\$|\$[^$]+\$", text, re.DOTALL)
    return found


@pytest.mark.parametrize("stem", [*PAGES, "GUIDE"])
def test_links_resolve_and_nothing_is_loaded_from_a_network(folder, stem):
    found = Links(folder / f"{stem}.html").found
    assert found
    for tag, address in found:
        if address.startswith(("https://", "http://")):
            assert tag == "a", f"<{tag}> loads {address}"
        elif not address.startswith("data:"):
            file, _, place = address.partition("#")
            target = folder / (file or f"{stem}.html")
            assert target.is_file(), address
            assert not place or f'id="{place}"' in target.read_text(), address
            assert not file.endswith((".ipynb", ".md")), address
    assert not re.search(r"@import|url\((?!#|[\"']?data:)", (folder / f"{stem}.html").read_text())


def test_index_shows_every_notebook_with_its_finding(folder):
    index, text = Links(folder / "index.html").found, (folder / "index.html").read_text()
    entries = gallery.entries()
    assert sorted(entries) == NOTEBOOKS
    for stem, entry in entries.items():
        assert ("a", f"{stem}.html") in index and ("img", f"images/{stem}.png") in index
        assert len(entry.finding) < 140 and gallery.escape(entry.finding) in text


def test_readme_shows_every_picture():
    pictures = re.findall(r'\[<img src="(.+?)".*?>\]\((.+?)\)', (ROOT / "README.md").read_text())
    assert pictures == [
        (f"notebooks/images/{stem}.png", f"notebooks/{stem}.ipynb") for stem in NOTEBOOKS
    ]
    assert all((ROOT / picture).is_file() for picture, _ in pictures)


@pytest.mark.parametrize("stem", PAGES)
def test_page_on_a_phone(folder, phone, stem):
    asked, failed = [], []
    phone.on("request", lambda request: asked.append(request.url))
    phone.on("requestfailed", lambda request: failed.append(request.url))
    phone.goto((folder / f"{stem}.html").as_uri())
    assert failed == [] and all(url.startswith(("file:", "data:")) for url in asked)
    assert phone.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    broken = "[...document.images].filter(image => !image.naturalWidth).length"
    assert phone.evaluate(broken) == 0
    assert phone.evaluate("document.images.length") > 0


@pytest.mark.parametrize("stem", NOTEBOOKS)
def test_formulas_are_drawn(folder, phone, stem):
    phone.goto((folder / f"{stem}.html").as_uri())
    areas = phone.evaluate(
        "[...document.querySelectorAll('math')].map(math => math.getBoundingClientRect())"
        ".map(box => box.width * box.height)"
    )
    assert len(areas) == len(formulas(stem)) and all(area > 0 for area in areas)
    phone.evaluate(
        "document.querySelectorAll('pre, code, .output').forEach(element => element.remove())"
    )
    prose = phone.evaluate("document.body.innerText")
    assert "$" not in prose and "\\" not in prose


def test_running_time_is_noted_and_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "QUIET", {})  # for this process it would be for good
    picture = 'Image("images/00_quickstart.png")'
    cell = ['# %% tags=["picture"]', "from IPython.display import Image", picture]
    (tmp_path / "00_quickstart.py").write_text("\n".join(cell))
    run.execute(tmp_path / "00_quickstart.py", tmp_path)
    noted = nbformat.read(tmp_path / "00_quickstart.ipynb", as_version=4).metadata["plop_nb"][
        "seconds"
    ]
    assert isinstance(noted, int) and noted >= 0
    gallery.render(tmp_path / "gallery", notebooks=tmp_path)
    assert f"Ran in {noted} s" in (tmp_path / "gallery" / "index.html").read_text()


def test_solutions_are_hidden_until_they_are_asked_for(folder, phone):
    phone.goto(f"file://{folder}/04_what_nfn_measures.html")
    solution = phone.locator(".celltag_solution").first
    code = solution.locator(".input pre")
    assert not code.is_visible()
    solution.scroll_into_view_if_needed()
    solution.hover()
    assert code.is_visible() and "Solution" in code.inner_text()
