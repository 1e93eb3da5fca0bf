"""Sizes such as 500MB."""

import pytest

from ptune.config.size import parse_size
from ptune.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "size"),
    [("1KB", 10**3), ("500MB", 5 * 10**8), (" 1.5 gb ", 15 * 10**8), ("2tb", 2 * 10**12)],
)
def test_bytes(text, size):
    assert parse_size(text, "max_shard_size") == size


@pytest.mark.parametrize("text", ["", "5", "GB", "0KB", "1001TB", "9" * 400 + "KB", "٣GB"])
def test_what_is_none(text):
    with pytest.raises(ConfigError, match=r"^max_shard_size '.*' is not a size; write e.g. 500MB"):
        parse_size(text, "max_shard_size")
