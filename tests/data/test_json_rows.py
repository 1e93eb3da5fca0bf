"""JSON Lines, arrays and objects that hold a list, whole and broken, in pieces of every size."""

import json
import re

import pytest
from fixtures.data_files import GOOD, dump_lines, read, read_values, write

from ptune.data import json_rows, source
from ptune.errors import DataError


@pytest.fixture(params=[10**6, 64, 7, 2], autouse=True)
def size(request, monkeypatch):
    """Bytes of a block; no value ends where a block does."""
    monkeypatch.setattr(source, "BLOCK", request.param)
    return request.param


def refusal(path):
    with pytest.raises(DataError) as caught:
        read(path)
    return str(caught.value)


def test_blank_lines_of_json_lines_are_no_records_but_count_as_lines(tmp_path):
    first, second = dump_lines(GOOD).splitlines()
    path = write(tmp_path / "data.json", f"\n{first}\r\n \n\n{second}")
    assert read(path)[0] == [(2, GOOD[0]), (5, GOOD[1])]


def test_line_separators_inside_json_lines_do_not_split_a_record(tmp_path):
    row = {"prompt": "a\u2028b\x85c", "response": "d\u2029e"}
    assert read_values(write(tmp_path / "data.json", dump_lines([row]))) == [row]


def test_array_elements_have_the_line_they_start_on(tmp_path):
    text = '\n[{"prompt": "a",\n"response": "b"}\n,\n\n{"prompt": "c", "response": "d"},{\n'
    path = write(tmp_path / "data.json", text + '"prompt": "e", "response": "f"}\n]\n\n')
    assert [line for line, _ in read(path)[0]] == [2, 6, 6]


def test_arrays_of_anything(tmp_path):
    values = [12345, -1.5e3, True, None, "文字\n", [], {}, [[1], {"a": 2}], 67890]
    for indent in (None, 0, 2):
        assert read_values(write(tmp_path / "a.json", json.dumps(values, indent=indent))) == values
    assert read_values(write(tmp_path / "a.json", " [\n ] ")) == []


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"content": "a", "summary": ', "broken JSON (Expecting value at character 30)"),
        ('{"content": "a"},', "broken JSON (a comma behind the record at character 17)"),
        ('{"content": "a"}{"b": 1}', "broken JSON (a second record in the line at character 17)"),
        ('{"content": "a"} x', "broken JSON (Extra data at character 18)"),
        ("{'content': 'a'}",
         "broken JSON (a single quote in place of a double one at character 2)"),
        ("just text", "broken JSON (Expecting value at character 1)"),
        ("\0\0\0", "broken JSON (Expecting value at character 1)"),
        ('{"a": "x\ty"}', "broken JSON (Invalid control character at character 9)"),
        ('{"a": 1' + "0" * 5000 + "}", "broken JSON (a number of more than 4,300 digits)"),
        ('{"a": ' * 10**5, "broken JSON (nested too deeply)"),
        ('{"content": "a", "summary": "b", "content": "c"}', "key 'content' occurs twice"),
        ('{"messages": [{"role": "user", "role": "user"}]}', "key 'role' occurs twice"),
        ("[1]", [1]),
        ("null", None),
        ('"a"', "a"),
    ],
)  # fmt: skip
def test_lines_that_are_no_records(tmp_path, line, complaint):
    path = write(tmp_path / "data.json", dump_lines(GOOD) + line + "\n" + dump_lines(GOOD))
    rows = read(path)[0]
    assert rows == [(1, GOOD[0]), (2, GOOD[1]), (3, complaint), (4, GOOD[0]), (5, GOOD[1])]


def test_first_line_may_be_broken(tmp_path):
    for line in ('{"content": "a"', '{"content": "a"},', "x"):
        path = write(tmp_path / "data.json", f"{line}\n{dump_lines(GOOD)}")
        rows = read(path)[0]
        assert rows[0][1].startswith("broken JSON (") and [v for _, v in rows[1:]] == GOOD


@pytest.mark.parametrize("line", ['{"a": ' * 100_000, '{"content": 1' + "0" * 5000 + "}"])
@pytest.mark.parametrize("size", [10**6], indirect=True)
def test_json_that_breaks_the_decoder(tmp_path, line, size):
    path = write(tmp_path / "data.json", dump_lines(GOOD) + line)
    value = read(path)[0][2][1]
    assert isinstance(value, dict) or value.startswith("broken JSON (")
    if line.startswith('{"a": {'):
        problem = refusal(write(tmp_path / "array.json", f"[\n{line}"))
        assert problem.startswith(f"{tmp_path / 'array.json'}:2: broken JSON (")


@pytest.mark.parametrize("indent", [None, 1])
def test_key_that_occurs_twice_in_an_array_spoils_one_record(tmp_path, indent):
    twice = '{"content": "a", "x": [{"y": 1, "z": {}, "y": {"a": 2}}], "summary": "b"}'
    text = json.dumps([GOOD[0], None, GOOD[1]], indent=indent).replace("null", twice)
    told = ["key 'y' occurs twice"]
    assert read_values(write(tmp_path / "a.json", text)) == [GOOD[0], *told, GOOD[1]]
    only = text.replace(json.dumps(GOOD[0], indent=indent), twice)
    for held in (text, only):
        path = write(tmp_path / "b.json", f'{{"version": {{"a": 1, "a": 2}},\n"data": {held}}}')
        assert [value for _, value in read(path)[0]][-2:] == [*told, GOOD[1]]


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ('[\n{"content": "a"\n"summary": "b"}]', 3, "Expecting ',' delimiter"),
        ('[\n{"content": "a", "summary": "b"}\n{', 3, "',' or ']' expected after a record"),
        ('[\n{"content": "a", "summary": "b"},\n]', 3, "Expecting value"),
        ('[{"content": "a", "summary": "b"}', 1, "',' or ']' expected after a record"),
        ('[{"content": "a", "summary": "b"}]\n[]', 2, "more text after the end of the array"),
        ("[] x", 1, "more text after the end of the array"),
        ('[\n"a', 2, "Unterminated string"),
        ('{\n"data": [],\n2: 3}', 3, "a key in double quotes expected"),
        ('{\n"data"\n[]}', 3, "':' expected after a key"),
        ('{\n"data": []\n"b": 1}', 3, "',' or '}' expected after a value"),
        ('{\n"data": [{}\n', 3, "',' or ']' expected after a record"),
        ('{\n"data": [{}],\n', 3, "a key in double quotes expected"),
        ('{\n"data": [{}],\n"data": [{}]}', 3, "key 'data' occurs twice"),
        ("[\n" + "[" * 10**5, 2, "nested too deeply"),
        ("{\n", 2, "a key in double quotes expected"),
    ],
)
def test_what_is_broken_in_the_middle_cannot_be_skipped(tmp_path, text, line, problem):
    path = write(tmp_path / "data.json", text)
    expected = f"{path}:{line}: broken JSON ({problem}); mend it, it cannot be skipped"
    assert refusal(path) == expected


@pytest.mark.parametrize(
    "dump",
    [
        lambda value: json.dumps(value),
        lambda value: "\n" + json.dumps(value) + "\n\n",
        lambda value: json.dumps(value, indent=1),
        lambda value: json.dumps(value, indent=1, ensure_ascii=False).replace("{\n", "{", 1),
    ],
)
def test_object_that_holds_the_records(tmp_path, dump):
    path = tmp_path / "data.json"
    assert read_values(write(path, dump({"data": GOOD}))) == GOOD
    meta = {"version": "1", "meta": {"a": [1]}, "tags": ["a", {}], "data": [*GOOD, 3], "n": None}
    rows, notices = read(write(path, dump(meta)))
    assert [value for _, value in rows] == [*GOOD, 3]
    assert notices == [f"{path}: the records in 'data' are read; left out: version, meta, tags, n"]


def test_records_in_an_object_have_lines(tmp_path):
    path = write(tmp_path / "data.json", '{"data": [\n{"a": 1},\n{"a":\n2}, {"a": 3}\n]}\n')
    assert read(path)[0] == [(2, {"a": 1}), (3, {"a": 2}), (4, {"a": 3})]


@pytest.mark.parametrize("indent", [None, 1])
def test_object_with_two_lists_of_records(tmp_path, indent):
    path = write(tmp_path / "data.json", json.dumps({"train": GOOD, "test": GOOD}, indent=indent))
    assert re.fullmatch(
        re.escape(str(path)) + r":\d+: 'train' and 'test' both hold a list of records; "
        r"write the one that you want into a file of its own",
        refusal(path),
    )


@pytest.mark.parametrize("value", [GOOD[0], {"messages": [{"role": "user"}]}, {"data": []}])
def test_object_over_several_lines_that_holds_no_records(tmp_path, value):
    path = write(tmp_path / "data.json", "\n" + json.dumps(value, indent=1))
    names = ", ".join(map(repr, value))
    assert refusal(path) == (
        f"{path}:2: one JSON object with {names} is not a list of records; "
        "put the records into a JSON array or write one record per line"
    )


def test_objects_over_several_lines(tmp_path):
    text = "\n".join(json.dumps(row, indent=1) for row in GOOD)
    path = write(tmp_path / "data.json", text)
    assert refusal(path) == (
        f"{path}:5: more text after a JSON object over several lines; "
        "put the records into a JSON array or write one record per line"
    )


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [{"role": "user", "content": "a"}]},
        {"tools": [{"name": "a"}], "messages": [{"role": "user"}]},
        {"prompt": "a", "response": "b", "references": [{"page": 1}]},
    ],
)
def test_one_record_with_a_list_stays_a_record(tmp_path, record):
    assert read_values(write(tmp_path / "data.json", json.dumps(record))) == [record]


@pytest.mark.parametrize("start", ['["', '{\n"a": "', '[{"b": ['])
def test_no_more_is_read_than_a_record_may_have(monkeypatch, start):
    def pieces():
        yield start
        yield from ["1," * 50] * 100
        raise AssertionError("read on")

    monkeypatch.setattr(json_rows, "MAX_RECORD", 1000)
    with pytest.raises(DataError, match=", or a value of more than 1,000 characters"):
        list(json_rows.read_json("a.json", pieces(), []))


@pytest.mark.parametrize("start", ['["', '{"a": "', '{\n"a": ["', "["])
@pytest.mark.parametrize("size", [10**6, 64], indirect=True)
def test_value_without_end(tmp_path, monkeypatch, size, start):
    monkeypatch.setattr(json_rows, "MAX_RECORD", 2000)
    path = write(tmp_path / "data.json", start + "a" * 10_000)
    if start.startswith('{"'):
        assert read(path)[0][0][1].startswith("broken JSON (Unterminated string")
        return
    problem = refusal(path)
    assert " broken JSON (" in problem and "; mend it, it cannot be skipped" in problem
    if size < 10**6 and start != "[":
        assert ", or a value of more than 2,000 characters)" in problem
