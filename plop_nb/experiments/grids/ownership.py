"""Whose trial it is, and whether that process lives: the same on every storage.

The process that runs a trial writes its name (`OWNER`) and, every few seconds, the time (`ALIVE`)
into the trial's user attributes.
"""

import contextlib
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HEARTBEAT = 30  # seconds between two signs of life
GRACE = 300  # seconds without one after which a process counts as dead, wherever it ran
CLOCK = 2.0  # seconds by which two readings of the start of a process or host may differ
OWNER, ALIVE = "plop_owner", "plop_alive"  # user attributes of a trial
PID_NAMESPACE = Path("/proc/self/ns/pid")  # on Linux: containers count their processes anew
RUNNING_HERE: set[str] = set()  # claims of this process


def this_process(claim: str) -> dict[str, Any]:
    """What tells this process, on this host, from all others, and this claim from its others."""
    import psutil

    return {
        "host": platform.node(),
        "boot": psutil.boot_time(),
        "namespace": PID_NAMESPACE.stat().st_ino if PID_NAMESPACE.exists() else 0,
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
        "claim": claim,
    }


def owner_name(trial: Any) -> str:
    """The host and process that run a trial, in words."""
    owner = trial.user_attrs.get(OWNER)
    return f"process {owner['pid']} on {owner['host']}" if owner else "a process without a name yet"


def is_stale(trial: Any) -> bool:
    """Whether the process that runs a trial is dead on this host, or silent for `GRACE` seconds."""
    owner = trial.user_attrs.get(OWNER)
    if owner is not None and _is_dead(owner):
        return True
    return time.time() - trial.user_attrs.get(ALIVE, 0) > GRACE


def _is_dead(owner: dict[str, Any]) -> bool:
    """Whether a process is surely dead: only of one on this very host and boot can that be told."""
    import psutil

    if not _is_near(owner):
        return False
    if owner["pid"] == os.getpid():
        return owner["claim"] not in RUNNING_HERE
    try:
        process = psutil.Process(owner["pid"])
        same = abs(process.create_time() - owner["started"]) < CLOCK
        return not same or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False


def _is_near(owner: dict[str, Any]) -> bool:
    """Whether a process runs where this one does, so that its id means the same here."""
    here = this_process("")
    same = all(owner[name] == here[name] for name in ("host", "namespace"))
    return same and abs(owner["boot"] - here["boot"]) < CLOCK


@contextmanager
def heartbeat(storage: Any, trial_id: int) -> Iterator[None]:
    """A sign of life of a trial every few seconds."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(HEARTBEAT):
            with contextlib.suppress(Exception):  # a storage that is busy: the next one counts
                storage.set_trial_user_attr(trial_id, ALIVE, time.time())

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
