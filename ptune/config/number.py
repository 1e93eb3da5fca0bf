"""Numbers as people write them, in decimal digits; also whole ones such as 1e3."""

from __future__ import annotations


def parse_number(value: str | int | float) -> float:
    """Turn text into a number; Python would pass over `_` in it.

    Raises:
        ValueError: it is none.
        OverflowError: a whole number that no float can hold.
    """
    if isinstance(value, str) and "_" in value:
        raise ValueError(f"{value} is no number")
    return float(value)


def parse_whole(value: str | int | float) -> int:
    """Turn text into a whole number, also from 1e3.

    Raises:
        ValueError: it is none.
        OverflowError: it is infinite.
    """
    if isinstance(value, int):
        return value
    if isinstance(value, str) and value.strip().lstrip("+-").isdecimal():
        return int(value)  # digits that a float would round
    number = parse_number(value)
    if number != int(number):
        raise ValueError(f"{value} is no whole number")
    return int(number)
