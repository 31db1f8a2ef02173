"""The processes that score together: which one this is, and what all of them have found."""

import os
import pickle
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object


@dataclass(frozen=True)
class Process:
    """This process, of those that share the samples."""

    rank: int = 0
    number: int = 1  # of processes

    @property
    def is_first(self) -> bool:
        """Whether it does what only one of them should do."""
        return self.rank == 0


def this_process(distribute: bool = True) -> Process:
    """This process among those that `accelerate launch` or `torchrun` has started."""
    if not distribute or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return Process()
    state = PartialState(cpu=not torch.cuda.is_available())
    return Process(state.process_index, state.num_processes)


def gathered(result: Any, process: Process) -> list:
    """The results of all processes, by rank; each has to call it, with its error if need be.

    Raises
    ------
    Exception
        The one that this process has called it with, else the first of the others (or its text):
        none of them waits for ever.
    """
    results = [result] if process.number == 1 else gather_object([_as_sent(result, process)])
    results[process.rank if process.number > 1 else 0] = result
    if isinstance(result, Exception):
        raise result
    for each in results:
        if isinstance(each, Exception):
            raise each
    return results


def told(message: Any = None) -> Any:
    """What the first process says, in every process; the others' messages are not heard."""
    return broadcast_object_list([message])[0]


def _as_sent(result, process):
    """An error that cannot be sent to other processes as its text."""
    if not isinstance(result, Exception):
        return result
    try:
        pickle.loads(pickle.dumps(result))
    except Exception:
        return RuntimeError(f"process {process.rank}: {type(result).__name__}: {result}")
    return result
