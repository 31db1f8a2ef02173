"""What a model writes: one completion of each prompt, greedy or sampled."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from plop_nb.checks import positive_integer, random_seed
from plop_nb.experiments.isolation import unchanged

Prompt = str | list[dict[str, str]]
GREEDY = {"do_sample": False}
SAMPLED = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}


def complete(
    model: nn.Module,
    prompts: Sequence[Prompt],
    tokenizer: Any,
    *,
    new_tokens: int = 16,
    greedy: bool = False,
    max_length: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> list[str]:
    """One completion of each prompt, greedy or sampled at temperature 1.

    Prompts become tokens and completions end as in training: at the tokenizer's end of text, and
    at all that the model names. `model.generation_config` has no other say.

    Parameters
    ----------
    model : torch.nn.Module
        A causal language model of transformers. It comes back as it was.
    prompts : list of str, or of chat messages
    tokenizer : transformers tokenizer
    new_tokens : int
        How many tokens to write at most.
    greedy : bool
        Take the likeliest token; prompts of like length then run together.
    max_length : int, optional
        Tokens of a prompt; a longer one loses its beginning.
    batch_size : int
        Prompts at a time.
    seed : int
        Of the sampling. The global random generators stay where they were.

    Returns
    -------
    list of str
        In the order of `prompts`, without special tokens.

    Raises
    ------
    TypeError, ValueError
        Bad input: names the argument, its value and what would do.
    """
    if isinstance(prompts, str):
        raise TypeError(f"prompts={prompts!r:.40} is one text, expected a list: put it in one")
    new_tokens = positive_integer("new_tokens", new_tokens)
    batch_size = positive_integer("batch_size", batch_size)
    seed = random_seed("seed", seed)
    ids = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    if max_length is not None:
        most = positive_integer("max_length", max_length)
        ids = [row[-most:] for row in ids]
    order = list(range(len(ids)))
    if greedy:
        order.sort(key=lambda index: len(ids[index]))
    settings = GenerationConfig(
        eos_token_id=ends_of(model, tokenizer), pad_token_id=padding_id(tokenizer)
    )
    sampling = GREEDY if greedy else SAMPLED
    devices = [model.device] if model.device.type == "cuda" else []
    texts: dict[int, str] = {}
    with unchanged(model), torch.no_grad(), torch.random.fork_rng(devices=devices):
        model.eval()
        model.generation_config = settings  # generate falls back on it for what it is not told
        torch.manual_seed(seed)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            rows = [ids[index] for index in batch]
            written = _write(model, rows, settings.pad_token_id, new_tokens, sampling)
            found = tokenizer.batch_decode(written, skip_special_tokens=True)
            texts.update(zip(batch, found, strict=True))
    return [texts[index] for index in range(len(ids))]


def _write(
    model: nn.Module, rows: list[list[int]], pad: int, new_tokens: int, sampling: dict[str, Any]
) -> torch.Tensor:
    """The new tokens after each row of token ids: (rows, up to `new_tokens`)."""
    tokens = padded(rows, pad, left=True)
    mask = padded([[1] * len(row) for row in rows], 0, left=True)
    made = model.generate(
        input_ids=tokens.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=new_tokens,
        **sampling,
    )
    return made[:, tokens.shape[1] :]


def prompt_ids(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Token ids of a prompt as TRL makes them.

    A chat template brings its own special tokens, and gets no others.

    Raises
    ------
    ValueError
        There are none.
    """
    if isinstance(prompt, str):
        ids = tokenizer(prompt)["input_ids"]
    else:
        options = {"add_generation_prompt": True, "return_dict": True}
        ids = tokenizer.apply_chat_template(prompt, **options)["input_ids"]
    if not len(ids):
        raise ValueError(
            f"prompt {prompt!r:.60} gives no tokens with this tokenizer: fill it, or leave it out"
        )
    return ids


def ends_of(model: nn.Module, tokenizer: Any) -> list[int] | None:
    """The tokens that end a completion, as in TRL: the tokenizer's and all of the model's."""
    named = model.generation_config.eos_token_id
    ends = set(named) if isinstance(named, list) else {named}
    ends.add(tokenizer.eos_token_id)
    ends.discard(None)
    return sorted(ends) or None


def padding_id(tokenizer: Any) -> int:
    """The token to pad with: the tokenizer's own, else its end of text."""
    own = tokenizer.pad_token_id
    return tokenizer.eos_token_id if own is None else own


def padded(rows: Sequence[list[int]], fill: int, *, left: bool = False) -> torch.Tensor:
    """Rows of unlike length as one tensor (rows, longest), filled on the right or on the left."""
    length = max(len(row) for row in rows)
    filled = []
    for row in rows:
        gap = [fill] * (length - len(row))
        filled.append(gap + row if left else row + gap)
    return torch.tensor(filled)
