"""Products by oneDNN are those of torch, and only where nothing is to be derived."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ptune.device import linear as module
from ptune.device.linear import Linear, linear, take_fast_kernels

OUT, IN = 2200, 500


@pytest.fixture
def calls(monkeypatch):
    """How many products oneDNN made; it runs on every CPU, AVX-512 or not."""
    found = []
    multiply = torch.ops.mkldnn._linear_pointwise

    def counted(*arguments):
        found.append(arguments)
        return multiply(*arguments)

    monkeypatch.setattr(module, "_HAS_AVX512", True)
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", counted)
    return found


def case(bias=True, dtype=torch.float32):
    torch.manual_seed(0)
    layer = nn.Linear(IN, OUT, bias=bias, dtype=dtype).requires_grad_(False)
    return layer.weight, layer.bias


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(IN,), (1, 1, IN), (2, 7, IN), (2, 1, 3, IN)])
def test_products_are_those_of_torch(calls, shape, bias):
    weight, bias = case(bias)
    x = torch.randn(shape)
    torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias))
    assert len(calls) == 1


def test_of_parts_and_of_transposed_input(calls):
    weight, bias = case()
    for x in (torch.randn(4, 2 * IN)[:, ::2], torch.randn(IN, 4).t()):
        torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias))
    assert len(calls) == 2


def test_nan_stays_in_its_row(calls):
    weight, bias = case()
    x = torch.randn(3, IN)
    x[1, 5] = torch.nan
    assert linear(x, weight, bias).isnan().all(dim=1).tolist() == [False, True, False]
    assert calls


@pytest.mark.parametrize("of", ["input", "weight"])
def test_gradients_are_those_of_torch(calls, of):
    weight, bias = case()
    x = torch.randn(3, IN, requires_grad=of == "input")
    weight.requires_grad_(of == "weight")
    derived = x if of == "input" else weight
    found, expected = (multiply(x, weight, bias).sum() for multiply in (linear, F.linear))
    gradients = (torch.autograd.grad(total, derived)[0] for total in (found, expected))
    assert torch.equal(*gradients)
    assert not calls
    with torch.no_grad():
        linear(x, weight, bias)
    assert len(calls) == 1


def test_other_precisions_are_torchs(calls):
    for dtype in (torch.bfloat16, torch.float64):
        weight, bias = case(dtype=dtype)
        x = torch.randn(3, IN, dtype=dtype)
        assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    weight, bias = case()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(torch.randn(3, IN), weight, bias).dtype is torch.bfloat16
    assert not calls


def test_small_products_and_other_cpus_are_torchs(calls, monkeypatch):
    weight, bias = case()
    linear(torch.randn(3, IN), weight[:100], bias[:100])
    assert linear(torch.randn(0, IN), weight, bias).shape == (0, OUT)
    linear(torch.randn(1, 100), torch.randn(20_000, 100), None)
    monkeypatch.setattr(module, "_HAS_AVX512", False)
    linear(torch.randn(3, IN), weight, bias)
    assert not calls


def test_a_models_layers_are_taken_with_their_weights(calls):
    """And those of other kinds are left alone."""

    class Special(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(IN, OUT), nn.Sequential(nn.Linear(OUT, IN)), Special(IN, OUT))
    model.requires_grad_(False)
    before, x = model.state_dict(), torch.randn(2, IN)
    expected = model(x)
    take_fast_kernels(model)
    assert [type(layer) for layer in (model[0], model[1][0], model[2])] == [Linear, Linear, Special]
    assert all(
        tensor is before[name] or torch.equal(tensor, before[name])
        for name, tensor in model.state_dict().items()
    )
    torch.testing.assert_close(model(x), expected)
    assert len(calls) == 2
