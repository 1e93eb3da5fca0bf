"""The Ray Serve application: its settings, and, where Ray is installed, what try_it.py checks."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ptune.config.resolve import resolve
from ptune.config.settings import ServeSettings
from ptune.errors import ConfigError

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_serve"
RAY = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'ray[serve]'"
)


def test_its_settings_are_settings():
    config = yaml.safe_load((EXAMPLE / "serve_config.yaml").read_text(encoding="utf-8"))
    assert config["http_options"]["host"] == "127.0.0.1"
    (application,) = config["applications"]
    settings = resolve(ServeSettings, application["args"])
    assert [pair.partition("=")[0] for pair in settings.prefix] == ["ads", "qa"]
    (deployment,) = application["deployments"]
    assert deployment["max_ongoing_requests"] >= settings.max_slots
    assert deployment["max_ongoing_requests"] <= settings.max_slots + settings.max_queue


@RAY
@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"prefixes": ["a=/b"]}, "prefixes in args is no setting; see `ptune serve --help`"),
        ({"port": 1}, "port 1 in args has no effect; write it under http_options"),
        ({"host": "::1"}, "host ::1 in args has no effect; write it under http_options"),
        ({"prefix_folder": "/a"}, "prefix_folder /a in args has no effect; it would load a prefix"),
        ({"prefix": ["a=b"]}, "prefix b in args is no absolute path, and replicas run in folders"),
        ({"checkpoint": "c"}, "checkpoint c in args is no absolute path"),
        ({"max_slots": 0}, "max_slots 0"),
    ],
)
def test_refused(args, said, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLE)
    from deploy import application

    with pytest.raises(ConfigError, match=f"^{re.escape(said)}"):
        application({"model": "tiny"} | args)


@RAY
def test_what_the_readme_says():
    done = subprocess.run(
        [sys.executable, EXAMPLE / "try_it.py"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("all is as it should be\n")
