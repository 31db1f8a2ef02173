"""Why feature norms grow: small networks of any width, trained step by step. Needs only torch, pandas and scipy.

Theorem 1 of Hayou, Ghosh, Yu (arXiv 2506.20629) says that in a linear network, trained on
one datapoint by SignSGD with the muP step, `||W z||^2 / n` grows quadratically in the number of steps.
`growth` measures it, with one keyword for each assumption of the theorem; `power_fit` and
`mean_interval` say how sure the measurement is.

Notation: width n; datum x (INPUTS,) or, for attention, (TOKENS, INPUTS), with `||x||^2 = INPUTS`;
z = U x (n,) with entries N(0, 1); W (n, n) with entries N(0, 1/n); readout v (n,) with entries
N(0, 1/n^2); output f = v^T phi(W z); loss (f - y)^2 / 2, mean over the batch. S is the sign.
"""

import math
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.stats import t as student

NETWORKS = {"linear": lambda h: h, "relu": torch.relu, "gelu": torch.nn.functional.gelu, "attention": None}
OPTIMIZERS = ("signsgd", "adam", "sgd")
RULES = ("mup", "sqrt", "standard")
LABELS = ("teacher", "shuffled", "fresh")
TRAINED = ("hidden", "all")
INPUTS = 8  # numbers per datum (per token, for attention)
TOKENS = 4  # tokens per datum, for attention
BASE_WIDTH = 64  # where the three step rules agree
HIDDEN = {"linear": "W", "relu": "W", "gelu": "W", "attention": "qkvo"}  # names of the (n, n) maps
RESAMPLES = 2000


def growth(
    width=512,
    steps=40,
    *,
    eta=0.05,
    optimizer="signsgd",
    rule="mup",
    network="linear",
    train="hidden",
    samples=1,
    batch=None,
    labels="teacher",
    target=2.0,
    seeds=16,
    dense=False,
):
    """Train a small network and record its feature norms after every step.

    The defaults are the setting of Theorem 1: while the residual `f - y` keeps its sign,

        growth = (eta c t)^2 + 2 eta c t cross,    c = ||z||_1 / n,    cross = S(y) <W_0 z, S(v)> / n

    with `cross` a random number of variance `||z||^2 / n^2`, hence of size n^-1/2.

    Parameters
    ----------
    width : int
        n.
    steps : int
        Training steps; row 0 is the network before training.
    eta : float
        Step size: a step moves each feature by about `eta`.
    optimizer : {"signsgd", "adam", "sgd"}
        Adam with betas (0.9, 0.999).
    rule : {"mup", "sqrt", "standard"}
        The step falls with width as 1 / n (muP: `eta / fan_in`; for SGD, whose gradient brings its own
        1 / n, `eta fan_out / fan_in`), as 1 / sqrt(n), or not at all; equal at n = 64.
    network : {"linear", "relu", "gelu", "attention"}
        phi; or one head of attention with maps q, k, v, o (n, n), logits `q . k / n`, and the mean of
        its outputs over the tokens read out by v.
    train : {"hidden", "all"}
        The (n, n) maps only, or U and v as well.
    samples, batch : int
        Datapoints, and how many of them a step draws (all by default).
    labels : {"teacher", "shuffled", "fresh"}
        `y = target * S(<w, x>)` with a random w; the same labels dealt out at random, once; or random
        signs, drawn anew at every step.
    target : float
        |y|. A linear network with one datapoint reaches it after about `target / (0.64 eta)` steps.
    seeds : int
        How many networks, seeded 0, 1, ...; the global random state is left alone.
    dense : bool
        In a linear network the gradient of W is `v (sum_i r_i z_i)^T`, so a SignSGD step has rank one and
        W_t z follows from two products with W_0. By default that recursion runs where it is exact;
        True forces the plain loop with autograd.

    Returns
    -------
    pandas.DataFrame
        One row per seed, step and map, all means over the datapoints, dimensionless. `module` ("W", or
        "q", "k", "v", "o"); `feature` `||W z||^2 / n`; `growth` that minus its value at step 0; `moved`
        `||W_t z_t - W_0 z_0|| / sqrt(n)` (root of the mean square); `baseline` `||W||_F / sqrt(n)`, what NFN divides
        by; `nfn`; `loss`; and the theorem's constants of this seed `c` and `cross` (NaN for attention).

    Raises
    ------
    ValueError, TypeError
        An unknown choice, or a number out of range.

    Examples
    --------
    >>> run = growth(width=256, steps=10, seeds=1)
    >>> last = run.iloc[-1]
    >>> bool(np.isclose(last["growth"], (0.5 * last["c"]) ** 2 + 2 * 0.5 * last["c"] * last["cross"], atol=1e-5))
    True
    >>> growth(width=32, steps=1, network="attention", seeds=1)["module"].unique().tolist()
    ['q', 'k', 'v', 'o']
    """
    choices = {"optimizer": OPTIMIZERS, "rule": RULES, "network": tuple(NETWORKS), "labels": LABELS, "train": TRAINED}
    given = {"optimizer": optimizer, "rule": rule, "network": network, "labels": labels, "train": train}
    for name, known in choices.items():
        if given[name] not in known:
            raise ValueError(f"{name}={given[name]!r} is unknown, choose one of {known}")
    batch = samples if batch is None else batch
    for name, value in {"width": width, "steps": steps, "samples": samples, "batch": batch, "seeds": seeds}.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(f"{name}={value!r}, expected an integer of at least 1")
        if value < 1:
            raise ValueError(f"{name}={value!r}, expected an integer of at least 1")
    for name, value in {"eta": eta, "target": target}.items():
        if not (np.isscalar(value) and np.isreal(value) and 0 < value < math.inf):
            raise ValueError(f"{name}={value!r}, expected a positive number")
    if batch > samples:
        raise ValueError(f"batch={batch}, but there are samples={samples}: draw at most that many")
    rank_one = network == "linear" and optimizer == "signsgd" and train == "hidden" and not dense
    runs = []
    with _one_thread():
        for seed in range(seeds):
            task = _Task(width, steps, network, samples, batch, labels, target, seed)
            rates = _rates(task.weights, eta, optimizer, rule)
            rows = _rank_one(task, rates["W"]) if rank_one else _dense(task, rates, optimizer, network, train)
            runs.append(pd.DataFrame(rows).assign(seed=seed, **_constants(task, network)))
    frame = pd.concat(runs, ignore_index=True)
    frame["growth"] = frame["feature"] - frame.groupby(["seed", "module"])["feature"].transform("first")
    return frame[["seed", "step", "module", "feature", "growth", "moved", "baseline", "nfn", "loss", "c", "cross"]]


class Fit(NamedTuple):
    """An exponent p of y = a x^p with its interval."""

    exponent: float
    low: float
    high: float


class Interval(NamedTuple):
    """A mean over seeds with its interval."""

    mean: float
    low: float
    high: float


def power_fit(frame, x, y, *, level=0.95, seed=0):
    """Exponent p of `y = a x^p`: least squares through log(mean of y over seeds) against log(x).

    Parameters
    ----------
    frame : pandas.DataFrame
        One row per seed and value of `x`, with a column `seed`.
    x, y : str
        Columns, positive numbers (`y` in its mean over seeds).
    level : float
        Coverage of the interval, from resampling whole seeds (percentile bootstrap).
    seed : int
        Seeds the resampling.

    Returns
    -------
    Fit
        `exponent`, `low`, `high`.

    Examples
    --------
    >>> frame = pd.DataFrame({"seed": [0, 0, 1, 1], "t": [1, 2, 1, 2], "y": [3.0, 12.0, 5.0, 20.0]})
    >>> round(power_fit(frame, "t", "y").exponent, 6)
    2.0
    """
    _check_level(level)
    missing = {"seed", x, y} - set(frame.columns)
    if missing:
        raise ValueError(f"frame lacks the columns {sorted(missing)}, it has {list(frame.columns)}")
    if frame.duplicated(["seed", x]).any():
        raise ValueError(f"frame has several rows for one seed and {x}: select one module or width first")
    table = frame.pivot(index="seed", columns=x, values=y)
    values, positions = table.to_numpy(float), table.columns.to_numpy(float)
    if len(positions) < 2 or positions.min() <= 0:
        raise ValueError(f"x={x!r} takes the values {positions.tolist()}: a power law needs two or more, all positive")
    if not np.isfinite(values).all():
        raise ValueError(f"y={y!r} is missing or not finite for some seed and {x}: each seed needs every {x}")
    centred = np.log(positions) - np.log(positions).mean()
    means = np.vstack([values.mean(axis=0), _resample(values, seed)])
    if means[0].min() <= 0 or (means <= 0).any(axis=1).mean() > 0.01:
        raise ValueError(f"y={y!r} is not surely positive at the smallest {x}: take more seeds or drop those rows")
    means = means[(means > 0).all(axis=1)]
    exponent, *others = np.log(means) @ centred / (centred @ centred)
    low, high = np.quantile(others, [(1 - level) / 2, (1 + level) / 2])
    return Fit(float(exponent), float(low), float(high))


def mean_interval(values, *, level=0.95):
    """Mean of one number per seed (or text), with an interval of coverage `level` by Student's t.

    Parameters
    ----------
    values : sequence of float
        One number per seed, two or more; for a difference, the paired differences.

    Returns
    -------
    Interval
        `mean`, `low`, `high`.

    Examples
    --------
    >>> mean_interval([2.0, 2.0, 2.0])
    Interval(mean=2.0, low=2.0, high=2.0)
    """
    _check_level(level)
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"values has shape {values.shape}, expected two or more finite numbers, one per seed")
    mean, half = values.mean(), student.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return Interval(float(mean), float(mean - half), float(mean + half))


def _check_level(level):
    if not 0 < level < 1:
        raise ValueError(f"level={level!r}, expected a number between 0 and 1, such as 0.95")


def _resample(values, seed):
    """Means of rows of `values` (seeds, k) drawn with replacement: (RESAMPLES, k)."""
    n = len(values)
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES) @ values / n


@contextmanager
def _one_thread():
    """Same digits on any number of cores, and as fast: these matrices are small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Task:
    """Weights, data and the batches of every step, all from one generator."""

    def __init__(self, width, steps, network, samples, batch, labels, target, seed):
        generator = torch.Generator().manual_seed(seed + 1_000_003 * width)
        draw = lambda *shape: torch.randn(*shape, generator=generator)
        tokens = (TOKENS,) if network == "attention" else ()
        x = draw(samples, *tokens, INPUTS).double()
        self.x = x / x.norm(dim=-1, keepdim=True) * math.sqrt(INPUTS)
        meaning = self.x.mean(dim=1) if tokens else self.x
        y = target * (meaning @ draw(INPUTS).double()).sign()
        self.weights = {"U": draw(width, INPUTS).double() / math.sqrt(INPUTS)}
        self.weights |= {name: draw(width, width) / math.sqrt(width) for name in HIDDEN[network]}
        self.weights["readout"] = draw(width).double() / width
        self.y = y[torch.randperm(samples, generator=generator)] if labels == "shuffled" else y
        self.batches = []
        for _ in range(steps):
            chosen = torch.randperm(samples, generator=generator)[:batch]
            signs = torch.randint(0, 2, (batch,), generator=generator) * 2 - 1
            self.batches.append((chosen, target * signs.double() if labels == "fresh" else self.y[chosen]))


def _rates(weights, eta, optimizer, rule):
    """Step size of each weight: muP's, times what another rule makes of it at this width."""
    width = len(weights["readout"])
    excess = {"mup": 1.0, "sqrt": math.sqrt(width / BASE_WIDTH), "standard": width / BASE_WIDTH}[rule]
    fans = {name: (w.shape[-1], 1 if w.ndim == 1 else len(w)) for name, w in weights.items()}  # in, out
    return {
        name: eta * excess * (fan_out if optimizer == "sgd" else 1) / fan_in for name, (fan_in, fan_out) in fans.items()
    }


def _constants(task, network):
    """c and cross of Theorem 1, means over the datapoints."""
    if network == "attention":
        return {"c": math.nan, "cross": math.nan}
    z = task.x @ task.weights["U"].T
    h = _times(task.weights["W"], z)
    cross = (task.y.sign() * (h @ task.weights["readout"].sign())).mean() / len(task.weights["readout"])
    return {"c": z.abs().mean().item(), "cross": cross.item()}


def _times(weight, z):
    """Rows of `z` through a (large, float32) weight, as float64."""
    return (z.to(weight.dtype) @ weight.T).double()


def _row(step, name, z, h, start, weight_norm, loss):
    width, baseline = h.shape[-1], weight_norm / math.sqrt(z.shape[-1])
    return {
        "step": step,
        "module": name,
        "feature": (h.square().sum(-1) / width).mean().item(),
        "moved": ((h - start).square().sum(-1) / width).mean().sqrt().item(),
        "baseline": baseline,
        "nfn": (h.norm(dim=-1) / z.norm(dim=-1)).mean().item() / baseline,
        "loss": loss,
    }


def _rank_one(task, rate):
    """Linear network, SignSGD on W: W_t = W_0 - rate S(v) pushed^T, so W_t z needs W_0 z only."""
    W, v = task.weights["W"], task.weights["readout"]
    sign, z = v.sign(), task.x @ task.weights["U"].T
    start, back = _times(W, z), _times(W.T, sign)  # W_0 z, W_0^T S(v)
    square, pushed, rows = W.norm(dtype=torch.float64).item() ** 2, torch.zeros_like(v), []
    for step in range(len(task.batches) + 1):
        h = start - rate * (z @ pushed)[:, None] * sign
        f = h @ v
        norm = math.sqrt(square - 2 * rate * (back @ pushed).item() + rate**2 * len(v) * (pushed @ pushed).item())
        rows.append(_row(step, "W", z, h, start, norm, _loss(f, task.y).item()))
        if step < len(task.batches):
            chosen, y = task.batches[step]
            pushed = pushed + ((f[chosen] - y) @ z[chosen]).sign()
    return rows


def _dense(task, rates, optimizer, network, train):
    """The plain loop: forward, backward, step."""
    weights = {
        name: w.double().requires_grad_(train == "all" or name in HIDDEN[network]) for name, w in task.weights.items()
    }
    groups = [{"params": [w], "lr": rates[name]} for name, w in weights.items() if w.requires_grad]
    optim = torch.optim.Adam(groups, eps=1e-16) if optimizer == "adam" else torch.optim.SGD(groups)
    start, rows = {}, []
    for step in range(len(task.batches) + 1):
        with torch.no_grad():
            f, maps = _forward(network, weights, task.x)
            for name, (z, h) in maps.items():
                norm, loss = weights[name].norm().item(), _loss(f, task.y).item()
                rows.append(_row(step, name, z, h, start.setdefault(name, h), norm, loss))
        if step < len(task.batches):
            chosen, y = task.batches[step]
            optim.zero_grad()
            _loss(_forward(network, weights, task.x[chosen])[0], y).backward()
            if optimizer == "signsgd":
                for group in groups:
                    group["params"][0].grad.sign_()
            optim.step()
    return rows


def _forward(network, weights, x):
    """Outputs f (samples,), and the input and output of each trained (n, n) map by name."""
    z = x @ weights["U"].T
    if network != "attention":
        h = z @ weights["W"].T
        return NETWORKS[network](h) @ weights["readout"], {"W": (z, h)}
    q, k, v = (z @ weights[name].T for name in "qkv")
    mixed = (q @ k.transpose(1, 2) / z.shape[-1]).softmax(dim=-1) @ v
    out = mixed @ weights["o"].T
    return out.mean(dim=1) @ weights["readout"], {"q": (z, q), "k": (z, k), "v": (z, v), "o": (mixed, out)}


def _loss(f, y):
    return (f - y).square().mean() / 2
