"""A `transformers.Trainer` for the prefix of a frozen base model."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor
from transformers import Trainer

from ptune.checkpoint.metadata import CheckpointConfig
from ptune.checkpoint.prefix import read_prefix, save_prefix
from ptune.data.examples import StepCollator
from ptune.training.batches import EffectiveBatches, StepLoader
from ptune.training.eval_loss import total_loss
from ptune.training.finite_guard import FiniteGuard
from ptune.training.micro_batch import MicroBatch, split
from ptune.training.seeds import derive_seed


class PrefixTrainer(Trainer):
    """Trains and saves the prefix alone; a batch is an optimizer step.

    Gradient accumulation over micro-batches is done here and not by the library, so that their size
    can change within a step.  What is computed is a function of the seed, the step and the place of
    a record in the effective batch: it depends neither on that size nor on the processes.

    Args:
        batch_size: records of an optimizer step, over all processes.
        metadata: of the checkpoints, written into each.
        shuffle: random order; else the order of the data.
        pad_token_id: of the tokenizer.
        micro_batch: the micro-batch size.
        guard: decides which steps are taken.
        kwargs: for `transformers.Trainer`.

    Attributes:
        withheld: the step whose prefix was not saved because it gave no finite loss.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        metadata: CheckpointConfig,
        shuffle: bool,
        pad_token_id: int,
        micro_batch: MicroBatch,
        guard: FiniteGuard,
        **kwargs: Any,
    ) -> None:
        self.batch_size = batch_size
        self.metadata = metadata
        self.shuffle = shuffle
        self.pad_token_id = pad_token_id
        self.micro_batch = micro_batch
        self.guard = guard
        self.withheld: int | None = None
        self._newest: dict[str, Tensor] = {}  # micro-batch
        super().__init__(**kwargs)

    def get_train_dataloader(self) -> StepLoader:
        """Load whole effective batches; each process computes its share of them."""
        examples: datasets.Dataset = self.train_dataset
        seed = self.args.seed if self.shuffle else None
        return StepLoader(
            examples,
            EffectiveBatches(examples["length"][:], self.batch_size, seed),
            StepCollator(self.pad_token_id, self.args.process_index, self.args.world_size),
            self.args.dataloader_pin_memory,
        )

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: Any) -> int:
        return sum(batch["num_items"] for batch in batch_samples)

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: int | None = None
    ) -> Tensor:
        """Compute the gradients of an optimizer step.

        Args:
            model: perhaps wrapped for several processes.
            inputs: from `StepCollator`.
            num_items_in_batch: label tokens of the step, over all processes.

        Returns:
            The loss; 0 if it is not finite (`FiniteGuard.correct` corrects the mean).  Gradients
            are unscaled, and None if the step is to be skipped.
        """
        model.train()
        inputs = self._prepare_inputs(inputs)
        loss = self.micro_batch.fit(
            lambda: self._accumulate_gradients(model, inputs, num_items_in_batch),
            self.args.device,
            self.state.global_step + 1,
        )
        parameters = self.model.base_model.prefix_encoder.parameters()
        gradients = [p.grad for p in parameters if p.grad is not None]
        if scale := self.guard.loss_scale:
            torch._foreach_mul_(gradients, 1 / scale.factor)
        numbers = torch.stack([loss, torch.nn.utils.get_total_norm(gradients)])
        if self.args.world_size > 1:  # all processes must come to the same decision
            numbers = self.accelerator.reduce(numbers, reduction="sum")
        if not self.guard.judge(*numbers.tolist()):
            # Without gradients the optimizer leaves parameters and its own state alone.
            model.zero_grad(set_to_none=True)
        return loss if self.guard.loss_is_finite else torch.zeros_like(loss)

    def _accumulate_gradients(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: int | None
    ) -> Tensor:
        """Sum loss and gradients over the micro-batches of a step."""
        model.zero_grad(set_to_none=True)  # of a try that ran out of memory
        factor = self.guard.loss_scale.factor if self.guard.loss_scale else 1.0
        total = torch.zeros((), device=self.args.device)
        parts = list(split(inputs, self.micro_batch.size))
        dropout = self.model.base_model.prefix_encoder.dropout
        at = (self.args.seed, "dropout", self.state.global_step)
        for number, (part, places) in enumerate(parts, 1):
            dropout.row_seeds = [derive_seed(*at, place) for place in places]
            # Several processes reduce gradients once a step.
            last = number == len(parts)
            with nullcontext() if last else self.accelerator.no_sync(model):
                loss = self.compute_loss(model, part, num_items_in_batch=num_items_in_batch)
                self.accelerator.backward(loss * factor)
            total += loss.detach()
        self._newest, _ = parts[-1]
        return total

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute logits only of label tokens."""
        inputs = {**inputs, "use_cache": False, "label_logits_only": True}
        return super().compute_loss(model, inputs, *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, leaving skipped steps out of the means."""
        if "loss" in logs:
            self.guard.correct(logs)
        super().log(logs, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure eval_loss, each process on its share of the development set."""
        share = self.eval_dataset.shard(self.args.world_size, self.args.process_index)
        totals = self.micro_batch.fit(
            lambda: total_loss(self.model, share, self.pad_token_id, self.micro_batch.size),
            self.args.device,
            self.state.global_step,
        )
        loss, tokens = totals
        if self.args.world_size > 1:  # never on Apple's GPU, which has no float64
            summed = torch.tensor(totals, dtype=torch.float64, device=self.args.device)
            loss, tokens = self.accelerator.reduce(summed, reduction="sum").tolist()
        if not math.isfinite(loss):
            self.guard.log.skipped(self.state, "eval_loss is not finite")
            self.guard.log.reporter.noticed(
                f"eval_loss is not finite at step {self.state.global_step}"
            )
            return {}
        metrics = {"eval_loss": loss / tokens}
        self.log(dict(metrics))
        self.control: Any = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def prefix_is_good(self) -> bool:
        """Whether the prefix, as it is now, gives a finite loss.

        The newest loss is that of the prefix before its last update, which may have been the one
        that ruined it; so the newest micro-batch is computed again.
        """
        if not (self._newest and self.guard.loss_is_finite):
            return self.guard.loss_is_finite
        self.model.eval()
        with torch.no_grad():
            # Divided by 1: a micro-batch may have no label of its own.
            one = torch.ones((), device=self.args.device)
            loss = self.compute_loss(self.model, self._newest, num_items_in_batch=one)
        self.model.train()
        return math.isfinite(self.accelerator.reduce(loss, reduction="sum").item())

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.prefix_is_good():
            super()._save_checkpoint(model, trial)
            return
        step = self.withheld = self.state.global_step
        if not self.guard.skipped:  # else this is no news
            self.guard.log.reporter.noticed(
                f"checkpoint-{step} is not written: its prefix gives no finite loss"
            )

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.metadata.write(folder)
        save_prefix(self.model, folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        prefix = self.model.base_model.prefix_encoder
        prefix.load_state_dict(read_prefix(Path(resume_from_checkpoint)))
