"""Pictures of growing features, and the record of what finetuning does to NFN."""

import importlib
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex

import plop_nb as plop
from plop_nb import experiments as ex
from plop_nb import growth_plots as plots
from plop_nb.experiments import growth
from plop_nb.palette import type_color
from tests.test_training import tokenizer as tokenizer  # a fixture

STEPS = np.arange(5)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def runs():
    """Two networks of each of two widths; every number is what its place says."""
    rows = []
    for width in (64, 256):
        for seed in (0, 1):
            run = pd.DataFrame({"step": STEPS, "growth": (1 + seed) * STEPS**2 / width})
            run = run.assign(moved=STEPS * (1 + seed), nfn=1 + STEPS * (1 + seed), baseline=1.0)
            rows.append(run.assign(width=width, seed=seed))
    return pd.concat(rows, ignore_index=True)


def theory():
    return pd.Series(STEPS**2 / 200, index=STEPS)


def one_run():
    squares = STEPS**2.0
    columns = {"step": STEPS, "growth": squares + 1, "closed": squares + 1, "pure": squares}
    return pd.DataFrame(columns)


def by_width():
    columns = {"mean": [4.0, 2.0], "low": [3.0, 1.5], "high": [6.0, 3.0], "predicted": [5.0, 2.5]}
    return pd.DataFrame(columns, index=[64, 256])


def multiples():
    columns = {"relu": [1.0, 0.5], "gelu": [1.0, 0.7], "attention q": [1.0, 0.9]}
    return pd.DataFrame(columns, index=[1, 40])


def intervals():
    columns = {"mean": [0.5, -0.5], "low": [0.2, -1.0], "high": [0.9, 0.1]}
    return pd.DataFrame(columns, index=["one", "other"])


def maps():
    rows = []
    for panel in ("full", "lora"):
        for layer in range(3):
            rows.append((panel, "v_proj", 0.5 + layer, layer - 1.0))
            rows.append((panel, "k_proj", 1.5, 2.0))
    return pd.DataFrame(rows, columns=["panel", "type", "before", "change"])


# What is drawn


def heights(band, step):
    """The lower and the upper edge of a filled band at this step."""
    corners = band.get_paths()[0].vertices
    at_step = corners[np.isclose(corners[:, 0], step), 1]
    return at_step.min(), at_step.max()


def test_bands_of_wider_networks_are_darker_and_the_theory_is_dashed():
    """Of growth 16 / n and 32 / n at step 4: nearly the whole range."""
    ax = plots.plot_growth(runs(), theory(), title="A finding")
    narrow, wide = ax.collections
    assert narrow.get_facecolor()[0, 0] > wide.get_facecolor()[0, 0]
    assert heights(wide, 4) == pytest.approx((16.4 / 256, 31.6 / 256))
    [dashed] = ax.lines
    assert dashed.get_ydata() == pytest.approx(theory()) and dashed.get_ls() == "--"
    said = {text.get_text() for text in ax.texts}
    assert said == {"64 neurons", "256 neurons", "theory, n → ∞"}
    assert ax.get_title(loc="left") == "A finding"


def test_a_width_is_named_at_the_upper_edge_of_its_band():
    ax = plots.plot_growth(runs(), theory())
    [label] = [text for text in ax.texts if text.get_text() == "64 neurons"]
    assert label.xy == (4, pytest.approx(31.6 / 64))


def test_growth_below_zero_is_shown():
    table = runs()
    ax = plots.plot_growth(table.assign(growth=table["growth"] - 0.1), theory())
    assert ax.get_ylim()[0] < -0.1


def test_the_closed_form_goes_through_the_dots():
    dots, line, pure = plots.plot_closed_form(one_run()).lines
    assert dots.get_marker() == "o" and line.get_ydata() == pytest.approx(dots.get_ydata())
    assert pure.get_ydata() == pytest.approx(line.get_ydata() - 1)


def test_intervals_of_widths_are_as_given():
    ax = plots.plot_by_width(by_width(), what="deviation (%)")
    [bars] = ax.containers
    segments = bars.lines[2][0].get_segments()
    assert [segment[:, 1].tolist() for segment in segments] == [[3, 6], [1.5, 3]]
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["64", "256"]
    assert ax.get_ylabel() == "deviation (%)"


def test_lines_of_widths_have_their_own_style_and_name():
    table = pd.DataFrame({"muP": [1.0, 1.0], "constant": [1.0, 4.0]}, index=[64, 256])
    ax = plots.plot_by_width(table, what="change")
    assert [text.get_text() for text in ax.texts] == ["muP", "constant"]
    assert len({line.get_ls() for line in ax.lines}) == 2


def test_the_band_holds_the_networks():
    """Of NFN 1 + t and 1 + 2 t at step t: the mean, and nearly the whole range."""
    run = runs().query("width == 64")
    ax = plots.plot_alignment(run, theory())
    assert heights(ax.collections[0], 4) == pytest.approx((5 + 0.025 * 4, 9 - 0.025 * 4))
    assert ax.lines[0].get_ydata() == pytest.approx(1 + 1.5 * STEPS)
    assert ax.lines[1].get_ydata() == pytest.approx(np.ones(5))
    assert ax.lines[2].get_ydata() == pytest.approx(theory())


def test_where_a_target_is_met_is_marked():
    run = runs().query("width == 64")
    far, near = plots.plot_knobs({"far": run, "near": run}, run, met={"near": 3})
    assert len(far.lines) == 2 and list(near.lines[2].get_xdata()) == [3, 3]


def test_a_knob_is_drawn_squared_over_the_base():
    """A way of slope 1 has a square of slope 2, which is what the titles speak of."""
    run = runs().query("width == 64")
    axes = plots.plot_knobs({"slower": run.assign(moved=run["moved"] / 2), "same": run}, run)
    assert [ax.get_title(loc="left") for ax in axes] == ["slower", "same"]
    slower, base = axes[0].lines
    assert slower.get_xdata().tolist() == [1, 2, 3, 4]
    assert base.get_ydata() == pytest.approx(2.5 * STEPS[1:] ** 2)  # the mean of 1 and of 4
    assert slower.get_ydata() == pytest.approx(base.get_ydata() / 4)
    assert axes[1].lines[0].get_ydata() == pytest.approx(base.get_ydata())


def test_panels_that_are_left_over_are_empty():
    run = runs().query("width == 64")
    axes = plots.plot_knobs({f"knob {number}": run for number in range(5)}, run)
    assert len(axes) == 5
    others = [ax for ax in axes[0].figure.axes if ax not in axes]
    assert len(others) == 3 and not any(ax.axison for ax in others)


def test_maps_of_the_attention_have_their_colours():
    ax = plots.plot_multiples(multiples())
    relu, gelu, query = ax.lines
    assert to_hex(query.get_color()) == type_color("q_proj").lower()
    assert relu.get_color() == gelu.get_color() and relu.get_ls() != gelu.get_ls()
    assert [text.get_text() for text in ax.texts] == ["relu", "gelu", "attention q"]


def test_rows_of_intervals_are_named_from_the_top():
    ax = plots.plot_intervals(intervals(), what="difference")
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["one", "other"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    assert list(ax.lines[0].get_xdata()) == [0.2, 0.9]
    assert list(ax.lines[3].get_xdata()) == [-0.5]


def test_rows_of_intervals_may_have_colours():
    ax = plots.plot_intervals(intervals().assign(color=["#112233", "#445566"]), what="difference")
    assert [ax.lines[place].get_color() for place in (1, 3)] == ["#112233", "#445566"]


def test_types_are_large_dots_at_their_means():
    axes = plots.plot_changes(maps(), ["lora", "full"], title="Changes")
    assert [ax.get_title(loc="left") for ax in axes] == ["lora", "full"]
    assert axes[0].figure.get_suptitle() == "Changes"
    small, large = axes[0].collections[0], axes[0].collections[3]
    assert np.asarray(small.get_offsets()).tolist() == [[0.5, -1], [1.5, 0], [2.5, 1]]
    assert np.asarray(large.get_offsets()).tolist() == [[1.5, 0]]
    assert to_hex(large.get_facecolor()[0]) == type_color("v_proj").lower()
    assert [text.get_text() for text in axes[0].texts] == ["v", "k"]
    [legend] = axes[0].figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["v_proj", "k_proj"]


def test_larger_changes_are_triangles_at_the_edge():
    table = maps().assign(change=[30.0, 1.0, -40.0, 1.0, 2.0, 1.0] * 2)
    [ax, other] = plots.plot_changes(table, ["full", "lora"], limit=10)
    inside, above, below, mean = ax.collections[:4]
    assert np.asarray(inside.get_offsets()).tolist() == [[2.5, 2]]
    assert np.asarray(above.get_offsets()).tolist() == [[0.5, 10]]
    assert np.asarray(below.get_offsets()).tolist() == [[1.5, -10]]
    assert np.asarray(mean.get_offsets())[0] == pytest.approx([1.5, -8 / 3])  # of all three
    [alone] = plots.plot_changes(table, ["full"])
    assert np.asarray(alone.collections[0].get_offsets())[:, 1].tolist() == [30, -40, 2]


def test_runs_of_growth_fit():
    run = growth(32, 5, seeds=2).assign(width=32)
    run["closed"] = run["pure"] = run["growth"]
    plots.plot_growth(run, theory())
    plots.plot_closed_form(run[run["seed"] == 0])
    plots.plot_alignment(run, theory())
    [ax] = plots.plot_knobs({"none": run}, run)
    assert ax.lines[0].get_ydata() == pytest.approx(ax.lines[1].get_ydata())


# What is refused, and where it is drawn

PICTURES = {
    "plot_growth": (runs, {"theory": theory()}),
    "plot_closed_form": (one_run, {}),
    "plot_by_width": (by_width, {"what": "a"}),
    "plot_alignment": (runs, {"theory": theory()}),
    "plot_multiples": (multiples, {}),
    "plot_intervals": (intervals, {"what": "a"}),
}


@pytest.mark.parametrize("name", PICTURES)
def test_axes_are_used_when_given(name):
    _, (left, right) = plt.subplots(1, 2)
    draw, (table, options) = getattr(plots, name), PICTURES[name]
    assert draw(table(), **options, ax=left) is left and not right.has_data()
    assert draw(table(), **options).figure is not left.figure


@pytest.mark.parametrize("name", PICTURES)
def test_empty_tables_are_refused(name):
    table, options = PICTURES[name]
    with pytest.raises(ValueError, match="is empty"):
        getattr(plots, name)(table().head(0), **options)
    assert not plt.get_fignums()


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.plot_growth(runs().drop(columns="seed"), theory()), r"\['seed'\]"),
        (lambda: plots.plot_closed_form(one_run().drop(columns="pure")), r"\['pure'\]"),
        (lambda: plots.plot_knobs({}, runs()), "runs is empty"),
        (lambda: plots.plot_knobs({"a": runs()}, runs().drop(columns="moved")), r"\['moved'\]"),
        (lambda: plots.plot_changes(maps(), ["full", "none"]), r"no rows for \['none'\]"),
        (lambda: plots.plot_changes(maps(), []), r"panels=\[\]"),
        (lambda: plots.plot_changes(maps().drop(columns="type"), ["full"]), r"\['type'\]"),
    ],
)
def test_what_cannot_be_drawn_is_named(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
    assert not plt.get_fignums()


# The record of notebook 01b


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "notebooks" / "tools")
    return importlib.import_module("record_growth")


def toy(recorder, monkeypatch):
    """Two tasks of a few examples in place of the real ones."""

    def load(name, *, train, validation, test, seed=0):
        first = 3 if name == "spelling" else 0
        numbers = range(first + 10 * seed, first + 10 * seed + max(train, test))
        examples = [{"prompt": f"{n}+2=", "completion": f" {n + 2}"} for n in numbers]
        return ex.Task(name, examples[:train], examples[:validation], examples[:test], new_tokens=2)

    monkeypatch.setattr(recorder.ex, "load_task", load)
    monkeypatch.setattr(recorder, "TEXTS", 3)
    monkeypatch.setattr(recorder, "SEEDS", [0])


@pytest.mark.slow
def test_every_run_scores_both_tasks(recorder, monkeypatch, tiny_llama, tokenizer):
    toy(recorder, monkeypatch)
    weights = {name: value.clone() for name, value in tiny_llama.state_dict().items()}
    table = recorder.recorded(tiny_llama, tokenizer, 2)
    scored = plop.module_table(tiny_llama).query("status == 'scored'")
    sizes = table.groupby(["method", "seed", "trained", "scored"]).size()
    assert len(sizes) == 2 * 2 * 2 and set(sizes) == {len(scored)}
    # what was before does not depend on the run, and is what the package finds
    assert (table.groupby(["scored", "type", "layer"])["before"].nunique() == 1).all()
    examples = recorder.ex.load_task("short_sums", train=1, validation=1, test=3).test
    texts = [example["prompt"] + example["completion"] for example in examples]
    means = plop.nfn_scores(tiny_llama, texts, tokenizer, progress=False)
    means = means.groupby(["type", "layer"])["nfn"].mean()
    own = table.query("scored == 'short_sums' and method == 'full' and trained == 'spelling'")
    pd.testing.assert_series_equal(
        own.set_index(["type", "layer"])["before"].sort_index(),
        means.sort_index(),
        check_names=False,
        rtol=1e-4,
    )
    assert (table["after"] != table["before"]).any()
    assert all(torch.equal(value, weights[name]) for name, value in tiny_llama.state_dict().items())


def test_adapters_end_up_in_the_weights(recorder, tiny_llama):
    """As many maps as before, each moved by a matrix of the adapters' rank at most."""
    rows = [{"input_ids": [1, 2, 3 + n], "labels": [-100, 2, 3 + n]} for n in range(8)]
    before = dict(plop.module_table(tiny_llama)[["module", "type"]].itertuples(index=False))
    recorder.RATES["lora"], rate = 1e-2, recorder.RATES["lora"]
    try:
        trained = recorder.finetuned(tiny_llama, rows, 0, method="lora", seed=0)
    finally:
        recorder.RATES["lora"] = rate
    assert dict(plop.module_table(trained)[["module", "type"]].itertuples(index=False)) == before
    name = next(name for name in before if name.endswith("q_proj"))
    moved = trained.get_submodule(name).weight - tiny_llama.get_submodule(name).weight
    assert moved.abs().max() > 0
    assert torch.linalg.matrix_rank(moved.double(), rtol=1e-4) <= recorder.RANK
    assert not trained.training


def test_training_lowers_the_loss_of_its_batch(recorder, tiny_llama):
    rows = [{"input_ids": [1, 2, 3, 4], "labels": [-100, 2, 3, 4]}] * 40
    batch = recorder.batch_of(rows[:1], 0)
    frozen = tiny_llama.requires_grad_(False)  # as it may have been loaded
    trained = recorder.finetuned(frozen, rows, 0, method="full", seed=0)
    assert trained(**batch).loss < tiny_llama(**batch).loss


def test_padding_does_not_count(recorder):
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8], "labels": [8]}]
    batch = recorder.batch_of(rows, 9)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]
