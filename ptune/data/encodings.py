"""Bytes of a data file to text: UTF-8, UTF-16, UTF-32 and GB18030, told by the bytes themselves."""

from __future__ import annotations

import codecs
import itertools
import re
from collections.abc import Iterator

from ptune.data.rows import MAX_RECORD
from ptune.data.source import READ_ERRORS, Source
from ptune.errors import DataError

_BOMS = {  # those of UTF-32 first: the one of UTF-16 begins like it
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-8": codecs.BOM_UTF8,
}
# An ASCII character in UTF-16, as every data file begins that has no BOM.
_WIDE = {"utf-16-le": re.compile(rb"[\t\r\n -~]\x00"), "utf-16-be": re.compile(rb"\x00[\t\r\n -~]")}
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]")
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1f]")
_MAX_BINARY = 0.01  # of the bytes of a damaged text; one of ten in most other files
_PRIVATE = re.compile(r"[\ue000-\uf8ff]")
# Measured: simplified text has 98 % and more of its characters in GB2312, traditional text half.
# Bytes that are something else have fewer: Big5 a third, with a quarter of private ones.
_MIN_COMMON, _MAX_PRIVATE = 0.4, 0.05
_SHOWN = 20  # characters


def find_encoding(head: bytes, is_all: bool) -> str | None:
    """Tells the encoding of a text from its beginning; None if it is no text.

    A damaged text is taken for UTF-8, so that the damage is found when it is read.
    """
    for encoding, bom in _BOMS.items():
        if head.startswith(bom):
            return encoding
    for encoding, start in _WIDE.items():
        text = _decode(head, encoding, is_all) if start.match(head) else None
        if text is not None and not _CONTROL.search(text):
            return encoding
    if _decode(head, "utf-8", is_all) is not None:
        return None if _BINARY.search(head[:4]) else "utf-8"
    if _is_chinese(head, is_all):
        return "gb18030"
    return None if len(_BINARY.findall(head)) > _MAX_BINARY * len(head) else "utf-8"


def _decode(data: bytes, encoding: str, is_all: bool) -> str | None:
    """Decodes what may end within a character; None if it is not in this encoding."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(data, is_all)
    except UnicodeDecodeError:
        return None


def _is_chinese(data: bytes, is_all: bool) -> bool:
    """Whether bytes that are not UTF-8 are GB18030 (and so GBK or GB2312), with certainty.

    Nearly every pair of bytes is a character of GB18030, those of damaged UTF-8 and of other
    encodings, too.
    """
    loose = data.decode("utf-8", "replace")
    damaged = loose.count("\ufffd")
    if 2 * damaged <= len(loose) - _count_ascii(loose):
        return False  # most of it is UTF-8
    text = _decode(data, "gb18030", is_all)
    if text is None or _CONTROL.search(text):
        return False
    others = len(text) - _count_ascii(text)
    common = len(text.encode("gb2312", "ignore")) - _count_ascii(text)  # two bytes each
    private = len(_PRIVATE.findall(text))
    return common >= 2 * _MIN_COMMON * others and private <= _MAX_PRIVATE * others


def _count_ascii(text: str) -> int:
    return len(text.encode("ascii", "ignore"))


def read_text(source: Source, encoding: str, notices: list[str]) -> Iterator[str]:
    """Yields the text of a file in pieces, without its BOM.

    Args:
        source: The file.
        encoding: From `find_encoding`.
        notices: Is told if it was not UTF-8 and no mark in the file says what it is.

    Raises:
        DataError: The file cannot be read on, or is not in its encoding.
    """
    line, offset, is_ascii = 1, 0, True
    decoder = codecs.getincrementaldecoder(encoding)()
    blocks = source.blocks()
    for number in itertools.count():
        try:
            block = next(blocks, b"")
        except READ_ERRORS as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(
                f"{source.name}: cannot be read on after line {line} ({reason}); check the file"
            ) from error
        try:
            text = decoder.decode(block, not block)
        except UnicodeDecodeError as error:
            # So far only ASCII, which is the same in both.
            if not (encoding == "utf-8" and is_ascii and _is_chinese(error.object, not block)):
                begin = offset + len(block) - len(error.object)
                raise _undecodable(source.name, encoding, error, line, begin) from error
            encoding = "gb18030"
            decoder = codecs.getincrementaldecoder(encoding)()
            text = decoder.decode(error.object, not block)
        if encoding == "gb18030":
            if is_ascii and not text.isascii():
                notices.append(_read_as_chinese(source.name, text))
            if found := _CONTROL.search(text):
                at = line + text.count("\n", 0, found.start())
                raise DataError(
                    f"{source.name}:{at}: control character {found[0]!r} in what seemed to be "
                    f"GB18030 text; convert the file to UTF-8"
                )
        is_ascii = is_ascii and text.isascii()
        line += text.count("\n")
        offset += len(block)
        if number == 0:
            text = text.lstrip("\ufeff")
        if text:
            yield text
        if not block:
            return


def _read_as_chinese(name: str, text: str) -> str:
    start = next(i for i, character in enumerate(text) if not character.isascii())
    words = text[start : start + _SHOWN].partition("\n")[0].strip()
    return (
        f"{name} is not UTF-8 and was read as GB18030 (GBK), where it has {words!r}; "
        f"convert it to UTF-8 if that is not its text"
    )


def _undecodable(
    name: str, encoding: str, error: UnicodeDecodeError, line: int, offset: int
) -> DataError:
    """Names the first byte that is wrong; the error's object begins at `line` and `offset`."""
    line += error.object[: error.start].decode(encoding).count("\n")
    byte = f"byte 0x{error.object[error.start]:02x} at byte offset {offset + error.start}"
    return DataError(
        f"{name}:{line}: {byte} of the text is not {encoding.upper()}; mend it, or convert the "
        f"file, for example with `iconv -f ITS-ENCODING -t UTF-8`"
    )


def split_lines(name: str, texts: Iterator[str], begin: int = 1) -> Iterator[str]:
    r"""Yields the lines of a text that comes in pieces, with their ends.

    Lines end in `\n`; in a text without any in its first piece, as old programs for the Macintosh
    write it, in `\r`.

    Args:
        name: Of the file, as messages show it.
        texts: The pieces.
        begin: The number of the first line.

    Raises:
        DataError: A line is longer than a record can be.
    """
    first, number = next(texts, ""), begin
    end = "\r" if "\r" in first and "\n" not in first else "\n"
    begun, size = list[str](), 0  # the pieces of a line without an end as yet
    for text in itertools.chain([first], texts):
        *lines, rest = text.split(end)
        if lines:
            yield "".join((*begun, lines[0], end))
            for line in lines[1:]:
                yield line + end
            number += len(lines)
            begun, size = [], 0
        begun.append(rest)
        size += len(rest)
        if size > MAX_RECORD:
            raise DataError(
                f"{name}:{number}: line of more than {MAX_RECORD:,} characters; "
                f"write one record per line"
            )
    if last := "".join(begun):
        yield last
