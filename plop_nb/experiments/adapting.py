"""The model that is trained: a copy with adapters on a placement, or of any `LoraConfig`."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, initialize_lora_eva_weights
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import cast_adapter_dtype
from torch import nn

from plop_nb.experiments.evaluation import UNCOUNTED
from plop_nb.experiments.generation import padded
from plop_nb.experiments.isolation import shared_copy
from plop_nb.experiments.trainers import adapters
from plop_nb.maps import linear_maps
from plop_nb.placement import Placement
from plop_nb.targets import adapted_targets

Row = dict[str, list[int]]
RANK = 16  # where neither an argument nor a config says
ADAPTER = "default"  # the name that PEFT gives it
FROM_DATA = ("corda", "lora_ga")  # starts that need more than `finetune` gives; EVA it can make
LEAVES_WEIGHTS = (True, False, "gaussian", "eva", "orthogonal")  # starts beside the base weights
MOST_BATCHES = 500  # for the directions of EVA to settle; PEFT itself would never give up
OF_CAUSAL_MODELS = (None, "CAUSAL_LM")


def rank_and_scale(
    placement: Placement | LoraConfig, r: int | None, lora_alpha: float | None
) -> tuple[Any, Any]:
    """The rank and the scale of adapters, of a `LoraConfig` its own; None: twice the rank.

    Raises
    ------
    ValueError
        An argument says again what a `LoraConfig` says.
    """
    if not isinstance(placement, LoraConfig):
        return RANK if r is None else r, lora_alpha
    for name, given in {"r": r, "lora_alpha": lora_alpha}.items():
        if given is not None:
            own = getattr(placement, name)
            raise ValueError(
                f"{name}={given!r}, but this placement is a LoraConfig, which has its own "
                f"{name}={own!r}: leave the argument out, or set it there"
            )
    return placement.r, placement.lora_alpha


def adapter_config(
    model: nn.Module, placement: Placement | LoraConfig, *, r: int, lora_alpha: float
) -> LoraConfig:
    """The `LoraConfig` of a placement, or a copy of one's own.

    Raises
    ------
    TypeError
        `placement` is neither.
    ValueError
        It hits nothing, or asks for what `finetune` does not do.
    """
    if not isinstance(placement, LoraConfig):
        return adapters(model, placement, r=r, lora_alpha=lora_alpha)
    config = copy.deepcopy(placement)
    config.inference_mode = False  # PEFT sets it in what it has saved
    if config.task_type not in OF_CAUSAL_MODELS:
        raise ValueError(
            f"placement.task_type={config.task_type!r}, expected 'CAUSAL_LM' or None: finetune "
            f"trains causal language models"
        )
    start = config.init_lora_weights
    if start in FROM_DATA:
        raise ValueError(
            f"placement.init_lora_weights={start!r} starts from data that finetune does not "
            f"gather: 'eva' does, or take one that needs none, such as True"
        )
    if start == "eva" and config.target_parameters:
        raise ValueError(
            f"placement.target_parameters={config.target_parameters!r:.80} cannot start with EVA: "
            f"PEFT has it for modules only, so leave them out, or take init_lora_weights=True"
        )
    if not adapted_targets(model, config):
        raise ValueError(
            f"placement=LoraConfig(target_modules={config.target_modules!r:.80}) hits nothing in "
            f"{type(model).__name__}: see plop.module_table(model) for the names"
        )
    return config


def adapted_copy(
    model: nn.Module,
    config: LoraConfig,
    rows: Sequence[Row],
    *,
    pad: int,
    batch_size: int,
    seed: int,
) -> PeftModel:
    """A frozen copy of a model with adapters, ready to be trained; `model` stays as it is.

    Parameters
    ----------
    model : torch.nn.Module
    config : LoraConfig
        From `adapter_config`; it becomes the adapters' own.
    rows : sequence of dict
        Training examples as in `evaluation.encoded`: EVA reads them.
    pad : int
        The token to pad with.
    batch_size : int
        Examples at a time for EVA, or more where they have too few tokens.
    seed : int
        Of the order in which EVA reads the examples; the other starts draw from torch's generator.

    Raises
    ------
    ValueError
        EVA has too few tokens, or too few features for its rank, or does not settle.
    """
    if config.init_lora_weights != "eva":
        return get_peft_model(_base(model, config), config)
    lora = get_peft_model(_base(model, config), config, low_cpu_mem_usage=True)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    _start_with_eva(lora, [rows[number] for number in order], pad, batch_size)
    return lora


def _base(model: nn.Module, config: LoraConfig) -> nn.Module:
    """A frozen copy on the same weights; on its own ones, where adapters may change them."""
    leaves = config.init_lora_weights in LEAVES_WEIGHTS and config.kasa_config is None
    if leaves and config.bias == "none":
        return shared_copy(model)
    return copy.deepcopy(model).requires_grad_(False)


def _start_with_eva(lora: PeftModel, rows: Sequence[Row], pad: int, batch_size: int) -> None:
    """Put A on the main directions of the inputs, as PEFT does it; the ranks of modules change."""
    passes = 0

    def forward(model: nn.Module, inputs: dict[str, torch.Tensor]) -> None:
        nonlocal passes
        passes += 1
        if passes > MOST_BATCHES:
            raise ValueError(
                f"placement: the directions of EVA have not settled after {MOST_BATCHES} batches: "
                f"lower tau or rho in its EvaConfig"
            )
        model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])

    initialize_lora_eva_weights(
        lora,
        _eva_batches(lora, rows, pad, batch_size),
        forward_fn=forward,
        gather_distributed_inputs=False,  # all processes read the same examples
        show_progress_bar=False,
    )
    cast_adapter_dtype(lora, ADAPTER)  # as get_peft_model does: float32, whatever the base is


def _eva_batches(
    lora: PeftModel, rows: Sequence[Row], pad: int, batch_size: int
) -> list[dict[str, torch.Tensor]]:
    """Batches of training examples with tokens enough for EVA's randomised SVD.

    It takes twice as many directions as the largest rank, from the tokens of one batch.
    """
    config = lora.peft_config[ADAPTER]
    layers = [module for module in lora.modules() if isinstance(module, LoraLayer)]
    rank = max(layer.r[ADAPTER] for layer in layers)
    directions = 2 * round(rank * config.eva_config.rho)
    fewest = min(layer.in_features for layer in layers)
    if directions > fewest:
        raise ValueError(
            f"placement.eva_config.rho={config.eva_config.rho:g} at rank {rank} lets PEFT look for "
            f"{directions} directions in inputs of {fewest} features: lower rho or r"
        )
    batches = []
    for batch in _filled(rows, batch_size, directions, config.eva_config):
        ids = [row["input_ids"] for row in batch]
        batches.append(
            {
                "input_ids": padded(ids, pad),
                "attention_mask": padded([[1] * len(row) for row in ids], 0),
                "labels": padded([row["labels"] for row in batch], UNCOUNTED),
            }
        )
    if not batches:
        raise ValueError(
            f"placement.eva_config looks for {directions} directions, but the training examples "
            f"have fewer tokens that count: lower rho or r, or set use_label_mask=False"
        )
    return batches


def _filled(
    rows: Sequence[Row], batch_size: int, tokens: int, settings: Any
) -> Iterator[list[Row]]:
    """The rows in batches of so many, or more until there are tokens enough; the rest is left."""
    fewest = min(batch_size, len(rows))
    batch: list[Row] = []
    counted = 0
    for row in rows:
        batch.append(row)
        masked = row["labels"].count(settings.label_mask_value) if settings.use_label_mask else 0
        counted += len(row["labels"]) - masked
        if len(batch) >= fewest and counted >= tokens:
            yield batch
            batch, counted = [], 0


@dataclass(frozen=True)
class Hit:
    """What adapters are on.

    Attributes
    ----------
    types : list of str
        In the order of the model; what is no linear map goes by the last part of its name.
    modules : int
        Modules, and stacks of experts.
    parameters : int
        That are trained.
    """

    types: list[str]
    modules: int
    parameters: int


def hit(lora: PeftModel, model: nn.Module) -> Hit:
    """What the adapters of a copy of `model` are on."""
    types = {linear.target: linear.type for linear in linear_maps(model)}
    names = []
    for name, layer in lora.get_base_model().named_modules():
        if isinstance(layer, LoraLayer):
            parameter = getattr(layer, "parameter_name", "weight")
            target = name.replace(".base_layer", "").replace("_orig_mod.", "")
            names.append(target if parameter == "weight" else f"{target}.{parameter}")
    found = [types.get(name, name.rsplit(".", 1)[-1]) for name in names]
    in_order = [kind for kind in dict.fromkeys(types.values()) if kind in found]
    others = [kind for kind in dict.fromkeys(found) if kind not in in_order]
    return Hit(in_order + others, len(names), lora.get_nb_trainable_parameters()[0])
