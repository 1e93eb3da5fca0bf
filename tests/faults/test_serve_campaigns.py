"""Short forms of the campaigns on `ptune serve`; `make load stops malformed` runs them long."""

import json
import runpy
import sys
from pathlib import Path

import pytest


@pytest.fixture
def run(capfd, monkeypatch):
    """Run a campaign as `python tests/faults/SCRIPT.py` does; returns what it has found."""

    def run_one(name, *options):
        monkeypatch.setattr(sys, "argv", [name, *map(str, options)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(Path(__file__).with_name(name)), run_name="__main__")
        out, err = capfd.readouterr()
        assert out, err
        found = json.loads(out)
        assert (ended.value.code, found["wrong"]) == (0, []), found
        return found

    return run_one


def test_load(run):
    found = run("serve_load.py", "--requests", 150, "--questions", 35)
    cut = found["cut at a moment"] + found["cut in the stream"]
    assert found["answered"] + cut == 150 and cut > 15
    assert found["answers by end"]["client gone"] > 10


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGTERM")
def test_stops(run):
    found = run("serve_stops.py", "--stops", 2)
    assert found["refused by the address"] == 24  # every client, in the end


def test_malformed(run):
    found = run("serve_malformed.py", "--requests", 200)
    assert found["responses by status"]["200"] > 5
