"""Models larger than memory: what accelerate has offloaded, fetched once for many forwards."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import copy_context

from greenlet import getcurrent, greenlet
from torch import nn


def is_offloaded(module: nn.Module) -> bool:
    """Whether accelerate keeps weights of this module, or of one inside it, elsewhere."""
    return any(_offloading(module))


@contextmanager
def loaded(module: nn.Module) -> Iterator[None]:
    """The offloaded weights of `module` and of all inside it, fetched; away again afterwards."""
    fetched = []
    try:
        for owner, hook in _offloading(module):
            hook.pre_forward(owner)
            hook.offload = False  # calls inside find the weights there, and leave them
            fetched.append((owner, hook))
        yield
    finally:
        for owner, hook in fetched:
            hook.offload = True
            hook.post_forward(owner, None)


def interleaved(model: nn.Module, forwards: Iterable[Callable[[], None]]) -> None:
    """Run forwards of one model side by side, so that each offloaded block is fetched once for all.

    Every forward is a coroutine that pauses where a block with offloaded weights begins; the block
    is fetched, all forwards that wait for it go on to their next pause, and it goes away. So
    whatever passes from block to block (masks, caches, skip connections) works as in a plain
    forward.

    Parameters
    ----------
    model : torch.nn.Module
        Dispatched by accelerate (`device_map`, `disk_offload`, `cpu_offload`).
    forwards : iterable of callables
        Each runs one forward of `model`.
    """
    blocks = list(offloaded_blocks(model))
    if not blocks:
        for forward in forwards:
            forward()
        return
    scheduler = getcurrent()

    def pause(block, _):
        scheduler.switch(block)

    handles = [block.register_forward_pre_hook(pause) for block in blocks]
    waiting: dict[greenlet, nn.Module] = {}  # paused forward -> block that it waits for
    try:
        for forward in forwards:
            task = greenlet(forward)
            task.gr_context = copy_context()  # each forward has its own record of what it has seen
            _go_on(task, waiting)
        while waiting:
            block = next(iter(waiting.values()))
            ready = [task for task, other in waiting.items() if other is block]
            with loaded(block):
                for task in ready:
                    _go_on(task, waiting)
    finally:
        for handle in handles:
            handle.remove()
        for task in waiting:
            task.throw()


def offloaded_blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The outermost layers with offloaded weights, and the single maps between them."""
    for child in model.children():
        if not is_offloaded(child):
            continue
        if isinstance(model, nn.ModuleList) or not any(child.children()):
            yield child
        else:
            yield from offloaded_blocks(child)


def _go_on(task, waiting):
    """Run a forward up to its next pause, or its end."""
    waiting.pop(task, None)
    block = task.switch()
    if not task.dead:
        waiting[task] = block


def _offloading(module):
    """(module, accelerate hook) for every module whose own weights are offloaded now."""
    for owner in module.modules():
        hook = getattr(owner, "_hf_hook", None)
        for part in getattr(hook, "hooks", [hook]):
            if getattr(part, "offload", False):
                yield owner, part
