"""Penalties for tokens that a prompt or an answer holds already.

`repetition_penalty` is that of CTRL (https://arxiv.org/abs/1909.05858) as transformers has it: for
prompt and answer.  `presence_penalty` and `frequency_penalty` are those of OpenAI's interface: for
the answer.

Shapes: `B` slots, `N` rows of logits, `M` of them with penalties, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class PenalizedRows(NamedTuple):
    """Rows of logits whose requests have penalties.

    Attributes:
        rows: `[M]`.
        slots: `[M]`, theirs.
        penalties: `[M, 3]`: repetition, presence and frequency.
    """

    rows: Tensor
    slots: Tensor
    penalties: Tensor


class Penalties:
    """What the requests in slots have said.

    Args:
        slots: `B`.
        vocab_size: `V`.
        device: of the logits.
    """

    def __init__(self, slots: int, vocab_size: int, device: torch.device) -> None:
        size = (slots, vocab_size)
        self._asked = torch.zeros(size, dtype=torch.bool, device=device)  # held by the prompt
        self._counts = torch.zeros(size, dtype=torch.int32, device=device)  # in the answer

    def begin(self, slot: int, prompt: Sequence[int]) -> None:
        """Give a slot to a prompt's ids."""
        self._asked[slot] = False
        self._counts[slot] = 0
        self._asked[slot, torch.tensor(prompt, device=self._asked.device)] = True

    def move(self, source: int, target: int) -> None:
        """Copy a slot over another."""
        self._asked[target], self._counts[target] = self._asked[source], self._counts[source]

    def resize(self, slots: int) -> None:
        """Have so many slots."""
        self._asked, self._counts = (
            torch.cat([kept, kept.new_zeros(slots - len(kept), kept.shape[1])])
            for kept in (self._asked[:slots], self._counts[:slots])
        )

    def apply(self, logits: Tensor, penalized: PenalizedRows) -> Tensor:
        """Take the penalties from logits `[N, V]`, in a float32 copy."""
        rows, slots, penalties = penalized
        repetition, presence, frequency = penalties[:, :, None].unbind(1)  # [M, 1] each
        counts = self._counts[slots]  # [M, V]
        said = counts > 0
        logits = logits.float().clone()
        scores = logits[rows]
        repeated = torch.where(scores > 0, scores / repetition, scores * repetition)
        scores = torch.where(said | self._asked[slots], repeated, scores)
        logits[rows] = scores - presence * said - frequency * counts
        return logits

    def count(self, penalized: PenalizedRows, ids: Tensor) -> None:
        """Note the chosen tokens `[N]`."""
        self._counts[penalized.slots, ids[penalized.rows]] += 1
