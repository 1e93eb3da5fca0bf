"""Files of questions: names of their answers, shards, and changes that are noticed."""

import os
import re
from pathlib import Path

import pytest
from fixtures.data_files import dump_lines, write

from ptune.commands.predict.shards import find_questions, read_shards, survey, target_name
from ptune.data.records import Found, Reading
from ptune.errors import DataError

READING = Reading(asks=True)


def questions(path, count, start=0):
    return write(path, dump_lines([{"prompt": f"q{n}"} for n in range(start, start + count)]))


def look(path, size=3):
    return survey(path, "a.jsonl", READING, Found(), size)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("a.json", "a.jsonl"),
        ("a.jsonl", "a.jsonl"),
        ("part.1.jsonl.gz", "part.1.jsonl"),
        ("a.csv.xz.gz", "a.jsonl"),
        ("a.PARQUET", "a.jsonl"),
        ("a.gz", "a.jsonl"),
        ("a.data", "a.data.jsonl"),
        ("questions", "questions.jsonl"),
        ("a.json.json", "a.json.jsonl"),
    ],
)
def test_names(name, target):
    assert target_name(Path("folder") / name) == target


def test_files_of_a_folder(tmp_path):
    for name in ("test.json", "dev.csv", "c.jsonl.gz"):  # splits do not meet: each has its own
        write(tmp_path / name, "prompt\nq\n" if name == "dev.csv" else '{"prompt": "q"}\n')
    assert list(find_questions([tmp_path], [])) == ["c.jsonl", "dev.jsonl", "test.jsonl"]


def test_two_files_of_one_name(tmp_path):
    first, second = questions(tmp_path / "a.json", 1), questions(tmp_path / "a.jsonl", 1)
    with pytest.raises(DataError) as refused:
        find_questions([first, second], [])
    assert str(refused.value) == (
        f"the answers to {first} and to {second} would both be a.jsonl; rename one of them, or "
        "answer them in two runs"
    )


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes a pipe")
def test_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe is a pipe or a device, and is to be read twice; sav"):
        find_questions([tmp_path / "pipe"], [])


def test_shards(tmp_path):
    file = look(path := questions(tmp_path / "a.json", 7))
    assert (file.records, [first for first, _ in file.shards]) == (7, [0, 3, 6])
    assert [file.size(number) for number in range(3)] == [3, 3, 1]
    shards = list(read_shards(file, READING, {0, 2}))
    assert [(shard.number, shard.first, shard.target) for shard in shards] == [
        (0, 0, "a.jsonl"),
        (2, 6, "a.jsonl"),
    ]
    said = [[record.messages[0].content for record in shard.records] for shard in shards]
    assert said == [["q0", "q1", "q2"], ["q6"]]
    assert list(read_shards(file, READING, set())) == []
    assert look(path, 3) == file
    other = look(path, 4)
    assert other.digest == file.digest and other.shards != file.shards
    assert look(questions(tmp_path / "b.json", 7, 1)).digest != file.digest


def test_a_digest_is_of_the_records_and_their_lines_alone(tmp_path):
    lines = dump_lines([{"prompt": "q0"}, {"prompt": "q1"}])
    file = look(write(tmp_path / "a.json", lines))
    assert look(write(tmp_path / "b.json.gz", lines)).digest == file.digest
    assert look(write(tmp_path / "c.json", "\n" + lines)).digest != file.digest
    # Not what a boundary between records could hide.
    one = look(write(tmp_path / "d.json", dump_lines([{"prompt": "q0q1"}])))
    assert one.digest != file.digest


def test_bad_records_have_no_index(tmp_path):
    rows = [{"prompt": "a"}, {"prompt": ""}, {"prompt": "b"}]
    found = Found()
    file = survey(write(tmp_path / "a.json", dump_lines(rows)), "a.jsonl", READING, found, 10)
    (shard,) = read_shards(file, READING, {0})
    assert [record.line for record in shard.records] == [1, 3]
    assert len(found.bad) == 1 and file.records == 2


@pytest.mark.parametrize("count", [6, 8])
def test_a_file_that_changes_meanwhile(tmp_path, count):
    """Of which a shard is another; one that only grows is the next run's affair."""
    path = questions(tmp_path / "a.json", 7)
    file = look(path)
    questions(path, count, start=1)
    with pytest.raises(DataError, match=re.escape(f"{path} has changed since it was read first")):
        list(read_shards(file, READING, {0, 1, 2}))
