"""The ways to restore official 4- and 8-bit weights; each is imported when it is used."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from ptune.quantization.backends.nvrtc import NvrtcError, find_library

if TYPE_CHECKING:  # the names alone are asked for without torch
    import torch
    from torch import Tensor

    from ptune.quantization.backends.card import Card

    Dequantize = Callable[[Tensor, Tensor, int, torch.dtype], Tensor]
    Multiply = Callable[[Tensor, Tensor, Tensor, int], Tensor | None]

BACKENDS = ("nvrtc", "triton", "torch", "cpm")
# What is tried where nothing is asked for, best first; `torch` always works.  `cpm` is not there:
# it launches the very kernel of `nvrtc` through look-ups of libraries that find less, so that it
# never works where `nvrtc` does not.
AUTOMATIC = ("nvrtc", "triton", "torch")


@dataclass(frozen=True)
class Backend:
    """One way to use quantized weights.

    Attributes:
        name: one of `BACKENDS`.
        dequantize: `(weight, scale, bits, dtype)` to `[out, in]`, as in `ptune.quantization.codec`.
        multiply: `(x, weight, scale, bits)` to `x @ W.T`, without restoring `W` in memory; `x` is
            `[..., in]`.  It returns None where it has no advantage, such as for many rows.  None
            where there is no such thing.
    """

    name: str
    dequantize: Dequantize
    multiply: Multiply | None = None


def load_backend(name: str) -> Backend:
    """Import a way; whether it works on a card is for `probe` to say."""
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


def missing_requirement(name: str, card: Card) -> str | None:
    """Say what a way lacks on this machine, as far as that is seen without launching anything."""
    if name in ("nvrtc", "cpm"):
        try:
            find_library(card.cuda)
        except NvrtcError as error:
            return str(error)
    if name == "cpm" and importlib.util.find_spec("cpm_kernels") is None:
        return "cpm_kernels is not installed"
    if name == "triton":
        if sys.platform != "linux":
            return "Triton runs on Linux only"
        if card.capability < (7, 0):
            return f"Triton needs a card of compute capability 7.0 or newer, not {card.sm / 10}"
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed"
    return None


@cache
def fused_rows(device: torch.device) -> int:
    """Up to so many rows, multiplying by the packed weight is less work than restoring it first."""
    import torch

    from ptune.quantization.backends import triton_kernels

    return triton_kernels.most_rows(torch.cuda.get_device_capability(device))


def multiply(x: Tensor, weight: Tensor, scale: Tensor, bits: int) -> Tensor | None:
    """Multiply few rows with a packed weight by Triton.

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
