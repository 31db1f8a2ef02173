"""The site: complete, readable without a network, on a phone, in the dark; searched from disk."""

import re
import shutil
import subprocess
import sys
import tomllib
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
from packaging.requirements import Requirement

import plop_nb as plop
from notebooks.tools import run
from plop_nb import experiments
from tests.test_project import pinned_versions, plain_name

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"))
PAGES = [f"notebooks/{stem}" for stem in [*NOTEBOOKS, "GUIDE"]]
PAGES += ["index", "library", "reference", "experiments", "CONTRIBUTING", "CHANGELOG"]
PHONE = {"width": 390, "height": 844}
COMMAND = [sys.executable, "notebooks/tools/site/build.py", "--out"]
build = pytest.importorskip(
    "notebooks.tools.site.build", reason="needs the extra site", exc_type=ImportError
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The whole site, by its command, which says nothing but where it is."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run([*COMMAND, folder], cwd=ROOT, capture_output=True, text=True)
    said = (done.returncode, done.stdout, done.stderr)
    assert said == (0, f"written: {folder / 'index.html'}\n", "")
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


class Page(HTMLParser):
    """The names in a page, and (tag, address) of everything that it links to or loads."""

    def __init__(self, path):
        super().__init__()
        self.links, self.names = [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        self.links += [(tag, value) for name, value in attrs if name in ("href", "src", "srcset")]
        self.names |= {value for name, value in attrs if name == "id"}


def entries():
    return build.entries((ROOT / "README.md").read_text())


def markdown(stem):
    """The text of a notebook, without code."""
    cells = nbformat.read(ROOT / "notebooks" / f"{stem}.ipynb", as_version=4).cells
    text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return re.sub(r"`[^`]*`", "", text)


# Without a browser


def test_readme_shows_every_picture():
    pictures = re.findall(r'\[<img src="(.+?)".*?>\]\((.+?)\)', (ROOT / "README.md").read_text())
    assert pictures == [
        (f"notebooks/images/{stem}.png", f"notebooks/{stem}.ipynb") for stem in NOTEBOOKS
    ]
    assert all((ROOT / picture).is_file() for picture, _ in pictures)


def test_packages_of_the_site_are_pinned_and_within_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins, extras = pinned_versions(), project["optional-dependencies"]
    assert "site" in extras["dev"][0]
    for wanted in map(Requirement, extras["site"]):
        assert wanted.specifier.contains(pins[plain_name(wanted.name)]), wanted


def test_own_files_can_be_read_in_one_go():
    for path in Path(build.__file__).parent.rglob("*.*"):
        assert path.suffix == ".pyc" or len(path.read_text().splitlines()) <= 400, path


@pytest.mark.slow
def test_running_time_is_noted_and_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "QUIET", {})  # for this process it would be for good
    picture = 'Image("images/00_quickstart.png")'
    cell = ['# %% tags=["picture"]', "from IPython.display import Image", picture]
    (tmp_path / "00_quickstart.py").write_text("\n".join(cell))
    run.execute(tmp_path / "00_quickstart.py", tmp_path)
    executed = tmp_path / "00_quickstart.ipynb"
    noted = nbformat.read(executed, as_version=4).metadata["plop_nb"]["seconds"]
    assert isinstance(noted, int) and noted >= 0
    build.gather(tmp_path / "source", [executed])
    assert f"\nRan in {noted} s\n" in (tmp_path / "source" / "index.md").read_text()


@pytest.mark.slow
def test_links_lead_to_what_is_there_and_nothing_is_loaded_from_a_network(folder):
    pages = {path: Page(path) for path in folder.rglob("*.html") if "_static" not in path.parts}
    assert {str(path.relative_to(folder))[:-5] for path in pages} == {*PAGES, "search"}
    for path, page in pages.items():
        for tag, address in page.links:
            if address.startswith(("https://", "http://")):
                assert tag == "a", f"{path}: <{tag}> loads {address}"
            elif not address.startswith("data:"):
                file, _, name = unquote(address).partition("#")
                target = (path.parent / file.partition("?")[0]).resolve() if file else path
                assert target.is_file() and target.is_relative_to(folder), f"{path}: {address}"
                known = name in ("", "_") or target not in pages or name in pages[target].names
                assert known, f"{path}: {address}"
                outside = target.suffix in (".md", ".ipynb") and "_sources" not in target.parts
                assert not outside, f"{path}: {address} should be a page"


@pytest.mark.slow
def test_styles_and_scripts_load_nothing_from_a_network(folder):
    loads = r"(?:url\(|@import |fetch\(|import\(|importScripts\(|\b(?:src|href) ?= ?)[\"']?"
    for path in [*folder.rglob("*.css"), *folder.rglob("*.js"), *folder.rglob("*.html")]:
        found = re.findall(rf"{loads}(?:https?:)?//[^\"')\s]+", path.read_text())
        assert not [each for each in found if not each.startswith('href="http')], path


@pytest.mark.slow
def test_front_page_shows_every_notebook_with_its_finding(folder):
    text, links = (folder / "index.html").read_text(), Page(folder / "index.html").links
    assert sorted(entries()) == NOTEBOOKS
    for stem, entry in entries().items():
        assert ("a", f"notebooks/{stem}.html") in links
        assert ("img", f"_images/{stem}.png") in links
        assert len(entry.finding) < 140
        assert escape(entry.finding, False) in text and escape(entry.question, False) in text
    assert "What we found" in text and "make quickstart" not in text


@pytest.mark.slow
@pytest.mark.parametrize("stem", NOTEBOOKS)
def test_notebook_is_there_to_download_as_it_is(folder, stem):
    download = f"_sources/notebooks/{stem}.ipynb"
    assert ("a", f"../{download}") in Page(folder / f"notebooks/{stem}.html").links
    assert (folder / download).read_bytes() == (ROOT / f"notebooks/{stem}.ipynb").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("stem", NOTEBOOKS)
def test_exercises_are_in_the_contents_of_a_page(folder, stem):
    text = (folder / f"notebooks/{stem}.html").read_text()
    contents = text[text.index('class="page-toc') :]
    exercises = re.findall(r"^#+ (.*(?:Exercise|minutes\)).*)$", markdown(stem), re.MULTILINE)
    assert exercises and [one for one in exercises if f"{one}</a>" not in contents] == []


@pytest.mark.slow
def test_reference_has_every_public_name(folder):
    for page, module in {"reference": plop, "experiments": experiments}.items():
        wanted = {f"{module.__name__}.{name}" for name in module.__all__} - {
            "plop_nb.experiments.grpo"
        }
        assert wanted <= Page(folder / f"{page}.html").names
    grpo = {f"plop_nb.experiments.grpo.{name}" for name in experiments.grpo.__all__}
    assert grpo <= Page(folder / "experiments.html").names


@pytest.mark.slow
def test_words_of_the_guide_keep_their_anchors(folder):
    wanted = re.findall(r'<a id="(.+?)">', (ROOT / "notebooks" / "GUIDE.md").read_text())
    assert len(wanted) > 50
    assert set(wanted) <= Page(folder / "notebooks" / "GUIDE.html").names


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
def test_colab_is_offered_where_the_repository_is_public(folder, tmp_path):
    colab, page = "https://colab.research.google.com/github/", "notebooks/00_quickstart.html"
    assert colab not in (folder / page).read_text()
    build.build(
        tmp_path,
        [ROOT / "notebooks/00_quickstart.ipynb"],
        repository="https://github.com/someone/plop_nb",
        suppress_warnings=["image.not_readable", "myst.xref_missing"],  # of other notebooks
    )
    address = f"{colab}someone/plop_nb/blob/main/notebooks/00_quickstart.ipynb"
    assert ("a", address) in Page(tmp_path / page).links
    assert colab not in (tmp_path / "index.html").read_text()


# In a browser


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_page_on_a_phone(folder, phone, name):
    asked, failed = [], []
    phone.on("request", lambda request: asked.append(request.url))
    phone.on("requestfailed", lambda request: failed.append(request.url))
    phone.goto((folder / f"{name}.html").as_uri())
    assert failed == [] and all(url.startswith(("file:", "data:")) for url in asked)
    assert phone.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    phone.evaluate("[...document.images].forEach(image => image.loading = 'eager')")
    phone.wait_for_function("[...document.images].every(image => image.naturalWidth)")


@pytest.mark.slow
@pytest.mark.parametrize("stem", NOTEBOOKS)
def test_formulas_are_drawn(folder, phone, stem):
    phone.goto((folder / f"notebooks/{stem}.html").as_uri())
    phone.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    areas = phone.evaluate(
        "[...document.querySelectorAll('math')].map(math => math.getBoundingClientRect())"
        ".map(box => box.width * box.height)"
    )
    formulas = re.findall(r"\$\$.+?\$\$|\$[^$]+\$", markdown(stem), re.DOTALL)
    assert len(areas) == len(formulas) and all(area > 0 for area in areas)
    phone.evaluate(
        "document.querySelectorAll('pre, code, .cell_output').forEach(each => each.remove())"
    )
    prose = phone.locator("article").inner_text()
    assert "$" not in prose and "\\" not in prose


@pytest.mark.slow
def test_norms_in_tables_keep_both_bars(folder, phone):
    phone.goto((folder / "notebooks/01_why_alignment_grows.html").as_uri())
    assert "‖" in phone.locator("table", has_text="Frobenius").inner_text()


@pytest.mark.slow
def test_solutions_are_hidden_until_they_are_asked_for(folder, phone):
    phone.goto((folder / "notebooks/04_what_nfn_measures.html").as_uri())
    solution = phone.locator(".tag_solution").first
    assert not solution.locator(".cell_input pre").is_visible()
    solution.get_by_text("Solution").first.click()
    assert solution.locator(".cell_input pre").is_visible()


@pytest.mark.slow
@pytest.mark.parametrize("viewport", [PHONE, {"width": 1280, "height": 900}])
def test_search_finds_words_from_disk(folder, browser, viewport):
    with browser.new_context(viewport=viewport, offline=True) as context:
        page = context.new_page()
        page.goto((folder / "notebooks/GUIDE.html").as_uri())
        page.locator(".search-button-field:visible, .search-button:visible").first.click()
        page.keyboard.type("channel")
        results = page.locator("dialog a", has_text="What does the score measure")
        results.first.click()
        page.wait_for_url("**/notebooks/04_what_nfn_measures.html*")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_are_on_white_whatever_the_page_is_on(folder, browser, scheme):
    with browser.new_context(color_scheme=scheme, offline=True) as context:
        page = context.new_page()
        page.goto((folder / "notebooks/01_why_alignment_grows.html").as_uri())
        of = "getComputedStyle(document.querySelector('{}')).{}"
        white = "rgb(255, 255, 255)"
        assert page.evaluate(of.format("article img", "backgroundColor")) == white
        assert page.evaluate(of.format("article img", "filter")) == "none"
        is_white = page.evaluate(of.format("body", "backgroundColor")) == white
        assert is_white == (scheme == "light")
