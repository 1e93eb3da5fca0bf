"""Starting a command in several processes: torchrun's agent, in this process.

https://docs.pytorch.org/docs/stable/elastic/run.html
"""

from __future__ import annotations

import inspect
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ptune.config.declaration import shown
from ptune.config.number import parse_whole
from ptune.errors import ConfigError, PTuneError
from ptune.parallel.processes import END_SIGNALS

# The agent would end processes after 30 seconds, saved or not; older releases know no other way.
_SIGNALS: dict[str, Any] = {}
if "signals_to_handle" in inspect.signature(LaunchConfig).parameters:
    _SIGNALS["signals_to_handle"] = "SIGQUIT"


class ProcessFailed(PTuneError):
    """A process of several has failed; the first has said nothing of it."""


def wanted_processes(gpus: str | None, processes: int | None, device: str | None) -> int | None:
    """How many processes are asked for on this machine; None for this one alone.

    Args:
        gpus: a number of cards, or `all`.
        processes: on the CPU.
        device: that is asked for.

    Raises:
        ConfigError: there are not so many cards, or a device is named as well.
    """
    if gpus is None and processes is None:
        return None
    option = f"processes {processes}" if gpus is None else f"gpus {gpus}"
    if processes is not None:
        if device not in (None, "cpu"):
            raise ConfigError(
                f"{option} compute on the CPU, not on {device}; leave --device out, or pass "
                "--gpus N for N cards"
            )
        return processes
    assert gpus is not None
    if device is not None:
        raise ConfigError(f"{option} and device {device} exclude each other; leave one of them out")
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        wanted = there if gpus == "all" else parse_whole(gpus)
    except (ValueError, OverflowError):
        wanted = 0
    if wanted < 1 and gpus != "all":
        raise ConfigError(f"gpus {shown(gpus)} is no number of cards; use 1 or more, or all")
    if wanted > there or not there:
        raise ConfigError(
            f"gpus {gpus} are not there (torch {torch.__version__} sees {there} cards); "
            "use fewer, or --processes N on the CPU"
        )
    return wanted


def check_started(wanted: int | None) -> None:
    """See that a process that was started has as many beside it as it is told to start.

    Raises:
        ConfigError: torchrun was told another number.
    """
    there = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))
    if wanted is not None and wanted != there:
        raise ConfigError(
            f"torchrun has started {there} processes on this machine, and the options ask for "
            f"{wanted}; leave --gpus and --processes out"
        )


def launch(count: int, arguments: Sequence[str]) -> int:
    """Run `ptune` with these arguments in several processes of this machine, on a free port.

    The first speaks to the terminal, and is told of signals with the others.  When one fails the
    others are ended; what it said is shown if it is not the first.

    Args:
        count: of processes.
        arguments: of the command line, the command's name first.

    Returns:
        The exit status for this process.

    Raises:
        ProcessFailed: saying which, and how.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    # Each has its share of the cores, where torch would give each all of them.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // count)))
    with tempfile.TemporaryDirectory(prefix="ptune-") as folder, _forwarded_signals():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            run_id=f"ptune-{os.getpid()}",
            local_addr="127.0.0.1",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(folder, redirects=dict.fromkeys(range(1, count), Std.ALL)),
            **_SIGNALS,
        )
        try:
            elastic_launch(config, sys.executable)("-m", "ptune", *arguments)
        except ChildFailedError as error:
            return _tell(*error.get_first_failure(), Path(folder))
    return 0


@contextmanager
def _forwarded_signals() -> Iterator[None]:
    """Pass signals on to the processes, which end in their own order."""

    def forward(number: int, frame: Any) -> None:
        for child in psutil.Process().children():
            with suppress(psutil.Error):  # it has just ended
                child.send_signal(number)

    before = {number: signal.signal(number, forward) for number in END_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell(rank: int, failure: ProcessFailure, folder: Path) -> int:
    """Say how a process has failed; the first has said it itself unless a signal ended it."""
    if (killed := failure.exitcode < 0) or rank > 0:
        for file in sorted(folder.rglob("stderr.log")):
            said = file.read_text(encoding="utf-8", errors="replace").strip()
            if said and (killed or file.parent.name == str(failure.local_rank)):
                print(f"process {file.parent.name}: {said}", file=sys.stderr)
    if killed:
        raise ProcessFailed(
            f"process {rank} was ended by {signal.Signals(-failure.exitcode).name}, and so the "
            "others; give the same command again: it goes on from what is saved"
        )
    return int(failure.exitcode)
