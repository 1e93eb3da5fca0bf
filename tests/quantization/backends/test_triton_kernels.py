"""The Triton kernels: in Triton's interpreter, compiled for cards, and run on one."""

import importlib
import os
import subprocess
import sys

import pytest
import torch

from ptune.quantization import codec

MODULE = "ptune.quantization.backends.triton_kernels"
HALVES = [torch.float16, torch.bfloat16]
# One unit in the last place; rounding alone takes half of it.
ERROR = {torch.float16: 2**-10, torch.bfloat16: 2**-7}
# (out, in) of ChatGLM-6B, and of ChatGLM2 with its projections whole and split.
SHAPES = [
    (4096, 4096),
    (12288, 4096),
    (16384, 4096),
    (4096, 16384),
    (4608, 4096),
    (256, 4096),
    (27392, 4096),
    (4096, 13696),
]
# The interpreter is chosen when triton is imported, so it has a process of its own.
INTERPRETED = f"""
import sys, torch
from {MODULE} import dequantize, multiply
kernels = dict(dequantize=dequantize, multiply=multiply)
calls = torch.load(sys.argv[1])
torch.save([kernels[name](*arguments) for name, arguments in calls], sys.argv[2])
"""


@pytest.fixture
def kernels():
    pytest.importorskip("triton", reason="triton is not installed")
    return importlib.import_module(MODULE)


@pytest.fixture
def interpret(tmp_path):
    """Run calls (name, arguments) in Triton's interpreter."""
    pytest.importorskip("triton", reason="triton is not installed")

    def run(calls):
        torch.save(calls, tmp_path / "calls.pt")
        command = [sys.executable, "-c", INTERPRETED, tmp_path / "calls.pt", tmp_path / "out.pt"]
        env = os.environ | {"TRITON_INTERPRET": "1"}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return torch.load(tmp_path / "out.pt")

    return run


def random_weight(rows, columns, bits, device="cpu"):
    shape = (rows, columns * bits // 8)
    weight = torch.randint(-128, 128, shape, dtype=torch.int8, device=device)
    return weight, torch.rand(rows, device=device) * 0.01 + 1e-4


def error_of_product(result, x, weight, scale, bits):
    """The largest error, in proportion to the largest value."""
    dequantized = codec.dequantize(weight, torch.ones_like(scale), bits, torch.float32)
    exact = x.double() @ (dequantized.double() * scale.double()[:, None]).T
    return ((result.double() - exact).abs().max() / exact.abs().max()).item()


def test_dequantize_in_the_interpreter(interpret):
    every_byte = torch.arange(-128, 128, dtype=torch.int8).repeat(3, 1)
    scales = torch.tensor([0.0123, 6e-8, 300.0])
    calls = [
        ("dequantize", (every_byte, scales.to(scale_dtype), bits, dtype))
        for bits in (4, 8)
        for scale_dtype in (torch.float32, *HALVES)
        for dtype in (torch.float32, *HALVES)
    ]
    for rows, columns in [(1, 2), (5, 10), (3, 5002)]:  # 5002: more than a block, and a rest
        for bits in (4, 8):
            calls.append(("dequantize", (*random_weight(rows, columns, bits), bits, torch.float16)))
    calls.append(("dequantize", (every_byte.T, torch.rand(256), 8, torch.float16)))  # not in order
    calls.append(("dequantize", (every_byte[:0], scales[:0], 4, torch.float16)))
    for (_, arguments), result in zip(calls, interpret(calls), strict=True):
        expected = codec.dequantize(*arguments)
        assert result.dtype == expected.dtype and result.shape == expected.shape
        if result.dtype == torch.bfloat16:  # the interpreter cuts off instead of rounding
            steps = result.view(torch.int16).int() - expected.view(torch.int16).int()
            assert steps.abs().max() <= 1
        else:
            assert torch.equal(result, expected)


def test_multiply_in_the_interpreter(interpret):
    calls = []
    for bits in (4, 8):
        # Fewer than a tile; tiles and split-K parts with a rest; one row of more than one step.
        for rows, columns in [(3, 10), (70, 1100), (5, 4600)]:
            weight, scale = random_weight(rows, columns, bits)
            for x_rows in (1, 2, 5, 16):
                x = torch.randn(x_rows, columns, dtype=torch.float16)
                calls.append(("multiply", (x, weight, scale, bits)))
            # The interpreter's `tl.dot` knows no bfloat16, so that only the GEMV is computed here.
            x = torch.randn(1, columns, dtype=torch.bfloat16)
            calls.append(("multiply", (x, weight, scale.bfloat16(), bits)))
        apart = torch.randn(2 * 10 + 1, dtype=torch.float16)[1:].view(2, 10)  # no whole integers
        calls.append(("multiply", (apart, *random_weight(7, 10, bits), bits)))
    for (_, arguments), result in zip(calls, interpret(calls), strict=True):
        x, weight, _, _ = arguments
        assert result.shape == (x.shape[0], weight.shape[0]) and result.dtype == x.dtype
        assert error_of_product(result, *arguments) < ERROR[x.dtype]


def compiled(kernel, arch, constants, warps=4, **pointers):
    """Compile a kernel as if for a card: every number an int32, shapes in multiples of 16."""
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    others = dict.fromkeys(names, "i32") | dict.fromkeys(constants, "constexpr")
    aligned = [name for name in names if name in pointers or name in ("rows", "row_bytes")]
    source = ASTSource(
        kernel,
        others | pointers,
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    return compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps})


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_compiles_for_cards_with_loads_of_16_bytes(kernels, bits, dtype, tmp_path, monkeypatch):
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1 replaces the compiler")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    weight = {"weight": "*i8", "scale": "*fp32", "out": f"*{dtype}"}
    x = {"x": "*i32" if bits == 4 else f"*{dtype}"}
    dequantize = compiled(
        kernels._dequantize_kernel, 75, {"BITS": bits, "BYTES": kernels._DEQUANTIZE_BYTES}, **weight
    )
    assert "ld.global.v4.b32" in dequantize.asm["ptx"]
    assert "st.global.v4.b32" in dequantize.asm["ptx"]
    gemv = compiled(
        kernels._gemv_kernel,
        70,
        {"STEPS": 2, "BITS": bits, "ROWS": kernels._GEMV_ROWS, "BYTES": kernels._GEMV_BYTES},
        kernels._GEMV_WARPS,
        **weight,
        **x,
    )
    assert "L1::evict_first.v4.b32" in gemv.asm["ptx"]  # the weight, read once
    gemm = compiled(
        kernels._gemm_kernel,
        80,
        {
            "STEPS": 4,
            "BITS": bits,
            "BFLOAT16": dtype == "bf16",
            "X_ROWS": kernels._X_ROWS,
            "ROWS": kernels._GEMM_ROWS,
            "BYTES": kernels._GEMM_BYTES,
        },
        kernels._GEMM_WARPS,
        weight="*i8",
        sums="*fp32",
        **x,
    )
    assert "mma.sync" in gemm.asm["ptx"]  # tensor cores
    add = {"sums": "*fp32", "scale": "*fp32", "out": f"*{dtype}"}
    sizes = {"SPLITS": kernels._MOST_SPLITS, "COLUMNS": kernels._SUM_COLUMNS}
    assert compiled(kernels._sum_kernel, 90, sizes, **add).asm["cubin"]


def test_gemm_needs_tensor_cores(kernels):
    assert [kernels.most_rows(card) for card in [(6, 0), (7, 5), (8, 0), (12, 0)]] == [1, 1, 16, 16]


def test_without_triton_the_import_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    with pytest.raises(ImportError, match="triton"):
        importlib.import_module(MODULE)


@pytest.fixture
def card(kernels):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs a card of compute capability 8.0, for bfloat16 and tensor cores")
    print("seed", torch.seed())  # other numbers each time, and how to repeat them
    return torch.device("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [*SHAPES, (3, 10), (33, 5002), (40000, 4096)])
def test_dequantize_on_a_card(kernels, card, shape, bits):
    weight, scale = random_weight(*shape, bits, card)
    for dtype in (torch.float32, *HALVES):
        expected = codec.dequantize(weight, scale, bits, dtype)
        assert torch.equal(kernels.dequantize(weight, scale, bits, dtype), expected)


@pytest.mark.gpu
def test_dequantize_on_a_card_beyond_32_bits(kernels, card):
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("needs 12 GiB of free memory")
    weight, scale = random_weight(530_000, 4096, 8, card)
    result = kernels.dequantize(weight, scale, 8, torch.float16)
    expected = codec.dequantize(weight[-9:], scale[-9:], 8, torch.float16)
    assert torch.equal(result[-9:], expected)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [*SHAPES, (3, 10), (33, 5002)])
def test_multiply_on_a_card(kernels, card, shape, bits, dtype):
    weight, scale = random_weight(*shape, bits, card)
    for x_rows in (1, 2, 3, 5, 8, 16):
        x = torch.randn(x_rows, shape[1], dtype=dtype, device=card)
        result = kernels.multiply(x, weight, scale, bits)
        assert result.shape == (x_rows, shape[0]) and result.dtype == dtype
        assert error_of_product(result, x, weight, scale, bits) < ERROR[dtype]
        assert torch.equal(result, kernels.multiply(x, weight, scale, bits))
