"""The ladder of ways to restore 4- and 8-bit weights: which one is used on a device.

All give the same numbers, bit for bit; they differ in speed and in what they need.  `torch` runs
wherever torch does.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ptune.errors import ConfigError
from ptune.quantization.backends.registry import (
    AUTOMATIC,
    BACKENDS,
    Backend,
    load_backend,
    multiply,
)

if TYPE_CHECKING:
    import torch

__all__ = ["BACKENDS", "Backend", "BackendReport", "choose_backend", "inspect_backends"]

logger = logging.getLogger("ptune")


@dataclass(frozen=True)
class BackendReport:
    """What `ptune doctor` says of one way.

    Attributes:
        name: one of `BACKENDS`, or `triton-multiply`, the fused multiplication of few rows.
        works: whether it gave the right numbers on the device just now.
        reason: why not, on one line.
        chosen: whether it is used where nothing is asked for.
    """

    name: str
    works: bool
    reason: str
    chosen: bool


def choose_backend(wanted: str | None, device: torch.device) -> Backend:
    """Choose the way to restore weights on a device; to be asked once for a model.

    Args:
        wanted: one of `BACKENDS`, or None for the best that works.
        device: where the weights are.

    Raises:
        ConfigError: `wanted` is unknown, or does not work on the device.
    """
    if wanted is not None:
        return _demand(wanted, device)
    if device.type != "cuda":
        return load_backend("torch")
    from ptune.quantization.backends import probe

    refused: list[str] = []
    for name in AUTOMATIC:
        answer = None if name == "torch" else probe.ask(name, device)
        if answer is None or answer.works:
            if refused:
                _warn(refused, name)
            backend = load_backend(name)
            if name == "nvrtc" and probe.ask(probe.FUSED, device).works:
                backend = replace(backend, multiply=multiply)
            return backend
        refused.append(f"{name} is unavailable ({answer.reason})")
    raise AssertionError("torch is the last of them")


def inspect_backends(device: torch.device) -> list[BackendReport]:
    """Try every way on a device anew, which takes seconds on a card, and say what came out."""
    if device.type != "cuda":
        reason = f"needs a CUDA card, not {device.type}"
        return [
            BackendReport(name, name == "torch", "" if name == "torch" else reason, name == "torch")
            for name in BACKENDS
        ]
    from ptune.quantization.backends import probe

    answers = {
        name: probe.Answer(True) if name == "torch" else probe.ask(name, device, fresh=True)
        for name in (*BACKENDS, probe.FUSED)
    }
    chosen = {next(name for name in AUTOMATIC if answers[name].works)}
    if chosen <= {"nvrtc", "triton"}:
        chosen.add(probe.FUSED)
    return [
        BackendReport(name, answer.works, answer.reason, answer.works and name in chosen)
        for name, answer in answers.items()
    ]


def _demand(name: str, device: torch.device) -> Backend:
    """Return a way that was asked for by name; never another."""
    if name not in BACKENDS:
        raise ConfigError(
            f"quantization_backend {name} is unknown; choose one of {', '.join(BACKENDS)}"
        )
    if name != "torch":
        if device.type != "cuda":
            raise ConfigError(
                f"quantization_backend {name} needs a CUDA card, not {device.type};"
                " leave it out or choose torch"
            )
        from ptune.quantization.backends import probe

        answer = probe.ask(name, device)
        if not answer.works:  # perhaps remembered, and mended since
            answer = probe.ask(name, device, fresh=True)
        if not answer.works:
            raise ConfigError(
                f"quantization_backend {name} does not work on {device} ({answer.reason});"
                " leave it out, and the best way that works is chosen"
            )
    return load_backend(name)


def _warn(refused: list[str], name: str) -> None:
    slower = ", slower" if name == "torch" else ""
    logger.warning(
        "4- and 8-bit weights: %s; using %s (same results%s). `ptune doctor` tells more",
        ", ".join(refused),
        name,
        slower,
    )
