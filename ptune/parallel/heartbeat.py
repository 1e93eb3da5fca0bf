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
from datetime import timedelta
from types import TracebackType
from typing import Any

import psutil
from torch.distributed import DistError, PrefixStore, TCPStore  # type: ignore[attr-defined]

from ptune.parallel.processes import process_count, process_number

_EVERY = 1.0  # seconds
_MOST_SILENCE = 20.0  # seconds; far more than a busy machine takes to let a thread run


def connect(name: str, timeout: timedelta) -> Any:
    """A connection to the store that the processes have in common.

    Args:
        name: of what is kept there.
        timeout: for whatever is waited for.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return PrefixStore(name, TCPStore(host, port, is_master=False, timeout=timeout))


def _end(reason: str) -> None:
    """End this process, whose main thread may be in an operation that nothing interrupts."""
    print(f"error: {reason}", file=sys.stderr, flush=True)
    os._exit(1)


class Heartbeat:
    """While it is open, ends this process when another does not say that it is there.

    Args:
        advice: for whoever reads why it has ended.
        end: is given the reason.
        every: seconds between two signs of life.
        most_silence: seconds without one.

    Raises:
        torch.distributed.DistError: the processes cannot be reached.
    """

    def __init__(
        self,
        advice: str,
        end: Callable[[str], None] = _end,
        every: float = _EVERY,
        most_silence: float = _MOST_SILENCE,
    ) -> None:
        self._advice = advice
        self._end = end
        self._every = every
        self._most_silence = most_silence
        self._over = threading.Event()
        # Of its own: that of the process group may be waiting for something.
        self._store = connect("ptune-heartbeat", timedelta(seconds=most_silence))
        self._thread = threading.Thread(target=self._run, name="ptune-heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        """Begin."""
        own = psutil.Process()
        self._store.set(f"{process_number()} id", json.dumps([own.pid, own.create_time()]))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Be silent from now on, and wait for nobody."""
        self._over.set()
        self._thread.join()

    def _kill_sibling(self, name: str) -> None:
        """End a process that the same torchrun has started, which would wait for it."""
        if not self._store.check([f"{name} id"]):
            return
        number, began = json.loads(self._store.get(f"{name} id"))
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(number)
            if (process.ppid(), process.create_time()) == (os.getppid(), began):
                process.kill()

    def _run(self) -> None:
        own, others = str(process_number()), [str(n) for n in range(process_count())]
        others.remove(own)
        beat, seen = 0, {name: (b"", time.monotonic()) for name in others}
        last = time.monotonic()
        while not self._over.wait(self._every):
            try:
                beat += 1
                self._store.set(own, str(beat))
                heard = [name for name in others if self._store.check([name])]
                found = {name: self._store.get(name) for name in heard}
            except (RuntimeError, DistError) as error:
                if not self._over.is_set():
                    reason = str(error).strip().splitlines()[0]
                    self._end(f"the first process cannot be reached ({reason}); {self._advice}")
                return
            now = time.monotonic()
            if now - last > self._most_silence / 2:  # it was this process that was halted
                seen = {name: (value, now) for name, (value, _) in seen.items()}
            last = now
            for name, value in found.items():
                if value != seen[name][0]:
                    seen[name] = value, now
            silent = [name for name, (_, at) in seen.items() if now - at > self._most_silence]
            if silent and not self._over.is_set():
                for name in silent:
                    self._kill_sibling(name)
                self._end(
                    f"process {', '.join(silent)} of {process_count()} has given no sign of life "
                    f"for {self._most_silence:g} seconds (it hangs, or its machine is gone); "
                    f"{self._advice}"
                )
                return
