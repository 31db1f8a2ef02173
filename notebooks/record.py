"""Record what takes too long for a notebook to run live, as small CSV files in data/results.

    python notebooks/record.py texts      scores of up to 500 texts a domain, for notebook 02 (3 minutes)

Each file begins with lines of `# name: value`: device, versions, seed, and the command.
"""

import os
import sys
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch

import plop_nb as plop
from plop_nb.stats import per_text

RESULTS = Path(__file__).parents[1] / "data" / "results"
POOL = {"math": 500, "logic": 500, "code": 164, "history": 160}  # code and history have no more


def texts():
    """One row per text: its domain, number, tokens, and NFN of each type (mean over its modules)."""
    model, tokenizer = plop.load_model()
    parts = []
    for domain, n in POOL.items():
        scores = plop.nfn_scores(model, plop.load_texts(domain, n=n), tokenizer)
        tokens = scores.groupby("sample")["tokens"].first()
        parts.append(per_text(scores).assign(tokens=tokens).reset_index().assign(domain=domain))
    save(pd.concat(parts), "texts.csv")


def save(frame, name):
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
    head = {"device": device, "torch": version("torch"), "transformers": version("transformers"), "seed": 0}
    head["command"] = f"python notebooks/record.py {' '.join(sys.argv[1:])}"
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / name).open("w") as file:
        file.writelines(f"# {key}: {value}\n" for key, value in head.items())
        frame.to_csv(file, index=False, float_format="%.5g")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        {"texts": texts}[name]()
