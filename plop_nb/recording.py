"""What passes through a model's linear maps during a forward: norms per token, means per sample."""

import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import nn

from plop_nb.experts import Routing, projections
from plop_nb.maps import SCORED, LinearMap, linear_maps, trunk_of
from plop_nb.norms import Baselines, norms, token_statistics
from plop_nb.offload import loaded
from plop_nb.padding import Padding, Tokens
from plop_nb.tally import MEANS, Forward, Sums, Visit


@dataclass(frozen=True)
class Observation:
    """What an observer makes of one map's inputs in one forward; None: nothing of its own."""

    input_norm: torch.Tensor | None = None  # (batch, visits), to be measured instead of ||z||
    feature_norm: torch.Tensor | None = None  # (batch, visits), instead of ||W z||
    total: torch.Tensor | None = None  # any shape: added up over all forwards, see `Record.totals`


Observer = Callable[
    [LinearMap, torch.Tensor, torch.Tensor, torch.Tensor], Observation | None
]  # called with a map, its inputs z, W z, and the mask of real tokens


@contextmanager
def record_norms(
    model: nn.Module, *, baseline: str = "rms", seed: int = 0, observer: Observer | None = None
) -> Iterator["Record"]:
    """Record the norms and NFN of every scored linear map while the context is open.

    Works around any code that runs forwards of `model` or of its trunk: scoring, evaluation, a
    training loop. Hooks are removed on every way out; the model is not changed.

    Parameters
    ----------
    model : torch.nn.Module
        Padding is read from the `attention_mask` it is called with (all ones when there is none).
    baseline, seed
        See `norms.baseline_gain`. Recomputed when an optimizer has changed the weight in place.
    observer : callable, optional
        `observer(map, z, Wz, mask)` is called for every map that is scored (but for single experts
        of a stack) in every forward: `map` is a `maps.LinearMap`, `z` (batch, visits, in_features)
        and `Wz` (batch, visits, out_features, without bias) are in the model's dtype or float32,
        `mask` (batch, visits) is positive at real tokens and may be on another device; a token
        with ||z|| = 0 does not count. It may return an `Observation`.

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
    record = Record(model, baseline=baseline, seed=seed, observer=observer)
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
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        baseline: str = "rms",
        seed: int = 0,
        observer: Observer | None = None,
    ) -> None:
        self.samples = 0
        self.score_mask: torch.Tensor | None = None
        self._trunk = trunk_of(model)
        self._signature = inspect.signature(self._trunk.forward)
        self._maps = [m for m in linear_maps(model) if m.status == SCORED]
        self._baselines = Baselines(self._maps, baseline, seed)  # a bad weight is refused here
        self._padding = Padding(self._trunk)
        self._observer = observer
        self._handles: list = []
        # Several forwards may be under way: see `offload.interleaved`.
        self._forward: ContextVar[Forward | None] = ContextVar("forward", default=None)
        self._batches: list[Sums] = []
        self._totals: dict[int, torch.Tensor] = {}  # of the batches that are kept for good
        self._pending: list[Sums] = []  # those since the last `keep`
        self._seen: set[int] = set()  # indices of maps
        # Index of a map -> input shape whose padding cannot be told: it gets no score at all.
        self._unclear: dict[int, tuple] = {}

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
        self._settle()
        parts = [self._batch_frame(batch) for batch in self._batches if batch.first >= first]
        if not sum(map(len, parts)):
            why = ""
            if self.samples:
                why = f"; of {len(self._maps)} linear maps, {summary(self.unseen())}"
            raise ValueError(
                f"nothing was recorded: run a forward inside `with record_norms(model)`{why}"
            )
        frame = pd.concat(parts, ignore_index=True)
        _check_finite(frame)
        return frame

    def totals(self) -> dict[str, torch.Tensor]:
        """{module name: sum over all forwards of what the observer returned as `total`}."""
        totals = dict(self._totals)
        for batch in self._pending:
            _add(totals, batch.totals)
        names = self.unclear()
        named = {self._maps[index].name: total for index, total in totals.items()}
        return {name: total for name, total in named.items() if name not in names}

    def keep(self) -> None:
        """Keep the forwards so far for good: `discard` goes back no further."""
        for batch in self._pending:
            _add(self._totals, batch.totals)
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
        counts = [batch.real.cpu().numpy() for batch in self._batches]
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
        return {self._maps[index].name for index in self._unclear}

    def unseen(self) -> dict[str, str]:
        """{module name: reason} for scored maps without a measurement so far."""
        reasons = {}
        for index, linear_map in enumerate(self._maps):
            if self._baselines.is_zero(index):
                reasons[linear_map.name] = "all-zero weight"
            elif index in self._unclear:
                shape = self._unclear[index]
                reasons[linear_map.name] = f"padding unknown for input shape {shape}"
            elif index not in self._seen:
                reasons[linear_map.name] = "never fired"
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
        self._end_batch()

    @torch.no_grad()
    def _settle(self):
        forward = self._forward.get()
        if forward is not None:
            forward.settle()

    def _hook(self, module, hook):
        self._handles.append(module.register_forward_hook(hook, with_kwargs=True))

    @torch.no_grad()
    def _start_batch(self, _, args, kwargs):
        """Before a forward of the trunk: note who is padding, and open a new batch of samples."""
        self._settle()
        given = {**self._signature.bind_partial(*args, **kwargs).arguments, **kwargs}
        tokens = Tokens.of_call(given, self.score_mask)
        self.score_mask = None
        batch = Sums(self.samples, tokens.mask.sum(1))
        self._forward.set(Forward(tokens, batch))
        self._batches.append(batch)
        self._pending.append(batch)
        self.samples += len(tokens.mask)

    def _end_batch(self, *_):
        """After a forward of the trunk: what a backward recomputes belongs to no batch."""
        self._settle()
        self._forward.set(None)

    def _note_encoder_output(self, _, args, out):
        forward = self._forward.get()
        if forward is None:  # the encoder called by itself
            return
        first = out if isinstance(out, torch.Tensor) else out[0]
        is_tensor = isinstance(first, torch.Tensor)
        forward.tokens.encoder_output = weakref.ref(first) if is_tensor else None

    @torch.no_grad()
    def _measure(self, index, _, args, kwargs, out):
        """After a map's forward: ||z|| and ||W z|| of its tokens."""
        forward = self._forward.get()
        if forward is None:  # a map called by itself, outside of a forward
            return
        linear_map, gain = self._maps[index], self._baselines.gain(index)
        if self._baselines.is_zero(index):
            return
        z = args[0] if args else next(iter(kwargs.values()))
        mask = self._padding.mask(forward.tokens, linear_map, z)
        if mask is None:
            self._unclear[index] = tuple(z.shape)
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
            seen = observer(linear_map, z, features, mask) or Observation()
            visit = _replaced(visit, seen)
            if seen.total is not None:
                _add(forward.batch.totals, {index: seen.total})
        forward.visits.append(visit)
        self._seen.add(index)

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
            self._unclear.update(dict.fromkeys(indices.values(), tuple(hidden.shape)))
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
                    if self._baselines.is_zero(index):
                        continue
                    sizes = norms(inputs), norms(features)
                    del inputs, features  # before the next projection makes its own
                    values = token_statistics(real[who], *sizes, gain)
                    sums = torch.zeros(len(values), samples, device=z.device)
                    found[index] = sums.index_add_(1, owner[who], values)
        if found:  # not all weights are zero
            forward.batch.sums.append((list(found), torch.stack(list(found.values()), 1)))
            self._seen.update(found)

    def _batch_frame(self, batch):
        """The rows of one batch: means over its real tokens."""
        samples, maps = len(batch.real), len(self._maps)
        counts, *sums = batch.by_row(maps, without=list(self._unclear))
        frame = pd.concat([self.maps()] * samples, ignore_index=True)
        frame.insert(0, "sample", np.repeat(batch.first + np.arange(samples), maps))
        frame["tokens"] = counts.astype(int)
        for name, values in zip(MEANS, sums, strict=True):
            frame[name] = values
        frame = frame[counts > 0].copy()
        frame[MEANS] = frame[MEANS].div(frame["tokens"], axis=0)
        return frame


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


def _check_finite(frame):
    bad = frame[~np.isfinite(frame[MEANS]).all(axis=1)]
    if len(bad):
        row = bad.iloc[0]
        raise ValueError(
            f"module {row['module']!r} has a non-finite score ({row['nfn']}) on sample "
            f"{row['sample']}: its inputs or outputs hold NaN or infinity; check the weights, or "
            "load the model in float32"
        )


def _replaced(visit, seen):
    """The visit with the norms that an observer has put in their place."""
    if seen.input_norm is not None:
        visit = replace(visit, input_norm=seen.input_norm)
    if seen.feature_norm is not None:
        visit = replace(visit, feature_norm=seen.feature_norm)
    return visit


def _add(totals, more):
    """Add tensors to those of the same key."""
    for index, total in more.items():
        totals[index] = totals[index] + total if index in totals else total
