"""The workload of `generate.py` and `generate_6b.py`, and the implementations that they compare.

ADGEN's prompts, cut to 64 tokens, and answers as long as the references, at most 64 tokens.
Weights are random and such a model never stops, so each request ends where its reference ends, on
all sides alike.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from setting import LENGTH
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import StoppingCriteria, StoppingCriteriaList

from ptune.generation.decoding import Decoder, Prefill
from ptune.generation.generate import generate_all
from ptune.generation.sampling import Choice, Sampling

GMASK, SOP, EOS, PAD = 130001, 130004, 130005, 3
# ADGEN's characters for each token, in the vocabulary of ChatGLM-6B: prompts and references.
CHARACTERS = (1.53, 1.7)


@dataclass
class Workload:
    """Prompts, and the number of new tokens of each."""

    prompts: list[list[int]]
    lengths: list[int]

    def some(self, count: int) -> Workload:
        """A part of the workload, evenly over the lengths of the prompts."""
        order = sorted(range(len(self.prompts)), key=lambda i: len(self.prompts[i]))
        chosen = [order[i * len(order) // count] for i in range(count)]
        return Workload([self.prompts[i] for i in chosen], [self.lengths[i] for i in chosen])


@dataclass
class Side:
    """An implementation under comparison, with its workload."""

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


class EndingDecoder(Decoder):
    """A decoder that gives the end token after as many tokens as `lengths` has for a prompt."""

    lengths: dict[tuple[int, ...], int]

    def advance(self, prefill: Prefill, layers: int) -> Choice | None:
        """As of `Decoder`."""
        if not hasattr(self, "left"):
            self.left = torch.zeros(self.slots, dtype=torch.long, device=self.model.device)
        first = super().advance(prefill, layers)
        if first is None:
            return None
        lengths = [self.lengths[tuple(prompt.ids)] for prompt in prefill.prompts]
        left = torch.tensor(lengths, device=self.left.device)
        self.left[prefill.cache.slots] = left - 1
        return first._replace(ids=torch.where(left <= 1, EOS, first.ids))

    def step(self, rows: int) -> Choice:
        """As of `Decoder`."""
        chosen = super().step(rows)
        left = self.left[:rows].sub_(1)
        return chosen._replace(ids=torch.where(left <= 0, EOS, chosen.ids))

    def move(self, source: int, target: int) -> None:
        """As of `Decoder`."""
        super().move(source, target)
        self.left[target] = self.left[source]


@contextmanager
def endings(work: Workload) -> Iterator[None]:
    pairs = zip(work.prompts, work.lengths, strict=True)
    EndingDecoder.lengths = {tuple(prompt): length for prompt, length in pairs}
    with patch("ptune.generation.engine.Decoder", EndingDecoder):
        yield


def ptune_side(name: str, model: Any, work: Workload, batch_size: int) -> Side:
    """ptune, by `generate_all` as in `ptune eval`."""

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
    """The library's `generate`, in batches of similar length."""
    order = sorted(range(len(work.prompts)), key=lambda i: -len(work.prompts[i]))

    def run() -> float:
        begin = time.perf_counter()
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            rows = [torch.tensor(work.prompts[i]) for i in batch]
            ids = pad_sequence(rows, True, PAD, padding_side="left")
            mask = (ids != PAD).long()
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


def take_turns(sides: list[Side], rounds: int) -> list[dict[str, Any]]:
    """Run all sides in turn, once to warm up, and return their figures."""
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
