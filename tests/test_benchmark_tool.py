"""The recorder of the benchmark, end to end at toy size: what a GPU and a hub would run."""

import argparse
import importlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.test_training import tokenizer as tokenizer  # a fixture

TOOLS = Path(__file__).parents[1] / "notebooks" / "tools"


@pytest.fixture
def tool(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(TOOLS))
    module = importlib.import_module("record_benchmark")
    monkeypatch.setattr(importlib.import_module("record"), "RESULTS", tmp_path / "results")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setitem(module.TRAINING, "short_sums", {"steps": 2, "batch_size": 4})
    monkeypatch.setattr(module, "FULL_RATES", [1e-4, 2e-4, 4e-4])
    return module


@pytest.fixture
def given(tmp_path, tiny_llama, tokenizer):
    tiny_llama.save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    return argparse.Namespace(
        model=str(tmp_path / "tiny"),
        dtype="float32",
        folder=tmp_path / "work",
        tasks=["short_sums"],
        test=6,
        groups=["single", "fixed", "triple", "scaled", "rival", "full"],
        rates=[1e-3, 2e-3, 4e-3],
        seeds=[0],
        tuned_by=None,
        placements=None,
    )


@pytest.mark.slow
def test_from_the_plan_to_the_record(tool, given, monkeypatch, tmp_path):
    monkeypatch.setattr(tool, "MOST_RATES", 3)
    tool.plan(given)
    plan = pd.read_csv(tmp_path / "results" / "benchmark_plan.csv", comment="#")
    assert plan["group"].value_counts().to_dict() == {
        "triple": 35,
        "single": 7,
        "fixed": 4,
        "scaled": 44,  # of single, triple and fixed, but for "all" and the layers
        "rival": 5,
    }
    assert plan.loc[plan["group"] == "triple", "r"].max() == 16  # its narrowest map has no more
    jobs = tool.jobs_of(given)
    assert len(jobs) == len({name for _, _, name, _ in jobs}) == 35 + 7 + 4 + 44 + 5 + 1
    tool.load_worker(given)
    wanted = ["down+gate+up", "attention, equal scale", "EVA, rho 1", "full finetuning"]
    for job in [job for job in jobs if job[2] in wanted]:
        assert tool.train(job).startswith(f"short_sums, {job[2]}, seed 0: 0.00")
    tool.collect(given)
    runs = pd.read_csv(tmp_path / "results" / "benchmark_runs.csv", comment="#")
    assert runs.groupby("placement")["lr"].nunique().to_dict() == dict.fromkeys(wanted, 3)
    assert np.isfinite(runs[["loss", "unrelated_loss"]]).all(axis=None)
    assert set(runs["group"]) == {"triple", "scaled", "rival", "full"}
    scales = runs.set_index("placement")["lora_alpha"] / runs.set_index("placement")["r"]
    assert (scales["attention, equal scale"] == 4).all()  # that of rank 8 on all types
    assert (scales["down+gate+up"] != 4).all()
    examples = pd.read_csv(tmp_path / "results" / "benchmark_examples.csv.gz", comment="#")
    tokens = pd.read_csv(tmp_path / "results" / "benchmark_tokens.csv", comment="#")
    counts = np.array(tokens["tokens"].item().split(), dtype=int)
    for run, row in zip(runs.itertuples(), examples.itertuples(), strict=True):
        losses = np.array(row.losses.split(), dtype=int) / 100
        assert losses.sum() / counts.sum() == pytest.approx(run.loss, abs=0.01)
        assert len(row.exact) == len(losses) == 6
    # what is recorded is not run again, also without the folder of the runs
    monkeypatch.setattr(tool.ex, "grid", None)
    tool.load_worker(given)
    tool.train(("short_sums", 0, "down+gate+up", [1e-3, 2e-3, 4e-3]))
    # another seed is wanted at the rates that the first one prefers
    given.placements, given.groups, given.tuned_by, given.seeds = (
        ["down+gate+up"],
        ["triple"],
        0,
        [1],
    )
    [(_, seed, name, rates)] = tool.jobs_of(given)
    assert (seed, name) == (1, "down+gate+up") and 1 <= len(rates) <= 2
    assert set(rates) <= set(runs["lr"])


@pytest.mark.slow
def test_what_pefts_comparison_takes(tool, given):
    given.groups = ["fixed"]
    tool.export(given)
    folder = given.folder / "experiments" / "lora-query-value"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == ["q_proj", "v_proj"] and config["lora_alpha"] == 32
    settings = json.loads((folder / "training_params.json").read_text())
    assert settings == {"optimizer_kwargs": {"lr": 1e-3}}
