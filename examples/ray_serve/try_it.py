"""Runs the deployment on this machine with the built-in model, and checks what README.md says.

Two prefixes are trained; a plain `ptune serve` and then two replicas answer the same questions.
One replica is killed under load, and at last their number follows the load.  Ends with an error
where something is not as it should be.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray
import yaml
from openai import OpenAI
from ray import serve

HERE = Path(__file__).resolve().parent
DATA = HERE.parent / "AdvertiseGen" / "train.json"
PTUNE = [sys.executable, "-c", "from ptune.cli import app; app()"]
SERVE = [sys.executable, "-c", "from ray.serve.scripts import cli; cli()"]
PREFIXES = {"ads": 2, "short": 1}  # and how many sentences they learn to say
MODELS = ["tiny", *PREFIXES]
QUESTIONS = ["类型#裙*材质#棉", "类型#裤*版型#宽松*颜色#黑色", "类型#上衣*风格#简约"]
REPLICA = "SERVE_REPLICA::ptune#Replica#"
LONGEST = 120.0  # seconds to wait for anything

Asked = tuple[str, str, float, bool]  # model, question, temperature, whether it is streamed
CASES: list[Asked] = [
    (model, question, temperature, streamed)
    for model in MODELS
    for question in QUESTIONS
    for temperature in (0.0, 0.9)
    for streamed in (False, True)
]


class Failure(Exception):
    """Something is not as it should be."""


def main() -> None:
    """Run everything."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train(folder)
        expected = answers_of_a_plain_server(folder)
        config = configuration(folder)
        with cluster():
            deploy(config, folder, num_replicas=2)
            client = OpenAI(base_url=url(config["http_options"]["port"]), api_key="none")
            compare(client, expected)
            kill_one(client, expected)
            scale(client, config, folder)
    print("all is as it should be")


def train(folder: Path) -> None:
    """Train the prefixes: one on the example's copy, one on the first sentences of it."""
    records = [json.loads(line) for line in DATA.read_text("utf-8").splitlines()]
    for name, sentences in PREFIXES.items():
        for record in records:
            record["summary"] = "。".join(record["summary"].split("。")[:sentences]) + "。"
        data = folder / f"{name}.json"
        data.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
        options = {"model": "tiny", "data": data, "output": folder / name, "max-steps": 40}
        options |= {"pre-seq-len": 16, "learning-rate": 0.1, "micro-batch-size": 16}
        flags = [part for key, value in options.items() for part in (f"--{key}", str(value))]
        subprocess.run([*PTUNE, "train", *flags], check=True, stdout=subprocess.DEVNULL)
        print(f"trained {name}")


def answers_of_a_plain_server(folder: Path) -> dict[Asked, str]:
    """What `ptune serve` answers."""
    port = free_port()
    prefixes = [part for pair in prefix_pairs(folder) for part in ("--prefix", pair)]
    command = [*PTUNE, "serve", "--model", "tiny", *prefixes, "--port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        client = OpenAI(base_url=url(port), api_key="none", max_retries=0)
        wait("ptune serve to begin", lambda: process.poll() is not None or reachable(port))
        expected = {case: ask(client, case)[0] for case in CASES}
    finally:
        process.terminate()
        process.wait(LONGEST)
    for question in QUESTIONS:  # else it would not matter which prefix answers
        of_models = {expected[model, question, 0.0, False] for model in MODELS}
        expect(len(of_models) == len(MODELS), f"models differ in {of_models}")
    print(f"ptune serve gave {len(expected)} answers")
    return expected


def prefix_pairs(folder: Path) -> list[str]:
    """NAME=DIR of the prefixes."""
    return [f"{name}={folder / name}" for name in PREFIXES]


def configuration(folder: Path) -> dict[str, Any]:
    """serve_config.yaml with the built-in model, for a machine without a card."""
    config: dict[str, Any] = yaml.safe_load((HERE / "serve_config.yaml").read_text("utf-8"))
    (application,) = config["applications"]
    application["args"] |= {"model": "tiny", "prefix": prefix_pairs(folder)}
    application["args"] |= {"device": "cpu", "cache_memory": "100MB"}
    application["deployments"][0]["ray_actor_options"] = {"num_cpus": 1}
    config["http_options"]["port"] = free_port()
    return config


@contextlib.contextmanager
def cluster() -> Iterator[None]:
    """A Ray of one machine, which ends with this process."""
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    )  # Ray's processes import deploy.py
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, namespace="serve")
    try:
        yield
    finally:
        serve.shutdown()
        ray.shutdown()


def deploy(config: dict[str, Any], folder: Path, **options: Any) -> None:
    """Do what `serve run` does, and wait until it is done.

    Args:
        config: as in serve_config.yaml.
        folder: for the file.
        options: of the deployment: `num_replicas`, or `autoscaling_config`.
    """
    deployment = config["applications"][0]["deployments"][0]
    for name in ("num_replicas", "autoscaling_config"):
        deployment.pop(name, None)
    deployment |= options
    file = folder / "serve_config.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    address = ray.get_runtime_context().gcs_address
    subprocess.run([*SERVE, "run", "--non-blocking", "--address", address, str(file)], check=True)
    wait("the deployment", running)
    print(f"deployed with {options}: replicas {', '.join(replicas())}")


def running() -> bool:
    """Whether the application runs.

    Raises:
        Failure: it never will.
    """
    application = serve.status().applications.get("ptune")
    if application is None:
        return False
    expect(not application.status.endswith("FAILED"), f"deployed: {application.message}")
    return application.status == "RUNNING"


def replicas() -> list[str]:
    """Ids of the replicas that live."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    names = [str(actor["name"]) for actor in actors]
    return sorted(name.removeprefix(REPLICA) for name in names if name.startswith(REPLICA))


def compare(client: OpenAI, expected: dict[Asked, str]) -> None:
    """See that both replicas answer, each in every case what the plain server answered."""
    seen: dict[str, set[Asked]] = {name: set() for name in replicas()}
    for _ in range(20):
        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(lambda case: ask(client, case), CASES))
        for case, (text, replica) in zip(CASES, found, strict=True):
            expect(text == expected[case], f"{case}: {text!r} as {expected[case]!r}")
            seen[replica].add(case)
        if all(len(cases) == len(CASES) for cases in seen.values()):
            break
    asked = {name: f"{len(cases)} of {len(CASES)}" for name, cases in seen.items()}
    expect(len(seen) == 2 and len(set(asked.values())) == 1, f"both replicas answer all: {asked}")
    print(f"cases that each replica answered as ptune serve did: {asked}")


def kill_one(client: OpenAI, expected: dict[Asked, str]) -> None:
    """Kill a replica under load: all is answered meanwhile, and another one comes."""
    before = replicas()
    victim = before[0]
    retried, from_others = 0, 0
    with ThreadPoolExecutor(8) as threads:
        load = [threads.submit(ask_whole, client, CASES[i % len(CASES)]) for i in range(200)]
        wait("the load to begin", lambda: sum(answer.done() for answer in load) > 20)
        ray.kill(ray.get_actor(REPLICA + victim, namespace="serve"))
        killed_at = sum(answer.done() for answer in load)
        for i, answer in enumerate(load):
            text, replica, retries = answer.result()
            model, question, temperature, _ = CASES[i % len(CASES)]
            expect(text == expected[model, question, temperature, False], f"{text!r} is right")
            retried += retries > 0
            from_others += i > killed_at and replica != victim
    expect(killed_at < 190 and from_others > 0, f"it was killed early, after {killed_at} answers")
    wait("another replica", lambda: len(replicas()) == 2 and victim not in replicas())
    wait("the deployment", running)
    print(f"{victim} was killed after {killed_at} of 200 answers, and {retried} were asked again")
    print(f"all 200 came; {', '.join(before)} became {', '.join(replicas())}")


def scale(client: OpenAI, config: dict[str, Any], folder: Path) -> None:
    """See that the number of replicas follows the load."""
    autoscaling = {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 2}
    autoscaling |= {"upscale_delay_s": 1, "downscale_delay_s": 3}
    deploy(config, folder, autoscaling_config=autoscaling)
    wait("one replica without load", lambda: len(replicas()) == 1)
    busy = True

    def keep_asking(_: int) -> int:
        asked = 0
        while busy:
            ask_whole(client, CASES[asked % len(CASES)])
            asked += 1
        return asked

    with ThreadPoolExecutor(8) as threads:
        load = threads.map(keep_asking, range(8))
        try:
            wait("two replicas under load", lambda: len(replicas()) == 2)
        finally:
            busy = False
        print(f"two replicas under load, after {sum(load)} answers")
    wait("one replica without load", lambda: len(replicas()) == 1)
    print("one replica without load")


def ask(client: OpenAI, case: Asked) -> tuple[str, str]:
    """An answer, and which replica gave it."""
    if not case[3]:
        return ask_whole(client, case)[:2]
    with client.chat.completions.with_streaming_response.create(
        **question(case), stream=True
    ) as response:
        stream = response.parse()
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
        expect(sum(map(bool, pieces)) > 3, f"{case} comes in pieces, not {pieces}")
        return "".join(pieces), response.headers.get("x-replica", "")


def ask_whole(client: OpenAI, case: Asked) -> tuple[str, str, int]:
    """An answer that is not streamed, which replica gave it, and how often it was asked again."""
    response = client.chat.completions.with_raw_response.create(**question(case))
    text = response.parse().choices[0].message.content or ""
    return text, response.headers.get("x-replica", ""), response.retries_taken


def question(case: Asked) -> dict[str, Any]:
    """What is sent."""
    model, text, temperature, _ = case
    messages = [{"role": "user", "content": text}]
    sampling = {"temperature": temperature, "seed": 7, "max_tokens": 64}
    return {"model": model, "messages": messages} | sampling


def expect(condition: bool, what: str) -> None:
    """Go on only if something is as it should be.

    Raises:
        Failure: it is not.
    """
    if not condition:
        raise Failure(f"it should be that {what}")


def wait(what: str, condition: Callable[[], bool]) -> None:
    """Wait for a condition.

    Raises:
        Failure: it does not come.
    """
    deadline = time.monotonic() + LONGEST
    while not condition():
        expect(time.monotonic() < deadline, f"{what} takes less than {LONGEST:g} seconds")
        time.sleep(0.2)


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def reachable(port: int) -> bool:
    """Whether a port takes connections."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def url(port: int) -> str:
    """Of OpenAI's interface."""
    return f"http://127.0.0.1:{port}/v1"


if __name__ == "__main__":
    main()
