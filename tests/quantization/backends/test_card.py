"""CUDA device queries."""

import pytest
import torch

from ptune.quantization.backends import card
from ptune.quantization.backends.card import Card, describe

CUDA = torch.device("cuda", 1)


@pytest.fixture
def p100(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"P100 at {device}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 0))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(card, "KERNEL_MODULE", tmp_path / "version")
    return tmp_path / "version"


@pytest.mark.parametrize(
    "text",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.82.07  Wed Aug 20\nGCC version: 12",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82.07  Release Build  (dvs)",
    ],
)
def test_describes_a_card(p100, text):
    p100.write_text(text)
    found = describe(CUDA)
    assert found == Card("P100 at cuda:1", (6, 0), "580.82.07", "12.6")
    assert found.sm == 60


def test_version_of_a_driver_without_its_file(p100, simulated_driver, monkeypatch):
    monkeypatch.setattr("ptune.quantization.backends.cuda_driver.LIBRARY", str(simulated_driver))
    assert describe(CUDA).driver == "for CUDA 12.9"
    monkeypatch.setattr("ptune.quantization.backends.cuda_driver.LIBRARY", "libcuda.so.99")
    assert describe(CUDA).driver == "unknown"


def test_index_of_a_device(p100):
    assert card.index(CUDA) == 1
    assert card.index(torch.device("cuda")) == 3
