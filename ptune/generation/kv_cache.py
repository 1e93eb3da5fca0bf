"""A static KV cache whose rows (slots) are requests at different positions.

A slot holds the prefix, its prompt and its answer so far, without padding, and goes to another
request when its answer is finished.  Nothing moves and nothing is allocated from token to token, so
that a decode step can be captured once as a CUDA graph and replayed.

The library's static cache has one sequence length for all rows.

Shapes: `B` slots, `G` key/value heads, `K` cache length, `P` prefix tokens, `D` head dimension.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from ptune.models.prefix_encoder import PrefixedCache, prefix_length


class SlotCache(Cache):  # type: ignore[misc]
    """The KV cache of all slots, to be passed to a decoder in a decode step (one token a slot).

    Args:
        decoder: `base_model` of a model from `load_model`; its prefix is computed here, once.
        slots: `B`.
        length: `K`.
        dtype: precision of keys and values.
        device: where they are.

    Attributes:
        length: `K`; see `resize`.
        dtype: of keys and values.
        prefix: `P`.
        cache_position: `[B, 1, 1, 1]`, where each slot's next key and value go.
        attended: how many positions a decode step attends to.
    """

    def __init__(
        self, decoder: Any, slots: int, length: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.prefix = prefix_length(decoder)
        self.length = self.attended = length
        self.dtype = dtype
        self.cache_position = torch.zeros(slots, 1, 1, 1, dtype=torch.long, device=device)
        shape = decoder.prefix_shape
        size = (slots, shape.num_kv_heads, length, shape.head_dim)
        # Zeros: unwritten positions are masked, but NaN would pass a mask.
        layers = [
            _SlotLayer(self, *(torch.zeros(size, dtype=dtype, device=device) for _ in "kv"))
            for _ in range(shape.num_layers)
        ]
        if self.prefix:
            for layer, (key, value) in zip(layers, decoder.prefix_encoder(1, dtype), strict=True):
                layer.keys[:, :, : self.prefix] = key
                layer.values[:, :, : self.prefix] = value
        super().__init__(layers=layers)

    def for_prefill(self, slots: Tensor) -> Cache:
        """Return a cache for the prefill of prompts into `slots` `[N]`."""
        prompts = Cache(layers=[_PrefillLayer(layer, slots) for layer in self.layers])
        if not self.prefix:
            return prompts
        first = slice(1), slice(None), slice(self.prefix)  # every slot has the same
        return PrefixedCache([(x.keys[first], x.values[first]) for x in self.layers], prompts)

    def mask(self) -> Tensor:
        """Attention mask of the next step, `[B, 1, 1, attended]`: 0, and -inf past a slot's end."""
        position = self.cache_position
        hidden = torch.arange(self.attended, device=position.device) > position
        mask = torch.zeros(hidden.shape, dtype=self.dtype, device=hidden.device)
        return mask.masked_fill_(hidden, -math.inf)

    def advance(self) -> None:
        """Advance every slot by one position; free slots stay at the last."""
        self.cache_position.add_(1).clamp_(max=self.length - 1)

    def resize(self, length: int) -> None:
        """Grow to `length`, keeping the content; layer by layer, to need little memory."""
        for layer in self.layers:
            layer.keys = _grown(layer.keys, length)
            layer.values = _grown(layer.values, length)
        self.length = self.attended = length

    def keep(self, slots: Tensor) -> None:
        """Drop all slots but `slots` `[N]`, which are renumbered in this order."""
        for layer in self.layers:
            layer.keys, layer.values = layer.keys[slots], layer.values[slots]
        self.cache_position = self.cache_position[slots]


def _grown(states: Tensor, length: int) -> Tensor:
    batch, heads, before, width = states.shape
    grown = states.new_zeros(batch, heads, length, width)
    grown[:, :, :before] = states
    return grown


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    """The interface of the library's cache layers, for both classes below."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is lazy here."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1


class _SlotLayer(_Layer):
    """A layer in a decode step: takes one token for each slot, returns all positions in use."""

    keys: Tensor
    values: Tensor

    def __init__(self, cache: SlotCache, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.cache = cache
        self.keys, self.values = keys, values
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        position = self.cache.cache_position.expand_as(key_states)
        self.keys.scatter_(2, position, key_states)
        self.values.scatter_(2, position, value_states)
        attended = self.cache.attended
        return self.keys[:, :, :attended], self.values[:, :, :attended]

    def get_seq_length(self) -> int:
        return self.cache.attended - 1


class _PrefillLayer(_Layer):
    """A layer in prefill: writes prompts into their slots, behind the prefix."""

    def __init__(self, layer: _SlotLayer, slots: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.slots = slots
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        start = self.layer.cache.prefix
        place = slice(start, start + key_states.shape[2])
        self.layer.keys[:, :, place].index_copy_(0, self.slots, key_states)
        self.layer.values[:, :, place].index_copy_(0, self.slots, value_states)
        return key_states, value_states

    def get_seq_length(self) -> int:
        return 0
