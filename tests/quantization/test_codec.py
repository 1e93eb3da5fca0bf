"""The codec gives the official bytes, and dequantizes them exactly."""

import pytest
import torch
from fixtures.checkpoints import quantize as official

from ptune.errors import ModelError
from ptune.quantization.codec import dequantize, quantize


def test_eight_bits():
    weight = torch.tensor([[-127, 0, 5], [127, -1, 64]], dtype=torch.int8)
    scale = torch.tensor([0.5, 0.25], dtype=torch.float16)
    expected = [[-63.5, 0.0, 2.5], [31.75, -0.25, 16.0]]
    assert dequantize(weight, scale, 8, torch.float32).tolist() == expected


def test_four_bits_high_half_first():
    packed = [0x7F, 0x80, 0x1 << 4 | 0xE]  # 7 -1, -8 0, 1 -2
    weight = torch.tensor(packed, dtype=torch.uint8).view(torch.int8)[None]
    scale = torch.tensor([0.5], dtype=torch.float16)
    found = dequantize(weight, scale, 4, torch.float32)
    assert found.tolist() == [[3.5, -0.5, -4.0, 0.0, 0.5, -1.0]]


def test_every_pair_of_four_bit_values():
    values = torch.arange(-8, 8, dtype=torch.int8)
    high, low = values.repeat_interleave(16), values.repeat(16)
    packed = ((high << 4) | (low & 15))[None]
    scale = torch.ones(1, dtype=torch.float16)
    found = dequantize(packed, scale, 4, torch.float32)[0]
    assert found[0::2].tolist() == high.tolist() and found[1::2].tolist() == low.tolist()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rounding_error(bits, dtype):
    torch.manual_seed(0)
    weight = torch.randn(20, 32)
    found = dequantize(*official(weight, bits), bits, dtype)
    assert found.dtype == dtype and found.shape == weight.shape
    step = weight.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
    assert ((found.float() - weight).abs() <= 0.51 * step + 0.01 * weight.abs()).all()


@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_product_is_rounded_once(scale_dtype):
    weight = torch.full((1, 4), 99, dtype=torch.int8)
    scale = torch.tensor([0.0123], dtype=scale_dtype)
    expected = (99 * scale.double()).half()
    assert torch.equal(dequantize(weight, scale, 8, torch.float16)[0, :1], expected)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_packed_as_the_original_packs(bits, dtype):
    weight = torch.randn(200, 64, generator=torch.Generator().manual_seed(bits)).to(dtype)
    codes, scale = quantize(weight, bits)
    expected_codes, expected_scale = official(weight, bits)
    assert codes.dtype == torch.int8 and scale.dtype == torch.float16
    assert torch.equal(codes, expected_codes) and torch.equal(scale, expected_scale)


def test_division_is_in_half_precision():
    """In float32 some codes would be others; then files would differ from the original's."""
    weight = torch.randn(500, 64, generator=torch.Generator().manual_seed(0)).half()
    codes, scale = quantize(weight, 8)
    in_full = (weight.float() / scale.float()[:, None]).round().to(torch.int8)
    assert 0 < (codes != in_full).float().mean() < 0.05


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_of_zeros_stay_zeros(bits):
    weight = torch.randn(3, 8)
    weight[1] = 0
    codes, scale = quantize(weight, bits)
    assert scale[1] == 0 and not codes[1].any()
    assert not dequantize(codes, scale, bits, torch.float32)[1].any()


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_of_tiny_rows_stay_in_their_range(bits):
    """The scale of such a row has a few bits only; the original's codes wrapped around."""
    weight = torch.linspace(-1e-5, 1e-5, 64).repeat(100, 1) * torch.linspace(0.1, 3, 100)[:, None]
    dequantized = dequantize(*quantize(weight, bits), bits, torch.float32)
    largest = weight.abs().amax(dim=1, keepdim=True)
    step = 2.0**-24  # of the smallest half-precision numbers, which the scale is a multiple of
    assert ((dequantized - weight).abs() <= (0.5 * largest).clamp(min=64 * step)).all()
    assert ((dequantized * weight) >= -1e-14).all()  # no sign is turned around


def test_damaged_weights_stay_visible():
    weight = torch.ones(2, 4)
    weight[0, 1] = float("nan")
    dequantized = dequantize(*quantize(weight, 8), 8, torch.float32)
    assert dequantized[0].isnan().any()
    assert torch.allclose(dequantized[1], torch.ones(4), rtol=1e-3)


def test_odd_number_of_columns_in_four_bits():
    with pytest.raises(ModelError, match=r"5 columns cannot be packed to 4 bits.*use --q"):
        quantize(torch.ones(2, 5), 4)
    codes, _ = quantize(torch.ones(2, 5), 8)
    assert codes.shape == (2, 5)
