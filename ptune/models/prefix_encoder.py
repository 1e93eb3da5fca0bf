"""The trainable prefix of P-Tuning v2 and how it enters the key/value cache.

Paper: P-Tuning v2, https://arxiv.org/abs/2110.07602.  Parameter names and layout are those of
THUDM/ChatGLM-6B and THUDM/ChatGLM2-6B, whose `prefix_encoder` this re-implements.

Shapes: `B` batch, `P` pre_seq_len, `L` layers, `G` key/value heads, `D` head dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer


@dataclass(frozen=True)
class PrefixShape:
    """What a base model demands of a prefix.

    Attributes:
        num_layers: `L`.
        num_kv_heads: `G`, the heads that hold keys and values.
        head_dim: `D`.
        hidden_size: inner width of the projection MLP.
        projection_input: width of the embedding in front of the projection MLP; the hidden size in
            the first generation, the key/value width in ChatGLM2 and 3.
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    projection_input: int

    @property
    def width(self) -> int:
        """Values per prefix token: a key and a value for each layer and head."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim


class PrefixEncoder(nn.Module):
    """`P` trained tokens, seen by every layer as keys and values that precede the text.

    Args:
        shape: what the base model demands.
        pre_seq_len: `P` (PEFT calls it `num_virtual_tokens`).
        prefix_projection: put a two-layer MLP between the embedding and the keys and values.
        dropout: probability with which a value of the prefix is dropped in training, drawn for each
            record of the batch on its own.
    """

    def __init__(
        self,
        shape: PrefixShape,
        pre_seq_len: int,
        prefix_projection: bool = False,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.pre_seq_len = pre_seq_len
        self.prefix_projection = prefix_projection
        if prefix_projection:
            self.embedding = nn.Embedding(pre_seq_len, shape.projection_input)
            self.trans = nn.Sequential(
                nn.Linear(shape.projection_input, shape.hidden_size),
                nn.Tanh(),
                nn.Linear(shape.hidden_size, shape.width),
            )
        else:
            self.embedding = nn.Embedding(pre_seq_len, shape.width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, batch_size: int, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        """Compute the prefix's keys and values.

        Returns:
            `L` pairs of key and value, each `[B, G, P, D]` in `dtype`.
        """
        states: Tensor = self.embedding.weight  # [P, width]
        if self.prefix_projection:
            states = self.trans(states)
        s = self.shape
        states = states.to(dtype).view(1, -1, 2 * s.num_layers, s.num_kv_heads, s.head_dim)
        states = states.permute(2, 0, 3, 1, 4).expand(-1, batch_size, -1, -1, -1)
        if self.training and states.is_cuda:
            # The card's kernel for dropout takes several times as long on an expanded tensor.
            states = states.contiguous()
        # A layer's key is even, its value odd.  `unbind`, since the backward of each `states[i]`
        # would fill a tensor of the whole size with zeros.
        parts = self.dropout(states).unbind(0)  # 2L of [B, G, P, D]
        return list(zip(parts[0::2], parts[1::2], strict=True))


class _PrefixLayer(DynamicLayer):
    """A cache layer that shows the prefix before the new tokens and stores nothing.

    Training needs it: gradient checkpointing runs a layer twice, and a cache that grows would give
    the second run other keys.
    """

    def __init__(self, key: Tensor, value: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(key, value)
        self.keys, self.values = key, value

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return (
            torch.cat([self.keys, key_states], dim=-2),
            torch.cat([self.values, value_states], dim=-2),
        )


def prefix_length(decoder: Any) -> int:
    """How many prefix tokens `decoder` shows to its layers now: `P`, or 0 without a prefix."""
    encoder = decoder.prefix_encoder
    return int(encoder.pre_seq_len) if encoder is not None and decoder.prefix_enabled else 0


def inject_prefix(
    decoder: Any, past_key_values: Cache | None, use_cache: bool, inputs_embeds: Tensor
) -> Cache | None:
    """Give a decoder's forward the cache it works on, with the prefix in front of the text.

    An empty cache (from `generate`, or made here when `use_cache`) gets the prefix as its first
    `P` entries; without one, the prefix is shown but nothing is stored.

    Args:
        decoder: a module with `prefix_encoder`, `prefix_enabled` and `config`.
        past_key_values: the caller's cache.
        use_cache: whether the caller wants a cache back.
        inputs_embeds: `[B, S, hidden]`, for batch size, dtype and device.
    """
    if past_key_values is None and use_cache:
        past_key_values = DynamicCache(config=decoder.config)
    if prefix_length(decoder) == 0:
        return past_key_values
    if past_key_values is not None and past_key_values.get_seq_length() > 0:
        return past_key_values
    pairs = decoder.prefix_encoder(inputs_embeds.shape[0], inputs_embeds.dtype)
    if past_key_values is None:
        return Cache(layers=[_PrefixLayer(key, value) for key, value in pairs])
    for layer, (key, value) in enumerate(pairs):
        past_key_values.update(key, value, layer)
    return past_key_values


def extend_mask(attention_mask: Tensor | None, prefix: int) -> Tensor | None:
    """Put ones for the prefix before a `[B, S]` mask of the text: `[B, P + S]`."""
    if attention_mask is None or prefix == 0:
        return attention_mask
    ones = attention_mask.new_ones(attention_mask.shape[0], prefix)
    return torch.cat([ones, attention_mask], dim=1)


@contextmanager
def prefix_disabled(model: Any) -> Iterator[None]:
    """Run `model` (from `load_model`) as the bare base model inside the block."""
    decoder = model.base_model
    enabled, decoder.prefix_enabled = decoder.prefix_enabled, False
    try:
        yield
    finally:
        decoder.prefix_enabled = enabled
