"""How the loss of an untrained model falls with the weights of each of its linear maps."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from plop_nb.checks import positive_integer
from plop_nb.experiments.evaluation import (
    TOKENS,
    batches,
    check_end,
    check_task,
    check_vocabulary,
    completion_logits,
    encoded,
    has_completions,
    token_limit,
)
from plop_nb.experiments.generation import padding_id
from plop_nb.experiments.isolation import check_trainable, isolated, shared_copy
from plop_nb.experiments.tasks.task import Task
from plop_nb.maps import SCORED, LinearMap, linear_maps

Row = dict[str, list[int]]  # of `evaluation.encoded`


def completion_gradients(
    model: nn.Module, task: Task, tokenizer: Any, *, examples: int = 32, max_length: int = 512
) -> pd.DataFrame:
    """Sizes of the gradient G = dL/dW of every linear map that adapters may go on.

    L is the mean cross-entropy per completion token, end of text included, over the first
    `examples` training examples together, as `evaluate` counts it.

    What they say of LoRA: it adds (alpha / r) B A to W, so dL/dB = (alpha / r) G A^T. PEFT starts
    with B = 0 and entries of A uniform in +-1 / sqrt(in_features), whose variance is
    1 / (3 in_features). The first step of Adam moves every entry of B by the learning rate, against
    the sign of its gradient, and leaves A, which has none while B = 0. To first order the loss
    falls by lr (alpha / r) ||G A^T||_1, the sum of the magnitudes of all entries. An entry
    <G_i, a_j> is a sum of many independent terms, nearly Gaussian with the standard deviation
    ||G_i|| / sqrt(3 in_features), and the mean magnitude of a Gaussian is sqrt(2 / pi) of that. The
    r entries of a row cancel 1 / r, and whatever the rank, the expected fall is

        lr alpha sqrt(2 / (3 pi in_features)) sum_i ||G_i||_2

    Where few inputs dominate the rows it is a little more: for a single one, by sqrt(3 pi / 8), or
    8.5 %, as the mean magnitude of a uniform number is half of its bound.

    Parameters
    ----------
    model : torch.nn.Module
        A causal language model of transformers, without adapters. It stays as it is.
    task : Task
        With completions.
    tokenizer : transformers tokenizer
        With an `eos_token`.
    examples : int
        How many of the training split are read.
    max_length : int
        As in `finetune`.

    Returns
    -------
    pandas.DataFrame
        One row per map: `module`, `type`, `layer`, `in_features`, `out_features`; in nats per
        completion token and unit of W: `l1` (sum of |G|), `frobenius` (of G), `row_norms` (sum over
        the rows i of ||G_i||_2); `first_order_gain` (the expected fall above, per unit of
        lr alpha).

    Raises
    ------
    TypeError, ValueError
        Bad input, stacked experts or packed weights among it: names the argument, its value and
        what would do.
    """
    gradients = weight_gradients(model, task, tokenizer, examples=examples, max_length=max_length)
    rows = []
    for linear_map in adaptable_maps(model):
        outputs, inputs = linear_map.shape
        gradient = gradients[linear_map.name]
        rows.append(
            {
                "module": linear_map.name,
                "type": linear_map.type,
                "layer": linear_map.layer,
                "in_features": inputs,
                "out_features": outputs,
                "l1": gradient.abs().sum().item(),
                "frobenius": gradient.norm().item(),
                "row_norms": gradient.norm(dim=1).sum().item(),
            }
        )
    table = pd.DataFrame(rows).astype({"layer": "Int64"})
    per_row = np.sqrt(2 / (3 * np.pi * table["in_features"]))
    return table.assign(first_order_gain=per_row * table["row_norms"])


def weight_gradients(
    model: nn.Module, task: Task, tokenizer: Any, *, examples: int = 32, max_length: int = 512
) -> dict[str, torch.Tensor]:
    """The gradients G themselves, as `completion_gradients` takes them.

    Returns
    -------
    dict
        {module: tensor (out_features, in_features)}, float32 and on the device of the weight: as
        much memory as these weights take in float32.

    Raises
    ------
    TypeError, ValueError
        As `completion_gradients`.
    """
    rows = training_rows(model, task, tokenizer, 0, examples, max_length=max_length)
    with isolated(0):
        copy = shared_copy(model).eval()
        maps = adaptable_maps(copy)
        weights = [linear_map.stored.requires_grad_() for linear_map in maps]
        totals = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
        counted = 0
        for loss, tokens in summed_losses(copy, rows, padding_id(tokenizer)):
            counted += tokens
            parts = torch.autograd.grad(loss, weights, materialize_grads=True)
            for total, part in zip(totals, parts, strict=True):
                total += part
    found = {}
    for linear_map, total in zip(maps, totals, strict=True):
        mean = total.div_(counted)
        found[linear_map.name] = mean.T if isinstance(linear_map.module, Conv1D) else mean
    return found


def adaptable_maps(model: nn.Module) -> list[LinearMap]:
    """The linear maps that adapters may go on, with weights that have a gradient (ValueError)."""
    maps = [linear_map for linear_map in linear_maps(model) if linear_map.status == SCORED]
    for linear_map in maps:
        if linear_map.expert is not None:
            raise ValueError(
                f"model has stacked experts, such as {linear_map.target!r}, whose "
                f"gradients are not taken apart here: pass a model without"
            )
        if linear_map.is_packed:
            raise ValueError(
                f"model has packed weights, such as {linear_map.name!r}, which have no gradient: "
                f"load it in float32 or bfloat16"
            )
    return maps


def training_rows(
    model: nn.Module, task: Task, tokenizer: Any, first: int, number: int, *, max_length: int = 512
) -> list[Row]:
    """Token ids and labels of `number` training examples from the `first` on.

    Raises
    ------
    TypeError, ValueError
        The model cannot be trained, or the task has no completions or too few examples.
    """
    check_task(task, "train")
    check_trainable(model, generates=False)
    check_end(tokenizer)
    number = positive_integer("number of examples", number)
    if not has_completions(task, "train"):
        raise ValueError(
            f"task {task.name!r} has training examples without 'completion', which a loss needs: "
            f"add it"
        )
    if len(task.train) < first + number:
        raise ValueError(
            f"task {task.name!r} has {len(task.train)} training examples, but {first + number} are "
            f"needed: ask for fewer"
        )
    rows = encoded(task, "train", tokenizer, token_limit("max_length", max_length))
    rows = rows[first : first + number]
    check_vocabulary(model, rows)
    return rows


def completion_loss(model: nn.Module, rows: Sequence[Row], pad: int) -> float:
    """Mean cross-entropy (nats) over the completion tokens of all rows, without gradient."""
    total, counted = 0.0, 0
    with torch.no_grad():
        for loss, tokens in summed_losses(model, rows, pad):
            total += loss.item()
            counted += tokens
    return total / counted


def summed_losses(
    model: nn.Module, rows: Sequence[Row], pad: int
) -> Iterator[tuple[torch.Tensor, int]]:
    """(sum of the cross-entropies in float32, number) of completion tokens, batch by batch."""
    for batch in batches(rows, _length, TOKENS):
        logits, wanted, _ = completion_logits(model, batch, pad)
        yield nn.functional.cross_entropy(logits, wanted, reduction="sum"), len(wanted)


def _length(row: Row) -> int:
    return len(row["input_ids"])
