"""Machines that are not here, described by their facts."""

from dataclasses import replace

import pytest

from ptune.commands.doctor.cards import Machine, judge_cards, judge_driver, judge_torch
from ptune.commands.doctor.check import Status, overall
from ptune.commands.doctor.driver import DriverFacts, SystemCard
from ptune.commands.doctor.host import GB
from ptune.commands.doctor.torch_build import BUILDS
from ptune.commands.doctor.torch_probe import CardFacts, TorchFacts

CU126, CU130 = (
    next(build.architectures for build in BUILDS if build.cuda == cuda)
    for cuda in ((12, 6), (13, 0))
)
NO_IMAGE = "CUDA error: no kernel image is available for execution on the device"
CARDS = {
    "P100": ("Tesla P100-PCIE-16GB", (6, 0), "float16"),
    "V100": ("Tesla V100-SXM2-16GB", (7, 0), "float16"),
    "T4": ("Tesla T4", (7, 5), "float16"),
    "H100": ("NVIDIA H100 80GB HBM3", (9, 0), "bfloat16"),
    "RTX 5090": ("NVIDIA GeForce RTX 5090", (12, 0), "bfloat16"),
}


def card(kind, index=0, **changes):
    name, capability, dtype = CARDS[kind]
    return replace(CardFacts(index, name, capability, 17 * GB, 16 * GB, None, dtype), **changes)


def machine(*cards, torch=None, driver="580.65.06", **changes):
    facts = {"version": "2.11.0+cu130", "cuda": "13.0", "architectures": CU130} | (torch or {})
    facts = {"visible": len(cards), "cards": cards} | facts
    seen = tuple(SystemCard(found.name, found.capability) for found in cards)
    return Machine(
        TorchFacts(**facts),
        DriverFacts(driver, seen) if isinstance(driver, str) else driver,
        ">=2.7",
        **{"python": (3, 11), "windows": False} | changes,
    )


def judge(facts):
    """All checks of a machine; those that are not ok, and only those, say how to fix it."""
    checks = [*judge_torch(facts), judge_driver(facts), *judge_cards(facts)]
    assert_mended(checks)
    return {check.name: check for check in checks}


def assert_mended(checks):
    for check in checks:
        assert bool(check.mend) == (check.status is not Status.OK), check
        assert check.message
        assert "\n" not in check.message + check.mend


def failures(checks):
    return [name for name, check in checks.items() if check.status is Status.FAILURE]


@pytest.mark.parametrize("kind", ["T4", "H100", "RTX 5090"])
def test_card_that_torch_has_code_for(kind):
    checks = judge(machine(card(kind)))
    assert overall(checks.values()) is Status.OK
    assert "2.11.0" in checks["torch"].message
    assert "CUDA 13.0" in checks["build"].message
    assert checks["driver"].message == "580.65.06"
    assert CARDS[kind][0] in checks["card 0"].message
    assert "a plain addition runs" in checks["card 0 with torch"].message
    assert checks["card 0 precision"].message.startswith(CARDS[kind][2])


def test_t4_computes_in_half_precision_with_loss_scaling():
    precision = judge(machine(card("T4")))["card 0 precision"]
    assert precision.message == "float16, with loss scaling: bfloat16 is native from 8.0 on"


@pytest.mark.parametrize(
    ("kind", "torch", "command"),
    [
        ("P100", {}, 'pip install "torch==2.7.1"'),
        ("V100", {}, 'pip install "torch==2.10.0"'),
        (
            "RTX 5090",
            {"version": "2.7.1", "cuda": "12.6", "architectures": CU126},
            'pip install "torch>=2.11"',
        ),
    ],
)
def test_torch_without_code_for_the_card(kind, torch, command):
    checks = judge(machine(card(kind, error=NO_IMAGE), torch=torch))
    assert failures(checks) == ["card 0 with torch"]
    found = checks["card 0 with torch"]
    version = torch.get("version", "2.11.0")
    sm = "sm_{}{}".format(*CARDS[kind][1])
    assert found.message.startswith(f"torch {version}")
    assert f"has no code for {sm}: {NO_IMAGE}" in found.message
    assert found.mend == command


def test_p100_with_the_torch_that_was_advised():
    torch = {"version": "2.7.1+cu126", "cuda": "12.6", "architectures": CU126}
    checks = judge(machine(card("P100"), torch=torch, driver="535.54.03"))
    assert overall(checks.values()) is Status.OK


def test_same_words_although_torch_has_code():
    checks = judge(machine(card("T4", error=NO_IMAGE)))
    assert checks["card 0 with torch"].message == f"a plain addition fails: {NO_IMAGE}"
    assert checks["card 0 with torch"].mend.startswith("restart the machine")


def test_full_card():
    error = "CUDA out of memory. Tried to allocate 2 MiB"
    checks = judge(machine(card("T4", error=error, free=0)))
    assert failures(checks) == ["card 0 with torch"]
    assert checks["card 0 with torch"].mend == "end the programs that nvidia-smi lists"
    assert "takes 5 even in 4 bits" in checks["card 0"].message


@pytest.mark.parametrize(
    ("changes", "words", "mend"),
    [
        ({"free": 10 * GB}, "other programs hold the rest", "end the programs"),
        ({"total": 4 * GB, "free": 4 * GB}, "takes 5 even in 4 bits", "use a larger card"),
    ],
)
def test_card_with_little_memory(changes, words, mend):
    found = judge(machine(card("T4", **changes)))["card 0"]
    assert found.status is Status.WARNING
    assert words in found.message
    assert mend in found.mend


def test_second_card_gives_no_answer():
    torch = {"visible": 2, "error": "card 1 gave no answer: no answer within 120 seconds"}
    checks = judge(machine(card("T4"), torch=torch))
    assert failures(checks) == ["cards"]
    assert "card 1 gave no answer" in checks["cards"].message


def test_driver_too_old_for_the_build():
    seen = DriverFacts("535.54.03", (SystemCard("Tesla T4", (7, 5)),))
    torch = {"error": "The NVIDIA driver on your system is too old (found version 12020)."}
    checks = judge(machine(torch=torch, driver=seen))
    assert failures(checks) == ["driver", "cards"]
    assert "535.54.03 is too old for torch's CUDA 13.0" in checks["driver"].message
    assert checks["driver"].mend == (
        'install NVIDIA driver R580 or newer; or pip install "torch==2.10.0"'
    )
    assert "is too old (found version 12020)" in checks["cards"].message


def test_driver_too_old_for_every_build():
    seen = DriverFacts("470.82.01", (SystemCard("Tesla P100-PCIE-16GB", (6, 0)),))
    checks = judge(machine(driver=seen))
    assert checks["driver"].mend == (
        "install NVIDIA driver R580 or newer (R580 is the last for this card)"
    )


@pytest.mark.parametrize(
    ("seen", "command"),
    [
        (
            DriverFacts("580.65.06", (SystemCard("Tesla P100", (6, 0)),)),
            'pip install "torch==2.7.1"',
        ),
        (
            DriverFacts("550.54.14"),
            'pip install "torch==2.10.0"',
        ),
        (
            DriverFacts(on_bus=True),
            'pip uninstall -y torch && pip install "torch>=2.11"',
        ),
    ],
)
def test_torch_for_the_cpu_beside_a_card(seen, command):
    torch = {"version": "2.13.0+cpu", "cuda": None, "architectures": ()}
    checks = judge(machine(torch=torch, driver=seen))
    assert failures(checks) == ["build"]
    assert checks["build"].message.startswith("for the CPU alone, but ")
    assert checks["build"].mend == command


def test_machine_without_any_card():
    torch = {"version": "2.13.0+cpu", "cuda": None, "architectures": ()}
    checks = judge(machine(torch=torch, driver=DriverFacts()))
    assert {name for name, c in checks.items() if c.status is not Status.OK} == {"cards"}
    assert checks["cards"].status is Status.WARNING
    assert checks["driver"].message == "none, and no NVIDIA card found"


def test_card_without_driver():
    checks = judge(machine(driver=DriverFacts(on_bus=True, error="couldn't communicate")))
    assert checks["driver"].status is Status.WARNING
    assert "does not answer (couldn't communicate)" in checks["driver"].message
    assert "install NVIDIA driver R580" in checks["driver"].mend


def test_cards_hidden_by_the_environment():
    seen = DriverFacts("580.65.06", (SystemCard("Tesla T4", (7, 5)),), visible_devices="")
    checks = judge(machine(driver=seen))
    assert checks["cards"].status is Status.WARNING
    assert checks["cards"].mend == "unset CUDA_VISIBLE_DEVICES"


def test_torch_that_sees_no_card_for_another_reason():
    checks = judge(machine(torch={"error": "unknown error"}))
    assert checks["cards"].status is Status.FAILURE
    assert "torch sees none (unknown error)" in checks["cards"].message
    assert "docker run --gpus all" in checks["cards"].mend


def test_torch_that_cannot_be_imported():
    seen = DriverFacts("580.65.06", (SystemCard("Tesla P100", (6, 0)),))
    torch = {"version": None, "error": "ModuleNotFoundError: No module named 'torch'"}
    checks = judge(machine(torch=torch, driver=seen))
    assert "No module named 'torch'" in checks["torch"].message
    assert checks["torch"].mend == 'pip install "torch==2.7.1"'


def test_torch_of_before():
    torch = {"version": "2.4.1", "cuda": "12.1", "architectures": CU126}
    checks = judge(machine(card("P100"), torch=torch))
    assert checks["torch"].message == "2.4.1 is installed; ptune asks for >=2.7"
    assert checks["torch"].mend == 'pip install "torch==2.7.1"'


def test_amd_card():
    torch = {"version": "2.13.0+rocm7", "cuda": None, "hip": "7.0", "architectures": ()}
    checks = judge(machine(card("H100"), torch=torch, driver=DriverFacts()))
    assert checks["build"].status is Status.WARNING
    assert "ROCm 7.0" in checks["build"].message
    assert not failures(checks)


def test_apple():
    torch = {"version": "2.13.0", "cuda": None, "architectures": (), "mps": True}
    checks = judge(machine(torch=torch, driver=DriverFacts()))
    assert checks["build"].message == "for Apple's GPU, which --device mps takes"
    assert checks["cards"].status is Status.WARNING
    assert checks["cards"].mend == "pass --device mps"
