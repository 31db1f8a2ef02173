"""Placement by other rules than the score."""

import pandas as pd
import pytest

import plop_nb as plop

from .conftest import TEXTS


@pytest.fixture
def scores(tiny_llama, byte_tokenizer):
    return plop.nfn_scores(tiny_llama, TEXTS, byte_tokenizer, progress=False)


def test_by_size_takes_the_largest_maps(scores):
    """By hand: in + out features of all modules of a type."""
    maps = scores.drop_duplicates("module")
    sizes = (maps["in_features"] + maps["out_features"]).groupby(maps["type"]).sum()
    placement = plop.place(scores, k=3, rule="size")
    assert set(placement.types) == set(sizes.nlargest(3).index)
    assert placement.notes == ["chosen by size, not by score"]


def test_numbers_of_ones_own(scores):
    numbers = pd.Series(
        {name: -len(name) + i / 10 for i, name in enumerate(scores["type"].unique())}
    )
    placement = plop.place(scores, k=2, rule=numbers)
    assert placement.types == numbers.nsmallest(2).index.tolist()
    assert set(placement.modules) == set(scores.loc[scores["type"].isin(placement.types), "module"])
    named = plop.place(scores, k=2, rule=numbers.rename("gradient"))
    assert named == placement and named.notes == ["chosen by gradient given by hand, not by score"]


def test_the_scores_as_numbers_are_the_papers_rule(scores):
    means = scores.groupby("type")["nfn"].mean()
    for k in range(1, scores["type"].nunique() + 1):
        by_hand, papers = plop.place(scores, k, rule=means), plop.place(scores, k)
        assert by_hand.types == papers.types and by_hand.modules == papers.modules


def test_a_budget_is_spent_in_the_order_of_the_rule(scores, tiny_llama):
    for rule in ("size", scores.groupby("type")["nfn"].mean().rsub(0)):
        whole = plop.place(scores, k=3, rule=rule)
        cost = whole.check(tiny_llama, whole.lora_config(tiny_llama, r=2))["trainable"].sum()
        assert plop.place(scores, parameters=cost, r=2, rule=rule).types == whole.types
        assert plop.place(scores, parameters=cost - 1, r=2, rule=rule).types == whole.types[:2]


def test_the_config_of_a_rule_hits_its_modules(scores, tiny_llama):
    placement = plop.place(scores, rule="size")
    placement.check(tiny_llama, placement.lora_config(tiny_llama, r=2))


@pytest.mark.parametrize(
    "rule, said",
    [
        ("NFN", "rule='NFN', expected one of"),
        (None, "rule=None, expected one of"),
        (3, "rule=3, expected one of"),
        (pd.Series({"q_proj": 1.0}), "rule has no number for the types"),
    ],
)
def test_unknown_rules(scores, rule, said):
    with pytest.raises(ValueError, match=said):
        plop.place(scores, rule=rule)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), "much"])
def test_numbers_that_are_none(scores, number):
    rule = scores.groupby("type")["nfn"].mean().astype(object)
    rule.iloc[0] = number
    with pytest.raises(ValueError, match="expected one finite number"):
        plop.place(scores, rule=rule)
