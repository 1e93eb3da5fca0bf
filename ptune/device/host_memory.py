"""Total and available CPU memory: of the machine, or of the container that ptune runs in."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class HostMemory:
    """CPU memory in bytes.

    Attributes:
        total: of the machine, or the container's limit.
        available: what can be had without swapping.
        container: whether a limit of the container (a control group) is the narrower one.
    """

    total: int
    available: int
    container: bool = False


def read_host_memory(root: Path = Path("/")) -> HostMemory | None:
    """Memory of this process's container, else of the machine; None if nothing tells it.

    Args:
        root: of the file system.
    """
    machine = _machine_memory(root)
    limits = [] if machine is None else _container_memory(root)
    for limit in limits:
        assert machine is not None
        if limit.available < machine.available or limit.total < machine.total:
            machine = HostMemory(
                min(limit.total, machine.total), min(limit.available, machine.available), True
            )
    return machine


def _machine_memory(root: Path) -> HostMemory | None:
    try:
        text = (root / "proc/meminfo").read_text()
    except OSError:
        try:
            psutil = importlib.import_module("psutil")  # accelerate brings it
        except ImportError:
            return None
        found = psutil.virtual_memory()
        return HostMemory(found.total, found.available)
    sizes = {name: int(size) * 1024 for name, size in re.findall(r"^(\w+):\s+(\d+) kB", text, re.M)}
    if "MemTotal" not in sizes or "MemAvailable" not in sizes:
        return None
    return HostMemory(sizes["MemTotal"], sizes["MemAvailable"])


def _container_memory(root: Path) -> list[HostMemory]:
    """The limits of this process's control group and of those around it, of either version."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        mount = root / "sys/fs/cgroup"
        names = ("memory.max", "memory.current", "inactive_file")
        if "memory" in controllers.split(","):
            mount = mount / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        elif controllers:
            continue
        # Inside a container the path may be the one outside; the mount itself is then the group.
        group = mount / path.lstrip("/")
        for folder in {group, *group.parents}:
            if (folder == mount or mount in folder.parents) and (limit := _limit(folder, *names)):
                found.append(limit)
    return found


def _limit(folder: Path, limit: str, used: str, reclaimable: str) -> HostMemory | None:
    try:
        total = int((folder / limit).read_text())  # `max` is none
        in_use = int((folder / used).read_text())
        match = re.search(rf"^{reclaimable} (\d+)", (folder / "memory.stat").read_text(), re.M)
    except (OSError, ValueError):
        return None
    in_use -= int(match.group(1)) if match else 0  # files that are cached, and given back
    return HostMemory(total, max(0, total - in_use))
