"""Checkpoint folders: whose they are, which are removed, and what happens on a full disk."""

import errno
import os
import re
import shutil
from types import SimpleNamespace

import pytest
from fixtures.runs import Recorder, folders_in, interrupt, write_records

from ptune.checkpoint.folder import PREFIX_FILE
from ptune.errors import TrainingError
from ptune.files.atomic import partials
from ptune.files.manifest import write_manifest
from ptune.training.checkpoints import Checkpoints, is_own, newest_whole
from ptune.training.train import train

PARTS = [PREFIX_FILE, "ptune_config.json", "optimizer.safetensors", "trainer_state.json"]


def fill(folder):
    for name in PARTS:
        (folder / name).write_text(name)


@pytest.fixture
def kept(tmp_path):
    return Checkpoints(tmp_path, keep=2, trained_bytes=1000, trained=[PREFIX_FILE])


def test_newest_and_best_are_kept(kept, tmp_path):
    for step in (1, 2, 3, 4):
        folder = kept.save(step, best=2, write=fill)
    assert folder == tmp_path / "checkpoint-4"
    assert folders_in(tmp_path) == ["checkpoint-2", "checkpoint-3", "checkpoint-4"]
    kept.save(10, best=10, write=fill)
    assert folders_in(tmp_path) == ["checkpoint-10", "checkpoint-4"]
    assert newest_whole(tmp_path) == (tmp_path / "checkpoint-10", [])


def test_only_own_folders_are_removed(kept, tmp_path):
    """Whatever their times are, and however much they look like ours."""
    for step in (1, 2):
        kept.save(step, None, fill)
    theirs = ["checkpoint-1-good", "checkpoint-notes", "checkpoint-007", "checkpoint-0", "mine"]
    for name in theirs:
        shutil.copytree(tmp_path / "checkpoint-1", tmp_path / name)
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5" / "pytorch_model.bin").touch()
    os.utime(tmp_path / "checkpoint-2", (2**33, 2**33))
    for step in (3, 4):
        kept.save(step, None, fill)
    ours = ["checkpoint-3", "checkpoint-4", "checkpoint-5"]
    assert folders_in(tmp_path) == sorted(theirs + ours)
    assert newest_whole(tmp_path) == (tmp_path / "checkpoint-4", [])
    assert not is_own(tmp_path / "checkpoint-0") and not is_own(tmp_path / "checkpoint-5")


def test_what_somebody_put_into_one_stays(kept, tmp_path):
    answers = kept.save(1, None, fill) / "eval-dev"
    answers.mkdir()
    for step in (2, 3, 4):
        kept.save(step, None, fill)
    assert folders_in(tmp_path) == ["checkpoint-1", "checkpoint-3", "checkpoint-4"]
    assert answers.is_dir()


def test_links_are_no_checkpoints_to_remove(kept, tmp_path):
    """Somebody has moved one to another disk; it is gone on from, and stays."""
    elsewhere = tmp_path / "elsewhere"
    kept.save(1, None, fill).rename(elsewhere)
    (tmp_path / "checkpoint-1").symlink_to(elsewhere)
    assert newest_whole(tmp_path) == (tmp_path / "checkpoint-1", [])
    for step in (2, 3, 4):
        kept.save(step, None, fill)
    assert folders_in(tmp_path) == ["checkpoint-1", "checkpoint-3", "checkpoint-4", "elsewhere"]
    (tmp_path / "checkpoint-5").symlink_to(elsewhere)
    with pytest.raises(TrainingError, match="place of the next checkpoint and holds what it links"):
        kept.save(5, None, fill)


def test_a_copy_under_another_name(kept, tmp_path):
    shutil.copytree(kept.save(1, None, fill), tmp_path / "checkpoint-2")
    said = [f"{tmp_path / 'checkpoint-2'} holds the manifest of step 1"]
    assert newest_whole(tmp_path) == (tmp_path / "checkpoint-1", said)
    (tmp_path / "checkpoint-2" / "ptune_manifest.json").unlink()
    said = [f"{tmp_path / 'checkpoint-2'} holds no manifest"]
    assert newest_whole(tmp_path) == (tmp_path / "checkpoint-1", said)


def test_a_damaged_one_is_replaced_and_a_strangers_is_not(kept, tmp_path):
    folder = kept.save(3, None, fill)
    (folder / PARTS[0]).write_text("")
    assert newest_whole(tmp_path)[0] is None
    kept.save(3, None, fill)
    assert newest_whole(tmp_path) == (folder, [])
    stranger = tmp_path / "checkpoint-4"
    stranger.mkdir()
    (stranger / "mine").touch()
    message = (
        r"^.*checkpoint-4 is in the place of the next checkpoint and holds mine, which no training "
        r"of ptune wrote; move it away, then give the same command again$"
    )
    with pytest.raises(TrainingError, match=message):
        kept.save(4, None, fill)
    assert (stranger / "mine").exists()


def test_damaged_ones_are_named(kept, tmp_path):
    kept.save(1, None, fill)
    folder = kept.save(2, None, fill)
    (folder / PARTS[1]).unlink()
    assert newest_whole(tmp_path) == (
        tmp_path / "checkpoint-1",
        [f"{folder} lacks {PARTS[1]}"],
    )


def test_no_room_before_it_is_written(kept, tmp_path, monkeypatch):
    kept.save(1, None, fill)
    usage = SimpleNamespace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    message = (
        r"^output .* has 1.0 MB free, and a checkpoint takes 1.1 MB; make room or mend it, then "
        r"give the same command again: it goes on from checkpoint-1$"
    )
    with pytest.raises(TrainingError, match=message):
        kept.save(2, None, fill)
    usage.free = 1_100_000
    kept.save(2, None, fill)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
def test_disk_that_is_full_in_the_middle(number, kept, tmp_path):
    def full(folder):
        fill(folder)
        raise OSError(number, os.strerror(number))

    message = (
        rf"^.*checkpoint-1 cannot be written \({os.strerror(number)}\); make room or mend it, then "
        r"give the same command again: it starts anew, for there is no checkpoint yet$"
    )
    with pytest.raises(TrainingError, match=message):
        kept.save(1, None, full)
    assert list(tmp_path.iterdir()) == []


def test_half_of_a_checkpoint_is_cleared_away_by_the_next_run(settings):
    asked = settings(save_steps=2)
    train(asked, Recorder({3: interrupt}))
    half = asked.output / ".checkpoint-4.0123abcd.partial"
    half.mkdir()
    fill(half)
    mine = asked.output / "notes.txt"
    mine.touch()
    train(asked, Recorder())
    assert partials(asked.output) == [] and mine.exists()


def test_full_disk_during_a_run_then_room(settings, monkeypatch):
    """Of the log as well as of a checkpoint; then the same command ends the run."""
    asked = settings(save_steps=2)
    import ptune.training.checkpoints as module

    def full(folder, names, **about):
        if about["step"] == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_manifest(folder, names, **about)

    monkeypatch.setattr(module, "write_manifest", full)
    message = (
        r"^.*checkpoint-4 cannot be written \(No space left on device\); make room .*: it goes on "
        r"from checkpoint-2$"
    )
    with pytest.raises(TrainingError, match=message):
        train(asked, Recorder())
    monkeypatch.undo()
    from ptune.training.log import TrainLog

    def full_log(self, entry):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(TrainLog, "_write", full_log)
    message = (
        r"^output .*out cannot be written \(No space left on device\); make room or mend it, then "
        r"give the same command again$"
    )
    with pytest.raises(TrainingError, match=message):
        train(asked, Recorder())
    monkeypatch.undo()
    recorder = Recorder()
    assert train(asked, recorder).steps == 6
    assert recorder.summary.resumed_from.name == "checkpoint-2"


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_read_only_output(settings):
    asked = settings(max_steps=1)
    asked.output.mkdir()
    asked.output.chmod(0o500)
    with pytest.raises(Exception, match=r"^output .* cannot be written \(Permission denied\)"):
        train(asked, Recorder())


class TestBest:
    @pytest.fixture
    def measured(self, settings, tmp_path, monkeypatch):
        """Runs whose eval_loss is given, one number an evaluation."""
        from ptune.training import trainer

        def run(losses, recorder=None, **changes):
            numbers = iter(losses)
            monkeypatch.setattr(trainer, "total_loss", lambda *given: (next(numbers), 1))
            dev = write_records(tmp_path / "dev.json", 3)
            changes = {"save_steps": 1, "save_total_limit": 1, "eval_data": (dev,)} | changes
            asked = settings(**changes)
            return train(asked, recorder or Recorder())

        return run

    def test_its_checkpoint_stays(self, measured):
        output = measured([5, 3, 4, 4, 4, 4]).output
        assert folders_in(output) == ["checkpoint-2", "checkpoint-6"]

    def test_is_the_finished_prefix_if_asked_for(self, measured):
        result = measured([5, 3, 4, 4, 4, 4], load_best=True)
        assert (result.best_step, result.steps) == (2, 6)
        files = [result.output / name / PARTS[0] for name in ("", "checkpoint-2", "checkpoint-6")]
        assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()

    def test_has_a_checkpoint_of_its_own(self, measured):
        result = measured([5, 4, 3, 9, 9, 9], load_best=True, save_steps=100, eval_steps=1)
        assert result.best_step == 3
        assert folders_in(result.output) == ["checkpoint-3", "checkpoint-6"]

    def test_the_last_is_the_best(self, measured):
        assert measured([5, 4, 3, 2, 1, 0.5], load_best=True).best_step is None

    def test_early_stopping(self, measured):
        result = measured([5, 3, 4, 3.5, 9, 9], early_stopping=2)
        assert (result.steps, result.stopped_by) == (4, None)
        again = measured([], early_stopping=2)
        assert result.early and again.early and again.before
        # A longer run ends as early.
        recorder = Recorder()
        assert measured([], recorder, early_stopping=2, max_steps=9).steps == 4
        assert recorder.notices == [
            "the run was stopped early, after 2 evaluations without a lower eval_loss; a larger "
            "--early-stopping, or none, goes on with it"
        ]
        # Without it, the run goes on.
        assert measured([1, 1]).steps == 6

    def test_early_stopping_counts_across_a_stop(self, measured):
        measured([5, 3, 4], Recorder({3: interrupt}), early_stopping=2)
        recorder = Recorder()
        assert measured([4], recorder, early_stopping=2).steps == 4
        assert [step for step, _ in recorder.steps] == [4]

    def test_killed_between_early_stopping_and_the_end(self, measured):
        output = measured([5, 3, 4, 4], early_stopping=2).output
        for name in ("prefix_encoder.safetensors", "ptune_manifest.json"):
            (output / name).unlink()
        recorder = Recorder()
        assert measured([], recorder, early_stopping=2).steps == 4 and recorder.steps == []

    def test_it_has_no_checkpoint_since_it_was_not_asked_for(self, measured):
        changes = {"early_stopping": 2, "save_steps": 100, "eval_steps": 1}
        output = measured([5, 3, 4, 4], **changes).output
        recorder = Recorder()
        assert measured([], recorder, load_best=True, **changes).best_step is None
        assert any("checkpoint-2, of the lowest eval_loss, is not" in n for n in recorder.notices)
        assert folders_in(output) == ["checkpoint-4"]

    def test_its_checkpoint_is_gone(self, measured):
        output = measured([5, 3, 4, 4, 4], Recorder({5: interrupt})).output
        shutil.rmtree(output / "checkpoint-2")
        recorder = Recorder()
        result = measured([4], recorder, load_best=True)
        assert result.best_step is None
        assert recorder.notices == [
            f"{output / 'checkpoint-2'}, of the lowest eval_loss, is not there; the finished "
            "prefix is the last"
        ]

    @pytest.mark.parametrize(
        ("damage", "said"),
        [
            (
                lambda best: (best / PARTS[0]).write_bytes(b""),
                r"holds 0 bytes of prefix_encoder\.safetensors, and [\d,]+ were written",
            ),
            (lambda best: (best / "ptune_manifest.json").unlink(), "holds no manifest"),
            (
                lambda best: (
                    shutil.rmtree(best),
                    shutil.copytree(best.with_name("checkpoint-5"), best),
                ),
                "holds the manifest of step 5",
            ),
        ],
        ids=["damaged", "another program's", "another step's"],
    )
    def test_its_checkpoint_is_not_what_was_written(self, damage, said, measured):
        output = measured([5, 3, 4, 4, 4], Recorder({5: interrupt})).output
        damage(output / "checkpoint-2")
        recorder = Recorder()
        result = measured([4], recorder, load_best=True)
        assert result.best_step is None
        (notice,) = recorder.notices
        assert re.fullmatch(
            rf"{output / 'checkpoint-2'}, of the lowest eval_loss, {said}; the finished prefix is "
            "the last",
            notice,
        )
        last = output / "checkpoint-6" / PARTS[0]
        assert (output / PARTS[0]).read_bytes() == last.read_bytes()


def test_stop_while_eval_loss_is_measured(settings, tmp_path, monkeypatch):
    """It is given up at once, and measured when the run goes on."""
    from ptune.training import eval_loss

    dev = write_records(tmp_path / "dev.json", 5)
    changes = {"eval_data": (dev,), "save_steps": 100, "eval_steps": 2, "micro_batch_size": 1}
    straight = Recorder()
    train(settings(output=tmp_path / "straight", **changes), straight)
    asked, summed = settings(**changes), []
    real = eval_loss._sum_over

    def slow(model, examples, pad, size, progress):
        def told(done):
            summed.append(done)
            if len(summed) == 7:  # the second record of the second evaluation
                interrupt()
            progress(done)

        return real(model, examples, pad, size, told)

    monkeypatch.setattr(eval_loss, "_sum_over", slow)
    first = Recorder()
    result = train(asked, first)
    assert (result.steps, result.stopped_by) == (4, 2) and len(summed) == 7
    assert first.notices == [
        "SIGINT: saving after this step, then the run ends; again ends it at once"
    ]
    second = Recorder()
    assert train(asked, second).steps == 6
    losses = [
        [entry["eval_loss"] for entry in recorder.entries if "eval_loss" in entry]
        for recorder in (straight, first, second)
    ]
    assert [len(found) for found in losses] == [3, 1, 2]
    assert losses[0] == losses[1] + losses[2]


def test_stop_while_the_last_eval_loss_is_measured(settings, tmp_path, monkeypatch):
    from ptune.training import eval_loss

    dev = write_records(tmp_path / "dev.json", 5)
    asked = settings(eval_data=(dev,), max_steps=2, save_steps=2, micro_batch_size=1)
    real = eval_loss._sum_over

    def slow(model, examples, pad, size, progress):
        def told(done):
            interrupt()
            progress(done)

        return real(model, examples, pad, size, told)

    monkeypatch.setattr(eval_loss, "_sum_over", slow)
    result = train(asked, Recorder())
    assert (result.steps, result.stopped_by) == (2, 2)
    assert folders_in(asked.output) == ["checkpoint-2"]
    monkeypatch.undo()
    recorder = Recorder()
    assert train(asked, recorder).stopped_by is None
    assert recorder.steps == [] and "eval_loss" in recorder.entries[-1]
