"""Probes whether a dequantization backend works on a card, by running it in a subprocess.

A kernel that fails may end its process, or leave it unable to use the card.  The result is cached.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ptune.device.precision import NATIVE_BFLOAT16
from ptune.files.cache_folder import cache_folder
from ptune.quantization import codec
from ptune.quantization.backends import card
from ptune.quantization.backends.cache import read_cached, write_cached
from ptune.quantization.backends.registry import (
    Backend,
    fused_rows,
    load_backend,
    missing_requirement,
    multiply,
)

# The search path is the parent process's: with `-m` it would start with the working directory,
# whose files might shadow any module.
MAIN = (
    "import os, sys; sys.path[:] = sys.argv.pop(1).split(os.pathsep);"
    " from ptune.quantization.backends.probe import main; main()"
)
TIMEOUT = 120.0  # seconds; torch may lie on a slow disk, and Triton compiles
FUSED = "triton-multiply"  # the fused kernel, beside the names of the backends


@dataclass(frozen=True)
class ProbeResult:
    """The result of a probe.

    Attributes:
        works: whether the backend gives the right numbers.
        reason: why not, on one line.
        lasting: whether it may be cached; not for a missing library or a card without memory.
    """

    works: bool
    reason: str = ""
    lasting: bool = True


def probe_backend(name: str, device: torch.device, fresh: bool = False) -> ProbeResult:
    """Return whether a backend works on a card, from the cache if it was probed before.

    Args:
        name: one of `BACKENDS`, or `FUSED`.
        device: of type cuda.
        fresh: probe again, whatever is cached.
    """
    found = card.describe(device)
    lacking = missing_requirement("triton" if name == FUSED else name, found)
    if lacking:
        return ProbeResult(False, lacking, lasting=False)
    file = cache_folder() / "probe" / f"{_key(name, found)}.json"
    cached = None if fresh else _cached_result(file)
    if cached:
        return cached
    result = _probe_in_subprocess(name, device)
    if result.lasting:
        write_cached(file, json.dumps(asdict(result)).encode())
    return result


def check(name: str, device: torch.device, dtypes: Sequence[torch.dtype]) -> str:
    """Run a backend and compare with the `torch` backend on the CPU, bit for bit.

    Args:
        name: one of `BACKENDS`, or `FUSED`.
        device: to run it on.
        dtypes: of the results to compare.

    Returns:
        What is wrong, or an empty string.
    """
    if name == FUSED:
        return _check_fused(device, [dtype for dtype in dtypes if dtype != torch.float32])
    backend = load_backend(name)
    for weight, scale, bits in _cases():
        for dtype in dtypes:
            problem = _compare(backend, weight, scale, bits, dtype, device)
            if problem:
                return problem
    return ""


def command() -> list[str]:
    """Return the command line that runs `main`; its arguments follow."""
    return [sys.executable, "-c", MAIN, os.pathsep.join(sys.path)]


def start(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run `main` in a subprocess and wait for it."""
    return subprocess.run(
        [*command(), *arguments],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=TIMEOUT,
        check=False,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Probe one backend and print the result as JSON."""
    parser = argparse.ArgumentParser(description="Probe a dequantization backend.")
    parser.add_argument("--backend", required=True)
    parser.add_argument("--device", required=True, type=torch.device)
    options = parser.parse_args(arguments)
    try:
        dtypes = [torch.float16, torch.float32]
        if card.describe(options.device).capability >= NATIVE_BFLOAT16:
            dtypes.append(torch.bfloat16)
        problem = check(options.backend, options.device, dtypes)
        result = ProbeResult(not problem, problem)
    except Exception as error:  # of any of the libraries that are probed here
        # The fused kernel is optional: its failure (no C compiler) is cached, for a faster start.
        lasting = options.backend == FUSED and "out of memory" not in str(error)
        result = ProbeResult(False, _one_line(error), lasting)
    print(json.dumps(asdict(result)))


def _cases() -> Iterator[tuple[Tensor, Tensor, int]]:
    """Yield weights, scales and bits: every byte; odd sizes; tiny, huge and negative scales."""
    values = [0.01, 1.0, -0.3, 3e-7, 6e-8, 1e-39, 0.0, 700.0, 3e38, 2.0**-24, 1 / 3]
    scales = torch.tensor(values, dtype=torch.float32)
    every_byte = torch.arange(256, dtype=torch.uint8).view(torch.int8)
    generator = torch.Generator().manual_seed(0)
    for shape in [(len(values), 256), (3, 1), (5, 7), (2, 4099), (2, 8200)]:
        if shape[1] == 256:
            weight = every_byte.expand(shape).contiguous()
        else:
            weight = torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator)
        for bits in (4, 8):
            yield weight, scales[: shape[0]], bits


def _compare(
    backend: Backend,
    weight: Tensor,
    scale: Tensor,
    bits: int,
    dtype: torch.dtype,
    device: torch.device,
) -> str:
    expected = codec.dequantize(weight, scale, bits, dtype)
    result = backend.dequantize(weight.to(device), scale.to(device), bits, dtype)
    card.synchronize(device)
    integer = torch.int32 if dtype == torch.float32 else torch.int16
    differ = result.cpu().view(integer) != expected.view(integer)
    if not differ.any():
        return ""
    return f"gave other numbers: {int(differ.sum())} of {differ.numel()} at {bits} bits in {dtype}"


def _check_fused(device: torch.device, dtypes: Sequence[torch.dtype]) -> str:
    """Compare the fused kernel with a product in float64; its sums round differently."""
    generator = torch.Generator().manual_seed(0)
    for bits in (4, 8):
        columns = 512 * bits // 8
        weight = torch.randint(-128, 128, (96, columns), dtype=torch.int8, generator=generator)
        scale = torch.rand(96, generator=generator) * 0.01
        counts = sorted({1, min(3, fused_rows(device)), fused_rows(device)})
        for rows, dtype in itertools.product(counts, dtypes):
            x = torch.randn(rows, 512, generator=generator).to(dtype)
            exact = x.double() @ codec.dequantize(weight, scale, bits, dtype).double().T
            result = multiply(x.to(device), weight.to(device), scale.to(device), bits)
            card.synchronize(device)
            error = float("nan") if result is None else (result.cpu() - exact).abs().max().item()
            if not error <= 0.02 * exact.abs().max().item():
                return f"gave other numbers: off by {error:.2g} at {bits} bits in {dtype}"
    return ""


def _probe_in_subprocess(name: str, device: torch.device) -> ProbeResult:
    try:
        run = start(["--backend", name, "--device", f"cuda:{card.index(device)}"])
    except subprocess.TimeoutExpired:
        return ProbeResult(False, f"its test did not end within {TIMEOUT:.0f} seconds")
    except OSError as error:
        return ProbeResult(False, f"its test could not be started: {error}", lasting=False)
    result = _parse((run.stdout.splitlines() or [""])[-1])
    if run.returncode == 0 and result:
        return result
    if run.returncode < 0:  # a signal; SIGKILL is of a machine without memory, not of the kernel
        name = signal.Signals(-run.returncode).name
        return ProbeResult(False, f"its test was ended by {name}", lasting=name != "SIGKILL")
    last = (run.stderr.strip().splitlines() or ["without an answer"])[-1]
    return ProbeResult(False, f"its test ended with code {run.returncode}: {last}", lasting=False)


def _parse(text: str | bytes) -> ProbeResult | None:
    try:
        content = json.loads(text)
        works, reason = content["works"], content["reason"]
        if isinstance(works, bool) and isinstance(reason, str):
            return ProbeResult(works, reason, content.get("lasting") is True)
    except (ValueError, TypeError, KeyError):
        pass
    return None


def _cached_result(file: Path) -> ProbeResult | None:
    content = read_cached(file)
    return _parse(content) if content else None


def _key(name: str, found: card.Card) -> str:
    """Return a hash of everything that a result depends on, as a file name."""
    parts = [name, *map(str, asdict(found).values()), _sources(), torch.__version__, _version()]
    return hashlib.sha256("\0".join([*parts, platform.python_version()]).encode()).hexdigest()[:32]


def _version() -> str:
    """Return Triton's version without importing it."""
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return ""


@cache
def _sources() -> str:
    """Return a hash of the sources that a probe runs."""
    folder = Path(__file__).parent
    files = [*folder.glob("*.py"), *folder.glob("*.cu"), Path(str(codec.__file__))]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in sorted(files))).hexdigest()


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if isinstance(error, RuntimeError) else f"{type(error).__name__}: {lines[0]}"
