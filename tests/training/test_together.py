"""Several processes of a run: what they compare, and who is gone."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ptune.config.settings import TrainSettings
from ptune.errors import ConfigError, TrainingError
from ptune.parallel import sums
from ptune.training import together as together_module
from ptune.training.output import Start
from ptune.training.together import together


def settings(**changes):
    return TrainSettings(**{"data": (Path("a.json"),), "learning_rate": 0.01} | changes)


SETTINGS = settings()
READ = {"base model": "f00", "data": {"train": "abc"}}
ACCELERATOR = SimpleNamespace(
    device=torch.device("cpu"), wait_for_everyone=lambda: None, end_training=lambda: None
)


@pytest.fixture
def second(monkeypatch):
    """Another process, which has something else under a name; the first is this one."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(together_module, "_GLOO_LETS_GO", 0)
    other = {"settings": SETTINGS, "read": READ, "start": Start()}

    def all_gather(found, own):
        found[0].copy_(own)
        found[1].copy_(compared(**other))

    def compared(settings, read, start):
        taken = []

        def take(contents, device):
            taken.append(contents)
            raise KeyError

        with monkeypatch.context() as patch, pytest.raises(KeyError):
            patch.setattr(together_module, "check_same", take)
            with together(settings, read, start, Path("out"), ACCELERATOR):
                pass
        digests = [
            list(sums.hashlib.sha256(value.encode()).digest()) for value in taken[0].values()
        ]
        return torch.tensor(digests, dtype=torch.uint8)

    monkeypatch.setattr(sums.dist, "all_gather", all_gather)
    return other


def enter():
    return together(SETTINGS, READ, Start(), Path("out"), ACCELERATOR)


def test_one_process_compares_nothing(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(together_module, "check_same", None)
    with enter():
        pass


def test_what_may_differ(second):
    changes = {"data": (Path("b.json"),), "micro_batch_size": 2, "device": "cpu"}
    second["settings"] = settings(**changes)
    with enter():
        pass


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"settings": settings(learning_rate=0.1)}, "learning_rate"),
        ({"settings": settings(save_steps=7)}, "save_steps"),
        ({"settings": settings(output=Path("there"))}, "output"),
        ({"read": READ | {"base model": "bad"}}, "base model"),
        ({"read": READ | {"data": {}}}, "data"),
        ({"start": Start(step=4)}, "beginning in out"),
    ],
)
def test_what_may_not(second, change, name):
    second.update(change)
    message = rf"^process 1 has another {name} than process 0 \(this is process 0"
    with pytest.raises(ConfigError, match=message), enter():
        raise AssertionError("not reached")


def test_a_process_that_is_gone(second):
    message = (
        "^another process of this run has ended or cannot be reached; see what it said, then give "
        "the same command again: it goes on from the newest checkpoint in out$"
    )
    with pytest.raises(TrainingError, match=message), enter():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer")


def test_other_errors_pass(second):
    with pytest.raises(RuntimeError, match=r"^mine$"), enter():
        raise RuntimeError("mine")
