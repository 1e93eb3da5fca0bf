"""On-disk cache of compiled kernels and probe results; losing it does no harm."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

DIGEST_SIZE = hashlib.sha256().digest_size


def read_cached(file: Path) -> bytes | None:
    """Return the content of a cached file, or None if it is absent or damaged.

    Machine code is verified here, because a driver that is given damaged code may not survive it.
    """
    try:
        stored = file.read_bytes()
    except OSError:
        return None
    digest, content = stored[:DIGEST_SIZE], stored[DIGEST_SIZE:]
    return content if hashlib.sha256(content).digest() == digest else None


def write_cached(file: Path, content: bytes) -> None:
    """Write a file of the cache atomically; several processes may do so at once."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    except OSError:
        return  # a read-only home costs time, no more
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(hashlib.sha256(content).digest() + content)
        os.replace(partial, file)
    except OSError:
        Path(partial).unlink(missing_ok=True)
