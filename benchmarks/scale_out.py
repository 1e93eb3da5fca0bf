"""Training in 1, 2 and 4 processes: `python benchmarks/scale_out.py --size small`.

The same run by `ptune train --processes N`, each process with one thread: whether the losses are
the same, CPU time per record, and bytes over the network per step against what a ring all-reduce of
the prefix's gradient takes.  Each N runs twice, for some steps and for more; what is reported is
the difference, so that starting is not in it.  The bytes are those of the loopback interface, on
which nothing else should happen meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil
from serve import make_config, make_model
from serve_http import TOKENIZER
from setting import DATA, PREFIX, cpu_name, first_there

STEPS = (10, 30)
BATCH = 16
LINKS = {"1 Gbit/s": 0.125e9, "10 Gbit/s": 1.25e9, "PCIe 3 x16": 12e9, "NVLink (H100)": 400e9}
# Values of a prefix of 128 tokens: layers, keys and values, heads, width of a head.
MODELS = {"ChatGLM-6B": 28 * 2 * 32 * 128 * PREFIX, "ChatGLM2-6B": 28 * 2 * 2 * 128 * PREFIX}


@dataclass
class Run:
    """What a run of so many steps took."""

    losses: list[float]
    cpu_seconds: float
    bytes: int


def run(options: list[str], processes: int, steps: int) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        sent = psutil.net_io_counters(pernic=True)["lo"].bytes_sent
        command = [sys.executable, "-m", "ptune", "train", *options, "--output", folder]
        command += ["--max-steps", str(steps), "--logging-steps", "1", "--save-steps", "1000"]
        command += ["--processes", str(processes)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        lines = (Path(folder) / "train_log.jsonl").read_text(encoding="utf-8").splitlines()
        return Run(
            [json.loads(line)["loss"] for line in lines],
            after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
            psutil.net_io_counters(pernic=True)["lo"].bytes_sent - sent,
        )


def model_options(size: str, folder: Path) -> tuple[list[str], int]:
    """The options of a model, and the bytes of its prefix's gradient."""
    if size == "tiny":
        return ["--model", "tiny", "--pre-seq-len", "128"], 4 * 262_144
    config = make_config(size)
    make_model(config).save_pretrained(folder)
    shutil.copy(TOKENIZER, folder / "tokenizer.model")
    groups = config.num_key_value_heads * config.head_dim
    values = PREFIX * config.num_hidden_layers * 2 * groups
    return ["--model", str(folder), "--prompt-format", "chatglm2"], 4 * values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=["tiny", "small"], default="small")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--data", type=Path, default=first_there(DATA), help="ADGEN records")
    asked = parser.parse_args()
    print(f"{cpu_name()}, one thread a process, batch {BATCH}, prefix {PREFIX}, dropout 0.1")
    with tempfile.TemporaryDirectory() as name:
        options, gradient = model_options(asked.size, Path(name))
        options += ["--data", str(asked.data), "--batch-size", str(BATCH)]
        first: list[float] = []
        for count in asked.processes:
            few, many = (run(options, count, steps) for steps in STEPS)
            steps = STEPS[1] - STEPS[0]
            first = first or many.losses
            apart = max(abs(a - b) for a, b in zip(first, many.losses, strict=True))
            cpu = (many.cpu_seconds - few.cpu_seconds) / (steps * BATCH)
            sent = (many.bytes - few.bytes) / steps
            theory = 2 * (count - 1) * gradient  # of all processes together
            print(
                f"{count} processes: losses within {apart:.1e}, {1 / cpu:.1f} records per second "
                f"of a core, {sent / 1e6:.2f} MB a step on the wire (ring all-reduce of the "
                f"gradient: {theory / 1e6:.2f})",
                flush=True,
            )
    print("\npredicted, not measured: seconds of a ring all-reduce a step, 8 and 64 cards")
    for model, values in MODELS.items():
        for link, speed in LINKS.items():
            seconds = [2 * (n - 1) / n * 4 * values / speed for n in (8, 64)]
            print(f"{model}, {4 * values / 1e6:.1f} MB, {link}: {seconds[0]:.4f}, {seconds[1]:.4f}")


if __name__ == "__main__":
    main()
