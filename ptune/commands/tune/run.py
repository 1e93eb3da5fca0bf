"""`ptune tune`: the trials of a study, one after the other on the same base model."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch
import yaml

from ptune.base.folder import BaseModel
from ptune.checkpoint.folder import numbered_checkpoints
from ptune.commands.tune.inputs import find_inputs
from ptune.commands.tune.result import TuneReporter, TuneResult
from ptune.commands.tune.study import BEST_FILE, OpenTrial, Study
from ptune.config.settings import TrainSettings
from ptune.config.tune_settings import TuneSettings
from ptune.errors import ConfigError, DivergenceError, TrainingError
from ptune.files.atomic import remove_folder, write_text_atomically
from ptune.files.lock import holding
from ptune.files.names import stem
from ptune.parallel.processes import process_count
from ptune.training.log import LOG_FILE, eval_losses
from ptune.training.stop_request import StopRequest
from ptune.training.summary import TrainSummary
from ptune.training.train import load_base, train


class _KeptBase:
    """Loads the base model for the first trial, and gives it to the next ones, too."""

    def __init__(self) -> None:
        self._model: Any = None

    def __call__(self, base: BaseModel, settings: TrainSettings, device: torch.device) -> Any:
        if self._model is None:
            self._model = load_base(base, settings, device)
        return self._model.eval()  # as it is when it has been loaded


class _Watch:
    """Hands the losses of a run to its trial, and ends a run that is not worth its end.

    Args:
        trial: of the run.
        stop: of the run.
        reporter: told of everything.
    """

    def __init__(self, trial: OpenTrial, stop: StopRequest, reporter: TuneReporter) -> None:
        self.trial = trial
        self.stop = stop
        self.reporter = reporter
        self.max_steps = 0

    def started(self, summary: TrainSummary) -> None:
        """The first step comes next."""
        self.max_steps = summary.max_steps
        self.reporter.started(summary)

    def step(self, step: int, max_steps: int) -> None:
        """An optimizer step is done."""
        self.reporter.step(step, max_steps)

    def logged(self, entry: dict[str, float]) -> None:
        """A line went into the log."""
        self.reporter.logged(entry)
        if "eval_loss" in entry:
            step = int(entry["step"])
            self.trial.report(step, entry["eval_loss"])
            self.stop.given_up = step < self.max_steps and self.trial.is_worse

    def noticed(self, text: str) -> None:
        """A warning."""
        self.reporter.noticed(text)


def tune(settings: TuneSettings, reporter: TuneReporter) -> TuneResult:
    """Run trials until there are enough; a study that was interrupted goes on.

    Args:
        settings: all of them resolved.
        reporter: told of every trial, and of what it reports itself.

    Raises:
        PTuneError: what is wrong with model, data, settings or output.
        TrainingError: no trial has come to a finite eval_loss.
    """
    if (processes := process_count()) > 1:
        raise ConfigError(
            f"ptune tune runs its trials in one process, and torchrun has started {processes}; "
            "start it without"
        )
    output = settings.output or _default_output(settings)
    inputs = find_inputs(settings)
    with holding(output, "tuning"):
        study, base = Study(output, settings, inputs), _KeptBase()
        stopped_by = None
        while stopped_by is None and (trial := study.next()) is not None:
            reporter.trial_began(trial.number, settings.trials, trial.choice)
            asked = settings.trial(trial.choice, trial.folder)
            stopped_by = _run(trial, asked, reporter, base)
            if (ended := study.ended) and ended[-1].number == trial.number:
                reporter.trial_ended(ended[-1])
            gc.collect()  # of a run: its optimizer, and the prefix before
            _write_best(study, settings)
    return _result(study, stopped_by)


def _run(
    trial: OpenTrial, settings: TrainSettings, reporter: TuneReporter, base: _KeptBase
) -> int | None:
    """Run a trial, or what is left of it.

    Returns:
        The signal that ended it before its time, if one has.
    """
    log, stop = trial.folder / LOG_FILE, StopRequest(reporter.noticed)
    for step, loss in eval_losses(log).items():  # of an interrupted run
        trial.report(step, loss)
    try:
        result = train(settings, _Watch(trial, stop, reporter), stop, base)
    except DivergenceError as error:
        trial.give_up(str(error).partition(";")[0])
    else:
        losses = eval_losses(log)
        if stop.given_up:
            trial.give_up()
        elif result.stopped_by is not None:
            return result.stopped_by
        elif result.steps in losses:
            trial.finish(losses[result.steps])
        else:
            trial.give_up(f"eval_loss is not finite at step {result.steps}")
    for checkpoint in numbered_checkpoints(trial.folder):
        remove_folder(checkpoint)  # nobody goes on from them
    return stop.signal


def _default_output(settings: TuneSettings) -> Path:
    return Path("output") / f"{stem(settings.data[0])}-{Path(settings.model).name}-tune"


def _write_best(study: Study, settings: TuneSettings) -> None:
    """Write the settings with which `ptune train` does what the best trial has done."""
    if (best := study.best) is None:
        return
    said = (
        f"# {best.folder.name} of {len(study.ended)}: eval_loss {best.eval_loss:.4f} after "
        f"{best.steps} steps\n"
    )
    text = yaml.safe_dump(settings.best(best.choice), allow_unicode=True, sort_keys=False)
    write_text_atomically(study.output / BEST_FILE, said + text)


def _result(study: Study, stopped_by: int | None) -> TuneResult:
    trials, best = study.ended, study.best
    if best is None and stopped_by is None:
        reason = next((f": {trial.reason}" for trial in trials if trial.reason), "")
        raise TrainingError(
            f"none of {len(trials)} trials in {study.output} has come to a finite eval_loss"
            f"{reason}; use lower --learning-rates and another --output, or look at the data with "
            "`ptune preview`"
        )
    return TuneResult(study.output, trials, best, study.output / BEST_FILE, stopped_by)
