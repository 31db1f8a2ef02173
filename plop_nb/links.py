"""Where a function leaves its weights free: between a norm and the maps that read it, and between
the rows of one map and the columns of the next."""

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from plop_nb.maps import LinearMap

# Outputs are stretched by 2**-REACH to 2**REACH: far enough that what clips them would show, and
# what hardly counts.
REACH = 8


@dataclass(frozen=True)
class NormLink:
    """A normalization with a gain, and the maps that read it."""

    name: str
    module: nn.Module
    neutral: float  # the stored weight that is a gain of one: 1, or 0 where the gain is 1 + weight
    readers: tuple[LinearMap, ...]
    is_free: bool = True  # nothing else reads it

    @property
    def gain(self) -> torch.Tensor:
        """g of `g * n + shift`, shape (size,), with `n` the normalised input; float32 or finer."""
        return _finer(self.module.weight) + (1 - self.neutral)

    @property
    def shift(self) -> torch.Tensor | None:
        """What is added behind the gain, shape (size,); None where nothing is."""
        bias = getattr(self.module, "bias", None)
        return None if bias is None else _finer(bias)

    def plain(self, x: torch.Tensor) -> torch.Tensor:
        """The normalised input: what the norm makes of `x` with gain 1 and shift 0."""
        weight = torch.full_like(self.module.weight, self.neutral)
        return with_parameters(self.module, x, weight)


@dataclass(frozen=True)
class PairLink:
    """A map whose output, entry by entry, times something, is the input of another one."""

    writer: LinearMap
    reader: LinearMap
    rows: torch.Tensor  # (in_features of the reader,): which row of the writer meets each column
    head: int | None  # width of the blocks in which outputs may be mixed as well; None: no mixing


def candidate_pairs(
    pairs: Sequence[tuple[LinearMap, LinearMap]], head: int | None
) -> list[PairLink]:
    """Writers and readers as links; none if the shapes of any do not allow it.

    Parameters
    ----------
    pairs : sequence of (LinearMap, LinearMap)
        Writer and reader.
    head : int or None
        Width of a head's values. Heads of a reader may share one of its writer.
    """
    links = []
    for writer, reader in pairs:
        outputs, columns = len(writer.weight), torch.arange(reader.weight.shape[1])
        sharing, left = divmod(len(columns), outputs)
        width = head if head is not None and outputs % head == 0 else None
        rows = columns
        if left or not sharing or (sharing > 1 and width is None):
            return []
        if width is not None:  # `sharing` heads of the reader share one of the writer
            rows = columns // width // sharing * width + columns % width
        links.append(PairLink(writer, reader, rows, width))
    return links


@dataclass(frozen=True)
class Change:
    """Something done to the outputs of links, and undone at those who read them, for a probe.

    Outputs are multiplied by powers of two, which rounds nothing.
    """

    writer: nn.Module
    readers: tuple[nn.Module, ...]
    stretch: torch.Tensor  # (outputs,): powers of two, and their negatives
    order: torch.Tensor  # (outputs,): which one stands where
    unstretch: torch.Tensor  # (inputs of the readers,)
    unorder: torch.Tensor

    @classmethod
    def of_link(
        cls, link: NormLink | PairLink, generator: torch.Generator, *, mixed: bool
    ) -> "Change":
        """A random change of a link's outputs; `mixed`: their order and signs in heads as well."""
        head: int | None
        if isinstance(link, NormLink):
            writer, readers = link.module, [reader.module for reader in link.readers]
            rows, head = torch.arange(len(link.gain)), None
        else:
            writer, readers = link.writer.module, [link.reader.module]
            rows, head = link.rows, link.head
        size = int(rows.max()) + 1
        stretch = 2.0 ** torch.randint(-REACH, REACH + 1, (size,), generator=generator)
        order = torch.arange(size)
        if mixed and head is not None:
            inside = torch.rand(size // head, head, generator=generator).argsort(dim=1)
            order = (inside + head * torch.arange(size // head)[:, None]).flatten()
            # Signs as well: they do not pass a ReLU, and only what is linear can be mixed.
            stretch *= 1 - 2 * torch.randint(2, (size,), generator=generator)
        # A column goes as far as the row that it meets, within its own head.
        unorder = torch.arange(len(rows)) + order.argsort()[rows] - rows
        return cls(writer, tuple(readers), stretch, order, 1 / stretch[rows], unorder)

    def make(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """The output with all entries stretched, in another order."""
        return (out * self.stretch.to(out))[..., self.order.to(out.device)]

    def undo(self, z: torch.Tensor) -> torch.Tensor:
        """The input as it was."""
        return z[..., self.unorder.to(z.device)] * self.unstretch.to(z)


def disjoint(links: Sequence[PairLink]) -> list[PairLink]:
    """Those pairs that share no map with an earlier one: each of these has a form of its own."""
    found: list[PairLink] = []
    taken: set[str] = set()
    for link in links:
        names = {link.writer.name, link.reader.name}
        if not names & taken:
            found.append(link)
            taken |= names
    return found


@torch.no_grad()
def with_parameters(norm: nn.Module, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What a norm makes of `x` (..., size) with another weight (size,), and no shift.

    Its hooks do not run, and nothing is written to it: other threads may be running it.
    """
    twin = copy.copy(norm)
    twin._parameters = {**norm._parameters, "weight": weight}
    if getattr(norm, "bias", None) is not None:
        twin._parameters["bias"] = torch.zeros_like(weight)
    return _forward(norm)(twin, x)


def may_be_norm(module: nn.Module) -> bool:
    """Whether a module holds a gain, and at most a shift, and nothing else."""
    parameters = dict(module.named_parameters())
    if not parameters.keys() <= {"weight", "bias"} or next(module.children(), None) is not None:
        return False
    return "weight" in parameters and all(p.ndim == 1 for p in parameters.values())


@torch.no_grad()
def neutral_weight(norm: nn.Module, x: torch.Tensor, out: torch.Tensor) -> float | None:
    """The stored weight that is a gain of one, 1 or 0, given what the norm has made of `x`.

    `x` and `out` are both (..., size). None: the weight is no gain for each of `size` channels, or
    the norm reads more than `x`, such as a gate.
    """
    if norm.weight.shape != out.shape[-1:]:
        return None
    try:
        if not torch.equal(_forward(norm)(norm, x), out):
            return None
    except TypeError:  # it cannot do without what else it reads
        return None
    generator = torch.Generator().manual_seed(0)
    weight = 0.5 + torch.rand(norm.weight.shape, generator=generator).to(x.device)
    # Noise: of an input that is zero nothing can be told.
    x = torch.randn(x[:1].shape, generator=generator).to(x.device)
    found = with_parameters(norm, x, weight)
    for neutral in (1.0, 0.0):
        plain = with_parameters(norm, x, torch.full_like(weight, neutral))
        if torch.allclose(found, plain * (weight + 1 - neutral), rtol=1e-3, atol=1e-4):
            return neutral
    return None


@contextmanager
def after(module: nn.Module, change: Callable) -> Iterator[None]:
    """While inside, call `change(x, out)` after every forward of a module.

    What it returns takes the place of `out`; None leaves it. `x` is the module's first argument.
    Only in this thread: others may be using the model.
    """
    thread = threading.get_ident()

    def hook(_, args, kwargs, out):
        if threading.get_ident() == thread:
            return change(_first(args, kwargs), out)
        return None

    handle = module.register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def before(module: nn.Module, change: Callable) -> Iterator[None]:
    """While inside, call `change(x)` before every forward of a module.

    What it returns takes the place of `x`, the module's first argument; None leaves it. Only in
    this thread.
    """
    thread = threading.get_ident()

    def hook(_, args, kwargs):
        if threading.get_ident() != thread:
            return None
        changed = change(_first(args, kwargs))
        if changed is None:
            return None
        if args:
            return (changed, *args[1:]), kwargs
        return args, {**kwargs, next(iter(kwargs)): changed}

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _forward(module):
    """What a module runs, also where it was replaced in this one; without accelerate's hooks."""
    return getattr(module.forward, "__func__", type(module).forward)


def _first(args, kwargs):
    """A module's input, given by position or by name; None for a module that takes none."""
    return args[0] if args else next(iter(kwargs.values()), None)


def _finer(parameter):
    """A parameter in float32, or in the float64 that it has."""
    return parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32))
