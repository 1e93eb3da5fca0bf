"""`~` in a path."""

from pathlib import Path

import pytest

from ptune.errors import ConfigError
from ptune.files.home import expand_home


def test_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_home(Path("~/a/b"), "data") == tmp_path / "a" / "b"
    assert expand_home(Path("~"), "data") == tmp_path
    for path in (Path("a/~/b"), Path("/a"), Path("b~")):
        assert expand_home(path, "data") == path


def test_home_of_nobody():
    message = "^data ~nobody-here/a begins with a home that is not there; write the whole path$"
    with pytest.raises(ConfigError, match=message):
        expand_home(Path("~nobody-here/a"), "data")
