"""Sizes as people write them, such as 500MB."""

from __future__ import annotations

import re

from ptune.config.declaration import shown
from ptune.errors import ConfigError

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_MOST = 10**15


def parse_size(text: str, name: str) -> int:
    """Turn a size into bytes.

    Args:
        text: a number and KB, MB, GB or TB.
        name: of the setting, for the error.

    Raises:
        ConfigError: it is none, or beyond every disk.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]B)", text.strip().upper())
    size = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not 1 <= size <= _MOST:
        raise ConfigError(f"{name} {shown(text)} is not a size; write e.g. 500MB or 5GB")
    return int(size)
