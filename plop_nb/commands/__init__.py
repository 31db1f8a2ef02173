"""The command `plop-nb`, which is also `python -m plop_nb`: score, coverage, notebooks."""

import argparse
import importlib
import sys
from collections.abc import Sequence

# What each is for; its module is imported when it is asked for, because torch takes seconds.
COMMANDS = {
    "score": "score a model's maps on texts, and place adapters on the lowest-scoring types",
    "coverage": "what an adapter or its configuration really hits in a model",
    "notebooks": "copy the course's notebooks into a folder",
}
# What a user can cause. Anything else is a bug: it shows its traceback.
FAILURES = (OSError, ValueError, TypeError, RuntimeError, ImportError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default those of the command line. Without the name of a command, `score` is meant.

    Returns
    -------
    int
        Its exit code: 0 done, 1 failed (or, of `coverage`, an entry that hits nothing), 130
        interrupted (2, from argparse: bad arguments).
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    name, rest = (given[0], given[1:]) if given and given[0] in COMMANDS else ("", given)
    if not given:
        _overview().error(f"a COMMAND is missing, choose from {', '.join(COMMANDS)}")
    if given[0] in ("-h", "--help"):
        _overview().print_help()
        return 0
    if name != "notebooks" and "torch" not in sys.modules:  # these seconds would be silent
        print("plop_nb: loading PyTorch and transformers", file=sys.stderr)
    command = importlib.import_module(f"plop_nb.commands.{name or 'score'}")
    program = f"plop-nb {name}".strip()
    parser = argparse.ArgumentParser(program, description=f"{COMMANDS[name or 'score']}.")
    command.add_arguments(parser)
    read = parser.parse_args(rest)
    try:
        return command.run(read)
    except FAILURES as error:
        print("plop_nb:", " ".join(str(error).split()), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("plop_nb: interrupted", file=sys.stderr)
        return 130


def _overview() -> argparse.ArgumentParser:
    """What `plop-nb --help` shows."""
    lines = [f"  {name:10s} {told}" for name, told in COMMANDS.items()]
    return argparse.ArgumentParser(
        "plop-nb",
        usage="plop-nb COMMAND ...",
        description="Where do the LoRA adapters go?\n\n" + "\n".join(lines),
        epilog="plop-nb COMMAND --help shows the rest; without a COMMAND, score is meant.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
