"""The probe: its results, its subprocess, and its cache."""

import sys

import pytest
import simulated_card
import torch

from ptune.quantization import codec
from ptune.quantization.backends import card, probe, registry
from ptune.quantization.backends.probe import ProbeResult, check, probe_backend
from ptune.quantization.backends.registry import Backend

CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")  # where the simulated card keeps its tensors
DTYPES = [torch.float16, torch.float32, torch.bfloat16]


@pytest.fixture
def spawned(monkeypatch):
    """Count the subprocesses."""
    names, real = [], probe._probe_in_subprocess

    def count(name, device):
        names.append(name)
        return real(name, device)

    monkeypatch.setattr(probe, "_probe_in_subprocess", count)
    return names


@pytest.mark.parametrize("name", ["P100", "T4", "H100"])
def test_nvrtc_gives_the_right_numbers(simulate, nvrtc, name):
    simulate(name)
    assert check("nvrtc", CPU, DTYPES) == ""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [4, 8])
def test_one_wrong_bit_is_seen(monkeypatch, simulate, dtype, bits):
    def wrong(weight, scale, width, wanted):
        result = codec.dequantize(weight, scale, width, wanted)
        if (width, wanted) == (bits, dtype) and result.shape[1] > 8000:
            result.view(torch.uint8)[-1, -2] ^= 1
        return result

    simulate("H100")
    monkeypatch.setattr(probe, "load_backend", lambda name: Backend(name, wrong))
    assert check("any", CPU, DTYPES).startswith("gave other numbers: 1 of ")


def test_a_lost_sign_of_zero_is_seen(simulate, monkeypatch):
    def wrong(*arguments):
        return codec.dequantize(*arguments) + 0.0

    simulate("H100")
    monkeypatch.setattr(probe, "load_backend", lambda name: Backend(name, wrong))
    assert "gave other numbers" in check("any", CPU, DTYPES)


def test_the_fused_kernel(simulate, monkeypatch):
    simulate("H100")
    monkeypatch.setattr(probe, "fused_rows", lambda device: 16)

    def fused(x, weight, scale, bits):
        return x @ codec.dequantize(weight, scale, bits, x.dtype).T

    monkeypatch.setattr(probe, "multiply", fused)
    assert check(probe.FUSED, CPU, DTYPES) == ""
    monkeypatch.setattr(probe, "multiply", lambda *a: fused(*a) * (1.1 if a[0].shape[0] > 3 else 1))
    assert "gave other numbers: off by" in check(probe.FUSED, CPU, DTYPES)
    monkeypatch.setattr(probe, "multiply", lambda *a: None)
    assert "gave other numbers: off by nan" in check(probe.FUSED, CPU, DTYPES)


def test_results_are_cached_until_probed_anew(simulate, nvrtc, spawned, cache, monkeypatch):
    simulate("P100")
    assert probe_backend("nvrtc", CUDA) == ProbeResult(True)
    assert probe_backend("nvrtc", CUDA) == ProbeResult(True)
    assert spawned == ["nvrtc"]
    (file,) = cache.glob("probe/*.json")

    monkeypatch.setattr(
        probe, "_probe_in_subprocess", lambda name, device: ProbeResult(False, "anew")
    )
    cached = file.read_bytes()
    for damaged in (b"", cached[:-3], b"{}", cached.replace(b"true", b"1234")):
        file.write_bytes(damaged)
        assert probe_backend("nvrtc", CUDA).reason == "anew"
    file.write_bytes(cached)
    assert probe_backend("nvrtc", CUDA) == ProbeResult(True)
    assert probe_backend("nvrtc", CUDA, fresh=True).reason == "anew"
    assert probe_backend("nvrtc", CUDA).reason == "anew"  # the newer result counts


@pytest.mark.parametrize(
    "change",
    [
        {"name": "Tesla P100-SXM2-16GB"},
        {"capability": (6, 1)},
        {"driver": "580.95"},
        {"cuda": "12.8"},
        {"torch": "2.99"},
        {"triton": "9.9"},
        {"sources": "other"},
        {"python": "3.99"},
    ],
)
def test_another_card_or_other_software_is_probed_anew(simulate, cache, monkeypatch, change):
    """Each part of the cache key."""
    simulate("P100")
    asked = []
    monkeypatch.setattr(probe, "missing_requirement", lambda name, found: None)
    monkeypatch.setattr(
        probe, "_probe_in_subprocess", lambda name, device: asked.append(name) or ProbeResult(True)
    )
    probe_backend("nvrtc", CUDA)
    probe_backend("triton", CUDA)
    probe_backend("nvrtc", CUDA)
    assert asked == ["nvrtc", "triton"]
    (what, value), *_ = change.items()
    if what == "torch":
        monkeypatch.setattr(torch, "__version__", value)
    elif what == "triton":
        monkeypatch.setattr(probe, "_version", lambda: value)
    elif what == "sources":
        monkeypatch.setattr(probe, "_sources", lambda: value)
    elif what == "python":
        monkeypatch.setattr(probe.platform, "python_version", lambda: value)
    else:
        found = simulated_card.CARDS["P100"]
        other = card.Card(**{**vars(found), what: value})
        monkeypatch.setattr(card, "describe", lambda device: other)
    probe_backend("nvrtc", CUDA)
    assert asked == ["nvrtc", "triton", "nvrtc"]


def test_a_cache_that_cannot_be_written_means_probing_again(simulate, cache, monkeypatch):
    simulate("P100")
    cache.write_text("a file where the folder belongs")
    asked = []
    monkeypatch.setattr(probe, "missing_requirement", lambda name, found: None)
    monkeypatch.setattr(
        probe, "_probe_in_subprocess", lambda name, device: asked.append(name) or ProbeResult(True)
    )
    assert probe_backend("nvrtc", CUDA).works and probe_backend("nvrtc", CUDA).works
    assert asked == ["nvrtc", "nvrtc"]


@pytest.mark.parametrize(
    "fault, reason, cached",
    [
        ("numbers", "gave other numbers: 1 of", True),
        ("crash", "its test was ended by SIGABRT", True),
        ("launch", "cuLaunchKernel: unspecified launch failure", False),
    ],
)
def test_a_backend_that_fails(simulate, nvrtc, spawned, fault, reason, cached):
    """None of it harms the process that asks."""
    simulate("P100", fault)
    result = probe_backend("nvrtc", CUDA)
    assert not result.works and reason in result.reason
    assert "\n" not in result.reason
    if cached:
        assert probe_backend("nvrtc", CUDA) == result
        assert len(spawned) == 1
    assert result.lasting == cached


def test_a_backend_that_never_ends(simulate, nvrtc, monkeypatch):
    simulate("P100", new_process=True)
    monkeypatch.setattr(probe, "TIMEOUT", 0.2)
    monkeypatch.setattr(
        probe, "command", lambda: [sys.executable, "-c", "import time; time.sleep(60)"]
    )
    assert probe_backend("nvrtc", CUDA) == ProbeResult(
        False, "its test did not end within 0 seconds"
    )


@pytest.mark.parametrize("text", ["", "no result", "[]", '{"works": "yes", "reason": ""}'])
def test_a_process_that_says_nothing_has_failed(simulate, nvrtc, monkeypatch, text):
    simulate("P100", new_process=True)
    monkeypatch.setattr(probe, "command", lambda: [sys.executable, "-S", "-c", f"print({text!r})"])
    reason = "its test ended with code 0: without an answer"
    assert probe_backend("nvrtc", CUDA) == ProbeResult(False, reason, lasting=False)


def test_a_process_that_the_system_ends_is_probed_again(simulate, nvrtc, monkeypatch):
    simulate("P100", new_process=True)
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    monkeypatch.setattr(probe, "command", lambda: [sys.executable, "-S", "-c", kill])
    assert probe_backend("nvrtc", CUDA) == ProbeResult(
        False, "its test was ended by SIGKILL", lasting=False
    )


def test_a_process_that_cannot_import_says_so(simulate, nvrtc, monkeypatch):
    simulate("P100", new_process=True)
    monkeypatch.setattr(
        probe, "command", lambda: [sys.executable, "-S", "-c", "import no_such_module"]
    )
    reason = "its test ended with code 1: ModuleNotFoundError: No module named 'no_such_module'"
    assert probe_backend("nvrtc", CUDA) == ProbeResult(False, reason, lasting=False)


def test_files_of_the_working_directory_are_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("json", "torch", "argparse"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('run')")
    run = probe.start(["--backend", "torch", "--device", "cpu"])
    assert run.returncode == 0, run.stderr
    assert probe._parse(run.stdout.splitlines()[-1])


def test_an_error_is_a_result(simulate, monkeypatch, capsys):
    """Those of the fused kernel are cached, unless the card was out of memory."""
    simulate("H100")
    errors = iter([RuntimeError("no C compiler\nlong"), KeyError("x")] * 2)

    def fail(*arguments):
        raise next(errors)

    monkeypatch.setattr(probe, "check", fail)
    found = []
    for name in ("triton", "triton", probe.FUSED, probe.FUSED):
        probe.main(["--backend", name, "--device", "cpu"])
        found.append(probe._parse(capsys.readouterr().out))
    reasons = ["no C compiler", "KeyError: 'x'"] * 2
    assert found == [ProbeResult(False, reasons[i], lasting=i > 1) for i in range(4)]
    errors = iter([torch.OutOfMemoryError("CUDA out of memory")])
    probe.main(["--backend", probe.FUSED, "--device", "cpu"])
    full = ProbeResult(False, "CUDA out of memory", lasting=False)
    assert probe._parse(capsys.readouterr().out) == full


def test_a_process_that_cannot_be_started(simulate, nvrtc, monkeypatch):
    simulate("P100", new_process=True)
    monkeypatch.setattr(probe, "command", lambda: ["/no/such/python"])
    result = probe_backend("nvrtc", CUDA)
    assert "its test could not be started: " in result.reason
    assert not result.lasting


def test_what_is_missing_is_said_without_a_process(simulate, spawned, monkeypatch):
    simulate("P100")
    found = card.Card("Tesla P100", (6, 0), "570.86", "99.0")
    monkeypatch.setattr(card, "describe", lambda device: found)
    assert probe_backend("nvrtc", CUDA) == ProbeResult(
        False, "libnvrtc.so.99 not found", lasting=False
    )
    assert not spawned


def test_requirements_of_triton(monkeypatch):
    p100, t4 = (simulated_card.CARDS[name] for name in ("P100", "T4"))
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: None)
    assert registry.missing_requirement("triton", p100) == (
        "Triton needs a card of compute capability 7.0 or newer, not 6.0"
    )
    assert registry.missing_requirement("triton", t4) == "triton is not installed"
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: "there")
    assert registry.missing_requirement("triton", t4) is None
    monkeypatch.setattr(registry.sys, "platform", "win32")
    assert registry.missing_requirement("triton", t4) == "Triton runs on Linux only"
    assert registry.missing_requirement("torch", p100) is None


def test_bfloat16_is_tried_where_the_card_has_it(simulate, monkeypatch, capsys):
    tried = []
    monkeypatch.setattr(probe, "check", lambda name, device, dtypes: tried.append(dtypes) or "")
    for name in ("T4", "H100"):
        simulate(name)
        probe.main(["--backend", "nvrtc", "--device", "cpu"])
        assert probe._parse(capsys.readouterr().out) == ProbeResult(True)
    assert tried == [[torch.float16, torch.float32], [torch.float16, torch.float32, torch.bfloat16]]
