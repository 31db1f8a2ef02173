"""nbval runs the notebooks as run.py does, and compares their outputs as comparison.py says."""

import os
from typing import Any

from nbval.plugin import IPyNbCell

from notebooks.tools.comparison import settled
from notebooks.tools.run import QUIET

compare_exactly = IPyNbCell.compare_outputs


def install() -> None:
    """Let nbval settle rounded numbers before it compares the outputs of a cell."""
    os.environ.update(QUIET)
    IPyNbCell.compare_outputs = compare_outputs


def compare_outputs(
    cell: IPyNbCell, new: list[Any], saved: list[Any], skip_compare: Any = None
) -> bool:
    """nbval's own comparison, of outputs in which rounded numbers that agree are the same."""
    if len(new) == len(saved):
        pairs = zip(new, saved, strict=True)
        new = [settled_output(new_output, saved_output) for new_output, saved_output in pairs]
    return compare_exactly(cell, new, saved, skip_compare)


def settled_output(new: Any, saved: Any) -> Any:
    """A copy of one output of a cell with its texts settled."""
    new = {**new}
    if "data" in new:
        new["data"] = settled_texts(new["data"], saved.get("data", {}))
    return type(saved)(settled_texts(new, saved))


def settled_texts(new: Any, saved: Any) -> dict[str, Any]:
    """A copy of a dict of contents in which those that are texts are settled."""
    texts = dict(new)
    for key in new:
        is_text = key == "text" or key.startswith("text/")
        if is_text and key in saved:
            texts[key] = settled(new[key], saved[key])
    return texts
