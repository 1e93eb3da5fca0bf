"""Work that is divided among processes."""

import threading

import pytest
from torch.distributed import TCPStore

from ptune.errors import ConfigError
from ptune.parallel.team import Team


@pytest.fixture
def teams(monkeypatch):
    """Of three processes, here all in one."""
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(server.port))
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    made = []
    for number in range(3):
        monkeypatch.setenv("RANK", str(number))
        made.append(Team())
    yield made
    del server


def test_one_alone(monkeypatch):
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    team = Team()
    assert team.first and team.share([1, 2, 3]) == [1, 2, 3]
    assert team.begin([4], "a") == [4] and list(team.heard()) == []


def test_shares_are_the_whole(teams):
    items = list(range(10))
    shares = [team.share(items) for team in teams]
    assert shares == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
    assert [team.first for team in teams] == [True, False, False]


def hear(team, count):
    """So many results; they take their time, as nobody confirms them."""
    found = []
    while len(found) < count:
        found += team.heard()
    return found


def test_what_is_told_is_heard_once_and_in_order(teams):
    first, second, third = teams
    assert list(first.heard()) == []
    second.tell({"text": "好"})
    third.tell([1])
    third.tell([2])
    found = hear(first, 3)
    assert [told for told in found if isinstance(told, list)] == [[1], [2]]
    assert {"text": "好"} in found
    assert list(first.heard()) == []
    second.tell(None)
    assert hear(first, 1) == [None]


def test_the_plan_of_the_first(teams):
    first, second, third = teams
    waiting = threading.Thread(target=lambda: found.append(second.begin(None, "same")))
    found = []
    waiting.start()
    assert first.begin([3, 1], "same") == [3, 1]
    waiting.join(20)
    assert found == [[3, 1]]
    message = (
        "^process 2 has another model, checkpoint or data than process 0; give every process the "
        "same command and the same files$"
    )
    with pytest.raises(ConfigError, match=message):
        third.begin(None, "other")
