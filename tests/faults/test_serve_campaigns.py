"""Short forms of the campaigns on `ptune serve`; `make load stops malformed` runs them long."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


def run(name, *options):
    command = [sys.executable, str(Path(__file__).with_name(name)), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert (done.returncode, found["wrong"]) == (0, []), found
    return found


def test_load():
    found = run("serve_load.py", "--requests", 150, "--questions", 35)
    cut = found["cut at a moment"] + found["cut in the stream"]
    assert found["answered"] + cut == 150 and cut > 15
    assert found["answers by end"]["client gone"] > 10


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGTERM")
def test_stops():
    found = run("serve_stops.py", "--stops", 1)
    assert found["refused by the address"] == 12  # every client, in the end


def test_malformed():
    found = run("serve_malformed.py", "--requests", 200)
    assert found["responses by status"]["200"] > 5
