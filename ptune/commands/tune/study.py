"""The study of `ptune tune`: Optuna's, kept as JSON lines in the output folder.

What is suggested for a trial is a function of the seed, its number and the results before it, so
that a study that was interrupted suggests what one in a single go does.  Nothing is unpickled: the
journal is JSON, and snapshots, which are not, exist for other storages alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ptune.commands.tune.result import TrialResult
from ptune.config.tune_settings import Choice, TuneSettings
from ptune.data.seeds import derive_seed
from ptune.errors import ConfigError, missing_package
from ptune.files.atomic import write_text_atomically
from ptune.training.output import changed_inputs, changed_settings, settings_to_json

try:
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
    from optuna.trial import FrozenTrial, Trial, TrialState
except ModuleNotFoundError as error:
    raise missing_package(error, "ptune tune", "tune") from error

STUDY_FILE = "study.jsonl"
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
        self._study = _open(output / STUDY_FILE, settings)
        asked = _asked(settings)
        found = self._study.user_attrs
        if "asked" in found:
            _check_same(output, found, asked, inputs)
        else:
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
        """The trial that was interrupted, else a new one; None if there are enough."""
        trials = self._study.get_trials(deepcopy=False)
        for frozen in trials:
            if frozen.state == TrialState.RUNNING:
                trial = Trial(self._study, frozen._trial_id)
                return OpenTrial(trial, frozen.intermediate_values, self.output)
        if len(trials) >= self.settings.trials:
            return None
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


def _open(file: Path, settings: TuneSettings) -> optuna.Study:
    # At the first evaluation, at twice its steps, at four times ...
    pruner = optuna.pruners.SuccessiveHalvingPruner(
        min_resource=settings.first_evaluation, reduction_factor=2
    )
    if file.is_file():
        _drop_half_line(file)
    lock = JournalFileOpenLock(str(file))
    try:
        storage = JournalStorage(JournalFileBackend(str(file), lock_obj=lock))
        return optuna.create_study(
            storage=storage, study_name=_NAME, pruner=pruner, load_if_exists=True
        )
    except OSError:
        raise
    except Exception as error:  # whatever a file that is no journal leads to
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"study {file} cannot be read ({said}); restore it, or pass another --output"
        ) from error


def _drop_half_line(file: Path) -> None:
    """Leave out what a loss of power has cut off; the next line would be joined to it."""
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        write_text_atomically(file, whole.decode("utf-8", "replace"))


def _asked(settings: TuneSettings) -> dict[str, Any]:
    """What makes another study of one if it changes; more trials do not."""
    trial = settings_to_json(settings.trial(_first_choice(settings), Path("trial")))
    for name in Choice.__dataclass_fields__.keys() & trial.keys():
        del trial[name]
    return trial | {
        "steps": settings.steps,
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
