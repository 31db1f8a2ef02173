"""The two numbers behind a score: `||W z||` of a token, and what W makes of random noise."""

import weakref

import numpy as np
import torch

from plop_nb.checks import random_seed
from plop_nb.maps import LinearMap
from plop_nb.offload import loaded

BASELINES = ("rms", "gaussian")
DRAWS = 256  # noise directions of the Gaussian baseline, per module
# Entries held in float32 at a time: what fits a core's cache, and a GPU's slack.
CHUNK = {"cpu": 2**17, "cuda": 2**24}
LEAST = 1e-18  # a norm: squares of what is smaller lose digits in float32, and then vanish


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
    _check_baseline(baseline)
    mean_square = norms(weight).square().sum() / weight.shape[1]
    if baseline == "rms":
        return mean_square.sqrt()
    generator = torch.Generator().manual_seed(random_seed("seed", seed))
    noise = torch.randn(weight.shape[1], DRAWS, generator=generator, dtype=torch.float32)
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
    """One, ||z||, ||W z||, NFN and its square of each real token, zero for others: (5, ...).

    A token does not count whose input, or what is expected of its output, has no norm in float32:
    it is zero, as some models make their padding, or so small that its square underflows.
    """
    expected = input_norm * gain
    real = (mask > 0) & ~(input_norm <= LEAST) & ~(expected <= LEAST)  # NaN has to show
    nfn = feature_norm / expected
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
    """What every map of a model makes of noise: of the weights as they are in each forward.

    Maps are addressed by their number in the list. No weight is trusted to be the one of the
    forward before: fused optimizers, `merge_adapter` and writes to `.data` leave no trace in it.

    Parameters
    ----------
    maps : list of LinearMap
    baseline, seed
        See `baseline_gain`.
    frozen : bool
        The weights are known to stay as they are: baselines are those of the first forward.

    Raises
    ------
    ValueError
        A weight is not finite (names the module).
    """

    def __init__(
        self, maps: list[LinearMap], baseline: str, seed: int, *, frozen: bool = False
    ) -> None:
        _check_baseline(baseline)
        self._maps, self._baseline, self._seed = maps, baseline, seed
        self._frozen = frozen
        self._gains: dict[int, torch.Tensor] = {}
        self._fresh: set[int] = set()  # maps whose weight was read in this forward
        self._packed: dict[int, weakref.ref] = {}  # the stored weights that were unpacked
        self._offloaded_bias: dict[int, torch.Tensor | None] = {}
        for index, linear_map in enumerate(maps):
            if linear_map.is_offloaded:
                self._offloaded_bias[index] = None  # until it is fetched
            else:
                # Only to be checked: PEFT adds to some parameters while their module runs, and not
                # before. Packed ones are dear to read, and it adds nothing to them.
                self._take(index, baseline if linear_map.is_packed else "rms")
        self._check_finite()
        self._fresh.clear()

    def new_forward(self) -> None:
        """The weights may be others from now on."""
        if not self._frozen:
            self._fresh.clear()

    def gain(self, index: int) -> torch.Tensor:
        """A map's baseline, of its weight as it is in this forward."""
        if index not in self._fresh and not self._stays(index):
            self._take(index, self._baseline)
        return self._gains[index]

    def zero(self) -> set[int]:
        """Maps whose weight is all zero, when it was last read: they have no score."""
        return {index for index, value in enumerate(self.values()) if value == 0}

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

    def _stays(self, index):
        """Whether a baseline holds on: offloaded and packed weights are replaced, not edited."""
        if index in self._packed:
            return self._packed[index]() is self._maps[index].stored
        return index in self._offloaded_bias and index in self._gains

    @torch.no_grad()
    def _take(self, index, baseline):
        """The baseline of a map, on the device of its weight."""
        linear_map = self._maps[index]
        with loaded(linear_map.module):
            self._gains[index] = baseline_gain(linear_map.weight, baseline, self._seed)
            if index in self._offloaded_bias and linear_map.bias is not None:
                self._offloaded_bias[index] = linear_map.bias.detach().clone()
        if linear_map.is_packed:
            self._packed[index] = weakref.ref(linear_map.stored)
        self._fresh.add(index)

    def _check_finite(self):
        """Refuse a weight with NaN or infinity; all are fetched at once."""
        for linear_map, value in zip(self._maps, self.values(), strict=True):
            if value is not None and not np.isfinite(value):
                raise ValueError(
                    f"module {linear_map.name!r} has NaN or infinite weights: it cannot be scored"
                )


def _check_baseline(baseline):
    if baseline not in BASELINES:
        raise ValueError(f"baseline={baseline!r} is unknown, choose one of {BASELINES}")


def _chunks(x):
    return x.split(max(1, CHUNK.get(x.device.type, CHUNK["cuda"]) // x.shape[-1]))
