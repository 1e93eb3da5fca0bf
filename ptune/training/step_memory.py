"""Memory estimate of a run's training step: the first micro-batch size of `auto`, and savings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ptune.base.architecture import Architecture, Storage
from ptune.base.folder import BaseModel
from ptune.config.settings import TrainSettings
from ptune.config.shared_settings import LORA
from ptune.device.host_memory import read_host_memory
from ptune.device.memory import (
    GAPS,
    Lora,
    Memory,
    Prefix,
    Training,
    largest_micro_batch,
    savings,
)
from ptune.models.native_architecture import architecture_of, lora_sizes
from ptune.quantization.layers import bits_of
from ptune.training.micro_batch import Saving

# The share of free memory that a step may take on the CPU, where out of memory ends the process.
_CPU_SHARE = 0.5


@dataclass(frozen=True)
class StepMemory:
    """The memory estimate of a run's training step.

    Attributes:
        architecture: of the base model.
        storage: how it is stored.
        training: with a micro-batch of one.
        stored: whether the folder itself is quantized, so that other bits need another folder.
    """

    architecture: Architecture
    storage: Storage
    training: Training
    stored: bool

    def first_micro_batch(self, rows: int, device: torch.device) -> int:
        """The largest micro-batch that is expected to fit beside the loaded model.

        Args:
            rows: records of a step on this device.
            device: with base model and prefix on it.
        """
        free = _free_bytes(device)
        if free is None:
            return rows

        def fits(memory: Memory) -> bool:
            # The prefix is there; its gradient and the optimizer's state are to come.
            more = memory.total - memory.weights - memory.prefix // 4
            return more * (1 + GAPS) <= free

        return largest_micro_batch(self.architecture, self.storage, self.training, rows, fits) or 1

    def savings(self) -> list[Saving]:
        """Options not in use that would lower the peak memory of a step, the gentlest first."""
        found = savings(self.architecture, self.storage, self.training)
        return [
            Saving(option, size)
            for option, size in found
            if not (self.stored and option.startswith("--quantization-bit"))
        ]


def describe_step(settings: TrainSettings, base: BaseModel, model: Any, longest: int) -> StepMemory:
    """Describe a run's training step.

    Args:
        settings: with lengths.
        base: its config.json tells the architecture.
        model: loaded, with what is trained.
        longest: tokens of the longest record.
    """
    target = min(settings.max_target_length or longest, longest - 1)
    return StepMemory(
        architecture_of(base.config),
        Storage(model.config.dtype.itemsize, bits_of(model), model.device.type),
        Training(
            micro_batch=1,
            source_length=longest - target,
            target_length=target,
            trained=_trained(settings, model),
            gradient_checkpointing=settings.gradient_checkpointing,
        ),
        stored=bool(base.config.get("quantization_bit")),
    )


def _trained(settings: TrainSettings, model: Any) -> Prefix | Lora:
    """The sizes of what is trained."""
    if settings.method == LORA:
        return lora_sizes(model, settings.lora_rank, settings.lora_target, settings.lora_dropout)
    prefix = model.base_model.prefix_encoder
    return Prefix(prefix.pre_seq_len, prefix.prefix_projection, settings.prefix_dropout)


def _free_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + unused
    memory = read_host_memory()
    return None if memory is None else int(memory.available * _CPU_SHARE)
