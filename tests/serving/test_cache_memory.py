"""Bytes to positions of a KV cache."""

from types import SimpleNamespace

import pytest

from ptune.device.host_memory import HostMemory
from ptune.errors import ConfigError
from ptune.serving import cache_memory
from ptune.serving.cache_memory import cache_tokens, position_bytes, working_bytes


def test_given_bytes(tiny):
    size = position_bytes(tiny.model)
    shape = tiny.model.base_model.prefix_shape
    assert size == 4 * 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim
    assert cache_tokens(tiny.model, 4, 1000 * size) == 960
    assert cache_tokens(tiny.model, 4, 10**15) == 4 * 2 * 2048


def test_too_few(tiny):
    message = r"hold 64 tokens, [\d,]+ bytes each; use a larger --cache-memory$"
    with pytest.raises(ConfigError, match=message):
        cache_tokens(tiny.model, 4, 100 * position_bytes(tiny.model))


def test_too_little_free(tiny, monkeypatch):
    monkeypatch.setattr(cache_memory, "read_host_memory", lambda: SimpleNamespace(available=9))
    message = "hold 0 tokens, .* use a smaller --max-slots, or --quantization-bit 4$"
    with pytest.raises(ConfigError, match=message):
        cache_tokens(tiny.model, 4, None)


def test_what_is_free(tiny, monkeypatch):
    size, working = position_bytes(tiny.model), working_bytes(tiny.model, 4)
    free = int((1000 * size + working) / 0.9)
    found = SimpleNamespace(available=free)
    monkeypatch.setattr(cache_memory, "read_host_memory", lambda: found)
    assert cache_tokens(tiny.model, 4, None) == 960
    assert HostMemory(1, 2).available == 2
    monkeypatch.setattr(cache_memory, "read_host_memory", lambda: None)
    assert cache_tokens(tiny.model, 4, None) == 4 * 2048
