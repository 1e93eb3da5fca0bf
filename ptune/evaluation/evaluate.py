"""`ptune eval`: generates predictions for a data set, resumes if interrupted, scores them."""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import datasets

from ptune.base.folder import BaseModel
from ptune.checkpoint.metadata import CheckpointConfig
from ptune.config.settings import EvalSettings
from ptune.data.examples import asked_last, conversation, render_examples
from ptune.data.messages import Message
from ptune.data.prompt import render
from ptune.data.records import read_records
from ptune.data.schemas import Columns
from ptune.data.tokenizer import build_tokenizer
from ptune.device.full_memory import memory_advice
from ptune.device.precision import choose_device, choose_dtype, wider_dtype
from ptune.errors import ConfigError, DataError, EvaluationError
from ptune.evaluation.answering import (
    ADVICE,
    Answering,
    as_decoded,
    find_answering,
    identity,
    load,
    with_weights,
)
from ptune.evaluation.held_out import find_held_out
from ptune.evaluation.metrics import mean_scores
from ptune.evaluation.predictions import IDENTITY_FILE, Predictions
from ptune.files.atomic import write_text_atomically
from ptune.files.home import expand_home
from ptune.files.json_object import read_json_object
from ptune.files.json_text import to_json
from ptune.files.lock import holding
from ptune.files.names import stem
from ptune.generation.generate import generate_all
from ptune.training.eval_loss import total_loss

RESULTS_FILE = "eval_results.json"
_COLUMNS = ("prompt_column", "response_column", "history_column", "context_column")
SPEEDS = ("samples_per_second", "new_tokens_per_second")


class EvalReporter(Protocol):
    """Interface for the progress of an evaluation; the command line implements it."""

    def phase(self, name: str, total: int, done: int) -> None:
        """Work on `total` records begins, of which `done` are from an earlier run."""

    def advanced(self, done: int) -> None:
        """So many records of the phase are done."""


@dataclass(frozen=True)
class EvalResult:
    """Scores of an evaluation, and the folder of its files.

    Attributes:
        output: the folder.
        scores: by name; `loss` is None if no record has a label left.
        skipped: one message for each bad record that was left out.
    """

    output: Path
    scores: dict[str, float | None]
    skipped: tuple[str, ...]
    notices: tuple[str, ...]


@dataclass(frozen=True)
class _Task:
    """The resolved inputs of an evaluation."""

    answering: Answering
    tokenizer: Any
    records: datasets.Dataset
    skipped: tuple[str, ...]
    notices: tuple[str, ...]
    output: Path


def evaluate(settings: EvalSettings, reporter: EvalReporter) -> EvalResult:
    """Generate, write and score predictions; resumes an interrupted evaluation.

    Args:
        settings: of `ptune eval`.
        reporter: told of the progress.

    Raises:
        PTuneError: what is wrong with model, checkpoint, data or output.
    """
    device = choose_device(settings.device)
    choose_dtype(settings.dtype, device)
    task = _prepare(settings)
    with holding(task.output, "evaluation"):
        return _evaluate(task, settings, reporter)


def _evaluate(task: _Task, settings: EvalSettings, reporter: EvalReporter) -> EvalResult:
    predictions = Predictions(task.output, _identity(task, settings))
    base, checkpoint = task.answering.base, task.answering.checkpoint
    model = load(task.answering, settings)
    with memory_advice(ADVICE):
        speeds = _predict(task, settings, model, predictions, reporter)
        loss = _loss(task, settings, model, reporter)
    if loss is not None and not math.isfinite(loss):
        wider = wider_dtype(model.dtype, model.device)
        raise EvaluationError(
            f"loss {loss} of {base.name}{f' with {checkpoint}' * bool(checkpoint)} "
            f"is not finite; the answers are in {predictions.file}, but mean nothing: "
            + (f"use --dtype {wider}" if wider else "use another checkpoint")
        )
    scores = mean_scores((entry["predict"], entry["labels"]) for entry in predictions.in_order())
    results: dict[str, float | None] = {
        **scores.means,
        "loss": loss,
        "samples": scores.samples,
        "empty_predictions": scores.empty_predictions,
        **speeds,
    }
    text = to_json(results, indent=2, sort_keys=True)
    write_text_atomically(task.output / RESULTS_FILE, text + "\n")
    return EvalResult(task.output, results, task.skipped, task.notices)


def _prepare(settings: EvalSettings) -> _Task:
    answering = find_answering(settings)
    base, metadata, trained = answering.base, answering.metadata, answering.trained
    columns = Columns(*(getattr(settings, name) or trained.get(name) for name in _COLUMNS))
    data, held_out = settings.data, False
    if not data:
        data, held_out = _data_of_training(metadata)
    output = settings.output or _default_output(settings, base, data[0])
    if output.exists() and not output.is_dir():
        raise ConfigError(f"output {output} is a file; pass a folder with --output")
    skip = settings.skip_bad_records or (held_out and trained["skip_bad_records"])
    if (output / RESULTS_FILE).exists() and not (output / IDENTITY_FILE).exists():
        raise ConfigError(
            f"{output / RESULTS_FILE} was not written by ptune; move it, or pass another --output"
        )
    loaded = read_records(data, columns, skip, base.generation)
    records, tokenizer = loaded.records, build_tokenizer(base)
    if held_out and metadata:
        given = [name for name in _COLUMNS if name in settings.given]
        records = find_held_out(records, metadata, tokenizer, given)
    if settings.max_samples is not None:
        records = records.select(range(min(settings.max_samples, len(records))))
    return _Task(
        answering=with_weights(answering, settings),
        tokenizer=tokenizer,
        records=records,
        skipped=loaded.skipped,
        notices=(*answering.notices, *loaded.notices),
        output=output,
    )


def _data_of_training(metadata: CheckpointConfig | None) -> tuple[tuple[Path, ...], bool]:
    """The development data of a training, and whether it was held out of the other.

    Raises:
        ConfigError: it had none.
        DataError: it is not there any more.
    """
    held_out = metadata is not None and metadata.inputs.get("held_out") is not None
    recorded = metadata.settings.get("data" if held_out else "eval_data", ()) if metadata else ()
    data = tuple(expand_home(Path(path), "data") for path in recorded)
    if not data:
        raise ConfigError(
            "--data is missing and training had no development data; pass --data FILE"
        )
    for path in data:
        if not path.exists():
            raise DataError(f"{path}, the data that training named, is not there; pass --data FILE")
    return data, held_out


def _default_output(settings: EvalSettings, base: BaseModel, data: Path) -> Path:
    name = f"eval-{stem(data)}" + ("" if settings.prefix else "-no-prefix")
    if settings.checkpoint is not None:
        return settings.checkpoint / name
    return Path("output") / f"{Path(base.name).name}-{name}"


def _identity(task: _Task, settings: EvalSettings) -> dict[str, Any]:
    """Everything that decides the predictions: equal for a run that may resume another's."""
    data = hashlib.sha256()
    for row in task.records:
        data.update(repr(row["messages"]).encode())
    return identity(task.answering, settings) | {"data": data.hexdigest()}


def _predict(
    task: _Task,
    settings: EvalSettings,
    model: Any,
    predictions: Predictions,
    reporter: EvalReporter,
) -> dict[str, float | None]:
    """Generate the predictions that are missing; returns the throughput, None without any."""
    entries, tokenizer, began = predictions.entries, task.tokenizer, time.perf_counter()
    answering = task.answering
    reporter.phase("Generating", len(task.records), len(entries))
    results = task.output / RESULTS_FILE
    if len(entries) == len(task.records) and results.is_file():
        return _speeds_before(results)
    results.unlink(missing_ok=True)  # of other predictions than those that will be there
    prompts = [
        render(tokenizer, answering.base.generation, asked, answering.lengths).input_ids
        for asked in (conversation(row, False) for row in task.records)
    ]
    samples = tokens = 0
    finished = generate_all(
        model, prompts, settings.batch_size, answering.sampling, settings.seed, done=entries.keys()
    )
    for batch in finished:
        rows = [task.records[index] for index, _ in batch]
        predictions.add(
            {
                "index": index,
                "prompt": asked_last(row),
                "labels": as_decoded(tokenizer, Message(**row["messages"][-1])),
                "predict": tokenizer.decode(ids, skip_special_tokens=True).strip(),
            }
            for row, (index, ids) in zip(rows, batch, strict=True)
        )
        samples += len(batch)
        tokens += sum(len(ids) for _, ids in batch)
        reporter.advanced(len(entries))
    seconds = time.perf_counter() - began
    if not samples:  # the run before this one was stopped behind its last answer
        return dict.fromkeys(SPEEDS)
    return {n: round(c / seconds, 3) for n, c in zip(SPEEDS, (samples, tokens), strict=True)}


def _speeds_before(file: Path) -> dict[str, float | None]:
    """The speeds that an earlier run has written.

    Raises:
        DataError: the file is damaged.
    """
    try:
        before = read_json_object(file)
        return {name: before.get(name) for name in SPEEDS}
    except ValueError as error:
        raise DataError(f"{file} is damaged ({error}); delete it") from error


def _loss(task: _Task, settings: EvalSettings, model: Any, reporter: EvalReporter) -> float | None:
    """The mean loss of a label token; None if the records have none left."""
    tokenizer, answering = task.tokenizer, task.answering
    examples, _ = render_examples(
        task.records, tokenizer, answering.base.generation, answering.lengths
    )
    reporter.phase("Measuring the loss", len(examples), 0)
    loss, tokens = total_loss(
        model, examples, tokenizer.pad_token_id, settings.batch_size, reporter.advanced
    )
    return loss / tokens if tokens else None
