"""Tables written as text to rows: CSV, TSV, and CSV with semicolons."""

from __future__ import annotations

import csv
import itertools
import re
import threading
from collections.abc import Iterator
from typing import Any

from ptune.data.encodings import split_lines
from ptune.data.rows import MAX_RECORD, BadRecord, Rows, check_names
from ptune.errors import DataError

_DELIMITERS = (",", "\t", ";")
# A first line that Excel writes and reads.
_NAMED = re.compile(r"""["']?sep=([^\w\s"'\0]|\t)["']?\s*""", re.IGNORECASE)
_MAX_NAME = 100  # characters of a column's name
_SHOWN = 30
_ROWS_AT_ONCE = 16
_FIELD_LIMIT = threading.Lock()


def looks_like_table(text: str) -> bool:
    """Whether text begins with two lines of equally many fields, more than one."""
    lines = [line for line in text.split("\n", 100) if line.strip()][:2]
    delimiter = _find_delimiter(lines[0], ",")
    counts = {_count_fields(line, delimiter) for line in lines}
    return len(counts) == 1 and max(counts) > 1


def read_delimited(name: str, texts: Iterator[str], usual: str) -> Rows:
    """Yields the rows of a table by the names in its first line.

    Args:
        name: Of the file, as messages show it.
        texts: Its text in pieces.
        usual: The delimiter where the first line does not tell.

    Raises:
        DataError: The first line is no header, or the file cannot be read on.
    """
    lines = split_lines(name, texts)
    first = next(lines, "")
    if named := _NAMED.fullmatch(first):
        delimiter, first = named[1], "\n"
    else:
        delimiter = _find_delimiter(first, usual)
    reader = csv.reader(itertools.chain([first], lines), strict=True, delimiter=delimiter)
    header: list[str] = []
    while rows := _next_rows(reader):
        for line, row in rows:
            if isinstance(row, BadRecord):
                yield line, row
            elif not any(map(str.strip, row)):
                continue  # spreadsheets write lines of delimiters
            elif header:
                yield line, _name_fields(header, row)
            else:
                header = _read_header(f"{name}:{line}", row)


def _find_delimiter(line: str, usual: str) -> str:
    """The delimiter that makes most columns of a header."""
    return max(_DELIMITERS, key=lambda d: (_count_fields(line, d), d == usual))


def _count_fields(line: str, delimiter: str) -> int:
    rows = _next_rows(csv.reader([line], delimiter=delimiter))
    return len(rows[0][1]) if rows and isinstance(rows[0][1], list) else 0


def _next_rows(reader: Any) -> list[tuple[int, list[str] | BadRecord]]:
    """Reads some rows, none at the end, each with its first line.

    Their fields may be of any length: the limit is the whole program's, and put back.
    """
    rows: list[tuple[int, list[str] | BadRecord]] = []
    with _FIELD_LIMIT:
        before = csv.field_size_limit(MAX_RECORD)
        try:
            while len(rows) < _ROWS_AT_ONCE:
                line = reader.line_num + 1  # a quoted field may hold line ends
                try:
                    rows.append((line, next(reader)))
                except csv.Error as error:
                    # A quote that nobody closes swallows what follows.
                    last = reader.line_num
                    span = f", from here to line {last}" if last > line else ""
                    rows.append((line, BadRecord(f"not readable as CSV ({error}{span})")))
        except StopIteration:
            pass
        finally:
            csv.field_size_limit(before)
    return rows


def _read_header(where: str, row: list[str]) -> list[str]:
    if longest := max((name for name in row if len(name) > _MAX_NAME), default=""):
        raise DataError(
            f"{where}: {longest[:_SHOWN]!r}... is no column name; write the column names above it"
        )
    header = [name.strip() for name in row]
    check_names(where, filter(None, header))
    return header


def _name_fields(header: list[str], row: list[str]) -> dict[str, str] | BadRecord:
    """Gives the fields of a row their names; spreadsheets add empty columns at the end."""
    if len(row) == len(header) and all(header) and "\0" not in "".join(row):
        return dict(zip(header, row, strict=True))
    if len(row) < len(header) or any(map(str.strip, row[len(header) :])):
        return BadRecord(f"expected {len(header)} fields, found {len(row)}")
    fields = {}
    for number, (name, field) in enumerate(zip(header, row, strict=False), 1):
        if name:
            fields[name] = field
        elif field.strip() and not (number == 1 and field.isdecimal()):  # numbers are of pandas
            found = repr(field[:_SHOWN])
            return BadRecord(f"column {number} has no name in the first line and holds {found}")
        if "\0" in field:
            return BadRecord(f"column {name!r} holds the character NUL")
    return fields
