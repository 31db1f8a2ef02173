"""Record what takes too long for a notebook to run live, as small CSV files in data/results.

    python notebooks/record.py texts         scores of up to 500 texts a domain, for notebook 02 (3 minutes)
    python notebooks/record.py profiles      every module of three models on four domains, for notebook 03 (3 minutes)
    python notebooks/record.py transfer      SmolLM2 finetuned on math and scored on the way, for notebook 03 (a GPU: 4 minutes)
    python notebooks/record.py directions    the mean split of three models, and interventions, for notebook 04 (6 minutes)

Each file begins with lines of `# name: value`: device, versions, seed, and the command.
"""

import csv
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch

import plop_nb as plop
from plop_nb.directions import interventions, mean_inputs, nfn_without, untrained
from plop_nb.stats import per_text, type_means
from plop_nb.texts import STRIDE

RESULTS = Path(__file__).parents[1] / "data" / "results"
POOL = {"math": 500, "logic": 500, "code": 164, "history": 160}  # code and history have no more
MODELS = ["SmolLM2-135M-Instruct", "gemma-3-270m", "minilm"]
STEPS = [0, 25, 50, 100, 200, 300]  # of the finetuning on math, where it is scored


def texts():
    """One row per text: its domain, number, tokens, and NFN of each type (mean over its modules)."""
    model, tokenizer = plop.load_model()
    parts = []
    for domain, n in POOL.items():
        scores = plop.nfn_scores(model, plop.load_texts(domain, n=n), tokenizer)
        tokens = scores.groupby("sample")["tokens"].first()
        parts.append(per_text(scores).assign(tokens=tokens).reset_index().assign(domain=domain))
    save(pd.concat(parts), "texts.csv")


def profiles():
    """NFN of every module on 32 texts of each domain, with its interval over texts."""
    parts = []
    for name in MODELS:
        model, tokenizer = plop.load_model(name)
        for domain in POOL:
            scores = plop.nfn_scores(model, plop.load_texts(domain, n=32), tokenizer)
            parts.append(plop.by_module(scores).assign(model=name, domain=domain).merge(adapter_sizes(model)))
    columns = ["model", "domain", "module", "type", "layer", "size", "nfn", "low", "high", "samples"]
    save(pd.concat(parts)[columns], "profiles.csv")


def adapter_sizes(model):
    """`size`: parameters of an adapter of rank 1 on each module."""
    table = plop.module_table(model)
    return table[["module"]].assign(size=table["in_features"] + table["out_features"])


def directions():
    """The mean split of every module, per domain and over all; by type under interventions on the math texts."""
    splits, changed = [], []
    for name in MODELS:
        model, tokenizer = plop.load_model(name)
        domains = {domain: plop.load_texts(domain, n=12) for domain in POOL}
        domains["all"] = [text for texts in domains.values() for text in texts[:6]]
        means = {domain: mean_inputs(model, texts, tokenizer) for domain, texts in domains.items()}
        for domain, texts in domains.items():
            without = plop.by_module(nfn_without(model, texts, tokenizer, means[domain])).set_index("module")["nfn"]
            table = plop.mean_split(model, texts, tokenizer).assign(model=name, domain=domain)
            table["nfn_without"] = without[table["module"]].to_numpy()
            table["cosine"] = [cosine(means[domain][m], means["math"][m]) for m in table["module"]]
            splits.append(table)
        for what, data in interventions(domains["math"][:8], tokenizer).items():
            changed.append(plop.mean_split(model, data).assign(model=name, intervention=what))
        random = plop.mean_split(untrained(model), domains["math"][:8], tokenizer)
        changed.append(random.assign(model=name, intervention="untrained model"))
    columns = ["share", "nfn", "mean_square", "nfn_mean", "nfn_centred", "mean_part", "centred_part"]
    first = ["model", "domain", "module", "type", "layer", "tokens"]
    save(pd.concat(splits)[[*first, *columns, "nfn_without", "cosine"]], "directions.csv")
    by_type = pd.concat(changed).groupby(["model", "intervention", "type"], sort=False)[columns].mean()
    save(by_type.reset_index(), "interventions.csv")


def cosine(a, b):
    return torch.nn.functional.cosine_similarity(a, b, dim=0).item()


def transfer():
    """SmolLM2, all weights finetuned on math questions with solutions, five times: NFN and loss on the way."""
    parts = []
    for seed in range(5):
        parts += finetuned_on_math(seed)
        columns = ["seed", "step", "domain", "type", "nfn", "loss"]
        save(pd.concat(parts)[columns], "transfer.csv")  # after every seed: an interrupted run keeps what it has


def finetuned_on_math(seed):
    """One frame per step of STEPS and domain: NFN of each type and loss on held-out texts."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = plop.load_model(dtype="float32")
    scored = {domain: plop.load_texts(domain, n=12) for domain in POOL}
    found = []

    class Score(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step in STEPS:
                measure(state.global_step)

    def measure(step):
        losses = trainer.evaluate()
        for domain, texts in scored.items():
            scores = type_means(plop.nfn_scores(model, texts, tokenizer, progress=False)).rename("nfn").reset_index()
            found.append(scores.assign(seed=seed, step=step, domain=domain, loss=losses[f"eval_{domain}_loss"]))

    held_out = {domain: Dataset.from_dict({"text": texts}) for domain, texts in scored.items()}
    held_out["math"] = Dataset.from_dict({"text": solutions(0, 12)})
    settings = SFTConfig(
        max_steps=STEPS[-1], per_device_train_batch_size=2, learning_rate=5e-5, warmup_steps=10, max_length=256,
        bf16=False, gradient_checkpointing=False, dataloader_pin_memory=False, save_strategy="no", report_to="none",
        logging_steps=25, seed=seed, output_dir=tempfile.mkdtemp(),
    )  # fmt: skip
    train = Dataset.from_dict({"text": solutions(1 + seed, 2 * STEPS[-1])})
    options = {"eval_dataset": held_out, "processing_class": tokenizer, "callbacks": [Score()]}
    trainer = SFTTrainer(model, settings, train_dataset=train, **options)
    measure(0)
    trainer.train()
    return found


def solutions(seed, n):
    """Math questions with worked solutions; those of two seeds differ (in numbers and names, not in kind)."""
    import reasoning_gym

    draws = range(seed * STRIDE, seed * STRIDE + n)
    entries = [reasoning_gym.create_dataset("gsm_symbolic", size=1, seed=draw)[0] for draw in draws]
    return [f"{e['question']}\n{e['metadata']['answer_cot']}" for e in entries]


def save(frame, name, **head):
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
    found = {"device": device, "torch": version("torch"), "transformers": version("transformers"), "seed": 0}
    command = {"interventions.csv": "directions"}.get(name, name.removesuffix(".csv"))
    found["command"] = f"python notebooks/record.py {command}"
    quoting = csv.QUOTE_NONNUMERIC if "completion" in frame else csv.QUOTE_MINIMAL  # a completion may contain a #
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / name).open("w") as file:
        file.writelines(f"# {key}: {value}\n" for key, value in (found | head).items())
        frame.to_csv(file, index=False, float_format="%.5g", quoting=quoting)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        {"texts": texts, "profiles": profiles, "directions": directions, "transfer": transfer}[name]()
