"""An opened data file: its bytes in blocks, unpacked where it is compressed."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ptune.errors import DataError
from ptune.files.names import shown

BLOCK = 2**18  # bytes; more is not faster
# By the first bytes; a name may say anything.
_UNPACK: dict[str, tuple[re.Pattern[bytes], Callable[[Any], Any]]] = {
    "gzip": (re.compile(rb"\x1f\x8b"), gzip.open),
    "bzip2": (re.compile(rb"BZh[1-9]1AY&SY"), bz2.open),
    "xz": (re.compile(rb"\xfd7zXZ\x00"), lzma.open),
}
# What the readers raise, too, where the compressed data is damaged.
READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)


@dataclass
class Source:
    """An opened data file.

    Attributes:
        path: where it is.
        name: the path as messages show it.
        packed: how it is compressed; "" if it is not.
        size: when it was opened, in bytes; None for a pipe or a device, which is read only once.
        head: its first block, unpacked.
        is_all: whether nothing follows the head.
    """

    path: Path
    name: str
    packed: str
    size: int | None
    head: bytes
    is_all: bool
    _file: io.BufferedReader
    _unpacked: Any

    def blocks(self) -> Iterator[bytes]:
        """Yields the unpacked bytes from the beginning, once.

        Raises:
            DataError: The file is being written.
            READ_ERRORS: It cannot be read, or is damaged; the reader knows the line.
        """
        yield self.head
        while block := self._unpacked.read(BLOCK):
            # A writer that is faster than we are would keep us here for ever.
            if self.size is not None and self._file.tell() > self.size:
                break
            yield block
        if self.size not in (None, os.fstat(self._file.fileno()).st_size):
            raise DataError(f"{self.name} is being written; start again when it is complete")


def check_file(path: Path) -> None:
    """Refuses what cannot be opened as a data file.

    Raises:
        DataError: It is not there, or empty.
    """
    name = shown(path)
    try:
        status = path.stat()
    except FileNotFoundError:
        raise _absent(path) from None
    except (OSError, ValueError) as error:  # the second: a name that no system has
        raise _unreadable(name, error) from error
    if stat.S_ISREG(status.st_mode) and status.st_size == 0:
        raise DataError(f"data file {name} is empty; write records into it or leave it out")


@contextmanager
def open_source(path: Path, what: str = "data file") -> Iterator[Source]:
    """Opens a data file.

    Args:
        path: The file.
        what: How messages call it.

    Raises:
        DataError: It cannot be opened, or its beginning cannot be read.
    """
    name = shown(path)
    try:
        file = cast("io.BufferedReader", path.open("rb", buffering=BLOCK))
    except FileNotFoundError:
        raise _absent(path, what) from None
    except (OSError, ValueError) as error:
        raise _unreadable(name, error, what) from error
    with file:
        status = os.fstat(file.fileno())
        size = status.st_size if stat.S_ISREG(status.st_mode) else None
        try:
            magic = file.peek(16)
            packed = next((kind for kind in _UNPACK if _UNPACK[kind][0].match(magic)), "")
            unpacked = _UNPACK[packed][1](file) if packed else file
            head = unpacked.read(BLOCK)
        except READ_ERRORS as error:
            raise _unreadable(name, error, what) from error
        yield Source(path, name, packed, size, head, len(head) < BLOCK, file, unpacked)


def _absent(path: Path, what: str = "data file") -> DataError:
    what = f"{what} {shown(path)}"
    if path.is_symlink():
        to = shown(path.readlink())
        return DataError(f"{what} is a link to {to}, which does not exist; mend it")
    return DataError(f"{what} does not exist; check the path")


def _unreadable(name: str, error: Exception, what: str = "data file") -> DataError:
    reason = getattr(error, "strerror", None) or error
    return DataError(f"{what} {name} cannot be read ({reason}); check the file and its rights")
