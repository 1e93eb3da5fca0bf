"""The engine of a server: `python benchmarks/serve.py --size small`.

Requests of 32 prompt tokens and 64 new ones, greedy, on a random ChatGLM2, all waiting from the
beginning, admitted as a server does.  Sides take turns; the median of their seconds counts, with
`--cpu-time` of CPU time:

- one request at a time, and as many at once as `--rows`;
- rows with prefixes of their own, of lengths 0 to 128, and rows that share one;
- with `--peer`, transformers' continuous batching, which has no place for a prefix, on the same
  weights and with the settings that are fastest here;
- the products with the weights alone, for so many requests: no attention, no norms, no sampling.
  No side can be faster than its own.

And, with `--prefixes` loaded from checkpoints: their memory, and what one costs that is drawn from
them, against one that is in its slot already.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from setting import PREFIX, ROOT, cpu_name
from torch import Tensor
from transformers import GlmForCausalLM

sys.path.insert(0, str(ROOT / "tests"))

from fixtures.serve_process import write_random_prefix

from ptune.base.folder import BaseModel, Generation
from ptune.generation.engine import Engine, Request
from ptune.generation.sampling import Sampling
from ptune.models.chatglm2 import ChatGLM2ForConditionalGeneration
from ptune.models.chatglm2_layout import ChatGLM2Config
from ptune.models.prefix_encoder import PrefixEncoder, stack_prefix
from ptune.serving.prefix_store import PrefixStore

PROMPT, NEW = 32, 64
LONGEST = PROMPT + NEW
Side = tuple[int, Callable[[], None]]  # requests, and what answers them
Clock = Callable[[], float]
COLD = 101  # times that a prefix is drawn
PREFILLED = 16  # prompts at once: the engine takes up to 512 tokens between two steps
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


def clock_of(arguments: argparse.Namespace) -> Clock:
    """What is measured with: a machine's other programs take time, not this one's CPU time."""
    return time.process_time if arguments.cpu_time else time.perf_counter


def measure(clock: Clock, run: Callable[[], None]) -> float:
    begin = clock()
    run()
    return clock() - begin


def run_engine(model: Any, rows: int, prompts: list[list[int]], prefixes: Any) -> None:
    engine = Engine(model, rows)
    for prompt, prefix in zip(prompts, prefixes, strict=True):
        engine.add(Request(prompt, Sampling(NEW), prefix))
    tokens = 0
    while engine.busy:
        tokens += sum(len(progress.tokens) for progress in engine.step())
    assert tokens == NEW * len(prompts)


def run_products(model: Any, rows: int, count: int) -> None:
    """What `count` requests, `rows` at once, take of products with the weights."""
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    inner = [layer for layer in layers if layer is not model.lm_head]
    at_once = min(rows, PREFILLED)
    with torch.inference_mode():
        for start in range(0, count, at_once):
            prompts = min(at_once, count - start)
            multiply(inner, prompts * PROMPT)
            multiply([model.lm_head], prompts)
        for _ in range(count // rows * (NEW - 1)):
            multiply(layers, rows)


def multiply(layers: Sequence[torch.nn.Linear], rows: int) -> None:
    inputs = {width: torch.ones(rows, width) for width in {layer.in_features for layer in layers}}
    for layer in layers:
        layer(inputs[layer.in_features])


def peer_model(model: Any) -> Any:
    """The library's own class with the same weights.

    `eager` is the fastest attention that it has without a card: `sdpa` was 1.5 times slower.
    """
    peer = GlmForCausalLM(copy.deepcopy(model.config)).eval()  # its attention is not ptune's
    peer.load_state_dict(model.state_dict(), strict=False)
    peer.set_attn_implementation("eager")
    return peer


def peer_settings(rows: int) -> list[dict[str, int]]:
    """Settings of which the fastest counts, all with a cache that holds just what is asked.

    By default the cache takes nine tenths of the memory, and a step's indices grow with it.
    """
    return [
        {"page_size": page, "max_batch_tokens": most, "num_blocks": rows * -(-LONGEST // page) + 1}
        for page in (32, 256)
        for most in sorted({rows, 512, rows * PROMPT})
    ]


def best_peer_setting(peer: Any, rows: int, clock: Clock) -> dict[str, int]:
    """The fastest, of a run each after one to warm up."""
    prompts, settings = make_prompts(rows), peer_settings(rows)
    run_peer(peer, prompts, settings[0])
    seconds = [measure(clock, partial(run_peer, peer, prompts, one)) for one in settings]
    best = settings[seconds.index(min(seconds))]
    print(f"transformers, {rows} rows: {best}", flush=True)
    return best


def run_peer(peer: Any, prompts: list[list[int]], setting: dict[str, int]) -> None:
    from transformers import ContinuousBatchingConfig, GenerationConfig

    options = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0)
    found = peer.generate_batch(
        prompts,
        generation_config=options,
        continuous_batching_config=ContinuousBatchingConfig(**setting),
    )
    assert sum(len(answer.generated_tokens) for answer in found.values()) == NEW * len(prompts)


def fill_store(model: Any, count: int) -> tuple[PrefixStore, dict[str, float]]:
    """Load so many prefixes from checkpoints, as a server does; bytes of memory and seconds of one.

    The memory is what the process takes more, with all that loading leaves behind.
    """
    base = BaseModel("random", Path("random"), {}, Generation.CHATGLM2)
    store = PrefixStore(model, base, "bare")
    process, seconds, before = psutil.Process(), [], 0
    for number in range(count + 1):
        with tempfile.TemporaryDirectory() as folder:
            written = write_random_prefix(Path(folder) / "prefix", model, PREFIX, number)
            begin = time.perf_counter()
            store.add(str(number), written)
            seconds.append(time.perf_counter() - begin)
        if number == 0:  # what the first one brings with it is not of the prefix
            before = process.memory_info().rss
    store.drop("0")
    taken = (process.memory_info().rss - before) / count
    return store, {"bytes_of_one": taken, "load_seconds": statistics.median(seconds)}


def cold_prefix_seconds(model: Any, store: PrefixStore) -> dict[str, float]:
    """Seconds to the first token where the slot holds another prefix, and where it holds this."""
    engine, rng = Engine(model, 1), random.Random(0)
    prompt = make_prompts(1)[0]

    def to_first_token(name: str) -> float:
        begin = time.perf_counter()
        engine.add(Request(prompt, Sampling(1), store.get(name)))
        while engine.busy:
            engine.step()
        return time.perf_counter() - begin

    cold, warm, last = [], [], ""
    to_first_token("bare")
    for _ in range(COLD):
        name = rng.choice([name for name in store.names if name not in (last, "bare")])
        cold.append(to_first_token(name))
        warm.append(to_first_token(name))
        last = name
    return {"cold": statistics.median(cold), "warm": statistics.median(warm)}


def make_sides(model: Any, arguments: argparse.Namespace) -> dict[str, Side]:
    """What is compared, by name."""
    few = make_prompts(arguments.alone)
    (shared,) = make_prefixes(model, [PREFIX])
    alone = partial(run_engine, model, 1, few, [shared] * len(few))
    sides: dict[str, Side] = {"one at a time": (len(few), alone)}
    sides["one at a time, products"] = len(few), partial(run_products, model, 1, len(few))
    peer = peer_model(model) if arguments.peer else None
    for rows in arguments.rows:
        prompts = make_prompts(rows)
        own = make_prefixes(model, [i * PREFIX // max(rows - 1, 1) for i in range(rows)])
        kinds = {"one prefix": [shared] * rows, "own prefixes": own, "no prefix": [None] * rows}
        for name, prefixes in kinds.items():
            run = partial(run_engine, model, rows, prompts, prefixes)
            sides[f"{rows} rows, {name}"] = rows, run
        sides[f"{rows} rows, products"] = rows, partial(run_products, model, rows, rows)
        if peer is not None:
            best = best_peer_setting(peer, rows, clock_of(arguments))
            run = partial(run_peer, peer, prompts, best)
            sides[f"{rows} rows, transformers"] = rows, run
            run = partial(run_products, peer, rows, rows)
            sides[f"{rows} rows, its products"] = rows, run
    return sides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--rows", type=int, nargs="+", default=[32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alone", type=int, default=4, help="requests one at a time")
    parser.add_argument("--prefixes", type=int, default=100, help="that are loaded")
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--cpu-time", action="store_true", help="not that of the clock")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = make_model(make_config(arguments.size))
    sides = make_sides(model, arguments)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(arguments.rounds + 1):
        for name, (_, run) in sides.items():
            took = measure(clock_of(arguments), run)
            if number:
                seconds[name].append(took)
    rates = {n: NEW * sides[n][0] / statistics.median(took) for n, took in seconds.items()}
    store, found = fill_store(model, arguments.prefixes)
    first = cold_prefix_seconds(model, store)
    print(f"{cpu_name()}, {arguments.threads} threads, {arguments.size}")
    for name, rate in rates.items():
        print(f"{name:28}{rate:10.1f} tokens/s{rate / rates['one at a time']:9.2f}x", flush=True)
    print(
        f"{arguments.prefixes} prefixes take {found['bytes_of_one'] / 1e6:.2f} MB each and are "
        f"loaded in {1000 * found['load_seconds']:.1f} ms each; one of them drawn costs "
        f"{1000 * (first['cold'] - first['warm']):.2f} ms more than one that is in its slot "
        f"({1000 * first['warm']:.2f} ms to the first token)"
    )
    if arguments.json:
        found |= {"tokens_per_second": rates, "first_token_seconds": first}
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
