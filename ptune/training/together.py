"""A run of several processes: that all do the same, and that each is there until all are done."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ptune import __version__
from ptune.config.settings import TrainSettings
from ptune.errors import TrainingError
from ptune.files.json_text import to_json
from ptune.files.lock import LOCK_FILE
from ptune.parallel.processes import process_count
from ptune.parallel.sums import check_same
from ptune.training.output import BY_CONTENTS, Start, settings_to_json

# What may differ from process to process.
_OWN = {"gpus", "processes", "device", "micro_batch_size", "quantization_backend"}
_OWN |= {"resume", "fresh", "report_to"}
_GLOO_LETS_GO = 0.5  # seconds; a millisecond will do on a machine that is not busy


@contextmanager
def together(
    settings: TrainSettings,
    contents: Mapping[str, Any],
    start: Start,
    output: Path,
    accelerator: Any,
) -> Iterator[None]:
    """Compare what the processes are about to do, and stay together while they do it.

    Args:
        settings: of the run.
        contents: what was read, by what it is, as JSON has it.
        start: from where the run goes on.
        output: of the run.
        accelerator: of the trainer.

    Raises:
        ConfigError: a process has other settings or files.
        TrainingError: another process is gone.
    """
    if process_count() == 1:
        yield
        return
    asked = settings_to_json(settings)
    same = {name: asked[name] for name in sorted(asked.keys() - BY_CONTENTS - _OWN)}
    begin = f"{start.checkpoint.name if start.checkpoint else 'beginning'} in {output}"
    # The first has locked the folder, which all should see.
    same |= {f"folder {output}": (output / LOCK_FILE).is_file(), begin: start.step}
    same |= {**contents, "version of ptune": __version__}
    check_same({name: to_json(value) for name, value in same.items()}, accelerator.device)
    try:
        yield
        # Several processes leave together.  gloo's threads take Python's lock to let go of the last
        # tensors; whoever frees the process group before holds that lock and waits for the threads.
        accelerator.wait_for_everyone()
        time.sleep(_GLOO_LETS_GO)
        accelerator.end_training()
    except RuntimeError as error:
        if not _lost_a_process(error):
            raise
        raise TrainingError(
            "another process of this run has ended or cannot be reached; see what it said, then "
            f"give the same command again: it goes on from the newest checkpoint in {output}"
        ) from error


def _lost_a_process(error: RuntimeError) -> bool:
    """Whether an error is of the connection between processes, as gloo and NCCL put it."""
    of_torch = isinstance(error, torch.distributed.DistError)
    return of_torch or any(word in str(error) for word in ("gloo", "NCCL", "Connection closed"))
