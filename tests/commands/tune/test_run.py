"""Studies of `ptune tune` on small models: what they try, write, refuse, and survive."""

import dataclasses
import json
import re
import shutil
import signal
import sys
import time

import pytest
import torch
from fixtures.runs import Recorder, folders_in, interrupt, log_lines, prefix_of, write_records
from typer.testing import CliRunner

from ptune.cli import app
from ptune.commands.tune import run as module
from ptune.commands.tune.run import tune
from ptune.config.resolve import resolve
from ptune.config.settings import TrainSettings
from ptune.config.tune_settings import Choice, TuneSettings
from ptune.errors import CheckpointError, ConfigError, DivergenceError, TrainingError
from ptune.training import train as train_module
from ptune.training.train import train

KEY = "transformer.prefix_encoder.embedding.weight"
TRIALS, STEPS, EVERY = 5, 4, 2


class Watcher(Recorder):
    """Remembers the trials, too; calls `at_trial[n]` before trial n, `at_step[n]` in the first."""

    def __init__(self, at_trial=None, at_step=None):
        super().__init__(at_step)
        self.at_trial = at_trial or {}
        self.began, self.ended = [], []

    def trial_began(self, number, trials, choice):
        self.began.append(number)
        self.at_trial.get(number, lambda: None)()

    def trial_ended(self, trial):
        self.ended.append(trial)


@pytest.fixture(scope="module")
def asked(toy_model, tmp_path_factory):
    """Settings of a small study; it prunes, as `test_what_it_finds` sees."""
    folder = tmp_path_factory.mktemp("study")
    train_file = write_records(folder / "data.json", 10)
    dev = write_records(folder / "dev.json", 3)

    def make(**changes):
        values = {
            "data": (train_file,),
            "eval_data": (dev,),
            "model": str(toy_model(3)),
            "device": "cpu",
            "batch_size": 4,
            "trials": TRIALS,
            "steps": STEPS,
            "eval_steps": EVERY,
            "lengths": "3,8",
            "learning_rates": "0.01:0.9",
            "seed": 1,
            "init_data": 1,
            "init_text": "清新",
            "output": folder / "out",
        }
        return TuneSettings(**values | changes)

    return make


@pytest.fixture(scope="module")
def straight(asked):
    """The study in a single go, and what it has told."""
    watcher = Watcher()
    return tune(asked(), watcher), watcher


def without_folders(result):
    return [dataclasses.replace(trial, folder=None) for trial in result.trials]


class TestStudy:
    def test_what_it_finds(self, straight, asked):
        result, watcher = straight
        assert watcher.began == [trial.number for trial in result.trials] == list(range(TRIALS))
        assert tuple(watcher.ended) == result.trials
        finished = [trial for trial in result.trials if trial.finished]
        assert result.best == min(finished, key=lambda trial: trial.eval_loss)
        assert result.stopped_by is None
        assert {trial.choice.start for trial in result.trials} > {"random"}
        assert {trial.choice.pre_seq_len for trial in result.trials} == {3, 8}
        rates = [trial.choice.learning_rate for trial in result.trials]
        assert len(set(rates)) == TRIALS and all(0.01 <= rate <= 0.9 for rate in rates)
        for trial in result.trials:
            evaluated = [line for line in log_lines(trial.folder) if "eval_loss" in line]
            assert [line["step"] for line in evaluated] == list(
                range(EVERY, trial.steps + 1, EVERY)
            )
            assert evaluated[-1]["eval_loss"] == trial.eval_loss

    def test_the_worse_half_is_given_up(self, straight):
        """At the first evaluation, each against those before it and itself."""
        result, _ = straight
        losses = []
        for trial in result.trials:
            lines = [line for line in log_lines(trial.folder) if "eval_loss" in line]
            losses.append(lines[0]["eval_loss"])
            promoted = sorted(losses)[max(len(losses) // 2 - 1, 0)]
            assert trial.finished == (losses[-1] <= promoted)
            assert trial.steps == (STEPS if trial.finished else EVERY)
        pruned = [trial for trial in result.trials if not trial.finished]
        assert 1 <= len(pruned) < TRIALS - 1
        for trial in pruned:
            assert trial.reason == ""
            assert folders_in(trial.folder) == []
            assert not (trial.folder / "prefix_encoder.safetensors").exists()

    def test_a_trial_is_a_training(self, straight, asked, tmp_path):
        """On a base model that others have used it comes to the same, to the last bit."""
        result, _ = straight
        last = [trial for trial in result.trials if trial.finished][-1]
        assert last.number > 0
        alone = asked().trial(last.choice, tmp_path / "alone")
        train(alone, Recorder())
        assert torch.equal(prefix_of(alone.output)[KEY], prefix_of(last.folder)[KEY])
        assert folders_in(last.folder) == []  # nobody goes on from its checkpoint

    def test_the_base_is_loaded_once(self, asked, tmp_path, monkeypatch):
        loaded, build = [], train_module.build_model
        monkeypatch.setattr(
            train_module, "build_model", lambda *given: loaded.append(1) or build(*given)
        )
        tune(asked(trials=2, steps=1, output=tmp_path / "out"), Watcher())
        assert loaded == [1]

    def test_best_is_what_train_takes(self, straight, tmp_path):
        result, _ = straight
        text = result.config.read_text(encoding="utf-8")
        assert text.startswith(
            f"# trial-{result.best.number} of {TRIALS}: eval_loss {result.best.eval_loss:.4f} "
            f"after {STEPS} steps\n"
        )
        flags = {"max_steps": STEPS, "output": str(tmp_path / "best")}
        found = resolve(TrainSettings, flags, result.config)
        assert found.pre_seq_len == result.best.choice.pre_seq_len
        train(found, Recorder())
        assert torch.equal(prefix_of(tmp_path / "best")[KEY], prefix_of(result.best.folder)[KEY])

    def test_another_seed_tries_something_else(self, straight, asked, tmp_path):
        result = tune(asked(seed=7, trials=1, steps=1, output=tmp_path / "out"), Watcher())
        assert result.trials[0].choice != straight[0].trials[0].choice

    def test_default_output(self, asked, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        result = tune(asked(trials=1, steps=1, output=None), Watcher())
        assert str(result.output) == "output/data-chatglm3-6b-tune"
        assert (tmp_path / result.config).is_file()


def fail():
    raise OSError("pulled the plug")


class TestGoingOn:
    def test_after_a_signal_and_after_kills(self, straight, asked, tmp_path):
        """In a trial, before one, and in one that has no checkpoint yet."""
        asked = asked(output=tmp_path / "out")
        watcher = Watcher({1: lambda: watcher.at_step.update({1: interrupt})})
        stopped = tune(asked, watcher)
        assert stopped.stopped_by == signal.SIGINT
        assert [trial.number for trial in stopped.trials] == [0]
        assert folders_in(tmp_path / "out" / "trial-1") == ["checkpoint-1"]

        watcher = Watcher({2: fail})
        with pytest.raises(OSError, match="pulled the plug"):
            tune(asked, watcher)
        assert watcher.began == [1, 2]
        assert watcher.steps[0] == (2, STEPS)  # trial 1 goes on
        watcher = Watcher(at_step={1: fail})
        with pytest.raises(TrainingError, match="cannot be written"):
            tune(asked, watcher)
        assert watcher.began == [2]

        watcher = Watcher()
        result = tune(asked, watcher)
        assert watcher.began == list(range(2, TRIALS))
        assert watcher.steps[0] == (1, STEPS)
        assert without_folders(result) == without_folders(straight[0])
        assert result.stopped_by is None

    def test_finished(self, straight, asked):
        watcher = Watcher()
        again = tune(asked(), watcher)
        assert watcher.began == [] and again == straight[0]

    def test_more_trials(self, straight, asked, tmp_path):
        shutil.copytree(straight[0].output, tmp_path / "out")
        watcher = Watcher()
        result = tune(asked(trials=TRIALS + 1, output=tmp_path / "out"), watcher)
        assert watcher.began == [TRIALS]
        assert without_folders(result)[:TRIALS] == without_folders(straight[0])

    def test_half_a_line_is_left_out(self, straight, asked, tmp_path):
        shutil.copytree(straight[0].output, tmp_path / "out")
        file = tmp_path / "out" / "study.jsonl"
        whole = file.read_bytes()
        file.write_bytes(whole + b'{"op_code": 4, "tri')
        result = tune(asked(trials=TRIALS + 1, output=tmp_path / "out"), Watcher())
        assert len(result.trials) == TRIALS + 1
        assert file.read_bytes().startswith(whole)
        assert all(json.loads(line) for line in file.read_text().splitlines())

    def test_a_trial_without_all_that_it_tries_is_left_out(self, straight, asked, tmp_path):
        """Optuna writes a line for each, and a kill may come between two."""
        for lines in range(4):
            output = tmp_path / str(lines)
            shutil.copytree(straight[0].output, output)
            whole = (output / "study.jsonl").read_text().splitlines(keepends=True)
            last = max(n for n, line in enumerate(whole) if "datetime_start" in line)
            (output / "study.jsonl").write_text("".join(whole[: last + 1 + lines]))
            if lines < 3:  # nothing of it was there
                shutil.rmtree(output / f"trial-{TRIALS - 1}")
            result = tune(asked(output=output), Watcher())
            assert without_folders(result) == without_folders(straight[0])

    def test_a_lock_that_a_kill_has_left(self, straight, asked, tmp_path):
        """The folder's own lock is held: none of the journal's is waited for."""
        shutil.copytree(straight[0].output, tmp_path / "out")
        (tmp_path / "out" / "study.jsonl.lock").touch()
        began = time.monotonic()
        tune(asked(output=tmp_path / "out"), Watcher())
        assert time.monotonic() - began < 20  # Optuna's waits for 30 seconds

    @pytest.mark.parametrize("name", ["best.yaml", "trial-0"])
    def test_what_is_not_of_the_study(self, name, straight, asked, tmp_path):
        """It stays as it is: a file of the user's, or of a study whose journal is gone."""
        shutil.copytree(straight[0].output / "trial-0", tmp_path / "out" / name)
        message = (
            rf"^{tmp_path}/out/{name} is not of the study in {tmp_path}/out, which would write "
            r"over it; move it, or pass another --output$"
        )
        for _ in range(2):
            with pytest.raises(ConfigError, match=message):
                tune(asked(output=tmp_path / "out"), Watcher())

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"eval_steps": 1}, "eval_steps of a trial 2 -> 1"),
            ({"lengths": "3,5"}, r"lengths \[3, 8\] -> \[3, 5\]"),
            ({"steps": 7}, "steps 4 -> 7"),
            ({"learning_rates": "0.01:1"}, r"learning_rates \[0.01, 0.9\] -> \[0.01, 1.0\]"),
            ({"batch_size": 2, "seed": 2}, "batch_size 4 -> 2; seed 1 -> 2"),
        ],
    )
    def test_other_settings(self, changes, said, straight, asked):
        message = (
            rf"^settings differ from those of the study in {straight[0].output}: {said}; use the "
            r"same, or pass another --output$"
        )
        with pytest.raises(ConfigError, match=message):
            tune(asked(**changes), Watcher())

    def test_other_data_and_texts(self, straight, asked, tmp_path):
        other, text = write_records(tmp_path / "other.json", 9), tmp_path / "text.txt"
        text.write_text("清新", encoding="utf-8")
        for changes, said in (
            ({"data": (other,)}, r"examples differs from .*: 10 records \(\w+\) -> 9 records"),
            ({"init_text": "黑色"}, r"start text differs from .*: \w{12} -> \w{12}"),
            ({"distill_text": text}, r"distilled differs from .*: none -> \w{12}"),
        ):
            with pytest.raises(ConfigError, match=f"^{said}.*; use the same, or pass another --o"):
                tune(asked(**changes), Watcher())

    @pytest.mark.parametrize(
        "content", ["nothing\n{}\n", '{"op_code": 77}\n', "[]\n", '{"a": 1}\n{"b": 2}', "text"]
    )
    def test_a_file_that_is_no_study(self, content, asked, tmp_path):
        (tmp_path / "study.jsonl").write_text(content)
        with pytest.raises(ConfigError, match=r"^study .*study.jsonl cannot be read \(.+\); "):
            tune(asked(output=tmp_path), Watcher())
        assert (tmp_path / "study.jsonl").read_text() == content

    @pytest.mark.parametrize(
        ("name", "value", "said"),
        [
            ("param_value_internal", -1, r"trial 0 tries Choice\(.*-1.*\), which is none of the "),
            ("param_name", 3, "keywords must be strings"),
            ("param_name", "length", r"Choice.*unexpected keyword argument 'length'"),
            ("intermediate_value", 1e-9, "trial 0 ends with another eval_loss than it had"),
            ("intermediate_value", float("nan"), "NaN is no number of JSON"),
            ("step", 77, "trial 0 has no finite eval_loss at a step of its own"),
            ("user_attr", {"asked": {}}, "'inputs'"),
        ],
    )
    def test_a_damaged_study(self, name, value, said, straight, asked, tmp_path):
        file = tmp_path / "study.jsonl"
        whole = (straight[0].output / "study.jsonl").read_text().splitlines()
        entries = [json.loads(line) for line in whole]
        found = [entry for entry in entries if name in entry and entry.get("trial_id", 0) == 0]
        found[-1 if name in ("intermediate_value", "step") else 0][name] = value
        file.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
        with pytest.raises(ConfigError, match=rf"^study {file} cannot be read \(.*{said}.*\); "):
            tune(asked(output=tmp_path), Watcher())

    def test_a_study_without_its_settings(self, straight, asked, tmp_path):
        whole = (straight[0].output / "study.jsonl").read_text().splitlines(keepends=True)
        kept = [line for line in whole if "user_attr" not in line]
        (tmp_path / "study.jsonl").write_text("".join(kept))
        with pytest.raises(ConfigError, match=r"cannot be read \(trials and no settings\); "):
            tune(asked(output=tmp_path), Watcher())


class TestATrialThatCannotGoOn:
    """It advises what `ptune tune` has, which is neither --fresh nor --init-prefix."""

    @pytest.fixture
    def stopped(self, asked, tmp_path):
        """A study whose first trial has a checkpoint."""
        asked = asked(output=tmp_path / "out")
        tune(asked, Watcher(at_step={1: interrupt}))
        return asked, asked.output / "trial-0"

    def test_damaged(self, stopped):
        asked, trial = stopped
        (trial / "checkpoint-1" / "optimizer.safetensors").write_bytes(b"")
        way_out = rf"move {trial}, and the trial begins anew, or pass another --output$"
        for said in (
            r"no checkpoint in .* is whole: .* optimizer.safetensors, ",
            "^.*checkpoint-1 ",
        ):
            with pytest.raises(CheckpointError, match=rf"^{said}.*; {way_out}"):
                tune(asked, Watcher())
            (trial / "checkpoint-1" / "ptune_manifest.json").unlink(missing_ok=True)
        shutil.rmtree(trial)
        assert tune(asked, Watcher()).best

    def test_of_another_trial(self, stopped):
        asked, trial = stopped
        shutil.rmtree(trial)
        train(asked.trial(Choice(0.5, 3, "random"), trial), Recorder())
        message = (
            r"^settings differ from .*checkpoint-4: .*learning_rate 0.5 -> .*; use the same "
            rf"settings, or move {trial}, and the trial begins anew$"
        )
        with pytest.raises(ConfigError, match=message):
            tune(asked, Watcher())


class TestNotFinite:
    def test_a_trial_that_diverges_is_given_up(self, asked, tmp_path, monkeypatch):
        def diverge(settings, *rest):
            if settings.output.name == "trial-1":
                raise DivergenceError("loss is not finite in 10 steps; train again with a lower")
            return train(settings, *rest)

        monkeypatch.setattr(module, "train", diverge)
        result = tune(asked(trials=2, output=tmp_path / "out"), Watcher())
        assert [trial.finished for trial in result.trials] == [True, False]
        trial = result.trials[1]
        assert (trial.reason, trial.steps) == ("loss is not finite in 10 steps", 0)
        assert trial.eval_loss is None

    def test_no_loss_at_the_end(self, asked, tmp_path, monkeypatch):
        from ptune.training import trainer

        monkeypatch.setattr(trainer, "total_loss", lambda *given: (float("inf"), 1))
        message = (
            rf"^none of 2 trials in {tmp_path}/out has come to a finite eval_loss: eval_loss is "
            r"not finite at step 2; use lower --learning-rates and another --output, or look at "
            r"the data with `ptune preview`$"
        )
        asked = asked(trials=2, steps=2, output=tmp_path / "out")
        for _ in range(2):  # the second time, all are there
            with pytest.raises(TrainingError, match=message):
                tune(asked, Watcher())
        assert not (tmp_path / "out" / "best.yaml").exists()


def test_a_start_that_the_model_cannot_see(asked, tmp_path):
    message = (
        r"^lengths 9,000 is more than the [\d,]+ tokens that the model sees, so that a prefix "
        r"cannot begin as data; leave it out$"
    )
    with pytest.raises(ConfigError, match=message):
        tune(asked(lengths="3,9000", output=tmp_path / "out"), Watcher())
    assert not (tmp_path / "out").exists()


def test_one_process_alone(asked, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    message = (
        "^ptune tune runs its trials in one process, and torchrun has started 2; start it without$"
    )
    with pytest.raises(ConfigError, match=message):
        tune(asked(), Watcher())


def test_one_study_in_a_folder(asked, tmp_path):
    asked = asked(trials=1, steps=1, output=tmp_path / "out")
    nested = []

    def again():
        with pytest.raises(ConfigError, match=r"^another tuning writes into .*; wait for"):
            tune(asked, Watcher())
        nested.append(True)

    tune(asked, Watcher({0: again}))
    assert nested


def test_without_optuna(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    for name in ("run", "study"):
        monkeypatch.delitem(sys.modules, f"ptune.commands.tune.{name}", raising=False)
    with pytest.raises(SystemExit) as caught:
        app(["tune", "--data", "a.json", "--eval-fraction", "0.1"])
    assert caught.value.code == 1
    assert capsys.readouterr().err == (
        "error: ptune tune needs optuna, which is not installed; run pip install 'ptune[tune]'\n"
    )


class TestCommandLine:
    def test_table_and_what_comes_next(self, straight, asked):
        given = asked()
        names = ("model", "device", "batch_size", "trials", "steps", "lengths")
        names += ("eval_steps", "learning_rates", "init_data", "init_text", "seed", "output")
        words = ["tune", "--data", str(given.data[0]), "--eval-data", str(given.eval_data[0])]
        for name in names:
            words += [f"--{name.replace('_', '-')}", str(getattr(given, name))]
        shown = CliRunner().invoke(app, words, env={"COLUMNS": "100"})
        assert shown.exit_code == 0, shown.output
        rows = [row.split("│")[1:-1] for row in shown.stdout.splitlines() if "│" in row]
        assert len(rows) == TRIALS
        for row, trial in zip(rows, straight[0].trials, strict=True):
            number, rate, length, start, loss, step, said = map(str.strip, row)
            assert (int(number), int(length), int(step)) == (
                *(trial.number, trial.choice.pre_seq_len, trial.steps),
            )
            assert start == trial.choice.start
            assert rate == f"{trial.choice.learning_rate:.3g}"
            assert loss == f"{trial.eval_loss:.4f}"
            best = trial == straight[0].best
            assert said == ("best" if best else "" if trial.finished else "given up")
        joined = "".join(shown.stdout.split())
        assert f"next:ptunetrain--config{straight[0].config}".replace(" ", "") in joined

    def test_stopped(self, asked, tmp_path, monkeypatch):
        monkeypatch.setattr(
            "ptune.views.TuneView.step", lambda view, step, most: step == 2 and interrupt()
        )
        given = asked()
        words = ["tune", "--data", str(given.data[0]), "--eval-fraction", "0.3", "--steps", "3"]
        words += ["--model", given.model, "--device", "cpu", "-o", str(tmp_path / "out")]
        shown = CliRunner().invoke(app, words)
        assert shown.exit_code == 128 + signal.SIGINT, shown.output
        assert re.search(r"^trial 0 \(1 of 20\): learning rate \S+, length \d+, ", shown.stderr)
        assert "stopped; the same command goes on from there\n" in shown.stderr
        assert shown.stdout == ""
