"""Lines of text files; test_records.py has what readers of records rely on."""

import gzip
import re

import pytest

from ptune.data.files import read_lines
from ptune.errors import DataError


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzipped"])
def test_lines_keep_their_ends_and_lose_the_bom(tmp_path, pack):
    path = tmp_path / "text"
    path.write_bytes(pack("\ufeff甲\u2028\r\n\n\ufeff乙\x85".encode()))
    assert list(read_lines(path)) == ["甲\u2028\r\n", "\n", "\ufeff乙\x85"]


def test_an_empty_file_has_no_lines(tmp_path):
    (tmp_path / "text").touch()
    assert list(read_lines(tmp_path / "text")) == []


def test_other_encodings_are_named_with_line_and_offset(tmp_path):
    path = tmp_path / "text"
    path.write_bytes("甲\n".encode() + "乙".encode("gbk"))
    expected = f"{path}:2: byte 0xd2 at byte offset 4 of the text is not UTF-8; convert the file"
    with pytest.raises(DataError, match="^" + re.escape(expected)):
        list(read_lines(path))


def test_what_cannot_be_read(tmp_path):
    for path in (tmp_path, tmp_path / "nope"):
        expected = re.escape(f"{path}: cannot be read (") + r".*\); check the file$"
        with pytest.raises(DataError, match=expected):
            list(read_lines(path))
    path = tmp_path / "text.gz"
    path.write_bytes(gzip.compress(b"a\n" * 1000)[:-9])
    with pytest.raises(DataError, match=r"text\.gz:\d+: cannot be read \(.*\); check the file$"):
        list(read_lines(path))
