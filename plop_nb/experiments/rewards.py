"""Rewards in the form that TRL calls them: of one completion, 0 to 1 for each function.

A completion is what the model adds to a prompt: a string, or TRL's list with one message.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from plop_nb.experiments.tasks.answers import CLOSE, OPEN, tagged_answer, tagged_answer_is

Completion = str | list[dict[str, Any]]
Reward = Callable[..., list[float]]
COLUMNS = (
    "step", "reward", "reward_std", "kl", "completion_length", "seconds", "placement", "types", "r",
    "parameters", "lr", "seed", "prompt", "completion", "expected",
)  # fmt: skip


def format_reward(
    prompts: Sequence[Any] | None, completions: Sequence[Completion], **columns: Any
) -> list[float]:
    """1 for every completion that ends with its one `<answer>...</answer>`, else 0.

    Anything may stand before the answer (that is where reasoning goes), but no second tag.

    Examples
    --------
    >>> format_reward(None, ["<answer>7</answer>", "7 <answer>7</answer>!", "7"])
    [1.0, 0.0, 0.0]
    """
    return [float(tagged_answer(text(completion)) is not None) for completion in completions]


def approximate_format_reward(
    prompts: Sequence[Any] | None, completions: Sequence[Completion], **columns: Any
) -> list[float]:
    """Half for an opening tag, half for a closing one.

    A repeated tag earns nothing, and reversed ones neither.

    Examples
    --------
    >>> approximate_format_reward(None, ["<answer>7", "<answer>7</answer>!"])
    [0.5, 1.0]
    >>> approximate_format_reward(None, ["<answer><answer>", "</answer>7<answer>"])
    [0.0, 0.0]
    """
    return [_share_of_tags(text(completion)) for completion in completions]


def answer_reward(
    prompts: Sequence[Any] | None,
    completions: Sequence[Completion],
    answer: Sequence[str],
    task: Sequence[str] | None = None,
    **columns: Any,
) -> list[float]:
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
    >>> answer_reward(None, ["<answer>7</answer>", "<answer>07.0</answer>", "7"], ["7"] * 3)
    [1.0, 1.0, 0.0]
    """
    tasks = task or ["chain_sum"] * len(completions)
    earned = []
    for completion, right, name in zip(completions, answer, tasks, strict=True):
        earned.append(float(tagged_answer_is(text(completion), right, name)))
    return earned


REWARDS = (format_reward, approximate_format_reward, answer_reward)


def text(completion: Completion) -> str:
    """The string of a completion, plain or conversational (its assistant's messages)."""
    if isinstance(completion, str):
        return completion
    own = [message for message in completion if message["role"] == "assistant"]
    return "".join(message["content"] or "" for message in own)


def reward_columns(rewards: Sequence[Reward]) -> list[str]:
    """The names of reward functions in a frame.

    Raises
    ------
    TypeError, ValueError
        There is none, or one has no name, or is named as another column is.
    """
    if callable(rewards) or not rewards:
        raise ValueError(f"rewards={rewards!r:.60}, expected a list of one function or more")
    names: list[str] = []
    for reward in rewards:
        if not hasattr(reward, "__name__"):
            raise TypeError(
                f"a reward function is {reward!r:.60}, which has no __name__: write it as a def"
            )
        name = reward.__name__.removesuffix("_reward")
        if name in COLUMNS or name in names:
            raise ValueError(
                f"a reward function is named {name!r}, as another column is: give it another name"
            )
        names.append(name)
    return names


def reward_frame(history: Sequence[dict], rewards: Sequence[Reward]) -> pd.DataFrame:
    """The log of TRL's trainer, one row a step, in the columns of `grpo.train`."""
    logged = pd.DataFrame([entry for entry in history if "reward" in entry])
    names = {"step": "step", "reward": "reward"}
    for reward, column in zip(rewards, reward_columns(rewards), strict=True):
        names[f"rewards/{reward.__name__}/mean"] = column
    names |= {
        "reward_std": "reward_std",
        "kl": "kl",
        "completions/mean_length": "completion_length",
        "step_time": "seconds",
    }
    present = [name for name in names if name in logged]
    return logged[present].rename(columns=names)


def _share_of_tags(text: str) -> float:
    opened, closed = text.count(OPEN) == 1, text.count(CLOSE) == 1
    if opened and closed and text.index(CLOSE) < text.index(OPEN):
        return 0.0
    return (opened + closed) / 2
