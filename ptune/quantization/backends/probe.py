"""Finds out whether a way to restore weights works on a card, by using it.

A kernel that fails may take its process with it, or leave it unable to use the card; so it is tried
in a process of its own.  The answer is remembered.
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

# The search path is the asking process's: with `-m` it would start with the working directory,
# whose files might bear any name.
MAIN = (
    "import os, sys; sys.path[:] = sys.argv.pop(1).split(os.pathsep);"
    " from ptune.quantization.backends.probe import main; main()"
)
TIMEOUT = 120.0  # seconds; torch may lie on a slow disk, and Triton compiles
FUSED = "triton-multiply"  # the fused multiplication, beside the names of the ways


@dataclass(frozen=True)
class Answer:
    """What a probe found out.

    Attributes:
        works: whether the way gives the right numbers.
        reason: why not, on one line.
        lasting: whether the same would come out tomorrow.  A missing library or a full card is not
            remembered.
    """

    works: bool
    reason: str = ""
    lasting: bool = True


def ask(name: str, device: torch.device, fresh: bool = False) -> Answer:
    """Say whether a way works on a card; from memory where it was tried before.

    Args:
        name: one of `BACKENDS`, or `FUSED`.
        device: of type cuda.
        fresh: try it in any case.
    """
    found = card.describe(device)
    lacking = missing_requirement("triton" if name == FUSED else name, found)
    if lacking:
        return Answer(False, lacking, lasting=False)
    file = cache_folder() / "probe" / f"{_key(name, found)}.json"
    remembered = None if fresh else _remembered(file)
    if remembered:
        return remembered
    answer = _try_in_process(name, device)
    if answer.lasting:
        write_cached(file, json.dumps(asdict(answer)).encode())
    return answer


def check(name: str, device: torch.device, dtypes: Sequence[torch.dtype]) -> str:
    """Use a way and compare with the torch way on the CPU, bit for bit.

    Args:
        name: one of `BACKENDS`, or `FUSED`.
        device: where to.
        dtypes: those to try.

    Returns:
        What is wrong, or nothing.
    """
    if name == FUSED:
        return _check_multiply(device, [dtype for dtype in dtypes if dtype != torch.float32])
    backend = load_backend(name)
    for weight, scale, bits in _cases():
        for dtype in dtypes:
            problem = _compare(backend, weight, scale, bits, dtype, device)
            if problem:
                return problem
    return ""


def command() -> list[str]:
    """Return how `main` is run by another process; its arguments follow."""
    return [sys.executable, "-c", MAIN, os.pathsep.join(sys.path)]


def start(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run `main` in a process of its own and wait for it."""
    return subprocess.run(
        [*command(), *arguments],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=TIMEOUT,
        check=False,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Try one way and print the answer as JSON."""
    parser = argparse.ArgumentParser(description="Try a way to restore quantized weights.")
    parser.add_argument("--backend", required=True)
    parser.add_argument("--device", required=True, type=torch.device)
    options = parser.parse_args(arguments)
    try:
        dtypes = [torch.float16, torch.float32]
        if card.describe(options.device).capability >= NATIVE_BFLOAT16:
            dtypes.append(torch.bfloat16)
        problem = check(options.backend, options.device, dtypes)
        answer = Answer(not problem, problem)
    except Exception as error:  # of any of the libraries that are tried here
        # The fused multiplication is a gift; that it needs a C compiler costs no later run a try.
        lasting = options.backend == FUSED and "out of memory" not in str(error)
        answer = Answer(False, _one_line(error), lasting)
    print(json.dumps(asdict(answer)))


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


def _check_multiply(device: torch.device, dtypes: Sequence[torch.dtype]) -> str:
    """Compare with a product in float64; a sum of rounded numbers is not the same bit for bit."""
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


def _try_in_process(name: str, device: torch.device) -> Answer:
    try:
        run = start(["--backend", name, "--device", f"cuda:{card.index(device)}"])
    except subprocess.TimeoutExpired:
        return Answer(False, f"its test did not end within {TIMEOUT:.0f} seconds")
    except OSError as error:
        return Answer(False, f"its test could not be started: {error}", lasting=False)
    answer = _parse((run.stdout.splitlines() or [""])[-1])
    if run.returncode == 0 and answer:
        return answer
    if run.returncode < 0:  # a signal; SIGKILL is of a machine without memory, not of the kernel
        name = signal.Signals(-run.returncode).name
        return Answer(False, f"its test was ended by {name}", lasting=name != "SIGKILL")
    last = (run.stderr.strip().splitlines() or ["without an answer"])[-1]
    return Answer(False, f"its test ended with code {run.returncode}: {last}", lasting=False)


def _parse(text: str | bytes) -> Answer | None:
    try:
        content = json.loads(text)
        works, reason = content["works"], content["reason"]
        if isinstance(works, bool) and isinstance(reason, str):
            return Answer(works, reason, content.get("lasting") is True)
    except (ValueError, TypeError, KeyError):
        pass
    return None


def _remembered(file: Path) -> Answer | None:
    content = read_cached(file)
    return _parse(content) if content else None


def _key(name: str, found: card.Card) -> str:
    """Return what an answer depends on, as a file name."""
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
    """Return a digest of everything that a probe runs."""
    folder = Path(__file__).parent
    files = [*folder.glob("*.py"), *folder.glob("*.cu"), Path(str(codec.__file__))]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in sorted(files))).hexdigest()


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if isinstance(error, RuntimeError) else f"{type(error).__name__}: {lines[0]}"
