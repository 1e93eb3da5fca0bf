"""The output folder of a training: its name, checks before a run, and where to resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ptune.base.folder import BaseModel
from ptune.checkpoint.folder import PREFIX_FILE, numbered_checkpoints
from ptune.checkpoint.metadata import CheckpointConfig
from ptune.config.declaration import declared
from ptune.config.settings import TrainSettings
from ptune.errors import CheckpointError, ConfigError
from ptune.files.names import stem

# Settings that a resumed run may change without becoming another run.
_FREE_ON_RESUME = {
    *("resume", "output", "device", "dtype", "micro_batch_size", "gradient_checkpointing"),
    *("max_steps", "epochs", "save_steps", "save_total_limit", "logging_steps", "eval_steps"),
    *("eval_data", "report_to", "quantization_backend"),
}


def output_folder(base: BaseModel, settings: TrainSettings) -> Path:
    """The folder of --output, or one named after data, model, length and learning rate."""
    if settings.output is not None:
        return settings.output
    names = (stem(settings.data[0]), Path(base.name).name)
    return (
        Path("output") / f"{'-'.join(names)}-pt-{settings.pre_seq_len}-{settings.learning_rate:g}"
    )


def check_output(output: Path, settings: TrainSettings) -> Path | None:
    """Refuse to write over an earlier run; with --resume, find the checkpoint to resume.

    Raises:
        ConfigError: a file, an earlier training, nothing to resume, or other settings than then.
        CheckpointError: what is there was written by another program.
    """
    if output.exists() and not output.is_dir():
        raise ConfigError(f"output {output} is a file; pass a folder with --output")
    last = last_resumable(output)
    if not settings.resume:
        if last or (output / PREFIX_FILE).is_file():
            what = last.name if last else PREFIX_FILE
            raise ConfigError(
                f"output {output} already holds a training ({what}); "
                "resume it with --resume, or pass another --output"
            )
        return None
    if last is None:
        raise ConfigError(
            f"nothing to resume in {output} (no finished checkpoint-N); "
            "train without --resume, or pass the --output of the run to resume"
        )
    _check_same_run(last, settings)
    return last


def check_unfinished(checkpoint: Path | None, max_steps: int) -> None:
    """Refuse to resume a run that has no step left: the library would train one more.

    Raises:
        ConfigError: naming the step and the last one.
    """
    done = int(checkpoint.name.removeprefix("checkpoint-")) if checkpoint else 0
    if checkpoint and done >= max_steps:
        raise ConfigError(
            f"{checkpoint} is at step {done} of {max_steps}, nothing is left to train; "
            "resume with a larger --max-steps or --epochs"
        )


def _check_same_run(checkpoint: Path, settings: TrainSettings) -> None:
    metadata = CheckpointConfig.read(checkpoint)
    if metadata is None:
        raise CheckpointError(
            f"{checkpoint} was not written by ptune and cannot be resumed; "
            f"start from its prefix with --init-prefix {checkpoint}"
        )
    now = settings_to_json(settings)
    changed = [
        f"{name} {metadata.settings[name]!r} -> {now[name]!r}"
        for name in sorted(now.keys() & metadata.settings.keys() - _FREE_ON_RESUME)
        if metadata.settings[name] != now[name]
    ]
    if changed:
        raise ConfigError(
            f"settings differ from those of {checkpoint}: {'; '.join(changed)}; "
            "use the same settings, or another --output with --init-prefix"
        )


def settings_to_json(settings: TrainSettings) -> dict[str, Any]:
    """The settings as JSON types, paths as text."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return {field.name: plain(getattr(settings, field.name)) for field in declared(settings)}


def last_resumable(output: Path) -> Path | None:
    """The newest checkpoint of an output folder that was saved completely."""
    finished = [p for p in numbered_checkpoints(output) if (p / "trainer_state.json").is_file()]
    return finished[-1] if finished else None
