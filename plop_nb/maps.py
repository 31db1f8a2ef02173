"""Which linear maps a model has, and what their types are called. No scoring here."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from plop_nb.experts import is_expert_stack, stack_is_transposed, stack_parameters, up_name
from plop_nb.offload import is_offloaded
from plop_nb.wrappers import idle, is_of_wrapper, trunk_of, unwrapped

SCORED = "scored"
HEAD = "output head"
ROUTER = "router"  # of tokens to experts, or of queries to keys: its choice has no gradient
NO_PEFT = "PEFT cannot adapt it"
NOT_PLAIN = "not a plain linear map"
UNKNOWN_STACK = "stacked parameter of unknown layout"
BARE = "bare parameter: its input is not seen"
OWN_CLASS = "linear layer of a class that PEFT cannot adapt"  # such as I-BERT's quantised ones

# PEFT refuses these (peft.tuners.tuners_utils): their kernel reads the weight and skips
# the adapter.
MAMBA_TYPES = {"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"}
# In the names of parameters, or of their modules' classes, that are no maps.
NOT_MAPS = re.compile(
    r"embed|pos|token|query|probe|latent|bias|cls|norm|A_log|time_|scale", re.IGNORECASE
)


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
    def shape(self) -> tuple[int | None, int | None]:
        """(out_features, in_features); None each where the layout is not known."""
        if self.status in (BARE, UNKNOWN_STACK):
            return None, None
        if self.expert is None and hasattr(self.module, "in_features"):
            return self.module.out_features, self.module.in_features
        rows, columns = tuple(self.stored.shape)[-2:]
        return (columns, rows) if self._is_turned else (rows, columns)

    @property
    def numel(self) -> int:
        """Entries of W and b."""
        outputs, inputs = self.shape
        if outputs is None or inputs is None:
            return self.stored.numel()
        return outputs * inputs + (0 if self.bias is None else outputs)

    @property
    def stored(self) -> torch.Tensor:
        """The parameter as the module holds it: packed, turned, or with all experts."""
        return getattr(self.module, self.parameter)

    @property
    def is_packed(self) -> bool:
        """Whether W has to be recovered from what the module returns: 4-bit or 8-bit."""
        return not self.stored.is_floating_point() or self.stored.dtype.itemsize == 1

    @property
    def is_offloaded(self) -> bool:
        """Whether accelerate keeps the weight elsewhere: to be read inside `offload.loaded`."""
        return self.stored.is_meta and is_offloaded(self.module)

    @property
    def weight(self) -> torch.Tensor:
        """W, shape (out_features, in_features): a view where it is stored so, else recovered."""
        weight = self.stored.detach()
        if weight.is_meta:
            raise ValueError(
                f"module {self.name!r} has no weights, it is on the meta device: load the model's "
                "weights, or dispatch it with accelerate"
            )
        if self.expert is not None:
            weight = weight[self.expert]
        elif self.is_packed:
            return self._probed()
        return weight.T if self._is_turned else weight

    @property
    def bias(self) -> torch.Tensor | None:
        """b, shape (out_features,), or None."""
        name = "bias" if self.expert is None else f"{self.parameter}_bias"
        return getattr(self.module, name, None)

    @property
    def _is_turned(self):
        """Whether the weight is stored as (in_features, out_features)."""
        if self.expert is None:
            return isinstance(self.module, Conv1D)
        return stack_is_transposed(self.module)

    def _probed(self):
        """W of a packed map (4-bit, 8-bit), from what the module returns on the unit vectors."""
        inputs = self.shape[1]
        return (self._call(torch.eye(inputs)) - self._call(torch.zeros(1, inputs))).T

    @torch.no_grad()
    def _call(self, inputs):
        """The module's output on `inputs`, float32; called in the dtype that it works with."""
        floats = [p for p in self.module.parameters() if p.is_floating_point()]
        unpacked = [p.dtype for p in floats if p.dtype.itemsize > 1]
        dtype = getattr(self.module, "compute_dtype", None)
        if dtype is None:
            dtype = unpacked[0] if unpacked else torch.float32
        # Not `self.module(...)`: a hook may be what asks.
        return self.module.forward(inputs.to(self.module.weight.device, dtype)).float()


def linear_maps(model: nn.Module) -> list[LinearMap]:
    """Every linear map of `model`, in definition order.

    Names are those of the model before `torch.compile` and PEFT wrapped it; of an adapted layer
    the frozen base map is meant.

    Raises
    ------
    TypeError
        `model` is not a `torch.nn.Module`.
    ValueError
        It holds no linear map.
    """
    model = unwrapped(model)
    places = list(_places(model))
    if not places:
        raise ValueError(
            f"model {type(model).__name__} has no linear maps (nn.Linear or Conv1D): "
            "nothing to score"
        )
    types = _short_names({place.pattern for place in places})
    status_of = _Status(model)
    found = []
    for place in places:
        status = status_of(place)
        for expert in place.experts:
            found.append(
                LinearMap(
                    name=place.target if expert is None else f"{place.target}.{expert}",
                    pattern=place.pattern,
                    type=types[place.pattern],
                    layer=place.layer,
                    status=status,
                    module=place.module,
                    target=place.target,
                    parameter=place.parameter,
                    expert=expert,
                )
            )
    return found


def module_table(model: nn.Module) -> pd.DataFrame:
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
    whole = ["layer", "in_features", "out_features"]  # numbers that may be missing
    return pd.DataFrame(rows).astype(dict.fromkeys(whole, "Int64"))


@dataclass(frozen=True)
class _Place:
    """A parameter of a module that holds one map, or those of a stack of experts."""

    module_name: str  # inside the model as it is, wrappers and all
    module: nn.Module
    parameter: str
    target: str  # name without wrappers: the module's, or the parameter's where it holds a stack
    pattern: str  # the target with indices starred
    layer: int | None
    experts: tuple[int | None, ...] = (None,)  # their numbers


def _places(model) -> Iterator[_Place]:
    """Where the model's maps are, in definition order."""
    adapted = [f"{name}." for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)]
    unused = tuple(idle(model))
    for name, module in model.named_modules():
        in_adapter = name.startswith(tuple(adapted)) and not name.endswith("base_layer")
        if isinstance(module, BaseTunerLayer) or in_adapter:
            continue  # an adapter's own maps
        if f"{name}.".startswith(unused):
            continue
        clean, pattern, layer = _starred(model, name)
        if isinstance(module, (nn.Linear, Conv1D)):
            yield _Place(name, module, "weight", clean, pattern, layer)
            continue
        experts: tuple[int | None, ...] = (None,)
        if is_expert_stack(module):
            up, down = stack_parameters(module)
            parameters = [up_name(module), "down_proj"]
            experts = tuple(range(min(len(up), len(down))))
        else:
            parameters = _bare_parameters(module)
        for parameter in parameters:
            target, starred = (f"{path}.{parameter}".lstrip(".") for path in (clean, pattern))
            yield _Place(name, module, parameter, target, starred, layer, experts)


def _bare_parameters(module):
    """2-D and 3-D parameters outside of a layer class that we know: listed, not scored."""
    known = (nn.Embedding, nn.modules.conv._ConvNd, BaseTunerLayer, nn.ParameterDict)
    if isinstance(module, known) or NOT_MAPS.search(type(module).__name__):
        return []
    found = []
    for name, value in module.named_parameters(recurse=False):
        if not NOT_MAPS.search(name) and value.ndim in (2, 3) and min(value.shape) > 1:
            found.append(name)
    return found


class _Status:
    """Why a map is not scored, or that it is."""

    def __init__(self, model):
        self._model = model
        self._inside = set(trunk_of(model).modules())
        self._head = None
        if hasattr(model, "get_output_embeddings"):
            self._head = model.get_output_embeddings()
        self._model_type = getattr(getattr(model, "config", None), "model_type", None)

    def __call__(self, place: _Place) -> str:
        module = place.module
        if module is self._head or module not in self._inside:
            return HEAD
        if self._is_router(place):
            return ROUTER
        if is_expert_stack(module):
            return SCORED
        if not isinstance(module, (nn.Linear, Conv1D)):
            is_matrix = place.parameter == "weight" and module.weight.ndim == 2
            if is_matrix and hasattr(module, "in_features") and hasattr(module, "out_features"):
                return OWN_CLASS
            return UNKNOWN_STACK if "expert" in type(module).__name__.lower() else BARE
        if self._model_type in MAMBA_TYPES and _last(place.module_name) == "out_proj":
            return NO_PEFT
        return SCORED if _is_plain(module) else NOT_PLAIN

    def _is_router(self, place):
        name = f"{place.module_name}.{type(place.module).__name__}"
        if re.search(r"router|indexer", name, re.IGNORECASE):
            return True
        if _last(place.module_name) == "shared_expert_gate":
            return True
        before, gate, _ = f"{place.module_name}.".partition(".gate.")
        return bool(gate) and hasattr(self._model.get_submodule(before), "experts")


def _last(name):
    return name.rsplit(".", 1)[-1]


@torch.no_grad()
def _is_plain(module):
    """Whether a Linear whose class overrides `forward` still returns W z + b."""
    weight = module.weight
    if type(module).forward in (nn.Linear.forward, Conv1D.forward):
        return True
    if not weight.is_floating_point() or weight.is_meta or weight.dtype.itemsize == 1:
        return True  # it cannot be asked: packed, or not here
    z = torch.ones(1, module.in_features, dtype=weight.dtype, device=weight.device)
    try:
        expected = nn.functional.linear(z, weight, module.bias)
        return torch.allclose(module(z), expected, rtol=0.05, atol=1e-3)
    except Exception:  # it takes other arguments, or other shapes
        return False


def _starred(model, name):
    """Clean name, pattern and layer, without wrappers: `("h.3.mlp.fc", "h.*.mlp.fc", 3)`."""
    above, parent, layer = None, model, None
    clean: list[str] = []
    starred: list[str] = []
    for part in name.split(".") if name else []:
        in_list = isinstance(parent, nn.ModuleList)
        if in_list and layer is None:
            layer = int(part)
        if not is_of_wrapper(above, parent, part):
            clean.append(part)
            starred.append("*" if in_list or isinstance(parent, nn.ModuleDict) else part)
        above, parent = parent, parent.get_submodule(part)
    return ".".join(clean), ".".join(starred), layer


def _short_names(patterns):
    """{pattern: its shortest ending that no other pattern shares and that starts with a name}."""
    endings = {pattern: _endings(pattern) for pattern in patterns}
    owners = Counter(ending for several in endings.values() for ending in several)
    short = {}
    for pattern, several in endings.items():
        own = (e for e in several if owners[e] == 1 and not e.startswith("*"))
        short[pattern] = next(own, pattern)
    return short


def _endings(pattern):
    """All endings of a dotted pattern, shortest first."""
    parts = pattern.split(".")
    return [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
