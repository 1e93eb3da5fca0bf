"""The engine of a server: `python benchmarks/serve.py --size small`.

Requests of 32 prompt tokens and 64 new ones, greedy, on a random ChatGLM2, all waiting from the
beginning, admitted as a server does.  Sides take turns; the median counts:

- one request at a time, and as many at once as `--rows`;
- rows with prefixes of their own, of lengths 0 to 128, and rows that share one;
- with `--peer`, transformers' continuous batching, which has no place for a prefix, on the same
  weights.

And what a cold prefix costs: one that is not in the slot, against one that is there already.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from setting import PREFIX, cpu_name
from torch import Tensor
from transformers import GlmForCausalLM

from ptune.generation.engine import Engine, Request
from ptune.generation.sampling import Sampling
from ptune.models.chatglm2 import ChatGLM2ForConditionalGeneration
from ptune.models.chatglm2_layout import ChatGLM2Config
from ptune.models.prefix_encoder import PrefixEncoder, stack_prefix

PROMPT, NEW = 32, 64
SIZES = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4},
    "small": {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8},
}


def make_config(size: str) -> ChatGLM2Config:
    shape = SIZES[size]
    return ChatGLM2Config(
        **shape,
        multi_query_attention=True,
        multi_query_group_num=2,
        head_dim=shape["hidden_size"] // shape["num_attention_heads"],
        intermediate_size=8 * shape["hidden_size"] // 3,
        vocab_size=65024,
        attention_bias=True,
        pad_token_id=0,
        eos_token_id=[2],
    )


def make_model(config: ChatGLM2Config) -> Any:
    torch.manual_seed(0)
    model = ChatGLM2ForConditionalGeneration(config).eval().requires_grad_(False)
    model.generation_config.eos_token_id = []
    return model


def make_prefixes(model: Any, lengths: Sequence[int]) -> list[Tensor | None]:
    shape = model.base_model.prefix_shape
    return [
        stack_prefix(PrefixEncoder(shape, length).eval(), torch.float32) if length else None
        for length in lengths
    ]


def make_prompts(count: int) -> list[list[int]]:
    random = torch.Generator().manual_seed(0)
    return torch.randint(100, 60000, (count, PROMPT), generator=random).tolist()


def engine_seconds(model: Any, rows: int, prompts: list[list[int]], prefixes: Any) -> float:
    engine = Engine(model, rows)
    begin = time.perf_counter()
    for prompt, prefix in zip(prompts, prefixes, strict=True):
        engine.add(Request(prompt, Sampling(NEW), prefix))
    tokens = 0
    while engine.busy:
        tokens += sum(len(progress.tokens) for progress in engine.step())
    assert tokens == NEW * len(prompts)
    return time.perf_counter() - begin


def peer_model(model: Any) -> Any:
    """The library's own class with the same weights."""
    peer = GlmForCausalLM(model.config).eval()
    peer.load_state_dict(model.state_dict(), strict=False)
    return peer


def peer_seconds(peer: Any, rows: int, prompts: list[list[int]]) -> float:
    from transformers import ContinuousBatchingConfig, GenerationConfig

    options = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0)
    begin = time.perf_counter()
    found = peer.generate_batch(
        prompts,
        generation_config=options,
        continuous_batching_config=ContinuousBatchingConfig(max_batch_tokens=max(rows, 256)),
    )
    seconds = time.perf_counter() - begin
    assert sum(len(answer.generated_tokens) for answer in found.values()) == NEW * len(prompts)
    return seconds


def cold_prefix_seconds(model: Any) -> tuple[float, float]:
    """Seconds to the first token where the slot holds another prefix, and where it holds this."""
    first, second = make_prefixes(model, [PREFIX, PREFIX])
    engine = Engine(model, 1)
    prompt = make_prompts(1)[0]

    def to_first_token(prefix: Tensor | None) -> float:
        engine.add(Request(prompt, Sampling(1), prefix))
        begin = time.perf_counter()
        while engine.busy:
            engine.step()
        return time.perf_counter() - begin

    cold, warm = [], []
    for _ in range(21):
        to_first_token(second)
        cold.append(to_first_token(first))
        warm.append(to_first_token(first))
    return statistics.median(cold), statistics.median(warm)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--rows", type=int, nargs="+", default=[32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alone", type=int, default=4, help="requests one at a time")
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = make_model(make_config(arguments.size))
    sides: dict[str, tuple[int, Callable[[], float]]] = {}
    few = make_prompts(arguments.alone)
    (shared,) = make_prefixes(model, [PREFIX])
    sides["one at a time"] = (
        len(few),
        lambda: engine_seconds(model, 1, few, [shared] * len(few)),
    )
    peer = peer_model(model) if arguments.peer else None
    for rows in arguments.rows:
        prompts = make_prompts(rows)
        own = make_prefixes(model, [i * PREFIX // max(rows - 1, 1) for i in range(rows)])
        kinds = {"one prefix": [shared] * rows, "own prefixes": own, "no prefix": [None] * rows}
        for name, prefixes in kinds.items():
            sides[f"{rows} rows, {name}"] = (
                rows,
                lambda r=rows, p=prompts, x=prefixes: engine_seconds(model, r, p, x),
            )
        if peer is not None:
            sides[f"{rows} rows, transformers"] = (
                rows,
                lambda r=rows, p=prompts: peer_seconds(peer, r, p),
            )
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(arguments.rounds + 1):
        for name, (_, run) in sides.items():
            took = run()
            if number:
                seconds[name].append(took)
    rates = {n: NEW * sides[n][0] / statistics.median(took) for n, took in seconds.items()}
    cold, warm = cold_prefix_seconds(model)
    print(f"{cpu_name()}, {arguments.threads} threads, {arguments.size}")
    for name, rate in rates.items():
        print(f"{name:28}{rate:10.1f} tokens/s{rate / rates['one at a time']:9.2f}x", flush=True)
    print(f"a cold prefix costs {1000 * (cold - warm):.2f} ms more than a warm one")
    if arguments.json:
        found = {"tokens_per_second": rates, "cold_ms": 1000 * cold, "warm_ms": 1000 * warm}
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
