"""Ctrl-C during training: the run ends in good order, after the step at hand."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback


class StopRequest(TrainerCallback):  # type: ignore[misc]
    """Ends training after the current step, with a checkpoint; set by the first Ctrl-C."""

    def __init__(self) -> None:
        self.requested = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop if asked to."""
        if self.requested and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True


@contextmanager
def stop_on_interrupt(stop: StopRequest) -> Iterator[None]:
    """Let the first Ctrl-C end the run in good order; the second interrupts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def request(number: int, frame: Any) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True

    before = signal.signal(signal.SIGINT, request)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
