"""Text files to lines, data files to rows: JSON array, JSON Lines and CSV, plain or gzipped."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ptune.errors import DataError

_ARRAY_MARK = re.compile(r"[ \t\r\n]*([\[\],]?)[ \t\r\n]*")


class BadRecord(ValueError):
    """One record cannot be used; the message leaves out file and line."""


def check_file(path: Path) -> None:
    """Refuses what is no data file.

    Raises:
        DataError: It is not there, a folder, or empty.
    """
    if not path.exists():
        raise DataError(f"data file {path} does not exist; check the path")
    if path.is_dir():
        raise DataError(f"data file {path} is a directory; name a file in it")
    if path.is_file() and path.stat().st_size == 0:
        raise DataError(f"data file {path} is empty; write records into it or leave it out")


def read_lines(path: Path) -> Iterator[str]:
    """Yields the lines of a plain or gzipped UTF-8 file, line ends kept, without a BOM.

    Raises:
        DataError: The file cannot be read, or is not UTF-8.
    """
    offset = number = 0
    try:
        with (
            path.open("rb") as raw,
            gzip.open(raw) if raw.peek(2)[:2] == b"\x1f\x8b" else raw as data,
        ):
            for number, line in enumerate(data, 1):
                text = line.decode("utf-8")
                offset += len(line)
                yield text.removeprefix("\ufeff") if number == 1 else text
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}:{number}: byte 0x{error.object[error.start]:02x} at byte offset "
            f"{offset + error.start} of the text is not UTF-8; convert the file, for example "
            f"from GBK with `iconv -f GB18030 -t UTF-8`"
        ) from error
    except (OSError, EOFError, zlib.error) as error:  # the last two: damaged gzip data
        place = f"{path}:{number + 1}" if number else path
        raise DataError(f"{place}: cannot be read ({error}); check the file") from error


def read_rows(path: Path, is_csv: bool) -> Iterator[tuple[int, Any]]:
    """Yields the rows of a data file: line and value.

    Args:
        path: The file.
        is_csv: Whether it is CSV; else it is a JSON array or JSON Lines.

    Returns:
        Pairs of line number and value; a `BadRecord` where the text could not be parsed.

    Raises:
        DataError: The file cannot be read on.
    """
    lines = read_lines(path)
    if is_csv:
        yield from _parse_csv(path, lines)
        return
    start: list[str] = []
    for line in lines:
        start.append(line)
        if line.strip():
            break
    first = start[-1].strip() if start else ""
    lines = itertools.chain(start, lines)
    if first.startswith("["):
        yield from _parse_array(path, "".join(lines))
    elif first == "{":
        raise DataError(
            f"{path}:{len(start)}: one JSON object over several lines is not a list of records; "
            f"put the records into a JSON array or write one record per line"
        )
    else:
        yield from _parse_json_lines(lines)


def _parse_json_lines(lines: Iterator[str]) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:  # not only JSONDecodeError: also huge numbers
            place = getattr(error, "pos", 0) + 1
            value = BadRecord(f"broken JSON ({getattr(error, 'msg', error)} at character {place})")
        yield number, value


def _parse_array(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """Decodes element by element, because only so each record's line is known.

    A syntax error ends it: where the next record starts can then only be guessed.
    """
    decoder = json.JSONDecoder()
    mark, position, counted, line = *_read_mark(text, 0), 0, 1
    if text.startswith("]", position):
        mark, position = _read_mark(text, position)
    while mark != "]":
        line += text.count("\n", counted, position)
        counted = position
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            problem = str(getattr(error, "msg", error))
            raise _broken_array(path, text, getattr(error, "pos", position), problem) from error
        yield line, value
        mark, position = _read_mark(text, position)
        if mark not in (",", "]"):
            raise _broken_array(path, text, position, "',' or ']' expected after a record")
    if position < len(text):
        raise _broken_array(path, text, position, "more text after the end of the array")


def _read_mark(text: str, position: int) -> tuple[str, int]:
    """Returns the bracket or comma at a position ("" if there is none) and where it goes on."""
    match = _ARRAY_MARK.match(text, position)
    assert match is not None  # the pattern matches the empty string too
    return match[1], match.end()


def _broken_array(path: Path, text: str, position: int, problem: str) -> DataError:
    line = 1 + text.count("\n", 0, position)
    return DataError(f"{path}:{line}: broken JSON array ({problem}); mend it, it cannot be skipped")


def _parse_csv(path: Path, lines: Iterator[str]) -> Iterator[tuple[int, Any]]:
    reader = csv.reader(lines, strict=True)
    header: list[str] = []
    while True:
        line = reader.line_num + 1  # where the record starts: a quoted field may hold line ends
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, BadRecord(f"not readable as CSV ({error})")
            continue
        if not header:
            header = [name.strip() for name in row]
            twice = sorted({name for name in header if header.count(name) > 1})
            if twice:
                raise DataError(f"{path}:{line}: column {twice[0]!r} occurs twice; rename one")
        elif row and len(row) != len(header):
            yield line, BadRecord(f"expected {len(header)} fields, found {len(row)}")
        elif row:  # a blank line gives no fields at all
            yield line, dict(zip(header, row, strict=True))
