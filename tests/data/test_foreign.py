"""Files that are no data files, by their contents and by their names, and what to do with them."""

import io
import pickle
import tarfile
import zipfile

import numpy
import pytest
import torch
from fixtures.data_files import GOOD, dump_csv, dump_lines, read, read_values, write
from safetensors.numpy import save

from ptune.errors import DataError

TEXT = dump_lines(GOOD)


def zipped(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, TEXT)
    return file.getvalue()


def tarred(mode="w"):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        entry = tarfile.TarInfo("AdvertiseGen/dev.json")
        entry.size = len(TEXT.encode())
        archive.addfile(entry, io.BytesIO(TEXT.encode()))
    return file.getvalue()


def saved(old):
    file = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, file, _use_new_zipfile_serialization=not old)
    return file.getvalue()


OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600
EXPORT = "save it as CSV UTF-8 and pass that"
UNPACK = "unpack it and pass the data file in it"
NEVER = "it is never loaded as data; pass JSON, JSON Lines, CSV, TSV or Parquet"
REWRITE = "write its questions and answers into JSON, JSON Lines, CSV, TSV or Parquet"
CASES = [
    ("a.xlsx", zipped("[Content_Types].xml", "xl/workbook.xml"), f"an Excel workbook; {EXPORT}"),
    ("a.csv", zipped("[Content_Types].xml", "xl/workbook.xml"), f"an Excel workbook; {EXPORT}"),
    ("a.xlsx", zipped("unknown"), f"an Excel workbook; {EXPORT}"),
    ("a.xls", OFFICE, f"an Excel workbook; {EXPORT}"),
    ("a.ods", zipped("mimetype application/vnd.oasis.opendocument.spreadsheet"),
     f"a LibreOffice spreadsheet; {EXPORT}"),
    ("a.doc", OFFICE, f"an Office document; {REWRITE}"),
    ("a.docx", zipped("word/document.xml"), f"an Office document; {REWRITE}"),
    ("a.zip", zipped("train.json"), f"a zip archive; {UNPACK}"),
    ("a.json", zipped("train.json"), f"a zip archive; {UNPACK}"),
    ("a.db", zipped("train.json"), f"a zip archive; {UNPACK}"),
    ("a.rar", b"Rar!\x1a\x07\x01\x00", f"a RAR archive; {UNPACK}"),
    ("a.7z", b"7z\xbc\xaf\x27\x1c\x00\x04", f"a 7-Zip archive; {UNPACK}"),
    ("a.tar", tarred(), f"a tar archive; {UNPACK}"),
    ("a.tar.gz", tarred("w:gz"), f"a tar archive; {UNPACK}"),
    ("a.json", tarred("w:xz"), f"a tar archive; {UNPACK}"),
    ("a.zst", b"\x28\xb5\x2f\xfd\x00", "compressed with Zstandard; unpack it with `zstd -d`"),
    ("a.lz4", b"\x04\x22\x4d\x18\x00", "compressed with LZ4; unpack it with `lz4 -d`"),
    ("a.pdf", b"%PDF-1.7\n", f"a PDF document; {REWRITE}"),
    ("a.rtf", b"{\\rtf1\\ansi}", f"a Rich Text document; {REWRITE}"),
    ("a.json", pickle.dumps(GOOD), f"a pickle of Python objects; {NEVER}"),
    ("a.pkl", pickle.dumps(GOOD, 0), f"a pickle of Python objects; {NEVER}"),
    ("a.pkl", pickle.dumps(GOOD, 2), f"a pickle of Python objects; {NEVER}"),
    ("a.bin", saved(old=True), f"a pickle of Python objects; {NEVER}"),
    ("a.bin", saved(old=False), f"a PyTorch file; {NEVER}"),
    ("a.pt", b"\0" * 100, f"a PyTorch file; {NEVER}"),
    ("a.json", save({"a": numpy.zeros(3)}), f"a file of weights (safetensors); {NEVER}"),
    ("a.gguf", b"GGUF\x03\x00\x00\x00", f"a file of weights (GGUF); {NEVER}"),
    ("a.npy", b"\x93NUMPY\x01\x00", f"a NumPy array; {NEVER}"),
    ("a.h5", b"\x89HDF\r\n\x1a\n",
     "an HDF5 file; write its records into JSON, JSON Lines, CSV, TSV or Parquet"),
    ("a.db", b"SQLite format 3\x00",
     "a SQLite database; write its records into JSON, JSON Lines, CSV, TSV or Parquet"),
    ("a.feather", b"FEA1\x00\x00",
     "a Feather file of version 1; write it anew with version 2, or as Parquet"),
    ("a.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
     "a Git LFS pointer and not the data itself; fetch that with `git lfs pull`"),
    ("a.json", b"\n<!DOCTYPE html>\n<html>Not found</html>",
     "a web page and not data; look at it, then download the file itself"),
    ("a.csv", b"\xef\xbb\xbf<html><body>", 
     "a web page and not data; look at it, then download the file itself"),
    ("a.json", b'<?xml version="1.0"?>',
     "an XML document; write its records into JSON, JSON Lines, CSV, TSV or Parquet"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "data", "what"), CASES, ids=[f"{c[0]}, {c[2][:30]}" for c in CASES]
)
def test_foreign_files(tmp_path, name, data, what):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value) == f"data file {path} is {what}"


def test_compressed_twice(tmp_path):
    import gzip

    path = write(tmp_path / "a.json.gz", gzip.compress(TEXT.encode()))
    with pytest.raises(DataError, match=r"a\.json\.gz is compressed twice; unpack it$"):
        read(path)


@pytest.mark.parametrize("name", ["a.xls", "a.bin", "a.zip", "a.pkl", "a.doc", "a.html"])
@pytest.mark.parametrize("text", [TEXT, dump_csv(GOOD), dump_csv(GOOD, "\t")])
def test_what_holds_records_is_read_whatever_its_name(tmp_path, name, text):
    """What web sites offer as .xls is often a table with tabs."""
    path = write(tmp_path / name, text)
    rows, notices = read(path)
    assert [value for _, value in rows] == GOOD
    found = "JSON" if text == TEXT else "a table"
    told = [f"{path} holds {found}, whatever its name says, and is read so"]
    assert notices == (told if name != "a.bin" else [])


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("PKZIP,summary\na,b\n", [{"PKZIP": "a", "summary": "b"}]),
        ("version,https\na,b\n", [{"version": "a", "https": "b"}]),
        ("<html>,b\na,b\n", None),
        ("GGUF,b\na,b\n", [{"GGUF": "a", "b": "b"}]),
    ],
)
def test_texts_that_begin_alike(tmp_path, text, rows):
    path = write(tmp_path / "data.csv", text)
    if rows is None:
        with pytest.raises(DataError, match="web page"):
            read(path)
    else:
        assert read_values(path) == rows
