"""Sampling of the next token from logits."""

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
    """Sampling parameters.

    Attributes:
        max_new_tokens: most tokens of an answer.
        do_sample: draw from the distribution; else greedy.
        top_p: probability of the nucleus to draw from.
        temperature: flattens or sharpens the distribution.
    """

    max_new_tokens: int = 512
    do_sample: bool = False
    top_p: float = 0.7
    temperature: float = 0.95

    def arguments(self) -> dict[str, Any]:
        """The parameters as arguments of the library's `generate`."""
        chosen: dict[str, Any] = {"max_new_tokens": self.max_new_tokens}
        chosen["do_sample"] = self.do_sample
        if self.do_sample:
            chosen |= {"top_p": self.top_p, "temperature": self.temperature, "top_k": TOP_K}
        return chosen

    def choose(self, logits: Tensor) -> Choice:
        """Choose a token for each row, without synchronizing with the device.

        With sampling, the random numbers of a seed are those of the library's `generate`.

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
        # What `torch.multinomial` computes for one draw, less its checks, which synchronize.
        waiting = torch.empty_like(probabilities).exponential_(1)
        drawn = (probabilities / waiting).argmax(dim=-1)
        return Choice(drawn, probabilities.gather(1, drawn[:, None]).squeeze(1))
