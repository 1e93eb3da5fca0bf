"""`ptune eval`: answer a data set, write every answer as it is made, and score them."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import datasets

from ptune.base.folder import BaseModel
from ptune.base.weights import WeightFiles
from ptune.checkpoint import (
    find_base,
    fingerprint,
    load_model,
    read_prefix,
    trained_bits,
    training_record,
)
from ptune.config.settings import EvalSettings
from ptune.data.examples import conversation, render_examples
from ptune.data.prompt import TURNS, Lengths, default_target_length, render
from ptune.data.records import Columns, read_records
from ptune.data.tokenizer import build_tokenizer
from ptune.device.full_memory import memory_advice
from ptune.errors import ConfigError
from ptune.evaluation.metrics import mean_scores
from ptune.evaluation.predictions import Predictions
from ptune.files.atomic import write_text_atomically
from ptune.generation.generate import generate_all
from ptune.generation.sampling import Sampling
from ptune.quantization.layers import choose_bits
from ptune.training.eval_loss import total_loss

RESULTS_FILE = "eval_results.json"
SPEEDS = ("samples_per_second", "new_tokens_per_second")


class EvalReporter(Protocol):
    """Who wants to know how an evaluation goes; the command line draws it."""

    def phase(self, name: str, total: int, done: int) -> None:
        """Work on `total` records begins, of which `done` are there from an earlier run."""

    def advanced(self, done: int) -> None:
        """So many records of the phase are done."""


@dataclass(frozen=True)
class EvalResult:
    """What an evaluation found, and where it is written."""

    output: Path
    scores: dict[str, float]
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class _Task:
    """Everything that decides the answers."""

    base: BaseModel
    checkpoint: Path | None
    records: datasets.Dataset
    skipped: tuple[str, ...]
    lengths: Lengths
    sampling: Sampling
    bits: str | None
    output: Path


def evaluate(settings: EvalSettings, reporter: EvalReporter) -> EvalResult:
    """Generate, write and score; goes on where an interrupted evaluation stopped.

    Args:
        settings: all of them resolved.
        reporter: told of the progress.

    Raises:
        PTuneError: what is wrong with model, checkpoint, data or output.
    """
    task = _prepare(settings)
    identity = _identity(task, settings)
    task.output.mkdir(parents=True, exist_ok=True)
    predictions = Predictions(task.output, identity)
    tokenizer = build_tokenizer(task.base)
    model = load_model(
        task.base.path,
        task.checkpoint,
        settings.dtype,
        settings.device,
        task.bits or "none",
        settings.quantization_backend,
        task.base.generation.value,
    )
    model.base_model.prefix_enabled = settings.prefix
    with memory_advice("a smaller --batch-size, or a smaller --max-source-length"):
        speeds = _predict(task, settings, model, tokenizer, predictions, reporter)
        loss = _loss(task, settings, model, tokenizer, reporter)
    scores = mean_scores((entry["predict"], entry["labels"]) for entry in predictions.in_order())
    results = {
        **scores.means,
        "loss": loss,
        "samples": scores.samples,
        "empty_predictions": scores.empty_predictions,
        **speeds,
    }
    text = json.dumps(results, indent=2, sort_keys=True)
    write_text_atomically(task.output / RESULTS_FILE, text + "\n")
    return EvalResult(task.output, results, task.skipped)


def _prepare(settings: EvalSettings) -> _Task:
    checkpoint = settings.checkpoint
    asked = (settings.model, checkpoint, settings.prompt_format)
    # The weights come later: what is wrong with the data is said before a long download.
    base = find_base(*asked, weights=False)
    record = training_record(base, checkpoint)
    trained = record.settings if record else {}
    columns = Columns(
        settings.prompt_column or trained.get("prompt_column"),
        settings.response_column or trained.get("response_column"),
        settings.history_column or trained.get("history_column"),
    )
    data = settings.data or tuple(Path(p) for p in trained.get("eval_data", ()))
    if not data:
        raise ConfigError(
            "--data is missing and training recorded no --eval-data; pass --data FILE"
        )
    loaded = read_records(data, columns, settings.skip_bad_records)
    records = loaded.records
    if settings.max_samples is not None:
        records = records.select(range(min(settings.max_samples, len(records))))
    target = trained.get("max_target_length") or default_target_length(base.generation)
    source = settings.max_source_length or trained.get("max_source_length", 64)
    truncation = settings.truncation or trained.get("truncation", TURNS)
    base = find_base(*asked)
    bits = trained_bits(base, checkpoint, settings.quantization_bit)
    return _Task(
        base=base,
        checkpoint=checkpoint,
        records=records,
        skipped=loaded.skipped,
        lengths=Lengths(source, target, truncation),
        sampling=Sampling(
            settings.max_new_tokens or target,
            settings.do_sample,
            settings.top_p,
            settings.temperature,
        ),
        bits=choose_bits(base, WeightFiles(base.path), bits),
        output=settings.output or _default_output(settings, base, data[0]),
    )


def _default_output(settings: EvalSettings, base: BaseModel, data: Path) -> Path:
    name = f"eval-{data.name.split('.')[0]}" + ("" if settings.prefix else "-no-prefix")
    if settings.checkpoint is not None:
        return settings.checkpoint / name
    return Path("output") / f"{Path(base.name).name}-{name}"


def _identity(task: _Task, settings: EvalSettings) -> dict[str, Any]:
    """What makes two evaluations the same, so that one may go on with the other's answers."""
    prefix = hashlib.sha256()
    if settings.prefix and (task.checkpoint or task.base.config.get("pre_seq_len")):
        for name, tensor in sorted(read_prefix(task.checkpoint or task.base.path).items()):
            prefix.update(name.encode() + tensor.float().numpy().tobytes())
    data = hashlib.sha256()
    for row in task.records:
        data.update(repr([row["system"], row["history"], row["prompt"], row["response"]]).encode())
    sampled = settings.do_sample  # then seed and batches decide the answers, too
    return {
        "base_model": fingerprint(task.base),
        "quantization_bit": task.bits,
        "prefix": prefix.hexdigest() if settings.prefix else None,
        "data": data.hexdigest(),
        "prompt_format": task.base.generation.value,
        "max_source_length": task.lengths.max_source_length,
        "truncation": task.lengths.truncation,
        "generation": task.sampling.arguments(),
        "seed": settings.seed if sampled else None,
        "batch_size": settings.batch_size if sampled else None,
    }


def _predict(
    task: _Task,
    settings: EvalSettings,
    model: Any,
    tokenizer: Any,
    predictions: Predictions,
    reporter: EvalReporter,
) -> dict[str, float]:
    """Answer what is not answered yet; returns the speeds."""
    entries, began = predictions.entries, time.perf_counter()
    reporter.phase("Generating", len(task.records), len(entries))
    finished = task.output / RESULTS_FILE
    if len(entries) == len(task.records) and finished.is_file():
        before = json.loads(finished.read_text(encoding="utf-8"))
        return {name: before.get(name, 0.0) for name in SPEEDS}
    prompts = [
        render(tokenizer, task.base.generation, conversation(row, False), task.lengths).input_ids
        for row in task.records
    ]
    samples = tokens = 0
    answers = generate_all(
        model, prompts, settings.batch_size, task.sampling, settings.seed, done=entries.keys()
    )
    for batch in answers:
        rows = [task.records[index] for index, _ in batch]
        predictions.add(
            {
                "index": index,
                "prompt": row["prompt"],
                "labels": _as_decoded(tokenizer, row["response"]),
                "predict": tokenizer.decode(ids, skip_special_tokens=True).strip(),
            }
            for row, (index, ids) in zip(rows, batch, strict=True)
        )
        samples += len(batch)
        tokens += sum(len(ids) for _, ids in batch)
        reporter.advanced(len(entries))
    seconds = time.perf_counter() - began
    return {n: round(c / seconds, 3) for n, c in zip(SPEEDS, (samples, tokens), strict=True)}


def _as_decoded(tokenizer: Any, text: str) -> str:
    """A reference as the tokenizer would write it; ChatGLM-6B's turns `，` into `,`."""
    decoded: str = tokenizer.decode(tokenizer.encode_text(text), skip_special_tokens=True)
    return decoded.strip()


def _loss(
    task: _Task, settings: EvalSettings, model: Any, tokenizer: Any, reporter: EvalReporter
) -> float:
    examples, _ = render_examples(task.records, tokenizer, task.base.generation, task.lengths)
    reporter.phase("Measuring the loss", len(examples), 0)
    loss, tokens = total_loss(
        model, examples, tokenizer.pad_token_id, settings.batch_size, reporter.advanced
    )
    return loss / tokens
