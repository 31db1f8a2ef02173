"""Tasks with checkable answers by name: to finetune on, and for GRPO."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from plop_nb.checks import natural_number, positive_integer, random_seed
from plop_nb.experiments.tasks.code import code
from plop_nb.experiments.tasks.facts import facts
from plop_nb.experiments.tasks.gym import (
    digit_sums,
    gsm,
    short_sums,
    short_syllogisms,
    spelling,
    sums,
    syllogisms,
)
from plop_nb.experiments.tasks.hub import anli, metamath, metamath_tagged
from plop_nb.experiments.tasks.task import SPLITS, Task

__all__ = ["SPLITS", "Task", "digit_sums", "load_task"]


@dataclass(frozen=True)
class Loader:
    """What makes a task, and the sizes of its splits where none are asked for."""

    load: Callable[..., Task]  # of sizes and seed
    train: int = 2000
    validation: int = 256
    test: int = 256


def _digit_sums(sizes: dict[str, int], seed: int) -> Task:
    return digit_sums(**sizes, seed=seed)


LOADERS = {
    "sums": Loader(sums),
    "gsm": Loader(gsm),
    "syllogisms": Loader(syllogisms),
    "code": Loader(code),
    "short_sums": Loader(short_sums, test=512),
    "spelling": Loader(spelling, test=512),
    "short_syllogisms": Loader(short_syllogisms, test=512),
    "facts": Loader(facts, test=512),
    "anli": Loader(anli),
    "metamath": Loader(metamath),
    "digit_sums": Loader(_digit_sums, train=100, validation=0, test=50),
    "metamath_tagged": Loader(metamath_tagged, train=2000, validation=0, test=200),
}


def load_task(
    name: str,
    *,
    train: int | None = None,
    validation: int | None = None,
    test: int | None = None,
    seed: int = 0,
    run_code: bool = False,
) -> Task:
    """A task by name, the same for the same arguments.

    Test examples do not depend on the other sizes.

    Parameters
    ----------
    name : str
        To finetune on: "sums" (chain_sum of reasoning-gym, two or three numbers below 100), "gsm"
        (gsm_symbolic, with its chain of thought), "syllogisms" (yes or no), "code" (HumanEval);
        from the Hub "anli" (third round) and "metamath" (MetaMathQA, tested on GSM8K).
        Cheap, with 7 to 55 tokens in a mean text: "short_sums" (two numbers below 100),
        "spelling" (words backward), "short_syllogisms" (yes or no), and "facts" (VitaminC: does a
        sentence of Wikipedia make a claim true, false, or neither; fetches 358 MB, once).
        Of these the first 600 of seed 0 (but for "facts") come with plop_nb; all others of
        reasoning-gym need that package.
        For GRPO, with answers between tags: "digit_sums" (two numbers of one digit; see
        `digit_sums` for others) and from the Hub "metamath_tagged" (MetaMathQA as messages).
    train, validation, test : int, optional
        How many examples: 2000, 256 and 256 by default, and 512 to test on for the cheap tasks;
        100, 0 and 50 for "digit_sums", 2000, 0 and 200 for "metamath_tagged"; for "code" at most
        100, 24 and 40.
    seed : int
        Which: 0 to 2**32 - 1.
    run_code : bool
        For "code": check completions, which runs the code that a model has written on this
        machine. Without it the task has no `check`: losses can be taken, accuracies cannot. Code
        runs in a process of its own, with limits on its time and memory; where bubblewrap
        (`bwrap`) is installed and works it has no network, and sees none of your files. Without
        bubblewrap that stops accidents, not malice: `plop_nb.experiments.tasks.apart.apart` says
        what is held.

    Raises
    ------
    ValueError
        An unknown name, a size below 1, a seed out of range, too few examples, `run_code` for a
        task that runs none, or a data set that is not here or has other columns.
    ImportError
        A package that the task needs is not installed.
    """
    if not isinstance(name, str) or name not in LOADERS:
        raise ValueError(
            f"name={name!r} is not a task, choose one of {tuple(LOADERS)}, or make a Task of your "
            f"own"
        )
    loader = LOADERS[name]
    asked = {"test": test, "validation": validation, "train": train}
    sizes = {}
    for split, size in asked.items():
        default = getattr(loader, split)
        check = natural_number if default == 0 else positive_integer
        sizes[split] = default if size is None else check(split, size)
    return loader.load(sizes, random_seed("seed", seed), **_options(name, run_code))


def _options(name: str, run_code: bool) -> dict[str, Any]:
    if not isinstance(run_code, bool):
        raise ValueError(f"run_code={run_code!r}, expected True or False")
    if run_code and name != "code":
        raise ValueError(f"run_code=True, but the task {name!r} runs no code: leave it out")
    return {"run_code": True} if run_code else {}
