"""Parquet and Arrow files to rows; pyarrow is imported when there is one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ptune.data.rows import Rows, check_names
from ptune.data.source import Source
from ptune.errors import DataError

PARQUET, ARROW, ARROW_STREAM = "Parquet", "Arrow", "Arrow stream"
_MAGIC = {PARQUET: b"PAR1", ARROW: b"ARROW1\0\0", ARROW_STREAM: b"\xff\xff\xff\xff"}
_ROWS_AT_ONCE = 1000


def arrow_kind(head: bytes) -> str | None:
    """Tells by the first bytes which of these formats a file has, if any."""
    return next((kind for kind, magic in _MAGIC.items() if head.startswith(magic)), None)


def read_arrow(source: Source, kind: str) -> Rows:
    """Yields the records of a file: their number, and their columns as Python values.

    Raises:
        DataError: The file is damaged, or no file on a disk.
    """
    import pyarrow

    if source.packed or source.size is None:
        how = f"compressed with {source.packed}" if source.packed else "a pipe"
        advice = "unpack it" if source.packed else "save it"
        raise DataError(
            f"data file {source.name} is {kind} and {how}; it is read from a plain file only: "
            f"{advice}"
        )
    number = 0
    try:
        for batch in _read_batches(source, kind):
            check_names(source.name, batch.schema.names)
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"{source.name}: {kind} cannot be read on after record {number} ({reason}); "
            f"get or write the file anew"
        ) from error


def _read_batches(source: Source, kind: str) -> Iterator[Any]:
    """Yields batches of few records each, so that memory does not grow with the file."""
    import pyarrow
    import pyarrow.parquet

    # A file of Python's: Arrow takes no name that is not UTF-8.
    with source.path.open("rb") as file:
        if kind == PARQUET:
            # Not ahead by a whole row group, as Arrow would for distant disks.
            with pyarrow.parquet.ParquetFile(
                file, pre_buffer=False, page_checksum_verification=True
            ) as table:
                yield from table.iter_batches(_ROWS_AT_ONCE, use_threads=False)
            return
        if kind == ARROW:
            reader = pyarrow.ipc.open_file(file)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            batches = iter(pyarrow.ipc.open_stream(file))
        for batch in batches:
            batch.validate(full=True)  # else damaged offsets lead anywhere
            for begin in range(0, batch.num_rows, _ROWS_AT_ONCE):
                yield batch.slice(begin, _ROWS_AT_ONCE)
