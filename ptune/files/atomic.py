"""Files and folders that are there in full or not at all, also after a loss of power.

What is written stands beside its place under a name that ends in `.partial`, is flushed to the
disk, and is renamed when it is complete.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PARTIAL = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.partial", re.DOTALL)
# What file systems answer that have no flushing of folders.
_UNSUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EISDIR, errno.EBADF}


@contextmanager
def writing(file: Path) -> Iterator[Path]:
    """Give a name to write to in the place of `file`, which is replaced at the end of the block.

    After an error the old file is left as it was.
    """
    partial = _partial_of(file)
    try:
        yield partial
        _flush(partial)
        partial.replace(file)
        _flush_folder(file.parent)
    finally:  # after the renaming there is nothing to remove
        partial.unlink(missing_ok=True)


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """Give an empty folder to fill, which becomes `folder` at the end of the block.

    Raises:
        OSError: there is something under that name already, or it cannot be written.
    """
    partial = _partial_of(folder)
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in sorted(partial.rglob("*"), reverse=True):
            (_flush_folder if path.is_dir() else _flush)(path)
        _flush_folder(partial)
        partial.rename(folder)
        _flush_folder(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text_atomically(file: Path, text: str) -> None:
    """Write a text file so that a crash leaves the old one or the new."""
    with writing(file) as partial:
        # Half a surrogate pair stands for a byte of a file's name that is not UTF-8; so written, it
        # is what JSON writes for it.
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def remove_folder(folder: Path) -> None:
    """Remove a folder so that a crash leaves no half of it under its name."""
    partial = _partial_of(folder)
    folder.rename(partial)
    shutil.rmtree(partial)


def partials(folder: Path, name: str | None = None) -> list[Path]:
    """What killed processes, or those still at work, have begun to write in a folder.

    Args:
        folder: to look in.
        name: of a file or folder that was to be written; None for any.
    """
    found = []
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            match = _PARTIAL.fullmatch(path.name)
            if match and name in (None, match["name"]):
                found.append(path)
    return found


def remove_partials(folder: Path) -> None:
    """Remove what killed processes have left half-written; nobody may be writing there now."""
    for path in partials(folder):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _partial_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


def _flush(file: Path) -> None:
    handle = os.open(file, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flush_folder(folder: Path) -> None:
    """Flush the names in a folder, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return
        raise
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(handle)
