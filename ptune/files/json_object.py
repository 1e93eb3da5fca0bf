"""JSON objects from files, as the standard has them: no NaN, no Infinity, and no key twice."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ptune.files.json_decoding import problem_of, refuse_constant, unique_keys


def read_json_object(file: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        ValueError: what is wrong with it, worded to follow the file's name.
    """
    try:
        content = json.loads(
            file.read_text(encoding="utf-8"),
            parse_constant=refuse_constant,
            parse_float=_finite,
            object_pairs_hook=unique_keys,
        )
    except (ValueError, RecursionError) as error:  # ValueError: of JSON, of UTF-8, of a number
        place = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(f"is not JSON ({problem_of(error)}{place})") from error
    if not isinstance(content, dict):
        raise ValueError("holds no JSON object")
    return content


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is too large for a number")
    return value
