"""Pytest runs the cells of notebooks and compares them as notebooks/tools/nbval_outputs.py says."""

import pytest

from notebooks.tools import nbval_outputs

nbval_outputs.install()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every cell of a notebook counts as slow."""
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker(pytest.mark.slow)
