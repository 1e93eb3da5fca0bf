"""JSON text to values: no key stands twice in an object; complaints are in a few words."""

from __future__ import annotations

import json
import sys
from typing import Any


class RepeatedKey(ValueError):
    """An object holds a key twice, of which a dict would keep the last alone."""


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object's dict; for `object_pairs_hook`.

    Raises:
        RepeatedKey: naming the key.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RepeatedKey(f"key {twice!r} occurs twice")
    return found


def refuse_constant(literal: str) -> float:
    """Refuse NaN and Infinity; for `parse_constant`.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"{literal} is no number of JSON")


DECODER = json.JSONDecoder(object_pairs_hook=unique_keys)


def problem_of(error: ValueError | RecursionError) -> str:
    """What a decoder complains about, without the place and without Python's own affairs."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, json.JSONDecodeError):  # some of its words lead to the place
        return error.msg.removesuffix(" at").removesuffix(" starting")
    if "integer string conversion" in str(error):
        return f"a number of more than {sys.get_int_max_str_digits():,} digits"
    return str(error)
