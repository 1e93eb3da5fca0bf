"""Processes of a run tell each other that they are there; who waits for one that is gone ends.

A collective operation waits for all processes: of gloo and NCCL for half an hour, if a process
hangs or its machine is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from types import TracebackType
from typing import Any

import psutil
from torch.distributed import DistError, PrefixStore, TCPStore  # type: ignore[attr-defined]

from ptune.errors import ConfigError
from ptune.files.json_text import to_json
from ptune.parallel.processes import process_count, process_number

_EVERY = 1.0  # seconds
_MOST_SILENCE = 20.0  # seconds; far more than a busy machine takes to let a thread run
_MOST_LATE = 180.0  # seconds until the first sign, for a process whose Python starts slowly
_TO_SPEAK = 5.0  # seconds in which all say the same, if they fail for one reason
_LEFT, _FAILED = b"left", b"failed"


def connect(name: str, timeout: timedelta) -> Any:
    """A connection to the store that the processes have in common.

    Args:
        name: of what is kept there.
        timeout: for whatever is waited for.

    Raises:
        ConfigError: nothing in the environment says where it is.
    """
    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"the environment says WORLD_SIZE {process_count()}, and not where the other processes "
            "are (MASTER_ADDR, MASTER_PORT); unset it, or start them with torchrun"
        ) from error
    # Without torchrun's agent, as under SLURM, the first process keeps it: one for all purposes.
    keeps = process_number() == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store = TCPStore(
        host,
        port,
        is_master=keeps,
        timeout=timeout,
        wait_for_workers=False,
        multi_tenant=True,
    )
    return PrefixStore(name, store)


def _end(reason: str) -> None:
    """End this process, whose main thread may be in an operation that nothing interrupts."""
    print(f"error: {reason}", file=sys.stderr, flush=True)
    os._exit(1)


def signs_of_life(advice: str) -> AbstractContextManager[object]:
    """A heartbeat where there are several processes, for a block; else nothing.

    Args:
        advice: for whoever reads why a process has ended.
    """
    return Heartbeat(advice) if process_count() > 1 else nullcontext()


class Heartbeat:
    """While it is open, ends this process when another has failed or gives no sign of life.

    Args:
        advice: for whoever reads why it has ended.
        end: is given the reason.
        every: seconds between two signs of life.
        most_silence: seconds without one.
        most_late: seconds until the first.
        to_speak: seconds that this process has to fail by itself when another has.

    Raises:
        torch.distributed.DistError: the processes cannot be reached.
    """

    def __init__(
        self,
        advice: str,
        end: Callable[[str], None] = _end,
        every: float = _EVERY,
        most_silence: float = _MOST_SILENCE,
        most_late: float = _MOST_LATE,
        to_speak: float = _TO_SPEAK,
    ) -> None:
        self._advice = advice
        self._end = end
        self._every = every
        self._most_silence = most_silence
        self._most_late = most_late
        self._to_speak = to_speak
        self._over = threading.Event()
        # Of its own: that of the process group may be waiting for something.
        self._store = connect("ptune-heartbeat", timedelta(seconds=most_silence))
        self._own = str(process_number())
        self._thread = threading.Thread(target=self._run, name="ptune-heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        """Begin."""
        own = psutil.Process()
        self._store.set(f"{self._own} id", to_json([own.pid, own.create_time()]))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Be silent from now on, which the others are told, and wait for nobody."""
        self._over.set()
        self._thread.join()
        with contextlib.suppress(RuntimeError):
            self._store.set(self._own, _FAILED if error else _LEFT)

    def _run(self) -> None:
        began = last = time.monotonic()
        signs = {str(number): (b"", began) for number in range(process_count())}
        del signs[self._own]
        beat = 0
        while not self._over.wait(self._every):
            try:
                beat += 1
                self._store.set(self._own, str(beat))
                heard = [name for name in signs if self._store.check([name])]
                found = {name: self._store.get(name) for name in heard}
            except (RuntimeError, DistError):
                if not self._over.is_set():
                    self._end(
                        "the store of torchrun cannot be reached: who has started this process "
                        f"is gone, or its machine; {self._advice}"
                    )
                return
            now = time.monotonic()
            if now - last > self._most_silence / 2:  # it was this process that was halted
                signs = {name: (value, now) for name, (value, _) in signs.items()}
            last = now
            for name, value in found.items():
                if value != signs[name][0]:
                    signs[name] = value, now
            for name, (value, at) in signs.items():
                if (reason := self._reason(value, now - at)) and not self._over.is_set():
                    self._kill_sibling(name)
                    self._end(f"process {name} of {process_count()} {reason}; {self._advice}")
                    return

    def _reason(self, sign: bytes, seconds: float) -> str | None:
        """Why not to wait any longer for a process whose last sign of life is so old."""
        if sign == _LEFT:
            return None
        if sign == _FAILED:
            return "has failed; see what it said" if seconds > self._to_speak else None
        if sign == b"":
            late = f"has not begun within {self._most_late:g} seconds; see what it said"
            return late if seconds > self._most_late else None
        silent = (
            f"has given no sign of life for {self._most_silence:g} seconds (it hangs, or its "
            "machine is gone)"
        )
        return silent if seconds > self._most_silence else None

    def _kill_sibling(self, name: str) -> None:
        """End a process that the same torchrun has started, which would wait for it."""
        if not self._store.check([f"{name} id"]):
            return
        number, began = json.loads(self._store.get(f"{name} id"))
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(number)
            if (process.ppid(), process.create_time()) == (os.getppid(), began):
                process.kill()
