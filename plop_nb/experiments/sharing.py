"""One training by several processes: each step sees the examples that one process would see."""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer

from plop_nb.experiments.evaluation import UNCOUNTED
from plop_nb.fingerprint import fingerprint
from plop_nb.processes import Process, gathered

Batch = dict[str, torch.Tensor]


def check_processes(
    process: Process, model: nn.Module, rows: list[dict], settings: Mapping[str, Any]
) -> None:
    """Refuse what several processes cannot train together.

    Parameters
    ----------
    process : Process
        This one.
    model : torch.nn.Module
    rows : list of dict
        Training examples as in `evaluation.encoded`.
    settings : dict
        Numbers of the training, `batch_size` among them.

    Raises
    ------
    ValueError
        The processes cannot have the same number of examples in a step, or have been given
        different models, examples or numbers.
    """
    if process.number == 1:
        return
    if settings["batch_size"] % process.number:
        raise ValueError(
            f"batch_size={settings['batch_size']} cannot be shared by {process.number} processes: "
            f"take a multiple of {process.number}"
        )
    content = json.dumps([rows, dict(settings)], default=str)
    own = {
        "model": fingerprint(model),
        "task and settings": hashlib.sha256(content.encode()).hexdigest(),
    }
    for other in gathered(own, process):
        for name, value in own.items():
            if other[name] != value:
                raise ValueError(
                    f"{name} of this process (rank {process.rank}) and of others differ: give all "
                    f"of them the same, as one training is shared"
                )


def own_part(collate: Callable[[list], Batch], process: Process) -> Callable[[list], Batch]:
    """A collator that gives this process its part of a batch.

    A process for which the last batch of an epoch has nothing left gets an example that does not
    count: it has to take part in every step.
    """

    def part(examples: list) -> Batch:
        batch = collate(examples)
        own = {name: values[process.rank :: process.number] for name, values in batch.items()}
        if len(own["labels"]):
            return own
        idle = {name: values[:1] for name, values in batch.items()}
        return idle | {"labels": torch.full_like(idle["labels"], UNCOUNTED)}

    return part


def reads_whole_batches(trainer: type[Trainer]) -> type[Trainer]:
    """A trainer whose loader gives every process all examples of each step, for `own_part`.

    Shared by accelerate, the last batch of an epoch would be filled up with other examples.
    """

    class WholeBatches(trainer):  # type: ignore[misc, valid-type]
        def get_train_dataloader(self) -> DataLoader:
            loader = super().get_train_dataloader()
            shard = loader.batch_sampler
            shard.num_processes, shard.process_index, shard.even_batches = 1, 0, False
            return loader

    return WholeBatches
