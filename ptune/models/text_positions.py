"""Where the tokens of a ChatGLM-6B text stand, read from the ids.

Re-implemented from THUDM/ChatGLM-6B (`modeling_chatglm.py` beside the weights).  Every token has a
position and a block position.  Before `<sop>` the position counts and the block is 0; from `<sop>`
on the position stays that of `[gMASK]` and the block counts from 1.

Shapes: `B` batch, `S` text tokens of this call, `T` text tokens of the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from ptune.errors import ModelError

_NO_SOP = 2**31  # beyond any text


@dataclass
class _TextState:
    """What a row's later tokens need to know of its first; kept on the cache between calls.

    It stays right when the cache is cropped, since it says nothing of the text's length.

    Attributes:
        mask_position: `[B]`, position of `[gMASK]`, which every token from `<sop>` on repeats.
        sop_index: `[B]`, text tokens before `<sop>`.
        checked: from how many tokens on the cache is known to reach beyond `<sop>`.
    """

    mask_position: Tensor
    sop_index: Tensor
    checked: int | None = None


def remember_text(
    past_key_values: Cache, position_ids: Tensor, index: Tensor, is_text: Tensor
) -> None:
    """Note on a cache what is needed of its first tokens, as the last text token of a row tells.

    Args:
        past_key_values: a cache that these tokens are about to fill.
        position_ids: `[2, B, S]`.
        index: `[B, S]`, from `text_index`.
        is_text: `[B, S]` bool.
    """
    last = is_text.shape[1] - 1 - is_text.flip(1).int().argmax(dim=1, keepdim=True)  # [B, 1]
    position, block = (row.gather(1, last).squeeze(1) for row in position_ids)
    sop_index = index.gather(1, last).squeeze(1) + 1 - block
    sop_index = torch.where(block > 0, sop_index, _NO_SOP)
    past_key_values.text_state = _TextState(position, sop_index)


def text_index(length: int, seen: int, attention_mask: Tensor | None, ids: Tensor) -> Tensor:
    """Number this call's tokens, from each row's first token that is not padding.

    Args:
        length: `S`.
        seen: `T`.
        attention_mask: `[B, T + S]`, 0 on padding, or None without padding.
        ids: `[B, S, ...]`, for batch size and device.

    Returns:
        `[B, S]`; a token of padding has the number of the text before it, or 0.

    Raises:
        ModelError: a mask of another length.
    """
    if attention_mask is None:
        return torch.arange(seen, seen + length, device=ids.device).expand(len(ids), -1)
    if attention_mask.shape != (len(ids), seen + length):
        raise ModelError(
            f"attention_mask has shape {list(attention_mask.shape)} for {length} tokens a row "
            f"after {seen} in the cache; pass [{len(ids)}, {seen + length}], 0 on padding"
        )
    return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, seen:]


def read_text(config: Any, input_ids: Tensor | None, index: Tensor, is_text: Tensor) -> Tensor:
    """Derive positions from the ids of a whole prompt, without waiting for the device.

    Args:
        config: for the ids of `[gMASK]`, `[MASK]` and `<sop>`.
        input_ids: `[B, S]`.
        index: `[B, S]`, from `text_index`.
        is_text: `[B, S]` bool, False on padding.

    Returns:
        Position and block position, `[2, B, S]`.

    Raises:
        ModelError: there are no ids.
    """
    if input_ids is None:
        raise ModelError(
            "inputs_embeds do not tell where [gMASK] and <sop> are, from which ChatGLM-6B's "
            "positions follow; pass position_ids [B, 2, S] as well, or input_ids"
        )

    def first(token_id: int) -> tuple[Tensor, Tensor]:
        found = (input_ids == token_id) & is_text
        return found.any(dim=1), index.gather(1, found.int().argmax(dim=1, keepdim=True)).squeeze(1)

    has_sop, sop_index = first(config.bos_token_id)
    sop_index = torch.where(has_sop, sop_index, _NO_SOP)
    has_gmask, gmask_index = first(config.gmask_token_id)
    has_mask, mask_index = first(config.mask_token_id)
    mask_index = torch.where(has_mask, mask_index, 0)
    return _positions(index, torch.where(has_gmask, gmask_index, mask_index), sop_index)


def continue_text(past_key_values: Any, index: Tensor, seen: int) -> Tensor:
    """As `read_text`, for tokens that come after the `seen` ones of a cache.

    Raises:
        ModelError: the cache ends before `<sop>`, or this model did not fill it.
    """
    state: _TextState | None = getattr(past_key_values, "text_state", None)
    if state is None:
        raise ModelError(
            f"past_key_values holds {seen} tokens that this model did not compute; pass a cache "
            "that it returned, or an empty one with the whole text"
        )
    if (repeats := len(index) // len(state.sop_index)) > 1:  # after `batch_repeat_interleave`
        state.mask_position = state.mask_position.repeat_interleave(repeats)
        state.sop_index = state.sop_index.repeat_interleave(repeats)
    if state.checked is None or seen < state.checked:  # waits for the device
        if bool((index[:, 0] <= state.sop_index).any()):
            raise ModelError(
                f"past_key_values ends before <sop>, after {seen} tokens, but ChatGLM-6B reads "
                "what stands before <sop> in both directions, so that it cannot come in parts; "
                "give all of it in one call (to generate: without prefill_chunk_size)"
            )
        state.checked = seen
    return _positions(index, state.mask_position, state.sop_index)


def _positions(index: Tensor, mask_position: Tensor, sop_index: Tensor) -> Tensor:
    block = (index + 1 - sop_index[:, None]).clamp(min=0)
    return torch.stack([torch.where(block > 0, mask_position[:, None], index), block])
