"""From norms of tokens to sums over samples: what a record keeps of each forward."""

import weakref
from dataclasses import dataclass, field

import numpy as np
import torch

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


@dataclass(eq=False)
class Sums:
    """What stays of one forward of the trunk."""

    first: int  # number of its first sample
    real: torch.Tensor  # (batch,) real tokens of each sample
    sums: list = field(default_factory=list)  # (indices of maps, statistics (5, maps, batch))
    totals: dict = field(default_factory=dict)  # {index: what the observer wants added up}

    def by_row(self, maps: int, without: list[int]) -> np.ndarray:
        """The statistics, (5, samples * maps), sample by sample; zero for the maps `without`."""
        statistics = np.zeros((1 + len(MEANS), maps, len(self.real)))
        arrays = fetched([values for _, values in self.sums])
        for (indices, _), values in zip(self.sums, arrays, strict=True):
            for position, index in enumerate(indices):
                statistics[:, index] += values[:, position]  # a shared layer fires several times
        statistics[:, without] = 0
        return statistics.transpose(0, 2, 1).reshape(len(statistics), -1)


@dataclass
class Forward:
    """One forward of the trunk while it runs."""

    tokens: Tokens
    batch: Sums
    visits: list[Visit] = field(default_factory=list)
    blocks: dict = field(default_factory=dict)  # (shape, device) -> (block of norms, rows used)
    last_input: weakref.ref | None = None
    last_norm: torch.Tensor | None = None

    def input_norm(self, z: torch.Tensor) -> torch.Tensor:
        """||z|| per token; computed once for maps that read the same tensor (query, key, value)."""
        if self.last_input is None or self.last_input() is not z:
            self.last_input, self.last_norm = weakref.ref(z), self.in_block(norms(z))
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
