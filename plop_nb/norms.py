"""The two numbers behind a score: `||W z||` of a token, and what W makes of random noise."""

import numpy as np
import torch

from plop_nb.maps import LinearMap
from plop_nb.offload import loaded

BASELINES = ("rms", "gaussian")
DRAWS = 256  # noise directions of the Gaussian baseline, per module
# Entries held in float32 at a time: what fits a core's cache, and a GPU's slack.
CHUNK = {"cpu": 2**17, "cuda": 2**24}


def baseline_gain(weight: torch.Tensor, baseline: str = "rms", seed: int = 0) -> torch.Tensor:
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
    mean_square = norms(weight).square().sum() / weight.shape[1]
    if baseline == "rms":
        return mean_square.sqrt()
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(weight.shape[1], DRAWS, generator=generator)
    directions = (noise / noise.norm(dim=0)).to(weight.device)
    squares = torch.stack([(rows.float() @ directions).square().sum(0) for rows in _chunks(weight)])
    stretched = squares.sum(0).sqrt()
    # Control variate: E ||W u||^2 is known exactly, which removes nearly all the sampling noise.
    found = stretched.square().mean()
    deviations = stretched.square() - found
    slope = (deviations * stretched).mean() / deviations.square().mean().clamp_min(1e-30)
    return stretched.mean() - slope * (found - mean_square)


def norms(x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """||x - bias|| over the last dimension, summed in float32; shape x.shape[:-1].

    In chunks: a CPU reduces to another dtype by way of a full copy (and 20 times slower).
    """
    if bias is None and (x.dtype == torch.float32 or x.is_cuda):
        return torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32)
    found = []
    for rows in _chunks(x.reshape(-1, x.shape[-1])):
        rows = rows.float()
        if bias is not None:
            rows = rows - bias.float()
        found.append(torch.linalg.vector_norm(rows, dim=-1))
    return torch.cat(found).reshape(x.shape[:-1])


def token_statistics(
    mask: torch.Tensor, input_norm: torch.Tensor, feature_norm: torch.Tensor, gain: torch.Tensor
) -> torch.Tensor:
    """One, ||z||, ||W z||, NFN and its square of each real token, zero for others: (5, ...)."""
    real = (mask > 0) & (input_norm != 0)  # 0 / 0: some models zero their padding
    nfn = feature_norm / (input_norm * gain)
    values = [torch.ones_like(input_norm), input_norm, feature_norm, nfn, nfn.square()]
    return torch.where(real, torch.stack(values), 0.0)


def fetched(tensors: list[torch.Tensor]) -> list[np.ndarray]:
    """Small tensors as float64 arrays: one copy from each device."""
    by_device: dict[torch.device, list[int]] = {}
    for i, tensor in enumerate(tensors):
        by_device.setdefault(tensor.device, []).append(i)
    arrays: dict[int, np.ndarray] = {}
    for indices in by_device.values():
        flat = torch.cat([tensors[i].reshape(-1) for i in indices]).double().cpu().numpy()
        ends = np.cumsum([tensors[i].numel() for i in indices])
        for i, part in zip(indices, np.split(flat, ends[:-1]), strict=True):
            arrays[i] = part.reshape(tensors[i].shape)
    return [arrays[i] for i in range(len(tensors))]


class Baselines:
    """What every map of a model makes of noise, renewed when its weight has changed.

    Maps are addressed by their number in the list.

    Raises
    ------
    ValueError
        A weight is not finite (names the module).
    """

    def __init__(self, maps: list[LinearMap], baseline: str, seed: int) -> None:
        self._maps, self._baseline, self._seed = maps, baseline, seed
        self._gains: dict[int, torch.Tensor] = {}
        self._versions: dict[int, tuple | None] = {}
        self._zero: set[int] = set()  # maps whose weight is all zero
        self._offloaded_bias: dict[int, torch.Tensor | None] = {}
        for index, linear_map in enumerate(maps):
            if linear_map.is_offloaded:
                self._offloaded_bias[index] = None  # until it is fetched
        self._take([i for i in range(len(maps)) if i not in self._offloaded_bias])

    def gain(self, index: int) -> torch.Tensor:
        """A map's baseline, recomputed when its weight was changed in place or replaced."""
        if index not in self._gains or self._versions[index] != self._version(index):
            self._take([index])
        return self._gains[index]

    def is_zero(self, index: int) -> bool:
        """Whether the map's weight is all zero: it has a baseline, and no score."""
        return index in self._zero

    def bias(self, index: int) -> torch.Tensor | None:
        """The map's bias, also where it is offloaded once its baseline was taken."""
        if index in self._offloaded_bias:
            return self._offloaded_bias[index]
        return self._maps[index].bias

    def values(self) -> list[float | None]:
        """The baseline of each map so far, or None."""
        known = sorted(self._gains)
        arrays = fetched([self._gains[i] for i in known])
        values = dict(zip(known, map(float, arrays), strict=True))
        return [values.get(i) for i in range(len(self._maps))]

    def _version(self, index):
        linear_map = self._maps[index]
        if linear_map.is_packed or index in self._offloaded_bias:  # frozen
            return None
        weight = getattr(linear_map.module, linear_map.parameter)
        return weight.data_ptr(), weight._version

    def _take(self, indices):
        """Baselines of these maps, on the devices of their weights; fetched once to be checked."""
        for i in indices:
            linear_map = self._maps[i]
            with loaded(linear_map.module):
                self._gains[i] = baseline_gain(linear_map.weight, self._baseline, self._seed)
                self._versions[i] = self._version(i)
                if i in self._offloaded_bias and linear_map.bias is not None:
                    self._offloaded_bias[i] = linear_map.bias.detach().clone()
        for i, value in zip(indices, fetched([self._gains[i] for i in indices]), strict=True):
            if not np.isfinite(value):
                name = self._maps[i].name
                raise ValueError(
                    f"module {name!r} has NaN or infinite weights: it cannot be scored"
                )
            if value == 0:
                self._zero.add(i)
            else:
                self._zero.discard(i)


def _chunks(x):
    return x.split(max(1, CHUNK.get(x.device.type, CHUNK["cuda"]) // x.shape[-1]))
