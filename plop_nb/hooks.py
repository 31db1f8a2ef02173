"""What passes through a model's linear maps during a forward: norms per token, means per sample."""

import inspect
import re
import weakref
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch

from plop_nb.modules import SCORED, linear_maps, stack_is_transposed, stack_parameters, trunk_of

BASELINES = ("rms", "gaussian")
DRAWS = 256  # noise directions of the Gaussian baseline, per module
VISION = re.compile(r"vision|visual|image|patch|vit\b", re.IGNORECASE)


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
        self._zero = {i for i in range(len(self._maps)) if self._gain(i) == 0}  # a bad weight is refused right here
        self._biases = [m.bias for m in self._maps]
        self._handles = []
        self._batches = []  # (first sample, {map index: statistics (4, batch)})
        self.samples = 0
        self.real_tokens = []  # of each sample, batch by batch
        self._unclear = {}  # map index -> input shape whose padding cannot be told: such a map gets no score at all
        self._time_major = set()  # map indices that were seen to read (length, batch, features)
        self._encoder = _encoder_of(self._trunk)
        in_encoder = set(self._encoder.modules()) if self._encoder is not None else set()
        self._reads_encoder = [m.module in in_encoder for m in self._maps]
        self._last_input = self._last_norm = None

    def frame(self):
        """The record so far, one row per sample and module.

        Returns
        -------
        pandas.DataFrame
            Columns `sample` (0, 1, ... in the order met), `module`, `type`, `layer`, `tokens`
            (real tokens counted; a map that fires several times counts every visit),
            `input_norm` (mean ||z||), `feature_norm` (mean ||W z||), `nfn` (mean of
            ||W z|| / (||z|| * baseline), dimensionless).

        Raises
        ------
        ValueError
            Nothing was recorded, or a score is not finite (names the module and the sample).
        """
        batches = [(first, {i: s for i, s in sums.items() if i not in self._unclear}) for first, sums in self._batches]
        parts = [self._batch_frame(first, sums) for first, sums in batches if sums]
        if not parts:
            why = f"; of {len(self._maps)} linear maps, {summary(self.unseen())}" if self.samples else ""
            raise ValueError(f"nothing was recorded: run a forward inside `with record_norms(model)`{why}")
        frame = pd.concat(parts, ignore_index=True)
        bad = frame[~np.isfinite(frame[["input_norm", "feature_norm", "nfn"]]).all(axis=1)]
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
        reasons = {i: f"padding unknown for input shape {shape}" for i, shape in self._unclear.items()}
        reasons |= dict.fromkeys(self._zero, "all-zero weight")
        return {
            m.name: reasons.get(i, "never fired") for i, m in enumerate(self._maps) if i in reasons or i not in seen
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

    def _detach(self):
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._last_input = self._last_norm = self._encoder_output = None

    def _gain(self, index):
        """The map's baseline, recomputed when its weight was changed in place or replaced."""
        linear_map = self._maps[index]
        weight = getattr(linear_map.module, linear_map.parameter)
        version = None if linear_map.is_packed else (weight.data_ptr(), weight._version)  # packed: frozen
        if index not in self._gains or self._gains[index][0] != version:
            gain = baseline_gain(linear_map.weight, self._baseline, self._seed)
            if not torch.isfinite(gain):
                raise ValueError(f"module {linear_map.name!r} has NaN or infinite weights: it cannot be scored")
            self._gains[index] = (version, gain)
        return self._gains[index][1]

    @torch.no_grad()
    def _start_batch(self, _, args, kwargs):
        """Before a forward of the trunk: note who is padding, and open a new batch of samples."""
        given = {**self._signature.bind_partial(*args, **kwargs).arguments, **kwargs}
        self._mask = _mask(given, "attention_mask", ("input_ids", "inputs_embeds"))
        self._decoder_mask = _mask(given, "decoder_attention_mask", ("decoder_input_ids", "decoder_inputs_embeds"))
        if self._mask is None:
            inputs = next(v for v in given.values() if isinstance(v, torch.Tensor))
            self._mask = torch.ones(inputs.shape[:2] if inputs.ndim == 3 else (len(inputs), 1), device=inputs.device)
        self.real_tokens.append(self._mask.sum(1))
        self._encoder_output = None
        self._images = given.get("pixel_values") is not None
        self._batches.append((self.samples, {}))
        self.samples += len(self._mask)

    def _note_encoder_output(self, _, args, out):
        first = out if isinstance(out, torch.Tensor) else out[0]
        self._encoder_output = weakref.ref(first) if isinstance(first, torch.Tensor) else None

    @torch.no_grad()
    def _measure(self, index, z, out):
        """After a map's forward: add the sums over real tokens of ||z||, ||W z|| and their ratio."""
        if index in self._zero or not self._batches:  # a map called by itself, outside of a forward
            return
        mask = self._mask_for(index, z)
        if mask is None:
            self._unclear[index] = tuple(z.shape)
            return
        if self._biases[index] is not None:
            out = out.float() - self._biases[index].float()
        norm_in = self._input_norm(z)
        norm_out = torch.linalg.vector_norm(out, dim=-1, dtype=torch.float32)
        values = self._values(index, mask, norm_in, norm_out)
        if index in self._time_major:
            values = values.transpose(1, 2)
        self._add(index, values.reshape(4, len(self._mask), -1).sum(-1))

    def _values(self, index, mask, norm_in, norm_out):
        """(4, ...): one, ||z||, ||W z|| and their ratio for each real token, zero for the others."""
        real = (mask.to(norm_in.device) > 0) & (norm_in != 0)  # 0 / 0: some models zero their padding
        ratio = norm_out / (norm_in * self._gain(index).to(norm_in.device))
        return torch.where(real, torch.stack([torch.ones_like(norm_in), norm_in, norm_out, ratio]), 0.0)

    def _add(self, index, sums):
        batch = self._batches[-1][1]
        batch[index] = batch[index] + sums if index in batch else sums  # a shared layer fires again

    @torch.no_grad()
    def _measure_experts(self, experts, indices, args, kwargs):
        """After a stack of experts: each expert's projections on the tokens that it got.

        The stack does not show them, so they are computed once more from its inputs.
        """
        if not self._batches:  # called by itself, outside of a forward
            return
        tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)]
        hidden = tensors[0].reshape(-1, tensors[0].shape[-1])
        chosen = next((t for t in tensors[1:] if not t.is_floating_point()), None)
        copies = 1 if chosen is not None else len(stack_parameters(experts)[0])  # llama4: one copy an expert
        mask = self._sides(hidden.shape[0] // copies)
        if mask is None:
            self._unclear.update(dict.fromkeys(indices.values(), tuple(hidden.shape)))
            return
        owner = torch.arange(len(mask), device=hidden.device).repeat_interleave(mask.shape[1])
        real = mask.reshape(-1).to(hidden.device)
        for expert in sorted({e for _, e in indices}):
            if chosen is not None:
                tokens = (chosen.reshape(len(hidden), -1) == expert).any(-1).nonzero().squeeze(-1)
                z, who = hidden[tokens], tokens
            else:
                z = hidden.view(copies, -1, hidden.shape[-1])[expert]
                who = torch.arange(len(z), device=z.device)
            for parameter, inputs, out in _expert_steps(experts, expert, z):
                if indices[parameter, expert] in self._zero:
                    continue
                values = self._values(indices[parameter, expert], real[who], inputs.float().norm(dim=-1), out)
                sums = torch.zeros(4, len(mask), device=z.device).index_add_(1, owner[who], values)
                self._add(indices[parameter, expert], sums)

    def _sides(self, tokens):
        """The mask, encoder's or decoder's, with this many tokens in all; None where they differ."""
        fitting = [m for m in (self._mask, self._decoder_mask) if m is not None and m.numel() == tokens]
        if len(fitting) == 2 and not torch.equal(*fitting):
            return None
        return fitting[0] if fitting else None

    def _mask_for(self, index, z):
        """Which of a map's input vectors are real tokens, shape z.shape[:-1]; None where it cannot be known."""
        lead = z.shape[:-1]
        fits = lambda mask: None if mask is None else self._fit(index, mask, lead)
        if self._reads_encoder[index] or self._decoder_mask is None:
            own, other = fits(self._mask), None
        else:
            from_encoder = self._encoder_output is not None and self._encoder_output() is z
            own, other = fits(self._decoder_mask), fits(self._mask)
            if from_encoder or own is None:
                own = other
        if own is None and self._images and lead[0] == len(self._mask) and VISION.search(self._maps[index].name):
            return torch.ones(lead, device=z.device)  # patches: an image has no padding
        return own

    def _fit(self, index, mask, lead):
        """`mask` (batch, length) for an input of leading shape `lead`, or None."""
        batch, length = mask.shape
        by_time = len(lead) >= 2 and lead[:2] == (length, batch)
        if by_time and (batch != length or index in self._time_major):
            self._time_major.add(index)
            mask, lead_mask = mask.T, (length, batch)
        else:
            lead_mask = (batch, length)
        if lead[1:] == (length, length):  # heads or tokens, in which order?
            return None
        if lead[:2] == lead_mask:  # one vector a token, or several (heads)
            return mask.reshape(*lead_mask, *[1] * (len(lead) - 2)).expand(lead)
        if len(lead) == 3 and lead[0] == batch and lead[2] == length:  # (batch, heads, length)
            return mask[:, None].expand(lead)
        if lead == (batch * length,):  # tokens flattened
            return mask.reshape(-1)
        if lead == (batch,):  # a pooled vector
            return torch.ones_like(mask[:, 0])
        return None

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
    yield name, z, out.float().norm(dim=-1)
    if (bias := getattr(experts, f"{name}_bias", None)) is not None:
        out = out + bias[expert]
    if not fused:
        hidden = experts.act_fn(out)
    elif hasattr(experts, "_apply_gate"):
        hidden = experts._apply_gate(out)
    else:
        gate, up_out = out.chunk(2, dim=-1)
        hidden = experts.act_fn(gate) * up_out
    yield "down_proj", hidden, apply(hidden, down).float().norm(dim=-1)
