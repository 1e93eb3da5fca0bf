"""A thread of its own for what computes before the engine does."""

import threading

import pytest

from ptune.device.compute_team import compute_apart


def test_runs_in_a_thread_that_ends_with_it() -> None:
    before = threading.active_count()
    assert compute_apart(threading.current_thread) is not threading.current_thread()
    assert threading.active_count() == before


def test_passes_errors_on() -> None:
    with pytest.raises(ZeroDivisionError):
        compute_apart(lambda: 1 / 0)
