"""The folder of answers: shards, joined files, and what is not ours."""

import json
import re
from pathlib import Path

import pytest

from ptune.commands.predict.output import Answers, check_output
from ptune.commands.predict.shards import QuestionFile
from ptune.errors import ConfigError, DataError

IDENTITY = {"prefix": "a", "seed": None}


def a_file(tmp_path, target="a.jsonl", digest="d", shards=((0, "x"), (2, "y"))):
    return QuestionFile(tmp_path / "a.json", target, 3, digest, shards)


def lines(first, count):
    return [
        {"index": index, "line": index + 1, "prompt": "q", "predict": "裙", "tokens": 2}
        for index in range(first, first + count)
    ]


@pytest.fixture
def output(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def finish(output, file, identity=IDENTITY):
    answers = Answers(output, identity)
    answers.write(file, 0, lines(0, 2))
    answers.write(file, 1, lines(2, 1))
    return answers.join(file)


def test_shards_and_joining(output, tmp_path):
    file, answers = a_file(tmp_path), Answers(output, IDENTITY)
    assert (answers.finished(file), answers.missing(file)) == (None, [0, 1])
    answers.write(file, 1, lines(2, 1))
    assert Answers(output, IDENTITY).missing(file) == [0]
    answers.write(file, 0, lines(0, 2))
    assert answers.missing(file) == []
    counts = answers.join(file)
    assert (counts.records, counts.new_tokens, counts.labelled) == (3, 6, 0)
    text = (output / "a.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line)["index"] for line in text.splitlines()] == [0, 1, 2]
    assert Answers(output, IDENTITY).finished(file) == counts
    assert [path.name for path in (output / ".shards" / "a.jsonl").iterdir()] == ["done.json"]


def test_a_shard_of_other_records_or_settings_is_another(output, tmp_path):
    answers = Answers(output, IDENTITY)
    answers.write(a_file(tmp_path), 0, lines(0, 2))
    assert answers.missing(a_file(tmp_path, shards=((0, "z"), (2, "y")))) == [0, 1]
    (output / "predict_config.json").unlink()  # as somebody may who wants other settings
    assert Answers(output, IDENTITY | {"seed": 1}).missing(a_file(tmp_path)) == [0, 1]


def test_killed_before_the_answers_have_their_name(output, tmp_path, monkeypatch):
    file, replace = a_file(tmp_path), Path.replace

    def killed(self, target):
        if target.name == "a.jsonl":
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            finish(output, file)
    assert (output / ".shards" / "a.jsonl" / "done.json").is_file()
    answers = Answers(output, IDENTITY)
    assert (answers.finished(file), answers.missing(file)) == (None, [])
    assert answers.join(file).records == 3


def test_another_run_is_refused(output, tmp_path):
    finish(output, a_file(tmp_path))
    with pytest.raises(ConfigError) as refused:
        Answers(output, IDENTITY | {"prefix": "b"})
    assert str(refused.value) == (
        f"output {output} holds answers of another run (prefix differ); pass another --output"
    )


@pytest.mark.parametrize("content", ["{}", "[1]", '{"prefix": "a"}', "no"])
def test_a_config_that_is_not_ours(output, content):
    (output / "predict_config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"predict_config\.json was not written by ptune; move "):
        Answers(output, IDENTITY)


def test_answers_to_other_records_are_refused(output, tmp_path):
    finish(output, a_file(tmp_path))
    answers, changed = Answers(output, IDENTITY), a_file(tmp_path, digest="e")
    with pytest.raises(ConfigError) as refused:
        answers.finished(changed)
    assert str(refused.value) == (
        f"{output / 'a.jsonl'} answers other records than {tmp_path / 'a.json'} has now; delete it "
        "to have them answered anew, or pass another --output"
    )
    (output / "a.jsonl").unlink()
    assert answers.finished(changed) is None
    assert finish(output, changed).records == 3


def test_a_file_that_is_not_ours(output, tmp_path):
    (output / "a.jsonl").write_text("mine\n")
    answers = Answers(output, IDENTITY)
    with pytest.raises(ConfigError) as refused:
        answers.finished(a_file(tmp_path))
    assert str(refused.value) == (
        f"{output / 'a.jsonl'} is not as ptune wrote it; move it, or pass another --output"
    )
    (output / "a.jsonl").unlink()
    finish(output, a_file(tmp_path))
    (output / "a.jsonl").write_text("mine\n")
    with pytest.raises(ConfigError, match="is not as ptune wrote it"):
        answers.finished(a_file(tmp_path))


@pytest.mark.parametrize(
    ("damaged", "reason"),
    [
        (lines(0, 1), "1 lines for 2 records"),
        (lines(1, 2), "index 1 in the place of 0"),
        ([{"index": 0}, {"index": 1}], "'predict'"),
    ],
)
def test_a_damaged_shard(output, tmp_path, damaged, reason):
    file, answers = a_file(tmp_path), Answers(output, IDENTITY)
    answers.write(file, 0, damaged)
    answers.write(file, 1, lines(2, 1))
    said = rf"^shard .*000000-[0-9a-f]{{32}}\.jsonl is damaged \({re.escape(reason)}\); delete it, "
    with pytest.raises(DataError, match=said):
        answers.join(file)
    assert not (output / "a.jsonl").exists()


def test_half_written_shards_are_cleared_away(output, tmp_path):
    shards = output / ".shards" / "a.jsonl"
    shards.mkdir(parents=True)
    (shards / ".000000-x.jsonl.0123abcd.partial").write_text("half")
    Answers(output, IDENTITY)
    assert list(shards.iterdir()) == []


def test_where_answers_may_stand(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file is a file; pass a folder with --output"):
        check_output(tmp_path / "file", {})
    with pytest.raises(ConfigError) as refused:
        check_output(tmp_path, {"a.jsonl": tmp_path / "a.json"})
    assert str(refused.value) == (
        f"output {tmp_path} holds the data file {tmp_path / 'a.json'}; pass another --output"
    )
    check_output(tmp_path / "new", {"a.jsonl": tmp_path / "a.json"})
