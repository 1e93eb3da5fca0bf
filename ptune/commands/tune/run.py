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
from ptune.commands.tune.result import TrialResult, TuneReporter, TuneResult
from ptune.commands.tune.study import FrozenTrial, Study, Trial, TrialState, choice_of
from ptune.config.settings import TrainSettings
from ptune.config.tune_settings import TuneSettings
from ptune.errors import ConfigError, DivergenceError, TrainingError
from ptune.files.atomic import remove_folder, write_text_atomically
from ptune.files.lock import holding
from ptune.files.names import stem
from ptune.training.log import LOG_FILE, eval_losses
from ptune.training.processes import process_count
from ptune.training.stop_request import StopRequest
from ptune.training.summary import TrainSummary
from ptune.training.train import load_base, train

BEST_FILE = "best.yaml"


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
        losses: by step; what an interrupted run has logged before.
        stop: of the run.
        reporter: told of everything.
    """

    def __init__(
        self, trial: Trial, losses: dict[int, float], stop: StopRequest, reporter: TuneReporter
    ) -> None:
        self.trial = trial
        self.stop = stop
        self.reporter = reporter
        self.max_steps = 0
        self._told = set(trial.storage.get_trial(trial._trial_id).intermediate_values)
        for step, loss in losses.items():
            self._tell(step, loss)

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
            self._tell(step, entry["eval_loss"])
            self.stop.given_up = step < self.max_steps and self.trial.should_prune()

    def noticed(self, text: str) -> None:
        """A warning."""
        self.reporter.noticed(text)

    def _tell(self, step: int, loss: float) -> None:
        """A run that goes on may log a step once more, with the same loss."""
        if step not in self._told:
            self.trial.report(loss, step)
            self._told.add(step)


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
            choice = choice_of(trial)
            reporter.trial_began(trial.number, settings.trials, choice)
            asked = settings.trial(choice, _folder(output, trial))
            stopped_by = _run(study, trial, asked, reporter, base)
            gc.collect()  # of a run: its optimizer, and the prefix before
            _write_best(study, settings, output)
    return _result(study, settings, output, stopped_by)


def _run(
    study: Study, trial: Trial, settings: TrainSettings, reporter: TuneReporter, base: _KeptBase
) -> int | None:
    """Run a trial, or what is left of it.

    Returns:
        The signal that ended it before its time, if one has.
    """
    assert settings.output is not None
    log, stop = settings.output / LOG_FILE, StopRequest(reporter.noticed)
    watch = _Watch(trial, eval_losses(log), stop, reporter)
    try:
        result = train(settings, watch, stop, base)
    except DivergenceError as error:
        study.given_up(trial, str(error).partition(";")[0])
    else:
        losses = eval_losses(log)
        if stop.given_up:
            study.given_up(trial)
        elif result.stopped_by is not None:
            return result.stopped_by
        elif result.steps in losses:
            study.finished(trial, losses[result.steps])
        else:
            study.given_up(trial, f"eval_loss is not finite at step {result.steps}")
    for checkpoint in numbered_checkpoints(settings.output):
        remove_folder(checkpoint)  # nobody goes on from them
    reporter.trial_ended(_ended(study.trials[trial.number], settings.output))
    return stop.signal


def _folder(output: Path, trial: Trial | FrozenTrial) -> Path:
    return output / f"trial-{trial.number}"


def _default_output(settings: TuneSettings) -> Path:
    return Path("output") / f"{stem(settings.data[0])}-{Path(settings.model).name}-tune"


def _ended(trial: FrozenTrial, folder: Path) -> TrialResult:
    step = trial.last_step
    return TrialResult(
        number=trial.number,
        choice=choice_of(trial),
        folder=folder,
        steps=step or 0,
        eval_loss=trial.intermediate_values[step] if step is not None else None,
        finished=trial.state == TrialState.COMPLETE,
        reason=trial.user_attrs.get("reason", ""),
    )


def _write_best(study: Study, settings: TuneSettings, output: Path) -> None:
    """Write the settings with which `ptune train` does what the best trial has done."""
    if (best := study.best) is None:
        return
    said = (
        f"# {_folder(output, best).name} of {len(study.trials)}: eval_loss {best.value:.4f} after "
        f"{settings.steps} steps\n"
    )
    values = settings.best(choice_of(best))
    text = yaml.safe_dump(values, allow_unicode=True, sort_keys=False)
    write_text_atomically(output / BEST_FILE, said + text)


def _result(
    study: Study, settings: TuneSettings, output: Path, stopped_by: int | None
) -> TuneResult:
    ended = [t for t in study.trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    trials = tuple(_ended(trial, _folder(output, trial)) for trial in ended)
    best = study.best
    if best is None and stopped_by is None:
        reason = next((f": {trial.reason}" for trial in trials if trial.reason), "")
        raise TrainingError(
            f"none of {len(trials)} trials in {output} has come to a finite eval_loss{reason}; "
            "use lower --learning-rates and another --output, or look at the data with "
            "`ptune preview`"
        )
    return TuneResult(
        output=output,
        trials=trials,
        best=_ended(best, _folder(output, best)) if best is not None else None,
        config=output / BEST_FILE,
        stopped_by=stopped_by,
    )
