"""The program that generated code runs in: it answers calls of one function, and knows no tests.

`apart.py` runs it with a socket as its standard input. Messages are literals, one a line: first the
source of the function and its name, which "ready" answers, then the arguments of each call, which
its value answers. Whatever goes wrong ends the program, and with it the answers.
"""

import ast
import functools
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
    "os.startfile", "os.kill", "pty.", "ctypes.", "signal.pthread_kill", "sqlite3.", "webbrowser.",
)  # fmt: skip
CHANGES = (
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate",
    "os.chmod", "os.chown", "os.chflags", "os.utime", "os.setxattr", "os.removexattr",
    "shutil.rmtree", "shutil.move",
)  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def plain(value: Any) -> Any:
    """A value in whose subclasses of lists, tuples, sets and dicts only their content is left.

    Examples
    --------
    >>> import collections
    >>> plain([collections.Counter("a")])
    [{'a': 1}]
    """
    if isinstance(value, dict):
        return {plain(key): plain(each) for key, each in value.items()}
    for kind in (list, tuple, set):
        if isinstance(value, kind):
            return kind(map(plain, value))
    return value


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
    """Raise PermissionError for sockets, processes, and changes outside a folder.

    Not for what the interpreter does not report, such as os.mkfifo and os.mknod.
    """
    if event.startswith(REFUSED):
        raise PermissionError(f"generated code may not: {event}")
    writes = event == "open" and (arguments[2] or 0) & WRITING
    if not writes and event not in CHANGES:
        return
    for path in arguments[:1] if writes else arguments[:2]:
        if not isinstance(path, str | bytes | os.PathLike):
            continue
        real = os.path.realpath(os.fsdecode(path))
        if not real.startswith(folder + os.sep) and not (writes and real == os.devnull):
            raise PermissionError(f"generated code may not: {event} {path!r}")


def main() -> None:
    """Define the function, then answer its calls until nobody asks any more."""
    connection = socket.socket(fileno=os.dup(0))
    lines = connection.makefile("rw")
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)

    def answer(value: Any) -> None:
        lines.write(ascii(plain(value)) + "\n")
        lines.flush()

    source, name = ast.literal_eval(lines.readline())
    limit()
    answer("ready")
    sys.addaudithook(functools.partial(refuse, os.path.realpath(".")))
    namespace: dict[str, Any] = {"__name__": "generated"}
    exec(compile(source, "<generated>", "exec"), namespace)
    for line in lines:
        answer(namespace[name](*ast.literal_eval(line)))


if __name__ == "__main__":
    main()
