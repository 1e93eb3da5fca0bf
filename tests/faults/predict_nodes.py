"""Answers many records on two Ray nodes of this machine, one of which is killed half-way.

Run by hand where Ray is installed: `python tests/faults/predict_nodes.py --help`.  Checks that the
answers have every record once, in the order of its file, and with `--compare` that they are those
of one process, byte for byte.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

PTUNE = [sys.executable, "-c", "from ptune.cli import app; app()"]
PATIENCE = 120.0  # seconds without a shard


class Failure(Exception):
    """Something is not as it should be."""


def prompt(file: int, record: int) -> str:
    return f"类型#裙*款号#{file}*颜色#黑色*编号#{record}"


def write_questions(folder: Path, files: int, records: int) -> list[int]:
    """Write files of questions; returns how many each has."""
    sizes = [records // files + (number < records % files) for number in range(files)]
    folder.mkdir()
    for number, size in enumerate(sizes):
        lines = (json.dumps({"content": prompt(number, i)}) + "\n" for i in range(size))
        (folder / f"part-{number:03d}.jsonl").write_text("".join(lines), encoding="utf-8")
    return sizes


def predict(asked: argparse.Namespace, root: Path, output: str, *more: str) -> subprocess.Popen:
    flags = ["--model", "tiny", "--device", "cpu", "--data", str(root / "questions")]
    flags += ["--output", str(root / output), "--json"]
    for name in ("max_new_tokens", "shard_size", "batch_size"):
        flags += ["--" + name.replace("_", "-"), str(getattr(asked, name))]
    log = (root / f"{output}.log").open("w", encoding="utf-8")
    return subprocess.Popen([*PTUNE, "predict", *flags, *more], stdout=subprocess.PIPE, stderr=log)


def end_of(process: subprocess.Popen, root: Path, output: str) -> dict[str, float]:
    """What a run says at its end."""
    said, _ = process.communicate()
    log = (root / f"{output}.log").read_text(encoding="utf-8")
    if process.returncode:
        raise Failure(f"exit code {process.returncode}: {log[-3000:]}")
    print(log.strip() or "(nothing on stderr)", flush=True)
    found: dict[str, float] = json.loads(said)
    return found


def answered(output: Path) -> int:
    """Records that are written, in joined files and in shards."""
    files = [*output.glob("*.jsonl"), *output.glob(".shards/*/*.jsonl")]
    total = 0
    for file in files:
        try:
            total += file.read_bytes().count(b"\n")
        except FileNotFoundError:  # joined meanwhile
            continue
    return total


def kill_half_way(cluster: Cluster, node: object, output: Path, total: int, run) -> int:
    """Kill a node when half of the records are answered; returns how many were."""
    before, since = 0, time.monotonic()
    while (now := answered(output)) < total / 2:
        if run.poll() is not None:
            raise Failure(f"it ended with {run.returncode} before the half")
        if now != before:
            before, since = now, time.monotonic()
        if time.monotonic() - since > PATIENCE:
            raise Failure(f"no shard in {PATIENCE:g} seconds after {now} records")
        time.sleep(0.2)
    cluster.remove_node(node, allow_graceful=False)  # SIGKILL
    return now


def check(output: Path, sizes: list[int]) -> int:
    """See that every record is there once, in its place; returns the lines."""
    names = sorted(path.name for path in output.glob("*.jsonl"))
    wanted = [f"part-{number:03d}.jsonl" for number in range(len(sizes))]
    if names != wanted:
        raise Failure(f"files {names}")
    left = [path for path in output.rglob("*") if path.is_file()]
    left = [p for p in left if p.suffix == ".partial" or (p.parent != output and "-" in p.stem)]
    if left:
        raise Failure(f"left behind: {left}")
    for number, (name, size) in enumerate(zip(names, sizes, strict=True)):
        lines = (output / name).read_text(encoding="utf-8").split("\n")[:-1]
        found = [(e["index"], e["line"], e["prompt"]) for e in map(json.loads, lines)]
        if found != [(i, i + 1, prompt(number, i)) for i in range(size)]:
            raise Failure(f"{name} has not every record once in its place")
    return sum(sizes)


def campaign(asked: argparse.Namespace, root: Path) -> None:
    sizes = write_questions(root / "questions", asked.files, asked.records)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        node = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        began = time.monotonic()
        run = predict(asked, root, "answers", "--ray", cluster.address)
        at = kill_half_way(cluster, node, root / "answers", asked.records, run)
        killed = time.monotonic() - began
        facts = end_of(run, root, "answers")
        seconds = time.monotonic() - began
    finally:
        cluster.shutdown()
    if facts["lost_workers"] < 1 or facts["answered"] != asked.records:
        raise Failure(f"a worker was lost and all was answered: {facts}")
    lines = check(root / "answers", sizes)
    print(
        f"{lines:,} records of {len(sizes)} files, each once and in its place; one of two nodes "
        f"killed after {at:,} records and {killed:.0f} s, the end after {seconds:.0f} s; "
        f"{facts['samples_per_second']} records/s, {facts['lost_workers']} worker lost"
    )
    if asked.compare:
        end_of(predict(asked, root, "alone"), root, "alone")
        for number in range(len(sizes)):
            name = f"part-{number:03d}.jsonl"
            if (root / "answers" / name).read_bytes() != (root / "alone" / name).read_bytes():
                raise Failure(f"{name} differs from that of one process")
        print("the same bytes as of one process")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=50)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--max-new-tokens", type=int, default=4)
    parser.add_argument("--shard-size", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--compare", action="store_true", help="with one process")
    asked = parser.parse_args()
    print(f"Ray {ray.__version__}", flush=True)
    with tempfile.TemporaryDirectory(prefix="predict-") as folder:
        campaign(asked, Path(folder))


if __name__ == "__main__":
    main()
