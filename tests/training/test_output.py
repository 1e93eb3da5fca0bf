"""Going on with a run: the same by contents, in whole, alone, and at its right end."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from fixtures.checkpoints import write_json
from fixtures.runs import (
    Recorder,
    folders_in,
    interrupt,
    log_lines,
    prefix_of,
    write_records,
)

from ptune.errors import CheckpointError, ConfigError
from ptune.files.lock import holding
from ptune.training.train import train

KEY = "transformer.prefix_encoder.embedding.weight"
PARTS = ["prefix_encoder.safetensors", "ptune_config.json", "optimizer.safetensors"]
PARTS += ["trainer_state.json", "ptune_manifest.json"]


@pytest.fixture
def stopped(settings):
    """The settings of a run of 6 steps with checkpoints at 2 and 4, stopped after step 5."""
    asked = settings(save_steps=2)
    train(asked, Recorder({5: interrupt}))
    shutil.rmtree(asked.output / "checkpoint-5")
    assert folders_in(asked.output) == ["checkpoint-2", "checkpoint-4"]
    return asked


@pytest.fixture
def straight(settings, tmp_path):
    """The prefix of the same run without a stop."""
    return prefix_of(train(settings(save_steps=2, output=tmp_path / "s"), Recorder()).output)[KEY]


def test_the_same_command_goes_on_and_says_so(stopped, straight):
    recorder = Recorder()
    assert train(stopped, recorder).steps == 6
    assert recorder.summary.resumed_from.name == "checkpoint-4"
    assert [step for step, _ in recorder.steps] == [5, 6]
    assert torch.equal(prefix_of(stopped.output)[KEY], straight)
    assert recorder.notices == []


class TestByContents:
    def test_other_names_of_the_same(self, settings, stopped, straight, tmp_path, monkeypatch):
        """The base and the data under other names, the whole moved, and from another folder."""
        moved = tmp_path / "moved"
        moved.mkdir()
        shutil.move(stopped.output, moved / "run")
        shutil.copytree(stopped.model, moved / "base")
        lines = stopped.data[0].read_text("utf-8").splitlines()
        rows = [{**json.loads(line), "before": [], "about": ""} for line in lines]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (moved / "records.jsonl").write_text(text, encoding="utf-8")
        monkeypatch.chdir(moved)
        data = (moved / ".." / "moved" / "records.jsonl",)
        columns = {"prompt_column": "content", "response_column": "summary"}
        columns |= {"history_column": "before", "context_column": "about"}
        asked = settings(save_steps=2, data=data, model="./base", output=moved / "run", **columns)
        assert train(asked, Recorder()).steps == 6
        assert torch.equal(prefix_of(moved / "run")[KEY], straight)

    def test_other_records_in_the_same_file(self, stopped):
        write_records(stopped.data[0], 11)
        message = (
            r"^examples differs from that of .*checkpoint-4: 10 records \(\w{12}\) -> "
            r"11 records \(\w{12}\); use the same, or begin anew in a folder beside it with "
            r"--fresh$"
        )
        with pytest.raises(ConfigError, match=message):
            train(stopped, Recorder())

    def test_another_base_under_the_same_name(self, settings, toy_model, tmp_path):
        own = shutil.copytree(toy_model(), tmp_path / "base")  # the other tests share theirs
        asked = settings(save_steps=2, model=str(own))
        train(asked, Recorder({4: interrupt}))
        file = next(own.glob("*.bin"))
        weights = torch.load(file)
        norm = next(name for name in weights if "layernorm" in name)
        torch.save({**weights, norm: weights[norm] + 1}, file)
        message = (
            r"^.*checkpoint-4 was trained on .* \(fingerprint \w{12}\), and .* is another model "
            r"\(\w{12}\); use the same, or begin anew in a folder beside it with --fresh$"
        )
        with pytest.raises(CheckpointError, match=message):
            train(asked, Recorder())

    def test_other_settings(self, settings, stopped):
        message = (
            r"^settings differ from those of .*checkpoint-4: learning_rate 0.02 -> 0.5; "
            r"seed 42 -> 7; use the same settings, or begin anew in a folder beside it with "
            r"--fresh$"
        )
        with pytest.raises(ConfigError, match=message):
            train(settings(save_steps=2, learning_rate=0.5, seed=7), Recorder())

    def test_other_development_data(self, settings, tmp_path):
        dev = write_records(tmp_path / "dev.json", 3)
        asked = settings(save_steps=2, eval_data=(dev,))
        train(asked, Recorder({3: interrupt}))
        write_records(dev, 4)
        with pytest.raises(ConfigError, match=r"^eval_examples differs .*: 3 records .* 4 records"):
            train(asked, Recorder())

    def test_another_prefix_to_start_from(self, settings, tmp_path):
        """A run begun with --init-prefix is gone on with by the same command."""
        first = train(settings(max_steps=2, output=tmp_path / "first"), Recorder()).output
        changes = {"init_prefix": (first,), "save_steps": 2, "learning_rate": 0.01}
        straight = train(settings(output=tmp_path / "s", **changes), Recorder()).output
        asked = settings(**changes)
        train(asked, Recorder({3: interrupt}))
        assert train(asked, Recorder()).steps == 6
        assert torch.equal(prefix_of(asked.output)[KEY], prefix_of(straight)[KEY])
        asked = settings(**changes, output=tmp_path / "third")
        train(asked, Recorder({3: interrupt}))
        shutil.rmtree(first)
        train(settings(max_steps=1, output=first), Recorder())
        with pytest.raises(ConfigError, match=r"^init_prefix differs from that of .*checkpoint-3"):
            train(asked, Recorder())

    def test_a_prefix_to_start_from_that_is_new_or_gone(self, settings, stopped, tmp_path):
        first = train(settings(max_steps=2, output=tmp_path / "first"), Recorder()).output
        with pytest.raises(ConfigError, match=r"^init_prefix differs .*: none -> \w{12}; use the"):
            train(settings(save_steps=2, init_prefix=(first,)), Recorder())
        changes = {"save_steps": 2, "output": tmp_path / "begun"}
        train(settings(init_prefix=(first,), **changes), Recorder({3: interrupt}))
        with pytest.raises(ConfigError, match=r"^init_prefix differs .*: \w{12} -> none; use the"):
            train(settings(**changes), Recorder())

    def test_development_data_may_come_later(self, settings, stopped, tmp_path):
        dev = write_records(tmp_path / "dev.json", 3)
        recorder = Recorder()
        assert train(settings(save_steps=2, eval_data=(dev,)), recorder).steps == 6
        assert "eval_loss" in recorder.entries[-1]

    def test_how_often_is_saved_logged_and_evaluated_is_that_of_now(self, settings, tmp_path):
        dev = write_records(tmp_path / "dev.json", 3)
        changes = {"eval_data": (dev,), "save_steps": 4, "eval_steps": 4, "logging_steps": 4}
        train(settings(**changes, max_steps=4), Recorder())
        changes |= {"save_steps": 1, "eval_steps": 1, "logging_steps": 1, "save_total_limit": 9}
        recorder = Recorder()
        output = train(settings(**changes, max_steps=7), recorder).output
        assert folders_in(output) == [f"checkpoint-{step}" for step in (4, 5, 6, 7)]
        for name in ("loss", "eval_loss"):
            assert [line["step"] for line in recorder.entries if name in line] == [5, 6, 7]

    def test_what_may_change(self, settings, stopped):
        changes = {"micro_batch_size": 4, "gradient_checkpointing": True, "logging_steps": 2}
        changes |= {"save_steps": 3, "save_total_limit": 1, "deterministic": False}
        recorder = Recorder()
        assert train(settings(**changes), recorder).steps == 6
        assert folders_in(stopped.output) == ["checkpoint-6"]

    def test_another_environment_is_told(self, stopped):
        file = stopped.output / "checkpoint-4" / "ptune_config.json"
        said = json.loads(file.read_text(encoding="utf-8"))
        said["environment"]["torch"] = "1.0"
        write_json(file, said)
        (stopped.output / "checkpoint-4" / "ptune_manifest.json").unlink()
        write_manifest_again(stopped.output / "checkpoint-4", 4)
        recorder = Recorder()
        train(stopped, recorder)
        (notice,) = recorder.notices
        assert notice == (
            f"the run goes on with torch {torch.__version__}, it had 1.0 before; "
            "the last digits of its numbers may differ"
        )


def write_manifest_again(folder, step):
    from ptune.files.manifest import write_manifest

    write_manifest(folder, PARTS[:-1], step=step)


class TestDamage:
    @pytest.mark.parametrize("part", PARTS)
    @pytest.mark.parametrize("how", ["missing", "empty", "half", "flipped"])
    def test_falls_back_to_the_one_before(self, part, how, stopped, straight):
        file = stopped.output / "checkpoint-4" / part
        content = file.read_bytes()
        changed = {"empty": b"", "half": content[: len(content) // 2]}
        middle = (
            content.index(b"sha256") + 12 if part == "ptune_manifest.json" else len(content) // 2
        )
        flipped = bytes([content[middle] ^ 1])
        changed["flipped"] = content[:middle] + flipped + content[middle + 1 :]
        if how == "missing":
            file.unlink()
        else:
            file.write_bytes(changed[how])
        recorder = Recorder()
        train(stopped, recorder)
        assert recorder.summary.resumed_from.name == "checkpoint-2"
        (notice,) = recorder.notices
        assert notice.startswith(f"{stopped.output / 'checkpoint-4'} ")
        assert notice.endswith("; going on from checkpoint-2")
        assert torch.equal(prefix_of(stopped.output)[KEY], straight)

    def test_nothing_whole_is_left(self, stopped):
        for step in (2, 4):
            (stopped.output / f"checkpoint-{step}" / "trainer_state.json").write_bytes(b"")
        message = (
            r"^no checkpoint in .*out is whole: .*checkpoint-4 holds 0 bytes of "
            r"trainer_state\.json, and [\d,]+ were written; begin anew in a folder beside it with "
            r"--fresh, or pass another --output$"
        )
        with pytest.raises(CheckpointError, match=message):
            train(stopped, Recorder())

    def test_finished_prefix_is_written_again(self, settings, straight):
        asked = settings(save_steps=2)
        train(asked, Recorder())
        (asked.output / "prefix_encoder.safetensors").write_bytes(b"")
        recorder = Recorder()
        assert train(asked, recorder).steps == 6
        assert recorder.steps == [] and torch.equal(prefix_of(asked.output)[KEY], straight)
        assert recorder.notices == [
            f"{asked.output} holds 0 bytes of prefix_encoder.safetensors, and "
            f"{(asked.output / 'checkpoint-6' / PARTS[0]).stat().st_size:,} were written; "
            "it is written again"
        ]


class TestFinished:
    def test_nothing_left(self, settings):
        asked = settings(max_steps=3)
        train(asked, Recorder())
        before = {path: path.stat().st_mtime_ns for path in asked.output.rglob("*")}
        recorder = Recorder()
        result = train(asked, recorder)
        assert result.before and result.steps == 3 and recorder.summary is None
        assert {path: path.stat().st_mtime_ns for path in asked.output.rglob("*")} == before
        for changes in ({"max_steps": 2}, {"epochs": 0.5}):
            message = (
                r"^.*checkpoint-3 is at step 3, beyond step 2; train longer with a larger "
                r"--max-steps or --epochs, or begin anew with --fresh$"
            )
            with pytest.raises(ConfigError, match=message):
                train(settings(**changes), Recorder())

    def test_lengthened_and_the_schedule_is_said(self, settings):
        train(settings(max_steps=3), Recorder())
        recorder = Recorder()
        asked = settings(max_steps=8)
        assert train(asked, recorder).steps == 8
        assert recorder.notices == [
            "the run has 8 steps now, 3 before: its learning rate goes on at 0.0125 and falls to "
            "zero at step 8"
        ]
        rates = [line["learning_rate"] for line in log_lines(asked.output)]
        assert rates[3:] == pytest.approx([0.02 * (8 - step) / 8 for step in range(3, 8)])

    def test_lengthened_before_the_end_of_its_warm_up(self, settings):
        train(settings(max_steps=6, warmup_steps=4), Recorder({2: interrupt}))
        recorder = Recorder()
        train(settings(max_steps=9, warmup_steps=4), recorder)
        assert "goes on at 0.01 and falls to zero at step 9" in recorder.notices[0]
        assert log_lines(settings().output)[2]["learning_rate"] == pytest.approx(0.01)

    @pytest.mark.parametrize("written", [0, 1, 2])
    def test_killed_between_the_last_checkpoint_and_the_end(self, written, settings, straight):
        asked = settings(save_steps=2)
        train(asked, Recorder())
        names = ["ptune_config.json", "prefix_encoder.safetensors", "ptune_manifest.json"]
        for name in names[written:]:
            (asked.output / name).unlink()
        half = asked.output / ".ptune_manifest.json.0123abcd.partial"
        half.touch()
        recorder = Recorder()
        assert train(asked, recorder).steps == 6 and recorder.steps == []
        assert torch.equal(prefix_of(asked.output)[KEY], straight)
        assert not half.exists() and all((asked.output / name).is_file() for name in names)

    def test_its_checkpoints_are_gone(self, settings, stopped):
        asked = settings(save_steps=2)
        train(asked, Recorder())
        for folder in folders_in(asked.output):
            shutil.rmtree(asked.output / folder)
        result = train(asked, Recorder())
        assert result.before and result.steps == 6
        with pytest.raises(
            ConfigError, match=r"^settings differ from those of .*out: seed 42 -> 7"
        ):
            train(settings(save_steps=2, seed=7), Recorder())
        write_records(asked.data[0], 11)
        with pytest.raises(ConfigError, match=r"^examples differs from that of the training there"):
            train(asked, Recorder())

    def test_fresh_of_where_we_are(self, settings, tmp_path, monkeypatch):
        (tmp_path / "here" / "in").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / "here" / "in")
        for output, beside in ((".", "here/in-2"), ("..", "here-2")):
            result = train(settings(output=Path(output), fresh=True, max_steps=1), Recorder())
            assert result.output == tmp_path / beside
        message = "^output / has no folder beside it; pass another --output$"
        with pytest.raises(ConfigError, match=message):
            train(settings(output=Path("/"), fresh=True), Recorder())

    def test_fresh_begins_beside_it(self, settings, straight):
        asked = settings(save_steps=2)
        train(asked, Recorder())
        before = sorted(path.name for path in asked.output.iterdir())
        for number in (2, 3):
            result = train(settings(save_steps=2, fresh=True), Recorder())
            assert result.output == asked.output.with_name(f"out-{number}")
            assert torch.equal(prefix_of(result.output)[KEY], straight)
        assert sorted(path.name for path in asked.output.iterdir()) == before


class TestRefused:
    def test_nothing_to_resume(self, settings, tmp_path):
        message = (
            r"^nothing to resume in .*out \(no finished checkpoint-N\); train without --resume, or "
            r"pass the --output of the run to resume$"
        )
        with pytest.raises(ConfigError, match=message):
            train(settings(resume=True), Recorder())

    def test_checkpoints_of_another_program(self, settings, tmp_path):
        folder = tmp_path / "out" / "checkpoint-3"
        folder.mkdir(parents=True)
        (folder / "pytorch_model.bin").touch()
        message = (
            r"^.*checkpoint-3 was not written by ptune and cannot be gone on from; start from its "
            r"prefix with --init-prefix .*checkpoint-3 and --fresh, or begin anew in a folder "
            r"beside it with --fresh, or pass another --output$"
        )
        with pytest.raises(CheckpointError, match=message):
            train(settings(), Recorder())
        assert [path.name for path in folder.parent.iterdir()] == ["checkpoint-3"]

    def test_prefix_without_a_checkpoint(self, settings):
        asked = settings(max_steps=2)
        train(asked, Recorder())
        shutil.rmtree(asked.output / "checkpoint-2")
        message = (
            r"^output .*out holds a prefix \(prefix_encoder.safetensors\) and no checkpoint to go "
            r"on from; begin anew in a folder beside it with --fresh, or pass another --output$"
        )
        with pytest.raises(ConfigError, match=message):
            train(settings(max_steps=3), Recorder())
        (asked.output / "ptune_manifest.json").unlink()
        with pytest.raises(ConfigError, match=message):
            train(asked, Recorder())

    @pytest.mark.parametrize("parts", [PARTS[:1], PARTS[:2], [*PARTS[:2], PARTS[-1]]])
    def test_finished_prefix_of_another_training(self, parts, settings, stopped, tmp_path):
        other = train(settings(seed=9, output=tmp_path / "other"), Recorder()).output
        for name in parts:
            shutil.copy(other / name, stopped.output)
        message = (
            r"^.*prefix_encoder.safetensors is not of the training in .*out, which would write "
            r"over it; move it, or pass another --output$"
        )
        with pytest.raises(ConfigError, match=message):
            train(stopped, Recorder())
        for name in parts:
            assert (stopped.output / name).read_bytes() == (other / name).read_bytes()

    def test_name_that_is_too_long(self, settings, tmp_path):
        message = r"^output .* cannot be used \(File name too long\); pass another --output$"
        with pytest.raises(ConfigError, match=message):
            train(settings(output=tmp_path / ("x" * 256)), Recorder())

    def test_two_runs_in_one_folder(self, settings, tmp_path):
        (tmp_path / "out").mkdir()
        message = (
            r"^another training writes into .*out; wait for its end, or pass another --output$"
        )
        with holding(tmp_path / "out", "training"), pytest.raises(ConfigError, match=message):
            train(settings(), Recorder())
        train(settings(max_steps=1), Recorder())

    def test_folder_that_another_run_has_changed_in_the_meantime(
        self, settings, tmp_path, monkeypatch
    ):
        from ptune.training import train as module

        find_start = module.find_start

        def late(*arguments):
            start = find_start(*arguments)
            monkeypatch.setattr(module, "find_start", find_start)
            train(settings(max_steps=1), Recorder())
            return start

        monkeypatch.setattr(module, "find_start", late)
        message = r"was changed by another training in the meantime; give the same command again$"
        with pytest.raises(ConfigError, match=message):
            train(settings(max_steps=2), Recorder())
