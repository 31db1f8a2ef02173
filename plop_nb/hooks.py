"""What passes through a model's linear maps during a forward: norms per token, means per sample."""

import inspect
import re
import weakref
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch

from plop_nb.modules import SCORED, linear_maps, stack_is_transposed, stack_parameters, trunk_of
from plop_nb.offload import loaded

BASELINES = ("rms", "gaussian")
DRAWS = 256  # noise directions of the Gaussian baseline, per module
BLOCK = 64  # norms that are kept side by side
MEANS = ["input_norm", "feature_norm", "nfn", "nfn_square"]
CHUNK = {"cpu": 2**17, "cuda": 2**24}  # entries held in float32 at a time: what fits a core's cache, and a GPU's slack
VISION = re.compile(r"vision|visual|image|patch|vit\b", re.IGNORECASE)
EVERY = re.compile("")


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
    mean_square = _norms(weight).square().sum() / weight.shape[1]
    if baseline == "rms":
        return mean_square.sqrt()
    noise = torch.randn(weight.shape[1], DRAWS, generator=torch.Generator().manual_seed(seed))
    u = (noise / noise.norm(dim=0)).to(weight.device)
    norms = torch.stack([(rows.float() @ u).square().sum(0) for rows in _chunks(weight)]).sum(0).sqrt()
    # Control variate: E ||W u||^2 is known exactly, which removes nearly all the sampling noise.
    squares = norms.square() - norms.square().mean()
    slope = (squares * norms).mean() / squares.square().mean().clamp_min(1e-30)
    return norms.mean() - slope * (norms.square().mean() - mean_square)


def _norms(x, bias=None):
    """||x - bias|| over the last dimension, summed in float32; shape x.shape[:-1].

    In chunks: a CPU reduces to another dtype by way of a full copy (and 20 times slower).
    """
    if bias is None and (x.dtype == torch.float32 or x.is_cuda):
        return torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32)
    centred = (lambda rows: rows.float()) if bias is None else (lambda rows: rows.float() - bias.float())
    chunks = _chunks(x.reshape(-1, x.shape[-1]))
    return torch.cat([torch.linalg.vector_norm(centred(rows), dim=-1) for rows in chunks]).reshape(x.shape[:-1])


def _chunks(x):
    return x.split(max(1, CHUNK.get(x.device.type, CHUNK["cuda"]) // x.shape[-1]))


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
    with attached(Record(model, baseline, seed)) as record:
        yield record


@contextmanager
def attached(record):
    """The record with its hooks in place; removed on every way out."""
    try:
        record._attach()
        yield record
    finally:
        record._detach()


@dataclass
class _Forward:
    """One forward of the trunk while it runs."""

    mask: torch.Tensor  # (batch, length), 1 for real tokens
    decoder_mask: torch.Tensor | None
    images: re.Pattern | None  # in the names of maps that read images; None where there are none
    sums: list  # of (map indices, statistics (5, maps, batch)): what stays afterwards
    seen: list = field(default_factory=list)  # (map index, ||z||, ||W z||, gain, mask), norms (batch, visits)
    by_layout: dict = field(default_factory=dict)  # the mask in the layout of an input
    blocks: dict = field(default_factory=dict)  # (shape, device) -> (block of norms, rows used)
    encoder_output: weakref.ref | None = None
    last_input: weakref.ref | None = None
    last_norm: torch.Tensor | None = None

    def keep(self, norm):
        """The norm in a larger block: single small tensors that outlive activations leave holes in a CPU's heap."""
        block, used = self.blocks.get((norm.shape, norm.device), (None, BLOCK))
        if used == BLOCK:
            block, used = norm.new_empty(BLOCK, *norm.shape), 0
        block[used] = norm
        self.blocks[norm.shape, norm.device] = block, used + 1
        return block[used]


class Record:
    """The measurements of `record_norms`.

    A hook only takes norms; everything else is done for all maps at once when the trunk is through,
    on the device, and fetched by `frame`.
    """

    def __init__(self, model, baseline="rms", seed=0):
        self._trunk = trunk_of(model)
        self._signature = inspect.signature(self._trunk.forward)
        self._maps = [m for m in linear_maps(model) if m.status == SCORED]
        self._baseline, self._seed = baseline, seed
        self._handles = []
        self._forward = ContextVar("forward", default=None)  # several may be under way: see offload.interleaved
        self._batches = []  # (first sample, real tokens of each sample, sums)
        self.samples = 0
        self.score_mask = None  # (batch, length): which real tokens of the next forward count
        self._seen = set()  # map indices
        self._unclear = {}  # map index -> input shape whose padding cannot be told: such a map gets no score at all
        self._time_major = set()  # map indices that were seen to read (length, batch, features)
        self._encoder = _encoder_of(self._trunk)
        in_encoder = set(self._encoder.modules()) if self._encoder is not None else set()
        self._reads_encoder = [m.module in in_encoder for m in self._maps]
        self._gains = {}  # map index -> (weight version, gain)
        self._zero = set()  # indices of all-zero weights
        self._away = {i: None for i, m in enumerate(self._maps) if m.is_offloaded}  # index -> bias, once fetched
        self._take_gains([i for i in range(len(self._maps)) if i not in self._away])  # a bad weight is refused here

    def frame(self, first=0):
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
        self._settle(self._forward.get())
        batches = [(start, len(real), sums) for start, real, sums in self._batches if start >= first]
        parts = [self._batch_frame(*batch) for batch in batches]
        if not sum(map(len, parts)):
            why = f"; of {len(self._maps)} linear maps, {summary(self.unseen())}" if self.samples else ""
            raise ValueError(f"nothing was recorded: run a forward inside `with record_norms(model)`{why}")
        frame = pd.concat(parts, ignore_index=True)
        bad = frame[~np.isfinite(frame[MEANS]).all(axis=1)]
        if len(bad):
            row = bad.iloc[0]
            raise ValueError(
                f"module {row['module']!r} has a non-finite score ({row['nfn']}) on sample {row['sample']}: "
                "its inputs or outputs hold NaN or infinity; check the weights, or load the model in float32"
            )
        return frame

    def real_tokens(self):
        """Real tokens of each sample, numpy array (samples,)."""
        return np.concatenate([real.cpu().numpy() for _, real, _ in self._batches] or [np.zeros(0)])

    def forget(self, first):
        """Drop the forwards from sample `first` on, as after one that ran out of memory."""
        self._batches = [batch for batch in self._batches if batch[0] < first]
        self.samples = min(self.samples, first)
        self._forward.set(None)

    def maps(self):
        """The scored maps, one row each: `module`, `type`, `layer`."""
        names = {name: [getattr(m, name) for m in self._maps] for name in ("name", "type")}
        frame = pd.DataFrame(names).rename(columns={"name": "module"})
        return frame.assign(layer=pd.array([m.layer for m in self._maps], dtype="Int64"))

    def gains(self):
        """The baseline of each map so far, or None."""
        return [float(self._gains[i][1]) if i in self._gains else None for i in range(len(self._maps))]

    def unclear(self):
        """Names of the maps whose padding could not be told: what they showed before does not count either."""
        return {self._maps[i].name for i in self._unclear}

    def unseen(self):
        """{module name: reason} for scored maps without a measurement so far."""
        reasons = {i: f"padding unknown for input shape {shape}" for i, shape in self._unclear.items()}
        reasons |= dict.fromkeys(self._zero, "all-zero weight")
        return {
            m.name: reasons.get(i, "never fired")
            for i, m in enumerate(self._maps)
            if i in reasons or i not in self._seen
        }

    def _attach(self):
        self._handles.append(self._trunk.register_forward_pre_hook(self._start_batch, with_kwargs=True))
        if self._encoder is not None:
            self._handles.append(self._encoder.register_forward_hook(self._note_encoder_output))
        stacks = {}
        for index, linear_map in enumerate(self._maps):
            if linear_map.expert is not None:
                stacks.setdefault(linear_map.module, {})[linear_map.parameter, linear_map.expert] = index
                continue
            hook = lambda _, args, kwargs, out, i=index: self._measure(i, _first(args, kwargs), out)
            self._handles.append(linear_map.module.register_forward_hook(hook, with_kwargs=True))
        for module, indices in stacks.items():
            hook = lambda m, args, kwargs, _, i=indices: self._measure_experts(m, i, args, kwargs)
            self._handles.append(module.register_forward_hook(hook, with_kwargs=True))
        self._handles.append(self._trunk.register_forward_hook(self._end_batch))  # last: the trunk may be a map itself

    def _detach(self):
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._end_batch()

    def _gain(self, index):
        """The map's baseline, recomputed when its weight was changed in place or replaced."""
        if index not in self._gains or self._gains[index][0] != self._version(index):
            self._take_gains([index])
        return self._gains[index][1]

    def _version(self, index):
        linear_map = self._maps[index]
        if linear_map.is_packed or index in self._away:  # frozen
            return None
        weight = getattr(linear_map.module, linear_map.parameter)
        return weight.data_ptr(), weight._version

    def _take_gains(self, indices):
        """Baselines of these maps, on the devices of their weights; fetched once to be checked."""
        for i in indices:
            linear_map = self._maps[i]
            with loaded(linear_map.module):
                gain = baseline_gain(linear_map.weight, self._baseline, self._seed)
                self._gains[i] = self._version(i), gain
                if i in self._away and linear_map.bias is not None:
                    self._away[i] = linear_map.bias.detach().clone()
        values = _fetched([self._gains[i][1] for i in indices])
        for i, value in zip(indices, values, strict=True):
            if not np.isfinite(value):
                raise ValueError(f"module {self._maps[i].name!r} has NaN or infinite weights: it cannot be scored")
            (self._zero.discard if value else self._zero.add)(i)

    @torch.no_grad()
    def _start_batch(self, _, args, kwargs):
        """Before a forward of the trunk: note who is padding, and open a new batch of samples."""
        self._settle(self._forward.get())
        given = {**self._signature.bind_partial(*args, **kwargs).arguments, **kwargs}
        mask = _mask(given, "attention_mask", ("input_ids", "inputs_embeds"))
        decoder_mask = _mask(given, "decoder_attention_mask", ("decoder_input_ids", "decoder_inputs_embeds"))
        images = None if given.get("pixel_values") is None else VISION
        if mask is None:
            images = images and EVERY
            inputs = next(v for v in given.values() if isinstance(v, torch.Tensor))
            mask = torch.ones(inputs.shape[:2] if inputs.ndim == 3 else (len(inputs), 1), device=inputs.device)
        if self.score_mask is not None:
            mask, self.score_mask = mask * self.score_mask.to(mask), None
        sums = []
        self._forward.set(_Forward(mask, decoder_mask, images, sums))
        self._batches.append((self.samples, mask.sum(1), sums))
        self.samples += len(mask)

    def _end_batch(self, *_):
        """After a forward of the trunk: what a backward recomputes, or a map called alone is shown, belongs to none."""
        self._settle(self._forward.get())
        self._forward.set(None)

    def _note_encoder_output(self, _, args, out):
        if (forward := self._forward.get()) is None:  # the encoder called by itself
            return
        first = out if isinstance(out, torch.Tensor) else out[0]
        forward.encoder_output = weakref.ref(first) if isinstance(first, torch.Tensor) else None

    @torch.no_grad()
    def _measure(self, index, z, out):
        """After a map's forward: ||z|| and ||W z|| of its tokens."""
        forward = self._forward.get()
        if forward is None:  # a map called by itself, outside of a forward
            return
        gain = self._gain(index)
        if index in self._zero:
            return
        mask = self._mask_for(forward, index, z)
        if mask is None:
            self._unclear[index] = tuple(z.shape)
            return
        bias = self._away[index] if index in self._away else self._maps[index].bias
        norm_in, norm_out = self._input_norm(forward, z), forward.keep(_norms(out, bias))
        if index in self._time_major:
            norm_in, norm_out = norm_in.transpose(0, 1), norm_out.transpose(0, 1)
        samples = len(forward.mask)
        norm_in, norm_out = norm_in.reshape(samples, -1), norm_out.reshape(samples, -1)
        forward.seen.append((index, *self._observed(index, z, out, norm_in, norm_out, mask), gain, mask))
        self._seen.add(index)

    def _observed(self, index, z, out, norm_in, norm_out, mask):
        """The norms to keep, shape (batch, visits); a subclass sees the vectors here."""
        return norm_in, norm_out

    def _by_sample(self, index, x, samples):
        """Inputs or outputs of a map as (batch, visits, features), float32."""
        x = x.transpose(0, 1) if index in self._time_major else x
        return x.reshape(samples, -1, x.shape[-1]).float()

    @torch.no_grad()
    def _settle(self, forward=None):
        """The sums over tokens of all maps seen in a forward, maps of like shape together."""
        groups = {}
        for row in forward.seen if forward else []:
            groups.setdefault((id(row[-1]), row[1].device), []).append(row)
        for rows in groups.values():
            indices, norm_in, norm_out, gains, masks = zip(*rows, strict=True)
            gain = torch.stack([g.to(norm_in[0].device) for g in gains])[:, None, None]
            values = _values(masks[0].to(gain.device), torch.stack(norm_in), torch.stack(norm_out), gain)
            forward.sums.append((indices, values.sum(-1)))
        if forward:
            forward.seen.clear()
            forward.blocks.clear()

    @torch.no_grad()
    def _measure_experts(self, experts, indices, args, kwargs):
        """After a stack of experts: each expert's projections on the tokens that it got.

        The stack does not show them, so they are computed once more from its inputs.
        """
        forward = self._forward.get()
        if forward is None:  # called by itself, outside of a forward
            return
        tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)]
        hidden = tensors[0].reshape(-1, tensors[0].shape[-1])
        chosen = next((t for t in tensors[1:] if not t.is_floating_point()), None)
        copies = 1 if chosen is not None else len(stack_parameters(experts)[0])  # llama4: one copy an expert
        mask = _sides(forward, hidden.shape[0] // copies)
        if mask is None:
            self._unclear.update(dict.fromkeys(indices.values(), tuple(hidden.shape)))
            return
        owner = torch.arange(len(mask), device=hidden.device).repeat_interleave(mask.shape[1])
        real = mask.reshape(-1).to(hidden.device)
        found = {}
        with loaded(experts):
            for expert in sorted({e for _, e in indices}):
                if chosen is not None:
                    tokens = (chosen.reshape(len(hidden), -1) == expert).any(-1).nonzero().squeeze(-1)
                    z, who = hidden[tokens], tokens
                else:
                    z = hidden.view(copies, -1, hidden.shape[-1])[expert]
                    who = torch.arange(len(z), device=z.device)
                for parameter, inputs, norm_out in _expert_steps(experts, expert, z):
                    index = indices[parameter, expert]
                    gain = self._gain(index).to(z.device)
                    if index not in self._zero:
                        values = _values(real[who], _norms(inputs), norm_out, gain)
                        sums = torch.zeros(len(values), len(mask), device=z.device)
                        found[index] = sums.index_add_(1, owner[who], values)
        if found:  # not all weights are zero
            forward.sums.append((tuple(found), torch.stack(list(found.values()), 1)))
            self._seen.update(found)

    def _mask_for(self, forward, index, z):
        """Which of a map's input vectors are real tokens, shape (batch, visits); None where it cannot be known."""
        lead = z.shape[:-1]
        fits = lambda mask: None if mask is None else self._fit(forward, index, mask, lead)
        if self._reads_encoder[index] or forward.decoder_mask is None:
            own, other = fits(forward.mask), None
        else:
            from_encoder = forward.encoder_output is not None and forward.encoder_output() is z
            own, other = fits(forward.decoder_mask), fits(forward.mask)
            if from_encoder or own is None:
                own = other
        reads_images = forward.images and forward.images.search(self._maps[index].name)
        if own is None and reads_images and lead[0] == len(forward.mask):
            return torch.ones(lead, device=z.device).flatten(1)  # patches: an image has no padding
        return own

    def _fit(self, forward, index, mask, lead):
        """`mask` (batch, length) for an input of leading shape `lead`, as (batch, visits), or None."""
        batch, length = mask.shape
        by_time = len(lead) >= 2 and lead[:2] == (length, batch)
        if by_time and (batch != length or index in self._time_major):
            self._time_major.add(index)
            lead = (batch, length, *lead[2:])
        key = id(mask), lead
        if key not in forward.by_layout:
            fitted = _laid_out(mask, lead)
            forward.by_layout[key] = None if fitted is None else fitted.reshape(batch, -1)
        return forward.by_layout[key]

    def _input_norm(self, forward, z):
        """||z|| per token; computed once for maps that read the same tensor (query, key, value)."""
        if forward.last_input is None or forward.last_input() is not z:
            forward.last_input, forward.last_norm = weakref.ref(z), forward.keep(_norms(z))
        return forward.last_norm

    def _batch_frame(self, first, samples, sums):
        total = np.zeros((1 + len(MEANS), len(self._maps), samples))
        for (indices, _), values in zip(sums, _fetched([v for _, v in sums]), strict=True):
            np.add.at(total, (slice(None), list(indices)), values)  # a shared layer fires several times
        total[:, list(self._unclear)] = 0
        counts, *sums_over_tokens = total.transpose(0, 2, 1).reshape(len(total), -1)
        frame = pd.concat([self.maps()] * samples, ignore_index=True)
        frame.insert(0, "sample", np.repeat(first + np.arange(samples), len(self._maps)))
        frame["tokens"] = counts.astype(int)
        frame = frame.assign(**dict(zip(MEANS, sums_over_tokens, strict=True)))[counts > 0].copy()
        frame[MEANS] = frame[MEANS].div(frame["tokens"], axis=0)
        return frame


def _values(mask, norm_in, norm_out, gain):
    """(5, ...): one, ||z||, ||W z||, NFN and its square for each real token, zero for the others."""
    real = (mask > 0) & (norm_in != 0)  # 0 / 0: some models zero their padding
    nfn = norm_out / (norm_in * gain)
    values = [torch.ones_like(norm_in), norm_in, norm_out, nfn, nfn.square()]
    return torch.where(real, torch.stack(values), 0.0)


def _fetched(tensors):
    """Small tensors as float64 arrays: one copy from each device."""
    arrays, by_device = [None] * len(tensors), {}
    for i, tensor in enumerate(tensors):
        by_device.setdefault(tensor.device, []).append(i)
    for indices in by_device.values():
        flat = torch.cat([tensors[i].reshape(-1) for i in indices]).double().cpu().numpy()
        ends = np.cumsum([tensors[i].numel() for i in indices])
        for i, part in zip(indices, np.split(flat, ends[:-1]), strict=True):
            arrays[i] = part.reshape(tensors[i].shape)
    return arrays


def _sides(forward, tokens):
    """The mask, encoder's or decoder's, with this many tokens in all; None where they differ."""
    fitting = [m for m in (forward.mask, forward.decoder_mask) if m is not None and m.numel() == tokens]
    if len(fitting) == 2 and not torch.equal(*fitting):
        return None
    return fitting[0] if fitting else None


def _laid_out(mask, lead):
    """`mask` (batch, length) expanded to the leading shape of an input, samples first; None where it does not fit."""
    batch, length = mask.shape
    if lead[1:] == (length, length):  # heads or tokens, in which order?
        return None
    if lead[:2] == (batch, length):  # one vector a token, or several (heads)
        return mask.reshape(batch, length, *[1] * (len(lead) - 2)).expand(lead)
    if len(lead) == 3 and lead[0] == batch and lead[2] == length:  # (batch, heads, length)
        return mask[:, None].expand(lead)
    if lead == (batch * length,):  # tokens flattened
        return mask
    if lead == (batch,):  # a pooled vector
        return torch.ones_like(mask[:, :1])
    return None


def summary(unseen):
    """One line about maps without a score: reasons, counts, first names."""
    reasons = {}
    for name, reason in unseen.items():
        reasons.setdefault(reason, []).append(name)
    return "; ".join(
        f"{len(names)} {reason} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})"
        for reason, names in reasons.items()
    )


def _mask(given, name, inputs):
    """The padding mask among the trunk's arguments, shape (batch, length); ones where there is none."""
    mask = given.get(name)
    tokens = next((given[k] for k in inputs if isinstance(given.get(k), torch.Tensor)), None)
    if isinstance(mask, torch.Tensor) and mask.ndim == 2:
        length = mask.shape[1] if tokens is None else tokens.shape[1]
        return mask[:, -length:].float()  # in generation the mask also covers the cached tokens
    return None if tokens is None else torch.ones(tokens.shape[:2], device=tokens.device)


def _encoder_of(trunk):
    """The encoder of an encoder-decoder model, or None."""
    is_pair = getattr(getattr(trunk, "config", None), "is_encoder_decoder", False)
    return getattr(trunk, "encoder", None) if is_pair else None


def _first(args, kwargs):
    return args[0] if args else next(iter(kwargs.values()))


def _expert_steps(experts, expert, z):
    """(parameter, input, ||W z|| per token) of one expert's projections, in order."""
    up, down = stack_parameters(experts)
    name = "gate_up_proj" if up is getattr(experts, "gate_up_proj", None) else "up_proj"
    fused = name == "gate_up_proj" and getattr(experts, "has_gate", True)
    transposed = stack_is_transposed(experts)
    apply = lambda z, stack: z @ (stack[expert] if transposed else stack[expert].T)
    out = apply(z, up)
    yield name, z, _norms(out)
    if (bias := getattr(experts, f"{name}_bias", None)) is not None:
        out = out + bias[expert]
    if not fused:
        hidden = experts.act_fn(out)
    elif hasattr(experts, "_apply_gate"):
        hidden = experts._apply_gate(out)
    else:
        gate, up_out = out.chunk(2, dim=-1)
        hidden = experts.act_fn(gate) * up_out
    yield "down_proj", hidden, _norms(apply(hidden, down))
