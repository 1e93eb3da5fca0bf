"""What `ptune tune` has found, and whom it tells of its trials."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ptune.config.tune_settings import Choice
from ptune.training.summary import Reporter


@dataclass(frozen=True)
class TrialResult:
    """How a trial has ended.

    Attributes:
        number: from 0.
        choice: what it has tried.
        folder: its prefix and its log.
        steps: that were evaluated last; 0 for none.
        eval_loss: then; None without any.
        finished: whether it has come to its end.
        reason: why it has not, where its eval_loss is not the reason.
    """

    number: int
    choice: Choice
    folder: Path
    steps: int
    eval_loss: float | None
    finished: bool
    reason: str = ""


@dataclass(frozen=True)
class TuneResult:
    """How a study stands.

    Attributes:
        output: its folder.
        trials: those that have ended, in their order.
        best: the finished one of the lowest eval_loss; None before one is finished.
        config: settings for `ptune train` with what the best one has tried.
        stopped_by: the signal that ended it before its time; None for a finished study.
    """

    output: Path
    trials: tuple[TrialResult, ...]
    best: TrialResult | None
    config: Path
    stopped_by: int | None = None


class TuneReporter(Reporter, Protocol):
    """Who wants to know how trials go; the command line implements it."""

    def trial_began(self, number: int, trials: int, choice: Choice) -> None:
        """The trial of this number, of so many, comes next."""

    def trial_ended(self, trial: TrialResult) -> None:
        """A trial has ended."""
