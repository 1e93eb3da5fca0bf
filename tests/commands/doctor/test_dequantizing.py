"""The check of the dequantization backends."""

import pytest

from ptune.commands.doctor.check import Status
from ptune.commands.doctor.dequantizing import examine_dequantizing, judge_dequantizing
from ptune.commands.doctor.torch_probe import CardFacts
from ptune.quantization.backends import fallback
from ptune.quantization.backends.fallback import BackendReport


def card(index, name="Tesla P100", error=None):
    return CardFacts(index, name, (6, 0), 16, 15, error, "float16")


def reports(chosen="nvrtc", **refused):
    names = ("nvrtc", "triton", "torch", "cpm")
    return [
        BackendReport(name, name not in refused, refused.get(name, ""), name == chosen)
        for name in names
    ]


def judge(*args):
    checks = judge_dequantizing(*args)
    for check in checks:
        assert bool(check.mend) == (check.status is not Status.OK)
    return {check.name: check for check in checks}


def test_on_the_cpu():
    (check,) = examine_dequantizing([], None)
    assert (check.name, check.status) == ("on the CPU", Status.OK)
    assert (
        check.message == "torch dequantizes 4- and 8-bit weights; the other backends are for cards"
    )


def test_fastest_backend():
    checks = judge(reports(cpm="libcudart not found"), "on card 0", "12.6")
    assert checks["on card 0"].message == "nvrtc dequantizes 4- and 8-bit weights"
    assert checks["on card 0: cpm"].message == (
        "not used: libcudart not found; it is only used on request"
    )
    assert list(checks) == ["on card 0", "on card 0: cpm"]


def test_fused_kernel():
    fused = BackendReport("triton-multiply", True, "", True)
    checks = judge([*reports(), fused], "on card 0", "12.6")
    assert checks["on card 0"].message == (
        "nvrtc dequantizes 4- and 8-bit weights; Triton multiplies small batches without "
        "dequantizing them"
    )


@pytest.mark.parametrize(
    ("reason", "cuda", "mend"),
    [
        ("libnvrtc.so.12 not found", "12.6", "pip install nvidia-cuda-nvrtc-cu12"),
        ("libnvrtc.so.13 not found", "13.0", "pip install nvidia-cuda-nvrtc"),
        ("another sum", "13.0", "nothing has to be done; a bug report"),
    ],
)
def test_backend_that_always_works(reason, cuda, mend):
    found = reports("torch", nvrtc=reason, triton="no C compiler")
    checks = judge(found, "on card 1", cuda)
    assert checks["on card 1"].status is Status.WARNING
    assert "torch dequantizes" in checks["on card 1"].message
    assert "same results but slower than the backends below" in checks["on card 1"].message
    assert checks["on card 1"].mend.startswith(mend)
    assert checks["on card 1: nvrtc"].message == f"not used: {reason}"
    assert checks["on card 1: triton"].message == "not used: no C compiler"


def test_one_card_of_each_kind_on_which_torch_runs(monkeypatch):
    asked = []
    monkeypatch.setattr(fallback, "inspect_backends", lambda d: asked.append(str(d)) or reports())
    cards = [card(0, error="no kernel image"), card(1), card(2), card(3, "Tesla T4")]
    checks = examine_dequantizing(cards, "12.6")
    assert asked == ["cuda:1", "cuda:3"]
    assert [check.name for check in checks] == ["on card 1", "on card 3"]


def test_a_probe_that_fails(monkeypatch):
    def fail(device):
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(fallback, "inspect_backends", fail)
    (check,) = examine_dequantizing([card(0)], "12.6")
    assert check.status is Status.WARNING
    assert "the backends could not be tried (RuntimeError: CUDA error)" in check.message
    assert "--quantization-backend torch" in check.mend
