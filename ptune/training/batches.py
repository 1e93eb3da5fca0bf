"""The records of every optimizer step, as seed and epoch decide them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from ptune.data.seeds import derive_seed

# Batches whose examples are sorted together: enough for little padding, few enough for shuffling.
_SORTED_TOGETHER = 50


class EffectiveBatches(Sampler[list[int]]):
    """The effective batches of an epoch, over all processes.

    Shuffled, examples of similar length come in the same batch.  The order depends on seed and
    epoch alone: a resumed run has the same, and so has one of other processes or micro-batches.

    Args:
        lengths: tokens of each example.
        batch_size: examples per optimizer step.
        seed: of the order; None keeps that of the data.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int | None) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the indices of each batch."""
        if self.seed is None:
            yield from _cut(range(len(self.lengths)), self.batch_size)
            return
        seed = derive_seed(self.seed, "order", self.epoch)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        batches: list[list[int]] = []
        for group in _cut(order, self.batch_size * _SORTED_TOGETHER):
            by_length = sorted(group, key=lambda i: -self.lengths[i])
            batches += _cut(by_length, self.batch_size)
        # A short batch comes last, so that it does not shift the steps after it.
        full = [batch for batch in batches if len(batch) == self.batch_size]
        for i in torch.randperm(len(full), generator=generator).tolist():
            yield full[i]
        yield from (batch for batch in batches if len(batch) < self.batch_size)


def _cut(indices: Sequence[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(indices), size):
        yield list(indices[start : start + size])
