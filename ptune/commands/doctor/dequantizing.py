"""Check of the dequantization backends: which one is used, and why not a faster one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ptune.commands.doctor.check import Check, Status
from ptune.commands.doctor.torch_probe import CardFacts

if TYPE_CHECKING:
    from ptune.quantization.backends.fallback import BackendReport

_ALWAYS_WORKS = "torch"
_ON_REQUEST = {"cpm"}  # never chosen by itself
_NVRTC_PACKAGES = {"12": "nvidia-cuda-nvrtc-cu12", "13": "nvidia-cuda-nvrtc"}


def examine_dequantizing(cards: Sequence[CardFacts], cuda: str | None) -> list[Check]:
    """Probe the backends on one card of each kind on which torch runs, or on the CPU.

    Args:
        cards: those that torch sees.
        cuda: the CUDA version of torch's build.
    """
    import torch

    from ptune.quantization.backends.fallback import inspect_backends

    first_of_kind: dict[str, int] = {}
    for card in cards:
        if card.error is None:
            first_of_kind.setdefault(card.name, card.index)
    devices = [torch.device("cuda", index) for index in first_of_kind.values()]
    checks = []
    for device in devices or [torch.device("cpu")]:
        name = "on the CPU" if device.index is None else f"on card {device.index}"
        try:
            checks += judge_dequantizing(inspect_backends(device), name, cuda)
        except Exception as error:  # a probe may fail in any manner; the report continues
            said = f"the backends could not be tried ({type(error).__name__}: {error})"
            mend = "use --quantization-backend torch, which works on every card"
            checks.append(Check("quantization", name, Status.WARNING, said, mend))
    return checks


def judge_dequantizing(
    reports: Sequence[BackendReport], name: str, cuda: str | None
) -> list[Check]:
    """A check for the backend that is used, and one for each that does not work.

    Args:
        reports: from `ptune.quantization.backends.fallback.inspect_backends`, fastest first.
        name: of the device.
        cuda: the CUDA version of torch's build.
    """
    chosen = [report.name for report in reports if report.chosen]
    backend, *fused = chosen
    said = f"{backend} dequantizes 4- and 8-bit weights"
    if fused:
        said += "; Triton multiplies small batches without dequantizing them"
    on_card = "card" in name
    if not on_card:
        return [Check("quantization", name, Status.OK, f"{said}; the other backends are for cards")]
    status, mend = Status.OK, ""
    if _ALWAYS_WORKS in chosen:
        status = Status.WARNING
        said += ", with the same results but slower than the backends below"
        mend = _how_to_get_nvrtc(reports, cuda)
    checks = [Check("quantization", name, status, said, mend)]
    for report in reports:
        if report.works or report.name in chosen:
            continue
        only = "; it is only used on request" if report.name in _ON_REQUEST else ""
        why = f"not used: {report.reason}{only}"
        checks.append(Check("quantization", f"{name}: {report.name}", Status.OK, why))
    return checks


def _how_to_get_nvrtc(reports: Sequence[BackendReport], cuda: str | None) -> str:
    reason = next((report.reason for report in reports if report.name == "nvrtc"), "")
    package = _NVRTC_PACKAGES.get((cuda or "").split(".")[0])
    if "nvrtc" in reason and "not found" in reason and package:
        return f"pip install {package}"
    return "nothing has to be done; a bug report with these lines helps to make it faster"
