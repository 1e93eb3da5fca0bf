"""Training speed, ptune and others in one run: `python benchmarks/train_step.py --size tiny-cpu`.

A side is a process of its own (see `peers/protocol.py`).  Each is asked for one optimizer step in
turn, so that whatever else the machine does hits all alike; after warm-up, the median counts.  All
see the same records, ADGEN's with 64 + 64 tokens, in a random order of their own; weights are
random.

The original needs `--peer DIR` (a folder with its Python files) and `--peer-python` (of an
environment with transformers 4.27.1); PEFT needs `--peft-python`; `--baseline DIR` is another
checkout of ptune.  `--size 6b` needs a card and nothing else; see `train_step_6b.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peer_process import PeerProcess, original_files
from setting import (
    DATA,
    LENGTH,
    PREFIX,
    SIZES,
    TOKENIZERS,
    cpu_name,
    first_there,
    render_records,
)

BATCH = 16


def make_task(arguments: argparse.Namespace, length: int = LENGTH) -> dict[str, Any]:
    """What every side is told; records have `length` tokens a side at most."""
    records, tokenizer = render_records(arguments.data, arguments.tokenizer, length)
    config = SIZES[arguments.size] | {
        "vocab_size": 130528,
        "gmask_token_id": tokenizer.convert_tokens_to_ids("[gMASK]"),
        "mask_token_id": tokenizer.convert_tokens_to_ids("[MASK]"),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "position_encoding_2d": True,
    }
    return {
        "config": config,
        "records": records,
        "batch_size": BATCH,
        "pre_seq_len": PREFIX,
        "max_length": 2 * length,
        "threads": arguments.threads,
        "micro_batch": BATCH,
    }


class Side(PeerProcess):
    """A process that trains, and what it has answered."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.seconds: list[float] = []
        self.peak = 0

    def result(self) -> dict[str, Any]:
        """Figures for the table."""
        median = statistics.median(self.seconds)
        return {
            "side": self.name,
            "samples_per_second": BATCH / median,
            "seconds": median,
            "fastest": min(self.seconds),
            "slowest": max(self.seconds),
            "peak_bytes": self.peak,
            **self.about,
        }


def start_sides(arguments: argparse.Namespace, task: dict[str, Any], folder: Path) -> list[Side]:
    """Start what there is an environment for."""
    sides = [Side("ptune", sys.executable, "ptune_training.py", task, folder)]
    if arguments.baseline:
        # Another checkout of ptune, to see what a change has brought.
        earlier = arguments.baseline.resolve()
        sides.append(
            Side("baseline", sys.executable, "ptune_training.py", task, folder, path=earlier)
        )
    if arguments.peer:
        peer = task | {"peer": str(arguments.peer)}
        ways = {"original-float32": (False, BATCH), "original": (True, 1)}
        if not arguments.slow_steps:
            del ways["original"]
        for name, (half, micro) in ways.items():
            way = peer | {"half": half, "micro_batch": micro}
            sides.append(Side(name, arguments.peer_python, "original_training.py", way, folder))
    if arguments.peft_python:
        sides.append(Side("peft", arguments.peft_python, "peft_training.py", task, folder))
    return sides


def measure(sides: list[Side], arguments: argparse.Namespace) -> None:
    """Ask the sides in turn; the original's own settings are so slow that few steps must do."""
    for number in range(arguments.warm_up + arguments.steps):
        for side in sides:
            since = number - arguments.warm_up
            if side.name == "original" and not 0 <= since < arguments.slow_steps:
                continue
            answer = side.step()
            side.peak = answer["peak"]
            if number >= arguments.warm_up:
                side.seconds.append(answer["seconds"])
            print(f"{number:3} {side.name:18}{answer['seconds']:9.3f} s", file=sys.stderr)


def product_rate(threads: int) -> float:
    """Operations a second of a large float32 product."""
    import torch

    torch.set_num_threads(threads)
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    seconds = []
    for _ in range(7):
        begin = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - begin)
    return float(2 * 2048**3 / statistics.median(seconds[2:]))


def operations(task: dict[str, Any]) -> float:
    """What a step must compute of a mean batch: tokens that are no padding, logits of labels.

    Two operations a weight forward, two for the gradient of its input; attention's two products,
    and twice as many backward.
    """
    c, records = task["config"], task["records"]
    hidden, inner, layers = c["hidden_size"], c["inner_hidden_size"], c["num_layers"]
    total = 0.0
    for record in records:
        tokens = len(record["input_ids"])
        labels = sum(label != -100 for label in record["labels"])
        total += 4 * layers * tokens * (4 * hidden**2 + 2 * hidden * inner)
        total += 12 * layers * tokens * (tokens + task["pre_seq_len"]) * hidden
        total += 4 * labels * hidden * c["vocab_size"]
    return task["batch_size"] * total / len(records)


def show(results: list[dict[str, Any]], limit: float) -> None:
    """Print the table."""
    own = results[0]["samples_per_second"]
    head = f"{'samples/s':>10}{'s a step':>10}{'peak GB':>9}{'ptune is':>10}"
    print(f"{'':18}{head}  torch, transformers")
    for r in results:
        print(
            f"{r['side']:18}{r['samples_per_second']:10.2f}{r['seconds']:10.3f}"
            f"{r['peak_bytes'] / 10**9:9.2f}{own / r['samples_per_second']:9.2f}x"
            f"  {r['torch']}, {r['transformers']}"
        )
    share = limit / results[0]["seconds"]
    print(
        f"the products alone, at this processor's rate: {limit:.3f} s, {share:.0%} of ptune's step"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=[*SIZES, "6b"], default="tiny-cpu")
    parser.add_argument("--data", type=Path, default=first_there(DATA), help="ADGEN records")
    parser.add_argument("--tokenizer", type=Path, default=first_there(TOKENIZERS))
    parser.add_argument(
        "--peer", type=original_files, help="folder with the original's Python files"
    )
    parser.add_argument("--peer-python", default=sys.executable, help="Python to run it with")
    parser.add_argument("--peft-python", help="Python of an environment with peft")
    parser.add_argument("--baseline", type=Path, help="another checkout of ptune to compare with")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--slow-steps", type=int, default=2, help="of the original as it is")
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    if arguments.size == "6b":
        import train_step_6b

        train_step_6b.main(arguments)
        return
    task = make_task(arguments)
    with tempfile.TemporaryDirectory() as folder:
        sides = start_sides(arguments, task, Path(folder))
        measure(sides, arguments)
        for side in sides:
            side.end()
    results = [side.result() for side in sides]
    print(
        f"{arguments.size}: {cpu_name()}, {arguments.threads} threads, {platform.python_version()}"
    )
    rate = product_rate(arguments.threads)
    show(results, operations(task) / rate)
    if arguments.json:
        found = {"size": arguments.size, "cpu": cpu_name(), "threads": arguments.threads}
        found |= {"product_rate": rate, "operations": operations(task)}
        arguments.json.write_text(json.dumps(found | {"sides": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
