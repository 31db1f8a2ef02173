"""How far the loss falls with the first step of LoRA on a placement, at its best rate."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd
import torch
from peft import get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from plop_nb.checks import positive_integer, positive_number, random_seed
from plop_nb.experiments.generation import padding_id
from plop_nb.experiments.gradients import completion_loss, training_rows, weight_gradients
from plop_nb.experiments.isolation import isolated, shared_copy
from plop_nb.experiments.tasks.task import Task
from plop_nb.experiments.trainers import adapters
from plop_nb.placement import Placement

ADAPTER = "default"  # the name that PEFT gives it
START = 1e-3
MOST_RATES = 16  # of a search


def first_step(
    model: nn.Module,
    task: Task,
    tokenizer: Any,
    placement: Placement,
    *,
    r: int,
    lora_alpha: int = 32,
    rates: Iterable[float] | None = None,
    examples: int = 64,
    held_out: int = 64,
    seed: int = 0,
    max_length: int = 512,
) -> pd.DataFrame:
    """The loss on held-out training examples after one step of LoRA, for several learning rates.

    The step is the first one that Adam takes from PEFT's start, where B = 0 (but for its epsilon):
    B = -rate sign(dL/dB), while A stays as it was drawn. See `completion_gradients` for what it
    gains to first order; the losses here hold all orders, and what the types of a set do to each
    other. For many placements make one `FirstSteps`.

    Parameters
    ----------
    model : torch.nn.Module
        A causal language model of transformers, without adapters. It stays as it is.
    task : Task
        With completions.
    tokenizer : transformers tokenizer
        With an `eos_token`.
    placement : Placement
        Where the adapters go.
    r, lora_alpha : int
        Rank and scale of the adapters.
    rates : iterable of float, optional
        Learning rates. By default a factor of 2 apart, doubled or halved from 1e-3 on until the
        lowest loss has a higher one on either side.
    examples, held_out : int
        The gradient is that of the first `examples` of the training split, the loss that of the
        `held_out` next ones.
    seed : int
        Of A, which is then the one that `finetune` starts from.
    max_length : int
        As in `finetune`.

    Returns
    -------
    pandas.DataFrame
        `rate`, ascending from 0 (untrained), and `loss` (nats per completion token, end of text
        included; infinite where the step breaks the model).

    Raises
    ------
    TypeError, ValueError
        Bad input: names the argument, its value and what would do.
    """
    sizes = {"examples": examples, "held_out": held_out, "max_length": max_length}
    steps = FirstSteps(model, task, tokenizer, **sizes)
    return steps.of(placement, r=r, lora_alpha=lora_alpha, rates=rates, seed=seed)


class FirstSteps:
    """What the first steps on all placements share: a gradient, and the untrained loss.

    As B = 0, the gradient of B is (alpha / r) G A^T with the gradient G of the untrained weight,
    so one backward pass does for all placements. `model` must stay as it is in the meantime.
    Arguments and errors are those of `first_step`.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        tokenizer: Any,
        *,
        examples: int = 64,
        held_out: int = 64,
        max_length: int = 512,
    ) -> None:
        examples = positive_integer("examples", examples)
        held_out = positive_integer("held_out", held_out)
        length = {"max_length": max_length}
        self._rows = training_rows(model, task, tokenizer, examples, held_out, **length)
        self._gradients = weight_gradients(model, task, tokenizer, examples=examples, **length)
        self._model, self._pad = model, padding_id(tokenizer)
        with isolated(0):
            self.untrained = completion_loss(shared_copy(model).eval(), self._rows, self._pad)

    def of(
        self,
        placement: Placement,
        *,
        r: int,
        lora_alpha: int = 32,
        rates: Iterable[float] | None = None,
        start: float = START,
        seed: int = 0,
    ) -> pd.DataFrame:
        """What `first_step` returns; the search for rates begins at `start`."""
        start = positive_number("start", start)
        seed = random_seed("seed", seed)
        chosen = None if rates is None else _checked(rates)
        config = adapters(self._model, placement, r=r, lora_alpha=lora_alpha)
        with isolated(seed), torch.no_grad():
            base = shared_copy(self._model)
            lora = get_peft_model(base, config).eval()
            signs = self._signs(base)

            def loss_at(rate: float) -> float:
                for weight, sign in signs:
                    weight.copy_(-rate * sign)
                loss = completion_loss(lora, self._rows, self._pad)
                return loss if np.isfinite(loss) else np.inf

            if chosen is None:
                losses = _around_the_lowest(loss_at, start)
            else:
                losses = {rate: loss_at(rate) for rate in chosen}
        losses[0.0] = self.untrained
        return pd.DataFrame(sorted(losses.items()), columns=["rate", "loss"])

    def _signs(self, base: nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(B, the sign of its gradient) of every adapter."""
        found = []
        for name, layer in base.named_modules():
            if isinstance(layer, LoraLayer):
                drawn = layer.lora_A[ADAPTER].weight
                gradient = self._gradients[name].to(drawn) @ drawn.T
                found.append((layer.lora_B[ADAPTER].weight, gradient.sign()))
        return found


def _checked(rates: Iterable[float]) -> list[float]:
    """The rates as positive numbers, ValueError otherwise."""
    if not isinstance(rates, Iterable) or isinstance(rates, str):
        raise TypeError(f"rates={rates!r:.60}, expected a list of numbers, such as [1e-3, 2e-3]")
    checked = [float(positive_number("rate", rate)) for rate in rates]
    if not checked:
        raise ValueError("rates is empty, expected numbers, such as [1e-3, 2e-3]; None finds them")
    return checked


def _around_the_lowest(loss_at: Callable[[float], float], start: float) -> dict[float, float]:
    """{rate: loss}, with the lowest and its two neighbours, a factor of 2 apart, among them."""
    losses = {start: loss_at(start)}
    while len(losses) < MOST_RATES:
        lowest = min(losses, key=losses.__getitem__)
        missing = [rate for rate in (2 * lowest, lowest / 2) if rate not in losses]
        if not missing:
            break
        losses[missing[0]] = loss_at(missing[0])
    return losses


def first_step_gain(steps: pd.DataFrame) -> float:
    """The untrained loss minus the lowest one after a step: what a placement gains at once.

    The lowest loss is that of the parabola, in the logarithm of the rate, through the lowest point
    and its neighbours; at an edge of the rates the lowest point itself.

    Parameters
    ----------
    steps : pandas.DataFrame
        From `first_step`.

    Returns
    -------
    float
        In nats per completion token; negative where every step has raised the loss.

    Raises
    ------
    ValueError
        `steps` has no row with the rate 0, or no other one.
    """
    return _untrained(steps) - _lowest_point(steps)[1]


def first_step_rate(steps: pd.DataFrame) -> float:
    """The learning rate at which `first_step_gain` finds the lowest loss."""
    return _lowest_point(steps)[0]


def _untrained(steps):
    at_zero = steps.loc[steps["rate"] == 0, "loss"]
    if len(at_zero) != 1 or len(steps) == 1:
        raise ValueError(
            f"steps has {len(at_zero)} rows with the rate 0 of {len(steps)}, expected one and "
            "others: see first_step"
        )
    return float(at_zero.iloc[0])


def _lowest_point(steps):
    """(rate, loss) of the lowest point of the parabola."""
    tried = steps[steps["rate"] > 0].sort_values("rate")
    rates, losses = tried["rate"].to_numpy(), tried["loss"].to_numpy()
    at = int(losses.argmin())
    near = slice(at - 1, at + 2)
    is_inside = 0 < at < len(losses) - 1
    if not is_inside or not np.isfinite(losses[near]).all() or np.ptp(losses[near]) == 0:
        return float(rates[at]), float(losses[at])
    octaves = np.log2(rates[near] / rates[at])
    bend, slope, height = np.polyfit(octaves, losses[near], 2)
    lowest = -slope / (2 * bend)
    return float(rates[at] * 2**lowest), float(height - slope**2 / (4 * bend))
