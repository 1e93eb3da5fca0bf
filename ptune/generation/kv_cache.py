"""A static KV cache whose rows (slots) are requests at different positions.

A slot holds its prefix, its prompt and its answer so far, without padding, and goes to another
request when its answer is finished.  Nothing moves and nothing is allocated from token to token, so
that a decode step can be captured once as a CUDA graph and replayed.

The library's static cache has one sequence length for all rows.

Shapes: `B` slots, `R` rows of a decode step, `N` prompts of a prefill, `S` tokens of the longest of
them, `L` layers, `G` key/value heads, `K` cache length, `P` tokens of a prefix, `D` head dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from ptune.models.native import FULL, SLIDING


class SlotCache(Cache):  # type: ignore[misc]
    """The KV cache of all slots, to be passed to a decoder in a decode step (one token a slot).

    Args:
        decoder: `base_model` of a model from `load_model`.
        slots: `B`.
        length: `K`.
        dtype: precision of keys and values.
        device: where they are.

    Attributes:
        length: `K`; see `resize`.
        dtype: of keys and values.
        cache_position: `[B, 1, 1, 1]`, where each slot's next key and value go.
        prefix_lengths: `[B, 1]`, tokens of each slot's prefix.
        window: how many tokens some layers see, or None; see `limit_masks`.
        rows: `R`: a decode step is of the first so many slots.
        attended: how many positions a decode step attends to.
    """

    def __init__(
        self, decoder: Any, slots: int, length: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.length = self.attended = length
        self.dtype = dtype
        self.rows = slots
        self.cache_position = torch.zeros(slots, 1, 1, 1, dtype=torch.long, device=device)
        self.prefix_lengths = torch.zeros(slots, 1, dtype=torch.long, device=device)
        self.window: int | None = decoder.sliding_window
        self._prefixes: list[Tensor | None] = [None] * slots
        shape = decoder.prefix_shape
        size = (slots, shape.num_kv_heads, length, shape.head_dim)
        # Zeros: unwritten positions are masked, but NaN would pass a mask.
        layers = [
            _SlotLayer(self, *(torch.zeros(size, dtype=dtype, device=device) for _ in "kv"))
            for _ in range(shape.num_layers)
        ]
        super().__init__(layers=layers)

    def begin(self, slots: Sequence[int], prefixes: Sequence[Tensor | None]) -> None:
        """Give slots to requests: their prefixes are written, their text is to come.

        Args:
            slots: `N` of them.
            prefixes: of each `[L, 2, G, P, D]`, or None for the bare model.
        """
        changed: dict[int, list[int]] = {}
        for number, (slot, prefix) in enumerate(zip(slots, prefixes, strict=True)):
            if prefix is not None and self._prefixes[slot] is not prefix:
                changed.setdefault(id(prefix), []).append(number)
            self._prefixes[slot] = prefix
        for numbers in changed.values():
            prefix = prefixes[numbers[0]]
            assert prefix is not None
            at = [slots[number] for number in numbers]
            for layer, (key, value) in zip(self.layers, prefix, strict=True):
                layer.keys[at, :, : key.shape[1]] = key
                layer.values[at, :, : value.shape[1]] = value
        lengths = [self.prefix_length(slot) for slot in slots]
        self.prefix_lengths[list(slots), 0] = self.prefix_lengths.new_tensor(lengths)
        # A decode step before the prompt is there writes behind it, where the answer will come.
        self.cache_position[list(slots)] = self.length - 1

    def prefix_length(self, slot: int) -> int:
        """`P` of a slot, 0 without a prefix."""
        prefix = self._prefixes[slot]
        return 0 if prefix is None else prefix.shape[3]

    def for_prefill(self, slots: Sequence[int], lengths: Sequence[int]) -> PrefillCache:
        """Return a cache for the prefill of prompts of these lengths into `slots`."""
        return PrefillCache(self, slots, [self.prefix_length(slot) for slot in slots], lengths)

    def mask(self) -> Tensor | dict[str, Tensor]:
        """Attention mask of the next step, `[R, 1, 1, attended]`: see `limit_masks`."""
        limit, prefixes = self.cache_position[: self.rows, 0, 0], self.prefix_lengths[: self.rows]
        return limit_masks(limit, self.attended, self.dtype, prefixes, self.window)

    def advance(self) -> None:
        """Advance the slots of a step by one position; free slots stay at the last."""
        self.cache_position[: self.rows].add_(1).clamp_(max=self.length - 1)

    def resize(self, slots: int, length: int) -> None:
        """Grow or shrink to so many slots and positions, keeping what fits.

        Layer by layer, to need little memory.
        """
        kept = min(slots, len(self.cache_position))
        for layer in self.layers:
            layer.keys = _resized(layer.keys, slots, length)
            layer.values = _resized(layer.values, slots, length)
        position = self.cache_position.new_zeros(slots, 1, 1, 1)
        position[:kept] = self.cache_position[:kept].clamp(max=length - 1)
        self.cache_position = position
        lengths = self.prefix_lengths.new_zeros(slots, 1)
        lengths[:kept] = self.prefix_lengths[:kept]
        self.prefix_lengths = lengths
        # A prefix must fit before the last position, which a free slot's steps may write to.
        held = [p if p is not None and p.shape[3] < length else None for p in self._prefixes[:kept]]
        self._prefixes = held + [None] * (slots - kept)
        self.length = self.attended = length

    def move(self, source: int, target: int) -> None:
        """Copy a slot over another."""
        for layer in self.layers:
            layer.keys[target], layer.values[target] = layer.keys[source], layer.values[source]
        self.cache_position[target] = self.cache_position[source]
        self.prefix_lengths[target] = self.prefix_lengths[source]
        self._prefixes[target] = self._prefixes[source]

    def wipe(self, slot: int) -> None:
        """Drop a slot's content, where it may hold numbers that are not finite."""
        for layer in self.layers:
            layer.keys[slot], layer.values[slot] = 0, 0
        self._prefixes[slot] = None


def limit_mask(limit: Tensor, keys: int, dtype: torch.dtype) -> Tensor:
    """Attention mask of queries that see the keys of their row up to a limit.

    Args:
        limit: `[N, S]`, the last key that a query sees.
        keys: `K`.
        dtype: of the mask, which the kernels add to the scores.

    Returns:
        `[N, 1, S, K]`: 0, and -inf beyond the limit.
    """
    hidden = torch.arange(keys, device=limit.device) > limit[:, None, :, None]
    mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return mask.masked_fill_(hidden, -math.inf)


def limit_masks(
    limit: Tensor, keys: int, dtype: torch.dtype, prefixes: Tensor, window: int | None
) -> Tensor | dict[str, Tensor]:
    """Attention masks of all layers, of which some may see a sliding window of their row's text.

    Args:
        limit: `[N, S]`, the last key that a query sees.
        keys: `K`.
        dtype: of the masks.
        prefixes: `[N, 1]`, how many keys of each row are a prefix, which is always seen.
        window: how many tokens such layers see; None if there are none.

    Returns:
        `limit_mask`; with a window one for each kind of layer, by the library's names of them.
    """
    full = limit_mask(limit, keys, dtype)
    if window is None:
        return full
    if keys <= window:
        return {FULL: full, SLIDING: full}
    index = torch.arange(keys, device=limit.device)
    passed = (index <= limit[:, None, :, None] - window) & (index >= prefixes[:, None, :, None])
    return {FULL: full, SLIDING: full.masked_fill(passed, -math.inf)}


def _resized(states: Tensor, slots: int, length: int) -> Tensor:
    _, heads, _, width = states.shape
    resized = states.new_zeros(slots, heads, length, width)
    kept = states[:slots, :, :length]
    resized[: kept.shape[0], :, : kept.shape[2]] = kept
    return resized


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
        rows, attended = self.cache.rows, self.cache.attended
        position = self.cache.cache_position[:rows].expand_as(key_states)
        keys, values = self.keys[:rows], self.values[:rows]
        keys.scatter_(2, position, key_states)
        values.scatter_(2, position, value_states)
        return keys[:, :, :attended], values[:, :, :attended]

    def get_seq_length(self) -> int:
        return self.cache.attended - 1


class PrefillCache(Cache):  # type: ignore[misc]
    """Puts the keys and values of prompts into their slots, each behind its prefix.

    Args:
        cache: of all slots.
        slots: `N` of them.
        prefixes: tokens of each one's prefix.
        lengths: of the prompts; `S` is the largest.

    Attributes:
        slots: `[N]`.
        starts: `[N]`, where the texts begin.
        lengths: `[N]`.
        is_text: `[N, S]` bool, False on padding.
        end: where the longest ends: keys that attention gets.
        shared_start: where all texts begin, or None.
        places: `[N, S]`, where their keys go; those of padding to the last position, which is
            written again before anybody sees it.
    """

    def __init__(
        self,
        cache: SlotCache,
        slots: Sequence[int],
        prefixes: Sequence[int],
        lengths: Sequence[int],
    ) -> None:
        device = cache.cache_position.device
        self.slots = torch.tensor(slots, device=device)
        self.starts = torch.tensor(prefixes, device=device)
        self.end = max(start + length for start, length in zip(prefixes, lengths, strict=True))
        self.shared_start = prefixes[0] if len(set(prefixes)) == 1 else None
        self.lengths = torch.tensor(lengths, device=device)
        index = torch.arange(max(lengths), device=device).expand(len(slots), -1)
        self.is_text = index < self.lengths[:, None]
        self.places = torch.where(self.is_text, self.starts[:, None] + index, cache.length - 1)
        super().__init__(layers=[_PrefillLayer(self, layer) for layer in cache.layers])


class _PrefillLayer(_Layer):
    """A layer in prefill: writes prompts into their slots, returns these from the beginning."""

    def __init__(self, cache: PrefillCache, layer: _SlotLayer) -> None:
        super().__init__()
        self.cache = cache
        self.layer = layer
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return self._put(self.layer.keys, key_states), self._put(self.layer.values, value_states)

    def _put(self, whole: Tensor, states: Tensor) -> Tensor:
        cache = self.cache
        if cache.shared_start == 0:
            whole[:, :, : cache.end].index_copy_(0, cache.slots, states)
            return states
        if cache.shared_start is not None:
            whole[:, :, cache.shared_start : cache.end].index_copy_(0, cache.slots, states)
        else:
            whole[cache.slots[:, None], :, cache.places] = states.transpose(1, 2)
        return whole[:, :, : cache.end].index_select(0, cache.slots)

    def get_seq_length(self) -> int:
        return 0
