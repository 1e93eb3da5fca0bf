"""A disk that fills up while a training writes: a small file system of its own."""

import shutil
import subprocess

import pytest
from fixtures.runs import Recorder, prefix_of

from ptune.errors import TrainingError
from ptune.files.atomic import partials
from ptune.training.checkpoints import Checkpoints
from ptune.training.train import train

KEY = "transformer.prefix_encoder.embedding.weight"
SIZE = 4 * 2**20


@pytest.fixture
def disk(tmp_path):
    """A file system of four megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a file system takes root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(disk, leave):
    """Take all room but so many bytes."""
    room = shutil.disk_usage(disk).free - leave
    (disk / "filler").write_bytes(b"x" * room)


# Room for nothing, for the log, for a part of a checkpoint; and of a second one.
@pytest.mark.parametrize("leave", [0, 4096, 8192, 12288, 20480, 40960])
def test_fills_up_under_a_run(leave, disk, settings, tmp_path, monkeypatch):
    straight = train(settings(save_steps=2, output=tmp_path / "straight"), Recorder()).output
    asked = settings(save_steps=2, output=disk / "out")
    # As where a quota ends before the disk does.
    monkeypatch.setattr(Checkpoints, "check_room", lambda self: None)
    with pytest.raises(TrainingError) as refused:
        train(asked, Recorder({2: lambda: fill(disk, leave)}))
    text = str(refused.value)
    assert "cannot be written (" in text and "No space left on device" in text
    assert "then give the same command again" in text
    assert partials(asked.output) == []
    (disk / "filler").unlink()
    assert train(asked, Recorder()).steps == 6
    assert prefix_of(asked.output)[KEY].equal(prefix_of(straight)[KEY])


def test_no_room_is_said_before_the_first_step(disk, settings):
    fill(disk, 100_000)
    recorder = Recorder()
    message = (
        r"^output .*out has 0.1 MB free, and a checkpoint takes 1.1 MB; make room or mend it, then "
        r"give the same command again: it starts anew, for there is no checkpoint yet$"
    )
    with pytest.raises(TrainingError, match=message):
        train(settings(output=disk / "out"), recorder)
    assert recorder.summary is None and recorder.steps == []
