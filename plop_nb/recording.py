"""What passes through a model's linear maps during a forward: norms per token, means per sample."""

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import nn

from plop_nb.experts import Routing, projections
from plop_nb.maps import SCORED, linear_maps, trunk_of
from plop_nb.norms import Baselines, norms, token_statistics
from plop_nb.offload import loaded
from plop_nb.padding import Padding, Tokens, named_arguments
from plop_nb.tally import (
    Forward,
    Observation,
    Observer,
    Sums,
    Visit,
    add_totals,
    check_finite,
)


@contextmanager
def record_norms(
    model: nn.Module,
    *,
    baseline: str = "rms",
    seed: int = 0,
    frozen: bool = False,
    observer: Observer | None = None,
) -> Iterator["Record"]:
    """Record the norms and NFN of every scored linear map while the context is open.

    Works around any code that runs forwards of `model` or of its trunk: scoring, evaluation, a
    training loop. Hooks are removed on every way out; the model is not changed. Forwards that end
    in an error do not count; those of all threads do.

    Parameters
    ----------
    model : torch.nn.Module
        Padding is read from the `attention_mask` it is called with (all ones when there is none).
    baseline, seed
        See `norms.baseline_gain`.
    frozen : bool
        Promise that the weights stay as they are while the context is open: baselines are then
        taken once. Otherwise every forward takes those of the weights that it runs with, which
        reads all of them once more ("gaussian": as much work as 256 tokens).
    observer : callable, optional
        `observer(map, z, Wz, mask)` is called for every map that is scored (but for single experts
        of a stack) in every forward: `map` is a `maps.LinearMap`, `z` (batch, visits, in_features)
        and `Wz` (batch, visits, out_features, without bias) are in the model's dtype or float32,
        `mask` (batch, visits) is 1 at the tokens that count, else 0. It may return an
        `Observation`.

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
    record = Record(model, baseline=baseline, seed=seed, frozen=frozen, observer=observer)
    try:
        record.attach()
        yield record
    finally:
        record.detach()


class Record:
    """The measurements of `record_norms`.

    A hook only takes norms; everything else is done for all maps at once when the trunk is through,
    on the device, and fetched by `frame`.

    Attributes
    ----------
    samples : int
        How many were met.
    score_mask : torch.Tensor or None
        (batch, length), set before a forward: which real tokens of it count.
    thread : int or None
        Set to a thread's `threading.get_ident()`, only the forwards of that thread count.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        baseline: str = "rms",
        seed: int = 0,
        frozen: bool = False,
        observer: Observer | None = None,
    ) -> None:
        self.samples = 0
        self.score_mask: torch.Tensor | None = None
        self.thread: int | None = None
        self._trunk = trunk_of(model)
        self._signature = inspect.signature(self._trunk.forward)
        self._numbering = threading.Lock()
        maps = linear_maps(model)
        self._maps = [m for m in maps if m.status == SCORED]
        if not self._maps:
            reasons = summary({m.name: m.status for m in maps})
            raise ValueError(f"no linear map of this {type(model).__name__} is scored: {reasons}")
        # A bad weight is refused here.
        self._baselines = Baselines(self._maps, baseline, seed, frozen=frozen)
        self._padding = Padding(self._trunk)
        self._observer = observer
        self._handles: list = []
        # Several forwards may be under way: see `offload.interleaved`.
        self._forward: ContextVar[Forward | None] = ContextVar("forward", default=None)
        self._batches: list[Sums] = []
        self._totals: dict[int, torch.Tensor] = {}  # of the batches that are kept for good
        self._pending: list[Sums] = []  # those since the last `keep`

    def frame(self, first: int = 0) -> pd.DataFrame:
        """The record so far, one row per sample and module.

        Parameters
        ----------
        first : int
            Only the samples of the forwards from this sample on.

        Returns
        -------
        pandas.DataFrame
            Columns `sample` (0, 1, ... in the order met), `module`, `type`, `layer`, `tokens`
            (real tokens counted; a map that fires several times counts every visit),
            `input_norm` (mean ||z||), `feature_norm` (mean ||W z||), `nfn` (mean of
            ||W z|| / (||z|| * baseline), dimensionless), `nfn_square` (mean of its square).

        Raises
        ------
        ValueError
            Nothing was recorded, or a score is not finite (names the module and the sample).
        """
        maps, without = self.maps(), list(self._unclear())
        batches = [batch for batch in self._through() if batch.first >= first]
        parts = [batch.frame(maps, without) for batch in batches]
        if not sum(map(len, parts)):
            why = ""
            if self.samples:
                why = f"; of {len(self._maps)} linear maps, {summary(self.unseen())}"
            raise ValueError(
                f"nothing was recorded: run a forward inside `with record_norms(model)`{why}"
            )
        frame = pd.concat(parts, ignore_index=True)
        check_finite(frame)
        return frame

    def totals(self) -> dict[str, torch.Tensor]:
        """{module name: sum over all forwards of what the observer returned as `total`}."""
        totals = dict(self._totals)
        for batch in self._pending:
            add_totals(totals, batch.totals)
        names = self.unclear()
        named = {self._maps[index].name: total for index, total in totals.items()}
        return {name: total for name, total in named.items() if name not in names}

    def keep(self) -> None:
        """Keep the forwards so far for good: `discard` goes back no further."""
        for batch in self._pending:
            add_totals(self._totals, batch.totals)
            batch.totals.clear()
        self._pending.clear()

    def discard(self) -> None:
        """Drop the forwards since the last `keep`, as after one that ran out of memory."""
        for batch in self._pending:
            self._batches.remove(batch)
            self.samples -= len(batch.real)
        self._pending.clear()
        self._forward.set(None)

    def real_tokens(self) -> np.ndarray:
        """Real tokens of each sample, shape (samples,)."""
        counts = [batch.real.cpu().numpy() for batch in self._through()]
        return np.concatenate(counts) if counts else np.zeros(0)

    def maps(self) -> pd.DataFrame:
        """The scored maps, one row each: `module`, `type`, `layer`."""
        return pd.DataFrame(
            {
                "module": [m.name for m in self._maps],
                "type": [m.type for m in self._maps],
                "layer": pd.array([m.layer for m in self._maps], dtype="Int64"),
            }
        )

    def stacks(self) -> list[str]:
        """Names of experts that are scored one by one: an observer does not see them."""
        return sorted({m.name for m in self._maps if m.expert is not None})

    def gains(self) -> list[float | None]:
        """The baseline of each map so far, or None, in the order of `maps`."""
        return self._baselines.values()

    def unclear(self) -> set[str]:
        """Names of maps whose padding could not be told, ever: nothing of them counts."""
        return {self._maps[index].name for index in self._unclear()}

    def unseen(self) -> dict[str, str]:
        """{module name: reason} for scored maps without a measurement so far."""
        unclear, counts, zero = self._unclear(), self._counts(), self._baselines.zero()
        seen = set().union(*(batch.seen for batch in self._through()))
        reasons = {}
        for index, linear_map in enumerate(self._maps):
            if index in unclear:
                reasons[linear_map.name] = f"padding unknown for input shape {unclear[index]}"
            elif counts[index]:
                continue
            elif index in zero:
                reasons[linear_map.name] = "all-zero weight, or too small for float32"
            elif index not in seen:
                reasons[linear_map.name] = "never fired"
            elif linear_map.expert is not None:
                reasons[linear_map.name] = "experts that got no token"
            else:
                reasons[linear_map.name] = "zero, or too small for float32, on every token"
        return reasons

    def attach(self) -> None:
        """Put the hooks in place; `record_norms` does, and removes them on every way out."""
        start = self._trunk.register_forward_pre_hook(self._start_batch, with_kwargs=True)
        self._handles.append(start)
        if self._padding.encoder is not None:
            noted = self._padding.encoder.register_forward_hook(self._note_encoder_output)
            self._handles.append(noted)
        stacks: dict[nn.Module, dict[tuple, int]] = {}
        for index, linear_map in enumerate(self._maps):
            if linear_map.expert is None:
                self._hook(linear_map.module, partial(self._measure, index))
            else:
                indices = stacks.setdefault(linear_map.module, {})
                indices[linear_map.parameter, linear_map.expert] = index
        for module, indices in stacks.items():
            self._hook(module, partial(self._measure_experts, indices))
        # Last: the trunk may be a map itself.
        self._handles.append(self._trunk.register_forward_hook(self._end_batch))

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._abandon()

    def _through(self):
        """The forwards that have come to their end."""
        return [batch for batch in self._batches if batch.is_through]

    def _unclear(self):
        """Index of a map -> input shape whose padding could not be told in some forward."""
        found = {}
        for batch in self._through():
            found.update(batch.unclear)
        return found

    def _counts(self):
        """How many real tokens of every map have counted so far."""
        counts = np.zeros(len(self._maps))
        for batch in self._through():
            counts += batch.statistics(len(self._maps))[0].sum(axis=-1)
        return counts

    def _hook(self, module, hook):
        self._handles.append(module.register_forward_hook(hook, with_kwargs=True))

    @torch.no_grad()
    def _start_batch(self, _, args, kwargs):
        """Before a forward of the trunk: note who is padding, and open a new batch of samples."""
        if self.thread not in (None, threading.get_ident()):
            return
        self._abandon()
        score_mask, self.score_mask = self.score_mask, None
        tokens = Tokens.of_call(named_arguments(self._signature, args, kwargs), score_mask)
        self._baselines.new_forward()
        with self._numbering:
            batch = Sums(self.samples, tokens.mask.sum(1))
            self._batches.append(batch)
            self._pending.append(batch)
            self.samples += len(tokens.mask)
        self._forward.set(Forward(tokens, batch))

    @torch.no_grad()
    def _end_batch(self, *_):
        """After a forward of the trunk: what a backward recomputes belongs to no batch."""
        forward = self._forward.get()
        if forward is not None:
            forward.settle()
            forward.batch.is_through = True
            self._forward.set(None)

    def _abandon(self):
        """Drop a forward that has begun and never came to its end: it raised an error."""
        forward = self._forward.get()
        if forward is not None:
            self._batches.remove(forward.batch)
            self._pending.remove(forward.batch)
            self.samples -= len(forward.batch.real)
            self._forward.set(None)

    def _note_encoder_output(self, _, args, out):
        forward = self._forward.get()
        if forward is not None:  # else the encoder is called by itself
            forward.tokens.note_encoder_output(out)

    @torch.no_grad()
    def _measure(self, index, _, args, kwargs, out):
        """After a map's forward: ||z|| and ||W z|| of its tokens."""
        forward = self._forward.get()
        if forward is None:  # a map called by itself, outside of a forward
            return
        linear_map, gain = self._maps[index], self._baselines.gain(index)
        z = args[0] if args else next(iter(kwargs.values()))
        mask = self._padding.mask(forward.tokens, linear_map, z)
        if mask is None:
            forward.batch.unclear[index] = tuple(z.shape)
            return
        bias = self._baselines.bias(index)
        by_sample, samples = partial(self._padding.by_sample, linear_map), len(mask)
        input_norm = by_sample(forward.input_norm(z)).reshape(samples, -1)
        feature_norm = by_sample(forward.in_block(norms(out, bias))).reshape(samples, -1)
        visit = Visit(index, input_norm, feature_norm, gain, mask)
        observer = self._observer
        if observer is not None:
            features = out if bias is None else out.float() - bias.float()
            z = by_sample(z).reshape(samples, -1, z.shape[-1])
            features = by_sample(features).reshape(samples, -1, out.shape[-1])
            counted = token_statistics(mask.to(gain.device), input_norm, feature_norm, gain)[0]
            seen = observer(linear_map, z, features, counted) or Observation()
            visit = seen.instead_of(visit)
            if seen.total is not None:
                add_totals(forward.batch.totals, {index: seen.total})
        forward.visits.append(visit)
        forward.batch.seen.add(index)

    @torch.no_grad()
    def _measure_experts(self, indices, experts, args, kwargs, _):
        """After a stack of experts: each expert's projections on the tokens that it got."""
        forward = self._forward.get()
        if forward is None:  # called by itself, outside of a forward
            return
        routing = Routing.of_call(experts, args, kwargs)
        hidden = routing.hidden
        mask = forward.tokens.among(len(hidden) // routing.copies)
        if mask is None:
            shape = tuple(hidden.shape)
            forward.batch.unclear.update(dict.fromkeys(indices.values(), shape))
            return
        samples = len(mask)
        owner = torch.arange(samples, device=hidden.device).repeat_interleave(mask.shape[1])
        real = mask.reshape(-1).to(hidden.device)
        found = {}
        with loaded(experts):
            for expert in sorted({expert for _, expert in indices}):
                z, who = routing.of_expert(expert)
                for parameter, inputs, features in projections(experts, expert, z):
                    index = indices[parameter, expert]
                    gain = self._baselines.gain(index).to(z.device)
                    sizes = norms(inputs), norms(features)
                    del inputs, features  # before the next projection makes its own
                    values = token_statistics(real[who], *sizes, gain)
                    sums = values.new_zeros(len(values), samples)
                    found[index] = sums.index_add_(1, owner[who], values)
        forward.batch.sums.append((list(found), torch.stack(list(found.values()), 1)))
        forward.batch.seen.update(found)


def summary(unseen: dict[str, str]) -> str:
    """One line about maps without a score: reasons, counts, first names."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in unseen.items():
        by_reason.setdefault(reason, []).append(name)
    parts = []
    for reason, names in by_reason.items():
        more = ", ..." if len(names) > 3 else ""
        parts.append(f"{len(names)} {reason} ({', '.join(names[:3])}{more})")
    return "; ".join(parts)
