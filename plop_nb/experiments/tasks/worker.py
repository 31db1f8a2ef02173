"""The program that generated code runs in: it answers calls of one function, and knows no tests.

`apart.py` runs it with a socket as its standard input. Messages are lines of JSON: first the
source of the function and its name, which "ready" answers, then the arguments of each call, which
its value answers. Whatever goes wrong ends the program, and with it the answers.
"""

import functools
import json
import os
import signal
import socket
import sys
from typing import Any

SECONDS = 3  # that generated code may run
LIMITS = {
    "RLIMIT_AS": 2**30,  # bytes of memory
    "RLIMIT_CPU": SECONDS + 1,
    "RLIMIT_FSIZE": 2**20,  # bytes of a file
    "RLIMIT_NOFILE": 64,
    "RLIMIT_NPROC": 0,  # further processes, other than root's
    "RLIMIT_CORE": 0,
}
# What the interpreter reports before it happens (https://docs.python.org/3/library/audit_events.html)
REFUSED = (
    "socket.", "subprocess.", "os.fork", "os.exec", "os.posix_spawn", "os.spawn", "os.system",
    "os.startfile", "os.kill", "pty.", "ctypes.", "signal.pthread_kill", "webbrowser.",
)  # fmt: skip
CHANGES = (
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate",
    "os.chmod", "os.chown", "os.chflags", "os.utime", "os.setxattr", "os.removexattr",
    "shutil.rmtree", "shutil.move",
)  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

SEQUENCES = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


def packed(value: Any) -> Any:
    """A plain value in the form that JSON carries; TypeError for one of another kind.

    Examples
    --------
    >>> packed((1, [None]))
    {'tuple': [1, {'list': [None]}]}
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    for name, kind in SEQUENCES.items():
        if isinstance(value, kind):
            return {name: [packed(each) for each in value]}
    if isinstance(value, dict):
        return {"dict": [[packed(key), packed(each)] for key, each in value.items()]}
    raise TypeError(f"{type(value).__name__} is no plain value")


def unpacked(message: Any) -> Any:
    """The value that `packed` has packed; ValueError or TypeError for any other message."""
    if message is None or isinstance(message, bool | int | float | str):
        return message
    if not isinstance(message, dict):
        raise ValueError("a list without its kind")
    ((name, content),) = message.items()
    if name == "dict":
        return {unpacked(key): unpacked(each) for key, each in content}
    if name not in SEQUENCES:
        raise ValueError(f"{name!r} is no kind of value")
    return SEQUENCES[name](unpacked(each) for each in content)


def limit() -> None:
    """Set the limits that this system knows, where they are not stricter already."""
    import resource

    for name, most in LIMITS.items():
        try:
            resource.setrlimit(getattr(resource, name), (most, most))
        except (AttributeError, OSError, ValueError):
            pass
    signal.alarm(SECONDS + 2)  # also ends it where the caller is killed


def refuse(folder: str, event: str, arguments: tuple) -> None:
    """Raise PermissionError for sockets, processes, and changes outside a folder."""
    if event.startswith(REFUSED):
        raise PermissionError(f"generated code may not: {event}")
    writes = event == "open" and (arguments[2] or 0) & WRITING
    if not writes and event not in CHANGES:
        return
    for path in arguments[:1] if writes else arguments[:2]:
        is_path = isinstance(path, str | bytes | os.PathLike)
        if is_path and not os.path.realpath(os.fsdecode(path)).startswith(folder + os.sep):
            raise PermissionError(f"generated code may not: {event} {path!r}")


def main() -> None:
    """Define the function, then answer its calls until nobody asks any more."""
    connection = socket.socket(fileno=os.dup(0))
    lines = connection.makefile("rw")
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)

    def answer(value: Any) -> None:
        lines.write(json.dumps(packed(value)) + "\n")
        lines.flush()

    source, name = unpacked(json.loads(lines.readline()))
    limit()
    answer("ready")
    sys.addaudithook(functools.partial(refuse, os.path.realpath(".")))
    namespace: dict[str, Any] = {"__name__": "generated"}
    exec(compile(source, "<generated>", "exec"), namespace)
    for line in lines:
        answer(namespace[name](*unpacked(json.loads(line))))


if __name__ == "__main__":
    main()
