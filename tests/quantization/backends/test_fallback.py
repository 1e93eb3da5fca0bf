"""Which backend is chosen, and what is said about those that are not; on simulated cards."""

import re
import subprocess
import sys
import types

import pytest
import torch

from ptune.errors import ConfigError
from ptune.quantization import codec
from ptune.quantization.backends import card, probe, registry
from ptune.quantization.backends.fallback import choose_backend, inspect_backends
from ptune.quantization.backends.probe import ProbeResult
from ptune.quantization.backends.registry import BACKENDS

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.fixture
def results(simulate, monkeypatch):
    """Set the results of the probe: a reason for each backend that does not work."""

    def give(**reasons):
        simulate("H100")
        asked = []

        def probe_backend(name, device, fresh=False):
            asked.append(name)
            reason = reasons.get(name.replace("-", "_"), "")
            return ProbeResult(not reason, reason)

        monkeypatch.setattr(probe, "probe_backend", probe_backend)
        monkeypatch.setattr(registry, "load_backend", registry.load_backend)
        monkeypatch.setattr(
            "ptune.quantization.backends.fallback.load_backend",
            lambda name: registry.Backend(name, codec.dequantize),
        )
        return asked

    return give


@pytest.mark.parametrize("name", ["cpu", "mps", "meta"])
def test_without_cuda_it_is_torch_and_nothing_is_tried(monkeypatch, caplog, name):
    monkeypatch.setattr(probe, "probe_backend", None)
    backend = choose_backend(None, torch.device(name))
    assert (backend.name, backend.multiply) == ("torch", None)
    assert backend.dequantize is codec.dequantize
    assert choose_backend("torch", torch.device(name)) == backend
    assert not caplog.records


@pytest.mark.parametrize("name", ["P100", "H100"])
def test_nvrtc_comes_first(simulate, nvrtc, name, caplog):
    """On a P100, too, for which the original has no machine code."""
    simulate(name, new_process=name == "P100")
    backend = choose_backend(None, CUDA)
    assert (backend.name, backend.multiply) == ("nvrtc", None)
    weight, scale = torch.randint(-128, 128, (3, 24), dtype=torch.int8), torch.rand(3)
    expected = codec.dequantize(weight, scale, 4, torch.float16)
    assert torch.equal(backend.dequantize(weight, scale, 4, torch.float16), expected)
    assert not caplog.records


def test_torch_where_nothing_else_works(simulate, monkeypatch, caplog):
    simulate("P100")
    found = card.Card("Tesla P100", (6, 0), "570.86", "99.0")
    monkeypatch.setattr(card, "describe", lambda device: found)
    assert choose_backend(None, CUDA).name == "torch"
    assert caplog.messages == [
        "4- and 8-bit weights: nvrtc is unavailable (libnvrtc.so.99 not found), triton is"
        " unavailable (Triton needs a card of compute capability 7.0 or newer, not 6.0); using"
        " torch (same results, slower). `ptune doctor` tells more"
    ]


@pytest.mark.parametrize(
    "fault, reason",
    [
        ("numbers", r"gave other numbers: 1 of \d+ at 4 bits in torch.float16"),
        ("crash", "its test was ended by SIGABRT"),
        (
            "launch",
            r"cuLaunchKernel: unspecified launch failure \(CUDA_ERROR_LAUNCH_FAILED = 719\)",
        ),
    ],
)
def test_a_backend_that_fails_is_passed_over(simulate, nvrtc, caplog, fault, reason):
    simulate("T4", fault)
    assert choose_backend(None, CUDA).name == "torch"
    (message,) = caplog.messages
    assert re.search(rf"nvrtc is unavailable \({reason}\), triton .*; using torch", message)
    with pytest.raises(ConfigError, match=reason):
        choose_backend("nvrtc", CUDA)


def test_then_triton_then_torch(results, caplog):
    results(nvrtc="libnvrtc.so.12 not found")
    assert choose_backend(None, CUDA).name == "triton"
    assert caplog.messages == [
        "4- and 8-bit weights: nvrtc is unavailable (libnvrtc.so.12 not found); using triton"
        " (same results). `ptune doctor` tells more"
    ]
    caplog.clear()
    results(nvrtc="libnvrtc.so.12 not found", triton="gave other numbers")
    assert choose_backend(None, CUDA).name == "torch"
    assert caplog.messages == [
        "4- and 8-bit weights: nvrtc is unavailable (libnvrtc.so.12 not found), triton is"
        " unavailable (gave other numbers); using torch (same results, slower). `ptune doctor`"
        " tells more"
    ]
    assert [(record.name, record.levelname) for record in caplog.records] == [("ptune", "WARNING")]


def test_cpm_is_never_chosen_by_itself(results):
    asked = results(nvrtc="x", triton="x")
    choose_backend(None, CUDA)
    assert "cpm" not in asked
    assert choose_backend("cpm", CUDA).name == "cpm"


def test_the_fused_kernel_is_used_with_nvrtc_where_it_works(results, caplog):
    results()
    assert choose_backend(None, CUDA).multiply is registry.multiply
    assert choose_backend("nvrtc", CUDA).multiply is None  # what was asked for, and nothing else
    results(triton_multiply="x")
    assert choose_backend(None, CUDA).multiply is None
    assert not caplog.records  # it is optional


@pytest.mark.parametrize("name", ["nvrtc", "triton", "cpm"])
def test_a_backend_asked_for_that_fails_is_an_error(results, name):
    results(**{name: "gave other numbers"})
    message = (
        rf"quantization_backend {name} does not work on cuda:0 \(gave other numbers\);"
        " leave it out, and the best backend that works is chosen"
    )
    with pytest.raises(ConfigError, match=message):
        choose_backend(name, CUDA)
    with pytest.raises(
        ConfigError, match=f"quantization_backend {name} needs a CUDA card, not cpu"
    ):
        choose_backend(name, CPU)


@pytest.mark.parametrize("device", [CUDA, CPU])
def test_an_unknown_backend_is_an_error(device):
    message = "quantization_backend cuda is unknown; choose one of nvrtc, triton, torch, cpm"
    with pytest.raises(ConfigError, match=message):
        choose_backend("cuda", device)


def test_a_cached_failure_is_probed_again_when_asked_for(simulate, monkeypatch):
    simulate("H100")
    monkeypatch.setattr(
        probe,
        "probe_backend",
        lambda name, device, fresh=False: ProbeResult(fresh, "" if fresh else "cached"),
    )
    assert choose_backend("nvrtc", CUDA).name == "nvrtc"


def test_doctor_without_cuda():
    found = {report.name: report for report in inspect_backends(CPU)}
    assert tuple(found) == BACKENDS
    assert found["torch"].works and found["torch"].chosen
    assert found["nvrtc"].reason == "needs a CUDA card, not cpu"
    assert not any(found[name].works for name in BACKENDS if name != "torch")


@pytest.mark.parametrize(
    "reasons, chosen",
    [
        ({}, {"nvrtc", "triton-multiply"}),
        ({"nvrtc": "x"}, {"triton", "triton-multiply"}),
        ({"nvrtc": "x", "triton": "x"}, {"torch"}),
        ({"triton": "x", "triton_multiply": "x"}, {"nvrtc"}),
    ],
)
def test_doctor_says_what_is_chosen(results, reasons, chosen):
    results(**reasons)
    reports = inspect_backends(CUDA)
    assert [report.name for report in reports] == [*BACKENDS, "triton-multiply"]
    assert {report.name for report in reports if report.chosen} == chosen
    assert {r.name for r in reports if not r.works} == {n.replace("_", "-") for n in reasons}


def test_the_fused_kernel_is_for_small_batches(monkeypatch):
    calls = []
    module = types.ModuleType("ptune.quantization.backends.triton_kernels")
    module.multiply = lambda x, *rest: calls.append(x.shape) or x @ torch.ones(8, 5, dtype=x.dtype)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("ptune.quantization.backends.triton_kernels", module, raising=False)
    monkeypatch.setattr(registry, "fused_rows", lambda device: 16)
    weight = torch.zeros(5, 8, dtype=torch.int8), torch.ones(5), 8
    assert registry.multiply(torch.ones(2, 8, 8).half(), *weight).shape == (2, 8, 5)
    assert registry.multiply(torch.ones(8).half(), *weight).shape == (5,)
    assert calls == [(16, 8), (1, 8)]
    for unfit in (torch.ones(17, 8).half(), torch.ones(2, 8), torch.ones(0, 8).half()):
        assert registry.multiply(unfit, *weight) is None
    assert len(calls) == 2


@pytest.mark.parametrize(("capability", "rows"), [((7, 5), 1), ((8, 0), 16), ((9, 0), 16)])
def test_how_many_rows_depends_on_the_card(monkeypatch, capability, rows):
    pytest.importorskip("triton", reason="needs triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert registry.fused_rows.__wrapped__(CUDA) == rows


def test_importing_loads_no_kernel_library():
    code = (
        "import sys; from ptune.quantization.backends import cpm, fallback, probe;"
        "print({'triton', 'cpm_kernels', 'bitsandbytes'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
