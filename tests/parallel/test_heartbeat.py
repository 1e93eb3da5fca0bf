"""Signs of life between processes, over a store of torchrun's kind."""

import contextlib
import subprocess
import sys
import time

import psutil
import pytest
from torch.distributed import PrefixStore, TCPStore

from ptune.errors import ConfigError
from ptune.parallel.heartbeat import Heartbeat, signs_of_life


@pytest.fixture
def store(monkeypatch):
    """That of the agent; this is the second of two processes."""
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for name, value in {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(server.port),
        "WORLD_SIZE": "2",
        "RANK": "1",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }.items():
        monkeypatch.setenv(name, value)
    yield PrefixStore("ptune-heartbeat", server)


def heartbeat(ended):
    return Heartbeat("give it again", ended.append, 0.02, 0.4, most_late=0.8, to_speak=0.2)


def until(condition):
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def test_nothing_happens_while_the_other_beats(store):
    ended = []
    with heartbeat(ended):
        until(lambda: store.check(["1"]))
        own = store.get("1")
        for beat in range(60):
            store.set("0", str(beat))
            time.sleep(0.01)
        assert store.get("1") != own
    assert ended == []


@pytest.mark.parametrize(
    ("sign", "reason"),
    [
        (
            "1",
            "has given no sign of life for 0.4 seconds (it hangs, or its machine is gone)",
        ),
        ("failed", "has failed; see what it said"),
        (None, "has not begun within 0.8 seconds; see what it said"),
    ],
)
def test_one_that_does_not_come(store, sign, reason):
    ended = []
    if sign:
        store.set("0", sign)
    with heartbeat(ended):
        until(lambda: ended)
    assert ended == [f"process 0 of 2 {reason}; give it again"]


def test_one_that_has_left(store):
    ended = []
    store.set("0", "left")
    with heartbeat(ended):
        time.sleep(1.2)
    assert ended == []


@pytest.mark.parametrize(("error", "sign"), [(None, b"left"), (KeyError, b"failed")])
def test_the_others_are_told_how_it_ends(store, error, sign):
    with contextlib.suppress(KeyError), heartbeat([]):
        if error:
            raise error
    until(lambda: store.get("1") == sign)


@pytest.mark.parametrize("sibling", [True, False])
def test_who_hangs_is_ended_if_it_is_a_sibling(store, sibling, monkeypatch):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    began = psutil.Process(child.pid).create_time()
    if sibling:  # both have the same parent: here, this process
        monkeypatch.setattr("os.getppid", lambda: psutil.Process().pid)
    store.set("0", "1")
    store.set("0 id", f"[{child.pid}, {began}]")
    ended = []
    with heartbeat(ended):
        until(lambda: ended)
    assert (child.poll() is not None or bool(child.wait(5) if sibling else 0)) == sibling
    child.kill()
    child.wait()


def test_store_that_is_gone(store, monkeypatch):
    ended = []
    beat = heartbeat(ended)

    def lost(*arguments):
        raise RuntimeError("Broken pipe\nand more")

    beat._store = type("Lost", (), {"set": lost, "check": lost, "get": lost})()
    beat._thread.start()
    until(lambda: ended)
    beat.__exit__(None, None, None)
    assert ended == [
        "the store of torchrun cannot be reached: who has started this process is gone, or its "
        "machine; give it again"
    ]


def test_environment_that_says_nothing(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    message = (
        r"^the environment says WORLD_SIZE 2, and not where the other processes are "
        r"\(MASTER_ADDR, MASTER_PORT\); unset it, or start them with torchrun$"
    )
    with pytest.raises(ConfigError, match=message):
        heartbeat([])


def test_one_process_gives_none(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with signs_of_life("give it again"):
        pass


def test_several_give_them(store):
    with signs_of_life("give it again"):
        until(lambda: store.check(["1 id"]))
