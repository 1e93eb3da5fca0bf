"""`ptune eval`: generates predictions for a data set, resumes if interrupted, scores them."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
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
from ptune.parallel.heartbeat import signs_of_life
from ptune.parallel.team import Team
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


def evaluate(settings: EvalSettings, reporter: EvalReporter) -> EvalResult | None:
    """Generate, write and score predictions; resumes an interrupted evaluation.

    Several processes divide the records among them; the first writes and scores.

    Args:
        settings: of `ptune eval`.
        reporter: told of the progress.

    Returns:
        The result; None in every process but the first.

    Raises:
        PTuneError: what is wrong with model, checkpoint, data or output.
    """
    device = choose_device(settings.device)
    choose_dtype(settings.dtype, device)
    task, team = _prepare(settings), Team()
    with ExitStack() as stack:
        if team.first:
            stack.enter_context(holding(task.output, "evaluation"))
        advice = f"give the same command again: it goes on from what is in {task.output}"
        stack.enter_context(signs_of_life(advice))
        stack.enter_context(memory_advice(ADVICE))
        if team.first:
            return _evaluate(task, settings, reporter, team)
        _help(task, settings, team)
        return None


def _help(task: _Task, settings: EvalSettings, team: Team) -> None:
    """Answer this process's share of the records, for the first process."""
    done = team.begin(None, to_json(_identity(task, settings), sort_keys=True))
    model = load(task.answering, settings)
    for entries, tokens in _answers(task, settings, model, team, done):
        team.tell([entries, tokens])
    team.tell([str(number) for number in _total_loss(task, settings, model, team)])


def _evaluate(
    task: _Task, settings: EvalSettings, reporter: EvalReporter, team: Team
) -> EvalResult:
    base, checkpoint = task.answering.base, task.answering.checkpoint
    identity = _identity(task, settings)
    predictions = Predictions(task.output, identity)
    team.begin(list(predictions.entries), to_json(identity, sort_keys=True))
    model = load(task.answering, settings)
    speeds, losses = _predict(task, settings, model, predictions, reporter, team)
    loss = _loss(task, settings, model, reporter, team, losses)
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
    team: Team,
) -> tuple[dict[str, float | None], list[list[str]]]:
    """Generate the predictions that are missing.

    Returns:
        The throughput, None without any; and the losses of the processes that are ahead.
    """
    done, began = predictions.entries, time.perf_counter()
    reporter.phase("Generating", len(task.records), len(done))
    results = task.output / RESULTS_FILE
    if len(done) == len(task.records) and results.is_file():
        return _speeds_before(results), []
    results.unlink(missing_ok=True)  # of other predictions than those that will be there
    missing = len(task.records) - len(done)
    losses: list[list[str]] = []
    samples = tokens = 0

    def answered() -> Iterator[tuple[list[dict[str, Any]], int]]:
        """Answers of this process and, as they come, of the others."""
        for own in _answers(task, settings, model, team, list(done)):
            yield own
            yield from heard()
        while samples < missing:
            yield from heard()
            team.wait()

    def heard() -> Iterator[tuple[list[dict[str, Any]], int]]:
        for told in team.heard():
            if isinstance(told[0], str):
                losses.append(told)
            else:
                yield told[0], told[1]

    for entries, count in answered():
        predictions.add(entries)
        samples, tokens = samples + len(entries), tokens + count
        reporter.advanced(len(done))
    seconds = time.perf_counter() - began
    if not samples:  # the run before this one was stopped behind its last answer
        return dict.fromkeys(SPEEDS), losses
    speeds = zip(SPEEDS, (samples, tokens), strict=True)
    return {name: round(count / seconds, 3) for name, count in speeds}, losses


def _answers(
    task: _Task, settings: EvalSettings, model: Any, team: Team, done: Sequence[int]
) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """Answer this process's share of the records that are not done.

    Yields:
        As they are finished, entries of the predictions, and their tokens.
    """
    tokenizer, answering = task.tokenizer, task.answering
    prompts = [
        render(tokenizer, answering.base.generation, asked, answering.lengths).input_ids
        for asked in (conversation(row, False) for row in task.records)
    ]
    left = set(range(len(prompts))).difference(done)
    own = set(team.share(sorted(left, key=lambda index: -len(prompts[index]))))
    others = set(range(len(prompts))) - own
    for batch in generate_all(
        model, prompts, settings.batch_size, answering.sampling, settings.seed, others
    ):
        rows = [task.records[index] for index, _ in batch]
        entries = [
            {
                "index": index,
                "prompt": asked_last(row),
                "labels": as_decoded(tokenizer, Message(**row["messages"][-1])),
                "predict": tokenizer.decode(ids, skip_special_tokens=True).strip(),
            }
            for row, (index, ids) in zip(rows, batch, strict=True)
        ]
        yield entries, sum(len(ids) for _, ids in batch)


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


def _loss(
    task: _Task,
    settings: EvalSettings,
    model: Any,
    reporter: EvalReporter,
    team: Team,
    told: list[list[str]],
) -> float | None:
    """The mean loss of a label token, with what the others have told; None without a label."""
    reporter.phase("Measuring the loss", -(-len(task.records) // team.count), 0)
    loss, tokens = _total_loss(task, settings, model, team, reporter.advanced)
    while len(told) < team.count - 1:
        told += team.heard()
        team.wait()
    loss += sum(float(of_other) for of_other, _ in told)
    tokens += sum(int(of_other) for _, of_other in told)
    return loss / tokens if tokens else None


def _total_loss(
    task: _Task,
    settings: EvalSettings,
    model: Any,
    team: Team,
    advanced: Callable[[int], None] = lambda done: None,
) -> tuple[float, int]:
    """The loss of this process's share of the records, summed, and its label tokens."""
    answering, tokenizer = task.answering, task.tokenizer
    records = task.records.select(team.share(range(len(task.records))))
    if not len(records):
        return 0.0, 0
    examples, _ = render_examples(records, tokenizer, answering.base.generation, answering.lengths)
    return total_loss(model, examples, tokenizer.pad_token_id, settings.batch_size, advanced)
