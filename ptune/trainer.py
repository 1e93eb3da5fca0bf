"""transformers.Trainer for a frozen base and a trainable prefix."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import datasets
import torch
from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer, TrainerCallback

from ptune.atomic import write_text_atomically
from ptune.checkpoint import CheckpointConfig, numbered_checkpoints, read_prefix, save_prefix
from ptune.data import TrainCollator
from ptune.dev_loss import total_loss

LOG_FILE = "train_log.jsonl"
# Batches whose examples are sorted together: enough for little padding, few enough to stay random.
_SORTED_TOGETHER = 50


class LengthGroupedSampler(Sampler[int]):
    """A new random order each epoch, with examples of like length in the same batch.

    The order depends on seed and epoch alone, so that a resumed run sees the same.

    Args:
        lengths: tokens of each example.
        batch_size: examples per optimizer step.
        seed: of the order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next; the data loader calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        """Yield indices."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        size, group = self.batch_size, self.batch_size * _SORTED_TOGETHER
        batches = []
        for start in range(0, len(order), group):
            alike = sorted(order[start : start + group], key=lambda i: -self.lengths[i])
            batches += [alike[i : i + size] for i in range(0, len(alike), size)]
        # A short batch comes last, so that it does not shift the steps after it.
        full = [batch for batch in batches if len(batch) == size]
        short = [batch for batch in batches if len(batch) < size]
        for i in torch.randperm(len(full), generator=generator).tolist():
            yield from full[i]
        for batch in short:
            yield from batch


class TrainReporter(Protocol):
    """Who wants to know how training goes; the command line draws it."""

    def step(self, step: int, max_steps: int) -> None:
        """An optimizer step is done."""

    def logged(self, entry: dict[str, float]) -> None:
        """A line went into the log: a training step's or an evaluation's."""


class PrefixTrainer(Trainer):
    """Trains and saves the prefix alone.

    Args:
        record: written into every checkpoint.
        shuffle: random order; else the order of the data.
        pad_token_id: of the tokenizer.
        kwargs: for `transformers.Trainer`.
    """

    def __init__(
        self, *, record: CheckpointConfig, shuffle: bool, pad_token_id: int, **kwargs: Any
    ) -> None:
        self.record = record
        self.shuffle = shuffle
        self.pad_token_id = pad_token_id
        super().__init__(data_collator=TrainCollator(pad_token_id), **kwargs)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Ask the model for logits only where there is a label."""
        inputs = {**inputs, "use_cache": False, "label_logits_only": True}
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        examples: datasets.Dataset = self.train_dataset
        if not self.shuffle:
            return SequentialSampler(examples)
        step = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        return LengthGroupedSampler(
            list(examples["length"]), step * self.args.world_size, self.args.seed
        )

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure eval_loss, each process on its share of the development set."""
        share = self.eval_dataset.shard(self.args.world_size, self.args.process_index)
        batch_size = self.args.per_device_eval_batch_size
        totals = total_loss(self.model, share, self.pad_token_id, batch_size)
        summed = torch.tensor(totals, dtype=torch.float64, device=self.args.device)
        loss, tokens = self.accelerator.reduce(summed, reduction="sum").tolist()
        metrics = {"eval_loss": loss / tokens}
        self.log(dict(metrics))
        self.control: Any = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.record.write(folder)
        save_prefix(self.model, folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        prefix = self.model.base_model.prefix_encoder
        prefix.load_state_dict(read_prefix(Path(resume_from_checkpoint)))


class TrainLog(TrainerCallback):  # type: ignore[misc]
    """Writes train_log.jsonl and keeps the reporter informed.

    Args:
        file: one JSON object a line; lines of steps that are trained again are dropped first.
        records: in an epoch.
        reporter: told of everything.
    """

    def __init__(self, file: Path, records: int, reporter: TrainReporter) -> None:
        self.file = file
        self.records = records
        self.reporter = reporter
        self.since = (0.0, 0.0)  # epoch and time of the last line

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock, and forget what a resumed run will log again."""
        self.since = (state.epoch or 0.0, time.perf_counter())
        if state.is_world_process_zero and self.file.is_file():
            lines = self.file.read_text(encoding="utf-8").splitlines()
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
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")
        self.reporter.logged(entry)


def _step_of(line: str) -> float:
    """The step of a log line; endless for half a line, which a killed run may leave."""
    try:
        return int(json.loads(line)["step"])
    except ValueError:
        return math.inf


class StopRequest(TrainerCallback):  # type: ignore[misc]
    """Ends training after the current step, with a checkpoint; set by the first Ctrl-C."""

    def __init__(self) -> None:
        self.requested = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop if asked to."""
        if self.requested and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True


def last_resumable(output: Path) -> Path | None:
    """The newest checkpoint in a training output whose saving was finished."""
    finished = [p for p in numbered_checkpoints(output) if (p / "trainer_state.json").is_file()]
    return finished[-1] if finished else None
