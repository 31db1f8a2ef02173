"""Record the texts and examples that ship, so that a first look needs no reasoning-gym.

    python notebooks/tools/record_generated.py    a few seconds

Writes `data/generated`: of each domain and each cheap task the first ones of seed 0, in the order
of reasoning-gym, without those that repeat. `tests/test_generated.py` compares them with it.
"""

import itertools
import json
from pathlib import Path

from plop_nb.experiments.tasks.gym import DRAWN
from plop_nb.experiments.tasks.task import by_prompt, distinct
from plop_nb.texts import TASKS, load_texts, reasoning_gym

FOLDER = Path(__file__).parents[2] / "data" / "generated"
TEXTS, EXAMPLES = 300, 600  # how many of each domain, and of each task


def generated(name: str) -> list[dict[str, str]]:
    """What goes into the file of a domain or task."""
    reasoning_gym()  # without it the file would be read in place of the generator
    if name in TASKS:
        return [{"question": text} for text in load_texts(name, n=TEXTS)]
    return list(itertools.islice(distinct(map(by_prompt, DRAWN[name](0)), set()), EXAMPLES))


def main() -> None:
    """Write a file for each domain and task."""
    FOLDER.mkdir(exist_ok=True)
    for name in (*TASKS, *DRAWN):
        lines = [json.dumps(row) + "\n" for row in generated(name)]
        (FOLDER / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
