"""Locks on output folders."""

import signal
import subprocess
import sys

import pytest

from ptune.errors import ConfigError
from ptune.files.lock import check_free, holding

HOLD = """
import sys, time
from pathlib import Path
from ptune.files.lock import holding
with holding(Path(sys.argv[1]), "training"):
    print("held", flush=True)
    time.sleep(600)
"""
BUSY = r"^another training writes into .*; wait for its end, or pass another --output$"


def test_a_second_one_is_refused_and_a_later_one_is_not(tmp_path):
    output = tmp_path / "new" / "out"
    check_free(output, "training")
    assert not output.exists()
    with holding(output, "evaluation"):
        with pytest.raises(ConfigError, match=BUSY), holding(output, "training"):
            pass
        with pytest.raises(ConfigError, match=BUSY):
            check_free(output, "training")
    check_free(output, "training")
    with holding(output, "training"):
        pass


def test_a_dead_process_holds_nothing(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout.readline().strip() == b"held"
    with pytest.raises(ConfigError, match=BUSY):
        check_free(tmp_path, "training")
    process.send_signal(signal.SIGKILL)
    process.wait()
    check_free(tmp_path, "training")


def test_what_is_half_written_is_cleared_away_by_who_writes(tmp_path):
    with holding(tmp_path, "training"):
        half = tmp_path / ".a.json.0123abcd.partial"
        half.touch()
    check_free(tmp_path, "training")
    assert half.exists()
    with holding(tmp_path, "training"):
        assert not half.exists()


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    message = r"^output .*out cannot be written \(Not a directory\); mend that, or pass another"
    with pytest.raises(ConfigError, match=message), holding(tmp_path / "file" / "out", "training"):
        pass
