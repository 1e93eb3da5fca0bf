"""Parquet, Feather and Arrow streams: values, batches, damage, and where they cannot be read."""

import datetime
import os
import threading

import pyarrow
import pyarrow.parquet
import pytest
from fixtures.data_files import dump_arrow, read, read_values, write

from ptune.data import arrow_rows
from ptune.data.records import read_records
from ptune.errors import DataError

ROWS = [
    {"prompt": "类型#裙", "response": "一条裙子", "history": [["a", "b"], ["c", "d"]]},
    {"prompt": "e", "response": "f", "history": None},
]
TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


LAYOUTS = ["parquet", "feather", "stream"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["data.parquet", "data.json", "data"])
def test_lists_and_structs_are_values_of_python(tmp_path, layout, name):
    assert read(write(tmp_path / name, dump_arrow(ROWS, layout)))[0] == list(enumerate(ROWS, 1))
    rows = [{"messages": TURNS, "n": 3, "when": datetime.date(2020, 1, 1)}]
    path = write(tmp_path / name, dump_arrow(rows, layout))
    assert [value for _, value in read(path)[0]] == rows


@pytest.mark.parametrize("layout", LAYOUTS)
def test_records(tmp_path, layout):
    path = write(tmp_path / "data.parquet", dump_arrow(ROWS, layout))
    records = read_records([path]).records
    said = [[message["content"] for message in row["messages"]] for row in records]
    assert [texts[:-2] for texts in said] == [["a", "b", "c", "d"], []]
    assert records["source"][:] == [f"{path}:1", f"{path}:2"]
    path = write(tmp_path / "data.parquet", dump_arrow([{"messages": TURNS}], layout))
    assert read_records([path]).records[0]["messages"][-1]["content"] == "b"
    wrong = [{"content": "a", "summary": datetime.date(2020, 1, 1)}]
    with pytest.raises(DataError, match=r"data\.parquet:1: column 'summary': expected text, found"):
        read_records([write(tmp_path / "data.parquet", dump_arrow(wrong, layout))])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_batches_of_a_few_records(tmp_path, monkeypatch, layout):
    monkeypatch.setattr(arrow_rows, "_ROWS_AT_ONCE", 3)
    rows = [{"n": n} for n in range(10)]
    assert read(write(tmp_path / "data.arrow", dump_arrow(rows, layout)))[0] == [
        (n + 1, {"n": n}) for n in range(10)
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cut", [10, 300])
def test_damage(tmp_path, layout, cut):
    data = dump_arrow([{"content": "a" * 500, "summary": "b" * 500}] * 3, layout)
    path = write(tmp_path / "data.parquet", data[:-cut])
    with pytest.raises(
        DataError,
        match=r"data\.parquet: (Parquet|Arrow|Arrow stream) cannot be read on after record 0 "
        r"\(.+\); get or write the file anew$",
    ):
        read(path)


def test_texts_that_are_not_utf_8(tmp_path):
    array = pyarrow.array([b"a\xff"]).cast(pyarrow.binary()).view(pyarrow.string())
    table = pyarrow.table({"content": array})
    with pytest.raises(DataError, match=r"Parquet cannot be read on after record 0 \(.*utf"):
        read(write(tmp_path / "data.parquet", dump_arrow(table, "parquet")))


def test_damaged_offsets_of_a_stream_are_found(tmp_path):
    data = dump_arrow([{"content": "abc"}, {"content": "def"}], "stream")
    offsets = bytes.fromhex("00000000 03000000 06000000")
    assert data.count(offsets) == 1
    for wrong in ("ffffff7f", "ffffffff"):
        damaged = data.replace(offsets, bytes.fromhex(f"00000000 03000000 {wrong}"))
        with pytest.raises(DataError, match=r"Arrow stream cannot be read on after record 0 \("):
            read(write(tmp_path / "data.arrow", damaged))


def test_columns_of_one_name(tmp_path):
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, ["content", "content"])
    with pytest.raises(DataError, match=r"data\.arrow: column 'content' occurs twice; rename one$"):
        read(write(tmp_path / "data.arrow", dump_arrow(table, "stream")))


def test_neither_compressed_nor_from_a_pipe(tmp_path):
    data = dump_arrow(ROWS, "parquet")
    with pytest.raises(
        DataError,
        match=r"^data file .*\.gz is Parquet and compressed with gzip; it is read from a plain file"
        r" only: unpack it$",
    ):
        read(write(tmp_path / "data.parquet.gz", data))
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(data,))
        writer.start()
        with pytest.raises(
            DataError, match=r"pipe is Parquet and a pipe; it is read from a plain file only: save"
        ):
            read(tmp_path / "pipe")
        writer.join()


def test_names_that_are_not_utf_8(tmp_path):
    path = tmp_path / os.fsdecode(b"d\xff.parquet")
    try:
        write(path, dump_arrow(ROWS, "parquet"))
    except OSError:
        pytest.skip("the file system takes no such name")
    assert read_values(path) == ROWS
