"""Start-up time of the commands: `python benchmarks/start_up.py [--runs 7] [--json FILE]`.

`ptune --help` beside `python -c "import typer, rich"`, and the time from the start of `ptune train`
on the built-in tiny model to the line of its first step, beside `import torch` and importing the
class of all models of transformers, without which no training begins.  All take turns; medians.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DATA = HERE.parent / "examples/AdvertiseGen/train.json"
# Compiled once, as an installed package is.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
PTUNE = [sys.executable, "-c", "from ptune.cli import app; app()"]


def run_seconds(command: list[str]) -> float:
    """Seconds from start to end of a program."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def first_step_seconds() -> float:
    """Seconds from the start of `ptune train` to its line about the first step."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*PTUNE, "train", "--model", "tiny", "--data", str(DATA), "--device", "cpu"]
        command += ["--output", f"{folder}/out", "--max-steps", "2", "--logging-steps", "1"]
        start = time.perf_counter()
        output = subprocess.PIPE
        with subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, text=True) as run:
            assert run.stdout is not None
            lines = []
            for line in run.stdout:
                lines.append(line)
                if line.startswith("step 1:"):
                    seconds = time.perf_counter() - start
                    run.stdout.read()
                    return seconds
        raise SystemExit("no first step:\n" + "".join(lines))


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def measure(runs: int) -> dict[str, list[float]]:
    """Seconds of each side, one run in turn after another; the first is to warm up."""
    sides = {
        "import typer, rich": lambda: run_seconds(python("import typer, rich")),
        "ptune --help": lambda: run_seconds([*PTUNE, "--help"]),
        "import torch": lambda: run_seconds(python("import torch")),
        "import transformers.PreTrainedModel": lambda: run_seconds(
            python("from transformers import PreTrainedModel")
        ),
        "ptune train, first step": first_step_seconds,
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(runs + 1):
        for name, side in sides.items():
            found = side()
            if number:
                seconds[name].append(found)
    return seconds


def machine() -> dict[str, Any]:
    packages = ("ptune", "torch", "transformers", "datasets", "typer", "rich")
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    seconds = measure(arguments.runs)
    print(f"{'':36} {'median':>8} {'best':>8} {'worst':>8}")
    for name, found in seconds.items():
        median = statistics.median(found)
        print(f"{name:36} {median:6.2f} s {min(found):6.2f} s {max(found):6.2f} s")
    ratios = [
        own / other
        for own, other in zip(seconds["ptune --help"], seconds["import typer, rich"], strict=True)
    ]
    ratio, first = statistics.median(ratios), statistics.median(seconds["ptune train, first step"])
    print(f"ptune --help / import typer, rich: {ratio:.2f} (wanted: at most 1.5)")
    print(f"first step of the tiny model: {first:.1f} s (wanted: at most 8)")
    if arguments.json:
        found_all = {"machine": machine(), "seconds": seconds, "help_ratio": ratio}
        arguments.json.write_text(json.dumps(found_all, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
