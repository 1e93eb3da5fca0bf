"""Bytes to positions of a KV cache."""

from types import SimpleNamespace

import pytest

from ptune.base.architecture import Architecture, Storage
from ptune.device.host_memory import HostMemory
from ptune.device.serving_memory import cache_positions, position_bytes
from ptune.errors import ConfigError
from ptune.serving import cache_memory
from ptune.serving.cache_memory import cache_tokens

FLOAT = Storage(4, device_type="cpu")


@pytest.fixture
def size(tiny):
    return position_bytes(Architecture.from_config(tiny.base.config), FLOAT)


@pytest.fixture
def find(tiny):
    return lambda slots, memory, *more: cache_tokens(
        tiny.model, tiny.base.config, slots, memory, *more
    )


def test_given_bytes(find, size):
    assert find(4, 1000 * size) == 960
    assert find(4, 10**15) == 4 * 2048 and find(4, 10**15, 64) == 4 * (2048 + 64)


def test_too_few(find, size):
    message = (
        r"^[\d,]+ MB of memory for the KV cache hold 64 tokens, [\d,]+ bytes each; "
        "use a larger --cache-memory$"
    )
    with pytest.raises(ConfigError, match=message):
        find(4, 100 * size)


def test_too_little_free(find, monkeypatch):
    monkeypatch.setattr(cache_memory, "read_host_memory", lambda: SimpleNamespace(available=9))
    message = (
        "^0 MB of free memory, less what steps need, hold 0 tokens, .* bytes each; "
        "use a smaller --max-slots, or --quantization-bit 4$"
    )
    with pytest.raises(ConfigError, match=message):
        find(4, None)


def test_what_is_free(tiny, find, size, monkeypatch):
    a = Architecture.from_config(tiny.base.config)
    found = SimpleNamespace(available=60_000_000)
    monkeypatch.setattr(cache_memory, "read_host_memory", lambda: found)
    room = round(60_000_000 / 1.1)
    assert find(4, None) == cache_positions(a, FLOAT, room, 4, 2048)
    less = find(4, None, 0, 5_000_000)
    assert less == cache_positions(a, FLOAT, room - 5_000_000, 4, 2048) < find(4, None)
    assert HostMemory(1, 2).available == 2
    monkeypatch.setattr(cache_memory, "read_host_memory", lambda: None)
    assert find(4, None) == 4 * 2048
