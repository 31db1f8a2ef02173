"""Record the outlier channels of three models in data/results, for notebook 04.

    python notebooks/tools/record_channels.py      on two cores in 2 minutes

channels.csv has a row per module: its mean input's leading channel, the same without the first
token and in front of the norm, and where the largest tokens stand. channel_interventions.csv has
the scores by type as they are, and with a direction taken out of the inputs.
"""

import pandas as pd
import torch
from record import MODELS, save

import plop_nb as plop
from plop_nb import channels
from plop_nb.geometry import interventions, mean_inputs, nfn_without
from plop_nb.stats import per_text

TEXTS = 8  # of the math domain
QUIET = {"progress": False}
COMMAND = "python notebooks/tools/record_channels.py"


def main():
    """Both tables of every model."""
    tables, scores = [], []
    for name in MODELS:
        model, tokenizer = plop.load_model(name, dtype="float32", progress=False)
        texts = plop.load_texts("math", n=TEXTS)
        means = mean_inputs(model, texts, tokenizer, **QUIET)
        tables.append(by_module(model, texts, tokenizer, means).assign(model=name))
        scores.append(intervened(model, texts, tokenizer, means).assign(model=name))
        print(name, "is recorded", flush=True)
    head = {"command": COMMAND, "texts": TEXTS, "domain": "math", "dtype": "float32"}
    save(model_first(pd.concat(tables)), "channels.csv", **head)
    save(model_first(pd.concat(scores)), "channel_interventions.csv", **head)


def by_module(model, texts, tokenizer, means):
    """One row per module: everything about its leading channel."""
    table = leading_two(channels.mean_channels(model, means, top=2))
    table = table.merge(without_first_token(model, texts, tokenizer))
    stream = channels.stream_channels(model, texts, tokenizer, means).drop(columns="channel")
    table = table.merge(stream, how="left", on="module")
    table = table.merge(sinks(model, texts, tokenizer), how="left", on="norm")
    attention = attention_to_first(model, texts, tokenizer)
    return table.assign(attention_first=table["layer"].map(attention))


def leading_two(table):
    """The rows of rank 1, with the second channel beside the first."""
    second = table[table["rank"] == 2][["module", "channel", "channel_share"]]
    second.columns = ["module", "second_channel", "second_share"]
    return table[table["rank"] == 1].drop(columns="rank").merge(second)


def without_first_token(model, texts, tokenizer):
    """The mean over all tokens but the first; `first_cosine`: of that with the first tokens'."""
    later = interventions(texts, tokenizer)["first token left out"]
    first = [batch | {"score_mask": 1 - batch["score_mask"]} for batch in later]
    later_means = mean_inputs(model, later, **QUIET)
    first_means = mean_inputs(model, first, **QUIET)
    table = channels.mean_channels(model, later_means)
    wanted = ["share", "participation", "channel", "channel_share"]
    found = table[["module", *wanted]].rename(columns={name: f"{name}_later" for name in wanted})
    cosines = []
    for name in found["module"]:
        cosine = torch.nn.functional.cosine_similarity(first_means[name], later_means[name], dim=0)
        cosines.append(cosine.item())
    return found.assign(first_cosine=cosines)


def sinks(model, texts, tokenizer):
    """One row per norm: the largest token in front of it, over all texts."""
    tokens = channels.loudest_tokens(model, texts, tokenizer)
    rows = []
    for norm, group in tokens.groupby("norm", sort=False):
        rows.append(
            {
                "norm": norm,
                "loudest_is_first": (group["position"] == 0).mean(),  # share of the texts
                "loudest_size": (group["size"] / group["other_size"]).median(),
                "loudest_channel": group["channel"].mode()[0],
                "loudest_value": group["value"].median(),
                "other_value": group["other_value"].median(),
            }
        )
    return pd.DataFrame(rows)


@torch.no_grad()
def attention_to_first(model, texts, tokenizer):
    """{layer: attention that the later tokens pay to the first, mean over heads and tokens}."""
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")  # the only one that shows its weights
    paid = []
    for text in texts:
        batch = tokenizer([text], return_tensors="pt").to(model.device)
        layers = model(**batch, output_attentions=True).attentions
        paid.append([weights[0, :, 1:, 0].mean().item() for weights in layers])
    model.set_attn_implementation(implementation)
    return pd.DataFrame(paid).mean().to_dict()


def intervened(model, texts, tokenizer, means):
    """Scores by type, as they are and with one direction taken out of every map's inputs."""
    removed = {
        "without the leading channel": channels.leading_channels(means),
        "without the mean's other channels": channels.other_channels(means),
        "without the mean": means,
    }
    before = plop.nfn_scores(model, texts, tokenizer, **QUIET)
    parts = [plop.by_type(before).assign(intervention="as it is")]
    for what, directions in removed.items():
        after = nfn_without(model, texts, tokenizer, directions, **QUIET)
        table = plop.by_type(after).merge(changes(before, after))
        parts.append(table.assign(intervention=what))
    columns = ["intervention", "type", "nfn", "low", "high", "modules", "samples"]
    return pd.concat(parts)[[*columns, "change", "change_low", "change_high"]]


def changes(before, after):
    """By how much the score of each type changes, with its interval over the same texts."""
    by_text = per_text(after) - per_text(before)
    change = plop.mean_interval(by_text)
    return pd.DataFrame(
        {
            "type": by_text.columns,
            "change": change.mean,
            "change_low": change.low,
            "change_high": change.high,
        }
    )


def model_first(table):
    """The column of the model in front of all others."""
    return table[["model", *table.columns.drop("model")]]


if __name__ == "__main__":
    main()
