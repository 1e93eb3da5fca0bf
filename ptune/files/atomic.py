"""Files that are either there in full or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_text_atomically(file: Path, text: str) -> None:
    """Write `text` beside `file` and rename it, so that a crash leaves the old file or the new."""
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    # Half a surrogate pair stands for a byte of a file's name that is not UTF-8; so written, it is
    # what JSON writes for it.
    partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    partial.replace(file)
