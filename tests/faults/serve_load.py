"""Many clients at one `ptune serve`; some three in ten hang up, every other must get its answer.

Run by hand: `make load`, or `python tests/faults/serve_load.py --help`.

Half of the clients ask one prefix, the others any, bare model included, greedily or with a seed, as
a stream or whole.  Each answer must be the one that the same request got alone.  Beside them,
prefixes are loaded and dropped, also while they answer.  In the end no slot may be in use, threads
must not have grown, and memory not beyond a bound.
"""

import argparse
import asyncio
import collections
import json
import os
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx2 as httpx
from fixtures.serve_process import ServeProcess, delta, stream, write_random_prefix

from ptune import load_model

LENGTHS = (2, 7, 16, 40, 128)  # of the prefixes
SHARED = "p16"  # that half of the clients ask
CLIENTS = 32
CUT = 0.36  # share of the requests whose client means to hang up; not all come to it
_PATIENCE = 120  # seconds for an answer
_WORDS = ["类型#裤", "类型#上衣", "版型#显瘦", "颜色#白色", "材质#丝绒", "风格#清新", "图案#印花"]
Body = dict[str, Any]


class HungUp(Exception):
    """The client has closed the connection, as it meant to."""


def make_questions(count: int, rng: random.Random) -> list[Body]:
    """Requests, no two alike, evenly over the models; half of them draw."""
    models = [SHARED, *(f"p{length}" for length in LENGTHS), "tiny"]
    found = []
    for number in range(count):
        content = "*".join(rng.sample(_WORDS, rng.randint(1, 4))) + f"*编号#{number}"
        body = {"model": models[number % len(models)], "max_tokens": rng.randint(1, 24)}
        body["messages"] = [{"role": "user", "content": content}]
        drawing = {"temperature": 1.5, "top_p": 0.95, "seed": number}
        found.append(body | (drawing if rng.random() < 0.5 else {"temperature": 0}))
    return found


async def ask(
    http: httpx.AsyncClient,
    body: Body,
    as_stream: bool,
    most: int | None = None,
    begun: asyncio.Event | None = None,
) -> str:
    """An answer's text.

    Args:
        http: of the client.
        body: of the request.
        as_stream: whether it comes in pieces.
        most: of these, after which to hang up; None waits for the end.
        begun: is set when the first piece is there.
    """
    if not as_stream:
        answer = await http.post("/v1/chat/completions", json=body)
        answer.raise_for_status()
        return answer.json()["choices"][0]["message"]["content"]
    text, count = "", 0
    events = stream(http, body)
    try:
        async for event in events:
            if "error" in event:
                raise RuntimeError(event["error"]["message"])
            text += delta(event)
            count += 1
            if begun is not None:
                begun.set()
            if count == most:
                raise HungUp
    finally:
        await events.aclose()
    return text


@dataclass
class Load:
    """What the clients do.

    Attributes:
        url: of the server.
        questions: that they choose from.
        expected: the answers to these.
        left: requests still to be made.
        counts: of what happened.
        wrong: what should not have.
        seconds: of the answers.
    """

    url: str
    questions: list[Body]
    expected: list[str]
    left: int
    counts: collections.Counter = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, timeout=_PATIENCE)

    async def ask_on(self, number: int, rng: random.Random) -> None:
        """One of the clients."""
        own = [i for i, body in enumerate(self.questions) if number % 2 or body["model"] == SHARED]
        async with self.client() as http:
            while self.left > 0:
                self.left -= 1
                await self.ask_once(http, rng.choice(own), rng)

    async def ask_once(self, http: httpx.AsyncClient, which: int, rng: random.Random) -> None:
        as_stream, cut = rng.random() < 0.5, rng.random() < CUT
        most = rng.randint(1, 8) if cut and as_stream and rng.random() < 0.7 else None
        typical = statistics.median(self.seconds[-100:] or [0.1])
        wait = rng.uniform(0, typical) if cut and most is None else _PATIENCE
        began = time.monotonic()
        try:
            text = await asyncio.wait_for(ask(http, self.questions[which], as_stream, most), wait)
        except HungUp:
            self.counts["cut in the stream"] += 1
            return
        except asyncio.TimeoutError:
            if wait < _PATIENCE:
                self.counts["cut at a moment"] += 1
            else:
                self.wrong.append(f"question {which} is never answered")
            return
        except Exception as error:
            self.wrong.append(f"question {which}: {error!r}")
            return
        self.seconds.append(time.monotonic() - began)
        self.counts["answered"] += 1
        if text != self.expected[which]:
            self.wrong.append(f"question {which}: {text!r}, and alone {self.expected[which]!r}")

    async def load_and_drop(self, rng: random.Random) -> None:
        """Load a prefix, ask it, and drop it while it answers, again and again."""
        async with self.client() as http:
            number = 0
            while self.left > 0:
                number += 1
                which = rng.randrange(len(self.questions))
                body = self.questions[which]
                path = SHARED if body["model"] == "tiny" else body["model"]
                name = f"guest{number % 4}"
                loaded = await http.post("/v1/prefixes", json={"name": name, "path": path})
                begun = asyncio.Event()
                asked = asyncio.ensure_future(ask(http, body | {"model": name}, True, None, begun))
                await asyncio.wait([asked, asyncio.ensure_future(begun.wait())], timeout=_PATIENCE)
                dropped = await http.delete(f"/v1/prefixes/{name}")
                text = await asyncio.gather(asked, return_exceptions=True)
                if {loaded.status_code, dropped.status_code} != {200}:
                    self.wrong.append(f"{name}: {loaded.text} {dropped.text}")
                if path == body["model"] and text != [self.expected[which]]:
                    self.wrong.append(f"{name}, question {which}: {text[0]!r}")
                gone = await http.post("/v1/chat/completions", json=body | {"model": name})
                if gone.status_code != 404:
                    self.wrong.append(f"{name} is dropped and answers: {gone.text}")
                self.counts["loaded and dropped"] += 1
                await asyncio.sleep(0.2)

    async def run(self, server: ServeProcess, seed: int) -> list[tuple[int, int]]:
        """All of them; returns threads and resident bytes, some ten times a second."""
        seen: list[tuple[int, int]] = []
        clients = [self.ask_on(n, random.Random(f"{seed} {n}")) for n in range(CLIENTS)]
        clients.append(self.load_and_drop(random.Random(f"{seed} prefixes")))
        work = asyncio.gather(*clients)
        while not work.done():
            seen.append((server.threads, server.resident_bytes))
            await asyncio.wait([work], timeout=0.1)
        await work
        return seen


async def answers_alone(url: str, questions: list[Body]) -> list[str]:
    async with httpx.AsyncClient(base_url=url, timeout=_PATIENCE) as http:
        return [await ask(http, body, False) for body in questions]


def check_end(server: ServeProcess, seen: list[tuple[int, int]], growth: float) -> dict[str, Any]:
    """What the server is like afterwards.

    Args:
        server: that answered.
        seen: threads and resident bytes meanwhile.
        growth: megabytes that memory may grow from the first quarter to the last.
    """
    wrong = []
    for _ in range(100):
        found = server.metrics()
        if not (used := found["ptune_slots_in_use"] + found["ptune_requests_waiting"]):
            break
        time.sleep(0.05)
    else:
        wrong.append(f"{used:g} requests are still there")
    quarters = [seen[i * len(seen) // 4 : (i + 1) * len(seen) // 4 + 1] for i in range(4)]
    threads = [max(count for count, _ in part) for part in quarters]
    memory = [round(statistics.median(size for _, size in part) / 1e6, 1) for part in quarters]
    # asyncio's pool grows to so many beside the main thread and the engine's, and no further.
    whole = 2 + min(32, (os.cpu_count() or 1) + 4)
    if threads[-1] > max(threads[0], whole):
        wrong.append(f"threads grew from {threads[0]} to {threads[-1]}")
    if memory[-1] - memory[0] > growth:
        wrong.append(f"memory grew from {memory[0]:.0f} to {memory[-1]:.0f} MB")
    said = [line for line in server.log.read_text().splitlines() if line.startswith("Traceback")]
    wrong += [f"{len(said)} tracebacks in {server.log}"] * bool(said)
    ends = {name.partition(" ")[2]: n for name, n in found.items() if "ptune_answers_total" in name}
    metrics = {"answers by end": ends, "tokens": found["ptune_generated_tokens_total"]}
    return metrics | {"threads": threads, "memory": memory, "wrong": wrong}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--questions", type=int, default=420)
    # oneDNN keeps a kernel for each shape of a product, up to 1,024: 170 MB after 10,000 requests.
    parser.add_argument("--growth", type=float, default=96, help="MB that memory may grow")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="load-"))
    model = load_model("tiny", device="cpu")
    options = ["--model", "tiny", "--prefix-folder", str(folder / "prefixes")]
    for seed, length in enumerate(LENGTHS):
        path = write_random_prefix(folder / "prefixes" / f"p{length}", model, length, seed)
        options += ["--prefix", f"p{length}={path}"]
    questions = make_questions(asked.questions, random.Random(asked.seed))
    with ServeProcess(folder / "log", *options, "--cache-memory", "400MB") as server:
        load = Load(server.url, questions, asyncio.run(answers_alone(server.url, questions)), 0)
        load.left = asked.requests
        began = time.monotonic()
        before = server.metrics()["ptune_generated_tokens_total"]
        seen = asyncio.run(load.run(server, asked.seed))
        seconds = time.monotonic() - began
        end = check_end(server, seen, asked.growth)
        if status := server.end(timeout=60):
            load.wrong.append(f"the server ended with {status}")
    wrong = load.wrong + end.pop("wrong")
    rate = (end["tokens"] - before) / seconds
    found = {"requests": asked.requests, **load.counts, **end, "seconds": round(seconds, 1)}
    found |= {"tokens/s": round(rate), "log": str(server.log)}
    print(json.dumps(found | {"wrong": wrong}, ensure_ascii=False))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
