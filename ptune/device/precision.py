"""Which device and which precision to compute in; the one place that decides.

| device | base | prefix | loss |
|---|---|---|---|
| CPU | float32 | float32 | float32 |
| card from Ampere (compute capability 8.0) on | bfloat16 | float32 | float32 |
| older card | float16, its loss scaled (`loss_scale`) | float32 | float32 |
| Apple's GPU (`mps`) | float16, its loss scaled | float32 | float32 |

Nothing is autocast: the models keep the precision of their weights, cast the prefix's keys and
values to it, and compute the loss in float32.
"""

from __future__ import annotations

import re

import torch

from ptune.config.declaration import shown
from ptune.config.shared_settings import DTYPE_NAMES
from ptune.errors import ConfigError
from ptune.parallel.processes import number_on_machine

_SUPPORTED = re.compile(r"cpu|cuda(:[0-9]{1,2})?|mps(:0)?")
NATIVE_BFLOAT16 = (8, 0)  # compute capability from which cards have it


def choose_device(device: str | torch.device | None) -> torch.device:
    """Resolve a device; None is the first CUDA card, or this process's own one, or the CPU.

    Raises:
        ConfigError: a kind of device that ptune does not compute on, or one that is not there.
    """
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda", number_on_machine())
        return torch.device("cpu")
    name = str(device)
    if not _SUPPORTED.fullmatch(name):
        raise ConfigError(f"device {shown(name)} is not supported; use cpu, cuda, cuda:N or mps")
    chosen = torch.device(name)
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(
            f"device {name!r} is not there (torch {torch.__version__} sees no Apple GPU); "
            "use --device cpu"
        )
    if chosen.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (chosen.index or 0) >= count:
            raise ConfigError(
                f"device {name!r} is not there (torch {torch.__version__} sees {count} cards); "
                "use --device cpu, or install a torch build for your card"
            )
    return chosen


def choose_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """Resolve the precision of the frozen base; the prefix is always float32.

    Args:
        dtype: a name, a torch dtype, or None for the default: bfloat16 on cards that have it,
            float16 on older ones and on Apple's GPU, float32 on the CPU.
        device: where the model will run.

    Raises:
        ConfigError: an unknown name, or bfloat16 on a device without it.
    """
    if isinstance(dtype, str):
        if dtype not in DTYPE_NAMES:
            raise ConfigError(f"dtype {dtype!r} is unknown; use one of {', '.join(DTYPE_NAMES)}")
        dtype = getattr(torch, dtype)
    assert dtype is None or isinstance(dtype, torch.dtype)
    if device.type == "mps":
        if dtype is torch.bfloat16:
            raise ConfigError(
                "dtype bfloat16 is not native on every Apple GPU; use --dtype float16 or float32"
            )
        return dtype or torch.float16
    if device.type != "cuda":
        return dtype or torch.float32
    capability = torch.cuda.get_device_capability(device)
    if dtype is torch.bfloat16 and capability < NATIVE_BFLOAT16:
        name, version = torch.cuda.get_device_name(device), "{}.{}".format(*capability)
        raise ConfigError(
            f"dtype bfloat16 is not native on {name} (compute capability {version}); "
            "use --dtype float16"
        )
    return dtype or (torch.bfloat16 if capability >= NATIVE_BFLOAT16 else torch.float16)


def needs_loss_scale(dtype: torch.dtype) -> bool:
    """Whether gradients in this precision become zero unless the loss is scaled up."""
    return dtype is torch.float16


def wider_dtype(dtype: torch.dtype, device: torch.device) -> str | None:
    """The precision to use instead when numbers overflow; None if there is none of more range."""
    if dtype is not torch.float16:
        return None
    native = device.type == "cuda" and choose_dtype(None, device) is torch.bfloat16
    return "bfloat16" if native else "float32"
