"""The placement benchmark that is recorded in data/results, as runs that `crossfit` can take."""

from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from plop_nb.texts import data_file

TOLD_BY = ["model", "task", "placement", "lr", "seed"]
EQUAL_SCALE = ", equal scale"  # ends the names of placements that were trained with alpha / r = 4


def load_benchmark(folder: Path | None = None) -> pd.DataFrame:
    """The recorded runs of the placement benchmark, with what each example was worth.

    Made by `python notebooks/tools/record_benchmark.py run`.

    Parameters
    ----------
    folder : Path, optional
        Where its files `benchmark_*.csv` are; by default those that come with the package.

    Returns
    -------
    pandas.DataFrame
        One row per run, as `grid` returns them: `model`, `task`, `group`, `placement`, `types`,
        `r`, `parameters`, `lr`, `seed`, `loss` (nats per completion token), `exact` (share of the
        examples that greedy decoding gets right), `unrelated_loss`, and of each held-out example
        `losses` (arrays: nats summed over its tokens, to a hundredth; inf where the run diverged),
        `hits` (arrays of bool) and `tokens` (arrays of int).
    """
    runs, examples, tokens = (
        pd.read_csv(_file(folder, f"benchmark_{name}"), comment="#")
        for name in ("runs.csv", "examples.csv.gz", "tokens.csv")
    )
    examples = examples.merge(tokens, on=["model", "task"], validate="many_to_one")
    examples["losses"] = examples["losses"].map(_nats)
    examples["hits"] = examples.pop("exact").map(lambda marks: np.array(list(marks)) == "x")
    examples["tokens"] = examples["tokens"].map(_numbers)
    return runs.merge(examples, on=TOLD_BY, validate="one_to_one")


def runs_of_triples(
    benchmark: pd.DataFrame, task: str, lr: float, *, equal_scale: bool = False
) -> pd.DataFrame:
    """The runs of all sets of three types at one learning rate, of the seeds that have them all.

    Parameters
    ----------
    benchmark : pandas.DataFrame
        From `load_benchmark`, one model.
    task : str
        Such as "short_sums".
    lr : float
        Which learning rate.
    equal_scale : bool
        The runs with the same scale alpha / r = 4 for all sets; by default those with the same
        alpha, 32.

    Returns
    -------
    pandas.DataFrame
        Rows of `benchmark`, as `pooled_losses` takes them. Sets are named by their types, such as
        "down+gate+up".

    Raises
    ------
    ValueError
        `benchmark` is of several models, or no seed has all sets there.
    """
    if benchmark["model"].nunique() > 1:
        raise ValueError(
            f"benchmark is of {sorted(benchmark['model'].unique())}: pass the rows of one model"
        )
    names = benchmark["placement"].str.removesuffix(EQUAL_SCALE)
    is_equal = names != benchmark["placement"]
    runs = benchmark.assign(placement=names)
    is_triple = names.str.count(r"\+") == 2
    same_rate = np.isclose(benchmark["lr"], lr)
    runs = runs[(runs["task"] == task) & same_rate & is_triple & (is_equal == equal_scale)]
    has_all = runs.groupby("seed")["placement"].transform("nunique") == names[is_triple].nunique()
    if not has_all.any():
        raise ValueError(
            f"task={task!r}, lr={lr:g}, equal_scale={equal_scale}: no seed has all sets there, "
            f"choose among the combinations of task and lr that benchmark has"
        )
    return runs[has_all]


def recorded_choices(model: str, sets: Collection[str]) -> pd.DataFrame:
    """Which of the sets each rule chooses for the recorded tasks, before any training.

    Made by `python notebooks/tools/record_rules.py`.

    Parameters
    ----------
    model : str
        Such as "SmolLM2-135M-Instruct".
    sets : collection of str
        Sets of as many types as the rules choose, such as "down+gate+up": the rule "first step"
        chooses among these.

    Returns
    -------
    pandas.DataFrame
        A row for each rule, a column for each task; sets are named by their types. NaN where a
        rule was not recorded.

    Raises
    ------
    ValueError
        No choices are recorded for this model.
    """
    rules = pd.read_csv(data_file("results/rules.csv"), comment="#").query("model == @model")
    steps = pd.read_csv(data_file("results/rules_first_step.csv"), comment="#")
    if rules.empty:
        raise ValueError(f"model={model!r}: its rules are not in data/results/rules.csv")
    chosen = rules[rules["chosen"]].groupby(["rule", "task"])["type"].agg(_set_name)
    steps = steps[steps["model"] == model]
    steps = steps.assign(set=steps["types"].str.split("+").map(_set_name))
    steps = steps[steps["set"].isin(sets)].sort_values("gain", kind="stable")
    first_step = steps.groupby("task")["set"].last()
    choices = chosen.unstack("task").rename({"frobenius sqrt(in out)": "frobenius √(nm)"})
    choices.loc["first step"] = first_step.reindex(choices.columns)
    return choices


def _set_name(types: Iterable[str]) -> str:
    """Such as "down+gate+up", of the full names of types."""
    return "+".join(sorted(name.removesuffix("_proj") for name in types))


def _file(folder: Path | None, name: str) -> Path:
    return Path(folder) / name if folder else data_file(f"results/{name}")


def _nats(text: str) -> np.ndarray:
    """Losses that are recorded in hundredths of a nat; -1: the run diverged."""
    hundredths = _numbers(text)
    return np.where(hundredths < 0, np.inf, hundredths / 100)


def _numbers(text: str) -> np.ndarray:
    return np.array([int(number) for number in text.split()])
