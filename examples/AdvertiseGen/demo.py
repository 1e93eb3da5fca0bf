"""`make demo`: the whole way on the built-in tiny model, with the real commands.

Trains a prefix on train.json, evaluates dev.json before and after, merges, asks one question, and
writes demo/demo_results.json.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ptune.cli import app
from ptune.evaluation.metrics import METRICS

HERE = Path(__file__).resolve().parent.relative_to(Path.cwd())
DEMO = Path("demo")
PREFIX, MERGED, BEFORE, AFTER = (DEMO / n for n in ("prefix", "merged", "before", "after"))
TRAIN_DATA, DEV_DATA = HERE / "train.json", HERE / "dev.json"
SAMPLES = (0, 1, 2)

console = Console(highlight=False, soft_wrap=True)


def run(command: str) -> None:
    """Show a command and run it in this process, which saves loading torch each time."""
    console.print(f"\n[bold cyan]$ {command}[/]")
    try:
        app(shlex.split(command)[1:], standalone_mode=False)
    except SystemExit as end:
        if end.code:
            sys.exit(end.code)


def ask(question: str) -> None:
    """One chat turn with the merged model, question piped in."""
    command = f"ptune chat --model {MERGED} --no-do-sample --max-new-tokens 96"
    console.print(f"\n[bold cyan]$ echo '{question}' | {command}[/]")
    ptune = Path(sys.executable).with_name("ptune")
    arguments = [str(ptune), *shlex.split(command)[1:]]
    subprocess.run(arguments, input=question + "\n", text=True, check=True, encoding="utf-8")


def results(folder: Path) -> dict[str, float]:
    """The four metrics of an evaluation."""
    scores = json.loads((folder / "eval_results.json").read_text(encoding="utf-8"))
    return {name: scores[name] for name in METRICS}


def predictions(folder: Path) -> list[dict[str, str]]:
    """The answers of an evaluation, in the order of the data."""
    file = folder / "generated_predictions.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def show(before: dict[str, float], after: dict[str, float]) -> None:
    """The table, and three samples."""
    table = Table("")
    for metric in METRICS:
        table.add_column(metric, justify="right")
    for name, scores in (("before", before), ("after", after)):
        table.add_row(name, *(f"{scores[metric]:.2f}" for metric in METRICS))
    console.print()
    console.print(table)
    both = list(zip(predictions(BEFORE), predictions(AFTER), strict=True))
    for i in SAMPLES:
        plain, tuned = both[i]
        console.print(f"\n[dim]prompt    [/]{plain['prompt']}")
        console.print(f"[dim]before    [/]{plain['predict']}")
        console.print(f"[dim]after     [/][green]{tuned['predict']}[/]")
        console.print(f"[dim]reference [/]{plain['labels']}")


def main() -> None:
    """Run every command and write the results."""
    began = time.perf_counter()
    shutil.rmtree(DEMO, ignore_errors=True)
    run(f"ptune eval --model tiny --data {DEV_DATA} --output {BEFORE} --batch-size 64")
    run(
        f"ptune train --config {HERE / 'demo.yaml'} --data {TRAIN_DATA} "
        f"--eval-data {DEV_DATA} --output {PREFIX}"
    )
    run(f"ptune eval --checkpoint {PREFIX} --output {AFTER} --batch-size 64")
    run(f"ptune merge --checkpoint {PREFIX} --output {MERGED}")
    ask(predictions(AFTER)[SAMPLES[0]]["prompt"])

    before, after = results(BEFORE), results(AFTER)
    seconds = round(time.perf_counter() - began, 1)
    show(before, after)
    summary = {"before": before, "after": after, "seconds": seconds}
    file = DEMO / "demo_results.json"
    file.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    console.print(f"\n{seconds} s; the numbers are in {file}")


if __name__ == "__main__":
    main()
