"""Outlier channels: the few coordinates that carry the direction that all tokens share.

`geometry.mean_inputs` gives the mean direction of a map's inputs. In pretrained models nearly all
of it may be a single channel (LLM.int8(), arXiv 2208.07339). These functions find the channel, say
how much the map reads of it, and look in front of the norm, where the residual stream has it.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import pandas as pd
import torch
from torch import nn

from plop_nb import batches
from plop_nb.checks import positive_integer
from plop_nb.forwards import evaluating, forward
from plop_nb.maps import SCORED, LinearMap, linear_maps
from plop_nb.norms import baseline_gain
from plop_nb.offload import loaded
from plop_nb.sources import elements
from plop_nb.wrappers import trunk_of, unwrapped


def mean_channels(
    model: nn.Module, means: Mapping[str, torch.Tensor], *, top: int = 1
) -> pd.DataFrame:
    """How few channels hold each map's mean input, and how much the map reads of them.

    No forward: everything follows from the means and the weights. That `column` is the NFN of an
    input along the channel alone is an identity, as is

        nfn_mean^2 = channel_share column^2 + (1 - channel_share) nfn_rest^2 + a cross term

    Parameters
    ----------
    means : dict
        {module name: mean direction mu, (in_features,)}, from `geometry.mean_inputs`.
    top : int
        How many leading channels to list for each map.

    Returns
    -------
    pandas.DataFrame
        One row per map and rank: `module`, `type`, `layer`; `share` (||mu||^2, from 0 to 1);
        `participation` ((sum mu^2)^2 / sum mu^4, in channels: 1 for one channel, n for n alike);
        `rank` (from 1), `channel`, `channel_share` (mu_c^2 / ||mu||^2); `column` (||W_c|| over
        the root mean square of all columns' norms); `column_rank` (1 for the smallest column of
        the map); `nfn_mean` (NFN of mu), `nfn_rest` (of mu without the channels up to this rank;
        NaN where nothing is left).

    Raises
    ------
    ValueError
        `means` is empty, names no scored map of this model, does not fit its map, or is zero or
        not finite; `top` is below 1 or above the inputs of a map.

    Examples
    --------
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 1.0]]))
    >>> row = mean_channels(layer, {"": torch.tensor([0.0, 0.5])}).iloc[0]
    >>> columns = ["share", "participation", "channel", "channel_share", "column"]
    >>> [round(float(row[column]), 2) for column in columns]
    [0.25, 1.0, 1.0, 1.0, 0.45]
    """
    top = positive_integer("top", top)
    maps = _scored(model)
    _check(means, maps, top)
    rows = []
    for name, linear_map in maps.items():
        if name in means:
            rows += _channels_of(linear_map, means[name].float(), top)
    return pd.DataFrame(rows).astype({"layer": "Int64"})


def column_sizes(model: nn.Module, modules: Iterable[str]) -> dict[str, torch.Tensor]:
    """How large the column of each input channel is, in the weights of some maps.

    Returns
    -------
    dict
        {module name: tensor (in_features,)}, float32, on the CPU: ||W_c|| over the root mean
        square of all columns' norms. It is the NFN of an input along channel c alone.

    Raises
    ------
    ValueError
        `modules` names no scored map of this model.
    """
    maps = _scored(model)
    found = {}
    for name in modules:
        if name not in maps:
            raise ValueError(f"modules names {name!r}, which is no scored map (see module_table)")
        found[name] = _columns(*_weight(maps[name]))
    return found


def leading_channels(means: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The unit vector of each mean's largest channel: directions for `geometry.nfn_without`."""
    directions = {}
    for name, mean in means.items():
        direction = torch.zeros(len(mean))
        direction[mean.abs().argmax()] = 1
        directions[name] = direction
    return directions


def other_channels(means: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each mean without its largest channel: directions for `geometry.nfn_without`."""
    leading = leading_channels(means)
    return {name: mean.float() * (1 - leading[name]) for name, mean in means.items()}


def stream_channels(
    model: nn.Module,
    texts: Iterable[str],
    tokenizer: Any,
    means: Mapping[str, torch.Tensor],
    *,
    max_length: int = 256,
) -> pd.DataFrame:
    """The leading channel of a map's mean input, in front of the norm and of its gain.

    Maps whose input is not the output of a norm (such as o and down) have no row.

    Parameters
    ----------
    means : dict
        As in `mean_channels`: of what comes out of the norm.

    Other arguments as in `nfn_scores`; one text runs at a time.

    Returns
    -------
    pandas.DataFrame
        One row per map: `module`, `norm` (its name), `channel` (the leading one of `means`),
        `gain` (size of the norm's gain for it over the root mean square of all gains);
        `stream_share`, `stream_participation`, `stream_channel` (as `share`, `participation` and
        `channel`, of the mean direction of what enters the norm); `before` (the square of
        `channel` in that direction, over the whole; `channel_share` says it behind the gain).

    Raises
    ------
    TypeError, ValueError
        As `nfn_scores`; or `means` does not fit the model (see `mean_channels`).
    """
    _check(means, _scored(model))
    totals: dict[str, torch.Tensor] = {}
    tokens: dict[str, int] = {}

    def add(norm, _, stream):
        total = nn.functional.normalize(stream, dim=-1).sum(0)
        totals[norm] = totals.get(norm, 0) + total
        tokens[norm] = tokens.get(norm, 0) + len(stream)

    norm_of = _watch(model, texts, tokenizer, max_length, add)
    gains = {norm: gain_of(module) for norm, module in _norms(model) if norm in totals}
    rows = []
    for name, norm in norm_of.items():
        if name not in means:
            continue
        square, gain = (totals[norm] / tokens[norm]).square(), gains[norm]
        channel = int(means[name].abs().argmax())
        rows.append(
            {
                "module": name,
                "norm": norm,
                "channel": channel,
                "gain": (gain[channel].abs() / gain.square().mean().sqrt()).item(),
                "stream_share": square.sum().item(),
                "stream_participation": _participation(square),
                "stream_channel": int(square.argmax()),
                "before": (square[channel] / square.sum()).item(),
            }
        )
    return pd.DataFrame(rows)


def loudest_tokens(
    model: nn.Module, texts: Iterable[str], tokenizer: Any, *, max_length: int = 256
) -> pd.DataFrame:
    """Where the token with the largest residual stream stands, and which channel makes it large.

    In many language models it is the first token, to which the others attend without need:
    an attention sink (arXiv 2309.17453) with massive activations (arXiv 2402.17762).

    Arguments as in `stream_channels`.

    Returns
    -------
    pandas.DataFrame
        One row per norm in front of a map, and text: `norm`, `sample`, `position` (from 0),
        `size` (||x|| of that token as it enters the norm), `other_size` (median over the text's
        other tokens), `channel` (its largest), `value`, `other_value` (|x_c| there, and the median
        over the others). Sizes are in the units of the residual stream. NaN in texts of one token.
    """
    rows = []

    def note(norm, sample, stream):
        sizes = stream.norm(dim=-1)
        position = int(sizes.argmax())
        others = torch.arange(len(stream)) != position
        channel = int(stream[position].abs().argmax())
        rows.append(
            {
                "norm": norm,
                "sample": sample,
                "position": position,
                "size": sizes[position].item(),
                "other_size": _median(sizes[others]),
                "channel": channel,
                "value": stream[position, channel].abs().item(),
                "other_value": _median(stream[others, channel].abs()),
            }
        )

    _watch(model, texts, tokenizer, max_length, note)
    return pd.DataFrame(rows)


@torch.no_grad()
def gain_of(norm: nn.Module, *, size: float = 1.0) -> torch.Tensor:
    """By what a norm multiplies each normalised channel: (width,), float32, on the CPU.

    Asked of the norm and not read from it: some store the gain, others the gain less 1. `size` is
    that of the inputs with which it is asked.
    """
    with loaded(norm):
        weight = norm.weight
        ones = torch.ones_like(weight)
        ones[1::2] = -1  # mean 0, mean square 1: the same for a LayerNorm as for an RMSNorm
        outputs = norm(torch.stack([size * ones, -size * ones])).float()
    return ((outputs[0] - outputs[1]) / 2 * ones.float()).cpu()  # a LayerNorm's shift drops out


def _watch(
    model: nn.Module,
    texts: Iterable[str],
    tokenizer: Any,
    max_length: int,
    note: Callable[[str, int, torch.Tensor], None],
) -> dict[str, str]:
    """Run texts one by one: `note(norm, sample, stream)` for every norm that a map reads.

    `stream` (tokens, width), float32, on the CPU, is what enters the norm. Returns {map: its norm}.
    """
    norm_of: dict[str, str] = {}
    passed: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # {norm: what entered, what left}

    def at_norm(name, args, out):
        passed[name] = (args[0].detach(), out)

    def at_map(name, args, kwargs):
        z = args[0] if args else next(iter(kwargs.values()))
        for norm, (_, out) in passed.items():
            if out is z:
                norm_of[name] = norm

    with ExitStack() as hooks, evaluating(model), torch.no_grad():
        for name, norm in _norms(model):
            hook = norm.register_forward_hook(
                lambda _, args, out, name=name: at_norm(name, args, out)
            )
            hooks.callback(hook.remove)
        for name, linear_map in _scored(model).items():
            hook = linear_map.module.register_forward_pre_hook(
                lambda _, args, kwargs, name=name: at_map(name, args, kwargs), with_kwargs=True
            )
            hooks.callback(hook.remove)
        for sample, row in enumerate(batches.encode(list(elements(texts)), tokenizer, max_length)):
            passed.clear()
            forward(trunk_of(model), {key: value[None] for key, value in row.items()})
            for norm in dict.fromkeys(norm_of.values()):
                if norm not in passed:  # a layer that this text did not take
                    continue
                stream = passed[norm][0].float().cpu()
                note(norm, sample, stream.reshape(-1, stream.shape[-1]))
    return norm_of


def _norms(model):
    """(name, module) of every norm: one weight per channel, and blind to the size of its input."""
    for name, module in unwrapped(model).named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, nn.Parameter) or weight.ndim != 1 or any(module.children()):
            continue
        if torch.allclose(gain_of(module), gain_of(module, size=2.0), rtol=0.02):
            yield name, module


def _scored(model) -> dict[str, LinearMap]:
    """{name: map} of every map that is scored by itself (no expert of a stack)."""
    found = {}
    for linear_map in linear_maps(model):
        if linear_map.status == SCORED and linear_map.expert is None:
            found[linear_map.name] = linear_map
    return found


def _channels_of(linear_map, mean, top):
    """The rows of one map in `mean_channels`."""
    weight, noise = _weight(linear_map)
    square, columns = mean.square(), _columns(weight, noise)
    rest, rows = mean.clone(), []
    for rank, channel in enumerate(square.argsort(descending=True)[:top].tolist(), start=1):
        rest[channel] = 0
        rows.append(
            {
                "module": linear_map.name,
                "type": linear_map.type,
                "layer": linear_map.layer,
                "share": square.sum().item(),
                "participation": _participation(square),
                "rank": rank,
                "channel": channel,
                "channel_share": (square[channel] / square.sum()).item(),
                "column": columns[channel].item(),
                "column_rank": int((columns < columns[channel]).sum()) + 1,
                "nfn_mean": ((weight @ mean).norm() / mean.norm() / noise).item(),
                "nfn_rest": ((weight @ rest).norm() / rest.norm() / noise).item(),
            }
        )
    return rows


def _weight(linear_map):
    """W, float32, on the CPU, and its baseline: what noise gives, ||W||_F / sqrt(in)."""
    with loaded(linear_map.module):
        weight = linear_map.weight
        return weight.float().cpu(), baseline_gain(weight).item()


def _columns(weight, noise):
    """The norms of columns, over their root mean square: that is the baseline as well."""
    return weight.norm(dim=0) / noise


def _participation(square):
    """Over how many channels a vector with these squares is spread."""
    return (square.sum().square() / square.square().sum()).item()


def _median(values):
    return values.median().item() if len(values) else float("nan")


def _check(means, maps, top=1):
    if not means:
        raise ValueError("means is empty: pass what mean_inputs gave for this model")
    for name, mean in means.items():
        if name not in maps:
            raise ValueError(
                f"means names {name!r}, which is no scored map of this model: pass what "
                "mean_inputs gave for it"
            )
        inputs = maps[name].shape[1]
        if mean.shape != (inputs,):
            raise ValueError(
                f"means[{name!r}] has shape {tuple(mean.shape)}, but the map takes {inputs} "
                "channels: pass what mean_inputs gave for this model"
            )
        if not torch.isfinite(mean).all() or not mean.any():
            raise ValueError(f"means[{name!r}] is zero or not finite: it is no direction")
        if top > inputs:
            raise ValueError(f"top={top}, but {name!r} takes {inputs} channels: choose fewer")
