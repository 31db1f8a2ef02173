"""The tests under the arithmetic of other processors, on this one.

    python -m tests.arithmetic                              all notebooks under every setting
    python -m tests.arithmetic --settings old --tests notebooks/07_explore_your_model.ipynb

The last digits of a result depend on the order in which a processor adds, and so on its vector
width and the number of threads. Each setting makes torch, its matrix products, and numpy add in
another order.
"""

import argparse
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
X86 = platform.machine() in ("x86_64", "AMD64")
SETTINGS = {
    # An x86 processor of 2013 or later without AVX-512: every AMD before 2022, and most laptops.
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
        "NPY_DISABLE_CPU_FEATURES": "X86_V4,AVX512_ICL,AVX512_SPR",
    },
    # No vector instructions beyond those of 2008, except in torch's matrix products: those take
    # many minutes without AVX2. One thread.
    "old": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_CBWR": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "OPENBLAS_CORETYPE": "Nehalem",
        "NPY_DISABLE_CPU_FEATURES": "X86_V3,X86_V4,AVX512_ICL,AVX512_SPR",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    },
    # `make test` gives each of its two workers half of the cores: one, where there are two.
    "two-threads": {"OMP_NUM_THREADS": "2"},
}


def run(setting: str, tests: list[str]) -> int:
    """Exit status of pytest on `tests` under one of the `SETTINGS`."""
    environment = {**os.environ, **SETTINGS[setting]}
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *tests]
    return subprocess.run(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL).returncode


def main() -> None:
    """Run the tests that the command line names under one setting after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    suitable = list(SETTINGS) if X86 else ["two-threads"]
    parser.add_argument(
        "--settings", nargs="+", choices=SETTINGS, default=suitable,
        help="all that suit this processor",
    )  # fmt: skip
    parser.add_argument("--tests", nargs="+", default=["notebooks"], help="files for pytest")
    given = parser.parse_args()
    failed = []
    for setting in given.settings:
        changes = [f"{name}={value}" for name, value in SETTINGS[setting].items()]
        print(f"\n{setting}: {' '.join(changes)}", flush=True)
        start = time.time()
        verdict = "passed"
        if run(setting, given.tests):
            failed.append(setting)
            verdict = "FAILED"
        print(f"{setting}: {verdict} in {time.time() - start:.0f} s", flush=True)
    sys.exit(f"failed under {failed}" if failed else 0)


if __name__ == "__main__":
    main()
