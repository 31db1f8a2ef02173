"""What reads a norm, and which rows meet which columns: found by running the model, not by names.

A norm's output is stretched by powers of two and its readers' inputs are shrunk by them. All maps
get, and the model returns, the same bits if nothing else reads the norm, and other ones if
something does. What shows in no bit of a short run is not seen: a choice of tokens that only long
texts make, other than by a linear map.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import pandas as pd
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from plop_nb import inputs
from plop_nb.forwards import evaluating
from plop_nb.inputs import Batch
from plop_nb.links import (
    Change,
    NormLink,
    PairLink,
    after,
    before,
    candidate_pairs,
    may_be_norm,
    neutral_weight,
)
from plop_nb.maps import HEAD, NOT_PLAIN, SCORED, LinearMap, linear_maps
from plop_nb.offload import is_offloaded
from plop_nb.wrappers import trunk_of, unwrapped

PROBE = (2, 8)  # texts and tokens of the probe
# What configurations call the width of a head's value.
HEAD_SIZES = ("v_head_dim", "head_dim", "d_kv")


def norm_links(model: "nn.Module | Probe", batch: Batch | None = None) -> list[NormLink]:
    """The norms that linear maps of the trunk read, in the order of definition.

    Parameters
    ----------
    model : torch.nn.Module or Probe
        With its weights in memory, in bfloat16 or finer, without adapters. A probe saves its first
        runs.
    batch : dict of tensors, optional
        What to run the model on, as a tokenizer gives it; by default random tokens.

    Returns
    -------
    list of NormLink
        `is_free` says whether these maps are all that reads the norm.

    Raises
    ------
    TypeError, ValueError
        `model` is offloaded, quantised, in float16, or has adapters; it reads no tokens and there
        is no `batch`, or `batch` is nothing that it reads; or it is not deterministic.
    """
    probe = model if isinstance(model, Probe) else Probe(model, batch)
    found = probe.norms()
    all_free = probe.same_with(found)
    links = []
    for link in found:
        is_free = not probe.idle_beside(link) and (all_free or probe.same_with([link]))
        links.append(replace(link, is_free=is_free))
    return links


def pair_links(model: "nn.Module | Probe", batch: Batch | None = None) -> list[PairLink]:
    """Pairs of maps of one layer whose scale can go from one to the other, as up and down can.

    Arguments, and errors, as in `norm_links`. Which pairs there are is decided for all layers
    together.

    Returns
    -------
    list of PairLink
        A map may be in two of them (see `links.disjoint`).
    """
    probe = model if isinstance(model, Probe) else Probe(model, batch)
    links = []
    for candidates in probe.pairs():
        if not probe.same_with(candidates) or probe.same_with(candidates, undone=False):
            continue
        if not probe.same_with(candidates, mixed=True):
            candidates = [PairLink(p.writer, p.reader, p.rows, None) for p in candidates]
        links += candidates
    return links


def norm_table(model: nn.Module, batch: Batch | None = None) -> pd.DataFrame:
    """Every norm that linear maps read, one row each: whose gains `moves.fold_norms` can move.

    Arguments, and errors, as in `norm_links`.

    Returns
    -------
    pandas.DataFrame
        `norm` (its name), `readers` (types of the maps, joined by commas), `smallest`, `median`
        and `largest` (of the gain's absolute values, dimensionless), `free` (whether the gain can
        move into the maps, as nothing else reads the norm). A gain is what multiplies the
        normalised input, also where it is stored less 1.
    """
    rows = []
    for link in norm_links(model, batch):
        size = link.gain.abs()
        rows.append(
            {
                "norm": link.name,
                "readers": ", ".join(dict.fromkeys(reader.type for reader in link.readers)),
                "smallest": size.min().item(),
                "median": size.median().item(),
                "largest": size.max().item(),
                "free": link.is_free,
            }
        )
    columns = ["norm", "readers", "smallest", "median", "largest", "free"]
    return pd.DataFrame(rows, columns=columns)


class Probe:
    """Forwards of a trunk on a few tokens, with something changed on the way.

    Raises
    ------
    TypeError, ValueError
        As `norm_links`.
    """

    def __init__(self, model: nn.Module, batch: Batch | None = None) -> None:
        model = unwrapped(model)
        check_plain(model)
        self._trunk = trunk_of(model)
        inside = set(self._trunk.modules())
        self._modules = {name: m for name, m in model.named_modules() if m in inside}
        self._maps = []
        for linear_map in linear_maps(model):
            is_alone = isinstance(linear_map.module, (nn.Linear, Conv1D))
            if is_alone and linear_map.status not in (HEAD, NOT_PLAIN):
                self._maps.append(linear_map)
        if batch is not None and not isinstance(batch, Mapping):
            raise TypeError(
                f"batch is {type(batch).__name__}, expected a dict of tensors, such as "
                'tokenizer(texts, return_tensors="pt", padding=True)'
            )
        given = _random_tokens(self._trunk) if batch is None else dict(batch)
        _check_length(given)
        try:
            given = inputs.padded_to_multiple(self._trunk, given)
            self._arguments = inputs.arguments(self._trunk, given)
            self.reference, self._read = self._run()
        except (TypeError, ValueError) as error:
            if batch is not None:
                raise
            raise ValueError(
                f"{type(self._trunk).__name__} does not run on tokens alone ({error}): pass batch, "
                "a dict of tensors to run it on; for scores, to fold_norms, and score the copy"
            ) from error
        if not self._is_as_ever(*self._run()):
            raise ValueError(
                f"{type(self._trunk).__name__} returns another output each time that it is run "
                "(or NaN): what reads a norm cannot be told"
            )

    @torch.no_grad()
    def output(self) -> torch.Tensor:
        """What the trunk returns first: its last hidden states."""
        with evaluating(self._trunk):
            found = self._trunk(**self._arguments)
        return found if isinstance(found, torch.Tensor) else found[0]

    def idle_beside(self, link: NormLink) -> bool:
        """Whether a map that might read the norm has not run: one of several languages', say."""
        seen = {linear_map.name for linear_map, _ in self._read}
        blocks = {_block(reader) for reader in link.readers}
        for linear_map in self._maps:
            fits = _block(linear_map) in blocks and linear_map.shape[1] == len(link.gain)
            if fits and linear_map.name not in seen:
                return True
        return False

    def norms(self) -> list[NormLink]:
        """Norms whose output is the input of a map; that nothing else reads it is not yet known."""
        norms = {name: m for name, m in self._modules.items() if may_be_norm(m)}
        seen = _Readers()
        with ExitStack() as hooks:
            for name, module in norms.items():
                hooks.enter_context(after(module, partial(seen.note_norm, name)))
            for linear_map in self._maps:
                note = partial(seen.note_map, linear_map)
                hooks.enter_context(before(linear_map.module, note))
            self.output()
        links = []
        for name, module in norms.items():
            readers = seen.readers.get(name)
            neutral = neutral_weight(module, *seen.visits[name]) if readers else None
            if readers and neutral is not None:
                links.append(NormLink(name, module, neutral, tuple(readers.values())))
        return links

    def pairs(self) -> Iterator[list[PairLink]]:
        """For every two types that might be pairs: the pairs of all layers."""
        order = list(dict.fromkeys(linear_map.name for linear_map, _ in self._read))
        behind_norms = {reader.type for link in self.norms() for reader in link.readers}
        groups = _by_type_and_block([m for m in self._maps if m.name in order])
        head = _head_size(self._trunk)
        for writer, reader in itertools.permutations(groups, 2):
            writers, readers = groups[writer], groups[reader]
            if reader in behind_norms or set(writers) != set(readers):
                continue
            both = [(writers[block], readers[block]) for block in writers]
            if all(order.index(a.name) < order.index(b.name) for a, b in both):
                candidates = candidate_pairs(both, head)
                if candidates:
                    yield candidates

    def same_with(
        self, links: Sequence[NormLink | PairLink], *, undone: bool = True, mixed: bool = False
    ) -> bool:
        """Whether the output stays, and what maps read, where links are stretched and that undone.

        Parameters
        ----------
        links : sequence of NormLink or PairLink
        undone : bool
            Undo it at the readers.
        mixed : bool
            Change the order of outputs inside of heads, too.
        """
        generator = torch.Generator().manual_seed(0)
        with ExitStack() as hooks:
            for link in links:
                change = Change.of_link(link, generator, mixed=mixed)
                hooks.enter_context(after(change.writer, change.make))
                for reader in change.readers if undone else ():
                    hooks.enter_context(before(reader, change.undo))
            return self._is_as_ever(*self._run())

    def _run(self):
        """The trunk's output, and what every map has read: [(map, its input)] as they ran."""
        read: list[tuple[LinearMap, torch.Tensor]] = []
        with ExitStack() as hooks:
            for linear_map in self._maps:
                note = partial(_note_input, read, linear_map)
                hooks.enter_context(before(linear_map.module, note))
            return self.output(), read

    def _is_as_ever(self, output, read):
        """Whether a run is the same as the first, bit by bit."""
        if not torch.equal(output, self.reference) or len(read) != len(self._read):
            return False
        pairs = zip(read, self._read, strict=True)
        return all(torch.equal(z, other) for (_, z), (_, other) in pairs)


class _Readers:
    """During a forward: whose output is whose input."""

    def __init__(self) -> None:
        self.visits: dict[str, tuple] = {}  # norm -> copies of its input and output
        self.readers: dict[str, dict[str, LinearMap]] = {}
        self._memory: dict[int, tuple] = {}  # memory of an output -> (norm, the output)

    def note_norm(self, name: str, x: torch.Tensor, out: torch.Tensor) -> None:
        """A norm has run. Outputs are kept: their memory must not be given to others."""
        if not isinstance(x, torch.Tensor) or not isinstance(out, torch.Tensor):
            return  # it does more than to normalise: it adds a residual as well, say
        self.visits[name] = x.clone(), out.clone()
        self._memory[out.untyped_storage().data_ptr()] = name, out

    def note_map(self, linear_map: LinearMap, z: torch.Tensor) -> None:
        """A map is about to run: on the output of a norm, or on an equal copy (as masks make)."""
        memory = z.untyped_storage().data_ptr()
        named = [self._memory[memory][0]] if memory in self._memory else reversed(self.visits)
        for name in named:
            out = self.visits[name][1]
            is_alike = z.numel() == out.numel() and z.shape[-1] == out.shape[-1]
            if is_alike and torch.equal(z.reshape(out.shape), out):
                self.readers.setdefault(name, {})[linear_map.name] = linear_map
                return


def check_plain(model: nn.Module) -> None:
    """Refuse models whose weights are not simply there (ValueError, says what would do)."""
    model = unwrapped(model)
    name = type(model).__name__
    if is_offloaded(model):
        raise ValueError(f"model {name} is offloaded: load it where it fits in memory")
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ValueError(
            f"model {name} has adapters, which read the norms as well: pass the model without "
            "them, or `peft_model.merge_and_unload()`"
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(f"model {name} has no weights, it is on the meta device: load them")
    for linear_map in linear_maps(model):
        if linear_map.is_packed:
            raise ValueError(
                f"module {linear_map.name!r} is quantised: load the model in full precision"
            )
        if linear_map.stored.dtype == torch.float16:
            raise ValueError(
                f"module {linear_map.name!r} is float16, whose smallest numbers lose digits: load "
                "the model in bfloat16 or float32"
            )


def _check_length(batch):
    """Refuse texts of one token: attention over one token reads no keys."""
    ids = batch.get("input_ids")
    if isinstance(ids, torch.Tensor) and ids.shape[-1] < 2:
        raise ValueError(
            f"batch has input_ids of shape {tuple(ids.shape)}: what reads a norm does not show on "
            "single tokens, pass texts of two or more"
        )


def _random_tokens(trunk):
    """A batch of random tokens."""
    try:
        size = trunk.get_input_embeddings().num_embeddings
    except (AttributeError, NotImplementedError):
        size = getattr(_text_config(trunk), "vocab_size", None)
    if not size:
        raise ValueError(
            f"{type(trunk).__name__} reads no tokens: pass batch, a dict of tensors to run it on; "
            "for scores, to fold_norms, and score the copy"
        )
    ids = torch.randint(size, PROBE, generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _text_config(trunk):
    """What a model's configuration says of its language model; None where it has none."""
    config = getattr(trunk, "config", None)
    if config is not None and hasattr(config, "get_text_config"):
        return config.get_text_config()
    return config


def _note_input(read, linear_map, z):
    if z.numel():  # else it has run on nothing, as an expert without tokens
        read.append((linear_map, z.clone()))


def _block(linear_map):
    """The layer that a map is in, by its name: `model.layers.3`; None outside of all."""
    if linear_map.layer is None:
        return None
    before, number, _ = f".{linear_map.name}.".partition(f".{linear_map.layer}.")
    return (before + number).strip(".")


def _by_type_and_block(maps):
    """{type: {block: map}} of the types that have one map in each block of layers."""
    groups: dict[str, dict[str, LinearMap]] = {}
    several = set()
    for linear_map in maps:
        if linear_map.layer is None or linear_map.status != SCORED:
            continue
        block = _block(linear_map)
        group = groups.setdefault(linear_map.type, {})
        if block in group:
            several.add(linear_map.type)
        group[block] = linear_map
    return {name: group for name, group in groups.items() if name not in several}


def _head_size(trunk):
    """The width of a head's values, as the configuration tells it; None where it does not."""
    config = _text_config(trunk)
    for name in HEAD_SIZES:
        size = _setting(config, name)
        if isinstance(size, int) and size > 0:
            return size
    width, heads = (_setting(config, name) for name in ("hidden_size", "num_attention_heads"))
    return width // heads if width and heads else None


def _setting(config, name):
    """A configuration's value; None where it has none, or another one in each layer."""
    try:
        return getattr(config, name, None)
    except Exception:  # transformers' own class of error, for what differs from layer to layer
        return None
