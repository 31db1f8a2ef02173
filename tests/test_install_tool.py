"""The tool that installs for make: what it shows of pip's lines, and that its failure is one."""

import sys

import pytest

from notebooks.tools import install

UNPACKING = "unpacking 3 packages: half a minute to two, without further lines"
SHOWN = {
    "  Downloading torch-2.13.0-cp311.whl (187.5 MB)": "torch-2.13.0-cp311.whl, 187.5 MB",
    "Using cached https://index/a/jupyterlab-4.6.6.whl (17.3 MB)": "jupyterlab-4.6.6.whl, 17.3 MB",
    "  Downloading six-1.17.0.whl.metadata (1.7 kB)": "",
    "Requirement already satisfied: pip in /somewhere": "",
    "Installing collected packages: a, b, c": UNPACKING,
    "ERROR: No matching distribution for it": "ERROR: No matching distribution for it",
    "  error: command 'gcc' failed: No such file": "error: command 'gcc' failed: No such file",
}


@pytest.mark.parametrize("line", SHOWN)
def test_of_pip_large_downloads_and_errors_are_shown(line):
    assert install.telling(f"{line}\n") == SHOWN[line]


def test_everything_is_in_the_log_and_the_exit_code_is_kept(tmp_path, capsys):
    code = "print('Collecting a'); print('ERROR: no'); raise SystemExit(3)"
    assert install.follow([sys.executable, "-c", code], tmp_path / "pip.log") == 3
    assert capsys.readouterr().out == "  ERROR: no\n"
    assert (tmp_path / "pip.log").read_text() == "Collecting a\nERROR: no\n"


def test_a_slow_search_shows_signs_of_life(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(install, "PAUSE", 0)
    code = "print('Collecting a'); print('Collecting b')"
    install.follow([sys.executable, "-c", code], tmp_path / "pip.log")
    assert capsys.readouterr().out == "  packages looked up: 1\n  packages looked up: 2\n"
