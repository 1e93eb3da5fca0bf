"""Guard against a loss or gradient that is not finite: skips steps, ends a run after ten."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ptune.errors import DivergenceError
from ptune.training.log import TrainLog
from ptune.training.loss_scale import LossScale

SKIPPED_IN_A_ROW = 10


class FiniteGuard(TrainerCallback):  # type: ignore[misc]
    """Decides which optimizer steps are taken, and when training ends.

    A gradient that overflows under a loss scale above 1 is due to the scale: the step is skipped
    and the scale halved, but such a step does not count towards the ten.  A loss that is not finite
    does not depend on the scale and always counts.

    Args:
        log: gets a line for each skipped step; its reporter is told once for each series of them.
        loss_scale: with float16.

    Attributes:
        reason: why the newest step is skipped; None if it is taken.
        loss_is_finite: of the newest step.
        skipped: steps skipped in a row, up to now.
        counted: those of them that count.
        total: steps that counted, since the run was started or resumed.
    """

    def __init__(self, log: TrainLog, loss_scale: LossScale | None = None) -> None:
        self.log = log
        self.loss_scale = loss_scale
        self.reason: str | None = None
        self.loss_is_finite = True
        self.skipped = self.counted = self.total = 0
        self._told = self._told_of_zero = False
        self._steps = self._without_loss = 0  # since the last log line

    def judge(self, loss: float, gradient_norm: float) -> bool:
        """Whether the optimizer may take the step.

        Args:
            loss: of the step.
            gradient_norm: without the loss scale.
        """
        self._steps += 1
        self.loss_is_finite = math.isfinite(loss)
        if self.loss_is_finite and math.isfinite(gradient_norm):
            if self.loss_scale:
                self.loss_scale.update(overflow=False)
            self.reason, self._told = None, False
            self.skipped = self.counted = 0
            return True
        self.skipped += 1
        counts = True
        if not self.loss_is_finite:
            self.reason = "loss is not finite"
            self._without_loss += 1
        else:
            self.reason = "gradient is not finite"
            if self.loss_scale:
                counts = self.loss_scale.factor <= 1
                self.loss_scale.update(overflow=True)
        self.counted += counts
        self.total += counts
        return False

    @property
    def gave_up(self) -> bool:
        """Whether training must end."""
        return self.counted >= SKIPPED_IN_A_ROW

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log a skipped step; after too many, save a checkpoint and stop."""
        if self.reason is None:
            return
        scale = {"loss_scale": self.loss_scale.factor} if self.loss_scale else {}
        self.log.skipped(state, self.reason, **scale)
        if self.counted and not self._told:
            self._told = True
            self.log.reporter.noticed(f"{self.reason} at step {state.global_step}; it is skipped")
        if self.gave_up:
            control.should_save = True
            control.should_training_stop = True

    def check_end(self) -> None:
        """Tell the reporter at the end of a run how many steps were skipped."""
        if self.total or self.skipped:
            last = f", of them {self.skipped} at its end" if self.skipped else ""
            self.log.reporter.noticed(
                f"steps skipped in this run: {max(self.total, self.skipped)}{last}; "
                "see `skipped` in train_log.jsonl"
            )

    def correct(self, logs: dict[str, float]) -> None:
        """Correct the numbers of a log line for skipped steps.

        Args:
            logs: `loss` is the mean over all steps since the last line, in which a loss that was
                not finite is 0.  It becomes the mean over the others and is removed if there are
                none; so is the gradient norm of a step that was skipped.
        """
        steps, usable = self._steps, self._steps - self._without_loss
        self._steps = self._without_loss = 0
        if self.reason:
            logs.pop("grad_norm", None)
        if steps and not usable:
            del logs["loss"]
            return
        if usable < steps:
            logs["loss"] *= steps / usable
        if logs["loss"] == 0.0 and not self._told_of_zero:
            self._told_of_zero = True
            self.log.reporter.noticed(
                "the loss is exactly 0.0, nothing is left to learn or nothing is learnt from; "
                "look at the data with `ptune preview`"
            )

    def error(self, step: int, checkpoint: Path | None, wider: str | None) -> DivergenceError:
        """The error of a training that cannot continue.

        Args:
            step: the last one.
            checkpoint: the last good one.
            wider: a precision of more range than the one in use, for --dtype.
        """
        reason = self.reason or "loss is not finite"
        rows = f"in {self.skipped} steps in a row, up to step {step}"
        rows = rows if self.skipped else f"after the last step, {step}"
        if checkpoint:
            last = f"the last good checkpoint is {checkpoint}"
            advice = f"start from it with --init-prefix {checkpoint}, a lower --learning-rate and "
            advice += "--fresh"
            goes_on = f"go on with the same command and --dtype {wider}"
            advice = f"{goes_on}, or {advice}" if wider else advice
        else:
            last = "there is no good checkpoint yet"
            advice = f"train again with --dtype {wider} or a lower --learning-rate"
            advice = advice if wider else "train again with a lower --learning-rate"
        return DivergenceError(
            f"{reason} {rows}; {last}; {advice}, and look at the data with `ptune preview`"
        )
