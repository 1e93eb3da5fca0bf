"""CSV and TSV as programs and spreadsheets write them, and what is wrong with a row."""

import csv
import re

import pytest
from fixtures.data_files import GOOD, dump_csv, read, read_values, write

from ptune.data import delimited
from ptune.errors import DataError


@pytest.mark.parametrize("name", ["data.csv", "data.tsv", "DATA.CSV", "data", "data.csv.gz"])
@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_delimiter_is_the_headers(tmp_path, name, delimiter):
    rows, notices = read(write(tmp_path / name, dump_csv(GOOD, delimiter)))
    assert rows == [(2, GOOD[0]), (3, GOOD[1])]
    assert notices == []


@pytest.mark.parametrize("first", ["sep=;\r\n", '"sep=;"\r\n', "SEP=;\n", "\ufeffsep=;\n"])
def test_delimiter_may_be_named_in_the_first_line(tmp_path, first):
    rows, _ = read(write(tmp_path / "data.csv", first + "a,b;c\n1,2;3\n"))
    assert rows == [(3, {"a,b": "1,2", "c": "3"})]


@pytest.mark.parametrize("first", ['sep="', "sep=a", "sep=", "sep=\0"])
def test_what_can_be_no_delimiter(tmp_path, first):
    path = write(tmp_path / "data.csv", f"{first}\n1\n")
    assert len(read(path)[0]) == 1


def test_one_column(tmp_path):
    assert read_values(write(tmp_path / "data.tsv", "content\na,b\n")) == [{"content": "a,b"}]


def test_fields_may_hold_line_ends_and_blank_rows_are_no_records(tmp_path):
    text = '\nprompt,response\r\n"a\r\nb",c\r\n\r\n , \r\nd,"e ""f"", g"\r\n'
    assert read(write(tmp_path / "data.csv", text))[0] == [
        (3, {"prompt": "a\r\nb", "response": "c"}),
        (7, {"prompt": "d", "response": 'e "f", g'}),
    ]


def test_old_line_ends_of_the_macintosh(tmp_path):
    path = write(tmp_path / "data.csv", 'prompt,response\ra,"b"\rc,d\r')
    assert read(path)[0] == [
        (2, {"prompt": "a", "response": "b"}),
        (3, {"prompt": "c", "response": "d"}),
    ]


def test_header_with_marks_and_spaces(tmp_path):
    path = write(tmp_path / "data.csv", "\ufeff\ufeff prompt , response\n a ,b\n")
    assert read_values(path) == [{"prompt": " a ", "response": "b"}]
    path = write(tmp_path / "data.csv", '\ufeff"prompt","response"\na,b\n')
    assert read_values(path) == [{"prompt": "a", "response": "b"}]


def test_columns_that_a_spreadsheet_adds(tmp_path):
    path = write(tmp_path / "data.csv", "a,b,,,\r\n1,2,,,\r\n,,,,\r\n3,4, ,,x\r\n5,6,,,,,\r\n")
    assert read(path)[0] == [
        (2, {"a": "1", "b": "2"}),
        (4, "column 5 has no name in the first line and holds 'x'"),
        (5, {"a": "5", "b": "6"}),
    ]


def test_row_numbers_of_pandas_are_no_column(tmp_path):
    path = write(tmp_path / "data.csv", ",content,summary\n0,a,b\nx,c,d\n")
    assert read(path)[0] == [
        (2, {"content": "a", "summary": "b"}),
        (3, "column 1 has no name in the first line and holds 'x'"),
    ]


def test_long_fields_leave_the_limit_of_the_program_as_it_is(tmp_path):
    text = "长" * 300_000
    before = csv.field_size_limit(1000)
    try:
        path = write(tmp_path / "data.csv", f'content,summary\na,"{text}"\n"a"b,c\n')
        assert read(path)[0][0] == (2, {"content": "a", "summary": text})
        assert csv.field_size_limit() == 1000
    finally:
        csv.field_size_limit(before)


def test_endless_field(tmp_path, monkeypatch):
    monkeypatch.setattr(delimited, "MAX_RECORD", 1000)
    path = write(tmp_path / "data.csv", 'content,summary\na,"' + "b\n" * 1000)
    assert "field larger than field limit (1000), from here to line 5" in read(path)[0][0][1]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("a,b,c", "expected 2 fields, found 3"),
        ("a", "expected 2 fields, found 1"),
        ('"a"b,c', "not readable as CSV (',' expected after '\"')"),
        ('a,"b\nc\n', "not readable as CSV (unexpected end of data, from here to line 5)"),
    ],
)
def test_wrong_rows(tmp_path, row, complaint):
    path = write(tmp_path / "data.csv", 'content,summary\na,"b\nc"\n' + row)
    assert read(path)[0] == [(2, {"content": "a", "summary": "b\nc"}), (4, complaint)]


def test_nul(tmp_path):
    path = write(tmp_path / "data.csv", "content,summary\na,b\0\nc,d\n")
    (first, second), _ = read(path)
    assert first[0] == 2 and "NUL" in first[1]
    assert second == (3, {"content": "c", "summary": "d"})


def test_rows_after_an_unreadable_one_are_still_read(tmp_path):
    path = write(tmp_path / "data.csv", 'content,summary\n"a"b,c\nd,e\n')
    assert read(path)[0] == [
        (2, "not readable as CSV (',' expected after '\"')"),
        (3, {"content": "d", "summary": "e"}),
    ]


def test_column_twice_in_the_header(tmp_path):
    path = write(tmp_path / "data.csv", "prompt, prompt,response\na,b,c\n")
    with pytest.raises(DataError, match=r"data\.csv:1: column 'prompt' occurs twice; rename one$"):
        read(path)


def test_long_texts_are_no_header(tmp_path):
    path = write(tmp_path / "data.csv", f"类型#裙,{'长' * 101}\n类型#裤,短\n")
    expected = f"{path}:1: '{'长' * 30}'... is no column name; write the column names above it"
    with pytest.raises(DataError, match=re.escape(expected)):
        read(path)
