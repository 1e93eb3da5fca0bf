"""Running out of memory: how it is recognized, and the one wording for it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ptune.errors import ConfigError

# Advice for a device that does not hold the model itself.
SMALLER_WEIGHTS = "--quantization-bit 8 or 4, which `ptune estimate` compares with this card"
# cuBLAS and cuDNN call it "not initialized" when there is no room left for their handle.
_FULL = re.compile(
    r"(CUDA|HIP|XPU|MPS).* out of memory"
    r"|(CU|HIP)(BLAS|DNN)_STATUS_(ALLOC_FAILED|NOT_INITIALIZED)"
    r"|CUDNN_STATUS_INTERNAL_ERROR_(HOST|DEVICE)_ALLOCATION_FAILED"
    r"|Invalid buffer size"  # MPS, of a buffer larger than all its memory
    r"|DefaultCPUAllocator: (can't allocate|not enough) memory",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device's memory is full, however it puts it.

    torch raises OutOfMemoryError itself, and Python MemoryError; the driver, cuBLAS and cuDNN,
    Metal and the allocator of the CPU are told by their text.
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and bool(_FULL.search(str(error)))


def full_memory(where: str, advice: str) -> ConfigError:
    """The error for full memory.

    Args:
        where: follows "memory is full".
        advice: follows "use".
    """
    return ConfigError(f"memory is full {where}; use {advice}")


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Turn running out of memory inside the block into an error that says what helps.

    Raises:
        ConfigError: from `full_memory`.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        first = (str(error).splitlines() or [type(error).__name__])[0]
        said = ". ".join(first.split(". ")[:2]).rstrip(".")  # of a long text
        raise full_memory(f"({said})", advice) from error
