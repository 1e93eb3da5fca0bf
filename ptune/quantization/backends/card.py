"""CUDA device queries of the backends, in one module so that tests can simulate a card."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from ptune.quantization.backends.cuda_driver import CudaError, Driver

KERNEL_MODULE = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Card:
    """A CUDA card and the software that drives it.

    Attributes:
        name: such as `Tesla P100-PCIE-16GB`.
        capability: compute capability, such as `(6, 0)`.
        driver: version of the driver, such as `580.82.07`.
        cuda: version of CUDA that torch was built for, such as `12.6`; None where it was not
            built for CUDA (ROCm).
    """

    name: str
    capability: tuple[int, int]
    driver: str
    cuda: str | None

    @property
    def sm(self) -> int:
        """The capability as CUDA's tools write it: 60 for 6.0."""
        return self.capability[0] * 10 + self.capability[1]


def describe(device: torch.device) -> Card:
    """Describe the card behind a device of type cuda."""
    name = torch.cuda.get_device_name(device)
    capability = torch.cuda.get_device_capability(device)
    return Card(name, capability, _driver_version(), torch.version.cuda)


def index(device: torch.device) -> int:
    """Return the index of a device, also of one written as `cuda`."""
    return torch.cuda.current_device() if device.index is None else device.index


def stream(device: torch.device) -> int:
    """Return the handle of the stream that torch uses on the device now, in this thread."""
    return int(torch.cuda.current_stream(device).cuda_stream)


def activate(device: torch.device) -> AbstractContextManager[object]:
    """Make the device the current one."""
    return torch.cuda.device(device)


def synchronize(device: torch.device) -> None:
    """Wait for all work on the device; raises the errors of its kernels."""
    torch.cuda.synchronize(device)


def _driver_version() -> str:
    try:
        found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", KERNEL_MODULE.read_text(encoding="utf-8"))
        if found:
            return found.group()
    except OSError:
        pass  # not Linux, or a Linux inside Windows
    try:
        return f"for CUDA {Driver().cuda_version()}"
    except CudaError:
        return "unknown"
