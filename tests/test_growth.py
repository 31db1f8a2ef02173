"""Feature norm growth against a loop written from the formulas, and the closed form."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from plop_nb.experiments import growth, mean_interval, power_fit
from plop_nb.experiments import small_networks as theory
from plop_nb.experiments.small_networks import Problem, Setting

NUMBERS = ["feature", "growth", "moved", "baseline", "nfn", "loss"]


def at(run, step, column):
    return run.query("step == @step")[column].to_numpy()


def closed_form(run, eta):
    moved = eta * run["c"] * run["step"]
    return moved**2 + 2 * moved * run["cross"]


# growth


@pytest.mark.parametrize("dense", [False, True])
def test_closed_form_holds_at_every_step(dense):
    run = growth(96, 20, eta=0.03, seeds=4, dense=dense)
    np.testing.assert_allclose(run["growth"], closed_form(run, 0.03), atol=1e-6)
    np.testing.assert_allclose(run["moved"], 0.03 * run["c"] * run["step"], atol=1e-6)


@pytest.mark.parametrize("labels", theory.LABELS)
@pytest.mark.parametrize("rule", theory.RULES)
def test_rank_one_recursion_equals_the_plain_loop(labels, rule):
    options = {"samples": 7, "batch": 3, "labels": labels, "rule": rule, "target": 0.5, "seeds": 3}
    short, plain = growth(128, 15, **options), growth(128, 15, dense=True, **options)
    np.testing.assert_allclose(short[NUMBERS], plain[NUMBERS], atol=1e-6)


def naive(width, steps, eta, optimizer):
    """Full batch, linear, only W trained: by hand, in numpy, from the package's start."""
    task = Problem(Setting(width, 1, samples=5, batch=5, target=1.0), seed=0)
    W, U, v = (task.weights[k].double().numpy().copy() for k in ("W", "U", "readout"))
    z, y = task.x.numpy() @ U.T, task.y.numpy()
    W_0, m, s = W.copy(), 0, 0
    for t in range(1, steps + 1):
        residual = (W @ z.T).T @ v - y
        gradient = sum(r * np.outer(v, zi) for r, zi in zip(residual, z, strict=True)) / len(y)
        m, s = 0.9 * m + 0.1 * gradient, 0.999 * s + 0.001 * gradient**2
        W = (
            W
            - {
                "signsgd": eta / width * np.sign(gradient),
                "adam": eta / width * (m / (1 - 0.9**t)) / np.sqrt(s / (1 - 0.999**t)),
                "sgd": eta * gradient,
            }[optimizer]
        )
    features, frobenius = (W @ z.T).T, np.sqrt((W**2).sum())
    return {
        "feature": np.mean([h @ h / width for h in features]),
        "moved": math.sqrt(np.mean(((W - W_0) @ z.T) ** 2)),
        "baseline": frobenius / math.sqrt(width),
        "nfn": np.mean([math.sqrt(h @ h / (zi @ zi)) for h, zi in zip(features, z, strict=True)])
        / (frobenius / math.sqrt(width)),
        "loss": np.mean((features @ v - y) ** 2) / 2,
    }


@pytest.mark.parametrize("optimizer", theory.OPTIMIZERS)
def test_growth_equals_a_loop_written_by_hand(optimizer):
    run = growth(48, 12, eta=0.05, optimizer=optimizer, samples=5, target=1.0, seeds=1, dense=True)
    expected = naive(48, 12, 0.05, optimizer)
    assert run.iloc[-1][list(expected)].to_dict() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("network", ["relu", "gelu", "attention"])
def test_loss_is_that_of_the_network_written_by_hand(network):
    """Row 0, from the formulas in the module's docstring."""
    task = Problem(Setting(32, 1, network=network, samples=3, batch=3, target=1.0), seed=0)
    w = {k: weight.double() for k, weight in task.weights.items()}
    outputs = []
    for x in task.x:
        if network == "attention":
            z = [w["U"] @ token for token in x]
            out = torch.zeros(32).double()
            for query in z:
                logits = torch.stack([(w["q"] @ query) @ (w["k"] @ key) / 32 for key in z])
                weights = logits.exp() / logits.exp().sum()
                pairs = zip(weights, z, strict=True)
                out += w["o"] @ sum(a * (w["v"] @ value) for a, value in pairs) / len(z)
            outputs.append(out @ w["readout"])
        else:
            h = w["W"] @ (w["U"] @ x)
            gelu = h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))
            outputs.append((h.clamp(min=0) if network == "relu" else gelu) @ w["readout"])
    loss = (torch.stack(outputs) - task.y).square().mean() / 2
    run = growth(32, 1, network=network, samples=3, target=1.0, seeds=1)
    assert run.iloc[0]["loss"] == pytest.approx(loss.item(), rel=1e-6)


def test_training_lowers_the_loss_in_every_network_and_train_all_moves_more():
    for network in theory.NETWORKS:
        run = growth(64, 20, network=network, seeds=2)
        assert (at(run, 20, "loss") < at(run, 0, "loss")).all(), network
    both = growth(64, 5, train="all", seeds=2), growth(64, 5, seeds=2, dense=True)
    assert (at(both[0], 5, "loss") < at(both[1], 5, "loss")).all()


def test_step_rules_agree_at_the_base_width_and_scale_as_they_say():
    steps = {
        (rule, n): growth(n, 1, rule=rule, seeds=2) for rule in theory.RULES for n in (64, 256)
    }
    moved = {key: at(run, 1, "moved") for key, run in steps.items()}
    np.testing.assert_allclose(moved["mup", 64], moved["standard", 64])
    np.testing.assert_allclose(moved["mup", 64], moved["sqrt", 64])
    np.testing.assert_allclose(moved["sqrt", 256], 2 * moved["mup", 256])
    np.testing.assert_allclose(moved["standard", 256], 4 * moved["mup", 256])


def test_sign_sgd_forgets_the_size_of_the_residual():
    near, far = growth(64, 10, target=2, seeds=2), growth(64, 10, target=200, seeds=2)
    np.testing.assert_allclose(near["feature"], far["feature"])
    assert not np.allclose(at(near, 0, "loss"), at(far, 0, "loss"))


def test_shuffled_labels_are_the_same_labels():
    options = {"samples": 40, "batch": 40, "target": 1.0}
    teacher = Problem(Setting(16, 1, labels="teacher", **options), 0)
    shuffled = Problem(Setting(16, 1, labels="shuffled", **options), 0)
    assert torch.equal(teacher.y.sort().values, shuffled.y.sort().values)
    assert not torch.equal(teacher.y, shuffled.y)
    assert torch.equal(teacher.x, shuffled.x)
    assert torch.equal(teacher.weights["W"], shuffled.weights["W"])


def test_same_numbers_again_and_the_machine_as_it_was():
    torch.manual_seed(0), np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), torch.get_num_threads()
    first = growth(32, 3, samples=4, batch=2, labels="fresh", seeds=2)
    torch.manual_seed(1)
    pd.testing.assert_frame_equal(first, growth(32, 3, samples=4, batch=2, labels="fresh", seeds=2))
    power_fit(first.query("step > 0"), "step", "moved")
    torch.manual_seed(0)
    assert (
        torch.equal(before[0], torch.get_rng_state())
        and (before[1] == np.random.get_state()[1]).all()
    )
    assert torch.get_num_threads() == before[2]


def test_seeds_continue_and_widths_are_independent():
    three = growth(32, 2, seeds=3)
    pd.testing.assert_frame_equal(three[three["seed"] < 2], growth(32, 2, seeds=2))
    assert three.groupby("seed")["c"].first().nunique() == 3
    draws = [Problem(Setting(n, 1, target=1.0), 0).weights["U"][:8] for n in (32, 64)]
    assert not torch.allclose(*draws)


def test_frame_is_tidy():
    run = growth(16, 3, network="attention", seeds=2)
    assert len(run) == 2 * 4 * 4 and not run.duplicated(["seed", "step", "module"]).any()
    assert (at(run, 0, "growth") == 0).all() and (at(run, 0, "moved") == 0).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"optimizer": "adamw"}, "optimizer='adamw'.*signsgd"),
        ({"rule": "ntk"}, "rule='ntk'.*mup"),
        ({"network": "tanh"}, "network='tanh'.*relu"),
        ({"labels": "real"}, "labels='real'.*teacher"),
        ({"train": "none"}, "train='none'.*hidden"),
        ({"width": 0}, "width=0, expected an integer of at least 1"),
        ({"seeds": -1}, "seeds=-1"),
        ({"eta": 0}, "eta=0, expected a positive number"),
        ({"eta": "0.1"}, "eta='0.1'"),
        ({"target": math.nan}, "target=nan"),
        ({"batch": 3, "samples": 2}, "batch=3.*samples=2"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        growth(**{"width": 8, "steps": 1, "seeds": 1, **options})


@pytest.mark.parametrize("options", [{"width": 8.0}, {"steps": "3"}, {"samples": True}])
def test_numbers_that_are_not_integers(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}=.*expected an integer"):
        growth(**{"width": 8, "steps": 1, "seeds": 1, **options})


# Fits and intervals


def power_frame(exponent, seeds, noise, rng):
    x = np.array([1, 2, 4, 8])
    size = np.exp(noise * rng.standard_normal((seeds, len(x))))
    values = 3.0 * x**exponent * size
    return pd.DataFrame(
        {"seed": np.repeat(range(seeds), 4), "x": np.tile(x, seeds), "y": values.ravel()}
    )


def test_power_fit_is_polyfit_and_does_not_depend_on_units():
    frame = power_frame(-0.5, 12, 0.3, np.random.default_rng(0))
    mean = frame.groupby("x")["y"].mean()
    fit = power_fit(frame, "x", "y")
    assert fit.exponent == pytest.approx(np.polyfit(np.log(mean.index), np.log(mean), 1)[0])
    assert fit.low < fit.exponent < fit.high
    scaled = power_fit(frame.assign(x=7 * frame["x"], y=0.1 * frame["y"]), "x", "y")
    np.testing.assert_allclose(scaled, fit)


def test_intervals_cover_as_often_as_they_say():
    rng = np.random.default_rng(1)
    fits = [power_fit(power_frame(2, 40, 0.3, rng), "x", "y", level=0.9) for _ in range(150)]
    assert 0.82 < np.mean([fit.low < 2 < fit.high for fit in fits]) < 0.96
    means = [
        mean_interval(rng.normal(5, 2, 4)) for _ in range(2000)
    ]  # a percentile bootstrap covers 0.82 of them
    assert 0.935 < np.mean([m.low < 5 < m.high for m in means]) < 0.965


def test_bad_fits():
    frame = power_frame(2, 3, 0.1, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"lacks the columns \['t'\]"):
        power_fit(frame, "t", "y")
    with pytest.raises(ValueError, match="several rows for one seed"):
        power_fit(pd.concat([frame, frame]), "x", "y")
    with pytest.raises(ValueError, match="two or more, all positive"):
        power_fit(frame.query("x == 1"), "x", "y")
    with pytest.raises(ValueError, match="two or more, all positive"):
        power_fit(frame.assign(x=frame["x"] - 1), "x", "y")
    with pytest.raises(ValueError, match="missing or not finite"):
        power_fit(frame.iloc[1:], "x", "y")
    with pytest.raises(ValueError, match="not surely positive"):
        power_fit(frame.assign(y=frame["y"] - 5), "x", "y")
    with pytest.raises(ValueError, match="level=95"):
        power_fit(frame, "x", "y", level=95)


@pytest.mark.parametrize("values", [[1.0], [], [1.0, math.nan], [[1.0, 2.0]]])
def test_bad_values(values):
    with pytest.raises(ValueError, match="expected two or more finite numbers"):
        mean_interval(values)
