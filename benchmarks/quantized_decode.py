"""Latency of a linear layer in a decode step with quantized and unquantized weights.

Needs a CUDA card; takes about a minute.

    python benchmarks/quantized_decode.py --bits 4 --backend nvrtc --json decode.json

Compares, for each shape of a layer and each number of rows, in microseconds:

- plain: the weight in bfloat16, unquantized;
- dequantize: dequantize by the backend, then a GEMM;
- fused: the fused kernel on the codes (up to 16 rows).

The weights rotate among copies that exceed the level 2 cache, as those of a model do.  Calls are
captured as a CUDA graph and replayed, so that the card alone is timed; with --eager they are
launched from Python one after the other.  The sums are those of the linear layers of 28
blocks; attention, norms and the head are not in them.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ptune.quantization.backends import triton_kernels
from ptune.quantization.backends.registry import load_backend

LAYERS = 28
ROWS = (1, 2, 4, 8, 16, 32)
METHODS = ("plain", "dequantize", "fused")
# (out, in), and how often it is in a block.
MODELS = {
    "ChatGLM-6B": [(12288, 4096, 1), (4096, 4096, 1), (16384, 4096, 1), (4096, 16384, 1)],
    "ChatGLM2-6B": [(4096, 4096, 2), (256, 4096, 2), (27392, 4096, 1), (4096, 13696, 1)],
}
SHAPES = sorted({(out, columns) for model in MODELS.values() for out, columns, _ in model})
REPEATS = 9


def median_us(call: Callable[[int], object], copies: int, eager: bool) -> float:
    """The median time of one call; `call(i)` uses the copy `i` of the weight."""

    def round_of_calls() -> None:
        for i in range(copies):
            call(i)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        round_of_calls()  # compiles and allocates
    torch.cuda.synchronize()
    run: Callable[[], object] = round_of_calls
    if not eager:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            round_of_calls()
        run = graph.replay
    run()
    times = []
    for _ in range(REPEATS):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) * 1000 / copies)
    return statistics.median(times)


def copies_for(bytes_each: int) -> int:
    """How many copies exceed the level 2 cache."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return max(2, min(256, -(-3 * cache // bytes_each)))


def measure(
    out: int, columns: int, bits: int, backend: str, eager: bool
) -> dict[str, dict[int, float]]:
    """Microseconds of one shape, by method and rows."""
    dtype = torch.bfloat16
    dequantize = load_backend(backend).dequantize
    plain: list[Tensor] = [
        torch.randn(out, columns, dtype=dtype, device="cuda")
        for _ in range(copies_for(2 * out * columns))
    ]
    packed: list[Tensor] = [
        torch.randint(-128, 128, (out, columns * bits // 8), dtype=torch.int8, device="cuda")
        for _ in range(copies_for(out * columns * bits // 8))
    ]
    scale = torch.rand(out, device="cuda") * 0.01
    most = triton_kernels.most_rows(torch.cuda.get_device_capability())
    times: dict[str, dict[int, float]] = {method: {} for method in METHODS}
    for rows in ROWS:
        x = torch.randn(rows, columns, dtype=dtype, device="cuda")

        def multiply_plain(i: int, x: Tensor = x) -> object:
            return F.linear(x, plain[i])

        def dequantize_first(i: int, x: Tensor = x) -> object:
            return F.linear(x, dequantize(packed[i], scale, bits, dtype))

        def fused(i: int, x: Tensor = x) -> object:
            return triton_kernels.multiply(x, packed[i], scale, bits)

        times["plain"][rows] = median_us(multiply_plain, len(plain), eager)
        times["dequantize"][rows] = median_us(dequantize_first, len(packed), eager)
        if rows <= most:
            times["fused"][rows] = median_us(fused, len(packed), eager)
    return times


def show(name: str, times: dict[str, dict[int, float]], unit: str, digits: int) -> None:
    for method in METHODS:
        cells = [
            f"{times[method][rows]:9.{digits}f}" if rows in times[method] else f"{'-':>9}"
            for rows in ROWS
        ]
        print(f"{name:>16} {method:>10}" + "".join(cells), unit, flush=True)


def tokens_per_second(
    model: str, all_times: dict[tuple[int, int], dict[str, dict[int, float]]]
) -> dict[str, dict[int, float]]:
    """Throughput of all rows together, for the linear layers of a model alone."""
    result: dict[str, dict[int, float]] = {}
    for method in METHODS:
        result[method] = {}
        for rows in ROWS:
            parts = [
                (all_times[out, columns][method].get(rows), n) for out, columns, n in MODELS[model]
            ]
            if all(time is not None for time, _ in parts):
                block = sum(time * n for time, n in parts if time is not None)
                result[method][rows] = rows / (block * LAYERS * 1e-6)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bits", type=int, choices=(4, 8), default=4)
    parser.add_argument("--backend", choices=("torch", "triton", "nvrtc"), default="nvrtc")
    parser.add_argument("--eager", action="store_true", help="launch from Python, not from a graph")
    parser.add_argument("--json", type=Path, help="where the numbers go, too")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA card here; run this on a machine that has one")
    head = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {arguments.bits} bits"
    print(f"{head}, dequantized by {arguments.backend}, {'eager' if arguments.eager else 'graph'}")
    print(f"{'out x in':>16} {'rows':>10}" + "".join(f"{rows:9d}" for rows in ROWS))
    times = {}
    for out, columns in SHAPES:
        times[out, columns] = measure(
            out, columns, arguments.bits, arguments.backend, arguments.eager
        )
        torch.cuda.empty_cache()
        show(f"{out}x{columns}", times[out, columns], "us", 1)
    speeds = {model: tokens_per_second(model, times) for model in MODELS}
    for model, speed in speeds.items():
        show(model, speed, "tokens/s", 0)
    if arguments.json:
        settings = {
            "device": head,
            "bits": arguments.bits,
            "backend": arguments.backend,
            "eager": arguments.eager,
        }
        shapes = {f"{out}x{columns}": time for (out, columns), time in times.items()}
        report = settings | {"microseconds": shapes, "tokens_per_second": speeds}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
