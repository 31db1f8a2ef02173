"""From norms of tokens to sums over samples: what a record keeps of each forward."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch

from plop_nb.maps import LinearMap
from plop_nb.norms import fetched, norms, token_statistics
from plop_nb.padding import Tokens

BLOCK = 64  # norms that are kept side by side
MEANS = ["input_norm", "feature_norm", "nfn", "nfn_square"]


@dataclass(slots=True)
class Visit:
    """What one map showed in one forward: norms (batch, visits), until they are summed."""

    index: int
    input_norm: torch.Tensor
    feature_norm: torch.Tensor
    gain: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True)
class Observation:
    """What an observer makes of one map's inputs in one forward; None: nothing of its own."""

    input_norm: torch.Tensor | None = None  # (batch, visits), to be measured instead of ||z||
    feature_norm: torch.Tensor | None = None  # (batch, visits), instead of ||W z||
    gain: torch.Tensor | None = None  # scalar, instead of what W makes of noise
    total: torch.Tensor | None = None  # any shape: added up over all forwards

    def instead_of(self, visit: Visit) -> Visit:
        """The visit with the norms that were measured, and the baseline, in their place."""
        given = {}
        for name in ("input_norm", "feature_norm", "gain"):
            if getattr(self, name) is not None:
                given[name] = getattr(self, name)
        return replace(visit, **given)


Observer = Callable[
    [LinearMap, torch.Tensor, torch.Tensor, torch.Tensor], Observation | None
]  # called with a map, its inputs z, W z, and the mask of real tokens


@dataclass(eq=False)
class Sums:
    """What stays of one forward of the trunk."""

    first: int  # number of its first sample
    real: torch.Tensor  # (batch,) real tokens of each sample
    sums: list = field(default_factory=list)  # (indices of maps, statistics (5, maps, batch))
    totals: dict = field(default_factory=dict)  # {index: what the observer wants added up}
    seen: set[int] = field(default_factory=set)  # maps that fired
    # Index of a map -> input shape whose padding cannot be told: it gets no score at all.
    unclear: dict[int, tuple] = field(default_factory=dict)
    is_through: bool = False  # the forward has come to its end
    _fetched: np.ndarray | None = None

    def statistics(self, maps: int) -> np.ndarray:
        """Sums over real tokens of `token_statistics`, (5, maps, batch), fetched once."""
        if self._fetched is None:
            self._fetched = np.zeros((1 + len(MEANS), maps, len(self.real)))
        arrays = fetched([values for _, values in self.sums])
        for (indices, _), values in zip(self.sums, arrays, strict=True):
            for position, index in enumerate(indices):
                self._fetched[:, index] += values[:, position]  # a shared layer fires several times
        self.sums.clear()
        return self._fetched

    def frame(self, maps: pd.DataFrame, without: list[int]) -> pd.DataFrame:
        """Means over real tokens, one row for each sample and map that has a score.

        Parameters
        ----------
        maps : pandas.DataFrame
            `module`, `type`, `layer` of every map.
        without : list of int
            Maps to leave out.
        """
        statistics = self.statistics(len(maps)).copy()
        statistics[:, without] = 0
        samples = len(self.real)
        counts, *sums = statistics.transpose(0, 2, 1).reshape(len(statistics), -1)
        frame = pd.concat([maps] * samples, ignore_index=True)
        frame.insert(0, "sample", np.repeat(self.first + np.arange(samples), len(maps)))
        frame["tokens"] = counts.astype(int)
        for name, values in zip(MEANS, sums, strict=True):
            frame[name] = values
        frame = frame[counts > 0].copy()
        frame[MEANS] = frame[MEANS].div(frame["tokens"], axis=0)
        return frame


@dataclass
class Forward:
    """One forward of the trunk while it runs."""

    tokens: Tokens
    batch: Sums
    visits: list[Visit] = field(default_factory=list)
    blocks: dict = field(default_factory=dict)  # (shape, device) -> (block of norms, rows used)
    last_input: weakref.ref | None = None
    last_version: int | None = None  # of that tensor, which may be changed in place
    last_norm: torch.Tensor | None = None

    def input_norm(self, z: torch.Tensor) -> torch.Tensor:
        """||z|| per token; computed once for maps that read the same tensor (query, key, value)."""
        version = None if z.is_inference() else z._version  # such tensors do not count changes
        is_last = self.last_input is not None and self.last_input() is z
        if not is_last or version is None or version != self.last_version:
            self.last_input, self.last_norm = weakref.ref(z), self.in_block(norms(z))
            self.last_version = version
        return self.last_norm

    def in_block(self, norm: torch.Tensor) -> torch.Tensor:
        """The norm in a larger block: small tensors that outlive activations leave holes."""
        block, used = self.blocks.get((norm.shape, norm.device), (None, BLOCK))
        if used == BLOCK:
            block, used = norm.new_empty(BLOCK, *norm.shape), 0
        block[used] = norm
        self.blocks[norm.shape, norm.device] = block, used + 1
        return block[used]

    def settle(self) -> None:
        """Sum over the tokens of all maps seen so far, maps of like shape together."""
        groups: dict[tuple, list[Visit]] = {}
        for visit in self.visits:
            groups.setdefault((id(visit.mask), visit.input_norm.device), []).append(visit)
        for (_, device), visits in groups.items():
            gains = torch.stack([visit.gain.to(device) for visit in visits])
            values = token_statistics(
                visits[0].mask.to(device),
                torch.stack([visit.input_norm for visit in visits]),
                torch.stack([visit.feature_norm for visit in visits]),
                gains[:, None, None],
            )
            self.batch.sums.append(([visit.index for visit in visits], values.sum(-1)))
        self.visits.clear()
        self.blocks.clear()


def add_totals(totals: dict[int, torch.Tensor], more: dict[int, torch.Tensor]) -> None:
    """Add tensors to those of the same map."""
    for index, total in more.items():
        totals[index] = totals[index] + total if index in totals else total


def check_finite(frame: pd.DataFrame) -> None:
    """Refuse a frame with a score that is not finite (ValueError, names module and sample)."""
    bad = frame[~np.isfinite(frame[MEANS]).all(axis=1)]
    if len(bad):
        row = bad.iloc[0]
        raise ValueError(
            f"module {row['module']!r} has a non-finite score ({row['nfn']}) on sample "
            f"{row['sample']}: its inputs or outputs hold NaN or infinity; check the weights, or "
            "load the model in float32"
        )
