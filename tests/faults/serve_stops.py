"""SIGTERM to `ptune serve` under load, at any moment; every request must come to an end.

Run by hand: `make stops`, or `python tests/faults/serve_stops.py --help`.

More clients than slots ask without a pause: whole answers, streams and the original's interface,
some longer than `--grace`.  A request that was sent before the signal must be answered or be told
an error, in the body or in the stream.  One that came after it is also refused by the address being
closed.  The process must end within `--grace` and a few seconds, with status 0.
"""

import argparse
import asyncio
import collections
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx2 as httpx
from fixtures.serve_process import ServeProcess, stream

SLOTS, QUEUE, CLIENTS = 4, 6, 12
GRACE, LATE = 3, 15  # seconds; the latter for what follows the grace, on a busy machine
ERRORS = {429, 503, 504}
ENDLESS = {"temperature": 0, "repetition_penalty": 0.01}  # one token over and over


class Stop:
    """One server and its clients.

    Args:
        server: that is stopped.
        rng: decides what is asked.

    Attributes:
        ends: how requests ended, counted.
        wrong: what should not have happened.
    """

    def __init__(self, server: ServeProcess, rng: random.Random) -> None:
        self.server = server
        self.rng = rng
        self.ends = collections.Counter()
        self.wrong: list[str] = []
        self.stopped: float | None = None

    async def ask(self, http: httpx.AsyncClient) -> str:
        """One request; returns how it ended.

        Raises:
            httpx.TransportError: at the connection.
            EOFError: a stream that breaks off.
        """
        text, most = f"你好{self.rng.random()}", self.rng.choice([8, 60, 1500])
        drawing = {"temperature": 2, "top_p": 1.0}
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": most}
        body |= self.rng.choice([drawing, ENDLESS])
        if (kind := self.rng.randrange(3)) == 0:
            try:
                async for event in stream(http, body):
                    if "error" in event:
                        return "error in the stream"
            except httpx.HTTPStatusError as error:
                return self.status(error.response)
            return "answered"
        if kind == 1:
            return self.status(await http.post("/v1/chat/completions", json=body))
        asked = {"prompt": text, "max_length": most + 40} | drawing
        return self.status(await http.post("/", json=asked))

    def status(self, answer: httpx.Response) -> str:
        if answer.status_code not in ERRORS | {200}:
            self.wrong.append(f"status {answer.status_code}: {answer.text}")
        return "answered" if answer.status_code == 200 else str(answer.status_code)

    async def ask_on(self) -> None:
        async with httpx.AsyncClient(base_url=self.server.url, timeout=GRACE + LATE + 30) as http:
            while True:
                began = time.monotonic()
                try:
                    end = await self.ask(http)
                except (httpx.HTTPError, EOFError) as error:
                    if self.stopped is None or began < self.stopped:
                        self.wrong.append(f"sent before the signal: {error!r}")
                    self.ends["refused by the address"] += 1
                    return
                self.ends[end] += 1
                await asyncio.sleep(0.05 if end in ("429", "503") else 0)

    async def run(self, after: float) -> float:
        """Let clients ask, stop the server after so many seconds; returns how long it took."""
        clients = [asyncio.ensure_future(self.ask_on()) for _ in range(CLIENTS)]
        await asyncio.sleep(after)
        self.stopped = time.monotonic()
        try:
            status = await asyncio.to_thread(self.server.end, GRACE + LATE)
            if status:
                self.wrong.append(f"ended with {status}")
        except subprocess.TimeoutExpired:
            self.wrong.append("it hangs")
            self.server.process.kill()
        took = time.monotonic() - self.stopped
        _, pending = await asyncio.wait(clients, timeout=10)
        if pending:
            self.wrong.append(f"{len(pending)} clients wait for a server that has ended")
        for task in pending:
            task.cancel()
        return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stops", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    rng = random.Random(asked.seed)
    folder = Path(tempfile.mkdtemp(prefix="stops-"))
    options = ["--model", "tiny", "--max-slots", str(SLOTS), "--max-queue", str(QUEUE)]
    options += ["--grace", str(GRACE), "--cache-memory", "400MB"]
    ends, wrong, seconds = collections.Counter(), [], []
    for number in range(asked.stops):
        with ServeProcess(folder / f"{number}.log", *options) as server:
            stop = Stop(server, rng)
            after = rng.uniform(0, 2)
            seconds.append(asyncio.run(stop.run(after)))
        said = server.log.read_text()
        if "Traceback" in said:
            stop.wrong.append(f"a traceback in {server.log}")
        ends += stop.ends
        wrong += [f"{number}, {after:.3f} s: {what}" for what in stop.wrong]
        print(number, f"{seconds[-1]:.2f} s", dict(stop.ends), file=sys.stderr, flush=True)
    found = {"stops": asked.stops, **ends, "slowest": round(max(seconds), 2)}
    print(json.dumps(found | {"wrong": wrong}))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
