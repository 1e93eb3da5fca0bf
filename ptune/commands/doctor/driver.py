"""Facts about the NVIDIA driver and its cards, without torch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_TIMEOUT = 15  # seconds
_NVIDIA = "0x10de"  # vendor on the PCI bus
_DISPLAY = "0x03"  # class of display and 3D controllers


@dataclass(frozen=True)
class SystemCard:
    """A card that nvidia-smi names; `capability` is None with a driver that does not tell it."""

    name: str
    capability: tuple[int, int] | None


@dataclass(frozen=True)
class DriverFacts:
    """Facts about the driver.

    Attributes:
        version: such as `580.65.06`; None without one.
        cards: from nvidia-smi.
        on_bus: an NVIDIA card is on the PCI bus, with or without a driver.
        error: of nvidia-smi, where it failed.
        visible_devices: the environment's CUDA_VISIBLE_DEVICES.
    """

    version: str | None = None
    cards: tuple[SystemCard, ...] = ()
    on_bus: bool = False
    error: str | None = None
    visible_devices: str | None = None

    @property
    def branch(self) -> int | None:
        """The branch of the driver, its major version."""
        return int(self.version.split(".")[0]) if self.version else None

    @property
    def capabilities(self) -> list[tuple[int, int]]:
        """Of the cards for which it is known."""
        return [card.capability for card in self.cards if card.capability]


def read_driver(
    root: Path = Path("/"),
    environment: Mapping[str, str] = os.environ,
    nvidia_smi: str | None = None,
) -> DriverFacts:
    """Ask nvidia-smi, the kernel's module and the PCI bus.

    Args:
        root: of the file system.
        environment: of this process.
        nvidia_smi: the program; by default the one on PATH.
    """
    version, cards, error = _ask_nvidia_smi(nvidia_smi or shutil.which("nvidia-smi"))
    return DriverFacts(
        version or _module_version(root / "proc/driver/nvidia/version"),
        cards,
        _is_on_bus(root / "sys/bus/pci/devices"),
        error,
        environment.get("CUDA_VISIBLE_DEVICES"),
    )


def _ask_nvidia_smi(program: str | None) -> tuple[str | None, tuple[SystemCard, ...], str | None]:
    if program is None:
        return None, (), None
    # Old drivers do not know the last field, and then answer nothing at all.
    for fields in ("driver_version,name,compute_cap", "driver_version,name"):
        command = [program, f"--query-gpu={fields}", "--format=csv,noheader"]
        try:
            run = subprocess.run(
                command, capture_output=True, text=True, timeout=_TIMEOUT, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return None, (), str(error).splitlines()[0]
        rows = [line.split(", ") for line in run.stdout.splitlines() if re.match(r"\d+\.", line)]
        if run.returncode == 0 and rows:
            return rows[0][0], tuple(_card(row) for row in rows), None
    said = (run.stdout + run.stderr).strip().splitlines()
    return None, (), said[0][:200] if said else f"exit status {run.returncode}"


def _card(row: list[str]) -> SystemCard:
    match = re.fullmatch(r"(\d+)\.(\d+)", row[-1].strip())
    return SystemCard(row[1], (int(match.group(1)), int(match.group(2))) if match else None)


def _module_version(file: Path) -> str | None:
    try:
        match = re.search(r"Kernel Module\D*?\s(\d+\.\d[\d.]*)", file.read_text(errors="replace"))
    except OSError:
        return None
    return match.group(1) if match else None


def _is_on_bus(devices: Path) -> bool:
    for vendor in devices.glob("*/vendor"):
        try:
            kind = (vendor.parent / "class").read_text()
            if vendor.read_text().strip() == _NVIDIA and kind.startswith(_DISPLAY):
                return True
        except OSError:
            continue
    return False
