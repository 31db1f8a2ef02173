"""nbval compares with outputs that run.py made: the same quiet environment for its kernels."""

import os

from run import QUIET

os.environ.update(QUIET)
