"""Comparisons of placements: paired intervals, and tuned learning rates."""

import numpy as np
import pandas as pd
import pytest

from plop_nb.experiments import tuned, versus


def runs_of(losses, **columns):
    """Runs from {placement: losses by seed}."""
    rows = [
        {
            "task": "t",
            "placement": p,
            "seed": s,
            "loss": v,
            "parameters": len(p),
            "r": 1,
            "lr": 1e-3,
            "split": "test",
        }
        for p, values in losses.items()
        for s, v in enumerate(values)
    ]
    return pd.DataFrame(rows).assign(**columns)


def test_versus_is_a_paired_t_interval():
    runs = runs_of(
        {
            "ref": [1.0, 2.0, 3.0, 4.0],
            "low": [0.9, 1.8, 2.9, 3.8],
            "same": [1.1, 1.9, 3.1, 3.9],
            "hi!": [2, 3, 4, 5.1],
        }
    )
    table = versus(runs, "ref").set_index("placement")
    half = (
        3.182446 * np.std([-0.1, -0.2, -0.1, -0.2], ddof=1) / 2
    )  # t of 3 degrees of freedom at 97.5 %
    assert table.loc["low", ["difference", "low", "high"]].tolist() == pytest.approx(
        [-0.15, -0.15 - half, -0.15 + half]
    )
    assert table["verdict"].to_dict() == {"low": "better", "same": "undecided", "hi!": "worse"}
    assert table.loc["low", ["seeds", "parameters", "reference_parameters"]].tolist() == [4, 3, 3]
    accuracy = versus(runs.rename(columns={"loss": "accuracy"}), "ref", "accuracy").set_index(
        "placement"
    )
    assert accuracy["verdict"].to_dict() == {"low": "worse", "same": "undecided", "hi!": "better"}


def test_versus_pairs_by_seed():
    runs = runs_of({"ref": [1.0, 5.0, 9.0], "x": [1.1, 5.1, 9.2]})
    shuffled = runs.sample(frac=1, random_state=3)
    assert versus(shuffled, "ref")["difference"][0] == pytest.approx(0.4 / 3)
    kept = versus(runs.drop(index=0), "ref")
    assert kept["seeds"][0] == 2 and kept["difference"][0] == pytest.approx(0.15)
    with pytest.raises(ValueError, match="have 1 seeds in common on 't': run 2 or more"):
        versus(runs.drop(index=[0, 1]), "ref")
    with pytest.raises(ValueError, match="reference='y' was not run"):
        versus(runs, "y")
    with pytest.raises(ValueError, match="several runs of one task, placement and seed"):
        versus(pd.concat([runs, runs.assign(lr=1.0)]), "ref")
    with pytest.raises(ValueError, match="value='seconds' is unknown"):
        versus(runs.assign(seconds=1), "ref", "seconds")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_versus_does_not_drop_what_diverged(value):
    runs = runs_of({"ref": [1.0, 2.0, 3.0], "x": [0.9, 1.8, value]})
    message = "loss is .* for placement 'x' with seed 2 on 't': where a run diverged, take a lower"
    with pytest.raises(ValueError, match=message):
        versus(runs, "ref")


def test_tuned_takes_the_best_validation_loss_and_refuses_the_test_split():
    parts = [
        runs_of(
            {"a": [2 - lr * 10, 2.2 - lr * 10], "b": [abs(lr - 0.02), 0.1 + abs(lr - 0.02)]}, lr=lr
        )
        for lr in (0.01, 0.02, 0.04)
    ]
    runs = pd.concat(parts, ignore_index=True)
    with pytest.raises(
        ValueError, match="evaluated on the split 'test': tune on runs with final='validation'"
    ):
        tuned(runs)
    best = tuned(runs.assign(split="validation")).set_index("placement")
    assert best["lr"].to_dict() == {"a": 0.04, "b": 0.02} and best["edge"].to_dict() == {
        "a": True,
        "b": False,
    }
    assert (
        best["loss"].to_dict() == pytest.approx({"a": 1.7, "b": 0.05})
        and (best["seeds"] == 2).all()
    )
    diverged = runs.assign(
        split="validation", loss=runs["loss"].where((runs["lr"] != 0.04) | (runs["seed"] == 1))
    )
    assert tuned(diverged).set_index("placement")["lr"]["a"] == 0.02
    with pytest.raises(ValueError, match="was run at ranks"):
        tuned(pd.concat([runs, runs.assign(r=2)]).assign(split="validation"))
