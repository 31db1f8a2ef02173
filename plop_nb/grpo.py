"""Reinforcement learning with a placement: GRPO on sums whose answers reasoning-gym checks (the paper's third experiment).

Needs TRL and reasoning-gym (`pip install 'plop_nb[tasks,finetune]'`), but only once something is trained.

- completion: what the model adds to a prompt, a string or TRL's list with one message;
- reward: of one completion, 0 to 1 for each reward function, added up.
"""

import copy
import random
import re
import tempfile
from functools import cache

import pandas as pd
import torch
from torch import nn
from transformers import GenerationConfig

from plop_nb.finetune import import_trl, restored, seeded
from plop_nb.tasks import shuffled
from plop_nb.texts import reasoning_gym

OPEN, CLOSE = "<answer>", "</answer>"
INSTRUCTION = f"Think step by step, then end with the number alone, as {OPEN}number{CLOSE}."
EXACT = re.compile(rf"{OPEN}\s*([^<>\s][^<>]*?)\s*{CLOSE}\s*\Z")
NUMBER = re.compile(r"[-+]?[0-9][0-9,]*(\.[0-9]+)?")  # [0-9], because \d and Decimal() take any script's digits
COLUMNS = ("step", "reward", "reward_std", "kl", "completion_length", "seconds", "placement", "types", "r",
           "parameters", "lr", "seed", "prompt", "completion", "expected")  # fmt: skip
OWN_OPTIONS = {"learning_rate", "max_steps", "logging_steps", "logging_strategy"}  # what `train` sets itself


# Rewards, in the form that TRL calls them


def format_reward(prompts, completions, **columns):
    """1 for every completion that ends with its one `<answer>...</answer>`, else 0.

    Anything may stand before the answer (that is where reasoning goes), but no second tag.

    Examples
    --------
    >>> format_reward(None, ["<answer>7</answer>", "7 <answer>7</answer>!", "7"])
    [1.0, 0.0, 0.0]
    """
    return [float(answer_of(text(c)) is not None) for c in completions]


def approximate_format_reward(prompts, completions, **columns):
    """Half for an opening tag, half for a closing one; a repeated tag earns nothing, reversed ones neither.

    Examples
    --------
    >>> approximate_format_reward(None, ["<answer>7", "<answer>7</answer>!", "<answer><answer>", "</answer>7<answer>"])
    [0.5, 1.0, 0.0, 0.0]
    """
    return [_tags(text(c)) for c in completions]


def answer_reward(prompts, completions, answer, task=None, **columns):
    """1 for every completion whose answer reasoning-gym's checker calls fully right, else 0.

    The checker sees only the number between the tags, and only where the format is exact: it gives
    partial credit to any text that contains the answer, and reads digits of any script.

    Parameters
    ----------
    prompts, completions : list
        TRL's; prompts are not used.
    answer : list of str
        The right answers.
    task : list of str, optional
        reasoning-gym's name of the task that each prompt is from; "chain_sum" by default.

    Examples
    --------
    >>> answer_reward(None, ["<answer>7</answer>", "<answer>07.0</answer>", "7"], ["7", "7", "7"])
    [1.0, 1.0, 0.0]
    """
    tasks = task or ["chain_sum"] * len(completions)
    found = [answer_of(text(c)) for c in completions]
    return [float(_right(f, a, t)) for f, a, t in zip(found, answer, tasks, strict=True)]


REWARDS = (format_reward, approximate_format_reward, answer_reward)


def text(completion):
    """The string of a completion, plain or conversational (its assistant's messages)."""
    if isinstance(completion, str):
        return completion
    return "".join(m["content"] or "" for m in completion if m["role"] == "assistant")


def answer_of(text):
    """What stands in the one answer that ends `text`; None where the format is not exact."""
    if text.count(OPEN) != 1 or text.count(CLOSE) != 1:
        return None
    match = EXACT.search(text, text.index(OPEN))
    return match and match[1]


def _tags(text):
    opened, closed = text.count(OPEN) == 1, text.count(CLOSE) == 1
    if opened and closed and text.index(CLOSE) < text.index(OPEN):
        return 0.0
    return (opened + closed) / 2


def _right(found, answer, task):
    if found is None or not NUMBER.fullmatch(found):
        return False
    return checker(task)(found, {"answer": answer}) == 1


@cache
def checker(task):
    """reasoning-gym's own checker of a task: `checker(task)(text, {"answer": right})` is 0 to 1."""
    return reasoning_gym().get_score_answer_fn(task)


# Problems


def sums(train=100, test=50, *, terms=2, digits=1, seed=0):
    """Sums of reasoning-gym's chain_sum, those for training and those for testing without a sum in common.

    Two sums are the same where only the order of their terms differs. With 2 terms of 1 digit there are
    155 of them.

    Parameters
    ----------
    train, test : int
        How many.
    terms, digits : int
        Of each sum.
    seed : int
        Which, and how they are divided.

    Returns
    -------
    train, test : list of dict
        With `prompt`, and for the checker `answer` and `task`.

    Raises
    ------
    ValueError
        There are not so many, or reasoning-gym is not installed.
    """
    found = {}
    for draw in range(50 * (train + test)):
        sizes = {"min_terms": terms, "max_terms": terms, "min_digits": digits, "max_digits": digits}
        entry = reasoning_gym().create_dataset("chain_sum", size=1, seed=seed * 1_000_003 + draw, **sizes)[0]
        signed = re.findall(r"[+-] \d+", f"+ {entry['metadata']['expression']}")
        problem = {"prompt": f"{entry['question']}\n", "answer": entry["answer"], "task": "chain_sum"}
        found.setdefault(tuple(sorted(signed)), problem)
        if len(found) == train + test:
            problems = list(found.values())
            return problems[test:], problems[:test]
    raise ValueError(
        f"train={train} and test={test} together are more than the {len(found)} sums of terms={terms} and "
        f"digits={digits} that were found: ask for fewer, or for more terms or digits"
    )


def metamath(train=2000, test=200, *, seed=0):
    """Problems of MetaMathQA (from the Hub) whose answer is a number, as messages that ask for the format.

    Rephrasings of one original question stay on one side. Arguments and result as of `sums`.

    Raises
    ------
    ValueError
        The data set could not be loaded, or has fewer problems.
    """
    found = {}
    for row in shuffled("meta-math/MetaMathQA", seed, split="train"):
        answer = row["response"].rsplit("The answer is: ", 1)[-1].strip()
        if NUMBER.fullmatch(answer):
            prompt = [{"role": "user", "content": f"{row['query']}\n\n{INSTRUCTION}"}]
            # chain_sum's checker compares numbers; gsm_symbolic's ignores signs and what follows a comma.
            problem = {"prompt": prompt, "answer": answer, "task": "chain_sum"}
            found.setdefault(row["original_question"], problem)
        if len(found) == train + test:
            problems = list(found.values())
            return problems[test:], problems[:test]
    raise ValueError(f"train={train} and test={test} together are more than the {len(found)} problems: ask for fewer")


# Training


def warm_up(model, tokenizer, problems, *, steps=30, lr=2e-5, batch_size=16, right=0.5, seed=0):
    """A copy of `model` that has seen the format: finetuned for a few steps on answers, partly wrong ones.

    Without it the base model never earns a reward, and GRPO has nothing to learn from.

    Parameters
    ----------
    model, tokenizer
        As `load_model` returns them; not changed.
    problems : list of dict
        With `prompt` and `answer`.
    steps, lr, batch_size : int, float, int
        Optimiser steps, learning rate, problems a step.
    right : float
        Share of right answers, 0 to 1; the other examples have the answer of another problem.
    seed : int
        Same seed, same result.

    Returns
    -------
    transformers.PreTrainedModel
        In the precision of `model`; it trains in float32.

    Raises
    ------
    ImportError
        TRL is not installed.
    ValueError
        `steps` or the learning rate is out of range, or there are no problems.
    """
    trl = import_trl("training")
    from datasets import Dataset

    _check(problems, steps, lr)
    draw = random.Random(seed)
    examples = [draw.choice(problems) for _ in range(steps * batch_size)]
    answers = [(p if draw.random() < right else draw.choice(problems))["answer"] for p in examples]
    rows = [{"prompt": p["prompt"], "completion": _said(f"{OPEN}{a}{CLOSE}", p)} for p, a in zip(examples, answers)]
    warm = copy.deepcopy(model).requires_grad_(True).float()  # in bfloat16 most of such small steps round to nothing
    settings = _settings(trl.SFTConfig, model, steps, lr, seed, per_device_train_batch_size=batch_size)
    with seeded(seed):
        _fit(trl.SFTTrainer(warm, settings, train_dataset=Dataset.from_list(rows),
                            processing_class=copy.deepcopy(tokenizer)))  # fmt: skip
    vars(warm).pop("forward", None)  # TRL's own, which copies would share
    for new, old in zip(_tensors(warm), _tensors(model), strict=True):
        new.data = new.data.to(old.dtype)
    return warm.eval().requires_grad_(False)


def _said(text, problem):
    """A completion in the form of the problem's prompt."""
    return text if isinstance(problem["prompt"], str) else [{"role": "assistant", "content": text}]


def _tensors(model):
    """Parameters and buffers, in the same order for a copy."""
    return [*model.parameters(), *model.buffers()]


def train(
    model,
    tokenizer,
    problems,
    placement,
    *,
    name=None,
    r=16,
    lora_alpha=None,
    lora_dropout=0.05,
    lr=3e-4,
    steps=50,
    prompts_per_step=4,
    num_generations=8,
    max_completion_length=16,
    beta=0.01,
    rewards=REWARDS,
    seed=0,
    **options,
):
    """Train adapters with GRPO (TRL's GRPOTrainer), on placed modules.

    Parameters
    ----------
    model, tokenizer
        As `load_model` returns them. Not changed: what is trained shares the weights, nothing else.
    problems : list of dict
        With `prompt` (str or messages), and the columns that the rewards take.
    placement : Placement
        From `place`, or `Placement.of_types`.
    name : str, optional
        What to call the placement in the frame; its types by default.
    r, lora_alpha, lora_dropout : int, float, float
        Of the adapters; `lora_alpha` is 2 r by default, as in the paper (r = 16, alpha = 32, dropout = 0.05).
        On stacked experts PEFT refuses a dropout other than 0 (ValueError).
    lr : float
        Learning rate, constant after a tenth of the steps. The paper's 5e-6 is for larger models and long runs.
    steps, prompts_per_step, num_generations : int
        Optimiser steps, different prompts in each, completions for each prompt.
    max_completion_length : int
        Tokens at most.
    beta : float
        Weight of the KL divergence from `model`; 0 leaves it out, and out of the frame.
    rewards : sequence of callable
        Reward functions in TRL's form.
    seed : int
        Of adapters, prompts and sampling. Same seed, same result on a CPU.
    **options
        Any other argument of `trl.GRPOConfig`, but none that `lr`, `steps` or a row per step stand for.

    Returns
    -------
    frame : pandas.DataFrame
        One row per step, measured before its update: `step` (from 1), `reward` (mean over completions of
        the sum), the mean of each reward function by its name (`format`, `approximate_format`, `answer`),
        `reward_std`, `kl` (nats per token), `completion_length` (tokens), `seconds`; and of the run
        `placement`, `types`, `r`, `parameters`, `lr`, `seed`.
    trained : peft.PeftModel
        `model` with the trained adapters.

    Raises
    ------
    ImportError
        TRL is not installed.
    ValueError
        `steps` or the learning rate is out of range, there are fewer problems than `prompts_per_step`, a
        reward function is named like another column, or `model` lacks a module of the placement.
    """
    trl = import_trl("training")
    from datasets import Dataset

    _check(problems, steps, lr, prompts_per_step)
    _reward_columns(rewards)
    if refused := OWN_OPTIONS & set(options):
        raise ValueError(f"{refused.pop()} cannot be an option: lr and steps set it, for a frame of one row per step")
    alpha = 2 * r if lora_alpha is None else lora_alpha
    config = placement.lora_config(model, r, lora_alpha=alpha, lora_dropout=lora_dropout)
    options = {
        "num_generations": num_generations,
        "max_completion_length": max_completion_length,
        "beta": beta,
    } | options
    options.setdefault("per_device_train_batch_size", prompts_per_step * num_generations)
    options.setdefault("generation_batch_size", prompts_per_step * num_generations)
    settings = _settings(trl.GRPOConfig, model, steps, lr, seed, **options)
    with seeded(seed):  # not only by TRL, whose older versions make the adapters first
        trainer = trl.GRPOTrainer(
            _sharing(model), list(rewards), settings, train_dataset=Dataset.from_list(problems),
            processing_class=copy.deepcopy(tokenizer), peft_config=config,
        )  # fmt: skip
        trained = trainer.model
        size = sum(p.numel() for p in trained.parameters() if p.requires_grad)
        _fit(trainer)
    vars(trained.get_base_model()).pop("forward", None)  # TRL's own, which copies would share
    frame = _frame(trainer.state.log_history, rewards)
    run = {"placement": name or "+".join(placement.types), "types": "+".join(sorted(placement.types)), "r": r}
    return frame.assign(**run, parameters=size, lr=lr, seed=seed), trained.eval()


def _check(problems, steps, lr, prompts=1):
    if steps < 1 or lr <= 0:
        raise ValueError(f"steps={steps!r}, lr={lr!r}: expected at least one step and a positive learning rate")
    if len(problems) < prompts:
        raise ValueError(
            f"problems has {len(problems)}, expected at least the {prompts} of one step: give more, or take fewer a step"
        )


def _reward_columns(rewards):
    """The names of reward functions in a frame."""
    names = [f.__name__.removesuffix("_reward") for f in rewards]
    if taken := [name for i, name in enumerate(names) if name in {*COLUMNS, *names[:i]}]:
        raise ValueError(f"a reward function is named {taken[0]!r}, as another column is: give it another name")
    return names


def _settings(kind, model, steps, lr, seed, **options):
    """The settings that both trainers share: quiet, nothing saved, the model's own precision."""
    defaults = {
        "learning_rate": lr, "max_steps": steps, "seed": seed, "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": min(steps - 1, max(1, steps // 10)),  # the first step of a warm-up has rate 0
        "bf16": False, "gradient_checkpointing": False, "use_cpu": model.device.type == "cpu",
        "dataloader_pin_memory": False, "logging_steps": 1, "save_strategy": "no", "report_to": "none",
        "disable_tqdm": True, "output_dir": tempfile.gettempdir(),
    }  # fmt: skip
    return kind(**(defaults | options))


def _fit(trainer):
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    trainer.train()


def _sharing(model):
    """A copy of `model` with the same weights in memory, but frozen, and everything else its own."""
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, shared)


def _frame(history, rewards):
    logged = pd.DataFrame([entry for entry in history if "reward" in entry])
    names = {"step": "step", "reward": "reward"}
    names |= {f"rewards/{f.__name__}/mean": name for f, name in zip(rewards, _reward_columns(rewards))}
    names |= {"reward_std": "reward_std", "kl": "kl", "completions/mean_length": "completion_length"}
    names |= {"step_time": "seconds"}
    return logged[[n for n in names if n in logged]].rename(columns=names)


# What a model answers


def samples(model, tokenizer, problems, rewards=REWARDS, n=8, *, max_completion_length=16, greedy=False, seed=0):
    """Completions of the first `n` problems, one each, and what they earn.

    Returns
    -------
    pandas.DataFrame
        Columns `prompt`, `completion`, `expected` (the right answer), each reward by its function's name
        (`format`, `approximate_format`, `answer`), and their sum `reward`.
    """
    problems, names = problems[:n], _reward_columns(rewards)
    if not problems:
        raise ValueError(f"no problems to answer (n={n}): give at least one")
    prompts = [p["prompt"] for p in problems]
    found = completions(model, tokenizer, prompts, max_completion_length, greedy=greedy, seed=seed)
    columns = {key: [p[key] for p in problems] for key in problems[0] if key != "prompt"}
    frame = pd.DataFrame({"prompt": prompts, "completion": found, "expected": columns.get("answer")})
    earned = {name: f(prompts, found, **columns) for name, f in zip(names, rewards)}
    return frame.assign(**earned, reward=sum(map(pd.Series, earned.values())))


def accuracy(model, tokenizer, problems, *, max_completion_length=16):
    """Share of `problems` that greedy completions answer right, in the exact format."""
    found = samples(model, tokenizer, problems, [answer_reward], len(problems), greedy=True,
                    max_completion_length=max_completion_length)  # fmt: skip
    return found["reward"].mean()


@torch.no_grad()
def completions(model, tokenizer, prompts, max_completion_length=16, *, greedy=False, batch_size=64, seed=0):
    """One completion of each prompt (str or messages), sampled at temperature 1 or greedy; a list of str.

    Prompts become tokens and completions end as in `train`; `model.generation_config` has no other say.
    """
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.pad_token or tokenizer.eos_token
    ids = [_prompt_ids(tokenizer, prompt) for prompt in prompts]
    plain = GenerationConfig(eos_token_id=_ends(model, tokenizer), pad_token_id=tokenizer.pad_token_id)
    sampling = {"do_sample": False} if greedy else {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    found = []
    with restored(model), torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        model.eval().generation_config = plain  # generate falls back on it for what it is not told
        torch.manual_seed(seed)
        for start in range(0, len(ids), batch_size):
            batch = tokenizer.pad({"input_ids": ids[start : start + batch_size]}, return_tensors="pt")
            out = model.generate(**batch.to(model.device), max_new_tokens=max_completion_length, **sampling)
            found += tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return found


def _prompt_ids(tokenizer, prompt):
    """As TRL makes them: a chat template brings its own special tokens, and gets no others."""
    if isinstance(prompt, str):
        return tokenizer(prompt)["input_ids"]
    return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]


def _ends(model, tokenizer):
    """The tokens that end a completion, as in TRL: the tokenizer's and all of the model's."""
    own = model.generation_config.eos_token_id
    return list({tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}) or None
