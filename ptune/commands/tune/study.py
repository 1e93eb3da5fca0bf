"""The study of `ptune tune`: Optuna's, kept as JSON lines in the output folder.

What is suggested for a trial is a function of the seed, its number and the results before it, so
that a study that was interrupted suggests what one in a single go does.  Nothing is unpickled: the
journal is JSON, and snapshots, which are not, exist for other storages alone.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ptune.commands.tune.result import TrialResult
from ptune.config.tune_settings import Choice, TuneSettings
from ptune.data.seeds import derive_seed
from ptune.errors import ConfigError, missing_package
from ptune.files.atomic import write_text_atomically
from ptune.files.json_decoding import refuse_constant
from ptune.training.output import changed_inputs, changed_settings, settings_to_json

try:
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import FrozenTrial, Trial, TrialState
except ModuleNotFoundError as error:
    raise missing_package(error, "ptune tune", "tune") from error

STUDY_FILE, BEST_FILE = "study.jsonl", "best.yaml"
_NAME = "ptune"
_SEEDS = 2**32  # that numpy takes


class OpenTrial:
    """A trial that has not ended.

    Attributes:
        number: from 0.
        choice: what it tries.
        folder: of its training.
    """

    def __init__(self, trial: Trial, told: Iterable[int], output: Path) -> None:
        self.number: int = trial.number
        self.choice = Choice(**trial.params)
        self.folder = _folder(output, trial.number)
        self._trial = trial
        self._told = set(told)

    def report(self, step: int, loss: float) -> None:
        """Note its eval_loss; a run that goes on may come to a step once more, to the same loss."""
        if step not in self._told:
            self._trial.report(loss, step)
            self._told.add(step)

    @property
    def is_worse(self) -> bool:
        """Whether it is not among the better half of those that have come so far."""
        return bool(self._trial.should_prune())

    def finish(self, loss: float) -> None:
        """It has come to its end."""
        self._trial.study.tell(self._trial, loss)

    def give_up(self, reason: str = "") -> None:
        """It is not worth its end, or has none."""
        if reason:
            self._trial.set_user_attr("reason", reason)
        self._trial.study.tell(self._trial, state=TrialState.PRUNED)


class Study:
    """Trials, their results, and what to try next.

    Args:
        output: folder of the study.
        settings: of `ptune tune`.
        inputs: from `find_inputs`.

    Raises:
        ConfigError: the study there is damaged, or one of other settings, data or base model.
    """

    def __init__(self, output: Path, settings: TuneSettings, inputs: dict[str, Any]) -> None:
        self.output = output
        self.settings = settings
        low, high = settings.rates
        self._space = {
            "learning_rate": FloatDistribution(low, high, log=True),
            "pre_seq_len": CategoricalDistribution(settings.tried_lengths),
            "start": CategoricalDistribution(settings.tried_starts),
        }
        asked = _asked(settings)
        with _reading(output / STUDY_FILE):
            self._study = _open(output / STUDY_FILE, settings)
            found, trials = self._study.user_attrs, self._study.get_trials(deepcopy=False)
            if "asked" in found:
                _check_same(output, found, asked, inputs)
            elif trials:
                raise ValueError("trials and no settings")
            for trial in trials:
                _check_trial(trial, settings)
        if "asked" not in found:
            _check_free(output / BEST_FILE)
            self._study.set_user_attr("inputs", inputs)
            self._study.set_user_attr("asked", asked)

    @property
    def ended(self) -> tuple[TrialResult, ...]:
        """The trials that have ended, in their order."""
        trials = self._study.get_trials(deepcopy=False)
        ended = (TrialState.COMPLETE, TrialState.PRUNED)
        return tuple(_ended(trial, self.output) for trial in trials if trial.state in ended)

    @property
    def best(self) -> TrialResult | None:
        """The finished trial of the lowest eval_loss."""
        finished = [trial for trial in self.ended if trial.finished]
        return min(finished, key=lambda trial: trial.eval_loss or 0.0, default=None)

    def next(self) -> OpenTrial | None:
        """The trial that was interrupted, else a new one; None if there are enough.

        Raises:
            ConfigError: the folder of a new one is there already.
        """
        trials = self._study.get_trials(deepcopy=False)
        for frozen in trials:
            if frozen.state == TrialState.RUNNING:
                trial = Trial(self._study, frozen._trial_id)
                return OpenTrial(trial, frozen.intermediate_values, self.output)
        if len(trials) >= self.settings.trials:
            return None
        _check_free(_folder(self.output, len(trials)))
        seed = derive_seed(self.settings.seed, "suggestions", len(trials)) % _SEEDS
        self._study.sampler = optuna.samplers.TPESampler(seed=seed)
        return OpenTrial(self._study.ask(self._space), (), self.output)


def _folder(output: Path, number: int) -> Path:
    return output / f"trial-{number}"


def _ended(trial: FrozenTrial, output: Path) -> TrialResult:
    step = trial.last_step
    return TrialResult(
        number=trial.number,
        choice=Choice(**trial.params),
        folder=_folder(output, trial.number),
        steps=step or 0,
        eval_loss=trial.intermediate_values[step] if step is not None else None,
        finished=trial.state == TrialState.COMPLETE,
        reason=trial.user_attrs.get("reason", ""),
    )


class _Held:
    """No lock: the output folder's is held, and one that a kill has left is not waited for."""

    def acquire(self) -> bool:
        """It is held."""
        return True

    def release(self) -> None:
        """It stays held."""


def _open(file: Path, settings: TuneSettings) -> optuna.Study:
    # At the first evaluation, at twice its steps, at four times ...
    pruner = optuna.pruners.SuccessiveHalvingPruner(
        min_resource=settings.first_evaluation, reduction_factor=2
    )
    if file.is_file():
        _drop_cut_end(file)
    storage = JournalStorage(JournalFileBackend(str(file), lock_obj=_Held()))
    return optuna.create_study(
        storage=storage, study_name=_NAME, pruner=pruner, load_if_exists=True
    )


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Let whatever a file that is no journal leads to be an error of the user."""
    try:
        yield
    except (OSError, ConfigError):
        raise
    except Exception as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"study {file} cannot be read ({said}); restore it, or pass another --output"
        ) from error


def _drop_cut_end(file: Path) -> None:
    """Leave out what a kill has cut off: half a line, and a trial without all that it tries.

    The next line would be joined to the one, and the other be suggested from its middle on.

    Raises:
        ValueError: the file is no journal, and stays as it is.
    """
    *lines, half = file.read_bytes().split(b"\n")
    entries = [json.loads(line, parse_constant=refuse_constant) for line in lines]
    first = entries[0].get("study_name") if entries else _NAME
    if first != _NAME or not (entries or b'{"op_code":'.startswith(half[:11])):
        raise ValueError("no journal of a study")
    end = len(entries)
    begun = next((n for n in reversed(range(end)) if "datetime_start" in entries[n]), end)
    tried = entries[begun + 1 :]
    if all("param_name" in entry for entry in tried):
        end = begun if len(tried) < len(dataclasses.fields(Choice)) else end
    if half or end < len(entries):
        write_text_atomically(file, b"".join(line + b"\n" for line in lines[:end]).decode("utf-8"))


def _check_trial(trial: FrozenTrial, settings: TuneSettings) -> None:
    """See that a trial is one of the study.

    Raises:
        ValueError: it is not.
    """
    choice, losses = Choice(**trial.params), trial.intermediate_values
    low, high = settings.rates
    if not (
        low <= choice.learning_rate <= high
        and choice.pre_seq_len in settings.tried_lengths
        and choice.start in settings.tried_starts
    ):
        raise ValueError(f"trial {trial.number} tries {choice}, which is none of the study's")
    if not all(0 < step <= settings.steps and math.isfinite(losses[step]) for step in losses):
        raise ValueError(f"trial {trial.number} has no finite eval_loss at a step of its own")
    if trial.state == TrialState.COMPLETE and trial.value != losses.get(trial.last_step):
        raise ValueError(f"trial {trial.number} ends with another eval_loss than it had")


def _check_free(there: Path) -> None:
    """Refuse to write where something is that is not of the study."""
    if os.path.lexists(there):
        raise ConfigError(
            f"{there} is not of the study in {there.parent}, which would write over it; move it, "
            "or pass another --output"
        )


def _asked(settings: TuneSettings) -> dict[str, Any]:
    """What makes another study of one if it changes; more trials do not."""
    trial = settings_to_json(settings.trial(_first_choice(settings), Path("trial")))
    for name in Choice.__dataclass_fields__.keys() & trial.keys():
        del trial[name]
    return trial | {
        "steps": settings.steps,
        # At other steps, others are given up; of a training, it is free.
        "eval_steps of a trial": settings.first_evaluation,
        "learning_rates": list(settings.rates),
        "lengths": list(settings.tried_lengths),
        "starts": list(settings.tried_starts),
    }


def _first_choice(settings: TuneSettings) -> Choice:
    return Choice(settings.rates[0], settings.tried_lengths[0], settings.tried_starts[0])


def _check_same(
    output: Path, found: dict[str, Any], asked: dict[str, Any], inputs: dict[str, Any]
) -> None:
    otherwise = "use the same, or pass another --output"
    if changed := changed_settings(found["asked"], asked):
        raise ConfigError(
            f"settings differ from those of the study in {output}: {'; '.join(changed)}; "
            f"{otherwise}"
        )
    for name, change in changed_inputs(found["inputs"], inputs).items():
        raise ConfigError(
            f"{name} differs from that of the study in {output}: {change}; {otherwise}"
        )
