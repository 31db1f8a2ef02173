"""Scores of a model as if its function were stored in another form, without a second model.

NFN belongs to the weights that a function is stored in, not to the function. What `moves` does to
a copy's weights is done here to norms of inputs and outputs while the stored model runs.
"""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import nn

from plop_nb.links import NormLink, PairLink, after, disjoint
from plop_nb.maps import LinearMap, linear_maps
from plop_nb.moves import (
    Balance,
    balance,
    changed_columns,
    changed_inputs,
    changed_outputs,
    changed_rows,
)
from plop_nb.norms import baseline_gain
from plop_nb.probing import Probe, norm_links, pair_links
from plop_nb.recording import Observer
from plop_nb.tally import Observation

FORMS = ("stored", "folded", "canonical")
LEVEL = 6  # of the stack: up from `_warn`, past `contextlib`, to the caller of `nfn_scores`


def check_form(form: str) -> str:
    """Refuse an unknown form (ValueError)."""
    if form not in FORMS:
        raise ValueError(f"form={form!r} is unknown, choose one of {FORMS}")
    return form


@contextmanager
def observing(
    model: nn.Module, form: str, *, baseline: str = "rms", seed: int = 0
) -> Iterator[Observer | None]:
    """While inside: an observer that measures every map as it is in another form, or None.

    Parameters
    ----------
    model : torch.nn.Module
        With its weights in memory, neither quantised, nor in float16, nor with adapters.
    form : {"stored", "folded", "canonical"}
        See `nfn_scores`. "stored" needs no observer, and takes every model.
    baseline, seed
        See `norms.baseline_gain`.

    Raises
    ------
    TypeError, ValueError
        `form` is unknown, or as `probing.norm_links`.

    Warns
    -----
    UserWarning
        Some norms, or stacks of experts, are scored as they are stored.
    """
    if check_form(form) == "stored":
        yield None
        return
    looks = _looks(model, is_canonical=form == "canonical")
    norms: dict[str, NormLink] = {}
    for look in looks.values():
        if look.norm is not None:
            norms[look.norm.name] = look.norm
    inputs = _NormInputs()
    with ExitStack() as hooks:
        for link in norms.values():
            hooks.enter_context(after(link.module, partial(inputs.note, link)))
        yield _InForm(looks, inputs, baseline, seed)


@dataclass(frozen=True)
class Look:
    """How a map looks in another form; None: as it is stored."""

    norm: NormLink | None = None  # its gain and shift are in the map
    into: torch.Tensor | None = None  # what its rows were changed by, see `moves.Balance`
    pair: PairLink | None = None  # whose reader it is, and
    balance: Balance | None = None  # what its columns were changed by

    def weight(self, linear_map: LinearMap) -> torch.Tensor:
        """W in this form, (out_features, in_features)."""
        weight = linear_map.weight
        weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
        if self.norm is not None:
            weight = weight * self.norm.gain
        if self.into is not None:
            weight = changed_rows(weight, self.into)
        if self.pair is not None and self.balance is not None:
            weight = changed_columns(weight, self.balance.inverse, self.pair)
        return weight


def _looks(model: nn.Module, *, is_canonical: bool) -> dict[str, Look]:
    """{module: how it looks}, of the maps that look different."""
    looks: dict[str, Look] = {}
    probe = Probe(model)
    links = norm_links(probe)
    for link in links:
        if link.is_free:
            for reader in link.readers:
                looks[reader.name] = Look(norm=link)
    _warn(model, [link for link in links if not link.is_free])
    if not is_canonical:
        return looks
    for pair in disjoint(pair_links(probe)):
        writer = looks.get(pair.writer.name, Look())
        found = balance(pair, writer.weight(pair.writer))
        looks[pair.writer.name] = replace(writer, into=found.into)
        reading = looks.get(pair.reader.name, Look())
        looks[pair.reader.name] = replace(reading, pair=pair, balance=found)
    return looks


def _warn(model, mixed):
    """Tell what stays as it is stored."""
    if mixed:
        warnings.warn(
            f"{len(mixed)} norms, such as {mixed[0].name!r}, feed more than linear maps: their "
            "gains are part of the function, and these maps are scored as they are stored",
            stacklevel=LEVEL,
        )
    stacks = {m.target for m in linear_maps(model) if m.expert is not None}
    if stacks:
        warnings.warn(
            f"{len(stacks)} stacks of experts, such as {min(stacks)!r}, are scored as they are "
            "stored",
            stacklevel=LEVEL,
        )


@dataclass
class _NormInputs:
    """The normalised inputs, without gain and shift, of the norms that have just run."""

    # norm -> its output, the same without gain and shift, and who has not read it yet
    _latest: dict[str, tuple[torch.Tensor, torch.Tensor, set[str]]] = field(default_factory=dict)

    def note(self, link: NormLink, x: torch.Tensor, out: torch.Tensor) -> None:
        """A norm has run."""
        waiting = {reader.name for reader in link.readers}
        self._latest[link.name] = out, link.plain(x), waiting

    def of(self, link: NormLink, reader: str, z: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """What a reader's `z`, (batch, visits, size), is without the norm's gain and shift.

        At padding, which `mask` (batch, visits) leaves out, it may be anything.
        """
        if not self._has(link, z, mask):
            raise ValueError(
                f"norm {link.name!r} is laid out in another way than what its reader {reader!r} "
                "gets: score the copy of fold_norms(model, strict=False) instead"
            )
        _, plain, waiting = self._latest[link.name]
        waiting.discard(reader)
        if not waiting:  # so that no more of them are held than the model itself holds
            del self._latest[link.name]
        return plain.reshape(z.shape)

    def _has(self, link, z, mask):
        """Whether `z` is what the norm has returned last."""
        if link.name not in self._latest or self._latest[link.name][0].numel() != z.numel():
            return False
        out = self._latest[link.name][0].reshape(z.shape)
        return torch.equal(out[mask > 0], z[mask > 0])


class _InForm:
    """An observer that measures maps as they look in another form."""

    def __init__(self, looks: dict[str, Look], inputs: _NormInputs, baseline: str, seed: int):
        self._looks, self._inputs = looks, inputs
        self._baseline, self._seed = baseline, seed
        self._gains: dict[str, torch.Tensor] = {}
        self._shifts: dict[str, torch.Tensor] = {}  # what each map makes of its norm's shift

    def _of_shift(self, linear_map: LinearMap, shift: torch.Tensor) -> torch.Tensor:
        name = linear_map.name
        if name not in self._shifts:
            self._shifts[name] = linear_map.weight.float() @ shift.float()
        return self._shifts[name]

    @torch.no_grad()
    def __call__(self, linear_map: LinearMap, z, features, mask) -> Observation | None:
        look = self._looks.get(linear_map.name)
        if look is None:
            return None
        if linear_map.name not in self._gains:
            weight = look.weight(linear_map)
            self._gains[linear_map.name] = baseline_gain(weight, self._baseline, self._seed)
        if look.norm is not None:
            z = self._inputs.of(look.norm, linear_map.name, z, mask)
            if look.norm.shift is not None:
                features = features.float() - self._of_shift(linear_map, look.norm.shift)
        if look.into is not None:
            features = changed_outputs(features.float(), look.into)
        if look.pair is not None and look.balance is not None:
            z = changed_inputs(z.float(), look.balance.into, look.pair)
        return Observation(
            input_norm=torch.linalg.vector_norm(z.float(), dim=-1),
            feature_norm=torch.linalg.vector_norm(features.float(), dim=-1),
            gain=self._gains[linear_map.name],
        )
