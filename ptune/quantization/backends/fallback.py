"""The fallback order of the dequantization backends, and which backend is used on a device.

All backends give the same numbers, bit for bit; they differ in speed and in what they need.
`torch` runs wherever torch does.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ptune.errors import ConfigError
from ptune.quantization.backends.registry import (
    BACKENDS,
    FALLBACK_ORDER,
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
    """What `ptune doctor` says of one backend.

    Attributes:
        name: one of `BACKENDS`, or `triton-multiply`, the fused kernel for small batches.
        works: whether it gave the right numbers on the device just now.
        reason: why not, on one line.
        chosen: whether it is used by default.
    """

    name: str
    works: bool
    reason: str
    chosen: bool


def choose_backend(wanted: str | None, device: torch.device) -> Backend:
    """Choose the dequantization backend for a device; called once for a model.

    Args:
        wanted: one of `BACKENDS`, or None for the best that works.
        device: where the weights are.

    Raises:
        ConfigError: `wanted` is unknown, or does not work on the device.
    """
    if wanted is not None:
        return _require(wanted, device)
    if device.type != "cuda":
        return load_backend("torch")
    from ptune.quantization.backends import probe

    refused: list[str] = []
    for name in FALLBACK_ORDER:
        result = None if name == "torch" else probe.probe_backend(name, device)
        if result is None or result.works:
            if refused:
                _warn(refused, name)
            backend = load_backend(name)
            if name == "nvrtc" and probe.probe_backend(probe.FUSED, device).works:
                backend = replace(backend, multiply=multiply)
            return backend
        refused.append(f"{name} is unavailable ({result.reason})")
    raise AssertionError("torch is the last one and works")


def inspect_backends(device: torch.device) -> list[BackendReport]:
    """Probe every backend on a device anew, which takes seconds on a card."""
    if device.type != "cuda":
        reason = f"needs a CUDA card, not {device.type}"
        return [
            BackendReport(name, name == "torch", "" if name == "torch" else reason, name == "torch")
            for name in BACKENDS
        ]
    from ptune.quantization.backends import probe

    results = {
        name: probe.ProbeResult(True)
        if name == "torch"
        else probe.probe_backend(name, device, fresh=True)
        for name in (*BACKENDS, probe.FUSED)
    }
    chosen = {next(name for name in FALLBACK_ORDER if results[name].works)}
    if chosen <= {"nvrtc", "triton"}:
        chosen.add(probe.FUSED)
    return [
        BackendReport(name, result.works, result.reason, result.works and name in chosen)
        for name, result in results.items()
    ]


def _require(name: str, device: torch.device) -> Backend:
    """Return the backend asked for by name; there is no fallback from it."""
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

        result = probe.probe_backend(name, device)
        if not result.works:  # perhaps the cached result is out of date
            result = probe.probe_backend(name, device, fresh=True)
        if not result.works:
            raise ConfigError(
                f"quantization_backend {name} does not work on {device} ({result.reason});"
                " leave it out, and the best backend that works is chosen"
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
