"""`ptune train`: from settings to a finished run."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import set_seed
from transformers.trainer_callback import PrinterCallback

from ptune import __version__
from ptune.base.context import Answer, check_context
from ptune.base.folder import BaseModel
from ptune.checkpoint.base import find_base, fingerprint
from ptune.checkpoint.metadata import CONFIG_FILE, CheckpointConfig
from ptune.checkpoint.method import Method, method_of
from ptune.checkpoint.prefix import attach_prefix, has_prefix
from ptune.config.settings import TrainSettings
from ptune.config.shared_settings import LORA
from ptune.data.examples import digest_ids
from ptune.data.prompt import default_target_length
from ptune.data.tokenizer import build_tokenizer
from ptune.device.full_memory import SMALLER_WEIGHTS, memory_advice
from ptune.device.precision import choose_device, choose_dtype, needs_loss_scale, wider_dtype
from ptune.errors import ConfigError, TrainingError
from ptune.files.lock import check_free, holding
from ptune.files.manifest import MANIFEST_FILE, write_manifest
from ptune.models.build import build_model
from ptune.parallel.heartbeat import signs_of_life
from ptune.parallel.processes import is_first_process, process_count
from ptune.quantization.layers import count_parameters, precision_of
from ptune.training.arguments import (
    check_loggers,
    check_warmup,
    total_steps,
    training_arguments,
)
from ptune.training.beginning import Beginning, begin, find_beginning
from ptune.training.checkpoints import Checkpoints, find_fault, newest_whole
from ptune.training.data import TrainingData, load_data
from ptune.training.distillation import Teacher, read_teacher_text
from ptune.training.finite_guard import FiniteGuard
from ptune.training.init_prefix import (
    build_init_prefix,
    check_init_prefix,
    digest_init_prefix,
    find_init_prefix,
)
from ptune.training.log import LOG_FILE, TrainLog
from ptune.training.loss_scale import LossScale
from ptune.training.micro_batch import MicroBatch
from ptune.training.output import (
    Start,
    check_not_beyond,
    check_same_base,
    check_same_inputs,
    find_start,
    output_folder,
    schedule_notice,
    settings_to_json,
)
from ptune.training.step_memory import describe_step
from ptune.training.stop_request import StopRequest, stop_on_signal
from ptune.training.summary import Reporter, TrainResult, TrainSummary
from ptune.training.together import together
from ptune.training.trainer import AdapterTrainer

BaseLoader = Callable[[BaseModel, TrainSettings, torch.device], Any]


@dataclass(frozen=True)
class _Run:
    """A run whose inputs are known and checked."""

    settings: TrainSettings
    method: Method
    base: BaseModel
    fingerprint: str
    data: TrainingData
    beginning: Beginning | None
    taught: list[int] | None  # ids of the text that is distilled
    output: Path
    start: Start
    max_steps: int
    pad_token_id: int
    notices: tuple[str, ...]


def load_base(base: BaseModel, settings: TrainSettings, device: torch.device) -> Any:
    """The frozen base model of a run."""
    dtype = choose_dtype(settings.dtype, device)
    bits, backend = settings.quantization_bit, settings.quantization_backend
    return build_model(base, dtype, device, bits, backend)


def train(
    settings: TrainSettings,
    reporter: Reporter,
    stop: StopRequest | None = None,
    load: BaseLoader = load_base,
) -> TrainResult:
    """Train a prefix; where the output holds a part of the same run, go on from there.

    Args:
        settings: all of them resolved.
        reporter: told of the start, of every step and of every log line.
        stop: by which somebody else than a signal may end the run, too.
        load: gives the base model; what trained on it before is replaced.

    Raises:
        PTuneError: what is wrong with model, data, settings or output.
    """
    with ExitStack() as stack:
        stack.enter_context(signs_of_life("the same command goes on from what is saved"))
        run = _prepare(settings)
        if run.start.finished:
            early = run.start.step < run.max_steps
            noun = run.method.noun
            return TrainResult(
                run.output, run.output, run.start.step, before=True, early=early, noun=noun
            )
        if is_first_process():
            stack.enter_context(holding(run.output, "training"))
            if newest_whole(run.output)[0] != run.start.checkpoint:
                raise ConfigError(
                    f"output {run.output} was changed by another training in the meantime; "
                    "give the same command again"
                )
        return _train(run, reporter, stop or StopRequest(reporter.noticed, process_count()), load)


def _prepare(settings: TrainSettings) -> _Run:
    """Look at everything but the weights, which come last: they may be a long download."""
    settings, of_init_prefix = find_init_prefix(settings)
    first = settings.init_prefix[0] if settings.init_prefix else None
    asked = (settings.model, first, settings.prompt_format)
    base = find_base(*asked, weights=False)
    check_init_prefix(settings, base)
    settings = resolve_for(base, settings)
    assert settings.max_target_length is not None
    answer = Answer("max_target_length", settings.max_target_length)
    check_context(base.config, base.name, settings.max_source_length, answer)
    tokenizer, notices = build_tokenizer(base), list(of_init_prefix)
    early = load_data(settings, tokenizer, base.generation) if settings.init_data else None
    records = early.train if early else None
    settings, beginning = find_beginning(settings, tokenizer, base, records, notices)
    output = output_folder(base, settings)
    start = find_start(output, settings, base.generation.value)
    if is_first_process():
        check_free(output, "training")
    check_loggers(settings.report_to)
    method_of(settings.method).require()
    choose_dtype(settings.dtype, choose_device(settings.device))
    data = early or load_data(settings, tokenizer, base.generation)
    if settings.init_prefix:
        data.inputs["init_prefix"] = digest_init_prefix(settings.init_prefix)
    if beginning is not None:
        data.inputs["beginning"] = beginning.digest
        notices += [beginning.notice] if start.checkpoint is None else []
    taught = None
    if settings.distill_text is not None:
        longest = max(data.train["length"][:])
        taught = read_teacher_text(settings.distill_text, tokenizer, base, longest, notices)
        data.inputs["distilled"] = digest_ids(taught)
    check_same_inputs(start, data.inputs, settings)
    max_steps = total_steps(settings, len(data.train))
    check_warmup(settings, max_steps)
    check_not_beyond(start, max_steps)
    base = find_base(*asked)
    of_base = fingerprint(base)
    check_same_base(start, base, of_base, settings)
    return _Run(
        settings=settings,
        method=method_of(settings.method),
        base=base,
        fingerprint=of_base,
        data=data,
        beginning=beginning,
        taught=taught,
        output=output,
        start=start,
        max_steps=max_steps,
        pad_token_id=tokenizer.pad_token_id,
        notices=(*notices, *start.notices),
    )


def _train(run: _Run, reporter: Reporter, stop: StopRequest, load: BaseLoader) -> TrainResult:
    settings, start = run.settings, run.start
    device = choose_device(settings.device)
    if settings.deterministic:
        _compute_deterministically()
    model = _load(run, device, load)
    trainer = _trainer(run, model, stop, reporter)
    if trainer.args.should_save:
        trainer.checkpoints.check_room()
    advice = "a smaller --micro-batch-size, --gradient-checkpointing, or shorter lengths"
    resumed = str(start.checkpoint) if start.checkpoint else None
    read = {"base model": run.fingerprint, "data": run.data.inputs}
    joined = together(settings, read, start, run.output, trainer.accelerator)
    with stop_on_signal(stop), memory_advice(advice), joined:
        if resumed and trainer.args.should_save:
            # What is finished would be taken for the newest if this run is stopped in its turn.
            for name in (*run.method.files, MANIFEST_FILE):
                (run.output / name).unlink(missing_ok=True)
        reporter.started(_summary(run, trainer))
        for notice in _notices(run, trainer):
            reporter.noticed(notice)
        try:
            trainer.train(resume_from_checkpoint=resumed)
            result = _finish(run, trainer, stop)
        except OSError as error:
            raise TrainingError(
                f"output {run.output} cannot be written ({error.strerror or error}); make room or "
                "mend it, then give the same command again"
            ) from error
    return result


def _compute_deterministically() -> None:
    """Let torch use deterministic algorithms alone; comes before the first product on a card."""
    # Without it cuBLAS refuses; it is read when the first product makes cuBLAS's handle.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def _load(run: _Run, device: torch.device, load: BaseLoader) -> Any:
    """The frozen base with its prefix, ready to be trained."""
    settings = run.settings
    with memory_advice(SMALLER_WEIGHTS):
        model = load(run.base, settings, device)
    smaller = "a lower rank" if settings.method == LORA else "a shorter prefix"
    with memory_advice(smaller):
        _attach(model, run)
    if settings.gradient_checkpointing:
        with warnings.catch_warnings():
            # Newer releases have it under another name, and say so to the user.
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def _notices(run: _Run, trainer: AdapterTrainer) -> Iterator[str]:
    """What somebody may not expect of the run that begins."""
    settings, start, records = run.settings, run.start, len(run.data.train)
    yield from run.notices
    if notice := schedule_notice(start, settings, run.max_steps):
        yield notice
    before = start.metadata.environment if start.metadata else {}
    now = trainer.metadata.environment
    for name in sorted(before.keys() & now.keys()):
        if before[name] != now[name]:
            yield (
                f"the run goes on with {name} {now[name]}, it had {before[name]} before; "
                "the last digits of its numbers may differ"
            )
    if has_prefix(run.base) and not (settings.init_prefix or start.checkpoint):
        advice = f"; --init-prefix {run.base.path} starts from it"
        if not settings.takes_init_prefix:
            advice = "; a LoRA stands beside the weights alone" * (settings.method == LORA)
        yield (
            f"training starts from a new {run.method.noun}, not from the prefix that "
            f"{run.base.name} holds{advice}"
        )
    if settings.batch_size < process_count():
        yield (
            f"batch_size {settings.batch_size:,} is less than a record for each of "
            f"{process_count():,} processes; those without one wait for the others"
        )
    if settings.batch_size > records:
        yield (
            f"batch_size {settings.batch_size:,} is more than the {records:,} records; "
            "a step sees each of them once"
        )


def resolve_for(base: BaseModel, settings: TrainSettings) -> TrainSettings:
    """Fill in what depends on the generation, paths made absolute."""
    target = settings.max_target_length or default_target_length(base.generation)
    return dataclasses.replace(
        settings,
        max_target_length=target,
        data=tuple(path.absolute() for path in settings.data),
        eval_data=tuple(path.absolute() for path in settings.eval_data),
    )


def _attach(model: Any, run: _Run) -> None:
    settings = run.settings
    if settings.init_prefix:
        shape = model.base_model.prefix_shape
        attach_prefix(model, build_init_prefix(shape, settings, run.base))
        return
    set_seed(settings.seed)
    run.method.attach(model, settings)
    if run.beginning is not None and run.start.checkpoint is None:
        begin(model.base_model.prefix_encoder, run.beginning, model)


def _trainer(run: _Run, model: Any, stop: StopRequest, reporter: Reporter) -> AdapterTrainer:
    settings, data = run.settings, run.data
    arguments = training_arguments(settings, run.output, model.device)
    step = describe_step(settings, run.base, model, max(data.train["length"][:]))
    rows = arguments.per_device_train_batch_size
    micro_batch = MicroBatch(
        settings.micro_batch or step.first_micro_batch(rows, model.device),
        auto=settings.micro_batch is None,
        savings=step.savings,
        notify=reporter.noticed,
    )
    log = TrainLog(run.output / LOG_FILE, len(data.train), reporter)
    scale = LossScale() if needs_loss_scale(model.dtype) else None
    guard = FiniteGuard(log, scale)
    trained_bytes = sum(p.numel() * p.element_size() for _, p in run.method.parameters(model))
    trainer = AdapterTrainer(
        model=model,
        args=arguments,
        train_dataset=data.train,
        eval_dataset=data.dev,
        settings=settings,
        method=run.method,
        metadata=_metadata(run, model),
        checkpoints=Checkpoints(
            run.output, settings.save_total_limit, trained_bytes, run.method.files
        ),
        stop=stop,
        pad_token_id=run.pad_token_id,
        micro_batch=micro_batch,
        guard=guard,
        teacher=Teacher(model, run.taught) if run.taught is not None else None,
        callbacks=[log, guard, stop, *([scale] if scale else [])],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _metadata(run: _Run, model: Any) -> CheckpointConfig:
    base = run.base
    name = str(base.path.absolute()) if Path(base.name).is_dir() else base.name
    device = model.device
    on = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return CheckpointConfig(
        base_model=name,
        fingerprint=run.fingerprint,
        prompt_format=base.generation.value,
        method=run.method.name,
        **run.method.describe(model),
        settings=settings_to_json(run.settings),
        inputs=run.data.inputs,
        example_questions=[dataclasses.asdict(question) for question in run.data.questions],
        environment={
            "ptune": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "device": on,
            "precision": precision_of(model),
            "processes": process_count(),
        },
    )


def _summary(run: _Run, trainer: AdapterTrainer) -> TrainSummary:
    model, settings, data = trainer.model, run.settings, run.data
    return TrainSummary(
        model=run.base.name,
        generation=run.base.generation,
        precision=precision_of(model),
        output=run.output,
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        parameters=count_parameters(model),
        records=len(data.train),
        dev_records=len(data.dev) if data.dev is not None else 0,
        skipped=data.skipped,
        notices=data.notices,
        truncation=data.truncation,
        batch_size=settings.batch_size,
        micro_batch_size=trainer.micro_batch.size,
        max_steps=run.max_steps,
        epochs=run.max_steps / math.ceil(len(data.train) / settings.batch_size),
        seed=settings.seed,
        environment=trainer.metadata.environment,
        resumed_from=run.start.checkpoint,
    )


def _finish(run: _Run, trainer: AdapterTrainer, stop: StopRequest) -> TrainResult:
    """Save the result at the top of the output, unless the run is to go on later."""
    state, guard, output = trainer.state, trainer.guard, run.output
    if guard.gave_up or trainer.withheld == state.global_step:
        wider = wider_dtype(trainer.model.dtype, trainer.model.device)
        raise guard.error(state.global_step, newest_whole(output)[0], wider)
    ended = state.global_step >= state.max_steps or trainer.stopped_early()
    if ended and not stop.agreed and trainer.evaluation_is_due():
        trainer.evaluate()
    if stop.agreed and (not ended or trainer.evaluation_is_due()):
        last = newest_whole(output)[0] or output
        by = None if stop.given_up else stop.signal or signal.SIGTERM
        return TrainResult(output, last, state.global_step, by, given_up=stop.given_up)
    guard.check_end()
    best = _take_best(trainer, output) if run.settings.load_best else None
    if trainer.args.should_save:
        trainer.save_model(str(output))
        write_manifest(output, [*run.method.files, CONFIG_FILE], step=best or state.global_step)
    early = state.global_step < state.max_steps
    noun = run.method.noun
    return TrainResult(output, output, state.global_step, best_step=best, early=early, noun=noun)


def _take_best(trainer: AdapterTrainer, output: Path) -> int | None:
    """Take the values of the lowest eval_loss; returns their step, or None for the last."""
    best: int | None = trainer.state.best_global_step
    if best is None or best == trainer.state.global_step:
        return None
    folder = output / f"checkpoint-{best}"
    fault = find_fault(folder) if folder.is_dir() else "is not there"
    if fault is not None:
        trainer.guard.log.reporter.noticed(
            f"{folder}, of the lowest eval_loss, {fault}; "
            f"the finished {trainer.method.noun} is the last"
        )
        return None
    trainer.method.restore(trainer.model, folder)
    return best
