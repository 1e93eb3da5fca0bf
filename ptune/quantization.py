"""The official storage of 4- and 8-bit weights.

Re-implemented from THUDM/ChatGLM-6B (`quantization.py` beside the weights): symmetric, one scale
for each output row.  Four bits: byte `j` of a row holds column `2j` in its high half and `2j + 1`
in its low half, both as two's complement.
"""

from __future__ import annotations

import torch
from torch import Tensor

SCALE_SUFFIX = "_scale"


def dequantize(weight: Tensor, scale: Tensor, in_features: int, dtype: torch.dtype) -> Tensor:
    """Restore a weight.

    Args:
        weight: int8, `[out, in]` (8 bits) or `[out, in / 2]` (4 bits).
        scale: `[out]`, in float16, bfloat16 or float32.
        in_features: `in`, which tells the two apart.
        dtype: of the result; the product is computed in float32 and rounded once.

    Returns:
        `[out, in]`.
    """
    if weight.shape[-1] * 2 == in_features:
        high, low = weight >> 4, (weight << 4) >> 4  # arithmetic shifts, so the sign stays
        weight = torch.stack([high, low], dim=-1).flatten(-2)
    return (weight.float() * scale.float()[:, None]).to(dtype)
