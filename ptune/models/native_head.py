"""The head of a model of transformers, where its logits are more than a linear layer's output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class ScaledHead(nn.Module):
    """A linear head whose logits are scaled, and bounded by a tanh (Cohere, Granite, Gemma2 and 3).

    Args:
        linear: `[hidden] -> [vocabulary]`; stays the model's.
        scale: factor of the logits.
        softcap: bound of their absolute value, or None.
    """

    def __init__(self, linear: nn.Module, scale: float, softcap: float | None) -> None:
        super().__init__()
        self.linear = linear
        self.scale = scale
        self.softcap = softcap

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[..., hidden]` to `[..., vocabulary]`."""
        logits: Tensor = self.linear(hidden_states)
        if self.scale != 1:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


def scoring_head(linear: nn.Module, config: Any) -> nn.Module:
    """The head of a model by what its configuration says is done to the logits."""
    scale = getattr(config, "logit_scale", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0
    softcap = getattr(config, "final_logit_softcapping", None)
    return linear if scale == 1 and softcap is None else ScaledHead(linear, scale, softcap)
