"""What kind of file a tokenizer is in, by its first bytes; the name is the same for two kinds."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path

_HEAD = 1024  # bytes; more than a line of a rank file takes
_RANK_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?(\n|\Z)")
_POINTER = b"version https://git-lfs"
_FIRST_FIELD = b"\n"  # the tag of the pieces, with which a SentencePiece model begins


class TokenizerFile(Enum):
    """The kinds; the value is what they are called in an error."""

    SENTENCEPIECE = "SentencePiece model"
    RANKS = "rank file"
    POINTER = "Git LFS pointer"
    UNKNOWN = "something else"


def kind_of(file: Path) -> TokenizerFile:
    """Tell what a file is; one that is not there is unknown."""
    if not file.is_file():
        return TokenizerFile.UNKNOWN
    with file.open("rb") as stream:
        head = stream.read(_HEAD)
    if head.startswith(_POINTER):
        return TokenizerFile.POINTER
    if _RANK_LINE.match(head):
        return TokenizerFile.RANKS
    return TokenizerFile.SENTENCEPIECE if head.startswith(_FIRST_FIELD) else TokenizerFile.UNKNOWN
