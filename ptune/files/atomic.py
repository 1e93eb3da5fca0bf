"""Atomic file writes."""

from __future__ import annotations

import os
from pathlib import Path


def write_text_atomically(file: Path, text: str) -> None:
    """Write `text` beside `file` and rename it, so that a crash leaves the old file or the new."""
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)
