"""Damaged files of every kind: they are read, or refused by name, and nothing else happens."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import random
import signal
import tarfile
import zipfile
from contextlib import contextmanager

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
from fixtures.data_files import GOOD, dump_csv, dump_lines

from ptune.data import source
from ptune.data.records import read_records
from ptune.errors import ConfigError, DataError

ROWS = [
    *GOOD,
    {"content": 'say "hi", 你', "summary": "a\r\nb; c\td 'e'"},
    {"content": "数" * 40, "summary": "1.5e3"},
]
TURNS = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答 \U0001f457"}]
TALKS = [{"messages": TURNS * n, "n": 12.5, "ok": None} for n in (1, 2)]
HISTORIES = [{"prompt": "问", "response": "答", "history": [["a", "b"]] * n} for n in range(3)]
NAMES = ["a.json", "a.jsonl", "a.csv", "a.tsv", "a.parquet", "a.arrow", "a.json.gz", "a.txt", "a"]
NAMES += ["a.csv.gz", "a.xlsx", "a.zip", "a.bin"]


def texts():
    for rows in (ROWS, TALKS, HISTORIES):
        yield dump_lines(rows)
        yield json.dumps(rows, ensure_ascii=False)
        yield json.dumps(rows, indent=1)
        yield json.dumps({"version": 1.0, "data": rows}, indent=1, ensure_ascii=False)
        yield json.dumps({"data": rows})
    for delimiter in ",;\t":
        yield dump_csv(ROWS, delimiter)
        yield f"sep={delimiter}\r\n" + dump_csv(ROWS, delimiter).replace("\r\n", ",,\r\n")


def archives(data):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("xl/workbook.xml", data)
    yield file.getvalue()
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        entry = tarfile.TarInfo("train.json")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    yield file.getvalue()
    yield pickle.dumps(data)


def arrows():
    for rows in (ROWS, TALKS, HISTORIES):
        table = pyarrow.Table.from_pylist(rows)
        for compression in ("none", "snappy"):
            sink = pyarrow.BufferOutputStream()
            pyarrow.parquet.write_table(table, sink, compression=compression, data_page_size=64)
            yield sink.getvalue().to_pybytes()
        for compression in ("uncompressed", "lz4"):
            sink = pyarrow.BufferOutputStream()
            pyarrow.feather.write_feather(table, sink, compression=compression)
            yield sink.getvalue().to_pybytes()
        sink = pyarrow.BufferOutputStream()
        with pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        yield sink.getvalue().to_pybytes()


def make_seeds():
    plain = [text.encode() for text in texts()]
    plain += [text.encode(e) for text in texts() for e in ("utf-16", "utf-16-le", "gb18030")]
    plain += [text.encode("utf-8-sig") for text in texts()]
    packed = [pack(data) for data in plain[:9] for pack in (gzip.compress, bz2.compress)]
    packed += [lzma.compress(plain[0])]
    return [*plain, *packed, *archives(plain[0]), *arrows()]


SEEDS = make_seeds()


def damage(data, dice):
    """Change a few places of a file."""
    content = bytearray(data)
    for _ in range(dice.choice([0, 1, 1, 1, 2, 5, 50])):
        at, size = dice.randrange(len(content) + 1), dice.choice([1, 1, 2, 8, 100])
        what = dice.randrange(8)
        if what == 0:
            content[at : at + 1] = bytes([content[at - 1] ^ (1 << dice.randrange(8))])
        elif what == 1:
            del content[at:]
        elif what == 2:
            content[at:at] = bytes(size)
        elif what == 3:
            content[at:at] = dice.randbytes(size)
        elif what == 4:
            del content[at : at + size]
        elif what == 5:
            content[at:at] = dice.choice([b'"', b"{", b"]", b",", b"\n", b"\r", b"\\", b"[" * size])
        elif what == 6:
            other = dice.choice(SEEDS)
            content[at:at] = other[: dice.randrange(len(other))]
        else:
            content[at:at] = content[: dice.randrange(len(content) + 1)]
        if not content:
            return b"x"
    return bytes(content)


@contextmanager
def time_limit(seconds):
    def give_up(number, frame):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, give_up) if hasattr(signal, "SIGALRM") else None
    try:
        if before is not None:
            signal.alarm(seconds)
        yield
    finally:
        if before is not None:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)


def read_damaged(folder, seed, read=read_records):
    """Read one damaged file; returns how many records it had, or None if it was refused."""
    dice = random.Random(seed)
    path = folder / dice.choice(NAMES)
    path.write_bytes(damage(dice.choice(SEEDS), dice))
    source.BLOCK = dice.choice([16, 100, 1000, 2**18])
    try:
        with time_limit(20):
            loaded = read([path], skip_bad_records=dice.random() < 0.7)
    except (DataError, ConfigError) as error:
        assert str(path) in str(error), seed
        assert len(str(error)) < 20_000, seed
        return None
    finally:
        path.unlink()
    assert all(str(path) in message for message in loaded.skipped), seed
    return len(loaded.records)


@pytest.mark.parametrize("part", range(2))
def test_damaged_files(tmp_path, monkeypatch, part):
    monkeypatch.setattr(source, "BLOCK", source.BLOCK)  # put back afterwards
    found = [read_damaged(tmp_path, f"{part}-{number}") for number in range(150)]
    assert None in found and any(found)  # both ends are met
