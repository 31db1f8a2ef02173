"""The tests under the arithmetic of other processors, on this one.

    python -m tests.arithmetic                                    all notebooks under every setting
    python -m tests.arithmetic old -- notebooks/04_what_nfn_measures.ipynb tests/test_nfn.py

The last digits of a result depend on the order in which a processor adds, and so on its vector width and the
number of threads. Each setting makes torch, its matrix products, and numpy add in another order. What this
processor cannot do is ignored by the libraries that are asked for it.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETTINGS = {
    # A processor of 2013 to today without AVX-512, such as every AMD before 2022 and most laptops.
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
        "NPY_DISABLE_CPU_FEATURES": "X86_V4,AVX512_ICL,AVX512_SPR",
    },
    # No vector instructions beyond those of 2008, except in torch's matrix products: without AVX2 they take
    # ten times as long. One thread.
    "old": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_CBWR": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "OPENBLAS_CORETYPE": "Nehalem",
        "NPY_DISABLE_CPU_FEATURES": "X86_V3,X86_V4,AVX512_ICL,AVX512_SPR",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    },
    # This processor with one thread where it had several, or two where it had one.
    "threads": {"OMP_NUM_THREADS": "2" if os.environ.get("OMP_NUM_THREADS") == "1" else "1"},
}


def run(setting, tests):
    """Exit status of pytest on `tests` under one of the `SETTINGS`."""
    environment = {**os.environ, **SETTINGS[setting]}
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *tests]
    return subprocess.run(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL).returncode


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help=f"of {', '.join(SETTINGS)}; all by default")
    arguments, tests = split(sys.argv[1:])
    settings = parser.parse_args(arguments).settings or list(SETTINGS)
    if unknown := set(settings) - set(SETTINGS):
        parser.error(f"no setting named {sorted(unknown)}, choose from {list(SETTINGS)}")
    failed = []
    for setting in settings:
        print(f"\n{setting}: {' '.join(f'{k}={v}' for k, v in SETTINGS[setting].items())}", flush=True)
        start = time.time()
        if run(setting, tests or ["notebooks"]):
            failed.append(setting)
        print(f"{setting}: {'FAILED' if setting in failed else 'passed'} in {time.time() - start:.0f} s", flush=True)
    sys.exit(f"failed under {failed}" if failed else 0)


def split(words):
    """What stands before and after `--`."""
    end = words.index("--") if "--" in words else len(words)
    return words[:end], words[end + 1 :]


if __name__ == "__main__":
    main()
