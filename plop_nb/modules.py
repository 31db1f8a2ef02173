"""Which linear maps a model has, and what their types are called. No scoring here."""

from dataclasses import dataclass

import pandas as pd
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

SCORED = "scored"
HEAD = "output head"


@dataclass(frozen=True)
class LinearMap:
    """One linear map ``W z + b`` of a model; shapes as in the glossary of `plop_nb`."""

    name: str  # full dotted name, as in `model.named_modules()`
    pattern: str  # the name with ModuleList and ModuleDict indices starred
    type: str  # shortest unambiguous ending of the pattern
    layer: int | None  # first ModuleList index on the path; None outside a stack of layers
    status: str  # "scored", or why it is not
    module: nn.Module

    @property
    def weight(self):
        """W, shape (out_features, in_features), a view."""
        weight = self.module.weight.detach()
        return weight.T if isinstance(self.module, Conv1D) else weight

    @property
    def bias(self):
        """b, shape (out_features,), or None."""
        bias = self.module.bias
        return None if bias is None else bias.detach()


def trunk_of(model):
    """The model without its head: what a score has to run (no logits are computed)."""
    return getattr(model, "base_model", model)


def linear_maps(model):
    """Every linear map of `model` as a list of `LinearMap`, in definition order.

    Raises
    ------
    TypeError
        `model` is not a `torch.nn.Module`.
    ValueError
        It holds no linear map.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}, expected a torch.nn.Module (see plop.load_model)")
    found = {name: m for name, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D))}
    if not found:
        raise ValueError(f"model {type(model).__name__} has no linear maps (nn.Linear or Conv1D): nothing to score")
    patterns = {name: _starred(model, name) for name in found}
    types = _short_names({pattern for pattern, _ in patterns.values()})
    inside = set(trunk_of(model).modules())
    return [
        LinearMap(name, pattern, types[pattern], layer, SCORED if found[name] in inside else HEAD, found[name])
        for name, (pattern, layer) in patterns.items()
    ]


def module_table(model):
    """Every linear map of a model, one row each.

    Returns
    -------
    pandas.DataFrame
        Columns `module`, `type`, `layer`, `in_features`, `out_features`, `parameters`
        (entries of W and b), `status` ("scored", or why the map is not).

    Examples
    --------
    >>> from torch import nn
    >>> mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> print(module_table(mlp).to_string(index=False))
    module type  layer  in_features  out_features  parameters status
         0    0   <NA>            4             8          40 scored
         2    2   <NA>            8             2          18 scored
    """
    rows = [
        {
            "module": m.name,
            "type": m.type,
            "layer": m.layer,
            "in_features": m.weight.shape[1],
            "out_features": m.weight.shape[0],
            "parameters": sum(p.numel() for p in m.module.parameters(recurse=False)),
            "status": m.status,
        }
        for m in linear_maps(model)
    ]
    return pd.DataFrame(rows).astype({"layer": "Int64"})


def _starred(model, name):
    """The pattern of a module's name and its layer: `("h.*.mlp.c_fc", 3)` for `"h.3.mlp.c_fc"`."""
    parent, parts, layer = model, [], None
    for part in name.split("."):
        if isinstance(parent, nn.ModuleList) and layer is None:
            layer = int(part)
        parts.append("*" if isinstance(parent, (nn.ModuleList, nn.ModuleDict)) else part)
        parent = parent.get_submodule(part)
    return ".".join(parts), layer


def _short_names(patterns):
    """{pattern: its shortest ending that no other pattern shares and that starts with a name}."""
    endings = {p: [p.split(".")[-n:] for n in range(1, p.count(".") + 2)] for p in patterns}
    owners = pd.Series([".".join(e) for many in endings.values() for e in many]).value_counts()
    return {
        p: next((".".join(e) for e in many if e[0] != "*" and owners[".".join(e)] == 1), p)
        for p, many in endings.items()
    }
