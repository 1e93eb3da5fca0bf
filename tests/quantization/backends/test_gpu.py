"""Every backend on a real card: the same bits, on any stream and in autograd's thread."""

import pytest
import torch

from ptune.quantization import codec
from ptune.quantization.backends import probe
from ptune.quantization.backends.fallback import choose_backend, inspect_backends
from ptune.quantization.backends.registry import BACKENDS, load_backend, multiply

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA card", allow_module_level=True)
CUDA = torch.device("cuda", 0)
SHAPES = [(4096, 4096), (16384, 4096), (4096, 16384), (27392, 4096)]
DTYPES = [torch.float16, torch.bfloat16, torch.float32]
results = {}


@pytest.fixture(params=[name for name in BACKENDS if name != "torch"])
def backend(request):
    name = request.param
    if name not in results:
        results[name] = probe.probe_backend(name, CUDA)
    if not results[name].works:
        pytest.skip(f"{name} does not work here: {results[name].reason}")
    return load_backend(name)


def packed(shape, bits):
    rows, columns = shape
    generator = torch.Generator("cuda").manual_seed(0)
    wide = (rows, columns * bits // 8)
    weight = torch.randint(-128, 128, wide, dtype=torch.int8, device="cuda", generator=generator)
    # Around what a real scale is, and far down to results that are subnormal in float16.
    exponent = torch.rand(rows, device="cuda", generator=generator) * 7 - 8
    return weight, 10**exponent


def same_bits(one, other):
    integer = torch.int32 if one.dtype == torch.float32 else torch.int16
    return torch.equal(one.view(integer), other.view(integer))


def test_nvrtc_or_triton_works_on_a_card_of_today():
    if torch.cuda.get_device_capability(CUDA) >= (7, 0):
        assert choose_backend(None, CUDA).name in ("nvrtc", "triton")
    reports = {report.name: report for report in inspect_backends(CUDA)}
    for report in reports.values():
        print(report)
    assert reports["torch"].works
    assert all(report.works == (not report.reason) for report in reports.values())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [*SHAPES, (33, 4102), (5, 2), (70_000, 64)])
def test_same_bits_as_torch(backend, shape, bits, dtype):
    weight, scale = packed(shape, bits)
    result = backend.dequantize(weight, scale, bits, dtype)
    assert same_bits(result, codec.dequantize(weight, scale, bits, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [4, 8])
def test_every_byte_with_every_kind_of_scale(backend, bits, dtype):
    scale = torch.cat([2.0 ** torch.arange(-149, 128), torch.logspace(-44, 38, 300)])
    scale = torch.cat([scale, -scale, torch.zeros(1)]).cuda()
    weight = torch.arange(256, dtype=torch.uint8).view(torch.int8).repeat(len(scale), 1).cuda()
    result = backend.dequantize(weight, scale, bits, dtype)
    expected = codec.dequantize(weight.cpu(), scale.cpu(), bits, dtype)
    assert same_bits(result.cpu(), expected)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_weight_that_starts_anywhere_in_memory(backend, bits):
    """An access that is not aligned would end the process's use of the card."""
    weight, scale = packed((1, 4 * 4096 + 1), 8)
    weight, scale = weight.view(-1)[1:].view(4, 4096), scale.expand(4).contiguous()
    result = backend.dequantize(weight, scale, bits, torch.float16)
    assert same_bits(result, codec.dequantize(weight, scale, bits, torch.float16))


def test_more_than_32_bits_of_elements(backend):
    """Offsets beyond 2^31 elements, which a 32-bit index would wrap."""
    if torch.cuda.mem_get_info()[0] < 16e9:
        pytest.skip("needs 16 GB of free memory on the card")
    weight = torch.randint(-128, 128, (40_000, 32_768), dtype=torch.int8, device="cuda")
    scale = torch.rand(40_000, device="cuda")
    result = backend.dequantize(weight, scale, 4, torch.float16)
    assert result.numel() > 2**31
    for rows in (slice(0, 64), slice(32_700, 32_800), slice(39_936, 40_000)):
        expected = codec.dequantize(weight[rows], scale[rows], 4, torch.float16)
        assert same_bits(result[rows], expected)


def test_waits_for_its_own_stream_only(backend):
    """The weight is filled on the same stream, long after the call is queued."""
    weight, scale = packed((4096, 4096), 4)
    late = torch.zeros_like(weight)
    backend.dequantize(late, scale, 4, torch.float16)  # loaded beforehand
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        late.copy_(weight)
        result = backend.dequantize(late, scale, 4, torch.float16)
    stream.synchronize()
    assert same_bits(result, codec.dequantize(weight, scale, 4, torch.float16))


def test_in_the_thread_of_the_backward(backend):
    weight, scale = packed((4096, 4096), 8)

    class Dequantized(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * backend.dequantize(weight, scale, 8, torch.float32)

    x = torch.zeros(4096, 4096, device="cuda", requires_grad=True)
    Dequantized.apply(x).sum().backward()
    assert same_bits(x.grad, codec.dequantize(weight, scale, 8, torch.float32))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [1, 2, 7, 16])
def test_the_fused_kernel(shape, bits, rows):
    result = results.setdefault(probe.FUSED, probe.probe_backend(probe.FUSED, CUDA))
    if not result.works:
        pytest.skip(f"the fused kernel does not work here: {result.reason}")
    weight, scale = packed(shape, bits)
    scale = scale.clamp(1e-3, 1e-2)
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float16
    x = torch.randn(rows, shape[1], device="cuda").to(dtype)
    exact = x.double() @ codec.dequantize(weight, scale, bits, torch.float32).double().T
    result = multiply(x, weight, scale, bits)
    assert (result - exact).abs().max() <= 0.01 * exact.abs().max()
