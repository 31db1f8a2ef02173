"""Outlier channels: the few coordinates that carry the direction that all tokens share.

`geometry.mean_inputs` gives the mean direction of a map's inputs. In some pretrained models most
of it is a single channel (see LLM.int8(), arXiv 2208.07339). These functions find the channel, say
how much the map reads of it, and look in front of the norm, where the residual stream has it.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import nn

from plop_nb import batches
from plop_nb.checks import positive_integer
from plop_nb.forwards import evaluating, forward
from plop_nb.links import NormLink, after
from plop_nb.maps import SCORED, LinearMap, linear_maps
from plop_nb.norms import baseline_gain
from plop_nb.offload import loaded
from plop_nb.probing import norm_links
from plop_nb.sources import listed
from plop_nb.wrappers import trunk_of

# Columns of `stream_channels` and of `loudest_tokens`, also where no map reads a norm.
STREAM = [
    "module", "norm", "channel", "gain", "stream_share", "stream_participation", "stream_channel",
    "before",
]  # fmt: skip
LOUDEST = [
    "norm", "sample", "position", "size", "other_size", "channel", "value", "other_value",
]  # fmt: skip


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
    model : torch.nn.Module
        As in `probing.norm_table`, which tells which norms there are and what reads them.
    texts : iterable of str
        What `means` were taken over; one text runs at a time.
    tokenizer, max_length
        As in `nfn_scores`.
    means : dict
        As in `mean_channels`: of what comes out of the norm.

    Returns
    -------
    pandas.DataFrame
        One row per norm and map of `means` that reads it: `module`, `norm` (its name), `channel`
        (the leading one of `means`), `gain` (size of the norm's gain for it over the root mean
        square of all gains); `stream_share`, `stream_participation`, `stream_channel` (as `share`,
        `participation` and `channel`, of the mean direction of what enters the norm); `before` (the
        square of `channel` in that direction, over the whole; `channel_share` says it behind the
        gain). All dimensionless but names and channels.

    Raises
    ------
    TypeError, ValueError
        Bad texts or no tokenizer, as in `nfn_scores`; a model that `probing.norm_table` refuses; or
        `means` does not fit the model (see `mean_channels`).
    """
    _check(means, _scored(model))
    totals: dict[str, torch.Tensor] = {}  # norm -> sum of its inputs' directions
    tokens: dict[str, int] = {}

    def add(norm, _, stream):
        total = nn.functional.normalize(stream, dim=-1).sum(0)
        totals[norm] = totals.get(norm, 0) + total
        tokens[norm] = tokens.get(norm, 0) + len(stream)

    rows = []
    for link in _watch(model, texts, tokenizer, max_length, add):
        if link.name not in totals:  # in a layer that no text took
            continue
        square = (totals[link.name] / tokens[link.name]).square()
        for reader in link.readers:
            if reader.name in means:
                rows.append(_in_front(link, reader.name, means[reader.name], square))
    return pd.DataFrame(rows, columns=STREAM)


def loudest_tokens(
    model: nn.Module, texts: Iterable[str], tokenizer: Any, *, max_length: int = 256
) -> pd.DataFrame:
    """Where the token with the largest residual stream stands, and which channel makes it large.

    In many language models it is the first token, to which the others attend without need:
    an attention sink (arXiv 2309.17453) with massive activations (arXiv 2402.17762).

    Arguments, and errors, as in `stream_channels`.

    Returns
    -------
    pandas.DataFrame
        One row per norm that linear maps read (see `probing.norm_table`), and text: `norm`,
        `sample` (position in `texts`), `position` (from 0), `size` (||x|| of that token as it
        enters the norm), `other_size` (median over the text's other tokens), `channel` (its
        largest), `value`, `other_value` (|x_c| there, and the median over the others). Sizes are in
        the units of the residual stream. NaN in texts of one token. A norm that runs several times
        in one forward has as many rows.
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
    return pd.DataFrame(rows, columns=LOUDEST)


@torch.no_grad()
def _watch(
    model: nn.Module,
    texts: Iterable[str],
    tokenizer: Any,
    max_length: int,
    note: Callable[[str, int, torch.Tensor], None],
) -> list[NormLink]:
    """Run texts one by one: `note(norm, sample, stream)` whenever a norm that maps read has run.

    `stream` (tokens, width), float32, on the CPU, is what has entered it. Returns the norms.
    """
    rows = batches.encode(listed(texts), tokenizer, max_length)
    links = norm_links(model)
    with evaluating(model):
        for sample, row in enumerate(rows):
            with ExitStack() as hooks:
                for link in links:
                    see = partial(_see, note, link.name, sample)
                    hooks.enter_context(after(link.module, see))
                forward(trunk_of(model), {key: value[None] for key, value in row.items()})
    return links


def _see(note, norm, sample, x, _):
    """After a norm's forward: pass on what has entered it."""
    note(norm, sample, x.float().reshape(-1, x.shape[-1]).cpu())


def _in_front(link, module, mean, square):
    """One row of `stream_channels`; `square` (width,): of the mean direction before the norm."""
    gain, channel = link.gain.cpu(), int(mean.abs().argmax())
    return {
        "module": module,
        "norm": link.name,
        "channel": channel,
        "gain": (gain[channel].abs() / gain.square().mean().sqrt()).item(),
        "stream_share": square.sum().item(),
        "stream_participation": _participation(square),
        "stream_channel": int(square.argmax()),
        "before": (square[channel] / square.sum()).item(),
    }


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
