"""Records to be answered: a prompt is enough, and a response is kept where there is one."""

import json

import pytest
from fixtures.data_files import dump_csv, dump_lines, write

from ptune.base.folder import Generation
from ptune.data.records import Found, Reading, good_records
from ptune.data.schemas import Columns, check_columns
from ptune.errors import ConfigError, DataError


def read(path, columns=None, generation=None):
    """Texts of questions and answers with their lines, and what else was found."""
    reading = Reading(columns or Columns(), generation, asks=True)
    found = Found()
    rows = []
    for record in good_records(path, reading, found):
        answer = record.answer and record.answer.content
        rows.append((record.line, [said.content for said in record.asked], answer))
    return rows, found


def read_one(tmp_path, row, **options):
    ((_, asked, answer),), found = read(write(tmp_path / "d.json", dump_lines([row])), **options)
    return asked, answer, found.bad + list(found.notices())


@pytest.mark.parametrize(
    ("row", "asked", "answer"),
    [
        ({"content": "裙"}, ["裙"], None),
        ({"content": "裙", "summary": "黑"}, ["裙"], "黑"),
        ({"prompt": "裙", "response": None}, ["裙"], None),
        ({"prompt": "裙", "response": " ", "history": [["a", "b"]]}, ["a", "b", "裙"], None),
        ({"instruction": "译", "input": "裙"}, ["译\n裙"], None),
        ({"instruction": "译", "input": "裙", "output": "x"}, ["译\n裙"], "x"),
        ({"input": "裙"}, ["裙"], None),
        ({"query": "裙", "system": "s"}, ["s", "裙"], None),
        ({"question": "裙", "answer": "黑"}, ["裙"], "黑"),
        ({"messages": [{"role": "user", "content": "裙"}]}, ["裙"], None),
        ({"conversations": [{"from": "human", "value": "裙"}]}, ["裙"], None),
        (
            {
                "messages": [
                    {"role": "user", "content": "裙"},
                    {"role": "assistant", "content": "黑"},
                ]
            },
            ["裙"],
            "黑",
        ),
    ],
    ids=lambda value: json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else "",
)
def test_schemas(tmp_path, row, asked, answer):
    assert read_one(tmp_path, row) == (asked, answer, [])


def test_of_two_prompts_the_one_whose_response_has_a_column(tmp_path):
    row = {"content": "text", "question": "裙", "answer": ""}
    assert read_one(tmp_path, row) == (["裙"], None, ["not used: 'content' (1 record)"])


def test_some_with_a_response_and_lines(tmp_path):
    rows = [{"prompt": "a", "response": "b"}, {"prompt": "c", "response": ""}]
    path = write(tmp_path / "d.csv", dump_csv(rows))
    rows, found = read(path)
    assert rows == [(2, ["a"], "b"), (3, ["c"], None)]
    assert found.notices() == (
        "the records have several schemas: 1 of prompt/response, 1 of prompt",
    )


def test_a_reply_of_a_tool_is_to_be_answered(tmp_path):
    said = [
        {"role": "user", "content": "裙"},
        {"role": "tool", "name": "find", "parameters": {}, "observation": "黑"},
    ]
    row = {"messages": said}
    options = {"generation": Generation.CHATGLM3}
    asked, answer, told = read_one(tmp_path, row, **options)
    assert (asked[0], asked[-1], answer, told) == ("裙", "黑", None, [])
    path = write(tmp_path / "d.json", dump_lines([row]))
    rows, found = read(path, generation=Generation.CHATGLM)
    assert rows == []
    assert "has no place in the prompt of chatglm-6b" in found.bad[0]


def test_answers_that_are_not_to_be_learnt_are_fine(tmp_path):
    said = [
        {"role": "user", "content": "裙"},
        {"role": "assistant", "content": "黑", "loss": False},
    ]
    found = read_one(tmp_path, {"messages": said}, generation=Generation.CHATGLM)
    assert found == (["裙"], "黑", [])


def test_named_columns(tmp_path):
    row = {"q": "裙", "a": "黑"}
    asked, answer, told = read_one(tmp_path, row, columns=Columns("q"))
    assert (asked, answer, told) == (["裙"], None, ["not used: 'a' (1 record)"])
    assert read_one(tmp_path, row, columns=Columns("q", "a")) == (["裙"], "黑", [])
    blank = read_one(tmp_path, row | {"a": ""}, columns=Columns("q", "a"))
    assert blank == (["裙"], None, [])
    check_columns(Columns("q"), asks=True)
    with pytest.raises(ConfigError, match="column 'q' is named without its partner"):
        check_columns(Columns("q"))
    with pytest.raises(ConfigError, match="column 'a' is named without its partner"):
        check_columns(Columns(None, "a"), asks=True)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"prompt": " "}, "column 'prompt': expected text, found blank text"),
        ({"prompt": "a", "response": 3}, "column 'response': expected text, found the number 3"),
        ({"messages": []}, "column 'messages': expected a list of messages, found an empty list"),
    ],
)
def test_bad_ones(tmp_path, row, complaint):
    rows, found = read(path := write(tmp_path / "d.json", dump_lines([row])))
    assert rows == []
    assert found.bad == [f"{path}:1: {complaint}"]
    with pytest.raises(DataError, match="1 of 1 records are bad"):
        found.check(skip_bad_records=False)
    with pytest.raises(DataError, match="no good record is left"):
        found.check(skip_bad_records=True)


def test_no_schema_at_all(tmp_path):
    path = write(tmp_path / "d.json", dump_lines([{"text": "裙"}]))
    with pytest.raises(DataError) as refused:
        read(path)
    assert str(refused.value) == (
        f"columns text of {path} match no known schema (conversations, messages, content, prompt, "
        "instruction, query, question, input); name the one of the prompts with --prompt-column"
    )
