"""Rotary positions of ChatGLM-6B: one half of a head turns with the position, one with the block.

Re-implemented from THUDM/ChatGLM-6B (`modeling_chatglm.py` beside the weights).  Paper: RoFormer,
https://arxiv.org/abs/2104.09864.

Shapes: `B` batch, `S` tokens, `H` heads, `D` head dimension.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class RotaryEmbedding(nn.Module):
    """Cosines and sines for both halves of a head."""

    inv_freq: Tensor

    def __init__(self, rotary_dim: int, base: float = 10000.0) -> None:
        super().__init__()
        self.rotary_dim, self.base = rotary_dim, base
        self.register_buffer("inv_freq", self.frequencies(), persistent=False)

    def frequencies(self) -> Tensor:
        """`[D / 4]`, rounded: the original keeps them in half precision, as part of the model."""
        inv_freq = 1.0 / self.base ** (
            torch.arange(0, self.rotary_dim, 2).float() / self.rotary_dim
        )
        return inv_freq.half().float()

    def forward(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Map positions `[2, B, S]` to cosines and sines, both `[B, S, 2, D / 4]`."""
        angles = position_ids.permute(1, 2, 0)[..., None].float() * self.inv_freq.float()
        return angles.cos().to(dtype), angles.sin().to(dtype)


def split_heads(fused: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Take apart a projection and turn its queries and keys.

    Args:
        fused: `[B, S, H, 3 D]`, query, key and value of each head.
        cos: `[B, S, 2, D / 4]`, from `RotaryEmbedding`.
        sin: as `cos`.

    Returns:
        Query, key and value, `[B, H, S, D]` each.
    """
    if torch.is_grad_enabled() and fused.requires_grad:
        return _SplitHeads.apply(fused, cos, sin)  # type: ignore[no-any-return, no-untyped-call]
    *sizes, width = fused.shape
    parts = fused.view(*sizes, 3, 2, 2, width // 12)
    # Both at once: when a token is answered, it is the number of kernels that takes time.
    turned = turn(parts[:, :, :, :2], cos[:, :, None, None], sin[:, :, None, None]).flatten(-3)
    query, key = turned.transpose(1, 2).unbind(3)
    return query, key, parts[:, :, :, 2].flatten(-3).transpose(1, 2)


class _SplitHeads(torch.autograd.Function):
    """Written by hand: nothing is concatenated, neither forward nor in the gradient."""

    @staticmethod
    def forward(ctx: Any, fused: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        batch, length, heads, width = fused.shape
        # To query/key/value, position/block, and the halves that a rotation mixes.
        parts = fused.view(batch, length, heads, 3, 2, 2, width // 12)
        # Apart from each other: the key's storage can go when it has been put behind the prefix.
        query, key = (
            turn(parts[:, :, :, i], cos[:, :, None], sin[:, :, None]).flatten(-3).transpose(1, 2)
            for i in range(2)
        )
        ctx.save_for_backward(cos, sin)
        return query, key, parts[:, :, :, 2].flatten(-3).transpose(1, 2)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = (t[:, :, None] for t in ctx.saved_tensors)
        back = -sin
        batch, heads, length, dim = grads[0].shape
        out = grads[0].new_empty(batch, length, heads, 3, 2, 2, dim // 4)
        for index in range(2):
            grad = grads[index].transpose(1, 2).reshape(out.shape[:3] + out.shape[4:])
            turn(grad, cos, back, out[:, :, :, index])
        out[:, :, :, 2] = grads[2].transpose(1, 2).reshape(out.shape[:3] + out.shape[4:])
        return out.view(batch, length, heads, 3 * dim), None, None


def turn(states: Tensor, cos: Tensor, sin: Tensor, out: Tensor | None = None) -> Tensor:
    """Turn `[..., 2, 2, D / 4]` by the angles `[..., 2, D / 4]`."""
    out = torch.mul(states, cos[..., None, :], out=out)
    out[..., 0, :].addcmul_(states[..., 1, :], sin, value=-1)
    out[..., 1, :].addcmul_(states[..., 0, :], sin)
    return out
