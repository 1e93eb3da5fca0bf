"""Where the tokens of a text stand and what they see, in a decoder that reads it in order.

All but ChatGLM-6B: a token sees itself and those before it, and has one position.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class CausalText:
    """What decoders are asked about positions; stands before a class of the library.

    Attributes:
        learned_positions: how many positions are looked up; None where they are relative.
        sliding_window: how many tokens its layers of that kind see; None without such layers.
    """

    learned_positions: int | None = None
    sliding_window: int | None = None

    def read_prompts(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Where the tokens of prompts stand, and how much of each is seen by all of it.

        Args:
            input_ids: `[B, S]`, prompts, padded at their end.
            attention_mask: `[B, S]`, 0 on padding.

        Returns:
            `[B, S]`, and zeros `[B]`: a token sees itself and those before it.
        """
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        return positions.expand(len(input_ids), -1), torch.zeros_like(input_ids[:, 0])

    @property
    def context_end(self) -> list[int]:
        """Ids that must stand behind a context: none."""
        return []

    def positions_in_front(self, input_ids: Tensor) -> Tensor | None:
        """Where the tokens of a text stand in front of another, `[B, S]`: `-S` to -1.

        None, for the first ones, where positions are learned.
        """
        if self.learned_positions is not None:
            return None
        positions = torch.arange(-input_ids.shape[1], 0, device=input_ids.device)
        return positions.expand(len(input_ids), -1)

    def advance_positions(self, position_ids: Tensor) -> None:
        """Go on to the next token of an answer, in place."""
        position_ids += 1


def positions_of_text(attention_mask: Any, seen: int, embeds: Tensor) -> Tensor:
    """Count a text's tokens, padding left out, after `seen` of a cache.

    Returns:
        `[B, S]`, or `[1, S]` where a mask does not tell rows apart.
    """
    length = embeds.shape[1]
    if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
        return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, -length:]
    return torch.arange(seen, seen + length, device=embeds.device)[None]
