"""Every schema, and every complaint with its file, line and column."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.data_files import GOOD, dump_csv, dump_lines, write

from ptune.base.folder import Generation
from ptune.data import records
from ptune.data.records import CHUNK_SIZE, read_records
from ptune.data.schemas import Columns
from ptune.errors import ConfigError, DataError


def parts(row):
    """A record of questions and answers alone, by its parts."""
    texts = [message["content"] for message in row["messages"]]
    roles = [message["role"] for message in row["messages"]]
    system = texts.pop(0) if roles[0] == "system" else ""
    assert roles[-len(texts) :] == ["user", "assistant"] * (len(texts) // 2)
    for message in row["messages"]:
        assert (message["metadata"], message["tools"], message["learn"]) == ("", "", None)
    *history, (prompt, response) = ([q, a] for q, a in zip(texts[::2], texts[1::2], strict=True))
    found = {"prompt": prompt, "response": response, "history": history, "system": system}
    return {**found, "source": row["source"]}


def read_rows(path, *args, **kwargs):
    return [parts(row) for row in read_records([path], *args, **kwargs).records]


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
    third = write(tmp_path / "c.csv", "prompt,response\n5,6\n")
    loaded = read_records([first, second, third])
    prompts = [row["messages"][0]["content"] for row in loaded.records]
    assert prompts == ["1", "3", "类型#上衣", "5"]
    assert loaded.counts == {str(first): 2, str(second): 1, str(third): 1}


def test_more_records_than_a_chunk(tmp_path):
    rows = [{"prompt": str(n), "response": "x"} for n in range(CHUNK_SIZE + 1)]
    records = read_records([write(tmp_path / "data.json", dump_lines(rows))]).records
    assert len(records) == CHUNK_SIZE + 1
    assert records[-1]["messages"][0]["content"] == str(CHUNK_SIZE)
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


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"content": "c", "summary": "d"}, "c"),
        ({"prompt": "c", "response": "d"}, "c"),
        ({"instruction": "c", "input": "x", "output": "d"}, "c\nx"),
        ({"messages": [{"role": "user", "content": "c"}, {"role": "bot", "content": "d"}]}, "c"),
        ({"conversations": [{"from": "human", "value": "c"}, {"from": "gpt", "value": "d"}]}, "c"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_history_and_system_beside_any_schema(tmp_path, row, prompt):
    beside = {"history": [["a", "b"]], "system": " s "}
    record = read_row(tmp_path, {**row, **beside})
    assert record.pop("source").endswith(":1")
    expected = {"prompt": prompt, "response": "d", "history": [["a", "b"]], "system": " s "}
    assert record == expected
    for nothing in (None, "", " \n"):
        record = read_row(tmp_path, {**row, "history": nothing, "system": nothing})
        assert (record["history"], record["system"]) == ([], "")
    assert complain(tmp_path, {**row, "system": 3}) == (
        "column 'system': expected text, found the number 3"
    )


def test_system_column_beside_a_system_message(tmp_path):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    row = {"messages": [{"role": "system", "content": "s"}, *turns], "history": [["c", "d"]]}
    for system in ("s", "", None):
        record = read_row(tmp_path, {**row, "system": system})
        assert (record["system"], record["history"]) == ("s", [["c", "d"]])
    assert complain(tmp_path, {**row, "system": "t"}) == (
        "the system message has other words than stand beside it; leave one out"
    )


def test_history_of_messages(tmp_path):
    earlier = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    row = {"prompt": "c", "response": "d", "history": earlier}
    assert read_row(tmp_path, row)["history"] == [["a", "b"]]
    system = {"role": "system", "content": "s"}
    assert read_row(tmp_path, {**row, "history": [system, *earlier]})["system"] == "s"
    assert complain(tmp_path, {**row, "history": earlier[:1]}) == (
        "column 'history': expected an answer of the assistant as the last message"
    )
    both = {"messages": [system, *earlier], "history": [system, *earlier]}
    assert complain(tmp_path, both) == (
        "column 'history': a system message beside the record's own; leave one of them out"
    )


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


def test_columns_named_like_those_beside_a_schema(tmp_path):
    row = {"system": "a", "tools": "b"}
    record = read_row(tmp_path, row, columns=Columns("system", "tools"))
    assert (record["prompt"], record["response"], record["system"]) == ("a", "b", "")


MESSAGES = [{"role": "user", "content": "e"}, {"role": "assistant", "content": "f"}]


def test_each_record_has_a_schema_of_its_own(tmp_path):
    rows = [{"prompt": "c", "response": "d"}] * 100 + [{"messages": MESSAGES}, *GOOD]
    loaded = read_records([write(tmp_path / "d.json", dump_lines(rows))])
    prompts = [parts(row)["prompt"] for row in loaded.records]
    assert prompts == ["c"] * 100 + ["e", "类型#上衣", "类型#裙"]
    assert loaded.notices == (
        "the records have several schemas: 100 of prompt/response, 1 of messages, "
        "2 of content/summary",
    )


@pytest.mark.parametrize(
    ("row", "prompt", "unused"),
    [
        ({"prompt": "c", "response": "d", "messages": MESSAGES}, "e",
         "'prompt' (1 record), 'response' (1 record)"),
        ({"prompt": "c", "response": "d", "messages": None}, "c", None),
        ({"prompt": "c", "response": "d", "messages": " ", "conversations": []}, "c", None),
        ({"prompt": "", "response": None, "messages": MESSAGES}, "e", None),
        ({"content": "a", "summary": "b", "prompt": "c"}, "a", "'prompt' (1 record)"),
    ],
)  # fmt: skip
def test_record_of_two_schemas(tmp_path, row, prompt, unused):
    loaded = read_records([write(tmp_path / "d.json", dump_lines([row]))])
    assert [parts(row)["prompt"] for row in loaded.records] == [prompt]
    named = sorted(", ".join(loaded.notices).removeprefix("not used: ").split(", "))
    assert named == (unused or "").split(", ")


def test_what_is_not_used_is_counted(tmp_path):
    rows = [
        {"content": "a", "summary": "b", "id": n, "lang": "zh", "note": "x" * (n == 3), "": n}
        for n in range(4)
    ]
    rows.append({"messages": [{**MESSAGES[0], "name": "Li"}, {**MESSAGES[1], "name": "Bo"}]})
    loaded = read_records([write(tmp_path / "d.json", dump_lines(rows))])
    assert loaded.notices == (
        "the records have several schemas: 4 of content/summary, 1 of messages",
        "not used: '' (4 records), 'id' (4 records), 'lang' (4 records), "
        "'name' of messages (1 record), 'note' (1 record)",
    )


def test_of_very_many_unused_columns_twenty_are_named(tmp_path):
    row = {"content": "a", "summary": "b", **{f"c{n}": n for n in range(1000)}}
    (notice,) = read_records([write(tmp_path / "d.json", dump_lines([row]))]).notices
    assert notice.startswith("not used: 'c") and notice.endswith(" (1 record), and 980 more")
    assert notice.count("(1 record)") == 20


def test_conversations_of_csv_are_json(tmp_path):
    tools = [{"name": "f"}]
    row = {"messages": json.dumps(MESSAGES), "system": "s", "tools": json.dumps(tools)}
    path = write(tmp_path / "data.csv", dump_csv([row, {**row, "system": "", "tools": ""}]))
    with_tools, without = (row["messages"] for row in read_records([path]).records)
    assert [message["content"] for message in with_tools] == ["s", "e", "f"]
    assert json.loads(with_tools[0]["tools"]) == tools
    assert [message["content"] for message in without] == ["e", "f"]
    path = write(tmp_path / "data.csv", dump_csv([{"messages": "[{"}]))
    with pytest.raises(DataError, match=r"'messages': expected a list of messages, found '\[\{'"):
        read_records([path])


# Tools, and what is learnt


CALL = {"role": "tool", "name": "f", "parameters": {"x": "1"}}
STEP = {**CALL, "observation": {"y": 2}}


def test_fields_of_messages(tmp_path):
    row = {"tools": [{"name": "f"}], "messages": [MESSAGES[0], STEP, {**MESSAGES[1], "loss": True}]}
    (record,) = read_records([write(tmp_path / "d.json", dump_lines([row]))]).records
    plain = {"metadata": "", "tools": "", "learn": None, "context": ""}
    assert record["messages"] == [
        {
            "role": "system",
            "content": "Answer the following questions as best as you can. "
            "You have access to the following tools:",
            **plain,
            "tools": '[\n    {\n        "name": "f"\n    }\n]',
        },
        {"role": "user", "content": "e", **plain},
        {
            "role": "assistant",
            "content": "```python\ntool_call(x='1')\n```",
            **plain,
            "metadata": "f",
        },
        {"role": "observation", "content": '{"y": 2}', **plain},
        {"role": "assistant", "content": "f", **plain, "learn": True},
    ]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"messages": [MESSAGES[0], STEP, MESSAGES[1]]}, "metadata 'f', a tool that is called,"),
        ({"messages": [MESSAGES[0], CALL]}, "metadata 'f', a tool that is called,"),
        ({"messages": MESSAGES, "tools": ["f"]}, "a description of tools"),
        ({"messages": [*MESSAGES, {"role": "observation", "content": "x"}, MESSAGES[1]]},
         "a tool's reply"),
        ({"messages": [*MESSAGES, MESSAGES[1]]}, "message 3, of role 'assistant' at this place,"),
    ],
)  # fmt: skip
def test_tools_are_of_chatglm3(tmp_path, row, complaint):
    for generation in (Generation.CHATGLM, Generation.CHATGLM2):
        expected = (
            f"{complaint} has no place in the prompt of {generation.value}-6b; "
            "use ChatGLM3-6B or GLM-4-9B, which have roles for it, or leave it out"
        )
        assert complain(tmp_path, row, generation=generation) == expected
        path = write(tmp_path / "data.json", dump_lines([row, {"messages": MESSAGES}]))
        loaded = read_records([path], skip_bad_records=True, generation=generation)
        assert (len(loaded.records), loaded.skipped) == (1, (f"{path}:1: {expected}",))
    path = write(tmp_path / "data.json", dump_lines([row]))
    assert len(read_records([path], generation=Generation.CHATGLM3).records) == 1


@pytest.mark.parametrize("generation", [None, *Generation])
def test_nothing_left_to_learn(tmp_path, generation):
    mute = {**MESSAGES[1], "loss": False}
    any_answer = generation is None or generation.has_roles
    which = "every answer"
    if not any_answer:
        which = f"the last answer, all that {generation.model_name} learns,"
    expected = f"{which} is marked not to be learnt; leave the mark or the record out"
    for row in ([MESSAGES[0], mute], [MESSAGES[0], mute, MESSAGES[0], mute]):
        assert complain(tmp_path, {"messages": row}, generation=generation) == expected
    last_alone = write(
        tmp_path / "a.json", dump_lines([{"messages": [MESSAGES[0], mute, *MESSAGES]}])
    )
    assert len(read_records([last_alone], generation=generation).records) == 1
    row = {"messages": [*MESSAGES, MESSAGES[0], mute]}
    if any_answer:
        path = write(tmp_path / "b.json", dump_lines([row]))
        assert len(read_records([path], generation=generation).records) == 1
    else:
        assert complain(tmp_path, row, generation=generation) == expected


def test_wish_to_learn_earlier_answers_is_not_passed_over(tmp_path):
    wished = [MESSAGES[0], {**MESSAGES[1], "loss": True}] * 2
    path = write(tmp_path / "d.json", dump_lines([{"messages": wished}, {"messages": MESSAGES}]))
    for generation in Generation:
        notices = read_records([path], generation=generation).notices
        expected = ("not used: 'loss' of earlier answers (1 record)",)
        assert notices == (() if generation.has_roles else expected)


# Bad records, and more of schemas


def test_odd_first_record_does_not_decide_the_schema(tmp_path):
    rows = [{"content": "a", "summery": "b"}, *GOOD]
    loaded = read_records([write(tmp_path / "d.json", dump_lines(rows))], skip_bad_records=True)
    assert len(loaded.records) == 2
    assert loaded.skipped == (
        f"{tmp_path / 'd.json'}:1: column 'summary': expected text, found nothing",
    )


@pytest.mark.parametrize("history", [None, "earlier"])
def test_what_has_no_schema_is_told_of_the_usual_one(tmp_path, history):
    """And what is no object at all, of that."""
    good = {"question": "问", "answer": "答", "earlier": []}
    path = write(tmp_path / "data.json", dump_lines([good, {"x": 1}, "text", good]))
    loaded = read_records([path], Columns(history=history), skip_bad_records=True)
    assert loaded.skipped == (
        f"{path}:2: column 'answer': expected text, found nothing",
        f"{path}:3: expected an object with named columns, found 'text'",
    )


@pytest.mark.parametrize(("row", "columns"), [({"q": "a", "a": "b"}, "q, a"), ({}, "(none)")])
def test_unknown_schema_names_keys_schemas_and_flags(tmp_path, row, columns):
    path = write(tmp_path / "data.json", dump_lines([row]))
    expected = (
        f"columns {columns} of {path} match no known schema (conversations, messages, "
        "content/summary, prompt/response, instruction/output, query/response, question/answer, "
        "input/output); "
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


def test_input_is_the_prompt_only_where_there_is_no_instruction(tmp_path):
    rows = [{"input": "a", "output": "b"}] * 3 + [{"instruction": "i", "input": "a", "output": "b"}]
    loaded = read_records([write(tmp_path / "d.json", dump_lines(rows))])
    assert [parts(row)["prompt"] for row in loaded.records] == ["a", "a", "a", "i\na"]
    assert loaded.notices == (
        "the records have several schemas: 3 of input/output, 1 of instruction/output",
    )


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
        (Columns(history="聊天"), "column '聊天' (from --history-column) is not in {path}; it has "
         "content, summary"),
        (Columns(context="知识"), "column '知识' (from --context-column) is not in {path}; it has "
         "content, summary"),
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


@pytest.mark.parametrize(
    ("columns", "flags"),
    [
        (Columns("content", "content"), "--prompt-column and --response-column"),
        (Columns("content", "summary", "content"), "--prompt-column and --history-column"),
        (Columns("summary", "content", "content"), "--response-column and --history-column"),
        (Columns("content", "summary", context="content"), "--prompt-column and --context-column"),
        (Columns(history="content", context="content"), "--history-column and --context-column"),
    ],
)
def test_one_column_named_twice(tmp_path, columns, flags):
    path = write(tmp_path / "data.json", dump_lines(GOOD))
    message = f"^column 'content' is named by both {flags}; name another one$"
    with pytest.raises(ConfigError, match=message):
        read_records([path], columns)


@pytest.mark.parametrize("part", ["history", "context"])
def test_column_of_another_part_that_is_part_of_the_schema(tmp_path, part):
    row = {"instruction": "a", "input": "b", "output": "c", "h": None}
    path = write(tmp_path / "data.json", dump_lines([row]))
    for name in ("instruction", "input", "output"):
        message = (
            rf"^column '{name}' \(from --{part}-column\) is part of instruction/output in "
            rf"{re.escape(str(path))}, not the {part}; name another one$"
        )
        with pytest.raises(DataError, match=message):
            read_records([path], Columns(**{part: name}))
    assert read_records([path], Columns(**{part: "h"})).counts == {str(path): 1}


def test_prompt_column_of_the_name_history(tmp_path):
    """It is the prompt alone, and not the earlier turns, too."""
    row = {"history": '[["a", "b"]]', "summary": "c"}
    path = write(tmp_path / "data.json", dump_lines([row]))
    (record,) = read_records([path], Columns("history", "summary")).records
    assert [m["content"] for m in record["messages"]] == ['[["a", "b"]]', "c"]


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
        ({"prompt": "a", "response": "b", "history": '[{"role": "user", "role": "x"}]'},
         "column 'history': key 'role' occurs twice"),
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
        (roles("user", "judge"), "column 'messages', message 2: expected 'role' to be system, "
         "user, human, assistant, gpt, bot, observation, tool, function, function_call, tool_call, "
         "found 'judge'"),
        ([{"from": 1, "value": "a"}], "column 'messages', message 1: expected 'from' to be system, "
         "user, human, assistant, gpt, bot, observation, tool, function, function_call, tool_call, "
         "found the number 1"),
        ([{"text": "a"}], "column 'messages', message 1: expected 'role' to be system, user, "
         "human, assistant, gpt, bot, observation, tool, function, function_call, tool_call, "
         "found nothing"),
        ([{"role": "user"}], "column 'messages', message 1: expected text, found nothing"),
        ([{"role": "user", "content": " "}],
         "column 'messages', message 1: expected text, found blank text"),
        (roles("assistant", "user"),
         "column 'messages', message 1: expected role 'system' or 'user', found 'assistant'"),
        (roles("system", "user", "user"),
         "column 'messages', message 3: expected role 'assistant', found 'user'"),
        (roles("user", "assistant", "system"),
         "column 'messages', message 3: expected role 'user' or 'assistant' or 'observation', "
         "found 'system'"),
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
    prompts = [parts(row)["prompt"] for row in loaded.records]
    assert prompts == ["类型#裙", *(row["content"] for row in GOOD)]
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


# Contexts


def contexts(tmp_path, row, **kwargs):
    """The contexts of the messages of a record, and what was said of it."""
    loaded = read_records([write(tmp_path / "data.json", dump_lines([row]))], **kwargs)
    return [message["context"] for message in loaded.records[0]["messages"]], loaded.notices


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"question": "a", "answer": "b"}, ["c", ""]),
        ({"instruction": "a", "input": "x", "output": "b"}, ["c", ""]),
        ({"prompt": "a", "response": "b", "history": [["d", "e"]]}, ["", "", "c", ""]),
        ({"prompt": "a", "response": "b", "system": "s"}, ["", "c", ""]),
        ({"messages": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}] * 2},
         ["", "", "c", ""]),
    ],
)  # fmt: skip
def test_context_is_of_the_last_question(tmp_path, row, expected):
    assert contexts(tmp_path, {**row, "context": "c"}) == (expected, ())
    blank = [""] * len(expected)
    for nothing in (None, "", " \n"):
        assert contexts(tmp_path, {**row, "context": nothing}) == (blank, ())
    named = {**row, "知识": "c"}
    found, notices = contexts(tmp_path, named, columns=Columns(context="知识"))
    assert (found, notices) == (expected, ())
    assert contexts(tmp_path, named) == (blank, ("not used: '知识' (1 record)",))


def test_context_of_a_call_is_of_the_question_before_it(tmp_path):
    row = {"conversations": [{"role": "user", "content": "a"}, STEP]}
    row["conversations"].append({"role": "assistant", "content": "b"})
    found, _ = contexts(tmp_path, {**row, "context": "c"})
    assert found == ["c", "", "", ""]


def test_context_of_csv(tmp_path):
    rows = [{"question": "a", "answer": "b", "context": text} for text in ("c\nd", "")]
    loaded = read_records([write(tmp_path / "data.csv", dump_csv(rows))])
    assert [row["messages"][0]["context"] for row in loaded.records] == ["c\nd", ""]


def test_contexts_that_contradict_the_question_or_are_none(tmp_path):
    row = {"question": "已知信息：a\n根据已知信息回答问题：b", "answer": "c"}
    assert contexts(tmp_path, row)[0] == ["", ""]
    assert complain(tmp_path, {**row, "context": "d"}) == (
        "column 'context': a context beside a question that holds one already, as 已知信息; "
        "leave one of them out"
    )
    row["question"] = "b"
    expected = "column 'context': expected text, found a list of 2"
    assert complain(tmp_path, {**row, "context": ["d", "e"]}) == expected


def test_a_column_is_of_one_part(tmp_path):
    """What the user names it is all that it is."""
    row = {"question": "a", "answer": "b", "context": [["d", "e"]]}
    loaded = read_row(tmp_path, row, columns=Columns(history="context"))
    assert loaded["history"] == [["d", "e"]]
    row = {"question": "a", "answer": "b", "history": "c", "system": "s"}
    found, _ = contexts(tmp_path, row, columns=Columns(context="history"))
    assert found == ["", "c", ""]
    found, notices = contexts(tmp_path, row | {"history": None}, columns=Columns(context="system"))
    assert (found, notices) == (["s", ""], ())
    row = {"context": "a", "answer": "b"}
    assert contexts(tmp_path, row, columns=Columns("context", "answer"))[0] == ["", ""]
