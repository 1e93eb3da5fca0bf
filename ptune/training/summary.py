"""What a run says of itself: before its first step, and at its end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ptune.base.folder import Generation
from ptune.data.examples import Truncation
from ptune.training.log import TrainReporter


@dataclass(frozen=True)
class TrainSummary:
    """What a run is about to do, known before its first step."""

    model: str
    generation: Generation
    precision: str
    output: Path
    trainable: int
    parameters: int
    records: int
    dev_records: int
    skipped: tuple[str, ...]
    notices: tuple[str, ...]
    truncation: Truncation
    batch_size: int
    micro_batch_size: int
    max_steps: int
    epochs: float
    seed: int
    environment: dict[str, Any]
    resumed_from: Path | None


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        output: its folder.
        checkpoint: the finished prefix; of a run that was stopped, the newest checkpoint, or the
            output if there is none yet.
        steps: optimizer steps that are done.
        stopped_by: the signal that ended it before its time; None for a finished run.
        best_step: the step of the finished prefix, if it is not the last one.
        before: whether an earlier run of the same settings had ended already.
        early: whether it ended by --early-stopping.
        noun: what was trained.
        given_up: whether it was ended by `StopRequest.given_up`.
    """

    output: Path
    checkpoint: Path
    steps: int
    stopped_by: int | None = None
    best_step: int | None = None
    before: bool = False
    early: bool = False
    noun: str = "prefix"
    given_up: bool = False


class Reporter(TrainReporter, Protocol):
    """Who wants to know how a run goes."""

    def started(self, summary: TrainSummary) -> None:
        """The first step comes next."""
