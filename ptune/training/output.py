"""The output folder of a training: its name, and from where a run in it goes on."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptune.base.folder import BaseModel
from ptune.checkpoint.folder import PREFIX_FILE, numbered_checkpoints, step_of, trained_file
from ptune.checkpoint.metadata import NOUNS, CheckpointConfig
from ptune.checkpoint.method import method_of
from ptune.config.declaration import declared
from ptune.config.settings import TrainSettings
from ptune.config.shared_settings import LORA, P_TUNING
from ptune.errors import CheckpointError, ConfigError
from ptune.files.json_object import read_json_object
from ptune.files.manifest import MANIFEST_FILE, find_damage, read_manifest
from ptune.files.names import stem
from ptune.training.checkpoints import STATE_FILE, evaluations_since_best, newest_whole
from ptune.training.log import LOG_FILE, check_own_log

# Settings that a run may change on its way without becoming another one.
_FREE = {
    *("resume", "fresh", "output", "device", "dtype", "micro_batch_size", "deterministic"),
    *("gradient_checkpointing", "quantization_backend", "max_steps", "epochs", "report_to"),
    *("save_steps", "save_total_limit", "logging_steps", "eval_steps", "example_questions"),
    *("early_stopping", "load_best", "gpus", "processes"),
}
# What is compared by contents: see `check_same_inputs`.
BY_CONTENTS = {
    *("model", "data", "eval_data", "init_prefix", "skip_bad_records"),
    *("init_text", "init_text_file", "init_data", "distill_text"),
    *("prompt_column", "response_column", "history_column", "context_column"),
}


@dataclass(frozen=True)
class Start:
    """From where a run begins.

    Attributes:
        step: optimizer steps that are done.
        checkpoint: to go on from; None for a new run.
        metadata: of what is there.
        max_steps: that the run had when it was saved.
        idle_evaluations: those since the one of the lowest eval_loss.
        finished: whether the very same run has ended, and its prefix is at the top of the output.
        notices: what the user should know.
    """

    step: int = 0
    checkpoint: Path | None = None
    metadata: CheckpointConfig | None = None
    max_steps: int = 0
    idle_evaluations: int = 0
    finished: bool = False
    notices: tuple[str, ...] = ()


def output_folder(base: BaseModel, settings: TrainSettings) -> Path:
    """The folder of --output, or one named after data, model, length and learning rate.

    With --fresh, the first one of that name and a number that does not exist yet.

    Raises:
        ConfigError: it is the root of the file system.
    """
    output = settings.output
    if output is None:
        names = (stem(settings.data[0]), Path(base.name).name)
        kind = f"pt-{settings.pre_seq_len}"
        if settings.method == LORA:
            kind = f"lora-{settings.lora_rank}"
        name = f"{'-'.join(names)}-{kind}-{settings.learning_rate:g}"
        output = Path("output") / name
    if not settings.fresh:
        return output
    named = output if output.name not in ("", "..") else Path(os.path.abspath(output))
    if not named.name:
        raise ConfigError(f"output {output} has no folder beside it; pass another --output")
    number, beside = 1, named
    while os.path.lexists(beside):
        number += 1
        beside = named.with_name(f"{named.name}-{number}")
    return beside


def find_start(output: Path, settings: TrainSettings, prompt_format: str) -> Start:
    """Find the checkpoint from which a run in `output` goes on.

    Args:
        output: of this run.
        settings: of this run; those of the checkpoint must be the same.
        prompt_format: of the base model, by whatever it is known.

    Raises:
        ConfigError: a file, a training that cannot be gone on with, or other settings than then.
        CheckpointError: what is there was written by another program, or is damaged.
    """
    try:
        taken = output.exists() and not output.is_dir()
    except OSError as error:  # a name that is too long, say
        raise ConfigError(
            f"output {output} cannot be used ({error.strerror}); pass another --output"
        ) from error
    if taken:
        raise ConfigError(f"output {output} is a file; pass a folder with --output")
    last, damaged = newest_whole(output)
    if last is None:
        if (finished := _find_finished(output, settings, prompt_format)) is not None:
            return finished
        _check_empty(output, damaged, settings)
        check_own_log(output / LOG_FILE)
        if settings.resume:
            raise ConfigError(
                f"nothing to resume in {output} (no finished checkpoint-N); "
                "train without --resume, or pass the --output of the run to resume"
            )
        return Start()
    metadata = CheckpointConfig.read(last)
    assert metadata is not None  # its manifest has it
    _check_same_settings(last, metadata, settings, prompt_format)
    _check_own_top(output, metadata)
    at_top = find_damage(output)
    notices = [f"{said}; going on from {last.name}" for said in damaged]
    if at_top is not None:
        notices.append(f"{output} {at_top}; it is written again")
    state = _read_state(last)
    return Start(
        step=step_of(last) or 0,
        checkpoint=last,
        metadata=metadata,
        max_steps=int(state["max_steps"]),
        idle_evaluations=evaluations_since_best(state["log_history"], state["best_global_step"]),
        finished=at_top is None and _is_finished(output, settings),
        notices=tuple(notices),
    )


def _find_finished(output: Path, settings: TrainSettings, prompt_format: str) -> Start | None:
    """A finished run whose checkpoints somebody has removed."""
    manifest = read_manifest(output)
    if manifest is None or find_damage(output) is not None or not _is_finished(output, settings):
        return None
    metadata = CheckpointConfig.read(output)
    assert metadata is not None
    _check_same_settings(output, metadata, settings, prompt_format)
    return Start(int(manifest["step"]), metadata=metadata, finished=True)


def _check_own_top(output: Path, metadata: CheckpointConfig) -> None:
    """Refuse to write over a result at the top of an output that is not of the run in it."""
    if (there := trained_file(output)) is None:
        return
    own = (output / MANIFEST_FILE).is_file()  # of a damaged config, nothing more is known
    with contextlib.suppress(CheckpointError):
        found = CheckpointConfig.read(output)
        own = found is not None and (
            (found.inputs, found.fingerprint) == (metadata.inputs, metadata.fingerprint)
            and not changed_settings(metadata.settings, found.settings)
        )
    if not own:
        raise ConfigError(
            f"{there} is not of the training in {output}, which would write over "
            "it; move it, or pass another --output"
        )


def _check_empty(output: Path, damaged: list[str], settings: TrainSettings) -> None:
    """Refuse a folder that holds checkpoints from which no run can go on."""
    beside = f"{settings.anew}, or pass another --output"
    if damaged:
        raise CheckpointError(f"no checkpoint in {output} is whole: {damaged[0]}; {beside}")
    if others := numbered_checkpoints(output):
        start = f"start from its prefix with --init-prefix {others[-1]} and --fresh, or "
        raise CheckpointError(
            f"{others[-1]} was not written by ptune and cannot be gone on from; "
            f"{start * settings.takes_init_prefix}{beside}"
        )
    if there := trained_file(output):
        noun = NOUNS[P_TUNING if there.name == PREFIX_FILE else LORA]
        raise ConfigError(
            f"output {output} holds a {noun} ({there.name}) and no checkpoint to go on from; "
            f"{beside}"
        )


def _is_finished(output: Path, settings: TrainSettings) -> bool:
    """Whether what is at the top of an output is what these settings end with."""
    parts = (*method_of(settings.method).files, MANIFEST_FILE)  # the manifest is written last
    there = all((output / name).is_file() for name in parts)
    metadata = CheckpointConfig.read(output) if there else None
    now = settings_to_json(settings)
    ends = ("max_steps", "epochs", "early_stopping", "load_best")
    return metadata is not None and all(metadata.settings.get(n) == now[n] for n in ends)


def _read_state(checkpoint: Path) -> dict[str, Any]:
    """What is needed of trainer_state.json; the manifest has vouched for it."""
    state = read_json_object(checkpoint / STATE_FILE)
    return {name: state[name] for name in ("max_steps", "log_history", "best_global_step")}


def changed_settings(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The settings that make another run, before and now."""
    return [
        f"{name} {before[name]!r} -> {now[name]!r}"
        for name in sorted(now.keys() & before.keys() - _FREE - BY_CONTENTS)
        if before[name] != now[name]
    ]


def _check_same_settings(
    checkpoint: Path, metadata: CheckpointConfig, settings: TrainSettings, prompt_format: str
) -> None:
    before = {"method": metadata.method} | metadata.settings
    before |= {"prompt_format": metadata.prompt_format}
    now = settings_to_json(settings) | {"prompt_format": prompt_format}
    if changed := changed_settings(before, now):
        raise ConfigError(
            f"settings differ from those of {checkpoint}: {'; '.join(changed)}; "
            f"use the same settings, or {settings.anew}"
        )


def check_same_inputs(start: Start, inputs: dict[str, Any], settings: TrainSettings) -> None:
    """Refuse to go on with other data, or from another prefix, than the run has begun with.

    Raises:
        ConfigError: naming what differs, both ways.
    """
    if start.metadata is None:
        return
    before = start.metadata.inputs
    for name, change in changed_inputs(before, inputs).items():
        # Development data may come later, or be left out: it decides nothing of what is learnt.
        if not (name == "eval_examples" and None in (before.get(name), inputs.get(name))):
            raise ConfigError(
                f"{name} differs from that of {start.checkpoint or 'the training there'}: "
                f"{change}; use the same, or {settings.anew}"
            )


def changed_inputs(before: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """The inputs that are not what they were, by name: `before -> now`, for people."""
    return {
        name: f"{_said(before.get(name))} -> {_said(now.get(name))}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    }


def _said(found: Any) -> str:
    """Contents as messages show them: a number of records, and the begin of a checksum."""
    if isinstance(found, dict):
        digest = str(found.get("sha256"))[:12]
        return f"{found.get('records')} records ({digest})"
    return "none" if found is None else str(found)[:12]


def check_same_base(
    start: Start, base: BaseModel, fingerprint: str, settings: TrainSettings
) -> None:
    """Refuse to go on with another base model, whatever its name is.

    Raises:
        CheckpointError: naming both.
    """
    metadata = start.metadata
    if metadata and metadata.fingerprint != fingerprint:
        raise CheckpointError(
            f"{start.checkpoint or 'the training there'} was trained on {metadata.base_model} "
            f"(fingerprint {metadata.fingerprint[:12]}), and {base.name} is another model "
            f"({fingerprint[:12]}); use the same, or {settings.anew}"
        )


def check_not_beyond(start: Start, max_steps: int) -> None:
    """Refuse a run that is shorter than what is done of it.

    Raises:
        ConfigError: naming the step and the last one.
    """
    if start.step > max_steps:
        raise ConfigError(
            f"{start.checkpoint} is at step {start.step}, beyond step {max_steps}; train longer "
            "with a larger --max-steps or --epochs, or begin anew with --fresh"
        )


def schedule_notice(start: Start, settings: TrainSettings, max_steps: int) -> str | None:
    """What becomes of a run that is given another length than it had."""
    if start.checkpoint is None:
        return None
    if settings.early_stopping and start.idle_evaluations >= settings.early_stopping:
        return (
            f"the run was stopped early, after {start.idle_evaluations} evaluations without a "
            "lower eval_loss; a larger --early-stopping, or none, goes on with it"
        )
    if max_steps == start.max_steps:
        return None
    assert settings.learning_rate is not None  # filled in
    falling = max_steps - settings.warmup_steps
    rate = settings.learning_rate * min(1.0, (max_steps - start.step) / max(1, falling))
    if start.step < settings.warmup_steps:
        rate = settings.learning_rate * start.step / settings.warmup_steps
    return (
        f"the run has {max_steps:,} steps now, {start.max_steps:,} before: its learning rate goes "
        f"on at {rate:.3g} and falls to zero at step {max_steps:,}"
    )


def settings_to_json(settings: TrainSettings) -> dict[str, Any]:
    """The settings as JSON types, paths as text."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return {field.name: plain(getattr(settings, field.name)) for field in declared(settings)}
