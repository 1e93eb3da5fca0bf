"""Opening data files: compression, pipes, and what cannot be opened or read."""

import bz2
import gzip
import lzma
import os
import threading
from pathlib import Path

import pytest
from fixtures.data_files import GOOD, dump_lines, read, read_values, write

from ptune.data import source
from ptune.data.source import check_file
from ptune.errors import DataError

TEXT = dump_lines(GOOD).encode()


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("name", ["data.json", "data.json.gz", "data"])
def test_compression_is_known_by_the_bytes_and_not_by_the_name(tmp_path, pack, name):
    path = tmp_path / name
    path.write_bytes(pack(TEXT))
    assert read_values(path) == GOOD


def test_a_name_may_promise_compression_that_is_not_there(tmp_path):
    path = tmp_path / "data.json.gz"
    path.write_bytes(TEXT)
    assert read_values(path) == GOOD


def test_gzip_of_several_parts(tmp_path):
    path = tmp_path / "data.json.gz"
    path.write_bytes(gzip.compress(TEXT) + gzip.compress(TEXT))
    assert read_values(path) == GOOD * 2


def cut(data):
    return data[:-20]


def spoil(data):
    return data[:30] + bytes(byte ^ 0x55 for byte in data[30:60]) + data[60:]


@pytest.mark.parametrize("damage", [cut, spoil])
@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_damaged_compression(tmp_path, pack, damage):
    path = tmp_path / "data.json.gz"
    path.write_bytes(damage(pack(TEXT)))
    with pytest.raises(
        DataError,
        match=r"^data file .*data\.json\.gz cannot be read \(.+\); check the file and its rights$",
    ):
        read(path)


def test_damage_further_on_has_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "BLOCK", len(TEXT))
    path = tmp_path / "data.json.gz"
    path.write_bytes(gzip.compress(TEXT + os.urandom(50_000).hex().encode())[:-20_000])
    with pytest.raises(DataError, match=r"data\.json\.gz: cannot be read on after line 3 \(.+\);"):
        read(path)


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(DataError, match=r"^data file .*none\.json does not exist; check the path$"):
        check_file(tmp_path / "none.json")
    with pytest.raises(DataError, match=r"empty\.json is empty; write records into it or leave it"):
        check_file(write(tmp_path / "empty.json", ""))
    check_file(write(tmp_path / "good.json", "x"))


def test_broken_links_and_links_in_a_circle(tmp_path):
    link = tmp_path / "link.json"
    link.symlink_to("gone.json")
    with pytest.raises(
        DataError, match=r"link\.json is a link to gone\.json, which does not exist; mend it$"
    ):
        check_file(link)
    circle = tmp_path / "circle.json"
    circle.symlink_to(circle)
    with pytest.raises(DataError, match=r"circle\.json cannot be read \(.+\); check the file and"):
        check_file(circle)


@pytest.mark.parametrize("name", ["a" * 300, "a\0b"])
def test_names_that_no_system_has(tmp_path, name):
    with pytest.raises(DataError, match=r"cannot be read \(.+\); check the file and its rights$"):
        check_file(tmp_path / name)


def test_file_without_rights(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    path = write(tmp_path / "data.json", TEXT)
    monkeypatch.setattr(Path, "open", refuse)  # who runs the tests may have all rights
    with pytest.raises(
        DataError,
        match=r"data\.json cannot be read \(Permission denied\); check the file and its rights$",
    ):
        read(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (TEXT, GOOD),
        (gzip.compress(TEXT, mtime=0), GOOD),
        (b"content,summary\na,b\n", [{"content": "a", "summary": "b"}]),
        (b"", []),
    ],
)
def test_pipes(tmp_path, data, expected):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    check_file(path)
    writer = threading.Thread(target=path.write_bytes, args=(data,))
    writer.start()
    rows = read_values(path)
    writer.join()
    assert rows == expected


@pytest.mark.skipif(not Path("/dev/zero").is_char_device(), reason="needs /dev/zero")
def test_devices():
    with pytest.raises(DataError, match=r"^data file /dev/zero is not text; pass JSON, "):
        read(Path("/dev/zero"))
    assert read_values(Path(os.devnull)) == []


@pytest.mark.parametrize("end", [b"", TEXT])
def test_file_that_changes_while_it_is_read(tmp_path, monkeypatch, end):
    monkeypatch.setattr(source, "BLOCK", len(TEXT))
    path = write(tmp_path / "data.json", TEXT * 3)
    blocks = source.Source.blocks

    def change(self):
        for block in blocks(self):
            with path.open("r+b") as stream:
                stream.truncate(len(TEXT) * 2) if not end else None
                stream.seek(0, os.SEEK_END)
                stream.write(end)  # a writer as fast as the reader, without an end
            yield block

    monkeypatch.setattr(source.Source, "blocks", change)
    with pytest.raises(
        DataError, match=r"data\.json is being written; start again when it is complete$"
    ):
        read(path)
