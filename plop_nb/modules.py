"""Which linear maps a model has, and what their types are called. No scoring here."""

import re
from dataclasses import dataclass

import pandas as pd
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from plop_nb.offload import is_offloaded

SCORED = "scored"
HEAD = "output head"
ROUTER = "router"  # of tokens to experts, or of queries to keys: its choice has no gradient
NO_PEFT = "PEFT cannot adapt it"
NOT_PLAIN = "not a plain linear map"
UNKNOWN_STACK = "stacked parameter of unknown layout"
BARE = "bare parameter: its input is not seen"

# PEFT refuses these (peft.tuners.tuners_utils): their kernel reads the weight and skips the adapter.
MAMBA_TYPES = {"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"}
NOT_MAPS = re.compile(r"embed|pos|token|query|probe|latent|bias|cls|norm|A_log|time_|scale", re.IGNORECASE)


@dataclass(frozen=True)
class LinearMap:
    """One linear map ``W z + b`` of a model; shapes as in the glossary of `plop_nb`."""

    name: str  # full dotted name; an expert of a stack ends in its number
    pattern: str  # the name with ModuleList and ModuleDict indices starred
    type: str  # shortest unambiguous ending of the pattern
    layer: int | None  # first ModuleList index on the path; None outside a stack of layers
    status: str  # "scored", or why it is not
    module: nn.Module
    target: str  # what PEFT adapts: the module's name, or that of the stacked parameter
    parameter: str = "weight"
    expert: int | None = None

    @property
    def shape(self):
        """(out_features, in_features); None each where the layout is not known."""
        if self.status in (BARE, UNKNOWN_STACK):
            return None, None
        if self.expert is None and hasattr(self.module, "in_features"):
            return self.module.out_features, self.module.in_features
        shape = tuple(getattr(self.module, self.parameter).shape)[-2:]  # also where the weight is offloaded
        turned = isinstance(self.module, Conv1D) if self.expert is None else stack_is_transposed(self.module)
        return shape[::-1] if turned else shape

    @property
    def numel(self):
        """Entries of W and b."""
        if None in self.shape:
            return getattr(self.module, self.parameter).numel()
        outputs, inputs = self.shape
        return outputs * inputs + (0 if self.bias is None else outputs)

    @property
    def is_packed(self):
        """Whether W has to be recovered from what the module returns: 4-bit or 8-bit."""
        weight = getattr(self.module, self.parameter)
        return not weight.is_floating_point() or weight.dtype.itemsize == 1

    @property
    def is_offloaded(self):
        """Whether accelerate keeps the weight elsewhere: to be read inside `offload.loaded`."""
        return getattr(self.module, self.parameter).is_meta and is_offloaded(self.module)

    @property
    def weight(self):
        """W, shape (out_features, in_features): a view where the model stores it so, else recovered."""
        weight = getattr(self.module, self.parameter).detach()
        if weight.is_meta:
            raise ValueError(
                f"module {self.name!r} has no weights, it is on the meta device: load the model's weights, "
                "or dispatch it with accelerate"
            )
        if self.expert is not None:
            weight = weight[self.expert]
            return weight.T if stack_is_transposed(self.module) else weight
        if self.is_packed:
            return self._probed()
        return weight.T if isinstance(self.module, Conv1D) else weight

    @property
    def bias(self):
        """b, shape (out_features,), or None."""
        return getattr(self.module, "bias" if self.expert is None else f"{self.parameter}_bias", None)

    def _probed(self):
        """W of a packed map (4-bit, 8-bit), from what the module returns on the unit vectors."""
        return (self._call(torch.eye(self.shape[1])) - self._call(torch.zeros(1, self.shape[1]))).T

    @torch.no_grad()
    def _call(self, inputs):
        """The module's output on `inputs`, in the dtype and on the device that it works with; float32."""
        floats = [p for p in self.module.parameters() if p.is_floating_point() and p.dtype.itemsize > 1]
        dtype = getattr(self.module, "compute_dtype", None) or (floats[0].dtype if floats else torch.float32)
        return self.module(inputs.to(self.module.weight.device, dtype)).float()


def unwrapped(model):
    """The model inside `torch.compile` and `peft.PeftModel`."""
    model = getattr(model, "_orig_mod", model)
    return model.get_base_model() if isinstance(model, PeftModel) else model


def trunk_of(model):
    """The model without its head: what a score has to run (no logits are computed)."""
    model = unwrapped(model)
    return getattr(model, "base_model", model)


def linear_maps(model):
    """Every linear map of `model` as a list of `LinearMap`, in definition order.

    Names are those of the model before `torch.compile` and PEFT wrapped it; of an adapted layer
    the frozen base map is meant.

    Raises
    ------
    TypeError
        `model` is not a `torch.nn.Module`.
    ValueError
        It holds no linear map.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}, expected a torch.nn.Module (see plop.load_model)")
    model = unwrapped(model)
    found = list(_found(model))
    if not found:
        raise ValueError(f"model {type(model).__name__} has no linear maps (nn.Linear or Conv1D): nothing to score")
    types = _short_names({pattern for *_, pattern, _ in found})
    status = _Status(model)
    return [
        LinearMap(clean, pattern, types[pattern], layer, status(name, module, parameter), module, target, parameter, e)
        for name, module, parameter, target, experts, pattern, layer in found
        for e, clean in experts
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
    rows = []
    for m in linear_maps(model):
        outputs, inputs = m.shape
        rows.append(
            {
                "module": m.name,
                "type": m.type,
                "layer": m.layer,
                "in_features": inputs,
                "out_features": outputs,
                "parameters": m.numel,
                "status": m.status,
            }
        )
    return pd.DataFrame(rows).astype(dict.fromkeys(["layer", "in_features", "out_features"], "Int64"))


def is_expert_stack(module):
    """Experts as transformers stacks them: 3-D `gate_up_proj` (or `up_proj`) and `down_proj`."""
    up, down = stack_parameters(module)
    return (
        isinstance(up, nn.Parameter) and isinstance(down, nn.Parameter) and up.ndim == down.ndim == 3
    ) and not hasattr(module, "gate_proj")


def stack_parameters(experts):
    """(up or fused gate-up, down) parameters of a stack of experts; None where there is none."""
    up = getattr(experts, "gate_up_proj", None)
    return (up if up is not None else getattr(experts, "up_proj", None)), getattr(experts, "down_proj", None)


def stack_is_transposed(experts):
    """Whether a stack stores its weights as (experts, in, out) rather than (experts, out, in)."""
    if hasattr(experts, "is_transposed"):
        return experts.is_transposed
    up, down = stack_parameters(experts)
    return up.shape[1] == down.shape[2] and up.shape[2] == 2 * down.shape[1]  # gate and up side by side


def _found(model):
    """(name, module, parameter, PEFT target, [(expert, clean name)], pattern, layer) of every map."""
    adapters = tuple(f"{n}." for n, m in model.named_modules() if isinstance(m, BaseTunerLayer))
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) or name.startswith(adapters) and not name.endswith("base_layer"):
            continue  # an adapter's own maps
        clean, pattern, layer = _starred(model, name)
        if isinstance(module, (nn.Linear, Conv1D)):
            yield name, module, "weight", clean, [(None, clean)], pattern, layer
        elif is_expert_stack(module):
            up, down = stack_parameters(module)
            for parameter in ("gate_up_proj" if hasattr(module, "gate_up_proj") else "up_proj", "down_proj"):
                target = f"{clean}.{parameter}"
                experts = [(e, f"{target}.{e}") for e in range(min(len(up), len(down)))]
                yield name, module, parameter, target, experts, f"{pattern}.{parameter}", layer
        else:
            for parameter, value in module.named_parameters(recurse=False):
                if _looks_like_a_map(module, parameter, value):
                    target = f"{clean}.{parameter}".lstrip(".")
                    yield name, module, parameter, target, [(None, target)], f"{pattern}.{parameter}".lstrip("."), layer


def _looks_like_a_map(module, parameter, value):
    """A 2-D or 3-D parameter outside of a layer class that we know: listed, not scored."""
    known = isinstance(module, (nn.Embedding, nn.modules.conv._ConvNd, BaseTunerLayer, nn.ParameterDict))
    named = NOT_MAPS.search(parameter) or NOT_MAPS.search(type(module).__name__)
    return not known and not named and value.ndim in (2, 3) and min(value.shape) > 1


class _Status:
    """Why a map is not scored, or that it is."""

    def __init__(self, model):
        self.inside = set(trunk_of(model).modules())
        self.head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        self.model_type = getattr(getattr(model, "config", None), "model_type", None)
        self.model = model

    def __call__(self, name, module, parameter):
        last = name.rsplit(".", 1)[-1]
        if module is self.head or module not in self.inside:
            return HEAD
        if (
            re.search(r"router|indexer", f"{name}.{type(module).__name__}", re.IGNORECASE)
            or last == "shared_expert_gate"
        ):
            return ROUTER
        before, gate, _ = f"{name}.".partition(".gate.")
        if gate and hasattr(self.model.get_submodule(before), "experts"):
            return ROUTER
        if not isinstance(module, (nn.Linear, Conv1D)):
            if is_expert_stack(module):
                return SCORED
            return UNKNOWN_STACK if "expert" in type(module).__name__.lower() else BARE
        if last == "out_proj" and self.model_type in MAMBA_TYPES:
            return NO_PEFT
        return SCORED if _is_plain(module) else NOT_PLAIN


@torch.no_grad()
def _is_plain(module):
    """Whether a Linear whose class overrides `forward` still returns W z + b."""
    own = type(module).forward not in (nn.Linear.forward, Conv1D.forward)
    if not own or not module.weight.is_floating_point() or module.weight.is_meta or module.weight.dtype.itemsize == 1:
        return True
    z = torch.ones(1, module.in_features, dtype=module.weight.dtype, device=module.weight.device)
    try:
        return torch.allclose(module(z), nn.functional.linear(z, module.weight, module.bias), rtol=0.05, atol=1e-3)
    except Exception:  # it takes other arguments, or other shapes
        return False


def _starred(model, name):
    """Clean name, pattern and layer: `("h.3.mlp.c_fc", "h.*.mlp.c_fc", 3)`; wrappers leave no trace."""
    parent, clean, parts, layer = model, [], [], None
    for part in name.split(".") if name else []:
        if isinstance(parent, nn.ModuleList) and layer is None:
            layer = int(part)
        if part != "_orig_mod" and not (part == "base_layer" and isinstance(parent, BaseTunerLayer)):
            clean.append(part)
            parts.append("*" if isinstance(parent, (nn.ModuleList, nn.ModuleDict)) else part)
        parent = parent.get_submodule(part)
    return ".".join(clean), ".".join(parts), layer


def _short_names(patterns):
    """{pattern: its shortest ending that no other pattern shares and that starts with a name}."""
    endings = {p: [p.split(".")[-n:] for n in range(1, p.count(".") + 2)] for p in patterns}
    owners = pd.Series([".".join(e) for many in endings.values() for e in many]).value_counts()
    return {
        p: next((".".join(e) for e in many if e[0] != "*" and owners[".".join(e)] == 1), p)
        for p, many in endings.items()
    }
