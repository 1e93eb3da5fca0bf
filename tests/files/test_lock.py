"""Locks on folders."""

import signal
import subprocess
import sys

import pytest

from ptune.files.lock import locked

HOLD = """
import sys, time
from pathlib import Path
from ptune.files.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_one_is_refused_and_a_later_one_is_not(tmp_path):
    message = "in use by another process"
    with locked(tmp_path), pytest.raises(BlockingIOError, match=message), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_a_dead_process_holds_nothing(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout.readline().strip() == b"held"
    with pytest.raises(BlockingIOError), locked(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    with locked(tmp_path):
        pass
