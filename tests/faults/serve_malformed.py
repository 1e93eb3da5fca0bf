"""Requests that schemathesis makes of a server's own /openapi.json; none may give a 5xx.

Run by hand: `make malformed`, or `python tests/faults/serve_malformed.py --help`.

Fields missing, of another type, out of range, unknown, and whole requests that are as they should
be.  What the server counts of its responses decides, and that it says no traceback and goes on.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx2 as httpx
from fixtures.serve_process import ServeProcess, write_random_prefix

from ptune import load_model

ROUND = 500  # examples of an operation at a time
HOOKS = Path(__file__).with_name("plausible_bodies.py")


def responses(server: ServeProcess) -> dict[str, int]:
    """How many there were, by status."""
    name = "ptune_http_responses_total "
    found = server.metrics().items()
    return {key.removeprefix(name): int(n) for key, n in found if key.startswith(name)}


def make_requests(server: ServeProcess, phase: str, most: int, seed: int, report: Path) -> None:
    """Let schemathesis make requests.

    Args:
        server: that gets them.
        phase: `coverage` of what the schema says, which is the same each time, or `fuzzing`.
        most: examples of each operation.
        seed: of what is drawn.
        report: what it found is written at its end.
    """
    program = str(Path(sys.executable).with_name("schemathesis"))
    command = [program, "run", f"{server.url}/openapi.json", "--mode", "all"]
    command += ["--phases", phase, "--checks", "not_a_server_error", "--no-color"]
    command += ["--max-examples", str(most), "--seed", str(seed), "--no-shrink"]
    command += ["--continue-on-failure", "--generation-database", "none", "--warnings", "off"]
    environment = os.environ | {"SCHEMATHESIS_HOOKS": str(HOOKS)}
    with report.open("a") as out:
        streams = {"stdout": out, "stderr": subprocess.STDOUT}
        subprocess.run(command, check=False, env=environment, cwd=report.parent, **streams)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="malformed-"))
    model = load_model("tiny", device="cpu")
    write_random_prefix(folder / "prefixes" / "p4", model, 4, 0)
    options = ["--model", "tiny", "--prefix-folder", str(folder / "prefixes")]
    # Short answers, for what is asked is not what is tried; a client may ask for longer ones.
    options += ["--max-new-tokens", "4", "--cache-memory", "400MB"]
    wrong = []
    with ServeProcess(folder / "log", *options) as server:
        report, seed = folder / "report", asked.seed
        make_requests(server, "coverage", 1, seed, report)
        made = sum(responses(server).values())
        while made < asked.requests:
            make_requests(server, "fuzzing", min(ROUND, asked.requests - made), seed, report)
            seed += 1
            if made == (made := sum(responses(server).values())):
                raise SystemExit(f"no requests are made; see {report}")
            print(responses(server), file=sys.stderr, flush=True)
        found = responses(server)
        wrong += [f"{n} responses of {status}" for status, n in found.items() if status > "499"]
        if httpx.get(f"{server.url}/health", timeout=60).status_code != 200:
            wrong.append("the server does not go on")
        if server.end(timeout=60):
            wrong.append("it did not end as it should")
    if "Traceback" in server.log.read_text():
        wrong.append("a traceback")
    print(json.dumps({"responses by status": found, "wrong": wrong, "folder": str(folder)}))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
