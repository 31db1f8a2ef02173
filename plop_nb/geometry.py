"""What a score measures: the direction that all tokens share, and what remains without it."""

import functools
import hashlib
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from plop_nb import batches
from plop_nb.maps import SCORED, LinearMap, linear_maps
from plop_nb.norms import baseline_gain
from plop_nb.offload import loaded
from plop_nb.recording import Observation, summary
from plop_nb.scoring import Observed, observe, with_shapes
from plop_nb.sources import elements, listed

COLUMNS = ["nfn", "nfn_square"]  # means that a split needs


def mean_split(
    model: nn.Module,
    data: Iterable,
    tokenizer: Any = None,
    *,
    batch_size: int | str = 8,
    max_length: int = 256,
    progress: bool = True,
    partial: str | Path | None = None,
    distribute: bool = True,
) -> pd.DataFrame:
    """Split the mean square score of every linear map into a shared and an individual part.

    With `u = z / ||z||` the direction of a token's input, `mu = E u` its mean over the real tokens
    of all texts and `share = ||mu||^2`, exactly (for the RMS baseline)

        E NFN(z)^2 = share * NFN(mu)^2 + (1 - share) * NFN(u - mu)^2

    The three are measured apart: the left side from the outputs in a first pass, the shared part
    from `mu` and the weight, the centred part from the outputs of a second pass. One vector per
    map is kept, no activations.

    Parameters
    ----------
    model, data, tokenizer, batch_size, max_length, progress, distribute
        As in `nfn_scores`. A `score_mask` in a batch says which tokens count.
    partial : str or Path, optional
        As in `nfn_scores`; the second pass keeps its samples in `PATH.centred`.

    Returns
    -------
    pandas.DataFrame
        One row per module: `module`, `type`, `layer`, `tokens`, `nfn` (mean over tokens),
        `mean_square` (mean of NFN^2), `share` (from 0 to 1), `nfn_mean` (of mu), `nfn_centred`
        (of u - mu, root mean square), `mean_part` and `centred_part` (they add up to
        `mean_square`). All dimensionless. `nfn_centred` is NaN where all inputs are parallel.

    Raises
    ------
    TypeError, ValueError
        As `nfn_scores`.

    Warns
    -----
    UserWarning
        Some linear maps are left out, such as experts: names them, with the reason.

    Examples
    --------
    >>> layer = torch.nn.Linear(2, 2, bias=False)
    >>> _ = layer.weight.data.copy_(torch.diag(torch.tensor([0.0, 1.0])))
    >>> batch = {"input": torch.tensor([[[3.0, 4.0], [3.0, -4.0]]])}
    >>> row = mean_split(layer, [batch], progress=False).iloc[0]
    >>> columns = ["share", "nfn_mean", "mean_part", "centred_part", "mean_square"]
    >>> [round(float(row[column]), 2) for column in columns]
    [0.36, 0.0, 0.0, 1.28, 1.28]
    """
    run = functools.partial(
        observe,
        model,
        _reusable(data),
        tokenizer,
        columns=COLUMNS,
        batch_size=batch_size,
        max_length=max_length,
        progress=progress,
        distribute=distribute,
    )
    seen = run(_direction, partial=partial, measure="directions", adds_up=True)
    _warn_of_missing(seen)
    means = _means(seen)
    along = _Along(model, means)
    second = None if partial is None else f"{partial}.centred"
    rest = run(along.centred, partial=second, measure=f"without {_digest(means)}")

    table = _over_tokens(seen.frame, COLUMNS).rename(columns={"nfn_square": "mean_square"})
    table = table[table["module"].isin(means)].reset_index(drop=True)
    names = table["module"]
    centred = _over_tokens(rest.frame, ["nfn_square"]).set_index("module")["nfn_square"]
    centred = centred[names].to_numpy()
    table["share"] = [means[name].square().sum().item() for name in names]
    table["nfn_mean"] = [along.nfn(name) for name in names]
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = centred / (1 - table["share"])
        table["nfn_centred"] = np.sqrt(spread.where(table["share"] < 1 - 1e-6))
    table["mean_part"] = table["share"] * table["nfn_mean"] ** 2
    table["centred_part"] = centred
    return table


def mean_inputs(
    model: nn.Module,
    data: Iterable,
    tokenizer: Any = None,
    *,
    batch_size: int | str = 8,
    max_length: int = 256,
    progress: bool = True,
    partial: str | Path | None = None,
    distribute: bool = True,
) -> dict[str, torch.Tensor]:
    """Mean direction `mu = E z / ||z||` of every map's inputs over all real tokens.

    Arguments as in `mean_split`. Returns {module name: tensor (in_features,), float32, on the CPU}.
    The norm of `mu` tells how alike the inputs are: 1 for parallel ones, near 0 for independent
    ones.
    """
    seen = observe(
        model,
        data,
        tokenizer,
        _direction,
        columns=COLUMNS,
        batch_size=batch_size,
        max_length=max_length,
        progress=progress,
        partial=partial,
        measure="directions",
        adds_up=True,
        distribute=distribute,
    )
    _warn_of_missing(seen)
    return _means(seen)


def nfn_without(
    model: nn.Module,
    data: Iterable,
    tokenizer: Any,
    directions: Mapping[str, torch.Tensor],
    *,
    batch_size: int | str = 8,
    max_length: int = 256,
    progress: bool = True,
    partial: str | Path | None = None,
    distribute: bool = True,
) -> pd.DataFrame:
    """Scores of the inputs without one direction: NFN(z - <z, d> d), d of length 1.

    An intervention on what a map is shown; the model itself runs unchanged.

    Parameters
    ----------
    directions : dict
        {module name: vector (in_features,)}, such as `mean_inputs` returns; normalised here. Maps
        that it does not name are left out.

    Other arguments as in `mean_split`. Returns a frame as `nfn_scores` does, which `place` takes.
    """
    _check(directions, model)
    unit_directions = {}
    for name, vector in directions.items():
        unit_directions[name] = vector.float() / vector.float().norm()
    along = _Along(model, unit_directions)
    seen = observe(
        model,
        data,
        tokenizer,
        along.removed,
        batch_size=batch_size,
        max_length=max_length,
        progress=progress,
        partial=partial,
        measure=f"removed {_digest(unit_directions)}",
        distribute=distribute,
    )
    _warn_of_missing(seen)
    named = seen.frame[seen.frame["module"].isin(directions)].reset_index(drop=True)
    return with_shapes(named, model)


def interventions(
    texts: Iterable[str], tokenizer: Any, *, max_length: int = 256, seed: int = 0
) -> dict[str, list[dict[str, torch.Tensor]]]:
    """The same texts with one thing changed: what does the shared direction need?

    Returns
    -------
    dict
        Batches for `mean_split`: "as it is"; "first token left out" (read, not counted); "tokens
        shuffled" (all but the first); "random tokens" (drawn evenly from the vocabulary, but for
        the first).
    """
    generator = torch.Generator().manual_seed(seed)
    texts = listed(texts)
    rows = [row["input_ids"] for row in batches.encode(texts, tokenizer, max_length)]
    found: dict[str, list[dict[str, torch.Tensor]]] = {
        "as it is": [{"input_ids": ids[None]} for ids in rows],
        "first token left out": [],
        "tokens shuffled": [],
        "random tokens": [],
    }
    for ids in rows:
        behind_first = (torch.arange(len(ids)) > 0).long()
        found["first token left out"].append(
            {"input_ids": ids[None], "score_mask": behind_first[None]}
        )
    for ids in rows:
        order = torch.randperm(len(ids) - 1, generator=generator)
        shuffled = torch.cat([ids[:1], ids[1:][order]])
        found["tokens shuffled"].append({"input_ids": shuffled[None]})
    for ids in rows:
        drawn = torch.randint(len(tokenizer), ids[1:].shape, generator=generator)
        found["random tokens"].append({"input_ids": torch.cat([ids[:1], drawn])[None]})
    return found


def untrained(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """A model of the same shape with the weights that training would start from."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh = type(model)(model.config)
    return fresh.to(model.device, model.dtype).eval()


def _direction(linear_map, z, features, mask):
    """An observer that adds up the directions of the inputs."""
    z = z.float()
    norm = torch.linalg.vector_norm(z, dim=-1)
    real = (mask.to(norm.device) > 0) & (norm != 0)
    scale = torch.where(real, 1 / norm, 0.0).flatten()
    return Observation(total=scale @ z.flatten(0, 1))


class _Along:
    """One direction for each map, what the map makes of it, and observers that take it away."""

    def __init__(self, model: nn.Module, directions: Mapping[str, torch.Tensor]) -> None:
        self._maps: dict[str, LinearMap] = {}
        for linear_map in linear_maps(model):
            if linear_map.name in directions and linear_map.expert is None:
                self._maps[linear_map.name] = linear_map
        self._given = directions
        self._directions: dict[str, torch.Tensor] = {}
        self._features: dict[str, torch.Tensor] = {}  # W d
        self._gains: dict[str, torch.Tensor] = {}  # what W makes of noise

    def _meet(self, linear_map):
        """Read a map's weight once: while it runs, where PEFT adds to parameters only then."""
        name = linear_map.name
        if name not in self._features:
            with loaded(linear_map.module):
                self._gains[name] = baseline_gain(linear_map.weight)
                weight = linear_map.weight.float()
                self._directions[name] = self._given[name].to(weight)
                self._features[name] = weight @ self._directions[name]

    def nfn(self, name: str) -> float:
        """NFN of a map's direction."""
        self._meet(self._maps[name])
        noise = self._directions[name].norm() * self._gains[name]
        return (self._features[name].norm() / noise).item()

    def centred(self, linear_map: LinearMap, z, features, mask) -> Observation | None:
        """||W (z - ||z|| d)|| in place of ||W z||."""
        if linear_map.name not in self._maps:
            return None
        self._meet(linear_map)
        along = self._features[linear_map.name].to(z.device)
        amount = torch.linalg.vector_norm(z.float(), dim=-1)[..., None]
        rest = features.float() - amount * along
        return Observation(feature_norm=torch.linalg.vector_norm(rest, dim=-1))

    def removed(self, linear_map: LinearMap, z, features, mask) -> Observation | None:
        """Both norms of z - <z, d> d."""
        if linear_map.name not in self._maps:
            return None
        self._meet(linear_map)
        direction = self._directions[linear_map.name].to(z.device)
        along = self._features[linear_map.name].to(z.device)
        z = z.float()
        amount = (z @ direction)[..., None]
        return Observation(
            input_norm=torch.linalg.vector_norm(z - amount * direction, dim=-1),
            feature_norm=torch.linalg.vector_norm(features.float() - amount * along, dim=-1),
        )


def _means(seen: Observed) -> dict[str, torch.Tensor]:
    """{module: mu}, for every map that was scored."""
    tokens = seen.frame.groupby("module")["tokens"].sum()
    return {
        name: total / int(tokens[name]) for name, total in seen.totals.items() if name in tokens
    }


def _reusable(data):
    """Data that can be gone through twice."""
    return list(batches.peek(elements(data))[1])


def _warn_of_missing(seen):
    stacks = set(seen.stacks)
    unseen = {name: why for name, why in seen.unseen.items() if name not in stacks}
    unseen |= dict.fromkeys(stacks, "experts, which are left out")
    if unseen:
        warnings.warn(f"linear maps without a result: {summary(unseen)}", stacklevel=3)


def _digest(directions):
    """A short hash of some directions, which tells one file of finished samples from another."""
    digest = hashlib.sha256()
    for name in sorted(directions):
        digest.update(name.encode() + directions[name].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _over_tokens(frame, columns):
    """Means over all tokens of all samples, one row per module in the order of the frame."""
    sums = frame[columns].mul(frame["tokens"], axis=0).assign(tokens=frame["tokens"])
    sums = sums.groupby(frame["module"], sort=False).sum()
    means = sums[columns].div(sums["tokens"], axis=0).assign(tokens=sums["tokens"])
    names = frame.drop_duplicates("module")[["module", "type", "layer"]]
    return names.merge(means.reset_index())


def _check(directions, model):
    sizes = {m.name: m.shape[1] for m in linear_maps(model) if m.status == SCORED}
    for name, vector in directions.items():
        if name not in sizes:
            raise ValueError(
                f"directions names {name!r}, which is no scored map of this model (see "
                "module_table)"
            )
        if sizes[name] != len(vector):
            raise ValueError(
                f"directions[{name!r}] has {len(vector)} entries, but the map takes {sizes[name]}"
            )
        if not torch.isfinite(vector).all() or not vector.any():
            raise ValueError(f"directions[{name!r}] is zero or not finite: it is no direction")
