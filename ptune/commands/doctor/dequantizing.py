"""Which way of restoring 4- and 8-bit weights is used, and why not one above it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ptune.commands.doctor.check import Check, Status
from ptune.commands.doctor.torch_probe import CardFacts

if TYPE_CHECKING:
    from ptune.quantization.backends.fallback import BackendReport

_GUARANTEED = "torch"
_ON_REQUEST = {"cpm"}  # never chosen by itself
_NVRTC_PACKAGES = {"12": "nvidia-cuda-nvrtc-cu12", "13": "nvidia-cuda-nvrtc"}


def examine_dequantizing(cards: Sequence[CardFacts], cuda: str | None) -> list[Check]:
    """Try the ways on one card of each kind on which torch runs, or on the CPU.

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
        except Exception as error:  # trying a card may go wrong in any way; the report goes on
            said = f"the ways could not be tried ({type(error).__name__}: {error})"
            mend = "use --quantization-backend torch, which works on every card"
            checks.append(Check("quantization", name, Status.WARNING, said, mend))
    return checks


def judge_dequantizing(
    reports: Sequence[BackendReport], name: str, cuda: str | None
) -> list[Check]:
    """A line for the way that is used, and one for each faster one that is not.

    Args:
        reports: from `ptune.quantization.backends.fallback.inspect_backends`, fastest first.
        name: of the device.
        cuda: the CUDA version of torch's build.
    """
    chosen = [report.name for report in reports if report.chosen]
    way, *fused = chosen
    said = f"{way} restores 4- and 8-bit weights"
    if fused:
        said += "; Triton multiplies few rows without restoring them"
    on_card = "card" in name
    if not on_card:
        return [Check("quantization", name, Status.OK, f"{said}; the other ways are for cards")]
    status, mend = Status.OK, ""
    if _GUARANTEED in chosen:
        status = Status.WARNING
        said += ", with the same results but slower than the ways below"
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
