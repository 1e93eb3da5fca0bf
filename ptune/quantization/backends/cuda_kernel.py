"""The `nvrtc` backend: dequantize.cu, compiled at run time and launched by the driver API."""

from __future__ import annotations

import ctypes
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ptune.quantization.backends import card
from ptune.quantization.backends.cuda_driver import CudaError, Driver
from ptune.quantization.backends.nvrtc import compile_for

SOURCE = Path(__file__).with_name("dequantize.cu")
THREADS = 128  # as in the source
ROW_BYTES_PER_BLOCK = 16 * 4 * THREADS  # of the result: 16 bytes, four times, in each thread
MAX_ROWS_OF_GRID = 65535

_lock = threading.Lock()  # the backward runs in a thread of its own
_modules: dict[int, ctypes.c_void_p] = {}
_functions: dict[tuple[int, str], ctypes.c_void_p] = {}


@dataclass(frozen=True)
class Launch:
    """Launch parameters of a kernel of dequantize.cu, whichever backend launches it.

    Attributes:
        kernel: its name.
        grid: blocks in x and y.
        result: `[out, in]`, not yet filled.
        arguments: one C value for each parameter of the kernel.
    """

    kernel: str
    grid: tuple[int, int]
    result: Tensor
    arguments: tuple[ctypes.c_void_p | ctypes.c_longlong, ...]


def prepare(weight: Tensor, scale: Tensor, bits: int, dtype: torch.dtype) -> Launch:
    """Allocate the result and set the launch parameters; arguments as in `dequantize`.

    Raises:
        ValueError: tensors that the kernel would misread.
    """
    rows, packed = weight.shape
    if weight.dtype != torch.int8 or scale.dtype != torch.float32 or scale.shape != (rows,):
        raise ValueError(
            f"weight {weight.dtype} {list(weight.shape)} and scale {scale.dtype}"
            f" {list(scale.shape)}; wanted int8 [out, ...] and float32 [out]"
        )
    if not (weight.is_contiguous() and scale.is_contiguous() and weight.device == scale.device):
        raise ValueError("weight and scale must be contiguous and on the same device")
    columns = packed * 8 // bits
    result = torch.empty(rows, columns, dtype=dtype, device=weight.device)
    kernel = f"dequantize_int{bits}_{str(dtype).removeprefix('torch.')}"
    blocks = -(-columns * dtype.itemsize // ROW_BYTES_PER_BLOCK)
    pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (weight, scale, result))
    sizes = ctypes.c_longlong(rows), ctypes.c_longlong(columns)
    return Launch(kernel, (blocks, min(rows, MAX_ROWS_OF_GRID)), result, (*pointers, *sizes))


def dequantize(weight: Tensor, scale: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """Dequantize a weight, bit for bit as `ptune.quantization.codec.dequantize` does.

    Args:
        weight: int8, `[out, in]` (8 bits) or `[out, in / 2]` (4 bits), contiguous, on a card.
        scale: float32, `[out]`, on the same card.
        bits: 4 or 8.
        dtype: float16, bfloat16 or float32.

    Returns:
        `[out, in]`, queued on the current stream.

    Raises:
        NvrtcError: the kernel cannot be compiled.
        CudaError: it cannot be loaded or launched.
    """
    launch = prepare(weight, scale, bits, dtype)
    if launch.result.numel() == 0:
        return launch.result
    device = card.index(weight.device)
    function = _functions.get((device, launch.kernel)) or _load(weight.device, launch.kernel)
    stream = card.stream(weight.device)
    driver().launch(device, function, launch.grid, THREADS, stream, launch.arguments)
    return launch.result


@cache
def driver() -> Driver:
    """The driver library of the system, loaded once."""
    return Driver()


def compile_kernels(device: torch.device, fresh: bool = False) -> bytes:
    """Return dequantize.cu as machine code for a device."""
    found = card.describe(device)
    return compile_for(SOURCE.read_text(encoding="utf-8"), found.sm, found.cuda, fresh)


def _load(device: torch.device, kernel: str) -> ctypes.c_void_p:
    """Return a kernel on a device; its module is loaded there once."""
    number = card.index(device)
    with _lock:
        if number not in _modules:
            try:
                _modules[number] = driver().load(number, compile_kernels(device))
            except CudaError:  # the cached code may be damaged; a second failure is the driver's
                _modules[number] = driver().load(number, compile_kernels(device, fresh=True))
        function = driver().function(number, _modules[number], kernel)
        _functions[number, kernel] = function
        return function
