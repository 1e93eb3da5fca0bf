"""How much memory the KV cache of a server may take."""

from __future__ import annotations

from typing import Any

import torch

from ptune.device.host_memory import read_host_memory
from ptune.device.memory import rounded_down
from ptune.errors import ConfigError

_LEAST = 256  # positions: fewer leave no room for one conversation
_KEPT = 0.1  # of the free memory, for what is fragmented and for other programs
_PREFILL = 512  # tokens that are computed at once, see `engine.INTERACTIVE`


def position_bytes(model: Any) -> int:
    """Bytes of a token's keys and values in all layers."""
    shape = model.base_model.prefix_shape
    return int(shape.width) * _itemsize(model)


def _itemsize(model: Any) -> int:
    return int(model.get_input_embeddings().weight.dtype.itemsize)


def working_bytes(model: Any, slots: int) -> int:
    """Bytes of the tensors that a step needs beside weights and cache, as a bound.

    Logits of all slots, the same in float32 and what drawing makes of them, and the hidden states
    of a prefill in its widest layer.
    """
    config, size = model.config, _itemsize(model)
    logits = slots * int(config.vocab_size) * (size + 3 * 4)
    wide = max(int(config.intermediate_size), 3 * int(config.hidden_size))
    return logits + _PREFILL * 6 * wide * max(size, 4)


def cache_tokens(model: Any, slots: int, memory: int | None) -> int:
    """Positions of the KV cache of all slots that there is memory for.

    Args:
        model: from `load_model`, in memory.
        slots: requests at work at once.
        memory: bytes of `--cache-memory`; None takes what is free now, less what steps need.

    Raises:
        ConfigError: too few for one conversation.
    """
    size = position_bytes(model)
    advice = "a larger --cache-memory"
    if memory is None:
        advice = "a smaller --max-slots, or --quantization-bit 4"
        free = _free_bytes(model.device)
        if free is None:
            return rounded_down(slots * int(model.config.max_position_embeddings))
        memory = int(free * (1 - _KEPT)) - working_bytes(model, slots)
    positions = rounded_down(memory // size)
    if positions < _LEAST:
        raise ConfigError(
            f"{max(memory, 0) / 1e6:,.0f} MB of memory for the KV cache hold "
            f"{max(positions, 0)} tokens, {size:,} bytes each; "
            f"use {advice}"
        )
    # More than every slot full is of no use.
    return min(positions, slots * (2 * int(model.config.max_position_embeddings)))


def _free_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = read_host_memory()
    return found.available if found is not None else None
