"""Runs of `ptune predict` in one process: what they write, refuse, and go on with."""

import json

import pytest
from fixtures.command_line import refused, run
from fixtures.data_files import dump_arrow, dump_csv, dump_lines, write
from fixtures.runs import Recorder, run_settings, write_records, write_toy_model

from ptune.commands.predict import run as module
from ptune.commands.predict.answerer import Answerer
from ptune.commands.predict.run import predict
from ptune.config.predict_settings import PredictSettings
from ptune.config.settings import EvalSettings
from ptune.errors import ConfigError, DataError
from ptune.evaluation.evaluate import evaluate
from ptune.evaluation.predictions import read_predictions
from ptune.files.lock import holding
from ptune.training.train import train

SIZES = {"a": 5, "b": 3}
KEYS = ["index", "line", "prompt", "labels", "predict", "tokens"]


class Progress:
    """Remembers what is reported; Ctrl-C comes when so many records are answered."""

    def __init__(self, stop_at=None):
        self.stop_at, self.phases, self.done, self.notices = stop_at, [], [], []

    def phase(self, name, total, done):
        self.phases.append((name, total, done))

    def advanced(self, done):
        self.done.append(done)
        if self.stop_at is not None and self.phases[-1][0] == "Answering" and done >= self.stop_at:
            raise KeyboardInterrupt

    def noticed(self, text):
        self.notices.append(text)


@pytest.fixture(scope="module", params=[1, 3])
def trained(request, toy_folder, tmp_path_factory):
    """A folder with a small model, a training on it in out/, and questions/ of two files."""
    root = tmp_path_factory.mktemp("trained")
    source = toy_folder(request.param)
    model = write_toy_model(root / source.name, source, request.param)
    changes = {"learning_rate": 0.5, "max_source_length": 24, "max_target_length": 8}
    train(
        run_settings(root, model, max_steps=2, init_prefix=(model / "prefix",), **changes),
        Recorder(),
    )
    (root / "questions").mkdir()
    for name, size in SIZES.items():
        write_records(root / "questions" / f"{name}.json", size)
    return root


@pytest.fixture
def settings(trained, tmp_path):
    def make(**changes):
        values = {"checkpoint": trained / "out", "data": (trained / "questions",)}
        values |= {"output": tmp_path / "answers", "batch_size": 2, "shard_size": 2}
        return PredictSettings(**values | {"device": "cpu"} | changes)

    return make


def lines(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]


def files(output):
    return {path.name: path.read_bytes() for path in output.glob("*.jsonl")}


class TestAnswers:
    @pytest.mark.parametrize("sampled", [False, True])
    def test_are_those_of_eval(self, settings, trained, tmp_path, sampled):
        how = {"do_sample": True, "temperature": 3.0, "top_p": 1.0, "seed": 5} if sampled else {}
        result = predict(settings(**how), Progress())
        assert (result.files, result.counts.records, result.answered) == (2, 8, 8)
        for name, size in SIZES.items():
            asked = {"checkpoint": trained / "out", "device": "cpu", "batch_size": 2}
            asked |= {"data": (trained / "questions" / f"{name}.json",)}
            output = evaluate(EvalSettings(**asked, **how, output=tmp_path / name), Progress())
            expected = lines(output.output / "generated_predictions.jsonl")
            found = lines(result.output / f"{name}.jsonl")
            assert [entry["index"] for entry in found] == list(range(size))
            for entry, own in zip(found, expected, strict=True):
                assert {key: entry[key] for key in own} == own
                assert [key for key in entry if key != "cut"] == KEYS
                assert entry["line"] == entry["index"] + 1
        # So they can be scored.
        assert len(read_predictions(result.output / "a.jsonl")) == SIZES["a"]

    def test_without_responses_and_in_every_format(self, settings, trained, tmp_path):
        rows = [{"content": f"类型#裙*颜色#{color}"} for color in ("黑色", "白色", "红色")]
        folder = tmp_path / "formats"
        folder.mkdir()
        write(folder / "lines.jsonl", dump_lines(rows))
        write(folder / "packed.jsonl.gz", dump_lines(rows))
        write(folder / "array.json", json.dumps(rows))
        write(folder / "table.csv", dump_csv(rows))
        write(folder / "columns.parquet", dump_arrow(rows, "parquet"))
        result = predict(settings(data=(folder,)), Progress())
        found = {file.stem: lines(file) for file in result.output.glob("*.jsonl")}
        assert found.keys() == {"lines", "packed", "array", "table", "columns"}
        said = [(entry["prompt"], entry["predict"]) for entry in found["lines"]]
        assert [prompt for prompt, _ in said] == [row["content"] for row in rows]
        for entries in found.values():
            assert [(entry["prompt"], entry["predict"]) for entry in entries] == said
            assert not any("labels" in entry for entry in entries)
        assert [entry["line"] for entry in found["table"]] == [2, 3, 4]
        assert result.counts.labelled == 0 and result.notices == ()

    def test_what_is_cut_is_said(self, settings, tmp_path):
        rows = [{"prompt": "裙" * 60, "response": "黑"}, {"prompt": "裙"}]
        rows.append({"prompt": "裙", "history": [["颜色" * 20, "黑色"]]})
        data = write(tmp_path / "long.json", dump_lines(rows))
        result = predict(settings(data=(data,), max_new_tokens=1), Progress())
        marks = [
            set(entry.get("cut", ())) - {"answer"} for entry in lines(result.output / "long.jsonl")
        ]
        assert marks == [{"prompt"}, set(), {"turns"}]
        counts = result.counts
        assert (counts.prompts_cut, counts.turns_dropped, counts.labelled) == (1, 1, 1)
        prompts, answers = result.cuts
        assert prompts == (
            "1 of 3 records (33.3%) lost earlier turns, 1 of 3 records (33.3%) have their prompt "
            "cut; a larger --max-source-length leaves more of them"
        )
        assert answers.startswith(f"{counts.answers_cut} of 3 answers (")

    def test_named_columns(self, settings, tmp_path):
        data = write(tmp_path / "d.json", dump_lines([{"q": "裙", "a": "黑"}]))
        with pytest.raises(DataError, match=r"columns q, a of .* match no known schema"):
            predict(settings(data=(data,)), Progress())
        result = predict(settings(data=(data,), prompt_column="q"), Progress())
        assert result.notices == ("not used: 'a' (1 record)",)
        named = {"prompt_column": "q", "response_column": "a", "output": tmp_path / "labelled"}
        assert predict(settings(data=(data,), **named), Progress()).counts.labelled == 1


class TestGoingOn:
    def test_after_an_interruption(self, settings, tmp_path, monkeypatch):
        straight = predict(settings(output=tmp_path / "straight"), Progress())
        asked = settings()
        for stop_at in (3, 6):
            with pytest.raises(KeyboardInterrupt):
                predict(asked, Progress(stop_at))
        computed, answer = [], Answerer.answer

        def counted(self, shard, *more):
            computed.append((shard.target, shard.number))
            return answer(self, shard, *more)

        monkeypatch.setattr(Answerer, "answer", counted)
        progress = Progress()
        result = predict(asked, progress)
        # 3 and 6 came within the second and the fourth shard: of a.json, a.json, b.json.
        assert computed == [("b.jsonl", 0), ("b.jsonl", 1)]
        assert progress.phases == [("Reading data", 2, 0), ("Answering", 8, 5)]
        assert progress.done[-1] == 8
        assert files(result.output) == files(straight.output)
        assert result.counts == straight.counts
        assert (result.answered, straight.answered) == (3, 8)
        again = predict(asked, Progress())
        assert again.answered == 0 and again.counts == straight.counts and len(computed) == 2
        assert again.facts["samples_per_second"] is None

    def test_more_files_later(self, settings, trained, tmp_path):
        one = (trained / "questions" / "a.json",)
        predict(settings(data=one), Progress())
        result = predict(settings(), Progress())
        assert (result.answered, result.counts.records) == (3, 8)

    def test_other_sizes_of_shards_give_the_same_files(self, settings, tmp_path):
        straight = predict(settings(output=tmp_path / "straight", shard_size=100), Progress())
        with pytest.raises(KeyboardInterrupt):
            predict(settings(), Progress(4))
        result = predict(settings(shard_size=3), Progress())
        assert result.answered == 8  # those of other sizes are not taken
        for name in SIZES:
            one, other = (lines(found.output / f"{name}.jsonl") for found in (result, straight))
            assert [entry["predict"] for entry in one] == [entry["predict"] for entry in other]

    @pytest.mark.parametrize(
        "changes",
        [
            {"max_new_tokens": 3},
            {"prefix": False},
            {"max_source_length": 20},
            {"truncation": "original"},
            {"dtype": "bfloat16"},
            {"do_sample": True},
        ],
        ids=str,
    )
    def test_other_settings_are_refused(self, settings, changes):
        with pytest.raises(KeyboardInterrupt):
            predict(settings(), Progress(2))
        with pytest.raises(ConfigError, match=r"holds answers of another run \(.+ differ\); pass"):
            predict(settings(**changes), Progress())

    def test_changed_data(self, settings, tmp_path):
        data = tmp_path / "d.json"
        rows = [{"prompt": f"裙{number}"} for number in range(6)]
        write(data, dump_lines(rows))
        with pytest.raises(KeyboardInterrupt):
            predict(settings(data=(data,)), Progress(4))  # within the second shard
        rows[5]["prompt"] = "裤"
        write(data, dump_lines(rows))
        result = predict(settings(data=(data,)), Progress())
        assert result.answered == 4
        assert [e["prompt"] for e in lines(result.output / "d.jsonl")] == [
            r["prompt"] for r in rows
        ]
        rows[0]["prompt"] = "裤"
        write(data, dump_lines(rows))
        with pytest.raises(ConfigError, match=r"d\.jsonl answers other records than .* has now"):
            predict(settings(data=(data,)), Progress())


class TestRefused:
    def test_bad_records_before_anything_is_computed(self, settings, tmp_path, monkeypatch):
        data = write(tmp_path / "d.json", dump_lines([{"prompt": "裙"}, {"prompt": ""}]))
        with monkeypatch.context() as patch:
            patch.setattr(module, "with_weights", lambda *given: pytest.fail("too late"))
            with pytest.raises(DataError) as complaint:
                predict(settings(data=(data,)), Progress())
        assert str(complaint.value) == (
            f"1 of 2 records are bad:\n  {data}:2: column 'prompt': expected text, found blank "
            "text\nmend them or pass --skip-bad-records"
        )
        result = predict(settings(data=(data,), skip_bad_records=True), Progress())
        assert (result.counts.records, len(result.skipped)) == (1, 1)

    def test_another_run_at_the_same_folder(self, settings):
        asked = settings()
        with (
            holding(asked.output, "prediction"),
            pytest.raises(ConfigError, match="another prediction writes into"),
        ):
            predict(asked, Progress())

    def test_a_file_that_is_in_the_way(self, settings):
        asked = settings()
        asked.output.mkdir()
        (asked.output / "b.jsonl").write_text("mine")
        with pytest.raises(ConfigError, match=r"b\.jsonl is not as ptune wrote it; move it"):
            predict(asked, Progress())
        assert files(asked.output) == {"b.jsonl": b"mine"}


def test_command_line(trained, tmp_path):
    given = ["predict", "-c", trained / "out", "-d", trained / "questions", "--device", "cpu"]
    given += ["-o", tmp_path / "new", "--max-new-tokens", "2"]
    said = run(*given)
    assert said.startswith("8 records of 2 files, ")
    assert said.endswith(f"written to {tmp_path / 'new'}\n")
    facts = json.loads(run(*given, "--json"))
    assert (facts["records"], facts["answered"], facts["files"]) == (8, 0, 2)
    told = refused(*given[:-1], "3")
    assert "(generation differ); pass another --output" in told
