"""Where trials are kept: Optuna's storages, opened with care."""

import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plop_nb.checks import missing_extra
from plop_nb.experiments.grids.ownership import GRACE, HEARTBEAT

JOURNAL_START = b'{"op_code":'
BUSY = 60  # seconds to wait for another writer of an SQLite file
ATTEMPTS = 4  # to open a database
PAUSE = 0.5  # seconds between them


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


def open_storage(storage: str | Path | None) -> Any:
    """An Optuna storage: in memory, on a journal file, or a database.

    Parameters
    ----------
    storage : str or Path, optional
        As in `run_cells`.

    Returns
    -------
    optuna.storages.BaseStorage

    Raises
    ------
    ValueError
        The file is of another kind.
    """
    from optuna.storages import InMemoryStorage, JournalStorage
    from optuna.storages.journal import JournalFileBackend

    if storage is None:
        return InMemoryStorage()
    if is_url(storage):
        return _open_database(str(storage))
    path = Path(storage)
    path.parent.mkdir(parents=True, exist_ok=True)
    _check_journal(path)
    _end_last_line(path)
    return JournalStorage(JournalFileBackend(str(path)))


def _open_database(url: str) -> Any:
    """A database with a heartbeat.

    Processes that begin a new one at the same time disturb each other while Optuna makes its
    tables, so another attempt is made.
    """
    from sqlalchemy.exc import DBAPIError

    connect = _connect_sqlite if url.startswith("sqlite") else _connect
    for _ in range(ATTEMPTS - 1):
        try:
            return connect(url)
        except DBAPIError:
            time.sleep(PAUSE)
    return connect(url)


def _connect(url: str, **engine: Any) -> Any:
    from optuna.storages import RDBStorage

    options = {"heartbeat_interval": HEARTBEAT, "grace_period": GRACE}
    return RDBStorage(url, engine_kwargs=engine, **options)


def _connect_sqlite(url: str) -> Any:
    """SQLite with every transaction locked from its beginning.

    Optuna claims a trial by reading its state and then writing it, with SELECT FOR UPDATE. SQLite
    has no such thing: two processes could both read WAITING, and run the same cell.
    """
    from sqlalchemy import event

    storage = _connect(url, connect_args={"timeout": BUSY, "isolation_level": None})

    @event.listens_for(storage.engine, "begin")
    def lock(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return storage


def is_url(storage: str | Path) -> bool:
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


def _end_last_line(path: Path) -> None:
    """Take away a last line that a crash has cut short: with it no journal could be read again."""
    from optuna.storages.journal import JournalFileSymlinkLock

    if not path.exists() or _ends_whole(path):
        return
    lock = JournalFileSymlinkLock(str(path))
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
