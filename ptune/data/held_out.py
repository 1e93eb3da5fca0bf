"""A share of the records that training leaves out, to measure the result by."""

from __future__ import annotations

from ptune.data.seeds import derive_seed


def split_records(records: int, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Draw the records that are held out.

    Args:
        records: how many there are.
        fraction: of them to hold out; at least one is, and one is left.
        seed: decides which.

    Returns:
        Indices to train on and indices held out, both rising.
    """
    count = min(max(1, round(records * fraction)), records - 1)
    drawn = sorted(range(records), key=lambda i: derive_seed(seed, "held out", i))
    held = set(drawn[:count])
    return [i for i in range(records) if i not in held], sorted(held)
