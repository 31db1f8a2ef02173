"""Texts in files of one's own: lines, JSON lines, tables."""

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO


def read_texts(path: str | Path, column: str | None = None) -> list[str]:
    """The texts in a file of one's own, in its order.

    Parameters
    ----------
    path : str or Path
        A UTF-8 file: `.txt` (each line a text), `.jsonl` (each line a string, or an object), or
        `.csv` (with a header). Blank lines are left out.
    column : str, optional
        The key of the text in an object, or its column in a CSV file; by default "text".

    Returns
    -------
    list of str

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        Another ending or encoding, no texts, a line that gives none or has too many or too few
        cells (names the line), a header that names a column twice, a quote without its end, or a
        `column` of a `.txt` file.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending not in READERS:
        raise ValueError(f"{path} ends in {path.suffix!r}, expected one of {', '.join(READERS)}")
    if column is not None and ending == ".txt":
        raise ValueError(
            f"column={column!r}, but {path} has no columns, "
            "each of its lines is a text: leave it out"
        )
    read, texts = READERS[ending], []
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            for number, row in read(file):
                texts.append(_text(number, row, column or "text"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 ({error}): save it as UTF-8") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    if not texts:
        raise ValueError(f"{path} holds no texts: write one on each line")
    return texts


# Files


def _lines(file: TextIO) -> Iterator[tuple[int, str]]:
    """Number and text of the lines that are not blank."""
    for number, line in enumerate(file, 1):
        if line.strip():
            yield number, line.rstrip("\r\n")


def _objects(file: TextIO) -> Iterator[tuple[int, Any]]:
    """Line number and value of the lines of a `.jsonl` file."""
    for number, line in _lines(file):
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:  # which long numbers and deep lists give
            reason = getattr(error, "msg", error)
            raise ValueError(
                f"line {number} is not JSON ({reason}): each line is a string or an object"
            ) from error


def _records(file: TextIO) -> Iterator[tuple[int, dict]]:
    """Line number and cells of the records of a `.csv` file."""
    names: list[str] = []
    for number, cells in _cells(file):
        if not names:
            names = _header(cells)
            continue
        if len(cells) != len(names):
            count = "more" if len(cells) > len(names) else "fewer"
            raise ValueError(
                f"line {number} has {count} cells than the header: "
                'correct it (a text that holds a comma goes between "quotes")'
            )
        yield number, dict(zip(names, cells, strict=True))


def _cells(file: TextIO) -> Iterator[tuple[int, list[str]]]:
    """Number of the last line, and cells, of the records that are not blank."""
    reader, before = csv.reader(file, strict=True), 0
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
            before = reader.line_num
    except csv.Error as error:
        raise ValueError(
            f"{error}, in the record that begins on line {before + 1}: correct it "
            '(a text that holds a quote goes between "quotes", and each quote in it is doubled)'
        ) from error


def _header(names: list[str]) -> list[str]:
    """The names of the columns, which are all different, but for blank ones."""
    doubled = [name for name, count in Counter(names).items() if name and count > 1]
    if doubled:
        raise ValueError(f"the header names {doubled[0]!r} more than once: rename the others")
    return names


READERS = {".txt": _lines, ".jsonl": _objects, ".csv": _records}


def _text(number: int, row: Any, column: str) -> str:
    """The text in one line of a file."""
    if isinstance(row, dict) and column not in row:
        raise ValueError(f"line {number} has no column {column!r}, choose from {list(row)}")
    text = row[column] if isinstance(row, dict) else row
    if not isinstance(text, str) or not text.strip():
        raise ValueError(
            f"line {number} holds {text!r:.40}, expected a text: correct it, or leave it out"
        )
    if "\0" in text:
        raise ValueError(
            f"line {number} holds a NUL character ({text!r:.40}): save the file as UTF-8, or take "
            "the character out"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"line {number} holds {text[error.start]!r}, half of a pair of surrogates, which no "
            "tokenizer takes: correct it, or leave it out"
        ) from error
    return text
