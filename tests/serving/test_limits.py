"""Who may ask; what a request must bring is in test_app.py."""

import pytest

from ptune.errors import ConfigError
from ptune.serving.limits import api_keys, check_host


def test_keys_and_hosts(monkeypatch):
    monkeypatch.setenv("PTUNE_API_KEYS", "one, ,two")
    assert api_keys([" three "]) == ["three", "one", "two"]
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        check_host(host, [])
    for host in ("0.0.0.0", "::", "example.org", "10.0.0.1"):
        check_host(host, ["key"])
        with pytest.raises(ConfigError, match="pass --api-key KEY or set PTUNE_API_KEYS"):
            check_host(host, [])
