"""Normalized Feature Norms of a model on texts: one forward pass of the trunk."""

import itertools
import os
import warnings
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from tqdm.auto import tqdm

from plop_nb import batches
from plop_nb.hooks import record_norms, summary
from plop_nb.modules import SCORED, linear_maps, trunk_of
from plop_nb.offload import interleaved, is_offloaded
from plop_nb.partial import Partial, key
from plop_nb.stats import StoppingRule, lowest, swaps

WINDOW = 2**16  # tokens that visit an offloaded block before it goes away: 512 MB of hidden states at width 4096, bf16


def nfn_scores(
    model,
    data,
    tokenizer=None,
    *,
    batch_size=8,
    max_length=256,
    baseline="rms",
    seed=0,
    progress=True,
    stop=None,
    k=3,
    partial=None,
    distribute=True,
):
    """Score every linear map of a model on texts (PLoP, section 3).

    `NFN(W, z) = ||W z|| / ||W z~||` with `z~` noise of the norm of `z`, averaged over the real
    tokens of each text. Above 1: the input lies along large singular directions of W; below 1:
    along small ones. Runs the trunk once, in the model's dtype, with statistics in float32;
    the model comes back as it was, also after an error or an interrupt.

    A model that accelerate has offloaded (`device_map`, `disk_offload`) is run block by block, each
    block fetched once for up to 65,536 tokens.

    Parameters
    ----------
    model : torch.nn.Module
        A transformers model on its device, or on several.
    data : iterable of str, or iterable of dict
        Texts (with `tokenizer`), or batches of tensors as a data collator yields them; padding is
        moved to the right, unless a batch has `position_ids`. The decoder of an encoder-decoder
        model reads `decoder_input_ids`, else `labels`, else the text itself. A tensor `score_mask`
        (batch, length) in a batch says which tokens count; the model reads them all.
    tokenizer : transformers tokenizer
        Needs no pad token.
    batch_size : int or "auto"
        Texts per forward; texts of like length go together. "auto" grows to what fits, and halves a
        batch that ran out of memory (a collator's too). No influence on the scores.
    max_length : int
        Tokens of each text that are used.
    baseline : {"rms", "gaussian"}
        What random noise gives: closed form, or the mean over draws as in the paper.
    seed : int
        Seeds the draws of the Gaussian baseline.
    progress : bool
        Show a progress bar.
    stop : float, optional
        Score only as many texts, drawn at random, as it takes to decide which `k` types are lowest
        with this confidence (such as 0.99), 8 at least; see `stats.StoppingRule`. A collator's
        batches are taken in their order. Prints how many it took, warns where all did not do.
    k : int
        How many types `stop` has in mind.
    partial : str or Path, optional
        A file that keeps finished samples. The same call after an interrupt goes on from there;
        any other call with this file is refused.
    distribute : bool
        Under `accelerate launch`, share the samples over the processes and give all of them the
        whole frame: call it in every process. False: this process scores everything itself.

    Returns
    -------
    pandas.DataFrame
        One row per sample and module: `sample` (position in `data`), `module`, `type`, `layer`,
        `tokens`, `nfn` (dimensionless), and the module's shape: `in_features`, `out_features`,
        `experts` (in its stack; 1 for a map that stands alone).

    Raises
    ------
    TypeError, ValueError
        Bad input (names the argument, its value and what would do), or a module with
        non-finite weights or activations (names the module).
    torch.OutOfMemoryError
        One batch does not fit, with "auto" one text.

    Warns
    -----
    UserWarning
        Some linear maps got no score: names them, with the reason.
    """
    first, data = batches.peek(data)
    rows = None if isinstance(first, Mapping) else batches.encode(list(data), tokenizer, max_length)
    size = batches.BatchSize(batch_size, batches.device_of(trunk_of(model)))
    rule = None if stop is None else StoppingRule(stop, k)
    rank, processes = _processes() if distribute else (0, 1)
    if rule and processes > 1:
        raise ValueError(f"stop={stop!r} works in one process: pass distribute=False")
    settings = {"baseline": baseline, "seed": seed, "max_length": max_length}
    try:
        with evaluating(model), torch.no_grad(), record_norms(model, baseline=baseline, seed=seed) as record:
            done = _finished(partial, rank, processes, model, record, settings)
            if rows is None:
                own = _left(itertools.islice(batches.of_collator(data), rank, None, processes), done)
                sources = [own] if rule is None else map(iter, _looks(own, rule, lambda item: len(item[0])))
            else:
                own = _shuffled(rows, seed) if rule else _share(rows, rank, processes)
                own = [i for i in own if done is None or not done.has(i, rows[i])]
                looks = [own] if rule is None else _looks(own, rule, lambda item: 1)
                sources = (batches.of_texts(rows, look, size, model, tokenizer) for look in looks)
            total = None if rows is None else len(own)
            with tqdm(desc="NFN", unit="text", total=total, disable=_hidden(progress, rank)) as bar:
                frame, decided = _run(model, sources, size, record, done, rule, bar)
            result = frame, record.unseen(), record.unclear()
    except Exception as error:
        if processes == 1:
            raise
        result = error  # to all processes: none of them waits for ever
    frame, unseen = _merged(gather_object([result]) if processes > 1 else [result])
    if unseen:
        warnings.warn(f"linear maps without a score: {summary(unseen)}", stacklevel=2)
    if rule:
        _report(frame, decided, stop, k, progress)
    return frame.join(_shapes(model), on="module")


def _shapes(model):
    """`in_features`, `out_features` and `experts` of every scored map."""
    maps = [m for m in linear_maps(model) if m.status == SCORED]
    stacked = Counter(m.target for m in maps)
    rows = {m.name: (m.shape[1], m.shape[0], stacked[m.target]) for m in maps}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["in_features", "out_features", "experts"])


def _share(rows, rank, processes):
    """Positions of the texts of one process: like lengths dealt out in turn."""
    return sorted(range(len(rows)), key=lambda i: -len(rows[i]["input_ids"]))[rank::processes]


def _shuffled(rows, seed):
    return np.random.default_rng(seed).permutation(len(rows)).tolist()


def _looks(items, rule, samples):
    """The items in parts that end at the rule's looks; `samples` counts those of an item."""
    part, taken = [], 0
    for item in items:
        part.append(item)
        taken += samples(item)
        if taken >= rule.next:
            yield part
            part = []
    if part:
        yield part


def _report(frame, decided, stop, k, progress):
    """Tell how many texts it took, or warn that they were too few."""
    texts, pairs = frame["sample"].nunique(), swaps(frame, lowest(frame, k))
    if decided and progress:
        print(f"the {k} lowest types are decided with confidence {stop:.0%} after {texts} texts")
    if not decided:
        why = [f"{pair.chosen} and {pair.other} are {pair.gap:.3f} apart. " for pair in pairs.head(1).itertuples()]
        warnings.warn(
            f"undecided at confidence {stop:.0%} after all {texts} texts: {''.join(why)}Score more texts, or choose "
            "another k",
            stacklevel=3,
        )


def _run(model, sources, size, record, done, rule, bar):
    """Forward the batches of all sources, up to a look that decides; (frame, decided)."""
    samples = []  # position in the data of every sample recorded
    for source in sources:
        _forward_all(trunk_of(model), source, size, record, done, samples, bar)
        if rule and rule.decided(_frame(record, samples, done)):
            return _frame(record, samples, done), True
    frame = _frame(record, samples, done)  # of a finished file there is nothing to run, and still to decide
    return frame, bool(rule and rule.decided(frame))


def _forward_all(trunk, source, size, record, done, samples, bar):
    """Forward the batches of a source, adding to `samples` the position in the data of each."""
    window_tokens = WINDOW if is_offloaded(trunk) else 1
    queue = deque()
    while window := _window(queue, source, window_tokens):
        if error := _out_of_memory(trunk, [batch for _, batch in window], record):
            record.forget(len(samples))
            queue.extendleft(reversed(_halved(window, size, error)))
            continue
        before = len(samples)
        samples += [i for positions, _ in window for i in positions]
        if done is not None:
            done.add(positioned(record.frame(first=before), samples), _keys(window), record.unclear())
        size.fitted(window[-1][1])
        bar.update(len(samples) - before)


def _frame(record, samples, done):
    """Scores of the samples of this run, and of those finished before."""
    frames = [] if done is None else [done.frame()]
    if samples:
        frames.append(positioned(record.frame(), samples).drop(columns=["input_norm", "feature_norm", "nfn_square"]))
        if len(empty := np.flatnonzero(record.real_tokens() == 0)):
            raise ValueError(
                f"sample {samples[empty[0]]} has no real tokens: its attention_mask is zero throughout "
                "(or, with score_mask, together)"
            )
    frames = [frame for frame in frames if len(frame)] or [pd.DataFrame()]
    return pd.concat(frames, ignore_index=True) if len(frames) > 1 else frames[0]


def _window(queue, source, tokens):
    """The next batches, as many as hold this many tokens: one for a model in memory."""
    window = []
    while tokens > 0 and (item := queue.popleft() if queue else next(source, None)):
        window.append(item)
        tokens -= batches.tokens(item[1])
    return window


def _out_of_memory(trunk, group, record):
    """Run the forwards; returns the error when memory did not suffice."""
    try:
        interleaved(trunk, [lambda batch=batch: forward(trunk, batch, record) for batch in group])
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not should_reduce_batch_size(error):
            raise
        return error.with_traceback(None)  # the frames of the traceback hold activations
    return None


def forward(trunk, batch, record=None):
    """One forward of the trunk on a batch, for what the hooks see of it."""
    batch = batches.padded_right(batch)
    if record is not None:
        record.score_mask = batch.get("score_mask")
    inputs = batches.arguments(trunk, batch)
    try:
        trunk(**inputs)
    except (IndexError, RuntimeError) as error:
        if not should_reduce_batch_size(error):
            batches.check_length(trunk, inputs)
        raise


def _halved(window, size, error):
    """The batches of a window that did not fit, each in two; the error where that is no remedy."""
    clear_device_cache(garbage_collection=True)
    parts = []
    for positions, batch in window:
        halves = size.failed(batch) if size.auto else []
        cut = batches.count(halves[0]) if halves else len(positions)
        parts += zip([positions[:cut], positions[cut:]], halves or [batch], strict=False)
    if len(parts) == len(window):
        remedy = "use a shorter max_length" if size.auto else 'pass batch_size="auto", or a smaller one'
        error.add_note(f"plop_nb: {batches.count(window[0][1])} texts at a time do not fit: {remedy}")
        raise error
    return parts


def positioned(frame, samples):
    """The record's samples renumbered by their position in the data."""
    return frame.assign(sample=np.array(samples)[frame["sample"]])


def _finished(path, rank, processes, model, record, settings):
    """The file of finished samples, each process its own; None where none is wanted."""
    if path is None:
        return None
    name = getattr(getattr(model, "config", None), "_name_or_path", "")
    settings = settings | {"model": f"{type(model).__name__} {name}", "dtype": str(getattr(model, "dtype", None))}
    return Partial(path if processes == 1 else f"{path}.{rank}", record.maps(), settings, record.gains())


def _left(source, done):
    """The batches of a collator with a sample that is not finished."""
    for positions, batch in source:
        if done is None or not all([done.has(i, _row(batch, row)) for row, i in enumerate(positions)]):
            yield positions, batch


def _row(batch, row):
    return {k: v[row] for k, v in batch.items() if isinstance(v, torch.Tensor) and v.ndim and row < len(v)}


def _keys(window):
    return {i: key(_row(batch, row)) for positions, batch in window for row, i in enumerate(positions)}


def _hidden(progress, rank):
    return not progress or rank > 0 or bool(os.environ.get("TQDM_DISABLE"))


def _processes():
    """(rank, number) of the processes that `accelerate launch` or `torchrun` has started."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return 0, 1
    state = PartialState(cpu=not torch.cuda.is_available())
    return state.process_index, state.num_processes


def _merged(results):
    """(frame, unseen) of all processes; raises the error of any."""
    for error in results:
        if isinstance(error, Exception):
            raise error
    frames, unseen, unclear = zip(*results, strict=True)
    frames = [frame for frame in frames if len(frame)]
    frame = pd.concat(frames, ignore_index=True) if len(frames) > 1 else frames[0]
    if dropped := set().union(*unclear):
        frame = frame[~frame["module"].isin(dropped)]
    seen = set(frame["module"])
    unseen = {name: why for part in unseen for name, why in part.items() if name not in seen}
    return frame.sort_values("sample", kind="stable", ignore_index=True), unseen


@contextmanager
def evaluating(model):
    """Evaluation mode, and no compiled code, in which hooks never fire; every module's own mode afterwards."""
    modes = {m: m.training for m in model.modules()}
    try:
        model.eval()
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module, training in modes.items():
            module.training = training
