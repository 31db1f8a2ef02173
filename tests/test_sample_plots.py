"""Pictures of how many texts a placement needs: what they draw, and what they refuse."""

import importlib
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgba

import plop_nb as plop
from plop_nb import sample_plots as plots
from plop_nb.palette import type_color
from plop_nb.stats import StoppingRule, lowest
from tests.conftest import TEXTS

TYPES = ["v_proj", "up_proj", "k_proj"]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def pool(texts=40):
    """Made-up scores: types around 0.6, 0.9 and 1.5 that vary over texts."""
    noise = np.random.default_rng(0).normal(scale=0.05, size=(texts, len(TYPES)))
    return pd.DataFrame(noise + [0.6, 0.9, 1.5], columns=TYPES)


def errors():
    rows = [("math", n, 1 / n**0.5, 1.1 / n**0.5, 64 // n) for n in (1, 4, 16)]
    rows += [("logic", n, 0.3 / n**0.5, 0.3 / n**0.5, 64 // n) for n in (1, 4, 16)]
    return pd.DataFrame(rows, columns=["domain", "texts", "computed", "measured", "blocks"])


def agreement():
    rows = [("A", "types", n, 1.0, 1.0, 1.0) for n in (1, 8, 64)]
    rows += [("A", "maps", n, 1 - 0.05 / n, 1 - 0.08 / n, 1 - 0.02 / n) for n in (1, 8, 64)]
    return pd.DataFrame(rows, columns=["model", "of", "texts", "tau", "low", "high"])


def shares():
    values = {8: [1.0, 0.25, 0.02], 16: [0.0, 0.75, 0.0], "undecided": [0.0, 0.0, 0.98]}
    return pd.DataFrame(values, index=["wide", "near", "tie"])


def scores():
    rows = [(0, f"{layer}.{name}", name, 1 + layer) for layer in range(3) for name in TYPES]
    return pd.DataFrame(rows, columns=["sample", "module", "type", "nfn"])


# Means by the number of texts


def test_each_text_is_a_dot_in_the_row_of_its_type():
    table = pool()
    left, _ = plots.plot_separation(table, 1, title="A finding", source="made up")
    assert [tick.get_text() for tick in left.get_yticklabels()] == TYPES  # lowest first
    for dots, name in zip(left.collections, TYPES, strict=True):
        assert np.asarray(dots.get_offsets())[:, 0] == pytest.approx(table[name])
        assert to_hex(dots.get_facecolor()[0], keep_alpha=False) == type_color(name).lower()
    assert left.figure.get_suptitle() == "A finding" and left.get_title(loc="left") == "made up"


def test_the_band_of_the_gap_shrinks_with_the_texts():
    """At n texts it is as wide as normal means make it: 2 * 1.96 s / sqrt(n)."""
    table = pool()
    _, right = plots.plot_separation(table, 1)
    gap = table["up_proj"] - table["v_proj"]
    corners = right.collections[0].get_paths()[0].vertices
    for n in (1, 4, 32):
        heights = corners[np.isclose(corners[:, 0], n), 1]
        assert np.ptp(heights) == pytest.approx(2 * 1.96 * gap.std(ddof=0) / n**0.5, rel=0.2)
    assert right.lines[0].get_ydata() == pytest.approx(gap.expanding().mean())
    assert right.get_ylabel().startswith("up_proj minus v_proj") and right.get_ylim()[0] == 0


def test_numbers_of_texts_are_marked():
    _, right = plots.plot_separation(pool(), 1, {8: "the rule"})
    assert "the rule" in [text.get_text() for text in right.texts]
    assert any(np.allclose(line.get_xdata(), 8) for line in right.lines)


def test_marks_stay_inside_of_the_axes():
    _, right = plots.plot_separation(pool(), 1, {2: "early", 40: "at the very end"})
    right.figure.draw_without_rendering()
    frame = right.get_window_extent()
    for text in right.texts:
        assert frame.x0 <= text.get_window_extent().x0 <= text.get_window_extent().x1 <= frame.x1


def test_pools_that_are_empty_are_refused():
    with pytest.raises(ValueError, match="pool is empty"):
        plots.plot_separation(pool().head(0))
    assert not plt.get_fignums()


# Errors, agreement, replays


def test_errors_are_lines_and_dots():
    ax = plots.plot_errors(errors(), source="made up")
    assert {"math", "logic", "made up"} < {text.get_text() for text in ax.texts}
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "4", "16"]
    lines = [line for line in ax.lines if line.get_ls() == "-" and line.get_marker() == "None"]
    assert lines[0].get_ydata().tolist() == [1, 0.5, 0.25]
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert dots[0].get_ydata() == pytest.approx([1.1, 0.55, 0.275])


def curves(ax):
    """The lines through dots, without the caps of bars."""
    return [line for line in ax.lines if line.get_marker() == "o"]


def test_agreement_has_a_panel_for_what_is_ranked_and_a_bar_at_each_dot():
    types, maps = plots.plot_agreement(agreement(), title="A finding", source="made up")
    assert [ax.get_title(loc="left") for ax in (types, maps)] == ["types", "maps"]
    assert curves(types)[0].get_ydata().tolist() == [1.0, 1.0, 1.0]
    assert curves(maps)[0].get_ydata() == pytest.approx([1 - 0.05 / n for n in (1, 8, 64)])
    [bars] = maps.collections
    assert bars.get_segments()[0][:, 1] == pytest.approx([1 - 0.08, 1 - 0.02])
    named = {text.get_text(): text.xy for text in maps.texts}
    assert named["A"] == (64, 1 - 0.05 / 64)
    assert types.figure.get_suptitle() == "A finding"
    assert types.figure.get_supxlabel().endswith("made up")


def test_models_have_colours_in_every_panel():
    both = pd.concat([agreement(), agreement().assign(model="B")])
    colors = [[line.get_color() for line in curves(ax)] for ax in plots.plot_agreement(both)]
    assert colors[0] == colors[1] and colors[0][0] != colors[0][1]


def test_lines_that_end_together_have_labels_apart_and_are_seen():
    other = agreement().assign(model="B").query("of == 'types'")
    other.loc[other["texts"] == 8, "tau"] = 0.98
    ax, maps = plots.plot_agreement(pd.concat([agreement(), other]))
    named = {text.get_text(): text.xy for text in ax.texts}
    assert named["A"] == (64, 1.0) and named["B"] == (pytest.approx(8, rel=0.1), 0.98)
    first, second = curves(ax)
    assert first.get_linewidth() > 2 * second.get_linewidth()  # the second is on top
    assert [text.get_text() for text in maps.texts] == ["A"]  # B has no maps


def test_rankings_without_an_interval_have_no_bar():
    table = agreement()
    table.loc[table["of"] == "types", ["low", "high"]] = np.nan
    types, maps = plots.plot_agreement(table)
    assert not any(len(bar) for bar in types.collections[0].get_segments())
    assert [len(bar) for bar in maps.collections[0].get_segments()] == [2, 2, 2]


def test_intervals_of_measured_errors_are_those_of_chi_square():
    """Of nine means: 8 degrees of freedom."""
    ax = plots.plot_errors(errors().assign(blocks=9))
    low, high = ax.collections[0].get_segments()[0][:, 1]
    assert [low, high] == pytest.approx(
        [1.1 * (8 / 17.535) ** 0.5, 1.1 * (8 / 2.180) ** 0.5], rel=1e-3
    )


def test_the_end_of_the_axis_is_named_where_there_is_room():
    _, right = plots.plot_separation(pool(500), 1)
    assert [tick.get_text() for tick in right.get_xticklabels()][-2:] == ["256", "500"]


def test_bars_add_up_and_name_what_has_room():
    ax = plots.plot_decided(shares())
    widths = np.array([bar.get_width() for bar in ax.patches]).reshape(3, 3)  # columns x cases
    assert widths.sum(axis=0) == pytest.approx([100, 100, 100])
    said = sorted(text.get_text() for text in ax.texts)
    assert said == ["16", "8", "8", "in bars: texts at the stop", "undecided: 98 %"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["wide", "near", "tie"]


def test_what_is_foreseen_is_written_beside_each_bar():
    ax = plots.plot_decided(shares(), ["formula: 1", "formula: 7", "formula: 77"])
    beside = [text for text in ax.texts if text.get_text().startswith("formula")]
    assert [text.xy for text in beside] == [(100, 0), (100, 1), (100, 2)]


def test_numbers_can_be_read_on_their_bars():
    ax = plots.plot_decided(shares())
    named = [text for text in ax.texts if not text.get_text().startswith("in bars")]
    for bar, text in [(ax.patches[0], named[0]), (ax.patches[-1], named[-1])]:
        ground, ink = np.mean(bar.get_facecolor()[:3]), np.mean(to_rgba(text.get_color())[:3])
        assert abs(ground - ink) > 0.4


def test_slices_that_follow_each_other_differ_in_colour():
    """Seven looks, from light to dark."""
    looks = [*(8 * 2**look for look in range(7)), "undecided"]
    ax = plots.plot_decided(pd.DataFrame([[0.125] * 8], index=["all"], columns=looks))
    colors = np.array([bar.get_facecolor()[:3] for bar in ax.patches[:7]])
    assert (np.abs(np.diff(colors, axis=0)).max(axis=1) > 0.1).all()
    assert (np.diff(colors @ plots.LUMINANCE) < 0).all()


# Signatures


def test_every_map_is_a_dot_in_the_row_of_its_type():
    frames = {"one": scores(), "two": scores().assign(nfn=1.0)}
    axes = plots.plot_signatures(frames, TYPES, title="Look")
    assert [ax.get_title(loc="left") for ax in axes] == ["one", "two"]
    assert axes[0].figure.get_suptitle() == "Look"
    dots = axes[0].collections[0]
    assert np.allclose(np.asarray(dots.get_offsets()), [[1, 0], [2, 0], [3, 0]])
    assert [tick.get_text() for tick in axes[0].get_yticklabels()] == TYPES


def test_what_is_near_1_looks_near_1():
    near, wide = scores().assign(nfn=1.01), scores().assign(nfn=[0.01, 1, 100] * 3)
    [ax] = plots.plot_signatures({"near": near})
    assert ax.get_xlim()[0] < 0.5 and ax.get_xlim()[1] > 2
    axes = plots.plot_signatures({"near": near, "wide": wide})
    assert axes[0].get_xlim() == axes[1].get_xlim()  # one scale
    assert axes[1].get_xlim()[0] < 0.01 and axes[1].get_xlim()[1] > 100


def test_the_lowest_types_of_each_panel_have_a_grey_ground():
    turned = scores().assign(nfn=scores()["type"].map({"v_proj": 3, "up_proj": 2, "k_proj": 1}))
    rising = turned.assign(nfn=4 - turned["nfn"])
    axes = plots.plot_signatures({"a": rising, "b": turned}, TYPES, chosen=1, source="made up")
    assert [[bar.get_y() + 0.45 for bar in ax.patches] for ax in axes] == [[0], [2]]
    said = axes[0].figure.get_supxlabel()
    assert "the 1 lowest" in said and said.endswith("made up")


def test_types_that_a_frame_lacks_are_left_out():
    axes = plots.plot_signatures({"all": scores(), "few": scores().query("type == 'v_proj'")})
    assert len(axes[1].collections) == 2  # dots and a bar


def test_frames_of_real_scores_fit(tiny_llama, byte_tokenizer):
    found = plop.nfn_scores(tiny_llama, TEXTS, byte_tokenizer, progress=False)
    [ax] = plots.plot_signatures({"tiny": found})
    lowest = plop.by_type(found)["type"].tolist()
    assert [tick.get_text() for tick in ax.get_yticklabels()] == lowest


# What all of them share

PICTURES = {
    "plot_errors": errors,
    "plot_decided": shares,
}


@pytest.mark.parametrize("name", PICTURES)
def test_axes_are_used_when_given(name):
    _, (left, right) = plt.subplots(1, 2)
    draw = getattr(plots, name)
    assert draw(PICTURES[name](), ax=left) is left and not right.has_data()
    assert draw(PICTURES[name]()).figure is not left.figure


@pytest.mark.parametrize("name", PICTURES)
def test_empty_tables_are_refused(name):
    with pytest.raises(ValueError, match="is empty"):
        getattr(plots, name)(PICTURES[name]().head(0))
    assert not plt.get_fignums()


@pytest.mark.parametrize(
    ("draw", "table"), [(plots.plot_errors, errors()), (plots.plot_agreement, agreement())]
)
def test_missing_columns_are_named(draw, table):
    with pytest.raises(ValueError, match=f"lacks the columns \\['{table.columns[1]}'\\]"):
        draw(table.drop(columns=table.columns[1]))
    with pytest.raises(ValueError, match="is empty"):
        draw(table.head(0))
    assert not plt.get_fignums()


def test_shares_that_do_not_add_up_are_refused():
    with pytest.raises(ValueError, match="add up to 1"):
        plots.plot_decided(shares() * 0.9)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ({}, "frames is empty"),
        ({"a": scores().drop(columns="nfn")}, "lacks the columns"),
        ({"a": scores().assign(nfn=-1.0)}, "'a'.*not positive"),
    ],
)
def test_frames_that_are_none_are_refused(frames, message):
    with pytest.raises(ValueError, match=message):
        plots.plot_signatures(frames)
    assert not plt.get_fignums()


# The record of notebook 02


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "notebooks" / "tools")
    return importlib.import_module("record_samples")


def test_many_runs_at_once_decide_as_the_rule_does(recorder):
    """For near ties, some of which are decided and some are not."""
    decided = []
    for seed in range(30):
        generator = np.random.default_rng(seed)
        means = [1.0, 1.1, 1.2, 1.2 + 0.01 * (seed % 5), 1.5]
        draws = generator.normal(means, 0.02, size=(32, 5))
        rule, table = StoppingRule(0.99, 3), pd.DataFrame(draws, columns=list("abcde"))
        for look, texts in ((1, 8), (2, 16), (3, 32)):
            [at_once], [chosen] = recorder.looked(draws[None, :texts], look, 3)
            part = table.head(texts).rename_axis(columns="type")
            decided.append(rule.decided(part))
            assert at_once == decided[-1]
            assert set(table.columns[chosen]) == set(lowest(part, 3))
    assert 0.2 < np.mean(decided) < 0.8


def test_replays_count_every_run_once(recorder):
    found = recorder.replayed(pool(), 1)
    assert sum(found.values()) - found["kept"] - found["wrong"] == recorder.RUNS
    assert found["8"] == found["kept"] == recorder.RUNS  # types are far apart
    assert found["wrong"] == 0


def test_at_a_tie_the_worst_order_counts(recorder):
    """Of types b, c, d, which are tied, two are chosen; a is sure."""
    table = pd.DataFrame([[1.0, 2.0, 2.0, 2.0, 3.0]], columns=list("abcde"))
    sets = Counter({frozenset("abc"): 5, frozenset("abd"): 3, frozenset("acd"): 1})
    found = recorder.judged(sets, table, 3, ["b", "c", "d"])
    assert found == {"kept": 5, "wrong": 8}  # if a, c, d were the lowest
    del sets[frozenset("abd")]
    assert recorder.judged(sets, table, 3, ["b", "c", "d"])["wrong"] == 6  # if a, b, d were
    assert recorder.judged(sets, table.drop(columns="b"), 2, []) == {"kept": 0, "wrong": 6}


def test_tied_types_have_the_mean_of_the_k_th_and_others_stay(recorder):
    table = pool().assign(gate_proj=2.0)
    together, names = recorder.tied(table, (2, 3, 4))
    assert names == ["up_proj", "k_proj", "gate_proj"]
    assert together[names].mean().tolist() == pytest.approx([table["k_proj"].mean()] * 3)
    assert together["v_proj"].equals(table["v_proj"])


def test_a_moved_pool_has_the_gap_that_was_asked_for(recorder):
    table = pool().assign(gate_proj=2.0)
    means = recorder.moved(table, 0.01).mean()
    assert means["gate_proj"] / means["k_proj"] == pytest.approx(1.01)
    assert means["v_proj"] == table["v_proj"].mean()


def test_the_same_texts_rank_as_their_reference(recorder):
    table = pd.concat([pool(8), pool(8)], ignore_index=True)
    rows = recorder.agreement(table, 8, model="a")
    assert [row["texts"] for row in rows] == [1, 2, 4, 8]
    assert rows[-1] == {"model": "a", "texts": 8, "draws": 1, "tau": 1.0, "low": 1.0, "high": 1.0}
