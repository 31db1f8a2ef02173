"""The placement benchmark that is recorded in data/results, as runs that `crossfit` can take."""

from pathlib import Path

import numpy as np
import pandas as pd

from plop_nb.texts import data_file

TOLD_BY = ["model", "task", "placement", "lr", "seed"]


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


def _file(folder: Path | None, name: str) -> Path:
    return Path(folder) / name if folder else data_file(f"results/{name}")


def _nats(text: str) -> np.ndarray:
    """Losses that are recorded in hundredths of a nat; -1: the run diverged."""
    hundredths = _numbers(text)
    return np.where(hundredths < 0, np.inf, hundredths / 100)


def _numbers(text: str) -> np.ndarray:
    return np.array([int(number) for number in text.split()])
