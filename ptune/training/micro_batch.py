"""Micro-batches of an optimizer step: splitting, and halving when memory is full."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ptune.device.full_memory import full_memory, is_out_of_memory

T = TypeVar("T")

_GIGABYTE = 10**9


class Saving(NamedTuple):
    """An option that lowers peak memory.

    Attributes:
        option: as the user writes it.
        size: bytes saved.
    """

    option: str
    size: int

    def __str__(self) -> str:
        """For display."""
        gigabytes = self.size / _GIGABYTE
        saved = f"{gigabytes:.1f} GB" if gigabytes >= 0.1 else f"{1000 * gigabytes:.1f} MB"
        return f"{self.option} (saves {saved})"


def split(batch: dict[str, Any], size: int) -> Iterator[tuple[dict[str, Tensor], list[int]]]:
    """Cut a batch into micro-batches without copying.

    Args:
        batch: from `StepCollator`: tensors `[B, S]`, longest row first, `lengths` and `places`.
        size: records of each but the last.

    Yields:
        The tensors, each micro-batch padded to its first row, the longest; and the places of its
        rows in the effective batch.
    """
    lengths: Sequence[int] = batch["lengths"]
    for start in range(0, len(lengths), size):
        rows, width = slice(start, start + size), lengths[start]
        part = {name: t[rows, :width] for name, t in batch.items() if isinstance(t, Tensor)}
        yield part, batch["places"][rows]


class MicroBatch:
    """The micro-batch size in use; `--micro-batch-size auto` halves it when memory is full.

    Args:
        size: to begin with.
        auto: whether it may be halved.
        savings: options to advise when a single record does not fit, the gentlest first.
        notify: called with a message when the size changes.
    """

    def __init__(
        self,
        size: int,
        auto: bool,
        savings: Callable[[], Sequence[Saving]],
        notify: Callable[[str], None],
    ) -> None:
        self.size = size
        self.auto = auto
        self.savings = savings
        self.notify = notify

    def fit(
        self,
        compute: Callable[[], T],
        device: torch.device,
        step: int,
        meet: Callable[[T | None], T | None] = lambda computed: computed,
    ) -> T:
        """Compute something in micro-batches of `size`, smaller ones if memory is full.

        Args:
            compute: called again after a halving; what it draws must not depend on calls before.
            device: on which it computes.
            step: for messages.
            meet: where several processes come together with what they have computed, None where
                memory was full; returns None if it was full in any.

        Raises:
            ConfigError: it does not fit; with the options that help.
        """
        while True:
            computed, full = None, None
            try:
                computed = compute()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                full = error.with_traceback(None)  # which would hold the activations
            if (result := meet(computed)) is not None:
                return result
            self._halve(step, full)
            gc.collect()
            if device.type != "cpu":
                torch.get_device_module(device).empty_cache()

    def _halve(self, step: int, error: Exception | None) -> None:
        if self.size == 1:
            helps = ", ".join(map(str, self.savings()))
            raise full_memory(
                f"at micro-batch 1 in step {step}", f"in this order: {helps}"
            ) from error
        if not self.auto:
            option = "--micro-batch-size"
            raise full_memory(
                f"at micro-batch {self.size} in step {step}",
                f"{option} {_half(self.size)}, or {option} auto",
            ) from error
        before, self.size = self.size, _half(self.size)
        self.notify(
            f"memory is full at micro-batch {before}; "
            f"continuing with micro-batches of {self.size} from step {step}"
        )


def _half(size: int) -> int:
    return (size + 1) // 2
