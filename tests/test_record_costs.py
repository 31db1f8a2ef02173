"""What notebook 07 says of costs: seconds from two records, and work that is counted."""

import importlib
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

import plop_nb as plop
from tests import large_model

TOOLS = Path(__file__).parents[1] / "notebooks" / "tools"


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("record_costs")


@pytest.fixture
def costs():
    return pd.read_csv(plop.data_file("results/costs.csv"), comment="#")


def test_the_seconds_are_those_that_were_measured(tool, costs):
    rows = tool.small_runs(pd.read_csv(plop.data_file("results/bench_cpu.csv")), 106_168_320, 4960)
    rows += tool.large_runs(pd.read_csv(plop.data_file("results/large_model.csv")))
    assert costs["run"].tolist() == [row["run"] for row in rows] and len(rows) == 5
    assert costs["seconds"].tolist() == pytest.approx([row["seconds"] for row in rows], rel=1e-3)
    assert costs["billions"].tolist() == pytest.approx([row["billions"] for row in rows], rel=1e-3)
    assert costs["with_loading"].tolist() == [False, False, True, True, True]


def test_the_weights_are_those_of_the_models_that_were_run(tool):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(large_model.config(layers=2, width=1024))
    assert tool.llama_weights(2, 1024) == tool.weights_of(model)


def test_the_rates_are_those_that_notebook_07_tells(costs):
    """Seconds per billion weights and thousand tokens."""
    rates = (costs["seconds"] / (costs["billions"] * costs["thousands"])).round()
    assert rates.tolist() == [15, 23, 16, 17, 24]
    low, high = (costs["seconds"] / (costs["billions"] * costs["thousands"])).agg(["min", "max"])
    assert round(1 * 8.192 * low) == 125 and round(1 * 8.192 * high) == 200


@pytest.mark.slow
def test_the_work_of_smollm_is_counted_right(tool, costs, smollm):
    model, tokenizer = smollm
    ids = tokenizer(plop.load_texts("math", n=64), truncation=True, max_length=256)["input_ids"]
    assert costs["billions"][0] == pytest.approx(tool.weights_of(model) / 1e9, rel=1e-3)
    assert costs["thousands"][0] == pytest.approx(sum(map(len, ids)) / 1e3, rel=1e-3)
