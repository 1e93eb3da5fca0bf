"""Linear layers by the fastest float32 kernel of this CPU, where nothing is to be derived.

torch multiplies float32 matrices with MKL, which leaves AVX-512 unused on AMD; oneDNN, which torch
brings as well, uses it on both.  On Zen 5 it takes half the time with 32 rows of input or more, and
two thirds with one, where reading the weights is all (benchmarks/NOTES.md).  It keeps a kernel for
each shape of a product, up to 1,024 of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_HAS_AVX512 = (
    torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # no public name leads to it
)
# Finding the kernel takes 10 us a call, which fewer multiplications, or a single row of fewer
# inputs, do not win back.
_FEWEST_MULTIPLICATIONS, _FEWEST_INPUTS = 2**20, 128


class Linear(nn.Linear):
    """`x W^T + b`, `[..., in]` to `[..., out]`; in training it is torch's own."""

    def forward(self, input: Tensor) -> Tensor:
        """Multiply."""
        return linear(input, self.weight, self.bias)


def take_fast_kernels(model: nn.Module) -> None:
    """Make the plain linear layers of a model `Linear`; weights, names and hooks stay."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x W^T + b`.

    Args:
        x: `[..., in]`.
        weight: `[out, in]`.
        bias: `[out]`, or None.

    Returns:
        `[..., out]`.
    """
    if _HAS_AVX512 and _is_fast_case(x, weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]
    return F.linear(x, weight, bias)


def _is_fast_case(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == weight.device.type == "cpu"
        and x.dtype is weight.dtype is torch.float32
        and x.numel() >= _FEWEST_INPUTS
        and x.numel() * weight.shape[0] >= _FEWEST_MULTIPLICATIONS
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        and not torch.is_autocast_enabled("cpu")
    )
