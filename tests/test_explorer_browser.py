"""The explorer as a user meets it: a running JupyterLab, a headless Chromium, the keyboard."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest

import plop_nb as plop
from tests.conftest import TEXTS

CHROMIUM = next(
    filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None
)
CELL = """\
import pandas as pd
import plop_nb as plop
explorer = plop.explore(pd.read_pickle("scores.pkl"), k=2)
explorer"""

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright (pip install 'plop_nb[dev]')"
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None, reason="needs a chromium, chromium-browser or google-chrome"
    ),
]


@contextmanager
def jupyter(interface, folder, theme):
    """Address of a JupyterLab or Notebook that serves `folder` and keeps its settings there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = [
        "JUPYTER_CONFIG_DIR",
        "JUPYTER_RUNTIME_DIR",
        "JUPYTERLAB_SETTINGS_DIR",
        "JUPYTERLAB_WORKSPACES_DIR",
    ]
    own = {name: str(folder / ".jupyter" / name) for name in names}
    themes = Path(own["JUPYTERLAB_SETTINGS_DIR"], "@jupyterlab", "apputils-extension")
    themes.mkdir(parents=True)
    (themes / "themes.jupyterlab-settings").write_text(json.dumps({"theme": theme}))
    options = [
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--IdentityProvider.token=secret",
    ]
    options += ["--ServerApp.port_retries=0", f"--ServerApp.root_dir={folder}"]
    log = (folder / "jupyter.log").open("w")
    command = [sys.executable, "-m", "jupyterlab" if interface == "lab" else "notebook", *options]
    server = subprocess.Popen(command, env=os.environ | own, cwd=folder, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_for(f"{address}/api?token=secret", server, folder / "jupyter.log")
        yield f"{address}/{'lab/tree' if interface == 'lab' else 'notebooks'}"
    finally:
        server.terminate()  # ends its kernels too
        server.wait(30)
        log.close()


def _wait_for(url, server, log):
    for _ in range(240):
        try:
            return urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            assert server.poll() is None, log.read_text()
            time.sleep(0.5)
    raise TimeoutError(log.read_text())


@pytest.fixture
def page(request, tiny_llama, byte_tokenizer, tmp_path):
    """A page with the explorer of a tiny model, as one notebook cell shows it."""
    interface, theme = request.param
    if interface == "notebook":
        pytest.importorskip("notebook", reason="needs Notebook 7 (pip install notebook)")
    texts = [*TEXTS, *(f"{text}, again" for text in TEXTS)]
    scores = plop.nfn_scores(tiny_llama, texts, byte_tokenizer, progress=False)
    scores.to_pickle(tmp_path / "scores.pkl")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    nbformat.write(notebook, tmp_path / "explorer.ipynb")
    with jupyter(interface, tmp_path, theme) as address, sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": 1280, "height": 800}, has_touch=True)
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.goto(f"{address}/explorer.ipynb?token=secret")
        try:
            # The kernel: what is run before it is there gets lost.
            ready = "| Idle" if interface == "lab" else "Python 3"
            page.get_by_text(ready).first.wait_for()
            page.locator(".jp-Notebook .jp-InputArea-editor").first.click()
            for _ in range(20):
                page.keyboard.press("Control+Enter")
                if page.get_by_text("trainable parameters").count():
                    break
                page.wait_for_timeout(3_000)
            page.get_by_text("trainable parameters").wait_for()
            yield page
        finally:
            page.screenshot(path=tmp_path / "last.png")
            browser.close()


LAB, NOTEBOOK = ("lab", "JupyterLab Light"), ("notebook", "JupyterLab Dark")


def shown(page):
    """(parameter count, types with modules, code, picture) as the page shows them."""
    summary = page.get_by_text("trainable parameters").locator("..").inner_text()
    count, types = re.search(
        r"([\d,]+) trainable parameters in \d+ modules: (.*)", summary
    ).groups()
    picture = page.locator("svg[role=img]").inner_html()
    return (
        int(count.replace(",", "")),
        types,
        page.locator("textarea:visible").last.input_value(),
        picture,
    )


def changed(page, before):
    """What is shown once it differs from `before`."""
    for _ in range(100):
        if (now := shown(page))[2] != before[2] and now[0] != before[0]:
            return now
        page.wait_for_timeout(100)
    raise AssertionError(f"still {before[:3]}")


def redrawn(page, before):
    """Whether the picture, which comes last, becomes another one."""
    for _ in range(100):
        if shown(page)[3] != before[3]:
            return True
        page.wait_for_timeout(100)
    return False


@pytest.mark.parametrize("page", [LAB], ids=["lab"], indirect=True)
def test_explorer_in_jupyterlab_by_keyboard(page, tmp_path):
    first = shown(page)
    page.screenshot(path=tmp_path / "first.png")
    assert "r=16" in first[2] and len(first[1].split(", ")) == 2

    def slider(name):
        return page.locator(".widget-hslider", has_text=name).get_by_role("slider")

    slider("k types").press("ArrowRight")
    third = changed(page, first)
    assert third[1].startswith(first[1]) and len(third[1].split(", ")) == 3
    assert redrawn(page, first)

    slider("Rank").press("ArrowRight")
    doubled = changed(page, third)
    assert doubled[0] == 2 * third[0] and doubled[1] == third[1] and "r=32" in doubled[2]
    page.screenshot(path=tmp_path / "changed.png")

    page.get_by_role("button", name="parameter budget").press("Enter")
    box = page.get_by_label("Parameters")
    box.fill("1")
    box.press("Enter")
    alert = page.get_by_role("alert").filter(has_text="ValueError")
    alert.wait_for()
    assert "parameters=1 is less than" in alert.inner_text()
    page.screenshot(path=tmp_path / "error.png")

    box.fill(str(doubled[0] - 1))
    box.press("Enter")
    alert.wait_for(state="detached")
    within = changed(page, doubled)
    assert within[0] < doubled[0] and len(within[1].split(", ")) == 2

    fits_one_screen_in_the_colours_of_the_page(page, tmp_path)


@pytest.mark.parametrize("page", [NOTEBOOK], ids=["notebook"], indirect=True)
def test_explorer_in_a_dark_notebook_7_by_touch(page, tmp_path):
    fits_one_screen_in_the_colours_of_the_page(page, tmp_path)


def fits_one_screen_in_the_colours_of_the_page(page, tmp_path):
    """At 1280 x 800: controls, picture and config; letters light on dark, no white slab."""
    before = shown(page)
    page.get_by_role("button", name="modules").tap()
    changed(page, before)
    assert redrawn(page, before)
    assert page.get_by_role("button", name="cost of k types").is_visible()
    box = page.locator(".widget-vbox", has=page.locator("svg[role=img]")).last
    box.scroll_into_view_if_needed()
    page.screenshot(path=tmp_path / "fits.png")
    size = box.bounding_box()
    assert size["height"] <= 600 and size["width"] <= 1280
    assert box.evaluate("box => box.scrollWidth <= box.clientWidth")
    letter, ground = page.locator("svg[role=img] text").first.evaluate(
        """text => {
            let ground = text;
            const clear = "rgba(0, 0, 0, 0)";
            while (getComputedStyle(ground).backgroundColor === clear)
                ground = ground.parentElement;
            return [getComputedStyle(text).fill, getComputedStyle(ground).backgroundColor];
        }"""
    )
    brightness = [sum(map(int, re.findall(r"\d+", color)[:3])) for color in (letter, ground)]
    assert abs(brightness[0] - brightness[1]) > 300, (letter, ground)
