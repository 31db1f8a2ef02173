"""Pictures of growing features, and the record of what finetuning does to NFN."""

import importlib
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

import plop_nb as plop
from plop_nb import experiments as ex
from plop_nb import growth_plots as plots
from plop_nb.experiments import growth
from tests.test_training import tokenizer as tokenizer  # a fixture

STEPS = np.arange(5)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def one_run():
    squares = STEPS**2.0
    columns = {"step": STEPS, "growth": squares + 1, "closed": squares + 1, "quadratic": squares}
    return pd.DataFrame(columns)


def by_width():
    columns = {"mean": [4.0, 2.0], "low": [3.0, 1.5], "high": [6.0, 3.0], "predicted": [5.0, 2.5]}
    return pd.DataFrame(columns, index=[64, 256])


# What is drawn


def named(ax, words):
    [text] = [text for text in ax.texts if text.get_text() == words]
    return text


def test_the_share_of_the_cross_term_is_in_percent_of_the_quadratic():
    """Growth t^2 + 1 over t^2: without step 0, and named at the middle and at the end."""
    ax = plots.plot_cross_share(one_run())
    _, line, dots = ax.lines
    assert dots.get_xdata().tolist() == line.get_xdata().tolist() == [1, 2, 3, 4]
    assert dots.get_ydata() == pytest.approx([100, 25, 100 / 9, 6.25])
    assert [text.get_text() for text in ax.texts] == [
        "step 2:\n25 %",
        "step 4:\n6 %",
        "dots: measured in the loop\nline: closed form",
    ]
    assert ax.get_ylim() == (-5, 100)


def test_steps_outside_of_the_frame_are_named():
    said = plots.plot_cross_share(one_run(), limit=20).texts[-1].get_text()
    assert said.endswith("\noutside: step 1 (100 %), step 2 (25 %)")


def test_a_negative_share_is_below_the_line():
    run = one_run().assign(growth=STEPS**2 - 1.0, closed=STEPS**2 - 1.0)
    ax = plots.plot_cross_share(run)
    assert ax.get_ylim() == (-100, 5)
    assert ax.texts[1].get_text() == "step 4:\n\N{MINUS SIGN}6 %" and ax.texts[1].xyann[1] < 0


def test_the_closed_form_goes_through_the_dots():
    dots, line, quadratic = plots.plot_closed_form(one_run()).lines
    assert dots.get_marker() == "o" and line.get_ydata() == pytest.approx(dots.get_ydata())
    assert quadratic.get_ydata() == pytest.approx(line.get_ydata() - 1)


def test_intervals_of_widths_are_as_given():
    ax = plots.plot_by_width(by_width(), what="deviation (%)", measured="mean of 8")
    assert named(ax, "mean of 8").xy == (256, 2)
    [bars] = ax.containers
    segments = bars.lines[2][0].get_segments()
    assert [segment[:, 1].tolist() for segment in segments] == [[3, 6], [1.5, 3]]
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["64", "256"]
    assert ax.get_ylabel() == "deviation (%)"
    [theory] = [text for text in ax.texts if text.get_text() == "theory"]
    assert theory.xy == pytest.approx((128, 12.5**0.5))  # half way along its line


def test_lines_of_widths_have_their_own_style_and_name():
    table = pd.DataFrame({"muP": [1.0, 1.0], "constant": [1.0, 4.0]}, index=[64, 256])
    ax = plots.plot_by_width(table, what="change")
    assert [text.get_text() for text in ax.texts] == ["muP", "constant"]
    assert len({line.get_ls() for line in ax.lines}) == 2
    assert len({line.get_color() for line in ax.lines}) == 2


def test_runs_of_growth_fit():
    run = growth(32, 5, seeds=1)
    run["closed"] = run["quadratic"] = run["growth"]
    plots.plot_closed_form(run)
    plots.plot_cross_share(run)


# What is refused, and where it is drawn

PICTURES = {
    "plot_closed_form": (one_run, {}),
    "plot_cross_share": (one_run, {}),
    "plot_by_width": (by_width, {"what": "a"}),
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
        (lambda: plots.plot_cross_share(one_run().drop(columns="closed")), r"\['closed'\]"),
        (lambda: plots.plot_closed_form(one_run().drop(columns="quadratic")), r"\['quadratic'\]"),
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
