"""Data files to rows: what a file is, by its contents first and by its name second."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ptune.data import foreign
from ptune.data.arrow_rows import ARROW, ARROW_STREAM, PARQUET, arrow_kind, read_arrow
from ptune.data.delimited import looks_like_table, read_delimited
from ptune.data.encodings import find_encoding, read_text, split_lines
from ptune.data.json_rows import read_json
from ptune.data.rows import MAX_RECORD, Rows
from ptune.data.source import Source, open_source
from ptune.errors import DataError

FORMATS = "JSON, JSON Lines, CSV, TSV or Parquet"
JSON_ENDINGS = ("json", "jsonl", "ndjson")
TABLE_ENDINGS = ("csv", "tsv")
ARROW_ENDINGS = ("parquet", "arrow", "feather")
PACKED_ENDINGS = ("gz", "bz2", "xz")
JSON, TABLE = "JSON", "a table"
# By what a file holds, the endings that lead nobody astray; Feather is Arrow.
_FITTING = {
    JSON: JSON_ENDINGS,
    TABLE: TABLE_ENDINGS,
    PARQUET: ("parquet",),
    ARROW: ("arrow", "feather"),
    ARROW_STREAM: ("arrow", "feather"),
}
# How a line of JSON records begins, or the first line of an array or of an object.
_JSON_START = re.compile(r'^[ \t]*(\{[ \t\r]*(["}]|$)|\[[ \t\r]*([\[{\]"]|$))', re.MULTILINE)


@dataclass(frozen=True)
class DataFile:
    """An opened data file.

    Attributes:
        rows: What it holds, to be read once.
        is_table: Whether it is CSV or TSV, whose fields are all text.
    """

    rows: Rows
    is_table: bool


def ending(path: Path) -> str:
    """The ending of a name that tells the format, in small letters: without one of compression."""
    parts = path.name.lower().split(".")[1:]
    while parts and parts[-1] in PACKED_ENDINGS:
        parts.pop()
    return parts[-1] if parts else ""


@contextmanager
def open_data_file(path: Path, notices: list[str]) -> Iterator[DataFile]:
    """Opens a data file and tells what it is.

    Args:
        path: The file.
        notices: Is told what deserves attention but stops nothing, now and while rows are read.

    Raises:
        DataError: It cannot be opened, or is no data file; later, that it cannot be read on.
    """
    with open_source(path) as source:
        named = ending(path)
        if kind := foreign.kind_by_contents(source.head, named):
            raise _refuse(source, foreign.explain(kind))
        if layout := arrow_kind(source.head):
            _note_name(source, named, layout, notices)
            yield DataFile(read_arrow(source, layout), is_table=False)
            return
        encoding = find_encoding(source.head, source.is_all)
        if encoding is None:
            raise _refuse(source, _explain(named, f"not text; pass {FORMATS}"))
        texts = read_text(source, encoding, notices)
        head = next(texts, "")
        is_table = _is_table(source, named, head)
        texts = itertools.chain([head], texts)
        _note_name(source, named, TABLE if is_table else JSON, notices)
        if is_table:
            usual = "\t" if named == "tsv" else ","
            yield DataFile(read_delimited(source.name, texts, usual), is_table)
        else:
            yield DataFile(read_json(source.name, texts, notices), is_table)


def read_lines(path: Path) -> Iterator[str]:
    """Yields the lines of a text file in UTF-8, perhaps compressed: with their ends, without a BOM.

    Raises:
        DataError: The file cannot be read, or is not in UTF-8.
    """
    notices: list[str] = []
    with open_source(path) as source:
        texts = read_text(source, "utf-8", notices)
        for number, line in enumerate(split_lines(source.name, texts), 1):
            if notices:
                raise DataError(
                    f"{source.name}:{number}: not UTF-8 but GB18030 (GBK); convert the file with "
                    f"`iconv -f GB18030 -t UTF-8`"
                )
            yield line


def read_whole_text(path: Path, notices: list[str], what: str = "context file") -> str:
    """Reads a text, such as one that questions are about, in an encoding that data files may have.

    Args:
        path: The file, perhaps compressed.
        notices: Is told if it was not UTF-8 and no mark in the file says what it is.
        what: The file is, in errors.

    Raises:
        DataError: It cannot be read, is no text, blank, or longer than any context.
    """
    with open_source(path, what) as source:
        what = f"{what} {source.name}"
        kind = foreign.kind_by_contents(source.head, ending(path))
        encoding = find_encoding(source.head, source.is_all)
        if (kind and kind not in foreign.READABLE) or encoding is None:
            found = foreign.describe(kind) if kind else "binary data"
            raise DataError(f"{what} is {found}, not text; save its text and name that file")
        pieces, size = list[str](), 0
        for piece in read_text(source, encoding, notices):
            pieces.append(piece)
            if (size := size + len(piece)) > MAX_RECORD:
                raise DataError(
                    f"{what} has more than {MAX_RECORD:,} characters; name one with the part that "
                    f"matters"
                )
    text = "".join(pieces)
    if "\0" in text:
        raise DataError(f"{what} holds the character NUL, which no text has; name a text file")
    if not text.strip():
        raise DataError(f"{what} is empty; write the text into it, or leave it out")
    return text


def _is_table(source: Source, named: str, head: str) -> bool:
    """Whether a text is a table; else it is JSON, or blank.

    Raises:
        DataError: It is neither.
    """
    if _JSON_START.match(head.lstrip()):
        return False
    if named in TABLE_ENDINGS or not head.strip():
        return named in TABLE_ENDINGS
    if named in JSON_ENDINGS and _JSON_START.search(head):
        return False  # the first record is broken
    if head.lstrip().startswith(("{", "[")):
        return False
    if looks_like_table(head):
        return True
    if named in JSON_ENDINGS:
        return False
    raise _refuse(source, _explain(named, f"plain text without columns; pass {FORMATS}"))


def _note_name(source: Source, named: str, found: str, notices: list[str]) -> None:
    """Says so where the name of a file tells another format than it has."""
    others = {*JSON_ENDINGS, *TABLE_ENDINGS, *ARROW_ENDINGS} - {*_FITTING[found]}
    if named in others or foreign.kind_by_name(named):
        notices.append(f"{source.name} holds {found}, whatever its name says, and is read so")


def _explain(named: str, otherwise: str) -> str:
    kind = foreign.kind_by_name(named)
    return foreign.explain(kind) if kind else otherwise


def _refuse(source: Source, why: str) -> DataError:
    return DataError(f"data file {source.name} is {why}")
