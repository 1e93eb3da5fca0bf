"""Disk, and what is said of memory and disk."""

import pytest

from ptune.commands.doctor.check import Status
from ptune.commands.doctor.host import (
    GB,
    free_disk,
    hub_cache,
    judge_cache,
    judge_disk,
    judge_memory,
)
from ptune.device.host_memory import HostMemory


class TestReading:
    def test_disk_of_a_folder_that_is_not_there_yet(self, tmp_path):
        assert free_disk(tmp_path / "a" / "b") > 0

    @pytest.mark.parametrize(
        ("environment", "folder"),
        [
            ({}, "~/.cache/huggingface/hub"),
            ({"HF_HOME": "/models"}, "/models/hub"),
            ({"HF_HOME": "/models", "HF_HUB_CACHE": "/cache"}, "/cache"),
            ({"XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
        ],
    )
    def test_cache_is_the_hub_clients_one(self, environment, folder, monkeypatch):
        for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HOME", "/home/someone")
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert str(hub_cache()) == folder.replace("~", "/home/someone")


class TestJudging:
    @pytest.mark.parametrize(
        ("available", "on_card", "status", "mend"),
        [
            (0.5, True, Status.FAILURE, "close other programs"),
            (0.5, False, Status.FAILURE, "close other programs"),
            (2, True, Status.WARNING, "close other programs"),
            (4, True, Status.OK, ""),
            (30, False, Status.OK, ""),
            (16, False, Status.WARNING, "use --dtype bfloat16 (14 GB)"),
            (10, False, Status.WARNING, "use --quantization-bit 4 (6 GB)"),
            (4, False, Status.WARNING, "close other programs"),
        ],
    )
    def test_memory(self, available, on_card, status, mend):
        check = judge_memory(HostMemory(64 * GB, int(available * GB)), on_card)
        assert (check.status, check.mend) == (status, mend)
        assert check.message.startswith(f"{available:.1f} of 64.0 GB available")

    def test_memory_of_a_container(self):
        check = judge_memory(HostMemory(2 * GB, 2 * GB, container=True), True)
        assert "2.0 of the container's 2.0 GB" in check.message
        assert "docker run --memory" in check.mend

    def test_memory_for_a_small_model(self):
        assert (
            judge_memory(HostMemory(8 * GB, 4 * GB), False, 4_000_000, "tiny").status is Status.OK
        )

    def test_memory_unknown(self):
        assert judge_memory(None, False).message == "unknown on this system"

    @pytest.mark.parametrize(
        ("free", "status"),
        [(0.3, Status.FAILURE), (1, Status.WARNING), (5, Status.OK), (None, Status.OK)],
    )
    def test_disk(self, free, status, tmp_path):
        check = judge_disk(free and int(free * GB), tmp_path)
        assert check.status is status
        assert str(tmp_path) in check.message
        assert ("--output on another disk" in check.mend) == (status is not Status.OK)

    @pytest.mark.parametrize(
        ("free", "wanted", "status"),
        [
            (5, True, Status.FAILURE),
            (5, None, Status.WARNING),
            (5, False, Status.OK),
            (50, True, Status.OK),
            (None, True, Status.OK),
        ],
    )
    def test_cache(self, free, wanted, status, tmp_path):
        check = judge_cache(free and free * GB, tmp_path, wanted)
        assert check.status is status
        assert check.mend.startswith("export HF_HOME=") == (status is not Status.OK)
