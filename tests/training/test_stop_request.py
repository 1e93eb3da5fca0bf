"""Signals that end a training in good order."""

import os
import signal
from types import SimpleNamespace

import pytest

from ptune.training.stop_request import StopRequest, stop_on_signal


def after_step(stop, step=3, last=9):
    control = SimpleNamespace(should_save=False, should_training_stop=False)
    stop.on_step_end(None, SimpleNamespace(global_step=step, max_steps=last), control)
    return control.should_save, control.should_training_stop


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_first_signal_is_told_and_ends_the_run_after_the_step(number):
    said = []
    stop = StopRequest(said.append)
    with stop_on_signal(stop):
        assert not stop.poll() and after_step(stop) == (False, False)
        os.kill(os.getpid(), number)
        assert said == []  # a handler does not print
        assert stop.poll() and stop.poll() and stop.signal == number
        assert after_step(stop) == (True, True)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
            signal.pause()
    name = signal.Signals(number).name
    assert said == [f"{name}: saving after this step, then the run ends; again ends it at once"]


def test_given_up_by_whoever_watches():
    """Nobody is told, and a signal still ends the run in good order."""
    said = []
    stop = StopRequest(said.append)
    stop.given_up = True
    assert stop.poll() and after_step(stop) == (True, True)
    assert said == [] and stop.signal is None
    with stop_on_signal(stop):
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.signal == signal.SIGTERM


def test_nothing_to_stop_at_the_last_step():
    stop = StopRequest(print)
    stop.signal = signal.SIGTERM
    assert after_step(stop, step=9) == (False, False)


def test_several_processes_agree_first():
    stop = StopRequest(print, processes=2)
    stop.signal = signal.SIGTERM
    assert after_step(stop) == (False, False)
    stop.agree()
    assert after_step(stop) == (True, True)


def test_handlers_are_those_of_before():
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signal(StopRequest(print)):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_closed_terminal_that_is_ignored_stays_ignored(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signal(StopRequest(print)):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
