"""What torchrun says of the processes of a run."""

import pytest

from ptune.parallel import processes

NAMES = ("WORLD_SIZE", "RANK", "LOCAL_RANK")


def test_one_alone(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    assert (processes.process_count(), processes.process_number()) == (1, 0)
    assert processes.is_first_process() and not processes.started_here()
    assert processes.number_on_machine() == 0


@pytest.mark.parametrize(("rank", "local"), [("0", "0"), ("5", "1")])
def test_one_of_several(monkeypatch, rank, local):
    for name, value in zip(NAMES, ("8", rank, local), strict=True):
        monkeypatch.setenv(name, value)
    assert (processes.process_count(), processes.process_number()) == (8, int(rank))
    assert processes.is_first_process() == (rank == "0")
    assert processes.number_on_machine() == int(local) and processes.started_here()
