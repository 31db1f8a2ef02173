"""Put what scoring took beside the work it did: data/results/costs.csv, for notebook 07.

    python notebooks/tools/record_costs.py     a few seconds

Nothing is measured here. The seconds are those of two records, `bench_cpu.csv` (of `make bench`:
SmolLM2 on 64 math questions) and `large_model.csv` (of `tests/large_model.py`: Llamas with random
weights); the work, weights times tokens, is counted. The Llamas' seconds include loading the model.
"""

import pandas as pd
import torch
from record import RESULTS, save
from transformers import AutoModelForCausalLM, LlamaConfig

import plop_nb as plop

SIZES = {2: "Llama 0.6 B", 14: "Llama 2.7 B"}  # by layers


def weights_of(model: torch.nn.Module) -> int:
    """Weights in the maps that are scored."""
    return plop.module_table(model).query("status == 'scored'")["parameters"].sum()


def small_runs(bench: pd.DataFrame, weights: int, tokens: int) -> list[dict]:
    """A row for each number format of SmolLM2, loaded before."""
    found = bench.query("method == 'plop_nb'")
    work = {"billions": weights / 1e9, "thousands": tokens / 1e3, "with_loading": False}
    named = zip(found["dtype"], found["seconds"], strict=True)
    return [{"run": f"SmolLM2, {name}", "seconds": seconds, **work} for name, seconds in named]


def large_runs(measured: pd.DataFrame) -> list[dict]:
    """A row for each run of a Llama, in memory where that was done, and from disk."""
    rows = []
    for own in measured.itertuples():
        work = {
            "billions": llama_weights(own.layers, own.width) / 1e9,
            "thousands": own.texts * own.tokens / 1e3,
            "with_loading": True,
        }
        runs = {"in memory": own.seconds_in_memory, "from disk": own.seconds}
        name = SIZES[own.layers]
        rows += [
            {"run": f"{name}, {where}", "seconds": took, **work} for where, took in runs.items()
        ]
    return [row for row in rows if row["seconds"] > 0]  # NaN: it was not run


def llama_weights(layers: int, width: int) -> int:
    """Weights in the maps of the Llamas of `tests/large_model.py`."""
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 43 // 16,
        num_hidden_layers=layers,
        num_attention_heads=width // 128,
        num_key_value_heads=width // 512,
    )
    with torch.device("meta"):
        return weights_of(AutoModelForCausalLM.from_config(config))


def main() -> None:
    """Count, and write."""
    model, tokenizer = plop.load_model(progress=False)
    texts = plop.load_texts("math", n=64)
    ids = tokenizer(texts, truncation=True, max_length=256)["input_ids"]
    bench = pd.read_csv(RESULTS / "bench_cpu.csv")
    rows = small_runs(bench, weights_of(model), sum(map(len, ids)))
    rows += large_runs(pd.read_csv(RESULTS / "large_model.csv"))
    save(pd.DataFrame(rows), "costs.csv", command="python notebooks/tools/record_costs.py")


if __name__ == "__main__":
    main()
