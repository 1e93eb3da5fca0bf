"""How much memory the KV cache of a server may take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ptune.base.architecture import Storage
from ptune.device.host_memory import read_host_memory
from ptune.device.memory import GAPS, rounded_down
from ptune.device.serving_memory import cache_positions, position_bytes
from ptune.errors import ConfigError
from ptune.models.native_architecture import architecture_of
from ptune.quantization.layers import bits_of

_LEAST = 256  # positions: fewer leave no room for one conversation


def cache_tokens(
    model: Any,
    config: Mapping[str, Any],
    slots: int,
    memory: int | None,
    prefix: int = 0,
    reserved: int = 0,
) -> int:
    """Positions of the KV cache of all slots that there is memory for.

    Args:
        model: from `load_model`, in memory.
        config: of its base, as its config.json has it.
        slots: requests at work at once.
        memory: bytes of `--cache-memory`; None takes what is free now, less what steps need.
        prefix: tokens of the longest prefix.
        reserved: bytes of what is free that others will take.

    Raises:
        ConfigError: too few for one conversation.
    """
    a = architecture_of(config)
    storage = Storage(
        model.get_input_embeddings().weight.dtype.itemsize, bits_of(model), model.device.type
    )
    size, context = position_bytes(a, storage), int(model.config.max_position_embeddings)
    most = rounded_down(slots * (context + prefix))
    if memory is not None:
        positions = rounded_down(memory // size)
        room, advice = "memory for the KV cache", "a larger --cache-memory"
    elif (free := _free_bytes(model.device)) is None:
        return most
    else:
        memory = max(round(free / (1 + GAPS)) - reserved, 0)
        positions = cache_positions(a, storage, memory, slots, context, prefix)
        room = "free memory, less what steps need,"
        advice = "a smaller --max-slots, or --quantization-bit 4"
    if positions < _LEAST:
        raise ConfigError(
            f"{memory / 1e6:,.0f} MB of {room} hold {positions} tokens, {size:,} bytes each; "
            f"use {advice}"
        )
    return min(positions, most)


def _free_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = read_host_memory()
    return found.available if found is not None else None
