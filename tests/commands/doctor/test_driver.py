"""The driver and the PCI bus of machines made of files."""

import stat

import pytest

from ptune.commands.doctor.driver import DriverFacts, SystemCard, read_driver

MODULE = "NVRM version: NVIDIA UNIX {}x86_64 Kernel Module  {}  Wed Jul 30 2025\nGCC version: 12\n"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The root of an empty file system, on a machine without nvidia-smi."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def nvidia_smi(root, script):
    program = root / "nvidia-smi"
    program.write_text("#!/bin/sh\n" + script)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def on_bus(root, vendor, kind):
    device = root / "sys/bus/pci/devices/0000:00:04.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text(vendor + "\n")
    (device / "class").write_text(kind + "\n")


def test_nothing_there(root):
    assert read_driver(root, {}) == DriverFacts()


def test_nvidia_smi(root):
    nvidia_smi(root, "echo '535.54.03, Tesla P100-PCIE-16GB, 6.0'\necho '535.54.03, Tesla T4, 7.5'")
    facts = read_driver(root, {"CUDA_VISIBLE_DEVICES": "1"})
    assert (facts.version, facts.branch, facts.visible_devices) == ("535.54.03", 535, "1")
    assert facts.cards == (
        SystemCard("Tesla P100-PCIE-16GB", (6, 0)),
        SystemCard("Tesla T4", (7, 5)),
    )
    assert facts.capabilities == [(6, 0), (7, 5)]


def test_nvidia_smi_without_compute_capability(root):
    refuse = "case $1 in *compute_cap*) echo 'Field is not valid.'; exit 2;; esac\n"
    nvidia_smi(root, refuse + "echo '440.33.01, Tesla P100-PCIE-16GB'")
    facts = read_driver(root, {})
    assert (facts.version, facts.error) == ("440.33.01", None)
    assert facts.cards == (SystemCard("Tesla P100-PCIE-16GB", None),)
    assert facts.capabilities == []


def test_nvidia_smi_fails(root):
    nvidia_smi(root, "echo 'NVIDIA-SMI has failed because it could not ask the driver'; exit 9")
    facts = read_driver(root, {})
    assert facts.error == "NVIDIA-SMI has failed because it could not ask the driver"
    assert facts.version is None


@pytest.mark.parametrize("said", ["exit 9", "exit 0"])
def test_nvidia_smi_says_nothing(root, said):
    nvidia_smi(root, said)
    assert read_driver(root, {}).error == f"{said.replace('exit', 'exit status')}"


@pytest.mark.parametrize("kind", ["", "Open Kernel Module for "])
def test_kernel_module(root, kind):
    file = root / "proc/driver/nvidia/version"
    file.parent.mkdir(parents=True)
    file.write_text(MODULE.format(kind, "580.65.06"))
    assert read_driver(root, {}).version == "580.65.06"


@pytest.mark.parametrize(
    ("vendor", "kind", "found"),
    [
        ("0x10de", "0x030200", True),
        ("0x10de", "0x040300", False),  # the sound of a card
        ("0x1002", "0x030000", False),
    ],
)
def test_pci_bus(root, vendor, kind, found):
    on_bus(root, vendor, kind)
    assert read_driver(root, {}).on_bus is found
