"""A model's modules as a tree, with those lit that get adapters."""

import html
from collections.abc import Iterable

import pandas as pd

LIT, DIM = "rgba(1, 115, 178, 0.35)", "rgba(128, 128, 128, 0.15)"
WRONG = "rgba(213, 94, 0, 0.35)"


def tree(
    headline: str, types: pd.DataFrame, *, problems: Iterable[str], notes: Iterable[str]
) -> str:
    """HTML of the tree.

    Parameters
    ----------
    headline : str
        Stands above it.
    types : pandas.DataFrame
        From `coverage`: columns `path`, `modules`, `hit`, `layers`, `trainable`, `status`.
    problems, notes : iterable of str
        Lines below the headline; problems in orange.
    """
    lines = [f"<p><b>{html.escape(headline)}</b></p>"]
    for text, color in [(p, WRONG) for p in problems] + [(n, DIM) for n in notes]:
        style = f"background: {color}; padding: 2px 8px; margin: 2px 0; border-radius: 4px"
        lines.append(f'<div style="{style}">{html.escape(text)}</div>')
    nested: dict = {}
    for row in types.to_dict("records"):
        branch = nested
        parts = row["path"].split(".")
        for part in parts[:-1]:
            branch = branch.setdefault(part, {})
        branch[parts[-1]] = row
    return "\n".join([*lines, _branch(nested)])


def _branch(nested: dict) -> str:
    """One level of the tree as a list."""
    items = []
    for name, below in nested.items():
        if _is_type(below):
            items.append(f"<li>{_leaf(name, below)}</li>")
            continue
        while len(below) == 1:  # a chain of single names is one line
            (only,) = below
            if _is_type(below[only]):
                break
            name, below = f"{name}.{only}", below[only]
        items.append(f"<li>{html.escape(name)}{_branch(below)}</li>")
    style = "list-style: none; padding-left: 1.2em; margin: 0; border-left: 1px solid #8886"
    return f'<ul style="{style}">{"".join(items)}</ul>'


def _is_type(below: dict) -> bool:
    """Whether this is a row of the table, and no part of the model, which may be called "path"."""
    return isinstance(below.get("path"), str)


def _leaf(name: str, row: dict) -> str:
    """One type: lit where it gets adapters."""
    told = f"{row['hit']} of {row['modules']}"
    if row["hit"]:
        where = f", layers {row['layers']}" if row["layers"] else ""
        told += f"{where}, {row['trainable']:,} parameters"
    elif row["status"] != "scored":
        told += f" ({row['status']})"
    style = f"background: {LIT if row['hit'] else DIM}; padding: 0 8px; border-radius: 4px"
    weight = "; font-weight: bold" if row["hit"] else "; opacity: 0.75"
    return f'<span style="{style}{weight}">{html.escape(name)}</span> {html.escape(told)}'
