"""Seeds of what is random, each a function of the run's seed, its purpose and its place."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A seed for one purpose, unrelated to those of all others.

    Sums such as `seed + epoch` would give the second epoch of one seed the order of the first of
    the next.

    Args:
        parts: the run's seed, what it is for, and the place: an epoch, or a step and a row.

    Returns:
        63 bits, as `torch.Generator.manual_seed` takes on every device.
    """
    text = "\0".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
