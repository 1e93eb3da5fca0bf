"""`ptune train`: from settings to a finished run."""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import datasets
import torch
from transformers import TrainingArguments, set_seed
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_callback import PrinterCallback

from ptune.base.context import Answer, check_context
from ptune.base.folder import BaseModel, Generation
from ptune.checkpoint.base import check_fingerprint, find_base, fingerprint
from ptune.checkpoint.folder import PREFIX_FILE
from ptune.checkpoint.metadata import CheckpointConfig
from ptune.checkpoint.prefix import attach_prefix, has_prefix, load_prefix, prefix_form, read_prefix
from ptune.config.declaration import flag
from ptune.config.settings import TrainSettings
from ptune.data.example_cache import PreparedExamples, prepare_examples
from ptune.data.examples import Truncation
from ptune.data.prompt import Lengths, default_target_length
from ptune.data.tokenizer import build_tokenizer
from ptune.device.full_memory import SMALLER_WEIGHTS, memory_advice
from ptune.device.precision import (
    choose_device,
    choose_dtype,
    needs_loss_scale,
    wider_dtype,
)
from ptune.errors import ConfigError, DataError
from ptune.models.build import build_model
from ptune.models.prefix_encoder import PrefixEncoder
from ptune.quantization.layers import count_parameters, precision_of
from ptune.training.finite_guard import FiniteGuard
from ptune.training.log import LOG_FILE, TrainLog, TrainReporter
from ptune.training.loss_scale import LossScale
from ptune.training.micro_batch import MicroBatch
from ptune.training.output import (
    check_output,
    check_unfinished,
    last_resumable,
    output_folder,
    settings_to_json,
)
from ptune.training.step_memory import StepMemory, describe_step
from ptune.training.stop_request import StopRequest, stop_on_interrupt
from ptune.training.trainer import PrefixTrainer


@dataclass(frozen=True)
class TrainSummary:
    """What a run is about to do, known before its first step."""

    model: str
    generation: Generation
    precision: str
    output: Path
    trainable: int
    parameters: int
    records: int
    skipped: tuple[str, ...]
    notices: tuple[str, ...]
    truncation: Truncation
    batch_size: int
    micro_batch_size: int
    max_steps: int
    epochs: float
    resumed_from: Path | None


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    output: Path
    checkpoint: Path
    steps: int
    interrupted: bool


class Reporter(TrainReporter, Protocol):
    """Who wants to know how a run goes."""

    def started(self, summary: TrainSummary) -> None:
        """The first step comes next."""


@dataclass(frozen=True)
class _Data:
    train: datasets.Dataset
    dev: datasets.Dataset | None
    truncation: Truncation
    skipped: tuple[str, ...]
    notices: tuple[str, ...]
    dev_without_labels: int = 0


def train(settings: TrainSettings, reporter: Reporter) -> TrainResult:
    """Train a prefix.

    Args:
        settings: all of them resolved.
        reporter: told of the start, of every step and of every log line.

    Raises:
        PTuneError: what is wrong with model, data, settings or output.
    """
    # The weights come later: what is wrong with the data is said before a long download.
    asked = (settings.model, settings.init_prefix, settings.prompt_format)
    base = find_base(*asked, weights=False)
    settings = _resolve_for(base, settings)
    assert settings.max_target_length is not None
    answer = Answer("max_target_length", settings.max_target_length)
    check_context(base.config, base.name, settings.max_source_length, answer)
    output = output_folder(base, settings)
    resumed_from = check_output(output, settings)
    _check_loggers(settings.report_to)
    device = choose_device(settings.device)
    dtype = choose_dtype(settings.dtype, device)
    tokenizer = build_tokenizer(base)
    data = _load_data(settings, tokenizer, base.generation)
    _check_steps(settings, len(data.train))
    check_unfinished(resumed_from, _total_steps(settings, len(data.train)))

    base = find_base(*asked)
    bits, backend = settings.quantization_bit, settings.quantization_backend
    with memory_advice(SMALLER_WEIGHTS):
        model = build_model(base, dtype, device, bits, backend)
    with memory_advice("a smaller --pre-seq-len"):
        _attach_prefix(model, base, settings)
    if settings.gradient_checkpointing:
        with warnings.catch_warnings():
            # Newer releases have it under another name, and say so to the user.
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_enable({"use_reentrant": False})
    trainer = _trainer(settings, base, model, data, tokenizer.pad_token_id, output, reporter)
    stop = StopRequest()
    trainer.add_callback(stop)
    output.mkdir(parents=True, exist_ok=True)
    if resumed_from:
        # The finished prefix would be taken for the newest if this run is stopped in its turn.
        (output / PREFIX_FILE).unlink(missing_ok=True)
    reporter.started(_summary(base, settings, trainer, data, output, resumed_from))
    for notice in _notices(base, settings, data, resumed_from):
        reporter.noticed(notice)
    advice = "a smaller --micro-batch-size, --gradient-checkpointing, or shorter lengths"
    with stop_on_interrupt(stop), memory_advice(advice):
        trainer.train(resume_from_checkpoint=str(resumed_from) if resumed_from else None)
    result = _finish(trainer, output, stop)
    # Several processes leave together: gloo's threads must have let go of Python's objects by then,
    # or the process that has nothing to save crashes on its way out.
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    return result


def _notices(
    base: BaseModel, settings: TrainSettings, data: _Data, resumed_from: Path | None
) -> Iterator[str]:
    """What somebody may not expect of the run that begins."""
    if has_prefix(base) and not (settings.init_prefix or resumed_from):
        yield (
            f"training starts from a new prefix, not from the one that {base.name} holds; "
            f"--init-prefix {base.path} starts from it"
        )
    if data.dev_without_labels:
        yield f"{data.dev_without_labels} records of --eval-data have no label left"
    if settings.batch_size > len(data.train):
        yield (
            f"batch_size {settings.batch_size:,} is more than the {len(data.train):,} records; "
            "a step sees each of them once"
        )


def _resolve_for(base: BaseModel, settings: TrainSettings) -> TrainSettings:
    """Fill in what depends on the generation and the prefix to start from, paths made absolute.

    Raises:
        CheckpointError: there is no prefix to start from.
        ConfigError: it is of another form than was asked for.
    """
    target = settings.max_target_length or default_target_length(base.generation)
    return dataclasses.replace(
        settings,
        **_form_of_init_prefix(settings),
        max_target_length=target,
        data=tuple(path.absolute() for path in settings.data),
        eval_data=tuple(path.absolute() for path in settings.eval_data),
    )


def _form_of_init_prefix(settings: TrainSettings) -> dict[str, Any]:
    """Length and projection of the prefix to start from; empty without one."""
    if settings.init_prefix is None:
        return {}
    length, projection = prefix_form(read_prefix(settings.init_prefix))
    found = {"pre_seq_len": length, "prefix_projection": projection}
    for name, value in found.items():
        if name in settings.given and (asked := getattr(settings, name)) != value:
            raise ConfigError(
                f"{name} {asked} does not go with the prefix of {settings.init_prefix}, which has "
                f"{name} {value}; leave {flag(name, asked)} out, or do without --init-prefix"
            )
    return found


def _load_data(settings: TrainSettings, tokenizer: Any, generation: Generation) -> _Data:
    assert settings.max_target_length is not None
    columns = settings.columns
    lengths = Lengths(settings.max_source_length, settings.max_target_length, settings.truncation)
    skip = settings.skip_bad_records

    def prepare(paths: tuple[Path, ...]) -> PreparedExamples:
        found = prepare_examples(paths, columns, skip, tokenizer, generation, lengths)
        if not len(found.examples):
            raise DataError(
                f"no record of {', '.join(map(str, paths))} has a label left at these lengths; "
                "use --truncation turns or a larger --max-source-length"
            )
        return found

    train = prepare(settings.data)
    if not settings.eval_data:
        return _Data(train.examples, None, train.truncation, train.skipped, train.notices)
    dev = prepare(settings.eval_data)
    skipped, without = train.skipped + dev.skipped, dev.truncation.without_labels
    notices = (*train.notices, *(f"in the development data, {said}" for said in dev.notices))
    return _Data(train.examples, dev.examples, train.truncation, skipped, notices, without)


def _attach_prefix(model: Any, base: BaseModel, settings: TrainSettings) -> None:
    if settings.init_prefix is not None:
        check_fingerprint(base, settings.init_prefix)
        load_prefix(model, settings.init_prefix, base, settings.prefix_dropout)
        return
    set_seed(settings.seed)
    prefix = PrefixEncoder(
        model.base_model.prefix_shape,
        settings.pre_seq_len,
        settings.prefix_projection,
        settings.prefix_dropout,
    )
    attach_prefix(model, prefix)


def _trainer(
    settings: TrainSettings,
    base: BaseModel,
    model: Any,
    data: _Data,
    pad_token_id: int,
    output: Path,
    reporter: Reporter,
) -> PrefixTrainer:
    arguments = _arguments(settings, output, model.device)
    step = describe_step(settings, base, model, max(data.train["length"][:]))
    log = TrainLog(output / LOG_FILE, len(data.train), reporter)
    scale = LossScale() if needs_loss_scale(model.dtype) else None
    guard = FiniteGuard(log, scale)
    trainer = PrefixTrainer(
        model=model,
        args=arguments,
        train_dataset=data.train,
        eval_dataset=data.dev,
        batch_size=settings.batch_size,
        metadata=_metadata(base, settings, model.base_model.prefix_encoder),
        shuffle=settings.shuffle,
        pad_token_id=pad_token_id,
        micro_batch=_micro_batch(settings, arguments, step, model.device, reporter),
        guard=guard,
        callbacks=[log, guard, *([scale] if scale else [])],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _metadata(base: BaseModel, settings: TrainSettings, prefix: PrefixEncoder) -> CheckpointConfig:
    name = str(base.path.absolute()) if Path(base.name).is_dir() else base.name
    return CheckpointConfig(
        base_model=name,
        fingerprint=fingerprint(base),
        prompt_format=base.generation.value,
        pre_seq_len=prefix.pre_seq_len,
        prefix_projection=prefix.prefix_projection,
        settings=settings_to_json(settings),
    )


def _check_steps(settings: TrainSettings, records: int) -> None:
    """Refuse a warm-up that the run does not see the end of.

    Raises:
        ConfigError: naming both numbers of steps.
    """
    steps = _total_steps(settings, records)
    if 0 < steps <= settings.warmup_steps:
        raise ConfigError(
            f"warmup_steps {settings.warmup_steps:,} leaves no step of {steps:,} at the peak rate; "
            "use fewer, or train longer with --max-steps or --epochs"
        )


def _total_steps(settings: TrainSettings, records: int) -> int:
    if settings.epochs is None:
        return settings.max_steps
    return math.ceil(settings.epochs * math.ceil(records / settings.batch_size))


def _check_loggers(report_to: str) -> None:
    try:
        for callback in get_reporting_integration_callbacks(report_to):
            callback()
    except (ImportError, RuntimeError, ValueError) as error:
        reason = str(error).rstrip(".")
        raise ConfigError(
            f"report_to {report_to!r} cannot be used ({reason}); install it, or use none"
        ) from error


def _arguments(settings: TrainSettings, output: Path, device: torch.device) -> TrainingArguments:
    if device.type == "cuda":
        # How accelerate is told which card this process computes on.
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", str(device))
    world = int(os.environ.get("WORLD_SIZE", "1"))
    arguments = TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=-(-settings.batch_size // world),  # see PrefixTrainer
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=settings.warmup_steps,
        max_steps=-1 if settings.epochs else settings.max_steps,
        num_train_epochs=settings.epochs or 1,
        optim="adamw_torch",
        use_cpu=device.type == "cpu",
        seed=settings.seed,
        save_steps=settings.save_steps,
        save_total_limit=settings.save_total_limit,
        logging_steps=settings.logging_steps,
        logging_nan_inf_filter=False,  # it would show a loss that is not a number as 0.0
        eval_strategy="steps" if settings.eval_data else "no",
        eval_steps=settings.eval_steps or settings.save_steps,
        report_to=settings.report_to,
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=device.type == "cuda",
    )
    if world == 1:
        arguments._n_gpu = min(arguments.n_gpu, 1)  # never torch.nn.DataParallel
    return arguments


def _micro_batch(
    settings: TrainSettings,
    arguments: TrainingArguments,
    step: StepMemory,
    device: torch.device,
    reporter: Reporter,
) -> MicroBatch:
    rows = arguments.per_device_train_batch_size
    return MicroBatch(
        settings.micro_batch or step.first_micro_batch(rows, device),
        auto=settings.micro_batch is None,
        processes=arguments.world_size,
        savings=step.savings,
        notify=reporter.noticed,
    )


def _summary(
    base: BaseModel,
    settings: TrainSettings,
    trainer: PrefixTrainer,
    data: _Data,
    output: Path,
    resumed_from: Path | None,
) -> TrainSummary:
    model = trainer.model
    max_steps = _total_steps(settings, len(data.train))
    return TrainSummary(
        model=base.name,
        generation=base.generation,
        precision=precision_of(model),
        output=output,
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        parameters=count_parameters(model),
        records=len(data.train),
        skipped=data.skipped,
        notices=data.notices,
        truncation=data.truncation,
        batch_size=settings.batch_size,
        micro_batch_size=trainer.micro_batch.size,
        max_steps=max_steps,
        epochs=max_steps / math.ceil(len(data.train) / settings.batch_size),
        resumed_from=resumed_from,
    )


def _finish(trainer: PrefixTrainer, output: Path, stop: StopRequest) -> TrainResult:
    """Save the prefix at the top of the output, unless the run is to go on later."""
    state, guard = trainer.state, trainer.guard
    last = last_resumable(output)
    if guard.gave_up or trainer.withheld == state.global_step:
        wider = wider_dtype(trainer.model.dtype, trainer.model.device)
        raise guard.error(state.global_step, last, wider)
    if stop.requested and state.global_step < state.max_steps:
        return TrainResult(output, last or output, state.global_step, interrupted=True)
    guard.check_end()
    if trainer.eval_dataset is not None:
        evaluated = [line["step"] for line in state.log_history if "eval_loss" in line]
        if state.global_step not in evaluated:
            trainer.evaluate()
    trainer.save_model(str(output))
    return TrainResult(output, output, state.global_step, interrupted=False)
