"""The command line as a user meets it: help, every command, errors of one line, exit codes."""

import gc
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata

import datasets
import pytest
from fixtures.runs import log_lines, write_records
from typer.testing import CliRunner

import ptune
from ptune.base.folder import find_base_model
from ptune.cli import app
from ptune.config.declaration import declared
from ptune.config.resolve import resolve
from ptune.config.settings import TrainSettings
from ptune.errors import ConfigError

COMMANDS = [
    *(
        "train",
        "tune",
        "eval",
        "predict",
        "chat",
        "serve",
        "merge",
        "export",
        "preview",
        "score",
        "estimate",
        "doctor",
    )
]
WITHOUT_JSON = ("train", "tune", "chat", "serve", "merge", "export")
SHORT = ["--model", "tiny", "--device", "cpu", "--pre-seq-len", "4", "--batch-size", "4"]
HEAVY = ("torch", "transformers", "datasets")


@pytest.fixture(autouse=True, scope="module")
def _quiet_datasets():
    # The command line asks for it before it imports the library; here others have imported it.
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command line inside an empty folder."""
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments, input=None):
        return CliRunner().invoke(app, [str(a) for a in arguments], input=input)

    return invoke


@pytest.fixture
def data(tmp_path):
    return write_records(tmp_path / "train.json", 12)


@pytest.fixture(scope="module")
def trained(tiny_folder, tmp_path_factory):
    """Train three steps on the built-in model; the folder holds out/, train.json and dev.json."""
    root = tmp_path_factory.mktemp("cli")
    files = {"--data": write_records(root / "train.json", 12)}
    files |= {"--eval-data": write_records(root / "dev.json", 5), "--output": root / "out"}
    flags = [str(part) for item in files.items() for part in item]
    flags += ["--max-steps", "3", "--logging-steps", "1", "--max-target-length", "24"]
    result = CliRunner().invoke(app, ["train", *SHORT, *flags])
    assert result.exit_code == 0, result.output
    root.joinpath("stdout").write_text(result.stdout, encoding="utf-8")
    root.joinpath("stderr").write_text(result.stderr, encoding="utf-8")
    return root


def assert_one_error_line(result, *parts):
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert re.fullmatch(r"error: [^\n]+; [^\n]+\n", result.stderr), result.stderr
    for part in parts:
        assert str(part) in result.stderr


class TestHelp:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_of_a_command(self, command, run):
        result = run(command, "--help")
        assert result.exit_code == 0
        assert result.stderr == ""
        assert re.match(rf"Usage: \w+ {command} \[OPTIONS\]", result.stdout)
        assert "Traceback" not in result.output
        assert "--json" in result.stdout or command in WITHOUT_JSON
        assert run(command, "-h").stdout == result.stdout

    def test_names_every_setting_of_train(self, run):
        shown = " ".join(run("train", "--help").stdout.split())
        for field in declared(TrainSettings):
            assert f"--{field.name.replace('_', '-')}" in shown
        assert "by default 0.02, of a LoRA 0.0001." in shown and "[default: 3000]" in shown
        assert "--no-shuffle" in shown

    def test_names_every_command(self, run):
        listed = run("--help").stdout.split("Commands:")[1]
        assert re.findall(r"^  (\w+)", listed, re.MULTILINE) == COMMANDS

    def test_without_arguments(self, run):
        result = run()
        assert result.exit_code == 2
        assert "Usage:" in result.output

    def test_needs_nothing_heavy(self):
        code = (
            "import sys\n"
            "from ptune.cli import app\n"
            "for arguments in (['--help'], ['train', '--help']):\n"
            "    app(arguments, standalone_mode=False)\n"
            f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert result.stdout.splitlines()[-1] == "[]", result.stderr
        assert "Usage:" in result.stdout

    def test_version(self, run):
        result = run("--version")
        assert (result.exit_code, result.stdout) == (0, f"ptune {ptune.__version__}\n")
        assert metadata.version("ptune") == ptune.__version__


class TestEndToEnd:
    def test_training(self, trained):
        shown = (trained / "stdout").read_text(encoding="utf-8")
        assert f"prefix saved in {trained / 'out'} after 3 steps" in shown
        assert f"ptune eval --checkpoint {trained / 'out'}" in shown
        told = (trained / "stderr").read_text(encoding="utf-8")
        assert "tiny (chatglm), float32 on cpu" in told
        assert re.search(r"trainable +8,192 of 3,\d{3},\d{3} parameters", told)
        for step in (1, 2, 3):
            assert re.search(rf"^step {step}: loss [\d.]+  [\d.]+ records/s$", told, re.M)
        assert re.search(r"^step 3: eval_loss [\d.]+$", told, re.M)
        assert "warning" not in told.lower()
        assert (trained / "out" / "prefix_encoder.safetensors").is_file()

    def test_eval_then_score(self, trained, run, tmp_path):
        arguments = ("eval", "-c", trained / "out", "-o", "answers", "--device", "cpu")
        result = run(*arguments)
        assert result.exit_code == 0, result.output
        assert "rouge-1" in result.stdout and "written to answers" in result.stdout
        assert re.search(r"loss [\d.]+, 5 records, \d empty predictions", result.stdout)
        as_json = json.loads(run(*arguments, "--json").stdout)
        assert as_json == json.loads((tmp_path / "answers/eval_results.json").read_text())

        file = "answers/generated_predictions.jsonl"
        scored = run("score", file)
        assert scored.exit_code == 0
        assert f"{as_json['rouge-l']:.2f}" in scored.stdout
        assert re.search(r"^5 records, \d empty predictions$", scored.stdout, re.M)
        scores = json.loads(run("score", file, "--json").stdout)
        assert scores == {name: as_json[name] for name in scores}
        assert scores.keys() == {"rouge-1", "rouge-2", "rouge-l", "bleu-4"}

    def test_merge_then_eval_and_chat(self, trained, run, tmp_path):
        merged = run("merge", "-c", trained / "out", "-o", "merged")
        assert (merged.exit_code, merged.stdout) == (0, "merged model in merged\n"), merged.output
        common = ("--data", trained / "dev.json", "--max-new-tokens", 6, "--device", "cpu")
        assert run("eval", "-m", "merged", "-o", "a", *common).exit_code == 0
        assert run("eval", "-c", trained / "out", "-o", "b", *common).exit_code == 0
        file = "generated_predictions.jsonl"
        first, second = (tmp_path / name / file for name in "ab")
        assert first.read_bytes() == second.read_bytes()

        flags = ("--max-new-tokens", 6, "--no-do-sample", "--device", "cpu")
        answers = [
            run("chat", *which, *flags, input="类型#裙*颜色#黑色\n")
            for which in (("-m", "merged"), ("-c", trained / "out"))
        ]
        assert [answer.exit_code for answer in answers] == [0, 0]
        assert answers[0].stdout == answers[1].stdout != ""

    def test_one_question(self, trained, run, tmp_path):
        """The answer alone on stdout, that of a conversation; stdin is left alone."""
        flags = ["chat", "-c", trained / "out", "--no-do-sample", "--max-new-tokens", 16]
        question = "类型#裙*颜色#黑色"
        talked = run(*flags, input=question + "\n").stdout
        once = run(*flags, question, input="再见\n")
        assert (once.exit_code, once.stdout, once.stderr) == (0, talked, "")
        (tmp_path / "about.txt").write_text("这条裙子是羊毛的。\n" * 1000, encoding="utf-8")
        about = run(*flags, "--context", "about.txt", question)
        assert about.exit_code == 0 and about.stdout.count("\n") == 1
        assert about.stderr.startswith("the text that the question is about is longer than fits")
        for words, message in (
            ([""], "error: question '' is blank; write something, or leave it out\n"),
            (
                ["--context", "none.txt", "a"],
                "error: context file none.txt does not exist; check the path\n",
            ),
        ):
            failed = run(*flags, *words)
            assert (failed.exit_code, failed.stdout, failed.stderr) == (1, "", message)

    def test_context_column(self, run, tmp_path):
        """Trained, evaluated and previewed; its record says which column it was."""
        rows = [{"问": "颜色", "答": "黑色", "知识": "黑色的羊毛裙。" * n} for n in (1, 0, 90)]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (tmp_path / "train.json").write_text(lines, encoding="utf-8")
        names = ["--prompt-column", "问", "--response-column", "答", "--context-column", "知识"]
        flags = ["--data", "train.json", *names]
        result = run("train", *SHORT, *flags, "--output", "out", "--max-steps", 1)
        assert result.exit_code == 0, result.output
        assert "1 of 3 records (33.3%) have their context cut" in " ".join(result.stderr.split())
        evaluated = run("eval", "-c", "out", *flags[:2], "--device", "cpu", "--max-new-tokens", 2)
        assert evaluated.exit_code == 0, evaluated.output
        assert "not used" not in evaluated.output
        shown = run("preview", "-m", "tiny", *flags, "-n", 3)
        assert shown.stdout.count("the context is cut: of its ") == 1
        assert "1 of 3 records have their context cut" in shown.stdout
        told = run("preview", "-m", "tiny", *flags, "--json").stdout.splitlines()
        cuts = [json.loads(line)["context_cut"] for line in told]
        assert cuts[:2] == [None, None]
        assert cuts[2]["characters"] == 7 * 90 > cuts[2]["kept_characters"] > 10
        assert json.loads(told[0])["messages"][0]["context"] == "黑色的羊毛裙。"
        unused = run("preview", "-m", "tiny", *flags[:-2])
        assert "not used: '知识' (2 records)" in unused.stderr

    def test_preview(self, trained, run):
        result = run("preview", "-m", "tiny", "-d", trained / "train.json", "-n", 2)
        assert result.exit_code == 0, result.output
        assert "train.json:1" in result.stdout and "train.json:3" not in result.stdout
        assert "<sop>" in result.stdout and "[gMASK]" in result.stdout
        assert "0 of 12 records (0.0%) are cut at these limits" in result.stdout
        short = run("preview", "-m", "tiny", "-d", trained / "train.json", "--max-source-length", 8)
        share, source = re.search(
            r"(\d+) of 12 records \([\d.]+%\) are cut.*\n99 % fit with --max-source-length (\d+)",
            short.stdout,
        ).groups()
        assert int(share) > 0 and int(source) > 8

    def test_preview_as_json(self, trained, run):
        result = run("preview", "-m", "tiny", "-d", trained / "train.json", "--json")
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        assert [line["index"] for line in lines] == list(range(12))
        keys = {"index", "input_ids", "labels", "prompt", "response", "messages"}
        assert all(line.keys() == {*keys, "message_of_token", "context_cut"} for line in lines)
        assert {line["context_cut"] for line in lines} == {None}
        assert lines[0]["prompt"] == lines[0]["messages"][-2]["content"] == "类型#裙"
        assert lines[0]["response"] == lines[0]["messages"][-1]["content"]
        for name in ("labels", "message_of_token"):
            assert all(len(line[name]) == len(line["input_ids"]) for line in lines)

    def test_resume(self, trained, run, tmp_path):
        shutil.copytree(trained / "out", tmp_path / "out")
        flags = ["--data", trained / "train.json", "--output", "out", "--max-target-length", 24]
        flags += ["--max-steps", 4, "--logging-steps", 1, "--resume"]
        result = run("train", *SHORT, *flags)
        assert result.exit_code == 0, result.output
        assert re.search(r"resumed +checkpoint-3", result.stderr)
        assert log_lines(tmp_path / "out")[-1]["step"] == 4

    def test_cut_and_skipped_records_are_told(self, data, run):
        with data.open("a", encoding="utf-8") as stream:
            stream.write('\n{"content": "裙"}\n{"content": "裙", "summary": "x", "id": 7}')
        flags = ["--data", data, "--max-steps", 1, "--skip-bad-records", "--max-source-length", 8]
        result = run("train", *SHORT, *flags, "--output", "out[run]")
        assert result.exit_code == 0, result.output
        assert "warning: 1 bad records left out, first: " in result.stderr
        assert re.search(r"warning: \d+ of 13 records .* have their prompt cut", result.stderr)
        assert "warning: not used: 'id' (1 record)\n" in result.stderr
        assert "prefix saved in out[run] after 1 steps" in result.stdout
        shown = run("preview", "-m", "tiny", "-d", data, "--skip-bad-records")
        assert "warning: 1 bad records left out" in shown.stderr
        assert "warning: not used: 'id' (1 record)\n" in shown.stderr
        for_programs = run("preview", "-m", "tiny", "-d", data, "--skip-bad-records", "--json")
        assert "warning: not used: 'id' (1 record)\n" in for_programs.stderr
        assert len(for_programs.stdout.splitlines()) == 13

    def test_how_data_was_read_is_told(self, run, tmp_path):
        """Of a file that is not UTF-8, nor is its name."""
        folder = tmp_path / os.fsdecode(b"d\xe9v")
        try:
            folder.mkdir()
        except OSError:
            pytest.skip("the file system takes no such name")
        text = "content,summary\n类型#裙,一条裙子\n类型#裤,一条裤子\n"
        (folder / "data.csv").write_bytes(text.encode("gbk"))
        told = (
            f"warning: {tmp_path}/d\\xe9v/data.csv is not UTF-8 and was read as GB18030 (GBK), "
            "where it has '类型#裙,一条裙子'; convert it to UTF-8 if that is not its text\n"
        )
        (tmp_path / "dev.csv").write_bytes((folder / "data.csv").read_bytes())
        flags = ["--data", folder, "--eval-data", tmp_path / "dev.csv", "--max-steps", 1]
        trained = run("train", *SHORT, *flags)
        assert trained.exit_code == 0, trained.output
        assert trained.stderr.count(told) == 1
        of_dev = told.replace("warning: ", "warning: in the development data, ")
        of_dev = of_dev.replace("d\\xe9v/data.csv", "dev.csv")
        assert trained.stderr.count(of_dev) == 1
        (out,) = (tmp_path / "output").iterdir()
        assert out.name.startswith("d_v-tiny")
        common = ["--max-new-tokens", 4, "--device", "cpu"]
        scored = run("eval", "-c", out, *common, "--json")
        assert scored.exit_code == 0, scored.output
        assert scored.stderr.count("dev.csv is not UTF-8") == 1
        assert json.loads(scored.stdout)["samples"] == 2
        shown = run("preview", "-m", "tiny", "-d", folder)
        assert (shown.exit_code, shown.stderr) == (0, told)
        lines = run("preview", "-m", "tiny", "-d", folder, "--json")
        assert lines.stderr == told and len(lines.stdout.splitlines()) == 2
        resumed = run("train", *SHORT, *flags[:-1], 2, "--resume")
        assert resumed.exit_code == 0, resumed.output


class TestConfigFile:
    def test_flags_win(self, data, run, tmp_path):
        (tmp_path / "run.yaml").write_text(
            f"data: {data}\nmodel: tiny\noutput: from-yaml\nmax-steps: 9\nlearning_rate: 1e-3\n"
            "pre_seq_len: 6\nbatch_size: 2\nlogging_steps: 1\nshuffle: false\ndevice: cpu\n"
            "prefix_projection: true\n"
        )
        flags = ["--max-steps", "1", "-o", "from-flag", "--no-prefix-projection"]
        result = run("train", "--config", "run.yaml", *flags)
        assert result.exit_code == 0, result.output
        assert not (tmp_path / "from-yaml").exists()
        written = json.loads(
            (tmp_path / "from-flag/ptune_config.json").read_text(encoding="utf-8")
        )["settings"]
        chosen = {"max_steps": 1, "learning_rate": 0.001, "pre_seq_len": 6, "batch_size": 2}
        assert {name: written[name] for name in chosen} == chosen
        assert written["shuffle"] is False and written["prefix_projection"] is False

    def test_unknown_key_names_the_nearest(self, run, tmp_path):
        (tmp_path / "run.yaml").write_text("learning-rat: 1\n")
        result = run("train", "--config", "run.yaml", "--data", "x")
        assert result.exit_code == 1
        assert result.stderr == (
            "error: 'learning-rat' in run.yaml is no setting; did you mean 'learning_rate'?\n"
        )

    @pytest.mark.parametrize("content", ["- a\n- b\n", "model: [\n", "model:\n", "max_steps: x\n"])
    def test_unusable_file(self, content, run, tmp_path):
        (tmp_path / "run.yaml").write_text(content)
        result = run("train", "--config", "run.yaml", "--data", "x")
        assert result.exit_code == 1
        assert result.stderr.startswith("error: ") and "run.yaml" in result.stderr

    def test_missing_file(self, run):
        assert_one_error_line(run("train", "--config", "no.yaml", "-d", "x"), "no.yaml")

    def test_settings_of_flags_alone(self, tmp_path):
        flags = {"data": (tmp_path,), "max_steps": None, "batch_size": 8}
        assert resolve(TrainSettings, flags) == TrainSettings(data=(tmp_path,), batch_size=8)


class TestErrors:
    @pytest.mark.parametrize("command", ["train", "eval", "predict", "chat", "merge", "preview"])
    def test_nothing_given(self, command, run):
        result = run(command)
        assert result.exit_code == 1
        assert re.fullmatch(r"error: [^\n]+\n", result.stderr)

    def test_score_without_a_file(self, run):
        result = run("score")
        assert result.exit_code == 2
        assert "Missing argument" in result.stderr

    @pytest.mark.parametrize("command", COMMANDS)
    def test_unknown_flag(self, command, run):
        result = run(command, "--no-such-flag")
        assert result.exit_code == 2
        assert "No such option" in result.stderr
        assert "Traceback" not in result.output

    def test_value_of_a_wrong_type(self, run):
        for value in ("many", "1_0", "0x10", "2.5"):
            result = run("train", "--max-steps", value)
            assert_one_error_line(
                result, f"max_steps '{value}' is not of type int; write e.g. --max-steps 16"
            )
        result = run("train", "--learning-rate", "1_0.5")
        assert_one_error_line(result, "learning_rate '1_0.5' is not of type float; write e.g. --l")

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            ("train --config A --config=B", "--config is given twice, as 'A' and as 'B'"),
            ("train -m tiny --model v1", "--model is given twice, as 'tiny' and as 'v1'"),
            ("eval --max_samples 3 --max-samples 3", "--max-samples is given twice, as '3' and"),
            ("train --shuffle --no-shuffle", "--shuffle is given twice, as --shuffle and as --no-"),
            ("chat -c a -c b -c c", "--checkpoint is given twice, as 'a' and as 'b'"),
            ("merge --output a -o b", "--output is given twice, as 'a' and as 'b'"),
            ("preview -n 1 -n 2", "--records is given twice, as '1' and as '2'"),
            ("score --json x --json", "--json is given twice, as --json and as --json"),
            ("estimate -c A -c B", "--card is given twice, as 'A' and as 'B'"),
            ("doctor -m a -m b", "--model is given twice, as 'a' and as 'b'"),
        ],
    )
    def test_option_given_twice(self, words, told, run):
        assert_one_error_line(run(*words.split()), f"error: {told}", "; leave one of them out")
        result = run("--debug", *words.split())
        assert isinstance(result.exception, ptune.errors.ConfigError)

    def test_options_that_may_repeat(self, run):
        given = ("-d", "a.json", "--data", "b.json", "--eval-data", "c", "--eval-data", "d")
        assert_one_error_line(run("train", *SHORT, *given), "a.json does not exist; check the path")
        assert run("train", "--help", "-h").exit_code == 0

    def test_data_that_cannot_be_read(self, run, tmp_path):
        (tmp_path / "empty.json").touch()
        (tmp_path / "folder").mkdir()
        for name, reason in (
            ("nope.json", "does not exist"),
            ("empty.json", "is empty"),
            ("folder", "no data file in folder"),
        ):
            for command in (["train", *SHORT], ["preview", "-m", "tiny"], ["eval", "-m", "tiny"]):
                assert_one_error_line(run(*command, "--data", name), name, reason)

    def test_data_given_twice(self, run, data, tmp_path):
        (tmp_path / "link.json").symlink_to(data)
        for command in (["train", *SHORT], ["preview", "-m", "tiny"], ["eval", "-m", "tiny"]):
            result = run(*command, "--data", data, "--data", "link.json")
            assert_one_error_line(result, "link.json is given twice (as ", "link.json); leave one")
        result = run("train", *SHORT, "--data", data, "--eval-data", data)
        assert_one_error_line(result, f"data file {data} is both training and development data")

    def test_several_bad_records(self, run, data):
        lines = [*data.read_text(encoding="utf-8").splitlines(), "{}", "5"]
        data.write_text("\n".join(lines), encoding="utf-8")
        result = run("train", *SHORT, "--data", data)
        assert result.exit_code == 1
        assert result.stderr.startswith("error: 2 of 14 records are bad:\n")
        assert f"{data}:13: " in result.stderr and f"{data}:14: " in result.stderr
        assert "Traceback" not in result.stderr

    def test_model_that_is_not_there(self, run, data):
        result = run("train", "--model", "nowhere", "--data", data)
        assert_one_error_line(result, "model nowhere", "`--model tiny`")

    def test_checkpoint_that_is_none(self, run, tmp_path):
        (tmp_path / "folder").mkdir()
        for command in ("eval", "chat", "merge"):
            extra = ["--output", "new"] if command == "merge" else []
            assert_one_error_line(run(command, "-c", "folder", *extra), "no checkpoint in folder")
            assert_one_error_line(run(command, "-c", "nope", *extra), "checkpoint nope")

    def test_output_that_is_taken(self, run, trained, tmp_path):
        flags = ["--data", trained / "train.json", "--output", trained / "out"]
        assert_one_error_line(run("train", *SHORT, *flags), "settings differ from", "--fresh")
        assert_one_error_line(
            run("merge", "-c", trained / "out", "-o", trained), f"output {trained}"
        )

    def test_output_that_cannot_be_written(self, run, data, tmp_path):
        (tmp_path / "file").touch()
        result = run("train", *SHORT, "--data", data, "--output", "file/sub")
        assert_one_error_line(result, "Not a directory", "file/sub")
        with pytest.raises(ConfigError):
            CliRunner().invoke(
                app,
                ["--debug", "train", *SHORT, "--data", str(data), "--output", "file/sub"],
                catch_exceptions=False,
            )

    def test_of_the_system(self, run, monkeypatch):
        def fail(file):
            file.open()

        monkeypatch.setattr("ptune.evaluation.predictions.read_predictions", fail)
        told = "error: No such file or directory: absent; check path, permissions and free space\n"
        assert run("score", "absent").stderr == told

    def test_file_without_predictions(self, run, data):
        assert_one_error_line(run("score", data), f"{data}:1", "'labels' and 'predict'")
        assert_one_error_line(run("score", "nope.jsonl"), "nope.jsonl")

    def test_output_of_an_evaluation_that_is_a_file(self, run, trained, tmp_path):
        (tmp_path / "file").touch()
        result = run("eval", "-c", trained / "out", "-o", "file", "--device", "cpu")
        assert_one_error_line(result, "output file is a file; pass a folder with --output")

    def test_merge_looks_at_the_output_before_the_weights(self, run, trained, monkeypatch):
        def find(name, weights, *formats):
            assert not weights
            return find_base_model(name, False, *formats)

        monkeypatch.setattr("ptune.checkpoint.base.find_base_model", find)
        for output in (".", trained):
            result = run("merge", "-c", trained / "out", "-o", output)
            assert_one_error_line(result, f"output {output} is")
        result = run("merge", "-c", trained / "out", "-o", "new", "--max-shard-size", "2")
        assert_one_error_line(result, "max_shard_size '2' is not a size")

    def test_very_long_ones_are_cut_with_a_count(self, run, data):
        columns = json.dumps({f"column{i}": "x" for i in range(2000)})
        data.write_text(columns, encoding="utf-8")
        result = run("preview", "-m", "tiny", "-d", data)
        assert_one_error_line(result, "columns column0, column1, ", "with --prompt-column")
        shown, more = re.search(
            r"^(.*) \.\.\. \(([\d,]+) characters more\)", result.stderr
        ).groups()
        assert len(shown) == len("error: ") + 2000 and int(more.replace(",", "")) > 10_000
        assert len(result.stderr) < 4200
        long = "m" * 3000
        assert long in run("train", "-d", data, "-m", f"./{long}").stderr

    def test_what_is_in_a_file_does_not_steer_the_terminal(self, run, tmp_path):
        (tmp_path / "odd.json").write_text('{"a\\u001b[2J": 1, "b": 2}\n', encoding="utf-8")
        result = run("preview", "-m", "tiny", "-d", "odd.json")
        assert_one_error_line(result, "columns a\\x1b[2J, b of odd.json")

    def test_debug_gives_the_traceback(self, run):
        result = run("--debug", "score", "nope.jsonl")
        assert isinstance(result.exception, ptune.errors.DataError)
        assert run("score", "nope.jsonl").exit_code == 1  # and the next command is quiet again

    def test_ctrl_c_before_training(self, run, data, monkeypatch):
        def interrupted(*arguments, **options):
            raise KeyboardInterrupt

        monkeypatch.setattr("ptune.training.train.find_base", interrupted)
        result = run("train", *SHORT, "--data", data)
        assert (result.exit_code, result.stderr) == (130, "interrupted\n")

    def test_ctrl_c_in_training(self, run, data, monkeypatch):
        def step(view, step, max_steps):
            if step == 2:
                os.kill(os.getpid(), 2)

        monkeypatch.setattr("ptune.views.TrainView.step", step)
        result = run("train", *SHORT, "--data", data, "--output", "out", "--max-steps", 9)
        assert result.exit_code == 130
        assert "stopped after step 2, saved in out/checkpoint-2; the same command" in result.stderr


@pytest.mark.parametrize("encoding", ["gbk", "ascii"])
def test_terminal_that_lacks_characters(encoding, tmp_path):
    """What cannot be written is written as its number; JSON stays JSON."""
    record = {"content": "类型#裙😀\ua9c1", "summary": "好看😀é"}
    data = tmp_path / "data😀.json"
    data.write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
    command = [sys.executable, "-c", "from ptune.cli import app; app()"]
    environment = os.environ | {"PYTHONIOENCODING": encoding, "COLUMNS": "200"}

    def run(*words):
        done = subprocess.run([*command, *words], env=environment, capture_output=True)
        assert b"Traceback" not in done.stderr, done.stderr
        return done

    shown = run("preview", "--model", "tiny", "--data", str(data))
    assert shown.returncode == 0
    assert "\\U0001f600" in shown.stdout.decode(encoding)
    line = run("preview", "--model", "tiny", "--data", str(data), "--json")
    assert line.returncode == 0
    read = json.loads(line.stdout.decode(encoding))
    assert [read["prompt"], read["response"]] == list(record.values())
    absent = run("score", str(tmp_path / "absent😀"))
    assert absent.returncode == 1 and "absent\\U0001f600" in absent.stderr.decode(encoding)
    assert run("train", "--max-steps", "😀").returncode == 1
    assert run("😀").returncode == 2


@pytest.mark.parametrize("value", ["0", "00", ""])
def test_terminal_of_no_columns(value, tmp_path):
    """As some programs hand it on; it is taken for one that does not say."""
    data = write_records(tmp_path / "data.json", 1)
    command = [sys.executable, "-c", "from ptune.cli import app; app()", "preview"]
    environment = os.environ | {"COLUMNS": value, "LINES": value}
    words = [*command, "--model", "tiny", "--data", str(data)]
    done = subprocess.run(words, env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert "0 of 1 records (0.0%) are cut" in done.stdout and "[gMASK]" in done.stdout


def test_reader_that_has_enough(tiny_folder, tmp_path):
    """`ptune preview ... --json | head -1`, with more output than a pipe holds."""
    data = write_records(tmp_path / "data.json", 600)
    command = [sys.executable, "-c", "from ptune.cli import app; app()", "preview", "--json"]
    with subprocess.Popen(
        [*command, "--model", "tiny", "--data", str(data)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert json.loads(process.stdout.readline())["index"] == 0
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


class TestQuantized:
    """One way through all commands: bits are said once, at the training."""

    def test_from_training_to_the_merged_folder(self, run, data, tmp_path):
        flags = ["--data", data, "--output", "out", "--max-steps", "2", "--quantization-bit", "8"]
        result = run("train", *SHORT, *flags)
        assert result.exit_code == 0, result.output
        assert "float32 on cpu, 8 bits (torch)" in result.stderr
        record = json.loads((tmp_path / "out" / "ptune_config.json").read_text(encoding="utf-8"))
        assert record["settings"]["quantization_bit"] == "8"

        asked = ["--data", data, "--max-new-tokens", 4, "--json", "--device", "cpu"]
        scores = json.loads(run("eval", "--checkpoint", "out", *asked).stdout)
        assert "8 bits (torch)" in run("chat", "-c", "out", "--device", "cpu", input="").stderr
        assert run("merge", "-c", "out", "-o", "merged").exit_code == 0
        assert (
            json.loads((tmp_path / "merged" / "config.json").read_text())["quantization_bit"] == 8
        )
        merged = json.loads(run("eval", "--model", "merged", *asked).stdout)
        assert merged["loss"] == pytest.approx(scores["loss"], abs=1e-5)
        full = ["--quantization-bit", "none", "--output", "full"]
        other = json.loads(run("eval", "--checkpoint", "out", *asked, *full).stdout)
        assert abs(other["loss"] - scores["loss"]) > 1e-6

    def test_unknown_bits(self, run, data):
        result = run("train", *SHORT, "--data", data, "--quantization-bit", "3")
        assert_one_error_line(result, "quantization_bit '3' is unknown; use one of 4, 8, nf4, none")

    def test_backend_that_is_not_there(self, run, data):
        flags = ["--data", data, "--quantization-bit", "4", "--quantization-backend", "nvrtc"]
        result = run("train", *SHORT, *flags)
        assert result.exit_code == 1
        assert "error: quantization_backend nvrtc needs a CUDA card, not cpu;" in result.stderr


def test_garbage_is_collected_again_after_importing():
    from ptune.cli import _importing

    assert gc.isenabled()
    with pytest.raises(ImportError), _importing():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()
