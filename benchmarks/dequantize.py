"""Bandwidth of the dequantization backends on the 4- and 8-bit weights of ChatGLM on a CUDA card.

    python benchmarks/dequantize.py [--json FILE] [--backends nvrtc triton torch] [--runs 50]

For the four linear layers of a block, it prints the bytes that a backend reads and writes (codes,
scales, result) for each second of the card's time, beside a copy within the card's memory, which
bounds them all, and the time that Python takes to queue one call.  `best` and `worst` are of the
runs of the same line.

The card's time is taken with CUDA events around a CUDA graph of as many calls as it takes to touch
more memory than the card's cache holds, each with a weight and a result of its own; so neither
Python's time nor the cache is in it.  The numbers are medians of many runs.  Needs torch and, for
its line, triton; nothing else of what ptune needs.  From a copy of the repository that is not
installed: `PYTHONPATH=. python benchmarks/dequantize.py`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ptune.quantization import codec
from ptune.quantization.backends.registry import BACKENDS, load_backend

LAYERS = {  # of ChatGLM-6B, `[out, in]`; and the widest of ChatGLM2
    "dense": (4096, 4096),
    "dense_h_to_4h": (16384, 4096),
    "dense_4h_to_h": (4096, 16384),
    "dense_h_to_4h (2)": (27392, 4096),
}
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
CACHES = 4  # the buffers of one run are this many times the level 2 cache


def median_time(call: Callable[[int], object], count: int, runs: int) -> dict[str, float]:
    """Seconds of one call on the card: median, best and worst of the runs.

    Args:
        call: takes the number of a buffer; what it returns is kept, so that no memory is reused.
        count: of buffers, all used in each run.
        runs: how many.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):  # compiled and loaded before the capture
            call(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [call(index) for index in range(count)]
    seconds = []
    for _ in range(runs + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1000 / count)
    del kept
    seconds = seconds[3:]  # the clocks of an idle card are low
    return {"median": statistics.median(seconds), "best": min(seconds), "worst": max(seconds)}


def queue_time(call: Callable[[int], object], runs: int) -> float:
    """Seconds that Python takes to queue one call; median of the runs."""
    seconds = []
    for _ in range(runs):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(10):
            call(0)
        seconds.append((time.perf_counter() - start) / 10)
    return statistics.median(seconds)


def buffers_for(size: int) -> int:
    """How many buffers of a size, in bytes, exceed the level 2 cache."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return max(8, -(-CACHES * cache // size))


def measure_copy(size: int, runs: int) -> dict[str, float]:
    """Times of a copy of so many bytes (read and written together) within the card's memory."""
    count = buffers_for(size)
    sources = [torch.ones(size // 2, dtype=torch.int8, device="cuda") for _ in range(count)]
    targets = [torch.empty_like(source) for source in sources]
    return median_time(lambda index: targets[index].copy_(sources[index]), count, runs)


def measure_backend(
    name: str, shape: tuple[int, int], bits: int, dtype: torch.dtype, runs: int
) -> dict[str, float | str]:
    """Times of one backend on one layer, or the error with which it failed."""
    rows, columns = shape
    size = rows * columns * bits // 8 + rows * 4 + rows * columns * dtype.itemsize
    count = buffers_for(size)
    packed = (count, rows, columns * bits // 8)
    weights = torch.randint(-128, 128, packed, dtype=torch.int8, device="cuda")
    scale = torch.rand(rows, device="cuda")
    try:
        backend = load_backend(name)
        expected = codec.dequantize(weights[0], scale, bits, dtype)
        if not torch.equal(backend.dequantize(weights[0], scale, bits, dtype), expected):
            return {"error": "gave other numbers"}

        def call(index: int) -> torch.Tensor:
            return backend.dequantize(weights[index], scale, bits, dtype)

        result: dict[str, float | str] = {"bytes": float(size)}
        result |= median_time(call, count, runs)
        return result | {"queue": queue_time(call, 20)}
    except Exception as error:  # a backend that is missing is a line of the table
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    names = [name for name in BACKENDS if name != "cpm"]
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=names)
    parser.add_argument("--runs", type=int, default=50)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/dequantize.py needs a CUDA card")

    card = torch.cuda.get_device_properties(0)
    software = f"torch {torch.__version__}, CUDA {torch.version.cuda}"
    print(f"{card.name}, sm_{card.major}{card.minor}, {software}; median of {options.runs} runs")
    print(f"{'backend':8}{'layer':20}{'shape':>14}{'bits':>6} {'result':10}", end="")
    print(f"{'GB/s':>8}{'copy':>8}{'% of it':>9}{'us':>9}{'best':>9}{'worst':>9}{'queue us':>10}")
    rows = []
    for layer, shape in LAYERS.items():
        for bits in (4, 8):
            size = shape[0] * shape[1] * (bits // 4 + 4) // 2
            copy = size / measure_copy(size, options.runs)["median"] / 1e9
            for dtype_name, dtype in DTYPES.items():
                if dtype == torch.bfloat16 and card.major < 8:
                    continue
                for name in options.backends:
                    times = measure_backend(name, shape, bits, dtype, options.runs)
                    row = {"backend": name, "layer": layer, "shape": shape, "bits": bits}
                    row |= {"dtype": dtype_name, "copy_gb_per_s": copy} | times
                    print_row(row)
                    rows.append(row)
                    torch.cuda.empty_cache()
    if options.json:
        about = {"card": card.name, "torch": torch.__version__, "cuda": torch.version.cuda}
        about |= {"capability": f"{card.major}.{card.minor}", "runs": options.runs}
        options.json.write_text(json.dumps(about | {"rows": rows}, indent=1), encoding="utf-8")


def print_row(row: dict[str, object]) -> None:
    shape = "x".join(map(str, row["shape"]))
    print(
        f"{row['backend']:8}{row['layer']:20}{shape:>14}{row['bits']:>6} {row['dtype']:10}", end=""
    )
    if "error" in row:
        print(f" {row['error']}", flush=True)
        return
    rate = row["bytes"] / row["median"] / 1e9
    micro = [row[key] * 1e6 for key in ("median", "best", "worst")]
    print(f"{rate:8.0f}{row['copy_gb_per_s']:8.0f}{100 * rate / row['copy_gb_per_s']:9.0f}", end="")
    print("".join(f"{value:9.1f}" for value in micro) + f"{row['queue'] * 1e6:10.1f}", flush=True)


if __name__ == "__main__":
    main()
