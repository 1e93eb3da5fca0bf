"""Memory of a server by arithmetic: what a token, a prefix and a step take, and how many fit.

Shapes: `R` slots, `S` tokens of a prompt, `P` prefix tokens, `V` vocabulary.  All results are in
bytes, as in `device/memory.py`.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

from ptune.base.architecture import Architecture, Storage
from ptune.device.memory import Prefix, forward_bytes, rounded_down, rounded_length

_FLOAT = 4  # bytes of a float32


@dataclass(frozen=True)
class Capacity:
    """What a server holds.

    Attributes:
        tokens: of the KV cache, without copies of prefixes.
        requests: at once, each with a prefix of its own.
        prefixes: beside one request; 0 where they have no tokens.
    """

    tokens: int
    requests: int
    prefixes: int


def position_bytes(a: Architecture, storage: Storage) -> int:
    """A token's keys and values in all layers; a token of a prefix takes as much."""
    return a.prefix_width * storage.itemsize


def step_bytes(a: Architecture, storage: Storage, slots: int, prompt: int, prefix: int) -> int:
    """What steps need beside weights and KV cache, as a bound.

    A prompt is computed in all its tokens at once; after it, or between two of its layers, come the
    logits of all slots: as they are, and three times in float32 while tokens are drawn from them.

    Args:
        a: of the base model.
        storage: how it is stored.
        slots: `R`.
        prompt: `S`, of the longest.
        prefix: `P`, of the longest.
    """
    logits = slots * a.vocab_size * (storage.itemsize + 3 * _FLOAT)
    # What the layers at work were given, and the mask, stay until the last layer.
    kept = prompt * (a.hidden_size + prompt + prefix) * storage.itemsize
    return logits + kept + forward_bytes(a, storage, 1, prompt, Prefix(prefix))


def served_bytes(
    a: Architecture, storage: Storage, positions: int, slots: int, context: int, prefix: int = 0
) -> int:
    """A KV cache and the steps beside it.

    The longest prompt is as long as the cache, or as the context.

    Args:
        a: of the base model.
        storage: how it is stored.
        positions: of the KV cache of all slots.
        slots: `R`.
        context: tokens that the model can see.
        prefix: `P`, of the longest.
    """
    cache = positions * position_bytes(a, storage)
    # When the cache grows, a layer's keys are there twice.
    grown = cache // (2 * a.num_layers)
    return cache + grown + step_bytes(a, storage, slots, min(positions, context), prefix)


def cache_positions(
    a: Architecture, storage: Storage, memory: int, slots: int, context: int, prefix: int = 0
) -> int:
    """Positions of a KV cache beside which the steps still fit; 0 if there is no room for any.

    Args:
        a: of the base model.
        storage: how it is stored.
        memory: for cache and steps.
        slots: `R`.
        context: tokens that the model can see.
        prefix: `P`, of the longest.
    """

    def needed(positions: int) -> int:
        return served_bytes(a, storage, positions, slots, context, prefix)

    # More than every slot full is of no use.
    most = range(slots * (context + prefix) + 1)
    return rounded_down(max(bisect.bisect_right(most, memory, key=needed) - 1, 0))


def capacity(
    a: Architecture,
    storage: Storage,
    memory: int,
    slots: int,
    length: int,
    context: int,
    prefix: int,
) -> Capacity:
    """How many tokens, requests and prefixes there is memory for.

    Args:
        a: of the base model.
        storage: how it is stored.
        memory: for cache, steps and prefixes.
        slots: `R`.
        length: tokens of a request, prompt and answer.
        context: tokens that the model can see.
        prefix: `P`.
    """
    request, copy = rounded_length(length + prefix), prefix * position_bytes(a, storage)

    def needed(requests: int) -> int:
        served = served_bytes(a, storage, requests * request, slots, context, prefix)
        # Each has its prefix in its slot, and once more in the store.
        return served + requests * copy

    return Capacity(
        tokens=cache_positions(a, storage, memory, slots, context, prefix),
        requests=max(bisect.bisect_right(range(slots + 1), memory, key=needed) - 1, 0),
        prefixes=max(memory - needed(1) + copy, 0) // copy if copy else 0,
    )
