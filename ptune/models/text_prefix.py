"""A prefix that begins as a text: the keys and values that the base computes for it.

Cartridges (https://arxiv.org/abs/2506.06266) start so.  The prefix takes no positions, so its `P`
tokens are computed at `-P` to -1: seen from the text behind them, they stand where the tokens did.

The later generations, and all models that transformers has itself: exact.  The model with this
prefix computes for a question what the bare model does for the text with the question behind it.

ChatGLM-6B: a context sees both ways, so there the text would see the question, and a prefix cannot.
Its keys and values are those of the text as a context of its own, `text [gMASK] <sop>`, which is
exact in the first layer alone.

Shapes: `P` tokens, `L` layers, `G` key/value heads, `D` head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from ptune.models.prefix_encoder import PrefixEncoder, prefix_disabled, states_to_embedding


def text_states(model: Any, ids: Sequence[int]) -> Tensor:
    """What a prefix of a text's keys and values is.

    Args:
        model: from `build_model`; a prefix that it has is not seen.
        ids: `P` of them, without marks behind them.

    Returns:
        As `stack_prefix`, `[L, 2, G, P, D]`, in float32.
    """
    decoder, length = model.base_model, len(ids)
    given = torch.tensor([[*ids, *decoder.context_end]], device=model.device)
    cache = DynamicCache()
    with torch.inference_mode(), prefix_disabled(model):
        places = decoder.positions_in_front(given)
        decoder(input_ids=given, position_ids=places, past_key_values=cache, use_cache=True)
        pairs = [(layer.keys[0, :, :length], layer.values[0, :, :length]) for layer in cache.layers]
        return torch.stack([torch.stack(pair) for pair in pairs]).float()


def start_from(encoder: PrefixEncoder, states: Tensor) -> None:
    """Let a prefix without projection begin as keys and values.

    Args:
        encoder: of `P` tokens.
        states: `[L, 2, G, P, D]`.
    """
    with torch.no_grad():
        encoder.embedding.weight.copy_(states_to_embedding(states))
