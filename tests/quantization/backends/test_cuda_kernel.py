"""dequantize.cu: compiled for the CPU by a host compiler, and on a simulated card."""

import threading

import pytest
import torch

from ptune.quantization import codec
from ptune.quantization.backends import card, cuda_driver, cuda_kernel
from ptune.quantization.backends.cache import write_cached
from ptune.quantization.backends.cuda_kernel import dequantize

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
SIZES = [(1, 1), (1, 4), (3, 8), (2, 16), (5, 7), (4, 512), (3, 2047), (2, 4096), (2, 4100)]


def bits_of(tensor):
    return tensor.view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


def random_weight(shape):
    return torch.randint(-128, 128, shape, dtype=torch.int8)


def image(sm):
    """What the simulated driver looks at: the start of a cubin."""
    return b"\x7fELF" + bytes(44) + bytes([sm, 0, 0, 0])


@pytest.fixture
def host(simulate, monkeypatch):
    """Run the kernels on the CPU; machine code is not needed for that, and so not compiled."""
    simulate("H100")
    monkeypatch.setattr(cuda_kernel, "compile_kernels", lambda *_, **__: image(90))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SIZES)
def test_same_bits_as_torch(host, bits, dtype, shape):
    torch.manual_seed(0)
    weight = random_weight(shape)
    scale = torch.randn(shape[0]) * 10 ** torch.empty(shape[0]).uniform_(-6, 2)
    result = dequantize(weight, scale, bits, dtype)
    expected = codec.dequantize(weight, scale, bits, dtype)
    assert result.shape == (shape[0], shape[1] * 8 // bits)
    assert torch.equal(bits_of(result), bits_of(expected))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_byte_with_every_kind_of_scale(host, bits, dtype):
    """Ties, subnormal numbers of each type, overflow to infinity, zeros of both signs."""
    powers = 2.0 ** torch.arange(-149, 128)
    wide = torch.randn(200) * 10 ** torch.empty(200).uniform_(-44, 38)
    largest = torch.tensor([65504 / 127, 65520 / 127, 3.4e38, 3.3895e38 / 127, 0.0])
    scale = torch.cat([powers, wide, largest])
    scale = torch.cat([scale, -scale])
    assert scale.isfinite().all()
    weight = torch.arange(256, dtype=torch.uint8).view(torch.int8).repeat(len(scale), 1)
    result = dequantize(weight, scale, bits, dtype)
    expected = codec.dequantize(weight, scale, bits, dtype)
    assert expected.isinf().any()
    assert torch.equal(bits_of(result), bits_of(expected))


@pytest.mark.parametrize("dtype", DTYPES)
def test_scales_that_are_not_finite_stay_so(host, dtype):
    weight = torch.tensor([[1, 0, -1, 5] * 4] * 2, dtype=torch.int8)
    scale = torch.tensor([float("inf"), float("nan")])
    result = dequantize(weight, scale, 8, dtype)
    expected = codec.dequantize(weight, scale, 8, dtype)
    assert torch.equal(result.isnan(), expected.isnan())
    assert torch.equal(result.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("bits", [4, 8])
def test_a_weight_that_starts_anywhere_in_memory(host, bits):
    """Rows of 4096 bytes would be read eight bytes at a time, if the first were aligned."""
    weight = random_weight((4 * 4096 + 1,))[1:].view(4, 4096)
    scale = torch.rand(4)
    assert weight.data_ptr() % 2 == 1
    result = dequantize(weight, scale, bits, torch.float16)
    assert torch.equal(result, codec.dequantize(weight, scale, bits, torch.float16))


def test_more_rows_than_a_grid_has(host):
    weight, scale = random_weight((70_000, 2)), torch.rand(70_000)
    result = dequantize(weight, scale, 4, torch.float16)
    assert torch.equal(result, codec.dequantize(weight, scale, 4, torch.float16))


def test_an_empty_weight_launches_nothing(host, monkeypatch):
    monkeypatch.setattr(cuda_driver.Driver, "launch", None)
    assert dequantize(random_weight((0, 8)), torch.rand(0), 4, torch.float16).shape == (0, 16)
    assert dequantize(random_weight((2, 0)), torch.rand(2), 8, torch.float16).shape == (2, 0)


@pytest.mark.parametrize(
    "weight, scale, message",
    [
        (random_weight((4, 8)).int(), torch.rand(4), "weight torch.int32"),
        (random_weight((4, 8)), torch.rand(4).half(), "scale torch.float16"),
        (random_weight((4, 8)), torch.rand(3), r"float32 \[3\]"),
        (random_weight((4, 8)).T, torch.rand(8), "contiguous and on the same device"),
    ],
)
def test_tensors_that_would_be_misread_are_refused(host, weight, scale, message):
    with pytest.raises(ValueError, match=message):
        dequantize(weight, scale, 8, torch.float16)


@pytest.mark.parametrize("name", ["P100", "T4", "H100"])
def test_compiled_for_the_card_at_hand(simulate, nvrtc, name):
    simulate(name)
    weight, scale = random_weight((3, 24)), torch.rand(3)
    result = dequantize(weight, scale, 4, torch.float16)
    assert torch.equal(result, codec.dequantize(weight, scale, 4, torch.float16))


def test_machine_code_of_an_earlier_card_is_refused_as_the_driver_says(simulate, monkeypatch):
    """What the original's kernels end with on a P100."""
    simulate("P100")
    monkeypatch.setattr(cuda_kernel, "compile_kernels", lambda *_, **__: image(61))
    with pytest.raises(cuda_driver.CudaError, match=r"no kernel image is available .*_GPU = 209"):
        dequantize(random_weight((3, 24)), torch.rand(3), 4, torch.float16)


def test_a_module_is_loaded_once_per_device(simulate, monkeypatch):
    simulate("H100")
    compiled = []

    def compile_kernels(device, fresh=False):
        compiled.append(device)
        return image(90)

    monkeypatch.setattr(cuda_kernel, "compile_kernels", compile_kernels)
    for number in (0, 1, 0, 1):
        monkeypatch.setattr(card, "index", lambda device, number=number: number)
        for bits in (4, 8):
            dequantize(random_weight((3, 24)), torch.rand(3), bits, torch.float16)
    assert len(compiled) == 2
    assert set(cuda_kernel._modules) == {0, 1}


def test_cached_code_that_the_driver_refuses_is_compiled_anew(simulate, nvrtc, cache, monkeypatch):
    simulate("P100")
    weight, scale = random_weight((3, 24)), torch.rand(3)
    expected = dequantize(weight, scale, 8, torch.float32)
    (file,) = cache.glob("cubin/*/sm_60/*.cubin")
    good = file.read_bytes()
    for bad in (b"", good[:100]):
        file.write_bytes(bad)
        monkeypatch.setattr(cuda_kernel, "_modules", {})
        monkeypatch.setattr(cuda_kernel, "_functions", {})
        assert torch.equal(dequantize(weight, scale, 8, torch.float32), expected)
        assert file.read_bytes() == good
    write_cached(file, b"whole, but no machine code")
    monkeypatch.setattr(cuda_kernel, "_modules", {})
    monkeypatch.setattr(cuda_kernel, "_functions", {})
    assert torch.equal(dequantize(weight, scale, 8, torch.float32), expected)
    assert file.read_bytes() == good


def test_launches_from_another_thread(simulate, nvrtc):
    """Autograd's backward runs in one, where no context is current yet."""
    simulate("P100")

    class Dequantize(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return dequantize(weight, scale, 8, torch.float32)

    weight, scale = random_weight((3, 24)), torch.rand(3)
    x = torch.zeros(3, 24, requires_grad=True)
    thread = threading.Thread(target=lambda: Dequantize.apply(x).sum().backward())
    thread.start()
    thread.join()
    assert torch.equal(x.grad, codec.dequantize(weight, scale, 8, torch.float32))


def test_constants_are_those_of_the_source():
    text = cuda_kernel.SOURCE.read_text(encoding="utf-8")
    assert f"#define THREADS {cuda_kernel.THREADS}\n" in text
    assert "#include" not in text  # the wheels of NVRTC bring no headers
