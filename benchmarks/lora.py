"""A step of P-Tuning against a step of LoRA: `python benchmarks/lora.py --size small-cpu`.

Both sides are ptune's own loop on the same model, records and batch, each a process of its own that
is asked for one step in turn, as in `train_step.py`.  The setting is the one in which LLaMA-Factory
compares its LoRA with the original's P-Tuning: batches of 4 with texts of at most 1,024 tokens, a
prefix of 128, rank 32, all linear layers.  `--records full` has texts of exactly that length;
`adgen` takes ADGEN's, which are far shorter, and nothing is padded to more than its batch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from setting import DATA, PREFIX, SIZES, TOKENIZERS, cpu_name, first_there
from train_step import Side, make_task

BATCH, CUTOFF, RANK = 4, 1024, 32


def full_records(task: dict[str, Any], length: int) -> list[dict[str, Any]]:
    """The task's records one after the other, cut into texts of `length` tokens; half is learnt."""
    config, half = task["config"], length // 2
    marks = [config["gmask_token_id"], config["bos_token_id"]]
    stream = [i for r in task["records"] for i in r["input_ids"] if i not in marks]
    found = []
    for start in range(0, len(stream) - length, length):
        text = stream[start : start + length - 2]
        ids = [*text[: half - 2], *marks, *text[half - 2 :]]
        found.append({"input_ids": ids, "labels": [-100] * half + ids[half:]})
    return found


def result(side: Side) -> dict[str, Any]:
    """Figures of a side."""
    median = statistics.median(side.seconds)
    return {
        "side": side.name,
        "samples_per_second": BATCH / median,
        "seconds": median,
        "fastest": min(side.seconds),
        "slowest": max(side.seconds),
        "peak_bytes": side.peak,
        "trainable": side.about["trainable"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=[*SIZES], default="small-cpu")
    parser.add_argument("--length", type=int, default=CUTOFF, help="most tokens of a record")
    parser.add_argument("--records", choices=["full", "adgen"], default="full")
    parser.add_argument("--rank", type=int, default=RANK)
    parser.add_argument("--data", type=Path, default=first_there(DATA), help="ADGEN records")
    parser.add_argument("--tokenizer", type=Path, default=first_there(TOKENIZERS))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    task = make_task(arguments, arguments.length // 2)
    task |= {"batch_size": BATCH, "micro_batch": BATCH}
    if arguments.records == "full":
        task["records"] = full_records(task, arguments.length)
    ways = {
        "p-tuning": {"pre_seq_len": PREFIX},
        "lora": {"method": "lora", "lora_rank": arguments.rank},
    }
    with tempfile.TemporaryDirectory() as folder:
        sides = [
            Side(name, sys.executable, "ptune_training.py", task | {"trained": way}, Path(folder))
            for name, way in ways.items()
        ]
        for number in range(arguments.warm_up + arguments.steps):
            for side in sides:
                said = side.step()
                side.peak = said["peak"]
                if number >= arguments.warm_up:
                    side.seconds.append(said["seconds"])
        for side in sides:
            side.end()
    results = [result(side) for side in sides]
    tokens = sum(len(r["input_ids"]) for r in task["records"]) / len(task["records"])
    print(
        f"{arguments.size}: {cpu_name()}, {arguments.threads} threads; batches of {BATCH}, "
        f"{tokens:.0f} tokens a record"
    )
    print(f"{'':10}{'trainable':>12}{'samples/s':>11}{'s a step':>10}{'peak GB':>9}")
    for r in results:
        print(
            f"{r['side']:10}{r['trainable']:12,}{r['samples_per_second']:11.2f}"
            f"{r['seconds']:10.3f}{r['peak_bytes'] / 10**9:9.2f}"
        )
    prefix, lora = results
    speed = lora["seconds"] / prefix["seconds"]
    memory = prefix["peak_bytes"] / lora["peak_bytes"]
    print(f"P-Tuning is {speed:.2f}x as fast as LoRA, and takes {memory:.2f}x its memory")
    if arguments.json:
        found = {"size": arguments.size, "cpu": cpu_name(), "tokens": tokens, "sides": results}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
