"""The same function in other weights: copies of a model that compute what it computes.

Between a norm's gain and the maps that read it, between the rows of an up map and the columns of
a down map, and inside of each head between value and output, a network stores one of many
factorisations. NFN is not the same in all of them.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from plop_nb.inputs import Batch
from plop_nb.links import NormLink, PairLink, disjoint
from plop_nb.maps import LinearMap
from plop_nb.probing import Probe, check_plain, norm_links, pair_links

TOLERANCE = 1e3  # for outputs, in units of their rounding


@dataclass(frozen=True)
class Balance:
    """What goes into a writer, and its inverse, which goes out of the reader.

    Vectors (outputs,) that scale, or matrices (heads, head, head) that mix inside of heads.
    """

    into: torch.Tensor
    inverse: torch.Tensor


def fold_norms(model: nn.Module, *, strict: bool = True, batch: Batch | None = None) -> nn.Module:
    """A copy that computes the same, with every norm's gain moved into the maps that read it.

    `W (g * n + s) + b = (W diag(g)) n + (W s + b)`: the norm's gain becomes 1 and its shift 0.
    Norms that no map reads directly (before the head, of queries and keys, before a residual sum,
    before nothing but stacks of experts) stay as they are, and so do those that do not run on
    `batch` (of an image's tower, on tokens). Where a norm has a shift, maps without a bias get one;
    `from_pretrained` does not load it where the architecture has none.

    Parameters
    ----------
    model : torch.nn.Module
        With its weights in memory, in bfloat16 or finer, neither quantised nor with adapters; comes
        back untouched.
    strict : bool
        Refuse a model with norms that maps and something else read. False: leave these norms.
    batch : dict of tensors, optional
        What to run the model on, to see what reads a norm; by default random tokens.

    Returns
    -------
    torch.nn.Module
        In evaluation mode if the model is.

    Raises
    ------
    TypeError, ValueError
        A norm feeds something else than maps, such as a residual stream (names it); two norms feed
        one map, or a map shares its weight; the model is offloaded, quantised, in float16, or has
        adapters; or the copy's outputs differ by more than rounding.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaModel
    >>> config = LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
    ...                      num_attention_heads=2)
    >>> model = LlamaModel(config)
    >>> _ = torch.nn.init.constant_(model.layers[0].input_layernorm.weight, 3)
    >>> folded = fold_norms(model)
    >>> folded.layers[0].input_layernorm.weight[0].item()
    1.0
    """
    moved = _Copy(model, batch)
    links = norm_links(moved.probe)
    if strict:
        _refuse_mixed(links)
    for link in links:
        if link.is_free:
            moved.set_gain(link, torch.ones_like(link.gain))
    return moved.checked()


def move_gains(
    model: nn.Module, gains: Mapping[str, torch.Tensor], *, batch: Batch | None = None
) -> nn.Module:
    """A copy that computes the same with other gains, and the maps that read them undoing it.

    Parameters
    ----------
    gains : dict
        {norm: its new gain (size,), nowhere zero}; names as in `norm_table`. A shift moves into the
        maps' biases.

    Other arguments, and errors, as in `fold_norms`; and for unknown norms, and gains that do not
    fit.
    """
    moved = _Copy(model, batch)
    links = {link.name: link for link in norm_links(moved.probe)}
    for name, gain in _items("gains", gains):
        link = _named(links, name, "gains", "norm that maps read (see norm_table)")
        _refuse_mixed([link])
        _check_factors(f"gains[{name!r}]", gain, link.gain.shape)
        moved.set_gain(link, gain)
    return moved.checked()


def scale_neurons(
    model: nn.Module, factors: Mapping[str, torch.Tensor], *, batch: Batch | None = None
) -> nn.Module:
    """A copy that computes the same, with rows of one map scaled up and columns of the next down.

    Exact for the up map of a gated MLP, for maps with only a ReLU behind them, and for value maps.

    Parameters
    ----------
    factors : dict
        {module: positive factors (out_features,) of its rows}.

    Other arguments, and errors, as in `fold_norms`; and for modules without such a partner.
    """
    moved = _Copy(model, batch)
    links = {link.writer.name: link for link in pair_links(moved.probe)}
    for name, factor in _items("factors", factors):
        what = "map whose rows scale against another one's columns"
        link = _named(links, name, "factors", what)
        _check_factors(f"factors[{name!r}]", factor, (link.writer.shape[0],))
        if (factor < 0).any():
            raise ValueError(f"factors[{name!r}] has negative entries: expected positive ones")
        moved.mix(link, Balance(factor.double(), 1 / factor.double()))
    return moved.checked()


def mix_heads(
    model: nn.Module, matrices: Mapping[str, torch.Tensor], *, batch: Batch | None = None
) -> nn.Module:
    """A copy that computes the same, with the values of each head mixed and the output undoing it.

    Query heads that share one value head (grouped-query attention) are all undone.

    Parameters
    ----------
    matrices : dict
        {value map: invertible matrices (value heads, head size, head size)}: `W_v -> M W_v` in each
        head, `W_o -> W_o M^-1`.

    Other arguments, and errors, as in `fold_norms`; and for modules that are no value maps, and
    matrices that have no inverse.
    """
    moved = _Copy(model, batch)
    links = {link.writer.name: link for link in pair_links(moved.probe) if link.head}
    for name, matrix in _items("matrices", matrices):
        link = _named(links, name, "matrices", "value map whose heads can be mixed")
        heads = link.writer.shape[0] // link.head
        _check_factors(f"matrices[{name!r}]", matrix, (heads, link.head, link.head), zeros=True)
        inverse, failed = torch.linalg.inv_ex(matrix.double())
        if failed.any():
            raise ValueError(f"matrices[{name!r}] has no inverse in head {failed.argmax()}")
        moved.mix(link, Balance(matrix.double(), inverse))
    return moved.checked()


def canonical(model: nn.Module, *, batch: Batch | None = None) -> nn.Module:
    """A copy that computes the same, in the form with the smallest weights.

    Gains that are free to move are 1. Then, of all ways to scale rows of up against columns of
    down, and to mix the values of a head against its output, the one with the least
    `||W_1||_F^2 + ||W_2||_F^2`: weight decay punishes it least, it needs no text, and these four
    types are unique in it but for rotations, which change no NFN. A row of up and its column of
    down are then equally long; value and output are `sqrt(S) V^T` and `U sqrt(S)` with `U S V^T`
    the singular value decomposition of their product in each head.

    What is left as stored: norms that feed something else as well, what may be scaled between
    query and key, value maps that are one matrix with query and key, and the second pair of a map
    that is in two (a gate with a ReLU, and up, against down). To balance each rotary pair between
    query and key as well would move SmolLM2's q by 4 % and k by 2 %, and no choice; left free,
    these scales put either anywhere from 0.5 to 4.5 (data/results/form_limits.csv).

    Arguments, and errors, as in `fold_norms` with `strict=False`.
    """
    moved = _Copy(model, batch)
    norms, pairs = norm_links(moved.probe), disjoint(pair_links(moved.probe))
    for link in norms:
        if link.is_free:
            moved.set_gain(link, torch.ones_like(link.gain))
    for pair in pairs:
        moved.mix(pair, balance(pair, pair.writer.weight))
    return moved.checked()


@torch.no_grad()
def balance(link: PairLink, writer: torch.Tensor) -> Balance:
    """What makes a pair of maps smallest, in float64.

    Parameters
    ----------
    link : PairLink
    writer : torch.Tensor
        The writer's weight (out_features, in_features), with gains folded in.
    """
    above, below = writer.double(), link.reader.weight.double()
    if link.head is None:
        columns = torch.zeros(len(above), dtype=above.dtype, device=above.device)
        columns.index_add_(0, link.rows.to(above.device), below.square().sum(0))
        rows = above.norm(dim=1)
        alive = (rows > 0) & (columns > 0)
        into = torch.where(alive, (columns.sqrt() / rows).sqrt(), 1.0)
        return Balance(into, 1 / into)
    into, inverse = [], []
    for head, rows in enumerate(above.split(link.head)):
        one = _balanced_head(rows, _columns_of_head(link, below, head))
        into.append(one.into)
        inverse.append(one.inverse)
    return Balance(torch.stack(into), torch.stack(inverse))


def changed_rows(weight: torch.Tensor, into: torch.Tensor) -> torch.Tensor:
    """What a `Balance` makes of a writer's rows: of (out_features, ...) the same shape."""
    if into.ndim == 1:
        return into.to(weight).reshape(-1, *[1] * (weight.ndim - 1)) * weight
    heads = weight.reshape(*into.shape[:2], -1)
    return (into.to(weight) @ heads).reshape(weight.shape)


def changed_columns(weight: torch.Tensor, inverse: torch.Tensor, link: PairLink) -> torch.Tensor:
    """What a `Balance` makes of a reader's columns: of (out_features, in_features) the same."""
    if inverse.ndim == 1:
        return weight * inverse.to(weight)[link.rows.to(weight.device)]
    heads = weight.reshape(len(weight), -1, link.head).transpose(0, 1)
    used = link.rows[:: link.head] // link.head  # which of the writer's heads each one reads
    mixed = heads @ inverse.to(weight)[used.to(weight.device)]
    return mixed.transpose(0, 1).reshape(weight.shape)


def changed_outputs(features: torch.Tensor, into: torch.Tensor) -> torch.Tensor:
    """What becomes of a writer's outputs (..., out_features), as its rows change."""
    return changed_rows(features.reshape(-1, features.shape[-1]).T, into).T.reshape(features.shape)


def changed_inputs(z: torch.Tensor, into: torch.Tensor, link: PairLink) -> torch.Tensor:
    """What becomes of a reader's inputs (..., in_features), as the writer's rows change."""
    if into.ndim == 1:
        return z * into.to(z)[link.rows.to(z.device)]
    used = (link.rows[:: link.head] // link.head).to(z.device)
    heads = z.reshape(-1, len(used), link.head)
    return torch.einsum("thj,hij->thi", heads, into.to(z)[used]).reshape(z.shape)


class _Copy:
    """A deep copy of a model whose weights are being moved."""

    def __init__(self, model: nn.Module, batch: Batch | None) -> None:
        check_plain(model)
        self.model = copy.deepcopy(model)
        self.probe = Probe(self.model, batch)  # how it was before anything moved
        self._owners = _owners(self.model)
        self._fed: dict[str, str] = {}  # map -> the norm whose gain went into it

    @torch.no_grad()
    def set_gain(self, link: NormLink, gain: torch.Tensor) -> None:
        """Give a norm another gain and no shift, and its readers what is missing."""
        old, shift = link.gain, link.shift
        gain = gain.to(old)
        for reader in link.readers:
            self._check(reader, link)
            weight = reader.weight.to(old)
            if shift is not None and shift.any():
                _add_to_bias(reader, weight @ shift)
            reader.weight.copy_(weight * (old / gain))
        link.module.weight.copy_(gain - (1 - link.neutral))
        if shift is not None:
            link.module.bias.zero_()

    @torch.no_grad()
    def mix(self, link: PairLink, balance: Balance) -> None:
        """Change a pair of maps in ways that undo each other."""
        self._check(link.writer)
        self._check(link.reader)
        writer, reader = link.writer, link.reader
        writer.weight.copy_(changed_rows(writer.weight.double(), balance.into))
        if writer.bias is not None:
            writer.bias.copy_(changed_rows(writer.bias.double(), balance.into))
        reader.weight.copy_(changed_columns(reader.weight.double(), balance.inverse, link))

    def checked(self) -> nn.Module:
        """The copy, if it computes what the model does."""
        expected, found = self.probe.reference, self.probe.output()
        largest = expected.abs().max().item()
        # Models work in float32 inside of their norms, whatever their dtype.
        rounding = max(torch.finfo(found.dtype).eps, torch.finfo(torch.float32).eps)
        allowed = min(0.1, TOLERANCE * rounding) * largest
        difference = (found - expected).abs().max().item()
        if not difference <= allowed:
            raise ValueError(
                f"the copy's outputs differ by {difference:.2g} from those of the model, whose "
                f"largest is {largest:.2g}: its weights are shared in ways that were not seen, or "
                "the factors are too uneven for its dtype"
            )
        return self.model

    def _check(self, linear_map: LinearMap, link: NormLink | None = None) -> None:
        """Refuse a map that is not one's own to change."""
        owners = self._owners[linear_map.stored.data_ptr()]
        if len(owners) > 1:
            raise ValueError(
                f"module {linear_map.name!r} shares its weight ({', '.join(owners)}): what goes "
                "into one would go into all"
            )
        if link is not None:
            other = self._fed.setdefault(linear_map.name, link.name)
            if other != link.name:
                raise ValueError(
                    f"module {linear_map.name!r} reads two norms, {other!r} and {link.name!r}: "
                    "their gains cannot both go into it"
                )


def _owners(model: nn.Module) -> dict[int, list[str]]:
    """{memory of a parameter: names that it has}."""
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(parameter.data_ptr(), []).append(name)
    return owners


@torch.no_grad()
def _add_to_bias(linear_map: LinearMap, more: torch.Tensor) -> None:
    """Add to a map's bias, which it gets where it has none, and which trains if its weight does."""
    stored = linear_map.stored
    if linear_map.bias is None:
        bias = nn.Parameter(more.to(stored.dtype), requires_grad=stored.requires_grad)
        linear_map.module.bias = bias
    else:
        linear_map.bias.add_(more.to(linear_map.bias))


def _refuse_mixed(links):
    """Refuse norms that something else than maps reads."""
    mixed = [link for link in links if not link.is_free]
    if mixed:
        link = mixed[0]
        more = f", and {len(mixed) - 1} more norms likewise" if len(mixed) > 1 else ""
        raise ValueError(
            f"norm {link.name!r} feeds {', '.join(reader.name for reader in link.readers)} and "
            f"something else, such as a residual stream{more}: its gain is part of the function. "
            "Leave it as it is, by fold_norms(model, strict=False), or by gains without it"
        )


def _items(argument, given):
    """What a dict holds: [(module, tensor)]."""
    if not isinstance(given, Mapping):
        raise TypeError(
            f"{argument} is {type(given).__name__}, expected a dict {{module name: tensor}}"
        )
    return list(given.items())


def _named(links, name, argument, what):
    """The link of this name."""
    if name not in links:
        known = ", ".join(list(links)[:3]) or "none"
        more = ", ..." if len(links) > 3 else ""
        raise ValueError(f"{argument} names {name!r}, which is no {what}; there are: {known}{more}")
    return links[name]


def _check_factors(what, values, shape, *, zeros=False):
    """Refuse factors that do not fit, or cannot be undone."""
    if not isinstance(values, torch.Tensor) or tuple(values.shape) != tuple(shape):
        got = tuple(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
        raise ValueError(f"{what} is {got}, expected a tensor of shape {tuple(shape)}")
    if (
        values.is_complex()
        or not torch.isfinite(values).all()
        or (not zeros and (values == 0).any())
    ):
        raise ValueError(
            f"{what} has entries that are zero or not finite, or complex: expected others"
        )


def _columns_of_head(link, below, head):
    """All columns of the reader that meet one head of the writer: (outputs, head size)."""
    used = link.rows[:: link.head] // link.head
    parts = [part for part, h in zip(below.split(link.head, dim=1), used, strict=True) if h == head]
    return torch.cat(parts)


def _balanced_head(above, below):
    """By the singular values of the product, which are those of a small matrix."""
    left, right = torch.linalg.qr(below).R, torch.linalg.qr(above.T).R
    u, values, vt = torch.linalg.svd(left @ right.T)
    if values[-1] <= 1e-10 * values[0]:  # a value that is never used: any scale will do
        identity = torch.eye(len(values), dtype=values.dtype, device=values.device)
        return Balance(identity, identity)
    root = values.sqrt()
    return Balance((u / root).T @ left, right.T @ (vt.T / root))
