"""A short form of `kill_anywhere.py`; `make faults` runs it long."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("kill_anywhere.py")


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_the_same_command_again_ends_the_same():
    kills = {"train": 10, "eval": 3, "predict": 3, "merge": 4}
    command = [sys.executable, str(SCRIPT), "--seed", "5"]
    command += [word for name, number in kills.items() for word in (f"--{name}", str(number))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["campaign"]: line["kills"] for line in found} == kills, done.stderr
    assert [line["wrong"] for line in found] == [[]] * 4
    assert done.returncode == 0
    train = found[0]
    assert train["killed"] >= 7 and train["inside a save"] >= 3 and train["power lost"] >= 1
