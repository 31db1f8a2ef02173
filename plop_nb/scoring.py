"""Normalized Feature Norms of a model on texts: one forward pass of the trunk.

`nfn_scores` is the score of the paper. `observe` is the engine under it and under every other
score: it runs the forwards (in batches that fit, on several processes, resumed after an interrupt)
and gathers what the hooks have recorded, and what an observer has added to it.
"""

import os
import threading
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm.auto import tqdm

from plop_nb import batches, inputs
from plop_nb.checkpoint import Finished, added, key
from plop_nb.finished_files import Held, opened, own_path
from plop_nb.forms import observing
from plop_nb.forwards import evaluating, forward_all
from plop_nb.maps import SCORED, linear_maps
from plop_nb.origin import identity, origin
from plop_nb.processes import gathered, this_process
from plop_nb.recording import Observer, Record, record_norms, summary
from plop_nb.sources import Source, source_of
from plop_nb.stats import StoppingRule, lowest, swaps
from plop_nb.wrappers import trunk_of


def nfn_scores(
    model: nn.Module,
    data: Iterable,
    tokenizer: Any = None,
    *,
    batch_size: int | str = 8,
    max_length: int = 256,
    baseline: str = "rms",
    seed: int = 0,
    form: str = "stored",
    progress: bool = True,
    stop: float | None = None,
    k: int = 3,
    partial: str | Path | None = None,
    distribute: bool = True,
) -> pd.DataFrame:
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
        Texts (with `tokenizer`), also as an array or the column of a table; or batches of tensors
        as a data collator yields them; padding is moved to the right, unless a batch has
        `position_ids`. The decoder of an encoder-decoder model reads `decoder_input_ids`, else
        `labels`, else the text itself. A tensor `score_mask` (batch, length) in a batch says which
        tokens count; the model reads them all.
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
    form : {"stored", "folded", "canonical"}
        How the function is written down, on which NFN depends. "stored": the weights as they are,
        as in the paper. "folded": gains of norms in the maps that read them (`moves.fold_norms`).
        "canonical": the smallest weights that compute the same (`moves.canonical`). Nothing is
        copied; which models these two take, `probing.norm_links` says.
    progress : bool
        Show a progress bar.
    stop : float, optional
        Score only as many texts, drawn at random, as it takes to decide which `k` types are lowest
        with this confidence (such as 0.99), 8 at least; see `stats.StoppingRule`. A collator's
        batches are taken in their order. Prints how many it took, warns where all did not do.
    k : int
        How many types `stop` has in mind.
    partial : str or Path, optional
        A file that keeps finished samples. The same call after an interrupt goes on from there,
        also with more or fewer texts at its end, or on another number of processes (whose files
        are PATH.process0, ...). Any other call with this file is refused: other weights, adapters
        or settings, other texts, a second run at the same time (which PATH.lock tells).
    distribute : bool
        Under `accelerate launch`, share the samples over the processes and give all of them the
        whole frame: call it in every process. False: this process scores everything itself.

    Returns
    -------
    pandas.DataFrame
        One row per sample and module: `sample` (position in `data`), `module`, `type`, `layer`,
        `tokens`, `nfn` (dimensionless), and the module's shape: `in_features`, `out_features`,
        `experts` (in its stack; 1 for a map that stands alone). Its `attrs` say what it is of: see
        `origin.origin`.

    Raises
    ------
    TypeError, ValueError
        Bad input (names the argument), or a module with non-finite weights or activations (names
        the module).
    torch.OutOfMemoryError
        One batch does not fit, with "auto" one text.
    OSError
        `partial` cannot be written to; what was finished before stays in it.

    Warns
    -----
    UserWarning
        Some linear maps got no score: names them, with the reason. Some are scored as stored,
        whatever the `form`. Some lines of `partial` are damaged: counts them, and runs these again.
    """
    rule = None if stop is None else StoppingRule(stop, k)
    with observing(model, form, baseline=baseline, seed=seed) as observer:
        seen = observe(
            model,
            data,
            tokenizer,
            observer,
            batch_size=batch_size,
            max_length=max_length,
            baseline=baseline,
            seed=seed,
            progress=progress,
            rule=rule,
            partial=partial,
            measure=None if observer is None else form,
            distribute=distribute,
        )
    if seen.unseen:
        warnings.warn(f"linear maps without a score: {summary(seen.unseen)}", stacklevel=2)
    if rule is not None:
        _report(seen, stop, k, progress)
    scores = with_shapes(seen.frame, model)
    settings = {"max_length": max_length, "baseline": baseline, "seed": seed, "form": form}
    settings |= {} if stop is None else {"stop": stop, "k": k}
    scores.attrs = origin(model, seen.texts, settings)
    return scores


@dataclass
class Observed:
    """What `observe` returns, of one process or of all together."""

    frame: pd.DataFrame  # one row per sample and module: sample, module, type, layer, tokens, means
    totals: dict[str, torch.Tensor]  # {module: what the observer had added up}, on the CPU
    unseen: dict[str, str]  # {module: why it has no score}
    unclear: set[str]  # modules whose padding could not be told, in some batch
    stacks: list[str]  # names of experts that were scored one by one
    decided: bool = False  # whether the stopping rule was met
    samples: set[int] = field(default_factory=set)  # of the data that was taken
    covered: set[int] = field(default_factory=set)  # samples in the totals of `partial`
    texts: str | None = None  # a hash of them; None for batches


def observe(
    model: nn.Module,
    data: Iterable,
    tokenizer: Any = None,
    observer: Observer | None = None,
    *,
    columns: Sequence[str] = ("nfn",),
    batch_size: int | str = 8,
    max_length: int = 256,
    baseline: str = "rms",
    seed: int = 0,
    progress: bool = True,
    rule: StoppingRule | None = None,
    partial: str | Path | None = None,
    measure: str | None = None,
    adds_up: bool = False,
    distribute: bool = True,
) -> Observed:
    """Run the trunk on all data, and gather what its maps show.

    Parameters
    ----------
    model, data, tokenizer, batch_size, max_length, baseline, seed, progress, partial, distribute
        As in `nfn_scores`.
    observer : callable, optional
        See `recording.record_norms`.
    columns : sequence of str
        Which means to keep: of `input_norm`, `feature_norm`, `nfn`, `nfn_square`.
    rule : StoppingRule, optional
        Look at the scores from time to time, and stop once it is met.
    measure : str, optional
        What the observer measures: a `partial` file of another measure is refused.
    adds_up : bool
        Whether the observer returns totals, which a `partial` file then keeps, too.

    Raises
    ------
    TypeError, ValueError, torch.OutOfMemoryError
        As in `nfn_scores`.
    """
    process = this_process(distribute)
    if rule is not None and process.number > 1:
        raise ValueError(f"stop={rule.confidence!r} works in one process: pass distribute=False")
    size = batches.BatchSize(batch_size, inputs.device_of(trunk_of(model)))
    source = source_of(model, data, tokenizer, max_length, size)
    settings = {"baseline": baseline, "seed": seed, "max_length": max_length}
    settings |= {} if measure is None else {"measure": measure}
    result: Observed | Exception
    recording = record_norms(model, baseline=baseline, seed=seed, frozen=True, observer=observer)
    with opened(partial, process) as held:
        try:
            with evaluating(model), torch.no_grad(), recording as record:
                record.thread = threading.get_ident()  # others may be using the model
                run = _Run(record, source, columns)
                if partial is not None:
                    settings |= identity(model)
                    own, is_first = own_path(partial, process), process.is_first
                    run.resume(own, held, settings, has_totals=adds_up, is_first=is_first)
                is_finished = None if partial is None else run.is_finished
                shuffle = None if rule is None else seed
                source.select(process.rank, process.number, shuffle, is_finished)
                is_shown = progress and process.is_first
                hidden = not is_shown or bool(os.environ.get("TQDM_DISABLE"))
                with tqdm(desc="NFN", unit="text", total=source.total, disable=hidden) as bar:
                    result = run.through(trunk_of(model), size, rule, bar)
        except Exception as error:
            if process.number == 1:
                raise
            result = error  # to all processes
        return _merged(gathered(result, process), partial)


def with_shapes(scores: pd.DataFrame, model: nn.Module) -> pd.DataFrame:
    """The scores with `in_features`, `out_features` and `experts` (in its stack) of every map."""
    maps = [m for m in linear_maps(model) if m.status == SCORED]
    stacked = Counter(m.target for m in maps)
    rows = {m.name: (m.shape[1], m.shape[0], stacked[m.target]) for m in maps}
    columns = ["in_features", "out_features", "experts"]
    shapes = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    return scores.join(shapes, on="module")


class _Run:
    """The forwards of one process: what they have recorded, and what was finished before."""

    def __init__(self, record: Record, source: Source, columns: Sequence[str]) -> None:
        self._record, self._source, self._columns = record, source, list(columns)
        self._finished: Finished | None = None
        self._samples: list[int] = []  # position in the data of every sample recorded

    def resume(
        self, own: Path, held: list[Held], settings: dict, *, has_totals: bool, is_first: bool
    ) -> None:
        """Go on from files of finished samples, and keep those to come in one's own."""
        self._finished = Finished(
            own,
            held,
            self._record.maps(),
            settings,
            self._record.gains(),
            columns=self._columns,
            has_totals=has_totals,
            is_first=is_first,
        )

    def is_finished(self, position: int, row: dict) -> bool:
        """Whether the sample at this position is in the file."""
        return self._finished is not None and self._finished.has(position, row)

    def through(self, trunk, size, rule, bar) -> Observed:
        """Forward the batches of all parts, up to a look that decides."""
        for part in self._source.parts(rule):
            for window in forward_all(trunk, part, size, self._record):
                self._note(window)
                bar.update(sum(len(positions) for positions, _ in window))
                del window  # its tensors need not outlive the next forward
            if rule is not None and rule.decided(self._frame()):
                return self._observed(decided=True)
        return self._observed(decided=False)

    def _note(self, window):
        """Take down which samples a window has held, in the file as well."""
        before = len(self._samples)
        for positions, _ in window:
            self._samples += positions
        if self._finished is None:
            return
        keys = {}
        for positions, batch in window:
            for row, position in enumerate(positions):
                keys[position] = key(batches.row_of(batch, row))
        record = self._record
        frame = self._positioned(record.frame(first=before))
        self._finished.add(frame, keys, record.unclear(), record.totals())

    def _observed(self, decided):
        record, finished = self._record, self._finished
        seen = Observed(
            frame=self._frame(),
            totals=record.totals(),
            unseen=record.unseen(),
            unclear=record.unclear(),
            stacks=record.stacks(),
            decided=decided,
            samples=self._source.taken,
            texts=self._source.texts,
        )
        if finished is not None:
            earlier = finished.unclear(seen.samples)
            seen.unseen |= dict.fromkeys(earlier, "padding unknown in a finished sample")
            seen.unclear |= earlier
            seen.totals, seen.covered = added(finished.totals, seen.totals), finished.covered
        seen.totals = {name: total.cpu() for name, total in seen.totals.items()}
        return seen

    def _frame(self):
        """Scores of the samples of this run, and of those finished before."""
        frames = []
        if self._finished is not None:
            frames.append(self._finished.frame(self._source.taken))
        if self._samples:
            self._check_tokens()
            frame = self._positioned(self._record.frame())
            first = ["sample", "module", "type", "layer", "tokens"]
            frames.append(frame[[*first, *self._columns]])
        frames = [frame for frame in frames if len(frame)]
        if len(frames) == 1:
            return frames[0]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def _positioned(self, frame):
        """The record's samples renumbered by their position in the data."""
        return frame.assign(sample=np.array(self._samples)[frame["sample"]])

    def _check_tokens(self):
        empty = np.flatnonzero(self._record.real_tokens() == 0)
        if len(empty):
            raise ValueError(
                f"sample {self._samples[empty[0]]} has no real tokens: its attention_mask is zero "
                "throughout (or, with score_mask, together)"
            )


def _report(seen, stop, k, progress):
    """Tell how many texts it took, or warn that they were too few."""
    texts = seen.frame["sample"].nunique()
    if seen.decided:
        if progress:
            sure = f"with confidence {stop:.0%} after {texts} texts"
            print(f"the {k} lowest types are decided {sure}")
        return
    why = ""
    for pair in swaps(seen.frame, lowest(seen.frame, k)).head(1).itertuples():
        why = f"{pair.chosen} and {pair.other} are {pair.gap:.3f} apart. "
    warnings.warn(
        f"undecided at confidence {stop:.0%} after all {texts} texts: {why}Score more texts, or "
        "choose another k",
        stacklevel=3,
    )


def _merged(results, partial):
    """What all processes have seen together."""
    whole = results[0]
    for other in results[1:]:
        whole.totals = added(whole.totals, other.totals)
        whole.unclear |= other.unclear
        whole.unseen |= other.unseen
        whole.samples |= other.samples
    if beyond := len(whole.covered - whole.samples):
        raise ValueError(
            f"partial={str(partial)!r} adds up {beyond} samples that data has not: pass the same "
            "data, or name another file"
        )
    frames = [result.frame for result in results if len(result.frame)]
    frame = pd.concat(frames, ignore_index=True) if len(frames) > 1 else frames[0]
    frame = frame[~frame["module"].isin(whole.unclear)]
    seen = set(frame["module"])
    whole.unseen = {name: why for name, why in whole.unseen.items() if name not in seen}
    known = {name: t for name, t in whole.totals.items() if name not in whole.unclear}
    whole.totals = {name: total.float() for name, total in known.items()}
    whole.frame = frame.sort_values("sample", kind="stable", ignore_index=True)
    return whole
