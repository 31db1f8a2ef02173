"""Feature norms while a trainer runs."""

import copy
from collections.abc import Iterable
from typing import Any

import pandas as pd
import torch
from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from torch import nn
from transformers import TrainerCallback

from plop_nb.batches import encode
from plop_nb.checks import positive_integer
from plop_nb.experiments.isolation import seeded
from plop_nb.recording import record_norms
from plop_nb.scoring import nfn_scores
from plop_nb.stats import type_means

MEASURES = ("input_norm", "feature_norm", "nfn")


class NormsCallback(TrainerCallback):
    """Records feature norms and NFN of the effective maps `W + BA` while a trainer runs.

    Merges the adapters into a float32 copy of the model, so the training does not notice. A
    callback records one training (one that ended at its start, by an error, is forgotten); it also
    takes a model without adapters, or in DDP.

    Parameters
    ----------
    texts : iterable of str
        Fixed probe texts.
    tokenizer : transformers tokenizer
    every : int
        Steps between two records; the start and the end are recorded too.

    Raises
    ------
    TypeError, ValueError
        `texts` are none, or blank; or `every` is not a positive integer.
    RuntimeError
        When a second training begins with it.
    """

    def __init__(self, texts: Iterable[str], tokenizer: Any, every: int = 10) -> None:
        if isinstance(texts, str):
            raise TypeError(f"texts={texts!r:.40} is one text, expected a list: put it in one")
        self._texts = list(texts)  # read again at every record
        if not self._texts:
            raise ValueError("texts is empty: give at least one to measure on")
        encode(self._texts, tokenizer, max_length=256)  # refuses blank ones
        self._tokenizer = tokenizer
        self._every = positive_integer("every", every)
        self._rows: list[pd.DataFrame] = []

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **_: Any
    ) -> None:
        """Record the start."""
        if any(rows["step"].iloc[0] > 0 for rows in self._rows):
            raise RuntimeError(
                "this NormsCallback holds the record of another training: make a new one for each"
            )
        self._rows = []
        self._record(state.global_step, model)

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **_: Any
    ) -> None:
        """Record every few steps, and the last one."""
        is_last = control.should_training_stop or state.global_step >= state.max_steps
        if is_last or state.global_step % self._every == 0:
            self._record(state.global_step, model)

    def on_train_end(
        self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **_: Any
    ) -> None:
        """Record an end that came early, unless the best model has taken the place of the last."""
        is_best = getattr(args, "load_best_model_at_end", False)
        if not is_best and self._rows[-1]["step"].iloc[0] != state.global_step:
            self._record(state.global_step, model)

    def frame(self) -> pd.DataFrame:
        """The record so far.

        Returns
        -------
        pandas.DataFrame
            Columns `step`, `type`, `input_norm` (||z||), `feature_norm` (||(W + BA) z||), `nfn`;
            means as in `by_type`.

        Raises
        ------
        ValueError
            No training has begun.
        """
        if not self._rows:
            raise ValueError("nothing is recorded yet: pass this callback to finetune first")
        return pd.concat(self._rows, ignore_index=True)

    def _record(self, step: int, model: nn.Module) -> None:
        with seeded(), torch.no_grad():
            merged = copy.deepcopy(extract_model_from_parallel(model)).float()
            if isinstance(merged, PeftModel):
                merged = merged.merge_and_unload()
            # a trainer's patch, which runs the model that it was made for
            vars(merged).pop("forward", None)
            with record_norms(merged, frozen=True) as record:
                nfn_scores(merged, self._texts, self._tokenizer, progress=False, distribute=False)
        values = record.frame()
        means = {name: type_means(values.assign(nfn=values[name])) for name in MEASURES}
        rows = pd.DataFrame(means).reset_index().assign(step=step)
        self._rows.append(rows[["step", "type", *MEASURES]])
