"""A training step at the size of ChatGLM-6B on a card: `python benchmarks/train_step.py --size 6b`.

The model is made on the card with random weights.  A step is what `PrefixTrainer` computes of 16
records: micro-batches, longest first, each as wide as its longest; one look at loss and gradient;
clipping; AdamW.  Its loop is written again here, so that a bare machine with torch and transformers
will do.

- `equal`: every record has 64 + 64 tokens; the median of steps after warm-up.
- `varied/N`: ADGEN's lengths padded to a multiple of N, another batch every step: the mean over
  some batches, `at first` when their shapes are new to the card, and when they come again.

The share of the card's matrix rate counts 4 x parameters x tokens that are no padding, against a
product of two square matrices measured here.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from memory import GMASK, SOP, make_model, quantize_in_place

from ptune.architecture import RELEASED, Architecture, Storage
from ptune.memory import Prefix, Training
from ptune.micro_batch import split
from ptune.prompt import IGNORE_INDEX
from ptune.train_memory import StepMemory

LENGTH, BATCH, PREFIX = 64, 16, 128
WARM_UP, STEPS, VARIED = 2, 5, 8
PARAMETERS = Architecture.from_config(RELEASED["chatglm-6b"]).parameters
# Tokens a character of ADGEN's prompts and responses, where the tokenizer is not at hand.
SOURCE_TOKENS, TARGET_TOKENS = 0.73, 0.6

Lengths = list[tuple[int, int]]


def read_lengths(arguments: argparse.Namespace) -> Lengths:
    """Tokens of prompt and response of every record."""
    from train_step import render_records

    try:
        records, _ = render_records(arguments.data, arguments.tokenizer)
    except ImportError as error:
        print(f"lengths are estimated from characters ({error})")
        rows = map(json.loads, arguments.data.read_text(encoding="utf-8").splitlines())
        return [
            (
                min(LENGTH, int(SOURCE_TOKENS * len(row["content"])) + 3),
                min(LENGTH, int(TARGET_TOKENS * len(row["summary"])) + 2),
            )
            for row in rows
        ]
    sources = [sum(label == IGNORE_INDEX for label in r["labels"]) for r in records]
    pairs = zip(records, sources, strict=True)
    return [(source, len(r["input_ids"]) - source) for r, source in pairs]


def make_batch(lengths: Lengths, multiple: int) -> dict[str, Any]:
    """Random records of these lengths as `StepCollator` batches them."""
    rows = sorted(lengths, key=lambda pair: -sum(pair))
    widths = [-(-sum(pair) // multiple) * multiple for pair in rows]
    ids = torch.randint(100, 60000, (len(rows), widths[0]))
    labels = ids.clone()
    for row, (source, target) in enumerate(rows):
        ids[row, source - 1], ids[row, source] = GMASK, SOP
        ids[row, source + target :] = 3
        labels[row, :source] = labels[row, source + target :] = IGNORE_INDEX
    labels = torch.where(labels == IGNORE_INDEX, labels, ids)
    return {"input_ids": ids, "labels": labels, "lengths": widths}


class Trainee:
    """A model, the optimizer of its prefix, and one step."""

    def __init__(self, model: Any) -> None:
        self.model = model.train()
        self.parameters = list(model.base_model.prefix_encoder.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-6)

    def step(self, batch: dict[str, Any], micro: int) -> float:
        """Seconds of an optimizer step."""
        torch.cuda.synchronize()
        begin = time.perf_counter()
        batch = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        items = (batch["labels"][:, 1:] != IGNORE_INDEX).sum()
        total = torch.zeros((), device="cuda")
        for part in split(batch, micro):
            loss = self.model(
                **part, use_cache=False, label_logits_only=True, num_items_in_batch=items
            ).loss
            loss.backward()
            total += loss.detach()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        torch.stack([total, norm]).tolist()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        torch.cuda.synchronize()
        return time.perf_counter() - begin


def matrix_rate() -> float:
    """Operations a second of a large product in bfloat16."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(12):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(4):
            a @ b
        torch.cuda.synchronize()
        seconds.append((time.perf_counter() - begin) / 4)
    return float(2 * 8192**3 / statistics.median(seconds[2:]))


def automatic(bits: int | None) -> int:
    """Where `--micro-batch-size auto` starts on this card, the model being there."""
    step = StepMemory(
        Architecture.from_config(RELEASED["chatglm-6b"]),
        Storage(2, str(bits) if bits else None),
        Training(1, LENGTH, LENGTH, Prefix(PREFIX)),
        stored=False,
    )
    return step.first_micro_batch(BATCH, torch.device("cuda", 0))


def measured(run: Callable[[], Any]) -> int:
    """Peak bytes of the card during `run`."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated()


def measure_equal(trainee: Trainee, micro: int) -> dict[str, Any]:
    """Steps of one shape."""
    batch = make_batch([(LENGTH, LENGTH)] * BATCH, 8)
    seconds: list[float] = []

    def run() -> None:
        seconds.extend(trainee.step(batch, micro) for _ in range(WARM_UP + STEPS))

    peak = measured(run)
    median = statistics.median(seconds[WARM_UP:])
    tokens = BATCH * 2 * LENGTH
    return {"mode": "equal", "seconds": median, "tokens": tokens, "peak_bytes": peak}


def measure_varied(trainee: Trainee, micro: int, lengths: Lengths, multiple: int) -> dict[str, Any]:
    """Steps of real lengths, with every batch twice."""
    alike = sorted(lengths, key=lambda pair: -sum(pair))
    starts = range(0, len(alike) - BATCH + 1, BATCH)
    chosen = random.Random(0).sample([alike[i : i + BATCH] for i in starts], VARIED)
    batches = [make_batch(batch, multiple) for batch in chosen]
    passes = [[trainee.step(batch, micro) for batch in batches] for _ in range(2)]
    return {
        "mode": f"varied/{multiple}",
        "first": statistics.mean(passes[0]),
        "seconds": statistics.mean(passes[1]),
        "tokens": statistics.mean(sum(map(sum, batch)) for batch in chosen),
    }


def show(row: dict[str, Any]) -> None:
    """Print a line of the table."""
    first = f"{BATCH / row['first']:9.1f}" if "first" in row else " " * 9
    peak = f"{row['peak_bytes'] / 10**9:8.2f}" if "peak_bytes" in row else ""
    print(
        f"{row['weights']:>5}{row['micro_batch']:>6}{'on' if row['cudnn'] else 'off':>7}"
        f"  {row['mode']:10}{1000 * row['seconds']:9.1f}{BATCH / row['seconds']:10.1f}{first}"
        f"{row['share']:8.1%}{peak}",
        flush=True,
    )


def measure_weights(model: Any, bits: int | None, lengths: Lengths, rate: float) -> list[Any]:
    """All modes with one kind of weights."""
    trainee, rows = Trainee(model), []
    largest = automatic(bits)
    for cudnn in (False, True):
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        for micro in sorted({1, largest}):
            found = [measure_equal(trainee, micro)]
            if micro > 1:
                found += [measure_varied(trainee, micro, lengths, m) for m in (1, 8)]
            for row in found:
                share = 4 * PARAMETERS * row["tokens"] / row["seconds"] / rate
                about = {"weights": bits or 16, "micro_batch": micro, "cudnn": cudnn}
                rows.append(about | row | {"share": share})
                show(rows[-1])
    return rows


def main(arguments: argparse.Namespace) -> None:
    """Measure 16, 8 and 4 bits; called by `train_step.py`."""
    if not torch.cuda.is_available():
        raise SystemExit("--size 6b measures a card, and torch sees no card")
    random.seed(0)
    torch.manual_seed(0)
    lengths = read_lengths(arguments)
    rate, name = matrix_rate(), torch.cuda.get_device_name()
    print(f"{name}, torch {torch.__version__}, transformers {transformers.__version__}")
    print(f"bfloat16 product: {rate / 10**12:.0f} TFLOP/s; {BATCH} records a step")
    print(" bits micro  cudnn  mode         ms/step samples/s  at first   share  peak GB")
    model, rows = make_model("chatglm-6b", torch.bfloat16), []
    for bits in (None, 8, 4):
        if bits:
            quantize_in_place(model, bits)
        rows += measure_weights(model, bits, lengths, rate)
    if arguments.json:
        found = {"device": name, "torch": torch.__version__, "matrix_rate": rate, "rows": rows}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
