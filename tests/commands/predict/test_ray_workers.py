"""Workers of Ray on this machine: what they answer, and what becomes of those that die."""

import dataclasses
import os
from pathlib import Path

import pytest
from fixtures.data_files import dump_lines, write

from ptune.commands.predict.run import predict
from ptune.config.predict_settings import PredictSettings
from ptune.errors import ConfigError, EvaluationError

pytest.importorskip("ray", reason="Ray is not installed: pip install 'ptune[predict]'")
from ptune.commands.predict import ray_workers as module

RECORDS = 40


class Progress:
    def __init__(self):
        self.done, self.notices = [], []

    def phase(self, name, total, done):
        pass

    def advanced(self, done):
        self.done.append(done)

    def noticed(self, text):
        self.notices.append(text)


@pytest.fixture(autouse=True)
def _paths(monkeypatch):
    """Ray's processes find ptune where this one does."""
    root = Path(__file__).parents[3]
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


@pytest.fixture
def settings(tmp_path, tiny_folder):
    rows = [{"prompt": f"类型#裙*编号#{number}"} for number in range(RECORDS)]
    for name in ("a", "b"):
        write(tmp_path / f"{name}.json", dump_lines(rows))
    data = tuple(tmp_path / f"{name}.json" for name in ("a", "b"))

    def make(**changes):
        values = {"model": "tiny", "data": data, "output": tmp_path / "answers", "device": "cpu"}
        return PredictSettings(**values | {"shard_size": 8, "max_new_tokens": 4} | changes)

    return make


def files(result):
    return {path.name: path.read_bytes() for path in result.output.glob("*.jsonl")}


def test_a_worker_that_dies(settings, tmp_path, monkeypatch, capfd):
    straight = predict(settings(output=tmp_path / "straight"), Progress())
    send, victims = module.RayWorkers._send, []

    def killing(self, worker, shard):
        send(self, worker, shard)
        if not victims:
            victims.append(shard)
            module.ray.kill(worker)

    monkeypatch.setattr(module.RayWorkers, "_send", killing)
    progress = Progress()
    result = predict(settings(workers=2), progress)
    assert files(result) == files(straight)
    assert (result.answered, result.lost_workers) == (2 * RECORDS, 1)
    assert progress.done[-1] == 2 * RECORDS
    (notice,) = progress.notices
    assert notice.startswith("a worker was lost (")
    assert notice.endswith("); another one answers its shard")
    assert capfd.readouterr().out == ""


def test_a_shard_that_ends_every_worker(settings, monkeypatch):
    send = module.RayWorkers._send

    def killing(self, worker, shard):
        send(self, worker, shard)
        if (shard.target, shard.number) == ("a.jsonl", 1):
            module.ray.kill(worker)

    monkeypatch.setattr(module.RayWorkers, "_send", killing)
    asked = settings(workers=2)
    said = r"^shard 1 of a\.jsonl has ended 3 workers \(.+\); look into the logs of Ray, or use"
    with pytest.raises(EvaluationError, match=said):
        predict(asked, Progress())
    monkeypatch.undo()
    # What was answered is there.
    assert 0 < predict(settings(), Progress()).answered < 2 * RECORDS


def test_a_worker_with_another_model(settings, monkeypatch):
    def elsewhere(settings, answering):
        return dataclasses.replace(settings, max_source_length=20)

    monkeypatch.setattr(module, "_everywhere", elsewhere)
    with pytest.raises(ConfigError, match="has another max_source_length than this machine; have"):
        predict(settings(workers=2), Progress())

    def absent(settings, answering):
        return dataclasses.replace(settings, model="/absent/model")

    monkeypatch.setattr(module, "_everywhere", absent)
    with pytest.raises(Exception, match=r"on [0-9.]+: .*/absent/model"):
        predict(settings(workers=2), Progress())


def test_a_cluster_that_is_not_there(settings):
    with pytest.raises(ConfigError) as refused:
        predict(settings(ray="127.0.0.1:1"), Progress())
    assert str(refused.value) == (
        "Ray at '127.0.0.1:1' cannot be reached (Connection refused); see `ray status`, or leave "
        "--ray and --workers out"
    )


@pytest.mark.parametrize(
    ("machines", "changes", "room"),
    [
        ([8, 8], {"ray": "auto"}, (2, 8, 0)),
        ([8, 4], {"ray": "auto"}, (2, 4, 0)),
        ([0, 8], {"ray": "auto"}, (1, 8, 0)),
        ([8, 8], {"workers": 5}, (5, 2, 0)),
        ([1, 1], {"workers": 2}, (2, 1, 0)),
        ([(8, 2), (8, 1)], {"ray": "auto", "device": None}, (3, 1, 1)),
        ([(8, 2), (8, 1)], {"workers": 2, "device": "cuda"}, (2, 1, 1)),
        ([(8, 2), (8, 1)], {"ray": "auto"}, (2, 8, 0)),
    ],
)
def test_room(settings, monkeypatch, machines, changes, room):
    _machines(monkeypatch, machines)
    assert dataclasses.astuple(module._find_room(settings(**changes))) == room


@pytest.mark.parametrize(
    ("machines", "changes", "said"),
    [
        ([1, 1], {"workers": 3}, "workers 3 is more than the 2 CPUs that Ray has; use fewer --w"),
        ([0], {"ray": "auto"}, "no machine of Ray has a CPU for a worker; start Ray on one that"),
        ([8], {"ray": "auto", "device": "cuda"}, "device cuda is on no machine of Ray; use --dev"),
        ([(8, 1)], {"workers": 2, "device": "cuda"}, "workers 2 is more than the 1 cards that Ray"),
    ],
)
def test_no_room(settings, monkeypatch, machines, changes, said):
    _machines(monkeypatch, machines)
    with pytest.raises(ConfigError, match=f"^{said}"):
        module._find_room(settings(**changes))


def _machines(monkeypatch, machines):
    """CPUs, or CPUs and cards, of each."""
    pairs = [each if isinstance(each, tuple) else (each, 0) for each in machines]
    nodes = [{"Alive": True, "Resources": {"CPU": c, "GPU": g}} for c, g in pairs]
    nodes.append({"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}})
    monkeypatch.setattr(module.ray, "nodes", lambda: nodes)
