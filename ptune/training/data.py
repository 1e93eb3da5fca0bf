"""The data of a training: rendered, with its development data, and told apart by contents."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets

from ptune.base.folder import Generation
from ptune.config.settings import TrainSettings
from ptune.data.example_cache import PreparedExamples, prepare_examples
from ptune.data.example_questions import ExampleQuestion
from ptune.data.examples import Truncation, digest_examples
from ptune.data.folders import check_apart
from ptune.data.held_out import split_records
from ptune.data.prompt import Lengths
from ptune.errors import ConfigError, DataError


@dataclass(frozen=True)
class TrainingData:
    """What a training computes from.

    Attributes:
        train: `input_ids`, `labels` and `length` of what can be learnt from.
        dev: the same of the development data; None without any.
        truncation: what was cut in the training data.
        skipped: one message for each bad record that was left out.
        notices: what the user should know of the data.
        inputs: numbers of records and checksums, as `CheckpointConfig` has them.
        questions: of the training data, to try the result with.
    """

    train: datasets.Dataset
    dev: datasets.Dataset | None
    truncation: Truncation
    skipped: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    inputs: dict[str, Any] = field(default_factory=dict)
    questions: tuple[ExampleQuestion, ...] = ()


def load_data(settings: TrainSettings, tokenizer: Any, generation: Generation) -> TrainingData:
    """Read and render training and development data.

    Args:
        settings: with lengths.
        tokenizer: from `build_tokenizer`.
        generation: whose prompt to use.

    Raises:
        DataError: bad records, or none that has a label left.
        ConfigError: nothing can be held out of a single record.
    """
    assert settings.max_target_length is not None
    columns = settings.columns
    lengths = Lengths(settings.max_source_length, settings.max_target_length, settings.truncation)
    skip = settings.skip_bad_records
    check_apart(settings.data, settings.eval_data)

    def prepare(paths: tuple[Path, ...]) -> PreparedExamples:
        return prepare_examples(paths, columns, skip, tokenizer, generation, lengths)

    found = prepare(settings.data)
    rows = held = None
    if settings.eval_fraction is not None:
        rows, held = _split(settings, len(found.rendered))
    train, truncation = _examples(found, settings.data, rows)
    inputs: dict[str, Any] = {"examples": _contents(train)}
    questions = found.questions[: settings.example_questions]
    if not settings.evaluates:
        return TrainingData(
            train, None, truncation, found.skipped, found.notices, inputs, questions
        )
    if held is not None:
        dev, dev_truncation = _examples(found, settings.data, held)
        inputs["held_out"] = {"of": len(found.rendered), **_contents(dev)}
        skipped, notices = found.skipped, found.notices
    else:
        other = prepare(settings.eval_data)
        dev, dev_truncation = _examples(other, settings.eval_data, None)
        inputs["eval_examples"] = _contents(dev)
        skipped = found.skipped + other.skipped
        said = (f"in the development data, {notice}" for notice in other.notices)
        notices = (*found.notices, *said)
    if without := dev_truncation.without_labels:
        notices += (f"{without} records of the development data have no label left",)
    return TrainingData(train, dev, truncation, skipped, notices, inputs, questions)


def _split(settings: TrainSettings, records: int) -> tuple[list[int], list[int]]:
    assert settings.eval_fraction is not None
    if records < 2:
        raise ConfigError(
            f"eval_fraction {settings.eval_fraction} leaves nothing of {records} record; "
            "pass --eval-data in its place"
        )
    return split_records(records, settings.eval_fraction, settings.seed)


def _examples(
    found: PreparedExamples, paths: tuple[Path, ...], rows: list[int] | None
) -> tuple[datasets.Dataset, Truncation]:
    examples, truncation = found.examples(rows)
    if not len(examples):
        raise DataError(
            f"no record of {', '.join(map(str, paths))} has a label left at these lengths; "
            "use --truncation turns or a larger --max-source-length"
        )
    return examples, truncation


def _contents(examples: datasets.Dataset) -> dict[str, Any]:
    return {"records": len(examples), "sha256": digest_examples(examples)}
