"""Locks that a dead process does not hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK_FILE = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep others from writing into a folder during the block; its `.lock` stays behind.

    Raises:
        BlockingIOError: another process is at it.
        OSError: the folder cannot be written.
    """
    lock = FileLock(folder / LOCK_FILE, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise BlockingIOError(f"{folder} is in use by another process") from error
    try:
        yield
    finally:
        lock.release()
