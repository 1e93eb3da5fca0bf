"""Facts from a process of its own, whatever that process does."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from ptune.commands.doctor import torch_probe
from ptune.commands.doctor.torch_probe import CardFacts, TorchFacts, probe_torch

TORCH = {"version": "2.11.0", "error": None, "cuda": "13.0", "hip": None, "mps": False}
TORCH |= {"architectures": ["sm_75", "sm_80"], "visible": 2}
CARD = {"index": 0, "name": "Tesla T4", "capability": [7, 5], "total": 16, "free": 15}
CARD |= {"error": None, "dtype": "float16"}


def answer(code, timeout=30):
    return probe_torch((sys.executable, "-c", code), timeout)


def printing(*lines):
    return "".join(f"print({json.dumps(line)!r}, flush=True);" for line in lines)


def test_of_this_machine():
    facts = probe_torch()
    assert facts.version == torch.__version__
    assert facts.cuda == torch.version.cuda
    assert len(facts.cards) == facts.visible
    assert facts.visible == (torch.cuda.device_count() if torch.cuda.is_available() else 0)


def test_all_cards_answer():
    facts = answer("print('a library says hello');" + printing(TORCH, CARD, CARD | {"index": 1}))
    assert facts.architectures == ("sm_75", "sm_80")
    assert facts.cards[1] == CardFacts(1, "Tesla T4", (7, 5), 16, 15, None, "float16")
    assert facts.error is None


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("raise SystemExit('the driver is gone')", "the driver is gone"),
        ("import os; os.kill(os.getpid(), 9)", "exit status -9"),
        ("import time; time.sleep(60)", "no answer within 2 seconds"),
    ],
)
def test_process_ends_at_the_second_card(end, words):
    facts = answer(printing(TORCH, CARD) + end, timeout=2)
    assert [card.index for card in facts.cards] == [0]
    assert facts.error == f"card 1 gave no answer: {words}"


def test_torch_that_cannot_be_imported():
    facts = answer("import no_such_torch")
    assert facts == TorchFacts(None, "ModuleNotFoundError: No module named 'no_such_torch'")


def test_no_python():
    assert "no-such-program" in probe_torch(("no-such-program",)).error


def test_nothing_is_said_beside_the_facts():
    command = [sys.executable, "-c", torch_probe._PROGRAM]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stderr == ""  # what stands there is taken for the reason of an early end
    assert json.loads(run.stdout.splitlines()[0])["version"] == torch.__version__


@pytest.fixture
def simulated(monkeypatch):
    """A card that torch claims to see; its memory is the CPU's."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(torch._C, "_cuda_getArchFlags", lambda: "sm_50 sm_60", raising=False)
    properties = SimpleNamespace(name="Tesla P100", major=6, minor=0, total_memory=16)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla P100")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (15, 16))
    arange = torch.arange
    monkeypatch.setattr(torch, "arange", lambda count, device: arange(count))
    return monkeypatch


def test_card_that_adds(simulated):
    facts, found = torch_probe._ask_torch()
    assert facts["architectures"] == ["sm_50", "sm_60"]
    assert facts["visible"] == 1
    assert found["error"] is None
    assert found["dtype"] == "float16"
    assert (found["capability"], found["free"], found["total"]) == ([6, 0], 15, 16)


def test_card_that_adds_wrongly(simulated):
    simulated.setattr(torch, "arange", lambda count, device: torch.zeros(count))
    *_, found = torch_probe._ask_torch()
    assert found["error"] == "1 + 2 + 3 + 4 gave 4.0"


def test_card_that_fails(simulated):
    def fail(count, device):
        raise RuntimeError("CUDA error: no kernel image is available\nCompile with ...")

    simulated.setattr(torch, "arange", fail)
    *_, found = torch_probe._ask_torch()
    assert found["error"] == "CUDA error: no kernel image is available"
    assert found["free"] == 15


def test_driver_that_fails(simulated):
    def fail():
        raise RuntimeError("The NVIDIA driver on your system is too old")

    simulated.setattr(torch.cuda, "init", fail)
    simulated.setattr(torch.cuda, "is_available", lambda: False)
    (facts,) = torch_probe._ask_torch()
    assert facts["error"] == "The NVIDIA driver on your system is too old"
    assert facts["visible"] == 0
