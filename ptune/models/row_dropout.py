"""Dropout whose mask for a row of the batch follows from a seed of that row alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

_MOST = 2**63 - 1  # of a seed that torch draws


class RowDropout(nn.Module):
    """Dropout over dimension 1 of `[N, B, ...]`, each of the `B` rows with a generator of its own.

    What a row loses depends neither on the rows beside it nor on what was drawn before, so that
    micro-batches of any size, on any number of devices, drop the same values.

    Args:
        p: probability with which a value is dropped.

    Attributes:
        row_seeds: of the `B` rows of the next call; None draws them from torch's own generator.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.row_seeds: Sequence[int] | None = None

    def forward(self, states: Tensor) -> Tensor:
        """Drop values in training, and scale those that stay by `1 / (1 - p)`.

        Args:
            states: `[N, B, ...]`, perhaps expanded.

        Raises:
            ValueError: not as many seeds as rows.
        """
        if not self.training or self.p == 0:
            return states
        seeds = self.row_seeds
        if seeds is None:
            seeds = torch.randint(_MOST, (states.shape[1],)).tolist()
        generator = torch.Generator(states.device)
        # A row is contiguous, which is how a generator fills memory fastest.
        rows = states.transpose(0, 1)
        kept = torch.empty(rows.shape, dtype=torch.bool, device=states.device)
        for row, seed in zip(kept, seeds, strict=True):
            row.bernoulli_(1 - self.p, generator=generator.manual_seed(seed))
        dropped: Tensor = _Drop.apply(states, kept.transpose(0, 1), 1 / (1 - self.p))  # type: ignore[no-untyped-call]
        return dropped


class _Drop(torch.autograd.Function):
    """The kept values times a scale; one byte a value is saved for the backward.

    `torch.where`, since a product with a mask makes numbers of it on the CPU, a tensor of its own.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, kept: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return torch.where(kept, states, 0.0).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return torch.where(kept, gradients[0], 0.0).mul_(ctx.scale), None, None
