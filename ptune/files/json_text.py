"""JSON as ptune writes and prints it: readable, and without the NaN that JSON does not have."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from ptune.errors import PTuneError


def to_json(value: Any, **layout: Any) -> str:
    """Write a value as JSON.

    Args:
        value: of plain types.
        layout: for `json.dumps`.

    Raises:
        PTuneError: a number in it is not finite.
    """
    try:
        return json.dumps(value, allow_nan=False, **{"ensure_ascii": False} | layout)
    except ValueError:
        if (found := next(_not_finite(value, ""), None)) is None:
            raise
        place, number = found
        raise PTuneError(
            f"{place or 'a number'} {number} is not finite, which JSON cannot hold; "
            "mend what it comes from"
        ) from None


def _not_finite(value: Any, place: str) -> Iterator[tuple[str, float]]:
    """Numbers that are not finite, and where they stand, such as `rows.0.total`."""
    if isinstance(value, float) and not math.isfinite(value):
        yield place, value
    pairs: Any = ()
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, (list, tuple)):
        pairs = enumerate(value)
    for name, item in pairs:
        yield from _not_finite(item, f"{place}.{name}" if place else str(name))
