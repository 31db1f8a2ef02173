"""Where trials are kept: Optuna's storages, opened with care, and the trials of ours in them."""

import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plop_nb.checks import missing_extra

JOURNAL_START = b'{"op_code":'
BUSY = 60  # seconds to wait for another writer of an SQLite file
ATTEMPTS = 4  # to open a database
PAUSE = 0.5  # seconds between them
KEY = "plop_key"  # user attribute that marks a trial as ours


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Optuna without its log lines and its warnings of experimental features.

    Raises
    ------
    ImportError
        Optuna is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise missing_extra("a grid of runs", "Optuna", "finetune") from error
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def open_storage(storage: str | Path | None, *, write: bool = True) -> Any:
    """An Optuna storage: in memory, on a journal file, or a database.

    Parameters
    ----------
    storage : str or Path, optional
        As in `run_cells`.
    write : bool
        Make it ready to be written to: its folder is made, and the last line of a journal that a
        crash has cut short is taken away. It can be read, but what is appended to it cannot.

    Returns
    -------
    optuna.storages.BaseStorage

    Raises
    ------
    ValueError
        The file is of another kind, or is only to be read and does not exist, or cannot be written
        to; or the database cannot be opened.
    """
    from optuna.storages import InMemoryStorage, JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    if storage is None:
        return InMemoryStorage()
    if not write:
        _check_existence(storage)
    if _is_url(storage):
        return _open_database(str(storage))
    path = Path(storage)
    _check_journal(path)
    if write:
        _make_ready(path)
    # a lock by a symbolic link would need a file system, and on Windows rights, for these
    return JournalStorage(JournalFileBackend(str(path), JournalFileOpenLock(str(path))))


def _check_existence(storage: str | Path) -> None:
    path = _file_of_database(str(storage)) if _is_url(storage) else storage
    if path is not None and not Path(path).exists():
        raise ValueError(
            f"storage={str(storage)!r} does not exist: name the file that grid wrote, or the URL "
            f"of a database"
        )


def _file_of_database(url: str) -> str | None:
    from sqlalchemy.engine import make_url

    parts = make_url(url)
    return parts.database if parts.get_backend_name() == "sqlite" else None


def _open_database(url: str, attempts: int = ATTEMPTS) -> Any:
    """A database.

    Processes that begin a new one at the same time disturb each other while Optuna makes its
    tables, so another attempt is made.
    """
    from optuna.storages import RDBStorage
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import DBAPIError

    connect = _connect_sqlite if url.startswith("sqlite") else RDBStorage
    try:
        return connect(url)
    except DBAPIError as error:
        if attempts == 1:
            shown = make_url(url).render_as_string()  # without its password
            raise ValueError(
                f"storage={shown!r} cannot be opened as a database ({error.orig}): name another"
            ) from error
    time.sleep(PAUSE)
    return _open_database(url, attempts - 1)


def _connect_sqlite(url: str) -> Any:
    """SQLite with every transaction locked from its beginning.

    Optuna claims a trial by reading its state and then writing it, with SELECT FOR UPDATE. SQLite
    has no such thing: two processes could both read WAITING, and run the same cell.
    """
    from optuna.storages import RDBStorage
    from sqlalchemy import event

    options = {"timeout": BUSY, "isolation_level": None}
    storage = RDBStorage(url, engine_kwargs={"connect_args": options})

    @event.listens_for(storage.engine, "begin")
    def lock(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return storage


def _is_url(storage: str | Path) -> bool:
    """Whether a storage is the URL of a database, and not a file."""
    return isinstance(storage, str) and "://" in storage


def _check_journal(path: Path) -> None:
    if not path.exists():
        return
    problem = "is a folder" if path.is_dir() else "is no journal of Optuna's"
    if path.is_file() and _begins_as_journal(path):
        return
    raise ValueError(
        f"storage={str(path)!r} {problem}: name another file (JSON lines of earlier versions "
        f"cannot be continued), or a database as 'sqlite:///{path}'"
    )


def _begins_as_journal(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(JOURNAL_START)) in (b"", JOURNAL_START)


def _make_ready(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
        _end_last_line(path)
    except OSError as error:
        raise ValueError(
            f"storage={str(path)!r} cannot be written to ({error}): name another file"
        ) from error


def _end_last_line(path: Path) -> None:
    """Take away a last line that a crash has cut short: with more after it none could be read."""
    from optuna.storages.journal import JournalFileOpenLock

    if not path.exists() or _ends_whole(path):
        return
    lock = JournalFileOpenLock(str(path))
    lock.acquire()  # a line that another process is writing is whole once we hold the lock
    try:
        if not _ends_whole(path):
            whole = path.read_bytes().rpartition(b"\n")
            os.truncate(path, len(whole[0]) + len(whole[1]))
    finally:
        lock.release()


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return True
        file.seek(size - 1)
        return file.read(1) == b"\n"


@dataclass(frozen=True)
class Entry:
    """A trial of ours, and the number by which its storage knows it: it grows with every trial."""

    trial_id: int
    trial: Any  # optuna.trial.FrozenTrial


class Trials:
    """All trials of ours in a storage: study by study, the oldest first; others are left alone."""

    def __init__(self, storage: Any) -> None:
        self._storage = storage
        self.look()

    def look(self) -> None:
        """Read the storage again."""
        import optuna

        self.entries: list[Entry] = []
        self._by_key: dict[str, list[Entry]] = {}
        for name in optuna.get_all_study_names(self._storage):
            study_id = self._storage.get_study_id_from_name(name)
            for trial in self._storage.get_all_trials(study_id, deepcopy=False):
                if KEY in trial.user_attrs:
                    entry = Entry(trial._trial_id, trial)
                    self.entries.append(entry)
                    self._by_key.setdefault(trial.user_attrs[KEY], []).append(entry)

    def of(self, key: str, *states: Any) -> list[Entry]:
        """The trials with a key, in these states."""
        return [entry for entry in self._by_key.get(key, []) if entry.trial.state in states]

    def first(self, key: str, *states: Any) -> Entry | None:
        """The earliest of the trials with a key, in these states, of all studies, if any."""
        return min(self.of(key, *states), key=lambda entry: entry.trial_id, default=None)
