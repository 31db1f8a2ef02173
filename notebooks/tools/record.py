"""Record what takes too long for a notebook to run live, as small CSV files in data/results.

    python notebooks/tools/record.py texts         scores of up to 500 texts a domain, for notebook
                                                   02 (3 minutes)
    python notebooks/tools/record.py profiles      every module of three models on four domains, for
                                                   notebook 03 (3 minutes)
    python notebooks/tools/record.py transfer      SmolLM2 finetuned on math and scored on the way,
                                                   for notebook 03 (a GPU: 4 minutes)
    python notebooks/tools/record.py pool          every module of three models on 64 math texts, a
                                                   file for each in data/profiles (2 minutes)
    python notebooks/tools/record.py interventions the mean split of three models whose texts or
                                                   weights are changed, for notebook 04 (3 minutes)

Each file begins with lines of `# name: value`: device, versions, seed, and the command.
"""

import csv
import gzip
import io
import os
import sys
import tempfile
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch

import plop_nb as plop
from plop_nb.experiments import Task
from plop_nb.geometry import interventions, untrained
from plop_nb.stats import per_text, type_means
from plop_nb.texts import STRIDE, reasoning_gym

RESULTS = Path(__file__).parents[2] / "data" / "results"
PROFILES = RESULTS.parent / "profiles"
POOL = {"math": 500, "logic": 500, "code": 164, "history": 160}  # code and history have no more
MODELS = ["SmolLM2-135M-Instruct", "gemma-3-270m", "minilm"]
STEPS = [0, 25, 50, 100, 200, 300]  # of the finetuning on math, where it is scored


def texts():
    """One row per text: its domain, number, tokens, and NFN of each type (mean over modules)."""
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
            table = plop.by_module(scores).assign(model=name, domain=domain)
            parts.append(table.merge(adapter_sizes(model)))
    columns = [
        "model", "domain", "module", "type", "layer", "size", "nfn", "low", "high", "samples",
    ]  # fmt: skip
    save(pd.concat(parts)[columns], "profiles.csv")


def pool():
    """The files of data/profiles: the mean of every module over 64 math texts, its interval."""
    for name in MODELS:
        model, tokenizer = plop.load_model(name)
        scores = plop.nfn_scores(model, plop.load_texts("math", n=64), tokenizer)
        plop.save_scores(plop.by_module(scores), PROFILES / f"{name}-math.parquet")


def adapter_sizes(model):
    """`size`: parameters of an adapter of rank 1 on each module."""
    table = plop.module_table(model)
    return table[["module"]].assign(size=table["in_features"] + table["out_features"])


def changes():
    """The mean split by type, of three models whose texts or weights have been changed."""
    parts = []
    for name in MODELS:
        model, tokenizer = plop.load_model(name)
        for what, table in changed_splits(model, tokenizer, plop.load_texts("math", n=8)).items():
            parts.append(table.assign(model=name, intervention=what))
    columns = [
        "share", "nfn", "mean_square", "nfn_mean", "nfn_centred", "mean_part", "centred_part",
    ]  # fmt: skip
    groups = ["model", "intervention", "type"]
    by_type = pd.concat(parts).groupby(groups, sort=False)[columns].mean()
    save(by_type.reset_index(), "interventions.csv")


def changed_splits(model, tokenizer, texts):
    """{intervention: mean split}, on the texts and of the model without training."""
    changed = {}
    for what, data in interventions(texts, tokenizer).items():
        changed[what] = plop.mean_split(model, data)
    changed["untrained model"] = plop.mean_split(untrained(model), texts, tokenizer)
    return changed


def transfer():
    """SmolLM2, all weights finetuned on math questions with solutions: NFN and loss on the way."""
    parts = []
    for seed in range(5):
        parts += finetuned_on_math(seed)
        columns = ["seed", "step", "domain", "type", "nfn", "loss"]
        # after every seed: an interrupted run keeps what it has
        save(pd.concat(parts)[columns], "transfer.csv")


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
            scores = plop.nfn_scores(model, texts, tokenizer, progress=False)
            table = type_means(scores).rename("nfn").reset_index()
            loss = losses[f"eval_{domain}_loss"]
            found.append(table.assign(seed=seed, step=step, domain=domain, loss=loss))

    held_out = {domain: Dataset.from_dict({"text": texts}) for domain, texts in scored.items()}
    held_out["math"] = Dataset.from_dict({"text": solutions(0, 12)})
    settings = SFTConfig(
        max_steps=STEPS[-1],
        per_device_train_batch_size=2,
        learning_rate=5e-5,
        warmup_steps=10,
        max_length=256,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        save_strategy="no",
        report_to="none",
        logging_steps=25,
        seed=seed,
        output_dir=tempfile.mkdtemp(),
    )
    trainer = SFTTrainer(
        model,
        settings,
        train_dataset=Dataset.from_dict({"text": solutions(1 + seed, 2 * STEPS[-1])}),
        eval_dataset=held_out,
        processing_class=tokenizer,
        callbacks=[Score()],
    )
    measure(0)
    trainer.train()
    return found


def solutions(seed, n):
    """Math questions with worked solutions; those of two seeds differ in numbers and names."""
    texts = []
    for draw in range(seed * STRIDE, seed * STRIDE + n):
        entry = reasoning_gym().create_dataset("gsm_symbolic", size=1, seed=draw)[0]
        texts.append(f"{entry['question']}\n{entry['metadata']['answer_cot']}")
    return texts


def unrelated_texts(tokenizer, texts=16, tokens=32):
    """Openings of articles, to see what a training on something else has forgotten."""
    examples = []
    for text in plop.load_texts("history", n=texts):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        prompt, rest = tokenizer.decode(ids[:4]), tokenizer.decode(ids[4:tokens])
        examples.append({"prompt": prompt, "completion": rest})
    return Task("history", train=[], validation=[], test=examples)


def save(frame, name, **head):
    """Write a frame to data/results, after lines that say where it was made."""
    on_gpu = torch.cuda.is_available()
    found = {
        "device": torch.cuda.get_device_name() if on_gpu else f"CPU, {os.cpu_count()} cores",
        "torch": version("torch"),
        "transformers": version("transformers"),
        "seed": 0,
        "command": f"python notebooks/tools/record.py {name.removesuffix('.csv')}",
    }
    # a completion may contain a #
    quoting = csv.QUOTE_NONNUMERIC if "completion" in frame else csv.QUOTE_MINIMAL
    RESULTS.mkdir(exist_ok=True)
    with opened(RESULTS / name) as file:
        for key, value in (found | head).items():
            file.write(f"# {key}: {value}\n")
        frame.to_csv(file, index=False, float_format="%.5g", quoting=quoting)


@contextmanager
def opened(path):
    """The file to write text to, packed if its name ends in .gz: the same text, the same file."""
    if path.suffix != ".gz":
        with path.open("w") as file:
            yield file
        return
    with path.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
        with io.TextIOWrapper(packed) as file:
            yield file


PARTS = {"texts": texts, "profiles": profiles, "pool": pool}
PARTS |= {"interventions": changes, "transfer": transfer}

if __name__ == "__main__":
    for name in sys.argv[1:]:
        PARTS[name]()
