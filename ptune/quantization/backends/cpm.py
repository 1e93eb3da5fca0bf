"""The `cpm` backend: dequantize.cu, launched through the package cpm_kernels.

None of the kernels that cpm_kernels brings dequantizes a weight, and they have machine code for
sm_61 to sm_86 only.  Its launcher takes any machine code, so it is given ours.  Nothing else in
ptune imports the package, whose import fails on many machines (no pkg_resources since setuptools
82; a CUDA runtime without a driver).
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ptune.quantization.backends import card
from ptune.quantization.backends.cuda_kernel import THREADS, compile_kernels, prepare


class CpmError(RuntimeError):
    """cpm_kernels cannot be imported; the reason is in the text."""


def dequantize(weight: Tensor, scale: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """Dequantize a weight; arguments and result as in `cuda_kernel.dequantize`.

    Raises:
        CpmError: the package cannot be imported.
        RuntimeError: it does not find its libraries, or the launch fails.
    """
    base, cudart = _packages()
    launch = prepare(weight, scale, bits, dtype)
    if launch.result.numel() == 0:
        return launch.result
    number = card.index(weight.device)
    with card.activate(weight.device):
        cudart.cudaSetDevice(number)  # of its own copy of CUDA's runtime
        kernel = base.KernelFunction(_module(number), launch.kernel)
        stream = ctypes.c_void_p(card.stream(weight.device))
        kernel((*launch.grid, 1), (THREADS, 1, 1), 0, stream, list(launch.arguments))
    return launch.result


@cache
def _packages() -> tuple[Any, Any]:
    try:
        from cpm_kernels.kernels import base
        from cpm_kernels.library import cudart
    except Exception as error:  # whatever its look-ups of libraries raise
        advice = "; pip install 'setuptools<82'" if "pkg_resources" in str(error) else ""
        name = type(error).__name__
        raise CpmError(f"import of cpm_kernels failed: {name}: {error}{advice}") from None
    return base, cudart


@cache
def _module(device: int) -> Any:
    """Return cpm_kernels' module with the kernels; one per card, since cards may differ."""
    base, _ = _packages()
    return base.LazyKernelCModule(compile_kernels(torch.device("cuda", device)))
