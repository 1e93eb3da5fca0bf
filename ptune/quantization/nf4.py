"""Linear layers in NF4, the 4-bit data type of QLoRA, with the optional package bitsandbytes.

Paper: QLoRA, https://arxiv.org/abs/2305.14314.  Weights are rounded less than in the official
4 bits, at half a bit more for each.  There is no file format for them: they are quantized while
loading and never written.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from ptune.errors import ConfigError
from ptune.quantization.frozen_linear import FrozenLinear

_BLOCK = 64  # values that share a scale, as in QLoRA


class NF4Linear(FrozenLinear):
    """A linear layer stored in NF4.

    Args:
        in_features: `in`.
        out_features: `out`.
        bias: whether there is one.

    Raises:
        ConfigError: bitsandbytes is missing or broken.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__(in_features, out_features, bias)
        _functions()
        values = in_features * out_features
        codes = torch.empty(-(-values // 2), 1, dtype=torch.uint8)
        scales = torch.empty(-(-values // _BLOCK), dtype=torch.float32)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.weight_absmax = nn.Parameter(scales, requires_grad=False)
        self.code: Tensor | None = None  # the sixteen values, on the weight's device

    def pack(self, weight: Tensor) -> None:
        """Quantize a weight `[out, in]`."""
        codes, state = _functions().quantize_4bit(
            weight.contiguous(), quant_type="nf4", blocksize=_BLOCK
        )
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.weight_absmax = nn.Parameter(state.absmax.float(), requires_grad=False)
        self.code = state.code

    def dequantize(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Rows `start` to `stop` of the weight, `[stop - start, in]`."""
        functions = _functions()
        state = functions.QuantState(
            absmax=self.weight_absmax,
            shape=torch.Size([self.out_features, self.in_features]),
            code=self.code,
            blocksize=_BLOCK,
            quant_type="nf4",
            dtype=dtype,
        )
        return functions.dequantize_4bit(self.weight, state)[start:stop]  # type: ignore[no-any-return]

    @property
    def kind(self) -> str:
        """As in `--quantization-bit`."""
        return "nf4"

    @property
    def storage(self) -> str:
        """How the weight is stored, for display."""
        return "nf4"


def _functions() -> Any:
    """The functions of bitsandbytes; imported when a layer needs them."""
    # It logs for everybody without Intel's kernels that they could be downloaded.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        from bitsandbytes import functional
    except Exception as error:  # a missing package, or a library for another CUDA
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"--quantization-bit nf4 needs bitsandbytes, which cannot be used ({reason}); "
            "pip install 'ptune[nf4]', or use --quantization-bit 4"
        ) from error
    return functional
