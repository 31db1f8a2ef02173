"""What a probe takes for a norm, what it leaves alone, and what it refuses."""

import warnings

import pytest
import torch
from torch import nn

import plop_nb as plop
from plop_nb.crossing_plot import plot_crossing
from plop_nb.moves import fold_norms, move_gains
from plop_nb.probing import norm_table
from tests.test_crossing_plot import runs
from tests.test_moves import llama, shaken
from tests.tiny_models import build


class OneGain(nn.Module):
    """A norm with a single gain for all channels (ScaleNorm)."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0]))

    def forward(self, x):
        return self.weight * nn.functional.normalize(x, dim=-1)


class Fused(nn.Module):
    """A norm that hands on the residual stream as well."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((4,), 2.0))

    def forward(self, x):
        return self.weight * nn.functional.rms_norm(x, (4,)), x


class Constant(nn.Module):
    """A vector that reads nothing."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self):
        return self.weight


class Around(nn.Module):
    """A norm, a map, and a constant beside them."""

    def __init__(self, norm):
        super().__init__()
        self.norm, self.linear, self.constant = norm, nn.Linear(4, 4), Constant()

    def forward(self, input):
        out = self.norm(input)
        out, rest = out if isinstance(out, tuple) else (out, input)
        return self.linear(out) * self.constant() + rest


@pytest.mark.parametrize(
    "norm, found", [(OneGain(), []), (Fused(), []), (nn.LayerNorm(4), ["norm"])]
)
def test_what_is_no_norm_of_channels_stays(norm, found):
    torch.manual_seed(0)
    model, batch = Around(norm), {"input": torch.randn(2, 4)}
    assert norm_table(model, batch)["norm"].tolist() == found
    folded = fold_norms(model, batch=batch)
    torch.testing.assert_close(folded(**batch), model(**batch))
    if not found:
        assert torch.equal(folded.norm.weight, norm.weight)


@pytest.mark.parametrize("batch", [["a text"], torch.zeros(2, 3).long(), "a text"])
def test_batches_that_are_no_dict(batch):
    with pytest.raises(TypeError, match="batch is .*, expected a dict of tensors"):
        fold_norms(llama(), batch=batch)


def test_gains_that_are_no_dict():
    with pytest.raises(TypeError, match="gains is Tensor, expected a dict"):
        move_gains(llama(), torch.ones(32))


def test_biases_of_a_frozen_model_are_frozen():
    """GPT-J's queries, keys and values have no bias, and read a norm with a shift."""
    model = shaken(build("gptj")).requires_grad_(False)
    folded = fold_norms(model)
    assert folded.transformer.h[0].attn.q_proj.bias is not None
    assert not [name for name, p in folded.named_parameters() if p.requires_grad]


def test_warnings_point_at_whoever_asked_for_the_scores():
    batch = {"input_ids": torch.arange(5)[None]}
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        plop.nfn_scores(build("bert").eval(), [batch], form="folded", progress=False)
    mixed = [w for w in seen if "feed more than linear maps" in str(w.message)]
    assert [w.filename for w in mixed] == [__file__]


def test_runs_without_rows_or_with_other_choosers_are_refused():
    with pytest.raises(ValueError, match="runs is an empty frame"):
        plot_crossing(runs().iloc[:0])
    others = runs().replace({"chosen_by": {"MLP low": "norms"}})
    with pytest.raises(ValueError, match="task 'a' are chosen by .*'norms'.*expected its forms"):
        plot_crossing(others)


def test_texts_of_one_token_prove_nothing():
    with pytest.raises(ValueError, match="single tokens"):
        norm_table(llama(), {"input_ids": torch.ones(3, 1).long()})


def test_complex_gains_are_refused():
    model = llama()
    name = norm_table(model)["norm"][0]
    with pytest.raises(ValueError, match="complex"):
        move_gains(model, {name: torch.ones(model.config.hidden_size, dtype=torch.complex64)})
