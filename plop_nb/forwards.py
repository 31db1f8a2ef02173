"""Running batches through a model: as hooks need it, and in halves where memory is short."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import nn

from plop_nb import batches, inputs
from plop_nb.batches import Batch, BatchSize, Numbered
from plop_nb.offload import interleaved, is_offloaded
from plop_nb.recording import Record

# Tokens that visit an offloaded block before it goes away: 512 MB of hidden states in bfloat16 at
# width 4096.
WINDOW = 2**16
_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and no compiled code, in which hooks never fire; put back afterwards.

    One thread at a time: modes are the model's, and what is compiled is the process's. Others wait.
    """
    with _ONE_AT_A_TIME:
        modes = {m: m.training for m in model.modules()}
        try:
            model.eval()
            with torch.compiler.set_stance("force_eager"):
                yield
        finally:
            for module, training in modes.items():
                module.training = training


def forward_all(
    trunk: nn.Module, source: Iterator[Numbered], size: BatchSize, record: Record
) -> Iterator[list[Numbered]]:
    """Forward the batches of a source; yields them once they are recorded.

    Several at a time where blocks of the model are offloaded. A batch that does not fit is halved
    where the batch size is automatic.

    Raises
    ------
    torch.OutOfMemoryError
        A batch does not fit, and cannot or must not be halved; a note says what would do.
    """
    tokens = WINDOW if is_offloaded(trunk) else 1
    waiting: deque[Numbered] = deque()
    while window := _window(trunk, waiting, source, tokens):
        error = _attempt(trunk, [batch for _, batch in window], record)
        if error is not None:
            record.discard()
            waiting.extendleft(reversed(_smaller(window, size, error)))
            continue
        record.keep()
        size.fitted(window[-1][1])
        yield window


def forward(trunk: nn.Module, batch: Batch, record: Record | None = None) -> None:
    """One forward of the trunk on a batch, for what the hooks see of it."""
    batch = inputs.padded_to_multiple(trunk, batch)
    if getattr(getattr(trunk, "config", None), "model_type", None) not in inputs.READS_LEFT:
        batch = inputs.padded_right(batch)
    arguments = inputs.arguments(trunk, batch)
    if record is not None:
        record.score_mask = _score_mask(batch, arguments)
    try:
        trunk(**arguments)
    except (IndexError, RuntimeError) as error:
        if not should_reduce_batch_size(error):
            inputs.check_length(trunk, arguments)
        raise


def _score_mask(batch, arguments):
    """Which tokens count, where the trunk itself is not told: by both masks of the batch."""
    found, mask = batch.get("score_mask"), batch.get("attention_mask")
    reads_text = "input_ids" in arguments or "inputs_embeds" in arguments
    if "attention_mask" in arguments or mask is None or not reads_text:
        return found
    return mask if found is None else found * mask.to(found)


def _window(trunk, waiting, source, tokens):
    """The next batches, as many as hold this many tokens: one for a model in memory."""
    window = []
    while tokens > 0:
        if not waiting:
            item = next(source, None)
            if item is None:
                break
            waiting.extend(batches.unambiguous(trunk, *item))
        window.append(waiting.popleft())
        tokens -= batches.tokens(window[-1][1])
    return window


def _attempt(trunk, window, record):
    """Run the forwards; the error where memory did not suffice, else None."""
    try:
        interleaved(trunk, [partial(forward, trunk, batch, record) for batch in window])
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not should_reduce_batch_size(error):
            raise
        return error.with_traceback(None)  # the frames of the traceback hold activations
    return None


def _smaller(window, size, error):
    """The batches of a window that did not fit, cut in two; the error where none can be."""
    clear_device_cache(garbage_collection=True)
    parts, cut_any = [], False
    for positions, batch in window:
        halves = size.failed(batch) if size.auto else []
        if halves:
            first, second = halves
            cut, cut_any = batches.count(first), True
            parts += [(positions[:cut], first), (positions[cut:], second)]
        else:
            parts.append((positions, batch))
    if cut_any:
        return parts
    remedy = 'pass batch_size="auto", or a smaller one'
    if size.auto:
        remedy = "use a shorter max_length"
    texts = batches.count(window[0][1])
    error.add_note(f"plop_nb: {texts} texts at a time do not fit: {remedy}")
    raise error
