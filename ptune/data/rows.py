"""Rows: what the records of a data file are before their columns are looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from ptune.errors import DataError

# A line of the file (of Parquet and Arrow the number of the record), and the value that starts
# there; a `BadRecord` where the text could not be parsed.
Row = tuple[int, Any]
Rows = Iterator[Row]

# Of one line or one JSON value, in characters: what is longer is no record, and reading it would
# fill the memory.
MAX_RECORD = 64 * 2**20


class BadRecord(ValueError):
    """One record cannot be used; the message leaves out file and line."""


def check_names(where: str, names: Iterable[str]) -> None:
    """Refuses two columns of one name, of which a record could have one only.

    Raises:
        DataError: A name occurs twice.
    """
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{where}: column {twice!r} occurs twice; rename one")
