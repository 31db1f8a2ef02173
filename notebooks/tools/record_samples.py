"""Record in data/results how many texts a placement needs, for notebook 02.

    python notebooks/tools/record_samples.py texts      samples.csv and samples_tau.csv: 1,536 math
                                                        texts, two models (two cores: 20 minutes)
    python notebooks/tools/record_samples.py replays    samples_replays.csv: the stopping rule at
                                                        ties, 4,000 times each (2 minutes)
    python notebooks/tools/record_samples.py networks   samples_networks.csv: narrow and wide
                                                        networks, trained shortly (3 minutes)
    python notebooks/tools/record_samples.py texts --pool 8    a trial, into build/

samples.csv holds one row per model and text: NFN of each type (mean over modules). The first 1,024
texts are the pool to draw from; the 512 after them are the reference that rankings are compared
with. samples_tau.csv holds Kendall's tau between the ranking by m texts of the pool and the ranking
by the reference, of types and of single maps: its mean and its 5 and 95 % points over draws of m
texts without replacement. Texts that are finished are kept in build/, so that it can go on.
samples_replays.csv holds, for each gap and each tie, how many of 4,000 runs stopped at each look;
`kept` of them with the lowest types of the texts as they are. `wrong` is with another set than the
true one. At an exact tie any order of the `tied` types may be the true one, as the limit of ever
smaller gaps: there `wrong` is the worst of them, all stops but those with the rarest set.
"""

import argparse
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import record
import torch
from scipy import stats

import plop_nb as plop
from plop_nb.stats import per_text
from plop_nb.texts import data_file

BUILD = Path(__file__).parents[2] / "build"
COMMAND = "python notebooks/tools/record_samples.py"
MODELS = ["SmolLM2-135M-Instruct", "gemma-3-270m"]
POOL = 1024
SIZES = [1, 2, 4, 8, 16, 32, 50, 64, 100, 128, 200, 256, 500, 512, 1024]
DRAWS = 200  # of each size
K, SURE = 3, 0.99
TYPES = ["v_proj", "up_proj", "down_proj", "o_proj", "gate_proj", "q_proj", "k_proj"]
LOOKS = 7  # at 8, 16, ..., 512 texts
RUNS = 4000
GAPS = [None, 0.01, 0.003, 0.001]  # between the K-th and the next type; None: as it is
TIES = [(3, 4), (2, 3, 4), (3, 4, 5), (2, 3, 4, 5)]  # places of types that are moved together
WIDTHS, STARTS, STEPS = [8, 16, 64, 128], 4, 150  # of the networks


# Scores of many texts


def texts(pool: int) -> None:
    """Scores of both models by text, and how well m texts rank types and maps."""
    if pool != POOL:
        record.RESULTS = BUILD
    tables, taus = [], []
    for name in MODELS:
        types, maps = scored(name, pool + pool // 2)
        tables.append(types.reset_index().assign(model=name))
        taus += agreement(types, pool, model=name, of="types")
        taus += agreement(maps, pool, model=name, of="maps")
    command = {"command": f"{COMMAND} texts" + (f" --pool {pool}" if pool != POOL else "")}
    record.save(pd.concat(tables), "samples.csv", pool=pool, **command)
    record.save(pd.DataFrame(taus), "samples_tau.csv", pool=pool, draws=DRAWS, **command)


def scored(name: str, number: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """NFN of each type and of each map, one row per text."""
    model, tokenizer = plop.load_model(name)
    data = plop.load_texts("math", n=number)
    BUILD.mkdir(exist_ok=True)
    partial = BUILD / f"samples-{name}.jsonl"
    scores = plop.nfn_scores(model, data, tokenizer, partial=partial)
    return per_text(scores), per_text(scores, by="module")


def agreement(table: pd.DataFrame, pool: int, **labels: str) -> list[dict]:
    """How well m texts of the pool rank the columns as the reference does, for each m."""
    values = table.to_numpy()
    drawn, reference = values[:pool], values[pool:].mean(axis=0)
    generator = np.random.default_rng(0)
    rows = []
    for m in [size for size in SIZES if size <= pool]:
        taus = []
        for _ in range(DRAWS if m < pool else 1):
            means = drawn[generator.permutation(pool)[:m]].mean(axis=0)
            taus.append(stats.kendalltau(means, reference).statistic)
        low, high = np.percentile(taus, [5, 95])
        row = {"texts": m, "draws": len(taus), "tau": np.mean(taus), "low": low, "high": high}
        rows.append(labels | row)
    return rows


# The stopping rule at ties


def replays() -> None:
    """Runs of the stopping rule on texts that are drawn from the recorded ones."""
    recorded = pd.read_csv(data_file("results/texts.csv"), comment="#").set_index("domain")
    rows = []
    for domain in record.POOL:
        pool = recorded.loc[domain, TYPES]
        for gap in GAPS:
            near = pool if gap is None else moved(pool, gap)
            rows.append({"domain": domain, "types": 7, "gap": gap} | replayed(near, K))
        for places in TIES:
            near, names = tied(pool, places)
            labels = {"domain": domain, "gap": 0, "tied": " ".join(names)}
            rows.append(labels | {"types": 7} | replayed(near, K, names))
            if len(names) == 2:
                pair = near[names]  # these alone, one of which is chosen
                skewness = stats.skew(pair[names[1]] - pair[names[0]])  # over texts
                rows[-1]["skewness"] = skewness
                alone = replayed(pair, 1, names)
                rows.append(labels | {"types": 2, "skewness": skewness} | alone)
    looks = [str(8 * 2**look) for look in range(LOOKS)]
    columns = ["domain", "types", "gap", "tied", *looks, "undecided", "kept", "wrong", "skewness"]
    table = pd.DataFrame(rows)[columns]
    record.save(table, "samples_replays.csv", runs=RUNS, command=f"{COMMAND} replays")


def moved(pool: pd.DataFrame, gap: float) -> pd.DataFrame:
    """The pool with its K-th and next type this far apart, relative to the K-th."""
    worst, best = pool.mean().sort_values().index[K - 1 : K + 1]
    return pool.assign(**{best: pool[best] * (1 + gap) * pool[worst].mean() / pool[best].mean()})


def tied(pool: pd.DataFrame, places: tuple[int, ...]) -> tuple[pd.DataFrame, list[str]]:
    """The pool with the types at these places moved to the mean of the K-th, and their names."""
    order = pool.mean().sort_values().index
    names = [order[place - 1] for place in places]
    together = pool[names] / pool[names].mean() * pool[order[K - 1]].mean()
    return pool.assign(**together), names


def replayed(pool: pd.DataFrame, k: int, tied: list[str] | None = None) -> dict:
    """How many of RUNS runs each look decided, how many none did, and with which sets.

    The names in `tied` are in the order of the texts as they are.
    """
    generator, values = np.random.default_rng(0), pool.to_numpy()
    used, sets = np.zeros(LOOKS + 1, dtype=int), Counter()
    for _ in range(RUNS // 200):  # 200 at a time, which fit into memory
        draws = values[generator.integers(len(values), size=(200, 8 * 2 ** (LOOKS - 1)))]
        done = np.zeros(200, dtype=bool)
        for look in range(1, LOOKS + 1):
            decided, chosen = looked(draws[:, : 8 * 2 ** (look - 1)], look, k)
            new = decided & ~done
            used[look - 1] += new.sum()
            sets.update(frozenset(pool.columns[places]) for places in chosen[new])
            done |= decided
        used[LOOKS] += (~done).sum()
    numbers = [str(8 * 2**look) for look in range(LOOKS)]
    found = dict(zip([*numbers, "undecided"], used, strict=True))
    return found | judged(sets, pool, k, tied or [])


def judged(sets: Counter, pool: pd.DataFrame, k: int, tied: list[str]) -> dict:
    """How many stops kept the lowest types of the texts as they are, and how many were wrong."""
    means = pool.mean()
    sure = [*means.nsmallest(k).index]
    if tied:  # then only those below the tie are sure
        sure = [name for name in sure if name not in tied]
    possible = [frozenset([*sure, *some]) for some in combinations(tied, k - len(sure))]
    fewest = min(sets[names] for names in possible)
    return {"kept": sets[possible[0]], "wrong": sets.total() - fewest}


def looked(draws: np.ndarray, look: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Which runs (runs, texts, types) `StoppingRule` decides at this look, and their k lowest."""
    _, texts, types = draws.shape
    order = draws.mean(axis=1).argsort(axis=1)
    draws = np.take_along_axis(draws, order[:, None], axis=2)  # types in the order of their means
    gaps = draws[:, :, None, k:] - draws[:, :, :k, None]
    t = gaps.mean(axis=1) / stats.sem(gaps, axis=1)
    level = (1 - SURE) / (look * (look + 1) * k * (types - k))
    return (stats.t.sf(t, texts - 1) <= level).all(axis=(1, 2)), np.sort(order[:, :k])


# Networks that are too narrow


def networks() -> None:
    """Scores of every map of small Llamas that have read the bytes of math texts for a while."""
    lines = [text.encode()[:96].ljust(96) for text in plop.load_texts("math", n=256)]
    written = torch.tensor([list(line) for line in lines])
    parts = []
    for width in WIDTHS:
        for start in range(STARTS):
            network, loss = trained(width, start, written[16:])
            scores = plop.nfn_scores(network, [{"input_ids": written[:16]}], progress=False)
            parts.append(plop.by_module(scores).assign(width=width, start=start, loss=loss))
    columns = ["width", "start", "loss", "module", "type", "layer", "nfn", "low", "high"]
    table = pd.concat(parts)[columns]
    command = f"{COMMAND} networks"
    record.save(table, "samples_networks.csv", steps=STEPS, batch=8, lr=3e-3, command=command)


def trained(width: int, start: int, written: torch.Tensor) -> tuple[torch.nn.Module, float]:
    """A small Llama after some steps of AdamW on rows of bytes, and the loss of the last step."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(start)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=4,
        num_attention_heads=4,
        initializer_range=width**-0.5,
    )
    network = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(STEPS):
        batch = written[torch.randint(len(written), (8,))]
        loss = network(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return network.eval(), loss.item()


def main() -> None:
    """Record the parts that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="+", choices=["texts", "replays", "networks"])
    parser.add_argument("--pool", type=int, default=POOL, help="texts to draw from")
    given = parser.parse_args()
    if "texts" in given.parts:
        texts(given.pool)
    if "replays" in given.parts:
        replays()
    if "networks" in given.parts:
        networks()


if __name__ == "__main__":
    main()
