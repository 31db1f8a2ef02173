"""Install packages into a virtual environment, and say meanwhile what is done.

    python notebooks/tools/install.py .venv ".[finetune,notebooks]" --cpu

Needs nothing but Python. Of what pip prints, the downloads of a megabyte or more are shown, and its
errors; the rest is in `pip.log` in the environment.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
LARGE = re.compile(r"\s*(Downloading|Using cached) (?P<file>\S+) \((?P<size>[\d.]+ [MG]B)\)")
ALARMS = ("ERROR", "error:")
PAUSE = 10  # seconds after which a sign of life is printed


def install(folder: Path, wanted: str, cpu: bool) -> int:
    """Make the environment, install what is wanted, and print what happens. Pip's exit code."""
    start = time.time()
    print(f"Making {folder}: a few seconds", flush=True)
    made = subprocess.run([sys.executable, "-m", "venv", folder])
    if made.returncode:  # it has said why
        return made.returncode
    print(f"Choosing versions, and downloading {wanted}: one to ten minutes", flush=True)
    command = [python_of(folder), "-m", "pip", "install", "--progress-bar", "off"]
    command += ["-c", ROOT / ".ci" / "constraints.txt", "-e", f"{ROOT}{wanted.removeprefix('.')}"]
    if cpu:
        command += ["--extra-index-url", CPU_INDEX]
    code = follow(command, folder / "pip.log")
    if code:
        print(f"Installing failed: the reason is above, and all of it in {folder / 'pip.log'}")
    else:
        print(f"Installed in {time.time() - start:.0f} s")
    return code


def follow(command: list, path: Path) -> int:
    """Run pip, write all that it prints into a file and what is telling to the screen."""
    unbuffered = {**os.environ, "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "env": unbuffered}
    looked_up, printed = 0, time.time()
    with (
        subprocess.Popen(command, text=True, errors="replace", **pipes) as pip,
        open(path, "w", encoding="utf-8", buffering=1) as log,
    ):
        for line in pip.stdout:
            log.write(line)
            looked_up += line.startswith("Collecting ")
            told = telling(line)
            if not told and time.time() - printed > PAUSE:
                told = f"packages looked up: {looked_up}"
            if told:
                print(f"  {told}", flush=True)
                printed = time.time()
    return pip.returncode


def python_of(folder: Path) -> Path:
    """The Python of a virtual environment."""
    windows = folder / "Scripts" / "python.exe"
    return windows if windows.exists() else folder / "bin" / "python"


def telling(line: str) -> str:
    """What a user wants to read of a line that pip prints, or nothing."""
    if large := LARGE.match(line):
        return f"{large['file'].rsplit('/', 1)[-1]}, {large['size']}"
    if line.startswith("Installing collected packages:"):
        count = line.count(",") + 1
        return f"unpacking {count} packages: half a minute to two, without further lines"
    return line.strip() if line.strip().startswith(ALARMS) else ""


def main() -> None:
    """Install what the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the environment, which is made where it is not")
    parser.add_argument("wanted", help="the project with extras, such as '.[dev]'")
    parser.add_argument("--cpu", action="store_true", help="PyTorch's build for CPUs (Linux)")
    given = parser.parse_args()
    sys.exit(install(given.folder, given.wanted, given.cpu))


if __name__ == "__main__":
    main()
