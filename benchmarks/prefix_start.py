"""How a prefix begins, and what it is worth: `python benchmarks/prefix_start.py`.

The built-in tiny model and the data of examples/AdvertiseGen.  Prefixes of one length begin at
random, as an instruction, and as worked examples; all are trained alike, on as many seeds.  For
each: eval_loss on the way, and the steps after which it is below what the random one ends with.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from ptune.config.settings import TrainSettings
from ptune.training.log import LOG_FILE
from ptune.training.summary import TrainSummary
from ptune.training.train import train

EXAMPLE = Path(__file__).parents[1] / "examples" / "AdvertiseGen"
INSTRUCTION = "根据商品的属性，写一段吸引人的广告文案。"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--rate", type=float, nargs="+", default=[0.02])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--data", type=Path, default=EXAMPLE / "train.json")
    parser.add_argument("--eval-data", type=Path, default=EXAMPLE / "dev.json")
    arguments = parser.parse_args()
    for rate in arguments.rate:
        compare(arguments, rate)


class Silent:
    """Wants to know nothing."""

    def started(self, summary: TrainSummary) -> None:
        """Nothing is shown."""

    def step(self, step: int, max_steps: int) -> None:
        """Nothing is shown."""

    def logged(self, entry: dict[str, float]) -> None:
        """It is in the log, too."""

    def noticed(self, text: str) -> None:
        """Nothing is shown."""


def compare(arguments: argparse.Namespace, rate: float) -> None:
    """Print the curves of all starts at a learning rate."""
    starts: dict[str, dict[str, Any]] = {
        "random": {},
        "instruction": {"init_text": INSTRUCTION},
        "examples": {"init_data": 5},
    }
    curves = {
        name: [curve(arguments, rate, seed, more) for seed in range(arguments.seeds)]
        for name, more in starts.items()
    }
    aims = [losses[-1] for losses in curves["random"]]
    print(f"\nlearning rate {rate:g}, {arguments.length} tokens, {arguments.seeds} seeds")
    for name, runs in curves.items():
        middle = [statistics.median(losses) for losses in zip(*runs, strict=True)]
        reached = [
            next((i for i, loss in enumerate(losses) if loss <= aim), None)
            for losses, aim in zip(runs, aims, strict=True)
        ]
        steps = [None if i is None else (i + 1) * arguments.every for i in reached]
        print(f"{name:12} " + " ".join(f"{loss:.3f}" for loss in middle))
        print(f"{'':12} steps to what the random one ends with: {steps}")


def curve(
    arguments: argparse.Namespace, rate: float, seed: int, more: dict[str, Any]
) -> list[float]:
    """The eval_loss after every few steps."""
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainSettings(
            model=arguments.model,
            data=(arguments.data,),
            eval_data=(arguments.eval_data,),
            output=Path(folder) / "run",
            learning_rate=rate,
            max_steps=arguments.steps,
            eval_steps=arguments.every,
            save_steps=arguments.steps,
            seed=seed,
            pre_seq_len=arguments.length,
            prefix_dropout=0.0,
            max_target_length=128,
            device="cpu",
            dtype="float32",
            **more,
        )
        train(settings, Silent())
        lines = (settings.output / LOG_FILE).read_text(encoding="utf-8").splitlines()
    losses = [json.loads(line).get("eval_loss") for line in lines]
    return [loss for loss in losses if loss is not None]


if __name__ == "__main__":
    main()
