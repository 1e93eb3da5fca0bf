"""Every schema, and every complaint with its file, line and column."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.data_files import GOOD, dump_lines, write

from ptune.data import records
from ptune.data.records import CHUNK_SIZE, Columns, read_records
from ptune.errors import ConfigError, DataError


def read_rows(path, *args, **kwargs):
    return list(read_records([path], *args, **kwargs).records)


def read_row(tmp_path, row, **kwargs):
    (record,) = read_rows(write(tmp_path / "data.json", dump_lines([row])), **kwargs)
    return record


def complain(tmp_path, row, **kwargs):
    """The complaint about one record, without its file and line."""
    path = write(tmp_path / "data.json", dump_lines([row]))
    with pytest.raises(DataError) as caught:
        read_records([path], **kwargs)
    first, complaint, last = str(caught.value).split("\n")
    assert first == "1 of 1 records are bad:"
    assert last == "mend them or pass --skip-bad-records"
    assert complaint.startswith(f"  {path}:1: ")
    return complaint.removeprefix(f"  {path}:1: ")


# Formats


def test_several_files_keep_their_order_and_their_own_schema(tmp_path):
    first = write(tmp_path / "b.csv", "prompt,response\n1,2\n3,4\n")
    second = write(tmp_path / "a.json", dump_lines(GOOD[:1]))
    loaded = read_records([first, second, first])
    assert [row["prompt"] for row in loaded.records] == ["1", "3", "类型#上衣", "1", "3"]
    assert loaded.counts == {str(first): 4, str(second): 1}


def test_more_records_than_a_chunk(tmp_path):
    rows = [{"prompt": str(n), "response": "x"} for n in range(CHUNK_SIZE + 1)]
    records = read_records([write(tmp_path / "data.json", dump_lines(rows))]).records
    assert len(records) == CHUNK_SIZE + 1
    assert records[-1]["prompt"] == str(CHUNK_SIZE)
    assert records.cache_files == []


# Schemas


def test_prompt_response_with_history(tmp_path):
    row = {"prompt": "c", "response": "d", "history": [["a", "b"], ["", ""]]}
    assert read_row(tmp_path, row)["history"] == [["a", "b"], ["", ""]]
    assert read_row(tmp_path, {**row, "history": None})["history"] == []
    assert read_row(tmp_path, {**row, "history": []})["history"] == []


@pytest.mark.parametrize(
    ("extra", "prompt"),
    [
        ({}, "翻译"),
        ({"input": None}, "翻译"),
        ({"input": " "}, "翻译"),
        ({"input": "a"}, "翻译\na"),
    ],
)
def test_instruction_with_input(tmp_path, extra, prompt):
    row = {"instruction": "翻译", "output": "b", "history": [["c", "d"]], **extra}
    record = read_row(tmp_path, row)
    assert (record["prompt"], record["response"]) == (prompt, "b")
    assert record["history"] == [["c", "d"]]


@pytest.mark.parametrize("column", ["conversations", "messages"])
@pytest.mark.parametrize(
    ("role_key", "text_key", "system", "user", "assistant"),
    [
        ("role", "content", "system", "user", "assistant"),
        ("role", "content", "system", "human", "bot"),
        ("from", "value", "system", "human", "gpt"),
        ("from", "value", "system", "user", "assistant"),
    ],
)
def test_conversations(tmp_path, column, role_key, text_key, system, user, assistant):
    def turn(role, text):
        return {role_key: role, text_key: text}

    turns = [turn(user, "a"), turn(assistant, "b"), turn(user, "c"), turn(assistant, "d")]
    record = read_row(tmp_path, {column: [turn(system, "s"), *turns]})
    assert record.pop("source").endswith("data.json:1")
    assert record == {"prompt": "c", "response": "d", "history": [["a", "b"]], "system": "s"}
    record = read_row(tmp_path, {column: [turn(system, ""), *turns[:2]]})
    assert (record["prompt"], record["history"], record["system"]) == ("a", [], "")


def test_history_of_csv_is_json(tmp_path):
    text = 'prompt,response,history\na,b,"[[""c"", ""d""]]"\ne,f,\ng,h,null\n'
    rows = read_rows(write(tmp_path / "data.csv", text))
    assert [row["history"] for row in rows] == [[["c", "d"]], [], []]


def test_named_columns(tmp_path):
    row = {"问": "a", "答": "b", "聊": [["c", "d"]], "content": "x", "summary": "y"}
    record = read_row(tmp_path, row, columns=Columns("问", "答", "聊"))
    assert (record["prompt"], record["response"]) == ("a", "b")
    assert record["history"] == [["c", "d"]]
    assert read_row(tmp_path, row, columns=Columns("问", "答"))["history"] == []


def test_named_history_column_beside_a_found_schema(tmp_path):
    row = {"content": "a", "summary": "b", "turns": [["c", "d"]]}
    assert read_row(tmp_path, row)["history"] == []
    assert read_row(tmp_path, row, columns=Columns(history="turns"))["history"] == [["c", "d"]]


def test_history_is_taken_beside_named_columns_without_its_flag(tmp_path):
    row = {"q": "a", "r": "b", "history": [["c", "d"]]}
    assert read_row(tmp_path, row, columns=Columns("q", "r"))["history"] == [["c", "d"]]


def test_odd_first_record_does_not_decide_the_schema(tmp_path):
    rows = [{"content": "a", "summery": "b"}, *GOOD]
    loaded = read_records([write(tmp_path / "d.json", dump_lines(rows))], skip_bad_records=True)
    assert len(loaded.records) == 2
    assert loaded.skipped == (
        f"{tmp_path / 'd.json'}:1: column 'summary': expected text, found nothing",
    )


def test_unknown_schema_names_keys_schemas_and_flags(tmp_path):
    path = write(tmp_path / "data.json", dump_lines([{"q": "a", "a": "b"}]))
    expected = (
        f"columns q, a of {path} match no known schema (content/summary, "
        "prompt/response, instruction/output, query/response, question/answer, input/output, "
        "conversations, messages); "
        "name two of them with --prompt-column and --response-column"
    )
    with pytest.raises(DataError, match=f"^{re.escape(expected)}$"):
        read_records([path])


@pytest.mark.parametrize(
    "row",
    [
        {"query": "c", "response": "d", "history": [["a", "b"]]},
        {"question": "c", "answer": "d"},
        {"input": "c", "output": "d"},
    ],
)
def test_other_names_of_prompt_and_response(tmp_path, row):
    record = read_row(tmp_path, row)
    assert (record["prompt"], record["response"]) == ("c", "d")
    assert record["history"] == row.get("history", [])


def test_input_is_no_prompt_where_there_are_instructions(tmp_path):
    rows = [{"input": "a", "output": "b"}] * 3 + [{"instruction": "i", "input": "a", "output": "b"}]
    loaded = read_records([write(tmp_path / "d.json", dump_lines(rows))], skip_bad_records=True)
    assert [row["prompt"] for row in loaded.records] == ["i\na"]
    assert len(loaded.skipped) == 3


def test_text_alone_is_no_record(tmp_path):
    path = write(tmp_path / "data.json", dump_lines([{"text": "a"}] * 3))
    expected = (
        f"{path} has the column 'text' alone, and training needs two texts a record, a prompt and "
        "its response; part them into two columns"
    )
    with pytest.raises(DataError, match=f"^{re.escape(expected)}$"):
        read_records([path])


@pytest.mark.parametrize("columns", [Columns(), Columns("问", "答")])
def test_table_without_a_header(tmp_path, columns):
    path = write(tmp_path / "data.csv", "类型#裙,一条裙子\n类型#裤,一条裤子\n")
    with pytest.raises(
        DataError, match=r"类型#裙, 一条裙子.*; if its first line is data, write the column names"
    ):
        read_records([path], columns)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (Columns("contant", "summary"), "column 'contant' (from --prompt-column) is not in {path}; "
         "did you mean 'content'? It has content, summary"),
        (Columns("content", "sumary"), "column 'sumary' (from --response-column) is not in {path}; "
         "did you mean 'summary'? It has content, summary"),
        (Columns(history="聊天"), "column '聊天' (from --history-column) is not in {path}; did"),
    ],
)  # fmt: skip
def test_named_column_that_does_not_exist(tmp_path, columns, message):
    path = write(tmp_path / "data.json", dump_lines(GOOD))
    with pytest.raises(DataError, match="^" + re.escape(message.format(path=path))):
        read_records([path], columns, skip_bad_records=True)


@pytest.mark.parametrize("columns", [Columns(prompt="content"), Columns(response="content")])
def test_one_named_column_needs_the_other(tmp_path, columns):
    path = write(tmp_path / "data.json", dump_lines(GOOD))
    with pytest.raises(
        ConfigError,
        match=r"^column 'content' is named without its partner; "
        r"give both --prompt-column and --response-column$",
    ):
        read_records([path], columns)


def test_history_column_does_not_fit_conversations(tmp_path):
    path = write(tmp_path / "data.json", dump_lines([{"messages": [], "history": []}]))
    with pytest.raises(
        DataError,
        match=r"^--history-column 'history' does not fit .*data\.json, whose column "
        r"'messages' holds whole conversations; drop the flag$",
    ):
        read_records([path], Columns(history="history"))


# Bad records


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"prompt": "", "response": "b"}, "column 'prompt': expected text, found blank text"),
        ({"prompt": "a", "response": " \n"}, "column 'response': expected text, found blank text"),
        ({"prompt": "a", "response": None}, "column 'response': expected text, found nothing"),
        ({"prompt": 3, "response": "b"}, "column 'prompt': expected text, found the number 3"),
        ({"prompt": "a", "response": .5}, "column 'response': expected text, found the number 0.5"),
        ({"prompt": True, "response": "b"}, "column 'prompt': expected text, found true"),
        ({"prompt": ["a"], "response": "b"}, "column 'prompt': expected text, found a list of 1"),
        ({"prompt": [], "response": "b"}, "column 'prompt': expected text, found an empty list"),
        ({"prompt": {"a": 1}, "response": "b"}, "column 'prompt': expected text, found an object"),
        ({"instruction": "", "input": "a", "output": "b"},
         "column 'instruction': expected text, found blank text"),
        ({"instruction": "a", "input": 1, "output": "b"},
         "column 'input': expected text, found the number 1"),
    ],
)  # fmt: skip
def test_wrong_text(tmp_path, row, complaint):
    assert complain(tmp_path, row) == complaint


def test_half_a_surrogate_pair_is_refused(tmp_path):
    path = write(tmp_path / "data.json", '{"prompt": "ab\\ud83d", "response": "c"}')
    with pytest.raises(
        DataError,
        match=r"column 'prompt': expected text, found half a surrogate pair "
        r"'\\ud83d' at character 3",
    ):
        read_records([path])


@pytest.mark.parametrize(
    ("history", "complaint"),
    [
        ("a", "column 'history': expected [query, answer] pairs, found 'a'"),
        ({}, "column 'history': expected [query, answer] pairs, found an object"),
        (["a", "b"], "column 'history', pair 1: expected [query, answer], found 'a'"),
        ([["a", "b"], ["c"]],
         "column 'history', pair 2: expected [query, answer], found a list of 1"),
        ([["a", None]], "column 'history', pair 1: expected text, found nothing"),
        ([[1, "b"]], "column 'history', pair 1: expected text, found the number 1"),
        ("a" * 50, f"column 'history': expected [query, answer] pairs, found '{'a' * 40}...'"),
    ],
)  # fmt: skip
def test_wrong_history(tmp_path, history, complaint):
    assert complain(tmp_path, {"prompt": "a", "response": "b", "history": history}) == complaint


@pytest.mark.parametrize("history", ["[[", "a", "3", "[]]", "[" * 100_000])
def test_wrong_history_of_csv(tmp_path, history):
    path = write(tmp_path / "data.csv", f"prompt,response,history\na,b,{history}\n")
    with pytest.raises(
        DataError, match=r"data\.csv:2: column 'history': expected \[query, answer\] pairs, found "
    ):
        read_records([path])


def roles(*names):
    return [{"role": name, "content": "text"} for name in names]


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([], "column 'messages': expected a list of messages, found an empty list"),
        ("a", "column 'messages': expected a list of messages, found 'a'"),
        (None, "column 'messages': expected a list of messages, found nothing"),
        (["a"], "column 'messages', message 1: expected an object, found 'a'"),
        (roles("user", "tool"), "column 'messages', message 2: expected 'role' to be system, user, "
         "human, assistant, gpt, bot, found 'tool'"),
        ([{"from": 1, "value": "a"}], "column 'messages', message 1: expected 'from' to be system, "
         "user, human, assistant, gpt, bot, found the number 1"),
        ([{"text": "a"}], "column 'messages', message 1: expected 'role' to be system, user, "
         "human, assistant, gpt, bot, found nothing"),
        ([{"role": "user"}], "column 'messages', message 1: expected text, found nothing"),
        ([{"role": "user", "content": " "}],
         "column 'messages', message 1: expected text, found blank text"),
        (roles("assistant", "user"),
         "column 'messages', message 1: expected role 'user', found 'assistant'"),
        (roles("system", "user", "user"),
         "column 'messages', message 3: expected role 'assistant', found 'user'"),
        (roles("user", "assistant", "system"),
         "column 'messages', message 3: expected role 'user', found 'system'"),
        (roles("user", "assistant", "user"),
         "column 'messages': expected an answer of the assistant as the last message"),
        (roles("system"),
         "column 'messages': expected an answer of the assistant as the last message"),
    ],
)  # fmt: skip
def test_wrong_conversations(tmp_path, messages, complaint):
    assert complain(tmp_path, {"messages": messages}) == complaint


def test_first_twenty_bad_records_of_all_files_come_at_once(tmp_path):
    bad = {"content": "a", "summary": 1}
    first = write(tmp_path / "one.json", dump_lines([bad] * 15 + GOOD))
    second = write(tmp_path / "two.json", json.dumps([*GOOD, *[bad] * 1000], indent=0))
    with pytest.raises(DataError) as caught:
        read_records([first, second])
    lines = str(caught.value).split("\n")
    complaint = "column 'summary': expected text, found the number 1"
    assert lines == [
        "1,015 of 1,019 records are bad:",
        *[f"  {first}:{n}: {complaint}" for n in range(1, 16)],
        *[f"  {second}:{n}: {complaint}" for n in range(10, 30, 4)],
        "  ... and 995 more",
        "mend them or pass --skip-bad-records",
    ]


def test_skipping_keeps_the_messages_and_the_counts(tmp_path):
    bad = {"content": "a", "summary": 1}
    first = write(tmp_path / "one.json", dump_lines([GOOD[0], *[bad] * 30, GOOD[1]]))
    second = write(tmp_path / "two.json", dump_lines([bad]))
    loaded = read_records([first, second], skip_bad_records=True)
    assert [row["source"] for row in loaded.records] == [f"{first}:1", f"{first}:32"]
    assert loaded.counts == {str(first): 2, str(second): 0}
    assert len(loaded.skipped) == 31
    assert loaded.skipped[-1] == f"{second}:1: column 'summary': expected text, found the number 1"


@pytest.mark.parametrize("bad", [1, {"content": 1, "summary": 2}])
def test_what_is_mostly_bad_is_not_read_to_its_end(tmp_path, monkeypatch, bad):
    monkeypatch.setattr(records, "MAX_BAD", 30)
    path = write(tmp_path / "data.json", dump_lines([*GOOD, *[bad] * 100]))
    with pytest.raises(DataError) as caught:
        read_records([path], skip_bad_records=True)
    first, *_, last = str(caught.value).split("\n")
    assert first == "33 of 35 records are bad:"
    assert last == f"reading ended there; leave {path} out, or mend it"
    path = write(tmp_path / "data.json", dump_lines([*GOOD * 50, *[bad] * 100]))
    assert len(read_records([path], skip_bad_records=True).records) == 100


def test_no_good_record_left(tmp_path):
    path = write(tmp_path / "data.json", "not\njson\n")
    with pytest.raises(
        DataError,
        match=r"^no good record is left; mend the data files\n2 of 2 records are bad:\n"
        r"  .*data\.json:1: broken JSON \(Expecting value at character 1\)\n",
    ):
        read_records([path], skip_bad_records=True)


# Files


def test_no_file_and_files_without_records(tmp_path):
    with pytest.raises(
        DataError,
        match=r"^no data file given; name at least one of JSON, JSON Lines, CSV, TSV or Parquet$",
    ):
        read_records([])
    good = write(tmp_path / "good.json", dump_lines(GOOD))
    for name, text in (("a.json", " [ ] "), ("a.csv", "content,summary\n\n"), ("a.json.gz", "")):
        path = write(tmp_path / name, text)
        with pytest.raises(DataError, match=re.escape(f"{path} holds no records; add some or")):
            read_records([good, path], skip_bad_records=True)


def test_notices_of_all_files(tmp_path):
    first = write(tmp_path / "a.csv", "content,summary\n类型#裙,一条裙子\n".encode("gbk"))
    second = write(tmp_path / "b.csv", dump_lines(GOOD))
    loaded = read_records([first, second])
    assert [row["prompt"] for row in loaded.records] == ["类型#裙", *(r["content"] for r in GOOD)]
    told = [notice.split(" ")[0] for notice in loaded.notices]
    assert told == [str(first), str(second)]
    assert read_records([write(tmp_path / "c.json", dump_lines(GOOD))]).notices == ()


def test_name_that_is_not_utf_8(tmp_path):
    path = tmp_path / os.fsdecode(b"d\xff.json")
    try:
        write(path, dump_lines([*GOOD, {"content": 1}]))
    except OSError:
        pytest.skip("the file system takes no such name")
    name = f"{tmp_path}/d\\xff.json"
    loaded = read_records([path], skip_bad_records=True)
    assert loaded.records["source"][:] == [f"{name}:1", f"{name}:2"]
    assert loaded.counts == {name: 2}
    assert loaded.skipped[0].startswith(f"{name}:3: ")
    for content in (b"", b"{}", b"[1", b"\xff", b"PK\x03\x04", b"PAR1"):
        path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            read_records([path])
        assert name in str(caught.value)
        str(caught.value).encode("utf-8")


def test_import_is_light():
    code = (
        "import sys, ptune.data.records\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pyarrow', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
