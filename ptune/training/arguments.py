"""The arguments of `transformers.Trainer` for a run, and what of them is wrong."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch
from transformers import TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from ptune.config.declaration import shown
from ptune.config.settings import TrainSettings
from ptune.errors import ConfigError
from ptune.parallel.processes import process_count


def total_steps(settings: TrainSettings, records: int) -> int:
    """Optimizer steps of a run over so many records."""
    if settings.epochs is None:
        return settings.max_steps
    return math.ceil(settings.epochs * math.ceil(records / settings.batch_size))


def check_warmup(settings: TrainSettings, steps: int) -> None:
    """Refuse a warm-up that a run of so many steps does not see the end of.

    Raises:
        ConfigError: naming both numbers of steps.
    """
    if 0 < steps <= settings.warmup_steps:
        raise ConfigError(
            f"warmup_steps {settings.warmup_steps:,} leaves no step of {steps:,} at the peak rate; "
            "use fewer, or train longer with --max-steps or --epochs"
        )


def check_loggers(report_to: str) -> None:
    """Refuse loggers that are unknown or not installed.

    Raises:
        ConfigError: saying which.
    """
    if report_to not in (known := (*INTEGRATION_TO_CALLBACK, "all", "none")):
        raise ConfigError(f"report_to {shown(report_to)} is unknown; use one of {', '.join(known)}")
    try:
        for callback in get_reporting_integration_callbacks(report_to):
            callback()
    except (ImportError, RuntimeError, ValueError) as error:
        reason = str(error).rstrip(".")
        raise ConfigError(
            f"report_to {report_to!r} cannot be used ({reason}); install it, or use none"
        ) from error


def training_arguments(
    settings: TrainSettings, output: Path, device: torch.device
) -> TrainingArguments:
    """The library's arguments for a run.

    Args:
        settings: of the run.
        output: its folder.
        device: it computes on.
    """
    if device.type == "cuda":
        # How accelerate is told which card this process computes on.
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", str(device))
    world = process_count()
    arguments = TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=-(-settings.batch_size // world),  # see AdapterTrainer
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=settings.warmup_steps,
        max_steps=-1 if settings.epochs else settings.max_steps,
        num_train_epochs=settings.epochs or 1,
        optim="adamw_torch",
        use_cpu=device.type == "cpu",
        seed=settings.seed,
        save_steps=settings.save_steps,
        logging_steps=settings.logging_steps,
        logging_nan_inf_filter=False,  # it would show a loss that is not a number as 0.0
        eval_strategy="steps" if settings.evaluates else "no",
        eval_steps=settings.eval_steps or settings.save_steps,
        report_to=settings.report_to,
        remove_unused_columns=False,
        disable_tqdm=True,
        average_tokens_across_devices=False,  # the trainer adds losses up
        dataloader_pin_memory=device.type == "cuda",
    )
    if world == 1:
        arguments._n_gpu = min(arguments.n_gpu, 1)  # never torch.nn.DataParallel
    return arguments
