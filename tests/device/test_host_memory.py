"""Memory of machines and containers made of files."""

import pytest

from ptune.device import host_memory
from ptune.device.host_memory import HostMemory, read_host_memory

GB = 10**9
MEMINFO = "MemTotal:       32000000 kB\nMemFree:  1000 kB\nMemAvailable:   16000000 kB\n"
MACHINE = HostMemory(32_000_000 * 1024, 16_000_000 * 1024)


@pytest.fixture
def write(tmp_path):
    """Write files below the root of a file system."""

    def write(files):
        for name, text in files.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return tmp_path

    return write


def test_this_machine():
    memory = read_host_memory()
    assert 0 < memory.available <= memory.total


def test_machine(write):
    assert read_host_memory(write({"proc/meminfo": MEMINFO})) == MACHINE


def test_without_proc(tmp_path):
    psutil = pytest.importorskip("psutil")
    assert read_host_memory(tmp_path).total == psutil.virtual_memory().total


def test_without_anything(tmp_path, monkeypatch):
    def fail(name):
        raise ImportError(name)

    monkeypatch.setattr(host_memory.importlib, "import_module", fail)
    assert read_host_memory(tmp_path) is None


@pytest.mark.parametrize(
    ("cgroup", "folder"), [("0::/a/b", "a"), ("0::/a/b", "a/b"), ("0::/outside", ".")]
)
def test_container_of_version_2(write, cgroup, folder):
    at = f"sys/fs/cgroup/{folder}/"
    root = write(
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": cgroup + "\n",
            at + "memory.max": "8000000000\n",
            at + "memory.current": "3000000000\n",
            at + "memory.stat": "anon 1\ninactive_file 1000000000\n",
        }
    )
    assert read_host_memory(root) == HostMemory(8 * GB, 6 * GB, container=True)


def test_container_of_version_1(write):
    at = "sys/fs/cgroup/memory/docker/7f/"
    root = write(
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "5:cpu:/x\n4:memory:/docker/7f\n0::/\n",
            at + "memory.limit_in_bytes": "8000000000",
            at + "memory.usage_in_bytes": "3000000000",
            at + "memory.stat": "total_inactive_file 1000000000\n",
        }
    )
    assert read_host_memory(root) == HostMemory(8 * GB, 6 * GB, container=True)


@pytest.mark.parametrize("limit", ["max", "9223372036854771712"])
def test_container_without_limit(write, limit):
    at = "sys/fs/cgroup/"
    root = write(
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/\n",
            at + "memory.max": limit,
            at + "memory.current": "3000000000",
            at + "memory.stat": "inactive_file 0\n",
        }
    )
    assert read_host_memory(root) == MACHINE
