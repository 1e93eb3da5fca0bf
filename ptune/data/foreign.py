"""Files that people pass as data and that are none: what they are, and what to do with them."""

from __future__ import annotations

import re

_FORMATS = "JSON, JSON Lines, CSV, TSV or Parquet"
_UNPACK = "unpack it and pass the data file in it"
_EXPORT = "save it as CSV UTF-8 and pass that"
_REWRITE = f"write its questions and answers into {_FORMATS}"
_NEVER = f"it is never loaded as data; pass {_FORMATS}"

_KINDS = {
    "excel": ("an Excel workbook", _EXPORT),
    "ods": ("a LibreOffice spreadsheet", _EXPORT),
    "zip": ("a zip archive", _UNPACK),
    "rar": ("a RAR archive", _UNPACK),
    "7z": ("a 7-Zip archive", _UNPACK),
    "tar": ("a tar archive", _UNPACK),
    "zstd": ("compressed with Zstandard", "unpack it with `zstd -d`"),
    "lz4": ("compressed with LZ4", "unpack it with `lz4 -d`"),
    "twice": ("compressed twice", "unpack it"),
    "office": ("an Office document", _REWRITE),
    "pdf": ("a PDF document", _REWRITE),
    "rtf": ("a Rich Text document", _REWRITE),
    "pickle": ("a pickle of Python objects", _NEVER),
    "torch": ("a PyTorch file", _NEVER),
    "safetensors": ("a file of weights (safetensors)", _NEVER),
    "gguf": ("a file of weights (GGUF)", _NEVER),
    "numpy": ("a NumPy array", _NEVER),
    "hdf5": ("an HDF5 file", f"write its records into {_FORMATS}"),
    "sqlite": ("a SQLite database", f"write its records into {_FORMATS}"),
    "feather": ("a Feather file of version 1", "write it anew with version 2, or as Parquet"),
    "lfs": ("a Git LFS pointer and not the data itself", "fetch that with `git lfs pull`"),
    "html": ("a web page and not data", "look at it, then download the file itself"),
    "xml": ("an XML document", f"write its records into {_FORMATS}"),
}
_STARTS = {
    "office": rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
    "zip": rb"PK(\x03\x04|\x05\x06|\x07\x08)",
    "rar": rb"Rar!\x1a\x07",
    "7z": rb"7z\xbc\xaf\x27\x1c",
    "tar": rb"(?s:.{257})ustar",
    "zstd": rb"\x28\xb5\x2f\xfd",
    "lz4": rb"\x04\x22\x4d\x18",
    "twice": rb"\x1f\x8b\x08|BZh[1-9]1AY&SY|\xfd7zXZ\x00",
    "pdf": rb"%PDF-",
    "rtf": rb"\{\\rtf",
    "pickle": rb"\x80[\x02-\x05][^\x00-\x1f ]",
    "safetensors": rb"(?s:.{5})\x00\x00\x00\{\"",  # the length of a header, and the header
    "gguf": rb"GGUF(?s:.)\x00\x00\x00",
    "numpy": rb"\x93NUMPY",
    "hdf5": rb"\x89HDF\r\n",
    "sqlite": rb"SQLite format 3\x00",
    "feather": rb"FEA1",
    "lfs": rb"version https://git-lfs",
    "html": rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype\s+html|html|head|body)\b",
    "xml": rb"(\xef\xbb\xbf)?\s*<\?xml\b",
}
# Many formats are a zip of files, whose names tell them apart.
_IN_ZIP = {
    "excel": rb"xl/(workbook|worksheets|styles|sharedStrings|theme)",
    "ods": rb"opendocument\.spreadsheet",
    "office": rb"(word|ppt)/(document|presentation|styles|theme)|opendocument\.text",
    "torch": rb"data\.pkl",
    "numpy": rb"\.npy",
}
_ENDINGS = {
    **{"xlsx": "excel", "xlsm": "excel", "xlsb": "excel", "xls": "excel", "ods": "ods"},
    **{"zip": "zip", "rar": "rar", "7z": "7z", "tar": "tar", "tgz": "tar"},
    **{"zst": "zstd", "lz4": "lz4", "doc": "office", "docx": "office", "ppt": "office"},
    **{"pptx": "office", "odt": "office", "pdf": "pdf", "rtf": "rtf"},
    **{"pkl": "pickle", "pickle": "pickle", "pt": "torch", "pth": "torch", "ckpt": "torch"},
    **{"safetensors": "safetensors", "gguf": "gguf", "npy": "numpy"},
    **{"npz": "numpy", "h5": "hdf5", "hdf5": "hdf5", "db": "sqlite", "sqlite": "sqlite"},
    **{"html": "html", "htm": "html", "xml": "xml"},
}
# Text that a person reads, though no data file.
READABLE = frozenset({"html", "xml"})
# Those that may well hold the records that somebody wants to train on.
HOLDERS = frozenset({"excel", "ods", "zip", "rar", "7z", "tar", "zstd", "lz4"})


def kind_by_contents(head: bytes, ending: str) -> str | None:
    """Tells a foreign kind by the first bytes of a file; None if they are of none known.

    The ending of its name decides among kinds that begin alike.
    """
    kind = next((kind for kind, start in _STARTS.items() if re.match(start, head)), None)
    if kind == "zip":
        inner = (inner for inner, part in _IN_ZIP.items() if re.search(part, head))
        named = kind_by_name(ending)
        return next(inner, named if named in _IN_ZIP else kind)
    if kind == "office" and kind_by_name(ending) == "excel":
        return "excel"
    return kind


def kind_by_name(ending: str) -> str | None:
    """Tells a foreign kind by the ending of a file's name, in small letters."""
    return _ENDINGS.get(ending)


def describe(kind: str) -> str:
    """Says what a foreign kind is."""
    return _KINDS[kind][0]


def explain(kind: str) -> str:
    """Says what a foreign kind is, and what to do with such a file."""
    return "{}; {}".format(*_KINDS[kind])
