"""Sums over processes, and whether they have the same."""

import pytest
import torch
import torch.distributed as dist

from ptune.errors import ConfigError
from ptune.parallel.sums import check_same, sum_over_processes

CPU = torch.device("cpu")


def test_in_one_all_reduce(monkeypatch):
    seen = []

    def all_reduce(tensor):
        seen.append(tensor.clone())
        tensor.mul_(3)

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    tensors = [torch.ones(2, 3), torch.tensor([2.0]), torch.ones(2, dtype=torch.float16)]
    sum_over_processes(tensors)
    assert [t.tolist() for t in tensors] == [[[3.0] * 3] * 2, [6.0], [3.0, 3.0]]
    assert tensors[2].dtype == torch.float16
    assert len(seen) == 1 and seen[0].numel() == 9 and seen[0].dtype == torch.float32


class Gathered:
    """An all-gather of two processes, the second of which has other contents."""

    def __init__(self, change):
        self.change = change

    def __call__(self, found, own):
        for number, into in enumerate(found):
            into.copy_(own)
            if number == 1 and self.change is not None:
                into[self.change, 0] ^= 1


@pytest.mark.parametrize(("change", "name"), [(0, "base model"), (1, "data")])
def test_other_contents_are_named(monkeypatch, change, name):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(dist, "all_gather", Gathered(change))
    message = (
        rf"^process 1 has another {name} than process 0 \(this is process 0, here \w\); give every "
        r"process the same command and files$"
    )
    with pytest.raises(ConfigError, match=message):
        check_same({"base model": "a", "data": "b"}, CPU)


def test_the_same(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "all_gather", Gathered(None))
    check_same({"base model": "a", "data": "b"}, CPU)


def test_long_contents_are_not_shown(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "all_gather", Gathered(0))
    with pytest.raises(ConfigError, match=r"\(this is process 0\); give every process"):
        check_same({"data": "x" * 61}, CPU)
