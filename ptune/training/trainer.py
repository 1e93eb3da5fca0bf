"""A `transformers.Trainer` for what stands beside a frozen base model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_callback import ExportableState

from ptune.checkpoint.metadata import CheckpointConfig
from ptune.checkpoint.method import Method
from ptune.config.settings import TrainSettings
from ptune.data.examples import StepCollator
from ptune.data.seeds import derive_seed
from ptune.files.json_text import to_json
from ptune.parallel.sums import sum_over_processes
from ptune.training.batches import EffectiveBatches
from ptune.training.checkpoints import STATE_FILE, Checkpoints, evaluations_since_best
from ptune.training.distillation import Teacher
from ptune.training.eval_loss import total_loss
from ptune.training.finite_guard import FiniteGuard
from ptune.training.micro_batch import MicroBatch, split
from ptune.training.optimizer_state import load_optimizer, save_optimizer
from ptune.training.stop_request import EvaluationStopped, StopRequest


class AdapterTrainer(Trainer):
    """Trains and saves what a method adds; a batch is an optimizer step.

    Gradient accumulation over micro-batches is done here and not by the library, so that their size
    can change within a step.  What is computed is a function of the seed, the step and the place of
    a record in the effective batch: it depends neither on that size nor on the processes.

    Args:
        settings: of the run.
        method: knows what is trained.
        metadata: of the checkpoints, written into each.
        checkpoints: where they are written.
        stop: asked for by a signal.
        pad_token_id: of the tokenizer.
        micro_batch: the micro-batch size.
        guard: decides which steps are taken.
        teacher: whose distributions are learnt in the place of the labels.
        kwargs: for `transformers.Trainer`.

    Attributes:
        withheld: the step whose checkpoint was not saved because it gave no finite loss.
    """

    control: Any
    state: Any

    def __init__(
        self,
        *,
        settings: TrainSettings,
        method: Method,
        metadata: CheckpointConfig,
        checkpoints: Checkpoints,
        stop: StopRequest,
        pad_token_id: int,
        micro_batch: MicroBatch,
        guard: FiniteGuard,
        teacher: Teacher | None = None,
        **kwargs: Any,
    ) -> None:
        self.settings = settings
        self.method = method
        self.metadata = metadata
        self.checkpoints = checkpoints
        self.stop = stop
        self.pad_token_id = pad_token_id
        self.micro_batch = micro_batch
        self.guard = guard
        self.teacher = teacher
        self.withheld: int | None = None
        self._newest: dict[str, Tensor] = {}  # micro-batch
        super().__init__(**kwargs)
        if self.args.world_size > 1:  # no DistributedDataParallel: see `_sum_gradients`
            prepare = self.accelerator.prepare_model
            self.accelerator.prepare_model = partial(prepare, evaluation_mode=True)
        lengths = self.train_dataset["length"][:]
        seed = settings.seed if settings.shuffle else None
        self._batches = EffectiveBatches(lengths, settings.batch_size, seed)

    def get_train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Load whole effective batches in every process, which computes its share of them."""
        return DataLoader(
            self.train_dataset,
            batch_sampler=self._batches,
            collate_fn=StepCollator(
                self.pad_token_id, self.args.process_index, self.args.world_size
            ),
            pin_memory=self.args.dataloader_pin_memory,
        )

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: Any) -> int:
        return sum(batch["num_items"] for batch in batch_samples)

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: int | None = None
    ) -> Tensor:
        """Compute the gradients of an optimizer step.

        Args:
            model: that of this process.
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
            self._sum_gradients,
        )
        gradients = [p.grad for _, p in self._trained() if p.grad is not None]
        if scale := self.guard.loss_scale:
            torch._foreach_mul_(gradients, 1 / scale.factor)
        norm = torch.nn.utils.get_total_norm(gradients)
        if not self.guard.judge(*torch.stack([loss, norm]).tolist()):
            # Without gradients the optimizer leaves parameters and its own state alone.
            model.zero_grad(set_to_none=True)
        return loss if self.guard.loss_is_finite else torch.zeros_like(loss)

    def _sum_gradients(self, loss: Tensor | None) -> Tensor | None:
        """Add up loss and gradients over the processes, in one all-reduce a step.

        Not by DistributedDataParallel: the prefix's gradient is complete at the very end of the
        backward pass, so there is nothing to overlap it with; and memory that is full in one
        process must be known to all before they wait for each other.

        Args:
            loss: of this process's share of the step; None if memory was full.

        Returns:
            That of the step, the same in every process; None if memory was full in any.
        """
        if self.args.world_size == 1:
            if self.stop.poll():
                self.stop.agree()
            return loss
        if loss is None:
            self.model.zero_grad(set_to_none=True)
        parameters = [parameter for _, parameter in self._trained()]
        for parameter in parameters:
            if parameter.grad is None:  # a step has no record for this process
                parameter.grad = torch.zeros_like(parameter)
        full, asked_to_stop = float(loss is None), float(self.stop.poll())
        numbers = torch.tensor([0.0, full, asked_to_stop], device=self.args.device)
        if loss is not None:
            numbers[0] = loss
        sum_over_processes([*(p.grad for p in parameters if p.grad is not None), numbers])
        _, full, asked_to_stop = numbers.tolist()
        if asked_to_stop:
            self.stop.agree()
        return None if full else numbers[0]

    def _accumulate_gradients(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: int | None
    ) -> Tensor:
        """Sum loss and gradients over the micro-batches of a step."""
        model.zero_grad(set_to_none=True)  # of a try that ran out of memory
        factor = self.guard.loss_scale.factor if self.guard.loss_scale else 1.0
        total = torch.zeros((), device=self.args.device)
        parts = list(split(inputs, self.micro_batch.size))
        at = (self.settings.seed, "dropout", self.state.global_step)
        for part, places in parts:
            self.stop.poll()
            self.method.seed_dropout(self.model, [derive_seed(*at, place) for place in places])
            loss = self.compute_loss(model, part, num_items_in_batch=num_items_in_batch)
            self.accelerator.backward(loss * factor)
            total += loss.detach()
        self._newest, _ = parts[-1]
        return total

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute logits only of label tokens."""
        inputs = {**inputs, "use_cache": False, "label_logits_only": True}
        if self.teacher is not None:
            inputs["teacher_states"] = self.teacher.hidden_states(inputs)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, leaving skipped steps out of the means."""
        if "loss" in logs:
            self.guard.correct(logs)
        super().log(logs, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure eval_loss, each process on its share of the development set.

        Given up if the run is asked to end: `evaluation_is_due` when it goes on.
        """
        share = self.eval_dataset.shard(self.args.world_size, self.args.process_index)
        loss, tokens, stopped = self.micro_batch.fit(
            lambda: self._total_loss(share),
            self.args.device,
            self.state.global_step,
            self._sum_losses,
        )
        self.control.should_evaluate = False  # else the end of an epoch does it again
        if stopped:
            self.stop.agree()
            self.control.should_save = self.control.should_training_stop = True
            return {}
        if not math.isfinite(loss):
            self.guard.log.skipped(self.state, "eval_loss is not finite")
            self.guard.log.reporter.noticed(
                f"eval_loss is not finite at step {self.state.global_step}"
            )
            return {}
        metrics = {"eval_loss": loss / tokens}
        self.log(dict(metrics))
        if self.stop.given_up:  # by whoever has read the line
            self.control.should_save = self.control.should_training_stop = True
        self._note_best(metrics["eval_loss"])
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _total_loss(self, share: datasets.Dataset) -> tuple[float, int, int]:
        """The summed loss, its label tokens, and 1 if it was given up."""

        def poll(done: int) -> None:
            if self.stop.poll():
                raise EvaluationStopped

        try:
            size = self.micro_batch.size
            return *total_loss(self.model, share, self.pad_token_id, size, poll), 0
        except EvaluationStopped:
            return 0.0, 0, 1

    def _sum_losses(self, totals: tuple[float, int, int] | None) -> tuple[float, int, int] | None:
        """Add up what `_total_loss` gave each process; None if memory was full in any."""
        if self.args.world_size == 1:  # such as on Apple's GPU, which has no float64
            return totals
        numbers = torch.tensor(
            [*(totals or (0, 0, 0)), totals is None], dtype=torch.float64, device=self.args.device
        )
        loss, tokens, stopped, full = self.accelerator.reduce(numbers, reduction="sum").tolist()
        return None if full else (loss, int(tokens), int(stopped))

    def _note_best(self, loss: float) -> None:
        state = self.state
        if state.best_metric is None or loss < state.best_metric:
            state.best_metric, state.best_global_step = loss, state.global_step
            self.control.should_save = self.control.should_save or self.settings.load_best
        elif self.stopped_early():
            self.control.should_save = self.control.should_training_stop = True

    def stopped_early(self) -> bool:
        """Whether the last evaluations were so many without a lower eval_loss."""
        since = evaluations_since_best(self.state.log_history, self.state.best_global_step)
        most = self.settings.early_stopping
        return most is not None and since >= most

    def evaluation_is_due(self) -> bool:
        """Whether this step should have been evaluated and was not: the run was stopped in it."""
        step = self.state.global_step
        if self.eval_dataset is None or not step:
            return False
        evaluated = [line["step"] for line in self.state.log_history if "eval_loss" in line]
        last = step >= self.state.max_steps
        return (last or step % int(self.args.eval_steps) == 0) and step not in evaluated

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> Any:
        found = super()._init_training_state(max_steps, *args, **kwargs)
        # Those of the checkpoint would stay in force, whatever is asked for now.
        self.state.compute_steps(self.args, max_steps)
        return found

    def _run_epoch(self, *args: Any, epoch: int, **kwargs: Any) -> None:
        if epoch == kwargs["epochs_trained"] and self.evaluation_is_due():
            self.evaluate()
        # A run that goes on from its end, since it was killed before it was finished, has no step.
        at_end = self.state.global_step >= self.state.max_steps or self.stopped_early()
        if at_end or self.control.should_training_stop:
            self.control.should_training_stop = True
            return
        # Here, since not every release reaches a sampler whose first batches it skips.
        self._batches.set_epoch(epoch)
        super()._run_epoch(*args, epoch=epoch, **kwargs)

    def result_is_good(self) -> bool:
        """Whether what is trained, as it is now, gives a finite loss.

        The newest loss is that before the last update, which may have been the one that ruined it;
        so the newest micro-batch is computed again.
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
        step = self.state.global_step
        if not self.result_is_good():
            self.withheld = step
            if not self.guard.skipped:  # else this is no news
                self.guard.log.reporter.noticed(
                    f"checkpoint-{step} is not written: its {self.method.noun} gives no finite loss"
                )
        elif self.args.should_save:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, ExportableState):
                    self.state.stateful_callbacks[type(callback).__name__] = callback.state()
            self.checkpoints.save(step, self.state.best_global_step, self._write_checkpoint)

    def _write_checkpoint(self, folder: Path) -> None:
        self._save(str(folder))
        save_optimizer(self.optimizer.optimizer, self._trained(), folder)
        text = to_json(dataclasses.asdict(self.state), indent=2, sort_keys=True)
        (folder / STATE_FILE).write_text(text + "\n", encoding="utf-8")

    def _trained(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        yield from self.method.parameters(self.model)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        self.metadata.write(folder)
        self.method.save(self.model, folder, self.metadata.base_model)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.method.restore(self.model, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        instead = self.settings.anew
        if self.settings.takes_init_prefix:
            instead = f"start from the prefix with --init-prefix {checkpoint}"
        load_optimizer(self.optimizer.optimizer, self._trained(), Path(checkpoint), instead)
        # The learning rate is a function of the step, and of how many there are now.
        done: int = self.state.global_step
        self.lr_scheduler.last_epoch = done - 1
        self.lr_scheduler._step_count = done
        self.lr_scheduler.step()

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Nothing: what is random is a function of the step."""

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Nothing: `LossScale` is in trainer_state.json."""
