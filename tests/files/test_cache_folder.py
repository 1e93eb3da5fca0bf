"""Location of the cache folder."""

from pathlib import Path

from ptune.files.cache_folder import cache_folder


def test_location(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "ptune"
    for unfit in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unfit)
        assert cache_folder() == Path.home() / ".cache" / "ptune"
