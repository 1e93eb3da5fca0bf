"""The training log, train_log.jsonl, and the interface for progress."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any, Protocol

from transformers import TrainerCallback

from ptune.errors import ConfigError
from ptune.files.atomic import write_text_atomically
from ptune.files.json_text import to_json

LOG_FILE = "train_log.jsonl"


class TrainReporter(Protocol):
    """Interface for the progress of training; the command line implements it."""

    def step(self, step: int, max_steps: int) -> None:
        """An optimizer step is done."""

    def logged(self, entry: dict[str, float]) -> None:
        """A line went into the log: a training step's or an evaluation's."""

    def noticed(self, text: str) -> None:
        """A warning."""


class TrainLog(TrainerCallback):  # type: ignore[misc]
    """Writes train_log.jsonl and calls the reporter.

    Args:
        file: one JSON object a line; a resumed run first drops lines of steps after its checkpoint.
        records: in an epoch.
        reporter: told of steps and lines.
    """

    def __init__(self, file: Path, records: int, reporter: TrainReporter) -> None:
        self.file = file
        self.records = records
        self.reporter = reporter
        self.since = (0.0, 0.0)  # epoch and time of the last line

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock, and drop the lines that a resumed run will log again."""
        self.since = (state.epoch or 0.0, time.perf_counter())
        if state.is_world_process_zero and self.file.is_file():
            lines = self.file.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = [line for line in lines if _step_of(line) <= state.global_step]
            write_text_atomically(self.file, "".join(f"{line}\n" for line in kept))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell the reporter."""
        self.reporter.step(state.global_step, state.max_steps)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any
    ) -> None:
        """Write a line for a training step or an evaluation; the library's summary is neither."""
        if not state.is_world_process_zero or not logs.keys() & {"loss", "eval_loss"}:
            return
        entry: dict[str, float] = {"step": state.global_step, **logs}
        if "loss" in logs:
            epoch, began = self.since
            now = time.perf_counter()
            records = (state.epoch - epoch) * self.records
            entry["samples_per_second"] = round(records / (now - began), 3)
            self.since = (state.epoch, now)
        self._write(entry)
        self.reporter.logged(entry)

    def skipped(self, state: Any, reason: str, **numbers: float) -> None:
        """Write a line for a skipped step."""
        if state.is_world_process_zero:
            self._write({"step": state.global_step, "skipped": reason, **numbers})

    def _write(self, entry: dict[str, Any]) -> None:
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(to_json(entry) + "\n")


def eval_losses(file: Path) -> dict[int, float]:
    """The eval_loss of each step that was evaluated, in their order; of no file, none."""
    if not file.is_file():
        return {}
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    entries = [json.loads(line) for line in lines if math.isfinite(_step_of(line))]
    return {int(e["step"]): float(e["eval_loss"]) for e in entries if "eval_loss" in e}


def check_own_log(file: Path) -> None:
    """Refuse a log that no training of ptune wrote: a run would write over it.

    Raises:
        ConfigError: naming the file.
    """
    if not file.exists():
        return
    *lines, _ = file.read_bytes().split(b"\n")  # a killed run may leave half a line at its end
    if not all(math.isfinite(_step_of(line.decode("utf-8", "replace"))) for line in lines):
        raise ConfigError(f"{file} was not written by ptune; move it, or pass another --output")


def _step_of(line: str) -> float:
    """The step of a log line; infinite for half a line, or what else is none of ptune's."""
    try:
        entry = json.loads(line)
        if not entry.keys() & {"loss", "eval_loss", "skipped"}:
            return math.inf
        return int(entry["step"])
    except (ValueError, KeyError, AttributeError, TypeError):
        return math.inf
