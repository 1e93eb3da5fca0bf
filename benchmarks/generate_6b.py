"""Generation at the size of ChatGLM-6B on a card: `python benchmarks/generate.py --size 6b`.

Evaluation as on the processor, and chat: the latency from token to token of one request, in
bfloat16, 8 and 4 bits.

The limit: every weight is read once a decode step (head and layers; of the embeddings a row), and
the KV cache once a token; the bandwidth is that of a copy on the device.
"""

from __future__ import annotations

import argparse
import statistics
import time
from itertools import pairwise
from typing import Any

import torch
from memory import make_model, quantize_in_place
from setting import DATA, LENGTH, PREFIX, first_there
from workload import EOS, PAD, library_side, ptune_side, read_workload, show, take_turns

from ptune.generation.decoding import Decoder, Prompt
from ptune.generation.generate import generate_one
from ptune.generation.sampling import Sampling
from ptune.models.prefix_encoder import shown_prefix

GB = 10**9


def bandwidth() -> float:
    """Bytes a second of a copy on the card, reading and writing counted."""
    source = torch.empty(4 * GB, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = []
    for _ in range(8):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        target.copy_(source)
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / 1000)
    return 2 * len(source) / statistics.median(times)


def weight_bytes(model: Any) -> int:
    """Bytes of weights that a decode step reads: all but embeddings (if not tied) and prefix."""
    embedding = model.get_input_embeddings().weight
    skipped = {id(p) for p in model.base_model.prefix_encoder.parameters()}
    if model.get_output_embeddings().weight is not embedding:
        skipped.add(id(embedding))
    return sum(p.nbytes for p in model.parameters() if id(p) not in skipped)


def cache_bytes(model: Any) -> int:
    """Bytes of one position in the KV cache."""
    return int(model.base_model.prefix_shape.width) * 2


def chat(model: Any, name: str, speed: float, new: int, rounds: int) -> dict[str, Any]:
    """Latency from token to token of one request, in milliseconds."""
    model.generation_config.eos_token_id = []
    prompt = read_workload(first_there(DATA), 8).prompts[3]
    ours, theirs = [], []

    def library(tokens: int) -> float:
        begin = time.perf_counter()
        model.generate(
            torch.tensor([prompt], device="cuda"),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=PAD,
        ).tolist()
        return time.perf_counter() - begin

    for _ in range(rounds):
        arrived = [time.perf_counter() for _ in generate_one(model, prompt, Sampling(new))]
        gaps = [b - a for a, b in pairwise(arrived)]
        ours.append((statistics.median(gaps), statistics.mean(gaps)))
        theirs.append((library(24) - library(8)) / 16)
    median, mean = (statistics.median(x) for x in zip(*ours, strict=True))
    limit = weight_bytes(model) / speed
    print(
        f"{name:12}{1000 * median:10.2f}{1000 * mean:10.2f}"
        f"{1000 * statistics.median(theirs):12.2f}{1000 * limit:10.2f}{median / limit:10.2f}",
        flush=True,
    )
    return {
        "weights": name,
        "token_ms": 1000 * median,
        "token_ms_with_capture": 1000 * mean,
        "generate_ms": 1000 * statistics.median(theirs),
        "limit_ms": 1000 * limit,
        "times_limit": median / limit,
    }


def profile_steps(model: Any, slots: int) -> None:
    """Show the kernels that take the time of a decode step."""
    from torch.profiler import ProfilerActivity, profile

    work = read_workload(first_there(DATA), slots)
    decoder = Decoder(model, slots, 3 * LENGTH + PREFIX)
    prefix = shown_prefix(model)
    prompts = [Prompt(ids, Sampling(LENGTH), prefix) for ids in work.prompts]
    decoder.advance(decoder.begin(range(slots), prompts), decoder.num_layers)
    for _ in range(4):
        decoder.step(slots)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(20):
        decoder.step(slots)
    torch.cuda.synchronize()
    print(f"{slots} slots: {50 * (time.perf_counter() - begin):.2f} ms a step")
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(5):
            decoder.step(slots)
        torch.cuda.synchronize()
    events = sorted(profiler.key_averages(), key=lambda e: -e.self_device_time_total)
    for e in events[:14]:
        print(f"{e.self_device_time_total / 5000:9.3f} ms {e.count // 5:6} x {e.key[:90]}")


def on_card(arguments: argparse.Namespace) -> dict[str, Any]:
    """Evaluation and chat at the real size."""
    torch.manual_seed(0)
    speed = bandwidth()
    torch.cuda.empty_cache()
    print(f"bandwidth of a copy: {speed / 10**12:.2f} TB/s")
    model = make_model(arguments.model, torch.bfloat16).eval()
    chats, evaluations = [], []
    for bits in (None, 8, 4):
        if bits:
            quantize_in_place(model, bits)
            torch.cuda.empty_cache()
        name = f"int{bits}" if bits else "bfloat16"
        work = read_workload(arguments.data, arguments.records)
        model.generation_config.eos_token_id = [EOS]
        sides = [ptune_side(f"ptune {name}, {n} at once", model, work, n) for n in (64, 16)]
        if bits is None:
            sides.append(library_side(f"generate {name}, 64 at once", model, work, 64))
        results = take_turns(sides, arguments.rounds)
        for side, result, n in zip(sides, results, (64, 16, 64), strict=False):
            tokens = side.workload.lengths
            seen = sum(
                t * (PREFIX + len(p) + t / 2) for t, p in zip(tokens, work.prompts, strict=True)
            )
            bytes_read = sum(tokens) / n * weight_bytes(model) + seen * cache_bytes(model)
            result["of_limit"] = bytes_read / speed / result["seconds"]
        show(results)
        evaluations += results
        if arguments.profile:
            for slots in (1, 64):
                profile_steps(model, slots)
        heads = ("ms a token", "mean", "generate", "limit", "x limit")
        print(f"{'chat':12}{heads[0]:>10}{heads[1]:>10}{heads[2]:>12}{heads[3]:>10}{heads[4]:>10}")
        chats.append(chat(model, name, speed, 128, arguments.rounds))
    return {"bandwidth": speed, "evaluation": evaluations, "chat": chats}
