"""Throughput of generation: `python benchmarks/generate.py --size tiny-cpu`, or `--size 6b`.

Evaluation: see `workload.py` for the workload.  Sides take turns; the median counts.  Against:

- ptune, one record at a time;
- the library's `generate` on the same model, in batches and one record at a time;
- the original code one record at a time, with `--peer DIR` and `--peer-python` (an environment with
  transformers 4.27.1).

The limit here: the GEMMs with weights alone, as if every slot were always busy and prefill cost
nothing.  On a card, chat as well: see `generate_6b.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from peer_process import PeerProcess, original_files
from setting import DATA, PREFIX, SIZES, cpu_name, first_there
from workload import (
    EOS,
    GMASK,
    PAD,
    SOP,
    Side,
    Workload,
    library_side,
    ptune_side,
    read_workload,
    show,
    take_turns,
)

from ptune.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from ptune.models.prefix_encoder import PrefixEncoder


def cpu_config(size: str) -> dict[str, Any]:
    ids = {"gmask_token_id": GMASK, "bos_token_id": SOP, "eos_token_id": EOS, "pad_token_id": PAD}
    return SIZES[size] | {"vocab_size": 130528, "mask_token_id": 130000} | ids


def cpu_model(size: str) -> Any:
    torch.manual_seed(0)
    model = ChatGLMForConditionalGeneration(ChatGLMConfig(**cpu_config(size)))
    model.tie_weights()
    model.requires_grad_(False)
    model.base_model.prefix_encoder = PrefixEncoder(model.base_model.prefix_shape, PREFIX)
    model.generation_config.eos_token_id = [EOS]
    return model


def start_peer(arguments: argparse.Namespace, work: Workload, folder: Path) -> PeerProcess:
    task = {"config": cpu_config(arguments.size) | {"position_encoding_2d": True}}
    task |= {"records": [], "pre_seq_len": PREFIX, "threads": arguments.threads}
    task |= {"prompts": work.prompts, "lengths": work.lengths}
    task |= {"peer": str(arguments.peer)}
    return PeerProcess("original", arguments.peer_python, "original_generation.py", task, folder)


def gemm_seconds(model: Any, rows: int) -> float:
    """Seconds of the GEMMs with weights in a decode step, for so many requests at once."""
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    inputs = {layer.in_features: torch.randn(rows, layer.in_features) for layer in layers}
    seconds = []
    with torch.inference_mode():
        for _ in range(12):
            begin = time.perf_counter()
            for layer in layers:
                layer(inputs[layer.in_features])
            seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[2:])


def on_cpu(arguments: argparse.Namespace) -> dict[str, Any]:
    """Evaluation on the processor."""
    torch.set_num_threads(arguments.threads)
    model = cpu_model(arguments.size).eval()
    work = read_workload(arguments.data, arguments.records)
    few = work.some(arguments.alone)
    size = arguments.batch_size
    sides = [
        ptune_side(f"ptune, {size} at once", model, work, size),
        ptune_side("ptune, one at a time", model, few, 1),
        library_side(f"generate, {size} at once", model, work, size),
        library_side("generate, one at a time", model, few, 1),
    ]
    about: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        peer = start_peer(arguments, few, Path(folder)) if arguments.peer else None
        if peer:
            sides.append(Side("original, one at a time", lambda: peer.step()["seconds"], few))
            about["peer"] = peer.about
        results = take_turns(sides, arguments.rounds)
        if peer:
            peer.end()
    for result, rows in zip(results[:2], (size, 1), strict=True):
        steps = result["tokens_per_second"] * result["seconds"] / rows
        result["of_limit"] = steps * gemm_seconds(model, rows) / result["seconds"]
    show(results)
    return about | {"evaluation": results}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=[*SIZES, "6b"], default="tiny-cpu")
    parser.add_argument("--model", choices=["chatglm-6b", "chatglm2-6b"], default="chatglm-6b")
    parser.add_argument("--data", type=Path, default=first_there(DATA), help="ADGEN records")
    parser.add_argument("--records", type=int, default=256, help="records in batches")
    parser.add_argument("--alone", type=int, default=16, help="records one at a time")
    parser.add_argument("--batch-size", type=int, default=64, help="on the processor")
    parser.add_argument(
        "--peer", type=original_files, help="folder with the original's Python files"
    )
    parser.add_argument("--peer-python", default=sys.executable, help="Python to run it with")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="on a card: kernels of a step")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    if arguments.size == "6b" and not torch.cuda.is_available():
        raise SystemExit("no CUDA card here; use --size tiny-cpu or small-cpu")
    device = torch.cuda.get_device_name() if arguments.size == "6b" else cpu_name()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{arguments.size} on {device}, {arguments.threads} threads, {versions}", flush=True)
    if arguments.size == "6b":
        import generate_6b

        found = generate_6b.on_card(arguments)
    else:
        found = on_cpu(arguments)
    found |= {"size": arguments.size, "device": device, "threads": arguments.threads}
    found |= {"torch": torch.__version__, "transformers": transformers.__version__}
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
