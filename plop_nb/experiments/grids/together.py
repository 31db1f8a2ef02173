"""Cells of a grid that several processes train together, where only the first has the storage."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from plop_nb.experiments.grids.cells import Cell, Row, run_cells
from plop_nb.processes import Process, this_process, told


def run_together(
    cells: Sequence[Cell], run: Callable[[Any], Row], *, progress: bool = True, **options: Any
) -> list[Row]:
    """`run_cells`, also under `accelerate launch`, where all processes run each cell at once.

    The first process has the storage: it tells the others which cell is next, and what was found.

    Parameters
    ----------
    cells, run, progress, **options
        As in `run_cells`; the cells are the same in all processes.

    Returns
    -------
    list of dict
        The same in all processes.

    Raises
    ------
    Exception
        What `run_cells` raises, in all processes.
    """
    process = this_process()
    if process.number == 1:
        return run_cells(cells, run, progress=progress, **options)
    if process.is_first:
        return _led(cells, run, progress=progress, **options)
    return _followed(cells, run, process)


def _led(cells: Sequence[Cell], run: Callable[[Any], Row], **options: Any) -> list[Row]:
    """The rows of all cells, each run together with the processes that follow."""

    def announced(number: int) -> Row:
        told(number)
        return run(cells[number].content)

    numbered = [replace(cell, content=number) for number, cell in enumerate(cells)]
    try:
        rows = run_cells(numbered, announced, **options)
    except BaseException as error:
        told(f"{type(error).__name__}: {error}")
        raise
    told(rows)
    return rows


def _followed(cells: Sequence[Cell], run: Callable[[Any], Row], process: Process) -> list[Row]:
    """The rows that the first process finds; runs what it runs in the meantime."""
    own_error = None
    while True:
        message = told()
        if isinstance(message, list):
            return message
        if isinstance(message, str):
            raise own_error or RuntimeError(
                f"the first of {process.number} processes has {message}"
            )
        try:
            run(cells[message].content)
        except Exception as error:
            own_error = error  # the first one has it too, and ends the grid
