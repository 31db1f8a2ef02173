"""Old names, kept for one release: each leads to its new home with a DeprecationWarning.

To be deleted, with what `__init__.py` makes of it, in the release after 0.2.
"""

import importlib
import warnings
from collections.abc import Callable
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Old module -> where its public names are now.
HOMES = {
    "modules": ["maps", "experts"],
    "hooks": ["recording", "norms", "tally", "padding"],
    "nfn": ["scoring", "forwards"],
    "directions": ["geometry"],
    "partial": ["checkpoint"],
    "finetune": [
        "experiments.training",
        "experiments.evaluation",
        "experiments.grids",
        "experiments.compare",
        "experiments.norms_callback",
        "experiments.tasks",
    ],
    "tasks": ["experiments.tasks", "experiments.tasks.answers", "experiments.tasks.hub"],
    "grpo": ["experiments.grpo", "experiments.rewards", "experiments.tasks.answers"],
    "theory": ["experiments.small_networks", "experiments.power_law", "stats"],
}


class OldModules(MetaPathFinder, Loader):
    """Finds `plop_nb.OLD`, a module without names of its own."""

    names = frozenset(HOMES)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The spec of a module that has moved; None for any other."""
        package, _, name = fullname.rpartition(".")
        if package != "plop_nb" or name not in HOMES:
            return None
        return ModuleSpec(fullname, self)

    def create_module(self, spec: ModuleSpec) -> None:
        """An ordinary empty module."""

    def exec_module(self, module: ModuleType) -> None:
        """Let it look its names up in their new homes."""
        old = module.__name__.rpartition(".")[2]
        module.__getattr__ = partial(_looked_up, old)  # type: ignore[method-assign]


def _looked_up(old, name):
    if name.startswith("_"):
        raise AttributeError(f"module 'plop_nb.{old}' has no attribute {name!r}")
    if (old, name) in AS_BEFORE:
        _warn(f"plop_nb.{old}.{name}", AS_BEFORE[old, name].__doc__)
        return AS_BEFORE[old, name]
    for home in HOMES[old]:
        found = importlib.import_module(f"plop_nb.{home}")
        if hasattr(found, name):
            _warn(f"plop_nb.{old}.{name}", f"It is now plop_nb.{home}.{name}.")
            return getattr(found, name)
    raise AttributeError(f"module 'plop_nb.{old}' has no attribute {name!r}")


def _warn(old, now):
    message = f"{old} goes with the release after 0.2. {now}"
    warnings.warn(message, DeprecationWarning, stacklevel=3)


# What has also changed its arguments: each takes the old ones.


def finetune(model, tokenizer, task, placement, **options):
    """It is now plop_nb.experiments.finetune(model, task, tokenizer, placement)."""
    return _experiments().finetune(model, task, tokenizer, placement, **options)


def evaluate(model, tokenizer, task, split="test", **options):
    """It is now plop_nb.experiments.evaluate(model, task, tokenizer, split)."""
    return _experiments().evaluate(model, task, tokenizer, split, **options)


def grid(model, tokenizer, tasks, placements, *, path=None, share=(0, 1), **options):
    """It is now plop_nb.experiments.grid(model, tasks, tokenizer, placements, storage=path).

    Several processes with one storage share the runs by themselves.
    """
    if path is None and share != (0, 1):
        raise ValueError(f"share={share!r} needs a path, by which processes share the runs")
    grid = _experiments().grid
    return grid(model, tasks, tokenizer, placements, storage=path, **options)


def read_runs(path):
    """It is now plop_nb.experiments.read_runs(storage)."""
    return _experiments().read_runs(path)


def sums(train=100, test=50, **options):
    """It is now plop_nb.experiments.digit_sums, which returns a Task."""
    task = _experiments().digit_sums(train, test, **options)
    return task.train, task.test


def metamath(train=2000, test=200, *, seed=0):
    """It is now plop_nb.experiments.load_task("metamath_tagged")."""
    load_task = _experiments().load_task
    task = load_task("metamath_tagged", train=train, test=test, seed=seed)
    return task.train, task.test


def warm_up(model, tokenizer, problems, **options):
    """It is now plop_nb.experiments.grpo.warm_up(model, task, tokenizer)."""
    return _experiments().grpo.warm_up(model, _task(train=problems), tokenizer, **options)


def train(model, tokenizer, problems, placement, **options):
    """It is now plop_nb.experiments.grpo.train(model, task, tokenizer, placement)."""
    task = _task(train=problems)
    return _experiments().grpo.train(model, task, tokenizer, placement, **options)


def samples(model, tokenizer, problems, rewards=None, n=8, **options):
    """It is now plop_nb.experiments.grpo.samples(model, task, tokenizer)."""
    grpo = _experiments().grpo
    rewards = grpo.REWARDS if rewards is None else rewards
    task = _task(test=problems)
    return grpo.samples(model, task, tokenizer, rewards=rewards, n=n, **options)


def accuracy(model, tokenizer, problems, **options):
    """It is now plop_nb.experiments.grpo.accuracy(model, task, tokenizer)."""
    rewards = [_experiments().grpo.answer_reward]
    options = {"greedy": True, **options}
    return samples(model, tokenizer, problems, rewards, len(problems), **options)["reward"].mean()


def completions(model, tokenizer, prompts, max_completion_length=16, **options):
    """It is now plop_nb.experiments.generation.complete(model, prompts, tokenizer)."""
    complete = importlib.import_module("plop_nb.experiments.generation").complete
    return complete(model, prompts, tokenizer, new_tokens=max_completion_length, **options)


def answer_of(text):
    """It is now plop_nb.experiments.tasks.answers.tagged_answer(text)."""
    return importlib.import_module("plop_nb.experiments.tasks.answers").tagged_answer(text)


def _experiments():
    return importlib.import_module("plop_nb.experiments")


def _task(train=(), test=()):
    return _experiments().Task("problems", list(train), [], list(test))


OLD_FINETUNE: list[Callable] = [finetune, evaluate, grid, read_runs]
OLD_GRPO: list[Callable] = [sums, metamath, warm_up, train, samples, accuracy]
OLD_GRPO += [completions, answer_of]
AS_BEFORE = {("finetune", function.__name__): function for function in OLD_FINETUNE}
AS_BEFORE |= {("grpo", function.__name__): function for function in OLD_GRPO}
