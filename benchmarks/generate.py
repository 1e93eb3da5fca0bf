"""Speed of answering: `python benchmarks/generate.py --size tiny-cpu`, or `--size 6b` on a card.

Evaluation: ADGEN's prompts, cut to 64 tokens, and answers as long as the references, at most 64
tokens.  Weights are random and such a model never stops, so each answer is ended where its
reference ends, on all sides alike.  Sides take turns; the median counts.  Against:

- ptune, one record at a time;
- the library's `generate` on the same model, in batches and one record at a time;
- the original code one record at a time, with `--peer DIR` and `--peer-python` (an environment with
  transformers 4.27.1).

Chat: the time from token to token of one answer, in bfloat16, 8 and 4 bits (on a card).

The limit on a card: every weight is read once a step (head and layers; of the embeddings a row),
and keys and values once a token; the bandwidth is that of a copy on the device.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers
from torch import Tensor
from train_step import cpu_name
from transformers import StoppingCriteria, StoppingCriteriaList

from ptune.data import pad_left
from ptune.decoding import Decoder
from ptune.generate import Sampling, generate_all, generate_one
from ptune.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from ptune.prefix_encoder import PrefixEncoder

HERE = Path(__file__).resolve().parent
SHARED = HERE.parent.parent / "shared"
DATA = [SHARED / "data/AdvertiseGen/dev.json", HERE.parent / "examples/AdvertiseGen/train.json"]
SIZES = {
    "tiny-cpu": {"hidden_size": 64, "inner_hidden_size": 256, "num_layers": 3, "heads": 4},
    "small-cpu": {"hidden_size": 512, "inner_hidden_size": 2048, "num_layers": 8, "heads": 8},
}
LENGTH, PREFIX = 64, 128
GMASK, SOP, EOS, PAD = 130001, 130004, 130005, 3
# ADGEN's characters for each token, in the vocabulary of ChatGLM-6B: prompts and references.
CHARACTERS = (1.53, 1.7)
GB = 10**9


@dataclass
class Workload:
    """Prompts, and how long each answer is."""

    prompts: list[list[int]]
    lengths: list[int]

    def some(self, count: int) -> Workload:
        """So many of them, evenly over the lengths of the prompts."""
        order = sorted(range(len(self.prompts)), key=lambda i: len(self.prompts[i]))
        chosen = [order[i * len(order) // count] for i in range(count)]
        return Workload([self.prompts[i] for i in chosen], [self.lengths[i] for i in chosen])


@dataclass
class Side:
    """One way to answer a workload."""

    name: str
    run: Callable[[], float]  # seconds
    workload: Workload
    seconds: list[float] = field(default_factory=list)

    def result(self) -> dict[str, Any]:
        """Figures for the table."""
        median = statistics.median(self.seconds)
        return {
            "side": self.name,
            "samples_per_second": len(self.workload.prompts) / median,
            "tokens_per_second": sum(self.workload.lengths) / median,
            "seconds": median,
            "fastest": min(self.seconds),
            "slowest": max(self.seconds),
            "samples": len(self.workload.prompts),
        }


def read_workload(data: Path, count: int) -> Workload:
    """Take lengths from ADGEN; the ids are random, since the weights are."""
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()][:count]
    random = torch.Generator().manual_seed(0)
    work = Workload([], [])
    for row in rows:
        prompt = min(LENGTH, round(len(row["content"]) / CHARACTERS[0]) + 2)
        ids = torch.randint(100, 60000, (prompt - 2,), generator=random).tolist()
        work.prompts.append([*ids, GMASK, SOP])
        work.lengths.append(min(LENGTH, round(len(row["summary"]) / CHARACTERS[1]) + 1))
    return work


def cpu_config(size: str) -> dict[str, Any]:
    config = dict(SIZES[size])
    config["num_attention_heads"] = config.pop("heads")
    ids = {"gmask_token_id": GMASK, "bos_token_id": SOP, "eos_token_id": EOS, "pad_token_id": PAD}
    return config | {"vocab_size": 130528, "mask_token_id": 130000} | ids


def cpu_model(size: str) -> Any:
    torch.manual_seed(0)
    model = ChatGLMForConditionalGeneration(ChatGLMConfig(**cpu_config(size)))
    model.tie_weights()
    model.requires_grad_(False)
    model.base_model.prefix_encoder = PrefixEncoder(model.base_model.prefix_shape, PREFIX)
    model.generation_config.eos_token_id = [EOS]
    return model


class EndingDecoder(Decoder):
    """The last of so many tokens as `lengths` has for a prompt is the stop."""

    lengths: dict[tuple[int, ...], int]

    def fill(self, slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> Tensor:
        """As of `Decoder`."""
        if not hasattr(self, "left"):
            self.left = torch.zeros(self.slots, dtype=torch.long, device=self.model.device)
        lengths = [self.lengths[tuple(p)] for p in prompts]
        first = super().fill(slots, prompts)
        at, left = (torch.tensor(x, device=self.left.device) for x in (slots, lengths))
        self.left[at] = left - 1
        return torch.where(left <= 1, EOS, first)

    def step(self) -> Tensor:
        """As of `Decoder`."""
        chosen = super().step()
        self.left -= 1
        return torch.where(self.left <= 0, EOS, chosen)

    def keep(self, slots: Sequence[int]) -> None:
        """As of `Decoder`."""
        super().keep(slots)
        self.left = self.left[torch.tensor(slots, device=self.left.device)]


@contextmanager
def endings(work: Workload) -> Iterator[None]:
    pairs = zip(work.prompts, work.lengths, strict=True)
    EndingDecoder.lengths = {tuple(prompt): length for prompt, length in pairs}
    with patch("ptune.generate.Decoder", EndingDecoder):
        yield


def ptune_side(name: str, model: Any, work: Workload, batch_size: int) -> Side:
    """Through `generate_all`, the way of `ptune eval`."""

    def run() -> float:
        with endings(work):
            begin = time.perf_counter()
            groups = generate_all(model, work.prompts, batch_size, Sampling(LENGTH))
            found = dict(pair for group in groups for pair in group)
            seconds = time.perf_counter() - begin
        assert [len(found[i]) + 1 for i in range(len(found))] == work.lengths
        return seconds

    return Side(name, run, work)


class EndsOfRows(StoppingCriteria):  # type: ignore[misc]
    """Ends the rows of a batch where their references end."""

    def __init__(self, prompt: int, lengths: Sequence[int], device: torch.device) -> None:
        self.ends = prompt + torch.tensor(lengths, device=device)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Which rows are finished."""
        return input_ids.shape[1] >= self.ends


def library_side(name: str, model: Any, work: Workload, batch_size: int) -> Side:
    """Through the library's `generate`, in batches of like length."""
    order = sorted(range(len(work.prompts)), key=lambda i: -len(work.prompts[i]))

    def run() -> float:
        begin = time.perf_counter()
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            ids, mask = pad_left([work.prompts[i] for i in batch], PAD)
            ends = EndsOfRows(ids.shape[1], [work.lengths[i] for i in batch], model.device)
            with torch.inference_mode():
                model.generate(
                    ids.to(model.device),
                    attention_mask=mask.to(model.device),
                    max_new_tokens=LENGTH,
                    do_sample=False,
                    eos_token_id=None,
                    pad_token_id=PAD,
                    stopping_criteria=StoppingCriteriaList([ends]),
                ).tolist()
        return time.perf_counter() - begin

    return Side(name, run, work)


class PeerProcess:
    """The original code in a process and an environment of its own."""

    def __init__(self, arguments: argparse.Namespace, work: Workload, folder: Path) -> None:
        task = {"config": cpu_config(arguments.size) | {"position_encoding_2d": True}}
        task |= {"records": [], "pre_seq_len": PREFIX, "threads": arguments.threads}
        task |= {"prompts": work.prompts, "lengths": work.lengths}
        file = folder / "original.json"
        file.write_text(json.dumps(task | {"peer": str(arguments.peer.resolve())}))
        threads = str(arguments.threads)
        self.process = subprocess.Popen(
            [arguments.peer_python, str(HERE / "peers/original_generation.py"), str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
        )
        self.about = self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the original ended; what it said is above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def run(self) -> float:
        """Answer everything; returns the seconds."""
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        return float(self._read()["seconds"])

    def end(self) -> None:
        """Let the process go."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def take_turns(sides: list[Side], rounds: int) -> list[dict[str, Any]]:
    """Run all sides in turn, once to warm up, and give their figures."""
    for number in range(rounds + 1):
        for side in sides:
            seconds = side.run()
            if number:
                side.seconds.append(seconds)
    return [side.result() for side in sides]


def show(results: list[dict[str, Any]]) -> None:
    own = results[0]["samples_per_second"]
    print(f"{'':34}{'samples/s':>10}{'tokens/s':>10}{'ptune is':>10}{'of limit':>10}")
    for r in results:
        limit = f"{100 * r['of_limit']:9.0f}%" if "of_limit" in r else ""
        print(
            f"{r['side']:34}{r['samples_per_second']:10.2f}{r['tokens_per_second']:10.1f}"
            f"{own / r['samples_per_second']:9.2f}x{limit}",
            flush=True,
        )


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
        peer = PeerProcess(arguments, few, Path(folder)) if arguments.peer else None
        if peer:
            sides.append(Side("original, one at a time", peer.run, few))
            about["peer"] = peer.about
        results = take_turns(sides, arguments.rounds)
        if peer:
            peer.end()
    show(results)
    return about | {"evaluation": results}


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
    """What a step reads: all but embeddings and prefix; a tied head counts."""
    embedding = model.get_input_embeddings().weight
    skipped = {id(p) for p in model.base_model.prefix_encoder.parameters()}
    if model.get_output_embeddings().weight is not embedding:
        skipped.add(id(embedding))
    return sum(p.nbytes for p in model.parameters() if id(p) not in skipped)


def cache_bytes(model: Any) -> int:
    """Keys and values of one token."""
    return int(model.base_model.prefix_shape.width) * 2


def chat(model: Any, name: str, speed: float, new: int, rounds: int) -> dict[str, Any]:
    """Milliseconds from token to token of one answer."""
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
        "token_ms_with_recording": 1000 * mean,
        "generate_ms": 1000 * statistics.median(theirs),
        "limit_ms": 1000 * limit,
        "times_limit": median / limit,
    }


def profile_steps(model: Any, slots: int) -> None:
    """Show which kernels a step spends its time in."""
    from torch.profiler import ProfilerActivity, profile

    work = read_workload(first_there(DATA), slots)
    decoder = Decoder(model, slots, Sampling().choose, 2 * LENGTH)
    decoder.fill(range(slots), work.prompts)
    for _ in range(4):
        decoder.step()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(20):
        decoder.step()
    torch.cuda.synchronize()
    print(f"{slots} slots: {50 * (time.perf_counter() - begin):.2f} ms a step")
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(5):
            decoder.step()
        torch.cuda.synchronize()
    events = sorted(profiler.key_averages(), key=lambda e: -e.self_device_time_total)
    for e in events[:14]:
        print(f"{e.self_device_time_total / 5000:9.3f} ms {e.count // 5:6} x {e.key[:90]}")


def on_card(arguments: argparse.Namespace) -> dict[str, Any]:
    """Evaluation and chat at the real size."""
    from memory import make_model, quantize_in_place

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


def first_there(paths: list[Path]) -> Path:
    return next(path for path in paths if path.exists())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=[*SIZES, "6b"], default="tiny-cpu")
    parser.add_argument("--model", choices=["chatglm-6b", "chatglm2-6b"], default="chatglm-6b")
    parser.add_argument("--data", type=Path, default=first_there(DATA), help="ADGEN records")
    parser.add_argument("--records", type=int, default=256, help="records in batches")
    parser.add_argument("--alone", type=int, default=16, help="records one at a time")
    parser.add_argument("--batch-size", type=int, default=64, help="on the processor")
    parser.add_argument("--peer", type=Path, help="folder with the original's Python files")
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
    found = on_card(arguments) if arguments.size == "6b" else on_cpu(arguments)
    found |= {"size": arguments.size, "device": device, "threads": arguments.threads}
    found |= {"torch": torch.__version__, "transformers": transformers.__version__}
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
