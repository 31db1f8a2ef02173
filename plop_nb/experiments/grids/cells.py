"""Cells of a grid, each run once, kept as the trials of an Optuna study.

Several processes may work on one storage. A cell is known by its key, a hash of all that determines
its result; a trial that is WAITING is claimed by setting it RUNNING, which succeeds for one process
only, and of several trials with the same key only the earliest is ever claimed. The result is in
the trial's user attributes; their names are in the list `COLUMNS`.

A process that is killed leaves its trial RUNNING. The next call takes it over when that process is
dead on this host, and, wherever it ran, once its last sign of life is older than `ownership.GRACE`
seconds. Other trials in the storage are left alone.
"""

import hashlib
import json
import math
import os
import time
import uuid
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from plop_nb.experiments.grids.ownership import (
    ALIVE,
    OWNER,
    RUNNING_HERE,
    heartbeat,
    is_stale,
    owner_name,
    this_process,
)
from plop_nb.experiments.grids.storage import KEY, Trials, open_storage, quiet_optuna

COLUMNS = "plop_columns"  # user attribute of a trial: the names of its result
LONGEST_NAME = 200  # characters of a study's name
Label = str | int | float
Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes
    ----------
    key : str
        Of all that determines the result: see `digest`.
    labels : dict
        What tells it from the others, such as {"placement": "PLoP", "lr": 1e-3, "seed": 0}: the
        parameters of its trial, and columns of its row.
    content : object
        What `run` is given.
    """

    key: str
    labels: dict[str, Label]
    content: Any = None


def digest(content: Any) -> str:
    """A hash of anything that JSON can hold, numbers of numpy included: 16 hexadecimal digits.

    The order of keys does not matter.
    """
    return hashlib.sha256(_json(content, sort_keys=True).encode()).hexdigest()[:16]


def run_cells(
    cells: Sequence[Cell],
    run: Callable[[Any], Row],
    *,
    storage: str | Path | None = None,
    study: str = "runs",
    value: str = "loss",
    direction: str = "minimize",
    progress: bool = True,
) -> list[Row]:
    """Run every cell that no process has finished or is running.

    Parameters
    ----------
    cells : sequence of Cell
    run : callable
        `run(cell.content)` gives the result, {column: anything that JSON can hold}.
    storage : str or Path, optional
        A file (Optuna's journal; its folder is made), the URL of a database such as
        "sqlite:///runs.db", or nothing: in memory.
    study : str
        How the study is called; the choices of the labels that are texts come after it.
    value, direction : str
        The column that is the trial's value, and whether to "minimize" or "maximize" it.
    progress : bool
        Show a progress bar over the cells.

    Returns
    -------
    list of dict
        The rows of all cells that are finished, in their order: the result, the labels and `key`.
        A UserWarning tells of cells that are left out, as other processes run them.

    Raises
    ------
    ValueError
        `storage` is a file of another kind, or cannot be opened: no cell is run.
    ImportError
        Optuna is not installed.
    Exception
        What `run` raises; the trial is then marked as failed, and run again by the next call.
    """
    if not cells:
        return []
    with quiet_optuna():
        board = Board(open_storage(storage), study, cells, Objective(value, direction))
        board.fail_stale()
        board.enqueue(cells)
        hidden = not progress or bool(os.environ.get("TQDM_DISABLE"))
        for cell in tqdm(board.unfinished(cells), desc="runs", disable=hidden):
            board.work(cell, run)
        rows = board.rows(cells)
        owners = board.owners(cells)
    if len(rows) < len(cells):
        warnings.warn(
            f"{len(cells) - len(rows)} of {len(cells)} cells are left out, as other processes had "
            f"them ({', '.join(owners) or 'and have failed'}): the same call later returns them",
            UserWarning,
            stacklevel=2,
        )
    return rows


def finished_rows(storage: str | Path) -> list[Row]:
    """The rows of all finished cells in a storage, each once, as `run_cells` gives them.

    Study by study, in the order of Optuna's list of them; within a study the oldest first.

    Raises
    ------
    ValueError
        There is no such file, or it is of another kind, or a database that cannot be opened.
    ImportError
        Optuna is not installed.
    """
    rows: dict[tuple, Row] = {}
    with quiet_optuna():
        for entry in Trials(open_storage(storage, write=False)).entries:
            if entry.trial.state.name == "COMPLETE":
                labels = tuple(sorted(entry.trial.params.items()))
                rows.setdefault((entry.trial.user_attrs[KEY], labels), _row(entry.trial))
    return list(rows.values())


@dataclass(frozen=True)
class Objective:
    """The column that is a trial's value, and its direction."""

    column: str
    direction: str

    def of(self, row: Row) -> float:
        """The value of a row; the worst there is for one that diverged, as Optuna takes no NaN."""
        value = row[self.column]
        if value is None or math.isnan(value):
            return math.inf if self.direction == "minimize" else -math.inf
        return float(value)


class Board:
    """The cells of one call on a storage: queued, claimed, run and read."""

    def __init__(
        self, storage: Any, study: str, cells: Sequence[Cell], objective: Objective
    ) -> None:
        import optuna

        self._storage = storage
        self._objective = objective
        self._distributions = _distributions(cells)
        name = study_name(study, self._distributions, objective.direction)
        optuna.create_study(
            study_name=name, storage=storage, direction=objective.direction, load_if_exists=True
        )
        self._study_id = storage.get_study_id_from_name(name)
        self._states = optuna.trial.TrialState
        self._trials = Trials(storage)

    def fail_stale(self) -> None:
        """Set the trials of dead processes to FAIL, so that their cells are run again."""
        for entry in self._trials.entries:
            if entry.trial.state == self._states.RUNNING and is_stale(entry.trial):
                self._fail(entry.trial_id)
        self._trials.look()

    def enqueue(self, cells: Sequence[Cell]) -> None:
        """Add a waiting trial for every key that has none yet, and is neither run nor finished."""
        added = {}
        for cell in cells:
            if cell.key not in added and not self._trials.of(cell.key, *self._live()):
                added[cell.key] = self._add(cell)
        self._trials.look()
        for key, trial_id in added.items():
            first = self._trials.first(key, *self._live())
            if first is not None and first.trial_id != trial_id:
                self._fail(trial_id)  # another process has added it a moment before
        self._trials.look()

    def unfinished(self, cells: Sequence[Cell]) -> list[Cell]:
        """The cells without a result, one for each key."""
        open_cells: dict[str, Cell] = {}
        for cell in cells:
            if not self._trials.of(cell.key, self._states.COMPLETE):
                open_cells.setdefault(cell.key, cell)
        return list(open_cells.values())

    def work(self, cell: Cell, run: Callable[[Any], Row]) -> None:
        """Run a cell, unless another process has taken it."""
        trial_id = self._claim(cell)
        if trial_id is None:
            return
        claim = uuid.uuid4().hex
        RUNNING_HERE.add(claim)
        try:
            self._storage.set_trial_user_attr(trial_id, OWNER, this_process(claim))
            with heartbeat(self._storage, trial_id):
                row = run(cell.content)
            self._finish(trial_id, cell, row)
        except BaseException:
            self._fail(trial_id)
            raise
        finally:
            RUNNING_HERE.discard(claim)

    def rows(self, cells: Sequence[Cell]) -> list[Row]:
        """The rows of the finished cells; what ran under other labels is noted under these too."""
        self._trials.look()
        rows = []
        for cell in cells:
            finished = self._trials.of(cell.key, self._states.COMPLETE)
            own = [entry for entry in finished if entry.trial.params == cell.labels]
            if finished and not own:
                self._add(cell, _result(finished[0].trial))
            if finished:
                rows.append(_row((own or finished)[0].trial) | cell.labels)
        return rows

    def owners(self, cells: Sequence[Cell]) -> list[str]:
        """The processes that run cells without a result."""
        names = set()
        for cell in self.unfinished(cells):
            running = self._trials.of(cell.key, self._states.RUNNING)
            names |= {owner_name(entry.trial) for entry in running}
        return sorted(names)

    def _claim(self, cell: Cell) -> int | None:
        """The id of the trial that is now ours to run; None where another process has the cell."""
        self._trials.look()
        if not self._trials.of(cell.key, *self._live()):
            self.enqueue([cell])  # it has failed elsewhere
        first = self._trials.first(cell.key, *self._live())
        if first is None or first.trial.state != self._states.WAITING:
            return None
        # the sign of life comes first, so that no claim is ever without one
        claimed = self._set(first.trial_id, self._states.RUNNING, {ALIVE: time.time()})
        return first.trial_id if claimed else None

    def _finish(self, trial_id: int, cell: Cell, row: Row) -> None:
        import optuna

        row = json.loads(_json(row))  # the same on every storage
        attributes = {**row, COLUMNS: list(row)}
        try:
            for name, attribute in attributes.items():
                self._storage.set_trial_user_attr(trial_id, name, attribute)
            value = [self._objective.of(row)]
            self._storage.set_trial_state_values(trial_id, self._states.COMPLETE, value)
        except optuna.exceptions.UpdateFinishedTrialError:
            self._add(cell, row)  # another process took this one for dead

    def _add(self, cell: Cell, row: Row | None = None) -> int:
        """A trial of its own for a cell, waiting or finished; its id."""
        import optuna

        attributes: Row = {KEY: cell.key}
        if row is not None:
            attributes |= {**row, COLUMNS: list(row)}
        trial = optuna.trial.create_trial(
            state=self._states.WAITING if row is None else self._states.COMPLETE,
            value=None if row is None else self._objective.of(row),
            params=cell.labels,
            distributions=self._distributions,
            user_attrs=attributes,
        )
        return self._storage.create_new_trial(self._study_id, template_trial=trial)

    def _fail(self, trial_id: int) -> None:
        self._set(trial_id, self._states.FAIL)

    def _set(self, trial_id: int, state: Any, attributes: Row | None = None) -> bool:
        """Whether the trial could be given this state: False where another process was first."""
        import optuna

        try:
            for name, attribute in (attributes or {}).items():
                self._storage.set_trial_user_attr(trial_id, name, attribute)
            return self._storage.set_trial_state_values(trial_id, state)
        except optuna.exceptions.UpdateFinishedTrialError:
            return False

    def _live(self) -> tuple:
        return (self._states.WAITING, self._states.RUNNING, self._states.COMPLETE)


def study_name(study: str, distributions: dict[str, Any], direction: str = "minimize") -> str:
    """The name of a study, with what Optuna wants to be the same for all its trials."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    parts = []
    for label, distribution in distributions.items():
        if isinstance(distribution, CategoricalDistribution):
            parts.append(", ".join(map(repr, distribution.choices)))
        elif isinstance(distribution, FloatDistribution) and not distribution.log:
            parts.append(f"{label} from {distribution.low:g}")
    if direction != "minimize":
        parts.append(direction)
    name = f"{study}: {'; '.join(parts)}" if parts else study
    if len(name) > LONGEST_NAME:
        return f"{name[: LONGEST_NAME - 20]}... {digest(name)}"
    return name


def _distributions(cells: Sequence[Cell]) -> dict[str, Any]:
    """What Optuna is told of each label: the choices of a text, the range of a number."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, Any] = {}
    for label in cells[0].labels:
        values = sorted({cell.labels[label] for cell in cells})
        low, high = values[0], values[-1]
        if isinstance(low, str):
            found[label] = CategoricalDistribution(values)
        elif isinstance(low, int):
            found[label] = IntDistribution(low, high)
        else:
            found[label] = FloatDistribution(low, high, log=low > 0)
    return found


def _result(trial: Any) -> Row:
    return {name: trial.user_attrs[name] for name in trial.user_attrs[COLUMNS]}


def _row(trial: Any) -> Row:
    return {**_result(trial), **trial.params, "key": trial.user_attrs[KEY]}


def _json(content: Any, **options: Any) -> str:
    return json.dumps(content, default=_plain_number, **options)


def _plain_number(value: Any) -> Any:
    return value.item()  # numbers of numpy
