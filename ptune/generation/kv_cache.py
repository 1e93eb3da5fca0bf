"""A key/value cache of fixed size, whose rows are answers at different places.

Each row (slot) holds the prefix, its prompt and its answer so far, without holes, and can be given
to another prompt when its answer is finished.  Nothing moves and nothing is allocated from token to
token, so that a step can be recorded once and replayed.

The library's static cache has one length for all rows.

Shapes: `B` slots, `G` key/value heads, `K` columns, `P` prefix tokens, `D` head dimension.
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
    """The cache of all slots, to be passed to a decoder that is given one token a slot.

    Args:
        decoder: `base_model` of a model from `load_model`; its prefix is computed here, once.
        slots: `B`.
        columns: `K`.
        dtype: precision of keys and values.
        device: where they are.

    Attributes:
        columns: `K`; see `resize`.
        dtype: of keys and values.
        prefix: `P`.
        at: `[B, 1, 1, 1]`, the column in which each slot's next key and value go.
        shown: how many columns the attention looks at.
    """

    def __init__(
        self, decoder: Any, slots: int, columns: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.prefix = prefix_length(decoder)
        self.columns = self.shown = columns
        self.dtype = dtype
        self.at = torch.zeros(slots, 1, 1, 1, dtype=torch.long, device=device)
        shape = decoder.prefix_shape
        size = (slots, shape.num_kv_heads, columns, shape.head_dim)
        # Zeros: what was never written is masked, but NaN would pass a mask.
        layers = [
            _SlotLayer(self, *(torch.zeros(size, dtype=dtype, device=device) for _ in "kv"))
            for _ in range(shape.num_layers)
        ]
        if self.prefix:
            for layer, (key, value) in zip(layers, decoder.prefix_encoder(1, dtype), strict=True):
                layer.keys[:, :, : self.prefix] = key
                layer.values[:, :, : self.prefix] = value
        super().__init__(layers=layers)

    def for_prompts(self, slots: Tensor) -> Cache:
        """Return a cache for the forward of prompts that are to fill `slots` `[N]`."""
        prompts = Cache(layers=[_PromptLayer(layer, slots) for layer in self.layers])
        if self.prefix == 0:
            return prompts
        first = slice(None, 1), slice(None), slice(self.prefix)  # every slot has the same
        return PrefixedCache([(x.keys[first], x.values[first]) for x in self.layers], prompts)

    def mask(self) -> Tensor:
        """What the next step adds to the scores, `[B, 1, 1, shown]`: 0 where a slot has columns."""
        hidden = torch.arange(self.shown, device=self.at.device) > self.at
        mask = torch.zeros(hidden.shape, dtype=self.dtype, device=hidden.device)
        return mask.masked_fill_(hidden, -math.inf)

    def advance(self) -> None:
        """Go on to the next column; slots that nobody uses stay at the last."""
        self.at.add_(1).clamp_(max=self.columns - 1)

    def resize(self, columns: int) -> None:
        """Grow to `columns`, keeping what is there; layer by layer, to need little memory."""
        for layer in self.layers:
            layer.keys = _grown(layer.keys, columns)
            layer.values = _grown(layer.values, columns)
        self.columns = self.shown = columns

    def keep(self, slots: Tensor) -> None:
        """Drop all slots but `slots` `[N]`, which are numbered anew."""
        for layer in self.layers:
            layer.keys, layer.values = layer.keys[slots], layer.values[slots]
        self.at = self.at[slots]


def _grown(states: Tensor, columns: int) -> Tensor:
    batch, heads, before, width = states.shape
    grown = states.new_zeros(batch, heads, columns, width)
    grown[:, :, :before] = states
    return grown


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    """What the library asks of a layer, for both kinds below."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is lazy here."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1


class _SlotLayer(_Layer):
    """Takes one token for each slot and shows all columns in use."""

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
        at = self.cache.at.expand_as(key_states)
        self.keys.scatter_(2, at, key_states)
        self.values.scatter_(2, at, value_states)
        shown = self.cache.shown
        return self.keys[:, :, :shown], self.values[:, :, :shown]

    def get_seq_length(self) -> int:
        return self.cache.shown - 1


class _PromptLayer(_Layer):
    """Writes prompts into their slots, behind the prefix."""

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
