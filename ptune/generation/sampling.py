"""How the next token is chosen from the logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

# The original samples from 50 tokens, by a default of the library of its day.
TOP_K = 50


class Choice(NamedTuple):
    """A token for each row, and what tells whether there was a choice.

    Attributes:
        ids: `[B]`, always of the vocabulary.
        scores: `[B]`, what spoke for them; not finite where the logits are not.
    """

    ids: Tensor
    scores: Tensor


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        max_new_tokens: longest answer.
        do_sample: draw from the distribution; else take the likeliest token.
        top_p: nucleus to draw from.
        temperature: flattens or sharpens the distribution.
    """

    max_new_tokens: int = 512
    do_sample: bool = False
    top_p: float = 0.7
    temperature: float = 0.95

    def arguments(self) -> dict[str, Any]:
        """The same for the library's `generate`."""
        chosen: dict[str, Any] = {"max_new_tokens": self.max_new_tokens}
        chosen["do_sample"] = self.do_sample
        if self.do_sample:
            chosen |= {"top_p": self.top_p, "temperature": self.temperature, "top_k": TOP_K}
        return chosen

    def choose(self, logits: Tensor) -> Choice:
        """Choose a token for each row, without waiting for the device.

        With sampling, random numbers are those of the library's `generate`: a seed gives the same.

        Args:
            logits: `[B, vocabulary]`.
        """
        if not self.do_sample:
            highest, ids = logits.max(dim=-1)  # a NaN counts as higher than anything
            return Choice(ids, highest)
        scores: Tensor = logits.float()
        if self.temperature != 1.0:
            scores = TemperatureLogitsWarper(self.temperature)(None, scores)
        scores = TopKLogitsWarper(TOP_K)(None, scores)
        if self.top_p < 1.0:
            scores = TopPLogitsWarper(self.top_p)(None, scores)
        probabilities = scores.softmax(dim=-1)
        # What `torch.multinomial` computes for one draw, less its checks, which wait for a card.
        waiting = torch.empty_like(probabilities).exponential_(1)
        drawn = (probabilities / waiting).argmax(dim=-1)
        return Choice(drawn, probabilities.gather(1, drawn[:, None]).squeeze(1))
