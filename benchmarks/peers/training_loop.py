"""A bare training loop for a peer's model, without the cost of a Trainer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

Records = list[dict[str, Any]]


class TrainingLoop:
    """Steps of AdamW over records in a random order.

    Args:
        model: whose trained parameters require gradients.
        records: `input_ids` and `labels` each.
        batch_size: records of a step.
        backward: computes the gradients of the records it is given.
    """

    def __init__(
        self, model: Any, records: Records, batch_size: int, backward: Callable[[Records], None]
    ) -> None:
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._parameters, lr=2e-2, weight_decay=0.0)
        self._records = records
        self._batch_size = batch_size
        self._backward = backward
        generator = torch.Generator().manual_seed(42)
        self._order = torch.randperm(len(records), generator=generator).tolist()

    def step(self, number: int) -> float:
        """Seconds of the optimizer step of this number."""
        start = number * self._batch_size
        chosen = [
            self._records[self._order[(start + i) % len(self._order)]]
            for i in range(self._batch_size)
        ]
        begin = time.perf_counter()
        self._backward(chosen)
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - begin
