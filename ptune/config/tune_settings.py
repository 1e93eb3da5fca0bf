"""The settings of `ptune tune`: what of a training is tried, and those of the trainings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ptune.config.declaration import Range, declared, flag, setting, shown
from ptune.config.number import parse_number, parse_whole
from ptune.config.settings import TrainSettings
from ptune.config.shared_settings import OUTPUT, PREFIX_RANGE, STEP_RANGE, TRIALS
from ptune.errors import ConfigError

RANDOM, DATA_START, TEXT_START = "random", "data", "text"
STARTS = (RANDOM, DATA_START, TEXT_START)
# Of which settings of a training a start is made.
_OF_START = {DATA_START: ("init_data",), TEXT_START: ("init_text", "init_text_file")}
_EVALUATIONS = 5  # of a trial
_RATES = Range(above=0, most=100)  # of --learning-rate


@dataclasses.dataclass(frozen=True)
class Choice:
    """What one trial tries.

    Attributes:
        learning_rate: its peak.
        pre_seq_len: length of the prefix in tokens.
        start: one of `STARTS`, as which the prefix begins.
    """

    learning_rate: float
    pre_seq_len: int
    start: str


class TrialSettings(TrainSettings):
    """A training whose settings `ptune tune` has made: its errors advise what that command has."""

    @property
    def anew(self) -> str:
        """A trial that was interrupted begins anew where its folder is gone."""
        return f"move {self.output}, and the trial begins anew"

    @property
    def takes_init_prefix(self) -> bool:
        """No option of that command."""
        return False


@dataclasses.dataclass(frozen=True)
class TuneSettings(TrainSettings):
    """`ptune tune`: the options of `ptune train` but for what is tried, and for whole runs."""

    trials: int = setting(TRIALS, 20, "Runs, one after the other.", within=Range(1, 10**4))
    steps: int = setting(TRIALS, 200, "Optimizer steps of a trial.", within=STEP_RANGE)
    learning_rates: str = setting(
        TRIALS, "0.002:0.2", "Peak rates LOW:HIGH, tried evenly in their logarithm."
    )
    lengths: str = setting(TRIALS, "32,64,128", "Lengths of the prefix in tokens.")
    starts: str | None = setting(
        TRIALS,
        None,
        "What the prefix begins as: random, data (--init-data), text (--init-text); by default all "
        "that are given.",
    )
    output: Path | None = setting(
        OUTPUT,
        None,
        "Folder of the study and its trials; by default named after data and model.",
        "-o",
    )
    # What a trial decides, and what has no meaning in a short run: no options of this command.
    learning_rate: float | None = TrainSettings.learning_rate
    method: str = TrainSettings.method
    lora_rank: int = TrainSettings.lora_rank
    lora_alpha: int = TrainSettings.lora_alpha
    lora_dropout: float = TrainSettings.lora_dropout
    lora_target: str = TrainSettings.lora_target
    pre_seq_len: int = TrainSettings.pre_seq_len
    max_steps: int = TrainSettings.max_steps
    epochs: float | None = None
    init_prefix: tuple[Path, ...] | None = None
    init_merge: str = TrainSettings.init_merge
    early_stopping: int | None = None
    load_best: bool = False
    resume: bool = False
    fresh: bool = False
    # Trials share a model that is loaded once, in this process.
    gpus: str | None = None
    processes: int | None = None

    def __post_init__(self) -> None:
        """Check what can be checked without model and data."""
        super().__post_init__()
        if not self.evaluates:
            raise ConfigError(
                "trials are compared by eval_loss, and there is no development data; pass "
                "--eval-data FILE or --eval-fraction 0.1"
            )
        if self.warmup_steps >= self.steps:
            raise ConfigError(
                f"warmup_steps {self.warmup_steps:,} leaves no step of {self.steps:,} at the peak "
                "rate; use fewer, or more --steps"
            )
        for start in self.tried_starts:  # each is a training that makes sense
            self.trial(Choice(self.rates[0], self.tried_lengths[0], start), Path("trial"))

    def _check_beginning(self) -> None:
        given = [start for start in _OF_START if self._is_given(start)]
        for start in self.tried_starts:
            if start != RANDOM and start not in given:
                advised = {DATA_START: "--init-data N", TEXT_START: "--init-text TEXT"}[start]
                raise ConfigError(
                    f"starts {shown(start)} has nothing to begin as; pass {advised}, too"
                )
        for start in given:
            if start not in self.tried_starts:
                name = next(name for name in _OF_START[start] if getattr(self, name))
                raise ConfigError(
                    f"{flag(name)} has no effect without {start} in --starts; leave one of them out"
                )

    def _is_given(self, start: str) -> bool:
        return any(getattr(self, name) for name in _OF_START[start])

    @property
    def rates(self) -> tuple[float, float]:
        """The lowest and the highest learning rate.

        Raises:
            ConfigError: they are none, or not in this order.
        """
        text = self.learning_rates
        try:
            low, high = (parse_number(part) for part in text.split(":"))
        except (ValueError, OverflowError) as error:
            raise ConfigError(
                f"learning_rates {shown(text)} is not LOW:HIGH; write e.g. 0.002:0.2"
            ) from error
        if low not in _RATES or high not in _RATES:
            raise ConfigError(f"learning_rates {shown(text)} is out of range; use {_RATES}")
        if not low < high:
            raise ConfigError(
                f"learning_rates {shown(text)} holds nothing; write the lower one first"
            )
        return low, high

    @property
    def tried_lengths(self) -> tuple[int, ...]:
        """Lengths of the prefix.

        Raises:
            ConfigError: not numbers, out of range, or one twice.
        """
        try:
            lengths = [parse_whole(part) for part in self.lengths.split(",")]
        except (ValueError, OverflowError) as error:
            raise ConfigError(
                f"lengths {shown(self.lengths)} are not numbers with commas between them; write "
                "e.g. 32,64,128"
            ) from error
        for length in lengths:
            if length not in PREFIX_RANGE:
                raise ConfigError(
                    f"lengths {shown(self.lengths)} are out of range; use {PREFIX_RANGE}"
                )
        return _different("lengths", self.lengths, lengths)

    @property
    def tried_starts(self) -> tuple[str, ...]:
        """What prefixes begin as.

        Raises:
            ConfigError: one that is unknown, or one twice.
        """
        if self.starts is None:
            return (RANDOM, *(start for start in _OF_START if self._is_given(start)))
        starts = [part.strip() for part in self.starts.split(",")]
        for start in starts:
            if start not in STARTS:
                raise ConfigError(f"starts {shown(start)} is unknown; use {', '.join(STARTS)}")
        return _different("starts", self.starts, starts)

    @property
    def first_evaluation(self) -> int:
        """The step of a trial's first evaluation, and between two of them."""
        return self.eval_steps or max(1, self.steps // _EVALUATIONS)

    def trial(self, choice: Choice, output: Path) -> TrialSettings:
        """The settings of a trial.

        Args:
            choice: what it tries.
            output: its folder.
        """
        values = {name: getattr(self, name) for name in self._of_training()}
        for start, names in _OF_START.items():
            values |= {} if start == choice.start else dict.fromkeys(names)
        values |= {
            "learning_rate": choice.learning_rate,
            "pre_seq_len": choice.pre_seq_len,
            "max_steps": self.steps,
            "eval_steps": self.first_evaluation,
            "output": output,
        }
        given = self.given & values.keys() | {"learning_rate", "pre_seq_len"}
        return TrialSettings(**values, given=frozenset(given))

    def _of_training(self) -> set[str]:
        """Names of the settings that this command shares with `ptune train`."""
        of_training = {field.name for field in declared(TrainSettings)}
        return {field.name for field in declared(self)} & of_training

    def best(self, choice: Choice) -> dict[str, object]:
        """What was asked for of a training, and what a trial has tried, for another training.

        Returns:
            Values by the setting's name, paths absolute.
        """
        trial = self.trial(choice, Path("trial"))
        names = (self.given & self._of_training()) - {"output"}
        names |= {"learning_rate", "pre_seq_len", "model", "data"}
        values = {
            field.name: getattr(trial, field.name)
            for field in declared(trial)
            if field.name in names
        }
        if Path(trial.model).is_dir():
            values["model"] = Path(trial.model)
        return {name: _plain(value) for name, value in values.items() if value is not None}


def _plain(value: object) -> object:
    """A value as YAML has it."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value.absolute()) if isinstance(value, Path) else value


def _different(name: str, text: str, found: list[Any]) -> tuple[Any, ...]:
    if len(set(found)) < len(found):
        raise ConfigError(f"{name} {shown(text)} names one twice; leave one of them out")
    return tuple(found)
