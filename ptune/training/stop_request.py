"""Ctrl-C and its like during training: the run ends in good order, after the step at hand."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback

from ptune.parallel.processes import END_SIGNALS


class EvaluationStopped(Exception):
    """An evaluation is given up because the run is to end."""


class StopRequest(TrainerCallback):  # type: ignore[misc]
    """Ends training after the current step, with a checkpoint.

    Args:
        notify: told, between two micro-batches, that the request was heard.
        processes: of the run; several end after the same step, which they have to agree upon.

    Attributes:
        signal: the number of the signal that asked for it; None while nobody has.
        given_up: whether whoever watches the run has asked for it.
    """

    def __init__(self, notify: Callable[[str], None], processes: int = 1) -> None:
        self.notify = notify
        self.processes = processes
        self.signal: int | None = None
        self.given_up = False
        self._agreed = False
        self._told = False

    @property
    def requested(self) -> bool:
        """Whether this process was asked to end."""
        return self.signal is not None or self.given_up

    @property
    def agreed(self) -> bool:
        """Whether the run is to end after this step."""
        return self._agreed or (self.processes == 1 and self.requested)

    def agree(self) -> None:
        """All processes know now that one of them was asked to end."""
        self._agreed = True

    def poll(self) -> bool:
        """Whether to end; tells the user, which the handler must not: it may interrupt a print."""
        if self.signal is not None and not self._told:
            self._told = True
            name = signal.Signals(self.signal).name
            self.notify(f"{name}: saving after this step, then the run ends; again ends it at once")
        return self.requested

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop if asked to."""
        if self.agreed and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True


@contextmanager
def stop_on_signal(stop: StopRequest) -> Iterator[None]:
    """Let the first signal end the run in good order; the second interrupts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def request(number: int, frame: Any) -> None:
        if stop.signal is not None:
            raise KeyboardInterrupt
        stop.signal = number

    before = {}
    for number in END_SIGNALS:
        # Whoever started us with `nohup` wants a closed terminal to be ignored.
        if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, request)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
