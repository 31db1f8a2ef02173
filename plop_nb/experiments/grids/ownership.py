"""Whose trial it is, and whether that process lives."""

import contextlib
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

HEARTBEAT = 30  # seconds between two signs of life, on a database
GRACE = 300  # seconds without one after which a process counts as dead
UNCLAIMED = 60  # seconds that a claim may stand without the name of its process
CLOCK = 2.0  # seconds by which two readings of a process's start may differ
RUNNING_HERE: set[str] = set()  # claims of this process


def this_process(claim: str) -> dict[str, Any]:
    """What tells this process, on this host, from all others, and this claim from its others."""
    import psutil

    started = psutil.Process().create_time()
    return {"host": platform.node(), "pid": os.getpid(), "started": started, "claim": claim}


def is_alive(trial: Any) -> bool:
    """Whether the process that runs a trial still does, as far as can be told from here."""
    import psutil

    owner = trial.user_attrs.get("owner")
    if owner is None:  # claimed a moment ago, or by a process that was killed in that moment
        return (datetime.now() - trial.datetime_start).total_seconds() < UNCLAIMED
    if owner["host"] != platform.node():
        return True
    if owner["pid"] == os.getpid():
        return owner["claim"] in RUNNING_HERE
    try:
        process = psutil.Process(owner["pid"])
        same = abs(process.create_time() - owner["started"]) < CLOCK
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def has_heartbeat(storage: Any) -> bool:
    """Whether a storage takes signs of life: databases do, journal files do not."""
    return hasattr(storage, "record_heartbeat")


@contextmanager
def heartbeat(storage: Any, trial_id: int) -> Iterator[None]:
    """Signs of life of a trial every few seconds, where the storage takes them."""
    if not has_heartbeat(storage):
        yield
        return
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(HEARTBEAT):
            with contextlib.suppress(Exception):  # a database that is busy: the next one counts
                storage.record_heartbeat(trial_id)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
