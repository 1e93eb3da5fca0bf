"""Every encoding that is read, how it is told, and what is not taken for one."""

import codecs
from random import Random

import pytest
from fixtures.data_files import GOOD, dump_csv, dump_lines, read, read_values, write

from ptune.data import encodings, source
from ptune.data.encodings import find_encoding
from ptune.errors import DataError

TEXT = dump_lines(GOOD)
CHINESE = "这件衣服采用优质的棉质面料,穿着舒适,适合春秋季节穿着。"
TRADITIONAL = "這件衣服採用優質的棉質面料,穿著舒適,適合春秋季節穿著。"
JAPANESE = "日本語のテキストです。これはとても便利な服です。"
KNOWN = {
    "utf-8": "utf-8",
    "utf-8-sig": "utf-8",
    "utf-16": "utf-16-le",
    "utf-16-le": "utf-16-le",
    "utf-16-be": "utf-16-be",
    "utf-32": "utf-32-le",
    "gb18030": "gb18030",
}


@pytest.fixture(params=["one block", "many blocks"])
def blocks(request, monkeypatch):
    """Cut text into blocks within its characters, too."""
    if request.param == "many blocks":
        monkeypatch.setattr(source, "BLOCK", 31)


@pytest.mark.parametrize("encoding", KNOWN)
@pytest.mark.parametrize("name", ["data.json", "data.csv", "data.json.gz"])
def test_encodings(tmp_path, blocks, encoding, name):
    text = dump_csv(GOOD) if "csv" in name else TEXT
    rows, notices = read(write(tmp_path / name, text.encode(encoding)))
    assert [value for _, value in rows] == GOOD
    assert find_encoding(text.encode(encoding), True) == KNOWN[encoding]
    assert len(notices) == (encoding == "gb18030")


@pytest.mark.parametrize(("bom", "encoding"), [
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
])  # fmt: skip
def test_big_endian_with_a_mark(tmp_path, bom, encoding):
    assert read_values(write(tmp_path / "data.json", bom + TEXT.encode(encoding))) == GOOD


def test_gb18030_is_told_once_with_its_first_words(tmp_path, blocks):
    path = write(tmp_path / "data.csv", f"content,summary\na,{CHINESE[:13]}\nb,衣\n".encode("gbk"))
    rows, notices = read(path)
    assert rows == [
        (2, {"content": "a", "summary": CHINESE[:13]}),
        (3, {"content": "b", "summary": "衣"}),
    ]
    (notice,) = notices
    before, words, after = notice.split("'")
    assert before == f"{path} is not UTF-8 and was read as GB18030 (GBK), where it has "
    assert CHINESE.startswith(words) and len(words) > 3
    assert after == "; convert it to UTF-8 if that is not its text"


def test_gb18030_after_much_ascii(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "BLOCK", 64)
    rows = [{"content": "a" * 100, "summary": "b"}] * 5 + GOOD
    path = write(tmp_path / "data.json", dump_lines(rows).encode("gb18030"))
    found, notices = read(path)
    assert found == list(enumerate(rows, 1))
    assert len(notices) == 1


@pytest.mark.parametrize(
    ("text", "encoding"),
    [(CHINESE, "gb2312"), (TRADITIONAL, "gbk"), (CHINESE + "\U0001f457㐀", "gb18030")],
)
def test_chinese_of_every_kind(text, encoding):
    assert find_encoding(text.encode(encoding), True) == "gb18030"


@pytest.mark.parametrize(
    "data",
    [
        JAPANESE.encode("shift_jis"),
        TRADITIONAL.encode("big5"),
        "Это русский текст, он длинный и красивый.".encode("cp1251"),
        "déjà vu, naïve, élève".encode("latin-1"),
        "naïve über größer".encode("latin-1"),
        b"a\xb0\xa1" + b"\x01" * 50,
        CHINESE.encode("gbk") + b"\x00",
        CHINESE.encode()[:40] + b"\xff" + CHINESE.encode()[40:],
        b"\xb0\xa1" + b"\xaa\xa1" * 5,  # private characters
    ],
)
def test_what_is_not_gb18030(data):
    assert find_encoding(data, True) != "gb18030"


def test_damaged_utf_8_that_would_be_gb18030_is_not_read_so(tmp_path):
    """Three bytes a character are whole pairs, two characters at a time."""
    data = ("content,summary\n" + "a,衣服\n" * 20).encode() + b"a,\xb0\xa1\n"
    data.decode("gb18030")
    path = write(tmp_path / "data.csv", data)
    with pytest.raises(DataError, match=r"data\.csv:22: byte 0xb0 at byte offset \d+ of the text"):
        read(path)


@pytest.mark.parametrize(
    "data",
    [
        b"\0" * 100,
        Random(1).randbytes(5000),
        b"\x80\x00\x01" * 100,
        b"\0\0ab",
        "M\x01\x02内".encode("utf-16-le"),
    ],
)
def test_what_is_no_text(tmp_path, data):
    assert find_encoding(data, True) is None
    with pytest.raises(DataError, match=r"data\.json is not text; pass JSON, JSON Lines, CSV, TSV"):
        read(write(tmp_path / "data.json", data))


@pytest.mark.parametrize("name", ["data.json", "data.csv", "data.json.gz"])
@pytest.mark.parametrize("size", [7, 31, 10**6])
def test_other_encodings_are_named_with_line_and_offset(tmp_path, monkeypatch, name, size):
    monkeypatch.setattr(source, "BLOCK", size)
    head = "内容,内容\n" * 3 if "csv" in name else '{"content": "衣服", "summary": "衣服"}\n' * 3
    path = write(tmp_path / name, head.encode() + "a衣".encode() + "衣".encode("gbk") + b"\n")
    expected = (
        f"{path}:4: byte 0xd2 at byte offset {len(head.encode()) + 4} of the text is not UTF-8; "
        "mend it, or convert the file, for example with `iconv -f ITS-ENCODING -t UTF-8`"
    )
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value) == expected


@pytest.mark.parametrize("size", [8, 10**6])
def test_damaged_utf_16_has_a_line(tmp_path, monkeypatch, size):
    monkeypatch.setattr(source, "BLOCK", size)
    path = write(tmp_path / "data.json", "[\n\n1,\n2".encode("utf-16") + b"\x00\xdc2\x00")
    with pytest.raises(DataError, match=r"data\.json:4: byte 0x00 at byte offset 16 of the text is"
                       " not UTF-16-LE; mend it"):  # fmt: skip
        read(path)


def test_control_characters_in_what_seemed_gb18030(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "BLOCK", 64)
    data = f"content,summary\na,{CHINESE * 3}\n".encode("gbk") + b"b,\x01\n"
    with pytest.raises(
        DataError,
        match=r"data\.csv:3: control character '\\x01' in what seemed to be GB18030 text; "
        r"convert the file to UTF-8$",
    ):
        read(write(tmp_path / "data.csv", data))


@pytest.mark.parametrize("packed", ["data.json", "data.json.gz", "data.csv"])
def test_endless_line(tmp_path, monkeypatch, packed):
    monkeypatch.setattr(encodings, "MAX_RECORD", 10_000)
    monkeypatch.setattr(source, "BLOCK", 1000)
    text = '{"content": "a", "summary": "b"}\n' if "json" in packed else "content,summary\n"
    path = write(tmp_path / packed, text + " " * 20_000)
    with pytest.raises(
        DataError, match=r":2: line of more than 10,000 characters; write one record per line$"
    ):
        read(path)
    read(write(tmp_path / packed, text + " " * 9000 + "\n" + text))
