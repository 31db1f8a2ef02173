"""What a score measures: the direction that all tokens share, and what remains without it."""

import os
import warnings
from collections.abc import Mapping

import numpy as np
import torch
from tqdm.auto import tqdm

from plop_nb import batches
from plop_nb.hooks import Record, attached
from plop_nb.modules import trunk_of
from plop_nb.nfn import evaluating, forward, positioned
from plop_nb.offload import loaded

SCORES = ["sample", "module", "type", "layer", "tokens", "nfn"]


def mean_split(model, data, tokenizer=None, *, batch_size=8, max_length=256, progress=True):
    """Split the mean square score of every linear map into a shared and an individual part.

    With `u = z / ||z||` the direction of a token's input, `mu = E u` its mean over the real tokens
    of all texts and `share = ||mu||^2`, exactly (for the RMS baseline)

        E NFN(z)^2 = share * NFN(mu)^2 + (1 - share) * NFN(u - mu)^2

    The three are measured apart: the left side from the outputs in a first pass, the shared part
    from `mu` and the weight, the centred part from the outputs of a second pass. One vector per
    map is kept, no activations.

    Parameters
    ----------
    model, data, tokenizer, batch_size, max_length, progress
        As in `nfn_scores`; `batch_size` is a number. A `score_mask` in a batch says which tokens count.

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
        Stacks of experts are left out: names them.

    Examples
    --------
    >>> layer = torch.nn.Linear(2, 2, bias=False)
    >>> _ = layer.weight.data.copy_(torch.diag(torch.tensor([0.0, 1.0])))
    >>> batch = {"input": torch.tensor([[[3.0, 4.0], [3.0, -4.0]]])}
    >>> row = mean_split(layer, [batch], progress=False).iloc[0]
    >>> [round(float(row[c]), 2) for c in ["share", "nfn_mean", "mean_part", "centred_part", "mean_square"]]
    [0.36, 0.0, 0.0, 1.28, 1.28]
    """
    data = _reusable(data)
    record = _Means(model)
    frame = _run(record, model, data, tokenizer, batch_size, max_length, progress)
    means = record.means()
    centred = _Without(model, means, subtract_mean=True)
    rest = _run(centred, model, data, tokenizer, batch_size, max_length, progress)
    table = _over_tokens(frame, ["nfn", "nfn_square"]).rename(columns={"nfn_square": "mean_square"})
    table = table[table["module"].isin(means)].reset_index(drop=True)
    names = table["module"]
    part = _over_tokens(rest, ["nfn_square"]).set_index("module")["nfn_square"]
    table["share"] = [means[name].square().sum().item() for name in names]
    table["nfn_mean"] = [centred.gain_along(name) for name in names]
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = part[names].to_numpy() / (1 - table["share"])
        table["nfn_centred"] = np.sqrt(spread.where(table["share"] < 1 - 1e-6))
    return table.assign(mean_part=table["share"] * table["nfn_mean"] ** 2, centred_part=part[names].to_numpy())


def mean_inputs(model, data, tokenizer=None, *, batch_size=8, max_length=256, progress=True):
    """Mean direction `mu = E z / ||z||` of every map's inputs over all real tokens.

    Arguments as in `mean_split`. Returns {module name: tensor (in_features,), float32}. The norm of
    `mu` tells how alike the inputs are: 1 for parallel ones, near 0 for independent ones.
    """
    record = _Means(model)
    _run(record, model, data, tokenizer, batch_size, max_length, progress)
    return record.means()


def nfn_without(model, data, tokenizer, directions, *, batch_size=8, max_length=256, progress=True):
    """Scores of the inputs without one direction: NFN(z - <z, d> d), d of length 1.

    An intervention on what a map is shown; the model itself runs unchanged.

    Parameters
    ----------
    directions : dict
        {module name: vector (in_features,)}, such as `mean_inputs` returns; normalised here. Maps
        that it does not name are left out.

    Other arguments as in `mean_split`. Returns a frame as `nfn_scores` does.
    """
    record = _Without(model, directions)
    frame = _run(record, model, _reusable(data), tokenizer, batch_size, max_length, progress)
    return frame[frame["module"].isin(directions)][SCORES].reset_index(drop=True)


def interventions(texts, tokenizer, *, max_length=256, seed=0):
    """The same texts with one thing changed, as batches for `mean_split`: what does the shared direction need?

    Returns
    -------
    dict
        "as it is"; "first token left out" (read, not counted); "tokens shuffled" (all but the
        first); "random tokens" (drawn evenly from the vocabulary, but for the first).
    """
    generator = torch.Generator().manual_seed(seed)
    rows = [row["input_ids"] for row in batches.encode(list(texts), tokenizer, max_length)]
    kept = lambda ids, change: torch.cat([ids[:1], change(ids[1:])])[None]
    shuffled = lambda ids: ids[torch.randperm(len(ids), generator=generator)]
    drawn = lambda ids: torch.randint(len(tokenizer), ids.shape, generator=generator)
    return {
        "as it is": [{"input_ids": ids[None]} for ids in rows],
        "first token left out": [
            {"input_ids": ids[None], "score_mask": (torch.arange(len(ids)) > 0).long()[None]} for ids in rows
        ],
        "tokens shuffled": [{"input_ids": kept(ids, shuffled)} for ids in rows],
        "random tokens": [{"input_ids": kept(ids, drawn)} for ids in rows],
    }


def untrained(model, *, seed=0):
    """A model of the same shape with the weights that training would start from."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh = type(model)(model.config)
    return fresh.to(model.device, model.dtype).eval()


class _Means(Record):
    """Also sums the directions of the inputs."""

    def __init__(self, model):
        super().__init__(model)
        self._sums = {}  # map index -> [sum of z / ||z||, tokens]

    def _observed(self, index, z, out, norm_in, norm_out, mask):
        counted = (mask.to(norm_in.device) > 0) & (norm_in != 0)
        scale = torch.where(counted, 1 / norm_in, 0.0).flatten()
        total = scale @ self._by_sample(index, z, len(mask)).flatten(0, 1)
        vector, tokens = self._sums.get(index, (0, 0))
        self._sums[index] = vector + total, tokens + counted.sum()
        return norm_in, norm_out

    def means(self):
        """{module name: mu}, for every map that was scored."""
        gone = self.unclear()
        return {self._maps[i].name: v / n for i, (v, n) in self._sums.items() if n and self._maps[i].name not in gone}


class _Without(Record):
    """Norms without a direction; with `subtract_mean`, norms of z - ||z|| d relative to ||z||."""

    def __init__(self, model, directions, subtract_mean=False):
        super().__init__(model)
        _check(directions, self._maps)
        self._subtract_mean = subtract_mean
        self._along = {}  # map index -> (d, W d)
        for index, linear_map in enumerate(self._maps):
            if linear_map.name in directions and linear_map.expert is None:
                with loaded(linear_map.module):
                    weight = linear_map.weight.float()
                    d = directions[linear_map.name].to(weight)
                    d = d if subtract_mean else d / d.norm()
                    self._along[index] = d, weight @ d

    def _observed(self, index, z, out, norm_in, norm_out, mask):
        if index not in self._along:
            return norm_in, norm_out
        d, along = (x.to(z.device) for x in self._along[index])
        z, out = self._by_sample(index, z, len(mask)), self._by_sample(index, out, len(mask))
        bias = self._away[index] if index in self._away else self._maps[index].bias
        out = out if bias is None else out - bias.float()
        amount = (norm_in if self._subtract_mean else z @ d)[..., None]
        norm_out = torch.linalg.vector_norm(out - amount * along, dim=-1)
        if not self._subtract_mean:
            norm_in = torch.linalg.vector_norm(z - amount * d, dim=-1)
        return norm_in, norm_out

    def gain_along(self, name):
        """NFN of the direction of a map."""
        index = next(i for i, m in enumerate(self._maps) if m.name == name)
        d, along = self._along[index]
        return (along.norm() / (d.norm() * self._gain(index).to(d.device))).item()


def _reusable(data):
    """Data that can be gone through twice."""
    return list(batches.peek(data)[1])


def _run(record, model, data, tokenizer, batch_size, max_length, progress):
    """Forward all data under this record's hooks; its frame, samples numbered by their position in the data."""
    first, data = batches.peek(data)
    if isinstance(first, Mapping):
        source, total = batches.of_collator(data), None
    else:
        rows = batches.encode(list(data), tokenizer, max_length)
        size = batches.BatchSize(batches.positive("batch_size", batch_size), torch.device("cpu"))
        source, total = batches.of_texts(rows, range(len(rows)), size, model, tokenizer), len(rows)
    trunk, samples, hidden = trunk_of(model), [], not progress or bool(os.environ.get("TQDM_DISABLE"))
    with evaluating(model), torch.no_grad(), attached(record), tqdm(total=total, disable=hidden) as bar:
        for positions, batch in source:
            forward(trunk, batch, record)
            samples += positions
            bar.update(len(positions))
    if stacks := sorted({m.name for m in record._maps if m.expert is not None}):
        warnings.warn(f"stacks of experts are left out: {', '.join(stacks[:3])} ({len(stacks)})", stacklevel=3)
    return positioned(record.frame(), samples).sort_values("sample", kind="stable", ignore_index=True)


def _over_tokens(frame, columns):
    """Means over all tokens of all samples, one row per module in the order of the frame."""
    sums = frame[columns].mul(frame["tokens"], axis=0).assign(tokens=frame["tokens"])
    sums = sums.groupby(frame["module"], sort=False).sum()
    names = frame.drop_duplicates("module")[["module", "type", "layer"]]
    return names.merge(sums[columns].div(sums["tokens"], axis=0).assign(tokens=sums["tokens"]).reset_index())


def _check(directions, maps):
    sizes = {m.name: m.shape[1] for m in maps}
    for name, vector in directions.items():
        if name not in sizes:
            raise ValueError(f"directions names {name!r}, which is no scored map of this model (see module_table)")
        if sizes[name] != len(vector):
            raise ValueError(f"directions[{name!r}] has {len(vector)} entries, but the map takes {sizes[name]}")
        if not torch.isfinite(vector).all() or not vector.any():
            raise ValueError(f"directions[{name!r}] is zero or not finite: it is no direction")
