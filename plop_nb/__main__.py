"""`python -m plop_nb`, which is the command `plop-nb`."""

import sys

from plop_nb.commands import main

if __name__ == "__main__":
    sys.exit(main())
