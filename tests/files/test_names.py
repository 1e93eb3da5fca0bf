"""Names of files that are not UTF-8, in messages and in names of folders."""

import os
from pathlib import Path

import pytest

from ptune.files.atomic import write_text_atomically
from ptune.files.names import shown, stem


def test_shown():
    assert shown(Path("数据/train.json")) == "数据/train.json"
    name = shown(Path(os.fsdecode(b"d\xe9v \xe6\x95.json")))
    assert name == r"d\xe9v \xe6\x95.json"
    name.encode("utf-8")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/数据.json.gz", "数据"),
        ("a/folder", "folder"),
        (os.fsdecode(b"d\xe9v.json"), "d_v"),
        (".hidden", "data"),
        ("..", "data"),
    ],
)
def test_stem(path, name):
    assert stem(Path(path)) == name


def test_stem_of_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert stem(Path(".")) == tmp_path.name


def test_half_surrogates_in_json_are_written_as_escapes(tmp_path):
    import json

    value = {"data": "名" + os.fsdecode(b"\xff")}
    write_text_atomically(tmp_path / "a.json", json.dumps(value, ensure_ascii=False))
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "名" in text and json.loads(text) == value
