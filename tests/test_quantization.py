"""Packed weights come out exactly as they went in."""

import pytest
import torch
from checkpoints import quantize

from ptune.quantization import dequantize


def test_eight_bits():
    weight = torch.tensor([[-127, 0, 5], [127, -1, 64]], dtype=torch.int8)
    scale = torch.tensor([0.5, 0.25], dtype=torch.float16)
    expected = [[-63.5, 0.0, 2.5], [31.75, -0.25, 16.0]]
    assert dequantize(weight, scale, 3, torch.float32).tolist() == expected


def test_four_bits_high_half_first():
    packed = [0x7F, 0x80, 0x1 << 4 | 0xE]  # 7 -1, -8 0, 1 -2
    weight = torch.tensor(packed, dtype=torch.uint8).view(torch.int8)[None]
    scale = torch.tensor([0.5], dtype=torch.float16)
    found = dequantize(weight, scale, 6, torch.float32)
    assert found.tolist() == [[3.5, -0.5, -4.0, 0.0, 0.5, -1.0]]


def test_every_pair_of_four_bit_values():
    values = torch.arange(-8, 8, dtype=torch.int8)
    high, low = values.repeat_interleave(16), values.repeat(16)
    packed = ((high << 4) | (low & 15))[None]
    scale = torch.ones(1, dtype=torch.float16)
    found = dequantize(packed, scale, 512, torch.float32)[0]
    assert found[0::2].tolist() == high.tolist() and found[1::2].tolist() == low.tolist()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rounding_error(bits, dtype):
    torch.manual_seed(0)
    weight = torch.randn(20, 32)
    found = dequantize(*quantize(weight, bits), 32, dtype)
    assert found.dtype == dtype and found.shape == weight.shape
    step = weight.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
    assert ((found.float() - weight).abs() <= 0.51 * step + 0.01 * weight.abs()).all()


@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_product_is_rounded_once(scale_dtype):
    weight = torch.full((1, 4), 99, dtype=torch.int8)
    scale = torch.tensor([0.0123], dtype=scale_dtype)
    expected = (99 * scale.double()).half()
    assert torch.equal(dequantize(weight, scale, 4, torch.float16)[0, :1], expected)
