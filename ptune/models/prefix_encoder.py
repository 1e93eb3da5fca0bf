"""The trainable prefix of P-Tuning v2 and how it enters the KV cache.

Paper: P-Tuning v2, https://arxiv.org/abs/2110.07602.  Parameter names and layout are those of
THUDM/ChatGLM-6B and THUDM/ChatGLM2-6B, whose `prefix_encoder` this re-implements.

Shapes: `B` batch, `P` pre_seq_len, `L` layers, `G` key/value heads, `D` head dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from ptune.errors import ModelError
from ptune.models.row_dropout import RowDropout


@dataclass(frozen=True)
class PrefixShape:
    """What a base model demands of a prefix.

    Attributes:
        num_layers: `L`.
        num_kv_heads: `G`, the heads that hold keys and values.
        head_dim: `D`.
        hidden_size: inner width of the projection MLP.
        projection_input: width of the embedding in front of the projection MLP; the hidden size in
            the first generation, the key/value width in the later ones.
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
        self.dropout = RowDropout(dropout)

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
        # A layer's key is even, its value odd.  `unbind`, since the backward of each `states[i]`
        # would fill a tensor of the whole size with zeros.
        parts = self.dropout(states).unbind(0)  # 2L of [B, G, P, D]
        return list(zip(parts[0::2], parts[1::2], strict=True))


def build_prefix_encoder(shape: PrefixShape, config: Any) -> PrefixEncoder | None:
    """Build what a model's configuration says of its prefix, or None."""
    if not config.pre_seq_len:
        return None
    return PrefixEncoder(shape, config.pre_seq_len, config.prefix_projection, dropout=0.0)


def stack_prefix(encoder: nn.Module, dtype: torch.dtype) -> Tensor:
    """Compute a prefix as one tensor, as slots of a KV cache take it.

    Args:
        encoder: of `P` tokens, in evaluation mode.
        dtype: of the model's keys and values.

    Returns:
        Keys and values of all layers, `[L, 2, G, P, D]`, without a gradient.
    """
    with torch.inference_mode():
        pairs = encoder(1, dtype)
        return torch.stack([torch.stack([key[0], value[0]]) for key, value in pairs])


def states_to_embedding(states: Tensor) -> Tensor:
    """From keys and values `[L, 2, G, P, D]` to the weight `[P, 2 L G D]` that shows them."""
    return states.permute(3, 0, 1, 2, 4).flatten(1)


def embedding_to_states(embedding: Tensor, shape: PrefixShape) -> Tensor:
    """Undo `states_to_embedding`."""
    parts = embedding.view(-1, shape.num_layers, 2, shape.num_kv_heads, shape.head_dim)
    return parts.permute(1, 2, 3, 0, 4)


def shown_prefix(model: Any) -> Tensor | None:
    """The prefix that a model from `load_model` shows now, as `stack_prefix`; None without one."""
    decoder = model.base_model
    if not prefix_length(decoder):
        return None
    return stack_prefix(decoder.prefix_encoder, model.get_input_embeddings().weight.dtype)


class PrefixedCache(Cache):  # type: ignore[misc]
    """What a decoder's layers are given: the prefix in front of the text.

    The prefix is in no cache of the caller's, so that its length, its masks and its crop count text
    alone, whatever kind it is.  Without a cache nothing is stored at all, as in training: gradient
    checkpointing runs a layer twice, and a cache that grows would give the second run other keys.

    Args:
        pairs: a layer's key and value `[B or 1, G, P, D]`, one for each layer.
        text: where keys and values of the text are kept, or None.

    Attributes:
        taken: whether a layer has asked for them.
    """

    def __init__(self, pairs: Sequence[tuple[Tensor, Tensor]], text: Cache | None = None) -> None:
        super().__init__(layers=text.layers if text is not None else [])
        self.pairs = pairs
        self.text = text
        self.taken = False

    @property
    def prefix(self) -> int:
        """`P`."""
        return self.pairs[0][0].shape[2]

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values `[B, G, S, D]`; return all it is to see."""
        self.taken = True
        if self.text is not None:
            key_states, value_states = self.text.update(
                key_states, value_states, layer_idx, *args, **kwargs
            )
        key, value = (t.expand(len(key_states), -1, -1, -1) for t in self.pairs[layer_idx])
        return torch.cat([key, key_states], dim=-2), torch.cat([value, value_states], dim=-2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Keys before those of the next call: the prefix and the text so far."""
        stored = self.text.get_seq_length(layer_idx) if self.text is not None else 0
        return self.prefix + stored  # type: ignore[no-any-return]

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """How many keys the next call's queries are masked against, and where they begin."""
        length, start = query_length, 0
        if self.text is not None:
            length, start = self.text.get_mask_sizes(query_length, layer_idx)
        return self.prefix + length, start


def prefix_length(decoder: Any) -> int:
    """How many prefix tokens `decoder` shows to its layers now: `P`, or 0 without a prefix."""
    encoder = decoder.prefix_encoder
    return int(encoder.pre_seq_len) if encoder is not None and decoder.prefix_enabled else 0


def text_length(past_key_values: Cache | None) -> int:
    """Tokens of text that a caller's cache holds."""
    if isinstance(past_key_values, PrefixedCache):
        past_key_values = past_key_values.text
    return int(past_key_values.get_seq_length()) if past_key_values is not None else 0


def show_prefix(decoder: Any, past_key_values: Cache | None, inputs_embeds: Tensor) -> Cache | None:
    """Give a decoder's forward the cache for its layers, with the prefix in front of the text.

    The prefix is computed once for a cache, when its first text comes, and noted on it: what is
    kept of a text was computed with the prefix of that time.

    Args:
        decoder: a module with `prefix_encoder` and `prefix_enabled`.
        past_key_values: the caller's cache, or None to store nothing.
        inputs_embeds: `[B, S, hidden]`, for batch size and dtype.

    Raises:
        ModelError: the cache holds text that was computed with another prefix than is shown now.
    """
    if isinstance(past_key_values, PrefixedCache):
        return past_key_values
    shown = prefix_length(decoder)
    batch, dtype = inputs_embeds.shape[0], inputs_embeds.dtype
    if past_key_values is None:
        return PrefixedCache(decoder.prefix_encoder(batch, dtype)) if shown else None
    if stored := text_length(past_key_values):
        pairs = getattr(past_key_values, "prefix_pairs", ())
        if (begun := pairs[0][0].shape[2] if pairs else 0) != shown:
            raise ModelError(
                f"past_key_values holds {stored} tokens computed with a prefix of {begun}, "
                f"and the model shows one of {shown} tokens now; compute them anew"
            )
    elif shown:
        # In training, dropout is drawn for each row; else one row serves all.  Copied: what the
        # encoder gives may be views of its weights.
        states = decoder.prefix_encoder(batch if decoder.training else 1, dtype)
        dense = torch.contiguous_format
        pairs = [(k.clone(memory_format=dense), v.clone(memory_format=dense)) for k, v in states]
        past_key_values.prefix_pairs = pairs
    else:
        past_key_values.prefix_pairs = ()
    return PrefixedCache(pairs, past_key_values) if shown else past_key_values


def extend_mask(attention_mask: Tensor | None, prefix: int) -> Tensor | None:
    """Put the prefix, which all see, before a mask of the text.

    Args:
        attention_mask: `[B, K]`, 0 on padding; `[B, 1, S, K]`, True where a query may look, or a
            number that is added to the scores; or None.
        prefix: `P`.

    Returns:
        `[B, P + K]` or `[B, 1, S, P + K]`.
    """
    if attention_mask is None or prefix == 0:
        return attention_mask
    shape = *attention_mask.shape[:-1], prefix
    added = attention_mask.dim() == 4 and attention_mask.is_floating_point()
    ones = attention_mask.new_zeros(shape) if added else attention_mask.new_ones(shape)
    return torch.cat([ones, attention_mask], dim=-1)


@contextmanager
def prefix_disabled(model: Any) -> Iterator[None]:
    """Run `model` (from `load_model`) as the bare base model inside the block."""
    decoder = model.base_model
    enabled, decoder.prefix_enabled = decoder.prefix_enabled, False
    try:
        yield
    finally:
        decoder.prefix_enabled = enabled
