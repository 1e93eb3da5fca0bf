"""Quantized layers: forward, gradient of the input, and activations."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from ptune.quantization import frozen_linear
from ptune.quantization.backends.fallback import choose_backend
from ptune.quantization.backends.registry import Backend
from ptune.quantization.codec import dequantize, quantize
from ptune.quantization.frozen_linear import QuantizedEmbedding, QuantizedLinear

TORCH = choose_backend("torch", torch.device("cpu"))


def make_layer(bits, in_features=12, out_features=20, bias=True, backend=TORCH):
    torch.manual_seed(bits)
    layer = QuantizedLinear(in_features, out_features, bits, bias, backend)
    weight = torch.randn(out_features, in_features)
    layer.pack(weight)
    if bias:
        layer.bias.data = torch.randn(out_features)
    return layer, dequantize(*quantize(weight, bits), bits, torch.float32)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_equal_to_a_plain_layer_with_the_dequantized_weight(bits, bias):
    layer, weight = make_layer(bits, bias=bias)
    x = torch.randn(2, 3, 12, requires_grad=True)
    plain = x.detach().clone().requires_grad_()
    found, expected = layer(x), F.linear(plain, weight, layer.bias)
    assert torch.equal(found, expected)
    direction = torch.randn_like(found)
    found.backward(direction)
    expected.backward(direction)
    assert torch.equal(x.grad, plain.grad)
    assert all(p.grad is None for p in layer.parameters())


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_in_pieces(bits, monkeypatch):
    layer, weight = make_layer(bits)
    monkeypatch.setattr(frozen_linear, "_ROWS_AT_ONCE", 7)
    assert layer.pieces() == [(0, 7), (7, 14), (14, 20)]
    x = torch.randn(5, 12, requires_grad=True)
    plain = x.detach().clone().requires_grad_()
    found, expected = layer(x), F.linear(plain, weight, layer.bias)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(x.grad, plain.grad)


def test_nothing_is_saved_for_the_backward():
    layer, _ = make_layer(8, 64, 64)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(torch.randn(100, 64, requires_grad=True))
    assert saved == []


def test_no_gradient_is_computed_for_an_input_that_needs_none():
    calls = []

    def counted(*arguments):
        calls.append(1)
        return dequantize(*arguments)

    layer, _ = make_layer(4, backend=Backend("counted", counted, None))
    x = torch.randn(30, 12)
    assert not layer(x).requires_grad and len(calls) == 1
    x.requires_grad_()
    layer(x).sum().backward()
    assert len(calls) == 3


def test_gradient_of_a_gradient_is_refused():
    layer, _ = make_layer(4)
    x = torch.randn(30, 12, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.sum().backward()


def test_checkpointing_gives_the_same_gradient():
    layer, _ = make_layer(4)
    x = torch.randn(30, 12, requires_grad=True)
    layer(x).square().sum().backward()
    expected, x.grad = x.grad, None
    checkpoint(lambda t: layer(t).square().sum(), x, use_reentrant=False).backward()
    assert torch.equal(x.grad, expected)


def test_autocast_decides_the_precision():
    layer, weight = make_layer(8)
    x = torch.randn(30, 12, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert x.grad.dtype == torch.float32
    expected = F.linear(x.bfloat16(), weight.bfloat16(), layer.bias.bfloat16())
    torch.testing.assert_close(out, expected)


def test_small_batches_take_the_fused_kernel_if_there_is_one():
    calls = []

    def multiply(x, weight, scale, bits):
        calls.append(len(x))
        return None if len(x) > 2 else x @ dequantize(weight, scale, bits, x.dtype).T

    layer, weight = make_layer(4, backend=Backend("fused", dequantize, multiply))
    for rows, asked in ((1, [1]), (4, [1, 4]), (16, [1, 4, 16]), (17, [1, 4, 16])):
        x = torch.randn(1, rows, 12)
        torch.testing.assert_close(layer(x), F.linear(x, weight, layer.bias))
        assert calls == asked
    x.requires_grad_()
    layer(x[:, :1]).sum().backward()  # it has no gradient
    assert calls == asked


@pytest.mark.parametrize("bits", [4, 8])
def test_embedding_dequantizes_the_rows_that_are_looked_up(bits):
    looked_up = []

    def counted(weight, *arguments):
        looked_up.append(len(weight))
        return dequantize(weight, *arguments)

    torch.manual_seed(0)
    embedding = QuantizedEmbedding(50, 8, bits, Backend("counted", counted, None), torch.bfloat16)
    weight = torch.randn(50, 8)
    codes, scale = quantize(weight, bits)
    embedding.weight.data, embedding.weight_scale.data = codes, scale.float()
    ids = torch.tensor([[3, 49, 3], [0, 1, 2]])
    expected = F.embedding(ids, dequantize(codes, scale, bits, torch.bfloat16))
    assert torch.equal(embedding(ids), expected) and looked_up == [6]


def test_printing_says_how_weights_are_stored():
    layer, _ = make_layer(4)
    assert "in_features=12, out_features=20, 4 bits (torch)" in repr(layer)
