"""ptune's own training loop, `AdapterTrainer.train`, paused between its steps.

`python ptune_training.py TASK.json`.  The time of a step begins with the answer to the one before:
the data loader, the collator, every micro-batch, the optimizer and the log are in it.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from protocol import answer, asked_for_a_step, peak_memory, read_task
from transformers import TrainerCallback

from ptune.checkpoint.method import method_of
from ptune.config.settings import TrainSettings
from ptune.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from ptune.training.arguments import training_arguments
from ptune.training.checkpoints import Checkpoints
from ptune.training.finite_guard import FiniteGuard
from ptune.training.log import TrainLog
from ptune.training.micro_batch import MicroBatch
from ptune.training.stop_request import StopRequest
from ptune.training.trainer import AdapterTrainer


class Examples(list[dict[str, Any]]):
    """The interface of a data set that the trainer uses."""

    def __getitem__(self, key: Any) -> Any:
        """A row, or a column."""
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)


class Quiet:
    """A reporter that ignores everything."""

    def step(self, number: int, total: int) -> None:
        """As of `TrainReporter`."""

    def logged(self, entry: dict[str, Any]) -> None:
        """As of `TrainReporter`."""

    def noticed(self, text: str) -> None:
        """As of `TrainReporter`."""


class Pause(TrainerCallback):
    """Answers after every step and waits for the request of the next."""

    def __init__(self, **about: Any) -> None:
        self.about = about
        self.begin = 0.0

    def wait(self, control: Any) -> None:
        """Wait, and start the clock."""
        control.should_training_stop = not asked_for_a_step()
        self.begin = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Send the versions."""
        answer(ready=True, **self.about)
        self.wait(control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Send the seconds of the step."""
        answer(seconds=time.perf_counter() - self.begin, peak=peak_memory())
        self.wait(control)


def make_model(task: dict[str, Any]) -> Any:
    """Make a frozen model with random weights."""
    model = ChatGLMForConditionalGeneration(ChatGLMConfig(**task["config"]))
    model.tie_weights()
    model.requires_grad_(False)
    return model


def main() -> None:
    task = read_task()
    torch.set_num_threads(task["threads"])
    torch.manual_seed(0)
    model = make_model(task)
    examples = Examples(r | {"length": len(r["input_ids"])} for r in task["records"])
    micro = task["micro_batch"]
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainSettings(
            data=(Path("unread.json"),),
            model="made here",
            output=Path(folder),
            batch_size=task["batch_size"],
            micro_batch_size=micro,
            max_steps=10**6,
            save_steps=10**6,
            device="cpu",
            **task.get("trained", {"pre_seq_len": task["pre_seq_len"]}),
        )
        method = method_of(settings.method)
        method.attach(model, settings)
        log = TrainLog(Path(folder) / "train_log.jsonl", len(examples), Quiet())
        guard = FiniteGuard(log, None)
        size = MicroBatch(micro, False, list, print)
        about: dict[str, Any] = {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        about["trainable"] = sum(p.numel() for _, p in method.parameters(model))
        trainer = AdapterTrainer(
            model=model,
            args=training_arguments(settings, Path(folder), torch.device("cpu")),
            train_dataset=examples,
            settings=settings,
            method=method,
            metadata=None,
            checkpoints=Checkpoints(Path(folder), 1, 0, method.files),
            stop=StopRequest(print),
            pad_token_id=task["config"]["pad_token_id"],
            micro_batch=size,
            guard=guard,
            callbacks=[log, guard, Pause(**about)],
        )
        trainer.result_is_good = lambda: False  # nothing is saved at the end
        trainer.train()


if __name__ == "__main__":
    main()
