"""What a data file is: by its contents, then by its name, and what is said when they differ."""

import gzip
import json
import re

import pytest
from fixtures.data_files import GOOD, dump_arrow, dump_csv, dump_lines, read, read_values, write

from ptune.data.files import ending, open_data_file, read_lines, read_whole_text
from ptune.errors import DataError


@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("zipped", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "dump", "lines"),
    [
        ("data.json", dump_lines, [1, 2]),
        ("data.jsonl", dump_lines, [1, 2]),
        ("data", dump_lines, [1, 2]),
        ("data.txt", dump_lines, [1, 2]),
        ("data.json", lambda rows: json.dumps(rows), [1, 1]),
        ("data.jsonl", lambda rows: "\n" + json.dumps(rows, indent=2) + "\n", [3, 7]),
        ("data.json", lambda rows: json.dumps({"data": rows}), [1, 1]),
        ("data.csv", dump_csv, [2, 3]),
        ("DATA.CSV", dump_csv, [2, 3]),
        ("data.txt", dump_csv, [2, 3]),
        ("data.tsv", lambda rows: dump_csv(rows, "\t"), [2, 3]),
    ],
)
def test_formats(tmp_path, name, dump, lines, zipped, bom):
    rows, notices = read(write(tmp_path / (name + zipped), bom + dump(GOOD)))
    assert rows == list(zip(lines, GOOD, strict=True))
    assert notices == []


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("data.csv", dump_lines(GOOD), "JSON"),
        ("data.tsv.gz", json.dumps(GOOD, indent=1), "JSON"),
        ("data.json", dump_csv(GOOD), "a table"),
        ("data.jsonl", dump_csv(GOOD, ";"), "a table"),
        ("data.parquet", dump_lines(GOOD), "JSON"),
        ("data.feather", dump_csv(GOOD), "a table"),
        ("data.xlsx", dump_csv(GOOD), "a table"),
        ("data.json", dump_arrow(GOOD, "parquet"), "Parquet"),
        ("data.arrow", dump_arrow(GOOD, "parquet"), "Parquet"),
        ("data.parquet", dump_arrow(GOOD, "feather"), "Arrow"),
        ("data.csv", dump_arrow(GOOD, "stream"), "Arrow stream"),
    ],
)
def test_contents_win_over_the_name_and_it_is_said(tmp_path, name, text, what):
    path = write(tmp_path / name, text)
    rows, notices = read(path)
    assert [value for _, value in rows] == GOOD
    assert notices == [f"{path} holds {what}, whatever its name says, and is read so"]


@pytest.mark.parametrize("text", ["x,y\n" + dump_lines(GOOD), "{'a': 'b', 'c': 'd'}\n" * 2])
def test_broken_json_is_no_table(tmp_path, text):
    rows, notices = read(write(tmp_path / "data.json", text))
    assert rows[0][1].startswith("broken JSON (") and notices == []


def test_many_blank_lines_take_no_time(tmp_path):
    rows, _ = read(write(tmp_path / "data.json", "x" + "\n" * 300_000 + "{}"))
    assert rows == [(1, "broken JSON (Expecting value at character 1)"), (300_001, {})]


def test_table_whose_header_has_brackets(tmp_path):
    path = write(tmp_path / "data.csv", "[prompt],{response}\na,b\n")
    assert read_values(path) == [{"[prompt]": "a", "{response}": "b"}]


@pytest.mark.parametrize("text", ["Just prose.\nAnd more.\n", "one", "a,b\nc\nd,e"])
def test_plain_text(tmp_path, text):
    path = write(tmp_path / "data.txt", text)
    with pytest.raises(
        DataError,
        match=r"^data file .*data\.txt is plain text without columns; "
        r"pass JSON, JSON Lines, CSV, TSV or Parquet$",
    ):
        read(path)


@pytest.mark.parametrize("name", ["data.json", "data.csv", "data.txt"])
@pytest.mark.parametrize("text", [" \n\n", "\ufeff", "\r\n"])
def test_blank_files_hold_nothing(tmp_path, name, text):
    assert read_values(write(tmp_path / name, text)) == []


@pytest.mark.parametrize("is_table", [True, False])
def test_fields_of_tables_are_all_text(tmp_path, is_table):
    text = dump_csv(GOOD) if is_table else dump_lines(GOOD)
    with open_data_file(write(tmp_path / "data", text), []) as file:
        assert file.is_table == is_table


def test_endings(tmp_path):
    names = {"a.json": "json", "A.CSV.GZ": "csv", "a.b.jsonl.xz": "jsonl", "a": "", "a.gz": ""}
    names |= {"a.tar.gz": "tar", ".json": "json", "63": ""}
    assert {name: ending(tmp_path / name) for name in names} == names


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzipped"])
def test_lines_keep_their_ends_and_lose_the_bom(tmp_path, pack):
    path = tmp_path / "text"
    path.write_bytes(pack("\ufeff甲\u2028\r\n\n\ufeff乙\x85".encode()))
    assert list(read_lines(path)) == ["甲\u2028\r\n", "\n", "\ufeff乙\x85"]


def test_an_empty_file_has_no_lines(tmp_path):
    (tmp_path / "text").touch()
    assert list(read_lines(tmp_path / "text")) == []


def test_lines_in_other_encodings(tmp_path):
    path = tmp_path / "text"
    path.write_bytes("甲\n".encode() + "乙".encode("gbk"))
    expected = f"{path}:2: byte 0xd2 at byte offset 4 of the text is not UTF-8; "
    with pytest.raises(DataError, match="^" + re.escape(expected)):
        list(read_lines(path))
    path.write_bytes("a\n第二行的文字\n".encode("gbk"))
    expected = f"{path}:1: not UTF-8 but GB18030 (GBK); convert the file with `iconv -f GB18030"
    with pytest.raises(DataError, match="^" + re.escape(expected)):
        list(read_lines(path))


def test_lines_that_cannot_be_read(tmp_path):
    for path, reason in ((tmp_path, "cannot be read ("), (tmp_path / "nope", "does not exist; c")):
        with pytest.raises(DataError, match=re.escape(f"data file {path} {reason}")):
            list(read_lines(path))
    path = tmp_path / "text.gz"
    path.write_bytes(gzip.compress(b"a\n" * 10**6)[:-9])
    with pytest.raises(DataError, match=r"text\.gz.*cannot be read.*; check the file"):
        list(read_lines(path))


TEXT = "这条裤子是羊毛的，\n版型宽松，风格简约，裤长是长裤。\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_context_in_any_encoding(tmp_path, encoding, pack):
    file, notices = tmp_path / "notes.txt", []
    file.write_bytes(pack(TEXT.encode(encoding)))
    assert read_whole_text(file, notices) == TEXT
    assert len(notices) == (encoding == "gb18030")
    assert all("was read as GB18030" in notice for notice in notices)


@pytest.mark.parametrize("text", ['{"a": 1}', "a,b\n1,2\n", "<html><body>a</body></html>", "- a\n"])
def test_a_context_is_text_whatever_it_says(tmp_path, text):
    file = tmp_path / "notes.json"
    file.write_text(text)
    assert read_whole_text(file, []) == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; write the text into it, or leave it out"),
        (b"\xef\xbb\xbf \n", "is empty; write the text into it, or leave it out"),
        (b"%PDF-1.7\n\xe2\xe3\xcf\xd3", "is a PDF document, not text; save its text"),
        (b"PK\x03\x04word/document.xml", "is an Office document, not text; save its text and name"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\xff", "is binary data, not text; save its text"),
        (b"text\0text", "holds the character NUL, which no text has; name a text file"),
        (None, "does not exist; check the path"),
    ],
)  # fmt: skip
def test_what_is_no_context(tmp_path, content, message):
    file = tmp_path / "notes.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=f"^context file {re.escape(str(file))} {message}"):
        read_whole_text(file, [])


def test_a_context_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(
        DataError, match=r"^context file .* cannot be read \(Is a directory\); check"
    ):
        read_whole_text(tmp_path, [])
    with pytest.raises(DataError, match=r"cannot be read \(embedded null byte\); check the file"):
        read_whole_text(tmp_path / "a\0b", [])
    file = tmp_path / "notes.txt"
    file.write_bytes("好".encode() * 50 + b"\xff" + "好".encode())
    with pytest.raises(DataError, match=r"notes.txt:1: byte 0xff .* is not UTF-8; mend it, or"):
        read_whole_text(file, [])
    monkeypatch.setattr("ptune.data.files.MAX_RECORD", 1000)
    file.write_text("a" * 1001)
    with pytest.raises(DataError, match=r"has more than 1,000 characters; name one with the part"):
        read_whole_text(file, [])
