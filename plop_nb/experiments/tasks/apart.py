"""Functions of untrusted source code, called in a process of their own."""

import ast
import contextlib
import functools
import inspect
import os
import shutil
import signal
import site
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from plop_nb.checks import user_level
from plop_nb.experiments.tasks import worker

START = 30  # seconds that the process may take until it is ready
LONGEST = 2**16  # bytes of an answer


@contextlib.contextmanager
def apart(source: str, name: str) -> Iterator[Callable[..., Any]]:
    """Call a function of untrusted source code in a process of its own.

    Arguments and values travel as literals (None, booleans, finite numbers, strings, bytes, lists,
    tuples, sets, dicts; of subclasses of the last four what is in them): whoever calls shares no
    object, no frame and no exit status with the code. The process has the standard library alone,
    a bare environment, and a temporary folder. However the context ends, the process and its group
    are killed, and the folder is removed.

    Always held: `worker.LIMITS` (memory, time of the processor, size of a file; no core dump, and
    for others than root no further process), and 3 seconds in all. Sockets, processes, and most
    changes of files outside the folder are refused by the interpreter: that stops accidents, but
    code that sets out to can get around it.

    Held against such code, too, where `bwrap` (bubblewrap, Linux) is installed and works: it sees
    no network, no other process, and of the files only Python, `/usr` and its folder. Without it
    such code can do and read what its user can, and root's can leave processes behind.

    Parameters
    ----------
    source : str
        Python, which defines the function.
    name : str
        Of the function.

    Yields
    ------
    callable
        `function(*arguments)`. It raises an Exception where the code raises, ends, takes too long
        (TimeoutError), or returns no such value.

    Raises
    ------
    RuntimeError
        The process does not start: nothing is known about the code.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs, _folder() as folder, _process(folder, theirs) as process:
        theirs.close()
        lines = _Lines(ours, START)
        try:
            lines.send((source, name))
            lines.receive()
        except (EOFError, OSError) as error:
            said = _end(process).strip()[-500:] or "it said nothing"
            raise RuntimeError(
                f"generated code cannot be run, its process did not start: {said}"
            ) from error
        lines.deadline = time.monotonic() + worker.SECONDS

        def function(*arguments: Any) -> Any:
            lines.send(arguments)
            return lines.receive()

        yield function


class _Lines:
    """Values as lines of literals over a socket, until a deadline (seconds from now)."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self.connection = connection
        self.deadline = time.monotonic() + seconds
        self.received = b""

    def send(self, value: Any) -> None:
        self._wait_at_most()
        self.connection.sendall(ascii(value).encode() + b"\n")

    def receive(self) -> Any:
        while b"\n" not in self.received:
            self._wait_at_most()
            part = self.connection.recv(LONGEST)
            self.received += part
            if not part or len(self.received) > LONGEST:
                raise EOFError("no answer, or too long a one")
        line, self.received = self.received.split(b"\n", 1)
        return ast.literal_eval(line.decode())

    def _wait_at_most(self) -> None:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.connection.settimeout(left)


@contextlib.contextmanager
def _process(folder: str, connection: socket.socket) -> Iterator[subprocess.Popen]:
    """The worker, with a connection as its standard input; nothing of its group is left."""
    with subprocess.Popen(
        [*sandbox(folder), *_python(inspect.getsource(worker))],
        stdin=connection.fileno(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=folder,
        env=_environment(folder),
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            _end(process)


def _end(process: subprocess.Popen) -> str:
    """Kill a process and its group; returns what it has said."""
    # not yet waited for, so that its number cannot belong to another group
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    assert process.stderr is not None
    return process.stderr.read().decode(errors="replace")  # ends with the last process in a sandbox


@contextlib.contextmanager
def _folder() -> Iterator[str]:
    folder = tempfile.TemporaryDirectory(prefix="plop_nb_", ignore_cleanup_errors=True)
    try:
        yield folder.name
    finally:
        try:
            folder.cleanup()
        except RecursionError:  # folders within folders, a thousand deep
            subprocess.run(["rm", "-rf", folder.name], check=False)


def _environment(folder: str) -> dict[str, str]:
    bare = {"PATH": os.defpath, "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8"}
    if "LD_LIBRARY_PATH" in os.environ:  # some interpreters do not start without
        bare["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    return bare


def _python(program: str) -> list[str]:
    """The interpreter without its environment and packages, to run a program."""
    return [os.path.realpath(sys.executable), "-I", "-S", "-c", program]


def sandbox(folder: str) -> list[str]:
    """The beginning of a command that bubblewrap runs, or nothing where it does not work."""
    bwrap = shutil.which("bwrap")
    return _bubblewrap(bwrap, folder) if bwrap and _works(bwrap) else []


@functools.cache
def _works(bwrap: str) -> bool:
    """Whether bubblewrap can run Python here; many containers do not let it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*_bubblewrap(bwrap, folder), *_python("pass")]
        tried = subprocess.run(command, capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        said = tried.stderr.strip()[-200:]
        text = f"{bwrap} does not work here, so generated code runs without it: {said}"
        warnings.warn(text, stacklevel=user_level())
    return tried.returncode == 0


def _bubblewrap(bwrap: str, folder: str) -> list[str]:
    command = [bwrap, "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    for path in ("/usr", "/lib", "/lib64", sys.base_prefix):
        command += ["--ro-bind-try", path, path]
    for packages in site.getsitepackages([sys.base_prefix]):  # HumanEval's solutions may be there
        if os.path.isdir(packages):
            command += ["--tmpfs", packages]
    command += ["--dev", "/dev", "--bind", folder, folder, "--chdir", folder]
    return [*command, "--remount-ro", "/"]
