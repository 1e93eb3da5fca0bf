"""File names as text that can be printed and stored; a name may be any bytes."""

from __future__ import annotations

import os
import re
from pathlib import Path

_NO_TEXT = re.compile("[\ud800-\udfff]")  # how Python holds the bytes that are not UTF-8


def shown(path: Path) -> str:
    r"""A path for messages and data sets; what is not UTF-8 in it is spelled `\xff`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def stem(path: Path) -> str:
    """The name of a file or folder without its endings, to name a folder after it."""
    name = path.name or Path(os.path.abspath(path)).name  # of `.`
    return _NO_TEXT.sub("_", name.split(".")[0]) or "data"
