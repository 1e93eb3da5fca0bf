"""Checks of CPU memory and disk, of the machine or of the container that ptune runs in."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ptune.commands.doctor.check import Check, Status
from ptune.device.host_memory import HostMemory

GB = 10**9
# ChatGLM-6B has this many; float32 takes 4 bytes of each.
CHATGLM_6B = 6_200_000_000
_HALF_A_BYTE_AND_MORE = 0.65  # bytes of a parameter: four bits, scales, and embeddings in full

_LEAST_MEMORY = 1 * GB  # torch and transformers in memory, and hardly more
_MEMORY_TO_LOAD = 3 * GB  # the two, and the largest tensor on its way to a card
_MEMORY_TO_WORK = 2 * GB  # beside the weights, on the CPU
_LEAST_DISK = GB // 2  # one checkpoint of ChatGLM-6B with what it takes to resume
_DISK_FOR_CHECKPOINTS = 2 * GB  # as many as are kept by default
_WEIGHTS_ON_DISK = 13.5 * GB  # of one model in half precision


def judge_memory(
    memory: HostMemory | None, on_card: bool, parameters: int = CHATGLM_6B, name: str = "ChatGLM-6B"
) -> Check:
    """Check that a model can be loaded.

    Args:
        memory: from `read_host_memory`.
        on_card: whether a card computes, so that weights only pass through CPU memory.
        parameters: of the model.
        name: of the model.
    """
    if memory is None:
        return Check("machine", "memory", Status.OK, "unknown on this system")
    whose = "of the container's " if memory.container else "of "
    said = f"{memory.available / GB:.1f} {whose}{memory.total / GB:.1f} GB available"
    more = (
        "raise the container's memory limit, e.g. docker run --memory 32g"
        if memory.container
        else "close other programs"
    )
    if memory.available < _LEAST_MEMORY:
        said += "; torch alone takes most of it"
        return Check("machine", "memory", Status.FAILURE, said, more)
    if on_card:
        if memory.available < _MEMORY_TO_LOAD:
            said += f"; loading takes up to {_MEMORY_TO_LOAD / GB:.0f}"
            return Check("machine", "memory", Status.WARNING, said, more)
        return Check("machine", "memory", Status.OK, said)
    needs = [
        (parameters * size + _MEMORY_TO_WORK, flag)
        for size, flag in ((4, ""), (2, "--dtype bfloat16"), (_HALF_A_BYTE_AND_MORE, "4"))
    ]
    if memory.available >= needs[0][0]:
        return Check("machine", "memory", Status.OK, said)
    said += f"; {name} takes {needs[0][0] / GB:.0f} on the CPU in float32"
    for need, flag in needs[1:]:
        if memory.available >= need:
            flag = "--quantization-bit 4" if flag == "4" else flag
            return Check(
                "machine", "memory", Status.WARNING, said, f"use {flag} ({need / GB:.0f} GB)"
            )
    return Check(
        "machine", "memory", Status.WARNING, f"{said}, {needs[-1][0] / GB:.0f} in 4 bits", more
    )


def hub_cache() -> Path:
    """Where downloaded models are kept: HF_HUB_CACHE, HF_HOME/hub, or below the home folder."""
    home = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    hub_home = os.environ.get("HF_HOME", f"{home}/huggingface")
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(os.path.expandvars(named or f"{hub_home}/hub")).expanduser()


def free_disk(folder: Path) -> int | None:
    """Bytes free where `folder` is or will be; None if that cannot be told."""
    for existing in (folder, *folder.absolute().parents):
        if existing.is_dir():
            try:
                return shutil.disk_usage(existing).free
            except OSError:
                return None
    return None


def judge_disk(free: int | None, folder: Path) -> Check:
    """Check that the checkpoints of a training fit into the current folder."""
    if free is None:
        return Check("machine", "disk", Status.OK, f"unknown for {folder}")
    said = f"{free / GB:.1f} GB free in {folder}"
    mend = f"free {_DISK_FOR_CHECKPOINTS // GB} GB there, or use --output on another disk"
    if free < _LEAST_DISK:
        return Check(
            "machine", "disk", Status.FAILURE, f"{said}; a checkpoint takes up to 0.4", mend
        )
    if free < _DISK_FOR_CHECKPOINTS:
        said += f"; the checkpoints of a training take up to {_DISK_FOR_CHECKPOINTS // GB}"
        return Check("machine", "disk", Status.WARNING, said, mend)
    return Check("machine", "disk", Status.OK, said)


def judge_cache(free: int | None, folder: Path, wanted: bool | None) -> Check:
    """Check that a model can be downloaded.

    Args:
        free: bytes.
        folder: the cache.
        wanted: True if a model must come there, False if none will, None if nobody said.
    """
    if free is None:
        return Check("machine", "hub cache", Status.OK, f"unknown for {folder}")
    said = f"{free / GB:.1f} GB free in {folder}"
    if wanted is False or free >= _WEIGHTS_ON_DISK:
        return Check("machine", "hub cache", Status.OK, said)
    return Check(
        "machine",
        "hub cache",
        Status.FAILURE if wanted else Status.WARNING,
        f"{said}; the download of a model takes {_WEIGHTS_ON_DISK / GB:.1f}",
        "export HF_HOME=/a/folder/on/a/larger/disk",
    )
