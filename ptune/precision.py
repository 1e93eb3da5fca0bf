"""Which device and which precision to compute in; the one place that decides."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ptune.config import DTYPE_NAMES
from ptune.errors import ConfigError

_AMPERE = 8  # major compute capability from which bfloat16 is native


def choose_device(device: str | torch.device | None) -> torch.device:
    """Resolve a device; None is the first card, or this process's own one, or the CPU.

    Raises:
        ConfigError: a name that torch does not know, or a card that is not there.
    """
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        return torch.device("cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device {device!r} is unknown; use cpu, cuda or cuda:N") from error
    if chosen.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (chosen.index or 0) >= count:
            raise ConfigError(
                f"device {device!r} is not there (torch {torch.__version__} sees {count} cards); "
                "use --device cpu, or install a torch build for your card"
            )
    return chosen


def choose_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """Resolve the precision of the frozen base; the prefix is always float32.

    Args:
        dtype: a name, a torch dtype, or None for the default: bfloat16 on cards that have it,
            float16 on older ones, float32 on the CPU.
        device: where the model will run.

    Raises:
        ConfigError: an unknown name, or bfloat16 on a card without it.
    """
    if isinstance(dtype, str):
        if dtype not in DTYPE_NAMES:
            raise ConfigError(f"dtype {dtype!r} is unknown; use one of {', '.join(DTYPE_NAMES)}")
        dtype = getattr(torch, dtype)
    assert dtype is None or isinstance(dtype, torch.dtype)
    if device.type != "cuda":
        return dtype or torch.float32
    major, minor = torch.cuda.get_device_capability(device)
    if dtype is torch.bfloat16 and major < _AMPERE:
        name = torch.cuda.get_device_name(device)
        raise ConfigError(
            f"dtype bfloat16 is not native on {name} (compute capability {major}.{minor}); "
            "use --dtype float16"
        )
    return dtype or (torch.bfloat16 if major >= _AMPERE else torch.float16)


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Turn running out of a card's memory inside the block into an error that says what helps.

    Raises:
        ConfigError: ending in `advice`.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigError(f"the card's memory is full ({error}); use {advice}") from error
