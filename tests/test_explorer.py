"""The explorer: what its controls choose, that its code does so, and where its errors go."""

import re
import sys
import threading
import time
from dataclasses import replace
from itertools import pairwise

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from peft import get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer

import plop_nb as plop
from plop_nb.palette import tint, type_color
from tests.conftest import TEXTS
from tests.tiny_models import build

CONTROLS = ["domain", "statistic", "limit", "k", "rank", "budget"]
# With and without the model; of either kind of tests one half is left to `make test`.
UNPROVEN_IS_FAST = [
    pytest.param(False, id="without the model"),
    pytest.param(True, id="with the model", marks=pytest.mark.slow),
]
PROVEN_IS_FAST = [
    pytest.param(False, id="without the model", marks=pytest.mark.slow),
    pytest.param(True, id="with the model"),
]


def scores_of(model, lowest=(), seed=0):
    """Made-up scores of a model's maps, those of the types `lowest` below all others."""
    table = (
        plop.module_table(model).query("status == 'scored'").drop(columns=["parameters", "status"])
    )
    low = table["type"].isin(lowest)
    frames = []
    for sample in range(8):
        noise = np.random.default_rng([seed, sample]).uniform(0, 0.2, len(table))
        frames.append(
            table.assign(sample=sample, tokens=3, experts=1, nfn=np.where(low, 0.5, 1.5) + noise)
        )
    return pd.concat(frames, ignore_index=True)


@pytest.fixture
def scores(tiny_llama, byte_tokenizer):
    texts = [*TEXTS, *(f"{text}, again" for text in TEXTS)]
    return plop.nfn_scores(tiny_llama, texts, byte_tokenizer, progress=False)


def adapted(model, text):
    """(modules, trainable parameters) by PEFT's own count, after running the code as shown."""
    names = {}
    exec(text, names)
    lora = get_peft_model(model, names["config"])
    found = {
        n.removeprefix("base_model.model.")
        for n, m in lora.named_modules()
        if isinstance(m, BaseTunerLayer)
    }
    trainable = lora.get_nb_trainable_parameters()[0]
    lora.unload()
    return found, trainable


def assert_true(explorer, model):
    found, trainable = adapted(model, explorer.config_text)
    assert (
        explorer.config.value == explorer.config_text
        and f"r={explorer.rank.value}," in explorer.config_text
    )
    assert found == set(explorer.placement.modules)
    assert trainable == explorer.parameters and f"{trainable:,} trainable" in explorer.summary.value


@pytest.mark.slow
@pytest.mark.parametrize("proven", UNPROVEN_IS_FAST)
def test_every_control_changes_placement_count_config_and_picture(tiny_llama, scores, proven):
    other = scores_of(tiny_llama, ["q_proj", "gate_proj"])
    explorer = plop.explore({"one": scores, "two": other}, tiny_llama if proven else None, k=4, r=8)
    assert explorer.placement.types == plop.place(scores, k=4).types
    seen = {"config": [], "picture": [], "parameters": []}
    for control, value in [
        (explorer.k, 5), (explorer.rank, 32), (explorer.domain, "two"),
        (explorer.statistic, "modules"), (explorer.statistic, "layers"),
        (explorer.statistic, "types"), (explorer.limit, "parameter budget"),
        (explorer.budget, 11_000),
    ]:  # fmt: skip
        control.value = value
        assert explorer.status.value == ""
        assert_true(explorer, tiny_llama)
        seen["config"].append(explorer.config_text)
        seen["picture"].append(explorer.picture.value)
        seen["parameters"].append(explorer.parameters)
    assert all(picture.startswith("<svg") for picture in seen["picture"])
    changed = {name: [a != b for a, b in pairwise(values)] for name, values in seen.items()}
    rank, limit = 0, 5  # the second control and the last but one
    assert not changed["config"].pop(limit) and all(
        changed["config"]
    )  # a budget starts as what the k types cost
    assert (
        not changed["picture"].pop(limit)
        and not changed["picture"].pop(rank)
        and all(changed["picture"])
    )
    assert seen["parameters"][1] == 4 * seen["parameters"][0] and seen["parameters"][-1] <= 11_000


def test_placements_are_the_librarys(tiny_llama, scores):
    explorer = plop.explore(scores, k=2, r=4)
    assert explorer.placement.modules == plop.place(scores, k=2).modules
    budget = explorer.parameters
    explorer.limit.value = "parameter budget"
    explorer.budget.value = budget - 1
    assert explorer.placement.types == plop.place(scores, parameters=budget - 1, r=4).types
    explorer.statistic.value = "modules"
    order = plop.by_module(scores)["module"].tolist()
    assert set(explorer.placement.modules) == set(order[: len(explorer.placement.modules)])
    assert explorer.parameters <= budget - 1
    assert {"k types": explorer.k.disabled, "budget": explorer.budget.disabled} == {
        "k types": True,
        "budget": False,
    }


@pytest.mark.slow
def test_budget_goes_back_while_types_are_the_limit(scores):
    explorer = plop.explore(scores, k=2)
    before = explorer.budget.value, explorer.parameters, explorer.config_text
    explorer.budget.value = 1
    assert (explorer.budget.value, explorer.parameters, explorer.config_text) == before
    explorer.limit.value = "parameter budget"
    explorer.k.value = 1
    assert (explorer.budget.value, explorer.parameters, explorer.config_text) == before
    explorer.limit.value = "k types"
    assert (
        explorer.budget.value == explorer.parameters < before[1]
        and len(explorer.placement.types) == 1
    )


@pytest.mark.slow
@pytest.mark.parametrize("proven", PROVEN_IS_FAST)
def test_stacked_experts_are_counted_and_named_as_peft_adapts_them(proven):
    model = build("qwen3_moe")
    batch = {
        "input_ids": (ids := torch.arange(2, 42).reshape(4, 10)),
        "attention_mask": ids * 0 + 1,
    }
    explorer = plop.explore(
        plop.nfn_scores(model, [batch], progress=False), model if proven else None, r=2
    )
    for k in range(1, explorer.k.max + 1):
        explorer.k.value = k
        assert explorer.status.value == ""
        assert adapted(model, explorer.config_text)[1] == explorer.parameters
    explorer.statistic.value = "modules"
    assert adapted(model, explorer.config_text)[1] == explorer.parameters


def test_config_is_the_placements_own_with_a_model(tiny_llama, scores):
    explorer = plop.explore(scores, tiny_llama, k=2)
    names = {}
    exec(explorer.config_text, names)
    config = explorer.placement.lora_config(tiny_llama, r=16)
    assert names["config"].to_dict() == config.to_dict()


@pytest.mark.parametrize("proven", [False, True])
def test_alpha_goes_into_the_config_at_every_rank(tiny_llama, scores, proven):
    explorer = plop.explore(scores, tiny_llama if proven else None, k=2, r=16, lora_alpha=32)
    for rank in (16, 4):
        explorer.rank.value = rank
        names = {}
        exec(explorer.config_text, names)
        assert (names["config"].r, names["config"].lora_alpha) == (rank, 32)
    assert "lora_alpha" not in plop.explore(scores, k=2).config_text


@pytest.mark.slow
def test_model_may_get_adapters_below_its_explorer(tiny_llama, scores):
    explorer = plop.explore(scores, tiny_llama, k=2)
    lora = get_peft_model(tiny_llama, explorer.placement.lora_config(tiny_llama))
    explorer.k.value = 4
    assert explorer.status.value == ""
    assert_true(explorer, lora.unload())


@pytest.mark.slow
def test_names_are_escaped_and_anchored(tiny_llama):
    """`\\d+` only where all layers are meant; a module of that last name elsewhere is not hit."""
    scores = scores_of(tiny_llama, ["up_proj"])
    explorer = plop.explore(scores, k=1)
    assert r'r"model\.layers\.\d+\.mlp\.up_proj"' in explorer.config_text
    explorer.statistic.value = "layers"
    assert (
        explorer.placement is None and "allow more" in explorer.status.value
    )  # one type costs less than one layer
    explorer.k.value = explorer.k.max
    explorer.statistic.value = "modules"
    assert (
        explorer.parameters
        == sum(scores.drop_duplicates("module")[["in_features", "out_features"]].sum()) * 16
    )


@pytest.mark.slow
def test_error_in_a_callback_is_shown_and_goes_away(scores, monkeypatch):
    explorer = plop.explore(scores)
    explorer.limit.value = "parameter budget"
    explorer.budget.value = 1
    assert (
        "ValueError: parameters=1 is less than" in explorer.status.value
        and "color: #c00" in explorer.status.value
    )
    assert (
        explorer.placement is explorer.config_text is explorer.parameters is None
        and explorer.config.value == ""
    )
    explorer.budget.value = 10_000
    assert (
        explorer.status.value == ""
        and explorer.placement
        and explorer.config.value == explorer.config_text
    )

    def broken(*args, **kwargs):
        raise RuntimeError("a <bug>")

    monkeypatch.setattr("plop_nb.placement.by_type", broken)
    explorer.rank.value = 8
    assert "RuntimeError: a &lt;bug&gt;" in explorer.status.value
    monkeypatch.undo()
    explorer.rank.value = 4
    assert explorer.status.value == ""


@pytest.mark.slow
def test_callbacks_in_two_threads_take_turns(scores, monkeypatch):
    """As JupyterLab runs them: the last change wins, whatever was still being drawn."""
    explorer = plop.explore(scores)
    explorer.limit.value = "parameter budget"
    drawing = threading.Event()

    def slow(*args):
        drawing.set()
        time.sleep(0.3)
        return ""

    monkeypatch.setattr(sys.modules["plop_nb.explorer"], "picture", slow)
    thread = threading.Thread(target=setattr, args=(explorer.rank, "value", 8))
    thread.start()
    drawing.wait(10)
    explorer.budget.value = 1
    thread.join()
    assert "parameters=1 is less than" in explorer.status.value and explorer.placement is None


def test_every_control_is_a_standard_widget_with_a_description(scores):
    explorer = plop.explore({"a": scores, "b": scores})
    shown, queue = [], [explorer]
    while queue:
        widget = queue.pop()
        queue += getattr(widget, "children", ())
        shown.append(widget)
    assert all(
        widget._model_module.startswith("@jupyter-widgets/") for widget in shown
    )  # no extension of our own
    inputs = [w for w in shown if not isinstance(w, (widgets.Box, widgets.HTML, widgets.Image))]
    assert {id(w) for w in inputs} == {
        id(getattr(explorer, name)) for name in [*CONTROLS, "config"]
    }
    assert all(w.description for w in inputs)


def test_one_domain_hides_its_control(scores):
    assert plop.explore(scores).domain.layout.display == "none"
    assert plop.explore({"a": scores, "b": scores}).domain.layout.display == "flex"


def test_model_without_layers(scores):
    flat = scores.assign(layer=pd.array([None] * len(scores), dtype="Int64"))
    explorer = plop.explore(flat)
    assert list(explorer.statistic.options) == ["types", "modules"] and explorer.picture.value


def test_rank_of_ones_own_is_an_option(scores):
    assert plop.explore(scores, r=24).rank.options == (1, 2, 4, 8, 16, 24, 32, 64, 128, 256)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"scores": [1, 2]}, TypeError, r"scores=\[1, 2\], expected the frame"),
        ({"scores": {}}, TypeError, r"scores=\{\}, expected the frame"),
        ({"scores": pd.DataFrame({"type": ["a"]})}, ValueError, "scores lacks the columns"),
        ({"k": 0}, ValueError, "k=0, expected an integer from 1 to 7"),
        ({"k": 8}, ValueError, "k=8, expected an integer from 1 to 7"),
        ({"r": 0}, ValueError, "r=0, expected an integer of at least 1"),
        ({"lora_alpha": 0}, ValueError, "lora_alpha=0, expected an integer of at least 1"),
        ({"r": 2.5}, ValueError, "r=2.5, expected an integer of at least 1"),
        ({"model": "gpt2"}, TypeError, "model is str, expected the torch.nn.Module"),
        ({"model": torch.nn.Linear(2, 2)}, ValueError, "this placement is for another model"),
    ],
)
def test_bad_input(scores, arguments, error, message):
    with pytest.raises(error, match=message):
        plop.explore(**{"scores": scores, **arguments})


def test_scores_without_layers_are_refused(scores):
    with pytest.raises(ValueError, match=r"scores lacks the columns \['layer'\]"):
        plop.explore(scores.drop(columns="layer"))


def test_confidence_that_is_not_known_is_not_shown(scores):
    explorer = plop.explore(scores[scores["sample"] == 0])
    assert "nan" not in explorer.summary.value and "too few texts (1)" in explorer.summary.value


def test_config_text_is_code_whatever_the_names(scores):
    """A quotation mark would end the string, and run the rest."""
    odd = scores.assign(module=scores["module"].str.replace("self_attn", 'self"+"_attn'))
    names = {}
    exec(plop.explore(odd, k=7).config_text, names)
    pattern = re.compile(names["config"].target_modules)
    assert all(pattern.fullmatch(name) for name in odd["module"])


def test_budget_needs_shapes(scores):
    with pytest.raises(ValueError, match="lacks the columns .*experts"):
        plop.explore(scores.drop(columns="experts"))


def outlined_cells(ax):
    """How many cells of a heat map are outlined."""
    return len(ax.collections[1].get_paths())


def test_heat_map_outlines_the_chosen_modules(scores):
    placement = plop.place(scores, k=2)
    count = len(placement.modules)
    by_name = plop.plot_heatmap(scores, chosen=placement.modules, ax=Figure().subplots())
    assert outlined_cells(by_name) == count
    by_placement = plop.plot_heatmap(scores, placement=placement, ax=Figure().subplots())
    assert outlined_cells(by_placement) == count
    with pytest.raises(ValueError, match="placement and chosen both say what to outline"):
        plop.plot_heatmap(scores, placement=placement, chosen=placement.modules)


def test_bars_of_a_placement_are_coloured_and_named(scores):
    highest = plop.by_type(scores)["type"].tolist()[-2:]
    placement = plop.Placement.of_types(scores, highest)
    ax = plop.plot_types(scores, placement=placement, ax=Figure().subplots())
    colors = [patch.get_facecolor() for patch in ax.patches]
    full = [type_color(name) for name in plop.by_type(scores)["type"]]
    assert colors[-2:] == [to_rgba(color) for color in full[-2:]]
    assert colors[:-2] == [to_rgba(tint(color)) for color in full[:-2]]
    weights = [label.get_weight() for label in ax.get_yticklabels()]
    assert weights == ["normal"] * (len(full) - 2) + ["bold"] * 2
    assert [text.get_weight() for text in ax.texts] == weights
    assert "full bars get adapters" in ax.get_xlabel()
    assert ax.get_title(loc="left") == f"Adapters go on {', '.join(placement.types)}"
    other = replace(placement, types=["no_proj"])
    with pytest.raises(ValueError, match="placement is on type 'no_proj', which scores lacks"):
        plop.plot_types(scores, placement=other, ax=Figure().subplots())


def test_plots_draw_on_the_current_axes_or_make_their_own(scores):
    plt.close("all")
    try:
        own = plop.plot_types(scores)
        assert own.figure.get_figwidth() == 7
        plt.close("all")
        _, (left, right) = plt.subplots(1, 2)
        assert plop.plot_types(scores) is right
        plt.sca(left)
        assert plop.plot_heatmap(scores) is left
        given = Figure().subplots()
        assert plop.plot_types(scores, ax=given) is given
    finally:
        plt.close("all")


def test_modules_outside_of_layers_are_no_obstacle_to_choosing_layers(scores):
    names = scores["module"].unique()
    outside = scores[scores["module"] == names[0]]
    outside = outside.assign(module="projector", type="projector", layer=pd.NA)
    explorer = plop.explore(pd.concat([scores, outside], ignore_index=True), k=7, r=2)
    explorer.statistic.value = "layers"
    assert explorer.placement is not None
    assert "projector" not in explorer.placement.modules


def test_the_heat_map_names_its_rows_and_its_colours(scores):
    """Beside the bars with the same names; where names are too long, the bars' must do."""
    drawn = plop.explore(scores, k=3).picture.value
    assert drawn.count(">v_proj<") == drawn.count(">down_proj<") == 2
    assert ">NFN<" in drawn
    long = scores.assign(type=scores["type"].str.replace("v_proj", "v_projection_" + 25 * "x"))
    assert plop.explore(long, k=3).picture.value.count(f">v_projection_{25 * 'x'}<") == 1
