"""Triton kernels for official 4- and 8-bit weights: dequantization, and fused GEMV and GEMM.

Importing this module imports triton, so only the backends that use it do.

All kernels are bound by memory bandwidth; a weight is read once and in whole bytes, 16 of them for
each thread.  `multiply` never writes the dequantized weight: its codes become operands in
registers, and since a scale belongs to a whole row of the weight, it is applied to the sum.

Shapes: `M` rows of input, `in` and `out` features; `B` bytes in a row of the weight.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_X_ROWS = 16  # of one tensor core tile
_DEQUANTIZE_BYTES = 2048
# GEMV (one row of input): rows and bytes of the weight that a thread block holds at once.
_GEMV_ROWS, _GEMV_BYTES, _GEMV_WARPS = 4, 2048, 4
# GEMM (up to `_X_ROWS` rows): the same for a tile, and the stages of its software pipeline.
_GEMM_ROWS, _GEMM_BYTES, _GEMM_WARPS, _GEMM_STAGES = 64, 128, 4, 4
# Blocks that occupy a large card (an H200 has 132 multiprocessors).  A constant, so that split-K,
# and with it the result, is the same on every card.
_BLOCKS = 512
_MOST_SPLITS = 16
_SUM_COLUMNS = 256


def most_rows(capability: tuple[int, int]) -> int:
    """The most rows of input that `multiply` takes.

    Before compute capability 8.0 Triton computes a GEMM without tensor cores and spills registers;
    the GEMV needs neither.

    Args:
        capability: of the card, as `torch.cuda.get_device_capability` gives it.
    """
    return _X_ROWS if capability >= (8, 0) else 1


def dequantize(weight: Tensor, scale: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """Dequantize a weight, bit for bit as `ptune.quantization.codec.dequantize` does.

    Args:
        weight: int8, `[out, in]` (8 bits) or `[out, in / 2]` (4 bits), on a CUDA device.
        scale: `[out]`, in float16, bfloat16 or float32, on the same device.
        bits: 4 or 8.
        dtype: of the result: float16, bfloat16 or float32.

    Returns:
        `[out, in]`.
    """
    weight, scale = weight.contiguous(), scale.contiguous()
    rows, row_bytes = weight.shape
    out = torch.empty(rows, row_bytes * 8 // bits, dtype=dtype, device=weight.device)
    if out.numel():
        row_blocks = triton.cdiv(row_bytes, _DEQUANTIZE_BYTES)
        with torch.cuda.device_of(weight):  # type: ignore[no-untyped-call]
            _dequantize_kernel[(rows * row_blocks,)](
                weight, scale, out, row_bytes, row_blocks, bits, _DEQUANTIZE_BYTES, num_warps=4
            )
    return out


def multiply(x: Tensor, weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """`x W^T` for few rows, by a fused kernel on the codes.

    Sums run in float32 and in a fixed order, so that the same input gives the same bits.  The
    result differs from a product with the dequantized weight by rounding alone.

    Args:
        x: `[M, in]` with 1 to `most_rows` rows, in float16 or bfloat16, on a CUDA device.
        weight: int8, `[out, in]` (8 bits) or `[out, in / 2]` (4 bits), on the same device.
        scale: `[out]`, in float16, bfloat16 or float32.
        bits: 4 or 8.

    Returns:
        `[M, out]` in the precision of `x`.
    """
    weight, scale, x = weight.contiguous(), scale.contiguous(), x.contiguous()
    if x.data_ptr() % 16:
        x = x.clone()  # pairs of columns are loaded as one integer
    out = torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype, device=x.device)
    # Four bits: one integer of x meets one byte of the weight, which holds the same two columns.
    columns = x.view(torch.int32) if bits == 4 else x
    with torch.cuda.device_of(weight):  # type: ignore[no-untyped-call]
        if x.shape[0] == 1:
            _gemv(columns, weight, scale, bits, out)
        else:
            _gemm(columns, weight, scale, bits, out)
    return out


def _gemv(x: Tensor, weight: Tensor, scale: Tensor, bits: int, out: Tensor) -> None:
    rows, row_bytes = weight.shape
    _gemv_kernel[(triton.cdiv(rows, _GEMV_ROWS),)](
        x,
        weight,
        scale,
        out,
        rows,
        row_bytes,
        triton.cdiv(row_bytes, _GEMV_BYTES),
        bits,
        _GEMV_ROWS,
        _GEMV_BYTES,
        num_warps=_GEMV_WARPS,
    )


def _gemm(x: Tensor, weight: Tensor, scale: Tensor, bits: int, out: Tensor) -> None:
    rows, row_bytes = weight.shape
    tiles = triton.cdiv(rows, _GEMM_ROWS)
    steps = triton.cdiv(row_bytes, _GEMM_BYTES)
    splits = min(_MOST_SPLITS, triton.cdiv(_BLOCKS, tiles), triton.cdiv(steps, 2))
    # Powers of two, so that the shapes of a model share compilations.
    steps_each = triton.next_power_of_2(triton.cdiv(steps, splits))
    splits = triton.cdiv(steps, steps_each)
    sums = torch.empty(splits, *out.shape, dtype=torch.float32, device=out.device)
    _gemm_kernel[(tiles, splits)](
        x,
        weight,
        sums,
        x.shape[0],
        rows,
        row_bytes,
        steps_each,
        bits,
        out.dtype == torch.bfloat16,
        _X_ROWS,
        _GEMM_ROWS,
        _GEMM_BYTES,
        num_warps=_GEMM_WARPS,
        num_stages=_GEMM_STAGES,
    )
    _sum_kernel[(triton.cdiv(rows, _SUM_COLUMNS), x.shape[0])](
        sums, scale, out, rows, splits, _MOST_SPLITS, _SUM_COLUMNS, num_warps=4
    )


@triton.jit  # type: ignore[untyped-decorator]
def _even_and_odd(codes, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """The values of high and low nibbles, without the conversion that is slow on most cards.

    A nibble, its sign bit flipped, becomes the low bits of a float whose unit in the last place is
    1.  The float's own value, and 8 for the sign bit, are subtracted again; both steps are exact.
    """
    byte = codes.to(tl.uint8, bitcast=True)
    if dtype == tl.float32:
        byte = byte.to(tl.int32)
        even = ((byte >> 4) ^ 0x4B000008).to(tl.float32, bitcast=True) - 8388616.0
        odd = ((byte & 0xF) ^ 0x4B000008).to(tl.float32, bitcast=True) - 8388616.0
    elif dtype == tl.float16:
        byte = byte.to(tl.int16)
        even = ((byte >> 4) ^ 0x6408).to(tl.float16, bitcast=True) - 1032.0
        odd = ((byte & 0xF) ^ 0x6408).to(tl.float16, bitcast=True) - 1032.0
    else:
        byte = byte.to(tl.int16)
        even = ((byte >> 4) ^ 0x4308).to(tl.bfloat16, bitcast=True) - 136.0
        odd = ((byte & 0xF) ^ 0x4308).to(tl.bfloat16, bitcast=True) - 136.0
    return even, odd


@triton.jit  # type: ignore[untyped-decorator]
def _dequantize_kernel(  # type: ignore[no-untyped-def]
    weight,
    scale,
    out,
    row_bytes,
    row_blocks,
    BITS: tl.constexpr,
    BYTES: tl.constexpr,
) -> None:
    """One block dequantizes `BYTES` bytes of one row."""
    row = (tl.program_id(0) // row_blocks).to(tl.int64)
    start = tl.program_id(0) % row_blocks * BYTES
    byte = start + tl.arange(0, BYTES)
    codes = tl.load(weight + row * row_bytes + byte, mask=byte < row_bytes, other=0)
    row_scale = tl.load(scale + row).to(tl.float32)
    if BITS == 4:
        even, odd = _even_and_odd(codes, tl.float32)
        values = tl.interleave(even, odd)
        columns = 2 * row_bytes
        column = 2 * start + tl.arange(0, 2 * BYTES)
    else:
        values = codes.to(tl.float32)
        columns = row_bytes
        column = byte
    values *= row_scale
    tl.store(out + row * columns + column, values.to(out.dtype.element_ty), mask=column < columns)


@triton.jit  # type: ignore[untyped-decorator]
def _gemv_kernel(  # type: ignore[no-untyped-def]
    x,
    weight,
    scale,
    out,
    rows,
    row_bytes,
    STEPS: tl.constexpr,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
    BYTES: tl.constexpr,
) -> None:
    """GEMV: one block multiplies `ROWS` rows of the weight, `BYTES` at a time."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_start = weight + row.to(tl.int64)[:, None] * row_bytes
    sums = tl.zeros([ROWS, BYTES], tl.float32)
    for step in range(STEPS):
        byte = step * BYTES + tl.arange(0, BYTES)
        inside = byte < row_bytes
        mask = (row < rows)[:, None] & inside[None, :]
        codes = tl.load(
            row_start + byte[None, :], mask=mask, other=0, eviction_policy="evict_first"
        )
        columns = tl.load(x + byte, mask=inside, other=0)
        if BITS == 4:
            dtype: tl.constexpr = out.dtype.element_ty
            x_even = columns.to(tl.int16).to(dtype, bitcast=True).to(tl.float32)
            x_odd = (columns >> 16).to(tl.int16).to(dtype, bitcast=True).to(tl.float32)
            even, odd = _even_and_odd(codes, tl.float32)
            sums += even * x_even[None, :]
            sums += odd * x_odd[None, :]
        else:
            sums += codes.to(tl.float32) * columns.to(tl.float32)[None, :]
    row_scale = tl.load(scale + row, mask=row < rows, other=0).to(tl.float32)
    values = tl.sum(sums, axis=1) * row_scale
    tl.store(out + row, values.to(out.dtype.element_ty), mask=row < rows)


@triton.jit(do_not_specialize=["x_rows"])  # type: ignore[untyped-decorator]
def _gemm_kernel(  # type: ignore[no-untyped-def]
    x,
    weight,
    sums,
    x_rows,
    rows,
    row_bytes,
    STEPS: tl.constexpr,
    BITS: tl.constexpr,
    BFLOAT16: tl.constexpr,
    X_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    BYTES: tl.constexpr,
) -> None:
    """Split-K GEMM: one block multiplies `ROWS` rows of the weight, over its part of K."""
    dtype: tl.constexpr = tl.bfloat16 if BFLOAT16 else tl.float16
    x_row = tl.arange(0, X_ROWS)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    x_start = x + x_row[:, None] * row_bytes
    row_start = weight + row.to(tl.int64)[None, :] * row_bytes
    total = tl.zeros([X_ROWS, ROWS], tl.float32)
    # Two accumulators: two dependency chains instead of one twice as long.
    total_odd = tl.zeros([X_ROWS, ROWS], tl.float32)
    for step in range(STEPS):
        byte = (tl.program_id(1) * STEPS + step) * BYTES + tl.arange(0, BYTES)
        inside = byte < row_bytes
        columns = tl.load(
            x_start + byte[None, :], mask=(x_row < x_rows)[:, None] & inside[None, :], other=0
        )
        codes = tl.load(
            row_start + byte[:, None], mask=(row < rows)[None, :] & inside[:, None], other=0
        )
        if BITS == 4:
            x_even = columns.to(tl.int16).to(dtype, bitcast=True)
            x_odd = (columns >> 16).to(tl.int16).to(dtype, bitcast=True)
            even, odd = _even_and_odd(codes, dtype)
            total = tl.dot(x_even, even, total)
            total_odd = tl.dot(x_odd, odd, total_odd)
        else:
            total = tl.dot(columns, codes.to(dtype), total)
    partial = sums + tl.program_id(1) * x_rows * rows
    tl.store(
        partial + x_row[:, None] * rows + row[None, :],
        total + total_odd,
        mask=(x_row < x_rows)[:, None] & (row < rows)[None, :],
    )


@triton.jit(do_not_specialize=["splits"])  # type: ignore[untyped-decorator]
def _sum_kernel(  # type: ignore[no-untyped-def]
    sums,
    scale,
    out,
    rows,
    splits,
    SPLITS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Add the partial sums of split-K in one row of the result, and apply the scale."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    split = tl.arange(0, SPLITS)
    x_row = tl.program_id(1)
    partials = tl.load(
        sums + (split[:, None] * tl.num_programs(1) + x_row) * rows + column[None, :],
        mask=(split < splits)[:, None] & (column < rows)[None, :],
        other=0,
    )
    row_scale = tl.load(scale + column, mask=column < rows, other=0).to(tl.float32)
    total = tl.sum(partials, axis=0) * row_scale
    tl.store(out + x_row * rows + column, total.to(out.dtype.element_ty), mask=column < rows)
