"""Memory of a server by arithmetic: what a token, a prefix and a step take, and how many fit.

Shapes: `R` slots, `S` tokens of a prompt, `P` prefix tokens, `V` vocabulary.  All results are in
bytes, as in `device/memory.py`.
"""

from __future__ import annotations

import bisect

from ptune.base.architecture import Architecture, Storage
from ptune.device.memory import Prefix, forward_bytes, rounded_down

_FLOAT = 4  # bytes of a float32


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


def cache_positions(
    a: Architecture, storage: Storage, memory: int, slots: int, context: int, prefix: int = 0
) -> int:
    """Positions of a KV cache beside which the steps still fit; 0 if there is no room for any.

    The longest prompt is as long as the cache, or as the context.

    Args:
        a: of the base model.
        storage: how it is stored.
        memory: for cache and steps.
        slots: `R`.
        context: tokens that the model can see.
        prefix: `P`, of the longest.
    """
    size = position_bytes(a, storage)

    def needed(positions: int) -> int:
        # When the cache grows, a layer's keys are there twice.
        grown = positions * size // (2 * a.num_layers)
        steps = step_bytes(a, storage, slots, min(positions, context), prefix)
        return positions * size + grown + steps

    # More than every slot full is of no use.
    most = range(slots * (context + prefix) + 1)
    return rounded_down(max(bisect.bisect_right(most, memory, key=needed) - 1, 0))
