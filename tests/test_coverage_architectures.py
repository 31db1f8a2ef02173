"""For every architecture: what `coverage` says is what an injection into the real model adapts."""

import warnings

import numpy as np
import pytest
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer

import plop_nb as plop
from tests.tiny_models import CANNOT_BUILD, build, model_types

# PEFT adapts neither I-BERT's own quantised layers, nor a model that has no input embeddings.
REFUSED = {"ibert", "pp_formulanet"}


def coverage_of(model, config):
    """(what `coverage` says, or None where PEFT refuses)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return plop.coverage(model, config)
        except ValueError as error:
            assert "PEFT refuses" in str(error)
            return None


def injected(model, config):
    """Names of what PEFT adapts in the model itself; None where it refuses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            adapted = get_peft_model(model, config)
        except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
            return set() if "not found in the base model" in str(error) else None
    names = set()
    for name, layer in adapted.get_base_model().named_modules():
        if isinstance(layer, BaseTunerLayer):
            parameter = getattr(layer, "parameter_name", "weight")
            end = "" if parameter == "weight" else f".{parameter}"
            names.add(name.replace(".base_layer", "") + end)
    return names


def own_placement(model):
    """The config of a placement on three types that may be any."""
    table = plop.module_table(model).query("status == 'scored'")
    types = list(dict.fromkeys(table["type"]))[:3]
    scores = table.assign(sample=0, tokens=1, nfn=np.where(table["type"].isin(types), 0.5, 1.5))
    stack = scores["module"].str.replace(r"\.\d+$", "", regex=True)
    experts = (
        stack.groupby(stack).transform("size").where(scores["module"].str.contains(r"\.\d+$"), 1)
    )
    scores["experts"] = experts.where(~scores["module"].isin(dict(model.named_modules())), 1)
    return plop.Placement.of_types(scores, types).lora_config(model)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted(set(model_types()) - set(CANNOT_BUILD)))
def test_coverage_is_what_an_injection_adapts(model_type):
    model = build(model_type)
    configs = {
        "default": LoraConfig(),
        "all-linear": LoraConfig(target_modules="all-linear"),
    }
    if model_type not in REFUSED:
        configs["own"] = own_placement(model)
    for name, config in configs.items():
        said, done = coverage_of(model, config), injected(build(model_type), config)
        assert (said is None) == (done is None), name
        if said is None:
            continue
        assert set(said.adapted) == done, name
        by_entry = said.table["hit"].sum()
        assert by_entry >= len(done) and (name != "own" or said.missed == []), name
        assert said.types["hit"].sum() == len(done), name
