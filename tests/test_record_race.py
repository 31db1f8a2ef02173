"""The replay of races on recorded runs, where the truth is known."""

import importlib
import itertools
import math
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

RATES = (1e-3, 2e-3, 4e-3)
ROOT = Path(__file__).parent.parent


@pytest.fixture
def replay(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "notebooks" / "tools")
    module = importlib.import_module("record_race")
    for name, value in {"SIZES": [8], "SHARES": [0.1, 0.3], "REDUCTIONS": [2, 4]}.items():
        monkeypatch.setattr(module, name, value)
    return module


PROBLEMS, RECORDED_SEEDS, RECORDED_STEPS = 40, (0, 1, 2), 32
QUALITY = {f"t{number}": 1.0 + 0.1 * number for number in range(8)}


def write_record(folder, noise=0.0):
    """A record as the benchmark's: 8 placements, the best rate is 2e-3, one run diverged."""
    draw = np.random.default_rng(0)
    runs, curves, examples = [], [], []
    steps = np.arange(1, RECORDED_STEPS + 1)
    for name, lr, seed in itertools.product(QUALITY, RATES, RECORDED_SEEDS):
        about = {"model": "m", "task": "t", "placement": name, "lr": lr, "seed": seed}
        end = QUALITY[name] + 0.1 * abs(math.log2(lr / 2e-3)) + noise * draw.normal()
        lost = name == "t7" and lr == 4e-3
        runs.append(about | {"group": "fixed" if name == "t0" else "triple"})
        losses = np.full(len(steps), np.nan) if lost else end + np.exp(-steps / 4)
        curves += [about | {"step": s, "train_loss": x} for s, x in zip(steps, losses, strict=True)]
        sums = [-1 if lost else round(100 * 2 * end)] * PROBLEMS
        examples.append(about | {"losses": " ".join(map(str, sums)), "exact": "." * PROBLEMS})
    pd.DataFrame(runs).to_csv(folder / "benchmark_runs.csv", index=False)
    pd.DataFrame(curves).to_csv(folder / "benchmark_curves.csv.gz", index=False)
    pd.DataFrame(examples).to_csv(folder / "benchmark_examples.csv.gz", index=False)
    tokens = pd.DataFrame({"model": ["m"], "task": ["t"], "tokens": [" ".join(["2"] * PROBLEMS)]})
    tokens.to_csv(folder / "benchmark_tokens.csv", index=False)


def test_a_record_is_read_as_it_was_written(replay, tmp_path):
    write_record(tmp_path)
    record = replay.read(tmp_path, "m", "t")
    assert record.placements == list(QUALITY) and record.rates == list(RATES)
    assert record.seeds == list(RECORDED_SEEDS) and record.steps == RECORDED_STEPS
    half = np.arange(PROBLEMS) < 10
    assert record.loss(("t3", 2e-3, 1), half) == pytest.approx(1.3)
    assert record.loss(("t7", 4e-3, 1), half) == math.inf
    assert record.curves["t3", 2e-3, 1][0] == pytest.approx(1.3 + math.exp(-1 / 4))


def test_placements_that_lack_runs_are_left_out(replay, tmp_path):
    """One that was run at one rate only with the later seeds."""
    write_record(tmp_path)
    path = tmp_path / "benchmark_runs.csv"
    runs = pd.read_csv(path)
    lacks = (runs["placement"] == "t2") & (runs["seed"] > 0) & (runs["lr"] != 2e-3)
    runs[~lacks].to_csv(path, index=False)
    record = replay.read(tmp_path, "m", "t")
    assert record.placements == [name for name in QUALITY if name != "t2"]
    assert record.seeds == list(RECORDED_SEEDS) and record.rates == list(RATES)


def test_the_largest_grid_without_holes_is_taken(replay, tmp_path):
    """A rate that few placements have with all seeds is left out, not those that lack it."""
    write_record(tmp_path)
    path = tmp_path / "benchmark_runs.csv"
    runs = pd.read_csv(path)
    kept = (runs["lr"] != 4e-3) | runs["placement"].isin(["t0", "t1"]) | (runs["seed"] == 0)
    runs[kept].to_csv(path, index=False)
    record = replay.read(tmp_path, "m", "t")
    assert record.placements == list(QUALITY) and record.rates == [1e-3, 2e-3]
    runs[runs["lr"] == 1e-3].to_csv(path, index=False)
    with pytest.raises(ValueError, match="0 placements"):
        replay.read(tmp_path, "m", "t")


def test_where_the_truth_is_known_the_race_finds_it(replay, tmp_path):
    write_record(tmp_path)
    table = replay.replayed(replay.read(tmp_path, "m", "t"), 12)
    race = table[table["way"] == "race"]
    assert len(race) and (race["regret"] == 0).all() and (race["within_0.05"] == 1).all()
    assert (race["cost"] <= race["share"] + 1e-9).all() and (race["draws"] <= 12).all()
    # no noise, so each of equal steps from the best to the worst is as likely at random
    by_chance = table[(table["way"] == "at random") & (table["placements"] == 8)]
    assert by_chance["regret"].item() == pytest.approx(0.5, abs=0.35)
    assert table.loc[table["way"] == "the whole grid", "regret"].item() == 0
    grid = table[table["way"] == "grid of the same cost"]
    assert (grid["regret"] > 0).any() and (grid["regret"] < 0.9).all()


def test_the_race_is_as_good_as_its_record(replay, tmp_path):
    """Where seeds decide, it cannot know better: between the truth and chance."""
    write_record(tmp_path, noise=0.3)
    table = replay.replayed(replay.read(tmp_path, "m", "t"), 12)
    means = table.groupby("way")["regret"].mean()
    assert 0 < means["race"] < means["at random"]
    assert means["the whole grid"] <= means["race"] + 0.1


def test_unseen_seeds_and_problems_judge(replay, tmp_path):
    write_record(tmp_path)
    one = replay.drawn(replay.read(tmp_path, "m", "t"), 4, random.Random(0))
    assert not set(one.seeds) & set(one.unseen) and len(one.unseen) == 1
    assert one.validation.sum() == PROBLEMS / 2
    before = one.chosen(0.4, 2)
    truth = one.truth()
    for (name, _, seed), sums in one.record.sums.items():
        if seed in one.unseen:
            sums[:] = 9 - QUALITY[name]
        else:
            sums[~one.validation] = 99
    assert one.chosen(0.4, 2) == before and one.truth() != truth
