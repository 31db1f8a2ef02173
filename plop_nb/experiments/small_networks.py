"""Why feature norms grow: small networks of any width, trained step by step.

Theorem 1 of Hayou, Ghosh, Yu (arXiv 2506.20629) says that in a linear network, trained on
one datapoint by SignSGD with the muP step, `||W z||^2 / n` grows quadratically in the number of
steps. `growth` measures it, with one keyword for each assumption of the theorem; `power_fit` and
`mean_interval` say how sure the measurement is. Needs only torch, pandas and scipy.

Notation: width n; datum x (INPUTS,) or, for attention, (TOKENS, INPUTS), with `||x||^2 = INPUTS`;
z = U x (n,) with entries N(0, 1); W (n, n) with entries N(0, 1/n); readout v (n,) with entries
N(0, 1/n^2); output f = v^T phi(W z); loss (f - y)^2 / 2, mean over the batch. S is the sign.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from plop_nb.checks import positive_integer
from plop_nb.experiments.power_law import Fit, power_fit
from plop_nb.stats import Interval, mean_interval

__all__ = ["Fit", "Interval", "growth", "mean_interval", "power_fit"]

ACTIVATIONS = {"linear": torch.nn.Identity(), "relu": torch.relu, "gelu": torch.nn.functional.gelu}
NETWORKS = (*ACTIVATIONS, "attention")
OPTIMIZERS = ("signsgd", "adam", "sgd")
RULES = ("mup", "sqrt", "standard")
LABELS = ("teacher", "shuffled", "fresh")
TRAINED = ("hidden", "all")
INPUTS = 8  # numbers per datum (per token, for attention)
TOKENS = 4  # tokens per datum, for attention
BASE_WIDTH = 64  # where the three step rules agree
# names of the (n, n) maps
HIDDEN = {"linear": "W", "relu": "W", "gelu": "W", "attention": "qkvo"}
COLUMNS = [
    "seed", "step", "module", "feature", "growth", "moved", "baseline", "nfn", "loss", "c", "cross",
]  # fmt: skip


def growth(
    width: int = 512,
    steps: int = 40,
    *,
    eta: float = 0.05,
    optimizer: str = "signsgd",
    rule: str = "mup",
    network: str = "linear",
    train: str = "hidden",
    samples: int = 1,
    batch: int | None = None,
    labels: str = "teacher",
    target: float = 2.0,
    seeds: int = 16,
    dense: bool = False,
) -> pd.DataFrame:
    """Train a small network and record its feature norms after every step.

    The defaults are the setting of Theorem 1: while the residual `f - y` keeps its sign,

        growth = (eta c t)^2 + 2 eta c t cross,   c = ||z||_1 / n,   cross = S(y) <W_0 z, S(v)> / n

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
        The step falls with width as 1 / n (muP: `eta / fan_in`; for SGD, whose gradient brings its
        own 1 / n, `eta fan_out / fan_in`), as 1 / sqrt(n), or not at all; equal at n = 64.
    network : {"linear", "relu", "gelu", "attention"}
        phi; or one head of attention with maps q, k, v, o (n, n), logits `q . k / n`, and the mean
        of its outputs over the tokens read out by v.
    train : {"hidden", "all"}
        The (n, n) maps only, or U and v as well.
    samples, batch : int
        Datapoints, and how many of them a step draws (all by default).
    labels : {"teacher", "shuffled", "fresh"}
        `y = target * S(<w, x>)` with a random w; the same labels dealt out at random, once; or
        random signs, drawn anew at every step.
    target : float
        |y|. A linear network with one datapoint reaches it after about `target / (0.64 eta)`
        steps.
    seeds : int
        How many networks, seeded 0, 1, ...; the global random state is left alone.
    dense : bool
        In a linear network the gradient of W is `v (sum_i r_i z_i)^T`, so a SignSGD step has rank
        one and W_t z follows from two products with W_0. By default that recursion runs where it is
        exact; True forces the plain loop with autograd.

    Returns
    -------
    pandas.DataFrame
        One row per seed, step and map, all means over the datapoints, dimensionless. `module`
        ("W", or "q", "k", "v", "o"); `feature` `||W z||^2 / n`; `growth` that minus its value at
        step 0; `moved` `||W_t z_t - W_0 z_0|| / sqrt(n)` (root of the mean square); `baseline`
        `||W||_F / sqrt(n)`, what NFN divides by; `nfn`; `loss`; and the theorem's constants of this
        seed `c` and `cross` (NaN for attention).

    Raises
    ------
    ValueError
        An unknown choice, or a number out of range.

    Examples
    --------
    >>> run = growth(width=256, steps=10, seeds=1)
    >>> last = run.iloc[-1]
    >>> moved = 10 * 0.05 * last["c"]
    >>> bool(abs(last["growth"] - (moved**2 + 2 * moved * last["cross"])) < 1e-5)
    True
    >>> growth(width=32, steps=1, network="attention", seeds=1)["module"].unique().tolist()
    ['q', 'k', 'v', 'o']
    """
    batch = samples if batch is None else batch
    setting = Setting(
        width, steps, eta, optimizer, rule, network, train, samples, batch, labels, target
    )
    setting.check()
    seeds = positive_integer("seeds", seeds)
    run = _dense if dense or not setting.is_rank_one() else _rank_one
    runs = []
    with _one_thread():
        for seed in range(seeds):
            problem = Problem(setting, seed)
            rows = pd.DataFrame(run(setting, problem))
            runs.append(rows.assign(seed=seed, **_constants(setting, problem)))
    frame = pd.concat(runs, ignore_index=True)
    start = frame.groupby(["seed", "module"])["feature"].transform("first")
    return frame.assign(growth=frame["feature"] - start)[COLUMNS]


@dataclass(frozen=True)
class Setting:
    """The arguments of `growth` that all its networks share."""

    width: int
    steps: int
    eta: float = 0.05
    optimizer: str = "signsgd"
    rule: str = "mup"
    network: str = "linear"
    train: str = "hidden"
    samples: int = 1
    batch: int = 1
    labels: str = "teacher"
    target: float = 2.0

    def check(self) -> None:
        """Refuse an unknown choice and a number out of range (ValueError)."""
        choices = {
            "optimizer": OPTIMIZERS,
            "rule": RULES,
            "network": NETWORKS,
            "labels": LABELS,
            "train": TRAINED,
        }
        for name, known in choices.items():
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"{name}={value!r} is unknown, choose one of {known}")
        for name in ("width", "steps", "samples", "batch"):
            positive_integer(name, getattr(self, name))
        for name in ("eta", "target"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not 0 < float(value) < math.inf:
                raise ValueError(f"{name}={value!r}, expected a positive number")
        if self.batch > self.samples:
            raise ValueError(
                f"batch={self.batch}, but there are samples={self.samples}: draw at most that many"
            )

    def is_rank_one(self) -> bool:
        """Whether every step changes W by a matrix of rank one that is known beforehand."""
        return (self.network, self.optimizer, self.train) == ("linear", "signsgd", "hidden")


@contextmanager
def _one_thread() -> Iterator[None]:
    """Same digits on any number of cores, and as fast: these matrices are small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Batch:
    """The datapoints of one step: their numbers (batch,) and labels (batch,)."""

    chosen: Tensor
    y: Tensor


class Problem:
    """Weights, data and the batches of every step, all from one generator.

    Attributes
    ----------
    x : (samples, INPUTS) or (samples, TOKENS, INPUTS)
    y : (samples,)
    weights : dict
        {name: weight} of U (n, INPUTS), the hidden maps (n, n), and "readout" (n,).
    batches : list of Batch
        One for each step.
    """

    def __init__(self, setting: Setting, seed: int) -> None:
        width = setting.width
        generator = torch.Generator().manual_seed(seed + 1_000_003 * width)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        tokens = (TOKENS,) if setting.network == "attention" else ()
        x = draw(setting.samples, *tokens, INPUTS).double()
        self.x = x / x.norm(dim=-1, keepdim=True) * math.sqrt(INPUTS)
        meaning = self.x.mean(dim=1) if tokens else self.x
        y = setting.target * (meaning @ draw(INPUTS).double()).sign()
        self.weights = {"U": draw(width, INPUTS).double() / math.sqrt(INPUTS)}
        for name in HIDDEN[setting.network]:
            self.weights[name] = draw(width, width) / math.sqrt(width)
        self.weights["readout"] = draw(width).double() / width
        if setting.labels == "shuffled":
            y = y[torch.randperm(setting.samples, generator=generator)]
        self.y = y
        self.batches = [self._batch(setting, generator) for _ in range(setting.steps)]

    def _batch(self, setting: Setting, generator: torch.Generator) -> Batch:
        chosen = torch.randperm(setting.samples, generator=generator)[: setting.batch]
        signs = torch.randint(0, 2, (setting.batch,), generator=generator) * 2 - 1
        fresh = setting.target * signs.double()
        return Batch(chosen, fresh if setting.labels == "fresh" else self.y[chosen])


def _rates(setting: Setting, weights: dict[str, Tensor]) -> dict[str, float]:
    """Step size of each weight: muP's, times what another rule makes of it at this width."""
    width = setting.width
    factors = {"mup": 1.0, "sqrt": math.sqrt(width / BASE_WIDTH), "standard": width / BASE_WIDTH}
    excess = factors[setting.rule]
    rates = {}
    for name, weight in weights.items():
        fan_in = weight.shape[-1]
        fan_out = 1 if weight.ndim == 1 else len(weight)
        own = fan_out if setting.optimizer == "sgd" else 1
        rates[name] = setting.eta * excess * own / fan_in
    return rates


def _constants(setting: Setting, problem: Problem) -> dict[str, float]:
    """c and cross of Theorem 1, means over the datapoints."""
    if setting.network == "attention":
        return {"c": math.nan, "cross": math.nan}
    readout = problem.weights["readout"]
    z = problem.x @ problem.weights["U"].T
    h = _times(problem.weights["W"], z)
    cross = (problem.y.sign() * (h @ readout.sign())).mean() / len(readout)
    return {"c": z.abs().mean().item(), "cross": cross.item()}


def _times(weight: Tensor, z: Tensor) -> Tensor:
    """Rows of `z` through a (large, float32) weight, as float64."""
    return (z.to(weight.dtype) @ weight.T).double()


@dataclass(frozen=True)
class Map:
    """What goes into a map and comes out: z and h, (samples, n) or (samples, TOKENS, n)."""

    z: Tensor
    h: Tensor


def _row(
    step: int, name: str, seen: Map, start: Tensor, *, weight_norm: float, loss: float
) -> dict[str, Any]:
    z, h = seen.z, seen.h
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


def _rank_one(setting: Setting, problem: Problem) -> list[dict[str, Any]]:
    """Linear network, SignSGD on W: W_t = W_0 - rate S(v) pushed^T, so W_t z needs W_0 z only."""
    W, v = problem.weights["W"], problem.weights["readout"]
    rate = _rates(setting, problem.weights)["W"]
    sign, z = v.sign(), problem.x @ problem.weights["U"].T
    start, back = _times(W, z), _times(W.T, sign)  # W_0 z, W_0^T S(v)
    square = W.norm(dtype=torch.float64).item() ** 2
    pushed = torch.zeros_like(v)
    rows = []
    for step in range(setting.steps + 1):
        h = start - rate * (z @ pushed)[:, None] * sign
        f = h @ v
        across = 2 * rate * (back @ pushed).item()
        norm = math.sqrt(square - across + rate**2 * len(v) * (pushed @ pushed).item())
        loss = _loss(f, problem.y).item()
        rows.append(_row(step, "W", Map(z, h), start, weight_norm=norm, loss=loss))
        if step < setting.steps:
            batch = problem.batches[step]
            pushed = pushed + ((f[batch.chosen] - batch.y) @ z[batch.chosen]).sign()
    return rows


def _dense(setting: Setting, problem: Problem) -> list[dict[str, Any]]:
    """The plain loop: forward, backward, step."""
    rates = _rates(setting, problem.weights)
    weights: dict[str, Tensor] = {}
    groups: list[dict[str, Any]] = []
    for name, weight in problem.weights.items():
        trains = setting.train == "all" or name in HIDDEN[setting.network]
        weights[name] = weight.double().requires_grad_(trains)
        if trains:
            groups.append({"params": [weights[name]], "lr": rates[name]})
    on_adam = setting.optimizer == "adam"
    optimizer = torch.optim.Adam(groups, eps=1e-16) if on_adam else torch.optim.SGD(groups)
    start: dict[str, Tensor] = {}
    rows = []
    for step in range(setting.steps + 1):
        rows += _measured(setting, problem, weights, start, step)
        if step < setting.steps:
            batch = problem.batches[step]
            optimizer.zero_grad()
            outputs, _ = _forward(setting.network, weights, problem.x[batch.chosen])
            _loss(outputs, batch.y).backward()
            if setting.optimizer == "signsgd":
                for group in groups:
                    group["params"][0].grad.sign_()
            optimizer.step()
    return rows


@torch.no_grad()
def _measured(
    setting: Setting,
    problem: Problem,
    weights: dict[str, Tensor],
    start: dict[str, Tensor],
    step: int,
) -> list[dict[str, Any]]:
    """One row a map; `start` keeps the outputs of the first step."""
    outputs, maps = _forward(setting.network, weights, problem.x)
    loss = _loss(outputs, problem.y).item()
    rows = []
    for name, seen in maps.items():
        first = start.setdefault(name, seen.h)
        norm = weights[name].norm().item()
        rows.append(_row(step, name, seen, first, weight_norm=norm, loss=loss))
    return rows


def _forward(network: str, weights: dict[str, Tensor], x: Tensor) -> tuple[Tensor, dict[str, Map]]:
    """Outputs f (samples,), and the input and output of each trained (n, n) map by name."""
    z = x @ weights["U"].T
    if network != "attention":
        h = z @ weights["W"].T
        return ACTIVATIONS[network](h) @ weights["readout"], {"W": Map(z, h)}
    q, k, v = (z @ weights[name].T for name in "qkv")
    mixed = (q @ k.transpose(1, 2) / z.shape[-1]).softmax(dim=-1) @ v
    out = mixed @ weights["o"].T
    maps = {"q": Map(z, q), "k": Map(z, k), "v": Map(z, v), "o": Map(mixed, out)}
    return out.mean(dim=1) @ weights["readout"], maps


def _loss(f: Tensor, y: Tensor) -> Tensor:
    return (f - y).square().mean() / 2
