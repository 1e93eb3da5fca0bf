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

from ptune.base.context import Answer, check_context
from ptune.base.folder import BaseModel
from ptune.base.weights import WeightFiles
from ptune.checkpoint.base import find_base, fingerprint, trained_bits, training_metadata
from ptune.checkpoint.folder import find_whole_checkpoint
from ptune.checkpoint.load import load_model
from ptune.checkpoint.metadata import CheckpointConfig
from ptune.checkpoint.method import method_in
from ptune.config.settings import EvalSettings
from ptune.data.examples import asked_last, conversation, render_examples
from ptune.data.prompt import Lengths, default_target_length, render
from ptune.data.records import read_records
from ptune.data.schemas import Columns
from ptune.data.tokenizer import build_tokenizer
from ptune.data.truncation import TURNS
from ptune.device.full_memory import memory_advice
from ptune.device.precision import choose_device, choose_dtype, wider_dtype
from ptune.errors import ConfigError, DataError, EvaluationError
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
from ptune.generation.sampling import Sampling
from ptune.models.trained import show_trained
from ptune.parallel.team import Team
from ptune.quantization.layers import choose_bits
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

    base: BaseModel
    tokenizer: Any
    checkpoint: Path | None
    records: datasets.Dataset
    skipped: tuple[str, ...]
    notices: tuple[str, ...]
    lengths: Lengths
    sampling: Sampling
    bits: str | None
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
        stack.enter_context(team.together(advice))
        stack.enter_context(
            memory_advice("a smaller --batch-size, or a smaller --max-source-length")
        )
        if team.first:
            return _evaluate(task, settings, reporter, team)
        _help(task, settings, team)
        return None


def _help(task: _Task, settings: EvalSettings, team: Team) -> None:
    """Answer this process's share of the records, for the first process."""
    done = team.begin(None, to_json(_identity(task, settings), sort_keys=True))
    model = _load(task, settings)
    for entries, tokens in _answers(task, settings, model, team, done):
        team.tell([entries, tokens])
    team.tell([str(number) for number in _total_loss(task, settings, model, team)])


def _evaluate(
    task: _Task, settings: EvalSettings, reporter: EvalReporter, team: Team
) -> EvalResult:
    identity = _identity(task, settings)
    predictions = Predictions(task.output, identity)
    team.begin(list(predictions.entries), to_json(identity, sort_keys=True))
    model = _load(task, settings)
    speeds, losses = _predict(task, settings, model, predictions, reporter, team)
    loss = _loss(task, settings, model, reporter, team, losses)
    if loss is not None and not math.isfinite(loss):
        wider = wider_dtype(model.dtype, model.device)
        raise EvaluationError(
            f"loss {loss} of {task.base.name}{f' with {task.checkpoint}' * bool(task.checkpoint)} "
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
    checkpoint, passed_over = settings.checkpoint, None
    if checkpoint is not None:
        checkpoint, passed_over = find_whole_checkpoint(checkpoint)
    asked = (settings.model, checkpoint, settings.prompt_format)
    # The weights come later: errors in the data are raised before a long download.
    base = find_base(*asked, weights=False)
    metadata = training_metadata(base, checkpoint)
    trained = metadata.settings if metadata else {}
    columns = Columns(*(getattr(settings, name) or trained.get(name) for name in _COLUMNS))
    data, held_out = settings.data, False
    if not data:
        data, held_out = _data_of_training(metadata)
    target, origin = trained.get("max_target_length"), "of the training"
    if target is None:
        target, origin = default_target_length(base.generation), "(the default)"
    source = settings.max_source_length or trained.get("max_source_length", 64)
    new_tokens = settings.max_new_tokens or target
    for answer in (
        Answer("max_new_tokens", new_tokens),
        Answer("max_target_length", target, origin),
    ):
        check_context(base.config, base.name, source, answer)
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
    truncation = settings.truncation or trained.get("truncation", TURNS)
    if checkpoint is not None:
        method_in(checkpoint).check(checkpoint)  # so is what is wrong with it
    base = find_base(*asked)
    bits = trained_bits(base, checkpoint, settings.quantization_bit)
    return _Task(
        base=base,
        tokenizer=tokenizer,
        checkpoint=checkpoint,
        records=records,
        skipped=loaded.skipped,
        notices=(*([passed_over] if passed_over else []), *loaded.notices),
        lengths=Lengths(source, target, truncation),
        sampling=Sampling(
            new_tokens,
            settings.do_sample,
            settings.top_p,
            settings.temperature,
        ),
        bits=choose_bits(base, WeightFiles(base.path), bits),
        output=output,
    )


def _load(task: _Task, settings: EvalSettings) -> Any:
    model = load_model(
        task.base.path,
        task.checkpoint,
        settings.dtype,
        settings.device,
        task.bits or "none",
        settings.quantization_backend,
        task.base.generation.value,
    )
    show_trained(model, settings.prefix)
    return model


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
    prefix = None
    if settings.prefix:
        has_one = task.checkpoint or task.base.config.get("pre_seq_len")
        none = hashlib.sha256().hexdigest()
        folder = task.checkpoint or task.base.path
        prefix = method_in(folder).digest(folder) if has_one else none
    merged, folded = training_metadata(task.base, None), ""
    if merged and merged.inputs.get("lora"):  # which changes no norm
        folded = f"+{merged.inputs['lora']}"
    data = hashlib.sha256()
    for row in task.records:
        data.update(repr(row["messages"]).encode())
    return {
        "base_model": fingerprint(task.base) + folded,
        "quantization_bit": task.bits,
        "prefix": prefix,
        "data": data.hexdigest(),
        "prompt_format": task.base.generation.value,
        "max_source_length": task.lengths.max_source_length,
        "truncation": task.lengths.truncation,
        "generation": task.sampling.arguments(),
        "seed": settings.seed if settings.do_sample else None,
    }


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
    tokenizer, generation = task.tokenizer, task.base.generation
    prompts = [
        render(tokenizer, generation, conversation(row, False), task.lengths).input_ids
        for row in task.records
    ]
    left = set(range(len(prompts))).difference(done)
    own = set(team.share(sorted(left, key=lambda index: -len(prompts[index]))))
    others = set(range(len(prompts))) - own
    for batch in generate_all(
        model, prompts, settings.batch_size, task.sampling, settings.seed, others
    ):
        rows = [task.records[index] for index, _ in batch]
        entries = [
            {
                "index": index,
                "prompt": asked_last(row),
                "labels": _as_decoded(tokenizer, row["messages"][-1]),
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


def _as_decoded(tokenizer: Any, answer: dict[str, str]) -> str:
    """A reference as the tokenizer would write it; ChatGLM-6B's turns `，` into `,`."""
    called, text = answer["metadata"], answer["content"]
    text = f"{called}\n{text}" if called else text
    decoded: str = tokenizer.decode(tokenizer.encode_text(text), skip_special_tokens=True)
    return decoded.strip()


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
    tokenizer = task.tokenizer
    records = task.records.select(team.share(range(len(task.records))))
    if not len(records):
        return 0.0, 0
    examples, _ = render_examples(records, tokenizer, task.base.generation, task.lengths)
    return total_loss(model, examples, tokenizer.pad_token_id, settings.batch_size, advanced)
