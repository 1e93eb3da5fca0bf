"""Device and dtype, on machines with and without cards."""

import re

import pytest
import torch

from ptune.device.precision import (
    choose_device,
    choose_dtype,
    needs_loss_scale,
    wider_dtype,
)
from ptune.errors import ConfigError
from ptune.generation.step_graph import StepGraph
from ptune.quantization.backends.fallback import choose_backend

CPU, CARD, MPS = torch.device("cpu"), torch.device("cuda", 0), torch.device("mps")


@pytest.fixture
def cards(monkeypatch):
    """Pretend that there are cards of some compute capability."""

    def pretend(count, capability=(8, 0)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla Toy")

    return pretend


def test_default_device(cards, monkeypatch):
    cards(0)
    assert choose_device(None) == CPU
    cards(2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert choose_device(None) == CARD
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device(None) == torch.device("cuda:1")


def test_given_device(cards):
    cards(2)
    assert choose_device("cpu") == CPU == choose_device(CPU)
    assert choose_device("cuda") == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda:1")


@pytest.mark.parametrize(
    "name",
    ["gpu", "cuda:x", "", "meta", "xpu", "cpu:3", "mps:1", "cuda:-1", "cuda:1000", "CUDA", "cpu\0"],
)
def test_device_that_is_not_supported(name):
    message = rf"^device {re.escape(repr(name))} is not supported; use cpu, cuda, cuda:N or mps$"
    with pytest.raises(ConfigError, match=message):
        choose_device(name)
    if name in ("meta", "xpu"):
        with pytest.raises(ConfigError, match=message):
            choose_device(torch.device(name))


class TestApple:
    @pytest.fixture(autouse=True)
    def _apple(self, cards, monkeypatch):
        cards(0)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)

    def test_device(self):
        assert choose_device("mps") == MPS == choose_device(MPS)
        assert choose_device("mps:0") == torch.device("mps:0")
        assert choose_device(None) == CPU  # it is asked for, not found by itself

    def test_dtype(self):
        assert choose_dtype(None, MPS) == torch.float16
        assert choose_dtype("float32", MPS) == torch.float32
        message = "^dtype bfloat16 is not native on every Apple GPU; use --dtype float16 or float32"
        with pytest.raises(ConfigError, match=message):
            choose_dtype("bfloat16", MPS)
        assert wider_dtype(torch.float16, MPS) == "float32"

    def test_what_is_for_cuda_alone_stays_away(self):
        assert not StepGraph(lambda: torch.zeros(1), MPS).captures
        assert choose_backend(None, MPS).name == "torch"
        with pytest.raises(
            ConfigError, match="quantization_backend nvrtc needs a CUDA card, not m"
        ):
            choose_backend("nvrtc", MPS)


def test_apple_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"device 'mps' is not there .*sees no Apple GPU.; use -"):
        choose_device("mps")


@pytest.mark.parametrize(("count", "name"), [(0, "cuda"), (0, "cuda:0"), (2, "cuda:2")])
def test_card_that_is_not_there(cards, count, name):
    cards(count)
    with pytest.raises(
        ConfigError, match=f"device '{name}' is not there .*sees {count} cards.; use"
    ):
        choose_device(name)


def test_default_dtype(cards):
    assert choose_dtype(None, CPU) == torch.float32
    cards(1, (8, 0))
    assert choose_dtype(None, CARD) == torch.bfloat16
    cards(1, (7, 5))
    assert choose_dtype(None, CARD) == torch.float16


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_given_dtype(cards, name):
    cards(1, (9, 0))
    for device in (CPU, CARD):
        assert choose_dtype(name, device) == getattr(torch, name)
        assert choose_dtype(getattr(torch, name), device) == getattr(torch, name)


@pytest.mark.parametrize("name", ["half", "fp16", "int8", "torch.float16"])
def test_unknown_dtype(name):
    message = f"dtype '{name}' is unknown; use one of float32, float16, bfloat16"
    with pytest.raises(ConfigError, match=message):
        choose_dtype(name, CPU)


def test_bfloat16_on_an_old_card(cards):
    cards(1, (7, 0))
    assert choose_dtype("float16", CARD) == torch.float16
    message = r"bfloat16 is not native on Tesla Toy \(compute capability 7.0\); use --dtype float16"
    with pytest.raises(ConfigError, match=message):
        choose_dtype("bfloat16", CARD)


def test_loss_is_scaled_for_float16_alone():
    assert needs_loss_scale(torch.float16)
    assert not needs_loss_scale(torch.bfloat16)
    assert not needs_loss_scale(torch.float32)


def test_wider_dtype(cards):
    assert wider_dtype(torch.float16, CPU) == "float32"
    cards(1, (7, 5))
    assert wider_dtype(torch.float16, CARD) == "float32"
    cards(1, (8, 0))
    assert wider_dtype(torch.float16, CARD) == "bfloat16"
    assert wider_dtype(torch.bfloat16, CARD) is None
    assert wider_dtype(torch.float32, CARD) is None
