"""Stacked experts, one by one: how they are stored, which tokens each got, what it makes of them.

A stack holds the same projection of all experts in one 3-D parameter: `gate_up_proj` (or `up_proj`)
and `down_proj`, each (experts, out, in), in some models (experts, in, out).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn


def stack_parameters(experts: nn.Module) -> tuple[nn.Parameter, nn.Parameter]:
    """(up or fused gate-up, down) parameters of a stack of experts."""
    return getattr(experts, up_name(experts)), experts.down_proj


def up_name(module: nn.Module) -> str:
    """What a stack calls its first projection."""
    return "up_proj" if getattr(module, "gate_up_proj", None) is None else "gate_up_proj"


def is_expert_stack(module: nn.Module) -> bool:
    """Whether a module holds experts as transformers stacks them."""
    up, down = (getattr(module, name, None) for name in (up_name(module), "down_proj"))
    if not isinstance(up, nn.Parameter) or not isinstance(down, nn.Parameter):
        return False
    return up.ndim == down.ndim == 3 and not hasattr(module, "gate_proj")


def stack_is_transposed(experts: nn.Module) -> bool:
    """Whether a stack stores its weights as (experts, in, out) rather than (experts, out, in)."""
    if hasattr(experts, "is_transposed"):
        return experts.is_transposed
    up, down = stack_parameters(experts)
    gate_and_up_side_by_side = up.shape[2] == 2 * down.shape[1]
    return up.shape[1] == down.shape[2] and gate_and_up_side_by_side


@dataclass(frozen=True)
class Routing:
    """Which tokens a stack hands to which expert, read from the arguments of its forward."""

    hidden: torch.Tensor  # (tokens, features), all copies below each other
    chosen: torch.Tensor | None  # k numbers of experts for each token; None: each gets all tokens
    copies: int  # of the tokens: 1, or as many as there are experts

    @classmethod
    def of_call(cls, experts: nn.Module, args: tuple, kwargs: dict) -> "Routing":
        """Hidden states come first, then weights and numbers of experts in any order."""
        tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)]
        hidden = tensors[0].reshape(-1, tensors[0].shape[-1])
        for tensor in tensors[1:]:
            if not tensor.is_floating_point():
                return cls(hidden, tensor, copies=1)
        return cls(hidden, None, copies=len(stack_parameters(experts)[0]))  # as llama4 does

    def of_expert(self, expert: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The inputs that an expert got, (visits, features), and their tokens, (visits,)."""
        if self.chosen is not None:
            chosen = self.chosen.reshape(len(self.hidden), -1)
            tokens = (chosen == expert).any(-1).nonzero().squeeze(-1)
            return self.hidden[tokens], tokens
        z = self.hidden.view(self.copies, -1, self.hidden.shape[-1])[expert]
        return z, torch.arange(len(z), device=z.device)


def projections(
    experts: nn.Module, expert: int, z: torch.Tensor
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """(parameter, its input, W times its input) of one expert's projections, in their order.

    The stack does not show them, so they are computed once more from its inputs `z`,
    (visits, features).
    """
    up, down = stack_parameters(experts)
    name = up_name(experts)
    transposed = stack_is_transposed(experts)

    def applied(stack: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        return inputs @ (stack[expert] if transposed else stack[expert].T)

    out = applied(up, z)
    yield name, z, out
    bias = getattr(experts, f"{name}_bias", None)
    if bias is not None:
        out = out + bias[expert]
    hidden = _activated(experts, out, fused=name == "gate_up_proj")
    yield "down_proj", hidden, applied(down, hidden)


def _activated(experts, out, fused):
    """What the down projection reads, from the output of the first one."""
    if not fused or not getattr(experts, "has_gate", True):
        return experts.act_fn(out)
    if hasattr(experts, "_apply_gate"):  # the model's own rule
        return experts._apply_gate(out)
    gate, up = out.chunk(2, dim=-1)
    return experts.act_fn(gate) * up
