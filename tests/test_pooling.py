"""Partial pooling, on losses whose truth is known."""

import itertools

import numpy as np
import pandas as pd
import pytest

from plop_nb.experiments.pooling import interval, judge_choices, pooled_losses, seed_variance

TYPES = "qkvogud"
TRIPLES = {"".join(three): set(three) for three in itertools.combinations(TYPES, 3)}
EFFECTS = dict(zip(TYPES, [0.05, 0.1, 0.0, 0.02, -0.03, -0.06, -0.08], strict=True))


def truth(random, own=0.02):
    """{placement: its true loss}: its types' effects and something of its own."""
    effects = {name: sum(EFFECTS[t] for t in types) for name, types in TRIPLES.items()}
    return {name: 1 + effect + own * random.normal() for name, effect in effects.items()}


def measured(losses, random, seeds=3, noise=0.05, examples=40, of_types=0.0):
    """What `crossfit` would return: a common part of each seed and example, and noise.

    A seed also favours some types, by about `of_types`.
    """
    hard = random.uniform(0.5, 1.5, examples)
    hard /= hard.mean()
    rows = []
    for seed in range(seeds):
        of_seed = 0.1 * random.normal()
        favours = dict(zip(TYPES, of_types * random.normal(size=len(TYPES)), strict=True))
        for name, loss in losses.items():
            favoured = sum(favours[name] for name in TRIPLES[name])
            level = loss + of_seed + favoured + noise * random.normal()
            each = level * hard
            row = {"task": "t", "placement": name, "seed": seed}
            rows.append(row | {"loss": each.mean(), "losses": each})
    return pd.DataFrame(rows)


def test_without_noise_the_losses_are_what_was_measured():
    random = np.random.default_rng(0)
    losses = truth(random)
    pooled = pooled_losses(measured(losses, random, noise=1e-6), TRIPLES)
    gaps = pooled.observed - pd.Series(losses)
    assert np.ptp(gaps) < 1e-5  # all but what the seeds have in common
    assert pooled.noise < 0.01  # what examples leave, as hard ones weigh more
    best = min(losses, key=losses.get)
    assert pooled.judged(best)["better_than"] > 0.95
    assert pooled.judged(best)["regret"] < 0.03


def test_finds_the_effects_of_types():
    random = np.random.default_rng(1)
    pooled = pooled_losses(measured(truth(random), random), TRIPLES)
    true = pd.Series(EFFECTS) - np.mean(list(EFFECTS.values()))
    found = pooled.effects.mean() - pooled.effects.mean().mean()
    assert (found - true).abs().max() < 0.03
    for name in TYPES:
        low, high = interval(pooled.effects[name] - pooled.effects.mean(axis=1), 0.999)
        assert low < true[name] < high


def test_chance_is_the_mean_regret_of_all_choices():
    random = np.random.default_rng(4)
    pooled = pooled_losses(measured(truth(random), random), TRIPLES, draws=200)
    regrets = [pooled.judged(name)["regret"] for name in TRIPLES]
    assert pooled.chance == pytest.approx(np.mean(regrets))
    assert 0.2 < pooled.chance < 0.8


def test_choices_are_judged_and_compared_with_one_placement_all_at_once():
    random = np.random.default_rng(8)
    losses = truth(random, own=0) | {"qkv": 1.5}  # surely the worst
    pooled = {"usual": pooled_losses(measured(losses, random, noise=0.01), TRIPLES)}
    pooled["noisy"] = pooled_losses(measured(losses, random, noise=0.5), TRIPLES)
    choices = {"usual": pd.Series({"a": "qkv", "b": "ogu", "c": "gud"})}  # as of a frame
    choices["noisy"] = {"a": "ogu", "b": "ogu", "c": "gud"}
    table = judge_choices(pooled, choices, "gud")
    assert table["task"].tolist() == ["usual"] * 3 + ["noisy"] * 3
    assert table["choice"].tolist() == ["a", "b", "c"] * 2
    first = table.iloc[0]
    assert first["verdict"] == "worse" and first["low"] < 1.5 - losses["gud"] < first["high"]
    judged = pooled["usual"].judged("qkv")
    assert {key: first[key] for key in judged if "regret" in key} == {
        key: value for key, value in judged.items() if "regret" in key
    }
    same = table.query("choice == 'c'")
    assert same["verdict"].tolist() == ["same"] * 2
    assert not same[["difference", "low", "high"]].to_numpy().any()
    gaps = pooled["noisy"].draws["ogu"] - pooled["noisy"].draws["gud"]
    undecided = table.iloc[3]
    assert undecided["verdict"] == "undecided"
    # three comparisons: qkv and ogu of the first kind, ogu (chosen twice) of the second
    expected = interval(gaps.to_numpy(), 1 - 0.05 / 3)
    assert (undecided["low"], undecided["high"]) == pytest.approx(expected)
    assert judge_choices(pooled, {"usual": {"a": "gud"}}, "qkv")["verdict"].tolist() == ["better"]


def test_where_all_is_noise_no_choice_is_good_or_bad():
    random = np.random.default_rng(2)
    pooled = pooled_losses(measured(dict.fromkeys(TRIPLES, 1.0), random), TRIPLES)
    lucky = pooled.judged(pooled.observed.idxmin())
    assert lucky["better_than_low"] < 0.5 and pooled.spread < 0.03
    assert pooled.draws.mean().std() < 0.8 * pooled.observed.std()  # shrunk


@pytest.mark.parametrize("of_types", [0.0, 0.05])
def test_intervals_hold_the_truth_as_often_as_they_say(of_types):
    """Of the share that the choice is better than, and of its regret, over many worlds."""
    random, held = np.random.default_rng(3), {"better_than": 0, "regret": 0}
    worlds = 60
    for world in range(worlds):
        losses = pd.Series(truth(random))
        results = measured(losses, random, of_types=of_types)
        pooled = pooled_losses(results, TRIPLES, draws=800, seed=world)
        choice = random.choice(list(TRIPLES))
        found = pooled.judged(choice, level=0.9)
        true = {
            "better_than": (losses > losses[choice]).sum() / (len(losses) - 1),
            "regret": (losses[choice] - losses.min()) / (losses.max() - losses.min()),
        }
        for name, value in true.items():
            held[name] += found[f"{name}_low"] - 1e-9 <= value <= found[f"{name}_high"] + 1e-9
    for count in held.values():
        assert 0.78 <= count / worlds  # 0.9, less three standard errors


def test_effects_hold_for_new_seeds_where_a_seed_favours_types():
    random, held = np.random.default_rng(6), []
    true = pd.Series(EFFECTS) - np.mean(list(EFFECTS.values()))
    for world in range(60):
        results = measured(truth(random), random, noise=0.02, of_types=0.05)
        pooled = pooled_losses(results, TRIPLES, draws=800, seed=world)
        for name in TYPES:
            low, high = interval(pooled.effects[name], 0.9)
            held.append(low <= true[name] <= high)
    assert 0.85 < np.mean(held) < 0.97


def test_tells_the_parts_of_luck_apart():
    """Of seeds that favour types, and of single runs, over many seeds."""
    random = np.random.default_rng(7)
    results = measured(truth(random), random, seeds=60, noise=0.04, of_types=0.05)
    pooled = pooled_losses(results, TRIPLES)
    assert pooled.by_seed == pytest.approx(0.05, rel=0.15)
    assert pooled.noise == pytest.approx(0.04 / 60**0.5, rel=0.3)
    assert pooled.spread == pytest.approx(0.02, rel=0.3)
    plain = pooled_losses(measured(truth(random), random, seeds=60, noise=0.04), TRIPLES)
    assert plain.by_seed < 0.006


def test_noise_of_seeds_leaves_out_what_they_do_to_all():
    random = np.random.default_rng(4)
    losses = random.normal(size=(200, 1)) + random.normal(size=(1, 3)) * 5
    noisy = losses + 0.3 * random.normal(size=(200, 3))
    assert seed_variance(noisy) == pytest.approx(0.09, rel=0.15)
    assert seed_variance(losses) == pytest.approx(0)


def test_bad_input():
    random = np.random.default_rng(5)
    results = measured(truth(random), random)
    with pytest.raises(ValueError, match="qkv"):
        pooled_losses(results[results["placement"] != "qkv"], TRIPLES)
    with pytest.raises(ValueError, match="two seeds"):
        pooled_losses(results[results["seed"] == 0], TRIPLES)
    with pytest.raises(ValueError, match="choice='x'"):
        pooled_losses(results, TRIPLES).judged("x")
    pooled = {"usual": pooled_losses(results, TRIPLES)}
    with pytest.raises(ValueError, match=r"choices has \['other'\], expected .*usual"):
        judge_choices(pooled, {"other": {"a": "qkv"}}, "gud")
    with pytest.raises(ValueError, match="reference='x' is no placement of 'usual'"):
        judge_choices(pooled, {"usual": {"a": "qkv"}}, "x")
    with pytest.raises(ValueError, match="choice='x'"):
        judge_choices(pooled, {"usual": {"a": "x"}}, "gud")
