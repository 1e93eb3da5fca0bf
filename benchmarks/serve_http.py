"""`ptune serve` over HTTP: `python benchmarks/serve_http.py --size tiny small`.

A server in a process of its own and its clients in this one, on the built-in model and on the
random ChatGLM2 of `serve.py`, each with a prefix of 128 tokens.  A client asks again as soon as it
has its answer: greedy, streamed, 16 to 64 new tokens.  1, 8 and 32 clients take turns; the server
says how many tokens there were, and the first counts when its text has arrived.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
import torch
from serve import make_config, make_model
from setting import PREFIX, ROOT, SHARED, cpu_name

sys.path.insert(0, str(ROOT / "tests"))

from fixtures.serve_process import ServeProcess, delta, stream, write_random_prefix

from ptune import load_model

TOKENIZER = SHARED / "golden/tokenizers/chatglm3-6b/tokenizer.model"
SIZES = ("tiny", "small")
WORDS = ["类型#裤", "类型#上衣", "版型#显瘦", "颜色#白色", "材质#丝绒", "风格#清新", "图案#印花"]


@dataclass
class Clients:
    """So many at once, and what they saw.

    Attributes:
        count: of them.
        rates: tokens/s of each round.
        firsts: seconds to the first token, of each request.
        seconds: of each request.
    """

    count: int
    rates: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    async def ask(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        """One request."""
        content = "*".join(rng.sample(WORDS, 4)) + f"*编号#{rng.randrange(1000)}"
        body = {"messages": [{"role": "user", "content": content}], "temperature": 0}
        began, first = time.perf_counter(), None
        async for event in stream(http, {**body, "max_tokens": rng.randint(16, 64)}):
            if first is None and delta(event):
                first = time.perf_counter() - began
                self.firsts.append(first)
        self.seconds.append(time.perf_counter() - began)

    async def ask_on(self, url: str, rng: random.Random) -> None:
        """One client, until it is cut off."""
        async with httpx.AsyncClient(base_url=url, timeout=600) as http:
            while True:
                await self.ask(http, rng)

    async def run(self, server: ServeProcess, seconds: float, seed: int) -> None:
        """A round; what is not finished at its end is cut off, and counts as far as it came."""
        before = tokens_of(server)
        began = time.perf_counter()
        rngs = [random.Random(f"{seed} {number}") for number in range(self.count)]
        clients = [asyncio.ensure_future(self.ask_on(server.url, rng)) for rng in rngs]
        await asyncio.wait(clients, timeout=seconds)
        took = time.perf_counter() - began
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        self.rates.append((tokens_of(server) - before) / took)

    def result(self) -> dict[str, float]:
        """Figures for the table."""
        return {
            "clients": self.count,
            "tokens_per_second": statistics.median(self.rates),
            "first_token": statistics.median(self.firsts),
            "first_token_99": percentile(self.firsts, 99),
            "seconds": statistics.median(self.seconds),
            "seconds_99": percentile(self.seconds, 99),
        }


def tokens_of(server: ServeProcess) -> float:
    """All that it has generated, when nothing is at work."""
    while (found := server.metrics())["ptune_slots_in_use"] + found["ptune_requests_waiting"]:
        time.sleep(0.02)
    time.sleep(0.2)  # for handlers of those whose client has gone
    return server.metrics().get("ptune_generated_tokens_total", 0)


def percentile(values: Sequence[float], share: int) -> float:
    if len(values) == 1:  # a slow machine, or a short run
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[share - 1]


def server_options(size: str, folder: Path, tokenizer: Path) -> list[str]:
    """Write what is to be served; returns the options that serve it."""
    name, options = "tiny", ["--model", "tiny"]
    if size != "tiny":
        if not tokenizer.is_file():
            raise SystemExit(f"no {tokenizer}; pass --tokenizer FILE, that of ChatGLM2 or 3")
        name = str(folder / "model")
        make_model(make_config(size)).save_pretrained(name)
        shutil.copy(tokenizer, folder / "model" / "tokenizer.model")
        options = ["--model", name, "--prompt-format", "chatglm2"]
    model = load_model(name, device="cpu", prompt_format=None if size == "tiny" else "chatglm2")
    write_random_prefix(folder / "prefix", model, PREFIX, 0)
    return [*options, "--prefix", f"own={folder / 'prefix'}", "--cache-memory", "1GB"]


def measure(size: str, asked: argparse.Namespace) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = server_options(size, folder, asked.tokenizer)
        sides = [Clients(count) for count in asked.clients]
        with ServeProcess(folder / "log", *options, threads=asked.threads) as server:
            for number in range(asked.rounds + 1):
                for side in sides if number else [Clients(max(asked.clients))]:  # once to warm up
                    asyncio.run(side.run(server, asked.seconds, number))
    return [side.result() for side in sides]


def show(size: str, results: list[dict[str, Any]]) -> None:
    alone = results[0]
    for found in results:
        times = found["tokens_per_second"] / alone["tokens_per_second"]
        later = found["first_token"] / alone["first_token"]
        ms = {key: 1000 * found[key] for key in ("first_token", "first_token_99", "seconds_99")}
        print(
            f"{size:6}{found['clients']:4} clients{found['tokens_per_second']:9.1f} tokens/s"
            f"{times:7.2f}x   first token {ms['first_token']:7.1f} ms ({later:.2f}x), "
            f"99 % {ms['first_token_99']:7.1f} ms   whole {1000 * found['seconds']:7.0f} ms, "
            f"99 % {ms['seconds_99']:7.0f} ms",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, nargs="+", default=["tiny"])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument(
        "--seconds", type=float, default=20, help="of a round, from its beginning on"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    print(f"{cpu_name()}, {asked.threads} threads")
    found = {}
    for size in asked.size:
        found[size] = measure(size, asked)
        show(size, found[size])
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
