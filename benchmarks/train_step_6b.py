"""A training step at the size of ChatGLM-6B on a card: `python benchmarks/train_step.py --size 6b`.

The model is made on the card with random weights.  A step is what `AdapterTrainer` computes of 16
records: micro-batches, longest first, each as wide as its longest; one look at loss and gradient;
clipping; AdamW.  Its loop is written again here, so that a bare machine with torch and transformers
will do.

- `equal`: every record has 64 + 64 tokens; the median of steps after warm-up.
- `varied`: ADGEN's lengths, another batch every step: the mean over some batches, `at first` when
  their shapes are new to the card, and when they come again.  Also with cuDNN's attention, which
  `build_model` switches off.

With `--peer DIR` (the Python files of the original, whose training today's transformers can run),
the original in float16 takes turns with ptune in bfloat16 over ADGEN's records: as it is
(micro-batch 1), and at its best (micro-batch 16).

The share of the card's matrix rate counts 4 x parameters x tokens that are no padding, against a
product of two square matrices measured here.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from memory import GMASK, SOP, make_model, quantize_in_place
from peer_process import PEERS
from setting import render_records

from ptune.base.architecture import RELEASED, Architecture, Storage
from ptune.data.prompt_source import IGNORE_INDEX
from ptune.device.memory import Prefix, Training
from ptune.training.micro_batch import split
from ptune.training.step_memory import StepMemory

LENGTH, BATCH, PREFIX = 64, 16, 128
WARM_UP, STEPS, VARIED, ROUNDS = 2, 5, 8, 3
PAD = 3
PARAMETERS = Architecture.from_config(RELEASED["chatglm-6b"]).parameters
# Tokens a character of ADGEN's prompts and responses, where the tokenizer is not at hand.
SOURCE_TOKENS, TARGET_TOKENS = 0.73, 0.6

Records = list[dict[str, list[int]]]
Row = dict[str, Any]


def read_lengths(arguments: argparse.Namespace) -> list[tuple[int, int]]:
    """Tokens of prompt and response of every record."""
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


def make_record(source: int, target: int) -> dict[str, list[int]]:
    """Random tokens, as many as a prompt (with its control tokens) and a response have."""
    ids = [random.randrange(100, 60000) for _ in range(source + target)]
    ids[source - 1], ids[source] = GMASK, SOP
    return {"input_ids": ids, "labels": [IGNORE_INDEX] * source + ids[source:]}


def make_batch(records: Records) -> dict[str, Any]:
    """As `StepCollator`: the longest first."""
    rows = sorted(records, key=lambda record: -len(record["input_ids"]))
    lengths = [len(row["input_ids"]) for row in rows]

    def padded(name: str, value: int) -> torch.Tensor:
        return torch.tensor([r[name] + [value] * (lengths[0] - len(r[name])) for r in rows])

    ids, labels = padded("input_ids", PAD), padded("labels", IGNORE_INDEX)
    return {"input_ids": ids, "labels": labels, "lengths": lengths}


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


def measure_equal(trainee: Trainee, micro: int) -> Row:
    """Steps of one shape."""
    batch = make_batch([make_record(LENGTH, LENGTH) for _ in range(BATCH)])
    seconds: list[float] = []

    def run() -> None:
        seconds.extend(trainee.step(batch, micro) for _ in range(WARM_UP + STEPS))

    peak = measured(run)
    tokens = BATCH * 2 * LENGTH
    median = statistics.median(seconds[WARM_UP:])
    return {"mode": "equal", "seconds": median, "tokens": tokens, "peak_bytes": peak}


def measure_varied(trainee: Trainee, micro: int, records: Records, cudnn: bool) -> Row:
    """Steps of real lengths, with every batch twice."""
    alike = sorted(records, key=lambda record: -len(record["input_ids"]))
    starts = range(0, len(alike) - BATCH + 1, BATCH)
    chosen = random.Random(0).sample([alike[i : i + BATCH] for i in starts], VARIED)
    batches = [make_batch(batch) for batch in chosen]
    torch.backends.cuda.enable_cudnn_sdp(cudnn)
    passes = [[trainee.step(batch, micro) for batch in batches] for _ in range(2)]
    torch.backends.cuda.enable_cudnn_sdp(False)
    return {
        "mode": "varied, cuDNN" if cudnn else "varied",
        "first": statistics.mean(passes[0]),
        "seconds": statistics.mean(passes[1]),
        "tokens": statistics.mean(sum(b["lengths"]) for b in batches),
    }


def show(row: Row) -> None:
    """Print a line of the table."""
    first = f"{BATCH / row['first']:9.1f}" if "first" in row else " " * 9
    peak = f"{row['peak_bytes'] / 10**9:8.2f}" if "peak_bytes" in row else ""
    print(
        f"{row['weights']:>5}{row['micro_batch']:>6}  {row['mode']:14}"
        f"{1000 * row['seconds']:9.1f}{BATCH / row['seconds']:10.1f}{first}"
        f"{row['share']:8.1%}{peak}",
        flush=True,
    )


def measure_weights(model: Any, bits: int | None, records: Records, rate: float) -> Iterator[Row]:
    """All modes with one kind of weights."""
    trainee, largest = Trainee(model), automatic(bits)
    for micro in sorted({1, largest}):
        found = [measure_equal(trainee, micro)]
        if micro > 1:
            found.append(measure_varied(trainee, micro, records, cudnn=False))
            if bits is None:
                found.append(measure_varied(trainee, micro, records, cudnn=True))
        for row in found:
            share = 4 * PARAMETERS * row["tokens"] / row["seconds"] / rate
            yield {"weights": bits or 16, "micro_batch": micro, "share": share} | row


def compare(model: Any, records: Records, peer: str) -> list[Row]:
    """Ptune and the original in turn, on the same records."""
    sys.path.insert(0, str(PEERS))
    from original_training import make_loop
    from original_training import make_model as make_original

    config = RELEASED["chatglm-6b"] | {"bos_token_id": SOP, "eos_token_id": SOP + 1}
    config |= {"gmask_token_id": GMASK, "mask_token_id": GMASK - 1, "pad_token_id": PAD}
    task = {"config": config | {"position_encoding_2d": True}, "peer": peer, "half": True}
    task |= {"pre_seq_len": PREFIX, "max_length": 2 * LENGTH, "batch_size": BATCH}
    task |= {"records": records}
    original = make_original(task, "cuda")
    as_it_is = make_loop(original, task | {"micro_batch": 1}, "cuda")
    at_best = make_loop(original, task | {"micro_batch": BATCH}, "cuda")
    trainee, alike = Trainee(model), sorted(records, key=lambda r: -len(r["input_ids"]))
    starts = random.Random(1).sample(range(0, len(alike) - BATCH, BATCH), WARM_UP + ROUNDS)
    largest = automatic(None)

    def own(number: int) -> float:
        start = starts[number]
        return trainee.step(make_batch(alike[start : start + BATCH]), largest)

    sides = {"ptune": own, "original, as it is": as_it_is.step, "original, best": at_best.step}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(WARM_UP + ROUNDS):
        for name, step in sides.items():
            seconds[name].append(step(number))
    medians = {name: statistics.median(s[WARM_UP:]) for name, s in seconds.items()}
    print(f"{'':22}samples/s  ptune is")
    for name, median in medians.items():
        print(f"{name:22}{BATCH / median:9.2f}{median / medians['ptune']:9.2f}x", flush=True)
    return [{"side": name, "seconds": median} for name, median in medians.items()]


def main(arguments: argparse.Namespace) -> None:
    """Measure 16, 8 and 4 bits; called by `train_step.py`."""
    if not torch.cuda.is_available():
        raise SystemExit("--size 6b measures a card, and torch sees no card")
    random.seed(0)
    torch.manual_seed(0)
    records = [make_record(*pair) for pair in read_lengths(arguments)]
    rate, name = matrix_rate(), torch.cuda.get_device_name()
    print(f"{name}, torch {torch.__version__}, transformers {transformers.__version__}")
    print(f"bfloat16 product: {rate / 10**12:.0f} TFLOP/s; {BATCH} records a step")
    print(" bits micro  mode            ms/step samples/s  at first   share  peak GB")
    model = make_model("chatglm-6b", torch.bfloat16)
    rows: list[Row] = []
    peers: list[Row] = []
    for bits in (None, 8, 4):
        if bits:
            quantize_in_place(model, bits)
        for row in measure_weights(model, bits, records, rate):
            show(row)
            rows.append(row)
        if bits is None and arguments.peer:
            peers = compare(model, records, str(arguments.peer))
    if arguments.json:
        found = {"device": name, "torch": torch.__version__, "matrix_rate": rate}
        found |= {"rows": rows, "peers": peers}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
