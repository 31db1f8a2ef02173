"""The runs of a race: trained up to a step, shared through a storage, in step on several devices.

Optuna keeps the trials. Its `SuccessiveHalvingPruner` is not asked who goes on: it decides on the
spot, by the trials before, so that the first arms are always promoted, and the outcome depends on
the order of arms and on how many processes there are. Here a rung is judged when all its arms have
run. An arm that goes on is trained again from its first step, the same up to there: with one arm in
four going on, to a rung of four times the steps, that is a small share of the cost.
"""

import os
import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torch import nn
from tqdm.auto import tqdm
from transformers import TrainerCallback

from plop_nb.experiments.grids.cells import Board, Cell, Objective, Row
from plop_nb.experiments.grids.storage import Trials, open_storage, quiet_optuna
from plop_nb.experiments.races.jobs import Arm, Job, Run, judged, spent
from plop_nb.experiments.races.ladder import Ladder
from plop_nb.experiments.tasks.task import Task
from plop_nb.experiments.training import finetune
from plop_nb.placement import Placement
from plop_nb.processes import Process, gathered, told

JUDGED = "validation"  # the split that the final is judged by
PAUSE = 0.5  # seconds between two looks at what other processes have finished
Result = TypeVar("Result")
clock = time.perf_counter


class Stopped(Exception):
    """A run has come to the step up to which it was wanted."""


class Watch(TrainerCallback):
    """Stops a run at the step of its job, and keeps its losses and times."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.losses: list[float] = []
        self.began = self.stepped = clock()

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.global_step == 0:
            self.began = clock()

    def on_log(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if len(self.losses) == self._job.until or "loss" not in state.log_history[-1]:
            return
        self.losses.append(state.log_history[-1]["loss"])
        self.stepped = clock()
        if len(self.losses) == self._job.until:
            control.should_training_stop = True
            if not self._job.evaluated:
                raise Stopped  # which leaves out the evaluation


@dataclass(frozen=True)
class Track:
    """Where a race's arms are trained: a model, a task, and the settings of each placement."""

    model: nn.Module
    task: Task
    tokenizer: Any
    placements: Mapping[str, Placement]
    settings: Mapping[str, Mapping[str, Any]]  # arguments of `finetune`, by placement

    def arguments(self, job: Job) -> dict[str, Any]:
        """Of `finetune`, for a job."""
        own = {"lr": job.arm.lr, "seed": job.seed}
        shared = {"logging_steps": 1, "final": JUDGED, "accuracy": False}
        return {**self.settings[job.arm.placement], **own, **shared}

    def train(self, job: Job) -> Row:
        """Do a job; the row of its run."""
        watch = Watch(job)
        start, loss = clock(), None
        try:
            done = finetune(
                self.model,
                self.task,
                self.tokenizer,
                self.placements[job.arm.placement],
                callbacks=[watch],
                **self.arguments(job),
            )
            loss = done["loss"]
        except Stopped:
            pass
        return {
            "score": judged(watch.losses, job.until) if loss is None else loss,
            "evaluated": job.evaluated,
            "loss": loss,
            "losses": watch.losses,
            "start": watch.began - start,
            "training": watch.stepped - watch.began,
            "evaluation": clock() - watch.stepped,
        }


class Course:
    """The runs of a race in a storage, which several processes may share."""

    def __init__(self, cells: Mapping[Job, Cell], storage: str | Path | None) -> None:
        self._cells = cells
        self._storage = open_storage(storage)
        objective = Objective("score", "minimize")
        self._board = Board(self._storage, "race", list(cells.values()), objective)

    def runs(self) -> list[Run]:
        """All that are finished."""
        return [_run(row) for row in self._board.rows(list(self._cells.values()))]

    def running(self) -> list[Job]:
        """The jobs that processes are at."""
        import optuna

        trials = Trials(self._storage)
        state = optuna.trial.TrialState.RUNNING
        return [job for job, cell in self._cells.items() if trials.of(cell.key, state)]

    def race(self, ladder: Ladder, train: Callable[[Job], Row], progress: bool) -> list[Run]:
        """Do what is wanted until nothing is, also by other processes; all finished runs."""
        hidden = not progress or bool(os.environ.get("TQDM_DISABLE"))
        form = "{desc}: {percentage:3.0f}% |{bar}| {n:.0f} of {total:.0f} s{postfix}"
        with tqdm(total=ladder.seconds, desc="race", disable=hidden, bar_format=form) as bar:
            planned = hidden
            while True:
                self._board.fail_stale()
                running = self.running()
                runs = self.runs()  # after it: a run that ends between the two is not lost
                bar.n = min(spent(runs), ladder.seconds)
                bar.set_postfix(runs=len(runs))
                if not planned and ladder.begun(runs):
                    bar.write(str(ladder.plan(runs)))
                    planned = True
                if wanted := ladder.wanted(runs, running):
                    self._board.work(self._cells[wanted[0]], train)
                elif running:
                    time.sleep(PAUSE)
                else:
                    return runs


def _run(row: Row) -> Run:
    job = Job(Arm(row["placement"], row["lr"]), row["seed"], row["until"], row["evaluated"])
    times = {name: row[name] for name in ("start", "training", "evaluation")}
    return Run(job, tuple(row["losses"]), row["loss"], **times)


@dataclass
class Team:
    """The processes of `accelerate launch`: the first decides, and all train together."""

    process: Process
    train: Callable[[Job], Row]
    _failed: bool = field(default=False, init=False)

    def follow(self, lead: Callable[[Callable[[Job], Row]], Result]) -> Result:
        """What `lead` returns in the first process, in all of them.

        Parameters
        ----------
        lead : callable
            `lead(train)` has jobs done by `train`, which trains in every process.

        Raises
        ------
        Exception
            What `lead` or a training raises, in every process.
        """
        if self.process.number == 1:
            return lead(self.train)
        if self.process.is_first:
            return self._lead(lead)
        while isinstance(message := told(), Job):
            self._together(message)
        if isinstance(message, Exception):
            raise message
        return message

    def _lead(self, lead: Callable[[Callable[[Job], Row]], Result]) -> Result:
        def train(job: Job) -> Row:
            told(job)
            return self._together(job)

        try:
            result = lead(train)
        except Exception as error:
            if not self._failed:  # else the others have it already
                told(_sendable(error))
            raise
        return told(result)

    def _together(self, job: Job) -> Row:
        """A job in every process; where it fails in one it raises in all."""
        try:
            found: Any = self.train(job)
        except Exception as error:
            found = error
        self._failed = True
        rows = gathered(found, self.process)
        self._failed = False
        return rows[0]


def _sendable(error: Exception) -> Exception:
    """An error that other processes can be told of."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def raced(
    ladder: Ladder,
    cells: Mapping[Job, Cell],
    train: Callable[[Job], Row],
    *,
    storage: str | Path | None,
    progress: bool,
) -> list[Run]:
    """All runs of a race on a storage, when it is over.

    Parameters
    ----------
    ladder : Ladder
    cells : mapping
        {job: its cell} for every job that there may be.
    train : callable
        Does a job.
    storage, progress
        As in `race`.
    """
    with quiet_optuna():
        return Course(cells, storage).race(ladder, train, progress)
