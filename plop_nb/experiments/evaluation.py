"""How good a model is at a task: its loss on completions, and the share that a checker takes."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from plop_nb.checks import positive_integer, yes_or_no
from plop_nb.experiments.generation import complete, padded, padding_id, prompt_ids
from plop_nb.experiments.isolation import seeded, unchanged
from plop_nb.experiments.tasks.task import Example, Task

TOKENS = 2048  # of a batch whose loss is taken: bounds its logits
UNCOUNTED = -100  # label of a token whose loss does not count
TRIED: WeakKeyDictionary[Task, set[str]] = WeakKeyDictionary()  # splits that a check has read


def evaluate(
    model: nn.Module,
    task: Task,
    tokenizer: Any,
    split: str = "test",
    *,
    accuracy: bool = True,
    max_length: int = 512,
    batch_size: int | None = None,
    per_example: bool = False,
) -> dict[str, Any]:
    """Loss and accuracy of a model, with adapters or without, on a split of a task.

    Parameters
    ----------
    model : torch.nn.Module
        A causal language model, also a `PeftModel` or one with merged adapters. It comes back
        as it was.
    task : Task
    tokenizer : transformers tokenizer
        With an `eos_token`.
    split : {"test", "validation", "train"}
    accuracy : bool
        Generate completions greedily and check them.
    max_length : int
        As in `finetune`.
    batch_size : int, optional
        Prompts to generate for at a time: 64 on a CPU, else 256.
    per_example : bool
        Also say how each example fares, in the order of the split: what a resampling of examples
        needs.

    Returns
    -------
    dict
        `loss`: mean cross-entropy (nats) over all completion tokens of the split together, end of
        text included; None where the examples have no completion. `accuracy`: share of completions
        that `task.check` takes, or None. With `per_example` lists as long as the split: `losses`
        (nats, summed over the example's completion tokens), `tokens` (how many these are), and
        `exact` (whether greedy decoding writes the completion and its end, token by token); None
        where the examples have no completion.

    Raises
    ------
    TypeError, ValueError
        Bad input: names the argument, its value and what would do.
    """
    check_task(task, split)
    check_end(tokenizer)
    accuracy = yes_or_no("accuracy", accuracy)
    per_example = yes_or_no("per_example", per_example)
    max_length = token_limit("max_length", max_length)
    judged = share = None
    if has_completions(task, split):
        rows = encoded(task, split, tokenizer, max_length)
        check_vocabulary(model, rows)
        judged = _judged(model, rows, padding_id(tokenizer))
    if accuracy and task.check is not None:
        options = {"max_length": max_length, "batch_size": batch_size}
        share = share_right(model, task, tokenizer, split, **options)
    loss = None if judged is None else mean_loss(judged)
    found = {"loss": loss, "accuracy": share}
    return found | _columns(judged) if per_example else found


def share_right(
    model: nn.Module,
    task: Task,
    tokenizer: Any,
    split: str = "test",
    *,
    new_tokens: int | None = None,
    max_length: int | None = None,
    batch_size: int | None = None,
) -> float:
    """The share of a split whose greedy completions `task.check` takes.

    Parameters
    ----------
    model, task, tokenizer, split, max_length, batch_size
        As in `evaluate`; without `max_length` a prompt keeps its whole length.
    new_tokens : int, optional
        How many tokens to write at most; `task.new_tokens` by default.

    Returns
    -------
    float
        0 to 1.

    Raises
    ------
    ValueError
        The split is empty, or the task has no check.
    """
    check_task(task, split)
    if task.check is None:
        raise ValueError(
            f"task {task.name!r} has no check: give it one to tell right from wrong "
            "(load_task('code', run_code=True) runs what the model writes)"
        )
    examples = task.split(split)
    if batch_size is None:
        batch_size = 64 if model.device.type == "cpu" else 256
    texts = complete(
        model,
        [example["prompt"] for example in examples],
        tokenizer,
        new_tokens=task.new_tokens if new_tokens is None else new_tokens,
        greedy=True,
        max_length=max_length,
        batch_size=batch_size,
    )
    pairs = zip(texts, examples, strict=True)
    return float(np.mean([_verdict(task, text, example) for text, example in pairs]))


def _verdict(task: Task, text: str, example: Example) -> bool:
    """What the check of a task says of a completion; an error of its own tells of which."""
    assert task.check is not None
    try:
        found = task.check(text, example)
    except Exception as error:
        error.add_note(f"check of task {task.name!r} fails on {text!r:.60} for {example!r:.200}")
        raise
    if isinstance(found, (Real, np.bool_)) and found in (0, 1):
        return bool(found)
    raise TypeError(
        f"check of task {task.name!r} gives {found!r:.60} for {text!r:.60}, expected True or False"
    )


def try_check(task: Task, split: str) -> None:
    """Refuse a check that fails, before anything long: ask it of each example's own completion.

    Where there is none, and once in any case, it is asked of "". A task's split is tried once in a
    process: some checks run what was written.

    Raises
    ------
    TypeError, ValueError
        It says neither True nor False, or the task has no tokens to write for it.
    Exception
        What the check itself raises.
    """
    tried = TRIED.setdefault(task, set())
    if task.check is None or split in tried:
        return
    positive_integer("task.new_tokens", task.new_tokens)
    examples = task.split(split)
    with seeded():
        for example in examples:
            _verdict(task, example.get("completion", ""), example)
        _verdict(task, "", examples[0])
    tried.add(split)


def check_task(task: Task, *splits: str) -> None:
    """Refuse what is no task, and splits without examples or with malformed ones.

    Raises
    ------
    TypeError, ValueError
        Names the argument, its value and what would do.
    """
    if not isinstance(task, Task):
        found = type(task).__name__
        raise TypeError(f"task is {found}, expected a Task, such as load_task('sums')")
    for split in splits:
        if not task.split(split):
            raise ValueError(
                f"task {task.name!r} has no example in its split {split!r}: give it at least one"
            )
        _check_examples(task, split)


def _check_examples(task: Task, split: str) -> None:
    """An empty prompt may still give tokens: `prompt_ids` refuses what gives none."""
    for number, example in enumerate(task.split(split)):
        where = f"example {number} of task {task.name!r}, split {split!r}"
        if not isinstance(example, Mapping):
            raise TypeError(f"{where}, is {example!r:.60}, expected a dict with 'prompt'")
        if odd := [key for key in example if not isinstance(key, str)]:
            raise TypeError(f"{where}, has the key {odd[0]!r:.60}, expected a text")
        prompt = example.get("prompt")
        if not isinstance(prompt, (str, list, tuple)) or prompt in ([], ()):
            raise ValueError(
                f"{where}, has the prompt {prompt!r:.60}, expected a text or chat messages: fill "
                f"it, or leave the example out"
            )
        completion = example.get("completion", "")
        if not isinstance(completion, str):
            raise ValueError(f"{where}, has the completion {completion!r:.60}, expected a text")


def token_limit(name: str, value: Any) -> int:
    """The tokens that an example may have: 2 or more, one to read and one to write (ValueError)."""
    if positive_integer(name, value) == 1:
        raise ValueError(
            f"{name}=1, expected an integer of at least 2: one token to read, one to write"
        )
    return int(value)


def check_vocabulary(model: nn.Module, rows: Sequence[Mapping[str, list[int]]]) -> None:
    """Refuse token ids that the model has no embedding for (ValueError)."""
    try:
        size = getattr(model.get_input_embeddings(), "num_embeddings", None)
    except (AttributeError, NotImplementedError):
        return
    largest = max(max(row["input_ids"]) for row in rows)
    if size is not None and largest >= size:
        raise ValueError(
            f"tokenizer writes the token {largest}, but model has embeddings for {size}: take "
            f"the model's own tokenizer, or call model.resize_token_embeddings(len(tokenizer))"
        )


def check_end(tokenizer: Any) -> None:
    """Refuse a tokenizer without an end of text (ValueError)."""
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "this tokenizer has no eos_token, which ends every completion: set tokenizer.eos_token"
        )


def has_completions(task: Task, split: str) -> bool:
    """Whether all examples of a split say what is to be written."""
    return all("completion" in example for example in task.split(split))


def encoded(
    task: Task, split: str, tokenizer: Any, max_length: int = sys.maxsize
) -> list[dict[str, list[int]]]:
    """Token ids and labels of a split's examples.

    Prompt and completion become tokens apart, as generation meets them. An example that is longer
    than `max_length` loses the beginning of its prompt.

    Returns
    -------
    list of dict
        `input_ids`, and `labels`: the same for the completion and its end, -100 for the prompt.
    """
    examples = task.split(split)
    prompts = [prompt_ids(tokenizer, example["prompt"]) for example in examples]
    texts = [example["completion"] for example in examples]
    completions = tokenizer(texts, add_special_tokens=False)["input_ids"]
    rows = []
    for prompt, completion in zip(prompts, completions, strict=True):
        answer = [*completion, tokenizer.eos_token_id]
        ids = prompt + answer
        labels = [UNCOUNTED] * len(prompt) + answer
        rows.append({"input_ids": ids[-max_length:], "labels": labels[-max_length:]})
    return rows


@dataclass(frozen=True)
class Judged:
    """How a model fares on one example's completion and its end of text."""

    loss: float  # nats, summed over tokens
    tokens: int
    exact: bool  # each token is the likeliest one


def mean_loss(judged: Sequence[Judged]) -> float:
    """Mean cross-entropy (nats) over all tokens together."""
    return sum(one.loss for one in judged) / sum(one.tokens for one in judged)


def _columns(judged: Sequence[Judged] | None) -> dict[str, list | None]:
    """What `evaluate` returns of each example."""
    if judged is None:
        return {"losses": None, "tokens": None, "exact": None}
    return {
        "losses": [one.loss for one in judged],
        "tokens": [one.tokens for one in judged],
        "exact": [one.exact for one in judged],
    }


def _judged(model: nn.Module, rows: list[dict[str, list[int]]], pad: int) -> list[Judged]:
    """How the model fares on each row, in their order; run in batches of like length."""
    numbered = list(enumerate(rows))
    found: dict[int, Judged] = {}
    with unchanged(model), torch.no_grad():
        model.eval()
        for batch in batches(numbered, lambda pair: _length(pair[1]), TOKENS):
            judged = _judged_batch(model, [row for _, row in batch], pad)
            found |= zip([number for number, _ in batch], judged, strict=True)
    return [found[number] for number in range(len(rows))]


def _judged_batch(model: nn.Module, rows: list[dict[str, list[int]]], pad: int) -> list[Judged]:
    """How the model fares on each row of a batch."""
    logits, wanted, sizes = completion_logits(model, rows, pad)
    losses = torch.nn.functional.cross_entropy(logits, wanted, reduction="none").double()
    right = logits.argmax(-1) == wanted
    judged = []
    for own, hits in zip(losses.split(sizes), right.split(sizes), strict=True):
        judged.append(Judged(own.sum().item(), len(own), bool(hits.all())))
    return judged


def completion_logits(
    model: nn.Module, rows: Sequence[Mapping[str, list[int]]], pad: int
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """What a model says where the completions of a batch stand, ends of text included.

    Parameters
    ----------
    model : torch.nn.Module
    rows : sequence of dict
        As in `encoded`.
    pad : int
        The token to pad with.

    Returns
    -------
    logits : torch.Tensor
        (tokens, vocabulary), float32, row after row.
    wanted : torch.Tensor
        (tokens,): the tokens that stand there.
    sizes : list of int
        How many of them each row has.
    """
    ids = padded([row["input_ids"] for row in rows], pad)
    mask = padded([[1] * len(row["input_ids"]) for row in rows], 0)
    labels = padded([row["labels"] for row in rows], UNCOUNTED)[:, 1:]
    output = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device))
    logits = output.logits[:, :-1]
    labels = labels.to(logits.device)
    counted = labels != UNCOUNTED
    return logits[counted].float(), labels[counted], counted.sum(1).tolist()


def _length(row: dict[str, list[int]]) -> int:
    return len(row["input_ids"])


def batches(rows: Sequence, length: Callable[[Any], int], tokens: int) -> Iterator[list]:
    """The rows by length, in batches of at most so many tokens with their padding."""
    batch: list = []
    for row in sorted(rows, key=length):
        if batch and (len(batch) + 1) * length(row) > tokens:
            yield batch
            batch = []
        batch.append(row)
    yield batch
