"""What an adapter really hits: `plop-nb coverage`, also as a step of somebody's tests."""

import argparse
import json
import math
import os
import sys
import warnings
from contextlib import redirect_stdout
from typing import Any

import pandas as pd

from plop_nb.covering import Coverage, CoverageWarning, coverage


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("model", help="a Hub id or a model folder; only its config.json is read")
    parser.add_argument(
        "config",
        help="an adapter's folder, its adapter_config.json, or targets: names with commas between "
        "them, a regular expression, all-linear",
    )
    parser.add_argument("--json", action="store_true", help="print it for a program to read")


def run(given: argparse.Namespace) -> int:
    """Print what is hit. Returns 1 where an entry hits nothing."""
    with warnings.catch_warnings(), redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore", CoverageWarning)  # they are printed with the rest
        found = coverage(given.model, _config(given.config))
    print(json.dumps(_plain(found), indent=1, ensure_ascii=False) if given.json else found)
    if not given.json and not os.path.exists(given.config):
        print("plop_nb: counted at rank 8, PEFT's default: names give none", file=sys.stderr)
    return 1 if found.missed or not found.adapted else 0


def _config(text: str) -> str | list[str]:
    """Names with commas between them as a list; a path or a regular expression as it is."""
    names = [name.strip() for name in text.split(",")]
    are_names = all(name.replace(".", "").replace("_", "").isalnum() for name in names)
    return names if "," in text and are_names else text


def _plain(found: Coverage) -> dict[str, Any]:
    """What JSON can hold."""
    return {
        "model": found.model,
        "adapters": len(found.adapted),
        "trainable": sum(found.adapted.values()),
        "missed": found.missed,
        "problems": found.problems,
        "notes": found.notes,
        "table": _rows(found.table),
        "types": _rows(found.types),
        "trained": None if found.trained is None else _rows(found.trained),
    }


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table; what is missing becomes null."""
    rows = table.to_dict("records")
    for row in rows:
        for name, value in row.items():
            if isinstance(value, float) and math.isnan(value):
                row[name] = None
    return rows
