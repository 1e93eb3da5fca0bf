"""Whole runs of `ptune train` on small models: what they write, refuse, and survive."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from fixtures.checkpoints import small_case, write_json, write_model
from fixtures.runs import (
    Recorder,
    folders_in,
    interrupt,
    log_lines,
    prefix_of,
    write_records,
)

from ptune import load_model, load_tokenizer
from ptune.base.folder import find_base_model
from ptune.checkpoint.metadata import CheckpointConfig
from ptune.commands.merge import merge
from ptune.config.settings import TrainSettings
from ptune.data.examples import Truncation, render_examples
from ptune.data.prompt import Lengths
from ptune.data.records import read_records
from ptune.errors import CheckpointError, ConfigError, DataError, ModelError
from ptune.training.eval_loss import total_loss
from ptune.training.output import settings_to_json
from ptune.training.stop_request import StopRequest
from ptune.training.train import train

KEY = "transformer.prefix_encoder.embedding.weight"


class TestResult:
    @pytest.mark.parametrize(("generation", "target"), [(1, 64), (2, 128), (3, 128), (4, 128)])
    def test_summary_metadata_and_result(self, generation, target, settings, toy_model):
        recorder = Recorder()
        asked = settings(generation, max_steps=2)
        result = train(asked, recorder)
        assert (result.steps, result.stopped_by) == (2, None)
        assert result.output == result.checkpoint == asked.output
        assert recorder.steps == [(1, 2), (2, 2)]

        summary, base = recorder.summary, find_base_model(toy_model(generation))
        assert summary.model == str(toy_model(generation))
        assert summary.generation is base.generation
        assert summary.precision == "float32 on cpu"
        assert summary.trainable == sum(t.numel() for t in prefix_of(asked.output).values())
        model = load_model(base.path)
        assert summary.parameters == sum(p.numel() for p in model.parameters()) + summary.trainable
        assert (summary.records, summary.skipped) == (10, ())
        assert summary.truncation == Truncation(10, 0, 0, 0)
        assert (summary.batch_size, summary.micro_batch_size) == (4, 2)
        assert (summary.max_steps, summary.resumed_from) == (2, None)
        assert summary.epochs == pytest.approx(2 / 3)

        metadata = CheckpointConfig.read(asked.output)
        assert metadata.base_model == str(base.path)
        assert metadata.prompt_format == base.generation.value
        assert (metadata.pre_seq_len, metadata.prefix_projection) == (4, False)
        assert metadata.settings["max_target_length"] == target
        assert metadata.settings["data"] == [str(asked.data[0])]
        first = json.loads(asked.data[0].read_text(encoding="utf-8").splitlines()[0])
        assert metadata.example_questions[0] == {"question": first["content"], "context": ""}
        assert len(metadata.example_questions) == asked.example_questions == 3

    def test_epochs_take_the_place_of_steps(self, settings):
        recorder = Recorder()
        result = train(settings(epochs=1.5), recorder)
        assert result.steps == recorder.summary.max_steps == 5  # half of three steps is two
        assert recorder.summary.epochs == pytest.approx(5 / 3)

    def test_last_step_is_saved_before_the_first_save_is_due(self, settings):
        asked = settings(max_steps=2, save_steps=1000)
        train(asked, Recorder())
        assert folders_in(asked.output) == ["checkpoint-2"]
        saved = prefix_of(asked.output / "checkpoint-2")
        assert torch.equal(prefix_of(asked.output)[KEY], saved[KEY])

    def test_default_output_names_the_run(self, settings, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        result = train(settings(output=None, max_steps=1), Recorder())
        assert result.output == Path("output/data-chatglm-6b-pt-4-0.02")
        assert (tmp_path / result.output / "prefix_encoder.safetensors").is_file()

    def test_relative_paths_are_absolute_in_the_metadata(self, settings, toy_model, monkeypatch):
        asked = settings(max_steps=1)
        monkeypatch.chdir(asked.output.parent)
        model = os.path.relpath(toy_model(), asked.output.parent)
        train(settings(max_steps=1, data=(Path("data.json"),), model=model), Recorder())
        metadata = CheckpointConfig.read(asked.output)
        assert metadata.settings["data"] == [str(asked.data[0])]
        assert Path(metadata.base_model).is_absolute()
        assert Path(metadata.base_model).samefile(toy_model())

    def test_eval_loss_is_logged_and_right(self, settings, tmp_path, toy_model):
        dev = write_records(tmp_path / "dev.json", 3)
        recorder = Recorder()
        asked = settings(eval_data=(dev,), eval_steps=2, max_steps=3)
        train(asked, recorder)
        evaluated = [line for line in log_lines(asked.output) if "eval_loss" in line]
        assert [line["step"] for line in evaluated] == [2, 3]
        assert [entry for entry in recorder.entries if "eval_loss" in entry] == evaluated

        base = find_base_model(toy_model())
        tokenizer = load_tokenizer(base.path)
        records = read_records([dev]).records
        examples, _ = render_examples(records, tokenizer, base.generation, Lengths(64, 64))
        model = load_model(base.path, asked.output, device="cpu")
        loss, tokens = total_loss(model, examples, tokenizer.pad_token_id, 4)
        assert evaluated[-1]["eval_loss"] == pytest.approx(loss / tokens, rel=1e-5)

    def test_training_lowers_the_loss(self, settings):
        asked = settings(max_steps=12, prefix_dropout=0.0, logging_steps=6, learning_rate=0.3)
        train(asked, Recorder())
        first, last = log_lines(asked.output)
        assert last["loss"] < first["loss"] - 0.05

    def test_truncation_is_in_the_summary(self, settings):
        recorder = Recorder()
        train(settings(max_steps=1, max_source_length=8), recorder)
        assert re.fullmatch(
            r"\d of 10 records \(.*\) have their prompt cut", str(recorder.summary.truncation)
        )


class TestInitPrefix:
    def test_starts_from_it(self, settings, toy_model, tmp_path):
        prefix = toy_model() / "prefix"
        asked = settings(init_prefix=(prefix,), max_steps=1, learning_rate=1e-12)
        train(asked, Recorder())
        start = torch.load(prefix / "pytorch_model.bin")
        assert torch.allclose(prefix_of(asked.output)[KEY], start[KEY], atol=1e-7)
        assert CheckpointConfig.read(asked.output).pre_seq_len == 5  # that of the checkpoint

    def test_a_merged_model_whose_own_prefix_is_not_used(self, settings, toy_model, tmp_path):
        base = find_base_model(toy_model())
        merged = merge(base, base.path / "prefix", tmp_path / "merged")
        notice = (
            f"training starts from a new prefix, not from the prefix that {merged} holds; "
            f"--init-prefix {merged} starts from it"
        )
        for name, changes, told in (
            ("new", {"max_steps": 3}, [notice]),
            ("new", {"max_steps": 3, "fresh": True}, [notice]),
            ("own", {"max_steps": 1, "init_prefix": (merged,), "learning_rate": 1e-12}, []),
            ("bare", {"max_steps": 1, "model": str(base.path)}, []),
        ):
            recorder = Recorder()
            asked = {"model": str(merged), "output": tmp_path / name, **changes}
            train(settings(**asked), recorder)
            assert recorder.notices == told, name
        start = torch.load(base.path / "prefix" / "pytorch_model.bin")
        assert torch.allclose(prefix_of(tmp_path / "own")[KEY], start[KEY], atol=1e-7)

    def test_of_another_model_is_refused_naming_both(self, settings, toy_model, tmp_path):
        train(settings(max_steps=1), Recorder())
        other = tmp_path / "other"
        shutil.copytree(toy_model(), other)
        case = small_case(1, **json.loads((other / "config.json").read_text()))
        write_model(other, case | {"seed": 5})
        again = settings(model=str(other), init_prefix=(tmp_path / "out",), output=tmp_path / "new")
        with pytest.raises(CheckpointError) as refused:
            train(again, Recorder())
        assert str(toy_model()) in str(refused.value)
        assert str(other) in str(refused.value)

    def test_of_an_output_whose_last_is_damaged(self, settings, tmp_path):
        """Whatever of it is: the one before is taken, which is said."""
        first = settings(max_steps=2, output=tmp_path / "first")
        train(first, Recorder())
        earlier = first.output / "checkpoint-2"
        for number, name in enumerate(("prefix_encoder.safetensors", "ptune_config.json")):
            with (first.output / name).open("ab") as file:
                file.write(b"}")
            recorder = Recorder()
            asked = settings(
                init_prefix=(first.output,), max_steps=1, output=tmp_path / str(number)
            )
            train(asked, recorder)
            (notice,) = recorder.notices
            assert re.fullmatch(
                rf"{first.output} holds [\d,]+ bytes of \S+, and [\d,]+ were written; "
                rf"taking {earlier}, the newest that is whole",
                notice,
            )
            recorded = CheckpointConfig.read(asked.output).settings
            assert recorded["init_prefix"] == [str(earlier)]
            (first.output / "prefix_encoder.safetensors").write_bytes(
                (earlier / "prefix_encoder.safetensors").read_bytes()
            )

    def test_of_another_shape_is_refused(self, settings, toy_model):
        asked = settings(init_prefix=(toy_model(2) / "prefix",))
        with pytest.raises(CheckpointError, match=r"embedding\.weight .* does not fit .*, which"):
            train(asked, Recorder())

    def test_its_form_is_taken_from_it(self, settings, toy_model, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        prefix = toy_model() / "prefix"  # of five tokens
        result = train(settings(init_prefix=(prefix,), max_steps=1, output=None), Recorder())
        assert result.output.name == "data-chatglm-6b-pt-5-0.02"
        recorded = CheckpointConfig.read(result.output).settings
        assert (recorded["pre_seq_len"], recorded["prefix_projection"]) == (5, False)
        assert "given" not in recorded

    def test_a_form_that_it_has_may_be_asked_for(self, settings, toy_model):
        prefix = toy_model() / "prefix"
        given = frozenset({"pre_seq_len", "prefix_projection"})
        train(settings(init_prefix=(prefix,), max_steps=1, pre_seq_len=5, given=given), Recorder())

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"pre_seq_len": 16}, "pre_seq_len 16 does not go with the prefix of {}, which has"),
            ({"given": frozenset({"pre_seq_len"})}, "pre_seq_len 128 does not go with the prefix"),
            ({"prefix_projection": True}, "prefix_projection True does not go with the prefix of"),
        ],
    )
    def test_another_form_is_refused(self, changes, said, settings, toy_model):
        prefix = toy_model() / "prefix"
        with pytest.raises(ConfigError) as refused:
            train(settings(init_prefix=(prefix,), **changes), Recorder())
        assert str(refused.value).startswith(said.format(prefix))
        name = said.split()[0]
        found = {"pre_seq_len": 5, "prefix_projection": False}[name]
        assert f"which has {name} {found}; leave --{name.replace('_', '-')} out" in str(
            refused.value
        )

    def test_that_is_not_there(self, settings, tmp_path):
        with pytest.raises(CheckpointError, match="nowhere is not a folder here"):
            train(settings(init_prefix=(tmp_path / "nowhere",)), Recorder())


class TestLengths:
    """Of a model with 2,048 positions."""

    def test_beyond_the_context(self, settings):
        message = (
            r"^max_source_length 2,000 and max_target_length 64 are more than the context of 2,048 "
            r"tokens of .*chatglm-6b; use e.g. --max-source-length 1984 --max-target-length 64$"
        )
        with pytest.raises(ConfigError, match=message):
            train(settings(max_source_length=2000), Recorder())

    def test_within_it(self, settings):
        train(settings(max_source_length=1984, max_steps=1), Recorder())


class TestRecordsWithoutLabels:
    """Truncation as in ChatGLM3's original keeps the beginning, whatever is lost."""

    @pytest.fixture
    def cut(self, settings, tmp_path):
        def make(long, short, **changes):
            records = [{"prompt": "黑色的裙子" * 40, "response": "好看"}] * long
            records += [{"prompt": "裙子", "response": f"好看{i}"} for i in range(short)]
            file = tmp_path / f"{long}-{short}.json"
            file.write_text(json.dumps(records), encoding="utf-8")
            changes = {"max_source_length": 24, "max_target_length": 8} | changes
            changes = {"data": (file,), "truncation": "original", "max_steps": 2} | changes
            return settings(3, **changes)

        return make

    def test_some(self, cut):
        recorder = Recorder()
        asked = cut(6, 3, batch_size=1, micro_batch_size=1, max_steps=3)
        train(asked, recorder)
        assert recorder.summary.records == 3
        said = str(recorder.summary.truncation)
        assert (
            "6 of 9 records (66.7%) have no label left and do not count: use --truncation" in said
        )
        assert not any("skipped" in line for line in log_lines(asked.output))

    def test_all(self, cut):
        asked = cut(4, 0)
        message = (
            r"^no record of .*4-0.json has a label left at these lengths; use --truncation turns "
            r"or a larger --max-source-length$"
        )
        with pytest.raises(DataError, match=message):
            train(asked, Recorder())
        assert not asked.output.exists()
        train(cut(4, 0, truncation="turns"), Recorder())

    def test_of_development_data(self, cut):
        with pytest.raises(DataError, match=r"no record of .*3-0\.json has a label left"):
            train(cut(0, 4, eval_data=cut(3, 0).data), Recorder())
        recorder = Recorder()
        train(cut(0, 4, eval_data=cut(2, 2).data), recorder)
        said = "2 records of the development data have no label left"
        assert said in recorder.summary.notices


class TestSteps:
    def test_warm_up_without_an_end(self, settings):
        message = (
            r"^warmup_steps 6 leaves no step of 6 at the peak rate; use fewer, or train longer "
            r"with --max-steps or --epochs$"
        )
        with pytest.raises(ConfigError, match=message):
            train(settings(warmup_steps=6), Recorder())
        with pytest.raises(ConfigError, match="warmup_steps 3 leaves no step of 3 at the peak"):
            train(settings(warmup_steps=3, epochs=1.0), Recorder())
        train(settings(warmup_steps=1, max_steps=2), Recorder())

    def test_batch_of_more_than_all_records(self, settings):
        recorder = Recorder()
        train(settings(batch_size=64, micro_batch_size=64, max_steps=1), recorder)
        assert recorder.notices == [
            "batch_size 64 is more than the 10 records; a step sees each of them once"
        ]

    def test_bounds_of_the_settings_train(self, settings):
        """Numbers at their upper bounds are unusual, and work."""
        bounds = {"batch_size": 10**6, "micro_batch_size": "auto", "seed": 2**32 - 1}
        bounds |= {"save_steps": 10**9, "logging_steps": 10**9, "save_total_limit": 10**9}
        assert train(settings(max_steps=1, **bounds), Recorder()).steps == 1


def test_eval_loss_that_is_not_finite_is_told_and_not_written(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("ptune.training.trainer.total_loss", lambda *_: (float("nan"), 5))
    dev = write_records(tmp_path / "dev.json", 3)
    recorder = Recorder()
    asked = settings(eval_data=(dev,), eval_steps=2, max_steps=2)
    train(asked, recorder)
    assert "eval_loss is not finite at step 2" in recorder.notices
    lines = (asked.output / "train_log.jsonl").read_text().splitlines()
    assert {"step": 2, "skipped": "eval_loss is not finite"} in list(map(json.loads, lines))
    assert not any("NaN" in line for line in lines)
    state = (asked.output / "checkpoint-2" / "trainer_state.json").read_text()
    assert "NaN" not in state


def test_backend_without_quantized_weights(settings):
    message = "^quantization_backend torch has no effect on weights in full width; leave it out, or"
    with pytest.raises(ConfigError, match=message):
        train(settings(quantization_backend="torch"), Recorder())
    train(settings(quantization_backend="torch", quantization_bit="8", max_steps=1), Recorder())


class TestRefused:
    def test_output_that_is_a_file(self, settings, tmp_path):
        (tmp_path / "out").touch()
        with pytest.raises(ConfigError, match=r"output .*out is a file; pass a folder"):
            train(settings(), Recorder())

    def test_model_that_is_not_there(self, settings, tmp_path):
        asked = settings(model=str(tmp_path / "nowhere"))
        with pytest.raises(ModelError, match=r"nowhere is neither a folder.*`--model tiny`"):
            train(asked, Recorder())

    def test_model_that_is_no_chatglm(self, settings, tmp_path):
        folder = tmp_path / "llama"
        folder.mkdir()
        with pytest.raises(ModelError, match=r"no config\.json in .*llama \(found nothing\)"):
            train(settings(model=str(folder)), Recorder())
        write_json(folder / "config.json", {"model_type": "vit"})
        with pytest.raises(ModelError, match=r"model_type 'vit' .* is neither ChatGLM nor a"):
            train(settings(model=str(folder)), Recorder())

    def test_batch_that_is_no_multiple(self, settings):
        with pytest.raises(
            ConfigError, match="batch_size 4 is not a multiple of micro_batch_size 3"
        ):
            settings(micro_batch_size=3)

    def test_loggers_that_cannot_be_used(self, settings, monkeypatch):
        message = r"^report_to 'nonsense' is unknown; use one of .*tensorboard.*, all, none$"
        with pytest.raises(ConfigError, match=message):
            train(settings(report_to="nonsense"), Recorder())

        def callback():
            raise RuntimeError("requires something to be installed.")

        name = "ptune.training.arguments.get_reporting_integration_callbacks"
        monkeypatch.setattr(name, lambda report_to: [callback])
        with pytest.raises(
            ConfigError, match=r"\(requires something to be installed\); install it"
        ):
            train(settings(report_to="tensorboard"), Recorder())

    def test_nothing_is_written(self, settings):
        asked = settings(report_to="nonsense")
        with pytest.raises(ConfigError):
            train(asked, Recorder())
        assert not asked.output.exists()


class TestBadRecords:
    @pytest.fixture
    def bad(self, tmp_path):
        file = write_records(tmp_path / "data.json", 8)
        broken = "".join(f'\n{{"content": "类型#裙", "summary": {i}}}' for i in range(25))
        file.write_text(file.read_text(encoding="utf-8") + broken, encoding="utf-8")
        return file

    def test_twenty_are_shown_at_once(self, bad, settings):
        with pytest.raises(DataError) as refused:
            train(settings(), Recorder())
        first, *shown, more, advice = str(refused.value).splitlines()
        assert first == "25 of 33 records are bad:"
        assert len(shown) == 20
        assert shown[0].strip() == f"{bad}:9: column 'summary': expected text, found the number 0"
        assert more.strip() == "... and 5 more"
        assert "--skip-bad-records" in advice

    def test_skipped_ones_are_counted(self, bad, settings):
        recorder = Recorder()
        train(settings(skip_bad_records=True, max_steps=1), recorder)
        assert recorder.summary.records == 8
        assert len(recorder.summary.skipped) == 25
        assert recorder.summary.skipped[0].startswith(f"{bad}:9: ")


class TestInterrupt:
    def test_first_ctrl_c_saves_and_stops(self, settings):
        asked = settings(max_steps=6, save_steps=1000)
        result = train(asked, Recorder({2: interrupt}))
        assert result.stopped_by == signal.SIGINT
        assert result.steps == 2
        assert result.checkpoint == asked.output / "checkpoint-2"
        assert not (asked.output / "prefix_encoder.safetensors").exists()  # it is to be resumed
        recorder = Recorder()
        assert train(settings(save_steps=1000), recorder).stopped_by is None
        assert recorder.summary.resumed_from == asked.output / "checkpoint-2"
        assert recorder.steps == [(step, 6) for step in (3, 4, 5, 6)]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_second_ctrl_c_ends_at_once(self, settings):
        def twice():
            interrupt()
            interrupt()

        with pytest.raises(KeyboardInterrupt):
            train(settings(), Recorder({2: twice}))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_at_the_last_step_the_run_is_finished(self, settings):
        result = train(settings(max_steps=2), Recorder({2: interrupt}))
        assert result.stopped_by is None

    def test_training_in_another_thread_leaves_signals_alone(self, settings):
        results = []
        thread = threading.Thread(
            target=lambda: results.append(train(settings(max_steps=1), Recorder()))
        )
        thread.start()
        thread.join()
        assert results[0].steps == 1

    def test_of_a_process(self, settings, toy_model):
        asked = settings(max_steps=5000)
        flags = {"--data": asked.data[0], "--model": asked.model, "--output": asked.output}
        flags |= {"--pre-seq-len": 4, "--batch-size": 4, "--micro-batch-size": 2}
        flags |= {"--max-steps": 5000, "--logging-steps": 1, "--device": "cpu"}
        command = [sys.executable, "-c", "from ptune.cli import app; app()", "train"]
        command += [str(part) for flag in flags.items() for part in flag]
        # A shell's background job would ignore the signal.
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        for line in process.stderr:
            if line.startswith("step 3:"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
        assert process.wait() == 130
        assert "Traceback" not in rest
        stopped = int(re.search(r"stopped after step (\d+), saved in", rest).group(1))
        assert folders_in(asked.output) == [f"checkpoint-{stopped}"]
        goal = stopped + 2
        result = train(settings(max_steps=goal, save_steps=1000), Recorder())
        assert result.steps == goal
        assert [line["step"] for line in log_lines(asked.output)] == list(range(1, goal + 1))


def test_given_up_after_an_evaluation(settings, tmp_path):
    """The run ends with that step and a checkpoint, and is gone on with like a stopped one."""
    asked = settings(eval_data=(write_records(tmp_path / "dev.json", 3),), eval_steps=2)
    stop = StopRequest(print)

    class Watcher(Recorder):
        def logged(self, entry):
            stop.given_up = "eval_loss" in entry

    result = train(asked, Watcher(), stop)
    assert (result.steps, result.given_up, result.stopped_by) == (2, True, None)
    assert result.checkpoint == asked.output / "checkpoint-2"
    assert not (asked.output / "prefix_encoder.safetensors").exists()
    result = train(asked, Recorder())
    assert (result.steps, result.given_up) == (6, False)


def test_settings_as_json(tmp_path):
    plain = settings_to_json(TrainSettings(data=(tmp_path / "a", tmp_path / "b"), output=tmp_path))
    assert plain["data"] == [str(tmp_path / "a"), str(tmp_path / "b")]
    assert plain["output"] == str(tmp_path)
    assert plain["init_prefix"] is None
    assert json.loads(json.dumps(plain)) == plain


@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_train_as_one(processes, settings, tmp_path):
    """Here or by torchrun; batch and dropout stay what they are, one process speaks and writes."""
    # The last batch of an epoch has one record, and nothing for the second process.
    changes = {"batch_size": 3, "micro_batch_size": 3, "max_steps": 5, "prefix_dropout": 0.3}
    alone = settings(output=tmp_path / "one", **changes)
    train(alone, Recorder())
    words = ["--data", str(alone.data[0]), "--model", alone.model, "--output", "many"]
    words += ["--pre-seq-len", "4", "--batch-size", "3", "--micro-batch-size", "1"]
    words += ["--max-steps", "5", "--logging-steps", "1", "--prefix-dropout", "0.3"]
    launcher = [sys.executable, "-m"]
    if processes > 2:
        launcher += ["torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
        launcher.append("-m")
    else:
        words += ["--processes", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*launcher, "ptune", "train", *words],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("prefix saved in many") == 1
    fewer = "batch_size 3 is less than a record for each of 4 processes"
    assert (fewer in " ".join(done.stderr.split())) == (processes == 4)
    one, many = (log_lines(tmp_path / name) for name in ("one", "many"))
    losses = [[line["loss"] for line in lines] for lines in (one, many)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert torch.allclose(prefix_of(tmp_path / "many")[KEY], prefix_of(tmp_path / "one")[KEY])
