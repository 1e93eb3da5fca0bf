"""The dequantization backends for official 4- and 8-bit weights; each is imported when used."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from ptune.quantization.backends.nvrtc import NvrtcError, find_library

if TYPE_CHECKING:  # the names are read without torch
    import torch
    from torch import Tensor

    from ptune.quantization.backends.card import Card

    Dequantize = Callable[[Tensor, Tensor, int, torch.dtype], Tensor]
    Multiply = Callable[[Tensor, Tensor, Tensor, int], Tensor | None]

BACKENDS = ("nvrtc", "triton", "torch", "cpm")
# What is tried by default, best first; `torch` always works.  `cpm` is not in it: it launches the
# kernel of `nvrtc` and finds its libraries in fewer places, so that it never works where `nvrtc`
# does not.
FALLBACK_ORDER = ("nvrtc", "triton", "torch")


@dataclass(frozen=True)
class Backend:
    """A dequantization backend.

    Attributes:
        name: one of `BACKENDS`.
        dequantize: `(weight, scale, bits, dtype)` to `[out, in]`, as in `ptune.quantization.codec`.
        multiply: a fused kernel, `(x, weight, scale, bits)` to `x @ W.T` without a dequantized `W`
            in memory; `x` is `[..., in]`.  It returns None where it has no advantage, such as for
            many rows.  None if the backend has no such kernel.
    """

    name: str
    dequantize: Dequantize
    multiply: Multiply | None = None


def load_backend(name: str) -> Backend:
    """Import a backend; whether it works on a card is for `probe` to say."""
    if name == "nvrtc":
        from ptune.quantization.backends import cuda_kernel

        return Backend(name, cuda_kernel.dequantize)
    if name == "triton":
        from ptune.quantization.backends import triton_kernels

        return Backend(name, triton_kernels.dequantize, multiply)
    if name == "cpm":
        from ptune.quantization.backends import cpm

        return Backend(name, cpm.dequantize)
    from ptune.quantization import codec

    return Backend(name, codec.dequantize)


def missing_requirement(backend: str, card: Card) -> str | None:
    """Say what a backend lacks on this machine, as far as that is seen without launching it."""
    if backend in ("nvrtc", "cpm"):
        try:
            find_library(card.cuda)
        except NvrtcError as error:
            return str(error)
    if backend == "cpm" and importlib.util.find_spec("cpm_kernels") is None:
        return "cpm_kernels is not installed"
    if backend == "triton":
        if sys.platform != "linux":
            return "Triton runs on Linux only"
        if card.capability < (7, 0):
            return f"Triton needs a card of compute capability 7.0 or newer, not {card.sm / 10}"
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed"
    return None


@cache
def fused_rows(device: torch.device) -> int:
    """The most rows for which the fused kernel is faster than dequantizing first."""
    import torch

    from ptune.quantization.backends import triton_kernels

    return triton_kernels.most_rows(torch.cuda.get_device_capability(device))


def multiply(x: Tensor, weight: Tensor, scale: Tensor, bits: int) -> Tensor | None:
    """Multiply by a quantized weight with Triton's fused kernel for small batches.

    Args:
        x: `[..., in]`.
        weight: int8, `[out, in]` or `[out, in / 2]`.
        scale: float32, `[out]`.
        bits: 4 or 8.

    Returns:
        `x @ W.T` in the type of `x`, `[..., out]`; None for more than `fused_rows` or a type that
        is neither float16 nor bfloat16.
    """
    import torch

    rows = x.numel() // x.shape[-1]
    if not 0 < rows <= fused_rows(x.device) or x.dtype not in (torch.float16, torch.bfloat16):
        return None
    from ptune.quantization.backends import triton_kernels

    product = triton_kernels.multiply(x.reshape(rows, -1), weight, scale, bits)
    return product.reshape(*x.shape[:-1], -1)
