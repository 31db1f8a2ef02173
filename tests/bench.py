"""What a placement costs: scoring beside a forward pass, the naive procedure, and other rules.

    python -m tests.bench [--repeats 5] [--texts 64] [--out data/results]

One run measures everything side by side: each method once in turn, then all again; the table shows
medians. Peak memory is what a method adds to the loaded model. On a machine with CUDA the same
command measures there.
"""

import argparse
import contextlib
import ctypes
import os
import platform
import signal
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

import plop_nb as plop

BATCH = 8
ONCE = {"EVA (PEFT)", "kappa (PEFT)"}  # minutes: measured once, last, in the first dtype
LIMIT = 600  # seconds after which a method is stopped: the table then says so


def batched(tokenizer, texts, device):
    """The texts in the order given, padded eight by eight: what a plain evaluation loop does."""
    tokenizer.padding_side = "right"
    options = {"padding": True, "truncation": True, "max_length": 256, "return_tensors": "pt"}
    return [
        dict(tokenizer(texts[i : i + BATCH], **options).to(device))
        for i in range(0, len(texts), BATCH)
    ]


@torch.no_grad()
def plain(model, batches, **_):
    for batch in batches:
        model(**batch, use_cache=False)


@torch.no_grad()
def trunk(model, batches, **_):
    for batch in batches:
        model.model(**batch, use_cache=False)


def ours(model, texts, tokenizer, **_):
    plop.nfn_scores(model, texts, tokenizer, progress=False)


@torch.no_grad()
def recorded(model, batches, **_):
    """Plain forwards inside `record_norms`, which reads the weights anew in each."""
    with plop.record_norms(model) as record:
        plain(model, batches)
        record.frame()


@torch.no_grad()
def recorded_frozen(model, batches, **_):
    """The same, with the promise that the weights stay."""
    with plop.record_norms(model, frozen=True) as record:
        plain(model, batches)
        record.frame()


@torch.no_grad()
def naive(model, batches, **_):
    """The formula as it stands: inputs caught in a full forward, W z once more in float32, noise
    for every token."""
    maps = {
        name: m
        for name, m in model.named_modules()
        if isinstance(m, torch.nn.Linear) and name != "lm_head"
    }
    inputs, scores = {}, {name: [] for name in maps}

    def catch(name):
        return lambda _, args: inputs.__setitem__(name, args[0].float())

    handles = [m.register_forward_pre_hook(catch(name)) for name, m in maps.items()]
    for batch in batches:
        model(**batch, use_cache=False)
        real = batch["attention_mask"].bool()
        for name, linear in maps.items():
            z, weight = inputs[name], linear.weight.float()
            noise = torch.randn_like(z)
            noise *= z.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)
            ratio = (z @ weight.T).norm(dim=-1) / (noise @ weight.T).norm(dim=-1)
            scores[name].append(ratio[real].mean().item())
    for handle in handles:
        handle.remove()
    return scores


def gradient_norms(model, batches, **_):
    """Forward and backward on the language model's loss; the norm of every map's gradient."""
    for batch in batches:
        model(
            **batch, labels=batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        ).loss.backward()
    norms = {
        name: p.grad.norm().item()
        for name, p in model.named_parameters()
        if name.endswith("proj.weight")
    }
    model.zero_grad(set_to_none=True)
    return norms


def eva(model, batches, **_):
    """PEFT's EVA: ranks from an incremental SVD of every map's inputs."""
    from peft import EvaConfig, LoraConfig, get_peft_model, initialize_lora_eva_weights

    config = LoraConfig(
        r=16, target_modules="all-linear", init_lora_weights="eva", eva_config=EvaConfig(rho=2.0)
    )
    adapted = get_peft_model(model, config, low_cpu_mem_usage=True)
    try:
        initialize_lora_eva_weights(adapted, batches, show_progress_bar=False)
    finally:
        adapted.unload()


def kappa(model, **_):
    """PEFT's KappaTune: condition numbers of the weights, no data."""
    from peft import find_kappa_target_modules

    find_kappa_target_modules(model, show_progress=False)


METHODS = {
    "plain forward": plain,
    "trunk forward": trunk,
    "plop_nb": ours,
    "record_norms": recorded,
    "record_norms, frozen": recorded_frozen,
    "naive procedure": naive,
    "gradient norms": gradient_norms,
    "EVA (PEFT)": eva,
    "kappa (PEFT)": kappa,
}


def measured(method, **inputs):
    """(seconds, peak bytes above what was there before) of one call."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = _reset_high_water()
    start = time.perf_counter()
    with warnings.catch_warnings(), contextlib.suppress(TimeoutError), _limited():
        warnings.simplefilter("ignore")
        method(**inputs)
    if cuda:
        torch.cuda.synchronize()
        return time.perf_counter() - start, torch.cuda.max_memory_allocated() - before
    return time.perf_counter() - start, _resident("VmHWM") - before


@contextlib.contextmanager
def _limited():
    def stop(*_):
        raise TimeoutError

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)


def _reset_high_water():
    """Give freed memory back and reset the kernel's high-water mark (Linux); resident bytes now."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


def _resident(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def compare(names, dtypes, texts, repeats):
    """One row per run: method, dtype, seconds (LIMIT for one that was stopped), peak bytes."""
    rows = []
    for dtype in dtypes:
        model, tokenizer = plop.load_model(dtype=dtype, progress=False)
        inputs = {"model": model, "tokenizer": tokenizer, "texts": texts}
        inputs["batches"] = batched(tokenizer, texts, model.device)
        plain(**inputs)  # warm up
        runs = [n for _ in range(repeats) for n in names if n not in ONCE]
        runs += [n for n in names if n in ONCE and dtype == dtypes[0]]
        for name in tqdm(runs, desc=dtype):
            seconds, peak = measured(METHODS[name], **inputs)
            rows.append({"method": name, "dtype": dtype, "seconds": seconds, "peak_bytes": peak})
    return pd.DataFrame(rows)


def table(rows):
    """Medians, and ratios to the plain forward and to the naive procedure of the same dtype."""
    medians = (
        rows.groupby(["dtype", "method"], sort=False)[["seconds", "peak_bytes"]]
        .median()
        .reset_index()
    )

    def of(name):
        return medians["dtype"].map(
            medians[medians["method"] == name].set_index("dtype")["seconds"]
        )

    medians["of_plain"] = medians["seconds"] / of("plain forward")
    medians["naive_over"] = of("naive procedure") / medians["seconds"]
    medians["peak_mb"] = medians.pop("peak_bytes") / 1e6
    return medians


def scaling(texts, repeats):
    """Seconds of scoring against the number of texts, and against width and depth of a random
    Llama."""
    model, tokenizer = plop.load_model(progress=False)
    rows = []

    def add(what, value, **inputs):
        seconds = np.median([measured(ours, **inputs)[0] for _ in range(repeats)])
        rows.append({"against": what, "value": value, "seconds": seconds})

    for n in (8, 16, 32, 64, 128):
        add("texts", n, model=model, tokenizer=tokenizer, texts=(texts * 8)[:n])
    for what, sizes in {"width": (256, 512, 1024), "depth": (4, 8, 16)}.items():
        for size in sizes:
            other = random_llama(**{what: size}).to(model.device)
            add(what, size, model=other, tokenizer=tokenizer, texts=texts[:16])
    return pd.DataFrame(rows)


def random_llama(width=512, depth=8):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_attention_heads": width // 64,
    }
    return LlamaForCausalLM(LlamaConfig(vocab_size=49152, num_hidden_layers=depth, **sizes)).eval()


def slopes(rows):
    """Exponent of seconds against each size, from a straight line on log axes."""

    def fit(part):
        return np.polyfit(np.log(part["value"]), np.log(part["seconds"]), 1)[0]

    return (
        rows.groupby("against", sort=False)[["value", "seconds"]]
        .apply(fit)
        .rename("exponent")
        .reset_index()
    )


def markdown(medians):
    """The README's table: a row per method, seconds and ratio to a plain forward per dtype, peak
    memory."""
    dtypes = medians["dtype"].unique()
    lines = [
        "| | "
        + " | ".join(f"{dtype}, s | of plain" for dtype in dtypes)
        + " | extra memory ("
        + dtypes[0]
        + "), MB |",
        "|---|" + "---:|" * (2 * len(dtypes) + 1),
    ]
    for name, rows in medians.groupby("method", sort=False):
        cells = []
        for dtype in dtypes:
            row = rows[rows["dtype"] == dtype]
            if row.empty:
                cells += ["", ""]
                continue
            above = "> " if row["seconds"].iloc[0] >= LIMIT else ""
            cells += [
                f"{above}{row['seconds'].iloc[0]:.1f}",
                f"{above}{row['of_plain'].iloc[0]:.2f}",
            ]
        lines.append(f"| {name} | {' | '.join(cells)} | {rows['peak_mb'].iloc[0]:.0f} |")
    return "\n".join(lines)


def provenance(frame):
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{_cpu()}, {os.cpu_count()} cores"
    )
    versions = {name: version(name) for name in ("torch", "transformers", "peft")}
    return frame.assign(
        device=device, **versions, command=" ".join(["python -m tests.bench", *sys.argv[1:]])
    )


def _cpu():
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument(
        "--no-scaling", action="store_true", help="skip the cost against texts, width and depth"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for bench_cpu.csv or bench_cuda.csv, and bench_scaling_*.csv",
    )
    given = parser.parse_args()
    texts = plop.load_texts("math", n=given.texts)
    found = table(compare(given.methods, given.dtypes, texts, given.repeats))
    print(markdown(found))
    results = {"bench": found}
    if not given.no_scaling:
        sizes = results["bench_scaling"] = scaling(texts, min(given.repeats, 3))
        print(
            sizes.round(2).to_string(index=False),
            slopes(sizes).round(2).to_string(index=False),
            sep="\n",
        )
    where = "cuda" if torch.cuda.is_available() else "cpu"
    for name, frame in results.items() if given.out else []:
        provenance(frame).to_csv(
            given.out / f"{name}_{where}.csv", index=False, float_format="%.4g"
        )


if __name__ == "__main__":
    main()
