"""Frozen linear layers and embeddings with quantized weights.

A weight is dequantized for one matrix product at a time, in the forward and again in the backward.
Nothing is saved for the backward but the codes themselves, so that a layer has no activations.

Shapes: `N` rows of input, `in` and `out` features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ptune.device.linear import linear
from ptune.quantization.backends.registry import Backend
from ptune.quantization.codec import quantize

# The head of a vocabulary takes a gigabyte dequantized; so many of its rows are at a time.
_ROWS_AT_ONCE = 32768
# Beyond so many rows of input, dequantizing first is faster than the fused kernel.
_FUSED_ROWS = 16


class FrozenLinear(nn.Module, ABC):
    """`x W^T + b` with a quantized weight that is dequantized for the product.

    Args:
        in_features: `in`.
        out_features: `out`.
        bias: whether there is one.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.bias = _frozen(torch.empty(out_features)) if bias else None

    @abstractmethod
    def pack(self, weight: Tensor) -> None:
        """Quantize a floating-point weight `[out, in]` that is on the device of the layer."""

    @abstractmethod
    def dequantize(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Rows `start` to `stop` of the weight, `[stop - start, in]`."""

    def multiply_fused(self, x: Tensor) -> Tensor | None:
        """`x W^T` by a fused kernel, or None if there is none for this layer and precision."""
        return None

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]`, in the precision of `x`."""
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        if not (x.requires_grad and torch.is_grad_enabled()):
            fused = self.multiply_fused(x) if x.numel() <= _FUSED_ROWS * self.in_features else None
            if fused is not None:
                return fused if self.bias is None else fused + self.bias.to(fused.dtype)
        return _Multiply.apply(x, self)  # type: ignore[no-any-return, no-untyped-call]

    @property
    @abstractmethod
    def kind(self) -> str:
        """How the weight is quantized: `4`, `8` or `nf4`, as in `--quantization-bit`."""

    @property
    @abstractmethod
    def storage(self) -> str:
        """How the weight is stored, for display."""

    def pieces(self) -> list[tuple[int, int]]:
        """The ranges of rows that are dequantized at once."""
        starts = range(0, self.out_features, _ROWS_AT_ONCE)
        return [(start, min(start + _ROWS_AT_ONCE, self.out_features)) for start in starts]

    def extra_repr(self) -> str:
        """What printing a model shows."""
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.storage}"


class _Multiply(torch.autograd.Function):
    """A linear function with a gradient for its input alone, neither for weight nor bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FrozenLinear) -> Tensor:
        ctx.layer = layer
        pieces = layer.pieces()
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        if len(pieces) == 1:
            return linear(x, layer.dequantize(*pieces[0], x.dtype), bias)
        out = x.new_empty(*x.shape[:-1], layer.out_features)
        for start, stop in pieces:
            part = None if bias is None else bias[start:stop]
            out[..., start:stop] = linear(x, layer.dequantize(start, stop, x.dtype), part)
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None
        layer: FrozenLinear = ctx.layer
        (start, stop), *others = layer.pieces()
        total = grad_output[..., start:stop] @ layer.dequantize(start, stop, grad_output.dtype)
        for start, stop in others:
            total += grad_output[..., start:stop] @ layer.dequantize(start, stop, grad_output.dtype)
        return total, None


class QuantizedLinear(FrozenLinear):
    """A linear layer in the official 4- or 8-bit storage.

    Args:
        in_features: `in`.
        out_features: `out`.
        bits: 4 or 8.
        bias: whether there is one.
        backend: dequantizes the weight.
    """

    def __init__(
        self, in_features: int, out_features: int, bits: int, bias: bool, backend: Backend
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.bits = bits
        self.backend = backend
        self.weight, self.weight_scale = _storage(out_features, in_features, bits)

    def pack(self, weight: Tensor) -> None:
        """Quantize a weight `[out, in]`."""
        codes, scale = quantize(weight, self.bits)
        self.weight, self.weight_scale = _frozen(codes), _frozen(scale.float())

    def dequantize(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Rows `start` to `stop` of the weight, `[stop - start, in]`."""
        weight, scale = self.weight[start:stop], self.weight_scale[start:stop]
        return self.backend.dequantize(weight, scale, self.bits, dtype)

    def multiply_fused(self, x: Tensor) -> Tensor | None:
        """`x W^T` by the fused kernel, if the backend has one for this precision."""
        if self.backend.multiply is None:
            return None
        rows = x.reshape(-1, self.in_features)
        product = self.backend.multiply(rows, self.weight, self.weight_scale, self.bits)
        return None if product is None else product.view(*x.shape[:-1], self.out_features)

    @property
    def kind(self) -> str:
        """As in `--quantization-bit`."""
        return str(self.bits)

    @property
    def storage(self) -> str:
        """How the weight is stored, for display."""
        return f"{self.bits} bits ({self.backend.name})"


class QuantizedEmbedding(nn.Module):
    """An embedding in the official storage; only the rows looked up are dequantized.

    The official chatglm-6b-int4-qe has it; its head shares the codes.

    Args:
        num_embeddings: size of the vocabulary.
        embedding_dim: hidden size.
        bits: 4 or 8.
        backend: dequantizes the rows.
        dtype: precision of the result.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        bits: int,
        backend: Backend,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.bits = bits
        self.backend = backend
        self.dtype = dtype
        self.weight, self.weight_scale = _storage(num_embeddings, embedding_dim, bits)

    def forward(self, input_ids: Tensor) -> Tensor:
        """`[...]` to `[..., embedding_dim]`."""
        ids = input_ids.flatten()
        rows = self.backend.dequantize(
            self.weight[ids], self.weight_scale[ids], self.bits, self.dtype
        )
        return rows.view(*input_ids.shape, -1)


def _storage(rows: int, columns: int, bits: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Codes and float32 scales of a weight `[rows, columns]`."""
    codes = torch.empty(rows, columns * bits // 8, dtype=torch.int8)
    return _frozen(codes), _frozen(torch.empty(rows, dtype=torch.float32))


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
