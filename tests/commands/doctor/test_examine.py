"""`ptune doctor` as a whole: what it shows, as text and as JSON, and how it ends."""

import json
import re
import sys

import pytest
from typer.testing import CliRunner

from ptune import views
from ptune.cli import app
from ptune.commands.doctor.check import Check, Status, overall
from ptune.commands.doctor.driver import DriverFacts, SystemCard
from ptune.commands.doctor.examine import examine
from ptune.commands.doctor.host import GB
from ptune.commands.doctor.torch_build import BUILDS
from ptune.commands.doctor.torch_probe import CardFacts, TorchFacts
from ptune.config.settings import DoctorSettings
from ptune.device.host_memory import HostMemory

MODULE = "ptune.commands.doctor.examine"
NO_IMAGE = "CUDA error: no kernel image is available for execution on the device"
P100 = CardFacts(0, "Tesla P100-PCIE-16GB", (6, 0), 17 * GB, 16 * GB, NO_IMAGE, "float16")
WRONG_TORCH = TorchFacts(
    "2.11.0", cuda="13.0", architectures=BUILDS[0].architectures, cards=(P100,), visible=1
)
NO_CARD = TorchFacts("2.13.0+cpu")
GROUPS = ["machine", "torch", "cards", "quantization", "packages"]


@pytest.fixture
def simulate(monkeypatch):
    """Another machine than this one."""

    no_driver, roomy = DriverFacts(), HostMemory(64 * GB, 60 * GB)

    def make(torch=NO_CARD, driver=no_driver, memory=roomy, disk=100 * GB):
        monkeypatch.setattr(f"{MODULE}.probe_torch", lambda: torch)
        monkeypatch.setattr(f"{MODULE}.read_driver", lambda: driver)
        monkeypatch.setattr(f"{MODULE}.read_host_memory", lambda: memory)
        monkeypatch.setattr(f"{MODULE}.free_disk", lambda folder: disk)

    return make


def run(*arguments):
    return CliRunner().invoke(app, ["doctor", *arguments])


def p100(simulate):
    simulate(WRONG_TORCH, DriverFacts("580.65.06", (SystemCard(P100.name, (6, 0)),)))


def test_worst_status_counts():
    ok, warning, failure = (Check("a", "b", status, "c", "d") for status in Status)
    assert overall([]) is Status.OK
    assert overall([ok, warning, ok]) is Status.WARNING
    assert overall([failure, warning]) is Status.FAILURE


def test_this_machine():
    result = run("--json")
    found = json.loads(result.stdout)
    groups = list(dict.fromkeys(check["group"] for check in found["checks"]))
    assert groups == GROUPS
    assert {c["name"] for c in found["checks"]} >= {"python", "torch", "build", "driver", "disk"}
    assert result.exit_code == (found["status"] == "failure")


def test_p100_with_a_torch_of_today(simulate):
    p100(simulate)
    result = run()
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert any(line.startswith("failure  card 0 with torch  ") for line in lines)
    assert lines[-2:] == ["failure, card 0 with torch:", '  pip install "torch==2.7.1"']


def test_json_holds_the_same_and_nothing_else(simulate):
    p100(simulate)
    result = run("--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["status"] == "failure"
    (failure,) = [check for check in found["checks"] if check["status"] == "failure"]
    assert failure == {
        "group": "cards",
        "name": "card 0 with torch",
        "status": "failure",
        "message": "torch 2.11.0 has no code for sm_60: " + NO_IMAGE,
        "mend": 'pip install "torch==2.7.1"',
    }


def test_no_card_is_a_warning(simulate):
    simulate()
    result = run("--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["status"]) == (0, "warning")
    assert [c["name"] for c in found["checks"] if c["status"] == "warning"] == ["cards"]


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"memory": HostMemory(GB // 2, GB // 2)}, "memory"), ({"disk": GB // 10}, "disk")],
)
def test_too_little(changes, name, simulate):
    simulate(**changes)
    checks = examine(DoctorSettings())
    assert [c.name for c in checks if c.status is Status.FAILURE] == [name]


def test_torch_that_cannot_be_imported(simulate):
    simulate(TorchFacts(None, "libcudart.so.12: cannot open shared object file"))
    result = run("--model", "tiny")
    assert result.exit_code == 1
    assert "quantization\n" not in result.stdout
    assert re.search(r'^  pip install "torch>=2.11"$', result.stdout, re.MULTILINE)


def test_memory_is_that_of_the_model(simulate, tiny_folder):
    simulate(memory=HostMemory(8 * GB, 4 * GB))
    without, with_ = (
        next(check for check in examine(DoctorSettings(model)) if check.name == "memory")
        for model in (None, "tiny")
    )
    assert "ChatGLM-6B takes 27 on the CPU in float32" in without.message
    assert with_.status is Status.OK


def test_model_that_fits_no_disk(simulate, monkeypatch):
    from ptune.commands.doctor import model_folder

    monkeypatch.setattr(model_folder, "_cached", lambda name: None)
    simulate(disk=5 * GB)
    checks = {check.name: check for check in examine(DoctorSettings("THUDM/chatglm-6b"))}
    assert checks["folder"].status is Status.WARNING
    assert checks["hub cache"].status is Status.FAILURE


def test_broken_model_is_a_failure(simulate, tmp_path):
    simulate()
    result = run("--model", str(tmp_path))
    assert result.exit_code == 1
    assert "\nmodel\nfailure  folder" in result.stdout
    assert result.stdout.endswith("with its config.json, weights and tokenizer\n")


def test_package_that_cannot_be_imported(simulate, monkeypatch):
    simulate()
    monkeypatch.setitem(sys.modules, "ptune.commands.doctor.model_folder", None)
    found = examine(DoctorSettings("tiny"))[-1]
    assert (found.group, found.status) == ("model", Status.FAILURE)
    assert "a package cannot be imported" in found.message


def test_one_command_that_mends_two_things_is_shown_once(capsys):
    checks = [Check("cards", name, Status.FAILURE, "x", "mend both") for name in "ab"]
    views.show_doctor(checks, as_json=False)
    assert capsys.readouterr().out.count("mend both") == 1


def test_all_is_well(capsys):
    views.show_doctor([Check("torch", "torch", Status.OK, "[2.13]")], as_json=False)
    shown = capsys.readouterr().out
    assert "ok       torch  [2.13]" in shown
    assert shown.endswith("\nAll is well.\n")
