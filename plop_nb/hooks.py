"""What passes through a model's linear maps during a forward: norms per token, means per sample."""

import inspect
import weakref
from contextlib import contextmanager

import pandas as pd
import torch

from plop_nb.modules import SCORED, linear_maps, trunk_of

BASELINES = ("rms", "gaussian")
DRAWS = 256  # noise directions of the Gaussian baseline, per module


def baseline_gain(weight, baseline="rms", seed=0):
    """How much `weight` stretches a random direction: the `||W u||` that NFN divides by.

    Noise of the input's norm meets W as `||W z~|| = ||z|| ||W u||` with `u` uniform on the unit
    sphere, so one number per module serves all tokens.

    Parameters
    ----------
    weight : torch.Tensor
        W, shape (out_features, in_features), any floating dtype; computed in float32.
    baseline : {"rms", "gaussian"}
        "rms": `sqrt(E ||W u||^2) = ||W||_F / sqrt(in_features)`, exact.
        "gaussian": `E ||W u||` over seeded draws, as in the paper (section 3); smaller by about
        `(1/r - 1/in_features) / 4`, with `r = ||W||_F^4 / ||W^T W||_F^2` the effective rank.
    seed : int
        Seeds the draws; the global random state is left alone.

    Returns
    -------
    torch.Tensor
        Scalar, float32, on the device of `weight`.

    Examples
    --------
    >>> round(baseline_gain(3 * torch.eye(5)).item(), 4)
    3.0
    """
    if baseline not in BASELINES:
        raise ValueError(f"baseline={baseline!r} is unknown, choose one of {BASELINES}")
    mean_square = torch.linalg.vector_norm(weight, dtype=torch.float32).square() / weight.shape[1]
    if baseline == "rms":
        return mean_square.sqrt()
    noise = torch.randn(weight.shape[1], DRAWS, generator=torch.Generator().manual_seed(seed))
    u = (noise / noise.norm(dim=0)).to(weight.device)
    norms = (weight.float() @ u).norm(dim=0)
    # Control variate: E ||W u||^2 is known exactly, which removes nearly all the sampling noise.
    squares = norms.square() - norms.square().mean()
    slope = (squares * norms).mean() / squares.square().mean().clamp_min(1e-30)
    return norms.mean() - slope * (norms.square().mean() - mean_square)


@contextmanager
def record_norms(model, *, baseline="rms", seed=0):
    """Record input norms, feature norms and NFN of every scored linear map while the context is open.

    Works around any code that runs forwards of `model` or of its trunk: scoring, evaluation, a
    training loop. Hooks are removed on every way out; the model is not changed.

    Parameters
    ----------
    model : torch.nn.Module
        Padding is read from the `attention_mask` it is called with (all ones when there is none).
    baseline, seed
        See `baseline_gain`. Recomputed when an optimizer has changed the weight in place.

    Yields
    ------
    Record
        `record.frame()` at any time, inside the context or after it.

    Examples
    --------
    >>> layer = torch.nn.Linear(3, 3, bias=False)
    >>> _ = layer.weight.data.copy_(torch.eye(3))
    >>> with record_norms(layer) as record:
    ...     _ = layer(torch.ones(1, 2, 3))
    >>> record.frame()[["sample", "tokens", "nfn"]].round(3).values.tolist()
    [[0.0, 2.0, 1.0]]
    """
    record = Record(model, baseline, seed)
    try:
        record._attach()
        yield record
    finally:
        record._detach()


class Record:
    """The measurements of `record_norms`."""

    def __init__(self, model, baseline="rms", seed=0):
        self._trunk = trunk_of(model)
        self._signature = inspect.signature(self._trunk.forward)
        self._maps = [m for m in linear_maps(model) if m.status == SCORED]
        self._baseline, self._seed = baseline, seed
        self._gains = {}  # map index -> (weight version, gain)
        for index in range(len(self._maps)):
            self._gain(index)  # a bad baseline or weight is refused before anything runs
        self._handles = []
        self._batches = []  # (first sample, {map index: statistics (4, batch)})
        self.samples = 0
        self._unclear = {}  # map name -> input shape whose padding cannot be told
        self._last_input = self._last_norm = None

    def frame(self):
        """The record so far, one row per sample and module.

        Returns
        -------
        pandas.DataFrame
            Columns `sample` (0, 1, ... in the order met), `module`, `type`, `layer`, `tokens`
            (real tokens counted), `input_norm` (mean ||z||), `feature_norm` (mean ||W z||),
            `nfn` (mean of ||W z|| / (||z|| * baseline), dimensionless).

        Raises
        ------
        ValueError
            Nothing was recorded, or a score is not finite (names the module and the sample).
        """
        parts = [self._batch_frame(first, sums) for first, sums in self._batches if sums]
        if not parts:
            raise ValueError("nothing was recorded: run a forward of the model inside `with record_norms(model)`")
        frame = pd.concat(parts, ignore_index=True)
        bad = frame[~frame[["input_norm", "feature_norm", "nfn"]].map(_finite).all(axis=1)]
        if len(bad):
            row = bad.iloc[0]
            raise ValueError(
                f"module {row['module']!r} has a non-finite score ({row['nfn']}) on sample {row['sample']}: "
                "its inputs or outputs hold NaN or infinity; check the weights, or load the model in float32"
            )
        return frame

    def unseen(self):
        """{module name: reason} for scored maps without a measurement so far."""
        seen = {index for _, sums in self._batches for index in sums}
        unseen = {m.name: "never fired" for i, m in enumerate(self._maps) if i not in seen}
        return {**unseen, **{name: f"padding unknown for input shape {s}" for name, s in self._unclear.items()}}

    def _attach(self):
        self._handles.append(self._trunk.register_forward_pre_hook(self._start_batch, with_kwargs=True))
        for index, linear_map in enumerate(self._maps):
            hook = lambda _, args, out, i=index: self._measure(i, args[0], out)  # noqa: E731
            self._handles.append(linear_map.module.register_forward_hook(hook))

    def _detach(self):
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._last_input = self._last_norm = None

    def _gain(self, index):
        """The map's baseline, recomputed when its weight was changed in place or replaced."""
        linear_map = self._maps[index]
        weight = linear_map.module.weight
        version = (weight.data_ptr(), weight._version)
        if self._gains.get(index, (None,))[0] != version:
            gain = baseline_gain(linear_map.weight, self._baseline, self._seed)
            if not torch.isfinite(gain):
                raise ValueError(f"module {linear_map.name!r} has NaN or infinite weights: it cannot be scored")
            if gain == 0:
                raise ValueError(f"module {linear_map.name!r} has an all-zero weight: its score is undefined")
            self._gains[index] = (version, gain)
        return self._gains[index][1]

    def _start_batch(self, _, args, kwargs):
        """Before a forward of the trunk: note who is padding, and open a new batch of samples."""
        given = {**self._signature.bind_partial(*args, **kwargs).arguments, **kwargs}
        inputs = next(v for v in given.values() if isinstance(v, torch.Tensor))
        mask = given.get("attention_mask")
        if not (isinstance(mask, torch.Tensor) and mask.ndim == 2):
            mask = torch.ones(inputs.shape[:2] if inputs.ndim > 1 else (len(inputs), 1), device=inputs.device)
        self._mask = mask.float()
        self._batches.append((self.samples, {}))
        self.samples += len(mask)

    @torch.no_grad()
    def _measure(self, index, z, out):
        """After a map's forward: add the sums over real tokens of ||z||, ||W z|| and their ratio."""
        linear_map = self._maps[index]
        mask = _mask_like(self._mask, z.shape[:-1])
        if mask is None:
            self._unclear[linear_map.name] = tuple(z.shape)
            return
        if linear_map.bias is not None:
            out = out.float() - linear_map.bias.float()
        norm_in = self._input_norm(z)
        norm_out = torch.linalg.vector_norm(out, dim=-1, dtype=torch.float32)
        real = (mask.to(z.device) > 0) & (norm_in != 0)  # 0 / 0: some models zero their padding
        ratio = norm_out / (norm_in * self._gain(index))
        values = torch.stack([real.float(), norm_in, norm_out, ratio])
        sums = torch.where(real, values, 0.0).reshape(4, len(self._mask), -1).sum(-1)
        batch = self._batches[-1][1]
        batch[index] = batch[index] + sums if index in batch else sums  # a shared layer fires again

    def _input_norm(self, z):
        """||z|| per token; computed once for maps that read the same tensor (query, key, value)."""
        if self._last_input is None or self._last_input() is not z:
            self._last_input = weakref.ref(z)
            self._last_norm = torch.linalg.vector_norm(z, dim=-1, dtype=torch.float32)
        return self._last_norm

    def _batch_frame(self, first, sums):
        index = sorted(sums)
        counts, norm_in, norm_out, nfn = torch.stack([sums[i].cpu() for i in index], 1).double().numpy()
        samples, maps = counts.shape[1], [self._maps[i] for i in index]
        frame = pd.DataFrame(
            {
                "sample": [first + s for s in range(samples) for _ in maps],
                "module": [m.name for m in maps] * samples,
                "type": [m.type for m in maps] * samples,
                "layer": pd.array([m.layer for m in maps] * samples, dtype="Int64"),
                "tokens": counts.T.ravel().astype(int),
            }
        )
        frame = frame.assign(input_norm=norm_in.T.ravel(), feature_norm=norm_out.T.ravel(), nfn=nfn.T.ravel())
        frame = frame[frame["tokens"] > 0].copy()
        for column in ("input_norm", "feature_norm", "nfn"):
            frame[column] /= frame["tokens"]
        return frame


def _mask_like(mask, lead):
    """`mask` (batch, length) for an input of leading shape `lead`; None where it cannot be known."""
    batch, length = mask.shape
    if lead[:2] == (batch, length):  # (batch, length) or (batch, length, heads)
        return mask.reshape(batch, length, *[1] * (len(lead) - 2)).expand(lead)
    if lead == (batch * length,):  # tokens flattened
        return mask.reshape(-1)
    if lead == (batch,):  # a pooled vector
        return torch.ones_like(mask[:, 0])
    return None


def _finite(x):
    return abs(x) < float("inf")
