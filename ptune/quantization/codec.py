"""Codec of the official 4- and 8-bit storage: quantization and dequantization in plain torch.

Re-implemented from THUDM/ChatGLM-6B (`quantization.py` beside the weights): symmetric, one scale
for each output row.  Four bits: byte `j` of a row holds column `2j` in its high half and `2j + 1`
in its low half, both as two's complement.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ptune.errors import ModelError

SCALE_SUFFIX = "_scale"
# A whole layer's intermediate values would take several times the memory of its codes.
_VALUES_AT_ONCE = 2**22


def quantize(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Quantize a weight, byte for byte as the original does.

    The original divides in float16, which moves some codes by one; a weight in another precision is
    rounded to float16 first.  Where its codes would leave their range (rows of zeros, and rows so
    small that their scale has few bits left), these stay inside.

    Args:
        weight: `[out, in]`, on any device.
        bits: 4 or 8.

    Returns:
        Codes, int8 `[out, in]` (8 bits) or `[out, in / 2]` (4 bits), and scales, float16 `[out]`.

    Raises:
        ModelError: 4 bits of a weight with an odd number of columns.
    """
    if bits == 4 and weight.shape[-1] % 2:
        raise ModelError(
            f"a weight of {weight.shape[-1]} columns cannot be packed to 4 bits, which takes an "
            "even number; use --quantization-bit 8"
        )
    rows, columns = weight.shape
    codes = torch.empty(rows, columns * bits // 8, dtype=torch.int8, device=weight.device)
    scale = torch.empty(rows, dtype=torch.float16, device=weight.device)
    step = max(1, _VALUES_AT_ONCE // columns)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        codes[part], scale[part] = _quantize_rows(weight[part].half(), bits)
    return codes, scale


def _quantize_rows(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    largest = 2 ** (bits - 1) - 1
    # Not by `aminmax`, which takes twenty times as long in half precision on the CPU.
    scale = weight.abs().amax(dim=-1) / largest
    divisor = scale.masked_fill(scale == 0, 1)  # a row of zeros
    codes = (weight / divisor[:, None]).round_().clamp_(-largest, largest).to(torch.int8)
    if bits == 4:
        codes = (codes[:, 0::2] << 4) | (codes[:, 1::2] & 0xF)
    return codes, scale


def dequantize(weight: Tensor, scale: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """Dequantize a weight with plain torch operations, which run on every device.

    Args:
        weight: int8, `[out, in]` (8 bits) or `[out, in / 2]` (4 bits).
        scale: `[out]`, in float16, bfloat16 or float32.
        bits: 4 or 8.
        dtype: of the result; the product is computed in float32 and rounded once.

    Returns:
        `[out, in]`.
    """
    scale = scale.float()[:, None]
    if bits == 8:
        out = torch.empty(weight.shape, dtype=dtype, device=weight.device)
        return torch.mul(weight, scale, out=out)
    out = torch.empty((*weight.shape, 2), dtype=dtype, device=weight.device)
    torch.mul(weight >> 4, scale, out=out[..., 0])  # arithmetic shifts, so the sign stays
    torch.mul((weight << 4) >> 4, scale, out=out[..., 1])
    return out.flatten(-2)
