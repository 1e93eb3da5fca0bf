"""The thread that runs the engine of a server.

Every request that is accepted is told its end: by a finish, or by an error.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from ptune.device.full_memory import full_memory, is_out_of_memory
from ptune.errors import PTuneError
from ptune.generation.engine import Engine, Progress, Request

Receiver = Callable[[Progress], None]
Delivery = list[tuple[Receiver, Progress]]
_ENDING = "the server is shutting down"


def deliver_here(delivery: Delivery) -> None:
    """Call receivers in the thread of the engine."""
    for receive, progress in delivery:
        receive(progress)


class QueueFull(PTuneError):
    """As many requests wait as may."""


class Unavailable(PTuneError):
    """The server is shutting down, or its engine is dead."""


class Worker:
    """Runs an engine in a thread of its own.

    Args:
        engine: nobody else may use it.
        max_queue: requests that may wait for a slot.
        deliver: takes what a step gave, all receivers at once: a server's event loop is woken once
            a step, not once a token. It is called in the worker's thread and must not raise.
    """

    def __init__(
        self,
        engine: Engine,
        max_queue: int,
        deliver: Callable[[Delivery], None] = deliver_here,
    ) -> None:
        self._engine = engine
        self._max_queue = max_queue
        self.deliver = deliver
        self._receivers: dict[Request, Receiver] = {}
        self._added: deque[Request] = deque()
        self._cancelled: deque[Request] = deque()
        self._changed = threading.Condition()
        self._refusal: str | None = None
        self._deadline: float | None = None  # of those at work, when shutting down
        self._thread = threading.Thread(target=self._run, name="ptune-engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def refusal(self) -> str | None:
        """Why no request is accepted; None while they are."""
        return self._refusal

    @property
    def capacity(self) -> int:
        """Requests that are accepted at once, at work and waiting."""
        return self._engine.max_slots + self._max_queue

    @property
    def waiting(self) -> int:
        """Requests without a slot."""
        return self._engine.waiting + len(self._added)

    @property
    def running(self) -> int:
        """Requests with a slot."""
        return self._engine.running

    @property
    def alive(self) -> bool:
        """Whether requests are accepted, or some are still at work."""
        return self._refusal is None or self._thread.is_alive()

    def submit(self, request: Request, receive: Receiver) -> None:
        """Accept a request; from any thread.

        Args:
            request: for the engine.
            receive: is told of it, up to a finish or an error.

        Raises:
            RequestTooLong: it never fits the KV cache.
            QueueFull: as many wait as may.
            Unavailable: shutting down, or dead.
        """
        self._engine.check(request)
        with self._changed:
            if self._refusal is not None:
                raise Unavailable(self._refusal)
            if len(self._receivers) >= self.capacity:
                raise QueueFull(
                    f"{self._engine.max_slots} requests are at work and {self._max_queue} wait, "
                    "as many as may; try again later"
                )
            self._receivers[request] = receive
            self._added.append(request)
            self._changed.notify()

    def cancel(self, request: Request) -> None:
        """Drop a request, whose client has gone; it is told nothing more. From any thread."""
        with self._changed:
            if self._receivers.pop(request, None) is not None:
                self._cancelled.append(request)
                self._changed.notify()

    def close(self, grace: float) -> None:
        """Accept nothing more, and let what is at work finish; from any thread.

        Args:
            grace: seconds, after which the rest is ended with an error.
        """
        with self._changed:
            self._refusal = self._refusal or _ENDING
            self._deadline = time.monotonic() + grace
            self._changed.notify()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the thread to end after `close`; returns whether it has, if it ever began."""
        if self._thread.ident is None:  # closed before `start`, after which it ends at once
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while self._take_orders():
                if self._engine.busy:
                    self._tell(self._step())
        except Exception as error:  # the engine's state is unknown
            # Its text may name what clients should not see; it stands in the traceback below.
            reason = f"the engine has failed ({type(error).__name__})"
            with self._changed:
                self._refusal = reason
            self._end_all(reason)
            raise

    def _take_orders(self) -> bool:
        """Wait for something to do, and take in what came; returns whether to go on."""
        with self._changed:
            while not (self._added or self._cancelled or self._engine.busy):
                if self._deadline is not None:
                    return False
                self._changed.wait()
            added, cancelled = list(self._added), list(self._cancelled)
            self._added.clear()
            self._cancelled.clear()
            over = self._deadline is not None and time.monotonic() > self._deadline
        for request in added:
            self._engine.add(request)
        for request in cancelled:
            self._engine.cancel(request)
        if over:
            self._end_all(_ENDING)
            return False
        return True

    def _step(self) -> list[Progress]:
        try:
            return self._engine.step()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            full = full_memory("on the server", "a smaller --cache-memory or --max-slots")
            return [Progress(request, error=full) for request in self._engine.abort()]

    def _tell(self, steps: list[Progress]) -> None:
        delivery: Delivery = []
        with self._changed:
            for progress in steps:
                ended = progress.finish is not None or progress.error is not None
                find = self._receivers.pop if ended else self._receivers.get
                if (receive := find(progress.request, None)) is not None:
                    delivery.append((receive, progress))
        if delivery:
            self.deliver(delivery)

    def _end_all(self, reason: str) -> None:
        with self._changed:
            requests = list(self._receivers)
        self._tell([Progress(request, error=Unavailable(reason)) for request in requests])
